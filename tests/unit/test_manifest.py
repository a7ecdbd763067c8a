"""The manifest: SHA256SUMS.txt is the truth, the tables add what they know."""

import gzip
import hashlib
import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror import manifest
from physionet_mirror.dataset import LABELS, MIMIC_CXR, MIMIC_CXR_JPG
from physionet_mirror.errors import InputError, MetadataError
from physionet_mirror.selection import Selection, choose

A = "files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg"
B = "files/p10/p10000032/s53189527/2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab.jpg"
C = "files/p19/p19999987/s55368167/58766883-376a15ce-3b323a28-6af950a0-16b793bd.jpg"

METADATA_HEADER = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)

EVERY_COLUMN = [
    *("path", "sha256", "group", "subject_id", "study_id", "dicom_id", "view", "split", "height", "width"),
    *("study_datetime", "procedure", "view_name", "orientation"),
    *LABELS,
    *(f"negbio: {label}" for label in LABELS),
    *(f"radiologist: {label}" for label in LABELS),
]


def digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def sums(*paths: str) -> bytes:
    return "".join(f"{digest(path)} {path}\n" for path in paths).encode()


def ids(path: str) -> tuple[str, str, str]:
    _, _, subject, study, name = path.split("/")
    return subject[1:], study[1:], name.removesuffix(".jpg")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three images: A has everything, B has no view and no labels, C is in no table."""
    content = {
        "SHA256SUMS.txt": sums("LICENSE.txt", *sorted([A, B, C]), "mimic-cxr-2.0.0-metadata.csv.gz"),
        "mimic-cxr-2.0.0-metadata.csv.gz": "\n".join(
            [
                METADATA_HEADER,
                f'{ids(A)[2]},{ids(A)[0]},{ids(A)[1]},"CHEST (PA, LAT)",PA,3056,2544,21800506,213014.531,x,y,Erect',
                f"{ids(B)[2]},{ids(B)[0]},{ids(B)[1]},CHEST,,2544,3056,21800626,165500.312,x,,Erect",
                "00000000-00000000-00000000-00000000-00000000,1,2,CHEST,AP,1,1,21800626,165500.312,x,,Erect",
            ]
        ),
        "mimic-cxr-2.0.0-split.csv.gz": "\n".join(
            ["dicom_id,study_id,subject_id,split"]
            + [f"{ids(p)[2]},{ids(p)[1]},{ids(p)[0]},{split}" for p, split in ((A, "train"), (B, "test"))]
        ),
        "mimic-cxr-2.0.0-chexpert.csv.gz": "\n".join(
            [",".join(["subject_id", "study_id", *LABELS]), f"{ids(A)[0]},{ids(A)[1]},1.0,0.0,-1.0," + "," * 10]
        ),
    }
    paths = {}
    for name, text in content.items():
        paths[name] = tmp_path / name
        data = text if isinstance(text, bytes) else text.encode() + b"\n"
        paths[name].write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return paths


def rewrite(file: Path, text: str) -> None:
    file.write_bytes(gzip.compress(text.encode()) if file.name.endswith(".gz") else text.encode())


def test_an_image_gets_what_the_tables_know_of_it(files: dict[str, Path]) -> None:
    frame = manifest.build(MIMIC_CXR_JPG, files)

    assert list(frame.columns) == EVERY_COLUMN
    row = frame.iloc[0]
    assert row["path"] == A
    assert row["sha256"] == digest(A)
    assert (row["group"], row["subject_id"], row["study_id"]) == ("p10", 10000032, 50414267)
    assert row["dicom_id"] == "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
    assert (row["view"], row["split"], row["height"], row["width"]) == ("PA", "train", 3056, 2544)
    assert (row["Atelectasis"], row["Cardiomegaly"], row["Consolidation"]) == (1, 0, -1)
    assert pd.isna(row["Edema"])


def test_the_details_are_as_published(files: dict[str, Path]) -> None:
    frame = manifest.build(MIMIC_CXR_JPG, files).set_index("path")

    details = ["study_datetime", "procedure", "view_name", "orientation"]
    assert frame.loc[A, details].tolist() == [pd.Timestamp("2180-05-06 21:30:14.531"), "x", "y", "Erect"]
    assert frame.loc[B, ["procedure", "orientation"]].tolist() == ["x", "Erect"]
    assert pd.isna(frame.loc[B, "view_name"])
    assert frame.loc[C, details].isna().all()
    assert not frame.filter(like=": ").notna().any(axis=None), (
        "no table of NegBio's or the radiologists' labels was given"
    )


@pytest.mark.parametrize(
    ("date", "time", "meant"),
    [
        ("21800506", "1.5", "2180-05-06 00:00:01.500"),
        ("21800506", "0.0", "2180-05-06 00:00:00"),
        ("21800506", "12.281", "2180-05-06 00:00:12.281"),
        ("21800506", "1203.0", "2180-05-06 00:12:03"),
        ("21800506", "93015.25", "2180-05-06 09:30:15.250"),
        ("21800506", "235959.999", "2180-05-06 23:59:59.999"),
        ("21840229", "070000", "2184-02-29 07:00:00"),
        ("21830229", "70000", None),
        ("21800506", "240000", None),
        ("21800506", "126000", None),
        ("21800506", "1260", None),
        ("21800506", "-1", None),
        ("21800506", "", None),
        ("", "70000", None),
        ("unknown", "noon", None),
    ],
)
def test_a_time_gets_back_its_zeros(files: dict[str, Path], date: str, time: str, meant: str | None) -> None:
    rewrite(
        files["mimic-cxr-2.0.0-metadata.csv.gz"],
        f"{METADATA_HEADER}\n{ids(A)[2]},{ids(A)[0]},{ids(A)[1]},CHEST,PA,3056,2544,{date},{time},x,y,Erect\n",
    )

    frame = manifest.build(MIMIC_CXR_JPG, files)

    when = frame.set_index("path").loc[A, "study_datetime"]
    assert when == pd.Timestamp(meant) if meant else pd.isna(when)
    assert str(frame["study_datetime"].dtype) == "datetime64[ms]"


@given(st.datetimes(pd.Timestamp(2100, 1, 1), pd.Timestamp(2230, 1, 1)))
@settings(deadline=None, max_examples=200)
def test_any_moment_survives_losing_its_zeros(moment) -> None:
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    published = f"{moment:%H%M%S}.{moment.microsecond // 1000:03d}".lstrip("0")
    found = manifest._when(pa.chunked_array([[f"{moment:%Y%m%d}"]]), pa.chunked_array([[published]]))

    assert found.to_pylist() == [moment]


def test_other_readers_labels_stand_beside_chexperts(files: dict[str, Path], tmp_path: Path) -> None:
    negbio, radiologists = (MIMIC_CXR_JPG.tables[role] for role in ("negbio", "test_labels"))
    files |= {negbio: tmp_path / negbio, radiologists: tmp_path / radiologists}
    header = ",".join(["subject_id", "study_id", *LABELS])
    rewrite(files[negbio], f"{header}\n{ids(A)[0]},{ids(A)[1]},0.0,,-1.0,1.0" + "," * 10 + "\n")
    theirs = ",".join(["study_id", *("Airspace Opacity" if n == "Lung Opacity" else n for n in LABELS)])
    values = ["1.0" if name == "Lung Opacity" else "" for name in LABELS]
    rewrite(files[radiologists], f"{theirs}\n{ids(B)[1]},{','.join(values)}\n")

    frame = manifest.build(MIMIC_CXR_JPG, files).set_index("path")

    assert frame.loc[A, [f"negbio: {n}" for n in ("Atelectasis", "Consolidation", "Edema")]].tolist() == [0, -1, 1]
    assert pd.isna(frame.loc[A, "negbio: Cardiomegaly"])
    assert frame.loc[A, "Atelectasis"] == 1, "CheXpert's own stays"
    assert frame.loc[B].filter(like="radiologist: ").dropna().to_dict() == {"radiologist: Lung Opacity": 1}
    assert frame.loc[A].filter(like="radiologist: ").isna().all()
    assert manifest.label_columns(frame.columns) == list(LABELS)
    assert not [note for note in frame.attrs["notes"] if radiologists in note], "most images are not in the test set"


def test_labels_that_no_image_is_selected_by_stop_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    negbio = MIMIC_CXR_JPG.tables["negbio"]
    files[negbio] = tmp_path / negbio
    rewrite(files[negbio], "subject_id,study_id,Something\n")

    frame = manifest.build(MIMIC_CXR_JPG, files)

    assert frame.filter(like="negbio: ").isna().all(axis=None)
    assert any("negbio: … stay empty" in note and "has no column" in note for note in frame.attrs["notes"])


def test_an_image_without_a_row_stays_with_na(files: dict[str, Path]) -> None:
    frame = manifest.build(MIMIC_CXR_JPG, files).set_index("path")

    assert pd.isna(frame.loc[B, "view"])
    assert frame.loc[B, "split"] == "test"
    assert frame.loc[B, list(LABELS)].isna().all()
    assert frame.loc[C, ["view", "split", "height", "width", *LABELS]].isna().all()


def test_rows_without_an_image_are_left_out_and_counted(files: dict[str, Path]) -> None:
    frame = manifest.build(MIMIC_CXR_JPG, files)

    assert len(frame) == 3
    assert any(
        "metadata.csv.gz: 1 rows have no image in SHA256SUMS.txt and are left out" in n for n in frame.attrs["notes"]
    )


def test_rows_come_in_byte_order_whatever_the_order_of_the_file(files: dict[str, Path]) -> None:
    files["SHA256SUMS.txt"].write_bytes(sums(C, "LICENSE.txt", B, A))

    assert manifest.build(MIMIC_CXR_JPG, files)["path"].tolist() == [A, B, C]


def test_what_does_not_look_like_an_image_of_the_dataset_is_no_image(files: dict[str, Path]) -> None:
    odd = [A.replace("p10/", "p9/"), "logo.jpg", A + ".jpg", A.upper(), f"old/{A}"]
    files["SHA256SUMS.txt"].write_bytes(sums(A, *odd))

    assert manifest.build(MIMIC_CXR_JPG, files)["path"].tolist() == [A]


def test_the_dicom_dataset_has_the_same_columns(tmp_path: Path) -> None:
    path = A.replace(".jpg", ".dcm")
    (tmp_path / "sums").write_bytes(sums(path, "cxr-record-list.csv.gz"))
    subject, study, dicom = ids(A)
    (tmp_path / "records").write_bytes(
        gzip.compress(f"subject_id,study_id,dicom_id,path\n{subject},{study},{dicom},{path}\n".encode())
    )
    local = {"SHA256SUMS.txt": tmp_path / "sums", "cxr-record-list.csv.gz": tmp_path / "records"}

    frame = manifest.build(MIMIC_CXR, local)

    assert list(frame.columns) == EVERY_COLUMN
    assert frame.loc[0, "subject_id"] == 10000032
    assert frame[["view", "split", *LABELS]].isna().all(axis=None)
    assert frame.attrs["notes"] == []


# --- malformed checksums ----------------------------------------------------------------------------------------------

GOOD = digest("x")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"zz files/a.jpg\n", "is not a SHA-256"),
        (GOOD[:63].encode() + b" files/a.jpg\n", "is not a SHA-256"),
        (GOOD.encode() + b"\n", "no path after the checksum"),
        (GOOD.encode() + b"  \n", "no path after the checksum"),
        (GOOD.encode() + b" ../../etc/passwd\n", "climbs out of the dataset"),
        (GOOD.encode() + b" files/../../x\n", "climbs out of the dataset"),
        (GOOD.encode() + b" files/..\n", "climbs out of the dataset"),
        (GOOD.encode() + b" /etc/passwd\n", "is absolute"),
        (GOOD.encode() + b" files//a.jpg\n", "empty or '.' component"),
        (GOOD.encode() + b" ./a.jpg\n", "empty or '.' component"),
        (GOOD.encode() + b" files/\n", "empty or '.' component"),
        (GOOD.encode() + b" files\\a.jpg\n", "backslash"),
        (GOOD.encode() + b" files/a\x00.jpg\n", "control character"),
        (GOOD.encode() + b" files/a.jpg\r\n", "blanks around it"),
        (GOOD.encode() + b" files/\x1b[31m\n", "control character"),
        (GOOD.encode() + b" files/\xff\n", "not UTF-8"),
        (GOOD.encode() + b" _mirror/manifest.parquet\n", "mirror keeps its own files"),
        (GOOD.encode() + b" files/a", "cut short"),
        (GOOD.encode() + b" LICENSE.txt\n", "a second time"),
        (GOOD.encode() + b"\t../x\n", "climbs out of the dataset"),
        (b"\\" + GOOD.encode() + b"  files\\\\a.jpg\n", "holds a backslash or a line break"),
        (b"\n", "the line is empty"),
        (b"<html>\n", "HTML"),
    ],
)
def test_a_malformed_line_is_named(line: bytes, fault: str) -> None:
    with pytest.raises(MetadataError, match=r"SHA256SUMS.txt, line 3: .*Nothing was changed") as caught:
        manifest.parse_sums(sums("LICENSE.txt", "README") + line)
    assert fault in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_page_instead_of_checksums_is_called_a_page() -> None:
    with pytest.raises(MetadataError, match="line 1: this is an HTML page"):
        manifest.parse_sums(b"<!DOCTYPE html>\n<html>\n")


def test_an_empty_file_is_no_checksum_file() -> None:
    with pytest.raises(MetadataError, match="is empty"):
        manifest.parse_sums(b"")


def test_other_tools_ways_to_write_checksums_are_read() -> None:
    text = f"{GOOD.upper()}  two blanks.txt\n{GOOD} *star\n".encode()

    frame = manifest.parse_sums(io.BytesIO(text))

    assert frame.to_numpy().tolist() == [["star", GOOD], ["two blanks.txt", GOOD]]


@pytest.mark.parametrize("between", [" ", "  ", " *", "\t"])
def test_the_manifest_is_the_same_however_the_checksums_are_written(files: dict[str, Path], between: str) -> None:
    usual = manifest.build(MIMIC_CXR_JPG, files)
    text = files["SHA256SUMS.txt"].read_text().replace(" ", between)
    files["SHA256SUMS.txt"].write_text(text)

    pd.testing.assert_frame_equal(manifest.build(MIMIC_CXR_JPG, files), usual)


def test_checksums_of_tables_alone_make_a_manifest_without_images(tmp_path: Path) -> None:
    names = ("LICENSE.txt", "cxr-record-list.csv.gz", "cxr-study-list.csv.gz", "mimic-cxr-reports.zip")
    (tmp_path / "sums").write_bytes(sums(*names))
    assert (tmp_path / "sums").stat().st_size == 339, "as PhysioNet's of mimic-cxr/2.0.0"
    rewrite(tmp_path / "records", f"subject_id,study_id,dicom_id,path\n10000032,50414267,{ids(A)[2]},x.dcm\n")
    local = {"SHA256SUMS.txt": tmp_path / "sums", "cxr-record-list.csv.gz": tmp_path / "records"}

    frame = manifest.build(MIMIC_CXR, local)
    manifest.write(frame, tmp_path / "manifest", dataset=MIMIC_CXR, sums_sha256=GOOD)

    read = manifest.read(tmp_path / "manifest")
    assert (len(read), list(read.columns)) == (0, EVERY_COLUMN)
    assert read.attrs["notes"] == ["SHA256SUMS.txt lists no image, so the manifest has none: tables alone"]
    with pytest.raises(InputError, match="no image"):
        choose(read, Selection(select="all"))


def test_tables_that_describe_images_need_images(files: dict[str, Path]) -> None:
    files["SHA256SUMS.txt"].write_bytes(sums("LICENSE.txt", "mimic-cxr-2.0.0-metadata.csv.gz"))

    with pytest.raises(MetadataError, match="lists no image"):
        manifest.build(MIMIC_CXR_JPG, files)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        frame = manifest.parse_sums(data)
    except MetadataError:
        return
    assert not any(manifest.path_fault(path) for path in frame["path"])


@settings(deadline=None)
@given(st.lists(st.text("ab/.-_é\t", min_size=1, max_size=12), min_size=1, max_size=6))
def test_what_is_read_is_safe_and_sorted(paths: list[str]) -> None:
    try:
        frame = manifest.parse_sums("".join(f"{GOOD} {path}\n" for path in paths).encode())
    except MetadataError:
        return
    assert frame["path"].tolist() == sorted(paths, key=str.encode)
    assert not any(manifest.path_fault(path) for path in paths)


# --- malformed tables -------------------------------------------------------------------------------------------------


def test_a_truncated_gzip_is_named(files: dict[str, Path]) -> None:
    file = files["mimic-cxr-2.0.0-split.csv.gz"]
    file.write_bytes(file.read_bytes()[:-12])

    with pytest.raises(MetadataError, match=r"split.csv.gz of mimic-cxr-jpg/2.1.0: it cannot be (read|unpacked)"):
        manifest.build(MIMIC_CXR_JPG, files)


@pytest.mark.parametrize("packed", [True, False])
def test_a_page_instead_of_a_table_is_called_a_page(files: dict[str, Path], packed: bool) -> None:
    page = b"\n<!DOCTYPE html><html><body>Log in</body></html>"
    files["mimic-cxr-2.0.0-metadata.csv.gz"].write_bytes(gzip.compress(page.strip()) if packed else page)

    with pytest.raises(MetadataError, match="this is an HTML page"):
        manifest.build(MIMIC_CXR_JPG, files)


def test_a_missing_column_is_named(files: dict[str, Path]) -> None:
    rewrite(files["mimic-cxr-2.0.0-split.csv.gz"], "dicom_id,study_id,subject_id,fold\n")

    with pytest.raises(MetadataError, match="no column 'split'; it has dicom_id, study_id, subject_id, fold"):
        manifest.build(MIMIC_CXR_JPG, files)


@pytest.mark.parametrize("content", ["", "dicom_id,study_id,subject_id,split\nonly,two\n", "\x00\x01\x02"])
def test_a_table_that_is_none_is_refused(files: dict[str, Path], content: str) -> None:
    rewrite(files["mimic-cxr-2.0.0-split.csv.gz"], content)

    with pytest.raises(MetadataError, match=r"split.csv.gz"):
        manifest.build(MIMIC_CXR_JPG, files)


def test_a_label_that_is_none_is_refused(files: dict[str, Path]) -> None:
    header = ",".join(["subject_id", "study_id", *LABELS])
    rewrite(files["mimic-cxr-2.0.0-chexpert.csv.gz"], f"{header}\n{ids(A)[0]},{ids(A)[1]},2.0" + "," * 13 + "\n")

    with pytest.raises(MetadataError, match="'Atelectasis' holds 2; a label is 1, 0, -1 or empty"):
        manifest.build(MIMIC_CXR_JPG, files)


def test_a_file_that_was_not_fetched_is_named(files: dict[str, Path]) -> None:
    del files["mimic-cxr-2.0.0-chexpert.csv.gz"]

    with pytest.raises(MetadataError, match=r"chexpert.csv.gz is needed"):
        manifest.build(MIMIC_CXR_JPG, files)


def test_checksums_without_an_image_are_refused(files: dict[str, Path]) -> None:
    files["SHA256SUMS.txt"].write_bytes(sums("LICENSE.txt"))

    with pytest.raises(MetadataError, match="lists no image"):
        manifest.build(MIMIC_CXR_JPG, files)


# --- the parquet file -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(files: dict[str, Path], tmp_path: Path) -> None:
    built = manifest.build(MIMIC_CXR_JPG, files)
    target = tmp_path / "manifest.parquet"

    manifest.write(built, target, dataset=MIMIC_CXR_JPG, sums_sha256="ab" * 32)

    pd.testing.assert_frame_equal(manifest.read(target), built)
    assert manifest.read(target).attrs["notes"] == built.attrs["notes"]
    assert manifest.sums_sha256_of(target) == "ab" * 32
    assert manifest.read(target, columns=["path", "sha256"]).columns.tolist() == ["path", "sha256"]
    assert manifest.read(io.BytesIO(target.read_bytes())).equals(built)


def test_what_images_are_selected_by_can_be_read_alone(files: dict[str, Path]) -> None:
    built = manifest.build(MIMIC_CXR_JPG, files)
    out = io.BytesIO()
    manifest.write(built, out, dataset=MIMIC_CXR_JPG, sums_sha256="ab" * 32)

    frame = manifest.read(out, manifest.selectable_columns(out))

    assert list(frame.columns) == [*manifest.COLUMNS, *LABELS]


def test_a_manifest_of_the_first_format_is_read_and_built_again(files: dict[str, Path]) -> None:
    built = manifest.build(MIMIC_CXR_JPG, files)
    out = io.BytesIO()
    table = pa.Table.from_pandas(built[[*manifest.COLUMNS, *LABELS]], preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"physionet_mirror.format": "1"}), out)

    assert manifest.read(out)["path"].tolist() == built["path"].tolist()
    assert manifest.sums_sha256_of(out) is None


def test_the_file_serves_range_reads(files: dict[str, Path], tmp_path: Path) -> None:
    built = manifest.build(MIMIC_CXR_JPG, files)
    target = tmp_path / "manifest.parquet"
    manifest.write(pd.concat([built] * 10_000), target, dataset=MIMIC_CXR_JPG, sums_sha256="ab" * 32)

    parquet = pq.ParquetFile(target)

    assert parquet.metadata.num_row_groups == 2
    column = parquet.metadata.row_group(0).column(0)
    assert (column.compression, column.statistics.min, column.statistics.max) == ("ZSTD", A, C)


def test_a_file_of_another_kind_is_built_again(tmp_path: Path) -> None:
    foreign = tmp_path / "manifest.parquet"
    pd.DataFrame({"path": ["x"]}).to_parquet(foreign)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and then nothing")

    for file in (foreign, damaged):
        assert manifest.sums_sha256_of(file) is None
        with pytest.raises(MetadataError, match="Nothing is lost"):
            manifest.read(file)
