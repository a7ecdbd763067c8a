"""PhysioNet's client: what it checks before its first request, and how it reads each reply."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.errors import InputError
from physionet_mirror.source.physionet import USER_AGENT, PhysioNet
from physionet_mirror.source.replies import LONGEST_WAIT, retry_after

PASSWORD = "correct horse battery staple"


def make(url: str = "https://physionet.org", **options) -> PhysioNet:
    return PhysioNet(url, "reader", PASSWORD, **options)


@pytest.mark.parametrize(
    "url",
    ["https://physionet.org", "physionet.org", "http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:8000"],
)
def test_addresses_that_may_have_the_password(url):
    assert make(url).base_url.endswith(url.removeprefix("https://"))


@pytest.mark.parametrize(
    "url",
    [
        "http://physionet.org",
        "http://127.0.0.1.example.org",
        "http://10.0.0.1",
        "http://localhost.example.org",
        "ftp://physionet.org",
        "https://",
        "https://reader:secret@physionet.org",
    ],
)
def test_addresses_that_may_not(url):
    with pytest.raises(InputError, match="Nothing was sent") as refused:
        make(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://www.physionet.org",
        "www.physionet.org",
        "https://WWW.PhysioNet.org/",
        " https://physionet.org:443/\n",
        "physionet.org.",
    ],
)
def test_physionets_address_in_other_words(url):
    assert make(url).base_url == "https://physionet.org"


@pytest.mark.parametrize(
    "url",
    [
        "https://physionet.org/content/mimic-cxr-jpg/2.1.0/",
        "physionet.org/files/mimic-cxr-jpg/2.1.0/",
        "https://www.physionet.org/login/?next=/",
        "https://physionet.org/#news",
    ],
)
def test_the_address_of_a_page_is_said_to_be_one(url):
    with pytest.raises(
        InputError, match=r"address of a page .* Nothing was sent\. Enter the site alone: https://physionet\.org\."
    ):
        make(url)


@pytest.mark.parametrize(
    ("login", "password", "says"),
    [
        (" reader", PASSWORD, "login .* begins or ends with a blank"),
        ("reader\n", PASSWORD, "login .* begins or ends with a blank"),
        ("rea\nder", PASSWORD, "login .* line break"),
        ("rea:der", PASSWORD, "login .* colon"),
        ("reader", f"{PASSWORD}\n", "password .* begins or ends with a blank"),
        ("reader", f"\u00a0{PASSWORD}", "password .* begins or ends with a blank"),
        ("reader", "correct\thorse", "password .* control character"),
    ],
)
def test_credentials_that_were_pasted_badly_are_said_to_be(login, password, says):
    with pytest.raises(InputError, match=says) as refused:
        PhysioNet("https://physionet.org", login, password)
    assert "horse" not in str(refused.value)
    assert "Nothing was sent" in str(refused.value)


def test_plain_http_must_be_allowed():
    assert make("http://10.0.0.1", allow_http=True).base_url == "http://10.0.0.1"


@pytest.mark.parametrize("agent", ["python-requests/2.34", "wget/1.21", "Mozilla/5.0"])
def test_an_agent_that_physionet_ignores_is_explained(agent):
    with pytest.raises(InputError, match="Wget/ or libwfdb/"):
        make(user_agent=agent)


@pytest.mark.parametrize("agent", ["Wget/1.21\r\nX: y", "Wget/1.21 (Łukasz)"])
def test_an_agent_that_no_header_can_carry_is_refused_before_anything_is_sent(agent):
    with pytest.raises(InputError, match="Write it in ASCII"):
        make(user_agent=agent)


def test_the_agent_says_who_we_are():
    assert USER_AGENT.startswith("Wget/1.21 (")
    assert "+https://" in USER_AGENT
    assert make(user_agent="libwfdb/10.7 (me)").user_agent == "libwfdb/10.7 (me)"


@pytest.mark.parametrize(("login", "password"), [("", "x"), ("x", "")])
def test_credentials_must_be_there(login, password):
    with pytest.raises(InputError, match="no login or no password"):
        PhysioNet("https://physionet.org", login, password)


def test_its_repr_holds_no_secret():
    assert repr(make()) == "<PhysioNet https://physionet.org>"


def understood(value: str | None) -> float | None:
    return retry_after({} if value is None else {"retry-after": value})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("30", 30.0),
        (" 7 ", 7.0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("\xb2", None),  # a superscript two, which str.isdigit accepts
        ("9" * 400, LONGEST_WAIT),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 01 Jan 9999 00:00:00 GMT", LONGEST_WAIT),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
        ("Thu, 01 Jan 2026 00:00:00 -0000", None),
    ],
)
def test_retry_after(value, seconds):
    assert understood(value) == seconds


@given(st.text(st.characters(max_codepoint=255)))
def test_any_retry_after_is_understood_or_ignored(value):
    seconds = understood(value)
    assert seconds is None or 0 <= seconds <= LONGEST_WAIT


def test_retry_after_as_a_date():
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 88 <= understood(value) <= 90
