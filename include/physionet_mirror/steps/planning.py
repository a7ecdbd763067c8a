"""Chooses the images, cuts them into shards, and says what it will take."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from include.physionet_mirror import index, manifest, plan, shards
from include.physionet_mirror.access_point import COPIES_A_CONNECTION
from include.physionet_mirror.dataset import Dataset
from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.errors import InputError, MetadataError
from include.physionet_mirror.layout import LEFT, MANIFEST, RUNS, RunLayout
from include.physionet_mirror.request import Request
from include.physionet_mirror.selection import choose

log = logging.getLogger(__name__)

_ENOUGH_TO_LEARN = 100
"""Verified images from which the mean size of an image is taken rather than from the dataset's declaration."""

_A_COPY = 0.3
"""Seconds that HEAD and COPY of an image take inside S3, whose guide gives 0.1 to 0.2 s for a small request."""


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
    part: int | None = None,
    most_shards: int = shards.MOST_SHARDS,
) -> Plan:
    """Choose the images, cut them into shards, estimate what it takes, and write it all down under the run's folder.

    Args:
        request: What is asked for.
        bucket: Destination, with the manifest in it.
        run: Where the plan goes.
        streams: Shards that will be streamed at once.
        params: The params as given, for plan.json.
        file_list: Lines of ``request.file_list``.
        part: Which of ``request.slices`` parts, from 0; what an earlier part left over is taken along.
        most_shards: More than these cannot be scheduled.

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
    frame, notes = chosen.frame, [*everything.attrs["notes"], *chosen.notes]
    if part is not None and request.slices is not None:
        frame, note = _part_of(frame, part, request.slices, bucket)
        notes.append(note)
    count = len(frame)
    known, mean_bytes = _remembered(frame, bucket, request.dataset)
    at_once, otherwise = request.connections, plan.FROM_FACTS
    if request.source == "s3":
        at_once *= COPIES_A_CONNECTION
        otherwise = plan.Throughput(mean_bytes / _A_COPY, f"{_A_COPY} s a copy, which S3's usual latencies suggest")
    reports = [document for document in report_documents(bucket) if _source_of(document) == request.source]
    if request.shard_size is None:
        rate = otherwise.bytes_per_second
        size = shards.size_for(max(1, count), streams, at_once, count - known, mean_bytes, rate, most_shards)
    else:
        size = request.shard_size
        shards.check_size(count, size, most_shards)
    estimate = plan.estimate(
        count,
        mean_bytes,
        at_once,
        missing=count - known,
        region=bucket.client.meta.region_name,
        storage_class=request.storage_class,
        verify=request.verify,
        reports=reports,
        otherwise=otherwise,
    )
    # An earlier attempt of the same run may have cut its shards in another way: what it says of them is void.
    bucket.delete([entry.path for entry in bucket.list(run.results)])
    packed = list(shards.pack(frame, size, run.shard))
    with ThreadPoolExecutor(16, thread_name_prefix="shards") as pool:
        for _ in pool.map(lambda part: bucket.write(part[0].path, part[1], content_type="text/plain"), packed):
            pass
    made = Plan([shard for shard, _ in packed], estimate, notes)
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
            notes=notes,
        ),
    )
    for note in notes:
        log.info("%s", note)
    log.info("Plan of %s to %s\n%s", request.dataset.name, bucket.uri(), made.table())
    return made


def _part_of(frame: Any, part: int, parts: int, bucket: Bucket) -> tuple[Any, str]:
    """The rows of one part, with those that an earlier run left over; and a sentence on it."""
    owned = frame.index[shards.slice_of(len(frame), part, parts)]
    left = {image.path for image in read_left(bucket)}
    taken = frame.index.isin(owned) | frame["path"].isin(left)
    more = int(taken.sum()) - len(owned)
    note = f"part {part + 1} of {parts}: {len(owned):,} of {len(frame):,} images"
    return frame[taken], note + (f", and {more:,} that an earlier run left over" if more else "")


def read_left(bucket: Bucket) -> list[shards.Image]:
    """The images that earlier runs left over when their time was up."""
    try:
        return shards.decode(bucket.read(LEFT))
    except FileNotFoundError:
        return []


def report_documents(bucket: Bucket, most: int = 10) -> list[dict[str, Any]]:
    """``report.json`` of the latest runs to this bucket, newest first; runs that have none are left out."""
    latest = sorted(bucket.folders(RUNS), key=lambda folder: folder.partition("__")[2], reverse=True)[:most]
    with ThreadPoolExecutor(most, thread_name_prefix="reports") as pool:
        read = pool.map(lambda folder: bucket.read_json(RunLayout(folder).report_json), latest)
        return [document for document in read if isinstance(document, dict)]


def _source_of(report: Mapping[str, Any]) -> str:
    params = report.get("params")
    return str(params.get("source") or "physionet") if isinstance(params, Mapping) else "physionet"


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
    """How many of these images the index holds as they are published now, and the mean size of an image in bytes."""
    sizes, known = index.known(bucket, frame["path"], frame["sha256"])
    return known, sum(sizes) / len(sizes) if len(sizes) >= _ENOUGH_TO_LEARN else dataset.image_bytes


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
