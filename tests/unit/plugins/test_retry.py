"""Each error class says whether a retry can help, and every Airflow version follows that."""

from __future__ import annotations

import traceback
from datetime import timedelta

import pytest

from physionet_airflow.audit import JudgeAuditOperator
from physionet_airflow.compat import AIRFLOW, AirflowFailException
from physionet_airflow.retry import RETRY_POLICY
from physionet_airflow.run import engine_errors
from physionet_mirror import errors
from physionet_mirror.errors import MirrorError, all_errors

TREE = list(all_errors())
SECRET = "Authorization: Basic cmVhZGVy"


def test_the_tree_is_whole():
    named = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, MirrorError)}
    assert set(TREE) == named
    assert len({error.reason for error in TREE}) == len(TREE)


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="Airflow has retry policies since 3.3")
@pytest.mark.parametrize("error", TREE)
def test_what_airflow_does_is_what_the_error_says(error):
    from airflow.sdk.definitions.retry_policy import RetryAction

    decision = RETRY_POLICY.evaluate(error("text"), 1, 5)
    if error.permanent:
        assert decision.action is RetryAction.FAIL
    elif error.retry_delay is None:
        assert decision.action is RetryAction.DEFAULT
    else:
        assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, error.retry_delay)


def test_the_special_case_decides_before_the_general_one():
    class Weary(errors.Throttled):
        retry_delay = timedelta(hours=1)

    assert next(found for found in all_errors() if issubclass(Weary, found)) is Weary


@pytest.mark.parametrize("error", TREE)
def test_a_permanent_error_fails_at_once_without_any_retry_policy(error):
    """By AirflowFailException, which works in Airflow versions without retry policies too."""

    @engine_errors()
    def work():
        try:
            raise OSError(SECRET)
        except OSError:
            raise error("what happened; what to do") from None

    with pytest.raises(AirflowFailException if error.permanent else error) as raised:
        work()
    assert "what happened; what to do" in str(raised.value)
    assert (error.__name__ in str(raised.value)) is error.permanent
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_an_operator_s_own_verdict_fails_at_once():
    found = {"destination": "s3://b/p", "differing": {"missing": 2}, "looked_at": 9, "failed_images": "s3://b/p/f.txt"}

    class Instance:
        def xcom_pull(self, **_):
            return found

    with pytest.raises(AirflowFailException, match="VerificationFailed: s3://b/p differs"):
        JudgeAuditOperator(task_id="judge").execute({"ti": Instance(), "params": {"repair": False}})
