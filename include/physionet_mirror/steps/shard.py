"""One shard: what is missing of it, and bringing that into the bucket."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from include.physionet_mirror import shards, words
from include.physionet_mirror.access_point import COPIES_A_CONNECTION, AccessPoint
from include.physionet_mirror.destination import Bucket
from include.physionet_mirror.errors import DestinationError
from include.physionet_mirror.layout import RunLayout
from include.physionet_mirror.pace import Pace, recall
from include.physionet_mirror.request import Request
from include.physionet_mirror.source import PhysioNet
from include.physionet_mirror.transfer import Transfer
from include.physionet_mirror.verified import Memory, groups_of

log = logging.getLogger(__name__)


def find_missing(shard: shards.Shard, request: Request, bucket: Bucket, run: RunLayout) -> shards.Missing:
    """Compare one shard with the bucket and write down what is missing, for `stream_shard`."""
    images = shards.decode(bucket.read(shard.path))
    memory = None if request.verify == "count" else Memory.load(bucket, groups_of(image.path for image in images))
    found = shards.missing(images, bucket, memory, span=shard.span)
    if memory is not None and found.proven:
        published = {image.path: image.sha256 for image in images}
        for stored in found.proven:
            memory.record(stored.path, stored.size, stored.etag, published[stored.path])
        memory.save(bucket)
    if found.images:
        bucket.write(run.missing(shard.index), shards.encode(found.images), content_type="text/plain")
    log.info(
        "%s: %s to fetch (%s not there, %s wrong), %s already there. %d LIST and %d HEAD requests.",
        shard.name,
        f"{len(found.images):,}",
        f"{found.absent:,}",
        f"{found.wrong:,}",
        f"{found.present:,}",
        found.lists,
        found.heads,
    )
    return found


@dataclass(frozen=True)
class Stop:
    """Tells a running shard to come to an end: what is under way is finished, the rest is left for the next try."""

    event: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.event.set()


class Watch(Protocol):
    """Whoever wants to know how a shard is getting on; called from its threads, and must not raise."""

    def publish(self, tally: Mapping[str, Any]) -> None:
        """What has been done so far (`Tally.as_dict`), every few seconds and in the end."""
        ...

    def image(self, seconds: float) -> None:
        """One image is stored, and took so long."""
        ...


def stream_shard(
    shard: shards.Shard,
    request: Request,
    source: PhysioNet | AccessPoint,
    bucket: Bucket,
    run: RunLayout,
    *,
    connections: int,
    stop: Stop,
    stops_at: datetime | None = None,
    try_number: int = 1,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Bring what is missing of one shard from PhysioNet into the bucket; returns the content of its result file.

    Args:
        shard: Whose images.
        request: What is asked for.
        source: Where the images come from.
        bucket: Destination.
        run: Where list, progress and result lie.
        connections: The most PhysioNet connections at once.
        stop: Set it from another thread or a signal handler to drain.
        stops_at: Drain at this time; the result's state is then ``drained``, and that is no error.
        try_number: From the second on, what an earlier try has stored is left out.
        watch: Who is told how it goes, beside the result file.

    Raises:
        ImagesFailed: Some images could not be had; the others are stored.
        MirrorError: What else `Transfer.run` raises.
    """
    images = shards.decode(bucket.read(run.missing(shard.index)))
    if try_number > 1:
        memory = None if request.verify == "count" else Memory.load(bucket, groups_of(image.path for image in images))
        images = shards.missing(images, bucket, memory, span=shard.span).images
    if isinstance(source, AccessPoint):
        connections *= COPIES_A_CONNECTION
    log.info(
        "%s (%s … %s): %s to fetch, %s already there, at most %d at once.",
        shard.name,
        shard.first,
        shard.last,
        f"{len(images):,}",
        f"{shard.images - len(images):,}",
        connections,
    )
    result: dict[str, Any] = {
        "shard": shard.index,
        "name": shard.name,
        "try_number": try_number,
        "allowed": connections,
    }

    def publish(tally: Mapping[str, Any]) -> None:
        result.update(tally, handshakes=source.stats.handshakes)
        if watch is not None:
            watch.publish(tally)
        try:
            bucket.write_json(run.result(shard.index), result)
        except DestinationError as error:  # progress is for looking at; the images matter
            log.warning("The progress of %s could not be published: %s", shard.name, error)

    pace = Pace(
        connections,
        **recall(bucket.read_json(run.pace), connections),
        received=lambda: source.stats.received,
        on_change=lambda old, new, why: log.info("%d → %d connections: %s", old, new, why),
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
        source=source,
        bucket=bucket,
        dataset=request.dataset,
        pace=pace,
        total=shard.images,
        storage_class=request.storage_class,
        publish=publish,
        on_stored=watch.image if watch is not None else lambda _: None,
        stop=stop.event,
    )
    try:
        tally = transfer.run()
    finally:
        source.close()
        if alarm is not None:
            alarm.cancel()
        try:
            bucket.write_json(run.pace, pace.memory())
        except DestinationError as error:  # the next shard finds out by itself
            log.warning("What was learned about the pace could not be kept: %s", error)
    log.info(
        "%s: %s of %s stored, %s in %.0f s, %d retries, %d password checks.",
        shard.name,
        f"{tally.stored:,}",
        f"{tally.todo:,}",
        words.size(tally.bytes),
        tally.seconds,
        tally.retries,
        source.stats.handshakes,
    )
    return result
