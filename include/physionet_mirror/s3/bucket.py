"""The bucket: every read, write and listing below one key prefix, and nothing outside it.

The requests that are made once a file (HEAD, GET into a buffer, PUT, COPY) are ``signed``'s; everything else is an ordinary
boto3 call. All use the credentials, endpoint and TLS settings of one boto3 session, so whoever opened that session (an S3Hook, for
instance) owns the connection.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
from botocore.config import Config

from physionet_mirror.errors import DestinationError, InputError
from physionet_mirror.s3 import replies
from physionet_mirror.s3.capabilities import (
    Capabilities,
    refuses_the_form,
    takes_no_conditions,
    takes_no_such_request,
)
from physionet_mirror.s3.listing import read_quickly
from physionet_mirror.s3.signed import SignedRequests, trusted
from physionet_mirror.wire import PIECE
from physionet_mirror.worker_settings import check_ca_bundle

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ListObjectsV2OutputTypeDef, ObjectIdentifierTypeDef

log = logging.getLogger(__name__)

T = TypeVar("T")

PART_SIZE = 8 << 20
"""Bytes of one part of a multipart upload; at S3's limit of 10,000 parts this carries files of 80 GiB."""

_KEYS_A_LIST = 1000  # ListObjectsV2's page
_KEYS_A_DELETE = 1000  # DeleteObjects' limit
_ENCRYPTIONS = "AES256", "aws:kms", "aws:kms:dsse"
_ONE_COPY = 5 << 30  # CopyObject's limit, in bytes
NO_ETAG = f'"{"0" * 32}"'
"""An ETag that no object has, to try out whether a condition is kept."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What a LIST says of an object. ``path`` is relative to the key prefix, ``size`` in bytes."""

    path: str
    size: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class Stored:
    """What a HEAD says of an object. ``sha256`` is hex, or None where S3 holds no checksum of the whole object."""

    path: str
    size: int
    etag: str
    sha256: str | None
    storage_class: str
    content_type: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class Copy:
    """What a copy inside S3 has written. ``sha256`` (hex) as S3 computed it, or None where it says none."""

    etag: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Upload:
    """An unfinished multipart upload, of the object at ``path``; ``age``: seconds since it was begun, by S3's clock."""

    path: str
    id: str
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an unfinished upload: its number from 1, its bytes, and what S3 wants to hear when it is completed.

    ``sha256`` is base64; None where S3 does not give it back. ``age``: seconds since it was stored, by S3's clock.
    """

    number: int
    size: int
    etag: str
    sha256: str | None
    age: float = 0.0


class Bucket:
    """One S3 bucket below one key prefix; safe to share between threads.

    Every ``path`` is relative to the prefix. All methods raise a :class:`DestinationError` (`DestinationUnavailable`
    only after the client's own retries), or :class:`InputError` where a setting keeps the request from being made.
    Whoever slows down by himself (a `Pace`) asks with ``paced``: then S3's 503 is raised at once.

    Attributes:
        name: The bucket's name.
        prefix: Key prefix without slashes at its ends; may be empty.
        requests: S3 requests made so far by kind (LIST, HEAD, GET, PUT, COPY, DELETE).
        can: What the server takes; learnt from its answers unless a run's access check has found it out.
    """

    def __init__(
        self,
        client: S3Client,
        signed: SignedRequests,
        name: str,
        prefix: str,
        *,
        kms_key: str | None = None,
        server_side_encryption: str | None = None,
        expected_owner: str | None = None,
    ) -> None:
        self.client = client
        self.name = name
        self.prefix = prefix.strip("/")
        self.requests: Counter[str] = Counter()
        self._signed = signed
        self._root = f"{self.prefix}/" if self.prefix else ""
        self._lock = threading.Lock()
        self._region: str | None = client.meta.region_name
        self.can = Capabilities()
        self._kept = threading.local()  # .buffer, for what is read only to be hashed
        self._owner: dict[str, Any] = {"ExpectedBucketOwner": expected_owner} if expected_owner else {}
        self._encryption = _encryption(kms_key, server_side_encryption)

    @classmethod
    def open(
        cls,
        session: boto3.Session,
        name: str,
        prefix: str,
        *,
        endpoint_url: str | None = None,
        config: Config | None = None,
        verify: bool | str | None = None,
        kms_key: str | None = None,
        server_side_encryption: str | None = None,
        expected_owner: str | None = None,
    ) -> Bucket:
        """Bucket with the credentials and region of a boto3 session; makes no request.

        Args:
            session: Owner of credentials and region.
            name: The bucket's name.
            prefix: Key prefix.
            endpoint_url: Of an S3 that is not Amazon's, else None.
            config: botocore settings, which stand above this class's own: time-outs, retries, connections kept, proxies …
            verify: As boto3's: False for no TLS verification, or the path of a CA bundle.
            kms_key: KMS key id or ARN that encrypts what is written; None = the bucket's own default.
            server_side_encryption: What is asked for with each write, as a bucket's policy may want: ``AES256``,
                ``aws:kms`` or ``aws:kms:dsse``; None = the bucket's own default, or ``aws:kms`` with a ``kms_key``.
            expected_owner: AWS account id that must own the bucket.

        Raises:
            InputError: There are no AWS credentials, or a setting cannot be used.
            BucketRefused: The credentials that the settings name are not to be had.
        """
        try:
            credentials = session.get_credentials()
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError, ValueError) as error:
            raise replies.meaning(error, f"s3://{name}", "credentials", name, session.region_name) from None
        if credentials is None:
            raise InputError(
                "No AWS credentials were found. Nothing was done. Put access keys into the AWS connection, or give the "
                "worker a role: https://airflow.apache.org/docs/apache-airflow-providers-amazon/stable/connections/aws.html"
            )
        ours = Config(
            max_pool_connections=64,
            retries={"mode": "standard", "max_attempts": 5},
            connect_timeout=10,
            read_timeout=60,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        bundle, setting = trusted(session, verify)
        if isinstance(bundle, str) and not (endpoint_url or "").startswith("http://"):
            check_ca_bundle(bundle, setting)
        try:
            client = session.client(
                "s3", endpoint_url=endpoint_url, config=ours.merge(config) if config else ours, verify=verify
            )
        except (botocore.exceptions.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no address
            raise replies.meaning(error, f"s3://{name}", "a client", name, session.region_name) from None
        read_quickly(client)
        signed = SignedRequests(session, client, name, verify=verify)
        return cls(
            client,
            signed,
            name,
            prefix,
            kms_key=kms_key,
            server_side_encryption=server_side_encryption,
            expected_owner=expected_owner,
        )

    @property
    def owner(self) -> Mapping[str, Any]:
        """``ExpectedBucketOwner``, for whoever asks something else of ``client``; empty where no owner is expected."""
        return self._owner

    @property
    def in_aws(self) -> bool:
        """Whether it is Amazon's S3."""
        host = urlsplit(self.client.meta.endpoint_url).hostname or ""
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def region(self) -> str | None:
        """The Region that holds it: as Amazon says, which a connection need not; elsewhere as the connection says."""
        if self.in_aws:
            try:
                with self._asking("HEAD", "the bucket"):
                    found = self.client.head_bucket(Bucket=self.name, **self._owner)
                return found.get("BucketRegion") or self._region
            except DestinationError as error:
                log.info("S3 does not say where %s is; the connection's region counts. %s", self.name, error)
        return self._region

    def __repr__(self) -> str:
        return f"<Bucket {self.uri()}>"

    def key(self, path: str) -> str:
        """The object's key: prefix and path."""
        return self._root + path

    def uri(self, path: str = "") -> str:
        """``s3://bucket/prefix/path``."""
        return f"s3://{self.name}/{self.key(path)}".rstrip("/")

    def check(self) -> None:
        """Raise unless the bucket exists, in reach of these credentials (and belongs to the expected owner).

        Asked with a LIST of one key: unlike the answer to HEAD, a refused LIST says what was wrong.
        """
        with self._asking("LIST", "the bucket"):
            self.client.list_objects_v2(Bucket=self.name, Prefix=self._root, MaxKeys=1, **self._owner)

    # -- what is there ---------------------------------------------------------------------------------------------

    def list(self, under: str = "", *, start_after: str | None = None, last: str | None = None) -> Iterator[Listed]:
        """Objects below ``under`` in byte order of their keys, one LIST request per 1,000 keys.

        Args:
            under: Path that the keys begin with (a plain string prefix, as S3 takes it).
            start_after: Only paths that sort behind this one.
            last: Only paths up to and with this one; the listing ends there.
        """
        options = {} if start_after is None else {"StartAfter": self.key(start_after)}
        end = None if last is None else last.encode()
        for page in self._pages(under, **options):
            for entry in page.get("Contents", ()):
                path = entry["Key"][len(self._root) :]
                if end is not None and path.encode() > end:
                    return
                yield Listed(path, entry["Size"], entry["ETag"].strip('"'), entry["LastModified"])

    def folders(self, under: str) -> Sequence[str]:
        """Names of the folders directly below the folder ``under``, which ends in a slash; one LIST per 1,000."""
        return [
            entry["Prefix"][len(self.key(under)) : -1]
            for page in self._pages(under, Delimiter="/")
            for entry in page.get("CommonPrefixes", ())
        ]

    def _pages(self, under: str, **options: str) -> Iterator[ListObjectsV2OutputTypeDef]:
        """The pages of a listing, each asked for when it is wanted."""
        ask: dict[str, Any] = {"Bucket": self.name, "Prefix": self.key(under), **options, **self._owner}
        while True:
            with self._asking("LIST", f"a listing of {under or 'the prefix'}"):
                page = self.client.list_objects_v2(**ask)
            yield page
            if not page.get("IsTruncated"):
                return
            ask["ContinuationToken"] = page["NextContinuationToken"]

    def head(self, path: str, *, paced: bool = False) -> Stored | None:
        """Size, ETag and checksum of one object, or None where there is none."""
        with self._asking("HEAD", path):
            headers = self._head(self.key(path), paced=paced)
        if headers is None:
            return None
        digest = headers.get("x-amz-checksum-sha256", "")
        # A multipart object carries a hash of its parts' hashes ("…-3"): that is no checksum of the file.
        of_the_whole = headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT" and "-" not in digest
        return Stored(
            path,
            int(headers["content-length"]),
            headers["etag"].strip('"'),
            b64decode(digest).hex() if digest and of_the_whole else None,
            headers.get("x-amz-storage-class", "STANDARD"),
            headers.get("content-type", "application/octet-stream"),
            parsedate_to_datetime(headers["last-modified"]),
        )

    def _head(self, key: str, *, paced: bool) -> Mapping[str, str] | None:
        can = self.can
        try:
            return self._signed.head(key, checksum=can.sha256, paced=paced, **self._owner)
        except botocore.exceptions.ClientError as error:
            if not can.sha256 or replies.status_of(error) not in {"400", "501"}:
                raise
            try:  # an answer to HEAD has no words: it was the checksum's header if all goes well without
                headers = self._signed.head(key, checksum=False, paced=paced, **self._owner)
            except botocore.exceptions.ClientError:
                raise error from None
        self._takes_no_sha256()
        return headers

    def _with_sha256_or_without(self, ask: Callable[[Capabilities], T]) -> T:
        """Ask with SHA-256, and without it where the server refuses the request for that alone."""
        can = self.can
        try:
            return ask(can)
        except botocore.exceptions.ClientError as error:
            if not can.sha256 or not refuses_the_form(error):
                raise
            try:
                answer = ask(can.without("sha256"))
            except botocore.exceptions.ClientError:
                raise error from None
        self._takes_no_sha256()
        return answer

    def _takes_no_sha256(self) -> None:
        log.info("%s takes no SHA-256 with a request: Content-MD5 takes its place.", self.uri())
        self.can = self.can.without("sha256")

    def get_into(
        self,
        path: str,
        buffer: bytearray | memoryview,
        *,
        etag: str | None = None,
        paced: bool = False,
        seen: Callable[[memoryview], object] = lambda _: None,
    ) -> memoryview:
        """One whole object into a buffer that the caller keeps; the part of it that the object fills.

        Args:
            path: Which.
            buffer: At least as large as the object.
            etag: Only the object that has this ETag.
            paced: See the class.
            seen: Called with each piece as soon as it is there, in order: to hash it.

        Raises:
            FileNotFoundError: There is no such object.
            DestinationError: It is larger than the buffer, or another one now (PreconditionFailed).
            DestinationUnavailable: It did not come whole; a body that breaks off is not asked for again here.
        """
        view = memoryview(buffer)
        options = {"IfMatch": f'"{etag}"'} if etag else {}
        with self._asking("GET", path), self._signed.get(self.key(path), paced=paced, **options, **self._owner) as body:
            at = 0
            too_large = (body.length or 0) > len(view)
            while not too_large and at < len(view) and (size := body.fill(view[at : at + PIECE])):
                seen(view[at : at + size])
                at += size
            if too_large or (at == len(view) and body.length is None and body.fill(memoryview(bytearray(1)))):
                raise DestinationError(
                    f"{self.uri(path)} is larger than the {len(view):,} bytes that were expected. Nothing of it was kept. Find "
                    "out who replaced it."
                )
        return view[:at]

    def get_span(self, path: str, start: int, view: memoryview, *, etag: str, paced: bool = False) -> bool:
        """The bytes of an object from ``start`` on, as many as ``view`` takes, which must be there.

        Returns:
            Whether they came; False if the server answers with something else than what was asked for.

        Raises:
            FileNotFoundError: There is no such object, or another one than that with this ETag.
            DestinationUnavailable: They did not come whole.
        """
        options = {"IfMatch": f'"{etag}"', "Range": f"bytes={start}-{start + len(view) - 1}", **self._owner}
        with self._asking("GET", path):
            try:
                with self._signed.get(self.key(path), paced=paced, **options) as body:
                    return body.length == len(view) and body.fill(view) == len(view)
            except botocore.exceptions.ClientError as error:
                if replies.status_of(error) == "412":
                    raise FileNotFoundError(f"{self.uri(path)} is another object by now.") from None
                raise

    def sha256(self, path: str) -> str:
        """The SHA-256 (hex) of an object's bytes, read back through one kept buffer a thread.

        Raises:
            FileNotFoundError: There is no such object.
            DestinationUnavailable: It did not come whole.
        """
        if (buffer := getattr(self._kept, "buffer", None)) is None:
            buffer = self._kept.buffer = memoryview(bytearray(PIECE))
        digest = hashlib.sha256()
        with self._asking("GET", path), self._signed.get(self.key(path), **self._owner) as body:
            while size := body.fill(buffer):
                digest.update(buffer[:size])
        return digest.hexdigest()

    def open_read(self, path: str, chunk: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in chunks.

        Raises:
            FileNotFoundError: There is no such object.
        """
        with self._asking("GET", path):
            body = self.client.get_object(Bucket=self.name, Key=self.key(path), **self._owner)["Body"]
            yield from body.iter_chunks(chunk)

    def read(self, path: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError where there is no such object."""
        return b"".join(self.open_read(path))

    def read_text(self, path: str) -> str:
        """The object as UTF-8 text. Raises FileNotFoundError where there is no such object."""
        return self.read(path).decode()

    # -- what is written -------------------------------------------------------------------------------------------

    def put(
        self,
        path: str,
        data: bytes | memoryview,
        *,
        content_type: str,
        storage_class: str = "STANDARD",
        sha256: str | None = None,
        paced: bool = False,
    ) -> str:
        """Store one file, atomically. Returns the ETag.

        Args:
            path: Where.
            data: Its bytes; they are sent from where they lie.
            content_type: Its media type.
            storage_class: S3 storage class.
            sha256: What the bytes must hash to (hex): S3 compares, refuses anything else, and keeps it as the object's
                checksum. None = whatever they hash to.
            paced: See the class.
        """
        options = {"ContentType": content_type, **self._encryption, **self._owner}
        if storage_class != "STANDARD":
            options["StorageClass"] = storage_class
        digest = hashlib.sha256(data).hexdigest() if sha256 is None else sha256

        def put(can: Capabilities) -> str:
            checksums = _checksums(can, data, digest)
            return self._signed.put(self.key(path), data, digest, paced=paced, **options, **checksums).strip('"')

        with self._asking("PUT", path):
            return self._with_sha256_or_without(put)

    def put_file(self, path: str, file: BinaryIO, *, sha256: str, content_type: str) -> str:
        """Store a local file of at most 5 GiB in one PUT, so that S3 keeps a SHA-256 of the whole. Returns the ETag.

        Args:
            path: Where.
            file: Open for reading; it is sent piece by piece and never held in memory.
            sha256: What its bytes must hash to (hex): S3 compares, and keeps it as the object's checksum.
            content_type: Its media type.
        """

        def put(can: Capabilities) -> str:
            file.seek(0)
            checksums = _checksums(can, file, sha256)
            file.seek(0)
            answer = self.client.put_object(
                Bucket=self.name,
                Key=self.key(path),
                Body=file,
                ContentType=content_type,
                **checksums,  # type: ignore[arg-type]
                **self._encryption,
                **self._owner,
            )
            return answer["ETag"].strip('"')

        with self._asking("PUT", path):
            return self._with_sha256_or_without(put)

    def write(self, path: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Store a small object (state, reports, tables)."""
        with self._asking("PUT", path):
            self._put_small(path, data, content_type)

    def _put_small(self, path: str, data: bytes, content_type: str, **condition: Any) -> None:
        self._with_sha256_or_without(
            lambda can: self.client.put_object(
                Bucket=self.name,
                Key=self.key(path),
                Body=data,
                ContentType=content_type,
                **_checksums(can, data),  # type: ignore[arg-type]
                **condition,
                **self._encryption,
                **self._owner,
            )
        )

    def refusal_of(self, path: str, data: bytes, **asked: str) -> str:
        """S3's code if it refuses to store a small object with these parameters of boto3's ``put_object``, else empty."""
        parameters: Any = {**asked, **self._encryption, **self._owner}
        with self._asking("PUT", path):
            try:
                self.client.put_object(Bucket=self.name, Key=self.key(path), Body=data, **parameters)
            except botocore.exceptions.ClientError as error:
                code, status = replies.code_of(error), replies.status_of(error)
                if code in replies.BUSY or (status.startswith("5") and status != "501"):
                    raise
                return code
        return ""

    def write_unless_changed(
        self, path: str, data: bytes, before: Stored | None, *, content_type: str = "application/octet-stream"
    ) -> bool:
        """Store a small object in place of what was ``before`` there (None = nothing); False where it is that no more.

        S3 decides, so of several who write at once one wins and the others know. Only a server that says itself that it
        takes no conditions is asked without one. After a lost answer this may say False of an object that this call
        itself has written.
        """
        condition: Any = {"IfMatch": before.etag} if before else {"IfNoneMatch": "*"}
        with self._asking("PUT", path):
            try:
                self._put_small(path, data, content_type, **condition)
                return True
            except botocore.exceptions.ClientError as error:
                if replies.code_of(error) in replies.CONDITION:
                    return False
                if not takes_no_conditions(error):
                    raise
        self.write(path, data, content_type=content_type)
        return True

    def write_text(self, path: str, text: str, *, content_type: str = "text/plain; charset=utf-8") -> None:
        """Store UTF-8 text."""
        self.write(path, text.encode(), content_type=content_type)

    def write_json(self, path: str, value: Any) -> None:
        """Store a JSON document."""
        self.write(path, json.dumps(value, indent=1).encode(), content_type="application/json")

    def upload(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        content_type: str = "application/octet-stream",
        storage_class: str = "STANDARD",
        part_size: int = PART_SIZE,
    ) -> int:
        """Store a file of any size from a stream, holding at most two parts in memory; returns its size in bytes.

        A file of up to one part is one PUT. A larger one is a multipart upload with a checksum for each part; it becomes
        visible only when ``chunks`` ended without an exception, and is aborted otherwise.
        """
        parts = _parts(chunks, part_size)
        waiting = deque(islice(parts, 2))
        if len(waiting) < 2:
            data = waiting[0] if waiting else b""
            self.put(path, data, content_type=content_type, storage_class=storage_class)
            return len(data)
        return self.upload_parts(path, chain(waiting, parts), content_type=content_type, storage_class=storage_class)

    def upload_parts(
        self, path: str, parts: Iterable[bytes], *, content_type: str, storage_class: str = "STANDARD"
    ) -> int:
        """The multipart upload of `upload`, whatever its size; S3 wants parts of 5 MiB or more but for the last one."""
        upload = self.begin_upload(path, content_type=content_type, storage_class=storage_class)
        done: list[Part] = []
        try:
            for part in parts:
                done.append(self.put_part(upload, len(done) + 1, part))
            self.complete_upload(upload, done)
        except BaseException:
            self.abort_upload(upload)
            raise
        return sum(part.size for part in done)

    def begin_upload(
        self, path: str, *, content_type: str = "application/octet-stream", storage_class: str = "STANDARD"
    ) -> Upload:
        """Begin a multipart upload, with a SHA-256 for each part where S3 takes it; nothing is visible before its end."""
        with self._asking("PUT", path):
            answer = self._with_sha256_or_without(
                lambda can: self.client.create_multipart_upload(
                    Bucket=self.name,
                    Key=self.key(path),
                    ContentType=content_type,
                    StorageClass=storage_class,  # type: ignore[arg-type]
                    **({"ChecksumAlgorithm": "SHA256"} if can.sha256 else {}),  # type: ignore[arg-type]
                    **self._encryption,
                    **self._owner,
                )
            )
        return Upload(path, answer["UploadId"])

    def put_part(self, upload: Upload, number: int, data: bytes | bytearray) -> Part:
        """Store one part, numbered from 1; S3 compares its SHA-256, or its MD5.

        Raises:
            FileNotFoundError: There is no such upload (any more).
        """

        def put(can: Capabilities) -> Part:
            checksums = _checksums(can, data)
            how: dict[str, Any] = {**self._of(upload), "Body": data, **checksums}
            etag = self.client.upload_part(PartNumber=number, **how)["ETag"]
            return Part(number, len(data), etag, checksums.get("ChecksumSHA256"))

        with self._asking("PUT", upload.path):
            return self._with_sha256_or_without(put)

    def complete_upload(self, upload: Upload, parts: Iterable[Part]) -> str:
        """Make the object of these parts, which must all be there as they were stored; returns its ETag.

        Raises:
            FileNotFoundError: There is no such upload (any more), or a part is another one by now.
        """
        done: list[CompletedPartTypeDef] = [
            {"PartNumber": part.number, "ETag": part.etag, **({"ChecksumSHA256": part.sha256} if part.sha256 else {})}
            for part in parts
        ]
        with self._asking("PUT", upload.path):
            try:
                answer = self.client.complete_multipart_upload(**self._of(upload), MultipartUpload={"Parts": done})
            except botocore.exceptions.ClientError as error:
                if replies.code_of(error) == "InvalidPart":
                    raise FileNotFoundError(f"A part of the upload of {self.uri(upload.path)} was replaced.") from None
                raise
        return answer["ETag"].strip('"')

    def abort_upload(self, upload: Upload) -> None:
        """Give an upload up; if S3 does not let us, it stays, with a warning."""
        try:
            with self._asking("DELETE", upload.path):
                self.client.abort_multipart_upload(**self._of(upload))
        except FileNotFoundError:
            pass
        except DestinationError as error:  # why the upload ended matters more
            log.warning("The unfinished upload of %s stays in the bucket: %s", self.uri(upload.path), error)

    def uploads(self, under: str) -> Sequence[Upload]:
        """Unfinished multipart uploads below ``under``."""
        found: list[Upload] = []
        ask: dict[str, Any] = {"Bucket": self.name, "Prefix": self.key(under), **self._owner}
        while True:
            try:
                with self._asking("LIST", f"unfinished uploads of {under}"):
                    page = self.client.list_multipart_uploads(**ask)
            except FileNotFoundError:  # what rclone's server says of a bucket without any
                return found
            found += [
                Upload(entry["Key"][len(self._root) :], entry["UploadId"], _age(entry.get("Initiated"), page))
                for entry in page.get("Uploads", ())
                if entry["Key"].startswith(self.key(under))
            ]
            if not page.get("IsTruncated"):
                return found
            ask |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def parts(self, upload: Upload) -> Sequence[Part]:
        """The parts of an unfinished upload that S3 holds.

        Raises:
            FileNotFoundError: There is no such upload (any more).
        """
        found: list[Part] = []
        ask = self._of(upload)
        while True:
            with self._asking("LIST", upload.path):
                page = self.client.list_parts(**ask)
            found += [
                Part(
                    entry["PartNumber"],
                    entry["Size"],
                    entry["ETag"],
                    entry.get("ChecksumSHA256"),
                    _age(entry.get("LastModified"), page),
                )
                for entry in page.get("Parts", ())
            ]
            if not page.get("IsTruncated"):
                return found
            ask["PartNumberMarker"] = page["NextPartNumberMarker"]

    def _of(self, upload: Upload) -> dict[str, Any]:
        return {"Bucket": self.name, "Key": self.key(upload.path), "UploadId": upload.id, **self._owner}

    def copy_from(
        self,
        source: Bucket,
        there: Stored | Listed,
        path: str | None = None,
        *,
        content_type: str,
        storage_class: str = "STANDARD",
        replace: bool = True,
        paced: bool = False,
    ) -> Copy | None:
        """Copy an object of another bucket (or of this one) inside S3.

        Tags and ACL of the original stay behind: storage class, encryption and tags are the destination's. Above 5 GB
        the copy is made in parts, and S3 then has no SHA-256 of the whole.

        Args:
            source: Where it is.
            there: What is there; another object than this one is not copied, where its ETag is given.
            path: Where to; None = the same path.
            content_type: Its media type.
            storage_class: S3 storage class.
            replace: False = only where nothing stands. A server that takes no such condition replaces in any case.
            paced: See the class.

        Returns:
            What was written, or None where something stood and was not to be replaced.

        Raises:
            FileNotFoundError: There is no such object.
        """
        path = there.path if path is None else path
        origin: Any = {"Bucket": source.name, "Key": source.key(there.path)}
        how: dict[str, Any] = {
            "MetadataDirective": "REPLACE",
            "ContentType": content_type,
            "StorageClass": storage_class,
            "TaggingDirective": "REPLACE",
            **self._encryption,
            **self._owner,
        }
        etag = digest = None
        with self._asking("COPY", path):
            if not copies_whole(there.size):
                # A checksum would be of the parts, which proves nothing, and not every S3 gives it.
                self.client.copy(
                    origin, Bucket=self.name, Key=self.key(path), ExtraArgs=how, SourceClient=source.client
                )
            else:
                if self.can.sha256:
                    how["ChecksumAlgorithm"] = "SHA256"
                if there.etag:
                    how["CopySourceIfMatch"] = there.etag
                copied = self._copy(path, origin, how, replace=replace, paced=paced)
                if copied is None:
                    return None
                etag, digest = copied.get("ETag"), copied.get("ChecksumSHA256")
        if not etag:  # made in parts, or rclone's server, which leaves it out
            stored = self.head(path, paced=paced)
            etag = stored.etag if stored else ""
        return Copy(etag.strip('"'), b64decode(digest).hex() if digest else None)

    def _copy(
        self, path: str, origin: Mapping[str, str], how: Mapping[str, Any], *, replace: bool, paced: bool
    ) -> Mapping[str, Any] | None:
        """CopyObjectResult, or None where something stands that is not to be replaced."""
        key = self.key(path)
        if not replace and self.can.copies_if_absent:
            try:
                return self._signed.copy(key, origin, paced=paced, **how, IfNoneMatch="*")
            except botocore.exceptions.ClientError as error:
                if replies.status_of(error) in {"409", "412"} and self.head(path, paced=paced) is not None:
                    return None
                if replies.status_of(error) != "501":
                    raise
            self.can = self.can.without("copies_if_absent")
        return self._signed.copy(key, origin, paced=paced, **how)

    def delete_exactly(self, path: str, etag: str) -> bool:
        """Delete an object only while it is the one that has this ETag; whether it was deleted.

        Only for a server that `deletes_if_match`: another one may ignore the condition, and the HEAD that is sent first
        does not see what is written after it.
        """
        there = self.head(path)
        if there is None or there.etag != etag:
            return False
        where: dict[str, Any] = {"Bucket": self.name, "Key": self.key(path), **self._owner}
        with self._asking("DELETE", path):
            try:
                self.client.delete_object(**where, IfMatch=etag)
            except botocore.exceptions.ClientError as error:
                if replies.status_of(error) in {"404", "409", "412"} or takes_no_conditions(error):
                    return False
                raise
        return True

    def deletes_if_match(self, path: str) -> bool:
        """Whether the server keeps to If-Match when it deletes: tried with an ETag that this object does not have.

        Args:
            path: An object that nobody needs; a server that ignores the condition deletes it.
        """
        with self._asking("DELETE", path):
            try:
                self.client.delete_object(Bucket=self.name, Key=self.key(path), IfMatch=NO_ETAG, **self._owner)
            except botocore.exceptions.ClientError as error:
                if replies.status_of(error) in {"409", "412"}:
                    return True
                if not takes_no_conditions(error):
                    raise
        return False

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, 1,000 a request. An absent one is no error.

        A store that does not take such a request (some want Content-MD5 with it) is asked object by object.

        Raises:
            DestinationError: Something is not deleted; the others are.
        """
        self._delete({"Key": self.key(path)} for path in paths)

    def delete_versions(self, versions: Iterable[tuple[str, str]]) -> None:
        """Delete these versions and delete markers, given as (path, version id); as `delete` does."""
        self._delete({"Key": self.key(path), "VersionId": version} for path, version in versions)

    def _delete(self, objects: Iterable[ObjectIdentifierTypeDef]) -> None:
        remaining = iter(objects)
        while batch := list(islice(remaining, _KEYS_A_DELETE)):
            if self.can.deletes_many:
                with self._asking("DELETE", f"{len(batch)} objects"):
                    try:
                        answer = self.client.delete_objects(
                            Bucket=self.name,
                            Delete={"Objects": batch, "Quiet": True},
                            ChecksumAlgorithm="SHA256",
                            **self._owner,
                        )
                    except botocore.exceptions.ClientError as error:
                        if not takes_no_such_request(error):
                            raise
                        self.can = self.can.without("deletes_many")
                    else:
                        if errors := answer.get("Errors"):
                            raise self._not_deleted(errors, len(batch))
                        continue
            self._delete_one_by_one(batch)

    def _delete_one_by_one(self, batch: Sequence[ObjectIdentifierTypeDef]) -> None:
        """All that can be deleted is; the first error is raised then."""

        def delete(which: ObjectIdentifierTypeDef) -> DestinationError | dict[str, Any] | None:
            try:
                with self._asking("DELETE", which["Key"].removeprefix(self._root)):
                    try:
                        self.client.delete_object(Bucket=self.name, **which, **self._owner)  # type: ignore[misc]
                    except botocore.exceptions.ClientError as error:
                        if replies.code_of(error) not in replies.DENIED:
                            raise
                        return {**which, **error.response.get("Error", {})}
            except FileNotFoundError:  # that is what was wanted
                return None
            except DestinationError as error:
                return error
            return None

        with ThreadPoolExecutor(16, thread_name_prefix="delete") as pool:
            failed = [error for error in pool.map(delete, batch) if error]
        if errors := [error for error in failed if not isinstance(error, DestinationError)]:
            raise self._not_deleted(errors, len(batch))
        if others := [error for error in failed if isinstance(error, DestinationError)]:
            raise others[0]

    def _not_deleted(self, errors: Sequence[Any], asked: int) -> DestinationError:
        """The error of objects that S3 did not delete. It may refuse a locked version in the words of a missing right."""
        first = errors[0]
        is_locked = False
        if first.get("Code") in replies.DENIED and first.get("VersionId"):
            try:
                there = self.client.head_object(
                    Bucket=self.name, Key=first["Key"], VersionId=first["VersionId"], **self._owner
                )
                is_locked = bool(there.get("ObjectLockMode")) or there.get("ObjectLockLegalHoldStatus") == "ON"
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
                pass  # then S3's own words must do
        return replies.not_deleted(errors, asked, f"s3://{self.name}", is_locked=is_locked)

    def discard(self, paths: Iterable[str]) -> None:
        """Tidy up small files of ours: deleted where S3 lets us, else emptied, which readers take for absent.

        Never raises for what S3 says: a file too many decides nothing. What is left standing is named in a warning.
        """
        paths = list(paths)
        try:
            self.delete(paths)
            return
        except DestinationError as error:
            log.warning(
                "%s could not be deleted and is emptied instead. Nothing depends on it. %s", _named(paths), error
            )
        try:
            for path in paths:
                self.write(path, b"")
        except DestinationError as error:
            log.warning("%s could not be emptied either. %s", _named(paths), error)

    # -- errors ----------------------------------------------------------------------------------------------------

    def _count(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1

    @contextmanager
    def _asking(self, kind: str, what: str) -> Iterator[None]:
        """Count one request and turn boto3's exceptions into ours (without their text: it may quote signed headers)."""
        self._count(kind)
        try:
            yield
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
            raise replies.meaning(
                error, self.uri() if what != "the bucket" else f"s3://{self.name}", what, self.name, self._region
            ) from None


def copies_whole(size: int) -> bool:
    """Whether one CopyObject takes an object of so many bytes: with conditions, and a SHA-256 of the whole."""
    return size <= _ONE_COPY


def _encryption(kms_key: str | None, server_side_encryption: str | None) -> dict[str, Any]:
    """The parameters of a write that say how S3 encrypts it."""
    how = server_side_encryption or ("aws:kms" if kms_key else None)
    if how is None:
        return {}
    if how not in _ENCRYPTIONS or (kms_key and how == "AES256"):
        raise InputError(
            f"server_side_encryption: {how!r}"
            + (" takes no kms_key_id" if how == "AES256" else f" is none of {', '.join(_ENCRYPTIONS)}")
            + ". Nothing was written. Correct it in the AWS connection's extra."
        )
    return {"ServerSideEncryption": how, **({"SSEKMSKeyId": kms_key} if kms_key else {})}


def _checksums(
    can: Capabilities, data: bytes | bytearray | memoryview | BinaryIO, sha256: str | None = None
) -> dict[str, str]:
    """The parameters of a PUT by which a server refuses other bytes.

    Args:
        can: What the server takes.
        data: What is sent; a file is read from where it stands, if at all.
        sha256: That of ``data`` (hex), where it is known.
    """
    found = {}
    if can.sha256:
        found["ChecksumSHA256"] = _digest(data, "sha256") if sha256 is None else _base64(bytes.fromhex(sha256))
    if can.wants_md5:
        found["ContentMD5"] = _digest(data, "md5")
    return found


def _digest(data: bytes | bytearray | memoryview | BinaryIO, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    if isinstance(data, bytes | bytearray | memoryview):
        digest.update(data)
    else:
        digest = hashlib.file_digest(data, lambda: digest)  # type: ignore[arg-type]
    return _base64(digest.digest())


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()


def _age(since: datetime | None, answer: Mapping[str, Any]) -> float:
    """Seconds from a time that an answer of S3 names until that answer; 0 where it names none."""
    now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return max(0.0, (parsedate_to_datetime(now) - since).total_seconds()) if now and since else 0.0


def _named(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0] if paths else 'nothing'} and {len(paths) - 1:,} more"


def _parts(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Re-cut a stream into parts of exactly ``size`` bytes; only the last one may be smaller."""
    part = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            take = size - len(part)
            part += view[:take]
            view = view[take:]
            if len(part) == size:
                yield bytes(part)
                part.clear()
    if part:
        yield bytes(part)
