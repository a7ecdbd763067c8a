"""HEAD requests at a quarter of boto3's CPU time, which is what decides how fast a verification is.

The first one goes through boto3. It shows where the bucket's keys are and how they are signed for; from then on botocore
signs, and the request is written to a socket that each thread keeps: a HEAD and its answer are a few lines each way.
Whatever is not a plain answer is asked again with boto3, which knows about retries, redirects and clocks.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/]+)/s3/")
_TIMEOUT = 60.0  # seconds, as boto3's
_LONGEST = 1 << 16  # bytes of an answer's head


class Heads:
    """Asks for the headers of the objects of one bucket; safe to share between threads.

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
        self._verify = verify
        self._options: dict[str, Any] = {"Bucket": bucket, "ChecksumMode": "ENABLED"}
        self._headers = {"x-amz-checksum-mode": "ENABLED"}
        if expected_owner:
            self._options["ExpectedBucketOwner"] = expected_owner
            self._headers["x-amz-expected-bucket-owner"] = expected_owner
        self._direct: _Direct | None = None
        self._asked = threading.local()  # .sent: the request that boto3 has just sent for this thread
        client.meta.events.register("before-send.s3.HeadObject", self._remember)

    def ask(self, key: str) -> Mapping[str, str] | None:
        """Headers of an object by their names in lower case, checksum included, or None where there is no such object.

        Raises:
            ClientError, BotoCoreError: As boto3's ``head_object``.
        """
        direct = self._direct
        if direct is not None:
            status, headers = direct.ask(key, self._headers)
            if status in {200, 404}:
                return headers if status == 200 else None
            if 300 <= status < 500:  # not a matter of trying again
                self._direct = None
        try:
            answer = self._client.head_object(Key=key, **self._options)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return None
            raise
        if direct is None:
            self._direct = self._learn(key)
        return answer["ResponseMetadata"]["HTTPHeaders"]

    def _remember(self, request: AWSPreparedRequest, **_: object) -> None:
        self._asked.sent = request

    def _learn(self, key: str) -> _Direct | None:
        """The way that boto3 went, or None where that takes more than a signature (a proxy, for instance)."""
        sent = self._asked.sent
        config: Any = self._client.meta.config  # its attributes are made at run time
        signed = _SCOPE.match(str(sent.headers.get("Authorization", b""), "ascii"))
        path = _quoted(key)
        detour = config.client_cert or config.proxies or getproxies().keys() & {urlsplit(sent.url).scheme, "all"}
        if signed is None or detour or not sent.url.endswith(path):
            return None
        return _Direct(self._session, sent.url.removesuffix(path), signed[1], self._verify)


class _Direct:
    """Signed HEAD requests to one bucket, whose keys begin at ``url``."""

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

    def ask(self, key: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        """HTTP status and headers; the status is 0 where there was no answer."""
        credentials = self._session.get_credentials()
        if credentials is None:
            return 0, {}
        path = _quoted(key)
        request = AWSRequest("HEAD", self._url + path, headers=headers)
        S3SigV4Auth(credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
        lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        try:
            answer = self._exchange(f"HEAD {self._path}{path} HTTP/1.1\r\nHost: {self._host}\r\n{lines}\r\n".encode())
            first, *fields = answer.decode("latin-1").splitlines()
            status = int(first.split(" ", 2)[1])
            found = {
                name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields if field)
            }
        except (OSError, ValueError, IndexError):
            self._close()
            return 0, {}
        if not first.startswith("HTTP/1.1") or found.get("connection", "").lower() == "close":
            self._close()
        return status, found

    def _exchange(self, request: bytes) -> bytes:
        """Send it and return the head of the answer, which has no body."""
        connection = self._connection()
        connection.sendall(request)
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            received = connection.recv(16384)
            if not received or len(answer) > _LONGEST:
                raise ConnectionError
            answer += received
        if end + 4 != len(answer):  # something else follows, which nobody asked for
            raise ConnectionError
        return answer

    def _connection(self) -> socket.socket:
        found: socket.socket | None = getattr(self._kept, "connection", None)
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
