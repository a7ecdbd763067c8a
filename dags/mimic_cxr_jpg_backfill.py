"""Fill the bucket night by night, one slice of MIMIC-CXR-JPG per data interval.

The images (those that the filters leave) are cut into `slices` contiguous parts of nearly equal count. The run whose
logical date is day *d* (UTC) owns part (*d* - 2025-01-01) modulo `slices`: that many consecutive days fill everything, in any
order, and a repeated night fetches nothing. A run triggered by hand without a logical date owns the part of the day
on which it is triggered. After one full turn, the nights continue as a rolling verification and repair.

| task | what it does |
|---|---|
| `check_access` | Checks the access to PhysioNet and S3; waits for maintenance to end. |
| `fetch_metadata` | Brings tables and checksums up to date and joins them into the manifest. |
| `plan` | Takes the interval's slice, and what an earlier night left over, and cuts it into shards. |
| `mirror_shard` | Once per shard: `missing?` skips it if it is complete; `stream` fetches the rest. |
| `verify` | Compares the slice with the bucket, reports, and fails the run if anything is missing or wrong. |

`stop_after` ends the night: images in flight finish, the rest is left for the next interval, and the run succeeds and says
"to be continued".

**To fill everything now**, thirty nights, two at a time (the end is a midnight, and the night of the 30th comes after its own):

    airflow backfill create --dag-id mimic_cxr_jpg_backfill --from-date 2025-01-01 --to-date 2025-01-31 --max-active-runs 2 --dag-run-conf '{"bucket": "my-bucket"}'

**Needs** the connections `physionet_default` and `aws_default`, and a bucket: `MIMIC_CXR_BUCKET`, or the param. All nights
together hold at most `connections` connections to PhysioNet.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG

from physionet_airflow.compat import CronDataIntervalTimetable
from physionet_airflow.dag import defaults
from physionet_airflow.mirror import mirror_shards
from physionet_airflow.operators import FetchMetadataOperator, PlanShardsOperator, VerifyOperator
from physionet_airflow.params import backfill_params
from physionet_airflow.run import pool
from physionet_airflow.sensors import AccessCheckSensor

with DAG(
    dag_id="mimic_cxr_jpg_backfill",
    dag_display_name="MIMIC-CXR-JPG, night by night",
    description="One slice of the images per data interval, until all are there; then on as verification.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    params=backfill_params(),
    **defaults(),
    tags=["physionet", "mimic-cxr"],
):
    # In the pool of the streams, so that the checks and tables of concurrent nights are under the same cap.
    check_access = AccessCheckSensor(task_id="check_access", pool=pool())
    fetch_metadata = FetchMetadataOperator(task_id="fetch_metadata", pool=pool())
    plan = PlanShardsOperator(task_id="plan")
    verify = VerifyOperator(task_id="verify", trigger_rule="all_done")

    check_access >> fetch_metadata >> plan >> mirror_shards(plan.output, runs_share_streams=True) >> verify
