"""One shard: what is missing of it, and bringing that into the bucket."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from physionet_mirror import shards, words
from physionet_mirror.compare import Comparison, compare
from physionet_mirror.errors import DestinationError, MetadataError
from physionet_mirror.files import File
from physionet_mirror.layout import RunLayout
from physionet_mirror.mover import Mover, at_once
from physionet_mirror.pace import Pace, recall
from physionet_mirror.records import PaceMemory, Shard, ShardResult, load
from physionet_mirror.request import Level, Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.transfer import Transfer
from physionet_mirror.verified_cache import attempt_of

log = logging.getLogger(__name__)

_WORKERS = 16  # requests in flight of one comparison; many shards are compared side by side


@dataclass(frozen=True)
class Missing:
    """What of a shard is to be streamed.

    Attributes:
        images: Absent or wrong, in the shard's order.
        present: Images that need nothing.
        absent: Images that are not there.
        wrong: Images that are there with other bytes, or none; they are streamed again.
        read_back: Objects that were read, because nothing else proves them.
        requests: S3 requests made, by kind.
    """

    images: list[File]
    present: int
    absent: int
    wrong: int
    read_back: int
    requests: Mapping[str, int]


def find_missing(
    shard: Shard, request: Request, bucket: Bucket, run: RunLayout, *, started: datetime | None = None
) -> Missing:
    """Compare one shard with the bucket and write down what is missing, for `stream_shard`.

    What is there is proven at the level that is asked for, so that this very run brings whatever is not right. Proofs
    are remembered; `verify` asks for none of them again.

    Args:
        shard: Which.
        request: What is asked for.
        bucket: Destination.
        run: Where the list goes.
        started: When the run began; with ``verify=content``, what was read back since is not read again.

    Raises:
        MetadataError: The shard's list is not the one that was planned.
    """
    attempt = attempt_of(run, started) if started is not None else None
    found = _missing(shard, shards.read(bucket, shard), bucket, request.verify, attempt)
    if found.images:
        bucket.write(run.missing(shard.index), shards.seal(found.images), content_type="text/plain")
    log.info(
        "%s: %s to fetch (%s not there, %s wrong), %s already there. %d LIST and %d HEAD requests, %s objects read back.",
        shard.name,
        f"{len(found.images):,}",
        f"{found.absent:,}",
        f"{found.wrong:,}",
        f"{found.present:,}",
        found.requests.get("LIST", 0),
        found.requests.get("HEAD", 0),
        f"{found.read_back:,}",
    )
    return found


def _missing(shard: Shard, images: Sequence[File], bucket: Bucket, level: Level, attempt: str | None = None) -> Missing:
    found = compare(images, bucket, Comparison(level), run=attempt, span=shard.span, workers=_WORKERS)
    reasons = {problem.path: problem.reason for problem in found.problems}
    absent = sum(reason == "missing" for reason in reasons.values())
    return Missing(
        images=[image for image in images if image.path in reasons],
        present=len(found.ok),
        absent=absent,
        wrong=len(reasons) - absent,
        read_back=found.read_back,
        requests=found.requests,
    )


def _to_stream(shard: Shard, request: Request, bucket: Bucket, run: RunLayout, try_number: int) -> list[File]:
    """What `find_missing` wrote down; compared anew where that is lost, or where an earlier try has stored some of it."""
    level: Level = "count" if request.verify == "count" else "checksum"
    try:
        images = shards.decode(bucket.read(run.missing(shard.index)), sealed=True)
    except (FileNotFoundError, MetadataError) as error:
        log.warning("The list of what is missing of %s cannot be read (%s); compared anew.", shard.name, error)
        return _missing(shard, shards.read(bucket, shard), bucket, level).images
    return images if try_number == 1 else _missing(shard, images, bucket, level).images


@dataclass(frozen=True)
class Stop:
    """Tells a running shard to come to an end: what is under way is finished, the rest is left for the next try."""

    event: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.event.set()


class Watch(Protocol):
    """Whoever wants to know how a shard is getting on; called from its threads, and must not raise."""

    def publish(self, now: ShardResult) -> None:
        """What this try has done so far, every few seconds and in the end."""
        ...

    def image(self, seconds: float) -> None:
        """One image is stored, and took so long."""
        ...


def stream_shard(
    shard: Shard,
    request: Request,
    mover: Mover,
    bucket: Bucket,
    run: RunLayout,
    *,
    connections: int,
    stop: Stop,
    stops_at: datetime | None = None,
    try_number: int = 1,
    watch: Watch | None = None,
) -> ShardResult:
    """Bring what is missing of one shard from PhysioNet into the bucket; returns what its result file then holds.

    Args:
        shard: Whose images.
        request: What is asked for.
        mover: How one file crosses from PhysioNet to the bucket; closed in the end.
        bucket: Destination.
        run: Where list, progress and result lie.
        connections: The most PhysioNet connections at once.
        stop: Set it from another thread or a signal handler to drain.
        stops_at: Drain at this time; the result's state is then ``drained``, and that is no error.
        try_number: From the second on, what an earlier try has stored is left out, and counted in the result.
        watch: Who is told how it goes, beside the result file.

    Raises:
        ImagesFailed: Some images could not be had; the others are stored.
        MirrorError: What else `Transfer.run` raises.
    """
    images = _to_stream(shard, request, bucket, run, try_number)
    connections = at_once(connections, mover.per_connection)
    log.info(
        "%s (%s … %s): %s to fetch, %s already there, at most %s.",
        shard.name,
        shard.first,
        shard.last,
        f"{len(images):,}",
        f"{shard.images - len(images):,}",
        words.under_way(connections, mover.mode),
    )
    # A second try adds to what the first one did: the report tells of both.
    earlier = load(bucket, run.result(shard.index), ShardResult) if try_number > 1 else None

    def publish(now: ShardResult) -> None:
        """From a thread of its own: nothing waits for S3 here."""
        if watch is not None:
            watch.publish(now)
        try:
            bucket.write_json(run.result(shard.index), now.after(earlier).to_json())
            if now.state != "running":
                bucket.write_json(run.pace, pace.memory().to_json())
        except DestinationError as error:  # progress is for looking at; the images matter
            log.warning("The progress of %s could not be published: %s", shard.name, error)

    pace = Pace(
        connections,
        **recall(load(bucket, run.pace, PaceMemory), connections),
        received=lambda: mover.stats.received,
        on_change=lambda old, new, why: log.info("%d → %s: %s", old, words.under_way(new, mover.mode), why),
    )
    alarm: threading.Timer | None = None
    if stops_at is not None:
        left = (stops_at - datetime.now(UTC)).total_seconds()
        if left <= 0:
            stop()
        else:
            alarm = threading.Timer(left, stop)
            alarm.daemon = True
            alarm.start()
    transfer = Transfer(
        images,
        mover=mover,
        pace=pace,
        total=shard.images,
        about=ShardResult(shard.index, shard.name, try_number=try_number, allowed=connections),
        publish=publish,
        on_stored=watch.image if watch is not None else lambda _: None,
        stop=stop.event,
        noun=shard.noun,
    )
    try:
        tally = transfer.run()
    finally:
        mover.close()
        if alarm is not None:
            alarm.cancel()
    log.info(
        "%s: %s of %s stored, %s in %.0f s, %d retries, %d password checks.",
        shard.name,
        f"{tally.stored:,}",
        f"{tally.todo:,}",
        words.size(tally.bytes),
        tally.seconds,
        tally.retries,
        mover.stats.handshakes,
    )
    if request.verify == "checksum" and not stop.event.is_set():
        _prove(shard, images, bucket)
    return transfer.result().after(earlier)


def _prove(shard: Shard, files: Sequence[File], bucket: Bucket) -> None:
    """Ask S3 for the checksums that it holds of what was stored, side by side with the other shards; `verify`, which runs
    alone, then asks for none of them again. What is not right stays for it to say.
    """
    try:
        compare(files, bucket, Comparison("checksum"), span=shard.span)
    except DestinationError as error:
        log.warning("%s: S3 could not be asked for its checksums; the verification asks again. %s", shard.name, error)
