"""Where things lie in the bucket; every path here is relative to the key prefix.

<dataset's own paths>                 files/p10/…, mimic-cxr-2.0.0-split.csv.gz, SHA256SUMS.txt
_mirror/manifest.parquet              every file of the version
_mirror/sums.json                     which SHA256SUMS.txt that was: its ETag at PhysioNet, its SHA-256 and the manifest's
_mirror/index.parquet                 the verified files: the training index
_mirror/reports.parquet               MIMIC-CXR's reports by their sections
_mirror/links.parquet                 each study's admission, emergency and ICU stay
_mirror/left.sha256                   what a night left over, for the next one to take along
_mirror/copying/                      copies inside S3 until they are proven
_mirror/parts/<name>/<run>            one large file while its parts arrive, and until it is proven
_mirror/store-check/                  what the access check writes and removes to see what the store can do
_mirror/verified/<group>.tsv.gz       what was verified when (see verified_cache.py)
_mirror/runs/<run_id>/                a run of mimic_cxr_jpg
_mirror/runs/<dag_id>@<run_id>/       a run of any other DAG; no run id holds an @
    plan.json                         what was asked and how it was cut
    shards/0000.sha256                one shard's images, as SHA256SUMS.txt writes them
    shards/0000.missing.sha256        the part of it that is not in the bucket
    results/0000.json                 progress and result of its stream task
    pace.json                         the concurrency that held, for the next shard to start with
    report.json, report.html, failed_images.txt
    audit.json                        of an audit
    deleted.jsonl.gz                  of a clean-up: what it was allowed to delete
    tars/0000.parquet                 of a training set: the images of one tar, with what is known of each
_training/<name>/                     a training set
    train-000000.tar                  small copies, as WebDataset names them: <dicom_id>.jpg and <dicom_id>.json
    members/train-000000.parquet      where each member lies in that tar, and which inputs it was made of
    index.parquet                     the members of all tars, with all columns of the training index
    dataset.json, README.md           what it is, by which parameters, and how to cite it

Earlier versions named the folders of the backfill by the run id alone, those of audits ``audit__<run_id>`` and those of
clean-ups ``cleanup__<run_id>``; `records.located` finds them. What is JSON has its type in records.py.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

MIRROR = "_mirror/"
MANIFEST = MIRROR + "manifest.parquet"
SUMS_SEEN = MIRROR + "sums.json"
INDEX = MIRROR + "index.parquet"
REPORTS = MIRROR + "reports.parquet"
LINKS = MIRROR + "links.parquet"
RUNS = MIRROR + "runs/"
LEFT = MIRROR + "left.sha256"
TRAINING = "_training/"
COPYING = MIRROR + "copying/"
PARTS = MIRROR + "parts/"
STORE_CHECK = MIRROR + "store-check/"

MAIN_DAG = "mimic_cxr_jpg"
"""The DAG whose runs' folders bear their run id alone."""

_AUDIT, _CLEANUP = "mimic_cxr_audit", "mimic_cxr_cleanup"
BEFORE = {_AUDIT: "audit__", _CLEANUP: "cleanup__"}
"""What earlier versions put before the run id of these DAGs."""


_GROUP = re.compile(r"[^0-9]{0,24}[0-9]{0,3}")


def group_of(path: str) -> str:
    """The group that a path belongs to: ``p10`` of ``files/p10/…``; of other projects the first folder; else ``other``.

    Of a folder's name, what follows its third digit is left out: ``p1000`` and ``p1009`` of MIMIC-IV-ECG are one group, so that
    a project with a folder for each patient has a thousand groups and not a file for each of them.
    """
    parts = path.split("/", 2)
    folder = parts[1] if parts[0] == "files" and len(parts) == 3 else parts[0] if len(parts) > 1 else ""
    if not folder or (parts[0] == "files" and len(parts) == 2):
        return "other"
    kept = _GROUP.match(folder)
    return quote(kept[0] if kept else folder, safe="") or "other"


def parts_of(path: str, sha256: str) -> str:
    """Folder of the uploads of one large file, one for each run that wants these bytes under this path."""
    return f"{PARTS}{hashlib.sha256(f'{sha256} {path}'.encode()).hexdigest()[:32]}/"


def verified(group: str) -> str:
    """Path of the memory of verified objects of one group of paths."""
    return f"{MIRROR}verified/{group}.tsv.gz"


class _Below:
    """The path of what has this name below a layout's ``root``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, layout: RunLayout | TrainingLayout, _: type) -> str:
        return layout.root + self._name


@dataclass(frozen=True)
class RunLayout:
    """The paths of one run below the key prefix.

    Attributes:
        run_id: Airflow's.
        dag_id: Whose run it is: ids of different DAGs may be the same.
        old: The folder is the one that earlier versions wrote to.
    """

    run_id: str
    dag_id: str = MAIN_DAG
    old: bool = False

    plan = _Below("plan.json")
    results = _Below("results/")
    pace = _Below("pace.json")
    report_json = _Below("report.json")
    report_html = _Below("report.html")
    failed_images = _Below("failed_images.txt")
    audit_json = _Below("audit.json")
    deleted = _Below("deleted.jsonl.gz")

    @classmethod
    def of_folder(cls, name: str) -> RunLayout:
        """The run whose folder below ``_mirror/runs/`` has this name."""
        dag_id, separator, run_id = name.rpartition("@")
        return cls(unquote(run_id), unquote(dag_id)) if separator else cls(unquote(name))

    @property
    def folder(self) -> str:
        """Name of the run's folder. What no run id holds by Airflow's own pattern is quoted, a slash for instance."""
        run_id = quote(self.run_id, safe=":+")
        if self.old:
            return BEFORE.get(self.dag_id, "") + run_id
        return run_id if self.dag_id == MAIN_DAG else f"{quote(self.dag_id, safe='')}@{run_id}"

    @property
    def root(self) -> str:
        return f"{RUNS}{self.folder}/"

    def shard(self, index: int) -> str:
        return f"{self.root}shards/{index:04d}.sha256"

    def missing(self, index: int) -> str:
        return f"{self.root}shards/{index:04d}.missing.sha256"

    def result(self, index: int) -> str:
        return f"{self.results}{index:04d}.json"

    def tar_rows(self, index: int) -> str:
        return f"{self.root}tars/{index:04d}.parquet"


@dataclass(frozen=True)
class TrainingLayout:
    """The paths of one training set below the key prefix.

    Attributes:
        name: Name of the set.
    """

    name: str

    index = _Below("index.parquet")
    card = _Below("dataset.json")
    readme = _Below("README.md")

    @property
    def root(self) -> str:
        return f"{TRAINING}{self.name}/"

    def tar(self, name: str) -> str:
        return f"{self.root}{name}.tar"

    def members(self, name: str) -> str:
        return f"{self.root}members/{name}.parquet"


def has_no_report(folder: str) -> bool:
    """Whether a folder's name tells that its run was an audit or a clean-up, which write no ``report.json``."""
    return folder.startswith((*BEFORE.values(), f"{_AUDIT}@", f"{_CLEANUP}@"))
