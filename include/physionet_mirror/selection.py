"""Which files a run selects: of the images filters and a nested sample, of any project's files globs over their paths."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from physionet_mirror import globs
from physionet_mirror.errors import InputError
from physionet_mirror.manifest import images, label_columns, path_fault
from physionet_mirror.request import FRONTAL, LATERAL, NO_VIEW, Selection

if TYPE_CHECKING:
    import pandas as pd

UNITS = {"image": "dicom_id", "study": "study_id", "patient": "subject_id"}
"""What can be sampled, and the column that tells one unit from another."""

VIEWS_OF = {FRONTAL: ("AP", "PA"), LATERAL: ("LATERAL", "LL")}
"""What the names in ``views`` stand for (source: 35,000 laterals of MIMIC-CXR carry the code LL)."""

_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?physionet\.org/(?:files|content)/[^/]+/[^/]+/(?P<path>[^?#]*)(?:[?#].*)?", re.IGNORECASE
)
"""A file's address at PhysioNet, as copied from a browser or written by wget."""


@dataclass(frozen=True)
class Chosen:
    """The files that were chosen.

    Attributes:
        frame: Rows of the manifest, in its order. The index is the row's number in the manifest, which tells ``shards``
            how much of the dataset lies between two files.
        matched: Files that passed the filters, before the sample.
        of: Images of the version; of a project that was asked for by globs, its files.
        notes: Sentences for the log and the plan.
    """

    frame: pd.DataFrame
    matched: int
    of: int = 0
    notes: list[str] = field(default_factory=list)


def choose(
    manifest: pd.DataFrame, selection: Selection, studies: Mapping[str, Collection[int]] = MappingProxyType({})
) -> Chosen:
    """Apply the filters, then the sample; where the selection has globs (``include``), these alone.

    Args:
        manifest: What there is.
        selection: What is asked for.
        studies: The study ids that pass the filters ``linked`` and ``has_report`` (``clinical.studies.chosen_by``); needed
            where they are set.

    Raises:
        InputError: A value or a combination that no image has, a list with unknown paths, an impossible sample, or a glob that
            matches nothing. The message names the filter, the value and the values that exist.
    """
    if selection.include is not None:
        return _by_globs(manifest.reset_index(drop=True), selection.include, selection.exclude)
    if selection.select not in ("sample", "all"):
        raise InputError(f"select is {selection.select!r}; it must be 'sample' or 'all'.")
    manifest = images(manifest.reset_index(drop=True))
    if manifest.empty:
        raise InputError("The manifest has no image: this project publishes tables alone. Nothing was done.")
    frame = manifest
    notes: list[str] = []
    for name, values, apply in _filters(frame, selection, studies):
        before = frame
        frame = apply(frame)
        if frame.empty:
            raise InputError(_emptied(name, values, before, selection))
    matched = len(frame)
    if selection.select == "sample":
        frame = _sample(frame, selection, notes)
    return Chosen(frame, matched, len(manifest), notes)


def _by_globs(manifest: pd.DataFrame, include: Sequence[str], exclude: Sequence[str]) -> Chosen:
    """The files whose paths any of ``include`` matches (all, where it is empty) and none of ``exclude``."""
    paths = pa.array(manifest["path"]).cast(pa.large_string())

    def any_of(name: str, patterns: Sequence[str], otherwise: bool) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        found = np.full(len(manifest), otherwise and not patterns)
        for pattern in patterns:
            matches = pc.match_substring_regex(paths, f"^(?s:{globs.to_regex(pattern)})$").to_numpy(
                zero_copy_only=False
            )
            if not matches.any():
                raise InputError(_nothing_matches(name, pattern, manifest))
            found |= matches
        return found

    taken = any_of("include", include, otherwise=True) & ~any_of("exclude", exclude, otherwise=False)
    if not taken.any():
        raise InputError(
            f"exclude: {_some(exclude)} leaves nothing of {_some(include) or 'the project'}. Nothing was done; correct the lists."
        )
    chosen = manifest[taken]
    return Chosen(chosen, len(chosen), len(manifest))


def _nothing_matches(name: str, pattern: str, manifest: pd.DataFrame) -> str:
    tops = list(dict.fromkeys(top + slash for top, slash, _ in (path.partition("/") for path in manifest["path"])))
    folder = f"{pattern.strip('/')}/"
    hint = f" For all that is in a folder, write {folder}**." if folder in tops else ""
    return (
        f"{name}: no file of this project matches {pattern[:200]!r}.{hint} A pattern is compared with the whole path; * keeps "
        f"within a folder and ** crosses folders. At its top the project has {_some(tops, 8)}. Nothing was done; correct the list."
    )


Filter = tuple[str, Sequence[object], "Callable[[pd.DataFrame], pd.DataFrame]"]


def _filters(manifest: pd.DataFrame, selection: Selection, studies: Mapping[str, Collection[int]]) -> Iterable[Filter]:
    """The requested filters, each checked against the whole manifest before any is applied."""
    filters: list[Filter] = []
    for name, column, wanted in (
        ("groups", "group", selection.groups),
        ("splits", "split", selection.splits),
    ):
        if wanted:
            _must_exist(name, wanted, _values(manifest[column]))
            filters.append((name, wanted, _one_of(column, wanted)))
    if views := selection.views:
        existing = _values(manifest["view"])
        _must_exist("views", views, [*existing, *VIEWS_OF, NO_VIEW] if existing else [])
        filters.append(("views", views, lambda f: f[_has_view(f["view"], views)]))
    if labels := selection.labels:
        _must_exist("labels", labels, label_columns(manifest.columns))
        filters.append(("labels", labels, lambda f: f[_any_positive(f, labels)]))
    if selection.subjects:
        ids = [_subject_id(value) for value in selection.subjects]
        known = set(manifest["subject_id"].unique().tolist())
        if unknown := [i for i in ids if i not in known]:
            raise InputError(
                f"subjects: the dataset has no {_some(unknown)}. It has {len(known):,} subjects, "
                f"from {min(known)} to {max(known)}. Nothing was done; correct the list."
            )
        filters.append(("subjects", ids, _one_of("subject_id", ids)))
    if selection.linked:
        filters.append(("linked", selection.linked, _one_of("study_id", tuple(studies["linked"]))))
    if selection.has_report:
        filters.append(("has_report", (True,), _one_of("study_id", tuple(studies["has_report"]))))
    if selection.file_list is not None:
        numbered = listed_paths(selection.file_list)
        paths = tuple(numbered)
        known_paths = manifest["path"].isin(list(paths))
        if int(known_paths.sum()) < len(paths):
            found = set(manifest.loc[known_paths, "path"])
            unknown_paths = [path for path in paths if path not in found]
            named = ", ".join(_shown_line(path, numbered[path]) for path in unknown_paths[:5])
            more = f" and {len(unknown_paths) - 5:,} more" if len(unknown_paths) > 5 else ""
            raise InputError(
                f"file_list: {len(unknown_paths):,} of its {len(paths):,} paths are not images of this dataset "
                f"version: {named}{more}. Nothing was done; a line is a path such as "
                f"{manifest['path'].iloc[0]}."
            )
        filters.append(("file_list", paths, _one_of("path", paths)))
    return filters


def _one_of(column: str, wanted: Sequence[object]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame[frame[column].isin(list(wanted))]


def listed_paths(lines: Iterable[str]) -> dict[str, int]:
    """The image paths of a file list, without blanks, ``#`` comments and the reason after a tab; each once, with its line.

    ``failed_images.txt`` of an earlier run is such a list. A line may also be a file's address at PhysioNet.

    Raises:
        InputError: A path that is absolute or climbs, or a list without any. The message quotes a line only where it looks
            like a dataset's path: the list may be any object that the role can read, and the message goes into a log.
    """
    paths: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        path = line.removeprefix("\ufeff").split("\t", 1)[0].strip()
        if not path or path.startswith("#"):
            continue
        if address := _ADDRESS.fullmatch(path):
            path = unquote(address["path"])
        if fault := path_fault(path, f"there ({len(path):,} characters)"):
            raise InputError(f"file_list, line {number:,}: {fault}. Nothing was done; correct the list.")
        paths.setdefault(path, number)
    if not paths:
        raise InputError("file_list: the list names no image. Nothing was done; give a list with one path a line.")
    return paths


_LIKE_A_PATH = re.compile(r"files/p\d\d/[A-Za-z0-9/_.-]{1,100}\.(?:jpe?g|png|dcm)")


def _shown_line(path: str, number: int) -> str:
    """A line for an error message: quoted where it looks like an image's path, else described."""
    return repr(path) if _LIKE_A_PATH.fullmatch(path) else f"line {number:,} ({len(path):,} characters, not shown)"


def _sample(frame: pd.DataFrame, selection: Selection, notes: list[str]) -> pd.DataFrame:
    if selection.sample_by not in UNITS:
        raise InputError(f"sample_by is {selection.sample_by!r}; it must be one of {', '.join(UNITS)}.")
    if selection.sample_size < 1:
        raise InputError(f"sample_size is {selection.sample_size}; it must be at least 1, or select must be 'all'.")
    column = UNITS[selection.sample_by]
    unit_of_row, units = frame[column].factorize()
    unit = {"image": "images", "study": "studies", "patient": "patients"}[selection.sample_by]
    if selection.sample_size >= len(units):
        if selection.sample_size > len(units):
            notes.append(
                f"{selection.sample_size:,} {unit} were asked for, {len(units):,} match: all of them are taken"
            )
        return frame
    is_chosen = np.zeros(len(units), dtype=bool)
    is_chosen[np.argsort(rank(units.tolist(), selection.seed))[: selection.sample_size]] = True
    chosen: pd.DataFrame = frame[is_chosen[unit_of_row]]
    if selection.file_list is not None:
        notes.append(
            f"the file list is sampled: {len(chosen):,} of {len(frame):,} images are taken; "
            "set select to 'all' for the whole list"
        )
    return chosen


def rank(units: Iterable[object], seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A pseudo-random rank for each unit that depends on the seed and the unit alone.

    Neither the machine nor the order nor the other units matter, so the n units of smallest rank contain the n-1 of
    smallest rank: samples are nested. (Of 377,110 units, two share a 64-bit rank once in 250 million datasets.)
    """
    key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
    keyed = hashlib.blake2b(key=key, digest_size=8)

    def digest(unit: object) -> bytes:
        state = keyed.copy()
        state.update(str(unit).encode())
        return state.digest()

    return np.frombuffer(b"".join(map(digest, units)), dtype=">u8").astype(np.uint64)


def _has_view(column: pd.Series, views: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    codes = [code for view in views for code in VIEWS_OF.get(view, (view,))]
    found = column.isin(codes).fillna(False).to_numpy(dtype=bool)
    return found | column.isna().to_numpy(dtype=bool) if NO_VIEW in views else found


def _any_positive(frame: pd.DataFrame, labels: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    positive = np.zeros(len(frame), dtype=bool)
    for label in labels:
        positive |= frame[label].eq(1).fillna(False).to_numpy(dtype=bool)
    return positive


def _subject_id(value: int | str) -> int:
    text = str(value).strip().removeprefix("p")
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InputError(
            f"subjects: {value!r} is not a subject id such as 10000032. Nothing was done; correct the list."
        )
    return int(text)


def _must_exist(name: str, wanted: Sequence[str], existing: Sequence[str]) -> None:
    if unknown := [value for value in wanted if value not in existing]:
        there = (
            f"It has {', '.join(existing)}"
            if existing
            else f"This dataset has no {name} at all: leave the filter empty"
        )
        raise InputError(f"{name}: the dataset has no {_some(unknown)}. {there}. Nothing was done; correct the filter.")


def _emptied(name: str, values: Sequence[object], before: pd.DataFrame, selection: Selection) -> str:
    """The error message for a filter that leaves no image."""
    column = {"groups": "group", "views": "view", "splits": "split"}.get(name)
    if column:
        there = f"; they have {', '.join(_values(before[column])) or 'none'}"
    elif name == "labels":
        positive = [label for label in label_columns(before.columns) if _any_positive(before, [label]).any()]
        there = f"; positive among them are {', '.join(positive) or 'none'}"
    elif name == "subjects":
        there = f"; they belong to {before['subject_id'].nunique():,} other subjects"
    elif name in ("linked", "has_report"):
        there = f", by the table that mimic_cxr_clinical made; they are of {before['study_id'].nunique():,} studies"
    else:
        there = ""
    others = [
        f"{other}={list(given)}"
        for other in ("groups", "views", "splits", "labels", "subjects", "linked")
        if other != name and (given := getattr(selection, other))
    ]
    scope = f"with {' and '.join(others)}" if others else "of the dataset"
    return (
        f"{name}: nothing matches {_some(values)}: {len(before):,} images were left {scope}, "
        f"none passes this filter{there}. Nothing was done; widen the filter."
    )


def _values(column: pd.Series) -> list[str]:
    return sorted(column.dropna().unique().tolist())


def _some(values: Sequence[object], limit: int = 5) -> str:
    shown = ", ".join(repr(v) if isinstance(v, str) else str(v) for v in values[:limit])
    return shown + (f" and {len(values) - limit:,} more" if len(values) > limit else "")
