"""Many mirrors side by side: one that fails, hangs or is unforeseen hides none of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest

from physionet_airflow.page import mirrors
from physionet_airflow.page.runs import Mirror
from physionet_mirror.errors import BucketRefused
from tests.unit.test_overview import Files, any_files

_number = count()


@pytest.fixture
def place() -> Mirror:
    """A mirror of which nothing is cached."""
    return Mirror("lab-bucket", f"mirror-{next(_number)}")


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_what_fails_is_said_and_hides_nothing(place: Mirror) -> None:
    refused, broken, empty = (Mirror(name, place.prefix) for name in ("refused", "broken", "empty"))

    def open_bucket(mirror: Mirror) -> Files:
        if mirror is refused:
            raise BucketRefused("S3 refuses it.")
        if mirror is broken:
            raise ZeroDivisionError
        return Files() if mirror is empty else any_files(Files(), ["a/1", "b/2"], there=1)

    seen = mirrors.look([refused, broken, empty, place], open_bucket, patience=60)
    assert seen[refused].trouble == "S3 refuses it."
    assert "log" in seen[broken].trouble
    assert (seen[empty].overview, seen[empty].trouble) == (None, "")
    assert seen[place].overview.whole.verified == 1


def test_what_hangs_is_waited_for_once_and_comes_later(place: Mirror, let_go: threading.Event) -> None:
    hanging, opened = Mirror("hanging", place.prefix), []

    def open_bucket(mirror: Mirror) -> Files:
        opened.append(mirror)
        if mirror is hanging:
            let_go.wait(60)
        return any_files(Files(), ["a/1"], there=1)

    mirrors.look([place], open_bucket, patience=60)
    seen = mirrors.look([hanging, place], open_bucket, patience=0.2)
    assert "Not counted yet" in seen[hanging].trouble
    assert seen[place].overview.whole.images == 1
    began = time.monotonic()
    mirrors.look([hanging], open_bucket, patience=0.2)
    assert time.monotonic() - began < 0.2
    assert opened.count(hanging) == 1
    let_go.set()
    for _ in range(600):
        if (found := mirrors.look([hanging], open_bucket, patience=1)[hanging]).overview:
            break
        time.sleep(0.05)
    assert found.overview.whole.images == 1
    assert opened.count(hanging) == 1


def test_beyond_the_limit_mirrors_are_named_and_not_counted(place: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "MOST_COUNTED", 1)
    other = Mirror("other", place.prefix)
    seen = mirrors.look([place, other], lambda _: Files(), patience=60)
    assert seen[place] == mirrors.Seen()
    assert "opened" in seen[other].trouble
