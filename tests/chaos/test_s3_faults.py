"""S3 faults while a selection is mirrored: the run ends complete and correct, or says why not and continues from there.

The steps behind the tasks, against the look-alike and a real S3 process behind a proxy that makes PUTs fail. Every test ends
by hashing the S3 server's files on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from demo import stack
from demo.lookalike import Lookalike, Profile
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import BucketRefused
from physionet_mirror.layout import RunLayout
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import fetch_metadata, mirror_shard, plan, verify
from physionet_mirror.verification import Verdict
from tests.chaos import outside
from tests.chaos.s3_proxy import IMAGES, Fault, Kind, S3Proxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMAGE_COUNT = 60


@pytest.fixture
def bucket(
    boto_session: boto3.Session, s3_server: stack.S3Server, s3_proxy: S3Proxy, bucket_name: str
) -> Iterator[Bucket]:
    yield Bucket.open(boto_session, bucket_name, MIMIC_CXR_JPG.name, endpoint_url=s3_proxy.endpoint)
    s3_proxy.set(None)


@pytest.fixture
def folder(s3_server: stack.S3Server, bucket: Bucket) -> Path:
    return s3_server.folder / bucket.name


@dataclass
class Mirror:
    """A run of the DAG, task after task in this process."""

    physionet: Lookalike
    reader: tuple[str, str]
    bucket: Bucket

    def run(self, run_id: str) -> Verdict:
        request = Request.from_params({"bucket": self.bucket.name, "prefix": self.bucket.prefix, "select": "all"})
        run, begun = RunLayout(run_id), datetime.now(UTC)
        fetch_metadata.fetch_metadata(self._source(), self.bucket, request.dataset)
        for shard in plan.make_plan(request, self.bucket, run, streams=2, params={}).shards:
            if mirror_shard.find_missing(shard, request, self.bucket, run).images:
                mover, stop = Download(self._source(), request.dataset, self.bucket), mirror_shard.Stop()
                mirror_shard.stream_shard(shard, request, mover, self.bucket, run, connections=4, stop=stop)
        return verify.verify_run(request, self.bucket, run, params={}, started=begun)[0]

    def fetched(self) -> list[str]:
        """Images that PhysioNet was asked for since the last call."""
        paths = [seen.path for seen in self.physionet.counters.seen if seen.method == "GET"]
        self.physionet.counters.reset()
        return [path.removeprefix(f"{outside.PREFIX}/") for path in paths if path.endswith(".jpg")]

    def _source(self) -> PhysioNet:
        return PhysioNet(self.physionet.url, *self.reader, connections=4)


@pytest.fixture
def mirror(physionet: Lookalike, reader: tuple[str, str], bucket: Bucket) -> Mirror:
    return Mirror(physionet, reader, bucket)


def assert_fetched_once(mirror: Mirror) -> None:
    """Fetched images are not fetched again because S3 is busy; on a slow machine the last ones are requested twice."""
    assert len(mirror.fetched()) <= IMAGE_COUNT + 4


def test_the_proxy_itself_harms_nothing(mirror: Mirror, folder: Path, tiny_dataset: Path) -> None:
    assert mirror.run("plain").verified == IMAGE_COUNT
    assert outside.stored(folder) == outside.published(tiny_dataset)


def test_slow_down_to_a_third_of_all_puts(mirror: Mirror, s3_proxy: S3Proxy, folder: Path, tiny_dataset: Path) -> None:
    s3_proxy.set(Fault(Kind.SLOW_DOWN, share=0.3))
    assert mirror.run("slow").passed
    assert s3_proxy.struck[Kind.SLOW_DOWN] > IMAGE_COUNT / 6
    assert outside.stored(folder) == outside.published(tiny_dataset)
    assert_fetched_once(mirror)


def test_connections_refused_for_half_a_minute(
    mirror: Mirror, s3_proxy: S3Proxy, folder: Path, tiny_dataset: Path
) -> None:
    s3_proxy.set(Fault(Kind.REFUSED, IMAGES, after=10, seconds=30))
    assert mirror.run("away").passed
    assert s3_proxy.struck[Kind.REFUSED] == 1
    assert outside.stored(folder) == outside.published(tiny_dataset)
    assert_fetched_once(mirror)


def test_reset_in_the_middle_of_a_put(mirror: Mirror, s3_proxy: S3Proxy, folder: Path, tiny_dataset: Path) -> None:
    s3_proxy.set(Fault(Kind.RESET, IMAGES, share=0.3))
    assert mirror.run("reset").passed
    assert s3_proxy.struck[Kind.RESET] > IMAGE_COUNT / 6
    assert outside.stored(folder) == outside.published(tiny_dataset)
    assert_fetched_once(mirror)


def test_access_denied_half_way_is_said_at_once_and_what_was_done_stays(
    mirror: Mirror, s3_proxy: S3Proxy, folder: Path, tiny_dataset: Path
) -> None:
    mirror.physionet.profile = Profile(round_trip=0.05)
    s3_proxy.set(Fault(Kind.DENIED, IMAGES, after=20))
    with pytest.raises(BucketRefused, match=r"AccessDenied.*What is stored stays stored.*trigger the run again"):
        mirror.run("denied")
    outside.wait_until(lambda: len(outside.stored(folder)) == 20)  # PUTs that were under way finish by themselves
    done = outside.stored(folder)
    assert done.items() <= outside.published(tiny_dataset).items()
    assert len(mirror.fetched()) < IMAGE_COUNT // 2 + 10  # no more requests to PhysioNet than those under way

    (result,) = _results(folder, "denied")
    assert result["state"] == "failed"
    assert result["error"]["reason"] == "bucket refused"

    s3_proxy.set(None)
    verdict = mirror.run("allowed")
    assert verdict.passed
    assert not done.keys() & mirror.fetched()
    assert outside.stored(folder) == outside.published(tiny_dataset)


def test_slow_down_in_a_real_airflow(
    airflow_home: Any, s3_server: stack.S3Server, s3_proxy: S3Proxy, bucket: Bucket, folder: Path, tiny_dataset: Path
) -> None:
    connection = s3_server.connection()
    connection["extra"]["endpoint_url"] = s3_proxy.endpoint
    s3_proxy.set(Fault(Kind.SLOW_DOWN, share=0.3))
    conf = json.dumps({"bucket": bucket.name, "select": "all", "shard_size": 30})
    env = {"AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection)}
    done = airflow_home.run("dags", "test", "mimic_cxr_jpg", "-c", conf, timeout=800, **env)
    assert done.returncode == 0, done.stdout[-4000:]
    assert s3_proxy.struck[Kind.SLOW_DOWN] > IMAGE_COUNT / 6
    assert outside.stored(folder) == outside.published(tiny_dataset)


def _results(folder: Path, run_id: str) -> list[dict[str, Any]]:
    files = (folder / outside.PREFIX / "_mirror/runs" / run_id / "results").iterdir()
    return [json.loads(file.read_text()) for file in files]
