"""Nights, tables alone, and copies inside S3, in a real Airflow, as the pages in docs/ tell a user to run them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from demo import stack
from demo.lookalike import Fault, Kind, Lookalike, Profile

DAG = "mimic_cxr_jpg_backfill"
PREFIX = "mimic-cxr-jpg/2.1.0"
LISTS = "mimic-cxr/2.0.0"
CONNECTIONS = 8
DAYS = [f"2025-01-{day:02d}" for day in range(1, 6)]


def stored(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("files/**/*.jpg")}


def fetched(physionet: Lookalike) -> list[str]:
    found = [seen.path for seen in physionet.counters.seen if seen.method == "GET" and seen.path.endswith(".jpg")]
    return sorted(path.removeprefix(f"{PREFIX}/") for path in found)


# -- a month in five days ----------------------------------------------------------------------------------------------


@pytest.fixture
def running(
    tmp_path: Path, physionet: Lookalike, s3_server: stack.S3Server, reader: tuple[str, str], bucket_name: str
) -> Iterator[stack.Airflow]:
    """An Airflow with a scheduler. The night that starts by itself after unpausing goes to its own bucket."""
    login, password = reader
    other = f"{bucket_name}-scheduled"
    s3_server.client().create_bucket(Bucket=other)
    connections = {
        "physionet_default": {"conn_type": "http", "host": physionet.url, "login": login, "password": password},
        "aws_default": s3_server.connection(),
    }
    with stack.airflow(
        tmp_path / "airflow", connections=connections, extra_env={"MIMIC_CXR_BUCKET": other}, timeout=300
    ) as airflow:
        airflow.api.wait_for_dag(DAG, timeout=300)
        yield airflow


class Backfills:
    """``airflow backfill create`` over the five days, and its runs."""

    def __init__(self, running: stack.Airflow, bucket: str) -> None:
        self._running, self._conf = running, json.dumps({"bucket": bucket, "slices": 5, "connections": CONNECTIONS})

    def airflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = stack.airflow_command(*arguments)
        return subprocess.run(
            command, env=dict(self._running.env), capture_output=True, text=True, timeout=240, check=False
        )

    def create(self, behaviour: str) -> dict[str, dict[str, Any]]:
        """Create a backfill once the scheduler has closed the one before; returns its runs by day when they have ended."""
        words = ["backfill", "create", "--dag-id", DAG, "--from-date", "2025-01-01", "--to-date", "2025-01-06"]
        words += ["--max-active-runs", "2", "--reprocess-behavior", behaviour, "--dag-run-conf", self._conf]
        deadline = time.monotonic() + 900
        while not all(
            found["completed_at"] for found in self._running.api.call("GET", "backfills", dag_id=DAG)["backfills"]
        ):
            assert time.monotonic() < deadline
            time.sleep(2)
        done = self.airflow(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        while True:
            runs = self.runs()
            if sorted(runs) == DAYS and all(run["state"] in ("success", "failed") for run in runs.values()):
                return runs
            assert time.monotonic() < deadline, {day: run["state"] for day, run in runs.items()}
            time.sleep(2)

    def runs(self) -> dict[str, dict[str, Any]]:
        found = self._running.api.call("GET", f"dags/{DAG}/dagRuns", limit=100)["dag_runs"]
        return {run["logical_date"][:10]: run for run in found if run["run_type"] == "backfill"}

    def note_of(self, run: dict[str, Any]) -> str:
        return self._running.api.log(DAG, run["dag_run_id"], "verify")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_five_nights_fill_everything_and_a_failed_one_is_repaired(
    running: stack.Airflow, physionet: Lookalike, tiny_dataset: Path, s3_server: stack.S3Server, bucket_name: str
) -> None:
    version = tiny_dataset / PREFIX
    published = stored(version)
    victim = sorted(published)[30]  # one of the third night's twelve
    folder = s3_server.folder / bucket_name / PREFIX
    physionet.profile = Profile(round_trip=0.05)
    physionet.faults.add(Fault(Kind.STATUS, paths=f"*{victim}", status=404, attempts=None))
    backfills = Backfills(running, bucket_name)

    running.api.call("PATCH", f"dags/{DAG}", {"is_paused": False}, update_mask="is_paused")

    nights = backfills.create("none")
    assert [nights[day]["state"] for day in DAYS] == ["success", "success", "failed", "success", "success"]
    assert set(published) - set(stored(folder)) == {victim}
    assert "1 missing" in backfills.note_of(nights[DAYS[2]])
    assert physionet.counters.peak_connections <= CONNECTIONS

    physionet.faults.clear()
    physionet.counters.reset()
    begun = {day: run["start_date"] for day, run in nights.items()}
    nights = backfills.create("none")
    assert {day: run["start_date"] for day, run in nights.items()} == begun
    assert fetched(physionet) == []

    nights = backfills.create("failed")
    assert [nights[day]["state"] for day in DAYS] == ["success"] * 5
    assert [day for day in DAYS if nights[day]["start_date"] != begun[day]] == [DAYS[2]]
    assert fetched(physionet) == [victim]
    assert stored(folder) == published

    physionet.counters.reset()
    begun = {day: run["start_date"] for day, run in nights.items()}
    nights = backfills.create("completed")
    assert [nights[day]["state"] for day in DAYS] == ["success"] * 5
    assert all(nights[day]["start_date"] != begun[day] for day in DAYS)
    assert fetched(physionet) == []
    assert stored(folder) == published
    assert physionet.counters.peak_connections <= CONNECTIONS


# -- nights by hand ----------------------------------------------------------------------------------------------------


def test_nights_by_hand_take_the_part_of_the_date_that_is_seen(
    running: stack.Airflow, s3_server: stack.S3Server, bucket_name: str
) -> None:
    running.api.call("PATCH", f"dags/{DAG}", {"is_paused": False}, update_mask="is_paused")
    conf = {"bucket": bucket_name, "slices": 30, "dry_run": True}
    nights = [
        ({"logical_date": None, "run_after": "2025-01-03T01:00:00Z"}, 3),  # before 02:00
        ({"logical_date": None, "run_after": "2025-01-03T23:59:00Z"}, 3),
        ({"logical_date": "2025-01-05T00:30:00Z"}, 5),
        ({"logical_date": "2025-02-01T12:00:00Z"}, 2),  # the 32nd day
    ]

    def trigger(number: int) -> str:
        api = stack.AirflowApi(running.url, running.user, running.password)
        # Below a prefix of its own: where two tasks that end together announce one new asset, Airflow fails one of them.
        body = {"conf": conf | {"prefix": f"night-{number}"}, **nights[number][0]}
        run_id: str = api.call("POST", f"dags/{DAG}/dagRuns", body)["dag_run_id"]
        return run_id

    with ThreadPoolExecutor(len(nights)) as people:  # several people at once: see `demo.sqlite`
        runs = list(people.map(trigger, range(len(nights))))
    for (dates, part), run_id in zip(nights, runs, strict=True):
        assert running.api.wait(DAG, run_id, timeout=300) == "success", dates
        assert f"Part {part} of 30, that of" in running.api.log(DAG, run_id, "plan"), dates


# -- the tables alone, and copies inside S3 ----------------------------------------------------------------------------


def test_a_missing_agreement_fails_its_own_dataset_and_leaves_the_other_alone(
    airflow_home: Any, physionet: Lookalike, s3_server: stack.S3Server, bucket_name: str, tiny_dataset: Path
) -> None:
    physionet.access.revoke(LISTS)
    done = airflow_home.run("dags", "test", "mimic_cxr_metadata", "-c", json.dumps({"bucket": bucket_name}))
    assert done.returncode != 0
    assert "AccessRefused" in done.stdout
    assert f"https://physionet.org/content/{LISTS}/" in done.stdout
    bucket = s3_server.folder / bucket_name
    assert not (bucket / LISTS).exists()
    for name in ("SHA256SUMS.txt", "mimic-cxr-2.0.0-split.csv.gz"):
        assert (bucket / PREFIX / name).read_bytes() == (tiny_dataset / PREFIX / name).read_bytes()
    assert (bucket / PREFIX / "_mirror/manifest.parquet").exists()
    assert fetched(physionet) == []

    physionet.access.restore(LISTS)
    physionet.counters.reset()
    done = airflow_home.run("dags", "test", "mimic_cxr_metadata", "-c", json.dumps({"bucket": bucket_name}))
    assert done.returncode == 0, done.stdout[-4000:]
    for name in ("cxr-record-list.csv.gz", "cxr-study-list.csv.gz"):
        assert (bucket / LISTS / name).read_bytes() == (tiny_dataset / LISTS / name).read_bytes()
    assert (bucket / LISTS / "_mirror/manifest.parquet").exists()
    again = {path for path in physionet.counters.by_path if path.startswith(f"{PREFIX}/")}
    assert again == {f"{PREFIX}/SHA256SUMS.txt"}  # the tables of the other project were there


def test_the_newer_lists_of_mimic_cxr_come_with_the_providers(
    airflow_home: Any, physionet: Lookalike, s3_server: stack.S3Server, bucket_name: str, tiny_dataset: Path
) -> None:
    newer = "mimic-cxr/2.1.0"
    conf = json.dumps({"bucket": bucket_name, "cxr_project": newer})
    done = airflow_home.run("dags", "test", "mimic_cxr_metadata", "-c", conf)
    assert done.returncode == 0, done.stdout[-4000:]
    bucket = s3_server.folder / bucket_name
    for name in ("cxr-record-list.csv.gz", "cxr-study-list.csv.gz", "cxr-provider-list.csv.gz"):
        assert (bucket / newer / name).read_bytes() == (tiny_dataset / newer / name).read_bytes()
    assert not (bucket / LISTS).exists()
    assert not [seen for seen in physionet.counters.seen if seen.path.endswith((".dcm", ".jpg"))]

    done = airflow_home.run(
        "dags", "test", "mimic_cxr_metadata", "-c", json.dumps({"bucket": bucket_name, "cxr_project": "mimic-cxr/3"})
    )
    assert done.returncode != 0
    assert "is not one of" in done.stdout


def test_images_are_copied_inside_s3(
    airflow_home: Any, physionet: Lookalike, s3_server: stack.S3Server, bucket_name: str, tiny_dataset: Path
) -> None:
    origin = f"{bucket_name}-source"
    client = s3_server.client()
    client.create_bucket(Bucket=origin)
    version = tiny_dataset / PREFIX
    published = stored(version)
    for file in version.rglob("*"):  # tables and lists are read there too
        if file.is_file():
            client.put_object(Bucket=origin, Key=f"{PREFIX}/{file.relative_to(version)}", Body=file.read_bytes())
    connection = s3_server.connection()
    connection["extra"] = {**connection["extra"], "physionet_access_point": origin}
    done = airflow_home.run(
        "dags",
        "test",
        "mimic_cxr_jpg",
        "-c",
        json.dumps({"bucket": bucket_name, "select": "all", "source": "s3"}),
        AIRFLOW_CONN_AWS_DEFAULT=json.dumps(connection),
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "60 of 60 selected images verified (checksum)" in done.stdout
    assert stored(s3_server.folder / bucket_name / PREFIX) == published
    assert fetched(physionet) == []
