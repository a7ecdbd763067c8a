"""Which errors to retry, and when: the engine's error tree as Airflow's retry policy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from physionet_airflow.compat import RETRY_BACKOFF, retry_policy
from physionet_mirror.errors import all_errors

RETRIES = 5
"""Retries after an error that may be temporary."""


RETRY_POLICY = retry_policy([error for error in all_errors() if error.permanent or error.retry_delay is not None])
"""For every task of this project; errors without a rule back off exponentially from the task's own ``retry_delay``.

Only the delays depend on it: `run.engine_errors` makes permanent errors fail at once in any Airflow."""

TASK_DEFAULTS: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": RETRY_BACKOFF,
    "max_retry_delay": timedelta(minutes=15),
}
if RETRY_POLICY is not None:
    TASK_DEFAULTS["retry_policy"] = RETRY_POLICY
"""``default_args`` of the DAGs."""
