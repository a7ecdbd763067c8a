"""Who is in a selection: its images counted by patient, study, group, split, view and label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("subject_id", "study_id", "group", "split", "view")
"""What is counted of a manifest's columns, beside the labels."""


class Value(NamedTuple):
    """One value of a column: its name (empty where the manifest has none), its images, and how many are verified."""

    name: str
    images: int
    verified: int


class Label(NamedTuple):
    """One label, and the images whose study has it positive (1) or uncertain (-1)."""

    name: str
    positive: int
    uncertain: int


@dataclass(frozen=True)
class Counts:
    """The counts of a selection.

    Attributes:
        images, verified: Selected, and of these verified.
        patients, studies: Distinct ids; None where the dataset has none.
        groups: By patient group, in order of name.
        splits, views: The most frequent value first.
        labels: In the given order.
    """

    images: int
    verified: int
    patients: int | None
    studies: int | None
    groups: Sequence[Value]
    splits: Sequence[Value]
    views: Sequence[Value]
    labels: Sequence[Label]


def count(selected: pd.DataFrame | pa.Table, verified: Any, labels: Iterable[str]) -> Counts:
    """Count a selection.

    Args:
        selected: The rows of the manifest that were selected; of its columns, `COLUMNS` and the labels are used.
        verified: For each row, whether its image is in the bucket and verified (a Boolean array).
        labels: Columns of labels; those that the manifest lacks are left out.
    """
    table = selected
    labels = list(labels)
    if not isinstance(table, pa.Table):
        columns = [name for name in (*COLUMNS, *labels) if name in table.columns]
        table = pa.Table.from_pandas(table[columns], preserve_index=False)
    right = verified if isinstance(verified, pa.Array | pa.ChunkedArray) else pa.array(verified, pa.bool_())
    return Counts(
        images=table.num_rows,
        verified=int(pc.sum(right).as_py() or 0),
        patients=_distinct(table, "subject_id"),
        studies=_distinct(table, "study_id"),
        groups=sorted(_values(table, right, "group")),
        splits=_values(table, right, "split"),
        views=_values(table, right, "view"),
        labels=[
            Label(name, _equal(table[name], 1), _equal(table[name], -1))
            for name in labels
            if name in table.column_names
        ],
    )


def _distinct(table: pa.Table, column: str) -> int | None:
    return int(pc.count_distinct(table[column]).as_py()) if column in table.column_names else None


def _equal(cells: pa.ChunkedArray, value: int) -> int:
    return int(pc.sum(pc.equal(cells, value)).as_py() or 0)


def _values(table: pa.Table, right: Any, column: str) -> list[Value]:
    if column not in table.column_names:
        return []
    images, verified = (
        {pair["values"]: pair["counts"] for pair in pc.value_counts(cells).to_pylist()}
        for cells in (table[column], table[column].filter(right))
    )
    frequent_first = sorted(images.items(), key=lambda item: (-item[1], item[0] or ""))
    return [Value(name or "", number, verified.get(name, 0)) for name, number in frequent_first]
