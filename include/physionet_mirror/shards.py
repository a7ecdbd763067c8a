"""Cuts a selection into shards, and reads and writes the files that list a shard's images."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import InputError, MetadataError
from physionet_mirror.files import File
from physionet_mirror.records import Shard
from physionet_mirror.request import SHARD_SIZE

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd

    from physionet_mirror.s3.bucket import Bucket

BYTES_PER_SECOND = 650_000
"""Speed of one PhysioNet connection on a good day (source: users' reports of 0.6 to 0.7 MB/s)."""

SHARD_SECONDS = 300
"""Target duration of a shard: short enough to retry, long enough for Airflow's overhead to be negligible."""

USUAL_SHARDS = 400
"""Most shards that the plan makes by choice: each costs Airflow about a second, and more as there are more
(docs/performance.md)."""

USUAL_FAST_SHARDS = 60
"""The same from the access point, where the whole dataset takes minutes to two hours. A shard that is tried again asks for
what is missing only, and its progress is published every few seconds, so larger shards lose nothing."""

MOST_SHARDS = 1_000
"""Airflow maps a task at most 1,024 times, unless its setting ``[core] max_map_length`` says otherwise."""

LARGEST_SHARD = SHARD_SIZE[1]
"""Most images in a shard."""

HANDFUL = 5
"""With fewer images per stream than this, a shard for each stream is not worth it."""

KEYS_PER_LIST = 1_000

# --- cutting ----------------------------------------------------------------------------------------------------------


def size_for(
    images: int,
    streams: int,
    connections: int,
    expected_missing: int | None = None,
    image_bytes: float = MIMIC_CXR_JPG.image_bytes,
    bytes_per_second: float = BYTES_PER_SECOND,
    most: int = MOST_SHARDS,
    usual: int = USUAL_SHARDS,
) -> int:
    """Images per shard, chosen so that a shard is a few minutes of work.

    The work is fetching the images that are expected to be missing, with a stream's share of the connections. The number
    of shards stays between ``streams`` (unless there are only a handful of images) and ``usual``; a shard holds at most
    10,000 images, unless that would make more than ``most`` shards.

    Args:
        images: Images selected.
        streams: Shards streamed at once.
        connections: PhysioNet connections of all streams together.
        expected_missing: Images not in the cache of verified ones; None = all.
        image_bytes: Mean size of an image.
        bytes_per_second: Speed of one connection.
        most: Most shards.
        usual: Most shards unless they would be too large.
    """
    if images <= 0:
        return 1
    streams = max(streams, 1)
    missing = images if expected_missing is None else min(max(expected_missing, 0), images)
    a_second = bytes_per_second * max(connections / streams, 1) / image_bytes
    count = math.ceil(missing / (a_second * SHARD_SECONDS))
    usual = min(usual, most)
    count = min(count, usual)
    count = max(count, math.ceil(images / LARGEST_SHARD), min(streams, images // HANDFUL), 1)
    count = min(count, most)
    # Rounding down gives at least `count` shards; rounding up stays within the limits where they bind.
    down = max(images // count, 1)
    return down if math.ceil(images / down) <= max(count, usual) else math.ceil(images / count)


def check_size(images: int, size: int, most: int = MOST_SHARDS, noun: str = "image") -> None:
    """Reject a chosen shard size that is out of range or makes more shards than Airflow can map.

    Raises:
        InputError: It is below 1 or above 10,000 images, or makes more than ``most`` shards.
    """
    if not 1 <= size <= LARGEST_SHARD:
        raise InputError(
            f"shard_size: {size:,} is not from 1 to {LARGEST_SHARD:,}. Leave it empty to let the plan choose."
        )
    if (count := math.ceil(images / size)) > most:
        least = math.ceil(images / most)
        raise InputError(
            f"shard_size: {size:,} cuts {images:,} {noun}s into {count:,} shards, and this Airflow maps at most {most:,} "
            f"(its setting [core] max_map_length, and never more than {MOST_SHARDS:,}). Nothing was done; "
            + (f"give at least {least:,}, or leave it empty" if least <= LARGEST_SHARD else "leave it empty")
            + " to let the plan choose."
        )


def cut(images: int, size: int) -> list[slice]:
    """Contiguous slices of nearly equal length, none longer than ``size``, that cover ``images`` rows in order."""
    count = math.ceil(images / size)
    return [slice_of(images, index, count) for index in range(count)]


def cut_by_bytes(
    sizes: Sequence[int],
    streams: int,
    connections: int,
    bytes_per_second: float = BYTES_PER_SECOND,
    most: int = MOST_SHARDS,
    usual: int = USUAL_SHARDS,
) -> list[slice] | None:
    """Contiguous slices of some minutes of work each, however differently large the files are; a huge one is alone.

    Args:
        sizes: Bytes of each file that is to be fetched, in order; 0 of one that is there.
        streams: Shards that are streamed at once.
        connections: PhysioNet connections of all streams together.
        bytes_per_second: What one connection carries.
        most: Shards at most.
        usual: As in `size_for`.

    Returns:
        None where that would be more than ``most`` shards.
    """
    streams = max(streams, 1)
    work = bytes_per_second * max(connections / streams, 1) * SHARD_SECONDS
    parts = max(math.ceil(sum(sizes) / work), min(streams, len(sizes) // HANDFUL), 1)
    budget = max(sum(sizes) / min(parts, usual, most), 1)
    starts, held = [0], 0
    for at, size in enumerate(sizes):
        if at > starts[-1] and (held + size > budget * 1.1 or at - starts[-1] >= LARGEST_SHARD):
            starts.append(at)
            held = 0
        held += size
    return [slice(*ends) for ends in pairwise([*starts, len(sizes)])] if len(starts) <= most else None


def slice_of(images: int, index: int, slices: int) -> slice:
    """Part ``index`` (0-based) of ``images`` rows in ``slices`` contiguous parts whose lengths differ by at most one.

    Raises:
        InputError: There is no such part.
    """
    if slices < 1 or not 0 <= index < slices:
        raise InputError(f"There is no slice {index} of {slices}; slices must be at least 1, and the index below it.")
    return slice(images * index // slices, images * (index + 1) // slices)


def slice_of_day(day: datetime, first_day: datetime, slices: int) -> int:
    """The slice (0-based) that a day owns, in rotation, so that any ``slices`` consecutive days own all slices."""
    return (day - first_day).days % slices


def pack(
    frame: pd.DataFrame,
    size: int,
    path_of: Callable[[int], str],
    sizes: Mapping[str, int] | None = None,
    noun: str = "image",
    parts: Sequence[slice] | None = None,
) -> Iterator[tuple[Shard, bytes]]:
    """Cut the chosen rows of the manifest into shards; yields each shard with the bytes of its file.

    Args:
        frame: ``Chosen.frame``: rows of the manifest in its order, indexed by their row number there.
        size: Most images in a shard.
        path_of: The path of a shard's file, given its index (``RunLayout.shard``).
        sizes: Size in bytes by path, for files whose size the source has listed.
        noun: What the files are called in messages.
        parts: The slices to cut (`cut_by_bytes`); None = by ``size``.
    """
    paths = frame["path"].to_numpy(dtype=object)
    sums = frame["sha256"].to_numpy(dtype=object)
    rows = frame.index.to_numpy()
    for index, part in enumerate(parts or cut(len(frame), size)):
        first, last = part.start, part.stop - 1
        data = _lines(map(File, paths[part], sums[part], map((sizes or {}).get, paths[part])))
        shard = Shard(
            index=index,
            images=part.stop - part.start,
            first=paths[first],
            last=paths[last],
            path=path_of(index),
            span=int(rows[last] - rows[first]) + 1,
            sha256=hashlib.sha256(data).hexdigest(),
            noun=noun,
        )
        yield shard, data


# --- shard files ------------------------------------------------------------------------------------------------------


def encode(images: Iterable[File]) -> bytes:
    """A list of images: ``<sha256> <path>`` lines as in SHA256SUMS.txt, or ``<sha256>:<bytes> <path>`` if the size is known."""
    return _lines(images)


def seal(images: Iterable[File]) -> bytes:
    """A list with its own check: a comment line above it holds the number of lines and their SHA-256."""
    lines = encode(images)
    count, digest = lines.count(b"\n"), hashlib.sha256(lines).hexdigest()
    return f"# {count} files; SHA-256 of the lines below: {digest}\n".encode() + lines


def _lines(files: Iterable[File]) -> bytes:
    return "".join(
        [
            f"{file.sha256} {file.path}\n" if file.bytes is None else f"{file.sha256}:{file.bytes} {file.path}\n"
            for file in files
        ]
    ).encode()


_LINE = re.compile(r"([0-9a-f]{64})(?::([0-9]{1,18}))? ([^\n]+)")
_SEAL = re.compile(rb"# (\d+) files; SHA-256 of the lines below: ([0-9a-f]{64})\n")


def decode(data: bytes, *, sealed: bool = False) -> list[File]:
    """The images of a list that `encode` or `seal` wrote.

    Args:
        data: The list.
        sealed: Accept only a sealed list. Earlier versions did not seal any.

    Raises:
        MetadataError: The list is damaged.
    """
    if seal := _SEAL.match(data):
        data = data[seal.end() :]
        count = data.count(b"\n")
        if count != int(seal[1]) or hashlib.sha256(data).hexdigest() != seal[2].decode():
            raise _damaged(f"its {count:,} lines are not the {int(seal[1]):,} lines that were written")
    elif sealed:
        raise _damaged("its first line, which holds the checksum of the others, is missing")
    images = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n")[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise _damaged(f"line {number:,} is not a checksum and a path")
        images.append(File(match[3], match[1], int(match[2]) if match[2] else None))
    if data and not data.endswith(b"\n"):
        raise _damaged("it ends in the middle of a line")
    return images


def read(bucket: Bucket, shard: Shard) -> list[File]:
    """The images of a shard, exactly as they were planned.

    Raises:
        MetadataError: Its list is missing, or is not the one that the plan wrote.
    """
    try:
        data = bucket.read(shard.path)
    except FileNotFoundError:
        raise _damaged(f"{bucket.uri(shard.path)} is not there") from None
    images = decode(data)
    if len(images) != shard.images or not images:
        raise _damaged(f"{bucket.uri(shard.path)} lists {len(images):,} files, and {shard.images:,} were planned")
    planned = shard.sha256 or hashlib.sha256(data).hexdigest()
    if (images[0].path, images[-1].path) != (shard.first, shard.last) or hashlib.sha256(data).hexdigest() != planned:
        raise _damaged(f"{bucket.uri(shard.path)} does not list the files that were planned")
    return images


def _damaged(fault: str) -> MetadataError:
    return MetadataError(
        f"The shard file is damaged: {fault}. No file is affected; trigger a new run, which plans it again."
    )
