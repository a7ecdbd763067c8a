"""The measured process of large and tiny: one transfer of one shard, from the look-alike into a bucket, and its cost."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from bench._measure import Cost, environment, forget_peak, measure, peak_mb, python, rss_mb
from demo import stack
from physionet_mirror.dataset import Dataset

PROJECT = Dataset("waves", "1.0")


def mirror(source: stack.PhysioNetServer, s3: stack.S3Server, bucket: str, work: Path, **more: Any) -> dict[str, Any]:
    """Transfer the project's files in a fresh process.

    Args:
        source: Whose files; ``SHA256SUMS.txt`` of the project lists them.
        s3: Where the bucket is.
        bucket: Its name.
        work: For the log.
        more: ``connections``: the most at once; ``start``: how many the pace begins with, None = as a run's first shard;
            ``sums``: path of the list of files; ``sizes``: whether their sizes are known beforehand.

    Returns:
        ``seconds`` and ``cpu`` seconds of the transfer without the process's start, ``memory``: MB at its peak above the
        same process before it, ``stored``, ``bytes``, ``series`` (as `transfer.Tally`), ``peak``: MB of the whole process.
    """
    given = {
        "url": source.url,
        "login": (source.user, source.password),
        "endpoint": s3.endpoint,
        "keys": (s3.access_key, s3.secret_key),
        "bucket": bucket,
        **more,
    }
    cost: Cost = measure(
        python("bench._one_process"), environment({"BENCH": json.dumps(given)}), work / f"{bucket}.log"
    )
    return {**cost.json(), "peak": cost.peak_mb}


def _transfer(given: dict[str, Any]) -> dict[str, Any]:
    import boto3

    from physionet_mirror.files import File
    from physionet_mirror.pace import START, Pace
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.download import Download
    from physionet_mirror.source.physionet import PhysioNet
    from physionet_mirror.transfer import Transfer

    sums = Path(given["sums"])
    lines = [line.split(" ", 1) for line in sums.read_text().splitlines()]
    known = given.get("sizes", False)
    files = [File(path, sha256, (sums.parent / path).stat().st_size if known else None) for sha256, path in lines]
    session = boto3.Session(*given["keys"], region_name=stack.REGION)
    bucket = Bucket.open(session, given["bucket"], PROJECT.name, endpoint_url=given["endpoint"])
    most = given["connections"]
    mover = Download(PhysioNet(given["url"], *given["login"], connections=most), PROJECT, bucket)
    pace = Pace(most, start=given.get("start") or START, received=lambda: mover.stats.received)
    idle = rss_mb()
    forget_peak()
    cpu = time.process_time()
    result = Transfer(files, mover=mover, pace=pace).run()
    cpu = time.process_time() - cpu
    mover.close()
    return {
        "seconds": result.seconds,
        "cpu": cpu,
        "memory": peak_mb() - idle,
        "stored": result.stored,
        "bytes": result.bytes,
        "series": result.series,
    }


if __name__ == "__main__":
    print(json.dumps(_transfer(json.loads(os.environ["BENCH"]))))
