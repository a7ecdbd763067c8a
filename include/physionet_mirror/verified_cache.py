"""The bucket's memory of what was verified when, so that nothing is asked of S3 twice without need.

One file a group of paths (`group_of`), ``_mirror/verified/<group>.tsv.gz``: gzip, UTF-8, a header line, then one line an object:

    path  size  etag  sha256  verified_at  level  run

``size`` in bytes, ``etag`` as S3 gives it without its quotes, ``sha256`` in hex as PhysioNet publishes it,
``verified_at`` in UTC to the second, for people, ``level`` one of ``checksum``, ``content`` and ``wrong``, ``run`` the
attempt at a run that looked (see `attempt_of`); files of earlier versions lack this last column.

An entry is believed only while path, size, ETag *and* the manifest's SHA-256 are all what they were. So a lost or
damaged memory costs requests, never a wrong answer, and a file that PhysioNet has replaced is looked at anew. No two
clocks are ever compared: what holds only for one run is recognised by the run's name.
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
from physionet_mirror.layout import RunLayout, group_of, verified

if TYPE_CHECKING:
    from physionet_mirror.s3.bucket import Bucket, Stored

log = logging.getLogger(__name__)

Judgement = Literal["verified", "wrong", "unknown"]
"""What the memory says of an object as it is listed now."""

COLUMNS = ("path", "size", "etag", "sha256", "verified_at", "level", "run")
_HEADER = "\t".join(COLUMNS)
_OLD_HEADER = "\t".join(COLUMNS[:-1])
_TABS = len(COLUMNS) - 2  # of an entry, which is a line without its path
_LEVELS = frozenset({"checksum", "content", "wrong"})
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_WARNED: WeakKeyDictionary[Bucket, set[str]] = WeakKeyDictionary()
_TRIES = 12  # of writing a file that other tasks write to as well


def attempt_of(run: RunLayout, started: datetime) -> str:
    """Names one attempt at a run: its tasks' retries share it, and clearing the run begins another."""
    return f"{run.root}@{started.astimezone(UTC):%Y%m%dT%H%M%S.%f}"


def groups_of(paths: Iterable[str]) -> list[str]:
    """The groups of these paths, each once, sorted."""
    return sorted({group_of(path) for path in paths})


class Memory:
    """What was verified, of some patient groups. Safe to share between threads.

    Entries are kept as the lines they came from, about 0.4 kB each: comparing text is much cheaper than parsing it.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}
        self._new: dict[str, dict[str, tuple[str, str | None]]] = {}  # entry, and what was known before it
        self._lock = Lock()

    @classmethod
    def load(cls, bucket: Bucket, groups: Iterable[str]) -> Memory:
        """Read the memory of these groups; a file that is absent or damaged counts as empty."""
        memory = cls()
        for group in groups:
            memory._known[group] = _read(bucket, group)
        return memory

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._known.values())

    @property
    def unsaved(self) -> int:
        """Entries recorded since the last `save`."""
        return sum(len(entries) for entries in self._new.values())

    def judge(
        self,
        path: str,
        size: int,
        etag: str,
        sha256: str,
        *,
        level: str = "checksum",
        run: str | None = None,
        anew: bool = False,
    ) -> Judgement:
        """Say what is remembered of an object that S3 lists with this size and ETag and the manifest with this SHA-256.

        With ``anew``, and always with ``level="content"``, only what was verified in this ``run`` (see `attempt_of`)
        counts; without a run, nothing does. With ``level="content"`` only an object whose bytes were read counts.
        """
        entry = self._known.get(group_of(path), {}).get(path)
        if entry is None or not etag or not entry.startswith(f"{size}\t{etag}\t{sha256}\t"):
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
        path: str,
        size: int,
        etag: str,
        sha256: str,
        *,
        level: str = "checksum",
        run: str | None = None,
        at: datetime | None = None,
    ) -> None:
        """Remember that this object was found right (``checksum``, ``content``) or not (``wrong``); kept by `save`."""
        if level not in _LEVELS:
            raise ValueError(f"level must be one of {sorted(_LEVELS)}, not {level!r}")
        when = (at or datetime.now(UTC)).astimezone(UTC).strftime(_TIME)
        entry = f"{size}\t{etag}\t{sha256}\t{when}\t{level}\t{run or ''}"
        if not etag or any(c in path + entry for c in "\r\n") or "\t" in path or entry.count("\t") != _TABS:
            return  # nothing that could be recognised again
        group = group_of(path)
        with self._lock:
            known, new = self._known.setdefault(group, {}), self._new.setdefault(group, {})
            before = new[path][1] if path in new else known.get(path)
            known[path], new[path] = entry, (entry, before)

    def save(self, bucket: Bucket) -> None:
        """Write what was recorded since the last save.

        Other tasks write to the same files: each is read again, merged and written only in place of what was read, as
        often as needed. What was recorded here replaces what was known before it. Where another task meanwhile found
        the same object wrong, that stays: it costs one more look.

        Raises:
            DestinationError: S3 cannot be asked, or others write all the time; nothing is lost, `save` may be repeated.
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
    """Bring these entries into the group's file; returns all that it then holds."""
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
        # The second look is for a server that takes no conditions.
        if _etag(bucket.head(file)) == _etag(before) and bucket.write_unless_changed(
            file, data, before, content_type="application/gzip"
        ):
            return entries
    raise DestinationUnavailable(
        f"{bucket.uri(file)} is written by many tasks at once and could not be brought up to date. No file is affected."
    )


def _found_wrong(other: str, entry: str) -> bool:
    """Whether another task's entry calls the very object wrong that ``entry`` speaks of."""
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
        _warn_once(bucket, f"{bucket.uri(file)} holds {bad} lines that cannot be read; these objects are checked anew.")
    return entries


def _damaged(bucket: Bucket, file: str, why: str) -> dict[str, str]:
    _warn_once(
        bucket,
        f"{bucket.uri(file)} cannot be read ({why}). No image is affected: its objects are checked anew and the file is "
        "rewritten.",
    )
    return {}


def _warn_once(bucket: Bucket, message: str) -> None:
    """A warning is said once to each user of a bucket: files are read for each block, and again before they are written."""
    said = _WARNED.setdefault(bucket, set())
    if message not in said:
        said.add(message)
        log.warning("%s", message)
