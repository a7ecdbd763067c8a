"""The wheel of a clean clone in a bare Airflow of each version: that Airflow, the wheel, a copy of the DAGs, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import stack
from demo.lookalike import Lookalike
from tests.conftest import READER

FROZEN = {
    "3.1.8": stack.ROOT / "tests" / "airflow" / "3.1.8.txt",
    "3.2.2": stack.ROOT / "tests" / "airflow" / "3.2.2.txt",
    "3.3.2": stack.ROOT / "constraints.txt",
}


def uv(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone of the last commit, with its wheel in ``dist``."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    subprocess.run(["git", "clone", "--quiet", stack.ROOT, folder], check=True, timeout=60)
    uv("build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", folder / "dist", folder)
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    """Python of an empty environment, which is 800 MB when Airflow is in it, and is not kept."""
    folder = tmp_path / "env"
    uv("venv", "--quiet", "--python", sys.executable, folder)
    yield folder / "bin" / "python"
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("version", FROZEN)
def test_the_wheel_mirrors_a_dataset_in_a_bare_airflow(
    version: str,
    clone: Path,
    python: Path,
    tmp_path: Path,
    physionet: Lookalike,
    s3_server: stack.S3Server,
    bucket_name: str,
) -> None:
    [wheel] = (clone / "dist").glob("*.whl")
    airflow = [f"apache-airflow=={version}", wheel, "--constraint", FROZEN[version]]
    uv("pip", "install", "--quiet", "--python", python, *airflow)

    login, password = READER
    connections = {
        "physionet_default": {"conn_type": "physionet", "host": physionet.url, "login": login, "password": password},
        "aws_default": s3_server.connection(),
    }
    dags, no_plugins = tmp_path / "dags", tmp_path / "plugins"
    no_plugins.mkdir()
    dags.mkdir()
    for file in (clone / "dags").glob("*.py"):
        shutil.copy(file, dags)
    env = stack.airflow_environment(tmp_path / "home", connections=connections, dags=dags, plugins=no_plugins)
    for name in ("CONNECT_ARGS", "SESSION_MAKER"):  # they name the demo's code, which is not installed there
        del env[f"AIRFLOW__DATABASE__SQL_ALCHEMY_{name}"]
    env.pop("PYTHONPATH", None)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python, "-m", "airflow", *arguments],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    assert run("version").split()[-1] == version
    run("db", "migrate")
    run("dags", "test", "mimic_cxr_jpg", "-c", json.dumps({"bucket": bucket_name, "sample_size": 5}))
    images = list((s3_server.folder / bucket_name / "mimic-cxr-jpg" / "2.1.0" / "files").rglob("*.jpg"))
    assert len(images) == 5
