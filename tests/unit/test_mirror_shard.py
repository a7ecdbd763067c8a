"""The number of a shard's files under way at once."""

from __future__ import annotations

import pytest

from physionet_mirror.mover import MOST_AT_ONCE, at_once
from physionet_mirror.source.access_point import COPIES_A_CONNECTION


@pytest.mark.parametrize("connections", [1, 2, 8, 64])
def test_the_website_gets_no_more_connections_than_were_given(connections: int) -> None:
    assert at_once(connections, 1) == connections


def test_copies_are_many_and_bounded() -> None:
    assert at_once(2, COPIES_A_CONNECTION) == 2 * COPIES_A_CONNECTION
    assert at_once(64, COPIES_A_CONNECTION) == MOST_AT_ONCE
