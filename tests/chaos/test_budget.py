"""Two DAGs under a real scheduler share PhysioNet's connections by a pool that is smaller than either would use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from demo import stack
from demo.lookalike import Lookalike, Profile
from physionet_mirror.dataset import SUMS
from tests.chaos.outside import wait_until
from tests.conftest import READER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SLOTS, CONNECTIONS = 2, 8
EACH = CONNECTIONS // stack.STREAMS
"""Connections of one stream."""
RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mimic_cxr_jpg": ("mimic-cxr-jpg/2.1.0", {"select": "all", "shard_size": 15}),
    "physionet_project": ("mimic-cxr/2.1.0", {"project": "mimic-cxr/2.1.0", "shard_size": 5}),
}
"""The project and the conf of each DAG's run."""


def streams(api: stack.AirflowApi, runs: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The stream tasks of each DAG's run, without those of shards of which all is there."""
    return {
        dag_id: [
            task
            for task in api.task_instances(dag_id, run_id)
            if task["task_id"] == "mirror_shard.stream" and task["state"] != "skipped"
        ]
        for dag_id, run_id in runs.items()
    }


def most_at_once(tasks: list[dict[str, Any]]) -> int:
    """The most of these tasks that ran at one time."""
    steps = [(task["start_date"], 1) for task in tasks] + [(task["end_date"], -1) for task in tasks]
    return max(accumulate(step for _, step in sorted(steps)))


def test_two_dags_never_hold_more_connections_than_the_pool_gives_and_both_finish(
    tiny_dataset: Path, physionet: Lookalike, s3_server: stack.S3Server, bucket_name: str, tmp_path: Path
) -> None:
    login, password = READER
    connections = {
        "physionet_default": {"conn_type": "http", "host": physionet.url, "login": login, "password": password},
        "aws_default": s3_server.connection(),
    }
    physionet.profile = Profile(round_trip=0.3)
    with stack.airflow(tmp_path / "airflow", connections=connections, timeout=300) as running:
        api = running.api
        api.make_pool(stack.POOL, 0)  # until every stream of both runs waits for a slot
        runs = {
            dag_id: api.trigger(dag_id, {"bucket": bucket_name, "connections": CONNECTIONS, **conf})
            for dag_id, (_, conf) in RUNS.items()
        }
        wait_until(
            lambda: all(
                len(tasks) >= SLOTS + 1 and {task["state"] for task in tasks} == {"scheduled"}
                for tasks in streams(api, runs).values()
            )
        )
        wait_until(lambda: physionet.counters.connections == 0)
        physionet.counters.reset()
        api.make_pool(stack.POOL, SLOTS)
        assert {dag_id: api.wait(dag_id, run_id) for dag_id, run_id in runs.items()} == dict.fromkeys(runs, "success")
        peak = physionet.counters.peak_connections
        ended = streams(api, runs)

    both = [task for tasks in ended.values() for task in tasks]
    assert {task["pool"] for task in both} == {stack.POOL}
    assert most_at_once(both) == SLOTS
    assert EACH < peak <= SLOTS * EACH
    # Neither waited until the other was done.
    first, second = (sorted((task["start_date"], task["end_date"]) for task in tasks) for tasks in ended.values())
    assert first[0][0] < second[-1][1] and second[0][0] < first[-1][1]  # noqa: PT018

    for project, _ in RUNS.values():
        lines = (line.split(" ", 1) for line in (tiny_dataset / project / SUMS).read_text().splitlines())
        for digest, path in lines:
            stored = s3_server.folder / bucket_name / project / path
            if path.endswith((".jpg", ".dcm", ".zip")):
                assert hashlib.sha256(stored.read_bytes()).hexdigest() == digest
