"""One logged-in session with PhysioNet, shared by all threads of a process.

PhysioNet checks a password at every request of a client without cookies, which costs ten times the file itself. So the
session shakes hands once: an unauthenticated request earns ``testcookie``, an authenticated one with that cookie earns
``sessionid``, and every later request carries both.
"""

from __future__ import annotations

import copy
import logging
import threading
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import NoReturn
from urllib.parse import quote, urljoin, urlsplit

from physionet_mirror.dataset import SUMS, Dataset
from physionet_mirror.errors import CredentialsRefused, MirrorError, SourceError
from physionet_mirror.mover import ALONE, SourceStats, Turn
from physionet_mirror.source import replies
from physionet_mirror.wire import Answer, Origin
from physionet_mirror.worker_settings import proxy_for, trusted_by_requests

log = logging.getLogger(__name__)

_RENEWALS = 4  # of the session, for one request
_REDIRECTS = 5
_LEFT_OVER = 1 << 16  # bytes of an answer that is of no use: up to here it is read, so that its connection can be kept


@dataclass(frozen=True, slots=True)
class _Cookies:
    """The headers that spare the password check; replaced as a whole, so that threads read them without a lock."""

    headers: Mapping[str, str]
    cookies: Mapping[str, str] = field(default_factory=dict)

    def having(self, cookies: Mapping[str, str]) -> _Cookies:
        """The same with more cookies."""
        all_cookies = {**self.cookies, **cookies}
        if not all_cookies:
            return self
        header = "; ".join(f"{name}={value}" for name, value in all_cookies.items())
        return _Cookies({**self.headers, "Cookie": header}, all_cookies)


class Session:
    """Requests to PhysioNet as one user; safe to share between threads.

    Args:
        base_url: ``scheme://host[:port]``.
        login: PhysioNet user name.
        password: Its password.
        user_agent: As PhysioNet wants it.
        connections: The most idle connections kept open for re-use.
        connect_timeout: Seconds until a connect counts as throttled.
        read_timeout: Seconds without an answer or a byte until a request counts as stalled.

    Attributes:
        base_url: Where PhysioNet is asked; another than at first where it redirects the whole site.
        stats: What was asked of it.
    """

    def __init__(
        self,
        base_url: str,
        login: str,
        password: str,
        *,
        user_agent: str,
        connections: int,
        connect_timeout: float,
        read_timeout: float,
    ) -> None:
        self.base_url = base_url
        self.stats = SourceStats()
        self.read_timeout = read_timeout
        self._connect_timeout, self._connections = connect_timeout, connections
        self._basic = "Basic " + b64encode(f"{login}:{password}".encode()).decode()
        self._plain = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._lock = threading.Lock()
        self._shaking = threading.Lock()
        self._current: _Cookies | None = None
        self._greeted: _Cookies | None = None  # of a handshake that the server broke off after the greeting
        self._refused = False
        self._handshakes_tried = 0
        self._handshake_failed: MirrorError | None = None
        self._origins: dict[str, Origin] = {}

    def close(self) -> None:
        """Close the kept connections."""
        for origin in list(self._origins.values()):
            origin.close()

    def ask(
        self,
        method: str,
        dataset: Dataset,
        path: str,
        more: Mapping[str, str] | None = None,
        turn: Turn = ALONE,
    ) -> Answer:
        """An answer whose status is 200 or 206, with the body unread; renews an expired session.

        Args:
            method: ``GET`` or ``HEAD``.
            dataset: Whose file.
            path: Of the file.
            more: Further headers.
            turn: Is told when PhysioNet has answered, and when it sends the file.

        Raises:
            SourceError: What else PhysioNet answered, or that it did not.
            InputError: A setting of this worker keeps it from being asked.
        """
        for _ in range(_RENEWALS):
            session = self._current or self._shake_hands(dataset, None)
            answer = self._send(method, self.url(dataset, path), {**session.headers, **(more or {})}, session)
            turn.answered(serves=False)
            if answer.status != 401:
                self._check(answer, dataset, path)
                turn.answered(serves=True)
                return answer
            _discard(answer)
            self._shake_hands(dataset, session)
        self.fault(replies.refused())

    def ask_anyone(self, path: str, most: int) -> tuple[int, bytes]:
        """Status and body (at most so many bytes) of an address that needs no login; none is sent.

        Raises:
            SourceError: PhysioNet does not answer.
        """
        answer = self._send("GET", f"{self.base_url}{path}", self._plain)
        try:
            return answer.status, answer.read(most)
        except OSError as error:
            self.fault(
                replies.unreachable(error, urlsplit(self.base_url).netloc, self._connect_timeout, self.read_timeout)
            )

    def knock(self, dataset: Dataset) -> tuple[int, MirrorError | None]:
        """Status and meaning of the answer to a HEAD of the checksum file without login.

        Raises:
            SourceError: PhysioNet does not answer.
            InputError: A setting of this worker keeps it from being asked.
        """
        with self._send("HEAD", self.url(dataset, SUMS), self._plain) as answer:
            return answer.status, replies.meaning(answer, dataset, SUMS, urlsplit(self.base_url).netloc)

    def url(self, dataset: Dataset, path: str) -> str:
        """Address of a dataset's file."""
        return f"{self.base_url}/files/{dataset.name}/{quote(path)}"

    def received(self, size: int) -> None:
        """Count bytes of a body."""
        with self._lock:
            self.stats.received += size

    def resumed(self) -> None:
        """Count a resume."""
        with self._lock:
            self.stats.resumed += 1

    def fault(self, error: MirrorError) -> NoReturn:
        """Count an error and raise it, without what lies beneath: that may quote headers."""
        with self._lock:
            self.stats.faults[error.reason] += 1
        raise error from None

    # -- the handshake ---------------------------------------------------------------------------------------------

    def _shake_hands(self, dataset: Dataset, expired: _Cookies | None) -> _Cookies:
        """A new session, made by one thread for all that hold the ``expired`` one.

        Raises:
            CredentialsRefused: PhysioNet does not take the password. Later calls raise it again without asking.
            MirrorError: Whatever else PhysioNet answered.
        """
        tried = self._handshakes_tried
        with self._shaking:
            if self._refused:
                raise replies.refused()
            if self._current is not None and self._current is not expired:
                return self._current
            if self._handshakes_tried != tried and self._handshake_failed is not None:
                raise copy.copy(self._handshake_failed)  # another thread has asked in vain while this one waited
            self._handshakes_tried += 1
            self._handshake_failed = None
            try:
                self._current = self._new_session(dataset)
            except SourceError as error:
                self._handshake_failed = error
                if isinstance(error, CredentialsRefused):
                    self._refused, self._current = True, None  # so that nobody asks with the old one either
                raise
            if expired is not None:
                log.info("PhysioNet's session had expired; logged in again.")
            return self._current

    def _new_session(self, dataset: Dataset) -> _Cookies:
        """Shake hands over the checksum file, which is there and small; what may be read is for later requests to see.

        Where an earlier handshake came no further than the greeting, it goes on from there: one request.
        """
        session = was_greeted = self._greeted
        if session is None:
            greeting = self._send("HEAD", self.url(dataset, SUMS), self._plain)
            _discard(greeting)
            if greeting.status in (200, 206, 404):  # a server that asks for no password, at least not for this dataset
                return _Cookies(self._plain)
            if greeting.status not in (401, 403):
                self._check(greeting, dataset, SUMS)
            session = _Cookies({**self._plain, "Authorization": self._basic}).having(_cookies(greeting))
        self._greeted = session
        with self._lock:
            self.stats.handshakes += 1
        answer = self._send("HEAD", self.url(dataset, SUMS), session.headers)
        _discard(answer)
        if answer.status == 401:
            self._greeted = None
            if was_greeted is not None:  # too long ago, perhaps
                return self._new_session(dataset)
            self.fault(replies.refused())
        if answer.status not in (403, 404):
            self._check(answer, dataset, SUMS)
        self._greeted = None
        return session.having(_cookies(answer))

    def _replace(self, session: _Cookies, cookies: Mapping[str, str]) -> None:
        """PhysioNet opened a new session by itself: it had forgotten ours and checked the password again."""
        if not cookies["sessionid"]:  # it tells us to forget ours; a 401 comes with that
            return
        with self._lock:
            self.stats.handshakes += 1
            if self._current is session:
                self._current = session.having(cookies)

    # -- one request -----------------------------------------------------------------------------------------------

    def _check(self, answer: Answer, dataset: Dataset, path: str) -> None:
        """Raise what an answer means, unless it is the file; the body of such an answer is of no use."""
        error = replies.meaning(answer, dataset, path, urlsplit(self.base_url).netloc)
        if error is not None:
            if answer.status in (200, 206):
                answer.close()
            else:
                _discard(answer)
            self.fault(error)

    def _send(self, method: str, url: str, headers: Mapping[str, str], session: _Cookies | None = None) -> Answer:
        """One request, redirects followed; credentials go to PhysioNet's own address only.

        Raises:
            Throttled: The connect timed out.
            Stalled: No headers came.
            SourceUnavailable: No connection, or one that broke before an answer.
            InputError: A setting of this worker stands between.
        """
        for _ in range(_REDIRECTS):
            with self._lock:
                self.stats.requests += 1
            try:
                answer = self._origin(url).exchange(method, _target(url), headers.items())
            except OSError as error:
                self.fault(replies.unreachable(error, urlsplit(url).netloc, self._connect_timeout, self.read_timeout))
            except MirrorError as error:  # a setting of this worker
                self.fault(error)
            except ValueError:  # the address that a redirect names
                break
            if session is not None and "sessionid" in (cookies := _cookies(answer)) and self._is_ours(url):
                self._replace(session, cookies)
            location = answer.headers.get("location") if answer.status in (301, 302, 303, 307, 308) else None
            if location is None:
                return answer
            _discard(answer)
            try:
                url = urljoin(url, location)
            except ValueError:
                break
            if self._is_same_site(url):
                self._move_to(url)
            elif not self._is_ours(url):
                headers = {name: headers[name] for name in headers if name not in ("Authorization", "Cookie")}
        self.fault(replies.redirected_to_nowhere(self.base_url))

    def _is_ours(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self.base_url)[:2]

    def _is_same_site(self, url: str) -> bool:
        """Whether an address differs from ours by a leading ``www.`` alone."""
        here, there = urlsplit(self.base_url), urlsplit(url)
        bare = [parts.netloc.removeprefix("www.") for parts in (here, there)]
        return here.scheme == there.scheme and bare[0] == bare[1] and here.netloc != there.netloc

    def _move_to(self, url: str) -> None:
        """Ask there from now on: each redirect would cost a request, and a second connection."""
        parts = urlsplit(url)
        former, self.base_url = self.base_url, f"{parts.scheme}://{parts.netloc}"
        log.warning("%s redirects to %s. Enter that as the host of the PhysioNet connection.", former, self.base_url)
        if origin := self._origins.pop(former, None):
            origin.close()

    def _origin(self, url: str) -> Origin:
        """The connections to an address, by the environment's proxies and CA bundle as requests reads them.

        Raises:
            ValueError: It is no address of HTTP.
            InputError: A setting that cannot be worked with.
        """
        parts = urlsplit(url)
        address = f"{parts.scheme}://{parts.netloc}"
        origin = self._origins.get(address)
        if origin is None:
            origin = Origin(
                address,
                tls=trusted_by_requests() if parts.scheme == "https" else None,
                proxy=proxy_for(address),
                connect_timeout=self._connect_timeout,
                read_timeout=self.read_timeout,
                keep=self._connections,
            )
            origin = self._origins.setdefault(address, origin)
        return origin


def _target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"


def _discard(answer: Answer) -> None:
    """Keep the connection where little is left of an answer that is of no use, else close it."""
    try:
        if not answer.complete:
            answer.read(_LEFT_OVER)
    except OSError:
        pass
    finally:
        answer.close()


def _cookies(answer: Answer) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in answer.headers.all("set-cookie"):
        try:
            found |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        except CookieError:
            continue
    return found
