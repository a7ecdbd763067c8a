"""The tables beside the radiographs are what their own truth says, and no rarer than a small cohort can have."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from demo import clinical, synthetic
from physionet_mirror.clinical import links, reports
from physionet_mirror.dataset import MIMIC_CXR, MIMIC_CXR_2_1_0, MIMIC_CXR_JPG, SUMS

COHORT = synthetic.cohort(60, seed=7, long_side=96)
"""That of the fixture ``tiny_dataset``."""

TRUTH = clinical.truth(COHORT.images, COHORT.seed)


def test_every_status_and_every_match_occurs_in_a_small_cohort() -> None:
    assert {report["status"] for report in TRUTH.reports.values()} == set(reports.STATUSES)
    assert {link["match"] for link in TRUTH.links[24].values()} == set(links.MATCHES)
    assert {link["match"] for link in TRUTH.links[0].values()} == set(links.MATCHES) - {"window"}
    assert set(TRUTH.cases.values()) == {case.name for case in clinical.CASES}
    assert None in {link["gender"] for link in TRUTH.links[0].values()}, "some patients are not in MIMIC-IV"


@pytest.mark.parametrize("project", [MIMIC_CXR, MIMIC_CXR_2_1_0], ids=["2.0.0", "2.1.0"])
def test_the_reports_are_read_as_they_were_written(tiny_dataset: Path, project: Any) -> None:
    archive = tiny_dataset / project.name / synthetic.REPORTS
    with zipfile.ZipFile(archive) as opened:
        assert len(opened.namelist()) == len(TRUTH.reports)

    table = io.BytesIO()
    reports.build(archive, table)

    rows = pq.read_table(table).to_pylist()
    assert {
        row["study_id"]: {name: row[name] for name in TRUTH.reports[row["study_id"]]} for row in rows
    } == TRUTH.reports


@pytest.mark.parametrize("window", [0, 24])
def test_every_study_is_linked_as_its_stays_were_laid(tiny_dataset: Path, window: int) -> None:
    tables = {
        kind.name: pd.read_csv(
            tiny_dataset / (clinical.MIMIC_IV_ED if kind.name == "ed" else clinical.MIMIC_IV).name / kind.table,
            parse_dates=list(kind.columns[1:]),
        )
        for kind in links.KINDS
    }
    patients = pd.read_csv(tiny_dataset / clinical.MIMIC_IV.name / links.PATIENTS)
    moments = [
        {name: link[name] for name in ("subject_id", "study_id", "study_datetime")} for link in TRUTH.links[0].values()
    ]

    linked = links.link(pd.DataFrame(moments), tables, patients, window).to_pylist()

    assert {row["study_id"]: row for row in linked} == {
        study: {
            name: pytest.approx(cell) if name.startswith("hours") and cell is not None else cell
            for name, cell in row.items()
        }
        for study, row in TRUTH.links[window].items()
    }


def test_a_patients_studies_are_days_apart() -> None:
    moments = pd.DataFrame(TRUTH.links[0].values()).sort_values(["subject_id", "study_datetime"])
    apart = moments.groupby("subject_id")["study_datetime"].diff().dropna()
    assert len(apart) > 5
    assert apart.min() > pd.Timedelta(days=6)


def test_the_projects_have_the_published_columns_and_sums(tiny_dataset: Path) -> None:
    root = tiny_dataset / clinical.MIMIC_IV.name
    assert [line[65:] for line in (root / SUMS).read_text().splitlines()] == [
        "LICENSE.txt",
        "hosp/admissions.csv.gz",
        "hosp/patients.csv.gz",
        "hosp/provider.csv.gz",
        "icu/icustays.csv.gz",
    ]
    columns = {
        "hosp/patients.csv.gz": "subject_id gender anchor_age anchor_year anchor_year_group dod",
        "icu/icustays.csv.gz": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
    }
    for path, names in columns.items():
        assert list(pd.read_csv(root / path)) == names.split()
    ed = pd.read_csv(tiny_dataset / clinical.MIMIC_IV_ED.name / "ed/edstays.csv.gz")
    assert list(ed) == (
        "subject_id hadm_id stay_id intime outtime gender race arrival_transport disposition".split()  # noqa: SIM905
    )


def test_the_truth_is_that_of_the_images_moments(tiny_dataset: Path) -> None:
    metadata = pd.read_csv(tiny_dataset / MIMIC_CXR_JPG.name / MIMIC_CXR_JPG.tables["metadata"])
    clock = metadata["StudyTime"].map(lambda time: f"{time:010.3f}")
    moment = pd.to_datetime(metadata["StudyDate"].astype(str) + clock, format="%Y%m%d%H%M%S.%f")
    first = moment.groupby(metadata["study_id"]).min().to_dict()
    assert {study: link["study_datetime"] for study, link in TRUTH.links[0].items()} == first
