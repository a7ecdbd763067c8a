"""The window of files that are stored at once, against simulated servers that are far away, busy, or refuse."""

from __future__ import annotations

import heapq

import pytest

from physionet_mirror.window import MOST, REST, Window


class Server:
    """Stores files of 1 MB in simulated time, always as many at once as the window allows.

    Args:
        latency: Seconds that one file takes by itself.
        at_once: Files that it works on at a time; the others wait for these.
        refuses_above: Files at once above which it asks for less.
        needs: Files a second that are there to be stored; None = more than can be.
    """

    def __init__(self, latency: float, *, at_once: int = 1000, refuses_above: int = 1000, needs: float | None = None):
        self.now = 0.0
        self.latency, self.at_once, self.refuses_above, self.needs = latency, at_once, refuses_above, needs
        self.window = Window(8, clock=lambda: self.now)
        self.refused = 0

    def store(self, files: int) -> float:
        """Store so many; files a second over the second half of them."""
        under_way: list[float] = []
        workers = [0.0] * self.at_once
        halfway, fetched = 0.0, self.now
        begun = ended = 0
        while ended < files:
            while begun < files and fetched <= self.now and not self.window.is_full(len(under_way)):
                if len(under_way) >= self.refuses_above:
                    self.refused += 1
                    self.window.refused(len(under_way))
                    break
                free = heapq.heappop(workers)
                done = max(free, self.now) + self.latency
                heapq.heappush(workers, done)
                heapq.heappush(under_way, done)
                begun += 1
                fetched = max(fetched, self.now - 1) + 1 / self.needs if self.needs else fetched
            at = under_way[0] if under_way else fetched
            if self.needs and begun < files and self.now < fetched < at:
                self.now = fetched
                continue
            self.now = max(self.now, heapq.heappop(under_way) if under_way else fetched)
            ended += 1
            self.window.stored(1_000_000)
            if ended == files // 2:
                halfway = self.now
        return (files - files // 2) / (self.now - halfway)


def test_a_server_far_away_gets_as_many_as_may_be():
    server = Server(latency=0.1)
    assert server.store(20_000) > 0.9 * MOST / 0.1
    assert server.window.size == MOST


@pytest.mark.parametrize("at_once", [2, 8])
def test_a_busy_server_is_not_given_more_to_keep_waiting(at_once):
    server = Server(latency=0.01, at_once=at_once)
    sizes = []
    for _ in range(40):
        server.store(100)
        sizes.append(server.window.size)
    assert sorted(sizes)[len(sizes) // 2] == 8
    assert max(sizes) <= 16


def test_what_the_downloads_need_is_enough():
    """200 files a second at 0.1 s each are 20 at once."""
    server = Server(latency=0.1, needs=200)
    assert server.store(4_000) > 190
    assert 20 <= server.window.size <= 64


def test_a_server_that_asks_for_less_is_tried_ever_more_seldom():
    server = Server(latency=0.05, refuses_above=20)
    server.store(2_000)
    early, server.refused = server.refused, 0
    server.store(20_000)
    assert server.window.size >= 8
    assert server.refused <= early + 22_000 / 16 / REST[1] + 2


def test_those_refused_together_count_once():
    now = 5.0
    window = Window(64, clock=lambda: now)
    for _ in range(30):
        window.refused(40)
    assert window.size == 20
    now = 7.0
    window.refused(1)
    assert window.size == 1
