"""The path of every byte: TLS in, SHA-256, TLS out, with files the size of a real image.

    python -m bench lane [--short]

nginx with TLS serves 600 files of 1.62 MB, both as PhysioNet's website and as an S3 bucket; nginx with TLS accepts and
counts them. Clients trust only a certificate that is made at the start. The servers share the machine's cores with the
clients, so that images a second are a lower bound; the figure to compare is *CPU ms an image*, which is the client's own.
*Proven* says whether each file was compared with the SHA-256 that PhysioNet publishes before it was stored.

*website* and *access point* are what a stream task runs (``steps.mirror_shard.stream_shard``), with at most 16 in flight,
once the pace is known; ``x 2`` is two such processes with half of the files each. *rclone* copies from http and from S3,
the latter with and without its own checksum (``--s3-disable-checksum``). *script-64* is the boto3 script that people share:
64 threads, get_object and put_object. ``aws s3 sync`` cannot do this: it copies within one S3 endpoint, or from and to disk.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import _servers, peers, streaming
from bench._measure import (
    Check,
    alternating,
    command_line,
    environment,
    measure,
    medians,
    python,
    scratch,
    spread,
)
from bench.pace import make_images
from demo import stack
from physionet_mirror.source.access_point import READS_A_CONNECTION

if TYPE_CHECKING:
    from physionet_mirror.dataset import Dataset
    from physionet_mirror.mover import Mover
    from physionet_mirror.s3.bucket import Bucket

IMAGES, SIZE = 600, 1_620_000
IN_FLIGHT = 16
BUCKET, SOURCE = "lane", "source"
OURS = ("website", "access point", "website x 2", "access point x 2")
PEERS = ("rclone http", "rclone s3", "rclone s3 no checksum", "script-64")
OVER_RCLONE, CPU_MS, MEMORY_MB = 1.2, 3.0, 120.0


def run(folder: Path, *, short: bool = False, rounds: int = 5) -> dict[str, Any]:
    """Measure: ``{"images", "clients": [{"client", "rate", "rates", "cpu", "peak", "memory"}]}``."""
    count = IMAGES // 10 if short else IMAGES
    root = folder / "images"
    make_images(root, count, SIZE)
    tls = _servers.certificate(folder / "tls")
    with (
        stack.s3_server(scratch(folder, "s3"), log=folder / "s3.log") as s3,
        _servers.sink(folder / "sink", s3, tls) as taker,
        _servers.files(folder / "nginx", root, tls) as giver,
    ):
        s3.make_bucket(BUCKET)
        lane = _Lane(folder, root, giver, taker, (s3.access_key, s3.secret_key), tls)
        for client in ("website", "access point"):
            lane(client, 0)  # learns the pace
        found = alternating((*OURS, *PEERS), 1 if short else rounds, lane)
    clients = [{"client": name, **medians(one), "rates": spread(one, "rate")} for name, one in found.items()]
    return {"images": count, "clients": clients}


class _Lane:
    """Calls one client once."""

    def __init__(
        self, folder: Path, root: Path, giver: str, taker: str, keys: tuple[str, str], tls: _servers.Tls
    ) -> None:
        self._folder, self._giver, self._taker, self._keys, self._tls = folder, giver, taker, keys, tls
        self._work = scratch(folder, "work")
        self._lines = (root / peers.PREFIX / "SHA256SUMS.txt").read_text().splitlines()
        files = [line.split(" ", 1) for line in self._lines]
        sizes = ((root / peers.PREFIX / path).stat().st_size for _, path in files)
        self._listed = [f"{sha256}:{size} {path}" for (sha256, path), size in zip(files, sizes, strict=True)]

    def __call__(self, client: str, _round: int) -> dict[str, float]:
        count = len(self._lines)
        kind, _, processes = client.partition(" x ")
        figures = self._ours(kind, int(processes or 1)) if kind in OURS else self._peer(client)
        stored = _servers.taken(self._folder / "sink")
        (self._folder / "sink" / "sink.log").write_text("")
        if stored != count:
            raise RuntimeError(f"{client} stored {stored} of {count} files; see {self._work}")
        return figures

    def _ours(self, kind: str, processes: int) -> dict[str, float]:
        def one(number: int) -> dict[str, float]:
            lines = self._lines if kind == "website" else self._listed
            sums = self._work / f"sums-{number}.txt"
            sums.write_text("".join(f"{line}\n" for line in lines[number::processes]))
            given = {
                **self._given(),
                "kind": kind,
                "login": ("nobody", "nothing"),
                "sums": str(sums),
                "connections": IN_FLIGHT // processes
                if kind == "website"
                else max(1, IN_FLIGHT // processes // READS_A_CONNECTION),
                "flat": False,
            }
            command = python("bench.lane", "--child")
            return measure(command, self._environment(given), self._work / f"mirror-{number}.log").json()

        with ThreadPoolExecutor(processes) as pool:
            found = list(pool.map(one, range(processes)))
        seconds = max(f["begun"] + f["seconds"] for f in found) - min(f["begun"] for f in found)
        return {
            "rate": len(self._lines) / seconds,
            "cpu": 1000 * sum(f["cpu"] for f in found) / len(self._lines),
            "memory": max(f["memory"] for f in found),
        }

    def _peer(self, client: str) -> dict[str, float]:
        count = len(self._lines)
        if client == "script-64":
            sums = self._work / "sums.txt"
            sums.write_text("".join(f"{line}\n" for line in self._lines))
            command = python("bench.lane", "--script", "64")
            inner = measure(
                command, self._environment({**self._given(), "sums": str(sums)}), self._work / "script.log"
            ).json()
            return {"rate": count / inner["seconds"], "cpu": 1000 * inner["cpu"] / count, "memory": inner["memory"]}
        paths = self._work / "paths.txt"
        paths.write_text("".join(f"{line.split(' ', 1)[1]}\n" for line in self._lines))
        origin = "http:" if client == "rclone http" else f"from:{SOURCE}/{peers.PREFIX}"
        command = [
            Path(sys.executable).with_name("rclone"), "copy", origin, f"to:{BUCKET}/{peers.PREFIX}",
            "--files-from", paths, "--no-traverse", "--transfers", str(IN_FLIGHT), "--checkers", str(IN_FLIGHT),
            "--ca-cert", self._tls.ca, "--s3-no-head", "--no-check-dest", "--s3-use-multipart-etag=false",
            *(["--s3-disable-checksum"] if client.endswith("no checksum") else []),
        ]  # fmt: skip
        cost = measure(command, self._rclone(), self._work / "rclone.log")
        return {"rate": count / cost.seconds, "cpu": 1000 * cost.cpu / count, "memory": cost.peak_mb}

    def _given(self) -> dict[str, Any]:
        return {"url": self._giver, "endpoint": self._taker, "keys": self._keys, "bucket": BUCKET}

    def _environment(self, given: dict[str, Any]) -> dict[str, str]:
        return environment({**self._tls.trusted(), "BENCH": json.dumps(given)})

    def _rclone(self) -> dict[str, str]:
        env = {
            "RCLONE_CONFIG": os.devnull,
            "RCLONE_CONFIG_HTTP_TYPE": "http",
            "RCLONE_CONFIG_HTTP_URL": f"{self._giver}/files/{peers.PREFIX}/",
            "RCLONE_S3_NO_CHECK_BUCKET": "true",
        }
        for name, endpoint in (("FROM", self._giver), ("TO", self._taker)):
            env |= {
                f"RCLONE_CONFIG_{name}_TYPE": "s3",
                f"RCLONE_CONFIG_{name}_PROVIDER": "Other",
                f"RCLONE_CONFIG_{name}_ENDPOINT": endpoint,
                f"RCLONE_CONFIG_{name}_REGION": stack.REGION,
                f"RCLONE_CONFIG_{name}_ACCESS_KEY_ID": self._keys[0],
                f"RCLONE_CONFIG_{name}_SECRET_ACCESS_KEY": self._keys[1],
            }
        return environment({**self._tls.trusted(), **env})


# -- the measured processes --------------------------------------------------------------------------------------------


def _through(given: dict[str, Any], bucket: Bucket, dataset: Dataset) -> Mover:
    import boto3

    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.access_point import AccessPoint
    from physionet_mirror.source.through import ThroughWorker

    session = boto3.Session(*given["keys"], region_name=stack.REGION)
    point = AccessPoint(Bucket.open(session, SOURCE, peers.PREFIX, endpoint_url=given["url"]), dataset)
    return ThroughWorker(point, bucket)


def _child(given: dict[str, Any]) -> None:
    way = streaming.download if given["kind"] == "website" else _through
    streaming.child(given, partial(way, given))


def _script(given: dict[str, Any], threads: int) -> None:
    """get_object and put_object, without any check of the bytes; prints its cost."""
    import boto3

    from bench._measure import peak_mb, rss_mb

    keys = {"aws_access_key_id": given["keys"][0], "aws_secret_access_key": given["keys"][1]}
    source, target = (
        boto3.client("s3", endpoint_url=given[name], region_name=stack.REGION, **keys) for name in ("url", "endpoint")
    )

    def copy(path: str) -> None:
        key = f"{peers.PREFIX}/{path}"
        data = source.get_object(Bucket=SOURCE, Key=key)["Body"].read()
        target.put_object(Bucket=given["bucket"], Key=key, Body=data)

    paths = [line.split(" ", 1)[1] for line in Path(given["sums"]).read_text().splitlines()]
    idle = rss_mb()
    begun, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, paths))
    figures = {"seconds": time.monotonic() - begun, "cpu": time.process_time() - cpu, "memory": peak_mb() - idle}
    print(json.dumps(figures))


# -- the result --------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"| {result['images']:,} x 1.62 MB, TLS on both sides | images/s | all rounds | client CPU ms an image | "
        "MB above idle | every byte proven |",
        "|---|---|---|---|---|---|",
    ]
    for c in result["clients"]:
        memory = f"{c['memory']:.0f}" + (" in all" if c["client"].startswith("rclone") else "")
        proven = "yes" if c["client"] in OURS else "no"
        lines.append(f"| {c['client']} | {c['rate']:.0f} | {c['rates']} | {c['cpu']:.2f} | {memory} | {proven} |")
    lines.append("| aws s3 sync | | | | | cannot: one endpoint, or a disk |")
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """Compare each way with the best rclone from the same kind of source."""
    by = {c["client"]: c for c in result["clients"]}
    found = []
    for way, rivals in (("website", ["rclone http"]), ("access point", ["rclone s3", "rclone s3 no checksum"])):
        best = max(by[rival]["rate"] for rival in rivals)
        for client in (way, f"{way} x 2"):
            ratio = by[client]["rate"] / best
            what = f"lane, {client}: images/s over the best rclone"
            found.append(Check(what, f"{ratio:.2f} x", f"{OVER_RCLONE} x", ratio >= OVER_RCLONE))
        cpu, memory = by[way]["cpu"], by[way]["memory"]
        found.append(Check(f"lane, {way}: client CPU ms an image", f"{cpu:.2f}", f"{CPU_MS}", cpu <= CPU_MS))
        what = f"lane, {way}: MB above idle, {IN_FLIGHT} in flight"
        found.append(Check(what, f"{memory:.0f}", f"{MEMORY_MB:.0f}", memory <= MEMORY_MB))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--child"]:
        _child(json.loads(os.environ["BENCH"]))
    elif given[:1] == ["--script"]:
        _script(json.loads(os.environ["BENCH"]), int(given[1]))
    else:
        command_line(__doc__, "lane", run, table, checks, short="60 files, one round", arguments=given)


if __name__ == "__main__":
    main()
