"""A server that answers as S3 does for a bucket with every image of a dataset.

    python -m bench._listing --version <folder with SHA256SUMS.txt> --bucket bench --prefix mimic-cxr-jpg/2.1.0

Images exist only in its answers (LIST pages of 1,000 with Prefix, StartAfter, ContinuationToken and Delimiter; HEAD with
size, ETag and the SHA-256 from SHA256SUMS.txt); the files of the version's folder are real, and everything that is PUT, in
one piece or in parts, is kept in memory. Signatures are not checked. ``GET /_counters`` returns the requests so far, ``DELETE`` resets them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import time
from base64 import b64encode
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

PAGE = 1000
WHEN = "2025-01-01T00:00:00.000Z", "Wed, 01 Jan 2025 00:00:00 GMT"
_XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_CLOSED = (
    "<PublicAccessBlockConfiguration>"
    + "".join(
        f"<{n}>true</{n}>"
        for n in ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    )
    + "</PublicAccessBlockConfiguration>"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a LIST and a HEAD return for an object."""

    size: int
    etag: str
    sha256: str


def image(sha256: str) -> Entry:
    """The entry of an image, with a made-up size and ETag that are always the same."""
    return Entry(1_600_000 + int(sha256[:4], 16), sha256[:32], sha256)


class Store:
    """The bucket's objects."""

    def __init__(self, version: Path, prefix: str) -> None:
        self.images: dict[str, str] = {}
        self.objects: dict[str, tuple[Entry, bytes]] = {}
        self.lock = threading.Lock()
        for line in (version / "SHA256SUMS.txt").read_text().splitlines():
            sha256, _, path = line.partition(" ")
            if path.startswith("files/"):
                self.images[f"{prefix}/{path}"] = sha256
        for file in version.iterdir():
            if file.is_file():
                self.put(f"{prefix}/{file.name}", file.read_bytes())
        self._keys = sorted(self.images)

    def put(self, key: str, data: bytes) -> Entry:
        """Store an object."""
        entry = Entry(len(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), hashlib.sha256(data).hexdigest())
        with self.lock:
            self.objects[key] = entry, data
        return entry

    def head(self, key: str) -> Entry | None:
        """The entry of an object, or None."""
        if (kept := self.objects.get(key)) is not None:
            return kept[0]
        sha256 = self.images.get(key)
        return None if sha256 is None else image(sha256)

    def keys(self, prefix: str, after: str) -> Iterator[str]:
        """Keys with a prefix after ``after``, in byte order. ``send`` a prefix to skip all keys that begin with it."""
        with self.lock:
            others = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        at = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after))
        other = 0
        while True:
            mine = self._keys[at] if at < len(self._keys) and self._keys[at].startswith(prefix) else None
            theirs = others[other] if other < len(others) else None
            if mine is None and theirs is None:
                return
            if theirs is None or (mine is not None and mine < theirs):
                found, at = mine, at + 1
            else:
                found, other = theirs, other + 1
            leap = yield found or ""
            if leap:
                at = max(at, bisect_left(self._keys, leap + "\uffff"))
                other = max(other, bisect_left(others, leap + "\uffff"))

    def page(self, bucket: str, query: dict[str, str]) -> str:
        """One page of ListObjectsV2."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = min(int(query.get("max-keys", PAGE)), PAGE)
        after = query.get("continuation-token") or query.get("start-after", "")
        contents: list[str] = []
        common: list[str] = []
        last, more, leap = after, False, None
        walk = self.keys(prefix, after)
        while True:
            try:
                key = walk.send(leap)
            except StopIteration:
                break
            leap = None
            folder, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found and after.startswith(prefix + folder + delimiter):
                leap = prefix + folder + delimiter
                continue
            if len(contents) + len(common) == most:
                more = True
                break
            if found:
                leap = last = prefix + folder + delimiter
                common.append(f"<CommonPrefixes><Prefix>{escape(leap)}</Prefix></CommonPrefixes>")
                continue
            last = key
            entry = self.head(key)
            if entry is None:  # deleted meanwhile
                continue
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{WHEN[0]}</LastModified><ETag>&quot;{entry.etag}&quot;</ETag>"
                f"<ChecksumAlgorithm>SHA256</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><Size>{entry.size}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult {_XMLNS}><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{most}</MaxKeys>"
            f"<KeyCount>{len(contents) + len(common)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{''.join(contents)}{''.join(common)}</ListBucketResult>"
        )


def server(store: Store, bucket: str, delay: float = 0.0) -> ThreadingHTTPServer:
    """A server on a free port of 127.0.0.1, to be started with ``serve_forever``; ``delay`` seconds precede each answer."""
    counters: Counter[str] = Counter()
    uploads: dict[str, dict[int, bytes]] = {}  # upload id to part number to bytes

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        disable_nagle_algorithm = True

        def handle_expect_100(self) -> bool:  # a client waits a second for this line; it must not stay in the buffer
            super().handle_expect_100()
            self.wfile.flush()
            return True

        def _handle(self) -> None:
            if delay:
                time.sleep(delay)
            parts = urlsplit(self.path)
            if parts.path == "/_counters":
                if self.command == "DELETE":
                    counters.clear()
                self._reply(200, json.dumps(counters).encode(), {"Content-Type": "application/json"})
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name, _, key = unquote(parts.path).lstrip("/").partition("/")
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            if name != bucket:
                self._error(404, "NoSuchBucket")
            elif key and ("uploads" in query or "uploadId" in query):
                self._parts(key, query, body)
            elif key:
                self._object(key, body)
            else:
                self._bucket(query, body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815

        def _bucket(self, query: dict[str, str], body: bytes) -> None:
            if self.command == "HEAD":
                counters["HEAD bucket"] += 1
                self._reply(200, b"")
            elif self.command == "GET" and "list-type" in query:
                counters["LIST"] += 1
                self._xml(store.page(bucket, query))
            elif self.command == "POST" and "delete" in query:
                counters["DELETE"] += 1
                for part in body.decode().split("<Key>")[1:]:
                    with store.lock:
                        store.objects.pop(unescape(part.partition("</Key>")[0]), None)
                self._xml(f"<DeleteResult {_XMLNS}></DeleteResult>")
            elif self.command == "GET" and "publicAccessBlock" in query:
                self._xml(_CLOSED)
            else:
                self._error(501, "NotImplemented")

        def _parts(self, key: str, query: dict[str, str], body: bytes) -> None:
            counters[f"{self.command} parts"] += 1
            number = query.get("uploadId", "")
            if self.command == "POST" and "uploads" in query:
                uploads[made := f"upload-{len(uploads)}"] = {}
                self._xml(
                    f"<InitiateMultipartUploadResult {_XMLNS}><UploadId>{made}</UploadId></InitiateMultipartUploadResult>"
                )
            elif number not in uploads:
                self._error(404, "NoSuchUpload")
            elif self.command == "PUT":
                uploads[number][int(query["partNumber"])] = body
                self._reply(200, b"", {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'})
            elif self.command == "POST":
                parts = uploads.pop(number)
                entry = store.put(key, b"".join(parts[one] for one in sorted(parts)))
                self._xml(
                    f"<CompleteMultipartUploadResult {_XMLNS}><ETag>&quot;{entry.etag}&quot;</ETag></CompleteMultipartUploadResult>"
                )
            else:
                uploads.pop(number)
                self._reply(204, b"")

        def _object(self, key: str, body: bytes) -> None:
            is_image = key in store.images
            counters[f"{self.command} image" if is_image else self.command] += 1
            if self.command == "PUT":
                entry = store.put(key, body)
                self._reply(200, b"", {"ETag": f'"{entry.etag}"'})
                return
            if self.command == "DELETE":
                with store.lock:
                    store.objects.pop(key, None)
                self._reply(204, b"")
                return
            entry = store.head(key)
            if entry is None:
                self._error(404, "NoSuchKey")
                return
            if self.command == "GET" and key not in store.objects:  # the image has no bytes
                self._error(501, "NotImplemented")
                return
            data = store.objects[key][1] if self.command == "GET" else b""
            digest = b64encode(bytes.fromhex(entry.sha256)).decode()
            checksum = {"x-amz-checksum-sha256": digest, "x-amz-checksum-type": "FULL_OBJECT"}
            wanted = checksum if self.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED" else {}
            self._reply(
                200,
                data,
                {
                    "ETag": f'"{entry.etag}"',
                    "Last-Modified": WHEN[1],
                    "Content-Type": "application/octet-stream",
                    **wanted,
                },
                entry.size,
            )

        def _xml(self, text: str, status: int = 200) -> None:
            body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
            self._reply(status, body, {"Content-Type": "application/xml"})

        def _error(self, status: int, code: str) -> None:
            self._xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status)

        def _reply(self, status: int, body: bytes, headers: dict[str, Any] = {}, length: int | None = None) -> None:  # noqa: B006
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    return Server(("127.0.0.1", 0), Handler)


def main() -> None:
    """Serve until the process is terminated; prints one line of JSON with ``url`` once it listens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    listening = server(Store(options.version, options.prefix), options.bucket, options.delay)
    print(json.dumps({"url": f"http://127.0.0.1:{listening.server_port}"}), flush=True)
    listening.serve_forever()


if __name__ == "__main__":
    main()
