"""Our HTTP client: framing, kept connections, broken servers, proxies, TLS. The servers are scripted sockets."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.wire import Answer, ConnectTimeout, Origin, ProtocolError, Proxy, ProxyRefused

Talk = Callable[[socket.socket, int], None]


class Server:
    """Listens on loopback; each connection is handed to ``talk`` with its number, from 0."""

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None = None) -> None:
        self._talk, self._tls = talk, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.connections = 0
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            thread = threading.Thread(target=self._serve, args=(connection, number), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self._open.append(connection)
            with connection:
                self._talk(connection, number)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


@contextmanager
def serving(talk: Talk, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(talk, tls)
    try:
        yield server
    finally:
        server.close()


def read_request(connection: socket.socket) -> bytes | None:
    """One request with its body; None if the client has closed."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(65536)
        if not received:
            return None
        head += received
    fields, _, body = head.partition(b"\r\n\r\n")
    for line in fields.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            while len(body) < int(value):
                body += connection.recv(1 << 20)
    return fields + b"\r\n\r\n" + body


def always(reply: bytes) -> Talk:
    """Answer every request of every connection with these bytes."""

    def talk(connection: socket.socket, _: int) -> None:
        while read_request(connection) is not None:
            connection.sendall(reply)

    return talk


def ask(origin: Origin, method: str = "GET", body: bytes = b"") -> tuple[Answer, bytes]:
    with origin.exchange(method, "/x", [("Accept", "*/*")], body) as answer:
        return answer, answer.read(1 << 20)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def test_a_connection_is_kept_for_the_next_request() -> None:
    with serving(always(OK)) as server:
        origin = Origin(server.url)
        bodies = [ask(origin)[1] for _ in range(5)]

    assert bodies == [b"hello"] * 5
    assert server.connections == 1


def test_threads_have_a_connection_each_while_they_need_one() -> None:
    together = threading.Barrier(3)

    def talk(connection: socket.socket, _: int) -> None:
        while read_request(connection) is not None:
            together.wait(5)
            connection.sendall(OK)

    with serving(talk) as server:
        origin = Origin(server.url)
        for _ in range(2):
            threads = [threading.Thread(target=ask, args=(origin,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
        assert server.connections == 3


def test_a_kept_connection_that_was_closed_is_replaced_without_a_word() -> None:
    def talk(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(OK)

    with serving(talk) as server:
        origin = Origin(server.url)
        assert [ask(origin)[1] for _ in range(3)] == [b"hello"] * 3


def test_a_kept_connection_that_closes_as_the_request_arrives_is_replaced_once() -> None:
    def talk(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(OK)
        if number == 0:
            read_request(connection)  # and send no answer
            return
        while read_request(connection) is not None:
            connection.sendall(OK)

    with serving(talk) as server:
        origin = Origin(server.url)
        assert [ask(origin, "PUT", b"body")[1] for _ in range(2)] == [b"hello"] * 2
        assert server.connections == 2


def test_a_new_connection_without_an_answer_is_an_error() -> None:
    def talk(connection: socket.socket, _: int) -> None:
        read_request(connection)

    with serving(talk) as server, pytest.raises(ProtocolError):
        ask(Origin(server.url))


def test_a_body_that_ends_early_is_not_complete() -> None:
    def talk(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")

    with serving(talk) as server:
        with Origin(server.url).exchange("GET", "/") as answer:
            view = memoryview(bytearray(100))
            assert answer.read_into(view) == 5
            assert answer.read_into(view) == 0
        assert (answer.complete, answer.received, answer.length) == (False, 5, 9)


def test_what_is_left_unread_is_never_the_next_answer() -> None:
    replies = iter([b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"a" * 500_000, OK])

    def talk(connection: socket.socket, _: int) -> None:
        while read_request(connection) is not None:
            connection.sendall(next(replies))

    with serving(talk) as server:
        origin = Origin(server.url)
        with origin.exchange("GET", "/") as answer:
            answer.read_into(memoryview(bytearray(10)))
        assert ask(origin)[1] == b"hello"
        assert server.connections == 2


@pytest.mark.parametrize(
    ("reply", "method", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "PUT", b"ok"),
        (b"HTTP/1.1 200\r\ncontent-length:2\r\n\r\nok", "GET", b"ok"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", "GET", b"gone"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\n", "GET",
         b"abc0123456789"),
    ],
)  # fmt: skip
def test_every_framing_is_read_to_its_end_and_the_connection_kept(reply: bytes, method: str, body: bytes) -> None:
    with serving(always(reply)) as server:
        origin = Origin(server.url)
        for _ in range(3):
            answer, read = ask(origin, method)
            assert (read, answer.complete) == (body, True)
        assert server.connections == 1


@given(body=st.binary(max_size=3000), cuts=st.lists(st.integers(1, 700), max_size=8), step=st.integers(1, 900))
def test_chunks_of_any_size_make_the_same_body(body: bytes, cuts: list[int], step: int) -> None:
    parts, at = [], 0
    for cut in [*cuts, 10_000]:
        if part := body[at : at + cut]:
            parts.append(b"%x\r\n%b\r\n" % (len(part), part))
        at += cut
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(parts) + b"0\r\n\r\n"

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(whole)
        answer = Answer(Origin("http://127.0.0.1:1"), ours, "GET")
        held, view = bytearray(), memoryview(bytearray(step))
        while received := answer.read_into(view):
            held += view[:received]

    assert bytes(held) == body
    assert answer.complete


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
@given(body=st.binary(max_size=3000), step=st.integers(1, 1200), later=st.integers(0, 3000))
def test_a_view_is_filled_whatever_the_framing(framing: str, body: bytes, step: int, later: int) -> None:
    if framing == "chunks":
        size, reply = (
            b"Transfer-Encoding: chunked",
            b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (body[:700], body[700:]) if c),
        )
        reply += b"0\r\n\r\n"
    else:
        size, reply = b"Content-Length: %d" % len(body) if framing == "length" else b"X: y", body
    at_once = max(0, len(reply) - later)  # with the head comes all of the body, some of it, or none

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\n" + size + b"\r\n\r\n" + reply[:at_once])
        answer = Answer(Origin("http://127.0.0.1:1"), ours, "GET")
        theirs.sendall(reply[at_once:])
        theirs.shutdown(socket.SHUT_WR)
        held, view = bytearray(), memoryview(bytearray(step))
        while received := answer.fill(view):
            held += view[:received]
            assert received == step or len(held) == len(body)

    assert bytes(held) == body
    assert (answer.complete, answer.received) == (True, len(body))


def test_a_view_that_fills_slowly_is_given_back_in_time_and_what_came_before_a_break_is_known() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
        answer = Answer(Origin("http://127.0.0.1:1"), ours, "GET")
        theirs.sendall(b"cd")
        view = memoryview(bytearray(10))
        assert answer.fill(view, 0.0) == 4
        theirs.sendall(b"efg")
        ours.settimeout(0.05)
        with pytest.raises(TimeoutError):
            answer.fill(view[4:])
        assert (bytes(view[:7]), answer.received, answer.complete) == (b"abcdefg", 7, False)


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    def talk(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    with serving(talk) as server:
        answer, read = ask(Origin(server.url))

    assert (read, answer.complete, answer.length) == (b"to the end", True, None)


@pytest.mark.parametrize(
    "reply",
    [b"SSH-2.0-OpenSSH_9\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 2xx\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000],
)  # fmt: skip
def test_what_is_no_answer_is_said_so(reply: bytes) -> None:
    def talk(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(reply)

    with serving(talk) as server, pytest.raises(ProtocolError):
        ask(Origin(server.url))


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"3\r\nabcXX", b"3\r\nab"])
def test_a_damaged_chunk_is_an_error_or_incomplete(chunk: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        theirs.shutdown(socket.SHUT_WR)
        answer = Answer(Origin("http://127.0.0.1:1"), ours, "GET")
        try:
            while answer.read_into(memoryview(bytearray(100))):
                pass
        except ProtocolError:
            pass
        assert not answer.complete


def test_silence_is_a_time_out_and_the_connection_is_not_kept() -> None:
    def talk(connection: socket.socket, _: int) -> None:
        read_request(connection)
        time.sleep(3)

    with serving(talk) as server:
        origin = Origin(server.url, read_timeout=0.2)
        for _ in range(2):
            with pytest.raises(TimeoutError) as raised:
                ask(origin)
            assert not isinstance(raised.value, ConnectTimeout)
        assert server.connections == 2


def test_a_connect_that_hangs_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        held = []
        for _ in range(3):  # fill the queue of connections that are never accepted
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            held.append(one)
        with pytest.raises(ConnectTimeout):
            ask(Origin(f"http://127.0.0.1:{port}", connect_timeout=0.3))
        for one in held:
            one.close()


@pytest.mark.parametrize("bad", ["/a\r\nX: y", "/a\nb", "/a\0b"])
def test_no_line_break_gets_into_a_request(bad: str) -> None:
    with serving(always(OK)) as server:
        origin = Origin(server.url)
        with pytest.raises(ValueError, match="line break"):
            origin.exchange("GET", bad)
        with pytest.raises(ValueError, match="line break"):
            origin.exchange("GET", "/", [("X", bad)])
        assert server.connections == 0


def test_a_large_body_arrives_as_it_was() -> None:
    body = bytes(range(256)) * 20_000
    seen: list[bytes] = []

    def talk(connection: socket.socket, _: int) -> None:
        while (request := read_request(connection)) is not None:
            seen.append(request)
            connection.sendall(OK)

    with serving(talk) as server, Origin(server.url).exchange("PUT", "/k", [("X-A", "b")], memoryview(body)) as answer:
        assert answer.status == 200
    head, _, sent = seen[0].partition(b"\r\n\r\n")
    assert sent == body
    assert head.split(b"\r\n") == [
        b"PUT /k HTTP/1.1",
        b"Host: 127.0.0.1:%d" % server.port,
        b"X-A: b",
        b"Content-Length: 5120000",
    ]


# -- TLS and proxies -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return path


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def test_tls_is_verified(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    with serving(always(OK), server_tls) as server:
        assert ask(Origin(server.url, tls=client_tls))[1] == b"hello"
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(Origin(server.url))


def proxy_to(port: int, seen: list[bytes], reply: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Talk:
    """A proxy that opens a tunnel to a port of loopback, or only sends ``reply`` if that is not a 200."""

    def talk(connection: socket.socket, _: int) -> None:
        request = read_request(connection)
        seen.append(request or b"")
        connection.sendall(reply)
        if b" 200 " not in reply:
            return
        with socket.create_connection(("127.0.0.1", port)) as onward:

            def back() -> None:
                while received := onward.recv(65536):
                    connection.sendall(received)

            threading.Thread(target=back, daemon=True).start()
            while received := connection.recv(65536):
                onward.sendall(received)

    return talk


def test_tls_goes_through_a_proxy(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    seen: list[bytes] = []
    with serving(always(OK), server_tls) as server, serving(proxy_to(server.port, seen)) as proxy:
        origin = Origin(server.url, tls=client_tls, proxy=Proxy.parse(f"http://me:a%20b@127.0.0.1:{proxy.port}"))
        assert [ask(origin)[1] for _ in range(2)] == [b"hello"] * 2
        assert server.connections == 1

    assert seen[0].startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % server.port)
    assert b"\r\nProxy-Authorization: Basic bWU6YSBi\r\n" in seen[0]


def test_a_proxy_that_wants_a_login_is_named_and_its_secret_is_not(client_tls: ssl.SSLContext) -> None:
    reply = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with serving(proxy_to(1, [], reply)) as proxy:
        way = Proxy.parse(f"http://me:secret@127.0.0.1:{proxy.port}")
        with pytest.raises(ProxyRefused, match="407") as raised:
            ask(Origin("https://127.0.0.1:1", tls=client_tls, proxy=way))

    assert raised.value.status == 407
    assert "secret" not in f"{raised.value}{way!r}"


def test_a_plain_request_tells_the_proxy_the_whole_address() -> None:
    seen: list[bytes] = []

    def talk(connection: socket.socket, _: int) -> None:
        seen.append(read_request(connection) or b"")
        connection.sendall(OK)

    with serving(talk) as proxy:
        ask(Origin("http://physionet.test:81", proxy=Proxy("127.0.0.1", proxy.port)))

    assert seen[0].startswith(b"GET http://physionet.test:81/x HTTP/1.1\r\nHost: physionet.test:81\r\n")


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://"])
def test_another_kind_of_proxy_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="proxy"):
        Proxy.parse(url)
