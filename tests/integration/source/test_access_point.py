"""Copies inside S3, on three servers: rclone, which keeps objects as files; moto and a strict one, which compute checksums of copies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from demo import stack
from physionet_mirror.dataset import MIMIC_CXR, MIMIC_CXR_JPG, SUMS
from physionet_mirror.errors import (
    AccessRefused,
    BucketRefused,
    Corrupt,
    ImagesFailed,
    InputError,
    NotFound,
)
from physionet_mirror.files import File
from physionet_mirror.mover import ALONE
from physionet_mirror.pace import Pace
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.shards import decode
from physionet_mirror.source import access_point
from physionet_mirror.source.access_point import AccessPoint, access_point_of
from physionet_mirror.source.copy import ServerSideCopy
from physionet_mirror.transfer import Transfer

NAME = MIMIC_CXR_JPG.name


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["moto", "strict"])
def endpoint(request: pytest.FixtureRequest) -> str:
    """Endpoint of a server that computes a copy's checksum, as S3 does."""
    return request.getfixturevalue("moto") if request.param == "moto" else request.getfixturevalue("strict_s3").endpoint


@pytest.fixture(params=["rclone", "moto", "strict"])
def s3(request: pytest.FixtureRequest, s3_server: stack.S3Server) -> tuple[boto3.Session, str]:
    if request.param == "moto":
        return boto3.Session("testaccess", "testsecret", region_name="us-east-1"), request.getfixturevalue("moto")
    server = s3_server if request.param == "rclone" else request.getfixturevalue("strict_s3")
    return server.session(), server.endpoint


@pytest.fixture
def images(tiny_dataset: Path) -> list[File]:
    lines = (tiny_dataset / NAME / SUMS).read_bytes().splitlines(keepends=True)
    return decode(b"".join(line for line in lines if line.endswith(b".jpg\n")))[:12]


@pytest.fixture
def buckets(
    s3: tuple[boto3.Session, str], bucket_name: str, images: list[File], tiny_dataset: Path
) -> tuple[Bucket, Bucket]:
    """The source bucket, filled as PhysioNet's is, and an empty destination with another prefix."""
    session, endpoint = s3
    client = session.client("s3", endpoint_url=endpoint)
    names = [f"{bucket_name}-source", f"{bucket_name}-copy"]
    for name in names:
        client.create_bucket(Bucket=name)
    source = Bucket.open(session, names[0], NAME, endpoint_url=endpoint)
    for path in [SUMS, *(image.path for image in images)]:
        source.put(path, (tiny_dataset / NAME / path).read_bytes(), content_type="application/octet-stream")
    return source, Bucket.open(session, names[1], "mine", endpoint_url=endpoint)


def copier(
    source: Bucket, bucket: Bucket, storage_class: str = "STANDARD", *, conditional: bool = False
) -> ServerSideCopy:
    return ServerSideCopy(AccessPoint(source, MIMIC_CXR_JPG), bucket, storage_class, conditional=conditional)


def copy(images: list[File], source: ServerSideCopy, **options: Any) -> Transfer:
    pace = Pace(16, received=lambda: source.stats.received)
    return Transfer(images, mover=source, pace=pace, backoff=0.01, **options)


def test_images_are_copied_and_proven_without_passing_through_here(
    buckets: tuple[Bucket, Bucket], images: list[File]
) -> None:
    origin, bucket = buckets
    source = copier(origin, bucket, conditional=True)
    source.check()
    tally = copy(images, source).run()
    assert (tally.stored, tally.state) == (len(images), "done")
    assert {entry.path for entry in bucket.list()} == {image.path for image in images}
    assert all(hashlib.sha256(bucket.read(image.path)).hexdigest() == image.sha256 for image in images)
    assert tally.bytes == sum(entry.size for entry in bucket.list())
    assert (bucket.requests["COPY"], bucket.requests["PUT"], origin.requests["GET"]) == (len(images), 0, 0)
    stored = bucket.head(images[0].path)
    assert stored is not None
    assert stored.content_type == "image/jpeg"


def test_the_storage_class_is_the_destinations(endpoint: str, bucket_name: str) -> None:
    session = boto3.Session("testaccess", "testsecret", region_name="us-east-1")
    client = session.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=bucket_name)
    origin = Bucket.open(session, bucket_name, NAME, endpoint_url=endpoint)
    bucket = Bucket.open(session, bucket_name, "mine", endpoint_url=endpoint)
    client.put_object(Bucket=bucket_name, Key=origin.key("files/a.jpg"), Body=b"a", Tagging="owner=physionet")
    copier(origin, bucket, "STANDARD_IA").fetch(File("files/a.jpg", hashlib.sha256(b"a").hexdigest()), ALONE)
    stored = bucket.head("files/a.jpg")
    assert stored is not None
    assert (stored.storage_class, stored.sha256) == ("STANDARD_IA", hashlib.sha256(b"a").hexdigest())
    assert client.get_object_tagging(Bucket=bucket_name, Key=bucket.key("files/a.jpg"))["TagSet"] == []


def test_a_copy_that_does_not_hash_is_taken_away_and_named(endpoint: str, bucket_name: str) -> None:
    session = boto3.Session("testaccess", "testsecret", region_name="us-east-1")
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket_name)
    origin = Bucket.open(session, bucket_name, NAME, endpoint_url=endpoint)
    bucket = Bucket.open(session, bucket_name, "mine", endpoint_url=endpoint)
    origin.put(SUMS, b"sums", content_type="text/plain")  # every lookup there needs it
    origin.put("files/a.jpg", b"damaged", content_type="image/jpeg")
    wanted = [File("files/a.jpg", hashlib.sha256(b"whole").hexdigest()), File("files/b.jpg", "0" * 64)]
    transfer = copy(wanted, copier(origin, bucket))
    with pytest.raises(ImagesFailed):
        transfer.run()
    assert {(failure.path, failure.reason) for failure in transfer.tally.failed} == {
        ("files/a.jpg", "corrupt"),
        ("files/b.jpg", "not found"),
    }
    assert list(bucket.list()) == []


@pytest.fixture
def two(s3: tuple[boto3.Session, str], bucket_name: str) -> tuple[Bucket, Bucket]:
    """A source and a destination in one bucket."""
    session, endpoint = s3
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=f"{bucket_name}-two")
    return tuple(Bucket.open(session, f"{bucket_name}-two", prefix, endpoint_url=endpoint) for prefix in (NAME, "mine"))


WHOLE = hashlib.sha256(b"whole").hexdigest()


def bring(two: tuple[Bucket, Bucket], *, conditional: bool = False) -> None:
    copier(*two, conditional=conditional).fetch(File("files/a.jpg", WHOLE), ALONE)


def everything(bucket: Bucket) -> dict[str, bytes]:
    return {entry.path: bucket.read(entry.path) for entry in bucket.list()}


def test_what_stands_there_is_never_replaced_by_wrong_bytes(two: tuple[Bucket, Bucket]) -> None:
    origin, bucket = two
    origin.put("files/a.jpg", b"damaged", content_type="image/jpeg")
    bucket.put("files/a.jpg", b"the user's own", content_type="image/jpeg")
    before = bucket.head("files/a.jpg")
    with pytest.raises(Corrupt, match="The copy was deleted"):
        bring(two)
    assert everything(bucket) == {"files/a.jpg": b"the user's own"}
    assert bucket.head("files/a.jpg") == before


def test_what_stands_there_is_replaced_once_the_copy_is_proven(two: tuple[Bucket, Bucket]) -> None:
    origin, bucket = two
    origin.put("files/a.jpg", b"whole", content_type="image/jpeg")
    bucket.put("files/a.jpg", b"wrong", content_type="image/jpeg")
    bring(two)
    assert everything(bucket) == {"files/a.jpg": b"whole"}


def test_a_wrong_copy_takes_nothing_away_that_an_overlapping_run_has_stored(
    two: tuple[Bucket, Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, bucket = two
    origin.put("files/a.jpg", b"damaged", content_type="image/jpeg")
    copy_from = Bucket.copy_from

    def overlapped(self: Bucket, *arguments: Any, **options: Any) -> Any:
        made = copy_from(self, *arguments, **options)
        bucket.put("files/a.jpg", b"whole", content_type="image/jpeg")
        return made

    monkeypatch.setattr(Bucket, "copy_from", overlapped)
    try:
        bring(two, conditional=True)  # without checksums of copies the other run's object is read back, and is right
    except Corrupt as error:
        assert "replaced meanwhile" in str(error)  # noqa: PT017
    assert everything(bucket) == {"files/a.jpg": b"whole"}


def test_an_object_that_appears_just_now_is_treated_as_one_that_stood_there(
    two: tuple[Bucket, Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a condition that the store supports; its answer is simulated, since neither server here gives it."""
    origin, bucket = two
    origin.put("files/a.jpg", b"damaged", content_type="image/jpeg")
    copy_object = bucket.client.copy_object

    def refuses(**options: Any) -> Any:
        if options.pop("IfNoneMatch", None) == "*":
            bucket.put("files/a.jpg", b"whole", content_type="image/jpeg")
            answer = {"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}
            raise ClientError(answer, "CopyObject")  # type: ignore[arg-type]
        return copy_object(**options)

    monkeypatch.setattr(bucket.client, "copy_object", refuses)
    with pytest.raises(Corrupt):
        bring(two, conditional=True)
    assert everything(bucket) == {"files/a.jpg": b"whole"}


def test_a_role_that_may_not_delete_still_gets_its_answer(
    two: tuple[Bucket, Bucket], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    origin, bucket = two
    origin.put("files/a.jpg", b"whole", content_type="image/jpeg")
    bucket.put("files/a.jpg", b"wrong", content_type="image/jpeg")

    def refused(*_: Any) -> bool:
        raise BucketRefused("S3 refused")

    monkeypatch.setattr(Bucket, "delete", refused)
    bring(two)
    assert bucket.read("files/a.jpg") == b"whole"
    assert "left behind" in caplog.text


@pytest.mark.parametrize("lists", [True, False])
def test_an_absent_file_costs_that_file_only(two: tuple[Bucket, Bucket], lists: bool) -> None:
    """A client without the right to list gets 403 for absent objects."""
    origin, _ = two
    origin.put(SUMS, b"sums", content_type="text/plain")
    head = origin.head

    def answers(path: str) -> Any:
        found = head(path)
        if found is None and not lists:
            raise BucketRefused("S3 refused access (403)")
        return found

    origin.head = answers  # type: ignore[method-assign]
    with pytest.raises(NotFound, match=r"files/a\.jpg does not exist"):
        bring(two)
    origin.delete([SUMS])
    with pytest.raises(NotFound if lists else AccessRefused):  # we may read nothing
        bring(two)


def test_who_has_no_cloud_access_is_told_how_to_get_it(s3_server: stack.S3Server, bucket_name: str) -> None:
    stranger = boto3.Session("stranger1", "strangersecret", region_name="us-east-1")
    origin = Bucket.open(stranger, bucket_name, NAME, endpoint_url=s3_server.endpoint)
    with pytest.raises(AccessRefused, match=r"physionet\.org/settings/cloud"):
        copier(origin, origin).check()


def test_a_wrong_access_point_is_named(buckets: tuple[Bucket, Bucket]) -> None:
    _, empty = buckets
    with pytest.raises(NotFound, match="physionet_access_point"):
        copier(empty, empty).check()


def test_an_object_above_the_limit_of_one_copy_goes_in_parts(endpoint: str, bucket_name: str, monkeypatch: Any) -> None:
    session = boto3.Session("testaccess", "testsecret", region_name="us-east-1")
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket_name)
    origin = Bucket.open(session, bucket_name, NAME, endpoint_url=endpoint)
    bucket = Bucket.open(session, bucket_name, "mine", endpoint_url=endpoint)
    data = bytes(range(256)) * 40_000  # 10 MB: two parts in boto3's own transfer
    origin.upload("big.bin", [data], part_size=32 << 20)
    monkeypatch.setattr("physionet_mirror.s3.bucket._ONE_COPY", 1 << 20)
    copied = copier(origin, bucket).fetch(File("big.bin", hashlib.sha256(data).hexdigest()), ALONE)
    assert copied.size == len(data)
    assert bucket.read("big.bin") == data


def test_the_access_point_is_the_datasets_unless_another_is_given() -> None:
    assert access_point_of(MIMIC_CXR_JPG, None).startswith("arn:aws:s3:us-east-1:")
    assert access_point_of(MIMIC_CXR_JPG, "my-copy") == "my-copy"
    assert access_point_of(MIMIC_CXR_JPG, {MIMIC_CXR_JPG.name: "arn-02"}) == "arn-02"
    assert access_point_of(MIMIC_CXR_JPG, {"mimiciv/3.1": "arn-02"}) == access_point_of(MIMIC_CXR_JPG, None)
    assert access_point_of(MIMIC_CXR, None) is None
    with pytest.raises(InputError, match="physionet_s3 is neither an ARN"):
        access_point_of(MIMIC_CXR, ["arn"], "physionet_s3")
    assert access_point.COPIES_A_CONNECTION == 32
