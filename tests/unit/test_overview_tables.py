"""Whatever file is in a bucket as manifest or index, the process that serves the page stays within its memory limit."""

from __future__ import annotations

import json
import subprocess
import sys
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from physionet_mirror import manifest, overview_tables
from physionet_mirror.dataset import LABELS, MIMIC_CXR_JPG
from physionet_mirror.errors import MetadataError
from physionet_mirror.layout import group_of
from physionet_mirror.overview_tables import VERIFIED, count, join
from tests.unit.test_overview import frame

MB = 1 << 20


def written(table, path, **options):
    pq.write_table(table, path, **options)
    return path


def ours(path, **changed):
    """A manifest as the mirror writes it, with columns replaced."""
    out = BytesIO()
    manifest.write(frame(), out, dataset=MIMIC_CXR_JPG, sums_sha256="0" * 64)
    table = pq.read_table(out)
    for name, column in changed.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return written(table, path)


def many_rows(path):
    """40 million rows in a few kilobytes."""
    one = {name: pa.array(["x"] * 1_000_000).dictionary_encode() for name in ("path", "sha256", "group", "dicom_id")}
    table = pa.table({**one, "subject_id": pa.repeat(1, 1_000_000), "study_id": pa.repeat(1, 1_000_000)})
    return written(pa.concat_tables([table] * 40), path, compression="zstd")


def wide_footer(path):
    return written(pa.table({f"column {n}": [1] for n in range(5000)}), path)


def honest_bomb(path):
    """A gigabyte of the same letter in one column, correctly stated in the footer."""
    columns = {name: pa.array(["x"] * 50) for name in manifest.COLUMNS} | {"path": pa.array(["A" * MB] * 50)}
    table = pa.concat_tables([pa.table(columns)] * 20)
    return written(table, path, compression="zstd", use_dictionary=False, row_group_size=50)


def quiet_bomb(path):
    """One text of a megabyte, referenced by 100,000 rows: 100 GB, of which the footer states one megabyte."""
    text = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 100_000), pa.array(["A" * MB]))
    short = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 100_000), pa.array(["x"]))
    columns = dict.fromkeys(manifest.COLUMNS, short) | {"path": text}
    return written(pa.table(columns), path, compression="zstd")


_MEASURE = """
import json, resource, sys
from pathlib import Path
from physionet_mirror import overview_tables
from physionet_mirror.errors import MetadataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = ""
try:
    said = overview_tables.join(*(Path(name) if name else None for name in sys.argv[1:]))
except MetadataError as error:
    said = str(error)
print(json.dumps({
    "said": said,
    "grown": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    "child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
}))
"""


def measured(first, index, out):
    """The message about these files, the caller's growth in MB, and the child's peak memory in MB."""
    command = [sys.executable, "-c", _MEASURE, str(first), str(index or ""), str(out)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=200).stdout)


@pytest.mark.parametrize(
    ("bomb", "says", "most"),
    [
        (many_rows, "40,000,000 rows", 400),
        (wide_footer, "5,000 columns", 400),
        (honest_bomb, "at most 768 MB are read", 400),
        (quiet_bomb, "MB of memory", 1400),
    ],
)
def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path, bomb, says, most):
    file = bomb(tmp_path / "bomb")
    assert file.stat().st_size < 3 * MB
    seen = measured(file, None, tmp_path / "out")
    assert says in seen["said"]
    assert "fetch_metadata builds the manifest again" in seen["said"]
    assert seen["grown"] < 20
    assert seen["child"] < most


def test_such_an_index_counts_as_none_and_the_manifest_is_shown(tmp_path):
    seen = measured(ours(tmp_path / "manifest"), many_rows(tmp_path / "index"), tmp_path / "out")
    assert "it has 40,000,000 rows" in seen["said"] or "it has no column" in seen["said"]
    assert manifest.read(tmp_path / "out")[VERIFIED].sum() == 0


@pytest.mark.parametrize(
    "content", [b"", b"<html>no</html>", b"PAR1PAR1", b"PAR1" + b"\0" * 500 + b"\xff\xff\xff\x7fPAR1"]
)
def test_what_is_no_parquet_is_said_to_be_none(tmp_path, content):
    (tmp_path / "no").write_bytes(content)
    with pytest.raises(MetadataError, match=r"manifest\.parquet cannot be read"):
        join(tmp_path / "no", None, tmp_path / "out")
    assert join(ours(tmp_path / "manifest"), tmp_path / "no", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "column", "says"),
    [
        ("subject_id", pa.array(["10000032"] * 299 + ["ten"]), "ten"),
        ("subject_id", pa.array([1 << 40] * 300), "not in range|out of bounds"),
        ("group", pa.array([None] * 300, pa.string()), "group has empty cells"),
        (LABELS[0], pa.array([{"a": 1}] * 300), "Unsupported cast"),
    ],
)
def test_a_column_of_another_kind_is_refused(tmp_path, name, column, says):
    with pytest.raises(MetadataError, match=says):
        join(ours(tmp_path / "manifest", **{name: column}), None, tmp_path / "out")


def test_a_size_that_no_image_has_is_not_believed(tmp_path):
    table = frame()
    sizes = [-5, 1 << 62, 0, None] + [7] * (len(table) - 4)
    columns = {name: table[name].tolist() for name in ("path", "sha256")}
    index = written(pa.table({**columns, "bytes": sizes}), tmp_path / "index")
    assert join(ours(tmp_path / "manifest"), index, tmp_path / "out") == ""
    assert manifest.read(tmp_path / "out")[VERIFIED].tolist() == [0, 0, 0, 0] + [7] * (len(table) - 4)


_FOLDERS = st.sampled_from(["files", "p10", "p1000", "p1000001", "hosp", "a b+%ü", ""]) | st.text(max_size=4)


@given(st.lists(st.lists(_FOLDERS, min_size=1, max_size=5).map("/".join), max_size=30))
@example(["files", "files/", "files/x", "files/x/", "files//x", "/", "", "files/files/x", "x/", "LICENSE.txt"])
def test_many_paths_have_the_groups_that_each_has_by_itself(paths):
    column = pa.array(["left out", *paths], pa.large_string())[1:]
    assert overview_tables._groups(column).to_pylist() == [group_of(path) for path in paths]


def test_a_mirror_is_counted_alike_whole_in_part_and_in_another_order(tmp_path):
    table = pa.table({"path": [f"d{n % 3}/{n}" for n in range(90)], "sha256": [f"{n:064x}" for n in range(90)]})
    pq.write_table(table, tmp_path / "manifest")
    whole = table.append_column("bytes", pa.array(range(1, 91)))
    whole = whole.set_column(
        1, "sha256", pa.array([*whole["sha256"].to_pylist()[:-1], "0" * 64])
    )  # one is another file
    for part, verified in ((whole, 89), (whole.take(pa.array(range(89, -1, -1))), 89), (whole[:60], 60)):
        pq.write_table(part, tmp_path / "index")
        rows = count(tmp_path / "manifest", tmp_path / "index").rows
        sizes = part["bytes"].to_pylist()
        assert sum(row[3] for row in rows) == verified
        assert sum(row[4] for row in rows) == sum(sizes) - (90 if 90 in sizes else 0)
        assert [row[2] for row in rows] == [30] * 3


def test_a_group_with_an_endless_name_is_not_counted(tmp_path):
    with pytest.raises(MetadataError, match="a name of more than 200 characters"):
        count(ours(tmp_path / "manifest", group=pa.array(["x" * 1000] * 300)), None)


def test_one_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(overview_tables, "MOST_SECONDS", 0.01)
    with pytest.raises(MetadataError, match="longer than"):
        join(ours(tmp_path / "manifest"), None, tmp_path / "out")


def test_the_child_is_given_no_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = {}
    monkeypatch.setattr(
        overview_tables.subprocess,
        "run",
        lambda command, **options: seen.update(options) or subprocess.CompletedProcess(command, 0, b"", b""),
    )
    join(tmp_path / "manifest", None, tmp_path / "out")
    assert "secret" not in seen["env"].values()
