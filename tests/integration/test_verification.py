"""Verification against real S3 servers: rclone's (objects are plain files, so they can be damaged), moto's and
a strict one (checksums)."""

from __future__ import annotations

import hashlib
import io
import os
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import ClassVar
from uuid import uuid4

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from demo.stack import s3_server
from physionet_mirror import compare, index
from physionet_mirror.errors import BucketRefused, DestinationUnavailable, InputError, VerificationFailed
from physionet_mirror.files import File
from physionet_mirror.layout import INDEX, verified
from physionet_mirror.records import Failure
from physionet_mirror.request import LEVELS
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.verification import verify
from physionet_mirror.verified_cache import Memory

PREFIX = "mimic-cxr-jpg/2.1.0"


def dataset(count, seed=0, groups=3):
    """`count` images with their bytes, spread over the groups, in byte order of path."""
    rng = random.Random(seed)
    images = {}
    for number in range(count):
        subject = 10_000_000 + (number * groups // count) * 1_000_000 + number
        dicom = "-".join(f"{rng.getrandbits(32):08x}" for _ in range(5))
        images[f"files/p{str(subject)[:2]}/p{subject}/s{50_000_000 + number}/{dicom}.jpg"] = rng.randbytes(
            rng.randint(50, 900)
        )
    return dict(sorted(images.items()))


def wanted(files):
    return [File(path, hashlib.sha256(data).hexdigest()) for path, data in files.items()]


def store(bucket, files):
    for path, data in files.items():
        bucket.put(path, data, content_type="image/jpeg")


@contextmanager
def rclone(folder):
    with s3_server(folder) as server:
        root = server.make_bucket("mirror")
        yield Bucket.open(server.session(), "mirror", PREFIX, endpoint_url=server.endpoint), root / PREFIX


@pytest.fixture
def on_disk(tmp_path):
    """A bucket, and the folder with its objects as files."""
    with rclone(tmp_path) as both:
        yield both


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def make_bucket(moto, name):
    session = boto3.Session("testing-key", "testing-secret", region_name="us-east-1")
    session.client("s3", endpoint_url=moto).create_bucket(Bucket=name)
    return Bucket.open(session, name, PREFIX, endpoint_url=moto)


@pytest.fixture(params=["moto", "strict"])
def bucket(request):
    """A bucket of a server that keeps checksums as S3 does: only if they were sent."""
    moto = request.param == "moto"
    endpoint = request.getfixturevalue("moto") if moto else request.getfixturevalue("strict_s3").endpoint
    return make_bucket(endpoint, f"test-{uuid4()}")


KEEP = 6
"""HEADs of the cache's own files: writing each of a dataset's three groups takes two."""


def kinds(verdict):
    return {kind: count for kind, count in verdict.requests.items() if kind in ("HEAD", "LIST", "COPY")}


class TestLevels:
    @pytest.mark.parametrize("level", LEVELS)
    def test_all_well(self, on_disk, level):
        bucket, _ = on_disk
        files = dataset(40)
        store(bucket, files)
        verdict = verify(wanted(files), bucket, level)
        assert verdict.passed
        assert (verdict.selected, verdict.verified, verdict.present) == (40, 40, 40)
        assert [image.path for image in verdict.ok] == list(files)
        assert [image.size for image in verdict.ok] == [len(data) for data in files.values()]
        assert verdict.read_back == (40 if level == "content" else 0)
        verdict.raise_if_failed()

    def test_an_unknown_level_is_refused(self, on_disk):
        with pytest.raises(InputError, match="count, checksum, content"):
            verify([], on_disk[0], "thorough")

    def test_nothing_to_verify(self, on_disk):
        assert verify([], on_disk[0]).passed

    def test_an_empty_bucket_misses_all(self, on_disk):
        verdict = verify(wanted(dataset(5)), on_disk[0])
        assert verdict.missing == 5
        with pytest.raises(VerificationFailed, match=r"5 of 5 selected images .* s3://bucket/report.html"):
            verdict.raise_if_failed("s3://bucket/report.html")

    def test_an_empty_object_passes_no_level(self, on_disk):
        bucket, _ = on_disk
        files = dataset(5)
        store(bucket, files)
        victim = next(iter(files))
        store(bucket, {victim: b""})
        for level in LEVELS:
            verdict = verify(wanted(files), bucket, level)
            assert [(p.path, p.reason) for p in verdict.problems] == [(victim, "empty")]
            assert (verdict.empty, verdict.wrong, verdict.missing, verdict.present) == (1, 0, 0, 5)

    def test_count_does_not_look_at_bytes(self, on_disk):
        bucket, folder = on_disk
        files = dataset(5)
        store(bucket, files)
        (folder / next(iter(files))).write_bytes(b"something else")
        verdict = verify(wanted(files), bucket, "count")
        assert verdict.passed
        assert kinds(verdict) == {"LIST": 1}


class TestDamage:
    def test_a_flipped_byte_is_wrong_at_once_and_stays_so_until_it_is_repaired(self, on_disk):
        bucket, folder = on_disk
        files = dataset(30)
        store(bucket, files)
        assert verify(wanted(files), bucket).passed
        victim = list(files)[7]
        flip(folder / victim)
        for level in ("checksum", "content", "checksum"):
            verdict = verify(wanted(files), bucket, level)
            assert [(p.path, p.reason) for p in verdict.problems] == [(victim, "wrong bytes")]
            assert hashlib.sha256(files[victim]).hexdigest() in verdict.problems[0].detail
        listed = {entry.path: entry for entry in bucket.list("files/")}[victim]
        memory = Memory.load(bucket, ["p10", "p11", "p12"])
        assert (
            memory.judge(File(victim, hashlib.sha256(files[victim]).hexdigest()), listed.size, listed.etag) == "wrong"
        )
        store(bucket, {victim: files[victim]})
        assert verify(wanted(files), bucket).passed

    def test_a_deleted_object_is_missing(self, on_disk):
        bucket, _ = on_disk
        files = dataset(30)
        store(bucket, files)
        assert verify(wanted(files), bucket).passed
        gone = [list(files)[n] for n in (0, 13, 29)]
        bucket.delete(gone)
        verdict = verify(wanted(files), bucket)
        assert verdict.problems == [Failure(path, "missing") for path in gone]
        assert (verdict.present, verdict.verified, verdict.remembered) == (27, 27, 27)

    def test_a_file_that_physionet_has_replaced_is_wrong_though_the_object_is_unchanged(self, on_disk):
        bucket, _ = on_disk
        files = dataset(10)
        store(bucket, files)
        assert verify(wanted(files), bucket).passed
        victim = list(files)[3]
        verdict = verify(wanted(files | {victim: b"the new version"}), bucket)
        assert [(p.path, p.reason) for p in verdict.problems] == [(victim, "wrong bytes")]

    def test_any_damage_is_found_and_nothing_else(self, on_disk):
        bucket, folder = on_disk
        files = dataset(120, seed=5)
        store(bucket, files)
        rng = random.Random(6)
        expected = {}
        for _ in range(12):
            path = rng.choice(list(files))
            kind = rng.choice(["flip", "cut", "grow", "empty", "delete", "repair"])
            data, reason = files[path], "wrong bytes"
            if kind == "flip" and path not in expected:
                flip(folder / path)
            elif kind == "delete":
                bucket.delete([path])
                reason = "missing"
            else:
                bad = {"flip": b"x", "cut": data[:-1], "grow": data + b"\0", "empty": b"", "repair": data}[kind]
                store(bucket, {path: bad})
                reason = "empty" if kind == "empty" else reason
            expected[path] = reason
            if kind == "repair":
                del expected[path]
            level = rng.choice(["checksum", "content"])
            assert {p.path: p.reason for p in verify(wanted(files), bucket, level).problems} == expected


class TestMemory:
    def test_a_second_look_lists_and_asks_for_nothing_else(self, on_disk):
        bucket, _ = on_disk
        files = dataset(40)
        store(bucket, files)
        assert kinds(verify(wanted(files), bucket)) == {"LIST": 1, "HEAD": 40 + KEEP}
        verdict = verify(wanted(files), bucket)
        assert kinds(verdict) == {"LIST": 1}
        assert verdict.remembered == 40

    def test_only_what_is_new_is_asked_for(self, on_disk):
        bucket, _ = on_disk
        files = dataset(40)
        store(bucket, files)
        verify(wanted(files)[:30], bucket)
        assert kinds(verify(wanted(files), bucket)) == {"LIST": 1, "HEAD": 10 + KEEP // 3}

    def test_a_lost_memory_costs_requests_and_nothing_else(self, on_disk):
        bucket, _ = on_disk
        files = dataset(20)
        store(bucket, files)
        verify(wanted(files), bucket)
        for group in ("p10", "p11", "p12"):
            bucket.write(verified(group), b"damaged")
        verdict = verify(wanted(files), bucket)
        assert verdict.passed
        assert kinds(verdict)["HEAD"] == 20 + KEEP

    def test_a_verification_that_was_killed_goes_on_where_it_stopped(self, on_disk, monkeypatch):
        bucket, _ = on_disk
        files = dataset(200)
        store(bucket, files)
        monkeypatch.setattr(compare, "_SAVE_EVERY", 20)

        class Killed(BaseException):
            pass

        head, asked = bucket.head, []

        def dies(path):
            asked.extend([path] if path.startswith("files/") else [])
            if len(asked) > 120 and path.startswith("files/"):
                raise Killed
            return head(path)

        bucket.head = dies
        with pytest.raises(Killed):
            verify(wanted(files), bucket, workers=2)
        bucket.head = head
        verdict = verify(wanted(files), bucket)
        assert verdict.passed
        assert verdict.requests["HEAD"] <= 90 + KEEP

    def test_content_reads_again_unless_it_was_read_in_the_same_run(self, on_disk):
        bucket, _ = on_disk
        files = dataset(20)
        store(bucket, files)
        assert verify(wanted(files), bucket, "checksum").read_back == 0
        assert verify(wanted(files)[:15], bucket, "content", run="one").read_back == 15
        assert verify(wanted(files), bucket, "content", run="one").read_back == 5
        assert verify(wanted(files), bucket, "content").read_back == 20
        assert verify(wanted(files), bucket, "content", run="two").read_back == 20

    @pytest.mark.parametrize("minutes", [-10, 10])
    def test_a_clock_that_is_wrong_hides_no_damage(self, on_disk, monkeypatch, minutes):
        bucket, folder = on_disk
        files = dataset(10)
        store(bucket, files)

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(minutes=minutes)

        with monkeypatch.context() as patch:  # the worker of the previous audit
            patch.setattr("physionet_mirror.verified_cache.datetime", Clock)
            assert verify(wanted(files), bucket, "content", run="before").passed
        victim = list(files)[4]
        old = (folder / victim).stat()
        flip(folder / victim)
        os.utime(folder / victim, ns=(old.st_atime_ns, old.st_mtime_ns))  # size and ETag as before
        verdict = verify(wanted(files), bucket, "content", run="after")
        assert (verdict.read_back, [p.path for p in verdict.problems]) == (10, [victim])
        assert [p.path for p in verify(wanted(files), bucket, "checksum").problems] == [victim]  # and the cache knows

    def test_asked_anew_nothing_is_believed_but_what_this_run_found(self, on_disk):
        bucket, _ = on_disk
        files = dataset(20)
        store(bucket, files)
        verify(wanted(files), bucket)
        assert kinds(verify(wanted(files)[:15], bucket, run="audit", anew=True))["HEAD"] == 15 + KEEP
        assert kinds(verify(wanted(files), bucket, run="audit", anew=True))["HEAD"] == 5 + KEEP // 3

    def test_a_role_that_may_only_read_gets_its_answer(self, on_disk):
        bucket, _ = on_disk
        files = dataset(10)
        store(bucket, files)

        def refused(*_, **__):
            raise BucketRefused("S3 refused access")

        bucket.write_unless_changed = refused
        verdict = verify(wanted(files), bucket)
        assert verdict.passed
        assert "could not be remembered" in verdict.notes[0]

    def test_a_read_that_breaks_off_is_tried_again(self, on_disk, monkeypatch):
        bucket, _ = on_disk
        files = dataset(10)
        store(bucket, files)
        sha256, broken = bucket.sha256, []

        def breaks(path):
            if path.startswith("files/") and broken.count(path) < 2:
                broken.append(path)
                raise DestinationUnavailable("S3 could not serve")
            return sha256(path)

        monkeypatch.setattr(compare.time, "sleep", lambda _: None)
        bucket.sha256 = breaks
        assert verify(wanted(files), bucket, "content").passed
        assert len(broken) == 20

    def test_an_s3_that_goes_away_is_an_error_and_not_a_verdict(self, on_disk):
        bucket, _ = on_disk
        files = dataset(40)
        store(bucket, files)
        head, asked = bucket.head, []

        def away(path):
            asked.append(path)
            if len(asked) > 20 and path.startswith("files/"):
                raise DestinationUnavailable("S3 could not serve")
            return head(path)

        bucket.head = away
        with pytest.raises(DestinationUnavailable):
            verify(wanted(files), bucket)
        assert bucket.read(verified("p10"))


class TestWithoutChecksum:
    def put_plain(self, bucket, files):
        """Store as another tool would: without a SHA-256, and with its own settings."""
        for path, data in files.items():
            bucket.client.put_object(Bucket=bucket.name, Key=bucket.key(path), Body=data, **self.AS_STORED)

    AS_STORED: ClassVar = {
        "ContentType": "image/jpeg",
        "StorageClass": "STANDARD_IA",
        "CacheControl": "no-cache",
        "Metadata": {"site": "A"},
    }

    @pytest.mark.parametrize("anew", [False, True], ids=["verify", "audit"])
    def test_is_read_once_and_left_as_it_is(self, bucket, anew):
        bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
        files = dataset(12)
        self.put_plain(bucket, files)
        assert bucket.head(next(iter(files))).sha256 is None
        verdict = verify(wanted(files), bucket, anew=anew)
        assert verdict.passed
        assert verdict.read_back == 12
        again = verify(wanted(files), bucket, anew=anew)
        assert kinds(again) == ({"LIST": 1, "HEAD": 12} if anew else {"LIST": 1})
        assert again.read_back == 0
        versions = bucket.client.list_object_versions(Bucket=bucket.name, Prefix=bucket.key("files/"))["Versions"]
        assert len(versions) == 12
        for path in files:
            stored = bucket.client.head_object(Bucket=bucket.name, Key=bucket.key(path))
            assert {name: stored[name] for name in self.AS_STORED} == self.AS_STORED
        bucket.delete([verified(group) for group in ("p10", "p11", "p12")])
        assert verify(wanted(files), bucket, anew=anew).read_back == 12  # a lost cache costs requests

    def test_wrong_bytes_are_found(self, bucket):
        files = dataset(5)
        victim = list(files)[2]
        self.put_plain(bucket, files | {victim: b"something else"})
        for _ in range(2):
            verdict = verify(wanted(files), bucket)
            assert [(p.path, p.reason) for p in verdict.problems] == [(victim, "wrong bytes")]
        assert verdict.read_back == 1  # an object that the cache calls wrong may have been repaired

    def test_what_was_wrong_and_is_repaired_with_the_same_etag_is_read(self, on_disk):
        bucket, folder = on_disk
        files = dataset(5)
        store(bucket, files)
        victim = list(files)[2]
        data = files[victim]
        old = (folder / victim).stat()
        for content, problems in ((data[::-1], [victim]), (data, [])):
            (folder / victim).write_bytes(content)
            os.utime(folder / victim, ns=(old.st_atime_ns, old.st_mtime_ns))
            verdict = verify(wanted(files), bucket, "content" if problems else "checksum")
            assert [p.path for p in verdict.problems] == problems

    def test_a_server_that_keeps_none(self, on_disk):
        bucket, folder = on_disk
        files = dataset(60)
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_bytes(data)
        verdict = verify(wanted(files), bucket, workers=2)
        assert verdict.passed
        assert verdict.read_back == 60
        assert kinds(verify(wanted(files), bucket)) == {"LIST": 1}

    def test_a_multipart_upload_has_no_sha256_of_the_whole(self, bucket):
        data = random.Random(1).randbytes(11 << 20)
        path = "files/p10/p10000000/s50000000/large.dcm"
        chunks = (data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20))
        bucket.upload(path, chunks, content_type="application/dicom", part_size=5 << 20)
        verdict = verify(wanted({path: data}), bucket)
        assert verdict.passed
        assert verdict.read_back == 1


@pytest.fixture(scope="module")
def crowded(moto):
    """A bucket with 2,500 images in ten groups, and the images."""
    bucket, files = make_bucket(moto, "crowded"), dataset(2500, groups=10)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: store(bucket, {path: files[path]}), files))
    return bucket, wanted(files)


class TestListing:
    def test_a_selection_that_is_dense_costs_one_list_for_a_thousand_keys(self, crowded):
        bucket, images = crowded
        verdict = verify(images, bucket, "count")
        assert verdict.passed
        assert kinds(verdict) == {"LIST": 3}

    def test_a_sparse_sample_is_asked_for_one_by_one(self, crowded):
        bucket, images = crowded
        missing = File("files/p15/p15000000/s50000000/none.jpg", "ab" * 32)
        verdict = verify([*images[::250], missing], bucket, "count")
        assert verdict.problems == [Failure(missing.path, "missing")]
        assert kinds(verdict)["LIST"] == 1
        assert kinds(verdict)["HEAD"] <= 11
        assert verify(images[::250], bucket).passed

    def test_what_nobody_selected_is_leapt_over(self, crowded):
        bucket, images = crowded
        verdict = verify([*images[:30], *images[-30:]], bucket, "count")
        assert verdict.passed
        assert kinds(verdict) == {"LIST": 2}

    def test_any_selection_in_any_order_gets_the_same_answer(self, crowded, monkeypatch):
        monkeypatch.setattr(compare, "_FIRST_BLOCK", 30)
        monkeypatch.setattr(compare, "_BLOCK", 70)
        bucket, images = crowded
        there = {image.path for image in images}
        absent = wanted(dataset(300, seed=9, groups=10))
        rng = random.Random(10)
        for size in (1, 2, 13, 14, 300, 1300):
            chosen = rng.sample([*images, *absent], size)
            verdict = verify(chosen, bucket, "count")
            assert [image.path for image in verdict.ok] == sorted(i.path for i in chosen if i.path in there)
            assert [p.path for p in verdict.problems] == sorted(i.path for i in chosen if i.path not in there)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


class TestIndex:
    @pytest.mark.parametrize("first", [True, False], ids=["the first index", "a later one"])
    def test_a_run_that_ends_at_the_same_moment_does_not_lose_its_rows(self, bucket, first):
        files = dataset(40)
        store(bucket, files)
        pq.write_table(pa.table({"path": list(files), "view": ["PA"] * len(files)}), (manifest := io.BytesIO()))

        def ends(part):
            index.update(bucket, verify(part, bucket), io.BytesIO(manifest.getvalue()))

        if not first:
            ends(wanted(files)[:5])
        head, asked = bucket.head, []

        def the_other_one_writes_just_now(path):
            found = head(path)
            if path == INDEX and (asked.append(path) or len(asked) == 2):  # the last HEAD before the PUT
                ends(wanted(files)[5:20])
            return found

        bucket.head = the_other_one_writes_just_now
        ends([*wanted(files)[:5], *wanted(files)[20:]])
        table = pq.read_table(io.BytesIO(bucket.read(INDEX)))
        assert table["path"].to_pylist() == list(files)
