"""HEAD requests at a quarter of boto3's CPU time, which is what decides how fast a verification is.

The first one goes through boto3. It shows where the bucket's keys are and how they are signed for; from then on botocore
signs and the standard library's HTTP client sends, on a connection that each thread keeps. Whatever is not a plain
answer is asked again with boto3, which knows about retries, redirects and clocks.
"""

from __future__ import annotations

import http.client
import re
import ssl
import threading
from collections.abc import Mapping
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
        self._host, self._path = at.netloc, at.path
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
        connection = self._connection()
        try:
            connection.request("HEAD", self._path + path, headers=dict(request.headers.items()))
            answer = connection.getresponse()
            answer.read()  # there is no body, but http.client wants to be asked
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it again
            return 0, {}
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._kept, "connection", None)
        if found is None:
            if self._tls:
                found = http.client.HTTPSConnection(self._host, timeout=_TIMEOUT, context=self._tls)
            else:
                found = http.client.HTTPConnection(self._host, timeout=_TIMEOUT)
            self._kept.connection = found
        return found


def _quoted(key: str) -> str:
    return quote(key, safe="/~")  # as botocore does
