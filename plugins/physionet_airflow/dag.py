"""What every DAG of this package has in common."""

from __future__ import annotations

from typing import Any

from physionet_airflow.dags_test import is_dags_test
from physionet_airflow.notify import notifiers, run_limit
from physionet_airflow.retry import TASK_DEFAULTS


def defaults() -> dict[str, Any]:
    """Arguments of ``DAG(…)``: which errors are retried, how long a run may take, and who is told of its end.

    Raises:
        InputError: ``PHYSIONET_NOTIFY`` or ``PHYSIONET_RUN_HOURS`` cannot be read.
    """
    found: dict[str, Any] = {"default_args": TASK_DEFAULTS, "dagrun_timeout": run_limit()}
    # Whoever sits before `airflow dags test` sees the end; and a DAG's callbacks end it with an error there, where a param
    # is required (Airflow makes their context from the serialized DAG, up to 3.3).
    if is_dags_test():
        notifiers("finished")  # what cannot be read is said all the same
        return found
    if told := notifiers("finished"):
        found["on_success_callback"] = told
    if told := notifiers("failed"):
        found["on_failure_callback"] = told
    return found
