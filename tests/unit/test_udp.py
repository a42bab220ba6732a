"""UDP: real sockets, batches, late answers, the address that was asked."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kdns import limits
from kdns.denial import Denial, make_existing
from kdns.handler import Handler, Routes, Waiting
from kdns.listen.udp import UdpListener, open_socket
from kdns.message import FOREVER, NOERROR, NXDOMAIN, A, Edns, Lease, Listener, Query, Record, Reply
from kdns.name import ROOT, from_text
from kdns.packetcache import packet_cache
from kdns.plugin import Next, Process
from kdns.wire import pack_query, parse_reply
from tests import support
from tests.support import TWINS, use_twin


@pytest.fixture(params=TWINS, autouse=True)
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_twin(request.param, monkeypatch)


class Served:
    """A listener on a free port, and a client."""

    def __init__(self, chain: Next, host: str = "127.0.0.1") -> None:
        self.process = Process()
        self.seen: list[Listener] = []
        self.packets = packet_cache(100, 100_000, self.process.metrics)
        self.handler = Handler(self.process, self.packets, Routes({ROOT: chain}, False))
        self.listen(host)

    def listen(self, host: str = "127.0.0.1") -> None:
        self.sock = open_socket(host, 0)
        self.listener = UdpListener(
            self.sock, self.handler, self.packets, "dns://:53", b"\0\0\0\1", self.process.metrics
        )
        self.port = self.sock.getsockname()[1]

    def client(self, host: str = "127.0.0.1", family: int = socket.AF_INET) -> socket.socket:
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.connect((host, self.port))
        client.setblocking(False)
        return client


async def echo_peer(query: Query) -> Reply:
    host, port = query.peer[0], query.peer[1]
    text = f"{host} {port} {query.listener.family} {query.listener.proto}".encode()
    return Reply(NOERROR, (Record(query.spelling, 16, 0, bytes([len(text)]) + text),))


def question(number: int = 1, name: str = "a.example.") -> bytes:
    return pack_query(number, 0x0100, from_text(name), A, 1, None)


async def receive(client: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 65535), 5)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served(echo_peer)
    yield served
    served.listener.close()


async def test_answers_and_says_who_asked(served: Served) -> None:
    with served.client() as client:
        client.send(question(5))
        reply = parse_reply(await receive(client))
        assert reply.id == 5
        assert reply.answer[0].rdata[1:].decode() == f"127.0.0.1 {client.getsockname()[1]} 1 udp"


async def test_more_than_a_batch_is_answered(served: Served) -> None:
    with served.client() as client:
        count = limits.UDP_BATCH * 3 + 1
        for number in range(count):
            client.send(question(number))
        assert sorted([parse_reply(await receive(client)).id for _ in range(count)]) == list(range(count))


async def test_garbage_is_survived(served: Served) -> None:
    with served.client() as client:
        for garbage in (b"", b"x", bytes(11), bytes(12), b"\xff" * 4096, b"\0" * 5000):
            client.send(garbage)
        client.send(question(9))
        while parse_reply_id(await receive(client)) != 9:
            pass


def parse_reply_id(packet: bytes) -> int:
    return int.from_bytes(packet[:2], "big")


async def test_wildcard_socket_answers_from_the_address_that_was_asked() -> None:
    served = Served(echo_peer, "0.0.0.0")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.bind(("127.0.0.1", 0))
            client.sendto(question(), ("127.0.0.53", served.port))
            _, source = await asyncio.wait_for(asyncio.get_running_loop().sock_recvfrom(client, 65535), 5)
            assert source == ("127.0.0.53", served.port)
    finally:
        served.listener.close()


async def test_ipv6() -> None:
    try:
        served = Served(echo_peer, "::")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    try:
        with served.client("::1", socket.AF_INET6) as client:
            client.send(question())
            assert parse_reply(await receive(client)).answer[0].rdata[1:].decode().startswith("::1 ")
    finally:
        served.listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_slow_answers_do_not_hold_up_fast_ones(host: str) -> None:
    gate = asyncio.Event()

    async def chain(query: Query) -> Reply:
        if query.name.startswith(b"\4slow"):
            await gate.wait()
        return await echo_peer(query)

    served = Served(chain, host)
    try:
        with served.client() as client:
            client.send(question(1, "slow.example."))
            client.send(question(2))
            assert parse_reply_id(await receive(client)) == 2
            assert served.listener.waiting == 1
            gate.set()
            assert parse_reply_id(await receive(client)) == 1
            await asyncio.sleep(0)
            assert served.listener.waiting == 0
    finally:
        served.listener.close()


async def test_what_the_socket_holds_is_answered_before_it_is_closed(served: Served) -> None:
    with served.client() as client:
        for number in range(200):
            client.send(question(number))
        served.listener.stop_reading()
        assert sorted([parse_reply_id(await receive(client)) for _ in range(200)]) == list(range(200))
        client.send(question(7))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), 0.05)


async def test_what_raises_costs_one_packet_of_a_batch() -> None:
    served = Served(echo_peer)
    good, seen = served.handler.handle, []

    def handle(packet: bytes, *rest: Any) -> bytes | Waiting | None:
        seen.append(packet)
        if parse_reply_id(packet) == 1:
            raise RuntimeError("broken")
        return good(packet, *rest)

    served.listener.close()
    served.handler.handle = handle  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, failure: failures.append(failure))
    served.listen()
    with served.client() as client:
        for number in range(4):
            client.send(question(number))
        replies = [await receive(client) for _ in range(3)]
        assert [(parse_reply_id(reply), reply[2] >> 7) for reply in replies] == [(0, 1), (2, 1), (3, 1)]
        assert len(seen) == 4 and len(failures) == 1
    served.listener.close()


async def test_what_has_expired_does_not_stand_in_front_of_a_denial() -> None:
    asked, until, existing = 0, 0.0, make_existing(1)

    async def chain(query: Query) -> Reply:
        nonlocal asked, until
        asked += 1
        if asked == 1:
            until = served.process.now() + 0.005
            return Reply(NOERROR, lease=Lease(until))
        return Reply(NXDOMAIN, lease=Lease(FOREVER, denial=Denial(from_text("example."), existing)))

    served = Served(chain)
    try:
        with served.client() as client:
            for rcode in (NOERROR, NXDOMAIN, NXDOMAIN, NXDOMAIN):
                client.send(question())
                assert parse_reply(await receive(client)).rcode == rcode
                while served.process.now() <= until:
                    await asyncio.sleep(0.001)
        assert asked == 2
    finally:
        served.listener.close()


@pytest.mark.parametrize("late", [False, True])
async def test_replies_that_cannot_be_sent_are_counted(late: bool) -> None:
    async def chain(query: Query) -> Reply:
        if late:
            await asyncio.sleep(0)
        return Reply(NOERROR, (Record(query.spelling, 16, 0, bytes(65_480)),), limit=65_535)

    # A UDP datagram holds 65,507 octets.
    served = Served(chain)
    name = "kdns_udp_unsent_total"
    try:
        with served.client() as client:
            client.send(pack_query(1, 0x0100, from_text("a.example."), A, 1, Edns(65_535, False)))
            while f'{name}{{server="dns://:53"}} 1.0' not in served.process.metrics.expose().decode():
                await asyncio.sleep(0.001)
    finally:
        served.listener.close()


@pytest.mark.parametrize(
    ("file", "name", "bound"),
    [
        ("udp.h", "KD_BATCH", limits.UDP_BATCH),
        ("udp.h", "KD_PACKET", limits.UDP_QUERY),
        ("threads.c", "LAST_BATCHES", limits.UDP_LAST_BATCHES),
    ],
)
def test_the_bounds_of_the_compiled_twin_are_those_of_limits(file: str, name: str, bound: int) -> None:
    found = re.search(rf"\b{name} = (\d+)", (support.ROOT / "kdns/native" / file).read_text())
    assert found and int(found[1]) == bound
