"""What Airflow gains: a PhysioNet connection, and sensors and operators that are thin shells around the engine.

    hook        the connection to PhysioNet            params      the trigger forms
    bucket      the bucket, through the S3Hook         retry       which errors are worth another try
    sensors     access check, missing?                 operators   metadata, plan, approval, stream, verify
    mirror      the mapped group that DAGs share       audit, cleanup   the operators of these two DAGs

Nothing here imports pandas, boto3 or pyarrow before a task runs: Airflow parses DAG files every few seconds.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def _find_engine() -> None:
    """Put the engine on sys.path where it is not: beside the plugins folder, or in an `include` below a path entry."""
    if find_spec("physionet_mirror") is not None:
        return
    beside = Path(__file__).resolve().parents[2]
    for root in (beside, *(Path(entry) for entry in sys.path if entry)):
        if (root / "include" / "physionet_mirror" / "__init__.py").is_file():
            sys.path.append(str(root / "include"))
            return


_find_engine()
