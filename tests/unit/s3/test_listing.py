"""Pages of a listing are what botocore makes of them, and botocore gets every page that cannot be read quickly."""

from __future__ import annotations

from functools import cache
from xml.sax.saxutils import escape

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.s3.listing import _take_contents, read_quickly

NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
WHEN = "2025-01-02T03:04:05.678Z"


class Raw:
    """The body of an answer."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> list[bytes]:
        return [self._body]


ANSWER = [b""]


def client_of(*, quickly: bool):
    """An S3 client whose every request is answered with `ANSWER` and status 200."""
    once = Config(retries={"total_max_attempts": 1})
    client = boto3.client("s3", "us-east-1", aws_access_key_id="a", aws_secret_access_key="b", config=once)
    said = {"content-type": "application/xml"}
    client.meta.events.register("before-send.s3", lambda **_: AWSResponse("http://s3", 200, said, Raw(ANSWER[0])))
    if quickly:
        read_quickly(client)
    return client


@cache
def clients():
    """One as botocore made it, and one that reads quickly."""
    return client_of(quickly=False), client_of(quickly=True)


def both(body: str) -> tuple[object, object]:
    """What botocore makes of the page, and what it makes of it with ours."""
    ANSWER[0] = body.encode()
    results = []
    for client in clients():
        try:
            page = client.list_objects_v2(Bucket="b", Prefix="p")
        except ClientError as error:
            results.append(("refused", error.response["Error"]))
        else:
            del page["ResponseMetadata"]
            for entry in page.get("Contents", ()):
                for field in set(entry) - {"Key", "Size", "ETag", "LastModified"}:
                    del entry[field]
            results.append(page)
    return results[0], results[1]


def contents(key: str, size: str = "5", when: str = WHEN, more: str = "") -> str:
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>&quot;ab-2&quot;</ETag>"
        f"<Size>{size}</Size>{more}<StorageClass>STANDARD</StorageClass></Contents>"
    )


def page(inside: str, namespace: str = NAMESPACE) -> str:
    return (
        f"<?xml version='1.0' encoding='UTF-8'?>\n<ListBucketResult{namespace}><Name>b</Name><Prefix>p</Prefix>"
        f"<IsTruncated>true</IsTruncated><NextContinuationToken>t+/=</NextContinuationToken>{inside}</ListBucketResult>"
    )


KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=30)


@given(st.lists(KEYS, max_size=4), st.booleans(), st.sampled_from(["", NAMESPACE]))
def test_a_page_is_what_botocore_makes_of_it(keys, encoded, namespace):
    told = "<EncodingType>url</EncodingType>" if encoded else ""
    folders = "<CommonPrefixes><Prefix>p/a/</Prefix></CommonPrefixes>"
    slow, quick = both(page(told + "".join(contents(key) for key in keys) + folders, namespace))
    assert quick == slow
    assert len(quick.get("Contents", ())) == len(keys)


@pytest.mark.parametrize(
    "inside",
    [
        "",
        contents("a", more="<ChecksumAlgorithm>SHA256</ChecksumAlgorithm><Owner><ID>me</ID></Owner>"),
        contents("a", when="2025-01-02T03:04:05Z"),
        contents("a", when="2025-01-02T03:04:05+01:00"),
        contents("a", when="2025-01-02T03:04:05"),
        contents("a", when="Thu, 02 Jan 2025 03:04:05 GMT"),
        "<Contents><Key>no size</Key></Contents>",
        contents("a") + "<Contents><Key>no size</Key></Contents>",
    ],
)
def test_what_stores_may_answer(inside):
    slow, quick = both(page(inside))
    assert quick == slow


def test_an_error_in_a_200_is_an_error():
    slow, quick = both("<Error><Code>SlowDown</Code><Message>slowly</Message></Error>")
    assert quick == slow == ("refused", {"Code": "SlowDown", "Message": "slowly"})


@pytest.mark.parametrize("body", [b"", b"<ListBucketResult><Contents>", b"<a/>", b"\xff"])
def test_what_is_no_page_is_left_to_botocore(body):
    answer, result = {"status_code": 200, "body": body}, {}
    _take_contents(answer, result)
    assert (answer, result) == ({"status_code": 200, "body": body}, {})


def test_what_is_read_here_is_not_read_by_botocore():
    answer, result = {"status_code": 200, "body": page(contents("a")).encode()}, {}
    _take_contents(answer, result)
    assert [entry["Key"] for entry in result["Contents"]] == ["a"]
    assert b"Contents" not in answer["body"]
    assert b"t+/=" in answer["body"]
