"""Everything that can go wrong, as one tree: what happened, what is unharmed, what to do next.

    MirrorError
    ├── InputError                 a parameter, setting, connection or file list that cannot be worked with
    ├── MetadataError              a table or checksum file that is not what PhysioNet publishes
    ├── SourceError                PhysioNet, or the way to it
    │   ├── CredentialsRefused     401 after a fresh handshake            retrying cannot help
    │   ├── AccessRefused          403, which has many causes             retrying cannot help
    │   ├── Throttled              429, 503, connects that time out: wait longer, use fewer connections
    │   ├── SourceUnavailable      another 5xx, refused, reset, DNS: wait and retry
    │   │   └── Stalled            no bytes, or too few, within the read time-out
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
    ├── ImagesFailed               some images of a shard; its other images are stored
    └── VerificationFailed         something selected is missing or wrong

Each class carries its own policy: whether a retry can help, when, whose fault it is, and what to do next. Retry policies,
sensors, metrics, reports and the connection's Test button take it from the class and keep no lists of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import ClassVar, Literal

Whose = Literal["user", "source", "file", "destination", "run"]

AGAIN = "Trigger the same run again"
"""The remedy for most failures: images that are stored stay stored."""


class MirrorError(Exception):
    """Base of all errors that this project raises on purpose; ``str()`` is written for the person who must act.

    Attributes:
        permanent: Only a person can fix it: the task fails at once, whatever retries it has left.
        whose: Where the fault lies: with the ``user`` (params, connections), the ``source`` (PhysioNet), one ``file``,
            the ``destination`` (S3), or the ``run`` itself.
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
        f"{AGAIN}: it fetches only these. If it comes back, the log of their shard's task says more."
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
        retry_after: Seconds that the server asked to wait, or None.
    """

    whose: ClassVar[Whose] = "source"
    summary = "PhysioNet did not answer as it should"
    retry_after: float | None = None

    def is_congestion(self, *, answered: bool) -> bool:  # noqa: ARG002
        """Whether fewer simultaneous requests would have helped. ``answered``: the reply to this one had begun."""
        return False


class CredentialsRefused(SourceError):
    """PhysioNet answered 401 to a fresh handshake: wrong user name or password."""

    permanent = True
    summary = "Wrong user name or password"
    next_step = f"Correct user name and password in the PhysioNet connection. {AGAIN}."


class AccessRefused(SourceError):
    """PhysioNet answered 403: this account may not read this project.

    The reply does not say why: the agreement, the credentialing, the training, a withdrawn version, disabled downloads or
    a blocked country. The project's page does, to a user who is logged in.
    """

    permanent = True
    summary = "PhysioNet refuses this account"
    next_step = (
        "Open the dataset's page at PhysioNet, logged in with the account of the PhysioNet connection: it says what is missing. "
        f"{AGAIN}."
    )


class SourceUnavailable(SourceError):
    """PhysioNet cannot be reached or answers 5xx (except 503); nothing is wrong with the request."""

    retry_delay = timedelta(minutes=3)
    summary = "PhysioNet cannot be reached"
    next_step = f"PhysioNet could not be reached; see https://physionet.org. {AGAIN} when it is back."


class Stalled(SourceUnavailable):
    """No bytes arrived within the read time-out, or fewer than the least speed allows."""

    summary = "PhysioNet does not answer"
    next_step = f"PhysioNet stopped sending. {AGAIN}, with fewer connections if it comes back."

    def is_congestion(self, *, answered: bool) -> bool:
        """True if the request was never answered; a body that stops is a fault of one connection."""
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
    """One file cannot be fetched as PhysioNet's checksums describe it; the server itself is fine."""

    whose = "file"
    summary = "A file cannot be fetched as PhysioNet's checksums describe it"


class NotFound(FileError):
    """404."""

    summary = "PhysioNet has no such file"
    next_step = (
        "PhysioNet lists these files in its checksums but does not serve them. Run it again in a day; if they are still "
        "missing, tell PhysioNet's support and go on without them."
    )


class FileRefused(FileError):
    """403 for this one file, while the access point serves others."""

    summary = "The access point refuses a file"
    next_step = (
        "PhysioNet's access point refuses these files, although it serves others: they are missing or withheld. Fetch them "
        "with source=physionet; if that fails too, tell PhysioNet's support."
    )


class Truncated(FileError):
    """The body ended before Content-Length bytes had arrived."""

    summary = "The connection ended early"
    next_step = f"The connection ended early in every attempt. {AGAIN}, with fewer connections if it comes back."


class Corrupt(FileError):
    """The bytes do not hash to the SHA-256 that PhysioNet publishes."""

    summary = "The bytes do not hash to PhysioNet's checksum"
    next_step = (
        "In several attempts, PhysioNet's bytes did not hash to PhysioNet's checksum. Run it again in a day; if it happens "
        "again, tell PhysioNet's support: the file there is damaged."
    )


class NotTheFile(FileError):
    """An HTML page came where a file should be (a login or maintenance page with status 200)."""

    summary = "A web page came instead of the file"
    next_step = f"PhysioNet answered with a web page, as it does during maintenance. {AGAIN} later."


class DestinationError(MirrorError):
    """S3, or the way to it."""

    whose = "destination"
    summary = "S3 did not answer as it should"


class BucketMissing(DestinationError):
    """The bucket does not exist."""

    permanent = True
    summary = "The bucket does not exist"
    next_step = f"Check the param bucket and the AWS connection, or create the bucket. {AGAIN}."


class BucketRefused(DestinationError):
    """S3 refuses the credentials or the form of the request, or a permission is missing."""

    permanent = True
    summary = "S3 refuses"
    next_step = f"S3's own words, in the detail of each file, say what it refuses. Put that right. {AGAIN}."


class ObjectArchived(DestinationError):
    """The object is archived (GLACIER, DEEP_ARCHIVE, an archive tier) and cannot be read before it is restored."""

    permanent = True
    summary = "An object is archived"
    next_step = (
        "These objects are there, but archived: they can be read back only after a restore. Verify them with checksum, "
        "which reads nothing, or restore them first: "
        "https://docs.aws.amazon.com/AmazonS3/latest/userguide/restoring-objects.html"
    )


class ObjectLocked(DestinationError):
    """An Object Lock (retention or legal hold) keeps the object from being deleted; no permission is missing."""

    permanent = True
    summary = "An Object Lock keeps an object"


class BucketUnsafe(DestinationError):
    """The bucket is public, which the data use agreement forbids."""

    permanent = True
    summary = "The bucket is open to the public"


class DestinationUnavailable(DestinationError):
    """S3 answers SlowDown or another 5xx, or cannot be reached."""

    retry_delay = timedelta(minutes=1)
    summary = "S3 cannot be reached"
    next_step = f"S3 could not take the files. {AGAIN}; if it comes back, check endpoint and network."


class ImagesFailed(MirrorError):
    """Some files of a shard could not be fetched after all attempts; the others are stored."""

    retry_delay = timedelta(seconds=30)
    summary = "Some files could not be fetched"


class VerificationFailed(MirrorError):
    """Something that was selected is missing or wrong in the bucket."""

    permanent = True
    summary = "Something that was selected is missing or wrong"


def all_errors(below: type[MirrorError] = MirrorError) -> Iterator[type[MirrorError]]:
    """Each class of the tree, the more specific before the more general."""
    for child in below.__subclasses__():
        yield from all_errors(child)
    yield below


def next_steps() -> dict[str, str]:
    """What to do about files that failed, by reason as in the reports."""
    return {error.reason: error.next_step for error in all_errors() if error.next_step != MirrorError.next_step}
