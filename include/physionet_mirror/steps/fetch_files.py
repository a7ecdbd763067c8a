"""Brings a handful of named files of any project into the bucket, each proven; what is there already is not fetched again."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from physionet_mirror import manifest
from physionet_mirror.compare import Comparison, compare
from physionet_mirror.dataset import SUMS, Dataset
from physionet_mirror.errors import NotFound
from physionet_mirror.files import File
from physionet_mirror.layout import SUMS_SEEN
from physionet_mirror.records import Record, SumsSeen, load
from physionet_mirror.s3.bucket import Bucket

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

ONE_PUT = 32 << 20
"""Bytes up to which a file is one PUT, so that S3 keeps a SHA-256 of the whole of it."""

_TYPES = {".gz": "application/gzip", ".csv": "text/csv", ".txt": "text/plain; charset=utf-8", ".zip": "application/zip"}


class Source(Protocol):
    """PhysioNet's website or its access point."""

    def etag(self, dataset: Dataset, path: str) -> str | None:
        """The ETag of a file, which changes when the file does; None where nobody names one."""
        ...

    def stream(self, dataset: Dataset, path: str, sha256: str | None) -> Iterator[bytes]:
        """One file in chunks, proven when they end."""
        ...


@dataclass(frozen=True)
class FetchedFiles(Record):
    """What `fetch_files` did.

    Attributes:
        files: The paths that were asked for; each is in the bucket now, and proven.
        fetched: How many of them had to be fetched.
        bytes: Size of those.
        sums_sha256: SHA-256 of SHA256SUMS.txt, which stands for the whole version.
    """

    files: Sequence[str]
    fetched: int
    bytes: int
    sums_sha256: str


def fetch_files(source: Source, bucket: Bucket, dataset: Dataset, paths: Sequence[str]) -> FetchedFiles:
    """Bring these files of a project into the bucket, each proven against PhysioNet's checksums before it is stored.

    What lies there already, proven, is not fetched again. Each project has an agreement of its own: a caller that wants files of
    several projects calls once for each, catches `AccessRefused`, whose text names the project's page, and goes on with the
    others.

    Args:
        source: PhysioNet's website or its access point (``Run.origin`` of the plugins opens either).
        bucket: Where they go, below the prefix of that project.
        dataset: The project, such as ``dataset.project("mimiciv/3.1")``.
        paths: Below the version's root, such as ``hosp/admissions.csv.gz``.

    Raises:
        AccessRefused, CredentialsRefused: This account may not read the project.
        NotFound: PhysioNet lists no such file; nothing was fetched.
        SourceError: A file cannot be had; those before it are stored.
        MetadataError: SHA256SUMS.txt is not what PhysioNet publishes.
        DestinationError: The bucket cannot take them.
    """
    with tempfile.TemporaryDirectory(prefix="physionet-") as folder:
        published = published_by(source, bucket, dataset, Path(folder, "sums"))
        sums = dict(zip(published.sums["path"], published.sums["sha256"], strict=True))
        if unknown := [path for path in paths if path not in sums]:
            raise NotFound(
                f"{SUMS} of {dataset.name} does not list {', '.join(unknown[:5])}, so it cannot be proven. Nothing was fetched. "
                f"Look at {dataset.page}: another version may have it."
            )
        published.keep(bucket)
        wanted = [File(path, sums[path]) for path in dict.fromkeys(paths)]
        there = {file.path for file in compare(wanted, bucket, Comparison("checksum"), workers=4).ok}
        missing = [file for file in wanted if file.path not in there]
        size = 0
        for number, file in enumerate(missing):
            local = Path(folder, str(number))
            download(source, dataset, file.path, file.sha256, local)
            size += local.stat().st_size
            bucket.upload(file.path, read_file(local), content_type=type_of(file.path), part_size=ONE_PUT)
            local.unlink()
    log.info("%s: %d of %d files fetched, the others were there.", dataset.name, len(missing), len(wanted))
    return FetchedFiles(tuple(file.path for file in wanted), len(missing), size, published.sha256)


@dataclass(frozen=True)
class Published:
    """What PhysioNet publishes of a version: its SHA256SUMS.txt.

    Attributes:
        file: A copy of it here.
        sums: The same as a table: ``path``, ``sha256``.
        sha256: Of the file.
        etag: Of it at PhysioNet; None where none is named.
        seen: What was remembered of it before.
        dataset: Whose it is.
    """

    file: Path
    sums: pd.DataFrame
    sha256: str
    etag: str | None
    seen: SumsSeen
    dataset: str

    def keep(self, bucket: Bucket) -> None:
        """Put it into the bucket, where it is not the one that lies there, so that the next look costs one HEAD."""
        if (self.seen.etag, self.seen.sha256) != (self.etag, self.sha256):
            bucket.upload(SUMS, read_file(self.file), content_type=type_of(SUMS), part_size=ONE_PUT)
            now = replace(self.seen, etag=self.etag, sha256=self.sha256, dataset=self.dataset)
            bucket.write_json(SUMS_SEEN, now.to_json())


def published_by(source: Source, bucket: Bucket, dataset: Dataset, file: Path) -> Published:
    """SHA256SUMS.txt of a version, from the bucket where PhysioNet's has not changed since; written to ``file``.

    Raises:
        SourceError, DestinationError: It cannot be had.
        MetadataError: It is not what PhysioNet publishes.
    """
    seen = load(bucket, SUMS_SEEN, SumsSeen) or SumsSeen()
    if seen.dataset not in ("", dataset.name):  # below one prefix: an ETag may be that of another project's file too
        seen = SumsSeen()
    etag = source.etag(dataset, SUMS)
    sha256 = _unchanged(bucket, seen, etag, file)
    if sha256 is None:
        sha256 = download(source, dataset, SUMS, None, file)
    with file.open("rb") as stream:
        return Published(file, manifest.parse_sums(stream), sha256, etag, seen, dataset.name)


def _unchanged(bucket: Bucket, seen: SumsSeen, etag: str | None, file: Path) -> str | None:
    """Take SHA256SUMS.txt (57 MB) from the bucket where PhysioNet's has not changed since; its SHA-256, or None."""
    if etag is None or etag != seen.etag:
        return None
    try:
        write_file(file, bucket.open_read(SUMS))
    except FileNotFoundError:
        return None
    with file.open("rb") as stream:
        return seen.sha256 if hashlib.file_digest(stream, "sha256").hexdigest() == seen.sha256 else None


def download(source: Source, dataset: Dataset, path: str, sha256: str | None, file: Path) -> str:
    """Write a file of a project to ``file``; returns its SHA-256. Raises SourceError; what was written then is void."""
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for chunk in source.stream(dataset, path, sha256):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


def write_file(file: Path, chunks: Iterator[bytes]) -> None:
    """Write chunks to a local file."""
    with file.open("wb") as out:
        for chunk in chunks:
            out.write(chunk)


def read_file(file: Path) -> Iterator[bytes]:
    """A local file in chunks of 1 MiB."""
    with file.open("rb") as stream:
        while data := stream.read(1 << 20):
            yield data


def type_of(path: str) -> str:
    """Content type of a table, list or archive."""
    return _TYPES.get(Path(path).suffix, "text/plain; charset=utf-8" if "." not in path else "application/octet-stream")
