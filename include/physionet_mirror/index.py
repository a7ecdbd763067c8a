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
    from pathlib import Path
    from typing import BinaryIO

    from include.physionet_mirror.destination import Bucket
    from include.physionet_mirror.verification import Verdict

log = logging.getLogger(__name__)

_TRIES = 3


def rows(verdict: Verdict, manifest: Path | BinaryIO, bucket: Bucket) -> pa.Table:
    """The index's rows for the images that this verification found right; ``manifest`` is ``manifest.parquet``."""
    root = bucket.key("")
    paths = pa.array([image.path for image in verdict.ok], pa.string())
    known = pq.read_table(manifest)
    known = known.filter(pc.is_in(known["path"], value_set=paths)).drop_columns(["sha256"])
    keys = pc.binary_join_element_wise(pa.scalar(root), paths, "")
    checked = pa.table(
        {
            "path": paths,
            "key": keys,
            "uri": pc.binary_join_element_wise(pa.scalar(f"s3://{bucket.name}/"), keys, ""),
            "bytes": pa.array([image.size for image in verdict.ok], pa.int64()),
            "sha256": pa.array([image.sha256 for image in verdict.ok], pa.string()),
            "level": pa.array([verdict.level] * len(verdict.ok), pa.string()),
        }
    )
    known = known.set_column(known.column_names.index("path"), "path", known["path"].cast(pa.string()))
    return checked.join(known, "path", join_type="left outer").sort_by("path").replace_schema_metadata(None)


def update(bucket: Bucket, verdict: Verdict, manifest: Path | BinaryIO) -> int:
    """Bring ``_mirror/index.parquet`` up to date with this verification; returns the number of its rows.

    Runs that overlap may both do this, so the index is looked at again just before it is written, and merged anew when
    somebody else has written meanwhile.
    """
    new = rows(verdict, manifest, bucket)
    looked_at = pa.array(
        [image.path for image in verdict.ok] + [problem.path for problem in verdict.problems], pa.string()
    )
    for _ in range(_TRIES):
        before = bucket.head(INDEX)
        merged = _merge(_read(bucket) if before else None, looked_at, new)
        out = io.BytesIO()
        pq.write_table(merged, out, compression="zstd")
        now = bucket.head(INDEX)
        if (now and now.etag) == (before and before.etag):
            break
    bucket.write(INDEX, out.getvalue(), content_type="application/vnd.apache.parquet")
    return int(merged.num_rows)


def _read(bucket: Bucket) -> pa.Table | None:
    try:
        return pq.read_table(io.BytesIO(bucket.read(INDEX)))
    except FileNotFoundError:
        return None
    except pa.ArrowException as error:
        log.warning(
            "%s cannot be read (%s). No image is affected: it is written anew, with the images of this run; a run with "
            "select=all fills in the others.",
            bucket.uri(INDEX),
            error,
        )
        return None


def _merge(old: pa.Table | None, looked_at: pa.Array, new: pa.Table) -> pa.Table:
    if old is None or "path" not in old.column_names:
        return new
    kept = old.filter(pc.invert(pc.is_in(old["path"], value_set=looked_at.cast(old.schema.field("path").type))))
    return pa.concat_tables([new, kept], promote_options="permissive").sort_by("path")
