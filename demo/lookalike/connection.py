"""One client connection: reads requests, writes bytes at the profile's speed, and can end in any way."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from demo.lookalike.counters import Counters

LONGEST_HEAD = 64 * 1024
TICK = 0.05
"""Seconds between two pieces of a paced body: fine enough to be smooth, coarse enough to cost little CPU."""

CATCH_UP = 0.25
"""Most seconds of sending that are caught up after a delay, whether the client's or ours."""


@dataclass(frozen=True)
class Request:
    """A request's head; ``headers`` has lower-case names."""

    method: str
    target: str
    version: str
    headers: Mapping[str, str]

    @property
    def keep_alive(self) -> bool:
        wish = self.headers.get("connection", "").lower()
        has_body = "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        # Request bodies are not read, so the next request on that connection could not be parsed.
        return not has_body and (wish == "keep-alive" if self.version == "HTTP/1.0" else wish != "close")


class Connection:
    """A client's socket: ``request`` reads a request, ``answer`` sends a head, ``send`` the body that follows.

    ``rate`` gives the current speed of bodies in bytes a second, or None for no limit.
    """

    def __init__(self, sock: socket.socket, counters: Counters, rate: Callable[[], float | None]) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._counters = counters
        self._rate = rate
        self._read = b""
        self._due = 0.0
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def request(self) -> Request | None:
        """Next request, or None once the client has closed or does not speak HTTP."""
        while (end := self._read.find(b"\r\n\r\n")) < 0:
            more = await self._loop.sock_recv(self._sock, 65536)
            if not more or len(self._read) > LONGEST_HEAD:
                return None
            self._read += more
        head, self._read = self._read[:end].decode("latin-1"), self._read[end + 4 :]
        first, *rest = head.split("\r\n")
        try:
            method, target, version = first.split(" ")
        except ValueError:
            return None
        pairs = (line.partition(":") for line in rest)
        return Request(method, target, version, {name.lower(): value.strip() for name, _, value in pairs})

    async def answer(
        self, status: int, headers: Mapping[str, str], body: bytes = b"", cookies: tuple[str, ...] = ()
    ) -> None:
        """Send an answer's head, together with a body that is not paced."""
        self._counters.by_status[status] += 1
        self._counters.bytes += len(body)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Server: nginx", f"Date: {formatdate(usegmt=True)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Set-Cookie: {cookie}" for cookie in cookies]
        self._due = self._loop.time()
        await self._loop.sock_sendall(self._sock, "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)

    async def send(self, data: bytes) -> None:
        """Send a piece of a body at the current rate.

        When each byte is due is calculated from the time of the answer's head, so that errors do not add up.
        """
        rate = self._rate()
        step = max(1, int(rate * TICK)) if rate else len(data) or 1
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            if rate:
                self._due = max(self._due, self._loop.time() - CATCH_UP) + len(piece) / rate
                await asyncio.sleep(self._due - self._loop.time())
            await self._loop.sock_sendall(self._sock, piece)
            self._counters.bytes += len(piece)

    async def hold(self, seconds: float) -> None:
        """Keep the client waiting, until it gives up."""
        end = self._loop.time() + seconds
        while (left := end - self._loop.time()) > 0 and not self.gone:
            await asyncio.sleep(min(left, TICK))
        self._due = self._loop.time()

    @property
    def gone(self) -> bool:
        """Whether the client has closed its end."""
        poll = select.poll()
        poll.register(self._sock, getattr(select, "POLLRDHUP", select.POLLHUP))
        return bool(poll.poll(0))

    async def drained(self) -> None:
        """Wait until what was sent has arrived: a reset discards data still under way."""
        await asyncio.sleep(TICK)

    def reset_on_close(self) -> None:
        """Make ``close`` send RST instead of FIN."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        self._sock.close()
