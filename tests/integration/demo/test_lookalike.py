"""The look-alike follows PhysioNet's protocol: all other tests rely on it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from demo.lookalike import Fault, Kind, Lookalike, Profile, User, as_users_report_it

PROJECT = "mimic-cxr-jpg/2.1.0"
IMAGE = f"{PROJECT}/files/p10/image.jpg"
BYTES = bytes(range(256)) * 400  # 102,400 bytes whose values tell their position
BIG, BIG_SIZE = f"{PROJECT}/files/p10/big.dcm", 1_300_000
AGENT = "Wget/1.21 (test/1; +https://example.org)"
USERS = {
    "alice": User("open sesame"),
    "bob": User("swordfish", agreements=frozenset({"mimic-cxr/2.0.0"})),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("physionet")
    for project in (PROJECT, "mimic-cxr/2.0.0"):
        (root / project / "files/p10").mkdir(parents=True)
        (root / project / "files/p10/image.jpg").write_bytes(BYTES)
        (root / project / "table.csv.gz").write_bytes(b"\x1f\x8b not really")
    for n in range(200):
        (root / PROJECT / f"files/p10/{n:03}.jpg").write_bytes(BYTES[:5000])
    (root / BIG).write_bytes(bytes(BIG_SIZE))
    (root / "secret.txt").write_text("outside every project")
    return root


@pytest.fixture
def physionet(root: Path) -> Iterator[Lookalike]:
    with Lookalike(root, users=USERS, check_seconds=0) as lookalike:
        yield lookalike


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """A client with one connection that does only what it is told."""

    def __init__(self, physionet: Lookalike, login: str | None = "alice", *, agent: str = AGENT, cookies: str = ""):
        self.http = http.client.HTTPConnection(urlsplit(physionet.url).netloc, timeout=5)
        self.headers = {"User-Agent": agent}
        if login:
            name, _, password = login.partition(":")
            token = base64.b64encode(f"{name}:{password or USERS[name].password}".encode()).decode()
            self.headers["Authorization"] = f"Basic {token}"
        self.cookies = cookies

    def ask(self, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
        cookie = {"Cookie": self.cookies} if self.cookies else {}
        self.http.request(method, f"/files/{path}", headers=self.headers | cookie | headers)
        return self.http.getresponse()

    def get(self, path: str = IMAGE, method: str = "GET", **headers: str) -> Answer:
        answer = self.ask(method, path, **headers)
        return Answer(answer.status, answer.headers, answer.read())

    def shake_hands(self) -> Client:
        """As PhysioNet requires: one request without credentials for ``testcookie``, one with them for ``sessionid``."""
        without = {k: v for k, v in self.headers.items() if k != "Authorization"}
        self.headers, mine = without, self.headers
        self.cookies = ""
        first = _cookie(self.get())
        self.headers, self.cookies = mine, first
        self.cookies += "; " + _cookie(self.get())
        return self


def _cookie(answer: Answer) -> str:
    assert "Set-Cookie" in answer.headers, f"{answer.status} sets no cookie"
    return answer.headers["Set-Cookie"].partition(";")[0]


def _soon(condition: Callable[[], bool], seconds: float = 2) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


class TestAccess:
    def test_without_credentials_401_with_an_empty_body_a_challenge_and_a_test_cookie(self, physionet):
        answer = Client(physionet, None).get()
        assert (answer.status, answer.body) == (401, b"")
        assert answer.headers["WWW-Authenticate"].startswith('Basic realm="')
        assert _cookie(answer) == "testcookie=1"

    @pytest.mark.parametrize("login", ["alice:wrong", "nobody:open sesame"])
    def test_wrong_credentials_401(self, physionet, login):
        assert Client(physionet, login).get().status == 401

    @pytest.mark.parametrize("agent", ["Wget/1.21.3", "libwfdb/10.7.0 (libcurl/7.88)", AGENT])
    def test_basic_counts_for_these_agents(self, physionet, agent):
        assert Client(physionet, agent=agent).get().body == BYTES

    @pytest.mark.parametrize("agent", ["python-requests/2.32", "curl/7.88.1", "Mozilla/5.0 Wget/1.21", "wget/1.21", ""])
    def test_for_any_other_agent_it_is_ignored_and_the_right_password_gets_403(self, physionet, agent):
        answer = Client(physionet, agent=agent).get()
        assert answer.status == 403
        assert answer.headers["Content-Type"].startswith("text/html")
        assert len(answer.body) > 3000, "a whole web page"
        assert physionet.counters.password_checks == 0

    def test_basic_counts_only_for_get_and_head(self, physionet):
        assert Client(physionet).get(method="HEAD").status == 200
        assert Client(physionet).get(method="POST").status == 403

    def test_a_user_without_the_projects_agreement_gets_403(self, physionet):
        assert Client(physionet, "bob").get(IMAGE).status == 403
        assert Client(physionet, "bob").get(IMAGE.replace(PROJECT, "mimic-cxr/2.0.0")).status == 200

    def test_404_for_no_such_file_or_version_and_nothing_outside_the_projects(self, physionet):
        client = Client(physionet)
        outside = [f"{PROJECT}/../../secret.txt", f"{PROJECT}/%2e%2e/%2e%2e/secret.txt", "../secret.txt", "secret.txt"]
        for path in [f"{PROJECT}/no.jpg", "mimic-cxr-jpg/9.9.9/README", IMAGE + "/", "/etc/passwd", *outside]:
            assert client.get(path).status == 404, path


class TestSession:
    def test_after_the_handshake_no_password_is_checked_any_more(self, physionet):
        client = Client(physionet).shake_hands()
        assert [client.get().status for _ in range(20)] == [200] * 20
        assert physionet.counters.password_checks == physionet.counters.handshakes == 1
        assert physionet.counters.without_session == 2

    def test_without_cookies_every_file_pays_the_password_check_and_no_session_opens(self, physionet):
        client = Client(physionet)
        answers = [client.get() for _ in range(5)]
        assert not any("Set-Cookie" in answer.headers for answer in answers)
        assert (physionet.counters.password_checks, physionet.counters.handshakes) == (5, 0)

    def test_a_session_without_the_authorization_header_is_worth_nothing(self, physionet):
        cookies = Client(physionet).shake_hands().cookies
        assert Client(physionet, None, cookies=cookies).get().status == 401

    def test_threads_can_share_a_session(self, physionet):
        cookies = Client(physionet).shake_hands().cookies
        assert {Client(physionet, cookies=cookies).get().status for _ in range(4)} == {200}
        assert physionet.counters.password_checks == 1

    @pytest.mark.parametrize("burns", [True, False])
    def test_a_password_check_costs_what_it_should(self, root, burns):
        with Lookalike(root, users=USERS, check_seconds=0.13, check_burns_cpu=burns) as physionet:
            client, cpu, begin = Client(physionet), time.process_time(), time.monotonic()
            client.get()
            assert time.monotonic() - begin >= 0.13
            assert (time.process_time() - cpu >= 0.12) == burns


class TestFiles:
    def test_a_file_comes_with_the_headers_that_nginx_and_physionet_give_it(self, physionet, root):
        answer = Client(physionet).get()
        assert answer.body == BYTES
        assert answer.headers["Content-Length"] == str(len(BYTES))
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.headers["Content-Disposition"] == "inline"
        assert answer.headers["Vary"] == "Cookie"
        modified = parsedate_to_datetime(answer.headers["Last-Modified"]).timestamp()
        assert modified == int((root / IMAGE).stat().st_mtime)
        assert answer.headers["ETag"].startswith('"'), "strong"

    def test_a_gzip_table_is_a_file_not_an_encoding(self, physionet):
        answer = Client(physionet).get(f"{PROJECT}/table.csv.gz")
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert "Content-Encoding" not in answer.headers

    def test_head_is_get_without_the_body(self, physionet):
        head = Client(physionet).get(method="HEAD")
        assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(BYTES)), b"")

    @pytest.mark.parametrize(
        ("asked", "start", "end"), [("0-0", 0, 1), ("100-199", 100, 200), ("102000-", 102000, 102400), ("-5", -5, None)]
    )
    def test_a_range_is_206(self, physionet, asked, start, end):
        answer = Client(physionet).get(Range=f"bytes={asked}")
        assert (answer.status, answer.body) == (206, BYTES[start:end])
        first = start % len(BYTES)
        assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(answer.body) - 1}/{len(BYTES)}"

    def test_a_range_beyond_the_end_is_416(self, physionet):
        answer = Client(physionet).get(Range="bytes=102400-")
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */102400")

    def test_if_range_gives_the_whole_file_once_it_has_changed(self, physionet):
        client = Client(physionet)
        headers = client.get(method="HEAD").headers
        for same in (headers["ETag"], headers["Last-Modified"]):
            assert client.get(Range="bytes=10-", **{"If-Range": same}).status == 206
        changed = client.get(Range="bytes=10-", **{"If-Range": '"another"'})
        assert (changed.status, changed.body) == (200, BYTES)

    def test_a_path_that_ends_in_a_slash_is_a_listing(self, physionet):
        answer = Client(physionet).get(f"{PROJECT}/")
        assert answer.headers["Content-Type"].startswith("text/html")
        assert b'<a href="files/">' in answer.body
        assert b'<a href="table.csv.gz">' in answer.body
        assert Client(physionet).get(PROJECT).headers["Location"] == f"/files/{PROJECT}/"

    def test_connections_are_kept_alive_and_hundreds_of_files_go_over_one_in_a_second_of_cpu(self, physionet):
        client = Client(physionet).shake_hands()
        cpu, files = time.process_time(), 400
        for n in range(files):
            assert client.get(f"{PROJECT}/files/p10/{n % 200:03}.jpg").status == 200
        assert files / (time.process_time() - cpu) > 400, "server and client together"
        assert physionet.counters.accepted == 1


class TestForeignClients:
    """Third-party clients."""

    def test_gnu_wget_gets_its_files_by_its_own_handshake(self, physionet, tmp_path):
        wget = shutil.which("wget") or pytest.skip("GNU wget is not installed (apt-get install wget)")
        url = f"{physionet.url}/files/{PROJECT}/files/p10/"
        login = ["--user=alice", "--password=open sesame"]
        command = [wget, "-q", "-r", "-np", "-nd", "-A", "01*.jpg", "--tries=1", *login, "-P", str(tmp_path), url]
        subprocess.run(command, check=True, timeout=20, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
        assert len(list(tmp_path.glob("01?.jpg"))) == 10
        assert {file.read_bytes() for file in tmp_path.glob("01?.jpg")} == {BYTES[:5000]}
        assert physionet.counters.by_status[401] == 1
        assert physionet.counters.password_checks == 1

    def test_curl_with_its_own_agent_and_the_right_password_gets_403(self, physionet):
        curl = shutil.which("curl") or pytest.skip("curl is not installed (apt-get install curl)")
        command = [curl, "-s", "-o", os.devnull, "-w", "%{http_code}", "-u", "alice:open sesame"]
        url = f"{physionet.url}/files/{IMAGE}"
        assert subprocess.check_output([*command, url], timeout=10, text=True) == "403"
        assert subprocess.check_output([*command, "-A", AGENT, url], timeout=10, text=True) == "200"


class TestFaultsAtTheDoor:
    @pytest.mark.parametrize("status", [500, 502, 503, 429])
    def test_an_error_status_for_the_first_attempts(self, physionet, status):
        physionet.faults.add(Fault(Kind.STATUS, status=status, attempts=2))
        client = Client(physionet)
        assert [client.get().status for _ in range(3)] == [status, status, 200]
        assert physionet.counters.by_status[status] == physionet.counters.faults["status"] == 2

    def test_retry_after_in_seconds_as_a_date_or_not_at_all(self, physionet):
        physionet.faults.set(
            Fault(Kind.STATUS),
            Fault(Kind.STATUS, retry_after=7),
            Fault(Kind.STATUS, retry_after=7, retry_after_as_date=True),
        )
        client = Client(physionet)
        plain, seconds, date = (client.get().headers["Retry-After"] for _ in range(3))
        assert (plain, seconds) == (None, "7")
        assert 5 <= parsedate_to_datetime(date).timestamp() - time.time() <= 8

    def test_reset_instead_of_an_answer(self, physionet):
        physionet.faults.add(Fault(Kind.RESET_BEFORE))
        with pytest.raises(ConnectionResetError):
            Client(physionet).get()
        assert Client(physionet).get().status == 200

    def test_headers_that_never_come(self, physionet):
        physionet.faults.add(Fault(Kind.SILENCE))
        client = Client(physionet)
        client.http.timeout = 0.3
        with pytest.raises(TimeoutError):
            client.get()
        client.http.close()
        assert _soon(lambda: physionet.counters.connections == 0), "the slot is free once the client gave up"

    def test_a_redirect_to_another_host_and_what_a_client_sends_there(self, physionet, root):
        with Lookalike(root, users={}) as elsewhere:
            physionet.faults.add(Fault(Kind.REDIRECT, location=elsewhere.url))
            location = Client(physionet).get().headers["Location"]
            assert location == f"{elsewhere.url}/files/{IMAGE}"
            Client(elsewhere, cookies="sessionid=abc").get()
            seen = elsewhere.counters.seen[-1].headers
            assert seen["authorization"] == "Basic", "the record says that it came, not what it was"
            assert seen["cookie"] == "sessionid"


class TestFaultsOfTheFile:
    def test_reset_in_mid_body(self, physionet):
        physionet.faults.add(Fault(Kind.RESET_IN_BODY))
        answer = Client(physionet).ask("GET", IMAGE)
        assert answer.read(len(BYTES) // 2) == BYTES[: len(BYTES) // 2]
        with pytest.raises(ConnectionResetError):
            answer.read()

    def test_a_body_shorter_than_content_length(self, physionet):
        physionet.faults.add(Fault(Kind.SHORT_BODY, at=0.25))
        with pytest.raises(http.client.IncompleteRead) as caught:
            Client(physionet).get()
        assert caught.value.partial == BYTES[: len(BYTES) // 4]

    def test_the_rest_can_be_had_with_a_range(self, physionet):
        physionet.faults.add(Fault(Kind.SHORT_BODY))
        with pytest.raises(http.client.IncompleteRead) as caught:
            Client(physionet).get()
        had = caught.value.partial
        assert had + Client(physionet).get(Range=f"bytes={len(had)}-").body == BYTES

    def test_a_body_longer_than_the_file(self, physionet):
        physionet.faults.add(Fault(Kind.LONG_BODY))
        answer = Client(physionet).get()
        assert answer.body[: len(BYTES)] == BYTES
        assert int(answer.headers["Content-Length"]) == len(answer.body) > len(BYTES)

    def test_one_flipped_byte_also_in_the_range_that_holds_it(self, physionet):
        physionet.faults.add(Fault(Kind.FLIPPED_BYTE, attempts=None))
        client = Client(physionet)
        wrong = [at for at, (had, true) in enumerate(zip(client.get().body, BYTES, strict=True)) if had != true]
        assert wrong == [len(BYTES) // 2]
        assert client.get(Range="bytes=0-99").body == BYTES[:100]
        assert client.get(Range=f"bytes={wrong[0]}-").body[1:] == BYTES[wrong[0] + 1 :]
        assert client.get(Range=f"bytes={wrong[0]}-").body[:1] != BYTES[wrong[0] : wrong[0] + 1]

    def test_a_stall_in_mid_body_and_then_the_rest(self, physionet):
        physionet.faults.add(Fault(Kind.STALL, seconds=0.4))
        begin = time.monotonic()
        assert Client(physionet).get().body == BYTES
        assert time.monotonic() - begin >= 0.4

    def test_a_trickle_is_the_right_bytes_one_by_one(self, physionet):
        physionet.faults.add(Fault(Kind.TRICKLE, seconds=0.05, at=1 - 4 / len(BYTES)))
        begin = time.monotonic()
        assert Client(physionet).get().body == BYTES
        assert time.monotonic() - begin >= 0.2

    def test_a_login_page_with_status_200(self, physionet):
        physionet.faults.add(Fault(Kind.LOGIN_PAGE))
        answer = Client(physionet).get()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b"Log in" in answer.body

    def test_404_for_ever_but_only_after_the_access_check(self, physionet):
        physionet.faults.add(Fault(Kind.STATUS, status=404, paths="*/image.jpg", attempts=None))
        client = Client(physionet)
        assert [client.get().status for _ in range(5)] == [404] * 5
        assert client.get(f"{PROJECT}/files/p10/001.jpg").status == 200
        assert Client(physionet, None).get().status == 401


class TestWhichRequestsAreHit:
    def test_a_share_is_the_same_paths_every_time_and_others_for_another_kind(self):
        paths = [f"{PROJECT}/files/p10/{n}.jpg" for n in range(2000)]
        hit = {kind: {p for p in paths if Fault(kind, share=0.1).concerns(p)} for kind in (Kind.STALL, Kind.STATUS)}
        assert all(150 < len(some) < 250 for some in hit.values())
        assert hit[Kind.STALL] == {path for path in paths if Fault(Kind.STALL, share=0.1).concerns(path)}
        assert len(hit[Kind.STALL] & hit[Kind.STATUS]) < 50

    def test_attempts_count_per_path_and_after_spares_the_first(self, physionet):
        physionet.faults.add(Fault(Kind.STATUS, after=1, attempts=1))
        client = Client(physionet)
        for path in (IMAGE, f"{PROJECT}/files/p10/001.jpg"):
            assert [client.get(path).status for _ in range(3)] == [200, 503, 200]

    def test_of_several_faults_the_first_in_order_strikes_and_clear_ends_all(self, physionet):
        physionet.faults.set(Fault(Kind.STATUS, status=500), Fault(Kind.STATUS, status=502, attempts=None))
        client = Client(physionet)
        assert [client.get().status for _ in range(3)] == [500, 502, 502]
        physionet.faults.clear()
        assert client.get().status == 200


class TestEvents:
    def test_sessions_that_expire_every_n_requests_answer_401_until_the_next_handshake(self, physionet):
        client = Client(physionet).shake_hands()
        physionet.faults.add(Fault(Kind.SESSIONS_EXPIRED, after=3, attempts=None))
        assert [client.get().status for _ in range(5)] == [200, 200, 200, 401, 401]
        assert client.shake_hands().get().status == 401, "it was the fourth again"
        assert client.shake_hands().get().status == 200
        assert physionet.counters.handshakes == 3

    def test_sessions_that_are_lost_cost_a_password_check_and_a_new_cookie(self, physionet):
        client = Client(physionet).shake_hands()
        physionet.faults.add(Fault(Kind.SESSIONS_LOST))
        answer = client.get()
        assert answer.status == 200
        assert _cookie(answer).startswith("sessionid=")
        assert physionet.counters.password_checks == 2

    def test_a_password_changed_in_mid_run(self, physionet):
        client = Client(physionet).shake_hands()
        physionet.faults.add(Fault(Kind.PASSWORD_CHANGED, after=2))
        assert [client.get().status for _ in range(4)] == [200, 200, 401, 401]
        physionet.access.users["alice"].password = "open sesame"
        assert client.get().status == 200

    def test_an_agreement_revoked_in_mid_run(self, physionet):
        client = Client(physionet).shake_hands()
        physionet.faults.add(Fault(Kind.AGREEMENT_REVOKED, after=2))
        assert [client.get().status for _ in range(4)] == [200, 200, 403, 403]
        assert client.get(IMAGE.replace(PROJECT, "mimic-cxr/2.0.0")).status == 200
        physionet.access.restore(PROJECT)
        assert client.get().status == 200

    def test_connections_refused_for_a_time_while_the_open_ones_stay(self, physionet):
        client = Client(physionet)
        client.get()
        physionet.refuse(0.3)
        with pytest.raises(ConnectionRefusedError):
            Client(physionet).get()
        assert client.get().status == 200
        time.sleep(0.35)
        assert Client(physionet).get().status == 200

    def test_the_whole_server_down_for_a_time_and_back(self, physionet):
        idle, client = Client(physionet), Client(physionet)
        idle.get()
        physionet.faults.add(Fault(Kind.DOWN, seconds=0.3, after=1))
        assert client.get().status == 200
        with pytest.raises(ConnectionResetError):
            client.get()
        with pytest.raises(ConnectionResetError):
            idle.get()
        with pytest.raises(ConnectionRefusedError):
            Client(physionet).get()
        time.sleep(0.35)
        assert Client(physionet).get().status == 200

    def test_down_until_told_otherwise(self, physionet):
        physionet.go_down()
        with pytest.raises(ConnectionRefusedError):
            Client(physionet).get()
        physionet.come_back()
        assert Client(physionet).get().status == 200


class TestPace:
    def test_a_round_trip_before_each_answer_and_another_on_a_fresh_connection(self, physionet):
        physionet.profile = Profile(round_trip=0.06)
        fresh, kept = [], []
        for _ in range(3):
            client = Client(physionet, None)
            times = [time.monotonic()]
            for _ in range(3):
                client.get()
                times.append(time.monotonic())
            first, *rest = (end - begin for begin, end in pairwise(times))
            fresh.append(first)
            kept.extend(rest)
        # Never sooner; how much later depends on the machine.
        assert min(fresh) >= 0.12
        assert min(kept) >= 0.06

    def test_none_of_32_connections_is_faster_than_the_rate(self, physionet):
        physionet.profile = as_users_report_it(connections=32)
        due = BIG_SIZE / 650_000 + 2 * 0.06
        cookies = Client(physionet).shake_hands().cookies
        assert _soon(lambda: physionet.counters.connections == 0), "or the last of the 32 hangs"
        seconds: list[float] = []

        def fetch() -> None:
            begin = time.monotonic()
            assert len(Client(physionet, cookies=cookies).get(BIG).body) == BIG_SIZE
            seconds.append(time.monotonic() - begin)

        threads = [threading.Thread(target=fetch) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seconds) == 32
        assert min(seconds) >= due - 0.01, "never faster"
        assert physionet.counters.peak_connections == 32

    def test_bodies_flow_instead_of_coming_in_bursts(self, physionet):
        physionet.profile = Profile(rate=200_000)
        answer = Client(physionet).ask("GET", IMAGE)
        begin, arrivals = time.monotonic(), []
        while answer.read1(65536):
            arrivals.append(time.monotonic() - begin)
        assert arrivals[-1] >= 0.85 * len(BYTES) / 200_000
        assert arrivals[0] < arrivals[-1] / 2, "it begins long before it ends"
        assert len(arrivals) > 3

    def test_above_the_limit_connections_wait_without_an_answer_and_then_connect_itself_hangs(self, physionet):
        physionet.profile = Profile(connections=2, waiting=1)
        served = [Client(physionet), Client(physionet)]
        assert [client.get().status for client in served] == [200, 200]

        waiting = [_connect(physionet) for _ in range(6)]
        time.sleep(0.2)
        connected = [sock for sock in waiting if _is_connected(sock)]
        assert 1 <= len(connected) <= 2, "the others hang in connect"
        assert not any(select.select([sock], [], [], 0)[0] for sock in connected)
        for sock in connected:
            sock.send(f"GET /files/{IMAGE} HTTP/1.1\r\nUser-Agent: Wget/1\r\n\r\n".encode())
        assert not select.select(connected, [], [], 0.2)[0], "no answer"
        assert physionet.counters.connections == 2

        gone, last = connected[0], connected[-1]
        if gone is not last:
            gone.close()  # it gave up, so it must not take a slot
        served[0].http.close()
        assert select.select([last], [], [], 2)[0], "served once a slot is free"
        assert last.recv(100).startswith(b"HTTP/1.1 401")
        assert physionet.counters.connections == 2
        for sock in waiting:
            sock.close()

    def test_or_they_are_never_served(self, physionet):
        physionet.profile = Profile(connections=1, serve_waiting=False)
        first, second = Client(physionet), Client(physionet)
        assert first.get().status == 200
        second.http.timeout = 0.2
        with pytest.raises(TimeoutError):
            second.get()
        assert physionet.counters.hung == 1
        first.http.close()
        assert _soon(lambda: physionet.counters.connections == 0)
        assert Client(physionet).get().status == 200, "a new connection takes the free slot"


def _connect(physionet: Lookalike) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    address = urlsplit(physionet.url)
    sock.connect_ex((address.hostname, address.port))
    return sock


def _is_connected(sock: socket.socket) -> bool:
    return bool(select.select([], [sock], [], 0)[1])


class TestCounters:
    def test_they_tell_how_a_client_behaved(self, physionet):
        client = Client(physionet).shake_hands()
        client.get(method="HEAD")
        counters = physionet.counters
        assert counters.requests == 3
        assert counters.by_status == {401: 1, 200: 2}
        assert counters.by_path == {IMAGE: 3}
        assert counters.user_agents == {AGENT: 3}
        assert counters.bytes == len(BYTES)
        assert (counters.connections, counters.peak_connections, counters.accepted) == (1, 1, 1)
        client.http.close()
        assert _soon(lambda: counters.connections == 0)
        counters.reset()
        assert (counters.requests, counters.peak_connections) == (0, 0)

    def test_no_secret_is_kept_in_them(self, physionet):
        client = Client(physionet).shake_hands()
        client.get()
        kept = repr(physionet.counters) + json.dumps(physionet.counters.as_dict()) + repr(physionet.access.users)
        for secret in (
            client.headers["Authorization"].split()[1],
            client.cookies.split("sessionid=")[1],
            "open sesame",
        ):
            assert secret not in kept


class TestAsAProcess:
    @pytest.fixture
    def process(self, root: Path) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "demo.lookalike", "--root", str(root), "--user", "alice", "--check-seconds=0"]
        env = {**os.environ, "LOOKALIKE_PASSWORD": "open sesame"}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            yield process
            process.kill()

    @pytest.fixture
    def where(self, process) -> dict[str, str]:
        return json.loads(process.stdout.readline())

    @pytest.fixture
    def control(self, where) -> Callable[..., tuple[int, object]]:
        def call(method: str, path: str, given: object = None) -> tuple[int, object]:
            connection = http.client.HTTPConnection(urlsplit(where["control_url"]).netloc, timeout=5)
            connection.request(method, path, None if given is None else json.dumps(given))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        return call

    @pytest.fixture
    def client(self, where) -> Client:
        class There:
            url = where["url"]

        return Client(There)  # type: ignore[arg-type]

    def test_faults_profile_and_counters_over_the_control_port(self, control, client):
        assert client.get().status == 200
        control("PUT", "/faults", [{"kind": "status", "status": 502, "attempts": None}])
        assert client.get().status == 502
        assert control("DELETE", "/faults") == (200, [])
        assert client.get().status == 200
        _, counters = control("GET", "/counters")
        assert counters["by_status"] == {"200": 2, "502": 1}
        assert counters["faults"] == {"status": 1}
        assert control("GET", "/seen")[1][-1]["path"] == IMAGE
        assert control("PUT", "/profile", {"rate": 1e9})[1]["rate"] == 1e9
        control("POST", "/revoke", {"project": PROJECT})
        assert client.get().status == 403
        control("POST", "/restore", {"project": PROJECT})
        control("PUT", "/password", {"user": "alice", "password": "another"})
        assert client.get().status == 401
        control("PUT", "/password", {"user": "alice", "password": "open sesame"})
        control("POST", "/down", {"seconds": None})
        with pytest.raises(ConnectionResetError):
            client.get()
        control("POST", "/up")
        client.http.close()
        assert client.get().status == 200

    def test_what_it_does_not_understand_it_says(self, control):
        assert control("PUT", "/faults", [{"kind": "plague"}])[0] == 400
        status, answer = control("POST", "/faults", {"kind": "stall", "sceonds": 3})
        assert status == 400
        assert "sceonds" in answer["error"]
        assert control("GET", "/nothing")[0] == 404

    def test_sigterm_ends_it_at_once_even_with_a_client_in_a_stall(self, process, control, client):
        control("POST", "/faults", {"kind": "stall"})
        client.ask("GET", IMAGE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(2) == 0

    def test_without_the_password_in_the_environment_it_does_not_start(self, root):
        command = [sys.executable, "-m", "demo.lookalike", "--root", str(root), "--user", "alice"]
        env = {name: value for name, value in os.environ.items() if name != "LOOKALIKE_PASSWORD"}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=10, check=False)
        assert ended.returncode == 1
        assert "LOOKALIKE_PASSWORD" in ended.stderr
