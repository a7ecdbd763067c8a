"""Large files in pieces: a look-alike over HTTP or an access point, and S3 servers that keep uploads as S3 does."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo import stack
from demo.lookalike import UNLIMITED, Fault, Kind, Lookalike, Profile, User
from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import Corrupt, ImagesFailed, Truncated
from physionet_mirror.files import File
from physionet_mirror.layout import PARTS, parts_of
from physionet_mirror.mover import ALONE, Turn
from physionet_mirror.pace import Pace
from physionet_mirror.records import ShardResult
from physionet_mirror.s3.bucket import Bucket, Upload
from physionet_mirror.source import download, ranges, through
from physionet_mirror.source.access_point import AccessPoint
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.source.ranges import Memory, Ranges
from physionet_mirror.source.spans import Piece
from physionet_mirror.source.through import ThroughWorker
from physionet_mirror.transfer import Transfer

PROJECT = Dataset("waves", "1.0")
PATH = "records/one large file.bin"
SIZE = (23 << 20) + 12_345  # four parts of 5 MiB and a smaller one
LOGIN = ("reader", "correct horse")
CONNECTIONS = 6
RUN = "manual__2026-11-25T06:00:00+00:00"


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files above 8 MiB are large ones."""
    for module in (download, through):
        monkeypatch.setattr(module, "LARGE", 8 << 20)
    monkeypatch.setattr(through, "BIG", 8 << 20)


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="module")
def file(data: bytes) -> File:
    return File(PATH, hashlib.sha256(data).hexdigest())


@pytest.fixture(scope="module")
def server(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lookalike]:
    root = tmp_path_factory.mktemp("waves")
    place = root / PROJECT.name / PATH
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    (root / PROJECT.name / "SHA256SUMS.txt").write_text(f"{hashlib.sha256(data).hexdigest()} {PATH}\n")
    with Lookalike(root, users={LOGIN[0]: User(LOGIN[1])}, check_seconds=0) as running:
        yield running


@pytest.fixture
def physionet(server: Lookalike) -> Lookalike:
    server.faults.clear()
    server.profile = UNLIMITED
    server.counters.reset()
    return server


@pytest.fixture(params=["rclone", "strict"])
def s3(request: pytest.FixtureRequest) -> stack.S3Server:
    server: stack.S3Server = request.getfixturevalue("s3_server" if request.param == "rclone" else "strict_s3")
    return server


@pytest.fixture
def bucket(s3: stack.S3Server, bucket_name: str) -> Bucket:
    made = Bucket.open(s3.session(), bucket_name, "mine", endpoint_url=s3.endpoint)
    names = {found["Name"] for found in made.client.list_buckets()["Buckets"]}
    if bucket_name not in names:
        made.client.create_bucket(Bucket=bucket_name)
    return made


def fetch(
    physionet: Lookalike, bucket: Bucket, file: File, *, connections: int = CONNECTIONS, name: str = RUN, **more: Any
) -> ShardResult:
    mover = Download(PhysioNet(physionet.url, *LOGIN, connections=connections), PROJECT, bucket, run=name)
    return run(mover, file, connections, **more)


def run(mover: Any, file: File, connections: int = CONNECTIONS, **more: Any) -> ShardResult:
    pace = Pace(connections, start=connections, received=lambda: mover.stats.received)
    try:
        return Transfer([file], mover=mover, pace=pace, backoff=0.05, patience=20.0, **more).run()
    finally:
        mover.close()


def assert_stored(bucket: Bucket, file: File, data: bytes) -> None:
    """It stands under its key with a checksum of the whole where S3 makes one, and nothing of the upload is left."""
    assert bucket.read(file.path) == data
    stored = bucket.head(file.path)
    assert stored is not None
    assert stored.sha256 in {None, file.sha256}
    assert_nothing_left(bucket)


def assert_nothing_left(bucket: Bucket) -> None:
    assert not [entry.path for entry in bucket.list(PARTS)]
    assert not bucket.uploads(PARTS)


def interrupted(physionet: Lookalike, bucket: Bucket, file: File, *, at: float) -> None:
    """An attempt that ends when PhysioNet has sent a share of the file, as when its task is stopped."""
    before, stop = physionet.counters.bytes, threading.Event()
    physionet.profile = Profile(rate=2_000_000)

    def watch() -> None:
        while physionet.counters.bytes - before < at * SIZE:
            time.sleep(0.01)
        stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert fetch(physionet, bucket, file, stop=stop).stored == 0
    watcher.join()
    physionet.profile = UNLIMITED
    assert bucket.head(file.path) is None


def test_a_large_file_comes_over_all_connections_and_no_more(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes
) -> None:
    physionet.profile = Profile(rate=3_000_000)
    assert fetch(physionet, bucket, file).stored == 1
    assert physionet.counters.peak_connections == CONNECTIONS
    assert SIZE <= physionet.counters.bytes <= 1.02 * SIZE + 300_000  # the first request asks for all of it
    assert_stored(bucket, file, data)


def test_where_its_size_is_known_nothing_is_fetched_twice(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes
) -> None:
    fetch(physionet, bucket, File(file.path, file.sha256, SIZE))
    assert physionet.counters.bytes == SIZE
    assert_stored(bucket, file, data)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Kind.RESET_IN_BODY, attempts=9, after=2),
        Fault(Kind.SHORT_BODY, attempts=9, after=2),
        Fault(Kind.STATUS, status=503, attempts=5, after=6),
        Fault(Kind.STATUS, status=502, attempts=3, after=6),
        Fault(Kind.SESSIONS_EXPIRED, after=12),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_pieces_that_break_off_are_resumed(
    physionet: Lookalike,
    s3_server: stack.S3Server,
    bucket_name: str,
    file: File,
    data: bytes,
    fault: Fault,
    monkeypatch,
) -> None:
    bucket = Bucket.open(s3_server.session(), bucket_name, "mine", endpoint_url=s3_server.endpoint)
    monkeypatch.setattr(ranges, "RESUMES", (0.02,) * 7)
    physionet.faults.set(fault)
    fetch(physionet, bucket, File(file.path, file.sha256, SIZE))
    assert physionet.counters.faults[fault.kind.value]
    assert physionet.counters.bytes <= 1.1 * SIZE
    assert_stored(bucket, file, data)


def test_a_large_file_with_a_wrong_byte_becomes_no_object(physionet: Lookalike, bucket: Bucket, file: File) -> None:
    physionet.faults.set(Fault(Kind.FLIPPED_BYTE, attempts=None))
    with pytest.raises(ImagesFailed, match="corrupt"):
        fetch(physionet, bucket, file)
    assert bucket.head(file.path) is None
    assert_nothing_left(bucket)


@pytest.mark.parametrize("size", [None, SIZE], ids=["size unknown", "size known"])
@pytest.mark.parametrize("kind", [Kind.NO_RANGES, Kind.NO_ETAG])
@pytest.mark.parametrize("connections", [1, CONNECTIONS])
def test_a_server_without_ranges_gives_it_over_one_connection(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes, kind: Kind, size: int | None, connections: int
) -> None:
    """Even one that announces ranges."""
    physionet.faults.set(Fault(kind, attempts=None))
    fetch(physionet, bucket, File(file.path, file.sha256, size), connections=connections)
    if size is None or kind is Kind.NO_ETAG:
        assert physionet.counters.peak_connections <= 2  # each answer that is of no use ends a connection
    assert bucket.read(file.path) == data
    assert_nothing_left(bucket)


def test_the_next_attempt_goes_on_with_the_parts_that_are_there(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes
) -> None:
    known = File(file.path, file.sha256, SIZE)
    interrupted(physionet, bucket, known, at=0.6)
    (upload,) = bucket.uploads(parts_of(file.path, file.sha256))
    there = sum(part.size for part in bucket.parts(upload))
    assert there >= ranges.PART
    before = physionet.counters.bytes
    fetch(physionet, bucket, known)
    assert physionet.counters.bytes - before == SIZE - there
    assert_stored(bucket, file, data)


def left_by_another(bucket: Bucket, file: File, data: bytes, *numbers: int) -> Upload:
    upload = bucket.begin_upload(parts_of(file.path, file.sha256) + "another run")
    for number in numbers:
        bucket.put_part(upload, number, data[(number - 1) * ranges.PART : number * ranges.PART])
    return upload


def test_another_run_s_upload_is_taken_over_once_it_has_been_idle(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by_another(bucket, file, data, 1, 3)
    monkeypatch.setattr(ranges, "IDLE", 0.0)
    fetch(physionet, bucket, File(file.path, file.sha256, SIZE))
    assert physionet.counters.bytes == SIZE - 2 * ranges.PART
    assert_stored(bucket, file, data)


def test_another_run_s_live_upload_is_not_touched(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes
) -> None:
    upload = left_by_another(bucket, file, data, 1, 3)
    fetch(physionet, bucket, File(file.path, file.sha256, SIZE))
    assert physionet.counters.bytes == SIZE
    assert bucket.read(file.path) == data
    assert [part.number for part in bucket.parts(upload)] == [1, 3]


def test_a_part_with_other_bytes_never_becomes_an_object(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes
) -> None:
    """What an earlier attempt has left is proven as a whole, not believed."""
    upload = bucket.begin_upload(parts_of(file.path, file.sha256) + RUN)
    bucket.put_part(upload, 2, bytes(ranges.PART))
    useless = bucket.begin_upload(parts_of(file.path, file.sha256) + RUN)
    for number in (1, 2):
        bucket.put_part(useless, number, b"too short to be one of ours")
    seen: list[object] = []
    sha256 = bucket.sha256

    def look(path: str) -> str:
        seen.append(bucket.head(file.path))
        return sha256(path)

    bucket.sha256 = look  # type: ignore[method-assign]
    result = fetch(physionet, bucket, file)
    assert (result.stored, result.faults["corrupt"]) == (1, 1)
    assert seen == [None]
    assert_stored(bucket, file, data)


@pytest.mark.parametrize("right", [True, False])
def test_one_that_was_killed_before_its_copy_is_proven_and_copied(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes, right: bool
) -> None:
    left = data if right else bytes(SIZE)
    bucket.upload(parts_of(file.path, file.sha256) + "left", iter([left]))
    fetch(physionet, bucket, File(file.path, file.sha256, SIZE))
    assert physionet.counters.bytes == (0 if right else SIZE)
    assert_stored(bucket, file, data)


def test_two_runs_at_one_file_store_it_and_leave_nothing(
    physionet: Lookalike, bucket: Bucket, file: File, data: bytes
) -> None:
    known = File(file.path, file.sha256, SIZE)
    interrupted(physionet, bucket, known, at=0.3)
    physionet.profile = Profile(rate=4_000_000)
    results: list[ShardResult] = []
    runs = [
        threading.Thread(target=lambda name=name: results.append(fetch(physionet, bucket, known, name=name)))
        for name in (RUN, "another run")
    ]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert [(result.stored, dict(result.faults)) for result in results] == [(1, {}), (1, {})]
    assert_stored(bucket, file, data)


def test_what_is_left_may_not_be_listed(
    physionet: Lookalike, s3_server: stack.S3Server, bucket_name: str, file: File, data: bytes, caplog
) -> None:
    """A role without s3:ListBucketMultipartUploads: it begins anew, and says what it lacks."""
    bucket = Bucket.open(s3_server.session(), bucket_name, "mine", endpoint_url=s3_server.endpoint)

    def refuse(**_: object) -> None:
        raise (
            boto3.session.Session()
            .client("s3", region_name="us-east-1")
            .exceptions.ClientError(
                {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "ListMultipartUploads"
            )
        )

    bucket.client.list_multipart_uploads = refuse  # type: ignore[method-assign]
    fetch(physionet, bucket, file)
    assert "is fetched from its beginning" in caplog.text
    assert bucket.read(file.path) == data


# -- an access point ------------------------------------------------------------------------------------------------


@pytest.fixture
def point(bucket: Bucket, s3: stack.S3Server, data: bytes) -> AccessPoint:
    origin = f"{bucket.name}-source"
    bucket.client.create_bucket(Bucket=origin)
    source = Bucket.open(s3.session(), origin, PROJECT.name, endpoint_url=s3.endpoint)
    source.write("SHA256SUMS.txt", b"")
    source.upload(PATH, iter([data]))
    return AccessPoint(source, PROJECT)


def test_an_access_point_gives_a_large_file_in_pieces(
    point: AccessPoint, bucket: Bucket, file: File, data: bytes
) -> None:
    mover = ThroughWorker(point, bucket)
    known = File(file.path, file.sha256, SIZE)
    assert run(mover, known, 16).stored == 1
    assert point.stats.received == SIZE
    assert_stored(bucket, file, data)


def test_an_access_point_that_ignores_ranges_gives_it_in_one_stream(
    point: AccessPoint, bucket: Bucket, file: File, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed, get = point.bucket._signed, point.bucket._signed.get
    monkeypatch.setattr(signed, "get", lambda key, Range="", **how: get(key, **how))  # noqa: ARG005, N803
    mover = ThroughWorker(point, bucket)
    assert run(mover, File(file.path, file.sha256, SIZE), 16).stored == 1
    assert bucket.read(file.path) == data
    assert_nothing_left(bucket)


def test_an_access_point_s_file_goes_on_with_the_parts_that_are_there(
    point: AccessPoint, bucket: Bucket, file: File, data: bytes
) -> None:
    left_by_another(bucket, file, data, 1, 3, 4)
    mover = ThroughWorker(point, bucket, run="another run")
    assert run(mover, File(file.path, file.sha256, SIZE), 16).stored == 1
    assert point.stats.received == SIZE - 3 * ranges.PART
    assert point.stats.resumed == 1
    assert_stored(bucket, file, data)


@pytest.mark.parametrize("s3", ["strict"], indirect=True)  # rclone's ETags are of the bytes alone
def test_an_access_point_s_file_that_changes_meanwhile_is_not_stitched_together(
    point: AccessPoint, bucket: Bucket, file: File, data: bytes
) -> None:
    mover, read = ThroughWorker(point, bucket), point.bucket.get_span

    def then_replaced(path: str, start: int, view: memoryview, **how: Any) -> bool:
        if start >= 2 * ranges.PART and point.stats.resumed == 0:
            point.stats.resumed = 99
            point.bucket.upload(path, iter([data[:-1] + b"x", b""]))
            point.bucket.upload(path, iter([data, b""]), part_size=6 << 20)  # the same bytes under another ETag
        return read(path, start, view, **how)

    point.bucket.get_span = then_replaced  # type: ignore[method-assign]
    result = run(mover, File(file.path, file.sha256, SIZE), 4)
    assert result.faults["truncated"] == 1
    assert_stored(bucket, file, data)


@dataclass
class Made:
    """A file in pieces whose source fails as it is told to (`Spans`)."""

    data: bytes
    piece: int
    failures: list[float]  # shares of the pieces to come that arrive before the next failure
    announced: bool = True
    resumes: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        self.size, self._lock = len(self.data), threading.Lock()

    def read(self, piece: Piece, turn: Turn) -> None:
        turn.answered(serves=True)
        wanted = len(piece.view) - piece.received
        with self._lock:
            share = self.failures.pop() if self.failures else 1.0
            come = int(share * wanted)
            self.sent += come
        begin = piece.start + piece.received
        piece.view[piece.received : piece.received + come] = self.data[begin : begin + come]
        piece.received += come
        if come < wanted:
            raise Truncated("broken off")

    def resumed(self) -> None:
        self.resumes += 1

    def corrupt(self) -> NoReturn:
        raise Corrupt("wrong bytes")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 400_000),
    part=st.integers(40_000, 200_000),
    piece=st.integers(1, 90_000),
    window=st.integers(1, 500_000),
    left=st.sets(st.integers(1, 10)),
    wrong=st.booleans(),
    announced=st.booleans(),
    failures=st.lists(st.floats(0.0, 0.99), max_size=6),
)
def test_any_cut_any_leftovers_and_any_breaks_end_with_the_file(
    s3_server: stack.S3Server,
    bucket_name: str,
    size: int,
    part: int,
    piece: int,
    window: int,
    left: set[int],
    wrong: bool,
    announced: bool,
    failures: list[float],
) -> None:
    bucket = Bucket.open(s3_server.session(), bucket_name, "mine", endpoint_url=s3_server.endpoint)
    data = random.Random(size).randbytes(size)
    made = File("any.bin", hashlib.sha256(data).hexdigest())
    known = {number: data[(number - 1) * part : number * part] for number in left if (number - 1) * part < size}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ranges, "PART", part)
        patched.setattr(ranges, "RESUMES", (0.0,) * 7)
        patched.setattr(ranges, "_LEAST", 10_000)
        upload = bucket.begin_upload(parts_of(made.path, made.sha256) + RUN)
        for number, each in known.items():
            bucket.put_part(upload, number, bytes(len(each)) if wrong else each)
        large = Ranges(bucket, {"content_type": "x/y", "storage_class": "STANDARD"}, RUN, Memory(window))
        if wrong and known:
            with pytest.raises(Corrupt):
                large.fetch(Made(data, piece, []), made, ALONE).store()
            assert bucket.head(made.path) is None
            known = {}
        spans = Made(data, piece, list(failures), announced)
        large.fetch(spans, made, ALONE).store()
    assert bucket.read(made.path) == data
    assert spans.sent == size - sum(map(len, known.values()))
    assert_nothing_left(bucket)
    bucket.discard([made.path])
