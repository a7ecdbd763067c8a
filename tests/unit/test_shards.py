"""Shards: contiguous, disjoint, complete; and what of them is missing in the bucket."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.physionet_mirror.destination import Listed, Stored
from include.physionet_mirror.errors import InputError, MetadataError
from include.physionet_mirror.layout import RunLayout
from include.physionet_mirror.shards import (
    HANDFUL,
    LARGEST_SHARD,
    MOST_SHARDS,
    Image,
    Shard,
    check_size,
    cut,
    decode,
    encode,
    missing,
    pack,
    size_for,
    slice_of,
)

LAYOUT = RunLayout("r")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def path(number: int) -> str:
    return f"files/p{10 + number % 10}/p{10000000 + number}/s5/{number:08d}.jpg"


def images(count: int) -> list[Image]:
    return sorted((Image(path(n), f"{n:064x}") for n in range(count)), key=lambda image: image.path)


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


def test_the_whole_dataset_makes_about_400_shards() -> None:
    assert len(cut(377_110, size_for(377_110, 4, 8))) == 400


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


def frame_of(rows: list[Image], numbers: list[int] | None = None) -> pd.DataFrame:
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
        assert Shard.from_dict(shard.to_dict()) == shard


def test_a_shard_knows_how_much_of_the_dataset_lies_in_its_range() -> None:
    ((shard, _),) = pack(frame_of(images(3), [5, 900, 4004]), 10, LAYOUT.shard)

    assert shard.span == 4000


@given(
    st.lists(st.builds(Image, st.text("abc/é .-", min_size=1), st.text("0123456789abcdef", min_size=64, max_size=64)))
)
def test_what_is_encoded_is_decoded(rows: list[Image]) -> None:
    assert decode(encode(rows)) == rows


@pytest.mark.parametrize("data", [b"x y\n", b"\n", encode(images(2))[:-1], encode(images(2))[70:]])
def test_a_damaged_shard_file_is_refused(data: bytes) -> None:
    with pytest.raises(MetadataError, match="shard file is damaged"):
        decode(data)


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


# --- what is missing --------------------------------------------------------------------------------------------------


@dataclass
class FakeBucket:
    """Objects by path: (size, etag, sha256 that S3 holds). Lists and heads as the real one does, and counts."""

    objects: dict[str, tuple[int, str, str | None]]
    asked: list[str] = field(default_factory=list)
    listings: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def list(self, under: str = "", *, start_after: str | None = None, last: str | None = None) -> Iterator[Listed]:
        self.listings.append((under, start_after, last))
        for name in sorted(self.objects):
            if name.startswith(under) and name > (start_after or "") and (last is None or name <= last):
                yield Listed(name, self.objects[name][0], self.objects[name][1], NOW)

    def head(self, name: str) -> Stored | None:
        self.asked.append(name)
        if name not in self.objects:
            return None
        size, etag, sha256 = self.objects[name]
        return Stored(name, size, etag, sha256, "STANDARD", "image/jpeg", NOW)


class FakeMemory:
    def __init__(self, verdicts: dict[str, str]) -> None:
        self.verdicts = verdicts

    def judge(self, name: str, *_: object) -> str:
        return self.verdicts.get(name, "unknown")


def stored(rows: list[Image]) -> dict[str, tuple[int, str, str | None]]:
    return {image.path: (100, "e", image.sha256) for image in rows}


def test_what_is_remembered_is_not_asked_again() -> None:
    rows = images(50)
    bucket = FakeBucket(stored(rows) | {"files/p09/before": (1, "e", None), "files/p20/after": (1, "e", None)})

    found = missing(rows, bucket, FakeMemory({image.path: "verified" for image in rows}))  # type: ignore[arg-type]

    assert (found.images, found.present, found.lists, found.heads) == ([], 50, 1, 0)
    assert bucket.asked == []
    assert bucket.listings == [("files/", rows[0].path[:-1], rows[-1].path)]


def test_each_image_is_judged_by_what_is_known_of_it() -> None:
    absent, empty, known_wrong, right, other_bytes, unproven, remembered = rows = images(7)
    bucket = FakeBucket(stored(rows))
    del bucket.objects[absent.path]
    bucket.objects[empty.path] = (0, "e", None)
    bucket.objects[other_bytes.path] = (100, "e", "f" * 64)
    bucket.objects[unproven.path] = (100, "e", None)
    memory = FakeMemory({known_wrong.path: "wrong", remembered.path: "verified"})

    found = missing(rows, bucket, memory)  # type: ignore[arg-type]

    assert found.images == [absent, empty, known_wrong, other_bytes]
    assert (found.absent, found.wrong, found.present, found.unproven) == (1, 3, 3, 1)
    assert sorted(bucket.asked) == [right.path, other_bytes.path, unproven.path]
    assert [proof.path for proof in found.proven] == [right.path]


def test_presence_alone_needs_no_head() -> None:
    rows = images(5)
    bucket = FakeBucket(stored(rows[:3]))
    bucket.objects[rows[0].path] = (0, "e", None)

    found = missing(rows, bucket, None)  # type: ignore[arg-type]

    assert found.images == [rows[0], *rows[3:]]
    assert bucket.asked == []


def test_a_sparse_sample_is_asked_for_image_by_image() -> None:
    rows = images(30)
    bucket = FakeBucket(stored(rows[:10]))

    found = missing(rows, bucket, FakeMemory({}), span=30_001)  # type: ignore[arg-type]

    assert found.images == rows[10:]
    assert (found.lists, found.heads) == (0, 30)
    assert bucket.listings == []
    assert missing(rows, bucket, FakeMemory({}), span=30_000).lists == 1  # type: ignore[arg-type]


def test_lists_are_counted_as_s3_bills_them() -> None:
    rows = images(2500)
    bucket = FakeBucket(stored(rows))

    found = missing(rows, bucket, None)  # type: ignore[arg-type]

    assert found.lists == math.ceil(2500 / 1000)


def test_nothing_to_look_for_asks_nothing() -> None:
    assert missing([], FakeBucket({}), None).images == []  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)  # each starts threads
@given(st.data())
def test_present_and_missing_are_the_shard(data: st.DataObject) -> None:
    rows = images(20)
    there = data.draw(st.sets(st.sampled_from(rows)))
    remembered = data.draw(st.sets(st.sampled_from(rows)))
    span = data.draw(st.sampled_from([20, 50_000]))

    found = missing(
        rows,
        FakeBucket(stored(sorted(there, key=lambda i: i.path))),  # type: ignore[arg-type]
        FakeMemory({image.path: "verified" for image in remembered}),  # type: ignore[arg-type]
        span=span,
    )

    assert found.images == [image for image in rows if image not in there]
    assert found.present == len(there)
