"""The steps behind the tasks, against the look-alike and a real S3 process, without Airflow."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from demo import stack
from demo.lookalike import Lookalike, Profile, User
from physionet_mirror import index, shards
from physionet_mirror.compare import Verified
from physionet_mirror.dataset import MIMIC_CXR_JPG, SUMS
from physionet_mirror.errors import InputError, MetadataError, MirrorError, ObjectLocked
from physionet_mirror.layout import INDEX, MANIFEST, RunLayout
from physionet_mirror.records import Audit
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import audit, cleanup, fetch_metadata, mirror_shard, plan
from physionet_mirror.verification import Verdict

SPLIT = MIMIC_CXR_JPG.tables["split"]
RUN = RunLayout("test__1")


@pytest.fixture
def bucket(boto_session: boto3.Session, s3_server: stack.S3Server, bucket_name: str) -> Bucket:
    return Bucket.open(boto_session, bucket_name, MIMIC_CXR_JPG.name, endpoint_url=s3_server.endpoint)


def request(bucket: Bucket, **params: Any) -> Request:
    return Request.from_params({"bucket": bucket.name, "prefix": bucket.prefix, **params})


def client_of(server: Lookalike, reader: tuple[str, str]) -> PhysioNet:
    return PhysioNet(server.url, *reader, connections=4)


def keys(bucket: Bucket) -> list[str]:
    return [entry.path for entry in bucket.list()]


# -- metadata ----------------------------------------------------------------------------------------------------------


def sum_again(version: Path, *names: str) -> None:
    """Update SHA256SUMS.txt for changed files."""
    lines = dict(reversed(line.split(" ", 1)) for line in (version / SUMS).read_text().splitlines())
    lines |= {name: hashlib.sha256((version / name).read_bytes()).hexdigest() for name in names}
    (version / SUMS).write_text("".join(f"{lines[path]} {path}\n" for path in sorted(lines)))


def html_for_a_table(version: Path) -> None:
    (version / SPLIT).write_bytes(b"<!DOCTYPE html><html>Please log in</html>")
    sum_again(version, SPLIT)


def truncated_gzip(version: Path) -> None:
    (version / SPLIT).write_bytes((version / SPLIT).read_bytes()[:-20])
    sum_again(version, SPLIT)


def table_that_differs_from_its_sum(version: Path) -> None:
    (version / SPLIT).write_bytes(gzip.compress(b"dicom_id,study_id,subject_id,split\n"))


def malformed_sums(version: Path) -> None:
    (version / SUMS).write_text((version / SUMS).read_text() + "not a checksum  LICENSE.txt\n")


def climbing_path(version: Path) -> None:
    (version / SUMS).write_text("0" * 64 + " ../../etc/passwd\n" + (version / SUMS).read_text())


def table_left_out(version: Path) -> None:
    lines = (version / SUMS).read_text().splitlines(keepends=True)
    (version / SUMS).write_text("".join(line for line in lines if SPLIT not in line))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (html_for_a_table, SPLIT),
        (truncated_gzip, SPLIT),
        (table_that_differs_from_its_sum, SPLIT),
        (malformed_sums, "not a SHA-256"),
        (climbing_path, ".."),
        (table_left_out, SPLIT),
    ],
)
def test_metadata_that_is_not_what_it_should_be_is_named_and_nothing_is_written(
    spoil: Callable[[Path], None],
    named: str,
    tiny_dataset: Path,
    tmp_path: Path,
    reader: tuple[str, str],
    bucket: Bucket,
) -> None:
    version = tmp_path / MIMIC_CXR_JPG.name
    shutil.copytree(tiny_dataset / MIMIC_CXR_JPG.name, version)
    spoil(version)
    login, password = reader
    with (
        Lookalike(tmp_path, users={login: User(password)}, check_seconds=0) as server,
        pytest.raises(MirrorError) as error,
    ):
        fetch_metadata.fetch_metadata(client_of(server, reader), bucket, MIMIC_CXR_JPG)
    assert named in str(error.value)
    assert keys(bucket) == []


def test_metadata_is_fetched_once_and_the_manifest_follows_a_change(
    tiny_dataset: Path, tmp_path: Path, reader: tuple[str, str], bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    version = tmp_path / MIMIC_CXR_JPG.name
    shutil.copytree(tiny_dataset / MIMIC_CXR_JPG.name, version)
    login, password = reader
    with Lookalike(tmp_path, users={login: User(password)}, check_seconds=0) as server:
        first = fetch_metadata.fetch_metadata(client_of(server, reader), bucket, MIMIC_CXR_JPG)
        again = fetch_metadata.fetch_metadata(client_of(server, reader), bucket, MIMIC_CXR_JPG)
        assert (first.fetched, first.changed) == (len(first.files) - 1, False)
        assert (again.fetched, again.changed, again.images) == (0, False, first.images)
        assert [seen.method for seen in server.counters.seen if seen.path.endswith(SUMS)].count("GET") == 1
        image = next(version.glob("files/**/*.jpg"))
        image.write_bytes(image.read_bytes() + b"\0")
        sum_again(version, str(image.relative_to(version)))
        with caplog.at_level("INFO"):
            changed = fetch_metadata.fetch_metadata(client_of(server, reader), bucket, MIMIC_CXR_JPG)
        kept = fetch_metadata.fetch_metadata(client_of(server, reader), bucket, MIMIC_CXR_JPG)
    assert (changed.fetched, changed.changed) == (0, True)
    assert "1 images replaced, 0 added, 0 withdrawn" in caplog.text
    assert (kept.changed, kept.notes) == (False, changed.notes)
    plan = plan_of(bucket, request(bucket, sample_size=4))
    assert any("1 images replaced, 0 added, 0 withdrawn" in note for note in plan.notes)  # and therefore in the report


# -- plan, stream, verify ----------------------------------------------------------------------------------------------


def plan_of(bucket: Bucket, wish: Request, run: RunLayout = RUN) -> plan.Plan:
    return plan.make_plan(wish, bucket, run, streams=2, params={})


def test_a_shard_is_drained_when_told_to_stop(physionet: Lookalike, reader: tuple[str, str], bucket: Bucket) -> None:
    fetch_metadata.fetch_metadata(client_of(physionet, reader), bucket, MIMIC_CXR_JPG)
    wish = request(bucket, select="all", shard_size=100)
    (shard,) = plan_of(bucket, wish).shards
    mirror_shard.find_missing(shard, wish, bucket, RUN)
    physionet.profile = Profile(round_trip=0.5)
    stop = mirror_shard.Stop()

    def stop_after_some_images() -> None:
        while sum(seen.path.endswith(".jpg") for seen in list(physionet.counters.seen)) < 8:
            time.sleep(0.05)
        stop()

    threading.Thread(target=stop_after_some_images, daemon=True).start()
    mover = Download(client_of(physionet, reader), MIMIC_CXR_JPG, bucket)
    result = mirror_shard.stream_shard(shard, wish, mover, bucket, RUN, connections=4, stop=stop)
    assert result.state == "drained"
    assert 0 < result.stored < shard.images
    assert json.loads(bucket.read(RUN.result(shard.index)))["state"] == "drained"
    assert json.loads(bucket.read(RUN.pace))["start"] >= 1  # where the next shard begins

    physionet.profile = Profile()
    mover = Download(client_of(physionet, reader), MIMIC_CXR_JPG, bucket)
    rest = mirror_shard.stream_shard(
        shard, wish, mover, bucket, RUN, connections=4, stop=mirror_shard.Stop(), try_number=2
    )
    assert rest.todo == rest.stored == shard.images  # over both tries
    assert rest.try_number == 2


def test_a_plan_that_cannot_be_writes_nothing(physionet: Lookalike, reader: tuple[str, str], bucket: Bucket) -> None:
    fetch_metadata.fetch_metadata(client_of(physionet, reader), bucket, MIMIC_CXR_JPG)
    before = keys(bucket)
    with pytest.raises(InputError, match="subjects"):
        plan_of(bucket, request(bucket, subjects=[19999999]))
    with pytest.raises(InputError, match="share"):
        plan.make_plan(request(bucket, connections=4), bucket, RUN, streams=5, params={})
    assert keys(bucket) == before


def test_a_plan_without_metadata_says_which_task_is_to_run(bucket: Bucket) -> None:
    with pytest.raises(MetadataError, match="fetch_metadata"):
        plan_of(bucket, request(bucket))


def test_a_file_list_that_is_not_there_is_no_empty_list(bucket: Bucket) -> None:
    with pytest.raises(InputError, match="does not exist"):
        plan.read_list(bucket, "failed_images.txt")


# -- audit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "week", "share"), [("2/8", 0, "2/8"), ("*/4", 0, "1/4"), ("*/4", 5, "2/4"), ("1/1", 9, "1/1")]
)
def test_a_share_rolls_by_the_week(text: str, week: int, share: str) -> None:
    monday = datetime.fromordinal(1 + 7 * (4 * 26_400 + week)).replace(tzinfo=UTC)
    assert str(audit.Share.parse(text, monday)) == share


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/4", "1/0", "1", "*/*", ""])
def test_a_share_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="share"):
        audit.Share.parse(text, datetime(2025, 1, 1, tzinfo=UTC))


def test_an_audit_of_nothing_says_so(bucket: Bucket) -> None:
    with pytest.raises(MetadataError, match="nothing to compare"):
        audit.audit(bucket, "count", audit.Share(1, 1), datetime.now(UTC))


# -- clean-up ----------------------------------------------------------------------------------------------------------


def test_a_bucket_root_is_never_listed_for_deletion(
    boto_session: boto3.Session, s3_server: stack.S3Server, bucket_name: str
) -> None:
    root = Bucket.open(boto_session, bucket_name, "", endpoint_url=s3_server.endpoint)
    root.write("a.jpg", b"x")
    with pytest.raises(InputError, match="whole bucket"):
        list(cleanup.list_deletions(root, "prefix", None))


@pytest.mark.parametrize("run_id", [None, "", "no-such-run", "../../etc"])
def test_a_run_that_is_not_there_cannot_be_cleaned_up(bucket: Bucket, run_id: str | None) -> None:
    with pytest.raises(InputError, match="run_id"):
        list(cleanup.list_deletions(bucket, "run", run_id))


def test_a_runs_images_go_and_all_else_stays(physionet: Lookalike, reader: tuple[str, str], bucket: Bucket) -> None:
    fetch_metadata.fetch_metadata(client_of(physionet, reader), bucket, MIMIC_CXR_JPG)
    made = plan_of(bucket, request(bucket, select="sample", sample_size=3))
    ours = set(bucket.read_text(made.shards[0].path).split()[1::2])
    for path in [*ours, "files/p10/p10000000/other.jpg"]:
        bucket.write(path, b"x")
    before = set(keys(bucket))
    listed = cleanup.write_listing(bucket, RUN, cleanup.list_deletions(bucket, "run", RUN.run_id))
    assert listed["by_kind"] == {"images": len(ours)}
    cleanup.delete_listed(bucket, RUN)
    after = set(keys(bucket))
    assert before - after == ours
    assert cleanup.delete_listed(bucket, RUN)["deleted"] == len(ours)  # repeating it is harmless


def test_old_versions_and_delete_markers_go_too() -> None:
    moto = pytest.importorskip("moto")
    with moto.mock_aws():
        session = boto3.Session("testing", "testing-secret", region_name="us-east-1")
        client = session.client("s3")
        client.create_bucket(Bucket="versioned")
        client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
        bucket = Bucket.open(session, "versioned", "mine")
        for content in (b"old", b"new"):
            bucket.write("files/a.jpg", content)
        bucket.write("files/b.jpg", b"b")
        bucket.delete(["files/b.jpg"])
        bucket.write("_mirror/runs/r/report.html", b"kept")
        client.put_object(Bucket="versioned", Key="mine-not/files/a.jpg", Body=b"kept")
        listed = cleanup.write_listing(bucket, RUN, cleanup.list_deletions(bucket, "prefix", None))
        assert (listed["objects"], listed["versions"]) == (4, 4)
        cleanup.delete_listed(bucket, RUN)
        left = client.list_object_versions(Bucket="versioned")
    assert {entry["Key"] for entry in left.get("Versions", [])} == {
        "mine/_mirror/runs/r/report.html",
        f"mine/{RUN.root}deleted.jsonl.gz",
        "mine-not/files/a.jpg",
    }
    assert not left.get("DeleteMarkers")


def test_a_damaged_manifest_or_index_does_not_end_a_clean_up(
    physionet: Lookalike, reader: tuple[str, str], bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    """The index is updated for the deletion if it can be read, and no other file is needed for that."""
    fetch_metadata.fetch_metadata(client_of(physionet, reader), bucket, MIMIC_CXR_JPG)
    made = plan_of(bucket, request(bucket, select="sample", sample_size=3))
    images = shards.read(bucket, made.shards[0])
    for image in images:
        bucket.write(image.path, b"x")
    verdict = Verdict("count", [Verified(image.path, 1, "e", image.sha256) for image in images])
    index.update(bucket, verdict, io.BytesIO(bucket.read(MANIFEST)))
    cleanup.write_listing(bucket, RUN, cleanup.list_deletions(bucket, "run", RUN.run_id))

    bucket.write(MANIFEST, b"PAR1 no more")
    assert cleanup.delete_listed(bucket, RUN)["deleted"] == len(images)
    assert index.read(bucket, ["path"]).num_rows == 0
    bucket.write(INDEX, b"PAR1 no more")
    assert cleanup.delete_listed(bucket, RUN)["deleted"] == len(images)
    assert "index.parquet is damaged" in caplog.text
    assert bucket.read(INDEX) == b"PAR1 no more", "left for the next run to write anew"


@pytest.mark.parametrize("lock", [{"legal hold": True}, {"retention": "GOVERNANCE"}], ids=str)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_locked_version_is_no_missing_right(lock: dict[str, Any], one_by_one: bool) -> None:
    """S3 refuses both with AccessDenied, and moto gives no further detail."""
    moto = pytest.importorskip("moto")
    with moto.mock_aws():
        session = boto3.Session("testing", "testing-secret", region_name="us-east-1")
        client = session.client("s3")
        client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
        bucket = Bucket.open(session, "locked", "mine")
        for name in ("a", "b", "c"):
            bucket.write(f"files/{name}.jpg", b"x")
        where = {"Bucket": "locked", "Key": "mine/files/b.jpg"}
        if "retention" in lock:
            until = {"Mode": lock["retention"], "RetainUntilDate": datetime.now(UTC) + timedelta(days=1)}
            client.put_object_retention(**where, Retention=until)
        else:
            client.put_object_legal_hold(**where, LegalHold={"Status": "ON"})
        cleanup.write_listing(bucket, RUN, cleanup.list_deletions(bucket, "prefix", None))
        bucket._deletes_one_by_one = one_by_one
        with pytest.raises(ObjectLocked, match=r"1 of 3 objects.*b\.jpg.*no right is missing") as error:
            cleanup.delete_listed(bucket, RUN)
        left = client.list_object_versions(Bucket="locked", Prefix="mine/files/")
    assert error.value.permanent
    assert [entry["Key"] for entry in left["Versions"]] == ["mine/files/b.jpg"], "the others are deleted"


# -- the repair after an audit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latest", "level", "differs"),
    [
        (None, "checksum", {}),
        (
            {
                "storage_class": "GLACIER_IR",
                "connections": 5,
                "source": "s3",
                "approve_above_gb": 7,
                "select": "sample",
            },
            "content",
            {"storage_class": "GLACIER_IR", "connections": 5, "source": "s3", "approve_above_gb": 7},
        ),
        ({"storage_class": "DEEP_ARCHIVE"}, "content", {"storage_class": "DEEP_ARCHIVE", "verify": "checksum"}),
        ({"storage_class": "FLOPPY", "connections": 10**9}, "checksum", {}),
        ("not a mapping", "checksum", {}),
    ],
)
def test_a_repair_takes_over_the_settings_of_the_latest_run(
    bucket: Bucket, latest: Any, level: str, differs: dict[str, Any]
) -> None:
    if latest is not None:
        bucket.write_json(RUN.report_json, {"params": latest})
    found = Audit(failed_images=bucket.uri("list.txt"), level=level)
    usual = {"bucket": bucket.name, "prefix": bucket.prefix, "select": "all", "file_list": found.failed_images}

    params = audit.repair_params(bucket, found)

    assert params == {**usual, "verify": level, **differs}
    Request.from_params(params)
