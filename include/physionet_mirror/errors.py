"""Everything that can go wrong, as one tree: what happened, what is unharmed, what to do next.

    MirrorError
    ├── InputError                 a parameter, connection or file list that cannot be worked with; found before any work
    ├── MetadataError              a table or checksum file that is not what PhysioNet publishes
    ├── SourceError                PhysioNet, or the way to it
    │   ├── CredentialsRefused     401 after a fresh handshake            retrying cannot help
    │   ├── AccessRefused          403, which has many causes             retrying cannot help
    │   ├── Throttled              429, 503 with Retry-After, connects that time out: wait longer, use fewer connections
    │   ├── SourceUnavailable      5xx, refused, reset, DNS: wait and retry
    │   │   └── Stalled            no byte for longer than the read time-out
    │   └── FileError              one file, not the server
    │       ├── NotFound           404
    │       ├── Truncated          the body ended early
    │       ├── Corrupt            the bytes do not hash to PhysioNet's checksum
    │       └── NotTheFile         an HTML page where a file should be
    ├── DestinationError           S3, or the way to it
    │   ├── BucketMissing          no such bucket
    │   ├── BucketRefused          AccessDenied                           retrying cannot help
    │   ├── BucketUnsafe           public: the data use agreement forbids it
    │   └── DestinationUnavailable SlowDown, 5xx, refused, reset
    ├── ImagesFailed               a shard whose other images are stored
    └── VerificationFailed         something selected is missing or wrong

Retry policies, exit codes and report reasons are all built on these classes.
"""

from __future__ import annotations


class MirrorError(Exception):
    """Base of all errors that this project raises on purpose; ``str()`` is written for the person who must act."""

    @property
    def reason(self) -> str:
        """Short stable word for counting and grouping in reports, e.g. ``not found``."""
        name = type(self).__name__
        return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


class InputError(MirrorError, ValueError):
    """A parameter, connection or file list that cannot be worked with."""


class MetadataError(MirrorError):
    """A table or checksum file that is not what PhysioNet publishes."""


class SourceError(MirrorError):
    """PhysioNet, or the way to it."""


class CredentialsRefused(SourceError):
    """PhysioNet answered 401 to a fresh handshake: wrong user name or password."""


class AccessRefused(SourceError):
    """PhysioNet answered 403: this account may not read this project.

    It does not say why: the agreement, the credentialing, the training, a withdrawn version, disabled downloads, a blocked
    country. The project's page, opened logged in, does.
    """


class SourceUnavailable(SourceError):
    """PhysioNet cannot be reached or answers 5xx; nothing is wrong with the request."""


class Stalled(SourceUnavailable):
    """No byte arrived for longer than the read time-out."""


class Throttled(SourceError):
    """PhysioNet asks for less: 429, 503 with Retry-After, or connects that time out.

    ``retry_after`` is the server's wish in seconds, or None where it named none.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FileError(SourceError):
    """One file cannot be had as PhysioNet's checksums describe it; the server itself is well."""


class NotFound(FileError):
    """404."""


class Truncated(FileError):
    """The body ended before Content-Length bytes had come."""


class Corrupt(FileError):
    """The bytes do not hash to the SHA-256 that PhysioNet publishes."""


class NotTheFile(FileError):
    """An HTML page came where a file should be (a login or maintenance page with status 200)."""


class DestinationError(MirrorError):
    """S3, or the way to it."""


class BucketMissing(DestinationError):
    """The bucket does not exist."""


class BucketRefused(DestinationError):
    """S3 answered AccessDenied (or refused the keys)."""


class BucketUnsafe(DestinationError):
    """The bucket is public, which the data use agreement forbids."""


class DestinationUnavailable(DestinationError):
    """S3 asks to slow down, answers 5xx or cannot be reached."""


class ImagesFailed(MirrorError):
    """Some images of a shard could not be had after all attempts; everything else of it is stored."""


class VerificationFailed(MirrorError):
    """Something that was selected is missing or wrong in the bucket."""
