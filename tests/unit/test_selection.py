"""Selection: filters first, then a sample that is nested, deterministic and keeps units together."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror.dataset import LABELS
from physionet_mirror.errors import InputError
from physionet_mirror.selection import Selection, choose, listed_paths, rank


def cohort(patients: int = 60) -> pd.DataFrame:
    """A small manifest: 1 to 3 studies a patient, 1 to 3 images a study, every value of every filter."""
    draw = np.random.default_rng(7)
    rows = []
    for number in range(patients):
        subject = 10_000_000 + number * 166_000
        split = draw.choice(["train", "validate", "test"], p=[0.7, 0.15, 0.15])
        for _ in range(draw.integers(1, 4)):
            study = int(draw.integers(50_000_000, 60_000_000))
            labels = {name: draw.choice([1, 0, -1, pd.NA], p=[0.2, 0.1, 0.1, 0.6]) for name in LABELS}
            for _ in range(draw.integers(1, 4)):
                dicom = "-".join(f"{n:08x}" for n in draw.integers(0, 2**32, 5))
                group = f"p{str(subject)[:2]}"
                rows.append(
                    {
                        "path": f"files/{group}/p{subject}/s{study}/{dicom}.jpg",
                        "sha256": draw.bytes(32).hex(),
                        "group": group,
                        "subject_id": subject,
                        "study_id": study,
                        "dicom_id": dicom,
                        "view": draw.choice(["AP", "PA", "LATERAL", None]),
                        "split": split,
                        "height": 3056,
                        "width": 2544,
                        **labels,
                    }
                )
    frame = pd.DataFrame(rows).sort_values("path", ignore_index=True)
    text = dict.fromkeys(["path", "sha256", "group", "dicom_id", "view", "split"], "string[pyarrow]")
    return frame.astype(text | dict.fromkeys(LABELS, "Int8") | dict.fromkeys(["subject_id", "study_id"], "int32"))


EXPECTED_RANKS = (1_705_450_840_950_988_451, 3_652_740_884_073_616_837)
"""The ranks of ``02aa804e`` and 10000032 with seed 42."""

MANIFEST = cohort()
ALL = Selection(select="all")


def paths(selection: Selection, manifest: pd.DataFrame = MANIFEST) -> list[str]:
    return choose(manifest, selection).frame["path"].tolist()


# --- the sample -------------------------------------------------------------------------------------------------------

units = st.sampled_from(["image", "study", "patient"])
seeds = st.integers(-(2**40), 2**40)


@settings(max_examples=40, deadline=None)
@given(small=st.integers(1, 400), more=st.integers(0, 100), by=units, seed=seeds)
def test_a_sample_is_contained_in_every_larger_one(small: int, more: int, by: str, seed: int) -> None:
    of_few = paths(Selection(sample_size=small, sample_by=by, seed=seed, views=("AP", "PA")))
    of_many = paths(Selection(sample_size=small + more, sample_by=by, seed=seed, views=("AP", "PA")))

    assert set(of_few) <= set(of_many)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, size=st.integers(1, 100), by=units, shuffle=st.randoms())
def test_the_order_of_the_manifest_does_not_matter(seed: int, size: int, by: str, shuffle: object) -> None:
    order = list(range(len(MANIFEST)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    selection = Selection(sample_size=size, sample_by=by, seed=seed)

    assert sorted(paths(selection, MANIFEST.iloc[order])) == paths(selection)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 80), by=st.sampled_from(["study", "patient"]), seed=seeds)
def test_studies_and_patients_stay_together(size: int, by: str, seed: int) -> None:
    column = {"study": "study_id", "patient": "subject_id"}[by]

    chosen = choose(MANIFEST, Selection(sample_size=size, sample_by=by, seed=seed)).frame

    assert chosen[column].nunique() == min(size, MANIFEST[column].nunique())
    assert len(chosen) == MANIFEST[column].isin(chosen[column]).sum()


def test_a_sample_is_the_same_on_any_machine() -> None:
    # Fixed values: changing these numbers would change every sample ever drawn.
    assert rank(["02aa804e", 10000032], 42).tolist() == list(EXPECTED_RANKS)


def test_a_sample_is_the_same_in_another_process() -> None:
    code = (
        "from physionet_mirror.selection import rank;"
        "print(*rank(['02aa804e', 10000032], 42).tolist(), *rank(range(9), -1).tolist())"
    )
    root = Path(__file__).parents[2]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root / "include")},
        )
        assert [int(n) for n in done.stdout.split()] == [*EXPECTED_RANKS, *rank(range(9), -1).tolist()]


def test_another_seed_is_another_sample() -> None:
    assert paths(Selection(sample_size=20, seed=1)) != paths(Selection(sample_size=20, seed=2))


def test_more_than_there_are_takes_all_and_says_so() -> None:
    chosen = choose(MANIFEST, Selection(sample_size=61, sample_by="patient"))

    assert len(chosen.frame) == len(MANIFEST)
    assert chosen.notes == ["61 patients were asked for, 60 match: all of them are taken"]
    assert choose(MANIFEST, Selection(sample_size=60, sample_by="patient")).notes == []


def test_the_index_is_the_row_in_the_manifest() -> None:
    frame = choose(MANIFEST, Selection(sample_size=10)).frame

    assert frame["path"].tolist() == MANIFEST["path"].iloc[frame.index].tolist()


# --- filters ----------------------------------------------------------------------------------------------------------

FILTERS = {
    "views": ("AP", "PA"),
    "splits": ("train",),
    "labels": ("Edema", "Pneumonia"),
    "groups": ("p10", "p12", "p15"),
    "subjects": tuple(MANIFEST["subject_id"].unique()[::2].tolist()),
    "file_list": tuple(MANIFEST["path"].iloc[::2]),
}


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(sorted(FILTERS)), min_size=2))
def test_filters_commute(names: set[str]) -> None:
    together = set(MANIFEST["path"])
    for name in names:
        together &= set(paths(Selection(select="all", **{name: FILTERS[name]})))  # type: ignore[arg-type]
    try:
        at_once = set(paths(Selection(select="all", **{name: FILTERS[name] for name in names})))  # type: ignore[arg-type]
    except InputError:
        at_once = set()

    assert at_once == together


def test_a_label_matches_where_any_is_positive() -> None:
    frame = choose(MANIFEST, Selection(select="all", labels=("Edema", "Pneumonia"))).frame

    assert (frame["Edema"].eq(1).fillna(False) | frame["Pneumonia"].eq(1).fillna(False)).all()
    assert len(frame) == (MANIFEST["Edema"].eq(1).fillna(False) | MANIFEST["Pneumonia"].eq(1).fillna(False)).sum()


def test_no_filter_is_everything_in_order() -> None:
    assert paths(ALL) == MANIFEST["path"].tolist()


def test_subjects_may_be_text_or_numbers() -> None:
    first = int(MANIFEST["subject_id"].iloc[0])

    assert (
        paths(Selection(select="all", subjects=(first,)))
        == paths(Selection(select="all", subjects=(str(first),)))
        == paths(Selection(select="all", subjects=(f"p{first}",)))
    )


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(views=("XX",)), ["views", "'XX'", "AP, LATERAL, PA, frontal, lateral, none"]),
        (Selection(views=("AP", "pa")), ["views", "'pa'", "AP, LATERAL, PA"]),
        (Selection(splits=("valid",)), ["splits", "'valid'", "test, train, validate"]),
        (Selection(labels=("Cough",)), ["labels", "'Cough'", "Atelectasis", "Support Devices"]),
        (Selection(groups=("p20",)), ["groups", "'p20'", "p10"]),
        (Selection(subjects=(1, 2, 3, 4, 5, 6, 7)), ["subjects", "1, 2, 3, 4, 5 and 2 more", "60 subjects"]),
        (Selection(subjects=("p1x",)), ["subjects", "'p1x' is not a subject id"]),
        (Selection(subjects=("1" * 5000,)), ["subjects", "is not a subject id"]),
        (Selection(sample_size=0), ["sample_size is 0", "at least 1"]),
        (Selection(sample_by="scan"), ["sample_by", "'scan'", "image, study, patient"]),
        (Selection(select="some"), ["select", "'some'"]),
        (Selection(file_list=("files/p10/none.jpg",)), ["file_list", "1 of its 1", "files/p10/none.jpg"]),
        (Selection(file_list=("# nothing", "")), ["file_list", "names no image"]),
        (Selection(file_list=("../../etc/passwd",)), ["file_list, line 1", "climbs"]),
    ],
)
def test_a_value_that_does_not_exist_is_named_with_those_that_do(selection: Selection, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        choose(MANIFEST, selection)
    for word in words:
        assert word in str(caught.value)


def test_the_filter_that_empties_a_combination_is_named() -> None:
    subject = int(MANIFEST["subject_id"].iloc[0])
    split = MANIFEST["split"].iloc[0]
    other = next(name for name in ("train", "validate", "test") if name != split)

    with pytest.raises(InputError) as caught:
        choose(MANIFEST, Selection(select="all", splits=(other,), subjects=(subject,)))

    assert str(caught.value).startswith(f"subjects: nothing matches {subject}")
    assert f"with splits=['{other}']" in str(caught.value)


@pytest.mark.parametrize("name", ["AP", "frontal", "none"])
def test_a_dataset_without_views_says_so(name: str) -> None:
    blank = MANIFEST.assign(view=pd.array([pd.NA] * len(MANIFEST), dtype="string[pyarrow]"))

    with pytest.raises(InputError, match="has no views at all"):
        choose(blank, Selection(views=(name,)))


def views(*names: str) -> set[str]:
    """The ViewPosition codes of the views that the names select, "" for a view without code."""
    draw = np.random.default_rng(3)
    codes = draw.choice(["AP", "PA", "LATERAL", "LL", "LAO", "AP LLD", None], len(MANIFEST))
    manifest = MANIFEST.assign(view=pd.array(codes, dtype="string[pyarrow]"))
    chosen = choose(manifest, Selection(select="all", views=names)).frame["view"]
    wanted = manifest["view"].fillna("")[manifest["view"].fillna("").isin(set(chosen.fillna("")))]
    assert len(chosen) == len(wanted), "every image of a chosen view is taken"
    return set(chosen.fillna(""))


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        (("frontal",), {"AP", "PA"}),
        (("lateral",), {"LATERAL", "LL"}),
        (("none",), {""}),
        (("frontal", "AP"), {"AP", "PA"}),
        (("lateral", "none", "LAO"), {"LATERAL", "LL", "", "LAO"}),
        (("AP",), {"AP"}),
    ],
)
def test_views_have_names(names: tuple[str, ...], codes: set[str]) -> None:
    assert views(*names) == codes


# --- the file list ----------------------------------------------------------------------------------------------------


def test_failed_images_of_an_earlier_run_are_a_file_list() -> None:
    wanted = MANIFEST["path"].iloc[[3, 1]].tolist()
    lines = ["\ufeff# from run 7", f"{wanted[0]}\tnot found", "", f"  {wanted[1]}  ", f"{wanted[0]}\tcorrupt\r"]

    assert tuple(listed_paths(lines)) == tuple(wanted)
    assert paths(Selection(select="all", file_list=tuple(lines))) == sorted(wanted)


@pytest.mark.parametrize(
    "address",
    [
        "https://physionet.org/files/mimic-cxr-jpg/2.1.0/{}",
        "https://www.physionet.org/files/mimic-cxr-jpg/2.1.0/{}?download",
        "http://physionet.org/content/mimic-cxr-jpg/2.1.0/{}#files-panel",
        "physionet.org/files/mimic-cxr-jpg/2.1.0/{}",
    ],
)
def test_a_file_list_may_hold_addresses_at_physionet(address: str) -> None:
    wanted = MANIFEST["path"].iloc[[3, 1]].tolist()
    lines = tuple(f"{address.format(path)}\tnot found" for path in wanted)
    assert tuple(listed_paths(lines)) == tuple(wanted)
    assert paths(Selection(select="all", file_list=lines)) == sorted(wanted)


@pytest.mark.parametrize(
    "line", ["https://physionet.org/files/mimic-cxr-jpg/2.1.0/%2e%2e/x.jpg", "https://physionet.org/files/a/1/"]
)
def test_an_address_is_checked_as_a_path_is(line: str) -> None:
    with pytest.raises(InputError, match="line 1"):
        listed_paths([line])


def test_a_sampled_file_list_says_so() -> None:
    chosen = choose(MANIFEST, Selection(sample_size=2, file_list=tuple(MANIFEST["path"].iloc[:5])))

    assert len(chosen.frame) == 2
    assert "2 of 5 images are taken" in chosen.notes[0]
