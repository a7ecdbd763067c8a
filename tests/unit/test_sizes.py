"""Sizes known before the download, and shards cut by them."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror import shards, sizes
from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import NotFound

PROJECT = Dataset("tiny", "1.0")


class Site:
    """A website with files of these sizes."""

    def __init__(self, files: dict[str, int], stated: int | None = None) -> None:
        self.files, self.stated, self.asked = files, stated, 0

    def size(self, _: Dataset, path: str) -> int | None:
        self.asked += 1
        if path not in self.files:
            raise NotFound("not there")
        return self.files[path]

    def stated_size(self, _: Dataset) -> int | None:
        return self.stated


def test_each_of_up_to_500_files_is_asked_and_the_sum_is_exact() -> None:
    files = {f"f{n}": n * 1000 for n in range(500)}
    site = Site(files)
    known = sizes.ask(site, PROJECT, list(files), connections=8, seed=42)
    assert known.total(list(files)) == (sum(files.values()),) * 3
    assert site.asked == 500


def test_of_more_a_seeded_sample_gives_a_range_that_holds_the_truth() -> None:
    rng = random.Random(3)
    files = {f"f{n}": rng.randrange(100, 200_000) for n in range(20_000)}
    site = Site(files, stated=10**12)
    held = 0
    for seed in range(50):
        guess, least, most = sizes.ask(site, PROJECT, list(files), connections=8, seed=seed).total(list(files))
        assert least < guess < most
        held += least <= sum(files.values()) <= most
    assert held >= 42  # of 50; a range is right in 95 of 100 cases
    assert site.asked == 50 * sizes.SAMPLE
    once, again = (sizes.ask(site, PROJECT, list(files), connections=8, seed=42) for _ in range(2))
    assert once == again
    assert "PhysioNet states 1.00 TB" in once.basis or "PhysioNet states 1 TB" in once.basis or "1,000" in once.basis


def test_no_more_than_physionet_states_and_a_file_that_is_not_there_stops_nothing() -> None:
    files = {f"f{n}": 10 for n in range(9)}
    known = sizes.ask(Site(files, stated=95), PROJECT, [*files, "gone"], connections=2, seed=1)
    assert known.total([*files, "gone"]) == (95, 95, 95)
    assert sizes.ask(Site({}), PROJECT, ["gone"], connections=2, seed=1).total(["gone"])[0] == sizes.GUESS


@given(st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=300), st.integers(1, 16))
def test_shards_cover_all_in_order_and_a_huge_file_does_not_drag_others_along(files: list[int], streams: int) -> None:
    parts = shards.cut_by_bytes(files, streams, 2 * streams)
    assert parts is not None
    assert [p.start for p in parts] == [0, *(p.stop for p in parts[:-1])]
    assert parts[-1].stop == len(files)
    assert all(before.stop == after.start for before, after in pairwise(parts))
    largest = max(max(files), sum(files) / shards.USUAL_SHARDS, shards.BYTES_PER_SECOND * 2 * shards.SHARD_SECONDS)
    assert all(sum(files[p]) <= 1.1 * largest + 1 for p in parts)


def test_neither_41_files_of_mimic_iv_nor_hundreds_of_thousands_of_tiny_ones_are_cut_badly() -> None:
    mimic = [3_300_000_000, 1_900_000_000, 1_300_000_000, *[200_000_000] * 12, *[50_000_000] * 20, *[10_000] * 6]
    parts = shards.cut_by_bytes(mimic, 4, 8)
    assert parts is not None
    assert {p.start for p in parts} >= {0, 1, 2, 3}, "each large file is alone"
    assert len(parts) < len(mimic), "small ones go together"
    ecg = shards.cut_by_bytes([56_000] * 400_000, 4, 8)
    assert ecg is not None
    assert 40 <= len(ecg) <= shards.USUAL_SHARDS
    assert max(p.stop - p.start for p in ecg) <= shards.LARGEST_SHARD
