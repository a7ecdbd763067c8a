"""Make a training set of the mirror's images: small grey copies in WebDataset tars, which a loader streams.

Decoding an original takes a core 18 ms or more, a copy of 512 pixels 0.4 ms. The originals are read from the bucket once, each
compared with PhysioNet's checksum; PhysioNet is not asked. Trigger this as often as you like: it makes only the tars that are
missing or whose images changed.

| task | what it does |
|---|---|
| `check` | Checks params and bucket. |
| `plan` | Chooses images of the training index, cuts them into tars with whole patients, and prints counts, GB, CPU hours and dollars. A dry run ends here. |
| `approve` | Waits for a person if more than `approve_above_gb` of originals are to be read, else passes at once. |
| `make_tar` | Once per tar: `missing?` skips it if it is there; `make` reads its originals, makes the copies on all cores, and stores it. |
| `verify` | Proves every tar, writes `index.parquet`, `dataset.json` and `README.md` below `_training/<name>/`, and fails the run if a tar is missing. |

**Runs** when you trigger it, and, once it is unpaused, whenever a run brings the training index up to date (the asset alias
`mimic_cxr_jpg_index`): then for the bucket and prefix of that index, and with the defaults of the params. It emits an event of
the set's `dataset.json` through the alias `mimic_cxr_training_set`.

**Needs** the connection `aws_default` and a mirror that `mimic_cxr_jpg` has made.

**Environment** (optional): `MIMIC_CXR_BUCKET`, the default of the param `bucket`; `MIMIC_CXR_CPUS`, images that one task decodes
at once (all cores); `PHYSIONET_STREAMS`, tars made at once (4).

**Green means** that every tar is in the bucket with the SHA-256 that `dataset.json` names. Images that cannot be decoded are left
out and named there.
"""

from __future__ import annotations

from airflow.sdk import DAG

from physionet_airflow.dag import defaults
from physionet_airflow.operators import INDEX
from physionet_airflow.params import training_set_params
from physionet_airflow.training import (
    ApproveTrainingSetOperator,
    CheckTrainingSetOperator,
    PlanTarsOperator,
    VerifyTrainingSetOperator,
    make_tars,
)

with DAG(
    dag_id="mimic_cxr_training_set",
    dag_display_name="MIMIC-CXR training set",
    description="Small copies of the mirror's images in WebDataset tars.",
    doc_md=__doc__,
    schedule=[INDEX],
    max_active_runs=1,
    params=training_set_params(),
    **defaults(),
    tags=["physionet", "mimic-cxr"],
):
    check = CheckTrainingSetOperator(task_id="check")
    plan = PlanTarsOperator(task_id="plan")
    approve = ApproveTrainingSetOperator(task_id="approve")
    verify = VerifyTrainingSetOperator(task_id="verify", trigger_rule="all_done")

    check >> plan >> approve >> make_tars(plan.output) >> verify
