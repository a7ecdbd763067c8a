"""Counters add up to the tally, gauges end at zero, and a metric that cannot be sent does not affect the transfer."""

from __future__ import annotations

from collections import Counter

import pytest

from physionet_airflow import compat, metrics
from physionet_mirror.errors import BucketUnsafe, CredentialsRefused, Throttled
from physionet_mirror.records import ShardResult


class Recorder:
    def __init__(self):
        self.counters, self.gauges, self.times = Counter(), {}, []

    def incr(self, stat, count=1, *, tags=None):
        self.counters[(stat, (tags or {}).get("reason"))] += count

    def gauge(self, stat, value, *, tags=None):
        self.gauges[(stat, tags["shard"])] = value

    def timing(self, stat, dt, **_):
        self.times.append((stat, dt))


@pytest.fixture
def send_to(monkeypatch):
    """A function that replaces the factory of Airflow's stats logger."""
    if compat.AIRFLOW < (3, 3):
        yield lambda factory: monkeypatch.setattr(compat, "stats", factory)
        return
    from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
    from airflow.sdk.observability import stats

    yield lambda factory: stats.initialize(factory=factory, export_legacy_names=False)
    stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


@pytest.fixture
def sent(send_to):
    recorder = Recorder()
    send_to(lambda: recorder)
    return recorder


def tally(stored, *, state="running", failed=(), faults=None, retries=0, connections=4):
    return ShardResult.from_json(
        {
            "shard": 3,
            "state": state,
            "todo": 10,
            "stored": stored,
            "bytes": stored * 1000,
            "retries": retries,
            "connections": connections,
            "failed": [{"path": "p", "reason": reason, "detail": ""} for reason in failed],
            "faults": faults or {},
        }
    )


def test_counters_add_up_over_the_calls(sent):
    shard = metrics.ShardMetrics(3)
    shard.publish(tally(2, faults={"throttled": 1}))
    shard.publish(tally(2, faults={"throttled": 1}))
    shard.publish(
        tally(8, state="failed", failed=["not found", "not found", "corrupt"], faults={"throttled": 3}, retries=5)
    )
    assert sent.counters == {
        ("physionet.images_stored", None): 8,
        ("physionet.bytes_stored", None): 8000,
        ("physionet.retries", None): 5,
        ("physionet.images_failed", "not_found"): 2,
        ("physionet.images_failed", "corrupt"): 1,
        ("physionet.faults", "throttled"): 3,
    }


def test_gauges_are_of_the_shard_and_end_at_zero(sent):
    shard = metrics.ShardMetrics(3)
    shard.publish(tally(4, failed=["corrupt"]))
    assert sent.gauges == {("physionet.connections", "3"): 4, ("physionet.images_left", "3"): 5}
    shard.publish(tally(9, state="drained", failed=["corrupt"]))
    assert set(sent.gauges.values()) == {0}


def test_the_time_of_an_image_is_in_milliseconds(sent):
    metrics.ShardMetrics(0).image(2.5)
    assert sent.times == [("physionet.image_seconds", 2500.0)]


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (CredentialsRefused("no"), "credentials_refused"),
        (BucketUnsafe("open"), "bucket_unsafe"),
        (Throttled("slow"), None),
    ],
)
def test_only_refusals_are_counted_as_such(sent, error, counted):
    metrics.count_refusal(error)
    assert sent.counters == ({("physionet.refused", counted): 1} if counted else {})


def test_a_broken_backend_is_no_reason_to_stop(send_to):
    def broken():
        raise RuntimeError("no route to StatsD")

    send_to(broken)
    metrics.ShardMetrics(0).publish(tally(1))
    metrics.ShardMetrics(0).image(1.0)


@pytest.mark.parametrize("kind", ["incr", "gauge", "timing"])
def test_this_airflow_takes_each_kind_of_figure(kind):
    getattr(compat.stats(), kind)("physionet.test", 1, tags={"reason": "test"})
