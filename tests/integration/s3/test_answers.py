"""GET and COPY without boto3, and the handling of each kind of reply to a signed request."""

from __future__ import annotations

import hashlib
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from physionet_mirror.errors import BucketRefused, DestinationError, DestinationUnavailable
from physionet_mirror.s3.bucket import Bucket, Listed

DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
COPIED = (
    f'<?xml version="1.0"?>\n<CopyObjectResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><ETag>"new"</ETag>'
    f"<ChecksumSHA256>{b64encode(bytes.fromhex(DIGEST)).decode()}</ChecksumSHA256></CopyObjectResult>"
).encode()


def refusal(code: str, message: str = "S3's own words.") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@dataclass
class Answer:
    """A scripted answer; ``cut`` bytes of its body are announced but never sent."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0


class Scripted(ThreadingHTTPServer):
    """Answers from ``script``, one per request, and then 200 to all; ``asked`` holds method, boto3 or not, headers, bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: deque[Answer] = deque()
        self.asked: list[tuple[str, bool, dict[str, str], bytes]] = []
        self.url = f"http://localhost:{self.server_port}"

    @property
    def by_boto3(self) -> list[bool]:
        return [boto for _, boto, _, _ in self.asked]


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    server: Scripted

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        is_copy = "x-amz-copy-source" in headers
        kind = "COPY" if is_copy else self.command
        self.server.asked.append((kind, "Boto3" in headers.get("user-agent", ""), headers, body))
        usual = {"GET": DATA, "COPY": COPIED}.get(kind, b"")
        answer = self.server.script.popleft() if self.server.script else Answer(200, usual)
        self.send_response(answer.status)
        for name, value in {
            "ETag": '"abc"',
            "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT",
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) - answer.cut])
        if answer.cut:
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = _handle  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bucket(scripted: Scripted) -> Bucket:
    """A bucket whose address and region are known."""
    session = boto3.Session("AKIAEXAMPLE", "s3cret", region_name="eu-west-1")
    opened = Bucket.open(session, "mine", "p", endpoint_url=scripted.url)
    assert opened.head("first")
    scripted.asked.clear()
    return opened


def get(bucket: Bucket, **options: Any) -> object:
    return bytes(bucket.get_into("x", bytearray(len(DATA)), **options))


def put(bucket: Bucket, **options: Any) -> object:
    return bucket.put("x", DATA, content_type="image/jpeg", sha256=DIGEST, **options)


def copy(bucket: Bucket, **options: Any) -> object:
    return bucket.copy_from(bucket, Listed("x", 7, "abc", datetime.now(UTC)), "y", content_type="image/jpeg", **options)


ASKS = pytest.mark.parametrize("ask", [get, put, copy])


@ASKS
def test_all_of_them_are_signed_and_sent_past_boto3(
    scripted: Scripted, bucket: Bucket, ask: Callable[..., object]
) -> None:
    assert ask(bucket)
    assert scripted.by_boto3 == [False]
    assert "/eu-west-1/s3/aws4_request" in scripted.asked[0][2]["authorization"]


def test_a_copy_says_all_that_boto3_says(scripted: Scripted, bucket: Bucket) -> None:
    session = boto3.Session("AKIAEXAMPLE", "s3cret", region_name="eu-west-1")
    by_boto3 = Bucket.open(session, "mine", "p", endpoint_url=scripted.url)  # its first request
    for one in (by_boto3, bucket):
        copied = copy(one, replace=False, storage_class="GLACIER_IR")
        assert copied.sha256 == DIGEST  # type: ignore[attr-defined]
    assert scripted.by_boto3 == [True, False]
    said, direct = (
        {n: v for n, v in headers.items() if n.startswith(("x-amz-", "content-", "if-")) and n != "x-amz-date"}
        for _, _, headers, _ in scripted.asked
    )
    assert direct == {**said, "content-length": "0"}
    assert direct["if-none-match"] == "*"


def test_an_access_points_arn_is_named_as_boto3_names_it(scripted: Scripted, bucket: Bucket) -> None:
    arn = "arn:aws:s3:us-east-1:724665945834:accesspoint/mimic-cxr-jpg-v2-1-0-01"
    fresh = Bucket.open(boto3.Session("AKIA", "s", region_name="us-east-1"), "mine", "p", endpoint_url=scripted.url)
    source = Bucket.open(boto3.Session("AKIA", "s", region_name="us-east-1"), arn, "a b/ü")
    for one in (fresh, bucket):
        one.copy_from(source, Listed("x", 7, "abc", datetime.now(UTC)), content_type="image/jpeg")
    names = [headers["x-amz-copy-source"] for kind, _, headers, _ in scripted.asked if kind == "COPY"]
    assert len(names) == 2
    assert names[0] == names[1]


def test_a_buffer_goes_to_put_as_it_lies(scripted: Scripted, bucket: Bucket) -> None:
    held = bytearray(b"before" + DATA + b"behind")
    bucket.put("x", memoryview(held)[6:-6], content_type="image/jpeg", sha256=DIGEST)
    scripted.script.append(Answer(500))  # and when boto3 repeats the request
    bucket.put("x", memoryview(held)[6:-6], content_type="image/jpeg", sha256=DIGEST)
    assert [(boto, body) for _, boto, _, body in scripted.asked] == [(False, DATA), (False, DATA), (True, DATA)]


@ASKS
def test_who_is_paced_hears_at_once_that_s3_is_too_busy(
    scripted: Scripted, bucket: Bucket, ask: Callable[..., object]
) -> None:
    scripted.script.append(Answer(503, refusal("SlowDown")))
    with pytest.raises(DestinationUnavailable, match="SlowDown"):
        ask(bucket, paced=True)
    assert scripted.by_boto3 == [False]


@ASKS
def test_for_all_others_boto3_repeats_it(scripted: Scripted, bucket: Bucket, ask: Callable[..., object]) -> None:
    scripted.script.append(Answer(503, refusal("SlowDown")))
    assert ask(bucket)
    assert scripted.by_boto3 == [False, True]


@ASKS
def test_what_s3_explains_is_not_asked_for_twice(
    scripted: Scripted, bucket: Bucket, ask: Callable[..., object]
) -> None:
    scripted.script.append(Answer(403, refusal("AccessDenied", "User is not authorized to perform: s3:PutObject")))
    with pytest.raises(BucketRefused, match="not authorized to perform: s3:PutObject"):
        ask(bucket)
    assert scripted.by_boto3 == [False]


@ASKS
@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, refusal("RequestTimeTooSkewed")),
        Answer(400, refusal("AuthorizationHeaderMalformed")),
        Answer(403, b"<html>a proxy's page</html>"),
        Answer(502, b"<html>"),
        Answer(403, refusal("AccessDenied"), cut=20),
    ],
    ids=["clock", "region", "no code", "gateway", "cut off"],
)
def test_what_boto3_may_know_better_goes_to_it(
    scripted: Scripted, bucket: Bucket, ask: Callable[..., object], answer: Answer
) -> None:
    scripted.script.append(answer)
    assert ask(bucket)
    assert scripted.by_boto3 == [False, True]


def test_an_object_that_is_not_there_costs_one_request(scripted: Scripted, bucket: Bucket) -> None:
    for ask in (get, copy, lambda b: b.sha256("x")):
        scripted.script.append(Answer(404, refusal("NoSuchKey")))
        with pytest.raises(FileNotFoundError):
            ask(bucket)
    assert scripted.by_boto3 == [False] * 3


# -- GET ---------------------------------------------------------------------------------------------------------------


def test_only_what_the_object_fills_of_a_buffer_is_given(bucket: Bucket) -> None:
    held = bytearray(b"\xff" * (len(DATA) + 100))
    view = bucket.get_into("x", held)
    assert (bytes(view), view.obj, held[len(DATA) :]) == (DATA, held, b"\xff" * 100)


def test_an_object_larger_than_its_buffer_is_refused(scripted: Scripted, bucket: Bucket) -> None:
    with pytest.raises(DestinationError, match="larger than the 100 bytes"):
        bucket.get_into("x", bytearray(100))
    assert get(bucket) == DATA  # and no byte of it is read as the next answer
    assert scripted.by_boto3 == [False, False]


@pytest.mark.parametrize("read", [get, lambda bucket: bucket.sha256("x")])
def test_a_body_that_breaks_off_is_no_object(
    scripted: Scripted, bucket: Bucket, read: Callable[[Bucket], object]
) -> None:
    scripted.script.append(Answer(200, DATA, cut=1))
    with pytest.raises(DestinationUnavailable):
        read(bucket)
    assert read(bucket) in (DATA, DIGEST)


def test_boto3s_bodies_are_read_in_the_same_way(scripted: Scripted) -> None:
    """The first request to a bucket, and all requests if only boto3 can make them."""
    for cut in (0, 1):
        session = boto3.Session("AKIAEXAMPLE", "s3cret", region_name="eu-west-1")
        fresh = Bucket.open(session, "mine", "p", endpoint_url=scripted.url)
        scripted.script.append(Answer(200, DATA, cut=cut))
        if cut:
            with pytest.raises(DestinationUnavailable):
                get(fresh)
        else:
            assert get(fresh) == DATA
    assert scripted.by_boto3 == [True, True]


# -- COPY --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [refusal("InternalError"), b"", COPIED[:-5], b"<Unknown/>"])
def test_a_copy_that_fails_after_its_200_is_made_again(scripted: Scripted, bucket: Bucket, body: bytes) -> None:
    scripted.script.append(Answer(200, body))
    assert copy(bucket).sha256 == DIGEST  # type: ignore[attr-defined]
    assert scripted.by_boto3 == [False, True]


def test_slowdown_inside_a_200_is_told_to_who_is_paced(scripted: Scripted, bucket: Bucket) -> None:
    scripted.script.append(Answer(200, refusal("SlowDown")))
    with pytest.raises(DestinationUnavailable, match="SlowDown"):
        copy(bucket, paced=True)
    assert scripted.by_boto3 == [False]


def test_what_stands_there_is_not_replaced(scripted: Scripted, bucket: Bucket) -> None:
    scripted.script.append(Answer(412, refusal("PreconditionFailed")))
    assert copy(bucket, replace=False) is None
    assert [kind for kind, *_ in scripted.asked] == ["COPY", "HEAD"]


def test_a_store_without_conditions_is_asked_for_one_once(scripted: Scripted, bucket: Bucket) -> None:
    scripted.script.append(Answer(501, refusal("NotImplemented")))
    for _ in range(3):
        assert copy(bucket, replace=False)
    assert ["if-none-match" in headers for _, _, headers, _ in scripted.asked] == [True, False, False, False]
    assert scripted.by_boto3 == [False] * 4


# -- on real servers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.mark.parametrize("kind", ["rclone", "moto", "strict"])
def test_on_a_real_server(request: pytest.FixtureRequest, kind: str, bucket_name: str) -> None:
    if kind == "moto":
        session, endpoint = (
            boto3.Session("testaccess", "testsecret", region_name="us-east-1"),
            request.getfixturevalue("moto"),
        )
    else:
        server = request.getfixturevalue("s3_server" if kind == "rclone" else "strict_s3")
        session, endpoint = server.session(), server.endpoint
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=f"{bucket_name}-own")
    bucket = Bucket.open(session, f"{bucket_name}-own", "a prefix", endpoint_url=endpoint)
    for path in ("one/ü +&.jpg", "two.jpg"):
        bucket.put(path, memoryview(DATA), content_type="image/jpeg", sha256=DIGEST)
    held = bytearray(1 << 20)
    for path in ("one/ü +&.jpg", "two.jpg"):
        assert bytes(bucket.get_into(path, held)) == DATA
        assert bucket.sha256(path) == DIGEST
        stored = bucket.head(path)
        assert stored
        copied = bucket.copy_from(bucket, stored, f"copy of {path}", content_type="image/png")
        assert copied
        assert copied.sha256 == (None if kind == "rclone" else DIGEST)
        assert bytes(bucket.get_into(f"copy of {path}", held, etag=copied.etag)) == DATA
    with pytest.raises(FileNotFoundError):
        bucket.get_into("nothing", held)
    with pytest.raises(FileNotFoundError):
        bucket.sha256("nothing")
