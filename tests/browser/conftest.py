"""Debian's chromium under Playwright, logged in to an Airflow; screenshots are kept only if SCREENSHOTS names a folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000
"""Time limit in milliseconds, generous so that a busy machine is not a failure."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip("needs Debian's chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def window(chromium: Browser) -> Callable[..., Iterator[Page]]:
    """``with window(theme, width) as page``: a page that fails the test on errors, refused assets and broken policy."""

    @contextmanager
    def open_window(theme: str = "light", width: int = 1280, height: int | None = None) -> Iterator[Page]:
        size = {"width": width, "height": height or (900 if width > 500 else 844)}
        context = chromium.new_context(viewport=size, color_scheme=theme)
        context.set_default_timeout(PATIENCE)
        context.add_init_script(f"try {{ localStorage.setItem('theme', '{theme}') }} catch {{}}")
        page = context.new_page()
        trouble: list[str] = []

        def note(message: ConsoleMessage) -> None:
            # Refusals are expected: Airflow's start page asks for the user before the login, and a viewer may not trigger.
            # The machine's network may change meanwhile. And the policy is meant to block pictures in a report from the bucket.
            if message.type == "error" and not re.search(
                r"status of 40[13]|'img-src' was not|ERR_NETWORK_CHANGED", message.text
            ):
                trouble.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: _at_home(page, request.url, trouble))
        yield page
        context.close()
        assert not trouble

    return open_window


def _at_home(page: Page, url: str, trouble: list[str]) -> None:
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:")):
        trouble.append(f"{page.url} asked for {url}")


@pytest.fixture
def shoot(tmp_path: Path) -> Callable[..., Path]:
    """Save a screenshot with few colours, which keeps it small, in the folder SCREENSHOTS if that is set."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)

    def save(page: Page, name: str, *, full: bool = False) -> Path:
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.png"
        page.screenshot(path=file, full_page=full, animations="disabled")
        with Image.open(file) as image:
            image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                file, optimize=True
            )
        assert file.stat().st_size < 200_000
        return file

    return save


def log_in(page: Page, url: str, user: str, password: str) -> None:
    """Log in by Airflow's form, as a person does."""
    page.goto(f"{url}/")
    page.locator("input[name=username]").fill(user)
    page.locator("input[name=password]").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda to: "/login" not in to)
