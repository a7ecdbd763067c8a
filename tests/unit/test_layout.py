"""The path of each file below the prefix: a run has its own folder, whatever its id."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.layout import INDEX, LEFT, RunLayout


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
def test_folders_of_runs_never_collide(one: str, other: str) -> None:
    layouts = [RunLayout(run, dag) for run in (one, other) for dag in ("mimic_cxr_jpg", "mimic_cxr_audit", one, other)]
    distinct = {(layout.run_id, layout.dag_id) for layout in layouts}
    assert len({layout.root for layout in layouts}) == len(distinct)
    for layout in layouts:
        assert layout.root.count("/") == 3
        found = RunLayout.of_folder(layout.folder)
        assert (found.run_id, found.dag_id) == (layout.run_id, layout.dag_id)


def test_an_ordinary_run_keeps_the_folder_of_the_contract() -> None:
    run_id = "manual__2026-03-01T22:00:00.123456+00:00"
    assert RunLayout(run_id).plan == f"_mirror/runs/{run_id}/plan.json"
    assert RunLayout(run_id, "my_dag").root == f"_mirror/runs/my_dag@{run_id}/"
    assert (INDEX, LEFT) == ("_mirror/index.parquet", "_mirror/left.sha256")
