"""Worker settings that make requests impossible: an unusable CA bundle, a proxy that refuses.

Such a setting never mends itself, so its error must not be taken for an outage of the server.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import certifi
from requests.utils import get_environ_proxies, select_proxy
from urllib3.util.ssl_ import create_urllib3_context

from physionet_mirror.errors import InputError
from physionet_mirror.wire import Proxy

BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_UNTRUSTED = {18, 19, 20, 21}  # X509_V_ERR_*: self-signed, or no certificate of the issuer
_TUNNEL = re.compile(r"Tunnel connection failed: (4\d\d)")


def is_loopback(host: str) -> bool:
    """Whether a name or address is a loopback one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def proxy_for(url: str) -> Proxy | None:
    """The proxy for an address, from the environment as requests reads it, NO_PROXY included; none for loopback.

    Raises:
        InputError: The proxy's address does not begin with ``http://``.
    """
    if is_loopback(urlsplit(url).hostname or ""):
        return None
    named = select_proxy(url, get_environ_proxies(url))
    if not named:
        return None
    try:
        return Proxy.parse(named)
    except ValueError:
        variable = next(
            (name for name, value in os.environ.items() if value == named and name.lower().endswith("_proxy")),
            "the proxy's setting",
        )
        raise InputError(
            f"{variable} names a proxy that is not an http:// one (its address may begin with https:// or socks5://). "
            "No request was sent. Name an http:// proxy there, which passes TLS to PhysioNet through unopened "
            f"(http://<proxy>:<port>), or list {urlsplit(url).hostname} in NO_PROXY if it can be reached directly."
        ) from None


def trusted_by_requests() -> ssl.SSLContext:
    """A TLS context that trusts what requests trusts: the environment's CA bundle, or else certifi's.

    Raises:
        InputError: The bundle cannot be read.
    """
    named = next((name for name in BUNDLES[1:] if os.environ.get(name)), None)
    bundle = os.environ[named] if named else certifi.where()
    if named:
        check_ca_bundle(bundle, named)
    context = create_urllib3_context()  # as requests does
    if Path(bundle).is_dir():
        context.load_verify_locations(capath=bundle)
    else:
        context.load_verify_locations(cafile=bundle)
    return context


def check_ca_bundle(path: str, setting: str) -> None:
    """Raise unless certificates can be read from the file (or folder) that a setting names.

    Args:
        path: Path of the CA bundle.
        setting: The setting's name, for the message.

    Raises:
        InputError: They cannot be read.
    """
    try:
        if Path(path).is_dir():  # OpenSSL searches a folder at each handshake
            return
        ssl.create_default_context(cafile=path)
    except FileNotFoundError:
        why = "does not exist"
    except ssl.SSLError:
        why = "holds no certificate in PEM form"
    except OSError as error:
        why = f"cannot be read ({type(error).__name__})"
    else:
        return
    raise InputError(
        f"{setting} names the CA bundle {path}, which {why} on this worker. No request was sent. Correct the "
        "setting, mount the file, or remove the setting: then the usual certificate authorities are trusted."
    )


def setting_of_bundle() -> str | None:
    """The first environment variable that is set and names a CA bundle."""
    return next((name for name in BUNDLES if os.environ.get(name)), None)


def settings_at_fault(error: BaseException, host: str) -> InputError | None:
    """The error to raise if a setting made a connection fail; None if the failure may be temporary.

    Args:
        error: What the HTTP client raised; its causes are examined too.
        host: The host to connect to.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _UNTRUSTED:
            named = setting_of_bundle()
            return InputError(
                f"This worker does not trust the certificate of {host} ({cause.verify_message}). Nothing was sent. "
                + (f"The CA bundle that {named} names does not contain its issuer. " if named else "")
                + "Behind a proxy that opens TLS, or with a private CA, name a bundle that contains its certificate: "
                "REQUESTS_CA_BUNDLE (for S3 also AWS_CA_BUNDLE, or `verify` in the AWS connection's extra)."
            )
        if found := _TUNNEL.search(str(cause)):
            return proxy_refusal(int(found[1]), host)
    return None


def proxy_refusal(status: int, host: str) -> InputError:
    """The error for a proxy's own answer: 407 asks for a login, any other status means that it forbids the connection."""
    setting, address = _proxy()
    what = "wants a login (407)" if status == 407 else f"forbids the way ({status})"
    todo = (
        f"Put user name and password into {setting} (http://<user>:<password>@<proxy>:<port>)"
        if status == 407
        else f"Have {host} allowed there"
    )
    return InputError(
        f"The proxy {address} between this worker and {host} {what}. Nothing was sent. {todo}, or name the host in NO_PROXY if "
        "it can be reached without."
    )


def _proxy() -> tuple[str, str]:
    """The environment variable that names a proxy, and its address without a login."""
    proxies = getproxies()
    scheme = next((name for name in ("https", "http", "all") if name in proxies), None)
    if scheme is None:
        return "the proxy's setting", "(from the connection's config)"
    variable = f"{scheme}_proxy"
    return variable.upper() if variable.upper() in os.environ else variable, urlsplit(
        proxies[scheme]
    ).netloc.rpartition("@")[2]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all its causes, which urllib3 and botocore keep in attributes of their own."""
    todo, seen = [error], set()
    while todo:
        cause = todo.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        beneath = [
            cause.__cause__,
            cause.__context__,
            getattr(cause, "original_error", None),
            getattr(cause, "reason", None),
        ]
        beneath += [*getattr(cause, "kwargs", {}).values(), *cause.args]
        todo += [one for one in beneath if isinstance(one, BaseException)]
