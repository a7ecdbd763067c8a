"""Which errors are worth another try, by the engine's error tree."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

from include.physionet_mirror.errors import (
    AccessRefused,
    BucketMissing,
    BucketRefused,
    BucketUnsafe,
    CredentialsRefused,
    DestinationUnavailable,
    ImagesFailed,
    InputError,
    MetadataError,
    SourceUnavailable,
    Throttled,
    VerificationFailed,
)

PERMANENT = (
    InputError,
    MetadataError,
    CredentialsRefused,
    AccessRefused,
    BucketMissing,
    BucketRefused,
    BucketUnsafe,
    VerificationFailed,
)
"""Errors that stay until a person acts: the task fails at once, whatever retries it has left."""

RETRIES = 5
"""Tries after the first one, where an error may pass by itself."""

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception=list(PERMANENT),
            action=RetryAction.FAIL,
            reason="Trying again cannot help: this needs a person (see the text above).",
        ),
        RetryRule(
            exception=Throttled,
            action=RetryAction.RETRY,
            retry_delay=timedelta(minutes=10),
            reason="PhysioNet asks for less; waiting longer.",
        ),
        RetryRule(
            exception=SourceUnavailable,
            action=RetryAction.RETRY,
            retry_delay=timedelta(minutes=3),
            reason="PhysioNet is out of reach for now.",
        ),
        RetryRule(
            exception=DestinationUnavailable,
            action=RetryAction.RETRY,
            retry_delay=timedelta(minutes=1),
            reason="S3 is out of reach for now.",
        ),
        RetryRule(
            exception=ImagesFailed,
            action=RetryAction.RETRY,
            retry_delay=timedelta(seconds=30),
            reason="Some images could not be had; only these are asked for again.",
        ),
    ]
)
"""For every task of this project; what no rule names backs off exponentially from the task's own ``retry_delay``."""

TASK_DEFAULTS = {
    "retries": RETRIES,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(minutes=15),
    "retry_policy": RETRY_POLICY,
}
"""``default_args`` of the DAGs."""
