"""Injected faults: what goes wrong, for which paths, at which attempts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any


class Kind(StrEnum):
    """What goes wrong."""

    # Before the access check.
    STATUS = "status"
    """An error page with ``status``: 500, 502, 503, 429 …; 404 alone comes after the access check, as at PhysioNet."""
    RESET_BEFORE = "reset before"
    """RST instead of an answer."""
    SILENCE = "silence"
    """No answer for ``seconds``, then the connection is closed."""
    REDIRECT = "redirect"
    """302 to the same path at ``location``, such as ``https://elsewhere.example``."""

    # Instead of, or within, a file that the client may read.
    LOGIN_PAGE = "login page"
    """200 with an HTML login page."""
    RESET_IN_BODY = "reset in body"
    """RST at the share ``at`` of the body."""
    SHORT_BODY = "short body"
    """The connection is closed normally at the share ``at`` of the body."""
    STALL = "stall"
    """Nothing for ``seconds`` at the share ``at`` of the body, then the rest."""
    TRICKLE = "trickle"
    """From the share ``at`` of the body on, one byte every ``seconds``."""
    LONG_BODY = "long body"
    """A few bytes more than the file has, included in Content-Length."""
    NO_RANGES = "no ranges"
    """The whole file with 200, whatever part of it is asked for."""
    NO_ETAG = "no etag"
    """The file without an ETag."""
    FLIPPED_BYTE = "flipped byte"
    """The byte at the share ``at`` of the file has its bits inverted."""

    # Events: to the whole server, after ``after`` requests; ``attempts`` times in all.
    REFUSED = "refused"
    """No new connections for ``seconds``; open ones stay."""
    DOWN = "down"
    """Every connection is reset and new ones are refused for ``seconds``."""
    SESSIONS_EXPIRED = "sessions expired"
    """All sessions end: a request that carries one gets 401."""
    SESSIONS_LOST = "sessions lost"
    """All sessions are forgotten: a request with the right password takes a password check and gets a new session."""
    PASSWORD_CHANGED = "password changed"
    """Every user's password is replaced by a random one."""
    AGREEMENT_REVOKED = "agreement revoked"
    """Every user's agreement for the request's project is revoked."""


EVENTS = frozenset(
    {
        Kind.REFUSED,
        Kind.DOWN,
        Kind.SESSIONS_EXPIRED,
        Kind.SESSIONS_LOST,
        Kind.PASSWORD_CHANGED,
        Kind.AGREEMENT_REVOKED,
    }
)
"""Faults that affect the whole server."""

AT_THE_DOOR = frozenset({Kind.STATUS, Kind.RESET_BEFORE, Kind.SILENCE, Kind.REDIRECT})
"""Faults before the access check, so that a handshake's request without credentials counts as an attempt too."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: The kind of fault.
        paths: Shell pattern of the paths below ``/files/``, which begin with ``slug/version/``; ``*`` matches ``/``.
        share: Share of those paths that are affected, chosen by a hash of kind and path: the same ones every time.
        attempts: How often it happens to each path (to the server, for an event); None = always.
        after: Requests that are served normally first; for an event, before each time: 50 with ``attempts=None`` is
            "every 50 requests".
        status: Status code of STATUS.
        retry_after: Seconds in the Retry-After header of a STATUS; None = no such header.
        retry_after_as_date: Write Retry-After as an HTTP date.
        at: Share of the body (0 to 1) at which a fault of the body happens.
        seconds: How long SILENCE, STALL, REFUSED and DOWN last; for TRICKLE, the time between two bytes.
        location: Scheme and host of REDIRECT, without a path.
    """

    kind: Kind
    paths: str = "*"
    share: float = 1.0
    attempts: int | None = 1
    after: int = 0
    status: int = 503
    retry_after: int | None = None
    retry_after_as_date: bool = False
    at: float = 0.5
    seconds: float = 600.0
    location: str = ""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Fault:
        """The fault from JSON; ValueError names unknown fields or values."""
        if unknown := set(given) - {f.name for f in fields(cls)}:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}; it has {[f.name for f in fields(cls)]}")
        return cls(**{**given, "kind": Kind(str(given.get("kind")))})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def concerns(self, path: str) -> bool:
        """Whether the path is among those affected."""
        if not fnmatchcase(path, self.paths):
            return False
        digest = hashlib.sha256(f"{self.kind}\n{path}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    @property
    def comes_at_the_door(self) -> bool:
        return self.kind in AT_THE_DOOR and not (self.kind is Kind.STATUS and self.status == 404)


class _Armed:
    """A fault and the number of times that it has happened."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._met: Counter[str] = Counter()
        self._struck: Counter[str] = Counter()

    def strikes(self, path: str) -> bool:
        fault = self.fault
        if not fault.concerns(path):
            return False
        key = "" if fault.kind in EVENTS else path
        if fault.attempts is not None and self._struck[key] >= fault.attempts:
            return False
        self._met[key] += 1
        if self._met[key] <= fault.after:
            return False
        self._struck[key] += 1
        if fault.kind in EVENTS:
            self._met[key] = 0
        return True


class Faults:
    """The faults in force, in order: if several apply to a request, the first wins.

    May be changed from any thread at any time.
    """

    def __init__(self, faults: Iterable[Fault], count: Callable[[Kind], None]) -> None:
        self._armed: tuple[_Armed, ...] = ()
        self._count = count
        self.set(*faults)

    def __iter__(self) -> Iterator[Fault]:
        return (armed.fault for armed in self._armed)

    def add(self, *faults: Fault) -> None:
        self._armed += tuple(map(_Armed, faults))

    def set(self, *faults: Fault) -> None:
        """Replace all faults; attempts are counted from zero."""
        self._armed = tuple(map(_Armed, faults))

    def clear(self) -> None:
        """Remove all faults (the effects of past events remain)."""
        self.set()

    def events(self, path: str) -> list[Fault]:
        """Events that this request triggers."""
        return list(self._strike(path, lambda fault: fault.kind in EVENTS))

    def at_the_door(self, path: str) -> Fault | None:
        """The fault of this request before the access check."""
        return next(self._strike(path, lambda fault: fault.comes_at_the_door), None)

    def of_the_file(self, path: str, *, head: bool = False) -> Fault | None:
        """The fault of this request instead of, or within, the file; a HEAD has none of the body."""

        def wanted(fault: Fault) -> bool:
            met = fault.kind in (Kind.STATUS, Kind.LOGIN_PAGE, Kind.NO_ETAG) or not head
            return met and fault.kind not in EVENTS and not fault.comes_at_the_door

        return next(self._strike(path, wanted), None)

    def _strike(self, path: str, wanted: Callable[[Fault], bool]) -> Iterator[Fault]:
        for armed in self._armed:
            if wanted(armed.fault) and armed.strikes(path):
                self._count(armed.fault.kind)
                yield armed.fault
