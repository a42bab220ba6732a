"""kdns beside the real CoreDNS: the same Corefiles, the same objects, the same questions, with changes between them.

Random and seeded: ``KDNS_PARITY_QUESTIONS`` says how many questions (``make test-coredns``: 100,000), and
``KDNS_PARITY_SEED`` where to begin.  What may differ is in `compare` and, with reasons, in docs/compatibility.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kdns import interfaces
from kdns.name import address_text
from tests.coredns.compare import DEVIATIONS, Answer, Context, Verdict
from tests.coredns.settings import NAMES, Setting, choose, upstream
from tests.coredns.world import Question, World, wire
from tests.fakeapi import FakeApi
from tests.fakeupstream import FakeUpstream
from tests.support import ROOT, Kdns, free_port

pytestmark = pytest.mark.skipif(shutil.which("coredns") is None, reason="coredns is not on PATH")

QUESTIONS = int(os.environ.get("KDNS_PARITY_QUESTIONS", "2520"))
SEED = int(os.environ.get("KDNS_PARITY_SEED", "1"))
BATCH = 150
"""Questions between two changes."""
WORLD = 2000
"""Questions about one world."""

T = TypeVar("T")


class Background:
    """The fake API server and the fake upstream, in a thread of their own."""

    def __enter__(self) -> Background:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.upstream = FakeUpstream()
        self.upstream.script = upstream
        self.run(self.upstream.start)
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.upstream.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, make: Callable[[], Any]) -> Any:
        """Run a coroutine function there."""
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(20)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function there."""

        async def call() -> T:
            return function(*arguments)

        result: T = self.run(call)
        return result


class Pair:
    """Both servers, asked at the same time."""

    def __init__(self, ports: tuple[int, int]) -> None:
        self._ports = ports
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in ports]
        for udp, port in zip(self._sockets, ports, strict=True):
            udp.connect(("127.0.0.1", port))
            udp.settimeout(3)

    def close(self) -> None:
        for udp in self._sockets:
            udp.close()

    def ask(self, question: Question) -> tuple[Answer, Answer]:
        """(CoreDNS's, kdns's)"""
        exchange = self._tcp if question.tcp else self._odd if question.odd else self._udp
        core, ours = exchange(question.packet)
        return Answer(core), Answer(ours)

    def _udp(self, packet: bytes) -> list[bytes | None]:
        for udp in self._sockets:
            udp.send(packet)
        return [self._receive(udp, packet[:2]) for udp in self._sockets]

    def _odd(self, packet: bytes) -> list[bytes | None]:
        """Perhaps there is no answer: wait for that of a good question, and a little longer."""
        good = ((packet[:2] == b"\0\0" and b"\0\1") or b"\0\0") + struct.pack("!5H", 0, 1, 0, 0, 0) + b"\0\0\x01\0\x01"
        for udp in self._sockets:
            udp.send(packet)
            udp.send(good)
        return [self._receive(udp, packet[:2], good[:2]) for udp in self._sockets]

    def _receive(self, udp: socket.socket, id: bytes, other: bytes | None = None) -> bytes | None:
        found = None
        try:
            while True:
                packet = udp.recv(65535)
                if packet[:2] == id:
                    found = packet
                    if other is None:
                        return found
                elif packet[:2] == other:
                    udp.settimeout(0.05)
                if found is not None and udp.gettimeout() != 3:
                    return found
        except TimeoutError:
            return found
        finally:
            udp.settimeout(3)

    def _tcp(self, packet: bytes) -> list[bytes | None]:
        return [_ask_tcp(port, packet) for port in self._ports]


def _ask_tcp(port: int, packet: bytes) -> bytes | None:
    with socket.create_connection(("127.0.0.1", port), 6) as tcp:
        tcp.settimeout(2)
        tcp.sendall(struct.pack("!H", len(packet)) + packet)
        data = b""
        with contextlib.suppress(OSError):
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                more = tcp.recv(65537)
                if not more:
                    break
                data += more
        return data[2:] or None


@contextlib.contextmanager
def both(setting: Setting, folder: Path) -> Iterator[Pair]:
    """Both servers with this setting."""
    ports = free_port(), free_port()
    for name, port in zip(("coredns", "kdns"), ports, strict=True):
        (folder / f"Corefile.{name}").write_text(setting.text.replace("PORT", str(port)))
    with open(folder / "coredns.log", "wb") as log:
        core = subprocess.Popen(["coredns", "-conf", "Corefile.coredns"], cwd=folder, stdout=log, stderr=log)
    try:
        with Kdns("Corefile.kdns", cwd=folder) as kdns:
            deadline = time.monotonic() + 15
            while "CoreDNS-" not in (said := (folder / "coredns.log").read_text()):
                assert time.monotonic() < deadline and core.poll() is None, said
                time.sleep(0.02)
            pair = Pair(ports)
            try:
                yield pair
            finally:
                pair.close()
                assert kdns.process.poll() is None, kdns.read()
                assert core.poll() is None, (folder / "coredns.log").read_text()
    finally:
        core.kill()
        core.wait()


class Run:
    """One world under one setting."""

    def __init__(self, setting: Setting, background: Background, api: FakeApi, world: World, verdict: Verdict) -> None:
        self._setting, self._background, self._api, self._world = setting, background, api, world
        self._verdict = verdict
        self._probes = 60_000

    def ask(self, pair: Pair, count: int) -> None:
        """Ask so many questions, with changes between them."""
        self._wait(pair)
        started = time.monotonic()
        changes = not self._setting.cached or self._setting.keeps
        batch = 4 * BATCH if self._setting.cached else BATCH
        for number in range(count):
            if number and number % batch == 0 and changes:
                self._background.call(self._world.change, self._api, self._world.rng.randrange(1, 12))
                self._wait(pair)
                time.sleep(self._setting.keeps)
            question = self._world.question()
            core, ours = pair.ask(question)
            chosen = self._setting
            elapsed = time.monotonic() - started
            self._verdict.add(question, core, ours, Context(chosen.name, chosen.cached, chosen.text, elapsed))

    def _wait(self, pair: Pair) -> None:
        """Until both know of all that has happened: the last thing that happens is a mark.

        Each probe asks for another type, lest a cache remember that there was no such name.
        """
        marks = self._background.call(self._world.mark, self._api, dict(self._setting.labels))
        deadline = time.monotonic() + 10
        zone = self._setting.zones[0]
        for resource in self._setting.visible:
            name = wire(f"{marks[resource]}.{zone}")
            while True:
                self._probes += 1
                packet = (
                    struct.pack("!6H", 7, 0, 1, 0, 0, 0) + name + struct.pack("!HH", self._probes % 5000 + 60_000, 1)
                )
                answers = pair.ask(Question(packet, name))
                if all(answer.rcode == "NOERROR" for answer in answers):
                    break
                assert time.monotonic() < deadline, (resource, marks[resource], *map(str, answers))
                time.sleep(0.005)


def machine() -> tuple[str, ...]:
    """IPv4 addresses of this machine, loopback excepted."""
    found = [address_text(address) for _, address in interfaces.addresses() if len(address) == 4 and address[0] != 127]
    return tuple(dict.fromkeys(found))


def compare(folder: Path, name: str, questions: int, seed: int) -> Verdict:
    """Ask so many questions under one setting, in a new world every so often."""
    verdict = Verdict()
    port = free_port()
    with Background() as background:
        worlds = max(1, questions // WORLD)
        for number in range(worlds):
            rng = random.Random(f"{seed} {name} {number}")
            chosen = choose(name, f"http://127.0.0.1:{port}", background.upstream.address, folder, rng)
            world = World(rng, chosen.zones, machine())
            world.reverse = chosen.reverse
            api = FakeApi()
            background.call(world.load, api)
            background.run(partial(api.start, port))
            try:
                with both(chosen, folder) as pair:
                    Run(chosen, background, api, world, verdict).ask(pair, questions // worlds)
            finally:
                background.run(api.stop)
                background.upstream.asked.clear()
    return verdict


@pytest.mark.parametrize("name", NAMES)
def test_random_worlds(tmp_path: Path, name: str) -> None:
    verdict = compare(tmp_path, name, QUESTIONS // len(NAMES), SEED)
    assert verdict.questions > QUESTIONS // len(NAMES) * 0.9
    assert not verdict.unmeant, str(verdict)


def test_each_deviation_has_its_row_with_a_reason() -> None:
    lines = (ROOT / "docs/compatibility.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    reasons = {row[0]: row[3] for row in rows if len(row) == 4}
    assert all(reasons.get(deviation.row) for deviation in DEVIATIONS)
