"""Our documents are read as far as possible if damaged, or count as absent."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror import records
from physionet_mirror.files import File
from physionet_mirror.records import Failure, Plan, RunReport, ShardResult, Store, SumsSeen
from physionet_mirror.shards import Shard, encode
from physionet_mirror.steps import plan
from physionet_mirror.throughput import stretches, use
from tests.unit.made_up import OneFile

SHARD = Shard(0, 3, "files/a.jpg", "files/c.jpg", "_mirror/runs/r/shards/0000.sha256", 3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
RESULT = ShardResult(
    0,
    name="p10, 300 images",
    state="failed",
    started="2026-03-01T22:00:00+00:00",
    seconds=60.0,
    images=300,
    todo=300,
    stored=86,
    bytes=86_000,
    failed=[Failure("files/a.jpg", "not found", "404"), Failure("files/b.jpg", "stalled", "…")],
    retries=7,
    handshakes=1,
    faults={"stalled": 2},
    series=[(30.0, 40, 40_000, 4), (60.0, 46, 46_000, 4)],
)


DOCUMENTS = [
    (ShardResult, RESULT.to_json()),
    (
        Plan,
        {
            "run_id": "r",
            "dag_id": "d",
            "request": {},
            "store": Store(sha256=False).to_json(),
            "selection": {"notes": ["n"]},
            "shards": [SHARD.to_json()],
        },
    ),
    (RunReport, {"run": {"id": "r", "finished": "2026-03-01T22:00:00Z"}, "transfer": {"bytes": 1}, "params": {}}),
    (SumsSeen, SumsSeen("e", "ab" * 32, "cd" * 32, ("a note",)).to_json()),
]


@pytest.mark.parametrize(("kind", "document"), DOCUMENTS)
@settings(deadline=None)
@given(data=st.data())
def test_a_field_that_is_anything_costs_its_record_at_most(
    kind: Any, document: dict[str, Any], data: st.DataObject
) -> None:
    spoilt = dict(document)
    for name in data.draw(st.lists(st.sampled_from(sorted(document)), min_size=1)):
        spoilt[name] = data.draw(JSON)
    found = records.load(OneFile(json.dumps(spoilt).encode()), "x.json", kind)  # type: ignore[arg-type]
    if isinstance(found, ShardResult):
        again = ShardResult.from_json(json.loads(json.dumps(found.to_json())))
        assert again == found
        list(stretches([found]))
        use([found])
        assert found.after(RESULT).stored >= 0


@pytest.mark.parametrize(("kind", "document"), DOCUMENTS)
@settings(deadline=None)
@given(data=st.data())
def test_a_flipped_byte_costs_its_record_at_most_and_is_named(
    kind: Any, document: dict[str, Any], data: st.DataObject
) -> None:
    good = bytearray(json.dumps(document).encode())
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    warned: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    records.log.addHandler(handler)
    try:
        found = records.load(OneFile(bytes(good)), "x.json", kind)  # type: ignore[arg-type]
    finally:
        records.log.removeHandler(handler)
    assert len(warned) == (found is None)
    assert all("s3://b/x.json is damaged" in line for line in warned)


def test_what_was_emptied_is_absent_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert records.load(OneFile(b""), "x.json", ShardResult) is None  # type: ignore[arg-type]
    assert not caplog.records


def test_deeply_nested_json_is_damage_too() -> None:
    assert records.load(OneFile(b"[" * 100_000), "x.json", RunReport) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [kind for kind, _ in DOCUMENTS])
@given(document=JSON)
def test_any_json_is_a_record_or_damaged(kind: Any, document: Any) -> None:
    bucket = OneFile(json.dumps(document).encode())
    found = records.load(bucket, "x.json", kind)  # type: ignore[arg-type]
    assert found is None or kind.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_document_of_any_size_is_read_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """A foreign file under one of our names must not fill the memory of a worker or of the API server."""
    huge = OneFile(b'{"shard": 1, "x": "' + b" " * records.MOST_BYTES + b'"}')
    assert records.load(huge, "x.json", ShardResult) is None  # type: ignore[arg-type]
    assert "more than 64 MB" in caplog.text


def test_a_second_try_adds_up() -> None:
    second = ShardResult(
        0,
        name=RESULT.name,
        state="done",
        try_number=2,
        started="2026-03-01T22:05:00+00:00",
        seconds=40.0,
        images=300,
        todo=214,
        stored=112,
        bytes=112_000,
        failed=[Failure("files/b.jpg", "corrupt", "…")],
        retries=3,
        handshakes=1,
        faults={"stalled": 1, "corrupt": 3},
        series=[(40.0, 112, 112_000, 6)],
    )
    both = second.after(RESULT)
    assert (both.stored, both.bytes, both.todo) == (198, 198_000, 300)
    assert (both.retries, both.handshakes, both.faults) == (10, 2, {"stalled": 3, "corrupt": 3})
    assert (both.started, both.seconds, both.state, both.try_number) == (RESULT.started, 340.0, "done", 2)
    assert [failure.reason for failure in both.known_failures] == ["not found", "corrupt"]
    assert both.untried == 300 - 198 - 1
    assert use([both]).connection_seconds == 60 * 4 + 40 * 6  # the minutes between them do not count
    assert both.after(None) == both
    assert second.after(ShardResult(0, name="another cut", images=9, stored=9)) == second


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=200), st.integers(1, 5))
def test_many_tries_lose_no_image_and_stay_small(steps: list[float], tries: int) -> None:
    at, series = 0.0, []
    for step in steps:
        at += step
        series.append((at, 3, 300, 2))
    whole = None
    for number in range(tries):
        one = ShardResult(
            0, started=f"2026-03-01T2{number}:00:00+00:00", seconds=at, stored=3 * len(steps), series=series
        )
        whole = one.after(whole)
    assert whole is not None
    assert sum(point[1] for point in whole.series) == whole.stored == 3 * len(steps) * tries
    assert len(whole.series) <= 240
    assert [point[0] for point in whole.series] == sorted(point[0] for point in whole.series)


# -- lists -------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_a_damaged_list_of_leftovers_keeps_its_other_lines(data: st.DataObject) -> None:
    images = [File(f"files/p10/{n}.jpg", f"{n:064x}") for n in range(20)]
    spoilt = bytearray(encode(images))
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= data.draw(st.integers(1, 255))
    left = plan.read_left(OneFile(bytes(spoilt)))  # type: ignore[arg-type]
    assert len({image.path for image in left} & {image.path for image in images}) >= 18


# -- what earlier versions wrote ---------------------------------------------------------------------------------------


def test_the_first_result_files_are_understood() -> None:
    """They lack ``allowed``, ``failed_before`` and ``handshakes``."""
    old = {
        "shard": 2,
        "name": "p10, 9 images",
        "try_number": 1,
        "state": "failed",
        "started": "2025-11-03T01:02:03+00:00",
        "updated": "2025-11-03T01:03:03+00:00",
        "seconds": 60.0,
        "images": 9,
        "todo": 9,
        "stored": 8,
        "bytes": 13_000_000,
        "failed": [{"path": "files/a.jpg", "reason": "not found", "detail": "404"}],
        "error": None,
        "connections": 0,
        "retries": 3,
        "faults": {"not found": 1},
        "series": [[30.0, 4, 6_000_000, 4], [60.0, 4, 7_000_000, 3.5]],
    }
    result = ShardResult.from_json(old)
    assert result.failed == (Failure("files/a.jpg", "not found", "404"),)
    assert (result.allowed, result.handshakes, result.failed_before, result.error) == (0, 0, (), None)
    assert {name: value for name, value in result.to_json().items() if name in old} == old


def test_the_first_plans_are_understood() -> None:
    """They lack ``dag_id``, ``way``, the shards' ``sha256`` and the estimate's second time."""
    shard = {name: value for name, value in SHARD.to_json().items() if name != "sha256"}
    old = {
        "schema": "physionet-mirror/plan/1",
        "run_id": "manual__1",
        "created": "2025-11-03T01:02:03+00:00",
        "request": {"bucket": "b", "slices": 30},
        "selection": {"matched": 3, "images": 3, "notes": ["all 3 images are taken"]},
        "shards": [shard],
        "estimate": {"images": 3, "missing": 2, "hours": 0.5, "monthly": {"STANDARD": 0.1}},
    }
    planned = Plan.from_json(old)
    assert (planned.run_id, planned.dag_id, planned.request, planned.way) == ("manual__1", "", old["request"], {})
    assert planned.shards == (SHARD,)
    assert (planned.estimate.missing, planned.estimate.hours_most) == (2, 0.5)


def test_a_plan_whose_estimate_is_lost_expects_to_fetch_everything() -> None:
    for estimate in (None, [], {"missing": "two"}):
        document = {"schema": "physionet-mirror/plan/1", "shards": [SHARD.to_json()], "estimate": estimate}
        assert Plan.from_json(document).estimate.missing == SHARD.images


def test_a_plan_knows_what_its_store_can_do_and_one_of_an_earlier_version_does_not() -> None:
    document = {"run_id": "r", "request": {}, "shards": [SHARD.to_json()]}
    store = Store(sha256=False, conditions=False)
    made = Plan.from_json({**document, "store": store.to_json()})
    assert made.store == store
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert Plan.from_json(document).store is None
