"""Deletes images or a whole mirror: first a list of the objects, then, once approved, exactly those.

The list is kept in the bucket, so that what is deleted is what a person approved, however long the approval took. Only
keys below the prefix can be listed, and never the reports of earlier runs.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from physionet_mirror import index, shards, words
from physionet_mirror.errors import InputError, MetadataError
from physionet_mirror.layout import INDEX, MANIFEST, MIRROR, RUNS, TRAINING, RunLayout, TrainingLayout
from physionet_mirror.records import Plan, load
from physionet_mirror.s3 import replies
from physionet_mirror.s3.bucket import Bucket

log = logging.getLogger(__name__)

_A_REQUEST = 1000  # DeleteObjects' limit


@dataclass(frozen=True, slots=True)
class DeletionEntry:
    """One object, version or delete marker; ``version`` is None in an unversioned bucket. ``size`` in bytes."""

    path: str
    size: int
    version: str | None = None


def list_deletions(
    bucket: Bucket, what: str, run_id: str | None, training_set: str | None = None
) -> Iterator[DeletionEntry]:
    """What would be deleted: the images of a run, a training set, or everything below the prefix except the runs' own files.

    Args:
        bucket: The bucket; its prefix must not be empty.
        what: ``run``, ``training_set`` or ``prefix``.
        run_id: Id of the run, for ``run``.
        training_set: Name of the set, for ``training_set``.

    Raises:
        InputError: The prefix is empty, or there is no such run or set.
    """
    if not bucket.prefix:
        raise InputError(
            "prefix: it is empty, and a whole bucket is never deleted. Nothing was done. Name the folder to delete."
        )
    if what == "prefix":
        yield from (entry for entry in _everything(bucket) if not entry.path.startswith(RUNS))
        return
    if what == "training_set":
        yield from _everything(bucket, _folder_of_set(bucket, training_set or ""))
        return
    wanted = _images_of(bucket, run_id or "")
    below = "files/" if all(path.startswith("files/") for path in wanted) else ""
    yield from (entry for entry in _everything(bucket, below) if entry.path in wanted)


def _folder_of_set(bucket: Bucket, name: str) -> str:
    """The folder of a training set. Raises InputError where there is none of this name."""
    there = bucket.folders(TRAINING)
    if name not in there:
        raise InputError(
            f"training_set: {bucket.uri(TRAINING)} holds no set {name[:80]!r}. Nothing was done. "
            + (f"It has {', '.join(sorted(there)[:20])}." if there else "It has none.")
        )
    return TrainingLayout(name).root


def _images_of(bucket: Bucket, run_id: str) -> set[str]:
    """The images that a run selected. ``run_id`` is the id of a run of mimic_cxr_jpg, or the name of a run's folder."""
    run = RunLayout.of_folder(run_id)
    planned = load(bucket, run.plan, Plan) if run_id and "/" not in run_id else None
    if planned is None:
        others = [name for name in bucket.folders(RUNS) if run_id and name.endswith(f"@{run_id}")]
        raise InputError(
            f"run_id: {bucket.uri(RUNS)} holds no plan of a run {run_id!r} of mimic_cxr_jpg. Nothing was done. "
            + (
                f"Other DAGs had runs with that id; to choose one of these, give it as {' or '.join(others)}."
                if others
                else "Copy the run id of the run of mimic_cxr_jpg whose images you want to delete; for another DAG, the name "
                "of the run's folder there (dag_id@run_id)."
            )
        )
    return {image.path for shard in planned.shards for image in shards.read(bucket, shard)}


def _everything(bucket: Bucket, under: str = "") -> Iterator[DeletionEntry]:
    if not is_versioned(bucket):
        yield from (DeletionEntry(entry.path, entry.size) for entry in bucket.list(under))
        return
    root = len(bucket.key(""))
    try:
        for page in bucket.client.get_paginator("list_object_versions").paginate(
            Bucket=bucket.name, Prefix=bucket.key(under), **bucket.owner
        ):
            for version in page.get("Versions", ()):
                yield DeletionEntry(version["Key"][root:], version["Size"], version["VersionId"])
            for marker in page.get("DeleteMarkers", ()):
                yield DeletionEntry(marker["Key"][root:], 0, marker["VersionId"])
    except (ClientError, BotoCoreError) as error:
        raise replies.meaning(error, f"s3://{bucket.name}", "s3:ListBucketVersions", bucket.name) from None


def is_versioned(bucket: Bucket) -> bool:
    """Whether the bucket keeps old versions, or has kept them; then these must be deleted too."""
    try:
        status = bucket.client.get_bucket_versioning(Bucket=bucket.name, **bucket.owner).get("Status")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code not in {"NotImplemented", "MethodNotAllowed"}:  # a local S3 without versioning
            what = "s3:GetBucketVersioning, without which old versions would stay behind unseen"
            raise replies.meaning(error, f"s3://{bucket.name}", what, bucket.name) from None
        return False
    return status in {"Enabled", "Suspended"}


def write_listing(
    bucket: Bucket, run: RunLayout, deletions: Iterable[DeletionEntry], *, noun: str = "image"
) -> dict[str, Any]:
    """Store the list of what will be deleted with the run's files; returns its counts and bytes.

    Args:
        bucket: Where.
        run: Whose list it is.
        deletions: What will be deleted.
        noun: What a mirror of this kind holds: ``image`` (and tables) or ``file``.
    """
    objects: Counter[str] = Counter()
    size = versions = 0
    lines = []
    for entry in deletions:
        objects[_kind(entry.path, noun)] += 1
        size += entry.size
        versions += entry.version is not None
        lines.append(json.dumps([entry.path, entry.size, entry.version]))
    bucket.write(run.deleted, gzip.compress("\n".join(lines).encode()), content_type="application/gzip")
    log.info("%s objects, %s: %s", f"{len(lines):,}", words.size(size), dict(objects))
    return {
        "objects": len(lines),
        "bytes": size,
        "versions": versions,
        "by_kind": dict(objects),
        "listing": bucket.uri(run.deleted),
        "destination": bucket.uri(),
    }


def _kind(path: str, noun: str) -> str:
    if path.startswith(TRAINING):
        return "files of training sets"
    if noun == "file":
        return "mirror files" if path.startswith(MIRROR) else "files"
    return "images" if path.startswith("files/") else "mirror files" if path.startswith(MIRROR) else "tables"


def delete_listed(bucket: Bucket, run: RunLayout) -> dict[str, int]:
    """Delete what the listing names, 1,000 a request; returns ``deleted`` and ``bytes``. Safe to repeat.

    Raises:
        InputError: The prefix is empty, or the listing names the reports of runs.
        MetadataError: The listing is damaged, so it is not what a person approved. Nothing was deleted.
        DestinationError: S3 did not delete something; what was deleted stays deleted.
    """
    entries = _read_listing(bucket, run)
    if not bucket.prefix or any(entry.path.startswith(RUNS) for entry in entries):
        raise InputError(f"{bucket.uri(run.deleted)} names what must not be deleted. Nothing was done.")
    deleted = 0
    # Index and manifest are deleted last, so that after an interruption the mirror is usable for what is still there.
    order = sorted(entries, key=lambda entry: (entry.path in (INDEX, MANIFEST), entry.path))
    rest = iter(order)
    while batch := list(islice(rest, _A_REQUEST)):
        _delete(bucket, batch)
        deleted += len(batch)
        if deleted % 20_000 < _A_REQUEST:
            log.info("%s of %s deleted.", f"{deleted:,}", f"{len(entries):,}")
    if images := [
        path for path in dict.fromkeys(entry.path for entry in entries) if not path.startswith((MIRROR, TRAINING))
    ]:
        index.forget(bucket, images)  # so that an audit does not report them as missing
    return {"deleted": deleted, "bytes": sum(entry.size for entry in entries)}


def _read_listing(bucket: Bucket, run: RunLayout) -> list[DeletionEntry]:
    """What `write_listing` wrote. Gzip's checksum and length prove it whole; an emptied file must not pass as no entries."""
    try:
        if data := bucket.read(run.deleted):
            return [DeletionEntry(*json.loads(line)) for line in gzip.decompress(data).splitlines() if line]
        why = "it is empty"
    except FileNotFoundError:
        why = "it is missing"
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        why = str(error)
    raise MetadataError(
        f"The list of objects to delete, {bucket.uri(run.deleted)}, is damaged: {why}. Nothing was deleted. Trigger "
        "the clean-up again: it makes a new list and asks for approval again."
    )


def _delete(bucket: Bucket, batch: list[DeletionEntry]) -> None:
    if batch[0].version is None:
        bucket.delete(entry.path for entry in batch)
    else:
        bucket.delete_versions((entry.path, entry.version or "null") for entry in batch)
