"""A whole run in a real Airflow, into an S3 that takes no SHA-256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from demo.stack import S3Server
from tests.b2_like import B2Like

NAME = "mimic-cxr-jpg/2.1.0"


def test_a_store_that_takes_no_sha256_gets_the_same_bytes(
    airflow_home: Any, tiny_dataset: Path, s3_server: S3Server, bucket_name: str
) -> None:
    with B2Like(s3_server.endpoint) as b2:
        connection = s3_server.connection()
        connection["extra"] = {**connection["extra"], "endpoint_url": b2.endpoint}
        conf = json.dumps({"bucket": bucket_name, "select": "all"})
        done = airflow_home.run(
            "dags", "test", "mimic_cxr_jpg", "-c", conf, AIRFLOW_CONN_AWS_DEFAULT=json.dumps(connection)
        )
    assert done.returncode == 0, done.stdout[-6000:]
    folder = Path(s3_server.folder) / bucket_name / NAME
    published = [line.split(" ", 1) for line in (tiny_dataset / NAME / "SHA256SUMS.txt").read_text().splitlines()]
    expected = {path: digest for digest, path in published if path.endswith(".jpg")}
    assert {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in expected} == expected

    [plan] = [json.loads(file.read_text()) for file in folder.glob("_mirror/runs/*/plan.json")]
    [report] = [json.loads(file.read_text()) for file in folder.glob("_mirror/runs/*/report.json")]
    assert plan["store"]["sha256"] is False
    assert report["store"] == plan["store"]
    assert report["result"]["level"] == "checksum"
    assert report["result"]["verified"] == len(expected)
    assert "each PUT carries Content-MD5 instead" in done.stdout
    # Only by the access check, which writes and deletes twice: what comes after it has been told.
    assert b2.refused == {"x-amz-checksum-sha256": 2, "x-amz-sdk-checksum-algorithm": 2}
