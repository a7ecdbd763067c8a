"""Synthetic reports, MIMIC-IV and MIMIC-IV-ED for the patients of `demo.synthetic`, with the truth that they were drawn from.

`demo.synthetic.write` calls :func:`write`, which writes ``mimiciv/3.1`` and ``mimic-iv-ed/2.2`` below the same root and returns
the reports; :func:`truth` draws the same again and says what ``reports.parquet`` and ``links.parquet`` must hold. Every
status of a report and every kind of match occurs from 36 studies on: the cases go round.

A case is written as what was meant, not computed: which sections a report was put together from, and which stays were laid
around a study. The studies of a patient lie at least seven days apart and stays reach at most three, so that no stay meets
another study than its own.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from physionet_mirror.dataset import Dataset, project

MIMIC_IV = project("mimiciv/3.1")
MIMIC_IV_ED = project("mimic-iv-ed/2.2")

MARKER = "No sentence of a report may be seen outside a report."
"""Stands in every report that has text: whoever finds it elsewhere has found a leak."""

SECTIONS = ("examination", "indication", "technique", "comparison", "findings", "impression", "last_paragraph")


# --- reports ----------------------------------------------------------------------------------------------------------

_SAID = (
    "The lungs are clear without focal consolidation, pleural effusion or pneumothorax.",
    "Heart size is normal.  The mediastinal and hilar contours are unremarkable.",
    "As compared to the previous radiograph, there is no relevant change.",
    "Right PICC line ends in the low SVC.  Mild pulmonary edema has improved since ___.",
    "Left lower lobe opacity may reflect atelectasis or, in the right setting, pneumonia.",
)


@dataclass(frozen=True)
class _Form:
    """How a report is written: its text with ``{findings}`` and so on, and the status that it must get."""

    status: str
    text: str


_HEAD = "                                 FINAL REPORT\n"
_FORMS = (
    _Form(
        "sections",
        _HEAD + " EXAMINATION:  {examination}\n \n INDICATION:  {indication}\n \n TECHNIQUE:  {technique}\n \n"
        " COMPARISON:  {comparison}\n \n FINDINGS: \n \n {findings}\n \n IMPRESSION: \n \n {impression}\n",
    ),
    _Form(
        "sections",
        _HEAD + " CHEST, TWO VIEWS:  ___\n \n HISTORY:  {indication}\n \n COMPARISONS:  {comparison}\n \n"
        " FINDINGS\n {findings}\n \n CONCLUSION:  {impression}\n \n NOTIFICATION:  Dr. ___ was told by ___.\n",
    ),
    _Form(
        "sections",
        "WET READ: ___ ___ ___ 9:11 AM\n  No acute process.\n" + "_" * 78 + "\n" + _HEAD
        + " EXAM:  {examination}\n \n REASON FOR EXAMINATION:  {indication}\n \n Findings:  {findings}\n \n"
        " INTERPRETATION:  {impression}\n \n ADDENDUM  The side was ___.\n FINDINGS:  Nothing else.\n",
    ),
    _Form(
        "impression only",
        _HEAD + " STUDY:  {examination}\n \n CLINICAL HISTORY:  {indication}\n \n FINDINGS AND IMPRESSION:\n {impression}\n",
    ),
    _Form("impression only", " INDICATION:  {indication} COMPARISON: {comparison}\n IMPRESSON:  {impression}\n"),
    _Form(
        "findings only",
        _HEAD + " PORTABLE AP CHEST:  {findings}\n \n RECOMMENDATION(S):  Follow-up in ___ weeks.\n",
    ),
    _Form("findings only", _HEAD + " INDICATION:  {indication}\n \n FINDINGS:  {findings}\n"),
    _Form("no headings", _HEAD + " Chest radiograph of ___.\n \n {last_paragraph}\n"),
    _Form("no headings", _HEAD + " INDICATION:  {indication}\n \n {last_paragraph}\n"),
    _Form("empty", _HEAD + " ___\n"),
    _Form("empty", ""),
)  # fmt: skip


# --- stays ------------------------------------------------------------------------------------------------------------

HOUR = 3_600_000
"""Milliseconds."""

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # as in the tables: shifted, without a zone

Stay = tuple[float, float | None]
"""Hours from the study to a stay's begin and to its end; None = no end is known."""


@dataclass(frozen=True)
class _Case:
    """The stays around one study, and which of them are its own.

    Attributes:
        name: What happened.
        admission, ed, icu: The stays of each kind.
        strict: With ``window_hours=0``: the number of its admission, emergency and ICU stay, and the match.
        day: The same with ``window_hours=24``; None = as ``strict``.
    """

    name: str
    admission: Sequence[Stay] = ()
    ed: Sequence[Stay] = ()
    icu: Sequence[Stay] = ()
    strict: tuple[int | None, int | None, int | None, str] = (None, None, None, "none")
    day: tuple[int | None, int | None, int | None, str] | None = field(default=None)


CASES = (
    _Case("outpatient"),
    _Case("in hospital", admission=[(-20, 50)], strict=(0, None, None, "inside")),
    _Case("in the emergency department", ed=[(-2, 3)], strict=(None, 0, None, "inside")),
    _Case(
        "admitted afterwards",
        admission=[(1, 60)],
        ed=[(-3, 2)],
        strict=(None, 0, None, "inside"),
        day=(0, 0, None, "inside"),
    ),
    _Case("in the ICU", admission=[(-30, 70)], icu=[(-10, 40)], strict=(0, None, 0, "inside")),
    _Case("the day before", admission=[(5, 30)], day=(0, None, None, "window")),
    _Case("two days before", admission=[(30, 50)]),
    _Case("after discharge", admission=[(-40, -1)], ed=[(-44, -39.5)]),
    _Case("two admissions at once", admission=[(-20, 10), (-5, 30)], strict=(1, None, None, "ambiguous")),
    _Case("two ICU stays at once", admission=[(-50, 70)], icu=[(-30, 2), (-1, 10)], strict=(0, None, 1, "ambiguous")),
    _Case("two emergency visits ahead", ed=[(2, 3.5), (4, 8)], day=(None, 0, None, "ambiguous")),
    _Case("inside, and another visit ahead", ed=[(-1, 1), (3, 6)], strict=(None, 0, None, "inside")),
    _Case("an ICU stay that never ended", admission=[(-5, 40)], icu=[(-3, None)], strict=(0, None, None, "inside")),
)
OUTPATIENT = CASES[0]


@dataclass(frozen=True)
class Truth:
    """What must come out.

    Attributes:
        reports: By study_id: `SECTIONS` (folded; None = not there) and ``status``.
        links: By window_hours (0 and 24), by study_id: the columns of links.parquet, hours as numbers.
        cases: The case of each study_id.
    """

    reports: Mapping[int, Mapping[str, str | None]]
    links: Mapping[int, Mapping[int, Mapping[str, Any]]]
    cases: Mapping[int, str]


@dataclass(frozen=True)
class Drawn:
    """Reports by study_id, tables by path, and the truth."""

    reports: Mapping[int, str]
    hosp: Mapping[str, pd.DataFrame]
    ed: Mapping[str, pd.DataFrame]
    truth: Truth


def draw(images: pd.DataFrame, seed: int) -> Drawn:
    """Draw reports and stays for the studies of these images (`synthetic.Cohort.images`)."""
    rng = np.random.default_rng([seed, len(images), 4])
    moments = _moments(images)
    studies = moments.groupby("study_id", sort=True).agg(subject_id=("subject_id", "first"), moment=("moment", "min"))
    reports, sections = _reports(rng, images, studies)
    links, cases, tables = _stays(rng, studies)
    return Drawn(reports, tables["hosp"], tables["ed"], Truth(sections, links, cases))


def truth(images: pd.DataFrame, seed: int) -> Truth:
    """What ``reports.parquet`` and ``links.parquet`` of this cohort must hold."""
    return draw(images, seed).truth


def _moments(images: pd.DataFrame) -> pd.DataFrame:
    clock = images["StudyTime"]
    whole = clock.astype(int)
    seconds = whole // 10_000 * 3600 + whole // 100 % 100 * 60 + whole % 100
    milliseconds = ((clock - whole) * 1000).round().astype(int) + seconds * 1000
    day = pd.to_datetime(images["StudyDate"].astype(str), format="%Y%m%d").astype("datetime64[ms]")
    return images[["subject_id", "study_id"]].assign(moment=day + pd.to_timedelta(milliseconds, unit="ms"))


def _reports(
    rng: np.random.Generator, images: pd.DataFrame, studies: pd.DataFrame
) -> tuple[dict[int, str], dict[int, dict[str, str | None]]]:
    procedure = images.groupby("study_id")["ProcedureCodeSequence_CodeMeaning"].first()
    texts, truths = {}, {}
    for number, study in enumerate(rng.permutation(studies.index.to_numpy()).tolist()):
        form = _FORMS[number % len(_FORMS)]
        said = [_SAID[at] for at in rng.integers(0, len(_SAID), 4)]
        content = {
            "examination": procedure[study],
            "indication": f"___-year-old {'man' if number % 2 else 'woman'} with cough // eval for infection",
            "technique": "Chest PA and lateral",
            "comparison": "Chest radiograph ___.",
            "findings": f"{said[0]}\n {said[1]}",
            "impression": f"1. {said[2]}\n \n 2. {MARKER}",
            "last_paragraph": f"{said[3]}  {MARKER}",
        }
        if form.status == "findings only":
            content["findings"] += f"  {MARKER}"
        texts[study] = form.text.format(**content)
        truths[study] = {
            **{name: " ".join(content[name].split()) if f"{{{name}}}" in form.text else None for name in SECTIONS},
            "status": form.status,
        }
    return texts, truths


def _stays(rng: np.random.Generator, studies: pd.DataFrame) -> tuple[Any, dict[int, str], dict[str, Any]]:
    subjects = studies["subject_id"].unique()
    unknown = set(np.sort(subjects)[3::17].tolist())  # patients whom MIMIC-IV does not have
    order = rng.permutation(studies.index.to_numpy()).tolist()
    known = [study for study in order if studies["subject_id"][study] not in unknown]
    case_of = dict.fromkeys(order, OUTPATIENT) | {s: CASES[n % len(CASES)] for n, s in enumerate(known)}

    first_year = studies.groupby("subject_id")["moment"].min().dt.year
    patients = pd.DataFrame({"subject_id": [s for s in sorted(subjects.tolist()) if s not in unknown]})
    patients["gender"] = rng.choice(["F", "M"], len(patients))
    patients["anchor_age"] = rng.integers(18, 90, len(patients))
    patients["anchor_year"] = first_year[patients["subject_id"]].to_numpy() - rng.integers(-2, 3, len(patients))
    who = {row.subject_id: row for row in patients.itertuples()}

    ids = {"admission": 20_000_000, "ed": 30_000_000, "icu": 39_000_000}
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ids}
    links: dict[int, dict[int, dict[str, Any]]] = {0: {}, 24: {}}
    milliseconds = studies["moment"].astype("datetime64[ms]").astype("int64")
    for study, subject, at in zip(studies.index.tolist(), studies["subject_id"].tolist(), milliseconds, strict=True):
        case, second = case_of[study], at // 1000 * 1000
        stays: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ids}
        for kind in ids:
            for begin, end in getattr(case, kind):
                ids[kind] += 1 + study % 50
                stay = {
                    "subject_id": subject,
                    "id": ids[kind],
                    "begin": second + round(begin * HOUR),
                    "end": None if end is None else second + round(end * HOUR),
                }
                rows[kind].append(stay)
                stays[kind].append(stay)
        moment, patient = EPOCH + timedelta(milliseconds=at), who.get(subject)
        for window, own in ((0, case.strict), (24, case.day or case.strict)):
            chosen = [None if n is None else stays[kind][n] for kind, n in zip(ids, own[:3], strict=True)]
            since = [None if stay is None else (at - stay["begin"]) / HOUR for stay in chosen]
            links[window][study] = {
                "subject_id": subject,
                "study_id": study,
                "study_datetime": moment,
                **dict(zip(("hadm_id", "ed_stay_id", "icu_stay_id"), (s and s["id"] for s in chosen), strict=True)),
                "hours_since_admission": since[0],
                "hours_since_ed_arrival": since[1],
                "hours_since_icu_admission": since[2],
                "age": patient and patient.anchor_age + moment.year - patient.anchor_year,
                "gender": patient and patient.gender,
                "match": own[3],
            }
    tables = _tables(rng, rows, patients)
    return links, {study: case_of[study].name for study in order}, tables


def _tables(rng: np.random.Generator, rows: Mapping[str, Any], patients: pd.DataFrame) -> dict[str, Any]:
    """The tables with the published columns, and stays of other patients at the very same times among them."""
    frames = {}
    for kind, of_kind in rows.items():
        frame = pd.DataFrame(of_kind, columns=["subject_id", "id", "begin", "end"])
        for column in ("begin", "end"):
            frame[column] = pd.to_datetime(frame[column], unit="ms")
        others = frame.iloc[::3].copy()
        others["subject_id"] += 50_000_000  # no patient of MIMIC has such a number
        others["id"] += 5_000_000
        frames[kind] = pd.concat([frame, others]).sample(frac=1, random_state=int(rng.integers(2**31)))
    strangers = sorted({int(s) for frame in frames.values() for s in frame["subject_id"] if s >= 60_000_000})
    elsewhere = pd.DataFrame({"subject_id": strangers, "gender": "F", "anchor_age": 50, "anchor_year": 2150})
    patients = pd.concat([patients, elsewhere], ignore_index=True)
    patients["anchor_year_group"], patients["dod"] = "2014 - 2016", ""
    adm, icu, ed = frames["admission"], frames["icu"], frames["ed"]
    admissions = pd.DataFrame(
        {
            "subject_id": adm["subject_id"],
            "hadm_id": adm["id"],
            "admittime": adm["begin"],
            "dischtime": adm["end"],
            "deathtime": "",
            "admission_type": "EW EMER.",
            "admit_provider_id": "P00001",
            "admission_location": "EMERGENCY ROOM",
            "discharge_location": "HOME",
            "insurance": "Medicare",
            "language": "English",
            "marital_status": "MARRIED",
            "race": "WHITE",
            "edregtime": "",
            "edouttime": "",
            "hospital_expire_flag": 0,
        }
    )
    icustays = pd.DataFrame(
        {
            "subject_id": icu["subject_id"],
            "hadm_id": "",
            "stay_id": icu["id"],
            "first_careunit": "Medical Intensive Care Unit (MICU)",
            "last_careunit": "Medical Intensive Care Unit (MICU)",
            "intime": icu["begin"],
            "outtime": icu["end"],
            "los": ((icu["end"] - icu["begin"]) / pd.Timedelta(days=1)).round(6),
        }
    )
    edstays = pd.DataFrame(
        {
            "subject_id": ed["subject_id"],
            "hadm_id": "",
            "stay_id": ed["id"],
            "intime": ed["begin"],
            "outtime": ed["end"],
            "gender": "F",
            "race": "WHITE",
            "arrival_transport": "AMBULANCE",
            "disposition": "ADMITTED",
        }
    )
    providers = pd.DataFrame({"provider_id": ["P00001"]})
    return {
        "hosp": {
            "hosp/admissions.csv.gz": admissions,
            "hosp/patients.csv.gz": patients,
            "hosp/provider.csv.gz": providers,
            "icu/icustays.csv.gz": icustays,
        },
        "ed": {"ed/edstays.csv.gz": edstays},
    }


# --- files ------------------------------------------------------------------------------------------------------------


def archive(reports: Mapping[str, str]) -> bytes:
    """``mimic-cxr-reports.zip`` with these texts by path; the same texts are the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        for path, text in reports.items():
            opened.writestr(zipfile.ZipInfo(path), text, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def projects(drawn: Drawn) -> Sequence[tuple[Dataset, Mapping[str, pd.DataFrame]]]:
    """The projects beside MIMIC-CXR, and the tables of each."""
    return ((MIMIC_IV, drawn.hosp), (MIMIC_IV_ED, drawn.ed))


def folders(root: Path) -> list[Path]:
    """Where `projects` lie."""
    return [root / dataset.name for dataset in (MIMIC_IV, MIMIC_IV_ED)]
