"""The embedded stack: an S3 server, a PhysioNet look-alike and a whole Airflow as child processes on 127.0.0.1.

    with s3_server(folder) as s3, physionet(root) as source:
        with airflow(home, connections=connections(s3, source)) as running:
            running.api.trigger("mimic_cxr_jpg", {"bucket": "demo"})

Each process runs under leash.py: it ends with the ``with`` block, and also if this process is killed.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import requests

from demo import sqlite

if TYPE_CHECKING:
    import boto3

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder."""
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "include"), str(ROOT / "plugins")])
"""This folder's code takes precedence over what is installed: ``make`` installs the project editable, for its entry points."""
POOL = "physionet"
STREAMS = 4
"""Shards streamed at once, and slots of the pool."""
REGION = "us-east-1"
_DATABASE = "airflow.db"


class StackError(RuntimeError):
    """A process of the stack did not start or ended too early; the message ends with its last log lines."""


# ------------------------------------------------------------------------------------------------------- processes


class Service:
    """One child process with everything it starts.

    Attributes:
        name: Its name in messages.
        log: The file to which its output is appended.
    """

    def __init__(self, name: str, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        self._command, self._env = [str(word) for word in command], dict(env)
        self._leash: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> Self:
        """Start it and return at once."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._leash = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("leash.py"), *self._command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C in the terminal must reach only this process
            )
        return self

    def ask_to_stop(self) -> None:
        """Let it and its children end, without waiting for them."""
        if self._leash and self._leash.stdin:
            self._leash.stdin.close()

    def stop(self) -> None:
        """End it and its children; does nothing if it has ended."""
        self.ask_to_stop()
        if self._leash:
            self._leash.wait()

    def wait(self) -> None:
        """Wait for its end; StackError if it fails."""
        assert self._leash is not None
        if self._leash.wait():
            raise StackError(f"{self.name} failed.\n{self._tail()}")

    @property
    def running(self) -> bool:
        return self._leash is not None and self._leash.poll() is None

    @property
    def process(self) -> psutil.Process:
        """The process itself, for tests that kill it."""
        assert self._leash is not None
        return psutil.Process(self._leash.pid).children()[0]

    def output(self) -> str:
        """What it has written since its start."""
        with self.log.open("rb") as opened:
            opened.seek(self._log_start)
            return opened.read().decode(errors="replace")

    def wait_for(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        """Wait until its output matches; StackError if it ends or the time is over."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.output())):
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} did not come up within {timeout:.0f} s.\n{self._tail()}")
            time.sleep(0.05)
        return found

    def check(self) -> None:
        """Raise StackError if it has ended."""
        if not self.running:
            raise StackError(f"{self.name} ended unexpectedly.\n{self._tail()}")

    def _tail(self) -> str:
        lines = self.output().splitlines()[-25:]
        return "\n".join([f"The last lines of {self.log}:", *(f"  {line}" for line in lines)])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def plain_environment() -> dict[str, str]:
    """This process's environment without settings of Airflow and AWS, and without a proxy for loopback."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "AWS_", "MIMIC_CXR_", "PHYSIONET_"))}
    return kept | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "PYTHONPATH": PYTHONPATH}


def free_port() -> int:
    """An unused port of 127.0.0.1, outside the range from which the kernel takes ports for outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


# -------------------------------------------------------------------------------------------------------- S3 server


@dataclass(frozen=True)
class S3Server:
    """A local S3 server over a folder: a bucket is a subfolder, an object a plain file.

    Attributes:
        endpoint: ``http://127.0.0.1:<port>``.
        folder: Folder of the buckets.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    folder: Path
    service: Service = field(repr=False)

    def session(self) -> boto3.Session:
        """A session with this server's keys; clients need ``endpoint_url=server.endpoint`` too."""
        import boto3

        return boto3.Session(self.access_key, self.secret_key, region_name=REGION)

    def client(self) -> Any:
        """A boto3 client for it."""
        return self.session().client("s3", endpoint_url=self.endpoint)

    def make_bucket(self, name: str) -> Path:
        """Make a bucket, unless it exists, and return its folder."""
        if not (self.folder / name).is_dir():
            self._maker.create_bucket(Bucket=name)
        return self.folder / name

    @cached_property
    def _maker(self) -> Any:
        return self.client()

    def connection(self) -> dict[str, Any]:
        """An Airflow connection of type ``aws`` to it."""
        extra = {"endpoint_url": self.endpoint, "region_name": REGION}
        return {"conn_type": "aws", "login": self.access_key, "password": self.secret_key, "extra": extra}


@contextmanager
def s3_server(folder: Path, *, log: Path | None = None) -> Iterator[S3Server]:
    """``rclone serve s3`` on a folder (made if missing), with keys of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    command = [
        Path(sys.executable).with_name("rclone"), "serve", "s3", folder,
        "--addr", "127.0.0.1:0",
        "--config", os.devnull,
        # Objects are plain files at once. Folder listings stay cached: with a short time every LIST hashes every file
        # again, without the cache concurrent PUTs lock up, and when a listing expires amid PUTs and DELETEs, now and then
        # a DELETE finds nothing and deletes nothing. A file changed by hand is still seen at once; one added or removed
        # by hand, not while the server runs.
        "--vfs-cache-mode", "off", "--dir-cache-time", "1000h",
    ]  # fmt: skip
    # Not on the command line, which ps shows; quoted, as rclone splits lists in variables at their commas.
    env = plain_environment() | {"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'}
    with Service("The S3 server (rclone)", command, log=log or folder.parent / "s3.log", env=env) as service:
        endpoint = service.wait_for(r"http://127\.0\.0\.1:\d+")[0]
        yield S3Server(endpoint, access_key, secret_key, folder, service)


# -------------------------------------------------------------------------------------------------------- PhysioNet


@dataclass(frozen=True)
class PhysioNetServer:
    """A PhysioNet look-alike in a process of its own.

    Attributes:
        url: ``http://127.0.0.1:<port>``.
        control_url: Where faults are set and counters read (see demo/lookalike/control.py).
    """

    url: str
    control_url: str
    user: str
    password: str = field(repr=False)
    service: Service = field(repr=False)

    def connection(self) -> dict[str, Any]:
        """An Airflow connection of type ``http`` to it."""
        return {"conn_type": "http", "host": self.url, "login": self.user, "password": self.password}


@contextmanager
def physionet(root: Path, *, log: Path | None = None, options: Sequence[str] = ()) -> Iterator[PhysioNetServer]:
    """Serve ``<root>/<slug>/<version>/`` by the look-alike, to one user; ``options`` go to ``python -m demo.lookalike``."""
    user, password = "demo-reader", secrets.token_urlsafe(12)
    command = [sys.executable, "-m", "demo.lookalike", "--root", root, "--user", user, *options]
    env = plain_environment() | {"LOOKALIKE_PASSWORD": password}
    with Service("The PhysioNet look-alike", command, log=log or root.parent / "physionet.log", env=env) as service:
        where = json.loads(service.wait_for(r"(?m)^\{.*\}$")[0])
        yield PhysioNetServer(where["url"], where["control_url"], user, password, service)


# ----------------------------------------------------------------------------------------------------- access point


@dataclass(frozen=True)
class AccessPointServer:
    """PhysioNet's S3 access point and the user's AWS account: a process of its own in front of the S3 server.

    Attributes:
        endpoint: ``http://127.0.0.1:<port>``, of S3 and of STS.
        name: Name of the access point.
        copier: Access key and secret of a verified IAM user who may also write the user's buckets.
        reader: The same of a verified IAM user who may not.
        worker: The same of a role that may, but that may not read the access point.
    """

    endpoint: str
    name: str
    copier: tuple[str, str] = field(repr=False)
    reader: tuple[str, str] = field(repr=False)
    worker: tuple[str, str] = field(repr=False)
    service: Service = field(repr=False)

    def connection(self) -> dict[str, Any]:
        """An Airflow connection of type ``aws`` to the user's buckets, with the worker's role."""
        sts = {"sts": {"endpoint_url": self.endpoint}}
        extra = {"endpoint_url": self.endpoint, "region_name": REGION, "service_config": sts}
        return {"conn_type": "aws", "login": self.worker[0], "password": self.worker[1], "extra": extra}

    def variables(self) -> dict[str, str]:
        """The environment variables that docs/access-point.md uses on the demo."""
        found = {"DEMO_ENDPOINT": self.endpoint, "DEMO_ACCESS_POINT": self.name}
        for who, (key, secret) in {"COPIER": self.copier, "READER": self.reader}.items():
            found |= {f"DEMO_{who}_KEY": key, f"DEMO_{who}_SECRET": secret}
        return found


@contextmanager
def access_point(
    datasets: Path, s3: S3Server, *, name: str = "mimic-cxr-jpg-v2-1-0-01", log: Path | None = None
) -> Iterator[AccessPointServer]:
    """Serve the datasets in ``<datasets>/<slug>/<version>/``, which must exist, by access points in front of ``s3``."""
    copier, reader, worker = (
        (kind + secrets.token_hex(8).upper(), secrets.token_hex(20)) for kind in ("AKIA", "AKIA", "ASIA")
    )
    identities = {
        copier[0]: ("user/copier", copier[1]),
        reader[0]: ("user/reader", reader[1]),
        worker[0]: ("role/worker", worker[1]),
    }
    given = {"upstream": (s3.access_key, s3.secret_key), "identities": identities, "read_only": [reader[0]]}
    command = [sys.executable, "-m", "demo.access_point", "--datasets", datasets, "--upstream", s3.endpoint]
    env = plain_environment() | {"ACCESS_POINT_SECRETS": json.dumps(given)}
    log = log or s3.folder.parent / "access-point.log"
    with Service("PhysioNet's access point", command, log=log, env=env) as service:
        endpoint = json.loads(service.wait_for(r"(?m)^\{.*\}$")[0])["endpoint"]
        yield AccessPointServer(endpoint, name, copier, reader, worker, service)


# ---------------------------------------------------------------------------------------------------------- Airflow


def connections(s3: S3Server, source: PhysioNetServer) -> dict[str, dict[str, Any]]:
    """The two connections that the DAGs need."""
    return {"physionet_default": source.connection(), "aws_default": s3.connection()}


def airflow_environment(
    home: Path,
    *,
    connections: Mapping[str, Mapping[str, Any]],
    dags: Path = ROOT / "dags",
    plugins: Path = ROOT / "plugins",
) -> dict[str, str]:
    """An environment in which ``airflow`` uses its own database and keys in ``home``.

    Airflow reads no airflow.cfg and none of the caller's settings.
    """
    keys = _keys(home)
    settings = {
        "CORE__DAGS_FOLDER": dags,
        "CORE__PLUGINS_FOLDER": plugins,
        "CORE__LOAD_EXAMPLES": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__FERNET_KEY": keys["fernet"],
        "CORE__TEST_CONNECTION": "Enabled",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": home / "passwords.json",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / _DATABASE}",
        "DATABASE__SQL_ALCHEMY_CONNECT_ARGS": "demo.sqlite.CONNECT_ARGS",
        "DATABASE__SQL_ALCHEMY_SESSION_MAKER": "demo.sqlite.SESSION_MAKER",
        "LOGGING__BASE_LOG_FOLDER": home / "logs",
        "API__SECRET_KEY": keys["api"],
        "API_AUTH__JWT_SECRET": keys["jwt"],
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    env = plain_environment() | {
        "AIRFLOW_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    env |= {f"AIRFLOW__{name}": str(value) for name, value in settings.items()}
    env |= {f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in connections.items()}
    return env


def airflow_command(*arguments: str) -> list[str]:
    """An ``airflow …`` command run by this interpreter, whatever PATH says."""
    return [sys.executable, "-m", "airflow", *arguments]


def migrate(home: Path, env: Mapping[str, str]) -> None:
    """Create or upgrade Airflow's database in ``home``, unless this version of Airflow has done so before."""
    from importlib.metadata import version

    marker, wanted = home / "migrated", version("apache-airflow")
    if marker.exists() and marker.read_text() == wanted:
        return
    done = subprocess.run(airflow_command("db", "migrate"), env=dict(env), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise StackError(f"airflow db migrate failed in {home}.\n{done.stdout}{done.stderr}")
    sqlite.prepare(home / _DATABASE)
    marker.write_text(wanted)


def _keys(home: Path) -> dict[str, str]:
    """Keys and password, created once for each home and readable by its owner only."""
    file = home / "keys.json"
    if not file.exists():
        home.mkdir(parents=True, exist_ok=True)
        fernet = urlsafe_b64encode(secrets.token_bytes(32)).decode()
        keys = {"fernet": fernet, "api": secrets.token_hex(32), "jwt": secrets.token_hex(32)}
        keys["password"] = secrets.token_urlsafe(9)
        for target, content in ((home / "passwords.json", {"admin": keys["password"]}), (file, keys)):
            target.touch(mode=0o600)
            target.write_text(json.dumps(content))
    return json.loads(file.read_text())


@dataclass(frozen=True)
class Airflow:
    """A running Airflow.

    Attributes:
        url: Of its UI and REST API.
        user, password: Credentials of its administrator.
        env: The environment of its processes, for ``airflow …`` commands against the same database.
        services: api-server, scheduler, dag-processor and triggerer by name; tests stop, kill and start them.
    """

    url: str
    user: str
    password: str = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    services: Mapping[str, Service]
    api: AirflowApi = field(repr=False)


@contextmanager
def airflow(
    home: Path,
    *,
    connections: Mapping[str, Mapping[str, Any]],
    dags: Path = ROOT / "dags",
    plugins: Path = ROOT / "plugins",
    extra_env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Iterator[Airflow]:
    """Run Airflow with LocalExecutor on SQLite in ``home``; yields it once it is healthy and has the pool ``physionet``."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = airflow_environment(home, connections=connections, dags=dags, plugins=plugins)
    env |= {
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__PARALLELISM": str(2 * STREAMS),
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
        "PHYSIONET_POOL": POOL,
        "PHYSIONET_STREAMS": str(STREAMS),
        **(extra_env or {}),
    }
    migrate(home, env)
    commands = {
        "api-server": ["api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        "dag-processor": ["dag-processor"],
        "scheduler": ["scheduler", "--skip-serve-logs"],
        "triggerer": ["triggerer", "--skip-serve-logs"],
    }
    services = {
        name: Service(f"Airflow's {name}", airflow_command(*command), log=home / f"{name}.log", env=env)
        for name, command in commands.items()
    }
    password = _keys(home)["password"]
    with ExitStack() as stack:
        stack.callback(lambda: [service.stop() for service in services.values()])
        stack.callback(lambda: [service.ask_to_stop() for service in services.values()])  # first, so all end at once
        for service in services.values():
            service.start()
        api = AirflowApi(url, "admin", password)
        _wait_until_healthy(api, services, timeout)
        api.make_pool(POOL, STREAMS)
        yield Airflow(url, "admin", password, env, services, api)


def _wait_until_healthy(api: AirflowApi, services: Mapping[str, Service], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not api.healthy():
        for service in services.values():
            service.check()
        if time.monotonic() > deadline:
            raise StackError(
                f"Airflow was not healthy within {timeout:.0f} s; see {services['api-server'].log.parent}."
            )
        time.sleep(0.2)


class AirflowApi:
    """The part of Airflow's REST API that the demo and the tests use; raises requests.HTTPError with the answer's text."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self._user, self._password = url, user, password
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, no .netrc

    def healthy(self) -> bool:
        """Whether database, scheduler, triggerer and DAG processor all report that they are healthy."""
        try:
            answer = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=5)
            return answer.ok and all(part["status"] == "healthy" for part in answer.json().values())
        except (requests.RequestException, ValueError):
            return False

    def login(self) -> None:
        """Get a token; `call` does so before the first call and when the token has expired."""
        credentials = {"username": self._user, "password": self._password}
        answer = self._session.post(f"{self.url}/auth/token", json=credentials, timeout=30)
        answer.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def call(self, method: str, path: str, json: object = None, **params: object) -> Any:
        """Make one call below ``/api/v2``; returns the decoded answer."""
        for attempt in (1, 2):
            if "Authorization" not in self._session.headers:
                self.login()
            url = f"{self.url}/api/v2/{path}"
            answer = self._session.request(method, url, json=json, params=params, timeout=60)
            if answer.status_code != 401 or attempt == 2:
                break
            del self._session.headers["Authorization"]
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text}", response=answer)
        return answer.json() if answer.content else None

    def make_pool(self, name: str, slots: int) -> None:
        """Make a pool, or set its slots."""
        body = {"name": name, "slots": slots, "include_deferred": False}
        try:
            self.call("POST", "pools", body)
        except requests.HTTPError as error:
            if error.response.status_code != 409:
                raise
            self.call("PATCH", f"pools/{name}", body)

    def forget_connection(self, conn_id: str) -> None:
        """Delete a connection from Airflow's database, if it exists."""
        try:
            self.call("DELETE", f"connections/{conn_id}")
        except requests.HTTPError as error:
            if error.response.status_code != 404:
                raise

    def wait_for_dag(self, dag_id: str, timeout: float = 60) -> None:
        """Wait until the DAG processor has parsed the DAG; StackError with the import errors otherwise."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.call("GET", f"dags/{dag_id}")
                return
            except requests.HTTPError as error:
                if error.response.status_code != 404:
                    raise
            broken = self.call("GET", "importErrors")["import_errors"]
            if broken or time.monotonic() > deadline:
                why = "\n".join(f"{e['filename']}:\n{e['stack_trace']}" for e in broken) or "it was not parsed in time"
                raise StackError(f"Airflow does not know the DAG {dag_id}: {why}")
            time.sleep(0.2)

    def trigger(self, dag_id: str, conf: Mapping[str, Any], *, run_id: str | None = None) -> str:
        """Unpause and trigger a DAG; returns the run's id."""
        self.wait_for_dag(dag_id)
        self.call("PATCH", f"dags/{dag_id}", {"is_paused": False}, update_mask="is_paused")
        body = {"logical_date": None, "conf": dict(conf)} | ({"dag_run_id": run_id} if run_id else {})
        return self.call("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"]

    def state(self, dag_id: str, run_id: str) -> str:
        """The run's state: queued, running, success or failed."""
        return self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"]

    def wait(self, dag_id: str, run_id: str, timeout: float = 600) -> str:
        """Wait for the run's end; returns its final state."""
        deadline = time.monotonic() + timeout
        while (state := self.state(dag_id, run_id)) not in ("success", "failed"):
            if time.monotonic() > deadline:
                raise StackError(f"The run {run_id} of {dag_id} was still {state} after {timeout:.0f} s.")
            time.sleep(0.3)
        return state

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances, each mapped one separately."""
        found: list[dict[str, Any]] = []
        while True:
            path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances"
            page = self.call("GET", path, limit=100, offset=len(found))
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def log(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1, attempt: int = 1) -> str:
        """A task's log as text, one event per line."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        content = self.call("GET", path, map_index=map_index, full_content=True)["content"]
        return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in content)

    def clear(self, dag_id: str, run_id: str, task_ids: Sequence[str | tuple[str, int]]) -> None:
        """Clear tasks, or single mapped instances as (task_id, map_index), as a person does in the UI."""
        ids = [task if isinstance(task, str) else list(task) for task in task_ids]
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": ids, "only_failed": False}
        self.call("POST", f"dags/{dag_id}/clearTaskInstances", body | {"reset_dag_runs": True})
