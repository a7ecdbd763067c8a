"""The params of a run: defaults that work, and errors that name the param."""

from __future__ import annotations

import math
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.dataset import MIMIC_CXR, MIMIC_CXR_JPG
from physionet_mirror.errors import InputError
from physionet_mirror.request import (
    APPROVE_ABOVE_GB,
    CONNECTIONS,
    SAMPLE_SIZE,
    SEED,
    SHARD_SIZE,
    SLICES,
    STORAGE_CLASSES,
    Request,
    checked_bucket,
    checked_names,
    checked_prefix,
    checked_uri,
)


def ask(**params: object) -> Request:
    return Request.from_params({"bucket": "my-bucket", **params})


def test_the_defaults_are_those_of_the_contract():
    request = ask()
    assert request.prefix == "mimic-cxr-jpg/2.1.0"
    assert request.dataset is MIMIC_CXR_JPG
    selection = request.selection
    assert (selection.select, selection.sample_size, selection.sample_by, selection.seed) == (
        "sample",
        1000,
        "image",
        42,
    )
    assert (request.connections, request.storage_class, request.verify, request.source) == (
        8,
        "STANDARD",
        "checksum",
        "auto",
    )
    assert (request.shard_size, request.file_list, request.approve_above_gb, request.dry_run) == (
        None,
        None,
        50.0,
        False,
    )


def test_another_dataset_has_another_prefix():
    request = ask(dataset="mimic-cxr/2.0.0")
    assert request.dataset is MIMIC_CXR
    assert request.prefix == "mimic-cxr/2.0.0"


def test_everything_can_be_said():
    request = ask(
        prefix="/a/b/",
        select="all",
        sample_by="patient",
        seed=-1,
        views=["PA", " AP "],
        labels=["Edema"],
        subjects=[10000032, "10000764"],
        file_list="s3://other-bucket/list.txt",
        shard_size="100",
        connections=64,
        storage_class="GLACIER_IR",
        verify="content",
        source="s3",
        approve_above_gb=0,
        dry_run=True,
    )
    assert request.prefix == "a/b"
    assert request.selection.views == ("PA", "AP")
    assert request.selection.subjects == ("10000032", "10000764")
    assert request.file_list == "s3://other-bucket/list.txt"
    assert request.shard_size == 100
    assert request.approve_above_gb == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bucket", None),
        ("bucket", ""),
        ("bucket", "s3://my-bucket"),
        ("bucket", "My_Bucket"),
        ("bucket", "ab"),
        ("bucket", "192.168.0.1"),
        ("bucket", "a..b"),
        ("bucket", 17),
        ("prefix", ""),
        ("prefix", "/"),
        ("prefix", "a//b"),
        ("prefix", "a/../b"),
        ("prefix", "a b"),
        ("prefix", "{{ conn.aws_default.password }}"),
        ("prefix", "x" * 501),
        ("prefix", None),
        ("select", "some"),
        ("sample_size", 0),
        ("sample_size", -5),
        ("sample_size", "many"),
        ("sample_size", 2.5),
        ("sample_size", True),
        ("sample_size", None),
        ("sample_by", "hospital"),
        ("seed", "x"),
        ("views", "PA"),
        ("subjects", [["10000032"]]),
        ("file_list", "list.txt"),
        ("file_list", "s3://my-bucket/../x"),
        ("file_list", "s3://my-bucket/{{ x }}"),
        ("shard_size", 0),
        ("connections", 3),
        ("connections", 65),
        ("storage_class", "STANDARD_XS"),
        ("verify", "hope"),
        ("source", "ftp"),
        ("approve_above_gb", -1),
        ("approve_above_gb", "50"),
        ("approve_above_gb", True),
        ("dataset", "mimic-iv/3.0"),
    ],
)
def test_what_cannot_be_worked_with_is_refused_by_name(name, value):
    with pytest.raises(InputError) as refused:
        ask(**{name: value})
    text = str(refused.value)
    assert text.startswith(f"{name}: ")
    assert "Nothing was done." in text
    assert len(text) < 400, "what was given is quoted in part only"


def test_absent_lists_mean_any():
    for empty in (None, [], ""):
        assert ask(views=empty).selection.views == ()


@pytest.mark.parametrize("name", ["views", "splits", "labels", "groups", "subjects"])
@pytest.mark.parametrize("values", [[""], [" "], ["\t\n"], ["10000032", ""], ["", "10000032"]])
def test_a_blank_entry_does_not_mean_any(name, values):
    with pytest.raises(InputError, match=f"^{name}: an entry of the list is blank. Nothing was done"):
        ask(**{name: values})


BOUNDED = {
    "sample_size": SAMPLE_SIZE,
    "seed": SEED,
    "shard_size": SHARD_SIZE,
    "connections": CONNECTIONS,
    "slices": SLICES,
    "approve_above_gb": APPROVE_ABOVE_GB,
}


@pytest.mark.parametrize("name", BOUNDED)
def test_every_number_has_a_least_and_a_most_which_are_taken(name):
    for value in BOUNDED[name]:
        ask(**{name: value})


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize(
    "value",
    [10**30, -(10**30), pytest.param(10**6000, id="long"), math.nan, math.inf, -math.inf, 1e30, "1" * 99, "²", True],
)
def test_a_number_beyond_every_bound_is_refused_in_a_few_words(name, value):
    with pytest.raises(InputError, match=f"^{name}: .* Nothing was done") as refused:
        ask(**{name: value})
    assert len(str(refused.value)) < 300


@given(name=st.sampled_from(sorted(BOUNDED)), value=st.integers() | st.floats())
def test_any_number_is_within_its_bounds_or_refused(name, value):
    least, most = BOUNDED[name]
    if least <= value <= most and (name == "approve_above_gb" or float(value).is_integer()):
        ask(**{name: value})
    else:
        with pytest.raises(InputError, match=f"^{name}: "):
            ask(**{name: value})


@pytest.mark.parametrize("value", ["9" * 400, "4." + "5" * 400, "1e9", "nan", math.nan, math.inf, 10**30, "٤"])
def test_an_end_that_is_no_plain_number_of_hours_is_refused(value):
    with pytest.raises(InputError, match=r"^stop_after: "):
        ask(stop_after=value)


# --- names that no param has ------------------------------------------------------------------------------------------

KNOWN = ("bucket", "prefix", "sample_size", "sample_by", "seed", "views")


@pytest.mark.parametrize(
    ("given_name", "meant"),
    [
        ("sampel_size", "sample_size"),
        ("Bucket", "bucket"),
        ("view", "views"),
        ("sample-by", "sample_by"),
        ("seeds", "seed"),
    ],
)
def test_a_misspelt_param_is_refused_with_the_one_that_was_meant(given_name, meant):
    with pytest.raises(InputError) as refused:
        checked_names(["bucket", given_name], KNOWN)
    assert str(refused.value).startswith(f"{given_name}: this DAG has no such param. Did you mean `{meant}`?")
    assert "Nothing was done." in str(refused.value)


def test_a_name_like_no_other_is_refused_with_all_that_there_are():
    with pytest.raises(InputError, match="It knows bucket, prefix, sample_by, sample_size, seed, views"):
        checked_names(["hospital"], KNOWN)


def test_names_that_there_are_are_taken():
    checked_names([], KNOWN)
    checked_names(KNOWN, KNOWN)


@pytest.mark.parametrize("storage_class", STORAGE_CLASSES)
def test_every_storage_class(storage_class):
    assert ask(storage_class=storage_class).storage_class == storage_class


@pytest.mark.parametrize(("connections", "streams", "share"), [(8, 4, 2), (8, 1, 8), (9, 4, 2), (4, 4, 1), (64, 3, 21)])
def test_each_stream_has_its_equal_share(connections, streams, share):
    assert ask(connections=connections).share(streams) == share


def test_more_streams_than_connections_cannot_share():
    with pytest.raises(InputError, match="PHYSIONET_STREAMS"):
        ask(connections=4).share(5)


@given(connections=st.integers(4, 64), streams=st.integers(1, 64))
def test_all_streams_together_hold_the_cap(connections, streams):
    if streams <= connections:
        assert 1 <= ask(connections=connections).share(streams) * streams <= connections


@given(st.text(max_size=80))
def test_any_text_is_a_bucket_prefix_and_uri_or_refused(text):
    for check in (checked_bucket, checked_prefix, lambda value: checked_uri("file_list", value)):
        try:
            accepted = check(text)
        except InputError:
            continue
        assert accepted is None or accepted.isprintable()
        assert ".." not in (accepted or "").split("/")


@pytest.mark.parametrize("storage_class", STORAGE_CLASSES)
def test_what_s3_does_not_give_back_is_not_to_be_read_back(storage_class):
    params = {"bucket": "some-bucket", "storage_class": storage_class}
    assert Request.from_params({**params, "verify": "checksum"}).storage_class == storage_class
    if storage_class in ("GLACIER", "DEEP_ARCHIVE"):
        with pytest.raises(InputError, match=f"^verify: content .* storage_class {storage_class} .* Nothing was done"):
            Request.from_params({**params, "verify": "content"})
    else:
        assert Request.from_params({**params, "verify": "content"}).verify == "content"


# -- a backfill's end --------------------------------------------------------------------------------------------------


TWO = datetime(2025, 3, 1, 2, tzinfo=UTC)


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
    assert ask(stop_after=text).stop_after == meant


@pytest.mark.parametrize(
    "text", ["24:00", "6:60", "06:30:00", "-1", "0", "0.0 h", "half", "4 min", "1000", "6.30 am", True]
)
def test_anything_else_is_refused_by_name(text: Any) -> None:
    with pytest.raises(InputError, match=r"^stop_after: .* Nothing was done"):
        ask(stop_after=text)


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
    assert ask(stop_after=stop_after).stops_at(started) == stops


def test_a_time_of_day_is_utc_wherever_the_worker_is() -> None:
    evening = datetime(2025, 3, 1, 20, tzinfo=ZoneInfo("America/New_York"))  # 01:00 UTC of the next day
    assert ask(stop_after="06:30").stops_at(evening) == datetime(2025, 3, 2, 6, 30, tzinfo=UTC)


@pytest.mark.parametrize("slices", [0, -1, 1001, "many", 2.5, True])
def test_slices_that_cannot_be(slices: Any) -> None:
    with pytest.raises(InputError, match=r"^slices: "):
        ask(slices=slices)
