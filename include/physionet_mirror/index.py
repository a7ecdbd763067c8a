"""The training index ``_mirror/index.parquet``: one row for each verified image of the bucket, ready for a data loader.

Columns, in this order (zstd, sorted by path):

    path, key, uri       string   the dataset's path; the S3 key; ``s3://bucket/key``
    bytes                int64    size of the object
    sha256               string   hex, as PhysioNet publishes it and as it was verified
    level                string   how it was verified last: ``count``, ``checksum`` or ``content``
    …                             then what the manifest knows (manifest.py lists it): ids, view, split, size in pixels,
                                  study_datetime, procedure and the labels of CheXpert, NegBio and radiologists

The index covers everything that was ever verified below the prefix, not only the last selection: each run replaces
the rows of the images it looked at and drops those that it found missing or wrong. An index of an earlier version, which
has fewer columns, gets the others from the manifest; nothing is verified again for that.
"""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from physionet_mirror import parquet
from physionet_mirror.errors import DestinationUnavailable
from physionet_mirror.layout import INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.verification import Verdict

log = logging.getLogger(__name__)

_TRIES = 10
_TRIES_OF_SLOW_S3 = 3  # each one after the client's own


def read(bucket: Bucket, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The index, or some columns of it; None where there is none, or none that can be read: then a warning names it."""
    try:
        data = bucket.read(INDEX)
    except FileNotFoundError:
        return None
    try:
        return parquet.from_bytes(data, columns)
    except ValueError as error:
        _warn(bucket, error)
        return None


def _warn(bucket: Bucket, error: BaseException) -> None:
    log.warning(
        "%s is damaged (%s). No file is affected: this run goes on without it and writes it anew with its own files; a "
        "run with select=all fills in the others.",
        bucket.uri(INDEX),
        (str(error).splitlines() or [type(error).__name__])[0],
    )


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
    return _described(pa.table(columns), manifest)


def _described(table: pa.Table, manifest: Path | BinaryIO) -> pa.Table:
    """The table with each column of the manifest that it lacks; null where the manifest does not have its path."""
    # Column by column: the whole manifest at once, beside a copy of it, would be the most memory that any task takes.
    file = pq.ParquetFile(manifest)
    lacking = [name for name in file.schema_arrow.names if name not in table.column_names]
    if not lacking:
        return table
    where = pc.index_in(
        table["path"].cast(pa.string()).combine_chunks(), value_set=file.read(["path"])["path"].cast(pa.string())
    )
    for name in lacking:
        table = table.append_column(name, file.read([name])[name].combine_chunks().take(where))
    return table


def update(bucket: Bucket, verdict: Verdict, manifest: Path | BinaryIO) -> int:
    """Bring ``_mirror/index.parquet`` up to date with this verification; returns the number of its rows.

    Runs that overlap may both do this, so it is written only in place of the one that was merged; when somebody else has
    written meanwhile, it is merged anew.

    Raises:
        DestinationUnavailable: S3 does not take it, or others write it all the time; nobody's rows are lost.
    """
    new = rows(verdict, manifest, bucket)
    looked_at = pa.array(
        [image.path for image in verdict.ok] + [problem.path for problem in verdict.problems], pa.string()
    )
    return _rewrite(bucket, lambda: _merged(bucket, new, looked_at, manifest))


def upgrade(bucket: Bucket, manifest: Path | BinaryIO) -> bool:
    """Give an index of an earlier version the columns that the manifest has by now; False where there was nothing to do.

    Raises:
        DestinationUnavailable: As `update`.
    """
    names = pq.read_schema(manifest).names

    def described() -> pa.Table | None:
        table = read(bucket)
        if table is None or "path" not in table.column_names or not set(names) - set(table.column_names):
            return None
        table = _described(table, manifest)
        by_manifest = [name for name in names if name not in ("path", "sha256")]
        return table.select([*(n for n in table.column_names if n not in by_manifest), *by_manifest])

    return _rewrite(bucket, described) > 0


def forget(bucket: Bucket, paths: Sequence[str]) -> None:
    """Take these images out of ``_mirror/index.parquet``, as `update` does; where it is absent or damaged, nothing is done.

    Raises:
        DestinationUnavailable: As `update`.
    """
    gone = pa.array(paths, pa.string())

    def without() -> pa.Table | None:
        table = read(bucket)
        if table is None or "path" not in table.column_names:
            return None
        return table.filter(pc.invert(pc.is_in(table["path"].cast(pa.string()), value_set=gone)))

    _rewrite(bucket, without)


def _rewrite(bucket: Bucket, merge: Callable[[], pa.Table | None]) -> int:
    """Put what ``merge`` makes of the index in its place (None: nothing); returns the number of its rows."""
    seen, unavailable, merged = set(), 0, None
    for number in range(_TRIES):
        if number:  # the other writers are at their merge now, or S3 is slow
            time.sleep(random.uniform(0, min(0.2 * 2**number, 5)))
        before = bucket.head(INDEX)
        seen.add(before and before.etag)
        merged = merge()
        if merged is None:
            return 0
        data = parquet.to_bytes(merged)
        now = bucket.head(INDEX)  # for a server that takes no conditions
        if (now and now.etag) != (before and before.etag):
            continue
        try:
            if bucket.write_unless_changed(INDEX, data, before, content_type=parquet.TYPE):
                return int(merged.num_rows)
        except DestinationUnavailable as error:
            unavailable += 1
            if unavailable == _TRIES_OF_SLOW_S3:
                raise
            log.warning("%s is not written yet, and tried again: %s", bucket.uri(INDEX), error)
    if (
        merged is not None and len(seen) == 1
    ):  # nobody writes, and still its own ETag is not what this server wants to hear
        log.warning("This S3 server refuses If-Match without need; %s is written without it.", bucket.uri(INDEX))
        bucket.write(INDEX, data, content_type=parquet.TYPE)
        return int(merged.num_rows)
    raise DestinationUnavailable(
        f"{bucket.uri(INDEX)} was written by other runs in each of {_TRIES} tries. The files are untouched, and the index "
        "has the rows of those runs. The task is retried by itself and adds its own."
    )


def _merged(bucket: Bucket, new: pa.Table, looked_at: pa.Array, manifest: Path | BinaryIO) -> pa.Table:
    """The new rows, and those of the index as it is whose images this verification did not look at."""
    table = read(bucket)
    if table is None:
        return new
    try:
        if unknown := set(table.column_names) - set(new.column_names):
            raise ValueError(f"it has an unknown column {min(unknown)!r}")
        kept = table.filter(pc.invert(pc.is_in(table["path"].cast(pa.string()), value_set=looked_at)))
        if not len(kept):
            return new
        return pa.concat_tables([new, _described(kept, manifest)], promote_options="permissive").sort_by("path")
    except (pa.ArrowException, ValueError, KeyError) as error:
        _warn(bucket, error)
        return new
