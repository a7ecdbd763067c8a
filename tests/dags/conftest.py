"""Fixtures for tests of whole runs."""

from __future__ import annotations

import uuid

import pytest

from demo import stack


@pytest.fixture
def bucket_name(s3_server: stack.S3Server) -> str:
    """The test's own empty bucket, made through S3, because the server may not list its folder again for minutes."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    return name
