"""Copy the MIMIC-CXR-JPG images that you choose into your S3 bucket, every byte verified.

The images come from PhysioNet as fast as it allows, and each is compared with PhysioNet's own checksum. Trigger this as
often as you like: it fetches only what is missing or wrong, and continues where an earlier run stopped.

| task | what it does |
|---|---|
| `check_access` | Checks the access to PhysioNet and S3. A wrong password or an unsigned agreement fails here, within seconds; maintenance is waited for. |
| `fetch_metadata` | Copies the tables and checksums into the bucket and joins them into the manifest, `_mirror/manifest.parquet`. |
| `plan` | Chooses the images, cuts them into shards, and prints images, GB, hours and dollars. A dry run ends here. |
| `approve` | Waits for a person if the plan is larger than `approve_above_gb`, else passes at once. A refusal skips the rest. |
| `mirror_shard` | Once per shard: `missing?` compares it with the bucket and skips it if it is complete; `stream` fetches the rest. |
| `verify` | Compares the whole selection with the bucket, writes `report.html`, `failed_images.txt` and the training index, and fails the run if anything is missing or wrong. |

**Needs** the connections `physionet_default` (type http: login and password of a credentialed PhysioNet account that has
signed the dataset's data use agreement) and `aws_default`. No variable and no pool. With a connection `physionet_s3` the
files come from PhysioNet's S3 access point, and `physionet_default` is not needed.

**Environment** (optional): `MIMIC_CXR_BUCKET`, the default of the param `bucket`; `PHYSIONET_STREAMS`, shards streamed at
once (4); `PHYSIONET_POOL`, the pool that holds the streams of all runs together.

**Green means** every selected image is in the bucket and verified at the level asked for. Everything else is red, and the
log of `verify` says how many, which, and why.
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
from physionet_airflow.params import mirror_params
from physionet_airflow.sensors import AccessCheckSensor

with DAG(
    dag_id="mimic_cxr_jpg",
    dag_display_name="MIMIC-CXR-JPG",
    description="The images that you choose, from PhysioNet into your bucket, verified.",
    doc_md=__doc__,
    schedule=None,
    params=mirror_params(),
    **defaults(),
    tags=["physionet", "mimic-cxr"],
):
    check_access = AccessCheckSensor(task_id="check_access")
    fetch_metadata = FetchMetadataOperator(task_id="fetch_metadata")
    plan = PlanShardsOperator(task_id="plan")
    approve = ApproveLargePlanOperator(task_id="approve")
    verify = VerifyOperator(task_id="verify", trigger_rule="all_done")

    check_access >> fetch_metadata >> plan >> approve >> mirror_shards(plan.output) >> verify
