"""The mover that copies inside S3: no byte of a file passes the worker."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from uuid import uuid4

from physionet_mirror.compare import sha256_of
from physionet_mirror.errors import BucketRefused, Corrupt, DestinationError, DestinationUnavailable, Throttled
from physionet_mirror.files import File
from physionet_mirror.layout import COPYING
from physionet_mirror.mover import Fetched, Mode, Turn
from physionet_mirror.s3.bucket import Bucket, Copy, Listed, Stored, copies_whole
from physionet_mirror.source.access_point import COPIES_A_CONNECTION, AccessPoint
from physionet_mirror.source.from_point import FromPoint

log = logging.getLogger(__name__)

_UNKNOWN = datetime.min.replace(tzinfo=UTC)


class ServerSideCopy(FromPoint):
    """Files of an access point, copied by S3 itself; a `Mover`.

    A copy is proven by the SHA-256 that S3 computed, or else by reading it back. Wrong bytes never replace what stands
    under the path, and what somebody else has written is never taken away. In the ordinary case that is one request: a
    copy on condition that nothing stands there, deleted on condition of its ETag if it is wrong. Where something stands,
    where the store keeps to no conditions, and above the size of one CopyObject (which goes in parts, without
    conditions), the copy is made beside it under a name of its own, proven, and then copied over it.

    Args:
        point: The access point.
        bucket: The destination; its keys make the copies, so they must be allowed to read the source.
        storage_class: S3 storage class of the copies.
        conditional: The destination keeps to If-None-Match when it copies and to If-Match when it deletes.
    """

    mode: Mode = "copy"
    per_connection = COPIES_A_CONNECTION
    keeps_turn = True

    def __init__(
        self, point: AccessPoint, bucket: Bucket, storage_class: str = "STANDARD", *, conditional: bool = False
    ) -> None:
        super().__init__(point, bucket, storage_class)
        self._conditional = conditional

    def fetch(self, file: File, turn: Turn) -> Fetched:
        """Copy one file and prove it.

        Raises:
            NotFound, FileRefused, Corrupt, Throttled: As for a download.
            AccessRefused: The access point is closed to these keys.
            DestinationError: The destination refuses.
        """
        try:
            there: Stored | Listed
            there = self._point.stat(file.path) if file.bytes is None else Listed(file.path, file.bytes, "", _UNKNOWN)
            self._bring(there, file.sha256, turn)
        except FileNotFoundError:
            raise self._point.not_found(file.path) from None
        except DestinationUnavailable as error:
            raise Throttled(str(error)) from None
        self._point.received(there.size)
        return Fetched(there.size)

    def _bring(self, there: Stored | Listed, sha256: str, turn: Turn) -> None:
        """Copy where nothing stands; where something does, copy beside it, prove that, and only then over it."""
        if self._conditional and copies_whole(there.size):
            copy = self._copy(there, there.path, turn, replace=False)
            if copy is not None:
                if not self._is_right(there.path, copy, sha256):
                    raise self._wrong(there.path, sha256, self._remove(there.path, copy))
                return
        beside = COPYING + uuid4().hex
        copy = self._copy(there, beside, turn)
        assert copy is not None  # only replace=False gives none
        right = removed = False
        try:
            right = self._is_right(beside, copy, sha256)
            if right:
                proven = Listed(beside, there.size, copy.etag, _UNKNOWN)
                self._bucket.copy_from(self._bucket, proven, there.path, **self._how)
        finally:
            removed = self._remove(beside)
        if not right:
            raise self._wrong(there.path, sha256, removed)

    def _copy(self, there: Stored | Listed, path: str, turn: Turn, *, replace: bool = True) -> Copy | None:
        try:
            copy = self._bucket.copy_from(self._point.bucket, there, path, replace=replace, paced=True, **self._how)
        except (BucketRefused, FileNotFoundError) as error:
            turn.answered(serves=False)
            self._point.stat(there.path)  # raises where the source is what refuses
            raise error from None
        turn.answered(serves=True)
        return copy

    def _is_right(self, at: str, copy: Copy, sha256: str) -> bool:
        return (copy.sha256 or sha256_of(self._bucket, at)) == sha256

    def _wrong(self, path: str, sha256: str, removed: bool) -> Corrupt:
        what = "The copy was deleted." if removed else "The copy could not be deleted, or was replaced meanwhile."
        return self._point.corrupt(path, sha256, what)

    def _remove(self, path: str, copy: Copy | None = None) -> bool:
        """Delete what stands under a path, with ``copy`` only while it is that one; whether it was."""
        try:
            if copy is not None:
                return self._bucket.delete_exactly(path, copy.etag)
            self._bucket.delete([path])
        except DestinationError as error:
            log.warning("%s was left behind. %s", self._bucket.uri(path), error)
            return False
        return True
