"""Shared fixtures: a small dataset, a PhysioNet look-alike, an S3 server, an Airflow home. None of them is a mock."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from demo import stack, synthetic
from demo.lookalike import Lookalike, User
from tests.strict_s3 import strict_s3_server
from tests.warm_airflow import WarmAirflow, warm_airflow

LONGEST = (
    "test_state.py",
    "test_pace.py",
    "test_runs.py",
    "test_project.py",
    "test_backfill.py",
    "test_rights.py",
    "test_faults.py",
)
"""The files that take longest are begun first, so that no worker is left alone with one of them at the end."""

READ_LATE = {"AIRFLOW__CORE__MAX_MAP_LENGTH"}
"""Settings that Airflow reads when it needs them, and not while it is imported."""

READER = ("reader", "correct horse battery staple")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring `LONGEST` to the front; xdist hands whole files out in this order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a dataset of 60 small images: mimic-cxr-jpg/2.1.0 and mimic-cxr/2.0.0. Read only; copy it to change it."""
    root = tmp_path_factory.mktemp("dataset") / "physionet"
    synthetic.write(root, synthetic.cohort(60, seed=7, long_side=96))
    return root


@pytest.fixture
def reader() -> tuple[str, str]:
    """Login and password of the one user of ``physionet``, who has signed every agreement."""
    return READER


@pytest.fixture
def physionet(tiny_dataset: Path) -> Iterator[Lookalike]:
    """A PhysioNet look-alike that serves ``tiny_dataset``, with fresh counters and no faults."""
    login, password = READER
    with Lookalike(tiny_dataset, users={login: User(password)}, check_seconds=0.01) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.S3Server]:
    """An S3 server: objects are plain files in ``s3_server.folder / <bucket> / <key>``."""
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    with stack.s3_server(folder) as server:
        yield server


@pytest.fixture(scope="session")
def strict_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.S3Server]:
    """An S3 server that refuses wrong checksums and honours conditions, as S3 does; its objects are not files."""
    with strict_s3_server(tmp_path_factory.mktemp("strict-s3")) as server:
        yield server


@pytest.fixture
def bucket_name(s3_server: stack.S3Server) -> str:
    """An empty bucket of this test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(name)
    return name


@pytest.fixture
def boto_session(s3_server: stack.S3Server) -> boto3.Session:
    """A session with the keys of ``s3_server``; clients also need ``endpoint_url=s3_server.endpoint``."""
    return s3_server.session()


@dataclass(frozen=True)
class AirflowHome:
    """An AIRFLOW_HOME with a migrated database; ``env`` is the environment for ``airflow`` commands."""

    path: Path
    env: Mapping[str, str]
    warm: WarmAirflow

    def run(self, *arguments: str, timeout: float = 240, **more_env: str) -> subprocess.CompletedProcess[str]:
        """Run ``airflow <arguments>``; stdout and stderr together in ``stdout``. Does not raise on a failure.

        A setting of Airflow's own in ``more_env`` may be read while it is imported, so such a command begins afresh, but
        for those that are known to be read when they are needed.
        ``dags test`` of one of our DAGs is told its file: to parse and save all of them takes as long as a short run.
        """
        env = {**self.env, **more_env}
        if arguments[:2] == ("dags", "test") and (file := stack.ROOT / "dags" / f"{arguments[2]}.py").exists():
            arguments += ("--dagfile-path", str(file))
        if not any(name.startswith("AIRFLOW__") for name in more_env.keys() - READ_LATE):
            return self.warm.run(*arguments, env=env, cwd=self.path, timeout=timeout)
        return subprocess.run(
            stack.airflow_command(*arguments),
            env=env,
            cwd=self.path,
            timeout=timeout,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    def answering(self, dag_id: str, answer: str) -> subprocess.Popen[str]:
        """A person who gives the task ``approve`` this answer (Approve, Reject) as soon as it asks, and prints its question."""
        return subprocess.Popen(
            [sys.executable, Path(__file__).with_name("dags") / "answer.py", dag_id, "approve", answer],
            env=self.env,
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """An Airflow home whose database has been migrated, once for all xdist workers; copied, never used."""
    base = tmp_path_factory.getbasetemp()
    home = (base if worker_id == "master" else base.parent) / "migrated-airflow"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stack.migrate(home, stack.airflow_environment(home, connections={}))
    return home


@pytest.fixture(scope="session")
def warm(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmAirflow]:
    """The Airflow that this xdist worker imports once."""
    home = tmp_path_factory.mktemp("warm")
    with warm_airflow(home, stack.airflow_environment(home, connections={})) as airflow:
        yield airflow


@pytest.fixture
def airflow_home(
    tmp_path: Path, migrated_home: Path, physionet: Lookalike, s3_server: stack.S3Server, warm: WarmAirflow
) -> AirflowHome:
    """A fresh Airflow with this project's DAGs and plugins, connected to ``physionet`` and ``s3_server``."""
    home = tmp_path / "airflow"
    home.mkdir()
    for name in ("airflow.db", "keys.json", "passwords.json", "migrated"):
        shutil.copy(migrated_home / name, home / name)
    login, password = READER
    connections = {
        "physionet_default": {"conn_type": "http", "host": physionet.url, "login": login, "password": password},
        "aws_default": s3_server.connection(),
    }
    return AirflowHome(home, stack.airflow_environment(home, connections=connections), warm)
