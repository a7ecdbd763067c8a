"""A file of a dataset, as everything between the manifest and the bucket speaks of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class File:
    """One file of a dataset version.

    Attributes:
        path: Below the version's root at PhysioNet, and below the prefix in the bucket.
        sha256: What PhysioNet publishes for it, hex.
        bytes: Its size, where the source has listed it.
    """

    path: str
    sha256: str
    bytes: int | None = field(default=None, compare=False)
