"""How many files are stored at once: twice as many for as long as that stores more, fewer when S3 asks for that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MOST = 256
"""Files that are stored at once at the most: at 0.07 s a PUT that is all that S3 takes from one prefix (3,500 a second)."""

WORTH = 1.1
"""A doubling stays if it stores so many times as much."""

LEAST_ROUND = 8
"""Files at least by which a rate is measured."""

REST = 8, 128
"""Rounds after a doubling that brought nothing until the next one, at first and at most."""

A_REQUEST = 64 << 10
"""Bytes that are sent in the time that a request takes by itself, about: a rate counts bytes and requests."""


class Window:
    """The number of files that may be stored at once. The caller holds its lock around each call.

    A server that is far away stores more with more requests under way; one that is busy only keeps more of them waiting,
    each with a file in memory. Which it is shows only by trying, and is tried only while the window is what limits.

    Args:
        start: Files at first; only `refused` goes below.
        clock: Seconds, monotonic.
    """

    def __init__(self, start: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = start
        self._clock = clock
        self._limits = False  # a file was kept waiting in this round
        self._trial: tuple[int, float] | None = None  # size and rate before the doubling that is being tried
        self._resting, self._rest = 0, REST[0]
        self._refused_at = -math.inf
        self._begin()

    def is_full(self, storing: int) -> bool:
        """Whether ``storing`` files are as many as may be stored at once."""
        full = storing >= self.size
        self._limits = self._limits or full
        return full

    def stored(self, size: int) -> None:
        """A file of so many bytes is stored."""
        if self._skip:  # it was begun in the round before
            self._skip -= 1
            self._began = self._clock()
            return
        self._files += 1
        self._work += size + A_REQUEST
        if self._files >= max(self.size, LEAST_ROUND):
            self._conclude(self._work / max(self._clock() - self._began, 1e-6))

    def refused(self, storing: int) -> None:
        """S3 asked for less while so many were being stored; those that were refused together count once."""
        now = self._clock()
        if self._trial is not None:
            self.size, _ = self._trial
        elif now - self._refused_at > 1.0:
            self.size = max(1, min(self.size, storing) // 2)
        else:
            return
        self._refused_at = now
        self._end_trial()
        self._begin()

    def _conclude(self, rate: float) -> None:
        if self._trial is not None:
            before, slower = self._trial
            if rate < WORTH * slower:
                self.size = before
                self._end_trial()
            else:
                self._trial, self._rest = None, REST[0]
        elif self._resting:
            self._resting -= 1
        if self._limits and not self._resting and self.size < MOST:
            self._trial = self.size, rate
            self.size = min(2 * self.size, MOST)
        self._begin()

    def _end_trial(self) -> None:
        self._trial = None
        self._resting, self._rest = self._rest, min(2 * self._rest, REST[1])

    def _begin(self) -> None:
        self._skip, self._files, self._work, self._limits = self.size, 0, 0, False
        self._began = self._clock()
