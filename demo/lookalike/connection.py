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
"""Seconds of pace that may be made up for after a delay, whether the client's or ours."""


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
        # A body is not read, so what follows on that connection could not be understood.
        return not has_body and (wish == "keep-alive" if self.version == "HTTP/1.0" else wish != "close")


class Connection:
    """A socket with the verbs of a server: ``request``, ``answer``, and ``send`` for the body that follows.

    ``rate`` gives the bytes a second at which bodies are sent just now, or None for no limit.
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
        """Send an answer's head, and a body that comes at once."""
        self._counters.by_status[status] += 1
        self._counters.bytes += len(body)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Server: nginx", f"Date: {formatdate(usegmt=True)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Set-Cookie: {cookie}" for cookie in cookies]
        self._due = self._loop.time()
        await self._loop.sock_sendall(self._sock, "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)

    async def send(self, data: bytes) -> None:
        """Send a piece of a body at the rate of the moment.

        A byte leaves when a line of that rate would be done with it, reckoned from the
        answer's head, so that no error adds up.
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
        """Let what was sent arrive: a reset discards what is still under way."""
        await asyncio.sleep(TICK)

    def reset_on_close(self) -> None:
        """Closing will send RST, not FIN."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        self._sock.close()
