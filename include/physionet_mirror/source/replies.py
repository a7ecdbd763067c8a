"""What PhysioNet's answers, and the lack of one, mean for the person who must act."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import (
    AccessRefused,
    Corrupt,
    CredentialsRefused,
    MirrorError,
    NotFound,
    NotTheFile,
    SourceError,
    SourceUnavailable,
    Stalled,
    Throttled,
    Truncated,
)
from physionet_mirror.wire import ConnectTimeout, ProxyRefused
from physionet_mirror.worker_settings import proxy_refusal, settings_at_fault

LONGEST_WAIT = 86_400.0
"""Seconds that a Retry-After may ask for; what is longer is taken for this."""

_KEPT = "What is stored stays stored."


class Replied(Protocol):
    """An answer's status and its headers, by their names in lower case."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...


def meaning(answer: Replied, dataset: Dataset, path: str, host: str) -> MirrorError | None:
    """Why an answer is not the file that was asked for; None where it is."""
    status = answer.status
    if status in (200, 206):
        if answer.headers.get("content-type", "").startswith("text/html") and not path.endswith(".html"):
            return NotTheFile(
                f"PhysioNet sent an HTML page in place of {path} (a login or maintenance page). Nothing of it was "
                f"kept. Open {dataset.page} in a browser to see what it says."
            )
        return None
    if status == 407:
        return proxy_refusal(status, host)
    if status == 403:
        return AccessRefused(
            f"PhysioNet does not let this account read {dataset.name} (403), and does not say why. {_KEPT} "
            f"Open {dataset.page} logged in as this user: its section Files says what is missing. "
            "It may be this project's data use agreement (each project has its own), the account's credentialing, "
            "or a required training that is missing or has expired; or the version was withdrawn, its downloads are "
            "disabled, or PhysioNet blocks the country of this worker or of the account. Then trigger the run again."
        )
    if status == 404:
        return NotFound(
            f"PhysioNet has no file {path} in {dataset.name} (404). Nothing else is affected. If the file is listed "
            f"at {dataset.page}, report it to PhysioNet."
        )
    if status in (429, 503):
        seconds = retry_after(answer.headers)
        wait = "" if seconds is None else f", and asks to wait {seconds:.0f} s"
        return Throttled(
            f"PhysioNet refuses requests for now ({status}){wait}: it is asked for too many at once, or is in "
            f"maintenance. {_KEPT} The run slows down and asks again by itself.",
            seconds,
        )
    return SourceUnavailable(
        f"PhysioNet answered {status}. {_KEPT} It is tried again; https://physionet.org shows whether the site is up."
    )


def unreachable(error: Exception, host: str, connect_timeout: float, read_timeout: float) -> MirrorError:
    """Why there was no answer of ``host``. ``error`` is what `wire.Origin.exchange` raised."""
    if isinstance(error, ProxyRefused) and 400 <= error.status < 500:
        return proxy_refusal(error.status, host)
    if at_fault := settings_at_fault(error, host):
        return at_fault
    if isinstance(error, socket.gaierror):
        return SourceUnavailable(f"The name {host} cannot be resolved. {_KEPT} Check the worker's DNS and network.")
    if isinstance(error, ConnectTimeout):
        return Throttled(
            f"{host} did not take the connection within {connect_timeout:g} s, as it does when one client opens too "
            f"many. {_KEPT} Fewer connections are used from now on."
        )
    if isinstance(error, TimeoutError):
        return Stalled(f"{host} sent no answer within {read_timeout:g} s. {_KEPT} The request is tried again.")
    if isinstance(error, ssl.SSLError):
        return SourceUnavailable(
            f"No trusted TLS connection to {host} ({type(error).__name__}). {_KEPT} Check the worker's clock and CA "
            "certificates (REQUESTS_CA_BUNDLE), and whether a proxy stands between."
        )
    return SourceUnavailable(
        f"The connection to {host} was refused or broke ({type(error).__name__}). {_KEPT} It is tried again; "
        "https://physionet.org shows whether the site is up."
    )


def refused() -> CredentialsRefused:
    """401 to a fresh handshake."""
    return CredentialsRefused(
        f"PhysioNet refused the user name or password (401). {_KEPT} Try the same pair at "
        "https://physionet.org/login/ and correct the PhysioNet connection; then trigger the run again."
    )


def corrupt(path: str, sha256: str) -> Corrupt:
    """The whole body came, and does not hash to ``sha256``."""
    return Corrupt(
        f"{path} does not hash to PhysioNet's checksum {sha256[:12]}…. The wrong bytes were thrown away. If this goes on, "
        "the file is damaged at PhysioNet: report it there."
    )


def truncated(path: str, received: int, expected: int | None) -> Truncated:
    """The body ended before its time."""
    return Truncated(
        f"{path} ended early, after {received:,} of {'an unknown number of' if expected is None else f'{expected:,}'} "
        "bytes. Nothing of it was kept; it is fetched again."
    )


def changed(path: str) -> Truncated:
    """What is there now is not what the first part of the body was of."""
    return Truncated(f"{path} changed at PhysioNet while it was read. It is fetched anew.")


def stalled(path: str, what: str) -> Stalled:
    """The body came to a halt, or nearly; ``what`` came of it."""
    return Stalled(
        f"{path} stalled: {what}. It is tried again; if this goes on, PhysioNet is overloaded: use fewer connections."
    )


def redirected_to_nowhere(base_url: str) -> SourceError:
    """No address that can be asked, or too many of them in a row."""
    return SourceUnavailable(
        f"{base_url} redirects in a circle or to no address. Nothing was fetched; try again later."
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks us to wait, given as a number or as an HTTP date; None where it is neither."""
    value = headers.get("retry-after", "").strip()
    try:
        if value.isascii() and value.isdigit():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return min(max(0.0, seconds), LONGEST_WAIT)
