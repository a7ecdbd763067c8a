"""The embedded stack leaves no process behind, no matter how its owner ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from demo import sqlite
from demo.stack import ROOT, Service, StackError, plain_environment

# A service with a child in a session of its own, which would outlive it.
RUNAWAY = "import subprocess, time; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
OWNER = """
import signal, sys, time
from pathlib import Path
from demo.stack import Service, plain_environment
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
service = Service("runaway", [sys.executable, "-c", sys.argv[1]], log=Path(sys.argv[2]), env=plain_environment())
with service:
    print(service.wait_for(r"(\\d+)\\n")[1], flush=True)
    time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        psutil.Process(pid).wait(15)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_stop_ends_the_whole_tree(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"{RUNAWAY}; time.sleep(600)"]
    with Service("runaway", command, log=tmp_path / "log", env=plain_environment()) as service:
        child = int(service.wait_for(r"(\d+)\n")[1])
        assert psutil.pid_exists(child)
    assert gone(child)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_nothing_outlives_an_owner_that_is_killed(tmp_path: Path, ending: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, f"{RUNAWAY}; time.sleep(600)", tmp_path / "log"],
        env=plain_environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout
    child = int(owner.stdout.readline())
    os.kill(owner.pid, ending)
    owner.wait(15)
    assert gone(child)


def test_a_service_that_dies_early_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such option'); raise SystemExit(3)"]
    with (
        Service("The thing", command, log=tmp_path / "log", env=plain_environment()) as service,
        pytest.raises(StackError, match=r"The thing ended unexpectedly.\n.*\n  no such option"),
    ):
        service.wait_for("never")


def _write_in_a_savepoint(connection: sqlite3.Connection, until: float) -> int:
    """Run transactions like those by which Airflow creates a backfill's runs: a SAVEPOINT, a read, a write."""
    done = 0
    cursor = connection.cursor()
    while time.monotonic() < until:
        cursor.execute("SAVEPOINT one")
        cursor.execute("SELECT count(*) FROM runs").fetchone()
        time.sleep(0.002)
        cursor.execute("INSERT INTO runs VALUES (?)", (done,))
        cursor.execute("RELEASE one")
        connection.commit()
        done += 1
    return done


@pytest.mark.parametrize("patient", [True, False])
def test_two_who_write_to_sqlite_wait_for_each_other(tmp_path, patient):
    file = tmp_path / "airflow.db"
    options = sqlite.CONNECT_ARGS if patient else {"timeout": sqlite.PATIENCE}
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE runs (number)")
    sqlite.prepare(file)
    until = time.monotonic() + 1.0

    def write() -> int:
        with closing(sqlite3.connect(file, **options)) as connection:
            return _write_in_a_savepoint(connection, until)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        if not patient:  # shows what happens without `demo.sqlite`
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                _ = [writer.result() for writer in writers]
            return
        done = [writer.result() for writer in writers]
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (sum(done),)
    assert min(done) >= 1
