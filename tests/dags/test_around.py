"""What surrounds a run: other connections than the usual ones, messages to people, lineage. No DAG is edited for it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from demo import stack
from demo.lookalike import Lookalike
from tests.conftest import AirflowHome
from tests.smtp import mail_server

TAKEN = '{"conn_type": "generic"}'
HERE = "http://airflow.example.org/below"
AT_PHYSIONET = ("https://physionet.org", "mimic-cxr-jpg/2.1.0")


def test_a_question_is_told_a_broken_notifier_fails_nothing_and_openlineage_knows_what_was_moved(
    airflow_home: AirflowHome, bucket_name: str, physionet: Lookalike, s3_server: stack.S3Server, tmp_path: Path
) -> None:
    """With connections of other ids, where somebody else has taken the usual ones."""
    asked = airflow_home.answering("mimic_cxr_jpg", "Approve")
    conf = {"bucket": bucket_name, "sample_size": 12, "approve_above_gb": 1e-6}
    events = tmp_path / "lineage.jsonl"
    with mail_server() as mails:
        done = airflow_home.run(
            *("dags", "test", "mimic_cxr_jpg", "-c", json.dumps(conf)),
            PHYSIONET_CONN_ID="lab_physionet",
            MIMIC_CXR_AWS_CONN_ID="lab_s3",
            AIRFLOW_CONN_LAB_PHYSIONET=airflow_home.env["AIRFLOW_CONN_PHYSIONET_DEFAULT"],
            AIRFLOW_CONN_LAB_S3=airflow_home.env["AIRFLOW_CONN_AWS_DEFAULT"],
            AIRFLOW_CONN_PHYSIONET_DEFAULT=TAKEN,
            AIRFLOW_CONN_AWS_DEFAULT=TAKEN,
            PHYSIONET_NOTIFY="smtp://nobody_made_this?to=a@example.org smtp://lab_mail?to=lab@example.org",
            AIRFLOW_CONN_LAB_MAIL=json.dumps(mails.connection()),
            AIRFLOW__API__BASE_URL=HERE,
            AIRFLOW__OPENLINEAGE__TRANSPORT=json.dumps({"type": "file", "log_file_path": str(events), "append": True}),
        )
    assert asked.wait(30) == 0
    assert done.returncode == 0, done.stdout[-4000:]

    assert mails.subjects() == ["MIMIC-CXR-JPG asks for your approval"]
    (mail,) = mails.mails
    assert mail["To"] == "lab@example.org"
    assert f'<a href="{HERE}/required_actions">' in mails.text()
    assert "Images selected: 12 (" in mails.text()
    assert done.stdout.count("SmtpNotifier (connection nobody_made_this) could not tell") == 1

    pytest.importorskip("airflow.providers.openlineage")
    moved = lineage(events)
    mirror, tables = (f"s3://{bucket_name}", "mimic-cxr-jpg/2.1.0"), "mimic-cxr-jpg/2.1.0/_mirror"
    ((read, written),) = moved["fetch_metadata"]
    assert read == {AT_PHYSIONET}
    assert written.keys() >= {(mirror[0], f"{tables}/manifest.parquet"), (mirror[0], f"{mirror[1]}/SHA256SUMS.txt")}
    for read, written in moved["mirror_shard.stream"]:
        assert (read, written.keys()) == ({AT_PHYSIONET}, {mirror})
    figures = [written[mirror]["outputStatistics"] for _, written in moved["mirror_shard.stream"]]
    assert sum(figure["fileCount"] for figure in figures) == 12
    assert sum(figure["size"] for figure in figures) == sum(
        file.stat().st_size for file in (s3_server.folder / bucket_name).rglob("*.jpg")
    )
    ((read, written),) = moved["verify"]
    assert read == {mirror, (mirror[0], f"{tables}/manifest.parquet")}
    assert (mirror[0], f"{tables}/index.parquet") in written
    assert physionet.url not in events.read_text()


def lineage(file: Path) -> dict[str, list[tuple[set[tuple[str, str]], dict[tuple[str, str], dict[str, Any]]]]]:
    """By task, of each of its instances: what it read, and what it wrote with its facets."""
    found = defaultdict(list)
    for event in map(json.loads, file.read_text().splitlines()):
        if event["eventType"] == "COMPLETE" and "." in event["job"]["name"]:
            inputs = {(place["namespace"], place["name"]) for place in event["inputs"]}
            outputs = {(place["namespace"], place["name"]): place.get("outputFacets", {}) for place in event["outputs"]}
            found[event["job"]["name"].partition(".")[2]].append((inputs, outputs))
    return found


def test_a_variable_that_cannot_be_read_is_an_import_error_in_words(airflow_home: AirflowHome) -> None:
    listed = airflow_home.run("dags", "list-import-errors", "--local", PHYSIONET_NOTIFY="pigeon://roof")
    assert "pigeon is no kind of notifier" in " ".join(listed.stdout.split())
