"""Whole runs from PhysioNet's access point in a real Airflow, without an account for PhysioNet's website."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo import stack, synthetic
from demo.access_point import AccessPoint, Identity

NAME = "mimic-cxr-jpg/2.1.0"
LISTS = "mimic-cxr/2.0.0"
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


def run(home: Any, bucket: str, env: dict[str, str], dag: str = "mimic_cxr_jpg", **conf: Any) -> tuple[int, str]:
    """Run the DAG without the connection physionet_default."""
    alone = {name: value for name, value in home.env.items() if name != "AIRFLOW_CONN_PHYSIONET_DEFAULT"}
    done = replace(home, env=alone).run("dags", "test", dag, "-c", json.dumps({"bucket": bucket, **conf}), **env)
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
    assert plan["estimate"]["bytes"] == plan["estimate"]["missing_bytes"]
    assert f"{sum(map(len, stored.values())):,} bytes as listed" in log
    many, out = ("copies under way", "") if mode == "copy" else ("reads under way", "the internet")
    assert re.search(rf"time .* {many}, ", log)
    assert f"at most 64 {many}." in log if mode == "copy" else f"at most 32 {many}." in log
    assert not re.search(r"\d connections", log)
    assert plan["estimate"]["transfer_to"] == report["transfer"]["out_to"] == out  # this S3 is not Amazon's
    assert (report["transfer"]["out_usd"] > 0) == bool(out)
    assert any(words in note for note in report["notes"])
    assert f"source: PhysioNet's access point, {words}, as " in log
    transferred = aws.counts["COPY", 200] if mode == "copy" else aws.counts["GET", 200]
    assert transferred >= len(stored)
    assert "reader-secret" not in log


@pytest.mark.slow
def test_tables_a_night_and_a_repair_come_from_the_access_point_alone(
    airflow_home: Any, aws: AccessPoint, tiny_dataset: Path, s3_server: stack.S3Server, bucket_name: str
) -> None:
    """The website's connection is not there at all."""
    env = {
        "AIRFLOW_CONN_AWS_DEFAULT": connection(aws, "AKIAREADER"),
        "AIRFLOW_CONN_PHYSIONET_S3": connection(
            aws, "AKIAREADER", physionet_access_point={NAME: POINT, LISTS: "mimic-cxr-v2-0-0-01"}
        ),
    }
    copied = "source: PhysioNet's access point, copied inside S3, as "
    code, log = run(airflow_home, bucket_name, env, dag="mimic_cxr_metadata")
    assert code == 0, log[-6000:]
    assert log.count(f"For the whole run, {copied}") == 2  # one for each project
    bucket = Path(s3_server.folder) / bucket_name
    for name in (f"{NAME}/mimic-cxr-2.0.0-split.csv.gz", f"{LISTS}/cxr-study-list.csv.gz"):
        assert (bucket / name).read_bytes() == (tiny_dataset / name).read_bytes()

    for copies in (15, 0):  # the second run of the same night finds all there
        aws.counts.clear()
        code, log = run(airflow_home, bucket_name, env, dag="mimic_cxr_jpg_backfill", slices=4)
        assert code == 0, log[-6000:]
        assert copied in log
        assert "15 of 15 selected images verified (checksum)" in log
        assert copies < aws.counts["COPY", 200] <= copies + 2  # and the trial, once or twice

    stored = digests(bucket / NAME)
    victim = next(iter(stored))
    (bucket / NAME / victim).write_bytes(b"damaged")
    airflow_home.run("dags", "unpause", "mimic_cxr_jpg", "-y")
    code, log = run(airflow_home, bucket_name, env, dag="mimic_cxr_audit", level="content", repair=True)
    assert code != 0
    assert "1 wrong bytes" in log
    with sqlite3.connect(airflow_home.path / "airflow.db") as database:
        ((conf,),) = database.execute("select conf from dag_run where triggered_by = 'OPERATOR'").fetchall()
    repair = json.loads(conf)
    assert repair["source"] == "auto"
    code, log = run(airflow_home, env=env, **repair)
    assert code == 0, log[-6000:]
    assert copied in log
    assert digests(bucket / NAME) == stored


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


PAGE = stack.ROOT / "docs" / "access-point.md"


def commands_on_the_demo() -> list[list[str]]:
    """The commands that the page gives for the demo, one list per block, without the leading `source`."""
    _, _, text = PAGE.read_text().partition("## On the demo")
    blocks = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
    return [[line for line in block.splitlines() if not line.startswith("source ")] for block in blocks]


def in_a_shell(command: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euc", command], env=env, cwd=stack.ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by path of the images in a folder."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.glob("files/**/*.jpg")
    }


@pytest.mark.slow
def test_the_pages_commands_bring_everything_by_copy_and_through_the_worker(
    airflow_home: Any, tiny_dataset: Path, s3_server: stack.S3Server, tmp_path: Path
) -> None:
    """As written on the page, except for the trigger: here the run is in the same process, without a scheduler."""
    s3_server.make_bucket("mimic-demo")
    with stack.access_point(tiny_dataset, s3_server, log=tmp_path / "access-point.log") as point:
        env = {**airflow_home.env, **point.variables(), "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(point.connection())}
        del env["AIRFLOW_CONN_PHYSIONET_DEFAULT"]
        for (*connect, trigger), way in zip(commands_on_the_demo(), ("copied", "through"), strict=True):
            log = in_a_shell("\n".join(connect), env)
            here = trigger.replace("airflow dags trigger mimic_cxr_jpg --conf", "airflow dags test mimic_cxr_jpg -c")
            assert here != trigger
            log += in_a_shell(here, env)
            assert f"source: PhysioNet's access point, {way} " in log
            assert "60 of 60 selected images verified (checksum)" in log
            assert digests(s3_server.folder / "mimic-demo" / way) == digests(tiny_dataset / NAME)
            assert not any(secret in log for _, secret in (point.copier, point.reader, point.worker))


@pytest.mark.slow
def test_the_pages_commands_bring_600_of_600_on_a_whole_airflow(tmp_path: Path) -> None:
    """Exactly as written, on the demo's stack: its dataset, its scheduler, its page."""
    dataset = tmp_path / "physionet"
    synthetic.write(dataset, synthetic.cohort(600))
    with (
        stack.s3_server(tmp_path / "s3") as s3,
        stack.physionet(dataset) as source,
        stack.access_point(dataset, s3) as point,
    ):
        s3.make_bucket("mimic-demo")
        connections = {**stack.connections(s3, source), "aws_default": point.connection()}
        with stack.airflow(tmp_path / "airflow", connections=connections, extra_env=point.variables()) as running:
            running.api.wait_for_dag("mimic_cxr_jpg")
            running.api.call("PATCH", "dags/mimic_cxr_jpg", {"is_paused": False}, update_mask="is_paused")
            for commands, way in zip(commands_on_the_demo(), ("copied", "through"), strict=True):
                in_a_shell("\n".join(commands), dict(running.env))
                runs = running.api.call("GET", "dags/mimic_cxr_jpg/dagRuns", order_by="-run_after")["dag_runs"]
                assert running.api.wait("mimic_cxr_jpg", runs[0]["dag_run_id"]) == "success"
                folder = s3.folder / "mimic-demo" / way
                assert len(digests(folder)) == 600
                assert digests(folder) == digests(dataset / NAME)
                [report] = [json.loads(file.read_text()) for file in folder.glob("_mirror/runs/*/report.json")]
                assert report["way"]["mode"] == {"copied": "copy", "through": "through"}[way]
