"""Compare the bucket with the manifest: is every selected image there, and is it the one that PhysioNet publishes?

Three levels, each including the one before:

    count      the key is listed with a size above zero
    checksum   and the SHA-256 that S3 holds equals PhysioNet's
    content    and the bytes read back hash to it

What was verified before and is unchanged in size and ETag is not asked for again (see ``verified.py``), so a second
look at the whole dataset is one LIST per 1,000 keys. What is found is remembered every few thousand objects: a
verification that is killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from posixpath import commonpath, dirname
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from include.physionet_mirror.errors import DestinationError, DestinationUnavailable, InputError, VerificationFailed
from include.physionet_mirror.prices import request_cost
from include.physionet_mirror.request import LEVELS, Level
from include.physionet_mirror.verified import Memory, groups_of

if TYPE_CHECKING:
    from include.physionet_mirror.destination import Bucket, Listed, Stored

log = logging.getLogger(__name__)

WORKERS = 32
"""Requests in flight: at S3's 25 ms they are up to 1,280 HEADs a second, about what one Python process can sign and parse."""

_PAGE = 1000  # keys that one LIST returns
_SPARSE = 12  # wanted keys a page below which a LIST costs more than their HEADs (12.5 x the price)
_BLOCK = 20_000  # images looked at together; bounds what is held of memory files and listings
_READS = 3  # attempts to read one object
_SAVE_EVERY = 5_000  # entries that a killed verification may have to ask for again

T = TypeVar("T")
R = TypeVar("R")


class Expected(Protocol):
    """An image as the manifest describes it; ``shards.Image`` is one."""

    @property
    def path(self) -> str: ...
    @property
    def sha256(self) -> str: ...


class Verified(NamedTuple):
    """An image that is there and right. ``size`` in bytes, ``sha256`` in hex."""

    path: str
    size: int
    etag: str
    sha256: str


class Problem(NamedTuple):
    """An image that is not. ``reason`` is ``missing``, ``empty`` or ``wrong bytes``; ``detail`` a sentence or empty."""

    path: str
    reason: str
    detail: str = ""


@dataclass
class Verdict:
    """What a verification found.

    Attributes:
        level: ``count``, ``checksum`` or ``content``.
        ok: The images that are there and right at this level, in byte order of path.
        problems: The others, in byte order of path.
        postponed: Images that the run left to a later one, because its time was up; neither right nor wrong.
        remembered: How many of ``ok`` were known from an earlier verification and not asked for again.
        read_back: Objects whose bytes were read: all of them for ``content``; for ``checksum`` only those that S3
            holds no SHA-256 of.
        rewritten: Of these, how many were given their SHA-256 by an in-place copy.
        seconds: Duration.
        requests: S3 requests made, by kind (LIST, HEAD, GET, PUT, COPY).
        notes: Sentences for the report on what could not be done.
    """

    level: Level
    ok: list[Verified] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    postponed: list[str] = field(default_factory=list)
    remembered: int = 0
    read_back: int = 0
    rewritten: int = 0
    seconds: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def selected(self) -> int:
        """Images that should be there."""
        return len(self.ok) + len(self.problems)

    @property
    def present(self) -> int:
        """Selected images that are in the bucket, right or not."""
        return self.selected - self.missing

    @property
    def verified(self) -> int:
        """Selected images that are there and right."""
        return len(self.ok)

    @property
    def missing(self) -> int:
        """Selected images that are not in the bucket."""
        return sum(p.reason == "missing" for p in self.problems)

    @property
    def empty(self) -> int:
        """Selected images that are objects of zero bytes."""
        return sum(p.reason == "empty" for p in self.problems)

    @property
    def wrong(self) -> int:
        """Selected images whose object does not hash to PhysioNet's checksum; empty ones not counted."""
        return len(self.problems) - self.missing - self.empty

    @property
    def bytes(self) -> int:
        """Size of the verified images together."""
        return sum(image.size for image in self.ok)

    @property
    def passed(self) -> bool:
        """Whether every selected image is there and right."""
        return not self.problems

    @property
    def cost(self) -> float:
        """Price of the requests in US dollars."""
        return request_cost(self.requests)

    def postpone(self, paths: Collection[str]) -> None:
        """Count images of ``paths`` that are missing as left to a later run."""
        self.postponed = [p.path for p in self.problems if p.reason == "missing" and p.path in paths]
        if self.postponed:
            later = set(self.postponed)
            self.problems = [p for p in self.problems if p.path not in later]
            self.notes.append(
                f"To be continued: the time was up, and {len(later):,} images are left to the next run, which takes them along."
            )

    def raise_if_failed(self, report: str = "") -> None:
        """Raise `VerificationFailed` unless every selected image is there and right; ``report`` is its URI."""
        if self.passed:
            return
        raise VerificationFailed(
            f"{len(self.problems):,} of {self.selected:,} selected images are not in the bucket as PhysioNet publishes "
            f"them: {self.missing:,} missing, {self.wrong:,} wrong, {self.empty:,} empty. "
            f"The other {self.verified:,} are verified and stay. Trigger the same run again: it fetches only these. "
            + (f"Which and why: {report}" if report else "")
        )


def verify(
    images: Iterable[Expected],
    bucket: Bucket,
    level: Level = "checksum",
    *,
    since: datetime | None = None,
    workers: int = WORKERS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Compare these images with the bucket.

    What is found is remembered under ``_mirror/verified/``. An object without a SHA-256 of its own (put there by
    another tool) is read and hashed once, then given its checksum by a copy onto itself.

    Args:
        images: Any number, in any order.
        bucket: Where they should be.
        level: ``count``, ``checksum`` or ``content``.
        since: Believe only what was verified at this time or later. ``content`` believes nothing without it; the start
            of the run lets a second attempt of the same verification go on where the first one was killed.
        workers: Requests in flight.
        on_progress: Called now and then with (images looked at, images in all), from the calling thread.

    Raises:
        InputError: There is no such level.
        DestinationError: S3 cannot be asked; what was found until then is remembered.
    """
    if level not in LEVELS:
        raise InputError(f"verify must be one of {', '.join(LEVELS)}, not {level!r}. Nothing was done.")
    started = time.monotonic()
    before = Counter(bucket.requests)
    wanted = sorted(images, key=lambda image: image.path)
    verdict = Verdict(level)
    done = 0
    with _Pool(workers) as pool, _Pool(2, ahead=2) as ahead:
        # The next blocks are listed while this one's objects are asked for.
        blocks = (wanted[at : at + _BLOCK] for at in range(0, len(wanted), _BLOCK))
        for memory, found in ahead.map(lambda block: _survey(block, bucket, pool), blocks):
            look = _Look(bucket, memory, verdict, since)
            save_at = _SAVE_EVERY
            try:
                for image, outcome in look.at(found, pool):
                    if isinstance(outcome, Problem):
                        verdict.problems.append(outcome)
                    else:
                        verdict.ok.append(Verified(image.path, outcome[0], outcome[1], image.sha256))
                    done += 1
                    if on_progress and done % 1000 == 0:
                        on_progress(done, len(wanted))
                    if memory.unsaved >= save_at:
                        _save(memory, bucket, verdict)
                        save_at = memory.unsaved + _SAVE_EVERY
            finally:  # also when the task is told to stop: what was found is kept
                _save(memory, bucket, verdict)
    if on_progress:
        on_progress(done, len(wanted))
    verdict.seconds = time.monotonic() - started
    verdict.requests = dict(sorted((Counter(bucket.requests) - before).items()))
    return verdict


def _save(memory: Memory, bucket: Bucket, verdict: Verdict) -> None:
    """Keep the memory; where S3 does not let us, the answer is as good without it, only dearer the next time."""
    try:
        memory.save(bucket)
    except DestinationError as error:
        _note(verdict, f"What was verified could not be remembered; the next verification asks again. {error}")


def _note(verdict: Verdict, note: str) -> None:
    if note not in verdict.notes:
        verdict.notes.append(note)
        log.warning("%s", note)


# -- what is there ---------------------------------------------------------------------------------------------------


_Found = tuple[Expected, "Listed | Stored | None"]


def _survey(block: list[Expected], bucket: Bucket, pool: _Pool) -> tuple[Memory, list[_Found]]:
    return Memory.load(bucket, groups_of(image.path for image in block)), _list(block, bucket, pool)


def _list(images: list[Expected], bucket: Bucket, pool: _Pool) -> list[_Found]:
    """Walk the listing beside the wanted paths, page by page, leaping over stretches of which nothing is wanted.

    A full page with hardly a wanted key on it means that the wanted are a sparse sample of what is there; then the rest
    is cheaper, and faster, to ask one by one.
    """
    found: list[_Found] = []
    folder = commonpath([dirname(images[0].path), dirname(images[-1].path)])
    under = f"{folder}/" if folder else ""  # S3 does not need it; it spares a server that walks folders
    at = 0
    while at < len(images):
        began = at
        # "…/x.jp" sorts just before "…/x.jpg", and no dataset has a key between the two.
        page = bucket.list(under, start_after=images[at].path[:-1], last=images[-1].path)
        keys = 0
        for entry in islice(page, _PAGE):
            keys += 1
            while at < len(images) and images[at].path < entry.path:
                found.append((images[at], None))
                at += 1
            while at < len(images) and images[at].path == entry.path:
                found.append((images[at], entry))
                at += 1
        if keys < _PAGE:  # the listing ends here, so nothing of the rest is there
            found.extend((image, None) for image in images[at:])
            return found
        if at - began < _SPARSE:
            rest = images[at:]
            found.extend(zip(rest, pool.map(lambda image: bucket.head(image.path), rest), strict=True))
            return found
    return found


# -- is it right -----------------------------------------------------------------------------------------------------

_Outcome = Problem | tuple[int, str]  # or size and ETag of an object that is right


class _Look:
    """One block's images, looked at one by one with the knowledge of memory and listing."""

    def __init__(self, bucket: Bucket, memory: Memory, verdict: Verdict, since: datetime | None) -> None:
        self.bucket, self.memory, self.verdict, self.since = bucket, memory, verdict, since
        self.no_rewrite = False  # once it has failed, for the rest of this block
        self.lock = Lock()  # for the verdict's counts, which the workers add to

    def at(self, found: list[_Found], pool: _Pool) -> Iterator[tuple[Expected, _Outcome]]:
        """Each image with what is wrong with it, or its size and ETag; in the order given."""
        settled: dict[int, _Outcome] = {}
        open_: list[int] = []
        for number, (image, there) in enumerate(found):
            outcome = self._from_what_is_known(image, there)
            if outcome is None:
                open_.append(number)
            else:
                settled[number] = outcome
        asked = pool.map(lambda number: self._ask(*found[number]), open_)
        for number, (image, _) in enumerate(found):
            yield image, settled.pop(number) if number in settled else next(asked)

    def _from_what_is_known(self, image: Expected, there: Listed | Stored | None) -> _Outcome | None:
        """The outcome, where no request is needed for it."""
        if there is None:
            return Problem(image.path, "missing")
        if there.size == 0:
            return Problem(image.path, "empty", "an object of zero bytes")
        if self.verdict.level == "count":
            return there.size, there.etag
        if self.verdict.level == "content" and self.since is None:
            return None
        # An object remembered as wrong is asked for again: it may have been repaired with the same ETag.
        judgement = self.memory.judge(
            image.path, there.size, there.etag, image.sha256, level=self.verdict.level, since=self.since
        )
        if judgement == "verified":
            self.verdict.remembered += 1
            return there.size, there.etag
        return None

    def _ask(self, image: Expected, there: Listed | Stored | None) -> _Outcome:
        from include.physionet_mirror.destination import Stored

        assert there is not None  # what is missing was settled without asking
        if self.verdict.level == "content":
            return self._read_back(image, there.size, there.etag)
        stored = there if isinstance(there, Stored) else self.bucket.head(image.path)
        if stored is None:
            return Problem(image.path, "missing", "deleted while the verification ran")
        # Of an object that came in parts, some servers give a checksum of the parts' checksums without saying so.
        of_parts = stored.sha256 != image.sha256 and "-" in stored.etag
        if stored.sha256 is None or of_parts:
            return self._give_checksum(image, stored)
        return self._settle(image, stored.size, stored.etag, stored.sha256, "checksum")

    def _settle(self, image: Expected, size: int, etag: str, sha256: str, level: str) -> _Outcome:
        right = sha256 == image.sha256
        self.memory.record(image.path, size, etag, image.sha256, level=level if right else "wrong")
        if right:
            return size, etag
        whose = "the bytes read back hash to" if level == "content" else "S3 holds the SHA-256"
        return Problem(image.path, "wrong bytes", f"{whose} {sha256}, PhysioNet publishes {image.sha256}")

    def _read_back(self, image: Expected, size: int, etag: str) -> _Outcome:
        for attempts_left in reversed(range(_READS)):
            digest = hashlib.sha256()
            try:
                for chunk in self.bucket.open_read(image.path):
                    digest.update(chunk)
                break
            except FileNotFoundError:
                return Problem(image.path, "missing", "deleted while the verification ran")
            except DestinationUnavailable:  # in mid-body, where the client does not try again by itself
                if not attempts_left:
                    raise
                time.sleep(random.uniform(0.5, 2))
        with self.lock:
            self.verdict.read_back += 1
        return self._settle(image, size, etag, digest.hexdigest(), "content")

    def _give_checksum(self, image: Expected, stored: Stored) -> _Outcome:
        outcome = self._read_back(image, stored.size, stored.etag)
        if isinstance(outcome, Problem):
            return outcome
        if self.no_rewrite:
            return outcome
        try:
            self.bucket.rewrite(stored)
            copied = self.bucket.head(image.path)
        except FileNotFoundError:
            copied = None
        except DestinationError as error:  # the bytes are right all the same
            self._stop_rewriting(f"Some objects could not be given a SHA-256 by a copy onto themselves. {error}")
            return outcome
        if copied is None:
            return Problem(image.path, "missing", "deleted while the verification ran")
        if copied.sha256 is None:
            self._stop_rewriting("This S3 server keeps no SHA-256 of a copy; such objects are read and hashed instead.")
            return self._settle(image, copied.size, copied.etag, image.sha256, "content")
        with self.lock:
            self.verdict.rewritten += 1
        return self._settle(image, copied.size, copied.etag, copied.sha256, "checksum")

    def _stop_rewriting(self, note: str) -> None:
        with self.lock:
            if not self.no_rewrite:
                self.no_rewrite = True
                _note(self.verdict, note)


# -- at once ---------------------------------------------------------------------------------------------------------


class _Pool:
    """The one place of concurrency: `map` with a bounded number of items under way, results in order."""

    def __init__(self, workers: int, *, ahead: int | None = None) -> None:
        self._window = ahead or 4 * workers
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="verify")

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        remaining = iter(items)
        waiting = deque(self._executor.submit(work, item) for item in islice(remaining, self._window))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(self._executor.submit(work, item) for item in islice(remaining, 1))
            yield result
