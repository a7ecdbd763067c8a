"""Loading for training: images a second and core, from S3, by the loops of the documentation.

    python -m bench loading [--short]

The S3 server is rclone, behind a relay that begins each answer 20 ms later. The originals are synthetic radiographs of about
1.5 MB each; the set of 512 pixels is made of them by the steps of `mimic_cxr_training_set`. Each loop is the one of its page
(docs/training.md, docs/training-set.md), run as written in a process of its own, without torch: what stands in for it passes
arrays on. A core is what a loader's worker process takes, so the figure is images by CPU seconds of that process, and beside
it images by seconds of one process. A loop is measured from its first line to its last image, imports aside: what it reads
ahead counts.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import re
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from bench._measure import Check, command_line, environment, measure, python, scratch
from bench.pixels import original
from demo import stack
from demo.lookalike import Lookalike, User
from demo.synthetic import cohort, write
from physionet_mirror import index, manifest
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.layout import MANIFEST, RunLayout
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import training_set
from physionet_mirror.steps.fetch_metadata import fetch_metadata
from physionet_mirror.training.request import TrainingRequest
from physionet_mirror.verification import Verdict, Verified

BUCKET = "bench"
IMAGES = 600
ORIGINALS = 150
"""Originals that are loaded; decoding all of them would tell nothing more."""
DELAY = 0.02
SHARD_MB = 32
PREFIX = MIMIC_CXR_JPG.name
TIMES = 20.0
CASES = {
    "originals": "originals, the Dataset of training.md",
    "webdataset": "tars, WebDataset",
    "datasets": "tars, Hugging Face datasets, streaming",
    "ranges": "tars, a range request an image, 16 under way",
}


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure: ``{"images", "rows": [{"case", "images", "seconds", "cpu"}], "made"}``."""
    folder = scratch(folder, "loading")
    images = IMAGES // 10 if short else IMAGES
    with stack.s3_server(folder / "buckets") as server:
        server.make_bucket(BUCKET)
        with _relay(server.endpoint, folder) as endpoint:
            env = environment(
                {
                    "AWS_ACCESS_KEY_ID": server.access_key,
                    "AWS_SECRET_ACCESS_KEY": server.secret_key,
                    "AWS_ENDPOINT_URL_S3": endpoint,
                    "AWS_DEFAULT_REGION": stack.REGION,
                }
            )

            def child(case: str, count: int) -> tuple[dict[str, Any], float]:
                command = [*python("bench.loading"), "--child", case, "--images", str(count)]
                cost = measure(command, env, folder / f"{case}.log")
                return cost.json(), cost.peak_mb

            size = _fill(Bucket.open(server.session(), BUCKET, PREFIX, endpoint_url=server.endpoint), folder, images)
            made, peak = child("make", images)
            rows = [
                {"case": case, **child(case, min(images, ORIGINALS) if case == "originals" else images)[0]}
                for case in CASES
            ]
    return {"images": images, "rows": rows, "made": {**made, "peak_mb": peak, "read": size * images}}


def _fill(bucket: Bucket, folder: Path, images: int) -> int:
    """Mirror so many radiographs; the size of each. The tables are a dataset's; all images are one radiograph of full size."""
    data = original()
    sha256 = hashlib.sha256(data).hexdigest()
    write(folder / "dataset", cohort(images, seed=1, long_side=32))
    with Lookalike(folder / "dataset", users={"reader": User("secret")}) as server:
        fetch_metadata(PhysioNet(server.url, "reader", "secret"), bucket, MIMIC_CXR_JPG)
    whole = manifest.images(manifest.read(io.BytesIO(bucket.read(MANIFEST))))
    for path in whole["path"]:
        bucket.put(path, data, content_type="image/jpeg")
    ok = [Verified(path, len(data), "", sha256) for path in whole["path"]]
    verdict = Verdict("checksum", ok, [], remembered=0, seconds=1, requests={})
    index.update(bucket, verdict, io.BytesIO(bucket.read(MANIFEST)))
    return len(data)


@contextmanager
def _relay(endpoint: str, folder: Path) -> Iterator[str]:
    command = [*python("bench._relay"), "--to", endpoint.removeprefix("http://"), "--delay", str(DELAY)]
    with stack.Service("relay", command, log=folder / "relay.log", env=stack.plain_environment()) as service:
        yield json.loads(service.wait_for(r"\{.*\}", 30)[0])["url"]


# -- the loops, in processes of their own ------------------------------------------------------------------------------


def _blocks(page: str) -> list[str]:
    text = (stack.ROOT / "docs" / page).read_text()
    return [
        block.replace("my-bucket", BUCKET).replace("_training/512", f"_training/512-{SHARD_MB}mb")
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ]


def _bucket() -> Bucket:
    """The bucket as the environment says."""
    return Bucket.open(boto3.Session(), BUCKET, PREFIX, endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])


def _make(images: int) -> dict[str, float]:
    """Make the training set as the DAG's tasks do, one tar after the other; what making the tars took."""
    bucket, run = _bucket(), RunLayout("bench", "mimic_cxr_training_set")
    request = TrainingRequest.from_params({"bucket": BUCKET, "shard_mb": SHARD_MB})
    planned = training_set.plan_set(request, bucket, run, params={}, most_tars=1000)
    begun, cpu = time.perf_counter(), time.process_time()
    for tar in planned.to_make:
        training_set.make_tar(tar, request, bucket)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    made = training_set.verify_set(request, bucket, run, MIMIC_CXR_JPG)
    if made.images != images:
        raise RuntimeError(f"{made.images} of {images} images are in the set")
    return {"seconds": seconds, "cpu": cpu, "bytes": made.bytes}


def _originals() -> Iterator[Any]:
    data = types.SimpleNamespace(Dataset=object)
    sys.modules["torch"] = stand_in = types.ModuleType("torch")
    stand_in.__dict__.update(utils=types.SimpleNamespace(data=data), from_numpy=lambda a: a, tensor=lambda a: a)
    names: dict[str, Any] = {}
    exec(next(block for block in _blocks("training.md") if "class Radiographs" in block), names)  # noqa: S102 - the page's own loop is what is measured
    table = index.read(_bucket())
    assert table is not None
    rows = table.select(["key", "Pneumonia"]).to_pandas()
    dataset = names["Radiographs"](rows, "Pneumonia", bucket=BUCKET)
    return (dataset[number] for number in range(len(rows)))


def _set(block: int) -> dict[str, Any]:
    blocks, names = _blocks("training-set.md"), {}
    every = blocks[0].replace('if tar["name"].startswith("train-")', "")
    exec(every, names)  # noqa: S102
    if block:
        exec(blocks[block], names)  # noqa: S102
    return names


def _webdataset() -> Iterator[Any]:
    return iter(_set(0)["train"])


def _datasets() -> Iterator[Any]:
    import numpy as np

    for sample in _set(2)["streamed"]:
        yield np.asarray(sample["image"], dtype="float32") / 255, sample["labels"]["Pneumonia"]


def _ranges() -> Iterator[Any]:
    import numpy as np

    names = _set(3)
    rows = names["index"].sample(frac=1, random_state=0)
    for begin in range(0, len(rows), 64):
        part = rows[begin : begin + 64]
        for image, positive in zip(names["batch"](part), part["Pneumonia"], strict=True):
            yield np.asarray(image, dtype="float32") / 255, positive


LOOPS: dict[str, Callable[[], Iterator[Any]]] = {
    "originals": _originals,
    "webdataset": _webdataset,
    "datasets": _datasets,
    "ranges": _ranges,
}


def _child(case: str, images: int) -> dict[str, float]:
    if case == "make":
        return _make(images)
    next(LOOPS[case]())  # imports
    begun, cpu = time.perf_counter(), time.process_time()
    seen = sum(1 for _ in itertools.islice(LOOPS[case](), images))
    if seen < images:
        raise RuntimeError(f"{seen} of {images} images came")
    return {"images": seen, "seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}


# -- the table ---------------------------------------------------------------------------------------------------------


def _a_core(row: dict[str, Any]) -> float:
    return float(row["images"] / row["cpu"])


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    first, made = _a_core(result["rows"][0]), result["made"]
    return "\n".join(
        [
            "| loaded from S3, 20 ms an answer | images a second and core | times the originals | images a second, one process |",
            "|---|---|---|---|",
            *(
                f"| {CASES[row['case']]} | {_a_core(row):.0f} | {_a_core(row) / first:.1f} | {row['images'] / row['seconds']:.0f} |"
                for row in result["rows"]
            ),
            "",
            f"Making the set of {result['images']:,} images: {result['images'] / made['seconds']:.0f} a second on "
            f"{os.cpu_count()} cores that the S3 server shares, {1e9 * made['cpu'] / made['read']:.1f} CPU s a GB of originals, "
            f"{made['bytes'] / result['images'] / 1000:.0f} kB an image, {made['peak_mb']:.0f} MB at most.",
        ]
    )


def checks(result: dict[str, Any]) -> list[Check]:
    """Tars against originals."""
    by_case = {row["case"]: _a_core(row) for row in result["rows"]}
    times = by_case["webdataset"] / by_case["originals"]
    return [Check("loading: tars by WebDataset, times the originals", f"{times:.1f}", f"{TIMES:g}", times >= TIMES)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--child" in given:
        parser = argparse.ArgumentParser()
        parser.add_argument("--child", required=True)
        parser.add_argument("--images", type=int, required=True)
        options = parser.parse_args(given)
        print(json.dumps(_child(options.child, options.images)))
        return
    command_line(__doc__, "loading", run, table, checks, short="60 images", arguments=given)


if __name__ == "__main__":
    main()
