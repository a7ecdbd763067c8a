"""Metrics for operators, sent through Airflow's own stats: StatsD, DogStatsD or OpenTelemetry, as configured.

    physionet.images_stored      counter     images that were fetched, verified and stored
    physionet.bytes_stored       counter     their bytes
    physionet.images_failed      counter     images given up, by `reason` (not found, corrupt, …)
    physionet.retries            counter     tries that had to be repeated
    physionet.faults             counter     faults during the transfer, by `reason` (throttled, stalled, …)
    physionet.refused            counter     credentials, agreement or bucket refused, by `reason`
    physionet.image_seconds      timer       one image, from the first request to S3's answer
    physionet.connections        gauge       connections to the website, or copies or reads from the access point, that a
                                             shard's task has under way, by `shard`
    physionet.images_left        gauge       images that a shard's task has still to store, by `shard`

Names carry the prefix of Airflow's configuration (``airflow.`` by default). With plain StatsD, labels need
``[metrics] statsd_influxdb_enabled``. docs/monitoring.md has dashboards and alerts. Nothing here fails a task.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from physionet_mirror.errors import MirrorError

if TYPE_CHECKING:
    from physionet_mirror.records import ShardResult

log = logging.getLogger(__name__)

_COUNTERS = {"stored": "images_stored", "bytes": "bytes_stored", "retries": "retries"}


class ShardMetrics:
    """Turns a shard's tally, as it grows, into counters and gauges.

    Args:
        shard: The shard's number.
    """

    def __init__(self, shard: int) -> None:
        self._tags = {"shard": str(shard)}
        self._sent: dict[str, int] = {}

    def publish(self, now: ShardResult) -> None:
        """Send what this try has added since the last call."""
        for key, name in _COUNTERS.items():
            self._add(name, getattr(now, key))
        for reason, count in Counter(failure.reason for failure in now.failed).items():
            self._add("images_failed", count, reason)
        for reason, count in now.faults.items():
            self._add("faults", count, reason)
        running = now.state == "running"
        left = now.todo - now.stored - len(now.failed)
        _send("gauge", "connections", now.connections if running else 0, tags=self._tags)
        _send("gauge", "images_left", left if running else 0, tags=self._tags)

    def image(self, seconds: float) -> None:
        """Send the time that one image took."""
        _send("timing", "image_seconds", seconds * 1000)  # StatsD's unit

    def _add(self, name: str, total: int, reason: str | None = None) -> None:
        key = name + (reason or "")
        more = total - self._sent.get(key, 0)
        if more > 0:
            self._sent[key] = total
            _send("incr", name, more, tags=_tag(reason) if reason else None)


def count_refusal(error: MirrorError) -> None:
    """Count a permanent refusal by PhysioNet or S3; other errors are not counted here."""
    if error.permanent and error.whose in ("source", "destination"):
        _send("incr", "refused", 1, tags=_tag(error.reason))


def _tag(reason: str) -> dict[str, str]:
    return {"reason": reason.replace(" ", "_")}


def _send(kind: str, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
    try:
        from physionet_airflow.compat import stats

        getattr(stats(), kind)(f"physionet.{name}", value, tags=dict(tags or {}))
    except Exception:  # a metric that cannot be sent must not stop the transfer
        log.debug("physionet.%s was not sent", name, exc_info=True)
