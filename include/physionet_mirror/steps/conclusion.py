"""Compares the whole selection of a run with the bucket and writes the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from include.physionet_mirror import report, shards
from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.errors import MetadataError
from include.physionet_mirror.layout import RunLayout
from include.physionet_mirror.request import Request
from include.physionet_mirror.steps.planning import manifest_bytes
from include.physionet_mirror.verification import Verdict, verify

log = logging.getLogger(__name__)


def verify_run(
    request: Request,
    bucket: Bucket,
    run: RunLayout,
    *,
    params: Mapping[str, Any],
    started: datetime,
    software: Mapping[str, str] | None = None,
) -> tuple[Verdict, dict[str, Any]]:
    """Compare the whole selection of a run with the bucket, and write its report; judges nothing itself."""
    document = bucket.read_json(run.plan)
    if document is None:
        raise MetadataError(f"{bucket.uri(run.plan)} is gone, so it is not known what was selected. Trigger a new run.")
    with ThreadPoolExecutor(16, thread_name_prefix="shards") as pool:
        parts = pool.map(lambda shard: shards.decode(bucket.read(shard["path"])), document["shards"])
        images = [image for part in parts for image in part]
    verdict = verify(images, bucket, request.verify, since=started if request.verify == "content" else None)
    written = report.write(
        bucket,
        run,
        dataset=request.dataset,
        verdict=verdict,
        manifest=manifest_bytes(bucket),
        params=params,
        started=started,
        notes=document["selection"]["notes"],
        software=software,
    )
    log.info("\n%s", report.summary_table(written))
    return verdict, written
