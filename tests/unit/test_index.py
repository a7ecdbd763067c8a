"""The training index holds the verified images of all runs."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror import index, parquet
from physionet_mirror.dataset import LABELS
from physionet_mirror.records import Failure
from tests.unit.made_up import FakeBucket, OneFile, make_manifest, make_verdict, written


class TestIndex:
    def test_has_one_row_for_each_verified_image(self):
        bucket, facts, rows = written(problems=lambda rows: [Failure(rows[7]["path"], "missing")])
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
        lost = make_verdict(rows[:5], [Failure(rows[0]["path"], "missing"), Failure(rows[1]["path"], "wrong bytes")])
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

    def test_an_index_of_an_earlier_version_gets_its_new_columns_from_the_manifest(self):
        bucket, (rows, manifest) = FakeBucket(), make_manifest(30)
        index.update(bucket, make_verdict(rows[:20]), io.BytesIO(old_manifest(manifest)))
        before = pq.read_table(io.BytesIO(bucket.read("_mirror/index.parquet")))
        assert "Edema" not in before.column_names

        assert index.upgrade(bucket, io.BytesIO(manifest))
        assert not index.upgrade(bucket, io.BytesIO(manifest)), "there is nothing left to do"

        after = pq.read_table(io.BytesIO(bucket.read("_mirror/index.parquet")))
        assert after.select(before.column_names).equals(before), "nothing is verified or forgotten"
        whole = FakeBucket()
        index.update(whole, make_verdict(rows[:20]), io.BytesIO(manifest))
        assert after.equals(pq.read_table(io.BytesIO(whole.read("_mirror/index.parquet"))))

    def test_a_run_gives_the_rows_of_earlier_runs_the_new_columns(self):
        bucket, (rows, manifest) = FakeBucket(), make_manifest(30)
        index.update(bucket, make_verdict(rows[:20]), io.BytesIO(old_manifest(manifest)))

        index.update(bucket, make_verdict(rows[20:]), io.BytesIO(manifest))

        table = pq.read_table(io.BytesIO(bucket.read("_mirror/index.parquet")))
        assert {row["path"]: row["Edema"] for row in table.to_pylist()} == {row["path"]: row["Edema"] for row in rows}

    def test_what_is_no_index_is_not_upgraded(self):
        bucket, (_, manifest) = FakeBucket(), make_manifest(3)
        assert not index.upgrade(bucket, io.BytesIO(manifest))
        bucket.objects["_mirror/index.parquet"] = b"PAR1 no more"
        assert not index.upgrade(bucket, io.BytesIO(manifest))
        assert bucket.objects["_mirror/index.parquet"] == b"PAR1 no more"

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
                bucket, make_verdict(rows, [Failure(r["path"], "missing") for r in rows]), io.BytesIO(manifest)
            )
            == 0
        )


def old_manifest(manifest: bytes) -> bytes:
    """The manifest without the columns that earlier versions lacked."""
    out = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(manifest)).drop_columns(["Edema", "split"]), out)
    return out.getvalue()


def an_index() -> bytes:
    paths = [f"files/p10/p1000000{n % 10}/s5000000{n}/{n:08x}.jpg" for n in range(200)]
    columns = {
        "path": paths,
        "bytes": list(range(200)),
        "sha256": [f"{n:064x}" for n in range(200)],
        "level": ["count"] * 200,
    }
    return parquet.to_bytes(pa.table(columns))


def test_a_page_whose_header_denies_its_checksum_is_not_believed() -> None:
    good = an_index()
    spoilt = bytearray(good)
    spoilt[13] ^= 1  # the field of the first page's checksum gets a type that readers pass over …
    spoilt[73] ^= 1  # … and one of its values another digit
    assert (
        pq.read_table(io.BytesIO(spoilt), page_checksum_verification=True)["path"]
        != pq.read_table(io.BytesIO(good))["path"]
    )
    assert index.read(OneFile(bytes(spoilt))) is None  # type: ignore[arg-type]


def test_what_is_written_again_is_the_same() -> None:
    assert parquet.to_bytes(parquet.from_bytes(an_index())) == an_index()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_an_index_with_flipped_bytes_is_read_right_or_not_at_all(data: st.DataObject) -> None:
    good = an_index()
    spoilt = bytearray(good)
    for at in data.draw(st.sets(st.integers(0, len(good) - 1), min_size=1, max_size=4)):
        spoilt[at] ^= data.draw(st.integers(1, 255))
    found = index.read(OneFile(bytes(spoilt)), ["path", "bytes", "sha256"])  # type: ignore[arg-type]
    if found is not None and found.num_rows == 200:
        assert set(found["path"].to_pylist()) == set(pq.read_table(io.BytesIO(good))["path"].to_pylist())
