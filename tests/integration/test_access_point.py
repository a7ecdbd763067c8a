"""Copies inside S3, on three servers: rclone, which keeps objects as files; moto and a strict one, which compute checksums of copies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from demo import stack
from include.physionet_mirror import access_point
from include.physionet_mirror.access_point import AccessPoint, access_point_of
from include.physionet_mirror.dataset import MIMIC_CXR, MIMIC_CXR_JPG, SUMS
from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.errors import AccessRefused, ImagesFailed, InputError, NotFound
from include.physionet_mirror.pace import Pace
from include.physionet_mirror.shards import Image, decode
from include.physionet_mirror.transfer import Transfer

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
    """Of a server that computes a copy's checksum, as S3 does."""
    return request.getfixturevalue("moto") if request.param == "moto" else request.getfixturevalue("strict_s3").endpoint


@pytest.fixture(params=["rclone", "moto", "strict"])
def s3(request: pytest.FixtureRequest, s3_server: stack.S3Server) -> tuple[boto3.Session, str]:
    if request.param == "moto":
        return boto3.Session("testaccess", "testsecret", region_name="us-east-1"), request.getfixturevalue("moto")
    server = s3_server if request.param == "rclone" else request.getfixturevalue("strict_s3")
    return server.session(), server.endpoint


@pytest.fixture
def images(tiny_dataset: Path) -> list[Image]:
    lines = (tiny_dataset / NAME / SUMS).read_bytes().splitlines(keepends=True)
    return decode(b"".join(line for line in lines if line.endswith(b".jpg\n")))[:12]


@pytest.fixture
def buckets(
    s3: tuple[boto3.Session, str], bucket_name: str, images: list[Image], tiny_dataset: Path
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


def copy(images: list[Image], source: AccessPoint, bucket: Bucket, **options: Any) -> Transfer:
    pace = Pace(16, received=lambda: source.stats.received)
    return Transfer(images, source=source, bucket=bucket, dataset=MIMIC_CXR_JPG, pace=pace, backoff=0.01, **options)


def test_images_are_copied_and_proven_without_passing_through_here(
    buckets: tuple[Bucket, Bucket], images: list[Image]
) -> None:
    origin, bucket = buckets
    source = AccessPoint(origin, bucket)
    source.check_access(MIMIC_CXR_JPG)
    tally = copy(images, source, bucket).run()
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
    AccessPoint(origin, bucket, "STANDARD_IA").open(MIMIC_CXR_JPG, "files/a.jpg", hashlib.sha256(b"a").hexdigest())
    stored = bucket.head("files/a.jpg")
    assert stored is not None
    assert (stored.storage_class, stored.sha256) == ("STANDARD_IA", hashlib.sha256(b"a").hexdigest())
    assert client.get_object_tagging(Bucket=bucket_name, Key=bucket.key("files/a.jpg"))["TagSet"] == []


def test_a_copy_that_does_not_hash_is_taken_away_and_named(endpoint: str, bucket_name: str) -> None:
    session = boto3.Session("testaccess", "testsecret", region_name="us-east-1")
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket_name)
    origin = Bucket.open(session, bucket_name, NAME, endpoint_url=endpoint)
    bucket = Bucket.open(session, bucket_name, "mine", endpoint_url=endpoint)
    origin.put("files/a.jpg", b"damaged", content_type="image/jpeg")
    wanted = [Image("files/a.jpg", hashlib.sha256(b"whole").hexdigest()), Image("files/b.jpg", "0" * 64)]
    transfer = copy(wanted, AccessPoint(origin, bucket), bucket)
    with pytest.raises(ImagesFailed):
        transfer.run()
    assert {(failure.path, failure.reason) for failure in transfer.tally.failed} == {
        ("files/a.jpg", "corrupt"),
        ("files/b.jpg", "not found"),
    }
    assert list(bucket.list()) == []


def test_who_has_no_cloud_access_is_told_how_to_get_it(s3_server: stack.S3Server, bucket_name: str) -> None:
    stranger = boto3.Session("stranger1", "strangersecret", region_name="us-east-1")
    origin = Bucket.open(stranger, bucket_name, NAME, endpoint_url=s3_server.endpoint)
    with pytest.raises(AccessRefused, match=r"physionet\.org/settings/cloud"):
        AccessPoint(origin, origin).check_access(MIMIC_CXR_JPG)


def test_a_wrong_access_point_is_named(buckets: tuple[Bucket, Bucket]) -> None:
    _, empty = buckets
    with pytest.raises(NotFound, match="physionet_access_point"):
        AccessPoint(empty, empty).check_access(MIMIC_CXR_JPG)


def test_an_object_above_the_limit_of_one_copy_goes_in_parts(endpoint: str, bucket_name: str, monkeypatch: Any) -> None:
    session = boto3.Session("testaccess", "testsecret", region_name="us-east-1")
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket_name)
    origin = Bucket.open(session, bucket_name, NAME, endpoint_url=endpoint)
    bucket = Bucket.open(session, bucket_name, "mine", endpoint_url=endpoint)
    data = bytes(range(256)) * 40_000  # 10 MB: two parts of boto3's own transfer
    origin.upload("big.bin", [data], part_size=32 << 20)
    monkeypatch.setattr("include.physionet_mirror.destination._ONE_COPY", 1 << 20)
    copied = AccessPoint(origin, bucket).open(MIMIC_CXR_JPG, "big.bin", hashlib.sha256(data).hexdigest())
    assert copied.size == len(data)
    assert bucket.read("big.bin") == data


def test_the_access_point_is_the_datasets_unless_another_is_given() -> None:
    assert access_point_of(MIMIC_CXR_JPG, None).startswith("arn:aws:s3:us-east-1:")
    assert access_point_of(MIMIC_CXR_JPG, "my-copy") == "my-copy"
    with pytest.raises(InputError, match="source=physionet"):
        access_point_of(MIMIC_CXR, None)
    assert access_point.COPIES_A_CONNECTION == 8
