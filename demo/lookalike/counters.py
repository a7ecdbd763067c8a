"""Counters of what the look-alike saw and did, by which tests and benchmarks judge a client."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SEEN = 5_000
"""The last so many requests are kept."""


class Seen(NamedTuple):
    """One request as it came in.

    ``headers`` has lower-case names; Authorization keeps only its scheme and Cookie only the names, because
    a record must never hold a secret.
    """

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Counters:
    """Counts since the start or the last ``reset``.

    Attributes:
        requests: Requests read, whatever their answer.
        by_status: Answers by status code; a request that got no answer (reset, silence) is in none.
        by_path: Requests by path below ``/files/``.
        user_agents: Requests by User-Agent.
        faults: Faults injected, by kind.
        bytes: Body bytes sent.
        password_checks: Passwords hashed, right or wrong.
        handshakes: Sessions opened.
        without_session: Requests that carried no valid session.
        connections: Connections open now and being served.
        peak_connections: The most that were served at once.
        accepted: Connections served in all.
        hung: Connections accepted only to be left without an answer (see ``Profile.serve_waiting``).
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
        """Begin anew; connections that are open stay counted."""
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
