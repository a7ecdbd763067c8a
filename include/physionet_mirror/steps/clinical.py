"""Builds reports.parquet and links.parquet from what PhysioNet publishes beside the radiographs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from physionet_mirror import manifest, parquet
from physionet_mirror.clinical import links, reports, stays
from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import InputError, VerificationFailed
from physionet_mirror.layout import LINKS, MANIFEST, REPORTS
from physionet_mirror.records import Record
from physionet_mirror.request import ClinicalRequest
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.steps.fetch_files import ONE_PUT, read_file, write_file
from physionet_mirror.steps.plan import manifest_bytes

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Part = Literal["cxr", "hosp", "ed"]
"""One of the projects: MIMIC-CXR, MIMIC-IV or MIMIC-IV-ED."""

ARCHIVE, STUDY_LIST = "mimic-cxr-reports.zip", "cxr-study-list.csv.gz"

FILES: Mapping[Part, tuple[str, ...]] = {
    "cxr": (ARCHIVE, "cxr-record-list.csv.gz", STUDY_LIST),
    "hosp": (*(kind.table for kind in links.KINDS if kind.name != "ed"), links.PATIENTS),
    "ed": tuple(kind.table for kind in links.KINDS if kind.name == "ed"),
}
"""What is fetched of each project."""


@dataclass(frozen=True)
class BuiltReports(Record):
    """What `build_reports` wrote; counts only.

    Attributes:
        reports: Rows, one a study.
        status: Reports by status.
        without_study: Reports whose study the study list does not name.
        without_report: Studies of the study list that have no report.
    """

    reports: int
    status: Mapping[str, int]
    without_study: int
    without_report: int


@dataclass(frozen=True)
class BuiltLinks(Record):
    """What `build_links` wrote; counts only.

    Attributes:
        studies: Rows, one a study.
        match: Studies by match.
        linked: Studies with a stay, by kind; a kind whose table was not there is absent.
    """

    studies: int
    match: Mapping[str, int]
    linked: Mapping[str, int]


def check_mirror(mirror: Bucket, request: ClinicalRequest) -> None:
    """Raise unless there is a manifest from which the studies are known, where links are asked for.

    Raises:
        InputError: There is none.
    """
    if request.links and mirror.head(MANIFEST) is None:
        raise InputError(
            f"prefix: {mirror.uri(MANIFEST)} does not exist, so that no study and no date is known there. Nothing was done. "
            "Trigger mimic_cxr_metadata or mimic_cxr_jpg first, give the prefix of an existing mirror, or set links=false."
        )


def build_reports(mirror: Bucket, project: Bucket, dataset: Dataset) -> BuiltReports:
    """Read the archive of reports, write them by their sections as ``_mirror/reports.parquet``, and check that.

    Args:
        mirror: Where the table goes: below the prefix of the radiographs.
        project: Where `FILES` of ``cxr`` lie.
        dataset: Whose they are.

    Raises:
        MetadataError: The archive or the list is not what PhysioNet publishes.
        VerificationFailed: What was written is not what was counted.
        DestinationError: S3 does not give or take a file. What was in the bucket before is untouched, in each case.
    """
    with tempfile.TemporaryDirectory(prefix="physionet-") as folder:
        archive, out = Path(folder, "reports.zip"), Path(folder, "reports.parquet")
        _bring(project, ARCHIVE, archive)
        built = reports.build(archive, out)
        studies = pq.read_table(out, columns=["study_id"], page_checksum_verification=True)["study_id"]
        if len(studies) != built.reports or pc.count_distinct(studies).as_py() != built.reports:
            raise VerificationFailed(
                f"reports.parquet has {len(studies):,} rows, and {built.reports:,} reports were read. It was not written to the "
                "bucket. Trigger the run again; if it comes back, please report it."
            )
        local = Path(folder, "studies.csv.gz")
        _bring(project, STUDY_LIST, local)
        listed = manifest.read_csv(dataset, STUDY_LIST, local, {"study_id": pa.int32()})["study_id"]
        found = BuiltReports(built.reports, dict(built.status), _not_in(studies, listed), _not_in(listed, studies))
        mirror.upload(REPORTS, read_file(out), content_type=parquet.TYPE, part_size=ONE_PUT)
    log.info(
        "%s: %s reports, of them %s.",
        mirror.uri(REPORTS),
        f"{found.reports:,}",
        ", ".join(f"{count:,} {status}" for status, count in found.status.items()),
    )
    if found.without_study or found.without_report:
        log.warning(
            "%s names %s studies that have no report, and %s reports are of studies that it does not name.",
            STUDY_LIST,
            f"{found.without_report:,}",
            f"{found.without_study:,}",
        )
    return found


def _not_in(ids: Any, others: Any) -> int:
    return int(pc.sum(pc.invert(pc.is_in(ids, value_set=others.combine_chunks()))).as_py() or 0)


def build_links(mirror: Bucket, projects: Mapping[Part, tuple[Dataset, Bucket]], window_hours: float = 0) -> BuiltLinks:
    """Find each study's stays, write them as ``_mirror/links.parquet``, and check them against the tables.

    Args:
        mirror: Below the prefix of the radiographs: its manifest has the studies.
        projects: Where `FILES` of ``hosp`` and ``ed`` lie; of one that is not there, the columns stay null.
        window_hours: How long before a stay's begin a study may lie.

    Raises:
        MetadataError: A table is not what PhysioNet publishes, or there is no manifest that has the studies' dates.
        VerificationFailed: The links differ from their tables.
        DestinationError: S3 does not give or take a file. What was in the bucket before is untouched, in each case.
    """
    studies = _studies(mirror)
    with tempfile.TemporaryDirectory(prefix="physionet-") as folder:

        def local(bucket: Bucket, path: str) -> Path:
            file = Path(folder, path.replace("/", "-"))
            _bring(bucket, path, file)
            return file

        tables: dict[str, pd.DataFrame] = {}
        for kind in links.KINDS:
            if there := projects.get("ed" if kind.name == "ed" else "hosp"):
                dataset, bucket = there
                tables[kind.name] = stays.read(dataset, kind, local(bucket, kind.table))
        patients = None
        if there := projects.get("hosp"):
            patients = stays.read_patients(there[0], local(there[1], links.PATIENTS))
    table = links.link(studies, tables, patients, window_hours)
    links.check(table, studies, tables, window_hours)
    mirror.write(LINKS, parquet.to_bytes(table), content_type=parquet.TYPE)
    matches = pc.value_counts(table["match"]).to_pylist()
    by_match = dict.fromkeys(links.MATCHES, 0) | {entry["values"]: entry["counts"] for entry in matches}
    found = BuiltLinks(
        len(table),
        by_match,
        {kind.name: len(table) - table[kind.id].null_count for kind in links.KINDS if kind.name in tables},
    )
    log.info(
        "%s: %s studies, of them %s.",
        mirror.uri(LINKS),
        f"{found.studies:,}",
        ", ".join(f"{count:,} {match}" for match, count in found.match.items()),
    )
    return found


def _bring(bucket: Bucket, path: str, file: Path) -> None:
    try:
        write_file(file, bucket.open_read(path))
    except FileNotFoundError:
        raise InputError(
            f"{bucket.uri(path)} is not there any more. Nothing was written. Clear the task fetch_files of this run, with what "
            "comes after it."
        ) from None


def _studies(mirror: Bucket) -> pd.DataFrame:
    data = BytesIO(manifest_bytes(mirror))
    columns = ["subject_id", "study_id", "study_datetime"]
    if set(columns) - set(manifest.columns_of(data)):
        raise InputError(
            f"prefix: {mirror.uri(MANIFEST)} has no dates of studies: it is of an earlier version of this package, or of a "
            "project without radiographs. Nothing was done. Trigger mimic_cxr_metadata, which brings it up to date, or give "
            "the prefix of MIMIC-CXR-JPG."
        )
    images = manifest.read(data, columns).dropna(subset=["study_id"])
    return links.studies_of(images)
