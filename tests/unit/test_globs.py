"""Globs: what each wildcard matches, compared with Python's own translation where there is one."""

from __future__ import annotations

import re
import sys

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror import globs
from physionet_mirror.errors import InputError
from physionet_mirror.request import Selection
from physionet_mirror.selection import choose

PATHS = st.lists(st.text("ab.-[]*?+%é ", min_size=1, max_size=5), min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("*.txt", ["a.txt", ".txt"], ["b/a.txt", "a.txt.gz"]),
        ("hosp/*.csv.gz", ["hosp/a.csv.gz"], ["hosp/x/a.csv.gz", "icu/a.csv.gz"]),
        ("**/*.txt", ["a.txt", "b/a.txt", "b/c/a.txt"], ["a.txt/b"]),
        ("hosp/**", ["hosp/a", "hosp/b/c"], ["hosp", "hospital/a"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("p1[0-2]/*", ["p10/x", "p12/x"], ["p13/x"]),
        ("p[!1]", ["p2"], ["p1", "p/"]),
        ("a[", ["a["], ["a"]),
        ("a+b (1).dat", ["a+b (1).dat"], ["aab (1).dat"]),
    ],
)
def test_a_pattern_matches_whole_paths(pattern: str, matches: list[str], others: list[str]) -> None:
    manifest = pd.DataFrame({"path": sorted([*matches, *others]), "sha256": "00"})
    chosen = choose(manifest, Selection(include=(pattern,)))
    assert set(chosen.frame["path"]) == set(matches)
    assert chosen.of == len(manifest)


@given(PATHS)
def test_an_escaped_path_matches_itself_alone(path: str) -> None:
    pattern = globs.to_regex(globs.escape(path))
    assert re.fullmatch(pattern, path)
    assert not re.fullmatch(pattern, path + "x")
    assert not re.fullmatch(pattern, "x" + path)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="glob.translate came with Python 3.13")
@given(st.text("ab*?/.", min_size=1, max_size=8), PATHS)
def test_wildcards_are_pythons(pattern: str, path: str) -> None:
    import glob

    theirs = glob.translate(pattern, recursive=True, include_hidden=True, seps="/")
    if not re.search(r"\*{3,}|[^/]\*\*|\*\*[^/]", pattern):  # within a name, ** means *
        assert bool(re.fullmatch(theirs, path)) == bool(re.fullmatch(globs.to_regex(pattern), path))


@given(st.text("ab*?[]!-/\\^&~|.", max_size=12), PATHS)
def test_any_pattern_is_taken_and_arrow_reads_it_as_python_does(pattern: str, path: str) -> None:
    manifest = pd.DataFrame({"path": [path], "sha256": ["00"]})
    try:
        choose(manifest, Selection(include=(pattern,)))
        found = True
    except InputError:
        found = False
    try:
        assert found == bool(
            re.fullmatch(globs.to_regex(pattern).replace("\\x{10FFFF}", "\U0010ffff"), path, re.DOTALL)
        )
    except re.error:
        assert not found


def test_what_matches_nothing_is_named_with_what_there_is() -> None:
    manifest = pd.DataFrame({"path": ["hosp/a.csv", "icu/b.csv"], "sha256": "00"})
    with pytest.raises(InputError, match=r"include: no file of this project matches 'hosp'. For all .* hosp/\*\*"):
        choose(manifest, Selection(include=("icu/*", "hosp")))
    with pytest.raises(InputError, match=r"exclude: no file .* 'hosp/', 'icu/'"):
        choose(manifest, Selection(include=(), exclude=("x*",)))
    with pytest.raises(InputError, match=r"exclude: .* leaves nothing"):
        choose(manifest, Selection(include=("hosp/*",), exclude=("**",)))
