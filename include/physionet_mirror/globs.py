"""Globs over paths: ``*`` and ``?`` keep within a folder, ``**`` crosses folders, ``[a-z]`` and ``[!a-z]`` are sets."""

from __future__ import annotations

import re

_SET = re.compile(r"\[(!?)(\]?[^\]/]*)\]")


def to_regex(pattern: str) -> str:
    """The regular expression that matches what a glob matches, for a full match; RE2 knows it, too.

    ``**`` as a whole folder stands for any number of folders, none included: ``**/*.txt`` matches ``a.txt`` and ``b/c/a.txt``.
    What is no wildcard stands for itself, a bracket without an end too; a wildcard in brackets does: ``[*]``.
    """
    found, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            found, at = found + "(?:[^/]+/)*", at + 3
        elif pattern.startswith("**", at):
            found, at = found + ".*", at + len(pattern[at:]) - len(pattern[at:].lstrip("*"))
        elif pattern[at] == "*":
            found, at = found + "[^/]*", at + 1
        elif pattern[at] == "?":
            found, at = found + "[^/]", at + 1
        elif (chosen := _SET.match(pattern, at)) and chosen[2]:
            found, at = found + _one_of(chosen[2], without=bool(chosen[1])), chosen.end()
        else:
            found, at = found + re.escape(pattern[at]), at + 1
    return found


def escape(path: str) -> str:
    """The glob that matches this path alone."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _one_of(characters: str, *, without: bool) -> str:
    """A set as a regular expression has it; a range whose ends are the wrong way round matches nothing."""
    parts, at = "", 0
    while at < len(characters):
        if at + 2 < len(characters) and characters[at + 1] == "-":
            first, last = characters[at], characters[at + 2]
            if first <= last:
                parts += f"{re.escape(first)}-{re.escape(last)}"
            at += 3
        else:
            parts, at = parts + re.escape(characters[at]), at + 1
    if not parts:
        return "[^/]" if without else r"[^\x00-\x{10FFFF}]"
    return f"[^/{parts}]" if without else f"[{parts}]"
