"""The trigger forms: every param with its JSON schema, section, title and one line of description.

Two traits of Airflow's form shape the schemas: a multi-select is an array with ``examples``, and clearing one sends null,
so every list also takes null; an array of free text is a box with one entry a line.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import Param

from physionet_mirror.dataset import GROUPS, KNOWN, LABELS, MIMIC_CXR, MIMIC_CXR_2_1_0, NAME, SPLITS
from physionet_mirror.request import (
    APPROVE_ABOVE_GB,
    CONNECTIONS,
    FRONTAL,
    LATERAL,
    LEVELS,
    LINKED,
    NIGHTS,
    NO_VIEW,
    SAMPLE_BY,
    SAMPLE_SIZE,
    SEED,
    SELECTS,
    SHARD_SIZE,
    SLICES,
    SOURCES,
    WINDOW_HOURS,
    ClinicalRequest,
    Request,
    Selection,
)
from physionet_mirror.training.pixels import ENCODINGS, QUALITY, RESIZES, SIZE, Recipe
from physionet_mirror.training.request import NAME as SET_NAME
from physionet_mirror.training.request import SHARD_MB, TrainingRequest

BUCKET_VARIABLE = "MIMIC_CXR_BUCKET"

_CODES = ("AP", "PA", "LATERAL", "LL", "XTABLE LATERAL", "AP AXIAL", "AP LLD", "AP RLD", "PA LLD", "PA RLD")
VIEWS = (FRONTAL, LATERAL, *_CODES, NO_VIEW)
"""Views to pick from: the names that stand for several codes, and ViewPosition codes; rarer ones can be given as JSON."""

STORAGE_CLASSES = {
    "STANDARD": "STANDARD",
    "INTELLIGENT_TIERING": "INTELLIGENT_TIERING",
    "STANDARD_IA": "STANDARD_IA: read now and then",
    "ONEZONE_IA": "ONEZONE_IA: in one zone only",
    "GLACIER_IR": "GLACIER_IR: read rarely, at once",
    "GLACIER": "GLACIER: must be restored before it can be read",
    "DEEP_ARCHIVE": "DEEP_ARCHIVE: must be restored before it can be read",
}
"""S3 storage classes and what the form calls them."""

_LEVELS = {
    "count": "count: the object is there, above zero bytes",
    "checksum": "checksum: and S3's SHA-256 equals PhysioNet's",
    "content": "content: and the bytes read back hash to it",
}

PLAN_PAGE = "plugin/physionet/physionet/plan"
"""Address of the page's plan view in Airflow's UI, from Airflow's root (docs/page.md)."""

_WHERE, _WHICH, _HOW, _SAFE = "Where to", "Which images", "How", "Before it starts"
_FILES = "Which files"
_BUILT = "What is built"

_SUBJECT = {
    "anyOf": [
        {"type": "string", "pattern": r"^p?1\d{7}$"},
        {"type": "integer", "minimum": 10_000_000, "maximum": 19_999_999},
    ]
}


_PREFIX = r"^/?[A-Za-z0-9!_.*'()=-]+(/[A-Za-z0-9!_.*'()=-]+)*/?$"


def _within(bounds: tuple[int, int]) -> dict[str, Any]:
    return {"minimum": bounds[0], "maximum": bounds[1]}


_NOT_NAN: dict[str, Any] = {"not": {"exclusiveMaximum": APPROVE_ABOVE_GB[0]}}
"""Refuses NaN: it passes every bound, and so this one too."""


def _yes_no(default: bool, title: str, description: str, section: str) -> Param:
    return Param(default, type="boolean", title=title, description=description, section=section)


def _ask_above(default: float, description: str) -> Param:
    return Param(
        default,
        type="number",
        **_within(APPROVE_ABOVE_GB),
        **_NOT_NAN,
        title="Ask above (GB)",
        description=description,
        section=_SAFE,
    )


def _level(title: str, description: str) -> Param:
    return Param(
        Request.verify,
        type="string",
        enum=list(LEVELS),
        values_display=_LEVELS,
        title=title,
        description=description,
        section=_HOW,
    )


def _whole(default: int, bounds: tuple[int, int], title: str, description: str, section: str) -> Param:
    return Param(default, type="integer", **_within(bounds), title=title, description=description, section=section)


def _set_name(title: str, description: str, section: str) -> Param:
    return Param(
        None,
        type=["string", "null"],
        pattern=rf"^({SET_NAME})?$",
        title=title,
        description=description,
        section=section,
    )


def _shard_size(what: str) -> Param:
    return Param(
        Request.shard_size,
        type=["integer", "null"],
        **_within(SHARD_SIZE),
        title=f"{what} a shard",
        description="Empty = chosen by the plan: a few minutes of work each.",
        section=_HOW,
    )


def mirror_params() -> dict[str, Param]:
    """The params of ``mimic_cxr_jpg``."""
    return {
        **where_params(),
        "select": Param(
            Selection.select,
            type="string",
            enum=list(SELECTS),
            values_display={"sample": "A sample", "all": "Everything that the filters leave"},
            title="Select",
            # The form shows Markdown only where there is no plain description.
            description_md="A sample, or every image that the filters below leave. "
            f"[See first who is in it and what it takes]({PLAN_PAGE})",
            section=_WHICH,
        ),
        "sample_size": _whole(
            Selection.sample_size,
            SAMPLE_SIZE,
            "Sample size",
            "How many images, studies or patients; more than there are takes all and says so.",
            _WHICH,
        ),
        "sample_by": Param(
            Selection.sample_by,
            type="string",
            enum=list(SAMPLE_BY),
            title="Sample by",
            description="What is drawn: whole studies or patients stay together.",
            section=_WHICH,
        ),
        "seed": _whole(
            Selection.seed,
            SEED,
            "Seed",
            "Same seed, same sample on any machine; a sample is contained in every larger one.",
            _WHICH,
        ),
        **filter_params(),
        "file_list": Param(
            Request.file_list,
            type=["string", "null"],
            pattern=r"^(s3://[^/\s]+/\S.*)?$",
            title="File list",
            description="S3 URI of a text file of image paths, such as an earlier run's failed_images.txt.",
            section=_WHICH,
        ),
        **transfer_params(),
        "shard_size": _shard_size("Images"),
        "verify": _level("Verification", "What is proven of every selected file before the run is green."),
        "source": Param(
            Request.source,
            type="string",
            enum=list(SOURCES),
            values_display={
                "auto": "auto: the access point where it is open, else physionet.org",
                "physionet": "physionet.org over HTTPS",
                "s3": "PhysioNet's S3 access point",
            },
            title="Source",
            description="The access point takes minutes to an hour for everything (needs cloud access at PhysioNet); HTTPS takes days.",
            section=_HOW,
        ),
        "approve_above_gb": _ask_above(
            Request.approve_above_gb, "A plan larger than this waits for a person's approval; 0 = never wait."
        ),
        "dry_run": _yes_no(Request.dry_run, "Dry run", "Plan and estimate only: no file is fetched.", _SAFE),
    }


def where_params(*, required: bool = True) -> dict[str, Param]:
    """Bucket and prefix.

    Args:
        required: False for a scheduled DAG, whose params must all have a default: the bucket may then be null, and the
            run says that it is missing.
    """
    default = os.environ.get(BUCKET_VARIABLE) or None
    bucket: dict[str, Any] = {
        "type": "string" if required else ["string", "null"],
        "minLength": 3,
        "maxLength": 63,
        "pattern": r"^[a-z0-9][a-z0-9.\-]*[a-z0-9]$",
        "title": "Bucket",
        "description": f"Destination bucket (its default is the environment variable {BUCKET_VARIABLE}).",
        "section": _WHERE,
    }
    return {
        "bucket": Param(default, **bucket) if default or not required else Param(**bucket),
        "prefix": Param(
            Request.dataset.name,
            type="string",
            minLength=1,
            maxLength=500,
            pattern=_PREFIX,
            title="Key prefix",
            description="Below it the keys equal PhysioNet's paths.",
            section=_WHERE,
        ),
    }


def _prefix_or_none(empty: str, **more: Any) -> Param:
    """A prefix that may stay empty, and what that stands for."""
    return Param(
        None,
        type=["string", "null"],
        maxLength=500,
        pattern=_PREFIX,
        title="Key prefix",
        description=f"Below it the keys equal PhysioNet's paths; empty = {empty}.",
        section=_WHERE,
        **more,
    )


def project_params() -> dict[str, Param]:
    """The params of ``physionet_project``."""
    of_a_run = mirror_params()

    def globs(title: str, description: str, examples: tuple[str, ...]) -> Param:
        return Param(
            [],
            type=["array", "null"],
            items={"type": "string", "pattern": r"\S", "maxLength": 1100},
            title=title,
            description=f"{description} One a line, such as {' or '.join(examples)}.",
            section=_FILES,
        )

    return {
        "project": Param(
            type="string",
            pattern=rf"^\s*(https?://(www\.)?physionet\.org/(content|files)/)?{NAME}/?\s*$",
            examples=list(KNOWN),
            values_display={name: f"{name}: {known.note}" for name, known in KNOWN.items() if known.note},
            title="Project",
            description="Slug and version, as in the address of its page; the listed ones are suggestions.",
            section=_FILES,
        ),
        "bucket": of_a_run["bucket"],
        "prefix": _prefix_or_none("the project, such as mimiciv/3.1"),
        "include": globs("Include", "Empty = all files; ** crosses folders.", ("hosp/*.csv.gz", "**/*.txt")),
        "exclude": globs("Exclude", "Files that are left out of those.", ("**/*.dcm",)),
        **{name: of_a_run[name] for name in ("connections", "storage_class")},
        "shard_size": _shard_size("Files"),
        **{name: of_a_run[name] for name in ("verify", "source", "approve_above_gb", "dry_run")},
    }


def filter_params() -> dict[str, Param]:
    """Which images of the dataset; an empty list means any."""

    def pick(title: str, description: str, examples: tuple[str, ...], *, only: bool = True) -> Param:
        return Param(
            [],
            type=["array", "null"],
            items={"type": "string", **({"enum": list(examples)} if only else {"pattern": r"\S", "maxLength": 40})},
            examples=list(examples),
            uniqueItems=True,
            title=title,
            description=description,
            section=_WHICH,
        )

    return {
        "views": pick(
            "Views",
            "ViewPosition; frontal = AP, PA; lateral = LATERAL, LL; none = without one. None picked = any.",
            VIEWS,
            only=False,
        ),
        "splits": pick("Splits", "The dataset's own split; none picked = any.", SPLITS),
        "labels": pick("Labels", "CheXpert labels, at least one of them positive; none picked = any.", LABELS),
        "groups": pick("Patient groups", "The folders p10 to p19; none picked = all.", GROUPS),
        "subjects": Param(
            [],
            type=["array", "null"],
            items=_SUBJECT,
            title="Patients",
            description="Subject ids, one a line, such as 10000032; empty = any.",
            section=_WHICH,
        ),
        "linked": pick(
            "Linked to", "Stays that the study falls into, by mimic_cxr_clinical; any = one of the three.", LINKED
        ),
        "has_report": _yes_no(
            Selection.has_report,
            "With a report",
            "Only studies whose report is not empty, by mimic_cxr_clinical.",
            _WHICH,
        ),
    }


def transfer_params() -> dict[str, Param]:
    """How images are carried over."""
    return {
        "connections": _whole(
            Request.connections,
            CONNECTIONS,
            "Connections",
            "The most PhysioNet connections that this run may hold at once, over all its streams.",
            _HOW,
        ),
        "storage_class": Param(
            Request.storage_class,
            type="string",
            enum=list(STORAGE_CLASSES),
            values_display=STORAGE_CLASSES,
            title="Storage class",
            description="S3 storage class of the files.",
            section=_HOW,
        ),
    }


def _project_or_none() -> dict[str, Param]:
    """Which project a DAG works on that does so with MIMIC-CXR-JPG by itself, and where that lies."""
    return {
        "prefix": _prefix_or_none(f"the project, or {Request.dataset.name}", minLength=1),
        "project": Param(
            None,
            type=["string", "null"],
            pattern=rf"^{NAME}$",
            examples=list(KNOWN),
            title="Project",
            description="Slug and version of a mirror of physionet_project; empty = MIMIC-CXR-JPG's images.",
            section=_WHERE,
        ),
    }


def audit_params() -> dict[str, Param]:
    """The params of ``mimic_cxr_audit``."""
    return {
        **where_params(required=False),
        **_project_or_none(),
        "level": _level("Level", "What is asked of every file."),
        "share": Param(
            "1/1",
            type="string",
            pattern=r"^(\*|[1-9]\d{0,2})/[1-9]\d{0,2}$",
            examples=["1/1", "*/8", "2/8"],
            title="Share",
            description="Which part of the dataset: 2/8 is the second eighth; */8 is another eighth each week.",
            section=_HOW,
        ),
        "repair": _yes_no(
            False,
            "Repair",
            "Fetch what is missing or wrong: trigger mimic_cxr_jpg, or physionet_project for a project.",
            _HOW,
        ),
    }


def cleanup_params() -> dict[str, Param]:
    """The params of ``mimic_cxr_cleanup``."""
    return {
        **where_params(),
        **_project_or_none(),
        "what": Param(
            "run",
            type="string",
            enum=["run", "training_set", "prefix"],
            values_display={
                "run": "The files that a run selected",
                "training_set": "A training set",
                "prefix": "Everything below the prefix",
            },
            title="What",
            description="Whose files go; the reports of runs are kept in any case.",
            section=_WHICH,
        ),
        "training_set": _set_name("Training set", "Name of the training set that goes.", _WHICH),
        "run_id": Param(
            None,
            type=["string", "null"],
            pattern=r"^([A-Za-z0-9_.~:+@-]+)?$",
            title="Run id",
            description="Of the run of mimic_cxr_jpg whose files go, as its page shows it; of another DAG, dag_id@run_id.",
            section=_WHICH,
        ),
        "dry_run": _yes_no(
            Request.dry_run, "Dry run", "List and count only: nothing is asked and nothing is deleted.", _SAFE
        ),
    }


def backfill_params() -> dict[str, Param]:
    """The params of ``mimic_cxr_jpg_backfill``: those of ``mimic_cxr_jpg`` that make sense night by night."""
    of_a_run = mirror_params()
    return {
        **where_params(required=False),
        **filter_params(),
        **transfer_params(),
        "verify": of_a_run["verify"],
        "source": of_a_run["source"],
        "slices": _whole(
            NIGHTS,
            SLICES,
            "Slices",
            "Parts into which the dataset is cut; each night owns one, and after the last comes the first again.",
            _HOW,
        ),
        "stop_after": Param(
            Request.stop_after,
            type=["string", "null"],
            pattern=r"^(([01]?\d|2[0-3]):[0-5]\d|\d{1,3}(\.\d{1,9})?\s?h?)?$",
            examples=["06:30", "4.5"],
            title="Stop after",
            description="End of the night: a time of day (UTC) such as 06:30, or hours such as 4.5; the next night goes on.",
            section=_HOW,
        ),
        # What follows is fixed: a night takes the whole of its slice, and nobody is awake to approve it.
        "select": Param("all", const="all", section=_SAFE, title="Select", description="The whole slice."),
        "approve_above_gb": Param(
            0, const=0, section=_SAFE, title="Approval", description="None: the nights run alone."
        ),
        "dry_run": of_a_run["dry_run"],
    }


def metadata_params() -> dict[str, Param]:
    """The params of ``mimic_cxr_metadata``."""
    return {
        "bucket": where_params(required=False)["bucket"],
        "cxr_project": Param(
            MIMIC_CXR.name,
            type="string",
            enum=[MIMIC_CXR.name, MIMIC_CXR_2_1_0.name],
            values_display={MIMIC_CXR_2_1_0.name: f"{MIMIC_CXR_2_1_0.name}: with the list of providers"},
            title="MIMIC-CXR",
            description="The version whose lists are fetched, below a prefix of the same name.",
            section=_WHICH,
        ),
    }


def clinical_params() -> dict[str, Param]:
    """The params of ``mimic_cxr_clinical``."""

    def version(default: str, title: str, description: str) -> Param:
        return Param(
            default,
            type="string",
            pattern=rf"^{default.partition('/')[0]}/[0-9A-Za-z][0-9A-Za-z.-]{{0,49}}$",
            title=title,
            description=description,
            section=_BUILT,
        )

    return {
        **where_params(required=False),
        "reports": _yes_no(
            ClinicalRequest.reports, "Reports", "Build reports.parquet: each report by its sections.", _BUILT
        ),
        "links": _yes_no(
            ClinicalRequest.links, "Links", "Build links.parquet: each study's admission, ED and ICU stay.", _BUILT
        ),
        "cxr_project": version(ClinicalRequest.cxr_project.name, "MIMIC-CXR", "The version whose reports are read."),
        "hosp_project": version(
            ClinicalRequest.hosp_project.name,
            "MIMIC-IV",
            "The version whose admissions, patients and ICU stays are read.",
        ),
        "ed_project": version(
            ClinicalRequest.ed_project.name, "MIMIC-IV-ED", "The version whose emergency stays are read."
        ),
        "window_hours": Param(
            ClinicalRequest.window_hours,
            type="number",
            **_within(WINDOW_HOURS),
            **_NOT_NAN,
            title="Window (hours)",
            description="Link a study also to a stay that begins up to so many hours after it; 24 is usual, 0 = inside only.",
            section=_BUILT,
        ),
    }


def training_set_params() -> dict[str, Param]:
    """The params of ``mimic_cxr_training_set``."""
    recipe = Recipe()
    return {
        **where_params(required=False),
        "name": _set_name(
            "Name", "Folder below _training/; empty = built from size and filters, such as 512-frontal-train.", _WHERE
        ),
        **filter_params(),
        "size": _whole(recipe.size, SIZE, "Size", "Pixels of the side that the next field names.", _HOW),
        "resize": Param(
            recipe.resize,
            type="string",
            enum=list(RESIZES),
            values_display={
                "short_side": "The short side has this size",
                "long_side": "The long side has this size",
                "square": "A square: the long side, and black bars",
            },
            title="Resize",
            description="The aspect is kept in any case.",
            section=_HOW,
        ),
        "encoding": Param(
            recipe.encoding,
            type="string",
            enum=list(ENCODINGS),
            title="Encoding",
            description="jpeg, or png: without loss, three times as large.",
            section=_HOW,
        ),
        "quality": _whole(recipe.quality, QUALITY, "Quality", "Of a JPEG.", _HOW),
        "shard_mb": _whole(TrainingRequest.shard_mb, SHARD_MB, "MB a tar", "About; patients are not divided.", _HOW),
        "seed": _whole(
            TrainingRequest.seed,
            SEED,
            "Seed",
            "Of the order of the patients in the tars: the same on any machine.",
            _HOW,
        ),
        "reports": _yes_no(
            TrainingRequest.reports,
            "Reports",
            "Put findings and impression into each sample (needs mimic_cxr_clinical).",
            _HOW,
        ),
        "approve_above_gb": _ask_above(
            TrainingRequest.approve_above_gb,
            "A set for which more originals than this are read waits for a person's approval; 0 = never wait.",
        ),
        "dry_run": _yes_no(TrainingRequest.dry_run, "Dry run", "Plan and estimate only: nothing is made.", _SAFE),
    }
