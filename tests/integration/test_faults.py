"""Faults on the wire, one by one: each ends with every byte right, or with the image reported as failed.

The table in docs/guarantees.md lists these tests.
"""

from __future__ import annotations

import hashlib
import logging
import random
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from demo.lookalike import Fault, Kind, Lookalike, Profile, User
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import (
    AccessRefused,
    CredentialsRefused,
    ImagesFailed,
    MirrorError,
    SourceUnavailable,
    Throttled,
)
from physionet_mirror.files import File
from physionet_mirror.pace import Pace
from physionet_mirror.records import ShardResult
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.transfer import Transfer

SMALL, LARGE = 20_000, 1_500_000
FACTS = {"login": "reader", "password": "correct horse battery staple"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 small images, and 4 that are large enough to be resumed."""
    root = tmp_path_factory.mktemp("faults") / "physionet"
    rng = random.Random(3)
    for n in range(124):
        file = root / MIMIC_CXR_JPG.name / f"files/p1{n // 31}/p1{n:07}/s5{n:07}/{n:08x}{'-00000000' * 4}.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(rng.randbytes(LARGE if n % 31 == 0 else SMALL))
    (root / MIMIC_CXR_JPG.name / "SHA256SUMS.txt").write_text("stands for the others\n")
    return root


@pytest.fixture(scope="module")
def images(root: Path) -> list[File]:
    version = root / MIMIC_CXR_JPG.name
    return [
        File(str(file.relative_to(version)), hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted(version.rglob("*.jpg"))
    ]


@pytest.fixture
def physionet(root: Path) -> Iterator[Lookalike]:
    with Lookalike(root, users={FACTS["login"]: User(FACTS["password"])}, check_seconds=0.01) as server:
        yield server


@dataclass
class Outcome:
    tally: ShardResult
    error: BaseException | None
    source: PhysioNet
    seconds: float

    @property
    def failed(self) -> dict[str, str]:
        return {failure.path: failure.reason for failure in self.tally.failed}


@pytest.fixture
def mirror(root, physionet, boto_session, s3_server, bucket_name, images):
    """Runs a transfer of ``images``; checks that stored images are right and all others are reported as failed."""

    def run(
        some: list[File] = images,
        *,
        connections: int = 8,
        patience: float = 30.0,
        url: str | None = None,
        source_options: Mapping[str, Any] | None = None,
        just_before: Callable[[], object] = lambda: None,
    ) -> Outcome:
        options = {"connect_timeout": 1.0, "read_timeout": 0.8, "allow_http": True, **(source_options or {})}
        source = PhysioNet(url or physionet.url, **FACTS, connections=connections, **options)
        bucket = Bucket.open(boto_session, bucket_name, MIMIC_CXR_JPG.name, endpoint_url=s3_server.endpoint)
        pace = Pace(connections, start=connections, received=lambda: source.stats.received)
        mover = Download(source, MIMIC_CXR_JPG, bucket)
        transfer = Transfer(some, mover=mover, pace=pace, patience=patience, backoff=0.2)
        error: BaseException | None = None
        just_before()
        began = time.monotonic()
        try:
            transfer.run()
        except MirrorError as e:
            error = e
        outcome = Outcome(transfer.result(), error, source, time.monotonic() - began)
        source.close()

        version, stored = root / MIMIC_CXR_JPG.name, s3_server.folder / bucket_name / MIMIC_CXR_JPG.name
        there = {str(file.relative_to(stored)) for file in stored.rglob("*.jpg")}
        for path in there:
            assert (stored / path).read_bytes() == (version / path).read_bytes(), f"a wrong byte in {path}"
        missing = {image.path for image in some} - there
        if error is None:
            assert not missing
            assert outcome.tally.state == "done"
        if isinstance(error, ImagesFailed):
            assert outcome.failed.keys() == missing, "each missing image is named, and nothing else is"
            assert outcome.tally.state == "failed"
        assert outcome.tally.stored == len(some) - len(missing) or error is not None
        return outcome

    return run


def _large(images: list[File]) -> list[File]:
    return images[::31]


def _small(images: list[File]) -> list[File]:
    return [image for n, image in enumerate(images) if n % 31]


# -- a share of the images, at their first or second attempt --------------------------------------------------------

STRIKES_AND_GOES = {
    "500": (Fault(Kind.STATUS, status=500), "source unavailable"),
    "502": (Fault(Kind.STATUS, status=502), "source unavailable"),
    "503": (Fault(Kind.STATUS, status=503), "throttled"),
    "503 with Retry-After in seconds": (Fault(Kind.STATUS, status=503, retry_after=1), "throttled"),
    "503 with Retry-After as a date": (
        Fault(Kind.STATUS, status=503, retry_after=2, retry_after_as_date=True),
        "throttled",
    ),
    "429": (Fault(Kind.STATUS, status=429), "throttled"),
    "429 twice, with Retry-After": (Fault(Kind.STATUS, status=429, retry_after=1, attempts=2), "throttled"),
    # Twice, because a request lost on a kept connection is first repeated on a new one without counting as a failure.
    "reset before the answer": (Fault(Kind.RESET_BEFORE, attempts=2), "source unavailable"),
    "reset in mid-body": (Fault(Kind.RESET_IN_BODY), "truncated"),
    "body shorter than Content-Length": (Fault(Kind.SHORT_BODY), "truncated"),
    "body longer than the file": (Fault(Kind.LONG_BODY), "corrupt"),
    "one flipped byte": (Fault(Kind.FLIPPED_BYTE), "corrupt"),
    "a flipped byte, twice": (Fault(Kind.FLIPPED_BYTE, attempts=2), "corrupt"),
    "stall in mid-body": (Fault(Kind.STALL, seconds=20), "stalled"),
    "a byte at a time": (Fault(Kind.TRICKLE, seconds=0.1, at=0.01), "stalled"),
    "headers that never come": (Fault(Kind.SILENCE, seconds=20), "stalled"),
    "HTML login page with status 200": (Fault(Kind.LOGIN_PAGE), "not the file"),
}


@pytest.mark.parametrize("name", STRIKES_AND_GOES)
def test_a_fault_that_strikes_some_images_and_goes(name, mirror, physionet, images):
    fault, reason = STRIKES_AND_GOES[name]
    few = _small(images)[:24]
    struck = few[::12]
    physionet.faults.set(
        *(Fault(**{**fault.as_dict(), "kind": fault.kind, "paths": f"*/{image.path}"}) for image in struck)
    )
    outcome = mirror(few)
    assert outcome.error is None
    assert outcome.tally.faults[reason] >= 1, "the fault was met"
    assert physionet.counters.faults[fault.kind.value] == len(struck) * (fault.attempts or 1)
    if fault.retry_after and not fault.retry_after_as_date:
        assert outcome.seconds >= fault.retry_after * (fault.attempts or 1), "the server's wish was honoured"


@pytest.mark.parametrize("kind", [Kind.STATUS, Kind.RESET_BEFORE, Kind.SHORT_BODY, Kind.FLIPPED_BYTE, Kind.LOGIN_PAGE])
def test_a_fault_that_strikes_every_image_once(kind, mirror, physionet, images):
    physionet.faults.set(Fault(kind, paths="*.jpg"))
    assert mirror(_small(images)[:24]).error is None


def _arrivals(physionet: Lookalike) -> list[float]:
    """A list to which the time of each request is appended."""
    arrivals: list[float] = []
    asked = physionet.counters.asked

    def noting(method: str, path: str, headers: Mapping[str, str]) -> None:
        arrivals.append(time.monotonic())
        asked(method, path, headers)

    physionet.counters.asked = noting  # type: ignore[method-assign]
    return arrivals


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_makes_everybody_pause(as_date, mirror, physionet, images):
    """Whichever thread is refused, no request reaches the server between the refusal and the time that it named."""
    few = _small(images)[:60]
    arrivals = _arrivals(physionet)
    physionet.faults.set(
        Fault(Kind.STATUS, status=503, retry_after=3, retry_after_as_date=as_date, paths=f"*/{few[20].path}")
    )
    assert mirror(few, connections=4).error is None
    longest = max(later - earlier for earlier, later in pairwise(arrivals))
    assert longest >= (1.8 if as_date else 2.8)  # a date has no fractions of a second


# -- large images are resumed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.RESET_IN_BODY, Kind.SHORT_BODY, Kind.STALL, Kind.TRICKLE])
def test_an_image_above_1_mib_is_resumed(kind, mirror, physionet, images):
    at = (
        14 * 65_536 / LARGE + 1e-4
    )  # just after the files that are compared together, so that nearly nothing counts towards the speed
    physionet.faults.set(Fault(kind, paths="*.jpg", seconds=0.1 if kind is Kind.TRICKLE else 20, at=at))
    outcome = mirror(_large(images), source_options={"read_timeout": 2.0})
    assert outcome.error is None
    assert outcome.source.stats.resumed == len(_large(images))
    assert outcome.tally.retries == 0
    resumed = [seen for seen in physionet.counters.seen if "range" in seen.headers]
    assert len(resumed) == len(_large(images))
    assert all(seen.headers["if-range"].startswith('"') for seen in resumed), "only if it is still the same file"
    everything = len(_large(images)) * LARGE
    assert outcome.source.stats.received == everything, "no byte was fetched twice and kept"


def test_a_resume_waits_without_a_slot(mirror, physionet, images):
    """Meanwhile, the one connection serves others."""
    large, *others = [_large(images)[0], *_small(images)[:10]]
    physionet.faults.set(Fault(Kind.SHORT_BODY, paths=f"*/{large.path}", at=0.9))
    outcome = mirror([large, *others], connections=1)
    assert outcome.error is None
    assert outcome.source.stats.resumed == 1
    asked = [seen for seen in physionet.counters.seen if seen.path.endswith(".jpg")]
    (first, last) = [n for n, seen in enumerate(asked) if seen.path.endswith(large.path)]
    assert last > first + 1
    assert physionet.counters.peak_connections == 1


def test_a_refused_resume_makes_everybody_pause(mirror, physionet, images):
    large, *others = [_large(images)[0], *_small(images)[:32]]
    arrivals = _arrivals(physionet)
    physionet.faults.set(
        Fault(Kind.SHORT_BODY, paths=f"*/{large.path}"),
        Fault(Kind.STATUS, status=503, retry_after=3, after=1, paths=f"*/{large.path}"),
    )
    physionet.profile = Profile(round_trip=0.1)
    assert mirror([large, *others], connections=2).error is None
    assert max(later - earlier for earlier, later in pairwise(arrivals)) >= 2.8


# -- an image that cannot be fetched is reported ------------------------------------------------------------------------

STAYS = {
    "404": (Fault(Kind.STATUS, status=404, attempts=None), "not found"),
    "corrupt": (Fault(Kind.FLIPPED_BYTE, attempts=None), "corrupt"),
    "longer": (Fault(Kind.LONG_BODY, attempts=None), "corrupt"),
    "truncated": (Fault(Kind.SHORT_BODY, attempts=None), "truncated"),
    "500": (Fault(Kind.STATUS, status=500, attempts=None), "source unavailable"),
    "stalled": (Fault(Kind.STALL, attempts=None, seconds=20), "stalled"),
    "slower than the least speed": (Fault(Kind.TRICKLE, attempts=None, seconds=0.1, at=0.01), "stalled"),
    "HTML page": (Fault(Kind.LOGIN_PAGE, attempts=None), "not the file"),
}


@pytest.mark.parametrize("name", STAYS)
@pytest.mark.parametrize("alone", [False, True], ids=["among others", "as the last one"])
def test_an_image_that_cannot_be_had_is_named_after_three_tries(name, alone, mirror, physionet, images):
    fault, reason = STAYS[name]
    few = _small(images)[:1] if alone else _small(images)[:40]
    bad = few[len(few) // 2]
    physionet.faults.set(Fault(**{**fault.as_dict(), "kind": fault.kind, "paths": f"*/{bad.path}"}))
    outcome = mirror(few)
    assert isinstance(outcome.error, ImagesFailed)
    assert outcome.failed == {bad.path: reason}
    assert reason in str(outcome.error)
    gets = [seen for seen in physionet.counters.seen if seen.method == "GET" and seen.path.endswith(bad.path)]
    assert len(gets) == 3
    assert outcome.seconds < 10


# -- the whole server ---------------------------------------------------------------------------------------------------


def _down_and_back(mirror, physionet, images, seconds: float) -> None:
    """Each image loses at most the attempt under way: after two flipped bytes each, there is no try to spare."""
    physionet.faults.set(
        Fault(Kind.DOWN, after=30, seconds=seconds), Fault(Kind.FLIPPED_BYTE, paths="*.jpg", share=0.3, attempts=2)
    )
    outcome = mirror(_small(images), patience=10 * seconds)
    assert outcome.error is None
    assert outcome.seconds >= seconds
    assert not outcome.tally.failed


def test_the_whole_server_is_down_for_a_while(mirror, physionet, images):
    _down_and_back(mirror, physionet, images, 3.0)


@pytest.mark.slow
def test_the_whole_server_is_down_for_a_minute(mirror, physionet, images):
    _down_and_back(mirror, physionet, images, 60.0)


def test_connections_are_refused_at_the_start(mirror, physionet, images):
    outcome = mirror(_small(images)[:30], just_before=lambda: physionet.refuse(1.5))
    assert outcome.error is None
    assert outcome.tally.faults["source unavailable"] >= 1


def test_connections_are_refused_in_mid_run(mirror, physionet, images):
    physionet.faults.set(Fault(Kind.REFUSED, after=20, seconds=1.5), Fault(Kind.RESET_BEFORE, paths="*.jpg", share=0.5))
    assert mirror(_small(images)[:60]).error is None


def test_a_server_that_stays_down_ends_the_shard_when_patience_ends(mirror, physionet, images):
    physionet.faults.set(Fault(Kind.DOWN, after=30, seconds=600))
    outcome = mirror(_small(images)[:60], patience=2.0)
    assert isinstance(outcome.error, SourceUnavailable)
    assert outcome.tally.state == "failed"
    assert outcome.tally.error.reason == "source unavailable"
    assert outcome.tally.stored > 0
    assert outcome.seconds < 12


def test_a_server_that_only_refuses_ends_the_shard_when_patience_ends(mirror, physionet, images):
    physionet.faults.set(Fault(Kind.STATUS, status=429, attempts=None))
    outcome = mirror(_small(images)[:20], patience=1.5)
    assert isinstance(outcome.error, Throttled)
    assert outcome.tally.stored == 0


WHOLE_SERVER = {
    "404 for everything": Fault(Kind.STATUS, status=404, attempts=None),
    "an HTML page for everything": Fault(Kind.LOGIN_PAGE, attempts=None),
    "502": Fault(Kind.STATUS, status=502, attempts=None),
    "503": Fault(Kind.STATUS, status=503, attempts=None),
    "504": Fault(Kind.STATUS, status=504, attempts=None),
    "reset": Fault(Kind.RESET_BEFORE, attempts=None),
    "silence": Fault(Kind.SILENCE, attempts=None, seconds=20),
}


@pytest.mark.parametrize("name", WHOLE_SERVER)
def test_an_outage_in_any_form_names_no_image_and_is_asked_about_rarely(name, mirror, physionet, images):
    fault, lasts = WHOLE_SERVER[name], 5.0
    asked_meanwhile = [0]

    def begin() -> None:
        physionet.faults.set(fault)

        def end() -> None:
            asked_meanwhile[0] = physionet.counters.requests
            physionet.faults.clear()

        threading.Timer(lasts, end).start()

    outcome = mirror(_small(images), just_before=begin)
    assert outcome.error is None
    assert outcome.seconds >= lasts
    assert not outcome.tally.failed
    # The handshake, the requests under way, and then two a second (three here, as the back-off is a fifth of the real one).
    assert asked_meanwhile[0] <= 2 + 8 + 3 * lasts
    assert physionet.counters.peak_connections <= 8, "probes have their slot too"


def test_refusals_above_a_limit_never_cost_an_image(mirror, physionet, images):
    """A constant share of plain 503s without Retry-After, as nginx's limit_conn sends them."""
    few = _small(images)[:30]
    physionet.faults.set(Fault(Kind.STATUS, status=503, attempts=8, paths=f"*/{few[3].path}"))
    outcome = mirror(few)
    assert outcome.error is None
    assert outcome.tally.faults == {"throttled": 8}


def test_the_name_does_not_resolve(mirror, images):
    outcome = mirror(_small(images)[:5], url="http://physionet.invalid", patience=1.0)
    assert isinstance(outcome.error, SourceUnavailable)
    assert "cannot be resolved" in str(outcome.error)


def test_the_name_resolves_again_after_a_while(mirror, physionet, images, monkeypatch):
    resolve, asked = socket.getaddrinfo, [0]

    def failing(host: Any, *rest: Any, **more: Any) -> Any:
        asked[0] += host == "localhost"
        if host == "localhost" and asked[0] <= 8:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    outcome = mirror(_small(images)[:20], url=physionet.url.replace("127.0.0.1", "localhost"))
    assert outcome.error is None
    assert outcome.tally.faults["source unavailable"] >= 1


@pytest.mark.parametrize("served_later", [True, False], ids=["connect hangs", "no answer ever"])
def test_connections_above_the_limit_hang(served_later, mirror, physionet, images):
    physionet.profile = Profile(round_trip=0.005, rate=2_000_000, connections=3, waiting=0, serve_waiting=served_later)
    outcome = mirror(images, connections=12)
    assert outcome.error is None
    assert outcome.tally.connections < 12
    assert physionet.counters.peak_connections <= 3


# -- access that ends ---------------------------------------------------------------------------------------------------


def test_the_session_expires_every_50_requests(mirror, physionet, images):
    physionet.faults.set(Fault(Kind.SESSIONS_EXPIRED, after=50, attempts=None))
    outcome = mirror(images)
    assert outcome.error is None
    expired = physionet.counters.faults[Kind.SESSIONS_EXPIRED.value]
    assert expired >= 2
    assert physionet.counters.password_checks <= expired + 1, "one handshake for a burst of 401s"
    assert outcome.source.stats.handshakes == physionet.counters.password_checks


def test_the_server_forgets_the_session(mirror, physionet, images):
    """It checks the password again and gives a new session, which is then used; otherwise each request would cost a check."""
    physionet.faults.set(Fault(Kind.SESSIONS_LOST, after=30))
    outcome = mirror(images, connections=4)
    assert outcome.error is None
    assert physionet.counters.password_checks <= 1 + 4


def test_the_password_is_changed_in_mid_run(mirror, physionet, images):
    physionet.faults.set(Fault(Kind.PASSWORD_CHANGED, after=40))
    outcome = mirror(images)
    assert isinstance(outcome.error, CredentialsRefused)
    connections = 8  # the requests under way have lost their session, so each costs a password check
    assert physionet.counters.password_checks <= 1 + connections + 1, "one handshake is refused; nobody guesses on"
    assert outcome.source.stats.handshakes == 2
    assert 0 < outcome.tally.stored < len(images)
    assert outcome.seconds < 5


def test_the_agreement_is_revoked_in_mid_run(mirror, physionet, images):
    physionet.faults.set(Fault(Kind.AGREEMENT_REVOKED, after=40))
    outcome = mirror(images)
    assert isinstance(outcome.error, AccessRefused)
    assert MIMIC_CXR_JPG.page in str(outcome.error)
    assert physionet.counters.by_status[403] <= 8, "those that were under way, and nobody after them"
    assert physionet.counters.password_checks == 1
    assert 0 < outcome.tally.stored < len(images)


def test_a_thousand_requests_cost_two_password_checks_at_most(mirror, physionet, images):
    assert mirror(images).error is None
    assert physionet.counters.password_checks == 1


# -- log and messages ---------------------------------------------------------------------------------------------------


def test_no_secret_is_said(mirror, physionet, images, caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore").setLevel(logging.INFO)  # its debug log holds secrets of its own
    said: list[str] = []
    for n, fault in enumerate(
        (
            Fault(Kind.STATUS, status=500, paths="*.jpg"),
            Fault(Kind.RESET_BEFORE, paths="*.jpg"),
            Fault(Kind.SILENCE, seconds=20, paths="*.jpg"),
            Fault(Kind.FLIPPED_BYTE, paths="*.jpg", attempts=None),
            Fault(Kind.PASSWORD_CHANGED),
        )
    ):
        physionet.faults.set(fault)
        outcome = mirror(_small(images)[3 * n : 3 * n + 3])
        said += [repr(outcome.tally), str(outcome.error), repr(outcome.error), repr(outcome.source)]
    everything = "\n".join([*said, caplog.text])
    basic = b64encode(f"{FACTS['login']}:{FACTS['password']}".encode()).decode()
    for secret in (FACTS["password"], basic, "sessionid=", "Authorization"):
        assert secret not in everything


def test_threads_end_with_the_shard(mirror, images):
    mirror(_small(images)[:20])
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and any(t.name.startswith("image-") for t in threading.enumerate()):
        time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name.startswith("image-")]
