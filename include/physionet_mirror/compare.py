"""The comparison of files with the bucket: which of them are there, and are they what PhysioNet publishes?

Three levels, each including the one before:

    count      the key is listed with a size above zero
    checksum   and the SHA-256 that S3 holds equals PhysioNet's
    content    and the bytes read back hash to it

`missing?`, `verify` and the audit all use this module. An object that was verified before and is unchanged in size and
ETag needs no request of its own (see ``verified_cache.py``), so comparing a whole dataset again takes one LIST per 1,000
keys. Where S3 holds no SHA-256 of an object (another tool stored it, or it was uploaded in parts), it is read back and
hashed once. Findings are saved to the cache every few thousand objects, so a comparison that is killed resumes where it
stopped. Nothing but that cache is changed.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from posixpath import commonpath, dirname
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from physionet_mirror.errors import DestinationError, DestinationUnavailable, InputError, ObjectArchived
from physionet_mirror.files import File
from physionet_mirror.records import Failure
from physionet_mirror.request import LEVELS, Level
from physionet_mirror.verified_cache import Memory, groups_of

if TYPE_CHECKING:
    from physionet_mirror.s3.bucket import Bucket, Listed, Stored

log = logging.getLogger(__name__)

WORKERS = 32
"""Requests in flight: at 25 ms each that is up to 1,280 HEADs a second, about what one Python process can sign and parse."""

_PAGE = 1000  # keys that one LIST returns
_SPARSE = 12  # with fewer wanted keys on a page, a LIST costs more than their HEADs (12.5 x the price)
_BLOCK = 20_000  # files compared together; bounds the memory held for cache files and listings
_FIRST_BLOCK = 2_000  # the first of them: its HEADs begin after two LISTs, and the next blocks are listed meanwhile
_READS = 3  # attempts to read one object
_SAVE_EVERY = 5_000  # entries between two saves: the most that a killed comparison asks for again
_SAVE_SECONDS = 60.0  # seconds between two saves, for when objects are read back
_UNORDERED = "--x-s3"  # suffix of S3 directory buckets, which list in no order and ignore StartAfter

T = TypeVar("T")
R = TypeVar("R")


class Verified(NamedTuple):
    """A file that is there and right. ``size`` in bytes, ``sha256`` in hex."""

    path: str
    size: int
    etag: str
    sha256: str


@dataclass
class Comparison:
    """What a comparison found.

    Attributes:
        level: ``count``, ``checksum`` or ``content``.
        ok: The files that are there and right at this level, in byte order of path.
        problems: The others, in byte order of path.
        remembered: How many of ``ok`` were in the cache and needed no request.
        read_back: Objects whose bytes were read: for ``content`` all that were not in the cache, for ``checksum`` those
            without a SHA-256 in S3 and those that the cache calls wrong.
        seconds: Duration.
        requests: S3 requests made, by kind (LIST, HEAD, GET, PUT).
        notes: Sentences for the report on what could not be done.
    """

    level: Level
    ok: list[Verified] = field(default_factory=list)
    problems: list[Failure] = field(default_factory=list)
    remembered: int = 0
    read_back: int = 0
    seconds: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


C = TypeVar("C", bound=Comparison)


def compare(
    files: Iterable[File],
    bucket: Bucket,
    into: C,
    *,
    run: str | None = None,
    anew: bool = False,
    span: int | None = None,
    workers: int = WORKERS,
    on_progress: Callable[[int, int], None] | None = None,
) -> C:
    """Compare these files with the bucket at the level of ``into``, and return ``into`` filled in.

    Args:
        files: Any number, in any order.
        bucket: Where they should be.
        into: An empty result; its level is the level of the comparison.
        run: The attempt at a run that compares (``verified_cache.attempt_of``). ``content`` reads back everything except
            what this same attempt has read back already, so that a killed task resumes where it stopped; without a run
            it reads back everything.
        anew: Ask S3 about every object even if the cache knows it, unless this same attempt has checked it. Always true
            for ``content``.
        span: Number of files in the dataset from the first to the last of these, if known (``Shard.span``).
        workers: Requests in flight.
        on_progress: Called now and then with (files compared, files in all), from the calling thread.

    Raises:
        InputError: There is no such level.
        DestinationError: S3 cannot be read; what was found until then is in the cache.
    """
    if into.level not in LEVELS:
        raise InputError(f"verify must be one of {', '.join(LEVELS)}, not {into.level!r}. Nothing was done.")
    started = saved = time.monotonic()
    before = Counter(bucket.requests)
    wanted = sorted(files, key=lambda file: file.path)
    done = 0
    with _Pool(workers) as pool, _Pool(2, ahead=2) as ahead, ThreadPoolExecutor(1) as saver:
        # The next blocks are listed, and what was found is saved, while this one's objects are asked for.
        starts = [0, *range(_FIRST_BLOCK, len(wanted), _BLOCK)] if wanted else []
        blocks = (wanted[at:to] for at, to in pairwise([*starts, len(wanted)]))
        for memory, found in ahead.map(lambda block: _survey(block, bucket, pool, span, into.level), blocks):
            look = _Look(bucket, memory, into, run, anew)
            saving: Future[None] | None = None
            try:
                for file, outcome in look.at(found, pool):
                    if isinstance(outcome, Failure):
                        into.problems.append(outcome)
                    else:
                        into.ok.append(Verified(file.path, *outcome, file.sha256))
                    done += 1
                    if on_progress and done % 1000 == 0:
                        on_progress(done, len(wanted))
                    due = memory.unsaved >= _SAVE_EVERY or (memory.unsaved and time.monotonic() > saved + _SAVE_SECONDS)
                    if due and (saving is None or saving.done()):
                        saving = saver.submit(_save, memory, bucket, into)
                        saved = time.monotonic()
            finally:  # also when the task is told to stop
                saver.submit(_save, memory, bucket, into).result()
    if on_progress:
        on_progress(done, len(wanted))
    into.seconds = time.monotonic() - started
    into.requests = dict(sorted((Counter(bucket.requests) - before).items()))
    return into


def _save(memory: Memory, bucket: Bucket, into: Comparison) -> None:
    """Save the cache. A failure is only noted: the result stands without it, and the next comparison costs more."""
    try:
        memory.save(bucket)
    except DestinationError as error:
        note = f"What was verified could not be remembered; the next comparison asks again. {error}"
        if note not in into.notes:
            into.notes.append(note)
            log.warning("%s", note)


# -- what is there ---------------------------------------------------------------------------------------------------


_Found = tuple[File, "Listed | Stored | None"]


def _survey(
    block: list[File], bucket: Bucket, pool: _Pool, span: int | None, level: Level
) -> tuple[Memory, list[_Found]]:
    memory = Memory() if level == "count" else Memory.load(bucket, groups_of(file.path for file in block))
    return memory, _find(block, bucket, pool, span)


def _find(files: list[File], bucket: Bucket, pool: _Pool, span: int | None) -> list[_Found]:
    """Each file with its object in the bucket, found by LIST or by HEAD, whichever costs less.

    If ``span`` is known, it decides beforehand: fewer files than pages are asked for by HEAD. If not, the listing itself
    shows how densely the files lie in it (see `_walk`).

    A file that is not in a listing counts as absent only if that listing is reliable. A few such files are confirmed by
    HEAD, which costs no more than a LIST. Of many, a sample is confirmed by HEAD, and a listing without StartAfter shows
    whether the store lists in byte order.
    """

    def head(file: File) -> Stored | None:
        return bucket.head(file.path)

    folder = commonpath([dirname(files[0].path), dirname(files[-1].path)])
    under = f"{folder}/" if folder else ""  # S3 does not need it; it saves work on a server that walks folders
    there: dict[str, Listed | Stored | None] = {}
    ask: Sequence[File] = files
    if span is None or len(files) >= math.ceil(span / _PAGE):
        in_order, until = False, len(files)
        if not bucket.name.endswith(_UNORDERED):
            in_order, until = _walk(files, bucket, under, there, sparse=_SPARSE if span is None else 0)
        absent = [file for file in files[:until] if file.path not in there]
        few = absent[:: len(absent) // _SPARSE + 1]
        if in_order and len(absent) > _SPARSE and any(pool.map(head, few)):
            in_order, until = False, len(files)
        if in_order and len(absent) <= _SPARSE:
            ask = absent + files[until:]
        elif _list(files, bucket, under, there, in_order=in_order):
            ask = files[until:]
        else:
            ask = [file for file in files if file.path not in there]
    there.update(zip([file.path for file in ask], pool.map(head, ask), strict=True))
    return [(file, there.get(file.path)) for file in files]


def _walk(
    files: list[File], bucket: Bucket, under: str, there: dict[str, Listed | Stored | None], *, sparse: int
) -> tuple[bool, int]:
    """Walk the listing and the wanted paths side by side, page by page, skipping stretches without wanted keys.

    A full page with fewer than ``sparse`` wanted keys means that the wanted files are a sparse sample of what is there;
    for the rest, HEADs are then cheaper and faster.

    Returns:
        Whether everything listed came in byte order, and how many of the files were looked for.
    """
    at, previous = 0, ""
    while at < len(files):
        began, keys = at, 0
        # "…/x.jp" sorts just before "…/x.jpg", and there is hardly ever a key between the two.
        previous = max(previous, files[at].path[:-1])
        for entry in islice(bucket.list(under, start_after=previous, last=files[-1].path), _PAGE):
            if entry.path <= previous:
                return False, len(files)
            keys, previous = keys + 1, entry.path
            while at < len(files) and files[at].path < entry.path:
                at += 1
            while at < len(files) and files[at].path == entry.path:
                there[entry.path] = entry
                at += 1
        if keys < _PAGE:  # the listing ends here, so all remaining files are absent
            return True, len(files)
        if at - began < sparse:
            return True, at
    return True, at


def _list(
    files: Sequence[File], bucket: Bucket, under: str, there: dict[str, Listed | Stored | None], *, in_order: bool
) -> bool:
    """Look for the files in a listing of the whole folder, whatever its order.

    A full first page in byte order proves a listing that came ``in_order`` reliable, and nothing more is read. If the
    store lists in another order, this reads on for as long as it costs less than the files' HEADs.

    Returns:
        Whether the files that were not found are absent.
    """
    listing = bucket.list(under)
    page = list(islice(listing, _PAGE))
    if in_order and len(page) == _PAGE and all(one.path < other.path for one, other in pairwise(page)):
        return True
    wanted = {file.path for file in files}
    keys = 0
    for entry in islice(chain(page, listing), most := (len(files) // _SPARSE + 1) * _PAGE):
        keys += 1
        if entry.path in wanted:
            there[entry.path] = entry
    return keys < most


# -- is it right -----------------------------------------------------------------------------------------------------

_Outcome = Failure | tuple[int, str]  # or size and ETag of an object that is right


class _Look:
    """Checks the files of one block, given the cache and the listing."""

    def __init__(self, bucket: Bucket, memory: Memory, into: Comparison, run: str | None, anew: bool) -> None:
        self.bucket, self.memory, self.into, self.run, self.anew = bucket, memory, into, run, anew
        self.lock = Lock()  # for the counts, which the workers add to

    def at(self, found: list[_Found], pool: _Pool) -> Iterator[tuple[File, _Outcome]]:
        """Each file with its failure, or its size and ETag; in the order given."""
        settled: dict[int, _Outcome] = {}
        open_: list[tuple[File, Listed | Stored, bool]] = []
        for number, (file, there) in enumerate(found):
            outcome = self._from_what_is_known(file, there)
            if isinstance(outcome, bool):
                assert there is not None  # a missing file is settled
                open_.append((file, there, outcome))
            else:
                settled[number] = outcome
        asked = pool.map(lambda item: self._ask(*item), open_)
        for number, (file, _) in enumerate(found):
            yield file, settled.pop(number) if number in settled else next(asked)

    def _from_what_is_known(self, file: File, there: Listed | Stored | None) -> _Outcome | bool:
        """The outcome if it takes no request; otherwise whether the bytes themselves must be read."""
        if there is None:
            return Failure(file.path, "missing")
        if there.size == 0:
            return Failure(file.path, "empty", "an object of zero bytes")
        if self.into.level == "count":
            return there.size, there.etag
        known = self.memory
        judgement = known.judge(file, there.size, there.etag, level=self.into.level, run=self.run, anew=self.anew)
        if judgement == "verified":
            self.into.remembered += 1
            return there.size, there.etag
        # An object that the cache calls wrong may have been repaired with the same ETag; only its bytes can tell.
        return self.into.level == "content" or judgement == "wrong"

    def _ask(self, file: File, there: Listed | Stored, read: bool) -> _Outcome:
        from physionet_mirror.s3.bucket import Stored

        if read:
            return self._read_back(file, there.size, there.etag)
        stored = there if isinstance(there, Stored) else self.bucket.head(file.path)
        if stored is None:
            return Failure(file.path, "missing", "deleted while the comparison ran")
        if stored.size == 0:
            return Failure(file.path, "empty", "an object of zero bytes")
        # For an object uploaded in parts, some servers return a checksum of the parts' checksums without saying so.
        of_parts = stored.sha256 != file.sha256 and "-" in stored.etag
        if stored.sha256 is None or of_parts:
            if self.memory.judge(file, stored.size, stored.etag) == "verified":
                return stored.size, stored.etag  # it was read before, and its ETag is unchanged
            return self._read_back(file, stored.size, stored.etag)
        return self._settle(file, stored.size, stored.etag, stored.sha256, "checksum")

    def _read_back(self, file: File, size: int, etag: str) -> _Outcome:
        for attempts_left in reversed(range(_READS)):
            try:
                digest = sha256_of(self.bucket, file.path)
                break
            except FileNotFoundError:
                return Failure(file.path, "missing", "deleted while the comparison ran")
            except ObjectArchived as error:  # it is there, but its content cannot be checked
                return Failure(file.path, error.reason, str(error))
            except DestinationUnavailable:  # in mid-body, where the client does not retry by itself
                if not attempts_left:
                    raise
                time.sleep(random.uniform(0.5, 2))
        with self.lock:
            self.into.read_back += 1
        return self._settle(file, size, etag, digest, "content")

    def _settle(self, file: File, size: int, etag: str, sha256: str, level: str) -> _Outcome:
        right = sha256 == file.sha256
        self.memory.record(file, size, etag, level=level if right else "wrong", run=self.run)
        if right:
            return size, etag
        whose = "the bytes read back hash to" if level == "content" else "S3 holds the SHA-256"
        return Failure(file.path, "wrong bytes", f"{whose} {sha256}, PhysioNet publishes {file.sha256}")


def sha256_of(bucket: Bucket, path: str) -> str:
    """The SHA-256 (hex) of an object's bytes, read back. Raises FileNotFoundError if there is no such object."""
    return bucket.sha256(path)


# -- concurrency -----------------------------------------------------------------------------------------------------


class _Pool:
    """A thread pool whose `map` keeps a bounded number of items under way and gives results in order."""

    def __init__(self, workers: int, *, ahead: int | None = None) -> None:
        self._window = ahead or 16 * workers  # one that is slow holds the results back, not the others
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="compare")

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
