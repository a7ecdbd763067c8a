"""The pace finds a server's capacity, stays there, and backs off when asked to; on a simulated server and clock."""

from __future__ import annotations

import heapq
import json
import math
import random
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror.pace import FEWER, PROBE, START, Comparison, Pace, Slot, recall
from physionet_mirror.records import PaceMemory

IMAGE, RATE, ROUND_TRIP = 1_400_000, 650_000, 0.06
TIME_OUT = 10.0
REFUSING: tuple[Literal["refuse", "hang"], ...] = ("refuse", "hang")


@dataclass
class World:
    """A server that serves ``capacity`` requests at ``rate`` bytes/s each, and refuses further ones or lets them hang.

    Time is simulated. 429 and 503 are the same here: an answer that refuses, perhaps with ``wait`` as Retry-After.
    ``total_rate`` is the limit for all requests together; every speed varies by ``varies`` (standard deviation, over about
    20 s). ``stragglers`` is the share of downloads at a tenth of the speed, ``slow`` that of those answered only after 1 to 8 s.
    """

    limit: int
    capacity: int = 10**6
    beyond: Literal["refuse", "hang"] = "hang"
    rate: float = RATE
    total_rate: float = math.inf
    varies: float = 0.0
    stragglers: float = 0.0
    slow: float = 0.0
    wait: float | None = None
    work: int = 10**9  # requests still to be made
    seed: int = 0
    step: float = 0.05
    start: dict[str, Any] = field(default_factory=dict)
    now: float = 0.0
    received: float = 0.0
    used: float = 0.0  # seconds of requests that the server has accepted
    slot_seconds: float = 0.0
    refused: int = 0
    asked: list[tuple[float, int, Slot, bool]] = field(default_factory=list)  # when the answer comes, whether it serves
    served: dict[Slot, list[float]] = field(default_factory=dict)  # bytes left, own share of the rate
    changes: list[tuple[float, int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.speed = 1.0
        self.inside = 0
        self.pace = Pace(
            self.limit,
            **self.start,
            received=lambda: int(self.received) // 65536 * 65536,
            clock=lambda: self.now,
            on_change=lambda old, new, why: self.changes.append((self.now, old, new, why)),
        )

    def run(self, seconds: float) -> World:
        end = self.now + seconds
        while self.now < end:
            while self.work and (slot := self._take()) is not None:
                self.work -= 1
                self._ask(slot)
            self.now += self.step
            change = self.random.gauss(0, self.varies * 0.1**0.5) * self.step**0.5
            self.speed = max(0.3, min(1.7, self.speed + change - (self.speed - 1) * 0.05 * self.step))
            self._answer()
            self._send()
            self.used += self.inside * self.step
            self.slot_seconds += self.pace.slots * self.step
        return self

    def hour(self) -> tuple[float, int]:
        """Share of the capacity used and number of refusals in the next hour."""
        used, refused = self.used, self.refused
        self.run(3600)
        return (self.used - used) / 3600 / min(self.capacity, self.limit), self.refused - refused

    def mean_slots(self, seconds: float) -> float:
        before = self.slot_seconds
        self.run(seconds)
        return (self.slot_seconds - before) / seconds

    def _take(self) -> Slot | None:
        """A slot if there is one now; a real thread would wait for it."""
        asked = iter((False, True))
        return self.pace._acquire(lambda: next(asked, True))

    def _ask(self, slot: Slot) -> None:
        serves = self.inside < self.capacity
        after = ROUND_TRIP if serves or self.beyond == "refuse" else TIME_OUT
        if serves:
            self.inside += 1
            if self.random.random() < self.slow:
                after = self.random.uniform(1, 8)
        heapq.heappush(self.asked, (self.now + after, id(slot), slot, serves))

    def _answer(self) -> None:
        while self.asked and self.asked[0][0] <= self.now:
            _, _, slot, serves = heapq.heappop(self.asked)
            slot.answered = serves or self.beyond == "refuse"
            if serves:
                share = 0.1 if self.random.random() < self.stragglers else 1.0
                self.served[slot] = [IMAGE * self.random.uniform(0.75, 1.25), share]
            else:
                self.refused += 1
                self.pace.congested(slot, "throttled", self.wait)
                self.pace._release(slot)

    def _send(self) -> None:
        wanted = self.rate * sum(share for _, share in self.served.values()) or 1.0
        each = self.rate * min(1.0, self.total_rate / wanted) * self.speed * self.step
        for slot, left in list(self.served.items()):
            left[0] -= each * left[1]
            self.received += each * left[1]
            if left[0] <= 0:
                del self.served[slot]
                self.inside -= 1
                self.pace._release(slot)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(threading.Condition, "wait", lambda *_: False)


# -- finding the capacity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", REFUSING)
@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 6, 8, 11, 16, 23, 24])
def test_it_finds_what_the_server_gives_and_wastes_nothing_of_it(capacity, beyond):
    world = World(limit=24, capacity=capacity, beyond=beyond).run(20)
    before = world.used
    world.run(300)
    assert world.used - before >= 0.97 * capacity * 300
    assert world.pace.held == capacity


def test_it_starts_low_and_never_exceeds_its_limit():
    world = World(limit=10).run(30)
    assert world.changes[0][1] == START
    assert world.pace.slots == 10
    assert max(new for _, _, new, _ in world.changes) == 10


def test_it_grows_fast():
    world = World(limit=24).run(30)
    reached = next(at for at, _, new, _ in world.changes if new == 24)
    assert reached <= 5


def test_it_learns_nothing_from_a_shard_that_is_too_small():
    world = World(limit=24, work=2).run(10)
    assert world.changes == []
    assert world.pace.held == START


@given(
    capacity=st.integers(1, 40),
    limit=st.integers(1, 32),
    start=st.integers(1, 64),
    beyond=st.sampled_from(REFUSING),
    varies=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_for_any_server_the_slots_stay_in_bounds_and_most_of_it_is_used(capacity, limit, start, beyond, varies, seed):
    world = World(limit=limit, capacity=capacity, beyond=beyond, varies=varies, seed=seed, start={"start": start})
    world.run(90)
    assert all(1 <= new <= limit for _, _, new, _ in world.changes)
    assert len(world.pace._running) <= limit
    before = world.used
    world.run(60)
    assert world.used - before >= 0.85 * 60 * min(capacity, limit)


# -- staying at the capacity ------------------------------------------------------------------------------------------


TROUBLE: dict[str, tuple[int, dict[str, float]]] = {
    "even": (24, {}),
    "varying": (24, {"varies": 0.2}),
    "stragglers": (24, {"varies": 0.2, "stragglers": 0.05}),
    "slow to answer": (24, {"slow": 0.02}),
    "Retry-After": (24, {"wait": 2.0}),
    "far above": (64, {"varies": 0.2}),
}
"""The limit, and the properties that make the server hard to measure."""

SETTLED = [
    pytest.param(
        capacity,
        *TROUBLE[name],
        id=f"{name}-{capacity}",
        marks=[] if capacity == 8 or name == "even" else pytest.mark.slow,  # an hour of each costs a second
    )
    for name in TROUBLE
    for capacity in (4, 8, 16)
]


@pytest.mark.parametrize("beyond", REFUSING)
@pytest.mark.parametrize(("capacity", "limit", "trouble"), SETTLED)
def test_once_settled_it_holds_the_capacity_and_is_hardly_ever_refused(capacity, limit, beyond, trouble):
    world = World(limit=limit, capacity=capacity, beyond=beyond, seed=capacity + limit, step=0.1, **trouble).run(120)
    share, refusals = world.hour()
    assert share >= 0.92
    assert refusals <= 20


def test_a_refused_probe_goes_back_to_exactly_what_held():
    world = World(limit=24, capacity=8, beyond="refuse").run(1800)
    refusals = [(old, new) for at, old, new, why in world.changes if why == "throttled" and at > 10]
    assert refusals
    assert set(refusals) == {(9, 8)}


def test_probes_become_rarer():
    world = World(limit=24, capacity=8, beyond="refuse").run(3600)
    probes = [at for at, _, new, _ in world.changes if new == 9]
    gaps = [after - before for before, after in pairwise(probes)]
    assert gaps == sorted(gaps) or max(gaps) - min(gaps[4:]) < 10
    assert PROBE[1] <= max(gaps) <= PROBE[1] + 30


def test_a_wait_that_a_probe_causes_costs_little():
    world = World(limit=24, capacity=8, beyond="refuse", wait=30.0).run(300)
    assert world.hour()[0] >= 0.92


# -- a link that is the bottleneck ----------------------------------------------------------------------------------


@pytest.mark.parametrize("varies", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("fills", [4, 8])
def test_it_does_not_drift_upwards_where_more_brings_nothing(fills, varies):
    """``fills`` requests fill the link; three seeds, half an hour each after half an hour."""
    means = []
    for seed in range(3):
        world = World(limit=24, total_rate=fills * RATE, varies=varies, seed=seed, step=0.1).run(1800)
        before = world.received
        means.append(world.mean_slots(1800))
        if not varies:
            assert world.received - before >= 0.97 * fills * RATE * 1800
    assert sum(means) / 3 <= 1.6 * fills
    assert min(means) >= 0.9 * fills


def test_slots_sink_to_where_the_rate_is_the_same():
    """It starts with the number that another day needed; now five have the same throughput."""
    for seed in range(3):
        start = {"start": 24, "too_many": 25}
        world = World(limit=24, total_rate=5 * RATE, varies=0.2, seed=seed, start=start, step=0.1).run(900)
        assert world.mean_slots(900) <= 10


def test_where_each_request_has_its_own_speed_none_is_taken_away():
    world = World(limit=16, varies=0.2, start={"start": 16}).run(FEWER[0] + 60)
    assert "carry less" in world.changes[-1][3]
    assert world.hour()[0] >= 0.97


# -- a capacity that changes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("varies", [0.0, 0.2])
@pytest.mark.parametrize("beyond", REFUSING)
@pytest.mark.parametrize("limit", [24, 64])
def test_it_follows_within_minutes_when_there_is_less_and_when_there_is_more(limit, beyond, varies):
    world = World(limit=limit, capacity=16, beyond=beyond, varies=varies, seed=limit).run(300)
    assert world.pace.held == 16
    refused = world.refused
    world.capacity = 4
    world.run(90)
    assert world.pace.held <= 5
    assert world.refused - refused <= 30
    before = world.used
    world.run(300)
    assert world.used - before >= 0.92 * 4 * 300
    world.capacity = 16
    world.run(PROBE[1] + 90)
    assert world.pace.held >= 15


@pytest.mark.parametrize("seed", range(4))
def test_a_server_that_refuses_now_and_then_is_used_all_the_same(seed):
    """One request in a thousand is refused, at any number of slots."""
    world = World(limit=24, capacity=16, beyond="refuse", seed=seed).run(60)
    used = world.used
    for _ in range(20):
        slot = next(iter(world.served))
        world.pace.congested(slot, "throttled")
        world.run(90)
    assert world.used - used >= 0.92 * 16 * 1800


# -- congestion -----------------------------------------------------------------------------------------------------


def _hold(pace: Pace, count: int, stack: ExitStack) -> list[Slot]:
    slots = [stack.enter_context(pace.slot()) for _ in range(count)]
    assert all(slots)
    return [slot for slot in slots if slot]


def _pace(limit: int = 24, start: int = 16, **more: Any) -> tuple[Pace, list[float], list[tuple[int, int, str]]]:
    now, changes = [0.0], []
    pace = Pace(
        limit,
        start=start,
        received=lambda: 0,
        clock=lambda: now[0],
        on_change=lambda *change: changes.append(change),
        **more,
    )
    return pace, now, changes


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize(("refused", "left"), [(1, 15), (5, 11), (12, 8), (16, 8)])
def test_a_burst_takes_off_as_many_as_were_refused_and_at_most_half(refused, left, answered):
    pace, now, changes = _pace()
    with ExitStack() as stack:
        slots = _hold(pace, 16, stack)
        now[0] = 10.0
        for slot in slots[:refused]:
            slot.answered = answered
            pace.congested(slot, "throttled")
    assert pace.slots == left
    assert {why for *_, why in changes} == {"throttled"}


def test_refusals_that_go_on_take_off_ever_more_down_to_one():
    pace, _, changes = _pace()
    for _ in range(8):
        with pace.slot() as slot:
            assert slot
            slot.answered = True
            pace.congested(slot, "throttled")
    assert [new for _, new, _ in changes] == [15, 13, 9, 4, 2, 1]


def test_refusals_from_before_an_earlier_reduction_say_nothing_new():
    pace, _, _ = _pace()
    with ExitStack() as stack:
        *_, old, first = _hold(pace, 16, stack)
        first.answered = True
        pace.congested(first, "throttled")
        second = Slot(pace._epoch, 0.0, answered=True)
        pace.congested(second, "throttled")
        before = pace.slots
        pace.congested(old, "throttled")
    assert pace.slots == before


def test_after_congestion_the_slots_come_back_in_steps():
    world = World(limit=24, capacity=16, beyond="refuse").run(60)
    for slot in list(world.served)[:8]:
        world.pace.congested(slot, "throttled")
    assert world.pace.slots == 8
    since = len(world.changes)
    world.run(20)
    assert [new for _, _, new, _ in world.changes[since:]][:4] == [9, 11, 15, 16]
    assert world.pace.held == 16
    assert world.pace.memory().too_many == 17, "what was known before is known again"


def test_one_slow_answer_is_no_refusal():
    """The pace waits for a probe's request that is answered after five seconds, and counts it as served."""
    world = World(limit=24, capacity=8, beyond="refuse", start={"start": 8, "too_many": 9}).run(19)
    world.capacity = 9
    while world.pace.slots < 9:
        world.run(world.step)
    world.run(world.step)
    youngest = max(world.asked, key=lambda asked: asked[2].since)
    world.asked.remove(youngest)
    world.asked.append((world.now + 5.0, *youngest[1:]))
    heapq.heapify(world.asked)
    world.run(4)
    assert world.pace.slots == 9
    world.run(60)
    assert world.pace.held == 9


def test_nobody_starts_before_the_server_wants_it():
    pace, now, _ = _pace()
    with pace.slot() as slot:
        assert slot
        pace.congested(slot, "throttled", wait=30.0)
    turns = iter((False, True, False, True))
    now[0] = 29.9
    assert pace._acquire(lambda: next(turns)) is None
    now[0] = 30.0
    assert pace._acquire(lambda: next(turns)) is not None


def test_the_time_of_a_pause_is_not_taken_for_slowness():
    world = World(limit=24, capacity=8).run(60)
    slot = next(iter(world.served))
    world.pace.congested(slot, "throttled", wait=20.0)
    world.run(80)
    assert world.pace.held == 8


def test_downloads_that_hang_do_not_keep_others_from_their_slots():
    """Eight run, five of them without an answer. Once one has timed out, those being served keep their slots."""
    pace, now, _ = _pace(limit=16, start=8)
    with ExitStack() as stack:
        slots = _hold(pace, 8, stack)
        for slot in slots[:3]:
            slot.answered = True
        assert pace._occupied(now[0]) == 8, "the other five may be answered in a moment"
        now[0] += 2.0
        for slot in slots[4:8]:
            pace.congested(slot, "throttled")
        assert pace.slots == 4
        assert pace._occupied(now[0]) == 4, "three that are served, and one of those that hang"
        pace._release(slots[0])
        assert pace._occupied(now[0]) == 3, "so another one may start"


def test_a_reason_is_given_for_each_change():
    world = World(limit=24, capacity=4).run(600)
    assert all(why for *_, why in world.changes)
    assert any("MB/s" in why for *_, why in world.changes)


# -- the comparison -------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), low=st.integers(2, 200), worth=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_comparison_sees_through_noise(seed, low, worth):
    """1.5 times as many slots and a scatter of 11 % (a link that varies by 20 %): at least 9 of 10 decisions are right."""
    numbers, right = random.Random(seed), 0
    for _ in range(20):
        comparison, verdict = Comparison(low, low * 3 // 2, share=0.4), None
        while verdict is None:
            gain = numbers.gauss(math.log(comparison.high / low) if worth else 0.0, 0.11)
            verdict = comparison.verdict(gain, 3.0, 0.11)
            comparison.gains.append(gain)
        right += verdict is worth
    assert right >= 18


def test_steps_that_noise_would_hide_are_not_measured():
    assert not Comparison(16, 17, share=0.4).is_measurable(0.11)
    assert Comparison(16, 22, share=0.4).is_measurable(0.11)
    assert Comparison(4, 5, share=0.4).is_measurable(0.03)


# -- hundreds in flight ---------------------------------------------------------------------------------------------


class Store:
    """An object store: ``per_second`` requests from a bucket of tokens, answered after ``latency``; above that SlowDown."""

    def __init__(self, limit: int, per_second: float, latency: float, seed: int) -> None:
        self.now, self.done, self.refused, self.tokens = 0.0, 0, 0, 1000.0
        self.per_second, self.latency, self.random = per_second, latency, random.Random(seed)
        self.asked: list[tuple[float, int, Slot, bool]] = []
        self.pace = Pace(limit, received=lambda: self.done, clock=lambda: self.now)

    def run(self, seconds: float, step: float = 0.01) -> None:
        end = self.now + seconds
        while self.now < end:
            turns = iter((False, True))
            while (slot := self.pace._acquire(lambda turns=turns: next(turns, True))) is not None:
                turns = iter((False, True))
                serves = self.tokens >= 1
                self.tokens -= serves
                after = self.latency * self.random.lognormvariate(0, 0.3) if serves else self.latency / 3
                heapq.heappush(self.asked, (self.now + after, id(slot), slot, serves))
            self.now += step
            self.tokens = min(1000.0, self.tokens + self.per_second * step)
            while self.asked and self.asked[0][0] <= self.now:
                *_, slot, serves = heapq.heappop(self.asked)
                slot.answered = True
                if serves:
                    self.done += 1
                else:
                    self.refused += 1
                    self.pace.congested(slot, "SlowDown")
                self.pace._release(slot)


@pytest.mark.parametrize(("latency", "limit"), [(0.05, 512), (0.15, 1024)])
def test_it_settles_near_what_an_object_store_takes(latency, limit):
    store = Store(limit, per_second=3500, latency=latency, seed=limit)
    store.run(60)
    done, refused = store.done, store.refused
    store.run(40)
    assert store.done - done >= 0.9 * 3500 * 40
    assert store.refused - refused <= 0.01 * (store.done - done)


def test_a_slot_costs_microseconds_however_many_run(monkeypatch):
    """Measured in checks of the running requests, because wall-clock time means little on a busy machine."""
    now = [0.0]
    pace = Pace(2000, start=1000, received=lambda: 0, clock=lambda: now[0])
    slots = [pace._acquire(lambda: False) for _ in range(1000)]
    looks = []
    hangs = Pace._hangs
    monkeypatch.setattr(Pace, "_hangs", staticmethod(lambda *given: looks.append(1) or hangs(*given)))
    for slot in slots:
        assert slot
        slot.answered = True
        pace._release(slot)
        assert pace._acquire(lambda: False)
    assert len(looks) <= 1000


# -- waiting threads ------------------------------------------------------------------------------------------------


def test_a_cancelled_wait_gives_none():
    pace, _, _ = _pace(start=1)
    with pace.slot() as first, pace.slot(lambda: True) as second:
        assert first is not None
        assert second is None


def test_real_threads_never_exceed_the_slots(monkeypatch):
    monkeypatch.undo()
    pace = Pace(4, start=4, received=lambda: 0)
    inside, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        for _ in range(20):
            with pace.slot():
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                with lock:
                    inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most[0] == 4
    assert inside[0] == len(pace._running) == 0


# -- what the next shard starts with --------------------------------------------------------------------------------


def read(stored: str) -> PaceMemory | None:
    """``pace.json`` as the next shard reads it."""
    try:
        return PaceMemory.from_json(json.loads(stored))
    except ValueError:
        return None


def test_the_next_shard_starts_where_this_one_held():
    memory = World(limit=24, capacity=8).run(60).pace.memory()
    assert memory.start == 8
    nxt = World(limit=24, capacity=8, start=recall(read(json.dumps(memory.to_json())), 24)).run(15)
    assert nxt.changes == [], "nothing is learned anew"
    assert nxt.used >= 0.97 * 8 * 15


def test_shards_that_follow_each_other_do_not_probe_more_often_than_one():
    memory = PaceMemory()
    refused = []
    for seed in range(8):
        world = World(limit=24, capacity=8, beyond="refuse", seed=seed, start=recall(memory, 24)).run(450)
        memory = world.pace.memory()
        refused.append(world.refused)
    assert sum(refused[1:]) <= 20, "in nearly an hour"


def test_a_shard_that_ended_while_it_grew_lets_the_next_one_go_on():
    memory = World(limit=24).run(2).pace.memory()
    assert 4 <= memory.start < 24
    assert "too_many" not in memory.to_json()
    nxt = World(limit=24, start=recall(memory, 24)).run(15)
    assert nxt.pace.slots == 24


@pytest.mark.parametrize(
    "memory",
    [
        None,
        [],
        "x",
        {},
        {"start": "many"},
        {"start": None},
        {"start": True},
        {"start": 1.5},
        {"start": -3},
        {"probe_in": math.nan},
    ],
)
def test_a_memory_that_cannot_be_read_is_none(memory):
    assert recall(read(json.dumps(memory)), 8) == {}


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(memory=ANYTHING | st.fixed_dictionaries({}, optional=dict.fromkeys(("start", "too_many", "probe_in"), ANYTHING)))
def test_any_memory_gives_a_pace_within_its_limits(memory):
    for limit in (1, 2, 8, 64):
        pace = Pace(limit, **recall(read(json.dumps(memory)), limit), received=lambda: 0)
        assert 1 <= pace.slots <= limit
        assert pace.memory().start == pace.slots
        assert recall(pace.memory(), limit).get("probe_in", PROBE[0]) <= PROBE[1]
