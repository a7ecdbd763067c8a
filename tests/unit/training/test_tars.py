"""Tars: every image once, patients whole, the same bytes on any machine, and members where the table says."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.phantom import Findings, draw
from physionet_mirror.dataset import LABELS
from physionet_mirror.errors import InputError
from physionet_mirror.training import tars
from physionet_mirror.training.pixels import Recipe, SmallCopy, small_copy
from physionet_mirror.training.request import TrainingRequest

SPLITS = ("train", "validate", "test", None)


def table(patients: dict[int, int], **constant: Any) -> pa.Table:
    """An index: so many images of each patient."""
    rows = []
    for patient, images in patients.items():
        for number in range(images):
            dicom_id = f"{patient:08x}-{number:08x}"
            row = {
                "path": f"files/p{str(patient)[:2]}/p{patient}/s{patient + number // 2}/{dicom_id}.jpg",
                "sha256": f"{patient:032x}{number:032x}",
                "bytes": 100,
                "subject_id": patient,
                "study_id": patient + number // 2,
                "dicom_id": dicom_id,
                "view": "PA",
                "split": SPLITS[patient % 4],
                "height": 3056,
                "width": 2544,
                "study_datetime": datetime.fromisoformat("2180-05-06T21:30:14.5"),
                **dict.fromkeys(LABELS, (None, 0, 1, -1)[number % 4]),
            }
            rows.append(row | constant)
    return pa.Table.from_pylist(rows)


PATIENTS = st.dictionaries(st.integers(10_000_000, 19_999_999), st.integers(1, 5), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(PATIENTS, st.integers(100_000, 3_000_000), st.integers(-5, 5), st.randoms())
def test_each_image_is_in_one_tar_with_all_of_its_patient_in_the_same_order_everywhere(
    patients: dict[int, int], shard_bytes: int, seed: int, random: Any
) -> None:
    index = table(patients)
    made = tars.cut(index, Recipe(), shard_bytes, seed)
    paths = [path for tar in made for path in tar.rows["path"].to_pylist()]
    assert sorted(paths) == sorted(index["path"].to_pylist())
    for tar in made:
        assert set(tar.rows["split"].to_pylist()) == {
            None if tar.name.startswith("none") else tar.name.rpartition("-")[0]
        }
    where = [(patient, tar.name) for tar in made for patient in set(tar.rows["subject_id"].to_pylist())]
    assert len(where) == len(patients)
    numbers: dict[str, list[int]] = {}
    for tar in made:
        split, _, number = tar.name.rpartition("-")
        numbers.setdefault(split, []).append(int(number))
    assert all(found == list(range(len(found))) for found in numbers.values())

    shuffled = list(range(index.num_rows))
    random.shuffle(shuffled)
    again = tars.cut(index.take(shuffled), Recipe(), shard_bytes, seed)
    assert [tar.rows["path"].to_pylist() for tar in again] == [tar.rows["path"].to_pylist() for tar in made]
    assert [tars.inputs_digest(tar.rows, Recipe()) for tar in again] == [
        tars.inputs_digest(tar.rows, Recipe()) for tar in made
    ]


def test_a_few_new_images_change_only_the_tars_of_their_patients() -> None:
    patients = {10_000_000 + 4 * n: 3 for n in range(400)}  # all of one split
    a_tar = int(tars.expected_sizes(table(patients), Recipe()).sum() / 11.5)  # so that one more image makes no 13th tar

    def digests(patients: dict[int, int]) -> dict[str, str]:
        made = tars.cut(table(patients), Recipe(), a_tar, 42)
        return {tar.name: tars.inputs_digest(tar.rows, Recipe()) for tar in made}

    before, after = digests(patients), digests(patients | {10_000_000: 4})
    assert len(before) == 12
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 1


def test_the_order_is_another_one_with_another_seed_and_no_order_of_ids() -> None:
    index = table({10_000_000 + 4 * n: 1 for n in range(50)})
    first, second = (tars.cut(index, Recipe(), 10**9, seed)[0].rows["subject_id"].to_pylist() for seed in (1, 2))
    assert first != second
    assert sorted(first) == sorted(second) != first


def test_the_expected_size_of_a_tar_is_about_its_size() -> None:
    original = draw(np.random.default_rng(5), "PA", 3056, 2544, Findings(opacity=True, devices=True))
    rows = table({10_000_000: 1})
    for recipe in (
        Recipe(),
        Recipe(224, quality=75),
        Recipe(512, "square"),
        Recipe(1024, "long_side", quality=90),
        Recipe(256, encoding="png"),
    ):
        size = len(small_copy(original, recipe).data) + 2100
        assert 0.4 < tars.expected_sizes(rows, recipe)[0] / size < 2.5, recipe


def written(rows: list[dict[str, Any]], copies: list[SmallCopy | str]) -> tuple[bytes, pa.Table]:
    file = io.BytesIO()
    members = tars.write(file, "train-000000", zip(rows, copies, strict=True), Recipe())
    return file.getvalue(), members


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=1500), min_size=1, max_size=8), st.sets(st.integers(0, 7)))
def test_members_are_where_the_table_says_and_no_byte_depends_on_the_machine(
    images: list[bytes], undecodable: set[int]
) -> None:
    rows = table({10_000_000: len(images)}).to_pylist()
    copies: list[SmallCopy | str] = [
        "broken" if number in undecodable else SmallCopy(data, 5, 6, 50, 60) for number, data in enumerate(images)
    ]
    data, members = written(rows, copies)
    assert (data, members) == written(rows, copies)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
        there = {info.name: tar.extractfile(info).read() for info in infos}  # type: ignore[union-attr]
    assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in infos} <= {
        (0, 0, 0, "", "", 0o644)
    }
    assert [info.name for info in infos] == [
        f"{row['dicom_id']}.{extension}"
        for row, copy in zip(rows, copies, strict=True)
        if not isinstance(copy, str)
        for extension in ("jpg", "json")
    ]
    for row, copy, member in zip(rows, copies, members.to_pylist(), strict=True):
        if isinstance(copy, str):
            assert (member["tar"], member["offset"], member["reason"]) == (None, None, "broken")
            continue
        assert member["tar"] == "train-000000.tar"
        assert data[member["offset"] :][: member["size"]] == copy.data == there[f"{row['dicom_id']}.jpg"]
        said = json.loads(data[member["json_offset"] :][: member["json_size"]])
        assert said["labels"] == {label: row[label] for label in LABELS}
        assert (said["width"], said["height"]) == (50, 60)
        assert said["study_datetime"] == "2180-05-06T21:30:14.500000"
        assert said["sha256"] == row["sha256"]

    record = tars.record_of("train-000000", "in", "ab", len(data), members, {r["dicom_id"]: r["path"] for r in rows})
    again, same = tars.read_members(tars.members_file(record, members))
    assert (again.to_json(), same) == (record.to_json(), members)
    assert record.images + len(record.left_out) == len(rows)


def test_what_goes_in_decides_the_digest() -> None:
    rows = table({10_000_000: 2})
    digests = {
        tars.inputs_digest(rows, Recipe()),
        tars.inputs_digest(rows, Recipe(quality=90)),
        tars.inputs_digest(rows, Recipe(256)),
        tars.inputs_digest(rows, Recipe(encoding="png")),
        tars.inputs_digest(table({10_000_000: 2}, sha256="ff"), Recipe()),
        tars.inputs_digest(table({10_000_000: 2}, Edema=1), Recipe()),
        tars.inputs_digest(table({10_000_000: 2}, findings="clear"), Recipe()),
    }
    assert len(digests) == 7
    assert tars.inputs_digest(rows, Recipe(encoding="png")) == tars.inputs_digest(rows, Recipe(64 * 8, encoding="png"))


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({}, "512"),
        ({"views": ["frontal"], "splits": ["train", "test"]}, "512-frontal-train-test"),
        ({"size": 224, "resize": "square", "encoding": "png"}, "224-square-png"),
        ({"quality": 90, "seed": 7, "shard_mb": 64, "reports": True}, "512-q90-64mb-seed7-reports"),
        ({"name": "mine"}, "mine"),
    ],
)
def test_a_set_is_named_by_what_differs_from_the_defaults(params: dict[str, Any], name: str) -> None:
    assert TrainingRequest.from_params({"bucket": "a-bucket", **params}).name == name


def test_two_long_names_differ() -> None:
    names = {
        TrainingRequest.from_params({"bucket": "a-bucket", "subjects": [*range(10_000_000, 10_000_030), last]}).name
        for last in (10_000_040, 10_000_041)
    }
    assert len(names) == 2
    assert all(len(name) <= 60 for name in names)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"name": "../up"}, "name"),
        ({"name": "Capital"}, "name"),
        ({"shard_mb": 0}, "shard_mb"),
        ({"shard_mb": 5000}, "shard_mb"),
        ({"shard_mb": True}, "shard_mb"),
        ({"size": 5}, "size"),
        ({"quality": 0}, "quality"),
        ({"bucket": "No"}, "bucket"),
    ],
)
def test_a_wrong_param_is_named_before_any_work(params: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=rf"^{named}: .* Nothing was done"):
        TrainingRequest.from_params({"bucket": "a-bucket", **params})
