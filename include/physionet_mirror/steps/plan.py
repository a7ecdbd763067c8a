"""Chooses the images, cuts them into shards, and says what it will take."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from physionet_mirror import index, manifest, shards, sizes, words
from physionet_mirror.clinical.studies import chosen_by
from physionet_mirror.compare import Comparison, Verified, compare
from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import InputError, MetadataError
from physionet_mirror.estimate import ENOUGH_SECONDS, estimate_run, usual_speed
from physionet_mirror.files import File
from physionet_mirror.layout import LEFT, MANIFEST, RUNS, SUMS_SEEN, RunLayout, group_of, has_no_report
from physionet_mirror.mover import Mode
from physionet_mirror.records import Plan, PlannedDataset, PlannedSelection, RunReport, Store, SumsSeen, load
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.selection import choose
from physionet_mirror.source.access_point import AccessPoint
from physionet_mirror.source.way import Way

log = logging.getLogger(__name__)

_ENOUGH_TO_LEARN = 100
"""Verified images from which the mean size of an image is taken rather than from the dataset's declaration."""

_LARGEST_LIST = 100_000_000
"""Bytes of a file list: every image of MIMIC-CXR-JPG, with a reason each, has half of that."""

_LARGEST_REPORT = 4_000_000
"""Bytes; a report has a few ten thousand."""

_MOST_REPORTS_READ = 100

_USEFUL_REPORTS = 10
"""Of runs that fetched for a while; those between them come along."""

_LONGEST_KEY = 1024
"""Bytes of a key in S3 (source: S3 user guide, naming objects)."""

_COVERED = 0.9
"""Share of a project's stated size below which its checksums are said to leave something out."""


SCHEMA = "physionet-mirror/plan/1"


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
    way: Way | None = None,
    point: AccessPoint | None = None,
    site: sizes.Site | None = None,
    store: Store | None = None,
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
        way: Which way the files take; None = from the website, and no word of it.
        point: The access point, where they come from there: it is listed, so that sizes are exact, and what it lacks is
            known.
        site: The website, which a plan for a project's files asks for sizes that are not known; None = nobody is asked.
        store: What the bucket's S3 can do, as the access check has found; None = nobody has tried.

    Raises:
        InputError: A filter that matches nothing, a shard size that cannot be. Nothing was written.
        MetadataError: There is no manifest.
    """
    request.share(streams)
    mode: Mode = way.mode if way is not None else "download"
    data = BytesIO(manifest_bytes(bucket))
    sums_sha256 = manifest.sums_sha256_of(data) or ""
    everything = manifest.read(data, manifest.selectable_columns(data) if sums_sha256 else None)
    if file_list is not None:
        request = replace(request, selection=replace(request.selection, file_list=tuple(file_list)))
    chosen = choose(everything, request.selection, chosen_by(bucket, request.selection))
    frame, notes = chosen.frame, [*everything.attrs["notes"], *chosen.notes]
    if way is not None:
        notes.insert(0, str(way))
    if store is not None:
        notes += store.lacks()
    if part is not None and request.slices is not None:
        frame, note = _part_of(frame, part, request.slices, bucket)
        notes.append(note)
    count = len(frame)
    notes += (load(bucket, SUMS_SEEN, SumsSeen) or SumsSeen()).notes
    _check_keys(frame["path"], bucket)
    present, mean_bytes = _present(frame, bucket, request.dataset)
    missing = [path for path in frame["path"] if path not in present]
    listed, exact, between, basis = None, None, None, ""
    if point is not None:
        listed = point.sizes(list(frame["path"]))
        notes += _lacking(frame["path"], listed, point)
        if request.verify != "count":  # another size is fetched again
            present = {path: size for path, size in present.items() if listed.get(path, size) == size}
        exact = sum(listed.values()), sum(size for path, size in listed.items() if path not in present)
        basis = "each file's size, as the access point lists it" if request.selection.noun == "file" else ""
    elif site is not None and request.selection.noun == "file":
        asked = sizes.ask(site, request.dataset, missing, connections=request.connections, seed=request.selection.seed)
        guess, least, most = asked.total(missing)
        exact, basis = (sum(present.values()) + guess, guess), asked.basis
        between = (least, most) if least != most else None
        listed = {**present, **asked.each} if missing and len(asked.each) == len(missing) else None
        mean_bytes = guess / len(missing) if guess else mean_bytes
        if count == chosen.of and exact[0] < _COVERED * (asked.stated or 0):
            notes.append(
                f"SHA256SUMS.txt lists {count:,} files, {words.size(exact[0])}, and PhysioNet states "
                f"{words.size(asked.stated or 0)} for the project: what is not listed cannot be proven and is not fetched"
            )
    known, parts = len(present), None
    if request.shard_size is None:
        at_once, speed = usual_speed(request, mean_bytes, mode, streams)
        rate = speed.bytes_per_second
        usual = shards.USUAL_SHARDS if mode == "download" else shards.USUAL_FAST_SHARDS
        size = shards.size_for(max(1, count), streams, at_once, count - known, mean_bytes, rate, most_shards, usual)
        if listed is not None and request.selection.noun == "file":
            to_fetch = [0 if path in present else listed.get(path, 0) for path in frame["path"]]
            parts = shards.cut_by_bytes(to_fetch, streams, at_once, rate, most_shards, usual)
    else:
        size = request.shard_size
        shards.check_size(count, size, most_shards, request.selection.noun)
    expected = estimate_run(
        request,
        count,
        count - known,
        mean_bytes,
        mode=mode,
        streams=streams,
        region=bucket.region(),
        in_aws=bucket.in_aws,
        reads_back=bucket.can.reads_back,
        reports=earlier_reports(bucket, mode=mode),
        exact=exact,
        between=between,
        sizes=basis,
        listed=point is not None,
    )
    # An earlier attempt of the same run may have cut its shards in another way: what it says of them is void.
    if stale := [entry.path for entry in bucket.list(run.results) if entry.size]:
        bucket.discard(stale)
    packed = list(
        shards.pack(frame, size, run.shard, listed if point is not None else None, request.selection.noun, parts)
    )
    with ThreadPoolExecutor(16, thread_name_prefix="shards") as pool:
        for _ in pool.map(lambda part: bucket.write(part[0].path, part[1], content_type="text/plain"), packed):
            pass
    made = Plan(
        schema=SCHEMA,
        run_id=run.run_id,
        dag_id=run.dag_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        request=params,
        dataset=PlannedDataset(request.dataset.name, request.dataset.title, sums_sha256, chosen.of),
        way=way.to_json() if way is not None else {},
        store=store,
        selection=PlannedSelection(chosen.matched, count, notes),
        shards=[shard for shard, _ in packed],
        estimate=expected,
    )
    bucket.write_json(run.plan, made.to_json())
    for note in notes:
        log.info("%s", note)
    log.info("Plan of %s to %s\n%s", request.dataset.name, bucket.uri(), made.table())
    return made


def _check_keys(paths: Iterable[str], bucket: Bucket) -> None:
    """Raise InputError where the prefix makes a key longer than S3 takes."""
    longest = max(paths, key=lambda path: len(path.encode()), default="")
    if (size := len(bucket.key(longest).encode())) > _LONGEST_KEY:
        raise InputError(
            f"prefix: the key of {longest[:60]}… would have {size:,} bytes, and S3 takes at most {_LONGEST_KEY:,}. Nothing was "
            f"done. Choose a prefix that is {size - _LONGEST_KEY:,} bytes shorter, or leave such files out."
        )


def _part_of(frame: Any, part: int, parts: int, bucket: Bucket) -> tuple[Any, str]:
    """The rows of one part, with those that an earlier run left over; and a sentence on it."""
    owned = frame.index[shards.slice_of(len(frame), part, parts)]
    left = {image.path for image in read_left(bucket)}
    taken = frame.index.isin(owned) | frame["path"].isin(left)
    more = int(taken.sum()) - len(owned)
    note = f"part {part + 1} of {parts}: {len(owned):,} of {len(frame):,} images"
    return frame[taken], note + (f", and {more:,} that an earlier run left over" if more else "")


def read_left(bucket: Bucket) -> list[File]:
    """The images that earlier runs left over when their time was up; of a damaged list, those that can be read."""
    try:
        lines = bucket.read(LEFT).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    try:
        return shards.decode(b"".join(lines))
    except MetadataError:
        left = []
    for line in (lines := [line for line in lines if not line.startswith(b"#")]):
        try:
            left += shards.decode(line)
        except MetadataError:
            continue
    if bad := len(lines) - len(left):
        log.warning(
            "%s is damaged: %d lines of it cannot be read. No image is affected; what they named is fetched when its own "
            "part comes round again.",
            bucket.uri(LEFT),
            bad,
        )
    return left


def earlier_reports(bucket: Bucket, mode: Mode | None = None) -> list[RunReport]:
    """The reports of the latest runs to this bucket, newest first, until `_USEFUL_REPORTS` of them have something to teach.

    Audits and clean-ups, which have none, and runs that fetched nothing to speak of hide no other run. One HEAD a run says
    which reports there are and which are the newest; only these are read.

    Args:
        bucket: Where the runs went.
        mode: Only runs by this way; None = any.
    """
    paths = [RunLayout.of_folder(name).report_json for name in bucket.folders(RUNS) if not has_no_report(name)]
    found: list[tuple[float, RunReport]] = []
    with ThreadPoolExecutor(16, thread_name_prefix="reports") as pool:
        there = [stored for stored in pool.map(bucket.head, paths) if stored and 0 < stored.size <= _LARGEST_REPORT]
        there = sorted(there, key=lambda stored: stored.last_modified, reverse=True)[:_MOST_REPORTS_READ]
        useful = 0
        for at in range(0, len(there), _USEFUL_REPORTS):
            batch = there[at : at + _USEFUL_REPORTS]
            read = pool.map(lambda stored: load(bucket, stored.path, RunReport), batch)
            for stored, report in zip(batch, read, strict=True):
                if report is not None and mode in (None, report.mode):
                    found.append((report.finished or stored.last_modified.timestamp(), report))
                    useful += report.transfer.bytes > 0 and report.transfer.seconds >= ENOUGH_SECONDS
            if useful >= _USEFUL_REPORTS:
                break
    return [report for _, report in sorted(found, key=lambda pair: pair[0], reverse=True)]


def manifest_bytes(bucket: Bucket) -> bytes:
    """The manifest in the bucket. Raises MetadataError where there is none."""
    try:
        return bucket.read(MANIFEST)
    except FileNotFoundError:
        raise MetadataError(
            f"{bucket.uri(MANIFEST)} is not there, so nothing is known of the files. Nothing was written. Run the task "
            "fetch_metadata of this run (clear it, with what comes after it)."
        ) from None


def _lacking(paths: Iterable[str], sizes: Mapping[str, int], point: AccessPoint) -> list[str]:
    """A sentence on the files that the access point does not list, if any."""
    lacking = [path for path in paths if path not in sizes]
    if not lacking:
        return []
    named = lacking[0] if len(lacking) == 1 else f"{lacking[0]} and {len(lacking) - 1:,} more"
    return [f"{point.bucket.name} does not list {named}: the run will name them as failed, and fetches the others"]


def _present(frame: Any, bucket: Bucket, dataset: Dataset) -> tuple[dict[str, int], float]:
    """Which of these files lie in the bucket now, with their sizes, and the mean size of a file in bytes.

    What counts is what S3 lists, not what an earlier run wrote down. Only of an image that PhysioNet has replaced since it
    was verified, the index knows more: that one is to be fetched.
    """
    known = index.read(bucket, ["path", "bytes", "sha256"])
    replaced: set[str] = set()
    if known is not None:
        where = pc.index_in(pa.array(frame["path"], pa.string()), value_set=known["path"].cast(pa.string()))
        differs = pc.not_equal(known["sha256"].cast(pa.string()).take(where), pa.array(frame["sha256"], pa.string()))
        replaced = set(
            frame["path"].to_numpy(dtype=object)[pc.fill_null(differs, False).to_numpy(zero_copy_only=False)]
        )
    present = {file.path: file.size for file in _listed(frame, bucket) if file.path not in replaced}
    stored = list(present.values())
    to_learn_from = known["bytes"].to_pylist() if known is not None and len(known) > len(stored) else stored
    enough = len(to_learn_from) >= _ENOUGH_TO_LEARN
    return present, sum(to_learn_from) / len(to_learn_from) if enough else dataset.image_bytes or sizes.GUESS


def _listed(frame: Any, bucket: Bucket) -> list[Verified]:
    """Those of these images that are in the bucket with a size above zero; group by group at once."""
    groups, rows = list(map(group_of, frame["path"])), frame.index.to_numpy()
    images = list(map(File, frame["path"], frame["sha256"]))
    starts = [at for at in range(len(frame)) if at == 0 or groups[at] != groups[at - 1]]

    def look(bounds: tuple[int, int]) -> list[Verified]:
        start, end = bounds
        span = int(rows[end - 1] - rows[start]) + 1
        return compare(images[start:end], bucket, Comparison("count"), span=span, workers=4).ok

    with ThreadPoolExecutor(10, thread_name_prefix="present") as pool:
        return [file for found in pool.map(look, pairwise([*starts, len(frame)])) for file in found]


def read_list(bucket: Bucket, path: str) -> list[str]:
    """The lines of a text file in S3.

    Raises:
        InputError: There is no such file, it is no text, or it is larger than a list of all images can be.
    """
    stored = bucket.head(path)
    if stored is None:
        raise InputError(
            f"file_list: {bucket.uri(path)} does not exist. Nothing was done. A run without failures writes no "
            "failed_images.txt: then there is nothing to repeat."
        )
    if stored.size > _LARGEST_LIST:
        raise InputError(
            f"file_list: {bucket.uri(path)} has {words.size(stored.size)}; a list of paths has at most "
            f"{words.size(_LARGEST_LIST)}. Nothing was done and the file was not read. Check the address."
        )
    try:
        return bucket.read_text(path).splitlines()
    except FileNotFoundError:
        raise InputError(f"file_list: {bucket.uri(path)} was deleted meanwhile. Nothing was done.") from None
    except UnicodeDecodeError:
        raise InputError(f"file_list: {bucket.uri(path)} is not UTF-8 text. Nothing was done.") from None
