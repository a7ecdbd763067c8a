"""The comparison of files with the bucket, on a server that lists in any order, and its part in a run."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from demo import stack
from demo.lookalike import Lookalike
from physionet_mirror import compare as module
from physionet_mirror.compare import Comparison, compare
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import MetadataError
from physionet_mirror.files import File
from physionet_mirror.layout import INDEX, RunLayout
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.shards import Shard
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import audit, cleanup, fetch_metadata, mirror_shard, plan, verify
from physionet_mirror.verification import Verdict
from tests.integration.unordered_s3 import UnorderedS3, by_bytes, by_folder, by_hash

ORDERS = [pytest.param(order, id=order.__name__) for order in (by_bytes, by_hash, by_folder)]
EVERY = [None, 1, 5, 1000]
"""Files of the dataset per wanted one; None = not known."""


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
            [File(path, "0" * 64) for path in wanted],
            bucket,
            Comparison("count"),
            span=None if every is None else every * len(wanted),
        )
        missing = {problem.path for problem in found.problems}
        if server.order is by_folder and not there.issuperset(wanted):
            # Nearly byte order: among many absent files, a present one may count as absent and be fetched again.
            assert missing >= set(wanted) - there
        else:
            assert missing == set(wanted) - there
        assert {file.path for file in found.ok} == set(wanted) - missing


@pytest.mark.parametrize("server", ORDERS, indirect=True)
@pytest.mark.parametrize("every", [None, 1, 1000])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
def test_its_cost_is_bounded_in_any_order(server: UnorderedS3, every: int | None, share: float) -> None:
    files = [File(f"files/p10/p{n // 3:05}/s{n:06}/{n:04x}.jpg", "0" * 64) for n in range(2400)]
    bucket, rng = bucket_of(server), random.Random(1)
    server.objects = {bucket.key(file.path): b"x" for file in files if rng.random() < share}
    wanted = files[600:1800]
    found = compare(wanted, bucket, Comparison("count"), span=None if every is None else every * len(wanted))
    assert {file.path for file in found.ok} == {f.path for f in wanted if bucket.key(f.path) in server.objects}
    if every == 1000:
        assert server.asked["HEAD"] <= len(wanted)  # so sparse that each gets a HEAD
    elif server.order is by_bytes:
        assert (server.asked["LIST"] <= 4, server.asked["HEAD"] <= 24) == (True, True)
    else:  # a LIST costs as much as 12.5 HEADs
        assert server.asked["LIST"] * 12.5 + server.asked["HEAD"] <= 2.5 * len(wanted)


class TestDirectoryBucket:
    def test_it_is_never_asked_for_keys_behind_another(self) -> None:
        server = UnorderedS3(by_hash)
        plain = bucket_of(server)

        class Directory(Bucket):
            """S3's directory buckets refuse StartAfter. Botocore handles their sessions, so only the name is tested here."""

            def list(self, under: str = "", *, start_after: str | None = None, last: str | None = None) -> Any:
                assert start_after is last is None
                assert not under or under.endswith("/")
                return plain.list(under)

        bucket = Directory(plain.client, plain._signed, "mine--use1-az4--x-s3", "mine")
        bucket.head = plain.head  # type: ignore[method-assign]
        files = [File(f"files/p10/p{n:05}.jpg", "0" * 64) for n in range(100)]
        server.objects = {plain.key(file.path): b"x" for file in files[::2]}
        found = compare(files, bucket, Comparison("count"), span=100)
        assert [file.path for file in found.ok] == [file.path for file in files[::2]]
        assert server.asked == {"LIST": 1}
        server.close()


# -- in a run ----------------------------------------------------------------------------------------------------------


@dataclass
class Mirror:
    """A bucket that another tool filled, and the means to run against it."""

    bucket: Bucket
    source: Callable[[], PhysioNet]
    files: dict[str, bytes]
    run: RunLayout

    def mover(self) -> Download:
        return Download(self.source(), MIMIC_CXR_JPG, self.bucket)

    def find_and_stream(self, **params: Any) -> tuple[list[mirror_shard.Missing], Verdict]:
        """Make a whole run without Airflow; returns what each shard was missing, and the verdict."""
        wish = Request.from_params(
            {"bucket": self.bucket.name, "prefix": self.bucket.prefix, "select": "all", "shard_size": 20, **params}
        )
        fetch_metadata.fetch_metadata(self.source(), self.bucket, MIMIC_CXR_JPG)
        shards = plan.make_plan(wish, self.bucket, self.run, streams=2, params={}).shards
        with ThreadPoolExecutor(3) as pool:  # in parallel, as Airflow runs them
            found = list(
                pool.map(lambda s: mirror_shard.find_missing(s, wish, self.bucket, self.run, started=STARTED), shards)
            )
        for shard, missing in zip(shards, found, strict=True):
            if missing.images:
                mirror_shard.stream_shard(
                    shard, wish, self.mover(), self.bucket, self.run, connections=4, stop=mirror_shard.Stop()
                )
        return found, verify.verify_run(wish, self.bucket, self.run, params={}, started=STARTED)[0]


STARTED = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def mirror(
    physionet: Lookalike, reader: tuple[str, str], tiny_dataset: Path, strict_s3: stack.S3Server, bucket_name: str
) -> Mirror:
    strict_s3.make_bucket(bucket_name)
    bucket = Bucket.open(strict_s3.session(), bucket_name, MIMIC_CXR_JPG.name, endpoint_url=strict_s3.endpoint)
    version = tiny_dataset / MIMIC_CXR_JPG.name
    files = {str(at.relative_to(version)): at.read_bytes() for at in sorted(version.glob("files/**/*.jpg"))}
    for path, data in files.items():
        bucket.client.put_object(Bucket=bucket.name, Key=bucket.key(path), Body=data)  # without a SHA-256
    return Mirror(bucket, lambda: PhysioNet(physionet.url, *reader, connections=4), files, RunLayout("run"))


def test_a_bucket_that_another_tool_filled_is_proven_by_its_shards(mirror: Mirror) -> None:
    found, verdict = mirror.find_and_stream()
    assert verdict.passed
    assert sum(missing.read_back for missing in found) == len(mirror.files) > 40
    assert (verdict.remembered, verdict.read_back) == (len(mirror.files), 0)  # verify needs no further request for them


@pytest.mark.parametrize("level", ["checksum", "content"])
def test_one_run_heals_what_is_there_with_other_bytes_and_no_checksum(mirror: Mirror, level: str) -> None:
    paths = list(mirror.files)
    victims = [paths[3], paths[30]]
    for path in victims:
        data = mirror.files[path][::-1]
        mirror.bucket.client.put_object(Bucket=mirror.bucket.name, Key=mirror.bucket.key(path), Body=data)
    found, verdict = mirror.find_and_stream(verify=level)
    assert sorted(image.path for missing in found for image in missing.images) == victims
    assert (verdict.passed, verdict.verified) == (True, len(paths))
    assert verdict.read_back == (2 if level == "content" else 0)  # the others were read back in this same run
    assert all(mirror.bucket.read(path) == data for path, data in mirror.files.items())


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object_without_a_checksum_is_brought_again(mirror: Mirror, storage_class: str) -> None:
    """It cannot be read back, so it cannot be verified; with a checksum it would not have to be read."""
    proven, unproven = list(mirror.files)[3], list(mirror.files)[30]
    for path, more in ((proven, {"ChecksumAlgorithm": "SHA256"}), (unproven, {})):
        mirror.bucket.client.put_object(
            Bucket=mirror.bucket.name,
            Key=mirror.bucket.key(path),
            Body=mirror.files[path],
            StorageClass=storage_class,
            **more,
        )
    found, verdict = mirror.find_and_stream()
    assert [image.path for missing in found for image in missing.images] == [unproven]
    assert sum(missing.wrong for missing in found) == 1
    assert verdict.passed
    assert mirror.bucket.read(unproven) == mirror.files[unproven]
    assert mirror.bucket.head(proven).storage_class == storage_class, "left as it was"


def test_a_shard_that_was_killed_while_it_read_back_goes_on(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY", 5)
    files = [File(path, hashlib.sha256(data).hexdigest()) for path, data in mirror.files.items()]
    sha256, count = mirror.bucket.sha256, itertools.count()

    class Killed(BaseException):
        pass

    def dies(path: str) -> str:
        if path.startswith("files/") and next(count) > 30:
            raise Killed
        return sha256(path)

    monkeypatch.setattr(mirror.bucket, "sha256", dies)
    with pytest.raises(Killed):
        compare(files, mirror.bucket, Comparison("checksum"), workers=2, span=len(files))
    monkeypatch.setattr(mirror.bucket, "sha256", sha256)
    again = compare(files, mirror.bucket, Comparison("checksum"), workers=2, span=len(files))
    assert not again.problems
    assert again.read_back <= len(files) - 25


@pytest.mark.parametrize("damage", [lambda data: data[: data.index(b"\n", 300) + 1], lambda _: b""])
def test_a_shard_list_that_lost_its_end_is_refused_by_all_who_read_it(mirror: Mirror, damage: Any) -> None:
    mirror.find_and_stream()
    wish = Request.from_params({"bucket": mirror.bucket.name, "prefix": mirror.bucket.prefix, "select": "all"})
    plan = json.loads(mirror.bucket.read(mirror.run.plan))
    shard = Shard.from_json(plan["shards"][1])
    mirror.bucket.write(shard.path, damage(mirror.bucket.read(shard.path)))
    for read in (
        lambda: mirror_shard.find_missing(shard, wish, mirror.bucket, mirror.run),
        lambda: verify.verify_run(wish, mirror.bucket, mirror.run, params={}, started=STARTED),
        lambda: list(cleanup.list_deletions(mirror.bucket, "run", mirror.run.run_id)),
    ):
        with pytest.raises(MetadataError, match="trigger a new run"):
            read()


@pytest.mark.parametrize("damage", [lambda data: data[: data.index(b"\n", 300) + 1], lambda _: b"", None])
def test_a_list_of_what_is_missing_that_lost_its_end_is_made_anew(mirror: Mirror, damage: Any) -> None:
    mirror.bucket.delete(list(mirror.files))
    wish = Request.from_params(
        {"bucket": mirror.bucket.name, "prefix": mirror.bucket.prefix, "select": "all", "shard_size": 20}
    )
    fetch_metadata.fetch_metadata(mirror.source(), mirror.bucket, MIMIC_CXR_JPG)
    shard = plan.make_plan(wish, mirror.bucket, mirror.run, streams=2, params={}).shards[0]
    assert len(mirror_shard.find_missing(shard, wish, mirror.bucket, mirror.run).images) == shard.images
    path = mirror.run.missing(0)
    if damage is None:
        mirror.bucket.delete([path])
    else:
        mirror.bucket.write(path, damage(mirror.bucket.read(path)))
    mirror_shard.stream_shard(
        shard, wish, mirror.mover(), mirror.bucket, mirror.run, connections=4, stop=mirror_shard.Stop()
    )
    assert not mirror_shard.find_missing(shard, wish, mirror.bucket, mirror.run).images


@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda _: b"", lambda data: data[:20] + b"x" + data[21:]])
def test_a_damaged_list_of_what_is_to_be_deleted_deletes_nothing(mirror: Mirror, damage: Any) -> None:
    cleanup.write_listing(mirror.bucket, mirror.run, cleanup.list_deletions(mirror.bucket, "prefix", None))
    path = mirror.run.root + "deleted.jsonl.gz"
    mirror.bucket.write(path, damage(mirror.bucket.read(path)))
    with pytest.raises(MetadataError, match="Nothing was deleted"):
        cleanup.delete_listed(mirror.bucket, mirror.run)
    assert len(list(mirror.bucket.list("files/"))) == len(mirror.files)


def test_an_audit_names_what_is_lost_or_strange_and_changes_nothing(mirror: Mirror) -> None:
    assert mirror.find_and_stream()[1].passed
    lost, strange = list(mirror.files)[5], list(mirror.files)[25]
    mirror.bucket.delete([lost])
    mirror.bucket.put(strange, b"other bytes", content_type="image/jpeg")
    before = {entry.path: entry for entry in mirror.bucket.list("files/")}
    for run in ("audit one", "audit two"):
        verdict = audit.audit(mirror.bucket, "checksum", audit.Share(1, 1), run)
        assert {p.path: p.reason for p in verdict.problems} == {lost: "missing", strange: "wrong bytes"}
        assert verdict.selected == len(mirror.files)
    assert {entry.path: entry for entry in mirror.bucket.list("files/")} == before
    mirror.bucket.write(INDEX, b"damaged" * 100)
    assert [p.path for p in audit.audit(mirror.bucket, "count", audit.Share(1, 1)).problems] == [lost]
    mirror.bucket.delete([INDEX])  # objects that no record mentions are not missed
    assert [p.path for p in audit.audit(mirror.bucket, "count", audit.Share(1, 1)).problems] == []


def test_what_a_shard_has_stored_is_proven_there_and_not_asked_for_again(mirror: Mirror) -> None:
    mirror.bucket.delete(sorted(mirror.files)[::3])
    found, verdict = mirror.find_and_stream()
    assert sum(len(missing.images) for missing in found) == len(sorted(mirror.files)[::3])
    assert (verdict.passed, verdict.remembered) == (True, len(mirror.files))
    assert verdict.requests.get("HEAD", 0) == 0
