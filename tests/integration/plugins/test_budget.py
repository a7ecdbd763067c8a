"""Runs of several DAGs for several projects share one pool; each project keeps its prefix, agreement and access point."""

from __future__ import annotations

import json
import runpy
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from airflow.sdk import BaseOperator

from demo import stack
from demo.lookalike import Lookalike, User
from demo.lookalike.profiles import Profile
from physionet_airflow.bucket import ACCESS_POINT_CONN_ID, AWS_CONN_ID, open_access_point
from physionet_airflow.run import streams
from physionet_mirror.dataset import Dataset, project
from physionet_mirror.errors import AccessRefused, InputError
from physionet_mirror.layout import RunLayout
from physionet_mirror.records import PaceMemory, Shard
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import mirror_shard, plan
from physionet_mirror.steps.fetch_metadata import fetch_metadata
from tests.conftest import READER
from tests.integration.test_projects import write_project

DAGS = Path(__file__).parents[3] / "dags"
SLOTS, STREAMS, CONNECTIONS = 2, 2, 8


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHYSIONET_POOL", "physionet")
    monkeypatch.setenv("PHYSIONET_STREAMS", str(STREAMS))


def stream_task(file: str) -> Any:
    """The task of a DAG file that streams a shard."""
    task = next(value for value in runpy.run_path(str(DAGS / file)).values() if isinstance(value, BaseOperator))
    return task.dag.get_task("mirror_shard.stream")


@pytest.mark.parametrize("file", ["mimic_cxr_jpg.py", "mimic_cxr_jpg_backfill.py", "physionet_project.py"])
def test_the_streams_of_every_dag_take_a_slot_of_the_same_pool(settings: None, file: str) -> None:
    task = stream_task(file)
    assert (task.pool, task.pool_slots, task.max_active_tis_per_dagrun) == ("physionet", 1, STREAMS)


class Pool:
    """Airflow's pool, which begins no task beyond its slots, for tasks that are functions."""

    def __init__(self, slots: int) -> None:
        self._tasks = ThreadPoolExecutor(slots)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._tasks.shutdown()

    def submit(self, task: Any) -> Future[Any]:
        return self._tasks.submit(task)


def test_two_projects_at_once_hold_no_more_connections_than_the_pools_slots_give(
    settings: None, tmp_path: Path, s3_server: stack.S3Server, boto_session: boto3.Session, bucket_name: str
) -> None:
    first, second, unsigned = (project(f"{name}-{uuid4().hex[:8]}/1.0") for name in ("first", "second", "unsigned"))
    files = {f"files/{n:02}.dat": bytes([n]) * 20_000 for n in range(24)}
    for dataset in (first, second, unsigned):
        write_project(tmp_path, dataset.name, {path: data + dataset.slug.encode() for path, data in files.items()})
    users = {READER[0]: User(READER[1], frozenset({first.name, second.name}))}
    slow = Profile(rate=200_000)
    with Lookalike(tmp_path, users=users, check_seconds=0, profile=slow) as server, ExitStack() as opened:
        planned: list[tuple[Dataset, Request, Bucket, RunLayout, Shard]] = []
        for dataset in (first, second):
            request = Request.from_params(
                {"project": dataset.name, "bucket": bucket_name, "connections": CONNECTIONS, "shard_size": 8}
            )
            bucket = Bucket.open(boto_session, bucket_name, request.prefix, endpoint_url=s3_server.endpoint)
            run = RunLayout("r", "physionet_project")
            with closing(PhysioNet(server.url, *READER)) as source:
                source.check_access(dataset)
                fetch_metadata(source, bucket, dataset)
                made = plan.make_plan(request, bucket, run, streams=streams(), params={}, site=source)
            bucket.write_json(run.pace, PaceMemory(start=64).to_json())  # each stream begins with all that it may hold
            for shard in made.shards:
                assert len(mirror_shard.find_missing(shard, request, bucket, run).images) == 8
                planned.append((dataset, request, bucket, run, shard))
        # An agreement that is missing stops that project alone, before anything is written.
        with closing(PhysioNet(server.url, *READER)) as source, pytest.raises(AccessRefused, match=unsigned.page):
            source.check_access(unsigned)

        wait_for_connections(server, 0)
        server.counters.reset()
        begun: list[str] = []
        lock = threading.Lock()

        def stream(dataset: Dataset, request: Request, bucket: Bucket, run: RunLayout, shard: Shard) -> int:
            with lock:
                begun.append(dataset.name)
            connections = request.share(streams())
            with closing(PhysioNet(server.url, *READER, connections=connections)) as source:
                mover = Download(source, dataset, bucket, "STANDARD")
                options: dict[str, Any] = {"connections": connections, "stop": mirror_shard.Stop()}
                stored = mirror_shard.stream_shard(shard, request, mover, bucket, run, **options).stored
            wait_for_connections(server, connections * (SLOTS - 1))  # what was closed is no longer counted
            return stored

        with opened.enter_context(Pool(SLOTS)) as pool:
            # Both runs' shards are ready at once, one of each by turns.
            jobs = [
                pool.submit(lambda task=task: stream(*task))
                for pair in zip(planned[:3], planned[3:], strict=True)
                for task in pair
            ]
            assert [job.result(120) for job in jobs] == [8] * 6
        assert set(begun[:2]) == {first.name, second.name}
        each = CONNECTIONS // STREAMS
        assert each < server.counters.peak_connections <= SLOTS * each

    for dataset in (first, second):
        bucket = Bucket.open(boto_session, bucket_name, dataset.name, endpoint_url=s3_server.endpoint)
        assert {path: bucket.read(path) for path in files} == {p: d + dataset.slug.encode() for p, d in files.items()}
    assert {folder.name for folder in (s3_server.folder / bucket_name).iterdir()} == {first.slug, second.slug}


def wait_for_connections(server: Lookalike, most: int) -> None:
    """Until the look-alike has at most so many open."""
    pause = threading.Event()
    for _ in range(1000):
        if server.counters.connections <= most:
            return
        pause.wait(0.01)
    raise AssertionError("connections stay open")


def test_one_connection_serves_an_access_point_for_each_project(monkeypatch: pytest.MonkeyPatch) -> None:
    arn = "arn:aws:s3:us-east-1:724665945834:accesspoint/"
    points = {"mimiciv/3.1": f"{arn}mimiciv-v3-1-02", "mimic-iv-ecg/1.0": f"{arn}mimic-iv-ecg-v1-0-03"}
    for conn_id, extra in ((AWS_CONN_ID, {}), (ACCESS_POINT_CONN_ID, {"physionet_access_point": points})):
        connection = {
            "conn_type": "aws",
            "login": "AKIA",
            "password": "secret",
            "extra": {"region_name": "us-east-1", **extra},
        }
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
    for name, point in points.items():
        opened = open_access_point(project(name))
        assert (opened.bucket.name, opened.bucket.prefix, opened.conn_id) == (point, name, ACCESS_POINT_CONN_ID)
    # One that the mapping leaves out takes the point that is known of it, or has none.
    assert open_access_point(project("vindr-cxr/1.0.0")).bucket.name == f"{arn}vindr-cxr-v1-0-0-01"
    with pytest.raises(InputError, match=r"for unheard-of/1\.0\. Nothing was done"):
        open_access_point(project("unheard-of/1.0"))
