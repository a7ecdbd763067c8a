"""HTTP/1.1 over kept sockets, for the requests that are made once a file: PhysioNet's and S3's side both go through here.

    with origin.exchange("GET", "/files/…", headers) as answer:
        size = answer.fill(view)

The body goes from the socket into the caller's buffer and from the caller's buffer into the socket: no chunk objects, no
joins, one pass of the header. Why this and no library, with figures: docs/performance.md, "One HTTP path".

What it leaves out on purpose: redirects, cookies, retries of what failed after an answer began, content encodings, HTTP/2.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import time
from base64 import b64encode
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import unquote, urlsplit

from urllib3.util import wait_for_read

PORTS = {"http": 80, "https": 443}
PIECE = 1 << 19
"""Bytes of a body after which it is hashed so far: they are still in the processor's cache, which a whole image is not."""
_HEAD_AT_MOST = 1 << 16
"""Bytes of an answer's status line and headers."""
_RECEIVE = 1 << 14
"""Bytes asked of the socket for a head: a TLS record, so that little of the body comes along and is copied."""
_ONE_SEND = 1 << 14
"""A body up to this size goes out together with the head of its request."""


class ConnectTimeout(TimeoutError):
    """The other side did not take the connection in time."""


class ProtocolError(ConnectionError):
    """What came back is no answer of HTTP/1.1, or the connection ended before one."""


class ProxyRefused(OSError):
    """The proxy did not open a way; ``status`` is its HTTP status, such as 407 where it wants a login."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the proxy answered {status} {reason}".strip())
        self.status = status


class Headers(Mapping[str, str]):
    """An answer's headers by their names in lower case; of one that came several times, the last.

    Args:
        fields: (name, value) as they came.
    """

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._fields = [(name.lower(), value) for name, value in fields]
        self._last = dict(self._fields)

    def __getitem__(self, name: str) -> str:
        return self._last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def all(self, name: str) -> list[str]:
        """Every value of a header that may come several times, such as ``set-cookie``."""
        return [value for field, value in self._fields if field == name]


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy; TLS connections are tunnelled through it (CONNECT), plain ones ask it for the whole URL.

    Attributes:
        host: Its name or address.
        port: Its port.
        authorization: Value of ``Proxy-Authorization``, or None.
    """

    host: str
    port: int
    authorization: str | None = None

    def __repr__(self) -> str:  # without the login
        return f"<Proxy {self.host}:{self.port}>"

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """From ``http://[login:password@]host:port``.

        Raises:
            ValueError: Another scheme, or no host: it is not said which, as the text may hold a password.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("not an http:// proxy")
        login = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            login = f"Basic {b64encode(pair.encode()).decode()}"
        return cls(parts.hostname, parts.port or PORTS["http"], login)


class Origin:
    """One server, and the idle connections to it; safe to share between threads.

    Args:
        url: ``https://host[:port]``; a path behind it is ignored.
        tls: The TLS context for ``https``; it decides who is trusted.
        proxy: The way to it, or None.
        connect_timeout: Seconds for the connection, its tunnel and its TLS handshake, each.
        read_timeout: Seconds without a byte, in either direction.
        keep: Idle connections that are kept at most.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        keep: int = 64,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError(f"no http(s) address: {parts.scheme}://{parts.hostname}")
        self.scheme, self._name = parts.scheme, parts.hostname
        self._port = parts.port or PORTS[parts.scheme]
        literal = f"[{self._name}]" if ":" in self._name else self._name
        self._authority = f"{literal}:{self._port}"
        self.host = literal if self._port == PORTS[parts.scheme] else self._authority
        """Value of the header ``Host``."""
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._proxy = proxy
        self._connect_timeout, self._read_timeout, self._keep = connect_timeout, read_timeout, keep
        self._idle: deque[socket.socket] = deque()  # the last one used first: the others may be closed by their age
        self._closed = False

    def __repr__(self) -> str:
        return f"<Origin {self.scheme}://{self.host}>"

    def exchange(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes | memoryview = b""
    ) -> Answer:
        """Send a request and read the head of its answer; the caller closes the answer.

        A kept connection that the server had closed meanwhile is replaced once, without a word.

        Args:
            method: ``GET``, ``HEAD``, ``PUT``, …; each may be sent twice, so it must be idempotent.
            target: Path and query, quoted.
            headers: Names and values; Host and Content-Length are added here.
            body: Bytes to send.

        Raises:
            ConnectTimeout, TimeoutError: No connection, or no byte, in time.
            ssl.SSLError, socket.gaierror, ConnectionError, OSError: No trusted or no open way.
            ProxyRefused: The proxy does not let us through.
            ProtocolError: No answer of HTTP/1.1.
            ValueError: A line break or another control character in target or headers.
        """
        at_proxy = self._proxy is not None and self._tls is None
        lines = [f"{method} {f'http://{self.host}{target}' if at_proxy else target} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if at_proxy and self._proxy is not None and self._proxy.authorization:
            lines.append(f"Proxy-Authorization: {self._proxy.authorization}")
        if len(body) or method in ("PUT", "POST"):
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1 or "\0" in head:
            raise ValueError("a line break in a request's target or headers")
        wire = f"{head}\r\n\r\n".encode("latin-1")
        kept = self._take()
        if kept is not None:
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                return self._ask(kept, method, wire, body)
        return self._ask(self._connect(), method, wire, body)

    def _ask(self, connection: socket.socket, method: str, head: bytes, body: bytes | memoryview) -> Answer:
        try:
            if len(body) <= _ONE_SEND:
                connection.sendall(head + bytes(body))
            else:
                connection.sendall(head)
                connection.sendall(body)
            return Answer(self, connection, method)
        except BaseException:  # also when something interrupts: nobody may read this answer as his own
            _close(connection)
            raise

    def close(self) -> None:
        """Close the idle connections; those in use close when their answer is read."""
        self._closed = True
        while True:
            try:
                _close(self._idle.pop())
            except IndexError:
                return

    def _take(self) -> socket.socket | None:
        """An idle connection that is still open."""
        while self._idle:
            try:
                kept = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            if not wait_for_read(kept, timeout=0):  # readable while nothing was asked: closed by the server
                return kept
            _close(kept)
        return None

    def _give_back(self, connection: socket.socket) -> None:
        if self._closed or len(self._idle) >= self._keep:
            _close(connection)
        else:
            self._idle.append(connection)

    def _connect(self) -> socket.socket:
        self._closed = False
        proxy = self._proxy
        address = (proxy.host, proxy.port) if proxy else (self._name, self._port)
        try:
            made = socket.create_connection(address, timeout=self._connect_timeout)
        except TimeoutError as error:
            raise ConnectTimeout(str(error)) from None
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                if proxy is not None:
                    self._open_tunnel(made, proxy)
                made = self._tls.wrap_socket(made, server_hostname=self._name)
            made.settimeout(self._read_timeout)
        except TimeoutError as error:
            _close(made)
            raise ConnectTimeout(str(error)) from None
        except BaseException:
            _close(made)
            raise
        return made

    def _open_tunnel(self, connection: socket.socket, proxy: Proxy) -> None:
        lines = [f"CONNECT {self._authority} HTTP/1.1", f"Host: {self._authority}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        connection.sendall("\r\n".join([*lines, "\r\n"]).encode("latin-1"))
        head = _read_head(connection)
        if head.status != 200:
            raise ProxyRefused(head.status, head.reason)


class Answer:
    """An answer whose body is still on its way; close it, or read it to its end.

    Attributes:
        status: HTTP status.
        headers: See `Headers`.
        length: Bytes of the body, or None where the server does not say.
        received: Bytes of the body read so far.
    """

    def __init__(self, origin: Origin, connection: socket.socket, method: str) -> None:
        self._origin = origin
        self._connection: socket.socket | None = connection
        head = _read_head(connection)
        while 100 <= head.status < 200:  # an interim answer; the final one follows
            head = _read_head(connection, head.rest)
        self.status, self.headers = head.status, head.headers
        self._rest = memoryview(head.rest)
        wanted = self.headers.get("connection", "").lower()
        self._keeps = wanted != "close" and (head.http11 or wanted == "keep-alive")
        self.received = 0
        self._chunk: int | None = None  # bytes left of the chunk at hand; None = its size line comes next
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        said = self.headers.get("content-length")
        self.length: int | None = None
        if method == "HEAD" or self.status in (204, 304):
            self._chunked, self._left = False, 0
            self.length = _number(said)
        elif self._chunked:
            self._left = -1
        elif said is None:
            self._left, self._keeps = -1, False  # to the end of the connection
        elif (length := _number(said)) is not None:
            self.length = self._left = length
        else:
            raise ProtocolError("a Content-Length that is no number")
        self._ended = self._left == 0
        if self._ended:
            self.close()

    @property
    def complete(self) -> bool:
        """Whether the body was read to the end that the server announced."""
        return self._ended

    def read_into(self, view: memoryview) -> int:
        """Some bytes of the body into ``view``; 0 at its end, and also where the connection ended before (`complete`).

        Raises:
            TimeoutError: No byte for the read time-out.
            ProtocolError, OSError: The connection broke.
        """
        if self._ended or not len(view):
            return 0
        if self._chunked:
            return self._count(self._read_chunked(view))
        most = len(view) if self._left < 0 else min(len(view), self._left)
        received = self._raw_into(view[:most])
        if self._left > 0:
            self._left -= received
            if self._left == 0:
                self._end()
        elif not received:
            self._end()
        return self._count(received)

    def fill(self, view: memoryview, seconds: float = math.inf) -> int:
        """As many bytes of the body as ``view`` holds, or as there are; fewer once it has taken ``seconds``.

        0 as `read_into` gives it, and raises as that. `received` then tells how much came before.
        """
        until = time.monotonic() + seconds
        at = self.read_into(view) if len(self._rest) else 0  # what came with the head
        if self._left <= 0 or self._connection is None:
            while at < len(view) and (received := self.read_into(view[at:])):
                at += received
                if time.monotonic() > until:
                    break
            return at
        begun, most, receive_into = at, min(len(view), at + self._left), self._connection.recv_into
        try:
            while at < most and (received := receive_into(view[at:most])):
                at += received
                if time.monotonic() > until:
                    break
        finally:
            self._left -= at - begun
            self.received += at - begun
        if not self._left:
            self._end()
        return at

    def read(self, most: int) -> bytes:
        """The body where it is small, cut off after ``most`` bytes; the connection is kept only if it ended there."""
        held = memoryview(bytearray(most))
        size = self.fill(held)
        self.close()
        return bytes(held[:size])

    def close(self) -> None:
        """Give the connection back where the body was read to its end, else close it; harmless when done twice."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._ended and self._keeps and not len(self._rest):
            self._origin._give_back(connection)
        else:
            _close(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, received: int) -> int:
        self.received += received
        return received

    def _end(self) -> None:
        self._ended = True
        self.close()

    def _raw_into(self, view: memoryview) -> int:
        if len(self._rest):
            taken = min(len(view), len(self._rest))
            view[:taken] = self._rest[:taken]
            self._rest = self._rest[taken:]
            return taken
        if self._connection is None:
            return 0
        return self._connection.recv_into(view)

    def _read_chunked(self, view: memoryview) -> int:
        if self._chunk is None:
            size = self._line().partition(b";")[0].strip()
            try:
                self._chunk = int(size, 16)
            except ValueError:
                raise ProtocolError("a chunk without a size") from None
            if self._chunk < 0:
                raise ProtocolError("a chunk without a size")
            if self._chunk == 0:
                while self._line():
                    pass  # trailers
                self._end()
                return 0
        received = self._raw_into(view[: min(len(view), self._chunk)])
        self._chunk -= received
        if received and not self._chunk:
            if self._line():
                raise ProtocolError("a chunk that does not end")
            self._chunk = None
        return received

    def _line(self) -> bytes:
        line = bytearray()
        one = memoryview(bytearray(1))
        while not line.endswith(b"\r\n"):
            if not self._raw_into(one) or len(line) > _HEAD_AT_MOST:
                raise ProtocolError("the connection ended within a chunk")
            line += one
        return bytes(line[:-2])


class _Head(NamedTuple):
    status: int
    reason: str
    headers: Headers
    rest: bytes  # what came behind it
    http11: bool


def _read_head(connection: socket.socket, head: bytes = b"") -> _Head:
    """The head of an answer, of which ``head`` was received before."""
    while (end := head.find(b"\r\n\r\n")) < 0:
        received = connection.recv(_RECEIVE)
        if not received and not head:
            raise ProtocolError("the connection was closed without an answer")
        if not received or len(head) > _HEAD_AT_MOST:
            raise ProtocolError("an answer without an end of its headers")
        head = head + received if head else received
    first, *lines = head[:end].decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or len(status) != 3 or _number(status) is None:
        raise ProtocolError("not an answer of HTTP/1.1")
    fields = ((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    return _Head(int(status), reason, Headers(fields), head[end + 4 :], version == "HTTP/1.1")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.close()
