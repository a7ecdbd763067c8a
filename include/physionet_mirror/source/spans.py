"""Pieces of one file: what a source offers if any span of a file can be asked for."""

from __future__ import annotations

from typing import NoReturn, Protocol

from physionet_mirror.mover import Turn


class NoSpans(Exception):
    """The source answers with the whole file, whatever part of it is asked for."""


class Changed(Exception):
    """What is there now is another file than the first pieces were of."""


class Piece:
    """A span of a file on its way into memory.

    Args:
        start: Its first byte's place in the file.
        view: Where its bytes go.

    Attributes:
        received: Bytes that have come.
    """

    __slots__ = ("received", "start", "view")

    def __init__(self, start: int, view: memoryview) -> None:
        self.start, self.view, self.received = start, view, 0


class Spans(Protocol):
    """One file of a source; safe to share between threads.

    Attributes:
        size: Of the file, in bytes.
        piece: Bytes to ask for at a time: enough that a round trip counts little.
        announced: Whether the source says beforehand that it gives pieces.
    """

    size: int
    piece: int
    announced: bool

    def read(self, piece: Piece, turn: Turn) -> None:
        """Read what is missing of a piece; one attempt, and what came of it stays.

        Raises:
            NoSpans, Changed: See there.
            SourceError: Any of its subclasses.
        """
        ...

    def resumed(self) -> None:
        """Count that the file goes on where an earlier attempt ended."""
        ...

    def corrupt(self) -> NoReturn:
        """Raise `Corrupt`: all of it came, and it does not match its checksum."""
        ...
