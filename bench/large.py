"""One large file over eight connections, beside rclone and aria2c, as PhysioNet is reported: 650 kB/s a connection.

    python -m bench large [--short]

The look-alike serves one file of 200 MB at 650 kB/s a connection and 60 ms a round trip, with its password check, and
``rclone serve s3`` takes it. *mirror* is one transfer with at most 8 connections: its first shard, whose pace begins with
two, and a later one, which begins with the eight that the first one found; its size is known, as the plan asks for it.
``rclone copyto --multi-thread-streams 8`` also ends in S3; its multi-thread cutoff is lowered to 64 MiB (by default this
file would come in one stream). ``aria2c -x 8`` ends on a disk. Neither proves what it has fetched.

One connection is measured on a file of a sixteenth of the size, in one stream. Seconds of the mirror count from the first
request, those of the others over the whole process.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._measure import Check, command_line, environment, measure, scratch
from bench._one_process import PROJECT, mirror
from bench.pace import _counters as counters_of
from demo import stack

RATE = 650_000
"""Bytes a second of each connection."""
CONNECTIONS = 8
PART = 16
"""One connection fetches this part of the size: all of it would take five minutes."""
SIZE, SHORT = 200_000_000, 72_000_000
TARGET = 7.0
"""Times one connection."""
MEMORY = 128
"""MB above the idle process."""
FILE = "waves.bin"


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure: ``{"size", "one", "rows": [{"client", "seconds", "rate", "sent", "peak", "memory"}]}``."""
    size = SHORT if short else SIZE
    work = scratch(folder, "work")
    rows = []
    one = _measure(folder, work, "mirror-1", size // PART)
    for client in ("mirror", "mirror-next", "rclone", *(["aria2c"] if shutil.which("aria2c") else [])):
        rows.append(_measure(folder, work, client, size))
        print(f"{client}: {rows[-1]['rate']:.2f} MB/s", file=sys.stderr, flush=True)
    return {"size": size, "one": one, "rows": rows}


def _measure(folder: Path, work: Path, client: str, size: int) -> dict[str, Any]:
    root = work / "physionet"
    shutil.rmtree(root, ignore_errors=True)
    version = root / PROJECT.name
    version.mkdir(parents=True)
    rng = random.Random(size)
    data = b"".join(rng.randbytes(1_000_000) for _ in range(size // 1_000_000))
    size = len(data)
    digest = hashlib.sha256(data).hexdigest()
    (version / FILE).write_bytes(data)
    del data
    (version / "SHA256SUMS.txt").write_text(f"{digest} {FILE}\n")
    options = ("--as-users-report-it", "--connections", "16")
    with (
        stack.s3_server(work / "s3") as s3,
        stack.physionet(root, log=folder / "physionet.log", options=options) as source,
    ):
        bucket = client
        s3.make_bucket(bucket)
        stored = s3.folder / bucket / PROJECT.name / FILE
        if client.startswith("mirror"):
            figures = mirror(
                source,
                s3,
                bucket,
                folder,
                sums=str(version / "SHA256SUMS.txt"),
                sizes=True,
                connections=1 if client == "mirror-1" else CONNECTIONS,
                start=CONNECTIONS if client == "mirror-next" else None,
            )
        elif client == "rclone":
            cost = measure(*_rclone(s3, source, bucket), folder / "rclone.log")
            figures = {"seconds": cost.seconds, "cpu": cost.cpu, "peak": cost.peak_mb}
        else:
            stored = work / FILE
            stored.unlink(missing_ok=True)
            cost = measure(_aria2c(source, work), environment(), folder / "aria2c.log")
            figures = {"seconds": cost.seconds, "cpu": cost.cpu, "peak": cost.peak_mb}
        with stored.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != digest:
            raise RuntimeError(f"{client} stored other bytes; see {folder}")
        sent = counters_of(source)["bytes"]
    return {"client": client, **figures, "rate": size / figures["seconds"] / 1e6, "sent": sent / size}


def _rclone(s3: stack.S3Server, source: stack.PhysioNetServer, bucket: str) -> tuple[list[str], dict[str, str]]:
    basic = b64encode(f"{source.user}:{source.password}".encode()).decode()
    env = {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_FROM_TYPE": "http",
        "RCLONE_CONFIG_FROM_URL": f"{source.url}/files/{PROJECT.name}/",
        "RCLONE_CONFIG_FROM_HEADERS": f"Authorization,Basic {basic}",
        "RCLONE_CONFIG_TO_TYPE": "s3",
        "RCLONE_CONFIG_TO_PROVIDER": "Other",
        "RCLONE_CONFIG_TO_REGION": stack.REGION,
        "RCLONE_CONFIG_TO_ENDPOINT": s3.endpoint,
        "RCLONE_CONFIG_TO_ACCESS_KEY_ID": s3.access_key,
        "RCLONE_CONFIG_TO_SECRET_ACCESS_KEY": s3.secret_key,
    }
    command = [
        str(Path(sys.executable).with_name("rclone")), "copyto", f"from:{FILE}", f"to:{bucket}/{PROJECT.name}/{FILE}",
        "--multi-thread-streams", str(CONNECTIONS), "--multi-thread-cutoff", "64M", "--s3-upload-concurrency",
        str(CONNECTIONS), "--user-agent", "Wget/1.21 (rclone)",
    ]  # fmt: skip
    return command, environment(env)


def _aria2c(source: stack.PhysioNetServer, folder: Path) -> list[str]:
    return [
        "aria2c", "-x", str(CONNECTIONS), "-s", str(CONNECTIONS), "-k", "1M", "--http-auth-challenge=false",
        f"--http-user={source.user}", f"--http-passwd={source.password}", "--user-agent=Wget/1.21 (aria2c)",
        "--file-allocation=none", f"--dir={folder}", f"{source.url}/files/{PROJECT.name}/{FILE}",
    ]  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    one = result["one"]
    lines = [
        f"| one file of {result['size'] / 1e6:.0f} MB | connections | seconds | MB/s | x one connection | bytes sent / size "
        "| client CPU s | peak MB |",
        "|---|---|---|---|---|---|---|---|",
        f"| mirror, {result['size'] / PART / 1e6:.0f} MB of it in one stream | 1 | {one['seconds']:.1f} | "
        f"{one['rate']:.2f} | 1 | {one['sent']:.2f} | {one['cpu']:.1f} | {one['peak']:.0f} |",
    ]
    lines += [
        f"| {_NAMES[row['client']]} | {CONNECTIONS} | {row['seconds']:.1f} | {row['rate']:.2f} | "
        f"{row['rate'] / one['rate']:.1f} | {row['sent']:.2f} | {row['cpu']:.1f} | {row['peak']:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


_NAMES = {
    "mirror": "mirror, a run's first shard",
    "mirror-next": "mirror, a later shard",
    "rclone": "rclone copyto --multi-thread-streams 8",
    "aria2c": "aria2c -x 8 (to a disk)",
}


def checks(result: dict[str, Any]) -> list[Check]:
    """Times one connection, bytes that PhysioNet sent, and memory."""
    found = []
    for row in result["rows"]:
        if row["client"].startswith("mirror"):
            times = row["rate"] / result["one"]["rate"]
            name = _NAMES[row["client"]]
            found += [
                Check(f"large: {name}: x one connection", f"{times:.1f}", f"{TARGET:.0f}", times >= TARGET),
                Check(f"large: {name}: bytes sent / size", f"{row['sent']:.2f}", "1.1", row["sent"] <= 1.1),
                Check(f"large: {name}: MB above idle", f"{row['memory']:.0f}", f"{MEMORY}", row["memory"] <= MEMORY),
            ]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command_line(__doc__, "large", run, table, checks, short="72 MB: the beginning weighs more", arguments=given)


if __name__ == "__main__":
    main()
