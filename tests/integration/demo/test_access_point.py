"""The demo's access point serves and refuses what PhysioNet's does; tested with boto3, in front of a real S3 server."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from demo import stack
from demo.access_point import AccessPoint, Identity

POINT = "mimic-cxr-jpg-v2-1-0-01"
BELOW = "mimic-cxr-jpg/2.1.0/"
READER, ROLE, ROOT, STRANGER = "AKIAREADER", "ASIAROLE", "AKIAROOT", "AKIASTRANGER"


@pytest.fixture
def aws(tiny_dataset: Path, s3_server: stack.S3Server) -> Iterator[AccessPoint]:
    identities = {
        READER: Identity("reader", "secret-1"),
        ROLE: Identity("worker", "secret-2", "role"),
        ROOT: Identity("", "secret-3", "root"),
        STRANGER: Identity("stranger", "secret-4", granted=False),
    }
    upstream = (s3_server.endpoint, s3_server.access_key, s3_server.secret_key)
    with AccessPoint(tiny_dataset, upstream=upstream, identities=identities) as server:
        yield server


def client(aws: AccessPoint, key: str = READER, secret: str | None = None, service: str = "s3") -> Any:
    session = boto3.Session(key, secret or aws.identities[key].secret, region_name="us-east-1")
    once = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"})
    return session.client(service, endpoint_url=aws.endpoint, config=once)


def code_of(call: Any, **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as raised:
        call(**arguments)
    answer = raised.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def images(aws: AccessPoint) -> list[str]:
    pages = (
        client(aws)
        .get_paginator("list_objects_v2")
        .paginate(Bucket=POINT, Prefix=BELOW + "files/", PaginationConfig={"PageSize": 7})
    )
    return [entry["Key"] for page in pages for entry in page["Contents"]]


def test_a_verified_user_lists_and_reads_below_the_version(aws: AccessPoint, tiny_dataset: Path) -> None:
    keys = images(aws)
    listed = client(aws).list_objects_v2(Bucket=POINT, Prefix=keys[0])["Contents"][0]
    got = client(aws).get_object(Bucket=POINT, Key=keys[0])
    some = client(aws).get_object(Bucket=POINT, Key=keys[0], Range="bytes=10-19")["Body"].read()

    assert keys == sorted(
        p.relative_to(tiny_dataset).as_posix() for p in tiny_dataset.rglob("*.jpg") if "2.1.0" in p.parts
    )
    data = (tiny_dataset / keys[0]).read_bytes()
    assert (got["Body"].read(), some) == (data, data[10:20])
    assert (listed["ETag"], listed["Size"]) == (got["ETag"], len(data))


def test_all_else_is_refused_with_403(aws: AccessPoint) -> None:
    s3 = client(aws)
    key = images(aws)[0]
    denied = ("AccessDenied", 403)
    assert code_of(s3.list_objects_v2, Bucket=POINT) == denied
    assert code_of(s3.list_objects_v2, Bucket=POINT, Prefix="mimic-cxr/2.0.0/") == denied
    assert code_of(s3.get_object, Bucket=POINT, Key="mimic-cxr/2.0.0/SHA256SUMS.txt") == denied
    assert code_of(s3.get_object, Bucket=POINT, Key=BELOW + "nothing.jpg") == denied
    assert code_of(s3.head_object, Bucket=POINT, Key=BELOW + "nothing.jpg") == ("403", 403)
    assert code_of(s3.put_object, Bucket=POINT, Key=key, Body=b"x") == denied
    aws.denied.add(key.removeprefix(BELOW))
    assert code_of(s3.get_object, Bucket=POINT, Key=key) == denied


@pytest.mark.parametrize("who", [ROLE, ROOT, STRANGER])
def test_roles_root_and_strangers_read_nothing(aws: AccessPoint, who: str) -> None:
    key = images(aws)[0]
    assert code_of(client(aws, who).get_object, Bucket=POINT, Key=key) == ("AccessDenied", 403)
    assert code_of(client(aws, who).list_objects_v2, Bucket=POINT, Prefix=BELOW) == ("AccessDenied", 403)


def test_sts_says_who_asks(aws: AccessPoint) -> None:
    arns = {key: client(aws, key, service="sts").get_caller_identity()["Arn"] for key in (READER, ROLE, ROOT)}

    assert arns == {
        READER: "arn:aws:iam::111122223333:user/reader",
        ROLE: "arn:aws:sts::111122223333:assumed-role/worker/session",
        ROOT: "arn:aws:iam::111122223333:root",
    }


def test_keys_are_checked(aws: AccessPoint) -> None:
    arguments = {"Bucket": POINT, "Key": BELOW + "LICENSE.txt"}
    assert code_of(client(aws, secret="wrong").get_object, **arguments) == ("SignatureDoesNotMatch", 403)
    assert code_of(client(aws, "AKIANOBODY", "x").get_object, **arguments) == ("InvalidAccessKeyId", 403)
    aws.identities[READER] = Identity("reader", "secret-1", expired=True)
    assert code_of(client(aws).get_object, **arguments) == ("ExpiredToken", 400)


def test_a_copy_stays_within_the_region_and_carries_its_checksum(
    aws: AccessPoint, bucket_name: str, s3_server: stack.S3Server, tiny_dataset: Path
) -> None:
    key = images(aws)[0]
    copy = {
        "Bucket": bucket_name,
        "Key": "mirror/x.jpg",
        "CopySource": {"Bucket": POINT, "Key": key},
        "ChecksumAlgorithm": "SHA256",
    }
    answer = client(aws).copy_object(**copy)["CopyObjectResult"]

    data = (tiny_dataset / key).read_bytes()
    assert answer["ChecksumSHA256"] == b64encode(hashlib.sha256(data).digest()).decode()
    assert (s3_server.folder / bucket_name / "mirror/x.jpg").read_bytes() == data
    assert code_of(client(aws, ROLE).copy_object, **copy) == ("AccessDenied", 403)
    assert code_of(client(aws).copy_object, **{**copy, "CopySourceIfMatch": '"other"'})[1] == 412
    aws.regions[bucket_name] = "eu-west-1"
    assert code_of(client(aws).copy_object, **copy) == ("InvalidRequest", 400)


def test_a_damaged_object_is_copied_as_it_is(aws: AccessPoint, bucket_name: str, s3_server: stack.S3Server) -> None:
    key = images(aws)[0]
    aws.damaged.add(key.removeprefix(BELOW))
    answer = client(aws).copy_object(
        Bucket=bucket_name, Key="x.jpg", CopySource={"Bucket": POINT, "Key": key}, ChecksumAlgorithm="SHA256"
    )["CopyObjectResult"]

    stored = (s3_server.folder / bucket_name / "x.jpg").read_bytes()
    assert answer["ChecksumSHA256"] == b64encode(hashlib.sha256(stored).digest()).decode()
    assert stored != (aws.datasets / key).read_bytes()


def test_ones_own_bucket_is_passed_through(aws: AccessPoint, bucket_name: str, s3_server: stack.S3Server) -> None:
    s3 = client(aws)
    s3.put_object(Bucket=bucket_name, Key="a b/é+%.txt", Body=b"mine", ChecksumAlgorithm="SHA256")
    s3.put_object(Bucket=bucket_name, Key="b.txt", Body=b"x" * 100_000)

    assert s3.get_object(Bucket=bucket_name, Key="a b/é+%.txt")["Body"].read() == b"mine"
    assert s3.head_object(Bucket=bucket_name, Key="b.txt")["ContentLength"] == 100_000
    assert [e["Key"] for e in s3.list_objects_v2(Bucket=bucket_name)["Contents"]] == ["a b/é+%.txt", "b.txt"]
    assert code_of(s3.get_object, Bucket=bucket_name, Key="none") == ("NoSuchKey", 404)
    s3.delete_objects(Bucket=bucket_name, Delete={"Objects": [{"Key": "b.txt"}]})
    assert not (s3_server.folder / bucket_name / "b.txt").exists()


def test_too_many_requests_are_told_to_slow_down(aws: AccessPoint) -> None:
    aws.slow_down_above = 3
    s3 = client(aws)
    codes = []
    for _ in range(12):
        try:
            s3.get_object(Bucket=POINT, Key=BELOW + "LICENSE.txt")
            codes.append("ok")
        except ClientError as error:
            codes.append(error.response["Error"]["Code"])
    assert set(codes) == {"ok", "SlowDown"}
