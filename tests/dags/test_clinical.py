"""``mimic_cxr_clinical`` in a real Airflow: three projects from a real HTTP server, two tables in a real S3."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo import clinical as drawn
from demo import stack
from demo.lookalike import Lookalike
from physionet_mirror.dataset import MIMIC_CXR_2_1_0, MIMIC_CXR_JPG
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps.fetch_metadata import fetch_metadata
from tests.conftest import READER
from tests.dags.test_runs import leaks, rows, run, states
from tests.integration.test_clinical import TRUTH

DAG = "mimic_cxr_clinical"
ED = drawn.MIMIC_IV_ED


def without_rounding(links: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {
        study: {k: pytest.approx(v) if k.startswith("hours") and v is not None else v for k, v in link.items()}
        for study, link in links.items()
    }


def table(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    return {row["study_id"]: row for row in pq.read_table(folder / "_mirror" / name).to_pylist()}


def test_what_is_signed_is_built_the_rest_is_named_and_with_all_of_it_both_tables_equal_the_truth(
    airflow_home: Any, physionet: Lookalike, s3_server: stack.S3Server, bucket_name: str
) -> None:
    folder = Path(s3_server.folder) / bucket_name / MIMIC_CXR_JPG.name
    bucket = Bucket.open(s3_server.session(), bucket_name, MIMIC_CXR_JPG.name, endpoint_url=s3_server.endpoint)
    with closing(PhysioNet(physionet.url, *READER)) as source:
        fetch_metadata(source, bucket, MIMIC_CXR_JPG)

    # The agreement of one project is not signed.
    physionet.access.revoke(ED.name)
    code, first = run(airflow_home, DAG, bucket_name, window_hours=24)
    assert code == 0, first[-4000:]
    assert states(airflow_home, DAG) == {
        "mimic_cxr.check_access": ["success"],
        "mimic_cxr.fetch_files": ["success"],
        "mimiciv.check_access": ["success"],
        "mimiciv.fetch_files": ["success"],
        "mimic_iv_ed.check_access": ["skipped"],
        "mimic_iv_ed.fetch_files": ["skipped"],
        "build_reports": ["success"],
        "build_links": ["success"],
        "judge": ["success"],
    }
    assert f"Open {ED.page} logged in" in first
    assert not (folder.parents[1] / ED.name).exists()
    reports = table(folder, "reports.parquet")
    assert {s: {name: reports[s][name] for name in told} for s, told in TRUTH.reports.items()} == TRUTH.reports
    links = table(folder, "links.parquet")
    assert {study: link["hadm_id"] for study, link in links.items()} == {
        study: link["hadm_id"] for study, link in TRUTH.links[24].items()
    }
    assert all(link["ed_stay_id"] is None for link in links.values())

    # It is signed now: nothing but its own file is fetched.
    physionet.access.restore(ED.name)
    physionet.counters.reset()
    code, second = run(airflow_home, DAG, bucket_name, window_hours=24)
    assert code == 0, second[-4000:]
    fetched = {seen.path for seen in physionet.counters.seen if seen.method == "GET"}
    assert {path for path in fetched if not path.endswith("SHA256SUMS.txt")} == {f"{ED.name}/ed/edstays.csv.gz"}
    assert table(folder, "links.parquet") == without_rounding(dict(TRUTH.links[24]))
    assert table(folder, "reports.parquet") == reports

    # Each table has its event, with counts; no sentence of a report is anywhere but in the table and the archive.
    events = dict(
        rows(airflow_home, "select asset.uri, count(*) from asset_event join asset on asset.id = asset_id group by 1")
    )
    root = f"s3://{bucket_name}/{MIMIC_CXR_JPG.name}/_mirror"
    assert events == {f"{root}/reports.parquet": 2, f"{root}/links.parquet": 2}
    assert any(drawn.MARKER in (report["text"] or "") for report in reports.values())
    found = list(leaks(airflow_home, folder.parents[1], first + second, [drawn.MARKER, "FINAL REPORT", READER[1]]))
    assert [leak for leak in found if "reports.parquet" not in leak] == []
    assert not (folder / "_mirror/runs").exists()
    assert (folder.parents[1] / MIMIC_CXR_2_1_0.name / "mimic-cxr-reports.zip").exists()
