from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket

import pytest

from kdns import limits
from kdns.listen.udp import UdpListener
from kdns.message import A
from kdns.name import from_text
from kdns.plugins.multisocket import Multisocket
from kdns.server import Server
from kdns.wire import pack_query, parse_reply
from tests.plugintest import new_site, refused, set_up
from tests.support import captured_log, free_port, parse, use_twin

PROCESSORS = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    use_twin("compiled", monkeypatch)


@pytest.mark.parametrize(
    ("text", "sockets"), [("multisocket", PROCESSORS), ("multisocket 1", 1), ("multisocket 1024", 1024)]
)
def test_how_many(text: str, sockets: int) -> None:
    site = new_site()
    assert not set_up(Multisocket, text, site).handles
    assert site.sockets == sockets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multisocket 0", "num sockets can not be zero or negative: 0"),
        ("multisocket -1", "num sockets can not be zero or negative: -1"),
        ("multisocket 1025", "num sockets exceeds maximum (1024): 1025"),
        ("multisocket x", "'x' is not an integer"),
        ("multisocket 2 3", "Wrong argument count or unexpected line ending after '3'"),
        ("multisocket 2\nmultisocket 3", "this plugin can only be used once per Server Block"),
        ("multisocket 2 {\n x\n}", "unknown property 'x'"),
    ],
)
def test_what_is_wrong(text: str, message: str) -> None:
    assert refused(Multisocket, text) == message


def test_without_the_compiled_twin_there_is_one_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    use_twin("python", monkeypatch)
    site = new_site()
    with captured_log() as log:
        set_up(Multisocket, "multisocket 4", site)
    assert site.sockets == 0
    assert log.matching("one socket is served")


# --- served ----------------------------------------------------------------------------------------------------------


def corefile(port: int, *lines: str, host: str = "127.0.0.1") -> str:
    rest = "".join(f" {line}\n" for line in lines)
    answer = 'template IN A {\n  answer "{{ .Name }} 30 IN A 192.0.2.9"\n }'
    return f".:{port} {{\n bind {host}\n{rest} {answer}\n}}\n"


def sockets_on(port: int) -> int:
    """UDP sockets of this process on a port of 127.0.0.1."""
    with open("/proc/self/net/udp") as table:
        return sum(line.split()[1] == f"0100007F:{port:04X}" for line in table)


def alone_on(port: int) -> bool:
    """Whether the socket on a port of 127.0.0.1 shares it with nobody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
        try:
            other.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


class Clients:
    """Clients on many ports, so that the kernel spreads them over all sockets."""

    def __init__(self, port: int, count: int = 40) -> None:
        self._socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for sock in self._socks:
            sock.connect(("127.0.0.1", port))
            sock.setblocking(False)
        self._asked = 0

    async def ask(self, name: str) -> list[bytes]:
        """Everyone asks; all replies."""
        self.send(name)
        return await self.receive()

    def send(self, name: str) -> None:
        for sock in self._socks:
            self._asked += 1
            sock.send(pack_query(self._asked % 65536, 0x0100, from_text(name), A, 1, None))

    async def receive(self) -> list[bytes]:
        """One reply for everyone."""
        loop = asyncio.get_running_loop()
        return [await asyncio.wait_for(loop.sock_recv(sock, 4096), 5) for sock in self._socks]

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


async def test_all_sockets_answer_out_of_one_packet_cache() -> None:
    port = free_port()
    server = Server(lambda: parse(corefile(port, "multisocket 3", "prometheus localhost:0")), 0)
    await server.start()
    clients = Clients(port)
    try:
        assert sockets_on(port) == 3
        for _ in range(3):
            for reply in await clients.ask("a.example."):
                assert parse_reply(reply).answer[0].rdata == bytes([192, 0, 2, 9])
        exposed = server.process.metrics.expose().decode()
        assert "kdns_packetcache_entries 1.0" in exposed
        assert 'coredns_dns_requests_total{family="1",proto="udp",server="dns://127.0.0.1:' in exposed
        misses = float(exposed.split("\nkdns_packetcache_misses_total ")[1].split()[0])
        hits = float(exposed.split("\nkdns_packetcache_hits_total ")[1].split()[0])
        assert hits + misses == 120
        assert hits >= 80
    finally:
        clients.close()
        await server.stop()


async def test_the_interpreter_may_be_busy() -> None:
    """Hot answers come while Python holds the event loop and the GIL."""
    port = free_port()
    server = Server(lambda: parse(corefile(port, "multisocket 1")), 0)
    await server.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.setblocking(False)
        packet = pack_query(1, 0x0100, from_text("a.example."), A, 1, None)
        client.send(packet)
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 4096), 5)
        client.settimeout(5)
        # This test blocks the loop here: only a thread of its own can answer.
        for _ in range(100):
            client.send(packet)
            assert client.recv(4096)
    await server.stop()


async def test_a_full_queue_lets_go_and_counts() -> None:
    port = free_port()
    server = Server(lambda: parse(corefile(port, "multisocket 64")), 0)
    await server.start()
    metric = f'kdns_udp_overflows_total{{server="dns://127.0.0.1:{port}"}}'
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        # Python does not get to empty the queue meanwhile.
        sent = 0
        while f"{metric} 0.0" in server.process.metrics.expose().decode():
            for number in range(100):
                sent += 1
                client.send(pack_query(number, 0x0100, from_text(f"n{number}.example."), A, 1, None))
        # The queue of one thread is a share of what all may hand on.
        assert sent < limits.UDP_QUEUE / 160 / 10
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        assert parse_reply(await asyncio.wait_for(loop.sock_recv(client, 4096), 5)).answer
    await server.stop()


async def test_without_threads_to_be_had_the_sockets_are_served_all_the_same() -> None:
    port = free_port()
    text = corefile(port)
    server = Server(lambda: parse(text), 0)
    await server.start()
    clients = Clients(port)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        text = corefile(port, "multisocket 4")
        with captured_log() as log:
            # Enough for the four sockets, but not for what each thread takes beside.
            taken = {int(name) for name in os.listdir("/proc/self/fd")}
            free = [number for number in range(max(taken) + 7) if number not in taken]
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[5], hard))
            try:
                assert await server.reload()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert len(log.matching("without a thread of its own: Too many open files")) >= 3
        assert sockets_on(port) == 4
        for _ in range(2):
            assert len(await clients.ask("a.example.")) == 40
    finally:
        clients.close()
        await server.stop()


async def test_a_reload_changes_the_number_and_loses_nothing() -> None:
    port = free_port()
    text = corefile(port)
    server = Server(lambda: parse(text), 0)
    await server.start()
    clients = Clients(port)
    try:
        for count in (0, 3, 1, 2, 0):
            text = corefile(port, *([f"multisocket {count}"] if count else []), f"# {count}")
            assert await server.reload(force=True)
            assert sockets_on(port) == (count or 1)
            assert len(await clients.ask("a.example.")) == 40
        assert alone_on(port)
    finally:
        clients.close()
        await server.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_nothing_is_lost_between_the_last_look_and_the_close(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port, number = free_port(), 0
    server = Server(lambda: parse(corefile(port, *([f"multisocket {number}"] if number else []), host=host)), 0)
    await server.start()
    clients = Clients(port)
    asked = 0
    stop = UdpListener.stop_reading

    def stop_reading(listener: UdpListener) -> None:
        nonlocal asked
        clients.send("a.example.")
        stop(listener)
        clients.send("a.example.")
        asked += 2

    monkeypatch.setattr(UdpListener, "stop_reading", stop_reading)
    try:
        for number in (3, 2, 0):  # noqa: B007 - the configuration reads it
            assert await server.reload()
            while asked:
                await clients.receive()
                asked -= 1
    finally:
        monkeypatch.undo()
        clients.close()
        await server.stop()


async def test_a_refused_reload_leaves_the_address_to_nobody_else() -> None:
    port = free_port()
    text = corefile(port)
    server = Server(lambda: parse(text), 0)
    await server.start()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        text = corefile(port, "multisocket 2") + corefile(busy.getsockname()[1])
        with captured_log() as log:
            assert not await server.reload()
        assert log.matching("in use")
    assert sockets_on(port) == 1
    assert alone_on(port)
    await server.stop()


async def test_what_served_before_a_reload_is_given_back() -> None:
    port = free_port()
    text = corefile(port)
    server = Server(lambda: parse(text), 0)
    await server.start()
    clients = Clients(port)
    held: list[int] = []
    try:
        for number in range(9):
            count = (1, 6, 0)[number % 3]
            text = corefile(port, *([f"multisocket {count}"] if count else []), f"# {number}")
            assert await server.reload(force=True)
            await clients.ask("a.example.")
            if not count:
                held.append(len(os.listdir("/proc/self/fd")))
                (serving,) = server._endpoints.values()
                assert not any(listener._predecessors for listener in serving.datagram)
    finally:
        clients.close()
        await server.stop()
    assert len(set(held)) == 1


async def test_what_waits_is_answered_after_its_socket_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        upstream.bind(("127.0.0.1", 0))
        upstream.setblocking(False)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        port = free_port()
        number = 2

        def text() -> str:
            forward = f"forward . 127.0.0.1:{upstream.getsockname()[1]}"
            return f".:{port} {{\n bind 127.0.0.1\n multisocket {number}\n {forward}\n}}\n"

        server = Server(lambda: parse(text()), 0)
        await server.start()
        client.connect(("127.0.0.1", port))
        client.send(pack_query(9, 0x0100, from_text("a.example."), A, 1, None))
        packet, peer = await asyncio.wait_for(loop.sock_recvfrom(upstream, 4096), 5)
        number = 1
        assert await server.reload()
        reply = bytearray(packet)
        reply[2] |= 0x80
        upstream.sendto(reply, peer)
        (serving,) = server._endpoints.values()
        assert serving.waiting == 1
        assert len(serving.datagram[0]._predecessors) == 1  # the other one had nothing to wait for
        assert parse_reply(await asyncio.wait_for(loop.sock_recv(client, 4096), 5)).id == 9
        assert not serving.datagram[0]._predecessors
        await server.stop()


async def test_a_second_server_on_the_same_port_is_refused() -> None:
    port = free_port()
    server = Server(lambda: parse(corefile(port, "multisocket 2")), 0)
    await server.start()
    other = Server(lambda: parse(corefile(port, "multisocket 2")), 0)
    with pytest.raises(Exception, match=f"cannot listen on dns://127.0.0.1:{port}"):
        await other.start()
    await server.stop()
