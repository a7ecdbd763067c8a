"""What a person is asked before a large plan begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from physionet_airflow.operators import _question
from physionet_mirror import estimate
from tests.conftest import AirflowHome


def asked(**options: Any) -> str:
    expected = estimate.estimate(377_110, 1_624_000, 8, **options)
    return _question({"shards": 400, "uri": "s3://bucket/plan.json"}, expected, 50.0)


def test_hours_are_a_range_and_name_what_it_rests_on() -> None:
    assert (
        "| Time | about 1.4 to 20 days (8 connections, 0.044 to 0.65 MB/s a connection, as users report) |" in asked()
    )


def test_reading_all_back_is_said_with_its_hours_and_dollars() -> None:
    assert "Reading it all back" not in asked()

    question = asked(verify="content", storage_class="GLACIER_IR")
    assert "| Reading it all back | about 1.7 h at 100 MB/s, $20.88, and $51.33 for a worker outside AWS |" in question
    assert "| S3 requests, once | $32.20 |" in question


def test_the_website_leaves_no_region() -> None:
    assert "| From | PhysioNet's website |" in asked()
    assert "us-east-1" not in asked()


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (
            {"mode": "copy"},
            [
                "| From | PhysioNet's access point, copied inside S3 |",
                "(256 copies under way, ",
                "| Transfer out of us-east-1, once | none: S3 copies inside the Region |",
            ],
        ),
        (
            {"mode": "through", "region": "eu-west-1"},
            [
                "| From | PhysioNet's access point, through the worker |",
                "(256 reads under way, ",
                "| Transfer out of us-east-1, once | $11.41 to eu-west-1; $51.33 for a worker outside AWS |",
            ],
        ),
    ],
)
def test_the_access_point_is_named_with_what_it_costs(options: dict[str, Any], rows: list[str]) -> None:
    expected = estimate.estimate(377_110, 1_624_000, 256, exact=(612_426_640_123, 612_426_640_123), **options)
    question = _question({"shards": 38, "uri": "s3://bucket/plan.json"}, expected, 50.0)
    for row in [*rows, "| To be fetched | 377,110 (612 GB, 612,426,640,123 bytes as listed) |", "of 2025-10"]:
        assert row in question
    assert "connections" not in question


ASKS = """
from datetime import timedelta

from airflow.sdk import DAG, BaseOperator

from physionet_airflow.operators import ApproveLargePlanOperator


class Ask(ApproveLargePlanOperator):
    def question(self, context):
        return "Shall I?"


class Never(BaseOperator):
    def execute(self, context):
        print("it went on")


with DAG("asks"):
    Ask(task_id="approve", response_timeout=timedelta(seconds=1)) >> Never(task_id="never")
"""


def test_dags_test_says_that_it_cannot_approve_and_does_not_wait_for_ever(
    airflow_home: AirflowHome, tmp_path: Path
) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "asks.py").write_text(ASKS)
    done = airflow_home.run("dags", "test", "asks", AIRFLOW__CORE__DAGS_FOLDER=str(dags), timeout=60)
    said = " ".join(done.stdout.split())
    assert "This run asks for an approval, and `airflow dags test` cannot give it." in said
    assert "within 0:00:01 under Required Actions" in said
    assert "Or start it again with approve_above_gb=0, which asks nobody." in said
    assert "Nobody answered within 0:00:01, so nothing was done after the question." in said
    assert done.returncode != 0
    assert "it went on" not in said
