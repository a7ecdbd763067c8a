"""The mover that downloads: website → memory → SHA-256 → PUT."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import Any

from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import NotTheFile
from physionet_mirror.files import File
from physionet_mirror.mover import Fetched, KeptMemory, Mode, SourceStats, Turn
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.body import BIG, Body
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.source.ranges import LARGE, Ranges
from physionet_mirror.source.spans import NoSpans

log = logging.getLogger(__name__)


class Download:
    """Files of a dataset version from PhysioNet's website; a `Mover`.

    A file too big for memory is uploaded while it comes, a large one over many connections (`ranges`); either becomes visible
    only once it is proven.

    Args:
        source: PhysioNet, logged in.
        dataset: Whose files.
        bucket: Where they go.
        storage_class: S3 storage class.
        run: Name of the run (see `Ranges`).
    """

    mode: Mode = "download"
    per_connection = 1
    keeps_turn = False

    def __init__(
        self,
        source: PhysioNet,
        dataset: Dataset,
        bucket: Bucket,
        storage_class: str = "STANDARD",
        run: str | None = None,
    ) -> None:
        self._source, self._dataset, self._bucket = source, dataset, bucket
        self._how: dict[str, Any] = {"content_type": dataset.image_type, "storage_class": storage_class}
        self._memory = KeptMemory()
        self._ranges = Ranges(bucket, self._how, run)
        self._gives_spans = bucket.can.copies  # what came in pieces is copied onto its key

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
        """One file; raises as `PhysioNet.open`, a big one as `Bucket.upload`, and a large one as `Ranges.fetch`."""
        if not self._gives_spans or (file.bytes or 0) <= LARGE:
            with closing(self._source.open(self._dataset, file.path, file.sha256, turn)) as body:
                spans = body.spans() if self._gives_spans and (body.size or 0) > LARGE else None
                if spans is None:
                    return self._receive(file, body)
        else:
            spans = self._source.spans(self._dataset, file.path, file.sha256, turn)
        if spans is not None:
            try:
                return self._ranges.fetch(spans, file, turn)
            except NoSpans:
                log.info(
                    "%s does not give parts of a file: large files come over one connection.", self._source.base_url
                )
        self._gives_spans = False
        turn.leave()  # or it waits for a second place, while it holds one
        with (
            turn.another() as one,
            closing(self._source.open(self._dataset, file.path, file.sha256, one)) as body,
        ):
            return self._receive(file, body)

    def _receive(self, file: File, body: Body) -> Fetched:
        """All of it over one connection."""
        if body.size is None:
            data = memoryview(_in_memory(file.path, body))
        elif body.size <= BIG:
            data = self._memory.of(body.size)
            body.read_into(data)
        else:
            return Fetched(self._bucket.upload(file.path, body, **self._how))
        put = partial(self._bucket.put, file.path, data, sha256=file.sha256, **self._how, paced=True)
        return Fetched(len(data), put, len(data))

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
