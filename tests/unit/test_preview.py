"""What a run of any project would select: files, and sizes that rest on the best that is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from physionet_mirror import overview, records
from physionet_mirror.preview import MOST_FOLDERS, FilePreview, Planned, preview_files
from physionet_mirror.records import Estimate
from physionet_mirror.request import Request
from tests.unit.test_overview import Files, any_files

PATHS = ["hosp/a.csv.gz", "hosp/b.csv.gz", "icu/c.csv.gz", "icu/d.csv.gz", "licence"]


def see(there: int = 0, plans: list[Planned] | None = None, paths: list[str] = PATHS, **params: Any) -> FilePreview:
    catalog = overview.load(any_files(Files(), paths, there), kind="files")
    assert catalog is not None
    request = Request.from_params({"bucket": "lab-bucket", "project": "a-project/1.0", **params})
    return preview_files(catalog, request, streams=4, plans=plans or [])


def planned(images: int, size: int, include: tuple[str, ...] = (), **more: Any) -> Planned:
    return Planned(include, (), Estimate(images=images, bytes=size, missing=images, missing_bytes=size, **more))


def test_files_folders_and_what_is_there_are_counted() -> None:
    seen = see(there=3, exclude=["licence"])
    assert (seen.selected, seen.verified, seen.of) == (4, 3, 5)
    assert dict(seen.folders) == {"hosp": 2, "icu": 2}
    assert (seen.estimate.noun, seen.estimate.missing) == ("file", 1)
    assert [way.mode for way in seen.ways] == ["download", "copy", "through"]


def test_many_folders_end_in_all_others() -> None:
    names = "abcdefghijklmnopq"
    seen = see(paths=[f"{name}/x" for name in names])
    assert len(seen.folders) == MOST_FOLDERS + 1
    assert seen.folders[-1] == ("all others", len(names) - MOST_FOLDERS)


@pytest.mark.parametrize(
    ("there", "plans", "params", "fetched", "basis"),
    [
        (5, [], {}, 0, "as it was verified"),
        (2, [planned(5, 9000, sizes="HEAD of each")], {}, 7000, "the last plan of the same files: HEAD of each"),
        (2, [planned(5, 9000)], {"include": ["icu/*"]}, 3600, "the mean of the 5 files of an earlier plan"),
        (2, [planned(2, 8, ("icu/*",)), planned(5, 9000)], {"include": ["icu/*"]}, 8, "same files"),
        (2, [planned(5, 1000)], {}, 600, "an earlier plan"),  # less than is there already: it was of other files
        (2, [planned(0, 0)], {}, 3000, "the mean of the 2 files that are verified"),
        (1, [], {}, 4000, "the one verified file"),
        (0, [], {"project": "mimiciv/3.1"}, 5 * (10_600_000_000 // 41), "known of this project"),
        (0, [], {}, 5_000_000, "a guess"),
    ],
)
def test_sizes_rest_on_the_best_that_is_known(
    there: int, plans: list[Planned], params: dict[str, Any], fetched: int, basis: str
) -> None:
    estimate = see(there, plans, **params).estimate
    assert estimate.missing_bytes == fetched
    assert estimate.bytes == fetched + 1000 * min(there, 0 if "include" in params else there)
    assert basis in estimate.sizes
    assert not estimate.exact


def test_a_range_of_an_earlier_plan_stays_one() -> None:
    plan = planned(5, 10_000, missing_bytes_least=8000, missing_bytes_most=12_000)
    estimate = see(0, [plan], include=["icu/*"]).estimate
    assert (estimate.missing_bytes_least, estimate.missing_bytes, estimate.missing_bytes_most) == (3200, 4000, 4800)


def test_a_plan_in_the_bucket_tells_its_globs_whatever_they_hold() -> None:
    document = {"shards": [], "schema": "x", "request": {"include": ["a", 7], "exclude": "b"}, "estimate": {}}
    plan = records.Plan.from_json(document)
    assert Planned.of(plan) == replace(Planned(("a", "7"), (), plan.estimate))
