"""The bucket on two real S3 servers: objects are written whole, correct and below the prefix, or not at all."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from demo.stack import S3Server
from physionet_mirror.errors import (
    BucketMissing,
    BucketRefused,
    DestinationError,
    DestinationUnavailable,
    InputError,
)
from physionet_mirror.s3.bucket import PART_SIZE, Bucket


@pytest.fixture(params=["rclone", "strict"])
def server(request) -> S3Server:
    return request.getfixturevalue("s3_server" if request.param == "rclone" else "strict_s3")


@pytest.fixture
def bucket(server, bucket_name) -> Bucket:
    server.make_bucket(bucket_name)
    return Bucket.open(server.session(), bucket_name, "a/prefix", endpoint_url=server.endpoint)


def bytes_of(bucket: Bucket, path: str) -> bytes:
    """The object as another client reads it."""
    return bucket.client.get_object(Bucket=bucket.name, Key=f"{bucket.prefix}/{path}".lstrip("/"))["Body"].read()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_bucket_is_there(bucket):
    bucket.check()


def test_keys_and_uris(bucket):
    assert bucket.key("x/y.jpg") == "a/prefix/x/y.jpg"
    assert bucket.uri("x") == f"s3://{bucket.name}/a/prefix/x"
    assert bucket.uri() == f"s3://{bucket.name}/a/prefix"


def test_an_empty_prefix_is_the_bucket_itself(server, bucket):
    bucket = Bucket.open(server.session(), bucket.name, "/", endpoint_url=server.endpoint)
    bucket.put("x.jpg", b"x", content_type="image/jpeg")
    assert bytes_of(bucket, "x.jpg") == b"x"
    assert [listed.path for listed in bucket.list()] == ["x.jpg"]


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_put_stores_the_bytes_their_checksum_and_type(bucket, size):
    data = random.Random(size).randbytes(size)
    bucket.put("files/x.jpg", data, content_type="image/jpeg")
    assert bytes_of(bucket, "files/x.jpg") == data
    stored = bucket.head("files/x.jpg")
    assert stored
    assert (stored.path, stored.size, stored.content_type) == ("files/x.jpg", size, "image/jpeg")
    assert stored.sha256 == sha256(data)
    assert bucket.read("files/x.jpg") == data


def test_put_replaces(bucket):
    for data in (b"old and longer", b"new"):
        bucket.put("x", data, content_type="text/plain")
    assert bucket.read("x") == b"new"


def test_what_is_absent(bucket):
    assert bucket.head("nothing") is None
    with pytest.raises(FileNotFoundError, match="a/prefix/nothing"):
        bucket.read("nothing")
    with pytest.raises(FileNotFoundError):
        next(bucket.open_read("nothing"))


def test_small_objects(bucket):
    bucket.write_json("_mirror/x.json", {"ü": [1, 2.5, None]})
    bucket.write_text("_mirror/x.txt", "grün\n")
    assert json.loads(bucket.read("_mirror/x.json")) == {"ü": [1, 2.5, None]}
    assert bucket.read_text("_mirror/x.txt") == "grün\n"


# -- listing --------------------------------------------------------------------------------------------------------


def test_a_listing_is_in_byte_order_below_the_prefix_and_within_the_range(bucket, server):
    paths = [f"files/p{n}/{m}.jpg" for n in (10, 11, 12) for m in range(4)]
    for path in paths:
        bucket.put(path, path.encode(), content_type="image/jpeg")
    Bucket.open(server.session(), bucket.name, "a/prefix-of-another", endpoint_url=server.endpoint).put(
        "files/p11/9.jpg", b"not ours", content_type="image/jpeg"
    )
    assert [listed.path for listed in bucket.list()] == sorted(paths)
    assert [listed.path for listed in bucket.list("files/p11/")] == paths[4:8]
    assert [listed.path for listed in bucket.list(start_after=paths[2], last=paths[9])] == paths[3:10]
    first = next(bucket.list())
    assert first.size == len(paths[0])
    assert first.etag == bucket.head(paths[0]).etag


def test_a_listing_costs_one_request_a_thousand_keys(bucket):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: bucket.put(f"files/{n:05}.jpg", b"x", content_type="image/jpeg"), range(1500)))
    assert len(list(bucket.list())) == 1500
    assert bucket.requests["LIST"] == 2
    bucket.requests.clear()
    assert len(list(bucket.list(start_after="files/00199.jpg", last="files/00499.jpg"))) == 300
    assert bucket.requests["LIST"] == 1


# -- uploads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, PART_SIZE, PART_SIZE + 1, 2 * PART_SIZE, 2 * PART_SIZE + 17])
def test_an_upload_of_any_size(bucket, size):
    data = random.Random(size).randbytes(size)
    chunks = [data[at : at + 700_001] for at in range(0, size, 700_001)]
    assert bucket.upload("big.bin", chunks, content_type="application/zip") == size
    assert bytes_of(bucket, "big.bin") == data


def test_an_upload_whose_stream_breaks_becomes_no_object(bucket, bucket_name):
    def breaking() -> Iterator[bytes]:
        for _ in range(5):
            yield bytes(PART_SIZE // 2)
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        bucket.upload("big.bin", breaking())
    assert bucket.head("big.bin") is None
    assert not bucket.client.list_multipart_uploads(Bucket=bucket_name).get("Uploads")


def test_an_upload_that_breaks_leaves_the_old_object(bucket):
    bucket.put("big.bin", b"old", content_type="application/zip")

    def breaking() -> Iterator[bytes]:
        yield bytes(3 * PART_SIZE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bucket.upload("big.bin", breaking())
    assert bucket.read("big.bin") == b"old"


def test_a_stream_is_read_only_as_far_as_parts_are_stored(bucket):
    """Memory is bounded: at most two parts are read ahead of what S3 has accepted."""
    read = [0]

    def chunks() -> Iterator[bytes]:
        for _ in range(48):
            ahead = read[0] - sent[0] * PART_SIZE
            assert ahead <= 2 * PART_SIZE, "read ahead"
            read[0] += PART_SIZE // 8
            yield bytes(PART_SIZE // 8)

    sent = [0]
    upload_part = bucket.client.upload_part

    def counting(**arguments):
        answer = upload_part(**arguments)
        sent[0] += 1
        return answer

    bucket.client.upload_part = counting
    assert bucket.upload("big.bin", chunks()) == 6 * PART_SIZE


# -- deleting -------------------------------------------------------------------------------------------------------


def test_deleting(bucket):
    for name in "abc":
        bucket.put(name, b"x", content_type="text/plain")
    bucket.delete(["a", "c", "never there"])
    assert [listed.path for listed in bucket.list()] == ["b"]


# -- as strict as S3 ------------------------------------------------------------------------------------------------


@pytest.fixture
def strict(strict_s3, bucket_name) -> Bucket:
    """A bucket of a server that checks checksums and honours conditions."""
    strict_s3.make_bucket(bucket_name)
    return Bucket.open(strict_s3.session(), bucket_name, "a/prefix", endpoint_url=strict_s3.endpoint)


def test_the_server_leaves_nothing_outside_its_folder(strict, tmp_path_factory):
    outside = Path(tempfile.gettempdir(), "localstack-s3-storage", strict.name)
    assert not outside.exists()
    assert list(tmp_path_factory.getbasetemp().glob(f"strict-s3*/tmp/*/{strict.name}"))


def test_bytes_that_do_not_hash_to_the_published_checksum_never_become_an_object(strict):
    def put(path: str, data: bytes) -> None:
        strict.put(path, data, content_type="image/jpeg", sha256=sha256(b"right"))

    with pytest.raises(DestinationError, match="BadDigest"):
        put("first.jpg", b"wrong")  # by boto3
    put("x.jpg", b"right")
    with pytest.raises(DestinationError, match="BadDigest"):
        put("later.jpg", b"wrong")  # by a signed request of our own
    assert [(listed.path, listed.size) for listed in strict.list()] == [("x.jpg", 5)]


def test_a_part_that_was_damaged_on_its_way_leaves_no_object(strict):
    def damage(params, **_):
        params["body"] = bytes(PART_SIZE)

    strict.client.meta.events.register("before-call.s3.UploadPart", damage)
    with pytest.raises(DestinationError, match="BadDigest"):
        strict.upload("big.bin", [random.Random(1).randbytes(2 * PART_SIZE)])
    assert strict.head("big.bin") is None
    assert not strict.client.list_multipart_uploads(Bucket=strict.name).get("Uploads")


def test_a_file_in_one_put_has_a_checksum_of_the_whole_and_no_other_bytes_become_it(strict, tmp_path):
    file = tmp_path / "big.tar"
    file.write_bytes(random.Random(3).randbytes(2 * PART_SIZE + 1))
    whole = sha256(file.read_bytes())
    with file.open("rb") as stream:
        etag = strict.put_file("big.tar", stream, sha256=whole, content_type="application/x-tar")
        with pytest.raises(DestinationError, match="BadDigest"):
            strict.put_file("other.tar", stream, sha256=sha256(b"other"), content_type="application/x-tar")
    stored = strict.head("big.tar")
    assert (stored.etag, stored.sha256, stored.content_type) == (etag, whole, "application/x-tar")
    assert strict.head("other.tar") is None


def test_an_upload_in_parts_has_no_checksum_of_the_whole(strict):
    data = random.Random(2).randbytes(2 * PART_SIZE + 1)
    strict.upload("big.bin", [data], content_type="application/zip")
    held = strict.client.head_object(Bucket=strict.name, Key=strict.key("big.bin"), ChecksumMode="ENABLED")
    assert held["ChecksumSHA256"].endswith("-3")
    stored = strict.head("big.bin")
    assert (stored.size, stored.sha256, stored.content_type) == (len(data), None, "application/zip")


def test_of_several_who_saw_the_same_one_writes_and_the_others_know(strict):
    for saw_something in (False, True):
        seen = strict.head("index")
        assert bool(seen) == saw_something
        texts = [f"{who}, who saw {seen}".encode() for who in ("one", "another")]
        assert [strict.write_unless_changed("index", text, seen) for text in texts] == [True, False]
        assert strict.read("index") == texts[0]


def test_nothing_is_written_in_place_of_what_was_deleted_meanwhile(strict):
    strict.write("index", b"old")
    seen = strict.head("index")
    strict.delete(["index"])
    assert not strict.write_unless_changed("index", b"new", seen)
    assert strict.head("index") is None


def test_a_copy_has_the_checksum_that_its_original_lacks(strict):
    data = b"as another tool stored it"
    strict.client.put_object(Bucket=strict.name, Key=strict.key("x.jpg"), Body=data, ContentType="image/jpeg")
    plain = strict.head("x.jpg")
    copied = strict.copy_from(strict, plain, "y.jpg", content_type="image/png", storage_class="STANDARD_IA")
    assert copied.sha256 == sha256(data)
    stored = strict.head("y.jpg")
    assert (stored.sha256, stored.etag) == (copied.sha256, copied.etag)
    assert (stored.content_type, stored.storage_class) == ("image/png", "STANDARD_IA")


def test_only_the_very_object_is_deleted(bucket):
    bucket.put("x.jpg", b"ours", content_type="image/jpeg")
    ours = bucket.head("x.jpg").etag
    bucket.put("x.jpg", b"theirs", content_type="image/jpeg")
    assert not bucket.delete_exactly("x.jpg", ours)
    assert bucket.read("x.jpg") == b"theirs"
    assert bucket.delete_exactly("x.jpg", bucket.head("x.jpg").etag)
    assert not bucket.delete_exactly("x.jpg", ours)


def test_what_has_changed_since_it_was_looked_at_is_not_copied(strict):
    strict.put("x.jpg", b"seen", content_type="image/jpeg")
    seen = strict.head("x.jpg")
    strict.put("x.jpg", b"changed", content_type="image/jpeg")
    with pytest.raises(DestinationError, match="PreconditionFailed"):
        strict.copy_from(strict, seen, content_type="image/png")
    assert strict.head("x.jpg").content_type == "image/jpeg"


# -- threads, errors ------------------------------------------------------------------------------------------------


def test_threads_share_it(bucket):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: bucket.put(f"files/{n % 7}/{n}.jpg", b"%d" % n, content_type="image/jpeg"), range(200)))
    assert bucket.requests["PUT"] == 200
    assert {listed.path: listed.size for listed in bucket.list()} == {
        f"files/{n % 7}/{n}.jpg": len(str(n)) for n in range(200)
    }


def test_a_bucket_that_is_not_there(server):
    bucket = Bucket.open(server.session(), "no-such-bucket-here", "p", endpoint_url=server.endpoint)
    for ask in (bucket.check, lambda: list(bucket.list()), lambda: bucket.write("x", b"x")):
        with pytest.raises(BucketMissing, match="no-such-bucket-here does not exist"):
            ask()


def test_keys_that_are_not_let_in(s3_server, bucket_name):
    session = boto3.Session("wrong-access-key", "wrong-secret-key-0123456789", region_name="us-east-1")
    bucket = Bucket.open(session, bucket_name, "p", endpoint_url=s3_server.endpoint)
    for ask in (
        bucket.check,
        lambda: bucket.put("x", b"x", content_type="text/plain"),
        lambda: bucket.head("x"),
        lambda: list(bucket.list()),
    ):
        with pytest.raises(BucketRefused) as refused:
            ask()
        assert "wrong-secret-key" not in str(refused.value)


def test_no_credentials_at_all(monkeypatch, tmp_path, s3_server):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match="No AWS credentials"):
        Bucket.open(boto3.Session(region_name="us-east-1"), "my-bucket", "p", endpoint_url=s3_server.endpoint)


class _Busy(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_a_busy_s3_is_unavailable_after_retries(boto_session):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bucket = Bucket.open(boto_session, "my-bucket", "p", endpoint_url=f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(DestinationUnavailable, match="SlowDown"):
        bucket.put("x", b"x", content_type="text/plain")
    server.shutdown()
    server.server_close()


def test_nobody_there(boto_session):
    bucket = Bucket.open(boto_session, "my-bucket", "p", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(DestinationUnavailable, match="What is stored stays stored"):
        bucket.put("x", b"x", content_type="text/plain")


def test_amazon_says_where_a_bucket_is_and_any_other_store_the_connection(bucket):
    assert not bucket.in_aws
    before = bucket.requests.total()
    assert (bucket.region(), bucket.requests.total()) == ("us-east-1", before)
    moto = pytest.importorskip("moto")
    with moto.mock_aws():
        session = boto3.Session("testing", "testing-secret", region_name="us-east-1")
        where = {"LocationConstraint": "eu-west-1"}
        boto3.client("s3", "eu-west-1").create_bucket(Bucket="far-away", CreateBucketConfiguration=where)
        far, gone = (Bucket.open(session, name, "mine") for name in ("far-away", "no-such-bucket"))
        assert far.in_aws
        assert (far.region(), gone.region()) == ("eu-west-1", "us-east-1")
