"""Finds how many requests to run at once, by trying, since the limit is not known to the client.

The number of slots starts low and doubles while throughput grows with it. Four rules keep it where it is useful:

- **A refused step is undone**: back to exactly the number that was served before, and the bound is remembered. One slot
  more than that is tried again at intervals that double up to ``PROBE[1]``, so a server has to refuse about a dozen
  requests an hour.
- **A refusal at a number that was served before is congestion.** It removes as many slots as were refused, at least one,
  and twice as many each time it happens again soon, but never more than half at once. After a time without refusals, the
  slots come back in growing steps.
- **A step up must pay.** Throughput before and after it is compared in turns until the difference is clear of the noise.
  Steps too small to be distinguished from the noise are combined until they are large enough.
- **A step down must cost.** At growing intervals, a third fewer slots are compared in the same way, and kept if their
  throughput is the same.

A slow answer is not a refusal: a step by one waits until its request is answered, refused or timed out. This module knows
neither HTTP nor S3, and assumes nothing about sizes: steps are shares of the current number.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from physionet_mirror import words
from physionet_mirror.records import PaceMemory

START = 2
"""Slots to begin with if nothing is known from before."""

WINDOW = 0.5, 3.0
"""Seconds over which throughput is measured: at least (if the difference is large), and at most."""

HANGING = 1.5
"""Seconds without an answer after which a request counts as waiting for a connection that the server does not accept."""

GAIN = 0.4
"""Share of proportional growth (of logarithms) that a step up must bring to be kept."""

LOSS = 0.15
"""Share of a proportional drop (of logarithms) at which a step down is undone."""

NOISE = 0.08, 0.03
"""Scatter of the log throughput from one window to the next: assumed until it is known, and at least."""

CERTAIN = 2.5
"""Standard errors between a comparison's mean and its threshold at which it is decided."""

COMPARISONS = 12
"""Comparisons after which the mean alone decides; a step that would need more is enlarged first."""

PROBE = 20.0, 300.0
"""Seconds until more slots are tried again after they were refused or did not help: at first, and at most (doubles)."""

FEWER = 120.0, 1200.0
"""Seconds until fewer slots are tried: at first, and at most (doubles each time that they carry less)."""

CALM = 2.0, 30.0
"""Seconds without a refusal until slots come back after congestion: at first, and at most (doubles each time)."""

SOON = 10.0
"""Seconds within which another congestion removes twice as many slots."""

PAUSE = 40.0
"""A probe that was answered with "wait w seconds" is not repeated before ``PAUSE * w``, so that it costs at most 1/40."""

_TICK = 0.05  # least seconds between two checks of the state, however many requests end meanwhile
_SETTLED = 0.2  # seconds for which nothing may be refused or hang before a step counts as served
_EVENTS = 6  # times that bytes must have come within a window


@dataclass(eq=False, slots=True)
class Slot:
    """One running request: the number of reductions when it began, its start, and whether it was answered.

    After a reduction, a request that still waits for a connection must not block the slots of the others: it is no longer
    counted, until it is answered or its time-out ends it.
    """

    epoch: int
    since: float
    answered: bool = False


@dataclass
class Comparison:
    """Compares the throughput of ``high`` and ``low`` slots, by differences of its logarithm in neighbouring windows.

    The speed of the link is nearly the same in neighbouring windows, so its slow changes cancel out.
    """

    low: int
    high: int
    share: float
    most: int = COMPARISONS
    gains: list[float] = field(default_factory=list)

    @property
    def threshold(self) -> float:
        """The gain above which ``high`` is worth it."""
        return self.share * math.log(self.high / self.low)

    def is_measurable(self, noise: float) -> bool:
        """Whether ``COMPARISONS`` comparisons would distinguish the two at this noise."""
        margin = min(self.share, 1 - self.share, GAIN) * math.log(self.high / self.low)
        return margin * math.sqrt(COMPARISONS) >= CERTAIN * noise

    def verdict(self, gain: float, seconds: float, noise: float) -> bool | None:
        """Whether ``high`` is worth it, with ``gain`` as measured over ``seconds`` so far; None = not clear yet."""
        gains = [*self.gains, gain]
        if len(gains) >= 4:
            noise = max(NOISE[1], statistics.stdev(gains))
        error = noise * math.sqrt((1 + 1 / seconds) / len(gains))
        distance = statistics.fmean(gains) - self.threshold
        if abs(distance) >= CERTAIN * error or (len(gains) >= self.most and seconds >= WINDOW[1]):
            return distance > 0
        return None


@dataclass
class _Trial:
    """A trial of another number of slots.

    ``served``: the highest number so far without refusals. ``judged``: throughput decides; otherwise it is enough that
    nothing is refused. ``rates``: the last log throughput at the low (False) and the high (True) number.
    """

    numbers: Comparison
    up: bool
    served: int
    judged: bool
    rates: dict[bool, float] = field(default_factory=dict)


@dataclass
class _Burst:
    """Refusals of requests that ran together; their number is the number of slots too many."""

    first: int  # epoch of its oldest request
    top: int  # slots at that time
    least: int  # slots that stay at least
    over_at: float
    congestion: bool  # as opposed to a refused step
    refused: int = 1


@dataclass(frozen=True)
class _Former:
    """The state before congestion, to return to."""

    slots: int
    bound: int
    probe_in: float


def recall(memory: PaceMemory | None, limit: int) -> dict[str, Any]:
    """Arguments of :class:`Pace` from a saved ``Pace.memory()``; invalid values are ignored or clamped."""
    found: dict[str, Any] = {}
    if memory is None:
        return found
    for name, value, least, most in (("start", memory.start, 1, limit), ("too_many", memory.too_many, 2, limit + 1)):
        if value:
            found[name] = max(least, min(value, most))
    if memory.probe_in is not None and memory.probe_in > 0:
        found["probe_in"] = float(max(PROBE[0], min(memory.probe_in, PROBE[1])))
    return found


class Pace:
    """Slots for requests, adaptive between 1 and ``limit``; safe to share between threads.

    Args:
        limit: The most requests at once, whatever happens.
        start: Slots to begin with.
        too_many: The lowest number known to be too many, if any; it is not tried at first.
        probe_in: Seconds until it is tried.
        received: Gives the bytes (or objects) done so far; throughput is its growth.
        on_change: Called as ``on_change(old, new, why)`` when the number of slots changes, except while two numbers are
            compared in turns.
        clock: Seconds; for tests.
    """

    def __init__(
        self,
        limit: int,
        *,
        start: int = START,
        too_many: int | None = None,
        probe_in: float = PROBE[0],
        received: Callable[[], int],
        on_change: Callable[[int, int, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.slots = max(1, min(start, limit))
        self._received = received
        self._on_change = on_change
        self._clock = clock
        self._changed = threading.Condition()
        self._running: set[Slot] = set()
        self._stale: set[Slot] = set()  # running requests without an answer when the number was reduced
        self._excess = 0  # at most this many of the stale ones are not counted: the size of the reduction
        self._epoch = 0  # number of reductions so far
        self._since = 0  # a refusal counts only for requests that began in this epoch or later
        self._resume_at = 0.0
        self._bound, self._refused_there = limit + 1, False  # the lowest number known to be too many; was it refused?
        self._stride = self.slots  # size of the next step up; doubles each time one is served
        self._trial: _Trial | None = None
        self._burst: _Burst | None = None
        self._former: _Former | None = None
        self._strikes, self._struck_at = 0, -math.inf  # congestions in a row, and when the last one was
        self._off = 1  # slots that the last congestion removed
        self._noise = NOISE[0] ** 2  # variance of the log throughput from one window to the next
        self._rate: float | None = None  # log throughput of the last window at the current number
        now = clock()
        self._ramping, self._searching = True, False
        self._probe_in, self._probe_at = probe_in, now  # when the next step up is due
        self._fewer_in, self._fewer_at = FEWER[0], now + FEWER[0]
        self._pause = 0.0  # seconds of waiting that the last refused probe imposed on all requests
        if too_many is not None and too_many <= limit:
            self._bound, self._refused_there = max(too_many, self.slots + 1), True
            self._hold(now)
        self._next_tick = now
        self._settle(now)

    @property
    def held(self) -> int:
        """The number of slots that has proved useful so far."""
        trial = self._trial
        return self.slots if trial is None else trial.numbers.low if trial.up else trial.numbers.high

    def memory(self) -> PaceMemory:
        """What the next `Pace` should start with; see :func:`recall`."""
        if self._bound > self.limit:
            return PaceMemory(self.held)
        return PaceMemory(self.held, self._bound, round(self._probe_in, 1))

    def age(self, slot: Slot) -> float:
        """Seconds since a request was given its slot."""
        return self._clock() - slot.since

    @contextmanager
    def slot(self, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Slot | None]:
        """Wait for a slot and hold it; gives None if ``cancelled`` becomes true while waiting."""
        slot = self._acquire(cancelled)
        try:
            yield slot
        finally:
            if slot is not None:
                self._release(slot)

    def congested(self, slot: Slot, why: str, wait: float | None = None) -> None:
        """Report that the server, being overloaded, refused this request or did not accept its connection.

        ``wait``: seconds that the server asked to wait; no request starts before they are over.
        """
        with self._changed:
            now = self._clock()
            if wait:
                self._resume_at = max(self._resume_at, now + wait)
            if slot.epoch >= self._since:
                self._refuse(why, now, wait or 0.0)
            elif self._burst is not None and slot.epoch >= self._burst.first:
                self._burst.refused += 1
                self._cut(self._burst, why)
            if slot.answered:  # it ends now, and counts towards the reduction
                self._excess = max(0, self._excess - 1)

    # -- slots -----------------------------------------------------------------------------------------------------

    def _acquire(self, cancelled: Callable[[], bool]) -> Slot | None:
        with self._changed:
            while not cancelled():
                now = self._clock()
                if now >= self._resume_at:
                    if len(self._running) < self.limit and self._occupied(now) < self.slots:
                        slot = Slot(self._epoch, now)
                        self._running.add(slot)
                        return slot
                    self._wanted = True
                    self._tick(now)
                self._changed.wait(min(0.2, self._resume_at - now) if now < self._resume_at else 0.2)
            return None

    def _release(self, slot: Slot) -> None:
        with self._changed:
            self._running.discard(slot)
            if slot in self._stale:
                self._stale.remove(slot)
                self._excess = max(0, self._excess - 1) if self._stale else 0
            self._finished += 1
            self._tick(self._clock())
            self._changed.notify()

    def _occupied(self, now: float) -> int:
        if not self._stale or len(self._running) < self.slots:
            return len(self._running)
        return len(self._running) - min(self._excess, sum(self._hangs(slot, now) for slot in self._stale))

    def _hanging(self, now: float) -> int:
        """Number of requests that hang, except those from before a reduction."""
        return sum(self._hangs(slot, now) for slot in self._running if slot not in self._stale)

    @staticmethod
    def _hangs(slot: Slot, now: float) -> bool:
        return not slot.answered and now - slot.since > HANGING

    # -- windows ---------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """The number of slots has changed: wait until the change takes effect, then measure."""
        self._opened, self._settling, self._wanted, self._finished = now, True, False, 0

    def _open_window(self, now: float) -> None:
        self._settling, self._wanted = False, False
        self._opened, self._bytes = now, self._received()
        self._seen, self._looks, self._events = self._bytes, 0, 0

    def _tick(self, now: float) -> None:
        """Check whether a window is over, at most every ``_TICK`` seconds."""
        if now < self._next_tick or now < self._resume_at:
            return
        self._next_tick = now + _TICK
        if self._opened < self._resume_at:  # the server had asked for a pause
            self._settle(now)
        elif self._settling:
            if self._is_settled(now):
                self._open_window(now)
        elif self._trial is not None and not self._trial.judged:
            if now - self._opened >= _SETTLED and not self._hanging(now):
                self._go_on_unjudged(self._trial, now)
        else:
            self._measure(now)

    def _is_settled(self, now: float) -> bool:
        if not self._wanted or self._occupied(now) > self.slots:  # too little to do, or still too many under way
            return False
        trial = self._trial
        overdue = now - self._opened > HANGING + 2 * _TICK
        if trial is not None and trial.up and (not trial.judged or 2 * self.slots < 3 * trial.served):
            return overdue and self._hanging(now) != 1  # a single one may only be slow: wait for its end
        return overdue or self._finished >= 2 * self.slots or all(slot.answered for slot in self._running)

    def _measure(self, now: float) -> None:
        received, elapsed = self._received(), now - self._opened
        self._looks += 1
        self._events += received != self._seen
        self._seen = received
        at_once = self._trial is not None or self._probe_at <= now or (self._burst and self._burst.over_at <= now)
        least = WINDOW[0] if at_once else WINDOW[1]
        rare = self._events < min(_EVENTS, self._looks) and elapsed < 4 * WINDOW[1]
        if elapsed < least or rare:
            return
        if received == self._bytes or not self._wanted:  # too little to do, so nothing can be learned
            if elapsed >= WINDOW[1]:
                self._open_window(now)
            return
        rate = math.log((received - self._bytes) / elapsed)
        if self._trial is None:
            self._holding(rate, elapsed, now)
        else:
            self._compare(self._trial, rate, elapsed, now)

    def _holding(self, rate: float, elapsed: float, now: float) -> None:
        """A window at the current number: learn the noise, and try another number when it is time."""
        if elapsed >= WINDOW[1]:
            if self._rate is not None:
                self._noise += ((rate - self._rate) ** 2 - self._noise) / 8
            self._rate = rate
        if self._burst is not None:
            if now >= self._burst.over_at:
                self._after_burst(self._burst, now)
        elif now >= self._probe_at:
            self._try_more(rate, now)
            return
        elif now >= self._fewer_at:
            self._try_fewer(rate, now)
            return
        self._open_window(now)

    @property
    def _scatter(self) -> float:
        """Scatter of the log throughput from one window to the next."""
        return max(NOISE[1], math.sqrt(self._noise))

    # -- trials ----------------------------------------------------------------------------------------------------

    @property
    def _unit(self) -> int:
        return max(1, self.slots // 20)

    def _target(self) -> int:
        """The next number to try; the lowest known to be too many only if all numbers below it are served."""
        target = min(self.slots + self._stride, self.limit)
        if self._former is not None:
            target = min(target, self._former.slots)
        return min(target, self._bound - 1) if self.slots + 1 < self._bound else target

    def _try_more(self, rate: float | None, now: float) -> None:
        if not self._refused_there and not self._ramping:
            self._bound = self.limit + 1  # it did not help then; measure whether it does now
        target = self._target()
        if target <= self.slots:
            self._probe_at = math.inf
            self._open_window(now)
            return
        numbers = Comparison(self.slots, target, GAIN, most=4 if self._ramping else COMPARISONS)
        self._burst = None
        self._trial = _Trial(numbers, up=True, served=self.slots, judged=self._can_judge(numbers))
        if rate is not None:
            self._trial.rates[False] = rate
        self._step(target, f"trying more at {_speed(rate)}" if rate is not None else "trying more", now)

    def _can_judge(self, numbers: Comparison) -> bool:
        return self._former is None and numbers.is_measurable(self._scatter)

    def _go_on_unjudged(self, trial: _Trial, now: float) -> None:
        """A step that was too small to measure, or a return to an earlier number, was served: take the next one."""
        trial.served = self.slots
        self._stride *= 2
        former = self._former
        if former is not None and self.slots >= former.slots:
            self._trial, self._former = None, None
            self._bound, self._refused_there, self._probe_in = max(former.bound, self.slots + 1), True, former.probe_in
            self._hold(now)
            self._settle(now)
            return
        if self.slots >= self._bound:
            self._bound = former.bound if former is not None else self.limit + 1
        target = self._target()
        if target > self.slots:
            trial.numbers = Comparison(trial.numbers.low, target, GAIN)
            trial.judged = self._can_judge(trial.numbers)
            if now - self._opened > WINDOW[1]:
                trial.rates.clear()  # measured too long ago to be compared
            self._step(target, "trying more", now)
        elif self._refused_there and self._bound <= self.limit:
            self._trial = None
            self._hold(now, self._calm if former is not None else PROBE[0])
            self._settle(now)
        else:  # at the limit, or below a number that did not help
            trial.judged = True
            trial.rates.clear()
            self._open_window(now)

    def _compare(self, trial: _Trial, rate: float, elapsed: float, now: float) -> None:
        """Measure a trial's window, which may still be open: decide, or continue with the other number."""
        numbers = trial.numbers
        high = self.slots == numbers.high
        other = trial.rates.get(not high)
        gain = None if other is None else (rate - other) * (1 if high else -1)
        worth = None if gain is None else numbers.verdict(gain, elapsed, self._scatter)
        hanging = self._hanging(now) if high and trial.up else 0
        if gain is not None and hanging > max(1, (numbers.high - numbers.low) // 2) and gain < numbers.threshold:
            worth = False
        if worth is None and elapsed < WINDOW[1]:
            return
        trial.rates[high] = rate
        if worth is None:
            if gain is not None:
                numbers.gains.append(gain)
            self._set(numbers.low if high else numbers.high, now)
        elif trial.up:
            (self._keep_more if worth else self._take_back)(trial, hanging, now)
        else:
            self._end_fewer(trial, worth, now)

    def _keep_more(self, trial: _Trial, _: int, now: float) -> None:
        self._trial = None
        self._set(trial.numbers.high, now)
        self._stride *= 2
        self._probe_in = max(PROBE[0], self._probe_in / 4)
        self._fewer_in, self._fewer_at = FEWER[0], now + FEWER[0]
        if self.slots >= self._bound:
            self._bound = self.limit + 1
        if self._target() > self.slots and self.slots + 1 < self._bound:
            self._try_more(trial.rates.get(True), now)
        else:
            self._hold(now, PROBE[0])

    def _take_back(self, trial: _Trial, hanging: int, now: float) -> None:
        low, high = trial.numbers.low, trial.numbers.high
        self._trial = None
        if hanging:
            self._bound, self._refused_there = max(low + 1, high - hanging + 1), True
        else:
            self._bound, self._refused_there = high, False
        half = self._bound - 1 - low if hanging else (high - low) // 2
        why = f"{hanging} of {high} get no connection" if hanging else f"{high} carry no more than {low}"
        rates = trial.rates
        if False in rates and True in rates:
            why += f" ({_speed(rates[True])} after {_speed(rates[False])})"
        if self._ramping and half >= 1 and (hanging or 5 * half >= low):
            self._stride, self._probe_at = half, now
        else:
            self._hold(now)
        self._step(low, why, now, since=True, old=high)

    def _try_fewer(self, rate: float, now: float) -> None:
        """Compare with a third fewer, or with half as many if the noise requires it."""
        self._fewer_at = now + self._fewer_in
        for fewer in (self.slots - max(1, self.slots // 3), self.slots // 2):
            if fewer < 1:
                continue
            numbers = Comparison(fewer, self.slots, LOSS)
            if numbers.is_measurable(self._scatter):
                self._trial = _Trial(numbers, up=False, served=self.slots, judged=True, rates={True: rate})
                self._step(fewer, "trying whether fewer carry the same", now)
                return
        self._open_window(now)

    def _end_fewer(self, trial: _Trial, worth: bool, now: float) -> None:
        low, high = trial.numbers.low, trial.numbers.high
        self._trial = None
        if worth:
            self._fewer_in = min(2 * self._fewer_in, FEWER[1])
            self._fewer_at = now + self._fewer_in
            self._step(high, f"{low} carry less than {high}", now, old=low)
            return
        self._bound, self._refused_there, self._former = high, False, None
        self._probe_in, self._fewer_in, self._fewer_at = PROBE[0], FEWER[0], now
        self._hold(now)
        self._step(low, f"{low} carry as much as {high}", now, since=True, old=low)

    # -- refusals --------------------------------------------------------------------------------------------------

    @property
    def _calm(self) -> float:
        return float(min(CALM[0] * 2 ** max(0, self._strikes - 1), CALM[1]))

    def _refuse(self, why: str, now: float, wait: float) -> None:
        """The first refusal of a burst."""
        trial, self._trial = self._trial, None
        first = self._since
        if trial is not None and trial.up:
            self._burst = _Burst(first, trial.numbers.high, max(1, trial.served // 2), now + 1.0, congestion=False)
            self._former, self._pause = None, wait
            self._reduce(trial.served, self._burst, why, now)
            return
        top = self.slots
        self._off = 2 * self._off if now - self._struck_at < SOON else 1
        if now - self._struck_at > 2 * CALM[1]:
            self._strikes = 0
        if self._former is None:
            self._former = _Former(self.held if trial is None else trial.numbers.high, self._bound, self._probe_in)
        self._struck_at = now
        self._strikes = min(self._strikes + 1, 16)
        least = max(1, top // 2)
        self._burst = _Burst(first, top, least, now + self._calm, congestion=True)
        self._reduce(max(least, top - self._off), self._burst, why, now)

    def _reduce(self, slots: int, burst: _Burst, why: str, now: float) -> None:
        slots = max(1, slots)
        self._bound, self._refused_there = max(slots + 1, burst.top - burst.refused + 1), True
        self._ramping = self._ramping and not burst.congestion
        self._probe_at = math.inf  # until the burst is over
        self._step(slots, why, now, since=True)

    def _cut(self, burst: _Burst, why: str) -> None:
        """Another refusal of the burst: reduce the slots by the number of refusals."""
        slots = max(burst.least, burst.top - burst.refused)
        self._bound = max(min(self.slots, slots) + 1, burst.top - burst.refused + 1)
        if slots < self.slots:
            if not burst.congestion:
                burst.congestion = True
                self._former = self._former or _Former(self.slots, self.slots + 1, self._probe_in)
            self._step(slots, why, self._clock(), since=True)

    def _after_burst(self, burst: _Burst, now: float) -> None:
        self._burst = None
        room = self._bound - 1 - self.slots
        if burst.congestion:
            self._stride, self._probe_at = self._unit, now
        elif room > 0:  # the number of refusals showed how many would have been served
            self._stride, self._probe_at = max(1, room // 2) if self._searching else room, now
            self._searching = True
        else:
            self._hold(now)

    def _hold(self, now: float, wait: float | None = None) -> None:
        """Keep the number, and try more after ``wait`` seconds, or else after the probe interval, which is then doubled."""
        self._ramping, self._searching, self._stride = False, False, self._unit
        if wait is None:
            wait = max(self._probe_in, PAUSE * self._pause)
            self._probe_in = min(2 * self._probe_in, PROBE[1])
        self._probe_at, self._pause = now + wait, 0.0

    # -- steps -----------------------------------------------------------------------------------------------------

    def _set(self, slots: int, now: float) -> None:
        if slots < self.slots:
            self._epoch += 1
            self._stale.update(slot for slot in self._running if not slot.answered)
            self._excess += self.slots - slots
        else:
            self._excess = max(0, self._excess - (slots - self.slots))
        self.slots = slots
        self._settle(now)
        self._changed.notify_all()

    def _step(self, slots: int, why: str, now: float, *, since: bool = False, old: int | None = None) -> None:
        """Change the number for good, or begin a trial; with ``since``, refusals of earlier requests no longer count."""
        old = self.slots if old is None else old
        self._set(slots, now)
        self._rate = None
        if since:
            self._since = self._epoch
        if self._on_change is not None and old != slots:
            self._on_change(old, slots, why)


def _speed(rate: float) -> str:
    """A rate, given as its logarithm, formatted for people."""
    return f"{words.size(math.exp(rate))}/s"
