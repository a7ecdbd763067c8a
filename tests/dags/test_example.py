"""The example DAG of docs/: it imports, and writes the right cohort."""

from __future__ import annotations

import importlib.util
import io
import json
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from demo import stack

EXAMPLE = stack.ROOT / "docs/examples/cohort_split.py"
PREFIX = "mimic-cxr-jpg/2.1.0"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("cohort_split", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_waits_for_what_the_runs_update(example: Any) -> None:
    from physionet_airflow.operators import INDEX

    found = example.cohort_split()
    assert found.task_ids == ["write_split"]
    assert example.INDEX == INDEX
    assert found.schedule == INDEX


def test_it_writes_the_stated_frontal_images_with_their_split(
    example: Any, s3_server: stack.S3Server, bucket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = pd.DataFrame(
        {
            "key": [f"{PREFIX}/files/{name}.jpg" for name in "cbaedf"],
            "subject_id": [2, 1, 1, 3, 4, 5],
            "study_id": [20, 10, 11, 30, 40, 50],
            "view": ["PA", "AP", "LATERAL", "AP", "PA", None],
            "Pneumonia": pd.array([0, 1, 1, -1, None, 1], "Int8"),
            "split": ["test", "train", "train", "train", "validate", "train"],
            "bytes": 1,
        }
    )
    data = io.BytesIO()
    index.to_parquet(data)
    key = f"{PREFIX}/_mirror/index.parquet"
    client = s3_server.client()
    client.put_object(Bucket=bucket_name, Key=key, Body=data.getvalue())
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(s3_server.connection()))
    event = SimpleNamespace(asset=SimpleNamespace(uri=f"s3://{bucket_name}/{key}"))

    class Events:  # Airflow's is no dict either: an alias cannot be hashed in 3.1
        def __getitem__(self, key: Any) -> list[Any]:
            assert key == example.INDEX
            return [event]

    write_split = example.write_split.function
    uri = write_split(Events())
    assert uri == f"s3://{bucket_name}/{PREFIX}/cohorts/pneumonia_frontal.csv"
    body = client.get_object(Bucket=bucket_name, Key=f"{PREFIX}/cohorts/pneumonia_frontal.csv")["Body"].read().decode()
    assert body.splitlines() == [
        "key,subject_id,study_id,Pneumonia,split",
        f"{PREFIX}/files/b.jpg,1,10,1,train",
        f"{PREFIX}/files/c.jpg,2,20,0,test",
    ]
