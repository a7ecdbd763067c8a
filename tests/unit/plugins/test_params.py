"""The trigger form of the backfill takes what the run takes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from physionet_airflow.params import backfill_params
from physionet_mirror.errors import InputError
from physionet_mirror.request import Request


def request(**params: Any) -> Request:
    return Request.from_params({"bucket": "my-bucket", **params})


@pytest.mark.parametrize(
    "stop_after", ["06:30", "6:30", "23:59", "4.5", "4", "4h", "4.5 h", "24:00", "6:60", "-1", "x"]
)
def test_the_form_takes_what_the_run_takes(stop_after: str) -> None:
    pattern = backfill_params()["stop_after"].schema["pattern"]
    try:
        request(stop_after=stop_after)
    except InputError:
        assert not re.search(pattern, stop_after)
    else:
        assert re.search(pattern, stop_after)


def test_a_night_needs_no_param_but_the_bucket_takes_no_sample_and_asks_nobody() -> None:
    params = {name: param.resolve() for name, param in backfill_params().items()}
    wish = request(**{**params, "bucket": "my-bucket"})
    assert (wish.slices, wish.stop_after, wish.selection.select, wish.approve_above_gb) == (30, None, "all", 0)
    assert (wish.connections, wish.verify, wish.source) == (8, "checksum", "physionet")
    assert "sample_size" not in params
