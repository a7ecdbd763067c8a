"""Joins manifest and index, or counts them, in a child process with bounded memory, time and output.

Anyone with write access to the bucket can put anything there, and a Parquet file of half a megabyte can unpack to
gigabytes, whatever its footer says. So these files are not unpacked in the process that serves the page, but in a child
without credentials in its environment; exceeding a bound is an error with a reason.

`join` gives a manifest again (see manifest.py), without the columns that the page does not need, and with `VERIFIED`; `count`
gives a few numbers for each group of files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from physionet_mirror.errors import MetadataError

VERIFIED = "verified bytes"
"""The column that the child adds: bytes of the image where the index has it with the manifest's checksum, else 0."""

Kind = Literal["images", "files", "counts"]
"""What is wanted: the radiographs with what the tables say of them; every file by its path; or numbers alone."""

UNUSED = {"images": frozenset({"path", "sha256", "height", "width"}), "files": frozenset({"sha256"})}
"""Columns that the child leaves out of a joined table."""

MOST_GROUPS = 200
"""Groups that are counted one by one, the first by name; the files of all others are counted together."""

_LONGEST_NAME = 200

MOST_BYTES = 256 << 20
"""Largest manifest or index in the bucket that is read; for all 377,110 images each has about 30 MB."""

MOST_ROWS = 4_000_000
MOST_COLUMNS = 200
MOST_UNPACKED = 768 << 20
"""Most bytes of one file's columns, unpacked, according to its footer."""

MOST_MEMORY = 1 << 30
"""Memory limit of the child in bytes (RLIMIT_DATA, on Linux); tests/unit/test_overview_tables.py shows what it needs."""

MOST_SECONDS = 90
_REFUSED = 3
_AT_ONCE = threading.BoundedSemaphore(2)
_NEEDED = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")  # all that the child's environment gets: no credentials


@dataclass(frozen=True)
class Tally:
    """What manifest and index hold, in numbers.

    Attributes:
        dataset: The project as the manifest names it, ``slug/version``; empty = it names none.
        images: Whether it describes radiographs; only they are then counted.
        rows: (group, split, files, verified ones, bytes of these). A group that is None stands for all beyond
            `MOST_GROUPS`; so does a split for files without any.
        trouble: Why the index does not count; empty where it does, and where there is none.
    """

    dataset: str
    images: bool
    rows: Sequence[tuple[str | None, str | None, int, int, int]]
    trouble: str = ""


def join(manifest: Path, index: Path | None, out: Path, kind: Literal["images", "files"] = "images") -> str:
    """Write the joined table to ``out``; returns why the index was ignored, or "" if it was used or there is none.

    Args:
        manifest: A file with the manifest.
        index: One with the index, or None.
        out: The file to write.
        kind: Which rows: of a manifest without radiographs, ``images`` too are its files.

    Raises:
        MetadataError: The manifest is damaged, is not one, or exceeds the bounds.
    """
    return _ask(kind, manifest, index, out)


def count(manifest: Path, index: Path | None) -> Tally:
    """Count a manifest's files, and those of them that the index has.

    Args:
        manifest: A file with the manifest.
        index: One with the index, or None.

    Raises:
        MetadataError: As `join`.
    """
    with TemporaryDirectory(prefix="physionet-") as folder:
        out = Path(folder) / "counts"
        said = _ask("counts", manifest, index, out)
        found = json.loads(out.read_bytes())
    return Tally(found["dataset"], found["images"], [tuple(row) for row in found["rows"]], said)


def _ask(kind: Kind, manifest: Path, index: Path | None, out: Path) -> str:
    environment = {name: os.environ[name] for name in _NEEDED if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve more than they use, and the limit counts that
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", __name__, kind, str(manifest), str(index or ""), str(out)]
    with _AT_ONCE:
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=MOST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _unreadable(f"it takes longer than {MOST_SECONDS} s") from None
    said = done.stdout.decode("utf-8", "replace").strip()[:500]
    if done.returncode == _REFUSED:
        raise _unreadable(said)
    if done.returncode:
        raise _unreadable(f"it is damaged, or needs more than {MOST_MEMORY >> 20} MB of memory")
    return said


def _unreadable(why: str) -> MetadataError:
    return MetadataError(
        f"_mirror/manifest.parquet cannot be read: {why}. No file is affected. Trigger a run to this prefix again: its task "
        "fetch_metadata builds the manifest again."
    )


# -- in the child ------------------------------------------------------------------------------------------------------


def _main(arguments: Sequence[str]) -> int:
    kind, manifest, index, out = arguments
    _bound()
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    try:
        table = _wanted(manifest, kind)
    except _TooMuch as error:
        print(error)  # noqa: T201
        return _REFUSED
    except (MemoryError, pa.ArrowMemoryError):
        print(f"it needs more than {MOST_MEMORY >> 20} MB of memory")  # noqa: T201
        return _REFUSED
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        print(_first_line(error))  # noqa: T201
        return _REFUSED
    said = ""
    try:
        sizes = _sizes(table, index) if index else None
    except (MemoryError, pa.ArrowMemoryError):
        sizes, said = None, f"it needs more than {MOST_MEMORY >> 20} MB of memory"
    except (_TooMuch, pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        sizes, said = None, _first_line(error)
    if sizes is None:
        sizes = pa.repeat(pa.scalar(0, pa.int64()), table.num_rows)
    table = table.append_column(VERIFIED, sizes)
    if kind == "counts":
        try:
            counted = _counts(table)
        except _TooMuch as error:
            print(error)  # noqa: T201
            return _REFUSED
        Path(out).write_text(json.dumps(counted))
    else:
        unused = UNUSED[kind if "dicom_id" in table.column_names else "files"]
        import pyarrow.parquet as pq

        # Without compression and dictionaries, reading takes no more memory than the file's size.
        table = table.drop_columns([name for name in table.column_names if name in unused])
        pq.write_table(table, out, compression="none", use_dictionary=False)
    print(said)  # noqa: T201
    return 0


class _TooMuch(ValueError):
    """More than the bounds allow."""


def _bound() -> None:
    if sys.platform != "linux":
        return
    import resource

    for kind, most in ((resource.RLIMIT_DATA, MOST_MEMORY), (resource.RLIMIT_FSIZE, MOST_UNPACKED)):
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, kill this process, not the API server


def _open(file: str, wanted: Sequence[str] | None) -> Any:
    """Open a Parquet file and check its footer. ``wanted`` names the columns that are read; None = all."""
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file, memory_map=True, page_checksum_verification=True)
    about = parquet.metadata
    if about.num_columns > MOST_COLUMNS or len(parquet.schema_arrow.names) != about.num_columns:
        raise _TooMuch(
            f"it has {about.num_columns:,} columns, or nested ones; at most {MOST_COLUMNS} plain ones are read"
        )
    if about.num_rows > MOST_ROWS:
        raise _TooMuch(f"it has {about.num_rows:,} rows, and at most {MOST_ROWS:,} are read")
    names = parquet.schema_arrow.names
    if absent := [name for name in wanted or () if name not in names]:
        raise _TooMuch(f"it has no column {', '.join(absent)}")
    counted = [n for n, name in enumerate(names) if wanted is None or name in wanted]
    unpacked = sum(
        about.row_group(group).column(n).total_uncompressed_size
        for group in range(about.num_row_groups)
        for n in counted
    )
    if unpacked > MOST_UNPACKED:
        raise _TooMuch(f"it unpacks to {unpacked >> 20:,} MB, and at most {MOST_UNPACKED >> 20:,} MB are read")
    return parquet


def _wanted(file: str, kind: str) -> Any:
    """The manifest, each column cast to its type in our manifests: text, int32 ids, and int8 labels."""
    import pyarrow as pa

    parquet = _open(file, None)
    if kind == "files" or "dicom_id" not in parquet.schema_arrow.names:
        return _any_files(parquet)
    from physionet_mirror import manifest  # imports pandas, half a second that other projects are spared

    needed = [name for name in manifest.COLUMNS if name not in ("height", "width")]
    if absent := [name for name in needed if name not in parquet.schema_arrow.names]:
        raise _TooMuch(f"it has no column {', '.join(absent)}")
    is_image = parquet.read(["dicom_id"], use_threads=False)["dicom_id"].is_valid()
    columns = {}
    for name in parquet.schema_arrow.names if kind == "images" else ("path", "sha256", "group", "split", "dicom_id"):
        if name in ("height", "width") or manifest.is_detail(name):
            continue
        type_ = pa.int32() if name in ("subject_id", "study_id") else pa.int8()
        if name in manifest.COLUMNS and type_ == pa.int8():
            type_ = pa.large_string()
        columns[name] = parquet.read([name], use_threads=False)[name].filter(is_image).cast(type_)
        columns[name].validate(full=True)
        if name in needed and name not in ("view", "split") and columns[name].null_count:
            raise _TooMuch(f"its column {name} has empty cells")
    return pa.table(columns).replace_schema_metadata(parquet.schema_arrow.metadata)


def _any_files(parquet: Any) -> Any:
    """Every file of a manifest: path, sha256, and each path's group."""
    import pyarrow as pa

    columns = {}
    for name in ("path", "sha256"):
        if name not in parquet.schema_arrow.names:
            raise _TooMuch(f"it has no column {name}")
        columns[name] = parquet.read([name], use_threads=False)[name].cast(pa.large_string())
        columns[name].validate(full=True)
        if columns[name].null_count:
            raise _TooMuch(f"its column {name} has empty cells")
    columns["group"] = pa.chunked_array([_groups(chunk) for chunk in columns["path"].chunks], pa.large_string())
    return pa.table(columns).replace_schema_metadata(parquet.schema_arrow.metadata)


def _groups(paths: Any) -> Any:
    """`group_of` of each of these paths, called once a folder: a project may have millions of files."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from physionet_mirror.layout import group_of

    parts = pc.split_pattern(paths, "/", max_splits=2)
    first, count = parts.offsets.to_numpy()[:-1], pc.list_value_length(parts).to_numpy(zero_copy_only=False)
    below_files = pc.equal(parts.values.take(pa.array(first)), "files").to_numpy(zero_copy_only=False)
    # The folder is the second part of files/<folder>/<rest>, else the first part of what is in a folder.
    has_folder = np.where(below_files, count == 3, count > 1)
    at = pa.array(first + below_files, mask=~has_folder)
    folders = parts.values.take(at).dictionary_encode()
    names = pa.array([group_of(f"files/{folder}/") for folder in folders.dictionary.to_pylist()], pa.large_string())
    return pc.fill_null(names.take(folders.indices), group_of(""))


def _counts(table: Any) -> dict[str, Any]:
    """The fields of a `Tally`, without its ``trouble``. Names longer than any of ours are refused."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from physionet_mirror.dataset import NAME

    group, images = table["group"], "dicom_id" in table.column_names
    split = table["split"] if images else pa.nulls(table.num_rows, pa.large_string())
    for names in (group, split):
        if (pc.max(pc.utf8_length(names)).as_py() or 0) > _LONGEST_NAME:
            raise _TooMuch(f"a group or split in it has a name of more than {_LONGEST_NAME} characters")
    first = pc.array_sort_indices(known := pc.unique(group))[:MOST_GROUPS]
    group = pc.if_else(pc.is_in(group, value_set=known.take(first)), group, pa.scalar(None, pa.large_string()))
    if images:
        known = pc.unique(split)
        split = pc.if_else(pc.is_in(split, value_set=known[:20]), split, pa.scalar(None, pa.large_string()))
    there = pc.greater(table[VERIFIED], 0).cast(pa.int64())
    few = pa.table({"group": group, "split": split, "there": there, "bytes": table[VERIFIED]})
    counted = few.group_by(["group", "split"], use_threads=False).aggregate(
        [("there", "count"), ("there", "sum"), ("bytes", "sum")]
    )
    named = (table.schema.metadata or {}).get(b"physionet_mirror.dataset", b"").decode("utf-8", "replace")
    columns = ("group", "split", "there_count", "there_sum", "bytes_sum")
    return {
        "dataset": named if re.fullmatch(NAME, named) else "",
        "images": images,
        "rows": list(zip(*(counted[name].to_pylist() for name in columns), strict=True)),
    }


def _sizes(table: Any, file: str) -> Any:
    """For each row, its size from the index if that has the same path with the same checksum, else 0."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parquet = _open(file, ("path", "sha256", "bytes"))

    def column(name: str, kind: Any) -> Any:
        found = parquet.read([name], use_threads=False)[name].cast(kind)
        found.validate(full=True)
        return found.combine_chunks()

    paths = column("path", pa.large_string())
    if table["path"].equals(pa.chunked_array([paths])):  # all of it is mirrored
        sums, sizes = column("sha256", pa.large_string()), column("bytes", pa.int64())
    else:
        rows = pc.index_in(table["path"], value_set=paths)
        sums, sizes = column("sha256", pa.large_string()).take(rows), column("bytes", pa.int64()).take(rows)
    same = pc.equal(sums, table["sha256"])
    right = pc.and_(same, pc.and_(pc.greater(sizes, 0), pc.less(sizes, 1 << 40)))
    return pc.if_else(pc.fill_null(right, False), pc.fill_null(sizes, 0), 0)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
