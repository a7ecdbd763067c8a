"""The report contains what the verification found and what the stream tasks published, and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq

from physionet_mirror import index
from physionet_mirror.dataset import MIMIC_CXR
from physionet_mirror.estimate import estimate
from physionet_mirror.records import Failure, Plan, RunReport
from physionet_mirror.report import document, page
from physionet_mirror.s3.prices import PRICES_AS_OF, request_cost
from tests.unit.made_up import RUN, STARTED, FakeBucket, make_manifest, make_results, make_verdict, written

DOCS = Path(__file__).parents[3] / "docs"
SCHEMA = json.loads((DOCS / "report.schema.json").read_text())


class TestFacts:
    def test_follow_the_published_schema(self):
        for results in ((), make_results(38, 3)):
            for problems in (lambda _: [], lambda rows: [Failure(rows[0]["path"], "missing")]):
                bucket, facts, _ = written(problems=problems, results=results)
                jsonschema.Draft202012Validator(SCHEMA).validate(facts)
                assert json.loads(bucket.read(RUN.report_json)) == facts

    def test_schema_names_every_field(self):
        """Every field of the report is in its documentation."""

        def check(value, schema, where):
            if isinstance(value, dict) and "properties" in schema:
                assert set(value) == set(schema["properties"]) == set(schema["required"]), where
                for name, inner in value.items():
                    check(inner, schema["properties"][name], f"{where}.{name}")

        check(written(results=make_results(38, 3))[1], SCHEMA, "report")

    def test_counts_add_up(self):
        _, facts, _ = written(
            problems=lambda rows: [
                Failure(rows[0]["path"], "missing"),
                Failure(rows[1]["path"], "empty"),
                Failure(rows[2]["path"], "wrong bytes", "S3 holds the SHA-256 …"),
            ]
        )
        result = facts["result"]
        assert (result["selected"], result["verified"], result["present"]) == (40, 37, 39)
        assert (result["missing"], result["wrong"], result["empty"]) == (1, 1, 1)
        assert not result["passed"]
        for part in ("by_group", "by_split", "by_view"):
            assert sum(row["selected"] for row in facts["cohort"][part]) == 40
            assert sum(row["verified"] for row in facts["cohort"][part]) == 37

    def test_what_left_the_access_points_region_has_its_price(self):
        expected = estimate(40, 1.45e6, 64, mode="through", region="eu-west-1")
        way = {"mode": "through", "source": "s3"}
        bucket, facts, _ = written(results=make_results(38, 3), way=way, expected=expected)
        moved = facts["transfer"]
        assert (moved["out_to"], moved["out_usd"]) == ("eu-west-1", round(moved["bytes"] / 2**30 * 0.02, 6))
        assert "out of us-east-1" in bucket.read(RUN.report_html).decode().lower()
        assert "reads under way" in bucket.read(RUN.report_html).decode()
        assert "to eu-west-1" in page.summary_table(RunReport.from_json(facts))

    def test_requests_have_the_prices_of_the_buckets_region_and_class(self):
        there = {"region": "eu-central-1", "storage_class": "GLACIER_IR"}
        _, facts, _ = written(results=make_results(38, 3), expected=estimate(40, 1.45e6, 8, **there))
        assert facts["requests"]["prices"] == f"S3 GLACIER_IR, eu-central-1, {PRICES_AS_OF}"
        assert facts["requests"]["cost_usd"] == round(request_cost(facts["requests"]["by_kind"], **there), 6)
        assert facts["verification"]["cost_usd"] == round(request_cost(facts["verification"]["requests"], **there), 6)
        _, elsewhere, _ = written(results=make_results(38, 3))
        assert "us-east-1" in elsewhere["requests"]["prices"]
        assert facts["requests"]["cost_usd"] > elsewhere["requests"]["cost_usd"] > 0

    def test_copies_are_counted_as_copies_and_cost_no_transfer(self):
        expected = estimate(40, 1.45e6, 64, mode="copy")
        _, facts, _ = written(results=make_results(38, 3), way={"mode": "copy"}, expected=expected)
        assert (facts["transfer"]["out_to"], facts["transfer"]["out_usd"]) == ("", 0)
        assert facts["requests"]["by_kind"]["COPY"] == 38
        assert "PUT" not in facts["requests"]["by_kind"]

    def test_a_missing_image_has_the_reason_of_its_stream_task(self):
        rows, _ = make_manifest(40)
        failed = [(rows[3]["path"], "not found", "404"), (rows[4]["path"], "corrupt", "hashes to …")]
        bucket, facts, _ = written(
            problems=lambda rows: [Failure(rows[n]["path"], "missing") for n in (3, 4, 5)],
            results=make_results(38, 3, failed=failed),
        )
        assert {f["reason"]: f["count"] for f in facts["failures"]} == {"not found": 1, "corrupt": 1, "missing": 1}
        assert bucket.read(RUN.failed_images).decode() == (
            f"{rows[3]['path']}\tnot found\n{rows[4]['path']}\tcorrupt\n{rows[5]['path']}\tmissing\n"
        )

    def test_an_image_that_failed_once_and_is_there_is_no_failure(self):
        rows, _ = make_manifest(40)
        bucket, facts, _ = written(results=make_results(38, 3, failed=[(rows[3]["path"], "stalled", "")]))
        assert facts["failures"] == []
        assert RUN.failed_images not in bucket.objects

    def test_failed_images_of_an_earlier_attempt_go_away(self):
        bucket, _, _ = written(problems=lambda rows: [Failure(rows[0]["path"], "missing")])
        assert RUN.failed_images in bucket.objects
        written(bucket=bucket)
        assert RUN.failed_images not in bucket.objects

    def test_a_damaged_result_file_is_left_out(self):
        bucket = FakeBucket()
        bucket.objects[RUN.result(9)] = b'{"shard": 9, "sta'
        _, facts, _ = written(bucket=bucket, results=make_results(38, 3))
        assert facts["transfer"]["shards"] == {"done": 3}

    def test_a_dataset_without_labels_or_views(self):
        bucket = FakeBucket("mimic-cxr/2.1.0")
        rows, manifest = make_manifest(20, labels=())
        table = pq.read_table(io.BytesIO(manifest)).drop_columns(["view", "split", "height", "width"])
        out = io.BytesIO()
        pq.write_table(table, out)
        verdict = make_verdict(rows)
        facts = document.write(
            bucket,
            RUN,
            dataset=MIMIC_CXR,
            verdict=verdict,
            index_rows=index.update(bucket, verdict, io.BytesIO(out.getvalue())),
            manifest=out.getvalue(),
            params={},
            started=STARTED,
            plan=Plan(()),
        )
        jsonschema.Draft202012Validator(SCHEMA).validate(facts := facts.to_json())
        assert facts["cohort"]["by_view"] == [] == facts["cohort"]["positive_labels"]

    def test_figures_of_the_asset_event_are_few_and_plain(self):
        _, facts, _ = written()
        assert all(
            isinstance(value, str | int | bool) for value in document.figures(RunReport.from_json(facts)).values()
        )
        assert len(json.dumps(document.figures(RunReport.from_json(facts)))) < 1000
