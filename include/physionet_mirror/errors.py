"""Everything that can go wrong, as one tree: what happened, what is unharmed, what to do next.

    MirrorError
    ├── InputError                 a parameter, setting, connection or file list that cannot be worked with
    ├── MetadataError              a table or checksum file that is not what PhysioNet publishes
    ├── SourceError                PhysioNet, or the way to it
    │   ├── CredentialsRefused     401 after a fresh handshake            retrying cannot help
    │   ├── AccessRefused          403, which has many causes             retrying cannot help
    │   ├── Throttled              429, 503, connects that time out: wait longer, use fewer connections
    │   ├── SourceUnavailable      another 5xx, refused, reset, DNS: wait and retry
    │   │   └── Stalled            no byte, or too few of them, for as long as the read time-out
    │   └── FileError              one file, not the server
    │       ├── NotFound           404
    │       ├── FileRefused        403 for this one file, while others are given
    │       ├── Truncated          the body ended early
    │       ├── Corrupt            the bytes do not hash to PhysioNet's checksum
    │       └── NotTheFile         an HTML page where a file should be
    ├── DestinationError           S3, or the way to it
    │   ├── BucketMissing          no such bucket
    │   ├── BucketRefused          credentials, right or request refused  retrying cannot help
    │   ├── ObjectArchived         to be restored before it can be read   retrying cannot help
    │   ├── ObjectLocked           an Object Lock keeps it                retrying cannot help
    │   ├── BucketUnsafe           public: the data use agreement forbids it
    │   └── DestinationUnavailable SlowDown, 5xx, refused, reset
    ├── ImagesFailed               a shard whose other images are stored
    └── VerificationFailed         something selected is missing or wrong

Each class carries its own policy: whether a retry can help, when, whose fault it is, and what to do next. Retry policies,
sensors, metrics, reports and the connection's Test button ask the class and keep no lists of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import ClassVar, Literal

Whose = Literal["user", "source", "file", "destination", "run"]

AGAIN = "Trigger the same run again"
"""What mends most failures: what is stored stays."""


class MirrorError(Exception):
    """Base of all errors that this project raises on purpose; ``str()`` is written for the person who must act.

    Attributes:
        permanent: It stays until a person acts: the task fails at once, whatever retries it has left.
        whose: Whose fault it is: the ``user``'s (params, connections), the ``source``'s (PhysioNet), one ``file``'s, the
            ``destination``'s (S3), or the ``run``'s own.
        retry_delay: When to try again; None = after the task's own ``retry_delay``.
        reason: Short stable words for counting and grouping in reports, e.g. ``not found``; the class's name by default.
        summary: What happened, in a few words.
        next_step: What to do about files that failed for this reason; a sentence or two for the report.
    """

    permanent: ClassVar[bool] = False
    whose: ClassVar[Whose] = "run"
    retry_delay: ClassVar[timedelta | None] = None
    reason: ClassVar[str] = "mirror error"
    summary: ClassVar[str] = "Something went wrong"
    next_step: ClassVar[str] = (
        f"{AGAIN}: it fetches only these images. If it comes back, the log of their shard's task says more."
    )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "reason" not in vars(cls):
            cls.reason = "".join(f" {c.lower()}" if c.isupper() else c for c in cls.__name__).strip()


class InputError(MirrorError, ValueError):
    """A parameter, setting, connection or file list that cannot be worked with."""

    permanent = True
    whose = "user"
    summary = "A parameter, connection or setting cannot be used as it is"


class MetadataError(MirrorError):
    """A table or checksum file that is not what PhysioNet publishes."""

    permanent = True
    whose = "file"
    summary = "A table or checksum file is not what PhysioNet publishes"


class SourceError(MirrorError):
    """PhysioNet, or the way to it.

    Attributes:
        retry_after: The server's wish in seconds, or None where it named none.
    """

    whose: ClassVar[Whose] = "source"
    summary = "PhysioNet did not answer as it should"
    retry_after: float | None = None

    def is_congestion(self, *, answered: bool) -> bool:  # noqa: ARG002
        """Whether fewer requests at once would have helped. ``answered``: the reply to this one had begun."""
        return False


class CredentialsRefused(SourceError):
    """PhysioNet answered 401 to a fresh handshake: wrong user name or password."""

    permanent = True
    summary = "Wrong user name or password"
    next_step = f"Correct user name and password in the connection physionet_default. {AGAIN}."


class AccessRefused(SourceError):
    """PhysioNet answered 403: this account may not read this project.

    It does not say why: the agreement, the credentialing, the training, a withdrawn version, disabled downloads, a blocked
    country. The project's page, opened logged in, does.
    """

    permanent = True
    summary = "PhysioNet refuses this account"
    next_step = (
        "Open the dataset's page at PhysioNet, logged in with the account of physionet_default: it says what is missing. "
        f"{AGAIN}."
    )


class SourceUnavailable(SourceError):
    """PhysioNet cannot be reached or answers 5xx (but 503); nothing is wrong with the request."""

    retry_delay = timedelta(minutes=3)
    summary = "PhysioNet cannot be reached"
    next_step = f"PhysioNet could not be reached; see https://physionet.org. {AGAIN} when it is back."


class Stalled(SourceUnavailable):
    """No byte arrived, or fewer than the least speed gives, for as long as the read time-out."""

    summary = "PhysioNet does not answer"
    next_step = f"PhysioNet stopped sending. {AGAIN}, with fewer connections if it comes back."

    def is_congestion(self, *, answered: bool) -> bool:
        """A request that is never answered is held back; a body that stops is one connection's trouble."""
        return not answered


class Throttled(SourceError):
    """PhysioNet asks for less: 429, 503, or connects that time out; congestion, and never one file's fault."""

    retry_delay = timedelta(minutes=10)
    summary = "PhysioNet asks for patience"
    next_step = f"PhysioNet asked for less. {AGAIN} with fewer connections."

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def is_congestion(self, *, answered: bool) -> bool:  # noqa: ARG002
        """Always."""
        return True


class FileError(SourceError):
    """One file cannot be had as PhysioNet's checksums describe it; the server itself is well."""

    whose = "file"
    summary = "A file cannot be had as PhysioNet's checksums describe it"


class NotFound(FileError):
    """404."""

    summary = "PhysioNet has no such file"
    next_step = (
        "PhysioNet lists these files in its checksums but does not serve them. Run it again in a day; if it stays, tell "
        "PhysioNet's support and go on without them."
    )


class FileRefused(FileError):
    """403 for this one file, while the access point gives others."""

    summary = "The access point refuses a file"
    next_step = (
        "PhysioNet's access point refuses these files, although it gives others: they are not there, or kept back. Fetch them "
        "with source=physionet; if that fails too, tell PhysioNet's support."
    )


class Truncated(FileError):
    """The body ended before Content-Length bytes had come."""

    summary = "The connection ended early"
    next_step = f"The connection ended early in every attempt. {AGAIN}, with fewer connections if it comes back."


class Corrupt(FileError):
    """The bytes do not hash to the SHA-256 that PhysioNet publishes."""

    summary = "The bytes do not hash to PhysioNet's checksum"
    next_step = (
        "In several attempts, PhysioNet's bytes did not hash to PhysioNet's checksum. Run it again in a day; if it stays, "
        "tell PhysioNet's support: the file there is damaged."
    )


class NotTheFile(FileError):
    """An HTML page came where a file should be (a login or maintenance page with status 200)."""

    summary = "A web page came in place of the file"
    next_step = f"PhysioNet answered with a web page, as it does in maintenance. {AGAIN} later."


class DestinationError(MirrorError):
    """S3, or the way to it."""

    whose = "destination"
    summary = "S3 did not answer as it should"


class BucketMissing(DestinationError):
    """The bucket does not exist."""

    permanent = True
    summary = "The bucket does not exist"
    next_step = f"Check the param bucket and the connection aws_default, or create the bucket. {AGAIN}."


class BucketRefused(DestinationError):
    """S3 refuses the credentials, the right, or the form of the request."""

    permanent = True
    summary = "S3 refuses"
    next_step = f"S3's own words, in the detail of each image, say what it refuses. Put that right. {AGAIN}."


class ObjectArchived(DestinationError):
    """The object lies in an archive (GLACIER, DEEP_ARCHIVE, an archive tier): it cannot be read before it is restored."""

    permanent = True
    summary = "An object is archived"
    next_step = (
        "These objects are there, but archived: they can be read back only after a restore. Verify them with checksum, "
        "which reads nothing, or restore them first: "
        "https://docs.aws.amazon.com/AmazonS3/latest/userguide/restoring-objects.html"
    )


class ObjectLocked(DestinationError):
    """An Object Lock (retention or legal hold) keeps the object from being deleted; no right of a role is missing."""

    permanent = True
    summary = "An Object Lock keeps an object"


class BucketUnsafe(DestinationError):
    """The bucket is public, which the data use agreement forbids."""

    permanent = True
    summary = "The bucket is open to the public"


class DestinationUnavailable(DestinationError):
    """S3 asks to slow down, answers 5xx or cannot be reached."""

    retry_delay = timedelta(minutes=1)
    summary = "S3 cannot be reached"
    next_step = f"S3 could not take the images. {AGAIN}; if it comes back, check endpoint and network."


class ImagesFailed(MirrorError):
    """Some images of a shard could not be had after all attempts; everything else of it is stored."""

    retry_delay = timedelta(seconds=30)
    summary = "Some images could not be had"


class VerificationFailed(MirrorError):
    """Something that was selected is missing or wrong in the bucket."""

    permanent = True
    summary = "Something that was selected is missing or wrong"


def all_errors(below: type[MirrorError] = MirrorError) -> Iterator[type[MirrorError]]:
    """Each class of the tree, the more special before the more general."""
    for child in below.__subclasses__():
        yield from all_errors(child)
    yield below


def next_steps() -> dict[str, str]:
    """What to do about files that failed, by the reason that reports give."""
    return {error.reason: error.next_step for error in all_errors() if error.next_step != MirrorError.next_step}
