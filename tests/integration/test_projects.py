"""Any path of any project gets the right key and URL, over real HTTP to a real S3; and files fetched by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from demo import stack
from demo.lookalike import Lookalike, User
from physionet_mirror.dataset import SUMS, Dataset, project
from physionet_mirror.errors import AccessRefused, NotFound
from physionet_mirror.layout import RunLayout
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import mirror_shard, plan
from physionet_mirror.steps.fetch_files import fetch_files
from physionet_mirror.steps.fetch_metadata import fetch_metadata
from tests.conftest import READER

ODD = [
    "a b.txt",
    "plus+and%20percent 100%.dat",
    "Überwachung/心電図.dat",
    "x/y/z/q?=#&;.csv",
    "quote'\"and(brackets)[1].bin",
    "~tilde/@at,comma=equal!.txt",
    "/".join(["d" * 199] * 4 + ["e" * 200]),  # 1,000 characters
    ".hidden/.file",
]


def write_project(root: Path, name: str, files: Mapping[str, bytes], between: str = " ", end: str = "\n") -> None:
    for path, data in files.items():
        file = root / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    lines = [f"{hashlib.sha256(data).hexdigest()}{between}{path}{end}" for path, data in sorted(files.items())]
    (root / name / SUMS).write_bytes("".join(lines).encode())


@pytest.fixture
def bucket_of(s3_server: stack.S3Server, boto_session: boto3.Session, bucket_name: str):
    def open_one(prefix: str) -> Bucket:
        return Bucket.open(boto_session, bucket_name, prefix, endpoint_url=s3_server.endpoint)

    return open_one


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Lookalike]]:
    root = tmp_path_factory.mktemp("projects")
    (root / "open").mkdir()
    users = {READER[0]: User(READER[1], frozenset())}
    with Lookalike(root, users=users, check_seconds=0) as server:
        yield root, server


@contextmanager
def visit(site: tuple[Path, Lookalike], *signed: Dataset) -> Iterator[PhysioNet]:
    site[1].access.users[READER[0]].agreements = frozenset(dataset.name for dataset in signed)
    with closing(PhysioNet(site[1].url, *READER)) as source:
        yield source


def mirror(source: PhysioNet, bucket: Bucket, dataset: Dataset) -> None:
    fetch_metadata(source, bucket, dataset)
    request = Request.from_params({"project": dataset.name, "bucket": bucket.name, "prefix": bucket.prefix})
    run = RunLayout("r", "physionet_project")
    made = plan.make_plan(request, bucket, run, streams=1, params={}, site=source)
    for shard in made.shards:
        if mirror_shard.find_missing(shard, request, bucket, run).images:
            mover = Download(source, dataset, bucket, "STANDARD")
            mirror_shard.stream_shard(shard, request, mover, bucket, run, connections=4, stop=mirror_shard.Stop())


@pytest.mark.parametrize(("between", "end"), [(" ", "\n"), ("  ", "\n"), (" *", "\n"), ("\t", "\n"), (" ", "\r\n")])
def test_odd_paths_get_the_right_key_and_url_however_the_checksums_are_written(
    site: tuple[Path, Lookalike], bucket_of, between: str, end: str
) -> None:
    dataset = project(f"odd-{uuid4().hex[:8]}/1.0")
    files = {path: path.encode() * 3 for path in ODD if between != "\t" or "\t" not in path}
    write_project(site[0], dataset.name, files, between, end)
    bucket = bucket_of("o")
    with visit(site, dataset) as source:
        mirror(source, bucket, dataset)
    assert {path: bucket.read(path) for path in files} == files
    listed = {entry.path for entry in bucket.list()}
    assert set(files) <= listed


_NAMES = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\\x00\u2028\u2029\x85"),
    min_size=1,
    max_size=30,
).filter(lambda name: name.strip() == name and name not in (".", "..") and len(name.encode()) < 200)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.lists(_NAMES, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6, unique=True))
@example(["*"])
@example(["*0", "a/*"])
def test_any_path_is_fetched_and_stored_as_it_is(site: tuple[Path, Lookalike], bucket_of, paths: list[str]) -> None:
    # No path may be another one's folder, and none may be one of the mirror's own.
    paths = [
        p for p in paths if not any(q != p and q.startswith(p + "/") for q in paths) and not p.startswith("_mirror/")
    ]
    if not paths:
        return
    dataset = project(f"any-{uuid4().hex[:8]}/1.0")
    files = {path: path.encode() for path in paths}
    # With one space, a path that begins with * reads as sha256sum's mark of a binary file.
    write_project(site[0], dataset.name, files, "  " if any(path.startswith("*") for path in paths) else " ")
    bucket = bucket_of(dataset.name)
    with visit(site, dataset) as source:
        mirror(source, bucket, dataset)
    assert {path: bucket.read(path) for path in files} == files


def test_named_files_come_once_proven_and_each_project_has_its_own_agreement(
    site: tuple[Path, Lookalike], bucket_of
) -> None:
    signed, unsigned = project("signed/1.0"), project("unsigned/1.0")
    files = {"hosp/admissions.csv.gz": b"a" * 5000, "reports.zip": bytes(33 << 20), "other.txt": b"o"}
    for dataset in (signed, unsigned):
        write_project(site[0], dataset.name, files)
    wanted = ["hosp/admissions.csv.gz", "reports.zip"]
    bucket = bucket_of("signed/1.0")
    with visit(site, signed) as source:
        found = fetch_files(source, bucket, signed, wanted)
        assert (found.files, found.fetched, found.bytes) == (tuple(wanted), 2, 5000 + (33 << 20))
        assert bucket.read("reports.zip") == files["reports.zip"]
        assert bucket.head("other.txt") is None
        site[1].counters.reset()
        assert fetch_files(source, bucket, signed, wanted).fetched == 0
        assert [seen.path for seen in site[1].counters.seen if seen.method == "GET"] == []
        bucket.write("hosp/admissions.csv.gz", b"b" * 5000)
        assert fetch_files(source, bucket, signed, wanted).fetched == 1
        assert bucket.read("hosp/admissions.csv.gz") == files["hosp/admissions.csv.gz"]
        with pytest.raises(NotFound, match=r"does not list nothing\.txt"):
            fetch_files(source, bucket, signed, ["nothing.txt"])
        with pytest.raises(AccessRefused, match=r"physionet\.org/content/unsigned/1.0/"):
            fetch_files(source, bucket_of("unsigned/1.0"), unsigned, wanted)
        # A run then accepts the files fetched this way.
        mirror(source, bucket, signed)
        assert bucket.read("other.txt") == b"o"


def test_a_list_that_leaves_something_out_and_one_that_is_absent_are_said(
    site: tuple[Path, Lookalike], bucket_of
) -> None:
    dataset, without = project("partly/1.0"), project("without/2.0")
    write_project(site[0], dataset.name, {"a.txt": b"a" * 100})
    (site[0] / dataset.name / "unlisted.bin").write_bytes(b"u" * 5000)
    (site[0] / without.name).mkdir(parents=True)
    (site[0] / without.name / "a.txt").write_bytes(b"a")
    bucket = bucket_of("p")
    with visit(site, dataset, without) as source:
        fetch_metadata(source, bucket, dataset)
        request = Request.from_params({"project": dataset.name, "bucket": bucket.name, "prefix": "p"})
        made = plan.make_plan(request, bucket, RunLayout("r", "d"), streams=1, params={}, site=source)
        assert any("SHA256SUMS.txt lists 1 files, 100 B" in n and "is not fetched" in n for n in made.selection.notes)
        assert (made.estimate.missing_bytes, made.estimate.missing_bytes_most) == (100, 0)
        with pytest.raises(NotFound, match=r"without/2\.0 publishes no SHA256SUMS\.txt"):
            source.check_access(without)
        with pytest.raises(NotFound, match=r"Versions of without: 2\.0"):
            source.check_access(project("without/3.0"))
