"""Two of the demo's projects by every way, with the commands of docs/any-project.md."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from demo import stack
from physionet_mirror.dataset import SUMS
from tests.dags.test_access_point import in_a_shell

PROJECTS = {"mimiciv": "mimiciv/3.1", "cxr": "mimic-cxr/2.1.0"}
WAYS = {"website": "download", "copied": "copy", "through": "through"}
"""The prefix of the commands' runs, and the mode that their plans and reports name."""
TRIGGER = "airflow dags trigger physionet_project --conf"


def blocks_on_the_page() -> list[list[str]]:
    """The commands of the page for the demo, one list a way, without the leading `source`."""
    _, _, text = (stack.ROOT / "docs" / "any-project.md").read_text().partition("## On the demo")
    blocks = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
    return [[line for line in block.splitlines() if not line.startswith("source ")] for block in blocks]


def published(version: Path) -> dict[str, str]:
    """SHA-256 by path of what a version lists."""
    lines = (line.split(" ", 1) for line in (version / SUMS).read_text().splitlines())
    return {path: digest for digest, path in lines}


def stored(folder: Path) -> dict[str, str]:
    """SHA-256 by path of what is in a mirror, hashed from the server's files."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {
        path: hashlib.sha256(file.read_bytes()).hexdigest()
        for path, file in files.items()
        if path != SUMS and not path.startswith("_mirror/")
    }


@pytest.mark.slow
def test_the_pages_commands_mirror_two_projects_from_the_website_by_copy_and_through_the_worker(
    airflow_home: Any,
    tiny_dataset: Path,
    s3_server: stack.S3Server,
    tmp_path: Path,
) -> None:
    """As written on the page, except for the trigger: here the runs are in the same process, without a scheduler."""
    bucket = s3_server.make_bucket("two-projects")
    with stack.access_point(tiny_dataset, s3_server, log=tmp_path / "access-point.log") as point:
        env = {**airflow_home.env, **point.variables(), "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(point.connection())}
        before: list[str] = []
        for block, (way, mode) in zip(blocks_on_the_page(), WAYS.items(), strict=True):
            connect = [line for line in block if not line.startswith(TRIGGER)]
            triggers = [line for line in block if line.startswith(TRIGGER)]
            assert len(triggers) == len(PROJECTS)
            before += [line for line in connect if line.startswith("POINTS=")]
            in_a_shell("\n".join([*before, *connect]), env)
            for trigger, (name, project) in zip(triggers, PROJECTS.items(), strict=True):
                conf = shlex.split(trigger)[-1].replace("mimic-demo", bucket.name)
                done = airflow_home.run("dags", "test", "physionet_project", "-c", conf, **env)
                assert done.returncode == 0, done.stdout[-4000:]
                log = done.stdout
                wanted, folder = published(tiny_dataset / project), bucket / way / name
                assert stored(folder) == wanted
                assert f"{len(wanted)} of {len(wanted)} selected files verified (checksum)" in log
                [report] = [json.loads(file.read_text()) for file in folder.glob("_mirror/runs/*/report.json")]
                assert (report["result"]["passed"], report["dataset"]["name"]) == (True, project)
                assert report["way"]["mode"] == mode
                assert not any(secret in log for _, secret in (point.copier, point.reader, point.worker))
