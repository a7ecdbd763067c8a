"""What lies below ``_mirror/`` as JSON, one type a document: written with ``to_json``, read with ``from_json``.

A record's fields bear the names under which they are stored. `Record.from_json` takes what this and earlier versions
wrote, and what is left of it when a field is damaged: a field that is not what it should be gets its default, and an
entry of a list that is not what it should be is left out. Where a field has no default, nothing is left of the record.
`load` reads a document that nothing depends on: a damaged one is named in a warning and counts as absent, so that it
costs requests and never a run.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Self, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

from physionet_mirror import words
from physionet_mirror.layout import BEFORE, MAIN_DAG, RunLayout
from physionet_mirror.s3.prices import PRICES_AS_OF, PRICES_SOURCE

if TYPE_CHECKING:
    from physionet_mirror.s3.bucket import Bucket

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
"""Of a document that is read. Ours have some kilobytes; a result that names each of 10,000 images has 4 MB."""

R = TypeVar("R", bound="Record")


class Record:
    """A document in the bucket, or a part of one: the base of frozen dataclasses."""

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The record that a document holds.

        Raises:
            ValueError: It is no object, or a field without a default is not there or not what it should be.
        """
        if not isinstance(document, Mapping):
            raise ValueError("it is no JSON object")
        found = {}
        for name, (kind, optional) in _kinds(cls).items():  # type: ignore[arg-type]  # a class is hashable
            try:
                found[name] = _fit(kind, document[name])
            except (KeyError, ValueError) as error:
                if not optional:
                    why = f": {error}" if isinstance(error, ValueError) else ""
                    raise ValueError(f"its field {name} cannot be read{why}") from None
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        return {name: _plain(getattr(self, name)) for name in _kinds(type(self))}  # type: ignore[arg-type]


def read(bucket: Bucket, path: str, kind: type[R], *, most: int = MOST_BYTES) -> R | None:
    """The record at ``path``; None where there is none, or an emptied one (see ``Bucket.discard``).

    Args:
        bucket: Where it lies.
        path: Below the prefix.
        kind: Its type.
        most: Bytes that it may have.

    Raises:
        ValueError: It is damaged. The message says in which way, as half a sentence.
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
    try:
        return kind.from_json(json.loads(data)) if data else None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load(bucket: Bucket, path: str, kind: type[R]) -> R | None:
    """The record at ``path``; None where there is none, or only a damaged one, which a warning names.

    Raises:
        DestinationError: S3 cannot be asked.
    """
    try:
        return read(bucket, path, kind)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        log.warning("%s is damaged (%s) and counts as absent. No image is affected.", bucket.uri(path), error)
        return None


# -- any record --------------------------------------------------------------------------------------------------------

_NOT_STORED: Mapping[str, bool] = {"stored": False}

_LARGEST = 2**53
"""No number of ours is as large; beyond it, a float is no longer exact."""


@cache
def _kinds(record: type[Record]) -> dict[str, tuple[Any, bool]]:
    """The stored fields of a record: each one's type, and whether it has a default."""
    hints = get_type_hints(record)
    return {each.name: (hints[each.name], _has_default(each)) for each in _fields(record)}


def _fields(record: type[Record]) -> Iterable[Field[Any]]:
    return (each for each in fields(record) if each.metadata.get("stored", True))  # type: ignore[arg-type]


def _has_default(each: Field[Any]) -> bool:
    return each.default is not MISSING or each.default_factory is not MISSING


def _fit(kind: Any, value: Any) -> Any:
    """A value as a field of this type holds it. Raises ValueError where it is none."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        return None if value is None else _fit(next(part for part in parts if part is not NoneType), value)
    if origin is Mapping:
        return _fit_values(parts[1], value)
    if origin is Sequence:
        return _fit_items(parts[0], value)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise ValueError(f"a list of {len(parts)} is wanted")
        return tuple(_fit(part, item) for part, item in zip(parts, value, strict=True))
    if issubclass(kind, Record):
        return kind.from_json(value)
    if kind is int or kind is float:
        if not is_number(value) or (kind is int and value < 0):
            raise ValueError("a number is wanted")
        if kind is int and value != int(value):
            raise ValueError("a whole number is wanted")
        return int(value) if kind is int else value
    if not isinstance(value, kind):
        raise ValueError(f"a {kind.__name__} is wanted")
    return value


def _fit_values(kind: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("an object is wanted")
    found = {}
    for name, item in value.items():
        try:
            found[str(name)] = _fit(kind, item)
        except ValueError:
            continue
    return found


def _fit_items(kind: Any, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("a list is wanted")
    found = []
    for item in value:
        try:
            found.append(_fit(kind, item))
        except ValueError:
            continue
    return tuple(found)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number of a size that occurs; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def timestamp(text: str) -> float:
    """Seconds since 1970 of an ISO time (UTC where it names no zone), 0 where there is none."""
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


# -- files that are not there ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Failure(Record):
    """A file that could not be fetched, or that is not in the bucket as PhysioNet publishes it.

    Attributes:
        path: Below the prefix; empty where it is what ended a whole task.
        reason: Short stable words for grouping, such as ``missing``, ``wrong bytes``, ``not found``.
        detail: A sentence or more, or empty.
    """

    path: str = ""
    reason: str = "unknown"
    detail: str = ""


@dataclass(frozen=True)
class FailureGroup(Record):
    """The files that failed for one reason.

    Attributes:
        reason: Of all of them.
        count: How many.
        next_step: What to do about them.
        examples: Some of them, in order of path.
    """

    reason: str = "unknown"
    count: int = 0
    next_step: str = ""
    examples: Sequence[Failure] = ()

    @classmethod
    def from_json(cls, document: object) -> Self:
        group = super().from_json(document)
        return replace(group, examples=[replace(each, reason=group.reason) for each in group.examples])

    def to_json(self) -> dict[str, Any]:
        """The examples without the reason, which is the group's."""
        examples = [{"path": each.path, "detail": each.detail} for each in self.examples]
        return {**super().to_json(), "examples": examples}


def grouped(
    failures: Iterable[Failure], most: int, next_step: Callable[[str], str] = lambda _: ""
) -> list[FailureGroup]:
    """Failures by reason, the most frequent first, with at most so many examples each.

    Args:
        failures: All of them.
        most: Examples of a reason.
        next_step: What to do about files that failed for a reason.
    """
    by_reason: dict[str, list[Failure]] = {}
    for failure in sorted(failures):
        by_reason.setdefault(failure.reason, []).append(failure)
    most_first = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return [FailureGroup(r, len(each), next_step(r), each[:most]) for r, each in most_first]


# -- plan.json ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard(Record):
    """A contiguous part of the selection, in byte order of path; small enough for XCom.

    Attributes:
        index: 0, 1, 2, …
        images: How many.
        first: Path of the first image.
        last: Path of the last image.
        path: Where its list of images lies below the prefix (see ``encode``).
        span: How many images the whole dataset has from first to last: what a LIST of the range costs in a full bucket.
        sha256: Of the bytes of that list (hex); empty in a plan of an earlier version.
        noun: What they are: ``image`` or ``file``.
    """

    index: int
    images: int
    first: str
    last: str
    path: str
    span: int
    sha256: str = ""
    noun: str = "image"

    @property
    def name(self) -> str:
        """For people: ``p10 … p11, 500 images``; within one group by subject, ``p10000032 … p10046166, 943 images``."""
        return f"{_range_name(self.first, self.last)}, {self.images:,} {self.noun}{'' if self.images == 1 else 's'}"

    def to_json(self) -> dict[str, Any]:
        """``name`` comes along for whoever reads it."""
        return {**super().to_json(), "name": self.name}


def _range_name(first: str, last: str) -> str:
    ours, theirs = first.split("/"), last.split("/")
    for depth in (1, 2):  # files/<group>/<patient>/…: the first that tells the ends apart
        if depth < min(len(ours), len(theirs)) - 1 and ours[depth] != theirs[depth]:
            return f"{ours[depth]} … {theirs[depth]}"
    if len(ours) > 3:
        return ours[2]  # one patient
    return ours[-1] if first == last else f"{ours[-1]} … {theirs[-1]}"


READ_BACK_BYTES_PER_SECOND = 100e6
"""Expected speed of reading back from S3: most of what a link of 1 Gbit/s carries."""


@dataclass(frozen=True)
class Estimate(Record):
    """What a run is expected to take. Bytes are decimal for people and 2**30 a GB for AWS's bill; money is US dollars.

    Attributes:
        images: Images selected.
        bytes: Their size, from the mean size of an image.
        missing: Images that are expected to be fetched.
        missing_bytes: Their size.
        connections: PhysioNet connections that the run may hold.
        hours: Wall time of the fetching, at best.
        basis: Where the speed comes from.
        storage_class: Of the images.
        region: Whose prices are used, ``us-east-1`` for a region that the price table lacks.
        monthly: Storage of the whole selection for a month, by storage class.
        put_cost: The PUT requests of what is fetched, once.
        check_cost: The LIST and HEAD requests of looking and verifying, once.
        hours_most: Wall time of the fetching, at worst.
        read_back: Images that are read back from the bucket (``verify=content``).
        read_hours: Wall time of that.
        read_cost: GET requests and retrieval, once.
        read_transfer_cost: The transfer, once, where the worker is outside AWS; within the bucket's region it is free.
        prices_as_of: Month of the prices.
        noun: What is selected: ``image`` or ``file``.
        missing_bytes_least, missing_bytes_most: Between which ``missing_bytes`` lies; 0 = it is no range.
        sizes: What the sizes rest on; empty = an assumed or measured mean size.
    """

    images: int = 0
    bytes: int = 0
    missing: int = 0
    missing_bytes: int = 0
    connections: int = 0
    hours: float = 0.0
    basis: str = ""
    storage_class: str = ""
    region: str = ""
    monthly: Mapping[str, float] = field(default_factory=dict)
    put_cost: float = 0.0
    check_cost: float = 0.0
    hours_most: float = 0.0
    read_back: int = 0
    read_hours: float = 0.0
    read_cost: float = 0.0
    read_transfer_cost: float = 0.0
    prices_as_of: str = PRICES_AS_OF
    noun: str = "image"
    missing_bytes_least: int = 0
    missing_bytes_most: int = 0
    sizes: str = ""

    @property
    def gigabytes(self) -> float:
        """Decimal gigabytes to be fetched, at most: what ``approve_above_gb`` is compared with."""
        return max(self.missing_bytes, self.missing_bytes_most) / 1e9

    @property
    def size_range(self) -> str:
        """What is to be fetched, in words; a range where it is one."""
        least, most = words.size(self.missing_bytes_least), words.size(self.missing_bytes_most)
        return f"{least} to {most}" if self.missing_bytes_most and least != most else words.size(self.missing_bytes)

    @property
    def monthly_cost(self) -> float:
        """Storage a month in the chosen class (as STANDARD where the price table lacks the class)."""
        return self.monthly.get(self.storage_class, self.monthly.get("STANDARD", 0.0))

    @property
    def once_cost(self) -> float:
        """What S3 charges once: requests, and retrieval where everything is read back."""
        return self.put_cost + self.check_cost + self.read_cost

    @property
    def time(self) -> str:
        """Wall time of the fetching, in words; a range where the speed is a range."""
        return words.about(3600 * self.hours, 3600 * self.hours_most)

    @property
    def reading(self) -> str:
        """What reading everything back takes, in words."""
        return (
            f"{words.about(3600 * self.read_hours)} at {READ_BACK_BYTES_PER_SECOND / 1e6:.0f} MB/s, "
            f"{words.money(self.read_cost)}, and {words.money(self.read_transfer_cost)} for a worker outside AWS"
        )

    @classmethod
    def from_json(cls, document: object) -> Self:
        """A plan of an earlier version names one time."""
        values = document if isinstance(document, Mapping) else {}
        return super().from_json({"hours_most": values.get("hours"), **values})

    def table(self, shards: int | None = None) -> str:
        """The estimate as a small text table, for the log and the approval page."""
        rows = [
            (f"{self.noun}s selected", f"{self.images:,}", words.size(self.bytes)),
            ("expected to be fetched", f"{self.missing:,}", self.size_range),
        ]
        if self.sizes:
            rows.append(("sizes", "", self.sizes))
        if shards is not None:
            each = math.ceil(self.images / shards) if shards else 0
            rows.append(("shards", f"{shards:,}", f"at most {each:,} {self.noun}s each"))
        rows += [
            ("time", self.time, f"{self.connections} connections, {self.basis}"),
        ]
        if self.read_back:
            rows.append(("reading it all back", words.about(3600 * self.read_hours), self.reading.partition(" at ")[2]))
        rows.append(
            (
                "S3 requests, once",
                words.money(self.once_cost),
                f"PUT {words.money(self.put_cost)} in {self.storage_class}",
            )
        )
        for name, cost in self.monthly.items():
            chosen = "chosen" if name == self.storage_class else ""
            rows.append((f"S3 a month, {name}", words.money(cost), chosen))
        left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"{a:<{left}}  {b:>{middle}}  {c}".rstrip() for a, b, c in rows]
        return "\n".join([*lines, f"Prices: S3 list prices of {self.region}, {self.prices_as_of}. {PRICES_SOURCE}"])


@dataclass(frozen=True)
class PlannedDataset(Record):
    """The version that a plan chose from: its SHA256SUMS.txt, and how many images it has."""

    name: str = ""
    title: str = ""
    sums_sha256: str = ""
    images: int = 0


@dataclass(frozen=True)
class PlannedSelection(Record):
    """How many images the filters leave, how many of them were chosen, and sentences on that."""

    matched: int = 0
    images: int = 0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plan(Record):
    """``plan.json``: what was asked, of what, how it was cut, and what it is expected to take.

    Attributes:
        run_id, dag_id: Whose plan it is; earlier versions wrote no ``dag_id``, which is then empty.
        created: When (ISO, UTC).
        request: The params, as given.
        dataset, selection: What they came to.
        way: Which way the files take (``Way.to_json``); empty in a plan of an earlier version.
        shards: In order.
        estimate: What it is expected to take.
    """

    shards: Sequence[Shard]
    schema: str = ""
    run_id: str = ""
    dag_id: str = ""
    created: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    dataset: PlannedDataset = PlannedDataset()
    way: Mapping[str, Any] = field(default_factory=dict)
    selection: PlannedSelection = PlannedSelection()
    estimate: Estimate = Estimate()

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Half a plan is none: every shard must be described in full. An estimate that is lost expects all to be fetched."""
        plan = super().from_json(document)
        assert isinstance(document, Mapping)
        if len(plan.shards) != len(document["shards"]):
            raise ValueError("a shard is not described in full")
        if [shard.index for shard in plan.shards] != list(range(len(plan.shards))):
            raise ValueError("its shards are not in order")
        if not (plan.shards or plan.schema or plan.request):
            raise ValueError("it is no plan")
        estimate = document.get("estimate")
        if isinstance(estimate, Mapping) and is_number(estimate.get("missing")):
            return plan
        return replace(plan, estimate=replace(plan.estimate, missing=sum(shard.images for shard in plan.shards)))

    @property
    def notes(self) -> Sequence[str]:
        """Sentences on the selection."""
        return self.selection.notes

    def table(self) -> str:
        """The estimate as a small text table."""
        return self.estimate.table(len(self.shards))


# -- results/NNNN.json and pace.json -----------------------------------------------------------------------------------

_POINTS = 240  # of a series that holds several tries, before neighbours are merged


@dataclass(frozen=True)
class ShardResult(Record):
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
    state: str = "unknown"
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
    def from_json(cls, document: object) -> Self:
        """Of the series, what goes forward in time."""
        result = super().from_json(document)
        return replace(result, series=_forward(result.series))

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
            failed_before=tuple(failure for failure in earlier.known_failures if failure.path not in again),
            retries=earlier.retries + self.retries,
            handshakes=earlier.handshakes + self.handshakes,
            faults=dict(Counter(earlier.faults) + Counter(self.faults)),
            series=tuple(series),
        )


def _forward(points: Sequence[tuple[float, float, float, float]]) -> Sequence[tuple[float, float, float, float]]:
    series: list[tuple[float, float, float, float]] = []
    for point in points:
        if min(point) >= 0 and (not series or point[0] >= series[-1][0]):
            series.append(point)
    return tuple(series)


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


@dataclass(frozen=True)
class PaceMemory(Record):
    """``pace.json``: what `pace.Pace` found out, for the next shard to start with.

    Attributes:
        start: Requests at once that held.
        too_many: The lowest number known to be too many.
        probe_in: Seconds until that one is tried again.
    """

    start: int | None = None
    too_many: int | None = None
    probe_in: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What is known."""
        return {name: value for name, value in super().to_json().items() if value is not None}


# -- report.json -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportedRun(Record):
    """The run: its ids, when it began and when the report was built (ISO, UTC), and the seconds between them."""

    id: str = ""
    dag_id: str = ""
    started: str = ""
    finished: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class ReportedDataset(Record):
    """What was mirrored; ``images`` and ``manifest_sha256`` (of SHA256SUMS.txt) are the manifest's."""

    name: str = ""
    title: str = ""
    page: str = ""
    agreement_page: str = ""
    citation: str = ""
    images: int = 0
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class Destination(Record):
    """Where it went."""

    bucket: str = ""
    prefix: str = ""
    uri: str = ""


@dataclass(frozen=True)
class Result(Record):
    """What verification found, in images; ``bytes`` of those that are verified."""

    passed: bool = False
    level: str = ""
    selected: int = 0
    present: int = 0
    verified: int = 0
    missing: int = 0
    wrong: int = 0
    empty: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Part(Record):
    """A part of the cohort: images selected and verified."""

    name: str = ""
    selected: int = 0
    verified: int = 0


@dataclass(frozen=True)
class LabelCount(Record):
    """How many images have a label positive."""

    name: str = ""
    images: int = 0


@dataclass(frozen=True)
class ReportedCohort(Record):
    """Who is in the selection; None where the dataset does not say."""

    patients: int | None = None
    studies: int | None = None
    by_group: Sequence[Part] = ()
    by_split: Sequence[Part] = ()
    by_view: Sequence[Part] = ()
    positive_labels: Sequence[LabelCount] = ()


@dataclass(frozen=True)
class ReportedVerification(Record):
    """How the selection was verified."""

    level: str = ""
    seconds: float = 0.0
    remembered: int = 0
    read_back: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    cost_usd: float = 0.0


@dataclass(frozen=True)
class ReportedTransfer(Record):
    """What the stream tasks did together.

    Attributes:
        shards: How many tasks, by state.
        images, bytes: Fetched and stored.
        seconds: From the first task's start to the last one's end.
        connections: Mean in use while anything was fetched.
        connections_allowed: Mean of what the tasks at work were allowed; 0 = unknown, as in reports of earlier versions.
        connection_seconds: Seconds times connections in use; 0 = unknown.
        series: (seconds, images a second, bytes a second, connections) for each stretch that ends there.
    """

    shards: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    bytes: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    bytes_per_second: float = 0.0
    connections: float = 0.0
    connections_allowed: float = 0.0
    connection_seconds: float = 0.0
    retries: int = 0
    handshakes: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    series: Sequence[tuple[float, float, float, float]] = ()


@dataclass(frozen=True)
class ReportedRequests(Record):
    """S3 requests of the whole run, their price and whose price list that is."""

    by_kind: Mapping[str, int] = field(default_factory=dict)
    cost_usd: float = 0.0
    prices: str = ""


@dataclass(frozen=True)
class Sizes(Record):
    """The verified images' sizes in bytes: ``counts[i]`` images from ``edges[i]`` up to ``edges[i + 1]``."""

    smallest: int = 0
    median: int = 0
    mean: int = 0
    largest: int = 0
    edges: Sequence[int] = ()
    counts: Sequence[int] = ()


@dataclass(frozen=True)
class ReportedFiles(Record):
    """Where the run's files lie below the prefix; ``failed_images`` is None where nothing failed."""

    report_html: str = ""
    failed_images: str | None = None
    index: str = ""
    index_rows: int = 0


@dataclass(frozen=True)
class RunReport(Record):
    """``report.json``; docs/report-schema.md describes it.

    Attributes:
        way: Which way the files took (``Way.to_json``); empty in a report of an earlier version.
        noun: What was mirrored: ``image`` or ``file``.
        whole: Whether every figure that is shown of an earlier run could be read; of a new report it is true.
    """

    format: str = ""
    version: int = 0
    run: ReportedRun = ReportedRun()
    dataset: ReportedDataset = ReportedDataset()
    destination: Destination = Destination()
    params: Mapping[str, Any] = field(default_factory=dict)
    way: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    result: Result = Result()
    cohort: ReportedCohort = ReportedCohort()
    verification: ReportedVerification = ReportedVerification()
    transfer: ReportedTransfer = ReportedTransfer()
    requests: ReportedRequests = ReportedRequests()
    sizes: Sizes = Sizes()
    failures: Sequence[FailureGroup] = ()
    files: ReportedFiles = ReportedFiles()
    software: Mapping[str, str] = field(default_factory=dict)
    noun: str = "image"
    whole: bool = field(default=True, compare=False, metadata=_NOT_STORED)

    @classmethod
    def from_json(cls, document: object) -> Self:
        report = super().from_json(document)
        assert isinstance(document, Mapping)
        return replace(report, whole=_shown(document) and report.result.verified <= report.result.selected)

    @property
    def finished(self) -> float:
        """When it was built, in seconds since 1970; 0 = unknown."""
        return timestamp(self.run.finished)

    @property
    def source(self) -> str:
        """Where the images came from: ``physionet`` or ``s3``."""
        source = self.way.get("source") or self.params.get("source")
        return "s3" if source == "s3" else "physionet"

    @property
    def connections(self) -> float:
        """That were asked for; 0 = unknown."""
        asked = self.params.get("connections")
        return float(asked) if is_number(asked) else 0.0


def _shown(report: Mapping[str, Any]) -> bool:
    """Whether the figures that are shown of a report are there."""
    try:
        result, transfer, run = (_fit(Mapping[str, Any], report[name]) for name in ("result", "transfer", "run"))
        _fit(bool, result["passed"])
        for part, name in ((result, "selected"), (result, "verified"), (transfer, "images"), (transfer, "bytes")):
            _fit(int, part[name])
        return bool(_fit(float, run["seconds"]) >= 0)
    except (KeyError, ValueError):
        return False


# -- what other tasks leave --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Audit(Record):
    """``audit.json``: what an audit found.

    Attributes:
        run, dag_id, started: Of the run (ISO, UTC).
        destination: URI of bucket and prefix.
        level, share: What was asked for.
        looked_at, verified: Files compared, and those that are what PhysioNet publishes.
        differing: The others, by reason.
        bytes: Size of the verified ones.
        seconds, requests, cost_usd: What it took.
        notes: Sentences.
        failed_images: URI of the list of those that differ; None where nothing does.
    """

    format: str = "physionet-mirror/audit"
    version: int = 1
    run: str = ""
    dag_id: str = ""
    started: str = ""
    destination: str = ""
    level: str = ""
    share: str = ""
    looked_at: int = 0
    verified: int = 0
    differing: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    requests: Mapping[str, int] = field(default_factory=dict)
    cost_usd: float = 0.0
    notes: Sequence[str] = ()
    failed_images: str | None = None


@dataclass(frozen=True)
class SumsSeen(Record):
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


def located(bucket: Bucket, run: RunLayout) -> RunLayout:
    """Where a run's files lie in this bucket: its folder, or the one of an earlier version where only that is there.

    Raises:
        DestinationError: S3 cannot be asked.
    """
    if run.dag_id == MAIN_DAG or any(True for _ in bucket.list(run.root)):
        return run
    before = replace(run, old=True)
    if run.dag_id in BEFORE:
        return before if any(True for _ in bucket.list(before.root)) else run
    # A folder with the run id alone may be that of a run of the main DAG; a plan of the backfill tells.
    plan = load(bucket, before.plan, Plan)
    return before if plan is not None and not plan.dag_id and "slices" in plan.request else run
