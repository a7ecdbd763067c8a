"""The training index ``_mirror/index.parquet``: one row for each verified image of the bucket, ready for a data loader.

Columns, in this order (zstd, sorted by path):

    path, key, uri       string   the dataset's path; the S3 key; ``s3://bucket/key``
    bytes                int64    size of the object
    sha256               string   hex, as PhysioNet publishes it and as it was verified
    level                string   how it was verified last: ``count``, ``checksum`` or ``content``
    …                             then what the manifest knows: group, subject_id, study_id, dicom_id, view, split,
                                  height, width and the dataset's labels (1 positive, 0 negative, -1 uncertain, null)

The index covers everything that was ever verified below the prefix, not only the last selection: each run replaces
the rows of the images it looked at and drops those that it found missing or wrong.
"""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from include.physionet_mirror.layout import INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from include.physionet_mirror.destination import Bucket
    from include.physionet_mirror.verification import Verdict

log = logging.getLogger(__name__)

_TRIES = 10
_TYPE = "application/vnd.apache.parquet"


def known(bucket: Bucket, paths: Iterable[str], sha256: Iterable[str]) -> tuple[Sequence[int], int]:
    """The sizes in bytes of all images in the index, and how many of the given ones are there with their checksum."""
    try:
        table = pq.read_table(io.BytesIO(bucket.read(INDEX)), columns=["path", "bytes", "sha256"])
    except (FileNotFoundError, pa.ArrowException):
        return [], 0
    where = pc.index_in(pa.array(paths, pa.string()), value_set=table["path"].cast(pa.string()))
    found = table["sha256"].cast(pa.string()).take(where)
    same = pc.equal(found, pa.array(sha256, pa.string()))
    return table["bytes"].to_pylist(), pc.sum(same).as_py() or 0


def rows(verdict: Verdict, manifest: Path | BinaryIO, bucket: Bucket) -> pa.Table:
    """The index's rows for the images that this verification found right; ``manifest`` is ``manifest.parquet``."""
    paths = pa.array([image.path for image in verdict.ok], pa.string())
    keys = pc.binary_join_element_wise(pa.scalar(bucket.key("")), paths, "")
    columns = {
        "path": paths,
        "key": keys,
        "uri": pc.binary_join_element_wise(pa.scalar(f"s3://{bucket.name}/"), keys, ""),
        "bytes": pa.array([image.size for image in verdict.ok], pa.int64()),
        "sha256": pa.array([image.sha256 for image in verdict.ok], pa.string()),
        "level": pa.repeat(pa.scalar(verdict.level), len(verdict.ok)),
    }
    # Column by column: the whole manifest at once, beside a copy of it, would be the most memory that any task takes.
    file = pq.ParquetFile(manifest)
    where = pc.index_in(paths, value_set=file.read(["path"])["path"].cast(pa.string()))
    for name in file.schema_arrow.names:
        if name not in columns:
            columns[name] = file.read([name])[name].combine_chunks().take(where)
    return pa.table(columns)


def update(bucket: Bucket, verdict: Verdict, manifest: Path | BinaryIO) -> int:
    """Bring ``_mirror/index.parquet`` up to date with this verification; returns the number of its rows.

    Runs that overlap may both do this, so it is written only in place of the one that was merged; when somebody else has
    written meanwhile, it is merged anew.
    """
    new = rows(verdict, manifest, bucket)
    looked_at = pa.array(
        [image.path for image in verdict.ok] + [problem.path for problem in verdict.problems], pa.string()
    )
    for _ in range(_TRIES):
        before = bucket.head(INDEX)
        kept = _kept(bucket, looked_at) if before else None
        merged = new if kept is None else pa.concat_tables([new, kept], promote_options="permissive").sort_by("path")
        out = io.BytesIO()
        pq.write_table(merged, out, compression="zstd")
        now = bucket.head(INDEX)  # for a server that takes no conditions
        if (now and now.etag) == (before and before.etag) and bucket.write_unless_changed(
            INDEX, out.getvalue(), before, content_type=_TYPE
        ):
            break
    else:
        log.warning("%s is written by many runs at once; the rows of one of them may get lost.", bucket.uri(INDEX))
        bucket.write(INDEX, out.getvalue(), content_type=_TYPE)
    return int(merged.num_rows)


def _kept(bucket: Bucket, looked_at: pa.Array) -> pa.Table | None:
    """The rows of the index as it is whose images this verification did not look at."""
    try:
        file = pq.ParquetFile(io.BytesIO(bucket.read(INDEX)))
        kept = pc.invert(pc.is_in(file.read(["path"])["path"].cast(pa.string()), value_set=looked_at))
        return file.read().filter(kept) if pc.any(kept).as_py() else None
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        log.warning(
            "%s cannot be read (%s). No image is affected: it is written anew, with the images of this run; a run with "
            "select=all fills in the others.",
            bucket.uri(INDEX),
            error,
        )
        return None
