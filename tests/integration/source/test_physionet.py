"""PhysioNet's client against the look-alike: the handshake, which hosts get the password, resuming, and any dataset."""

from __future__ import annotations

import csv
import gzip
import hashlib
import http.server
import io
import os
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from demo.lookalike import Fault, Kind, Lookalike, User
from demo.stack import PYTHONPATH
from physionet_mirror.dataset import DATASETS, MIMIC_CXR, MIMIC_CXR_JPG, SUMS
from physionet_mirror.errors import (
    AccessRefused,
    Corrupt,
    CredentialsRefused,
    NotFound,
    NotTheFile,
    SourceError,
    SourceUnavailable,
    Throttled,
    Truncated,
)
from physionet_mirror.files import File
from physionet_mirror.pace import Pace
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.transfer import Transfer

PART = 8 << 20
TABLE = MIMIC_CXR_JPG.tables["split"]


@pytest.fixture
def source(physionet, reader) -> Iterator[PhysioNet]:
    source = PhysioNet(physionet.url, *reader, connections=8, connect_timeout=2, read_timeout=1)
    yield source
    source.close()


def fetched(source: PhysioNet, path: str, sha256: str | None) -> bytes:
    return b"".join(source.open(MIMIC_CXR_JPG, path, sha256))


def sums(root: Path, dataset=MIMIC_CXR_JPG) -> dict[str, str]:
    lines = (root / dataset.name / SUMS).read_text().splitlines()
    return {path: digest for digest, path in (line.split(" ", 1) for line in lines)}


# -- the handshake --------------------------------------------------------------------------------------------------


def test_a_file_arrives_and_costs_one_password_check(source, physionet, tiny_dataset):
    digest = sums(tiny_dataset)[TABLE]
    assert fetched(source, TABLE, digest) == (tiny_dataset / MIMIC_CXR_JPG.name / TABLE).read_bytes()
    for _ in range(10):
        fetched(source, TABLE, digest)
    assert physionet.counters.password_checks == source.stats.handshakes == 1


def test_all_threads_share_one_handshake(source, physionet, tiny_dataset):
    digest = sums(tiny_dataset)[TABLE]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fetched(source, TABLE, digest), range(40)))
    assert physionet.counters.password_checks == 1
    assert physionet.counters.accepted <= 8


def test_a_burst_of_401s_costs_one_handshake(source, physionet, tiny_dataset):
    digest = sums(tiny_dataset)[TABLE]
    source.check_access(MIMIC_CXR_JPG)
    physionet.access.end_sessions(with_401=True)
    barrier = threading.Barrier(8)

    def fetch(_: int) -> bytes:
        barrier.wait()
        return fetched(source, TABLE, digest)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(fetch, range(8)))) == 1
    assert physionet.counters.password_checks == 2


def test_a_wrong_password_is_asked_about_once(physionet, reader):
    source = PhysioNet(physionet.url, reader[0], "wrong")

    def check(_: int) -> type[Exception] | None:
        try:
            source.check_access(MIMIC_CXR_JPG)
        except SourceError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(check, range(16))) == {CredentialsRefused}
    assert physionet.counters.password_checks == 1


def test_a_failing_handshake_is_not_tried_by_each_thread_in_turn(source, physionet):
    physionet.faults.set(Fault(Kind.SILENCE, paths="*", attempts=None, seconds=20))

    def check(_: int) -> str:
        try:
            source.check_access(MIMIC_CXR_JPG)
        except SourceError as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(check, range(8))) == {"stalled"}
    assert physionet.counters.requests <= 2


def test_a_handshake_goes_on_from_the_greeting_where_it_was_broken_off(source, physionet):
    physionet.faults.set(Fault(Kind.LOGIN_PAGE, paths="*", attempts=3))
    for _ in range(3):
        with pytest.raises(NotTheFile):
            source.check_access(MIMIC_CXR_JPG)
    assert physionet.counters.requests == 1 + 3
    source.check_access(MIMIC_CXR_JPG)
    assert physionet.counters.requests == 1 + 3 + 2


def test_a_password_that_changed_after_a_broken_handshake_is_refused(tiny_dataset):
    users = {"a": User("b")}
    with Lookalike(tiny_dataset, users=users, check_seconds=0) as server:
        source = PhysioNet(server.url, "a", "b")
        server.faults.set(Fault(Kind.LOGIN_PAGE, paths="*", attempts=1))
        with pytest.raises(NotTheFile):
            source.check_access(MIMIC_CXR_JPG)
        server.access.users["a"] = User("c")
        with pytest.raises(CredentialsRefused):
            source.check_access(MIMIC_CXR_JPG)
        assert server.counters.requests == 2 + 1 + 2  # with the old greeting, then with a new one
        source.close()


def test_an_unsigned_agreement(tiny_dataset):
    with Lookalike(tiny_dataset, users={"a": User("b", frozenset())}, check_seconds=0) as server:
        source = PhysioNet(server.url, "a", "b")
        for _ in range(3):
            with pytest.raises(AccessRefused, match=MIMIC_CXR_JPG.page):
                source.check_access(MIMIC_CXR_JPG)
        assert server.counters.password_checks == 1


def test_a_version_that_is_not_there(source):
    with pytest.raises(NotFound, match="mimic-cxr-jpg/2"):
        source.check_access(DATASETS["mimic-cxr-jpg/2.0.0"])


# -- who gets the password ------------------------------------------------------------------------------------------


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    seen: list[dict[str, str]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"bytes")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    _Elsewhere.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_redirect_carries_no_credentials_to_another_host(source, physionet, elsewhere):
    source.check_access(MIMIC_CXR_JPG)
    physionet.faults.set(Fault(Kind.REDIRECT, paths=f"*/{TABLE}", location=elsewhere))
    assert fetched(source, TABLE, hashlib.sha256(b"bytes").hexdigest()) == b"bytes"
    (seen,) = _Elsewhere.seen
    assert seen["user-agent"] == source.user_agent
    assert not {"authorization", "cookie"} & seen.keys()


def test_a_redirect_within_physionet_keeps_them(source, physionet, tiny_dataset):
    physionet.faults.set(Fault(Kind.REDIRECT, paths=f"*/{TABLE}", location=physionet.url))
    fetched(source, TABLE, sums(tiny_dataset)[TABLE])


def test_a_redirect_to_the_same_site_without_www_is_followed_once(physionet, reader, tiny_dataset, monkeypatch, caplog):
    """The password is sent there, and later requests go to the right address at once."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: resolve(host.replace("www.localhost", "127.0.0.1"), *rest, **more),
    )
    here = physionet.url.replace("127.0.0.1", "localhost")
    physionet.faults.set(Fault(Kind.REDIRECT, paths=f"*/{SUMS}", location=here))
    source = PhysioNet(here.replace("//", "//www."), *reader, allow_http=True)
    digest = sums(tiny_dataset)[TABLE]
    for _ in range(3):
        assert b"".join(source.stream(MIMIC_CXR_JPG, TABLE, digest))
    assert source.base_url == here
    assert "Enter that as the host of the PhysioNet connection" in caplog.text
    assert physionet.counters.by_status[302] == 1
    assert physionet.counters.password_checks == 1
    assert all(seen.headers["host"].startswith("localhost") for seen in list(physionet.counters.seen)[1:])


@pytest.mark.parametrize("location", ["ftp://example.org", "file://", "http://127.0.0.1:1", "http://["])
def test_a_redirect_to_nowhere_is_an_error_of_ours(source, physionet, location):
    source.check_access(MIMIC_CXR_JPG)
    physionet.faults.set(Fault(Kind.REDIRECT, paths=f"*/{TABLE}", location=location, attempts=None))
    with pytest.raises(SourceUnavailable):
        fetched(source, TABLE, None)


def test_a_redirect_in_a_circle_ends(source, physionet):
    physionet.faults.set(Fault(Kind.REDIRECT, paths=f"*/{TABLE}", location=physionet.url, attempts=None))
    with pytest.raises(SourceUnavailable, match="circle"):
        fetched(source, TABLE, None)


def test_no_other_credentials_are_added(physionet, reader, tmp_path, monkeypatch):
    """Neither ~/.netrc nor the environment's proxies add any."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other-password\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://user:secret@127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    source = PhysioNet(physionet.url, *reader)
    source.check_access(MIMIC_CXR_JPG)
    assert "authorization" not in physionet.counters.seen[0].headers, "the greeting is nobody's"
    assert all("proxy-authorization" not in seen.headers for seen in physionet.counters.seen)
    assert physionet.counters.password_checks == 1


def test_an_http_proxy_is_asked_with_the_whole_address(reader, elsewhere, monkeypatch):
    monkeypatch.setenv("http_proxy", elsewhere)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    source = PhysioNet("http://physionet.invalid", *reader, allow_http=True)
    with pytest.raises(SourceError):
        source.check_access(
            MIMIC_CXR_JPG
        )  # the server that stands in for a proxy does not support HEAD, but it was reached


# -- a file that breaks off -----------------------------------------------------------------------------------------


@pytest.fixture
def one_large(tmp_path, reader) -> Iterator[tuple[Lookalike, Path, str, str]]:
    """A look-alike with one file of 3 MB; the server, the file, its path and its SHA-256."""
    root = tmp_path / "physionet"
    file = root / MIMIC_CXR_JPG.name / "large.bin"
    file.parent.mkdir(parents=True)
    data = random.Random(1).randbytes(3_000_000)
    file.write_bytes(data)
    (file.parent / SUMS).write_text("x")
    with Lookalike(root, users={reader[0]: User(reader[1])}, check_seconds=0) as server:
        yield server, file, "large.bin", hashlib.sha256(data).hexdigest()


def test_it_is_resumed_several_times(one_large, reader):
    server, file, path, digest = one_large
    server.faults.set(Fault(Kind.RESET_IN_BODY, paths="*/large.bin", attempts=3, at=0.4))
    source = PhysioNet(server.url, *reader, read_timeout=1)
    assert fetched(source, path, digest) == file.read_bytes()
    assert source.stats.resumed == 3
    ranges = [int(seen.headers["range"][6:-1]) for seen in server.counters.seen if "range" in seen.headers]
    assert ranges == sorted(set(ranges))
    assert ranges[0] > 0


class Waits:
    """A transfer's turn that records how long a resume should wait, and does not wait."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []

    def answered(self, *, serves: bool) -> None:
        pass

    def wait(self, seconds: float, error: SourceError) -> None:
        self.asked.append((seconds, error.reason))

    def are_about(self, *seconds: float) -> bool:
        return len(self.asked) == len(seconds) and all(
            0.5 * most <= asked <= 1.5 * most for (asked, _), most in zip(self.asked, seconds, strict=True)
        )


def test_a_file_that_always_breaks_is_resumed_a_few_times_ever_later(one_large, reader):
    server, _, path, digest = one_large
    server.faults.set(Fault(Kind.SHORT_BODY, paths="*/large.bin", attempts=None, at=0.1))
    source, waits = PhysioNet(server.url, *reader, read_timeout=1), Waits()
    with pytest.raises(Truncated):
        b"".join(source.open(MIMIC_CXR_JPG, path, digest, waits))
    assert waits.are_about(1, 2, 4), waits.asked
    assert server.counters.by_path[f"{MIMIC_CXR_JPG.name}/{path}"] == 1 + 3


def test_a_server_that_is_too_busy_for_a_resume_is_left_alone(one_large, reader):
    """The caller of the download then decides, and gets the wait that the server asked for."""
    server, _, path, digest = one_large
    server.faults.set(
        Fault(Kind.SHORT_BODY, paths="*/large.bin"),
        Fault(Kind.STATUS, paths="*/large.bin", status=429, retry_after=7, after=1, attempts=None),
    )
    source, waits = PhysioNet(server.url, *reader, read_timeout=1), Waits()
    with pytest.raises(Throttled) as error:
        b"".join(source.open(MIMIC_CXR_JPG, path, digest, waits))
    assert error.value.retry_after == 7
    assert len(waits.asked) == 1
    assert server.counters.by_path[f"{MIMIC_CXR_JPG.name}/{path}"] == 2


def test_one_that_changed_meanwhile_is_not_stitched_together(one_large, reader):
    server, file, path, digest = one_large
    server.faults.set(Fault(Kind.SHORT_BODY, paths="*/large.bin", at=0.5))
    source = PhysioNet(server.url, *reader, read_timeout=1)
    chunks = iter(source.open(MIMIC_CXR_JPG, path, digest))
    next(chunks)
    os.utime(file, (1, 1))  # makes it another version, by its ETag
    with pytest.raises(Truncated, match="changed at PhysioNet"):
        list(chunks)
    assert fetched(source, path, digest) == file.read_bytes()


def test_one_byte_wrong_in_a_resumed_part_is_found(one_large, reader):
    server, _, path, digest = one_large
    server.faults.set(
        Fault(Kind.SHORT_BODY, paths="*/large.bin", at=0.5), Fault(Kind.FLIPPED_BYTE, paths="*/large.bin", at=0.9)
    )
    with pytest.raises(Corrupt):
        fetched(PhysioNet(server.url, *reader, read_timeout=1), path, digest)


# -- big files ------------------------------------------------------------------------------------------------------

BIG_FILE = 100_000_000


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("big") / "physionet"
    file = root / MIMIC_CXR_JPG.name / "archive.zip"
    file.parent.mkdir(parents=True)
    rng, digest = random.Random(5), hashlib.sha256()
    with file.open("wb") as out:
        for _ in range(100):
            piece = rng.randbytes(BIG_FILE // 100)
            digest.update(piece)
            out.write(piece)
    (file.parent / SUMS).write_text("x")
    return root, digest.hexdigest()


@pytest.fixture
def bucket(boto_session, s3_server, bucket_name) -> Bucket:
    return Bucket.open(boto_session, bucket_name, "p", endpoint_url=s3_server.endpoint)


CLIENT = """
import json, sys, boto3, threading, time
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.errors import MirrorError
from physionet_mirror.source.physionet import PhysioNet

given = json.load(sys.stdin)

def peak():
    with open("/proc/self/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) * 1024

session = boto3.Session(*given["keys"], region_name="us-east-1")
bucket = Bucket.open(session, given["bucket"], "p", endpoint_url=given["endpoint"])
source = PhysioNet(given["url"], *given["login"], connect_timeout=2, read_timeout=1)
bucket.upload("warm", [bytes(2 * given["part"])] * 2, part_size=given["part"])  # libraries, buffers, two parts
source.check_access(MIMIC_CXR_JPG)
before, error = peak(), None
try:
    bucket.upload("archive.zip", source.stream(MIMIC_CXR_JPG, "archive.zip", given["sha256"]), part_size=given["part"])
except MirrorError as e:
    error = e.reason
print(json.dumps({"grown": peak() - before, "peak": peak(), "resumed": source.stats.resumed, "error": error,
                  "received": source.stats.received}))
"""


def _stream_in_a_process(server, reader, s3_server, bucket_name, sha256) -> dict[str, Any]:
    import json
    import subprocess
    import sys

    given = {
        "url": server.url,
        "login": reader,
        "keys": [s3_server.access_key, s3_server.secret_key],
        "endpoint": s3_server.endpoint,
        "bucket": bucket_name,
        "sha256": sha256,
        "part": PART,
    }
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], input=json.dumps(given), capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_big_file_streams_in_bounded_memory_through_interruptions(big, reader, s3_server, bucket_name, bucket):
    root, digest = big
    faults = [
        Fault(Kind.RESET_IN_BODY, paths="*/archive.zip", at=0.3, attempts=2),
        Fault(Kind.SHORT_BODY, paths="*/archive.zip", at=0.5),
        Fault(Kind.STALL, paths="*/archive.zip", at=0.5, seconds=30),
    ]
    with Lookalike(root, users={reader[0]: User(reader[1])}, check_seconds=0, faults=faults) as server:
        found = _stream_in_a_process(server, reader, s3_server, bucket_name, digest)
    assert found["error"] is None
    assert found["resumed"] == 4
    assert found["grown"] <= 3 * PART, f"{found['grown'] / PART:.1f} parts of memory"
    stored = s3_server.folder / bucket_name / "p" / "archive.zip"
    with stored.open("rb") as opened:
        assert hashlib.file_digest(opened, "sha256").hexdigest() == digest


def test_resumes_that_bring_something_do_not_count_against_a_big_file(big, reader):
    root, digest = big
    faults = [
        Fault(Kind.SHORT_BODY, paths="*/archive.zip", at=0.2, attempts=9)
    ]  # more than the allowed failures in a row
    with Lookalike(root, users={reader[0]: User(reader[1])}, check_seconds=0, faults=faults) as server:
        source, waits, found = PhysioNet(server.url, *reader, read_timeout=2), Waits(), hashlib.sha256()
        for chunk in source.open(MIMIC_CXR_JPG, "archive.zip", digest, waits):
            found.update(chunk)
    assert found.hexdigest() == digest
    assert waits.are_about(*[1] * 9), waits.asked


@pytest.mark.parametrize("as_date", [False, True])
def test_a_resume_of_a_big_file_waits_as_long_as_the_server_asks(big, reader, as_date):
    root, digest = big
    faults = [
        Fault(Kind.SHORT_BODY, paths="*/archive.zip"),
        Fault(Kind.STATUS, paths="*/archive.zip", retry_after=70, retry_after_as_date=as_date, after=1),
    ]
    with Lookalike(root, users={reader[0]: User(reader[1])}, check_seconds=0, faults=faults) as server:
        source, waits, found = PhysioNet(server.url, *reader, read_timeout=2), Waits(), hashlib.sha256()
        for chunk in source.open(MIMIC_CXR_JPG, "archive.zip", digest, waits):
            found.update(chunk)
    assert found.hexdigest() == digest
    (_, broken), (seconds, refused) = waits.asked
    assert (broken, refused) == ("truncated", "throttled")
    assert 68 <= seconds <= 70


def test_a_resume_is_not_put_off_for_hours(big, reader):
    root, digest = big
    faults = [
        Fault(Kind.SHORT_BODY, paths="*/archive.zip"),
        Fault(Kind.STATUS, paths="*/archive.zip", retry_after=7200, after=1),
    ]
    with Lookalike(root, users={reader[0]: User(reader[1])}, check_seconds=0, faults=faults) as server:
        source, waits = PhysioNet(server.url, *reader, read_timeout=2), Waits()
        with pytest.raises(Throttled):
            for _ in source.open(MIMIC_CXR_JPG, "archive.zip", digest, waits):
                pass
    assert len(waits.asked) == 1


def test_an_outage_amid_a_big_file_is_waited_for(big, reader, tmp_path):
    root, digest = big
    with Lookalike(root, users={reader[0]: User(reader[1])}, check_seconds=0) as server:
        source = PhysioNet(server.url, *reader, connect_timeout=2, read_timeout=1)
        found = hashlib.sha256()
        for n, chunk in enumerate(source.stream(MIMIC_CXR_JPG, "archive.zip", digest)):
            found.update(chunk)
            if n == 50:
                server.go_down(2.5)
        assert found.hexdigest() == digest
        assert source.stats.resumed >= 1


def test_a_big_file_that_is_wrong_becomes_no_object(big, reader, s3_server, bucket_name, bucket):
    root, digest = big
    faults = [Fault(Kind.FLIPPED_BYTE, paths="*/archive.zip", at=0.99, attempts=None)]
    with Lookalike(root, users={reader[0]: User(reader[1])}, check_seconds=0, faults=faults) as server:
        found = _stream_in_a_process(server, reader, s3_server, bucket_name, digest)
    assert found["error"] == "corrupt"
    assert bucket.head("archive.zip") is None
    assert not (s3_server.folder / bucket_name / "p" / "archive.zip").exists()
    assert not bucket.client.list_multipart_uploads(Bucket=bucket_name).get("Uploads"), "the upload was aborted"


def test_a_big_image_goes_through_the_same_transfer(big, reader, s3_server, bucket_name, bucket):
    root, digest = big
    faults = [Fault(Kind.SHORT_BODY, paths="*/archive.zip", at=0.5, attempts=2)]
    with Lookalike(root, users={reader[0]: User(reader[1])}, check_seconds=0, faults=faults) as server:
        source = PhysioNet(server.url, *reader, read_timeout=2)
        pace = Pace(4, received=lambda: source.stats.received)
        image = File("archive.zip", digest)
        tally = Transfer([image], mover=Download(source, MIMIC_CXR_JPG, bucket), pace=pace).run()
    assert (tally.stored, tally.bytes) == (1, BIG_FILE)
    assert bucket.head("archive.zip").content_type == "image/jpeg"


# -- any dataset ----------------------------------------------------------------------------------------------------


def test_mimic_cxr_goes_through_the_same_engine(source, tiny_dataset, boto_session, s3_server, bucket_name):
    """Tables, and DICOM files on request: only the declaration differs."""
    bucket = Bucket.open(boto_session, bucket_name, MIMIC_CXR.name, endpoint_url=s3_server.endpoint)
    published = {
        str(file.relative_to(tiny_dataset / MIMIC_CXR.name)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (tiny_dataset / MIMIC_CXR.name).rglob("*")
        if file.is_file()
    }
    for path in MIMIC_CXR.tables.values():
        bucket.upload(path, source.stream(MIMIC_CXR, path, published[path]), content_type="application/gzip")
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(bucket.read(MIMIC_CXR.tables["records"])).decode())))
    wanted = [row["path"] for row in rows if row["path"] in published]
    assert wanted
    assert all(MIMIC_CXR.image_path.fullmatch(path) for path in wanted)

    images = [File(path, published[path]) for path in wanted]
    pace = Pace(4, received=lambda: source.stats.received)
    tally = Transfer(images, mover=Download(source, MIMIC_CXR, bucket), pace=pace).run()
    assert tally.stored == len(images)
    stored = bucket.head(wanted[0])
    assert (stored.sha256, stored.content_type) == (published[wanted[0]], "application/dicom")
    assert source.stats.handshakes == 1


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_every_declaration_is_complete(dataset):
    ending = "dcm" if dataset.slug == "mimic-cxr" else "jpg"
    path = f"files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.{ending}"
    match = dataset.image_path.fullmatch(path)
    assert match
    assert match.groupdict().keys() == {"group", "subject_id", "study_id", "dicom_id"}
    assert dataset.page == f"https://physionet.org/content/{dataset.name}/"
    assert f"version {dataset.version}" in dataset.citation
    assert dataset.citation.endswith(f"https://doi.org/{DOIS[dataset.name]}")
    assert dataset.image_bytes == pytest.approx(STATED[dataset.slug] * 2**30 / 377_110, rel=0.01)


DOIS = {
    "mimic-cxr-jpg/2.1.0": "10.13026/jsn5-t979",
    "mimic-cxr-jpg/2.0.0": "10.13026/8360-t248",
    "mimic-cxr/2.1.0": "10.13026/4jqj-jw95",
    "mimic-cxr/2.0.0": "10.13026/C2JT1Q",
}
STATED = {"mimic-cxr-jpg": 570.3, "mimic-cxr": 4.7 * 1024}
"""The sizes on PhysioNet's pages, which are in units of 2**30 bytes."""
