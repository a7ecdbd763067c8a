"""The JSON documents below ``_mirror/``, one type each: written with ``to_json``, read with ``from_json``.

Fields have the names under which they are stored. `Record.from_json` accepts what this and earlier versions wrote, and
tolerates damage: a field of the wrong type gets its default, and a list entry of the wrong type is left out. If a field
without a default is damaged, the whole record is. `load` reads a document that a run can do without: a damaged one is
named in a warning and counts as absent, so that it costs requests but never a run.
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
from physionet_mirror.s3.capabilities import Capabilities
from physionet_mirror.s3.prices import PRICES_AS_OF, PRICES_SOURCE

if TYPE_CHECKING:
    from physionet_mirror.s3.bucket import Bucket

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
"""Largest document that is read. Ours have some kilobytes; a result that names each of 10,000 images has 4 MB."""

R = TypeVar("R", bound="Record")


class Record:
    """Base of the frozen dataclasses that describe a document in the bucket, or a part of one."""

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The record that a document holds.

        Raises:
            ValueError: It is not an object, or a field without a default is missing or of the wrong type.
        """
        if not isinstance(document, Mapping):
            raise ValueError("it is not a JSON object")
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
        """The record as it is stored, in plain JSON values."""
        return {name: _plain(getattr(self, name)) for name in _kinds(type(self))}  # type: ignore[arg-type]


def read(bucket: Bucket, path: str, kind: type[R], *, most: int = MOST_BYTES) -> R | None:
    """The record at ``path``; None if there is none, or only an emptied one (see ``Bucket.discard``).

    Args:
        bucket: Where it is stored.
        path: Its path below the prefix.
        kind: Its type.
        most: Largest size in bytes.

    Raises:
        ValueError: It is damaged. The message is a clause that says how.
        DestinationError: S3 cannot be read.
    """
    data = bytearray()
    try:
        for chunk in bucket.open_read(path):
            data += chunk
            if len(data) > most:
                raise ValueError(f"it has more than {most >> 20} MB, so this software did not write it")
    except FileNotFoundError:
        return None
    try:
        return kind.from_json(json.loads(data)) if data else None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load(bucket: Bucket, path: str, kind: type[R]) -> R | None:
    """The record at ``path``; None if there is none, or only a damaged one, which a warning names.

    Raises:
        DestinationError: S3 cannot be read.
    """
    try:
        return read(bucket, path, kind)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        log.warning("%s is damaged (%s) and counts as absent. No file is affected.", bucket.uri(path), error)
        return None


# -- any record --------------------------------------------------------------------------------------------------------

_NOT_STORED: Mapping[str, bool] = {"stored": False}

_LARGEST = 2**53
"""Numbers at or beyond this are rejected: none of ours is as large, and a float is no longer exact there."""


@cache
def _kinds(record: type[Record]) -> dict[str, tuple[Any, bool]]:
    """The stored fields of a record, with the type of each and whether it has a default."""
    hints = get_type_hints(record)
    return {each.name: (hints[each.name], _has_default(each)) for each in _fields(record)}


def _fields(record: type[Record]) -> Iterable[Field[Any]]:
    return (each for each in fields(record) if each.metadata.get("stored", True))  # type: ignore[arg-type]


def _has_default(each: Field[Any]) -> bool:
    return each.default is not MISSING or each.default_factory is not MISSING


def _fit(kind: Any, value: Any) -> Any:
    """The value converted to the type of its field. Raises ValueError if it does not fit."""
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
            raise ValueError(f"a list of {len(parts)} is expected")
        return tuple(_fit(part, item) for part, item in zip(parts, value, strict=True))
    if issubclass(kind, Record):
        return kind.from_json(value)
    if kind is int or kind is float:
        if not is_number(value) or (kind is int and value < 0):
            raise ValueError("a number is expected")
        if kind is int and value != int(value):
            raise ValueError("a whole number is expected")
        return int(value) if kind is int else value
    if not isinstance(value, kind):
        raise ValueError(f"a {kind.__name__} is expected")
    return value


def _fit_values(kind: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("an object is expected")
    found = {}
    for name, item in value.items():
        try:
            found[str(name)] = _fit(kind, item)
        except ValueError:
            continue
    return found


def _fit_items(kind: Any, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("a list is expected")
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
    """Whether this is a finite number of plausible size; a bool is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def timestamp(text: str) -> float:
    """An ISO time (UTC unless it names a zone) in seconds since 1970; 0 if the text is not one."""
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
        path: Path below the prefix; empty for the error that ended a whole task.
        reason: Short stable words for grouping, such as ``missing``, ``wrong bytes``, ``not found``.
        detail: One or more sentences, or empty.
    """

    path: str = ""
    reason: str = "unknown"
    detail: str = ""


@dataclass(frozen=True)
class FailureGroup(Record):
    """The files that failed for one reason.

    Attributes:
        reason: The common reason.
        count: Number of files.
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
        """The group, with its examples stripped of the reason that they share."""
        examples = [{"path": each.path, "detail": each.detail} for each in self.examples]
        return {**super().to_json(), "examples": examples}


def grouped(
    failures: Iterable[Failure], most: int, next_step: Callable[[str], str] = lambda _: ""
) -> list[FailureGroup]:
    """Failures grouped by reason, the most frequent first.

    Args:
        failures: All failures.
        most: Most examples per reason.
        next_step: Gives, for a reason, what to do about its files.
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
        images: Number of images.
        first: Path of the first image.
        last: Path of the last image.
        path: Path of its list of images, below the prefix (see ``encode``).
        span: Number of images that the whole dataset has from first to last: the cost of a LIST in a full bucket.
        sha256: SHA-256 of that list (hex); empty in a plan of an earlier version.
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
        """The shard and its ``name``, which is stored for readers only."""
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
"""Expected speed of reading back from S3: most of a 1 Gbit/s link."""


@dataclass(frozen=True)
class Estimate(Record):
    """What a run is expected to take. A GB is 10**9 bytes for people and 2**30 for AWS's bill; costs are in US dollars.

    Attributes:
        images: Images selected.
        bytes: Their size: from the mean size of an image, or as the access point lists them.
        missing: Images expected to be fetched.
        missing_bytes: Their size.
        connections: PhysioNet connections that the run may hold; from its access point, files under way.
        hours: Duration of the transfer, at best.
        basis: Where the speed comes from.
        storage_class: Storage class of the images.
        region: Region whose prices are used; ``us-east-1`` if the price table lacks the bucket's.
        monthly: Storage of the whole selection for a month, by storage class.
        put_cost: PUT requests of the images fetched, once.
        check_cost: LIST and HEAD requests of comparing and verifying, once.
        hours_most: Duration of the transfer, at worst.
        read_back: Images read back from the bucket: all for ``verify=content``; for ``checksum`` those to be fetched, if the
            store gives no SHA-256.
        read_hours: Duration of reading them back.
        read_cost: GET requests and retrieval, once.
        read_transfer_cost: Transfer to a worker outside AWS, once; within the bucket's region it is free.
        prices_as_of: Month of the prices.
        noun: What is selected: ``image`` or ``file``.
        missing_bytes_least, missing_bytes_most: Between which ``missing_bytes`` lies; 0 = it is no range.
        sizes: What the sizes rest on; empty = an assumed or measured mean size.
        mode: How the files come (`mover.Mode`).
        exact: The access point was listed, so that both sizes are exact to the byte.
        transfer_to: Where what leaves us-east-1 goes; empty = nothing leaves it, or the files come from the website.
        transfer_cost: What AWS asks for that, once.
        transfer_outside: What it asks where the worker is outside AWS.
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
    mode: str = "download"
    exact: bool = False
    transfer_to: str = ""
    transfer_cost: float = 0.0
    transfer_outside: float = 0.0

    @property
    def gigabytes(self) -> float:
        """Decimal gigabytes to be fetched, at most: what ``approve_above_gb`` is compared with."""
        return max(self.missing_bytes, self.missing_bytes_most) / 1e9

    @property
    def size_range(self) -> str:
        """What is to be fetched, in words; a range where it is one, and every byte where that is known."""
        if self.exact:
            return f"{words.size(self.missing_bytes)}, {self.missing_bytes:,} bytes as listed"
        least, most = words.size(self.missing_bytes_least), words.size(self.missing_bytes_most)
        return f"{least} to {most}" if self.missing_bytes_most and least != most else words.size(self.missing_bytes)

    @property
    def monthly_cost(self) -> float:
        """Storage for a month in the chosen class (as STANDARD if the price table lacks the class)."""
        return self.monthly.get(self.storage_class, self.monthly.get("STANDARD", 0.0))

    @property
    def once_cost(self) -> float:
        """What S3 charges once: requests, and retrieval if everything is read back."""
        return self.put_cost + self.check_cost + self.read_cost

    @property
    def time(self) -> str:
        """Duration of the transfer, in words; a range if the speed is a range."""
        return words.about(3600 * self.hours, 3600 * self.hours_most)

    @property
    def speed(self) -> str:
        """How many files are under way, and where the speed comes from, in words."""
        return f"{words.under_way(self.connections, self.mode)}, {self.basis}"

    @property
    def transfer(self) -> str:
        """What AWS asks for the bytes that leave us-east-1, in words; empty from the website, which is not in AWS."""
        if self.mode == "download":
            return ""
        if self.mode == "copy":
            return "none: S3 copies inside the Region"
        outside = f"{words.money(self.transfer_outside)} for a worker outside AWS"
        if not self.transfer_to:
            return f"none for a worker in us-east-1; {outside}"
        cost = f"{words.money(self.transfer_cost)} to {self.transfer_to}"
        return cost if self.transfer_cost == self.transfer_outside else f"{cost}; {outside}"

    @property
    def reading(self) -> str:
        """Time and cost of reading everything back, in words."""
        return (
            f"{words.about(3600 * self.read_hours)} at {READ_BACK_BYTES_PER_SECOND / 1e6:.0f} MB/s, "
            f"{words.money(self.read_cost)}, and {words.money(self.read_transfer_cost)} for a worker outside AWS"
        )

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The estimate; plans of earlier versions have only ``hours``. An unknown way counts as the website."""
        values = document if isinstance(document, Mapping) else {}
        found = super().from_json({"hours_most": values.get("hours"), **values})
        return found if found.mode in words.WAYS else replace(found, mode="download")

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
            ("time", self.time, self.speed),
        ]
        if self.transfer:
            rows.append(("out of us-east-1, once", words.money(self.transfer_cost), self.transfer))
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
class Store(Capabilities, Record):
    """What the bucket's S3 can do, as the run's access check has found it (`Capabilities`, field by field)."""


@dataclass(frozen=True)
class PlannedDataset(Record):
    """The version that a plan chose from: its SHA256SUMS.txt, and how many images it has."""

    name: str = ""
    title: str = ""
    sums_sha256: str = ""
    images: int = 0


@dataclass(frozen=True)
class PlannedSelection(Record):
    """The number of images that match the filters, the number chosen, and notes on the choice."""

    matched: int = 0
    images: int = 0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plan(Record):
    """``plan.json``: the request, the selection, its shards, and the estimate.

    Attributes:
        run_id, dag_id: The planned run; ``dag_id`` is empty in plans of earlier versions.
        created: Time of planning (ISO, UTC).
        request: The params, as given.
        dataset, selection: What the params selected.
        way: How the files are transferred (``Way.to_json``); empty in a plan of an earlier version.
        store: What the bucket's S3 can do; None where nobody has tried, as in a plan of an earlier version.
        shards: In order of index.
        estimate: What the run is expected to take.
    """

    shards: Sequence[Shard]
    schema: str = ""
    run_id: str = ""
    dag_id: str = ""
    created: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    dataset: PlannedDataset = PlannedDataset()
    way: Mapping[str, Any] = field(default_factory=dict)
    store: Store | None = None
    selection: PlannedSelection = PlannedSelection()
    estimate: Estimate = Estimate()

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The plan. Every shard must be complete; without an estimate, all images are expected to be fetched."""
        plan = super().from_json(document)
        assert isinstance(document, Mapping)
        if len(plan.shards) != len(document["shards"]):
            raise ValueError("a shard is not described in full")
        if [shard.index for shard in plan.shards] != list(range(len(plan.shards))):
            raise ValueError("its shards are not in order")
        if not (plan.shards or plan.schema or plan.request):
            raise ValueError("it is not a plan")
        estimate = document.get("estimate")
        if isinstance(estimate, Mapping) and is_number(estimate.get("missing")):
            return plan
        return replace(plan, estimate=replace(plan.estimate, missing=sum(shard.images for shard in plan.shards)))

    @property
    def notes(self) -> Sequence[str]:
        """Notes on the selection."""
        return self.selection.notes

    @property
    def mode(self) -> str:
        """How the files come (`mover.Mode`)."""
        return _mode(self.way, self.request)

    @property
    def source(self) -> str:
        """Where the files come from, and why, in a sentence; empty in a plan of an earlier version."""
        return words.source(self.mode, str(self.way.get("reason") or "")) if self.way else ""

    def table(self) -> str:
        """The estimate as a small text table."""
        return self.estimate.table(len(self.shards))


def _mode(way: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """How the files of a run come; an earlier version knew two ways and wrote neither down."""
    mode = way.get("mode")
    if mode in words.WAYS:
        return str(mode)
    return "copy" if params.get("source") == "s3" else "download"


# -- results/NNNN.json and pace.json -----------------------------------------------------------------------------------

_POINTS = 240  # most points of a series over several tries; beyond, neighbours are merged


@dataclass(frozen=True)
class ShardResult(Record):
    """``results/NNNN.json``: what a shard's stream task has done so far, over all its tries. Sizes in bytes.

    Attributes:
        shard: Its index in the plan.
        name: Its name, for people.
        state: State of the latest try: ``running``, ``done``, ``failed`` or ``drained``.
        try_number: Number of the latest try.
        started: When the first try began (ISO, UTC); empty = unknown.
        seconds: From then to the last update, including pauses between tries.
        images: Images in the shard.
        todo: Images that were missing when the first try began.
        stored, bytes: Images stored by all tries, and their size.
        failed: Images that the latest try could not fetch.
        failed_before: Images that an earlier try could not fetch and the latest has not reached, or has stored.
        error: The error that ended the latest try early.
        connections: Connections in use now.
        allowed: The most connections that the latest try could hold; 0 = unknown.
        retries, handshakes, faults: Totals over all tries.
        series: (seconds since ``started``, images, bytes, connections); each point covers the time since the point
            before it. A pause between two tries is a point without images and bytes.
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
        """The result; points of the series that go back in time are left out."""
        result = super().from_json(document)
        return replace(result, series=_forward(result.series))

    @property
    def began(self) -> float:
        """``started`` in seconds since 1970; 0 = unknown."""
        return timestamp(self.started)

    @property
    def untried(self) -> int:
        """Images that were neither stored nor reported as failed."""
        return max(self.todo - self.stored - len(self.failed), 0)

    @property
    def known_failures(self) -> list[Failure]:
        """Every image that any try failed to fetch, with its latest reason; some may have been stored since."""
        return [*self.failed_before, *self.failed]

    def after(self, earlier: ShardResult | None) -> ShardResult:
        """The result of this try merged with that of the tries before it."""
        if earlier is None:
            return self
        if (earlier.images, earlier.name) != (self.images, self.name):  # a new plan cut the shards in another way
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
    """The series with each two neighbouring points merged into one."""
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
    """``pace.json``: what `pace.Pace` has learned, so that the next shard starts with it.

    Attributes:
        start: Number of simultaneous requests that proved useful.
        too_many: The lowest number known to be too many.
        probe_in: Seconds until that number is tried again.
    """

    start: int | None = None
    too_many: int | None = None
    probe_in: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are known."""
        return {name: value for name, value in super().to_json().items() if value is not None}


# -- report.json -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportedRun(Record):
    """The run's ids, its start, the time when the report was built (ISO, UTC), and the seconds between the two."""

    id: str = ""
    dag_id: str = ""
    started: str = ""
    finished: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class ReportedDataset(Record):
    """The dataset mirrored; ``images`` and ``manifest_sha256`` (that of SHA256SUMS.txt) come from the manifest."""

    name: str = ""
    title: str = ""
    page: str = ""
    agreement_page: str = ""
    citation: str = ""
    images: int = 0
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class Destination(Record):
    """The destination of the run."""

    bucket: str = ""
    prefix: str = ""
    uri: str = ""


@dataclass(frozen=True)
class Result(Record):
    """What verification found, in numbers of images; ``bytes`` is the size of the verified ones."""

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
    """A part of the cohort, with its images selected and verified."""

    name: str = ""
    selected: int = 0
    verified: int = 0


@dataclass(frozen=True)
class LabelCount(Record):
    """Number of images for which a label is positive."""

    name: str = ""
    images: int = 0


@dataclass(frozen=True)
class ReportedCohort(Record):
    """The cohort of the selection; None for what the dataset does not tell."""

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
    """The work of all stream tasks together.

    Attributes:
        shards: Number of tasks, by state.
        images, bytes: Images fetched and stored, and their size.
        seconds: From the first task's start to the last one's end.
        connections: Mean in use while anything was fetched; from the access point, files under way.
        connections_allowed: Mean number that the active tasks were allowed; 0 = unknown, as in reports of earlier versions.
        connection_seconds: Sum of seconds times connections in use; 0 = unknown.
        series: (seconds, images a second, bytes a second, connections); each point covers the time since the one before.
        out_to: Destination of what left us-east-1: a Region, ``the internet``, or empty.
        out_usd: AWS's list price of that.
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
    out_to: str = ""
    out_usd: float = 0.0


@dataclass(frozen=True)
class ReportedRequests(Record):
    """S3 requests of the whole run, their cost, and the price list used."""

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
    """Paths of the run's files, below the prefix; ``failed_images`` is None if nothing failed."""

    report_html: str = ""
    failed_images: str | None = None
    index: str = ""
    index_rows: int = 0


@dataclass(frozen=True)
class RunReport(Record):
    """``report.json``; docs/report-schema.md describes it.

    Attributes:
        way: How the files were transferred (``Way.to_json``); empty in a report of an earlier version.
        store: What the bucket's S3 can do, as the plan says.
        noun: What was mirrored: ``image`` or ``file``.
        whole: Whether all figures shown for an earlier run could be read; always true for a new report.
    """

    format: str = ""
    version: int = 0
    run: ReportedRun = ReportedRun()
    dataset: ReportedDataset = ReportedDataset()
    destination: Destination = Destination()
    params: Mapping[str, Any] = field(default_factory=dict)
    way: Mapping[str, Any] = field(default_factory=dict)
    store: Store | None = None
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
    def mode(self) -> str:
        """How the images came (`mover.Mode`)."""
        return _mode(self.way, self.params)

    @property
    def connections(self) -> float:
        """The param ``connections``; 0 = unknown."""
        asked = self.params.get("connections")
        return float(asked) if is_number(asked) else 0.0


def _shown(report: Mapping[str, Any]) -> bool:
    """Whether a report has the figures that are shown for an earlier run."""
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
        run, dag_id, started: Ids of the audit's run, and its start (ISO, UTC).
        destination: URI of bucket and prefix.
        level, share: The params.
        looked_at, verified: Files compared, and those that are what PhysioNet publishes.
        differing: Number of the others, by reason.
        bytes: Size of the verified ones.
        seconds, requests, cost_usd: Duration, S3 requests by kind, and their cost.
        notes: Sentences on what could not be done.
        failed_images: URI of the list of files that differ; None if none do.
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
        etag: ETag of SHA256SUMS.txt at PhysioNet.
        sha256: SHA-256 of SHA256SUMS.txt.
        manifest: SHA-256 of manifest.parquet; empty = written by an earlier version.
        notes: Sentences on files that could not be fetched and that no image needs.
        dataset: Whose it is, as ``slug/version``; empty = written by an earlier version.
    """

    etag: str | None = None
    sha256: str = ""
    manifest: str = ""
    notes: Sequence[str] = ()
    dataset: str = ""


def located(bucket: Bucket, run: RunLayout) -> RunLayout:
    """The layout of a run in this bucket: its folder, or that of an earlier version if only that exists.

    Raises:
        DestinationError: S3 cannot be read.
    """
    if run.dag_id == MAIN_DAG or any(True for _ in bucket.list(run.root)):
        return run
    before = replace(run, old=True)
    if run.dag_id in BEFORE:
        return before if any(True for _ in bucket.list(before.root)) else run
    # A folder named by the run id alone may belong to the main DAG; a plan with slices is the backfill's.
    plan = load(bucket, before.plan, Plan)
    return before if plan is not None and not plan.dag_id and "slices" in plan.request else run
