"""Run as a process of its own with an Airflow environment: parses the DAG files and prints what it found as JSON."""

import json
import sys
import time

import airflow.sdk
from airflow.utils.file import list_py_file_paths

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # Airflow 3.1
    from airflow.models.dagbag import DagBag

began = time.monotonic()
bag = DagBag(sys.argv[1])
seconds = time.monotonic() - began


def problem(dag: airflow.sdk.DAG, **values: object) -> str | None:
    """The form's error for these values; None = it accepts them."""
    params = dag.params.__copy__()
    try:
        for name, value in values.items():
            params[name] = value
    except Exception as error:  # noqa: BLE001
        return str(error)
    return None


dags = {
    dag.dag_id: {
        "edges": sorted([task.task_id, below] for task in dag.tasks for below in task.downstream_task_ids),
        "tasks": {
            task.task_id: {
                "trigger_rule": task.trigger_rule.value,
                "retries": task.retries,
                "policy": getattr(task, "retry_policy", None) is not None,
                "pool": task.pool,
                "at_once": task.max_active_tis_per_dagrun,
                "template_fields": list(task.template_fields),
                "map_index_template": getattr(task, "map_index_template", None),
            }
            for task in dag.tasks
        },
        "doc": dag.doc_md,
        "params": {
            name: {"schema": param.schema, "description": param.description, "has_value": param.has_value}
            for name, param in dag.params.items()
        },
    }
    for dag in bag.dags.values()
}
attempts = json.loads(sys.argv[2])
problems = [problem(bag.dags[dag_id], **{name: value}) for dag_id, name, value in attempts]
print(
    "\n"
    + json.dumps(
        {
            "errors": bag.import_errors,
            "seconds": seconds,
            "files": [str(file) for file in list_py_file_paths(sys.argv[1], safe_mode=False)],
            "modules": sorted(sys.modules),
            "dags": dags,
            "problems": problems,
        }
    )
)
