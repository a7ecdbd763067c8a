"""What was asked for: the params of a run, their defaults and bounds, validated before any work starts."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, Literal, get_args

from physionet_mirror.dataset import DATASETS, KNOWN, MIMIC_CXR_2_1_0, MIMIC_CXR_JPG, Dataset, project
from physionet_mirror.errors import InputError

Level = Literal["count", "checksum", "content"]
Source = Literal["auto", "physionet", "s3"]

LEVELS: tuple[Level, ...] = get_args(Level)
SOURCES: tuple[Source, ...] = get_args(Source)
SELECTS = ("sample", "all")
SAMPLE_BY = ("image", "study", "patient")
"""What can be sampled."""

STORAGE_CLASSES = (
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
)
"""S3 storage classes (source: PutObject, x-amz-storage-class)."""

ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose objects must be restored before they can be read."""

CONNECTIONS = 4, 64
"""The fewest and the most PhysioNet connections that a run may ask for."""

SAMPLE_SIZE = 1, 1_000_000_000
"""The fewest and the most units of a sample; asking for more than there are takes all."""

SEED = -(2**53 - 1), 2**53 - 1
"""Whole numbers that a browser's form represents exactly (source: JavaScript's Number.MAX_SAFE_INTEGER)."""

SHARD_SIZE = 1, 10_000
"""Images a shard: at most ten LIST requests, and a list of 1.6 MB."""

SLICES = 1, 1000
"""Parts of a dataset, one a night."""

NIGHTS = 30
"""Default of ``slices`` where there is a slice a night: 12,570 images, about 20 GB."""

APPROVE_ABOVE_GB = 0, 1_000_000
"""GB above which a person is asked; at most a petabyte, 200 times the largest dataset of PhysioNet."""

WINDOW_HOURS = 0, 24 * 31
"""The shortest and longest time before a stay in which a study may still count as its own."""

ANY_STAY = "any"
"""What stands in ``linked`` for a stay of whichever kind."""

LINKED = (ANY_STAY, "ed", "admission", "icu")
"""What an image's study can be linked to."""

FRONTAL, LATERAL, NO_VIEW = "frontal", "lateral", "none"
"""Names in ``views`` that stand for more than one ViewPosition, and for images without any."""

_BUCKET = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)(?!xn--)[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()=-]+(?:/[A-Za-z0-9!_.*'()=-]+)*")
_S3_URI = re.compile(r"s3://([^/]+)/(.+)")
_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f]|\{\{|\{%")


@dataclass(frozen=True)
class Selection:
    """Which images a person asks for; an empty filter means any. The defaults are those of the trigger form.

    Attributes:
        select: ``sample`` or ``all``.
        sample_size: Number of units, with ``select="sample"``.
        sample_by: The unit: ``image``, ``study`` or ``patient``; whole studies or patients stay together.
        seed: Same seed, same sample, on any machine and in any order of the manifest.
        views: ViewPosition values, and the names ``frontal`` (AP, PA), ``lateral`` (LATERAL, LL) and ``none`` (images
            without a ViewPosition).
        splits: train, validate, test.
        labels: CheXpert labels; an image matches when any of them is positive (1).
        groups: Patient groups, p10 … p19.
        subjects: Subject ids, as numbers or as text with or without the ``p`` (``10000032``, ``p10000032``).
        linked: Kinds of stay (`LINKED`): an image matches when its study has one of any of these, by links.parquet.
        has_report: Only images whose study has a report that is not empty, by reports.parquet.
        file_list: Lines of a list of image paths (see ``selection.listed_paths``), or None for no list.
        include: Globs over the paths of any files; empty = all. With these, nothing else counts but ``exclude``. None = the
            images.
        exclude: Globs of files that are left out of those.
    """

    select: str = "sample"
    sample_size: int = 1000
    sample_by: str = "image"
    seed: int = 42
    views: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    subjects: tuple[int | str, ...] = ()
    linked: tuple[str, ...] = ()
    has_report: bool = False
    file_list: tuple[str, ...] | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    @property
    def noun(self) -> Literal["image", "file"]:
        """What is selected: ``image`` or ``file``."""
        return "image" if self.include is None else "file"


FILTERS = ("views", "splits", "labels", "groups", "subjects", "linked", "has_report")
"""The filters of a `Selection` that hold whatever is sampled."""


@dataclass(frozen=True)
class Request:
    """What a run is asked to do, validated. The defaults are those of the trigger form.

    Attributes:
        bucket: Destination bucket.
        prefix: Key prefix without slashes at its ends.
        selection: Which images; its ``file_list`` is read later, from ``file_list``.
        file_list: S3 URI of a text file of paths, or None.
        shard_size: Images a shard, or None where the plan chooses.
        connections: The most PhysioNet connections over the whole run.
        storage_class: S3 storage class of the images.
        verify: How much is proven in the end.
        source: Where the images come from.
        approve_above_gb: Plans above this size in GB wait for a person; 0 = never.
        dry_run: Plan and estimate only.
        slices: Contiguous parts into which the selection is cut, one a run; None = no parts.
        stop_after: When to finish what is under way and leave the rest to the next run: a duration since the run
            began, a time of day (UTC), or None.
        dataset: Which version of which dataset.
    """

    bucket: str
    prefix: str
    selection: Selection
    file_list: str | None = None
    shard_size: int | None = None
    connections: int = 8
    storage_class: str = "STANDARD"
    verify: Level = "checksum"
    source: Source = "auto"
    approve_above_gb: float = 50.0
    dry_run: bool = False
    slices: int | None = None
    stop_after: timedelta | time | None = None
    dataset: Dataset = MIMIC_CXR_JPG

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Request:
        """The request that a run's params describe; absent ones take their defaults.

        With ``project``, it is one for files of that project, chosen by ``include`` and ``exclude``.

        Raises:
            InputError: A value that cannot be worked with. The message names the param.
        """

        def choice(name: str, default: str, allowed: tuple[str, ...]) -> Any:
            value = params.get(name) or default
            if value not in allowed:
                raise InputError(f"{name}: {str(value)[:80]!r} is none of {', '.join(allowed)}. Nothing was done.")
            return value

        named = params.get("project")
        noun = "image" if named is None else "file"
        storage_class, verify = (
            choice("storage_class", cls.storage_class, STORAGE_CLASSES),
            choice("verify", cls.verify, LEVELS),
        )
        if verify == "content" and storage_class in ARCHIVED:
            raise InputError(
                f"verify: content reads every {noun} back, and S3 gives back nothing of storage_class {storage_class} until "
                "it is restored. Nothing was done. Choose verify=checksum, which asks S3 for the checksum that it holds, or "
                "another storage class: GLACIER_IR is read at once."
            )
        dataset = DATASETS[choice("dataset", cls.dataset.name, tuple(DATASETS))] if named is None else project(named)
        prefix = params.get("prefix", dataset.name)
        shard_size = params.get("shard_size")
        return cls(
            bucket=checked_bucket(params.get("bucket")),
            prefix=checked_prefix(dataset.name if prefix is None and named is not None else prefix),
            selection=Selection(select="all", include=_texts("include", params), exclude=_texts("exclude", params))
            if named is not None
            else Selection(
                select=choice("select", Selection.select, SELECTS),
                sample_size=_whole("sample_size", params.get("sample_size", Selection.sample_size), *SAMPLE_SIZE),
                sample_by=choice("sample_by", Selection.sample_by, SAMPLE_BY),
                seed=_whole("seed", params.get("seed", Selection.seed), *SEED),
                views=_texts("views", params),
                splits=_texts("splits", params),
                labels=_texts("labels", params),
                groups=_texts("groups", params),
                subjects=_texts("subjects", params),
                linked=_linked(params),
                has_report=bool(params.get("has_report", Selection.has_report)),
            ),
            file_list=checked_uri("file_list", params.get("file_list")),
            shard_size=None if shard_size in (None, "") else _whole("shard_size", shard_size, *SHARD_SIZE),
            connections=_whole("connections", params.get("connections", cls.connections), *CONNECTIONS),
            storage_class=storage_class,
            verify=verify,
            source=choice("source", cls.source, SOURCES),
            approve_above_gb=_gigabytes(
                "approve_above_gb", params.get("approve_above_gb"), cls.approve_above_gb, *APPROVE_ABOVE_GB
            ),
            dry_run=bool(params.get("dry_run", cls.dry_run)),
            slices=None if params.get("slices") is None else _whole("slices", params["slices"], *SLICES),
            stop_after=_stop_after(params.get("stop_after")),
            dataset=dataset,
        )

    def stops_at(self, started: datetime) -> datetime | None:
        """When a run that began at ``started`` (timezone-aware) must stop; None = when all is done."""
        if self.stop_after is None:
            return None
        if isinstance(self.stop_after, timedelta):
            return started + self.stop_after
        today = datetime.combine(started.astimezone(UTC).date(), self.stop_after, UTC)
        return today if today > started else today + timedelta(days=1)

    def share(self, streams: int) -> int:
        """Connections of each of ``streams`` concurrent streams, so that all together hold the cap.

        Raises:
            InputError: There are more streams than connections.
        """
        if streams > self.connections:
            raise InputError(
                f"connections: {self.connections} cannot be shared by {streams} streams at once. Nothing was done. Ask for at "
                f"least {streams} connections, or let the operator lower PHYSIONET_STREAMS."
            )
        return self.connections // streams


@dataclass(frozen=True)
class ClinicalRequest:
    """Which tables to build beside the training index, validated. The defaults are those of the trigger form.

    Attributes:
        bucket: Where the radiographs are mirrored to.
        prefix: Their key prefix; each project below goes below a prefix of its own name.
        reports: Build ``reports.parquet``.
        links: Build ``links.parquet``.
        cxr_project: Whose reports; a version of ``mimic-cxr``.
        hosp_project: Whose admissions, patients and ICU stays; a version of ``mimiciv``.
        ed_project: Whose emergency stays; a version of ``mimic-iv-ed``.
        window_hours: How long before a stay's begin a study may lie and still count as its own.
    """

    bucket: str
    prefix: str = MIMIC_CXR_JPG.name
    reports: bool = True
    links: bool = True
    cxr_project: Dataset = MIMIC_CXR_2_1_0
    hosp_project: Dataset = KNOWN["mimiciv/3.1"]
    ed_project: Dataset = KNOWN["mimic-iv-ed/2.2"]
    window_hours: float = 0

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ClinicalRequest:
        """The request that a run's params describe; absent ones take their defaults.

        Raises:
            InputError: A value that cannot be worked with. The message names the param.
        """

        def of_slug(name: str, default: Dataset) -> Dataset:
            found = project(params.get(name) or default.name)
            if found.slug != default.slug:
                raise InputError(
                    f"{name}: {found.name} is not a version of {default.slug}. Nothing was done. Its default is "
                    f"{default.name}."
                )
            return found

        asked = cls(
            bucket=checked_bucket(params.get("bucket")),
            prefix=checked_prefix(params.get("prefix") or cls.prefix),
            reports=bool(params.get("reports", cls.reports)),
            links=bool(params.get("links", cls.links)),
            cxr_project=of_slug("cxr_project", cls.cxr_project),
            hosp_project=of_slug("hosp_project", cls.hosp_project),
            ed_project=of_slug("ed_project", cls.ed_project),
            window_hours=checked_window(params.get("window_hours", cls.window_hours)),
        )
        if not asked.reports and not asked.links:
            raise InputError("reports, links: both are off, so there is nothing to build. Nothing was done.")
        return asked


def checked_window(hours: Any) -> float:
    """A number of hours within `WINDOW_HOURS`. Raises InputError."""
    least, most = WINDOW_HOURS
    return _number("window_hours", hours, least, most, f"hours from {least} to {most}")


def checked_bucket(name: Any) -> str:
    """A valid bucket name (source: S3 user guide, bucket naming rules). Raises InputError."""
    if not name:
        raise InputError(
            "bucket: no destination bucket was given. Nothing was done. Fill in the param `bucket`, or let the "
            "operator set the environment variable MIMIC_CXR_BUCKET."
        )
    if not isinstance(name, str) or not _BUCKET.fullmatch(name):
        raise InputError(
            f"bucket: {str(name)[:80]!r} is no S3 bucket name (3 to 63 lower-case letters, digits, dots and hyphens; no "
            "s3://, no slash). Nothing was done."
        )
    return name


def checked_prefix(prefix: Any) -> str:
    """A key prefix without slashes at its ends. Raises InputError."""
    text = prefix.strip("/") if isinstance(prefix, str) else prefix
    if text == "":
        raise InputError(
            "prefix: the files need a place of their own in the bucket, such as mimic-cxr-jpg/2.1.0. Nothing was done."
        )
    if (
        not isinstance(text, str)
        or not _PREFIX.fullmatch(text)
        or len(text) > 500
        or {".", ".."} & set(text.split("/"))
    ):
        raise InputError(
            f"prefix: {str(prefix)[:80]!r} is not a plain key prefix such as mimic-cxr-jpg/2.1.0 (letters, digits and "
            "!_.*'()=- between single slashes, no . or .. folders). Nothing was done."
        )
    return text


def _stop_after(text: Any) -> timedelta | time | None:
    """``06:30`` is a time of day, ``4.5`` or ``4.5 h`` a duration. Raises InputError."""
    if text in (None, ""):
        return None
    clock = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", str(text).strip())
    if clock:
        return time(int(clock[1]), int(clock[2]))
    hours = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*(?:h|hours?)?", str(text).strip())
    if hours and float(hours[1]) > 0:
        return timedelta(hours=float(hours[1]))
    raise InputError(
        f"stop_after: {str(text)[:40]!r} is neither a time of day (UTC) such as 06:30 nor hours such as 4.5. Nothing was done."
    )


def checked_uri(name: str, uri: Any) -> str | None:
    """An S3 URI of an object, or None where it is empty. Raises InputError."""
    if not uri:
        return None
    match = _S3_URI.fullmatch(uri) if isinstance(uri, str) else None
    if not match or _UNSPEAKABLE.search(uri) or ".." in match[2].split("/"):
        raise InputError(f"{name}: {str(uri)[:80]!r} is no S3 URI such as s3://bucket/list.txt. Nothing was done.")
    checked_bucket(match[1])
    return str(uri)


def checked_names(given: Iterable[str], known: Collection[str]) -> None:
    """Refuse params that the DAG does not know: Airflow would ignore a misspelt one silently.

    Raises:
        InputError: The message names the param and the known one that is spelt most like it.
    """
    if unknown := sorted(set(given) - set(known)):
        name = unknown[0]
        alike = difflib.get_close_matches(name.lower(), known, n=1)
        meant = f"Did you mean `{alike[0]}`?" if alike else f"It knows {', '.join(sorted(known))}."
        raise InputError(
            f"{name[:80]}: this DAG has no such param. {meant} Nothing was done. Correct the conf and trigger the run again."
        )


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(
            f"{name}: {_quoted(value)} is not a whole number from {least:,} to {most:,}. Nothing was done."
        )
    return value


def _gigabytes(name: str, value: Any, default: float, least: int, most: int) -> float:
    if value is None:
        return default
    return _number(name, value, least, most, f"GB from {least:,} (never ask) to {most:,}")


def _number(name: str, value: Any, least: float, most: float, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:  # NaN is neither
        raise InputError(f"{name}: {_quoted(value)} is not a number of {wanted}. Nothing was done.")
    return float(value)


def _quoted(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 300:  # Python refuses to write out very long ones
        return f"a number of about {int(value.bit_length() * math.log10(2)):,} digits"
    return repr(value)[:80]


_SUCH_AS = {"subjects": "[10000032]", "linked": '["ed"]', "include": '["hosp/*.csv.gz"]', "exclude": '["**/*.dcm"]'}


def _linked(params: Mapping[str, Any]) -> tuple[str, ...]:
    kinds = _texts("linked", params)
    if unknown := [kind for kind in kinds if kind not in LINKED]:
        raise InputError(
            f"linked: {unknown[0][:80]!r} is none of {', '.join(LINKED)}. Nothing was done. Correct the filter; empty means any "
            "study, linked or not."
        )
    return kinds


def _texts(name: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    values = params.get(name) or ()
    if isinstance(values, str | Mapping) or not all(
        isinstance(value, str | int) and not isinstance(value, bool) for value in values
    ):
        raise InputError(f"{name}: a list is wanted, such as {_SUCH_AS.get(name, '[...]')}. Nothing was done.")
    texts = tuple(value.strip() if isinstance(value, str) else _quoted(value) for value in values)
    if not all(texts):
        raise InputError(
            f"{name}: an entry of the list is blank. Nothing was done. Take it out; an empty list means any"
            + (f", and {NO_VIEW!r} means images without a ViewPosition." if name == "views" else ".")
        )
    return texts
