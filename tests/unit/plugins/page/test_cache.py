"""The cache that the readers of the page share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from physionet_airflow.page.cache import RefreshingCache


def test_readers_at_once_cost_one_load_and_other_keys_do_not_wait() -> None:
    cache: RefreshingCache[str] = RefreshingCache(seconds=60, most=8)
    loads: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: str | None) -> str:
        loads.append("slow")
        begun.set()
        assert go_on.wait(10)
        return "value"

    with ThreadPoolExecutor(10) as readers:
        waiting = [readers.submit(cache.get, "key", slow) for _ in range(9)]
        assert begun.wait(10)
        assert cache.get("another", lambda _: "quick") == "quick"
        assert loads == ["slow"]
        go_on.set()
        assert [reader.result(10) for reader in waiting] == ["value"] * 9
    assert loads == ["slow"]


def test_an_expired_value_is_given_to_the_load_that_replaces_it() -> None:
    cache: RefreshingCache[int] = RefreshingCache(seconds=0, most=8)
    assert [cache.get("key", lambda before: (before or 0) + 1) for _ in range(3)] == [1, 2, 3]


def test_an_error_is_not_kept_and_the_next_reader_loads() -> None:
    cache: RefreshingCache[int] = RefreshingCache(seconds=60, most=8)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda _: 1 // 0)
    assert cache.get("key", lambda _: 2) == 2
    assert cache.get("key", lambda _: 3) == 2


def test_no_more_values_are_kept_than_asked_for() -> None:
    cache: RefreshingCache[int] = RefreshingCache(seconds=60, most=2)
    for key in range(3):
        cache.get(key, lambda _: 1)
    before: list[int | None] = []
    cache.get(0, lambda known: before.append(known) or 5)
    assert before == [None]
