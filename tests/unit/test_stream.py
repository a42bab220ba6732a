"""TCP: pipelining, overtaking, and every way to be cut off."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator

import pytest

from kdns import limits
from kdns.handler import Handler, Routes
from kdns.listen import stream
from kdns.listen.stream import StreamListener, open_socket
from kdns.message import NOERROR, A, Query, Record, Reply
from kdns.name import ROOT, from_text
from kdns.packetcache import PacketCache
from kdns.plugin import Next, Process
from kdns.wire import pack_query


class Served:
    def __init__(self, chain: Next) -> None:
        self.process = Process()
        packets = PacketCache(100, 100_000, self.process.metrics)
        handler = Handler(self.process, packets, Routes({ROOT: chain}, False))
        self.sock = open_socket("127.0.0.1", 0)
        self.port = self.sock.getsockname()[1]
        self.listener = StreamListener(self.sock, handler, packets, "dns://:53", b"\0\0\0\1", self.process.metrics)

    def closed(self, reason: str) -> float:
        return float(self.listener.closed.cell("dns://:53", reason).value)


@contextlib.asynccontextmanager
async def serve(chain: Next) -> AsyncIterator[Served]:
    served = Served(chain)
    try:
        yield served
    finally:
        served.listener.close()
        await asyncio.sleep(0)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def ask(self, number: int, name: str = "a.example.") -> None:
        self.writer.write(framed(pack_query(number, 0x0100, from_text(name), A, 1, None)))

    async def reply(self) -> int:
        """ID of the next reply."""
        length = int.from_bytes(await asyncio.wait_for(self.reader.readexactly(2), 5), "big")
        return int.from_bytes((await self.reader.readexactly(length))[:2], "big")

    async def gone(self) -> bool:
        """Wait for the server to close the connection."""
        with contextlib.suppress(ConnectionError):
            while await asyncio.wait_for(self.reader.read(65536), 10):
                pass
        return True


@contextlib.asynccontextmanager
async def connect(served: Served) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(2, "big") + packet


async def quick(query: Query) -> Reply:
    return Reply(NOERROR, (Record(query.spelling, A, 30, b"\x0a\0\0\1"),))


async def test_queries_in_one_segment_and_in_single_octets() -> None:
    async with serve(quick) as served, connect(served) as client:
        for number in range(1000):
            client.ask(number)
        assert [await client.reply() for _ in range(1000)] == list(range(1000))
        for octet in framed(pack_query(7, 0, from_text("a."), A, 1, None)):
            client.writer.write(bytes([octet]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert await client.reply() == 7


async def test_answers_overtake_each_other() -> None:
    gate = asyncio.Event()

    async def chain(query: Query) -> Reply:
        if query.name.startswith(b"\4slow"):
            await gate.wait()
        return await quick(query)

    async with serve(chain) as served, connect(served) as client:
        client.ask(1, "slow.")
        client.ask(2)
        assert await client.reply() == 2
        gate.set()
        assert await client.reply() == 1


async def test_too_many_waiting_queries_stop_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_PIPELINE", 4)
    gate = asyncio.Event()
    most = 0

    async def chain(query: Query) -> Reply:
        nonlocal most
        most = max(most, served.listener.waiting)
        await gate.wait()
        return await quick(query)

    async with serve(chain) as served, connect(served) as client:
        for number in range(50):
            client.ask(number)
        while served.listener.waiting < 4:
            await asyncio.sleep(0.001)
        gate.set()
        assert sorted([await client.reply() for _ in range(50)]) == list(range(50))
        assert most <= 4


async def test_half_closed_clients_get_their_answers() -> None:
    async def chain(query: Query) -> Reply:
        await asyncio.sleep(0.01)
        return await quick(query)

    async with serve(chain) as served, connect(served) as client:
        for number in range(300):
            client.ask(number)
        client.writer.write_eof()
        assert sorted([await client.reply() for _ in range(300)]) == list(range(300))
        assert await client.gone()


async def test_idle_and_dripping_clients_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_IDLE", 0.2)
    monkeypatch.setattr(limits, "TCP_READ", 0.1)
    monkeypatch.setattr(stream, "_SWEEP", 0.02)
    async with serve(quick) as served, connect(served) as idle, connect(served) as dripping:
        dripping.writer.write(b"\0")
        assert await dripping.gone() and await idle.gone()
        assert served.closed("idle") >= 1 and served.closed("read") >= 1
        assert not served.listener.connections


async def test_clients_that_never_read_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_WRITE", 0.2)
    monkeypatch.setattr(stream, "_SWEEP", 0.02)
    big = Reply(NOERROR, tuple(Record(b"\0", 16, 0, b"\xff" + bytes(255)) for _ in range(200)))

    async def chain(query: Query) -> Reply:
        return big

    async with serve(chain) as served:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", served.port))
            asked = framed(pack_query(1, 0, from_text("a."), A, 1, None)) * 2000
            sending = asyncio.create_task(loop.sock_sendall(client, asked))
            while not served.closed("write"):
                connection = next(iter(served.listener.connections), None)
                if connection is not None and connection._transport is not None:
                    assert connection._transport.get_write_buffer_size() < 4 * limits.TCP_BACKLOG
                await asyncio.sleep(0.01)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending


async def test_the_longest_idle_connection_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_CONNECTIONS", 2)
    async with serve(quick) as served, connect(served) as first, connect(served) as second:
        first.ask(1)
        await first.reply()
        second.ask(2)
        await second.reply()
        first.ask(3)
        await first.reply()
        async with connect(served) as third:
            third.ask(4)
            assert await third.reply() == 4
            assert await second.gone()
            first.ask(5)
            assert await first.reply() == 5
        assert served.closed("limit") == 1


async def test_without_descriptors_accepting_rests_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_ACCEPT_PAUSE", 0.01)
    loop = asyncio.get_running_loop()
    accept, calls = loop.sock_accept, 0

    async def failing(sock: socket.socket) -> object:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(sock)

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with serve(quick) as served, connect(served) as client:
        client.ask(1)
        assert await client.reply() == 1
        assert calls <= 6


async def test_stopping_answers_what_waits_and_takes_no_more() -> None:
    gate = asyncio.Event()

    async def chain(query: Query) -> Reply:
        await gate.wait()
        return await quick(query)

    async with serve(chain) as served, connect(served) as client, connect(served) as idle:
        client.ask(1)
        while not served.listener.waiting:
            await asyncio.sleep(0.001)
        served.listener.stop_reading()
        assert await idle.gone()
        gate.set()
        assert await client.reply() == 1
        assert await client.gone()


async def test_empty_and_broken_messages_do_not_end_the_connection() -> None:
    async with serve(quick) as served, connect(served) as client:
        client.writer.write(b"\0\0" + framed(b"x") + framed(b"\0\1" + bytes(20)))
        client.ask(9)
        while await client.reply() != 9:
            pass


async def test_a_long_pipeline_gives_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_BATCH", 4)
    order: list[int] = []

    async def chain(query: Query) -> Reply:
        order.append(query.peer[1])
        return await quick(query)

    async with serve(chain) as served, connect(served) as greedy, connect(served) as modest:
        for number in range(200):
            greedy.ask(number)
        modest.ask(1)
        assert await modest.reply() == 1
        assert [await greedy.reply() for _ in range(200)] == list(range(200))
        assert order.index(modest.writer.get_extra_info("sockname")[1]) <= 3 * limits.TCP_BATCH


async def test_stopping_answers_all_that_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TCP_BATCH", 4)
    monkeypatch.setattr(limits, "TCP_PIPELINE", 8)
    gate = asyncio.Event()

    async def chain(query: Query) -> Reply:
        await gate.wait()
        return await quick(query)

    async with serve(chain) as served, connect(served) as client:
        queries = [framed(pack_query(number, 0, from_text("a."), A, 1, None)) for number in range(50)]
        client.writer.write(b"".join(queries))
        while served.listener.waiting < 8:
            await asyncio.sleep(0.001)
        served.listener.stop_reading()
        gate.set()
        assert sorted([await client.reply() for _ in range(50)]) == list(range(50))
        assert await client.gone()
