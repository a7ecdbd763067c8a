"""The bucket's memory of what was verified when, so that nothing is asked of S3 twice without need.

One file a patient group, ``_mirror/verified/<group>.tsv.gz``: gzip, UTF-8, a header line, then one line an object:

    path  size  etag  sha256  verified_at  level

``size`` in bytes, ``etag`` as S3 gives it without its quotes, ``sha256`` in hex as PhysioNet publishes it,
``verified_at`` in UTC to the second, ``level`` one of ``checksum``, ``content`` and ``wrong``.

An entry is believed only while path, size, ETag *and* the manifest's SHA-256 are all what they were. So a lost or
damaged memory costs requests, never a wrong answer, and a file that PhysioNet has replaced is looked at anew.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Literal

from include.physionet_mirror.layout import verified

if TYPE_CHECKING:
    from include.physionet_mirror.destination import Bucket

log = logging.getLogger(__name__)

Judgement = Literal["verified", "wrong", "unknown"]
"""What the memory says of an object as it is listed now."""

COLUMNS = ("path", "size", "etag", "sha256", "verified_at", "level")
_HEADER = "\t".join(COLUMNS)
_LEVELS = frozenset({"checksum", "content", "wrong"})
_TIME = "%Y-%m-%dT%H:%M:%SZ"  # of one width, so that comparing text compares times


def group_of(path: str) -> str:
    """The patient group that a dataset path belongs to: ``p10`` of ``files/p10/…``, else ``other``."""
    top, _, rest = path.partition("/")
    group, slash, _ = rest.partition("/")
    return group if top == "files" and slash and group else "other"


def groups_of(paths: Iterable[str]) -> list[str]:
    """The groups of these paths, each once, sorted."""
    return sorted({group_of(path) for path in paths})


class Memory:
    """What was verified, of some patient groups. Safe to share between threads.

    Entries are kept as the lines they came from, about 0.4 kB each: comparing text is much cheaper than parsing it.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}
        self._new: dict[str, dict[str, str]] = {}
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
        self, path: str, size: int, etag: str, sha256: str, *, level: str = "checksum", since: datetime | None = None
    ) -> Judgement:
        """Say what is remembered of an object that S3 lists with this size and ETag and the manifest with this SHA-256.

        With ``level="content"`` only an object whose bytes were read back counts as verified, and with ``since`` only
        one that was verified at that time or later.
        """
        entry = self._known.get(group_of(path), {}).get(path)
        if entry is None or not etag or not entry.startswith(f"{size}\t{etag}\t{sha256}\t"):
            return "unknown"
        _, at, known_level = entry.rsplit("\t", 2)
        if known_level == "wrong":
            return "wrong"
        if level == "content" and known_level != "content":
            return "unknown"
        if since is not None and at < since.astimezone(UTC).strftime(_TIME):
            return "unknown"
        return "verified"

    def record(
        self, path: str, size: int, etag: str, sha256: str, *, level: str = "checksum", at: datetime | None = None
    ) -> None:
        """Remember that this object was found right (``checksum``, ``content``) or not (``wrong``); kept by `save`."""
        if level not in _LEVELS:
            raise ValueError(f"level must be one of {sorted(_LEVELS)}, not {level!r}")
        entry = f"{size}\t{etag}\t{sha256}\t{(at or datetime.now(UTC)).astimezone(UTC).strftime(_TIME)}\t{level}"
        if not etag or any(c in path + entry for c in "\r\n") or "\t" in path or entry.count("\t") != 4:
            return  # nothing that could be recognised again
        group = group_of(path)
        with self._lock:
            self._known.setdefault(group, {})[path] = entry
            self._new.setdefault(group, {})[path] = entry

    def save(self, bucket: Bucket) -> None:
        """Write what was recorded since the last save; of two entries for one path the newer ``verified_at`` stays.

        Each file is read again before it is written, because other tasks write to it too.
        """
        with self._lock:
            new, self._new = self._new, {}
        for group in sorted(new):
            try:
                entries = _read(bucket, group)
                for path, entry in new[group].items():
                    if _time(entry) >= _time(entries.get(path, "")):
                        entries[path] = entry
                bucket.write(verified(group), _encode(entries), content_type="application/gzip")
            except BaseException:
                with self._lock:
                    for left in sorted(new):
                        if left >= group:
                            self._new[left] = new[left] | self._new.get(left, {})
                raise
            with self._lock:
                self._known[group] = entries | self._new.get(group, {})

    def __iter__(self) -> Iterator[tuple[str, int, str, str, datetime, str]]:
        """Every entry as (path, size, etag, sha256, verified_at, level), in no particular order."""
        for entries in self._known.values():
            for path, entry in entries.items():
                size, etag, sha256, at, level = entry.split("\t")
                yield path, int(size), etag, sha256, datetime.strptime(at, _TIME).replace(tzinfo=UTC), level


def _time(entry: str) -> str:
    return entry.rsplit("\t", 2)[1] if entry else ""


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
    if header != _HEADER:
        return _damaged(bucket, file, "its first line is not the header")
    lines = body.split("\n")
    entries: dict[str, str] = {}
    for line in lines:
        path, _, entry = line.partition("\t")
        if entry.count("\t") == 4:
            entries[path] = entry
    if bad := sum(1 for line in lines if line) - len(entries):
        log.warning("%s holds %d lines that cannot be read; these objects are checked anew.", bucket.uri(file), bad)
    return entries


def _damaged(bucket: Bucket, file: str, why: str) -> dict[str, str]:
    log.warning(
        "%s cannot be read (%s). No image is affected: its objects are checked anew and the file is rewritten.",
        bucket.uri(file),
        why,
    )
    return {}
