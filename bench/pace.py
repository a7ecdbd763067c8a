"""How much of the server's capacity each client uses when the capacity is not known to the client.

    python -m bench.pace [--short] [--folder .state/bench/pace] [--clients mirror rclone-16 …] [--unthrottled]

The look-alike, in its own process, behaves as users report PhysioNet: 60 ms round trip, 650 kB/s a connection, N served
at once; requests beyond that hang, or are answered with 503 or 429. Images have 1.62 MB on average, the destination is
``rclone serve s3``. The mirror may use 24 connections and does not know N. A password check costs nothing here, which
favours the clients that cause one for each file: this part measures pace alone.

Each client gets the images that N connections carry in 60 s, and 90 s to fetch them (half of both with ``--short``).
Columns: *steady* = body bytes the server sent, as a share of N x 650 kB/s, from 20 s (short: 15 s) after the client's
start until 90 % of the bytes were sent or the time was over, so without the ramp-up and without the tail; *whole* = bytes
stored, proven by SHA-256, as a share of the same, from start to exit, interpreter start included; *sent* = bytes sent for
one byte stored (above 1: fetched twice); *refused/h* = requests refused after the ramp-up, scaled to an hour (of a server
that lets hang, the reductions in the mirror's log; other clients keep no such count); *failed* = images not stored rightly when the client had ended or its time was
over. The mirror tries more ever more rarely, so that a minute says little about an hour: rows named *mirror, settled* are
runs of 20 minutes at N = 8, counted from the second minute on (not with ``--short``).

``--unthrottled``: 1,000 images of 300 KB from a server without limits, the adaptive pace beside pinned numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from demo import stack
from physionet_mirror.dataset import MIMIC_CXR_JPG

RATE = 650_000
"""Bytes a second of each connection."""
CAPACITIES = 4, 8, 16
LIMIT = 24
"""The mirror's ``connections``."""
IMAGE_BYTES = 1_620_000
TARGET = 0.92
BEYOND = "hang", "503", "429"
"""What the server does with a request beyond N."""
TARGET_WHOLE = 0.90
REFUSALS = 20
"""Most refusals an hour, once settled."""
CLIENTS = ("mirror", "rclone-4", "rclone-16", "rclone-32", "script-4")
BUCKET = "bench"
PREFIX = MIMIC_CXR_JPG.name


@dataclass(frozen=True)
class Length:
    """Durations of a case in seconds: that of the images at full pace, the time limit, and the ramp-up."""

    work: float = 60.0
    limit: float = 90.0
    ramp: float = 20.0


FULL, SHORT = Length(), Length(work=30.0, limit=45.0, ramp=15.0)
SETTLED = Length(work=1200.0, limit=1320.0, ramp=120.0)


Sample = tuple[float, int, int]
"""Seconds since a client's start, body bytes sent, requests refused by a status."""


@dataclass(frozen=True)
class Row:
    """One client at one capacity; shares are of N x 650 kB/s."""

    beyond: str
    capacity: int
    client: str
    steady: float | None
    whole: float
    sent: float
    images: int
    failed: int
    seconds: float
    refused_an_hour: float | None
    password_checks: int


# -- the measurement ---------------------------------------------------------------------------------------------------


def run(
    folder: Path,
    *,
    short: bool = False,
    capacities: Sequence[int] = CAPACITIES,
    clients: Sequence[str] = CLIENTS,
    beyond: Sequence[str] = BEYOND,
) -> dict[str, Any]:
    """Measure every client at every capacity: ``{"rows": [Row as a dict, …], "ok": …}``."""
    length = SHORT if short else FULL
    rows: list[Row] = []
    for capacity in capacities:
        images = make_images(folder / "physionet", round(capacity * RATE * length.work / IMAGE_BYTES), IMAGE_BYTES)
        for kind in beyond:
            for client in clients:
                rows.append(_measure(folder, images, capacity, kind, client, length))
                print(table({"rows": [asdict(rows[-1])]}).splitlines()[-1], flush=True)
    if not short and "mirror" in clients:
        images = make_images(folder / "physionet", round(8 * RATE * SETTLED.work / IMAGE_BYTES), IMAGE_BYTES)
        for kind in beyond:
            row = _measure(folder, images, 8, kind, "mirror", SETTLED)
            rows.append(replace(row, client="mirror, settled"))
            print(table({"rows": [asdict(rows[-1])]}).splitlines()[-1], flush=True)
    found = [asdict(row) for row in rows]
    ok = all(is_right(row, short=short) for row in found if row["client"].startswith("mirror"))
    return {"rows": found, "short": short, "ok": ok}


def is_right(row: dict[str, Any], *, short: bool) -> bool:
    """Whether a row of the mirror meets its targets; half a minute is too short to judge the share of a whole run."""
    settled = row["client"] != "mirror"
    return (
        (row["steady"] or 0.0) >= TARGET
        and (short or row["whole"] >= TARGET_WHOLE)
        and (not settled or (row["refused_an_hour"] or 0) <= REFUSALS)
        and not row["failed"]
    )


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| N | beyond | client | steady | whole | refused/h | sent | stored | failed | s | password checks |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        steady = "-" if r["steady"] is None else f"{r['steady']:.1%}"
        refused = "-" if r["refused_an_hour"] is None else f"{r['refused_an_hour']:.0f}"
        lines.append(
            f"| {r['capacity']} | {r['beyond']} | {r['client']} | {steady} | {r['whole']:.1%} | {refused} | {r['sent']:.2f} | "
            f"{r['images'] - r['failed']} of {r['images']} | {r['failed']} | {r['seconds']:.0f} | {r['password_checks']} |"
        )
    return "\n".join(lines)


def make_images(root: Path, count: int, mean: int) -> dict[str, str]:
    """Make a dataset of random bytes under ``root``: a dozen contents, hard-linked as ``count`` files; path → SHA-256."""
    shutil.rmtree(root, ignore_errors=True)
    version = root / MIMIC_CXR_JPG.name
    version.mkdir(parents=True)
    rng = random.Random(mean)
    contents = []
    for n in range(12):
        data = rng.randbytes(round(mean * (0.75 + 0.5 * n / 11)))
        (root / f"{n}.bin").write_bytes(data)
        contents.append((root / f"{n}.bin", hashlib.sha256(data).hexdigest()))
    images = {}
    for n in range(count):
        subject = 10_000_032 + n * 9_999_000 // count
        dicom = "-".join(hashlib.sha256(f"{n}".encode()).hexdigest()[at : at + 8] for at in range(0, 40, 8))
        path = f"files/p{subject // 1_000_000}/p{subject}/s{50_000_000 + n}/{dicom}.jpg"
        file, digest = contents[n % 12]
        (version / path).parent.mkdir(parents=True)
        (version / path).hardlink_to(file)
        images[path] = digest
    (version / "SHA256SUMS.txt").write_text("".join(f"{sha256} {path}\n" for path, sha256 in sorted(images.items())))
    return images


def _measure(folder: Path, images: dict[str, str], capacity: int, beyond: str, client: str, length: Length) -> Row:
    shutil.rmtree(folder / "s3", ignore_errors=True)
    paths = folder / "paths.txt"
    paths.write_text("".join(f"{path}\n" for path in images))
    profile = ("--as-users-report-it", "--connections", str(capacity), "--check-seconds", "0")
    if beyond != "hang":
        profile += ("--refuse-with", beyond)
    with (
        stack.s3_server(folder / "s3") as s3,
        stack.physionet(folder / "physionet", log=folder / "physionet.log", options=profile) as source,
    ):
        s3.make_bucket(BUCKET)
        command, env = _client(client, s3, source, folder / "physionet" / PREFIX, paths)
        log = folder / f"{client}-of-{capacity}-{beyond}.log"
        samples, seconds = _watch(command, env, source, length.limit, log)
        counters = _counters(source)
        stored = _stored(s3.folder / BUCKET / PREFIX, images)
    total = sum(stored.values())
    everything = sum((folder / "physionet" / PREFIX / path).stat().st_size for path in images)
    full = capacity * RATE
    refused = _refused(samples, log, length.ramp, hang=beyond == "hang", mirror=client == "mirror")
    return Row(
        beyond=beyond,
        capacity=capacity,
        client=client,
        steady=_steady([sample[:2] for sample in samples], length.ramp, min(0.9 * everything, counters["bytes"]), full),
        whole=total / seconds / full,
        sent=counters["bytes"] / total if total else float("inf"),
        images=len(images),
        failed=len(images) - len(stored),
        seconds=round(seconds, 1),
        refused_an_hour=None if refused is None or seconds <= length.ramp else refused / (seconds - length.ramp) * 3600,
        password_checks=counters["password_checks"],
    )


def _steady(samples: list[tuple[float, int]], begin: float, until: float, full: float) -> float | None:
    """Share of the full rate between the time ``begin`` and the sample at which ``until`` bytes had been sent."""
    window = [sample for sample in samples if sample[0] >= begin and sample[1] <= until]
    if len(window) < 2 or window[-1][0] - window[0][0] < 5.0:
        return None
    (t0, sent0), (t1, sent1) = window[0], window[-1]
    return (sent1 - sent0) / (t1 - t0) / full


def _refused(samples: list[Sample], log: Path, begin: float, *, hang: bool, mirror: bool) -> int | None:
    """Requests refused after the time ``begin``."""
    if not hang:
        return samples[-1][2] - next((sample[2] for sample in samples if sample[0] >= begin), samples[-1][2])
    if not mirror:
        return None
    lines = re.findall(r"(?m)^ *([\d.]+) s  \d+ → \d+: throttled", log.read_text())
    return sum(float(at) >= begin for at in lines)


def _watch(
    command: list[str], env: dict[str, str], source: stack.PhysioNetServer, limit: float, log: Path
) -> tuple[list[Sample], float]:
    """Run a client to its end or the time limit; returns its duration too."""
    samples: list[Sample] = []
    began = time.monotonic()
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=env, stdout=output, stderr=output, cwd=stack.ROOT) as process,
    ):
        try:
            while process.poll() is None and time.monotonic() - began < limit:
                counters = _counters(source)
                refused = sum(counters["by_status"].get(status, 0) for status in ("429", "503"))
                samples.append((time.monotonic() - began, counters["bytes"], refused))
                time.sleep(0.25)
        finally:
            seconds = time.monotonic() - began
            process.kill()
    return samples, seconds


def _counters(source: stack.PhysioNetServer) -> dict[str, Any]:
    with urlopen(f"{source.control_url}/counters", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _stored(folder: Path, images: dict[str, str]) -> dict[str, int]:
    """Size of each image that is in the bucket with the right content."""
    found = {}
    for path, sha256 in images.items():
        file = folder / path
        if file.exists() and hashlib.sha256(data := file.read_bytes()).hexdigest() == sha256:
            found[path] = len(data)
    return found


# -- the clients -------------------------------------------------------------------------------------------------------


def _client(
    name: str, s3: stack.S3Server, source: stack.PhysioNetServer, version: Path, paths: Path
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a client; secrets are only in the environment."""
    kind, _, number = name.partition("-")
    env = stack.plain_environment() | {"PYTHONPATH": stack.PYTHONPATH}
    if kind == "rclone":
        from base64 import b64encode

        basic = b64encode(f"{source.user}:{source.password}".encode()).decode()
        env |= {
            "RCLONE_CONFIG": os.devnull,
            "RCLONE_CONFIG_FROM_TYPE": "http",
            "RCLONE_CONFIG_FROM_URL": f"{source.url}/files/{PREFIX}/",
            "RCLONE_CONFIG_FROM_HEADERS": f"Authorization,Basic {basic}",
            "RCLONE_CONFIG_TO_TYPE": "s3",
            "RCLONE_CONFIG_TO_PROVIDER": "Rclone",
            "RCLONE_CONFIG_TO_ENDPOINT": s3.endpoint,
            "RCLONE_CONFIG_TO_ACCESS_KEY_ID": s3.access_key,
            "RCLONE_CONFIG_TO_SECRET_ACCESS_KEY": s3.secret_key,
        }
        command = [
            str(Path(sys.executable).with_name("rclone")), "copy", "from:", f"to:{BUCKET}/{PREFIX}",
            "--files-from", str(paths), "--no-traverse", "--transfers", number, "--checkers", number,
            "--user-agent", "Wget/1.21 (rclone)",
        ]  # fmt: skip
        return command, env
    env["BENCH"] = json.dumps(
        {
            "url": source.url,
            "login": (source.user, source.password),
            "endpoint": s3.endpoint,
            "keys": (s3.access_key, s3.secret_key),
            "sums": str(version / "SHA256SUMS.txt"),
            "number": int(number or 0),
        }
    )
    return [sys.executable, "-m", "bench.pace", "--as", kind], env


def _mirror(given: dict[str, Any]) -> None:
    """The engine, with all images as one shard."""
    import logging

    import boto3

    from physionet_mirror.files import File
    from physionet_mirror.pace import Pace
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.download import Download
    from physionet_mirror.source.physionet import PhysioNet
    from physionet_mirror.transfer import Transfer, progress_line

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pinned = given["number"]
    source = PhysioNet(given["url"], *given["login"], connections=pinned or LIMIT)
    bucket = Bucket.open(
        boto3.Session(given["keys"][0], given["keys"][1], region_name="us-east-1"),
        BUCKET,
        PREFIX,
        endpoint_url=given["endpoint"],
    )
    begun = time.monotonic()
    pace = Pace(
        pinned or LIMIT,
        **({"start": pinned, "too_many": pinned} if pinned else {}),
        received=lambda: source.stats.received,
        on_change=lambda old, new, why: print(f"{time.monotonic() - begun:6.1f} s  {old} → {new}: {why}", flush=True),
    )
    lines = (line.split(" ", 1) for line in Path(given["sums"]).read_text().splitlines())
    images = [File(path, sha256) for sha256, path in lines]
    transfer = Transfer(images, mover=Download(source, MIMIC_CXR_JPG, bucket), pace=pace)
    try:
        transfer.run()
    finally:
        print(progress_line(transfer.result()), dict(transfer.tally.faults), source.stats, flush=True)
        print(f"images/s {transfer.tally.stored / transfer.tally.seconds:.0f}", flush=True)


def _script(given: dict[str, Any]) -> None:
    """A typical script: a fixed number of threads, requests and boto3, a new session per image, three tries."""
    from concurrent.futures import ThreadPoolExecutor

    import boto3
    import requests

    s3 = boto3.client(
        "s3",
        endpoint_url=given["endpoint"],
        aws_access_key_id=given["keys"][0],
        aws_secret_access_key=given["keys"][1],
        region_name="us-east-1",
    )

    def copy(path: str) -> None:
        for attempt in range(3):
            try:
                with requests.Session() as session:
                    session.auth = tuple(given["login"])
                    session.headers["User-Agent"] = "Wget/1.21 (script)"
                    answer = session.get(f"{given['url']}/files/{PREFIX}/{path}", timeout=60)
                    answer.raise_for_status()
                    s3.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{path}", Body=answer.content)
                    return
            except requests.RequestException:
                time.sleep(2**attempt)

    paths = [line.split(" ", 1)[1] for line in Path(given["sums"]).read_text().splitlines()]
    with ThreadPoolExecutor(given["number"]) as pool:
        list(pool.map(copy, paths))


# -- unthrottled -------------------------------------------------------------------------------------------------------


def unthrottled(folder: Path, rounds: int = 3, images: int = 1000, size: int = 300_000) -> dict[str, Any]:
    """Images a second from a server without limits, with the adaptive pace and with fixed numbers of connections."""
    made = make_images(folder / "physionet", images, size)
    cases = ("mirror", "mirror-4", "mirror-8", "mirror-16")
    rates: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            shutil.rmtree(folder / "s3", ignore_errors=True)
            with (
                stack.s3_server(folder / "s3") as s3,
                stack.physionet(folder / "physionet", log=folder / "physionet.log") as source,
            ):
                s3.make_bucket(BUCKET)
                command, env = _client(case, s3, source, folder / "physionet" / PREFIX, folder / "paths.txt")
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=stack.ROOT)
                rates[case].append(float(done.stdout.rsplit("images/s ", 1)[1]))
                assert len(_stored(s3.folder / BUCKET / PREFIX, made)) == images
    return {"images": images, "rates": rates}


def unthrottled_table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| connections | images/s, best | all rounds |", "|---|---|---|"]
    for case, rates in result["rates"].items():
        name = "adaptive, at most 24" if case == "mirror" else f"pinned at {case.partition('-')[2]}"
        lines.append(f"| {name} | {max(rates):.0f} | {', '.join(f'{rate:.0f}' for rate in rates)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".state/bench/pace"))
    parser.add_argument("--short", action="store_true", help="a third of the time")
    parser.add_argument("--capacities", type=int, nargs="+", default=CAPACITIES)
    parser.add_argument("--beyond", nargs="+", default=BEYOND, choices=BEYOND, help="what happens beyond N")
    parser.add_argument("--clients", nargs="+", default=CLIENTS, help=f"of {', '.join(CLIENTS)}")
    parser.add_argument("--unthrottled", action="store_true", help="only the server without limits")
    parser.add_argument("--as", dest="client", choices=("mirror", "script"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.client:
        {"mirror": _mirror, "script": _script}[given.client](json.loads(os.environ["BENCH"]))
        return
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if given.unthrottled:
        print(unthrottled_table(unthrottled(folder)))
        return
    result = run(folder, short=given.short, capacities=given.capacities, clients=given.clients, beyond=given.beyond)
    print("\n" + table(result))
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
