"""Queries to Airflow's database: our runs, where they write to, and the states of their tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.models.dag import DagModel, DagTag
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import select

from physionet_mirror.dataset import project
from physionet_mirror.errors import InputError
from physionet_mirror.progress import Tasks
from physionet_mirror.request import Request, checked_bucket, checked_prefix

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

TAG = "physionet"
"""The tag by which our DAGs are recognised."""

MAIN_DAG = "mimic_cxr_jpg"
"""The DAG that the plan page triggers."""

GROUP = "mirror_shard"
"""The mapped task group of the shards, {missing → stream}."""

_SEEN = 200
"""Latest runs that are searched for the buckets they wrote to."""


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


def latest_runs(session: Session, defaults: Mapping[str, Mapping[str, Any]]) -> list[Run]:
    """The latest runs of these DAGs (by id: their params' defaults), the newest first."""
    rows = session.execute(
        _runs().where(DagRun.dag_id.in_(defaults)).order_by(DagRun.run_after.desc(), DagRun.id.desc()).limit(_SEEN)
    )
    return [_run(row, defaults[row.dag_id]) for row in rows]


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


def mirrors_of(runs: Sequence[Run], defaults: Iterable[Mapping[str, Any]]) -> list[Mirror]:
    """Where these runs wrote to, the latest first, then the mirrors of the DAGs' defaults; without duplicates."""
    named = [run.mirror for run in runs] + [Mirror.of(params) for params in defaults]
    return list(dict.fromkeys(mirror for mirror in named if mirror))
