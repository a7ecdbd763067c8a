"""What a run of any project would select, and what it would take, before anything is planned.

A manifest has no sizes. Those of verified files are known exactly; the others' come from an earlier plan of the project, which
has asked PhysioNet for them, else from what is verified, else from the project's declaration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Unpack

from physionet_mirror import sizes
from physionet_mirror.estimate import estimate_run
from physionet_mirror.overview import Catalog, Circumstances, by_each_way
from physionet_mirror.selection import choose

if TYPE_CHECKING:
    from physionet_mirror.records import Estimate, Plan
    from physionet_mirror.request import Request

MOST_FOLDERS = 12
"""Folders that are named; the others are counted together."""


@dataclass(frozen=True)
class Planned:
    """What an earlier plan of the same project found out about sizes.

    Attributes:
        include, exclude: Its globs.
        estimate: What it expected.
    """

    include: Sequence[str]
    exclude: Sequence[str]
    estimate: Estimate

    @classmethod
    def of(cls, plan: Plan) -> Planned:
        """The part of a plan that counts here."""

        def globs(name: str) -> tuple[str, ...]:
            given = plan.request.get(name) or ()
            return tuple(map(str, given)) if isinstance(given, list | tuple) else ()

        return cls(globs("include"), globs("exclude"), plan.estimate)


@dataclass(frozen=True)
class FilePreview:
    """What a run would select of a project's files, and what it would take.

    Attributes:
        selected: Files that it would select.
        verified: Those of them that are in the bucket and verified.
        of: Files of the project.
        folders: (folder, files), the largest first; of more than `MOST_FOLDERS`, the others together as the last.
        estimate: What it would take, by the way that is expected.
        ways: What it would take by each way that may be open.
        notes: Sentences of the selection.
    """

    selected: int
    verified: int
    of: int
    folders: Sequence[tuple[str, int]]
    estimate: Estimate
    ways: Sequence[Estimate]
    notes: Sequence[str]


def preview_files(
    catalog: Catalog,
    request: Request,
    *,
    plans: Sequence[Planned] = (),
    **given: Unpack[Circumstances],
) -> FilePreview:
    """Choose files as a run would, and count.

    Args:
        catalog: Of every file (``overview.load`` with ``kind="files"``).
        request: What would be asked for, with globs.
        plans: Earlier plans of the project, newest first, for the sizes.
        **given: What the estimate rests on.

    Raises:
        InputError: A glob that matches nothing; the message names it.
    """
    chosen = choose(catalog.frame, request.selection)
    rows = chosen.frame.index.to_numpy()
    count, there = len(rows), int(catalog.verified[rows].sum())
    missing, stored = count - there, int(catalog.sizes[rows].sum())
    fetched, between, basis = _sizes(catalog, request, plans, count, missing, stored)
    estimate = partial(
        estimate_run,
        request,
        count,
        missing,
        fetched / missing if missing else catalog.mean_bytes or sizes.GUESS,
        exact=(stored + fetched, fetched),
        between=between,
        sizes=basis,
        listed=False,
    )
    groups = chosen.frame["group"].value_counts()
    named = [(str(name), int(number)) for name, number in groups.head(MOST_FOLDERS).items()]
    if rest := count - sum(number for _, number in named):
        named.append(("all others", rest))
    expected, ways = by_each_way(estimate, **given)
    return FilePreview(count, there, len(catalog.frame), named, expected, ways, chosen.notes)


def _sizes(
    catalog: Catalog, request: Request, plans: Sequence[Planned], count: int, missing: int, stored: int
) -> tuple[int, tuple[int, int] | None, str]:
    """Bytes to be fetched, the least and the most where only a range is known, and what they rest on."""
    if not missing:
        return 0, None, "each file's size, as it was verified"
    told = [plan for plan in plans if plan.estimate.images and plan.estimate.bytes]
    wanted = request.selection.include or (), request.selection.exclude
    same = next((p for p in told if (p.include, p.exclude) == wanted and p.estimate.images == count), None)
    if same is not None and same.estimate.bytes > stored:
        fetched, plan = same.estimate.bytes - stored, same
        basis = f"the last plan of the same files: {plan.estimate.sizes or 'a mean size'}"
    elif told:
        plan = max(told, key=lambda each: each.estimate.images)
        fetched = round(missing * plan.estimate.bytes / plan.estimate.images)
        basis = f"the mean of the {plan.estimate.images:,} files of an earlier plan"
    elif (verified := int(catalog.verified.sum())) > 0:
        basis = f"the mean of the {verified:,} files that are verified" if verified > 1 else "the one verified file"
        return round(missing * int(catalog.sizes.sum()) / verified), None, basis
    elif request.dataset.image_bytes:
        return missing * request.dataset.image_bytes, None, "the mean size that is known of this project"
    else:
        basis = "1 MB a file, a guess: no size is known before the first plan (a dry run is enough)"
        return missing * sizes.GUESS, None, basis
    least, most = plan.estimate.missing_bytes_least, plan.estimate.missing_bytes_most
    if not most or not plan.estimate.missing_bytes:
        return fetched, None, basis
    ratio = fetched / plan.estimate.missing_bytes
    return fetched, (round(least * ratio), round(most * ratio)), basis
