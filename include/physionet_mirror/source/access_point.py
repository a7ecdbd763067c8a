"""PhysioNet's S3 access point as a source: S3 copies inside S3, and no image byte passes through the worker."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any
from uuid import uuid4

from physionet_mirror.compare import sha256_of
from physionet_mirror.dataset import SUMS, Dataset
from physionet_mirror.errors import (
    AccessRefused,
    BucketMissing,
    BucketRefused,
    Corrupt,
    DestinationError,
    DestinationUnavailable,
    InputError,
    NotFound,
    Throttled,
)
from physionet_mirror.files import File
from physionet_mirror.layout import COPYING
from physionet_mirror.mover import Fetched, SourceStats, Turn
from physionet_mirror.s3.bucket import Bucket, Copy, Stored

log = logging.getLogger(__name__)

COPIES_A_CONNECTION = 8
"""Copies under way for each PhysioNet connection that a run may hold: a copy costs PhysioNet's web servers nothing."""


class AccessPoint:
    """A dataset version behind an S3 access point (or in a bucket), copied server-side; a `Mover`.

    Args:
        source: The access point, by its ARN or a bucket's name, as a `Bucket` whose prefix is the dataset's name.
        bucket: The destination; its credentials make the copies, so they must be allowed to read the source.
        dataset: Whose files.
        storage_class: S3 storage class of the copies.
    """

    per_connection = COPIES_A_CONNECTION

    def __init__(self, source: Bucket, bucket: Bucket, dataset: Dataset, storage_class: str = "STANDARD") -> None:
        self._source, self._bucket, self._dataset, self._storage_class = source, bucket, dataset, storage_class
        self.stats = SourceStats()

    def __repr__(self) -> str:
        return f"<AccessPoint {self._source.name}>"

    def close(self) -> None:
        """Nothing is kept open."""

    def check(self) -> None:
        """Ask for the dataset's checksum file without reading it.

        Raises:
            AccessRefused: This AWS identity has no cloud access at PhysioNet.
            NotFound: It is not there: a wrong access point.
            DestinationUnavailable: S3 cannot say now.
        """
        try:
            found = self._source.head(SUMS)
        except (BucketRefused, BucketMissing) as error:
            raise AccessRefused(
                f"S3 does not let this AWS identity read {self._source.name}. Nothing was copied. To get cloud access: enter "
                "your AWS account at https://physionet.org/settings/cloud/, then ask for access under 'Files' at "
                f"{self._dataset.page} (the data use agreement must be signed), and allow the role s3:GetObject on "
                f"{self._source.name}/object/*. Or use source=physionet. What S3 said: {error}"
            ) from None
        if found is None:
            raise NotFound(
                f"{self._source.uri(SUMS)} does not exist. Nothing was copied. Check the access point in the AWS "
                "connection's extra (`physionet_access_point`), or leave it out."
            )

    def fetch(self, file: File, turn: Turn) -> Fetched:
        """Copy one file and prove it, by the SHA-256 that S3 computed or else by reading it back.

        Wrong bytes never replace what stands under the path, and what somebody else has written is never taken away.

        Raises:
            NotFound, Corrupt, Throttled: As for a download.
            DestinationError: S3 refused.
        """
        try:
            there = self._there(file.path)
            turn.answered(serves=True)
            self._bring(there, file.sha256, self._dataset.image_type)
        except FileNotFoundError:
            raise self._not_found(file.path) from None
        except DestinationUnavailable as error:
            self.stats.faults["throttled"] += 1
            raise Throttled(str(error)) from None
        self.stats.received += there.size
        return Fetched(there.size)

    def _there(self, path: str) -> Stored:
        try:
            there = self._source.head(path)
        except BucketRefused:
            # Who may not list is told 403 of an object that is not there, as of one that is kept from him.
            if self._source.head(SUMS) is None:
                raise
            there = None
        if there is None:
            raise self._not_found(path)
        return there

    def _not_found(self, path: str) -> NotFound:
        return NotFound(
            f"{self._source.uri(path)} does not exist, or S3 keeps this one object from us. Nothing else is affected. If "
            "this goes on, use source=physionet for it."
        )

    def _bring(self, there: Stored, sha256: str, content_type: str) -> None:
        """Copy where nothing stands; where something does, copy beside it, prove that, and only then over it."""
        bucket = self._bucket
        how: dict[str, Any] = {"content_type": content_type, "storage_class": self._storage_class}
        if bucket.head(there.path) is None:
            copy = bucket.copy_from(self._source, there, replace=False, **how)
            if copy is not None:
                self._prove(there.path, there.path, copy, sha256)
                return
        beside = COPYING + uuid4().hex
        copy = bucket.copy_from(self._source, there, beside, **how)
        assert copy is not None  # only replace=False gives none
        self._prove(there.path, beside, copy, sha256)
        try:
            bucket.copy_from(bucket, replace(there, path=beside, etag=copy.etag), there.path, **how)
        finally:
            self._remove(beside, copy)

    def _prove(self, path: str, at: str, copy: Copy, sha256: str) -> None:
        """Raise unless the copy that lies ``at`` its place hashes to ``sha256``; then it is removed, if it is still the one that was written."""
        if (copy.sha256 or sha256_of(self._bucket, at)) == sha256:
            return
        removed = self._remove(at, copy)
        raise Corrupt(
            f"{path} at {self._source.name} does not hash to PhysioNet's checksum {sha256[:12]}…. "
            + ("The copy was deleted. " if removed else "The copy could not be deleted, or was replaced meanwhile. ")
            + "If this goes on, the file is damaged there: report it to PhysioNet, or use source=physionet."
        )

    def _remove(self, path: str, copy: Copy) -> bool:
        try:
            return self._bucket.delete_exactly(path, copy.etag)
        except DestinationError as error:
            log.warning("%s was left behind. %s", self._bucket.uri(path), error)
            return False


def access_point_of(dataset: Dataset, override: str | None) -> str:
    """The access point's ARN (or a bucket's name) that a dataset is copied from.

    Raises:
        InputError: PhysioNet offers none for this version, and none is given.
    """
    found = override or dataset.access_point
    if not found:
        raise InputError(
            f"source: PhysioNet is not known to offer an S3 access point for {dataset.name}. Nothing was done. Use "
            "source=physionet, or give its ARN as `physionet_access_point` in the AWS connection's extra."
        )
    return found
