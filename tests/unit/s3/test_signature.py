"""Our signature is botocore's, whatever is signed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import example, given
from hypothesis import strategies as st

from physionet_mirror.s3.signature import Signer

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1, max_size=40)
SECRETS = st.text(st.sampled_from("abcXYZ019+/= "), min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=30)
NAMES = st.sampled_from(
    ["content-type", "range", "if-match", "x-amz-storage-class", "x-amz-checksum-sha256", "x-amz-copy-source"]
)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1))  # noqa: DTZ001 - UTC, as hypothesis wants it


class Botocore(auth.S3SigV4Auth):
    """botocore's, told the SHA-256 of the body."""

    def __init__(self, credentials: ReadOnlyCredentials, region: str, sha256: str) -> None:
        super().__init__(credentials, "s3", region)
        self._sha256 = sha256

    def payload(self, _: Any) -> str:
        return self._sha256


@given(
    st.sampled_from(["GET", "HEAD", "PUT"]),
    KEYS,
    st.dictionaries(NAMES, VALUES),
    SECRETS,
    st.none() | SECRETS,
    st.lists(MOMENTS, min_size=1, max_size=3),
)
@example("GET", "a b/é~'(*)", {"content-type": " two  blanks\t"}, "s", "t", [datetime(2026, 2, 3, 23, 59, 59)] * 2)  # noqa: DTZ001
def test_it_is_botocores(
    method: str, key: str, headers: dict[str, str], secret: str, token: str | None, moments: list[datetime]
) -> None:
    credentials, sha256, host = ReadOnlyCredentials("AKIAEXAMPLE", secret, token), "ab" * 32, "b.s3.amazonaws.com:8443"
    now: list[datetime] = []
    signer = Signer("eu-central-1", lambda: now[-1].replace(tzinfo=UTC).timestamp())
    path = "/bucket/" + quote(key, safe="/~")
    for moment in moments:  # the kept key is that of the day
        now.append(moment)
        request = AWSRequest(method, f"https://{host}{path}", headers={"Host": host, **headers})
        with patch.object(auth, "get_current_datetime", lambda moment=moment: moment):
            Botocore(credentials, "eu-central-1", sha256).add_auth(request)

        signed = dict(signer.headers(method, path, host, headers, sha256, credentials))

        theirs = {name.lower(): value for name, value in request.headers.items()}
        assert {**signed, "host": host} == theirs


def test_other_credentials_are_signed_with_another_key() -> None:
    signer = Signer("eu-central-1", lambda: 1.0)
    one, other, again = (
        dict(signer.headers("GET", "/b/k", "h", {}, "0" * 64, ReadOnlyCredentials("A", secret, None)))["authorization"]
        for secret in ("x", "y", "x")
    )
    assert one == again != other
    assert repr(signer) == "<Signer for eu-central-1>"
