"""The event loop that serves UDP from within its wait."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kdns.handler import Handler, Routes
from kdns.listen.loop import DirectLoop, new_event_loop
from kdns.listen.udp import UdpListener, open_socket
from kdns.message import FOREVER, NOERROR, A, Lease, Query, Record, Reply
from kdns.name import ROOT, from_text
from kdns.packetcache import packet_cache
from kdns.plugin import Process
from kdns.wire import pack_query, parse_reply
from tests.support import use_twin


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    use_twin("compiled", monkeypatch)


class Served:
    """A listener on a free port, and what its chain was asked."""

    def __init__(self) -> None:
        self.asked: list[Query] = []
        process = Process()
        packets = packet_cache(100, 100_000, process.metrics)
        handler = Handler(process, packets, Routes({ROOT: self._chain}, False))
        self.sock = open_socket("127.0.0.1", 0)
        self.listener = UdpListener(self.sock, handler, packets, "dns://:53", b"\0\0\0\1", process.metrics)
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(self.sock.getsockname())
        self.client.setblocking(False)

    async def _chain(self, query: Query) -> Reply:
        self.asked.append(query)
        return Reply(NOERROR, (Record(query.spelling, A, 30, b"\x0a\0\0\1"),), lease=Lease(FOREVER))

    async def ask(self, number: int, name: str = "a.example.") -> None:
        self.client.send(pack_query(number, 0x0100, from_text(name), A, 1, None))
        reply = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.client, 4096), 5)
        assert parse_reply(reply).id == number

    def close(self) -> None:
        self.listener.close()
        self.client.close()


def run(main: Callable[[Served], Coroutine[Any, Any, None]]) -> None:
    async def around() -> None:
        served = Served()
        try:
            await main(served)
        finally:
            served.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert isinstance(runner.get_loop(), DirectLoop)
        runner.run(around())


def test_hits_need_no_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[int] = []

    async def main(served: Served) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, DirectLoop)
        process_events = loop._process_events

        def watched(ready: Any) -> None:
            events.extend(key.fd for key, _ in ready)
            process_events(ready)

        monkeypatch.setattr(loop, "_process_events", watched)
        await served.ask(1)
        assert events.count(served.sock.fileno()) == 1
        for number in range(2, 50):
            await served.ask(number)
        assert events.count(served.sock.fileno()) == 1
        await served.ask(50, "b.example.")
        assert events.count(served.sock.fileno()) == 2
        assert len(served.asked) == 2

    run(main)


def test_timers_run_under_a_flood_of_hits() -> None:
    async def main(served: Served) -> None:
        await served.ask(1)
        stop = threading.Event()

        def flood() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(served.sock.getsockname())
                packet = pack_query(7, 0x0100, from_text("a.example."), A, 1, None)
                while not stop.is_set():
                    sock.send(packet)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(20):
                await asyncio.sleep(0.002)
            assert await asyncio.get_running_loop().run_in_executor(None, lambda: 5) == 5
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)

    run(main)


def test_it_waits_no_longer_than_it_should() -> None:
    async def main(served: Served) -> None:
        before = time.monotonic()
        await asyncio.sleep(0.05)
        assert 0.045 <= time.monotonic() - before < 2

    run(main)


def test_signals_are_heard() -> None:
    async def main(served: Served) -> None:
        heard = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, heard.set)
        threading.Timer(0.01, signal.raise_signal, [signal.SIGUSR2]).start()
        await asyncio.wait_for(heard.wait(), 5)

    run(main)


def test_a_closed_listener_is_served_no_more() -> None:
    async def main(served: Served) -> None:
        await served.ask(1)
        served.listener.stop_reading()
        served.client.send(pack_query(2, 0x0100, from_text("a.example."), A, 1, None))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(served.client, 100), 0.05)

    run(main)


def test_without_the_compiled_twin_it_is_asyncios_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    use_twin("python", monkeypatch)
    loop = new_event_loop()
    assert not isinstance(loop, DirectLoop)
    loop.close()
