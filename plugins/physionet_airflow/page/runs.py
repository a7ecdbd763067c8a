"""Queries to Airflow's database: our runs, where they write to, and the states of their tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.models.dag import DagModel, DagTag
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import and_, func, or_, select

from physionet_mirror.dataset import Dataset, project
from physionet_mirror.errors import InputError
from physionet_mirror.layout import MAIN_DAG
from physionet_mirror.progress import Tasks
from physionet_mirror.request import Request, checked_bucket, checked_prefix

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

TAG = "physionet"
"""The tag by which our DAGs are recognised."""

GROUP = "mirror_shard"
"""The mapped task group of the shards, {missing → stream}."""

PROJECT_DAG = "physionet_project"
"""The DAG that mirrors any project; the plan page triggers it, too."""

MOST_PLACES = 500
"""Places that are known of, those of the latest runs first."""

_WHERE = ("bucket", "prefix", "project")
_BESIDE = ("cxr_project", "hosp_project", "ed_project")
"""Params that name a project which a run mirrors beside that of its prefix, below the project's own name."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where a run writes to: a bucket and a key prefix."""

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Mirror | None:
        """Where a run with these params writes to; None if they name no valid bucket and prefix."""
        try:
            named, prefix = params.get("project"), params.get("prefix")
            if prefix is None:
                prefix = Request.dataset.name if named is None else project(named).name
            return cls(checked_bucket(params.get("bucket")), checked_prefix(prefix))
        except InputError:
            return None


@dataclass(frozen=True)
class Place:
    """A mirror, and the runs that went to it.

    Attributes:
        given: For each DAG whose runs went there, what their conf says of it: DAG id, then the params of `_WHERE`, None
            where it says nothing.
        latest: When the latest of them was due; None = a DAG's default, to which no run went.
    """

    mirror: Mirror
    given: Sequence[tuple[str, str | None, str | None, str | None]] = ()
    latest: datetime | None = None


@dataclass(frozen=True)
class Run:
    """One run of one of our DAGs.

    Attributes:
        params: The DAG's defaults, overridden by the run's conf.
        mirror: Where it writes to; None if its params name no valid bucket and prefix.
        state: Airflow's name for it.
        paused: Whether its DAG is paused, so that no task of it begins.
    """

    dag_id: str
    run_id: str
    state: str
    params: Mapping[str, Any]
    mirror: Mirror | None
    queued: datetime | None
    started: datetime | None
    ended: datetime | None
    paused: bool = False

    @property
    def dataset(self) -> Dataset:
        """The project that it mirrors; MIMIC-CXR-JPG where its params name none."""
        try:
            named = self.params.get("project")
            return Request.dataset if named is None else project(named)
        except InputError:
            return Request.dataset

    @property
    def noun(self) -> str:
        """What it mirrors: ``image``, or ``file`` of a project that its params name."""
        return "image" if self.params.get("project") is None else "file"

    @property
    def over(self) -> bool:
        return self.state in ("success", "failed")


@dataclass(frozen=True)
class RunTasks:
    """The states of a run's tasks: ``shards`` by map index, ``others`` by task id in no particular order."""

    shards: Mapping[int, Tasks] = field(default_factory=dict)
    others: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def mirrors(self) -> bool:
        """Whether the run plans shards: audits, clean-ups and runs for the tables alone do not."""
        return "plan" in self.others


def our_dags(session: Session, readable: Iterable[str]) -> list[str]:
    """Our DAGs among the readable ones, the main one first."""
    tagged = set(session.scalars(select(DagTag.dag_id).where(DagTag.name == TAG)))
    return sorted(tagged & set(readable), key=lambda dag_id: (dag_id != MAIN_DAG, dag_id))


def is_ours(session: Session, dag_id: str) -> bool:
    """Whether the DAG has our tag."""
    return session.scalar(select(DagTag.dag_id).where(DagTag.name == TAG, DagTag.dag_id == dag_id)) is not None


def is_paused(session: Session, dag_id: str) -> bool:
    """Whether the DAG is paused, so that no run of it begins."""
    return bool(session.scalar(select(DagModel.is_paused).where(DagModel.dag_id == dag_id)))


def dag_params(session: Session, dag_id: str) -> dict[str, dict[str, Any]]:
    """The DAG's params as its trigger form has them: by name ``value``, ``description``, ``schema``."""
    dag = SerializedDagModel.get_dag(dag_id, session=session)
    if dag is None:
        return {}
    specs = {name: dag.params.get_param(name).dump() for name in dag.params}
    return {
        name: {"value": spec["value"], "description": spec["description"] or "", "schema": dict(spec["schema"])}
        for name, spec in specs.items()
    }


def find_run(session: Session, dag_id: str, run_id: str, defaults: Mapping[str, Any]) -> Run | None:
    """One run; ``defaults`` are its DAG's params by name."""
    found = session.execute(_runs().where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)).first()
    return _run(found, defaults) if found else None


def places(session: Session, defaults: Mapping[str, Mapping[str, Any]]) -> list[Place]:
    """The mirrors that runs of these DAGs ever went to, the latest first, then those of the DAGs' defaults.

    One query, which reads no run's conf but asks the database for the few params that say where it went, each combination
    once: a mirror is not forgotten because other runs came after, however many.

    Args:
        session: Airflow's database.
        defaults: By id of the DAG, its params' defaults.
    """
    named = [_given(name).label(name) for name in (*_WHERE, *_BESIDE)]
    each = select(DagRun.dag_id, *named, DagRun.run_after).where(DagRun.dag_id.in_(defaults)).subquery()
    keys, latest = [each.c.dag_id, *(each.c[name.key] for name in named)], func.max(each.c.run_after)
    rows = session.execute(select(*keys, latest).group_by(*keys).order_by(latest.desc()).limit(MOST_PLACES))
    found: dict[Mirror, Place] = {}
    beside: list[Place] = []
    for dag_id, bucket, prefix, project_, *others, at in rows:
        params = {**defaults[dag_id], **_said(zip(_WHERE, (bucket, prefix, project_), strict=True))}
        mirror = Mirror.of(params)
        if mirror is None:
            continue
        before = found.get(mirror, Place(mirror, latest=at))
        found[mirror] = replace(before, given=[*before.given, (dag_id, bucket, prefix, project_)])
        also = {**{name: params.get(name) for name in _BESIDE}, **_said(zip(_BESIDE, others, strict=True))}
        beside += [
            Place(more, latest=at)
            for name in also.values()
            if name and (more := Mirror.of({"bucket": mirror.bucket, "project": name}))
        ]
    beside += [Place(mirror) for params in defaults.values() if (mirror := Mirror.of(params))]
    for place in beside:
        found.setdefault(place.mirror, place)
    return list(found.values())


def runs_of(session: Session, place: Place, defaults: Mapping[str, Mapping[str, Any]], most: int) -> list[Run]:
    """The latest runs that went to a place, the newest first; ``defaults`` as in `places`."""
    if not place.given:
        return []
    here = [
        and_(
            DagRun.dag_id == dag_id,
            *(_given(name).is_not_distinct_from(value) for name, value in zip(_WHERE, values, strict=True)),
        )
        for dag_id, *values in place.given
    ]
    rows = session.execute(_runs().where(or_(*here)).order_by(DagRun.run_after.desc(), DagRun.id.desc()).limit(most))
    return [_run(row, defaults[row.dag_id]) for row in rows]


def _given(name: str) -> Any:
    """A param in a run's conf, as text; null where the conf has none."""
    return DagRun.conf[name].as_string()


def _said(params: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    return {name: value for name, value in params if value is not None}


def tasks_of(session: Session, run: Run) -> RunTasks:
    """The states of a run's tasks, in one query of a few short columns."""
    rows = session.execute(
        select(TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state, TaskInstance.try_number).where(
            TaskInstance.dag_id == run.dag_id, TaskInstance.run_id == run.run_id
        )
    )
    missing: dict[int, tuple[str | None, bool]] = {}
    stream: dict[int, str | None] = {}
    others: dict[str, str | None] = {}
    for task_id, map_index, state, tries in rows:
        text = None if state is None else str(getattr(state, "value", state))
        if task_id == f"{GROUP}.missing" and map_index >= 0:
            missing[map_index] = (text, bool(tries))
        elif task_id == f"{GROUP}.stream" and map_index >= 0:
            stream[map_index] = text
        elif not task_id.startswith(f"{GROUP}."):
            others[task_id] = text
    shards = {
        index: Tasks(*(missing.get(index, (None, True))[:1]), stream.get(index), missing.get(index, (None, True))[1])
        for index in missing.keys() | stream.keys()
    }
    return RunTasks(shards, others)


def _runs() -> Any:
    return select(
        DagRun.dag_id,
        DagRun.run_id,
        DagRun.state,
        DagRun.conf,
        DagRun.queued_at,
        DagRun.start_date,
        DagRun.end_date,
        DagModel.is_paused,
    ).outerjoin(DagModel, DagModel.dag_id == DagRun.dag_id)


def _run(row: Any, defaults: Mapping[str, Any]) -> Run:
    params = {**defaults, **(row.conf if isinstance(row.conf, Mapping) else {})}
    state = str(getattr(row.state, "value", row.state))
    return Run(
        dag_id=row.dag_id,
        run_id=row.run_id,
        state=state,
        params=params,
        mirror=Mirror.of(params),
        queued=row.queued_at,
        started=row.start_date,
        ended=row.end_date,
        paused=bool(row.is_paused),
    )
