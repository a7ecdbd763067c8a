"""The bucket, through the amazon provider's S3Hook."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import boto3
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    from physionet_mirror.dataset import Dataset
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.access_point import AccessPoint

AWS_CONN_ID = "aws_default"
ACCESS_POINT_CONN_ID = "physionet_s3"
"""An optional second AWS connection, whose extra may name another access point than the dataset's declaration."""

_ACCESS_POINT = "physionet_access_point"


def open_bucket(bucket: str, prefix: str, aws_conn_id: str = AWS_CONN_ID) -> Bucket:
    """The bucket below ``prefix``, with the credentials, region, endpoint and TLS settings of an AWS connection.

    Three optional fields of the connection's extra are ours: ``expected_bucket_owner`` (the AWS account id that must own
    the bucket), ``kms_key_id`` (the KMS key that encrypts what is written) and ``server_side_encryption`` (``AES256``,
    ``aws:kms`` or ``aws:kms:dsse``, asked for with each write). The only requests made are those that fetch credentials.

    Raises:
        InputError: There are no AWS credentials, or a setting of the connection or the worker cannot be used.
        BucketRefused: The credentials that the settings name cannot be obtained (profile, role, process, SSO).
        DestinationUnavailable: The service that issues the credentials cannot be reached.
    """
    from physionet_mirror.s3.bucket import Bucket

    session, connection, verify = _session(aws_conn_id, f"s3://{bucket}")
    return Bucket.open(
        session,
        bucket,
        prefix,
        endpoint_url=connection.get_service_endpoint_url("s3"),
        config=connection.botocore_config,
        verify=verify,
        kms_key=connection.extra_config.get("kms_key_id") or None,
        server_side_encryption=connection.extra_config.get("server_side_encryption") or None,
        expected_owner=_owner(connection, aws_conn_id),
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


def _owner(connection: AwsConnectionWrapper, aws_conn_id: str) -> str | None:
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
            f"expected_bucket_owner in the extra of the connection {aws_conn_id} is no AWS account id. Nothing was done. It has "
            "12 digits; `aws sts get-caller-identity` shows one's own."
        )
    return owner


def check_bucket(bucket: Bucket, aws_conn_id: str = AWS_CONN_ID) -> None:
    """Raise unless the bucket exists, is not public and can be written to; writes a probe and removes it.

    Raises:
        BucketUnsafe, BucketMissing, BucketRefused, DestinationUnavailable: See `safety.check`.
    """
    from physionet_mirror.s3 import safety

    session, connection, _ = _session(aws_conn_id, f"s3://{bucket.name}")
    of_account = None
    if not connection.get_service_endpoint_url("s3"):  # only Amazon's accounts have such a block
        of_account = partial(
            safety.account_block, bucket, session, _owner(connection, aws_conn_id), connection.botocore_config
        )
    safety.check(bucket, account_block=of_account)


def open_access_point(
    bucket: Bucket, dataset: Dataset, storage_class: str, aws_conn_id: str = AWS_CONN_ID
) -> AccessPoint:
    """PhysioNet's S3 access point as the source of copies into ``bucket``, made with the same AWS connection.

    Its ARN is the dataset's, unless the extra of ``aws_conn_id`` or of the connection ``physionet_s3`` has a
    ``physionet_access_point`` (an ARN, or the name of a bucket with the same keys). Makes no request.

    Raises:
        InputError: There is none for this dataset version.
    """
    from airflow.sdk import BaseHook

    from physionet_airflow.compat import AirflowNotFoundException
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.access_point import AccessPoint, access_point_of

    session, connection, verify = _session(aws_conn_id, f"s3://{bucket.name}")
    override = connection.extra_config.get(_ACCESS_POINT)
    if not override:
        try:
            override = BaseHook.get_connection(ACCESS_POINT_CONN_ID).extra_dejson.get(_ACCESS_POINT)
        except AirflowNotFoundException:
            override = None
    source = Bucket.open(
        session,
        access_point_of(dataset, override),
        dataset.name,
        endpoint_url=connection.get_service_endpoint_url("s3"),
        config=connection.botocore_config,
        verify=verify,
    )
    return AccessPoint(source, bucket, dataset, storage_class)
