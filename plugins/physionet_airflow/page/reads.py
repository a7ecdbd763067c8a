"""What the views read of buckets and of Airflow's database, each kept for a while and read once for all readers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from airflow.api_fastapi.common.db.common import SessionDep

from physionet_airflow.bucket import open_bucket
from physionet_airflow.page import runs, show
from physionet_airflow.page.access import defaults_of
from physionet_airflow.page.cache import RefreshingCache
from physionet_airflow.page.runs import Mirror, Place, Run
from physionet_mirror import overview, records
from physionet_mirror.errors import MirrorError
from physionet_mirror.layout import RunLayout
from physionet_mirror.preview import Planned
from physionet_mirror.progress import MOST_BYTES
from physionet_mirror.s3.bucket import Bucket

log = logging.getLogger(__name__)

LATEST = 10
"""Runs of a mirror that are shown, and learnt from."""

Kind = Literal["images", "files"]

_buckets: RefreshingCache[Bucket] = RefreshingCache(seconds=300, most=200)
_catalogs: RefreshingCache[overview.Catalog | MirrorError | bool] = RefreshingCache(seconds=20, most=2)
_places: RefreshingCache[Sequence[Place]] = RefreshingCache(seconds=5, most=32)
_reports: RefreshingCache[records.RunReport | bool] = RefreshingCache(seconds=60, most=200)
_plans: RefreshingCache[Planned | bool] = RefreshingCache(seconds=60, most=200)


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

    def load(known: overview.Catalog | MirrorError | bool | None) -> overview.Catalog | MirrorError | bool:
        try:
            before = known if isinstance(known, overview.Catalog) else None
            return overview.load(bucket_of(mirror), before, kind) or False
        except MirrorError as error:
            return error

    found = _catalogs.get((mirror, kind), load)
    if isinstance(found, MirrorError):
        raise found.with_traceback(None)
    return found if isinstance(found, overview.Catalog) else None


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
    if not run.over or run.mirror is None:
        return None
    bucket = bucket_of(run.mirror)

    def read(_: Any) -> records.RunReport | bool:
        path = layout_of(run, bucket).report_json
        try:
            found = records.read(bucket, path, records.RunReport, most=MOST_BYTES)
        except ValueError as error:  # damaged, or not ours; the other reports are still shown
            log.warning("%s is left out: %s.", bucket.uri(path), error)
            return False
        return found if found is not None and show.result_of(found) else False

    found = _reports.get((run.mirror, run.dag_id, run.run_id, run.ended), read)
    return found if isinstance(found, records.RunReport) else None


def planned_of(run: Run) -> Planned | None:
    """What a run's plan knows of sizes."""
    if run.mirror is None:
        return None
    bucket = bucket_of(run.mirror)

    def read(_: Any) -> Planned | bool:
        path = layout_of(run, bucket).plan
        try:
            found = records.read(bucket, path, records.Plan, most=MOST_BYTES)
        except ValueError as error:
            log.warning("%s is left out: %s.", bucket.uri(path), error)
            return False
        return Planned.of(found) if found is not None else False

    found = _plans.get((run.mirror, run.dag_id, run.run_id, run.state), read)
    return found if isinstance(found, Planned) else None
