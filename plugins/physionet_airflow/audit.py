"""The operators of ``mimic_cxr_audit``."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import BaseOperator

from physionet_airflow.bucket import AWS_CONN_ID
from physionet_airflow.compat import AirflowFailException, AirflowSkipException
from physionet_airflow.run import Run, engine_errors, result_of
from physionet_mirror.errors import VerificationFailed

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

AUDIT = "audit"
"""Task id of the audit."""

REPAIR = "repair"
"""Task id of the repair, and the key of its XCom."""


class AuditOperator(BaseOperator):
    """Compares a share of the bucket with PhysioNet's checksums and never fails for a difference (`JudgeAuditOperator` does).

    Args:
        aws_conn_id: The bucket's account.

    Returns (XCom):
        The content of audit.json.
    """

    ui_color = "#e8f0e4"

    def __init__(self, *, aws_conn_id: str = AWS_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Compare, and write audit.json."""
        from physionet_mirror.steps import audit
        from physionet_mirror.verified_cache import attempt_of

        params = context["params"]
        with engine_errors():
            run = Run.of(context, self.aws_conn_id, verify=params["level"])
            share = audit.Share.parse(params["share"], context["dag_run"].run_after or datetime.now(UTC))
            verdict = audit.audit(run.bucket, run.request.verify, share, attempt_of(run.layout, run.started))
            return audit.write_audit(run.bucket, run.layout, verdict, share, run.started).to_json()


class RepairOperator(TriggerDagRunOperator):
    """Triggers ``mimic_cxr_jpg`` for the images that the audit found missing or wrong; skipped when there are none.

    The param ``repair`` must be true. The run copies the settings of the latest run to this bucket. Its id contains the
    audit's, so that clearing this task triggers no second run while the first is under way.

    Args:
        aws_conn_id: The bucket's account.

    Returns (XCom, under the key ``repair``):
        ``run_id`` and ``state``: ``triggered``, ``running`` (by an earlier try) or ``paused``.
    """

    # The provider's link looks up the triggered run's id, and logs an error if none was triggered.
    operator_extra_links: list[BaseOperatorLink] = []  # noqa: RUF012  # as the base class declares it

    def __init__(self, *, aws_conn_id: str = AWS_CONN_ID, **kwargs: Any) -> None:
        super().__init__(trigger_dag_id="mimic_cxr_jpg", **kwargs)
        self.aws_conn_id = aws_conn_id

    @engine_errors()
    def execute(self, context: Context) -> Any:
        """Trigger, or skip."""
        from physionet_mirror.records import Audit
        from physionet_mirror.steps import audit

        found = Audit.from_json(result_of(context, AUDIT))
        if not found.failed_images:
            raise AirflowSkipException("Nothing differs, so there is nothing to repair.")
        if not context["params"]["repair"]:
            raise AirflowSkipException(
                "Not asked to repair. Trigger mimic_cxr_jpg with select=all and "
                f"file_list={found.failed_images}, or this audit with repair=true."
            )
        ti = context["ti"]
        run_id, is_running = _repair_run(ti, self.trigger_dag_id, context["dag_run"].run_after)
        state = "running" if is_running else "paused" if _is_paused(ti, self.trigger_dag_id) else "triggered"
        ti.xcom_push(key=REPAIR, value={"run_id": run_id, "state": state})
        if state == "running":
            raise AirflowSkipException(f"The run {run_id} of {self.trigger_dag_id} is still fetching what was found.")
        if state == "paused":
            raise AirflowFailException(_PAUSED)
        with engine_errors():
            self.conf = audit.repair_params(Run.of(context, self.aws_conn_id).bucket, found)
        self.trigger_run_id = run_id
        return super().execute(context)


def _repair_run(ti: Any, dag_id: str, audited: datetime) -> tuple[str, bool]:
    """An unused run id, or that of an earlier try that is still running; and which of the two."""
    for number in count(1):
        run_id = f"repair__{audited.isoformat()}" + (f"__{number}" if number > 1 else "")
        if ti.get_dr_count(dag_id=dag_id, run_ids=[run_id], states=["queued", "running"]):
            return run_id, True
        if not ti.get_dr_count(dag_id=dag_id, run_ids=[run_id]):
            return run_id, False
    raise AssertionError


def _is_paused(ti: Any, dag_id: str) -> bool:
    """Whether the DAG is paused; Airflow 3.1 does not say, and the run then waits until somebody unpauses the DAG."""
    return hasattr(ti, "get_dag") and bool(ti.get_dag(dag_id).is_paused)


class JudgeAuditOperator(BaseOperator):
    """Fails the run and names what differs if the audit found anything. Use it with ``all_done``."""

    ui_color = "#e8f0e4"

    @engine_errors()
    def execute(self, context: Context) -> None:
        """Judge."""
        from physionet_mirror.records import Audit

        result = context["ti"].xcom_pull(task_ids=AUDIT)
        if result is None:
            raise VerificationFailed(
                "There is no audit to judge: the task audit failed, and its log says why, or it was marked as success by "
                "hand. Nothing was changed in the bucket. Clear it with what comes after it."
            )
        found = Audit.from_json(result)
        if not found.differing:
            self.log.info("All %s images are what PhysioNet publishes.", f"{found.verified:,}")
            return
        counts = ", ".join(f"{number:,} {reason}" for reason, number in found.differing.items())
        raise VerificationFailed(
            f"{found.destination} differs from what PhysioNet publishes: {counts} of {found.looked_at:,} images "
            f"looked at. The others are untouched. Which ones: {found.failed_images}. {_what_next(context)}"
        )


_PAUSED = (
    "The repair was not triggered, because mimic_cxr_jpg is paused. Unpause it under Dags, then clear the task repair of "
    "this audit."
)


def _what_next(context: Context) -> str:
    """What happens to the images that differ, given how the task ``repair`` ended."""
    if not context["params"]["repair"]:
        return "Trigger this audit with repair=true, or mimic_cxr_jpg with that file as its file_list."
    repair = context["ti"].xcom_pull(task_ids=REPAIR, key=REPAIR) or {}
    state = repair.get("state")
    if state == "paused":
        return _PAUSED
    if state == "running":
        return f"The run {repair['run_id']} of mimic_cxr_jpg, triggered before by this audit, is still fetching them."
    if state == "triggered" and _state_of(context["ti"], REPAIR) == "success":
        return f"The run {repair['run_id']} of mimic_cxr_jpg was triggered, which fetches them again."
    return "The task repair triggered nothing; its log says why. Clear it when that is put right."


def _state_of(ti: Any, task_id: str) -> str:
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=[task_id], run_ids=[ti.run_id])
    return str(states.get(ti.run_id, {}).get(task_id))
