"""Restricted data goes only into private buckets; a setting that cannot be read is reported but does not stop a run."""

from __future__ import annotations

import json
import logging
import uuid
from io import BytesIO

import boto3
import pytest
import requests
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.stub import Stubber
from moto.server import ThreadedMotoServer
from urllib3 import HTTPResponse

from physionet_mirror.errors import BucketMissing, BucketRefused, BucketUnsafe, DestinationUnavailable
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.s3.safety import PROBE, CannotLook, account_block, check

CLOSED = dict.fromkeys(["BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"], True)
ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
ANY_ACCOUNT = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
OWNER = "123456789012"  # moto's account


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint):
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="root-key",
        aws_secret_access_key="root-secret",
    )


@pytest.fixture
def make(endpoint, s3):
    """Makes a bucket with AWS's defaults (closed, ACLs off) unless told otherwise, and opens it for the engine."""

    def make(*, block=CLOSED, ownership="BucketOwnerEnforced", keys=("root-key", "root-secret"), **options) -> Bucket:
        name = f"lab-{uuid.uuid4().hex[:12]}"
        s3.create_bucket(Bucket=name)
        if ownership:
            s3.put_bucket_ownership_controls(Bucket=name, OwnershipControls={"Rules": [{"ObjectOwnership": ownership}]})
        if block:
            s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=block)
        session = boto3.Session(*keys, region_name="us-east-1")
        return Bucket.open(session, name, "mimic-cxr-jpg/2.1.0", endpoint_url=endpoint, **options)

    return make


def open_by_policy(s3, bucket):
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket.name}/*",
    }
    s3.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))


def open_by_acl(s3, bucket, group=ALL_USERS):
    owner = s3.get_bucket_acl(Bucket=bucket.name)["Owner"]
    grant = {"Grantee": {"Type": "Group", "URI": group}, "Permission": "READ"}
    s3.put_bucket_acl(Bucket=bucket.name, AccessControlPolicy={"Owner": owner, "Grants": [grant]})


def keys_in(s3, bucket):
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket.name).get("Contents", [])]


# -- closed ------------------------------------------------------------------------------------------------------------


def test_a_bucket_as_aws_makes_it_passes_without_a_note(s3, make):
    bucket = make()
    s3.put_bucket_encryption(
        Bucket=bucket.name,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "lab"}}]
        },
    )
    found = check(bucket, account_block=lambda: pytest.fail("the account decides nothing here"))
    assert found.encryption == "aws:kms"
    assert found.notes == ()


def test_the_probe_is_removed(s3, make):
    bucket = make()
    check(bucket)
    assert keys_in(s3, bucket) == []
    assert bucket.requests["PUT"] == 1


def test_the_probe_stays_below_the_prefix(make):
    assert make().key(PROBE) == "mimic-cxr-jpg/2.1.0/_mirror/access-check"


@pytest.mark.parametrize("opened", [open_by_policy, open_by_acl])
def test_the_block_closes_what_policy_and_acl_open(s3, make, opened):
    bucket = make(block=None, ownership="ObjectWriter")
    opened(s3, bucket)
    s3.put_public_access_block(Bucket=bucket.name, PublicAccessBlockConfiguration=CLOSED)
    check(bucket)


def test_a_policy_for_named_accounts_is_not_public(s3, make):
    bucket = make(block=None)
    principal = {"AWS": "arn:aws:iam::111122223333:role/reader"}
    statement = {
        "Effect": "Allow",
        "Principal": principal,
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket.name}/*",
    }
    s3.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    assert "no public access block" in " ".join(check(bucket).notes)


def test_acls_that_are_off_open_nothing(s3, make):
    bucket = make(block=None, ownership="ObjectWriter")
    open_by_acl(s3, bucket)
    s3.put_bucket_ownership_controls(
        Bucket=bucket.name, OwnershipControls={"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    )
    assert "no public access block" in " ".join(check(bucket).notes)


# -- open --------------------------------------------------------------------------------------------------------------


def assert_refused(s3, bucket, *words, **options):
    with pytest.raises(BucketUnsafe) as refused:
        check(bucket, **options)
    text = str(refused.value)
    for word in (*words, bucket.name, "data use agreement", "nothing was written", "put-public-access-block"):
        assert word in text
    assert keys_in(s3, bucket) == []


def test_public_by_policy(s3, make):
    bucket = make(block=None)
    open_by_policy(s3, bucket)
    assert_refused(s3, bucket, "its bucket policy is public")


def test_a_block_of_new_policies_leaves_an_old_one_in_force(s3, make):
    bucket = make(block=None)
    open_by_policy(s3, bucket)
    s3.put_public_access_block(
        Bucket=bucket.name, PublicAccessBlockConfiguration={**CLOSED, "RestrictPublicBuckets": False}
    )
    assert_refused(s3, bucket, "its bucket policy is public")


@pytest.mark.parametrize(("group", "who"), [(ALL_USERS, "everyone"), (ANY_ACCOUNT, "everyone with an AWS account")])
def test_public_by_acl(s3, make, group, who):
    bucket = make(block=None, ownership="ObjectWriter")
    open_by_acl(s3, bucket, group)
    assert_refused(s3, bucket, f"its ACL lets in {who}")


@pytest.mark.parametrize("ownership", ["ObjectWriter", "BucketOwnerPreferred", None])
def test_public_by_missing_block(s3, make, ownership):
    """With ACLs on, any object may have a public one, and checking all objects is not feasible."""
    assert_refused(s3, make(block=None, ownership=ownership), "ACLs are on and no public access block")


def test_all_that_is_open_is_named_at_once(s3, make):
    bucket = make(block=None, ownership="ObjectWriter")
    open_by_policy(s3, bucket)
    open_by_acl(s3, bucket)
    assert_refused(s3, bucket, "its bucket policy is public", "its ACL lets in everyone")


# -- the account's block counts too ------------------------------------------------------------------------------------


def test_the_account_can_close_it(s3, make):
    bucket = make(block=None, ownership="ObjectWriter")
    open_by_policy(s3, bucket)
    open_by_acl(s3, bucket)
    check(bucket, account_block=lambda: CLOSED)


def test_the_account_must_close_what_is_open(s3, make):
    bucket = make(block=None, ownership="ObjectWriter")
    open_by_policy(s3, bucket)
    assert_refused(s3, bucket, "its bucket policy is public", account_block=lambda: {"IgnorePublicAcls": True})


def test_an_account_that_cannot_be_seen_excuses_nothing(s3, make):
    def denied():
        raise CannotLook("AccessDenied")

    bucket = make(block=None)
    open_by_policy(s3, bucket)
    assert_refused(s3, bucket, "its bucket policy is public", account_block=denied)


class Session:
    """Answers of STS and S3 Control as Amazon gives them; the account's host names rule out a local server."""

    def __init__(self, block=None, refusal=None):
        self.asked = []
        self._block, self._refusal = block, refusal

    def client(self, name, config):
        client = boto3.client(
            name, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s", config=config
        )
        stub = Stubber(client)
        self.asked.append(name)
        if name == "sts":
            stub.add_response("get_caller_identity", {"Account": OWNER})
        elif self._refusal:
            stub.add_client_error("get_public_access_block", self._refusal, http_status_code=403)
        else:
            answer = {"PublicAccessBlockConfiguration": self._block}
            stub.add_response("get_public_access_block", answer, {"AccountId": OWNER})
        stub.activate()
        return client


def test_the_block_of_the_account_is_read(make):
    session = Session({**CLOSED, "BlockPublicAcls": False})
    assert set(account_block(make(), session)) == set(CLOSED) - {"BlockPublicAcls"}
    assert session.asked == ["sts", "s3control"]


def test_a_known_owner_is_not_asked_for(make):
    session = Session(CLOSED)
    account_block(make(), session, OWNER)
    assert session.asked == ["s3control"]


def test_another_account_s_block_does_not_count(make):
    """The keys and the bucket belong to different accounts: S3 then answers 403 to the expected owner."""
    bucket, session = make(), Session(CLOSED)
    forbid(bucket, "head_bucket")
    with pytest.raises(CannotLook):
        account_block(bucket, session)
    assert session.asked == ["sts"]


def test_an_account_may_have_no_block(make):
    assert account_block(make(), Session(refusal="NoSuchPublicAccessBlockConfiguration"), OWNER) == {}


def test_an_account_that_may_not_be_looked_at(make):
    with pytest.raises(CannotLook, match="AccessDenied"):
        account_block(make(), Session(refusal="AccessDenied"), OWNER)


# -- no right to read the settings -------------------------------------------------------------------------------------


@pytest.fixture
def role(endpoint):
    """Keys of a user with just these rights; S3 then enforces rights until the test ends."""
    iam = boto3.client(
        "iam",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="root-key",
        aws_secret_access_key="root-secret",
    )
    made = []

    def role(*actions: str) -> tuple[str, str]:
        actions = (*actions, "s3:HeadBucket")  # moto's name for what AWS calls s3:ListBucket there
        name = f"mirror-{len(made)}-{uuid.uuid4().hex[:6]}"
        iam.create_user(UserName=name)
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        iam.put_user_policy(UserName=name, PolicyName="least", PolicyDocument=json.dumps(policy))
        made.append(name)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    yield role
    requests.post(f"{endpoint}/moto-api/reset-auth", data="inf", timeout=5)


def enforce(endpoint):
    requests.post(f"{endpoint}/moto-api/reset-auth", data="0", timeout=5).raise_for_status()


LOOKS = ("PublicAccessBlock", "BucketPolicyStatus", "BucketOwnershipControls", "BucketAcl")
"""The settings that the check reads; each needs its own permission."""


def forbid(bucket, *looks, code="AccessDenied", status=403):
    """Refuse to return these settings, as S3 does; moto returns them to anyone."""

    def refuse(request, **_):
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        raw = HTTPResponse(BytesIO(body), preload_content=False)
        return AWSResponse(request.url, status, {"Content-Type": "application/xml"}, raw)

    for look in looks:
        operation = "HeadBucket" if look == "head_bucket" else f"Get{look}"
        bucket.client.meta.events.register(f"before-send.s3.{operation}", refuse)


@pytest.mark.parametrize(
    ("code", "status"), [("AccessDenied", 403), ("NotImplemented", 501), ("MethodNotAllowed", 405)]
)
def test_not_allowed_to_look_says_so_and_goes_on(make, caplog, code, status):
    bucket = make(block=None, ownership="ObjectWriter")
    forbid(bucket, *LOOKS, code=code, status=status)
    with caplog.at_level(logging.WARNING):
        notes = " ".join(check(bucket).notes)
    for permission in ("BucketPublicAccessBlock", "BucketPolicyStatus", "BucketOwnershipControls", "BucketAcl"):
        assert f"s3:Get{permission}" in notes
    assert code in notes
    assert "could not check its public access block" in caplog.text


@pytest.mark.parametrize("opened", [open_by_policy, open_by_acl])
def test_what_may_be_seen_counts_although_the_block_may_not(s3, make, opened):
    bucket = make(block=None, ownership="ObjectWriter")
    opened(s3, bucket)
    forbid(bucket, "PublicAccessBlock")
    with pytest.raises(BucketUnsafe):
        check(bucket)


def test_a_busy_s3_is_asked_again_later_and_nothing_is_written(s3, make):
    bucket = make(
        config=Config(retries={"mode": "standard", "total_max_attempts": 2})
    )  # boto3's default retries take 13 s
    forbid(bucket, "PublicAccessBlock", code="SlowDown", status=400)
    with pytest.raises(DestinationUnavailable):
        check(bucket)
    assert bucket.requests["PUT"] == 0


def test_no_right_to_write_is_found_here(endpoint, make, role):
    bucket = make(keys=role("s3:ListBucket", "s3:GetObject", "s3:GetBucketPublicAccessBlock"))
    enforce(endpoint)
    with pytest.raises(BucketRefused):
        check(bucket)


def test_no_right_to_delete_is_only_noted(endpoint, make, role):
    bucket = make(keys=role("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:GetBucketPublicAccessBlock"))
    enforce(endpoint)
    assert "s3:DeleteObject" in " ".join(check(bucket).notes)


# -- existence and owner -----------------------------------------------------------------------------------------------


def test_no_such_bucket(endpoint):
    session = boto3.Session("root-key", "root-secret", region_name="us-east-1")
    with pytest.raises(BucketMissing):
        check(Bucket.open(session, "nobody-made-this", "p", endpoint_url=endpoint))


def test_an_s3_that_knows_no_such_settings(tmp_path):
    """rclone answers such requests with a listing, ignoring the query."""
    from demo.stack import s3_server

    with s3_server(tmp_path / "s3") as server:
        server.make_bucket("lab")
        found = check(Bucket.open(server.session(), "lab", "p", endpoint_url=server.endpoint))
        assert not list((tmp_path / "s3" / "lab").rglob("access-check"))
    assert found.encryption is None
    assert "could not check its public access block" in " ".join(found.notes)
