"""What the two movers that take files from the access point have in common."""

from __future__ import annotations

from typing import Any

from physionet_mirror.mover import SourceStats
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.access_point import AccessPoint


class FromPoint:
    """All of a `Mover` but its ``fetch``.

    Args:
        point: The access point.
        bucket: The destination.
        storage_class: S3 storage class of what is stored.
    """

    def __init__(self, point: AccessPoint, bucket: Bucket, storage_class: str = "STANDARD") -> None:
        self._point, self._bucket = point, bucket
        self._how: dict[str, Any] = {"content_type": point.dataset.image_type, "storage_class": storage_class}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} from {self._point!r}>"

    @property
    def stats(self) -> SourceStats:
        """The access point's."""
        return self._point.stats

    def check(self) -> None:
        """Ask for the checksum file; raises as `AccessPoint.check_access`."""
        self._point.check_access()

    def close(self) -> None:
        """Nothing is kept open."""
