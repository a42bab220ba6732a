"""A hundred reloads, and a hundred Corefiles that must be refused, under 2,000 queries per second: nobody notices.

kdns runs in a process of its own.  Every answer is checked: cluster names out of the index, cached and new names of an
upstream that takes its time for some, names of `hosts`, names that do not exist.  A TCP connection stays open, and
health, ready and metrics are asked all the while.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import dns.message
import pytest_asyncio

from tests.fakeapi import FakeApi, service
from tests.support import ROOT, Kdns, free_port, hang_up, http_get

RELOADS = 100
RATE = 2000
OUTSTANDING = 400
"""With so many unanswered none is sent: more than the machine can do would only overflow socket buffers."""
NXDOMAIN = 3

GOOD = """
. {{
    bind 127.0.0.1
    errors
    health 127.0.0.1:{health}
    ready 127.0.0.1:{ready}
    prometheus 127.0.0.1:{metrics}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        endpoint {api}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl {ttl}
    }}
    hosts {{
        192.0.2.7 fixed.example
        192.0.2.8 other{ttl}.example
        fallthrough
    }}
    forward . {upstream} {{
        max_concurrent {concurrent}
    }}
    cache {cache}
    loop
    reload
    loadbalance
}}
{more}
"""
MORE = ("", "other.example:{spare} {{\n    bind 127.0.0.1\n    whoami\n}}\n")
BAD = (
    "{good}\n}}",
    "{good}\nother.example {{\n    nonsense\n}}",
    "{good}\nother.example {{\n    dnssec\n}}",
    "{good}\nother.example {{\n    bind 127.0.0.1\n    cache 30 {{\n        forever\n    }}\n}}",
    "{good}\nother.example:{taken} {{\n    bind 127.0.0.1\n    whoami\n}}",
    "{good}\nother.example {{\n    bind 127.0.0.1\n    health 127.0.0.1:{taken}\n    whoami\n}}",
    "{good}\nother.example {{\n    import missing.conf\n}}",
    "{good}\n. {{\n    bind 127.0.0.1\n    whoami\n}}",
    "{good}\ntls://other.example:{spare} {{\n    bind 127.0.0.1\n    tls missing.pem missing.pem\n}}",
    "{good}\nother.example {{\n    bind 127.0.0.1\n    forward .\n}}",
)


class Load:
    """Asks over UDP at a steady rate and checks every answer."""

    def __init__(self, port: int) -> None:
        self.sent = 0
        self.held = 0.0
        """Seconds in which too many were unanswered."""
        self.wrong: list[str] = []
        self.pending: dict[int, tuple[str, bytes | int]] = {}
        """ID → name, and the address in its answer or the rcode."""
        self._random = random.Random(20261121)
        self._numbers = itertools.count()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        self._socket.connect(("127.0.0.1", port))
        self._queries: dict[str, bytes] = {}

    async def run(self) -> None:
        """Until cancelled."""
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        last = time.monotonic()
        due = 0.0
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            if len(self.pending) < OUTSTANDING:
                due += (now - last) * RATE
            else:
                self.held += now - last
            last = now
            for _ in range(min(int(due), OUTSTANDING - len(self.pending))):
                self._send()
                due -= 1

    async def finish(self) -> None:
        """Wait for the last answers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while self.pending:
                    await asyncio.sleep(0.01)
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _send(self) -> None:
        name, expected = self._question()
        id = self.sent % 65536
        assert id not in self.pending, f"no answer to {self.pending[id]} in half a minute"
        self.pending[id] = name, expected
        self.sent += 1
        if name not in self._queries:
            self._queries[name] = dns.message.make_query(name, "A").to_wire()[2:]
        self._socket.send(id.to_bytes(2, "big") + self._queries[name])

    def _question(self) -> tuple[str, bytes | int]:
        chance = self._random.random()
        number = self._random.randrange(50)
        if chance < 0.5:
            return f"web{number}.default.svc.cluster.local.", bytes((10, 96, 0, number))
        if chance < 0.7:
            return f"github.com.ns{number}.svc.cluster.local.", NXDOMAIN
        if chance < 0.75:
            return "fixed.example.", bytes((192, 0, 2, 7))
        if chance < 0.95:
            return f"www{number}.example.org.", bytes((192, 0, 2, 1))
        if chance < 0.98:
            return f"new{next(self._numbers)}.example.org.", bytes((192, 0, 2, 1))
        return f"slow{next(self._numbers)}.example.org.", bytes((192, 0, 2, 1))

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self._socket.recv(4096)
                name, expected = self.pending.pop(int.from_bytes(packet[:2], "big"))
                rcode = packet[3] & 15
                right = rcode == expected if isinstance(expected, int) else not rcode and expected in packet
                if not right:
                    self.wrong.append(f"{name} {rcode} {packet.hex()}")


class World:
    """kdns, what it asks, and the ports of all."""

    def __init__(self, directory: Path, api: FakeApi, upstream: int, taken: int) -> None:
        self.file = directory / "Corefile"
        self.ports = {name: free_port() for name in ("dns", "health", "ready", "metrics", "spare")}
        self._words = {"api": api.url, "upstream": f"127.0.0.1:{upstream}", "taken": taken} | self.ports

    def good(self, number: int) -> str:
        """One of many that can be served; each differs from the one before."""
        words = {"ttl": 5 + number, "cache": (30, 20)[number % 2], "concurrent": 900 + number // 3 % 3}
        more = MORE[number // 2 % 2].format(**self._words)
        return GOOD.format(**self._words, **words, more=more)

    def bad(self, number: int) -> str:
        """One that cannot."""
        return BAD[number % len(BAD)].format(**self._words, good=self.good(number))


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    command = [sys.executable, "-m", "tests.e2e.upstream"]
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as upstream,
    ):
        try:
            assert upstream.stdout is not None
            port = int(upstream.stdout.readline())
            async with FakeApi() as api:
                for number in range(50):
                    api.put("services", service(f"web{number}", cluster_ip=f"10.96.0.{number}"))
                yield World(tmp_path, api, port, taken.getsockname()[1])
        finally:
            upstream.kill()


async def test_nobody_notices_reloads(world: World) -> None:
    world.file.write_text(world.good(0))
    load = Load(world.ports["dns"])
    with await asyncio.to_thread(Kdns, world.file, "-dns.port", str(world.ports["dns"])) as kdns:
        try:
            await until_ready(world.ports["ready"])
            elapsed = await reload_under(load, world, kdns)
            _, metrics = await http_get(world.ports["metrics"], "/metrics")
            assert await asyncio.to_thread(kdns.stop) == 0
        finally:
            print(kdns.read()[-10_000:])
    assert not load.wrong
    assert not load.pending
    assert load.held < elapsed / 2
    assert load.sent >= (elapsed - load.held) * RATE * 0.95
    assert f"coredns_reload_failed_total {RELOADS}" in metrics.replace(".0\n", "\n")
    assert "panic" not in kdns.output


async def reload_under(load: Load, world: World, kdns: Kdns) -> float:
    """All reloads, while others ask; the seconds that it took."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        others = [
            group.create_task(load.run()),
            group.create_task(look_around(world)),
            group.create_task(hold_on(world.ports["dns"])),
        ]
        await reload(world, kdns)
        for task in others:
            task.cancel()
    elapsed = time.monotonic() - began
    await load.finish()
    return elapsed


async def reload(world: World, kdns: Kdns) -> None:
    """Good and bad ones in turn."""
    for number in range(1, RELOADS + 1):
        for text, said in ((world.good(number), "Reloading complete"), (world.bad(number), "but reload failed")):
            world.file.write_text(text)
            kdns.process.send_signal(signal.SIGUSR1)
            deadline = time.monotonic() + 10
            while kdns.read().count(said) < number:
                assert time.monotonic() < deadline, f"{text} {kdns.output}"
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.04 if number % 3 else 0)


async def look_around(world: World) -> None:
    """Health, ready and metrics answer all the while."""
    for name, path in itertools.cycle((("health", "/health"), ("ready", "/ready"), ("metrics", "/metrics"))):
        status, text = await http_get(world.ports[name], path)
        assert status == 200, text
        await asyncio.sleep(0.01)


async def hold_on(port: int) -> None:
    """One TCP connection, from beginning to end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    query = dns.message.make_query("web7.default.svc.cluster.local.", "A").to_wire()
    try:
        while True:
            writer.write(len(query).to_bytes(2, "big") + query)
            async with asyncio.timeout(5):
                packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            assert bytes((10, 96, 0, 7)) in packet, packet
            await asyncio.sleep(0.01)
    finally:
        await hang_up(writer)


async def until_ready(port: int) -> None:
    async with asyncio.timeout(10):
        while (await http_get(port, "/ready"))[0] != 200:
            await asyncio.sleep(0.05)
