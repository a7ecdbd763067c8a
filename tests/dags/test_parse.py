"""The DAG files as Airflow parses them: fast, wired as documented, with a form that refuses invalid params."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demo import stack
from physionet_airflow.compat import AIRFLOW

HEAVY = {"pandas", "numpy", "pyarrow", "boto3", "botocore", "requests", "matplotlib", "PIL"}

REFUSED = [
    ("mimic_cxr_jpg", "bucket", "Not A Bucket"),
    ("mimic_cxr_jpg", "bucket", None),
    ("mimic_cxr_jpg", "prefix", ""),
    ("mimic_cxr_jpg", "prefix", "{{ ti }}"),
    ("mimic_cxr_jpg", "sample_size", 0),
    ("mimic_cxr_jpg", "sample_by", "hospital"),
    ("mimic_cxr_jpg", "splits", ["test", "holdout"]),
    ("mimic_cxr_jpg", "labels", ["Happiness"]),
    ("mimic_cxr_jpg", "groups", ["p20"]),
    ("mimic_cxr_jpg", "subjects", ["../etc"]),
    ("mimic_cxr_jpg", "file_list", "/etc/passwd"),
    ("mimic_cxr_jpg", "connections", 65),
    ("mimic_cxr_jpg", "storage_class", "FLOPPY"),
    ("mimic_cxr_jpg", "verify", "hope"),
    ("mimic_cxr_jpg", "approve_above_gb", -1),
    ("mimic_cxr_jpg", "approve_above_gb", float("nan")),
    ("mimic_cxr_jpg", "approve_above_gb", float("inf")),
    ("mimic_cxr_jpg", "sample_size", 10**30),
    ("mimic_cxr_jpg", "sample_size", float("nan")),
    ("mimic_cxr_jpg", "seed", 2**53),
    ("mimic_cxr_jpg", "seed", -(10**30)),
    ("mimic_cxr_jpg", "shard_size", 10**30),
    ("mimic_cxr_jpg", "views", [""]),
    ("mimic_cxr_jpg", "views", [" "]),
    ("mimic_cxr_jpg", "subjects", [""]),
    ("mimic_cxr_jpg", "subjects", [10**30]),
    ("mimic_cxr_jpg_backfill", "slices", 10**30),
    ("mimic_cxr_jpg_backfill", "stop_after", "4." + "5" * 400),
    ("mimic_cxr_jpg_backfill", "approve_above_gb", float("nan")),
    ("mimic_cxr_audit", "share", "0/8"),
    ("mimic_cxr_cleanup", "what", "bucket"),
    ("mimic_cxr_cleanup", "prefix", ""),
    ("mimic_cxr_cleanup", "prefix", "/"),
    ("mimic_cxr_cleanup", "run_id", "../../other"),
]
TAKEN = [
    ("mimic_cxr_jpg", "bucket", "my-bucket"),
    ("mimic_cxr_jpg", "views", None),  # what the form sends for a cleared multi-select
    ("mimic_cxr_jpg", "views", ["AP", "SWIMMERS"]),
    ("mimic_cxr_jpg", "views", ["frontal", "lateral", "none"]),
    ("mimic_cxr_jpg", "approve_above_gb", 0),
    ("mimic_cxr_jpg", "approve_above_gb", 2.5),
    ("mimic_cxr_jpg", "seed", -(2**53) + 1),
    ("mimic_cxr_jpg", "subjects", ["10000032", "p10000764"]),
    ("mimic_cxr_jpg", "subjects", [10000032]),
    ("mimic_cxr_jpg", "file_list", "s3://lists/mine/list.txt"),
    ("mimic_cxr_jpg", "file_list", None),
    ("mimic_cxr_jpg", "shard_size", None),
    ("mimic_cxr_jpg", "prefix", "mimic-cxr-jpg/2.1.0"),
    ("mimic_cxr_audit", "share", "*/8"),
    ("mimic_cxr_audit", "bucket", None),  # scheduled: must have a default
]


def parse(folder: Path, cwd: Path, migrated_home: Path, attempts: list[Any], **env: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("describe.py"), folder, json.dumps(attempts)],
        env={**stack.airflow_environment(migrated_home, connections={}), **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory, migrated_home: Path) -> dict[str, Any]:
    return parse(stack.ROOT / "dags", tmp_path_factory.mktemp("parse"), migrated_home, REFUSED + TAKEN)


def test_every_file_is_a_dag_with_a_page_of_its_own(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    files = {file.stem for file in (stack.ROOT / "dags").glob("*.py")}
    assert set(parsed["dags"]) == files
    assert all("| task |" in dag["doc"] for dag in parsed["dags"].values())


@pytest.mark.parametrize("syntax", ["glob", "regexp"])
def test_an_airflow_whose_bundle_is_the_repository_runs_nothing_but_the_dags(
    tmp_path: Path, migrated_home: Path, syntax: str
) -> None:
    found = parse(stack.ROOT, tmp_path, migrated_home, [], AIRFLOW__CORE__DAG_IGNORE_FILE_SYNTAX=syntax)
    assert found["errors"] == {}
    assert set(found["dags"]) == {file.stem for file in (stack.ROOT / "dags").glob("*.py")}
    # No other file was executed, whether it holds a DAG or not.
    assert set(found["files"]) == {str(file) for file in (stack.ROOT / "dags").glob("*.py")}


def test_parsing_is_cheap_and_imports_nothing_heavy(parsed: dict[str, Any]) -> None:
    assert HEAVY.isdisjoint(parsed["modules"])
    assert parsed["seconds"] < 3  # 0.2 to 0.4 on an idle machine


def test_only_the_package_is_imported_not_its_modules_by_bare_name(parsed: dict[str, Any]) -> None:
    ours = {file.stem for file in (stack.ROOT / "plugins/physionet_airflow").glob("*.py")}
    assert ours.isdisjoint(parsed["modules"])


def test_the_graph_of_mimic_cxr_jpg_reads_as_the_design_says(parsed: dict[str, Any]) -> None:
    assert parsed["dags"]["mimic_cxr_jpg"]["edges"] == sorted(
        [
            ["check_access", "fetch_metadata"],
            ["fetch_metadata", "plan"],
            ["plan", "approve"],
            ["plan", "mirror_shard.missing"],
            ["approve", "mirror_shard.missing"],
            ["mirror_shard.missing", "mirror_shard.stream"],
            ["mirror_shard.stream", "verify"],
        ]
    )


def test_tasks_carry_what_facts_and_design_ask_for(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["mimic_cxr_jpg"]["tasks"]
    assert tasks["verify"]["trigger_rule"] == "all_done"
    stream = tasks["mirror_shard.stream"]
    assert (stream["pool"], stream["at_once"]) == ("default_pool", 4)
    assert stream["map_index_template"] == "{{ shard_name }}"
    for dag in parsed["dags"].values():
        assert all(task["policy"] is (AIRFLOW >= (3, 3)) and task["retries"] for task in dag["tasks"].values())


def test_no_param_is_a_template(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["mimic_cxr_jpg"]["tasks"]
    fields = {name: task["template_fields"] for name, task in tasks.items() if name != "approve"}
    assert {field for of_task in fields.values() for field in of_task} <= {"shard"}


def test_every_param_has_title_section_and_one_line(parsed: dict[str, Any]) -> None:
    for dag in parsed["dags"].values():
        for name, param in dag["params"].items():
            assert param["schema"].get("title"), name
            assert param["schema"].get("section"), name
            text = param["description"] or param["schema"]["description_md"].partition(" [")[0]  # then a link
            assert text.endswith("."), name
            assert len(text) < 110, name


def test_only_the_bucket_has_no_default(parsed: dict[str, Any]) -> None:
    params = parsed["dags"]["mimic_cxr_jpg"]["params"]
    nullable = {name for name, param in params.items() if "null" in param["schema"]["type"]}
    assert {name for name, param in params.items() if not param["has_value"]} - nullable == {"bucket"}


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[f"{n}={v}"[:40] for _, n, v in REFUSED])
def test_the_form_refuses(parsed: dict[str, Any], number: int) -> None:
    assert parsed["problems"][number] is not None


@pytest.mark.parametrize("number", range(len(TAKEN)), ids=[f"{n}={v}"[:40] for _, n, v in TAKEN])
def test_the_form_takes(parsed: dict[str, Any], number: int) -> None:
    assert parsed["problems"][len(REFUSED) + number] is None


def test_the_form_knows_the_engines_choices(parsed: dict[str, Any]) -> None:
    from physionet_mirror import request

    params = parsed["dags"]["mimic_cxr_jpg"]["params"]
    assert set(params["storage_class"]["schema"]["enum"]) == set(request.STORAGE_CLASSES)
    assert tuple(params["verify"]["schema"]["enum"]) == request.LEVELS
    assert tuple(params["source"]["schema"]["enum"]) == request.SOURCES


def test_every_number_of_every_form_has_both_bounds(parsed: dict[str, Any]) -> None:
    for dag_id, dag in parsed["dags"].items():
        for name, param in dag["params"].items():
            schema = param["schema"]
            if {"integer", "number"} & set(schema.get("type") or ()) or schema.get("type") in ("integer", "number"):
                assert {"minimum", "maximum"} <= schema.keys(), (dag_id, name)
