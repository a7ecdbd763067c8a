"""One session with PhysioNet, shared by all threads of a process.

PhysioNet checks a password at every request of a client without cookies, which costs ten times the file itself. So the
session shakes hands once: an unauthenticated request earns ``testcookie``, an authenticated one with that cookie earns
``sessionid``, and every later request carries both. Files are read over the connection pool beneath a requests session
(its TLS, proxy and CA settings hold), without requests' per-request cost.
"""

from __future__ import annotations

import copy
import hashlib
import ipaddress
import logging
import os
import random
import threading
import time
import unicodedata
from base64 import b64encode
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookies import CookieError, SimpleCookie
from queue import LifoQueue
from typing import Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from physionet_mirror import PROJECT, PROJECT_URL, __version__
from physionet_mirror.dataset import SUMS, Dataset
from physionet_mirror.errors import (
    AccessRefused,
    Corrupt,
    CredentialsRefused,
    InputError,
    NotFound,
    NotTheFile,
    SourceError,
    SourceUnavailable,
    Stalled,
    Throttled,
    Truncated,
)
from physionet_mirror.mover import ALONE, SourceStats, Turn
from physionet_mirror.worker_settings import check_ca_bundle, proxy_refusal, settings_at_fault

log = logging.getLogger(__name__)

PHYSIONET = "https://physionet.org"
USER_AGENT = f"Wget/1.21 ({PROJECT}/{__version__}; +{PROJECT_URL})"
"""PhysioNet honours HTTP Basic only for agents that start with ``Wget/`` or ``libwfdb/``; the comment says who we are."""

ACCEPTED_AGENTS = ("Wget/", "libwfdb/")
RESUMABLE = 1 << 20
"""Files above this size in bytes are resumed with Range; smaller ones are cheaper to begin anew."""

BIG = 32 << 20
"""Files above this size in bytes are never held in memory, and an outage amid one is waited for."""

LEAST_SPEED = 1024
"""Bytes a second, over a read time-out, below which a download is ended as stalled. On the worst days that users report,
PhysioNet gives a connection forty times as much (0.04 MB/s)."""

LONGEST_WAIT = 86_400.0
"""Seconds that a Retry-After may ask for; what is longer is taken for this."""

_CHUNK = 1 << 16  # at PhysioNet's pace a tenth of a second: what the pace is measured by
_RESUMES = 1, 2, 4, 8, 16, 30, 30  # seconds before the tries in a row to resume a big file
_RESUMES_OF_SMALL = _RESUMES[:3]
_LONGEST_PAUSE = 300.0  # seconds that a Retry-After may hold up a resume; what asks for more ends the download
_PORTS = {"https": 443, "http": 80}
_RENEWALS = 4  # of the session, for one request
_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class _Session:
    """The cookies that spare the password check; replaced as a whole, so that threads read it without a lock."""

    headers: Mapping[str, str]
    cookies: Mapping[str, str] = field(default_factory=dict)

    def having(self, cookies: Mapping[str, str]) -> _Session:
        """The same with more cookies."""
        all_cookies = {**self.cookies, **cookies}
        if not all_cookies:
            return self
        header = "; ".join(f"{name}={value}" for name, value in all_cookies.items())
        return _Session({**self.headers, "Cookie": header}, all_cookies)


class Incoming:
    """A file on its way; iterate once, to the end.

    The iteration's last act is to compare the hash of all bytes with PhysioNet's: whoever keeps nothing unless it ends
    without an exception never keeps a wrong byte.

    Attributes:
        size: Bytes that PhysioNet announced, or None.
    """

    def __init__(self, size: int | None, chunks: Generator[bytes]) -> None:
        self.size = size
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """End it early: its connection is closed."""
        self._chunks.close()


class PhysioNet:
    """PhysioNet as one logged-in client sees it; safe to share between threads.

    Args:
        base_url: ``https://physionet.org``, or a look-alike.
        login: PhysioNet user name.
        password: Its password; never shown by ``repr``, errors or logs.
        user_agent: Own agent; must begin as PhysioNet wants it.
        allow_http: Send the password over plain http to a host that is not loopback.
        connections: The most connections kept open for re-use.
        connect_timeout: Seconds until a connect counts as throttled.
        read_timeout: Seconds without an answer, without a byte or at less than ``LEAST_SPEED`` until a request counts as
            stalled.

    Raises:
        InputError: The address, agent or credentials cannot be used; nothing was sent.
    """

    def __init__(
        self,
        base_url: str,
        login: str,
        password: str,
        *,
        user_agent: str | None = None,
        allow_http: bool = False,
        connections: int = 8,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
    ) -> None:
        self.base_url = _checked_address(base_url, allow_http)
        self.user_agent = _checked_agent(user_agent or USER_AGENT)
        _check_credentials(login, password)
        self.stats = SourceStats()
        self._basic = "Basic " + b64encode(f"{login}:{password}".encode()).decode()
        self._timeout = urllib3.Timeout(connect=connect_timeout, read=read_timeout)
        self._read_timeout = read_timeout
        self._connections = connections
        self._plain = {"User-Agent": self.user_agent, "Accept-Encoding": "identity"}
        self._lock = threading.Lock()
        self._shaking = threading.Lock()
        self._session: _Session | None = None
        self._refused = False
        self._handshakes_tried = 0
        self._handshake_failed: SourceError | None = None
        self._http = requests.Session()
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=connections, max_retries=0)
        self._http.mount("https://", adapter)
        self._http.mount("http://", adapter)
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}

    def __repr__(self) -> str:
        return f"<PhysioNet {self.base_url}>"

    def close(self) -> None:
        """Close the kept connections."""
        self._http.close()

    def url(self, dataset: Dataset, path: str) -> str:
        """Address of a dataset's file."""
        return f"{self.base_url}/files/{dataset.name}/{quote(path)}"

    # -- the verbs -------------------------------------------------------------------------------------------------

    def check_access(self, dataset: Dataset) -> None:
        """Ask for the dataset's checksum file without reading it.

        Raises:
            CredentialsRefused: Wrong user name or password.
            AccessRefused: This account may not read this project.
            NotFound: PhysioNet has no such project version.
            Throttled, SourceUnavailable: PhysioNet cannot say now.
        """
        _discard(self._ask("HEAD", dataset, SUMS))

    def etag(self, dataset: Dataset, path: str) -> str | None:
        """The ETag of a file, which changes when the file does; None where the server names none.

        Raises:
            SourceError: As `check_access`.
        """
        response = self._ask("HEAD", dataset, path)
        _discard(response)
        return response.headers.get("ETag")

    def open(self, dataset: Dataset, path: str, sha256: str | None, turn: Turn = ALONE) -> Incoming:
        """One file of any size, in bounded memory; returns when its first byte is there.

        One attempt: an interrupted file above 1 MiB is resumed where it broke, everything else is the caller's to
        repeat. ``sha256`` is hex, and None only for the checksum file itself. ``turn`` is told when an answer came, and
        waits before a resume.

        Raises:
            SourceError: Any of its subclasses; so does the iteration.
        """
        response = self._ask("GET", dataset, path, turn=turn)
        return Incoming(_length(response), self._proven(self._body(response, dataset, path, turn), path, sha256))

    def stream(self, dataset: Dataset, path: str, sha256: str | None) -> Iterator[bytes]:
        """As ``open``, for callers who do not need the size."""
        yield from self.open(dataset, path, sha256)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _proven(self, chunks: Iterator[bytes], path: str, sha256: str | None) -> Generator[bytes]:
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
            yield chunk
        if sha256 is not None and digest.hexdigest() != sha256:
            self._fault(Corrupt(_corrupt(path, sha256)))

    def _body(self, response: BaseHTTPResponse, dataset: Dataset, path: str, turn: Turn) -> Iterator[bytes]:
        """The file's bytes. An interrupted file above 1 MiB is resumed, a few times in a row and later each time.

        A resume that brought a MiB begins a new row. An outage is waited for amid a big file only: a smaller one is
        begun anew when it is over.
        """
        etag, total, received = response.headers.get("ETag"), _length(response), 0
        resumable = total is not None and total > RESUMABLE and etag is not None
        waits = _RESUMES if total is not None and total > BIG else _RESUMES_OF_SMALL
        in_vain = 0
        rest: BaseHTTPResponse | None = response
        while True:
            broken: SourceError
            if rest is not None:
                begun = received
                try:
                    for chunk in self._read(rest, path, None if total is None else total - received):
                        received += len(chunk)
                        yield chunk
                    return
                except (Truncated, Stalled) as error:
                    broken = error
                if received - begun >= RESUMABLE:
                    in_vain = 0
            if not resumable or not received or in_vain == len(waits):
                raise broken
            _wait(turn, waits[in_vain], broken)
            in_vain += 1
            try:
                assert total is not None
                assert etag is not None
                rest = self._resume(dataset, path, received, total, etag, turn)
            except (Throttled, SourceUnavailable) as error:
                if waits is not _RESUMES:
                    raise
                rest, broken = None, error

    def _resume(
        self, dataset: Dataset, path: str, received: int, total: int, etag: str, turn: Turn
    ) -> BaseHTTPResponse:
        """The rest of a file, provided that it is still the same file."""
        with self._lock:
            self.stats.resumed += 1
        log.debug("resuming %s at byte %d of %d", path, received, total)
        response = self._ask("GET", dataset, path, {"Range": f"bytes={received}-", "If-Range": etag}, turn)
        if response.status != 206 or not _continues(response, received, total):
            response.close()
            self._fault(Truncated(f"{path} changed at PhysioNet while it was read. It is fetched anew."))
        return response

    def _read(self, response: BaseHTTPResponse, path: str, expected: int | None) -> Iterator[bytes]:
        """The chunks of one response. Raises Truncated or Stalled, after having yielded what came."""
        received, ended = 0, False
        try:
            while not ended:
                pieces: list[bytes] = []
                size, begun = 0, time.monotonic()
                while size < _CHUNK:
                    piece = response.read1(_CHUNK - size)
                    if not piece:
                        ended = True
                        break
                    pieces.append(piece)
                    size += len(piece)
                    seconds = time.monotonic() - begun
                    if seconds > self._read_timeout and size < LEAST_SPEED * seconds:
                        response.close()
                        self._fault(
                            Stalled(
                                f"{path} stalled: {size:,} bytes came in {seconds:.0f} s. It is tried again; if this goes "
                                "on, PhysioNet is overloaded: use fewer connections."
                            )
                        )
                if size:
                    received += size
                    with self._lock:
                        self.stats.received += size
                    yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except GeneratorExit:
            response.close()
            raise
        except ReadTimeoutError:
            response.close()
            self._fault(
                Stalled(
                    f"{path} stalled: no byte came for {self._read_timeout:g} s. It is tried again; if this goes on, "
                    "PhysioNet is overloaded: use fewer connections."
                )
            )
        except (HTTPError, OSError):
            response.close()
            self._fault(Truncated(_truncated(path, received, expected)))
        response.release_conn()

    # -- asking ----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        dataset: Dataset,
        path: str,
        more: Mapping[str, str] | None = None,
        turn: Turn = ALONE,
    ) -> BaseHTTPResponse:
        """An answer whose status is 200 or 206, with the body unread; renews an expired session."""
        for _ in range(_RENEWALS):
            session = self._session or self._shake_hands(dataset, None)
            response = self._send(method, self.url(dataset, path), {**session.headers, **(more or {})}, session)
            turn.answered(serves=False)
            if response.status != 401:
                self._check(response, dataset, path)
                turn.answered(serves=True)
                return response
            _discard(response)
            self._shake_hands(dataset, session)
        self._fault(_refused())

    def _shake_hands(self, dataset: Dataset, expired: _Session | None) -> _Session:
        """A new session, made by one thread for all that hold the ``expired`` one.

        Raises:
            CredentialsRefused: PhysioNet does not take the password. Later calls raise it again without asking.
            SourceError: Whatever else PhysioNet answered.
        """
        tried = self._handshakes_tried
        with self._shaking:
            if self._refused:
                raise _refused()
            if self._session is not None and self._session is not expired:
                return self._session
            if self._handshakes_tried != tried and self._handshake_failed is not None:
                raise copy.copy(self._handshake_failed)  # another thread has asked in vain while this one waited
            self._handshakes_tried += 1
            self._handshake_failed = None
            try:
                self._session = self._new_session(dataset)
            except SourceError as error:
                self._handshake_failed = error
                if isinstance(error, CredentialsRefused):
                    self._refused, self._session = True, None  # so that nobody asks with the old one either
                raise
            if expired is not None:
                log.info("PhysioNet's session had expired; logged in again.")
            return self._session

    def _new_session(self, dataset: Dataset) -> _Session:
        """Shake hands over the checksum file, which is there and small; what may be read is for later requests to see."""
        greeting = self._send("HEAD", self.url(dataset, SUMS), self._plain)
        _discard(greeting)
        if greeting.status in (200, 206, 404):  # a server that asks for no password, at least not for this dataset
            return _Session(self._plain)
        if greeting.status not in (401, 403):
            self._check(greeting, dataset, SUMS)
        session = _Session({**self._plain, "Authorization": self._basic}).having(_cookies(greeting))
        with self._lock:
            self.stats.handshakes += 1
        answer = self._send("HEAD", self.url(dataset, SUMS), session.headers)
        _discard(answer)
        if answer.status == 401:
            self._fault(_refused())
        if answer.status not in (403, 404):
            self._check(answer, dataset, SUMS)
        return session.having(_cookies(answer))

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], session: _Session | None = None
    ) -> BaseHTTPResponse:
        """One request, redirects followed; credentials go to PhysioNet's own address only.

        Raises:
            Throttled: The connect timed out.
            Stalled: No headers came.
            SourceUnavailable: No connection, or one that broke before an answer.
        """
        for _ in range(_REDIRECTS):
            with self._lock:
                self.stats.requests += 1
            try:
                pool = self._pool(url)
                response = pool.urlopen(
                    method,
                    url if pool.proxy is not None and pool.scheme == "http" else _target(url),
                    headers=headers,
                    timeout=self._timeout,
                    retries=False,
                    redirect=False,
                    assert_same_host=False,
                    preload_content=False,
                    decode_content=False,
                )
            except (HTTPError, OSError) as error:
                if fault := settings_at_fault(error, urlsplit(url).netloc):
                    raise fault from None
                self._fault(self._unreachable(error))
            if session is not None and "sessionid" in (cookies := _cookies(response)) and self._is_ours(url):
                self._replace(session, cookies)
            location = response.headers.get("Location") if response.status in (301, 302, 303, 307, 308) else None
            if location is None:
                return response
            _discard(response)
            try:
                url = urljoin(url, location)
            except ValueError:
                break
            if self._is_same_site(url):
                self._move_to(url)
            elif not self._is_ours(url):
                headers = {name: headers[name] for name in headers if name not in ("Authorization", "Cookie")}
        self._fault(
            SourceUnavailable(
                f"{self.base_url} redirects in a circle or to no address. Nothing was fetched; try again later."
            )
        )

    def _replace(self, session: _Session, cookies: Mapping[str, str]) -> None:
        """PhysioNet opened a new session by itself: it had forgotten ours and checked the password again."""
        if not cookies["sessionid"]:  # it tells us to forget ours; a 401 comes with that
            return
        with self._lock:
            self.stats.handshakes += 1
            if self._session is session:
                self._session = session.having(cookies)

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
        pool = self._pools.pop(former, None)
        if pool is not None:
            pool.close()

    def _pool(self, url: str) -> urllib3.HTTPConnectionPool:
        """The connection pool that the requests session keeps for an address, with its TLS and proxy settings."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._pools:
            settings = self._http.merge_environment_settings(origin, {}, False, None, None)
            if _is_loopback(parts.hostname or ""):
                settings["proxies"] = {}  # which could not reach it
            if parts.scheme == "https" and isinstance(settings["verify"], str):
                check_ca_bundle(
                    settings["verify"],
                    "REQUESTS_CA_BUNDLE" if os.environ.get("REQUESTS_CA_BUNDLE") else "CURL_CA_BUNDLE",
                )
            request = requests.Request("GET", origin).prepare()
            adapter = self._http.get_adapter(origin)
            assert isinstance(adapter, HTTPAdapter)
            pool = adapter.get_connection_with_tls_context(request, settings["verify"], settings["proxies"])
            adapter.cert_verify(pool, origin, settings["verify"], None)  # type: ignore[no-untyped-call]
            assert isinstance(pool, urllib3.HTTPConnectionPool)
            pool.pool = _LiveFirst(self._connections)
            self._pools.setdefault(origin, pool)
        return self._pools[origin]

    # -- errors ----------------------------------------------------------------------------------------------------

    def _fault(self, error: SourceError) -> NoReturn:
        with self._lock:
            self.stats.faults[error.reason] += 1
        raise error from None  # what lies beneath may quote headers

    def _unreachable(self, error: Exception) -> SourceError:
        host = urlsplit(self.base_url).netloc
        kept = "What is stored stays stored."
        if isinstance(error, NameResolutionError):
            return SourceUnavailable(f"The name {host} cannot be resolved. {kept} Check the worker's DNS and network.")
        if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
            return Throttled(
                f"{host} did not take the connection within {self._timeout.connect_timeout:g} s, as it does when one "
                f"client opens too many. {kept} Fewer connections are used from now on."
            )
        if isinstance(error, ReadTimeoutError | TimeoutError):
            return Stalled(f"{host} sent no answer within {self._read_timeout:g} s. {kept} The request is tried again.")
        if isinstance(error, SSLError):
            return SourceUnavailable(
                f"No trusted TLS connection to {host} ({type(error).__name__}). {kept} Check the worker's clock and CA "
                "certificates (REQUESTS_CA_BUNDLE), and whether a proxy stands between."
            )
        return SourceUnavailable(
            f"The connection to {host} was refused or broke ({type(error).__name__}). {kept} It is tried again; "
            "https://physionet.org shows whether the site is up."
        )

    def _check(self, response: BaseHTTPResponse, dataset: Dataset, path: str) -> None:
        """Raise what a status means for the person who must act; the body of such an answer is of no use."""
        status = response.status
        if status in (200, 206):
            if response.headers.get("Content-Type", "").startswith("text/html") and not path.endswith(".html"):
                response.close()
                self._fault(
                    NotTheFile(
                        f"PhysioNet sent an HTML page in place of {path} (a login or maintenance page). Nothing of it was "
                        f"kept. Open {dataset.page} in a browser to see what it says."
                    )
                )
            return
        retry_after = _retry_after(response)
        _discard(response)
        if status == 407:
            raise proxy_refusal(status, urlsplit(self.base_url).netloc)
        if status == 403:
            self._fault(
                AccessRefused(
                    f"PhysioNet does not let this account read {dataset.name} (403), and does not say why. What is stored "
                    f"stays stored. Open {dataset.page} logged in as this user: its section Files says what is missing. "
                    "It may be this project's data use agreement (each project has its own), the account's credentialing, "
                    "or a required training that is missing or has expired; or the version was withdrawn, its downloads are "
                    "disabled, or PhysioNet blocks the country of this worker or of the account. Then trigger the run again."
                )
            )
        if status == 404:
            self._fault(
                NotFound(
                    f"PhysioNet has no file {path} in {dataset.name} (404). Nothing else is affected. If the file is listed "
                    f"at {dataset.page}, report it to PhysioNet."
                )
            )
        if status in (429, 503):
            wait = "" if retry_after is None else f", and asks to wait {retry_after:.0f} s"
            self._fault(
                Throttled(
                    f"PhysioNet refuses requests for now ({status}){wait}: it is asked for too many at once, or is in "
                    "maintenance. What is stored stays stored. The run slows down and asks again by itself.",
                    retry_after,
                )
            )
        self._fault(
            SourceUnavailable(
                f"PhysioNet answered {status}. What is stored stays stored. It is tried again; https://physionet.org shows "
                "whether the site is up."
            )
        )


class _LiveFirst(LifoQueue[Any]):
    """A connection pool that gives away open connections before room for new ones.

    urllib3's own puts a failed connect's room on top. Where the server lets new connections hang, the open ones
    beneath would never be used again.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        for _ in range(size):
            self.put_nowait(None)

    def _put(self, item: Any) -> None:
        if item is None or getattr(item, "sock", None) is None:
            self.queue.insert(0, item)
        else:
            self.queue.append(item)


# -- small parts ---------------------------------------------------------------------------------------------------


def _checked_address(base_url: str, allow_http: bool) -> str:
    """``scheme://host[:port]``; ``www.physionet.org``, which only redirects, becomes ``physionet.org``."""
    base_url = base_url.strip()
    malformed = InputError(
        "The host of the PhysioNet connection must look like https://physionet.org (user name and password go into "
        "their own fields). Nothing was sent."
    )
    try:
        parts = urlsplit(base_url if "://" in base_url else f"https://{base_url}")
        port = parts.port
    except ValueError:
        raise malformed from None
    host = (parts.hostname or "").removesuffix(".")
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password or len(host.split()) != 1:
        raise malformed
    if host == f"www.{urlsplit(PHYSIONET).hostname}":
        host = host.removeprefix("www.")
    netloc = (f"[{host}]" if ":" in host else host) + ("" if port in (None, _PORTS[parts.scheme]) else f":{port}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise InputError(
            f"The host of the PhysioNet connection is the address of a page ({parts.path[:60]}). Nothing was sent. Enter the "
            f"site alone: {parts.scheme}://{netloc}. Which project is fetched is a matter of the DAG."
        )
    if parts.scheme == "http" and not allow_http and not _is_loopback(host):
        raise InputError(
            f"Refusing to send the PhysioNet password to {host} over plain http. Nothing was sent. Use https://, "
            'or set {"allow_http": true} in the connection\'s extra if this is a test server of yours.'
        )
    return f"{parts.scheme}://{netloc}"


def _check_credentials(login: str, password: str) -> None:
    if not login or not password:
        raise InputError(
            "The PhysioNet connection has no login or no password. Nothing was sent. Put your physionet.org user name "
            "and password into the connection `physionet_default`."
        )
    for name, value in (("login", login), ("password", password)):
        fault = (
            "begins or ends with a blank or a line break, as happens when it is pasted"
            if value != value.strip()
            else "has a line break or another control character in it"
            if any(unicodedata.category(character) == "Cc" for character in value)
            else "has a colon in it, which no PhysioNet user name has"
            if name == "login" and ":" in value
            else None
        )
        if fault:
            raise InputError(
                f"The {name} of the PhysioNet connection {fault}. Nothing was sent. Correct it in the connection "
                "`physionet_default`."
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_agent(agent: str) -> str:
    if not agent.startswith(ACCEPTED_AGENTS) or not agent.isprintable():
        raise InputError(
            f"PhysioNet ignores the password of a client that calls itself {agent[:60]!r} and answers 403. Nothing was sent. "
            "Let `user_agent` in the connection's extra begin with Wget/ or libwfdb/, and say who you are in the comment "
            f"behind it, or leave it out: {USER_AGENT}"
        )
    return agent


def _target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _refused() -> CredentialsRefused:
    return CredentialsRefused(
        "PhysioNet refused the user name or password (401). What is stored stays stored. Try the same pair at "
        "https://physionet.org/login/ and correct the connection `physionet_default`; then trigger the run again."
    )


def _corrupt(path: str, sha256: str) -> str:
    return (
        f"{path} does not hash to PhysioNet's checksum {sha256[:12]}…. The wrong bytes were thrown away. If this goes on, "
        "the file is damaged at PhysioNet: report it there."
    )


def _truncated(path: str, received: int, expected: int | None) -> str:
    return (
        f"{path} ended early, after {received:,} of {'an unknown number of' if expected is None else f'{expected:,}'} "
        "bytes. Nothing of it was kept; it is fetched again."
    )


def _discard(response: BaseHTTPResponse) -> None:
    """Keep the connection where little is left of an answer that is of no use, else close it."""
    try:
        for _ in range(4):
            if not response.read1(_CHUNK):
                response.release_conn()
                return
    except (HTTPError, OSError):
        pass
    response.close()


def _wait(turn: Turn, seconds: float, error: SourceError) -> None:
    """Before a resume: so long, with jitter, and as long as the server asked for. Raises ``error`` where that is too long."""
    asked_for = error.retry_after or 0.0
    if asked_for > _LONGEST_PAUSE:
        raise error
    turn.wait(max(seconds * random.uniform(0.5, 1.5), asked_for), error)


def _length(response: BaseHTTPResponse) -> int | None:
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None


def _continues(response: BaseHTTPResponse, offset: int, total: int) -> bool:
    return response.headers.get("Content-Range", "") == f"bytes {offset}-{total - 1}/{total}"


def _retry_after(response: BaseHTTPResponse) -> float | None:
    """Seconds that the server asks us to wait, given as a number or as an HTTP date; None where it is neither."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        if value.isascii() and value.isdigit():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return min(max(0.0, seconds), LONGEST_WAIT)


def _cookies(response: BaseHTTPResponse) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in response.headers.getlist("Set-Cookie"):
        try:
            found |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        except CookieError:
            continue
    return found
