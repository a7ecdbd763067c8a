"""Which errors are worth another try, and when: what the engine's error tree says, as Airflow's retry policy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from physionet_airflow.compat import RETRY_BACKOFF, retry_policy
from physionet_mirror.errors import all_errors

RETRIES = 5
"""Tries after the first one, where an error may pass by itself."""


RETRY_POLICY = retry_policy([error for error in all_errors() if error.permanent or error.retry_delay is not None])
"""For every task of this project; what no rule names backs off exponentially from the task's own ``retry_delay``.

The delays need it; that a permanent error fails at once does not: `run.engine_errors` sees to that in any Airflow."""

TASK_DEFAULTS: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": RETRY_BACKOFF,
    "max_retry_delay": timedelta(minutes=15),
}
if RETRY_POLICY is not None:
    TASK_DEFAULTS["retry_policy"] = RETRY_POLICY
"""``default_args`` of the DAGs."""
