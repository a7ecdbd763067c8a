"""The look-alike as a process; the users' password comes from the environment variable LOOKALIKE_PASSWORD."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

from demo.lookalike import UNLIMITED, Fault, Lookalike, User, as_users_report_it
from demo.lookalike.access import PASSWORD_CHECK
from demo.lookalike.control import control_server

PASSWORD = "LOOKALIKE_PASSWORD"


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Prints one line of JSON with ``url`` and ``control_url`` once it listens."""
    options = _parser().parse_args(argv)
    if not (password := os.environ.pop(PASSWORD, "")):
        sys.exit(f"lookalike: set the environment variable {PASSWORD} to the users' password; nothing was started")

    # Blocked before any thread starts, so that only sigwait below receives them.
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    agreements = frozenset(options.agreement) or None
    lookalike = Lookalike(
        options.root,
        users={name: User(password, agreements) for name in options.user},
        profile=as_users_report_it(options.connections, options.refuse_with)
        if options.as_users_report_it
        else UNLIMITED,
        faults=[Fault.from_dict(fault) for fault in json.loads(options.faults.read_text())] if options.faults else (),
        check_seconds=options.check_seconds,
        host=options.host,
        port=options.port,
    )
    with lookalike:
        control = control_server(lookalike, options.control_port)
        threading.Thread(target=control.serve_forever, daemon=True).start()
        where = {"url": lookalike.url, "control_url": f"http://127.0.0.1:{control.server_port}"}
        print(json.dumps(where), flush=True)
        signal.sigwait(ending)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo.lookalike", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds <slug>/<version>/…")
    parser.add_argument("--user", action="append", required=True, help="account name; may be repeated")
    parser.add_argument(
        "--agreement", action="append", default=[], help="slug/version that the users signed; default all"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--control-port", type=int, default=0, help="on 127.0.0.1; default: a free one")
    parser.add_argument("--check-seconds", type=float, default=PASSWORD_CHECK, help="cost of one password check")
    parser.add_argument("--as-users-report-it", action="store_true", help="60 ms round trip, 650 kB/s a connection")
    parser.add_argument("--connections", type=int, help="with --as-users-report-it: connections served at once")
    parser.add_argument("--refuse-with", type=int, help="status of requests above that, which hang otherwise: 429, 503")
    parser.add_argument("--faults", type=Path, help="JSON file with a list of faults")
    return parser


if __name__ == "__main__":
    sys.exit(main())
