"""The card of a training set: ``dataset.json`` for programs, ``README.md`` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from physionet_mirror import words
from physionet_mirror.layout import TRAINING, TrainingLayout
from physionet_mirror.records import Failure, Record, load, timestamp

if TYPE_CHECKING:
    from physionet_mirror.dataset import Dataset
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.training.request import TrainingRequest
    from physionet_mirror.training.tars import TarRecord

SCHEMA = "physionet-mirror/training-set/1"


@dataclass(frozen=True)
class SplitCount(Record):
    """One split of a set.

    Attributes:
        name: ``train``, ``validate``, ``test``; ``none`` = the tables name none.
        images, studies, patients: How many.
        tars: Number of its tars.
        bytes: Their size.
    """

    name: str
    images: int = 0
    studies: int = 0
    patients: int = 0
    tars: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class LabelCount(Record):
    """One CheXpert label in one split: images by what their study's report says of it."""

    name: str
    split: str = ""
    positive: int = 0
    negative: int = 0
    uncertain: int = 0
    not_mentioned: int = 0


@dataclass(frozen=True)
class CardTar(Record):
    """One tar: its size in bytes, its images, its SHA-256 (hex), and that of all that it was made of."""

    name: str
    images: int = 0
    bytes: int = 0
    sha256: str = ""
    inputs: str = ""


@dataclass(frozen=True)
class TrainingSet(Record):
    """``dataset.json``.

    Attributes:
        schema: `SCHEMA`.
        name: Name of the set.
        created: When its tars were last proven (ISO, UTC).
        dataset: Name of the dataset, ``mimic-cxr-jpg/2.1.0``.
        title, page, citation: Of the dataset.
        images, bytes: Of the whole set.
        selected: Images that the filters chose, with those that were left out.
        indexed: Images that the mirror's training index had when the set was planned.
        params: What decides what the set holds (`TrainingRequest.makes`).
        splits, labels: Counts.
        tars: In order.
        left_out: Images that could not be decoded, and why.
        software: What made its tars: names and versions; several versions where later tars were made by others.
    """

    schema: str
    name: str
    created: str = ""
    dataset: str = ""
    title: str = ""
    page: str = ""
    citation: str = ""
    images: int = 0
    bytes: int = 0
    selected: int = 0
    indexed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    splits: Sequence[SplitCount] = ()
    labels: Sequence[LabelCount] = ()
    tars: Sequence[CardTar] = ()
    left_out: Sequence[Failure] = ()
    software: Mapping[str, str] = field(default_factory=dict)

    @property
    def made(self) -> datetime | None:
        """``created`` as a time; None = it is none."""
        seconds = timestamp(self.created)
        return datetime.fromtimestamp(seconds, UTC) if seconds else None

    @property
    def summary(self) -> str:
        """``7,122 images, 512 MB, in 4 tars: 6,000 train, 122 validate, 1,000 test``."""
        splits = ", ".join(f"{split.images:,} {split.name}" for split in self.splits)
        many = "" if len(self.tars) == 1 else "s"
        return f"{self.images:,} images, {words.size(self.bytes)}, in {len(self.tars):,} tar{many}: {splits or 'none'}"


def counts(table: pa.Table, labels: Sequence[str]) -> tuple[list[SplitCount], list[LabelCount]]:
    """Count images, studies and patients by split, and each label's values by split; the largest split first.

    Args:
        table: With the columns split, study_id, subject_id and the labels; of labels that it lacks, nothing is counted.
        labels: Names of the columns.
    """
    splits: list[SplitCount] = []
    counted: list[LabelCount] = []
    names = pc.fill_null(table["split"].cast(pa.string()), "none")
    for name in pc.unique(names).to_pylist():
        rows = table.filter(pc.equal(names, name))
        studies, patients = (int(pc.count_distinct(rows[ids]).as_py()) for ids in ("study_id", "subject_id"))
        splits.append(SplitCount(name, rows.num_rows, studies, patients))
        for label in labels:
            if label in table.column_names:
                values = {value["values"]: value["counts"] for value in pc.value_counts(rows[label]).to_pylist()}
                counted.append(LabelCount(label, name, *(values.get(value, 0) for value in (1, 0, -1, None))))
    splits.sort(key=lambda split: (-split.images, split.name))
    return splits, counted


def card(
    request: TrainingRequest,
    dataset: Dataset,
    tars: Sequence[TarRecord],
    splits: Sequence[SplitCount],
    labels: Sequence[LabelCount],
    *,
    indexed: int,
    created: str,
) -> TrainingSet:
    """The card of a set whose tars are all there."""

    def of(split: SplitCount) -> SplitCount:
        mine = [tar for tar in tars if tar.name.rpartition("-")[0] == split.name]
        return replace(split, tars=len(mine), bytes=sum(tar.bytes for tar in mine))

    left_out = [failure for tar in tars for failure in tar.left_out]
    software: dict[str, set[str]] = {}
    for tar in tars:
        for name, version in tar.software.items():
            software.setdefault(name, set()).add(version)
    return TrainingSet(
        schema=SCHEMA,
        name=request.name,
        created=created,
        dataset=dataset.name,
        title=dataset.title,
        page=dataset.page,
        citation=dataset.citation,
        images=sum(tar.images for tar in tars),
        bytes=sum(tar.bytes for tar in tars),
        selected=sum(tar.images for tar in tars) + len(left_out),
        indexed=indexed,
        params=request.makes,
        splits=[of(split) for split in splits],
        labels=labels,
        tars=[CardTar(tar.name, tar.images, tar.bytes, tar.sha256, tar.inputs) for tar in tars],
        left_out=left_out,
        software={name: ", ".join(sorted(versions)) for name, versions in software.items()},
    )


def readme(made: TrainingSet, uri: str) -> str:
    """``README.md`` of a set.

    Args:
        made: Its card.
        uri: ``s3://…/_training/<name>``.
    """
    p = made.params
    side = {"short_side": "short side of", "long_side": "long side of", "square": "padded to a square of"}
    pixels = f"{side.get(str(p.get('resize')), '')} {p.get('size')} pixels".strip()
    encoding = (
        f"JPEG, quality {p.get('quality')}" if p.get("encoding") == "jpeg" else str(p.get("encoding", "")).upper()
    )
    filters = {key: value for key, value in p.items() if key not in _NO_FILTERS}
    extension = "jpg" if p.get("encoding") == "jpeg" else "png"
    by_label: dict[str, list[LabelCount]] = {}
    for count in made.labels:
        by_label.setdefault(count.name, []).append(count)
    lines = [
        f"# {made.title}: training set `{made.name}`",
        "",
        f"{made.images:,} radiographs of {made.dataset}, {words.size(made.bytes)} in {len(made.tars):,} tars. "
        f"Grey, {pixels}, aspect kept, antialiased; {encoding}. Every original was compared with PhysioNet's SHA-256 "
        "before it was decoded.",
        "",
        "| split | images | studies | patients | tars | size |",
        "|---|---|---|---|---|---|",
        *(
            f"| {s.name} | {s.images:,} | {s.studies:,} | {s.patients:,} | {s.tars:,} | {words.size(s.bytes)} |"
            for s in made.splits
        ),
        "",
        "| label (CheXpert) | positive | negative | uncertain | not mentioned |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | " + " | ".join(f"{sum(getattr(c, value) for c in each):,}" for value in _VALUES) + " |"
            for name, each in by_label.items()
        ),
        "",
        "## What is where",
        "",
        f"- `<split>-NNNNNN.tar`: WebDataset; of each image `<dicom_id>.{extension}` and `<dicom_id>.json` (ids, view, split, "
        "time, labels with null for not mentioned, width and height of the original, its path and SHA-256"
        + (", findings and impression" if p.get("reports") else "")
        + "). A patient is in one tar; the order of the patients is random.",
        "- `index.parquet`: tar, offset and size of each member, so that one image is one range request, with all columns of "
        "the mirror's training index.",
        "- `dataset.json`: this page for programs, with the SHA-256 of each tar.",
        "- `members/`: what the next run compares with.",
        "",
        "## Made with",
        "",
        f"Filters: {', '.join(f'{k}={v}' for k, v in filters.items()) or 'none'}. Order: seed {p.get('seed')}. "
        + ", ".join(f"{name} {version}" for name, version in made.software.items())
        + f". {made.created}, in `{uri}`.",
        "",
    ]
    if made.left_out:
        lines += [
            f"{len(made.left_out):,} of {made.selected:,} selected images were left out, as they cannot be decoded:",
            "",
            *(f"- `{failure.path}`: {failure.reason}" for failure in made.left_out[:50]),
            *([f"- and {len(made.left_out) - 50:,} more, in `dataset.json`"] if len(made.left_out) > 50 else []),
            "",
        ]
    return "\n".join(
        [
            *lines,
            "## Use",
            "",
            f"These images stay under the dataset's data use agreement: {made.page}. Do not share them, keep the bucket "
            "closed, and make no attempt to identify anybody.",
            "",
            f"Cite: {made.citation}",
            "",
        ]
    )


_VALUES = ("positive", "negative", "uncertain", "not_mentioned")
_NO_FILTERS = ("size", "resize", "encoding", "quality", "shard_mb", "seed", "reports")


def sets(bucket: Bucket) -> list[TrainingSet]:
    """The cards of the training sets of a mirror, by name; a damaged one is named in a warning and left out."""
    names = sorted(bucket.folders(TRAINING))
    if not names:
        return []
    with ThreadPoolExecutor(8, thread_name_prefix="sets") as pool:
        found = pool.map(lambda name: load(bucket, TrainingLayout(name).card, TrainingSet), names)
        return [one for one in found if one is not None]
