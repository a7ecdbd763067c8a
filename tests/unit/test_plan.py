"""The plan: what a run will take, in words and in plan.json."""

import json

import pytest

from include.physionet_mirror import plan
from include.physionet_mirror.dataset import MIMIC_CXR_JPG
from include.physionet_mirror.shards import Shard


def report(size: float = 3.6e9, seconds: float = 3600, used: float = 10, allowed: int = 10) -> dict[str, object]:
    transfer = {"bytes": size, "seconds": seconds, "connections": used}
    return {"transfer": transfer, "params": {"connections": allowed}}


def test_hours_come_from_what_users_report() -> None:
    estimate = plan.estimate(377_110, 1_450_000, 8)

    assert estimate.hours == pytest.approx(377_110 * 1.45e6 / (8 * 650_000) / 3600)
    assert "as users of PhysioNet report" in estimate.basis


def test_hours_count_only_what_is_missing() -> None:
    estimate = plan.estimate(1000, 1_450_000, 8, missing=0)

    assert (estimate.hours, estimate.missing_bytes, estimate.put_cost, estimate.gigabytes) == (0, 0, 0, 0)
    assert estimate.bytes == 1_450_000_000


def test_one_image_does_not_use_eight_connections() -> None:
    assert plan.estimate(1, 650_000, 8).hours * 3600 == pytest.approx(1)


def test_hours_are_learned_from_earlier_runs() -> None:
    estimate = plan.estimate(1000, 1e6, 8, reports=[report(), report(size=7.2e9)])

    assert estimate.hours * 3600 == pytest.approx(1e9 / (150_000 * 8))
    assert "as in the last 2 runs" in estimate.basis


def test_more_connections_than_physionet_gave_do_not_help() -> None:
    held_back = report(size=9.36e9, used=4, allowed=24)

    assert plan.estimate(1000, 1e6, 24, reports=[held_back]).hours == plan.estimate(1000, 1e6, 4).hours


def test_only_the_newest_five_runs_count() -> None:
    runs = [report()] * 5 + [report(size=9e12)]

    assert plan.learn(runs).bytes_per_second == 100_000


@pytest.mark.parametrize(
    "useless",
    [{}, {"transfer": None}, report(seconds=5), report(size=0), report(used=0), {"transfer": {"bytes": "many"}}],
)
def test_a_run_that_fetched_next_to_nothing_teaches_nothing(useless: dict[str, object]) -> None:
    assert plan.learn([useless]) is plan.FROM_FACTS


def test_costs_follow_region_and_class() -> None:
    estimate = plan.estimate(377_110, 1_450_000, 8, region="eu-central-1", storage_class="STANDARD_IA")

    gb = 377_110 * 1_450_000 / 2**30
    assert estimate.monthly["STANDARD"] == pytest.approx(gb * 0.0245)
    assert estimate.monthly_cost == pytest.approx(gb * 0.0135)
    assert estimate.put_cost == pytest.approx(377.11 * 0.01)
    assert estimate.monthly["INTELLIGENT_TIERING"] == pytest.approx(gb * 0.0245 + 377.11 * 0.0025)


def test_a_region_without_prices_is_shown_as_the_one_whose_prices_are_used() -> None:
    assert plan.estimate(10, 1e6, 8, region="mars-north-1").region == "us-east-1"


def test_requests_are_priced_by_kind() -> None:
    cost = plan.request_cost({"LIST": 1000, "HEAD": 1000, "PUT": 1000, "DELETE": 1000}, "us-east-1", "STANDARD_IA")

    assert cost == pytest.approx(0.005 + 0.001 + 0.01)


def test_the_table_reads_as_text() -> None:
    text = plan.estimate(377_110, 1_450_000, 8, missing=300_000).table(shards=400)

    lines = text.splitlines()
    assert lines[0].split() == ["images", "selected", "377,110", "547", "GB"]
    assert "about 23.2 h" in text
    assert "$11.71  chosen" in text
    assert lines[-1].startswith("Prices: S3 list prices of us-east-1, 20")
    assert all(len(line) <= 120 for line in lines)


def test_the_document_is_json_and_holds_what_was_asked() -> None:
    shards = [Shard(0, 7, "files/p10/a", "files/p11/b", "_mirror/runs/r/shards/0000.sha256", 9)]
    estimate = plan.estimate(7, 1e6, 8)

    document = json.loads(
        json.dumps(
            plan.document(
                run_id="r",
                request={"bucket": "b", "sample_size": 7},
                dataset=MIMIC_CXR_JPG,
                sums_sha256="ab" * 32,
                manifest_images=377_110,
                matched=9,
                shards=shards,
                estimate=estimate,
                notes=["a note"],
            )
        )
    )

    assert document["request"]["sample_size"] == 7
    assert document["dataset"]["name"] == "mimic-cxr-jpg/2.1.0"
    assert document["selection"] == {"matched": 9, "images": 7, "notes": ["a note"]}
    assert Shard.from_dict(document["shards"][0]) == shards[0]
    assert plan.Estimate.from_dict(document["estimate"]) == estimate
