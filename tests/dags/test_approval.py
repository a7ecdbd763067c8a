"""What a person is asked before a large plan begins."""

from __future__ import annotations

from physionet_airflow.operators import _question
from physionet_mirror import estimate


def asked(**options: str) -> str:
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
