"""A whole Airflow, with processes killed and tasks cleared: runs succeed, and the bucket equals the selection.

All tests share one stack; each has its own bucket, and ends by hashing the S3 server's files on disk.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo import stack
from demo.lookalike import Fault as Outage
from demo.lookalike import Kind as OutageKind
from demo.lookalike import Lookalike, Profile, User
from tests.chaos import outside
from tests.chaos.outside import PREFIX, published, selected, stored, wait_until
from tests.chaos.s3_proxy import IMAGES, Fault, Kind, S3Proxy
from tests.smtp import MailServer, mail_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MIRROR, AUDIT = "mimic_cxr_jpg", "mimic_cxr_audit"
STREAM, VERIFY = "mirror_shard.stream", "verify"
SLOW = Profile(round_trip=0.4)
"""Slow enough for a kill to hit in the middle of a shard."""

SETTINGS = {
    # Crashes are noticed within seconds instead of minutes, as a deployment may configure it.
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    # Only what a test triggers runs; otherwise unpausing the audit would start its weekly run.
    "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
}


@dataclass
class Stage:
    """What a test works with.

    Attributes:
        airflow: The running Airflow.
        physionet: Serves ``root``.
        root: A copy of the dataset, which tests may change.
        proxy: The proxy in front of the S3 server.
        bucket: The test's own bucket.
        folder: The bucket's folder on disk.
    """

    airflow: stack.Airflow
    physionet: Lookalike
    root: Path
    proxy: S3Proxy
    bucket: str
    folder: Path

    def trigger(self, dag_id: str = MIRROR, **conf: Any) -> str:
        return self.airflow.api.trigger(dag_id, {"bucket": self.bucket, **conf})

    def ends(self, run_id: str, dag_id: str = MIRROR) -> str:
        return self.airflow.api.wait(dag_id, run_id)

    def log(self, run_id: str, task_id: str, dag_id: str = MIRROR, **which: int) -> str:
        return self.airflow.api.log(dag_id, run_id, task_id, **which)

    def tries(self, run_id: str, task_id: str) -> list[int]:
        """The try number of each of the task's instances."""
        return [ti["try_number"] for ti in self._instances(run_id) if ti["task_id"] == task_id]

    def states(self, run_id: str, task_id: str) -> list[str]:
        """The state of each of the task's instances."""
        return [ti["state"] for ti in self._instances(run_id) if ti["task_id"] == task_id]

    def process_of(self, run_id: str, task_id: str) -> psutil.Process:
        """The process that runs the task's first instance."""
        ours = [ti["id"] for ti in self._instances(run_id) if ti["task_id"] == task_id and ti["map_index"] < 1]
        for process in self.airflow.services["scheduler"].process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if " ".join(process.cmdline()).strip() == f"airflow worker -- {ours[0]}":
                    return process
        raise LookupError(f"no process is the task {task_id}")

    def fetched(self) -> list[str]:
        """Images that PhysioNet was asked for since the last call."""
        paths = [seen.path for seen in self.physionet.counters.seen if seen.method == "GET"]
        self.physionet.counters.reset()
        return [path.removeprefix(f"{PREFIX}/") for path in paths if path.endswith(".jpg")]

    def _instances(self, run_id: str) -> list[dict[str, Any]]:
        return self.airflow.api.task_instances(MIRROR, run_id)


@pytest.fixture(scope="module")
def root(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_dataset, tmp_path_factory.mktemp("chaos") / "physionet")


@pytest.fixture(scope="module")
def physionet(root: Path) -> Iterator[Lookalike]:
    with Lookalike(root, users={"reader": User("a password")}, check_seconds=0.01) as server:
        yield server


@pytest.fixture(scope="module")
def mails() -> Iterator[MailServer]:
    with mail_server() as server:
        yield server


@pytest.fixture(scope="module")
def airflow(
    physionet: Lookalike,
    s3_server: stack.S3Server,
    s3_proxy: S3Proxy,
    mails: MailServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[stack.Airflow]:
    aws = s3_server.connection()
    aws["extra"]["endpoint_url"] = s3_proxy.endpoint
    account = {"conn_type": "http", "host": physionet.url, "login": "reader", "password": "a password"}
    connections = {"physionet_default": account, "aws_default": aws, "lab_mail": mails.connection()}
    home = tmp_path_factory.mktemp("airflow")
    told = {"PHYSIONET_NOTIFY": "smtp://nobody_made_this?to=a@b.org smtp://lab_mail?to=lab@example.org"}
    with stack.airflow(home, connections=connections, extra_env=SETTINGS | told, timeout=300) as running:
        yield running


@pytest.fixture
def stage(
    airflow: stack.Airflow,
    physionet: Lookalike,
    root: Path,
    s3_server: stack.S3Server,
    s3_proxy: S3Proxy,
    bucket_name: str,
) -> Iterator[Stage]:
    physionet.counters.reset()
    yield Stage(airflow, physionet, root, s3_proxy, bucket_name, s3_server.folder / bucket_name)
    physionet.profile = Profile()
    s3_proxy.set(None)


def test_an_outage_is_waited_for_in_the_triggerer_and_people_are_told(stage: Stage, mails: MailServer) -> None:
    mails.mails.clear()
    stage.physionet.faults.set(Outage(OutageKind.STATUS, status=502, attempts=None))
    run_id = stage.trigger(sample_size=12)
    wait_until(lambda: "deferred" in stage.states(run_id, "check_access"))
    assert mails.subjects() == ["MIMIC-CXR-JPG waits"]
    assert "PhysioNet answered 502" in mails.text()
    stage.physionet.faults.clear()

    assert stage.ends(run_id) == "success"
    assert stage.tries(run_id, "check_access") == [1]
    wait_until(lambda: len(mails.mails) == 2)
    assert mails.subjects()[1] == "MIMIC-CXR-JPG finished"
    assert "12 of 12 selected images verified (checksum)" in mails.text()

    refused = stage.trigger(bucket="there-is-no-such-bucket")
    assert stage.ends(refused) == "failed"
    wait_until(lambda: len(mails.mails) == 3)
    assert mails.subjects()[2] == "MIMIC-CXR-JPG failed"
    assert "The bucket there-is-no-such-bucket does not exist" in mails.text()
    assert stage.airflow.url in mails.text()


def kill_task(stage: Stage, run_id: str) -> None:
    stage.process_of(run_id, STREAM).kill()


def kill_scheduler(stage: Stage, run_id: str) -> None:
    """Kill the scheduler, and with it the tasks that it runs, as when a machine is switched off."""
    scheduler = stage.airflow.services["scheduler"]
    scheduler.process.kill()
    wait_until(lambda: not scheduler.running)
    scheduler.start()


@pytest.mark.parametrize("kill", [kill_task, kill_scheduler])
def test_a_kill_in_mid_shard_costs_time_and_nothing_else(stage: Stage, kill: Callable[[Stage, str], None]) -> None:
    stage.physionet.profile = SLOW
    run_id = stage.trigger(select="all", shard_size=30)
    wait_until(lambda: len(stored(stage.folder)) >= 10)
    kill(stage, run_id)
    so_far = {path: digest for path, digest in stored(stage.folder).items() if path.endswith(".jpg")}
    assert so_far.items() <= published(stage.root).items()
    assert len(so_far) < 50, "the kill came too late to prove anything"
    stage.physionet.profile = Profile()

    assert stage.ends(run_id) == "success"
    assert max(stage.tries(run_id, STREAM)) == 2
    assert stored(stage.folder) == published(stage.root)
    # Images that were under way are fetched again; stored ones are not.
    assert len(stage.fetched()) <= 60 + 8
    assert outside.report(stage.folder, run_id)["result"]["verified"] == 60


def test_two_runs_that_overlap_end_with_both_samples(stage: Stage) -> None:
    stage.physionet.profile = Profile(round_trip=0.1)
    runs = [stage.trigger(sample_size=35, seed=seed, shard_size=12) for seed in (1, 2)]
    assert [stage.ends(run_id) for run_id in runs] == ["success", "success"]
    ours, theirs = (selected(stage.folder, [run_id]) for run_id in runs)
    assert len(ours) == len(theirs) == 35
    assert ours & theirs
    assert ours != theirs
    everything = published(stage.root)
    assert stored(stage.folder) == {path: everything[path] for path in ours | theirs}


def test_clearing_one_mapped_task_of_a_green_run_fetches_nothing(stage: Stage) -> None:
    run_id = stage.trigger(sample_size=24, shard_size=12)
    assert stage.ends(run_id) == "success"
    assert len(set(stage.fetched())) == 24
    before = stored(stage.folder)

    # What the UI sends for "Clear task": the one map index, and its downstream tasks.
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [[STREAM, 1]], "only_failed": False}
    body |= {"include_downstream": True, "reset_dag_runs": True}
    stage.airflow.api.call("POST", f"dags/{MIRROR}/clearTaskInstances", body)
    assert stage.ends(run_id) == "success"
    assert sorted(stage.tries(run_id, STREAM)) == [1, 2]
    assert stage.tries(run_id, VERIFY) == [2]
    assert stage.fetched() == []
    assert stored(stage.folder) == before
    assert before.keys() == selected(stage.folder, [run_id])


def test_a_new_version_of_one_file_is_said_and_fetched_and_nothing_else(stage: Stage) -> None:
    assert stage.ends(stage.trigger(sample_size=20)) == "success"
    before = stored(stage.folder)
    stage.fetched()
    replaced = sorted(before)[7]
    _publish_anew(stage.root / PREFIX, replaced)

    run_id = stage.trigger(sample_size=20)
    assert stage.ends(run_id) == "success"
    assert "1 images replaced, 0 added, 0 withdrawn" in stage.log(run_id, "fetch_metadata")
    assert any("1 images replaced" in note for note in outside.report(stage.folder, run_id)["notes"])
    assert set(stage.fetched()) == {replaced}
    now = stored(stage.folder)
    assert {path for path in now if now[path] != before.get(path)} == {replaced}
    everything = published(stage.root)
    assert now == {path: everything[path] for path in selected(stage.folder, [run_id])}


def _publish_anew(version: Path, path: str) -> None:
    """Publish a new version of one image, and update SHA256SUMS.txt."""
    image, sums = version / path, version / "SHA256SUMS.txt"
    old = sha256(image.read_bytes()).hexdigest()
    image.write_bytes(image.read_bytes() + b"\0")
    sums.write_text(sums.read_text().replace(old, sha256(image.read_bytes()).hexdigest()))


def test_access_denied_half_way_turns_the_run_red_with_its_reason_and_the_next_one_goes_on(stage: Stage) -> None:
    stage.proxy.set(Fault(Kind.DENIED, IMAGES, after=20))
    run_id = stage.trigger(select="all", shard_size=60)
    assert stage.ends(run_id) == "failed"
    assert stage.tries(run_id, STREAM) == [1]  # a retry cannot help, so there is none
    log = stage.log(run_id, STREAM, map_index=0)
    assert f"S3 refuses s3://{stage.bucket}" in log
    assert "AccessDenied" in log
    assert "40 of 60 selected images are not in the bucket" in stage.log(run_id, VERIFY)
    done = stored(stage.folder)
    assert len(done) == 20
    assert done.items() <= published(stage.root).items()

    stage.proxy.set(None)
    stage.fetched()
    assert stage.ends(stage.trigger(select="all")) == "success"
    assert len(set(stage.fetched())) == 40
    assert stored(stage.folder) == published(stage.root)


def test_a_flipped_byte_turns_the_audit_red_and_repair_turns_it_green(stage: Stage) -> None:
    run_id = stage.trigger(sample_size=12)
    assert stage.ends(run_id) == "success"
    right = stored(stage.folder)
    victim = sorted(right)[5]
    file = stage.folder / PREFIX / victim
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    stage.fetched()

    audit = stage.trigger(AUDIT)
    assert stage.ends(audit, AUDIT) == "failed"
    assert victim in stage.log(audit, "audit", AUDIT)
    assert "1 wrong bytes of 12 images" in stage.log(audit, "judge", AUDIT)
    assert stage.fetched() == []

    audit = stage.trigger(AUDIT, repair=True)
    assert stage.ends(audit, AUDIT) == "failed"
    repairs = stage.airflow.api.call("GET", f"dags/{MIRROR}/dagRuns", order_by="-id", limit=1)["dag_runs"]
    assert repairs[0]["conf"]["file_list"].startswith(f"s3://{stage.bucket}/")
    assert stage.ends(repairs[0]["dag_run_id"]) == "success"
    assert set(stage.fetched()) == {victim}
    assert stored(stage.folder) == right

    audit = stage.trigger(AUDIT, level="content")
    assert stage.ends(audit, AUDIT) == "success"
    assert "All 12 images are what PhysioNet publishes" in stage.log(audit, "judge", AUDIT)
