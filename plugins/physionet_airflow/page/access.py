"""Access control.

Airflow does not protect a plugin's application. Every route here needs a login and the right to read its DAG (and that
DAG's runs and tasks); routes that belong to no single DAG show only the buckets of DAGs that the reader may read. A
bucket is never taken from the URL: a URL can only choose among the places that runs of readable DAGs wrote to, and only
files below ``_mirror/`` are read there.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from fastapi import Depends, HTTPException, Path, Request
from starlette.datastructures import QueryParams

from physionet_airflow.compat import teams_of
from physionet_airflow.page import runs
from physionet_airflow.page.cache import RefreshingCache

DagId = Annotated[str, Path(max_length=250, pattern=r"^[A-Za-z0-9_.-]+$")]
RunId = Annotated[str, Path(max_length=250, pattern=r"^[A-Za-z0-9_.~:+-]+$")]

READ_RUN = [
    Depends(requires_access_dag("GET")),
    Depends(requires_access_dag("GET", DagAccessEntity.RUN)),
    Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE)),
]
"""For routes with ``dag_id`` in their path."""

_params: RefreshingCache[dict[str, dict[str, object]]] = RefreshingCache(seconds=15, most=32)


def params_of(session: SessionDep, dag_id: str) -> dict[str, dict[str, object]]:
    """The DAG's params, cached for 15 seconds."""
    return _params.get(dag_id, lambda _: runs.dag_params(session, dag_id))


def defaults_of(session: SessionDep, dag_id: str) -> dict[str, object]:
    """The default values of the DAG's params."""
    return {name: param["value"] for name, param in params_of(session, dag_id).items()}


def readable_dags(user: GetUserDep, session: SessionDep) -> list[str]:
    """Our DAGs whose runs this user may read, the main one first; 403 if there are none."""
    manager = get_auth_manager()
    ids = runs.our_dags(session, manager.get_authorized_dag_ids(user=user, method="GET", session=session))
    teams = teams_of(ids, session)
    found = [
        dag_id
        for dag_id in ids
        if all(
            manager.is_authorized_dag(
                method="GET",
                access_entity=entity,
                details=DagDetails(id=dag_id, team_name=teams.get(dag_id)),
                user=user,
            )
            for entity in (DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE)
        )
    ]
    if not found:
        raise HTTPException(403, "You may not read any DAG that mirrors a PhysioNet dataset.")
    return found


ReadableDags = Annotated[list[str], Depends(readable_dags)]


def run_of(dag_id: DagId, run_id: RunId, session: SessionDep) -> runs.Run:
    """The run that the URL names; 404 if there is none or its DAG is not one of ours."""
    if not runs.is_ours(session, dag_id):
        raise HTTPException(404, "This DAG does not mirror a PhysioNet dataset, so there is nothing to show here.")
    run = runs.find_run(session, dag_id, run_id, defaults_of(session, dag_id))
    if run is None:
        raise HTTPException(404, "There is no such run.")
    if re.fullmatch(r"\.+", run_id):  # a folder's name in S3
        raise HTTPException(404, "A run of this name cannot be shown.")
    return run


def from_our_own_page(request: Request) -> None:
    """Refuse cross-site requests: Airflow's login is a cookie, so another site's page could send them.

    The rules are those of Go's ``http.CrossOriginProtection``: decide by Sec-Fetch-Site, which browsers send on secure
    connections, or else by Origin, which they send with every POST. A client that sends neither is not a browser.

    Raises:
        HTTPException: 403.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site in ("same-origin", "none"):
        return
    if site is None and origin is None:
        return
    ours = {request.headers.get("host", ""), urlsplit(conf.get("api", "base_url", fallback="") or "").netloc}
    if site is None and urlsplit(origin or "").netloc in ours:
        return
    raise HTTPException(403, "This form was sent by a page of another site.")


MOST_SENT = 2_000_000
"""Largest form accepted, in bytes."""


async def sent_form(request: Request) -> QueryParams:
    """The submitted form, of at most `MOST_SENT` bytes.

    Raises:
        HTTPException: 413 or 415.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "A form is wanted, as the page sends it.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_SENT:
            raise HTTPException(
                413, f"This form has more than {MOST_SENT:,} bytes. Nothing was cut and nothing was done."
            )
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=10_000)
    except ValueError:
        raise HTTPException(413, "This is no form, or one of more than 10,000 fields.") from None
    return QueryParams(pairs)


SentForm = Annotated[QueryParams, Depends(sent_form)]

TheRun = Annotated[runs.Run, Depends(run_of)]
