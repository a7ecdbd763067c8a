"""The sensor and operators of ``mimic_cxr_clinical``: the files of three projects, and two tables that are built of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk import AssetAlias, BaseOperator

from physionet_airflow.bucket import open_bucket
from physionet_airflow.compat import AirflowSkipException
from physionet_airflow.notify import leave_notice
from physionet_airflow.operators import add_asset, other_places, place
from physionet_airflow.run import Run, engine_errors
from physionet_airflow.sensors import AccessCheckSensor
from physionet_mirror.errors import AccessRefused
from physionet_mirror.request import ClinicalRequest

if TYPE_CHECKING:
    from airflow.sdk import Context

    from physionet_mirror.dataset import Dataset
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.access_point import AccessPoint
    from physionet_mirror.source.physionet import PhysioNet
    from physionet_mirror.steps.clinical import Part

REPORTS = AssetAlias("mimic_cxr_jpg_reports")
LINKS = AssetAlias("mimic_cxr_jpg_links")
"""What a run produces; each becomes the asset of its S3 URI."""

PARTS: Mapping[Part, str] = {"cxr": "mimic_cxr", "hosp": "mimiciv", "ed": "mimic_iv_ed"}
"""The task group of each project."""

BUILD_REPORTS, BUILD_LINKS, FETCH = "build_reports", "build_links", "fetch_files"
"""Task ids."""


def asked(context: Context) -> ClinicalRequest:
    """What the run is asked for. Raises InputError."""
    return ClinicalRequest.from_params({**dict(context["params"]), **place(context)})


def _project(request: ClinicalRequest, part: Part) -> Dataset:
    return {"cxr": request.cxr_project, "hosp": request.hosp_project, "ed": request.ed_project}[part]


def _overrides(context: Context, part: Part) -> dict[str, Any]:
    request = asked(context)
    name = _project(request, part).name
    return {"bucket": request.bucket, "project": name, "prefix": name}


def _mirror(request: ClinicalRequest) -> Bucket:
    return open_bucket(request.bucket, request.prefix)


@contextmanager
def _or_skip() -> Iterator[None]:
    """Skip the task where this account may not read the project; the text names its page."""
    try:
        yield
    except AccessRefused as error:
        raise AirflowSkipException(f"Left out, and the rest goes on without it. {error}") from None


class ProjectCheckSensor(AccessCheckSensor):
    """As `AccessCheckSensor`, for one project; skips where this account may not read it or nothing asks for it.

    Args:
        part: Which of the three projects.
    """

    def __init__(self, *, part: Part, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part = part

    def overrides(self, context: Context) -> dict[str, Any]:
        """The project, below a prefix of its own name; skips where it is not asked for."""
        from physionet_mirror.steps import clinical

        request = asked(context)
        if not (request.reports if self.part == "cxr" else request.links):
            raise AirflowSkipException("Not asked for.")
        clinical.check_mirror(_mirror(request), request)
        return _overrides(context, self.part)

    def ask(self, source: PhysioNet | AccessPoint, dataset: Dataset) -> None:
        """Skip where the source refuses this account."""
        with _or_skip():
            super().ask(source, dataset)


class FetchFilesOperator(BaseOperator):
    """Brings the files of one project into the bucket, each proven; what is there is not fetched again.

    Args:
        part: Which of the three projects.

    Returns (XCom):
        ``files``, ``fetched``, ``bytes``, ``sums_sha256`` of `fetch_files.FetchedFiles`.
    """

    ui_color = "#e4ecf4"

    def __init__(self, *, part: Part, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part = part

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Fetch what is missing."""
        from physionet_mirror.steps.clinical import FILES
        from physionet_mirror.steps.fetch_files import fetch_files

        run = Run.of(context, **_overrides(context, self.part))
        with closing(run.origin(run.way())) as source, _or_skip():
            return fetch_files(source, run.bucket, run.request.dataset, FILES[self.part]).to_json()


class BuildReportsOperator(BaseOperator):
    """Builds ``_mirror/reports.parquet``.

    Returns (XCom):
        Counts: ``reports``, ``status``, ``without_study``, ``without_report``. No text of a report.
    """

    ui_color = "#e8f0e4"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(outlets=[REPORTS], **kwargs)

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Build, check, store."""
        from physionet_mirror import layout
        from physionet_mirror.steps import clinical

        request = asked(context)
        mirror = _mirror(request)
        project = request.cxr_project
        where = open_bucket(request.bucket, project.name)
        figures = clinical.build_reports(mirror, where, project).to_json()
        add_asset(context, REPORTS, mirror.uri(layout.REPORTS), figures)
        return figures


class BuildLinksOperator(BaseOperator):
    """Builds ``_mirror/links.parquet`` of the projects whose files were fetched; skips where neither was.

    Use it with ``trigger_rule="none_failed"``: a project that was left out skips its tasks.

    Returns (XCom):
        Counts: ``studies``, ``match``, ``linked``.
    """

    ui_color = "#e8f0e4"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(outlets=[LINKS], **kwargs)

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Build, check, store."""
        from physionet_mirror import layout
        from physionet_mirror.steps import clinical

        request = asked(context)
        mirror = _mirror(request)
        there: dict[Part, tuple[Dataset, Bucket]] = {}
        for part in PARTS:
            if part != "cxr" and _was_fetched(context, part):
                project = _project(request, part)
                there[part] = (project, open_bucket(request.bucket, project.name))
        if not there:
            raise AirflowSkipException("Neither MIMIC-IV nor MIMIC-IV-ED is there, so there is nothing to link to.")
        figures = clinical.build_links(mirror, there, request.window_hours).to_json()
        add_asset(context, LINKS, mirror.uri(layout.LINKS), figures)
        return figures


def _was_fetched(context: Context, part: Part) -> bool:
    return context["ti"].xcom_pull(task_ids=f"{PARTS[part]}.{FETCH}") is not None


class JudgeClinicalOperator(BaseOperator):
    """Says what was built and what was left out; fails where nothing was built.

    Use it with ``trigger_rule="none_failed"``.

    Returns (XCom):
        ``built`` (counts by table) and ``left_out`` (names of the projects that this account may not read).
    """

    ui_color = "#e8f0e4"

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Judge."""
        request = asked(context)
        built = {
            table: counts
            for table, task in (("reports", BUILD_REPORTS), ("links", BUILD_LINKS))
            if (counts := context["ti"].xcom_pull(task_ids=task)) is not None
        }
        left_out = [
            _project(request, part)
            for part in PARTS
            if (request.reports if part == "cxr" else request.links) and not _was_fetched(context, part)
        ]
        pages = ", ".join(f"{dataset.name} ({dataset.page})" for dataset in left_out)
        if not built:
            raise AccessRefused(
                f"Nothing was built: this account may not read {pages}. What is in the bucket is as it was. Open each page "
                "logged in as this user: it says what is missing (each project has a data use agreement of its own). Then "
                "trigger the run again."
            )
        if left_out:
            self.log.warning(
                "Left out: %s. This account may not read that; the page, opened logged in, says what is missing.", pages
            )
        self.log.info("Built: %s", built)
        if others := other_places(context):
            self.log.warning("%s", others)
        notice = f"Built: {', '.join(built)}. " + (
            f"Left out, as this account may not read it: {pages}. " if pages else ""
        )
        leave_notice(context, (notice + others).strip())
        return {"built": built, "left_out": [dataset.name for dataset in left_out]}
