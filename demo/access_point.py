"""AWS as seen by a user with PhysioNet's cloud access: its S3 access point, STS, and the user's own buckets.

    with AccessPoint(datasets, upstream=s3, identities={"AKIAREADER": Identity("reader", "secret")}) as aws:
        aws.endpoint  # for S3 and STS

The access point answers as PhysioNet's does (source: PhysioNet's published code and threads, 2024-2026):

- it gives GetObject and ListObjectsV2 below ``<slug>/<version>/`` only, and 403, not 404, elsewhere and for a key that is
  not there;
- it knows verified IAM users, never a role or an account's root user;
- it can be the source of CopyObject within its own Region only.

Every other bucket is the user's own: its requests are checked, signed anew and passed on to a real S3 server. Signatures are
verified, as AWS does, so that no wrong key or secret goes unnoticed. CopyObject keeps to If-None-Match and DeleteObject to
If-Match, which the servers behind do not know (source: AWS, conditional writes and conditional deletes, 2025-10).
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import http.client
import json
import os
import signal
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

ACCOUNT = "111122223333"
"""The researcher's account, as AWS' documentation writes one."""
REGION = "us-east-1"
"""Where PhysioNet's access points are."""
SECRETS = "ACCESS_POINT_SECRETS"
"""Environment variable with JSON: ``upstream`` (access key, secret), ``identities`` (access key to [kind/name, secret]), and
``read_only`` (access keys that may not write the buckets behind)."""


@dataclass(frozen=True)
class Identity:
    """Who asks, by his keys.

    Attributes:
        name: Of the user or role; the root user has none.
        secret: The secret access key.
        kind: ``user``, ``role`` or ``root``.
        granted: Whether PhysioNet has verified this user and given access.
        expired: Whether its session is over.
        account: Its AWS account.
    """

    name: str
    secret: str = field(repr=False)
    kind: str = "user"
    granted: bool = True
    expired: bool = False
    account: str = ACCOUNT

    @property
    def arn(self) -> str:
        """As ``aws sts get-caller-identity`` prints it."""
        return {
            "user": f"arn:aws:iam::{self.account}:user/{self.name}",
            "role": f"arn:aws:sts::{self.account}:assumed-role/{self.name}/session",
            "root": f"arn:aws:iam::{self.account}:root",
        }[self.kind]

    @property
    def may_read(self) -> bool:
        """Whether PhysioNet's policy lets it in: a verified user, never a role or root."""
        return self.kind == "user" and self.granted


class Refused(Exception):
    """An error as S3 words it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


class AccessPoint:
    """Listens on 127.0.0.1 from ``start`` to ``stop``, or as a context manager; may be changed from any thread.

    Args:
        datasets: Folder that holds ``<slug>/<version>/…``.
        upstream: The S3 server that holds all other buckets: endpoint, access key, secret key.
        identities: By access key.
        port: Default: a free one.

    Attributes:
        points: Name of each access point, one a dataset, by PhysioNet's naming; and the dataset behind it.
        regions: Region of a bucket, where it is not the access point's own.
        denied: Paths below ``<slug>/<version>/`` that are refused.
        damaged: Paths whose bytes are wrong.
        read_only: Access keys that may not write the buckets behind.
        may_not_delete: Access keys that may write the buckets behind, but not delete.
        keeps_conditions: False = copies and deletes ignore If-None-Match and If-Match, as many stores do.
        keeps_checksums: False = the buckets behind keep no SHA-256, and neither copies nor HEADs tell one.
        slow_down_above: Requests a second to the access point above which it answers 503 SlowDown; 0 = never.
        delay: Seconds before each answer of the access point.
        counts: Answers by operation and status, such as ``("COPY", 200)``.
        most_at_once: The most requests that were under way at the access point.
    """

    def __init__(
        self,
        datasets: Path,
        *,
        upstream: tuple[str, str, str],
        identities: Mapping[str, Identity],
        port: int = 0,
    ) -> None:
        self.datasets, self.upstream, self.identities = datasets, upstream, dict(identities)
        self.points = _points_of(datasets)
        self.regions: dict[str, str] = {}
        self.denied: set[str] = set()
        self.damaged: set[str] = set()
        self.read_only: set[str] = set()
        self.may_not_delete: set[str] = set()
        self.keeps_conditions = True
        self.keeps_checksums = True
        self.slow_down_above = 0.0
        self.delay = 0.0
        self.counts: Counter[tuple[str, int]] = Counter()
        self.most_at_once = 0
        self._at_once = 0
        self._second, self._in_second = 0, 0
        self._etags: dict[tuple[Any, ...], str] = {}
        self._lock = threading.Lock()
        self._writing = [threading.Lock() for _ in range(64)]
        self._server = _Server(("127.0.0.1", port), self)

    @property
    def endpoint(self) -> str:
        """Of S3 and of STS."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> Self:
        """Serve."""
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="access-point", daemon=True).start()
        return self

    def stop(self) -> None:
        """Close."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def enter(self) -> None:
        """A request for the access point begins; refuses it where there are too many a second."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            second = int(time.monotonic())
            if second != self._second:
                self._second, self._in_second = second, 0
            self._in_second += 1
            slow = 0 < self.slow_down_above < self._in_second
        if self.delay:
            time.sleep(self.delay)
        if slow:
            raise Refused(503, "SlowDown", "Please reduce your request rate.")

    def leave(self) -> None:
        """It has ended."""
        with self._lock:
            self._at_once -= 1

    def writing(self, target: str) -> threading.Lock:
        """Held while the object of the user's own bucket at this path is written or deleted."""
        return self._writing[hash(target.partition("?")[0]) % len(self._writing)]

    def count(self, operation: str, status: int) -> None:
        """Remember one answer."""
        with self._lock:
            self.counts[operation, status] += 1

    def file(self, point: str, key: str, who: Identity, action: str) -> Path:
        """The file behind a key. Raises Refused as PhysioNet's policy does."""
        below = f"{self.points[point]}/"
        path = self.datasets / key
        inside = key.startswith(below) and ".." not in key.split("/")
        if not who.may_read or not inside or key.removeprefix(below) in self.denied or not path.is_file():
            raise _denied(who, action, f"arn:aws:s3:{REGION}:724665945834:accesspoint/{point}/object/{key}")
        return path

    def bytes_of(self, path: Path) -> bytes:
        """A file's content, wrong where that is asked for."""
        data = path.read_bytes()
        parts = path.relative_to(self.datasets).parts
        if "/".join(parts[2:]) in self.damaged and data:
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    def etag_of(self, path: Path) -> str:
        """As S3 gives it, of LIST, GET and copies alike."""
        stat = path.stat()
        seen = (path, stat.st_size, stat.st_mtime_ns, frozenset(self.damaged))
        if seen not in self._etags:
            self._etags[seen] = f'"{hashlib.md5(self.bytes_of(path), usedforsecurity=False).hexdigest()}"'
        return self._etags[seen]

    def list(self, point: str, who: Identity, under: str) -> Iterator[tuple[str, Path]]:
        """Keys that begin with ``under``, in byte order, each with its file."""
        below = f"{self.points[point]}/"
        if not who.may_read or not under.startswith(below):
            raise _denied(who, "s3:ListBucket", f"arn:aws:s3:{REGION}:724665945834:accesspoint/{point}")
        root = self.datasets / self.points[point]
        found = ((file.relative_to(self.datasets).as_posix(), file) for file in root.rglob("*") if file.is_file())
        yield from sorted((entry for entry in found if entry[0].startswith(under)), key=lambda entry: entry[0].encode())


def _points_of(datasets: Path) -> dict[str, str]:
    names = [f"{folder.parent.name}/{folder.name}" for folder in datasets.glob("*/*") if folder.is_dir()]
    return {f"{name.replace('/', '-v').replace('.', '-')}-01": name for name in names}


def _denied(who: Identity, action: str, resource: str) -> Refused:
    return Refused(
        403,
        "AccessDenied",
        f"User: {who.arn} is not authorized to perform: {action} on resource: {resource} because no resource-based policy "
        f"allows the {action} action",
    )


# -- HTTP ----------------------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], aws: AccessPoint) -> None:
        self.aws = aws
        super().__init__(address, _Handler)

    def handle_error(self, *_: object) -> None:
        """Quiet: clients may go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    _onward: http.client.HTTPConnection | None = None

    def _handle(self) -> None:
        aws = self.server.aws
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        point = _point_of(bucket, aws.points)
        origin = unquote(self.headers.get("x-amz-copy-source", "")).removeprefix("/")
        self._operation, self._at_point = self.command, False
        try:
            who = self._who(body)
            if who.expired:
                raise Refused(400, "ExpiredToken", "The provided token has expired.")
            if self.command == "POST" and parts.path == "/":
                self._answer(200, _identity(who, body), "text/xml")
            elif point is not None:
                self._at_point = True
                aws.enter()
                self._read(point, key, who, dict(parse_qsl(parts.query, keep_blank_values=True)))
            elif self.command not in ("GET", "HEAD") and who in map(aws.identities.get, aws.read_only):
                raise _denied(who, "s3:PutObject", f"arn:aws:s3:::{bucket}/{key}")
            elif self._deletes(parts.query) and who in map(aws.identities.get, aws.may_not_delete):
                raise _denied(who, "s3:DeleteObject", f"arn:aws:s3:::{bucket}/{key}")
            elif self.command == "PUT" and (source := _source(origin, aws.points)):
                self._operation, self._at_point = "COPY", True
                aws.enter()
                self._copy(source, bucket, who)
            else:
                self._operation = f"own {self.command}"
                self._pass_on(body)
        except Refused as refused:
            self._refuse(refused)
        finally:
            if self._at_point:
                aws.leave()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _deletes(self, query: str) -> bool:
        return self.command == "DELETE" or (self.command == "POST" and query.partition("=")[0] == "delete")

    def _who(self, body: bytes) -> Identity:
        """Who has signed this (source: AWS Signature Version 4)."""
        said = self.headers.get("Authorization", "")
        fields = dict(part.strip().partition("=")[::2] for part in said.partition(" ")[2].split(","))
        access_key, _, scope = fields.get("Credential", "").partition("/")
        who = self.server.aws.identities.get(access_key)
        if not said:
            raise Refused(403, "AccessDenied", "Anonymous access is forbidden for this operation.")
        if who is None:
            raise Refused(
                403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
            )
        day, region, service, *_ = [*scope.split("/"), "", "", ""]
        parts = urlsplit(self.path)
        signed = fields.get("SignedHeaders", "")
        payload = self.headers.get("x-amz-content-sha256") or hashlib.sha256(body).hexdigest()
        names = signed.split(";")
        lines = [f"{name}:{' '.join((self.headers.get(name) or '').split())}\n" for name in names]
        query = "&".join(sorted(pair if "=" in pair else f"{pair}=" for pair in parts.query.split("&") if pair))
        canonical = "\n".join([self.command, parts.path, query, "".join(lines), signed, payload])
        text = "\n".join(
            [
                "AWS4-HMAC-SHA256",
                self.headers.get("x-amz-date", ""),
                scope,
                hashlib.sha256(canonical.encode()).hexdigest(),
            ]
        )
        key = f"AWS4{who.secret}".encode()
        for part in (day, region, service, "aws4_request", text):
            key = hmac.digest(key, part.encode(), "sha256")
        if not hmac.compare_digest(key.hex(), fields.get("Signature", "")):
            raise Refused(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided.",
            )
        return who

    def _read(self, point: str, key: str, who: Identity, query: Mapping[str, str]) -> None:
        aws = self.server.aws
        if self.command == "GET" and not key and query.get("list-type") == "2":
            self._operation = "LIST"
            self._answer(200, _listing(point, query, list(aws.list(point, who, query.get("prefix", ""))), aws.etag_of))
        elif self.command in ("GET", "HEAD") and key:
            path = aws.file(point, key, who, "s3:GetObject")
            data = aws.bytes_of(path)
            headers = {
                "ETag": aws.etag_of(path),
                "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
                "Accept-Ranges": "bytes",
            }
            status, part = 200, data
            if (wanted := self.headers.get("Range", "")).startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                begin, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
                status, part = 206, data[begin : end + 1]
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
            self._answer(status, part, "application/octet-stream", headers)
        else:
            raise _denied(who, f"s3:{self.command.title()}Object", point)

    def _copy(self, source: tuple[str, str], bucket: str, who: Identity) -> None:
        """CopyObject from the access point into the user's own bucket."""
        aws = self.server.aws
        path = aws.file(*source, who, "s3:GetObject")
        data = aws.bytes_of(path)
        if (region := aws.regions.get(bucket, REGION)) != REGION:
            raise Refused(
                400,
                "InvalidRequest",
                f"Cross-Region copy is not supported for access points: source in {REGION}, destination in {region}.",
            )
        wanted = self.headers.get("x-amz-copy-source-if-match")
        if wanted and wanted.strip('"') != aws.etag_of(path).strip('"'):
            raise _condition_failed()
        digest = hashlib.sha256(data).digest()
        kept = ("content-type", "x-amz-storage-class", "x-amz-expected-bucket-owner")
        headers = {name: value for name in kept if (value := self.headers.get(name))}
        headers |= {name: v for name, v in self.headers.items() if name.lower().startswith("x-amz-server-side-")}
        checksum = ""
        if aws.keeps_checksums:
            headers["x-amz-checksum-sha256"] = told = b64encode(digest).decode()
            checksum = f"<ChecksumSHA256>{told}</ChecksumSHA256><ChecksumType>FULL_OBJECT</ChecksumType>"
        with aws.writing(self.path):
            if self.headers.get("If-None-Match") and aws.keeps_conditions and self._standing():
                raise _condition_failed()
            status, answered, content = self._onto("PUT", self.path, headers, data, digest.hex())
        if status != 200:
            self._answer(status, content, answered.get("content-type", "application/xml"))
            return
        etag = answered.get("etag", aws.etag_of(path))
        version = {"x-amz-version-id": answered["x-amz-version-id"]} if "x-amz-version-id" in answered else {}
        found = f"<CopyObjectResult><LastModified>{_now()}</LastModified><ETag>{escape(etag)}</ETag>{checksum}</CopyObjectResult>"
        self._answer(200, found.encode(), "application/xml", version)

    def _pass_on(self, body: bytes) -> None:
        """A request for one of the user's own buckets: signed anew for the S3 server that holds it."""
        dropped = {
            "authorization",
            "host",
            "connection",
            "x-amz-date",
            "x-amz-security-token",
            "expect",
            "content-length",
        }
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        payload = self.headers.get("x-amz-content-sha256") or hashlib.sha256(body).hexdigest()
        if self.command in ("GET", "HEAD"):
            status, answered, content = self._onto(self.command, self.path, headers, body, payload)
        else:
            with self.server.aws.writing(self.path):
                self._keep_to_if_match(headers)
                status, answered, content = self._onto(self.command, self.path, headers, body, payload)
        if not self.server.aws.keeps_checksums:
            answered = {name: value for name, value in answered.items() if not name.startswith("x-amz-checksum-")}
        self._answer(status, content, None, answered)

    def _keep_to_if_match(self, headers: dict[str, str]) -> None:
        """Take the condition off a DELETE, if it holds."""
        if self.command != "DELETE" or not (wanted := self.headers.get("If-Match")):
            return
        for name in [name for name in headers if name.lower() == "if-match"]:
            del headers[name]
        if self.server.aws.keeps_conditions and self._standing() != wanted.strip('"'):
            raise _condition_failed()

    def _standing(self) -> str:
        """ETag of the object that stands under the key; empty = none does."""
        status, found, _ = self._onto("HEAD", self.path, {}, b"", hashlib.sha256(b"").hexdigest())
        return found.get("etag", "?").strip('"') if status == 200 else ""

    def _onto(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, payload: str
    ) -> tuple[int, dict[str, str], bytes]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        endpoint, access_key, secret = self.server.aws.upstream
        host = urlsplit(endpoint).netloc
        kept = {name: value for name, value in headers.items() if name.lower() != "x-amz-content-sha256"}
        request = AWSRequest(method, endpoint + target, headers={"Host": host, **kept})
        signer: Any = S3SigV4Auth(Credentials(access_key, secret), "s3", REGION)
        signer.payload = lambda _: payload
        signer.add_auth(request)
        for again in (True, False):
            if self._onward is None:
                self._onward = http.client.HTTPConnection(host, timeout=60)
            try:
                self._onward.request(method, target, body or None, dict(request.headers.items()))
                answer = self._onward.getresponse()
                content = answer.read()
                break
            except (http.client.HTTPException, OSError):
                self._onward.close()
                self._onward = None
                if not again:
                    raise Refused(503, "ServiceUnavailable", "The S3 server behind does not answer.") from None
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    def finish(self) -> None:
        super().finish()
        if self._onward is not None:
            self._onward.close()

    def _answer(
        self, status: int, body: bytes, kind: str | None = "application/xml", headers: Mapping[str, str] | None = None
    ) -> None:
        self.server.aws.count(self._operation, status)
        self.send_response_only(status)
        length = str(len(body))
        for name, value in (headers or {}).items():
            if name.lower() == "content-length":
                length = value if self.command == "HEAD" else length
            elif name.lower() not in ("connection", "transfer-encoding", "keep-alive"):
                self.send_header(name, value)
        if kind:
            self.send_header("Content-Type", kind)
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, refused: Refused) -> None:
        text = (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{refused.code}</Code><Message>{escape(refused.message)}'
            f"</Message><RequestId>{os.urandom(8).hex().upper()}</RequestId></Error>"
        )
        if self._operation == "POST":  # STS words it its own way
            text = f"<ErrorResponse><Error><Type>Sender</Type><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message></Error></ErrorResponse>"
        self._answer(refused.status, text.encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _condition_failed() -> Refused:
    return Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")


def _point_of(bucket: str, points: Mapping[str, str]) -> str | None:
    """An access point by its name or its ARN."""
    name = bucket.rpartition(":accesspoint/")[2] or bucket
    return name if name in points else None


def _source(origin: str, points: Mapping[str, str]) -> tuple[str, str] | None:
    """Access point and key of ``x-amz-copy-source``, given as ``<name>/<key>`` or ``<ARN>/object/<key>``."""
    if origin.startswith("arn:"):
        point, _, key = origin.partition(":accesspoint/")[2].partition("/object/")
    else:
        point, _, key = origin.partition("/")
    return (point, key.partition("?versionId=")[0]) if point in points else None


def _now(at: float | None = None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))


def _identity(who: Identity, body: bytes) -> bytes:
    if dict(parse_qsl(body.decode(errors="replace"))).get("Action") != "GetCallerIdentity":
        raise Refused(400, "InvalidAction", "Only GetCallerIdentity is answered here.")
    return (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
        f"<Arn>{who.arn}</Arn><UserId>AIDAEXAMPLE</UserId><Account>{who.account}</Account></GetCallerIdentityResult>"
        "<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
    ).encode()


def _listing(
    point: str, query: Mapping[str, str], found: Sequence[tuple[str, Path]], etag_of: Callable[[Path], str]
) -> bytes:
    """ListObjectsV2's answer."""
    after = query.get("start-after", "")
    if token := query.get("continuation-token"):
        after = b64decode(token.encode()).decode()
    most = min(int(query.get("max-keys", 1000)), 1000)
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    url = query.get("encoding-type") == "url"

    def text(value: str) -> str:
        return quote(value, safe="/") if url else escape(value)

    contents: list[str] = []
    folders: list[str] = []
    last, more = "", False
    for key, file in found:
        folder = ""
        if delimiter and delimiter in key[len(prefix) :]:
            folder = prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter
        if (folder or key).encode() <= after.encode() or (folder and folder in folders):
            continue
        if len(contents) + len(folders) == most:
            more = True
            break
        last = folder or key
        if folder:
            folders.append(folder)
            continue
        stat = file.stat()
        contents.append(
            f"<Contents><Key>{text(key)}</Key><LastModified>{_now(stat.st_mtime)}</LastModified><ETag>"
            f"{escape(etag_of(file))}</ETag><Size>{stat.st_size}</Size><StorageClass>INTELLIGENT_TIERING</StorageClass></Contents>"
        )
    token = f"<NextContinuationToken>{b64encode(last.encode()).decode()}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{point}</Name><Prefix>{text(prefix)}</Prefix><KeyCount>{len(contents) + len(folders)}</KeyCount>"
        f"<MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        + ("<EncodingType>url</EncodingType>" if url else "")
        + "".join(contents)
        + "".join(f"<CommonPrefixes><Prefix>{text(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        + "</ListBucketResult>"
    ).encode()


# -- as a process --------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Prints one line of JSON with ``endpoint`` once it listens."""
    parser = argparse.ArgumentParser(prog="python -m demo.access_point", description=__doc__)
    parser.add_argument("--datasets", type=Path, required=True, help="folder that holds <slug>/<version>/…")
    parser.add_argument("--upstream", required=True, help="endpoint of the S3 server that holds all other buckets")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args(argv)
    given = json.loads(os.environ.pop(SECRETS, "{}"))
    if "upstream" not in given:
        sys.exit(f"access_point: set the environment variable {SECRETS}; nothing was started")
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    identities = {}
    for access_key, (who, secret) in given["identities"].items():
        kind, _, name = who.partition("/")
        identities[access_key] = Identity(name, secret, kind)
    upstream = (options.upstream, *given["upstream"])
    with AccessPoint(options.datasets, upstream=upstream, identities=identities, port=options.port) as aws:
        aws.read_only.update(given.get("read_only", ()))
        print(json.dumps({"endpoint": aws.endpoint}), flush=True)
        signal.sigwait(ending)
    return 0


if __name__ == "__main__":
    sys.exit(main())
