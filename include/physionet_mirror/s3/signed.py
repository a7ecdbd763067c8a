"""The two S3 requests that are made for every image, HEAD and PUT, past boto3 at a quarter of its CPU time.

The first one goes through boto3. It shows where the bucket's keys are and how they are signed for; from then on botocore
signs, and the request is written to a socket that each thread keeps. Whatever is not a plain answer is asked again with
boto3, which knows about retries, redirects and clocks.
"""

from __future__ import annotations

import os
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
from urllib3.util.ssl_ import create_urllib3_context

from physionet_mirror.s3.replies import code_of, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/]+)/s3/")
_IN_VAIN = 10  # times in a row that boto3 gets what was not to be had directly; then boto3 is asked alone
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
    """

    def __init__(
        self, session: boto3.Session, client: S3Client, bucket: str, *, verify: bool | str | None = None
    ) -> None:
        self._session = session
        self._client = client
        self._bucket = bucket
        self._verify = verify
        self._wire: _Wire | None = None
        self._in_vain = 0
        self._asked = threading.local()  # of this thread: .sent, address and signature of what boto3 has just sent;
        #                                  .in_vain, the count when it began to ask
        for operation in ("HeadObject", "PutObject"):
            client.meta.events.register(f"before-send.s3.{operation}", self._remember)

    def head(self, key: str, **options: str) -> Mapping[str, str] | None:
        """Headers of an object by their names in lower case, checksum included, or None where there is no such object.

        Args:
            key: The object's key.
            options: ExpectedBucketOwner, as boto3's ``head_object`` takes it.
        """
        asked: dict[str, Any] = {**options, "ChecksumMode": "ENABLED"}
        status, headers = self._ask("HEAD", key, asked)
        if status in {200, 404}:
            self._in_vain = 0
            return headers if status == 200 else None
        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=key, **asked)
        except ClientError as error:
            if status_of(error) == "404":
                return None
            raise self._explained(error, key, options) from None
        self._learn(key, status)
        return answer["ResponseMetadata"]["HTTPHeaders"]

    def _explained(self, error: ClientError, key: str, options: Mapping[str, str]) -> ClientError:
        """A refused HEAD has no body, so it does not say why: a GET of one byte does."""
        if not code_of(error).isdecimal() or not status_of(error).startswith("4"):
            return error
        try:
            asked: dict[str, Any] = dict(options)
            self._client.get_object(Bucket=self._bucket, Key=key, Range="bytes=0-0", **asked)["Body"].close()
        except ClientError as explained:
            if status_of(explained) == status_of(error):
                return explained
        return error

    def put(self, key: str, data: bytes, sha256: str, **options: str) -> str:
        """Store an object; returns its ETag.

        Args:
            key: The object's key.
            data: Its bytes.
            sha256: Their SHA-256 (hex), which S3 compares with the bytes that arrive and keeps.
            options: ContentType, StorageClass, ServerSideEncryption, SSEKMSKeyId, ExpectedBucketOwner, as boto3's
                ``put_object`` takes them.
        """
        checksum = b64encode(bytes.fromhex(sha256)).decode()
        asked: dict[str, Any] = {**options, "ChecksumSHA256": checksum}
        status, headers = self._ask("PUT", key, asked, data, sha256)
        if status == 200 and "etag" in headers:
            self._in_vain = 0
            return headers["etag"]
        answer = self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **asked)
        self._learn(key, status)
        return answer["ETag"]

    def _ask(
        self, method: str, key: str, options: Mapping[str, str], data: bytes = b"", sha256: str = EMPTY_SHA256_HASH
    ) -> tuple[int, Mapping[str, str]]:
        """HTTP status and headers; the status is 0 where there was no plain answer."""
        self._asked.in_vain = self._in_vain
        wire = self._wire
        if wire is None or self._in_vain >= _IN_VAIN:
            return 0, {}
        return wire.ask(method, key, {_HEADERS[name]: value for name, value in options.items()}, data, sha256)

    def _remember(self, request: AWSPreparedRequest, **_: object) -> None:
        self._asked.sent = request.url, request.headers.get("Authorization", b"")

    def _learn(self, key: str, status: int) -> None:
        """Boto3 got an answer: go its way from now on, unless that takes more than a signature (a proxy, for instance)."""
        url, signature = getattr(self._asked, "sent", ("", b""))
        self._asked.sent = "", b""
        if self._wire is not None:
            if status < 500:  # requests that were under way together, as in a blip of the network, count as one
                self._in_vain = max(self._in_vain, self._asked.in_vain + 1)
            return
        config: Any = self._client.meta.config  # its attributes are made at run time
        signed = _SCOPE.match(signature.decode(errors="replace") if isinstance(signature, bytes) else signature)
        path = _quoted(key)
        detour = config.client_cert or config.proxies or getproxies().keys() & {urlsplit(url).scheme, "all"}
        if signed and not detour and url.endswith(path):
            timeouts = config.connect_timeout, config.read_timeout
            self._wire = _Wire(
                self._session, url.removesuffix(path), signed[1], trusted(self._session, self._verify)[0], timeouts
            )


def trusted(session: boto3.Session, verify: bool | str | None) -> tuple[bool | str, str]:
    """Whom boto3 trusts, and the setting that says so.

    Returns:
        True = whom botocore's own bundle names, False = anybody, else the path of a bundle.
    """
    if verify is not None:
        return verify, "`verify` in the AWS connection's extra"
    botocore: Any = session._session  # boto3 has no other way to its settings
    if bundle := botocore.get_config_variable("ca_bundle"):
        return bundle, "AWS_CA_BUNDLE" if os.environ.get("AWS_CA_BUNDLE") else "`ca_bundle` in ~/.aws/config"
    return os.environ.get("REQUESTS_CA_BUNDLE") or True, "REQUESTS_CA_BUNDLE"


class _Signer(S3SigV4Auth):
    """Botocore's signature, for a body whose SHA-256 is known."""

    def __init__(self, credentials: ReadOnlyCredentials, region: str, sha256: str) -> None:
        super().__init__(credentials, "s3", region)
        self._sha256 = sha256

    def payload(self, _: AWSRequest) -> str:
        return self._sha256


class _Wire:
    """Signed requests to one bucket, whose keys begin at ``url``, over a connection for each thread.

    ``timeouts`` are seconds for a connect, and for a send or a read.
    """

    def __init__(
        self, session: boto3.Session, url: str, region: str, trusted: Any, timeouts: tuple[float, float]
    ) -> None:
        self._session, self._url, self._region = session, url, region
        self._connect_timeout, self._read_timeout = timeouts
        at = urlsplit(url)
        usual = 443 if at.scheme == "https" else 80
        self._address = at.hostname or "", at.port or usual
        self._host = at.netloc.rpartition("@")[2].removesuffix(f":{usual}")
        self._path = at.path
        self._tls = None
        if at.scheme == "https":
            self._tls = create_urllib3_context()  # as boto3 does
            if trusted is False:
                self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
            else:
                self._tls.load_verify_locations(get_cert_path(trusted))
        self._kept = threading.local()  # .connection, while no answer is owed on it

    def ask(
        self, method: str, key: str, headers: Mapping[str, str], data: bytes, sha256: str
    ) -> tuple[int, Mapping[str, str]]:
        """HTTP status and headers; the status is 0 where there was no answer."""
        credentials = self._session.get_credentials()
        if credentials is None:
            return 0, {}
        path = _quoted(key)
        request = AWSRequest(method, self._url + path, headers={"Host": self._host, **headers})
        _Signer(credentials.get_frozen_credentials(), self._region, sha256).add_auth(request)
        lines = [f"{method} {self._path}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        if method == "PUT":
            lines.append(f"Content-Length: {len(data)}")
        if any("\r" in line or "\n" in line for line in lines):
            return 0, {}
        try:
            connection = self._take()
        except OSError:
            return 0, {}
        reusable = False
        try:
            status, (first, *fields), rest = _exchange(connection, "\r\n".join([*lines, "\r\n"]).encode(), data)
            answer = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            bare = not rest and (method == "HEAD" or answer.get("content-length") == "0")
            reusable = bare and first.startswith("HTTP/1.1") and answer.get("connection", "").lower() != "close"
            return status, answer
        except (OSError, ValueError, IndexError):
            return 0, {}
        finally:  # also when something interrupts: the next request must not read this one's answer
            if reusable:
                self._kept.connection = connection
            else:
                with suppress(OSError):
                    connection.close()

    def _take(self) -> socket.socket:
        """This thread's connection, out of its place; a new one where there is none that works."""
        kept: socket.socket | None = getattr(self._kept, "connection", None)
        self._kept.connection = None
        if kept is not None:
            if not wait_for_read(kept, timeout=0):
                return kept
            kept.close()  # it was closed at the other end while it lay idle
        made = socket.create_connection(self._address, timeout=self._connect_timeout)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            made = self._tls.wrap_socket(made, server_hostname=self._address[0])
        made.settimeout(self._read_timeout)
        return made


def _exchange(connection: socket.socket, head: bytes, data: bytes) -> tuple[int, list[str], bytes]:
    """Send a request; its answer's status, the lines of the answer's head, and what came behind them so far.

    Raises:
        OSError, ValueError, IndexError: There was no answer, or none of HTTP/1.
    """
    connection.sendall(head)
    if data:
        connection.sendall(data)
    answer = b""
    while True:
        while (end := answer.find(b"\r\n\r\n")) < 0:
            received = connection.recv(16384)
            if not received or len(answer) > _LONGEST:
                raise ConnectionError
            answer += received
        lines, answer = answer[:end].decode("latin-1").split("\r\n"), answer[end + 4 :]
        if not lines[0].startswith("HTTP/1."):
            raise ValueError
        status = int(lines[0].split(" ", 2)[1])
        if not 100 <= status < 200:  # that is a word beforehand; the answer follows
            return status, lines, answer


def _quoted(key: str) -> str:
    return quote(key, safe="/~")  # as botocore does
