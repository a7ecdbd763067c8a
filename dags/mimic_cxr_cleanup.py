"""Delete the images of one run, a training set, or everything below a prefix, after a person has seen the counts and approved.

| task | what it does |
|---|---|
| `list_objects` | Lists what would be deleted, with counts and GB, and stores the list in the bucket. A dry run ends here. |
| `approve` | Asks a person under Required Actions. A refusal skips the rest; without an answer it fails after three days. |
| `delete` | Deletes exactly what was listed, and removes it from the training index. |

Never touched: anything outside the prefix (an empty prefix is refused), and what lies under `_mirror/runs/`: the reports of
earlier runs and the lists of what was deleted. In a versioned bucket, old versions and delete markers are deleted too.
"""

from __future__ import annotations

from airflow.sdk import DAG

from physionet_airflow.cleanup import ApproveDeletionOperator, DeleteListedOperator, ListObjectsOperator
from physionet_airflow.dag import defaults
from physionet_airflow.params import cleanup_params

with DAG(
    dag_id="mimic_cxr_cleanup",
    dag_display_name="MIMIC-CXR clean-up",
    description="Deletes the images of a run, a training set or a whole prefix, after a person's approval.",
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    params=cleanup_params(),
    **defaults(),
    tags=["physionet", "mimic-cxr"],
):
    list_objects = ListObjectsOperator(task_id="list_objects")
    approve = ApproveDeletionOperator(task_id="approve")
    delete = DeleteListedOperator(task_id="delete")

    list_objects >> approve >> delete
