"""The one comparison of files with the bucket, on a server that lists in any order, and its share in a run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from include.physionet_mirror import compare as module
from include.physionet_mirror.compare import Comparison, compare
from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.shards import Image
from tests.integration.unordered_s3 import UnorderedS3, by_bytes, by_folder, by_hash

ORDERS = [pytest.param(order, id=order.__name__) for order in (by_bytes, by_hash, by_folder)]
EVERY = [None, 1, 5, 1000]
"""Files of the dataset for each one that is wanted; None = that is not known."""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[UnorderedS3]:
    made = UnorderedS3(request.param)
    yield made
    made.close()


def bucket_of(server: UnorderedS3) -> Bucket:
    session = boto3.Session("testing-key", "testing-secret", region_name="us-east-1")
    return Bucket.open(session, "bucket", "mine", endpoint_url=server.url)


def name(rng: random.Random) -> str:
    return "files/" + "/".join(
        "".join(rng.choice("ab-0~p") for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 3))
    )


@pytest.mark.parametrize("server", ORDERS, indirect=True)
def test_whatever_is_there_is_found_in_any_order_of_the_listing(server: UnorderedS3, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_PAGE", 7)
    monkeypatch.setattr(module, "_SPARSE", 3)
    server.page = 7
    bucket, rng = bucket_of(server), random.Random(5)
    for _ in range(60):
        universe = {name(rng) for _ in range(rng.randint(1, 60))}
        share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        there = {path for path in universe if rng.random() < share}
        server.objects = {bucket.key(path): b"x" for path in there}
        wanted = sorted(path for path in universe if rng.random() < rng.choice([0.05, 0.5, 1])) or [min(universe)]
        every = rng.choice(EVERY)
        found = compare(
            [Image(path, "0" * 64) for path in wanted],
            bucket,
            Comparison("count"),
            span=None if every is None else every * len(wanted),
        )
        missing = {problem.path for problem in found.problems}
        if server.order is by_folder and not there.issuperset(wanted):
            # Nearly byte order: of many that are absent, one that is there may be taken for absent and fetched again.
            assert missing >= set(wanted) - there
        else:
            assert missing == set(wanted) - there
        assert {file.path for file in found.ok} == set(wanted) - missing


@pytest.mark.parametrize("server", ORDERS, indirect=True)
@pytest.mark.parametrize("every", [None, 1, 1000])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
def test_its_cost_is_bounded_in_any_order(server: UnorderedS3, every: int | None, share: float) -> None:
    files = [Image(f"files/p10/p{n // 3:05}/s{n:06}/{n:04x}.jpg", "0" * 64) for n in range(2400)]
    bucket, rng = bucket_of(server), random.Random(1)
    server.objects = {bucket.key(file.path): b"x" for file in files if rng.random() < share}
    wanted = files[600:1800]
    found = compare(wanted, bucket, Comparison("count"), span=None if every is None else every * len(wanted))
    assert {file.path for file in found.ok} == {f.path for f in wanted if bucket.key(f.path) in server.objects}
    if every == 1000:
        assert server.asked["HEAD"] <= len(wanted)  # so sparse that each is asked for
    elif server.order is by_bytes:
        assert (server.asked["LIST"] <= 4, server.asked["HEAD"] <= 24) == (True, True)
    else:  # a LIST costs as much as 12.5 HEADs
        assert server.asked["LIST"] * 12.5 + server.asked["HEAD"] <= 2.5 * len(wanted)


class TestDirectoryBucket:
    def test_it_is_never_asked_for_keys_behind_another(self) -> None:
        server = UnorderedS3(by_hash)
        plain = bucket_of(server)

        class Directory(Bucket):
            """S3's directory buckets refuse StartAfter. Their sessions are botocore's affair, so the name alone is tried."""

            def list(self, under: str = "", *, start_after: str | None = None, last: str | None = None) -> Any:
                assert start_after is last is None
                assert not under or under.endswith("/")
                return plain.list(under)

        bucket = Directory(plain.client, plain._direct, "mine--use1-az4--x-s3", "mine")
        bucket.head = plain.head  # type: ignore[method-assign]
        files = [Image(f"files/p10/p{n:05}.jpg", "0" * 64) for n in range(100)]
        server.objects = {plain.key(file.path): b"x" for file in files[::2]}
        found = compare(files, bucket, Comparison("count"), span=100)
        assert [file.path for file in found.ok] == [file.path for file in files[::2]]
        assert server.asked == {"LIST": 1}
        server.close()
