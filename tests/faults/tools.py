"""For tests of the whole server under faults: questions as octets, a client, a pulse, and what a process uses."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kdns import wire
from kdns.message import RD, A, Edns
from kdns.name import spell
from tests.fakeapi import endpointslice, namespace, service
from tests.support import Kdns, http_get

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGESIZE")
WEB = "web.default.svc.cluster.local."
WEB_ADDRESS = bytes((10, 96, 0, 5))
MIB = 2**20


def query(name: str, id: int = 0, type: int = A, edns: Edns | None = None) -> bytes:
    return wire.pack_query(id, RD, spell(name), type, 1, edns)


def with_id(packet: bytes, id: int) -> bytes:
    return (id & 0xFFFF).to_bytes(2, "big") + packet[2:]


def rcode(reply: bytes) -> int:
    return reply[3] & 15


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(2, "big") + packet


class Udp:
    """A client with one socket; questions are told apart by their IDs, which it sets."""

    def __init__(self, port: int) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        asyncio.get_running_loop().add_reader(self.sock, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                data = self.sock.recv(65535)
                future = self._waiting.pop(data[0] << 8 | data[1], None)
                if future is not None and not future.done():
                    future.set_result(data)

    async def ask(self, packet: bytes, seconds: float = 10.0) -> bytes:
        """The reply; raises TimeoutError."""
        id = next(self._ids) & 0xFFFF
        future = self._waiting[id] = asyncio.get_running_loop().create_future()
        with contextlib.suppress(ConnectionError):
            self.sock.send(with_id(packet, id))
        try:
            async with asyncio.timeout(seconds):
                return await future
        finally:
            self._waiting.pop(id, None)

    async def many(self, packets: Iterable[bytes], at_once: int = 64, seconds: float = 10.0) -> list[bytes | None]:
        """The replies in the order of the packets, None for those that never came."""
        waiting = iter(list(enumerate(packets)))
        found: dict[int, bytes | None] = {}

        async def work() -> None:
            for number, packet in waiting:
                found[number] = None
                with contextlib.suppress(TimeoutError):
                    found[number] = await self.ask(packet, seconds)

        await asyncio.gather(*(work() for _ in range(at_once)))
        return [found[number] for number in sorted(found)]


@contextlib.asynccontextmanager
async def client(port: int) -> AsyncIterator[Udp]:
    made = Udp(port)
    try:
        yield made
    finally:
        made.close()


class Pulse:
    """What became of the good questions that were asked all the while."""

    def __init__(self) -> None:
        self.asked = self.lost = self.wrong = 0
        self.slowest = 0.0
        """Seconds."""

    @property
    def fine(self) -> bool:
        """All were answered, rightly, and in a time that a busy machine may take."""
        return self.asked > 3 and not self.lost and not self.wrong and self.slowest < 3.0


@contextlib.asynccontextmanager
async def pulse(
    port: int,
    packet: bytes = query(WEB),
    right: Callable[[bytes], bool] = lambda reply: WEB_ADDRESS in reply,
    every: float = 0.01,
    seconds: float = 5.0,
) -> AsyncIterator[Pulse]:
    """Ask a good question over and over while the body runs; its answer must be ``right``."""
    result = Pulse()
    loop = asyncio.get_running_loop()
    ended = False

    async def run() -> None:
        async with client(port) as udp:
            while not ended:
                began = loop.time()
                result.asked += 1
                try:
                    reply = await udp.ask(packet, seconds)
                except TimeoutError:
                    result.lost += 1
                else:
                    result.wrong += not right(reply)
                    result.slowest = max(result.slowest, loop.time() - began)
                await asyncio.sleep(every)

    task = asyncio.create_task(run())
    try:
        yield result
        await asyncio.sleep(10 * every)
    finally:
        ended = True
        await task


def rss(kdns: Kdns) -> int:
    """Octets of memory that the process holds."""
    return int(Path(f"/proc/{kdns.process.pid}/statm").read_text().split()[1]) * PAGE


def peak_rss(kdns: Kdns) -> int:
    """The most that it ever held."""
    text = Path(f"/proc/{kdns.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found
    return int(found[1]) * 1024


def cpu(kdns: Kdns) -> float:
    """Seconds of CPU time that it has used."""
    fields = Path(f"/proc/{kdns.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def descriptors(kdns: Kdns) -> int:
    """File descriptors that it has open."""
    return len(os.listdir(f"/proc/{kdns.process.pid}/fd"))


def write_world(directory: Path, *more: dict[str, Any]) -> Path:
    """A ``manifests`` directory: Service ``web``, and ``more``."""
    directory.mkdir(exist_ok=True)
    kinds = {"clusterIP": ("v1", "Service"), "endpoints": ("discovery.k8s.io/v1", "EndpointSlice")}
    out = [{"apiVersion": "v1", "kind": "Namespace"} | namespace("default")]
    for item in (service("web", cluster_ip="10.96.0.5"), *more):
        version, kind = kinds["endpoints" if "endpoints" in item else "clusterIP"]
        out.append({"apiVersion": version, "kind": kind} | item)
    (directory / "world.yaml").write_text("\n---\n".join(json.dumps(item) for item in out))
    return directory


def big_service(name: str, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A headless Service with so many addresses."""
    addresses = [f"10.{number >> 8 & 255}.{number & 255}.7" for number in range(count)]
    return service(name), endpointslice(name, addresses)


def corefile(directory: Path, text: str) -> Path:
    file = directory / "Corefile"
    file.write_text(text)
    return file


async def metrics(port: int) -> dict[str, float]:
    """The samples of a scrape, by their text: name, labels."""
    status, text = await http_get(port, "/metrics")
    assert status == 200
    pairs = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {key: float(value) for key, _, value in pairs}


def total(samples: dict[str, float], name: str, *parts: str) -> float:
    """The sum of a metric's samples whose labels have these parts (``type="A"``)."""
    return sum(
        value for key, value in samples.items() if key.partition("{")[0] == name and all(part in key for part in parts)
    )


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for something that must come about; how soon is not the question."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def gather(work: Sequence[Any]) -> list[Any]:
    return list(await asyncio.gather(*work))
