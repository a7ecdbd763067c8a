"""PhysioNet's access rules, step by step as in its server's ``check_http_auth``.

PhysioNet accepts HTTP Basic only over HTTPS; the look-alike has no TLS and behaves as PhysioNet does behind TLS.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from demo.lookalike.counters import Counters

AGENTS = ("Wget/", "libwfdb/")
"""Prefixes of the User-Agents for which HTTP Basic is accepted."""

PASSWORD_CHECK = 0.130
"""Seconds of CPU that one password check costs (facts: 151 ms a file with it, 14.7 ms without)."""


@dataclass
class User:
    """A PhysioNet account.

    Attributes:
        password: In clear, since this is a look-alike.
        agreements: Projects (``slug/version``) whose data use agreement is signed; None = all.
    """

    password: str = field(repr=False)
    agreements: frozenset[str] | None = None


@dataclass(frozen=True)
class Visitor:
    """The sender of a request.

    Attributes:
        name: The user's name; None = not authenticated.
        cookies: Set-Cookie values to answer with.
    """

    name: str | None = None
    cookies: tuple[str, ...] = ()


class Access:
    """Users, their sessions, and the cost of checking a password.

    Args:
        users: By name.
        check_seconds: Cost of one password check.
        check_burns_cpu: Spend the cost by hashing, as PhysioNet does; otherwise by sleeping.
        counters: Where checks and handshakes are counted.
    """

    def __init__(
        self, users: Mapping[str, User], check_seconds: float, check_burns_cpu: bool, counters: Counters
    ) -> None:
        self.users = {name: replace(user) for name, user in users.items()}
        self._check_seconds = check_seconds
        self._check_burns_cpu = check_burns_cpu
        self._counters = counters
        self._sessions: dict[str, tuple[str, str]] = {}  # id → user name, password at that time
        self._expired: set[str] = set()
        self._revoked: set[str] = set()

    async def visitor(self, method: str, headers: Mapping[str, str]) -> Visitor:
        """Authenticate a request; the password is checked only if there is no valid session."""
        cookies = _cookies(headers.get("cookie", ""))
        session = cookies.get("sessionid", "")
        name, password = self._sessions.get(session, ("", ""))
        known = name in self.users and hmac.compare_digest(self.users[name].password.encode(), password.encode())
        self._counters.without_session += not known
        if "authorization" not in headers or not basic_counts(method, headers):
            return Visitor()
        if known:
            return Visitor(name)
        if session in self._expired:
            return Visitor(cookies=("sessionid=; Path=/; Max-Age=0",))
        credentials = _credentials(headers["authorization"])
        if credentials is None or not await self._check(*credentials):
            return Visitor()
        name, password = credentials
        if not cookies:  # a client without cookies cannot keep a session
            return Visitor(name)
        session = secrets.token_hex(16)
        self._sessions[session] = (name, password)
        self._counters.handshakes += 1
        return Visitor(name, (f"sessionid={session}; HttpOnly; Path=/; SameSite=Lax",))

    def end_sessions(self, *, with_401: bool) -> None:
        """End all sessions: their next request gets 401, or else pays a password check and gets a new one."""
        if with_401:
            self._expired.update(self._sessions)
        self._sessions.clear()

    def may_read(self, name: str, project: str) -> bool:
        """Whether the user has signed the agreement for the project (``slug/version``) and it is not revoked."""
        signed = self.users[name].agreements
        return (signed is None or project in signed) and project not in self._revoked

    def revoke(self, project: str) -> None:
        """End every user's agreement for the project."""
        self._revoked.add(project)

    def restore(self, project: str) -> None:
        """Undo ``revoke``."""
        self._revoked.discard(project)

    def change_passwords(self) -> None:
        """Give every user a random new password."""
        for user in self.users.values():
            user.password = secrets.token_hex(16)

    async def _check(self, name: str, password: str) -> bool:
        self._counters.password_checks += 1
        if self._check_seconds and self._check_burns_cpu:
            await asyncio.to_thread(_hash_for, self._check_seconds, password)
        elif self._check_seconds:
            await asyncio.sleep(self._check_seconds)
        user = self.users.get(name)
        return user is not None and hmac.compare_digest(user.password.encode(), password.encode())


def basic_counts(method: str, headers: Mapping[str, str]) -> bool:
    """Whether PhysioNet reads the Authorization header of such a request at all."""
    return method in ("GET", "HEAD") and headers.get("user-agent", "").startswith(AGENTS)


def _hash_for(seconds: float, password: str) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 5_000)


def _cookies(header: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in header.split(";") if "=" in part)
    return {name: value for name, _, value in pairs}


def _credentials(header: str) -> tuple[str, str] | None:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(token.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (name, password) if colon else None
