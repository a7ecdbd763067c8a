"""Compares a run's whole selection with the bucket, updates the training index and writes the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from physionet_mirror import index, manifest, shards
from physionet_mirror.errors import MetadataError
from physionet_mirror.files import File
from physionet_mirror.layout import LEFT, RunLayout
from physionet_mirror.records import Plan, RunReport, ShardResult, load
from physionet_mirror.report import document, page
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.steps.plan import manifest_bytes, read_left
from physionet_mirror.verification import Verdict, verify
from physionet_mirror.verified_cache import attempt_of

log = logging.getLogger(__name__)


def verify_run(
    request: Request,
    bucket: Bucket,
    run: RunLayout,
    *,
    params: Mapping[str, Any],
    started: datetime,
    software: Mapping[str, str] | None = None,
) -> tuple[Verdict, RunReport]:
    """Compare a run's whole selection with the bucket, and write index and report. Failing the run is left to the caller.

    Images that a shard left because the run's time was up are postponed: they are listed for the next part of the
    backfill and do not count as failures.
    """
    plan = load(bucket, run.plan, Plan)
    if plan is None:
        raise MetadataError(
            f"{bucket.uri(run.plan)} is gone or damaged, so it is not known what was selected. What is stored stays stored. "
            "Trigger a new run: it fetches only what is missing."
        )
    with ThreadPoolExecutor(16, thread_name_prefix="shards") as pool:
        parts = list(pool.map(lambda shard: shards.read(bucket, shard), plan.shards))
    images = [image for part in parts for image in part]
    verdict = verify(images, bucket, request.verify, run=attempt_of(run, started), noun=request.selection.noun)
    if request.slices is not None:
        stops_at = request.stops_at(started)
        if stops_at is not None and stops_at <= datetime.now(UTC):
            verdict.postpone(_left_by_drained_shards(parts, document.read_results(bucket, run)))
        _remember_what_is_left(images, verdict, bucket)
    manifest_data = manifest_bytes(bucket)
    manifest.read(BytesIO(manifest_data))  # if it was damaged since the plan, fail here with a clear message
    written = document.write(
        bucket,
        run,
        dataset=request.dataset,
        verdict=verdict,
        manifest=manifest_data,
        params=params,
        started=started,
        index_rows=index.update(bucket, verdict, BytesIO(manifest_data)),
        plan=plan,
        software=software,
        shard_of=_shard_of(verdict, parts, [shard.index for shard in plan.shards]),
    )
    log.info("\n%s", page.summary_table(written))
    if verdict.postponed:
        log.info("%s", verdict.notes[-1])
    return verdict, written


def _shard_of(verdict: Verdict, parts: Sequence[Sequence[File]], numbers: Sequence[int]) -> dict[str, int]:
    absent = {problem.path for problem in verdict.problems}
    return {
        image.path: number
        for part, number in zip(parts, numbers, strict=True)
        for image in part
        if image.path in absent
    }


def _left_by_drained_shards(parts: Sequence[Sequence[File]], results: Sequence[ShardResult]) -> set[str]:
    left: set[str] = set()
    for result in results:
        if result.shard < len(parts) and result.untried and not result.error and result.state in ("drained", "failed"):
            left |= {image.path for image in parts[result.shard]} - {failure.path for failure in result.failed}
    return left


def _remember_what_is_left(images: Sequence[File], verdict: Verdict, bucket: Bucket) -> None:
    """Update the list of leftovers. If two runs end at once, one may overwrite the other; a later run repairs that."""
    before = {image.path: image for image in read_left(bucket)}
    mine = {image.path: image for image in images}
    postponed = set(verdict.postponed)
    after = {path: image for path, image in before.items() if path not in mine}
    after |= {path: image for path, image in mine.items() if path in postponed}
    if after:
        bucket.write(LEFT, shards.seal(after[path] for path in sorted(after)), content_type="text/plain")
    elif before:
        bucket.discard([LEFT])
