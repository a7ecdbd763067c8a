"""How a selection is cut into shards, and what of a shard is not in the bucket yet."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from include.physionet_mirror.dataset import MIMIC_CXR_JPG
from include.physionet_mirror.errors import InputError, MetadataError
from include.physionet_mirror.request import SHARD_SIZE

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd

    from include.physionet_mirror.destination import Bucket, Listed, Stored

BYTES_PER_SECOND = 650_000
"""What PhysioNet gives one connection on a good day (source: users' reports of 0.6 to 0.7 MB/s)."""

SHARD_SECONDS = 300
"""A shard's work when there is little of it: short enough to retry, long enough that Airflow's share does not count."""

USUAL_SHARDS = 400
"""As many as the plan makes by itself: each costs Airflow about a second, more the more there are (docs/performance.md)."""

MOST_SHARDS = 1_000
"""Airflow maps a task at most 1,024 times, unless its setting ``[core] max_map_length`` says otherwise."""

LARGEST_SHARD = SHARD_SIZE[1]
"""Images."""

HANDFUL = 5
"""Fewer images a stream than this are not worth a shard of their own."""

KEYS_PER_LIST = 1_000
HEADS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its path below the prefix, and the SHA-256 (hex) that PhysioNet publishes for it."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Shard:
    """A contiguous part of the selection, in byte order of path; small enough for XCom.

    Attributes:
        index: 0, 1, 2, …
        images: How many.
        first: Path of the first image.
        last: Path of the last image.
        path: Where its list of images lies below the prefix (see ``encode``).
        span: How many images the whole dataset has from first to last: what a LIST of the range costs in a full bucket.
    """

    index: int
    images: int
    first: str
    last: str
    path: str
    span: int

    @property
    def name(self) -> str:
        """For people: ``p10 … p11, 500 images``; within one group by subject, ``p10000032 … p10046166, 943 images``."""
        return f"{_range_name(self.first, self.last)}, {self.images:,} image{'' if self.images == 1 else 's'}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for XCom and plan.json; ``name`` comes along for whoever reads them."""
        return {**asdict(self), "name": self.name}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Shard:
        return cls(**{name: values[name] for name in ("index", "images", "first", "last", "path", "span")})


def _range_name(first: str, last: str) -> str:
    ours, theirs = first.split("/"), last.split("/")
    for depth in (1, 2):  # files/<group>/<patient>/…: the first that tells the ends apart
        if depth < min(len(ours), len(theirs)) - 1 and ours[depth] != theirs[depth]:
            return f"{ours[depth]} … {theirs[depth]}"
    if len(ours) > 3:
        return ours[2]  # one patient
    return ours[-1] if first == last else f"{ours[-1]} … {theirs[-1]}"


# --- cutting ----------------------------------------------------------------------------------------------------------


def size_for(
    images: int,
    streams: int,
    connections: int,
    expected_missing: int | None = None,
    image_bytes: float = MIMIC_CXR_JPG.image_bytes,
    bytes_per_second: float = BYTES_PER_SECOND,
    most: int = MOST_SHARDS,
) -> int:
    """Images a shard, such that a shard is a few minutes of work.

    The work is that of the images that are expected to be missing, at a stream's share of the connections. The number
    of shards stays between ``streams`` (unless there are only a handful of images) and 400; a shard holds at most
    10,000 images, unless that would make more than ``most`` shards.

    Args:
        images: Images selected.
        streams: Shards that are streamed at once.
        connections: PhysioNet connections of all streams together.
        expected_missing: Images not remembered as verified; None = all.
        image_bytes: Mean size of an image.
        bytes_per_second: What one connection carries.
        most: Shards at most.
    """
    if images <= 0:
        return 1
    streams = max(streams, 1)
    missing = images if expected_missing is None else min(max(expected_missing, 0), images)
    a_second = bytes_per_second * max(connections / streams, 1) / image_bytes
    count = math.ceil(missing / (a_second * SHARD_SECONDS))
    usual = min(USUAL_SHARDS, most)
    count = min(count, usual)
    count = max(count, math.ceil(images / LARGEST_SHARD), min(streams, images // HANDFUL), 1)
    count = min(count, most)
    # Rounding down keeps at least `count` shards; rounding up keeps to the limits where they bind.
    down = max(images // count, 1)
    return down if math.ceil(images / down) <= max(count, usual) else math.ceil(images / count)


def check_size(images: int, size: int, most: int = MOST_SHARDS) -> None:
    """Refuse a shard size that a person chose and Airflow cannot map.

    Raises:
        InputError: Less than 1, more than 10,000 images, or more than ``most`` shards.
    """
    if not 1 <= size <= LARGEST_SHARD:
        raise InputError(
            f"shard_size: {size:,} is not from 1 to {LARGEST_SHARD:,}. Leave it empty to let the plan choose."
        )
    if (count := math.ceil(images / size)) > most:
        least = math.ceil(images / most)
        raise InputError(
            f"shard_size: {size:,} cuts {images:,} images into {count:,} shards, and this Airflow maps at most {most:,} "
            f"(its setting [core] max_map_length, and never more than {MOST_SHARDS:,}). Nothing was done; "
            + (f"give at least {least:,}, or leave it empty" if least <= LARGEST_SHARD else "leave it empty")
            + " to let the plan choose."
        )


def cut(images: int, size: int) -> list[slice]:
    """Contiguous slices of nearly equal length, none longer than ``size``, that cover ``images`` rows in order."""
    count = math.ceil(images / size)
    return [slice_of(images, index, count) for index in range(count)]


def slice_of(images: int, index: int, slices: int) -> slice:
    """Part ``index`` (0-based) of ``images`` rows in ``slices`` contiguous parts whose lengths differ by at most one.

    Raises:
        InputError: There is no such part.
    """
    if slices < 1 or not 0 <= index < slices:
        raise InputError(f"There is no slice {index} of {slices}; slices must be at least 1, and the index below it.")
    return slice(images * index // slices, images * (index + 1) // slices)


def slice_of_day(day: datetime, first_day: datetime, slices: int) -> int:
    """The slice (0-based) that a day owns: around and around, so that any ``slices`` consecutive days own all."""
    return (day - first_day).days % slices


def pack(frame: pd.DataFrame, size: int, path_of: Callable[[int], str]) -> Iterator[tuple[Shard, bytes]]:
    """Cut the chosen rows of the manifest into shards, each with the bytes of its file.

    Args:
        frame: ``Chosen.frame``: rows of the manifest in its order, the index being the row's number there.
        size: Images a shard, at most.
        path_of: Where the shard of an index goes (``RunLayout.shard``).
    """
    paths = frame["path"].to_numpy(dtype=object)
    sums = frame["sha256"].to_numpy(dtype=object)
    rows = frame.index.to_numpy()
    for index, part in enumerate(cut(len(frame), size)):
        first, last = part.start, part.stop - 1
        shard = Shard(
            index=index,
            images=part.stop - part.start,
            first=paths[first],
            last=paths[last],
            path=path_of(index),
            span=int(rows[last] - rows[first]) + 1,
        )
        yield shard, _lines(paths[part], sums[part])


# --- shard files ------------------------------------------------------------------------------------------------------


def encode(images: Iterable[Image]) -> bytes:
    """A shard file: ``<sha256> <path>`` lines, as SHA256SUMS.txt writes them."""
    return "".join([f"{image.sha256} {image.path}\n" for image in images]).encode()


def _lines(paths: Iterable[str], sums: Iterable[str]) -> bytes:
    return "".join([f"{digest} {path}\n" for path, digest in zip(paths, sums, strict=True)]).encode()


_LINE = re.compile(r"([0-9a-f]{64}) ([^\n]+)")


def decode(data: bytes) -> list[Image]:
    """The images of a shard file.

    Raises:
        MetadataError: The file is not what ``encode`` writes.
    """
    images = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n")[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise _damaged(f"line {number:,} is not a checksum and a path")
        images.append(Image(match[2], match[1]))
    if data and not data.endswith(b"\n"):
        raise _damaged("it ends in the middle of a line")
    return images


def _damaged(fault: str) -> MetadataError:
    return MetadataError(
        f"The shard file is damaged: {fault}. No image is affected; trigger a new run, which plans it again."
    )


# --- what is missing --------------------------------------------------------------------------------------------------


class Memory(Protocol):
    """What is remembered of objects that were verified before (see ``verified``)."""

    def judge(self, path: str, size: int, etag: str, sha256: str) -> Literal["verified", "wrong", "unknown"]:
        """Whether the object that has this size and ETag was found to have this SHA-256."""
        ...


@dataclass(frozen=True)
class Missing:
    """What of a shard is to be streamed.

    Attributes:
        images: Absent or wrong, in the shard's order.
        present: Images that need nothing.
        absent: Images that are not there.
        wrong: Images that are there with other bytes, or none; they are streamed again.
        unproven: Of those present, the ones for which S3 holds no SHA-256; verification reads them.
        proven: Objects whose SHA-256 was asked for and is right, for the memory.
        lists: LIST requests made.
        heads: HEAD requests made.
    """

    images: list[Image]
    present: int = 0
    absent: int = 0
    wrong: int = 0
    unproven: int = 0
    proven: list[Stored] = field(default_factory=list)
    lists: int = 0
    heads: int = 0


def missing(images: Sequence[Image], bucket: Bucket, memory: Memory | None, *, span: int | None = None) -> Missing:
    """Compare a shard with the bucket.

    One LIST per 1,000 keys of the shard's range; only a sample so sparse that HEADs are fewer is asked for image by
    image. What is listed and remembered needs nothing more; what is listed and unknown is asked for its SHA-256.

    Args:
        images: The shard's images, in byte order of path.
        bucket: The destination.
        memory: What was verified before; None = presence (a size above zero) is all that is asked, as ``verify=count``
            does.
        span: ``Shard.span``; None = the images are all that the range can hold.

    Raises:
        DestinationError: The bucket cannot be asked.
    """
    if not images:
        return Missing([])
    if len(images) < math.ceil((span or len(images)) / KEYS_PER_LIST):
        return _by_head(images, {}, bucket, memory, lists=0)
    wanted = {image.path: image for image in images}
    first, last = images[0].path, images[-1].path
    under = _folder(first, last)
    listed: dict[str, Listed] = {}
    seen = 0
    # S3 starts *after* a key: the first path without its last character is the nearest one that is surely before it.
    for entry in bucket.list(under, start_after=first[:-1] or None, last=last):
        seen += 1
        if entry.path in wanted:
            listed[entry.path] = entry
    return _by_head(images, listed, bucket, memory, lists=max(1, math.ceil(seen / KEYS_PER_LIST)))


def _by_head(
    images: Sequence[Image], listed: Mapping[str, Listed], bucket: Bucket, memory: Memory | None, *, lists: int
) -> Missing:
    """Judge each image by what was listed (``lists`` > 0) and remembered, and by HEAD where that does not say."""
    state: dict[str, str] = {}
    to_ask: list[Image] = []
    for image in images:
        entry = listed.get(image.path)
        if entry is None:
            if lists:
                state[image.path] = "absent"
            else:
                to_ask.append(image)
        elif entry.size == 0:
            state[image.path] = "wrong"
        elif memory is None:
            state[image.path] = "present"
        else:
            verdict = memory.judge(entry.path, entry.size, entry.etag, image.sha256)
            if verdict == "unknown":
                to_ask.append(image)
            else:
                state[image.path] = "present" if verdict == "verified" else "wrong"
    proven: list[Stored] = []
    if to_ask:
        with ThreadPoolExecutor(min(HEADS_AT_ONCE, len(to_ask)), thread_name_prefix="head") as pool:
            for image, stored in zip(to_ask, pool.map(lambda i: bucket.head(i.path), to_ask), strict=True):
                if stored is None:
                    state[image.path] = "absent"
                elif stored.size == 0:
                    state[image.path] = "wrong"
                elif memory is None:
                    state[image.path] = "present"
                elif stored.sha256 is None:
                    state[image.path] = "unproven"
                elif stored.sha256 == image.sha256:
                    state[image.path] = "present"
                    proven.append(stored)
                else:
                    state[image.path] = "wrong"
    counts = {
        kind: sum(value == kind for value in state.values()) for kind in ("present", "absent", "wrong", "unproven")
    }
    return Missing(
        images=[image for image in images if state[image.path] in ("absent", "wrong")],
        present=counts["present"] + counts["unproven"],
        absent=counts["absent"],
        wrong=counts["wrong"],
        unproven=counts["unproven"],
        proven=proven,
        lists=lists,
        heads=len(to_ask),
    )


def _folder(first: str, last: str) -> str:
    """The deepest folder (with its slash) that holds both; a LIST below it need not walk the rest of the bucket."""
    common = 0
    for mine, other in zip(first, last, strict=False):
        if mine != other:
            break
        common += 1
    return first[: first.rfind("/", 0, common) + 1]
