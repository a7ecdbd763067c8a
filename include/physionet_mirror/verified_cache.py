"""The cache of verified objects, kept in the bucket so that S3 need not be asked about them again.

One file per group of paths (`group_of`), ``_mirror/verified/<group>.tsv.gz``: gzip, UTF-8, a header, then one line per object:

    path  size  etag  sha256  verified_at  level  run

``size`` in bytes, ``etag`` as S3 gives it without its quotes, ``sha256`` in hex as PhysioNet publishes it,
``verified_at`` in UTC to the second, for people, ``level`` one of ``checksum``, ``content`` and ``wrong``, ``run`` the
attempt at a run that checked it (see `attempt_of`); files of earlier versions lack this last column.

An entry counts only while path, size, ETag *and* the manifest's SHA-256 are all unchanged. So a lost or damaged cache
costs requests but never gives a wrong answer, and a file that PhysioNet has replaced is checked again. Clocks of
different machines are never compared: an entry that holds only for one run is recognised by the run's name.
"""

from __future__ import annotations

import gzip
import logging
import random
import time
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from physionet_mirror.errors import DestinationUnavailable
from physionet_mirror.files import File
from physionet_mirror.layout import RunLayout, group_of, verified

if TYPE_CHECKING:
    from physionet_mirror.s3.bucket import Bucket, Stored

log = logging.getLogger(__name__)

Judgement = Literal["verified", "wrong", "unknown"]
"""What the cache says about an object as it is listed now."""

COLUMNS = ("path", "size", "etag", "sha256", "verified_at", "level", "run")
_HEADER = "\t".join(COLUMNS)
_OLD_HEADER = "\t".join(COLUMNS[:-1])
_TABS = len(COLUMNS) - 2  # in an entry, which is a line without its path
_LEVELS = frozenset({"checksum", "content", "wrong"})
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_WARNED: WeakKeyDictionary[Bucket, set[str]] = WeakKeyDictionary()
_TRIES = 12  # attempts to write a file that other tasks write as well


def attempt_of(run: RunLayout, started: datetime) -> str:
    """Name of one attempt at a run: retries of its tasks share it, and clearing the run begins another."""
    return f"{run.root}@{started.astimezone(UTC):%Y%m%dT%H%M%S.%f}"


def groups_of(paths: Iterable[str]) -> list[str]:
    """The groups of these paths, each once, sorted."""
    return sorted({group_of(path) for path in paths})


class Memory:
    """The cached entries of some patient groups. Safe to share between threads.

    Entries are kept as lines of text, about 0.4 kB each: comparing text is much cheaper than parsing it.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}
        self._new: dict[str, dict[str, tuple[str, str | None]]] = {}  # the entry, and the one that it replaced
        self._lock = Lock()

    @classmethod
    def load(cls, bucket: Bucket, groups: Iterable[str]) -> Memory:
        """Read the cache files of these groups; an absent or damaged file counts as empty."""
        memory = cls()
        for group in groups:
            memory._known[group] = _read(bucket, group)
        return memory

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._known.values())

    @property
    def unsaved(self) -> int:
        """Entries recorded since the last `save`."""
        with self._lock:
            return sum(len(entries) for entries in self._new.values())

    def judge(
        self, file: File, size: int, etag: str, *, level: str = "checksum", run: str | None = None, anew: bool = False
    ) -> Judgement:
        """What the cache says about a file whose object has this size and ETag in S3.

        With ``anew``, and always with ``level="content"``, only entries of this ``run`` (see `attempt_of`) count;
        without a run, none do. With ``level="content"`` only entries of objects whose bytes were read count.
        """
        entry = self._known.get(group_of(file.path), {}).get(file.path)
        if entry is None or not etag or not entry.startswith(f"{size}\t{etag}\t{file.sha256}\t"):
            return "unknown"
        _, known_level, known_run = entry.rsplit("\t", 2)
        if known_level == "wrong":
            return "wrong"
        if (anew or level == "content") and not (run and run == known_run):
            return "unknown"
        if level == "content" and known_level != "content":
            return "unknown"
        return "verified"

    def record(
        self,
        file: File,
        size: int,
        etag: str,
        *,
        level: str = "checksum",
        run: str | None = None,
        at: datetime | None = None,
    ) -> None:
        """Record that this object was found right (``checksum``, ``content``) or not (``wrong``); `save` stores it."""
        if level not in _LEVELS:
            raise ValueError(f"level must be one of {sorted(_LEVELS)}, not {level!r}")
        when = (at or datetime.now(UTC)).astimezone(UTC).strftime(_TIME)
        path, entry = file.path, f"{size}\t{etag}\t{file.sha256}\t{when}\t{level}\t{run or ''}"
        if not etag or any(c in path + entry for c in "\r\n") or "\t" in path or entry.count("\t") != _TABS:
            return  # such an entry could not be matched again
        group = group_of(path)
        with self._lock:
            known, new = self._known.setdefault(group, {}), self._new.setdefault(group, {})
            before = new[path][1] if path in new else known.get(path)
            known[path], new[path] = entry, (entry, before)

    def save(self, bucket: Bucket) -> None:
        """Write what was recorded since the last save.

        Other tasks write the same files, so each file is read again, merged, and written only if it has not changed
        since; this is repeated as needed. A new entry replaces the one known before it. If another task has meanwhile
        found the same object wrong, its entry stays, which costs one more check.

        Raises:
            DestinationError: S3 fails, or other tasks write all the time; nothing is lost, `save` may be repeated.
        """
        with self._lock:
            new, self._new = self._new, {}
        for group in sorted(new):
            try:
                entries = _merge(bucket, group, new[group])
            except BaseException:
                with self._lock:
                    for left in sorted(new):
                        if left >= group:
                            self._new[left] = new[left] | self._new.get(left, {})
                raise
            with self._lock:
                later = {path: entry for path, (entry, _) in self._new.get(group, {}).items()}
                self._known[group] = entries | later

    def __iter__(self) -> Iterator[tuple[str, int, str, str, datetime, str]]:
        """Every entry as (path, size, etag, sha256, verified_at, level), in no particular order."""
        for entries in self._known.values():
            for path, entry in entries.items():
                size, etag, sha256, at, level, _ = entry.split("\t")
                yield path, int(size), etag, sha256, datetime.strptime(at, _TIME).replace(tzinfo=UTC), level


def _merge(bucket: Bucket, group: str, new: dict[str, tuple[str, str | None]]) -> dict[str, str]:
    """Merge these entries into the group's file; returns all entries that it then holds."""
    file = verified(group)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(random.uniform(0, 0.2 * attempt))
        before = bucket.head(file)
        entries = _read(bucket, group)
        for path, (entry, known) in new.items():
            other = entries.get(path)
            if other is None or other == known or not _found_wrong(other, entry):
                entries[path] = entry
        data = _encode(entries)
        # The second HEAD is for servers that ignore conditional writes.
        if _etag(bucket.head(file)) == _etag(before) and bucket.write_unless_changed(
            file, data, before, content_type="application/gzip"
        ):
            return entries
    raise DestinationUnavailable(
        f"{bucket.uri(file)} is written by many tasks at once and could not be updated. No file is affected."
    )


def _found_wrong(other: str, entry: str) -> bool:
    """Whether another task's entry calls the object of ``entry`` wrong."""
    return other.rsplit("\t", 2)[1] == "wrong" and other.split("\t")[:3] == entry.split("\t")[:3]


def _etag(stored: Stored | None) -> str | None:
    return stored.etag if stored else None


def _encode(entries: dict[str, str]) -> bytes:
    lines = [_HEADER, *(f"{path}\t{entries[path]}" for path in sorted(entries)), ""]
    return gzip.compress("\n".join(lines).encode(), compresslevel=1, mtime=0)


def _read(bucket: Bucket, group: str) -> dict[str, str]:
    file = verified(group)
    try:
        data = bucket.read(file)
    except FileNotFoundError:
        return {}
    try:
        header, _, body = gzip.decompress(data).decode().partition("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        return _damaged(bucket, file, str(error))
    if header not in (_HEADER, _OLD_HEADER):
        return _damaged(bucket, file, "its first line is not the header")
    lines = body.split("\n")
    entries: dict[str, str] = {}
    no_run = "" if header == _HEADER else "\t"
    for line in lines:
        path, _, entry = line.partition("\t")
        if entry and (entry := entry + no_run).count("\t") == _TABS:
            entries[path] = entry
    if bad := sum(1 for line in lines if line) - len(entries):
        _warn_once(
            bucket, f"{bucket.uri(file)} holds {bad} lines that cannot be read; these objects are checked again."
        )
    return entries


def _damaged(bucket: Bucket, file: str, why: str) -> dict[str, str]:
    _warn_once(
        bucket,
        f"{bucket.uri(file)} cannot be read ({why}). No file is affected: its objects are checked again and the file is "
        "rewritten.",
    )
    return {}


def _warn_once(bucket: Bucket, message: str) -> None:
    """Log a warning once per `Bucket`: a file is read for each block, and again before it is written."""
    said = _WARNED.setdefault(bucket, set())
    if message not in said:
        said.add(message)
        log.warning("%s", message)
