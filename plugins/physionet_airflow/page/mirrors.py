"""What is in each of many mirrors: looked at side by side, so that one that does not answer hides none of the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING

from physionet_airflow.page.cache import ErrorKeepingCache, RefreshingCache
from physionet_mirror import overview
from physionet_mirror.clinical.studies import chosen_by
from physionet_mirror.errors import MirrorError
from physionet_mirror.training import card
from physionet_mirror.training.request import TrainingRequest

if TYPE_CHECKING:
    from physionet_airflow.page.runs import Mirror
    from physionet_mirror.s3.bucket import Bucket

log = logging.getLogger(__name__)

MOST_COUNTED = 60
"""Mirrors of one list that are counted; further ones are named, and counted where they are opened."""

PATIENCE = 6.0
"""Seconds after which the list is shown with what is known by then; what is under way goes on, and the next reader has it."""

Open = Callable[["Mirror"], "Bucket"]

_overviews: ErrorKeepingCache[overview.Overview] = ErrorKeepingCache(seconds=20, most=200)
_sets: RefreshingCache[Sequence[card.TrainingSet]] = RefreshingCache(seconds=20, most=200)
_newer: RefreshingCache[int | None] = RefreshingCache(seconds=300, most=200)
_at_work = ThreadPoolExecutor(4, thread_name_prefix="mirrors")
_under_way: dict[Mirror, tuple[Future[Seen], float]] = {}  # with when it began
_lock = RLock()


@dataclass(frozen=True)
class Seen:
    """What is known of a mirror.

    Attributes:
        overview: Its numbers; None where there is no manifest yet, or they are not known.
        trouble: Why they are not known; empty where they are.
    """

    overview: overview.Overview | None = None
    trouble: str = ""


def overview_of(mirror: Mirror, open_bucket: Open) -> overview.Overview | None:
    """The overview of one mirror, at most 20 seconds old; None = it has no manifest yet.

    Failures are cached, too, so that not every reader tries again.

    Raises:
        MirrorError: The bucket cannot be read, or not its manifest.
    """
    return _overviews.get(mirror, lambda known: overview.overview(open_bucket(mirror), known))


@dataclass(frozen=True)
class Made:
    """A training set that is there.

    Attributes:
        card: What it holds.
        newer: Verified images that its filters take now, beyond those they took; below zero = fewer; None = not known.
    """

    card: card.TrainingSet
    newer: int | None


def sets_of(
    mirror: Mirror,
    open_bucket: Open,
    there: overview.Overview,
    catalog_of: Callable[[Mirror], overview.Catalog | None],
) -> list[Made]:
    """The training sets of a mirror, at most 20 seconds old.

    Args:
        mirror: Whose.
        open_bucket: Opens its bucket.
        there: Its overview, which answers for a set without filters.
        catalog_of: Its catalog, asked for only where a set has filters.

    Raises:
        MirrorError: The bucket cannot be read.
    """

    def newer(made: card.TrainingSet, _: int | None) -> int | None:
        if there.trouble:
            return None
        try:
            request = TrainingRequest.from_params({**made.params, "bucket": mirror.bucket, "prefix": mirror.prefix})
            if not request.filters:
                return there.whole.verified - made.selected
            catalog = catalog_of(mirror)
            if catalog is None or catalog.trouble:
                return None
            studies = chosen_by(open_bucket(mirror), request.selection)
            return overview.taken(catalog, request.selection, studies) - made.selected
        except MirrorError as error:
            log.warning("%s: what the mirror has gained since is not known: %s", made.name, error)
            return None

    found = _sets.get(mirror, lambda _: card.sets(open_bucket(mirror)))
    return [Made(one, _newer.get((mirror, one.name, one.created, there.etags), partial(newer, one))) for one in found]


def look(mirrors: Sequence[Mirror], open_bucket: Open, patience: float = PATIENCE) -> Mapping[Mirror, Seen]:
    """What is known of each of these mirrors after ``patience`` seconds at most.

    Args:
        mirrors: The mirrors; beyond `MOST_COUNTED` they are not counted.
        open_bucket: Opens a mirror's bucket; makes no request.
        patience: Seconds.
    """
    under_way, until = {}, 0.0
    for mirror in mirrors[:MOST_COUNTED]:
        under_way[mirror], began = _begun(mirror, open_bucket)
        until = max(until, began + patience)  # nobody waits again for one that others have waited for
    wait(under_way.values(), timeout=max(until - time.monotonic(), 0))
    late = Seen(trouble="Not counted yet: reload the page in a moment.")
    seen = {mirror: job.result() if job.done() else late for mirror, job in under_way.items()}
    return {mirror: seen.get(mirror, Seen(trouble="Counted where it is opened.")) for mirror in mirrors}


def _begun(mirror: Mirror, open_bucket: Open) -> tuple[Future[Seen], float]:
    """The look at a mirror that is under way, or a new one; and when it began."""
    with _lock:
        if mirror not in _under_way:
            job = _at_work.submit(_seen, mirror, open_bucket)
            _under_way[mirror] = job, time.monotonic()
            job.add_done_callback(lambda _: _under_way.pop(mirror, None))
            return job, time.monotonic()
        return _under_way[mirror]


def _seen(mirror: Mirror, open_bucket: Open) -> Seen:
    try:
        return Seen(overview_of(mirror, open_bucket))
    except MirrorError as error:
        return Seen(trouble=str(error))
    except Exception:
        log.exception("%s cannot be looked at", mirror.uri)
        return Seen(trouble="It cannot be looked at; the log of Airflow's API server says why.")
