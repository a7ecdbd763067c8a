"""The series of many stream tasks: nothing is lost when they are merged, and waiting does not count as work."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror import throughput
from physionet_mirror.records import ShardResult

STARTED = datetime(2026, 3, 1, 22, tzinfo=UTC)


def task(after: float, points: Sequence[tuple[float, int, int]], **more: Any) -> ShardResult:
    """A task that began ``after`` seconds and did (seconds, images, connections) in each stretch, at 1 kB an image."""
    at, series = 0.0, []
    for seconds, images, connections in points:
        at += seconds
        series.append([at, images, images * 1000, connections])
    started = (STARTED + timedelta(seconds=after)).isoformat()
    return ShardResult.from_json({"shard": 0, "started": started, "seconds": at, "series": series, **more})


STRETCHES = st.lists(st.tuples(st.floats(0.5, 60), st.integers(0, 500), st.integers(0, 8)), min_size=1, max_size=40)


@given(st.lists(st.tuples(st.floats(0, 5000), STRETCHES), min_size=1, max_size=8), st.sampled_from([1.0, 5.0]))
def test_laying_series_over_each_other_loses_nothing(tasks: Any, shortest: float) -> None:
    results = [task(after, points) for after, points in tasks]
    spans = throughput.spans(results)
    began, ended = min(start for start, _ in spans), max(end for _, end in spans)
    series = throughput.series(results, began, ended, shortest=shortest)
    assert len(series) <= throughput.MOST_POINTS
    width = (ended - began) / len(series)
    images = sum(point.images_per_second for point in series) * width
    connections = sum(point.connections for point in series) * width
    assert images == pytest.approx(sum(p[1] for _, points in tasks for p in points), rel=0.03, abs=1)
    used = sum(seconds * connections for _, points in tasks for seconds, _, connections in points)
    assert connections == pytest.approx(used, rel=0.03, abs=1)


def test_time_between_two_tasks_is_not_connection_time() -> None:
    together = throughput.use([task(0, [(10, 5, 8)] * 30), task(300, [(10, 5, 8)] * 30)])
    apart = throughput.use([task(0, [(10, 5, 8)] * 30), task(3300, [(10, 5, 8)] * 30)])

    assert apart == together == (4800, 8, 0)


def test_an_outage_within_a_task_is_not_connection_time() -> None:
    outage = [(1.0, 0, 8)] * 300

    assert throughput.use([task(0, [(10, 5, 8)] * 3 + outage + [(10, 5, 8)] * 3)]) == (480, 8, 0)


def test_a_slow_image_is_connection_time() -> None:
    slow = [(1.0, 0, 2)] * 36 + [(1.0, 1, 2)]

    assert throughput.use([task(0, slow * 3)]).connection_seconds == 3 * 37 * 2


def test_tasks_side_by_side_add_up() -> None:
    side_by_side = [task(0, [(10, 5, 2)] * 6, allowed=2), task(0, [(10, 5, 1)] * 6, allowed=2)]

    assert throughput.use(side_by_side) == (180, 3, 4)


@pytest.mark.parametrize(
    "results", [[], [ShardResult(0)], [ShardResult(0, started="?", series=[(1, 1, 1, 1)])], [task(0, [(9, 0, 0)])]]
)
def test_nothing_done_is_no_use(results: list[ShardResult]) -> None:
    assert throughput.use(results) == (0, 0, 0)
