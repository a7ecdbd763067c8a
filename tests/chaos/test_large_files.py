"""A file of 300 MB whose worker is killed three times: what PhysioNet has sent by the end, and what the worker takes.

The worker is a process of its own and ends by SIGKILL, as when memory runs out or a machine is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from demo import stack
from demo.lookalike import Lookalike, Profile, User
from physionet_mirror.dataset import Dataset
from physionet_mirror.files import File
from physionet_mirror.layout import PARTS
from physionet_mirror.pace import Pace
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.transfer import Transfer
from tests.chaos import outside

PROJECT = Dataset("waves", "1.0")
PATH = "records/large.bin"
SIZE = 300_000_000
CONNECTIONS = 8
LOGIN = ("reader", "correct horse")
MOST_SENT = 1.1
"""Times the file's size."""
MEMORY = 128
"""MB that a worker takes for a large file."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lookalike, str]]:
    """A look-alike with one large file, at PhysioNet's speed; and the file's SHA-256."""
    root = tmp_path_factory.mktemp("waves")
    place = root / PROJECT.name / PATH
    place.parent.mkdir(parents=True)
    rng = random.Random(3)
    data = b"".join(rng.randbytes(1_000_000) for _ in range(SIZE // 1_000_000))
    sha256 = hashlib.sha256(data).hexdigest()
    place.write_bytes(data)
    (root / PROJECT.name / "SHA256SUMS.txt").write_text(f"{sha256} {PATH}\n")
    profile = Profile(round_trip=0.06, rate=650_000)
    with Lookalike(root, users={LOGIN[0]: User(LOGIN[1])}, check_seconds=0, profile=profile) as running:
        yield running, sha256


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_file_of_300_mb_survives_three_kills_and_is_fetched_once(
    published: tuple[Lookalike, str], s3_server: stack.S3Server, bucket_name: str
) -> None:
    physionet, sha256 = published
    given = {
        "url": physionet.url,
        "sha256": sha256,
        "endpoint": s3_server.endpoint,
        "keys": [s3_server.access_key, s3_server.secret_key],
        "bucket": bucket_name,
    }
    command = [sys.executable, "-m", "tests.chaos.test_large_files"]
    env = {**stack.plain_environment(), "PYTHONPATH": stack.PYTHONPATH, "WORKER": json.dumps(given)}
    stored = s3_server.folder / bucket_name / PROJECT.name / PATH

    for share in (0.25, 0.5, 0.75):
        with subprocess.Popen(command, env=env, cwd=stack.ROOT, stdout=subprocess.DEVNULL) as worker:
            outside.wait_until(lambda share=share: physionet.counters.bytes > share * SIZE or worker.poll() is not None)
            assert worker.poll() is None
            worker.kill()
        assert not stored.exists()

    done = subprocess.run(command, env=env, cwd=stack.ROOT, stdout=subprocess.PIPE, check=True, timeout=200)
    with stored.open("rb") as opened:
        assert hashlib.file_digest(opened, "sha256").hexdigest() == sha256
    sent = physionet.counters.bytes / SIZE
    assert 1.0 <= sent <= MOST_SENT
    memory = json.loads(done.stdout)["memory_mb"]
    assert memory <= MEMORY, f"{memory:.0f} MB"
    print(f"PhysioNet sent {sent:.3f} times the file; the last worker took {memory:.0f} MB")
    left = Bucket.open(s3_server.session(), bucket_name, PROJECT.name, endpoint_url=s3_server.endpoint)
    assert not left.uploads(PARTS)
    assert not list(left.list(PARTS))


def _worker() -> None:
    """One attempt of a task; prints the memory that it took above its start."""
    given = json.loads(os.environ["WORKER"])
    session = boto3.Session(*given["keys"], region_name=stack.REGION)
    bucket = Bucket.open(session, given["bucket"], PROJECT.name, endpoint_url=given["endpoint"])
    mover = Download(PhysioNet(given["url"], *LOGIN, connections=CONNECTIONS), PROJECT, bucket, run="one run")
    pace = Pace(CONNECTIONS, start=CONNECTIONS, received=lambda: mover.stats.received)
    idle = _memory("VmRSS")
    Transfer([File(PATH, given["sha256"], SIZE)], mover=mover, pace=pace).run()
    mover.close()
    print(json.dumps({"memory_mb": _memory("VmHWM") - idle}))


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1000


if __name__ == "__main__":
    _worker()
