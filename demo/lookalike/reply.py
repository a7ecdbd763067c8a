"""Responses: pages, listings, and files, either as nginx sends them or altered by a fault."""

from __future__ import annotations

import html
import mimetypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from time import time
from urllib.parse import quote

from demo.lookalike.connection import Connection, Request
from demo.lookalike.faults import Fault, Kind

CHUNK = 256 * 1024
EXTRA = b"\0" * 16
"""What LONG_BODY appends."""

HTML = {"Content-Type": "text/html; charset=utf-8", "Vary": "Cookie"}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Reply:
    """The response to a request. Each method returns whether the connection can take another request."""

    connection: Connection
    request: Request
    cookies: tuple[str, ...] = ()

    async def bytes(self, status: int, body: bytes, headers: Mapping[str, str]) -> bool:
        headers = {"Content-Length": str(len(body)), **headers, **self._keep_alive}
        await self.connection.answer(status, headers, b"" if self._head_only else body, self.cookies)
        return self.request.keep_alive

    async def page(self, status: int, title: str, headers: Mapping[str, str] | None = None) -> bool:
        return await self.bytes(status, _page(title), {**HTML, **(headers or {})})

    async def file(self, fd: int, path: str, fault: Fault | None) -> bool:
        """Send the file as nginx does, or altered by the fault."""
        kind = fault.kind if fault else None
        at = fault.at if fault else 0.0
        stat = os.fstat(fd)
        extra = EXTRA if kind is Kind.LONG_BODY else b""
        headers = {
            "Content-Type": _content_type(path),
            "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
            "ETag": f'"{int(stat.st_mtime):x}-{stat.st_size:x}"',
            "Accept-Ranges": "bytes",
            "Content-Disposition": "inline",
            "Vary": "Cookie",
        }
        if kind is Kind.NO_ETAG:
            del headers["ETag"]
        asked = {} if kind is Kind.NO_RANGES else self.request.headers
        status, start, end = _range(asked, stat.st_size, headers)
        if status == 416:
            return await self.page(416, "Requested Range Not Satisfiable", headers)
        headers |= {"Content-Length": str(end - start + len(extra)), **self._keep_alive}
        await self.connection.answer(status, headers, cookies=self.cookies)
        if self._head_only:
            return self.request.keep_alive

        flipped = int(at * stat.st_size) if kind is Kind.FLIPPED_BYTE else None
        breaks = kind in (Kind.SHORT_BODY, Kind.RESET_IN_BODY, Kind.STALL, Kind.TRICKLE)
        cut = start + int(at * (end - start)) if breaks else end
        await self._span(fd, start, cut, flipped)
        if kind is Kind.RESET_IN_BODY:
            await self.connection.drained()
            self.connection.reset_on_close()
        elif kind is Kind.STALL and fault:
            await self.connection.hold(fault.seconds)
        elif kind is Kind.TRICKLE and fault:
            while cut < end and not self.connection.gone:
                await self.connection.hold(fault.seconds)
                await self._span(fd, cut, cut + 1, None)
                cut += 1
        if kind in (Kind.RESET_IN_BODY, Kind.SHORT_BODY):
            return False
        await self._span(fd, cut, end, flipped)
        await self.connection.send(extra)
        return self.request.keep_alive

    async def _span(self, fd: int, start: int, end: int, flipped: int | None) -> None:
        while start < end:
            data = os.pread(fd, min(CHUNK, end - start), start)
            if not data:
                raise ConnectionAbortedError("the file became shorter while it was sent")
            if flipped is not None and start <= flipped < start + len(data):
                changed = bytearray(data)
                changed[flipped - start] ^= 0xFF
                data = bytes(changed)
            await self.connection.send(data)
            start += len(data)

    @property
    def _head_only(self) -> bool:
        return self.request.method == "HEAD"

    @property
    def _keep_alive(self) -> dict[str, str]:
        return {"Connection": "keep-alive" if self.request.keep_alive else "close"}


def _range(asked: Mapping[str, str], size: int, headers: dict[str, str]) -> tuple[int, int, int]:
    """Status, start and end (exclusive) of the bytes to send; adds Content-Range to the headers.

    As nginx does, a request whose range is not a single well-formed one, or whose If-Range fails, gets the whole file.
    """
    match = _RANGE.fullmatch(asked.get("range", ""))
    condition = asked.get("if-range")
    same = condition is None or condition in (headers.get("ETag"), headers["Last-Modified"])
    if not match or match[0] == "bytes=-" or not same:
        return 200, 0, size
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size or start >= end:
        headers["Content-Range"] = f"bytes */{size}"
        return 416, 0, 0
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return 206, start, end


def retry_after(fault: Fault) -> dict[str, str]:
    """The fault's Retry-After header, if any."""
    if fault.retry_after is None:
        return {}
    date = formatdate(time() + fault.retry_after, usegmt=True)
    return {"Retry-After": date if fault.retry_after_as_date else str(fault.retry_after)}


def _content_type(path: str) -> str:
    kind, encoding = mimetypes.guess_type(path)
    return "application/octet-stream" if encoding or kind is None else kind


def listing(place: Path, path: str) -> bytes:
    """The page for a folder."""
    with os.scandir(place) as entries:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in entries)
    links = "\n".join(f'<a href="{quote(name)}">{html.escape(name)}</a>' for name in ["../", *names])
    title = html.escape(f"Index of {path}")
    page = f"<html><head><title>{title}</title></head>\n<body><h1>{title}</h1><hr><pre>{links}</pre></body></html>\n"
    return page.encode()


def _page(title: str) -> bytes:
    """A page with the usual navigation of a web site around one sentence."""
    frame = '<div class="nav-item"><a class="nav-link" href="/about/">PhysioNet</a></div>\n' * 60
    page = (
        f"<!DOCTYPE html>\n<html><head><title>{title}</title></head>\n<body>\n{frame}<h1>{title}</h1>\n</body></html>\n"
    )
    return page.encode()
