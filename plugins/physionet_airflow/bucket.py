"""The bucket, through the amazon provider's S3Hook."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import boto3
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
    from airflow.sdk import Connection

    from physionet_mirror.dataset import Dataset
    from physionet_mirror.mover import Mode
    from physionet_mirror.records import Store
    from physionet_mirror.request import Source
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.access_point import AccessPoint
    from physionet_mirror.source.way import Way

log = logging.getLogger(__name__)

AWS_CONN_ID = os.environ.get("MIMIC_CXR_AWS_CONN_ID") or "aws_default"
"""The connection of the bucket."""

ACCESS_POINT_CONN_ID = "physionet_s3"
"""An optional second AWS connection: the keys of the IAM user that PhysioNet verified, and the access point's ARN."""

_ACCESS_POINT = "physionet_access_point"


def open_bucket(bucket: str, prefix: str) -> Bucket:
    """The bucket below ``prefix``, with the credentials, region, endpoint and TLS settings of `AWS_CONN_ID`.

    Three optional fields of the connection's extra are ours: ``expected_bucket_owner`` (the AWS account id that must own
    the bucket), ``kms_key_id`` (the KMS key that encrypts what is written) and ``server_side_encryption`` (``AES256``,
    ``aws:kms`` or ``aws:kms:dsse``, asked for with each write). The only requests made are those that fetch credentials.

    Raises:
        InputError: There are no AWS credentials, or a setting of the connection or the worker cannot be used.
        BucketRefused: The credentials that the settings name cannot be obtained (profile, role, process, SSO).
        DestinationUnavailable: The service that issues the credentials cannot be reached.
    """
    session, connection, verify = _session(AWS_CONN_ID, f"s3://{bucket}")
    return _destination(session, bucket, prefix, connection, verify)


def _destination(
    session: boto3.Session, bucket: str, prefix: str, own: AwsConnectionWrapper, verify: bool | str | None
) -> Bucket:
    """The bucket, with the credentials of a session and all other settings of the bucket's own connection."""
    from physionet_mirror.s3.bucket import Bucket

    return Bucket.open(
        session,
        bucket,
        prefix,
        endpoint_url=own.get_service_endpoint_url("s3"),
        config=own.botocore_config,
        verify=verify,
        kms_key=own.extra_config.get("kms_key_id") or None,
        server_side_encryption=own.extra_config.get("server_side_encryption") or None,
        expected_owner=_owner(own),
    )


def _session(aws_conn_id: str, where: str) -> tuple[boto3.Session, AwsConnectionWrapper, bool | str | None]:
    """An AWS connection's session, its settings, and its ``verify``.

    Raises:
        InputError, BucketRefused, DestinationUnavailable: As `open_bucket`.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from physionet_mirror.errors import MirrorError
    from physionet_mirror.s3 import replies

    hook = S3Hook(aws_conn_id=aws_conn_id)
    try:
        return hook.get_session(), hook.conn_config, hook.verify
    except MirrorError:
        raise
    except Exception as error:  # noqa: BLE001  the hook passes on whatever a profile, role or process raises
        raise replies.meaning(error, where, "credentials", where.removeprefix("s3://")) from None


def _owner(connection: AwsConnectionWrapper) -> str | None:
    """The account id that must own the bucket; JSON and YAML may give it as a number, without its leading zeros.

    Raises:
        InputError: It is no account id.
    """
    from physionet_mirror.errors import InputError

    given = connection.extra_config.get("expected_bucket_owner")
    if given in (None, ""):
        return None
    owner = f"{given:012d}" if isinstance(given, int) and not isinstance(given, bool) else str(given).strip()
    if not re.fullmatch(r"[0-9]{12}", owner):
        raise InputError(
            f"expected_bucket_owner in the extra of the connection {AWS_CONN_ID} is no AWS account id. Nothing was done. It has "
            "12 digits; `aws sts get-caller-identity` shows one's own."
        )
    return owner


def check_bucket(bucket: Bucket) -> None:
    """Raise unless the bucket exists, is not public and can be written to; writes a probe and removes it.

    Raises:
        BucketUnsafe, BucketMissing, BucketRefused, DestinationUnavailable: See `safety.check`.
    """
    from physionet_mirror.s3 import safety

    session, connection, _ = _session(AWS_CONN_ID, f"s3://{bucket.name}")
    of_account = None
    if not connection.get_service_endpoint_url("s3"):  # only Amazon's accounts have such a block
        of_account = partial(safety.account_block, bucket, session, _owner(connection), connection.botocore_config)
    safety.check(bucket, account_block=of_account)


def try_store(bucket: Bucket, storage_class: str) -> Store:
    """What the bucket's S3 can do, found by trying; see `probe`."""
    from physionet_mirror.records import Store
    from physionet_mirror.s3.probe import probe

    return Store(**asdict(probe(bucket, storage_class)))


@dataclass(frozen=True)
class _Reader:
    """Whose keys read which access point.

    Attributes:
        conn_id: The connection of the keys.
        name: The access point's ARN, or a bucket's name; None = none is known.
        is_set: A connection says that there is one: `physionet_s3`, or an extra in ``aws_default``.
    """

    conn_id: str
    name: str | None
    is_set: bool


def _reader(dataset: Dataset) -> _Reader:
    """The connection ``physionet_s3`` where there is one, else the bucket's.

    A ``physionet_s3`` that has nothing but ``physionet_access_point`` names an access point for the keys of `AWS_CONN_ID`.
    The extra may be a mapping from ``slug/version`` to ARN.

    Raises:
        InputError: The extra is neither.
    """
    from physionet_mirror.source.access_point import access_point_of

    own, other = _connection(ACCESS_POINT_CONN_ID), _connection(AWS_CONN_ID)
    extra = own.extra_dejson if own is not None else {}
    given = extra.get(_ACCESS_POINT)
    has_keys = own is not None and bool(own.login or extra.keys() - {_ACCESS_POINT})
    given_elsewhere = other.extra_dejson.get(_ACCESS_POINT) if other is not None else None
    conn_id = ACCESS_POINT_CONN_ID if has_keys else AWS_CONN_ID
    name = access_point_of(dataset, given or given_elsewhere, ACCESS_POINT_CONN_ID if given else AWS_CONN_ID)
    return _Reader(conn_id, name, own is not None or bool(given_elsewhere))


def _connection(conn_id: str) -> Connection | None:
    from airflow.sdk import BaseHook

    from physionet_airflow.compat import AirflowNotFoundException

    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return None


def open_access_point(dataset: Dataset) -> AccessPoint:
    """PhysioNet's S3 access point for a dataset version, with the reader's keys. Makes no request.

    Raises:
        InputError: There is none for this dataset version, or a connection cannot be used.
    """
    from physionet_mirror.errors import InputError
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.access_point import AccessPoint

    reader = _reader(dataset)
    if reader.name is None:
        raise InputError(
            f"source: PhysioNet is not known to offer an S3 access point for {dataset.name}. Nothing was done. Use "
            f"source=physionet, or give its ARN, which {dataset.page} shows to those who have access, as `{_ACCESS_POINT}` in "
            f"the extra of the AWS connection {ACCESS_POINT_CONN_ID}."
        )
    session, connection, verify = _session(reader.conn_id, f"s3://{reader.name}")
    bucket = Bucket.open(
        session,
        reader.name,
        dataset.name,
        endpoint_url=connection.get_service_endpoint_url("s3"),
        config=connection.botocore_config,
        verify=verify,
    )
    return AccessPoint(
        bucket, dataset, conn_id=reader.conn_id, identity=partial(_identity, session, connection, verify)
    )


def _identity(session: boto3.Session, connection: AwsConnectionWrapper, verify: bool | str | None) -> str | None:
    """The ARN of whoever owns these keys, as AWS STS says; None where nobody tells.

    An S3 that is not Amazon's has its STS elsewhere or has none: it is asked only where a setting says where it is.
    """
    from boto3.exceptions import Boto3Error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    endpoint = connection.get_service_config("sts").get("endpoint_url")
    is_set = endpoint or os.environ.get("AWS_ENDPOINT_URL_STS") or os.environ.get("AWS_ENDPOINT_URL")
    if connection.get_service_endpoint_url("s3") and not is_set:
        return None
    try:
        quick = Config(connect_timeout=5, read_timeout=5, retries={"max_attempts": 1})
        region = session.region_name or "us-east-1"
        client = session.client("sts", region_name=region, endpoint_url=endpoint, config=quick, verify=verify)
        return str(client.get_caller_identity()["Arn"])
    except (Boto3Error, BotoCoreError, ClientError, KeyError, ValueError):
        return None


def open_copiers(bucket: Bucket, point: AccessPoint) -> dict[str, Bucket]:
    """The destination, by each connection whose keys may copy into it from the access point; makes no request.

    The reader's own keys are among them: they may be allowed to write the bucket too. Empty where the access point and the
    bucket are not at the same endpoint, as nothing can be copied then.

    Raises:
        InputError: A connection cannot be used.
    """
    session, reader, verify = _session(point.conn_id, f"s3://{point.bucket.name}")
    _, own, _ = _session(AWS_CONN_ID, f"s3://{bucket.name}")
    if reader.get_service_endpoint_url("s3") != own.get_service_endpoint_url("s3"):
        return {}
    found = {AWS_CONN_ID: bucket}
    if point.conn_id != AWS_CONN_ID:
        found[point.conn_id] = _destination(session, bucket.name, bucket.prefix, own, verify)
        found[point.conn_id].can = bucket.can
    return found


def expected_mode(source: Source, dataset: Dataset, bucket: Bucket) -> Mode:
    """How a run's files will probably come, by what the connections say; `choose_way` tries it. Makes no request."""
    from physionet_mirror.errors import MirrorError

    if source == "physionet":
        return "download"
    try:
        reader = _reader(dataset)
        if reader.name is not None and (reader.is_set or source == "s3"):
            return "copy" if open_copiers(bucket, open_access_point(dataset)) else "through"
    except MirrorError as error:
        log.info("What opens PhysioNet's access point cannot be used as it is. %s", error)
    return "copy" if source == "s3" else "download"


def choose_way(source: Source, dataset: Dataset, bucket: Bucket) -> Way:
    """Where a run's files come from, and how: decided by trying, for the whole run.

    Args:
        source: The param: ``auto`` takes the access point where a connection opens it, else the website; ``s3`` never falls
            back.
        dataset: Whose files.
        bucket: Where they go.

    Raises:
        AccessRefused, NotFound, InputError: With ``s3``: the access point is not open.
        DestinationUnavailable: S3 cannot say now.
    """
    from physionet_mirror.errors import AccessRefused, BucketRefused, InputError, NotFound
    from physionet_mirror.source.way import Way, choose, in_short

    if source == "physionet":
        return Way(reason="source=physionet asks for it")
    try:
        reader = _reader(dataset)
        if source == "auto" and not reader.is_set:
            return Way(reason=f"no AWS connection {ACCESS_POINT_CONN_ID} opens PhysioNet's access point")
        if source == "auto" and reader.name is None:
            return Way(reason=f"no access point is known for {dataset.name}")
        point = open_access_point(dataset)
        return choose(point, open_copiers(bucket, point))
    except (AccessRefused, NotFound, InputError, BucketRefused) as error:
        if source == "s3":
            raise
        log.warning("PhysioNet's access point is not open, so the files come from its website. %s", error)
        return Way(reason=f"the access point is not open: {in_short(error)}")
