"""What differs between Airflow 3.1, 3.2 and 3.3; the other modules and the DAGs import these names from here.

    TaskAsked                   since 3.3 a task that asks a person waits in a state of its own, not deferred
    AirflowException, …         in ``airflow.sdk`` since 3.2
    CronDataIntervalTimetable   in ``airflow.sdk`` since 3.2
    RETRY_BACKOFF               a factor since 3.2; 3.1 takes a bool, which doubles the delay each time
    retry_policy                since 3.3; before, a task's own ``retry_delay`` applies to every error
    stats                       functions of a module since 3.3; before, of a class
    teams_of                    one query for many DAGs since 3.2

Permanent errors do not depend on any of it: `run.engine_errors` fails the task at once in every version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import CronDataIntervalTimetable
    from airflow.sdk.definitions.retry_policy import RetryPolicy
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowRescheduleException,
        AirflowSensorTimeout,
        AirflowSkipException,
    )
    from airflow.sdk.exceptions import TaskAwaitingInput as TaskAsked
    from sqlalchemy.orm import Session

    from physionet_mirror.errors import MirrorError

__all__ = [
    "AIRFLOW",
    "RETRY_BACKOFF",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowRescheduleException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "CronDataIntervalTimetable",
    "TaskAsked",
    "retry_policy",
    "stats",
    "teams_of",
]

AIRFLOW = tuple(int(number) for number in __version__.split(".")[:2])
"""The running Airflow's version, as ``(3, 3)``."""

if not TYPE_CHECKING:
    _errors = import_module("airflow.sdk.exceptions" if AIRFLOW >= (3, 2) else "airflow.exceptions")
    AirflowException = _errors.AirflowException
    AirflowFailException = _errors.AirflowFailException
    AirflowNotFoundException = _errors.AirflowNotFoundException
    AirflowRescheduleException = _errors.AirflowRescheduleException
    AirflowSensorTimeout = _errors.AirflowSensorTimeout
    AirflowSkipException = _errors.AirflowSkipException
    TaskAsked = _errors.TaskAwaitingInput if AIRFLOW >= (3, 3) else _errors.TaskDeferred
    _timetables = import_module("airflow.sdk" if AIRFLOW >= (3, 2) else "airflow.timetables.interval")
    CronDataIntervalTimetable = _timetables.CronDataIntervalTimetable

RETRY_BACKOFF: Any = 2 if AIRFLOW >= (3, 2) else True
"""For ``retry_exponential_backoff``: double the delay after each try."""


def retry_policy(errors: list[type[MirrorError]]) -> RetryPolicy | None:
    """The retry policy that these errors carry; None if this Airflow has no retry policies.

    Args:
        errors: Classes that are permanent or have a ``retry_delay``.
    """
    if AIRFLOW < (3, 3):
        return None
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

    def rule(error: type[MirrorError]) -> RetryRule:
        if error.permanent:
            return RetryRule(
                exception=error,
                action=RetryAction.FAIL,
                reason=f"{error.summary}. Trying again cannot help: this needs a person (see the text above).",
            )
        return RetryRule(
            exception=error,
            action=RetryAction.RETRY,
            retry_delay=error.retry_delay,
            reason=f"{error.summary}; trying again in {error.retry_delay}.",
        )

    return ExceptionRetryPolicy(rules=[rule(error) for error in errors])


def stats() -> Any:
    """Airflow's metrics: ``incr``, ``gauge`` and ``timing``. Imported on use, because importing reads the configuration."""
    if AIRFLOW >= (3, 3):
        return import_module("airflow.sdk.observability.stats")
    return import_module("airflow.sdk.observability.stats" if AIRFLOW >= (3, 2) else "airflow.stats").Stats


def teams_of(dag_ids: list[str], session: Session) -> Mapping[str, str | None]:
    """The teams to which these DAGs belong, by DAG id. For the API server only: it queries Airflow's database."""
    from airflow.models.dag import DagModel

    if AIRFLOW < (3, 2):
        return {dag_id: DagModel.get_team_name(dag_id, session=session) for dag_id in dag_ids}
    return DagModel.get_dag_id_to_team_name_mapping(dag_ids, session=session)
