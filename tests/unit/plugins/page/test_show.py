"""The live page describes a run correctly: including audits, paused DAGs, refused plans, and reports that are not ours."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from physionet_airflow.page import show
from physionet_airflow.page.runs import Run, RunTasks
from physionet_mirror.progress import Progress, ShardProgress, Tasks
from physionet_mirror.records import RunReport

RESULT = {"passed": True, "level": "checksum", "selected": 10, "verified": 10}
REPORT = {"result": RESULT, "transfer": {"images": 10, "bytes": 16_000_000}, "run": {"id": "r", "seconds": 5.0}}


def headline(state, others, *, dag_id="mimic_cxr_jpg", progress=None, shards=None, paused=False, **params):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    run = Run(dag_id, "r", state, params, None, now, now, now, paused)
    seen = show.live(run, RunTasks(shards or {}, others), progress or Progress())
    return seen["fields"]["headline"], seen["fields"]["detail"], seen["tone"]


@pytest.mark.parametrize(
    ("dag_id", "state", "others", "params", "says", "tone"),
    [
        ("mimic_cxr_audit", "success", {"audit": "success", "repair": "skipped", "judge": "success"}, {}, "found nothing that differs", "good"),
        ("mimic_cxr_audit", "failed", {"audit": "success", "repair": "skipped", "judge": "failed"}, {}, "missing or wrong", "bad"),
        ("mimic_cxr_audit", "failed", {"audit": "failed", "repair": "upstream_failed", "judge": "failed"}, {}, "The task audit failed", "bad"),
        ("mimic_cxr_cleanup", "success", {"list_objects": "success", "approve": "success", "delete": "success"}, {}, "is deleted", "good"),
        ("mimic_cxr_cleanup", "success", {"list_objects": "success", "approve": "success", "delete": "skipped"}, {}, "Nothing was deleted", "quiet"),
        ("mimic_cxr_cleanup", "success", {"list_objects": "success", "approve": "skipped", "delete": "skipped"}, {"dry_run": True}, "objects are listed", "good"),
        ("mimic_cxr_clinical", "success", {"a.fetch_files": "skipped", "build_links": "success", "judge": "success"}, {}, "tables are beside", "good"),
        ("mimic_cxr_clinical", "failed", {"build_links": "failed", "judge": "upstream_failed"}, {}, "The task build_links failed", "bad"),
        ("mimic_cxr_clinical", "running", {"build_reports": "running", "judge": None}, {}, "Reading the reports", "busy"),
        ("mimic_cxr_clinical", "running", {"build_links": "success", "judge": "running"}, {}, "what was built", "busy"),
        ("mimic_cxr_clinical", "running", {"a.fetch_files": "running", "b.fetch_files": "skipped", "build_links": None}, {}, "Fetching what is not there", "busy"),
        ("mimic_cxr_clinical", "success", {"a.fetch_files": "skipped", "build_links": "skipped", "judge": "skipped"}, {}, "Nothing was built", "quiet"),
        ("mimic_cxr_audit", "running", {"audit": "success", "judge": "running"}, {}, "Counting what differs", "busy"),
        ("mimic_cxr_metadata", "success", {"a.check_access": "success", "a.fetch_metadata": "success"}, {}, "tables are in the bucket", "good"),
        ("mimic_cxr_jpg", "success", {"plan": "success", "approve": "success", "verify": "skipped"}, {}, "Nothing was streamed", "quiet"),
        ("mimic_cxr_jpg", "success", {"plan": "success", "approve": "skipped", "verify": "success"}, {}, "The run succeeded", "good"),
        ("mimic_cxr_jpg", "running", {"check_access": "running"}, {}, "let us in", "busy"),
        ("mimic_cxr_audit", "running", {"audit": "running"}, {}, "Comparing the bucket", "busy"),
    ],
)  # fmt: skip
def test_each_kind_of_run_is_told_as_what_it_is(dag_id, state, others, params, says, tone):
    said = headline(state, others, dag_id=dag_id, **params)
    assert says in said[0]
    assert said[2] == tone
    if dag_id != "mimic_cxr_jpg":
        assert "streamed" not in " ".join(said)
        assert "plan" not in " ".join(said)


def test_a_plan_that_a_person_refused_is_told_from_one_that_was_skipped():
    refused = headline("success", {"plan": "success", "approve": "success", "verify": "skipped"})
    assert "refused" in refused[1]
    skipped = headline("success", {"plan": "skipped", "verify": "skipped"})
    assert "refused" not in skipped[1]


@pytest.mark.parametrize(
    ("state", "others", "says"),
    [
        ("queued", {}, "does not begin"),
        ("queued", {"check_access": None}, "does not begin"),
        ("running", {"check_access": "success", "fetch_metadata": "scheduled"}, "does not go on"),
        ("running", {"check_access": "up_for_reschedule"}, "does not go on"),
        ("running", {"check_access": "up_for_retry"}, "does not go on"),
    ],
)
def test_a_run_of_a_paused_dag_says_that_it_is_paused_and_how_to_unpause(state, others, says):
    said = headline(state, others, paused=True)
    assert said[0] == f"mimic_cxr_jpg is paused, so this run {says}"
    assert "Unpause the DAG" in said[1]
    assert said[2] == "bad"
    assert "paused" not in headline(state, others)[0]


def test_what_runs_in_a_paused_dag_goes_on_and_is_told_so():
    planned = Progress(planned=True, images=10, left=5)
    said = headline(
        "running", {"plan": "success"}, progress=planned, shards={0: Tasks("success", "running")}, paused=True
    )
    assert said[0] == "Streaming from PhysioNet's website"
    assert "paused" not in headline("success", {"plan": "success", "verify": "success"}, paused=True)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"result": None},
        {"result": []},
        {"result": RESULT | {"level": "thorough"}},
        {"result": RESULT | {"selected": "many"}},
        {"result": RESULT | {"selected": 10**400}},
        {"result": RESULT | {"verified": float("nan")}},
        {"result": RESULT | {"verified": 11}},
        {"result": RESULT | {"passed": "yes"}},
        {"transfer": "nothing"},
        {"run": {"seconds": float("inf")}},
        {"run": {}},
    ],
)
def test_a_report_that_is_not_ours_counts_as_none(change):
    assert show.result_of(RunReport.from_json(REPORT)).verified == 10
    assert show.result_of(RunReport.from_json(REPORT | change)) is None
    said = headline(
        "success",
        {"plan": "success", "verify": "success"},
        progress=Progress(report=RunReport.from_json(REPORT | change)),
    )
    assert said[:2] == (
        "The run succeeded",
        "Its verification passed; its report is not in the bucket, or cannot be read.",
    )


def test_a_project_without_radiographs_is_told_in_files():
    dry = Progress(planned=True, images=41)
    said = headline(
        "success", {"plan": "success"}, dag_id="physionet_project", progress=dry, project="a/1", dry_run=True
    )
    assert said[0] == "Dry run: 41 files are planned"
    over = Progress(planned=True, images=10, report=RunReport.from_json(REPORT))
    said = headline("success", {"plan": "success"}, dag_id="physionet_project", progress=over, project="a/1")
    assert said[0] == "All 10 selected files are in the bucket and verified"
    others = {"audit": "success", "judge": "failed"}
    assert "found files that" in headline("failed", others, dag_id="mimic_cxr_audit", project="a/1")[0]


@pytest.mark.parametrize(
    ("mode", "busy", "cell"),
    [
        ("download", "Streaming from PhysioNet's website", "1 connection"),
        ("copy", "S3 copies from PhysioNet's access point", "1 copy under way"),
        ("through", "Streaming from PhysioNet's access point, through the worker", "1 read under way"),
    ],
)
def test_the_way_is_named_as_what_it_is(mode, busy, cell):
    shard = ShardProgress(0, "p10", 10, "running", connections=1)
    progress = Progress(planned=True, mode=mode, images=10, left=5, shards=[shard], most_connections=1024)
    assert headline("running", {"plan": "success"}, progress=progress)[0] == busy
    run = Run("mimic_cxr_jpg", "r", "running", {}, None, None, None, None)
    seen = show.live(run, RunTasks(), progress)
    assert seen["shards"][0][2].endswith(f", {cell}")
    assert seen["fields"]["most_connections"] == "1,024"
