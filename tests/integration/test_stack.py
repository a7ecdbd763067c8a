"""The embedded stack leaves no process behind, however its owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.stack import ROOT, Service, StackError, plain_environment

# A service with a child that has left its session and would outlive it.
RUNAWAY = "import subprocess, time; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
OWNER = """
import sys, time
from pathlib import Path
from demo.stack import Service, plain_environment
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
