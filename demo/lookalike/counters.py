"""Counters of the look-alike's requests and answers, by which tests and benchmarks judge a client."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SEEN = 5_000
"""Number of latest requests that are kept."""


class Seen(NamedTuple):
    """One request as received.

    ``headers`` has lower-case names; of Authorization only the scheme and of Cookie only the names are kept, because a
    record must never hold a secret.
    """

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Counters:
    """Counts since the start or the last ``reset``.

    Attributes:
        requests: Requests received, whatever their answer.
        by_status: Answers by status code; requests without an answer (reset, silence) are not in it.
        by_path: Requests by path below ``/files/``.
        user_agents: Requests by User-Agent.
        faults: Faults injected, by kind.
        bytes: Body bytes sent.
        password_checks: Passwords hashed, right or wrong.
        handshakes: Sessions opened.
        without_session: Requests that carried no valid session.
        connections: Connections being served now.
        peak_connections: The most connections served at once.
        accepted: Connections served in total.
        hung: Connections that were accepted but never answered (see ``Profile.serve_waiting``).
        seen: The last requests with their headers.
    """

    requests: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    by_path: Counter[str] = field(default_factory=Counter)
    user_agents: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    password_checks: int = 0
    handshakes: int = 0
    without_session: int = 0
    connections: int = 0
    peak_connections: int = 0
    accepted: int = 0
    hung: int = 0
    seen: deque[Seen] = field(default_factory=lambda: deque(maxlen=SEEN))

    def opened(self) -> None:
        self.accepted += 1
        self.connections += 1
        self.peak_connections = max(self.peak_connections, self.connections)

    def asked(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        self.requests += 1
        self.by_path[path] += 1
        self.user_agents[headers.get("user-agent", "")] += 1
        self.seen.append(Seen(method, path, {name: _without_secret(name, value) for name, value in headers.items()}))

    def reset(self) -> None:
        """Count from zero; open connections stay counted."""
        self.__dict__.update(Counters(connections=self.connections, peak_connections=self.connections).__dict__)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready copy, without ``seen``. Safe to call from any thread: each copy is one step under the GIL."""
        return {
            name: dict(value) if isinstance(value, Counter) else value
            for name, value in self.__dict__.items()
            if name != "seen"
        }


def _without_secret(name: str, value: str) -> str:
    if name == "authorization":
        return value.split(" ", 1)[0]
    if name == "cookie":
        return "; ".join(part.split("=", 1)[0].strip() for part in value.split(";"))
    return value
