"""Shards are contiguous, disjoint and complete, and no damage to their files goes unnoticed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror.errors import InputError, MetadataError
from physionet_mirror.estimate import usual_speed
from physionet_mirror.files import File
from physionet_mirror.layout import RunLayout
from physionet_mirror.mover import Mode
from physionet_mirror.request import Request
from physionet_mirror.shards import (
    HANDFUL,
    LARGEST_SHARD,
    MOST_SHARDS,
    USUAL_FAST_SHARDS,
    Shard,
    check_size,
    cut,
    decode,
    encode,
    pack,
    read,
    seal,
    size_for,
    slice_of,
    slice_of_day,
)

LAYOUT = RunLayout("r")


def path(number: int) -> str:
    return f"files/p{10 + number % 10}/p{10000000 + number}/s5/{number:08d}.jpg"


def images(count: int) -> list[File]:
    return sorted((File(path(n), f"{n:064x}") for n in range(count)), key=lambda image: image.path)


# --- cutting ----------------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 10_000), size=st.integers(1, 10_000))
def test_parts_cover_everything_once_and_in_order(count: int, size: int) -> None:
    parts = cut(count, size)

    edges = [0, *(part.stop for part in parts)]
    assert [(part.start, part.stop) for part in parts] == list(pairwise(edges))
    assert edges[-1] == count
    assert all(0 < part.stop - part.start <= size for part in parts)


@settings(deadline=None)
@given(count=st.integers(0, 400_000), slices=st.integers(1, 400))
def test_slices_partition_the_dataset_into_nearly_equal_parts(count: int, slices: int) -> None:
    parts = [slice_of(count, index, slices) for index in range(slices)]

    assert parts[0].start == 0
    assert parts[-1].stop == count
    assert all(a.stop == b.start for a, b in pairwise(parts))
    lengths = [p.stop - p.start for p in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("index", "slices"), [(-1, 3), (3, 3), (0, 0)])
def test_a_slice_that_is_not_there_is_refused(index: int, slices: int) -> None:
    with pytest.raises(InputError, match=f"no slice {index} of {slices}"):
        slice_of(10, index, slices)


@settings(deadline=None)
@given(
    count=st.integers(1, 9_000_000),
    streams=st.integers(1, 64),
    connections=st.integers(1, 64),
    expected=st.none() | st.integers(0, 400_000),
)
def test_the_plan_keeps_to_its_limits(count: int, streams: int, connections: int, expected: int | None) -> None:
    size = size_for(count, streams, connections, expected)
    shards = len(cut(count, size))

    assert 1 <= shards <= MOST_SHARDS
    assert size <= LARGEST_SHARD
    assert shards >= min(streams, max(count // HANDFUL, 1))


@settings(deadline=None)
@given(
    count=st.integers(1, 9_000_000),
    most=st.integers(1, 1_000),
    streams=st.integers(1, 64),
    expected=st.none() | st.integers(0, 400_000),
)
def test_the_plan_makes_no_more_shards_than_airflow_can_map(
    count: int, most: int, streams: int, expected: int | None
) -> None:
    size = size_for(count, streams, 8, expected, most=most)

    assert len(cut(count, size)) <= most
    if most == MOST_SHARDS:
        assert size == size_for(count, streams, 8, expected)


def test_a_shard_size_is_measured_by_what_this_airflow_can_map() -> None:
    check_size(1000, 50, 20)
    with pytest.raises(
        InputError, match=r"^shard_size: 49 cuts 1,000 images into 21 shards, .* at most 20 .* at least 50"
    ):
        check_size(1000, 49, 20)
    with pytest.raises(InputError, match="leave it empty to let the plan choose"):
        check_size(377_110, 9_000, 20)
    with pytest.raises(InputError, match=r"^shard_size: 49 cuts 1,000 files into 21 shards"):
        check_size(1000, 49, 20, "file")


def test_the_whole_dataset_makes_about_400_shards() -> None:
    assert len(cut(377_110, size_for(377_110, 4, 8))) == 400


@pytest.mark.parametrize("mode", ["copy", "through"])
@pytest.mark.parametrize("streams", [1, 4, 8, 16])
def test_the_fast_ways_make_the_whole_dataset_at_most_60_shards(mode: Mode, streams: int) -> None:
    at_once, speed = usual_speed(Request.from_params({"bucket": "b-1"}), 1_624_000, mode, streams)
    rate = speed.bytes_per_second
    size = size_for(377_110, streams, at_once, None, 1_624_000, rate, usual=USUAL_FAST_SHARDS)
    assert streams <= len(cut(377_110, size)) <= 60


def test_a_rerun_that_expects_nothing_missing_makes_few() -> None:
    assert len(cut(377_110, size_for(377_110, 4, 8, expected_missing=0))) <= 40


def test_a_handful_is_one_shard() -> None:
    assert len(cut(3, size_for(3, 4, 8))) == 1


@pytest.mark.parametrize(("size", "words"), [(0, "1 to 10,000"), (10_001, "1 to 10,000"), (377, "give at least 378")])
def test_a_shard_size_that_airflow_cannot_map_is_refused(size: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_size(377_110, size)
    check_size(377_110, 378)


# --- shard files ------------------------------------------------------------------------------------------------------


def frame_of(rows: list[File], numbers: list[int] | None = None) -> pd.DataFrame:
    data = {"path": [image.path for image in rows], "sha256": [image.sha256 for image in rows]}
    return pd.DataFrame(data, index=numbers, dtype="string[pyarrow]")


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 200), size=st.integers(1, 60))
def test_the_shard_files_together_are_the_selection(count: int, size: int) -> None:
    packed = list(pack(frame_of(images(count)), size, LAYOUT.shard))

    assert [image for _, data in packed for image in decode(data)] == images(count)
    for index, (shard, data) in enumerate(packed):
        held = decode(data)
        assert (shard.index, shard.images, shard.span) == (index, len(held), len(held))
        assert (shard.first, shard.last) == (held[0].path, held[-1].path)
        assert shard.path == f"_mirror/runs/r/shards/{index:04d}.sha256"
        assert Shard.from_json(shard.to_json()) == shard


def test_a_shard_knows_how_much_of_the_dataset_lies_in_its_range() -> None:
    ((shard, _),) = pack(frame_of(images(3), [5, 900, 4004]), 10, LAYOUT.shard)

    assert shard.span == 4000


@given(
    st.lists(st.builds(File, st.text("abc/é .-", min_size=1), st.text("0123456789abcdef", min_size=64, max_size=64)))
)
def test_what_is_encoded_is_decoded(rows: list[File]) -> None:
    assert decode(encode(rows)) == rows


@pytest.mark.parametrize("data", [b"x y\n", b"\n", encode(images(2))[:-1], encode(images(2))[70:]])
def test_a_damaged_shard_file_is_refused(data: bytes) -> None:
    with pytest.raises(MetadataError, match="shard file is damaged"):
        decode(data)


class OneFile:
    """The part of Bucket that `read` uses."""

    def __init__(self, data: bytes | None) -> None:
        self.data = data

    def uri(self, path: str) -> str:
        return f"s3://bucket/{path}"

    def read(self, path: str) -> bytes:
        if self.data is None:
            raise FileNotFoundError(path)
        return self.data


def planned(count: int = 200) -> tuple[Shard, bytes]:
    ((shard, data),) = pack(frame_of(images(count)), count, LAYOUT.shard)
    return shard, data


OTHER = encode([replace(image, sha256="f" * 64) if number == 99 else image for number, image in enumerate(images(200))])


@pytest.mark.parametrize("of_an_earlier_version", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda lines: lines[:175], id="cut at a line border"),
        pytest.param(lambda lines: lines[25:], id="its head is gone"),
        pytest.param(lambda lines: lines[:20] + lines[21:], id="a line is gone"),
        pytest.param(lambda _: [], id="emptied"),
        pytest.param(lambda lines: [*lines, lines[-1]], id="a line twice"),
        pytest.param(lambda _: encode(images(201)).splitlines(True)[:200], id="another shard's"),
    ],
)
def test_what_is_compared_is_what_was_planned(damage: Any, of_an_earlier_version: bool) -> None:
    shard, data = planned()
    if of_an_earlier_version:
        shard = Shard.from_json({key: value for key, value in shard.to_json().items() if key != "sha256"})
    assert read(OneFile(data), shard) == images(200)  # type: ignore[arg-type]

    with pytest.raises(MetadataError, match="trigger a new run"):
        read(OneFile(b"".join(damage(data.splitlines(keepends=True)))), shard)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [None, OTHER], ids=["gone", "another checksum in its middle"])
def test_a_shard_file_that_is_another_is_refused(data: bytes | None) -> None:
    with pytest.raises(MetadataError, match="No file is affected"):
        read(OneFile(data), planned()[0])  # type: ignore[arg-type]


@given(
    count=st.integers(0, 40),
    cut=st.integers(0, 2500),
    flip=st.integers(0, 2500),
)
def test_a_sealed_list_is_read_whole_or_not_at_all(count: int, cut: int, flip: int) -> None:
    whole = seal(images(count))
    flipped = bytearray(whole)
    flipped[flip % len(whole)] ^= 1
    assert decode(whole, sealed=True) == decode(whole) == images(count)
    for damaged in (whole[: cut % len(whole)], bytes(flipped)):
        with pytest.raises(MetadataError):
            decode(damaged, sealed=True)


def test_lists_of_earlier_versions_are_read_where_nothing_depends_on_it() -> None:
    assert decode(encode(images(7))) == images(7)
    assert decode(b"") == []
    with pytest.raises(MetadataError, match="first line"):
        decode(encode(images(7)), sealed=True)


@pytest.mark.parametrize(
    ("first", "last", "count", "name"),
    [
        ("files/p10/p1/s1/a.jpg", "files/p11/p2/s2/b.jpg", 500, "p10 … p11, 500 images"),
        ("files/p10/p10000032/s1/a.jpg", "files/p10/p10046166/s2/b.jpg", 9430, "p10000032 … p10046166, 9,430 images"),
        ("files/p10/p10000032/s1/a.jpg", "files/p10/p10000032/s1/a.jpg", 1, "p10000032, 1 image"),
        ("files/p10/p10000032/s1/a.jpg", "files/p10/p10000032/s2/a.jpg", 2, "p10000032, 2 images"),
        ("a.jpg", "b.jpg", 2, "a.jpg … b.jpg, 2 images"),
    ],
)
def test_names_tell_shards_apart(first: str, last: str, count: int, name: str) -> None:
    assert Shard(0, count, first, last, "s", count).name == name


# --- which day of a backfill owns which slice -------------------------------------------------------------------------


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
