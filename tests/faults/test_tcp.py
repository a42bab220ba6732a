"""DNS over TCP: overtaking, pipelines, and clients that are slow, silent or greedy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kdns.message import SRV
from tests.fakeupstream import FakeUpstream, after, answer_all, by_name
from tests.faults.tools import (
    MIB,
    WEB,
    WEB_ADDRESS,
    big_service,
    corefile,
    descriptors,
    framed,
    pulse,
    query,
    rss,
    until,
    write_world,
)
from tests.support import Kdns, free_port, hang_up


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        fake.script = by_name({"slow.example.": after(1.0)}, answer_all)
        yield fake


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[tuple[Kdns, int]]:
    port = free_port()
    write_world(tmp_path / "world", *big_service("big", 1000))
    conf = corefile(
        tmp_path,
        f""".:{port} {{
    bind 127.0.0.1
    errors
    kubernetes cluster.local {{
        manifests {tmp_path}/world
    }}
    forward . {upstream.address}
}}
""",
    )
    with Kdns(conf) as kdns:
        yield kdns, port
        assert kdns.stop() == 0
        assert "Traceback" not in kdns.output and "xception" not in kdns.output, kdns.output


async def read_reply(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!H", await asyncio.wait_for(reader.readexactly(2), 10))
    return await reader.readexactly(length)


async def test_answers_overtake_each_other(served: tuple[Kdns, int]) -> None:
    _, port = served
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    slow = [framed(query(f"{number}.slow.example.", number)) for number in range(10)]
    fast = [framed(query(WEB, 100 + number)) for number in range(50)]
    writer.write(b"".join(slow + fast))
    first = [await read_reply(reader) for _ in fast]
    assert [reply[1] for reply in first] == list(range(100, 150))
    assert all(WEB_ADDRESS in reply for reply in first)
    rest = [await read_reply(reader) for _ in slow]
    assert sorted(reply[1] for reply in rest) == list(range(10))
    await hang_up(writer)


async def test_a_thousand_pipelined_are_all_answered_and_hold_up_nobody(served: tuple[Kdns, int]) -> None:
    _, port = served
    names = [WEB, "nobody.default.svc.cluster.local.", "www.example.", WEB]
    packets = b"".join(framed(query(names[number % 4], number)) for number in range(1000))
    async with pulse(port, every=0.001) as beat:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(packets)
        ids = {int.from_bytes((await read_reply(reader))[:2], "big") for _ in range(1000)}
        await hang_up(writer)
    assert ids == set(range(1000))
    assert beat.fine, vars(beat)


async def test_one_client_with_a_long_pipeline_does_not_stop_the_clocks_of_others(served: tuple[Kdns, int]) -> None:
    """20,000 first-time names in one go are half a second of work: others get their turns in between."""
    _, port = served
    packets = b"".join(framed(query(f"x{number}.{WEB}", number)) for number in range(20_000))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)

    async def read_all() -> int:
        count = 0
        buffer = b""
        while count < 20_000:
            buffer += await reader.read(16384)
            while len(buffer) >= 2 and len(buffer) >= (end := 2 + int.from_bytes(buffer[:2], "big")):
                buffer = buffer[end:]
                count += 1
        return count

    async with pulse(port, every=0.001) as beat:
        reading = asyncio.create_task(read_all())
        began = time.monotonic()
        writer.write(packets)
        assert await asyncio.wait_for(reading, 60) == 20_000
        took = time.monotonic() - began
        await hang_up(writer)
    # However fast the machine is: nobody waited for more than a part of it.
    assert beat.fine and beat.slowest < took / 4, (took, vars(beat))


async def test_clients_that_never_read_are_cut_off(served: tuple[Kdns, int]) -> None:
    kdns, port = served
    asked = framed(query("big.default.svc.cluster.local.", 1, SRV)) * 2000
    before, open_before = rss(kdns), descriptors(kdns)
    socks = []
    loop = asyncio.get_running_loop()
    sending = []
    for _ in range(80):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        socks.append(sock)
        sending.append(asyncio.create_task(loop.sock_sendall(sock, asked)))
    most = 0
    async with pulse(port) as beat:
        await until(lambda: descriptors(kdns) >= open_before + len(socks))
        async with asyncio.timeout(25):
            while descriptors(kdns) > open_before + 1:
                most = max(most, rss(kdns))
                await asyncio.sleep(0.05)
    for task in sending:
        task.cancel()
    with contextlib.suppress(ConnectionError):
        await asyncio.gather(*sending, return_exceptions=True)
    for sock in socks:
        sock.close()
    assert beat.fine, vars(beat)
    assert most - before < 80 * MIB, (most - before) / MIB


async def test_slow_half_and_idle_connections_are_closed(served: tuple[Kdns, int]) -> None:
    """500 drip an octet a second, 300 have sent half a query, 300 nothing: all are gone when their time is up."""
    kdns, port = served
    before, open_before = rss(kdns), descriptors(kdns)
    packet = framed(query(WEB))
    closed = 0

    async def open_one(first: bytes, drip: bool) -> None:
        nonlocal closed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ended = asyncio.create_task(reader.read())
        at = 1
        with contextlib.suppress(ConnectionError):
            writer.write(first)
            while drip and not ended.done():
                writer.write(packet[at : at + 1])
                at += 1
                await asyncio.wait([ended], timeout=1.0)
            await ended
        closed += 1
        await hang_up(writer)

    async with pulse(port) as beat:
        clients = [asyncio.create_task(open_one(packet[:1], True)) for _ in range(500)]
        clients += [asyncio.create_task(open_one(packet[:20], False)) for _ in range(300)]
        clients += [asyncio.create_task(open_one(b"", False)) for _ in range(300)]
        await until(lambda: descriptors(kdns) > open_before + 1000)
        most = rss(kdns)
        await asyncio.wait_for(asyncio.gather(*clients), 25)
    await until(lambda: descriptors(kdns) <= open_before + 1)
    assert closed == 1100
    assert beat.fine, vars(beat)
    assert most - before < 1100 * 16 * 1024, (most - before) / 1100
