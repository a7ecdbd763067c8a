"""Brings the tables, lists and checksums into the bucket, and builds the manifest from them."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from physionet_mirror import index, manifest, parquet
from physionet_mirror.dataset import SUMS, Dataset
from physionet_mirror.errors import FileError, MetadataError
from physionet_mirror.layout import MANIFEST, SUMS_SEEN
from physionet_mirror.records import Record, SumsSeen
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.steps.fetch_files import (
    ONE_PUT,
    Source,
    download,
    published_by,
    read_file,
    type_of,
    write_file,
)

log = logging.getLogger(__name__)

_LICENCE = "LICENSE.txt"
_NOT_NEEDED = "no other file needs it, so the run goes on without it."


@dataclass(frozen=True)
class Metadata(Record):
    """What `fetch_metadata` found.

    Attributes:
        sums_sha256: SHA-256 of SHA256SUMS.txt, which stands for the whole version.
        images: Images of the version; of a project without radiographs, its files.
        files: Paths of the tables and lists that are in the bucket now.
        fetched: How many of them had to be fetched.
        changed: Whether SHA256SUMS.txt differs from the one that the manifest in the bucket was built from.
        notes: Sentences on what did not fit together in the tables, on what PhysioNet changed last, and on files that no
            image needs and that could not be had.
    """

    sums_sha256: str
    images: int
    files: Sequence[str]
    fetched: int
    changed: bool
    notes: Sequence[str]


def fetch_metadata(source: Source, bucket: Bucket, dataset: Dataset) -> Metadata:
    """Bring the tables, lists and SHA256SUMS.txt into the bucket, each proven, and build the manifest from them.

    What the bucket has already is not fetched again; the manifest is re-used while SHA256SUMS.txt is what it was and the
    manifest's bytes are those that were written. Nothing is written before all files are here, proven, and fit together.
    A file that no image needs (a licence, a list) and that cannot be had stops nothing: it is noted, for the plan and the
    report too, and asked for again the next time.

    Raises:
        MetadataError, FileError: A file that the manifest needs is not what PhysioNet publishes, or is not there.
        SourceError, DestinationError: They cannot be had, or not be stored.
    """
    with tempfile.TemporaryDirectory(prefix="physionet-") as folder:
        files: dict[str, Path] = {SUMS: Path(folder, "0")}
        found = published_by(source, bucket, dataset, files[SUMS])
        seen, etag, sums_sha256 = found.seen, found.etag, found.sha256
        before, proven = _manifest_of(bucket, seen)
        published = dict(zip(found.sums["path"], found.sums["sha256"], strict=True))
        needed, wanted = _metadata_files(dataset, published)
        new = [path for path in wanted if not _is_there(bucket, path, published[path])]
        changed = before is not None and before[0] != sums_sha256
        rebuild = before is None or not proven or changed
        lacking = [f"{SUMS} does not list {path}: {_NOT_NEEDED}" for path in _unlisted(dataset, published)]
        for number, path in enumerate(wanted, 1):
            if path in new:
                files[path] = Path(folder, str(number))
                try:
                    download(source, dataset, path, published[path], files[path])
                except FileError as error:
                    if path in needed:
                        raise
                    del files[path]
                    lacking.append(
                        f"{path} could not be had ({error.reason}): {_NOT_NEEDED} It is asked for again each time."
                    )
            elif rebuild:
                files[path] = Path(folder, str(number))
                write_file(files[path], bucket.open_read(path))
        built: bytes | None = None
        if rebuild:
            frame = manifest.of_all_files(dataset, files)
            if before is not None and changed:
                frame.attrs["notes"].append(_what_changed(dataset, before[1], frame))
            out = BytesIO()
            manifest.write(frame, out, dataset=dataset, sums_sha256=sums_sha256)
            built, notes = out.getvalue(), frame.attrs["notes"]
        else:
            assert before is not None
            frame, notes = before[1], before[1].attrs["notes"]
        count = len(_counted(dataset, frame))
        new = [path for path in new if path in files]
        for path in new:
            bucket.upload(path, read_file(files[path]), content_type=type_of(path), part_size=ONE_PUT)
        if built is not None:
            bucket.upload(SUMS, read_file(files[SUMS]), content_type=type_of(SUMS), part_size=ONE_PUT)
            index.upgrade(bucket, BytesIO(built))
            # Last, because it vouches for the others.
            bucket.write(MANIFEST, built, content_type=parquet.TYPE)
        digest = hashlib.sha256(built).hexdigest() if built is not None else seen.manifest
        if seen != (now := SumsSeen(etag, sums_sha256, digest, tuple(lacking), dataset.name)):
            bucket.write_json(SUMS_SEEN, now.to_json())
    for note in notes:
        log.info("%s", note)
    for note in lacking:
        log.warning("%s", note)
    log.info(
        "%s: %s %s. %d of %d tables and lists fetched, the others were there. The manifest was %s.",
        dataset.name,
        f"{count:,}",
        "files" if dataset.image_path is None else "images",
        len(new),
        len(wanted),
        "built" if built is not None else "there",
    )
    had = [path for path in wanted if path in files or not rebuild or path in needed]
    return Metadata(sums_sha256, count, (SUMS, *had), len(new), changed, (*notes, *lacking))


def _metadata_files(dataset: Dataset, published: Mapping[str, str]) -> tuple[set[str], list[str]]:
    """What may not be absent, and all that is to be fetched.

    Of a dataset whose tables describe its images, that is what the manifest is made of; of another one the tables are
    what is wanted, and each of them counts.
    """
    roles = ("metadata", "split", "labels") if dataset.describes_images else tuple(dataset.tables)
    needed = {dataset.tables[role] for role in roles if role in dataset.tables}
    if absent := sorted(needed - published.keys()):
        use = "which the manifest is made of" if dataset.describes_images else "which this job is to bring"
        raise MetadataError(
            f"{SUMS} of {dataset.name} does not list {', '.join(absent)}, {use}. Nothing was written. Look at "
            f"{dataset.page}: this may be another version than the one that was asked for."
        )
    wanted = [path for path in (*dict.fromkeys(dataset.tables.values()), _LICENCE) if path in published]
    return needed, wanted


def _unlisted(dataset: Dataset, published: Mapping[str, str]) -> list[str]:
    return [path for path in dict.fromkeys(dataset.tables.values()) if path not in published]


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


def _manifest_of(bucket: Bucket, seen: SumsSeen) -> tuple[tuple[str, Any] | None, bool]:
    """The SHA-256 of the SHA256SUMS.txt that the bucket's manifest was built from, with its paths and checksums; and
    whether its bytes are those that were written. None where there is none that can be read: it is built anew.
    """
    try:
        data = bucket.read(MANIFEST)
    except FileNotFoundError:
        return None, False
    proven = hashlib.sha256(data).hexdigest() == seen.manifest
    if seen.manifest and not proven:
        log.warning("%s is not as it was written. No file is affected: it is built anew.", bucket.uri(MANIFEST))
    file = BytesIO(data)
    sums_sha256 = manifest.sums_sha256_of(file)
    if sums_sha256 is None:
        return None, False
    try:
        return (sums_sha256, manifest.read(file, _compared(file))), proven
    except MetadataError:
        return None, False


def _compared(file: BytesIO) -> list[str]:
    return [name for name in ("path", "sha256", "dicom_id") if name in manifest.columns_of(file)]


def _counted(dataset: Dataset, frame: Any) -> Any:
    """The rows that the dataset is made of: its images where it has some."""
    return frame if dataset.image_path is None else manifest.images(frame)


def _what_changed(dataset: Dataset, before: Any, after: Any) -> str:
    was, now = _counted(dataset, before), _counted(dataset, after)[["path", "sha256"]]
    both = was.merge(now, on="path", how="outer", suffixes=("", "_new"), indicator=True)
    kept = both[both["_merge"] == "both"]
    replaced = int((kept["sha256"] != kept["sha256_new"]).sum())
    added, gone = int((both["_merge"] == "right_only").sum()), int((both["_merge"] == "left_only").sum())
    files = "files" if dataset.image_path is None else "images"
    return (
        f"PhysioNet has changed this version, noticed on {datetime.now(UTC):%Y-%m-%d}: {replaced:,} {files} replaced, "
        f"{added:,} added, {gone:,} withdrawn. Replaced {files} are fetched again where they are selected."
    )
