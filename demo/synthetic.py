"""A synthetic MIMIC-CXR-JPG: every file of the real dataset, with no real patient in it.

    python -m demo.synthetic --root .state/demo/physionet --images 600

writes ``<root>/mimic-cxr-jpg/2.1.0/`` (images, tables, IMAGE_FILENAMES, README, LICENSE.txt, SHA256SUMS.txt) and
``<root>/mimic-cxr/2.0.0/`` and ``2.1.0/`` (lists, reports, a few tiny DICOM stand-ins; as at PhysioNet, the checksums of
2.0.0 name its four top-level files only, those of 2.1.0 everything), and the same patients' ``mimiciv/3.1`` and
``mimic-iv-ed/2.2`` (`demo.clinical`). The same seed gives the same cohort on any machine. Distributions follow the published
counts of version 2.1.0 (377,110 images, 227,827 labelled studies, 65,379 patients), with the rare cases (studies without
labels, unusual views, small splits) kept alive in small sets.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from demo import clinical
from demo.phantom import Findings, draw_file
from physionet_mirror.dataset import LABELS, MIMIC_CXR, MIMIC_CXR_2_1_0, MIMIC_CXR_JPG, SUMS, Dataset

FULL_SIZE = 377_110
"""Images in MIMIC-CXR-JPG 2.1.0."""
STUDIES_PER_IMAGE = 227_835 / FULL_SIZE
PATIENTS_PER_IMAGE = 65_379 / FULL_SIZE
UNLABELLED_STUDIES = 8
MARKER = ".synthetic.json"
"""Names what was asked for, once all of it is written."""
PA_SHARE = 96_161 / 227_835
"""Share of studies with a PA image; nearly all of the laterals are theirs."""

# CheXpert's counts of positive, negative and uncertain mentions over the 227,827 labelled studies of version 2.0.0.
LABEL_COUNTS = {
    "Atelectasis": (45_808, 1_531, 10_327),
    "Cardiomegaly": (44_845, 15_911, 6_043),
    "Consolidation": (10_778, 7_967, 4_331),
    "Edema": (27_018, 25_641, 13_174),
    "Enlarged Cardiomediastinum": (7_179, 5_283, 9_375),
    "Fracture": (4_390, 886, 555),
    "Lung Lesion": (6_284, 862, 1_141),
    "Lung Opacity": (51_525, 3_069, 3_831),
    "No Finding": (75_455, 0, 0),
    "Pleural Effusion": (54_300, 27_158, 5_814),
    "Pleural Other": (2_011, 126, 765),
    "Pneumonia": (16_556, 24_338, 18_291),
    "Pneumothorax": (10_358, 42_356, 1_134),
    "Support Devices": (66_558, 3_486, 237),
}
REPORTS = "mimic-cxr-reports.zip"
"""The free-text reports of MIMIC-CXR, one file a study."""
_PROVIDERS = ("ordering_provider_id", "attending_provider_id", "resident_provider_id")
RARE_VIEWS = ("LAO", "RAO", "AP AXIAL", "AP LLD", "AP RLD", "PA LLD", "PA RLD", "SWIMMERS", "XTABLE LATERAL")
SENSORS = np.array([(3056, 2544), (2544, 3056), (2539, 3050), (2022, 2022), (2021, 2017)])
"""Rows and columns of the commonest detectors."""

README = """\
MIMIC-CXR-JPG look-alike (SYNTHETIC)
====================================

Every image in this folder is a phantom drawn by a program and every table row is random. The layout, the column names
and the distributions follow MIMIC-CXR-JPG 2.1.0 (https://physionet.org/content/mimic-cxr-jpg/2.1.0/), so that software
can be tried out without the restricted data. Nothing here describes a person, and nothing here is fit for research.
"""
LICENSE = """\
The files of this synthetic dataset are dedicated to the public domain (CC0 1.0).
The real MIMIC-CXR-JPG is under the PhysioNet Credentialed Health Data License 1.5.0.
"""


@dataclass(frozen=True)
class Cohort:
    """Who was imaged, and what was seen.

    Attributes:
        images: One row an image, in byte order of path: the columns of the published metadata table, and split, path.
        labels: One row a labelled study: subject_id, study_id and the 14 CheXpert labels (1, 0, -1, NaN).
        seed: What it was drawn from.
    """

    images: pd.DataFrame
    labels: pd.DataFrame
    seed: int


def cohort(images: int = 600, *, seed: int = 1, long_side: int | None = 896) -> Cohort:
    """Draw patients, studies, images and labels.

    Args:
        images: How many images.
        seed: Same seed, same cohort.
        long_side: Longer side of an image in pixels, the detectors scaled down to it; None for their real size.
    """
    rng = np.random.default_rng([seed, images])
    studies = max(1, round(images * STUDIES_PER_IMAGE))
    patients = max(1, round(images * PATIENTS_PER_IMAGE))

    # Patients spread evenly over the groups p10 … p19; a few of them have dozens of studies.
    group = 10 + np.arange(patients) % 10
    subjects = np.sort(group * 1_000_000 + _unique(rng, patients, 1_000_000))
    study_patient = np.sort(_owners(rng, studies, rng.lognormal(sigma=1.1, size=patients)))
    two_views = rng.random(studies) < PA_SHARE
    image_study = np.sort(_owners(rng, images, np.where(two_views, 5.5, 1.0)))
    study_ids = 50_000_000 + _unique(rng, studies, 10_000_000)
    order = np.lexsort((study_ids, study_patient))
    study_ids = study_ids[order]

    frame = pd.DataFrame({"study": image_study, "subject_id": subjects[study_patient[image_study]]})
    frame["study_id"] = study_ids[image_study]
    words = rng.integers(0, 2**32, size=(images, 5), dtype=np.uint64)
    frame["dicom_id"] = ["-".join(f"{word:08x}" for word in row) for row in words.tolist()]
    frame = frame.sort_values(["subject_id", "study_id", "dicom_id"], ignore_index=True)
    place = frame.groupby("study").cumcount().to_numpy()
    study = frame["study"].to_numpy()

    two_views = two_views[study]
    frame["ViewPosition"] = _views(rng, two_views, place)
    procedure = np.where(two_views, "CHEST (PA AND LAT)", "CHEST (PORTABLE AP)")
    frame["PerformedProcedureStepDescription"] = np.where(rng.random(images) < 0.09, "", procedure)
    frame["ProcedureCodeSequence_CodeMeaning"] = procedure
    view = frame["ViewPosition"]
    frame["ViewCodeSequence_CodeMeaning"] = np.select(
        [view.str.startswith("AP"), view.str.startswith("PA"), view.isin(["LATERAL", "LL", "XTABLE LATERAL"])],
        ["antero-posterior", "postero-anterior", "lateral"],
        default="",
    )
    erect = np.where(rng.random(images) < 0.1, "Recumbent", "Erect")
    frame["PatientOrientationCodeSequence_CodeMeaning"] = np.where(rng.random(images) < 0.12, "", erect)

    size = SENSORS[rng.choice(len(SENSORS), images, p=[0.45, 0.3, 0.1, 0.1, 0.05])]
    if long_side is not None:
        size = np.maximum(8, size * long_side // size.max(axis=1, keepdims=True))
    frame["Rows"], frame["Columns"] = size[:, 0], size[:, 1]
    # Each patient in a century of its own, as PhysioNet shifts them, with a study every one to five weeks.
    drawn_day = rng.integers(0, 36_500, studies)
    _, first, of_patient = np.unique(study_patient, return_index=True, return_inverse=True)
    number = np.arange(studies) - first[of_patient]
    day = np.datetime64("2105-01-01") + drawn_day[first][of_patient] + 35 * number + drawn_day % 28
    frame["StudyDate"] = pd.Series(day[study]).dt.strftime("%Y%m%d").astype(int)
    second = np.minimum(86_399, rng.integers(0, 86_000, studies)[study] + 40 * place)
    clock = second // 3600 * 10_000 + second // 60 % 60 * 100 + second % 60
    frame["StudyTime"] = clock + rng.integers(0, 1000, images) / 1000

    frame["split"] = pd.Series(_splits(rng, patients)[study_patient])[study].to_numpy()
    frame["path"] = (
        "files/p" + frame["subject_id"].floordiv(1_000_000).astype(str)
        + "/p" + frame["subject_id"].astype(str)
        + "/s" + frame["study_id"].astype(str)
        + "/" + frame["dicom_id"] + ".jpg"
    )  # fmt: skip
    return Cohort(frame.drop(columns="study"), _labels(rng, subjects[study_patient], study_ids), seed)


def write(root: Path, drawn: Cohort, *, with_images: bool = True, dicoms: int = 12) -> Path:
    """Write the dataset of a cohort below ``root`` and return the folder of MIMIC-CXR-JPG 2.1.0.

    Args:
        root: Receives ``mimic-cxr-jpg/2.1.0``, ``mimic-cxr/2.0.0`` and ``2.1.0``, ``mimiciv/3.1`` and ``mimic-iv-ed/2.2``.
        drawn: From :func:`cohort`.
        with_images: False writes the tables only, and random checksums for the images: enough for planning.
        dicoms: DICOM stand-ins in each version of ``mimic-cxr`` (a few bytes each).
    """
    version = root / MIMIC_CXR_JPG.name
    version.mkdir(parents=True, exist_ok=True)
    _write_tables(version, drawn)
    if with_images:
        sums = _draw_all(version, drawn)
    else:
        noise = np.random.default_rng([drawn.seed, 2]).bytes(32 * len(drawn.images)).hex()
        sums = [noise[at : at + 64] for at in range(0, len(noise), 64)]
    _write_sums(version, zip(drawn.images["path"], sums, strict=True))
    beside = clinical.draw(drawn.images, drawn.seed)
    for project in (MIMIC_CXR, MIMIC_CXR_2_1_0):
        _write_dicom_project(root / project.name, project, drawn, dicoms, beside.reports)
    for project, tables in clinical.projects(beside):
        _write_project(root / project.name, tables)
    return version


def ensure(
    root: Path, images: int = 600, *, seed: int = 1, long_side: int | None = 896, with_images: bool = True
) -> bool:
    """Have the dataset under ``root``, in place of any other; False when it was there already, written with the same arguments."""
    wanted = {"images": images, "seed": seed, "long_side": long_side, "with_images": with_images, "format": 3}
    marker = root / MARKER
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return False
    marker.unlink(missing_ok=True)
    for project in (MIMIC_CXR_JPG, MIMIC_CXR, MIMIC_CXR_2_1_0):
        shutil.rmtree(root / project.name, ignore_errors=True)
    for folder in clinical.folders(root):
        shutil.rmtree(folder, ignore_errors=True)
    write(root, cohort(images, seed=seed, long_side=long_side), with_images=with_images)
    marker.write_text(json.dumps(wanted))
    return True


# ------------------------------------------------------------------------------------------------------ the cohort


def _unique(rng: np.random.Generator, count: int, below: int) -> np.ndarray:
    """``count`` different integers in [0, below)."""
    return rng.choice(below, count, replace=False, shuffle=True)


def _owners(rng: np.random.Generator, children: int, weights: np.ndarray) -> np.ndarray:
    """The parent of each child: every parent has one, the others are shared out by weight."""
    parents = len(weights)
    return np.concatenate([np.arange(parents), rng.choice(parents, children - parents, p=weights / weights.sum())])


def _views(rng: np.random.Generator, two_views: np.ndarray, place: np.ndarray) -> np.ndarray:
    """ViewPosition: portable studies are AP; the others PA, then laterals; some empty, a few of the rare codes."""
    count = len(place)
    lateral = np.where(rng.random(count) < 0.7, "LATERAL", "LL")
    view = np.where(two_views, np.where(place == 0, "PA", lateral), "AP").astype(object)
    view[rng.random(count) < 15_769 / FULL_SIZE] = ""
    rare = rng.choice(count, min(count, max(3, count // 3000)), replace=False)
    view[rare] = rng.choice(RARE_VIEWS, len(rare))
    return view


def _splits(rng: np.random.Generator, patients: int) -> np.ndarray:
    """The split of each patient: test and validate are tiny in the real dataset, but never empty in a small one."""
    test = max(round(293 / 65_379 * patients), min(8, patients // 10))
    validate = max(round(500 / 65_379 * patients), min(8, patients // 10))
    split = np.full(patients, "train", dtype=object)
    chosen = rng.permutation(patients)
    split[chosen[:test]] = "test"
    split[chosen[test : test + validate]] = "validate"
    return split


def _labels(rng: np.random.Generator, subjects: np.ndarray, studies: np.ndarray) -> pd.DataFrame:
    count = len(studies)
    labelled = 227_827
    healthy = rng.random(count) < LABEL_COUNTS["No Finding"][0] / labelled
    table = {"subject_id": subjects, "study_id": studies}
    for label in LABELS:
        positive, negative, uncertain = (n / labelled for n in LABEL_COUNTS[label])
        if label == "No Finding":
            table[label] = np.where(healthy, 1.0, np.nan)
            continue
        u = rng.random(count)
        if label != "Support Devices":  # "No Finding" excludes the other findings, so the rest carries them all
            share = 1 - healthy.mean()
            u = np.where(healthy, positive + uncertain + u, u * share)
        bounds = np.cumsum([positive, uncertain, negative])
        table[label] = np.select([u < bounds[0], u < bounds[1], u < bounds[2]], [1.0, -1.0, 0.0], default=np.nan)
    missing = max(min(2, count // 10), round(UNLABELLED_STUDIES * count / 227_835))
    kept = np.sort(rng.permutation(count)[missing:])
    return pd.DataFrame(table).iloc[kept].reset_index(drop=True)


# ------------------------------------------------------------------------------------------------------- the files


def _write_tables(version: Path, drawn: Cohort) -> None:
    images, labels = drawn.images, drawn.labels
    metadata = [
        "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
        "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ]  # fmt: skip
    _csv(version / MIMIC_CXR_JPG.tables["metadata"], images[metadata])
    _csv(version / MIMIC_CXR_JPG.tables["split"], images[["dicom_id", "study_id", "subject_id", "split"]])
    _csv(version / MIMIC_CXR_JPG.tables["labels"], labels)

    # NegBio read the same reports and mostly agrees.
    rng = np.random.default_rng([drawn.seed, 1])
    negbio = labels.copy()
    values = negbio[list(LABELS)].to_numpy(copy=True)
    values[rng.random(values.shape) < 0.03] = np.nan
    negbio[list(LABELS)] = values
    _csv(version / MIMIC_CXR_JPG.tables["negbio"], negbio)

    tested = images.loc[images["split"] == "test", "study_id"]
    by_radiologist = labels[labels["study_id"].isin(tested)].drop(columns="subject_id")
    by_radiologist = by_radiologist.rename(columns={"Lung Opacity": "Airspace Opacity"}).head(687)
    _csv(version / MIMIC_CXR_JPG.tables["test_labels"], by_radiologist)

    (version / MIMIC_CXR_JPG.tables["filenames"]).write_text("".join(f"{path}\n" for path in images["path"]))
    (version / "README").write_text(README)
    (version / "LICENSE.txt").write_text(LICENSE)


def _csv(file: Path, table: pd.DataFrame) -> None:
    text = table.to_csv(index=False, lineterminator="\n").encode()
    # mtime=0: the same table is the same file, whenever it is written
    file.write_bytes(gzip.compress(text, compresslevel=6, mtime=0) if file.suffix == ".gz" else text)


def _write_sums(version: Path, images: Iterable[tuple[str, str]] = (), *, top_level_only: bool = False) -> None:
    """SHA256SUMS.txt as PhysioNet writes it: one space, byte order, every file but itself, or those of the root alone."""
    sums = dict(images)
    if not sums and not top_level_only:
        sums = {p.relative_to(version).as_posix(): _sha256(p) for p in version.rglob("*") if p.is_file()}
    sums |= {p.name: _sha256(p) for p in version.iterdir() if p.is_file()}
    sums.pop(SUMS, None)
    lines = (f"{sha256} {path}\n" for path, sha256 in sorted(sums.items()))
    (version / SUMS).write_text("".join(lines))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write_project(version: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    for path, table in tables.items():
        (version / path).parent.mkdir(parents=True, exist_ok=True)
        _csv(version / path, table)
    (version / "LICENSE.txt").write_text(LICENSE)
    _write_sums(version)


def _write_dicom_project(
    version: Path, project: Dataset, drawn: Cohort, dicoms: int, reports: Mapping[int, str]
) -> None:
    images = drawn.images
    version.mkdir(parents=True, exist_ok=True)
    records = images[["subject_id", "study_id", "dicom_id"]].copy()
    records["path"] = images["path"].str.removesuffix(".jpg") + ".dcm"
    _csv(version / project.tables["records"], records)
    studies = records[["subject_id", "study_id"]].copy()
    studies["path"] = images["path"].str.rpartition("/")[0] + ".txt"
    studies = studies.drop_duplicates("study_id")
    _csv(version / project.tables["studies"], studies)
    if "providers" in project.tables:
        rng = np.random.default_rng([drawn.seed, 3])
        who = {role: [f"P{n:05}" for n in rng.integers(0, 100_000, len(studies))] for role in _PROVIDERS}
        _csv(version / project.tables["providers"], studies[["subject_id", "study_id"]].assign(**who))
    (version / "LICENSE.txt").write_text(LICENSE)
    texts = (reports[study] for study in studies["study_id"])
    (version / REPORTS).write_bytes(clinical.archive(dict(zip(studies["path"], texts, strict=True))))
    for path, dicom_id in zip(records["path"].head(dicoms), records["dicom_id"], strict=False):
        file = version / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(128) + b"DICM" + f"synthetic stand-in for {dicom_id}\n".encode())
    _write_sums(version, top_level_only=project is MIMIC_CXR)


# ------------------------------------------------------------------------------------------------------- the images


def _draw_all(version: Path, drawn: Cohort) -> list[str]:
    """Draw and write every image; their SHA-256 in hex, in the cohort's order."""
    findings = drawn.images[["study_id"]].merge(drawn.labels, on="study_id", how="left")
    seen = {label: (findings[label] == 1).to_numpy() for label in LABELS}
    for folder in {(version / path).parent for path in drawn.images["path"]}:
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (version / row.path, [drawn.seed, at], row.ViewPosition, int(row.Rows), int(row.Columns), Findings(
            heart=seen["Cardiomegaly"][at],
            effusion=seen["Pleural Effusion"][at],
            opacity=seen["Lung Opacity"][at] | seen["Pneumonia"][at] | seen["Consolidation"][at],
            devices=seen["Support Devices"][at],
        ))
        for at, row in enumerate(drawn.images.itertuples())
    ]  # fmt: skip
    if len(jobs) < 200:
        return list(map(draw_file, jobs))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(draw_file, jobs, chunksize=16))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m demo.synthetic --help``."""
    parser = argparse.ArgumentParser(prog="python -m demo.synthetic", description="Write a synthetic MIMIC-CXR-JPG.")
    parser.add_argument("--root", type=Path, required=True, help="folder that receives mimic-cxr-jpg/2.1.0")
    parser.add_argument("--images", type=int, default=600, help="default %(default)s; the real dataset has 377110")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--long-side", type=int, default=896, help="pixels; default %(default)s")
    parser.add_argument("--tables-only", action="store_true", help="no images, random checksums: for planning")
    parser.add_argument("--if-missing", action="store_true", help="do nothing if the same dataset is there already")
    given = parser.parse_args(arguments)
    if not given.if_missing:
        (given.root / MARKER).unlink(missing_ok=True)
    size = None if given.tables_only else given.long_side
    new = ensure(given.root, given.images, seed=given.seed, long_side=size, with_images=not given.tables_only)
    print(f"{given.images} images, {'drawn just now' if new else 'there already'}")


if __name__ == "__main__":
    main()
