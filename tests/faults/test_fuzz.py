"""Mutated packets over real sockets: no exception, no hang, flat memory, and good questions are answered all the while.

``KDNS_FUZZ_PACKETS`` says how many (default: some seconds' worth), ``KDNS_FUZZ_SEED`` where the dice begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdns.message import AAAA, PTR, SRV, TXT, A, Edns
from tests.faults.tools import (
    MIB,
    WEB,
    WEB_ADDRESS,
    big_service,
    client,
    corefile,
    framed,
    metrics,
    pulse,
    query,
    rss,
    total,
    write_world,
)
from tests.support import Kdns, free_port, hang_up

PACKETS = int(os.environ.get("KDNS_FUZZ_PACKETS", "16000"))
SEED = int(os.environ.get("KDNS_FUZZ_SEED", "20261121"))
SEEDS = [
    query(name, 7, type, edns)
    for name, type in {
        WEB: A,
        "wEb.dEfault.svc.CLUSTER.local.": A,
        "_http._tcp.big.default.svc.cluster.local.": SRV,
        "5.0.96.10.in-addr.arpa.": PTR,
        "nobody.default.svc.cluster.local.": AAAA,
        "www.example.": A,
        "zone.test.": TXT,
        "old.test.": A,
        "a.templated.": A,
        "dns-version.cluster.local.": TXT,
    }.items()
    for edns in (None, Edns(1232, True), Edns(65535, False, ((10, b"12345678"), (8, b"\0\1\x18\0\xc0\0\2"))))
]


def mutated(dice: random.Random) -> bytes:
    """A query with some octets changed, added or taken away; sometimes nothing but noise."""
    kind = dice.random()
    if kind < 0.02:
        return dice.randbytes(dice.randint(0, 300))
    packet = bytearray(dice.choice(SEEDS))
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        at = dice.randrange(len(packet)) if packet else 0
        match dice.randrange(6):
            case 0:
                packet[at : at + 1] = bytes((dice.randrange(256),))
            case 1:
                packet[at : at + 1] = bytes((packet[at] ^ 1 << dice.randrange(8),)) if packet else b""
            case 2:
                packet[at:at] = dice.randbytes(dice.choice((1, 2, 11, 60)))
            case 3:
                del packet[at : at + dice.choice((1, 2, 4, 20))]
            case 4:
                packet[4 + 2 * dice.randrange(4) :][:2] = b""
                packet[4:12] = dice.choice(
                    (packet[4:12], bytes((0, dice.randrange(3), 0, 0, 0, 0, 0, dice.randrange(4))))
                )
            case 5:
                packet += dice.choice(SEEDS)[12:]
    return bytes(packet)


def conf_of(directory: Path, port: int, metrics_port: int, upstream: str) -> Path:
    write_world(directory / "world", *big_service("big", 40))
    (directory / "test.zone").write_text(
        "$ORIGIN test.\n$TTL 60\n@ IN SOA ns. host. 1 2 3 4 5\n"
        'zone IN TXT "text"\nold IN CNAME zone\n* IN A 192.0.2.9\n'
    )
    (directory / "hosts").write_text("192.0.2.7 fixed.test.hosts\n")
    return corefile(
        directory,
        f""".:{port} {{
    bind 127.0.0.1
    errors
    log
    prometheus 127.0.0.1:{metrics_port}
    rewrite stop name regex (.*)\\.old\\.test {{1}}.test answer auto
    hosts {directory}/hosts {{
        fallthrough
    }}
    cache 30
    loadbalance
    template IN A templated {{
        match (?P<label>[a-z]+)\\.templated
        answer "{{{{ .Name }}}} 60 IN A 192.0.2.8"
        fallthrough
    }}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        manifests {directory}/world
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }}
    file {directory}/test.zone test
    forward . {upstream}
}}
""",
    )


async def over_udp(port: int, packets: Iterator[bytes], count: int) -> None:
    """Send them from many sockets; a good question behind every 64 tells when the server has read so far."""
    async with client(port) as good:
        socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(16)]
        for sock in socks:
            sock.setblocking(False)
            sock.connect(("127.0.0.1", port))
        for number in range(count):
            with contextlib.suppress(BlockingIOError, ConnectionError):
                socks[number % 16].send(next(packets))
            if number % 64 == 63:
                assert WEB_ADDRESS in await good.ask(query(WEB), 20)
                for sock in socks:
                    with contextlib.suppress(BlockingIOError, ConnectionError):
                        while True:
                            sock.recv(65535)
        for sock in socks:
            sock.close()


class Nowhere(asyncio.DatagramProtocol):
    """An upstream to which no name exists."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        self._transport.sendto(no_such_name(data), peer)


def no_such_name(packet: bytes) -> bytes:
    return packet[:2] + bytes((packet[2] | 0x80, 0x83)) + packet[4:]


async def nowhere_over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            length = int.from_bytes(await reader.readexactly(2), "big")
            writer.write(framed(no_such_name(await reader.readexactly(length))))
    await hang_up(writer)


async def over_tcp(port: int, packets: Iterator[bytes], count: int, dice: random.Random) -> None:
    """Send them in frames of a hundred a connection; the last one of some connections lies about its length."""
    while count > 0:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        drain = asyncio.create_task(reader.read(-1))
        sent: list[bytes] = []
        with contextlib.suppress(ConnectionError):
            for _ in range(min(count, 100)):
                sent.append(next(packets))
                writer.write(framed(sent[-1]))
            if dice.random() < 0.3:
                writer.write(dice.randbytes(dice.randint(1, 50)))
            count -= 100
            await writer.drain()
            writer.write_eof()
            ended, _ = await asyncio.wait([drain], timeout=20)
            assert ended, (count, sent)
        drain.cancel()
        writer.transport.abort()
        await asyncio.gather(drain, return_exceptions=True)


async def rounds(port: int, packets: Iterator[bytes], count: int, dice: random.Random) -> None:
    await asyncio.gather(over_udp(port, packets, count * 3 // 4), over_tcp(port, packets, count // 4, dice))


@pytest.mark.timeout(60 + PACKETS / 500)
async def test_mutated_packets(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    packets = iter(lambda: mutated(dice), None)
    port, metrics_port = free_port(), free_port()
    loop = asyncio.get_running_loop()
    upstream, _ = await loop.create_datagram_endpoint(Nowhere, ("127.0.0.1", 0))
    _, upstream_port = upstream.get_extra_info("sockname")
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(nowhere_over_tcp(reader, writer)))

    upstream_tcp = await asyncio.start_server(connected, "127.0.0.1", upstream_port)
    address = f"127.0.0.1:{upstream_port}"
    kdns = await asyncio.to_thread(Kdns, conf_of(tmp_path, port, metrics_port, address))
    with kdns:
        reading = True

        async def read_log() -> None:
            while reading:
                kdns.read()
                if "Traceback" not in kdns.output and "panic" not in kdns.output:
                    kdns.output = kdns.output[-4096:]
                await asyncio.sleep(0.02)

        reader = asyncio.create_task(read_log())
        # Caches fill up in the first part; what comes after it may take nothing more.
        async with pulse(port, seconds=20) as beat:
            await rounds(port, packets, PACKETS // 2, dice)
            middle = rss(kdns)
            await rounds(port, packets, PACKETS // 2, dice)
            end = rss(kdns)
        samples = await metrics(metrics_port)
        reading = False
        await reader
        assert total(samples, "coredns_panics_total") == 0
        assert kdns.stop() == 0
        assert "Traceback" not in kdns.output and "panic" not in kdns.output, kdns.output
    upstream.close()
    upstream_tcp.close()
    await asyncio.gather(*connections)
    print(f"{PACKETS} packets: {middle / MIB:.1f} MiB, then {end / MIB:.1f}; good ones {vars(beat)}")
    assert not beat.lost and not beat.wrong, vars(beat)
    assert end < middle * 1.05 + MIB, (middle / MIB, end / MIB)
