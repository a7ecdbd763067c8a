"""Airflow's own cost: parsing, the time to the first image, and shards.

    python -m bench.own.airflow_share [--short] [--folder .state/bench/airflow_share]

1. Parsing: fresh processes parse the DAG files with Airflow's own DagBag, as its DAG processor does, and also a folder with
   one DAG of one empty task, which takes the time of importing Airflow. The difference is our share.
2. From trigger to the first image, and the wall time of a run of 2,000 small images in 2, 10 and 50 shards, on the demo's
   stack (LocalExecutor, SQLite). Images are a few kB, so that Airflow's part dominates.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._measure import Check, command_line, cpu_of, environment, measure, scratch
from demo import stack, synthetic
from physionet_mirror.dataset import MIMIC_CXR_JPG

IMAGES, SHARDS = 2000, (2, 10, 50)
DAG = "mimic_cxr_jpg"
HEAVY = ("pandas", "numpy", "pyarrow", "boto3", "botocore", "matplotlib", "PIL")
"""Modules that a DAG file must not import."""
ALONE = """\
from airflow.sdk import DAG, BaseOperator

with DAG("alone", schedule=None):
    BaseOperator(task_id="nothing")
"""
PARSE = """\
import json, sys, time
begun, cpu = time.monotonic(), time.process_time()
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
assert bag.dags and not bag.import_errors, bag.import_errors
heavy = sorted(set(sys.argv[2].split(",")) & set(sys.modules))
print()
print(json.dumps({"seconds": time.monotonic() - begun, "cpu": time.process_time() - cpu, "heavy": heavy, "dags": len(bag.dags)}))
"""


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure: ``{"parsing": {…}, "shards": [{"shards", "wall", "first_image", "cpu"}]}``."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"parsing": _parsing(folder, 3 if short else 7), **_runs(folder, short)}


def _parsing(folder: Path, rounds: int) -> dict[str, Any]:
    home, alone = folder / "parse", folder / "alone"
    alone.mkdir(exist_ok=True)
    (alone / "alone.py").write_text(ALONE)
    env = environment() | stack.airflow_environment(home, connections={})
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    stack.migrate(home, env)
    found: dict[str, list[dict[str, Any]]] = {"alone": [], "dags": []}
    for number in range(rounds + 1):
        for name, where in (("alone", alone), ("dags", stack.ROOT / "dags")):
            command = [sys.executable, "-c", PARSE, where, ",".join(HEAVY)]
            one = measure(command, env, folder / f"{name}.log").json()
            if number:  # the first one writes bytecode
                found[name].append(one)

    def middle(name: str, figure: str) -> float:
        return statistics.median(one[figure] for one in found[name])

    return {
        "airflow": middle("alone", "seconds"),
        "airflow_cpu": middle("alone", "cpu"),
        "over": middle("dags", "seconds") - middle("alone", "seconds"),
        "over_cpu": middle("dags", "cpu") - middle("alone", "cpu"),
        "dags": found["dags"][0]["dags"],
        "heavy": sorted({module for one in found["dags"] for module in one["heavy"]}),
        "heavy_alone": sorted({module for one in found["alone"] for module in one["heavy"]}),
    }


def _runs(folder: Path, short: bool) -> dict[str, Any]:
    images, cuts = (200, (2, 5)) if short else (IMAGES, SHARDS)
    dataset, home = folder / "physionet", folder / "airflow"
    synthetic.ensure(dataset, images, long_side=64)
    shutil.rmtree(home, ignore_errors=True)
    found = []
    options = ("--check-seconds", "0.130")
    with (
        stack.s3_server(scratch(folder, "s3"), log=folder / "s3.log") as s3,
        stack.physionet(dataset, log=folder / "physionet.log", options=options) as source,
        stack.airflow(
            home, connections=stack.connections(s3, source), extra_env={"PYTHONDONTWRITEBYTECODE": ""}, timeout=300
        ) as running,
    ):
        running.api.wait_for_dag(DAG, timeout=120)
        for count in cuts:
            bucket = s3.make_bucket(f"shards-{count}")
            size = math.ceil(images / count)
            conf = {"bucket": bucket.name, "select": "all", "shard_size": size, "approve_above_gb": 0}
            before = cpu_of(running.services.values())
            begun = time.monotonic()
            run_id = running.api.trigger(DAG, conf)
            first = _first_image(bucket / MIMIC_CXR_JPG.name / "files", begun)
            state = running.api.wait(DAG, run_id, timeout=1800)
            wall = time.monotonic() - begun
            if state != "success":
                raise RuntimeError(f"{count} shards: the run is {state}; logs below {home}")
            cpu = cpu_of(running.services.values()) - before
            found.append({"shards": count, "wall": wall, "first_image": first, "cpu": cpu})
    return {"images": images, "shards": found}


def _first_image(files: Path, begun: float, timeout: float = 600) -> float:
    while not (files.is_dir() and next(files.rglob("*.jpg"), None)):
        if time.monotonic() - begun > timeout:
            raise RuntimeError(f"No image came within {timeout:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - begun


def table(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    p = result["parsing"]
    lines = [
        "| parsing | s | CPU s |",
        "|---|---|---|",
        f"| Airflow with one empty DAG | {p['airflow']:.2f} | {p['airflow_cpu']:.2f} |",
        f"| our {p['dags']} DAGs, over that | {p['over']:+.2f} | {p['over_cpu']:+.2f} |",
        "",
        f"Of {', '.join(HEAVY)}, our DAG files import: {', '.join(p['heavy']) or 'none'}; Airflow by itself: "
        f"{', '.join(p['heavy_alone']) or 'none'}.",
        "",
        f"| {result['images']:,} images in shards | trigger to first image, s | wall s | Airflow's CPU s, tasks included |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['shards']} | {r['first_image']:.1f} | {r['wall']:.1f} | {r['cpu']:.0f} |" for r in result["shards"]
    ]
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """The targets: parsing time and imports of the DAG files, time to the first image, cost of a shard."""
    p = result["parsing"]
    ours = sorted(set(p["heavy"]) - set(p["heavy_alone"]))
    walls = ", ".join(f"{r['shards']}: {r['wall']:.0f}" for r in result["shards"])
    first = statistics.median(r["first_image"] for r in result["shards"])
    return [
        Check("parsing all DAG files: s over Airflow", f"{p['over']:.2f}", "0.5", p["over"] <= 0.5),
        Check("parsing: heavy modules imported", ", ".join(ours) or "none", "none", not ours),
        Check("trigger to first image, s", f"{first:.1f}", "-", True),
        Check(f"{result['images']:,} images, s by shards", walls, "-", True),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command_line(__doc__, "airflow_share", run, table, checks, short="200 images, 2 and 5 shards", arguments=arguments)


if __name__ == "__main__":
    main()
