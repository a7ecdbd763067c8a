"""Links never cross patients, never leave stay and window, and say where more than one stay matches."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror.clinical import links
from physionet_mirror.errors import InputError

DAY = datetime(2180, 5, 6)  # noqa: DTZ001  # as in the tables: shifted, without a zone


def at(hours: float | None) -> datetime | None:
    return None if hours is None else DAY + timedelta(hours=hours)


def studies(*rows: tuple[int, int, float | None]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["subject_id", "study_id", "study_datetime"])
    frame["study_datetime"] = pd.to_datetime(frame["study_datetime"].map(at, na_action="ignore"))
    return frame


def stays(name: str, *rows: tuple[int, int, float | None, float | None]) -> dict[str, pd.DataFrame]:
    kind = next(kind for kind in links.KINDS if kind.name == name)
    frame = pd.DataFrame(rows, columns=["subject_id", *kind.columns])
    for column in kind.columns[1:]:
        frame[column] = pd.to_datetime(frame[column].map(at, na_action="ignore"))
    return {name: frame}


def linked(*arguments: Any, **more: Any) -> list[dict[str, Any]]:
    return links.link(*arguments, **more).to_pylist()


def test_a_study_within_a_stay_of_each_kind() -> None:
    kinds = stays("admission", (1, 20, 0, 100)) | stays("ed", (1, 30, -5, 1)) | stays("icu", (1, 40, 0.5, 20))
    patients = pd.DataFrame({"subject_id": [1], "gender": ["F"], "anchor_age": [61], "anchor_year": [2178]})

    table = links.link(studies((1, 50, 1)), kinds, patients)

    assert table.schema.equals(links.SCHEMA)
    assert table.to_pylist() == [
        {
            "subject_id": 1,
            "study_id": 50,
            "study_datetime": at(1),
            "hadm_id": 20,
            "ed_stay_id": 30,
            "icu_stay_id": 40,
            "hours_since_admission": 1.0,
            "hours_since_ed_arrival": 6.0,
            "hours_since_icu_admission": 0.5,
            "age": 63,
            "gender": "F",
            "match": "inside",
        }
    ]


@pytest.mark.parametrize(
    ("moment", "window", "match", "stay"),
    [
        (0, 0, "inside", 20),
        (10, 0, "inside", 20),
        (10.01, 0, "none", None),
        (-0.01, 0, "none", None),
        (-24, 24, "window", 20),
        (-24.01, 24, "none", None),
        (10.01, 24, "none", None),
        (None, 24, "none", None),
    ],
)
def test_the_bounds_of_a_stay(moment: float | None, window: float, match: str, stay: int | None) -> None:
    (row,) = linked(studies((1, 50, moment)), stays("admission", (1, 20, 0, 10)), None, window)
    assert (row["match"], row["hadm_id"], row["hours_since_admission"]) == (match, stay, moment if stay else None)


@pytest.mark.parametrize(
    ("rows", "window", "match", "stay"),
    [
        ([(1, 20, 0, 10), (1, 21, 4, 10)], 0, "ambiguous", 21),
        ([(1, 22, 4, 10), (1, 21, 4, 10)], 0, "ambiguous", 21),
        ([(1, 20, 6, 8), (1, 21, 7, 9)], 24, "ambiguous", 20),
        ([(1, 20, 0, 10), (1, 21, 6, 10)], 24, "inside", 20),
        ([(1, 20, 0, 10), (2, 21, 4, 10)], 0, "inside", 20),
        ([(1, 20, 0, None), (1, 21, None, 9)], 24, "none", None),
        ([(1, 20, 9, 4)], 24, "window", 20),
        ([(1, 20, 4, 3)], 0, "none", None),
        ([], 24, "none", None),
    ],
)
def test_several_stays(rows: list[Any], window: float, match: str, stay: int | None) -> None:
    (row,) = linked(studies((1, 50, 5)), stays("icu", *rows), None, window)
    assert (row["match"], row["icu_stay_id"]) == (match, stay)


def test_one_row_a_study_in_order_whether_or_not_anything_is_known() -> None:
    patients = pd.DataFrame({"subject_id": [1], "gender": ["M"], "anchor_age": [40], "anchor_year": [2180]})
    found = linked(studies((2, 51, 1), (1, 60, None), (1, 50, 1)), {}, patients)
    assert [(r["subject_id"], r["study_id"], r["age"], r["gender"], r["match"]) for r in found] == [
        (1, 50, 40, "M", "none"),
        (1, 60, None, "M", "none"),
        (2, 51, None, None, "none"),
    ]


def test_a_study_begins_with_its_first_image() -> None:
    images = pd.DataFrame(
        {
            "subject_id": [1, 1, 1, 2],
            "study_id": [50, 50, 51, 49],
            "study_datetime": pd.to_datetime([at(2), at(1), None, at(9)]),
        }
    )
    assert links.studies_of(images)["study_datetime"].tolist()[0] == at(1)
    assert links.studies_of(images)["study_id"].tolist() == [50, 51, 49]


@pytest.mark.parametrize("window", [-1, float("nan"), 10_000])
def test_an_impossible_window_is_refused(window: float) -> None:
    with pytest.raises(InputError, match="window_hours"):
        links.link(studies((1, 50, 1)), {}, None, window)


SUBJECT, HOUR = st.integers(1, 3), st.integers(-40, 40)
STAYS = st.lists(st.tuples(SUBJECT, HOUR, st.integers(-2, 30)), max_size=8)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(SUBJECT, HOUR), min_size=1, max_size=8), STAYS, STAYS, st.sampled_from([0, 3, 24]))
def test_links_are_what_comparing_every_pair_finds(
    asked: list[tuple[int, int]], admissions: list[Any], icu: list[Any], window: int
) -> None:
    frames = {
        name: [(subject, 100 + n, begin, begin + length) for n, (subject, begin, length) in enumerate(drawn)]
        for name, drawn in (("admission", admissions), ("icu", icu))
    }
    table = links.link(
        studies(*((subject, 50 + n, hour) for n, (subject, hour) in enumerate(asked))),
        stays("admission", *frames["admission"]) | stays("icu", *frames["icu"]),
        None,
        window,
    )

    assert table.num_rows == len(asked)
    for row in table.to_pylist():
        subject, hour = asked[row["study_id"] - 50]
        assert row["subject_id"] == subject
        states = set()
        for name, id_, hours in (
            ("admission", "hadm_id", "hours_since_admission"),
            ("icu", "icu_stay_id", "hours_since_icu_admission"),
        ):
            own = [stay for stay in frames[name] if stay[0] == subject]
            matching = [stay for stay in own if stay[2] <= hour <= stay[3]]
            state = "inside"
            if not matching:
                matching, state = [stay for stay in own if 0 < stay[2] - hour <= window], "window"
            states |= {state} if matching else set()
            states |= {"ambiguous"} if len(matching) > 1 else set()
            best = min(matching, key=lambda stay: (abs(hour - stay[2]), stay[1]), default=None)
            assert row[id_] == (best and best[1])
            assert row[hours] == (best and hour - best[2])
        assert row["match"] == next((m for m in ("ambiguous", "inside", "window") if m in states), "none")


def test_slices_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = studies(*((n % 5, 50 + n, n) for n in range(40)))
    kinds = stays("ed", *((n % 5, n, n - 3, n + 9) for n in range(40)))
    whole = links.link(asked, kinds, None, 6)
    monkeypatch.setattr(links, "_SLICE", 7)
    assert links.link(asked, kinds, None, 6).equals(whole)
    assert isinstance(whole, pa.Table)
