"""Plays the person who answers under Required Actions: waits for the question, prints its page, and chooses.

Run as a process of its own with an Airflow environment: ``answer.py <dag_id> <task_id> Approve|Reject``. It calls
Airflow's own REST API, without a server process.
"""

import os
import sqlite3
import sys
import time
from pathlib import Path
from urllib.parse import quote

os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] = "True"

from airflow.api_fastapi.app import create_app
from fastapi.testclient import TestClient

dag_id, task_id, answer = sys.argv[1:]
database = Path(os.environ["AIRFLOW_HOME"], "airflow.db")


def waiting() -> str | None:
    """Run id of the run that waits for an answer."""
    with sqlite3.connect(database, timeout=30) as connection:
        found = connection.execute(
            # Not by the state: Airflow before 3.3 calls the task queued while `airflow dags test` runs its trigger.
            "select run_id from task_instance join hitl_detail on hitl_detail.ti_id = task_instance.id "
            "where dag_id = ? and task_id = ? and state not in ('success', 'failed', 'skipped', 'upstream_failed')",
            (dag_id, task_id),
        ).fetchone()
    return found[0] if found else None


with TestClient(create_app(), base_url="http://localhost") as client:
    deadline = time.monotonic() + 180
    while (run_id := waiting()) is None:
        if time.monotonic() > deadline:
            sys.exit("nobody asked")
        time.sleep(0.3)
    token = client.get("/auth/token").json()["access_token"]
    details = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/-1/hitlDetails"
    headers = {"Authorization": f"Bearer {token}"}
    print(client.get(details, headers=headers).json()["body"])
    given = client.patch(details, headers=headers, json={"chosen_options": [answer], "params_input": {}})
    print(given.status_code, given.text)
