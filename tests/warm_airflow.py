"""An ``airflow`` that is imported once and forked for each command: half of a short command's time is imports.

A command runs in a process of its own, with the environment, folder and output that the test gives it, through the same
``main`` as the ``airflow`` script. What is shared is only what was imported, and the routes of the Task Execution API,
which each ``airflow dags test`` builds anew otherwise. Run as a script, it serves at the Unix socket that it is given.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_STARTING = 120
"""Seconds in which the imports must be done."""


class WarmAirflow:
    """The client's side.

    Args:
        address: The Unix socket at which the process serves.
    """

    def __init__(self, address: Path) -> None:
        self._address = str(address)

    def run(
        self, *arguments: str, env: Mapping[str, str], cwd: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run ``airflow <arguments>``; stdout and stderr together in ``stdout``. Does not raise on a failure.

        Raises:
            subprocess.TimeoutExpired: It did not end within ``timeout`` seconds; it was killed.
        """
        with (
            socket.socket(socket.AF_UNIX) as connection,
            (cwd / f"airflow-{os.urandom(4).hex()}.out").open("w+b") as out,
        ):
            connection.connect(self._address)
            order = json.dumps({"arguments": arguments, "env": dict(env), "cwd": str(cwd)}).encode()
            socket.send_fds(connection, [len(order).to_bytes(4)], [out.fileno()])
            connection.sendall(order)
            answers = connection.makefile()
            pid = int(answers.readline())
            connection.settimeout(timeout)
            try:
                code = int(answers.readline())
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["airflow", *arguments], timeout) from None
            out.seek(0)
            return subprocess.CompletedProcess(["airflow", *arguments], code, out.read().decode(errors="replace"))


@contextlib.contextmanager
def warm_airflow(folder: Path, env: Mapping[str, str]) -> Iterator[WarmAirflow]:
    """Start the process with ``env`` (its socket lies in ``folder``), and end it afterwards."""
    address = folder / "airflow.sock"
    with subprocess.Popen(
        [sys.executable, __file__, str(address)],
        env=dict(env),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"Airflow could not be imported; see the output above (exit code {process.wait()}).")
            yield WarmAirflow(address)
        finally:
            process.kill()


def _serve(address: str) -> None:
    _import()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:  # the standard input ends with the tests
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection)
            connection.close()


def _import() -> None:
    """All that a command needs and that does not depend on its settings."""
    for name in (
        "airflow.cli.commands.dag_command",
        "airflow.providers.amazon.aws.hooks.s3",
        "airflow.sdk.execution_time.task_runner",
        "alembic.command",
        "jsonschema",
        "pandas",
        "pyarrow.parquet",
    ):
        importlib.import_module(name)
    from airflow.models import import_all_models
    from sqlalchemy.orm import configure_mappers

    import_all_models()
    configure_mappers()
    from airflow.sdk.execution_time import supervisor

    routes = supervisor.in_process_api_server().app
    if hasattr(routes, "_cadwyn_initialize"):  # else only the first request of each command does it, which takes longer
        routes._cadwyn_initialize()


def _answer(connection: socket.socket) -> None:
    """In a process of its own: start the command, say its process id, then its exit code."""
    size, [out], _, _ = socket.recv_fds(connection, 4, 1)
    order = json.loads(connection.makefile("rb").read(int.from_bytes(size)))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _command(order["arguments"], order["env"], order["cwd"], out)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _command(arguments: list[str], env: dict[str, str], cwd: str, out: int) -> None:
    import atexit

    os.setsid()
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["airflow", *arguments]
    code = 1
    try:
        from airflow import configuration, settings

        configuration.AIRFLOW_HOME = env["AIRFLOW_HOME"]
        configuration.AIRFLOW_CONFIG = f"{env['AIRFLOW_HOME']}/airflow.cfg"
        settings.initialize()
        from airflow.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as Python itself does at the end of a script
        import traceback

        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    os.environ["_AIRFLOW__AS_LIBRARY"] = "1"
    _serve(sys.argv[1])
