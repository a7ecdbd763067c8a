"""How many downloads run at once: found by trying, given up at the first sign of trouble.

The server's capacity is not known, changes over the day, and asking for too much is punished (PhysioNet lets connects
hang). So the number of slots starts low and doubles while throughput rises; where it no longer does, the last useful
number is held and one more is tried ever more rarely. A sign of congestion halves it. Knows neither HTTP nor S3.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

WINDOW = 0.1, 3.0
"""Seconds over which throughput is measured: at least, when answers come fast, and at most."""

USEFUL = 0.4
"""A step must bring this share of the growth that proportion would, or it is taken back (noise is about a tenth)."""

PROBE = 20.0, 300.0
"""Seconds until more is tried again after it brought nothing: at first, and at most (doubled each time)."""


@dataclass(eq=False, slots=True)
class Slot:
    """One running download: whether bytes come yet, and how many reductions there were before it started.

    A download that waits for a connection that the server does not give must not keep the others from theirs once the
    number was reduced: it is then no longer counted, until its first byte comes or its time-out ends it.
    """

    epoch: int
    began: bool = False


class Pace:
    """Slots for downloads, adaptive between 1 and ``limit``; safe to share between threads.

    Args:
        limit: The most downloads at once, whatever happens.
        start: How many to begin with: what held before, or low.
        received: Gives the bytes received so far; throughput is its growth.
        on_change: Called as ``on_change(old, new, why)`` when the number of slots changes.
        clock: Seconds; for tests.
    """

    def __init__(
        self,
        limit: int,
        *,
        start: int = 2,
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
        self._epoch = 0
        self._resume_at = 0.0
        self._ceiling = limit + 1  # the lowest number known to be too many
        self._before: tuple[int, float] | None = None  # slots and bytes/s before the last step up
        self._probe_in = PROBE[0]
        self._probe_at: float | None = None  # None = growing
        self._open_window()

    @property
    def running(self) -> int:
        """Downloads under way, those that wait for a connection included."""
        return len(self._running)

    @property
    def held(self) -> int:
        """The number that proved useful so far: a good start for whoever comes next."""
        return self._before[0] if self._before is not None else self.slots

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

        ``wait``: seconds that the server asked for; no download starts before they are over.
        """
        with self._changed:
            now = self._clock()
            if wait:
                self._resume_at = max(self._resume_at, now + wait)
            if slot.epoch < self._epoch:
                return
            self._ceiling = max(2, self.slots)
            self._step(max(1, self.slots // 2), why)
            self._probe_at, self._before = None, None

    # -- slots -----------------------------------------------------------------------------------------------------

    def _acquire(self, cancelled: Callable[[], bool]) -> Slot | None:
        with self._changed:
            while not cancelled():
                now = self._clock()
                free = now >= self._resume_at and len(self._running) < self.limit
                if free and self._occupied() < self.slots:
                    slot = Slot(self._epoch)
                    self._running.add(slot)
                    return slot
                if now >= self._resume_at:
                    self._busy = True
                    self._measure(now)
                self._changed.wait(0.2)
            return None

    def _release(self, slot: Slot) -> None:
        with self._changed:
            self._running.discard(slot)
            self._finished += 1
            self._measure(self._clock())
            self._changed.notify()

    def _occupied(self) -> int:
        return sum(slot.began or slot.epoch == self._epoch for slot in self._running)

    # -- adaptation ------------------------------------------------------------------------------------------------

    def _open_window(self) -> None:
        self._opened, self._bytes, self._finished, self._busy = self._clock(), self._received(), 0, False

    def _measure(self, now: float) -> None:
        """At the end of a window, decide on the next number of slots."""
        elapsed = now - self._opened
        if elapsed < WINDOW[0] or (elapsed < WINDOW[1] and self._finished < 4 * self.slots):
            return
        rate, busy = (self._received() - self._bytes) / elapsed, self._busy
        self._open_window()
        if not busy or rate == 0:  # too little to do: nothing can be learned
            return
        if self._before is not None:
            slots, former = self._before
            self._before = None
            if rate < former * (1 + USEFUL * (self.slots - slots) / slots):
                self._ceiling = self.slots
                if self.slots == slots + 1:
                    self._hold(now)
                self._step(slots, f"{self.slots} brought no more than {slots} ({_mb(rate)} after {_mb(former)})")
                return
            self._probe_in = PROBE[0]
        if self._probe_at is not None:
            if now < self._probe_at:
                return
            self._probe_at = None
            self._ceiling = min(2 * self.slots, self.limit + 1)  # what was too many then may be none now
        # double while nothing speaks against it, then feel the way up to what was too many
        more = self.slots + 1 if 2 * self.slots >= self._ceiling else 2 * self.slots
        more = min(more, self.limit)
        if more >= self._ceiling or more == self.slots:
            self._hold(now)
            return
        self._before = (self.slots, rate)
        self._step(more, f"trying more at {_mb(rate)}")

    def _hold(self, now: float) -> None:
        self._probe_at = now + self._probe_in
        self._probe_in = min(2 * self._probe_in, PROBE[1])

    def _step(self, slots: int, why: str) -> None:
        old, self.slots = self.slots, slots
        if slots < old:
            self._epoch += 1
        self._open_window()
        self._changed.notify_all()
        if self._on_change is not None and old != slots:
            self._on_change(old, slots, why)


def _mb(rate: float) -> str:
    return f"{rate / 1e6:.1f} MB/s"
