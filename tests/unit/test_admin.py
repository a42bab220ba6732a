"""The HTTP face: paths, methods, bounds, bad requests."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from kdns import limits
from kdns.admin import HttpListener
from kdns.listen.stream import open_socket
from tests.support import captured_log, hang_up


class Served:
    def __init__(self) -> None:
        sock = open_socket("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self.listener = HttpListener(
            [sock], {"/health": lambda target: (200, "text/plain", b"OK"), "/bug": self.bug, "/see": self.see}, None
        )

    def bug(self, target: str) -> tuple[int, str, bytes]:
        raise RuntimeError("a bug")

    def see(self, target: str) -> tuple[int, str, bytes]:
        return 503, "text/plain", target.encode()

    async def send(self, request: bytes) -> bytes:
        """Everything that comes back until the server closes, or for a moment when it does not."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        out = b""
        try:
            writer.write(request)
            with contextlib.suppress(TimeoutError, ConnectionError):
                while data := await asyncio.wait_for(reader.read(65536), 0.3):
                    out += data
        finally:
            await hang_up(writer)
        return out


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    served.listener.start()
    yield served
    served.listener.close()
    await asyncio.sleep(0)


def get(path: str, method: str = "GET", more: str = "Connection: close\r\n") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


async def test_paths_methods_and_queries(served: Served) -> None:
    reply = await served.send(get("/health"))
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n") and reply.endswith(b"\r\n\r\nOK")
    reply = await served.send(get("/health", "HEAD"))
    assert reply.startswith(b"HTTP/1.1 200 ") and b"content-length: 2\r\n" in reply and reply.endswith(b"\r\n\r\n")
    assert (await served.send(get("/health", "POST"))).startswith(b"HTTP/1.1 405 ")
    assert (await served.send(get("/"))).startswith(b"HTTP/1.1 404 ")
    reply = await served.send(get("/see?a=b"))
    assert reply.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and reply.endswith(b"/see?a=b")


async def test_one_connection_serves_many_requests(served: Served) -> None:
    reply = await served.send(get("/health", more="") * 3 + get("/health"))
    assert reply.count(b"HTTP/1.1 200 ") == 4


async def test_a_client_that_never_reads_gets_no_more_answers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_TIMEOUT", 0.3)
    asked = 0

    def big(target: str) -> tuple[int, str, bytes]:
        nonlocal asked
        asked += 1
        return 200, "text/plain", bytes(2**20)

    served.listener.paths = {"/big": big}
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.sendall(get("/big", more="") * 100)
        while not served.listener.connections:
            await asyncio.sleep(0.001)
        while served.listener.connections:
            await asyncio.sleep(0.01)
    assert asked < 20


async def test_answers_are_made_with_rests_between_them(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_REST", 4.0)

    def slow(target: str) -> tuple[int, str, bytes]:
        time.sleep(0.01)
        return 200, "text/plain", b"OK"

    served.listener.paths = {"/slow": slow}
    began = time.monotonic()
    replies = await asyncio.gather(*(served.send(get("/slow")) for _ in range(4)))
    assert all(reply.endswith(b"OK") for reply in replies)
    assert time.monotonic() - began >= 3 * 0.045


async def test_a_client_that_asks_no_more_gets_its_answer(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(get("/health", more=""))
    writer.write_eof()
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"OK")
    await hang_up(writer)


async def test_http_1_0_is_closed_after_its_answer(served: Served) -> None:
    reply = await served.send(b"GET /health HTTP/1.0\r\n\r\n")
    assert b" 200 " in reply and reply.endswith(b"OK")


async def test_a_bug_costs_one_page(served: Served) -> None:
    with captured_log() as log:
        assert (await served.send(get("/bug"))).startswith(b"HTTP/1.1 500 ")
    assert log.matching("HTTP /bug: RuntimeError('a bug')")
    assert (await served.send(get("/health"))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x16\x03\x01\0garbage\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * (limits.HTTP_HEAD * 4)],
)
async def test_bad_requests_are_refused(served: Served, request_bytes: bytes) -> None:
    reply = await served.send(request_bytes)
    assert reply.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ", b"HTTP/1.1 404 "))
    assert (await served.send(get("/health"))).startswith(b"HTTP/1.1 200 ")


async def test_slow_clients_are_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /hea")
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    await hang_up(writer)
    assert not served.listener.connections


async def test_connections_are_bounded_and_probes_get_through(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_CONNECTIONS", 2)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            await asyncio.sleep(0.01)
        assert len(served.listener.connections) == 2
        assert (await served.send(get("/health"))).startswith(b"HTTP/1.1 200 ")
    while served.listener.connections:
        await asyncio.sleep(0.001)
    assert (await served.send(get("/health"))).startswith(b"HTTP/1.1 200 ")
