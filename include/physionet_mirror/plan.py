"""What a run will take: images, bytes, hours, dollars; and the document that says so, ``plan.json``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from include.physionet_mirror import words
from include.physionet_mirror.dataset import Dataset
from include.physionet_mirror.prices import (
    DEFAULT_REGION,
    PRICES,
    PRICES_AS_OF,
    PRICES_SOURCE,
    prices_of,
    request_cost,
)
from include.physionet_mirror.shards import BYTES_PER_SECOND, KEYS_PER_LIST, Shard

SCHEMA = "physionet-mirror/plan/1"

# --- throughput -------------------------------------------------------------------------------------------------------

RUNS_TO_LEARN_FROM = 5

ENOUGH_SECONDS = 60
"""A shorter run says more about its start than about PhysioNet."""


HELD_BACK = 0.75
"""A run that used less than this share of the connections it was allowed was slowed down by PhysioNet, not by us."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast it will go.

    Attributes:
        bytes_per_second: Of one connection.
        basis: Where the number comes from, for people.
        most_connections: More than these do not help; None = not known.
    """

    bytes_per_second: float
    basis: str
    most_connections: float | None = None


FROM_FACTS = Throughput(
    BYTES_PER_SECOND, f"{BYTES_PER_SECOND / 1e6:.2f} MB/s a connection, as users of PhysioNet report"
)


def learn(reports: Iterable[Mapping[str, Any]], otherwise: Throughput = FROM_FACTS) -> Throughput:
    """The throughput of earlier runs to the same bucket; ``otherwise`` where there is none.

    Args:
        reports: ``report.json`` documents, newest first. Of each, ``transfer`` is read (``bytes`` stored, ``seconds`` of
            wall time, mean ``connections`` in use) and ``params.connections``. A run of less than a minute does not
            count.
        otherwise: The throughput where no run tells.

    Returns:
        The rate over the newest five runs together, so that a long one weighs more than a short one; and the connections
        that the newest one came to, where PhysioNet held it back.
    """
    total_bytes = 0.0
    connection_seconds = 0.0
    runs = 0
    most: float | None = None
    for report in reports:
        moved, params = (report.get(name) for name in ("transfer", "params"))
        if not isinstance(moved, Mapping):
            continue
        size, seconds, used = (_number(moved.get(name)) for name in ("bytes", "seconds", "connections"))
        if seconds < ENOUGH_SECONDS or size <= 0 or used <= 0:
            continue
        total_bytes += size
        connection_seconds += seconds * used
        allowed = _number(params.get("connections")) if isinstance(params, Mapping) else 0.0
        if not runs and used < HELD_BACK * allowed:
            most = used
        runs += 1
        if runs == RUNS_TO_LEARN_FROM:
            break
    if not runs:
        return otherwise
    rate = total_bytes / connection_seconds
    basis = f"{rate / 1e6:.2g} MB/s a connection, as in the last {f'{runs} runs' if runs > 1 else 'run'} to this bucket"
    return Throughput(rate, basis if most is None else f"{basis}, which came to {most:.0f} at once", most)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


# --- the estimate -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take. Bytes are decimal for people and 2**30 a GB for AWS's bill; money is US dollars.

    Attributes:
        images: Images selected.
        bytes: Their size, from the mean size of an image.
        missing: Images that are expected to be fetched.
        missing_bytes: Their size.
        connections: PhysioNet connections that the run may hold.
        hours: Wall time of the fetching.
        basis: Where the speed comes from.
        storage_class: Of the images.
        region: Whose prices are used, ``us-east-1`` for a region that the price table lacks.
        monthly: Storage of the whole selection for a month, by storage class.
        put_cost: The PUT requests of what is fetched, once.
        check_cost: The LIST and HEAD requests of looking and verifying, once.
        prices_as_of: Month of the prices.
    """

    images: int
    bytes: int
    missing: int
    missing_bytes: int
    connections: int
    hours: float
    basis: str
    storage_class: str
    region: str
    monthly: Mapping[str, float]
    put_cost: float
    check_cost: float
    prices_as_of: str = PRICES_AS_OF

    @property
    def gigabytes(self) -> float:
        """Decimal gigabytes to be fetched: what ``approve_above_gb`` is compared with."""
        return self.missing_bytes / 1e9

    @property
    def monthly_cost(self) -> float:
        """Storage a month in the chosen class (as STANDARD where the price table lacks the class)."""
        return self.monthly.get(self.storage_class, self.monthly["STANDARD"])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "monthly": dict(self.monthly)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        return cls(**values)

    def table(self, shards: int | None = None) -> str:
        """The estimate as a small text table, for the log and the approval page."""
        rows = [
            ("images selected", f"{self.images:,}", words.size(self.bytes)),
            ("expected to be fetched", f"{self.missing:,}", words.size(self.missing_bytes)),
        ]
        if shards is not None:
            each = math.ceil(self.images / shards) if shards else 0
            rows.append(("shards", f"{shards:,}", f"at most {each:,} images each"))
        rows += [
            ("time", words.about(3600 * self.hours), f"{self.connections} connections, {self.basis}"),
            (
                "S3 requests, once",
                words.money(self.put_cost + self.check_cost),
                f"PUT {words.money(self.put_cost)} in {self.storage_class}",
            ),
        ]
        for name, cost in self.monthly.items():
            chosen = "chosen" if name == self.storage_class else ""
            rows.append((f"S3 a month, {name}", words.money(cost), chosen))
        left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"{a:<{left}}  {b:>{middle}}  {c}".rstrip() for a, b, c in rows]
        return "\n".join([*lines, f"Prices: S3 list prices of {self.region}, {self.prices_as_of}. {PRICES_SOURCE}"])


def estimate(
    images: int,
    mean_bytes: float,
    connections: int,
    *,
    missing: int | None = None,
    region: str | None = None,
    storage_class: str = "STANDARD",
    reports: Iterable[Mapping[str, Any]] = (),
    otherwise: Throughput = FROM_FACTS,
) -> Estimate:
    """Estimate a run.

    Args:
        images: Images selected.
        mean_bytes: Mean size of an image (``Dataset.image_bytes``).
        connections: PhysioNet connections over the whole run.
        missing: Images expected to be fetched; None = all.
        region: Of the bucket.
        storage_class: Of the images.
        reports: Earlier runs' ``report.json``, newest first (see ``learn``).
        otherwise: The throughput where no earlier run tells.
    """
    missing = images if missing is None else min(max(missing, 0), images)
    speed = learn(reports, otherwise)
    # Fewer images than connections leave connections idle.
    busy = max(min(connections, missing, speed.most_connections or math.inf), 1)
    prices = prices_of(region)
    size = round(images * mean_bytes)
    fetched = round(missing * mean_bytes)
    # Looked at twice, before and after; what is new is asked for its checksum.
    checks = {"LIST": 2 * math.ceil(images / KEYS_PER_LIST), "HEAD": missing}
    return Estimate(
        images=images,
        bytes=size,
        missing=missing,
        missing_bytes=fetched,
        connections=connections,
        hours=fetched / (speed.bytes_per_second * busy) / 3600,
        basis=speed.basis,
        storage_class=storage_class,
        region=region if region is not None and region in PRICES else DEFAULT_REGION,
        monthly={
            name: size / 2**30 * price.gb_month + images * price.watch_1000 / 1000 for name, price in prices.items()
        },
        put_cost=request_cost({"PUT": missing}, region, storage_class),
        check_cost=request_cost(checks, region, storage_class),
    )


def document(
    *,
    run_id: str,
    request: Mapping[str, Any],
    dataset: Dataset,
    sums_sha256: str,
    manifest_images: int,
    matched: int,
    shards: Sequence[Shard],
    estimate: Estimate,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """``plan.json``: what was asked, of what, how it was cut, and what it is expected to take.

    Keys: ``schema``, ``run_id``, ``created`` (UTC), ``request`` (the params), ``dataset`` (name, title, sums_sha256,
    images), ``selection`` (matched, images, notes), ``shards`` (list of ``Shard.to_dict``), ``estimate``.
    """
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "request": dict(request),
        "dataset": {
            "name": dataset.name,
            "title": dataset.title,
            "sums_sha256": sums_sha256,
            "images": manifest_images,
        },
        "selection": {"matched": matched, "images": sum(shard.images for shard in shards), "notes": list(notes)},
        "shards": [shard.to_dict() for shard in shards],
        "estimate": estimate.to_dict(),
    }
