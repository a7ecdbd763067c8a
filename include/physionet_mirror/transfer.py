"""Threads and retries of one shard, given a mover: many files at once, each retried until stored or reported as failed.

A file waits for a slot, is fetched and proven, gives the slot back and is stored (or is stored before it gives it back, see
`Mover.keeps_turn`). A failure is one of four:

- fatal (password, agreement, bucket): the shard stops at once;
- congestion (429, 503, connects that time out, connections that are never answered while others are): fewer connections,
  and the file is asked for again, as often as it takes;
- an outage (the source is down): all workers pause, with growing back-off, up to PATIENCE; one of them makes the mover's
  probe;
- the file's own: it loses a try, and is given up after three. That takes proof: the source must have served something that
  was asked for after the file failed. Where no other file gives that proof, the probe does.

What is fetched is stored outside its slot, by as many threads as that takes: more files are stored at once while that stores
more, as far as memory allows, and fewer when S3 asks for less (`window`).

Whatever was stored stays; whoever runs the shard again goes on from there. A file too big for memory is stored while it is
fetched, and becomes visible only once it is proven.
"""

from __future__ import annotations

import heapq
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, Self, TypeGuard

from physionet_mirror.errors import (
    Corrupt,
    DestinationUnavailable,
    FileError,
    ImagesFailed,
    MirrorError,
    SourceError,
    SourceUnavailable,
    Stalled,
    Throttled,
)
from physionet_mirror.files import File
from physionet_mirror.mover import Fetched, Mover
from physionet_mirror.pace import Pace, Slot
from physionet_mirror.records import Failure, ShardResult
from physionet_mirror.throughput import MOST_POINTS, progress_line
from physionet_mirror.window import Window

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Tries of a file whose own fault it is."""

PATIENCE = 300.0
"""Seconds for which a server that serves nobody is waited for, before the task gives up and is retried later."""

GRACE = 15.0
"""Seconds that a download may take to end once the shard is drained."""

LAST_WORDS = 5.0
"""Seconds that the last tally may take to be published once the shard is told to stop."""

SUSPECTS = 4
"""So many files in a row, and as many as may be asked for at once, fail although the checksum file is served: then one is
asked for at a time until one comes."""

HELD = 32 << 20
"""Bytes of files on their way to the bucket above which nothing more is fetched, but for a few files."""

LOG_EVERY = 10.0
PUBLISH_EVERY = 5.0


@dataclass(eq=False, slots=True)
class _Job:
    """A file until it is stored or given up."""

    file: File
    tries: int = 0
    refusals: int = 0
    waits: int = 0  # times that nobody was served
    coming: bool = False  # this attempt was answered with the file, which is on its way to the bucket
    unanswered: bool = False  # this attempt was not answered at all
    has_slot: bool = False  # or had it in this attempt
    storing: int | None = None  # bytes of it that wait in memory, once it is fetched


class Turn:
    """A fetch's place among those that the pace allows: held while it asks and reads, given back while it waits.

    Args:
        pace: Who gives the slots.
        cancelled: Becomes true when a slot is no longer wanted.
        pause: Waits so many seconds, or longer while nobody may ask; false when the shard ends.
        patience: The longest wait that a server is granted, in seconds.
        on_served: Called when the source begins to send a file.
    """

    def __init__(
        self,
        pace: Pace,
        cancelled: Callable[[], bool],
        pause: Callable[[float], bool],
        patience: float,
        on_served: Callable[[], None] = lambda: None,
    ) -> None:
        self._pace, self._cancelled, self._pause, self._patience = pace, cancelled, pause, patience
        self._on_served = on_served
        self._held = ExitStack()
        self._slot: Slot | None = None
        self._was_answered = False  # before it was left

    def __enter__(self) -> Self:
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def __bool__(self) -> bool:
        """Whether it has a slot: it has none when it was cancelled while it waited for one."""
        return self._slot is not None

    def _take(self) -> None:
        self._slot = self._held.enter_context(self._pace.slot(self._cancelled))

    @property
    def at_once(self) -> int:
        """As `mover.Turn`."""
        return self._pace.limit

    def leave(self) -> None:
        """As `mover.Turn`."""
        self._was_answered = self.is_answered
        self._held.close()
        self._slot = None

    @contextmanager
    def another(self, wanted: Callable[[], bool] = lambda: True) -> Iterator[Turn]:
        """As `mover.Turn`."""
        turn = Turn(self._pace, lambda: self._cancelled() or not wanted(), self._pause, self._patience, self._on_served)
        with turn:
            while not turn:
                if not wanted() or not self._pause(0.0):
                    raise SourceUnavailable(
                        "A large file was not fetched to its end, as the transfer ends. What of it is in the bucket is used by "
                        "the next try."
                    )
                turn._take()
            yield turn

    @property
    def is_answered(self) -> bool:
        """Whether the source has answered, whatever it said."""
        return self._was_answered or (self._slot is not None and self._slot.answered)

    def answered(self, *, serves: bool) -> None:
        """As `mover.Turn`."""
        if self._slot is not None:
            self._slot.answered = True
        if serves:
            self._on_served()

    def congested(self, error: SourceError) -> None:
        """Tell the pace that the source is asked for too much."""
        asked_for = error.retry_after
        if self._slot is not None:
            self._pace.congested(self._slot, error.reason, asked_for and min(asked_for, self._patience))

    def wait(self, seconds: float, error: SourceError) -> None:
        """As `mover.Turn`."""
        if error.is_congestion(answered=self.is_answered):
            self.congested(error)
        self._held.close()
        self._slot = None
        while self._slot is None:
            if not self._pause(seconds):
                raise error
            self._take()
            seconds = 0.0


class _Publisher:
    """Publishes the newest tally from a thread of its own, so that a slow S3 delays nothing else."""

    def __init__(self, publish: Callable[[ShardResult], None]) -> None:
        self._publish = publish
        self._next: ShardResult | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    def start(self) -> None:
        """As a thread's."""
        self._thread.start()

    def offer(self, result: ShardResult) -> None:
        """Publish it next, in place of one that still waits."""
        with self._changed:
            self._next = result
            self._changed.notify()

    def finish(self, result: ShardResult, told_to_stop: Callable[[], bool]) -> None:
        """Publish the last one and wait for that; not for long once the shard is told to stop."""
        with self._changed:
            self._next, self._closed = result, True
            self._changed.notify()
        until: float | None = None
        while self._thread.is_alive():
            if told_to_stop():
                until = until or time.monotonic() + LAST_WORDS
                if time.monotonic() > until:
                    log.warning(
                        "The last progress could not be published within %.0f s; the stop does not wait.", LAST_WORDS
                    )
                    return
            self._thread.join(0.2)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._next is None:
                    if self._closed:
                        return
                    self._changed.wait()
                result, self._next = self._next, None
            try:
                self._publish(result)
            except Exception:  # progress is for looking at; the files matter
                log.exception("the progress could not be published")


@dataclass
class Tally:
    """What has been done so far; ``series`` holds (seconds, files, bytes, connections) for each stretch of time."""

    images: int
    todo: int
    stored: int = 0
    bytes: int = 0
    retries: int = 0
    connections: int = 0
    seconds: float = 0.0
    state: str = "running"  # then done, failed or drained
    error: Failure | None = None  # what ended the shard early
    failed: list[Failure] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    series: list[tuple[float, int, int, int]] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def result(self, about: ShardResult, handshakes: int = 0) -> ShardResult:
        """What `results/NNNN.json` then says.

        Args:
            about: What the transfer does not know: the shard's index and name, the try, the connections allowed.
            handshakes: Password checks so far.
        """
        return replace(
            about,
            state=self.state,
            started=self.started,
            updated=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(self.seconds, 1),
            images=self.images,
            todo=self.todo,
            stored=self.stored,
            bytes=self.bytes,
            failed=tuple(self.failed),
            error=self.error,
            connections=self.connections,
            retries=self.retries,
            handshakes=handshakes,
            faults=dict(self.faults),
            series=tuple(self.series),
        )


class Transfer:
    """One shard on its way.

    Args:
        files: What is to be stored.
        mover: How one file crosses.
        pace: The slots of fetches; its limit bounds the threads.
        total: Files of the shard, those already there included.
        about: What the results that are published say beside what the transfer counts (see `Tally.result`).
        publish: Called every few seconds, and once in the end.
        on_stored: Called for each file with the seconds from its request to S3's answer.
        patience: Seconds to wait for a server that is down.
        backoff: Seconds before a file's second try, on average; doubled each time.
        stop: Set it to drain: files whose bytes are coming finish, the rest is left.
        noun: What they are called where they fail: ``image`` or ``file``.
    """

    def __init__(
        self,
        files: Iterable[File],
        *,
        mover: Mover,
        pace: Pace,
        total: int | None = None,
        about: ShardResult | None = None,
        publish: Callable[[ShardResult], None] = lambda _: None,
        on_stored: Callable[[float], None] = lambda _: None,
        patience: float = PATIENCE,
        backoff: float = 1.0,
        stop: threading.Event | None = None,
        noun: str = "image",
    ) -> None:
        self._noun = noun
        self._ready = deque(_Job(file) for file in files)
        self._mover, self._pace, self._publish, self._on_stored = mover, pace, publish, on_stored
        self._about = about or ShardResult(0)
        self._patience, self._backoff = patience, backoff
        self._stop = stop or threading.Event()
        self._later: list[tuple[float, int, _Job]] = []  # heap of (due, tie-breaker, job)
        self._running: set[_Job] = set()
        self._threads: list[threading.Thread] = []
        self._spare = 0  # threads that wait for a file or for a slot
        self._few = max(2, pace.limit // 2)  # files that may be stored at once, whatever their size
        self._storing = self._held = 0  # files on their way to the bucket, and their bytes
        self._window = Window(self._few)
        self._unsettled = len(self._ready)
        self._served = 0  # files that came whole
        self._asked_when_served = 0.0  # when something was asked for that PhysioNet then served
        self._fatal: MirrorError | None = None
        self._over = False
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._concluded = threading.Condition(lock)  # for the watch, which need not wake for each file
        # An outage: nobody is served.
        self._down = False  # so says the latest word; only a worker that probes asks
        self._down_since: float | None = None
        self._hold_until = 0.0  # the next probe
        self._probing = False
        self._probe = threading.Lock()
        # Images fail although the checksum file is served.
        self._suspects: set[_Job] = set()  # that failed since one came
        self._suspect_since = 0.0
        self._trial: _Job | None = None
        self._trial_at = 0.0
        self.tally = Tally(images=total or len(self._ready), todo=len(self._ready))

    def run(self) -> Tally:
        """Store everything; returns the tally when all is stored or when it was drained.

        Raises:
            ImagesFailed: Some files could not be had, by their own fault; the others are stored.
            Throttled, SourceUnavailable, DestinationUnavailable: A server served nobody for longer than patience lasts.
            MirrorError: What makes going on senseless (credentials, agreement, bucket), or a defect of ours.
        """
        publisher = _Publisher(self._publish)
        begun = time.monotonic()
        interrupted = True
        try:
            publisher.start()
            with self._changed:
                self._hire()
            self._watch(begun, publisher)
            interrupted = False
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
                self._conclude(time.monotonic() - begun)
                result = self.result()
            publisher.finish(result, lambda: interrupted or self._stop.is_set())
        if self._fatal is not None:
            raise self._fatal
        if self.tally.failed:
            raise self._files_failed()
        return self.tally

    def result(self) -> ShardResult:
        """What it has done so far, as it is stored."""
        return self.tally.result(self._about, self._mover.stats.handshakes)

    def _conclude(self, seconds: float) -> None:
        tally = self.tally
        tally.seconds = seconds
        if self._fatal is not None:
            tally.error = Failure("", self._fatal.reason, str(self._fatal))
        if tally.stored == tally.todo:
            tally.state = "done"
        else:
            tally.state = "failed" if self._fatal is not None or tally.failed else "drained"

    def _files_failed(self) -> ImagesFailed:
        failed, tally = self.tally.failed, self.tally
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(f.reason for f in failed).most_common())
        return ImagesFailed(
            f"{len(failed)} of {tally.todo} {self._noun}s could not be had ({reasons}); {tally.stored} are stored and stay. The "
            f"first one: {failed[0].detail} The report names them all; trigger the run again to try only these."
        )

    # -- the watch -------------------------------------------------------------------------------------------------

    def _watch(self, begun: float, publisher: _Publisher) -> None:
        """Wait for the end; log, publish and sample meanwhile."""
        next_log = next_publish = begun + 1.0
        sampled = begun, 0, 0
        drained_by: float | None = None
        while True:
            with self._changed:
                if not self._is_over():
                    self._concluded.wait(0.5)
                over = self._is_over()
            now = time.monotonic()
            if self._stop.is_set():
                drained_by = drained_by or now + GRACE
                over = over or now > drained_by
            with self._changed:
                self.tally.seconds = now - begun
                self.tally.connections = self._pace.slots
                at, stored, received = sampled
                if over or now - at >= 1.0:
                    self._sample(now - begun, self.tally.stored - stored, self.tally.bytes - received)
                    sampled = now, self.tally.stored, self.tally.bytes
                if over:
                    return
                snapshot = self.result() if now >= min(next_log, next_publish) else None
            if snapshot is None:
                continue
            if now >= next_log:
                log.info("%s", progress_line(snapshot, self._mover.mode, self._noun))
                next_log = now + LOG_EVERY
            if now >= next_publish:
                publisher.offer(snapshot)
                next_publish = now + PUBLISH_EVERY

    def _sample(self, at: float, stored: int, received: int) -> None:
        series = self.tally.series
        series.append((round(at, 1), stored, received, self._pace.slots))
        if len(series) > MOST_POINTS:  # neighbours are merged
            pairs = zip(series[::2], series[1::2], strict=False)
            series[: len(series) // 2 * 2] = [(b[0], a[1] + b[1], a[2] + b[2], b[3]) for a, b in pairs]

    def _is_over(self) -> bool:
        if self._fatal is not None or not self._unsettled:
            return True
        return self._stop.is_set() and not any(job.coming for job in self._running)

    # -- the work --------------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """See to it that a thread waits for the next slot; the caller holds the lock."""
        # A thread whose file has failed asks why; no other takes its place meanwhile, or an outage would be asked about more.
        if self._spare or len(self._threads) >= min(self.tally.todo, self._pace.limit + self._few + self._storing):
            return
        self._spare += 1
        thread = threading.Thread(target=self._work, name=f"file-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _is_full(self) -> bool:
        """Whether so much is on its way to the bucket that nothing more is to be fetched."""
        return self._window.is_full(self._storing) or (self._held > HELD and self._storing >= self._few)

    def _work(self) -> None:
        """A thread: one file after the other, and a probe now and then."""
        try:
            while (job := self._take()) is not None:
                if job == "probe":
                    self._ask_again()
                else:
                    self._attempt(job)
        except BaseException as error:  # whatever it is: `run` must not wait for this thread
            log.exception("a worker failed")
            self._end(MirrorError(f"Unexpected {type(error).__name__}; the log above shows where."))

    def _take(self) -> _Job | Literal["probe"] | None:
        """The next file that is due, or the probe that an outage is asked with; None when there will be none."""
        with self._changed:
            while self._unsettled and not self._is_stopping():
                now = time.monotonic()
                doubtful = self._is_doubtful()
                while self._later and self._later[0][0] <= now:
                    due = heapq.heappop(self._later)[2]
                    # In doubt the same file first: the server may refuse each of them just once.
                    (self._ready.appendleft if doubtful else self._ready.append)(due)
                if self._down:
                    if now >= self._hold_until and not self._probing:
                        self._probing = True
                        return "probe"
                elif (
                    self._ready
                    and not self._is_full()
                    and not (doubtful and (now < self._trial_at or self._trial is not None))
                ):
                    job = self._ready.popleft()
                    job.coming = job.unanswered = job.has_slot = False
                    self._running.add(job)
                    if doubtful:
                        self._trial = job
                    return job
                if self._down:
                    at = self._hold_until
                elif self._ready:
                    at = self._trial_at if doubtful else now + 1
                else:
                    at = self._later[0][0] if self._later else now + 1
                self._changed.wait(min(max(0.005, at - now), 0.2))
            return None

    def _attempt(self, job: _Job) -> None:
        """Fetch and store one file, or decide what its failure means."""
        served = self._served
        try:
            size = self._move(job)
        except MirrorError as error:
            self._missed(job, error, served)
        except Exception as error:
            log.exception("unexpected error at %s", job.file.path)
            self._missed(job, MirrorError(f"Unexpected {type(error).__name__}; the log above shows where."), served)
        else:
            self._moved(job, size)

    def _move(self, job: _Job) -> int | None:
        """Fetch, prove and store one file; its size in bytes, or None when it was not asked for, or came too late."""
        begun = time.monotonic()  # and again once it has its slot
        with self._turn(
            lambda: self._down or self._is_full() or self._is_stopping(), lambda: self._serves(job, begun)
        ) as turn:
            if not turn:
                return None
            with self._changed:
                job.has_slot = True
                self._spare -= 1
                self._hire()
            begun = time.monotonic()
            try:
                fetched = self._mover.fetch(job.file, turn)
            except (Throttled, Stalled) as error:
                job.unanswered = isinstance(error, Stalled) and not turn.is_answered
                if error.is_congestion(answered=turn.is_answered):
                    turn.congested(error)
                raise
            except MirrorError as error:
                if not _leaves_hope(error):  # said before the slot is free, so that nothing else is asked for
                    self._end(error)
                raise
            if not self._mover.keeps_turn:
                turn.leave()
            if not self._store(job, fetched):
                return None
        self._on_stored(time.monotonic() - begun)
        return fetched.size

    def _serves(self, job: _Job, begun: float) -> None:
        """The source sends a file that was asked for when ``begun`` says."""
        job.coming = True
        self._asked_when_served = max(self._asked_when_served, begun)
        if self._down_since is not None:
            self._is_back()

    def _turn(self, cancelled: Callable[[], bool], on_served: Callable[[], None] = lambda: None) -> Turn:
        return Turn(self._pace, cancelled, self._pause, self._patience, on_served)

    def _pause(self, seconds: float, *, outage: bool = True) -> bool:
        """Wait so long, and for the end of an outage of PhysioNet; false when the shard ends."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self._is_stopping():
                left = until - time.monotonic()
                if left <= 0 and not (outage and (self._down or self._is_full())):
                    return True
                self._changed.wait(min(max(left, 0.005), 0.2) if left > 0 else 0.2)
            return False

    def _store(self, job: _Job, fetched: Fetched) -> bool:
        """Into the bucket, and again for as long as S3 is away: what was fetched is not thrown away.

        Returns:
            False where the shard was over before: its result is out, so nothing more is stored that it does not count.
        """
        with self._changed:
            if self._over:
                return False
            self._served += 1
            self._suspects.clear()
            job.storing = fetched.in_memory
            self._storing += 1
            self._held += fetched.in_memory
        begun, wait = time.monotonic(), 0.5
        while True:
            try:
                fetched.store()
                return True
            except DestinationUnavailable as error:
                if time.monotonic() - begun + wait > self._patience or self._is_stopping():
                    raise
                with self._changed:
                    if wait == 0.5 and not self.tally.faults[error.reason]:
                        log.warning("%s", error)
                    self.tally.faults[error.reason] += 1
                    self.tally.retries += 1
                    self._window.refused(self._storing)
            self._pause(wait * random.uniform(0.5, 1.5), outage=False)
            wait = min(2 * wait, 15.0)

    def _is_stopping(self) -> bool:
        return self._stop.is_set() or self._over or self._fatal is not None

    # -- what became of it -----------------------------------------------------------------------------------------

    def _ended(self, job: _Job) -> None:
        """The attempt is over; the caller holds the lock."""
        job.coming = False
        self._running.discard(job)
        self._spare += job.has_slot
        if job.storing is not None:
            self._storing -= 1
            self._held -= job.storing
            job.storing = None
        if self._trial is job:
            self._trial = None
        self._changed.notify_all()
        if self._stop.is_set():
            self._concluded.notify_all()

    def _settled(self) -> None:
        """A file is stored or named; the caller holds the lock."""
        self._unsettled -= 1
        if not self._unsettled:
            self._concluded.notify_all()

    def _end(self, error: MirrorError) -> None:
        """The shard ends, and ``error`` is why."""
        with self._changed:
            self._fatal = self._fatal or error
            self._changed.notify_all()
            self._concluded.notify_all()

    def _moved(self, job: _Job, size: int | None) -> None:
        with self._changed:
            self._ended(job)
            if size is None:  # an outage began while it waited for its turn, or the shard is over
                self._ready.appendleft(job)
                return
            self.tally.stored += 1
            self.tally.bytes += size
            self._window.stored(size)
            self._settled()

    def _missed(self, job: _Job, error: MirrorError, served: int) -> None:
        """Classify a failure: fatal, congestion, an outage, or this file's own. ``served`` had come when it was asked for."""
        since = time.monotonic()
        with self._changed:
            self.tally.faults[error.reason] += 1
            others = self._served > served or any(other.coming for other in self._running if other is not job)
        if not _leaves_hope(error):
            up = True
            self._end(error)
        elif isinstance(error, Throttled) or job.unanswered:
            up = others or (job.unanswered and self._is_up(since, error))
        else:
            up = isinstance(error, Corrupt) or self._is_up(since, error)
        with self._changed:
            self._ended(job)
            if self._is_stopping():
                return
            assert isinstance(error, SourceError)
            if not up:
                self._wait_for_source(job, error)
            elif isinstance(error, Throttled) or (job.unanswered and others):
                self._refused(job, error)
            elif not self._is_to_be_spared(job, error):
                self._try_again(job, error)

    def _is_up(self, since: float, error: SourceError) -> bool:
        """Whether PhysioNet served anything that was asked for after ``since``; one thread asks for all that want to know.

        Where it did not, the outage, of which ``error`` tells, has begun before the next thread looks.
        """
        with self._probe:
            if self._down:
                return False
            if self._asked_when_served > since or self._asks(lambda: self._asked_when_served > since) is None:
                return True
            with self._changed:
                self._wait_for_source(None, error)
            return False

    def _asks(self, needless: Callable[[], bool] = lambda: False) -> SourceError | None:
        """Ask for the checksum file, in a slot; what went wrong, or None when it is served (or nobody wants to know)."""
        with self._turn(lambda: needless() or self._is_stopping()) as turn:
            if not turn:
                return None
            begun = time.monotonic()
            try:
                self._mover.check()
            except (Throttled, SourceUnavailable, FileError) as error:
                if error.is_congestion(answered=False):
                    turn.congested(error)
                return error
            except DestinationUnavailable as error:  # of an access point, which S3 answers for
                return Throttled(str(error))
            except MirrorError as error:
                self._end(error)
                return None
            finally:
                turn.answered(serves=False)
            self._asked_when_served = max(self._asked_when_served, begun)
            return None

    def _ask_again(self) -> None:
        """In an outage: is it over?"""
        with self._probe:
            error = self._asks()
        with self._changed:
            self._probing = False
            if error is None:
                self._down = False
                self._changed.notify_all()
            else:
                self._wait_for_source(None, error)

    def _is_back(self) -> None:
        """A file is served: the outage is over."""
        with self._changed:
            self._down, self._down_since = False, None
            self._changed.notify_all()

    def _wait_for_source(self, job: _Job | None, error: SourceError) -> None:
        """PhysioNet is down: all workers pause, with growing back-off, up to patience."""
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
            log.warning("%s", error)
        down = now - self._down_since
        if job is not None:
            job.waits += 1
            # The same file again, as the server may refuse each of them just once; then another.
            (self._ready.appendleft if job.waits % 3 else self._ready.append)(job)
            self.tally.retries += 1
        if down > self._patience:
            self._fatal = self._fatal or _served_nobody(error, down)
            return
        self._down = True
        asked_for = error.retry_after or 0.0
        wait = min(0.5 * self._backoff + down / 4, 20.0) * random.uniform(1.0, 1.5)
        self._hold_until = max(self._hold_until, now + max(wait, min(asked_for, self._patience)))

    def _refused(self, job: _Job, error: SourceError) -> None:
        """Congestion: later, exponentially and with jitter, and never before the server's own wish."""
        job.refusals += 1
        asked_for = error.retry_after or 0.0
        wait = min(self._backoff * 2.0 ** min(job.refusals - 1, 8), 30.0) * random.uniform(0.5, 1.5)
        self._put_off(job, max(wait, min(asked_for, self._patience)))

    def _try_again(self, job: _Job, error: SourceError) -> None:
        """Its own fault: later, exponentially and with jitter, or never."""
        job.tries += 1
        if job.tries >= ATTEMPTS:
            self._suspects.discard(job)
            self._settled()
            self.tally.failed.append(Failure(job.file.path, error.reason, str(error)))
            log.warning("gave up: %s", error)
            return
        self._put_off(job, self._backoff * 2.0 ** (job.tries - 1) * random.uniform(0.5, 1.5))

    def _put_off(self, job: _Job, seconds: float) -> None:
        self.tally.retries += 1
        heapq.heappush(self._later, (time.monotonic() + seconds, id(job), job))

    def _is_doubtful(self) -> bool:
        return len(self._suspects) >= max(SUSPECTS, self._pace.limit)

    def _is_to_be_spared(self, job: _Job, error: SourceError) -> bool:
        """Whether a file keeps its last try, as none of many came, although the checksum file is served.

        It is then asked for again when the others have been. With the probe, that is about two requests a second.
        """
        now = time.monotonic()
        if not self._suspects:
            self._suspect_since = now
        self._suspects.add(job)
        if not self._is_doubtful():
            return False
        self._trial_at = now + self._backoff * random.uniform(1.0, 1.2)
        if now - self._suspect_since > self._patience and not any(other.coming for other in self._running):
            self._fatal = self._fatal or _served_nobody(error, now - self._suspect_since)
            return True
        if job.tries + 1 < ATTEMPTS or len(self._suspects) >= self._unsettled:
            return False
        self._ready.append(job)
        self.tally.retries += 1
        return True


def _leaves_hope(error: MirrorError) -> TypeGuard[SourceError]:
    """Whether other files may fare better, or this one later; otherwise going on is senseless."""
    return isinstance(error, SourceError) and not error.permanent


def _served_nobody(error: SourceError, seconds: float) -> SourceError:
    """What ends a shard when patience is over: never the fault of one file, though one file's error may be the last."""
    if not isinstance(error, FileError):
        return error
    return SourceUnavailable(
        f"PhysioNet has served no file for {seconds:.0f} s. What is stored stays stored, and no file is given up: the shard is "
        f"tried again later. Its last answer: {error}"
    )
