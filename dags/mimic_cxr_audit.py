"""Compare the bucket with PhysioNet's checksums every week, and name whatever differs.

The audit covers every image that was ever verified, so that a lost one is noticed, and every image in the bucket.

| task | what it does |
|---|---|
| `audit` | Asks S3 again about every image of the share: listed (`count`), its SHA-256 (`checksum`), or its bytes read back (`content`). |
| `repair` | With `repair=true`, triggers `mimic_cxr_jpg` for exactly the images that are missing or wrong, with the storage class, connections and source of the latest run; of a `project`, `physionet_project` for those files. Fails where that DAG is paused (Airflow 3.1 does not say so; there the run waits until the DAG is unpaused). Skipped otherwise. |
| `judge` | Turns the run red when anything differs, with the counts and where the list is. |

`content` reads every byte, which costs time and GET requests, so spread it out: with `share` set to `*/8`, each weekly run
reads another eighth, and eight weeks cover the whole bucket. `2/8` is always the second eighth.

The audit changes nothing in the bucket but its own files under `_mirror/`. Scheduled runs need the environment variable
`MIMIC_CXR_BUCKET`, or an edited default.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG

from physionet_airflow.audit import AuditOperator, JudgeAuditOperator, RepairOperator
from physionet_airflow.dag import defaults
from physionet_airflow.params import audit_params

with DAG(
    dag_id="mimic_cxr_audit",
    dag_display_name="MIMIC-CXR audit",
    description="Is everything in the bucket still what PhysioNet publishes?",
    doc_md=__doc__,
    schedule="@weekly",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=audit_params(),
    **defaults(),
    tags=["physionet", "mimic-cxr"],
):
    audit = AuditOperator(task_id="audit")
    repair = RepairOperator(task_id="repair")
    judge = JudgeAuditOperator(task_id="judge", trigger_rule="all_done")

    audit >> repair >> judge
