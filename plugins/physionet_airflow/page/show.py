"""What the templates and the script are given: numbers as words, states as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from include.physionet_mirror.report import LEVEL_MEANS, NEXT_STEPS
from include.physionet_mirror.words import about, duration, share, size
from physionet_airflow.page.runs import GROUP

if TYPE_CHECKING:
    from include.physionet_mirror.progress import Progress, ShardProgress
    from physionet_airflow.page.runs import Run, RunTasks

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
    "plan": "Choosing the images and cutting them into shards",
    "approve": "Waiting for a person to approve the plan (under Required Actions)",
    "verify": "Verifying the whole selection",
}

_REST = frozenset({None, "success", "skipped", "failed", "upstream_failed", "removed"})


def number(value: float) -> str:
    """``12,345``."""
    return f"{value:,.0f}"


def ago(at: datetime | None, now: datetime | None = None) -> str:
    """``5 min ago``; empty for no time."""
    if at is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * unit or (unit == 60 and seconds >= 60):
            count = int(seconds // unit)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def minute(at: datetime | None) -> str:
    """``2026-03-01 22:00 UTC``."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if at else ""


def step(part: float, whole: float) -> int:
    """A share in `STEPS` shades: 0 only for nothing, the last only for all."""
    if not whole or part <= 0:
        return 0
    return STEPS if part >= whole else min(max(math.ceil(STEPS * part / whole), 1), STEPS - 1)


def task_path(dag_id: str, run_id: str, shard: ShardProgress) -> str:
    """Where Airflow shows the log of a shard, below its root."""
    return f"{run_path(dag_id, run_id)}/tasks/{_task(shard)}/mapped/{shard.index}"


def _task(shard: ShardProgress) -> str:
    """Which of the shard's two tasks has more to say."""
    return f"{GROUP}.missing" if shard.state in ("there", "skipped", "checking") else f"{GROUP}.stream"


def run_path(dag_id: str, run_id: str) -> str:
    """Where Airflow shows a run, below its root."""
    return f"dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def next_step(reason: str) -> str:
    """What to do about images that failed for this reason."""
    return NEXT_STEPS.get(reason, "Trigger the same run again: it fetches only these images.")


def live(run: Run, tasks: RunTasks, progress: Progress) -> dict[str, Any]:
    """The live page's numbers, as JSON; the template fills in the same at first.

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
        "shards": [_cell(shard) for shard in progress.shards],
        "series": [list(point) for point in progress.series],
        "has": sorted(progress.files),
        "failures": sum(group.count for group in progress.failures),
    }


def _time_left(run: Run, progress: Progress) -> str:
    if run.over:
        return "none"
    return "not known" if progress.seconds_left is None else about(progress.seconds_left)


def _cell(shard: ShardProgress) -> tuple[int, str, str, str]:
    words = f"{shard.name}: {STATE_WORDS[shard.state]}"
    if shard.state in ("running", "retrying", "failed", "stopped"):
        words += f", {shard.there:,} of {shard.images:,} are there"
    if shard.failed:
        words += f", {shard.failed:,} failed"
    if shard.connections:
        words += f", {shard.connections} connection{'' if shard.connections == 1 else 's'}"
    return step(shard.there, shard.images), shard.state, words, _task(shard)


def _verdict(run: Run, tasks: RunTasks, progress: Progress) -> tuple[str, str, str]:
    """Tone, headline and a sentence more."""
    at_work = next((text for name, text in _AT_WORK.items() if tasks.others.get(name) not in _REST), "")
    broken = [name for name in tasks.others if tasks.others[name] == "failed"]
    if not run.over:
        if run.state == "queued" or (not at_work and not progress.planned):
            return "quiet", "Waiting to begin", "Airflow has queued this run."
        if at_work or not progress.planned:
            return "busy", at_work, ""
        if not progress.left and not progress.failed:
            return "busy", "Looking for what is missing", "Complete shards are skipped."
        return "busy", "Streaming", "The run goes on whether this page is open or not."
    result = (progress.report or {}).get("result")
    if run.params.get("dry_run") and progress.planned:
        return "good", f"Dry run: {progress.images:,} images are planned", "Nothing was fetched."
    if result:
        level = f"Verified at level {result['level']}: {LEVEL_MEANS[result['level']]}."
        if result["passed"]:
            one = result["selected"] == 1
            return (
                "good",
                "The one selected image is in the bucket and verified"
                if one
                else f"All {result['selected']:,} selected images are in the bucket and verified",
                level,
            )
        lacking = result["selected"] - result["verified"]
        return (
            "bad",
            f"{lacking:,} of {result['selected']:,} selected images {'is' if lacking == 1 else 'are'} not there",
            f"The other {result['verified']:,} are verified and stay. Trigger the same run again: it goes on from there.",
        )
    if run.state == "failed":
        where = f"The task {broken[0]} failed" if broken else "The run failed"
        return "bad", where, "Its log says why and what to do. What was stored before is untouched."
    return "quiet", "Nothing was streamed", "The run ended without a report: its plan was refused or skipped."
