"""A training set made of a small mirror, against a real S3 process, without Airflow."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo import stack
from demo.lookalike import Lookalike, User
from physionet_mirror import index, manifest, parquet
from physionet_mirror.dataset import LABELS, MIMIC_CXR_JPG
from physionet_mirror.errors import InputError, MetadataError, VerificationFailed
from physionet_mirror.layout import MANIFEST, RunLayout, TrainingLayout
from physionet_mirror.records import load
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import cleanup, training_set
from physionet_mirror.steps.fetch_metadata import fetch_metadata
from physionet_mirror.training import card
from physionet_mirror.training.card import TrainingSet
from physionet_mirror.training.pixels import small_copy
from physionet_mirror.training.request import TrainingRequest
from physionet_mirror.verification import Verdict, Verified
from tests.conftest import READER

DAG = "mimic_cxr_training_set"
SMALL = {"size": 32, "shard_mb": 1}


@pytest.fixture(scope="module")
def mirror(tiny_dataset: Path, s3_server: stack.S3Server) -> Bucket:
    """A bucket with all tables of the dataset."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(name)
    return mirrored(tiny_dataset, s3_server, name)


def mirrored(dataset: Path, s3_server: stack.S3Server, name: str) -> Bucket:
    """A bucket with the tables of a dataset, its images, and their index."""
    bucket = Bucket.open(s3_server.session(), name, MIMIC_CXR_JPG.name, endpoint_url=s3_server.endpoint)
    login, password = READER
    with Lookalike(dataset, users={login: User(password)}, check_seconds=0.01) as server:
        fetch_metadata(PhysioNet(server.url, login, password), bucket, MIMIC_CXR_JPG)
    fill(bucket, dataset)
    return bucket


@pytest.fixture
def bucket(mirror: Bucket, tiny_dataset: Path) -> Iterator[Bucket]:
    """The mirror as it was made, whatever the test before did to it."""
    fill(mirror, tiny_dataset)
    yield mirror
    mirror.delete([entry.path for entry in mirror.list("_training/")] + ["_mirror/reports.parquet"])


def fill(bucket: Bucket, dataset: Path) -> None:
    """Store all images, and list them in the index."""
    whole = manifest.images(manifest.read(io.BytesIO(bucket.read(MANIFEST))))
    originals = {path: (dataset / MIMIC_CXR_JPG.name / path).read_bytes() for path in whole["path"]}
    for path, data in originals.items():
        bucket.put(path, data, content_type="image/jpeg")
    ok = [
        Verified(path, len(originals[path]), "", sha) for path, sha in zip(whole["path"], whole["sha256"], strict=True)
    ]
    verified(bucket, ok)


def verified(bucket: Bucket, ok: list[Verified]) -> None:
    verdict = Verdict("checksum", ok, [], remembered=0, seconds=1, requests={})
    index.update(bucket, verdict, io.BytesIO(bucket.read(MANIFEST)))


def asked(bucket: Bucket, **params: Any) -> TrainingRequest:
    return TrainingRequest.from_params({"bucket": bucket.name, "prefix": bucket.prefix, **SMALL, **params})


def plan(request: TrainingRequest, bucket: Bucket, run: RunLayout) -> training_set.TrainingPlan:
    return training_set.plan_set(request, bucket, run, params={}, most_tars=1000)


def make(bucket: Bucket, run_id: str = "one", **params: Any) -> tuple[TrainingSet, list[str]]:
    """Plan, make what is missing, verify; the set, and the names of the tars that were made."""
    request, run = asked(bucket, **params), RunLayout(run_id, DAG)
    planned = plan(request, bucket, run)
    for tar in planned.to_make:
        training_set.make_tar(tar, request, bucket)
    return training_set.verify_set(request, bucket, run, MIMIC_CXR_JPG), [tar.name for tar in planned.to_make]


def stored(bucket: Bucket, name: str) -> dict[str, bytes]:
    root = TrainingLayout(name).root
    return {entry.path.removeprefix(root): bucket.read(entry.path) for entry in bucket.list(root)}


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar.getmembers()}  # type: ignore[union-attr]


def test_every_image_is_there_once_with_what_the_index_says_and_one_range_away(
    bucket: Bucket, tiny_dataset: Path
) -> None:
    made, names = make(bucket)
    files = stored(bucket, "32-1mb")
    known = {row["dicom_id"]: row for row in index.read(bucket).to_pylist()}  # type: ignore[union-attr]
    assert made.name == "32-1mb"
    assert sorted(names) == sorted(tar.name for tar in made.tars)
    everything: dict[str, bytes] = {}
    for tar in made.tars:
        mine = members(files[f"{tar.name}.tar"])
        assert not everything.keys() & mine.keys()
        everything |= mine
        split = tar.name.rpartition("-")[0]
        assert {json.loads(data)["split"] for name, data in mine.items() if name.endswith(".json")} == {split}
    assert {name.partition(".")[0] for name in everything} == known.keys()
    for dicom_id, row in known.items():
        original = (tiny_dataset / MIMIC_CXR_JPG.name / row["path"]).read_bytes()
        copy = small_copy(original, asked(bucket).recipe)
        assert everything[f"{dicom_id}.jpg"] == copy.data
        said = json.loads(everything[f"{dicom_id}.json"])
        assert said == {
            **{name: row[name] for name in ("dicom_id", "study_id", "subject_id", "view", "split", "path", "sha256")},
            "study_datetime": row["study_datetime"].isoformat() if row["study_datetime"] else None,
            "labels": {label: row[label] for label in LABELS},
            "width": copy.original_width,
            "height": copy.original_height,
        }
    rows = pq.read_table(io.BytesIO(files["index.parquet"])).to_pylist()
    assert {row["dicom_id"] for row in rows} == known.keys()
    for row in rows:
        data = files[row["tar"]]
        assert data[row["offset"] : row["offset"] + row["size"]] == everything[f"{row['dicom_id']}.jpg"]
        assert data[row["json_offset"] :][: row["json_size"]] == everything[f"{row['dicom_id']}.json"]
        assert row["tar_uri"] == bucket.uri(f"_training/32-1mb/{row['tar']}")
        assert known[row["dicom_id"]].items() <= row.items()
    names = pq.read_schema(io.BytesIO(files["index.parquet"])).names
    assert names[: len(row) - 8] == index.read(bucket).column_names  # type: ignore[union-attr]
    told = json.loads(files["dataset.json"])
    assert told["images"] == sum(split["images"] for split in told["splits"]) == told["indexed"] == len(known)
    edema = [row["Edema"] for row in known.values()]
    for word, value in (("positive", 1), ("negative", 0), ("uncertain", -1), ("not_mentioned", None)):
        assert sum(c[word] for c in told["labels"] if c["name"] == "Edema") == edema.count(value)
    for tar in made.tars:
        assert bucket.head(f"_training/32-1mb/{tar.name}.tar").sha256 == tar.sha256  # type: ignore[union-attr]
    assert MIMIC_CXR_JPG.citation in files["README.md"].decode()


def test_the_same_again_makes_nothing_and_elsewhere_the_same_bytes(bucket: Bucket) -> None:
    first, _ = make(bucket)
    before = stored(bucket, "32-1mb")
    requests = bucket.requests["GET"]
    again, names = make(bucket, "two")
    assert names == []
    assert bucket.requests["GET"] - requests < 30, "no original was read"
    assert replace(again, created="") == replace(first, created="")
    after = stored(bucket, "32-1mb")
    assert {p: d for p, d in after.items() if p.endswith(".tar")} == {
        p: d for p, d in before.items() if p.endswith(".tar")
    }
    bucket.delete([f"_training/32-1mb/{path}" for path in before])
    make(bucket, "three")
    assert {p: d for p, d in stored(bucket, "32-1mb").items() if p.endswith((".tar", "index.parquet"))} == {
        p: d for p, d in before.items() if p.endswith((".tar", "index.parquet"))
    }


def test_the_card_names_what_made_each_tar_whatever_is_installed_later(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = make(bucket)
    assert first.software["pillow"] == version("pillow")
    monkeypatch.setattr(training_set, "version", lambda _: "99.1")
    assert make(bucket, "two")[0].software == first.software
    bucket.delete([f"_training/32-1mb/{first.tars[0].name}.tar"])
    assert make(bucket, "three")[0].software["pillow"] == f"{version('pillow')}, 99.1"


def test_what_is_lost_spoilt_or_of_other_images_is_made_again_alone(bucket: Bucket, s3_server: stack.S3Server) -> None:
    first, _ = make(bucket)
    names = [tar.name for tar in first.tars]
    folder = Path(s3_server.folder) / bucket.name / bucket.prefix / "_training/32-1mb"
    (folder / f"{names[0]}.tar").write_bytes(b"x" * first.tars[0].bytes)
    assert make(bucket, "two")[1] == [names[0]]
    bucket.delete([f"_training/32-1mb/{names[1]}.tar"])
    assert make(bucket, "three")[1] == [names[1]]
    bucket.write(f"_training/32-1mb/members/{names[2]}.parquet", b"PAR1")
    assert make(bucket, "four")[1] == [names[2]]
    # An image less: its tar alone is made again, and it is gone from the set.
    rows = pq.read_table(io.BytesIO(bucket.read("_training/32-1mb/index.parquet"))).to_pylist()
    index.forget(bucket, [next(row["path"] for row in rows if row["split"] == "train")])
    made, remade = make(bucket, "five")
    assert remade == ["train-000000"]
    assert made.images == first.images - 1


def test_tars_of_an_earlier_cut_are_removed(bucket: Bucket) -> None:
    make(bucket, name="mine", splits=["train"])
    stray = "_training/mine/train-000007.tar"
    bucket.write(stray, b"of a larger set")
    bucket.write("_training/mine/notes.txt", b"of a person")
    make(bucket, "two", name="mine", splits=["train"])
    assert bucket.head(stray) is None
    assert bucket.head("_training/mine/notes.txt") is not None


def test_a_name_that_another_set_has_is_refused_before_any_work(bucket: Bucket) -> None:
    make(bucket, name="mine")
    before = stored(bucket, "mine")
    with pytest.raises(InputError, match=r"made in another way \(size=32 there, 64 here\). Nothing was done"):
        make(bucket, "two", name="mine", size=64)
    assert stored(bucket, "mine") == before


def test_an_image_that_cannot_be_decoded_is_named_and_left_out(bucket: Bucket, tiny_dataset: Path) -> None:
    import hashlib

    row = index.read(bucket).to_pylist()[3]  # type: ignore[union-attr]
    data = (tiny_dataset / MIMIC_CXR_JPG.name / row["path"]).read_bytes()[:500]
    bucket.put(row["path"], data, content_type="image/jpeg")
    verified(bucket, [Verified(row["path"], len(data), "", hashlib.sha256(data).hexdigest())])
    made, _ = make(bucket)
    assert [failure.path for failure in made.left_out] == [row["path"]]
    assert made.images == made.selected - 1
    assert row["path"] in bucket.read_text("_training/32-1mb/README.md")
    assert row["dicom_id"] not in {
        found["dicom_id"]
        for found in pq.read_table(io.BytesIO(bucket.read("_training/32-1mb/index.parquet"))).to_pylist()
    }
    assert make(bucket, "two")[1] == []


def test_an_original_that_is_not_what_was_verified_fails_its_tar_alone(bucket: Bucket) -> None:
    request, run = asked(bucket), RunLayout("damaged", DAG)
    planned = plan(request, bucket, run)
    spoilt = next(tar for tar in planned.tars if tar.name == "train-000000")
    victim = pq.read_table(io.BytesIO(bucket.read(spoilt.path))).to_pylist()
    bucket.put(victim[0]["path"], b"x" * victim[0]["bytes"], content_type="image/jpeg")
    bucket.put(victim[1]["path"], b"x" * (victim[1]["bytes"] + 1), content_type="image/jpeg")
    bucket.delete([victim[2]["path"]])
    with pytest.raises(VerificationFailed) as failed:
        training_set.make_tar(spoilt, request, bucket)
    for row, reason in zip(victim, ("wrong bytes", "wrong size", "missing"), strict=False):
        assert f"{row['path']} ({reason})" in str(failed.value)
    for tar in planned.tars:
        if tar is not spoilt:
            training_set.make_tar(tar, request, bucket)
    with pytest.raises(VerificationFailed, match=rf"1 of {len(planned.tars)} tars .*: {spoilt.name}\."):
        training_set.verify_set(request, bucket, run, MIMIC_CXR_JPG)
    assert bucket.head("_training/32-1mb/dataset.json") is None
    assert bucket.head(f"_training/32-1mb/{spoilt.name}.tar") is None


def test_findings_and_impression_are_in_the_samples_where_asked_for(bucket: Bucket) -> None:
    with pytest.raises(InputError, match=r"reports: .*reports\.parquet is not there.*mimic_cxr_clinical"):
        make(bucket, reports=True)
    bucket.write("_mirror/reports.parquet", parquet.to_bytes(pa.table({"study_id": [1]})))
    with pytest.raises(
        InputError, match=r"cannot be read \(it has no column findings, impression\).*mimic_cxr_clinical"
    ):
        make(bucket, reports=True)
    studies = sorted({row["study_id"] for row in index.read(bucket).to_pylist()})  # type: ignore[union-attr]
    out = io.BytesIO()
    said = {
        "study_id": pa.array(studies[:-1], pa.int32()),
        "findings": [f"Findings of {study}." for study in studies[:-1]],
        "impression": [None] * (len(studies) - 1),
        "text": ["not for samples"] * (len(studies) - 1),
        "status": ["sections"] * (len(studies) - 2) + ["empty"],
    }
    pq.write_table(pa.table(said), out)
    bucket.write("_mirror/reports.parquet", out.getvalue())
    made, _ = make(bucket, reports=True)
    samples = [
        json.loads(data)
        for tar in made.tars
        for name, data in members(bucket.read(f"_training/32-1mb-reports/{tar.name}.tar")).items()
        if name.endswith(".json")
    ]
    assert len(samples) == made.images
    for sample in samples:
        study = sample["study_id"]
        assert sample["findings"] == (None if study == studies[-1] else f"Findings of {study}.")
        assert sample["impression"] is None
    assert "findings" not in pq.read_schema(io.BytesIO(bucket.read("_training/32-1mb-reports/index.parquet"))).names

    with_words, _ = make(bucket, "words", has_report=True)
    assert with_words.name == "32-1mb-has-report"
    kept = {
        row["study_id"]
        for row in pq.read_table(io.BytesIO(bucket.read("_training/32-1mb-has-report/index.parquet"))).to_pylist()
    }
    assert kept == set(studies[:-2])


def test_a_killed_task_loses_one_tar_and_leaves_nothing_behind(
    bucket: Bucket, s3_server: stack.S3Server, tmp_path: Path
) -> None:
    request, run = asked(bucket), RunLayout("killed", DAG)
    planned = plan(request, bucket, run)
    training_set.make_tar(planned.tars[1], request, bucket)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TMPDIR": str(tmp_path),
        "S3": json.dumps([s3_server.endpoint, s3_server.access_key, s3_server.secret_key, bucket.name, bucket.prefix]),
        "TAR": json.dumps(planned.tars[0].to_json()),
    }
    code = (
        "import json, os, boto3, tests.integration.test_training_set as t\n"
        "from physionet_mirror.steps import training_set as s\n"
        "endpoint, key, secret, name, prefix = json.loads(os.environ['S3'])\n"
        "session = boto3.Session(key, secret, region_name='us-east-1')\n"
        "bucket = t.Bucket.open(session, name, prefix, endpoint_url=endpoint)\n"
        "t.slow_put(bucket)\n"
        "s.make_tar(s.PlannedTar.from_json(json.loads(os.environ['TAR'])), t.asked(bucket), bucket)\n"
    )
    task = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert task.stdout is not None
    assert task.stdout.readline() == "putting\n"
    task.send_signal(signal.SIGKILL)
    task.wait()
    assert list(tmp_path.iterdir()) == []
    assert bucket.head(f"_training/32-1mb/{planned.tars[0].name}.tar") is None
    made, names = make(bucket, "after")
    assert planned.tars[1].name not in names
    assert planned.tars[0].name in names
    assert len(made.tars) == len(planned.tars)


def slow_put(bucket: Bucket) -> None:
    """Let a PUT begin, say so, and never end."""

    def begin(*_: Any, **__: Any) -> str:
        print("putting", flush=True)
        time.sleep(60)
        raise AssertionError

    bucket.put_file = begin  # type: ignore[method-assign]


def test_two_runs_may_overlap(bucket: Bucket) -> None:
    request = asked(bucket)
    one, two = RunLayout("left", DAG), RunLayout("right", DAG)
    first, second = plan(request, bucket, one), plan(request, bucket, two)
    for mine, theirs in zip(first.to_make, second.to_make, strict=True):
        training_set.make_tar(mine, request, bucket)
        training_set.make_tar(theirs, request, bucket)
    left = training_set.verify_set(request, bucket, one, MIMIC_CXR_JPG)
    right = training_set.verify_set(request, bucket, two, MIMIC_CXR_JPG)
    assert replace(left, created="") == replace(right, created="")
    # One that planned before an image was lost cannot pass off the other's tar as its own.
    gone = index.read(bucket).to_pylist()[0]["path"]  # type: ignore[union-attr]
    index.forget(bucket, [gone])
    make(bucket, "later")
    with pytest.raises(VerificationFailed, match="made meanwhile of other inputs"):
        training_set.verify_set(request, bucket, one, MIMIC_CXR_JPG)


def test_a_plan_says_what_it_takes_and_a_lost_one_is_said(bucket: Bucket) -> None:
    request, run = asked(bucket, splits=["train"], labels=["Edema"]), RunLayout("plan", DAG)
    planned = plan(request, bucket, run)
    rows = [
        row
        for row in index.read(bucket).to_pylist()  # type: ignore[union-attr]
        if row["split"] == "train" and row["Edema"] == 1
    ]
    assert planned.images == len(rows)
    assert planned.read_bytes == sum(row["bytes"] for row in rows)
    text = planned.table()
    assert f"{len(rows)} train" in text
    assert f"Edema {len(rows)}" in text
    kept = load(bucket, run.plan, training_set.TrainingPlan)
    assert kept is not None
    assert kept.to_json() == planned.to_json()
    bucket.write(run.tar_rows(0), b"")
    with pytest.raises(MetadataError, match="cannot be used"):
        training_set.make_tar(planned.tars[0], request, bucket)
    with pytest.raises(MetadataError, match=r"plan\.json is gone"):
        training_set.verify_set(request, bucket, RunLayout("unknown", DAG), MIMIC_CXR_JPG)
    with pytest.raises(InputError, match=r"shard_mb: 1 makes \d+ tars.* at most 0"):
        training_set.plan_set(asked(bucket), bucket, run, params={}, most_tars=0)


def test_without_an_index_it_is_said_what_to_run_first(mirror: Bucket, s3_server: stack.S3Server) -> None:
    empty = Bucket.open(s3_server.session(), mirror.name, "nothing", endpoint_url=s3_server.endpoint)
    with pytest.raises(InputError, match=r"lists no verified image.*Run mimic_cxr_jpg"):
        make(empty)


@pytest.mark.parametrize("cpus", [1, 3])
def test_no_more_images_are_decoded_at_once_than_asked_for(
    bucket: Bucket, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    now, most, lock = 0, 0, threading.Lock()

    def counted(*args: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return small_copy(*args)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(training_set, "small_copy", counted)
    request, run = asked(bucket), RunLayout(f"cpus{cpus}", DAG)
    for tar in plan(request, bucket, run).tars:
        training_set.make_tar(tar, request, bucket, cpus=cpus)
    assert 0 < most <= cpus


def test_a_clean_up_deletes_one_set_and_nothing_else(bucket: Bucket) -> None:
    make(bucket, name="one")
    make(bucket, "two", name="one-too")
    rest = {entry.path: entry.etag for entry in bucket.list() if not entry.path.startswith("_training/one/")}
    run = RunLayout("gone", "mimic_cxr_cleanup")
    found = cleanup.write_listing(bucket, run, cleanup.list_deletions(bucket, "training_set", None, "one"))
    assert found["by_kind"] == {"files of training sets": len(stored(bucket, "one"))}
    assert cleanup.delete_listed(bucket, run)["deleted"] == found["objects"] > 6
    assert {entry.path: entry.etag for entry in bucket.list() if entry.path != run.deleted} == rest
    assert [made.name for made in card.sets(bucket)] == ["one-too"]
    for name in ("one", "..", "", "one-too/members"):
        with pytest.raises(InputError, match=r"^training_set: .*It has one-too\."):
            list(cleanup.list_deletions(bucket, "training_set", None, name))


BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/training-set.md").read_text(), re.DOTALL)


def test_the_loops_of_the_page_work_as_written(
    bucket: Bucket, s3_server: stack.S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint,
        "AWS_DEFAULT_REGION": stack.REGION,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    made, _ = make(bucket)
    webdataset, with_torch, datasets, one_image = BLOCKS
    names: dict[str, Any] = {}
    exec(
        webdataset.replace("my-bucket", bucket.name).replace("/512", "/32-1mb").replace("SIZE = 512", "SIZE = 32"),
        names,
    )
    samples = list(names["train"])
    in_train = next(split.images for split in made.splits if split.name == "train")
    assert len(samples) == in_train
    assert {pixels.shape for pixels, _ in samples} == {(1, 32, 32)}
    positive = sum(c.positive for c in made.labels if c.name == "Pneumonia" and c.split == "train")
    assert sum(label for _, label in samples) == positive

    exec(datasets, names)
    assert len(list(names["streamed"])) == in_train
    assert min(names["first"]["image"].size) == 32

    exec(one_image, names)
    assert [min(image.size) for image in names["some"]] == [32] * 32
    if find_spec("torch"):
        exec(with_torch, names)
