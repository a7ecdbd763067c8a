"""In-process cache with single-flight loading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache, TTLCache, cached

from physionet_mirror.errors import MirrorError

V = TypeVar("V")


class RefreshingCache(Generic[V]):
    """A time-to-live cache; concurrent callers for one key wait for a single load.

    An expired value is kept for the load that replaces it, which may find that nothing has changed.

    Args:
        seconds: How long a value stays valid.
        most: The most values kept; the least recently used is dropped first.
    """

    def __init__(self, seconds: float, most: int) -> None:
        turn = threading.Condition()
        earlier: LRUCache[Hashable, V] = LRUCache(most)

        @cached(TTLCache(most, seconds), key=lambda key, _: key, condition=turn)
        def load(key: Hashable, make: Callable[[V | None], V]) -> V:
            with turn:
                before = earlier.get(key)
            value = make(before)
            with turn:
                earlier[key] = value
            return value

        self._load = load

    def get(self, key: Hashable, make: Callable[[V | None], V]) -> V:
        """The value; ``make`` gets the previous one or None. Exceptions are not cached."""
        return self._load(key, make)


class ErrorKeepingCache(Generic[V]):
    """As `RefreshingCache`, of values that may be absent; a `MirrorError` is kept too, so that not every reader tries again.

    Args:
        seconds, most: As there.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._cache: RefreshingCache[V | MirrorError | None] = RefreshingCache(seconds, most)

    def get(self, key: Hashable, make: Callable[[V | None], V | None]) -> V | None:
        """The value, or None where there is none.

        Raises:
            MirrorError: What ``make`` has raised, to this reader or an earlier one.
        """

        def load(before: V | MirrorError | None) -> V | MirrorError | None:
            try:
                return make(None if isinstance(before, MirrorError) else before)
            except MirrorError as error:
                return error

        found = self._cache.get(key, load)
        if isinstance(found, MirrorError):
            raise found.with_traceback(None)
        return found
