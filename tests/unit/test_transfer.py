"""The transfer loop on a source and a bucket in memory: what is stored is correct and only grows, and nothing hangs."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror import transfer as module
from physionet_mirror.errors import (
    AccessRefused,
    BucketRefused,
    Corrupt,
    CredentialsRefused,
    DestinationUnavailable,
    ImagesFailed,
    MirrorError,
    NotFound,
    NotTheFile,
    SourceUnavailable,
    Stalled,
    Throttled,
    Truncated,
)
from physionet_mirror.files import File
from physionet_mirror.mover import Fetched, Mode, SourceStats, Turn
from physionet_mirror.pace import Pace
from physionet_mirror.records import ShardResult
from physionet_mirror.throughput import progress_line
from physionet_mirror.transfer import Transfer


def content(path: str) -> bytes:
    return path.encode() * 3


def images(count: int) -> list[File]:
    paths = [f"files/p10/{n:04}.jpg" for n in range(count)]
    return [File(path, hashlib.sha256(content(path)).hexdigest()) for path in paths]


class Body:
    def __init__(self, data: bytes, sha256: str | None) -> None:
        self.data, self.sha256 = data, sha256

    def __iter__(self) -> Iterator[bytes]:
        yield self.data[:5]
        yield self.data[5:]
        if hashlib.sha256(self.data).hexdigest() != self.sha256:
            raise Corrupt("corrupt")


class Source:
    """A mover of ``content``; ``meet`` is called with each path first, and may raise or wait."""

    mode: Mode = "download"
    per_connection = 1
    keeps_turn = False

    def __init__(self, meet: Callable[[str], Any] = lambda _: None, *, up: Callable[[], bool] = lambda: True) -> None:
        self.meet, self.up = meet, up
        self.bucket = Bucket()
        self.stats = SourceStats()
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.now = self.most = 0

    def fetch(self, file: File, turn: Turn) -> Fetched:
        with self.lock:
            self.asked[file.path] += 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            met = self.meet(file.path)
            turn.answered(serves=True)
            self.stats.received += 1000
            data = b"".join(met if isinstance(met, Body) else Body(content(file.path), file.sha256))
        finally:
            with self.lock:
                self.now -= 1
        return Fetched(len(data), partial(self.bucket.put, file.path, data), len(data))

    def check(self) -> None:
        if not self.up():
            raise SourceUnavailable("down")

    def close(self) -> None:
        pass


class Bucket:
    """Stores objects atomically, as S3 does, and records each change."""

    def __init__(self, meet: Callable[[str], None] = lambda _: None) -> None:
        self.meet = meet
        self.objects: dict[str, bytes] = {}
        self.puts: list[tuple[str, bytes]] = []

    def put(self, path: str, data: bytes) -> None:
        self.meet(path)
        self.objects[path] = data
        self.puts.append((path, data))


class Busy:
    """A PUT takes ``seconds``; S3 refuses those above ``most`` at once."""

    def __init__(self, *, seconds: float, most: int = 1000) -> None:
        self.seconds, self.allowed = seconds, most
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, _: str) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            refused = self.now > self.allowed
        try:
            if refused:
                raise DestinationUnavailable("slow down")
            time.sleep(self.seconds)
        finally:
            with self.lock:
                self.now -= 1


def make(some: list[File], source: Source, bucket: Bucket, *, connections: int = 4, **more: Any) -> Transfer:
    more = {"backoff": 0.01, "patience": 5.0, **more}
    source.bucket = bucket
    pace = Pace(connections, start=connections, received=lambda: source.stats.received)
    return Transfer(some, mover=source, pace=pace, **more)


def fails(
    error: Callable[[], MirrorError], times: int | None, only: Iterable[str] | None = None
) -> Callable[[str], None]:
    """Raise at the first ``attempts`` attempts of each path (None = at all of them)."""
    met: Counter[str] = Counter()

    def meet(path: str) -> None:
        if only is not None and path not in only:
            return
        met[path] += 1
        if times is None or met[path] <= times:
            raise error()

    return meet


# -- what is stored -------------------------------------------------------------------------------------------------


def test_every_image_is_stored_once():
    source, bucket = Source(), Bucket()
    tally = make(images(50), source, bucket).run()
    assert bucket.objects == {image.path: content(image.path) for image in images(50)}
    assert len(bucket.puts) == 50
    assert (tally.stored, tally.todo, tally.state, tally.retries) == (50, 50, "done", 0)
    assert tally.bytes == sum(map(len, bucket.objects.values()))


def test_nothing_to_do_is_done():
    assert make([], Source(), Bucket()).run().state == "done"


def test_wrong_bytes_never_become_an_object():
    def wrong(path: str) -> Body | None:
        return Body(b"something else", images(3)[1].sha256) if path == images(3)[1].path else None

    bucket = Bucket()
    with pytest.raises(ImagesFailed, match="1 corrupt"):
        make(images(3), Source(wrong), bucket).run()
    assert images(3)[1].path not in bucket.objects
    assert len(bucket.objects) == 2


def test_connections_are_never_exceeded():
    source = Source(lambda _: time.sleep(0.002))
    make(images(100), source, Bucket(), connections=3).run()
    assert source.most == 3


def test_a_slow_bucket_does_not_hold_the_connections_back():
    """Downloads go on while images are stored."""
    bucket = Bucket(lambda _: time.sleep(0.05))
    source = Source()
    transfer = make(images(12), source, bucket, connections=2)
    transfer.run()
    assert transfer.tally.seconds < 12 * 0.05 / 2 + 0.6


def test_as_many_files_are_stored_at_once_as_that_takes():
    """Storing a file takes 50 times as long as fetching it, and the connections do not wait for that."""
    busy = Busy(seconds=0.1)
    transfer = make(images(300), Source(lambda _: time.sleep(0.002)), Bucket(busy), connections=2)
    transfer.run()
    assert busy.most > 20
    assert transfer.tally.seconds < 300 * 0.1 / (2 + 2) / 2  # with only two more threads it would take 7.5 s


def test_files_on_their_way_to_the_bucket_fill_no_memory(monkeypatch):
    monkeypatch.setattr(module, "HELD", 3 * len(content(images(1)[0].path)))
    busy = Busy(seconds=0.02)
    make(images(100), Source(), Bucket(busy), connections=4).run()
    assert busy.most <= 3 + 1 + 4  # the fifth is not begun, but those with a slot continue


def test_less_is_stored_at_once_when_s3_asks_for_less(monkeypatch):
    jitter = random.Random(1)
    monkeypatch.setattr(module.random, "uniform", lambda low, high: jitter.uniform(low, high) / 10)
    busy = Busy(seconds=0.02, most=8)
    tally = make(images(400), Source(), Bucket(busy), connections=4, patience=60.0).run()
    assert tally.stored == 400
    assert tally.faults["destination unavailable"] < 200  # otherwise each would be refused again and again


def test_a_mover_that_keeps_its_turn_has_no_more_under_way_than_it_may():
    source, lock, under_way, most = Source(), threading.Lock(), 0, 0

    def count(by: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += by
            most = max(most, under_way)

    def store(_: str) -> None:
        time.sleep(0.005)
        count(-1)

    source.keeps_turn = True
    source.meet = lambda _: count(+1)
    tally = make(images(40), source, Bucket(store), connections=4).run()

    assert (tally.stored, under_way, most) == (40, 0, 4)


# -- classifying failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [NotFound, Truncated, Corrupt, NotTheFile, SourceUnavailable])
def test_an_image_is_tried_three_times_and_then_named(error):
    bad = images(30)[7].path
    source, bucket = Source(fails(lambda: error("why it failed"), None, {bad})), Bucket()
    transfer = make(images(30), source, bucket)
    with pytest.raises(ImagesFailed, match="1 of 30 images could not be had"):
        transfer.run()
    assert source.asked[bad] == 3
    assert [(f.path, f.reason, f.detail) for f in transfer.tally.failed] == [(bad, error("").reason, "why it failed")]
    assert len(bucket.objects) == 29
    with pytest.raises(ImagesFailed, match="1 of 30 files could not be had"):
        make(images(30), Source(fails(lambda: error("why it failed"), None, {bad})), Bucket(), noun="file").run()
    assert transfer.tally.state == "failed"


@pytest.mark.parametrize("error", [NotFound, Truncated, Corrupt, NotTheFile, SourceUnavailable, Stalled, Throttled])
def test_two_failures_are_overcome(error):
    source, bucket = Source(fails(lambda: error("x"), 2)), Bucket()
    tally = make(images(20), source, bucket).run()
    assert len(bucket.objects) == 20
    assert tally.faults[error("").reason] == 40
    assert tally.retries == 40


@pytest.mark.parametrize("error", [CredentialsRefused, AccessRefused])
def test_what_no_retry_can_help_ends_the_shard_at_once(error):
    count = [0]

    def meet(_: str) -> None:
        count[0] += 1
        if count[0] > 20:
            raise error("act")

    source, bucket = Source(meet), Bucket()
    transfer = make(images(1000), source, bucket)
    with pytest.raises(error, match="act"):
        transfer.run()
    assert count[0] <= 20 + 4
    assert transfer.tally.state == "failed"
    assert transfer.tally.error
    assert transfer.tally.error.reason == error("").reason
    assert len(bucket.objects) >= 16


def test_congestion_costs_no_try():
    bad = images(200)[3].path
    source = Source(fails(lambda: Throttled("slow"), 8, {bad}))
    meet = source.meet
    source.meet = lambda path: (meet(path), time.sleep(0.02))[0]
    transfer = make(images(200), source, Bucket(), backoff=0.002)
    assert transfer.run().stored == 200
    assert source.asked[bad] == 9
    assert transfer.tally.failed == []


def test_one_image_that_is_refused_for_ever_ends_the_shard_and_is_not_named():
    bad = images(30)[3].path
    transfer = make(images(30), Source(fails(lambda: Throttled("slow"), None, {bad})), Bucket(), patience=0.5)
    with pytest.raises(Throttled, match="slow"):
        transfer.run()
    assert (transfer.tally.stored, transfer.tally.failed) == (29, [])


def test_the_last_image_on_a_connection_that_hangs_is_named_when_the_checksum_file_is_served():
    source = Source(fails(lambda: Stalled("no answer"), None))
    transfer = make(images(1), source, Bucket())
    with pytest.raises(ImagesFailed):
        transfer.run()
    assert source.asked.total() == 3


@pytest.mark.parametrize("error", [SourceUnavailable, Throttled])
def test_a_server_that_refuses_every_image_once_is_not_taken_to_be_down(error):
    transfer = make(images(200), Source(fails(lambda: error("x"), 1)), Bucket())
    assert transfer.run().stored == 200
    assert transfer.tally.seconds < 4


@pytest.mark.parametrize("connections", [1, 4])
def test_bad_images_at_the_head_do_not_hide_that_the_server_is_well(connections):
    bad = {image.path for image in images(8)}
    source = Source(fails(lambda: SourceUnavailable("x"), None, bad))
    transfer = make(images(20), source, Bucket(), connections=connections)
    with pytest.raises(ImagesFailed):
        transfer.run()
    assert {failure.path for failure in transfer.tally.failed} == bad


def test_an_outage_costs_no_try():
    """Each image has used two of its three tries when the server goes down and comes back."""
    down, up_again = 0.5, [0.0]
    began = time.monotonic()
    own = fails(lambda: Corrupt("x"), 2)

    def meet(path: str) -> None:
        if 0.1 < time.monotonic() - began < 0.1 + down:
            raise random.choice([SourceUnavailable("gone"), Truncated("cut off")])
        up_again[0] += 1
        time.sleep(0.005)
        own(path)

    source = Source(meet, up=lambda: not 0.1 < time.monotonic() - began < 0.1 + down)
    tally = make(images(60), source, Bucket()).run()
    assert tally.stored == 60
    assert tally.failed == []
    assert tally.faults["source unavailable"] + tally.faults["truncated"] > 0


def test_an_outage_longer_than_patience_ends_the_shard():
    source = Source(fails(lambda: SourceUnavailable("gone"), None), up=lambda: False)
    transfer = make(images(10), source, Bucket(), patience=0.5)
    with pytest.raises(SourceUnavailable, match="down"):
        transfer.run()
    assert 0.4 < transfer.tally.seconds < 5
    assert transfer.tally.failed == [], "the images are not to blame"


def test_during_an_outage_the_server_is_asked_ever_more_rarely():
    source = Source(fails(lambda: SourceUnavailable("gone"), None), up=lambda: False)
    with pytest.raises(SourceUnavailable):
        make(images(100), source, Bucket(), patience=3.0, backoff=0.5).run()
    assert sum(source.asked.values()) < 100


def test_retry_after_is_not_waited_for_longer_than_patience():
    bad = images(10)[2].path
    source = Source(fails(lambda: Throttled("slow", 3600.0), 1, {bad}))
    transfer = make(images(10), source, Bucket(), patience=0.5)
    transfer.run()
    assert transfer.tally.seconds < 5


def test_a_defect_of_ours_ends_the_shard_with_its_name():
    def meet(path: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(MirrorError, match="ZeroDivisionError"):
        make(images(3), Source(meet), Bucket()).run()


def test_a_defect_in_the_failure_path_ends_the_shard(monkeypatch):
    """A worker that dies must not leave `run` waiting."""
    transfer = make(images(3), Source(fails(lambda: NotFound("x"), None)), Bucket())
    monkeypatch.setattr(transfer, "_missed", lambda *_: 1 / 0)
    with pytest.raises(MirrorError, match="ZeroDivisionError"):
        transfer.run()
    assert transfer.tally.seconds < 5


# -- the bucket's faults --------------------------------------------------------------------------------------------


def test_what_was_fetched_is_put_again_rather_than_fetched_again(monkeypatch):
    source, bucket = Source(), Bucket(fails(lambda: DestinationUnavailable("slow down"), 1))
    monkeypatch.setattr(module.random, "uniform", lambda *_: 0.02)
    tally = make(images(10), source, bucket).run()
    assert len(bucket.objects) == 10
    assert set(source.asked.values()) == {1}
    assert tally.faults["destination unavailable"] == 10


def test_a_refusing_bucket_ends_the_shard():
    with pytest.raises(BucketRefused):
        make(images(10), Source(), Bucket(fails(lambda: BucketRefused("no"), None))).run()


# -- draining and crashing ------------------------------------------------------------------------------------------


def test_draining_lets_running_images_finish_and_leaves_the_rest():
    stop = threading.Event()
    bucket = Bucket()

    def meet(_: str) -> None:
        time.sleep(0.01)
        if len(bucket.objects) > 10:
            stop.set()

    tally = make(images(500), Source(meet), bucket, stop=stop).run()
    assert tally.state == "drained"
    assert tally.stored == len(bucket.objects)
    assert 10 < tally.stored < 40
    assert tally.failed == []


def test_draining_does_not_wait_for_what_hangs():
    stop, release = threading.Event(), threading.Event()

    def meet(_: str) -> None:
        stop.set()
        release.wait(30)

    began = time.monotonic()
    tally = make(images(10), Source(meet), Bucket(), stop=stop).run()
    release.set()
    assert tally.state == "drained"
    assert time.monotonic() - began < 3


def test_what_comes_after_the_shard_is_over_is_not_stored():
    stop, release, bucket = threading.Event(), threading.Event(), Bucket()

    def meet(_: str) -> None:
        stop.set()
        release.wait(30)

    transfer = make(images(10), Source(meet), bucket, stop=stop)
    tally = transfer.run()
    release.set()
    for thread in transfer._threads:
        thread.join(10)
    assert bucket.objects == {}
    assert tally.stored == transfer.result().stored == 0


def test_draining_waits_for_a_stalled_download_for_a_while_only(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.3)
    stop, release = threading.Event(), threading.Event()

    class Slow(Body):
        def __iter__(self) -> Iterator[bytes]:
            stop.set()
            release.wait(30)
            yield b""

    began = time.monotonic()
    tally = make(images(10), Source(lambda p: Slow(content(p), "")), Bucket(), stop=stop).run()
    release.set()
    assert tally.state == "drained"
    assert time.monotonic() - began < 5


def test_a_stop_does_not_wait_for_a_publication_that_hangs(monkeypatch):
    monkeypatch.setattr(module, "LAST_WORDS", 0.3)
    stop, release = threading.Event(), threading.Event()

    def publish(now: ShardResult) -> None:
        if now.stored:
            stop.set()
        release.wait(30)

    source = Source(lambda _: time.sleep(0.1))
    began = time.monotonic()
    tally = make(images(500), source, Bucket(), stop=stop, publish=publish).run()
    release.set()
    assert tally.state == "drained"
    assert time.monotonic() - began < 6


class Terminated(BaseException):
    """An exception as a signal handler raises it."""


def test_an_exception_in_the_main_thread_ends_within_seconds(monkeypatch):
    """As on SIGTERM in Airflow, even while all downloads hang."""
    release, published = threading.Event(), []
    transfer = make(images(50), Source(lambda _: release.wait(60)), Bucket(), publish=published.append)
    watched = transfer._is_over
    began = time.monotonic()

    def over() -> bool:
        if time.monotonic() - began > 0.3 and not release.is_set():
            raise Terminated
        return watched()

    monkeypatch.setattr(transfer, "_is_over", over)
    with pytest.raises(Terminated):
        transfer.run()
    assert time.monotonic() - began < 3
    assert published[-1].state == "drained"
    release.set()


# -- log ------------------------------------------------------------------------------------------------------------


def test_the_last_publication_is_the_result():
    published: list[ShardResult] = []
    make(images(5), Source(), Bucket(), publish=published.append, total=9).run()
    last = published[-1]
    assert last.state == "done"
    assert (last.images, last.todo, last.stored) == (9, 5, 5)
    assert sum(point[1] for point in last.series) == 5
    assert sum(point[2] for point in last.series) == last.bytes


def test_no_line_per_image(caplog):
    caplog.set_level(logging.INFO)
    make(images(300), Source(), Bucket()).run()
    assert len(caplog.records) <= 3


def test_the_series_stays_short_and_complete():
    transfer = make(images(1), Source(), Bucket())
    for second in range(5000):
        transfer._sample(float(second), 2, 10)
    series = transfer.tally.series
    assert len(series) <= 120
    assert sum(point[1] for point in series) == 10_000
    assert [point[0] for point in series] == sorted(point[0] for point in series)


@pytest.mark.parametrize("seconds", [0.4, 30, 90, 5000])
def test_the_progress_line_tells_the_rate_of_the_last_minute(seconds):
    transfer = make(images(1), Source(), Bucket())
    for second in range(1, int(seconds) + 1):
        transfer._sample(float(second), 4, 4_000_000)
    done = replace(transfer.result(), seconds=seconds, todo=100_000, stored=20, connections=8)
    line = progress_line(done)
    assert line.startswith("20/100,000 images")
    assert progress_line(done, noun="file") == line.replace("image", "file")
    if seconds > 1:
        rate = float(line.split(" images/s")[0].split()[-1])
        assert rate == pytest.approx(4, rel=0.1)
        assert line.endswith("left")
    else:
        assert line.endswith("waiting")


# -- crashes and restarts -------------------------------------------------------------------------------------------

FAULTS: list[Callable[[], MirrorError]] = [
    lambda: SourceUnavailable("down"),
    lambda: Throttled("slow"),
    lambda: Throttled("slow", 0.01),
    lambda: Stalled("stalled"),
    lambda: Truncated("short"),
    lambda: NotTheFile("page"),
    lambda: NotFound("not there yet"),
]


@given(seed=st.integers(0, 2**32), crashes=st.lists(st.integers(0, 40), max_size=6), count=st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_any_crashes_and_restarts_end_with_the_selection(seed, crashes, count):
    """Stored objects only grow, never hold a wrong byte, and equal the selection in the end."""
    rng = random.Random(seed)
    some = images(count)
    truth = {image.path: content(image.path) for image in some}
    lock = threading.Lock()

    def meet(path: str) -> Body | None:
        with lock:
            luck, fault = rng.random(), rng.choice(FAULTS)
        if luck < 0.15:
            raise fault()
        if luck < 0.25:
            return Body(rng.randbytes(20), hashlib.sha256(content(path)).hexdigest())
        return None

    def meet_put(_: str) -> None:
        with lock:
            luck = rng.random()
        if luck < 0.02:
            raise DestinationUnavailable("slow down")

    bucket = Bucket(meet_put)
    seen: set[str] = set()

    def check() -> None:
        now = dict(bucket.objects)
        assert seen <= now.keys(), "nothing is ever taken away"
        assert all(truth[path] == data for path, data in now.items()), "no wrong byte"
        seen.update(now)

    for crash_at in [*crashes, None, None, None, None, None, None, None, None]:
        missing = [image for image in some if image.path not in bucket.objects]
        stop = threading.Event()
        source = Source(meet)
        asked = [0]
        ways = rng.choice(["exception", "drain"])

        def until(path: str, asked=asked, crash_at=crash_at, stop=stop, meet=meet) -> Body | None:
            asked[0] += 1
            if crash_at is not None and asked[0] > crash_at:
                stop.set()
            return meet(path)

        source.meet = until
        transfer = make(missing, source, bucket, stop=stop, backoff=0.001, patience=0.5, connections=3)
        if ways == "exception":
            whether_over = transfer._is_over

            def over(stop=stop, whether_over=whether_over) -> bool:
                if stop.is_set() and threading.current_thread() is threading.main_thread():
                    raise Terminated
                return whether_over()

            transfer._is_over = over  # type: ignore[method-assign]
        with suppress(MirrorError, Terminated):
            transfer.run()
        check()
        if len(bucket.objects) == count and crash_at is None:
            break
    assert bucket.objects == truth
    assert all(truth[path] == data for path, data in bucket.puts), "not even for a moment"
