"""``physionet_project`` in a real Airflow: any project, by slug and version, from a real HTTP server to a real S3."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo import stack
from demo.access_point import AccessPoint, Identity
from demo.lookalike import Lookalike, User
from physionet_mirror.layout import RUNS, RunLayout
from physionet_mirror.records import Audit, load
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.steps import audit
from tests.conftest import READER
from tests.dags import test_access_point
from tests.dags.test_access_point import connection
from tests.dags.test_runs import run, states

NAME = "tiny-records/1.0"
FILES = {
    "LICENSE.txt": b"for tests\n",
    "hosp/admissions.csv.gz": b"\x1f\x8b not really\n" * 40,
    "hosp/lab events+%20 50%.csv.gz": b"0123456789" * 700,
    "icu/Überwachung.csv.gz": b"abc" * 5_000,
    **{f"waves/p1{n:03}/s{n}.dat": bytes([n]) * (n + 1) for n in range(40)},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small undeclared project; its SHA256SUMS.txt has two blanks per line and a comment."""
    root = tmp_path_factory.mktemp("projects")
    for path, data in FILES.items():
        file = root / NAME / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    lines = [f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in FILES.items()]
    (root / NAME / "SHA256SUMS.txt").write_text("# sums\n" + "".join(lines))
    (root / "without-sums" / "1.0").mkdir(parents=True)
    (root / "without-sums" / "1.0" / "a.txt").write_text("a")
    return root


@pytest.fixture
def physionet(project: Path) -> Iterator[Lookalike]:
    login, password = READER
    with Lookalike(project, users={login: User(password)}, check_seconds=0.01) as server:
        yield server


def stored(folder: Path) -> dict[str, bytes]:
    files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return {path: data for path, data in files.items() if not path.startswith("_mirror/") and path != "SHA256SUMS.txt"}


def test_a_project_is_mirrored_whole_then_found_complete_and_repaired(
    airflow_home: Any, physionet: Lookalike, s3_server: stack.S3Server, bucket_name: str
) -> None:
    folder = Path(s3_server.folder) / bucket_name / NAME
    conf = {"project": NAME, "include": ["hosp/*.csv.gz", "waves/**"], "exclude": ["**/s7.dat"]}
    code, log = run(airflow_home, "physionet_project", bucket_name, **conf)
    assert code == 0, log[-4000:]
    chosen = {p: d for p, d in FILES.items() if p.startswith(("hosp/", "waves/")) and not p.endswith("/s7.dat")}
    assert stored(folder) == chosen | {"LICENSE.txt": FILES["LICENSE.txt"]}  # the licence is always fetched
    assert "41 of 41 selected files verified (checksum)" in log
    # Names of ours, not words: a file, a metric, and the alias and key of an event, which Airflow 3.2 logs.
    words = re.sub(r"failed_images|mirror/images|mimic_cxr_jpg_images|'images':", "", log)
    assert re.findall(r".{0,80}image.{0,40}", words) == []

    index = pq.read_table(folder / "_mirror/index.parquet")
    assert index.column_names == ["path", "key", "uri", "bytes", "sha256", "level"]
    assert dict(zip(index["path"].to_pylist(), index["bytes"].to_pylist(), strict=True)) == {
        path: len(data) for path, data in chosen.items()
    }
    assert pq.read_table(folder / "_mirror/manifest.parquet")["path"].to_pylist() == sorted(FILES, key=str.encode)

    # Only the rest is fetched; a flipped byte is repaired.
    victim = folder / "hosp/lab events+%20 50%.csv.gz"
    victim.write_bytes(b"x" * 7000)
    physionet.counters.reset()
    code, log = run(airflow_home, "physionet_project", bucket_name, project=f"https://physionet.org/content/{NAME}/")
    assert code == 0, log[-4000:]
    assert stored(folder) == FILES
    asked = {
        seen.path.removeprefix(f"{NAME}/")
        for seen in physionet.counters.seen
        if seen.method == "GET" and "/api/" not in seen.path
    }
    assert asked == set(FILES) - set(chosen) - {"LICENSE.txt"} | {"hosp/lab events+%20 50%.csv.gz"}
    report = json.loads(next(folder.glob("_mirror/runs/physionet_project@*/report.json")).read_text())
    assert report["result"]["passed"]
    assert report["dataset"]["name"] == NAME


def test_a_project_comes_from_its_access_point_by_copy_and_through_the_worker(
    airflow_home: Any, project: Path, s3_server: stack.S3Server, bucket_name: str
) -> None:
    """Its ARN is one of several in the connection, and there is no connection to the website."""
    folder = Path(s3_server.folder) / bucket_name / NAME
    upstream = (s3_server.endpoint, s3_server.access_key, s3_server.secret_key)
    identities = {
        "AKIAREADER": Identity("reader", "reader-secret"),
        "ASIAROLE": Identity("worker", "role-secret", "role"),
    }
    with AccessPoint(project, upstream=upstream, identities=identities) as aws:
        points = {"mimic-cxr-jpg/2.1.0": "mimic-cxr-jpg-v2-1-0-02", NAME: "tiny-records-v1-0-01"}
        env = {"AIRFLOW_CONN_PHYSIONET_S3": connection(aws, "AKIAREADER", physionet_access_point=points)}

        def mirror(writer: str, **conf: Any) -> str:
            keys = env | {"AIRFLOW_CONN_AWS_DEFAULT": connection(aws, writer)}
            aws.counts.clear()
            conf = {"dag": "physionet_project", "project": NAME, **conf}
            code, log = test_access_point.run(airflow_home, bucket_name, keys, **conf)
            assert code == 0, log[-6000:]
            return log

        log = mirror("AKIAREADER", include=["hosp/*.csv.gz", "waves/**"])
        assert "source: PhysioNet's access point, copied inside S3, as " in log
        chosen = {path: data for path, data in FILES.items() if path.startswith(("hosp/", "waves/"))}
        assert stored(folder) == chosen | {"LICENSE.txt": FILES["LICENSE.txt"]}
        assert "42 of 42 selected files verified (checksum)" in log
        assert f"{sum(map(len, chosen.values())):,} bytes as listed" in log
        assert len(chosen) < aws.counts["COPY", 200] <= len(chosen) + 2  # and the trial, once or twice

        # The rest, and what was damaged meanwhile; now PhysioNet's user may not write the bucket.
        (folder / "hosp/lab events+%20 50%.csv.gz").write_bytes(b"x" * 7000)
        aws.read_only.add("AKIAREADER")
        log = mirror("ASIAROLE", source="s3")
        assert "source: PhysioNet's access point, through the worker, as " in log
        assert stored(folder) == FILES
        assert "44 of 44 selected files verified (checksum)" in log
        reports = [json.loads(file.read_text()) for file in folder.glob("_mirror/runs/*/report.json")]
        fetched = {report["way"]["mode"]: report["transfer"]["images"] for report in reports}
        assert fetched == {"copy": len(chosen), "through": 2}


def test_an_audit_names_what_differs_its_repair_and_a_cleanup_take_a_project(
    airflow_home: Any, bucket_name: str, s3_server: stack.S3Server
) -> None:
    folder = Path(s3_server.folder) / bucket_name / NAME
    code, log = run(airflow_home, "physionet_project", bucket_name, project=NAME, include=["icu/*", "hosp/*"])
    assert code == 0, log[-4000:]
    (folder / "icu/Überwachung.csv.gz").write_bytes(b"x" * 15_000)
    code, log = run(airflow_home, "mimic_cxr_audit", bucket_name, project=NAME)
    assert code != 0
    assert "1 wrong bytes of 4 files looked at" in log  # the licence is there too
    assert f"Trigger this audit with repair=true, or physionet_project{'.'}" in log
    with closing(s3_server.client()) as client:
        bucket = Bucket.open(s3_server.session(), bucket_name, NAME, endpoint_url=client.meta.endpoint_url)
    layout = next(RunLayout.of_folder(name) for name in bucket.folders(RUNS) if name.startswith("mimic_cxr_audit"))
    found = load(bucket, layout.audit_json, Audit)
    assert found is not None
    request = Request.from_params({"project": NAME, "bucket": bucket_name})
    conf = audit.repair_params(bucket, found, request)
    assert conf["include"] == ["icu/Überwachung.csv.gz"]
    code, log = run(airflow_home, "physionet_project", **conf)
    assert code == 0, log[-4000:]
    assert (folder / "icu/Überwachung.csv.gz").read_bytes() == FILES["icu/Überwachung.csv.gz"]

    code, log = run(airflow_home, "mimic_cxr_cleanup", bucket_name, project=NAME, what="prefix", dry_run=True)
    assert code == 0, log[-4000:]
    assert "'files': 5" in log  # three, the licence and SHA256SUMS.txt


@pytest.mark.parametrize(
    ("conf", "task", "text"),
    [
        ({"project": NAME, "include": ["hospp/*"]}, "plan", "include: no file of this project matches 'hospp/*'"),
        ({"project": NAME, "exclude": ["icu"]}, "plan", "For all that is in a folder, write icu/**."),
        ({"project": "nothing/9.9"}, "check_access", "nothing/9.9"),
        ({"project": "without-sums/1.0"}, "check_access", "SHA256SUMS.txt"),
    ],
    ids=["glob", "folder", "unknown project", "no checksums"],
)
def test_what_cannot_be_done_is_said_before_anything_is_fetched(
    airflow_home: Any, bucket_name: str, s3_server: stack.S3Server, conf: dict[str, Any], task: str, text: str
) -> None:
    code, log = run(airflow_home, "physionet_project", bucket_name, **conf)
    assert code != 0
    assert text in log
    assert states(airflow_home, "physionet_project")[task] == ["failed"]
    found = stored(Path(s3_server.folder) / bucket_name / conf["project"])
    assert set(found) <= {"LICENSE.txt"}


def test_a_dry_run_fetches_nothing_and_a_refused_plan_ends_green(
    airflow_home: Any, bucket_name: str, s3_server: stack.S3Server
) -> None:
    folder = Path(s3_server.folder) / bucket_name / "elsewhere"
    conf = {"project": NAME, "prefix": "elsewhere"}
    code, log = run(airflow_home, "physionet_project", bucket_name, **conf, dry_run=True)
    assert code == 0, log[-4000:]
    assert "files selected" in log
    with airflow_home.answering("physionet_project", "Reject") as person:
        code, log = run(airflow_home, "physionet_project", bucket_name, **conf, approve_above_gb=0.000001)
        page, _ = person.communicate(timeout=60)
    assert code == 0, log[-4000:] + page
    assert "Files selected | 44" in page
    assert set(stored(folder)) == {"LICENSE.txt"}
