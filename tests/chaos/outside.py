"""The state as seen from outside: files of the S3 server and the look-alike, read without any of our own code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PREFIX = "mimic-cxr-jpg/2.1.0"


def stored(folder: Path) -> dict[str, str]:
    """Path to SHA-256 of every object below the prefix's ``files/``; ``folder`` is that of the bucket."""
    return _sums(folder / PREFIX)


def published(root: Path) -> dict[str, str]:
    """Path to SHA-256 of every image that the look-alike serves."""
    return _sums(root / PREFIX)


def selected(folder: Path, run_ids: Iterable[str]) -> set[str]:
    """Paths of the images that these runs chose."""
    lists = [file for run_id in run_ids for file in (folder / PREFIX / "_mirror/runs" / run_id / "shards").iterdir()]
    return {
        line.split(" ", 1)[1].strip()
        for file in lists
        if not file.name.endswith(".missing.sha256")
        for line in file.read_text().splitlines()
    }


def report(folder: Path, run_id: str) -> dict[str, Any]:
    """The run's report.json."""
    return json.loads((folder / PREFIX / "_mirror/runs" / run_id / "report.json").read_text())


def wait_until(condition: Callable[[], object], timeout: float = 240) -> None:
    """Return as soon as the condition holds; TimeoutError if it does not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {timeout:.0f} s")
        time.sleep(0.1)


def _sums(version: Path) -> dict[str, str]:
    sums = {}
    for file in version.glob("files/**/*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # the server renames what it has received
            sums[str(file.relative_to(version))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return sums
