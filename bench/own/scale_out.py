"""Scale-out, and what Airflow itself costs: a real Airflow with Celery workers on this machine.

    python -m bench.own.scale_out [--part workers|shards] [--folder .state/bench/scale_out] [--short]

1. Workers: the same images from a look-alike as users report PhysioNet (60 ms round trip, 650 kB/s a connection), with 1, 2
   and 4 Celery workers, each streaming two shards over eight connections. As with PhysioNet, most of the time is waiting
   for the network, so that the ratio shows how the work spreads and not how many cores there are.
2. Shards: a run in which everything is there already, cut into 200, 400 and 800 shards. Its cost is Airflow's own: CPU
   seconds of scheduler, API server and workers for each shard, wall time, and the scheduler's memory.

Needs redis-server on PATH (Debian: apt install redis-server). Celery and its provider are installed into their own
environment below the folder at the first call. Airflow's database is SQLite, unless --database names a PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench._measure import cpu_of
from physionet_mirror.records import ShardResult

ROOT = Path(__file__).resolve().parents[2]
DAG = "mimic_cxr_jpg"
BUCKET = "bench"
WORKERS = (1, 2, 4)
SHARDS = (200, 400, 800)
STREAMS_A_WORKER = 2
CONNECTIONS_A_WORKER = 8
CELERY = ("apache-airflow-providers-celery==3.26.0", "celery[redis]<5.7")  # 5.7 dropped what 3.26.0 imports
RATE = 650_000  # bytes a second of one PhysioNet connection
IMAGE_BYTES = 1_620_000


# ------------------------------------------------------------------------------------------------------ the stack


@dataclass
class Cost:
    """The cost of the processes of one kind.

    Attributes:
        cpu: CPU seconds, including children that have ended.
        peak_mb: The largest resident memory seen, in MB, of the process and its children.
    """

    cpu: float = 0.0
    peak_mb: float = 0.0


@dataclass
class Stack:
    """A running Airflow on Celery."""

    api: Any
    services: dict[str, Any] = field(repr=False)

    @contextmanager
    def measured(self) -> Iterator[dict[str, Cost]]:
        """Costs by kind (scheduler, api-server, dag-processor, worker) over the block; filled in at its end."""
        kinds = {name: name.rstrip("0123456789") for name in self.services}
        costs = {kind: Cost() for kind in kinds.values()}
        before = {name: cpu_of([service]) for name, service in self.services.items()}
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                for name, service in self.services.items():
                    cost = costs[kinds[name]]
                    cost.peak_mb = max(cost.peak_mb, _memory_mb(service))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield costs
        finally:
            over.set()
            watcher.join()
            for name, service in self.services.items():
                costs[kinds[name]].cpu += cpu_of([service]) - before[name]


def _memory_mb(service: Any) -> float:
    import psutil

    total = 0
    try:
        root = service.process
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total / 1e6


@contextmanager
def airflow_on_celery(
    home: Path, *, workers: int, connections: dict[str, Any], concurrency: int, streams: int, database: str | None
) -> Iterator[Stack]:
    """Run API server, scheduler, DAG processor and Celery workers; yields once healthy, with the pool ``physionet``."""
    from demo.stack import POOL, AirflowApi, Service, airflow_command, airflow_environment, free_port, migrate

    port, redis_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    env = airflow_environment(home, connections=connections)
    if database:
        env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
    env |= {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{redis_port}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"redis://127.0.0.1:{redis_port}/1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__CORE__PARALLELISM": str(max(32, workers * concurrency)),
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(max(16, workers * concurrency)),
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
        "PHYSIONET_POOL": POOL,
        "PHYSIONET_STREAMS": str(streams),
    }
    migrate(home, env)
    redis = ["redis-server", "--port", redis_port, "--bind", "127.0.0.1", "--save", "", "--dir", home]
    commands: dict[str, Sequence[str]] = {
        "api-server": ["api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        "dag-processor": ["dag-processor"],
        "scheduler": ["scheduler", "--skip-serve-logs"],
    }
    for number in range(1, workers + 1):
        name = f"worker{number}"
        options = ["--concurrency", str(concurrency), "--celery-hostname", f"{name}@bench", "--skip-serve-logs"]
        commands[name] = ["celery", "worker", *options]
    with ExitStack() as stack:
        queue = stack.enter_context(Service("Redis", redis, log=home / "redis.log", env=env))
        queue.wait_for("Ready to accept connections")
        services = {
            name: Service(name, airflow_command(*command), log=home / f"{name}.log", env=env)
            for name, command in commands.items()
        }
        stack.callback(lambda: [service.stop() for service in services.values()])
        stack.callback(lambda: [service.ask_to_stop() for service in services.values()])
        for service in services.values():
            service.start()
        for number in range(1, workers + 1):
            services[f"worker{number}"].wait_for(r"\bready\.", timeout=300)
        api = AirflowApi(url, "admin", json.loads((home / "keys.json").read_text())["password"])
        _wait_for_scheduler(api, services)
        api.make_pool(POOL, streams)
        yield Stack(api, services)


def _wait_for_scheduler(api: Any, services: dict[str, Any], timeout: float = 300) -> None:
    import requests

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for service in services.values():
            service.check()
        try:
            parts = requests.get(f"{api.url}/api/v2/monitor/health", timeout=5).json()
            if all(parts[name]["status"] == "healthy" for name in ("scheduler", "dag_processor")):
                return
        except (requests.RequestException, ValueError, KeyError):
            pass
        time.sleep(0.5)
    raise RuntimeError(f"Airflow was not healthy within {timeout:.0f} s")


# ------------------------------------------------------------------------------------------------------- measuring


def run(
    folder: Path,
    *,
    part: str | None = None,
    images: int = 3000,
    workers: Sequence[int] = WORKERS,
    shards: Sequence[int] = SHARDS,
    database: str | None = None,
) -> dict[str, Any]:
    """Measure and return ``{"workers": [...], "shards": [...]}``.

    Args:
        folder: For dataset, bucket, Airflow's homes and logs.
        part: The only part to run, ``workers`` or ``shards``; both if not given.
        images: Number of images of the first part.
        workers: Numbers of workers to compare.
        shards: Numbers of shards to compare.
        database: SQLAlchemy URL of an empty PostgreSQL database, else SQLite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"images": images, "database": "PostgreSQL" if database else "SQLite"}
    if part != "shards":
        result["workers"] = []
        for count in workers:
            result["workers"].append(_with_workers(folder, count, images, max(workers), database))
            print(json.dumps(result["workers"][-1]), file=sys.stderr)
    if part != "workers":
        result["shards"] = _with_shards(folder, shards, database)
    return result


def _with_workers(folder: Path, workers: int, images: int, most: int, database: str | None) -> dict[str, Any]:
    from demo import synthetic
    from demo.stack import connections, physionet, s3_server

    dataset = folder / "physionet"
    synthetic.ensure(dataset, images)
    home = folder / f"workers-{workers}"
    shutil.rmtree(home, ignore_errors=True)
    streams = STREAMS_A_WORKER * workers
    pace = ["--as-users-report-it", "--check-seconds", "0"]
    with (
        s3_server(home / "s3") as s3,
        physionet(dataset, log=home / "physionet.log", options=pace) as source,
        airflow_on_celery(
            home,
            workers=workers,
            connections=connections(s3, source),
            concurrency=STREAMS_A_WORKER,
            streams=streams,
            database=database,
        ) as stack,
    ):
        s3.make_bucket(BUCKET)
        # The same number of shards per stream for any number of workers, so that the work is the same.
        size = math.ceil(images / (STREAMS_A_WORKER * most * 2))
        conf = {
            "bucket": BUCKET,
            "select": "all",
            "shard_size": size,
            "connections": max(4, CONNECTIONS_A_WORKER * workers),
            "approve_above_gb": 0,
        }
        with stack.measured() as costs:
            started = time.monotonic()
            run_id = stack.api.trigger(DAG, conf)
            state = stack.api.wait(DAG, run_id, timeout=3600)
            wall = time.monotonic() - started
        tasks = stack.api.task_instances(DAG, run_id)
        if state != "success":
            raise RuntimeError(f"{workers} workers: the run is {state}; logs below {home}")
    streamed = [task for task in tasks if task["task_id"] == "mirror_shard.stream"]
    seconds = _span(streamed)
    done = sum(result.stored for result in _results(home / "s3" / BUCKET))
    return {
        "workers": workers,
        "streams": streams,
        "images": done,
        "shards": len(streamed),
        "hosts": len({(task["hostname"], task["pid"]) for task in streamed}),
        "stream_seconds": round(seconds, 1),
        "images_per_second": round(done / seconds, 1),
        "wall_seconds": round(wall, 1),
        "worker_cpu": round(costs["worker"].cpu, 1),
    }


def _with_shards(folder: Path, shards: Sequence[int], database: str | None) -> list[dict[str, Any]]:
    from demo import synthetic
    from demo.stack import connections, physionet, s3_server

    most = max(shards)
    dataset = folder / "small"
    synthetic.ensure(dataset, most, long_side=64)
    home = folder / "shards"
    shutil.rmtree(home, ignore_errors=True)
    found = []
    with (
        s3_server(home / "s3") as s3,
        physionet(dataset, log=home / "physionet.log", options=["--check-seconds", "0"]) as source,
        airflow_on_celery(
            home, workers=1, connections=connections(s3, source), concurrency=4, streams=4, database=database
        ) as stack,
    ):
        s3.make_bucket(BUCKET)
        conf = {"bucket": BUCKET, "select": "all", "connections": 16, "approve_above_gb": 0}
        first = stack.api.trigger(DAG, conf | {"shard_size": math.ceil(most / 4)})
        if stack.api.wait(DAG, first, timeout=3600) != "success":
            raise RuntimeError(f"the first run failed; logs below {home}")
        for count in shards:
            with stack.measured() as costs:
                run_id = stack.api.trigger(DAG, conf | {"shard_size": math.ceil(most / count)})
                state = stack.api.wait(DAG, run_id, timeout=7200)
            if state != "success":
                raise RuntimeError(f"{count} shards: the run is {state}; logs below {home}")
            sensors = [t for t in stack.api.task_instances(DAG, run_id) if t["task_id"] == "mirror_shard.missing"]
            cut = len(sensors)
            found.append(
                {
                    "shards": cut,
                    "wall_per_shard": round(_span(sensors) / cut, 3),
                    "scheduler_cpu_per_shard": round(costs["scheduler"].cpu / cut, 3),
                    "api_cpu_per_shard": round(costs["api-server"].cpu / cut, 3),
                    "worker_cpu_per_shard": round(costs["worker"].cpu / cut, 3),
                    "scheduler_peak_mb": round(costs["scheduler"].peak_mb),
                }
            )
            print(json.dumps(found[-1]), file=sys.stderr)
    return found


def _span(tasks: Sequence[dict[str, Any]]) -> float:
    """Seconds from the first one's start to the last one's end."""
    started = [datetime.fromisoformat(task["start_date"]) for task in tasks if task["start_date"]]
    ended = [datetime.fromisoformat(task["end_date"]) for task in tasks if task["end_date"]]
    return (max(ended) - min(started)).total_seconds()


def _results(bucket: Path) -> list[ShardResult]:
    files = bucket.glob("*/*/_mirror/runs/*/results/*.json")
    return [ShardResult.from_json(json.loads(file.read_text())) for file in files]


# ------------------------------------------------------------------------------------------------------- reporting


def table(result: dict[str, Any]) -> str:
    """The result as Markdown tables, with the shard size that follows from it."""
    lines: list[str] = []
    if measured := result.get("workers"):
        base = measured[0]["images_per_second"]
        lines += [
            "| Celery workers | streams | connections | images/s | ratio | of the ideal | seconds of streaming | whole run, s | worker CPU, s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for m in measured:
            ratio = m["images_per_second"] / base
            ideal = m["workers"] / measured[0]["workers"]
            lines.append(
                f"| {m['workers']} | {m['streams']} | {CONNECTIONS_A_WORKER * m['workers']} | {m['images_per_second']:.1f} | {ratio:.2f} | "
                f"{ratio / ideal:.0%} | {m['stream_seconds']:.1f} | {m['wall_seconds']:.1f} | {m['worker_cpu']:.1f} |"
            )
    if measured := result.get("shards"):
        lines += [
            "",
            f"| shards ({result['database']}) | wall s a shard | scheduler CPU s a shard | API server CPU s a shard | worker CPU s a shard | scheduler peak MB |",
            "|---|---|---|---|---|---|",
        ]
        for m in measured:
            lines.append(
                f"| {m['shards']} | {m['wall_per_shard']:.3f} | {m['scheduler_cpu_per_shard']:.3f} | {m['api_cpu_per_shard']:.3f} | "
                f"{m['worker_cpu_per_shard']:.3f} | {m['scheduler_peak_mb']} |"
            )
        lines += ["", shard_size_that_follows(measured)]
    return "\n".join(lines)


def shard_size_that_follows(measured: Sequence[dict[str, Any]], connections: int = 8, share: float = 0.02) -> str:
    """The smallest shard with which Airflow's part stays below ``share`` of the run's time."""
    cost = max(m["wall_per_shard"] for m in measured) * 2  # a shard is two tasks; the skipped ones above were one
    images_a_second = connections * RATE / IMAGE_BYTES
    images = math.ceil(cost / share * images_a_second)
    return (
        f"A shard costs Airflow {cost:.2f} s in all. With {connections} connections PhysioNet gives {images_a_second:.1f} images a second, so that "
        f"shards of {images:,} images and more keep Airflow's part below {share:.0%}; the whole dataset in 400 shards has 943 in each."
    )


# ---------------------------------------------------------------------------------------------------------- set-up


def _in_its_own_environment(folder: Path, arguments: Sequence[str]) -> None:
    """Restart in a Python that has Airflow's Celery provider, unless this one has it."""
    if find_spec("celery") and find_spec("airflow.providers.celery"):
        return
    python = folder / "venv" / "bin" / "python"
    if not (folder / "venv" / ".ready").exists():
        print(f"Installing Airflow with Celery into {python.parents[1]}", file=sys.stderr)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, python.parents[1]], check=True)
        what = ["-r", ROOT / "requirements-dev.txt", "-c", ROOT / "constraints.txt", *CELERY]
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *what], check=True)
        (folder / "venv" / ".ready").touch()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "include")])
    os.execv(python, [str(python), "-m", "bench.own.scale_out", *arguments])  # noqa: S606 - a fixed program


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".state/bench/scale_out"), help="default %(default)s")
    parser.add_argument("--part", choices=("workers", "shards"))
    parser.add_argument("--images", type=int, default=3000, help="of the first part; default %(default)s")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--shards", type=int, nargs="+", default=list(SHARDS))
    parser.add_argument("--database", help="SQLAlchemy URL of an empty PostgreSQL; default: SQLite")
    parser.add_argument(
        "--short", action="store_true", help="to see that it works: 240 images, 1 and 2 workers, 10 and 20 shards"
    )
    options = parser.parse_args(arguments)
    if shutil.which("redis-server") is None:
        sys.exit("redis-server is not on PATH; nothing was measured. Debian, Ubuntu: apt install redis-server")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _in_its_own_environment(folder, sys.argv[1:] if arguments is None else arguments)
    if options.short:
        options.images, options.workers, options.shards = 240, [1, 2], [10, 20]
    result = run(
        folder,
        part=options.part,
        images=options.images,
        workers=options.workers,
        shards=options.shards,
        database=options.database,
    )
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    print(table(result))


if __name__ == "__main__":
    main()
