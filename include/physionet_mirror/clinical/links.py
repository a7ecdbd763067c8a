"""Which hospital, emergency and ICU stay a study belongs to: MIMIC-IV's tables make ``_mirror/links.parquet``.

Columns, one row a study, in order of subject and study (zstd):

    =======================  =============  ==========================================================================
    subject_id, study_id     int32
    study_datetime           timestamp[ms]  the earliest of the study's images; null where none has one
    hadm_id                  int32          admission (``hosp/admissions.csv.gz``)
    ed_stay_id               int32          emergency stay (``ed/edstays.csv.gz``)
    icu_stay_id              int32          ICU stay (``icu/icustays.csv.gz``)
    hours_since_admission    double         hours from the stay's begin to the study; negative before it
    hours_since_ed_arrival   double
    hours_since_icu_…        double         ``hours_since_icu_admission``
    age                      int32          years: anchor_age + year of the study - anchor_year (``hosp/patients.csv.gz``),
                                            as MIMIC-IV's documentation computes it; older than 89 is 91 there
    gender                   string         M or F
    match                    string         ``ambiguous``, ``inside``, ``window`` or ``none``: the first that is true of any
                                            of the three kinds of stay
    =======================  =============  ==========================================================================

A study is *inside* a stay of its own patient from the stay's begin to its end, both included. It is in the *window* where
it lies up to ``window_hours`` before the begin, and inside no stay of that kind. Where several stays of one kind match
equally, the study is *ambiguous*, and the one that began nearest to it is named (of equally near ones, the smallest id).
Admission, emergency and ICU stay at the same time are no ambiguity: patients pass from one to the other.

PhysioNet shifted the dates of each patient by the same interval in all of these projects, so that differences are real
and ages can be computed; times of different patients say nothing about each other.

pandas does this: it is installed in any case, and three merges, slice by slice, are as short as their SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from physionet_mirror.errors import VerificationFailed
from physionet_mirror.request import checked_window

if TYPE_CHECKING:
    from typing import TypeAlias

    Frame: TypeAlias = pd.DataFrame

MATCHES = ("inside", "window", "ambiguous", "none")

SCHEMA = pa.schema(
    [
        ("subject_id", pa.int32()),
        ("study_id", pa.int32()),
        ("study_datetime", pa.timestamp("ms")),
        *((name, pa.int32()) for name in ("hadm_id", "ed_stay_id", "icu_stay_id")),
        *(
            (name, pa.float64())
            for name in ("hours_since_admission", "hours_since_ed_arrival", "hours_since_icu_admission")
        ),
        ("age", pa.int32()),
        ("gender", pa.string()),
        ("match", pa.string()),
    ]
)

_SLICE = 20_000  # studies that are compared with all stays of their patients at a time


@dataclass(frozen=True)
class Kind:
    """One kind of stay.

    Attributes:
        name: For people and for the param ``linked``.
        table: Path of the table in its project.
        columns: Of its id, begin and end there, beside subject_id.
        id, hours: Columns here.
    """

    name: str
    table: str
    columns: tuple[str, str, str]
    id: str
    hours: str


KINDS = (
    Kind(
        "admission",
        "hosp/admissions.csv.gz",
        ("hadm_id", "admittime", "dischtime"),
        "hadm_id",
        "hours_since_admission",
    ),
    Kind("ed", "ed/edstays.csv.gz", ("stay_id", "intime", "outtime"), "ed_stay_id", "hours_since_ed_arrival"),
    Kind("icu", "icu/icustays.csv.gz", ("stay_id", "intime", "outtime"), "icu_stay_id", "hours_since_icu_admission"),
)
PATIENTS = "hosp/patients.csv.gz"
PATIENT_COLUMNS = ("subject_id", "gender", "anchor_age", "anchor_year")


def studies_of(images: Frame) -> Frame:
    """One row a study (subject_id, study_id, study_datetime: the earliest) of a table of images, in that order."""
    grouped = images.groupby(["subject_id", "study_id"], sort=True)["study_datetime"].min()
    return grouped.reset_index()


def link(studies: Frame, stays: Mapping[str, Frame], patients: Frame | None, window_hours: float = 0) -> pa.Table:
    """Find the stays of each study.

    Args:
        studies: subject_id, study_id, study_datetime (NaT = not known), one row a study.
        stays: By `Kind.name`, each with subject_id and the three columns of its kind; a kind that is not there stays null.
            A stay without a begin is left out; one without an end, or that ends before it begins, holds no study.
        patients: `PATIENT_COLUMNS`; None = age and gender stay null.
        window_hours: How long before a stay's begin a study may lie.

    Returns:
        The table that the module's docstring describes.

    Raises:
        InputError: ``window_hours`` is out of bounds.
    """
    window_hours = checked_window(window_hours)
    studies = studies.sort_values(["subject_id", "study_id"], ignore_index=True)
    moment = studies["study_datetime"].astype("datetime64[ms]")
    count = len(studies)
    columns: dict[str, Any] = {
        "subject_id": studies["subject_id"],
        "study_id": studies["study_id"],
        "study_datetime": moment,
    }
    ambiguous, inside, window = (np.zeros(count, dtype=bool) for _ in range(3))
    for kind in KINDS:
        ids, hours = pd.array([pd.NA] * count, dtype="Int32"), np.full(count, np.nan)
        if kind.name in stays:
            for found in _found(studies, moment, stays[kind.name], kind, window_hours):
                rows = found.index.to_numpy()
                ids[rows] = found["id"].to_numpy()
                hours[rows] = found["hours"].to_numpy()
                ambiguous[rows] |= found["candidates"].to_numpy() > 1
                inside[rows] |= found["inside"].to_numpy()
                window[rows] |= ~found["inside"].to_numpy()
        columns[kind.id] = ids
        columns[kind.hours] = pd.Series(hours, dtype="Float64").where(~np.isnan(hours), pd.NA)
    columns |= _who(studies, moment, patients)
    columns["match"] = np.select([ambiguous, inside, window], ["ambiguous", "inside", "window"], "none")
    return pa.Table.from_pandas(pd.DataFrame(columns), SCHEMA, preserve_index=False).replace_schema_metadata()


def check(table: pa.Table, studies: Frame, stays: Mapping[str, Frame], window_hours: float = 0) -> None:
    """Hold a table of links against what it was made from: one row a study, each stay the same patient's and at that time.

    Raises:
        VerificationFailed: It differs, and is not to be published.
    """
    frame = table.to_pandas()
    wrong = {"studies that are absent, or there twice": len(set(studies["study_id"]) ^ set(frame["study_id"]))}
    wrong["studies that are absent, or there twice"] += int(frame["study_id"].duplicated().sum())
    linked = np.zeros(len(frame), dtype=bool)
    for kind in KINDS:
        rows = frame[frame[kind.id].notna()]
        linked |= frame[kind.id].notna().to_numpy()
        if rows.empty:
            continue
        id_, begin, end = kind.columns
        stay = stays[kind.name].drop_duplicates(id_).set_index(id_).reindex(rows[kind.id])
        hours = (rows["study_datetime"].to_numpy() - stay[begin].to_numpy()) / np.timedelta64(1, "h")
        is_at_it = (hours < 0) | (rows["study_datetime"].to_numpy() <= stay[end].to_numpy())
        is_right = (
            (stay["subject_id"].to_numpy() == rows["subject_id"].to_numpy())
            & (np.abs(hours - rows[kind.hours].to_numpy()) < 1e-6)
            & (hours >= -window_hours)
            & is_at_it
        )
        wrong[f"studies whose {kind.id} is another patient's, or at another time"] = int((~is_right).sum())
    wrong["studies whose match says otherwise than their ids"] = int((linked == (frame["match"] == "none")).sum())
    if any(wrong.values()):
        raise VerificationFailed(
            "The links are not what their tables say: "
            + ", ".join(f"{count:,} {what}" for what, count in wrong.items() if count)
            + ". They were not written, and those in the bucket are as they were. This is a fault of this package: please "
            "report it, with these counts."
        )


def _found(studies: Frame, moment: pd.Series, stays: Frame, kind: Kind, window_hours: float) -> Iterator[Frame]:
    """For the studies that have a stay of this kind: its id, the hours since it began, whether inside, and how many match."""
    id_, begin, end = kind.columns
    stays = stays[stays["subject_id"].isin(studies["subject_id"].unique())]
    stays = pd.DataFrame(
        {
            "subject_id": stays["subject_id"],
            "id": stays[id_],
            "begin": stays[begin].astype("datetime64[ms]"),
            "end": stays[end].astype("datetime64[ms]"),
        }
    ).dropna(subset=["begin"])
    asked = pd.DataFrame({"subject_id": studies["subject_id"], "row": np.arange(len(studies)), "moment": moment})
    asked = asked.dropna(subset=["moment"])
    for at in range(0, len(asked), _SLICE):
        pairs = asked.iloc[at : at + _SLICE].merge(stays, on="subject_id")
        since = pairs["moment"].to_numpy() - pairs["begin"].to_numpy()
        pairs["hours"] = since / np.timedelta64(1, "h")
        pairs["inside"] = (pairs["hours"] >= 0) & (pairs["moment"] <= pairs["end"])
        before = (pairs["hours"] < 0) & (pairs["hours"] >= -window_hours)
        pairs = pairs[pairs["inside"] | before]
        pairs = pairs[pairs["inside"] | ~pairs.groupby("row")["inside"].transform("any")]
        pairs = pairs.assign(distance=pairs["hours"].abs(), candidates=pairs.groupby("row")["row"].transform("size"))
        nearest = pairs.sort_values(["row", "distance", "id"]).drop_duplicates("row")
        yield nearest.set_index("row")[["id", "hours", "inside", "candidates"]]


def _who(studies: Frame, moment: pd.Series, patients: Frame | None) -> dict[str, Any]:
    if patients is None:
        nothing = pd.Series(pd.NA, index=studies.index)
        return {"age": nothing.astype("Int32"), "gender": nothing.astype("string")}
    known = studies[["subject_id"]].merge(patients.drop_duplicates("subject_id"), on="subject_id", how="left")
    years = moment.dt.year.astype("Int32") - known["anchor_year"].astype("Int32")
    return {"age": known["anchor_age"].astype("Int32") + years, "gender": known["gender"].astype("string")}
