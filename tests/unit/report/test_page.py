"""report.html: one file that needs no script, says what failed and what to do next, and shows no image."""

from __future__ import annotations

import re

from physionet_mirror.records import Failure, RunReport
from physionet_mirror.report import page
from tests.unit.made_up import RUN, make_results, written


class TestPage:
    def test_is_self_contained_and_without_script(self):
        bucket, _, _ = written(results=make_results(38, 3))
        shown = bucket.read(RUN.report_html).decode()
        assert "<script" not in shown
        assert not re.search(r'(?:src|href)="(?!#|data:|https://physionet\.org/(?:content|sign-dua)/)', shown)
        assert not re.search(r"@import|url\((?!#)", shown)
        assert "<svg" in shown

    def test_says_that_all_is_well(self):
        shown = written()[0].read(RUN.report_html).decode()
        assert "All 40 selected images are in the bucket and verified." in shown
        assert "What failed" not in shown

    def test_names_what_failed_and_the_next_step(self):
        bucket, _, rows = written(problems=lambda rows: [Failure(rows[0]["path"], "missing")])
        shown = bucket.read(RUN.report_html).decode()
        assert "1 of 40 selected images is not there" in shown
        assert rows[0]["path"] in shown
        assert "it fetches only what is missing" in shown

    def test_escapes_every_text(self):
        nasty = "<script>alert(1)</script>&\"'"
        _, facts, _ = written(problems=lambda rows: [Failure(rows[0]["path"], nasty, nasty)], notes=[nasty])
        for part in (facts["params"], facts["software"]):
            part[nasty] = nasty
        facts["params"]["a mapping"] = {nasty: nasty}
        facts["params"]["a list"] = [nasty]
        facts["transfer"]["shards"] = facts["transfer"]["faults"] = {nasty: 1}
        facts["requests"]["by_kind"] = {nasty: 1}
        facts["run"]["id"] = facts["dataset"]["citation"] = facts["dataset"]["title"] = nasty
        for part in ("by_group", "by_split", "by_view", "positive_labels"):
            facts["cohort"][part][0]["name"] = nasty
        shown = page.html(RunReport.from_json(facts))
        assert "<script" not in shown
        assert 'onerror="' not in shown

    def test_no_image_of_a_patient_is_in_it(self):
        shown = written()[0].read(RUN.report_html).decode()
        assert "<img" not in shown
        assert "data:image" not in shown

    def test_the_same_facts_are_the_same_page(self):
        _, facts, _ = written(results=make_results(38, 3))
        assert page.html(RunReport.from_json(facts)) == page.html(RunReport.from_json(facts))

    def test_nothing_selected_is_still_a_page(self):
        _, facts, _ = written(problems=lambda rows: [Failure(row["path"], "missing") for row in rows])
        assert "None is verified" in page.html(RunReport.from_json(facts))


class TestTable:
    def test_is_narrow_and_ends_with_the_counts(self):
        _, facts, _ = written(problems=lambda rows: [Failure(rows[0]["path"], "missing")], results=make_results(38, 3))
        lines = page.summary_table(RunReport.from_json(facts)).split("\n")
        assert lines[-1] == "39 of 40 selected images verified (checksum): 1 missing, 0 wrong, 0 empty"
        assert all(len(line) <= 100 for line in lines if "s3://" not in line)
        assert any(line.split() == ["1", "missing"] for line in lines)
