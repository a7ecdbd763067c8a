"""HEAD requests past boto3: the same answers, and boto3 again wherever one is not plain."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from werkzeug.serving import generate_adhoc_ssl_pair

from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.errors import BucketRefused, DestinationUnavailable

KEYS = ("files/p10/a.jpg", "files/p10/with space.jpg", "files/ü+%41&=?#~(!)*'.jpg")
SECRET = "s3cret/of+nobody"


class Scripted(ThreadingHTTPServer):
    """Answers 200 to every HEAD, but for what ``script`` holds: a status, or 0 for a closed connection, for one each.

    ``asked`` holds the headers of each request, and ``by_boto3`` whether boto3 sent it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[int] = []
        self.asked: list[dict[str, str]] = []
        self.url = f"http://localhost:{self.server_port}"

    @property
    def by_boto3(self) -> list[bool]:
        return ["Boto3" in headers.get("user-agent", "") for headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_HEAD(self) -> None:
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        status = self.server.script.pop(0) if self.server.script else 200
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {
            "Content-Length": "7",
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


@pytest.fixture
def to_scripted(scripted) -> Callable[..., Bucket]:
    def open_(**options: str) -> Bucket:
        session = boto3.Session("AKIAEXAMPLE", SECRET, region_name="eu-west-1")
        return Bucket.open(session, "my-bucket", "p", endpoint_url=scripted.url, **options)

    return open_


def test_the_answers_are_boto3s(boto_session, s3_server, bucket_name):
    def opened() -> Bucket:
        return Bucket.open(boto_session, bucket_name, "a/prefix", endpoint_url=s3_server.endpoint)

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


@pytest.mark.parametrize("trouble", [0, 500, 503])
def test_after_a_passing_trouble_boto3_asks_again_once(scripted, to_scripted, trouble):
    bucket = to_scripted()
    bucket.head("x")
    scripted.script = [trouble]
    assert [bucket.head("x") is not None for _ in range(3)] == [True] * 3
    assert scripted.by_boto3 == [True, False, True, False, False]


def test_a_refusal_is_told_as_ever_and_boto3_goes_on_alone(scripted, to_scripted):
    bucket = to_scripted()
    bucket.head("x")
    scripted.script = [403, 403]
    with pytest.raises(BucketRefused) as refused:
        bucket.head("x")
    assert SECRET not in str(refused.value)
    assert "Credential" not in str(refused.value)
    assert bucket.head("x")
    assert scripted.by_boto3 == [True, False, True, True]


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


def test_tls_is_checked_as_boto3_checks_it(tmp_path: Path):
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
        for verify in (str(ca), False):
            session = boto3.Session("AKIAEXAMPLE", SECRET, region_name="eu-west-1")
            url = server.url.replace("http:", "https:")
            bucket = Bucket.open(session, "my-bucket", "p", endpoint_url=url, verify=verify)
            assert bucket.head("x")
            assert bucket.head("x")
    assert server.by_boto3 == [True, False, True, False]
