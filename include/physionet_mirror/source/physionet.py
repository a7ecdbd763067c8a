"""PhysioNet's website as one account sees it: its address, and what may be asked of it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from physionet_mirror import PROJECT, PROJECT_URL, __version__
from physionet_mirror.dataset import SUMS, Dataset
from physionet_mirror.errors import InputError, NotFound, SourceError
from physionet_mirror.mover import ALONE, SourceStats, Turn
from physionet_mirror.source.body import Body, WebsiteSpans
from physionet_mirror.source.session import Session
from physionet_mirror.worker_settings import is_loopback

PHYSIONET = "https://physionet.org"
USER_AGENT = f"Wget/1.21 ({PROJECT}/{__version__}; +{PROJECT_URL})"
"""PhysioNet honours HTTP Basic only for agents that start with ``Wget/`` or ``libwfdb/``; the comment says who we are."""

ACCEPTED_AGENTS = ("Wget/", "libwfdb/")
_MOST_SAID = 4 << 20  # bytes of an answer of PhysioNet's API; abstracts are part of it
_PORTS = {"https": 443, "http": 80}


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
        base_url = _checked_address(base_url, allow_http)
        self.user_agent = _checked_agent(user_agent or USER_AGENT)
        _check_credentials(login, password)
        self._session = Session(
            base_url,
            login,
            password,
            user_agent=self.user_agent,
            connections=connections,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )

    def __repr__(self) -> str:
        return f"<PhysioNet {self.base_url}>"

    @property
    def base_url(self) -> str:
        """Where PhysioNet is asked."""
        return self._session.base_url

    @property
    def stats(self) -> SourceStats:
        """What was asked of it so far."""
        return self._session.stats

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    def check_access(self, dataset: Dataset) -> None:
        """Ask for the dataset's checksum file without reading it.

        Raises:
            CredentialsRefused: Wrong user name or password.
            AccessRefused: This account may not read this project.
            NotFound: PhysioNet has no such project version.
            Throttled, SourceUnavailable: PhysioNet cannot say now.
        """
        try:
            self.probe(dataset)
        except NotFound:
            raise NotFound(self._no_sums(dataset)) from None

    def probe(self, dataset: Dataset) -> None:
        """Ask for the checksum file, in one request: is it served? Raises as `check_access`."""
        self._session.ask("HEAD", dataset, SUMS).close()

    def _no_sums(self, dataset: Dataset) -> str:
        """What it means that there is no checksum file: no such version, or one whose files cannot be proven."""
        try:
            versions = self._versions(dataset)
        except SourceError:
            versions = []
        known = [str(version.get("version")) for version in versions]
        if dataset.version in known:
            return (
                f"{dataset.name} publishes no {SUMS} (404), so its files cannot be proven, and none is fetched. Nothing was "
                f"done. Ask PhysioNet for it, or take another version ({', '.join(known)}); what there is: {dataset.page}"
            )
        return (
            f"PhysioNet has no {SUMS} of {dataset.name} (404): there is no such project or version, or it publishes no "
            "checksums, and then its files cannot be proven. Nothing was done. "
            + (f"Versions of {dataset.slug}: {', '.join(known)}. " if known else "")
            + f"Check slug and version against the address of the project's page; this one would be {dataset.page}"
        )

    def size(self, dataset: Dataset, path: str) -> int | None:
        """Bytes of a file; None where the server does not say.

        Raises:
            SourceError: As `check_access`.
        """
        with self._session.ask("HEAD", dataset, path) as answer:
            return answer.length

    def stated_size(self, dataset: Dataset) -> int | None:
        """Bytes of the whole version (``main_storage_size`` of PhysioNet's API); None where it does not say, or not now."""
        try:
            for version in self._versions(dataset):
                size = version.get("main_storage_size")
                if version.get("version") == dataset.version and isinstance(size, int) and size > 0:
                    return size
        except SourceError:
            pass
        return None

    def _versions(self, dataset: Dataset) -> list[dict[str, Any]]:
        """What PhysioNet's API says of a project's versions; nothing of a project that it does not know."""
        status, body = self._session.ask_anyone(f"/api/v1/projects/{dataset.slug}/versions/", _MOST_SAID)
        try:
            said = json.loads(body) if status == 200 else []
        except ValueError:
            return []
        if isinstance(said, dict):  # a page of a longer list
            said = said.get("results")
        return [version for version in said if isinstance(version, dict)] if isinstance(said, list) else []

    def etag(self, dataset: Dataset, path: str) -> str | None:
        """The ETag of a file, which changes when the file does; None where the server names none.

        Raises:
            SourceError: As `check_access`.
        """
        with self._session.ask("HEAD", dataset, path) as answer:
            return answer.headers.get("etag")

    def open(self, dataset: Dataset, path: str, sha256: str | None, turn: Turn = ALONE) -> Body:
        """One file of any size, in bounded memory; returns when PhysioNet has begun to send it.

        One attempt: an interrupted file above 1 MiB is resumed where it broke, everything else is the caller's to
        repeat. ``sha256`` is hex, and None only for the checksum file itself. ``turn`` is told when an answer came, and
        waits before a resume.

        Raises:
            SourceError: Any of its subclasses; so does reading it.
        """
        return Body(self._session, dataset, path, sha256, self._session.ask("GET", dataset, path, turn=turn), turn)

    def spans(self, dataset: Dataset, path: str, sha256: str, turn: Turn = ALONE) -> WebsiteSpans | None:
        """A file in pieces; None if the server names no size or no strong ETag. Raises as `open`."""
        with self._session.ask("HEAD", dataset, path, turn=turn) as answer:
            return Body(self._session, dataset, path, sha256, answer, turn).spans()

    def stream(self, dataset: Dataset, path: str, sha256: str | None) -> Iterator[bytes]:
        """As ``open``, for callers who do not need the size."""
        with closing(self.open(dataset, path, sha256)) as body:
            yield from body


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
    if parts.scheme == "http" and not allow_http and not is_loopback(host):
        raise InputError(
            f"Refusing to send the PhysioNet password to {host} over plain http. Nothing was sent. Use https://, "
            'or set {"allow_http": true} in the connection\'s extra if this is a test server of yours.'
        )
    return f"{parts.scheme}://{netloc}"


def _check_credentials(login: str, password: str) -> None:
    if not login or not password:
        raise InputError(
            "The PhysioNet connection has no login or no password. Nothing was sent. Put your physionet.org user name "
            "and password into it."
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
            raise InputError(f"The {name} of the PhysioNet connection {fault}. Nothing was sent. Correct it there.")


def _checked_agent(agent: str) -> str:
    if not agent.isascii() or not agent.isprintable():
        raise InputError(
            f"`user_agent` in the connection's extra, {agent[:60]!r}, has a character that a header cannot carry. Nothing was "
            f"sent. Write it in ASCII, or leave it out: {USER_AGENT}"
        )
    if not agent.startswith(ACCEPTED_AGENTS):
        raise InputError(
            f"PhysioNet ignores the password of a client that calls itself {agent[:60]!r} and answers 403. Nothing was sent. "
            "Let `user_agent` in the connection's extra begin with Wget/ or libwfdb/, and say who you are in the comment "
            f"behind it, or leave it out: {USER_AGENT}"
        )
    return agent
