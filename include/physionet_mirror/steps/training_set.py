"""Makes a training set from the verified images of a mirror: plans its tars, makes what is missing, proves the whole."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from physionet_mirror import __version__, index, manifest, parquet, words
from physionet_mirror.clinical import studies
from physionet_mirror.dataset import LABELS, Dataset
from physionet_mirror.errors import (
    DestinationError,
    DestinationUnavailable,
    InputError,
    MetadataError,
    VerificationFailed,
)
from physionet_mirror.layout import INDEX, REPORTS, RunLayout, TrainingLayout
from physionet_mirror.records import Failure, Record, load
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.s3.prices import DEFAULT_REGION, PRICES_AS_OF, TRANSFER_OUT_GB, prices_of, request_cost
from physionet_mirror.selection import choose
from physionet_mirror.training import card, tars
from physionet_mirror.training.card import LabelCount, SplitCount, TrainingSet
from physionet_mirror.training.pixels import CPU_SECONDS_A_GB, Recipe, SmallCopy, UndecodableImage, small_copy
from physionet_mirror.training.request import TrainingRequest
from physionet_mirror.training.tars import TarRecord

log = logging.getLogger(__name__)

SCHEMA = "physionet-mirror/training-plan/1"

READS = 16
"""Originals that a task reads at once, beside those that are decoded."""

_TRIES = 5
"""Of one original, beside the client's own; a longer outage is the task's to wait for."""

_FOLLOW = ("key", "uri")  # from the path


# -- the plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedTar(Record):
    """One tar of the plan; small enough for XCom.

    Attributes:
        index: 0, 1, 2, …
        name: ``train-000000``.
        images: Images selected for it.
        read_bytes: Size of their originals.
        bytes: Size that is expected of the tar.
        inputs: See `tars.inputs_digest`.
        path: Path of its rows, below the prefix.
    """

    index: int
    name: str
    images: int
    read_bytes: int
    bytes: int
    inputs: str
    path: str


@dataclass(frozen=True)
class TrainingPlan(Record):
    """``plan.json`` of a training set. Costs are in US dollars; a GB is 10**9 bytes for people and 2**30 for AWS's bill.

    Attributes:
        schema: `SCHEMA`.
        name: Name of the set.
        tars: All tars of the set, in order.
        missing: Indexes of those that are to be made.
        request: The params, as given.
        created: Time of planning (ISO, UTC).
        indexed: Images that the training index had.
        splits, labels: Images selected.
        requests_cost, transfer_cost, monthly_cost: S3 requests, once; transfer to a worker outside AWS, once; storage of the
            set for a month, STANDARD.
        region: Whose prices these are.
    """

    schema: str
    name: str
    tars: Sequence[PlannedTar]
    missing: Sequence[int] = ()
    request: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    indexed: int = 0
    splits: Sequence[SplitCount] = ()
    labels: Sequence[LabelCount] = ()
    requests_cost: float = 0.0
    transfer_cost: float = 0.0
    monthly_cost: float = 0.0
    region: str = ""

    @property
    def to_make(self) -> list[PlannedTar]:
        """The tars that are missing, or whose inputs have changed."""
        missing = set(self.missing)
        return [tar for tar in self.tars if tar.index in missing]

    @property
    def images(self) -> int:
        """Images selected."""
        return sum(tar.images for tar in self.tars)

    @property
    def read_bytes(self) -> int:
        """Size of the originals that are to be read: what ``approve_above_gb`` is compared with."""
        return sum(tar.read_bytes for tar in self.to_make)

    @property
    def cpu_hours(self) -> float:
        """CPU hours that making the missing tars is expected to take."""
        return self.read_bytes / 1e9 * CPU_SECONDS_A_GB / 3600

    def rows(self) -> list[tuple[str, str]]:
        """What the plan says, as pairs of words, for the log and the approval page."""
        size, make = sum(tar.bytes for tar in self.tars), self.to_make
        splits = ", ".join(f"{split.images:,} {split.name}" for split in self.splits)
        positive: dict[str, int] = {}
        for label in self.labels:
            positive[label.name] = positive.get(label.name, 0) + label.positive
        return [
            ("images selected", f"{self.images:,}: {splits}"),
            ("positive", ", ".join(f"{name} {count:,}" for name, count in positive.items()) or "no labels"),
            ("size of the set", f"about {words.size(size)} in {len(self.tars):,} tars"),
            ("tars to make", f"{len(make):,}, of {sum(tar.images for tar in make):,} images"),
            ("originals to read", words.size(self.read_bytes)),
            ("CPU", f"{words.about(3600 * self.cpu_hours)} of one core; every core and every worker takes its share"),
            ("S3 requests, once", words.money(self.requests_cost)),
            (
                "transfer, once",
                f"{words.money(self.transfer_cost)} for a worker outside AWS; none in the bucket's Region",
            ),
            ("storage a month", f"{words.money(self.monthly_cost)} (S3 list prices of {self.region}, {PRICES_AS_OF})"),
        ]

    def table(self) -> str:
        """The plan as a small text table."""
        rows = self.rows()
        left = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{left}}  {text}" for name, text in rows)


def plan_set(
    request: TrainingRequest,
    bucket: Bucket,
    run: RunLayout,
    *,
    params: Mapping[str, Any],
    most_tars: int,
) -> TrainingPlan:
    """Choose the images, cut them into tars, find out which of these are there, and write it down under the run's folder.

    Args:
        request: What is asked for.
        bucket: The mirror.
        run: Where the plan goes.
        params: As given, for plan.json.
        most_tars: More than these cannot be scheduled.

    Raises:
        InputError: There is no training index, a filter matches nothing, the tars are too many, or the name is another
            set's. Nothing was written.
    """
    _check_name(request, bucket)
    table, indexed = _selected(request, bucket)
    cut = tars.cut(table, request.recipe, request.shard_mb * 10**6, request.seed)
    if len(cut) > most_tars:
        raise InputError(
            f"shard_mb: {request.shard_mb} makes {len(cut):,} tars, and this Airflow maps a task at most {most_tars:,} times. "
            "Nothing was done. Choose larger tars, or fewer images."
        )
    planned = []
    for number, tar in enumerate(cut):
        path = run.tar_rows(number)
        digest = tars.inputs_digest(tar.rows, request.recipe)
        read = int(pc.sum(tar.rows["bytes"]).as_py() or 0)
        planned.append(PlannedTar(number, tar.name, tar.rows.num_rows, read, tar.bytes, digest, path))
    training = TrainingLayout(request.name)
    with ThreadPoolExecutor(READS, thread_name_prefix="tars") as pool:
        list(pool.map(lambda pair: _write_table(bucket, pair[0].path, pair[1].rows), zip(planned, cut, strict=True)))
        there = list(pool.map(lambda tar: find_tar(bucket, training, tar) is not None, planned))
    made = _costed(
        TrainingPlan(
            schema=SCHEMA,
            name=request.name,
            tars=planned,
            missing=[tar.index for tar, is_there in zip(planned, there, strict=True) if not is_there],
            request=params,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            indexed=indexed,
            splits=(counted := card.counts(table, LABELS))[0],
            labels=counted[1],
        ),
        bucket,
    )
    bucket.write_json(run.plan, made.to_json())
    log.info("Plan of the training set %s\n%s", bucket.uri(training.root), made.table())
    return made


def _check_name(request: TrainingRequest, bucket: Bucket) -> None:
    """Raise InputError where a set of this name is there that was made in another way."""
    before = load(bucket, TrainingLayout(request.name).card, TrainingSet)
    if before is None:
        return
    asked = json.loads(json.dumps(request.makes))
    differing = sorted(key for key in {*asked, *before.params} if asked.get(key) != before.params.get(key))
    if differing:
        told = ", ".join(f"{key}={before.params.get(key)!r} there, {asked.get(key)!r} here" for key in differing[:4])
        raise InputError(
            f"name: {bucket.uri(TrainingLayout(request.name).root)} holds a set that was made in another way ({told}). Nothing "
            "was done. Choose another name, or leave it empty: it is then built from size and filters. To replace that set, "
            "delete it first with mimic_cxr_cleanup."
        )


def _selected(request: TrainingRequest, bucket: Bucket) -> tuple[pa.Table, int]:
    """The rows of the training index that the filters choose, with findings and impression where they are asked for.

    And how many rows it has.
    """
    table = index.read(bucket)
    if table is None or not table.num_rows or "dicom_id" not in table.column_names:
        raise InputError(
            f"{bucket.uri(INDEX)} lists no verified image, so there is nothing to make a training set of. Nothing was done. "
            "Run mimic_cxr_jpg to this bucket and prefix first."
        )
    table = table.select([name for name in table.column_names if name not in _FOLLOW])
    chosen = choose(manifest.frame_of(table), request.selection, studies.chosen_by(bucket, request.selection))
    indexed, table = table.num_rows, table.take(pa.array(chosen.frame.index.to_numpy()))
    return _with_reports(table, bucket) if request.reports else table, indexed


def _with_reports(table: pa.Table, bucket: Bucket) -> pa.Table:
    try:
        data = bucket.read(REPORTS)
    except FileNotFoundError:
        raise InputError(
            f"reports: {bucket.uri(REPORTS)} is not there. Nothing was done. Run mimic_cxr_clinical first, or leave reports "
            "out."
        ) from None
    try:
        said = parquet.from_bytes(data, ["study_id", "findings", "impression"])
    except ValueError as error:
        raise InputError(
            f"reports: {bucket.uri(REPORTS)} cannot be read ({error}). Nothing was done. "
            "Run mimic_cxr_clinical again, which writes it anew."
        ) from None
    where = pc.index_in(
        table["study_id"].cast(pa.int64()).combine_chunks(), value_set=said["study_id"].cast(pa.int64())
    )
    for name in ("findings", "impression"):
        table = table.append_column(name, said[name].cast(pa.string()).combine_chunks().take(where))
    return table


def _costed(plan: TrainingPlan, bucket: Bucket) -> TrainingPlan:
    images, count = sum(tar.images for tar in plan.to_make), len(plan.to_make)
    region = bucket.region() or DEFAULT_REGION
    requests = {"GET": images + 3 * len(plan.tars), "HEAD": 3 * len(plan.tars), "PUT": 2 * count + len(plan.tars) + 4}
    return replace(
        plan,
        region=region,
        requests_cost=request_cost(requests, region),
        transfer_cost=plan.read_bytes / 2**30 * TRANSFER_OUT_GB,
        monthly_cost=sum(tar.bytes for tar in plan.tars) / 2**30 * prices_of(region)["STANDARD"].gb_month,
    )


def _write_table(bucket: Bucket, path: str, table: pa.Table) -> None:
    bucket.write(path, parquet.to_bytes(table), content_type=parquet.TYPE)


# -- one tar -----------------------------------------------------------------------------------------------------------


def find_tar(bucket: Bucket, training: TrainingLayout, tar: PlannedTar) -> tuple[TarRecord, pa.Table] | None:
    """The record and the members of a tar that is there, whole, and made of these inputs; None where it is to be made.

    S3 is asked for the SHA-256 that it holds; where it holds none, for size and ETag, which it gave when it took the tar.
    """
    path = training.members(tar.name)
    try:
        record, members = tars.read_members(bucket.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s is damaged (%s): its tar is made again.", bucket.uri(path), error)
        return None
    if record.inputs != tar.inputs:
        return None
    there = bucket.head(training.tar(tar.name))
    if there is None or there.size != record.bytes:
        return None
    same = there.etag == record.etag if there.sha256 is None else there.sha256 == record.sha256
    return (record, members) if same else None


def make_tar(tar: PlannedTar, request: TrainingRequest, bucket: Bucket, *, cpus: int | None = None) -> TarRecord:
    """Read the originals of one tar, each proven against its SHA-256, and store the tar and the table of its members.

    Args:
        tar: Which.
        request: What is asked for.
        bucket: The mirror.
        cpus: Images that are decoded at once; None = as many as this process has cores.

    Raises:
        VerificationFailed: Originals are missing or no longer what was verified; nothing of this tar was written.
        MetadataError: The run's list of its images is gone or damaged.
        DestinationUnavailable: S3 cannot be reached; nothing of this tar was written.
    """
    rows = _read_rows(bucket, tar, request.recipe)
    paths = dict(zip(rows["dicom_id"].to_pylist(), rows["path"].to_pylist(), strict=True))
    damaged: list[Failure] = []
    training = TrainingLayout(request.name)
    with tempfile.TemporaryFile(prefix="training-") as file:  # it has no name: nothing is left of it, however this ends
        samples = small_copies(rows, bucket, request.recipe, damaged, cpus=cpus or cores())
        members = tars.write(file, tar.name, samples, request.recipe)
        if damaged:
            raise _damaged(tar, damaged, bucket)
        size = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        record = tars.record_of(tar.name, tar.inputs, digest, size, members, paths)
        etag = bucket.put_file(training.tar(tar.name), file, sha256=digest, content_type="application/x-tar")
    record = replace(record, etag=etag, software=software())
    bucket.write(training.members(tar.name), tars.members_file(record, members), content_type=parquet.TYPE)
    for failure in record.left_out:
        log.warning("%s is left out, as it cannot be decoded: %s", failure.path, failure.reason)
    log.info("%s: %s images, %s.", bucket.uri(training.tar(tar.name)), f"{record.images:,}", words.size(size))
    return record


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_rows(bucket: Bucket, tar: PlannedTar, recipe: Recipe) -> pa.Table:
    try:
        rows = parquet.from_bytes(bucket.read(tar.path))
        if tars.inputs_digest(rows, recipe) == tar.inputs:
            return rows
        why = "it is not what was planned"
    except FileNotFoundError:
        why = "it is gone"
    except (ValueError, KeyError) as error:
        why = str(error)
    raise MetadataError(
        f"{bucket.uri(tar.path)}, the list of the images of {tar.name}, cannot be used: {why}. Nothing was written. Trigger the "
        "training set again: it plans anew and keeps the tars that are there."
    )


def _damaged(tar: PlannedTar, damaged: Sequence[Failure], bucket: Bucket) -> VerificationFailed:
    named = ", ".join(f"{failure.path} ({failure.reason})" for failure in damaged[:3])
    more = f" and {len(damaged) - 3:,} more" if len(damaged) > 3 else ""
    return VerificationFailed(
        f"{len(damaged):,} of the {tar.images:,} originals of {tar.name}, below {bucket.uri()}, are no longer what was verified: "
        f"{named}{more}. This tar was not written; the others are not affected. Trigger mimic_cxr_jpg for them, or "
        "mimic_cxr_audit with repair=true, and then the training set again: it makes the tars that are missing."
    )


def small_copies(
    rows: pa.Table, bucket: Bucket, recipe: Recipe, damaged: list[Failure], *, cpus: int
) -> Iterator[tuple[Mapping[str, Any], SmallCopy | str]]:
    """Row and small copy of each image in order; in place of a copy, why it cannot be decoded.

    Reading waits for S3 and decoding for a core, so both are done by threads, `READS` of which wait while ``cpus`` decode:
    the decoder and the filter let other threads run meanwhile. An original is held from its first byte until it is decoded.

    Args:
        rows: Of the training index.
        bucket: The mirror.
        recipe: How.
        damaged: Gets the originals that are missing or wrong; these are not decoded, and nothing more is.
        cpus: Images that are decoded at once.
    """
    decoding = threading.Semaphore(cpus)
    kept = threading.local()

    def copy(row: Mapping[str, Any]) -> SmallCopy | str | Failure:
        buffer: bytearray | None = getattr(kept, "buffer", None)
        if buffer is None or len(buffer) < row["bytes"]:
            buffer = kept.buffer = bytearray(row["bytes"])
        original = _original(bucket, row, buffer)
        if isinstance(original, Failure) or damaged:
            return original if isinstance(original, Failure) else ""
        with decoding:
            try:
                return small_copy(original, recipe)
            except UndecodableImage as error:
                return str(error)

    threads = READS + cpus
    pool = ThreadPoolExecutor(threads, thread_name_prefix="copies")
    try:
        for row, copied in _in_order(pool, copy, tars.batches(rows), 2 * threads):
            if isinstance(copied, Failure):
                damaged.append(copied)
            elif not damaged:
                yield row, copied
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Mapping[str, Any]], Any], rows: Iterable[Mapping[str, Any]], ahead: int
) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """Each row with its result, in order, so many rows ahead."""
    waiting: deque[tuple[Mapping[str, Any], Future[Any]]] = deque()
    for row in rows:
        waiting.append((row, pool.submit(work, row)))
        if len(waiting) >= ahead:
            first, result = waiting.popleft()
            yield first, result.result()
    for first, result in waiting:
        yield first, result.result()


def _original(bucket: Bucket, row: Mapping[str, Any], buffer: bytearray) -> memoryview | Failure:
    """The bytes of an original, proven; or what is wrong with it."""
    path = row["path"]
    for number in range(_TRIES):
        try:
            data = bucket.get_into(path, memoryview(buffer)[: row["bytes"]])
        except FileNotFoundError:
            return Failure(path, "missing")
        except DestinationUnavailable:
            if number == _TRIES - 1:
                raise
            time.sleep(random.uniform(0, 0.2 * 2**number))
        except DestinationError as error:
            if error.permanent:
                raise
            return Failure(path, "wrong size")
        else:
            right = hashlib.sha256(data).hexdigest() == row["sha256"]
            return data if right else Failure(path, "wrong bytes")
    raise AssertionError


# -- the whole ---------------------------------------------------------------------------------------------------------


def verify_set(request: TrainingRequest, bucket: Bucket, run: RunLayout, dataset: Dataset) -> TrainingSet:
    """Prove every tar of the plan, remove those of an earlier cut, and write ``index.parquet``, ``dataset.json``, ``README.md``.

    Raises:
        VerificationFailed: A tar is missing or not of these inputs. What was written before is untouched.
        MetadataError: The plan is gone.
    """
    plan = load(bucket, run.plan, TrainingPlan)
    if plan is None:
        raise MetadataError(
            f"{bucket.uri(run.plan)} is gone or damaged, so it is not known what was to be made. The tars that are there stay. "
            "Trigger the training set again: it makes only what is missing."
        )
    training = TrainingLayout(request.name)
    with ThreadPoolExecutor(READS, thread_name_prefix="tars") as pool:
        found = list(pool.map(lambda tar: find_tar(bucket, training, tar), plan.tars))
    if absent := [tar.name for tar, there in zip(plan.tars, found, strict=True) if there is None]:
        raise VerificationFailed(
            f"{len(absent):,} of {len(plan.tars):,} tars of {bucket.uri(training.root)} are not there, or were made meanwhile of "
            f"other inputs: {', '.join(absent[:5])}{' …' if len(absent) > 5 else ''}. The others are proven. The log of each "
            "one's task make_tar says why. Trigger the training set again: it makes only these."
        )
    _drop_others(bucket, training, plan)
    there = [pair for pair in found if pair is not None]
    _write_index(bucket, training, plan, there, request.recipe)
    made = card.card(
        request,
        dataset,
        [record for record, _ in there],
        plan.splits,
        plan.labels,
        indexed=plan.indexed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    bucket.write_text(training.readme, card.readme(made, bucket.uri(training.root)), content_type="text/markdown")
    bucket.write_json(training.card, made.to_json())
    log.info("%s: %s.", bucket.uri(training.root), made.summary)
    if made.left_out:
        log.warning("%d images are left out, as they cannot be decoded; dataset.json names them.", len(made.left_out))
    return made


_OURS = re.compile(r"(?:members/)?([a-z]+-\d{6})\.(?:tar|parquet)")


def _drop_others(bucket: Bucket, training: TrainingLayout, plan: TrainingPlan) -> None:
    """Delete tars that an earlier run has cut in another way: a loader would read their images twice."""
    names = {tar.name for tar in plan.tars}
    others = [
        entry.path
        for entry in bucket.list(training.root)
        if (ours := _OURS.fullmatch(entry.path.removeprefix(training.root))) and ours[1] not in names
    ]
    if others:
        log.info("%d files of tars that are no part of the set any more are deleted.", len(others))
        bucket.delete(others)


def _write_index(
    bucket: Bucket,
    training: TrainingLayout,
    plan: TrainingPlan,
    found: Sequence[tuple[TarRecord, pa.Table]],
    recipe: Recipe,
) -> None:
    """Write ``index.parquet``, one row group a tar."""
    out, writer = io.BytesIO(), None
    for tar, (_, members) in zip(plan.tars, found, strict=True):
        try:
            rows, begin = _read_rows(bucket, tar, recipe), bucket.key("")
            uris = f"s3://{bucket.name}/{begin}"
            part = tars.joined(rows, members, begin, uris, f"{uris}{training.root}")
        except ValueError as error:
            raise VerificationFailed(
                f"{bucket.uri(training.members(tar.name))} does not fit its tar: {error}. Nothing else is affected. Delete it and "
                "trigger the training set again: it makes this tar anew."
            ) from None
        writer = writer or pq.ParquetWriter(out, part.schema, compression="zstd", write_page_checksum=True)
        writer.write_table(part)
    if writer is not None:
        writer.close()
    bucket.write(training.index, out.getvalue(), content_type=parquet.TYPE)


def software() -> dict[str, str]:
    """Names and versions of what decides over the pixels."""
    found = {"physionet-mirror": __version__}
    for name in ("pillow", "simplejpeg", "cykooz-resizer"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
