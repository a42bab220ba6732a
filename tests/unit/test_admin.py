"""The HTTP face: paths, methods, bounds, bad requests."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from kdns import limits
from kdns.admin import HttpListener
from kdns.listen.stream import open_socket
from tests.support import captured_log


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
            writer.close()
        return out


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.listener.start()
    yield served
    served.listener.close()
    await asyncio.sleep(0)


def get(path: str, method: str = "GET", more: str = "Connection: close\r\n") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


async def test_paths_methods_and_queries(served: Served) -> None:
    reply = await served.send(get("/health"))
    assert reply.startswith(b"HTTP/1.1 200 ") and reply.endswith(b"\r\n\r\nOK")
    reply = await served.send(get("/health", "HEAD"))
    assert reply.startswith(b"HTTP/1.1 200 ") and b"content-length: 2\r\n" in reply and reply.endswith(b"\r\n\r\n")
    assert (await served.send(get("/health", "POST"))).startswith(b"HTTP/1.1 405 ")
    assert (await served.send(get("/"))).startswith(b"HTTP/1.1 404 ")
    reply = await served.send(get("/see?a=b"))
    assert reply.startswith(b"HTTP/1.1 503 ") and reply.endswith(b"/see?a=b")


async def test_one_connection_serves_many_requests(served: Served) -> None:
    reply = await served.send(get("/health", more="") * 3 + get("/health"))
    assert reply.count(b"HTTP/1.1 200 ") == 4


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
    writer.close()
    assert not served.listener.connections


async def test_connections_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_CONNECTIONS", 2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
        while len(served.listener.connections) < 2:
            await asyncio.sleep(0.001)
        assert await served.send(get("/health")) == b""
    while served.listener.connections:
        await asyncio.sleep(0.001)
    assert (await served.send(get("/health"))).startswith(b"HTTP/1.1 200 ")
