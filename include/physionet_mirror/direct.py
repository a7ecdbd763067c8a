"""The two S3 requests that are made for every image, HEAD and PUT, past boto3 at a quarter of its CPU time.

The first one goes through boto3. It shows where the bucket's keys are and how they are signed for; from then on botocore
signs, and the request is written to a socket that each thread keeps. Whatever is not a plain answer is asked again with
boto3, which knows about retries, redirects and clocks.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

import boto3
from botocore.auth import EMPTY_SHA256_HASH, S3SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path
from urllib3.util import wait_for_read

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/]+)/s3/")
_TIMEOUT = 60.0  # seconds, as boto3's
_LONGEST = 1 << 16  # bytes of an answer's head
_HEADERS = {
    "ContentType": "content-type",
    "StorageClass": "x-amz-storage-class",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ExpectedBucketOwner": "x-amz-expected-bucket-owner",
    "ChecksumMode": "x-amz-checksum-mode",
    "ChecksumSHA256": "x-amz-checksum-sha256",
}
"""The header of each of boto3's parameters that are used here."""


class DirectRequests:
    """HEAD and PUT of the objects of one bucket; safe to share between threads.

    Both raise ClientError and BotoCoreError as boto3 does.

    Args:
        session: Owner of the credentials, which may change from request to request.
        client: Made from it.
        bucket: The bucket's name.
        verify: As boto3's: False for no TLS verification, or the path of a CA bundle.
        expected_owner: AWS account id that must own the bucket.
    """

    def __init__(
        self,
        session: boto3.Session,
        client: S3Client,
        bucket: str,
        *,
        verify: bool | str | None = None,
        expected_owner: str | None = None,
    ) -> None:
        self._session = session
        self._client = client
        self._bucket = bucket
        self._verify = verify
        self._owner = {"ExpectedBucketOwner": expected_owner} if expected_owner else {}
        self._wire: _Wire | None = None
        self._asked = threading.local()  # .sent: the request that boto3 has just sent for this thread
        for operation in ("HeadObject", "PutObject"):
            client.meta.events.register(f"before-send.s3.{operation}", self._remember)

    def head(self, key: str) -> Mapping[str, str] | None:
        """Headers of an object by their names in lower case, checksum included, or None where there is no such object."""
        options: dict[str, Any] = {"ChecksumMode": "ENABLED", **self._owner}
        status, headers = self._ask("HEAD", key, options)
        if status in {200, 404}:
            return headers if status == 200 else None
        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=key, **options)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return None
            raise
        self._learn(key)
        return answer["ResponseMetadata"]["HTTPHeaders"]

    def put(self, key: str, data: bytes, sha256: str, **options: str) -> str:
        """Store an object; returns its ETag.

        Args:
            key: The object's key.
            data: Its bytes.
            sha256: Their SHA-256 (hex), which S3 compares with the bytes that arrive and keeps.
            options: ContentType, StorageClass, ServerSideEncryption, SSEKMSKeyId, as boto3's ``put_object`` takes them.
        """
        checksum = b64encode(bytes.fromhex(sha256)).decode()
        asked: dict[str, Any] = {**options, "ChecksumSHA256": checksum, **self._owner}
        status, headers = self._ask("PUT", key, asked, data, sha256)
        if status == 200 and "etag" in headers:
            return headers["etag"]
        answer = self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **asked)
        self._learn(key)
        return answer["ETag"]

    def _ask(
        self, method: str, key: str, options: Mapping[str, str], data: bytes = b"", sha256: str = EMPTY_SHA256_HASH
    ) -> tuple[int, Mapping[str, str]]:
        """HTTP status and headers; the status is 0 where there was no plain answer."""
        wire = self._wire
        if wire is None:
            return 0, {}
        headers = {_HEADERS[name]: value for name, value in options.items()}
        status, answer = wire.ask(method, key, headers, data, sha256)
        if 300 <= status < 500 and status != 404:  # not a matter of trying again
            self._wire = None
        return status, answer

    def _remember(self, request: AWSPreparedRequest, **_: object) -> None:
        self._asked.sent = request

    def _learn(self, key: str) -> None:
        """Go the way that boto3 went from now on, unless that takes more than a signature (a proxy, for instance)."""
        sent = self._asked.sent
        config: Any = self._client.meta.config  # its attributes are made at run time
        signed = _SCOPE.match(str(sent.headers.get("Authorization", b""), "ascii"))
        path = _quoted(key)
        detour = config.client_cert or config.proxies or getproxies().keys() & {urlsplit(sent.url).scheme, "all"}
        if self._wire is None and signed and not detour and sent.url.endswith(path):
            self._wire = _Wire(self._session, sent.url.removesuffix(path), signed[1], self._verify)


class _Signer(S3SigV4Auth):
    """Botocore's signature, for a body whose SHA-256 is known."""

    def __init__(self, credentials: ReadOnlyCredentials, region: str, sha256: str) -> None:
        super().__init__(credentials, "s3", region)
        self._sha256 = sha256

    def payload(self, _: AWSRequest) -> str:
        return self._sha256


class _Wire:
    """Signed requests to one bucket, whose keys begin at ``url``, over a connection for each thread."""

    def __init__(self, session: boto3.Session, url: str, region: str, verify: bool | str | None) -> None:
        self._session, self._url, self._region = session, url, region
        trusted: Any = True if verify is None else verify
        at = urlsplit(url)
        usual = 443 if at.scheme == "https" else 80
        self._address = at.hostname or "", at.port or usual
        self._host = at.netloc.removesuffix(f":{usual}")  # as botocore signs it
        self._path = at.path
        self._tls = None
        if at.scheme == "https":
            self._tls = ssl.create_default_context(cafile=get_cert_path(trusted))
            if verify is False:
                self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self._kept = threading.local()  # .connection

    def ask(
        self, method: str, key: str, headers: Mapping[str, str], data: bytes, sha256: str
    ) -> tuple[int, Mapping[str, str]]:
        """HTTP status and headers; the status is 0 where there was no answer."""
        credentials = self._session.get_credentials()
        if credentials is None:
            return 0, {}
        path = _quoted(key)
        request = AWSRequest(method, self._url + path, headers=headers)
        _Signer(credentials.get_frozen_credentials(), self._region, sha256).add_auth(request)
        lines = [f"{method} {self._path}{path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        if method == "PUT":
            lines.append(f"Content-Length: {len(data)}")
        if any("\r" in line or "\n" in line for line in lines):
            return 0, {}
        try:
            head, rest = self._exchange("\r\n".join([*lines, "\r\n"]).encode(), data)
            first, *fields = head.decode("latin-1").splitlines()
            status = int(first.split(" ", 2)[1])
            answer = {
                name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields if field)
            }
        except (OSError, ValueError, IndexError):
            self._close()
            return 0, {}
        bare = not rest and (method == "HEAD" or answer.get("content-length") == "0")
        keeps = status >= 200 and first.startswith("HTTP/1.1") and answer.get("connection", "").lower() != "close"
        if not (bare and keeps):
            self._close()
        return status, answer

    def _exchange(self, head: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Send a request; the head of its answer, and what came behind it so far."""
        connection = self._connection()
        connection.sendall(head)
        if data:
            connection.sendall(data)
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            received = connection.recv(16384)
            if not received or len(answer) > _LONGEST:
                raise ConnectionError
            answer += received
        return answer[:end], answer[end + 4 :]

    def _connection(self) -> socket.socket:
        found: socket.socket | None = getattr(self._kept, "connection", None)
        if found is not None and wait_for_read(found, timeout=0):  # closed at the other end while it lay idle
            self._close()
            found = None
        if found is None:
            found = socket.create_connection(self._address, timeout=_TIMEOUT)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                found = self._tls.wrap_socket(found, server_hostname=self._address[0])
            self._kept.connection = found
        return found

    def _close(self) -> None:
        """The next request opens it again."""
        found: socket.socket | None = getattr(self._kept, "connection", None)
        self._kept.connection = None
        if found is not None:
            with suppress(OSError):
                found.close()


def _quoted(key: str) -> str:
    return quote(key, safe="/~")  # as botocore does
