"""The cache of verified objects may be lost or damaged at any time; it must never give a wrong answer."""

from __future__ import annotations

import gzip
import hashlib
import logging
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.errors import DestinationUnavailable
from physionet_mirror.files import File
from physionet_mirror.layout import RunLayout, group_of, verified
from physionet_mirror.s3.bucket import Stored
from physionet_mirror.verified_cache import Memory, attempt_of, groups_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SUM = "ab" * 32
IMAGE = "files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg"


class FakeBucket:
    """The part of Bucket that the cache uses."""

    def __init__(self):
        self.objects = {}

    def uri(self, path):
        return f"s3://bucket/{path}"

    def read(self, path):
        try:
            return self.objects[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def head(self, path):
        data = self.objects.get(path)
        return None if data is None else Stored(path, len(data), hashlib.sha256(data).hexdigest(), None, "", "", NOW)

    def write_unless_changed(self, path, data, before, **_):
        if self.head(path) != before:
            return False
        self.objects[path] = data
        return True


@pytest.fixture
def bucket():
    return FakeBucket()


def remembered(bucket, *entries, at=NOW):
    """The entries of a new Memory after these (path, size, etag, sha256, level) were recorded and saved."""
    memory = Memory()
    for path, size, etag, sha256, level in entries:
        memory.record(File(path, sha256), size, etag, level=level, at=at)
    memory.save(bucket)
    return Memory.load(bucket, groups_of(path for path, *_ in entries))


def test_the_group_is_that_of_the_patient():
    assert group_of(IMAGE) == "p10"
    assert group_of("files/readme.txt") == "other"
    assert group_of("SHA256SUMS.txt") == "other"
    assert groups_of([IMAGE, "files/p19/x", "files/p10/y"]) == ["p10", "p19"]


def test_believes_only_what_is_exactly_the_same(bucket):
    memory = remembered(bucket, (IMAGE, 100, "e1", SUM, "checksum"))
    assert memory.judge(File(IMAGE, SUM), 100, "e1") == "verified"
    assert memory.judge(File(IMAGE, SUM), 101, "e1") == "unknown"
    assert memory.judge(File(IMAGE, SUM), 100, "e2") == "unknown"
    assert memory.judge(File(IMAGE, "cd" * 32), 100, "e1") == "unknown"
    assert memory.judge(File(IMAGE + "x", SUM), 100, "e1") == "unknown"
    assert memory.judge(File(IMAGE, SUM), 10, "0\te1") == "unknown"


def test_remembers_what_is_wrong(bucket):
    assert remembered(bucket, (IMAGE, 100, "e1", SUM, "wrong")).judge(File(IMAGE, SUM), 100, "e1") == "wrong"


def test_a_checksum_is_no_content(bucket):
    memory = Memory()
    memory.record(File(IMAGE, SUM), 100, "e1", level="checksum", run="one")
    assert memory.judge(File(IMAGE, SUM), 100, "e1", level="content", run="one") == "unknown"
    memory.record(File(IMAGE, SUM), 100, "e1", level="content", run="one")
    assert memory.judge(File(IMAGE, SUM), 100, "e1", level="content", run="one") == "verified"
    assert memory.judge(File(IMAGE, SUM), 100, "e1") == "verified"


@pytest.mark.parametrize("clock", [timedelta(minutes=-10), timedelta(0), timedelta(minutes=10)])
def test_what_was_read_back_counts_in_its_own_run_only_whatever_the_clock_says(bucket, clock):
    memory = Memory()
    memory.record(File(IMAGE, SUM), 100, "e1", level="content", run="one", at=NOW + clock)
    memory.save(bucket)
    memory = Memory.load(bucket, ["p10"])
    assert memory.judge(File(IMAGE, SUM), 100, "e1", level="content", run="one") == "verified"
    assert memory.judge(File(IMAGE, SUM), 100, "e1", level="content", run="two") == "unknown"
    assert memory.judge(File(IMAGE, SUM), 100, "e1", level="content") == "unknown"
    assert memory.judge(File(IMAGE, SUM), 100, "e1") == "verified"
    assert memory.judge(File(IMAGE, SUM), 100, "e1", run="two", anew=True) == "unknown"
    assert memory.judge(File(IMAGE, SUM), 100, "e1", run="one", anew=True) == "verified"


def test_an_attempt_is_its_runs_retries_and_nothing_else():
    names = {
        attempt_of(RunLayout(run), started)
        for run in ("weekly-1", "weekly-2")
        for started in (NOW, NOW + timedelta(microseconds=1))  # clearing a run begins another attempt
    }
    assert len(names) == 4
    assert attempt_of(RunLayout("weekly-1"), NOW.astimezone(timezone(timedelta(hours=2)))) in names


def test_files_of_earlier_versions_are_read(bucket):
    lines = [f"{IMAGE}\t100\te1\t{SUM}\t2026-03-01T12:00:00Z\tcontent", ""]
    old = "\n".join(["path\tsize\tetag\tsha256\tverified_at\tlevel", *lines])
    bucket.objects[verified("p10")] = gzip.compress(old.encode())
    memory = Memory.load(bucket, ["p10"])
    assert memory.judge(File(IMAGE, SUM), 100, "e1") == "verified"
    assert memory.judge(File(IMAGE, SUM), 100, "e1", level="content", run="") == "unknown"
    assert list(memory) == [(IMAGE, 100, "e1", SUM, NOW, "content")]


def test_an_object_without_etag_cannot_be_recognised_again(bucket):
    assert remembered(bucket, (IMAGE, 100, "", SUM, "checksum")).judge(File(IMAGE, SUM), 100, "") == "unknown"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not gzip",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"some other header\n" + IMAGE.encode(), mtime=0),
        gzip.compress(b"\xff\xfe\x00", mtime=0),
        gzip.compress(b"path\tsize\tetag\tsha256\tverified_at\tlevel\n" * 1000, mtime=0)[:-20],
    ],
)
def test_a_damaged_file_is_an_empty_memory_and_is_written_anew(bucket, caplog, data):
    bucket.objects[verified("p10")] = data
    with caplog.at_level(logging.WARNING):
        memory = Memory.load(bucket, ["p10"])
    assert len(memory) == 0
    assert "No file is affected" in caplog.text
    memory.record(File(IMAGE, SUM), 100, "e1")
    memory.save(bucket)
    assert len(caplog.records) == 1, "named once, however often it is read"
    assert Memory.load(bucket, ["p10"]).judge(File(IMAGE, SUM), 100, "e1") == "verified"


def test_damaged_lines_are_skipped(bucket, caplog):
    remembered(bucket, (IMAGE, 100, "e1", SUM, "checksum"))
    text = gzip.decompress(bucket.objects[verified("p10")]).decode()
    bucket.objects[verified("p10")] = gzip.compress((text + "half a li").encode())
    memory = Memory.load(bucket, ["p10"])
    assert memory.judge(File(IMAGE, SUM), 100, "e1") == "verified"
    assert "1 lines" in caplog.text


def test_an_absent_file_is_an_empty_memory_without_a_word(bucket, caplog):
    assert len(Memory.load(bucket, ["p10", "p11"])) == 0
    assert caplog.text == ""


@pytest.mark.parametrize("clock", [timedelta(minutes=-10), timedelta(minutes=10)])
def test_overlapping_writers_keep_both_and_what_one_found_wrong_stays(bucket, clock):
    one, two = Memory.load(bucket, ["p10"]), Memory.load(bucket, ["p10"])
    one.record(File("files/p10/a", SUM), 1, "e", at=NOW)
    one.record(File("files/p10/both", SUM), 1, "e", level="wrong", at=NOW)
    two.record(File("files/p10/b", SUM), 1, "e", at=NOW + clock)
    two.record(File("files/p10/both", SUM), 1, "e", level="checksum", at=NOW + clock)
    one.save(bucket)
    two.save(bucket)
    memory = Memory.load(bucket, ["p10"])
    assert memory.judge(File("files/p10/a", SUM), 1, "e") == "verified"
    assert memory.judge(File("files/p10/b", SUM), 1, "e") == "verified"
    assert memory.judge(File("files/p10/both", SUM), 1, "e") == "wrong"
    assert two.judge(File("files/p10/both", SUM), 1, "e") == "wrong"


@pytest.mark.parametrize("level", ["checksum", "wrong"])
@pytest.mark.parametrize("clock", [timedelta(minutes=-10), timedelta(minutes=10)])
def test_the_last_look_replaces_what_was_known_before_it(bucket, level, clock):
    remembered(bucket, (IMAGE, 100, "e1", SUM, "wrong" if level == "checksum" else "checksum"), at=NOW + clock)
    memory = Memory.load(bucket, ["p10"])
    memory.record(File(IMAGE, SUM), 100, "e1", level="content", at=NOW)
    memory.record(File(IMAGE, SUM), 100, "e1", level=level, at=NOW)
    memory.save(bucket)
    expected = "wrong" if level == "wrong" else "verified"
    assert Memory.load(bucket, ["p10"]).judge(File(IMAGE, SUM), 100, "e1") == expected


def test_of_many_who_write_at_once_none_loses_anything(bucket, monkeypatch):
    read, others = bucket.read, [Memory() for _ in range(3)]
    for number, other in enumerate(others):
        other.record(File(f"files/p10/other-{number}", SUM), 1, "e")

    def somebody_writes_just_now(path):
        data = read(path) if path in bucket.objects else None
        if others:
            others.pop().save(bucket)
        if data is None:
            raise FileNotFoundError(path)
        return data

    monkeypatch.setattr("physionet_mirror.verified_cache.time.sleep", lambda _: None)
    bucket.read = somebody_writes_just_now
    memory = Memory()
    memory.record(File(IMAGE, SUM), 1, "e")
    memory.save(bucket)
    assert len(memory) == len(Memory.load(bucket, ["p10"])) == 4


def test_a_file_that_is_written_all_the_time_is_an_error_and_loses_nothing(bucket, monkeypatch):
    monkeypatch.setattr("physionet_mirror.verified_cache.time.sleep", lambda _: None)
    bucket.write_unless_changed = lambda *_, **__: False
    memory = Memory()
    memory.record(File(IMAGE, SUM), 1, "e")
    with pytest.raises(DestinationUnavailable, match="No file is affected"):
        memory.save(bucket)
    assert memory.unsaved == 1


def test_a_save_that_fails_loses_nothing(bucket):
    memory = Memory()
    memory.record(File("files/p10/a", SUM), 1, "e")
    memory.record(File("files/p11/b", SUM), 1, "e")
    write, failing = bucket.write_unless_changed, [True]

    def flaky(path, data, before, **more):
        if failing.pop() if failing and "p11" in path else False:
            raise DestinationUnavailable("S3 is away")
        return write(path, data, before, **more)

    bucket.write_unless_changed = flaky
    with pytest.raises(DestinationUnavailable):
        memory.save(bucket)
    assert memory.unsaved == 1
    memory.save(bucket)
    assert memory.unsaved == 0
    assert len(Memory.load(bucket, ["p10", "p11"])) == 2


def test_only_groups_with_news_are_written(bucket):
    remembered(bucket, ("files/p10/a", 1, "e", SUM, "checksum"), ("files/p11/b", 1, "e", SUM, "checksum"))
    memory = Memory.load(bucket, ["p10", "p11"])
    bucket.objects.clear()
    memory.record(File("files/p10/c", SUM), 1, "e")
    memory.save(bucket)
    assert list(bucket.objects) == [verified("p10")]


def test_an_unknown_level_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="level"):
        Memory().record(File(IMAGE, SUM), 1, "e", level="count")


names = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20)


@given(
    st.lists(
        st.tuples(
            names.map(lambda name: f"files/p10/{name}"),
            st.integers(0, 2**40),
            names,
            st.sampled_from([SUM, "cd" * 32]),
            st.sampled_from(["checksum", "content", "wrong"]),
        )
    )
)
def test_whatever_the_names_what_is_told_is_what_was_recorded(entries):
    bucket = FakeBucket()
    memory = remembered(bucket, *entries, ("files/p10/sentinel", 1, "e", SUM, "checksum"))
    last = {path: (size, etag, sha256, level) for path, size, etag, sha256, level in entries if recordable(path, etag)}
    for path, (size, etag, sha256, level) in last.items():
        assert memory.judge(File(path, sha256), size, etag) == ("wrong" if level == "wrong" else "verified")
        assert memory.judge(File(path, sha256), size + 1, etag) == "unknown"
    assert memory.judge(File("files/p10/sentinel", SUM), 1, "e") == "verified"
    assert len(memory) == len(last | {"files/p10/sentinel": ()})


def recordable(path, etag):
    return not any(c in path + etag for c in "\t\r\n")


def test_the_largest_group_is_read_in_a_blink(bucket):
    memory = Memory()
    for number in range(37_000):
        path = f"files/p10/p1{number:07}/s5{number:07}/{number:08x}-bde0afdd-112c0b34-7bc16630-4e384014.jpg"
        memory.record(File(path, f"{number:064x}"), 1_400_000 + number, f"{number:032x}", at=NOW)
    memory.save(bucket)
    durations = []
    for _ in range(5):
        began = time.perf_counter()
        assert len(Memory.load(bucket, ["p10"])) == 37_000
        durations.append(time.perf_counter() - began)
    assert min(durations) < 0.5  # 0.1 s here; the rest is for busy machines
