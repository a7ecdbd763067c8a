"""The overview page at full size: MIMIC-CXR-JPG's 377,110 images, MIMIC-IV-ECG's 1,600,070 files, and three projects more.

    python -m bench overview

Each round is a fresh process that does what the API server does for the page: it looks at all mirrors at once, then again with
nothing changed. Manifests and indexes are the mirror's own, in an S3 server on the same machine; writing them once takes about
two minutes. The memory is the peak of that process beyond what it had with its libraries, and the peak of one of the children in
which the tables are counted, of which at most two run at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench._measure import Check, environment, forget_peak, measure, peak_mb, python, rss_mb
from demo import stack

IMAGES = "mimic-cxr-jpg/2.1.0"
FILES = {
    "mimic-iv-ecg/1.0": 1_600_070,
    "first-project/1.0": 300_000,
    "second-project/1.0": 300_000,
    "third-project/1.0": 300_000,
}
"""Files of the projects without radiographs; MIMIC-IV-ECG has a header and a signal for each of 800,035 records."""

PATIENCE, TARGET = 6.0, 2.0
"""Seconds: the page shows its list after `mirrors.PATIENCE` with what is known by then; one project of hundreds of thousands."""
TARGETS = {"first look": PATIENCE, "nothing changed": 0.5, "mimic-iv-ecg/1.0": PATIENCE}
TARGET_MB, TARGET_CHILD_MB = 50.0, 1024.0
_BUCKET = "overview"


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure; time is the median of three processes, memory their maximum."""
    _write(folder, 50 if short else 1)
    rounds = []
    with stack.s3_server(folder / "s3") as s3:
        variables = {"OVERVIEW_S3": json.dumps([s3.endpoint, s3.access_key, s3.secret_key])}
        paths = os.pathsep.join(str(stack.ROOT / name) for name in ("", "include", "plugins"))
        for number in range(1 if short else 3):
            command = python("bench.own.overview", "--child")
            cost = measure(command, environment({**variables, "PYTHONPATH": paths}), folder / f"round-{number}.log")
            rounds.append(cost.json())
    seconds = {name: statistics.median(r["seconds"][name] for r in rounds) for name in rounds[0]["seconds"]}
    return {
        "files": rounds[0]["files"],
        "seconds": {name: round(taken, 2) for name, taken in seconds.items()},
        "peak_mb": round(max(r["peak_mb"] for r in rounds)),
        "child_mb": round(max(r["child_mb"] for r in rounds)),
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    lines = ["| overview | files | s |", "|---|---|---|"]
    for name, taken in result["seconds"].items():
        lines.append(f"| {name} | {result['files'].get(name, sum(result['files'].values())):,} | {taken:.2f} |")
    return "\n".join(lines) + f"\n\nPeak MB: the process {result['peak_mb']} more, a child {result['child_mb']}."


def checks(result: dict[str, Any]) -> list[Check]:
    """The targets."""
    found = []
    for name, taken in result["seconds"].items():
        target = TARGETS.get(name, TARGET)
        found.append(Check(f"overview: {name}", f"{taken:.2f} s", f"{target:g} s", taken <= target))
    memory, most = (result["peak_mb"], result["child_mb"]), (TARGET_MB, TARGET_CHILD_MB)
    is_right = all(taken <= target for taken, target in zip(memory, most, strict=True))
    what = "overview: peak of the process beyond its libraries, of a child"
    found.append(Check(what, f"{memory[0]}, {memory[1]} MB", f"{most[0]:g}, {most[1]:g} MB", is_right))
    return found


def _write(folder: Path, part: int) -> None:
    """Manifest and index of each project; again only where another size is asked for."""
    marker, wanted = folder / "written.json", json.dumps([FILES, part])
    if marker.exists() and marker.read_text() == wanted:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    from demo import synthetic
    from physionet_mirror import manifest
    from physionet_mirror.dataset import SUMS, project
    from physionet_mirror.layout import INDEX, MANIFEST

    synthetic.ensure(folder / "physionet", 377_110 // part, seed=1, with_images=False)
    for name in (IMAGES, *FILES):
        dataset, version = project(name), folder / "physionet" / name
        if name in FILES:
            version.mkdir(parents=True, exist_ok=True)
            (version / SUMS).write_bytes(b"".join(_sums(name, FILES[name] // part)))
        frame = manifest.of_all_files(dataset, {path: version / path for path in (SUMS, *dataset.tables.values())})
        target = folder / "s3" / _BUCKET / name
        (target / MANIFEST).parent.mkdir(parents=True, exist_ok=True)
        manifest.write(frame, target / MANIFEST, dataset=dataset, sums_sha256="0" * 64)
        of = pq.read_table(target / MANIFEST).replace_schema_metadata()
        key = [f"{name}/{path}" for path in frame["path"]]
        columns = {
            "path": of["path"],
            "key": pa.array(key),
            "uri": pa.array([f"s3://{_BUCKET}/{each}" for each in key]),
            "bytes": pa.array(range(1, len(key) + 1), pa.int64()),
            "sha256": of["sha256"],
            "level": pa.array(["checksum"] * len(key)),
            **{column: of[column] for column in of.column_names if column not in ("path", "sha256")},
        }
        pq.write_table(pa.table(columns), target / INDEX, compression="zstd")
    marker.write_text(wanted)


def _sums(name: str, files: int) -> Iterator[bytes]:
    """Lines of a SHA256SUMS.txt with paths as MIMIC-IV-ECG has them."""
    for number in range(files):
        patient, study = 10_000_000 + number // 10 * 61, 40_000_000 + number // 2
        path = f"files/p{patient // 10_000}/p{patient}/s{study}/{study}.{('dat', 'hea')[number % 2]}"
        yield f"{hashlib.sha256(f'{name} {number}'.encode()).hexdigest()} {path}\n".encode()


def _child() -> dict[str, Any]:
    import boto3

    from physionet_airflow.page import mirrors
    from physionet_airflow.page.runs import Mirror
    from physionet_mirror import overview
    from physionet_mirror.s3.bucket import Bucket

    endpoint, key, secret = json.loads(os.environ["OVERVIEW_S3"])
    session = boto3.Session(aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1")

    def opened(mirror: Mirror) -> Bucket:
        return Bucket.open(session, mirror.bucket, mirror.prefix, endpoint_url=endpoint)

    places = [Mirror(_BUCKET, name) for name in (IMAGES, *FILES)]
    opened(places[0]).head("")  # loads boto3's tables, as check_bucket or an earlier reader has
    forget_peak()
    before, seconds = rss_mb(), {}
    began = time.perf_counter()
    seen = mirrors.look(places, opened, patience=120)
    seconds["first look"] = time.perf_counter() - began
    known = {place: found.overview for place, found in seen.items() if found.overview is not None}
    assert len(known) == len(places), [found.trouble for found in seen.values()]
    began = time.perf_counter()
    for place in places:
        assert overview.overview(opened(place), known[place]) is not None
    seconds["nothing changed"] = time.perf_counter() - began
    for place in places:
        began = time.perf_counter()
        overview.overview(opened(place))
        seconds[place.prefix] = time.perf_counter() - began
    assert all(found.whole.verified == found.whole.images for found in known.values())
    return {
        "files": {place.prefix: found.whole.images for place, found in known.items()},
        "seconds": seconds,
        "peak_mb": peak_mb() - before,
        "child_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(_child()))
