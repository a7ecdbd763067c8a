"""Which way a run's files take: downloaded from the website, copied inside S3, or from the access point through the worker."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal
from uuid import uuid4

from physionet_mirror import words
from physionet_mirror.errors import (
    BucketMissing,
    BucketRefused,
    DestinationError,
    DestinationUnavailable,
    InputError,
)
from physionet_mirror.layout import COPYING
from physionet_mirror.mover import Mode
from physionet_mirror.s3 import replies
from physionet_mirror.s3.bucket import Bucket, Listed
from physionet_mirror.source.access_point import AccessPoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """The way that was chosen for a whole run.

    Attributes:
        mode: ``download`` from the website, ``copy`` inside S3, or ``through`` the worker from the access point.
        reason: Why this one, for people.
        keys: With ``copy``: the connection whose keys make the copies.
        conditional: With ``copy``: the destination keeps to If-None-Match when it copies and to If-Match when it deletes.
    """

    mode: Mode = "download"
    reason: str = ""
    keys: str = ""
    conditional: bool = False

    @property
    def source(self) -> Literal["physionet", "s3"]:
        """As the param ``source`` names it."""
        return "physionet" if self.mode == "download" else "s3"

    def __str__(self) -> str:
        return words.source(self.mode, self.reason)

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Way:
        """Of what `to_json` made; the website where it names no known mode."""
        mode = document.get("mode")
        if mode not in ("download", "copy", "through"):
            return cls()
        reason, keys = (str(document.get(name) or "") for name in ("reason", "keys"))
        return cls(mode, reason, keys, document.get("conditional") is True)


def choose(point: AccessPoint, copiers: Mapping[str, Bucket]) -> Way:
    """Try one small file: copy it inside S3, else read it.

    Args:
        point: The access point, with the reader's keys.
        copiers: The destination by the connection whose keys are used; each is tried in turn. None where the access
            point and the destination are not in the same S3.

    Raises:
        AccessRefused: The access point is not open to these keys.
        NotFound: It does not hold this dataset.
        DestinationUnavailable: S3 cannot say now.
    """
    smallest = point.smallest()
    refusals: list[str] = []
    for name, bucket in copiers.items():
        try:
            conditional = _try_copy(point, bucket, smallest)
        except DestinationUnavailable:
            raise
        except (DestinationError, InputError, FileNotFoundError) as error:
            log.info("No copies inside S3 with the keys of %s: %s", name, error)
            refusals.append(f"S3 does not copy with the keys of {name} ({in_short(error)})")
        else:
            return Way("copy", f"{smallest.path} was copied with the keys of {name}", name, conditional)
    try:
        point.bucket.read(smallest.path)
    except (BucketRefused, BucketMissing, FileNotFoundError) as error:
        raise point.refused(error) from None
    return Way("through", "; ".join(refusals) or "the access point and the bucket are not in the same S3")


def _try_copy(point: AccessPoint, bucket: Bucket, file: Listed) -> bool:
    """Copy a file to a place of its own, and delete it; whether S3 keeps to conditions of either.

    Raises:
        BucketRefused: These keys may not copy, or may not delete: a copy that turns out wrong must go.
    """
    path = COPYING + uuid4().hex
    how: dict[str, Any] = {"content_type": "text/plain"}
    copy = bucket.copy_from(point.bucket, file, path, **how)
    assert copy is not None  # only replace=False gives none
    try:
        stood = bucket.copy_from(point.bucket, file, path, **how, replace=False) is None
        return bucket.deletes_if_match(path) and stood
    finally:
        try:
            bucket.delete([path])
        except DestinationError as error:
            log.warning("%s was left behind. %s", bucket.uri(path), error)


def in_short(error: Exception) -> str:
    """S3's own words of a refusal where it said any, else its code."""
    whole = str(error)
    if said := re.search(r'S3 says: "([^"]+)"', whole):
        return said[1].rstrip(".")
    return replies.code_in(whole) or whole.partition(". ")[0]
