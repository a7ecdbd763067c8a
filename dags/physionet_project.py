"""Copy the files of any PhysioNet project that you choose into your S3 bucket, every byte verified.

`project` is the end of the project's address at PhysioNet, `slug/version`: `mimiciv/3.1`, `mimic-iv-ecg/1.0`. Nothing needs to be
declared beforehand. `include` and `exclude` are globs over its paths: `hosp/*.csv.gz`, `**/*.txt`; empty takes all. Trigger
this as often as you like: it fetches only what is missing or wrong, and continues where an earlier run stopped.

| task | what it does |
|---|---|
| `check_access` | Checks the access to this project and to S3. Each project has a data use agreement of its own; one that is not signed fails here, with the page that says what is missing. |
| `fetch_metadata` | Copies the project's `SHA256SUMS.txt` into the bucket and makes the manifest of it, `_mirror/manifest.parquet`. |
| `plan` | Chooses the files, cuts them into shards, and prints files, GB, hours and dollars. A dry run ends here. |
| `approve` | Waits for a person if the plan is larger than `approve_above_gb`, else passes at once. A refusal skips the rest. |
| `mirror_shard` | Once per shard: `missing?` compares it with the bucket and skips it if it is complete; `stream` fetches the rest. |
| `verify` | Compares the whole selection with the bucket, writes `report.html`, `failed_images.txt` and the index, and fails the run if anything is missing or wrong. |

What a project contains is what its `SHA256SUMS.txt` lists: a project without that file cannot be proven and is refused.

**Needs** the connections `physionet_default` and `aws_default`, or `physionet_s3` in place of the first, as `mimic_cxr_jpg`
does; the environment variables are the same, and the pool `PHYSIONET_POOL` holds the streams of all DAGs together.
"""

from __future__ import annotations

from airflow.sdk import DAG

from physionet_airflow.dag import defaults
from physionet_airflow.mirror import mirror_shards
from physionet_airflow.operators import (
    ApproveLargePlanOperator,
    FetchMetadataOperator,
    PlanShardsOperator,
    VerifyOperator,
)
from physionet_airflow.params import project_params
from physionet_airflow.sensors import AccessCheckSensor

with DAG(
    dag_id="physionet_project",
    dag_display_name="Any PhysioNet project",
    description="The files of any project that you choose, from PhysioNet into your bucket, verified.",
    doc_md=__doc__,
    schedule=None,
    params=project_params(),
    **defaults(),
    tags=["physionet"],
):
    check_access = AccessCheckSensor(task_id="check_access")
    fetch_metadata = FetchMetadataOperator(task_id="fetch_metadata")
    plan = PlanShardsOperator(task_id="plan")
    approve = ApproveLargePlanOperator(task_id="approve")
    verify = VerifyOperator(task_id="verify", trigger_rule="all_done")

    check_access >> fetch_metadata >> plan >> approve >> mirror_shards(plan.output) >> verify
