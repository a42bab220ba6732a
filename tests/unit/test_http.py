"""HTTP to an API server: connections kept and lost, bounds, TLS, proxies, and asking again."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from kdns import __version__, limits
from kdns.cluster import http
from kdns.cluster.credentials import Access, ApiError, endpoint, in_cluster
from kdns.cluster.http import Connection, TooLarge
from kdns.metrics import Metrics
from tests.certificates import make_certificate
from tests.fakeapi import FakeApi, service

SERVICES = "/api/v1/services"


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as api:
        yield api


Connect = Callable[..., Connection]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes Connections to a URL, or with credentials, and closes them."""
    made: list[Connection] = []

    def make(to: Any, metrics: Metrics | None = None, **bounds: Any) -> Connection:
        made.append(Connection(endpoint(to) if isinstance(to, str) else to, metrics or Metrics(), **bounds))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


@pytest.fixture
async def connection(api: FakeApi, connect: Connect) -> Connection:
    return connect(api.url)


async def status(connection: Connection, target: str = SERVICES) -> int:
    """Ask, read to the end, and let the connection be used again."""
    response = await connection.get(target)
    try:
        await response.read(2**20)
    finally:
        response.close()
    return response.status


class Fixed:
    """Credentials that never change."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def access(self) -> Access:
        return self._access

    def rejected(self) -> None:
        pass


class Peer:
    """A server of one's own: ``talk`` is called for each connection."""

    def __init__(self, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.talk = talk
        self.connections = 0

    async def __aenter__(self) -> Peer:
        self.server = await asyncio.start_server(self.accepted, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


def saying(*answers: bytes) -> Peer:
    """A server that answers each request of a connection with the next of these octets, and then hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    return Peer(talk)


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


# --- requests --------------------------------------------------------------------------------------------------------


async def test_what_is_sent(api, connection):
    assert await status(connection) == 200
    assert api.requests[-1].headers == {
        "host": f"127.0.0.1:{api.port}",
        "user-agent": f"kdns/{__version__}",
        "accept": "application/json",
        "accept-encoding": "identity",
    }
    (await connection.get(SERVICES, "text/x")).close()
    assert api.requests[-1].headers["accept"] == "text/x"


async def test_paths_below_a_prefix(connect):
    async with saying(WHOLE) as peer:
        seen = []

        async def talk(reader, writer):
            seen.append((await reader.readuntil(b"\r\n\r\n")).split()[1])
            writer.write(WHOLE)

        peer.talk = talk
        assert await status(connect(peer.url + "/prefix/")) == 200
        assert seen == [b"/prefix/api/v1/services"]


async def test_connections_are_used_again(connection, connect):
    async with saying(WHOLE, WHOLE, WHOLE) as peer:
        connection = connect(peer.url)
        for _ in range(3):
            assert await status(connection) == 200
        assert peer.connections == 1
        assert await status(connection) == 200, "the server has hung up in the meantime"
        assert peer.connections == 2


async def test_a_connection_that_is_closed_just_when_it_is_used_again(connect):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        await reader.readuntil(b"\r\n\r\n")

    async with Peer(talk) as peer:
        connection = connect(peer.url)
        assert await status(connection) == 200
        assert await status(connection) == 200 and peer.connections == 2


@pytest.mark.parametrize("token", ["two\nlines", "schlüssel"])
async def test_a_token_that_can_be_no_header(api, connect, token):
    with pytest.raises(ApiError):
        await status(connect(Fixed(Access("127.0.0.1", api.port, authorization=f"Bearer {token}"))))


async def test_an_answer_that_was_not_read_to_its_end_ends_the_connection(connect):
    async with saying(WHOLE, WHOLE) as peer:
        connection = connect(peer.url)
        (await connection.get("/")).close()
        assert await status(connection) == 200
        assert peer.connections == 2


async def test_no_more_connections_are_kept_than_needed(api, connection, monkeypatch):
    monkeypatch.setattr(http, "IDLE", 2)
    assert await asyncio.gather(*[status(connection) for _ in range(5)]) == [200] * 5
    assert len(connection._idle) == 2


async def test_a_peer_that_vanishes_is_noticed_by_the_kernel(api, connection):
    await status(connection)
    link = connection._idle[0]._writer.get_extra_info("socket")
    assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
    assert [link.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [2, 1, 3, 5000]


async def test_after_the_end_nothing_is_kept(api, connection):
    await status(connection)
    response = await connection.get(SERVICES)
    await response.read(2**20)
    connection.close()
    response.close()
    assert not connection._idle


async def test_a_server_with_a_name(api, connect):
    assert await status(connect(f"http://localhost:{api.port}")) == 200


async def test_what_is_counted(api, connect):
    metrics = Metrics()
    connection = connect(api.url, metrics)
    await status(connection)
    api.fault(status=500)
    await status(connection)
    await api.refuse()
    with pytest.raises(ApiError):
        await status(connection)
    host = f"127.0.0.1:{api.port}"
    text = metrics.expose().decode()
    for code in ("200", "500", "<error>"):
        line = f'coredns_kubernetes_rest_client_requests_total{{code="{code}",host="{host}",method="GET"}} 1.0'
        assert line in text
    assert f'coredns_kubernetes_rest_client_request_duration_seconds_count{{host="{host}",verb="GET"}} 3.0' in text


# --- answers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, text",
    [
        (b"", "the connection was closed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "illegal"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * limits.API_HEAD * 2, "too long|Receive buffer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "the connection was closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n", "illegal|malformed"),
        (chunked(b"{}")[:-1], "the connection was closed"),
    ],
)
async def test_answers_that_break_off_or_are_no_http(answer, text, connect):
    async with saying(answer) as peer:
        connection = connect(peer.url)
        with pytest.raises(ApiError) as caught:
            await status(connection)
        assert str(caught.value).startswith(f"127.0.0.1:{peer.port}: ")
        assert any(part in str(caught.value) for part in text.split("|")), caught.value


async def test_a_connection_that_is_reset(connect):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async with Peer(talk) as peer:
        with pytest.raises(ApiError, match="Connection reset by peer"):
            await status(connect(peer.url))


async def test_a_redirect_is_not_followed(connect):
    async with saying(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n") as peer:
        assert await status(connect(peer.url)) == 302


async def test_interim_answers_are_skipped(connect):
    async with saying(b"HTTP/1.1 103 Early Hints\r\n\r\n" + WHOLE) as peer:
        assert await status(connect(peer.url)) == 200


async def test_a_body_beyond_its_bound(api, connection):
    for number in range(50):
        api.put("services", service(f"s{number}"))
    response = await connection.get(SERVICES)
    with pytest.raises(TooLarge, match="an answer of over 1000 octets"):
        await response.read(1000)
    response.close()
    assert await status(connection) == 200


async def test_a_body_that_drips(monkeypatch, connect):
    monkeypatch.setattr(http, "READ", 0.1)

    async def talk(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with Peer(talk) as peer:
        with pytest.raises(ApiError, match="no whole answer within"):
            await status(connect(peer.url))


async def test_nobody_there(connect):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ApiError, match=r"127\.0\.0\.1:\d+: Connection refused"):
            await status(connect(url))
    with pytest.raises(ApiError, match=r"api\.invalid:80: "):
        await status(connect("http://api.invalid"))
    with pytest.raises(ApiError, match="label"):
        await status(connect(f"http://{'x' * 70}.invalid"))


async def test_a_connection_that_takes_too_long(monkeypatch, connect):
    monkeypatch.setattr(http, "CONNECT", 0.1)
    with socket.socket() as deaf:  # its queue is full, so the kernel drops what comes
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        with pytest.raises(ApiError, match=r"no connection within 0\.1 s"):
            await status(connect(f"http://127.0.0.1:{deaf.getsockname()[1]}"))
        for filler in fillers:
            filler.close()


# --- lines -----------------------------------------------------------------------------------------------------------


async def lines_of(connect: Connect, *chunks: bytes) -> list[list[bytes]]:
    async with saying(chunked(*chunks, b"")) as peer:
        connection = connect(peer.url)
        response = await connection.get("/")
        found = []
        while (lines := await response.lines()) is not None:
            found.append(lines)
        response.close()
        return found


@pytest.mark.parametrize(
    "chunks, lines",
    [
        ([b"a\n"], [b"a"]),
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\n", b"c\nd", b"e\n\n"], [b"ab", b"c", b"de"]),
        ([b"\n", b"\n", b"a\n"], [b"a"]),
        ([b"a\nrest"], [b"a"]),
        ([], []),
    ],
)
async def test_lines_and_chunks_have_nothing_to_do_with_each_other(connect, chunks, lines):
    assert [line for some in await lines_of(connect, *chunks) for line in some] == lines


async def test_a_line_without_end_costs_no_more_than_its_bound(api, connection):
    api.fault(endless=True)
    response = await connection.get(SERVICES)
    with pytest.raises(TooLarge, match=f"a line of over {limits.API_LINE} octets"):
        await response.lines()
    assert response._size <= limits.API_LINE + 2**18
    response.close()


# --- asking again ----------------------------------------------------------------------------------------------------


async def test_a_server_that_hangs_is_asked_again_and_one_that_is_slow_is_waited_for(api, connection, monkeypatch):
    monkeypatch.setattr(http, "ASK_AGAIN", 0.05)
    api.fault(stall=True, times=3)
    started = time.monotonic()
    assert await status(connection) == 200
    assert 0.1 < time.monotonic() - started < 2 and len(api.requests) == 4
    api.requests.clear()
    api.fault(delay=0.3, times=1)
    api.fault(stall=True)
    api._faults.reverse()
    assert await status(connection) == 200, "the first request of all is not given up"
    assert len(api.requests) > 3


async def test_a_kept_connection_that_is_dead_does_not_stop_anything(api, connection, monkeypatch):
    monkeypatch.setattr(http, "ASK_AGAIN", 0.05)
    assert await asyncio.gather(status(connection), status(connection)) == [200, 200]
    for link in connection._idle:
        link._writer.write = lambda data: None  # what is sent is lost
    assert await status(connection) == 200


async def test_a_server_that_never_answers(api, connection, monkeypatch):
    monkeypatch.setattr(http, "ASK_AGAIN", 0.02)
    monkeypatch.setattr(http, "ANSWER", 0.1)
    api.fault(stall=True)
    with pytest.raises(ApiError, match=r"no answer within 0\.1 s"):
        await status(connection)


async def test_of_two_answers_one_is_thrown_away(api, connection, monkeypatch):
    monkeypatch.setattr(http, "ASK_AGAIN", 0.02)
    api.fault(delay=0.05)
    assert await asyncio.gather(*[status(connection) for _ in range(10)]) == [200] * 10
    late = asyncio.create_task(connection._attempt(SERVICES, http.JSON))
    response = await late
    http._give_up(late)
    await asyncio.sleep(0)
    assert response._done is None, "closed"


async def test_giving_up_leaves_nothing_behind(api, connection):
    api.fault(stall=True)
    asking = asyncio.create_task(connection.get(SERVICES))
    async with asyncio.timeout(5):
        while not api.requests:
            await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > 1 and any("_attempt" in repr(task) for task in asyncio.all_tasks()):
            await asyncio.sleep(0.001)


# --- 401 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def account(tmp_path):
    (tmp_path / "token").write_text("old")
    return tmp_path


async def test_a_refused_token_is_read_again_and_asked_with_once(tmp_path, account, connect):
    async with FakeApi(tls=tmp_path, tokens={"old": None}) as api:
        (tmp_path / "ca.crt").write_text((tmp_path / "localhost.crt").read_text())
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
        connection = connect(in_cluster(environ, str(account)))
        assert await status(connection) == 200
        api.tokens = {"new": None}
        api.requests.clear()
        assert await status(connection) == 401 and len(api.requests) == 1, "the token is the same"
        (account / "token").write_text("new")
        api.requests.clear()
        assert await status(connection) == 200 and len(api.requests) == 1, "the change was seen before"


async def test_credentials_that_are_gone_when_they_are_refused(api, connect):
    class Vanishing(Fixed):
        def rejected(self) -> None:
            self.access = self.fail

        async def fail(self) -> Access:
            raise ApiError("no token")

    api.tokens = {}
    with pytest.raises(ApiError, match="no token"):
        await status(connect(Vanishing(Access("127.0.0.1", api.port))))


async def test_a_token_that_changed_unseen_is_tried_at_once(connect):
    class Rotating:
        token = "old"

        async def access(self) -> Access:
            return Access("127.0.0.1", api.port, authorization=f"Bearer {self.token}")

        def rejected(self) -> None:
            self.token = "new"

    async with FakeApi(tokens={"new": None}) as api:
        connection = connect(Rotating())
        assert await status(connection) == 200 and len(api.requests) == 2


# --- TLS -------------------------------------------------------------------------------------------------------------


async def test_tls_and_a_rotated_ca(tmp_path, connect):
    async with FakeApi(tls=tmp_path) as api:
        connection = connect(endpoint(api.url, ca=api.ca_file))
        assert await status(connection) == 200
        await api.refuse()
        api.new_certificate()
        await api.accept()
        assert await status(connection) == 200, "the CA's file has changed with it"


async def test_a_ca_that_has_changed_ends_kept_connections(tmp_path, connect):
    async with FakeApi(tls=tmp_path) as api:
        connection = connect(endpoint(api.url, ca=api.ca_file))
        assert await status(connection) == 200
        make_certificate(tmp_path)
        with pytest.raises(ApiError, match="self-signed certificate"):
            await status(connection)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_server_that_is_another(tmp_path, host, connect):
    (tmp_path / "other").mkdir()
    async with FakeApi(tls=tmp_path) as api:
        other, _ = make_certificate(tmp_path / "other")
        connection = connect(endpoint(f"https://{host}:{api.port}", ca=str(other)))
        for _ in range(2):
            with pytest.raises(ApiError, match="self-signed certificate"):
                await status(connection)
        assert not api.requests


async def test_a_certificate_for_another_name(tmp_path, connect):
    async with FakeApi(tls=tmp_path) as api:
        right = await endpoint(api.url, ca=api.ca_file).access()

        named = Access("127.0.0.1", api.port, tls=right.tls, server_name="example.org")
        with pytest.raises(ApiError, match="Hostname mismatch"):
            await status(connect(Fixed(named)))


async def test_a_client_certificate(tmp_path, connect):
    (tmp_path / "client").mkdir()
    cert, key = make_certificate(tmp_path / "client", "client")
    api = FakeApi(tls=tmp_path)
    api.new_certificate(client_ca=str(cert))
    async with api:
        connection = connect(endpoint(api.url, str(cert), str(key), api.ca_file))
        assert await status(connection) == 200
        with pytest.raises(ApiError):
            await status(connect(endpoint(api.url, ca=api.ca_file)))


async def test_plain_http_where_tls_was_expected(connect):
    async def talk(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with Peer(talk) as peer:
        with pytest.raises(ApiError, match=r"WRONG_VERSION_NUMBER|RECORD_LAYER"):
            await status(connect(peer.url.replace("http:", "https:")))


# --- proxies ---------------------------------------------------------------------------------------------------------


class Proxy(Peer):
    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        super().__init__(self.tunnel)
        self.answer = answer
        self.heads: list[str] = []

    async def tunnel(self, reader, writer) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self.answer)
        host, _, port = self.heads[-1].split()[1].partition(":")
        other_reader, other_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(pipe(reader, other_writer), pipe(other_reader, writer))
        finally:
            other_writer.transport.abort()


async def pipe(reader, writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.transport.abort()


@pytest.mark.parametrize("secure", [True, False])
async def test_through_a_proxy(tmp_path, secure, connect):
    async with FakeApi(tls=tmp_path if secure else None) as api, Proxy() as proxy:
        access = await endpoint(api.url, ca=api.ca_file).access()
        connection = connect(Fixed(replace(access, proxy=f"http://me:p%40ss@127.0.0.1:{proxy.port}")))
        assert await status(connection) == 200 and await status(connection) == 200
        assert len(proxy.heads) == 1
        assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{api.port} HTTP/1.1\r\n")
        assert "Proxy-Authorization: Basic bWU6cEBzcw==" in proxy.heads[0]


async def test_a_proxy_that_refuses(api, connect):
    access = await endpoint(api.url).access()
    async with Proxy(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as proxy:
        with pytest.raises(ApiError, match=r"proxy 127\.0\.0\.1 says 403"):
            await status(connect(Fixed(replace(access, proxy=f"http://127.0.0.1:{proxy.port}"))))
    for odd in ("socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://"):
        with pytest.raises(ApiError, match="cannot use proxy"):
            await status(connect(Fixed(replace(access, proxy=odd))))


# --- limits of the operator ------------------------------------------------------------------------------------------


async def test_requests_a_second(api, connect):
    metrics = Metrics()
    connection = connect(api.url, metrics, qps=50, burst=2)
    started = time.monotonic()
    for _ in range(7):
        await status(connection)
    assert time.monotonic() - started >= 0.09
    text = metrics.expose().decode()
    assert "coredns_kubernetes_rest_client_rate_limiter_duration_seconds_count" in text


async def test_burst_has_a_default(api, connect):
    connection = connect(api.url, qps=0.001)
    async with asyncio.timeout(5):
        for _ in range(http.BURST):
            await status(connection)


async def test_requests_at_once(api, connect):
    connection = connect(api.url, max_inflight=2)
    api.fault(stall=True)
    asking = [asyncio.create_task(connection.get(SERVICES)) for _ in range(5)]
    async with asyncio.timeout(5):
        while len(api.requests) < 2:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    assert len(api.requests) == 2
    for one in asking:
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
