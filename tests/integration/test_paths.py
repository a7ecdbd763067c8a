"""Paths against a web server that nobody here wrote: nginx takes each URL apart by its own rules, and names the file it gave."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote
from uuid import uuid4

import boto3
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from bench._servers import Missing, nginx
from demo import stack
from physionet_mirror.dataset import SUMS, project
from physionet_mirror.errors import InputError
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.physionet import PhysioNet
from tests.conftest import READER
from tests.integration.test_projects import mirror, write_project

LONGEST = 1000
"""Characters of a path."""

_SERVER = """\
  log_format raw escape=none "$request_method $status $request_uri";
  server {{
    listen 127.0.0.1:{port};
    large_client_header_buffers 4 32k;
    charset utf-8;
    auth_basic PhysioNet;
    auth_basic_user_file {root}/users;
    access_log {root}/access.log raw;
    location /files/ {{ if ($http_user_agent !~ ^Wget/) {{ return 403; }} alias {root}/files/; }}
  }}
"""


@dataclass(frozen=True)
class Nginx:
    """nginx, with a password and a log of what it was asked for."""

    url: str
    root: Path

    def asked(self) -> list[str]:
        """The targets of the files that it gave so far, as they came over the wire."""
        lines = (self.root / "access.log").read_text("ascii").splitlines()
        return [line.removeprefix("GET 200 ") for line in lines if line.startswith("GET 200 ")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    root, port = tmp_path_factory.mktemp("nginx-site"), stack.free_port()
    (root / "files").mkdir()
    (root / "users").write_text(f"{READER[0]}:{{PLAIN}}{READER[1]}\n")
    root.chmod(0o755)
    try:
        with nginx(tmp_path_factory.mktemp("nginx") / "run", _SERVER.format(port=port, root=root), port):
            yield Nginx(f"http://127.0.0.1:{port}", root)
    except Missing as error:
        pytest.skip(str(error).replace("nothing was measured", "its paths are not tested"))


@pytest.fixture
def bucket(s3_server: stack.S3Server, boto_session: boto3.Session, bucket_name: str) -> Bucket:
    return Bucket.open(boto_session, bucket_name, "n", endpoint_url=s3_server.endpoint)


_AWKWARD = " +%&?#;=:@!$'()*,~[]{}\"<>|^`-._"
_NAMES = st.text(
    st.sampled_from(_AWKWARD)
    | st.sampled_from("aZ09éßΩж中心電図😀")
    | st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\\u2028\u2029"),
    min_size=1,
    max_size=60,
).filter(lambda name: name.strip() == name and name not in (".", "..", "_mirror") and len(name.encode()) <= 200)
_PATHS = (
    st.lists(_NAMES, min_size=1, max_size=25)
    .map("/".join)
    .filter(lambda path: len(path) <= LONGEST and not path.startswith("*"))  # with one space, a sign of binary files
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(_PATHS, min_size=1, max_size=6, unique=True))
@example(["a b+c%20d/100%/é?x=1&y#z", "%2e%2e/%2F", "a+b", "a%2Bb", "a b"])
@example(["/".join(["d" * 199] * 4 + ["e" * 200])])
@example(["/".join(["心" * 60] * 15 + ["x" * 85])])
def test_any_path_asks_nginx_for_its_file_and_becomes_its_key(
    site: Nginx,
    bucket: Bucket,
    paths: list[str],
) -> None:
    paths = [path for path in paths if not any(other.startswith(path + "/") for other in paths)]
    dataset = project(f"any-{uuid4().hex[:8]}/1.0")
    files = {path: hashlib.sha256(path.encode()).hexdigest().encode() for path in paths}
    write_project(site.root / "files", dataset.name, files)
    before = len(site.asked())
    with closing(PhysioNet(site.url, *READER)) as source:
        if max(len(bucket.key(path).encode()) for path in paths) > 1024:  # S3's limit is in bytes, not characters
            event("refused")
            with pytest.raises(InputError, match=r"^prefix: the key of .* S3 takes at most 1,024"):
                mirror(source, bucket, dataset)
            return
        event("mirrored")
        mirror(source, bucket, dataset)
    assert {path: bucket.read(path) for path in paths} == files
    asked = [target for target in site.asked()[before:] if not target.endswith("SHA256SUMS.txt")]
    assert sorted(map(unquote, asked)) == sorted(f"/files/{dataset.name}/{path}" for path in paths)
    shutil.rmtree(site.root / "files" / dataset.name.partition("/")[0])
    bucket.delete(paths)


def test_another_project_below_the_same_prefix_is_not_taken_for_the_first(site: Nginx, bucket: Bucket) -> None:
    tags = set()
    for path in ("a", "b"):
        dataset = project(f"same-{uuid4().hex[:8]}/1.0")
        files = {path: hashlib.sha256(path.encode()).hexdigest().encode()}
        write_project(site.root / "files", dataset.name, files)
        os.utime(site.root / "files" / dataset.name / SUMS, (1e9, 1e9))  # nginx makes the ETag of time and size
        with closing(PhysioNet(site.url, *READER)) as source:
            tags.add(source.etag(dataset, SUMS))
            mirror(source, bucket, dataset)
        assert bucket.read(path) == files[path]
    assert len(tags) == 1
