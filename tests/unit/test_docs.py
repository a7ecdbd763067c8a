"""The tests and files that the pages name exist, and the pages' lines are short enough for a diff."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST = 120


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """The name of every test function."""
    sources = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    return {name for source in sources for name in re.findall(r"^ *def (test_\w+)\(", source, re.MULTILINE)}


def table(page: Path) -> list[list[str]]:
    """The cells of the page's table rows, without header and rule rows."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page, tests):
    named = re.findall(r"`(test_\w+)`", page.read_text())
    assert not sorted(set(named) - tests)


def test_every_promise_has_a_mechanism_and_a_test():
    rows = table(ROOT / "docs" / "guarantees.md")
    assert all(len(row) == 3 for row in rows)
    groups, promises = ([row for row in rows if row[0].startswith("**") is bold] for bold in (True, False))
    assert all(row[1:] == ["", ""] for row in groups)
    assert len(promises) > 50
    assert not [row[0] for row in promises if not row[1] or not re.search(r"`test_\w+`", row[2])]
    assert len({row[0] for row in promises}) == len(promises)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    broken = []
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        file = page.parent / target if target else page
        if not file.exists():
            broken.append(target)
        elif anchor and anchor not in anchors(file):
            broken.append(f"{target}#{anchor}")
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub generates for the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short_enough_for_a_diff(page):
    """Except rows of tables and code, which cannot be broken."""
    long, code = [], False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if len(line) > MOST and not code and not line.startswith(("|", "    ", "![")):
            long.append(number)
    assert not long
