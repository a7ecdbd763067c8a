"""PhysioNet's S3 access point as a source: what it holds, its files, and what a refusal means."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from typing import NoReturn

from physionet_mirror.dataset import SUMS, Dataset
from physionet_mirror.errors import (
    AccessRefused,
    BucketMissing,
    BucketRefused,
    Corrupt,
    DestinationError,
    DestinationUnavailable,
    FileRefused,
    InputError,
    NotFound,
    Throttled,
)
from physionet_mirror.files import File
from physionet_mirror.mover import SourceStats, Turn
from physionet_mirror.s3 import replies
from physionet_mirror.s3.bucket import Bucket, Listed, Stored
from physionet_mirror.source.spans import Changed, NoSpans, Piece

log = logging.getLogger(__name__)

COPIES_A_CONNECTION = 32
"""Copies under way for each PhysioNet connection that a run may hold: a copy costs PhysioNet's web servers nothing, and takes
0.1 to 0.3 s wherever the worker is."""

READS_A_CONNECTION = 16
"""Files on their way through the worker for each, from the GET to the end of the PUT: with two connections a stream, 32 at
the 0.2 to 0.4 s of both are 80 to 160 images a second, in some 50 MB of memory."""

_LISTS_AT_ONCE = 16

CLOUD_SETTINGS = "https://physionet.org/settings/cloud/"


class AccessPoint:
    """One dataset version behind an S3 access point (or in a bucket of one's own); safe to share between threads.

    The access point gives GetObject and ListBucket below the version only. What is not there it answers with 403, so that
    only a listing tells what exists.

    Args:
        bucket: The access point, by its ARN or a bucket's name, with the reader's keys; its prefix is the dataset's name.
        dataset: What it holds.
        conn_id: The connection of the reader's keys, for error texts.
        identity: Says who the reader is to AWS, as an ARN, or None where nobody tells. Asked only when S3 refuses.
    """

    def __init__(
        self,
        bucket: Bucket,
        dataset: Dataset,
        *,
        conn_id: str = "aws_default",
        identity: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.bucket, self.dataset, self.conn_id = bucket, dataset, conn_id
        self.stats = SourceStats()
        self._identity = identity
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<AccessPoint {self.bucket.name}>"

    def close(self) -> None:
        """Nothing is kept open."""

    def received(self, size: int) -> None:
        """Count bytes of a file that came."""
        with self._lock:
            self.stats.received += size

    # -- what it holds -----------------------------------------------------------------------------------------------

    def smallest(self) -> Listed:
        """The smallest file at the version's root, with which a way is tried.

        Raises:
            AccessRefused: These keys may not list it.
            NotFound: It does not hold this version.
            DestinationUnavailable: S3 cannot say now.
        """
        try:
            found = [entry for entry in islice(self.bucket.list(), 1000) if entry.size]
        except (BucketRefused, BucketMissing) as error:
            raise self.refused(error) from None
        if not found:
            raise NotFound(
                f"{self.bucket.name} holds nothing below {self.dataset.name}/. Nothing was fetched. Check "
                f"`physionet_access_point` in the extra of the connection {self.conn_id}: the ARN is on the project's page, "
                f"{self.dataset.page}, for those who are logged in and have access."
            )
        return min(found, key=lambda entry: ("/" in entry.path, entry.size))

    def sizes(self, paths: Sequence[str]) -> dict[str, int]:
        """The size in bytes of each of these files that is there; one LIST per 1,000 keys.

        Args:
            paths: In byte order.

        Raises:
            AccessRefused, DestinationUnavailable: As `smallest`.
        """
        if not paths:
            return {}
        parts = min(_LISTS_AT_ONCE, max(1, len(paths) // 50))
        bounds = [len(paths) * n // parts for n in range(parts + 1)]

        def look(between: tuple[int, int]) -> dict[str, int]:
            part = paths[between[0] : between[1]]
            wanted = set(part)
            listed = self.bucket.list(start_after=part[0][:-1], last=part[-1])
            return {entry.path: entry.size for entry in listed if entry.path in wanted}

        found: dict[str, int] = {}
        try:
            with ThreadPoolExecutor(parts, thread_name_prefix="source") as pool:
                for sizes in pool.map(look, pairwise(bounds)):
                    found |= sizes
        except (BucketRefused, BucketMissing) as error:
            raise self.refused(error) from None
        return found

    # -- tables and lists, as PhysioNet's website gives them ---------------------------------------------------------

    def check_access(self, dataset: Dataset | None = None) -> None:  # noqa: ARG002  as the website's
        """Ask for the checksum file without reading it.

        Raises:
            AccessRefused: This AWS identity has no cloud access at PhysioNet.
            NotFound: It is not there: a wrong access point.
            DestinationUnavailable: S3 cannot say now.
        """
        try:
            found = self.bucket.head(SUMS)
        except (BucketRefused, BucketMissing) as error:
            raise self.refused(error) from None
        if found is None:
            raise NotFound(
                f"{self.bucket.uri(SUMS)} does not exist. Nothing was copied. Check `physionet_access_point` in the extra of "
                f"the connection {self.conn_id}, or leave it out."
            )

    def etag(self, dataset: Dataset, path: str) -> str | None:  # noqa: ARG002  as the website's
        """The ETag of a file, which changes when the file does. Raises as `stat`."""
        return self.stat(path).etag

    def stream(self, dataset: Dataset, path: str, sha256: str | None) -> Iterator[bytes]:  # noqa: ARG002  as the website's
        """One file of any size in chunks, proven when they end. ``sha256`` is None only for the checksum file itself.

        Raises:
            NotFound, FileRefused, Corrupt: By the fault of this file.
            AccessRefused: By nobody's but the reader's.
            Throttled: S3 asks for less, or is away.
        """
        digest = hashlib.sha256()
        try:
            for chunk in self.bucket.open_read(path):
                digest.update(chunk)
                yield chunk
        except (BucketRefused, FileNotFoundError) as error:
            self.blame(path, error)
        except DestinationUnavailable as error:
            raise Throttled(str(error)) from None
        if sha256 is not None and digest.hexdigest() != sha256:
            raise self.corrupt(path, sha256, "Nothing was stored.")

    def read_into(self, file: File, buffer: bytearray | memoryview, turn: Turn) -> memoryview:
        """A listed file's bytes, proven, in a buffer that the caller keeps. Raises as `stream`."""
        assert file.bytes is not None
        digest = hashlib.sha256()
        try:
            data = self.bucket.get_into(file.path, memoryview(buffer)[: file.bytes], paced=True, seen=digest.update)
        except (BucketRefused, FileNotFoundError) as error:
            turn.answered(serves=False)
            self.blame(file.path, error)
        except DestinationUnavailable as error:
            raise Throttled(str(error)) from None
        except DestinationError as error:  # it is larger than was listed
            raise self.corrupt(file.path, file.sha256, f"Nothing was stored. {error}") from None
        turn.answered(serves=True)
        self.received(len(data))
        if digest.hexdigest() != file.sha256:
            raise self.corrupt(file.path, file.sha256, "Nothing was stored.")
        return data

    def spans(self, file: File, turn: Turn) -> PointSpans | None:
        """A file in pieces; None if S3 names no ETag. Raises as `stream`."""
        there = self.stat(file.path)
        turn.answered(serves=True)
        return PointSpans(self, file, there.size, there.etag) if there.etag else None

    def stat(self, path: str) -> Stored:
        """Size and ETag of one file. Raises as `stream`."""
        try:
            found = self.bucket.head(path)
        except BucketRefused as error:
            self.blame(path, error)
        except DestinationUnavailable as error:
            raise Throttled(str(error)) from None
        if found is None:
            raise self.not_found(path)
        return found

    # -- what a refusal means ----------------------------------------------------------------------------------------

    def blame(self, path: str, error: Exception) -> NoReturn:
        """Raise what a refused file means: that file's fault where the checksum file is still given, else the access.

        S3 says 403 of what is not there, too: the listing knows better.
        """
        if isinstance(error, FileNotFoundError):
            raise self.not_found(path) from None
        try:
            found = self.bucket.head(SUMS) if path != SUMS else None
        except DestinationUnavailable as unavailable:
            raise Throttled(str(unavailable)) from None
        except (BucketRefused, BucketMissing):
            found = None
        if found is None:
            raise self.refused(error) from None
        if not self._lists(path):
            raise self.not_found(path) from None
        raise FileRefused(
            f"{self.bucket.uri(path)} is refused to {self.reader()}, although other files there are not. Nothing else is "
            "affected. If this goes on, use source=physionet for it."
        ) from None

    def _lists(self, path: str) -> bool:
        try:
            return any(entry.path == path for entry in islice(self.bucket.list(path), 1))
        except DestinationUnavailable as error:
            raise Throttled(str(error)) from None
        except (BucketRefused, BucketMissing):
            return False

    def reader(self) -> str:
        """Who reads, in words."""
        arn = self._identity()
        return (
            f"{replies.redacted(arn)}, whose keys are in the connection {self.conn_id}"
            if arn
            else f"the keys of {self.conn_id}"
        )

    def refused(self, error: Exception) -> AccessRefused:
        """The error of an access point that is not open to these keys, with PhysioNet's own steps."""
        if (code := replies.code_in(str(error))) and code not in replies.DENIED:
            return AccessRefused(
                f"The keys of the connection {self.conn_id}, asked to read {self.bucket.name}, cannot be used ({code}). What is "
                f"stored stays stored. {error} PhysioNet's own settings for AWS are at {CLOUD_SETTINGS}"
            )
        arn = self._identity()
        kind = ""
        if arn and (":assumed-role/" in arn or ":role/" in arn):
            kind = "That is a role, and PhysioNet opens its access points to IAM users only, never to a role. "
        elif arn and arn.endswith(":root"):
            kind = "That is the account's root user, and PhysioNet opens its access points to IAM users only, never to root. "
        return AccessRefused(
            f"S3 does not let {self.reader()} read {self.bucket.name}. Nothing was fetched. {kind}To get access: make an IAM "
            "user and put its access keys into an AWS connection `physionet_s3`; paste the output of `aws sts "
            f"get-caller-identity`, run with these keys, at {CLOUD_SETTINGS}, run the `aws s3 presign` command that the page "
            f"then gives and paste its result; sign the data use agreement at {self.dataset.page} and ask for access under "
            "'Files' there (again, if it was signed before). That page then shows the ARN of your access point (it may end in "
            f"-02 or later): put it into the connection's extra as `physionet_access_point`. Or use source=physionet. "
            f"What S3 said: {error}"
        )

    def not_found(self, path: str) -> NotFound:
        """The error of a file that is not there."""
        return NotFound(
            f"{self.bucket.uri(path)} does not exist. Nothing else is affected. If this goes on, use source=physionet for it."
        )

    def corrupt(self, path: str, sha256: str, what_became: str) -> Corrupt:
        """The error of wrong bytes."""
        return Corrupt(
            f"{path} at {self.bucket.name} does not hash to PhysioNet's checksum {sha256[:12]}…. {what_became} If this goes on, "
            "the file is damaged there: report it to PhysioNet, or use source=physionet."
        )


class PointSpans:
    """A file of an access point in pieces (`Spans`).

    Args:
        point: Which.
        file: Which.
        size: In bytes.
        etag: Of the object that the pieces are of.
    """

    announced = False
    piece = 8 << 20  # as much as is held at a time: a request costs a round trip, and S3 is fast

    def __init__(self, point: AccessPoint, file: File, size: int, etag: str) -> None:
        self._point, self._file, self._etag = point, file, etag
        self.size = size

    def read(self, piece: Piece, turn: Turn) -> None:
        """As `Spans.read`."""
        point, path = self._point, self._file.path
        try:
            came = point.bucket.get_span(path, piece.start, piece.view, etag=self._etag, paced=True)
        except FileNotFoundError:
            raise Changed from None
        except BucketRefused as error:
            turn.answered(serves=False)
            point.blame(path, error)
        except DestinationUnavailable as error:
            raise Throttled(str(error)) from None
        if not came:
            raise NoSpans
        turn.answered(serves=True)
        piece.received = len(piece.view)
        point.received(piece.received)

    def resumed(self) -> None:
        """As `Spans.resumed`."""
        self._point.stats.resumed += 1

    def corrupt(self) -> NoReturn:
        """As `Spans.corrupt`."""
        raise self._point.corrupt(self._file.path, self._file.sha256, "Nothing was stored.")


def access_point_of(dataset: Dataset, given: object, conn_id: str = "aws_default") -> str | None:
    """The access point's ARN (or a bucket's name) of a dataset, or None where none is known.

    Args:
        dataset: Which.
        given: ``physionet_access_point`` of the connection's extra: an ARN or name, or a mapping from ``slug/version`` to
            one; empty = as the dataset declares.
        conn_id: The connection, for the error text.

    Raises:
        InputError: It is neither.
    """
    if isinstance(given, dict):
        given = given.get(dataset.name)
    given = given or dataset.access_point
    if given is not None and not isinstance(given, str):
        raise InputError(
            f"physionet_access_point in the extra of the connection {conn_id} is neither an ARN (or a bucket's name) nor a "
            "mapping from a project such as mimic-cxr-jpg/2.1.0 to one. Nothing was done. Correct it under Admin > Connections."
        )
    return given.strip() if given else None
