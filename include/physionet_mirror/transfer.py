"""Streams a shard: PhysioNet → memory → SHA-256 → S3, many images at once, each tried again until it is there or named.

An image's life is short: wait for a download slot, fetch, prove, give the slot back, store. What goes wrong is either
the image's own fault (it is tried three times, then named), the server's (everybody waits, nobody loses a try) or final
(the shard stops at once). Whatever was stored stays; whoever runs the shard again goes on from there. A file too big for
memory is stored while it is fetched, and becomes visible only once it is proven.
"""

from __future__ import annotations

import heapq
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from include.physionet_mirror.dataset import Dataset
from include.physionet_mirror.errors import (
    DestinationUnavailable,
    FileError,
    ImagesFailed,
    MirrorError,
    SourceUnavailable,
    Stalled,
    Throttled,
    Truncated,
)
from include.physionet_mirror.pace import Pace, Slot
from include.physionet_mirror.shards import Image
from include.physionet_mirror.source import BIG
from include.physionet_mirror.throughput import MOST_POINTS

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Tries of an image whose own fault it is."""

REFUSALS = 12
"""Times that an image may meet throttling while others go through; a connection that hangs counts twice."""

PATIENCE = 300.0
"""Seconds for which a server that serves nobody is waited for, before the task gives up and is retried later."""

NOTICED = 5.0
"""Seconds in which an outage is noticed: a try that an image lost that shortly before it is given back."""

GRACE = 15.0
"""Seconds that a download may take to end once the shard is drained."""

OVERDUE = 3.0
"""Seconds without an answer after which an image is asked for a second time, when there is nothing else left to do."""

LOG_EVERY = 10.0
PUBLISH_EVERY = 5.0


class Incoming(Protocol):
    """A file on its way: its size in bytes where that is known, and its chunks, proven when they end."""

    @property
    def size(self) -> int | None: ...

    def __iter__(self) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Copied:
    """A file that its source stored by itself, proven, without its bytes passing here; ``size`` in bytes."""

    size: int


class Source(Protocol):
    """What the transfer needs of PhysioNet."""

    def open(self, dataset: Dataset, path: str, sha256: str | None, slot: Slot | None = None) -> Incoming | Copied:
        """One file."""
        ...

    def check_access(self, dataset: Dataset) -> None:
        """Raises unless PhysioNet serves."""
        ...


class Destination(Protocol):
    """What the transfer needs of a bucket."""

    def put(
        self, path: str, data: bytes, *, content_type: str, storage_class: str = "STANDARD", sha256: str | None = None
    ) -> str:
        """Store one file, atomically; the store itself compares the bytes with ``sha256``."""
        ...

    def upload(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        content_type: str = "application/octet-stream",
        storage_class: str = "STANDARD",
    ) -> int:
        """Store a file of any size in bounded memory, atomically; its size in bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that is not stored: its path, a short reason for grouping, and the whole story."""

    path: str
    reason: str
    detail: str


@dataclass(eq=False, slots=True)
class _Job:
    """An image until it is stored or given up; two attempts at it may run at once when the first one hangs."""

    image: Image
    tries: int = 0
    refusals: int = 0
    waits: int = 0
    hung: bool = False  # its last attempt was not answered at all
    running: int = 0
    slot: Slot | None = None  # of the attempt that downloads
    got: bool = False  # its bytes are here
    settled: bool = False


@dataclass
class Tally:
    """What has been done so far; ``series`` holds (seconds, images, bytes, connections) for each stretch of time."""

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

    def as_dict(self) -> dict[str, Any]:
        """The part of ``results/NNNN.json`` that the transfer knows."""
        return {
            "state": self.state,
            "started": self.started,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "images": self.images,
            "todo": self.todo,
            "stored": self.stored,
            "bytes": self.bytes,
            "failed": [asdict(failure) for failure in self.failed],
            "error": asdict(self.error) if self.error else None,
            "connections": self.connections,
            "retries": self.retries,
            "faults": dict(self.faults),
            "series": [list(point) for point in self.series],
        }


class Transfer:
    """One shard on its way.

    Args:
        images: What is to be stored.
        source: Where it comes from.
        bucket: Where it goes.
        dataset: Whose images they are.
        pace: The download slots; its limit bounds the threads.
        total: Images of the shard, those already there included.
        storage_class: S3 storage class.
        publish: Called every few seconds, and once in the end, with the tally as a dict.
        on_stored: Called for each image with the seconds from its request to S3's answer.
        attempts: Tries of an image.
        patience: Seconds to wait for a server that is down.
        backoff: Seconds before an image's second try, on average; doubled each time.
        stop: Set it to drain: images whose bytes are coming finish, the rest is left.
    """

    def __init__(
        self,
        images: Iterable[Image],
        *,
        source: Source,
        bucket: Destination,
        dataset: Dataset,
        pace: Pace,
        total: int | None = None,
        storage_class: str = "STANDARD",
        publish: Callable[[dict[str, Any]], None] = lambda _: None,
        on_stored: Callable[[float], None] = lambda _: None,
        attempts: int = ATTEMPTS,
        patience: float = PATIENCE,
        backoff: float = 1.0,
        stop: threading.Event | None = None,
    ) -> None:
        self._ready = deque(_Job(image) for image in images)
        self._source, self._bucket, self._dataset, self._pace = source, bucket, dataset, pace
        self._storage_class, self._publish, self._on_stored = storage_class, publish, on_stored
        self._attempts, self._patience, self._backoff = attempts, patience, backoff
        self._stop = stop or threading.Event()
        self._later: list[tuple[float, int, _Job]] = []  # heap of (due, tie-breaker, job)
        self._running: set[_Job] = set()
        self._unsettled = len(self._ready)
        self._served = 0  # images that the source gave
        self._doubtful: list[tuple[float, _Job]] = []  # when which image lost a try to what an outage looks like
        self._down_since: float | None = None  # when the source was first asked in vain and served nobody since
        self._hold_until = 0.0
        self._fatal: MirrorError | None = None
        self._changed = threading.Condition()
        self.tally = Tally(images=total or len(self._ready), todo=len(self._ready))

    def run(self) -> Tally:
        """Store everything; returns the tally when all is stored or when it was drained.

        Raises:
            ImagesFailed: Some images could not be had, by their own fault; the others are stored.
            Throttled, SourceUnavailable, DestinationUnavailable: A server served nobody for longer than patience lasts.
            MirrorError: What makes going on senseless (credentials, agreement, bucket).
        """
        count = min(self.tally.todo, self._pace.limit + max(2, self._pace.limit // 2))  # the surplus stores meanwhile
        threads = [threading.Thread(target=self._work, name=f"image-{n}", daemon=True) for n in range(count)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            self._watch(begun)
        finally:
            self._stop.set()
            with self._changed:
                self._changed.notify_all()
                self._conclude(time.monotonic() - begun)
                result = self.tally.as_dict()
            self._publish(result)
        if self._fatal is not None:
            raise self._fatal
        if self.tally.failed:
            raise self._images_failed()
        return self.tally

    def _conclude(self, seconds: float) -> None:
        tally = self.tally
        tally.seconds = seconds
        if self._fatal is not None:
            tally.error = Failure("", self._fatal.reason, str(self._fatal))
        if tally.stored == tally.todo:
            tally.state = "done"
        else:
            tally.state = "failed" if self._fatal is not None or tally.failed else "drained"

    def _images_failed(self) -> ImagesFailed:
        failed, tally = self.tally.failed, self.tally
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(f.reason for f in failed).most_common())
        return ImagesFailed(
            f"{len(failed)} of {tally.todo} images could not be had ({reasons}); {tally.stored} are stored and stay. The "
            f"first one: {failed[0].detail} The report names them all; trigger the run again to try only these."
        )

    # -- the watch -------------------------------------------------------------------------------------------------

    def _watch(self, begun: float) -> None:
        """Wait for the end; log, publish and sample meanwhile."""
        next_log = next_publish = begun + 1.0
        sampled = begun, 0, 0
        drained_by: float | None = None
        while True:
            with self._changed:
                if not self._is_over():
                    self._changed.wait(0.5)
                over = self._is_over()
            now = time.monotonic()
            if self._stop.is_set():
                drained_by = drained_by or now + GRACE
                over = over or now > drained_by
            with self._changed:
                self.tally.seconds = now - begun
                self.tally.connections = self._pace.slots
                at, images, received = sampled
                if over or now - at >= 1.0:
                    self._sample(now - begun, self.tally.stored - images, self.tally.bytes - received)
                    sampled = now, self.tally.stored, self.tally.bytes
                if over:
                    return
                snapshot = self.tally.as_dict()
            if now >= next_log:
                log.info("%s", progress_line(snapshot))
                next_log = now + LOG_EVERY
            if now >= next_publish:
                self._publish(snapshot)
                next_publish = now + PUBLISH_EVERY

    def _sample(self, at: float, images: int, received: int) -> None:
        series = self.tally.series
        series.append((round(at, 1), images, received, self._pace.slots))
        if len(series) > MOST_POINTS:  # neighbours are merged
            pairs = zip(series[::2], series[1::2], strict=False)
            series[: len(series) // 2 * 2] = [(b[0], a[1] + b[1], a[2] + b[2], b[3]) for a, b in pairs]

    def _is_over(self) -> bool:
        if self._fatal is not None or not self._unsettled:
            return True
        return self._stop.is_set() and not any(job.got or (job.slot and job.slot.answered) for job in self._running)

    # -- the work --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """A thread: one image after the other."""
        while (job := self._take()) is not None:
            served = self._served
            try:
                size = self._move(job)
            except MirrorError as error:
                self._missed(job, error, self._is_serving(job, error, served))
            except Exception as error:
                log.exception("unexpected error at %s", job.image.path)
                self._missed(job, MirrorError(f"Unexpected {type(error).__name__}; the log above shows where."), True)
            else:
                self._moved(job, size)

    def _take(self) -> _Job | None:
        """The next image that is due, or None when there will be none."""
        with self._changed:
            while self._unsettled and not self._is_stopping():
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._ready.append(heapq.heappop(self._later)[2])
                job = self._ready.popleft() if self._ready and now >= self._hold_until else self._overdue()
                if job is not None:
                    job.running += 1
                    self._running.add(job)
                    return job
                due = [self._hold_until] if self._ready else [at for at, *_ in self._later[:1]]
                self._changed.wait(max(0.005, min([0.2, *(at - now for at in due)])))
            return None

    def _overdue(self) -> _Job | None:
        """At the end, an image that waits for an answer: a connection that works can bring it sooner."""
        if self._ready or self._later:
            return None
        for job in self._running:
            if job.running == 1 and job.slot and not job.slot.answered and self._pace.age(job.slot) > OVERDUE:
                return job
        return None

    def _move(self, job: _Job) -> int | None:
        """Fetch, prove and store one image; its size in bytes, or None when draining or another attempt came first."""
        path, sha256 = job.image.path, job.image.sha256
        data: bytes | None = None
        with self._pace.slot(lambda: self._is_stopping() or job.got) as slot:
            if slot is None:
                return None
            job.slot, job.hung = slot, False
            begun = time.monotonic()
            try:
                incoming = self._source.open(self._dataset, path, sha256, slot)
                if isinstance(incoming, Copied):
                    size = incoming.size
                elif incoming.size is not None and incoming.size > BIG:
                    size = self._bucket.upload(
                        path, incoming, content_type=self._dataset.image_type, storage_class=self._storage_class
                    )
                else:
                    data = b"".join(incoming)
                    size = len(data)
            except Throttled as error:
                self._pace.congested(slot, error.reason, error.retry_after and min(error.retry_after, self._patience))
                raise
            except Stalled as error:
                if not slot.answered:
                    job.hung = True
                    self._pace.congested(slot, error.reason)
                raise
        with self._changed:
            self._served += 1
            self._down_since = None
            if job.got:
                return None
            job.got = True
        if data is not None:
            self._store(job.image, data)
        self._on_stored(time.monotonic() - begun)
        return size

    def _store(self, image: Image, data: bytes) -> None:
        """PUT, and again for as long as S3 is away: what was fetched is not thrown away."""
        begun, wait = time.monotonic(), 0.5
        while True:
            try:
                self._bucket.put(
                    image.path,
                    data,
                    content_type=self._dataset.image_type,
                    storage_class=self._storage_class,
                    sha256=image.sha256,
                )
                return
            except DestinationUnavailable as error:
                if time.monotonic() - begun + wait > self._patience or self._is_stopping():
                    raise
                with self._changed:
                    if wait == 0.5 and not self.tally.faults[error.reason]:
                        log.warning("%s", error)
                    self.tally.faults[error.reason] += 1
                    self.tally.retries += 1
            self._stop.wait(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, 15.0)

    def _is_stopping(self) -> bool:
        return self._stop.is_set() or self._fatal is not None

    # -- what became of it -----------------------------------------------------------------------------------------

    def _ended(self, job: _Job) -> None:
        job.running -= 1
        if not job.running:
            self._running.discard(job)
            job.slot = None
        self._changed.notify_all()

    def _moved(self, job: _Job, size: int | None) -> None:
        with self._changed:
            self._ended(job)
            if size is not None and not job.settled:
                job.settled = True
                self._unsettled -= 1
                self.tally.stored += 1
                self.tally.bytes += size

    def _is_serving(self, job: _Job, error: MirrorError, served: int) -> bool:
        """Whether PhysioNet serves, so that the image itself failed.

        Others tell, when one came since this attempt began (``served`` had come by then) or is coming. Where they do not,
        and before an image loses its last try to what an outage looks like, the checksum file is asked for.
        """
        with self._changed:
            serving = self._served > served or any(
                other is not job and other.slot and other.slot.answered and not other.got for other in self._running
            )
        last = job.tries + 1 >= self._attempts
        unavailable, cut_off = isinstance(error, SourceUnavailable), isinstance(error, Truncated)
        if not (last and (unavailable or cut_off)) and not (unavailable and not serving):
            return serving or isinstance(error, FileError)
        try:
            self._source.check_access(self._dataset)
        except MirrorError:
            return False
        return True

    def _missed(self, job: _Job, error: MirrorError, serving: bool) -> None:
        """Decide at whose expense an image failed: the shard's, everybody's or its own."""
        with self._changed:
            self._ended(job)
            self.tally.faults[error.reason] += 1
            if job.settled or self._is_stopping():
                return
            if not isinstance(error, Throttled | SourceUnavailable | FileError):
                self._fatal = error
            elif job.running:  # the other attempt decides
                return
            elif serving:
                self._try_again(job, error)
            else:
                self._wait_for_source(job, error)

    def _wait_for_source(self, job: _Job, error: MirrorError) -> None:
        """It serves nobody: nobody asks for a while, longer each time, until patience runs out."""
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
            log.warning("%s", error)
        down = now - self._down_since
        if down > self._patience:
            self._fatal = error
            return
        if not isinstance(error, Throttled):
            for at, other in self._doubtful:
                other.tries -= now - at < NOTICED
            self._doubtful.clear()
        wait = min(0.5 * self._backoff + down / 4, 20.0) * random.uniform(0.5, 1.5)
        self._hold_until = max(self._hold_until, now + wait)
        job.waits += 1
        # The same image again, as the server may refuse each one just once; but not for ever the same.
        (self._ready.appendleft if job.waits % 3 else self._ready.append)(job)
        self.tally.retries += 1

    def _try_again(self, job: _Job, error: MirrorError) -> None:
        """Later, exponentially and with jitter, and never before the server's own wish; or never."""
        if isinstance(error, Throttled) or job.hung:  # a hang says more of the connection than of the image
            job.refusals += 2 if job.hung else 1  # but takes a whole time-out
            asked_for = min(getattr(error, "retry_after", None) or 0.0, self._patience)
            wait = max(min(self._backoff * 2.0 ** (job.refusals - 1), 30.0) * random.uniform(0.5, 1.5), asked_for)
        else:
            job.tries += 1
            if isinstance(error, SourceUnavailable | Truncated):
                now = time.monotonic()
                self._doubtful = [(at, other) for at, other in self._doubtful if now - at < NOTICED] + [(now, job)]
            wait = self._backoff * 2.0 ** (job.tries - 1) * random.uniform(0.5, 1.5)
        if job.tries >= self._attempts or job.refusals >= REFUSALS:
            job.settled = True
            self._unsettled -= 1
            self.tally.failed.append(Failure(job.image.path, error.reason, str(error)))
            log.warning("gave up: %s", error)
            return
        self.tally.retries += 1
        heapq.heappush(self._later, (time.monotonic() + wait, id(job), job))


def progress_line(done: dict[str, Any]) -> str:
    """``done/total, images/s, MB/s, failures, time left`` of a tally's dict, for the log."""
    seconds = max(done["seconds"], 1e-9)
    series = done["series"]
    earlier = [point for point in series if point[0] <= seconds - 60]
    recent = series[len(earlier) :]
    span = max(seconds - (earlier[-1][0] if earlier else 0.0), 1e-9)
    images, received = sum(point[1] for point in recent), sum(point[2] for point in recent)
    left = done["todo"] - done["stored"] - len(done["failed"])
    eta = f"{_clock(left * span / images)} left" if images else "waiting"
    return (
        f"{done['stored']:,}/{done['todo']:,} images  {images / span:.1f} images/s  {received / span / 1e6:.1f} MB/s  "
        f"{done['connections']} connections  {len(done['failed'])} failed  {eta}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
