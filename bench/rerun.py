"""A second run at full size: everything is stored and verified, which the run has to find out.

    python -m bench.rerun [--short] [--folder .state/bench/rerun]

377,110 images, in a listing server that answers as S3 does (bench/_listing.py). A real Airflow runs mimic_cxr_jpg with
select=all; the cache of verified objects and the index are in the bucket, as an earlier run leaves them. Time is from the
trigger to the run's end; S3 requests are those that the server has answered. Target: one LIST per 1,000 keys (once before
and once after), no HEAD of an image, at most 2 minutes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request as WebRequest
from urllib.request import urlopen

from bench._listing import image
from bench._measure import Check, command_line, cpu_of, environment, memory_of, python
from demo import stack, synthetic
from physionet_mirror.dataset import MIMIC_CXR_JPG

FULL_SIZE = 377_110
DAG = "mimic_cxr_jpg"
BUCKET = "bench"
KEYS = "bench-access-key", "bench-secret-key"
TARGET = 120.0


@dataclass(frozen=True)
class Listing:
    """A running listing server, with the interface of the stack's S3 server."""

    url: str
    service: stack.Service

    def connection(self) -> dict[str, Any]:
        """An Airflow connection to it."""
        extra = {"endpoint_url": self.url, "region_name": stack.REGION}
        return {"conn_type": "aws", "login": KEYS[0], "password": KEYS[1], "extra": extra}

    def counters(self, *, reset: bool = False) -> dict[str, int]:
        """Requests so far, by kind."""
        asked = WebRequest(f"{self.url}/_counters", method="DELETE" if reset else "GET")
        with urlopen(asked, timeout=30) as answer:
            found: dict[str, int] = json.load(answer)
        return found


@contextmanager
def listing(version: Path, log: Path, *, delay: float = 0.0) -> Iterator[Listing]:
    """Run the listing server with a version's SHA256SUMS.txt."""
    options = ["--version", str(version), "--bucket", BUCKET, "--prefix", MIMIC_CXR_JPG.name, "--delay", str(delay)]
    with stack.Service("The listing server", python("bench._listing", *options), log=log, env=environment()) as service:
        yield Listing(json.loads(service.wait_for(r"(?m)^\{.*\}$", 120)[0])["url"], service)


def open_bucket(server: Listing) -> Any:
    """The engine's `Bucket` for it."""
    import boto3

    from physionet_mirror.s3.bucket import Bucket

    session = boto3.Session(*KEYS, region_name=stack.REGION)
    return Bucket.open(session, BUCKET, MIMIC_CXR_JPG.name, endpoint_url=server.url)


def remember(server: Listing, version: Path) -> int:
    """Write to the bucket what a run leaves there after verifying everything; returns the number of images."""
    from physionet_mirror import index, manifest
    from physionet_mirror.files import File
    from physionet_mirror.layout import MANIFEST
    from physionet_mirror.verification import Verdict, Verified
    from physionet_mirror.verified_cache import Memory

    bucket = open_bucket(server)
    names = ["SHA256SUMS.txt", *MIMIC_CXR_JPG.tables.values()]
    frame = manifest.build(MIMIC_CXR_JPG, {name: version / name for name in names})
    out = BytesIO()
    sums = hashlib.sha256((version / "SHA256SUMS.txt").read_bytes()).hexdigest()
    manifest.write(frame, out, dataset=MIMIC_CXR_JPG, sums_sha256=sums)
    bucket.write(MANIFEST, out.getvalue())
    memory, verdict = Memory(), Verdict("checksum")
    for path, sha256 in zip(frame["path"], frame["sha256"], strict=True):
        entry = image(sha256)
        memory.record(File(path, sha256), entry.size, entry.etag)
        verdict.ok.append(Verified(path, entry.size, entry.etag, sha256))
    memory.save(bucket)
    index.update(bucket, verdict, BytesIO(out.getvalue()))
    return len(frame)


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure: ``{"images", "seconds", "requests", "cost", "tasks", …}``."""
    from physionet_mirror.s3.prices import request_cost

    dataset = folder / "physionet"
    synthetic.ensure(dataset, 20_000 if short else FULL_SIZE, seed=1, with_images=False)
    version = dataset / MIMIC_CXR_JPG.name
    home = folder / "airflow"
    shutil.rmtree(home, ignore_errors=True)
    with (
        listing(version, folder / "listing.log") as server,
        stack.physionet(dataset, log=folder / "physionet.log") as source,
    ):
        images = remember(server, version)
        connections = {"physionet_default": source.connection(), "aws_default": server.connection()}
        extra = {"PYTHONDONTWRITEBYTECODE": ""}
        with stack.airflow(home, connections=connections, extra_env=extra, timeout=300) as running:
            running.api.wait_for_dag(DAG, timeout=120)
            server.counters(reset=True)
            before, server_before = cpu_of(running.services.values()), cpu_of([server.service])
            begun = time.monotonic()
            run_id = running.api.trigger(DAG, {"bucket": BUCKET, "select": "all", "approve_above_gb": 0})
            scheduler_mb = 0.0
            while (state := running.api.state(DAG, run_id)) not in ("success", "failed"):
                scheduler_mb = max(scheduler_mb, memory_of(running.services["scheduler"]))
                if time.monotonic() - begun > 3600:
                    raise RuntimeError(f"The run was still {state} after an hour; logs below {home}")
                time.sleep(1)
            seconds = time.monotonic() - begun
            cpu, server_cpu = cpu_of(running.services.values()) - before, cpu_of([server.service]) - server_before
            tasks = running.api.task_instances(DAG, run_id)
            requests = server.counters()
    if state != "success":
        raise RuntimeError(f"The run is {state}; logs below {home}")
    billed = {
        kind: sum(n for name, n in requests.items() if name.split()[0] == kind)
        for kind in ("LIST", "HEAD", "GET", "PUT")
    }
    return {
        "images": images,
        "shards": sum(task["task_id"] == "mirror_shard.missing" for task in tasks),
        "seconds": seconds,
        "tasks": _spans(tasks),
        "requests": requests,
        "cost": request_cost(billed),
        "cpu": cpu,
        "server_cpu": server_cpu,
        "scheduler_mb": scheduler_mb,
    }


def _spans(tasks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each task; for mapped ones, from the first one's start to the last one's end."""
    found: dict[str, tuple[datetime, datetime]] = {}
    for task in tasks:
        if task["start_date"] and task["end_date"]:
            start, end = datetime.fromisoformat(task["start_date"]), datetime.fromisoformat(task["end_date"])
            first, last = found.get(task["task_id"], (start, end))
            found[task["task_id"]] = min(first, start), max(last, end)
    ordered = sorted(found.items(), key=lambda item: item[1][0])
    return {name: (end - start).total_seconds() for name, (start, end) in ordered}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    requests = ", ".join(f"{n:,} {kind}" for kind, n in sorted(result["requests"].items()))
    tasks = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result["tasks"].items())
    return "\n".join(
        [
            "| re-run, everything there | |",
            "|---|---|",
            f"| images, shards | {result['images']:,}, {result['shards']} |",
            f"| trigger to end | {result['seconds']:.0f} s |",
            f"| tasks, s | {tasks} |",
            f"| S3 requests | {requests} |",
            f"| their price | ${result['cost']:.4f} |",
            f"| CPU, Airflow and its tasks; S3 server | {result['cpu']:.0f} s; {result['server_cpu']:.0f} s |",
            f"| scheduler and its tasks, peak | {result['scheduler_mb']:.0f} MB |",
        ]
    )


def checks(result: dict[str, Any]) -> list[Check]:
    """The targets: no HEAD of an image, no more LISTs than pages, and at most 2 minutes."""
    seconds, heads = result["seconds"], result["requests"].get("HEAD image", 0)
    lists = result["requests"]["LIST"]
    # Listed once by the sensors and once by verify; each shard and each of verify's blocks ends within a page.
    most = 2 * (result["images"] // 1000 + 1) + result["shards"] + result["images"] // 20_000 + 10
    return [
        Check("re-run at full size: s from trigger to end", f"{seconds:.0f}", f"{TARGET:.0f}", seconds <= TARGET),
        Check("re-run at full size: HEADs of images", f"{heads}", "0", heads == 0),
        Check("re-run at full size: LISTs, before and after", f"{lists}", f"{most}", lists <= most),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command_line(__doc__, "rerun", run, table, checks, short="20,000 images", arguments=arguments)


if __name__ == "__main__":
    main()
