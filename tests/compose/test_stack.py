"""The stack itself: two Celery workers mirror the demo's images, and every byte is compared from outside.

Takes some minutes. The images are built first, unless MIRROR_NO_BUILD is set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from demo.stack import AirflowApi, free_port

ROOT = Path(__file__).parents[2]
IMAGES = 120
PROJECT = "mirror-test"
pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]


def compose_command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    pytest.skip("Docker Compose is not installed")


@pytest.fixture(scope="module")
def compose():
    env = {
        **os.environ,
        "AIRFLOW_PORT": str(free_port()),
        "DEMO_IMAGES": str(2 * IMAGES),
        "COMPOSE_PROFILES": "demo",
        "MIMIC_CXR_BUCKET": "demo",
    }
    base = [*compose_command(), "--project-name", PROJECT, "--project-directory", str(ROOT), "--env-file", os.devnull]

    def run(*arguments: str, check: bool = True) -> str:
        done = subprocess.run([*base, *arguments], env=env, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run.port = env["AIRFLOW_PORT"]
    if not os.environ.get("MIRROR_NO_BUILD"):
        run("build")
    try:
        run("up", "--detach", "--wait", "--wait-timeout", "900", "--scale", "airflow-worker=2")
        yield run
    finally:
        run("down", "--volumes", "--remove-orphans", check=False)


@pytest.fixture(scope="module")
def api(compose):
    login = re.search(r"Airflow login:\s+(\S+)\s+/\s+(\S+)", compose("logs", "--no-log-prefix", "airflow-init"))
    assert login, "the generated password is printed"
    return AirflowApi(f"http://127.0.0.1:{compose.port}", login[1], login[2])


@pytest.fixture(scope="module")
def run_id(api):
    conf = {"bucket": "demo", "sample_size": IMAGES, "shard_size": 15, "connections": 8}
    run_id = api.trigger("mimic_cxr_jpg", conf)
    assert api.wait("mimic_cxr_jpg", run_id, timeout=1200) == "success", summary(api, run_id)
    return run_id


def summary(api, run_id):
    return [(t["task_id"], t["map_index"], t["state"]) for t in api.task_instances("mimic_cxr_jpg", run_id)]


def test_everything_is_healthy(compose):
    states = [json.loads(line) for line in compose("ps", "--format", "json").splitlines()]
    assert len(states) == 10
    assert {state["Health"] for state in states} == {"healthy"}


def test_the_pool_is_made_from_its_file(api):
    assert api.call("GET", "pools/physionet")["slots"] == 4


def test_a_run_on_celery_is_green_and_its_shards_are_spread(api, run_id):
    streams = [t for t in api.task_instances("mimic_cxr_jpg", run_id) if t["task_id"] == "mirror_shard.stream"]
    assert len(streams) == IMAGES / 15
    assert {t["pool"] for t in streams} == {"physionet"}
    assert len({t["hostname"] for t in streams}) == 2


def test_every_byte_is_what_physionet_publishes(compose, run_id):
    """sha256sum in the S3 server's container, against SHA256SUMS.txt in the look-alike's."""
    published = dict(
        reversed(line.split(" ", 1))
        for line in compose(
            "exec", "-T", "physionet", "cat", "/opt/airflow/demo-data/physionet/mimic-cxr-jpg/2.1.0/SHA256SUMS.txt"
        ).splitlines()
    )
    stored = compose(
        "exec",
        "-T",
        "-w",
        "/mirror/demo/mimic-cxr-jpg/2.1.0",
        "s3",
        "sh",
        "-c",
        "find files -name '*.jpg' | xargs sha256sum",
    ).splitlines()
    assert len(stored) == IMAGES
    for line in stored:
        digest, path = line.split(maxsplit=1)
        assert published[path] == digest


def test_a_second_run_fetches_nothing(api, run_id):
    conf = {"bucket": "demo", "sample_size": IMAGES, "shard_size": 15, "connections": 8}
    second = api.trigger("mimic_cxr_jpg", conf)
    assert api.wait("mimic_cxr_jpg", second, timeout=1200) == "success"
    states = {t["state"] for t in api.task_instances("mimic_cxr_jpg", second) if t["task_id"] == "mirror_shard.stream"}
    assert states == {"skipped"}


def test_the_log_of_a_task_is_read_through_the_ui(api, run_id):
    deadline = time.monotonic() + 60
    while "PhysioNet serves" not in (text := api.log("mimic_cxr_jpg", run_id, "check_access")):
        assert time.monotonic() < deadline, text[-2000:]
        time.sleep(2)


def test_workers_know_neither_the_database_nor_the_keys(compose):
    seen = compose("exec", "-T", "airflow-worker", "bash", "-c", "env; ls /opt/airflow/secrets/*")
    assert "postgresql" not in seen
    assert "fernet_key" not in seen
    assert "jwt_secret" not in seen


def test_no_password_is_in_an_environment_or_a_log(compose):
    which = "core/* queue/redis_password queue/api_secret_key database/* demo/*_password demo/s3_secret_key"
    show = f"cd /opt/airflow/secrets && for file in {which}; do cat $file; echo; done"
    hidden = compose("run", "--rm", "--no-deps", "-T", "secrets", "bash", "-c", show).split()
    assert len(hidden) >= 6
    seen = compose("logs", "--no-log-prefix") + subprocess.run(
        ["docker", "inspect", *compose("ps", "--all", "--quiet").split()], capture_output=True, text=True
    ).stdout  # fmt: skip
    assert not [word for word in hidden if word in seen]


def test_a_restart_keeps_keys_and_login(compose, api, run_id):
    compose("down")
    compose("up", "--detach", "--wait", "--wait-timeout", "900")
    assert api.state("mimic_cxr_jpg", run_id) == "success"
    assert "Airflow login" not in compose("logs", "--no-log-prefix", "airflow-init")
