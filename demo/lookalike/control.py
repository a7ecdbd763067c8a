"""Control of a running look-alike over JSON, on a loopback port of its own.

    GET    /counters             Counters.as_dict()
    DELETE /counters             count from zero
    GET    /seen                 the last requests with their headers (no secrets)
    GET    /faults               the faults in force
    PUT    /faults   [{…}, …]    replace them; a fault is {"kind": "stall", …} with the fields of Fault
    POST   /faults   {…}         add one
    DELETE /faults               remove them all
    GET    /profile, PUT /profile {…}   the fields of Profile; those left out keep their default
    POST   /down, /refuse {"seconds": 60}   (null = until /up), POST /up
    PUT    /password {"user": "…", "password": "…"}
    POST   /revoke, /restore {"project": "slug/version"}

The answer is 200 with the new state, 400 with ``{"error": …}``, or 404.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from demo.lookalike.faults import Fault
from demo.lookalike.profiles import Profile
from demo.lookalike.server import Lookalike


def control_server(lookalike: Lookalike, port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, to be started with ``serve_forever``; OSError if the port is taken."""
    routes = _routes(lookalike)

    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            action = routes.get((self.command, self.path))
            if action is None:
                self._reply(404, {"error": f"no {self.command} {self.path}; there are {sorted(map(' '.join, routes))}"})
                return
            try:
                self._reply(200, action(json.loads(body or b"{}")))
            except (ValueError, TypeError, KeyError) as error:
                self._reply(400, {"error": f"{type(error).__name__}: {error}"})

        do_GET = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

        def _reply(self, status: int, state: Any) -> None:
            body = json.dumps(state).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _routes(lookalike: Lookalike) -> dict[tuple[str, str], Callable[[Any], Any]]:
    faults, counters, access = lookalike.faults, lookalike.counters, lookalike.access

    def then(action: Callable[[Any], object], state: Callable[[], Any] = dict) -> Callable[[Any], Any]:
        def run(given: Any) -> Any:
            action(given)
            return state()

        return run

    def faults_now() -> list[dict[str, Any]]:
        return [fault.as_dict() for fault in faults]

    def profile_now() -> dict[str, Any]:
        return asdict(lookalike.profile)

    def set_profile(given: dict[str, Any]) -> None:
        lookalike.profile = Profile(**given)

    def set_password(given: dict[str, str]) -> None:
        access.users[given["user"]].password = given["password"]

    return {
        ("GET", "/counters"): lambda _: counters.as_dict(),
        ("DELETE", "/counters"): then(lambda _: counters.reset(), counters.as_dict),
        ("GET", "/seen"): lambda _: [seen._asdict() for seen in list(counters.seen)],
        ("GET", "/faults"): lambda _: faults_now(),
        ("PUT", "/faults"): then(lambda given: faults.set(*map(Fault.from_dict, given)), faults_now),
        ("POST", "/faults"): then(lambda given: faults.add(Fault.from_dict(given)), faults_now),
        ("DELETE", "/faults"): then(lambda _: faults.clear(), faults_now),
        ("GET", "/profile"): lambda _: profile_now(),
        ("PUT", "/profile"): then(set_profile, profile_now),
        ("POST", "/down"): then(lambda given: lookalike.go_down(given.get("seconds"))),
        ("POST", "/refuse"): then(lambda given: lookalike.refuse(given.get("seconds"))),
        ("POST", "/up"): then(lambda _: lookalike.come_back()),
        ("PUT", "/password"): then(set_password),
        ("POST", "/revoke"): then(lambda given: access.revoke(given["project"])),
        ("POST", "/restore"): then(lambda given: access.restore(given["project"])),
    }
