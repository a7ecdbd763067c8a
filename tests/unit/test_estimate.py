"""The plan: what a run will take, in words and in plan.json."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from physionet_mirror import estimate, records, words
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.mover import Mode
from physionet_mirror.records import Estimate, Plan, PlannedDataset, PlannedSelection, RunReport, Shard, ShardResult
from physionet_mirror.report.document import transfer
from physionet_mirror.request import STORAGE_CLASSES, Request

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def report(
    size: float = 3.6e9, seconds: float = 3600, used: float = 10, allowed: float = 10, asked: int = 10
) -> RunReport:
    moved = {
        "bytes": size,
        "seconds": seconds,
        "connections": used,
        "connections_allowed": allowed,
        "connection_seconds": used * seconds,
    }
    return RunReport.from_json({"transfer": moved, "params": {"connections": asked}})


def test_hours_are_the_range_that_users_report() -> None:
    expected = estimate.estimate(377_110, 1_624_000, 8)

    assert expected.hours == pytest.approx(377_110 * 1.624e6 / (8 * 650_000) / 3600)
    assert expected.hours_most == pytest.approx(377_110 * 1.624e6 / (8 * 44_000) / 3600)
    assert expected.time == "about 1.4 to 20 days"
    assert expected.basis == "0.044 to 0.65 MB/s a connection, as users report"


def test_hours_count_only_what_is_missing() -> None:
    expected = estimate.estimate(1000, 1_450_000, 8, missing=0)

    assert (expected.hours, expected.hours_most, expected.missing_bytes, expected.put_cost, expected.gigabytes) == (
        0,
        0,
        0,
        0,
        0,
    )
    assert expected.bytes == 1_450_000_000


def test_one_image_does_not_use_eight_connections() -> None:
    assert estimate.estimate(1, 650_000, 8).hours * 3600 == pytest.approx(1)


def test_hours_are_learned_from_earlier_runs() -> None:
    expected = estimate.estimate(1000, 1e6, 8, reports=[report(), report(size=7.2e9)])

    assert expected.hours * 3600 == pytest.approx(1e9 / (200_000 * 8))
    assert expected.hours_most * 3600 == pytest.approx(1e9 / (100_000 * 8))
    assert expected.basis == "0.1 to 0.2 MB/s a connection, as in the last 2 runs to this bucket"


def test_what_one_run_says_is_no_range() -> None:
    expected = estimate.estimate(377_110, 1e6, 8, reports=[report()])

    assert expected.hours == expected.hours_most
    assert expected.basis == "0.1 MB/s a connection, as in the last run to this bucket"


def task(after: float, seconds: int, connections: int, allowed: int) -> ShardResult:
    """A task of ``seconds`` at 0.65 MB/s a connection."""
    a_second = connections * 650_000
    return ShardResult(
        shard=0,
        state="done",
        started=(STARTED + timedelta(seconds=after)).isoformat(),
        seconds=seconds,
        stored=1000,
        bytes=seconds * a_second,
        allowed=allowed,
        series=[(float(n), 4, a_second, connections) for n in range(1, seconds + 1)],
    )


def a_run(*tasks: ShardResult, connections: int = 8) -> RunReport:
    """The report of a run with these tasks."""
    return RunReport(transfer=transfer(tasks), params={"connections": connections})


def test_a_pause_is_no_connection_time() -> None:
    for pause in (0, 3000, 100_000):
        speed = estimate.learn([a_run(task(0, 300, 8, 8), task(300 + pause, 300, 8, 8))])

        assert speed.bytes_per_second == pytest.approx(650_000, rel=0.001)
        assert speed.most_connections is None


def test_a_pause_is_no_connection_time_in_a_report_of_an_earlier_version() -> None:
    run = a_run(task(0, 300, 8, 8), task(3300, 300, 8, 8)).to_json()
    for name in ("connection_seconds", "connections_allowed"):
        del run["transfer"][name]

    assert estimate.learn([RunReport.from_json(run)]).bytes_per_second == pytest.approx(650_000, rel=0.01)


def test_one_remaining_shard_was_not_held_back() -> None:
    one = a_run(task(0, 300, 2, 2))
    expected = estimate.estimate(377_110, 1_624_000, 8, reports=[one])

    assert expected.hours == pytest.approx(estimate.estimate(377_110, 1_624_000, 8).hours, rel=0.001)


def test_all_shards_at_work_with_few_connections_were_held_back() -> None:
    held_back = a_run(*[task(0, 300, 1, 6)] * 4, connections=24)
    speed = estimate.learn([held_back])

    assert speed.most_connections == 4
    assert speed.basis.endswith("which reached 4 at once")
    assert (
        estimate.estimate(1000, 1e6, 24, reports=[held_back]).hours
        == estimate.estimate(1000, 1e6, 4, reports=[held_back]).hours
    )


def test_only_the_newest_five_runs_count() -> None:
    runs = [report()] * 5 + [report(size=9e12)]

    assert estimate.learn(runs).bytes_per_second == 100_000


@pytest.mark.parametrize(
    "useless",
    [
        {},
        {"transfer": None},
        report(seconds=5),
        report(size=0),
        report(used=0),
        {"transfer": {"bytes": "many"}},
        {"transfer": {"bytes": 9, "connections": 1, "series": [[1, "?"], None]}},
    ],
)
def test_a_run_that_fetched_next_to_nothing_teaches_nothing(useless: dict[str, object]) -> None:
    assert (
        estimate.learn([useless if isinstance(useless, RunReport) else RunReport.from_json(useless)])
        is estimate.FROM_FACTS
    )


def test_reading_all_back_is_part_of_the_estimate() -> None:
    checksum = estimate.estimate(377_110, 1_624_000, 8, storage_class="GLACIER_IR", missing=0)
    content = estimate.estimate(377_110, 1_624_000, 8, storage_class="GLACIER_IR", missing=0, verify="content")

    gb = 377_110 * 1_624_000 / 2**30
    assert (checksum.read_back, checksum.read_hours, checksum.read_cost, checksum.read_transfer_cost) == (0, 0, 0, 0)
    assert content.read_back == 377_110
    assert content.read_hours == pytest.approx(377_110 * 1_624_000 / 100e6 / 3600)
    assert content.read_cost == pytest.approx(377.11 * 0.01 + gb * 0.03)
    assert content.read_transfer_cost == pytest.approx(gb * 0.09)
    assert content.once_cost == pytest.approx(checksum.once_cost + content.read_cost)
    assert "reading it all back" not in checksum.table()
    assert "$20.88, and $51.33 for a worker outside AWS" in content.table()


def test_a_plan_of_an_earlier_version_is_understood() -> None:
    values = estimate.estimate(7, 1e6, 8).to_json()
    for name in ("hours_most", "read_back", "read_hours", "read_cost", "read_transfer_cost"):
        del values[name]

    assert Estimate.from_json(values).hours_most == values["hours"]


def test_costs_follow_region_and_class() -> None:
    expected = estimate.estimate(377_110, 1_624_000, 8, region="eu-central-1", storage_class="STANDARD_IA")

    gb = 377_110 * 1_624_000 / 2**30
    assert expected.monthly["STANDARD"] == pytest.approx(gb * 0.0245)
    assert expected.monthly_cost == pytest.approx(gb * 0.0135)
    assert expected.put_cost == pytest.approx(377.11 * 0.01)
    assert expected.monthly["INTELLIGENT_TIERING"] == pytest.approx(gb * 0.0245 + 377.11 * 0.0025)


def test_a_region_without_prices_is_shown_as_the_one_whose_prices_are_used() -> None:
    assert estimate.estimate(10, 1e6, 8, region="mars-north-1").region == "us-east-1"


# -- from the access point ---------------------------------------------------------------------------------------------

WHOLE = 377_110 * 1_624_000


@pytest.mark.parametrize(
    ("mode", "region", "in_aws", "cost", "says"),
    [
        ("download", "us-east-1", True, 0, ""),
        ("copy", "us-east-1", True, 0, "none: S3 copies inside the Region"),
        ("through", "us-east-1", True, 0, "none for a worker in us-east-1; $51.33 for a worker outside AWS"),
        ("through", None, True, 0, "none for a worker in us-east-1; $51.33 for a worker outside AWS"),
        ("through", "us-east-2", True, 0.01, "$5.70 to us-east-2; $51.33 for a worker outside AWS"),
        ("through", "eu-central-1", True, 0.02, "$11.41 to eu-central-1; $51.33 for a worker outside AWS"),
        ("through", "auto", False, 0.09, "$51.33 to the internet"),
    ],
)
def test_what_leaves_the_access_points_region_has_its_price(
    mode: Mode, region: str | None, in_aws: bool, cost: float, says: str
) -> None:
    expected = estimate.estimate(377_110, 1_624_000, 256, mode=mode, region=region, in_aws=in_aws)

    assert expected.transfer_cost == pytest.approx(cost * WHOLE / 2**30)
    assert expected.transfer == says
    rows = [line.split("  ") for line in expected.table().splitlines() if line.startswith("out of us-east-1, once")]
    assert [row[-1] for row in rows] == ([says] if says else [])
    assert all(words.money(expected.transfer_cost) in [cell.strip() for cell in row] for row in rows)
    assert Estimate.from_json(json.loads(json.dumps(expected.to_json()))) == expected


def test_only_what_is_fetched_leaves_the_region() -> None:
    expected = estimate.estimate(1000, 1e6, 64, missing=0, mode="through", region="eu-west-1", exact=(10**9, 0))

    assert (expected.transfer_cost, expected.transfer_outside) == (0, 0)


def test_what_a_sample_says_is_a_range_and_not_as_listed() -> None:
    request = Request.from_params({"bucket": "lab-bucket", "project": "mimiciv/3.1"})
    of_a_sample = estimate.estimate_run(
        request, 1000, 900, 1e6, streams=4, exact=(10**9, 9 * 10**8), between=(8 * 10**8, 10**9), listed=False
    )
    assert (of_a_sample.exact, of_a_sample.size_range) == (False, "800 MB to 1 GB")
    assert of_a_sample.gigabytes == 1.0


def test_sizes_that_were_listed_are_exact_to_the_byte() -> None:
    listed = estimate.estimate(3, 1e6, 64, missing=2, mode="copy", verify="content", exact=(1_234_567, 234_567))

    assert (listed.bytes, listed.missing_bytes) == (1_234_567, 234_567)
    assert listed.size_range == "235 kB, 234,567 bytes as listed"
    assert listed.read_transfer_cost == pytest.approx(1_234_567 / 2**30 * 0.09)
    assert estimate.estimate(3, 1e6, 8).size_range == "3 MB"


@pytest.mark.parametrize(
    ("mode", "connections", "at_once", "says"),
    [
        ("download", 8, 8, "8 connections, 0.044"),
        ("download", 64, 64, "64 connections, 0.044"),
        ("copy", 8, 256, "256 copies under way, 0.3 s a copy"),
        ("copy", 64, 1600, "1,600 copies under way, 0.3 s a copy"),
        ("through", 8, 128, "128 reads under way, 100 MB/s through the worker"),
        ("through", 64, 1024, "1,024 reads under way, 100 MB/s through the worker"),
    ],
)
def test_files_under_way_are_those_that_the_streams_allow(
    mode: Mode, connections: int, at_once: int, says: str
) -> None:
    wish = Request.from_params({"bucket": "b-1", "connections": connections})
    expected = estimate.estimate_run(wish, 377_110, 377_110, 1_624_000, mode=mode, streams=4)

    assert expected.connections == at_once
    assert expected.speed.startswith(says)
    if mode == "copy":
        assert expected.hours * 3600 == pytest.approx(377_110 * 0.3 / at_once)
    if mode == "through":
        assert expected.hours * 3600 == pytest.approx(WHOLE / 100e6)


def test_runs_by_one_way_say_nothing_of_another() -> None:
    def by(mode: str, size: float) -> RunReport:
        values = report(size=size, used=256, allowed=256).to_json()
        return RunReport.from_json({**values, "params": {"connections": 8}, "way": {"mode": mode}})

    runs = [by("copy", 256 * 3600 * 5e6), by("through", 256 * 3600 * 1e6)]
    assert estimate.learn(runs) is estimate.FROM_FACTS
    assert estimate.learn(runs, mode="copy").basis == "5 MB/s a copy, as in the last run to this bucket"
    assert estimate.learn(runs, mode="through").basis == "1 MB/s a read, as in the last run to this bucket"


def test_a_run_whose_copies_s3_slowed_down_is_planned_with_as_many() -> None:
    slowed = report(used=100, allowed=256).to_json()
    run = RunReport.from_json({**slowed, "params": {"connections": 8}, "way": {"mode": "copy"}})

    assert estimate.learn([run], mode="copy").most_connections == 100


def test_requests_are_priced_by_kind() -> None:
    cost = estimate.request_cost({"LIST": 1000, "HEAD": 1000, "PUT": 1000, "DELETE": 1000}, "us-east-1", "STANDARD_IA")

    assert cost == pytest.approx(0.005 + 0.001 + 0.01)


def test_a_store_without_sha256_reads_back_what_is_fetched() -> None:
    plain, without = (estimate.estimate(100, 1e6, 8, missing=30, reads_back=reads_back) for reads_back in (False, True))
    assert (plain.read_back, without.read_back) == (0, 30)
    assert without.read_hours == pytest.approx(30e6 / records.READ_BACK_BYTES_PER_SECOND / 3600)
    assert estimate.estimate(100, 1e6, 8, missing=30, reads_back=True, verify="count").read_back == 0
    assert estimate.estimate(100, 1e6, 8, missing=30, reads_back=True, verify="content").read_back == 100


def test_the_table_reads_as_text() -> None:
    text = estimate.estimate(377_110, 1_624_000, 8, missing=300_000).table(shards=400)

    lines = text.splitlines()
    assert lines[0].split() == ["images", "selected", "377,110", "612", "GB"]
    assert "about 1.1 to 16 days" in text
    assert "$13.12  chosen" in text
    assert lines[-1].startswith("Prices: S3 list prices of us-east-1, 20")
    assert all(len(line) <= 120 for line in lines)


def test_the_document_is_json_and_holds_what_was_asked() -> None:
    shards = [Shard(0, 7, "files/p10/a", "files/p11/b", "_mirror/runs/r/shards/0000.sha256", 9)]
    expected = estimate.estimate(7, 1e6, 8)
    plan = Plan(
        run_id="r",
        dag_id="mimic_cxr_jpg",
        request={"bucket": "b", "sample_size": 7},
        dataset=PlannedDataset(MIMIC_CXR_JPG.name, MIMIC_CXR_JPG.title, "ab" * 32, 377_110),
        selection=PlannedSelection(9, 7, ["a note"]),
        shards=shards,
        estimate=expected,
    )

    document = json.loads(json.dumps(plan.to_json()))

    assert document["request"]["sample_size"] == 7
    assert document["dataset"]["name"] == "mimic-cxr-jpg/2.1.0"
    assert document["selection"] == {"matched": 9, "images": 7, "notes": ["a note"]}
    assert Shard.from_json(document["shards"][0]) == shards[0]
    assert Plan.from_json(document).estimate == expected


README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("storage_class", STORAGE_CLASSES)
def test_the_readme_says_what_the_plan_says(storage_class: str) -> None:
    expected = estimate.estimate(377_110, MIMIC_CXR_JPG.image_bytes, 8, storage_class=storage_class, verify="content")

    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{storage_class}` |")]
    _, _, monthly, storing, reading, _ = (cell.strip() for cell in row.split("|"))
    assert monthly.partition(",")[0] == words.money(expected.monthly_cost)
    assert storing == words.money(expected.put_cost)
    assert reading in (words.money(expected.read_cost), "only once it is restored")
    assert f"costs ${expected.read_transfer_cost:.0f} of transfer" in README
    assert words.size(expected.bytes) in README
