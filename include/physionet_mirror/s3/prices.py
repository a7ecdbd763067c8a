"""What S3 asks for storage and requests, by region and storage class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PRICES_AS_OF = "2025-10"
"""Month of the price table below; an estimate says it, because prices change."""

PRICES_SOURCE = "https://aws.amazon.com/s3/pricing/"
"""AWS's page of storage, requests and, in its section *Data transfer*, of the transfer prices below."""

DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Price:
    """List prices of one storage class in US dollars, first 50 TB, without minimum-duration charges.

    Attributes:
        gb_month: One GB (2**30 bytes) for a month.
        put_1000: 1,000 PUT, COPY, POST or LIST requests.
        get_1000: 1,000 GET, HEAD and other requests.
        watch_1000: Monitoring of 1,000 objects a month (Intelligent-Tiering).
        retrieval_gb: Reading one GB (2**30 bytes), beside its GET. GLACIER and DEEP_ARCHIVE cannot be read at all
            before they are restored.
    """

    gb_month: float
    put_1000: float
    get_1000: float
    watch_1000: float = 0.0
    retrieval_gb: float = 0.0


# Transfer, in US dollars for one GB (2**30 bytes); source: https://aws.amazon.com/s3/pricing/, section "Data transfer", as of
# 2025-10. Within a Region nothing is asked.

TRANSFER_OUT_GB = 0.09
"""Out of AWS to the internet, first 10 TB a month, in all Regions below."""

BETWEEN_REGIONS_GB = 0.02
"""From us-east-1 to another Region of AWS."""

TO_OHIO_GB = 0.01
"""From us-east-1 to us-east-2, AWS's one exception."""

_US = {
    "STANDARD": Price(0.023, 0.005, 0.0004),
    "INTELLIGENT_TIERING": Price(0.023, 0.005, 0.0004, 0.0025),
    "STANDARD_IA": Price(0.0125, 0.01, 0.001, retrieval_gb=0.01),
    "ONEZONE_IA": Price(0.01, 0.01, 0.001, retrieval_gb=0.01),
    "GLACIER_IR": Price(0.004, 0.02, 0.01, retrieval_gb=0.03),
    "GLACIER": Price(0.0036, 0.03, 0.0004),
    "DEEP_ARCHIVE": Price(0.00099, 0.05, 0.0004),
}

PRICES: Mapping[str, Mapping[str, Price]] = {
    "us-east-1": _US,
    "us-east-2": _US,
    "us-west-2": _US,
    "eu-west-1": {**_US, "GLACIER_IR": Price(0.005, 0.02, 0.01, retrieval_gb=0.03)},
    "eu-central-1": {
        "STANDARD": Price(0.0245, 0.0054, 0.00043),
        "INTELLIGENT_TIERING": Price(0.0245, 0.0054, 0.00043, 0.0025),
        "STANDARD_IA": Price(0.0135, 0.01, 0.001, retrieval_gb=0.01),
        "ONEZONE_IA": Price(0.0108, 0.01, 0.001, retrieval_gb=0.01),
        "GLACIER_IR": Price(0.005, 0.02, 0.01, retrieval_gb=0.03),
        "GLACIER": Price(0.00405, 0.036, 0.00043),
        "DEEP_ARCHIVE": Price(0.0018, 0.06, 0.00043),
    },
}
"""Price by region and storage class.

Sources: us-east-1's storage and STANDARD requests and every region's STANDARD storage agree with AWS's price list; the
rest was entered by hand. Good for deciding, not for accounting: the page at ``PRICES_SOURCE`` rules.
"""


def request_cost(requests: Mapping[str, int], region: str | None = None, storage_class: str = "STANDARD") -> float:
    """US dollars for S3 requests by kind (``Bucket.requests``: LIST, HEAD, GET, PUT, COPY, DELETE).

    LIST is billed as STANDARD whatever the objects' class; DELETE is free.
    """
    prices = prices_of(region)
    price, standard = prices.get(storage_class, prices["STANDARD"]), prices["STANDARD"]
    rates = {
        "LIST": standard.put_1000,
        "PUT": price.put_1000,
        "COPY": price.put_1000,
        "GET": price.get_1000,
        "HEAD": price.get_1000,
    }
    return sum(count * rates.get(kind, 0.0) for kind, count in requests.items()) / 1000


INTERNET = "the internet"
"""Where bytes go that leave AWS."""


@dataclass(frozen=True, slots=True)
class TransferOut:
    """What AWS asks for bytes that leave us-east-1, where PhysioNet's access points are, in US dollars.

    Attributes:
        to: Where to, for people; empty = they do not leave it.
        cost: For a worker in us-east-1 or in the bucket's Region.
        outside: For a worker that is not in AWS: it takes them over the internet, wherever they go then.
    """

    to: str
    cost: float
    outside: float


def transfer_out(size: float, region: str | None) -> TransferOut:
    """The price of bytes on their way from PhysioNet's access point, through the worker, to a bucket.

    Args:
        size: Bytes.
        region: The bucket's AWS Region; None = it is not in AWS.
    """
    gigabytes = size / 2**30
    outside = gigabytes * TRANSFER_OUT_GB
    if region is None:
        return TransferOut(INTERNET, outside, outside)
    if region == DEFAULT_REGION:
        return TransferOut("", 0.0, outside)
    return TransferOut(region, gigabytes * (TO_OHIO_GB if region == "us-east-2" else BETWEEN_REGIONS_GB), outside)


def prices_of(region: str | None) -> Mapping[str, Price]:
    """The prices of a region; us-east-1's for a region that is not in the table (``Estimate.region`` says so)."""
    return PRICES.get(region or DEFAULT_REGION, PRICES[DEFAULT_REGION])
