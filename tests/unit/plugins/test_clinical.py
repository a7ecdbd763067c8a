"""A run that an index's event started works on that index; one that a person started, on what the person asked for."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor

from physionet_airflow.clinical import asked
from physionet_airflow.compat import AirflowSkipException
from physionet_airflow.operators import other_places, place
from physionet_airflow.training import VerifyTrainingSetOperator
from physionet_mirror.errors import InputError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PARAMS = {"bucket": None, "prefix": "mimic-cxr-jpg/2.1.0", "window_hours": 24}


def context(*uris: str, alias: str = "mimic_cxr_jpg_index", datasets: tuple[str, ...] = (), **params: Any) -> Any:
    """A task's context, with one event an URI, the oldest first; of ``datasets``, where these are given."""
    events = [
        SimpleNamespace(
            asset=Asset(uri),
            source_aliases=[AssetAlias(alias)],
            timestamp=NOW + timedelta(minutes=number),
            extra={"dataset": dataset} if dataset else {},
        )
        for number, (uri, dataset) in enumerate(zip_longest(uris, datasets))
    ]
    found = TriggeringAssetEventsAccessor.build(events)
    return {"params": PARAMS | params, "triggering_asset_events": found, "ti": SimpleNamespace(dag_id="the_dag")}


def index_of(where: str) -> str:
    return f"s3://{where}/_mirror/index.parquet"


def test_an_event_names_bucket_and_prefix_whatever_the_params_default_to() -> None:
    request = asked(context(index_of("lab-b/chest/jpg"), bucket="lab-a"))
    assert (request.bucket, request.prefix, request.window_hours) == ("lab-b", "chest/jpg", 24)


def test_of_several_mirrors_the_newest_is_taken_and_the_others_are_named() -> None:
    started = context(index_of("lab-b/y"), index_of("lab-a/x"), index_of("lab-c/z"), index_of("lab-b/y"))
    assert place(started) == {"bucket": "lab-b", "prefix": "y"}
    named = re.findall(r"{.*?}", other_places(started))
    assert [json.loads(conf) for conf in named] == [{"bucket": f"lab-{b}", "prefix": p} for b, p in ("cz", "ax")]
    assert "Trigger the_dag for each" in other_places(started)
    assert other_places(context(index_of("lab-b/y"), index_of("lab-b/y"))) == ""


def test_an_index_without_radiographs_starts_nothing() -> None:
    both = context(index_of("lab/jpg"), index_of("lab/mimiciv"), datasets=("mimic-cxr-jpg/2.1.0", "mimiciv/3.1"))
    assert place(both) == {"bucket": "lab", "prefix": "jpg"}
    assert other_places(both) == ""
    alone = context(index_of("lab/i"), index_of("lab/e"), datasets=("mimiciv/3.1", "new-project/1.0"))
    for run in (place, other_places, asked, VerifyTrainingSetOperator(task_id="verify").execute):
        with pytest.raises(
            AirflowSkipException, match=r"is of mimiciv/3\.1, new-project/1\.0, which has no radiographs"
        ):
            run(alone)


@pytest.mark.parametrize(
    "started",
    [context(), context(index_of("lab-b/y"), alias="of_somebody_else"), context("s3://lab-b/else"), {"params": PARAMS}],
    ids=["by a person", "another alias", "another file", "no events at all"],
)
def test_without_an_event_of_an_index_the_params_say(started: Any) -> None:
    assert place(started) == {}
    with pytest.raises(InputError, match="no destination bucket"):
        asked(started)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"reports": False, "links": False}, "nothing to build"),
        ({"hosp_project": "mimic-iv-ed/2.2"}, "hosp_project: mimic-iv-ed/2.2 is not a version of mimiciv"),
        ({"cxr_project": "mimic-cxr"}, "slug/version"),
        ({"window_hours": -1}, "window_hours: -1 is not a number of hours"),
        ({"window_hours": float("nan")}, "window_hours: nan"),
        ({"prefix": "../x"}, "prefix"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_asked_of_anybody(params: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        asked({"params": PARAMS | {"bucket": "lab"} | params})
