"""``mimic_cxr_training_set`` in a real Airflow, and its tars as the loaders read them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from demo import stack
from tests.dags.test_runs import PREFIX, rows, run, states
from tests.integration.test_training_set import mirrored

ROOT = f"{PREFIX}/_training/48-png-1mb"


@pytest.fixture
def mirror(tiny_dataset: Path, s3_server: stack.S3Server, bucket_name: str) -> Path:
    """Where the objects of a mirror lie as files."""
    mirrored(tiny_dataset, s3_server, bucket_name)
    return Path(s3_server.folder) / bucket_name


def test_a_set_is_approved_made_read_by_its_loaders_and_repeated_without_work(
    airflow_home: Any,
    mirror: Path,
    bucket_name: str,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conf = {"size": 48, "encoding": "png", "shard_mb": 1, "approve_above_gb": 0.000001}
    with airflow_home.answering("mimic_cxr_training_set", "Approve") as person:
        code, log = run(airflow_home, "mimic_cxr_training_set", bucket_name, **conf)
        page, _ = person.communicate(timeout=60)
    assert code == 0, log[-4000:] + page
    assert "Images selected | 60: " in page
    assert "Positive | Atelectasis" in page
    assert "of one core" in page
    names = [
        name
        for (name,) in rows(
            airflow_home, "select rendered_map_index from task_instance where task_id = 'make_tar.make'"
        )
    ]
    files = {path.name: path for path in (mirror / ROOT).iterdir() if path.is_file()}
    assert sorted(files) == sorted(["README.md", "dataset.json", "index.parquet", *(f"{name}.tar" for name in names)])
    events = rows(airflow_home, "select a.uri, e.extra from asset_event e join asset a on a.id = e.asset_id")
    assert [(uri, json.loads(extra)["images"]) for uri, extra in events] == [
        (f"s3://{bucket_name}/{ROOT}/dataset.json", 60)
    ]

    index = pq.read_table(files["index.parquet"]).to_pylist()
    originals = {row["dicom_id"]: (tiny_dataset / PREFIX / row["path"]).read_bytes() for row in index}
    assert len(originals) == 60
    tars = [str(path) for name, path in sorted(files.items()) if name.endswith(".tar")]
    readers = {"ranges": by_ranges(mirror, index)}
    if find_spec("webdataset"):  # not in the frozen environments of earlier Airflows
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        readers |= {"webdataset": by_webdataset(tars), "datasets": by_datasets(tars)}
    for reader, samples in readers.items():
        seen = {}
        for facts, image in samples:
            seen[facts["dicom_id"]] = facts
            original = Image.open(io.BytesIO(originals[facts["dicom_id"]])).convert("L")
            assert min(image.size) == 48
            assert psnr(image, original.resize(image.size, Image.Resampling.LANCZOS)) >= 50, reader
            assert original.size == (facts["width"], facts["height"])
        assert seen.keys() == originals.keys(), reader
        for row in index:
            assert {label: seen[row["dicom_id"]]["labels"][label] for label in ("Edema", "No Finding")} == {
                label: row[label] for label in ("Edema", "No Finding")
            }

    before = {
        name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in files.items() if name.endswith(".tar")
    }
    code, log = run(airflow_home, "mimic_cxr_training_set", bucket_name, **conf)
    assert code == 0, log[-4000:]
    assert "0.0 GB to read: no approval needed" in log
    assert set(states(airflow_home, "mimic_cxr_training_set")["make_tar.make"]) == {"skipped"}
    assert states(airflow_home, "mimic_cxr_training_set")["verify"] == ["success"]
    assert before == {name: (files[name].stat().st_mtime_ns, files[name].read_bytes()) for name in before}


Sample = tuple[dict[str, Any], Image.Image]


def by_ranges(mirror: Path, index: list[dict[str, Any]]) -> Iterator[Sample]:
    for row in index:
        with (mirror / row["tar_uri"].removeprefix(f"s3://{mirror.name}/")).open("rb") as tar:
            tar.seek(row["json_offset"])
            facts = json.loads(tar.read(row["json_size"]))
            tar.seek(row["offset"])
            yield facts, Image.open(io.BytesIO(tar.read(row["size"])))


def by_webdataset(tars: list[str]) -> Iterator[Sample]:
    import webdataset as wds

    for sample in wds.WebDataset(tars, shardshuffle=False):
        yield json.loads(sample["json"]), Image.open(io.BytesIO(sample["png"]))


def by_datasets(tars: list[str]) -> Iterator[Sample]:
    import datasets

    for sample in datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True):
        yield sample["json"], sample["png"]


def psnr(one: Any, other: Any) -> float:
    error = float(np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2))
    return 10 * np.log10(255**2 / error) if error else float("inf")
