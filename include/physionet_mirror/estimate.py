"""What a run will take: images, bytes, hours, dollars; and the document that says so, ``plan.json``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from physionet_mirror import throughput, words
from physionet_mirror.dataset import Dataset
from physionet_mirror.request import Level, Request
from physionet_mirror.s3.prices import (
    DEFAULT_REGION,
    PRICES,
    PRICES_AS_OF,
    PRICES_SOURCE,
    TRANSFER_OUT_GB,
    prices_of,
    request_cost,
)
from physionet_mirror.shards import BYTES_PER_SECOND, KEYS_PER_LIST, Shard
from physionet_mirror.source.access_point import COPIES_A_CONNECTION, READS_A_CONNECTION

SCHEMA = "physionet-mirror/plan/1"

# --- throughput -------------------------------------------------------------------------------------------------------

RUNS_TO_LEARN_FROM = 5

ENOUGH_SECONDS = 60
"""Seconds of fetching below which a run is ignored: its ramp-up dominates."""

HELD_BACK = 0.75
"""A run that used less than this share of its allowed connections was limited by PhysioNet, not by its own cap."""

SLOW_BYTES_PER_SECOND = 44_000
"""Bytes a second of one PhysioNet connection on a bad day (source: users report 0.35 MB/s over eight connections)."""

A_COPY = 0.3
"""Seconds that HEAD and COPY of an image take inside S3, whose guide gives 0.1 to 0.2 s for a small request."""

READ_BACK_BYTES_PER_SECOND = 100e6
"""Expected speed of reading back from S3: most of what a link of 1 Gbit/s carries."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast files are expected to arrive.

    Attributes:
        bytes_per_second: Of one connection, at best.
        basis: Where the number comes from, for people.
        most_connections: More than these do not help; None = not known.
        slowest: Bytes a second of one connection at worst; None = as at best.
    """

    bytes_per_second: float
    basis: str
    most_connections: float | None = None
    slowest: float | None = None


def _range(slowest: float, fastest: float) -> str:
    low, high = f"{slowest / 1e6:.2g}", f"{fastest / 1e6:.2g}"
    return f"{high} MB/s" if low == high else f"{low} to {high} MB/s"


FROM_FACTS = Throughput(
    BYTES_PER_SECOND,
    f"{_range(SLOW_BYTES_PER_SECOND, BYTES_PER_SECOND)} a connection, as users report",
    slowest=SLOW_BYTES_PER_SECOND,
)


def learn(reports: Iterable[Mapping[str, Any]], otherwise: Throughput = FROM_FACTS) -> Throughput:
    """The throughput of earlier runs to the same bucket; ``otherwise`` where there is none.

    Args:
        reports: ``report.json`` documents, newest first. Of each, ``transfer`` is read (``bytes`` stored,
            ``connection_seconds``, the mean ``connections`` in use and ``connections_allowed``) and
            ``params.connections``. A run that fetched for less than a minute does not count.
        otherwise: The throughput where no run tells.

    Returns:
        The rates of the slowest and the fastest of the newest five runs; and the connections that the newest one held,
        where it was allowed all that it asked for and PhysioNet held it back.
    """
    rates: list[float] = []
    most: float | None = None
    for report in reports:
        moved, params = (report.get(name) for name in ("transfer", "params"))
        if not isinstance(moved, Mapping):
            continue
        size, used, allowed = (_number(moved.get(name)) for name in ("bytes", "connections", "connections_allowed"))
        spent = _number(moved.get("connection_seconds")) or throughput.connection_seconds(moved.get("series"))
        if size <= 0 or used <= 0 or spent / used < ENOUGH_SECONDS:
            continue
        asked = _number(params.get("connections")) if isinstance(params, Mapping) else 0.0
        # A run whose last shards were few was allowed only their share: that tells nothing of PhysioNet.
        if not rates and allowed >= HELD_BACK * asked > 0 and used < HELD_BACK * allowed:
            most = used
        rates.append(size / spent)
        if len(rates) == RUNS_TO_LEARN_FROM:
            break
    if not rates:
        return otherwise
    runs = f"{len(rates)} runs" if len(rates) > 1 else "run"
    basis = f"{_range(min(rates), max(rates))} a connection, as in the last {runs} to this bucket"
    if most is not None:
        basis += f", which came to {most:.0f} at once"
    return Throughput(max(rates), basis, most, min(rates))


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
        hours: Wall time of the fetching, at best.
        basis: Where the speed comes from.
        storage_class: Of the images.
        region: Whose prices are used, ``us-east-1`` for a region that the price table lacks.
        monthly: Storage of the whole selection for a month, by storage class.
        put_cost: The PUT requests of what is fetched, once.
        check_cost: The LIST and HEAD requests of looking and verifying, once.
        hours_most: Wall time of the fetching, at worst.
        read_back: Images that are read back from the bucket (``verify=content``).
        read_hours: Wall time of that.
        read_cost: GET requests and retrieval, once.
        read_transfer_cost: The transfer, once, where the worker is outside AWS; within the bucket's region it is free.
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
    hours_most: float
    read_back: int = 0
    read_hours: float = 0.0
    read_cost: float = 0.0
    read_transfer_cost: float = 0.0
    prices_as_of: str = PRICES_AS_OF

    @property
    def gigabytes(self) -> float:
        """Decimal gigabytes to be fetched: what ``approve_above_gb`` is compared with."""
        return self.missing_bytes / 1e9

    @property
    def monthly_cost(self) -> float:
        """Storage a month in the chosen class (as STANDARD where the price table lacks the class)."""
        return self.monthly.get(self.storage_class, self.monthly["STANDARD"])

    @property
    def once_cost(self) -> float:
        """What S3 charges once: requests, and retrieval where everything is read back."""
        return self.put_cost + self.check_cost + self.read_cost

    @property
    def time(self) -> str:
        """Wall time of the fetching, in words; a range where the speed is a range."""
        return words.about(3600 * self.hours, 3600 * self.hours_most)

    @property
    def reading(self) -> str:
        """What reading everything back takes, in words."""
        return (
            f"{words.about(3600 * self.read_hours)} at {READ_BACK_BYTES_PER_SECOND / 1e6:.0f} MB/s, "
            f"{words.money(self.read_cost)}, and {words.money(self.read_transfer_cost)} for a worker outside AWS"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "monthly": dict(self.monthly)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        return cls(**{"hours_most": values["hours"], **values})  # a plan of an earlier version names one time

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
            ("time", self.time, f"{self.connections} connections, {self.basis}"),
        ]
        if self.read_back:
            rows.append(("reading it all back", words.about(3600 * self.read_hours), self.reading.partition(" at ")[2]))
        rows.append(
            (
                "S3 requests, once",
                words.money(self.once_cost),
                f"PUT {words.money(self.put_cost)} in {self.storage_class}",
            )
        )
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
    verify: Level = "checksum",
    reports: Iterable[Mapping[str, Any]] = (),
    otherwise: Throughput = FROM_FACTS,
    exact: tuple[int, int] | None = None,
) -> Estimate:
    """Estimate a run.

    Args:
        images: Images selected.
        mean_bytes: Mean size of an image (``Dataset.image_bytes``).
        connections: PhysioNet connections over the whole run.
        missing: Images expected to be fetched; None = all.
        region: Of the bucket.
        storage_class: Of the images.
        verify: The level; with ``content`` every image is read back.
        reports: Earlier runs' ``report.json``, newest first (see ``learn``).
        otherwise: The throughput where no earlier run tells.
        exact: Bytes of all images, and of the missing ones, where the source has listed them.
    """
    missing = images if missing is None else min(max(missing, 0), images)
    speed = learn(reports, otherwise)
    # Fewer images than connections leave connections idle.
    busy = max(min(connections, missing, speed.most_connections or math.inf), 1)
    prices = prices_of(region)
    size, fetched = exact or (round(images * mean_bytes), round(missing * mean_bytes))
    # Looked at twice, before and after; what is new is asked for its checksum.
    checks = {"LIST": 2 * math.ceil(images / KEYS_PER_LIST), "HEAD": missing}
    read = images if verify == "content" else 0
    gigabytes_read = read * mean_bytes / 2**30
    retrieval = prices.get(storage_class, prices["STANDARD"]).retrieval_gb
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
        hours_most=fetched / ((speed.slowest or speed.bytes_per_second) * busy) / 3600,
        read_back=read,
        read_hours=read * mean_bytes / READ_BACK_BYTES_PER_SECOND / 3600,
        read_cost=request_cost({"GET": read}, region, storage_class) + gigabytes_read * retrieval,
        read_transfer_cost=gigabytes_read * TRANSFER_OUT_GB,
    )


def usual_speed(request: Request, mean_bytes: float, *, through: bool = False) -> tuple[int, Throughput]:
    """How many files the request may have under way at once, and how fast one goes where no earlier run tells.

    Args:
        request: Its source and connections count.
        mean_bytes: Mean size of a file.
        through: From the access point, but through the worker, whose network is then the limit.
    """
    if request.source == "s3" and through:
        at_once = request.connections * READS_A_CONNECTION
        basis = f"{READ_BACK_BYTES_PER_SECOND / 1e6:.0f} MB/s through the worker, as its network gives"
        return at_once, Throughput(READ_BACK_BYTES_PER_SECOND / at_once, basis)
    if request.source == "s3":
        basis = f"{A_COPY} s a copy, which S3's usual latencies suggest"
        return request.connections * COPIES_A_CONNECTION, Throughput(mean_bytes / A_COPY, basis)
    return request.connections, FROM_FACTS


def estimate_run(
    request: Request,
    images: int,
    missing: int,
    mean_bytes: float,
    *,
    region: str | None = None,
    reports: Iterable[Mapping[str, Any]] = (),
    exact: tuple[int, int] | None = None,
    through: bool = False,
) -> Estimate:
    """Estimate what a request takes, from either source: for the plan of a run and for the page that previews one.

    Args:
        request: What is asked for.
        images: Images selected.
        missing: Of these, expected to be fetched.
        mean_bytes: Mean size of an image.
        region: Of the bucket.
        reports: ``report.json`` of earlier runs from the same source, newest first.
        exact: As `estimate`.
        through: From the access point, but through the worker.
    """
    at_once, otherwise = usual_speed(request, mean_bytes, through=through)
    return estimate(
        images,
        mean_bytes,
        at_once,
        missing=missing,
        region=region,
        storage_class=request.storage_class,
        verify=request.verify,
        reports=reports,
        otherwise=otherwise,
        exact=exact,
    )


def document(
    *,
    run_id: str,
    dag_id: str,
    request: Mapping[str, Any],
    dataset: Dataset,
    sums_sha256: str,
    manifest_images: int,
    matched: int,
    shards: Sequence[Shard],
    estimate: Estimate,
    notes: Sequence[str] = (),
    way: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """``plan.json``: what was asked, of what, how it was cut, and what it is expected to take.

    Keys: ``schema``, ``run_id``, ``dag_id``, ``created`` (UTC), ``request`` (the params), ``dataset`` (name, title, sums_sha256,
    images), ``way`` (``Way.to_json``), ``selection`` (matched, images, notes), ``shards`` (list of ``Shard.to_dict``),
    ``estimate``.
    """
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "dag_id": dag_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "request": dict(request),
        "dataset": {
            "name": dataset.name,
            "title": dataset.title,
            "sums_sha256": sums_sha256,
            "images": manifest_images,
        },
        "way": dict(way or {}),
        "selection": {"matched": matched, "images": sum(shard.images for shard in shards), "notes": list(notes)},
        "shards": [shard.to_dict() for shard in shards],
        "estimate": estimate.to_dict(),
    }
