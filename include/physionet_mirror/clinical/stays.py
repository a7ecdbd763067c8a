"""MIMIC-IV's and MIMIC-IV-ED's tables as `links` takes them: the few columns that count, each of its type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from physionet_mirror import manifest
from physionet_mirror.clinical.links import PATIENT_COLUMNS, PATIENTS, Kind
from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import MetadataError

if TYPE_CHECKING:
    import pandas as pd


def read(dataset: Dataset, kind: Kind, file: Path) -> pd.DataFrame:
    """The stays of one kind: subject_id, id, begin and end, under their names in the table.

    Args:
        dataset: Whose table.
        kind: Which.
        file: A copy of it here.

    Raises:
        MetadataError: It is no such table, or names a stay twice. The message quotes no cell.
    """
    id_, begin, end = kind.columns
    types = {"subject_id": pa.int32(), id_: pa.int32(), begin: pa.timestamp("ms"), end: pa.timestamp("ms")}
    table = manifest.read_csv(dataset, kind.table, file, types, may_be_quoted=False)
    frame: pd.DataFrame = table.to_pandas()
    _must_be_whole(dataset, kind.table, frame, ["subject_id", id_])
    if repeated := int(frame[id_].duplicated().sum()):
        raise _bad(dataset, kind.table, f"{repeated:,} rows repeat the {id_} of another")
    return frame


def read_patients(dataset: Dataset, file: Path) -> pd.DataFrame:
    """Who the patients are: `PATIENT_COLUMNS`.

    Raises:
        MetadataError: As `read`.
    """
    whole = dict.fromkeys(PATIENT_COLUMNS, pa.int32())
    table = manifest.read_csv(dataset, PATIENTS, file, whole | {"gender": pa.string()}, may_be_quoted=False)
    frame: pd.DataFrame = table.to_pandas()
    _must_be_whole(dataset, PATIENTS, frame, ["subject_id"])
    return frame


def _must_be_whole(dataset: Dataset, name: str, frame: pd.DataFrame, columns: list[str]) -> None:
    if empty := int(frame[columns].isna().any(axis=1).sum()):
        raise _bad(dataset, name, f"{empty:,} rows have no {' or no '.join(columns)}")


def _bad(dataset: Dataset, name: str, fault: str) -> MetadataError:
    return MetadataError(
        f"{name} of {dataset.name}: {fault}. Nothing was written. The file's checksum is what PhysioNet publishes, so fetching "
        f"it again does not help: look at {dataset.page} for a note on it or a newer version."
    )
