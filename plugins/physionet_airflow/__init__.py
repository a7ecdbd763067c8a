"""What Airflow gains: a PhysioNet connection, and sensors and operators that are thin shells around the engine.

    hook        the connection to PhysioNet            params      the trigger forms
    bucket      the bucket, through the S3Hook         retry       which errors are worth another try
    sensors     access check, missing?                 operators   metadata, plan, approval, stream, verify
    triggers    what waits for the end of an outage    notify      who is told of a run's end, a wait, a question
    dag         what every DAG has in common           urls        the addresses of Airflow's UI and of our page
    mirror      the mapped group that DAGs share       audit, cleanup, clinical, training   the operators of these DAGs
    lineage     what tasks read and wrote, for OpenLineage
    plugin      the page and the links, for Airflow    provider    the connection type, for Airflow
    compat      what differs between 3.1, 3.2 and 3.3

Nothing here imports pandas, boto3 or pyarrow before a task runs: Airflow parses DAG files every few seconds.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from airflow import __version__ as _airflow

if tuple(int(number) for number in _airflow.split(".")[:2]) < (3, 1):
    raise ImportError(
        f"physionet_airflow needs Apache Airflow 3.1 or newer, and this is {_airflow}: it asks a person for approval through "
        "Airflow's Required Actions, which 3.0 does not have. Upgrade Airflow, or take this project's DAGs and plugins out."
    )


def _find_engine() -> None:
    """Put the engine on sys.path where it is neither installed nor on PYTHONPATH.

    Looked for is ``include/physionet_mirror`` beside the plugins folder, then below each entry of ``sys.path``, so that
    ``PYTHONPATH`` = the project root serves too. The path's end is taken: nothing of anybody's is hidden by it.
    """
    if find_spec("physionet_mirror") is not None:
        return
    beside = Path(__file__).resolve().parents[2]
    for root in (beside, *(Path(entry) for entry in sys.path if entry)):
        if (root / "include" / "physionet_mirror" / "__init__.py").is_file():
            sys.path.append(str(root / "include"))
            return


_find_engine()
