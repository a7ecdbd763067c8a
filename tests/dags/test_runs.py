"""Whole runs, in a real Airflow, against a real HTTP server and a real S3 process."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import stack
from demo.lookalike import Lookalike
from physionet_airflow.compat import AIRFLOW

PREFIX = "mimic-cxr-jpg/2.1.0"


@pytest.fixture
def folder(s3_server: stack.S3Server, bucket_name: str) -> Path:
    """The folder with the objects below the prefix."""
    return Path(s3_server.folder) / bucket_name / PREFIX


def run(home: Any, dag_id: str, bucket: str, *, env: dict[str, str] | None = None, **conf: Any) -> tuple[int, str]:
    done = home.run("dags", "test", dag_id, "-c", json.dumps({"bucket": bucket, **conf}), **(env or {}))
    return done.returncode, done.stdout


def rows(home: Any, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(home.path / "airflow.db") as connection:
        return connection.execute(query).fetchall()


def states(home: Any, dag_id: str) -> dict[str, list[str]]:
    """Task id to the states of its instances in the latest run."""
    found: dict[str, list[str]] = {}
    for task, state in rows(
        home,
        "select task_id, state from task_instance where run_id = (select run_id from dag_run where "
        f"dag_id = '{dag_id}' order by id desc limit 1) and dag_id = '{dag_id}' order by map_index",
    ):
        found.setdefault(task, []).append(state)
    return found


def images(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("files/**/*.jpg")}


def fetched(physionet: Lookalike) -> list[str]:
    """Images requested with GET since the counters were reset (a handshake is a HEAD)."""
    return [seen.path for seen in physionet.counters.seen if seen.method == "GET" and seen.path.endswith(".jpg")]


def leaks(home: Any, folder: Path, output: str, secrets: list[str]) -> Iterator[str]:
    places = {"the log": output, **{str(f): f.read_text(errors="replace") for f in home.path.glob("logs/**/*.log")}}
    places |= {
        str(f): f.read_bytes().decode("latin-1") for f in folder.rglob("*") if f.is_file() and f.suffix != ".jpg"
    }
    for table in ("xcom", "rendered_task_instance_fields", "dag_run", "asset_event", "serialized_dag", "log"):
        places[table] = repr(rows(home, f"select * from {table}"))
    for secret in secrets:
        yield from (f"{secret[:4]}… in {place}" for place, text in places.items() if secret in text)


def test_runs_complete_skip_and_grow(
    airflow_home: Any,
    physionet: Lookalike,
    tiny_dataset: Path,
    s3_server: stack.S3Server,
    bucket_name: str,
    folder: Path,
    reader: tuple[str, str],
) -> None:
    code, first = run(airflow_home, "mimic_cxr_jpg", bucket_name, sample_size=30)
    assert code == 0, first[-4000:]
    stored = images(folder)
    assert len(stored) == len(fetched(physionet)) == 30
    assert all((tiny_dataset / PREFIX / path).read_bytes() == data for path, data in stored.items())
    assert "30 of 30 selected images verified (checksum)" in first
    assert "source: PhysioNet's website, as no AWS connection physionet_s3 opens PhysioNet's access point" in first
    assert "out of us-east-1" not in first
    names = rows(airflow_home, "select rendered_map_index from task_instance where task_id = 'mirror_shard.stream'")
    assert all(re.fullmatch(r"p\d+( … p\d+)?, \d+ images?", name) for (name,) in names)

    physionet.counters.reset()
    code, second = run(airflow_home, "mimic_cxr_jpg", bucket_name, sample_size=30)
    assert code == 0, second[-4000:]
    assert fetched(physionet) == []
    assert set(physionet.counters.by_path) == {f"{PREFIX}/SHA256SUMS.txt"}
    assert set(states(airflow_home, "mimic_cxr_jpg")["mirror_shard.stream"]) == {"skipped"}
    assert states(airflow_home, "mimic_cxr_jpg")["verify"] == ["success"]

    physionet.counters.reset()
    code, third = run(airflow_home, "mimic_cxr_jpg", bucket_name, sample_size=45, verify="content")
    assert code == 0, third[-4000:]
    assert len(fetched(physionet)) == 15
    assert stored.items() <= images(folder).items()

    login, password = reader
    connection = s3_server.connection()
    secrets = [
        password,
        base64.b64encode(f"{login}:{password}".encode()).decode(),
        connection["password"],
        "sessionid=",
    ]
    assert list(leaks(airflow_home, folder, first + second + third, secrets)) == []
    # The figures are on the asset event of s3://bucket/prefix.
    events = rows(
        airflow_home,
        f"select e.extra from asset_event e join asset a on a.id = e.asset_id where a.uri = 's3://{bucket_name}/{PREFIX}' "
        "order by e.id",
    )
    assert [json.loads(extra)["verified"] for (extra,) in events] == [30, 30, 45]


def test_a_flipped_byte_is_found_repaired_and_the_run_can_be_deleted(
    airflow_home: Any, bucket_name: str, folder: Path, tiny_dataset: Path, s3_server: stack.S3Server
) -> None:
    code, log = run(airflow_home, "mimic_cxr_jpg", bucket_name, sample_size=6, connections=5, approve_above_gb=7)
    assert code == 0, log[-4000:]
    victim, lost, *_ = sorted(images(folder))
    data = bytearray((folder / victim).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / victim).write_bytes(data)
    s3_server.client().delete_object(Bucket=bucket_name, Key=f"{PREFIX}/{lost}")

    if AIRFLOW >= (3, 2):  # 3.1 does not tell a task which DAGs are paused
        airflow_home.run("dags", "pause", "mimic_cxr_jpg", "-y")
        code, log = run(airflow_home, "mimic_cxr_audit", bucket_name, level="content", repair=True)
        assert code != 0
        assert states(airflow_home, "mimic_cxr_audit") == {
            "audit": ["success"],
            "repair": ["failed"],
            "judge": ["failed"],
        }
        assert (
            log.count("The repair was not triggered, because mimic_cxr_jpg is paused.") >= 2
        )  # by repair and by judge
        assert "was triggered, which" not in log
        airflow_home.run("dags", "unpause", "mimic_cxr_jpg", "-y")

    code, log = run(airflow_home, "mimic_cxr_audit", bucket_name, level="content", repair=True)
    assert code != 0
    assert re.search(r"The run repair__\S+ of mimic_cxr_jpg was triggered, which fetches them again", log)
    assert "1 missing" in log
    assert "1 wrong bytes" in log
    assert victim in log
    assert states(airflow_home, "mimic_cxr_audit") == {"audit": ["success"], "repair": ["success"], "judge": ["failed"]}
    ((conf,),) = rows(
        airflow_home, "select conf from dag_run where dag_id = 'mimic_cxr_jpg' and triggered_by = 'OPERATOR'"
    )
    repair = json.loads(conf)
    assert (repair["select"], repair["verify"]) == ("all", "content")
    assert (repair["connections"], repair["approve_above_gb"]) == (5, 7), "as in the run before"

    # Run its tasks again before the repair has ended: they trigger no second one, and say so.
    ((audit,),) = rows(
        airflow_home, "select run_id from dag_run where dag_id = 'mimic_cxr_audit' order by id desc limit 1"
    )
    again = [airflow_home.run("tasks", "test", "mimic_cxr_audit", task, audit).stdout for task in ("repair", "judge")]
    assert re.search(r"The run repair__\S+ of mimic_cxr_jpg is still fetching what was found", again[0])
    assert re.search(
        r"The run repair__\S+ of mimic_cxr_jpg, triggered before by this audit, is still fetching", again[1]
    )
    assert rows(airflow_home, "select count(*) from dag_run where triggered_by = 'OPERATOR'") == [(1,)]

    code, log = run(airflow_home, "mimic_cxr_jpg", **repair)
    assert code == 0, log[-4000:]
    assert "2 of 2 selected images verified" in log
    assert (folder / victim).read_bytes() == (tiny_dataset / PREFIX / victim).read_bytes()
    code, log = run(airflow_home, "mimic_cxr_audit", bucket_name, level="content")
    assert code == 0, log[-4000:]
    assert "All 6 images are what PhysioNet publishes" in log


@pytest.mark.parametrize(
    ("conf", "env", "task", "text"),
    [
        ({"views": ["SIDEWAYS"]}, {}, "plan", "views: the dataset has no 'SIDEWAYS'"),
        ({"sampel_size": 5}, {}, "check_access", "Did you mean `sample_size`?"),
        ({"slices": 5}, {}, "check_access", "slices: this DAG has no such param."),
        ({"bucket": "no-such-bucket-here"}, {}, "check_access", "no-such-bucket-here does not exist"),
        ({}, {"password": "wrong"}, "check_access", "PhysioNet refused the user name or password"),
        ({}, {"password": ""}, "check_access", "has no password"),
    ],
    ids=["unknown view", "misspelt param", "param of another DAG", "missing bucket", "wrong password", "no password"],
)
def test_bad_input_fails_at_once_says_why_and_writes_no_image(
    airflow_home: Any,
    bucket_name: str,
    folder: Path,
    conf: dict[str, Any],
    env: dict[str, str],
    task: str,
    text: str,
) -> None:
    name = "AIRFLOW_CONN_PHYSIONET_DEFAULT"
    changed = {name: json.dumps(json.loads(airflow_home.env[name]) | env)} if env else {}
    code, log = run(airflow_home, "mimic_cxr_jpg", **{"bucket": bucket_name, **conf}, env=changed)
    assert code != 0
    assert text in log
    assert states(airflow_home, "mimic_cxr_jpg")[task] == ["failed"]
    assert states(airflow_home, "mimic_cxr_jpg")["verify"] == ["failed"]
    assert f"the task {task} failed" in log
    assert images(folder) == {}


@pytest.mark.parametrize(
    ("dag_id", "by_hand", "ends"),
    [
        ("mimic_cxr_jpg", "plan", {"approve": "plan", "verify": "plan"}),
        ("mimic_cxr_jpg", r"mirror_shard\.missing", {"mirror_shard.stream": "missing?", "verify": ""}),
        ("mimic_cxr_cleanup", "list_objects", {"approve": "list_objects"}),
        ("mimic_cxr_audit", "audit", {"repair": "audit", "judge": "audit"}),
    ],
)
def test_a_task_marked_as_success_by_hand_ends_what_needs_its_result_at_once_and_in_words(
    airflow_home: Any, bucket_name: str, dag_id: str, by_hand: str, ends: dict[str, str]
) -> None:
    conf = {"bucket": bucket_name} | ({"sample_size": 5, "shard_size": 5} if dag_id == "mimic_cxr_jpg" else {})
    done = airflow_home.run(
        "dags", "test", dag_id, "-c", json.dumps(conf), "--mark-success-pattern", by_hand, timeout=120
    )
    assert done.returncode != 0
    assert "TypeError" not in done.stdout
    after = states(airflow_home, dag_id)
    for task, cause in ends.items():
        assert set(after[task]) == {"failed"}, after
        assert (
            not cause or f"task {cause} of this run left no result" in done.stdout or "There is no audit" in done.stdout
        )
    assert rows(airflow_home, "select max(try_number) from task_instance") == [(1,)]


def test_what_airflow_can_map_bounds_the_number_of_shards(airflow_home: Any, bucket_name: str, folder: Path) -> None:
    setting = {"AIRFLOW__CORE__MAX_MAP_LENGTH": "3"}
    code, log = run(airflow_home, "mimic_cxr_jpg", bucket_name, sample_size=30, shard_size=5, env=setting)
    assert code != 0
    assert "shard_size: 5 cuts 30 images into 6 shards, and this Airflow maps at most 3" in log
    assert states(airflow_home, "mimic_cxr_jpg")["plan"] == ["failed"]

    code, log = run(airflow_home, "mimic_cxr_jpg", bucket_name, sample_size=30, env=setting)
    assert code == 0, log[-4000:]
    assert len(images(folder)) == 30
    assert len(states(airflow_home, "mimic_cxr_jpg")["mirror_shard.stream"]) == 3


def test_a_dry_run_plans_and_fetches_nothing(airflow_home: Any, bucket_name: str, folder: Path) -> None:
    code, log = run(airflow_home, "mimic_cxr_jpg", bucket_name, select="all", dry_run=True, approve_above_gb=0.001)
    assert code == 0, log[-4000:]
    assert "images selected" in log
    assert states(airflow_home, "mimic_cxr_jpg")["mirror_shard.stream"] == ["skipped"]
    assert images(folder) == {}


def test_a_refused_plan_ends_skipped_and_green(airflow_home: Any, bucket_name: str, folder: Path) -> None:
    with airflow_home.answering("mimic_cxr_jpg", "Reject") as person:
        code, log = run(airflow_home, "mimic_cxr_jpg", bucket_name, sample_size=30, approve_above_gb=0.001)
        page, _ = person.communicate(timeout=60)
    assert code == 0, log[-4000:] + page
    assert states(airflow_home, "mimic_cxr_jpg") == {
        "check_access": ["success"],
        "fetch_metadata": ["success"],
        "plan": ["success"],
        "approve": ["success"],
        "mirror_shard.missing": ["skipped"],
        "mirror_shard.stream": ["skipped"],
        "verify": ["skipped"],
    }
    assert images(folder) == {}
    for shown in ("Images selected | 30", "GB", "Time |", "Storage a month, STANDARD"):
        assert shown in page


def test_cleanup_deletes_what_was_approved_and_nothing_else(
    airflow_home: Any, bucket_name: str, folder: Path, s3_server: stack.S3Server
) -> None:
    beside = f"{PREFIX}-of-somebody-else/files/p10/kept.jpg"
    s3_server.client().put_object(Bucket=bucket_name, Key=beside, Body=b"not ours")
    code, log = run(airflow_home, "mimic_cxr_jpg", bucket_name, sample_size=6)
    assert code == 0, log[-4000:]
    code, log = run(airflow_home, "mimic_cxr_cleanup", bucket_name, what="prefix", dry_run=True)
    assert code == 0, log[-4000:]
    assert "'images': 6" in log
    assert len(images(folder)) == 6

    with airflow_home.answering("mimic_cxr_cleanup", "Approve") as person:
        code, log = run(airflow_home, "mimic_cxr_cleanup", bucket_name, what="prefix")
        page, _ = person.communicate(timeout=60)
    assert code == 0, log[-4000:] + page
    assert "will be deleted" in page
    assert {file.relative_to(folder).parts[:2] for file in folder.rglob("*") if file.is_file()} == {("_mirror", "runs")}
    assert list(folder.rglob("report.html"))
    assert (s3_server.folder / bucket_name / beside).read_bytes() == b"not ours"
