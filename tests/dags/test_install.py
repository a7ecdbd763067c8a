"""The ways of installing that docs/deploy.md names: folders, wheel, both; nothing else is installed there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo import stack
from demo.lookalike import Lookalike
from physionet_mirror import __version__
from tests.conftest import READER, AirflowHome

LOOK = Path(__file__).with_name("installed.py")


@pytest.fixture(scope="module")
def airflow_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with all packages of this one except ours."""
    return _environment(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def with_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with all packages of this one, and our wheel."""
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--python", sys.executable]
    subprocess.run([*build, "--out-dir", root / "dist", stack.ROOT], check=True, timeout=240)
    [wheel] = (root / "dist").glob("*.whl")
    assert wheel.name == f"physionet_mirror-{__version__}-py3-none-any.whl"
    python = _environment(root)
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", python, wheel]
    subprocess.run(install, check=True, timeout=240)
    return python


def _environment(folder: Path) -> Path:
    venv.create(folder / "env", symlinks=True)
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "physionet" not in package.name:
            (site / package.name).symlink_to(package)
    return folder / "env" / "bin" / "python"


@dataclass(frozen=True)
class Way:
    """How an Airflow finds the project; in ``pythonpath``, ``{root}`` and ``{other}`` stand for folders."""

    pythonpath: list[str]
    plugins: bool = True
    wheel: bool = False


WAYS = {
    "folders": Way(["{root}", "{root}/include"]),
    "folders, the project root alone on the path": Way(["{root}"]),
    "folders, nothing on the path": Way([]),
    "folders, behind another include package": Way(["{other}", "{root}", "{root}/include"]),
    "wheel": Way([], plugins=False, wheel=True),
    "wheel and folders": Way(["{root}", "{root}/include"], wheel=True),
    "wheel and plugins folder": Way([], wheel=True),
}


def environment(way: Way, folder: Path, home: Path, connections: dict[str, Any]) -> dict[str, str]:
    (folder / "other" / "include").mkdir(parents=True)
    (folder / "other" / "include" / "__init__.py").touch()
    (folder / "no-plugins").mkdir()
    env = stack.airflow_environment(
        home, connections=connections, plugins=stack.ROOT / "plugins" if way.plugins else folder / "no-plugins"
    )
    for name in ("CONNECT_ARGS", "SESSION_MAKER"):  # they name the demo's code, which is not installed there
        del env[f"AIRFLOW__DATABASE__SQL_ALCHEMY_{name}"]
    path = [entry.format(root=stack.ROOT, other=folder / "other") for entry in way.pythonpath]
    return env | {"PYTHONPATH": os.pathsep.join(path)}


def run(*command: str | Path, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=cwd, text=True, capture_output=True, timeout=240, check=False)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_airflow_finds_dags_page_and_connection_type(
    way: Way, airflow_alone: Path, with_wheel: Path, tmp_path: Path, migrated_home: Path
) -> None:
    python = with_wheel if way.wheel else airflow_alone
    done = run(python, LOOK, cwd=tmp_path, env=environment(way, tmp_path, migrated_home, {}))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dag_errors"] == {}
    assert set(found["dags"]) == {file.stem for file in (stack.ROOT / "dags").glob("*.py")}
    assert found["plugin_errors"] == {}
    assert found["plugins"].count("physionet") == 1
    assert found["links"]
    assert found["connection_type"] is way.wheel
    from_wheel = way.wheel and not way.pythonpath
    assert Path(found["engine"]).is_relative_to(python.parents[1] if from_wheel else stack.ROOT / "include")


def test_the_wheel_and_the_dags_folder_mirror_a_dataset(
    with_wheel: Path,
    tmp_path: Path,
    airflow_home: AirflowHome,
    physionet: Lookalike,
    s3_server: stack.S3Server,
    bucket_name: str,
) -> None:
    login, password = READER
    connections = {
        "physionet_default": {"conn_type": "physionet", "host": physionet.url, "login": login, "password": password},
        "aws_default": s3_server.connection(),
    }
    env = environment(WAYS["wheel"], tmp_path, airflow_home.path, connections)
    conf = json.dumps({"bucket": bucket_name, "sample_size": 5})
    done = run(with_wheel, "-m", "airflow", "dags", "test", "mimic_cxr_jpg", "-c", conf, cwd=tmp_path, env=env)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    images = list((s3_server.folder / bucket_name / "mimic-cxr-jpg" / "2.1.0" / "files").rglob("*.jpg"))
    assert len(images) == 5


def test_airflow_3_0_is_told_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow" / "__init__.py").write_text('__version__ = "3.0.6"\n')
    path = os.pathsep.join([str(tmp_path), str(stack.ROOT / "plugins")])
    done = subprocess.run(
        [sys.executable, "-c", "import physionet_airflow"],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "ImportError: physionet_airflow needs Apache Airflow 3.1 or newer, and this is 3.0.6" in done.stderr
