"""Tiny files: 20,000 of 2 kB through one process over the website's protocol, 20 ms an answer.

    python -m bench tiny [--short]

The look-alike answers each request after 20 ms, so that 8 connections can carry 8 / 20 ms = 400 files a second, whatever
the client does. One transfer fetches, proves and stores them in ``rclone serve s3``; servers and client share the machine.
*a run's first shard* begins with two connections, *a later shard* with the eight that the first one found. *bare* is
eight threads of ``http.client`` that fetch the files and do nothing else: what the look-alike gives on this machine.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import time
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from bench._measure import Check, command_line, peak_mb, scratch
from bench._one_process import PROJECT, mirror
from demo import stack

COUNT, SIZE = 20_000, 2_000
ROUND_TRIP = 0.020
CONNECTIONS = 8
ALLOWED = CONNECTIONS / ROUND_TRIP
"""Files a second."""
TARGET = 0.9


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure: ``{"files", "rows": [{"client", "seconds", "rate", "cpu", "peak"}]}``."""
    count = COUNT // 5 if short else COUNT
    work = scratch(folder, "work")
    version = work / "physionet" / PROJECT.name
    make_files(version, count)
    rows = []
    for client, start in (("bare", None), ("a run's first shard", None), ("a later shard", CONNECTIONS)):
        with (
            stack.s3_server(work / "s3") as s3,
            stack.physionet(
                work / "physionet", log=folder / "physionet.log", options=("--check-seconds", "0")
            ) as source,
        ):
            profile = json.dumps({"round_trip": ROUND_TRIP}).encode()
            urlopen(Request(f"{source.control_url}/profile", profile, method="PUT"), timeout=30).close()
            if client == "bare":
                rows.append({"client": client, **_bare(source, version / "SHA256SUMS.txt")})
                continue
            bucket = f"tiny-{start or 'first'}"
            s3.make_bucket(bucket)
            sums = str(version / "SHA256SUMS.txt")
            figures = mirror(source, s3, bucket, folder, sums=sums, connections=CONNECTIONS, start=start)
            shutil.rmtree(s3.folder / bucket)
        if figures["stored"] != count:
            raise RuntimeError(f"{figures['stored']} of {count} files were stored; see {folder}")
        rows.append({"client": client, **figures, "rate": count / figures["seconds"]})
    return {"files": count, "rows": rows}


def _bare(source: stack.PhysioNetServer, sums: Path) -> dict[str, Any]:
    """What eight threads fetch that keep their connections and their session, and nothing else."""
    where, root = urlsplit(source.url), f"/files/{PROJECT.name}/"
    login = b64encode(f"{source.user}:{source.password}".encode()).decode()
    paths = [line.split(" ", 1)[1] for line in sums.read_text().splitlines()]
    connections = [HTTPConnection(where.hostname or "", where.port) for _ in range(CONNECTIONS)]

    def fetch(connection: HTTPConnection, path: str, cookies: dict[str, str]) -> None:
        cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
        headers = {"User-Agent": "Wget/1.21 (bench)", "Authorization": f"Basic {login}", "Cookie": cookie}
        connection.request("GET", root + path, headers=headers)
        with connection.getresponse() as answer:
            answer.read()
            for given in answer.headers.get_all("Set-Cookie", ()):
                name, _, value = given.partition(";")[0].partition("=")
                cookies[name] = value

    def work(number: int) -> None:
        cookies: dict[str, str] = {}
        for path in paths[number::CONNECTIONS]:
            fetch(connections[number], path, cookies)

    begun, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(work, range(CONNECTIONS)))
    seconds = time.monotonic() - begun
    return {"seconds": seconds, "rate": len(paths) / seconds, "cpu": time.process_time() - cpu, "peak": peak_mb()}


def make_files(version: Path, count: int) -> None:
    """So many files of random bytes, in folders of a thousand, and their SHA256SUMS.txt."""
    rng, sums = random.Random(1), []
    for number in range(count):
        path = f"records/{number // 1000:03d}/{number:06d}.hea"
        data = rng.randbytes(SIZE)
        (version / path).parent.mkdir(parents=True, exist_ok=True)
        (version / path).write_bytes(data)
        sums.append(f"{hashlib.sha256(data).hexdigest()} {path}\n")
    (version / "SHA256SUMS.txt").write_text("".join(sums))


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"| {result['files']:,} files of {SIZE / 1000:.0f} kB, {1000 * ROUND_TRIP:.0f} ms an answer, {CONNECTIONS} connections "
        f"| seconds | files/s | of the {ALLOWED:.0f} allowed | client CPU ms a file | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['client']} | {row['seconds']:.1f} | {row['rate']:.0f} | {row['rate'] / ALLOWED:.0%} | "
        f"{1000 * row['cpu'] / result['files']:.2f} | {row['peak']:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """The share of what the connections allow."""
    return [
        Check(
            f"tiny: {row['client']}", f"{row['rate'] / ALLOWED:.0%}", f"{TARGET:.0%}", row["rate"] / ALLOWED >= TARGET
        )
        for row in result["rows"]
        if row["client"] != "bare"
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command_line(__doc__, "tiny", run, table, checks, short="4,000 files: the beginning weighs more", arguments=given)


if __name__ == "__main__":
    main()
