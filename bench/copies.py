"""Copies inside S3: copies per second and CPU per copy of one worker, and what that means for 377,110 images.

    python -m bench copies [--short]

A small server takes 150 ms for each answer, as S3 does for a copy, so that it takes some hundred in flight to reach S3's
rate. It shares the machine's cores with the client; its own CPU per copy is in the table. Each copy is one request, made
on condition that no object exists, and verified by the SHA-256 in its answer. *SlowDown* is the same with a server that
refuses copies above a rate (S3's limit is 3,500 a second and prefix; here it is the rate that one worker reaches): the
pace must settle just below it.
"""

from __future__ import annotations

import json
import resource
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import boto3

from bench._copier import SIZE
from bench._measure import Check, command_line, python
from bench.own.planning import FULL_SIZE
from demo import stack
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.files import File
from physionet_mirror.pace import Pace
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.access_point import AccessPoint
from physionet_mirror.source.copy import ServerSideCopy
from physionet_mirror.transfer import Transfer

COPIES = 10_000
AT_ONCE = 384
DELAY = 0.15
LIMIT = 1000
"""Copies a second above which the second server answers SlowDown."""
SECONDS = 60
"""Seconds for which the second server is kept busy."""
RATE, CPU_MS, SETTLED = 2000, 0.6, 0.9
DIGEST = sha256(b"an image").hexdigest()


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure: ``{"copies", "rows": [{"case", "at_once", "copies_s", "cpu_ms", "server_ms", "refused", "steady"}]}``."""
    count = COPIES // 5 if short else COPIES
    seconds = SECONDS // 4 if short else SECONDS
    free = _measure(folder, "free", count, AT_ONCE, {})
    slow = _measure(folder, "SlowDown", LIMIT * seconds, None, {"limit": LIMIT})
    return {"copies": count, "rows": [free, slow]}


def _measure(folder: Path, case: str, count: int, start: int | None, given: dict[str, float]) -> dict[str, Any]:
    with _server(folder, given) as endpoint:
        session = boto3.Session("benchaccess", "benchsecret", region_name=stack.REGION)
        origin, bucket = (
            Bucket.open(session, name, MIMIC_CXR_JPG.name, endpoint_url=endpoint) for name in ("source", "target")
        )
        files = [File(f"files/p10/p10000000/s50000000/{n:08d}.jpg", DIGEST, SIZE) for n in range(count)]
        mover = ServerSideCopy(AccessPoint(origin, MIMIC_CXR_JPG), bucket, conditional=True)
        pace = Pace(AT_ONCE, **({"start": start} if start else {}), received=lambda: mover.stats.received)
        before, server = _cpu(), _counters(endpoint)["cpu"]
        tally = Transfer(files, mover=mover, pace=pace).run()
        cpu, counted = _cpu() - before, _counters(endpoint)
        if tally.stored != count or counted["keys"] != count:
            raise RuntimeError(f"{tally.stored} and {counted['keys']} of {count} were copied")
        seconds = counted["seconds"][:-1] or counted["seconds"]
        return {
            "case": case,
            "at_once": pace.slots,
            "copies": count,
            "copies_s": count / tally.seconds,
            "steady": median(seconds[len(seconds) // 2 :]),
            "refused": counted["refused"],
            "cpu_ms": 1000 * cpu / count,
            "server_ms": 1000 * (counted["cpu"] - server) / count,
        }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _counters(endpoint: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{endpoint}/_counters") as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def _server(folder: Path, given: dict[str, float]) -> Iterator[str]:
    more = [word for name, value in {"delay": DELAY, **given}.items() for word in (f"--{name}", str(value))]
    command = [*python("bench._copier"), "--sha256", DIGEST, *more]
    with stack.Service("copier", command, log=folder / "copier.log", env=stack.plain_environment()) as service:
        yield json.loads(service.wait_for(r"\{.*\}", 30)[0])["url"]


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| copies inside S3, 150 ms an answer | copies | in flight at the end | copies/s | median of the second half | "
        f"refused | client CPU ms a copy | server CPU ms a copy | {FULL_SIZE:,} images, min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['case']} | {row['copies']:,} | {row['at_once']} | {row['copies_s']:.0f} | {row['steady']:.0f} | "
        f"{row['refused']:,} | {row['cpu_ms']:.2f} | {row['server_ms']:.2f} | {FULL_SIZE / row['copies_s'] / 60:.1f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """One worker's copies a second, their CPU, and where the pace settles."""
    free, slow = result["rows"]
    share = slow["steady"] / LIMIT
    return [
        Check("copies: a second, one worker", f"{free['copies_s']:.0f}", f"{RATE}", free["copies_s"] >= RATE),
        Check("copies: client CPU ms a copy", f"{free['cpu_ms']:.2f}", f"{CPU_MS}", free["cpu_ms"] <= CPU_MS),
        Check("copies: steady share of a rate with SlowDown above", f"{share:.0%}", f"{SETTLED:.0%}", share >= SETTLED),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command_line(__doc__, "copies", run, table, checks, short="2,000 copies, and 15 s of SlowDown", arguments=given)


if __name__ == "__main__":
    main()
