"""``airflow dags test``: no scheduler looks after the run, and somebody watches it."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

PATIENCE = timedelta(minutes=10)
"""How long a run waits for an answer at most."""


def is_dags_test() -> bool:
    """Whether this process is ``airflow dags test``."""
    return sys.argv[1:3] == ["dags", "test"]


def answer_to(context: Context, patience: timedelta) -> dict[str, Any] | None:
    """The answer to a task's question, as Airflow's trigger would bring it; None if nobody answers in time.

    Airflow cannot wait for it here: 3.1 and 3.2 do not let the trigger read it, and 3.3 knows no end of it. The process has
    Airflow's database.

    Args:
        context: The task's.
        patience: How long to wait.
    """
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    ti = context["ti"]
    asked = (
        select(HITLDetail)
        .join(TaskInstance, TaskInstance.id == HITLDetail.ti_id)
        .where(TaskInstance.dag_id == ti.dag_id, TaskInstance.task_id == ti.task_id, TaskInstance.run_id == ti.run_id)
    )
    deadline = time.monotonic() + patience.total_seconds()
    while time.monotonic() < deadline:
        with create_session() as session:
            found = session.scalars(asked).one()
            if found.response_received:
                return {
                    "chosen_options": list(found.chosen_options or ()),
                    "params_input": found.params_input or {},
                    "responded_at": found.responded_at,
                    "responded_by_user": found.responded_by_user,
                }
        time.sleep(0.5)
    return None
