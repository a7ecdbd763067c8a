"""Throughput of a run: the sum of the stream tasks' time series, and the rates and remaining times derived from it.

A stream task publishes a series of (seconds since its start, images, bytes, connections in use); each point covers the
time since the point before it. Log, live page, report and estimate read the series through this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from physionet_mirror import words

if TYPE_CHECKING:
    from physionet_mirror.records import ShardResult

MOST_POINTS = 120
"""Most points of a common series: in a run of 20 hours, one for each ten minutes."""

PAUSE = 120.0
"""Seconds without a byte after which a task counts as waiting. At the slowest speed users report, an image takes 37 s."""


class Stretch(NamedTuple):
    """What one stream task did between two points of its series; times are seconds since 1970."""

    began: float
    ended: float
    images: float
    bytes: float
    connections: float


class Point(NamedTuple):
    """A point of the common series: means over the time since the point before it."""

    seconds: float
    images_per_second: float
    bytes_per_second: float
    connections: float


def stretches(results: Iterable[ShardResult]) -> Iterable[Stretch]:
    """Every stretch of every task's series."""
    for result in results:
        start = result.began
        if not start:
            continue
        since = 0.0
        for until, images, sent, connections in result.series:
            if until > since:
                yield Stretch(start + since, start + until, images, sent, connections)
                since = until


def spans(results: Iterable[ShardResult]) -> list[tuple[float, float]]:
    """Start and last update of each task, in seconds since 1970."""
    found = []
    for result in results:
        if start := result.began:
            last = [point[0] for point in result.series[-1:]]
            found.append((start, start + max([result.seconds, *last])))
    return found


def series(results: Iterable[ShardResult], began: float, ended: float, *, shortest: float = 1.0) -> Sequence[Point]:
    """The sum of the tasks' series, with each stretch spread evenly over its time.

    Args:
        results: What the tasks published.
        began: Seconds since 1970.
        ended: Seconds since 1970.
        shortest: Least seconds between two points; a long run has `MOST_POINTS` points.
    """
    if ended <= began:
        return []
    bins = max(1, min(MOST_POINTS, math.ceil((ended - began) / shortest)))
    width = (ended - began) / bins
    totals = [[0.0, 0.0, 0.0] for _ in range(bins)]
    for stretch in stretches(results):
        left, right = (stretch.began - began) / width, (stretch.ended - began) / width
        for number in range(max(0, int(left)), min(bins, math.ceil(right))):
            part = min(right, number + 1) - max(left, number)  # of this bin
            if part > 0:
                whole = part / (right - left)  # of the stretch
                total = totals[number]
                total[0] += stretch.images * whole
                total[1] += stretch.bytes * whole
                total[2] += stretch.connections * part
    return [
        Point(round((n + 1) * width, 2), round(images / width, 3), round(sent / width), round(connections, 4))
        for n, (images, sent, connections) in enumerate(totals)
    ]


def recent(results: Iterable[ShardResult], until: float, seconds: float) -> tuple[float, float]:
    """Images and bytes a second in the last ``seconds`` before ``until`` (since 1970)."""
    images = sent = 0.0
    first = until
    for stretch in stretches(results):
        first = min(first, stretch.began)
        overlap = min(stretch.ended, until) - max(stretch.began, until - seconds)
        if overlap > 0:
            images += stretch.images * overlap / (stretch.ended - stretch.began)
            sent += stretch.bytes * overlap / (stretch.ended - stretch.began)
    length = min(seconds, max(until - first, 1.0))
    return images / length, sent / length


def seconds_left(images: float, images_per_second: float) -> float | None:
    """Time to fetch this many images at this rate; None if nothing arrives."""
    return images / images_per_second if images_per_second > 0 else None


def progress_line(done: ShardResult, mode: str = "download", noun: str = "image") -> str:
    """One log line for a running stream task: files stored, speed over the last minute, time left.

    Args:
        done: The result so far.
        mode: How the files come (`mover.Mode`).
        noun: What they are called: ``image`` or ``file``.
    """
    seconds, series = max(done.seconds, 1e-9), done.series
    earlier = [point[0] for point in series if point[0] <= seconds - 60]
    last_minute = series[len(earlier) :]
    span = max(seconds - (earlier[-1] if earlier else 0.0), 1e-9)
    rate, sent = (sum(point[column] for point in last_minute) / span for column in (1, 2))
    left = seconds_left(done.todo - done.stored - len(done.failed), rate)
    return (
        f"{done.stored:,}/{done.todo:,} {noun}s  {rate:.1f} {noun}s/s  {words.size(sent)}/s  "
        f"{words.under_way(done.connections, mode)}  {len(done.failed)} failed  "
        f"{'waiting' if left is None else f'{words.about(left)} left'}"
    )


class Use(NamedTuple):
    """How the connections were used.

    Attributes:
        connection_seconds: Sum of seconds times connections in use, without pauses and the time between two tries.
        connections: Mean in use while anything was fetched.
        allowed: Mean number that the active tasks together were allowed; 0 = not known.
    """

    connection_seconds: float
    connections: float
    allowed: float


def use(results: Iterable[ShardResult]) -> Use:
    """How these tasks used their connections; a result's ``allowed`` is the most that its task could hold."""
    used = allowed = 0.0
    working: list[tuple[float, float]] = []
    for result in results:
        for stretch in _at_work(result):
            length = stretch.ended - stretch.began
            used += length * stretch.connections
            allowed += length * result.allowed
            working.append((stretch.began, stretch.ended))
    busy = reached = 0.0
    for start, end in sorted(working):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return Use(used, used / busy, allowed / busy) if busy else Use(0.0, 0.0, 0.0)


def _at_work(result: ShardResult) -> Iterable[Stretch]:
    """A task's stretches, except those in which it waited for PhysioNet to come back."""
    idle: list[Stretch] = []
    for stretch in stretches([result]):
        if stretch.connections <= 0:
            continue
        if not stretch.images and not stretch.bytes:
            idle.append(stretch)
            continue
        if sum(waited.ended - waited.began for waited in idle) < PAUSE:
            yield from idle
        idle = []
        yield stretch
    if sum(waited.ended - waited.began for waited in idle) < PAUSE:
        yield from idle


def connection_seconds(points: Iterable[Sequence[float]]) -> float:
    """Sum of seconds times connections in use, from the common series, for reports of earlier versions."""
    total = since = 0.0
    for until, _, _, connections in points:
        total, since = total + (until - since) * connections, until
    return total
