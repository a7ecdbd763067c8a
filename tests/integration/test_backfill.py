"""Night by night, without Airflow: plan a part, stream it, verify it, as the tasks of one data interval do."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from demo import stack
from demo.lookalike import Fault, Kind, Lookalike
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import ImagesFailed, VerificationFailed
from physionet_mirror.estimate import FROM_FACTS
from physionet_mirror.layout import LEFT, RunLayout
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.access_point import COPIES_A_CONNECTION
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.source.way import Way
from physionet_mirror.steps import fetch_metadata, mirror_shard, plan, verify
from physionet_mirror.verification import Verdict

PARTS = 5
LATER = timedelta(hours=9)


@dataclass
class Night:
    """The outcome of one run."""

    verdict: Verdict
    report: dict[str, Any]
    planned: plan.Plan
    errors: list[Exception]

    @property
    def stored(self) -> int:
        return int(self.report.transfer.images)


@pytest.fixture
def bucket(
    boto_session: boto3.Session,
    s3_server: stack.S3Server,
    bucket_name: str,
    physionet: Lookalike,
    reader: tuple[str, str],
) -> Bucket:
    """A bucket with the tables and the manifest."""
    found = Bucket.open(boto_session, bucket_name, MIMIC_CXR_JPG.name, endpoint_url=s3_server.endpoint)
    with PhysioNetOf(physionet, reader) as source:
        fetch_metadata.fetch_metadata(source, found, MIMIC_CXR_JPG)
    return found


class PhysioNetOf:
    """A client, closed at the end of the block."""

    def __init__(self, server: Lookalike, reader: tuple[str, str]) -> None:
        self.client = PhysioNet(server.url, *reader, connections=4)

    def __enter__(self) -> PhysioNet:
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()


@pytest.fixture
def night(physionet: Lookalike, reader: tuple[str, str], bucket: Bucket) -> Callable[..., Night]:
    """Runs the steps of the DAG's tasks over one part."""

    def run(part: int, run_id: str | None = None, *, started: datetime | None = None, **params: Any) -> Night:
        given = {"bucket": bucket.name, "prefix": bucket.prefix, "select": "all", "slices": PARTS, "shard_size": 4}
        given |= params
        wish = Request.from_params(given)
        layout = RunLayout(run_id or f"scheduled__2025-01-{part + 1:02d}T02:00:00")
        began = started or datetime.now(UTC)
        planned = plan.make_plan(wish, bucket, layout, streams=2, params=given, part=part)
        errors: list[Exception] = []
        for shard in planned.shards:
            if not mirror_shard.find_missing(shard, wish, bucket, layout).images:
                continue
            try:
                mirror_shard.stream_shard(
                    shard,
                    wish,
                    Download(PhysioNet(physionet.url, *reader, connections=4), wish.dataset, bucket),
                    bucket,
                    layout,
                    connections=4,
                    stop=mirror_shard.Stop(),
                    stops_at=wish.stops_at(began),
                )
            except ImagesFailed as error:
                errors.append(error)
        verdict, report = verify.verify_run(wish, bucket, layout, params=given, started=began)
        return Night(verdict, report, planned, errors)

    return run


@pytest.fixture
def published(tiny_dataset: Path) -> dict[str, bytes]:
    """The dataset's images by path, in byte order."""
    version = tiny_dataset / MIMIC_CXR_JPG.name
    found = {str(file.relative_to(version)): file.read_bytes() for file in version.glob("files/**/*.jpg")}
    return dict(sorted(found.items()))


def there(bucket: Bucket) -> list[str]:
    return [entry.path for entry in bucket.list("files/")]


def fetched(physionet: Lookalike) -> list[str]:
    return [seen.path for seen in physionet.counters.seen if seen.method == "GET" and seen.path.endswith(".jpg")]


def left(bucket: Bucket) -> list[str]:
    return [image.path for image in plan.read_left(bucket)]


def test_the_nights_fill_everything_in_any_order_and_fetch_nothing_twice(
    night: Callable[..., Night], bucket: Bucket, physionet: Lookalike, published: dict[str, bytes]
) -> None:
    physionet.counters.reset()
    for part in (3, 0, 4, 1, 2):
        assert night(part).verdict.passed
    assert there(bucket) == list(published)
    assert all(bucket.read(path) == data for path, data in published.items())
    assert len(fetched(physionet)) == len(published)

    physionet.counters.reset()
    again = night(3)
    assert again.verdict.passed
    assert (again.stored, again.verdict.selected) == (0, len(published) // PARTS)
    assert physionet.counters.requests == 0


def test_a_later_turn_is_a_verification_and_a_repair(
    night: Callable[..., Night], bucket: Bucket, physionet: Lookalike, published: dict[str, bytes]
) -> None:
    assert night(1).verdict.passed
    lost, damaged, *_ = there(bucket)
    bucket.delete([lost])
    bucket.write(damaged, b"not what it was", content_type="image/jpeg")
    physionet.counters.reset()
    turn = night(1, "scheduled__2025-01-07T02:00:00")
    assert turn.verdict.passed
    assert sorted(path.removeprefix(f"{MIMIC_CXR_JPG.name}/") for path in fetched(physionet)) == [lost, damaged]
    assert bucket.read(damaged) == published[damaged]


def test_when_the_time_is_up_the_rest_is_left_and_the_next_night_takes_it_along(
    night: Callable[..., Night], bucket: Bucket, physionet: Lookalike, published: dict[str, bytes]
) -> None:
    mine = list(published)[:12]
    first = night(0, started=datetime.now(UTC) - LATER, stop_after="8")
    assert first.verdict.passed
    assert first.errors == []
    assert (first.verdict.postponed, left(bucket), there(bucket)) == (mine, mine, [])
    assert any(note.startswith("To be continued") for note in first.report.notes)
    assert first.report.result.passed

    second = night(1)
    assert second.verdict.passed
    assert second.verdict.selected == 24
    assert "and 12 that an earlier run left over" in " ".join(second.planned.notes)
    assert there(bucket) == list(published)[:24]
    assert bucket.head(LEFT) is None


def test_images_under_way_are_finished_when_the_time_is_up(
    night: Callable[..., Night], bucket: Bucket, physionet: Lookalike, published: dict[str, bytes]
) -> None:
    # Its first image stalls until well after the time is up; images under way are then finished, and none is begun.
    physionet.faults.add(Fault(Kind.STALL, paths="*.jpg", seconds=3, attempts=1))
    hours = 1.5 / 3600
    drained = night(0, stop_after=f"{hours:.6f}", shard_size=12)
    assert drained.verdict.passed
    stored = there(bucket)
    assert 0 < len(stored) < 12
    assert len(stored) == drained.stored
    assert all(bucket.read(path) == published[path] for path in stored)
    assert sorted(stored + drained.verdict.postponed) == list(published)[:12]
    assert left(bucket) == drained.verdict.postponed

    physionet.faults.clear()
    assert night(1).verdict.passed
    assert there(bucket) == list(published)[:24]


def test_what_is_left_over_stays_on_the_list_until_it_is_there(
    night: Callable[..., Night], bucket: Bucket, published: dict[str, bytes]
) -> None:
    over = datetime.now(UTC) - LATER
    assert night(2, started=over, stop_after="8").verdict.passed
    assert night(3, started=over, stop_after="8").verdict.passed
    assert left(bucket) == list(published)[24:48]
    filtered = night(0, groups=["p10"])  # selects other images, so the list stays as it is
    assert filtered.verdict.passed
    remaining = left(bucket)
    assert set(remaining) <= set(list(published)[24:48])
    assert night(4).verdict.passed
    assert left(bucket) == []
    assert set(list(published)[24:]) <= set(there(bucket))


def test_a_failure_in_a_drained_night_is_still_red_and_the_rest_is_left(
    night: Callable[..., Night], bucket: Bucket, physionet: Lookalike, published: dict[str, bytes]
) -> None:
    bad, *others = list(published)[:12]
    physionet.faults.add(Fault(Kind.STATUS, paths=f"*{bad}", status=404, attempts=None))
    whole = night(0, "scheduled__drained", shard_size=12)
    assert [type(error) for error in whole.errors] == [ImagesFailed]
    assert [problem.path for problem in whole.verdict.problems] == [bad]
    # As if the time had been up four images earlier.
    result = RunLayout("scheduled__drained").result(0)
    bucket.write_json(result, json.loads(bucket.read(result)) | {"stored": 7})
    bucket.delete(others[7:])
    params = {"bucket": bucket.name, "prefix": bucket.prefix, "slices": PARTS, "stop_after": "8"}
    verdict, report = verify.verify_run(
        Request.from_params(params),
        bucket,
        RunLayout("scheduled__drained"),
        params=params,
        started=datetime.now(UTC) - LATER,
    )
    assert [problem.path for problem in verdict.problems] == [bad]
    assert report.failures[0].reason == "not found"
    assert verdict.postponed == left(bucket) == others[7:]
    with pytest.raises(VerificationFailed, match="1 of 8 selected"):
        verdict.raise_if_failed()


def test_a_shard_that_was_killed_before_its_time_was_up_is_no_success(
    night: Callable[..., Night], bucket: Bucket, published: dict[str, bytes]
) -> None:
    over = datetime.now(UTC) - LATER
    night(0, "scheduled__killed", started=over, stop_after="8")
    wish = Request.from_params({"bucket": bucket.name, "prefix": bucket.prefix, "slices": PARTS, "stop_after": "8"})
    verdict, _ = verify.verify_run(wish, bucket, RunLayout("scheduled__killed"), params={}, started=datetime.now(UTC))
    assert verdict.missing == 12
    assert not verdict.passed


def test_only_nights_postpone(night: Callable[..., Night], bucket: Bucket) -> None:
    over = datetime.now(UTC) - LATER
    whole = night(0, "manual__2025", started=over, stop_after="8", slices=None)
    assert not whole.verdict.passed
    assert whole.verdict.missing == 60
    assert bucket.head(LEFT) is None


def test_another_attempt_of_a_night_forgets_what_the_first_one_said_of_its_shards(
    night: Callable[..., Night], bucket: Bucket
) -> None:
    over = datetime.now(UTC) - LATER
    first = night(0, "scheduled__again", started=over, stop_after="8", shard_size=2)
    second = night(0, "scheduled__again", shard_size=6)
    assert (len(first.planned.shards), len(second.planned.shards)) == (6, 2)
    assert second.verdict.passed
    assert len(list(bucket.list(RunLayout("scheduled__again").results))) == 2
    third = night(0, "scheduled__again")
    assert (third.verdict.passed, third.stored) == (True, 0)


def test_two_nights_at_once_lose_nothing(
    night: Callable[..., Night], bucket: Bucket, published: dict[str, bytes]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(night, (1, 2)))
    assert all(one.verdict.passed for one in both)
    assert there(bucket) == list(published)[12:36]
    assert all(bucket.read(path) == published[path] for path in there(bucket))


def test_a_part_without_images_is_green(night: Callable[..., Night], bucket: Bucket) -> None:
    empty = night(0, slices=61)  # 60 images: the first part has none
    assert empty.planned.shards == []
    assert empty.verdict.passed
    assert empty.report.result.selected == 0
    assert "part 1 of 61: 0 of 60 images" in empty.planned.notes


def run_report(source: str, megabytes: float, connections: float) -> dict[str, Any]:
    transfer = {
        "bytes": megabytes * 1e6,
        "seconds": 100,
        "connections": connections,
        "connections_allowed": connections,
        "connection_seconds": 100 * connections,
    }
    return {"params": {"source": source, "connections": 8}, "transfer": transfer}


def test_estimates_learn_from_earlier_runs_of_the_same_source(night: Callable[..., Night], bucket: Bucket) -> None:
    assert night(0).planned.estimate.basis == FROM_FACTS.basis
    bucket.write_json(RunLayout("scheduled__2025-02-01T02:00:00").report_json, run_report("physionet", 1600, 8))
    bucket.write_json(RunLayout("scheduled__2025-02-02T02:00:00").report_json, run_report("s3", 64_000, 64))
    learned = night(1).planned.estimate
    assert learned.basis == "2 MB/s a connection, as in the last run to this bucket"
    assert learned.hours == pytest.approx(learned.missing_bytes / (2e6 * 8) / 3600)

    wish = Request.from_params({"bucket": bucket.name, "prefix": bucket.prefix, "select": "all", "source": "s3"})
    copied = plan.make_plan(wish, bucket, RunLayout("manual__s3"), streams=2, params={}, way=Way("copy")).estimate
    assert copied.basis == "10 MB/s a copy, as in the last run to this bucket"
    assert copied.connections == 8 * COPIES_A_CONNECTION


def test_a_shard_says_how_many_connections_it_was_allowed(night: Callable[..., Night], bucket: Bucket) -> None:
    """Otherwise, a run with one last shard would look as if PhysioNet had held it back."""
    night(0, "one")
    results = [json.loads(bucket.read(entry.path)) for entry in bucket.list(RunLayout("one").results)]
    assert {result["allowed"] for result in results} == {4}


def test_a_copy_inside_s3_is_not_estimated_at_the_pace_of_the_web_server(bucket: Bucket) -> None:
    wish = Request.from_params({"bucket": bucket.name, "prefix": bucket.prefix, "select": "all", "source": "s3"})
    estimate = plan.make_plan(wish, bucket, RunLayout("manual__s3"), streams=2, params={}, way=Way("copy")).estimate
    assert "a copy" in estimate.basis
    # 60 copies, all at once, of 0.3 s each.
    assert estimate.hours * 3600 == pytest.approx(0.3)
