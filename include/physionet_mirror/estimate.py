"""Estimates what a run will take: images, bytes, hours, dollars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from physionet_mirror import throughput, words
from physionet_mirror.mover import MOST_AT_ONCE, Mode, at_once
from physionet_mirror.records import READ_BACK_BYTES_PER_SECOND, Estimate, RunReport
from physionet_mirror.request import Level, Request
from physionet_mirror.s3.prices import (
    DEFAULT_REGION,
    PRICES,
    TRANSFER_OUT_GB,
    prices_of,
    request_cost,
    transfer_out,
)
from physionet_mirror.shards import BYTES_PER_SECOND, KEYS_PER_LIST
from physionet_mirror.source.access_point import COPIES_A_CONNECTION, READS_A_CONNECTION

# --- throughput -------------------------------------------------------------------------------------------------------

RUNS_TO_LEARN_FROM = 5

ENOUGH_SECONDS = 60
"""A run that fetched for fewer seconds is ignored, because its ramp-up dominates."""

HELD_BACK = 0.75
"""A run that used less than this share of its allowed connections was limited by PhysioNet, not by its own cap."""

PER_CONNECTION: Mapping[str, int] = {"download": 1, "copy": COPIES_A_CONNECTION, "through": READS_A_CONNECTION}
"""Files under way for each connection to PhysioNet that a run may hold."""

SLOW_BYTES_PER_SECOND = 44_000
"""Speed of one PhysioNet connection on a bad day (source: users report 0.35 MB/s over eight connections)."""

A_COPY = 0.3
"""Seconds for the HEAD and COPY of an image inside S3, whose guide gives 0.1 to 0.2 s for a small request."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast files are expected to arrive.

    Attributes:
        bytes_per_second: Speed of one connection (or copy, or read), at best.
        basis: Where the number comes from, for people.
        most_connections: Number of connections beyond which more do not help; None = not known.
        slowest: Speed of one connection, at worst; None = the same as at best.
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


def learn(reports: Iterable[RunReport], otherwise: Throughput = FROM_FACTS, mode: Mode = "download") -> Throughput:
    """The throughput of earlier runs to the same bucket, or ``otherwise`` if there are none.

    Args:
        reports: Newest first. A run that fetched for less than a minute does not count.
        otherwise: The throughput to use without earlier runs.
        mode: How the files come; only runs by the same way count.

    Returns:
        The rates of the slowest and the fastest of the latest five runs, and the number of connections that the latest
        one reached if it was allowed all that it asked for and PhysioNet held it back.
    """
    rates: list[float] = []
    most: float | None = None
    for report in reports:
        if report.mode != mode:
            continue
        moved = report.transfer
        used, allowed = moved.connections, moved.connections_allowed
        spent = moved.connection_seconds or throughput.connection_seconds(moved.series)
        if moved.bytes <= 0 or used <= 0 or spent / used < ENOUGH_SECONDS:
            continue
        asked = at_once(int(report.connections), PER_CONNECTION[mode])
        # A run with few shards left at its end was allowed only their share, which tells nothing about PhysioNet.
        if not rates and allowed >= HELD_BACK * asked > 0 and used < HELD_BACK * allowed:
            most = used
        rates.append(moved.bytes / spent)
        if len(rates) == RUNS_TO_LEARN_FROM:
            break
    if not rates:
        return otherwise
    runs = f"{len(rates)} runs" if len(rates) > 1 else "run"
    each = words.UNDER_WAY[mode][0].partition(" ")[0]
    basis = f"{_range(min(rates), max(rates))} a {each}, as in the last {runs} to this bucket"
    if most is not None:
        basis += f", which reached {most:.0f} at once"
    return Throughput(max(rates), basis, most, min(rates))


# --- the estimate -----------------------------------------------------------------------------------------------------


def estimate(
    images: int,
    mean_bytes: float,
    connections: int,
    *,
    missing: int | None = None,
    region: str | None = None,
    storage_class: str = "STANDARD",
    verify: Level = "checksum",
    reports: Iterable[RunReport] = (),
    otherwise: Throughput = FROM_FACTS,
    exact: tuple[int, int] | None = None,
    mode: Mode = "download",
    in_aws: bool = True,
    reads_back: bool = False,
) -> Estimate:
    """Estimate a run.

    Args:
        images: Images selected.
        mean_bytes: Mean size of an image (``Dataset.image_bytes``).
        connections: PhysioNet connections over the whole run; from its access point, files under way.
        missing: Images expected to be fetched; None = all.
        region: Region of the bucket.
        storage_class: Storage class of the images.
        verify: The level; with ``content`` every image is read back.
        reports: Reports of earlier runs, newest first (see ``learn``).
        otherwise: The throughput to use without earlier runs.
        exact: Bytes of all images and of the missing ones, if the source has listed their sizes.
        mode: How the files come.
        in_aws: The bucket is Amazon's; otherwise what passes the worker leaves AWS.
        reads_back: The store gives no SHA-256, so that ``checksum`` reads back what is fetched (`Capabilities`).
    """
    missing = images if missing is None else min(max(missing, 0), images)
    speed = learn(reports, otherwise, mode)
    # Fewer images than connections leave connections idle.
    busy = max(min(connections, missing, speed.most_connections or math.inf), 1)
    prices = prices_of(region)
    size, fetched = exact or (round(images * mean_bytes), round(missing * mean_bytes))
    # All images are listed twice, before and after; each new one gets a HEAD for its checksum.
    checks = {"LIST": 2 * math.ceil(images / KEYS_PER_LIST), "HEAD": missing}
    read, read_bytes = (images, size) if verify == "content" else (0, 0)
    if reads_back and verify == "checksum":
        read, read_bytes = missing, fetched
    gigabytes_read = read_bytes / 2**30
    leaving = transfer_out(fetched if mode == "through" else 0, (region or DEFAULT_REGION) if in_aws else None)
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
        read_hours=read_bytes / READ_BACK_BYTES_PER_SECOND / 3600,
        read_cost=request_cost({"GET": read}, region, storage_class) + gigabytes_read * retrieval,
        read_transfer_cost=gigabytes_read * TRANSFER_OUT_GB,
        mode=mode,
        exact=exact is not None,
        transfer_to=leaving.to if mode == "through" else "",
        transfer_cost=leaving.cost,
        transfer_outside=leaving.outside,
    )


def usual_speed(request: Request, mean_bytes: float, mode: Mode, streams: int) -> tuple[int, Throughput]:
    """The number of files that a request may have under way at once, and the speed of one without earlier runs.

    Args:
        request: The request; only its connections matter.
        mean_bytes: Mean size of a file.
        mode: How the files come; through the worker, its network is the limit.
        streams: Shards streamed at once; each has at most `MOST_AT_ONCE` files under way.
    """
    most = request.connections * PER_CONNECTION[mode]
    if mode == "download":
        return most, FROM_FACTS
    most = min(most, streams * MOST_AT_ONCE)
    if mode == "copy":
        basis = f"{A_COPY} s a copy, from S3's usual latencies"
        return most, Throughput(mean_bytes / A_COPY, basis)
    basis = f"{READ_BACK_BYTES_PER_SECOND / 1e6:.0f} MB/s through the worker, the usual limit of its network"
    return most, Throughput(READ_BACK_BYTES_PER_SECOND / most, basis)


def estimate_run(
    request: Request,
    images: int,
    missing: int,
    mean_bytes: float,
    *,
    mode: Mode = "download",
    streams: int,
    region: str | None = None,
    in_aws: bool = True,
    reads_back: bool = False,
    reports: Iterable[RunReport] = (),
    exact: tuple[int, int] | None = None,
    between: tuple[int, int] | None = None,
    sizes: str = "",
    listed: bool = True,
) -> Estimate:
    """Estimate what a request takes, by any way: for the plan of a run and for the page's preview.

    Args:
        request: The request.
        images: Images selected.
        missing: Images expected to be fetched.
        mean_bytes: Mean size of an image.
        mode: As in `usual_speed`.
        streams: As in `usual_speed`.
        region: Region of the bucket.
        in_aws: As in `estimate`.
        reads_back: As in `estimate`.
        reports: Reports of earlier runs, newest first.
        exact: As in `estimate`.
        between: The least and the most bytes to be fetched, if only a range is known.
        sizes: Where the sizes come from, for people.
        listed: Whether ``exact`` is what the access point lists; else it is what ``sizes`` says.
    """
    most_at_once, otherwise = usual_speed(request, mean_bytes, mode, streams)
    expected = estimate(
        images,
        mean_bytes,
        most_at_once,
        missing=missing,
        region=region,
        storage_class=request.storage_class,
        verify=request.verify,
        reports=reports,
        otherwise=otherwise,
        exact=exact,
        mode=mode,
        in_aws=in_aws,
        reads_back=reads_back,
    )
    least, most = between or (0, 0)
    return replace(
        expected,
        noun=request.selection.noun,
        missing_bytes_least=least,
        missing_bytes_most=most,
        sizes=sizes,
        exact=expected.exact and listed,
        hours=expected.hours * (least / expected.missing_bytes if least and expected.missing_bytes else 1),
        hours_most=expected.hours_most * (most / expected.missing_bytes if most and expected.missing_bytes else 1),
    )
