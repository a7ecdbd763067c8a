"""For tests of whole runs."""

from __future__ import annotations

import uuid

import pytest

from demo import stack


@pytest.fixture
def bucket_name(s3_server: stack.S3Server) -> str:
    """An empty bucket of this test's own, made through S3: the server may not look at its folder again for minutes."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    return name
