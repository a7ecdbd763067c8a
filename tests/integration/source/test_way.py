"""Both ways from PhysioNet's access point, and every refusal, over the wire."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from demo import stack
from demo.access_point import AccessPoint as Aws
from demo.access_point import Identity
from demo.lookalike import Lookalike
from physionet_mirror.dataset import MIMIC_CXR_JPG, SUMS
from physionet_mirror.errors import AccessRefused, ImagesFailed, NotFound
from physionet_mirror.files import File
from physionet_mirror.pace import Pace
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.shards import decode
from physionet_mirror.source.access_point import AccessPoint
from physionet_mirror.source.copy import ServerSideCopy
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.source.through import ThroughWorker
from physionet_mirror.source.way import Way, choose
from physionet_mirror.transfer import Transfer

NAME = MIMIC_CXR_JPG.name
POINT = "mimic-cxr-jpg-v2-1-0-01"
READER, ROLE, ROOT, STRANGER = "AKIAREADER", "ASIAROLE", "AKIAROOT", "AKIASTRANGER"
ELSEWHERE = "AKIAELSEWHERE"


@pytest.fixture
def aws(tiny_dataset: Path, s3_server: stack.S3Server) -> Iterator[Aws]:
    identities = {
        READER: Identity("reader", "secret-1"),
        ROLE: Identity("worker", "secret-2", "role"),
        ROOT: Identity("", "secret-3", "root"),
        STRANGER: Identity("stranger", "secret-4", granted=False),
        # PhysioNet has verified the user of that name in the other account.
        ELSEWHERE: Identity("reader", "secret-5", granted=False, account="444455556666"),
    }
    upstream = (s3_server.endpoint, s3_server.access_key, s3_server.secret_key)
    with Aws(tiny_dataset, upstream=upstream, identities=identities) as server:
        yield server


def session(aws: Aws, key: str) -> boto3.Session:
    return boto3.Session(key, aws.identities[key].secret, region_name="us-east-1")


def at(aws: Aws, key: str = READER, name: str = POINT) -> AccessPoint:
    arn = aws.identities[key].arn
    bucket = Bucket.open(session(aws, key), name, NAME, endpoint_url=aws.endpoint)
    return AccessPoint(bucket, MIMIC_CXR_JPG, conn_id="physionet_s3", identity=lambda: arn)


@pytest.fixture
def destination(aws: Aws, bucket_name: str) -> Any:
    def open_(key: str = READER) -> Bucket:
        return Bucket.open(session(aws, key), bucket_name, "mine", endpoint_url=aws.endpoint)

    return open_


@pytest.fixture
def files(tiny_dataset: Path) -> list[File]:
    lines = (tiny_dataset / NAME / SUMS).read_bytes().splitlines(keepends=True)
    images = decode(b"".join(line for line in lines if line.endswith(b".jpg\n")))[:12]
    return [File(file.path, file.sha256, (tiny_dataset / NAME / file.path).stat().st_size) for file in images]


def moved(mover: Any, files: list[File]) -> Transfer:
    return Transfer(files, mover=mover, pace=Pace(8, received=lambda: mover.stats.received), backoff=0.01)


def contents(bucket: Bucket) -> dict[str, str]:
    return {entry.path: hashlib.sha256(bucket.read(entry.path)).hexdigest() for entry in bucket.list()}


def test_one_identity_in_one_region_copies(aws: Aws, destination: Any, files: list[File]) -> None:
    bucket = destination()
    way = choose(at(aws), {"aws_default": bucket})
    assert (way.mode, way.keys, way.source) == ("copy", "aws_default", "s3")
    assert list(bucket.list()) == []  # the trial leaves nothing behind

    aws.counts.clear()
    tally = moved(ServerSideCopy(at(aws), bucket, conditional=True), files).run()
    assert contents(bucket) == {file.path: file.sha256 for file in files}
    assert tally.bytes == sum(file.bytes or 0 for file in files)
    asked = {operation for operation, _ in aws.counts}
    assert aws.counts["COPY", 200] == len(files)
    assert not asked & {"LIST", "HEAD", "GET"}  # the access point gets no other requests


def test_a_role_at_the_destination_goes_through_the_worker(aws: Aws, destination: Any, files: list[File]) -> None:
    bucket = destination(ROLE)
    way = choose(at(aws), {"aws_default": bucket})
    assert way.mode == "through"
    assert "aws_default" in way.reason
    assert "not authorized to perform" in way.reason

    aws.counts.clear()
    moved(ThroughWorker(at(aws), bucket), files).run()
    assert contents(bucket) == {file.path: file.sha256 for file in files}
    assert aws.counts["GET", 200] == len(files)
    assert not {operation for operation, _ in aws.counts} & {"LIST", "HEAD", "COPY"}


def test_the_readers_keys_may_make_the_copies(aws: Aws, destination: Any) -> None:
    way = choose(at(aws), {"aws_default": destination(ROLE), "physionet_s3": destination()})
    assert (way.mode, way.keys) == ("copy", "physionet_s3")


def test_another_region_goes_through_the_worker(aws: Aws, destination: Any, bucket_name: str) -> None:
    aws.regions[bucket_name] = "eu-west-1"
    way = choose(at(aws), {"aws_default": destination()})
    assert way.mode == "through"
    assert "Cross-Region copy is not supported" in way.reason


def test_another_s3_goes_through_the_worker(aws: Aws) -> None:
    assert choose(at(aws), {}).mode == "through"


def test_a_way_survives_its_json() -> None:
    way = Way("copy", "LICENSE.txt was copied", "physionet_s3", True)
    assert Way.from_json(way.to_json()) == way
    assert Way.from_json({"mode": "sideways", "reason": 3}) == Way()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (ROLE, "…3333:assumed-role/worker/session, whose keys are in the connection physionet_s3.*That is a role"),
        (ROOT, "…3333:root, .*That is the account's root user"),
        (STRANGER, "…3333:user/stranger, whose keys are in the connection physionet_s3"),
        (ELSEWHERE, "…6666:user/reader, whose keys are in the connection physionet_s3"),
    ],
)
def test_who_may_not_read_is_named_and_told_what_to_do(aws: Aws, destination: Any, key: str, said: str) -> None:
    with pytest.raises(AccessRefused, match=said) as raised:
        choose(at(aws, key), {"aws_default": destination(key)})
    for step in ("get-caller-identity", "aws s3 presign", "ask for access", "-02", "source=physionet"):
        assert step in str(raised.value)
    assert "111122223333" not in str(raised.value)
    assert "secret-" not in str(raised.value)


def test_the_wrong_access_point_of_several_is_told(aws: Aws, destination: Any) -> None:
    aws.points = {POINT.replace("-01", "-02"): NAME}
    with pytest.raises(AccessRefused, match="-02 or later"):
        choose(at(aws), {"aws_default": destination()})
    assert choose(at(aws, name=POINT.replace("-01", "-02")), {"aws_default": destination()}).mode == "copy"


def test_an_access_point_of_another_project_is_told(aws: Aws, destination: Any) -> None:
    aws.points = {POINT: "mimic-cxr/2.0.0"}
    with pytest.raises(AccessRefused, match="physionet_access_point"):
        choose(at(aws), {"aws_default": destination()})


@pytest.mark.parametrize("mode", ["copy", "through"])
def test_one_absent_key_one_refused_key_and_wrong_bytes_cost_these_files_only(
    aws: Aws, destination: Any, files: list[File], mode: str
) -> None:
    bucket = destination()
    aws.denied.add(files[0].path)
    aws.damaged.add(files[1].path)
    absent = File("files/p10/none.jpg", "0" * 64, 10)
    mover = ServerSideCopy(at(aws), bucket) if mode == "copy" else ThroughWorker(at(aws), bucket)
    transfer = moved(mover, [*files, absent])
    with pytest.raises(ImagesFailed):
        transfer.run()
    reasons = {failure.path: failure.reason for failure in transfer.tally.failed}
    assert reasons == {files[0].path: "file refused", files[1].path: "corrupt", absent.path: "not found"}
    assert contents(bucket) == {file.path: file.sha256 for file in files[2:]}


@pytest.mark.parametrize("mode", ["copy", "through"])
def test_keys_that_expire_in_mid_shard_end_it_at_once(aws: Aws, destination: Any, files: list[File], mode: str) -> None:
    writer = destination()
    mover = ServerSideCopy(at(aws), writer) if mode == "copy" else ThroughWorker(at(aws), destination(ROLE))
    moved(mover, files[:3]).run()
    aws.identities[READER] = Identity("reader", "secret-1", expired=True)
    transfer = moved(mover, files[3:])
    with pytest.raises(Exception, match="ExpiredToken") as raised:
        transfer.run()
    assert getattr(raised.value, "permanent", False)
    assert transfer.tally.failed == []  # no file is blamed


def test_access_that_is_withdrawn_is_no_files_fault(aws: Aws, files: list[File], destination: Any) -> None:
    aws.identities[READER] = Identity("reader", "secret-1", granted=False)
    transfer = moved(ThroughWorker(at(aws), destination(ROLE)), files)
    with pytest.raises(AccessRefused, match="user/reader"):
        transfer.run()
    assert transfer.tally.failed == []


@pytest.mark.parametrize("mode", ["copy", "through"])
def test_a_slowdown_storm_blames_nobody(aws: Aws, destination: Any, files: list[File], mode: str) -> None:
    bucket = destination()
    mover = ServerSideCopy(at(aws), bucket) if mode == "copy" else ThroughWorker(at(aws), bucket)
    aws.slow_down_above = 5
    tally = moved(mover, files).run()
    assert tally.stored == len(files)
    assert sum(count for (_, status), count in aws.counts.items() if status == 503) > 0
    assert tally.failed == []


@pytest.mark.parametrize("mode", ["copy", "through"])
def test_an_overlapping_runs_object_is_kept(aws: Aws, destination: Any, files: list[File], mode: str) -> None:
    """A download has stored the same file, and the access point's copy is damaged."""
    bucket = destination()
    whole = (aws.datasets / NAME / files[0].path).read_bytes()
    bucket.put(files[0].path, whole, content_type="image/jpeg")
    aws.damaged.add(files[0].path)
    mover = ServerSideCopy(at(aws), bucket) if mode == "copy" else ThroughWorker(at(aws), bucket)
    with pytest.raises(ImagesFailed):
        moved(mover, files[:1]).run()
    assert contents(bucket) == {files[0].path: files[0].sha256}


def test_copies_are_proven_by_reading_where_no_checksum_is_kept(aws: Aws, destination: Any, files: list[File]) -> None:
    bucket = destination()
    aws.keeps_checksums = False
    aws.damaged.add(files[0].path)
    transfer = moved(ServerSideCopy(at(aws), bucket), files)
    with pytest.raises(ImagesFailed):
        transfer.run()
    assert [(failure.path, failure.reason) for failure in transfer.tally.failed] == [(files[0].path, "corrupt")]
    assert aws.counts["own GET", 200] >= len(files)
    assert contents(bucket) == {file.path: file.sha256 for file in files[1:]}


@pytest.mark.parametrize("keeps_conditions", [True, False])
def test_what_is_stored_just_before_a_wrong_copy_is_deleted_stays(
    aws: Aws, destination: Any, files: list[File], keeps_conditions: bool
) -> None:
    bucket, other = destination(), destination()
    aws.keeps_conditions = keeps_conditions
    way = choose(at(aws), {"aws_default": bucket})
    assert (way.mode, way.conditional) == ("copy", keeps_conditions)
    assert list(bucket.list()) == []
    aws.damaged.add(files[0].path)
    whole = (aws.datasets / NAME / files[0].path).read_bytes()
    for operation in ("DeleteObject", "DeleteObjects"):
        bucket.client.meta.events.register(
            f"before-call.s3.{operation}",
            lambda **_: other.put(files[0].path, whole, content_type="image/jpeg") and None,
        )
    with pytest.raises(ImagesFailed):
        moved(ServerSideCopy(at(aws), bucket, conditional=way.conditional), files[:1]).run()
    assert contents(bucket) == {files[0].path: files[0].sha256}


def test_where_nothing_may_be_deleted_the_files_go_through_the_worker(aws: Aws, destination: Any) -> None:
    """A wrong copy could not be removed."""
    aws.may_not_delete.add(READER)
    way = choose(at(aws), {"aws_default": destination()})
    assert way.mode == "through"
    assert "is not authorized to perform: s3:DeleteObject" in way.reason


def test_copies_where_nothing_keeps_conditions_are_proven_beside(aws: Aws, destination: Any, files: list[File]) -> None:
    bucket = destination()
    aws.keeps_conditions = False
    aws.damaged.add(files[0].path)
    with pytest.raises(ImagesFailed):
        moved(ServerSideCopy(at(aws), bucket), files).run()
    assert contents(bucket) == {file.path: file.sha256 for file in files[1:]}


@pytest.mark.parametrize(("keeps_conditions", "keeps_checksums"), [(True, True), (True, False), (False, True)])
def test_a_run_from_the_website_amid_copies_loses_nothing(
    strict_s3: stack.S3Server,
    tiny_dataset: Path,
    physionet: Lookalike,
    reader: tuple[str, str],
    files: list[File],
    keeps_conditions: bool,
    keeps_checksums: bool,
) -> None:
    """Both bring the same files at once, and half of the access point's are damaged."""
    upstream = (strict_s3.endpoint, strict_s3.access_key, strict_s3.secret_key)
    name = f"amid-{uuid.uuid4().hex[:8]}"
    strict_s3.make_bucket(name)
    with Aws(tiny_dataset, upstream=upstream, identities={READER: Identity("reader", "secret-1")}) as aws:
        aws.keeps_conditions, aws.keeps_checksums = keeps_conditions, keeps_checksums
        aws.damaged.update(file.path for file in files[::2])
        bucket, other = (Bucket.open(session(aws, READER), name, "mine", endpoint_url=aws.endpoint) for _ in range(2))
        copies = moved(ServerSideCopy(at(aws), bucket, conditional=keeps_conditions), files)
        site = PhysioNet(physionet.url, *reader, connections=4)
        downloads = moved(Download(site, MIMIC_CXR_JPG, other), files)
        with ThreadPoolExecutor(2) as pool:
            copied, downloaded = pool.submit(copies.run), pool.submit(downloads.run)
        with pytest.raises(ImagesFailed):
            copied.result()
        assert downloaded.result().stored == len(files)
        assert {failure.reason for failure in copies.tally.failed} == {"corrupt"}
        assert contents(bucket) == {file.path: file.sha256 for file in files}


def test_sizes_come_from_a_listing(aws: Aws, files: list[File]) -> None:
    point = at(aws)
    aws.counts.clear()
    paths = sorted([*(file.path for file in files), "files/p10/none.jpg"])
    assert point.sizes(paths) == {file.path: file.bytes for file in files}
    assert aws.counts["LIST", 200] == sum(aws.counts.values()) == 1


def test_tables_come_from_the_access_point(aws: Aws, tiny_dataset: Path) -> None:
    point = at(aws)
    assert b"".join(point.stream(MIMIC_CXR_JPG, SUMS, None)) == (tiny_dataset / NAME / SUMS).read_bytes()
    assert point.etag(MIMIC_CXR_JPG, SUMS) == point.etag(MIMIC_CXR_JPG, SUMS)
    with pytest.raises(NotFound):
        list(point.stream(MIMIC_CXR_JPG, "none.csv", None))


def test_a_file_that_grew_is_not_taken(aws: Aws, files: list[File], destination: Any) -> None:
    bucket = destination(ROLE)
    short = File(files[0].path, files[0].sha256, (files[0].bytes or 0) - 1)
    transfer = moved(ThroughWorker(at(aws), bucket), [short])
    with pytest.raises(ImagesFailed):
        transfer.run()
    assert [failure.reason for failure in transfer.tally.failed] == ["corrupt"]
    assert contents(bucket) == {}
