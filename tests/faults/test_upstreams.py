"""Upstreams that lie, fall silent, or are asked for too much."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import dns.message
import pytest

from kdns.message import Edns
from tests.fakeupstream import Asked, FakeUpstream, after, answer_all, by_name, odd_packets, silent
from tests.faults.tools import MIB, client, corefile, metrics, query, rcode, rss, total
from tests.support import Kdns, answers, ask, free_port

RIGHT = bytes((192, 0, 2, 1))
FORGED = "203.0.113.9"


class Served:
    def __init__(self, directory: Path, upstreams: list[FakeUpstream], more: str) -> None:
        self.upstreams = upstreams
        self.port, self.metrics = free_port(), free_port()
        addresses = " ".join(upstream.address for upstream in upstreams)
        self.conf = corefile(
            directory,
            f""".:{self.port} {{
    bind 127.0.0.1
    errors
    prometheus 127.0.0.1:{self.metrics}
    {more.replace("UPSTREAMS", addresses)}
}}
""",
        )


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


async def run(served: Served) -> Kdns:
    return await asyncio.to_thread(Kdns, served.conf)


async def test_odd_and_forged_replies_are_ignored_and_the_true_one_awaited(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    kinds = list(odd_packets(Asked(query("a.example."), ("", 0), "udp", lambda packet: None).address(FORGED)))

    async def lie_first(asked: Asked) -> None:
        kind = asked.name.split(".")[0].replace("-", " ")
        if asked.proto == "udp" and (found := [text for text in kinds if text.replace(",", "") == kind]):
            asked.send(odd_packets(asked.address(FORGED))[found[0]])
            await asyncio.sleep(0.05)
        asked.send(asked.address())

    upstream.script = lie_first
    served = Served(tmp_path, [upstream], "cache 30\n    forward . UPSTREAMS")
    with await run(served):
        async with client(served.port) as udp:
            names = [f"{kind.replace(' ', '-').replace(',', '')}.example." for kind in kinds]
            for _ in range(2):
                replies = await udp.many([query(name) for name in names])
                wrong = [name for name, reply in zip(names, replies, strict=True) if not reply or RIGHT not in reply]
                assert not wrong
        assert len(kinds) > 10 and len(upstream.names) == len(names)


async def test_a_storm_of_guessed_ids_from_the_right_address_is_survived(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async def storm(asked: Asked) -> None:
        if asked.proto == "udp":
            forged = asked.address(FORGED)
            for id in random.Random(asked.name).sample(range(65536), 300):
                if id != asked.message.id:
                    asked.send(id.to_bytes(2, "big") + forged[2:])
            await asyncio.sleep(0.1)
        asked.send(asked.address())

    upstream.script = storm
    served = Served(tmp_path, [upstream], "cache 30\n    forward . UPSTREAMS")
    with await run(served):
        async with client(served.port) as udp:
            replies = await udp.many([query(f"s{number}.example.") for number in range(40)], at_once=8)
        assert all(reply and RIGHT in reply for reply in replies)


async def test_replies_from_another_address_do_not_arrive(tmp_path: Path, upstream: FakeUpstream) -> None:
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.9", 0))

    async def from_elsewhere(asked: Asked) -> None:
        other.sendto(asked.address(FORGED), asked.peer)
        await asyncio.sleep(0.05)
        asked.send(asked.address())

    upstream.script = from_elsewhere
    served = Served(tmp_path, [upstream], "cache 30\n    forward . UPSTREAMS")
    with other, await run(served):
        async with client(served.port) as udp:
            replies = await udp.many([query(f"s{number}.example.") for number in range(20)])
        assert all(reply and RIGHT in reply for reply in replies)


async def test_records_outside_the_asked_chain_are_neither_passed_on_nor_cached(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async def hostile(asked: Asked) -> None:
        if asked.name == "evil.stub.":
            asked.send(
                asked.reply(
                    "evil.stub. 60 IN CNAME www.stub.",
                    "www.stub. 60 IN A 192.0.2.1",
                    f"victim.example. 60 IN A {FORGED}",
                    authority=("example. 60 IN NS ns.evil.stub.", "stub. 60 IN NS ns.stub."),
                    additional=("ns.stub. 60 IN A 192.0.2.3", f"victim.example. 60 IN A {FORGED}"),
                )
            )
        else:
            await answer_all(asked)

    upstream.script = hostile
    served = Served(tmp_path, [upstream], "cache 30\n    forward . UPSTREAMS")
    with await run(served):
        for _ in range(2):
            reply = await ask(served.port, "evil.stub.")
            assert b"victim" not in reply.to_wire() and socket.inet_aton(FORGED) not in reply.to_wire()
            assert [line.split()[0] for line in answers(reply)] == ["evil.stub.", "www.stub."]
        assert RIGHT in (await ask(served.port, "victim.example.")).to_wire()
        assert upstream.count("victim.example.") == 1


async def test_a_thousand_askers_of_one_name_make_one_question(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.script = after(0.3)
    served = Served(tmp_path, [upstream], "cache 30\n    forward . UPSTREAMS")
    with await run(served):
        async with client(served.port) as udp:
            replies = await udp.many([query("popular.example.")] * 1000, at_once=900)
        assert all(reply and RIGHT in reply for reply in replies)
        # A second one, when a busy machine keeps the answer to the first for half a second.
        assert upstream.count("popular.example.") <= 2


async def test_one_dead_zone_takes_nothing_from_the_others(tmp_path: Path, upstream: FakeUpstream) -> None:
    """Water torture below a dead zone with ``max_concurrent``: no other forwarded name is refused or lost."""
    upstream.script = by_name({"dead.example.": silent})
    served = Served(tmp_path, [upstream], "forward . UPSTREAMS {\n        max_concurrent 1000\n    }")
    with await run(served) as kdns:
        before = rss(kdns)
        tortured = 0
        ended = False

        async def torture() -> None:
            nonlocal tortured
            clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(20)]
            for number, sock in enumerate(clients):
                sock.bind((f"127.0.1.{number + 1}", 0))
            while not ended:
                for _ in range(20):
                    tortured += 1
                    packet = query(f"x{tortured}.dead.example.", tortured & 0xFFFF)
                    clients[tortured % 20].sendto(packet, ("127.0.0.1", served.port))
                await asyncio.sleep(0.01)
            for sock in clients:
                sock.close()

        task = asyncio.create_task(torture())
        async with client(served.port) as udp:
            await asyncio.sleep(1.0)
            good = [query(f"g{number}.example.") for number in range(600)]
            replies = await udp.many(good, at_once=4)
        while tortured < 4000:
            await asyncio.sleep(0.05)
        ended = True
        await task
        grown = rss(kdns) - before
        rcodes = [reply and rcode(reply) for reply in replies]
        assert rcodes == [0] * 600, (rcodes.count(5), rcodes.count(2), rcodes.count(None))
        assert grown < 64 * MIB, grown / MIB
        assert total(await metrics(served.metrics), "coredns_forward_max_concurrent_rejects_total") > 0


async def test_a_silent_upstream_is_shunned_within_a_second(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with FakeUpstream() as second, FakeUpstream() as third:
        served = Served(tmp_path, [upstream, second, third], "forward . UPSTREAMS")
        with await run(served):
            async with client(served.port) as udp:
                await udp.many([query(f"w{number}.example.") for number in range(100)])
                second.script = silent
                began = time.monotonic()
                number = 0
                while time.monotonic() - began < 1.2:
                    number += 20
                    replies = await udp.many([query(f"s{number + n}.example.") for n in range(20)], at_once=5)
                    assert all(reply and not rcode(reply) for reply in replies)
                asked_before = second.names.total()
                replies = await udp.many([query(f"t{n}.example.") for n in range(400)], at_once=8)
                assert all(reply and not rcode(reply) for reply in replies)
                # A sample now and then is how it may come back.
                assert second.names.total() - asked_before < 40


async def test_absurd_ttls(tmp_path: Path, upstream: FakeUpstream) -> None:
    ttls = {"zero": 0, "most": 2**31 - 1, "beyond": 2**31, "all": 2**32 - 1}

    async def play(asked: Asked) -> None:
        packet = bytearray(asked.address(ttl=77))
        at = packet.find((77).to_bytes(4, "big"))
        packet[at : at + 4] = ttls[asked.name.split(".")[0]].to_bytes(4, "big")
        asked.send(bytes(packet))

    upstream.script = play
    served = Served(tmp_path, [upstream], "cache 3600\n    forward . UPSTREAMS")
    with await run(served):
        for label, ttl in ttls.items():
            for _ in range(2):
                reply = await ask(served.port, f"{label}.example.")
                # RFC 2181 section 8: what is negative as a signed number counts as 0; the cache's least is 5.
                assert reply.answer[0].ttl in ((3599, 3600) if ttl == 2**31 - 1 else (0, 4, 5)), (label, reply)


async def test_stale_answers(tmp_path: Path, upstream: FakeUpstream) -> None:
    async def short(asked: Asked) -> None:
        asked.send(asked.address(ttl=1))

    async def changed(asked: Asked) -> None:
        asked.send(asked.address("192.0.2.2"))

    upstream.script = short
    cache = "cache 30 {\n        success 1000 30 1\n        serve_stale 1h verify 200ms\n    }"
    served = Served(tmp_path, [upstream], f"{cache}\n    forward . UPSTREAMS")
    with await run(served):
        names = [f"n{number}.example." for number in range(40)]
        async with client(served.port) as udp:
            assert None not in await udp.many([query(name) for name in names])
            upstream.script = silent
            await asyncio.sleep(1.2)
            replies = await udp.many([query(name, edns=Edns(1232, False)) for name in names])
            for reply in replies:
                assert reply and RIGHT in reply
                message = dns.message.from_wire(reply)
                assert message.answer[0].ttl <= 30
            never = await udp.ask(query("never.example."))
            assert rcode(never) == 2
            upstream.script = changed
            async with asyncio.timeout(10):
                while bytes((192, 0, 2, 2)) not in await udp.ask(query(names[0])):
                    await asyncio.sleep(0.05)
