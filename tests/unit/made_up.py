"""A made-up manifest, verdict and shard results, and their report in a bucket in memory."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

from physionet_mirror import index
from physionet_mirror.dataset import LABELS, MIMIC_CXR_JPG
from physionet_mirror.layout import RunLayout
from physionet_mirror.records import Estimate, Plan, PlannedSelection
from physionet_mirror.report import document
from physionet_mirror.verification import Verdict, Verified

STARTED = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
RUN = RunLayout("manual__2026-03-01T22:00:00+00:00")


class FakeBucket:
    """Objects in a dictionary, with the part of Bucket that the report uses."""

    def __init__(self, prefix="mimic-cxr-jpg/2.1.0"):
        self.name, self.prefix, self.objects = "lab-bucket", prefix, {}

    def key(self, path):
        return f"{self.prefix}/{path}" if self.prefix else path

    def uri(self, path=""):
        return f"s3://{self.name}/{self.key(path)}".rstrip("/")

    def list(self, under=""):
        return [SimpleNamespace(path=path) for path in sorted(self.objects) if path.startswith(under)]

    def head(self, path):
        data = self.objects.get(path)
        return None if data is None else SimpleNamespace(etag=hashlib.sha256(data).hexdigest(), size=len(data))

    def read(self, path):
        try:
            return self.objects[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def open_read(self, path):
        yield self.read(path)

    def write(self, path, data, **_):
        self.objects[path] = data

    def write_unless_changed(self, path, data, before, **_):
        now = self.head(path)
        if (now and now.etag) != (before and before.etag):
            return False
        self.objects[path] = data
        return True

    def write_text(self, path, text, **_):
        self.objects[path] = text.encode()

    def write_json(self, path, value):
        self.objects[path] = json.dumps(value).encode()

    def discard(self, paths):
        for path in paths:
            self.objects.pop(path, None)


class OneFile:
    """A bucket that returns these bytes for every path."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def uri(self, path: str) -> str:
        return f"s3://b/{path}"

    def read(self, _: str) -> bytes:
        return self.data

    def open_read(self, _: str) -> Iterator[bytes]:
        for at in range(0, len(self.data), 1 << 20):
            yield self.data[at : at + (1 << 20)]


def make_manifest(count, seed=1, labels=LABELS):
    """A manifest as ``manifest.write`` leaves it, with plausible values."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        subject = 10_000_000 + number * 9_999_999 // max(count, 1)
        dicom = "-".join(f"{rng.getrandbits(32):08x}" for _ in range(5))
        study = 50_000_000 + number
        rows.append(
            {
                "path": f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg",
                "sha256": hashlib.sha256(dicom.encode()).hexdigest(),
                "group": f"p{str(subject)[:2]}",
                "subject_id": subject,
                "study_id": study,
                "dicom_id": dicom,
                "view": rng.choices(["AP", "PA", "LATERAL", "LL", None], [39, 26, 22, 9, 4])[0],
                "split": rng.choices(["train", "validate", "test"], [97, 1, 2])[0],
                "height": rng.choice([2544, 3056, 2022]),
                "width": rng.choice([3056, 2544, 1736]),
                **{label: rng.choices([1, 0, -1, None], [15, 8, 4, 73])[0] for label in labels},
            }
        )
    types = {"subject_id": pa.int32(), "study_id": pa.int32(), "height": pa.int32(), "width": pa.int32()}
    types |= dict.fromkeys(labels, pa.int8())
    names = list(rows[0])
    schema = pa.schema([(name, types.get(name, pa.large_string())) for name in names])
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({"physionet_mirror.sums_sha256": "ab" * 32}))
    out = io.BytesIO()
    pq.write_table(table, out)
    return rows, out.getvalue()


def make_verdict(rows, problems=(), level="checksum", seed=2):
    rng = random.Random(seed)
    bad = {problem.path for problem in problems}
    ok = [
        Verified(row["path"], int(rng.lognormvariate(14.15, 0.22)), f"{number:032x}", row["sha256"])
        for number, row in enumerate(rows)
        if row["path"] not in bad
    ]
    return Verdict(level, ok, sorted(problems), remembered=0, seconds=4.2, requests={"HEAD": len(ok), "LIST": 2})


def make_results(images, shards, streams=4, seed=3, failed=()):
    """Result files as the stream tasks write them: `streams` shards at once, 1.45 MB an image, 1.2 MB/s a stream."""
    rng = random.Random(seed)
    free = [STARTED + timedelta(minutes=2)] * streams
    results = []
    for number in range(shards):
        stream = min(range(streams), key=free.__getitem__)
        todo = images // shards + (number < images % shards)
        series, t, left = [], 0.0, todo
        while left > 0:
            t += 10
            done = min(left, max(1, round(rng.gauss(8.3, 1.2))))
            left -= done
            series.append([t, done, done * 1_450_000, 2])
        begun = free[stream]
        free[stream] = begun + timedelta(seconds=t + 3)
        results.append(
            {
                "shard": number,
                "name": f"p1{number % 10}, {todo} images",
                "state": "done",
                "try_number": 1,
                "started": begun.isoformat(),
                "updated": free[stream].isoformat(),
                "seconds": t,
                "images": todo,
                "todo": todo,
                "stored": todo,
                "bytes": todo * 1_450_000,
                "failed": [],
                "connections": 2,
                "retries": rng.choice([0, 0, 0, 1, 3]),
                "handshakes": 1,
                "faults": rng.choice([{}, {}, {"throttled": 2}, {"stalled": 1}]),
                "series": series,
            }
        )
    for number, (path, reason, detail) in enumerate(failed):
        result = results[number % len(results)]
        result["failed"].append({"path": path, "reason": reason, "detail": detail})
        result["state"] = "failed"
    return results


PARAMS = {
    "bucket": "lab-bucket",
    "select": "sample",
    "sample_size": 40,
    "views": ["AP", "PA"],
    "labels": [],
    "shard_size": None,
    "dry_run": False,
}


def written(
    count=40, problems=lambda _: [], results=(), bucket=None, level="checksum", *, notes=(), way=None, expected=None
):
    """A bucket after `index.update` and `document.write`, and what it returned."""
    bucket = bucket or FakeBucket()
    rows, manifest = make_manifest(count)
    for result in results:
        bucket.write_json(RUN.result(result["shard"]), result)
    verdict = make_verdict(rows, problems(rows), level)
    facts = document.write(
        bucket,
        RUN,
        dataset=MIMIC_CXR_JPG,
        verdict=verdict,
        index_rows=index.update(bucket, verdict, io.BytesIO(manifest)),
        manifest=manifest,
        params=PARAMS,
        started=STARTED,
        plan=Plan((), way=way or {}, selection=PlannedSelection(notes=notes), estimate=expected or Estimate()),
    )
    return bucket, facts.to_json(), rows
