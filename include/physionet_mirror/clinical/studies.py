"""Which studies have a stay or a report, by links.parquet and reports.parquet: what the filters of a selection go by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from physionet_mirror import parquet
from physionet_mirror.clinical.links import KINDS
from physionet_mirror.errors import InputError
from physionet_mirror.layout import LINKS, REPORTS
from physionet_mirror.request import ANY_STAY, Selection
from physionet_mirror.s3.bucket import Bucket


def chosen_by(bucket: Bucket, selection: Selection) -> dict[str, frozenset[int]]:
    """The study ids that pass ``linked`` and ``has_report``, by the filter's name; a filter that is not set is absent.

    A study is linked where a stay of any of the kinds is named, be it one of several (``ambiguous``). A report counts unless
    it is ``empty``.

    Args:
        bucket: Below the prefix of the radiographs.
        selection: What is asked for; no request is made where it asks for neither.

    Raises:
        InputError: The table is not there, or cannot be read; the message says how it is made.
    """
    found: dict[str, frozenset[int]] = {}
    if selection.linked:
        ids = [kind.id for kind in KINDS if kind.name in selection.linked or ANY_STAY in selection.linked]
        table = _read(bucket, LINKS, "linked", ["study_id", *ids])
        is_linked = pa.array([False] * len(table), pa.bool_())
        for name in ids:
            is_linked = pc.or_(is_linked, pc.is_valid(table[name]))
        found["linked"] = frozenset(table["study_id"].filter(is_linked).to_pylist())
    if selection.has_report:
        table = _read(bucket, REPORTS, "has_report", ["study_id", "status"])
        says_something = pc.not_equal(table["status"], "empty")
        found["has_report"] = frozenset(table["study_id"].filter(says_something).to_pylist())
    return found


def _read(bucket: Bucket, path: str, name: str, columns: list[str]) -> Any:
    try:
        data = bucket.read(path)
    except FileNotFoundError:
        raise InputError(f"{name}: {bucket.uri(path)} does not exist. {_how(bucket)}") from None
    try:
        return parquet.from_bytes(data, columns)
    except ValueError as error:
        raise InputError(f"{name}: {bucket.uri(path)} cannot be read ({error}). {_how(bucket)}") from None


def _how(bucket: Bucket) -> str:
    conf: Mapping[str, str] = {"bucket": bucket.name, "prefix": bucket.prefix}
    shown = ", ".join(f'"{key}": "{value}"' for key, value in conf.items())
    return (
        f"Nothing was done. Trigger mimic_cxr_clinical with {{{shown}}}, which makes it from projects whose agreements you have "
        "signed, then this run again; or leave the filter empty."
    )
