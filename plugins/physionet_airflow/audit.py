"""The operators of ``mimic_cxr_audit``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from include.physionet_mirror.errors import VerificationFailed
from physionet_airflow.bucket import AWS_CONN_ID
from physionet_airflow.run import Run, engine_errors

if TYPE_CHECKING:
    from airflow.sdk import Context

AUDIT = "audit"
"""Task id of the audit."""


class AuditOperator(BaseOperator):
    """Compares a share of the bucket with PhysioNet's checksums; judges nothing itself (`JudgeAuditOperator` does).

    Args:
        aws_conn_id: The bucket's account.

    Returns (XCom):
        The content of audit.json.
    """

    ui_color = "#e8f0e4"

    def __init__(self, *, aws_conn_id: str = AWS_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare and write down."""
        from include.physionet_mirror.layout import RunLayout
        from include.physionet_mirror.steps import audit

        params = context["params"]
        with engine_errors():
            run = Run.of(context, self.aws_conn_id, verify=params["level"])
            share = audit.Share.parse(params["share"], context["dag_run"].run_after or datetime.now(UTC))
            verdict = audit.audit(run.bucket, run.request.verify, share, run.started)
            layout = RunLayout(f"audit__{run.layout.run_id}")
            return audit.write_audit(run.bucket, layout, verdict, share, run.started)


class RepairOperator(TriggerDagRunOperator):
    """Triggers ``mimic_cxr_jpg`` for the images that the audit found missing or wrong; skipped when there are none.

    The param ``repair`` must be true.
    """

    # The provider's link asks for the triggered run's id, and logs an error where none was triggered.
    operator_extra_links = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_dag_id="mimic_cxr_jpg", **kwargs)

    def execute(self, context: Context) -> Any:
        """Trigger, or skip."""
        found = context["ti"].xcom_pull(task_ids=AUDIT)
        params = context["params"]
        if not found["failed_images"]:
            raise AirflowSkipException("Nothing differs, so there is nothing to repair.")
        if not params["repair"]:
            raise AirflowSkipException(
                "Not asked to repair. Trigger mimic_cxr_jpg with select=all and "
                f"file_list={found['failed_images']}, or this audit with repair=true."
            )
        self.conf = {
            "bucket": params["bucket"],
            "prefix": params["prefix"],
            "select": "all",
            "file_list": found["failed_images"],
            "verify": found["level"],
        }
        return super().execute(context)


class JudgeAuditOperator(BaseOperator):
    """Turns the run red, and names what differs, when the audit found anything. To be used with ``all_done``."""

    ui_color = "#e8f0e4"

    def execute(self, context: Context) -> None:
        """Judge."""
        found = context["ti"].xcom_pull(task_ids=AUDIT)
        if found is None:
            raise VerificationFailed("The audit itself failed; its log says why. Nothing was changed in the bucket.")
        if not found["differing"]:
            self.log.info("All %s images are what PhysioNet publishes.", f"{found['verified']:,}")
            return
        counts = ", ".join(f"{count:,} {reason}" for reason, count in found["differing"].items())
        raise VerificationFailed(
            f"{found['destination']} differs from what PhysioNet publishes: {counts} of {found['looked_at']:,} images "
            f"looked at. The others are untouched. Which ones: {found['failed_images']}. "
            + (
                "A run of mimic_cxr_jpg was triggered that fetches them again."
                if context["params"]["repair"]
                else "Trigger this audit with repair=true, or mimic_cxr_jpg with that file as its file_list."
            )
        )
