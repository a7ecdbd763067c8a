"""How large files are before they are fetched: each one's size where few are asked for, else what a sample says."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from physionet_mirror import words
from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import FileError

EACH = 500
"""Files up to which each one is asked for its size."""

SAMPLE = 64
"""Files asked for their size where there are more."""

GUESS = 1_000_000
"""Bytes of a file of which nothing at all is known."""

_WIDE = 2.0  # standard errors on either side: 95 % of such ranges hold the truth


class Site(Protocol):
    """PhysioNet's website."""

    def size(self, dataset: Dataset, path: str) -> int | None:
        """Bytes of a file; None where the server does not say."""
        ...

    def stated_size(self, dataset: Dataset) -> int | None:
        """Bytes of the whole version as PhysioNet states it, or None."""
        ...


@dataclass(frozen=True)
class Known:
    """What is known of the sizes of some files.

    Attributes:
        each: Bytes by path, of those whose size is known.
        mean: Of one whose size is not.
        error: Standard error of that mean; 0 = it is no sample's.
        stated: Bytes of the whole version as PhysioNet states it; None = it does not.
        basis: What all this rests on, for people; empty = the mean size is assumed.
    """

    each: Mapping[str, int] = field(default_factory=dict)
    mean: float = GUESS
    error: float = 0.0
    stated: int | None = None
    basis: str = ""

    def total(self, paths: Sequence[str]) -> tuple[int, int, int]:
        """Bytes of these files together: the best guess, the least and the most."""
        known = [self.each[path] for path in paths if path in self.each]
        others = len(paths) - len(known)
        if not others:
            return sum(known), sum(known), sum(known)
        least, most = (max(self.mean + side * _WIDE * self.error, 0) * others + sum(known) for side in (-1, 1))
        guess = sum(known) + self.mean * others
        if self.stated is not None:
            least, guess, most = (min(size, self.stated) for size in (least, guess, most))
        return round(guess), round(least), round(most)


def ask(site: Site, dataset: Dataset, paths: Sequence[str], *, connections: int, seed: int) -> Known:
    """Ask the website for the sizes of files that are to be fetched, and for that of the whole version.

    Args:
        site: The website.
        dataset: Whose files.
        paths: Their paths.
        connections: Requests at once.
        seed: Of the sample.

    Raises:
        SourceError: It does not answer. A file that it does not give is left to the transfer to name.
    """

    def size(path: str) -> int | None:
        try:
            return site.size(dataset, path)
        except FileError:
            return None

    asked = list(paths) if len(paths) <= EACH else random.Random(seed).sample(list(paths), SAMPLE)
    with ThreadPoolExecutor(max(connections, 1), thread_name_prefix="sizes") as pool:
        each = {path: found for path, found in zip(asked, pool.map(size, asked), strict=True) if found is not None}
    stated = site.stated_size(dataset)
    if len(each) == len(paths):
        return Known(each, stated=stated, basis="each file's size, as PhysioNet's website gives it")
    found = list(each.values())
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    basis = f"the mean of {len(found)} files asked for their size" if found else "no file's size is known"
    if stated is not None:
        basis += f"; PhysioNet states {words.size(stated)} for the whole project"
    return Known(each, statistics.fmean(found) if found else dataset.image_bytes or GUESS, error, stated, basis)
