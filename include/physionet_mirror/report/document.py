"""Builds and writes ``report.json`` (docs/report-schema.md), the facts of a finished run, and ``failed_images.txt``."""

from __future__ import annotations

import io
import logging
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from physionet_mirror import cohort, throughput
from physionet_mirror.errors import AGAIN, MirrorError, next_steps
from physionet_mirror.layout import INDEX
from physionet_mirror.records import (
    Destination,
    Failure,
    LabelCount,
    Part,
    Plan,
    ReportedCohort,
    ReportedDataset,
    ReportedFiles,
    ReportedRequests,
    ReportedRun,
    ReportedTransfer,
    ReportedVerification,
    Result,
    RunReport,
    ShardResult,
    Sizes,
    grouped,
    load,
)
from physionet_mirror.report import page
from physionet_mirror.s3.prices import DEFAULT_REGION, INTERNET, PRICES_AS_OF, request_cost, transfer_out
from physionet_mirror.verification import Verdict

if TYPE_CHECKING:
    from physionet_mirror.dataset import Dataset
    from physionet_mirror.layout import RunLayout
    from physionet_mirror.s3.bucket import Bucket

log = logging.getLogger(__name__)

FORMAT = "physionet-mirror/report"
VERSION = 1
"""Increased when a field changes its meaning or is removed, but not for new fields."""

_EXAMPLES = 5  # images named for each reason; failed_images.txt names all
_SIZE_BINS = 24

NEXT_STEPS: Mapping[str, str] = {
    "missing": f"{AGAIN}: it fetches only what is missing. If a shard's task failed, its log says why.",
    "empty": f"{AGAIN}: it fetches these files anew and replaces the empty objects.",
    "wrong bytes": f"{AGAIN}: it fetches these files anew and replaces the wrong objects. "
    "If it comes back, find out what else writes below this prefix.",
    **next_steps(),
}
"""What to do about images that failed, by reason."""


def write(
    bucket: Bucket,
    run: RunLayout,
    *,
    dataset: Dataset,
    verdict: Verdict,
    manifest: bytes,
    params: Mapping[str, Any],
    started: datetime,
    index_rows: int,
    plan: Plan,
    software: Mapping[str, str] | None = None,
    shard_of: Mapping[str, int] | None = None,
) -> RunReport:
    """Write the run's report, and return it.

    Args:
        bucket: Destination.
        run: Where the report goes.
        dataset: The dataset that was mirrored.
        verdict: The result of verifying the selection.
        manifest: ``manifest.parquet``.
        params: As given to the run. They are shown unchanged, so they must not contain secrets.
        started: Start of the run.
        index_rows: Rows in the training index after this run.
        plan: The run's.
        software: Versions to show besides those determined here.
        shard_of: The shard of each image that is not in the bucket (see `explain`).

    Raises:
        DestinationError: S3 does not take the report.
    """
    results = read_results(bucket, run)
    problems = explain(verdict.problems, results, shard_of)
    if problems:
        bucket.write_text(run.failed_images, "".join(f"{problem.path}\t{problem.reason}\n" for problem in problems))
    else:
        stale = bucket.head(run.failed_images)  # from an earlier attempt at this run
        if stale and stale.size:
            bucket.discard([run.failed_images])
    finished = datetime.now(UTC)
    moved = transfer(results)
    if to := plan.estimate.transfer_to:
        out = transfer_out(moved.bytes, None if to == INTERNET else to)
        moved = replace(moved, out_to=out.to, out_usd=round(out.cost, 6))
    stored = {"COPY" if plan.way.get("mode") == "copy" else "PUT": moved.images}
    requests = dict(sorted((Counter(verdict.requests) + Counter(stored)).items()))
    region, storage_class = plan.estimate.region or DEFAULT_REGION, plan.estimate.storage_class or "STANDARD"
    report = RunReport(
        format=FORMAT,
        version=VERSION,
        run=ReportedRun(
            id=run.run_id,
            dag_id=run.dag_id,
            started=_iso(started),
            finished=_iso(finished),
            seconds=round(max(0.0, (finished - started).total_seconds()), 1),
        ),
        dataset=_dataset(dataset, manifest, verdict.noun),
        destination=Destination(bucket.name, bucket.prefix, bucket.uri()),
        params={str(name): value for name, value in params.items()},
        way=plan.way,
        store=plan.store,
        notes=[*plan.notes, *verdict.notes],
        result=Result(
            passed=verdict.passed,
            level=verdict.level,
            selected=verdict.selected,
            present=verdict.present,
            verified=verdict.verified,
            missing=verdict.missing,
            wrong=verdict.wrong,
            empty=verdict.empty,
            bytes=verdict.bytes,
        ),
        cohort=_cohort(verdict, manifest, dataset.labels),
        verification=ReportedVerification(
            level=verdict.level,
            seconds=round(verdict.seconds, 3),
            remembered=verdict.remembered,
            read_back=verdict.read_back,
            requests=verdict.requests,
            cost_usd=round(verdict.cost(region, storage_class), 6),
        ),
        transfer=moved,
        requests=ReportedRequests(
            by_kind=requests,
            cost_usd=round(request_cost(requests, region, storage_class), 6),
            prices=f"S3 {storage_class}, {region}, {PRICES_AS_OF}",
        ),
        sizes=_sizes([image.size for image in verdict.ok]),
        failures=grouped(problems, _EXAMPLES, next_step),
        files=ReportedFiles(
            report_html=run.report_html,
            failed_images=run.failed_images if problems else None,
            index=INDEX,
            index_rows=index_rows,
        ),
        software={**_software(), **(software or {})},
        noun=verdict.noun,
    )
    bucket.write_text(run.report_html, page.html(report), content_type="text/html; charset=utf-8")
    bucket.write_json(run.report_json, report.to_json())
    return report


def read_results(bucket: Bucket, run: RunLayout) -> list[ShardResult]:
    """The results that the run's stream tasks published, in order of shard; damaged ones are skipped with a warning."""
    paths = [entry.path for entry in bucket.list(run.results) if entry.path.endswith(".json")]
    with ThreadPoolExecutor(8, thread_name_prefix="results") as pool:
        read = pool.map(lambda path: load(bucket, path, ShardResult), paths)
        return [result for result in read if result is not None]


def explain(
    problems: Iterable[Failure], results: Iterable[ShardResult], shard_of: Mapping[str, int] | None = None
) -> list[Failure]:
    """Give each missing image the reason why its stream task could not fetch it, if that is known.

    ``shard_of`` maps images to their shards, for images that a task had not reached when an error ended it.
    """
    results = list(results)
    ended = {result.shard: result.error for result in results if result.error}
    shard_of = shard_of or {}
    why = {path: (ended[shard].reason, ended[shard].detail) for path, shard in shard_of.items() if shard in ended}
    why |= {each.path: (each.reason, each.detail) for result in results for each in result.known_failures}
    explained = []
    for problem in problems:
        reason, detail = why.get(problem.path, ("", ""))
        if not reason:
            explained.append(problem)
        elif problem.reason == "missing":
            explained.append(Failure(problem.path, _line(reason), detail))
        else:
            explained.append(replace(problem, detail=f"{problem.detail}; fetching it again failed: {reason}"))
    return explained


def next_step(reason: str) -> str:
    """What to do about files that failed for this reason."""
    return NEXT_STEPS.get(reason, MirrorError.next_step)


def figures(report: RunReport) -> dict[str, Any]:
    """The few figures that are attached to the asset event."""
    result = report.result.to_json()
    del result["present"]
    return {
        "run_id": report.run.id,
        "dag_id": report.run.dag_id,
        "dataset": report.dataset.name,
        "manifest_sha256": report.dataset.manifest_sha256,
        **result,
        "stored": report.transfer.images,
        "index_rows": report.files.index_rows,
        "report": f"{report.destination.uri}/{report.files.report_html}",
    }


# -- facts -----------------------------------------------------------------------------------------------------------


def _dataset(dataset: Dataset, manifest: bytes, noun: str) -> ReportedDataset:
    about = pq.read_metadata(io.BytesIO(manifest))
    sums = (about.metadata or {}).get(b"physionet_mirror.sums_sha256")
    count = about.num_rows
    if noun == "image":
        count -= pq.read_table(io.BytesIO(manifest), columns=["dicom_id"])["dicom_id"].null_count
    return ReportedDataset(
        name=dataset.name,
        title=dataset.title,
        page=dataset.page,
        agreement_page=dataset.agreement_page,
        citation=dataset.citation,
        images=count,
        manifest_sha256=sums.decode() if sums else None,
    )


def _cohort(verdict: Verdict, manifest: bytes, labels: Sequence[str]) -> ReportedCohort:
    """The cohort of the selection, as the manifest describes it, with the number of verified images in each part."""
    names = set(pq.read_schema(io.BytesIO(manifest)).names)
    columns = [name for name in ("path", *cohort.COLUMNS, *labels) if name in names]
    table = pq.read_table(io.BytesIO(manifest), columns=columns)
    paths = table.schema.field("path").type
    ok = pa.array([image.path for image in verdict.ok], paths)
    bad = pa.array([problem.path for problem in verdict.problems], paths)
    chosen = table.filter(pc.is_in(table["path"], value_set=pa.concat_arrays([ok, bad])))
    counts = cohort.count(chosen, pc.invert(pc.is_in(chosen["path"], value_set=bad)), labels)
    return ReportedCohort(
        patients=counts.patients,
        studies=counts.studies,
        by_group=[Part(*value) for value in counts.groups],
        by_split=[Part(*value) for value in counts.splits],
        by_view=[Part(*value) for value in counts.views],
        positive_labels=[LabelCount(label.name, label.positive) for label in counts.labels],
    )


def _sizes(sizes: Sequence[int]) -> Sizes:
    if not sizes:
        return Sizes()
    values = np.asarray(sizes, dtype=np.int64)
    counts, edges = np.histogram(values, bins=_SIZE_BINS, range=(values.min(), max(values.max(), values.min() + 1)))
    return Sizes(
        smallest=int(values.min()),
        median=int(np.median(values)),
        mean=int(values.mean()),
        largest=int(values.max()),
        edges=[round(float(edge)) for edge in edges],
        counts=[int(count) for count in counts],
    )


def transfer(results: Sequence[ShardResult]) -> ReportedTransfer:
    """The work of the run's stream tasks together; ``seconds`` from the first one's start to the last one's end."""
    spans = throughput.spans(results)
    began, ended = min((a for a, _ in spans), default=0.0), max((b for _, b in spans), default=0.0)
    images, sent = sum(result.stored for result in results), sum(result.bytes for result in results)
    faults: Counter[str] = Counter()
    for result in results:
        faults.update(result.faults)
    use = throughput.use(results)
    return ReportedTransfer(
        shards=dict(sorted(Counter(result.state for result in results).items())),
        images=images,
        bytes=sent,
        seconds=round(ended - began, 1),
        images_per_second=round(images / (ended - began), 3) if ended > began else 0.0,
        bytes_per_second=round(sent / (ended - began)) if ended > began else 0,
        connections=round(use.connections, 1),
        connections_allowed=round(use.allowed, 1),
        connection_seconds=round(use.connection_seconds, 1),
        retries=sum(result.retries for result in results),
        handshakes=sum(result.handshakes for result in results),
        faults=dict(faults.most_common()),
        series=throughput.series(results, began, ended),
    )


def _software() -> dict[str, str]:
    """Versions of the software that matters to the result."""
    versions = {"python": platform.python_version()}
    for name in ("apache-airflow", "boto3", "urllib3", "pandas", "pyarrow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


# -- words -----------------------------------------------------------------------------------------------------------


def _line(text: str) -> str:
    return " ".join(text.split())


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
