"""Accepting connections when it cannot be done."""

import asyncio
import contextlib
import errno
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from kdns import limits
from kdns.accept import Acceptor
from kdns.listen.stream import open_socket
from tests.certificates import make_certificate
from tests.fakeupstream import server_context
from tests.support import hang_up


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"hello")  # type: ignore[attr-defined]
        transport.close()


async def greeted(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        await hang_up(writer)


@contextlib.asynccontextmanager
async def accepting(tls: ssl.SSLContext | None = None, make: Any = lambda sock, peer: Greeter()) -> Any:
    sock = open_socket("127.0.0.1", 0)
    room: list[int] = []
    acceptor = Acceptor(sock, make, lambda: room.append(1), tls, 0.1)
    try:
        yield sock.getsockname()[1], room
    finally:
        acceptor.close()
        await asyncio.sleep(0)
        sock.close()


async def test_without_descriptors_it_makes_room_and_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_ACCEPT_PAUSE", 0.01)
    loop = asyncio.get_running_loop()
    accept, calls = loop.sock_accept, 0

    async def failing(sock: socket.socket) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise OSError(errno.EMFILE if calls < 3 else errno.ECONNABORTED, "")
        return await accept(sock)

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with accepting() as (port, room):
        assert await greeted(port) == b"hello"
        assert len(room) == 2 and calls <= 5


async def test_a_connection_that_is_gone_already_harms_no_other() -> None:
    first = True

    def make(sock: socket.socket, peer: Any) -> asyncio.Protocol:
        nonlocal first
        if first:
            first = False
            raise OSError(errno.ENOTCONN, "gone")
        return Greeter()

    async with accepting(make=make) as (port, _):
        assert await greeted(port) == b""
        assert await greeted(port) == b"hello"


async def test_handshakes_that_never_end_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_HANDSHAKES", 2)
    async with accepting(server_context(make_certificate(tmp_path))) as (port, _):
        # Each takes its place for a moment, and the next ones get theirs.
        assert await asyncio.gather(*(greeted(port) for _ in range(9))) == [b""] * 9
