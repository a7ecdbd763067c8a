"""Whole runs from PhysioNet's access point, without any account for its website, in a real Airflow."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import stack
from demo.access_point import AccessPoint, Identity

NAME = "mimic-cxr-jpg/2.1.0"
POINT = "mimic-cxr-jpg-v2-1-0-01"


@pytest.fixture
def aws(tiny_dataset: Path, s3_server: stack.S3Server) -> Iterator[AccessPoint]:
    identities = {
        "AKIAREADER": Identity("reader", "reader-secret"),
        "ASIAROLE": Identity("worker", "role-secret", "role"),
    }
    upstream = (s3_server.endpoint, s3_server.access_key, s3_server.secret_key)
    with AccessPoint(tiny_dataset, upstream=upstream, identities=identities) as server:
        yield server


def connection(aws: AccessPoint, key: str, **extra: Any) -> str:
    return json.dumps(
        {
            "conn_type": "aws",
            "login": key,
            "password": aws.identities[key].secret,
            "extra": {"region_name": "us-east-1", "endpoint_url": aws.endpoint, **extra},
        }
    )


def run(home: Any, bucket: str, env: dict[str, str], **conf: Any) -> tuple[int, str]:
    """Without the connection physionet_default."""
    alone = {name: value for name, value in home.env.items() if name != "AIRFLOW_CONN_PHYSIONET_DEFAULT"}
    done = type(home)(home.path, alone).run(
        "dags", "test", "mimic_cxr_jpg", "-c", json.dumps({"bucket": bucket, **conf}), **env
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("mode", ["copy", "through"])
def test_everything_comes_from_the_access_point_alone(
    airflow_home: Any,
    aws: AccessPoint,
    tiny_dataset: Path,
    s3_server: stack.S3Server,
    bucket_name: str,
    mode: str,
) -> None:
    writer = "AKIAREADER" if mode == "copy" else "ASIAROLE"
    env = {
        "AIRFLOW_CONN_AWS_DEFAULT": connection(aws, writer),
        "AIRFLOW_CONN_PHYSIONET_S3": connection(aws, "AKIAREADER", physionet_access_point={NAME: POINT}),
    }
    if mode == "through":  # PhysioNet's user may not write the bucket: it has no right there
        aws.read_only.add("AKIAREADER")
    code, log = run(airflow_home, bucket_name, env, select="all")
    assert code == 0, log[-6000:]
    folder = Path(s3_server.folder) / bucket_name / NAME
    stored = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.glob("files/**/*.jpg")}
    published = [line.split(" ", 1) for line in (tiny_dataset / NAME / "SHA256SUMS.txt").read_text().splitlines()]
    expected = {path: digest for digest, path in published if path.endswith(".jpg")}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in stored.items()} == expected

    [plan] = [json.loads(file.read_text()) for file in folder.glob("_mirror/runs/*/plan.json")]
    [report] = [json.loads(file.read_text()) for file in folder.glob("_mirror/runs/*/report.json")]
    words = "copied inside S3" if mode == "copy" else "through the worker"
    assert plan["way"]["mode"] == mode
    assert report["way"] == plan["way"]
    assert plan["estimate"]["missing_bytes"] == sum(map(len, stored.values()))  # to the byte
    assert any(words in note for note in report["notes"])
    assert f"source: PhysioNet's access point, {words}, as " in log
    transferred = aws.counts["COPY", 200] if mode == "copy" else aws.counts["GET", 200]
    assert transferred >= len(stored)
    assert "reader-secret" not in log


def test_a_source_that_is_not_open_is_fatal_for_s3_and_named_by_auto(
    airflow_home: Any, aws: AccessPoint, s3_server: stack.S3Server, bucket_name: str
) -> None:
    sts = {"service_config": {"sts": {"endpoint_url": aws.endpoint}}}
    env = {"AIRFLOW_CONN_PHYSIONET_S3": connection(aws, "ASIAROLE", physionet_access_point=POINT, **sts)}
    code, log = run(airflow_home, bucket_name, env, sample_size=5, source="s3")
    assert code != 0
    assert "assumed-role/worker/session, whose keys are in the connection physionet_s3" in log
    assert "That is a role" in log
    with sqlite3.connect(airflow_home.path / "airflow.db") as database:
        states = dict(database.execute("select task_id, state from task_instance").fetchall())
    assert states["check_access"] == "failed"

    done = airflow_home.run(
        "dags", "test", "mimic_cxr_jpg", "-c", json.dumps({"bucket": bucket_name, "sample_size": 5}), **env
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "source: PhysioNet's website, as the access point is not open: " in done.stdout
