"""The training index has the values of PhysioNet's tables; an older index gets them without a verification."""

from __future__ import annotations

import io
from pathlib import Path

import boto3
import pandas as pd
import pyarrow.parquet as pq
import pytest

from demo import stack
from demo.lookalike import Lookalike
from physionet_mirror import index, manifest
from physionet_mirror.dataset import LABELS, MIMIC_CXR_JPG
from physionet_mirror.layout import INDEX, MANIFEST
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps.fetch_metadata import fetch_metadata
from physionet_mirror.verification import Verdict, Verified


@pytest.fixture
def bucket(boto_session: boto3.Session, s3_server: stack.S3Server, bucket_name: str) -> Bucket:
    return Bucket.open(boto_session, bucket_name, MIMIC_CXR_JPG.name, endpoint_url=s3_server.endpoint)


def table(root: Path, role: str) -> pd.DataFrame:
    return pd.read_csv(
        root / MIMIC_CXR_JPG.name / MIMIC_CXR_JPG.tables[role], dtype={"StudyTime": str, "StudyDate": str}
    )


def test_an_old_index_learns_what_the_tables_say(
    tiny_dataset: Path, physionet: Lookalike, reader: tuple[str, str], bucket: Bucket
) -> None:
    source = PhysioNet(physionet.url, *reader)
    fetch_metadata(source, bucket, MIMIC_CXR_JPG)
    whole = manifest.read(io.BytesIO(bucket.read(MANIFEST))).dropna(subset="dicom_id")  # the images
    ok = [Verified(path, 5, "", sha256) for path, sha256 in zip(whole["path"], whole["sha256"], strict=True)]
    # The state that the version before left: a manifest of format 1 and an index made from it.
    out = io.BytesIO()
    old = pq.read_table(io.BytesIO(bucket.read(MANIFEST))).select([*manifest.COLUMNS, *LABELS])
    pq.write_table(old.replace_schema_metadata({"physionet_mirror.format": "1"}), out)
    bucket.write(MANIFEST, out.getvalue())
    index.update(bucket, Verdict("content", ok[:40], [], remembered=0, seconds=1, requests={}), out)
    assert "study_datetime" not in pq.read_schema(io.BytesIO(bucket.read(INDEX))).names

    fetch_metadata(source, bucket, MIMIC_CXR_JPG)

    found = pq.read_table(io.BytesIO(bucket.read(INDEX))).to_pandas()
    assert list(found.columns) == [
        *("path", "key", "uri", "bytes", "sha256", "level", "group", "subject_id", "study_id", "dicom_id"),
        *("view", "split", "height", "width", "study_datetime", "procedure", "view_name", "orientation", *LABELS),
        *(f"negbio: {label}" for label in LABELS),
        *(f"radiologist: {label}" for label in LABELS),
    ]
    assert found["path"].tolist() == [image.path for image in ok[:40]]
    assert set(found["level"]) == {"content"}
    metadata = table(tiny_dataset, "metadata").set_index("dicom_id").loc[found["dicom_id"]].reset_index()
    for ours, theirs in (
        ("procedure", "ProcedureCodeSequence_CodeMeaning"),
        ("view_name", "ViewCodeSequence_CodeMeaning"),
        ("orientation", "PatientOrientationCodeSequence_CodeMeaning"),
    ):
        assert found[ours].fillna("").tolist() == metadata[theirs].fillna("").tolist()
    whole_part, _, fraction = zip(*(text.partition(".") for text in metadata["StudyTime"]), strict=True)
    parts = zip(metadata["StudyDate"], whole_part, fraction, strict=True)
    padded = [f"{date}{time:0>6}.{ms:0<3}" for date, time, ms in parts]
    assert found["study_datetime"].dt.strftime("%Y%m%d%H%M%S.%f").str[:-3].tolist() == padded
    for role, before in (("labels", ""), ("negbio", "negbio: "), ("test_labels", "radiologist: ")):
        labels = table(tiny_dataset, role).rename(columns={"Airspace Opacity": "Lung Opacity"}).set_index("study_id")
        expected = labels.reindex(found["study_id"])[list(LABELS)].reset_index(drop=True)
        ours = found[[before + label for label in LABELS]].set_axis(list(LABELS), axis=1).astype(float)
        pd.testing.assert_frame_equal(ours, expected.astype(float))
        assert ours.notna().any(axis=None), f"{role}: the dataset is too small for this test"
