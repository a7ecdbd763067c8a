"""Stores that do not do all that Amazon's S3 does: an S3 like Backblaze's, which takes no SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from demo.lookalike import Lookalike
from demo.stack import S3Server
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import DestinationError
from physionet_mirror.layout import RunLayout
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import PART_SIZE, Bucket
from physionet_mirror.s3.capabilities import Capabilities
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import fetch_metadata, mirror_shard, plan, verify
from tests.b2_like import B2Like
from tests.chaos.s3_proxy import Fault, Kind

DATA = b"bytes that a proxy may turn over" * 100
DIGEST = hashlib.sha256(DATA).hexdigest()
NO_SHA256 = Capabilities().without("sha256")


@pytest.fixture
def b2(s3_server: S3Server) -> Iterator[B2Like]:
    with B2Like(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def bucket(b2: B2Like, s3_server: S3Server, bucket_name: str) -> Bucket:
    return Bucket.open(s3_server.session(), bucket_name, MIMIC_CXR_JPG.name, endpoint_url=b2.endpoint)


def put(bucket: Bucket, path: str = "x.jpg") -> str:
    return bucket.put(path, DATA, content_type="image/jpeg", sha256=DIGEST)


def small(bucket: Bucket) -> None:
    bucket.write_text("x.txt", "small")


def in_parts(bucket: Bucket) -> None:
    bucket.upload("x.bin", iter([bytes(PART_SIZE), b"end"]))


def look(bucket: Bucket) -> None:
    assert bucket.head("nothing") is None


@pytest.mark.parametrize("first", [put, small, in_parts, look])
def test_the_first_refusal_of_sha256_is_the_last(b2: B2Like, bucket: Bucket, first: Any) -> None:
    first(bucket)
    assert not bucket.can.sha256
    refused = sum(b2.refused.values())
    assert refused >= 1
    put(bucket)  # by boto3, and once more by a signed request of our own
    put(bucket)
    small(bucket)
    in_parts(bucket)
    stored = bucket.head("x.jpg")
    assert stored is not None
    assert (stored.size, stored.sha256) == (len(DATA), None)
    assert sum(b2.refused.values()) == refused
    assert not b2.without  # each PUT carried Content-MD5
    assert bucket.sha256("x.jpg") == DIGEST


def test_a_refusal_for_another_reason_leaves_sha256_on(b2: B2Like, bucket: Bucket) -> None:
    b2.refusal = lambda *_: (400, "InvalidArgument", "Something else is wrong.")
    for ask in (put, small, in_parts, look):
        with pytest.raises(DestinationError):
            ask(bucket)
    assert bucket.can == Capabilities()


@pytest.mark.parametrize("how", [put, small, in_parts])
def test_a_wrong_byte_on_the_wire_is_refused_by_content_md5(b2: B2Like, bucket: Bucket, how: Any) -> None:
    bucket.can = NO_SHA256
    put(bucket, "before.jpg")
    b2.set(Fault(Kind.FLIPPED, "*/x.*"))
    with pytest.raises(DestinationError, match="BadDigest"):
        how(bucket)
    assert b2.struck[Kind.FLIPPED] == 1
    assert [entry.path for entry in bucket.list()] == ["before.jpg"]
    # The server itself would have taken it: nothing but the header has it refused.
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.key("x.bare"), Body=DATA)
    assert bucket.sha256("x.bare") != DIGEST


def test_a_whole_run_where_the_store_takes_no_sha256(
    physionet: Lookalike,
    reader: tuple[str, str],
    tiny_dataset: Path,
    b2: B2Like,
    bucket: Bucket,
    s3_server: S3Server,
) -> None:
    params = {"bucket": bucket.name, "prefix": bucket.prefix, "select": "all"}
    wish, run, began = Request.from_params(params), RunLayout("b2"), datetime.now(UTC)

    def of_a_task() -> Bucket:
        """Each task opens its own."""
        return Bucket.open(s3_server.session(), bucket.name, bucket.prefix, endpoint_url=b2.endpoint)

    with closing(PhysioNet(physionet.url, *reader, connections=4)) as source:
        fetch_metadata.fetch_metadata(source, of_a_task(), MIMIC_CXR_JPG)
        made = plan.make_plan(wish, of_a_task(), run, streams=2, params=params)
        for shard in made.shards:
            mirror_shard.find_missing(shard, wish, of_a_task(), run, started=began)
            task = of_a_task()
            mover = Download(source, MIMIC_CXR_JPG, task)
            mirror_shard.stream_shard(shard, wish, mover, task, run, connections=4, stop=mirror_shard.Stop())
    verdict, report = verify.verify_run(wish, of_a_task(), run, params=params, started=began)

    folder = Path(s3_server.folder) / bucket.name / MIMIC_CXR_JPG.name
    published = [line.split(" ", 1) for line in (tiny_dataset / MIMIC_CXR_JPG.name / "SHA256SUMS.txt").open()]
    expected = {path.strip(): digest for digest, path in published if ".jpg" in path}
    stored = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in expected}
    assert stored == expected
    assert verdict.passed
    assert (verdict.verified, report.result.level) == (len(expected), "checksum")
    assert not b2.without

    # A byte that changes at rest is found, though no HEAD would tell.
    [first, *_] = sorted(expected)
    wrong = bytearray((folder / first).read_bytes())
    wrong[100] ^= 1
    (folder / first).write_bytes(wrong)
    found = verify.verify_run(wish, of_a_task(), run, params=params, started=datetime.now(UTC))[0]
    assert [(problem.path, problem.reason) for problem in found.problems] == [(first, "wrong bytes")]
