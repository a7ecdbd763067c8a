"""The bucket, through the amazon provider's S3Hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from include.physionet_mirror.destination import Bucket

AWS_CONN_ID = "aws_default"


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
