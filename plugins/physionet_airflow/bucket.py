"""The bucket, through the amazon provider's S3Hook."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from include.physionet_mirror.access_point import AccessPoint
    from include.physionet_mirror.dataset import Dataset
    from include.physionet_mirror.destination import Bucket

AWS_CONN_ID = "aws_default"
ACCESS_POINT_CONN_ID = "physionet_s3"
"""An optional second AWS connection, whose extra may name another access point than the dataset's declaration."""

_ACCESS_POINT = "physionet_access_point"


def open_bucket(bucket: str, prefix: str, aws_conn_id: str = AWS_CONN_ID) -> Bucket:
    """The bucket below ``prefix``, with the credentials, region, endpoint and TLS settings of an AWS connection.

    Two optional fields of the connection's extra are ours: ``expected_bucket_owner`` (the AWS account id that must own
    the bucket) and ``kms_key_id`` (the KMS key that encrypts what is written). Makes no request.

    Raises:
        InputError: There are no AWS credentials.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from include.physionet_mirror.destination import Bucket

    hook = S3Hook(aws_conn_id=aws_conn_id)
    connection = hook.conn_config
    return Bucket.open(
        hook.get_session(),
        bucket,
        prefix,
        endpoint_url=connection.get_service_endpoint_url("s3"),
        config=connection.botocore_config,
        verify=hook.verify,
        kms_key=connection.extra_config.get("kms_key_id"),
        expected_owner=connection.extra_config.get("expected_bucket_owner"),
    )


def check_bucket(bucket: Bucket, aws_conn_id: str = AWS_CONN_ID) -> None:
    """Raise unless the bucket exists, is closed to the public, and takes what we write; a probe is written and removed.

    Raises:
        BucketUnsafe, BucketMissing, BucketRefused, DestinationUnavailable: See `bucket_safety.check`.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from include.physionet_mirror import bucket_safety

    hook = S3Hook(aws_conn_id=aws_conn_id)
    connection = hook.conn_config
    of_account = None
    if not connection.get_service_endpoint_url("s3"):  # only Amazon's accounts have such a block
        owner = connection.extra_config.get("expected_bucket_owner")
        of_account = partial(bucket_safety.account_block, bucket, hook.get_session(), owner)
    bucket_safety.check(bucket, account_block=of_account)


def open_access_point(
    bucket: Bucket, dataset: Dataset, storage_class: str, aws_conn_id: str = AWS_CONN_ID
) -> AccessPoint:
    """PhysioNet's S3 access point as the source of copies into ``bucket``, made with the same AWS connection.

    Its ARN is the dataset's, unless the extra of ``aws_conn_id`` or of the connection ``physionet_s3`` has a
    ``physionet_access_point`` (an ARN, or the name of a bucket with the same keys). Makes no request.

    Raises:
        InputError: There is none for this dataset version.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.sdk.exceptions import AirflowNotFoundException

    from include.physionet_mirror.access_point import AccessPoint, access_point_of
    from include.physionet_mirror.destination import Bucket

    hook = S3Hook(aws_conn_id=aws_conn_id)
    connection = hook.conn_config
    override = connection.extra_config.get(_ACCESS_POINT)
    if not override:
        try:
            override = hook.get_connection(ACCESS_POINT_CONN_ID).extra_dejson.get(_ACCESS_POINT)
        except AirflowNotFoundException:
            override = None
    source = Bucket.open(
        hook.get_session(),
        access_point_of(dataset, override),
        dataset.name,
        endpoint_url=connection.get_service_endpoint_url("s3"),
        config=connection.botocore_config,
        verify=hook.verify,
    )
    return AccessPoint(source, bucket, storage_class)
