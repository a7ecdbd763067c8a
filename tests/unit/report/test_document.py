"""The report says what the verification found and what the stream tasks published, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from physionet_mirror import index
from physionet_mirror.dataset import LABELS, MIMIC_CXR, MIMIC_CXR_JPG
from physionet_mirror.layout import RunLayout
from physionet_mirror.report import document, page
from physionet_mirror.verification import Problem, Verdict, Verified

DOCS = Path(__file__).parents[3] / "docs"
SCHEMA = json.loads((DOCS / "report.schema.json").read_text())
STARTED = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
RUN = RunLayout("manual__2026-03-01T22:00:00+00:00")


class FakeBucket:
    """Objects in a dictionary, with as much of Bucket as the report uses."""

    def __init__(self, prefix="mimic-cxr-jpg/2.1.0"):
        self.name, self.prefix, self.objects = "lab-bucket", prefix, {}

    def key(self, path):
        return f"{self.prefix}/{path}" if self.prefix else path

    def uri(self, path=""):
        return f"s3://{self.name}/{self.key(path)}".rstrip("/")

    def list(self, under=""):
        return [SimpleNamespace(path=path) for path in sorted(self.objects) if path.startswith(under)]

    def head(self, path):
        data = self.objects.get(path)
        return None if data is None else SimpleNamespace(etag=hashlib.sha256(data).hexdigest(), size=len(data))

    def read(self, path):
        try:
            return self.objects[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def read_json(self, path):
        return json.loads(self.objects[path]) if path in self.objects else None

    def write(self, path, data, **_):
        self.objects[path] = data

    def write_unless_changed(self, path, data, before, **_):
        now = self.head(path)
        if (now and now.etag) != (before and before.etag):
            return False
        self.objects[path] = data
        return True

    def write_text(self, path, text, **_):
        self.objects[path] = text.encode()

    def write_json(self, path, value):
        self.objects[path] = json.dumps(value).encode()

    def discard(self, paths):
        for path in paths:
            self.objects.pop(path, None)


def make_manifest(count, seed=1, labels=LABELS):
    """A manifest as ``manifest.write`` leaves it, with plausible values."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        subject = 10_000_000 + number * 9_999_999 // max(count, 1)
        dicom = "-".join(f"{rng.getrandbits(32):08x}" for _ in range(5))
        study = 50_000_000 + number
        rows.append(
            {
                "path": f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg",
                "sha256": hashlib.sha256(dicom.encode()).hexdigest(),
                "group": f"p{str(subject)[:2]}",
                "subject_id": subject,
                "study_id": study,
                "dicom_id": dicom,
                "view": rng.choices(["AP", "PA", "LATERAL", "LL", None], [39, 26, 22, 9, 4])[0],
                "split": rng.choices(["train", "validate", "test"], [97, 1, 2])[0],
                "height": rng.choice([2544, 3056, 2022]),
                "width": rng.choice([3056, 2544, 1736]),
                **{label: rng.choices([1, 0, -1, None], [15, 8, 4, 73])[0] for label in labels},
            }
        )
    types = {"subject_id": pa.int32(), "study_id": pa.int32(), "height": pa.int32(), "width": pa.int32()}
    types |= dict.fromkeys(labels, pa.int8())
    names = list(rows[0])
    schema = pa.schema([(name, types.get(name, pa.large_string())) for name in names])
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({"physionet_mirror.sums_sha256": "ab" * 32}))
    out = io.BytesIO()
    pq.write_table(table, out)
    return rows, out.getvalue()


def make_verdict(rows, problems=(), level="checksum", seed=2):
    rng = random.Random(seed)
    bad = {problem.path for problem in problems}
    ok = [
        Verified(row["path"], int(rng.lognormvariate(14.15, 0.22)), f"{number:032x}", row["sha256"])
        for number, row in enumerate(rows)
        if row["path"] not in bad
    ]
    return Verdict(level, ok, sorted(problems), remembered=0, seconds=4.2, requests={"HEAD": len(ok), "LIST": 2})


def make_results(images, shards, streams=4, seed=3, failed=()):
    """Result files as the stream tasks write them: `streams` shards at once, 1.45 MB an image, 1.2 MB/s a stream."""
    rng = random.Random(seed)
    free = [STARTED + timedelta(minutes=2)] * streams
    results = []
    for number in range(shards):
        stream = min(range(streams), key=free.__getitem__)
        todo = images // shards + (number < images % shards)
        series, t, left = [], 0.0, todo
        while left > 0:
            t += 10
            done = min(left, max(1, round(rng.gauss(8.3, 1.2))))
            left -= done
            series.append([t, done, done * 1_450_000, 2])
        begun = free[stream]
        free[stream] = begun + timedelta(seconds=t + 3)
        results.append(
            {
                "shard": number,
                "name": f"p1{number % 10}, {todo} images",
                "state": "done",
                "try_number": 1,
                "started": begun.isoformat(),
                "updated": free[stream].isoformat(),
                "seconds": t,
                "images": todo,
                "todo": todo,
                "stored": todo,
                "bytes": todo * 1_450_000,
                "failed": [],
                "connections": 2,
                "retries": rng.choice([0, 0, 0, 1, 3]),
                "handshakes": 1,
                "faults": rng.choice([{}, {}, {"throttled": 2}, {"stalled": 1}]),
                "series": series,
            }
        )
    for number, (path, reason, detail) in enumerate(failed):
        result = results[number % len(results)]
        result["failed"].append({"path": path, "reason": reason, "detail": detail})
        result["state"] = "failed"
    return results


PARAMS = {
    "bucket": "lab-bucket",
    "select": "sample",
    "sample_size": 40,
    "views": ["AP", "PA"],
    "labels": [],
    "shard_size": None,
    "dry_run": False,
}


def written(count=40, problems=lambda _: [], results=(), bucket=None, level="checksum", **more):
    """A bucket after `index.update` and `document.write`, and what it returned."""
    bucket = bucket or FakeBucket()
    rows, manifest = make_manifest(count)
    for result in results:
        bucket.write_json(RUN.result(result["shard"]), result)
    verdict = make_verdict(rows, problems(rows), level)
    facts = document.write(
        bucket,
        RUN,
        dataset=MIMIC_CXR_JPG,
        verdict=verdict,
        index_rows=index.update(bucket, verdict, io.BytesIO(manifest)),
        manifest=manifest,
        params=PARAMS,
        started=STARTED,
        **more,
    )
    return bucket, facts, rows


class TestFacts:
    def test_follow_the_published_schema(self):
        for results in ((), make_results(38, 3)):
            for problems in (lambda _: [], lambda rows: [Problem(rows[0]["path"], "missing")]):
                bucket, facts, _ = written(problems=problems, results=results)
                jsonschema.Draft202012Validator(SCHEMA).validate(facts)
                assert json.loads(bucket.read(RUN.report_json)) == facts

    def test_schema_names_every_field(self):
        """Nothing is in the report that its documentation does not know."""

        def check(value, schema, where):
            if isinstance(value, dict) and "properties" in schema:
                assert set(value) == set(schema["properties"]) == set(schema["required"]), where
                for name, inner in value.items():
                    check(inner, schema["properties"][name], f"{where}.{name}")

        check(written(results=make_results(38, 3))[1], SCHEMA, "report")

    def test_counts_add_up(self):
        _, facts, _ = written(
            problems=lambda rows: [
                Problem(rows[0]["path"], "missing"),
                Problem(rows[1]["path"], "empty"),
                Problem(rows[2]["path"], "wrong bytes", "S3 holds the SHA-256 …"),
            ]
        )
        result = facts["result"]
        assert (result["selected"], result["verified"], result["present"]) == (40, 37, 39)
        assert (result["missing"], result["wrong"], result["empty"]) == (1, 1, 1)
        assert not result["passed"]
        for part in ("by_group", "by_split", "by_view"):
            assert sum(row["selected"] for row in facts["cohort"][part]) == 40
            assert sum(row["verified"] for row in facts["cohort"][part]) == 37

    def test_a_missing_image_has_the_reason_of_its_stream_task(self):
        rows, _ = make_manifest(40)
        failed = [(rows[3]["path"], "not found", "404"), (rows[4]["path"], "corrupt", "hashes to …")]
        bucket, facts, _ = written(
            problems=lambda rows: [Problem(rows[n]["path"], "missing") for n in (3, 4, 5)],
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
        bucket, _, _ = written(problems=lambda rows: [Problem(rows[0]["path"], "missing")])
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
        )
        jsonschema.Draft202012Validator(SCHEMA).validate(facts)
        assert facts["cohort"]["by_view"] == [] == facts["cohort"]["positive_labels"]

    def test_figures_of_the_asset_event_are_few_and_plain(self):
        _, facts, _ = written()
        assert all(isinstance(value, str | int | bool) for value in document.figures(facts).values())
        assert len(json.dumps(document.figures(facts))) < 1000


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
        bucket, _, rows = written(problems=lambda rows: [Problem(rows[0]["path"], "missing")])
        shown = bucket.read(RUN.report_html).decode()
        assert "1 of 40 selected images is not there" in shown
        assert rows[0]["path"] in shown
        assert "it fetches only what is missing" in shown

    def test_escapes_every_text(self):
        nasty = "<script>alert(1)</script>&\"'"
        _, facts, _ = written(problems=lambda rows: [Problem(rows[0]["path"], nasty, nasty)], notes=[nasty])
        for part in (facts["params"], facts["software"]):
            part[nasty] = nasty
        facts["params"]["a mapping"] = {nasty: nasty}
        facts["params"]["a list"] = [nasty]
        facts["transfer"]["shards"] = facts["transfer"]["faults"] = {nasty: 1}
        facts["requests"]["by_kind"] = {nasty: 1}
        facts["run"]["id"] = facts["dataset"]["citation"] = facts["dataset"]["title"] = nasty
        for part in ("by_group", "by_split", "by_view", "positive_labels"):
            facts["cohort"][part][0]["name"] = nasty
        shown = page.html(facts)
        assert "<script" not in shown
        assert 'onerror="' not in shown

    def test_no_image_of_a_patient_is_in_it(self):
        shown = written()[0].read(RUN.report_html).decode()
        assert "<img" not in shown
        assert "data:image" not in shown

    def test_the_same_facts_are_the_same_page(self):
        _, facts, _ = written(results=make_results(38, 3))
        assert page.html(facts) == page.html(facts)

    def test_nothing_selected_is_still_a_page(self):
        _, facts, _ = written(problems=lambda rows: [Problem(row["path"], "missing") for row in rows])
        assert "None is verified" in page.html(facts)


class TestTable:
    def test_is_narrow_and_ends_with_the_counts(self):
        _, facts, _ = written(problems=lambda rows: [Problem(rows[0]["path"], "missing")], results=make_results(38, 3))
        lines = page.summary_table(facts).split("\n")
        assert lines[-1] == "39 of 40 selected images verified (checksum): 1 missing, 0 wrong, 0 empty"
        assert all(len(line) <= 100 for line in lines if "s3://" not in line)
        assert any(line.split() == ["1", "missing"] for line in lines)


class TestIndex:
    def test_has_one_row_for_each_verified_image(self):
        bucket, facts, rows = written(problems=lambda rows: [Problem(rows[7]["path"], "missing")])
        table = pq.read_table(io.BytesIO(bucket.read("_mirror/index.parquet")))
        assert table.num_rows == 39 == facts["files"]["index_rows"]
        assert table.column_names == [
            *("path", "key", "uri", "bytes", "sha256", "level", "group", "subject_id", "study_id", "dicom_id"),
            *("view", "split", "height", "width", *LABELS),
        ]
        first = table.slice(0, 1).to_pylist()[0]
        expected = min(rows, key=lambda row: row["path"])
        assert {name: first[name] for name in expected} == expected
        assert first["key"] == f"mimic-cxr-jpg/2.1.0/{first['path']}"
        assert first["uri"] == f"s3://lab-bucket/{first['key']}"
        assert table["path"].to_pylist() == sorted(table["path"].to_pylist())
        assert (
            pq.read_metadata(io.BytesIO(bucket.read("_mirror/index.parquet"))).row_group(0).column(0).compression
            == "ZSTD"
        )

    def test_runs_add_up_and_what_went_missing_is_dropped(self):
        bucket = FakeBucket()
        rows, manifest = make_manifest(30)
        index.update(bucket, make_verdict(rows[:20]), io.BytesIO(manifest))
        assert index.update(bucket, make_verdict(rows[10:]), io.BytesIO(manifest)) == 30
        lost = make_verdict(rows[:5], [Problem(rows[0]["path"], "missing"), Problem(rows[1]["path"], "wrong bytes")])
        assert index.update(bucket, lost, io.BytesIO(manifest)) == 28
        table = pq.read_table(io.BytesIO(bucket.read("_mirror/index.parquet")))
        assert set(table["path"].to_pylist()) == {row["path"] for row in rows[2:]}

    def test_a_run_that_wrote_meanwhile_is_not_lost(self):
        rows, manifest = make_manifest(30)

        class Overlapping(FakeBucket):
            others = 1

            def read(self, path):
                data = super().read(path)
                if self.others:
                    self.others -= 1
                    index.update(self, make_verdict(rows[20:]), io.BytesIO(manifest))
                return data

        bucket = Overlapping()
        bucket.others = 0
        index.update(bucket, make_verdict(rows[:10]), io.BytesIO(manifest))
        bucket.others = 1
        assert index.update(bucket, make_verdict(rows[10:20]), io.BytesIO(manifest)) == 30

    def test_a_damaged_index_is_written_anew(self):
        bucket = FakeBucket()
        bucket.objects["_mirror/index.parquet"] = b"PAR1 no more"
        rows, manifest = make_manifest(10)
        assert index.update(bucket, make_verdict(rows), io.BytesIO(manifest)) == 10

    def test_nothing_verified_is_an_empty_index(self):
        bucket = FakeBucket()
        rows, manifest = make_manifest(3)
        assert (
            index.update(
                bucket, make_verdict(rows, [Problem(r["path"], "missing") for r in rows]), io.BytesIO(manifest)
            )
            == 0
        )


class TestTrainingPage:
    """docs/training.md works as written."""

    BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "training.md").read_text(), re.DOTALL)

    @pytest.fixture
    def names(self, tmp_path, capsys):
        """What the page's first block defines, run on an index of 200 images."""
        bucket = FakeBucket()
        rows, manifest = make_manifest(200)
        index.update(bucket, make_verdict(rows), io.BytesIO(manifest))
        file = tmp_path / "index.parquet"
        file.write_bytes(bucket.read("_mirror/index.parquet"))
        names = {}
        exec(self.BLOCKS[0].replace("s3://my-bucket/mimic-cxr-jpg/2.1.0/_mirror/index.parquet", str(file)), names)
        assert "patients" in capsys.readouterr().out
        return names

    def test_pandas(self, names):
        chosen = names["pneumonia"]
        assert 0 < len(chosen) < len(names["index"]) == 200
        assert set(chosen["Pneumonia"]) == {0, 1}
        assert set(chosen["view"]) == {"AP", "PA"}

    def test_pytorch(self, names, monkeypatch):
        torch = pytest.importorskip("torch")
        from PIL import Image

        picture = io.BytesIO()
        Image.new("L", (40, 30), 255).save(picture, "PNG")
        client = SimpleNamespace(get_object=lambda **_: {"Body": io.BytesIO(picture.getvalue())})
        monkeypatch.setattr("boto3.client", lambda _: client)
        exec(self.BLOCKS[1], names)
        dataset = names["Radiographs"](names["pneumonia"], "Pneumonia")
        pixels, label = dataset[0]
        assert pixels.shape == (1, 224, 224)
        assert float(pixels.max()) == 1
        assert float(label) in {0, 1}
        assert len(list(torch.utils.data.DataLoader(dataset, batch_size=8))) == -(-len(dataset) // 8)
