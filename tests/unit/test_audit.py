"""`.ci/audit`, where PyPI's data cannot be had: no vulnerability is missed silently, and CI can tell it from one."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

AUDIT = Path(__file__).parents[2] / ".ci" / "audit"


def test_an_audit_without_data_says_so_and_is_told_from_one_that_found_something() -> None:
    with socket.socket() as nobody:  # bound, but it does not listen: connections are refused
        nobody.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        done = subprocess.run(
            [AUDIT],
            env={**os.environ, "HTTPS_PROXY": proxy, "https_proxy": proxy},
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 3
    assert "NOT AUDITED: PyPI's list of known vulnerabilities cannot be had here" in done.stderr
    assert "is not reached: ProxyError" in done.stderr
    assert "nothing was compared" in done.stderr
