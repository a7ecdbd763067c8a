"""The body of one file: read, resumed where it breaks off, and proven when it ends."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Iterator
from typing import NoReturn

from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import SourceError, SourceUnavailable, Stalled, Throttled, Truncated
from physionet_mirror.mover import Turn
from physionet_mirror.source import replies
from physionet_mirror.source.session import Session
from physionet_mirror.source.spans import Changed, NoSpans, Piece
from physionet_mirror.wire import PIECE, Answer

log = logging.getLogger(__name__)

RESUMABLE = 1 << 20
"""Files above this size in bytes are resumed with Range; smaller ones are cheaper to begin anew."""

BIG = 32 << 20
"""Files above this size in bytes are never held in memory, and an outage amid one is waited for."""

LEAST_SPEED = 1024
"""Bytes a second, over a read time-out, below which a download is ended as stalled. On the worst days that users report,
PhysioNet gives a connection forty times as much (0.04 MB/s)."""

_CHUNK = 1 << 16
_LOOK = 0.1  # seconds after which what has come is counted: the pace is measured by it
RESUMES = 1, 2, 4, 8, 16, 30, 30
"""Seconds before the tries in a row to resume a big file."""

_RESUMES_OF_SMALL = RESUMES[:3]
_LONGEST_PAUSE = 300.0  # seconds that a Retry-After may hold up a resume; what asks for more ends the download


class Body:
    """A file on its way: iterate once, or read it whole into memory.

    The last act of either is to compare the hash of all bytes with PhysioNet's: whoever keeps nothing unless it ends
    without an exception never keeps a wrong byte. An interrupted file above 1 MiB is resumed, a few times in a row and
    later each time; a resume that brought a MiB begins a new row. An outage is waited for amid a big file only: a smaller
    one is begun anew when it is over.

    Args:
        session: Which has asked for it.
        dataset: Whose file it is.
        path: Of the file.
        sha256: What it must hash to (hex); None only for the checksum file itself.
        answer: To the request for all of it.
        turn: Waits before a resume.

    Attributes:
        size: Bytes that PhysioNet announced, or None.
    """

    def __init__(
        self, session: Session, dataset: Dataset, path: str, sha256: str | None, answer: Answer, turn: Turn
    ) -> None:
        self.size = answer.length
        self._session, self._dataset, self._path, self._sha256 = session, dataset, path, sha256
        self._answer, self._turn = answer, turn
        self._etag = answer.headers.get("etag")
        self._waits = RESUMES if self.size is not None and self.size > BIG else _RESUMES_OF_SMALL
        self._in_vain = 0  # resumes in a row
        self._received = self._begun = 0  # bytes, in all and when the present answer began

    def __iter__(self) -> Iterator[bytes]:
        """Its bytes in chunks of 64 KiB, in bounded memory.

        Raises:
            SourceError: Any of its subclasses.
        """
        digest = hashlib.sha256()
        chunk = memoryview(bytearray(_CHUNK))
        while size := self._next(chunk):
            data = bytes(chunk[:size])
            digest.update(data)
            yield data
        self._prove(digest.hexdigest())

    def read_into(self, memory: memoryview) -> None:
        """All of its bytes, of which there are as many as ``memory`` takes.

        Raises:
            SourceError: Any of its subclasses.
        """
        digest = hashlib.sha256()
        for at in range(0, len(memory), PIECE):
            piece = memory[at : at + PIECE]
            self._next(piece)
            digest.update(piece)
        self._prove(digest.hexdigest())

    def spans(self) -> WebsiteSpans | None:
        """The same file in pieces; None if its size or its ETag does not allow that."""
        if self.size is None or self._sha256 is None or not self._etag or self._etag.startswith("W/"):
            return None
        spans = WebsiteSpans(self._session, self._dataset, self._path, self._sha256, self.size, self._etag)
        # Where the file itself was asked for, the server has to notice first that nobody reads it.
        spans.announced = self._answer.complete and self._answer.headers.get("accept-ranges") == "bytes"
        return spans

    def fill(self, view: memoryview) -> int:
        """What comes next, as much as the view takes; without a resume and without a proof.

        Raises:
            Truncated, Stalled: The answer broke off or came to a halt; what came of this view is lost.
        """
        begun = self._received
        self._read(view, begun)
        return self._received - begun

    def close(self) -> None:
        """End it; before its end, its connection is closed."""
        self._answer.close()

    def _prove(self, digest: str) -> None:
        if self._sha256 not in (None, digest):
            self._session.fault(replies.corrupt(self._path, self._sha256 or ""))

    def _next(self, view: memoryview) -> int:
        """Fill the view with what comes next; less than its length only at the file's end, and then 0 in the end."""
        begun = self._received
        while True:
            try:
                self._read(view, begun)
            except (Truncated, Stalled) as error:
                self._resume(error)
            else:
                return self._received - begun

    def _read(self, view: memoryview, begun: int) -> None:
        """As `_next`, without a resume: fill the view from where it is filled to, ``begun`` being its first byte's place.

        Raises:
            Truncated, Stalled: The answer broke off or came to a halt; what came before stays in the view.
        """
        answer, session = self._answer, self._session
        marked, since = self._received, time.monotonic()
        try:
            while (at := self._received - begun) < len(view):
                before = answer.received
                try:
                    received = answer.fill(view[at:], _LOOK)
                finally:
                    if came := answer.received - before:
                        self._received += came
                        session.received(came)
                if not received:
                    if not answer.complete:
                        raise ConnectionError
                    return
                seconds = time.monotonic() - since
                if (size := self._received - marked) >= _CHUNK:
                    marked, since = self._received, since + seconds
                elif seconds > session.read_timeout and size < LEAST_SPEED * seconds:
                    answer.close()
                    session.fault(replies.stalled(self._path, f"{size:,} bytes came in {seconds:.0f} s"))
        except TimeoutError:
            answer.close()
            session.fault(replies.stalled(self._path, f"no byte came for {session.read_timeout:g} s"))
        except OSError:
            answer.close()
            left = None if self.size is None else self.size - self._begun
            session.fault(replies.truncated(self._path, self._received - self._begun, left))

    def _resume(self, broken: SourceError) -> None:
        """Ask for the rest, provided that it is still the same file. Raises ``broken`` where that is of no use."""
        if self._received - self._begun >= RESUMABLE:
            self._in_vain = 0
        resumable = self.size is not None and self.size > RESUMABLE and self._etag is not None and self._received
        while resumable and self._in_vain < len(self._waits):
            wait_to_resume(self._turn, self._waits[self._in_vain], broken)
            self._in_vain += 1
            try:
                self._answer, self._begun = self._ask_for_the_rest(), self._received
            except (Throttled, SourceUnavailable) as error:
                if self._waits is not RESUMES:
                    raise
                broken = error
            else:
                return
        raise broken

    def _ask_for_the_rest(self) -> Answer:
        received, size = self._received, self.size
        self._session.resumed()
        log.debug("resuming %s at byte %d of %d", self._path, received, size)
        assert self._etag is not None
        condition = {"Range": f"bytes={received}-", "If-Range": self._etag}
        answer = self._session.ask("GET", self._dataset, self._path, condition, self._turn)
        assert size is not None
        if answer.status != 206 or answer.headers.get("content-range") != f"bytes {received}-{size - 1}/{size}":
            answer.close()
            self._session.fault(replies.changed(self._path))
        return answer


class WebsiteSpans:
    """A file of PhysioNet's website in pieces (`Spans`).

    Args:
        session: Asks for it.
        dataset: Whose file it is.
        path: Of the file.
        sha256: What it must hash to (hex).
        size: In bytes.
        etag: Of the file that the pieces are of.
    """

    announced = False
    piece = 1 << 20  # 1.6 s at PhysioNet's pace, of which a round trip is a twenty-fifth

    def __init__(self, session: Session, dataset: Dataset, path: str, sha256: str, size: int, etag: str) -> None:
        self._session, self._dataset, self._path, self._sha256 = session, dataset, path, sha256
        self.size, self._etag = size, etag

    def read(self, piece: Piece, turn: Turn) -> None:
        """As `Spans.read`."""
        first, last = piece.start + piece.received, piece.start + len(piece.view) - 1
        condition = {"Range": f"bytes={first}-{last}", "If-Range": self._etag}
        answer = self._session.ask("GET", self._dataset, self._path, condition, turn)
        try:
            if answer.status != 206 or answer.headers.get("content-range") != f"bytes {first}-{last}/{self.size}":
                raise NoSpans if answer.headers.get("etag", self._etag) == self._etag else Changed
            body = Body(self._session, self._dataset, self._path, None, answer, turn)
            while piece.received < len(piece.view):
                size = body.fill(piece.view[piece.received : piece.received + _CHUNK])
                if not size:
                    self._session.fault(replies.truncated(self._path, piece.received, len(piece.view)))
                piece.received += size
        finally:
            answer.close()

    def resumed(self) -> None:
        """As `Spans.resumed`."""
        self._session.resumed()

    def corrupt(self) -> NoReturn:
        """As `Spans.corrupt`."""
        self._session.fault(replies.corrupt(self._path, self._sha256))


def wait_to_resume(turn: Turn, seconds: float, error: SourceError) -> None:
    """Before a resume: so long, with jitter, and as long as the server asked for. Raises ``error`` where that is too long."""
    asked_for = error.retry_after or 0.0
    if asked_for > _LONGEST_PAUSE:
        raise error
    turn.wait(max(seconds * random.uniform(0.5, 1.5), asked_for), error)
