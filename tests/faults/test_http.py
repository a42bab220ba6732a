"""The HTTP ports under garbage, slow clients and floods: DNS goes on, probes get through, memory stays."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.tools import MIB, client, corefile, metrics, pulse, query, rss, until, write_world
from tests.support import Kdns, free_port, hang_up, http_get


class Ports:
    def __init__(self) -> None:
        self.dns, self.health, self.ready, self.metrics = (free_port() for _ in range(4))


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Kdns, Ports]]:
    ports = Ports()
    write_world(tmp_path / "world")
    conf = corefile(
        tmp_path,
        f"""cluster.local:{ports.dns} {{
    bind 127.0.0.1
    errors
    health 127.0.0.1:{ports.health}
    ready 127.0.0.1:{ports.ready}
    prometheus 127.0.0.1:{ports.metrics}
    kubernetes {{
        manifests {tmp_path}/world
    }}
}}
""",
    )
    with Kdns(conf) as kdns:
        await until(lambda: "kdns-" in kdns.read())
        yield kdns, ports
        assert kdns.stop() == 0
        assert "Traceback" not in kdns.output and "exception" not in kdns.output


async def swallow(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


async def test_garbage_and_slow_requests_harm_nobody(served: tuple[Kdns, Ports]) -> None:
    _, ports = served
    dice = random.Random(7)
    writers = []
    async with pulse(ports.dns) as beat:
        for port in (ports.health, ports.ready, ports.metrics):
            for number in range(150):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                kinds = (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-A: ", dice.randbytes(3000), b"\x16\x03\1")
                writer.write(kinds[number % 3])
                writers.append(writer)
        # All places are taken by those who say nothing sensible: a probe still gets through.
        for port, path in ((ports.health, "/health"), (ports.ready, "/ready"), (ports.metrics, "/metrics")):
            assert (await http_get(port, path))[0] == 200
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
    assert beat.fine, vars(beat)


async def test_requests_one_after_the_other_without_reading_take_no_memory(served: tuple[Kdns, Ports]) -> None:
    kdns, ports = served
    await metrics(ports.metrics)
    before = rss(kdns)
    flood = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    async with pulse(ports.dns) as beat:
        connections = [await asyncio.open_connection("127.0.0.1", ports.metrics, limit=4096) for _ in range(4)]
        for _, writer in connections:
            writer.write(flood)
        await asyncio.sleep(1.0)
        assert (await http_get(ports.health, "/health"))[0] == 200
        grown = rss(kdns) - before
        for _, writer in connections:
            writer.transport.abort()
            await hang_up(writer)
    assert beat.fine, vars(beat)
    assert grown < 16 * MIB, grown


async def test_fifty_busy_scrapers_leave_dns_its_time(served: tuple[Kdns, Ports]) -> None:
    _, ports = served
    ended = False
    scrapes = 0

    async def scrape() -> None:
        nonlocal scrapes
        while not ended:
            reader, writer = await asyncio.open_connection("127.0.0.1", ports.metrics)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                scrapes += (await reader.read(12)).startswith(b"HTTP/1.1 200")
            await swallow(reader)
            await hang_up(writer)

    scrapers = [asyncio.create_task(scrape()) for _ in range(50)]
    async with pulse(ports.dns, every=0.001) as beat, client(ports.dns) as udp:
        replies = await udp.many([query(f"x{number}.default.svc.cluster.local.") for number in range(2000)])
        assert (await http_get(ports.health, "/health"))[0] == 200
        await until(lambda: scrapes > 5, 30)
        ended = True
        await asyncio.gather(*scrapers)
    assert None not in replies and beat.fine, vars(beat)
