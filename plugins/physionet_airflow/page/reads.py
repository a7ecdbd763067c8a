"""What the views read of buckets and of Airflow's database, each kept for a while and read once for all readers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from airflow.api_fastapi.common.db.common import SessionDep

from physionet_airflow.bucket import open_bucket
from physionet_airflow.page import runs, show
from physionet_airflow.page.access import defaults_of
from physionet_airflow.page.cache import ErrorKeepingCache, RefreshingCache
from physionet_airflow.page.runs import Mirror, Place, Run
from physionet_mirror import overview, records
from physionet_mirror.layout import RunLayout
from physionet_mirror.preview import Planned
from physionet_mirror.progress import MOST_BYTES
from physionet_mirror.s3.bucket import Bucket

log = logging.getLogger(__name__)

LATEST = 10
"""Runs of a mirror that are shown, and learnt from."""

Kind = Literal["images", "files"]
R = TypeVar("R", bound=records.Record)

_buckets: RefreshingCache[Bucket] = RefreshingCache(seconds=300, most=200)
_catalogs: ErrorKeepingCache[overview.Catalog] = ErrorKeepingCache(seconds=20, most=2)
_places: RefreshingCache[Sequence[Place]] = RefreshingCache(seconds=5, most=32)
_reports: RefreshingCache[records.RunReport | None] = RefreshingCache(seconds=60, most=200)
_plans: RefreshingCache[Planned | None] = RefreshingCache(seconds=60, most=200)


def bucket_of(mirror: Mirror) -> Bucket:
    """The mirror's bucket; makes no request but those that fetch credentials."""
    return _buckets.get(mirror, lambda _: open_bucket(mirror.bucket, mirror.prefix))


def layout_of(run: Run, bucket: Bucket) -> RunLayout:
    """Where the run's files lie; one LIST for a DAG other than the main one."""
    return records.located(bucket, RunLayout(run.run_id, run.dag_id))


def catalog_of(mirror: Mirror, kind: Kind) -> overview.Catalog | None:
    """The catalog of a mirror. Failures are cached too, so that not every reader tries again.

    Raises:
        MirrorError: As ``overview.load``.
    """
    return _catalogs.get((mirror, kind), lambda known: overview.load(bucket_of(mirror), known, kind))


def places_of(session: SessionDep, dags: Sequence[str]) -> Sequence[Place]:
    """The mirrors that these DAGs' runs ever went to, or go to by default."""
    return _places.get(tuple(dags), lambda _: runs.places(session, _defaults(session, dags)))


def runs_of(session: SessionDep, dags: Sequence[str], place: Place) -> list[Run]:
    """The latest runs of these DAGs that went to a place."""
    return runs.runs_of(session, place, _defaults(session, dags), LATEST)


def _defaults(session: SessionDep, dags: Sequence[str]) -> dict[str, dict[str, object]]:
    return {dag_id: defaults_of(session, dag_id) for dag_id in dags}


def report_of(run: Run) -> records.RunReport | None:
    """The report of a finished run."""
    mirror = run.mirror
    if not run.over or mirror is None:
        return None

    def read(_: Any) -> records.RunReport | None:
        found = _record(run, mirror, lambda layout: layout.report_json, records.RunReport)
        return found if found is not None and show.result_of(found) else None

    return _reports.get((mirror, run.dag_id, run.run_id, run.ended), read)


def planned_of(run: Run) -> Planned | None:
    """What a run's plan knows of sizes."""
    mirror = run.mirror
    if mirror is None:
        return None

    def read(_: Any) -> Planned | None:
        found = _record(run, mirror, lambda layout: layout.plan, records.Plan)
        return Planned.of(found) if found is not None else None

    return _plans.get((mirror, run.dag_id, run.run_id, run.state), read)


def _record(run: Run, mirror: Mirror, path_in: Callable[[RunLayout], str], kind: type[R]) -> R | None:
    """A file of a run. One that is damaged, or not ours, is left out with a warning: the others are still shown."""
    bucket = bucket_of(mirror)
    path = path_in(layout_of(run, bucket))
    try:
        return records.read(bucket, path, kind, most=MOST_BYTES)
    except ValueError as error:
        log.warning("%s is left out: %s.", bucket.uri(path), error)
        return None
