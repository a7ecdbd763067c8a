"""The manifest: every file of a project's version, as PhysioNet's checksums and tables describe it.

Columns, one row a file, in byte order of ``path``:

    ============  ============  ===================================================================================
    path          string        the file's path at PhysioNet, and its key below the prefix
    sha256        string        64 hex digits, from SHA256SUMS.txt
    ============  ============  ===================================================================================

A dataset of radiographs has these too, all NA in the rows of files that are no image (`images` leaves those out):

    ============  ============  ===================================================================================
    group         string        ``p10`` … ``p19``: the first two digits of the subject id
    subject_id    int32
    study_id      int32
    dicom_id      string        five groups of eight hex digits
    view          string        ViewPosition (AP, PA, LATERAL, LL, …); NA where PhysioNet leaves it empty
    split         string        train, validate, test; NA where the tables do not name the image
    height        Int32         pixels; NA where the tables do not name the image
    width         Int32         pixels; NA likewise
    study_…       datetime64    ``study_datetime``: StudyDate and StudyTime, the zeros that StudyTime lost put back; NA
                                where either is absent or none. Shifted by PhysioNet, without a time zone
    procedure     string        ProcedureCodeSequence_CodeMeaning, as published
    view_name     string        ViewCodeSequence_CodeMeaning, as published
    orientation   string        PatientOrientationCodeSequence_CodeMeaning, as published
    <14 labels>   Int8          CheXpert: 1 positive, 0 negative, -1 uncertain, NA not mentioned (or no row at all)
    negbio: …     Int8          the same 14 by NegBio
    radiolog… …   Int8          ``radiologist: …``: the same 14 by radiologists, for studies of the test set; NA elsewhere.
                                What they call Airspace Opacity is Lung Opacity here
    ============  ============  ===================================================================================

SHA256SUMS.txt is the truth about what exists: an image without a row in a table stays, with NA; a row without an image
is left out and counted in ``frame.attrs["notes"]`` (list of sentences). A dataset that publishes no split or labels has
the same columns, all NA.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from physionet_mirror.dataset import SUMS, Dataset
from physionet_mirror.errors import MetadataError

if TYPE_CHECKING:
    from typing import TypeAlias

    Table: TypeAlias = Any  # pyarrow publishes no types

FORMAT = "2"
"""Version of the parquet file's layout; fetch_metadata builds a file of another version again."""

_READABLE = ("1", FORMAT)
"""Versions that `read` takes; the first had the images alone, no `DETAILS`, and CheXpert's labels alone."""

COLUMNS = ("path", "sha256", "group", "subject_id", "study_id", "dicom_id", "view", "split", "height", "width")
"""The columns that every reader here works with, beside the labels."""

DETAILS = ("study_datetime", "procedure", "view_name", "orientation")
"""Further columns before the labels, for the training index."""

NEGBIO, RADIOLOGIST = "negbio: ", "radiologist: "
"""What stands before a label's name where it is another reader's than CheXpert's."""

ROW_GROUP = 16_384
"""Rows a row group: 24 of them at full size, so that one patient group is read with three or four range requests."""

# The columns that are read from each table; the tables hold more, which would cost memory and help nobody.
_METADATA = {
    "ViewPosition": "view",
    "Rows": "height",
    "Columns": "width",
    "ProcedureCodeSequence_CodeMeaning": "procedure",
    "ViewCodeSequence_CodeMeaning": "view_name",
    "PatientOrientationCodeSequence_CodeMeaning": "orientation",
}
_DATE, _TIME = "StudyDate", "StudyTime"
_AIRSPACE, _OPACITY = "Airspace Opacity", "Lung Opacity"

_DAMAGED = (
    "Nothing was changed in the bucket. Run the DAG again, so that the file is fetched anew; "
    "if the same message comes back, open the file in a browser at {page} and tell PhysioNet's support."
)


# --- SHA256SUMS.txt ---------------------------------------------------------------------------------------------------

# An ordinary line, as all of PhysioNet's are: no component starts with a dot, so that none can climb. What does not
# match is looked at by _fault(), which says what is wrong with it, if anything is.
_ORDINARY = re.compile(
    rb"([0-9a-f]{64}) [ *]?((?!_mirror/)(?:[A-Za-z0-9-][A-Za-z0-9._-]*/)*[A-Za-z0-9-][A-Za-z0-9._-]*)\n"
)
_LINE = re.compile(rb"([0-9A-Fa-f]{64})(?: [ *]?|\t)([^ ].*)\n", re.DOTALL)


def parse_sums(lines: bytes | BinaryIO) -> pd.DataFrame:
    """Read ``SHA256SUMS.txt``: one ``<64 hex digits> <path>`` a line, as PhysioNet writes it.

    Other tools, and some projects, write two spaces, `` *`` or a tab between the two, comments (``#``), or end every line as
    Windows does. A path that itself begins with ``*`` takes two spaces.

    Returns:
        One row a file, in byte order of path: ``path`` (string), ``sha256`` (string, lower case).

    Raises:
        MetadataError: A line that is not a checksum and a path, a path that is not a plain relative one, a path that
            stands there twice, a last line without its end (a file cut short), an HTML page, or nothing at all.
            The message names the line.
    """
    stream = BytesIO(lines) if isinstance(lines, bytes) else lines
    paths: list[str] = []
    sums: list[str] = []
    parts: list[Table] = []
    number, windows = 0, False
    for number, line in enumerate(stream, 1):
        windows = windows if number > 1 else line.endswith(b"\r\n")
        if windows and line.endswith(b"\r\n"):
            line = line[:-2] + b"\n"
        if line.startswith(b"#") and line.endswith(b"\n"):
            continue
        match = _ORDINARY.fullmatch(line)
        if match is None:
            if fault := _fault(line, number):
                raise _bad_sums(number, fault)
            match = _LINE.fullmatch(line)
            assert match is not None  # _fault() has seen to it
        sums.append(match[1].decode().lower())
        paths.append(match[2].decode())
        if len(paths) == 50_000:  # keep the Python strings few: 377,110 lines of them are 100 MB
            parts.append(_sums_table(paths, sums))
            paths, sums = [], []
    parts.append(_sums_table(paths, sums))
    if not any(part.num_rows for part in parts):
        raise MetadataError(f"{SUMS} is empty. " + _DAMAGED.format(page="physionet.org"))
    table = pa.concat_tables(parts).combine_chunks()
    order = pc.sort_indices(table["path"])  # Arrow sorts strings by their bytes, as S3 does
    in_order = table.take(order)
    path = in_order["path"]
    twice = pc.index(pc.equal(path.slice(1), path.slice(0, max(len(path) - 1, 0))), value=True).as_py()
    if twice >= 0:
        again = max(order[twice].as_py(), order[twice + 1].as_py()) + 1
        raise _bad_sums(again, f"the path {path[twice].as_py()!r} stands in it a second time")
    return frame_of(in_order)


def _sums_table(paths: list[str], sums: list[str]) -> Table:
    return pa.table({"path": pa.array(paths, pa.large_string()), "sha256": pa.array(sums, pa.large_string())})


def _fault(line: bytes, number: int) -> str | None:
    """What is wrong with one line of SHA256SUMS.txt, or None."""
    if line.lstrip().startswith(b"<"):
        page = "an HTML page (a login or maintenance page?)" if number == 1 else "HTML"
        return f"this is {page}, not a checksum"
    if not line.endswith(b"\n"):
        return "the line has no end: the file was cut short"
    body = line[:-1]
    if not body.strip():
        return "the line is empty"
    if escaped := re.fullmatch(rb"\\[0-9A-Fa-f]{64} [ *]?(.*)", body):  # sha256sum marks such names
        return f"the path {_show(escaped[1])} holds a backslash or a line break"
    digest, _, path = body.partition(b"\t" if body[64:65] == b"\t" else b" ")
    if not re.fullmatch(rb"[0-9A-Fa-f]{64}", digest):
        return f"{_show(digest)} is not a SHA-256 (64 hex digits)"
    path = path[1:] if path[:1] in (b" ", b"*") else path
    if not path.strip():
        return "there is no path after the checksum"
    try:
        return path_fault(path.decode())
    except UnicodeDecodeError:
        return f"the path {_show(path)} is not UTF-8"


def path_fault(path: str, shown: str | None = None) -> str | None:
    """Why ``path`` cannot be a file below a dataset's root, as half a sentence; None when it can.

    ``shown`` stands for the path in the sentence, where the path itself is nothing to be shown.
    """
    shown = _show(path.encode("utf-8", "replace")) if shown is None else shown
    if not path or path != path.strip():
        return f"the path {shown} is empty or has blanks around it"
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in path):
        return f"the path {shown} holds a control character"
    if "\\" in path:
        return f"the path {shown} holds a backslash"
    if path.startswith("/"):
        return f"the path {shown} is absolute"
    parts = path.split("/")
    if ".." in parts:
        return f"the path {shown} climbs out of the dataset with '..'"
    if "." in parts or "" in parts:
        return f"the path {shown} has an empty or '.' component"
    if path.startswith("_mirror/"):
        return f"the path {shown} lies where the mirror keeps its own files"
    return None


def _show(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    return repr(text if len(text) <= 100 else text[:97] + "...")


def _bad_sums(number: int, fault: str) -> MetadataError:
    return MetadataError(f"{SUMS}, line {number:,}: {fault}. " + _DAMAGED.format(page="physionet.org"))


# --- the tables -------------------------------------------------------------------------------------------------------


def build(dataset: Dataset, files: Mapping[str, Path]) -> pd.DataFrame:
    """Join ``SHA256SUMS.txt`` with the dataset's tables: its images alone.

    Args:
        dataset: A dataset of radiographs; its ``image_path`` must be a pattern that RE2 knows (no look-around).
        files: Path at PhysioNet to the local copy: ``SHA256SUMS.txt`` and the tables of the roles ``metadata``,
            ``split`` and ``labels``. Where given, ``negbio`` and ``test_labels`` are joined too, or noted where they
            cannot be, and ``records`` is compared.

    Returns:
        The manifest; the module's docstring lists its columns. ``attrs["notes"]`` says what did not fit together.

    Raises:
        MetadataError: A file is missing, damaged, or not the table that it should be; or no path is an image, and its tables
            describe images one by one.
    """
    sums_file = _local(files, SUMS)
    with sums_file.open("rb") as stream:
        sums = parse_sums(stream)
    frame = _images(dataset, sums)
    del sums
    if frame.num_rows == 0 and dataset.describes_images:
        assert dataset.image_path is not None
        raise MetadataError(
            f"{SUMS} of {dataset.name} lists no image: no path looks like {dataset.image_path.pattern!r}. "
            + _DAMAGED.format(page=dataset.page)
        )
    count = frame.num_rows
    notes = [] if count else [f"{SUMS} lists no image, so the manifest has none: tables alone"]
    columns: dict[str, Table] = {
        "view": pa.nulls(count, pa.large_string()),
        "split": pa.nulls(count, pa.large_string()),
        "height": pa.nulls(count, pa.int32()),
        "width": pa.nulls(count, pa.int32()),
        "study_datetime": pa.nulls(count, pa.timestamp("ms")),
        **{name: pa.nulls(count, pa.large_string()) for name in DETAILS if name != "study_datetime"},
        **{
            reader + label: pa.nulls(count, pa.int8())
            for reader in ("", NEGBIO, RADIOLOGIST)
            for label in dataset.labels
        },
    }

    def join(role: str, key: str, key_type: Table, types: Mapping[str, Table]) -> tuple[Table, Table] | None:
        """A table's columns, and for each image its row there; None where the dataset has no such table."""
        if role not in dataset.tables:
            return None
        name = dataset.tables[role]
        table = read_csv(dataset, name, _local(files, name), {key: key_type, **types})
        rows, left_out = _left_join(frame[key], table[key])
        if left_out:
            notes.append(f"{name}: {left_out:,} rows have no image in {SUMS} and are left out")
        if (without := rows.null_count) and role != "test_labels":
            notes.append(f"{name}: {without:,} images have no row there and are kept without its columns")
        return table, rows

    def join_labels(role: str, before: str, theirs: Mapping[str, str]) -> None:
        # The tables write labels as 1.0, 0.0, -1.0; 8 bits hold them once they are read.
        if joined := join(role, "study_id", int32, dict.fromkeys(theirs.values(), pa.float32())):
            name = dataset.tables[role]
            table, rows = joined
            read = {label: _as_label(dataset, name, label, table[column]) for label, column in theirs.items()}
            columns.update({before + label: values.take(rows) for label, values in read.items()})

    string, int32 = pa.large_string(), pa.int32()
    texts = dict.fromkeys([*_METADATA, _DATE, _TIME], string) | {"Rows": int32, "Columns": int32}
    if joined := join("metadata", "dicom_id", string, texts):
        table, rows = joined
        for theirs, ours in _METADATA.items():
            columns[ours] = table[theirs].take(rows)
        columns["study_datetime"] = _when(table[_DATE], table[_TIME]).take(rows)
    if joined := join("split", "dicom_id", string, {"split": string}):
        columns["split"] = joined[0]["split"].take(joined[1])
    same = {label: label for label in dataset.labels}
    join_labels("labels", "", same)
    for role, before, theirs_of in (
        ("negbio", NEGBIO, same),
        ("test_labels", RADIOLOGIST, {label: _AIRSPACE if label == _OPACITY else label for label in dataset.labels}),
    ):
        if dataset.tables.get(role) in files:
            try:
                join_labels(role, before, theirs_of)
            except MetadataError as error:  # no image is selected by them
                notes.append(f"The columns {before}… stay empty. {error}")
    if count and dataset.tables.get("records") in files:
        join("records", "dicom_id", string, {})
    for name, values in columns.items():
        frame = frame.append_column(name, values)
    result = frame_of(frame)
    result.attrs["notes"] = notes
    return result


def of_all_files(dataset: Dataset, files: Mapping[str, Path]) -> pd.DataFrame:
    """The manifest of any project: every file that ``SHA256SUMS.txt`` lists but itself; images as `build` describes them.

    Args:
        dataset: The project.
        files: As for `build`.

    Raises:
        MetadataError: As `build`.
    """
    with _local(files, SUMS).open("rb") as stream:
        sums = parse_sums(stream)
    sums = sums[sums["path"] != SUMS].reset_index(drop=True)
    if dataset.image_path is None:
        sums.attrs["notes"] = []
        return sums
    described = build(dataset, files)
    others = sums[~sums["path"].isin(described["path"])]
    if others.empty:
        return described
    table = pa.concat_tables(
        [pa.Table.from_pandas(part, preserve_index=False).replace_schema_metadata() for part in (described, others)],
        promote_options="default",
    )
    frame = frame_of(table.take(pc.sort_indices(table["path"])))
    frame.attrs["notes"] = described.attrs["notes"]
    return frame


def images(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a manifest that are images, by their row in it; none of a project that has no radiographs."""
    if "dicom_id" not in frame.columns:
        return frame.iloc[:0]
    found = frame[frame["dicom_id"].notna()]
    return found.astype({name: "int32" for name in _IDS if name in frame.columns})


_IDS = ("subject_id", "study_id")


def _images(dataset: Dataset, sums: pd.DataFrame) -> Table:
    """The images with the ids in their paths."""
    assert dataset.image_path is not None
    table = pa.table({name: pa.array(sums[name]).cast(pa.large_string()) for name in ("path", "sha256")})
    ids = pc.extract_regex(table["path"], f"^(?:{dataset.image_path.pattern})$")
    is_image = ids.is_valid()
    images = table.filter(is_image)
    ids = ids.filter(is_image)
    for name, kind in (
        ("group", pa.large_string()),
        ("subject_id", pa.int32()),
        ("study_id", pa.int32()),
        ("dicom_id", pa.large_string()),
    ):
        images = images.append_column(name, pc.struct_field(ids, name).cast(kind))
    return images


def _left_join(ours: Table, theirs: Table) -> tuple[Table, int]:
    """For each of our keys the first row of their table that has it (null = none); and how many rows are left over."""
    theirs = theirs.combine_chunks()
    rows = pc.index_in(ours, value_set=theirs)
    return rows, pc.sum(pc.invert(pc.is_in(theirs, value_set=ours.combine_chunks()))).as_py() or 0


def _as_label(dataset: Dataset, name: str, label: str, values: Table) -> Table:
    known = pc.is_in(values, value_set=pa.array([1.0, 0.0, -1.0, None], pa.float32()))
    if not pc.all(known).as_py():
        wrong = values.filter(pc.invert(known))[0].as_py()
        raise _bad_table(dataset, name, f"column {label!r} holds {wrong:g}; a label is 1, 0, -1 or empty")
    return values.cast(pa.int8())


def _when(date: Table, time: Table) -> Table:
    """StudyDate (yyyymmdd) and StudyTime (hhmmss.fff whose leading zeros are lost: 1.5 is 00:00:01.500) as one timestamp.

    Null where either is absent, or is no date or time.
    """
    day = pd.to_datetime(date.to_pandas(), format="%Y%m%d", errors="coerce")
    clock = (pd.to_numeric(time.to_pandas(), errors="coerce") * 1000).round()
    hours, minutes, milliseconds = clock // 10_000_000, clock // 100_000 % 100, clock % 100_000
    is_time = hours.between(0, 23) & (minutes < 60) & (milliseconds < 60_000)
    since = (hours * 3_600_000 + minutes * 60_000 + milliseconds).where(is_time)
    return pa.array((day + pd.to_timedelta(since, unit="ms")).astype("datetime64[ms]"), pa.timestamp("ms"))


def _local(files: Mapping[str, Path], name: str) -> Path:
    if name not in files:
        raise MetadataError(
            f"{name} is needed for the manifest and was not fetched. Run the fetch_metadata task again."
        )
    return Path(files[name])


def read_csv(
    dataset: Dataset, name: str, file: Path, types: Mapping[str, Table], *, may_be_quoted: bool = True
) -> Table:
    """The columns in ``types`` of one table (plain or gzip); empty cells are null, in text columns too.

    Args:
        dataset: Whose table.
        name: Its path there.
        file: A copy of it here.
        types: Column to Arrow type.
        may_be_quoted: An error may show the cell at fault; False where the table says more of patients than of images.

    Raises:
        MetadataError: It lacks a column, or is no such table.
    """
    compressed = name.endswith(".gz")
    try:
        with gzip.open(file) if compressed else file.open("rb") as stream:
            header = stream.readline(65_536)
    except (OSError, EOFError) as error:  # gzip.BadGzipFile is an OSError
        with file.open("rb") as raw:
            html = _is_html(raw.read(512))
        raise _bad_table(dataset, name, _HTML if html else f"it cannot be unpacked ({error})") from error
    if _is_html(header):
        raise _bad_table(dataset, name, _HTML)
    names = header.decode("utf-8", "replace").removeprefix("\ufeff").strip().replace('"', "").split(",")
    if absent := [column for column in types if column not in names]:
        raise _bad_table(
            dataset, name, f"it has no column {', '.join(map(repr, absent))}; it has {', '.join(names[:20])}"
        )
    try:
        with pa.input_stream(str(file), compression="gzip" if compressed else None) as stream:
            table: Table = pyarrow.csv.read_csv(
                stream,
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=list(types), column_types=dict(types), null_values=[""], strings_can_be_null=True
                ),
            )
    except (OSError, pa.ArrowInvalid) as error:
        if may_be_quoted:
            raise _bad_table(dataset, name, f"it cannot be read: {error}") from error
        wanted = ", ".join(f"{column} ({kind})" for column, kind in types.items())
        raise _bad_table(
            dataset, name, f"a row or cell cannot be read as {wanted} (not shown: it is of a patient)"
        ) from None
    return table


_HTML = "this is an HTML page (a login or maintenance page?), not a table"


def _is_html(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<")


def _bad_table(dataset: Dataset, name: str, fault: str) -> MetadataError:
    return MetadataError(f"{name} of {dataset.name}: {fault}. " + _DAMAGED.format(page=dataset.page))


# --- the parquet file -------------------------------------------------------------------------------------------------


def write(frame: pd.DataFrame, file: Path | BinaryIO, *, dataset: Dataset, sums_sha256: str) -> None:
    """Write the manifest as parquet (zstd, sorted by path, row groups of 16,384 rows).

    Its key-value metadata: ``physionet_mirror.format``, ``.dataset`` (``slug/version``), ``.sums_sha256`` (SHA-256 of
    the ``SHA256SUMS.txt`` that it was built from), ``.notes`` (JSON list).
    """
    table = pa.Table.from_pandas(frame, preserve_index=False)
    ours = {
        "format": FORMAT,
        "dataset": dataset.name,
        "sums_sha256": sums_sha256,
        "notes": json.dumps(frame.attrs.get("notes", [])),
    }
    # pandas' own metadata is left out: it would hold dtypes of this pandas version, and readers do without.
    table = table.replace_schema_metadata({f"physionet_mirror.{key}": value for key, value in ours.items()})
    pq.write_table(
        table,
        file,
        compression="zstd",
        row_group_size=ROW_GROUP,
        # Paths, checksums and ids repeat nothing: a dictionary of them is only overhead.
        use_dictionary=[name for name in table.column_names if name not in ("path", "sha256", "dicom_id")],
        write_page_index=True,
    )


def read(file: Path | BinaryIO, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a manifest that ``write`` wrote; ``columns`` limits what is read.

    Raises:
        MetadataError: The file is no manifest of this format. ``sums_sha256_of`` tells beforehand, so that it can be
            built again.
    """
    try:
        parquet = pq.ParquetFile(file)
        ours = _ours(parquet)
        if ours.get("format") not in _READABLE:
            raise MetadataError(
                f"The manifest has format {ours.get('format', 'unknown')!r}, this version reads {FORMAT!r}. "
                f"Nothing is lost. {_BUILD_AGAIN}"
            )
        table = parquet.read(columns=None if columns is None else list(columns))
        table.validate(full=True)
        frame = frame_of(table)
        frame.attrs["notes"] = json.loads(ours.get("notes", "[]"))
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise MetadataError(
            f"The manifest cannot be read ({_first_line(error)}). Nothing is lost. {_BUILD_AGAIN}"
        ) from error
    return frame


def columns_of(file: Path | BinaryIO) -> list[str]:
    """The names of a manifest's columns."""
    names: list[str] = pq.read_schema(file).names
    if not isinstance(file, Path):
        file.seek(0)
    return names


def sums_sha256_of(file: Path | BinaryIO) -> str | None:
    """SHA-256 of the ``SHA256SUMS.txt`` that a manifest was built from; None = no manifest of this format: build it."""
    try:
        ours = _ours(pq.ParquetFile(file))
    except (pa.ArrowException, OSError, ValueError):
        return None
    finally:
        if not isinstance(file, Path):
            file.seek(0)
    return ours.get("sums_sha256") if ours.get("format") == FORMAT else None


_BUILD_AGAIN = "Trigger a run of this prefix: its task fetch_metadata builds _mirror/manifest.parquet again."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _ours(parquet: Any) -> dict[str, str]:
    stored: Mapping[bytes, bytes] = parquet.schema_arrow.metadata or {}
    prefix = "physionet_mirror."
    return {k.decode().removeprefix(prefix): v.decode() for k, v in stored.items() if k.decode().startswith(prefix)}


def label_columns(names: Iterable[str]) -> list[str]:
    """The columns of CheXpert's labels among a manifest's (``label_columns(frame)``)."""
    return [name for name in names if name not in COLUMNS and not is_detail(name)]


def is_detail(name: str) -> bool:
    """Whether a column is there for the training index alone; nothing is selected by it."""
    return name in DETAILS or name.startswith((NEGBIO, RADIOLOGIST))


def selectable_columns(file: BinaryIO) -> list[str]:
    """The columns of a manifest that images are selected by, which take half of the memory of all."""
    names = [name for name in pq.read_schema(file).names if not is_detail(name)]
    file.seek(0)
    return names


def frame_of(table: Table) -> pd.DataFrame:
    """Arrow to pandas with one set of types, wherever the manifest comes from."""
    text = pd.StringDtype("pyarrow")
    kinds = {pa.int8(): pd.Int8Dtype(), pa.int32(): pd.Int32Dtype(), pa.string(): text, pa.large_string(): text}
    if tuple(int(number) for number in pd.__version__.split(".")[:2]) < (2, 2):  # takes no large strings yet
        fields = [field.with_type(pa.string()) if field.type == pa.large_string() else field for field in table.schema]
        table = table.cast(pa.schema(fields))
    frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get, self_destruct=False, ignore_metadata=True)
    whole = [name for name in _IDS if name in frame.columns and not frame[name].hasnans]
    return frame.astype(dict.fromkeys(whole, "int32"))
