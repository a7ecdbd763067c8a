"""The tables alone, for people who start with the labels: no image is fetched.

Copies the tables of MIMIC-CXR-JPG 2.1.0 and the record and study lists of MIMIC-CXR into the bucket, each below a prefix of
its own (`mimic-cxr-jpg/2.1.0`, `mimic-cxr/2.0.0`), each proven against PhysioNet's checksums, and joins them into
`_mirror/manifest.parquet`. Runs weekly; unchanged files are not fetched again.

`cxr_project` takes the lists of `mimic-cxr/2.1.0` instead of 2.0.0's, with the list of providers beside them. PhysioNet's
checksums of 2.0.0 name its tables only, those of 2.1.0 its DICOM files too: these are in the manifest, and are not fetched.

| task | what it does |
|---|---|
| `check_access` | Checks the access to this dataset and to S3; waits for maintenance to end. |
| `fetch_metadata` | Fetches what has changed, verifies it, and joins it into the manifest. |

Each dataset has a data use agreement of its own. If one is not signed, that dataset's `check_access` fails and names
the page that says what is missing; the other dataset is not affected.

**Needs** the connections `physionet_default` and `aws_default`, and a bucket: `MIMIC_CXR_BUCKET`, or the param.

**Emits** an asset event of `SHA256SUMS.txt` under each prefix when something changed, through the alias
`mimic_cxr_jpg_tables`: schedule a DAG on it to start from the labels.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, TaskGroup

from physionet_airflow.dag import defaults
from physionet_airflow.operators import FetchMetadataOperator
from physionet_airflow.params import metadata_params
from physionet_airflow.sensors import AccessCheckSensor
from physionet_mirror.dataset import MIMIC_CXR, MIMIC_CXR_JPG

with DAG(
    dag_id="mimic_cxr_metadata",
    dag_display_name="MIMIC-CXR metadata",
    description="The tables of MIMIC-CXR-JPG and the lists of MIMIC-CXR, verified; no images.",
    doc_md=__doc__,
    schedule="@weekly",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=metadata_params(),
    **defaults(),
    tags=["physionet", "mimic-cxr"],
):
    for dataset, which in (
        (MIMIC_CXR_JPG, {"dataset": MIMIC_CXR_JPG.name}),
        (MIMIC_CXR, {"dataset_param": "cxr_project"}),
    ):
        with TaskGroup(dataset.slug.replace("-", "_"), tooltip=dataset.title):
            check_access = AccessCheckSensor(task_id="check_access", **which)
            fetch_metadata = FetchMetadataOperator(task_id="fetch_metadata", **which)
            check_access >> fetch_metadata
