"""Refusals by S3 and invalid settings are reported at once, correctly, and without secrets."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk import Connection
from botocore.config import Config
from botocore.credentials import SSOProvider
from botocore.exceptions import UnauthorizedSSOTokenError
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from moto.server import ThreadedMotoServer
from werkzeug.serving import generate_adhoc_ssl_pair

from physionet_airflow.bucket import open_bucket
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import (
    BucketMissing,
    BucketRefused,
    DestinationUnavailable,
    InputError,
    MirrorError,
    ObjectArchived,
    ObjectLocked,
    next_steps,
)
from physionet_mirror.s3 import safety
from physionet_mirror.s3.bucket import PART_SIZE, Bucket
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.verification import verify

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "s3cret/of+nobody/aaaaaaaaaaaaaaaaaaaaaaa"
SIGNATURE = "5d41402abc4b2a76b9719d911017c592aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
ONCE = Config(retries={"mode": "standard", "max_attempts": 1})


class Answering(ThreadingHTTPServer):
    """Gives every request the same answer, as S3, STS or a proxy: ``status``, ``headers`` and, except to HEAD, ``body``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body, self.headers = 200, b"", {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.seconds = 0.0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def refuse(self, status: int, code: str, message: str = "", more: str = "") -> None:
        self.status = status
        self.body = (
            f"<Error><Code>{code}</Code><Message>{message}</Message>{more}<HostId>aG9zdA==</HostId></Error>".encode()
            if code
            else b""
        )

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    server: Answering

    def _answer(self) -> None:
        self.server.asked.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.server.seconds)
        body = b"" if self.command == "HEAD" else self.server.body
        self.send_response_only(self.server.status)
        for name, value in {"Content-Type": "application/xml", **self.server.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):  # the client has timed out
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE", "CONNECT"):
    setattr(_Handler, f"do_{_method}", _Handler._answer)


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def bucket(server) -> Bucket:
    session = boto3.Session(KEY, SECRET, region_name="us-east-1")
    return Bucket.open(session, "my-bucket", "p", endpoint_url=server.url, config=ONCE)


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch, tmp_path) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


# -- what S3 refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", ("expired", "aws_session_token")),
        (400, "InvalidToken", ("session token does not belong",)),
        (403, "InvalidAccessKeyId", ("does not know the access key", "endpoint_url")),
        (403, "SignatureDoesNotMatch", ("secret key does not belong", "password")),
        (403, "RequestTimeTooSkewed", ("clock", "NTP")),
        (403, "AllAccessDisabled", ("AWS Support",)),
        (403, "AccessDenied", ("names no right", "docs/deploy.md")),
        (400, "KMS.DisabledException", ("KMS key", "kms_key_id")),
        (501, "NotImplemented", ("does not take the request",)),
        (400, "InvalidArgument", ("does not take the request",)),
    ],
)
def test_the_access_check_says_what_s3_refuses(server, bucket, status, code, words):
    server.refuse(status, code, "S3's own sentence.")
    with pytest.raises(BucketRefused) as refused:
        bucket.check()
    assert refused.value.permanent
    for word in (code, "What is stored stays stored", "trigger the run again", *words):
        assert word in str(refused.value)
    assert ("S3's own sentence." in str(refused.value)) is (code != "RequestTimeTooSkewed")
    assert "s3:" not in str(refused.value).replace("s3://", "")  # no right that S3 did not name
    assert server.methods == ["GET"]


def test_the_access_check_finds_no_bucket(server, bucket):
    server.refuse(404, "NoSuchBucket")
    with pytest.raises(BucketMissing):
        bucket.check()


@pytest.mark.parametrize(
    ("status", "code", "message", "more", "headers"),
    [
        (301, "PermanentRedirect", "Use the endpoint.", "", {"x-amz-bucket-region": "eu-west-1"}),
        (400, "AuthorizationHeaderMalformed", "the region 'x' is wrong; expecting 'eu-west-1'", "", {}),
        (400, "IllegalLocationConstraintException", "no", "<Region>eu-west-1</Region>", {}),
    ],
)
def test_the_right_region_is_named(server, bucket, status, code, message, more, headers):
    bucket.client.meta.events.unregister("needs-retry.s3")
    server.refuse(status, code, message, more)
    server.headers = headers
    with pytest.raises(BucketRefused, match=r"in the region eu-west-1.*Set `region_name` to eu-west-1"):
        bucket.write_text("x", "x")


def test_a_clock_that_is_off_is_told_by_how_much(server, bucket):
    server.refuse(403, "RequestTimeTooSkewed", "The difference is too large.")
    server.headers = {"Date": "Wed, 01 Jan 2020 00:00:00 GMT"}
    with pytest.raises(BucketRefused, match=r"clock is wrong: [0-9,]+ minutes ahead of S3's"):
        bucket.check()


@pytest.mark.parametrize("direct", [False, True])
def test_a_head_without_a_word_is_asked_again_with_get(server, bucket, direct):
    if direct:  # the first answer shows the way
        server.headers = {"ETag": '"a"', "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}
        bucket.head("x")
        server.asked.clear()
    server.refuse(403, "AccessDenied", "User is not authorized to perform: kms:Decrypt on this resource")
    with pytest.raises(BucketRefused, match=r"kms:Decrypt.*Have allowed what it names"):
        bucket.head("x")
    assert server.methods == ["HEAD"] * (1 + direct) + ["GET"]
    server.refuse(404, "NoSuchKey")
    server.asked.clear()
    assert bucket.head("x") is None
    assert "GET" not in server.methods


def test_s3_s_sentence_comes_without_secrets(server, bucket):
    server.refuse(
        403,
        "AccessDenied",
        "User: arn:aws:sts::111122223333:assumed-role/lab/me is not authorized to perform: kms:GenerateDataKey on resource: "
        "arn:aws:kms:us-east-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab with an explicit deny in a resource-based "
        f"policy {KEY} Signature={SIGNATURE}",
        f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId><StringToSign>{SIGNATURE}</StringToSign>",
    )
    with pytest.raises(BucketRefused) as refused:
        bucket.put("x", b"x", content_type="image/jpeg")
    text = str(refused.value)
    for word in ("kms:GenerateDataKey", "role/lab/me", "…3333", "…6666", "1234567890ab", "server_side_encryption"):
        assert word in text
    for secret in (KEY, SECRET, SIGNATURE, "111122223333", "444455556666", "aG9zdA"):
        assert secret not in text


def test_an_archived_object_is_no_missing_right(server, bucket):
    server.refuse(403, "InvalidObjectState", "The operation is not valid for the object's storage class")
    with pytest.raises(ObjectArchived, match=r"_mirror/x is archived.*restoring-objects") as raised:
        bucket.read("_mirror/x")
    assert raised.value.permanent


def test_a_locked_object_is_no_missing_right(server, bucket):
    server.body = (
        b"<DeleteResult><Error><Key>p/x</Key><VersionId>1</VersionId><Code>AccessDenied</Code>"
        b"<Message>Access Denied because object protected by object lock.</Message></Error></DeleteResult>"
    )
    with pytest.raises(ObjectLocked, match=r"retention or legal hold.*no right is missing.*object-lock"):
        bucket.delete(["x", "y"])
    server.body = server.body.replace(b" because object protected by object lock.", b"")
    with pytest.raises(BucketRefused, match="Access Denied"):
        bucket.delete(["x"])


# -- settings that make requests impossible --------------------------------------------------------------------------


@pytest.fixture
def connected(monkeypatch) -> Callable[..., Bucket]:
    """Opens the bucket with an AWS connection of these fields."""

    def connected(**fields: object) -> Bucket:
        extra = json.dumps({"region_name": "us-east-1", **fields.pop("extra", {})})  # type: ignore[dict-item]
        made = Connection(conn_id="aws_default", conn_type="aws", extra=extra, **fields)  # type: ignore[arg-type]
        monkeypatch.setattr(S3Hook, "get_connection", lambda *_: made)
        return open_bucket("my-bucket", "p")

    return connected


KEYS = {"login": KEY, "password": SECRET}


def assert_said_at_once(work: Callable[[], object], *words: str) -> None:
    with pytest.raises(MirrorError) as raised:
        work()
    assert isinstance(raised.value, InputError | BucketRefused)
    assert raised.value.permanent
    for word in words:
        assert word in str(raised.value)
    for secret in (KEY, SECRET, "Traceback"):
        assert secret not in str(raised.value)


@pytest.mark.parametrize("content", [None, "no certificate"])
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_ca_bundle_that_is_none(connected, monkeypatch, tmp_path, variable, content):
    bundle = tmp_path / "ca.pem"
    if content:
        bundle.write_text(content)
    monkeypatch.setenv(variable, str(bundle))
    assert_said_at_once(lambda: connected(**KEYS), variable, str(bundle), "PEM" if content else "does not exist")
    if variable.startswith("REQUESTS"):
        source = PhysioNet("https://physionet.invalid", "reader", "a password")
        assert_said_at_once(lambda: source.check_access(MIMIC_CXR_JPG), variable, str(bundle))


def test_a_ca_bundle_of_the_connection_that_is_none(connected):
    assert_said_at_once(lambda: connected(**KEYS, extra={"verify": "/no/such.pem"}), "`verify`", "/no/such.pem")


def test_a_certificate_that_nobody_here_trusts(tmp_path):
    certificate, key = generate_adhoc_ssl_pair("localhost")
    (tmp_path / "c.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "k.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    with Answering() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"https://localhost:{server.server_port}"
        session = boto3.Session(KEY, SECRET, region_name="us-east-1")
        s3 = Bucket.open(session, "my-bucket", "p", endpoint_url=url, config=ONCE)
        assert_said_at_once(s3.check, "does not trust the certificate", "AWS_CA_BUNDLE")
        source = PhysioNet(url, "reader", "a password")
        assert_said_at_once(lambda: source.check_access(MIMIC_CXR_JPG), "does not trust", "REQUESTS_CA_BUNDLE")
        server.shutdown()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_login(server, monkeypatch, scheme):
    server.status = 407
    monkeypatch.setenv(f"{scheme}_proxy", server.url.replace("://", "://me:hush@"))
    session = boto3.Session(KEY, SECRET, region_name="us-east-1")
    s3 = Bucket.open(session, "my-bucket", "p", endpoint_url=f"{scheme}://s3.invalid", config=ONCE)
    source = PhysioNet(f"{scheme}://physionet.invalid", "reader", "a password", allow_http=True)
    for ask in (s3.check, lambda: s3.head("x"), lambda: source.check_access(MIMIC_CXR_JPG)):
        assert_said_at_once(ask, "wants a login (407)", f"{scheme}_proxy", server.url.removeprefix("http://"))
        with pytest.raises(InputError) as raised:
            ask()
        assert "hush" not in str(raised.value)


def test_a_proxy_that_forbids_the_way(server, monkeypatch):
    server.status = 403
    monkeypatch.setenv("https_proxy", server.url)
    source = PhysioNet("https://physionet.invalid", "reader", "a password")
    assert_said_at_once(lambda: source.check_access(MIMIC_CXR_JPG), "forbids the way (403)", "physionet.invalid")


def test_a_network_that_is_away_is_still_waited_for(connected):
    s3 = connected(
        **KEYS, extra={"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    )
    with pytest.raises(DestinationUnavailable):
        s3.check()


def test_an_expired_sso_session(connected, tmp_path, monkeypatch):
    start = "https://lab.awsapps.com/start"
    (tmp_path / "config").write_text(
        f"[profile lab]\nsso_start_url = {start}\nsso_region = us-east-1\nsso_account_id = 111122223333\nsso_role_name = r\n"
    )
    cache = tmp_path / ".aws" / "sso" / "cache"
    monkeypatch.setattr(SSOProvider, "_SSO_TOKEN_CACHE_DIR", str(cache))  # botocore expands ~ when it is imported
    cache.mkdir(parents=True)
    token = {"startUrl": start, "accessToken": "an-sso-token", "expiresAt": "2020-01-01T00:00:00UTC"}
    (cache / f"{hashlib.sha1(start.encode(), usedforsecurity=False).hexdigest()}.json").write_text(json.dumps(token))
    s3 = connected(extra={"profile_name": "lab"})
    for ask in (s3.check, lambda: s3.put("x", b"x", content_type="image/jpeg")):
        assert_said_at_once(ask, "aws sso login", "SSO session", "expired")


def test_a_credential_process_that_fails(connected, tmp_path):
    script = tmp_path / "process"
    script.write_text(f"#!/bin/sh\necho 'vault is sealed; token={SECRET}' >&2\nexit 3\n")
    script.chmod(0o700)
    (tmp_path / "config").write_text(f"[profile lab]\ncredential_process = {script}\n")
    assert_said_at_once(lambda: connected(extra={"profile_name": "lab"}), "vault is sealed", "credential_process")
    script.unlink()
    assert_said_at_once(lambda: connected(extra={"profile_name": "lab"}), "profile_name", str(script))


def test_an_unknown_profile(connected):
    assert_said_at_once(lambda: connected(extra={"profile_name": "nobody"}), "nobody", "`profile_name`")


def test_a_role_that_cannot_be_assumed(connected, server):
    server.refuse(
        403, "AccessDenied", "not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::111122223333:role/r"
    )
    server.body = b"<ErrorResponse>" + server.body + b"<RequestId>x</RequestId></ErrorResponse>"
    extra = {
        "role_arn": "arn:aws:iam::111122223333:role/r",
        "service_config": {"sts": {"endpoint_url": server.url}},
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    assert_said_at_once(
        lambda: connected(**KEYS, extra=extra), "AWS STS", "`role_arn`", "sts:AssumeRole", "trust policy"
    )
    server.refuse(503, "ServiceUnavailable")
    with pytest.raises(DestinationUnavailable):
        connected(**KEYS, extra=extra)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"endpoint_url": "my minio:9000"}, ("endpoint_url", "my minio")),
        ({"region_name": "us east 1"}, ("region_name", "us east 1")),
        ({"config_kwargs": {"conect_timeout": 3}}, ("config_kwargs", "conect_timeout")),
        ({"assume_role_method": "by_magic", "role_arn": "arn:aws:iam::111122223333:role/r"}, ("role_arn", "by_magic")),
        ({"expected_bucket_owner": "my-account"}, ("expected_bucket_owner", "12 digits")),
        ({"server_side_encryption": "AES-256"}, ("server_side_encryption", "AES256")),
        ({"server_side_encryption": "AES256", "kms_key_id": "k"}, ("server_side_encryption", "kms_key_id")),
    ],
)
def test_a_setting_of_the_connection_that_cannot_be_used(connected, extra, words):
    assert_said_at_once(lambda: connected(**KEYS, extra=extra), *words)


def test_a_region_that_does_not_exist(connected, monkeypatch):
    """Its endpoint's name is unknown to DNS, as is every name while the network is down."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    few = {"config_kwargs": {"retries": {"max_attempts": 0}}}
    assert_said_at_once(connected(**KEYS, extra={"region_name": "us-esat-1", **few}).check, "region_name", "us-esat-1")
    with pytest.raises(DestinationUnavailable):
        connected(**KEYS, extra=few).check()


@pytest.mark.parametrize("owner", [12345678901, "012345678901"])
def test_an_owner_may_be_given_as_a_number(connected, server, owner):
    s3 = connected(**KEYS, extra={"expected_bucket_owner": owner, "endpoint_url": server.url})
    server.body = b"<ListBucketResult></ListBucketResult>"
    s3.check()
    assert server.asked[0][1]["x-amz-expected-bucket-owner"] == "012345678901"


def test_the_safety_check_does_not_wait_for_settings(server, bucket, monkeypatch):
    def expired(**_: object) -> None:
        raise UnauthorizedSSOTokenError

    server.body = b"<ListBucketResult></ListBucketResult>"
    bucket.client.meta.events.register("before-send.s3.GetPublicAccessBlock", expired)
    assert_said_at_once(lambda: safety.check(bucket), "aws sso login")


# -- the connection's own settings -----------------------------------------------------------------------------------


def test_config_kwargs_stand_above_ours(connected, server):
    server.body = b"<ListBucketResult></ListBucketResult>"
    theirs = {"read_timeout": 0.3, "max_pool_connections": 7, "retries": {"mode": "standard", "max_attempts": 1}}
    s3 = connected(**KEYS, extra={"endpoint_url": server.url, "config_kwargs": theirs})
    config = s3.client.meta.config
    assert (config.read_timeout, config.max_pool_connections, config.connect_timeout) == (0.3, 7, 10)
    server.headers = {"ETag": '"a"', "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}
    s3.head("x")
    server.seconds, begun = 1.0, time.monotonic()
    with pytest.raises(DestinationUnavailable):
        s3.head("x")  # directly, and twice with boto3
    assert server.methods == ["HEAD"] * 4
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("extra", "sent"),
    [
        ({"server_side_encryption": "AES256"}, ("AES256", None)),
        ({"server_side_encryption": "aws:kms:dsse", "kms_key_id": "k"}, ("aws:kms:dsse", "k")),
        ({"kms_key_id": "k"}, ("aws:kms", "k")),
        ({}, (None, None)),
    ],
)
def test_every_write_asks_for_the_encryption(connected, server, extra, sent):
    """As required by a bucket whose policy denies writes without that header."""
    s3 = connected(**KEYS, extra={"endpoint_url": server.url, **extra})
    server.headers = {"ETag": '"a"', "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}
    for _ in range(2):  # with boto3, then directly
        s3.put("x", b"x", content_type="image/jpeg")
    s3.write_text("x", "x")
    s3.write_unless_changed("x", b"x", None)
    server.body = b"<R><UploadId>1</UploadId><ETag>a</ETag></R>"
    s3.upload("x", [bytes(PART_SIZE), b"x"])
    there = s3.head("x")
    assert there
    s3.copy_from(s3, there, content_type="image/jpeg")
    begins = [
        headers
        for method, headers in server.asked
        if (method == "PUT" and "x-amz-checksum-sha256" in headers and "partnumber" not in str(headers).lower())
        or "x-amz-copy-source" in headers
        or (method == "POST" and "x-amz-checksum-algorithm" in headers)
    ]
    parts = [headers for headers in begins if headers.get("content-length") == str(PART_SIZE)]
    asked = [
        (headers.get("x-amz-server-side-encryption"), headers.get("x-amz-server-side-encryption-aws-kms-key-id"))
        for headers in begins
        if headers not in parts
    ]
    assert asked.count(sent) >= 6


@dataclass(frozen=True)
class File:
    path: str
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def test_an_audit_names_archived_objects_and_judges_the_others():
    """Moto refuses to read objects in GLACIER, as S3 does."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        session = boto3.Session(KEY, SECRET, region_name="us-east-1")
        url = "http://{}:{}".format(*moto.get_host_and_port())
        session.client("s3", endpoint_url=url).create_bucket(Bucket="lab-archive")
        s3 = Bucket.open(session, "lab-archive", "p", endpoint_url=url)
        archived, plain = File("files/p10/a.jpg", b"a"), File("files/p10/b.jpg", b"b")
        s3.put(archived.path, archived.data, content_type="image/jpeg", storage_class="GLACIER")
        s3.put(plain.path, plain.data, content_type="image/jpeg")
        verdict = verify([archived, plain], s3, "content")
        assert [right.path for right in verdict.ok] == [plain.path]
        (problem,) = verdict.problems
        assert (problem.path, problem.reason) == (archived.path, "object archived")
        assert "no right is missing" in problem.detail
        assert problem.reason in next_steps()
    finally:
        moto.stop()
