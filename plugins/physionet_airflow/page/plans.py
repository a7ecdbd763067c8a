"""The plan views: what a run with the form's params would select, and what it would take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.api_fastapi.common.db.common import SessionDep
from starlette.datastructures import QueryParams

from physionet_airflow.bucket import expected_mode
from physionet_airflow.page import form, mirrors, reads
from physionet_airflow.page.access import params_of
from physionet_airflow.page.cache import RefreshingCache
from physionet_airflow.page.runs import PROJECT_DAG, Mirror, Place
from physionet_airflow.run import streams
from physionet_mirror import overview, preview, words
from physionet_mirror.clinical.studies import chosen_by
from physionet_mirror.errors import InputError, MirrorError
from physionet_mirror.layout import MAIN_DAG
from physionet_mirror.mover import Mode
from physionet_mirror.request import FILTERS, Request, Selection

_BAD_PLACES = 3  # unreadable manifests before the page gives up

_modes: RefreshingCache[Mode] = RefreshingCache(seconds=20, most=64)
_previews: RefreshingCache[overview.Preview | preview.FilePreview] = RefreshingCache(seconds=600, most=64)


@dataclass(frozen=True)
class View:
    """One of the plan views.

    Attributes:
        dag_id: The DAG that it triggers.
        path: Its address below that of the page.
        name: What the links to it are called.
        lead: What it is for.
        kind: What it counts.
    """

    dag_id: str
    path: str
    name: str
    lead: str
    kind: reads.Kind


IMAGES = View(
    MAIN_DAG,
    "plan",
    "MIMIC-CXR-JPG",
    "Choose which images you want and see at once what it takes. Nothing starts before you say so.",
    "images",
)
FILES = View(
    PROJECT_DAG,
    "plan/project",
    "Any project",
    "Name a project, choose its files by globs, and see at once what it takes. Nothing starts before you say so.",
    "files",
)


def plan(view: View, given: QueryParams, session: SessionDep, dags: Sequence[str]) -> dict[str, Any]:
    """What the template shows of a form as filled in."""
    params = params_of(session, view.dag_id)
    filled = form.read(params, given)
    shown: dict[str, Any] = {
        "view": view,
        "form": filled,
        "cohort": None,
        "source": None,
        "trouble": "",
        "notes": [],
        "training": None,
        "dag_id": view.dag_id,
    }
    wanted = filled.request
    if wanted is None:
        return shown
    asked = Mirror(wanted.bucket, wanted.prefix)
    # The manifest is the same in every mirror of a project; what is stored already is known only for the one asked for. One
    # that cannot be read does not hide the others.
    troubles: list[str] = []
    for place in _of_project(wanted, asked, reads.places_of(session, dags)):
        mirror = place.mirror
        try:
            there = mirrors.overview_of(mirror, reads.bucket_of)
            if there is None or there.dataset not in ("", wanted.dataset.name):
                continue
            found = reads.catalog_of(mirror, view.kind)
            if found is None or (view.kind == "images" and not found.has_images):
                continue
            shown["cohort"] = _preview(found, place, asked, filled, session, dags)
            shown["source"] = mirror
            if view.kind == "images":
                shown["training"] = _as_training_set(wanted, shown["cohort"])
            if found.trouble and mirror == asked:
                troubles.append(found.trouble)
            break
        except InputError as error:
            shown["form"] = form.with_error(filled, error, params)
            return shown
        except MirrorError as error:
            troubles.append(f"{mirror.uri}: {error}")
            if len(troubles) == _BAD_PLACES:
                break
    if shown["cohort"]:
        shown["notes"] = troubles
    else:
        shown["trouble"] = " ".join(troubles)
    return shown


def _of_project(wanted: Request, asked: Mirror, places: Sequence[Place]) -> Iterator[Place]:
    """The places that may hold the project's manifest: the one asked for, then those whose runs or prefix name it."""
    yield from (place for place in places if place.mirror == asked)
    for place in places:
        named = {project for *_, project in place.given} | {place.mirror.prefix}
        if place.mirror != asked and (wanted.selection.noun == "image" or wanted.dataset.name in named):
            yield place


def _preview(
    found: overview.Catalog,
    place: Place,
    asked: Mirror,
    filled: form.Form,
    session: SessionDep,
    dags: Sequence[str],
) -> overview.Preview | preview.FilePreview:
    """Count what the form selects; kept for some minutes."""
    wanted, mirror = filled.request, place.mirror
    assert wanted is not None
    bucket = reads.bucket_of(mirror)
    earlier = reads.runs_of(session, dags, place)
    reports = [report for run in earlier if (report := reads.report_of(run))]
    by_files = wanted.selection.noun == "file"
    plans = [planned for run in earlier if by_files and (planned := reads.planned_of(run))]
    mode = _modes.get(
        (mirror, wanted.source, wanted.dataset.name), lambda _: expected_mode(wanted.source, wanted.dataset, bucket)
    )

    def count(_: Any) -> overview.Preview | preview.FilePreview:
        known = found if mirror == asked else overview.without_index(found)
        given = overview.Circumstances(
            mode=mode, streams=streams(), region=bucket.region(), in_aws=bucket.in_aws, reports=reports
        )
        if by_files:
            return preview.preview_files(known, wanted, plans=plans, **given)
        return overview.preview(known, wanted, studies=chosen_by(bucket, wanted.selection), **given)

    question = json.dumps(filled.conf, sort_keys=True)
    learnt = tuple(r.run.id for r in reports), len(plans)
    return _previews.get((mirror, found.etags, learnt, mode, question), count)


def _as_training_set(wanted: Request, cohort: overview.Preview) -> dict[str, Any]:
    """What a training set of these images takes, with the DAG's defaults, and the conf to trigger it with."""
    from physionet_mirror.training.pixels import CPU_SECONDS_A_GB
    from physionet_mirror.training.request import TrainingRequest
    from physionet_mirror.training.tars import expected_bytes

    chosen = wanted.selection
    filters = {name: getattr(chosen, name) for name in FILTERS}
    asked = TrainingRequest(wanted.bucket, wanted.prefix, Selection(select="all", **filters))
    size = expected_bytes(cohort.selected, asked.recipe)
    return {
        "name": asked.name,
        "pixels": asked.recipe.size,
        "bytes": size,
        "tars": max(len(cohort.splits), -(-size // (asked.shard_mb * 10**6))),
        "cpu": words.about(cohort.estimate.bytes / 1e9 * CPU_SECONDS_A_GB),
        "conf": json.dumps({"bucket": wanted.bucket, "prefix": wanted.prefix, **asked.filters}),
    }
