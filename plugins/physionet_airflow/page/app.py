"""The page's routes, and the headers of every answer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as AnyHTTPException

from physionet_airflow.page import mirrors, plans, reads, runs, show
from physionet_airflow.page.access import (
    READ_RUN,
    DagId,
    ReadableDags,
    SentForm,
    TheRun,
    from_our_own_page,
)
from physionet_airflow.page.cache import RefreshingCache
from physionet_airflow.page.plans import FILES, IMAGES, View
from physionet_airflow.page.runs import Mirror, Run, RunTasks
from physionet_airflow.urls import run_path
from physionet_mirror.errors import MirrorError
from physionet_mirror.layout import RunLayout
from physionet_mirror.progress import Progress, Watch
from physionet_mirror.report.document import next_step
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.words import UNDER_WAY, WAYS, duration, money, share, size

log = logging.getLogger(__name__)

HERE = Path(__file__).parent

STATIC = {
    "page.css": "text/css; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "plan.js": "text/javascript; charset=utf-8",
    "chart.umd.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""The static files and their types."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
"""Nothing from another host, nothing inline."""

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
    "sandbox allow-popups allow-popups-to-escape-sandbox"
)
"""For report.html, which comes from the bucket: no script, no request, no image."""

MOST_REPORT = 16 << 20
"""Largest report.html that is shown, in bytes; ours have well below one megabyte, or a bit more with many failures."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_watches: RefreshingCache[Watch] = RefreshingCache(seconds=3600, most=16)
_looks: RefreshingCache[tuple[RunTasks, Progress]] = RefreshingCache(seconds=2, most=64)


def make_app() -> FastAPI:
    """The application that Airflow mounts at ``/physionet``."""
    app = FastAPI(title="PhysioNet mirror", docs_url=None, redoc_url=None, openapi_url=None)
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": show.number,
        "size": size,
        "money": money,
        "duration": duration,
        "ago": show.ago,
        "minute": show.minute,
        "share": share,
    }
    environment.globals |= {"ways": WAYS, "step": show.step, "next_step": next_step, "version": _version()}
    templates = Jinja2Templates(env=environment)

    def page(request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        root = request.scope.get("root_path", "").removesuffix("/physionet") + "/"
        values = {"root": root, "here": f"{root}physionet", "page": name, **values}
        return templates.TemplateResponse(request, f"{name}.html.j2", values, status_code=status)

    # -- every answer ----------------------------------------------------------------------------------------------

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(AnyHTTPException)
    async def refuse(request: Request, error: AnyHTTPException) -> Response:
        if "text/html" not in request.headers.get("accept", "") or error.status_code < 400:
            return PlainTextResponse(str(error.detail), error.status_code, error.headers)
        return page(request, "refused", error.status_code, code=error.status_code, text=str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def reject(request: Request, _: RequestValidationError) -> Response:
        return await refuse(request, HTTPException(422, "This address is not one of ours."))

    @app.exception_handler(MirrorError)
    async def explain(request: Request, error: MirrorError) -> Response:
        log.warning("%s: %s", request.url.path, error)
        return await refuse(request, HTTPException(502, str(error)))

    # -- the bucket ------------------------------------------------------------------------------------------------

    @app.get("/")
    def overview(
        request: Request,
        session: SessionDep,
        dags: ReadableDags,
        mirror: Annotated[str, Query(max_length=600)] = "",
    ) -> Response:
        return page(request, "overview", **_overview(session, dags, mirror), dag_id=None)

    @app.get("/dags/{dag_id}", dependencies=READ_RUN)
    def overview_of_dag(request: Request, session: SessionDep, dag_id: DagId, dags: ReadableDags) -> Response:
        if dag_id not in dags:
            raise HTTPException(404, "This DAG does not mirror a PhysioNet dataset, so there is nothing to show here.")
        return page(request, "overview", **_overview(session, [dag_id], ""), dag_id=dag_id)

    # -- a run -----------------------------------------------------------------------------------------------------

    @app.get("/dags/{dag_id}/runs/{run_id}", dependencies=READ_RUN)
    def live(request: Request, session: SessionDep, run: TheRun) -> Response:
        tasks, progress = _look(session, run)
        return page(
            request,
            "live",
            run=run,
            run_path=run_path(run.dag_id, run.run_id),
            now=show.live(run, tasks, progress),
            progress=progress,
            words=show.STATE_WORDS,
            many=UNDER_WAY[progress.mode][1],
            paths=[show.task_path(run.dag_id, run.run_id, shard) for shard in progress.shards],
        )

    @app.get("/dags/{dag_id}/runs/{run_id}/progress.json", dependencies=READ_RUN)
    def progress_json(request: Request, session: SessionDep, run: TheRun) -> Response:
        tasks, progress = _look(session, run)
        body = json.dumps(show.live(run, tasks, progress), separators=(",", ":")).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    @app.get("/dags/{dag_id}/runs/{run_id}/failures", dependencies=READ_RUN)
    def failures(request: Request, session: SessionDep, run: TheRun) -> Response:
        _, progress = _look(session, run)
        return page(request, "failures", progress=progress, run=run)

    @app.get("/dags/{dag_id}/runs/{run_id}/report", dependencies=READ_RUN)
    def report(request: Request, run: TheRun) -> Response:
        there = run.mirror is not None and _bucket_of(run).head(_layout(run).report_html) is not None
        return page(request, "report", run=run, there=there, run_path=run_path(run.dag_id, run.run_id))

    @app.get("/dags/{dag_id}/runs/{run_id}/report.html", dependencies=READ_RUN)
    def report_html(run: TheRun) -> Response:
        body = b"".join(_file(run, _layout(run).report_html, MOST_REPORT))
        return HTMLResponse(body, headers={"Content-Security-Policy": REPORT_POLICY})

    @app.get("/dags/{dag_id}/runs/{run_id}/failed_images.txt", dependencies=READ_RUN)
    def failed_images(run: TheRun) -> Response:
        body = _file(run, _layout(run).failed_images)
        headers = {"Content-Disposition": 'attachment; filename="failed_images.txt"'}
        return StreamingResponse(body, media_type="text/plain; charset=utf-8", headers=headers)

    @app.get("/dags/{dag_id}/runs/{run_id}/s3", dependencies=READ_RUN)
    def s3_console(request: Request, run: TheRun) -> Response:
        url = _console(run.mirror) if run.mirror else None
        if url:
            return RedirectResponse(url)
        return page(request, "s3", run=run, run_path=run_path(run.dag_id, run.run_id))

    @app.get("/dags/{dag_id}/runs/{run_id}/dataset", dependencies=READ_RUN)
    def dataset_page(run: TheRun) -> Response:
        return RedirectResponse(run.dataset.page)

    # -- a plan ----------------------------------------------------------------------------------------------------

    def plan_page(request: Request, session: SessionDep, values: Mapping[str, Any]) -> Response:
        return page(request, "plan", **values, views=(IMAGES, FILES), paused=runs.is_paused(session, values["dag_id"]))

    def add_plan(view: View) -> None:
        may_read = [Depends(requires_access_dag("GET", param_dag_id=view.dag_id))]

        @app.get(f"/{view.path}", dependencies=may_read)
        def plan(request: Request, session: SessionDep, dags: ReadableDags) -> Response:
            return plan_page(request, session, plans.plan(view, request.query_params, session, dags))

        # POST, because the ids of thousands of patients are too long for a URL. It changes nothing.
        may_send = [*may_read, Depends(from_our_own_page)]

        @app.post(f"/{view.path}", dependencies=may_send)
        def plan_without_script(request: Request, session: SessionDep, dags: ReadableDags, sent: SentForm) -> Response:
            return plan_page(request, session, plans.plan(view, sent, session, dags))

        @app.post(f"/{view.path}/result", dependencies=may_send)
        def plan_result(request: Request, session: SessionDep, dags: ReadableDags, sent: SentForm) -> Response:
            return page(request, "plan_result", **plans.plan(view, sent, session, dags))

    add_plan(IMAGES)
    add_plan(FILES)

    # -- what is served as it is -----------------------------------------------------------------------------------

    @app.get("/static/{name}")
    def static(name: str, _user: GetUserDep) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "There is no such file.")
        headers = {"Cache-Control": "private, max-age=86400"}
        return FileResponse(HERE / "static" / name, media_type=STATIC[name], headers=headers)

    return app


def _version() -> str:
    """Changes whenever a static file does, so that browsers fetch it again."""
    digest = hashlib.sha256()
    for name in STATIC:
        digest.update((HERE / "static" / name).read_bytes())
    return digest.hexdigest()[:12]


# -- what the routes show ----------------------------------------------------------------------------------------------


def _bucket_of(run: Run) -> Bucket:
    if run.mirror is None:
        raise HTTPException(404, "This run's params name no bucket, so it has no files.")
    return reads.bucket_of(run.mirror)


def _layout(run: Run) -> RunLayout:
    return reads.layout_of(run, _bucket_of(run))


def _file(run: Run, path: str, most: int | None = None) -> Iterator[bytes]:
    """A file of a run, in chunks.

    Raises:
        HTTPException: 404 if there is none; 413 while reading if it has more than ``most`` bytes.
    """
    pieces = _bucket_of(run).open_read(path)
    try:
        first = next(pieces, b"")
    except FileNotFoundError:
        raise HTTPException(404, "This file is not there (yet): a run writes it at its end, if at all.") from None

    def bounded() -> Iterator[bytes]:
        size = 0
        for piece in chain((first,), pieces):
            size += len(piece)
            if most is not None and size > most:
                raise HTTPException(
                    413,
                    f"{_bucket_of(run).uri(path)} has more than {most >> 20} MB and is not shown here: this software writes "
                    "none of that size. No file is affected. Use an S3 client to look at it and to find out who wrote it.",
                )
            yield piece

    return bounded()


def _look(session: SessionDep, run: Run) -> tuple[RunTasks, Progress]:
    def look(_: Any) -> tuple[RunTasks, Progress]:
        tasks = runs.tasks_of(session, run)
        if run.mirror is None:
            return tasks, Progress()
        mirror = run.mirror
        watch = _watches.get((run.dag_id, run.run_id, mirror), lambda _: Watch(reads.bucket_of(mirror), _layout(run)))
        return tasks, watch.look(tasks.shards)

    # The state is part of the key, so that a run that has just ended is read once more.
    return _looks.get((run.dag_id, run.run_id, run.state, run.mirror), look)


def _console(mirror: Mirror) -> str | None:
    """URL of the prefix in the AWS console; None if the S3 is not Amazon's."""
    bucket = reads.bucket_of(mirror)
    if not bucket.in_aws:
        return None
    region = bucket.client.meta.region_name or "us-east-1"
    return (
        f"https://{region}.console.aws.amazon.com/s3/buckets/{mirror.bucket}"
        f"?region={region}&prefix={mirror.prefix}/&showversions=false"
    )


def _overview(session: SessionDep, dags: Sequence[str], wanted: str) -> dict[str, Any]:
    places = reads.places_of(session, dags)
    seen = mirrors.look([place.mirror for place in places], reads.bucket_of)
    # A project that a run fetches beside its own is named by its params; it is there only once it has a manifest.
    places = [place for place in places if place.given or place.latest is None or seen[place.mirror].overview]
    place = next((p for p in places if p.mirror.uri == wanted), places[0] if places else None)
    shown: dict[str, Any] = {
        "mirrors": [(p, seen[p.mirror]) for p in places],
        "mirror": place and place.mirror,
        "overview": None,
        "sets": [],
        "runs": [],
        "trouble": "",
    }
    if place is None:
        return shown
    here = reads.runs_of(session, dags, place)
    try:
        shown["overview"] = mirrors.overview_of(place.mirror, reads.bucket_of)
        if shown["overview"] is not None and shown["overview"].has_images:
            shown["sets"] = mirrors.sets_of(
                place.mirror, reads.bucket_of, shown["overview"], lambda mirror: reads.catalog_of(mirror, "images")
            )
        shown["runs"] = [(run, show.result_of(reads.report_of(run)), run_path(run.dag_id, run.run_id)) for run in here]
    except MirrorError as error:
        shown["trouble"] = str(error)
        shown["runs"] = [(run, None, run_path(run.dag_id, run.run_id)) for run in here]
    return shown
