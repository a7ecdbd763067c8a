"""Chooses the images, cuts them into shards, and says what it will take."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from include.physionet_mirror import manifest, plan, shards
from include.physionet_mirror.dataset import Dataset
from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.errors import InputError, MetadataError
from include.physionet_mirror.layout import MANIFEST, RunLayout
from include.physionet_mirror.request import Request
from include.physionet_mirror.selection import choose
from include.physionet_mirror.verified import Memory, groups_of

log = logging.getLogger(__name__)

_ENOUGH_TO_LEARN = 100
"""Remembered images from which the mean size of an image is taken rather than from the dataset's declaration."""


@dataclass(frozen=True)
class Plan:
    """What `make_plan` decided: the shards, the estimate, and sentences for people."""

    shards: list[shards.Shard]
    estimate: plan.Estimate
    notes: list[str]

    def table(self) -> str:
        """The estimate as a small text table."""
        return self.estimate.table(len(self.shards))


def make_plan(
    request: Request,
    bucket: Bucket,
    run: RunLayout,
    *,
    streams: int,
    params: Mapping[str, Any],
    file_list: Sequence[str] | None = None,
) -> Plan:
    """Choose the images, cut them into shards, estimate what it takes, and write it all down under the run's folder.

    Args:
        request: What is asked for.
        bucket: Destination, with the manifest in it.
        run: Where the plan goes.
        streams: Shards that will be streamed at once.
        params: The params as given, for plan.json.
        file_list: Lines of ``request.file_list``.

    Raises:
        InputError: A filter that matches nothing, a shard size that cannot be. Nothing was written.
        MetadataError: There is no manifest.
    """
    request.share(streams)
    data = BytesIO(manifest_bytes(bucket))
    sums_sha256 = manifest.sums_sha256_of(data) or ""
    everything = manifest.read(data)
    if file_list is not None:
        request = replace(request, selection=replace(request.selection, file_list=tuple(file_list)))
    chosen = choose(everything, request.selection)
    count = len(chosen.frame)
    known, mean_bytes = _remembered(chosen.frame, bucket, request.dataset)
    if request.shard_size is None:
        size = shards.size_for(count, streams, request.connections, count - known, mean_bytes)
    else:
        size = request.shard_size
        shards.check_size(count, size)
    estimate = plan.estimate(
        count,
        mean_bytes,
        request.connections,
        missing=count - known,
        region=bucket.client.meta.region_name,
        storage_class=request.storage_class,
    )
    packed = list(shards.pack(chosen.frame, size, run.shard))
    with ThreadPoolExecutor(16, thread_name_prefix="shards") as pool:
        for _ in pool.map(lambda part: bucket.write(part[0].path, part[1], content_type="text/plain"), packed):
            pass
    made = Plan([shard for shard, _ in packed], estimate, chosen.notes)
    bucket.write_json(
        run.plan,
        plan.document(
            run_id=run.run_id,
            request=params,
            dataset=request.dataset,
            sums_sha256=sums_sha256,
            manifest_images=len(everything),
            matched=chosen.matched,
            shards=made.shards,
            estimate=estimate,
            notes=chosen.notes,
        ),
    )
    for note in chosen.notes:
        log.info("%s", note)
    log.info("Plan of %s to %s\n%s", request.dataset.name, bucket.uri(), made.table())
    return made


def manifest_bytes(bucket: Bucket) -> bytes:
    """The manifest in the bucket. Raises MetadataError where there is none."""
    try:
        return bucket.read(MANIFEST)
    except FileNotFoundError:
        raise MetadataError(
            f"{bucket.uri(MANIFEST)} is not there, so nothing is known of the images. Nothing was written. Run the task "
            "fetch_metadata of this run (clear it, with what comes after it)."
        ) from None


def _remembered(frame: Any, bucket: Bucket, dataset: Dataset) -> tuple[int, float]:
    """How many of these images were verified before, and the mean size of an image in bytes."""
    memory = Memory.load(bucket, groups_of(frame["path"]))
    if not len(memory):
        return 0, dataset.image_bytes
    wanted = dict(zip(frame["path"], frame["sha256"], strict=True))
    known = total = seen = 0
    for path, size, _, sha256, _, level in memory:
        total += size
        seen += 1
        known += level != "wrong" and wanted.get(path) == sha256
    return known, total / seen if seen >= _ENOUGH_TO_LEARN else dataset.image_bytes


def read_list(bucket: Bucket, path: str) -> list[str]:
    """The lines of a text file in S3.

    Raises:
        InputError: There is no such file, or it is no text.
    """
    try:
        return bucket.read_text(path).splitlines()
    except FileNotFoundError:
        raise InputError(
            f"file_list: {bucket.uri(path)} does not exist. Nothing was done. A run without failures writes no "
            "failed_images.txt: then there is nothing to repeat."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"file_list: {bucket.uri(path)} is not UTF-8 text. Nothing was done.") from None
