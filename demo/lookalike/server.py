"""The server: PhysioNet's protocol over a folder of datasets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from demo.lookalike.access import PASSWORD_CHECK, Access, User, Visitor, basic_counts
from demo.lookalike.connection import Connection, Request
from demo.lookalike.counters import Counters
from demo.lookalike.faults import Fault, Faults, Kind
from demo.lookalike.profiles import UNLIMITED, Profile
from demo.lookalike.reply import HTML, Reply, listing, retry_after

API = "/api/v1/projects/"


class Lookalike:
    """A PhysioNet that serves ``<root>/<slug>/<version>/…`` under ``/files/<slug>/<version>/…``.

    It runs on its own thread between ``start`` and ``stop``, or as a context manager. All attributes and methods may be
    used from any thread while it runs.

    Args:
        root: Folder of the datasets.
        users: Accounts by name.
        profile: Pace of the server; assign ``profile`` to change it.
        faults: Faults in force from the start.
        check_seconds: Cost of one password check; 0 = none.
        check_burns_cpu: Spend that cost by hashing, as PhysioNet does; otherwise by sleeping.
        host, port: Where to listen; port 0 picks a free one. OSError if it is taken.

    Attributes:
        url: ``http://127.0.0.1:<port>``, to which ``/files/…`` is added.
        faults: The faults in force: ``add``, ``set``, ``clear``.
        counters: Counts of requests and answers.
        access: Users, agreements and sessions.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        users: Mapping[str, User],
        profile: Profile = UNLIMITED,
        faults: Iterable[Fault] = (),
        check_seconds: float = PASSWORD_CHECK,
        check_burns_cpu: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.counters = Counters()
        self.faults = Faults(faults, self._count_fault)
        self.access = Access(users, check_seconds, check_burns_cpu, self.counters)
        self._root = Path(root).resolve()
        self._profile = profile
        self._host, self._port = host, port  # a port of 0 becomes the real one below
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lookalike", daemon=True)
        self._listener = self._bind()
        self._online = False
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._requests = 0  # requests being served, counted only if they are limited
        self._reopening: asyncio.TimerHandle | None = None

    # ---- life, for callers on other threads

    def start(self) -> Self:
        """Listen and serve."""
        self._go_online()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close everything."""
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self._host in ("", "0.0.0.0") else self._host  # noqa: S104
        return f"http://{host}:{self._port}"

    @property
    def profile(self) -> Profile:
        return self._profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        self._profile = profile
        self._run(self._listen_as_profile_says)

    def refuse(self, seconds: float | None = None) -> None:
        """Refuse new connections for ``seconds`` (None = until ``come_back``); open ones stay."""
        self._run(lambda: self._go_offline(seconds))

    def go_down(self, seconds: float | None = None) -> None:
        """Reset every connection and refuse new ones for ``seconds`` (None = until ``come_back``)."""
        self._run(lambda: self._go_offline(seconds, reset=True))

    def come_back(self) -> None:
        """End ``refuse`` or ``go_down`` now."""
        self._run(self._go_online)

    def _run(self, action: Callable[[], None]) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    # ---- connections

    def _bind(self) -> socket.socket:
        """Reserve the port. Until the socket listens, the kernel refuses connections to it."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((self._host, self._port))
        self._port = listener.getsockname()[1]
        return listener

    def _listen_as_profile_says(self) -> None:
        if self._online:
            self._listener.listen(self._profile.backlog)
            self._accept_or_pause()

    @property
    def _full(self) -> bool:
        return self._is_above_limit(self.counters.connections) and self._profile.refuse_with is None

    def _is_above_limit(self, served: int) -> bool:
        return self._profile.connections is not None and served >= self._profile.connections

    def _accept_or_pause(self) -> None:
        """Leave clients above the limit in the kernel's short queue, which makes the next ones hang in connect."""
        if not self._online:
            return
        if self._full and self._profile.serve_waiting:
            self._loop.remove_reader(self._listener)
        else:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        connection = Connection(sock, self.counters, lambda: self._profile.rate)
        if self._full:
            self.counters.hung += 1
            self._start(connection, connection.hold(float("inf")))
        elif connection.gone:  # the client gave up while it waited
            connection.close()
        else:
            self.counters.opened()
            self._start(connection, self._serve(connection), self._count_closed)
        self._accept_or_pause()

    def _start(
        self, connection: Connection, work: Coroutine[None, None, None], closed: Callable[[], None] | None = None
    ) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            connection.close()
            del self._connections[task]
            if closed:
                closed()
            if not task.cancelled() and (error := task.exception()) and not isinstance(error, ConnectionError):
                self._loop.call_exception_handler({"message": "a request failed", "exception": error})

        task = self._loop.create_task(work)
        self._connections[task] = connection
        task.add_done_callback(ended)

    def _count_closed(self) -> None:
        self.counters.connections -= 1
        self._accept_or_pause()

    async def _serve(self, connection: Connection) -> None:
        await asyncio.sleep(self._profile.round_trip)
        while (request := await connection.request()) and await self._answer(connection, request):
            pass

    def _go_offline(self, seconds: float | None, *, reset: bool = False) -> None:
        if self._reopening:
            self._reopening.cancel()
        if self._online:
            self._online = False
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = self._bind()
        if reset:
            for task, connection in self._connections.items():
                connection.reset_on_close()
                task.cancel()
        self._reopening = None if seconds is None else self._loop.call_later(seconds, self._go_online)

    def _go_online(self) -> None:
        if self._reopening:
            self._reopening.cancel()
            self._reopening = None
        self._online = True
        self._listen_as_profile_says()

    async def _shut_down(self) -> None:
        self._go_offline(None, reset=True)
        self._listener.close()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    # ---- faults

    def _count_fault(self, kind: Kind) -> None:
        self.counters.faults[kind.value] += 1

    def _happens(self, event: Fault, project: str) -> None:
        match event.kind:
            case Kind.REFUSED:
                self._go_offline(event.seconds)
            case Kind.DOWN:
                self._go_offline(event.seconds, reset=True)
            case Kind.SESSIONS_EXPIRED | Kind.SESSIONS_LOST:
                self.access.end_sessions(with_401=event.kind is Kind.SESSIONS_EXPIRED)
            case Kind.PASSWORD_CHANGED:
                self.access.change_passwords()
            case Kind.AGREEMENT_REVOKED:
                self.access.revoke(project)

    async def _meet_at_the_door(self, fault: Fault, reply: Reply) -> bool:
        match fault.kind:
            case Kind.RESET_BEFORE:
                reply.connection.reset_on_close()
                return False
            case Kind.SILENCE:
                await reply.connection.hold(fault.seconds)
                return False
            case Kind.REDIRECT:
                return await reply.page(302, "Found", {"Location": fault.location + reply.request.target})
            case _:
                return await reply.page(fault.status, "Sorry", retry_after(fault))

    # ---- requests

    async def _answer(self, connection: Connection, request: Request) -> bool:
        """Answer one request; returns whether the connection can take another."""
        reply = Reply(connection, request)
        below = unquote(urlsplit(request.target).path)
        path = below.removeprefix("/files/")
        project = "/".join(path.split("/")[:2])
        self.counters.asked(request.method, path, request.headers)
        await asyncio.sleep(self._profile.round_trip)

        for event in self.faults.events(path):
            self._happens(event, project)
            await asyncio.sleep(0)  # if the server went down, this request is cancelled here
        if fault := self.faults.at_the_door(path):
            return await self._meet_at_the_door(fault, reply)
        if self._profile.refuse_with is None:
            return await self._admit(reply, below, path, project)
        if self._is_above_limit(self._requests):
            return await reply.page(self._profile.refuse_with, "Too many at once")
        self._requests += 1
        try:
            return await self._admit(reply, below, path, project)
        finally:
            self._requests -= 1

    async def _admit(self, reply: Reply, below: str, path: str, project: str) -> bool:
        request = reply.request
        if below.startswith(API):
            return await self._tell(reply, below.removeprefix(API).removesuffix("/versions/"))
        visitor = await self.access.visitor(request.method, request.headers)
        reply.cookies = visitor.cookies
        if path == below or ".." in path.split("/") or "\0" in path or not self._is_project(project):
            return await reply.page(404, "Page not found")
        if visitor.name is None or not self.access.may_read(visitor.name, project):
            return await self._refuse(reply, visitor)
        return await self._deliver(reply, path)

    async def _tell(self, reply: Reply, slug: str) -> bool:
        """Answer as PhysioNet's API, which needs no login: a project's versions, each with its size."""
        folder = self._root / slug
        if not slug or "/" in slug or slug == ".." or not folder.is_dir():
            return await reply.page(404, "Not found")
        versions = [
            {
                "slug": slug,
                "title": slug,
                "version": version.name,
                "main_storage_size": sum(file.stat().st_size for file in version.rglob("*") if file.is_file()),
            }
            for version in sorted(folder.iterdir())
            if version.is_dir()
        ]
        return await reply.bytes(200, json.dumps(versions).encode(), {"Content-Type": "application/json"})

    def _is_project(self, project: str) -> bool:
        return project.count("/") == 1 and all(project.split("/")) and (self._root / project).is_dir()

    async def _refuse(self, reply: Reply, visitor: Visitor) -> bool:
        request = reply.request
        if visitor.name is None and basic_counts(request.method, request.headers):
            reply.cookies += ("testcookie=1; HttpOnly; Path=/; SameSite=Lax",)
            challenge = {"WWW-Authenticate": 'Basic realm="PhysioNet", charset="UTF-8"'}
            return await reply.bytes(401, b"", {**HTML, **challenge})
        return await reply.page(403, "Access denied")

    async def _deliver(self, reply: Reply, path: str) -> bool:
        place = self._root / path
        if place.is_dir():
            if not path.endswith("/"):
                return await reply.page(302, "Found", {"Location": quote(f"/files/{path}/")})
            return await reply.bytes(200, listing(place, path), HTML)
        if path.endswith("/") or not place.is_file():
            return await reply.page(404, "Page not found")
        fault = self.faults.of_the_file(path, head=reply.request.method == "HEAD")
        if fault and fault.kind is Kind.STATUS:
            return await reply.page(fault.status, "Page not found", retry_after(fault))
        if fault and fault.kind is Kind.LOGIN_PAGE:
            return await reply.page(200, "Log in to PhysioNet")
        with place.open("rb") as file:
            return await reply.file(file.fileno(), path, fault)
