"""What PhysioNet's password check, 130 ms of CPU, costs each client.

    python -m bench.password [--short] [--folder .state/bench/password]

The PhysioNet look-alike serves 1,000 images of 300 KB, ``rclone serve s3`` accepts them. *with* is the time with a check of
130 ms; *without* is the time with the same server and a check that costs nothing. The mirror is measured in alternating
rounds, the others once, because they pay a check for every request.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from bench import peers
from bench._measure import Check, alternating, command_line, medians, scratch
from bench.pace import make_images
from bench.streaming import mirror
from demo import stack

IMAGES, SIZE = 1000, 300_000
CHECK = 0.130
PEERS = ("rclone-16", "script-4", "script-16")


def run(folder: Path, *, short: bool = False, rounds: int = 5) -> dict[str, Any]:
    """Measure: ``{"images", "clients": [{"client", "with", "without", "checks", …}]}``; times in seconds."""
    images = IMAGES // 50 if short else IMAGES
    root = folder / "physionet"
    make_images(root, images, SIZE)
    found = []
    with stack.s3_server(scratch(folder, "s3"), log=folder / "s3.log") as s3:
        once = _Once(folder, root, s3)
        ours = alternating(("mirror with", "mirror without"), 2 if short else rounds, once)
        theirs = {case: [once(case, 0)] for peer in PEERS for case in (f"{peer} with", f"{peer} without")}
        measured = {case: medians(rounds) for case, rounds in {**ours, **theirs}.items()}
        for client in ("mirror", *PEERS):
            dear, free = measured[f"{client} with"], measured[f"{client} without"]
            found.append(
                {
                    "client": client,
                    "with": dear["seconds"],
                    "without": free["seconds"],
                    "ratio": dear["seconds"] / free["seconds"],
                    "checks": round(dear["checks"]),
                    "cpu": dear["cpu"],
                }
            )
    return {"images": images, "clients": found}


class _Once:
    def __init__(self, folder: Path, root: Path, s3: stack.S3Server) -> None:
        self._folder, self._root, self._s3, self._number = folder, root, s3, 0
        self._work = scratch(folder, "work")

    def __call__(self, case: str, _round: int) -> dict[str, float]:
        client, _, kind = case.partition(" ")
        self._number += 1
        where = self._s3.make_bucket(f"password-{self._number}")
        options = ("--check-seconds", str(CHECK if kind == "with" else 0))
        try:
            with stack.physionet(self._root, log=self._folder / "physionet.log", options=options) as source:
                given = peers.Case(
                    source.url,
                    (source.user, source.password),
                    self._s3.endpoint,
                    (self._s3.access_key, self._s3.secret_key),
                    where.name,
                    self._root / peers.PREFIX,
                    self._work,
                )
                figures = mirror(given) if client == "mirror" else peers.run(client, given)
                with urlopen(f"{source.control_url}/counters", timeout=30) as answer:
                    checks = json.load(answer)["password_checks"]
            stored = sum(1 for _ in where.rglob("*.jpg"))
            if stored != len(given.images()):
                raise RuntimeError(f"{client} stored {stored} of {len(given.images())} images; see {given.folder}")
            return {"seconds": figures["seconds"], "cpu": figures["cpu"], "checks": checks}
        finally:
            shutil.rmtree(where, ignore_errors=True)


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"| client, {result['images']:,} images | s with a check of 130 ms | s without its cost | ratio | checks | CPU s per 1,000 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c['client']} | {c['with']:.1f} | {c['without']:.1f} | {c['ratio']:.2f} | {c['checks']:,} | {c['cpu']:.2f} |"
        for c in result["clients"]
    ]
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """The target: the mirror takes at most 1.1 times as long with the password check."""
    ratio = result["clients"][0]["ratio"]
    return [Check("password check: time over that without it", f"{ratio:.2f} x", "1.1 x", ratio <= 1.1)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command_line(__doc__, "password", run, table, checks, short="20 images", arguments=arguments)


if __name__ == "__main__":
    main()
