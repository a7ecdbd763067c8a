"""Reports and links at full size: 227,835 reports by their sections, and their studies against MIMIC-IV's stays.

    python -m bench clinical

Each figure is that of a fresh Python process, including imports, from files to a file: wall time and peak resident memory.
The reports are the demo's, with findings of the real mean length; the stays are as many as MIMIC-IV 3.1 and MIMIC-IV-ED 2.2
have, drawn at random, half of them of patients with radiographs. Writing them once takes about a minute.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench._measure import Check

STUDIES, PATIENTS = 227_835, 65_379
STAYS = {"admission": 546_028, "ed": 425_087, "icu": 94_458}
"""Rows of MIMIC-IV 3.1's and MIMIC-IV-ED 2.2's tables."""
KNOWN_PATIENTS = 364_627

TARGETS = {"reports": (60.0, 1000.0), "links": (20.0, 1000.0)}
"""Seconds and MB."""

_MEAN = 1_100  # bytes of a report: 250 MB by 227,835


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure; time is the median of three processes, memory their maximum."""
    studies = 5_000 if short else STUDIES
    _write(folder, studies, short)
    cases = []
    for case in TARGETS:
        measured = [_in_a_fresh_process(case, folder) for _ in range(1 if short else 3)]
        cases.append(
            {
                "case": case,
                "rows": measured[0]["rows"],
                "stays": measured[0]["stays"],
                "seconds": round(statistics.median(m["seconds"] for m in measured), 2),
                "peak_mb": round(max(m["peak_mb"] for m in measured)),
                "steps": measured[0]["steps"],
            }
        )
    return {"cases": cases}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| table | rows | stays | s | target | peak MB | target | steps, s |", "|---|---|---|---|---|---|---|---|"]
    for c in result["cases"]:
        seconds, megabytes = TARGETS[c["case"]]
        steps = ", ".join(f"{name} {took:.2f}" for name, took in c["steps"].items())
        stays = f"{c['stays']:,}" if c["stays"] else ""
        lines.append(
            f"| {c['case']}.parquet | {c['rows']:,} | {stays} | {c['seconds']:.2f} | {seconds:g} | {c['peak_mb']} | "
            f"{megabytes:g} | {steps} |"
        )
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """The targets."""
    found = []
    for c in result["cases"]:
        seconds, megabytes = TARGETS[c["case"]]
        found.append(
            Check(
                f"clinical: {c['case']}, {c['rows']:,} studies",
                f"{c['seconds']:.1f} s, {c['peak_mb']} MB",
                f"{seconds:g} s, {megabytes:g} MB",
                c["seconds"] <= seconds and c["peak_mb"] <= megabytes,
            )
        )
    return found


def _write(folder: Path, count: int, short: bool) -> None:
    """The archive and the tables; again only where another size is asked for."""
    marker, wanted = folder / "written.json", json.dumps([count, 2])
    if marker.exists() and marker.read_text() == wanted:
        return
    from demo import clinical, synthetic

    rng = np.random.default_rng(1)
    cohort = synthetic.cohort(round(count / synthetic.STUDIES_PER_IMAGE), seed=1, long_side=None)
    reports = clinical.draw(cohort.images, 1).reports
    paths = cohort.images.drop_duplicates("study_id").set_index("study_id")["path"].str.rpartition("/")[0] + ".txt"
    sentence = "There is no focal consolidation, and the cardiomediastinal silhouette is unchanged.\n "
    with zipfile.ZipFile(folder / "reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (study, text) in enumerate(reports.items()):
            more = sentence * (number % (2 * _MEAN // len(sentence)))
            archive.writestr(paths[study], text.replace("INDICATION:", f"TECHNIQUE: {more}\n INDICATION:", 1))

    images = cohort.images
    day = pd.to_datetime(images["StudyDate"].astype(str), format="%Y%m%d").astype("datetime64[ms]")
    moment = day + pd.to_timedelta(rng.integers(0, 86_400, len(images)), unit="s")
    studies = images[["subject_id", "study_id"]].assign(study_datetime=moment)
    studies.to_parquet(folder / "images.parquet")
    subjects = images["subject_id"].unique()
    first = studies.groupby("subject_id")["study_datetime"].min()
    others = 20_000_000 + np.arange(KNOWN_PATIENTS - PATIENTS)
    tables = {"admission": ("hadm_id", "admittime", "dischtime"), "ed": ("stay_id", "intime", "outtime")}
    tables["icu"] = tables["ed"]
    for kind, (id_, begin, end) in tables.items():
        rows = STAYS[kind] // (50 if short else 1)
        who = np.where(rng.random(rows) < 0.5, rng.choice(subjects, rows), rng.choice(others, rows))
        of = first.reindex(who).fillna(pd.Timestamp("2150-01-01")).to_numpy().astype("datetime64[s]")
        begins = of + rng.integers(-30 * 86_400, 3 * 365 * 86_400, rows)
        frame = pd.DataFrame({"subject_id": who, id_: 20_000_000 + np.arange(rows), begin: begins})
        frame[end] = begins + rng.integers(3_600, 7 * 86_400, rows)
        _csv(folder / f"{kind}.csv.gz", frame)
    patients = pd.DataFrame({"subject_id": np.concatenate([subjects, others])})
    patients["gender"] = rng.choice(["F", "M"], len(patients))
    patients["anchor_age"], patients["anchor_year"] = rng.integers(18, 91, len(patients)), 2150
    _csv(folder / "patients.csv.gz", patients)
    marker.write_text(wanted)


def _csv(file: Path, frame: pd.DataFrame) -> None:
    file.write_bytes(gzip.compress(frame.to_csv(index=False).encode(), 6))


def _in_a_fresh_process(case: str, folder: Path) -> dict[str, Any]:
    # As in a deployment, libraries are imported from bytecode.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "include")])
    started = time.perf_counter()
    command = [sys.executable, "-m", "bench.own.clinical", case, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    measured: dict[str, Any] = json.loads(done.stdout)
    measured["seconds"] = time.perf_counter() - started
    return measured


def _child(case: str, folder: Path) -> dict[str, Any]:
    steps: dict[str, float] = {}
    last = time.perf_counter()

    def done(step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        steps[step], last = now - last, now

    import pyarrow.parquet as pq

    from physionet_mirror.clinical import links, reports, stays
    from physionet_mirror.dataset import KNOWN

    done("import")
    count = 0
    if case == "reports":
        rows = reports.build(folder / "reports.zip", folder / "reports.parquet").reports
        done("build")
    else:
        tables = {
            kind.name: stays.read(KNOWN["mimiciv/3.1"], kind, folder / f"{kind.name}.csv.gz") for kind in links.KINDS
        }
        patients = stays.read_patients(KNOWN["mimiciv/3.1"], folder / "patients.csv.gz")
        studies = links.studies_of(pd.read_parquet(folder / "images.parquet"))
        done("read")
        table = links.link(studies, tables, patients, 24)
        done("link")
        links.check(table, studies, tables, 24)
        done("check")
        out = io.BytesIO()
        pq.write_table(table, out, compression="zstd", write_page_checksum=True)
        done("write")
        rows, count = len(table), sum(map(len, tables.values()))
    status = Path("/proc/self/status").read_text()  # not ru_maxrss, which survives exec
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"rows": rows, "stays": count, "steps": steps, "peak_mb": peak}


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], Path(sys.argv[2]))))
