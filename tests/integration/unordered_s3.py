"""An S3-like server that does not list keys in byte order, like Storj and S3's directory buckets."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


def by_bytes(key: str) -> Any:
    """The order of Amazon's S3."""
    return key.encode()


def by_hash(key: str) -> Any:
    """The order of Storj: each part of the key is encrypted, and the encrypted parts are sorted."""
    return [hashlib.sha256(part.encode()).digest() for part in key.split("/")]


def by_folder(key: str) -> Any:
    """The order of a server that walks the folders of a disk: ``a/b`` before ``a-b``."""
    return [part.encode() for part in key.split("/")]


class UnorderedS3:
    """LIST, HEAD, GET and PUT of one bucket; ``objects`` holds bytes by key, ``asked`` counts requests by kind.

    Args:
        order: Sort key. StartAfter skips all keys that do not sort after it.
        page: Keys per LIST.
    """

    def __init__(self, order: Callable[[str], Any] = by_bytes, page: int = 1000) -> None:
        self.order, self.page = order, page
        self.objects: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet per answer
            disable_nagle_algorithm = True

            def answer(self) -> None:
                at = urlsplit(self.path)
                _, _, key = unquote(at.path)[1:].partition("/")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, out = server.handle(self.command, key, parse_qs(at.query), body)
                self.send_response(status)
                for name, value in {"Content-Length": len(out), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(out)

            do_GET = do_HEAD = do_PUT = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._http.shutdown()
        self._http.server_close()

    def handle(
        self, method: str, key: str, query: Mapping[str, list[str]], body: bytes
    ) -> tuple[int, Mapping[str, Any], bytes]:
        """Status, headers and body of the answer."""
        self.asked["LIST" if method == "GET" and not key else method] += 1
        if method == "PUT":
            self.objects[key] = body
            return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""
        if not key:
            return 200, {"Content-Type": "application/xml"}, self._list(query)
        if key not in self.objects:
            return 404, {}, b""
        data = self.objects[key]
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last-Modified": formatdate(0, usegmt=True)}
        return 200, {**headers, "Content-Length": len(data)}, data

    def _list(self, query: Mapping[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        keys = sorted((key for key in self.objects if key.startswith(prefix)), key=self.order)
        if "continuation-token" in query:
            keys = keys[int(query["continuation-token"][0]) :]
        elif "start-after" in query:
            after = self.order(query["start-after"][0])
            keys = [key for key in keys if self.order(key) > after]
        rest = sorted((key for key in self.objects if key.startswith(prefix)), key=self.order)
        more = ""
        if len(keys) > self.page:
            more = f"<NextContinuationToken>{rest.index(keys[self.page])}</NextContinuationToken>"
        listed = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size><ETag>&quot;e&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys[: self.page]
        )
        return (
            f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{listed}{more}</ListBucketResult>"
        ).encode()
