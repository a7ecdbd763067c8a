"""Settings of the worker: which proxy is used, and which certificates TLS trusts."""

from __future__ import annotations

import pytest

from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import InputError
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.worker_settings import proxy_for

URL = "https://physionet.org"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_the_environments_proxy_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://me:hush@proxy.example:3128")
    proxy = proxy_for(URL)
    assert proxy is not None
    assert (proxy.host, proxy.port) == ("proxy.example", 3128)
    assert proxy.authorization == "Basic bWU6aHVzaA=="
    assert "hush" not in repr(proxy)


@pytest.mark.parametrize("without", ["physionet.org", ".org", "*", "physionet.org:443"])
def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", without)
    assert proxy_for(URL if ":" not in without else f"{URL}:443") is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://localhost", "http://[::1]:80"])
def test_loopback_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("all_proxy", "socks5://proxy.example")
    assert proxy_for(url) is None


@pytest.mark.parametrize("scheme", ["https", "socks5", "socks5h", "socks4"])
def test_another_kind_of_proxy_is_said_not_to_be_supported(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """It fails at once and is not retried, because it cannot mend itself."""
    monkeypatch.setenv("https_proxy", f"{scheme}://me:hush@proxy.example:1080")
    source = PhysioNet(URL, "reader", "a password")
    with pytest.raises(InputError, match=r"https_proxy names a proxy that is not an http:// one") as refused:
        source.check_access(MIMIC_CXR_JPG)
    assert refused.value.permanent
    assert "NO_PROXY" in str(refused.value)
    assert "hush" not in str(refused.value)
