"""Overview and cohort count the rows of manifest and index, and read neither again while it is unchanged."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from itertools import product
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from physionet_mirror import manifest, overview
from physionet_mirror.dataset import LABELS, MIMIC_CXR_JPG, project
from physionet_mirror.errors import InputError
from physionet_mirror.layout import INDEX, MANIFEST, verified
from physionet_mirror.request import Request

COUNT = 300


def frame():
    rows = []
    for n in range(COUNT):
        subject, study = 10_000_000 + (n // 10) * 300_000, 50_000_000 + n // 2
        dicom = f"{n:08x}-00000000-00000000-00000000-00000000"
        rows.append(
            {
                "path": f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg",
                "sha256": f"{n:064x}",
                "group": f"p{str(subject)[:2]}",
                "subject_id": subject,
                "study_id": study,
                "dicom_id": dicom,
                "view": ["PA", "AP", None][n % 3],
                "split": ["train", "train", "train", "validate", "test"][n // 10 % 5],
                "height": 100,
                "width": 100,
                **{label: [1, 0, -1, None][(n // 2 + i) % 4] for i, label in enumerate(LABELS)},
            }
        )
    table = pd.DataFrame(rows).sort_values("path", ignore_index=True)
    types = {"subject_id": "int32", "study_id": "int32", "height": "Int32", "width": "Int32"}
    return table.astype(types | dict.fromkeys(LABELS, "Int8"))


class Files:
    def __init__(self):
        self.content, self.requests = {}, []

    def head(self, path):
        self.requests.append(("HEAD", path))
        return SimpleNamespace(etag=str(hash(self.content[path]))) if path in self.content else None

    def open_read(self, path):
        self.requests.append(("GET", path))
        yield self.content[path]

    def list(self, under=""):
        self.requests.append(("LIST", under))
        at = pd.Timestamp("2026-03-01T22:00:00Z").to_pydatetime()
        return [SimpleNamespace(path=path, last_modified=at) for path in self.content if path.startswith(under)]


def index_of(table):
    out = BytesIO()
    columns = {name: table[name].tolist() for name in ("path", "sha256")}
    pq.write_table(pa.table({**columns, "bytes": [1000] * len(table)}), out)
    return out.getvalue()


@pytest.fixture
def table():
    return frame()


@pytest.fixture
def bucket(table):
    files = Files()
    out = BytesIO()
    manifest.write(table, out, dataset=MIMIC_CXR_JPG, sums_sha256="0" * 64)
    files.content[MANIFEST] = out.getvalue()
    return files


def ask(**params):
    return Request.from_params({"bucket": "lab-bucket", **params})


def test_a_bucket_without_manifest_has_no_catalog_and_no_overview():
    assert overview.load(Files()) is None
    assert overview.overview(Files()) is None


def test_without_index_nothing_is_there(bucket):
    seen = overview.overview(bucket)
    assert (seen.whole.images, seen.whole.verified, seen.whole.bytes) == (COUNT, 0, 0)
    assert seen.last_verified is None


def test_groups_splits_and_cells_count_what_the_index_has(bucket, table):
    there = table[table["group"].eq("p10") | table["split"].eq("test")]
    bucket.content[INDEX] = index_of(there)
    bucket.content[verified("p10")] = b"x"
    seen = overview.overview(bucket)
    assert (seen.whole.verified, seen.whole.bytes) == (len(there), 1000 * len(there))
    assert {part.name: (part.images, part.verified) for part in seen.groups} == {
        name: (len(rows), int(rows.index.isin(there.index).sum())) for name, rows in table.groupby("group")
    }
    assert [part.name for part in seen.splits] == ["train", "validate", "test"]
    assert "p10" in [part.name for part in seen.complete]
    for group in seen.groups:
        assert sum(cell.images for cell in seen.cells[group.name]) == group.images
        assert sum(cell.verified for cell in seen.cells[group.name]) == group.verified
    assert set(seen.group_verified) == {"p10"}


def test_what_did_not_change_is_not_read_again(bucket, table):
    bucket.content[INDEX] = index_of(table[:10])
    first = overview.load(bucket)
    bucket.requests.clear()
    assert overview.load(bucket, first) is first
    assert bucket.requests == [("HEAD", MANIFEST), ("HEAD", INDEX)]
    bucket.content[INDEX] = index_of(table[:20])
    bucket.requests.clear()
    second = overview.load(bucket, first)
    assert int(second.verified.sum()) == 20


def test_an_overview_is_counted_again_only_where_something_changed_and_its_times_are_always_new(bucket, table):
    bucket.content[INDEX] = index_of(table[:10])
    first = overview.overview(bucket)
    bucket.requests.clear()
    bucket.content[verified("p11")] = b"x"
    again = overview.overview(bucket, first)
    assert again == replace(first, last_verified=again.last_verified, group_verified=again.group_verified)
    assert (first.last_verified, set(again.group_verified)) == (None, {"p11"})
    assert [kind for kind, _ in bucket.requests] == ["HEAD", "HEAD", "LIST"]
    bucket.content[INDEX] = index_of(table[:20])
    assert overview.overview(bucket, again).whole.verified == 20


def any_files(files, paths, there=0):
    """The bucket of a project without radiographs, of which the first ``there`` files are verified."""
    frame = pd.DataFrame({"path": paths, "sha256": [f"{n:064x}" for n in range(len(paths))]})
    out = BytesIO()
    manifest.write(frame, out, dataset=project("a-project/1.0"), sums_sha256="0" * 64)
    files.content[MANIFEST] = out.getvalue()
    files.content[INDEX] = index_of(frame[:there])
    return files


def test_any_project_is_counted_by_folder():
    seen = overview.overview(any_files(Files(), ["a/1", "a/b/2", "c/3", "licence"], there=3))
    assert (seen.dataset, seen.has_images) == ("a-project/1.0", False)
    assert (seen.whole.images, seen.whole.verified, seen.whole.bytes) == (4, 3, 3000)
    assert [(part.name, part.images, part.verified) for part in seen.groups] == [
        ("a", 2, 2),
        ("c", 1, 1),
        ("other", 1, 0),
    ]
    assert [part.name for part in seen.complete] == ["a", "c"]


def test_beyond_200_folders_the_rest_are_counted_together():
    names = sorted("".join(pair) for pair in product("abcdefghijklmnopqrst", repeat=2))
    seen = overview.overview(any_files(Files(), [f"{name}/x" for name in names], there=400))
    assert [part.name for part in seen.groups] == [*names[:200], overview.OTHERS]
    assert (seen.groups[-1].images, seen.groups[-1].verified, seen.whole.images) == (200, 200, 400)


def test_a_project_of_radiographs_is_counted_by_its_images_alone_and_planned_by_every_file(bucket, table):
    more = pd.concat([table, pd.DataFrame({"path": ["LICENSE.txt"], "sha256": ["a" * 64]})], ignore_index=True)
    more = more.astype(dict.fromkeys(("subject_id", "study_id"), "Int32"))
    out = BytesIO()
    manifest.write(more, out, dataset=MIMIC_CXR_JPG, sums_sha256="0" * 64)
    bucket.content[MANIFEST] = out.getvalue()
    seen = overview.overview(bucket)
    assert (seen.dataset, seen.has_images, seen.whole.images) == (MIMIC_CXR_JPG.name, True, COUNT)
    assert len(overview.load(bucket).frame) == COUNT
    files = overview.load(bucket, kind="files")
    assert len(files.frame) == COUNT + 1
    assert not files.has_images


def test_an_index_with_images_that_the_manifest_lacks_is_no_trouble(bucket, table):
    bucket.content[INDEX] = index_of(table.assign(path="files/p10/another.jpg"))
    assert int(overview.load(bucket).verified.sum()) == 0


def test_an_image_that_physionet_has_replaced_is_not_verified(bucket, table):
    before = table.assign(sha256=table["sha256"].where(table.index >= 4, "f" * 64))
    bucket.content[INDEX] = index_of(before)
    seen = overview.overview(bucket)
    assert (seen.whole.verified, seen.whole.bytes) == (COUNT - 4, 1000 * (COUNT - 4))


def test_a_cohort_is_the_one_that_a_run_would_choose(bucket, table):
    bucket.content[INDEX] = index_of(table[table["group"].eq("p10")])
    known = overview.load(bucket)
    seen = overview.preview(known, ask(select="all", groups=["p10"], views=["PA"]), streams=4)
    wanted = table[table["group"].eq("p10") & table["view"].eq("PA")]
    assert seen.counts.images == seen.counts.verified == seen.matched == len(wanted)
    assert seen.counts.patients == wanted["subject_id"].nunique()
    assert seen.views == [("PA", len(wanted))]
    assert seen.estimate.missing == 0
    assert dict(seen.positive) == {label: int(wanted[label].eq(1).sum()) for label in LABELS}


def test_a_sample_leaves_the_count_that_the_filters_leave(bucket):
    seen = overview.preview(overview.load(bucket), ask(sample_size=25), streams=4)
    assert (seen.counts.images, seen.matched, seen.estimate.missing) == (25, COUNT, 25)
    assert overview.NOT_GIVEN in dict(seen.views)


def test_a_bucket_of_its_own_has_none_of_the_images(bucket, table):
    bucket.content[INDEX] = index_of(table)
    known = overview.load(bucket)
    assert overview.preview(known, ask(sample_size=25), streams=4).counts.verified == 25
    assert overview.preview(overview.without_index(known), ask(sample_size=25), streams=4).counts.verified == 0


def test_a_filter_that_matches_nothing_says_so(bucket, table):
    known = replace(overview.load(bucket), frame=table[table["view"].ne("PA")].assign(view="AP"))
    with pytest.raises(InputError, match=r"^views: the dataset has no 'PA'"):
        overview.preview(overview.without_index(known), ask(views=["PA"], select="all"), streams=4)


def test_copies_inside_s3_are_estimated_as_a_run_would_plan_them(bucket):
    """Page and plan use the same function: a copy takes 0.3 s, whatever the speed of PhysioNet's website."""
    modes = ("download", "copy")
    known = overview.load(bucket)
    over_http, inside = (overview.preview(known, ask(select="all"), mode=mode, streams=4) for mode in modes)
    assert inside.estimate.hours * 3600 == pytest.approx(COUNT * 0.3 / (8 * 32))
    assert inside.estimate.hours < over_http.estimate.hours
    assert "a copy" in inside.estimate.basis
    assert over_http.ways == inside.ways
    assert [way.mode for way in inside.ways] == ["download", "copy", "through"]
    assert inside.estimate in inside.ways


def test_no_copy_is_offered_to_a_bucket_of_another_region(bucket):
    seen = overview.preview(overview.load(bucket), ask(select="all"), mode="copy", streams=4, region="eu-west-1")
    assert [way.mode for way in seen.ways] == ["download", "through"]
    assert (seen.estimate.mode, seen.estimate.transfer_to) == ("through", "eu-west-1")
    elsewhere = overview.preview(overview.load(bucket), ask(), streams=4, region="auto", in_aws=False)
    assert [way.transfer_to for way in elsewhere.ways] == ["", "", "the internet"]
