"""The S3 requests that are made once a file, HEAD, GET, PUT and COPY: signed here, sent over kept sockets.

boto3 makes the first one, which shows the bucket's address and the region that it is signed for. From then on `signature`
signs and `wire` sends, at a fraction of boto3's CPU time. An error that S3 explains in its answer is raised as boto3
raises it. Whatever is not a plain answer (a broken connection, a redirect, a wrong clock, an answer without a code) is
asked again through boto3, which also repeats what S3 is too busy for, unless the caller is ``paced``: whoever has a `Pace`
wants to know at once that S3 asks for less.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies
from xml.etree import ElementTree

import boto3
from botocore.auth import EMPTY_SHA256_HASH
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ClientError, ConnectionClosedError, IncompleteReadError, ReadTimeoutError
from botocore.httpsession import get_cert_path
from botocore.parsers import RestXMLParser
from botocore.response import StreamingBody
from urllib3.util.ssl_ import create_urllib3_context

from physionet_mirror.s3.replies import BUSY, CLOCK, REGION, code_of, status_of
from physionet_mirror.s3.signature import Signer
from physionet_mirror.wire import Answer, Origin

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/]+)/s3/")
_IN_VAIN = 10  # consecutive direct failures, each of which boto3 then got, after which only boto3 is used
_FIRST = 2.0  # seconds for which the others wait for boto3's first answer: hundreds at once take seconds of CPU time
_LONGEST = 1 << 16  # bytes of an answer's body that is not an object
_KEEP = 512  # idle connections: a server-side copy is little work, and hundreds are in flight
_BOTO3S = CLOCK | REGION | {"SignatureDoesNotMatch"}
"""Codes that boto3 may have an answer to."""
_HEADERS = {
    "ContentType": "content-type",
    "ContentMD5": "content-md5",
    "StorageClass": "x-amz-storage-class",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ExpectedBucketOwner": "x-amz-expected-bucket-owner",
    "ChecksumMode": "x-amz-checksum-mode",
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "ChecksumAlgorithm": "x-amz-checksum-algorithm",
    "MetadataDirective": "x-amz-metadata-directive",
    "TaggingDirective": "x-amz-tagging-directive",
    "CopySource": "x-amz-copy-source",
    "CopySourceIfMatch": "x-amz-copy-source-if-match",
    "IfMatch": "if-match",
    "IfNoneMatch": "if-none-match",
    "Range": "range",
}
"""The header of each of boto3's parameters that are used here."""


class Body:
    """An object's bytes on their way.

    Raises ReadTimeoutError, ConnectionClosedError and IncompleteReadError as boto3 does, where they do not come whole.

    Attributes:
        length: How many come, or None where the server does not say.
    """

    def __init__(self, source: Answer | StreamingBody, length: int | None, url: str) -> None:
        self._source, self._url = source, url
        self.length = length
        self._received = 0

    def fill(self, view: memoryview) -> int:
        """As many bytes into ``view`` as it holds, or as there are; how many."""
        source: Any = self._source
        at = 0
        try:
            if isinstance(source, Answer):
                at = source.fill(view)
            else:
                while at < len(view) and (received := source.readinto(view[at:])):
                    at += received
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=self._url, error=error) from None
        except OSError as error:
            raise ConnectionClosedError(endpoint_url=self._url, error=error) from None
        self._received += at
        broken = isinstance(source, Answer) and not source.complete
        if at < len(view) and (broken or (self.length or 0) > self._received):
            raise IncompleteReadError(actual_bytes=self._received, expected_bytes=self.length or 0)
        return at


class SignedRequests:
    """HEAD, GET, PUT and COPY of the objects of one bucket; safe to share between threads.

    All raise ClientError and BotoCoreError as boto3 does, and take boto3's parameters as ``options``. With ``paced``, an
    answer that S3 is too busy (503 SlowDown, for instance) is raised at once instead of being repeated.

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
        self._signer: _SignedOrigin | None = None
        self._in_vain = 0
        self._first = threading.Lock()  # whoever gets it makes boto3's first request, the others wait for its answer
        self._begun = threading.Event()  # there was an answer, or it took too long
        self._asked = threading.local()  # of this thread: .sent, address and signature of what boto3 has just sent;
        #                                  .in_vain, the count when it began to ask; .status, what it was answered
        for operation in ("HeadObject", "GetObject", "PutObject", "CopyObject"):
            client.meta.events.register(f"before-send.s3.{operation}", self._remember)

    def head(self, key: str, *, checksum: bool = True, paced: bool = False, **options: str) -> Mapping[str, str] | None:
        """Headers of an object by their names in lower case, or None where there is no such object.

        Args:
            key: The object's key.
            checksum: Its checksum included, for which not every server may be asked.
            paced: See the class.
            options: ExpectedBucketOwner, as boto3's ``head_object`` takes it.
        """
        asked: dict[str, Any] = {**options, "ChecksumMode": "ENABLED"} if checksum else dict(options)
        answer = self._ask("HeadObject", "HEAD", key, asked, paced=paced)
        if answer is not None:
            return answer.headers if answer.status == 200 else None
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=key, **asked)
        except ClientError as error:
            if status_of(error) == "404":
                self._learn(key)
                return None
            raise self._explained(error, key, options) from None
        self._learn(key)
        return found["ResponseMetadata"]["HTTPHeaders"]

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

    @contextmanager
    def get(self, key: str, *, paced: bool = False, **options: str) -> Iterator[Body]:
        """An object's bytes, to be read before the context ends.

        Args:
            key: The object's key.
            paced: See the class.
            options: Range, IfMatch, ExpectedBucketOwner, as boto3's ``get_object`` takes them.
        """
        answer = self._ask("GetObject", "GET", key, options, paced=paced)
        if answer is not None:
            with answer:
                yield Body(answer, answer.length, self._client.meta.endpoint_url)
            return
        asked: dict[str, Any] = dict(options)
        found = self._client.get_object(Bucket=self._bucket, Key=key, **asked)
        self._learn(key)
        with found["Body"] as body:
            yield Body(body, found.get("ContentLength"), self._client.meta.endpoint_url)

    def put(self, key: str, data: bytes | memoryview, sha256: str, *, paced: bool = False, **options: str) -> str:
        """Store an object; returns its ETag.

        Args:
            key: The object's key.
            data: Its bytes; they are sent from where they lie.
            sha256: Their SHA-256 (hex), which is signed.
            paced: See the class.
            options: ChecksumSHA256, ContentMD5, ContentType, StorageClass, ServerSideEncryption, SSEKMSKeyId and
                ExpectedBucketOwner, as boto3's ``put_object`` takes them.
        """
        asked: dict[str, Any] = dict(options)
        answer = self._ask("PutObject", "PUT", key, asked, data, sha256, paced=paced)
        if answer is not None:
            with answer:
                answer.complete or answer.read(_LONGEST)
            if "etag" in answer.headers:
                return answer.headers["etag"]
        body = data if isinstance(data, bytes) else bytes(data)
        etag = self._client.put_object(Bucket=self._bucket, Key=key, Body=body, **asked)["ETag"]
        self._learn(key)
        return etag

    def copy(self, key: str, origin: Mapping[str, str], *, paced: bool = False, **options: str) -> Mapping[str, Any]:
        """Copy an object inside S3, up to 5 GB; returns ``CopyObjectResult``: ETag and ChecksumSHA256.

        Args:
            key: The copy's key.
            origin: ``Bucket`` (a name, or an access point's ARN) and ``Key`` of what is copied.
            paced: See the class.
            options: CopySourceIfMatch, IfNoneMatch, ContentType, …, as boto3's ``copy_object`` takes them.
        """
        source = f"{origin['Bucket']}{'/object' if origin['Bucket'].startswith('arn:') else ''}/{origin['Key']}"
        asked = {**options, "CopySource": quote(source, safe="-._~/")}
        answer = self._ask("CopyObject", "PUT", key, asked, paced=paced)
        if answer is not None and (found := self._copied(answer, paced)) is not None:
            return found
        parameters: Any = {**options, "CopySource": dict(origin)}
        result: Mapping[str, Any] = self._client.copy_object(Bucket=self._bucket, Key=key, **parameters)[
            "CopyObjectResult"
        ]
        self._learn(key)
        return result

    def _copied(self, answer: Answer, paced: bool) -> Mapping[str, str] | None:
        """What a COPY has written. S3 answers 200 before it is done: the body may still be an error."""
        try:
            with answer:
                body = answer.read(_LONGEST)
                complete = answer.complete
            root = ElementTree.fromstring(body)  # noqa: S314 - of this size, and expat bounds what entities grow to
        except (OSError, ElementTree.ParseError):
            return None
        if not complete:
            return None
        fields = {child.tag.rpartition("}")[2]: child.text or "" for child in root}
        if root.tag.rpartition("}")[2] == "CopyObjectResult":
            return fields
        if (error := _error("CopyObject", 500, answer.headers, body)) and _is_final(error, paced):
            raise error
        self._asked.status = 500
        return None

    # -- directly, or not ------------------------------------------------------------------------------------------

    def _ask(
        self,
        operation: str,
        method: str,
        key: str,
        options: Mapping[str, str],
        data: bytes | memoryview = b"",
        sha256: str = EMPTY_SHA256_HASH,
        *,
        paced: bool,
    ) -> Answer | None:
        """A plain answer: the one that was asked for, or to a HEAD that there is no such object. None = ask boto3.

        Raises:
            ClientError: S3 has said itself why not.
        """
        self._asked.in_vain, self._asked.status = self._in_vain, 0
        if not self._begun.is_set() and not self._first.acquire(blocking=False):
            self._begun.wait(_FIRST)
            self._begun.set()
        signer = self._signer
        if signer is None or self._in_vain >= _IN_VAIN:
            return None
        try:
            answer = signer.send(method, key, {_HEADERS[name]: value for name, value in options.items()}, data, sha256)
            if answer is None:
                return None
            if answer.status in (200, 206) or (answer.status == 404 and method == "HEAD"):
                self._in_vain = 0
                return answer
            with answer:
                body = answer.read(_LONGEST) if not answer.complete else b""
        except (OSError, ValueError):
            return None
        self._asked.status = answer.status
        error = _error(operation, answer.status, answer.headers, body)
        if error is not None and _is_final(error, paced):
            self._in_vain = 0
            raise error
        return None

    def _remember(self, request: AWSPreparedRequest, **_: object) -> None:
        self._asked.sent = request.url, request.headers.get("Authorization", b"")

    def _learn(self, key: str) -> None:
        """boto3 got an answer: reuse its address and region, unless that takes more than a signature (a proxy, for instance)."""
        url, signature = getattr(self._asked, "sent", ("", b""))
        self._asked.sent = "", b""
        try:
            self._learn_from(url, signature, key)
        finally:
            self._begun.set()

    def _learn_from(self, url: str, signature: bytes | str, key: str) -> None:
        if self._signer is not None:
            if (
                self._asked.status < 500
            ):  # requests that were under way together, as in a blip of the network, count as one
                self._in_vain = max(self._in_vain, self._asked.in_vain + 1)
            return
        config: Any = self._client.meta.config  # its attributes are made at run time
        signed = _SCOPE.match(signature.decode(errors="replace") if isinstance(signature, bytes) else signature)
        path = _quoted(key)
        detour = config.client_cert or config.proxies or getproxies().keys() & {urlsplit(url).scheme, "all"}
        if signed and not detour and url.endswith(path):
            origin = Origin(
                url,
                tls=_tls(trusted(self._session, self._verify)[0]) if url.startswith("https:") else None,
                connect_timeout=config.connect_timeout,
                read_timeout=config.read_timeout,
                keep=_KEEP,
            )
            self._signer = _SignedOrigin(self._session, origin, url.removesuffix(path), signed[1])


def _error(operation: str, status: int, headers: Mapping[str, str], body: bytes) -> ClientError | None:
    """S3's refusal as boto3 raises it, or None where the answer is none."""
    if status < 300:
        return None
    parser: Any = RestXMLParser()
    try:
        parsed = parser.parse({"status_code": max(status, 301), "headers": dict(headers), "body": body}, None)
    except Exception:  # noqa: BLE001 - botocore's parser raises what it likes of what is no XML
        return None
    return ClientError(parsed, operation)


def _is_final(error: ClientError, paced: bool) -> bool:
    """Whether boto3 would come to nothing else."""
    code, status = code_of(error), status_of(error)
    if code in BUSY or (status.startswith("5") and status != "501"):
        return paced
    return not code.isdecimal() and code not in _BOTO3S


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


class _SignedOrigin:
    """Signed requests to one bucket, whose keys begin at ``url``."""

    def __init__(self, session: boto3.Session, origin: Origin, url: str, region: str) -> None:
        self._session, self._origin, self._signer = session, origin, Signer(region)
        self._path = urlsplit(url).path

    def send(
        self, method: str, key: str, headers: Mapping[str, str], data: bytes | memoryview, sha256: str
    ) -> Answer | None:
        """An answer, or None without credentials; raises what ``Origin.exchange`` does."""
        credentials = self._session.get_credentials()
        if credentials is None:
            return None
        path, origin = self._path + _quoted(key), self._origin
        signed = self._signer.headers(method, path, origin.host, headers, sha256, credentials.get_frozen_credentials())
        return origin.exchange(method, path, signed, data)


def _tls(trusted: bool | str) -> ssl.SSLContext:
    context = create_urllib3_context()  # as boto3 does
    if trusted is False:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        bundle: Any = trusted  # True = botocore's own
        context.load_verify_locations(get_cert_path(bundle))
    return context


def _quoted(key: str) -> str:
    return quote(key, safe="/~")  # as botocore does
