"""The live page's numbers come from the shards' files, and a file that has not changed is not read again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.layout import RunLayout
from physionet_mirror.progress import MOST_BYTES, MOST_FILES, MOST_NAMED, STATES, Tasks, Watch, progress
from physionet_mirror.records import Plan, Shard, ShardResult
from physionet_mirror.throughput import MOST_POINTS

RUN = RunLayout("manual__2026-03-01T22:00:00+00:00")
STARTED = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)


def plan(shards=4, images=100, missing=None):
    return Plan.from_json(planned(shards, images, missing))


def planned(shards=4, images=100, missing=None):
    """``plan.json``."""
    return {
        "request": {"sample_size": shards * images},
        "selection": {"matched": shards * images, "images": shards * images, "notes": ["all are taken"]},
        "shards": [
            Shard(n, images, f"files/p1{n % 10}/a", f"files/p1{n % 10}/z", RUN.shard(n), images).to_json()
            for n in range(shards)
        ],
        "estimate": {"missing": shards * images if missing is None else missing},
    }


def result(shard, *, state="running", images=100, todo=100, stored=0, seconds=10.0, failed=(), after=0, **more):
    document = {
        "shard": shard,
        "name": f"shard {shard}",
        "state": state,
        "try_number": 1,
        "started": (STARTED + timedelta(seconds=after)).isoformat(),
        "seconds": seconds,
        "images": images,
        "todo": todo,
        "stored": stored,
        "bytes": stored * 1000,
        "failed": [{"path": path, "reason": reason, "detail": "…"} for path, reason in failed],
        "connections": 2,
        "retries": 1,
        "handshakes": 1,
        "faults": {"stalled": 1},
        "series": [[seconds, stored, stored * 1000, 2]],
        **more,
    }
    return ShardResult.from_json(document)


def test_without_a_plan_there_is_nothing_to_count():
    now = progress(None, [])
    assert not now.planned
    assert now.images == 0


def test_a_shard_that_was_complete_counts_as_there_though_it_publishes_nothing():
    now = progress(plan(2), [], {0: Tasks("skipped", "skipped"), 1: Tasks("success", "queued")})
    assert [shard.state for shard in now.shards] == ["there", "waiting"]
    assert (now.there, now.images, now.left) == (100, 200, 100)


def test_a_refused_plan_leaves_its_shards_skipped_and_not_there():
    now = progress(plan(1), [], {0: Tasks("skipped", "skipped", looked=False)})
    assert now.shards[0].state == "skipped"
    assert now.there == 0


@pytest.mark.parametrize(
    ("tasks", "published", "state"),
    [
        (Tasks(None, None), None, "waiting"),
        (Tasks("running", None), None, "checking"),
        (Tasks("failed", "upstream_failed"), None, "failed"),
        (Tasks("success", "running"), "running", "running"),
        (Tasks("success", "success"), "done", "done"),
        (Tasks("success", "success"), "drained", "stopped"),
        (Tasks("success", "up_for_retry"), "failed", "retrying"),
        (Tasks("success", "failed"), "running", "failed"),  # killed, so it could not publish that itself
        (None, "running", "running"),
    ],
)
def test_airflow_has_the_last_word_on_a_shard(tasks, published, state):
    results = [result(0, state=published)] if published else []
    assert progress(plan(1), results, None if tasks is None else {0: tasks}).shards[0].state == state


def test_what_was_there_before_and_what_this_run_stored_add_up():
    now = progress(plan(1), [result(0, todo=60, stored=20, failed=[("files/a.jpg", "not found")])])
    shard = now.shards[0]
    assert (shard.there, shard.stored, shard.failed, shard.left) == (60, 20, 1, 39)


def test_speed_and_time_left_are_those_of_the_last_seconds():
    series = [[60, 60, 60_000, 2], [90, 120, 120_000, 4]]
    running = result(0, images=1000, todo=1000, stored=180, seconds=90.0, series=series)
    now = progress(plan(1, 1000), [running], now=STARTED + timedelta(seconds=91))
    assert now.images_per_second == pytest.approx(4.0)
    assert now.bytes_per_second == pytest.approx(4000)
    assert now.seconds_left == pytest.approx(820 / 4)


def test_a_run_that_stands_still_has_no_time_left():
    now = progress(plan(1), [result(0, stored=10)], now=STARTED + timedelta(hours=1))
    assert now.images_per_second == 0
    assert now.seconds_left is None


def test_shards_nobody_has_looked_at_count_no_more_than_the_plan_expects():
    now = progress(plan(4, missing=150), [result(0, todo=100, stored=40)])
    assert now.left == 60 + 50


def test_failures_are_grouped_by_reason_and_not_all_named():
    many = [(f"files/{n:04}.jpg", "not found") for n in range(MOST_NAMED + 5)]
    now = progress(plan(1, 500), [result(0, images=500, todo=500, failed=[*many, ("files/z.jpg", "corrupt")])])
    assert [(group.reason, group.count, len(group.examples)) for group in now.failures] == [
        ("not found", MOST_NAMED + 5, MOST_NAMED),
        ("corrupt", 1, 1),
    ]


def test_a_long_run_of_many_shards_still_has_few_points():
    results = [result(n, state="done", stored=100, seconds=300.0, after=180 * n) for n in range(400)]
    now = progress(plan(400), results)
    assert len(now.series) == MOST_POINTS
    width = now.series[0][0]
    assert sum(point[1] * width for point in now.series) == pytest.approx(40_000, rel=0.01)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.integers(0, 100),
            st.integers(0, 100),
            st.floats(0, 1e4),
            st.sampled_from(["running", "done", "failed", "drained", "?"]),
        )
    ),
    st.dictionaries(
        st.integers(0, 7),
        st.builds(
            Tasks,
            st.sampled_from([None, "skipped", "success", "failed", "running", "deferred"]),
            st.sampled_from([None, "skipped", "success", "failed", "running", "up_for_retry", "queued"]),
            st.booleans(),
        ),
    ),
)
def test_numbers_stay_within_the_selection_whatever_is_published(published, tasks):
    results = [result(n, todo=max(a, b), stored=min(a, b), seconds=s, state=state) for n, a, b, s, state in published]
    now = progress(plan(8), results, tasks, now=STARTED + timedelta(seconds=20))
    assert 0 <= now.there <= now.images == 800
    assert 0 <= now.left <= now.images
    assert sum(now.states.values()) == 8
    assert set(now.states) <= set(STATES)
    assert len(now.series) <= MOST_POINTS


class Files:
    """A bucket that counts its requests."""

    def __init__(self):
        self.content, self.reads, self.lists = {}, [], 0

    def put(self, path, value):
        self.content[path] = (value, str(id(value)) + str(len(self.content)))

    def list(self, under="", *, last=None):
        self.lists += 1
        return [
            SimpleNamespace(path=path, etag=etag, size=len(value) if isinstance(value, str) else 1000)
            for path, (value, etag) in sorted(self.content.items())
            if path.startswith(under) and (last is None or path <= last)
        ]

    def open_read(self, path):
        self.reads.append(path)
        value = self.content[path][0]
        yield value.encode() if isinstance(value, str) else json.dumps(value).encode()


@pytest.fixture
def files():
    files = Files()
    files.put(RUN.plan, planned(400))
    for n in range(400):
        files.put(RUN.shard(n), "not to be read")
        files.put(RUN.result(n), result(n, state="done", stored=100).to_json())
    return files


def test_only_what_changed_is_read_again(files):
    watch = Watch(files, RUN)
    assert watch.look().there == 40_000
    files.reads.clear()
    files.lists = 0
    files.put(RUN.result(7), result(7, stored=50).to_json())
    assert watch.look().there == 39_950
    assert files.reads == [RUN.result(7)]
    assert files.lists == 1


def test_lists_of_images_are_never_read(files):
    Watch(files, RUN).look()
    assert not [path for path in files.reads if "shards/" in path]


def test_a_damaged_result_is_left_out(files):
    files.put(RUN.result(3), "damaged")
    seen = Watch(files, RUN).look()
    assert seen.there == 39_900
    assert RUN.result(3) in seen.troubles[0]


@pytest.mark.parametrize(
    "change",
    [{"series": [[1]]}, {"series": [[1e999, 1, 1, 1]]}, {"failed": 7}, {"failed": [3]}, {"bytes": "x"}, {"faults": [1, {}]}],
)  # fmt: skip
def test_a_damaged_field_of_a_result_costs_that_field_alone(files, change):
    files.put(RUN.result(3), result(3, stored=100).to_json() | change)
    seen = Watch(files, RUN).look()
    assert seen.there == 40_000
    assert not seen.troubles


def test_a_result_of_another_kind_is_left_out_and_hides_no_other(files):
    files.put(RUN.result(3), result(3, stored=100).to_json() | {"shard": "two"})
    seen = Watch(files, RUN).look()
    assert seen.there == 39_900
    assert RUN.result(3) in seen.troubles[0]


def test_files_that_are_too_long_are_left_out_with_the_reason(files):
    files.put(RUN.result(3), '{"shard": 3}' + " " * MOST_BYTES)
    seen = Watch(files, RUN).look()
    assert seen.there == 39_900
    assert "more than 4 MB" in seen.troubles[0]


def test_a_folder_that_holds_too_much_is_read_up_to_the_bound(files):
    for n in range(10):
        files.put(RUN.result(n), json.dumps(result(n, stored=100).to_json()) + " " * (MOST_BYTES - 5000))
    seen = Watch(files, RUN).look()
    assert "more than 24 MB" in seen.troubles[0]
    assert seen.planned
    for n in range(MOST_FILES):
        files.put(f"{RUN.results}{n}.other", {})
    files.reads.clear()
    assert any("more than 5,000 files" in text for text in Watch(files, RUN).look().troubles)
    assert len(files.reads) <= MOST_FILES


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["shards", "index", "images", "name", "request", "selection", "notes", "estimate", "missing"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    )
)
def test_a_plan_of_any_shape_is_shown_or_left_out_with_a_reason(content):
    files = Files()
    files.put(RUN.plan, content if isinstance(content, dict) else {"shards": content})
    seen = Watch(files, RUN).look()
    assert seen.planned or seen.troubles


def test_a_report_that_a_repeated_run_takes_away_is_gone(files):
    watch = Watch(files, RUN)
    files.put(RUN.report_json, {"result": {"passed": True}})
    assert watch.look().report
    del files.content[RUN.report_json]
    assert watch.look().report is None
