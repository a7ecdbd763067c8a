"""Our own files in the bucket: damaged, written by several tasks, not deletable, from other DAGs and earlier versions.

Tests run against the look-alike and a real S3 process, if necessary behind a proxy that refuses requests.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ReadTimeoutError

from demo import stack
from demo.lookalike import Fault, Kind, Lookalike, User
from physionet_mirror import index, layout, manifest, overview, records, shards
from physionet_mirror.dataset import MIMIC_CXR, MIMIC_CXR_JPG, SUMS
from physionet_mirror.errors import BucketRefused, DestinationUnavailable, ImagesFailed, InputError, MirrorError
from physionet_mirror.files import File
from physionet_mirror.layout import INDEX, LEFT, MANIFEST, SUMS_SEEN, RunLayout
from physionet_mirror.records import RunReport
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import audit, cleanup, fetch_metadata, mirror_shard, plan, verify
from physionet_mirror.verification import Verdict, Verified
from tests.chaos.s3_proxy import S3Proxy

BACKFILL = "mimic_cxr_jpg_backfill"
PARTS = 2


@pytest.fixture
def proxy(s3_server: stack.S3Server) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server.endpoint) as made:
        yield made


@pytest.fixture
def bucket(boto_session: boto3.Session, proxy: S3Proxy, bucket_name: str) -> Bucket:
    return Bucket.open(boto_session, bucket_name, MIMIC_CXR_JPG.name, endpoint_url=proxy.endpoint)


@pytest.fixture
def go(physionet: Lookalike, reader: tuple[str, str], bucket: Bucket) -> Callable[..., Verdict]:
    """Makes one run, task after task, over a part of the images (None = all)."""

    def source() -> PhysioNet:
        return PhysioNet(physionet.url, *reader, connections=4)

    def run(where: RunLayout, part: int | None = None, before_verify: Callable[[], None] = lambda: None) -> Verdict:
        given: dict[str, Any] = {"bucket": bucket.name, "prefix": bucket.prefix, "select": "all"}
        if part is not None:
            given |= {"slices": PARTS, "stop_after": "9"}
        wish = Request.from_params(given)
        fetch_metadata.fetch_metadata(source(), bucket, MIMIC_CXR_JPG)
        for shard in plan.make_plan(wish, bucket, where, streams=1, params=given, part=part).shards:
            if mirror_shard.find_missing(shard, wish, bucket, where).images:
                mirror_shard.stream_shard(
                    shard,
                    wish,
                    Download(source(), MIMIC_CXR_JPG, bucket),
                    bucket,
                    where,
                    connections=4,
                    stop=mirror_shard.Stop(),
                )
        before_verify()
        return verify.verify_run(wish, bucket, where, params=given, started=datetime.now(UTC))[0]

    return run


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda data: (
        data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :] if at >= 0 else flipped(len(data) + at)(data)
    )


# -- damaged -----------------------------------------------------------------------------------------------------------

FIRST = RunLayout("manual__2026-11-01T02:00:00+00:00")
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "a byte of its middle": lambda data: flipped(len(data) // 2)(data),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    "path",
    [INDEX, MANIFEST, SUMS_SEEN, LEFT, FIRST.report_json, layout.verified("p10")],
    ids=lambda p: p.split("/")[-1],
)
def test_a_damaged_small_file_costs_no_run_and_is_named_once(
    path: str, how: str, go: Callable[..., Verdict], bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    assert go(FIRST, 0).passed
    images = shards.decode(bucket.read(FIRST.shard(0)))
    bucket.write(LEFT, shards.encode(images[:3]), content_type="text/plain")
    good = bucket.read(path)
    bucket.write(path, DAMAGE[how](good))
    with caplog.at_level(logging.WARNING):
        verdict = go(RunLayout("manual__2026-11-02T02:00:00+00:00"), 0)
    assert verdict.passed
    named = [record for record in caplog.records if bucket.uri(path) in record.getMessage()]
    assert len(named) <= 2  # the plan and verify tasks each read it once
    silent = how == "emptied" and path in (SUMS_SEEN, LEFT, FIRST.report_json)  # discarded files look like this
    harmless = how.startswith("a byte") and path in (
        INDEX,
        SUMS_SEEN,
        LEFT,
        FIRST.report_json,
    )  # of a footer, or a note
    assert named or silent or harmless
    rows = pq.read_table(io.BytesIO(bucket.read(INDEX)))
    assert set(rows["path"].to_pylist()) >= {image.path for image in images}
    assert manifest.read(io.BytesIO(bucket.read(MANIFEST))) is not None


def test_a_manifest_with_one_wrong_checksum_is_built_anew(
    go: Callable[..., Verdict], bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    assert go(FIRST).passed
    good = bucket.read(MANIFEST)
    table = pq.read_table(io.BytesIO(good))
    sums = table["sha256"].to_pylist()
    column = pa.array(["0" * 64, *sums[1:]], table.schema.field("sha256").type)
    out = io.BytesIO()
    pq.write_table(table.set_column(table.column_names.index("sha256"), "sha256", column), out)
    bucket.write(MANIFEST, out.getvalue())
    assert go(RunLayout("again")).passed
    assert bucket.read(MANIFEST) == good
    assert "is not as it was written" in caplog.text


def test_a_pace_that_is_no_json_is_ignored(
    physionet: Lookalike, reader: tuple[str, str], go: Callable[..., Verdict], bucket: Bucket
) -> None:
    wish = Request.from_params({"bucket": bucket.name, "prefix": bucket.prefix, "select": "all"})
    fetch_metadata.fetch_metadata(PhysioNet(physionet.url, *reader), bucket, MIMIC_CXR_JPG)
    (shard,) = plan.make_plan(wish, bucket, FIRST, streams=1, params={}).shards
    mirror_shard.find_missing(shard, wish, bucket, FIRST)
    bucket.write(FIRST.pace, b"{")
    source = PhysioNet(physionet.url, *reader, connections=4)
    assert (
        mirror_shard.stream_shard(
            shard, wish, Download(source, MIMIC_CXR_JPG, bucket), bucket, FIRST, connections=4, stop=mirror_shard.Stop()
        ).state
        == "done"
    )


def test_page_and_audit_do_without_a_damaged_index(go: Callable[..., Verdict], bucket: Bucket) -> None:
    assert go(FIRST).passed
    bucket.write(INDEX, b"x" * 1000)
    found = overview.load(bucket)
    assert found is not None
    assert not found.verified.any()
    lost = next(entry.path for entry in bucket.list("files/"))
    bucket.delete([lost])
    verdict = audit.audit(bucket, "checksum", audit.Share(1, 1), run="an audit")
    assert [(problem.path, problem.reason) for problem in verdict.problems] == [(lost, "missing")]


def test_a_damaged_plan_is_said_and_not_retried(go: Callable[..., Verdict], bucket: Bucket) -> None:
    from physionet_mirror.errors import MetadataError

    with pytest.raises(MetadataError, match=r"plan\.json is gone or damaged.*Trigger a new run"):
        go(FIRST, before_verify=lambda: bucket.write(FIRST.plan, b'{"shards": [{"index": 0}]}'))
    with pytest.raises(InputError, match="holds no plan"):
        list(cleanup.list_deletions(bucket, "run", FIRST.run_id))


# -- the index, written by several tasks -------------------------------------------------------------------------------


def some_images(count: int) -> list[File]:
    names = [f"files/p10/p10000000/s50000000/{n:08x}{'-00000000' * 4}.jpg" for n in range(count)]
    return [File(name, hashlib.sha256(name.encode()).hexdigest()) for name in names]


IMAGES = some_images(12)


def update(bucket: Bucket, some: list[File]) -> int:
    manifest = io.BytesIO()
    columns = {"path": [i.path for i in IMAGES], "sha256": [i.sha256 for i in IMAGES]}
    pq.write_table(pa.table(columns), manifest)
    manifest.seek(0)
    return index.update(bucket, Verdict("checksum", [Verified(i.path, 3000, "e", i.sha256) for i in some]), manifest)


def indexed(bucket: Bucket) -> list[str]:
    return pq.read_table(io.BytesIO(bucket.read(INDEX)))["path"].to_pylist()


def conditional_puts(refuse: int, answer: tuple[int, str, str], meanwhile: Callable[[], Any] = lambda: None) -> Any:
    """Refuse the first ``refuse`` conditional PUTs of the index; call ``meanwhile`` just before the first."""
    seen: list[str] = []

    def refusal(method: str, address: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        if (
            method != "PUT"
            or not address.endswith(INDEX)
            or not (headers.get("If-Match") or headers.get("If-None-Match"))
        ):
            return None
        seen.append(address)
        if len(seen) == 1:
            meanwhile()
        return answer if len(seen) <= refuse else None

    return refusal


@pytest.fixture
def conditional(bucket_name: str) -> Iterator[tuple[Bucket, Bucket, S3Proxy]]:
    """One bucket of an S3 that supports If-Match, opened twice; the first goes through a proxy."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    name = f"{bucket_name}-c"  # all moto servers in this process share their buckets
    try:
        upstream = "http://{}:{}".format(*server.get_host_and_port())
        session = boto3.Session("testing", "testing-secret", region_name="us-east-1")
        session.client("s3", endpoint_url=upstream).create_bucket(Bucket=name)
        with S3Proxy(upstream) as proxy:
            first, second = (Bucket.open(session, name, "p", endpoint_url=url) for url in (proxy.endpoint, upstream))
            yield first, second, proxy
    finally:
        server.stop()


@pytest.mark.parametrize("refused", [3, 7])
@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
def test_a_conditional_write_that_meets_a_slow_s3_loses_no_rows_of_another_run(
    code: str, refused: int, conditional: tuple[Bucket, Bucket, S3Proxy]
) -> None:
    bucket, other, proxy = conditional
    update(bucket, IMAGES[:4])
    proxy.refusal = conditional_puts(refused, (503, code, "Please reduce…"), lambda: update(other, IMAGES[8:]))
    assert update(bucket, IMAGES[4:8]) == len(IMAGES)
    assert indexed(bucket) == [image.path for image in IMAGES]


def test_an_answer_that_is_lost_loses_no_rows(conditional: tuple[Bucket, Bucket, S3Proxy]) -> None:
    bucket, other, _ = conditional
    update(bucket, IMAGES[:4])
    put, lost = bucket._put_small, []

    def put_and_hear_nothing(path: str, data: bytes, content_type: str, **condition: Any) -> None:
        put(path, data, content_type, **condition)
        if not lost:
            lost.append(path)
            update(other, IMAGES[8:])
            raise ReadTimeoutError(endpoint_url="http://127.0.0.1")

    bucket._put_small = put_and_hear_nothing  # type: ignore[method-assign]
    assert update(bucket, IMAGES[4:8]) == len(IMAGES)
    assert lost
    assert indexed(bucket) == [image.path for image in IMAGES]


def test_an_s3_that_stays_slow_fails_the_write_and_loses_nothing(
    conditional: tuple[Bucket, Bucket, S3Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_TRIES_OF_SLOW_S3", 1)
    bucket, other, proxy = conditional
    update(bucket, IMAGES[:4])
    proxy.refusal = conditional_puts(99, (503, "SlowDown", "…"), lambda: update(other, IMAGES[8:]))
    with pytest.raises(DestinationUnavailable, match="SlowDown"):
        update(bucket, IMAGES[4:8])
    proxy.refusal = None
    assert indexed(bucket) == [image.path for image in IMAGES[:4] + IMAGES[8:]]


def test_many_writers_at_once_lose_no_rows(conditional: tuple[Bucket, Bucket, S3Proxy]) -> None:
    _, bucket, _ = conditional
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda image: update(bucket, [image]), IMAGES))
    assert indexed(bucket) == [image.path for image in IMAGES]


@pytest.mark.parametrize(
    "answer",
    [
        (501, "NotImplemented", "A header you provided implies functionality that is not implemented"),
        (400, "InvalidArgument", "Unsupported header 'If-None-Match' received for this API call."),
    ],
)
def test_a_store_that_says_it_takes_no_conditions_is_asked_without(
    answer: tuple[int, str, str], proxy: S3Proxy, bucket: Bucket
) -> None:
    proxy.refusal = conditional_puts(99, answer)
    assert update(bucket, IMAGES[:4]) == 4
    proxy.refusal = conditional_puts(99, (answer[0], answer[1], answer[2].replace("None-", "")))
    assert update(bucket, IMAGES[4:]) == len(IMAGES)
    assert len(indexed(bucket)) == len(IMAGES)


def test_a_condition_that_is_refused_for_another_reason_is_no_reason_to_do_without(
    proxy: S3Proxy, bucket: Bucket
) -> None:
    proxy.refusal = conditional_puts(99, (403, "AccessDenied", "Access Denied"))
    with pytest.raises(BucketRefused):
        update(bucket, IMAGES[:4])
    assert bucket.head(INDEX) is None


# -- what cannot be deleted --------------------------------------------------------------------------------------------


def deletes(answer: tuple[int, str, str], *, single: bool) -> Any:
    """Refuse DeleteObjects, and with ``single`` also DeleteObject."""

    def refusal(method: str, address: str, _: Mapping[str, str]) -> tuple[int, str, str] | None:
        many = method == "POST" and address.endswith("?delete")
        return answer if many or (single and method == "DELETE") else None

    return refusal


def test_a_role_that_may_not_delete_gets_a_green_run_with_its_report(
    proxy: S3Proxy, go: Callable[..., Verdict], bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.refusal = deletes((403, "AccessDenied", "Access Denied"), single=True)
    bucket.write_text(FIRST.failed_images, "files/p10/a.jpg\tnot found\n")  # from an earlier attempt at the same run
    bucket.write_json(FIRST.result(7), {"shard": 7, "stored": 1000, "state": "done"})
    bucket.write(LEFT, shards.encode(IMAGES[:2]))
    assert go(FIRST, 0).passed
    assert json.loads(bucket.read(FIRST.report_json))["files"]["failed_images"] is None
    assert bucket.read(FIRST.failed_images) == b""
    assert (
        json.loads(bucket.read(FIRST.report_json))["transfer"]["images"] < 1000
    )  # the earlier attempt's list no longer holds
    assert go(RunLayout("again"), 0).passed
    assert "could not be deleted" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        (400, "InvalidRequest", "Missing required header for this request: Content-MD5"),
        (501, "NotImplemented", "not implemented"),
    ],
)
def test_a_store_that_takes_no_deleteobjects_is_asked_object_by_object(
    answer: tuple[int, str, str], proxy: S3Proxy, bucket: Bucket
) -> None:
    proxy.refusal = deletes(answer, single=False)
    paths = [f"files/{n}.jpg" for n in range(30)]
    for path in paths:
        bucket.write(path, b"x")
    bucket.delete([*paths[:20], "files/not-there.jpg"])
    bucket.delete(paths[20:25])
    assert [entry.path for entry in bucket.list()] == sorted(paths[25:])


def test_a_refused_deletion_that_is_the_job_itself_is_an_error(proxy: S3Proxy, bucket: Bucket) -> None:
    bucket.write("files/a.jpg", b"x")
    proxy.refusal = deletes((403, "AccessDenied", "Access Denied"), single=True)
    with pytest.raises(BucketRefused):
        bucket.delete(["files/a.jpg"])
    proxy.refusal = lambda method, *_: (
        (400, "InvalidRequest", "Content-MD5")
        if method == "POST"
        else ((403, "AccessDenied", "Access Denied") if method == "DELETE" else None)
    )
    with pytest.raises(BucketRefused):
        bucket.delete(["files/a.jpg"])


def test_an_upload_that_ends_early_tells_why_though_it_cannot_be_aborted(proxy: S3Proxy, bucket: Bucket) -> None:
    proxy.refusal = lambda method, *_: (403, "AccessDenied", "Access Denied") if method == "DELETE" else None

    def chunks() -> Iterator[bytes]:
        yield b"x" * (17 << 20)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bucket.upload("big", chunks())


# -- runs of several DAGs ----------------------------------------------------------------------------------------------


def test_runs_of_two_dags_with_one_id_keep_their_files_apart(go: Callable[..., Verdict], bucket: Bucket) -> None:
    main, night = RunLayout("weekly-1"), RunLayout("weekly-1", BACKFILL)
    assert main.root == "_mirror/runs/weekly-1/"
    assert go(main).passed
    assert go(night, 0).passed
    assert json.loads(bucket.read(main.report_json))["result"]["selected"] == 60
    assert json.loads(bucket.read(night.report_json))["result"]["selected"] == 30
    assert json.loads(bucket.read(night.report_json))["run"]["dag_id"] == BACKFILL
    of_night = {entry.path for entry in cleanup.list_deletions(bucket, "run", f"{BACKFILL}@weekly-1")}
    assert len(of_night) == 30
    listing = RunLayout("weekly-1", "mimic_cxr_cleanup")
    cleanup.write_listing(bucket, listing, cleanup.list_deletions(bucket, "run", f"{BACKFILL}@weekly-1"))
    assert cleanup.delete_listed(bucket, listing)["deleted"] == 30
    for run in (main, night):
        assert json.loads(bucket.read(run.report_json))["result"]["passed"]
    assert len(list(bucket.list("files/"))) == 30


def test_a_clean_up_by_an_id_that_only_another_dag_has_names_its_folder(bucket: Bucket) -> None:
    bucket.write_json(RunLayout("weekly-1", BACKFILL).plan, {"shards": []})
    with pytest.raises(InputError, match=f"{BACKFILL}@weekly-1"):
        list(cleanup.list_deletions(bucket, "run", "weekly-1"))


def test_folders_of_earlier_versions_are_found(bucket: Bucket) -> None:
    old = {"shards": [], "request": {"slices": 30}}
    bucket.write_json("_mirror/runs/scheduled__1/plan.json", old)
    bucket.write_json("_mirror/runs/audit__scheduled__1/audit.json", {})
    bucket.write_json("_mirror/runs/cleanup__manual__1/deleted.jsonl.gz", {})
    bucket.write_json("_mirror/runs/manual__1/plan.json", {"shards": [], "request": {"select": "all"}})
    root = {
        (dag, run): records.located(bucket, RunLayout(run, dag)).root.split("/")[2]
        for dag in ("mimic_cxr_jpg", BACKFILL, "mimic_cxr_audit", "mimic_cxr_cleanup")
        for run in ("scheduled__1", "manual__1")
    }
    assert root[BACKFILL, "scheduled__1"] == "scheduled__1"
    assert (
        root[BACKFILL, "manual__1"] == f"{BACKFILL}@manual__1"
    )  # the folder named by the id alone belongs to the main DAG
    assert root["mimic_cxr_audit", "scheduled__1"] == "audit__scheduled__1"
    assert root["mimic_cxr_cleanup", "manual__1"] == "cleanup__manual__1"
    assert root["mimic_cxr_jpg", "scheduled__1"] == "scheduled__1"
    bucket.write_json(RunLayout("scheduled__1", BACKFILL).plan, old)
    assert records.located(bucket, RunLayout("scheduled__1", BACKFILL)).folder == f"{BACKFILL}@scheduled__1"


# -- what a plan knows -------------------------------------------------------------------------------------------------


def wish_of(bucket: Bucket, **params: Any) -> Request:
    return Request.from_params({"bucket": bucket.name, "prefix": bucket.prefix, "select": "all", **params})


def test_an_emptied_bucket_is_planned_as_everything(go: Callable[..., Verdict], bucket: Bucket) -> None:
    assert go(FIRST).passed

    def planned(**params: Any) -> int:
        return plan.make_plan(wish_of(bucket, **params), bucket, RunLayout("p"), streams=1, params={}).estimate.missing

    assert planned() == 0
    images = [entry.path for entry in bucket.list("files/")]
    bucket.write(images[0], b"")  # an empty object does not count
    bucket.delete(images[1:4])
    assert planned() == 4
    assert planned(groups=["p10"]) == 4 - sum(not path.startswith("files/p10/") for path in images[:4])
    bucket.delete(images)
    assert bucket.head(INDEX) is not None
    assert planned() == 60


def test_an_image_that_physionet_replaced_is_planned_though_it_is_there(
    tiny_dataset: Path, go: Callable[..., Verdict], bucket: Bucket
) -> None:
    assert go(FIRST).passed
    data = manifest.read(io.BytesIO(bucket.read(MANIFEST)))
    data.loc[manifest.images(data).index[0], "sha256"] = "0" * 64
    out = io.BytesIO()
    manifest.write(data, out, dataset=MIMIC_CXR_JPG, sums_sha256="0" * 64)
    bucket.write(MANIFEST, out.getvalue())
    made = plan.make_plan(wish_of(bucket), bucket, RunLayout("p"), streams=1, params={})
    assert made.estimate.missing == 1


def test_the_plan_lists_by_group_and_no_more_than_the_keys_need(go: Callable[..., Verdict], bucket: Bucket) -> None:
    assert go(FIRST).passed
    before = dict(bucket.requests)
    plan.make_plan(wish_of(bucket), bucket, RunLayout("p"), streams=1, params={})
    groups = {path.path.split("/")[1] for path in bucket.list("files/")}
    assert bucket.requests["LIST"] - before["LIST"] <= len(groups) + 4
    assert bucket.requests["HEAD"] - before["HEAD"] <= 2


def a_report(day: int, *, source: str = "physionet", size: int = 10**9) -> dict[str, Any]:
    return {
        "run": {"id": f"r{day}", "finished": f"2026-10-{day:02}T05:00:00Z"},
        "params": {"source": source, "connections": 8},
        "transfer": {"bytes": size, "seconds": 3600, "connections": 4},
    }


def days(reports: list[RunReport]) -> list[int]:
    return [int(report.run.id[1:]) for report in reports]


def test_audits_and_reruns_hide_no_report_from_the_estimate(bucket: Bucket) -> None:
    for day in range(1, 6):  # a backfill's run ids are those of the nights, so the newest run sorts first
        bucket.write_json(RunLayout(f"backfill__2025-01-{30 - day:02}", BACKFILL).report_json, a_report(day))
    for week in range(15):
        bucket.write_json(f"_mirror/runs/audit__scheduled__{week:02}/audit.json", {})
        bucket.write_json(RunLayout(f"scheduled__{week:02}", "mimic_cxr_audit").audit_json, {})
        bucket.write_json(RunLayout(f"x__{week:02}", "mimic_cxr_cleanup").root + "deleted.jsonl.gz", {})
        bucket.write_json(RunLayout(f"zz__dry{week:02}").plan, {"shards": []})
    assert days(plan.earlier_reports(bucket)) == [5, 4, 3, 2, 1]
    for day in range(6, 25):  # nights that only verified
        bucket.write_json(RunLayout(f"again__{day:02}").report_json, a_report(day, size=0))
    assert days(plan.earlier_reports(bucket))[-5:] == [5, 4, 3, 2, 1]
    for day in range(25, 29):
        bucket.write_json(RunLayout(f"copied__{day}").report_json, a_report(day, source="s3"))
    assert days(plan.earlier_reports(bucket, mode="copy")) == [28, 27, 26, 25]
    assert days(plan.earlier_reports(bucket, mode="download"))[-5:] == [5, 4, 3, 2, 1]


# -- a second try ------------------------------------------------------------------------------------------------------


def test_a_second_try_adds_to_the_report_and_overwrites_nothing(
    physionet: Lookalike, reader: tuple[str, str], bucket: Bucket
) -> None:
    source = PhysioNet(physionet.url, *reader, connections=4)
    fetch_metadata.fetch_metadata(source, bucket, MIMIC_CXR_JPG)
    wish = wish_of(bucket, shard_size=100)
    (shard,) = plan.make_plan(wish, bucket, FIRST, streams=1, params={}).shards
    mirror_shard.find_missing(shard, wish, bucket, FIRST)
    physionet.faults.add(Fault(Kind.STATUS, "*.jpg", share=0.05, status=404, attempts=None))
    with pytest.raises(ImagesFailed):
        mirror_shard.stream_shard(
            shard, wish, Download(source, MIMIC_CXR_JPG, bucket), bucket, FIRST, connections=4, stop=mirror_shard.Stop()
        )
    first = records.load(bucket, FIRST.result(0), records.ShardResult)
    assert first is not None
    assert first.failed
    physionet.faults.clear()
    source = PhysioNet(physionet.url, *reader, connections=4)
    mirror_shard.stream_shard(
        shard,
        wish,
        Download(source, MIMIC_CXR_JPG, bucket),
        bucket,
        FIRST,
        connections=4,
        stop=mirror_shard.Stop(),
        try_number=2,
    )
    _, report = verify.verify_run(wish, bucket, FIRST, params={}, started=datetime.now(UTC))
    assert report.transfer.images == 60
    assert report.transfer.bytes == sum(entry.size for entry in bucket.list("files/"))
    assert report.transfer.retries >= first.retries
    assert report.transfer.shards == {"done": 1}
    assert not report.failures
    both = records.load(bucket, FIRST.result(0), records.ShardResult)
    assert both is not None
    assert (both.todo, both.stored, both.try_number, both.started) == (60, 60, 2, first.started)
    assert sum(point[1] for point in both.series) == 60


# -- file lists and files that no image needs --------------------------------------------------------------------------


def test_a_file_list_never_quotes_what_is_no_dataset_path(go: Callable[..., Verdict], bucket: Bucket) -> None:
    assert go(FIRST).passed
    secret = "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG"
    for text in (
        f"[default]\n{secret}\n",
        f"{secret}\\x\n",
        f"/{secret}\n",
        f"../{secret}\n",
        f"{secret}\x07\n",
        f"files/p10/../{secret}\n",
        "0123456789abcdef" * 4 + "\n",
    ):
        bucket.write_text("list.txt", text)
        with pytest.raises(InputError) as error:
            plan.make_plan(
                wish_of(bucket),
                bucket,
                RunLayout("p"),
                streams=1,
                params={},
                file_list=plan.read_list(bucket, "list.txt"),
            )
        assert "file_list" in str(error.value)
        assert "line " in str(error.value)
        assert "wJalr" not in str(error.value)
        assert "0123456789abcdef" not in str(error.value)


def test_a_file_list_that_is_too_large_is_not_read(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_LARGEST_LIST", 100)
    bucket.write("list.txt", b"x" * 101)
    before = bucket.requests["GET"]
    with pytest.raises(InputError, match="at most 100 B"):
        plan.read_list(bucket, "list.txt")
    assert bucket.requests["GET"] == before


@pytest.fixture
def own_version(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, which a test may change."""
    version = tmp_path / "physionet" / MIMIC_CXR_JPG.name
    shutil.copytree(tiny_dataset / MIMIC_CXR_JPG.name, version)
    return version


def unlisted(version: Path) -> None:
    lines = (version / SUMS).read_text().splitlines(keepends=True)
    (version / SUMS).write_text("".join(line for line in lines if not line.endswith(" IMAGE_FILENAMES\n")))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda version: (version / "LICENSE.txt").write_text("another licence"), "LICENSE.txt"),
        (lambda version: (version / "IMAGE_FILENAMES").unlink(), "IMAGE_FILENAMES"),
        (unlisted, "IMAGE_FILENAMES"),
    ],
)
def test_a_file_that_no_image_needs_is_reported_and_stops_nothing(
    spoil: Callable[[Path], Any],
    named: str,
    own_version: Path,
    reader: tuple[str, str],
    bucket: Bucket,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil(own_version)
    login, password = reader
    with Lookalike(own_version.parents[1], users={login: User(password)}, check_seconds=0) as server:
        found = fetch_metadata.fetch_metadata(PhysioNet(server.url, login, password), bucket, MIMIC_CXR_JPG)
        assert named not in found.files
        assert any(named in note for note in found.notes)
        wish = wish_of(bucket, sample_size=4, select="sample")
        made = plan.make_plan(wish, bucket, FIRST, streams=1, params={})
        (shard,) = made.shards
        mirror_shard.find_missing(shard, wish, bucket, FIRST)
        source = PhysioNet(server.url, login, password, connections=4)
        mirror_shard.stream_shard(
            shard, wish, Download(source, MIMIC_CXR_JPG, bucket), bucket, FIRST, connections=4, stop=mirror_shard.Stop()
        )
        verdict, report = verify.verify_run(wish, bucket, FIRST, params={}, started=datetime.now(UTC))
    assert any(named in note for note in made.notes)
    assert verdict.passed
    assert any(named in note for note in report.notes)
    assert named in caplog.text
    assert json.loads(bucket.read(SUMS_SEEN))["notes"]


@pytest.mark.parametrize("role", ["records", "studies"])
@pytest.mark.parametrize("lost", ["unlisted", "gone"])
def test_where_the_tables_are_what_is_wanted_none_may_be_absent(
    role: str, lost: str, tiny_dataset: Path, tmp_path: Path, reader: tuple[str, str], bucket: Bucket
) -> None:
    version, table = tmp_path / "physionet" / MIMIC_CXR.name, MIMIC_CXR.tables[role]
    shutil.copytree(tiny_dataset / MIMIC_CXR.name, version)
    if lost == "gone":
        (version / table).unlink()
    else:
        lines = (version / SUMS).read_text().splitlines(keepends=True)
        (version / SUMS).write_text("".join(line for line in lines if table not in line))
    login, password = reader
    with (
        Lookalike(version.parents[1], users={login: User(password)}, check_seconds=0) as server,
        closing(PhysioNet(server.url, login, password)) as source,
        pytest.raises(MirrorError, match=re.escape(table)),
    ):
        fetch_metadata.fetch_metadata(source, bucket, MIMIC_CXR)
    assert list(bucket.list()) == []
