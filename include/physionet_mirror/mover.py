"""How one file crosses from a source to the bucket: what the transfer asks of a mover, and what it tells it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from physionet_mirror.errors import SourceError
from physionet_mirror.files import File


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that has been fetched and proven.

    Attributes:
        size: Bytes.
        store: Puts it into the bucket; may be called again after a `DestinationUnavailable`. It must run on the thread
            that fetched the file, before that thread's next fetch, whose bytes take the same place in memory. Where the
            file lies in the bucket already (a copy inside S3, an upload of a file too big for memory), it does nothing.
    """

    size: int
    store: Callable[[], object] = lambda: None


class Turn(Protocol):
    """One fetch's place among those that may run at once; the mover tells it how the source answers."""

    def answered(self, *, serves: bool) -> None:
        """The source has answered: it sends the file (``serves``), or says something else."""
        ...

    def wait(self, seconds: float, error: SourceError) -> None:
        """Give the place to others for so long, before what ``error`` has broken off is resumed.

        Raises:
            SourceError: ``error`` itself, where the transfer ends meanwhile.
        """
        ...


class Alone:
    """The turn of a fetch outside a transfer: nobody else wants its place."""

    def answered(self, *, serves: bool) -> None:
        """Nobody wants to know."""

    def wait(self, seconds: float, error: SourceError) -> None:  # noqa: ARG002
        """Sleep."""
        time.sleep(seconds)


ALONE = Alone()


@dataclass
class SourceStats:
    """What a mover has asked of its source so far; read by other threads.

    Attributes:
        handshakes: Password checks.
        requests: All of them.
        received: Bytes of files.
        resumed: Files that were resumed where they broke off.
        faults: By reason.
    """

    handshakes: int = 0
    requests: int = 0
    received: int = 0
    resumed: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class Mover(Protocol):
    """One way for files to cross; safe to share between threads."""

    @property
    def stats(self) -> SourceStats:
        """What was asked of the source."""
        ...

    @property
    def per_connection(self) -> int:
        """Files that may be under way for each connection to PhysioNet that a run may hold."""
        ...

    def check(self) -> None:
        """Ask the source for something small that is there: the one probe of whether it serves.

        Raises:
            SourceError, DestinationError: It does not, or not us.
        """
        ...

    def fetch(self, file: File, turn: Turn) -> Fetched:
        """Fetch one file and prove it; one attempt.

        Args:
            file: Which.
            turn: Is told as soon as the source answers.

        Raises:
            SourceError: Any of its subclasses.
            DestinationError: The bucket cannot take it.
        """
        ...

    def close(self) -> None:
        """Close what is kept open."""
        ...


class KeptMemory:
    """Memory that each thread keeps from one file to the next: to allocate it anew costs more than hashing the file."""

    _LEAST = 1 << 20  # bytes that a thread's memory has
    _MOST = 4 << 20  # and what is given back once its file is stored

    def __init__(self) -> None:
        self._kept = threading.local()  # .room

    def of(self, size: int) -> memoryview:
        """Room for so many bytes, this thread's own."""
        room: bytearray | None = getattr(self._kept, "room", None)
        if room is None or len(room) < size:
            room = bytearray(max(size, self._LEAST))
            if size <= self._MOST:
                self._kept.room = room
        return memoryview(room)[:size]
