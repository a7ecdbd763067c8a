"""Which errors are worth another try, and when: what the engine's error tree says, as Airflow's retry policy."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

from physionet_mirror.errors import MirrorError, all_errors

RETRIES = 5
"""Tries after the first one, where an error may pass by itself."""


def _rule(error: type[MirrorError]) -> RetryRule:
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


RETRY_POLICY = ExceptionRetryPolicy(
    rules=[_rule(error) for error in all_errors() if error.permanent or error.retry_delay is not None]
)
"""For every task of this project; what no rule names backs off exponentially from the task's own ``retry_delay``.

The delays need it; that a permanent error fails at once does not: `run.engine_errors` sees to that in any Airflow."""

TASK_DEFAULTS = {
    "retries": RETRIES,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(minutes=15),
    "retry_policy": RETRY_POLICY,
}
"""``default_args`` of the DAGs."""
