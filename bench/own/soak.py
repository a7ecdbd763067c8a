"""Soak: 100,000 small images through a real Airflow run; does memory grow, does anything fail or slow down?

    python -m bench.own.soak [--short] [--folder .state/bench/soak]

nginx serves the images, ``rclone serve s3`` accepts them, Airflow (LocalExecutor, SQLite) runs mimic_cxr_jpg with 40
shards. Every two seconds the memory of each of Airflow's services is recorded, including tasks; the table has the median,
because short-lived processes that parse the DAG files count too. nginx logs when it served each image. The images are
divided into ten parts, and the rates of the second and the ninth are compared, so that the run's beginning and end do not
count. The two cores are busy throughout; the S3 server's CPU per image is shown below the rates, because it rises with the
number of its objects.

Then the same images are streamed by four processes with four connections each, as by Airflow's four streams, into a sink:
nginx, which accepts an object, logs it and forgets it, so that the ten-thousandth costs it what the first does. What gets
slower there is the mirror.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from bench import _servers
from bench._measure import (
    Check,
    command_line,
    cpu_of,
    cpu_of_tree,
    environment,
    measure,
    memory_of,
    python,
    scratch,
)
from demo import stack, synthetic
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.layout import RunLayout
from physionet_mirror.records import ShardResult

IMAGES, SIZE, SHARDS = 100_000, 10_000, 40
STREAMS, CONNECTIONS = 4, 4  # of the sink; Airflow's own run has as many
DAG, BUCKET = "mimic_cxr_jpg", "soak"
CONTENTS = 64


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure: ``{"images", "seconds", "rates", "memory", "failures", …}``."""
    images = IMAGES // 50 if short else IMAGES
    dataset, home = folder / "physionet", folder / "airflow"
    version = make_dataset(dataset, images)
    shutil.rmtree(home, ignore_errors=True)
    password = {"conn_type": "http", "login": "nobody", "password": "nothing"}
    memory: dict[str, list[tuple[float, float]]] = {}
    taken: list[tuple[float, float]] = []  # (time, CPU seconds of the S3 server so far)
    where = scratch(folder, "s3")
    with (
        stack.s3_server(where, log=folder / "s3.log") as s3,
        _servers.files(folder / "nginx", dataset) as url,
        stack.airflow(
            home,
            connections={"physionet_default": {**password, "host": url}, "aws_default": s3.connection()},
            extra_env={"PYTHONDONTWRITEBYTECODE": ""},
            timeout=300,
        ) as running,
    ):
        s3.make_bucket(BUCKET)
        size = -(-images // (4 if short else SHARDS))
        conf = {"bucket": BUCKET, "select": "all", "shard_size": size, "connections": 16, "approve_above_gb": 0}
        begun = time.monotonic()
        run_id = running.api.trigger(DAG, conf)
        while (state := running.api.state(DAG, run_id)) not in ("success", "failed"):
            taken.append((time.time(), cpu_of([s3.service])))
            for name, service in running.services.items():
                memory.setdefault(name, []).append((time.monotonic() - begun, memory_of(service)))
            if time.monotonic() - begun > 4 * 3600:
                raise RuntimeError(f"The run was still {state} after four hours; logs below {home}")
            time.sleep(2)
        seconds = time.monotonic() - begun
        tasks = running.api.task_instances(DAG, run_id)
        layout = RunLayout(run_id)
        results = [
            ShardResult.from_json(json.loads(f.read_text()))
            for f in (where / BUCKET / MIMIC_CXR_JPG.name / layout.results).glob("*.json")
        ]
        failed = where / BUCKET / MIMIC_CXR_JPG.name / layout.failed_images
        failures = len(failed.read_text().splitlines()) if failed.exists() else 0
        stored = sum(1 for _ in (where / BUCKET / MIMIC_CXR_JPG.name / "files").rglob("*.jpg"))
    moments = sorted(float(line.split()[0]) for line in (folder / "nginx" / "files.log").read_text().splitlines())
    expected = sum(1 for _ in (version / "files").rglob("*.jpg"))
    return {
        "images": expected,
        "stored": stored,
        "state": state,
        "failures": failures,
        "retries": sum(r.retries for r in results),
        "task_tries": sum(t["try_number"] for t in tasks if t["state"] == "success")
        - sum(t["state"] == "success" for t in tasks),
        "seconds": seconds,
        "rates": _rates(moments),
        "taker_ms": _cost(moments, taken),
        "memory": {name: _tenths([mb for _, mb in samples]) for name, samples in memory.items()},
        "sink": _into_sink(folder, version),
    }


def _into_sink(folder: Path, version: Path) -> dict[str, Any]:
    """Stream all images into the sink: ``{"images", "stored", "seconds", "rates", "taker_ms", "cpu"}``."""
    images = [line for line in (version / "SHA256SUMS.txt").read_text().splitlines() if " files/" in line]
    taken: list[tuple[float, float]] = []
    with (
        stack.s3_server(scratch(folder, "state"), log=folder / "state.log") as s3,
        _servers.sink(folder / "sink", s3) as taker,
        _servers.files(folder / "nginx-2", version.parents[1]) as url,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        s3.make_bucket(BUCKET)

        def stream(number: int) -> dict[str, Any]:
            sums = folder / f"sums-{number}.txt"
            first, last = len(images) * number // STREAMS, len(images) * (number + 1) // STREAMS
            sums.write_text("".join(f"{line}\n" for line in images[first:last]))
            given = {
                "url": url,
                "login": ("nobody", "nothing"),
                "endpoint": taker,
                "keys": (s3.access_key, s3.secret_key),
                "bucket": BUCKET,
                "sums": str(sums),
                "connections": CONNECTIONS,
                "flat": False,
            }
            env = environment({"BENCH": json.dumps(given)})
            return measure(python("bench.streaming", "--child"), env, folder / f"stream-{number}.log").json()

        sink = psutil.Process(int((folder / "sink" / "nginx.pid").read_text()))
        begun = time.monotonic()
        streams = [pool.submit(stream, number) for number in range(STREAMS)]
        while not all(one.done() for one in streams):
            taken.append((time.time(), cpu_of_tree(sink)))
            time.sleep(1)
        seconds = time.monotonic() - begun
        found = [one.result() for one in streams]
        stored = _servers.taken(folder / "sink")
        moments = sorted(float(line.split()[0]) for line in (folder / "nginx-2" / "files.log").read_text().splitlines())
    return {
        "images": len(images),
        "stored": stored,
        "seconds": seconds,
        "rates": _rates(moments),
        "taker_ms": _cost(moments, taken),
        "cpu": 1000 * sum(one["cpu"] for one in found) / len(images),
    }


def make_dataset(root: Path, images: int) -> Path:
    """Make tables of a synthetic cohort, and images of random bytes: a few contents, hard-linked under all names."""
    marker, wanted = root / ".soak", f"{images} x {SIZE}"
    version = root / MIMIC_CXR_JPG.name
    if marker.exists() and marker.read_text() == wanted:
        return version
    shutil.rmtree(root, ignore_errors=True)
    drawn = synthetic.cohort(images)
    synthetic.write(root, drawn, with_images=False, dicoms=0)
    rng, contents = random.Random(images), []
    for number in range(CONTENTS):
        data = rng.randbytes(SIZE)
        file = root / f"{number}.bin"
        file.write_bytes(data)
        contents.append((file, hashlib.sha256(data).hexdigest()))
    lines = (version / "SHA256SUMS.txt").read_text().splitlines()
    for number, line in enumerate(lines):
        path = line.split(" ", 1)[1]
        if path.startswith("files/"):
            file, sha256 = contents[number % CONTENTS]
            (version / path).parent.mkdir(parents=True, exist_ok=True)
            (version / path).hardlink_to(file)
            lines[number] = f"{sha256} {path}"
    (version / "SHA256SUMS.txt").write_text("".join(f"{line}\n" for line in lines))
    marker.write_text(wanted)
    return version


def _rates(moments: list[float]) -> list[float]:
    """Images a second in each tenth of the images."""
    tenth = len(moments) // 10
    cuts = [moments[n * tenth : (n + 1) * tenth + 1] for n in range(10)]
    return [(len(cut) - 1) / max(cut[-1] - cut[0], 1e-9) for cut in cuts]


def _cost(moments: list[float], used: list[tuple[float, float]]) -> list[float]:
    """CPU milliseconds an image in each tenth of the images, from (time, seconds used so far)."""
    import numpy as np

    tenth = len(moments) // 10
    at = np.interp(moments[::tenth][:11], *zip(*used, strict=True))
    return [float(ms) for ms in np.diff(at) / tenth * 1000]


def _tenths(samples: list[float]) -> list[float]:
    """The median of each tenth of the samples."""
    cuts = [samples[n * len(samples) // 10 : (n + 1) * len(samples) // 10] for n in range(10)]
    return [statistics.median(cut) if cut else 0.0 for cut in cuts]


def table(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    lines = [
        f"{result['stored']:,} of {result['images']:,} images in {result['seconds']:.0f} s, {result['failures']} failed, "
        f"{result['retries']} retries of images, {result['task_tries']} of tasks. The run is {result['state']}.",
        "",
        *_tenths_of(result, "S3 server"),
        *(_row(f"{name}, MB", samples) for name, samples in result["memory"].items()),
    ]
    sink = result["sink"]
    lines += [
        "",
        f"Into the sink, by {STREAMS} processes without Airflow: {sink['stored']:,} of {sink['images']:,} images in "
        f"{sink['seconds']:.0f} s, {sink['cpu']:.2f} ms of the mirror's CPU an image.",
        "",
        *_tenths_of(sink, "sink"),
    ]
    return "\n".join(lines)


def _tenths_of(result: dict[str, Any], server: str) -> list[str]:
    """The head of a table with a column for each tenth of the images, the rates, and what they cost the server."""
    return [
        _row("tenth of the images", range(1, 11)),
        "|---" * 11 + "|",
        _row("images/s", result["rates"]),
        _row(f"{server}, CPU ms an image", result["taker_ms"], digits=2),
    ]


def _row(name: str, values: Iterable[float], digits: int = 0) -> str:
    return f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |"


def checks(result: dict[str, Any]) -> list[Check]:
    """The targets: no failures, steady speed, and no growing memory."""
    early, late = result["rates"][1], result["rates"][8]
    whole = result["state"] == "success" and result["stored"] == result["images"] and not result["failures"]
    found = [
        Check("soak: images stored", f"{result['stored']:,} of {result['images']:,}", "all", whole),
        Check("soak: images/s at the end over the start", f"{late / early:.2f}", "0.95", late / early >= 0.95),
    ]
    sink = result["sink"]["rates"]
    steady = sink[8] / sink[1]
    found.append(
        Check("soak, into the sink: images/s at the end over the start", f"{steady:.2f}", "0.95", steady >= 0.95)
    )
    for name, samples in result["memory"].items():
        growth = samples[8] / samples[2] - 1
        found.append(Check(f"soak: growth of the {name}'s memory", f"{growth:+.0%}", "+10%", growth <= 0.10))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command_line(__doc__, "soak", run, table, checks, short="2,000 images in 4 shards", arguments=arguments)


if __name__ == "__main__":
    main()
