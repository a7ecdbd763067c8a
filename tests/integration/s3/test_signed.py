"""HEAD and PUT without boto3: the same results, and a fallback to boto3 wherever a reply is unusual."""

from __future__ import annotations

import hashlib
import os
import signal
import ssl
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from werkzeug.serving import generate_adhoc_ssl_pair

from physionet_mirror.errors import BucketRefused, DestinationError, DestinationUnavailable
from physionet_mirror.s3.bucket import Bucket

KEYS = ("files/p10/a.jpg", "files/p10/with space.jpg", "files/ü+%41&=?#~(!)*'.jpg")
SECRET = "s3cret/of+nobody"
DATA = b"some bytes"
DIGEST = hashlib.sha256(DATA).hexdigest()


class Scripted(ThreadingHTTPServer):
    """Answers 200 to every HEAD and PUT, and 400 to a PUT whose bytes do not hash to its checksum, as S3 does.

    ``script`` overrides that, one entry per request: a status; 0 to close the connection without an answer;
    -1 to answer and then close the connection; -2 to refuse (403) and close before the body has arrived;
    100 to send 100 Continue first; -3 to answer late. ``answers`` are further headers; with ``prefers_boto3`` only boto3 is
    served, and ``together`` is the number of requests that are held back until all of them have arrived.
    ``asked`` holds the headers of each request, ``by_boto3`` whether boto3 sent it, ``objects`` what was stored by path.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[int] = []
        self.asked: list[dict[str, str]] = []
        self.objects: dict[str, bytes] = {}
        self.answers: dict[str, str] = {}
        self.prefers_boto3 = False
        self.together: threading.Barrier | None = None
        self.url = f"http://localhost:{self.server_port}"

    @property
    def by_boto3(self) -> list[bool]:
        return ["Boto3" in headers.get("user-agent", "") for headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_HEAD(self) -> None:
        self._answer(self._next())

    def do_PUT(self) -> None:
        status = self._next()
        if status == -2:
            self.close_connection = True
            self._answer(403)
            return
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if b64encode(hashlib.sha256(data).digest()).decode() != self.headers["x-amz-checksum-sha256"]:
            status = 400
        elif status not in (0, 403, 500, 503):
            self.server.objects[self.path] = data
        self._answer(status)

    def _next(self) -> int:
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        if "Boto3" not in (self.headers["User-Agent"] or ""):
            if self.server.together:
                self.server.together.wait(30)
            if self.server.prefers_boto3:
                return 403
        return self.server.script.pop(0) if self.server.script else 200

    def _answer(self, status: int) -> None:
        self.close_connection = self.close_connection or status in (0, -1)
        if status == 0:
            return
        if status == 100:
            self.send_response_only(100)
            self.end_headers()
        if status == -3:
            time.sleep(0.4)
        self.send_response(200 if status in (-1, -3, 100) else status)
        for name, value in {
            **self.server.answers,
            "Content-Length": "0" if self.command == "PUT" else "7",
            "ETag": '"abc"',
            "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT",
            "x-amz-checksum-sha256": "AAAA",
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: Scripted) -> Iterator[Scripted]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with serving(Scripted()) as server:
        yield server


def head(bucket: Bucket) -> object:
    return bucket.head("x")


def put(bucket: Bucket, **options: str) -> str:
    return bucket.put("x", DATA, content_type="image/jpeg", sha256=DIGEST, **options)


@pytest.fixture
def to_scripted(scripted) -> Callable[..., Bucket]:
    def open_(**options: str) -> Bucket:
        session = boto3.Session("AKIAEXAMPLE", SECRET, region_name="eu-west-1")
        return Bucket.open(session, "my-bucket", "p", endpoint_url=scripted.url, **options)

    return open_


@pytest.mark.parametrize("kind", ["s3_server", "strict_s3"])
def test_the_answers_are_boto3s(request, kind, bucket_name):
    server = request.getfixturevalue(kind)
    server.make_bucket(bucket_name)

    def opened() -> Bucket:
        return Bucket.open(server.session(), bucket_name, "a/prefix", endpoint_url=server.endpoint)

    bucket = opened()
    for key in KEYS:
        bucket.put(key, key.encode(), content_type="image/jpeg")
    by_boto3 = [opened().head(key) for key in KEYS]  # each bucket's first request
    bucket.head(KEYS[0])
    assert [bucket.head(key) for key in KEYS] == by_boto3
    assert [stored and stored.sha256 for stored in by_boto3] == [hashlib.sha256(k.encode()).hexdigest() for k in KEYS]
    assert bucket.head("files/nothing.jpg") is None
    assert bucket.requests["HEAD"] == len(KEYS) + 2


def test_only_the_first_goes_through_boto3_and_threads_keep_their_connections(scripted, to_scripted):
    bucket = to_scripted(expected_owner="123456789012")
    bucket.head("first")
    with ThreadPoolExecutor(4) as pool:
        assert all(stored and stored.size == 7 for stored in pool.map(bucket.head, KEYS * 20))
    assert scripted.by_boto3 == [True] + [False] * 60
    for headers in scripted.asked:
        assert headers["x-amz-checksum-mode"] == "ENABLED"
        assert headers["x-amz-expected-bucket-owner"] == "123456789012"
        assert "/eu-west-1/s3/aws4_request" in headers["authorization"]
        assert "x-amz-expected-bucket-owner" in headers["authorization"]  # signed


def test_of_many_that_begin_together_one_goes_through_boto3(scripted, to_scripted):
    scripted.script = [-3]  # its answer is late
    bucket = to_scripted()
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(bucket.head, ["x"] * 48))
    assert scripted.by_boto3 == [True] + [False] * 47


def test_of_many_that_begin_together_none_waits_for_one_that_fails(scripted, to_scripted, monkeypatch):
    monkeypatch.setattr("physionet_mirror.s3.signed._FIRST", 0.05)
    scripted.script = [403, 200, 404]
    bucket = to_scripted()
    with pytest.raises(BucketRefused):
        put(bucket)
    put(bucket)
    assert bucket.head("x") is None
    assert scripted.by_boto3 == [True, True, False]


def test_that_there_is_no_such_object_is_an_answer_too(scripted, to_scripted):
    scripted.script = [404, 404]
    bucket = to_scripted()
    assert [bucket.head("x"), bucket.head("x")] == [None, None]
    assert scripted.by_boto3 == [True, False]


def test_a_put_says_all_that_boto3_says(scripted, to_scripted):
    bucket = to_scripted(expected_owner="123456789012", kms_key="my-key")
    for _ in range(2):
        put(bucket, storage_class="GLACIER_IR")
    assert scripted.by_boto3 == [True, False]
    assert scripted.objects == {"/my-bucket/p/x": DATA}
    by_boto3, direct = scripted.asked
    unsaid = "x-amz-date", "x-amz-sdk-checksum-algorithm"  # a clock; a hint to servers that accept several checksums
    said = {
        name: value
        for name, value in by_boto3.items()
        if name.startswith(("x-amz-", "content-")) and name not in unsaid
    }
    assert said.items() <= direct.items()
    assert {"x-amz-expected-bucket-owner", "x-amz-server-side-encryption-aws-kms-key-id"} <= said.keys()
    signed = direct["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {name for name in direct if name.startswith("x-amz-")} <= set(signed)


def test_s3_compares_with_the_checksum_that_it_is_told(scripted, to_scripted):
    bucket = to_scripted()
    put(bucket)
    for _ in range(2):  # directly, and then by boto3 alone
        with pytest.raises(DestinationError, match="400"):
            bucket.put("y", b"other bytes", content_type="image/jpeg", sha256=DIGEST)
    assert scripted.objects == {"/my-bucket/p/x": DATA}


@pytest.mark.parametrize("trouble", [0, 500, 503])
@pytest.mark.parametrize("ask", [head, put])
def test_after_a_passing_trouble_boto3_asks_again_once(scripted, to_scripted, ask, trouble):
    bucket = to_scripted()
    ask(bucket)
    scripted.script = [trouble]
    assert all(ask(bucket) for _ in range(3))
    assert scripted.by_boto3 == [True, False, True, False, False]


@pytest.mark.parametrize("ask", [head, put])
def test_a_connection_that_was_closed_while_idle_is_opened_again(scripted, to_scripted, ask):
    bucket = to_scripted()
    ask(bucket)
    scripted.script = [-1]
    ask(bucket)
    time.sleep(0.1)
    assert ask(bucket)
    assert scripted.by_boto3 == [True, False, False]


@pytest.mark.parametrize("ask", [head, put])
def test_a_refusal_is_told_as_ever(scripted, to_scripted, ask):
    bucket = to_scripted()
    ask(bucket)
    scripted.script = [403, 403]
    with pytest.raises(BucketRefused) as refused:
        ask(bucket)
    assert SECRET not in str(refused.value)
    assert "Credential" not in str(refused.value)
    assert ask(bucket)
    assert scripted.by_boto3 == [True, False, True, False]


@pytest.mark.parametrize("ask", [head, put])
def test_a_server_that_takes_boto3_only_is_soon_left_to_it(scripted, to_scripted, ask):
    bucket = to_scripted()
    scripted.prefers_boto3 = True
    for _ in range(30):
        ask(bucket)
    assert scripted.by_boto3.count(True) == 30
    assert scripted.by_boto3.count(False) == 10


@pytest.mark.parametrize("ask", [head, put])
def test_many_threads_in_one_blip_do_not_give_up_the_direct_way(scripted, to_scripted, ask):
    bucket = to_scripted()
    ask(bucket)
    with ThreadPoolExecutor(16) as pool:
        scripted.prefers_boto3, scripted.together = True, threading.Barrier(16)
        assert all(pool.map(ask, [bucket] * 16))
        scripted.prefers_boto3, scripted.together = False, None
        before = len(scripted.asked)
        assert all(pool.map(ask, [bucket] * 100))
    assert scripted.by_boto3[before:] == [False] * 100


@pytest.mark.parametrize("ask", [head, put])
def test_a_word_beforehand_is_no_answer(scripted, to_scripted, ask):
    bucket = to_scripted()
    ask(bucket)
    scripted.script = [100, 200, 100]
    assert all(ask(bucket) for _ in range(3))
    assert scripted.by_boto3 == [True, False, False, False]


def test_headers_are_split_at_line_ends_only(scripted, to_scripted):
    """As http.client does: an object's metadata must not be read as a header of S3's."""
    bucket = to_scripted()
    forged = b64encode(bytes(32)).decode()
    scripted.answers = {"x-amz-meta-who": f"\xc5\x85x-amz-checksum-sha256: {forged}\x0bx-amz-checksum-type: COMPOSITE"}
    by_boto3 = bucket.head("x")
    assert bucket.head("x") == by_boto3
    assert scripted.by_boto3 == [True, False]


def test_an_interrupted_request_leaves_no_answer_behind(scripted, to_scripted):
    """Airflow's time-out raises an exception from a signal handler, between a request and its answer."""
    bucket = to_scripted()
    bucket.head("x")
    scripted.script = [-3]

    class OutOfTime(BaseException):
        pass

    def out_of_time(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(OutOfTime):
            bucket.head("slow")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    scripted.answers = {"x-amz-storage-class": "GLACIER"}
    stored = bucket.head("other")
    assert stored
    assert stored.storage_class == "GLACIER"


def test_what_boto3_sent_is_not_kept(scripted, to_scripted):
    bucket = to_scripted()
    data = os.urandom(100)
    bucket.put("x", data, content_type="image/jpeg")
    assert scripted.by_boto3 == [True]
    assert sys.getrefcount(data) == 2  # that of this function, and that of the call itself


def test_a_refusal_before_the_bytes_have_come(scripted, to_scripted):
    bucket = to_scripted()
    put(bucket)
    scripted.script = [-2, -2]
    data = bytes(20 << 20)  # more than the socket buffers hold
    with pytest.raises(BucketRefused):
        bucket.put("x", data, content_type="image/jpeg")
    assert scripted.objects == {"/my-bucket/p/x": DATA}


def test_no_header_can_be_smuggled_in(scripted, to_scripted):
    bucket = to_scripted()
    put(bucket)
    with pytest.raises(DestinationUnavailable):  # boto3 refuses it too
        bucket.put("x", DATA, content_type="image/jpeg\r\nx-amz-acl: public-read")
    assert len(scripted.asked) == 1


def test_a_server_that_is_gone_is_unavailable(to_scripted, scripted):
    bucket = to_scripted()
    bucket.head("x")
    scripted.script = [0] * 20
    with pytest.raises(DestinationUnavailable):
        bucket.head("x")


def test_new_credentials_are_taken_up(scripted):
    session = boto3.Session("AKIAEXAMPLE", SECRET, region_name="eu-west-1")
    bucket = Bucket.open(session, "my-bucket", "p", endpoint_url=scripted.url)
    bucket.head("x")
    session.get_credentials().token = "a-token"
    bucket.head("x")
    assert scripted.asked[-1]["x-amz-security-token"] == "a-token"
    assert scripted.by_boto3 == [True, False]


def test_behind_a_proxy_boto3_goes_on_alone(scripted, monkeypatch):
    monkeypatch.setenv("http_proxy", scripted.url)
    monkeypatch.delenv("no_proxy", raising=False)
    session = boto3.Session("AKIAEXAMPLE", SECRET, region_name="eu-west-1")
    bucket = Bucket.open(session, "my-bucket", "p", endpoint_url="http://s3.invalid")
    assert bucket.head("x")
    assert bucket.head("x")
    assert scripted.by_boto3 == [True, True]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # verify=False causes it
def test_tls_is_checked_as_boto3_checks_it(tmp_path: Path, monkeypatch):
    certificate, key = generate_adhoc_ssl_pair("localhost")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, tmp_path / "key.pem")
    server = Scripted()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        for verify in (str(ca), False, None):
            if verify is None:
                monkeypatch.setenv("AWS_CA_BUNDLE", str(ca))
            session = boto3.Session("AKIAEXAMPLE", SECRET, region_name="eu-west-1")
            url = server.url.replace("http:", "https:")
            bucket = Bucket.open(session, "my-bucket", "p", endpoint_url=url, verify=verify)
            assert bucket.head("x")
            assert bucket.head("x")
            assert put(bucket)
    assert server.by_boto3 == [True, False, False] * 3
