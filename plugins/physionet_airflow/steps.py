"""What each task of the mirror does, as a function of the request, the source and the bucket; knows nothing of Airflow.

Imports pandas and its kin, so it is itself imported only where a task runs.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from include.physionet_mirror import manifest, plan, report, shards
from include.physionet_mirror.dataset import SUMS, Dataset
from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.errors import DestinationError, InputError, MetadataError
from include.physionet_mirror.layout import MANIFEST, RunLayout
from include.physionet_mirror.pace import Pace
from include.physionet_mirror.request import Request
from include.physionet_mirror.selection import choose
from include.physionet_mirror.source import PhysioNet
from include.physionet_mirror.transfer import Transfer
from include.physionet_mirror.verification import Verdict, verify
from include.physionet_mirror.verified import Memory, groups_of

log = logging.getLogger(__name__)

_LICENCE = "LICENSE.txt"
_ONE_PUT = 32 << 20
"""Bytes up to which a file is one PUT, so that S3 keeps a SHA-256 of the whole of it."""

_ENOUGH_TO_LEARN = 100
"""Remembered images from which the mean size of an image is taken rather than from the dataset's declaration."""

_TYPES = {".gz": "application/gzip", ".csv": "text/csv", ".txt": "text/plain; charset=utf-8"}


# -- metadata ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metadata:
    """What `fetch_metadata` found.

    Attributes:
        sums_sha256: SHA-256 of SHA256SUMS.txt, which stands for the whole version.
        images: Images of the version.
        files: Paths of the tables and lists that are in the bucket now.
        fetched: How many of them had to be fetched.
        changed: Whether SHA256SUMS.txt differs from the one that the manifest in the bucket was built from.
        notes: Sentences on what did not fit together in the tables.
    """

    sums_sha256: str
    images: int
    files: tuple[str, ...]
    fetched: int
    changed: bool
    notes: tuple[str, ...]


def fetch_metadata(source: PhysioNet, bucket: Bucket, dataset: Dataset) -> Metadata:
    """Bring the tables, lists and SHA256SUMS.txt into the bucket, each proven, and build the manifest from them.

    What the bucket has already is not fetched again; the manifest is re-used while SHA256SUMS.txt is what it was.
    Nothing is written before all files are here, proven, and fit together.

    Raises:
        MetadataError: A file is not what PhysioNet publishes.
        SourceError, DestinationError: They cannot be had, or not be stored.
    """
    with tempfile.TemporaryDirectory(prefix="physionet-") as folder:
        files: dict[str, Path] = {SUMS: Path(folder, "0")}
        sums_sha256 = _download(source, dataset, SUMS, None, files[SUMS])
        before = _manifest_of(bucket)
        with files[SUMS].open("rb") as stream:
            sums = manifest.parse_sums(stream)
        published = dict(zip(sums["path"], sums["sha256"], strict=True))
        wanted = _metadata_files(dataset, published)
        new = [path for path in wanted if not _is_there(bucket, path, published[path])]
        rebuild = before is None or before[0] != sums_sha256
        for number, path in enumerate(wanted, 1):
            if path in new:
                files[path] = Path(folder, str(number))
                _download(source, dataset, path, published[path], files[path])
            elif rebuild:
                files[path] = Path(folder, str(number))
                _write_file(files[path], bucket.open_read(path))
        built: bytes | None = None
        if rebuild:
            frame = manifest.build(dataset, files)
            out = BytesIO()
            manifest.write(frame, out, dataset=dataset, sums_sha256=sums_sha256)
            built, images, notes = out.getvalue(), len(frame), frame.attrs["notes"]
            if before is not None:
                log.info("%s", _what_changed(before[1], frame))
        else:
            assert before is not None
            images, notes = len(before[1]), before[1].attrs["notes"]
        for path in new:
            bucket.upload(path, _read_file(files[path]), content_type=_type_of(path), part_size=_ONE_PUT)
        if built is not None:
            bucket.upload(SUMS, _read_file(files[SUMS]), content_type=_type_of(SUMS), part_size=_ONE_PUT)
            # Last, because it vouches for the others.
            bucket.write(MANIFEST, built, content_type="application/vnd.apache.parquet")
    for note in notes:
        log.info("%s", note)
    log.info(
        "%s: %s images. %d of %d tables and lists fetched, the others were there. The manifest was %s.",
        dataset.name,
        f"{images:,}",
        len(new),
        len(wanted),
        "built" if built is not None else "there",
    )
    return Metadata(sums_sha256, images, (SUMS, *wanted), len(new), rebuild and before is not None, tuple(notes))


def _metadata_files(dataset: Dataset, published: Mapping[str, str]) -> list[str]:
    joined = {dataset.tables[role] for role in ("metadata", "split", "labels") if role in dataset.tables}
    if absent := sorted(joined - published.keys()):
        raise MetadataError(
            f"{SUMS} of {dataset.name} does not list {', '.join(absent)}, which the manifest is made of. Nothing was "
            f"written. Look at {dataset.page}: this may be another version than the one that was asked for."
        )
    return [path for path in (*dict.fromkeys(dataset.tables.values()), _LICENCE) if path in published]


def _download(source: PhysioNet, dataset: Dataset, path: str, sha256: str | None, file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for chunk in source.stream(dataset, path, sha256):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


def _write_file(file: Path, chunks: Iterator[bytes]) -> None:
    with file.open("wb") as out:
        for chunk in chunks:
            out.write(chunk)


def _read_file(file: Path, chunk: int = 1 << 20) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while data := stream.read(chunk):
            yield data


def _is_there(bucket: Bucket, path: str, sha256: str) -> bool:
    stored = bucket.head(path)
    if stored is None or stored.size == 0:
        return False
    if stored.sha256 is not None:
        return stored.sha256 == sha256
    digest = hashlib.sha256()  # put there in parts: S3 has no checksum of the whole
    for chunk in bucket.open_read(path):
        digest.update(chunk)
    return digest.hexdigest() == sha256


def _manifest_of(bucket: Bucket) -> tuple[str, Any] | None:
    """The SHA-256 of the SHA256SUMS.txt that the bucket's manifest was built from, and its paths and checksums."""
    try:
        data = BytesIO(bucket.read(MANIFEST))
    except FileNotFoundError:
        return None
    sums_sha256 = manifest.sums_sha256_of(data)
    if sums_sha256 is None:
        return None
    return sums_sha256, manifest.read(data, ["path", "sha256"])


def _what_changed(before: Any, after: Any) -> str:
    both = before.merge(after[["path", "sha256"]], on="path", how="outer", suffixes=("", "_new"), indicator=True)
    kept = both[both["_merge"] == "both"]
    replaced = int((kept["sha256"] != kept["sha256_new"]).sum())
    added, gone = int((both["_merge"] == "right_only").sum()), int((both["_merge"] == "left_only").sum())
    return (
        f"PhysioNet has changed this version since the last run: {replaced:,} images replaced, {added:,} added, "
        f"{gone:,} withdrawn. The manifest is built anew; replaced images are fetched again where they are selected."
    )


def _type_of(path: str) -> str:
    return _TYPES.get(Path(path).suffix, "text/plain; charset=utf-8" if "." not in path else "application/octet-stream")


# -- plan --------------------------------------------------------------------------------------------------------------


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
    data = BytesIO(_manifest_bytes(bucket))
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


def _manifest_bytes(bucket: Bucket) -> bytes:
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


# -- one shard ---------------------------------------------------------------------------------------------------------


def find_missing(shard: shards.Shard, request: Request, bucket: Bucket, run: RunLayout) -> shards.Missing:
    """Compare one shard with the bucket and write down what is missing, for `stream_shard`."""
    images = shards.decode(bucket.read(shard.path))
    memory = None if request.verify == "count" else Memory.load(bucket, groups_of(image.path for image in images))
    found = shards.missing(images, bucket, memory, span=shard.span)
    if memory is not None and found.proven:
        published = {image.path: image.sha256 for image in images}
        for stored in found.proven:
            memory.record(stored.path, stored.size, stored.etag, published[stored.path])
        memory.save(bucket)
    if found.images:
        bucket.write(run.missing(shard.index), shards.encode(found.images), content_type="text/plain")
    log.info(
        "%s: %s to fetch (%s not there, %s wrong), %s already there. %d LIST and %d HEAD requests.",
        shard.name,
        f"{len(found.images):,}",
        f"{found.absent:,}",
        f"{found.wrong:,}",
        f"{found.present:,}",
        found.lists,
        found.heads,
    )
    return found


@dataclass(frozen=True)
class Stop:
    """Tells a running shard to come to an end: what is under way is finished, the rest is left for the next try."""

    event: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.event.set()


def stream_shard(
    shard: shards.Shard,
    request: Request,
    source: PhysioNet,
    bucket: Bucket,
    run: RunLayout,
    *,
    connections: int,
    stop: Stop,
    try_number: int = 1,
) -> dict[str, Any]:
    """Bring what is missing of one shard from PhysioNet into the bucket; returns the content of its result file.

    Args:
        shard: Whose images.
        request: What is asked for.
        source: PhysioNet.
        bucket: Destination.
        run: Where list, progress and result lie.
        connections: The most PhysioNet connections at once.
        stop: Set it from another thread or a signal handler to drain.
        try_number: From the second on, what an earlier try has stored is left out.

    Raises:
        ImagesFailed: Some images could not be had; the others are stored.
        MirrorError: What else `Transfer.run` raises.
    """
    images = shards.decode(bucket.read(run.missing(shard.index)))
    if try_number > 1:
        memory = None if request.verify == "count" else Memory.load(bucket, groups_of(image.path for image in images))
        images = shards.missing(images, bucket, memory, span=shard.span).images
    log.info(
        "%s (%s … %s): %s to fetch, %s already there, at most %d connections.",
        shard.name,
        shard.first,
        shard.last,
        f"{len(images):,}",
        f"{shard.images - len(images):,}",
        connections,
    )
    result: dict[str, Any] = {"shard": shard.index, "name": shard.name, "try_number": try_number}

    def publish(tally: Mapping[str, Any]) -> None:
        result.update(tally, handshakes=source.stats.handshakes)
        try:
            bucket.write_json(run.result(shard.index), result)
        except DestinationError as error:  # progress is for looking at; the images matter
            log.warning("The progress of %s could not be published: %s", shard.name, error)

    held = bucket.read_json(run.pace) or {}
    pace = Pace(
        connections,
        start=int(held.get("connections", 2)),
        received=lambda: source.stats.received,
        on_change=lambda old, new, why: log.info("%d → %d connections: %s", old, new, why),
    )
    transfer = Transfer(
        images,
        source=source,
        bucket=bucket,
        dataset=request.dataset,
        pace=pace,
        total=shard.images,
        storage_class=request.storage_class,
        publish=publish,
        stop=stop.event,
    )
    try:
        tally = transfer.run()
    finally:
        source.close()
    bucket.write_json(run.pace, {"connections": pace.held})
    log.info(
        "%s: %s of %s stored, %s in %.0f s, %d retries, %d password checks.",
        shard.name,
        f"{tally.stored:,}",
        f"{tally.todo:,}",
        plan.readable_bytes(tally.bytes),
        tally.seconds,
        tally.retries,
        source.stats.handshakes,
    )
    return result


# -- the end -----------------------------------------------------------------------------------------------------------


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
        manifest=_manifest_bytes(bucket),
        params=params,
        started=started,
        notes=document["selection"]["notes"],
        software=software,
    )
    log.info("\n%s", report.summary_table(written))
    return verdict, written
