"""The operators of ``mimic_cxr_audit``."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import BaseOperator

from physionet_airflow.compat import AirflowFailException, AirflowSkipException
from physionet_airflow.notify import leave_notice
from physionet_airflow.run import Run, engine_errors, result_of
from physionet_mirror.errors import VerificationFailed
from physionet_mirror.layout import MAIN_DAG

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

AUDIT = "audit"
"""Task id of the audit."""

PROJECT_DAG = "physionet_project"
"""The DAG that repairs a mirror of any project."""

REPAIR = "repair"
"""Task id of the repair, and the key of its XCom."""


class AuditOperator(BaseOperator):
    """Compares a share of the bucket with PhysioNet's checksums and never fails for a difference (`JudgeAuditOperator` does).

    Returns (XCom):
        The content of audit.json.
    """

    ui_color = "#e8f0e4"

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Compare, and write audit.json."""
        from physionet_mirror.steps import audit
        from physionet_mirror.verified_cache import attempt_of

        params = context["params"]
        run = Run.of(context, verify=params["level"])
        share = audit.Share.parse(params["share"], context["dag_run"].run_after or datetime.now(UTC))
        attempt, noun = attempt_of(run.layout, run.started), run.request.selection.noun
        verdict = audit.audit(run.bucket, run.request.verify, share, attempt, noun=noun)
        return audit.write_audit(run.bucket, run.layout, verdict, share, run.started).to_json()


class RepairOperator(TriggerDagRunOperator):
    """Triggers ``mimic_cxr_jpg`` for the images that the audit found missing or wrong; skipped when there are none.

    With the param ``project``, ``physionet_project`` for those files of it. The param ``repair`` must be true. The run
    copies the settings of the latest run to this bucket. Its id contains the audit's, so that clearing this task triggers
    no second run while the first is under way.

    Returns (XCom, under the key ``repair``):
        ``run_id`` and ``state``: ``triggered``, ``running`` (by an earlier try) or ``paused``.
    """

    # The provider's link looks up the triggered run's id, and logs an error if none was triggered.
    operator_extra_links: list[BaseOperatorLink] = []  # noqa: RUF012  # as the base class declares it

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_dag_id=MAIN_DAG, **kwargs)

    @engine_errors()
    def execute(self, context: Context) -> Any:
        """Trigger, or skip."""
        from physionet_mirror.records import Audit
        from physionet_mirror.steps import audit

        found = Audit.from_json(result_of(context, AUDIT))
        if not found.failed_images:
            raise AirflowSkipException("Nothing differs, so there is nothing to repair.")
        self.trigger_dag_id = _repairs(context)
        if not context["params"]["repair"]:
            raise AirflowSkipException(
                f"Not asked to repair. Trigger {self._by_hand(found.failed_images)}, or this audit with repair=true."
            )
        ti = context["ti"]
        run_id, is_running = _repair_run(ti, self.trigger_dag_id, context["dag_run"].run_after)
        state = "running" if is_running else "paused" if _is_paused(ti, self.trigger_dag_id) else "triggered"
        ti.xcom_push(key=REPAIR, value={"run_id": run_id, "state": state})
        if state == "running":
            raise AirflowSkipException(f"The run {run_id} of {self.trigger_dag_id} is still fetching what was found.")
        if state == "paused":
            raise AirflowFailException(_paused(self.trigger_dag_id))
        run = Run.of(context)
        self.conf = audit.repair_params(run.bucket, found, run.request)
        self.trigger_run_id = run_id
        return super().execute(context)

    def _by_hand(self, failed: str) -> str:
        if self.trigger_dag_id == PROJECT_DAG:
            return f"{PROJECT_DAG} for this project (the files that differ are named in {failed})"
        return f"{self.trigger_dag_id} with select=all and file_list={failed}"


def _repairs(context: Context) -> str:
    """The DAG that fetches again what an audit found."""
    return PROJECT_DAG if context["params"].get("project") else MAIN_DAG


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
                "hand. Nothing was changed in the bucket. Clear it with its downstream tasks."
            )
        found = Audit.from_json(result)
        nouns = "files" if context["params"].get("project") else "images"
        if not found.differing:
            said = f"All {found.verified:,} {nouns} are what PhysioNet publishes."
            self.log.info(said)
            leave_notice(context, said)
            return
        counts = ", ".join(f"{number:,} {reason}" for reason, number in found.differing.items())
        raise VerificationFailed(
            f"{found.destination} differs from what PhysioNet publishes: {counts} of {found.looked_at:,} {nouns} "
            f"looked at. The others are untouched. The list: {found.failed_images}. {_what_next(context)}"
        )


def _paused(dag_id: str) -> str:
    return (
        f"The repair was not triggered, because {dag_id} is paused. Unpause it under Dags, then clear the task repair of "
        "this audit."
    )


def _what_next(context: Context) -> str:
    """What happens to the images that differ, given how the task ``repair`` ended."""
    dag_id = _repairs(context)
    if not context["params"]["repair"]:
        with_it = "" if dag_id == PROJECT_DAG else " with that file as its file_list"
        return f"Trigger this audit with repair=true, or {dag_id}{with_it}."
    repair = context["ti"].xcom_pull(task_ids=REPAIR, key=REPAIR) or {}
    state = repair.get("state")
    if state == "paused":
        return _paused(dag_id)
    if state == "running":
        return f"The run {repair['run_id']} of {dag_id}, triggered before by this audit, is still fetching them."
    if state == "triggered" and _state_of(context["ti"], REPAIR) == "success":
        return f"The run {repair['run_id']} of {dag_id} was triggered, which fetches them again."
    return "The task repair triggered nothing; its log says why. Clear it once the cause is fixed."


def _state_of(ti: Any, task_id: str) -> str:
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=[task_id], run_ids=[ti.run_id])
    return str(states.get(ti.run_id, {}).get(task_id))
