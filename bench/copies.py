"""Copies inside S3 (``source=s3``): copies a second and CPU a copy, and what that makes of 377,110 images.

    python -m bench.copies [--images 1000] [--at-once 16 64]

Local servers stand in for S3: ``rclone serve s3``, which copies the file on its disk, and moto, which answers from memory.
They share this machine's cores with the client, so copies a second are a lower bound and say little of AWS, whose answers
take longer and whose servers are not here; CPU a copy is the client's own, and is what counts there: it says how many
copies a second one core can ask for. Every copy is a HEAD and a COPY, as a shard makes them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from bench.planning import FULL_SIZE
from demo import stack
from physionet_mirror.dataset import MIMIC_CXR_JPG, SUMS
from physionet_mirror.files import File
from physionet_mirror.pace import Pace
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.access_point import AccessPoint
from physionet_mirror.transfer import Transfer

SIZES = {"rclone": 300_000, "moto": 1_000}
"""Bytes an image: moto keeps them in memory."""
AT_ONCE = 16, 64
"""Copies under way: a stream's share of 8 connections, and all of them in one process."""


def run(images: int = 1000, at_once: Sequence[int] = AT_ONCE) -> dict[str, Any]:
    """Measure and return ``{"images", "rows": [{"server", "at_once", "copies_s", "cpu_ms", "hours", "cpu_minutes"}]}``."""
    rows = []
    for server in SIZES:
        with tempfile.TemporaryDirectory() as folder, _server(server, Path(folder)) as (session, endpoint):
            rows += _measure(server, session, endpoint, images, at_once)
    return {"images": images, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"| copies inside S3, {result['images']:,} images | at once | copies/s | client CPU a copy, ms | "
        f"{FULL_SIZE:,} images: wall time here, h | client CPU, min |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['server']} | {row['at_once']} | {row['copies_s']:.0f} | {row['cpu_ms']:.1f} | {row['hours']:.1f} | "
        f"{row['cpu_minutes']:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def _measure(
    server: str, session: boto3.Session, endpoint: str, count: int, at_once: Sequence[int]
) -> Iterator[dict[str, Any]]:
    client = session.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="bench-source")
    origin = Bucket.open(session, "bench-source", MIMIC_CXR_JPG.name, endpoint_url=endpoint)
    data = os.urandom(SIZES[server])
    images = [
        File(f"files/p10/p10000000/s50000000/{n:08d}.jpg", hashlib.sha256(data).hexdigest()) for n in range(count)
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda image: origin.put(image.path, data, content_type="image/jpeg"), images))
    origin.write(SUMS, b"")  # what a source is asked for when it seems to be down
    for limit in at_once:
        name = f"bench-copies-{limit}"
        client.create_bucket(Bucket=name)
        bucket = Bucket.open(session, name, MIMIC_CXR_JPG.name, endpoint_url=endpoint)
        source = AccessPoint(origin, bucket, MIMIC_CXR_JPG)
        pace = Pace(limit, start=limit, received=lambda source=source: source.stats.received)
        before = _cpu()
        tally = Transfer(images, mover=source, pace=pace).run()
        cpu = _cpu() - before
        if tally.stored != count or sum(1 for _ in bucket.list("files/")) != count:
            raise RuntimeError(f"{server}: {tally.stored} of {count} images were copied")
        yield {
            "server": server,
            "at_once": limit,
            "copies_s": count / tally.seconds,
            "cpu_ms": 1000 * cpu / count,
            "hours": FULL_SIZE * tally.seconds / count / 3600,
            "cpu_minutes": FULL_SIZE * cpu / count / 60,
        }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def _server(kind: str, folder: Path) -> Iterator[tuple[boto3.Session, str]]:
    """An S3 server in a process of its own."""
    if kind == "rclone":
        with stack.s3_server(folder / "s3") as server:
            yield server.session(), server.endpoint
        return
    port = stack.free_port()
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with stack.Service("moto", command, log=folder / "moto.log", env=stack.plain_environment()) as service:
        service.wait_for(r"Running on http", 60)
        yield boto3.Session("benchaccess", "benchsecret", region_name=stack.REGION), f"http://127.0.0.1:{port}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--at-once", type=int, nargs="+", default=list(AT_ONCE), help="default %(default)s")
    options = parser.parse_args(arguments)
    print(table(run(options.images, options.at_once)))


if __name__ == "__main__":
    main()
