"""A run's progress, read from the small files that it publishes below ``_mirror/runs/<run_id>/``.

One LIST shows which of these files have changed, and only those are read again: with four shards running, a look costs
one LIST and at most four GETs, however many shards the run has and however many people watch.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate, islice
from typing import TYPE_CHECKING, TypeVar

from physionet_mirror import throughput
from physionet_mirror.layout import RunLayout
from physionet_mirror.records import FailureGroup, Plan, RunReport, Shard, ShardResult, grouped, read

if TYPE_CHECKING:
    from physionet_mirror.records import Record
    from physionet_mirror.s3.bucket import Bucket

R = TypeVar("R", bound="Record")

SHORTEST_STRETCH = 5.0
"""Least seconds between two points of the series; stream tasks publish at this interval."""

RECENT = 30.0
"""Seconds over which the current speed is measured."""

MOST_NAMED = 200
"""Failed images named for each reason; failed_images.txt names all of them."""

MOST_BYTES = 4 << 20
"""Largest file of a run that is read. Parsed JSON takes up to 25 times its size; ours have some kilobytes, a long plan 1 MB."""

MOST_BYTES_A_RUN = 24 << 20
"""Most bytes read for one run, over all its files, as stored in the bucket."""

MOST_FILES = 5000
"""Most files listed in a run's folder; a run has at most as many shards as Airflow maps, 1,024 by default."""

THERE, DONE, RUNNING, CHECKING, RETRYING, FAILED, STOPPED, SKIPPED, WAITING = STATES = (
    "there",
    "done",
    "running",
    "checking",
    "retrying",
    "failed",
    "stopped",
    "skipped",
    "waiting",
)
"""The states of a shard. ``there``: it was complete before the run. ``stopped``: drained, the next run takes the rest.
``skipped``: not checked, because the plan was rejected."""

_ENDED = frozenset({THERE, DONE, FAILED, STOPPED, SKIPPED})


@dataclass(frozen=True, slots=True)
class Tasks:
    """Airflow's states of one shard's two task instances; None = there is no such task instance yet.

    Attributes:
        missing: State of the ``missing?`` sensor.
        stream: State of the stream task.
        looked: Whether the sensor ever ran.
    """

    missing: str | None = None
    stream: str | None = None
    looked: bool = True


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """The current progress of one shard.

    Attributes:
        index, name, images: As planned.
        state: One of `STATES`.
        there: Images in the bucket, including those that were there before.
        stored: Images that this run stored.
        failed: Images that could not be fetched.
        left: Images still to be streamed; None = not known until ``missing?`` has run.
        connections: PhysioNet connections in use; from its access point, files under way.
        try_number: The stream task's current try; 0 = not started.
    """

    index: int
    name: str
    images: int
    state: str
    there: int = 0
    stored: int = 0
    failed: int = 0
    left: int | None = None
    connections: int = 0
    try_number: int = 0


@dataclass(frozen=True)
class Progress:
    """The current progress of a run. Sizes in bytes, times in seconds.

    Attributes:
        planned: Whether there is a plan yet; without one the rest is empty.
        mode: How the files come (`mover.Mode`).
        way: The same in a sentence, with the reason; empty in a run of an earlier version.
        notes: The plan's notes on the selection.
        shards: In order of index.
        images: Images selected.
        there: Images in the bucket, as far as known.
        stored, bytes: Images stored by this run, and their size.
        failed: Images that could not be fetched.
        left: Images still to be streamed; an upper bound until every shard has been checked.
        images_per_second, bytes_per_second: Over the last `RECENT` seconds while the run is active, over the whole run
            once it has ended.
        connections: PhysioNet connections in use now; from its access point, files under way.
        most_connections: The most that the run may hold.
        seconds_left: Expected; None = unknown.
        seconds: From the first shard's start to the last update.
        series: Each point covers the time since the point before it.
        failures: By reason, the most frequent first, with up to `MOST_NAMED` examples each.
        retries, handshakes: Totals over all shards.
        faults: Faults met so far, by kind.
        updated: Time of the latest update from any shard.
        report: ``report.json``, once it exists.
        files: Which of the run's files exist: ``report.html``, ``report.json``, ``failed_images.txt``.
        troubles: Sentences on files that are damaged or too large, and therefore ignored.
    """

    planned: bool = False
    mode: str = "download"
    way: str = ""
    notes: Sequence[str] = ()
    shards: Sequence[ShardProgress] = ()
    images: int = 0
    there: int = 0
    stored: int = 0
    bytes: int = 0
    failed: int = 0
    left: int = 0
    images_per_second: float = 0.0
    bytes_per_second: float = 0.0
    connections: int = 0
    most_connections: int = 0
    seconds_left: float | None = None
    seconds: float = 0.0
    series: Sequence[throughput.Point] = ()
    failures: Sequence[FailureGroup] = ()
    retries: int = 0
    handshakes: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    updated: datetime | None = None
    report: RunReport | None = None
    files: frozenset[str] = frozenset()
    troubles: Sequence[str] = ()

    @property
    def states(self) -> dict[str, int]:
        """Number of shards in each state, in the order of `STATES`."""
        counts = Counter(shard.state for shard in self.shards)
        return {state: counts[state] for state in STATES if counts[state]}


class Watch:
    """Follows one run and reads only the files that have changed. Safe to share between threads.

    Args:
        bucket: The run's destination.
        run: The run to follow.
    """

    def __init__(self, bucket: Bucket, run: RunLayout) -> None:
        self._bucket, self._run = bucket, run
        self._known: dict[str, tuple[str, Record | None, str]] = {}
        self._lock = threading.Lock()

    def look(self, tasks: Mapping[int, Tasks] | None = None, *, now: datetime | None = None) -> Progress:
        """The current progress of the run.

        Args:
            tasks: Task states by shard; None = not known, so that only the shards' own files count.
            now: The current time; for tests.

        Raises:
            DestinationError: S3 cannot be read.
        """
        run, troubles = self._run, list[str]()
        with self._lock:
            listed = list(islice(self._bucket.list(run.root, last=run.results + "~"), MOST_FILES + 1))
            if len(listed) > MOST_FILES:
                troubles.append(f"{run.root} holds more than {MOST_FILES:,} files, and the rest is not looked at.")
            found = {entry.path: entry for entry in listed[:MOST_FILES] if entry.size}  # empty files were discarded
            self._known = {path: known for path, known in self._known.items() if path in found}
            wanted = [p for p in (run.plan, run.report_json) if p in found]
            wanted += sorted(path for path in found if path.startswith(run.results))
            sizes = list(accumulate(found[path].size for path in wanted))
            if sizes and sizes[-1] > MOST_BYTES_A_RUN:
                troubles.append(f"{run.root} holds more than {MOST_BYTES_A_RUN >> 20} MB, and the rest is not read.")
            etags = {p: found[p].etag for p, size in zip(wanted, sizes, strict=True) if size <= MOST_BYTES_A_RUN}
            plan = self._read(run.plan, Plan, etags, troubles)
            report = self._read(run.report_json, RunReport, etags, troubles)
            paths = [path for path in etags if path.startswith(run.results)]
            results = [r for path in paths if (r := self._read(path, ShardResult, etags, troubles)) is not None]
        seen = progress(
            plan,
            results,
            tasks,
            report=report,
            files=[path.removeprefix(run.root) for path in found],
            now=now,
        )
        return replace(seen, troubles=troubles)

    def _read(self, path: str, kind: type[R], etags: Mapping[str, str], troubles: list[str]) -> R | None:
        """The record, read again only if it has changed; None if it is absent or damaged."""
        if path not in etags:
            return None
        known = self._known.get(path)
        if known is None or known[0] != etags[path]:
            try:
                known = (etags[path], read(self._bucket, path, kind, most=MOST_BYTES), "")
            except ValueError as error:
                known = (etags[path], None, f"{path} is damaged and is left out: {error}.")
            self._known[path] = known
        if known[2]:
            troubles.append(known[2])
        return known[1] if isinstance(known[1], kind) else None


def progress(
    plan: Plan | None,
    results: Iterable[ShardResult],
    tasks: Mapping[int, Tasks] | None = None,
    *,
    report: RunReport | None = None,
    files: Iterable[str] = (),
    now: datetime | None = None,
) -> Progress:
    """Combine the plan, the stream tasks' results and Airflow's task states.

    Args:
        plan: ``plan.json``; None = there is none yet.
        results: The ``results/NNNN.json`` that exist.
        tasks: As in `Watch.look`.
        report: ``report.json``; None = there is none yet.
        files: Names of files in the run's folder.
        now: The current time; for tests.
    """
    files = frozenset(files) & {"report.html", "report.json", "failed_images.txt"}
    if plan is None:
        return Progress(files=files, report=report)
    by_shard = {result.shard: result for result in results}
    shards = [
        _shard(planned, by_shard.get(planned.index), None if tasks is None else tasks.get(planned.index))
        for planned in plan.shards
    ]
    results = list(by_shard.values())
    running = any(shard.state not in _ENDED for shard in shards)
    spans = throughput.spans(results)
    started, updated = min((s[0] for s in spans), default=0.0), max((s[1] for s in spans), default=0.0)
    stored, sent = sum(shard.stored for shard in shards), sum(result.bytes for result in results)
    if running:
        clock = (now or datetime.now(UTC)).timestamp()
        speed = throughput.recent(results, max(updated, clock - 2 * SHORTEST_STRETCH), RECENT)
    else:
        seconds = max(updated - started, 1.0)
        speed = (stored / seconds, sent / seconds)
    left = _left(shards, plan.estimate.missing)
    return Progress(
        planned=True,
        mode=plan.mode,
        way=plan.source,
        notes=[note for note in plan.notes if note != plan.source],
        shards=shards,
        images=sum(shard.images for shard in shards),
        there=sum(shard.there for shard in shards),
        stored=stored,
        bytes=sent,
        failed=sum(shard.failed for shard in shards),
        left=left,
        images_per_second=speed[0],
        bytes_per_second=speed[1],
        connections=sum(shard.connections for shard in shards),
        most_connections=plan.estimate.connections,
        seconds_left=throughput.seconds_left(left, speed[0]) if running else None,
        seconds=updated - started,
        series=throughput.series(results, started, updated, shortest=SHORTEST_STRETCH),
        failures=grouped((failure for result in results for failure in result.failed), MOST_NAMED),
        retries=sum(result.retries for result in results),
        handshakes=sum(result.handshakes for result in results),
        faults=dict(sum((Counter(result.faults) for result in results), Counter()).most_common()),
        updated=_time(updated),
        report=report,
        files=files,
    )


# -- shards ------------------------------------------------------------------------------------------------------------


def _shard(planned: Shard, result: ShardResult | None, tasks: Tasks | None) -> ShardProgress:
    images = planned.images
    state = _state(result, tasks)
    failed = len(result.failed) if result else 0
    stored = result.stored if result else 0
    todo = result.todo if result else None
    there = images - todo + stored if todo is not None else 0
    left = None if todo is None else max(todo - stored - failed, 0)
    if state == THERE:
        there, left = images, 0
    elif state in _ENDED:
        left = 0
    return ShardProgress(
        index=planned.index,
        name=planned.name,
        images=images,
        state=state,
        there=min(there, images),
        stored=stored,
        failed=failed,
        left=left,
        connections=result.connections if result and state == RUNNING else 0,
        try_number=result.try_number if result else 0,
    )


_RESULT_STATES = {"running": RUNNING, "done": DONE, "failed": FAILED, "drained": STOPPED}
_STREAM_STATES = {
    "success": DONE,
    "running": RUNNING,
    "failed": FAILED,
    "upstream_failed": FAILED,
    "up_for_retry": RETRYING,
    "restarting": RETRYING,
}


def _state(result: ShardResult | None, tasks: Tasks | None) -> str:
    published = _RESULT_STATES.get(result.state, RUNNING) if result else None
    if tasks is None or (tasks.missing is None and tasks.stream is None):
        return published or WAITING
    if tasks.missing == "skipped":
        return THERE if tasks.looked else SKIPPED
    if tasks.stream == "skipped":
        return SKIPPED
    if tasks.stream == "success":
        return STOPPED if published == STOPPED else DONE
    if tasks.stream in _STREAM_STATES:
        return _STREAM_STATES[tasks.stream]
    if tasks.missing == "failed":
        return FAILED
    if tasks.missing in ("running", "up_for_retry", "restarting"):
        return CHECKING
    return WAITING


def _left(shards: Sequence[ShardProgress], expected: int) -> int:
    """Images still to be streamed; for shards not yet checked, at most as many as the plan expects."""
    known = sum(shard.left for shard in shards if shard.left is not None)
    unknown = sum(shard.images for shard in shards if shard.left is None)
    seen = sum(shard.stored + shard.failed + (shard.left or 0) for shard in shards)
    return known + min(unknown, max(expected - seen, 0))


def _time(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    except (ValueError, OverflowError, OSError):  # a damaged result
        return None
