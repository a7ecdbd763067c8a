"""What of a project is in the bucket, and what a run would select: the manifest with what the index says of it.

Both files are read once, in a process of its own (see overview_tables.py), and again only when an ETag has changed; no file
of the project is asked for. An overview is a few numbers; a catalog of all 377,110 images of MIMIC-CXR-JPG takes about
150 MB while it is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict, Unpack

import numpy as np

from physionet_mirror import manifest, overview_tables
from physionet_mirror.cohort import Counts, count
from physionet_mirror.errors import InputError, MetadataError
from physionet_mirror.estimate import estimate_run
from physionet_mirror.layout import INDEX, MANIFEST, MIRROR
from physionet_mirror.mover import Mode
from physionet_mirror.s3.prices import DEFAULT_REGION
from physionet_mirror.selection import choose

if TYPE_CHECKING:
    import pandas as pd

    from physionet_mirror.records import Estimate, RunReport
    from physionet_mirror.request import Request, Selection
    from physionet_mirror.s3.bucket import Bucket

NOT_GIVEN = "not given"
"""What a missing view or split is called."""

OTHERS = "all others"
"""What the groups beyond those counted one by one are called."""

_MOST_GROUPS = 1000  # whose times are looked at; MIMIC-CXR-JPG has ten


@dataclass(frozen=True)
class Catalog:
    """The manifest, and for each image whether it is verified.

    Attributes:
        frame: The manifest without the columns that nothing here needs.
        sizes: Bytes of each row's image where it is verified, else 0.
        verified: Whether each row's image is in the index with the manifest's checksum.
        etags: Of manifest and index when they were read; empty for an index that is not there.
        trouble: Why the index does not count; empty where it does, and where there is none.
    """

    frame: pd.DataFrame
    sizes: np.ndarray[Any, np.dtype[np.int64]]
    verified: np.ndarray[Any, np.dtype[np.bool_]]
    etags: tuple[str, str]
    trouble: str = ""

    @property
    def has_images(self) -> bool:
        """Whether it describes radiographs; the manifest of another project has only paths and checksums."""
        return "dicom_id" in self.frame.columns

    @property
    def mean_bytes(self) -> float | None:
        """Mean size of a verified image; None where there are too few to tell."""
        count = int(self.verified.sum())
        return float(self.sizes.sum() / count) if count >= 100 else None


def load(bucket: Bucket, known: Catalog | None = None, kind: Literal["images", "files"] = "images") -> Catalog | None:
    """The bucket's catalog: two HEADs, and two GETs where something has changed since ``known``; None = no manifest yet.

    Args:
        bucket: Whose manifest and index.
        known: What this returned before, for the same kind.
        kind: ``files``: every file by its path, of any project; ``images``: radiographs with what the tables say of them.

    Raises:
        MetadataError: The manifest cannot be read, or is larger than any of ours.
        DestinationError: S3 cannot be asked.
    """
    etags = _etags(bucket)
    if etags is None or (known is not None and known.etags == etags):
        return None if etags is None else known
    try:
        with _fetched(bucket, etags) as (here, index, etags, trouble):
            out = here.with_name("joined")
            trouble = trouble or _index_trouble(overview_tables.join(here, index, out, kind))
            frame = manifest.read(out)
    except FileNotFoundError:
        return None
    sizes = frame.pop(overview_tables.VERIFIED).to_numpy(dtype=np.int64)
    return Catalog(frame, sizes, sizes > 0, etags, trouble)


def _etags(bucket: Bucket) -> tuple[str, str] | None:
    """ETags of manifest and index; None = there is no manifest."""
    stored, indexed = bucket.head(MANIFEST), bucket.head(INDEX)
    return None if stored is None else (stored.etag, indexed.etag if indexed else "")


@contextmanager
def _fetched(bucket: Bucket, etags: tuple[str, str]) -> Iterator[tuple[Path, Path | None, tuple[str, str], str]]:
    """Manifest and index as files, the ETags that count, and why the index does not.

    Raises:
        FileNotFoundError: The manifest was deleted meanwhile.
    """
    with TemporaryDirectory(prefix="physionet-") as folder:
        here, index = Path(folder) / "manifest", Path(folder) / "index"
        _fetch(bucket, MANIFEST, here)
        trouble = ""
        try:
            if etags[1]:
                _fetch(bucket, INDEX, index)
        except FileNotFoundError:
            etags = (etags[0], "")
        except MetadataError as error:
            trouble = str(error)
        yield here, index if etags[1] and not trouble else None, etags, trouble


def _index_trouble(why: str) -> str:
    return why and f"{INDEX} cannot be read: {why}. No file is affected; the next run that verifies writes it anew."


def _fetch(bucket: Bucket, path: str, file: Path) -> None:
    """Download the object; refuse one that is larger than any this software writes."""
    size = 0
    with file.open("wb") as out:
        for chunk in bucket.open_read(path):
            size += len(chunk)
            if size > overview_tables.MOST_BYTES:
                raise MetadataError(
                    f"{path} has more than {overview_tables.MOST_BYTES >> 20} MB, so it is not read: this software writes none "
                    "of that size. No file is affected. Look who wrote it."
                )
            out.write(chunk)


def without_index(catalog: Catalog) -> Catalog:
    """The same images with none verified: another bucket's manifest, used for a bucket that has no manifest yet."""
    return replace(catalog, sizes=np.zeros_like(catalog.sizes), verified=np.zeros_like(catalog.verified))


# -- the bucket --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a project: how many images or files it has, how many of them are in the bucket and verified, their bytes."""

    name: str
    images: int
    verified: int
    bytes: int


@dataclass(frozen=True)
class Overview:
    """How much of a project is in the bucket.

    Attributes:
        dataset: ``slug/version``; empty = the manifest names none.
        has_images: Whether radiographs are counted; else files.
        whole: All of it.
        groups, splits: By patient group and by split; of a project without radiographs, by folder.
        cells: By group, then split (in the order of ``splits``).
        last_verified: When the memory of verified objects was last written to, in all and by group.
        etags: Of manifest and index when they were read.
        trouble: Why the index does not count; empty where it does, and where there is none.
    """

    dataset: str
    has_images: bool
    whole: Part
    groups: Sequence[Part]
    splits: Sequence[Part]
    cells: Mapping[str, Sequence[Part]]
    last_verified: datetime | None
    group_verified: Mapping[str, datetime]
    etags: tuple[str, str]
    trouble: str = ""

    @property
    def complete(self) -> list[Part]:
        """The groups of which every image is verified."""
        return [group for group in self.groups if group.verified == group.images]


def overview(bucket: Bucket, known: Overview | None = None) -> Overview | None:
    """What is in the bucket: two HEADs, one LIST for the times of verification, and two GETs where something has changed
    since ``known``; None = no manifest yet.

    Raises:
        MetadataError: The manifest cannot be read, or is larger than any of ours.
        DestinationError: S3 cannot be asked.
    """
    etags = _etags(bucket)
    if etags is None:
        return None
    folder = f"{MIRROR}verified/"
    listed = islice(bucket.list(folder), _MOST_GROUPS)
    times = {e.path.removeprefix(folder).partition(".")[0]: e.last_modified for e in listed}
    last = max(times.values(), default=None)
    if known is not None and known.etags == etags:
        return replace(known, last_verified=last, group_verified=times)
    try:
        with _fetched(bucket, etags) as (here, index, etags, trouble):
            tally = overview_tables.count(here, index)
    except FileNotFoundError:
        return None
    groups = _names({group for group, *_ in tally.rows}, OTHERS)
    splits = _names({split for _, split, *_ in tally.rows}, NOT_GIVEN, ("train", "validate", "test"))
    of = {(group or OTHERS, split or NOT_GIVEN): numbers for group, split, *numbers in tally.rows}

    def part(name: str, among: Iterable[tuple[str, str]]) -> Part:
        found = [of[key] for key in among if key in of]
        return Part(name, *(sum(numbers[n] for numbers in found) for n in range(3)))

    return Overview(
        dataset=tally.dataset,
        has_images=tally.images,
        whole=part("", of),
        groups=[part(group, ((group, split) for split in splits)) for group in groups],
        splits=[part(split, ((group, split) for group in groups)) for split in splits],
        cells={group: [part(split, [(group, split)]) for split in splits] for group in groups},
        last_verified=last,
        group_verified=times,
        etags=etags,
        trouble=trouble or _index_trouble(tally.trouble),
    )


def _names(found: set[str | None], otherwise: str, first: Sequence[str] = ()) -> list[str]:
    """Names in order: ``first``, then others, then what stands for None."""
    named = sorted(name for name in found if name is not None and name not in (*first, otherwise))
    return [name for name in first if name in found] + named + [otherwise] * bool({None, otherwise} & found)


# -- a selection -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preview:
    """What a run would select, and what it would take.

    Attributes:
        counts: Who is in it; ``verified`` are in the bucket already.
        matched: Images that the filters leave, before the sample.
        estimate: What it would take, by the way that is expected.
        ways: What it would take by each way that may be open.
        notes: Sentences of the selection.
    """

    counts: Counts
    matched: int
    estimate: Estimate
    ways: Sequence[Estimate]
    notes: Sequence[str]

    @property
    def selected(self) -> int:
        """Images that it would select."""
        return self.counts.images

    @property
    def verified(self) -> int:
        """Those of them that are in the bucket and verified."""
        return self.counts.verified

    @property
    def views(self) -> list[tuple[str, int]]:
        """(view, images), the most frequent first."""
        return [(value.name or NOT_GIVEN, value.images) for value in self.counts.views]

    @property
    def splits(self) -> list[tuple[str, int]]:
        """(split, images), the most frequent first."""
        return [(value.name or NOT_GIVEN, value.images) for value in self.counts.splits]

    @property
    def positive(self) -> list[tuple[str, int]]:
        """(label, images whose study has it positive), the most frequent first."""
        return sorted(((label.name, label.positive) for label in self.counts.labels), key=lambda pair: -pair[1])


def taken(catalog: Catalog, selection: Selection, studies: Mapping[str, Collection[int]] = MappingProxyType({})) -> int:
    """Verified images that the selection takes; 0 = a filter matches none of them.

    Args:
        catalog: What there is.
        selection: What is asked for.
        studies: As `choose` takes them.
    """
    try:
        return len(choose(catalog.frame[catalog.verified], selection, studies).frame)
    except InputError:
        return 0


class Circumstances(TypedDict, total=False):
    """What an estimate rests on beside the request.

    Attributes:
        mode: The way that is expected, by default the website; a run finds out by trying.
        streams: Shards streamed at once.
        region: Of the bucket, for the prices.
        in_aws: Whether that is Amazon's, by default true.
        reports: Of earlier runs, newest first, for the speed.
    """

    mode: Mode
    streams: Required[int]
    region: str | None
    in_aws: bool
    reports: Sequence[RunReport]


def by_each_way(
    estimate: Callable[..., Estimate],
    mode: Mode = "download",
    region: str | None = None,
    in_aws: bool = True,
    **more: Any,
) -> tuple[Estimate, list[Estimate]]:
    """The estimate by the way that is expected, and those by all that may be open.

    ``estimate`` is `estimate_run`, with all its arguments but the `Circumstances`, which follow. No copy crosses Regions:
    where one would have to, it is through the worker.
    """
    modes: list[Mode] = ["download", "copy", "through"]
    if in_aws and region not in (None, DEFAULT_REGION):
        modes.remove("copy")
        mode = "through" if mode == "copy" else mode
    ways = {each: estimate(mode=each, region=region, in_aws=in_aws, **more) for each in modes}
    return ways[mode], list(ways.values())


def preview(
    catalog: Catalog,
    request: Request,
    *,
    studies: Mapping[str, Collection[int]] = MappingProxyType({}),
    **given: Unpack[Circumstances],
) -> Preview:
    """Choose as a run would, and count. A ``file_list`` is not read.

    Args:
        catalog: Of the request's bucket.
        request: What would be asked for.
        studies: As `choose` takes them.
        **given: What the estimate rests on.

    Raises:
        InputError: A filter that matches nothing; the message names it.
    """
    chosen = choose(catalog.frame, request.selection, studies)
    verified = catalog.verified[chosen.frame.index.to_numpy()]
    counts = count(chosen.frame, verified, manifest.label_columns(chosen.frame.columns))
    mean_bytes, missing = catalog.mean_bytes or request.dataset.image_bytes, counts.images - counts.verified
    estimate = partial(estimate_run, request, counts.images, missing, mean_bytes)
    return Preview(counts, chosen.matched, *by_each_way(estimate, **given), chosen.notes)
