"""Health check of any Airflow container: finds out which component runs here and asks that one. Exit status 0 = well.

    api-server                  answers over HTTP
    scheduler                   its health server (AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK) says so
    dag-processor, triggerer    have reported lately, says the API server
    celery worker               answers a ping through the broker

`airflow jobs check` would import all of Airflow, for seconds of CPU time at every check; this costs a tenth of a second.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

API = "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"
BROKER = "AIRFLOW__CELERY__BROKER_URL"


def main() -> int:
    """Check what process 1 was started for."""
    words = Path("/proc/1/cmdline").read_text().split("\0")
    try:
        if "api-server" in words:
            get("http://127.0.0.1:8080/api/v2/version")
        elif "scheduler" in words:
            get("http://127.0.0.1:8974/health")
        elif "dag-processor" in words:
            has_reported(api_server(), "dag_processor")
        elif "triggerer" in words:
            has_reported(api_server(), "triggerer")
        elif "worker" in words:
            answers_a_ping()
    except (OSError, ValueError, LookupError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def get(url: str) -> bytes:
    """The body of an answer with status 200."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def api_server() -> str:
    """Where the API server tells how the others are."""
    return os.environ[API].partition("/execution")[0] + "/api/v2/monitor/health"


def has_reported(url: str, component: str) -> None:
    """Raise ValueError unless it is well."""
    if (found := json.loads(get(url))[component])["status"] != "healthy":
        raise ValueError(f"{component}: {found}")


def answers_a_ping() -> None:
    """Raise ValueError unless this container's worker answers."""
    from celery import Celery

    command = os.environ.get(f"{BROKER}_CMD")
    broker = subprocess.check_output(shlex.split(command), text=True).strip() if command else os.environ[BROKER]
    me = f"celery@{socket.gethostname()}"
    if not Celery(broker=broker).control.ping(destination=[me], timeout=8, limit=1):
        raise ValueError(f"{me} does not answer")


if __name__ == "__main__":
    sys.exit(main())
