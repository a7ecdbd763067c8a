"""Runs one command and ends it when the parent process ends.

    python leash.py <command> …

Standard input is a pipe that the owner holds open. When it closes, because the owner closed it, crashed or was killed,
the command is asked to stop, and all processes that it started and left behind are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys

import psutil

GRACE = 8.0
"""Seconds between the request to stop and the kill."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    """Run the command until it or standard input ends; returns its exit status, or 128 + the signal that ended it."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # adopt the command's orphans, so that none escapes the tree
    command = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # in case this process itself is killed
    )
    owner_lives = True
    while owner_lives and command.poll() is None:
        readable, _, _ = select.select([0], [], [], 0.2)
        owner_lives = not readable or os.read(0, 1) != b""
    # Collected now: without a subreaper (macOS), orphans could not be found later.
    tree = psutil.Process().children(recursive=True)
    if command.poll() is None:
        command.terminate()
        try:
            command.wait(GRACE)
        except subprocess.TimeoutExpired:
            command.kill()
    while rest := [p for p in {*tree, *psutil.Process().children(recursive=True)} if p.is_running()]:
        for process in rest:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        tree = psutil.wait_procs(rest, timeout=2)[1]
    status = command.wait()
    return status if status >= 0 else 128 - status


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process on Linux; does nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
