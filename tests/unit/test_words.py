"""Numbers formatted for people."""

from __future__ import annotations

import pytest

from physionet_mirror import words

HOUR = 3600


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_999, "1 MB"),
        (1_624_000, "1.62 MB"),
        (123_456_789, "123 MB"),
        (612e9, "612 GB"),
        (2e12, "2 TB"),
        (1234e12, "1,234 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.96, "60.0 s"), (250, "4 min 10 s"), (11_520, "3 h 12 min"), (200_000, "2 d 7 h")],
)
def test_what_was_measured(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (0, None, "about 0 s"),
        (6 * 60, None, "about 6 min"),
        (6 * 60, 6 * 60 + 1, "about 6 min"),
        (30 * HOUR, None, "about 30 h (1.2 days)"),
        (20, 300, "about 20 s to 5 min"),
        (2 * HOUR, 5.25 * HOUR, "about 2.0 to 5.2 h"),
        (32.7 * HOUR, 483 * HOUR, "about 1.4 to 20 days"),
        (20 * HOUR, 300 * HOUR, "about 20.0 h to 12 days"),
    ],
)
def test_what_is_expected(least: float, most: float | None, text: str) -> None:
    assert words.about(least, most) == text


@pytest.mark.parametrize(("dollars", "text"), [(0, "$0.00"), (0.001, "< $0.01"), (1234.5, "$1,234.50")])
def test_money(dollars: float, text: str) -> None:
    assert words.money(dollars) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(377_109, 377_110, "99.9 %"), (5, 5, "100 %"), (0, 0, "0 %"), (0, 9, "0 %"), (1, 377_110, "< 0.1 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int, text: str) -> None:
    assert words.share(part, whole) == text
