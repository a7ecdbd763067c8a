"""The pace finds what a server gives, holds it, and backs off when told; on a simulated server and clock."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.physionet_mirror.pace import PROBE, START, Pace, Slot, recall

IMAGE, RATE, ROUND_TRIP = 1_400_000, 650_000, 0.06
TIME_OUT = 10.0


@dataclass
class World:
    """A server that serves ``capacity`` connections at ``rate`` bytes/s each, and lets further ones hang.

    Time is simulated; downloads are numbers in a heap. ``total_rate`` is the most for all connections together.
    """

    limit: int
    capacity: int = 10**6
    rate: float = RATE
    total_rate: float = float("inf")
    start: dict[str, int] = field(default_factory=dict)
    now: float = 0.0
    received: float = 0.0
    busy_seconds: float = 0.0  # of served connections
    asked: dict[Slot, float] = field(default_factory=dict)  # when the answer comes
    served: dict[Slot, float] = field(default_factory=dict)  # bytes left
    hanging: list[tuple[float, int, Slot]] = field(default_factory=list)
    changes: list[tuple[float, int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pace = Pace(
            self.limit,
            **self.start,
            received=lambda: int(self.received),
            clock=lambda: self.now,
            on_change=lambda old, new, why: self.changes.append((self.now, old, new, why)),
        )

    def run(self, seconds: float, *, work: Callable[[], bool] = lambda: True, step: float = 0.02) -> World:
        end = self.now + seconds
        while self.now < end:
            while work() and (slot := self._take()) is not None:
                if len(self.served) + len(self.asked) < self.capacity:
                    self.asked[slot] = self.now + ROUND_TRIP
                else:
                    heapq.heappush(self.hanging, (self.now + TIME_OUT, id(slot), slot))
            self.now += step
            for slot in [slot for slot, at in self.asked.items() if at <= self.now]:
                del self.asked[slot]
                slot.answered = True
                self.served[slot] = IMAGE
            each = min(self.rate, self.total_rate / max(1, len(self.served))) * step
            for slot in list(self.served):
                self.served[slot] -= each
                self.received += each
                if self.served[slot] <= 0:
                    del self.served[slot]
                    self.pace._release(slot)
            self.busy_seconds += (len(self.served) + len(self.asked)) * step
            while self.hanging and self.hanging[0][0] <= self.now:
                slot = heapq.heappop(self.hanging)[2]
                self.pace.congested(slot, "throttled")
                self.pace._release(slot)
        return self

    def _take(self) -> Slot | None:
        """A slot if there is one now; a real thread would wait for it."""
        asked = iter((False, True))
        return self.pace._acquire(lambda: next(asked, True))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(threading.Condition, "wait", lambda *_: False)


# -- finding the capacity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 6, 8, 11, 16, 23, 24])
def test_it_finds_what_the_server_gives_and_wastes_nothing_of_it(capacity):
    world = World(limit=24, capacity=capacity).run(25)
    before = world.busy_seconds
    world.run(300)
    assert world.busy_seconds - before >= 0.98 * capacity * 300
    assert capacity <= world.pace.slots <= capacity + 1


def test_it_starts_low_and_never_exceeds_its_limit():
    world = World(limit=10).run(30)
    assert world.changes[0][1] == START
    assert world.pace.slots == 10
    assert max(new for _, _, new, _ in world.changes) == 10


def test_it_grows_fast():
    world = World(limit=24).run(30)
    reached = next(at for at, _, new, _ in world.changes if new == 24)
    assert reached <= 10


def test_it_stays_low_where_more_brings_nothing():
    """A link of 2 MB/s: four connections fill it."""
    world = World(limit=24, total_rate=4 * RATE).run(60)
    assert world.pace.held <= 5
    assert world.received >= 0.9 * 4 * RATE * 55


def test_it_notices_that_there_is_more_again():
    world = World(limit=24, capacity=4).run(60)
    assert world.pace.held == 4
    world.capacity = 16
    world.run(2 * PROBE[1])
    assert world.pace.held >= 15


def test_it_follows_when_there_is_less():
    world = World(limit=24, capacity=16).run(60)
    world.capacity = 6
    world.run(120)
    assert world.pace.slots <= 8
    assert len(world.served) + len(world.asked) == 6


def test_probes_become_rarer():
    world = World(limit=24, capacity=8).run(1800)
    probes = [at for at, _, new, _ in world.changes if new > 8 and at > 60]
    assert 3 <= len(probes) <= 12


def test_it_learns_nothing_from_a_shard_that_is_too_small():
    world = World(limit=24)
    some = iter(range(2))
    world.run(10, work=lambda: next(some, None) is not None)
    assert world.changes == []
    assert world.pace.held == START


@given(capacity=st.integers(1, 40), limit=st.integers(1, 32), start=st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_for_any_server_the_slots_stay_in_bounds_and_most_of_it_is_used(capacity, limit, start):
    world = World(limit=limit, capacity=capacity, start={"start": start})
    world.run(40)
    assert all(1 <= new <= limit for _, _, new, _ in world.changes)
    assert len(world.pace._running) <= limit
    before = world.busy_seconds
    world.run(60)
    assert world.busy_seconds - before >= 0.9 * 60 * min(capacity, limit)


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


def test_a_refusal_halves_once_for_a_burst():
    pace, _, changes = _pace()
    with ExitStack() as stack:
        slots = _hold(pace, 16, stack)
        for slot in slots:
            slot.answered = True
            pace.congested(slot, "throttled")
    assert changes == [(16, 8, "throttled")]


def test_a_later_refusal_halves_again_down_to_one():
    pace, _, changes = _pace()
    for _ in range(6):
        with pace.slot() as slot:
            assert slot
            slot.answered = True
            pace.congested(slot, "throttled")
    assert [new for _, new, _ in changes] == [8, 4, 2, 1]


def test_connects_that_time_out_halve():
    pace, now, changes = _pace()
    with ExitStack() as stack:
        slots = _hold(pace, 16, stack)
        now[0] = 10.0
        for slot in slots:
            pace.congested(slot, "throttled")
    assert changes == [(16, 8, "throttled")]


def test_a_connect_that_times_out_does_not_cut_those_that_are_served():
    pace, _, changes = _pace(start=17)
    with ExitStack() as stack:
        *served, hung = _hold(pace, 17, stack)
        for slot in served:
            slot.answered = True
        pace.congested(hung, "throttled")
    assert changes == [(17, 16, "throttled")]


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
    pace, now, _ = _pace(limit=8, start=8)
    with ExitStack() as stack:
        slots = _hold(pace, 8, stack)
        for slot in slots[:3]:
            slot.answered = True
        assert pace._occupied() == 8, "the other five may be answered in a moment"
        now[0] += 2.0
        pace.congested(slots[7], "throttled")
        assert pace.slots == 4
        assert pace._occupied() == 3, "so one more may start, though eight are under way"


def test_a_reason_is_given_for_each_change():
    world = World(limit=24, capacity=4).run(30)
    assert all("MB/s" in why for *_, why in world.changes)


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


# -- what the next shard is told ------------------------------------------------------------------------------------


def test_the_next_shard_starts_where_this_one_held():
    memory = World(limit=24, capacity=8).run(60).pace.memory()
    assert memory["start"] == 8
    nxt = World(limit=24, capacity=8, start=recall(memory, 24)).run(15)
    assert nxt.changes == [], "nothing is learned anew"
    assert nxt.busy_seconds >= 0.98 * 8 * 15


def test_a_shard_that_ended_while_it_grew_lets_the_next_one_go_on():
    memory = World(limit=24).run(6).pace.memory()
    assert 4 <= memory["start"] < 24
    assert "too_many" not in memory
    nxt = World(limit=24, start=recall(memory, 24)).run(15)
    assert nxt.pace.slots == 24


@pytest.mark.parametrize("memory", [None, [], "x", {}, {"start": "many"}, {"start": None}])
def test_a_memory_that_cannot_be_read_is_none(memory):
    assert recall(memory, 8) == {}


@given(start=st.integers(), too_many=st.integers(), limit=st.integers(1, 64))
def test_any_memory_gives_a_pace_within_its_limit(start, too_many, limit):
    pace = Pace(limit, **recall({"start": start, "too_many": too_many}, limit), received=lambda: 0)
    assert 1 <= pace.slots <= limit
