"""No UDP answer is longer than 1,232 octets, whatever the asker says, unless ``bufsize`` says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import dns.flags
import dns.message
import pytest

from kdns.message import SRV, TXT, Edns
from tests.fakeupstream import Asked, FakeUpstream
from tests.faults.test_tcp import read_reply
from tests.faults.tools import big_service, client, corefile, framed, query, write_world
from tests.support import Kdns, free_port, hang_up

BIG = {
    "big.default.svc.cluster.local.": (1, 300),
    "_http._tcp.big.default.svc.cluster.local.": (SRV, 300),
    "forwarded.example.": (1, 300),
    "zone.test.": (TXT, 100),
}
"""Names with much to say: type and how many records."""


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async def big(asked: Asked) -> None:
        records = [f"forwarded.example. 60 IN A 10.{number >> 8}.{number & 255}.1" for number in range(300)]
        asked.send(asked.reply(*records))

    async with FakeUpstream() as fake:
        fake.script = big
        yield fake


async def serve(directory: Path, upstream: FakeUpstream, more: str = "") -> tuple[Kdns, int]:
    port = free_port()
    write_world(directory / "world", *big_service("big", 300))
    records = "".join(f'@ IN TXT "{number:03} {"x" * 60}"\n' for number in range(100))
    (directory / "test.zone").write_text(
        f"$ORIGIN test.\n$TTL 60\n@ IN SOA ns. host. 1 2 3 4 5\n$ORIGIN zone.test.\n{records}"
    )
    conf = corefile(
        directory,
        f""".:{port} {{
    bind 127.0.0.1
    errors
    {more}
    cache 30
    kubernetes cluster.local {{
        manifests {directory}/world
    }}
    file {directory}/test.zone test
    forward . {upstream.address}
}}
""",
    )
    return await asyncio.to_thread(Kdns, conf), port


async def longest(port: int, name: str, size: int) -> int:
    """Octets of the longest answer over UDP; the one over TCP must be whole."""
    type, count = BIG[name]
    edns = Edns(size, False) if size else None
    most = 0
    async with client(port) as udp:
        for _ in range(3):
            # From the chain, the cache and the packet cache.
            reply = await udp.ask(query(name, 0, type, edns))
            message = dns.message.from_wire(reply)
            whole = sum(map(len, message.answer)) == count
            assert whole or message.flags & dns.flags.TC
            assert (message.edns >= 0) == (edns is not None)
            most = max(most, len(reply))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(framed(query(name, 0, type, edns)))
    message = dns.message.from_wire(await read_reply(reader))
    await hang_up(writer)
    assert sum(map(len, message.answer)) == count and not message.flags & dns.flags.TC
    return most


async def test_no_answer_is_longer_than_1232_octets(tmp_path: Path, upstream: FakeUpstream) -> None:
    kdns, port = await serve(tmp_path, upstream)
    with kdns:
        for name in BIG:
            for size, bound in {0: 512, 512: 512, 700: 700, 1232: 1232, 4096: 1232, 65535: 1232}.items():
                assert bound - 100 < await longest(port, name, size) <= bound, (name, size)


async def test_bufsize_says_otherwise(tmp_path: Path, upstream: FakeUpstream) -> None:
    kdns, port = await serve(tmp_path, upstream, "bufsize 2000")
    with kdns:
        for name in BIG:
            for size, bound in {0: 512, 1000: 1000, 65535: 2000}.items():
                assert bound - 200 < await longest(port, name, size) <= bound, (name, size)
