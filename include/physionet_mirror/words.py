"""Sizes, durations, money and shares formatted for people: in the log, the report, the page and the approval."""

from __future__ import annotations

import math
from collections.abc import Mapping

WAYS: Mapping[str, str] = {
    "download": "PhysioNet's website",
    "copy": "PhysioNet's access point, copied inside S3",
    "through": "PhysioNet's access point, through the worker",
}
"""Where files come from, and how, by `mover.Mode`."""

UNDER_WAY: Mapping[str, tuple[str, str]] = {
    "download": ("connection", "connections"),
    "copy": ("copy under way", "copies under way"),
    "through": ("read under way", "reads under way"),
}
"""What there are several of at once, by `mover.Mode`: one, many."""


def source(mode: str, reason: str = "") -> str:
    """``source: PhysioNet's website, as source=physionet asks for it``."""
    return f"source: {WAYS[mode]}" + (f", as {reason}" if reason else "")


def under_way(count: int, mode: str) -> str:
    """``8 connections``, ``256 copies under way``, ``1 read under way``."""
    one, many = UNDER_WAY[mode]
    return f"{count:,} {one if count == 1 else many}"


def size(count: float) -> str:
    """``1.45 MB``: bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 99.5 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if abs(count) < 99.5 else f"{count:,.0f} TB"


def duration(seconds: float) -> str:
    """A measured time: ``3 h 12 min``, ``4 min 10 s``, ``12.3 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def about(least: float, most: float | None = None) -> str:
    """An expected time in seconds: ``about 4 min``, ``about 29 h (1.2 days)``; as a range, ``about 1.4 to 20 days``."""
    short, unit = _rough(least)
    long, longer_unit = _rough(least if most is None else most)
    if (short, unit) != (long, longer_unit):
        return (
            f"about {short} to {long} {unit}"
            if unit == longer_unit
            else f"about {short} {unit} to {long} {longer_unit}"
        )
    if unit == "days":
        return f"about {least / 3600:.0f} h ({short} days)"
    return f"about {short} {unit}"


def _rough(seconds: float) -> tuple[str, str]:
    if seconds < 90:
        return str(math.ceil(seconds)), "s"
    if seconds < 1.5 * 3600:
        return str(round(seconds / 60)), "min"
    if seconds < 24 * 3600:
        return f"{seconds / 3600:.1f}", "h"
    days = seconds / 86400
    return (f"{days:.1f}" if days < 9.95 else f"{days:.0f}"), "days"


def money(dollars: float) -> str:
    """``$0.03``; ``< $0.01`` for less than a cent that is not zero."""
    if 0 < dollars < 0.01:
        return "< $0.01"
    return f"${dollars:,.2f}"


def share(part: float, whole: float) -> str:
    """``37.8 %``; 0 % only for nothing and 100 % only for everything."""
    if not whole or part <= 0:
        return "0 %"
    if part == whole:
        return "100 %"
    return "< 0.1 %" if part < whole / 1000 else f"{min(99.9, 100 * part / whole):.1f} %"
