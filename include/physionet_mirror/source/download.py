"""The mover that downloads: website → memory → SHA-256 → PUT."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import Any

from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import NotTheFile
from physionet_mirror.files import File
from physionet_mirror.mover import Fetched, KeptMemory, Mode, SourceStats, Turn
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.body import BIG
from physionet_mirror.source.physionet import PhysioNet


class Download:
    """Files of a dataset version from PhysioNet's website; a `Mover`.

    A file too big for memory is uploaded while it comes, and becomes visible only once it is proven.

    Args:
        source: PhysioNet, logged in.
        dataset: Whose files.
        bucket: Where they go.
        storage_class: S3 storage class.
    """

    mode: Mode = "download"
    per_connection = 1

    def __init__(self, source: PhysioNet, dataset: Dataset, bucket: Bucket, storage_class: str = "STANDARD") -> None:
        self._source, self._dataset, self._bucket, self._storage_class = source, dataset, bucket, storage_class
        self._memory = KeptMemory()

    def __repr__(self) -> str:
        return f"<Download {self._dataset.name} from {self._source!r}>"

    @property
    def stats(self) -> SourceStats:
        """The source's."""
        return self._source.stats

    def check(self) -> None:
        """Ask for the checksum file; raises as `PhysioNet.check_access`."""
        self._source.probe(self._dataset)

    def fetch(self, file: File, turn: Turn) -> Fetched:
        """One file; raises as `PhysioNet.open`, and a big one as `Bucket.upload`."""
        path, kind, storage_class = file.path, self._dataset.image_type, self._storage_class
        with closing(self._source.open(self._dataset, path, file.sha256, turn)) as body:
            if body.size is None:
                data = memoryview(_in_memory(path, body))
            elif body.size <= BIG:
                data = self._memory.of(body.size)
                body.read_into(data)
            else:
                return Fetched(self._bucket.upload(path, body, content_type=kind, storage_class=storage_class))
        how: dict[str, Any] = {"content_type": kind, "storage_class": storage_class, "sha256": file.sha256}
        return Fetched(len(data), partial(self._bucket.put, path, data, **how, paced=True), len(data))

    def close(self) -> None:
        """Close the source's connections."""
        self._source.close()


def _in_memory(path: str, chunks: Iterable[bytes]) -> bytearray:
    """A file whose size was not announced, up to what may be held in memory: it might never end."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > BIG:
            raise NotTheFile(
                f"{path} came without a size and goes on after {BIG >> 20} MiB. Nothing of it was kept. PhysioNet announces "
                "the size of every file: find out what proxy stands between, or whether PhysioNet is in maintenance."
            )
    return data
