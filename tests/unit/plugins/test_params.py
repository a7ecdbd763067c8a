"""Defaults and bounds have one owner, `Request`: the trigger forms show them, docs/params.md describes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from physionet_airflow import params
from physionet_mirror import request
from physionet_mirror.errors import InputError
from physionet_mirror.request import Request

DOCS = Path(__file__).parents[3] / "docs"
FORMS = {
    "mimic_cxr_jpg": params.mirror_params,
    "mimic_cxr_jpg_backfill": params.backfill_params,
    "mimic_cxr_metadata": params.metadata_params,
    "mimic_cxr_audit": params.audit_params,
    "mimic_cxr_cleanup": params.cleanup_params,
    "mimic_cxr_clinical": params.clinical_params,
    "mimic_cxr_training_set": params.training_set_params,
    "physionet_project": params.project_params,
}


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(params.BUCKET_VARIABLE, raising=False)


def test_a_form_left_as_it_is_asks_for_what_an_empty_conf_asks_for():
    untouched = {name: param.value for name, param in params.mirror_params().items() if name != "bucket"}
    assert Request.from_params({**untouched, "bucket": "lab"}) == Request.from_params({"bucket": "lab"})


def test_a_night_s_form_keeps_the_run_s_defaults():
    of_a_run, of_a_night = params.mirror_params(), params.backfill_params()
    differ = {name for name in of_a_run.keys() & of_a_night.keys() if of_a_run[name].value != of_a_night[name].value}
    assert differ <= {"bucket", "select", "approve_above_gb"}
    assert of_a_night["slices"].value == request.NIGHTS


def test_choices_are_those_that_request_takes():
    form = params.mirror_params()
    for name, allowed in {
        "select": request.SELECTS,
        "sample_by": request.SAMPLE_BY,
        "verify": request.LEVELS,
        "source": request.SOURCES,
        "storage_class": request.STORAGE_CLASSES,
    }.items():
        assert set(form[name].schema["enum"]) == set(allowed), name


def described() -> dict[str, dict[str, str]]:
    """The defaults in docs/params.md, by DAG (a heading) and param, as written there."""
    found: dict[str, dict[str, str]] = {}
    dag = ""
    for line in (DOCS / "params.md").read_text().splitlines():
        if heading := re.fullmatch(r"## `(\w+)`", line):
            dag = heading[1]
            found[dag] = {}
        elif row := re.match(r"\| (`\w+`(?:, `\w+`)*) \|([^|]*)\|", line):
            for name in re.findall(r"`(\w+)`", row[1]):
                found[dag][name] = row[2].strip()
    return found


def written(value: object) -> str:
    """A default as docs/params.md writes it."""
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else f"`{value}`"


def test_the_page_names_every_param_with_its_default():
    there = described()
    assert there.keys() == FORMS.keys()
    for dag, form in FORMS.items():
        assert there[dag] == {
            name: written(param.value) if param.has_value else "" for name, param in form().items()
        }, dag


def asked(**params: Any) -> Request:
    return Request.from_params({"bucket": "my-bucket", **params})


@pytest.mark.parametrize(
    "stop_after", ["06:30", "6:30", "23:59", "4.5", "4", "4h", "4.5 h", "24:00", "6:60", "-1", "x"]
)
def test_the_form_takes_what_the_run_takes(stop_after: str) -> None:
    pattern = params.backfill_params()["stop_after"].schema["pattern"]
    try:
        asked(stop_after=stop_after)
    except InputError:
        assert not re.search(pattern, stop_after)
    else:
        assert re.search(pattern, stop_after)


def test_a_night_needs_no_param_but_the_bucket_takes_no_sample_and_asks_nobody() -> None:
    given = {name: param.resolve() for name, param in params.backfill_params().items()}
    wish = asked(**{**given, "bucket": "my-bucket"})
    assert (wish.slices, wish.stop_after, wish.selection.select, wish.approve_above_gb) == (30, None, "all", 0)
    assert (wish.connections, wish.verify, wish.source) == (8, "checksum", "auto")
    assert "sample_size" not in given
