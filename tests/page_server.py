"""Airflow's API server with the page, and a database and a bucket with the contents that a long run leaves there.

Nothing is scheduled here: the runs and their task instances are written into the database as Airflow would.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from demo import stack
from physionet_mirror.layout import INDEX, MANIFEST, RunLayout, TrainingLayout, verified
from physionet_mirror.records import Shard
from tests.unit.test_overview_tables import quiet_bomb

BUCKET, PREFIX = "lab-bucket", "mimic-cxr-jpg/2.1.0"
SHARDS, A_SHARD = 400, 900
LIVE, DONE, ELSEWHERE = "manual__2026-03-01T22:00:00+00:00", "manual__2026-02-27T21:00:00+00:00", "audit-1"
BOMB, DAMAGED, NO_INDEX = "a-bomb", "damaged-manifest", "damaged-index"
"""Prefixes where one of our files was replaced by somebody else's; each had one run."""
PROJECT = "a-project/1.0"
"""A project without radiographs, mirrored below its own name."""
TABLES, TABLES_RUN = "mimiciv/3.1", "of-tables"
"""Another one, of whose folders the first is mirrored, and the run that did so."""
NIGHTS = 250
"""Nightly runs since the one to that project."""
USERS = {"admin": "admin", "viewer": "viewer", "stranger": ""}
"""Role by user name; a user without a role may log in but read nothing."""


@dataclass(frozen=True)
class PageServer:
    """The running server; ``as_user`` gives a session that is logged in by a cookie, as a browser is."""

    url: str
    home: Path
    s3: stack.S3Server
    service: stack.Service

    def password(self, user: str) -> str:
        return json.loads((self.home / "passwords.json").read_text())[user]

    def as_user(self, user: str | None) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        if user:
            answer = session.post(f"{self.url}/auth/token", json={"username": user, "password": self.password(user)})
            answer.raise_for_status()
            session.cookies.set("_token", answer.json()["access_token"])
        return session

    def run_url(self, run_id: str = LIVE, view: str = "", dag_id: str = "mimic_cxr_jpg") -> str:
        return f"{self.url}/physionet/dags/{dag_id}/runs/{quote(run_id, safe='')}{'/' + view if view else ''}"


@contextmanager
def page_server(folder: Path, *, spoilt: bool = True) -> Iterator[PageServer]:
    """Run the server until the block ends.

    Args:
        folder: Receives the database and the bucket.
        spoilt: Whether runs went to places where somebody else's files lie, and to a bucket that is not there, and
            hundreds of nightly runs have come since.
    """
    home = folder / "airflow"
    with stack.s3_server(folder / "s3") as s3:
        fill_bucket(s3)
        port = stack.free_port()
        url = f"http://127.0.0.1:{port}"
        connections = {"aws_default": s3.connection()}
        users = ",".join(f"{name}:{role}" for name, role in USERS.items())
        env = stack.airflow_environment(home, connections=connections) | {
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": users,
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "MIMIC_CXR_BUCKET": BUCKET,
            "PAGE_SERVER_SPOILT": "yes" if spoilt else "",
        }
        stack.migrate(home, env)
        for name, command in {
            "reserialize": stack.airflow_command("dags", "reserialize"),
            "seed": [sys.executable, "-m", "tests.page_server"],
        }.items():
            with stack.Service(name, command, log=home / f"{name}.log", env=env) as service:
                service.wait()
        command = stack.airflow_command("api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
        with stack.Service("Airflow's api-server", command, log=home / "api-server.log", env=env) as service:
            service.wait_for("Uvicorn running on", timeout=180)
            yield PageServer(url, home, s3, service)


# -- the bucket --------------------------------------------------------------------------------------------------------


def fill_bucket(s3: stack.S3Server) -> None:
    """Write a manifest, an index of a third of it, and two runs: an active one of 400 shards, and one that has ended."""
    root = s3.make_bucket(BUCKET) / PREFIX

    def write(path: str, content: bytes | dict[str, Any]) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    manifest, index = _tables()
    for prefix, path, content in (
        (DAMAGED, MANIFEST, b"PAR1" + b"x" * 5000 + b"PAR1"),
        (NO_INDEX, MANIFEST, manifest),
        (NO_INDEX, INDEX, b"no index"),
    ):
        write(f"../../{prefix}/{path}", content)
    write(f"../../{PROJECT}/{MANIFEST}", _any_files(PROJECT, [f"p{n // 10}/{n}.dat" for n in range(30)]))
    paths = [*(f"hosp/table-{n:02}.csv.gz" for n in range(22)), *(f"icu/table-{n:02}.csv.gz" for n in range(17))]
    write(f"../../{TABLES}/{MANIFEST}", _any_files(TABLES, [*paths, "CHANGELOG.txt", "LICENSE.txt"]))
    write(f"../../{TABLES}/{INDEX}", _index(paths[:22], [240_000_000 + n for n in range(22)]))
    write(f"../../{TABLES}/{verified('hosp')}", b"x")
    estimate = {"images": 41, "bytes": 10_600_000_000, "missing": 41, "missing_bytes": 10_600_000_000}
    estimate |= {"noun": "file", "sizes": "each file's size, as PhysioNet's website gives it"}
    whole = {"request": {"bucket": BUCKET, "project": TABLES}, "estimate": estimate}
    write(f"../../{TABLES}/{RunLayout(TABLES_RUN, 'physionet_project').plan}", plan(1) | whole)
    bomb = root.parent.parent / BOMB / MANIFEST
    bomb.parent.mkdir(parents=True)
    quiet_bomb(bomb)
    write(MANIFEST, manifest)
    write(INDEX, index)
    for group in range(10, 15):
        write(verified(f"p{group}"), b"x")
    live = RunLayout(LIVE)
    write(live.plan, plan())
    for number in range(SHARDS):
        if result := result_of(number):
            write(live.result(number), result)
    done = RunLayout(DONE)
    write(done.plan, plan(4))
    write(done.report_json, report())
    write(TrainingLayout("512").card, training_set())
    write(TrainingLayout("512-pa-test").card, training_set() | filtered(manifest, index))
    write(
        done.report_html, b'<!doctype html><title>Report</title><p>All is well.</p><img src="data:image/png;base64,">'
    )
    write(done.failed_images, b"files/p10/a.jpg\tnot found\n")
    write("secret.txt", b"not for the page")


def go_on(s3: stack.S3Server) -> None:
    """Let the active shards publish again, as they do every few seconds."""
    for number in range(SHARDS):
        if state_of(number)[1] == "running":
            file = s3.folder / BUCKET / PREFIX / RunLayout(LIVE).result(number)
            file.write_text(json.dumps(result_of(number)))


def plan(shards: int = SHARDS) -> dict[str, Any]:
    """plan.json as the plan task writes it."""
    images = shards * A_SHARD
    ends = [(f"p{10 + 10 * n // shards}", f"p{10 + (10 * n + 5) // shards}") for n in range(shards)]
    return {
        "schema": "physionet-mirror/plan/1",
        "run_id": LIVE,
        "request": {"bucket": BUCKET, "prefix": PREFIX, "connections": 8},
        "selection": {"matched": images, "images": images, "notes": []},
        "shards": [
            Shard(n, A_SHARD, f"files/{first}/a/a", f"files/{last}/z/z", RunLayout(LIVE).shard(n), A_SHARD).to_json()
            for n, (first, last) in enumerate(ends)
        ],
        "estimate": {"missing": images, "missing_bytes": images * 1_450_000},
    }


def state_of(number: int) -> tuple[str | None, str | None]:
    """The states of a shard's two tasks in the active run."""
    if number < 90:
        return "skipped", "skipped"
    if number in (133, 201):
        return "success", "failed"
    if number < 246:
        return "success", "success"
    if number == 246:
        return "success", "up_for_retry"
    return "success", "running" if number < 251 else ("scheduled" if number < 330 else None)


def result_of(number: int) -> dict[str, Any] | None:
    """results/NNNN.json of the active run; None for a shard that was complete or has not begun."""
    missing, stream = state_of(number)
    if missing == "skipped" or stream in ("scheduled", None):
        return None
    rng = random.Random(number)
    began = max(number - 90, 0) // 4 * 310.0
    stored = {"success": A_SHARD, "failed": 640, "up_for_retry": 210}.get(stream, 130 + 180 * (number - 247))
    failed = [
        {"path": f"files/p13/p1300{number:04}/s5{number:07}/{n:08x}.jpg", "reason": reason, "detail": detail}
        for n, reason, detail in [
            (1, "not found", "404: PhysioNet lists this file in its checksums but does not serve it."),
            (2, "stalled", "No byte for 60 s in each of three attempts."),
        ]
        if number % 37 == n or number in (133, 201)
    ]
    points, seconds = [], 0.0
    while seconds < min(300.0, stored / 3):
        seconds += 10.0
        images = round(30 * (0.85 + 0.3 * rng.random()))
        points.append([seconds, images, images * 1_450_000, 2])
    start = datetime.now(UTC) - timedelta(seconds=310.0 * 40 - began) if stream != "running" else None
    began_at = start or datetime.now(UTC) - timedelta(seconds=seconds)
    return {
        "shard": number,
        "state": {"success": "done", "failed": "failed", "up_for_retry": "failed"}.get(stream, "running"),
        "try_number": 1,
        "started": began_at.isoformat(),
        "seconds": seconds,
        "images": A_SHARD,
        "todo": A_SHARD,
        "stored": stored - len(failed),
        "bytes": stored * 1_450_000,
        "failed": failed,
        "connections": 2,
        "retries": rng.randrange(3),
        "handshakes": 1,
        "faults": {},
        "series": points,
    }


def training_set() -> dict[str, Any]:
    """The dataset.json of a training set, made when the mirror had three images less."""
    return {
        "schema": "physionet-mirror/training-set/1",
        "name": "512",
        "created": (datetime.now(UTC) - timedelta(hours=5, minutes=1)).isoformat(),
        "images": 4535,
        "bytes": 340_000_000,
        "selected": 4536,
        "indexed": 4536,
        "splits": [{"name": "train", "images": 4400}, {"name": "test", "images": 135}],
        "tars": [{"name": "test-000000"}, {"name": "train-000000"}],
        "left_out": [{"path": "files/p10/p10000032/s50414267/a.jpg", "reason": "it is no image"}],
    }


def filtered(manifest: bytes, index: bytes) -> dict[str, Any]:
    """What differs in a set of the PA images of one split, made when one of them was not there."""
    import pandas as pd

    of = pd.read_parquet(BytesIO(manifest)).merge(pd.read_parquet(BytesIO(index)), on="path")
    images = int(((of["view"] == "PA") & (of["split"] == "test")).sum()) - 1
    return {
        "name": "512-pa-test",
        "images": images,
        "selected": images,
        "splits": [{"name": "test", "images": images}],
        "left_out": [],
        "params": {"size": 512, "views": ["PA"], "splits": ["test"]},
    }


def report() -> dict[str, Any]:
    """The part of report.json that the page reads."""
    return {
        "run": {"id": DONE, "seconds": 4321.0},
        "result": {"passed": True, "level": "checksum", "selected": 3600, "verified": 3600},
        "transfer": {"images": 3600, "bytes": 3600 * 1_450_000, "seconds": 4000.0, "connections": 7.5},
        "params": {"connections": 8},
    }


def _tables() -> tuple[bytes, bytes]:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from physionet_mirror import manifest
    from physionet_mirror.dataset import LABELS, MIMIC_CXR_JPG

    rng, count = np.random.default_rng(7), 12_000
    subject = np.sort(rng.integers(10_000_000, 19_999_999, count))
    dicom = [f"{n:08x}-{n:08x}-00000000-00000000-00000000" for n in range(count)]
    often = [0.18, 0.2, 0.05, 0.12, 0.03, 0.02, 0.03, 0.23, 0.34, 0.24, 0.01, 0.08, 0.05, 0.3]
    labels = {}
    for label, rate in zip(LABELS, often, strict=True):
        drawn = rng.choice([1.0, 0.0, -1.0, np.nan], count, p=[rate, 0.1, 0.05, 0.85 - rate])
        labels[label] = pd.array(drawn).astype("Int8")
    study = 50_000_000 + np.arange(count) // 2
    table = pd.DataFrame(
        {
            "path": [
                f"files/p{s // 1_000_000}/p{s}/s{t}/{d}.jpg" for s, t, d in zip(subject, study, dicom, strict=True)
            ],
            "sha256": [f"{n:064x}" for n in range(count)],
            "group": [f"p{s // 1_000_000}" for s in subject],
            "subject_id": subject.astype("int32"),
            "study_id": study.astype("int32"),
            "dicom_id": dicom,
            "view": rng.choice(["AP", "PA", "LATERAL", "LL", None], count, p=[0.39, 0.25, 0.22, 0.1, 0.04]),
            "split": rng.choice(["train", "validate", "test"], count, p=[0.96, 0.02, 0.02]),
            "height": pd.array([2544] * count, "Int32"),
            "width": pd.array([3056] * count, "Int32"),
            **labels,
        }
    )
    out = BytesIO()
    manifest.write(table, out, dataset=MIMIC_CXR_JPG, sums_sha256="0" * 64)
    share = {"p10": 1.0, "p11": 1.0, "p12": 0.93, "p13": 0.6, "p14": 0.2}
    there = table[rng.random(count) < table["group"].map(share).fillna(0)]
    index = BytesIO()
    sizes = rng.integers(900_000, 2_000_000, len(there))
    columns = {name: there[name].tolist() for name in ("path", "sha256")}
    pq.write_table(pa.table({**columns, "bytes": sizes}), index)
    return out.getvalue(), index.getvalue()


def _any_files(name: str, paths: Sequence[str]) -> bytes:
    import pandas as pd

    from physionet_mirror import manifest
    from physionet_mirror.dataset import project

    table = pd.DataFrame({"path": sorted(paths), "sha256": [_sum_of(path) for path in sorted(paths)]})
    out = BytesIO()
    manifest.write(table, out, dataset=project(name), sums_sha256="0" * 64)
    return out.getvalue()


def _index(paths: Sequence[str], sizes: Sequence[int]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = BytesIO()
    pq.write_table(pa.table({"path": paths, "sha256": [*map(_sum_of, paths)], "bytes": sizes}), out)
    return out.getvalue()


def _sum_of(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


# -- the database ------------------------------------------------------------------------------------------------------


def seed() -> None:
    """Write the runs to the database that the environment names."""
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import insert, select

    spoilt = bool(os.environ["PAGE_SERVER_SPOILT"])
    conf = {"bucket": BUCKET, "prefix": PREFIX, "sample_size": SHARDS * A_SHARD}
    with create_session() as session:
        for dag_id, run_id, state, given, hours in (
            ("physionet_project", "of-a-project", "success", {"bucket": BUCKET, "project": PROJECT}, 75.0),
            ("physionet_project", TABLES_RUN, "success", {"bucket": BUCKET, "project": TABLES}, 30.0),
            ("mimic_cxr_jpg", DONE, "success", conf, 49.0),
            ("mimic_cxr_jpg", LIVE, "running", conf, 3.5),
            *(
                ("mimic_cxr_jpg_backfill", f"night-{night}", "success", conf, 50.0 + night / 100)
                for night in range(NIGHTS if spoilt else 0)
            ),
            *(
                ("mimic_cxr_audit", run_id, "success", {"bucket": "other-bucket", "prefix": PREFIX}, 60.0)
                for run_id in ((ELSEWHERE,) if spoilt else ())
            ),
            *(
                ("mimic_cxr_audit", f"of-{prefix}", "success", {"bucket": BUCKET, "prefix": prefix}, 70.0)
                for prefix in ((BOMB, DAMAGED, NO_INDEX) if spoilt else ())
            ),
        ):
            at = datetime.now(UTC) - timedelta(hours=hours)
            ended = at + timedelta(seconds=4321) if state == "success" else None
            session.execute(
                insert(DagRun).values(
                    dag_id=dag_id,
                    run_id=run_id,
                    run_type="manual",
                    state=state,
                    conf=given,
                    run_after=at,
                    queued_at=at,
                    start_date=at,
                    end_date=ended,
                    clear_number=0,
                    span_status="NotStarted",
                )
            )
        version = session.scalar(select(DagVersion.id).where(DagVersion.dag_id == "mimic_cxr_jpg"))
        before = ["check_access", "fetch_metadata", "plan", "approve"]
        rows = [(LIVE, task, -1, "success") for task in before] + [(LIVE, "verify", -1, None)]
        rows += [(DONE, task, -1, "success") for task in (*before, "verify")]
        for number in range(SHARDS):
            for task, state in zip(("missing", "stream"), state_of(number), strict=True):
                rows.append((LIVE, f"mirror_shard.{task}", number, state))
        for number in range(4):
            rows += [
                (DONE, "mirror_shard.missing", number, "skipped"),
                (DONE, "mirror_shard.stream", number, "skipped"),
            ]
        from uuid6 import uuid7

        from physionet_airflow.compat import AIRFLOW

        session.execute(
            insert(TaskInstance),
            [
                {
                    "id": uuid7() if AIRFLOW >= (3, 2) else str(uuid7()),
                    "dag_id": "mimic_cxr_jpg",
                    "run_id": run_id,
                    "task_id": task,
                    "map_index": index,
                    "state": state,
                    "try_number": 1,
                    "max_tries": 2,
                    "pool": "default_pool",
                    "pool_slots": 1,
                    "queue": "default",
                    "priority_weight": 1,
                    "operator": task,
                    "dag_version_id": version,
                    "custom_operator_name": task,
                    "hostname": "",
                    "unixname": "",
                    "span_status": "NotStarted",
                    "context_carrier": {},
                }
                for run_id, task, index, state in rows
            ],
        )


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    seed()
