"""A bucket behind a proxy that injects S3 faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo import stack
from tests.chaos.s3_proxy import S3Proxy


@pytest.fixture(scope="module")
def s3_proxy(s3_server: stack.S3Server) -> Iterator[S3Proxy]:
    """A proxy in front of ``s3_server``, without a fault."""
    with S3Proxy(s3_server.endpoint) as proxy:
        yield proxy
