"""The interface between the transfer and a mover, which moves one file from a source to the bucket."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

from physionet_mirror.errors import SourceError
from physionet_mirror.files import File

Mode = Literal["download", "copy", "through"]
"""How files cross: downloaded from the website, copied inside S3, or from the access point through the worker."""

MOST_AT_ONCE = 400
"""Files under way in one stream at the most, however many connections a run may hold: at the 0.15 s of a copy that is
2,700 a second, three quarters of what S3 takes from one prefix before it answers SlowDown (source: AWS, 3,500 PUT/COPY a
second), and all that one process can ask for."""


def at_once(connections: int, per_connection: int) -> int:
    """Files under way in one stream.

    Args:
        connections: The stream's share of the run's PhysioNet connections.
        per_connection: Files for each of them (`Mover.per_connection`).
    """
    return min(connections * per_connection, max(connections, MOST_AT_ONCE))


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that has been fetched and matches its checksum.

    Attributes:
        size: Size in bytes.
        store: Puts it into the bucket; may be called again after a `DestinationUnavailable`. It must run on the thread
            that fetched the file, before that thread's next fetch, which reuses the memory. If the file is in the bucket
            already (a copy inside S3, an upload of a file too big for memory), it does nothing.
        in_memory: Bytes of the file that are held in memory until it is stored.
    """

    size: int
    store: Callable[[], object] = lambda: None
    in_memory: int = 0


class Turn(Protocol):
    """A fetch's place among those that may run at once; the mover reports to it how the source answers."""

    def answered(self, *, serves: bool) -> None:
        """The source has answered: with the file (``serves``) or with something else."""
        ...

    def wait(self, seconds: float, error: SourceError) -> None:
        """Give up the place for ``seconds``, before the download that ``error`` interrupted is resumed.

        Raises:
            SourceError: ``error`` itself, if the transfer ends meanwhile.
        """
        ...

    @property
    def at_once(self) -> int:
        """Places that there may be."""
        ...

    def leave(self) -> None:
        """Give the place up for good: what is left of the file goes through `another`."""
        ...

    def another(self, wanted: Callable[[], bool] = lambda: True) -> AbstractContextManager[Turn]:
        """Wait for one more place for the same file, and hold it.

        Args:
            wanted: Becomes false when it is no longer wanted.

        Raises:
            SourceUnavailable: The transfer ends meanwhile, or the place is no longer wanted.
        """
        ...


class Alone:
    """The turn of a fetch outside a transfer, with no other fetches to share with."""

    def answered(self, *, serves: bool) -> None:
        """Do nothing."""

    def wait(self, seconds: float, error: SourceError) -> None:  # noqa: ARG002
        """Sleep."""
        time.sleep(seconds)

    @property
    def at_once(self) -> int:
        """As many as a run has connections by default."""
        return 8

    def leave(self) -> None:
        """Do nothing."""

    def another(self, wanted: Callable[[], bool] = lambda: True) -> AbstractContextManager[Turn]:  # noqa: ARG002
        """At once."""
        return nullcontext(self)


ALONE = Alone()


@dataclass
class SourceStats:
    """Counts of a mover's traffic with its source so far; other threads may read them.

    Attributes:
        handshakes: Password checks.
        requests: All requests.
        received: Bytes of files received.
        resumed: Downloads that were resumed after an interruption.
        faults: Faults by reason.
    """

    handshakes: int = 0
    requests: int = 0
    received: int = 0
    resumed: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class Mover(Protocol):
    """One way to move files from the source to the bucket; safe to share between threads."""

    @property
    def stats(self) -> SourceStats:
        """Counts of the traffic with the source."""
        ...

    @property
    def mode(self) -> Mode:
        """Which way that is."""
        ...

    @property
    def per_connection(self) -> int:
        """Files under way at once for each PhysioNet connection that the run may hold."""
        ...

    @property
    def keeps_turn(self) -> bool:
        """Whether a file keeps its slot until it is stored; otherwise it gives it back once it is fetched.

        It gives it back if the slots are the source's connections, which are scarce. S3's are not: there the slots bound
        the files under way, each of which costs memory and pushes the bytes of the others out of the processor's cache.
        """
        ...

    def check(self) -> None:
        """Ask the source for a small file that exists, to probe whether it is up.

        Raises:
            SourceError, DestinationError: It is down, or refuses us.
        """
        ...

    def fetch(self, file: File, turn: Turn) -> Fetched:
        """Fetch one file and check it against its checksum; one attempt.

        Args:
            file: The file.
            turn: Told as soon as the source answers.

        Raises:
            SourceError: Any of its subclasses.
            DestinationError: The bucket cannot take it.
        """
        ...

    def close(self) -> None:
        """Close the connections that are kept open."""
        ...


class KeptMemory:
    """A buffer per thread that is reused from file to file: allocating a new one costs more than hashing the file."""

    _LEAST = 1 << 20  # bytes that a thread's buffer has at least
    _MOST = 4 << 20  # larger buffers are freed once their file is stored

    def __init__(self) -> None:
        self._kept = threading.local()  # .room

    def of(self, size: int) -> memoryview:
        """This thread's buffer, ``size`` bytes of it."""
        room: bytearray | None = getattr(self._kept, "room", None)
        if room is None or len(room) < size:
            room = bytearray(max(size, self._LEAST))
            if size <= self._MOST:
                self._kept.room = room
        return memoryview(room)[:size]
