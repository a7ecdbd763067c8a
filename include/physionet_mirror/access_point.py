"""PhysioNet's S3 access point as a source: S3 copies inside S3, and no image byte passes through the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.physionet_mirror.dataset import SUMS, Dataset
from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.errors import (
    AccessRefused,
    BucketMissing,
    BucketRefused,
    Corrupt,
    DestinationUnavailable,
    InputError,
    NotFound,
    Throttled,
)
from include.physionet_mirror.source import SourceStats
from include.physionet_mirror.transfer import Copied

if TYPE_CHECKING:
    from include.physionet_mirror.pace import Slot

COPIES_A_CONNECTION = 8
"""Copies under way for each PhysioNet connection that a run may hold: a copy costs PhysioNet's web servers nothing."""


class AccessPoint:
    """A dataset version behind an S3 access point (or in a bucket), copied server-side; safe to share between threads.

    Args:
        source: The access point, by its ARN or a bucket's name, as a `Bucket` whose prefix is the dataset's name.
        bucket: The destination; its credentials make the copies, so they must be allowed to read the source.
        storage_class: S3 storage class of the copies.
    """

    def __init__(self, source: Bucket, bucket: Bucket, storage_class: str = "STANDARD") -> None:
        self._source, self._bucket, self._storage_class = source, bucket, storage_class
        self.stats = SourceStats()

    def __repr__(self) -> str:
        return f"<AccessPoint {self._source.name}>"

    def close(self) -> None:
        """Nothing is kept open."""

    def check_access(self, dataset: Dataset) -> None:
        """Ask for the dataset's checksum file without reading it.

        Raises:
            AccessRefused: This AWS identity has no cloud access at PhysioNet.
            NotFound: It is not there: a wrong access point.
            DestinationUnavailable: S3 cannot say now.
        """
        try:
            found = self._source.head(SUMS)
        except (BucketRefused, BucketMissing):
            raise AccessRefused(
                f"S3 does not let this AWS identity read {self._source.name}. Nothing was copied. To get cloud access: enter "
                "your AWS account at https://physionet.org/settings/cloud/, then ask for access under 'Files' at "
                f"{dataset.page} (the data use agreement must be signed), and allow the role s3:GetObject on "
                f"{self._source.name}/object/*. Or use source=physionet."
            ) from None
        if found is None:
            raise NotFound(
                f"{self._source.uri(SUMS)} does not exist. Nothing was copied. Check the access point in the AWS "
                "connection's extra (`physionet_access_point`), or leave it out."
            )

    def open(self, dataset: Dataset, path: str, sha256: str | None, slot: Slot | None = None) -> Copied:
        """Copy one file, prove it by the SHA-256 that S3 computed, and take it away again where that is wrong.

        Raises:
            NotFound, Corrupt, Throttled: As for a download.
            DestinationError: S3 refused.
        """
        try:
            there = self._source.head(path)
            if there is None:
                raise NotFound(f"{self._source.uri(path)} does not exist. Nothing else is affected.")
            if slot is not None:
                slot.answered = True
            digest = self._bucket.copy_from(
                self._source, there, content_type=dataset.image_type, storage_class=self._storage_class
            )
        except DestinationUnavailable as error:
            self.stats.faults["throttled"] += 1
            raise Throttled(str(error)) from None
        if digest is not None and sha256 is not None and digest != sha256:
            self._bucket.delete([path])
            raise Corrupt(
                f"{path} at {self._source.name} does not hash to PhysioNet's checksum {sha256[:12]}…. The copy was deleted. "
                "If this goes on, the file is damaged there: report it to PhysioNet, or use source=physionet."
            )
        self.stats.received += there.size
        return Copied(there.size)


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
