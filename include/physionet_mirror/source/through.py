"""The mover that reads the access point with the reader's keys and writes with the destination's: through the worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from itertools import chain

from physionet_mirror.files import File
from physionet_mirror.mover import Fetched, KeptMemory, Mode, Turn
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.access_point import READS_A_CONNECTION, AccessPoint
from physionet_mirror.source.body import BIG
from physionet_mirror.source.from_point import FromPoint
from physionet_mirror.source.ranges import LARGE, Ranges
from physionet_mirror.source.spans import NoSpans

log = logging.getLogger(__name__)


class ThroughWorker(FromPoint):
    """Files of an access point, through memory, where their SHA-256 is compared before the PUT; a `Mover`.

    A file too big for memory is uploaded while it comes, a large one in many parts at once (`ranges`); either becomes visible
    only once it is proven.

    Args:
        point: The access point, with the reader's keys.
        bucket: The destination, with its own.
        storage_class: S3 storage class.
        run: Name of the run (see `Ranges`).
    """

    mode: Mode = "through"
    per_connection = READS_A_CONNECTION
    keeps_turn = True

    def __init__(
        self, point: AccessPoint, bucket: Bucket, storage_class: str = "STANDARD", run: str | None = None
    ) -> None:
        super().__init__(point, bucket, storage_class)
        self._memory = KeptMemory()
        self._ranges = Ranges(bucket, self._how, run)
        self._gives_spans = bucket.can.copies  # what came in pieces is copied onto its key

    def fetch(self, file: File, turn: Turn) -> Fetched:
        """Read one file and prove it.

        Raises:
            NotFound, FileRefused, Corrupt, Throttled: As for a download.
            AccessRefused: The access point is closed to these keys.
            DestinationError: The destination refuses a file too big for memory.
        """
        if file.bytes is not None and file.bytes <= BIG:
            data = self._point.read_into(file, self._memory.of(file.bytes), turn)
            return self._fetched(file, data)
        if file.bytes is not None and file.bytes > LARGE and self._gives_spans:
            try:
                if spans := self._point.spans(file, turn):
                    return self._ranges.fetch(spans, file, turn)
            except NoSpans:
                log.info("%s does not give parts of a file: large files come in one stream.", self._point.bucket.name)
                self._gives_spans = False
                with turn.another() as one:
                    return self._receive(file, one)
        return self._receive(file, turn)

    def _receive(self, file: File, turn: Turn) -> Fetched:
        """All of it in one stream."""
        chunks = self._counted(self._point.stream(self._point.dataset, file.path, file.sha256), turn)
        begun: list[bytes] = []
        size = 0
        for chunk in chunks:
            begun.append(chunk)
            size += len(chunk)
            if size > BIG:
                return Fetched(self._bucket.upload(file.path, chain(begun, chunks), **self._how))
        return self._fetched(file, b"".join(begun))

    def _fetched(self, file: File, data: bytes | memoryview) -> Fetched:
        put = partial(self._bucket.put, file.path, data, sha256=file.sha256, **self._how, paced=True)
        return Fetched(len(data), put, len(data))

    def _counted(self, chunks: Iterator[bytes], turn: Turn) -> Iterator[bytes]:
        for number, chunk in enumerate(chunks):
            if number == 0:
                turn.answered(serves=True)
            self._point.received(len(chunk))
            yield chunk
