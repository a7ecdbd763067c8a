"""Every DAG with only the rights of the policies in deploy/iam, on an S3 that enforces IAM (moto)."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest
import requests
import xmltodict
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.responses import ACTION_MAP
from werkzeug.serving import make_server

from demo import stack
from physionet_mirror.s3.bucket import Bucket

ACCOUNT = "123456789012"
"""The account of moto."""
BUCKET = "a-lab-of-ours"
PREFIX = "mimic-cxr-jpg/2.1.0"
POLICIES = stack.ROOT / "deploy/iam"


@dataclass
class EnforcedS3:
    """Moto's S3 and IAM on loopback, with a record of the requests to the bucket."""

    endpoint: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> EnforcedS3:
        self._server = make_server("127.0.0.1", 0, self._record, threaded=True, request_handler=MotoRequestHandler)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        requests.post(f"{self.endpoint}/moto-api/reset", timeout=30).raise_for_status()
        return self

    def __exit__(self, *_: object) -> None:
        self.enforce(False)
        self._server.shutdown()
        self._server.server_close()

    def _record(self, environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        asked = {
            "body": body if environ["REQUEST_METHOD"] == "POST" else b"",
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": parse_qs(environ["QUERY_STRING"], keep_blank_values=True),
            "owner": environ.get("HTTP_X_AMZ_EXPECTED_BUCKET_OWNER"),
        }

        def answered(status: str, headers: Any, *rest: Any) -> Any:
            asked["status"] = int(status[:3])
            return start_response(status, headers, *rest)

        if environ["PATH_INFO"].startswith(f"/{BUCKET}"):
            self.seen.append(asked)
        return self._moto(environ, answered)

    def enforce(self, on: bool = True) -> None:
        """Enforce IAM from now on and record every request; or allow everything."""
        if on:
            self.seen.clear()
        count = "0" if on else "inf"
        requests.post(f"{self.endpoint}/moto-api/reset-auth", data=count, timeout=30).raise_for_status()

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="root",
            aws_secret_access_key="root",
        )

    def all_keys(self) -> set[str]:
        """Keys of the bucket, including those of versions and delete markers. Needs ``enforce(False)``."""
        listed = self.client("s3").list_object_versions(Bucket=BUCKET)
        return {entry["Key"] for kind in ("Versions", "DeleteMarkers") for entry in listed.get(kind, ())}


AS_AWS_NAMES_THEM = {
    "HEAD": {"DEFAULT": "ListBucket"},
    "GET": {"publicAccessBlock": "GetBucketPublicAccessBlock", "ownershipControls": "GetBucketOwnershipControls"},
}
"""Rights that moto names differently or does not know (source: AWS's Service Authorization Reference, Amazon S3)."""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[EnforcedS3]:
    for method, rights in AS_AWS_NAMES_THEM.items():
        for question, right in rights.items():
            monkeypatch.setitem(ACTION_MAP["BUCKET"][method], question, right)
    with EnforcedS3() as server:
        client = server.client("s3")
        client.create_bucket(Bucket=BUCKET)
        closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        client.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})  # as bucket.tf does
        yield server


def role(s3: EnforcedS3, *policies: str) -> dict[str, str]:
    """The environment of a worker with these policies of deploy/iam for our bucket, and no other rights."""
    iam = s3.client("iam")
    iam.create_user(UserName="worker")
    for policy in policies:
        text = (POLICIES / policy).read_text().replace("my-lab-mimic", BUCKET)
        iam.put_user_policy(UserName="worker", PolicyName=policy.removesuffix(".json"), PolicyDocument=text)
    # For DeleteObjects, moto checks one right for the bucket; AWS checks each object, and so does `deletions`.
    of_bucket = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{BUCKET}"}
    moto = json.dumps({"Version": "2012-10-17", "Statement": [of_bucket]})
    iam.put_user_policy(UserName="worker", PolicyName="moto", PolicyDocument=moto)
    key = iam.create_access_key(UserName="worker")["AccessKey"]
    connection = {
        "conn_type": "aws",
        "login": key["AccessKeyId"],
        "password": key["SecretAccessKey"],
        "extra": {"region_name": "us-east-1", "endpoint_url": s3.endpoint, "expected_bucket_owner": ACCOUNT},
    }
    return {"AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection)}


def deletions(s3: EnforcedS3) -> Iterator[tuple[str, str]]:
    """The right and the ARN that AWS checks for each object of each DeleteObjects request."""
    for asked in s3.seen:
        if "delete" in asked["query"]:
            found = xmltodict.parse(asked["body"], force_list=("Object",))["Delete"]["Object"]
            for entry in found:
                right = "s3:DeleteObjectVersion" if "VersionId" in entry else "s3:DeleteObject"
                yield right, f"arn:aws:s3:::{BUCKET}/{entry['Key']}"


def grants(right: str, arn: str, *policies: str) -> bool:
    texts = [(POLICIES / policy).read_text().replace("my-lab-mimic", BUCKET) for policy in policies]
    return any(IAMPolicy(text).is_action_permitted(right, arn) is PermissionResult.PERMITTED for text in texts)


def run(home: Any, worker: Mapping[str, str], dag_id: str, **conf: Any) -> tuple[int, str]:
    done = home.run("dags", "test", dag_id, "-c", json.dumps({"bucket": BUCKET, **conf}), **worker)
    return done.returncode, done.stdout


def clean_up(home: Any, worker: Mapping[str, str], prefix: str) -> tuple[int, str]:
    """Run the clean-up of a whole prefix, and approve it."""
    with home.answering("mimic_cxr_cleanup", "Approve") as person:
        code, log = run(home, worker, "mimic_cxr_cleanup", prefix=prefix, what="prefix")
        person.communicate(timeout=60)
    return code, log


@pytest.mark.timeout(1200)
def test_every_dag_does_with_the_policies_of_deploy_iam_and_every_request_names_the_owner(
    airflow_home: Any, s3: EnforcedS3
) -> None:
    worker = role(s3, "destination.json", "cleanup.json")
    s3.enforce()
    for dag_id, conf in (
        ("mimic_cxr_metadata", {}),
        ("mimic_cxr_metadata", {"cxr_project": "mimic-cxr/2.1.0"}),
        ("mimic_cxr_jpg", {"sample_size": 8, "verify": "content"}),
        ("mimic_cxr_jpg_backfill", {"slices": 10}),
        ("mimic_cxr_audit", {"level": "content"}),
        ("mimic_cxr_clinical", {}),
        ("mimic_cxr_training_set", {"size": 32}),
    ):
        code, log = run(airflow_home, worker, dag_id, **conf)
        assert code == 0, f"{dag_id} {conf}\n{log[-4000:]}"
    code, log = clean_up(airflow_home, worker, PREFIX)
    assert code == 0, log[-4000:]

    refused = [asked for asked in s3.seen if asked["status"] in (401, 403)]
    assert refused == []
    assert len(s3.seen) > 100
    assert [asked for asked in s3.seen if asked["owner"] != ACCOUNT] == []
    assert any("versions" in asked["query"] for asked in s3.seen)
    deleted = set(deletions(s3))
    assert {right for right, _ in deleted} == {"s3:DeleteObject", "s3:DeleteObjectVersion"}
    assert [entry for entry in deleted if not grants(*entry, "destination.json", "cleanup.json")] == []
    assert not any(grants(*entry, "destination.json") for entry in deleted if entry[0].endswith("Version"))
    s3.enforce(False)
    assert {key for key in s3.all_keys() if key.startswith(f"{PREFIX}/files/")} == set()
    assert any(key.startswith("mimic-cxr/2.1.0/") for key in s3.all_keys()), "other prefixes are left alone"


def test_the_policies_reach_nothing_beyond_their_prefixes(airflow_home: Any, s3: EnforcedS3) -> None:
    worker = role(s3, "destination.json")
    s3.client("s3").put_object(Bucket=BUCKET, Key="of-somebody-else/kept.txt", Body=b"not ours")
    s3.enforce()

    code, log = run(airflow_home, worker, "mimic_cxr_jpg", sample_size=3, prefix="of-somebody-else")
    assert code != 0
    assert "BucketRefused" in log
    assert [asked["path"] for asked in s3.seen if asked["method"] == "PUT" and asked["status"] == 403] != []

    code, log = run(airflow_home, worker, "mimic_cxr_cleanup", what="prefix", dry_run=True)
    assert code != 0
    assert "s3:GetBucketVersioning" in log  # it is in a separate policy, cleanup.json

    s3.enforce(False)
    assert s3.all_keys() == {"of-somebody-else/kept.txt"}


def test_a_worker_finds_what_a_killed_attempt_has_left_of_a_large_file(s3: EnforcedS3) -> None:
    keys = json.loads(role(s3, "destination.json")["AIRFLOW_CONN_AWS_DEFAULT"])
    s3.enforce()
    session = boto3.Session(keys["login"], keys["password"], region_name="us-east-1")
    bucket = Bucket.open(session, BUCKET, PREFIX, endpoint_url=s3.endpoint, expected_owner=ACCOUNT)
    for path in ("_mirror/parts/one/killed", "_mirror/parts/one/given up"):
        bucket.put_part(bucket.begin_upload(path), 1, b"a part")
    given_up, killed = sorted(bucket.uploads("_mirror/parts/one/"), key=lambda upload: upload.path)
    bucket.abort_upload(given_up)
    bucket.complete_upload(killed, bucket.parts(killed))
    assert bucket.sha256(killed.path) == hashlib.sha256(b"a part").hexdigest()
    assert bucket.uploads("_mirror/parts/") == []
    assert [asked for asked in s3.seen if asked["status"] in (401, 403) or asked["owner"] != ACCOUNT] == []
