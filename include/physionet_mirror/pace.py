"""How many downloads run at once: found by trying, given up at the first sign of trouble.

The server's capacity is not known, changes over the day, and asking for too much is punished (PhysioNet lets connects
hang). So the number of slots starts low and doubles while throughput rises; where it no longer does, the last useful
number is held, and one more is tried ever more rarely. A sign of congestion halves it. Knows neither HTTP nor S3.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

START = 2
"""Slots to begin with where nothing is remembered."""

WINDOW = 0.1, 1.5, 3.0
"""Seconds over which throughput is measured: at least, when answers come fast; at most, for a large and a small step."""

WARM_UP = 0.5
"""Seconds that new connections may take to bring their first bytes before a step is judged."""

HANGING = 1.0
"""Seconds without an answer from which on a download is taken to wait for a connection that it does not get."""

USEFUL = 0.4
"""A step must bring this share of the growth that proportion would, or it is taken back (noise is about a tenth)."""

PROBE = 20.0, 300.0
"""Seconds until more is tried again after it brought nothing: at first, and at most (doubled each time)."""


@dataclass(eq=False, slots=True)
class Slot:
    """One running download: when it began, how many reductions there had been by then, and whether it was answered.

    A download that waits for a connection that the server does not give must not keep the others from theirs once the
    number was reduced: it is then no longer counted, until it is answered or its time-out ends it.
    """

    epoch: int
    since: float
    answered: bool = False


def recall(memory: Any, limit: int) -> dict[str, Any]:
    """The arguments ``start`` and ``too_many`` of :class:`Pace` from what ``Pace.memory`` gave once; anything may be given."""
    found: dict[str, Any] = {}
    for name, least, most in (("start", 1, limit), ("too_many", 2, limit + 1)):
        value = memory.get(name) if isinstance(memory, dict) else None
        if isinstance(value, int):
            found[name] = max(least, min(value, most))
    return found


class Pace:
    """Slots for downloads, adaptive between 1 and ``limit``; safe to share between threads.

    Args:
        limit: The most downloads at once, whatever happens.
        start: How many to begin with: what held before, or few.
        too_many: What brought no more than ``start`` did, where that is known: it is not tried at once.
        received: Gives the bytes received so far; throughput is its growth.
        on_change: Called as ``on_change(old, new, why)`` when the number of slots changes.
        clock: Seconds; for tests.
    """

    def __init__(
        self,
        limit: int,
        *,
        start: int = START,
        too_many: int | None = None,
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
        self._epoch = 0  # number of reductions so far
        self._resume_at = 0.0
        self._too_many = limit + 1  # the lowest number known to be too many
        self._before: tuple[int, float] | None = None  # slots and bytes/s before the step that is being tried
        self._stride = self.slots  # of the next step up: doubles while steps bring something
        self._probe_in = PROBE[0]
        self._probe_at: float | None = None  # until then the number is held; None = growing
        if too_many is not None and too_many <= limit:
            self._too_many = max(too_many, self.slots + 1)
            self._hold(clock())
        self._warming = True
        self._open_window()

    @property
    def held(self) -> int:
        """The number that proved useful so far."""
        return self._before[0] if self._before is not None else self.slots

    def memory(self) -> dict[str, int]:
        """What the next one should know, for JSON; see :func:`recall`."""
        known = {"too_many": self._too_many} if self._too_many <= self.limit else {}
        return {"start": self.held, **known}

    def age(self, slot: Slot) -> float:
        """Seconds since a download was given its slot."""
        return self._clock() - slot.since

    @contextmanager
    def slot(self, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Slot | None]:
        """Wait for a slot and hold it; gives None when ``cancelled`` became true while waiting."""
        slot = self._acquire(cancelled)
        try:
            yield slot
        finally:
            if slot is not None:
                self._release(slot)

    def congested(self, slot: Slot, why: str, wait: float | None = None) -> None:
        """The server showed that it is asked for too much: halve, once for all downloads that ran at the old number.

        A connection that hung says less than a plain refusal: those that are served meanwhile are not too many.
        ``wait``: seconds that the server asked for; no download starts before they are over.
        """
        with self._changed:
            if wait:
                self._resume_at = max(self._resume_at, self._clock() + wait)
            if slot.epoch < self._epoch:
                return
            served = 0 if slot.answered else sum(not self._hangs(other) for other in self._running)
            self._too_many = max(2, self.slots)
            self._probe_at, self._before, self._stride = None, None, 1
            self._step(max(1, self.slots // 2, min(served, self.slots - 1)), why)

    # -- slots -----------------------------------------------------------------------------------------------------

    def _acquire(self, cancelled: Callable[[], bool]) -> Slot | None:
        with self._changed:
            while not cancelled():
                now = self._clock()
                if now >= self._resume_at:
                    if len(self._running) < self.limit and self._occupied() < self.slots:
                        slot = Slot(self._epoch, now)
                        self._running.add(slot)
                        return slot
                    self._wanted = True
                    self._measure(now)
                self._changed.wait(min(0.2, self._resume_at - now) if now < self._resume_at else 0.2)
            return None

    def _release(self, slot: Slot) -> None:
        with self._changed:
            self._running.discard(slot)
            self._finished += 1
            self._measure(self._clock())
            self._changed.notify()

    def _occupied(self) -> int:
        return sum(slot.epoch == self._epoch or not self._hangs(slot) for slot in self._running)

    def _hangs(self, slot: Slot) -> bool:
        return not slot.answered and self.age(slot) > HANGING

    # -- adaptation ------------------------------------------------------------------------------------------------

    def _open_window(self) -> None:
        self._opened, self._bytes, self._finished, self._wanted = self._clock(), self._received(), 0, False

    def _measure(self, now: float) -> None:
        """At the end of a window, decide on the next number of slots."""
        if self._opened < self._resume_at <= now:  # the server had asked for a pause
            self._open_window()
            return
        elapsed = now - self._opened
        if self._warming:
            if elapsed > WARM_UP or self._finished >= self.slots:
                self._warming = False
                self._open_window()
            return
        least, *most = WINDOW
        enough = most[0] if 2 * self._stride >= self.slots else most[1]
        if elapsed < least or (elapsed < enough and self._finished < 4 * self.slots):
            return
        rate, wanted = (self._received() - self._bytes) / elapsed, self._wanted
        self._open_window()
        if not wanted or rate == 0:  # too little to do: nothing can be learned
            return
        if self._before is not None and not self._keep_step(rate, now):
            return
        if self._probe_at is not None:
            if now < self._probe_at:
                return
            self._probe_at, self._stride = None, 1
            self._too_many = self.limit + 1  # what was too many then may be none now
        self._try_more(rate, now)

    def _keep_step(self, rate: float, now: float) -> bool:
        """Whether the step that was tried brought enough; otherwise it is taken back."""
        assert self._before is not None
        (slots, former), self._before = self._before, None
        if rate >= former * (1 + USEFUL * (self.slots - slots) / slots):
            self._probe_in = PROBE[0]
            self._stride *= 2
            return True
        self._too_many = self.slots
        if self.slots == slots + 1:
            self._hold(now)
        self._step(slots, f"{self.slots} brought no more than {slots} ({_mb(rate)} after {_mb(former)})")
        return False

    def _try_more(self, rate: float, now: float) -> None:
        """Ever larger steps while nothing speaks against them, then half of the way to what was too many."""
        room = self._too_many - self.slots
        self._stride = max(1, min(self._stride, room // 2 if self._too_many <= self.limit else room - 1))
        if self._stride < room:
            self._before = (self.slots, rate)
            self._step(self.slots + self._stride, f"trying more at {_mb(rate)}")
        else:
            self._hold(now)

    def _hold(self, now: float) -> None:
        self._probe_at = now + self._probe_in
        self._probe_in = min(2 * self._probe_in, PROBE[1])

    def _step(self, slots: int, why: str) -> None:
        old, self.slots = self.slots, slots
        if slots < old:
            self._epoch += 1
        self._warming = slots > old
        self._open_window()
        self._changed.notify_all()
        if self._on_change is not None and old != slots:
            self._on_change(old, slots, why)


def _mb(rate: float) -> str:
    return f"{rate / 1e6:.1f} MB/s"
