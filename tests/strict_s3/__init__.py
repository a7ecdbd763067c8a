"""A third-party S3 server that is as strict as S3: it refuses wrong checksums and supports If-Match.

It is LocalStack's S3 provider, run alone. Its libraries are installed on the first call into ``.state/strict-s3`` (a few
seconds with uv and a warm cache, 133 MB), and again when ``requirements.txt`` changes. It keeps objects in memory, answers
after 2 s, and takes 140 MB.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.stack import ROOT, S3Server, Service, plain_environment

HERE = Path(__file__).parent
STATE = ROOT / ".state" / "strict-s3"


def install() -> Path:
    """The server's Python; creates its environment if there is none. Safe to call from many processes."""
    wanted = hashlib.sha256((HERE / "requirements.txt").read_bytes() + sys.version.encode()).hexdigest()
    environment, ready = STATE / "venv", STATE / "ready"
    python = environment / "bin" / "python"
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists() or ready.read_text() != wanted:
            ready.unlink(missing_ok=True)
            uv = Path(sys.executable).with_name("uv")
            _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, environment)
            _run(uv, "pip", "install", "--quiet", "--python", python, "-r", HERE / "requirements.txt")
            _run(python, HERE / "server.py", STATE / "cache", "--prepare")
            ready.write_text(wanted)
    return python


def _run(*command: str | Path) -> None:
    # What is imported now is kept as bytecode: each test process starts a server.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The strict S3 server cannot be installed.\n{command}\n{done.stdout[-2000:]}")


@contextmanager
def strict_s3_server(folder: Path) -> Iterator[S3Server]:
    """Run it on a free port of 127.0.0.1 until the block ends; ``folder`` holds its log and its temporary files."""
    python = install()
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    env = plain_environment() | {"TMPDIR": str(folder / "tmp"), "HOME": str(folder), "PYTHONPATH": ""}
    command = [python, HERE / "server.py", STATE / "cache"]
    with Service("The strict S3 server", command, log=folder / "strict-s3.log", env=env) as service:
        endpoint = service.wait_for(r"http://127\.0\.0\.1:\d+", timeout=60)[0]
        yield S3Server(endpoint, "strict", "strict-secret", folder / "objects-are-in-memory", service)
