"""In-process cache with single-flight loading."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass
class _Slot(Generic[V]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    made: float = float("-inf")
    value: V | None = None


class TTLCache(Generic[V]):
    """A time-to-live cache; concurrent callers for one key wait for a single load.

    Args:
        seconds: How long a value stays valid.
        most: The most values kept; the least recently used goes first.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._slots: OrderedDict[Hashable, _Slot[V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[V | None], V]) -> V:
        """The value; ``make`` gets the previous one or None. Exceptions are not cached."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > self._most:
                self._slots.popitem(last=False)
        with slot.lock:
            if time.monotonic() - slot.made >= self._seconds:
                slot.value = make(slot.value)
                slot.made = time.monotonic()
            assert slot.value is not None
            return slot.value
