"""Runs processes and measures their cost; the targets that a part adds to the table of results."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from demo import stack

STATE = stack.ROOT / ".state" / "bench"
LONGEST = 3600.0
"""Seconds after which a measured process is terminated."""


@dataclass(frozen=True)
class Check:
    """One target: the measured figure, the wanted one, and whether the target is met."""

    what: str
    measured: str
    target: str
    ok: bool


@dataclass(frozen=True)
class Cost:
    """The cost of a process, including start and end of the interpreter.

    Attributes:
        seconds: Wall time.
        cpu: User and system seconds, including its children.
        peak_mb: Peak resident memory.
        output: Its standard output.
    """

    seconds: float
    cpu: float
    peak_mb: float
    output: str

    def json(self) -> dict[str, Any]:
        """The last line of its output."""
        found: dict[str, Any] = json.loads(self.output.strip().splitlines()[-1])
        return found


def scratch(folder: Path, name: str) -> Path:
    """An empty folder for temporary files, in memory if there is room, so that no disk is measured."""
    memory = Path("/dev/shm")  # noqa: S108
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 8e9
    for left in memory.glob("physionet-bench-*"):  # from a killed benchmark
        if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    found = memory / f"physionet-bench-{os.getpid()}" / name if roomy else folder / name
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir(parents=True)
    atexit.register(shutil.rmtree, found.parent if roomy else found, ignore_errors=True)
    return found


def environment(more: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment of measured processes: as in a deployment, libraries are imported from bytecode.

    With PYTHONDONTWRITEBYTECODE set, every process would compile all libraries again.
    """
    env = stack.plain_environment()
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**env, **more}


def python(module: str, *arguments: str) -> list[str]:
    """The command ``python -m module …`` for this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def measure(command: Sequence[str | Path], env: Mapping[str, str], log: Path, *, longest: float = LONGEST) -> Cost:
    """Run a process to its end.

    Raises:
        RuntimeError: It failed, or took longer than ``longest`` seconds; the message ends with its last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output = log.with_suffix(".out")
    peak = 0.0
    with output.open("wb") as out, log.open("wb") as err:
        begun = time.monotonic()
        process = subprocess.Popen([str(w) for w in command], env=dict(env), stdout=out, stderr=err, cwd=stack.ROOT)
        try:
            while True:
                # Not ru_maxrss, which survives exec and would include this process.
                peak = _peak_mb(process.pid) or peak
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() - begun > longest:
                    raise RuntimeError(f"{command[0]} took longer than {longest:.0f} s and was ended; see {log}")
                time.sleep(0.01)
            seconds = time.monotonic() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(
            f"{' '.join(map(str, command[:4]))} … ended with {process.returncode}; {log} ends so:\n{tail}"
        )
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peak, output.read_text(errors="replace"))


def rss_mb(pid: int | str = "self") -> float:
    """Current resident memory of a process, in MB."""
    return _status(pid, "VmRSS")


def peak_mb() -> float:
    """Peak resident memory of this process, since its start or the last `forget_peak`."""
    return _status("self", "VmHWM")


def forget_peak() -> None:
    """Reset the peak memory of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def command_line(
    doc: str | None,
    name: str,
    run: Callable[..., dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    checks: Callable[[dict[str, Any]], Sequence[Check]],
    *,
    short: str,
    arguments: Sequence[str] | None = None,
) -> None:
    """Command line of one part: run it, print its table, and exit with 0 if its targets are met.

    ``short`` is the help text of ``--short``.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=STATE / name)
    parser.add_argument("--short", action="store_true", help=short)
    options = parser.parse_args(arguments)
    result = run(options.folder.resolve(), short=options.short)
    print(table(result))
    sys.exit(not all(check.ok for check in checks(result)))


def cpu_of(services: Iterable[stack.Service]) -> float:
    """CPU seconds of these services and all their children, including those that have ended."""
    return sum(cpu_of_tree(service.process) for service in services)


def cpu_of_tree(root: psutil.Process) -> float:
    """CPU seconds of a process and all its children, including those that have ended."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_of(service: stack.Service) -> float:
    """Memory of a service and all its children in MB; memory shared by forked processes counts once."""
    total = 0
    try:
        root = service.process
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                total += process.memory_full_info().pss
    except psutil.NoSuchProcess:
        pass
    return total / 1e6


def alternating(
    cases: Sequence[str], rounds: int, once: Callable[[str, int], dict[str, float]]
) -> dict[str, list[dict[str, float]]]:
    """Call ``once(case, round)`` for each case in turn, round by round, so that disturbances affect all cases alike."""
    found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            found[case].append(once(case, number))
            figures = ", ".join(f"{name} {value:.3g}" for name, value in found[case][-1].items())
            print(f"  round {number + 1}, {case}: {figures}", file=sys.stderr, flush=True)
    return found


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def spread(rounds: Sequence[Mapping[str, float]], name: str) -> str:
    """``lowest-highest`` of one figure."""
    values = [one[name] for one in rounds]
    return f"{min(values):.0f}-{max(values):.0f}"


def _peak_mb(pid: int) -> float:
    try:
        return _status(pid, "VmHWM")
    except (OSError, IndexError):  # it has just ended
        return 0.0


def _status(pid: int | str, name: str) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{name}:")[1].split()[0]) / 1024
