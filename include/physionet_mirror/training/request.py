"""What a person asks for in a training set; owns its defaults."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from physionet_mirror.errors import InputError
from physionet_mirror.request import Request, Selection
from physionet_mirror.training.pixels import Recipe

SHARD_MB = 1, 4000
"""The fewest and the most MB of a tar: one PUT, so that S3 keeps a SHA-256 of the whole; it takes 5 GiB."""

NAME = r"[a-z0-9][a-z0-9._-]{0,79}"
"""What a set's name looks like."""

_LONGEST_NAME = 60
_UNFILTERED = Selection(select="all")


@dataclass(frozen=True)
class TrainingRequest:
    """A training set, validated. The defaults are those of the trigger form.

    Attributes:
        bucket: Bucket of the mirror, and of the set.
        prefix: Key prefix of the mirror; the set lies below it.
        selection: Which images of the training index.
        recipe: How an original becomes a small copy.
        shard_mb: Size of a tar in MB (10**6 bytes), about.
        seed: Of the order of the patients.
        reports: Put findings and impression of each study into its samples.
        approve_above_gb: Sets for which more GB of originals are read wait for a person; 0 = never.
        dry_run: Plan and estimate only.
        name: Name of the set; empty = built from size and filters.
    """

    bucket: str
    prefix: str
    selection: Selection = _UNFILTERED
    recipe: Recipe = field(default_factory=Recipe)
    shard_mb: int = 256
    seed: int = 42
    reports: bool = False
    approve_above_gb: float = 50.0
    dry_run: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _default_name(self))

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> TrainingRequest:
        """The request that a run's params describe; absent ones take their defaults.

        Raises:
            InputError: A value that cannot be worked with. The message names the param.
        """
        of_a_mirror = Request.from_params({**params, "select": "all", "shard_size": None})
        name = params.get("name") or ""
        if name and not (isinstance(name, str) and re.fullmatch(NAME, name)):
            raise InputError(
                f"name: {str(name)[:90]!r} is no name of a training set (up to 80 small letters, digits and ._-, beginning with "
                "a letter or digit). Nothing was done."
            )
        shard_mb, (least, most) = params.get("shard_mb", cls.shard_mb), SHARD_MB
        if isinstance(shard_mb, bool) or not isinstance(shard_mb, int) or not least <= shard_mb <= most:
            raise InputError(
                f"shard_mb: {str(shard_mb)[:40]!r} is not a whole number from {least} to {most:,}. Nothing was done."
            )
        given = {key: params[key] for key in Recipe.__dataclass_fields__ if params.get(key) is not None}
        return cls(
            bucket=of_a_mirror.bucket,
            prefix=of_a_mirror.prefix,
            selection=of_a_mirror.selection,
            recipe=Recipe(**given),
            shard_mb=shard_mb,
            seed=of_a_mirror.selection.seed,
            reports=bool(params.get("reports", False)),
            approve_above_gb=of_a_mirror.approve_above_gb,
            dry_run=of_a_mirror.dry_run,
            name=name,
        )

    @property
    def filters(self) -> dict[str, Any]:
        """The filters that are set, by the names of their params."""
        asked, empty = asdict(self.selection), asdict(_UNFILTERED)
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asked.items()
            if value != empty[key] and key not in ("select", "seed")
        }

    @property
    def makes(self) -> dict[str, Any]:
        """All that decides what the set holds, beside the images themselves, by the names of the params."""
        return {
            **asdict(self.recipe),
            "shard_mb": self.shard_mb,
            "seed": self.seed,
            "reports": self.reports,
            **self.filters,
        }


def _default_name(request: TrainingRequest) -> str:
    """``512``, ``512-frontal``, ``224-square-png-train-pneumonia``: what differs from the defaults; a long one is cut."""
    usual = TrainingRequest("", "", name="-").makes
    parts = [str(request.recipe.size)]
    for key, value in request.makes.items():
        if key == "size" or value == usual.get(key):
            continue
        if isinstance(value, list):
            parts += [str(one) for one in value]
        elif isinstance(value, bool):
            parts.append(key if value else f"no-{key}")
        else:
            parts.append({"quality": "q{}", "seed": "seed{}", "shard_mb": "{}mb"}.get(key, "{}").format(value))
    name = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(json.dumps(request.makes, sort_keys=True, default=str).encode()).hexdigest()
        name = f"{name[: _LONGEST_NAME - 9].rstrip('-')}-{digest[:8]}"
    return name
