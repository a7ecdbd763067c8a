"""The pace over HTTP: a look-alike that serves N requests at once and refuses further ones, or lets them hang."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.lookalike import Lookalike, Profile, User
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.files import File
from physionet_mirror.pace import Pace
from physionet_mirror.s3.capabilities import Capabilities
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.transfer import Transfer

CAPACITY, RATE, SIZE = 6, 200_000, 100_000
LOGIN = {"login": "reader", "password": "correct horse"}


class Memory:
    """A destination that takes no time."""

    can = Capabilities()

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, path: str, data: bytes, **_: object) -> str:
        self.objects[path] = data
        return "etag"

    def upload(self, path: str, chunks: Iterator[bytes], **_: object) -> int:
        self.objects[path] = b"".join(chunks)
        return len(self.objects[path])


@pytest.fixture
def images(tmp_path: Path) -> list[File]:
    data = random.Random(1).randbytes(SIZE)
    version = tmp_path / MIMIC_CXR_JPG.name
    version.mkdir(parents=True)
    (tmp_path / "one.bin").write_bytes(data)
    sha256, found = hashlib.sha256(data).hexdigest(), []
    for n in range(1000):
        path = f"files/p10/p{10_000_032 + n}/s{50_000_000 + n}/{n:08x}{'-00000000' * 4}.jpg"
        (version / path).parent.mkdir(parents=True)
        (version / path).hardlink_to(tmp_path / "one.bin")
        found.append(File(path, sha256))
    (version / "SHA256SUMS.txt").write_text("".join(f"{image.sha256} {image.path}\n" for image in found))
    return found


@pytest.mark.parametrize("refuse_with", [429, 503, None], ids=["429", "503", "hang"])
def test_it_finds_what_the_server_gives_and_stays_there(tmp_path, images, refuse_with):
    """The bounds are one-sided: a busy machine makes everything slower, but causes no refusals and no lasting reduction."""
    profile = Profile(round_trip=0.02, rate=RATE, connections=CAPACITY, refuse_with=refuse_with)
    users = {LOGIN["login"]: User(LOGIN["password"])}
    changes: list[tuple[int, int, str]] = []
    stop = threading.Event()
    with Lookalike(tmp_path, users=users, profile=profile, check_seconds=0.001) as server:
        source = PhysioNet(server.url, **LOGIN, connections=24, connect_timeout=3.0, allow_http=True)
        pace = Pace(24, received=lambda: source.stats.received, on_change=lambda *change: changes.append(change))
        bucket = Memory()
        transfer = Transfer(images, mover=Download(source, MIMIC_CXR_JPG, bucket), pace=pace, stop=stop)
        # Requests in the queue of the server that lets them hang, if it serves them later.
        waiting = 0 if refuse_with else profile.waiting

        def has_found_it() -> bool:
            return CAPACITY - 1 <= pace.held <= CAPACITY + 1 + waiting

        def stop_later() -> None:
            """Stop after 15 s, or up to three times as long if the pace has not settled because the machine is busy."""
            stop.wait(15)
            while not has_found_it() and time.monotonic() < began + 45 and not stop.wait(0.2):
                pass
            stop.set()

        began = time.monotonic()
        threading.Thread(target=stop_later, daemon=True).start()
        try:
            tally = transfer.run()
        finally:
            stop.set()
            source.close()
        seconds = time.monotonic() - began
        refusals = server.counters.by_status[refuse_with] if refuse_with else 0
    assert not tally.failed
    assert has_found_it(), changes
    assert tally.stored >= 0.5 * CAPACITY * RATE / SIZE * seconds
    assert refusals <= 12, changes
