"""Streaming without limits: how fast one task process moves images when the network is not the bottleneck.

    python -m bench.streaming [--short] [--folder .state/bench/streaming] [--clients mirror rclone-16 …]

nginx serves the files on loopback, ``rclone serve s3`` accepts them (or, to measure the client's cost alone, a sink that
only counts). Each figure is the median of rounds that alternate between the clients, each in its own process. *mirror* is
what a stream task runs, ``mirror_shard.stream_shard`` with at most 16 connections and its adaptive pace, starting at two
as the first shard of a run does; *mirror-next* is a later shard of the same run, which starts with the number that the
first one found.

Images a second of the Python clients count from the first request: a task process starts once per shard, and that cost
is in the part airflow_share. CPU is user and system time of the client only. *memory* is the peak above the same process
before its first image. Servers and clients share the machine, so that the cost of both lowers images a second; the CPU
column does not depend on that. Objects are written to memory (/dev/shm) if there is room, because disks differ more than
clients do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import _servers, peers
from bench._measure import (
    STATE,
    Check,
    alternating,
    environment,
    forget_peak,
    measure,
    medians,
    peak_mb,
    python,
    rss_mb,
    scratch,
    spread,
)
from bench.pace import make_images
from demo import stack

if TYPE_CHECKING:
    from physionet_mirror.dataset import Dataset
    from physionet_mirror.mover import Mover
    from physionet_mirror.s3.bucket import Bucket

CONNECTIONS = 16
SIZES = {"300 KB": (1000, 300_000), "1.62 MB": (400, 1_620_000)}
"""Number of images and their mean size in bytes."""
CLIENTS = ("mirror", "mirror-next", "rclone-8", "rclone-16", "rclone-32", "script-4", "script-16", "physionet+s5cmd")
SINK_CLIENTS = ("mirror", "mirror-next", "rclone-16", "script-16")
LONG = 10_000
"""Images of the one long shard whose memory must stay flat."""


def run(folder: Path, *, short: bool = False, clients: Sequence[str] = CLIENTS, rounds: int = 5) -> dict[str, Any]:
    """Measure: ``{"cases": [{"size", "to", "client", "rate", "cpu", …}], "long": {…}}``."""
    rounds = 2 if short else rounds
    cases: list[dict[str, Any]] = []
    with (
        stack.s3_server(scratch(folder, "s3"), log=folder / "s3.log") as s3,
        _servers.sink(folder / "sink", s3) as taker,
    ):
        for size, (count, mean) in SIZES.items():
            count = count // 5 if short else count
            root = folder / f"images-{mean}"
            make_images(root, count, mean)
            with _servers.files(folder / "nginx", root) as url:
                for to, endpoint in (("rclone serve s3", s3.endpoint), ("sink", taker)):
                    if to == "sink" and size != "300 KB":
                        continue
                    chosen = [c for c in clients if to != "sink" or c in SINK_CLIENTS]
                    mover = _Mover(folder, root, url, s3, endpoint, to != "sink")
                    found = alternating(chosen, rounds, mover)
                    cases += [
                        {
                            "size": size,
                            "images": count,
                            "to": to,
                            "client": client,
                            **medians(one),
                            "rates": spread(one, "rate"),
                        }
                        for client, one in found.items()
                    ]
            shutil.rmtree(root)
        long = _long(folder, s3, taker, 600 if short else LONG)
    return {"cases": cases, "rounds": rounds, "long": long, "connections": CONNECTIONS}


class _Mover:
    """Calls one client once, with its own bucket, which is removed afterwards."""

    def __init__(self, folder: Path, root: Path, url: str, s3: stack.S3Server, endpoint: str, keeps: bool) -> None:
        self._folder, self._root, self._url = folder, root, url
        self._s3, self._endpoint, self._keeps = s3, endpoint, keeps
        self._number = 0
        self._work = scratch(folder, "work")

    def __call__(self, client: str, _round: int) -> dict[str, float]:
        self._number += 1
        bucket = f"bench-{os.getpid()}-{self._number}-{int(self._keeps)}-{self._root.name.partition('-')[2]}"
        where = self._s3.make_bucket(bucket)
        case = peers.Case(
            self._url,
            None,
            self._endpoint,
            (self._s3.access_key, self._s3.secret_key),
            bucket,
            self._root / peers.PREFIX,
            self._work,
            self._keeps,
        )
        try:
            figures = (
                mirror(case, learn=client == "mirror-next") if client.startswith("mirror") else peers.run(client, case)
            )
            count = len(case.images())
            if self._keeps:
                stored = sum(1 for _ in (where / peers.PREFIX / "files").rglob("*.jpg"))
            else:
                stored = _servers.taken(self._folder / "sink")
                (self._folder / "sink" / "sink.log").write_text("")
            if client == "mirror-next":
                stored = min(stored, count)
            if stored != count:
                raise RuntimeError(f"{client} stored {stored} of {count} images; see {case.folder}")
            return figures
        finally:
            shutil.rmtree(where, ignore_errors=True)


def mirror(
    case: peers.Case, *, connections: int = CONNECTIONS, learn: bool = False, flat: bool = False
) -> dict[str, Any]:
    """Stream all images as one shard in a fresh process; with ``learn``, once before that to learn the pace.

    The figures of `peers.run`, and ``memory``: MB at its peak above the same process before its first image.
    """
    case.folder.mkdir(parents=True, exist_ok=True)
    given = {
        "url": case.url,
        "login": case.login or ("nobody", "nothing"),
        "endpoint": case.endpoint,
        "keys": case.keys,
        "bucket": case.bucket,
        "sums": str(case.version / "SHA256SUMS.txt"),
        "connections": connections,
        "flat": flat,
    }
    command, env = python("bench.streaming", "--child"), environment({"BENCH": json.dumps(given)})
    if learn:
        measure(command, env, case.folder / "mirror.log")
    cost = measure(command, env, case.folder / "mirror.log")
    inner = cost.json()
    count = inner["images"]
    return {
        "rate": count / inner["seconds"],
        "cpu": inner["cpu"] * 1000 / count,
        "peak": cost.peak_mb,
        "seconds": inner["seconds"],
        "memory": inner["memory"],
        "start": cost.seconds - inner["seconds"],
        "start_cpu": cost.cpu - inner["cpu"],
        **({"flat": inner["flat"]} if flat else {}),
    }


def _long(folder: Path, s3: stack.S3Server, taker: str, count: int) -> dict[str, Any]:
    """Memory of one long shard over its duration."""
    root = folder / "images-long"
    make_images(root, count, 300_000)
    where = s3.make_bucket(f"long-{os.getpid()}")
    keys = (s3.access_key, s3.secret_key)
    with ExitStack() as opened:
        opened.callback(shutil.rmtree, where, ignore_errors=True)
        opened.callback(shutil.rmtree, root, ignore_errors=True)
        url = opened.enter_context(_servers.files(folder / "nginx", root))
        case = peers.Case(url, None, taker, keys, where.name, root / peers.PREFIX, folder / "work", keeps=False)
        figures = mirror(case, flat=True)
    samples = [mb for _, mb in figures.pop("flat")]
    fifth = max(1, len(samples) // 5)
    early, late = samples[fifth : 2 * fifth] or samples[:1], samples[-fifth:]
    return {
        "images": count,
        **figures,
        "early": sum(early) / len(early),
        "late": sum(late) / len(late),
    }


# -- the measured process ----------------------------------------------------------------------------------------------


def child(given: dict[str, Any], opened: Callable[[Bucket, Dataset], Mover]) -> None:
    """What a stream task does with a mover, and nothing else; prints its cost."""
    import threading

    import boto3

    from physionet_mirror.layout import RunLayout
    from physionet_mirror.request import Request
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.shards import Shard, decode, seal
    from physionet_mirror.steps.mirror_shard import Stop, stream_shard

    session = boto3.Session(*given["keys"], region_name=stack.REGION)
    bucket = Bucket.open(session, given["bucket"], peers.PREFIX, endpoint_url=given["endpoint"])
    request = Request.from_params({"bucket": given["bucket"], "select": "all"})
    layout = RunLayout(f"bench-{os.getpid()}")
    lines = Path(given["sums"]).read_bytes()
    images = decode(lines)
    shard = Shard(0, len(images), images[0].path, images[-1].path, layout.shard(0), len(images))
    bucket.write(layout.missing(0), seal(images), content_type="text/plain")
    del images, lines
    mover = opened(bucket, request.dataset)
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            samples.append((time.monotonic(), rss_mb()))

    idle = rss_mb()
    forget_peak()
    if given["flat"]:
        threading.Thread(target=watch, daemon=True).start()
    begun, cpu = time.monotonic(), time.process_time()
    result = stream_shard(
        shard, request, mover, bucket, layout, connections=given["connections"], stop=Stop(), stops_at=None
    )
    cpu, seconds = time.process_time() - cpu, time.monotonic() - begun
    over.set()
    figures = {"begun": begun, "seconds": seconds, "cpu": cpu, "memory": peak_mb() - idle, "images": result.stored}
    print(json.dumps({**figures, "connections": result.connections, "flat": samples}))


def download(given: dict[str, Any], bucket: Bucket, dataset: Dataset) -> Mover:
    """The mover from the website."""
    from physionet_mirror.source.download import Download
    from physionet_mirror.source.physionet import PhysioNet

    return Download(PhysioNet(given["url"], *given["login"], connections=given["connections"]), dataset, bucket)


# -- the result --------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    lines = [
        "| images | to | client | images/s | all rounds | client CPU s per 1,000 | peak MB | above idle MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in result["cases"]:
        memory = f"{c['memory']:.0f}" if "memory" in c else ""
        lines.append(
            f"| {c['images']:,} x {c['size']} | {c['to']} | {c['client']} | {c['rate']:.0f} | {c['rates']} | {c['cpu']:.2f} | "
            f"{c['peak']:.0f} | {memory} |"
        )
    long = result["long"]
    start = next(c for c in result["cases"] if "start" in c)
    lines += [
        "",
        f"One shard of {long['images']:,} images into the sink: {long['rate']:.0f} images/s, {long['cpu']:.2f} CPU s per 1,000; "
        f"{long['memory']:.0f} MB above idle at its peak; resident {long['early']:.0f} MB in its second fifth, "
        f"{long['late']:.0f} MB in its last. Start of a mirror process, not counted above: {start['start']:.1f} s, "
        f"{start['start_cpu']:.1f} CPU s.",
    ]
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """The targets: speed and CPU against the other clients, and flat memory."""
    found = []
    by = {(c["size"], c["to"], c["client"]): c for c in result["cases"]}
    for size in SIZES:
        ours = by.get((size, "rclone serve s3", "mirror"))
        others = {c["client"]: c for key, c in by.items() if key[:2] == (size, "rclone serve s3")}
        rclones = [c["rate"] for name, c in others.items() if name.startswith("rclone")]
        if ours and rclones:
            ratio = ours["rate"] / max(rclones)
            found.append(
                Check(f"streaming {size}: images/s over the best rclone", f"{ratio:.2f} x", "1.2 x", ratio >= 1.2)
            )
        if ours and "script-16" in others:
            ratio = ours["rate"] / others["script-16"]["rate"]
            found.append(Check(f"streaming {size}: images/s over 16 threads", f"{ratio:.2f} x", "2.5 x", ratio >= 2.5))
    for to in ("rclone serve s3", "sink"):
        if ours := by.get(("300 KB", to, "mirror")):
            what = f"streaming 300 KB to {to}: client CPU s per 1,000"
            found.append(Check(what, f"{ours['cpu']:.2f}", "1.3", ours["cpu"] <= 1.3))
    peak = max(c["memory"] for c in [*result["cases"], result["long"]] if "memory" in c)
    found.append(Check("streaming: peak MB above idle", f"{peak:.0f}", "120", peak <= 120))
    growth = result["long"]["late"] - result["long"]["early"]
    found.append(Check("streaming: MB gained over a long shard", f"{growth:+.0f}", "10", growth <= 10))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=STATE / "streaming")
    parser.add_argument("--short", action="store_true", help="a fifth of the images, two rounds")
    parser.add_argument("--clients", nargs="+", default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        given = json.loads(os.environ["BENCH"])
        child(given, partial(download, given))
        return
    result = run(options.folder.resolve(), short=options.short, clients=options.clients, rounds=options.rounds)
    print(table(result))
    sys.exit(not all(check.ok for check in checks(result)))


if __name__ == "__main__":
    main()
