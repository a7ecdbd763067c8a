"""What lies below ``_mirror/`` as JSON, one type a document: written with ``to_json``, read with ``from_json``.

``from_json`` takes what this and earlier versions wrote, and what is left of it when a field is damaged: a field that
is not what it should be gets its default. `load` reads a document that nothing depends on: a damaged one is named in a
warning and counts as absent, so that it costs requests and never a run.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from physionet_mirror.shards import Shard

if TYPE_CHECKING:
    from physionet_mirror.s3.bucket import Bucket

log = logging.getLogger(__name__)

_POINTS = 240  # of a series that holds several tries, before neighbours are merged

MOST_BYTES = 64 << 20
"""Of a document that is read. Ours have some kilobytes; a result that names each of 10,000 images has 4 MB."""

R = TypeVar("R", bound="Record")


class Record(Protocol):
    """A document in the bucket."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The record that a document holds. Raises ValueError where it is another kind of document."""
        ...


def load(bucket: Bucket, path: str, kind: type[R]) -> R | None:
    """The record at ``path``; None where there is none, or only a damaged one, which a warning names.

    Raises:
        DestinationError: S3 cannot be asked.
    """
    document = read_document(bucket, path)
    if document is None:
        return None
    try:
        return kind.from_json(document)
    except ValueError as error:
        _warn(bucket, path, error)
        return None


def read_document(bucket: Bucket, path: str) -> dict[str, Any] | None:
    """The JSON object at ``path``; None where there is none, or only a damaged one, which a warning names.

    Raises:
        DestinationError: S3 cannot be asked.
    """
    try:
        return read_object(bucket, path)
    except ValueError as error:
        _warn(bucket, path, error)
        return None


def read_object(bucket: Bucket, path: str, most: int = MOST_BYTES) -> dict[str, Any] | None:
    """The JSON object of at most ``most`` bytes at ``path``; None where there is none, or an emptied one.

    Raises:
        ValueError: It is something else, or longer.
        DestinationError: S3 cannot be asked.
    """
    data = bytearray()
    try:
        for chunk in bucket.open_read(path):
            data += chunk
            if len(data) > most:
                raise ValueError(f"it has more than {most >> 20} MB, so it is none of ours")
    except FileNotFoundError:
        return None
    if not data:
        return None
    try:
        document = json.loads(data)  # JSONDecodeError and UnicodeDecodeError are ValueErrors
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def _warn(bucket: Bucket, path: str, error: Exception) -> None:
    log.warning(
        "%s is damaged (%s) and counts as absent. No image is affected.",
        bucket.uri(path),
        error or type(error).__name__,
    )


# -- a shard's progress and result -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that is not stored: its path, a short reason for grouping, and the whole story."""

    path: str
    reason: str
    detail: str

    @classmethod
    def from_json(cls, document: Any) -> Failure | None:
        """None where it is no failure."""
        if not isinstance(document, Mapping):
            return None
        path, reason, detail = (str(document.get(name) or "") for name in ("path", "reason", "detail"))
        return cls(path, reason or "unknown", detail)


@dataclass(frozen=True)
class ShardResult:
    """``results/NNNN.json``: what the stream task of a shard has done so far, over all its tries. Sizes in bytes.

    Attributes:
        shard: Its index in the plan.
        name: For people.
        state: ``running``, ``done``, ``failed`` or ``drained``: of the newest try.
        try_number: Of the newest try.
        started: When the first try began (ISO, UTC); empty = unknown.
        seconds: From then to the last sign of life, pauses between tries included.
        images: Of the shard.
        todo: Images that were missing when the first try began.
        stored, bytes: Stored by all tries.
        failed: Images that the newest try could not have.
        failed_before: Images that an earlier try could not have and that the newest has not come to, or has stored.
        error: What ended the newest try early.
        connections: In use now.
        allowed: The most that the newest try might hold; 0 = unknown.
        retries, handshakes, faults: Of all tries.
        series: (seconds since ``started``, images, bytes, connections) for each stretch that ends there; a pause
            between two tries is a stretch in which nothing came.
    """

    shard: int
    name: str = ""
    state: str = "running"
    try_number: int = 1
    started: str = ""
    updated: str = ""
    seconds: float = 0.0
    images: int = 0
    todo: int = 0
    stored: int = 0
    bytes: int = 0
    failed: Sequence[Failure] = ()
    failed_before: Sequence[Failure] = ()
    error: Failure | None = None
    connections: int = 0
    allowed: int = 0
    retries: int = 0
    handshakes: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    series: Sequence[tuple[float, float, float, float]] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ShardResult:
        """Raises ValueError where it does not say which shard it is of."""
        shard = document.get("shard")
        if not isinstance(shard, int) or isinstance(shard, bool) or shard < 0:
            raise ValueError("it does not say which shard it is of")
        counts = {
            name: count(document.get(name))
            for name in ("images", "todo", "stored", "bytes", "connections", "allowed", "retries", "handshakes")
        }
        faults = document.get("faults")
        return cls(
            shard=shard,
            name=text(document.get("name")),
            state=text(document.get("state")) or "unknown",
            try_number=count(document.get("try_number")) or 1,
            started=text(document.get("started")),
            updated=text(document.get("updated")),
            seconds=number(document.get("seconds")),
            failed=_failures(document.get("failed")),
            failed_before=_failures(document.get("failed_before")),
            error=Failure.from_json(document.get("error")),
            faults={str(k): count(v) for k, v in faults.items()} if isinstance(faults, Mapping) else {},
            series=_series(document.get("series")),
            **counts,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def began(self) -> float:
        """``started`` in seconds since 1970; 0 = unknown."""
        return timestamp(self.started)

    @property
    def untried(self) -> int:
        """Images that were neither stored nor named."""
        return max(self.todo - self.stored - len(self.failed), 0)

    @property
    def known_failures(self) -> list[Failure]:
        """Every image that any try could not have, with its newest reason; some may be stored since."""
        return [*self.failed_before, *self.failed]

    def after(self, earlier: ShardResult | None) -> ShardResult:
        """This try, which knows only itself, together with what the tries before it had done."""
        if earlier is None or earlier.images != self.images or earlier.name != self.name:  # cut in another way
            return self
        again = {failure.path for failure in self.failed}
        offset = max(self.began - earlier.began, earlier.seconds) if earlier.began and self.began else earlier.seconds
        last = earlier.series[-1][0] if earlier.series else 0.0
        offset = max(offset, last)
        pause = [(offset, 0, 0, 0)] if offset > last else []
        shifted = [(point[0] + offset, point[1], point[2], point[3]) for point in self.series]
        series = [*earlier.series, *pause, *shifted]
        while len(series) > _POINTS:
            series = _halved(series)
        return replace(
            self,
            started=earlier.started or self.started,
            seconds=round(offset + self.seconds, 1),
            todo=earlier.stored + self.todo,
            stored=earlier.stored + self.stored,
            bytes=earlier.bytes + self.bytes,
            failed_before=[failure for failure in earlier.known_failures if failure.path not in again],
            retries=earlier.retries + self.retries,
            handshakes=earlier.handshakes + self.handshakes,
            faults=dict(Counter(earlier.faults) + Counter(self.faults)),
            series=series,
        )


def _failures(documents: Any) -> list[Failure]:
    if not isinstance(documents, Sequence) or isinstance(documents, str):
        return []
    return [failure for document in documents if (failure := Failure.from_json(document))]


def _series(points: Any) -> list[tuple[float, float, float, float]]:
    """The points that are points, as long as their time goes forward."""
    series: list[tuple[float, float, float, float]] = []
    for point in points if isinstance(points, Sequence) and not isinstance(points, str) else ():
        if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 4:
            continue
        if not all(_is_number(value) and value >= 0 for value in point) or (series and point[0] < series[-1][0]):
            continue
        series.append((point[0], point[1], point[2], point[3]))
    return series


def _halved(series: Sequence[tuple[float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    """Two neighbouring stretches made one."""
    merged = []
    since = 0.0
    for at in range(0, len(series), 2):
        pair = series[at : at + 2]
        until = pair[-1][0]
        held = pair[0][3] * (pair[0][0] - since) + (pair[1][3] * (until - pair[0][0]) if len(pair) == 2 else 0)
        mean = held / (until - since) if until > since else pair[0][3]
        merged.append((until, sum(p[1] for p in pair), sum(p[2] for p in pair), round(mean, 2)))
        since = until
    return merged


# -- plan and report, as far as they are read again --------------------------------------------------------------------


@dataclass(frozen=True)
class RunPlan:
    """``plan.json``, as far as it is read again (``plan.document`` writes it).

    Attributes:
        run_id, dag_id: Whose plan it is; earlier versions wrote no ``dag_id``, which is then empty.
        params: What was asked for.
        notes: Sentences of the selection.
        shards: In order.
        way: Which way the files take (``Way.to_json``); empty in a plan of an earlier version.
    """

    run_id: str
    dag_id: str
    params: Mapping[str, Any]
    notes: Sequence[str]
    shards: Sequence[Shard]
    way: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunPlan:
        """Raises ValueError where a shard is not described in full: half a plan is none."""
        shards = document.get("shards")
        if not isinstance(shards, list):
            raise ValueError("it lists no shards")
        try:
            made = [Shard.from_dict(shard) for shard in shards]
        except (KeyError, TypeError, AttributeError):
            raise ValueError("a shard is not described in full") from None
        if [shard.index for shard in made] != list(range(len(made))):
            raise ValueError("its shards are not in order")
        notes = _mapping(document.get("selection")).get("notes")
        return cls(
            run_id=text(document.get("run_id")),
            dag_id=text(document.get("dag_id")),
            params=_mapping(document.get("request")),
            notes=[str(note) for note in notes] if isinstance(notes, list) else [],
            shards=made,
            way=_mapping(document.get("way")),
        )


@dataclass(frozen=True)
class RunReport:
    """``report.json`` of an earlier run, as far as a plan learns from it. The document itself is in ``document``.

    Attributes:
        run_id: Of the run.
        finished: When the report was built, in seconds since 1970; 0 = unknown.
        source: Where the images came from: ``physionet`` or ``s3``.
        bytes: Fetched and stored by the run.
        seconds: From the first stream task's start to the last one's end.
    """

    run_id: str
    finished: float
    source: str
    bytes: int
    seconds: float
    document: Mapping[str, Any]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunReport:
        run, transfer, params, way = (_mapping(document.get(name)) for name in ("run", "transfer", "params", "way"))
        source = text(way.get("source")) or text(params.get("source"))
        return cls(
            run_id=text(run.get("id")),
            finished=timestamp(run.get("finished")),
            source=source if source in ("physionet", "s3") else "physionet",
            bytes=count(transfer.get("bytes")),
            seconds=number(transfer.get("seconds")),
            document=document,
        )


@dataclass(frozen=True)
class SumsSeen:
    """``sums.json``: what ``fetch_metadata`` found last.

    Attributes:
        etag: Of SHA256SUMS.txt at PhysioNet.
        sha256: Of SHA256SUMS.txt.
        manifest: SHA-256 of the bytes of manifest.parquet; empty = an earlier version wrote this.
        notes: Sentences on files that no image needs and that could not be had.
    """

    etag: str | None = None
    sha256: str = ""
    manifest: str = ""
    notes: Sequence[str] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SumsSeen:
        etag, notes = document.get("etag"), document.get("notes")
        return cls(
            etag if isinstance(etag, str) else None,
            text(document.get("sha256")),
            text(document.get("manifest")),
            tuple(str(note) for note in notes) if isinstance(notes, list) else (),
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}


# -- values ------------------------------------------------------------------------------------------------------------


def text(value: object) -> str:
    """A string as it is, anything else as none."""
    return value if isinstance(value, str) else ""


def number(value: object) -> float:
    """A finite number, anything else as 0."""
    return float(value) if _is_number(value) else 0.0  # type: ignore[arg-type]


def count(value: object) -> int:
    """A whole number of at least 0, anything else as 0."""
    return max(int(number(value)), 0)


def timestamp(value: object) -> float:
    """Seconds since 1970 of an ISO time (UTC where it names no zone), 0 where there is none."""
    try:
        at = datetime.fromisoformat(text(value))
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def plain_failures(failures: Iterable[Failure]) -> dict[str, tuple[str, str]]:
    """(reason, detail) by path; of two for one path the later one."""
    return {failure.path: (failure.reason, failure.detail) for failure in failures}
