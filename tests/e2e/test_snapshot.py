"""Warm starts: a real kdns with a snapshot and no API server, and what becomes of it when the API server comes.

kdns runs in a process of its own, the API server is a fake in this one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode
import pytest_asyncio
from dns.edns import EDEOption

from tests.fakeapi import FakeApi, endpointslice, service
from tests.support import Kdns, answers, ask, free_port, http_get

ZONE = "default.svc.cluster.local."
WEB, PEERS, GONE, NEW = (f"{name}.{ZONE}" for name in ("web", "peers", "gone", "new"))
STALE, NOT_READY = 3, 14
SOON = 0.3
"""Seconds from the start until the first answer out of a snapshot."""


def edes(reply: dns.message.Message) -> list[int]:
    return [option.code for option in reply.options if isinstance(option, EDEOption)]


class World:
    """An API server, a Corefile over it, and the snapshot."""

    def __init__(self, directory: Path, api: FakeApi) -> None:
        self.api = api
        self.port, self.ready, self.metrics = free_port(), free_port(), free_port()
        self.directory = directory / "state"
        self.directory.mkdir()
        self.file = self.directory / "cluster.snapshot"
        self.conf = directory / "Corefile"
        self.conf.write_text(self.text())

    def text(self, *more: str) -> str:
        return f""".:{self.port} {{
    bind 127.0.0.1
    errors
    ready 127.0.0.1:{self.ready}
    prometheus 127.0.0.1:{self.metrics}
    kubernetes cluster.local in-addr.arpa {{
        endpoint http://127.0.0.1:{self.api.port}
        snapshot {self.file}
        fallthrough in-addr.arpa
        ttl 30
        {chr(10).join(more)}
    }}
    cache 30
    loadbalance
    whoami
}}
"""

    async def kdns(self, *within: str) -> Kdns:
        return await asyncio.to_thread(lambda: Kdns(self.conf, within=within))

    async def ask(self, name: str, kind: str = "A", **how: Any) -> dns.message.Message:
        return await ask(self.port, name, kind, edns=0, **how)

    async def becomes(self, name: str, *wanted: str) -> None:
        """Wait for the answer that is no longer out of the snapshot."""
        async with asyncio.timeout(15):
            while True:
                reply = await self.ask(name)
                if not edes(reply) and [line.split()[-1] for line in answers(reply)] == list(wanted):
                    return
                await asyncio.sleep(0.02)

    async def everything_is_known(self) -> None:
        """Wait for the first sync of all kinds."""
        async with asyncio.timeout(15):
            while (await http_get(self.ready, "/ready"))[0] != 200:
                await asyncio.sleep(0.02)

    async def leave_a_snapshot(self) -> None:
        """Let a kdns learn everything and end; then the API server goes, too."""
        with await self.kdns() as kdns:
            await self.everything_is_known()
            assert await asyncio.to_thread(kdns.stop) == 0
        assert os.listdir(self.directory) == ["cluster.snapshot"]
        await self.api.refuse()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    api = FakeApi()
    for name, address in (("web", "10.96.0.5"), ("gone", "10.96.0.6")):
        api.put("services", service(name, cluster_ip=address))
    api.put("services", service("peers"))
    api.put("endpointslices", endpointslice("peers", [("10.1.0.1", "a"), ("10.1.0.2", "b")]))
    async with api:
        yield World(tmp_path, api)


def first_answer(port: int, name: str, since: float) -> tuple[float, dns.message.Message]:
    """Ask from before it listens until it answers; the seconds since the start, and the answer."""
    packet = dns.message.make_query(name, "A", use_edns=0).to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(0.005)
        while time.monotonic() - since < 15:
            try:
                sock.send(packet)
                reply = sock.recv(4096)
            except OSError:
                time.sleep(0.003)
                continue
            return time.monotonic() - since, dns.message.from_wire(reply)
    raise AssertionError("it never answered")


async def test_a_start_without_the_api_server_knows_what_was(world: World) -> None:
    await world.leave_a_snapshot()
    first = asyncio.create_task(asyncio.to_thread(first_answer, world.port, WEB, time.monotonic()))
    with await world.kdns() as kdns:
        _, reply = await first
        assert answers(reply) == [f"{WEB} 5 IN A 10.96.0.5"] and edes(reply) == [STALE]
        peers = await world.ask(PEERS)
        assert sorted(answers(peers)) == [f"{PEERS} 5 IN A 10.1.0.{n}" for n in (1, 2)] and edes(peers) == [STALE]
        assert answers(await world.ask(f"a.{PEERS}")) == [f"a.{PEERS} 5 IN A 10.1.0.1"]
        pointer = await world.ask("2.0.1.10.in-addr.arpa", "PTR")
        assert answers(pointer) == [f"2.0.1.10.in-addr.arpa. 5 IN PTR b.{PEERS}"]
        # No records of a type at a name that is there: that is part of the answer to whoever asks for both families.
        six = await world.ask(WEB, "AAAA")
        assert (six.rcode(), answers(six), edes(six)) == (dns.rcode.NOERROR, [], [STALE])
        assert six.authority[0].ttl == 5
        # What is not in the snapshot may have come since: never denied, never left to others.
        for name, kind in (
            (NEW, "A"),
            ("8.8.8.8.in-addr.arpa.", "PTR"),
            (f"c.{PEERS}", "A"),
            ("x.cluster.local.", "A"),
        ):
            found = await world.ask(name, kind)
            assert (found.rcode(), edes(found)) == (dns.rcode.SERVFAIL, [NOT_READY]), found
        status, text = await http_get(world.ready, "/ready")
        assert status == 503
        for kind in ("namespaces", "services", "endpointslices"):
            assert f"{kind}: from a snapshot of 20" in text and "refused" in text, text
        _, metrics = await http_get(world.metrics, "/metrics")
        assert 'kdns_kubernetes_snapshot_in_use{resource="services"} 1.0' in metrics
        assert f'kdns_kubernetes_snapshot_age_seconds{{file="{world.file}"}}' in metrics
        # Then the API server comes, and things have changed meanwhile.
        api = world.api
        api.delete("services", "gone")
        api.put("services", service("new", cluster_ip="10.96.0.7"))
        api.put("services", service("web", cluster_ip="10.96.0.8"))
        await api.accept()
        await world.becomes(WEB, "10.96.0.8")
        await world.becomes(NEW, "10.96.0.7")
        await world.everything_is_known()
        for name, rcode in ((GONE, dns.rcode.NXDOMAIN), (PEERS, dns.rcode.NOERROR), (WEB, dns.rcode.NOERROR)):
            found = await world.ask(name)
            assert (found.rcode(), edes(found)) == (rcode, []), found
            assert not found.answer or found.answer[0].ttl == 30
        _, metrics = await http_get(world.metrics, "/metrics")
        assert 'kdns_kubernetes_snapshot_in_use{resource="services"} 0.0' in metrics
        assert await asyncio.to_thread(kdns.stop) == 0
    assert f"{world.file}: 2 namespaces, 3 services, 1 endpointslices, true " in kdns.output
    assert "the API server has been heard" in kdns.output and "[ERROR]" not in kdns.output


def processor_time(kdns: Kdns) -> tuple[float, float]:
    """Seconds that a process has been on a processor, and that its threads have stood in line for one."""
    tasks = Path(f"/proc/{kdns.process.pid}/task").glob("*/schedstat")
    ran, waited, _ = zip(*(path.read_text().split() for path in tasks), strict=True)
    return sum(map(int, ran)) / 1e9, sum(map(int, waited)) / 1e9


async def test_the_first_answer_comes_at_once(world: World) -> None:
    await world.leave_a_snapshot()
    best = own = idle = 15.0
    for _ in range(6):
        first = asyncio.create_task(asyncio.to_thread(first_answer, world.port, WEB, time.monotonic()))
        with await world.kdns() as kdns:
            took, reply = await first
            ran, waited = processor_time(kdns)
            own, idle = min(own, ran), min(idle, took - ran - waited)
        assert edes(reply) == [STALE]
        best = min(best, took)
        if best < SOON:
            return
    # Others want the processors, too: then what it needs of them counts, and that it does not sleep.
    assert own < SOON and idle < 3 * SOON, (best, own, idle)


async def test_what_was_there_and_is_there_never_vanishes(world: World) -> None:
    """From the first answer out of the snapshot to the last list: always the one address, through every cache."""
    await world.leave_a_snapshot()
    world.api.fault(resource="endpointslices", delay=1.0)
    world.api.fault(resource="services", delay=0.5)
    with await world.kdns() as kdns:
        await world.api.accept()
        seen: list[tuple[int, ...]] = []
        async with asyncio.timeout(20):
            while not seen or seen[-1]:
                web, peers = await asyncio.gather(world.ask(WEB), world.ask(PEERS))
                assert [line.split()[-1] for line in answers(web)] == ["10.96.0.5"], web
                assert sorted(line.split()[-1] for line in answers(peers)) == ["10.1.0.1", "10.1.0.2"], peers
                assert not edes(web) or edes(peers)
                found = tuple(edes(peers) + edes(web))
                if not seen or seen[-1] != found:
                    seen.append(found)
                await asyncio.sleep(0.005)
        # First both are stale, then the headless one alone, as its endpoints are heard of later.
        assert seen == [(STALE, STALE), (STALE,), ()]
        assert await asyncio.to_thread(kdns.stop) == 0


async def test_a_snapshot_that_is_none_harms_nothing(world: World) -> None:
    await world.leave_a_snapshot()
    data = bytearray(world.file.read_bytes())
    data[len(data) // 2] ^= 1
    world.file.write_bytes(data)
    with await world.kdns() as kdns:
        found = await world.ask(WEB)
        assert (found.rcode(), edes(found)) == (dns.rcode.SERVFAIL, [NOT_READY])
        await world.api.accept()
        await world.becomes(WEB, "10.96.0.5")
        await world.everything_is_known()
        # At the end there is a good one again.
        assert await asyncio.to_thread(kdns.stop) == 0
    assert kdns.output.count(f"{world.file}: damaged: its checksum is wrong; the snapshot is not used") == 1
    await world.api.refuse()
    with await world.kdns() as kdns:
        assert edes(await world.ask(WEB)) == [STALE]


async def test_kept_through_a_reload(world: World) -> None:
    await world.leave_a_snapshot()
    with await world.kdns() as kdns:
        assert edes(await world.ask(WEB)) == [STALE]
        # Other objects are wanted, the API server is still away: what the snapshot has of them goes on being answered.
        world.conf.write_text(world.text("pods verified"))
        kdns.process.send_signal(10)
        await asyncio.to_thread(kdns.wait_for, "Reloading complete", 30)
        assert edes(await world.ask(WEB)) == [STALE]
        assert await asyncio.to_thread(kdns.stop) == 0


async def test_killed_while_writing(world: World) -> None:
    """SIGKILL in the middle of writing, again and again: what is at the place is always whole."""
    for number in range(3000):
        world.api.put("services", service(f"s{number}", cluster_ip=f"10.97.{number >> 8}.{number & 255}"))
    await world.leave_a_snapshot()
    before = world.file.read_bytes()
    await world.api.accept()
    caught = 0
    for attempt in range(8):
        with await world.kdns() as kdns:
            await world.everything_is_known()
            await world.becomes(f"s2999.{ZONE}", "10.97.11.183")
            world.api.put("services", service("web", cluster_ip=f"10.96.1.{attempt}"))
            await world.becomes(WEB, f"10.96.1.{attempt}")
            kdns.process.terminate()
            new = world.directory / "cluster.snapshot.new"
            while not new.exists() and kdns.process.poll() is None:
                pass
            kdns.process.kill()
            kdns.process.wait()
        caught += new.exists()
        if new.exists():
            assert world.file.read_bytes() == before
        before = world.file.read_bytes()
        if caught >= 2:
            break
    assert caught, "it was never killed in time"
    await world.api.refuse()
    with await world.kdns():
        reply = await world.ask(f"s2999.{ZONE}")
        assert answers(reply) == [f"s2999.{ZONE} 5 IN A 10.97.11.183"] and edes(reply) == [STALE]
