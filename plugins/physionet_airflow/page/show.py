"""What the templates and the script show: formatted numbers, and states as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from physionet_airflow.page.runs import GROUP
from physionet_airflow.urls import run_path
from physionet_mirror.report.page import LEVEL_MEANS
from physionet_mirror.words import about, duration, share, size, under_way

if TYPE_CHECKING:
    from physionet_airflow.page.runs import Run, RunTasks
    from physionet_mirror.progress import Progress, ShardProgress
    from physionet_mirror.records import RunReport

STEPS = 10
"""Shades of a shard's progress."""

STATE_WORDS: Mapping[str, str] = {
    "there": "complete before",
    "done": "done",
    "running": "streaming",
    "checking": "being compared with the bucket",
    "retrying": "waiting for its next try",
    "failed": "failed",
    "stopped": "stopped, to be continued",
    "skipped": "skipped",
    "waiting": "waiting",
}

_AT_WORK: Mapping[str, str] = {
    "check_access": "Asking PhysioNet and S3 whether they let us in",
    "fetch_metadata": "Fetching the tables and checksums",
    "plan": "Choosing what is wanted and cutting it into shards",
    "approve": "Waiting for a person's yes or no (under Required Actions)",
    "verify": "Verifying the whole selection",
    "audit": "Comparing the bucket with PhysioNet's checksums",
    "repair": "Looking for what to repair",
    "fetch_files": "Fetching what is not there yet",
    "build_reports": "Reading the reports by their sections",
    "build_links": "Finding each study's stays",
    "judge": "Counting what differs",
    "list_objects": "Listing what would be deleted",
    "delete": "Deleting what was approved",
}
"""What a run is doing while this task runs; tasks of a group by the last part of their id."""

_OF_CLINICAL: Mapping[str, str] = {
    "check_access": "Asking PhysioNet which of the three projects this account may read",
    "judge": "Saying what was built and what was left out",
}
"""The same where mimic_cxr_clinical has a task of the same name."""

_STREAMING: Mapping[str, str] = {
    "download": "Streaming from PhysioNet's website",
    "copy": "S3 copies from PhysioNet's access point",
    "through": "Streaming from PhysioNet's access point, through the worker",
}
"""What a run is doing at its shards, by `mover.Mode`."""

_BUSY = frozenset({"running", "deferred", "restarting"})
"""States that continue in a paused DAG. Scheduled and queued tasks do not start there, and nothing is retried."""

_REST = frozenset({None, "success", "skipped", "failed", "upstream_failed", "removed"})


def number(value: float) -> str:
    """``12,345``."""
    return f"{value:,.0f}"


def ago(at: datetime | None) -> str:
    """``5 min ago``; empty for no time."""
    if at is None:
        return ""
    seconds = (datetime.now(UTC) - at).total_seconds()
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * unit or (unit == 60 and seconds >= 60):
            count = int(seconds // unit)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def minute(at: datetime | None) -> str:
    """``2026-03-01 22:00 UTC``."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if at else ""


def step(part: float, whole: float) -> int:
    """A share as one of `STEPS` shades: 0 only for nothing, `STEPS` only for everything."""
    if not whole or part <= 0:
        return 0
    return STEPS if part >= whole else min(max(math.ceil(STEPS * part / whole), 1), STEPS - 1)


def task_path(dag_id: str, run_id: str, shard: ShardProgress) -> str:
    """Path of a shard's log in Airflow, relative to its root."""
    return f"{run_path(dag_id, run_id)}/tasks/{_task(shard)}/mapped/{shard.index}"


def _task(shard: ShardProgress) -> str:
    """The shard's task whose log is the more informative one."""
    return f"{GROUP}.missing" if shard.state in ("there", "skipped", "checking") else f"{GROUP}.stream"


def live(run: Run, tasks: RunTasks, progress: Progress) -> dict[str, Any]:
    """The live page's numbers, as JSON; the template first renders the same ones.

    ``fields`` by name (text), ``tone`` (good, bad, busy or quiet), ``over``, ``there`` and ``images`` for the bar,
    ``states`` and ``shards`` ([shade, state, words, task id] in order), ``series``, ``has``: the files that are there.
    """
    tone, headline, detail = _verdict(run, tasks, progress)
    states = progress.states
    fields = {
        "headline": headline,
        "detail": detail,
        "there": number(progress.there),
        "images": number(progress.images),
        "share": share(progress.there, progress.images),
        "stored": number(progress.stored),
        "bytes": size(progress.bytes),
        "rate": f"{progress.images_per_second:.3g}" if progress.images_per_second else "0",
        "speed": f"{size(progress.bytes_per_second)}/s",
        "left": _time_left(run, progress),
        "to_go": number(progress.left),
        "connections": number(progress.connections),
        "most_connections": number(progress.most_connections),
        "failed": number(progress.failed),
        "failed_share": f"{share(progress.failed, progress.images)} of all"
        if progress.failed
        else "of all that were tried",
        "retries": number(progress.retries),
        "elapsed": duration(progress.seconds) if progress.seconds else "–",
        "shards_ready": f"{sum(states.get(name, 0) for name in ('there', 'done')):,} of {len(progress.shards):,}",
        "updated": minute(progress.updated),
    }
    return {
        "over": run.over,
        "planned": progress.planned,
        "tone": tone,
        "fields": fields,
        "there": progress.there,
        "images": progress.images,
        "states": states,
        "shards": [_cell(shard, progress.mode) for shard in progress.shards],
        "series": [list(point) for point in progress.series],
        "has": sorted(progress.files),
        "failures": sum(group.count for group in progress.failures),
    }


def _time_left(run: Run, progress: Progress) -> str:
    if run.over:
        return "none"
    return "not known" if progress.seconds_left is None else about(progress.seconds_left)


def _cell(shard: ShardProgress, mode: str) -> tuple[int, str, str, str]:
    words = f"{shard.name}: {STATE_WORDS[shard.state]}"
    if shard.state in ("running", "retrying", "failed", "stopped"):
        words += f", {shard.there:,} of {shard.images:,} are there"
    if shard.failed:
        words += f", {shard.failed:,} failed"
    if shard.connections:
        words += f", {under_way(shard.connections, mode)}"
    return step(shard.there, shard.images), shard.state, words, _task(shard)


def _verdict(run: Run, tasks: RunTasks, progress: Progress) -> tuple[str, str, str]:
    """Tone, headline and one more sentence."""
    others = {name.rpartition(".")[2]: state for name, state in tasks.others.items()}
    if not run.over:
        return _on_its_way(run, tasks, others, progress)
    broken = [name for name in tasks.others if tasks.others[name] == "failed"]
    if not tasks.mirrors and tasks.others:
        return _of_another_kind(run, others, broken)
    result = result_of(progress.report)
    if run.params.get("dry_run") and progress.planned and run.state == "success":
        return "good", f"Dry run: {progress.images:,} {run.noun}s are planned", "Nothing was fetched."
    if result:
        level = f"Verified at level {result.level}: {LEVEL_MEANS[result.level]}."
        if result.passed:
            one = result.selected == 1
            return (
                "good",
                f"The one selected {run.noun} is in the bucket and verified"
                if one
                else f"All {result.selected:,} selected {run.noun}s are in the bucket and verified",
                level,
            )
        lacking = result.selected - result.verified
        return (
            "bad",
            f"{lacking:,} of {result.selected:,} selected {run.noun}s {'is' if lacking == 1 else 'are'} not there",
            f"The other {result.verified:,} are verified and stay. Trigger the same run again: it goes on from there.",
        )
    if run.state == "failed":
        return _failed(broken)
    if others.get("verify") == "success":
        return (
            "good",
            "The run succeeded",
            "Its verification passed; its report is not in the bucket, or cannot be read.",
        )
    if others.get("approve") == "success":
        return "quiet", "Nothing was streamed", "A person refused the plan. Trigger the run again to be asked again."
    return "quiet", "Nothing was streamed", "Its tasks were skipped; the log of the first that was skipped says why."


def _on_its_way(
    run: Run, tasks: RunTasks, others: Mapping[str, str | None], progress: Progress
) -> tuple[str, str, str]:
    shards = [state for shard in tasks.shards.values() for state in (shard.missing, shard.stream)]
    if run.paused and not any(state in _BUSY for state in (*others.values(), *shards)):
        begun = any(state is not None for state in others.values()) and run.state != "queued"
        return (
            "bad",
            f"{run.dag_id} is paused, so this run {'does not go on' if begun else 'does not begin'}",
            "Unpause the DAG: the switch beside its name, on its page in Airflow. The run then "
            + ("goes on where it stands." if begun else "begins by itself."),
        )
    words = {**_AT_WORK, **_OF_CLINICAL} if "build_links" in others else _AT_WORK
    active = {name.rpartition(".")[2] for name, state in tasks.others.items() if state not in _REST}  # in any group
    at_work = next((text for name, text in words.items() if name in active), "")
    if run.state == "queued" or (not at_work and not progress.planned):
        return "quiet", "Waiting to begin", "Airflow has queued this run."
    if at_work or not progress.planned:
        return "busy", at_work, ""
    if not progress.left and not progress.failed:
        return "busy", "Looking for what is missing", "Complete shards are skipped."
    return "busy", _STREAMING[progress.mode], "The run goes on whether this page is open or not."


def _of_another_kind(run: Run, others: Mapping[str, str | None], broken: list[str]) -> tuple[str, str, str]:
    """The same for an audit, a clean-up or a run that fetches only the tables; told apart by their tasks."""
    if "build_links" in others:
        if run.state == "success" and others.get("judge") != "skipped":
            return (
                "good",
                "The tables are beside the training index",
                "The log of its task judge says what was left out.",
            )
        if run.state == "success":
            return (
                "quiet",
                "Nothing was built",
                "Its tasks were skipped; the log of the first that was skipped says why.",
            )
        return _failed(broken)
    if "judge" in others:
        if run.state == "success":
            return "good", "The audit found nothing that differs", "The log of its task audit has the counts."
        if others.get("audit") == "success" and others["judge"] == "failed":
            return (
                "bad",
                f"The audit found {run.noun}s that are missing or wrong",
                f"The log of its task judge says how many, and where their list is. An audit changes no {run.noun}.",
            )
    if "delete" in others and run.state == "success":
        if others["delete"] == "success":
            return "good", "What was listed and approved is deleted", "The log of its task delete has the counts."
        if run.params.get("dry_run"):
            return "good", "Dry run: the objects are listed", "Nothing was deleted."
        return "quiet", "Nothing was deleted", "The deletion was refused, or there was nothing to delete."
    if run.state == "failed":
        return _failed(broken)
    if "fetch_metadata" in others:
        return "good", "The tables are in the bucket and verified", "Images are fetched by mimic_cxr_jpg."
    return "good", "The run succeeded", "It mirrors no images, so there is no more to show here."


def _failed(broken: list[str]) -> tuple[str, str, str]:
    where = f"The task {broken[0]} failed" if broken else "The run failed"
    return "bad", where, "Its log says why and what to do. What was stored before is untouched."


# -- reports -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """The main figures of a report. Sizes in bytes, times in seconds."""

    passed: bool
    level: str
    selected: int
    verified: int
    fetched: int
    bytes: int
    seconds: float


def result_of(report: RunReport | None) -> Result | None:
    """The main figures of a report; None if there is no report or it is damaged."""
    if report is None or not report.whole or report.result.level not in LEVEL_MEANS:
        return None
    result, moved = report.result, report.transfer
    return Result(
        result.passed, result.level, result.selected, result.verified, moved.images, moved.bytes, report.run.seconds
    )
