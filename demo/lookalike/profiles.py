"""Speed, latency and connection limits of the look-alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Pace of the server.

    Attributes:
        round_trip: Seconds before the first byte of each answer, and once more on a fresh connection.
        rate: Speed of bodies on each connection, in bytes a second, paced evenly; None = unlimited.
        connections: Most connections served at once; None = any number.
        waiting: Connections above that which can connect and then wait without an answer, give or take one (the
            kernel's listen backlog). Further ones hang in ``connect`` itself, as behind a firewall that drops SYNs.
        serve_waiting: Whether a waiting connection that is still open is served once a slot is free. If not, every
            connection above the limit can connect, and is never answered.
        refuse_with: With a status (429, 503), ``connections`` limits requests instead: every connection is accepted, and
            a request above the limit gets this status at once, without Retry-After, as from nginx's ``limit_conn``.
    """

    round_trip: float = 0.0
    rate: float | None = None
    connections: int | None = None
    waiting: int = 2
    serve_waiting: bool = True
    refuse_with: int | None = None

    @property
    def backlog(self) -> int:
        return self.waiting if self.connections and self.serve_waiting and not self.refuse_with else 1024


UNLIMITED = Profile()


def as_users_report_it(connections: int | None = 16, refuse_with: int | None = None) -> Profile:
    """PhysioNet as its users describe it, serving at most ``connections`` at once.

    Source: users report 0.6 to 0.7 MB/s a connection, and that 8 connections work while 24 end in connect time-outs.
    """
    return Profile(round_trip=0.060, rate=650_000, connections=connections, refuse_with=refuse_with)
