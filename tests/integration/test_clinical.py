"""Reports and links as a run builds them: from real HTTP through a real S3, compared with the truth that they were drawn from."""

from __future__ import annotations

import gzip
import io
import logging
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
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
from physionet_mirror import index, layout, overview
from physionet_mirror.clinical import links, reports
from physionet_mirror.clinical.studies import chosen_by
from physionet_mirror.dataset import MIMIC_CXR_2_1_0, MIMIC_CXR_JPG, Dataset
from physionet_mirror.errors import InputError, MetadataError, VerificationFailed
from physionet_mirror.request import ClinicalRequest, Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import clinical, plan, verify
from physionet_mirror.steps.clinical import FILES
from physionet_mirror.steps.fetch_files import fetch_files
from physionet_mirror.steps.fetch_metadata import fetch_metadata
from physionet_mirror.verification import Verdict, Verified
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


# -- the filters that go by these tables -------------------------------------------------------------------------------


def planned(lab: Lab, **filters: Any) -> set[int]:
    """The studies of the images that a run with these filters would select."""
    request = Request.from_params({"bucket": lab.name, "select": "all", "shard_size": 1000, **filters})
    run = layout.RunLayout(f"r{uuid4().hex[:6]}")
    made = plan.make_plan(request, lab.mirror, run, streams=1, params=filters)
    verify.verify_run(request, lab.mirror, run, params=filters, started=datetime.now(UTC))
    written = {entry.path: lab.mirror.read(entry.path) for entry in lab.mirror.list(f"{layout.RUNS}{run.folder}/")}
    assert run.report_html in written
    assert not [path for path, data in written.items() if drawn.MARKER.encode() in data]
    lists = (lab.mirror.read_text(shard.path) for shard in made.shards)
    return {int(line.split("/s")[1].partition("/")[0]) for text in lists for line in text.splitlines()}


@pytest.mark.parametrize(
    ("linked", "has_report", "columns"),
    [
        (["any"], False, ("hadm_id", "ed_stay_id", "icu_stay_id")),
        (["ed"], False, ("ed_stay_id",)),
        (["icu", "ed"], False, ("icu_stay_id", "ed_stay_id")),
        (["admission"], True, ("hadm_id",)),
        ([], True, ()),
    ],
    ids=["any", "ed", "icu or ed", "admission with report", "report"],
)
def test_a_selection_by_stays_and_reports_is_that_of_the_truth(
    lab: Lab, linked: list[str], has_report: bool, columns: tuple[str, ...]
) -> None:
    clinical.build_links(lab.mirror, lab.there("hosp", "ed"), 24)
    clinical.build_reports(lab.mirror, lab.below(MIMIC_CXR_2_1_0), MIMIC_CXR_2_1_0)
    wanted = {
        study
        for study, link in TRUTH.links[24].items()
        if (not linked or any(link[column] for column in columns))
        and (not has_report or TRUTH.reports[study]["status"] != "empty")
    }
    assert 0 < len(wanted) < len(TRUTH.links[24])

    assert planned(lab, linked=linked, has_report=has_report) == wanted

    request = Request.from_params({"bucket": lab.name, "select": "all", "linked": linked, "has_report": has_report})
    studies = chosen_by(lab.mirror, request.selection)
    seen = overview.preview(overview.load(lab.mirror), request, streams=1, studies=studies)
    assert drawn.MARKER not in repr(seen)
    assert seen.matched == COHORT.images["study_id"].isin(wanted).sum()


def test_a_filter_without_its_table_says_how_it_is_made(lab: Lab, damaged: Any) -> None:
    elsewhere = Bucket.open(lab.s3.session(), lab.name, "nowhere", endpoint_url=lab.s3.endpoint)
    for name, value, file in (("linked", ["ed"], "links"), ("has_report", True, "reports")):
        selection = Request.from_params({"bucket": lab.name, name: value}).selection
        with pytest.raises(InputError) as caught:
            chosen_by(elsewhere, selection)
        assert str(caught.value).startswith(f"{name}: s3://{lab.name}/nowhere/_mirror/{file}.parquet does not exist.")
        assert f'Trigger mimic_cxr_clinical with {{"bucket": "{lab.name}", "prefix": "nowhere"}}' in str(caught.value)
        assert chosen_by(elsewhere, Request.from_params({"bucket": lab.name}).selection) == {}
    clinical.build_links(lab.mirror, lab.there("hosp", "ed"))
    whole = lab.mirror.read(layout.LINKS)
    for data in (b"no table", whole[: len(whole) // 2], whole[:-200] + whole[-100:]):
        damaged(MIMIC_CXR_JPG, layout.LINKS, data)
        with pytest.raises(InputError, match=r"linked: .*links.parquet cannot be read"):
            planned(lab, linked=["any"])
    with pytest.raises(InputError, match="linked: 'ward' is none of any, ed, admission, icu"):
        Request.from_params({"bucket": lab.name, "linked": ["ward"]})


# -- docs/training.md --------------------------------------------------------------------------------------------------

PAGE = (stack.ROOT / "docs/training.md").read_text()


def test_the_examples_of_the_page_run_as_written(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clinical.build_links(lab.mirror, lab.there("hosp", "ed"), 24)
    clinical.build_reports(lab.mirror, lab.below(MIMIC_CXR_2_1_0), MIMIC_CXR_2_1_0)
    manifest = io.BytesIO(lab.mirror.read(layout.MANIFEST))
    whole = pq.read_table(manifest).to_pandas().dropna(subset="dicom_id")
    ok = [Verified(path, 5, "", sha256) for path, sha256 in zip(whole["path"], whole["sha256"], strict=True)]
    index.update(lab.mirror, Verdict("content", ok, [], remembered=0, seconds=1, requests={}), manifest)
    connection = lab.s3.connection()
    for name, value in {
        "AWS_ACCESS_KEY_ID": connection["login"],
        "AWS_SECRET_ACCESS_KEY": connection["password"],
        "AWS_ENDPOINT_URL": lab.s3.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",  # rclone gives the whole file's to a range, S3 none
    }.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    blocks = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "torch" not in block]
    assert len(blocks) == 4
    for block in blocks:
        exec(block.replace("my-bucket", lab.name), names)

    truth = TRUTH.links[24]
    frontal = COHORT.images[COHORT.images["ViewPosition"].isin(["AP", "PA"])]
    in_icu = {s for s, link in truth.items() if link["icu_stay_id"] and link["match"] != "ambiguous"}
    assert len(names["icu"]) == frontal["study_id"].isin(in_icu).sum() > 0
    assert set(names["icu"]) == {"uri", "split", "age", "hours_since_icu_admission", "findings", "impression"}
    in_the_ed = {
        s
        for s, link in truth.items()
        if link["ed_stay_id"] and link["match"] != "ambiguous" and TRUTH.reports[s]["impression"]
    }
    assert set(names["in_the_ed"]["study_id"]) == in_the_ed
    assert in_the_ed
    assert "images of emergency patients with an impression" in capsys.readouterr().out
    raw, zeros, ones, ignore = (names[name] for name in ("labels", "zeros", "ones", "ignore"))
    assert (raw == -1).any(axis=None)
    assert raw.isna().any(axis=None)
    for made, becomes in ((zeros, 0), (ones, 1)):
        assert made.isna().equals(raw.isna()), "what is not mentioned stays empty"
        assert set(made.to_numpy()[raw.to_numpy() == -1]) == {becomes}
    assert names["counts"].equals(raw.notna() & (raw != -1))
    assert ignore[names["counts"]].equals(raw[names["counts"]])


def test_the_page_shows_each_status_as_it_is_read() -> None:
    (shown,) = re.findall(r"```text\n(--- .*?)```", PAGE, re.DOTALL)
    forms = dict(re.findall(r"--- (.*)\n((?:(?!---).*\n)*)", shown))
    assert tuple(forms) == reports.STATUSES
    assert {status: reports.parse(text).status for status, text in forms.items()} == {s: s for s in forms}
