"""What makes a night: its end, its part of the dataset, and its trigger form."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.errors import InputError
from physionet_mirror.request import Request
from physionet_mirror.shards import slice_of, slice_of_day

TWO = datetime(2025, 3, 1, 2, tzinfo=UTC)


def request(**params: Any) -> Request:
    return Request.from_params({"bucket": "my-bucket", **params})


# -- its end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("06:30", time(6, 30)),
        ("6:30", time(6, 30)),
        ("00:00", time(0, 0)),
        ("23:59", time(23, 59)),
        (" 06:30 ", time(6, 30)),
        ("4.5", timedelta(hours=4.5)),
        ("4", timedelta(hours=4)),
        (4.5, timedelta(hours=4.5)),
        ("4h", timedelta(hours=4)),
        ("4.5 h", timedelta(hours=4.5)),
        ("12 hours", timedelta(hours=12)),
        ("0.001", timedelta(hours=0.001)),
        (None, None),
        ("", None),
    ],
)
def test_stop_after_is_a_time_of_day_or_hours(text: Any, meant: time | timedelta | None) -> None:
    assert request(stop_after=text).stop_after == meant


@pytest.mark.parametrize(
    "text", ["24:00", "6:60", "06:30:00", "-1", "0", "0.0 h", "half", "4 min", "1000", "6.30 am", True]
)
def test_anything_else_is_refused_by_name(text: Any) -> None:
    with pytest.raises(InputError, match=r"^stop_after: .* Nothing was done"):
        request(stop_after=text)


@pytest.mark.parametrize(
    ("stop_after", "started", "stops"),
    [
        ("06:30", TWO, TWO.replace(hour=6, minute=30)),
        ("06:30", TWO.replace(hour=6, minute=30), datetime(2025, 3, 2, 6, 30, tzinfo=UTC)),
        ("06:30", TWO.replace(hour=22), datetime(2025, 3, 2, 6, 30, tzinfo=UTC)),
        ("00:15", datetime(2025, 12, 31, 23, 50, tzinfo=UTC), datetime(2026, 1, 1, 0, 15, tzinfo=UTC)),
        ("4.5", TWO, TWO.replace(hour=6, minute=30)),
        ("30 h", TWO, datetime(2025, 3, 2, 8, tzinfo=UTC)),
        (None, TWO, None),
    ],
)
def test_the_end_is_the_next_such_time_or_so_many_hours_on(
    stop_after: str | None, started: datetime, stops: datetime | None
) -> None:
    assert request(stop_after=stop_after).stops_at(started) == stops


def test_a_time_of_day_is_utc_wherever_the_worker_is() -> None:
    evening = datetime(2025, 3, 1, 20, tzinfo=ZoneInfo("America/New_York"))  # 01:00 UTC of the next day
    assert request(stop_after="06:30").stops_at(evening) == datetime(2025, 3, 2, 6, 30, tzinfo=UTC)


# -- its part ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 400_000), st.integers(1, 1000))
def test_slices_partition_the_images_in_order_and_evenly(images: int, slices: int) -> None:
    parts = [slice_of(images, index, slices) for index in range(slices)]
    assert (parts[0].start, parts[-1].stop) == (0, images)
    assert all(a.stop == b.start for a, b in pairwise(parts))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("index", "slices"), [(-1, 3), (3, 3), (0, 0)])
def test_a_slice_that_is_none(index: int, slices: int) -> None:
    with pytest.raises(InputError, match="no slice"):
        slice_of(100, index, slices)


@given(st.integers(-1000, 5000), st.integers(1, 1000))
def test_any_so_many_consecutive_days_own_every_slice_once(first: int, slices: int) -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    days = [start + timedelta(days=first + n, hours=2) for n in range(slices)]
    owned = [slice_of_day(day, start, slices) for day in days]
    assert sorted(owned) == list(range(slices))
    assert slice_of_day(days[-1] + timedelta(days=1), start, slices) == owned[0]


def test_the_first_night_owns_the_first_slice() -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    assert [slice_of_day(start + timedelta(days=n, hours=2), start, 30) for n in (0, 1, 29, 30)] == [0, 1, 29, 0]


@pytest.mark.parametrize("slices", [0, -1, 1001, "many", 2.5, True])
def test_slices_that_cannot_be(slices: Any) -> None:
    with pytest.raises(InputError, match=r"^slices: "):
        request(slices=slices)


# -- its form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stop_after", ["06:30", "6:30", "23:59", "4.5", "4", "4h", "4.5 h", "24:00", "6:60", "-1", "x"]
)
def test_the_form_takes_what_the_run_takes(stop_after: str) -> None:
    from physionet_airflow.params import backfill_params

    pattern = backfill_params()["stop_after"].schema["pattern"]
    try:
        request(stop_after=stop_after)
    except InputError:
        assert not re.search(pattern, stop_after)
    else:
        assert re.search(pattern, stop_after)


def test_a_night_needs_no_param_but_the_bucket_takes_no_sample_and_asks_nobody() -> None:
    from physionet_airflow.params import backfill_params

    params = {name: param.resolve() for name, param in backfill_params().items()}
    wish = request(**{**params, "bucket": "my-bucket"})
    assert (wish.slices, wish.stop_after, wish.selection.select, wish.approve_above_gb) == (30, None, "all", 0)
    assert (wish.connections, wish.verify, wish.source) == (8, "checksum", "physionet")
    assert "sample_size" not in params
