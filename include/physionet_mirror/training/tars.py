"""The tars of a training set: which image goes into which, and their bytes, which depend on the inputs alone.

WebDataset's convention: ``<split>-NNNNNN.tar`` holds ``<dicom_id>.jpg`` (or ``.png``) and ``<dicom_id>.json`` of each image, one
after the other. Patients have a pseudo-random order that depends on the seed and their id alone; each split is cut into as many
equal parts of that order as it takes. So patients are whole, reading tar by tar is reading in random order, and a few new images
change only the tars of their patients.

The columns of ``members/<tar>.parquet``, one row an image, in the order of the tar:

    dicom_id                        string
    tar                             string   ``<split>-NNNNNN.tar``; null where the image was left out
    offset, size                    int64    of the image in the tar, in bytes
    json_offset, json_size          int64    of its JSON
    copy_width, copy_height         int32    of the image in the tar, in pixels
    reason                          string   why it was left out, else null

Its schema holds the tar's record (`TarRecord`) as metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from physionet_mirror import parquet
from physionet_mirror.dataset import LABELS
from physionet_mirror.records import Failure, Record
from physionet_mirror.selection import rank
from physionet_mirror.training.pixels import Recipe, SmallCopy

if TYPE_CHECKING:
    from datetime import datetime

VERSION = 1
"""Of the form of tars and members; another one makes every tar anew."""

MEMBERS = pa.schema(
    {
        "dicom_id": pa.string(),
        "tar": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "json_offset": pa.int64(),
        "json_size": pa.int64(),
        "copy_width": pa.int32(),
        "copy_height": pa.int32(),
        "reason": pa.string(),
    }
)

_RECORD = b"tar"  # key of the schema's metadata
_IDS = ("dicom_id", "study_id", "subject_id")
_TEXTS = ("findings", "impression")
_PIXELS = 2544 * 3056  # of an original whose size the tables do not state: the detectors' own
_JSON_BYTES = 2100  # of a sample's JSON and the two headers, without report
_NO_SPLIT = "none"


# -- which image goes where --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tar:
    """One tar before it is made.

    Attributes:
        name: ``train-000000``.
        rows: Its images in order, with all that is known of each.
        bytes: Size that is expected.
    """

    name: str
    rows: pa.Table
    bytes: int


def cut(table: pa.Table, recipe: Recipe, shard_bytes: int, seed: int) -> list[Tar]:
    """Cut the images into tars.

    Args:
        table: Rows of the training index, of any order, with at least subject_id, path, split, height and width.
        recipe: Decides how large a copy is.
        shard_bytes: Size of a tar, about.
        seed: Of the order.
    """
    made: list[Tar] = []
    expected = expected_sizes(table, recipe)
    splits = pc.fill_null(table["split"].cast(pa.string()), _NO_SPLIT)
    for split in sorted(pc.unique(splits).to_pylist()):
        where = np.flatnonzero(pc.equal(splits, split).to_numpy(zero_copy_only=False))
        patients = table["subject_id"].take(where).combine_chunks().dictionary_encode()
        ranks = rank(patients.dictionary.to_pylist(), seed)[patients.indices.to_numpy(zero_copy_only=False)]
        total = int(expected[where].sum())
        parts = max(1, -(-total // shard_bytes))
        part_of = (ranks.astype(object) * parts >> 64).astype(np.int64)  # exact: beyond 64 bits
        paths = table["path"].take(where).cast(pa.string())
        order = pc.sort_indices(
            pa.table({"rank": pa.array(ranks), "path": paths}), [("rank", "ascending"), ("path", "ascending")]
        ).to_numpy()
        for number, part in enumerate(sorted(set(part_of.tolist()))):
            rows = where[order[part_of[order] == part]]
            made.append(Tar(f"{split}-{number:06d}", table.take(rows), int(expected[rows].sum())))
    return made


def expected_sizes(table: pa.Table, recipe: Recipe) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Bytes that each image is expected to take in its tar, from the size of the original in pixels."""
    height, width = (
        pc.fill_null(table[name].cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False) for name in ("height", "width")
    )
    height, width = (np.where((height > 0) & (width > 0), side, np.sqrt(_PIXELS)) for side in (height, width))
    if recipe.resize == "square":
        pixels = np.full(len(height), float(recipe.size**2))
    else:
        side = np.minimum(height, width) if recipe.resize == "short_side" else np.maximum(height, width)
        pixels = height * width * (recipe.size / side) ** 2
    if recipe.encoding == "png":
        each = 0.6
    else:
        each = float(np.interp(recipe.quality, (1, 50, 75, 90, 95, 100), (0.02, 0.05, 0.08, 0.16, 0.25, 0.6)))
    sizes: np.ndarray[tuple[int], np.dtype[np.float64]] = pixels * each + _JSON_BYTES
    return sizes


def expected_bytes(images: int, recipe: Recipe) -> int:
    """Size that a set of so many radiographs is expected to have, where nothing is known of each."""
    usual = pa.table({"height": [3056], "width": [2544]})  # of most detectors
    return round(images * float(expected_sizes(usual, recipe)[0]))


def inputs_digest(rows: pa.Table, recipe: Recipe) -> str:
    """SHA-256 (hex) of all that the bytes of a tar depend on: originals, what is said of them, recipe, and this form.

    With other versions of Pillow or libjpeg the pixels may differ in their last bit; that makes no tar anew.
    """
    digest = hashlib.sha256(json.dumps([VERSION, recipe.size, recipe.resize, recipe.encoding]).encode())
    if recipe.encoding == "jpeg":
        digest.update(b"%d" % recipe.quality)
    for row in rows.to_pylist():
        digest.update(json.dumps(_facts(row), sort_keys=True).encode())
    return digest.hexdigest()


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a sample's JSON says of it, beside the size of the original."""
    at: datetime | None = row.get("study_datetime")
    return {
        **{name: row.get(name) for name in _IDS},
        "view": row.get("view"),
        "split": row.get("split"),
        "study_datetime": at.isoformat() if at is not None else None,
        "labels": {name: row[name] for name in LABELS if name in row},
        "path": row["path"],
        "sha256": row["sha256"],
        **{name: row[name] for name in _TEXTS if name in row},
    }


# -- the bytes of a tar ------------------------------------------------------------------------------------------------


def write(
    file: IO[bytes], tar: str, samples: Iterable[tuple[Mapping[str, Any], SmallCopy | str]], recipe: Recipe
) -> pa.Table:
    """Write a tar, and return its members as `MEMBERS`.

    Args:
        file: Written from its beginning on.
        tar: Name of the tar, without ``.tar``.
        samples: Row and small copy of each image, in order; in place of a copy, why there is none.
        recipe: Names the members' extension.
    """
    members: list[dict[str, Any]] = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for row, copy in samples:
            member: dict[str, Any] = {"dicom_id": row["dicom_id"]}
            members.append(member)
            if isinstance(copy, str):
                member["reason"] = copy
                continue
            facts = {**_facts(row), "width": copy.original_width, "height": copy.original_height}
            text = json.dumps(facts, ensure_ascii=False).encode()
            member["tar"] = f"{tar}.tar"
            member["offset"], member["size"] = _add(out, f"{row['dicom_id']}.{recipe.extension}", copy.data)
            member["json_offset"], member["json_size"] = _add(out, f"{row['dicom_id']}.json", text)
            member["copy_width"], member["copy_height"] = copy.width, copy.height
    return pa.Table.from_pylist(members, schema=MEMBERS)


def _add(out: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int]:
    """Add a member without time, owner or anything else of this machine; its offset and size."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    offset = out.offset + tarfile.BLOCKSIZE
    out.addfile(info, io.BytesIO(data))
    return offset, len(data)


# -- members/<tar>.parquet ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarRecord(Record):
    """A tar as it was stored.

    Attributes:
        name: ``train-000000``.
        inputs: See `inputs_digest`.
        sha256: Of the tar (hex).
        etag: That S3 gave it.
        bytes: Its size.
        images: Images in it.
        left_out: Images that are not, and why.
        software: What made it: names and versions.
    """

    name: str
    inputs: str
    sha256: str
    etag: str
    bytes: int
    images: int
    left_out: Sequence[Failure] = ()
    software: Mapping[str, str] = field(default_factory=dict)


def members_file(record: TarRecord, members: pa.Table) -> bytes:
    """The content of ``members/<tar>.parquet``."""
    told = json.dumps(record.to_json(), sort_keys=True).encode()
    return parquet.to_bytes(members.replace_schema_metadata({_RECORD: told}))


def read_members(data: bytes) -> tuple[TarRecord, pa.Table]:
    """What `members_file` wrote. Raises ValueError where it is damaged."""
    table = parquet.from_bytes(data)
    metadata = table.schema.metadata or {}
    record = TarRecord.from_json(json.loads(metadata.get(_RECORD, b"null")))
    if table.schema.remove_metadata() != MEMBERS:
        raise ValueError("its columns are others")
    return record, table.replace_schema_metadata(None)


def joined(rows: pa.Table, members: pa.Table, keys: str, uris: str, uri: str) -> pa.Table:
    """The set's index for one tar: all columns of the training index, then those of `MEMBERS`; without what was left out.

    Args:
        rows: The tar's rows of the training index, without ``key`` and ``uri``, which follow from the path.
        members: Of the tar, in the same order.
        keys: What the keys of originals begin with.
        uris: ``s3://…/`` of the originals.
        uri: ``s3://…/`` of the set's folder, for the column ``tar_uri``.

    Raises:
        ValueError: They are not of the same images.
    """
    if rows["dicom_id"].cast(pa.string()).to_pylist() != members["dicom_id"].to_pylist():
        raise ValueError("it is of other images")
    rows = rows.select([name for name in rows.column_names if name not in _TEXTS])  # reports.parquet has these
    for name, begin in (("uri", uris), ("key", keys)):
        rows = rows.add_column(
            1, name, pc.binary_join_element_wise(pa.scalar(begin), rows["path"].cast(pa.string()), "")
        )
    for name in MEMBERS.names[1:-1]:
        rows = rows.append_column(name, members[name])
    rows = rows.append_column("tar_uri", pc.binary_join_element_wise(pa.scalar(uri), rows["tar"], ""))
    return rows.filter(rows["tar"].is_valid())


def record_of(name: str, inputs: str, sha256: str, size: int, members: pa.Table, paths: Mapping[str, str]) -> TarRecord:
    """The record of a tar that is about to be stored; ``paths`` are the originals' by dicom_id."""
    out = members.filter(members["tar"].is_null())
    left_out = [
        Failure(paths[dicom_id], reason)
        for dicom_id, reason in zip(out["dicom_id"].to_pylist(), out["reason"].to_pylist(), strict=True)
    ]
    return TarRecord(name, inputs, sha256, "", size, members.num_rows - out.num_rows, left_out)


def batches(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows, one by one, without all of them as Python objects at once."""
    for batch in rows.to_batches(max_chunksize=256):
        yield from batch.to_pylist()
