"""Reports and links as a run builds them: from real HTTP through a real S3, compared with the truth that they were drawn from."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo import clinical as drawn
from demo import stack, synthetic
from demo.lookalike import Lookalike, User
from physionet_mirror import layout
from physionet_mirror.clinical import links, reports
from physionet_mirror.dataset import MIMIC_CXR_2_1_0, MIMIC_CXR_JPG, Dataset
from physionet_mirror.errors import InputError, MetadataError, VerificationFailed
from physionet_mirror.request import ClinicalRequest
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import clinical
from physionet_mirror.steps.clinical import FILES
from physionet_mirror.steps.fetch_files import fetch_files
from physionet_mirror.steps.fetch_metadata import fetch_metadata
from tests.conftest import READER

COHORT = synthetic.cohort(60, seed=7, long_side=96)
"""That of the fixture ``tiny_dataset``."""

TRUTH = drawn.truth(COHORT.images, COHORT.seed)
PROJECTS = {"cxr": MIMIC_CXR_2_1_0, "hosp": drawn.MIMIC_IV, "ed": drawn.MIMIC_IV_ED}


class Lab:
    """A bucket with the tables of the radiographs and the files of the three projects in it."""

    def __init__(self, s3: stack.S3Server) -> None:
        self.s3, self.name = s3, f"clinical-{uuid4().hex[:8]}"
        s3.make_bucket(self.name)

    def below(self, dataset: Dataset) -> Bucket:
        return Bucket.open(self.s3.session(), self.name, dataset.name, endpoint_url=self.s3.endpoint)

    @property
    def mirror(self) -> Bucket:
        return self.below(MIMIC_CXR_JPG)

    def there(self, *parts: Any) -> dict[Any, tuple[Dataset, Bucket]]:
        return {part: (PROJECTS[part], self.below(PROJECTS[part])) for part in parts}

    def file(self, dataset: Dataset, path: str) -> Path:
        return Path(self.s3.folder) / self.name / dataset.name / path

    def rows(self, path: str) -> dict[int, dict[str, Any]]:
        return {row["study_id"]: row for row in pq.read_table(self.file(MIMIC_CXR_JPG, path)).to_pylist()}


@pytest.fixture(scope="module")
def lab(tiny_dataset: Path, s3_server: stack.S3Server) -> Lab:
    made = Lab(s3_server)
    with (
        Lookalike(tiny_dataset, users={READER[0]: User(READER[1])}, check_seconds=0) as server,
        closing(PhysioNet(server.url, *READER)) as source,
    ):
        fetch_metadata(source, made.mirror, MIMIC_CXR_JPG)
        for part, dataset in PROJECTS.items():
            assert fetch_files(source, made.below(dataset), dataset, FILES[part]).fetched == len(FILES[part])
        again = [fetch_files(source, made.below(d), d, FILES[part]).fetched for part, d in PROJECTS.items()]
        assert again == [0, 0, 0]
    return made


def test_the_reports_equal_the_truth_row_by_row_and_no_log_holds_a_word_of_them(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        built = clinical.build_reports(lab.mirror, lab.below(MIMIC_CXR_2_1_0), MIMIC_CXR_2_1_0)

    rows = lab.rows(layout.REPORTS)
    assert {study: {name: rows[study][name] for name in told} for study, told in TRUTH.reports.items()} == TRUTH.reports
    assert rows.keys() == TRUTH.reports.keys()
    assert pq.read_schema(lab.file(MIMIC_CXR_JPG, layout.REPORTS)).equals(reports.SCHEMA)
    assert (built.reports, built.without_study, built.without_report) == (len(rows), 0, 0)
    assert sum(built.status.values()) == len(rows)
    assert all(built.status.values())
    assert sum(drawn.MARKER in (row["text"] or "") for row in rows.values()) > 20
    assert drawn.MARKER not in caplog.text + repr(built)
    assert "FINAL REPORT" not in caplog.text


@pytest.mark.parametrize("window", [0, 24])
def test_the_links_equal_the_truth_row_by_row(lab: Lab, window: int) -> None:
    built = clinical.build_links(lab.mirror, lab.there("hosp", "ed"), window)

    rows = lab.rows(layout.LINKS)
    assert rows == {
        study: {
            name: pytest.approx(cell) if name.startswith("hours") and cell is not None else cell
            for name, cell in link.items()
        }
        for study, link in TRUTH.links[window].items()
    }
    assert pq.read_schema(lab.file(MIMIC_CXR_JPG, layout.LINKS)).equals(links.SCHEMA)
    assert built.studies == len(rows)
    assert built.match == {match: [row["match"] for row in rows.values()].count(match) for match in links.MATCHES}
    assert built.linked == {kind.name: sum(row[kind.id] is not None for row in rows.values()) for kind in links.KINDS}


@pytest.mark.parametrize("part", ["hosp", "ed"])
def test_a_project_that_is_not_there_leaves_its_columns_null(lab: Lab, part: Any) -> None:
    built = clinical.build_links(lab.mirror, lab.there(part))

    rows = lab.rows(layout.LINKS)
    there = {kind.id for kind in links.KINDS if (kind.name == "ed") == (part == "ed")}
    for study, link in TRUTH.links[0].items():
        assert {name: rows[study][name] for name in there} == {name: link[name] for name in there}
        assert all(rows[study][kind.id] is None for kind in links.KINDS if kind.id not in there)
        assert rows[study]["age"] == (link["age"] if part == "hosp" else None)
    assert set(built.linked) == ({"ed"} if part == "ed" else {"admission", "icu"})


def test_links_that_differ_from_their_tables_are_not_published() -> None:
    cohort = synthetic.cohort(60, seed=7)
    tables = drawn.draw(cohort.images, cohort.seed)
    moments = [
        {name: link[name] for name in ("subject_id", "study_id", "study_datetime")}
        for link in tables.truth.links[0].values()
    ]
    studies = pd.DataFrame(moments)
    stays = {kind.name: (tables.ed | tables.hosp)[kind.table] for kind in links.KINDS}
    table = links.link(studies, stays, None, 24)
    links.check(table, studies, stays, 24)
    with pytest.raises(VerificationFailed, match="at another time"):
        links.check(table, studies, stays, 0)  # those ahead of a stay are outside of it
    with pytest.raises(VerificationFailed, match="absent, or there twice"):
        links.check(pa.concat_tables([table, table.slice(0, 1)]), studies, stays, 24)
    shifted = studies.assign(subject_id=studies["subject_id"].sample(frac=1, random_state=1).to_numpy())
    others = table.set_column(0, "subject_id", pa.array(shifted.sort_values("study_id")["subject_id"], pa.int32()))
    with pytest.raises(VerificationFailed, match="another patient's"):
        links.check(others, studies, stays, 24)


@pytest.fixture
def damaged(lab: Lab) -> Iterator[Any]:
    """Replaces a file in the bucket, for one test."""
    kept: list[tuple[Bucket, str, bytes]] = []

    def replace(dataset: Dataset, path: str, data: bytes) -> None:
        bucket = lab.below(dataset)
        kept.append((bucket, path, bucket.read(path)))
        bucket.write(path, data)

    yield replace
    for bucket, path, data in kept:
        bucket.write(path, data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"subject_id,hadm_id,admittime\n1,2,3\n", "no column 'dischtime'"),
        (b"subject_id,hadm_id,admittime,dischtime\nMr Smith,2,,\n", "not shown: it is of a patient"),
        (b"subject_id,hadm_id,admittime,dischtime\n1,7,,\n1,7,,\n", "1 rows repeat the hadm_id of another"),
        (b"subject_id,hadm_id,admittime,dischtime\n,7,,\n", "1 rows have no subject_id or no hadm_id"),
        (b"<!DOCTYPE html><title>Maintenance</title>", "an HTML page"),
    ],
    ids=["column", "cell", "twice", "nobody", "html"],
)
def test_a_damaged_table_is_named_quotes_no_cell_and_leaves_what_is_there(
    lab: Lab, damaged: Any, content: bytes, says: str
) -> None:
    before = lab.file(MIMIC_CXR_JPG, layout.LINKS).read_bytes()
    damaged(drawn.MIMIC_IV, "hosp/admissions.csv.gz", gzip.compress(content))

    with pytest.raises(MetadataError, match=says) as caught:
        clinical.build_links(lab.mirror, lab.there("hosp", "ed"))

    assert "hosp/admissions.csv.gz of mimiciv/3.1" in str(caught.value)
    assert "Smith" not in str(caught.value)
    assert lab.file(MIMIC_CXR_JPG, layout.LINKS).read_bytes() == before


def test_a_damaged_archive_leaves_the_reports_that_are_there(lab: Lab, damaged: Any) -> None:
    clinical.build_reports(lab.mirror, lab.below(MIMIC_CXR_2_1_0), MIMIC_CXR_2_1_0)
    before = lab.file(MIMIC_CXR_JPG, layout.REPORTS).read_bytes()
    data = lab.file(MIMIC_CXR_2_1_0, clinical.ARCHIVE).read_bytes()
    damaged(MIMIC_CXR_2_1_0, clinical.ARCHIVE, data[: len(data) // 2])
    with pytest.raises(MetadataError, match=r"mimic-cxr-reports\.zip"):
        clinical.build_reports(lab.mirror, lab.below(MIMIC_CXR_2_1_0), MIMIC_CXR_2_1_0)
    assert lab.file(MIMIC_CXR_JPG, layout.REPORTS).read_bytes() == before


def test_without_a_manifest_links_are_refused_before_anything_is_fetched(lab: Lab) -> None:
    elsewhere = Bucket.open(lab.s3.session(), lab.name, "nowhere", endpoint_url=lab.s3.endpoint)
    request = ClinicalRequest.from_params({"bucket": lab.name, "prefix": "nowhere"})
    with pytest.raises(InputError, match="Trigger mimic_cxr_metadata or mimic_cxr_jpg first"):
        clinical.check_mirror(elsewhere, request)
    clinical.check_mirror(elsewhere, ClinicalRequest.from_params({"bucket": lab.name, "links": False}))
    clinical.check_mirror(lab.mirror, request)
