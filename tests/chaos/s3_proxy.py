"""Injects S3 faults: a proxy on 127.0.0.1 in front of a real S3 server.

Requests are passed on byte for byte, including the Host header, because SigV4 signs it: client and server agree on the
signature although the client knows only the proxy's address.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self, TypeAlias
from urllib.parse import unquote, urlsplit

from demo.stack import free_port

IMAGES = "*.jpg"


class Kind(StrEnum):
    """What goes wrong with a PUT."""

    SLOW_DOWN = "slow down"
    """503 SlowDown."""
    RESET = "reset"
    """RST to both sides once half of the body has reached the server."""
    FLIPPED = "flipped"
    """One bit of the body is another one when it reaches the server."""
    DENIED = "denied"
    """403 AccessDenied."""
    REFUSED = "refused"
    """From this PUT on, connections are refused for ``seconds``, and every open one is reset."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong with PUTs.

    Attributes:
        kind: The kind of fault.
        paths: Shell pattern of the URL's path, which begins with ``/<bucket>/``; ``*`` matches ``/``.
        share: Share of these PUTs, chosen by a hash of the key and the number of its PUTs: the same ones every time.
        after: PUTs of these paths that are served normally first.
        seconds: How long REFUSED lasts.
    """

    kind: Kind
    paths: str = "*"
    share: float = 1.0
    after: int = 0
    seconds: float = 0.0

    def strikes(self, path: str, attempt: int) -> bool:
        key = path.split("/", 2)[2]  # the bucket's name differs in each run
        digest = hashlib.sha256(f"{key}\n{attempt}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


Refusal: TypeAlias = Callable[[str, str, Mapping[str, str]], tuple[int, str, str] | None]
"""Takes method, address (path and query) and headers."""


class S3Proxy:
    """Listens from ``start`` to ``stop``, or as a context manager; may be used from any thread.

    Attributes:
        endpoint: ``http://127.0.0.1:<port>``.
        struck: How often each kind has happened.
        refusal: Called for every request; returns the answer (status, code, message), or None to pass it on. None = pass all on.
    """

    def __init__(self, upstream: str) -> None:
        self.struck: Counter[Kind] = Counter()
        self.refusal: Refusal | None = None
        self._upstream = urlsplit(upstream).netloc
        self._fault: Fault | None = None
        self._put: Counter[str] = Counter()  # by path, since the fault was set
        self._passed = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._back: threading.Timer | None = None
        self._port = free_port()
        self._server = _Server(self._port, self)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Serve."""
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="s3-proxy", daemon=True).start()
        return self

    def stop(self) -> None:
        """Close everything."""
        if self._back:
            self._back.cancel()
            self._back.join()
        self._close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def set(self, fault: Fault | None) -> None:
        """Replace the fault in force; None = no fault."""
        with self._lock:
            self._fault, self._passed = fault, 0
            self._put.clear()
            self.struck.clear()

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            reset(connection)

    def _refuse(self, seconds: float) -> None:
        self._close()
        self._back = threading.Timer(seconds, self._come_back)
        self._back.start()

    def _come_back(self) -> None:
        self._server = _Server(self._port, self)
        self.start()

    def fault_of(self, path: str) -> Fault | None:
        """The fault that happens to this PUT."""
        with self._lock:
            fault = self._fault
            if fault is None or not fnmatchcase(path, fault.paths):
                return None
            self._put[path] += 1
            self._passed += 1
            if self._passed <= fault.after or not fault.strikes(path, self._put[path]):
                return None
            self.struck[fault.kind] += 1
            if fault.kind is Kind.REFUSED:  # once
                self._fault = None
        if fault.kind is Kind.REFUSED:
            threading.Thread(target=self._refuse, args=(fault.seconds,), daemon=True).start()
        return fault

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def upstream(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._upstream, timeout=120)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, proxy: S3Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, *_: object) -> None:
        """Log nothing: broken connections are expected here."""


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.proxy.opened(self.connection)
        self.upstream = self.server.proxy.upstream()

    def finish(self) -> None:
        self.server.proxy.closed(self.connection)
        self.upstream.close()
        super().finish()

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client died
            self.close_connection = True
            return
        refusal = self.server.proxy.refusal
        if refusal and (answer := refusal(self.command, self.path, self.headers)):  # type: ignore[arg-type]
            self._error(*answer)
            return
        fault = self.server.proxy.fault_of(unquote(urlsplit(self.path).path)) if self.command == "PUT" else None
        match fault.kind if fault else None:
            case Kind.SLOW_DOWN:
                self._error(503, "SlowDown", "Please reduce your request rate.")
            case Kind.DENIED:
                self._error(403, "AccessDenied", "Access Denied")
            case Kind.RESET | Kind.REFUSED:
                self._send(body[: length // 2])
                if self.upstream.sock:
                    reset(self.upstream.sock)
                self.upstream.close()
                reset(self.connection)
                self.close_connection = True
            case Kind.FLIPPED | None:
                self._send(flipped(body) if fault else body)
                self._return(self.upstream.getresponse())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _send(self, body: bytes) -> None:
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):  # hop-by-hop, and not signed
                self.upstream.putheader(name, value)
        self.upstream.endheaders(body or None)

    def _return(self, answer: http.client.HTTPResponse) -> None:
        body = answer.read()
        self.send_response_only(answer.status, answer.reason)
        length = str(len(body))
        for name, value in answer.getheaders():
            if name.lower() == "content-length":
                length = value  # HEAD answers with the object's
            elif name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str, message: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def flipped(body: bytes) -> bytes:
    """The body with one bit in its middle turned over."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def reset(connection: socket.socket) -> None:
    """Close with RST, as a machine does after a restart; wakes threads that read from it."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()
    except OSError:
        pass
