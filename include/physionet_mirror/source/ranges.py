"""One large file over many connections: fetched in pieces, uploaded in parts, visible only once it is proven.

    pieces of 1 MiB over the run's free connections ─▶ parts of 5 MiB in memory ─▶ multipart upload under _mirror/parts/
      └▶ hashed in order ──────────────────────────────────────────────────────▶ right? ─▶ completed, copied onto its key

The upload has a place of its own below ``_mirror/parts/``, named by the file and the run, until the file is proven. So an
attempt that is killed leaves the parts that S3 holds, and the run's next one goes on with them; so does another run once no
part has come for IDLE seconds. What those parts hash to cannot be told before they are an object: then the whole is
completed in that place, read back from S3 and compared there. Wrong bytes never stand under the file's key, and the copy
onto it gives the object a SHA-256 of the whole in S3, which a multipart upload has not.

Nothing is kept anywhere else: what is left is found by listing. Runs that overlap fetch the file each for itself. Where two
work at one upload all the same, each completes it with the parts that it has stored or found, and S3 refuses that if one of
them was replaced by other bytes.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from physionet_mirror import words
from physionet_mirror.errors import (
    DestinationError,
    DestinationUnavailable,
    SourceUnavailable,
    Stalled,
    Throttled,
    Truncated,
)
from physionet_mirror.files import File
from physionet_mirror.layout import parts_of
from physionet_mirror.mover import Fetched, Turn
from physionet_mirror.s3.bucket import Bucket, Listed, Part, Upload
from physionet_mirror.source import replies
from physionet_mirror.source.body import RESUMES, wait_to_resume
from physionet_mirror.source.spans import Changed, NoSpans, Piece, Spans

log = logging.getLogger(__name__)

LARGE = 64 << 20
"""Files above this size in bytes are fetched in pieces."""

PART = 5 << 20
"""Bytes of a part, S3's least: what a killed process loses is what was not yet a part."""

MOST_PARTS = 10_000
"""S3's limit; files above 50 GiB have larger parts."""

WINDOW = 64 << 20
"""Bytes that all large files of one stream hold in memory; with `transfer.HELD` and what is sent, 128 MB at the most."""

IDLE = 300.0
"""Seconds without a new part after which another run's upload is taken over: a live run stores one every two minutes over one
connection of 0.04 MB/s, and gives up after so long (`transfer.PATIENCE`) when the source is down."""

_LEAST = 256 << 10  # bytes of the first pieces, and of those near the file's end, so that all connections end together
_READERS = 64
_AT_ONCE = 2  # files: the second one's pieces fill the connections that the first one's end leaves idle
_PATIENCE = 300.0  # seconds for which an S3 that takes no part is asked again
_FORGOTTEN = timedelta(days=1)  # after which another run's completed upload, which nobody has proven, is removed
_LOOK = 0.2  # seconds between two looks at whether somebody else has failed


def part_size(size: int) -> int:
    """Bytes of a part of a file of this size: PART, or as many MiB as it takes."""
    return PART if size <= PART * MOST_PARTS else -(-size // (MOST_PARTS << 20)) << 20


class Memory:
    """The memory of all large files of a stream.

    Args:
        size: Bytes of it.
    """

    def __init__(self, size: int = WINDOW) -> None:
        self._left = self._size = size
        self._spare: list[bytearray] = []  # buffers of PART bytes to use again
        self._changed = threading.Condition()

    def take(self, size: int, wanted: Callable[[], bool]) -> bytearray | None:
        """Wait for so many bytes; None if they are no longer wanted. One part is always given."""
        with self._changed:
            while self._left < size and self._left < self._size:
                if not wanted():
                    return None
                self._changed.wait(_LOOK)
            self._left -= size
            return self._spare.pop() if size == PART and self._spare else bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Memory that ``take`` gave."""
        with self._changed:
            self._left += len(buffer)
            if len(buffer) == PART:
                self._spare.append(buffer)
            self._changed.notify_all()


@dataclass(eq=False)
class _Part:
    """A part while it is in memory."""

    number: int
    buffer: bytearray
    cut: int = 0  # bytes that pieces were cut from
    came: int = 0  # bytes that have come
    is_stored: bool = False
    is_hashed: bool = False


class Ranges:
    """Large files of one stream, each over many connections.

    Args:
        bucket: Where they go.
        how: ``content_type`` and ``storage_class`` of the objects.
        run: Name of the run, by which its next attempt finds what a killed one has left; None = there will be none.
        memory: What they share.
    """

    def __init__(
        self, bucket: Bucket, how: dict[str, Any], run: str | None = None, memory: Memory | None = None
    ) -> None:
        self._bucket, self._how, self._memory = bucket, how, memory or Memory()
        self._run = run or uuid4().hex
        self._files = threading.Semaphore(_AT_ONCE)

    def fetch(self, spans: Spans, file: File, turn: Turn) -> Fetched:
        """Fetch a file into parts of an upload; ``store`` then proves it and puts it under its key.

        Raises:
            NoSpans: The source gives no pieces; nothing was done.
            SourceError: Any of its subclasses; what came stays for the next attempt, unless it is wrong.
            DestinationError: The bucket does not take it.
        """
        turn.leave()  # whoever waits for memory must not hold a place that those who have it wait for
        with self._files:
            return _Attempt(self._bucket, self._how, self._run, self._memory, spans, file, turn).run()


class _Attempt:
    """One attempt at one file."""

    def __init__(
        self, bucket: Bucket, how: dict[str, Any], run: str, memory: Memory, spans: Spans, file: File, turn: Turn
    ) -> None:
        self._bucket, self._how, self._memory = bucket, how, memory
        self._spans, self._file, self._turn = spans, file, turn
        self._size, self._part_size = spans.size, part_size(spans.size)
        self._count = -(-spans.size // self._part_size)
        self._folder = parts_of(file.path, file.sha256)
        self._mine = self._folder + run
        self._upload: Upload | None = None
        self._stored: dict[int, Part] = {}  # by number
        self._etag: str | None = None  # of the completed upload
        self._is_resumed = False
        self._is_proven = False
        self._beginning = threading.Lock()  # held while memory is waited for
        self._cutting = threading.Lock()
        self._next = 1  # part to begin
        self._open: _Part | None = None  # that pieces are cut from
        self._uncut = spans.size  # bytes
        self._pieces = 0  # cut so far
        self._lock = threading.Lock()
        self._in_memory: set[_Part] = set()
        self._error: BaseException | None = None
        self._failed = threading.Event()
        self._hashing = threading.Lock()
        self._digest = hashlib.sha256()
        self._hashed = 0  # parts
        self._whole: dict[int, _Part] = {}  # that wait to be hashed

    def run(self) -> Fetched:
        """As `Ranges.fetch`."""
        try:
            self._look_for_what_is_left()
            if self._etag is None:
                self._fetch()
                if not self._is_resumed:
                    self._prove(self._digest.hexdigest())
        except NoSpans:
            self._give_up()
            raise
        except Changed:
            self._give_up()
            raise replies.changed(self._file.path) from None
        except FileNotFoundError:
            if not self._is_there():
                raise self._ended_by_another() from None
            return Fetched(self._size)
        return Fetched(self._size, self._store)

    # -- what an earlier attempt has left ---------------------------------------------------------------------------

    def _look_for_what_is_left(self) -> None:
        """A completed upload that nobody has proven, else the unfinished one of most parts that no other run works at."""
        try:
            left = [there for there in self._bucket.list(self._folder) if there.size == self._size]
            if left:
                found = max(left, key=lambda there: there.path == self._mine)
                self._upload, self._etag, self._is_resumed = Upload(found.path, ""), found.etag, True
                return
            for upload, parts in self._uploads():
                # Not every S3 lets a part be replaced, so an upload with one of another size is of no use.
                if len(parts) > len(self._stored) and all(map(self._fits, parts)):
                    self._upload, self._stored = upload, {part.number: part for part in parts}
        except DestinationUnavailable:
            raise
        except DestinationError as error:
            log.warning(
                "S3 does not say what an earlier attempt has left of %s: it is fetched from its beginning. %s",
                self._file.path,
                error,
            )
        if self._stored:
            self._is_resumed = True
            self._spans.resumed()
            self._uncut -= sum(part.size for part in self._stored.values())
        log.info(
            "%s: %s in pieces over up to %d connections; %s of it are in the bucket already.",
            self._file.path,
            words.size(self._size),
            self._turn.at_once,
            words.size(self._size - self._uncut),
        )

    def _uploads(self) -> Iterator[tuple[Upload, Sequence[Part]]]:
        """Unfinished uploads of this run, or that no run works at any more."""
        for upload in self._bucket.uploads(self._folder):
            try:
                parts = self._bucket.parts(upload)
            except FileNotFoundError:
                continue
            if upload.path == self._mine or min([upload.age, *(part.age for part in parts)]) >= IDLE:
                yield upload, parts

    def _fits(self, part: Part) -> bool:
        return 1 <= part.number <= self._count and part.size == self._length(part.number)

    def _length(self, number: int) -> int:
        return min(self._part_size, self._size - (number - 1) * self._part_size)

    # -- fetching ---------------------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        """All parts that are missing."""
        try:
            if not self._waits_for_memory():
                return
            # Alone, to see whether the source gives pieces at all.
            first = None if self._spans.announced else self._read_next()
            if self._upload is None:
                kind = self._how["content_type"]
                self._upload = self._bucket.begin_upload(self._mine, content_type=kind)
            count = min(self._turn.at_once, _READERS, max(1, -(-self._uncut // _LEAST)))
            threads = [
                threading.Thread(target=self._work, name=f"range-{n}", daemon=True)
                for n in range(count + max(2, count // 2))  # the surplus stores meanwhile
            ]
            for thread in threads:
                thread.start()
            with self._noting():
                if first is not None:
                    self._came(*first)
            for thread in threads:
                thread.join()
        finally:
            for part in self._in_memory:
                self._memory.give_back(part.buffer)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """A thread: one piece after the other, and each part that becomes whole."""
        with self._noting():
            while self._waits_for_memory():
                if (came := self._read_next()) is not None:
                    self._came(*came)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """The first error ends the attempt."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for this one
            with self._lock:
                self._error = self._error or error
            self._failed.set()

    def _is_wanted(self) -> bool:
        return not self._failed.is_set()

    def _waits_for_memory(self) -> bool:
        """Wait, without a place, until there is a part to cut pieces from; false if there is none, or the attempt failed."""
        with self._beginning:
            part = self._open
            if part is None:
                part = self._open = self._begin_part()
            return part is not None and not self._failed.is_set()

    def _cut(self) -> tuple[_Part, Piece] | None:
        """The next piece to ask for, in order; None if it has to be waited for."""
        with self._cutting:
            part = self._open
            if part is None:
                return None
            left = len(part.buffer) - part.cut
            at_once, self._pieces = self._turn.at_once, self._pieces + 1
            size = min(self._spans.piece, self._uncut // (2 * at_once))
            # The first ones grow in steps: later ones then end one after the other, and parts become whole evenly.
            size = max(_LEAST, size * min(self._pieces, at_once) // at_once)
            if left - size < _LEAST:
                size = left
            view = memoryview(part.buffer)[part.cut : part.cut + size]
            piece = Piece((part.number - 1) * self._part_size + part.cut, view)
            part.cut += size
            self._uncut -= size
            if part.cut == len(part.buffer):
                self._open = None
            return part, piece

    def _begin_part(self) -> _Part | None:
        while self._next in self._stored:
            self._next += 1
        if self._next > self._count:
            return None
        buffer = self._memory.take(self._length(self._next), self._is_wanted)
        if buffer is None:
            return None
        part = _Part(self._next, buffer)
        self._next += 1
        with self._lock:
            self._in_memory.add(part)
        return part

    def _read_next(self) -> tuple[_Part, Piece] | None:
        """The next piece, chosen once it has a place, so that parts become whole in order; None as `_cut`."""
        with self._turn.another(self._is_wanted) as turn:
            if (cut := self._cut()) is not None:
                self._read(cut[1], turn)
        return cut

    def _read(self, piece: Piece, turn: Turn) -> None:
        """A piece, resumed where it breaks off; a few times in a row, and later each time."""
        in_vain = 0
        while True:
            before = piece.received
            try:
                self._spans.read(piece, turn)
            except (Truncated, Stalled, Throttled, SourceUnavailable) as error:
                in_vain = in_vain if piece.received == before else 0
                if in_vain == len(RESUMES) or self._failed.is_set():
                    raise
                wait_to_resume(turn, RESUMES[in_vain], error)
                in_vain += 1
            else:
                return

    # -- a part that is whole ---------------------------------------------------------------------------------------

    def _came(self, part: _Part, piece: Piece) -> None:
        """A piece is there; who brings the last one of a part hashes and stores it."""
        with self._lock:
            part.came += len(piece.view)
            if part.came < len(part.buffer):
                return
        if self._is_resumed:
            part.is_hashed = True
        else:
            self._hash(part)
        stored = self._put(part)
        with self._lock:
            self._stored[part.number] = stored
        self._done(part, stored=True)

    def _hash(self, part: _Part) -> None:
        with self._hashing:
            self._whole[part.number] = part
            while (ready := self._whole.pop(self._hashed + 1, None)) is not None:
                self._digest.update(ready.buffer)
                self._hashed += 1
                self._done(ready, hashed=True)

    def _put(self, part: _Part) -> Part:
        """Store it, and again for as long as S3 is away: what was fetched is not thrown away."""
        assert self._upload is not None
        begun, wait = time.monotonic(), 0.5
        while True:
            try:
                return self._bucket.put_part(self._upload, part.number, part.buffer)
            except DestinationUnavailable as error:
                if time.monotonic() - begun + wait > _PATIENCE or self._failed.is_set():
                    raise
                log.warning("Part %d of %s is stored again. %s", part.number, self._file.path, error)
            self._failed.wait(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, 15.0)

    def _done(self, part: _Part, *, hashed: bool = False, stored: bool = False) -> None:
        """Its memory is free once it is both."""
        with self._lock:
            part.is_hashed |= hashed
            part.is_stored |= stored
            if not (part.is_hashed and part.is_stored):
                return
            self._in_memory.remove(part)
        self._memory.give_back(part.buffer)

    # -- the whole file ---------------------------------------------------------------------------------------------

    def _store(self) -> None:
        """Complete the upload, prove what only S3 holds, and copy it onto its key; may be called again."""
        assert self._upload is not None
        path = self._upload.path
        try:
            if self._etag is None:
                self._etag = self._complete(self._upload)
            if not self._is_proven:
                self._prove(self._bucket.sha256(path))
            there = Listed(path, self._size, self._etag, datetime.now(UTC))
            self._bucket.copy_from(self._bucket, there, self._file.path, **self._how)
        except FileNotFoundError:
            if not self._is_there():
                raise self._ended_by_another() from None
        self._tidy_up()

    def _complete(self, upload: Upload) -> str:
        """Its ETag."""
        try:
            return self._bucket.complete_upload(upload, [self._stored[n] for n in sorted(self._stored)])
        except FileNotFoundError:  # a request whose answer was lost has completed it, or another run has
            there = self._bucket.head(upload.path)
            if there is None:
                raise
            self._is_proven = False
            return there.etag

    def _prove(self, sha256: str) -> None:
        if sha256 != self._file.sha256:
            self._give_up()
            self._spans.corrupt()
        self._is_proven = True

    def _is_there(self) -> bool:
        """Whether the file stands under its key, by the checksum that S3 holds: another run was faster."""
        there = self._bucket.head(self._file.path)
        return there is not None and there.sha256 == self._file.sha256

    def _ended_by_another(self) -> Truncated:
        return Truncated(
            f"The upload of {self._file.path} was ended or changed by another run. Nothing wrong was stored; it is tried again."
        )

    def _give_up(self) -> None:
        """What is there is of no use."""
        if self._upload is not None:
            if self._etag is None:
                self._bucket.abort_upload(self._upload)
            else:
                self._bucket.discard([self._upload.path])

    def _tidy_up(self) -> None:
        """Remove what is left of this file, which is stored; not what another run works at."""
        assert self._upload is not None
        before = datetime.now(UTC) - _FORGOTTEN
        ours = {self._upload.path, self._mine}
        try:
            left = [there for there in self._bucket.list(self._folder) if there.size]
            self._bucket.discard([there.path for there in left if there.path in ours or there.last_modified < before])
            for upload, _ in self._uploads():
                self._bucket.abort_upload(upload)
        except DestinationError as error:
            log.warning("What is left below %s stays. %s", self._bucket.uri(self._folder), error)
