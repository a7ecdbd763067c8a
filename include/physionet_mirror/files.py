"""`File`, the type for a file of a dataset everywhere between the manifest and the bucket."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class File:
    """One file of a dataset version.

    Attributes:
        path: Path below the version's root at PhysioNet, and below the prefix in the bucket.
        sha256: The SHA-256 that PhysioNet publishes for it, in hex.
        bytes: Its size, if the source has listed it.
    """

    path: str
    sha256: str
    bytes: int | None = field(default=None, compare=False)
