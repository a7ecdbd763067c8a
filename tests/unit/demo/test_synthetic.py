"""The synthetic dataset is what PhysioNet would serve, only smaller."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from demo import synthetic
from physionet_mirror.dataset import GROUPS, LABELS, MIMIC_CXR, MIMIC_CXR_2_1_0, MIMIC_CXR_JPG, SPLITS, SUMS


@pytest.fixture(scope="module")
def version(tiny_dataset: Path) -> Path:
    return tiny_dataset / MIMIC_CXR_JPG.name


@pytest.fixture(scope="module")
def drawn() -> synthetic.Cohort:
    return synthetic.cohort(20_000, seed=3)


def table(version: Path, role: str) -> pd.DataFrame:
    return pd.read_csv(version / MIMIC_CXR_JPG.tables[role])


@pytest.mark.parametrize("name", [MIMIC_CXR_JPG.name, MIMIC_CXR_2_1_0.name])
def test_sums_name_every_file_but_themselves_with_one_space_in_byte_order(tiny_dataset: Path, name: str) -> None:
    version = tiny_dataset / name
    lines = (version / SUMS).read_bytes().splitlines()
    paths = [line[65:] for line in lines]
    assert paths == sorted(paths)
    assert {path.decode() for path in paths} == {
        file.relative_to(version).as_posix() for file in version.rglob("*") if file.is_file() and file.name != SUMS
    }
    for line in lines:
        path = line[65:].decode()
        assert line == f"{hashlib.sha256((version / path).read_bytes()).hexdigest()} {path}".encode()


def test_sums_of_mimic_cxr_2_0_0_name_its_four_files_only_as_at_physionet(tiny_dataset: Path) -> None:
    version = tiny_dataset / MIMIC_CXR.name
    sums = (version / SUMS).read_bytes()
    assert len(sums) == 339
    names = [line.split()[1].decode() for line in sums.splitlines()]
    assert names == ["LICENSE.txt", "cxr-record-list.csv.gz", "cxr-study-list.csv.gz", "mimic-cxr-reports.zip"]
    assert list(version.glob("files/**/*.dcm")), "its DICOM files are there all the same"


def test_every_image_is_a_grayscale_jpeg_of_the_size_that_the_metadata_says(version: Path) -> None:
    size = table(version, "metadata").set_index("dicom_id")[["Columns", "Rows"]]
    images = list(version.rglob("*.jpg"))
    assert len(images) == len(size) == 60
    for file in images:
        assert MIMIC_CXR_JPG.image_path.fullmatch(file.relative_to(version).as_posix())
        image = Image.open(io.BytesIO(file.read_bytes()))
        image.load()
        assert (image.format, image.mode, image.size) == ("JPEG", "L", tuple(size.loc[file.stem]))


def test_tables_have_the_published_columns(version: Path) -> None:
    assert list(table(version, "metadata")) == [
        "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
        "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ]  # fmt: skip
    assert list(table(version, "split")) == ["dicom_id", "study_id", "subject_id", "split"]
    assert list(table(version, "labels")) == list(table(version, "negbio")) == ["subject_id", "study_id", *LABELS]
    renamed = ["Airspace Opacity" if label == "Lung Opacity" else label for label in LABELS]
    assert list(table(version, "test_labels")) == ["study_id", *renamed]


def test_rare_cases_survive_in_a_small_set(version: Path) -> None:
    metadata, split, labels = (table(version, role) for role in ("metadata", "split", "labels"))
    assert metadata["ViewPosition"].isna().any()
    assert metadata["ViewPosition"].isin(synthetic.RARE_VIEWS).any()
    assert set(split["split"]) == set(SPLITS)
    assert not set(metadata["study_id"]) <= set(labels["study_id"]), "some studies have no labels"
    assert {f"p{subject // 1_000_000}" for subject in metadata["subject_id"]} == set(GROUPS)
    assert (labels[list(LABELS)] == -1).any(axis=None), "some labels are uncertain"


def test_patients_never_straddle_splits(drawn: synthetic.Cohort) -> None:
    assert drawn.images.groupby("subject_id")["split"].nunique().max() == 1


def test_distributions_are_those_of_the_real_dataset(drawn: synthetic.Cohort) -> None:
    images, labels = drawn.images, drawn.labels
    assert images["study_id"].nunique() == round(20_000 * synthetic.STUDIES_PER_IMAGE)
    assert images["subject_id"].nunique() == round(20_000 * synthetic.PATIENTS_PER_IMAGE)
    views = images["ViewPosition"].value_counts(normalize=True)
    assert views["AP"] == pytest.approx(0.39, abs=0.06)
    assert views["PA"] == pytest.approx(0.25, abs=0.04)
    assert views["LATERAL"] + views["LL"] == pytest.approx(0.31, abs=0.04)
    for label, (positive, _, _) in synthetic.LABEL_COUNTS.items():
        assert (labels[label] == 1).mean() == pytest.approx(positive / 227_827, abs=0.02), label
    assert not labels.loc[labels["No Finding"] == 1, "Pleural Effusion"].isin([1, -1]).any()


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    sums = []
    for name in ("one", "two"):
        version = synthetic.write(tmp_path / name, synthetic.cohort(8, seed=5, long_side=64))
        sums.append((version / SUMS).read_text())
    assert sums[0] == sums[1]
    other = synthetic.cohort(8, seed=6)
    assert set(other.images["path"]).isdisjoint(sums[0].split())


def test_ensure_writes_once(tmp_path: Path) -> None:
    assert synthetic.ensure(tmp_path / "root", 6, long_side=64) is True
    assert synthetic.ensure(tmp_path / "root", 6, long_side=64) is False
    assert synthetic.ensure(tmp_path / "root", 7, long_side=64) is True


def test_tables_alone_are_enough_for_planning(tmp_path: Path) -> None:
    version = synthetic.write(tmp_path, synthetic.cohort(500, long_side=None), with_images=False)
    lines = (version / SUMS).read_text().splitlines()
    assert sum(line.endswith(".jpg") for line in lines) == 500
    assert not (version / "files").exists()
