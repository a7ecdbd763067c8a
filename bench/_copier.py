"""A server that answers CopyObject as S3 does: after a delay, and with SlowDown above a rate.

    python -m bench._copier --sha256 <hex> [--delay 0.15] [--limit 3500]

Every object exists at the source and nowhere else: HEAD below ``/source/`` answers 200, elsewhere 404; a PUT with
x-amz-copy-source answers CopyObjectResult with that SHA-256. One thread with timers, so that hundreds of waiting requests
cost nothing. Signatures are not checked. ``GET /_counters`` returns copies, distinct keys, refusals, CPU seconds, and the
copies of each second; ``DELETE`` resets them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass, field

SIZE = 1_620_000
_REFUSAL = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def _answer(status: str, body: bytes = b"", headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


@dataclass
class _S3:
    """State shared by all connections."""

    loop: asyncio.AbstractEventLoop
    delay: float
    limit: float  # copies a second
    result: bytes
    keys: set[bytes] = field(default_factory=set)
    seconds: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    tokens: float = 0.0
    filled: float = 0.0


class Copier(asyncio.Protocol):
    """One connection."""

    def __init__(self, s3: _S3) -> None:
        self._s3 = s3

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._received = transport, b""

    def data_received(self, data: bytes) -> None:
        """Part of a request has arrived; the requests here have no body."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, self._received = self._received[:end], self._received[end + 4 :]
            method, path, _ = head[: head.index(b"\r\n")].split(b" ")
            if path == b"/_counters":
                self._transport.write(self._counters(method))
            else:
                answer = self._copy(path) if method == b"PUT" else self._look(path)
                self._s3.loop.call_later(self._s3.delay, self._transport.write, answer)

    def _look(self, path: bytes) -> bytes:
        if not path.startswith(b"/source/"):
            return _answer("404 Not Found")
        return _answer(
            "200 OK", headers='ETag: "there"\r\nLast-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n', length=SIZE
        )

    def _copy(self, path: bytes) -> bytes:
        s3, now = self._s3, time.monotonic()
        s3.tokens = min(s3.limit / 10, s3.tokens + (now - s3.filled) * s3.limit)
        s3.filled = now
        if s3.tokens < 1:
            s3.refused += 1
            return _answer("503 Slow Down", _REFUSAL)
        s3.tokens -= 1
        s3.keys.add(path)
        s3.seconds[int(now)] += 1
        return s3.result

    def _counters(self, method: bytes) -> bytes:
        s3 = self._s3
        if method == b"DELETE":
            s3.keys, s3.seconds, s3.refused = set(), Counter(), 0
        found = {"keys": len(s3.keys), "refused": s3.refused, "cpu": time.process_time()}
        seconds = [s3.seconds[at] for at in range(min(s3.seconds), max(s3.seconds) + 1)] if s3.seconds else []
        return _answer("200 OK", json.dumps({**found, "seconds": seconds}).encode())


async def _serve(options: argparse.Namespace) -> None:
    digest = b64encode(bytes.fromhex(options.sha256)).decode()
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CopyObjectResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>&quot;copied&quot;</ETag>"
        f"<ChecksumSHA256>{digest}</ChecksumSHA256><ChecksumType>FULL_OBJECT</ChecksumType></CopyObjectResult>"
    )
    loop = asyncio.get_running_loop()
    result = _answer("200 OK", xml.encode(), "Content-Type: application/xml\r\n")
    s3 = _S3(loop, options.delay, options.limit, result)
    server = await loop.create_server(lambda: Copier(s3), "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until the process is terminated; prints one line of JSON with ``url`` once it listens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sha256", required=True, help="of every object, hex")
    parser.add_argument("--delay", type=float, default=0.15, help="seconds before each answer")
    parser.add_argument("--limit", type=float, default=1e9, help="copies a second")
    options = parser.parse_args()
    gc.freeze()
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main()
