"""``make demo``: the main job, from PhysioNet to a verified bucket, with every server running locally.

Starts the embedded stack (stack.py), triggers the DAG mimic_cxr_jpg through Airflow's REST API, shows its progress and its
report, and stops everything. The exit status is the run's result.
"""

from __future__ import annotations

import argparse
import fcntl
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo import stack
from physionet_mirror import words

if TYPE_CHECKING:
    from physionet_mirror.layout import RunLayout
    from physionet_mirror.s3.bucket import Bucket

STATE = stack.ROOT / ".state" / "demo"
DAG = "mimic_cxr_jpg"
BUCKET = "mimic-demo"
PREFIX = "mimic-cxr-jpg/2.1.0"

console = Console(highlight=False)


def main() -> int:
    """Run the demo; 0 when the DAG run succeeded, 1 when it or the stack failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="PhysioNet to S3 on embedded parts.")
    parser.add_argument("--images", type=int, default=200, help="sample size (default %(default)s of 600)")
    parser.add_argument("--keep", action="store_true", help="leave Airflow's UI up until Ctrl-C")
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(143))
    try:
        with _only_one(), _stack(with_access_point=options.keep) as (running, s3, bucket):
            run, state = _mirror(running, bucket, options.images)
            _show_result(running, bucket, s3.folder / BUCKET / PREFIX, run)
            if options.keep:
                _keep(running, s3)
            else:
                console.print("\nTo look around in Airflow's UI: [bold]make demo KEEP=1[/]")
    except KeyboardInterrupt:
        console.print(
            "\nInterrupted; every process of the demo is stopped. What is stored stays: run it again to continue."
        )
        return 130
    except stack.StackError as error:
        console.print(f"[red]{error}[/]")
        return 1
    return 0 if state == "success" else 1


@contextmanager
def _only_one() -> Iterator[None]:
    """Two demos would share one database."""
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise stack.StackError(f"Another demo is running in {STATE}; stop it first (Ctrl-C there).") from None
        yield


@contextmanager
def _stack(*, with_access_point: bool) -> Iterator[tuple[stack.Airflow, stack.S3Server, Bucket]]:
    """Start everything that the run needs; yields Airflow, the S3 server and the destination.

    With the access point, Airflow has the rights of a worker's role at AWS, and docs/access-point.md can be followed.
    """
    from physionet_mirror.s3.bucket import Bucket

    dataset = STATE / "physionet"
    dataset.mkdir(exist_ok=True)
    generator = stack.Service(
        "The generator of the synthetic dataset",
        [sys.executable, "-m", "demo.synthetic", "--root", dataset, "--if-missing"],
        log=STATE / "logs" / "synthetic.log",
        env=stack.plain_environment(),
    )
    logs = STATE / "logs"
    with (
        console.status("") as status,
        generator,
        stack.s3_server(STATE / "s3", log=logs / "s3.log") as s3,
        stack.physionet(dataset, log=logs / "physionet.log") as source,
        ExitStack() as more,
    ):
        s3.make_bucket(BUCKET)
        _done("S3 server", f"{s3.endpoint}, its objects are files in {_short(s3.folder)}")
        _done("PhysioNet look-alike", source.url)
        connections, extra_env = stack.connections(s3, source), {"MIMIC_CXR_BUCKET": BUCKET}
        if with_access_point:
            status.update("Drawing the dataset, unless it exists …")
            generator.wait()
            point = more.enter_context(stack.access_point(dataset, s3, log=logs / "access-point.log"))
            _done("PhysioNet's S3 access point", f"{point.name} at {point.endpoint} (try it with docs/access-point.md)")
            connections["aws_default"] = point.connection()
            extra_env |= point.variables()
        status.update("Starting Airflow, and drawing the dataset unless it exists …")
        with stack.airflow(STATE / "airflow", connections=connections, extra_env=extra_env) as running:
            _done("Airflow", running.url)
            status.update("Drawing the dataset …")
            generator.wait()
            _done("Synthetic MIMIC-CXR-JPG", generator.output().strip())
            running.api.wait_for_dag(DAG)
            running.api.forget_connection("physionet_s3")  # left by an earlier demo, with keys that are no longer valid
            status.stop()
            yield running, s3, Bucket.open(s3.session(), BUCKET, PREFIX, endpoint_url=s3.endpoint)
            status.update("Stopping Airflow, the look-alike and the S3 server …")
            status.start()
    console.print("Every process of the demo is stopped.")


def _mirror(running: stack.Airflow, bucket: Bucket, images: int) -> tuple[RunLayout, str]:
    """Trigger the DAG and show the progress that its tasks publish in the bucket; returns the run and its final state."""
    from physionet_mirror.layout import RunLayout

    run = RunLayout(f"demo-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    conf = {"bucket": BUCKET, "prefix": PREFIX, "sample_size": images}
    running.api.trigger(DAG, conf, run_id=run.run_id)
    console.print(f"\nTriggered the DAG [bold]{DAG}[/] with {images} images, run {run.run_id}")
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(40),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    state, asked = "queued", time.monotonic()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("waiting for the scheduler", total=images, text="")
        while state not in ("success", "failed"):
            time.sleep(0.3)
            progress.update(bar, **_progress(bucket, run))
            if time.monotonic() - asked > 1:
                state, asked = running.api.state(DAG, run.run_id), time.monotonic()
        progress.update(bar, description="done" if state == "success" else "failed")
        if state == "success":
            progress.update(bar, completed=progress.tasks[0].total)
    return run, state


def _progress(bucket: Bucket, run: RunLayout) -> dict[str, Any]:
    """The progress bar's fields, from plan.json and results/*.json of the run."""
    from physionet_mirror.records import Plan, load
    from physionet_mirror.report.document import read_results

    plan = load(bucket, run.plan, Plan)
    if plan is None:
        return {"description": "tables, checksums, plan"}
    results = read_results(bucket, run)
    stored, size = sum(result.stored for result in results), sum(result.bytes for result in results)
    at_work = [result for result in results if result.state == "running"]
    connections = sum(result.connections for result in at_work)
    return {
        "description": f"streaming, {connections} connections" if at_work else "shards and verification",
        "total": plan.selection.images,
        "completed": sum(result.images - result.todo + result.stored for result in results),
        "text": f"{stored} images, {words.size(size)}" if results else "",
    }


def _show_result(running: stack.Airflow, bucket: Bucket, folder: Path, run: RunLayout) -> None:
    from physionet_mirror.records import RunReport, load

    report = load(bucket, run.report_json, RunReport)
    if report is None:
        console.print("[red]The run ended before its verification.[/]")
    else:
        result, transfer = report.result, report.transfer
        table = Table(title=f"Verification, level {result.level}", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name in ("selected", "present", "verified", "missing", "wrong", "empty"):
            count = getattr(result, name)
            bad = count and name in ("missing", "wrong", "empty")
            table.add_row(name, f"[red]{count:,}[/]" if bad else f"{count:,}")
        table.add_row("size", words.size(result.bytes))
        table.add_row("fetched by this run", f"{transfer.images:,}")
        console.print(table)
        if result.passed and not transfer.images:
            console.print(f"All {result.selected} images were there already: nothing was fetched.")
        console.print(f"Images  {_short(folder / 'files')}", soft_wrap=True)
        console.print(f"Report  {_short(folder / run.report_html)}", soft_wrap=True)
    for task in running.api.task_instances(DAG, run.run_id):
        if task["state"] == "failed":
            log = running.api.log(
                DAG, run.run_id, task["task_id"], map_index=task["map_index"], attempt=task["try_number"]
            )
            console.print(f"\n[red]The task {task['task_id']} failed.[/] The end of its log:")
            console.print("\n".join(log.splitlines()[-12:]), markup=False)


def _keep(running: stack.Airflow, s3: stack.S3Server) -> None:
    file = STATE / "env"
    _write_environment(file, running, s3)
    console.print("\nAirflow stays up until you press Ctrl-C:")
    console.print(f"  {running.url}\n  user      {running.user}\n  password  {running.password}", markup=False)
    console.print(
        "For PhysioNet's S3 access point, the fast way, follow docs/access-point.md. Its connection physionet_s3:"
    )
    for who, what in (("COPIER", "may write the bucket: S3 copies"), ("READER", "may not: through the worker")):
        key, secret = running.env[f"DEMO_{who}_KEY"], running.env[f"DEMO_{who}_SECRET"]
        console.print(f"  key {key}  secret {secret}  {what}", markup=False, soft_wrap=True)
    where = f"endpoint {running.env['DEMO_ENDPOINT']}  access point {running.env['DEMO_ACCESS_POINT']}"
    console.print(f"  {where}", markup=False, soft_wrap=True)
    console.print(
        f"For `airflow …` commands against it, in another terminal:  source {_short(file)}",
        markup=False,
        soft_wrap=True,
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print()
    finally:
        file.unlink(missing_ok=True)


def _write_environment(file: Path, running: stack.Airflow, s3: stack.S3Server) -> None:
    """A file to source in a shell, for ``airflow …`` commands and for AWS's own tools; it holds the demo's keys."""
    ours = ("AIRFLOW", "PATH", "PYTHONPATH", "PHYSIONET_", "MIMIC_CXR_", "DEMO_", "NO_PROXY", "no_proxy")
    found = {name: value for name, value in running.env.items() if name.startswith(ours)}
    found |= {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    found |= {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_DEFAULT_REGION": stack.REGION}
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(found.items())))


def _done(what: str, detail: str) -> None:
    console.print(f"[green]✓[/] {what}: {detail}")


def _short(path: Path) -> str:
    """A path as seen from the project's folder."""
    return str(path.relative_to(stack.ROOT)) if path.is_relative_to(stack.ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
