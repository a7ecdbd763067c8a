"""The addresses of Airflow's UI and of our page in it."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit


def base_url() -> str:
    """Scheme and host of Airflow's UI, or empty where ``[api] base_url`` does not say."""
    found = re.match(r"https?://[^/]+", _setting())
    return found[0] if found else ""


def root_path() -> str:
    """The path below which Airflow is served, ending in ``/``."""
    path = urlsplit(_setting()).path
    return path if path.endswith("/") else f"{path}/"


def run_path(dag_id: str, run_id: str) -> str:
    """Path of a run in Airflow's own UI, and of its live page in ours, relative to the root of either."""
    return f"dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def run_url(dag_id: str, run_id: str, view: str = "") -> str:
    """The address of a view of a run, from the root of Airflow's host."""
    path = f"{root_path()}physionet/{run_path(dag_id, run_id)}"
    return f"{path}/{view}" if view else path


def airflow_run_url(dag_id: str, run_id: str) -> str:
    """The address of a run in Airflow's own UI, from the root of its host."""
    return root_path() + run_path(dag_id, run_id)


def _setting() -> str:
    from airflow.configuration import conf

    return conf.get("api", "base_url", fallback="/") or "/"
