"""deploy/airflow/setup.py in a real Airflow with the FAB auth manager, as in the stack, but on SQLite."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demo import stack

SETUP = stack.ROOT / "deploy" / "airflow" / "setup.py"
DOTENV = {
    "PHYSIONET_USERNAME": "reader",
    "PHYSIONET_PASSWORD": "p$ss wörd",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "kept/away",
    "AWS_REGION": "eu-central-1",
}

SECRET = (DOTENV["PHYSIONET_PASSWORD"], DOTENV["AWS_SECRET_ACCESS_KEY"])

# The steps one after the other in one process: Airflow is imported once, and a line of dashes ends each step.
STEPS = """
import runpy, sys
path, *steps = sys.argv[1:]
for step in steps:
    sys.argv = [path, step]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        print(f"---- {end.code}", flush=True)
"""

# What the administrator's hash, and Airflow's key, make of the words given; prints JSON.
LOOK = """
import json, sys
from airflow.models import Connection, Pool
from airflow.providers.fab.auth_manager.models import User
from airflow.utils.session import create_session
from werkzeug.security import check_password_hash

with create_session() as session:
    users = session.query(User).all()
    print(json.dumps({
        "users": {user.username: [role.name for role in user.roles] for user in users},
        "opens": [check_password_hash(user.password, word) for user in users for word in sys.argv[1:]],
        "pools": {pool.pool: pool.slots for pool in session.query(Pool)},
        "connections": {
            c.conn_id: [c.conn_type, c.host, c.login, c.password, c.extra_dejson]
            for c in session.query(Connection) if c.conn_id in ("physionet_default", "aws_default")
        },
    }))
"""


@pytest.fixture
def home(tmp_path: Path, migrated_home: Path) -> Path:
    home = tmp_path / "airflow"
    home.mkdir()
    for name in ("airflow.db", "keys.json", "passwords.json"):
        shutil.copy(migrated_home / name, home / name)
    return home


@pytest.fixture
def env(home: Path, tmp_path: Path) -> dict[str, str]:
    demo = tmp_path / "secrets" / "demo"
    demo.mkdir(parents=True)
    for name in ("physionet_password", "s3_access_key", "s3_secret_key"):
        (demo / name).write_text(f"the demo's {name}")
    return stack.airflow_environment(home, connections={}) | {
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "MIRROR_SECRETS": str(tmp_path / "secrets"),
    }


def python(env: dict[str, str], script: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def look(env: dict[str, str], *words: str) -> dict[str, Any]:
    return json.loads(python(env, LOOK, *words).splitlines()[-1])


def shown(said: str) -> str:
    [password] = re.findall(r"Airflow login:  admin  /  (\S+)", said)
    return password


def test_the_stack_is_set_up_once_and_each_start_again_changes_nothing(home: Path, env: dict[str, str]) -> None:
    said = python(env | DOTENV, STEPS, SETUP, "airflow", "airflow", "demo", "admin-password")
    assert re.findall(r"---- (\w+)", said) == ["0", "0", "1", "0"], said
    first, again, _, renewed, _ = re.split(r"---- \d\n", said)
    assert "Airflow login" not in again
    assert "would replace your own connection aws_default; nothing was changed" in said
    assert not any(secret in said for secret in SECRET)

    found = look(env, shown(first), shown(renewed))
    assert found["users"] == {"admin": ["Admin"]}
    assert found["opens"] == [False, True]
    assert found["pools"]["physionet"] == 4
    assert found["connections"] == {
        "physionet_default": ["http", "https://physionet.org", "reader", DOTENV["PHYSIONET_PASSWORD"], {}],
        "aws_default": ["aws", None, "AKIAEXAMPLE", "kept/away", {"region_name": "eu-central-1"}],
    }
    with sqlite3.connect(home / "airflow.db") as database:
        stored = "\n".join(database.iterdump())
    assert not any(secret in stored for secret in (*SECRET, shown(first), shown(renewed)))
