"""Which way a run takes, by what Airflow's connections say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from physionet_airflow.bucket import ACCESS_POINT_CONN_ID, AWS_CONN_ID, choose_way, expected_mode, open_bucket
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import InputError
from physionet_mirror.s3.bucket import Bucket

ARN = "arn:aws:s3:us-east-1:724665945834:accesspoint/mimic-cxr-jpg-v2-1-0-01"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    def connect(conn_id: str, **extra: Any) -> None:
        extra = {"region_name": "us-east-1", "endpoint_url": "http://127.0.0.1:1", **extra}  # nobody listens there
        fields = {"conn_type": "aws", "login": "AKIA", "password": "secret", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    monkeypatch.delenv("AIRFLOW_CONN_PHYSIONET_S3", raising=False)
    connect(AWS_CONN_ID)
    return connect


@pytest.fixture
def bucket(connect: Any) -> Bucket:
    return open_bucket("my-bucket", "p")


def test_auto_without_any_s3_connection_is_the_website_and_asks_nobody(bucket: Bucket) -> None:
    way = choose_way("auto", MIMIC_CXR_JPG, bucket)
    assert (way.mode, way.reason) == ("download", "no AWS connection physionet_s3 opens PhysioNet's access point")
    assert expected_mode("auto", MIMIC_CXR_JPG, bucket) == "download"
    assert bucket.requests.total() == 0


def test_the_website_is_never_tried_against_an_access_point(connect: Any, bucket: Bucket) -> None:
    connect(ACCESS_POINT_CONN_ID, physionet_access_point=ARN)
    assert choose_way("physionet", MIMIC_CXR_JPG, bucket).mode == "download"
    assert expected_mode("physionet", MIMIC_CXR_JPG, bucket) == "download"


@pytest.mark.parametrize(
    ("conn_id", "extra", "mode"),
    [
        (ACCESS_POINT_CONN_ID, {"physionet_access_point": ARN}, "copy"),
        (ACCESS_POINT_CONN_ID, {"physionet_access_point": {MIMIC_CXR_JPG.name: ARN}}, "copy"),
        (ACCESS_POINT_CONN_ID, {"physionet_access_point": ARN, "endpoint_url": "http://127.0.0.1:2"}, "through"),
        (AWS_CONN_ID, {"physionet_access_point": ARN}, "copy"),
        (ACCESS_POINT_CONN_ID, {"physionet_access_point": 7}, "download"),
    ],
)
def test_what_the_connections_let_expect(connect: Any, bucket: Bucket, conn_id: str, extra: Any, mode: str) -> None:
    connect(conn_id, **extra)
    assert expected_mode("auto", MIMIC_CXR_JPG, bucket) == mode


def test_an_extra_that_cannot_be_used_is_fatal_for_s3_and_a_reason_for_auto(connect: Any, bucket: Bucket) -> None:
    connect(ACCESS_POINT_CONN_ID, physionet_access_point=7)
    with pytest.raises(InputError, match="neither an ARN"):
        choose_way("s3", MIMIC_CXR_JPG, bucket)
    way = choose_way("auto", MIMIC_CXR_JPG, bucket)
    assert way.mode == "download"
    assert "neither an ARN" in way.reason
