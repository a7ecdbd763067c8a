"""Stores that do not do all that Amazon's S3 does: an S3 like Backblaze's, which takes no SHA-256."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from demo import store
from demo.lookalike import Lookalike, User
from demo.stack import S3Server
from physionet_mirror.dataset import MIMIC_CXR_JPG, project
from physionet_mirror.errors import BucketRefused, DestinationError, DestinationUnavailable, MirrorError
from physionet_mirror.files import File
from physionet_mirror.layout import RunLayout
from physionet_mirror.pace import Pace
from physionet_mirror.records import Plan, Store, load
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import PART_SIZE, Bucket
from physionet_mirror.s3.capabilities import Capabilities
from physionet_mirror.s3.probe import probe
from physionet_mirror.source import download
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import fetch_metadata, mirror_shard, plan, verify
from physionet_mirror.transfer import Transfer
from tests.b2_like import B2Like
from tests.chaos.s3_proxy import Fault, Kind
from tests.integration.unordered_s3 import UnorderedS3, by_hash

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


def whole_file(bucket: Bucket) -> None:
    bucket.put_file("x.tar", io.BytesIO(DATA), sha256=DIGEST, content_type="application/x-tar")


def look(bucket: Bucket) -> None:
    assert bucket.head("nothing") is None


@pytest.mark.parametrize("first", [put, small, in_parts, whole_file, look])
def test_the_first_refusal_of_sha256_is_the_last(b2: B2Like, bucket: Bucket, first: Any) -> None:
    first(bucket)
    assert not bucket.can.sha256
    refused = sum(b2.refused.values())
    assert refused >= 1
    put(bucket)  # by boto3, and once more by a signed request of our own
    put(bucket)
    small(bucket)
    in_parts(bucket)
    whole_file(bucket)
    stored = bucket.head("x.jpg")
    assert stored is not None
    assert (stored.size, stored.sha256) == (len(DATA), None)
    assert sum(b2.refused.values()) == refused
    assert not b2.without  # each PUT carried Content-MD5
    assert bucket.sha256("x.jpg") == bucket.sha256("x.tar") == DIGEST


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

    known = Store(**asdict(probe(bucket)))
    refused, without = dict(b2.refused), b2.without  # some of the check's own PUTs carry none

    def of_a_task() -> Bucket:
        """Each task opens its own, and is told."""
        opened = Bucket.open(s3_server.session(), bucket.name, bucket.prefix, endpoint_url=b2.endpoint)
        opened.can = known
        return opened

    with closing(PhysioNet(physionet.url, *reader, connections=4)) as source:
        fetch_metadata.fetch_metadata(source, of_a_task(), MIMIC_CXR_JPG)
        made = plan.make_plan(wish, of_a_task(), run, streams=2, params=params, store=known)
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
    assert b2.refused == refused  # nobody asked again
    assert b2.without == without
    kept = load(bucket, run.plan, Plan)
    assert kept is not None
    assert kept.store == report.store == known
    assert made.estimate.read_back == len(expected)
    assert any("takes no SHA-256" in note for note in report.notes)

    # A byte that changes at rest is found, though no HEAD would tell.
    [first, *_] = sorted(expected)
    wrong = bytearray((folder / first).read_bytes())
    wrong[100] ^= 1
    (folder / first).write_bytes(wrong)
    found = verify.verify_run(wish, of_a_task(), run, params=params, started=datetime.now(UTC))[0]
    assert [(problem.path, problem.reason) for problem in found.problems] == [(first, "wrong bytes")]


# -- tried beforehand ------------------------------------------------------------------------------------------------


def bucket_at(server: S3Server, name: str) -> Bucket:
    server.make_bucket(name)
    return Bucket.open(server.session(), name, "a/prefix", endpoint_url=server.endpoint)


def test_a_store_that_does_all_lacks_nothing_and_keeps_nothing_of_the_check(
    strict_s3: S3Server, bucket_name: str
) -> None:
    bucket = bucket_at(strict_s3, bucket_name)
    bucket.can = NO_SHA256  # as if learnt from another server
    can = probe(bucket, "STANDARD_IA")
    assert can == bucket.can
    assert can.without("copies_if_absent") == Capabilities().without("copies_if_absent")
    assert list(can.lacks()) == []
    assert not list(bucket.list())
    assert sum(bucket.requests.values()) < 20


@pytest.fixture
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_what_a_store_does_not_do_is_found_and_said(
    s3_server: S3Server, bucket: Bucket, moto: str, bucket_name: str
) -> None:
    session = boto3.Session("key", "secret", region_name="us-east-1")
    session.client("s3", endpoint_url=moto).create_bucket(Bucket=bucket_name)
    direct = Bucket.open(s3_server.session(), bucket_name, "a/prefix", endpoint_url=s3_server.endpoint)
    of_moto = Bucket.open(session, bucket_name, "a/prefix", endpoint_url=moto)
    found = {}
    for name, one in {"rclone": direct, "b2": bucket, "moto": of_moto}.items():
        can = probe(one)
        found[name] = {what for what, does in asdict(can).items() if not does and not what.startswith("copies")}
        assert not list(one.list())
        assert len(can.lacks()) >= 2
    assert found == {
        "rclone": {"checks_sha256", "conditions"},
        "b2": {"sha256", "keeps_sha256", "conditions", "deletes_many"},
        "moto": {"keeps_sha256", "checks_sha256", "checks_md5"},
    }


def test_a_store_that_does_next_to_nothing_is_no_error() -> None:
    server = UnorderedS3(by_hash)
    session = boto3.Session("key", "secret", region_name="us-east-1")
    try:
        bucket = Bucket.open(
            session, "b", "p", endpoint_url=server.url, config=Config(retries={"max_attempts": 1, "mode": "standard"})
        )
        can = probe(bucket, "STANDARD_IA")
    finally:
        server.close()
    does = {what for what, it in asdict(can).items() if it}
    assert does <= {"sha256", "start_after", "deletes_many", "copies"}
    assert len(can.lacks()) == 7 + (not can.copies)
    assert all(key.startswith("p/_mirror/store-check/") for key in server.objects)


def test_a_role_that_may_not_delete_passes(b2: B2Like, bucket: Bucket) -> None:
    def may_not(method: str, address: str, _: Any) -> tuple[int, str, str] | None:
        return (403, "AccessDenied", "No.") if method == "DELETE" or address.endswith("?delete") else None

    b2.refusal = may_not
    for _ in range(2):
        can = probe(bucket)
        assert not can.deletes
        assert can.sha256
        assert len(list(bucket.list())) == 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [((400, "InvalidStorageClass", "No such class."), BucketRefused), ((503, "Busy", ""), DestinationUnavailable)],
)
def test_a_storage_class_that_is_refused_ends_the_check_and_a_busy_store_does_not_decide(
    b2: B2Like, s3_server: S3Server, bucket_name: str, answer: tuple[int, str, str], error: type[Exception]
) -> None:
    def refuse(method: str, address: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        return answer if headers.get("x-amz-storage-class") == "STANDARD_IA" else None

    b2.refusal = refuse
    quick = Config(retries={"max_attempts": 1, "mode": "standard"})
    bucket = Bucket.open(s3_server.session(), bucket_name, "p", endpoint_url=b2.endpoint, config=quick)
    assert probe(bucket).keeps_storage_class
    with pytest.raises(error):
        probe(bucket, "STANDARD_IA")


def test_a_wrong_byte_is_refused_where_the_store_takes_any_sha256_for_granted(b2: B2Like, bucket: Bucket) -> None:
    b2.refusal = None  # rclone's server itself: it keeps the SHA-256 that it is told
    b2.set(Fault(Kind.FLIPPED, "*/x.*"))
    put(bucket)
    stored = bucket.head("x.jpg")
    assert stored is not None
    assert stored.sha256 == DIGEST != bucket.sha256("x.jpg")
    b2.set(None)
    assert probe(bucket).sha256
    b2.set(Fault(Kind.FLIPPED, "*/x.*"))
    with pytest.raises(DestinationError, match="BadDigest"):
        put(bucket)


def test_a_store_may_be_tried_beforehand_and_nothing_stays(
    b2: B2Like,
    s3_server: S3Server,
    bucket_name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    assert store.main([b2.endpoint, bucket_name]) == 0
    said = capsys.readouterr().out
    assert "sha256               no" in said
    assert "60 images mirrored and verified; 0 of them read back wrong." in said
    assert not list(Bucket.open(s3_server.session(), bucket_name, "", endpoint_url=s3_server.endpoint).list())
    assert store.main([b2.endpoint, "no-such-bucket-anywhere"]) == 1


def test_a_large_file_comes_in_one_stream_where_the_store_takes_no_copies(
    b2: B2Like, bucket: Bucket, tmp_path: Path, reader: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_copies(method: str, address: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        return (501, "NotImplemented", "No copies.") if "x-amz-copy-source" in headers else None

    b2.refusal = no_copies
    monkeypatch.setattr(download, "LARGE", 1 << 20)
    data = random.Random(1).randbytes(3 << 20)
    digest = hashlib.sha256(data).hexdigest()
    large = project("large/1.0")
    (tmp_path / large.name).mkdir(parents=True)
    (tmp_path / large.name / "large.bin").write_bytes(data)
    (tmp_path / large.name / "SHA256SUMS.txt").write_text(f"{digest} large.bin\n")
    file = File("large.bin", digest, len(data))
    login, password = reader
    with (
        Lookalike(tmp_path, users={login: User(password)}, check_seconds=0) as site,
        closing(PhysioNet(site.url, login, password, connections=4)) as source,
    ):
        with pytest.raises(MirrorError):  # what happens to whom nobody has told
            transfer(Download(source, large, bucket), file)
        assert not probe(bucket).copies
        transfer(Download(source, large, bucket), file)
    assert bucket.sha256("large.bin") == digest


def transfer(mover: Download, file: File) -> None:
    Transfer([file], mover=mover, pace=Pace(4, received=lambda: mover.stats.received), backoff=0.01).run()
