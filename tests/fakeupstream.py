"""A DNS server that does what a test says: the upstream of every test.

::

    async with FakeUpstream() as upstream:
        upstream.script = my_script                     # async def my_script(asked: Asked) -> None
        ...
        assert upstream.count("www.example.org.") == 1

Without a script it answers every A question with ``192.0.2.1`` and every other one with an empty answer.  It listens on
one port of ``127.0.0.1`` (or ``host``) over UDP and TCP (or TLS alone).  A script sends what it likes, when it
likes, as often as it likes: see `Asked`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

Script = Callable[["Asked"], Awaitable[None]]


class Asked:
    """One query that has come in."""

    def __init__(self, packet: bytes, peer: tuple[str, int], proto: str, send: Callable[[bytes], None]) -> None:
        self.packet = packet
        self.peer = peer
        self.proto = proto
        self.message = dns.message.from_wire(packet)
        question = self.message.question[0]
        self.name = question.name.to_text().lower()
        """With the trailing dot, in lower case."""
        self.spelling = question.name.to_text()
        self.type = dns.rdatatype.to_text(question.rdtype)
        self.close: Callable[[], None] = lambda: None
        """Close the connection; nothing over UDP."""
        self._send = send

    def send(self, packet: bytes) -> None:
        """Send these octets back, framed over TCP; may be called at any time, any number of times."""
        self._send(packet)

    def reply(
        self,
        *answer: str,
        authority: tuple[str, ...] = (),
        additional: tuple[str, ...] = (),
        rcode: str = "NOERROR",
        flags: str = "QR RD RA",
        edns: bool | None = None,
        options: tuple[Any, ...] = (),
    ) -> bytes:
        """A well-formed answer; records as in a zone file (``www.example.org. 60 IN A 192.0.2.1``).

        ``edns`` None: an OPT record if the query has one.
        """
        message = dns.message.Message(self.message.id)
        message.flags = dns.flags.from_text(flags)
        message.question = self.message.question
        for section, records in ((message.answer, answer), (message.authority, authority)):
            section.extend(_rrset(text) for text in records)
        message.additional.extend(_rrset(text) for text in additional)
        if self.message.edns >= 0 if edns is None else edns:
            message.use_edns(0, self.message.ednsflags, 1232, options=list(options))
        message.set_rcode(dns.rcode.from_text(rcode))
        return message.to_wire(max_size=65535)

    def address(self, address: str = "192.0.2.1", ttl: int = 60) -> bytes:
        """The answer with one A record."""
        return self.reply(f"{self.spelling} {ttl} IN A {address}")


def _rrset(text: str) -> dns.rrset.RRset:
    owner, ttl, klass, type, rdata = text.split(maxsplit=4)
    return dns.rrset.from_text(owner, int(ttl), klass, type, rdata)


def format_error(packet: bytes) -> bytes:
    """What a query that cannot be read is answered with."""
    return packet[:2] + b"\x80\1" + bytes(8)


def odd_packets(good: bytes) -> dict[str, bytes]:
    """What forgers and broken servers send in place of a good answer: one of each kind, none to be believed."""
    id, flags, *counts = struct.unpack_from("!6H", good)
    end = 12
    while good[end]:
        end += 1 + good[end]
    question, rest = good[12 : end + 5], good[end + 5 :]

    def packet(id: int = id, flags: int = flags, counts: list[int] = counts, question: bytes = question) -> bytes:
        return struct.pack("!6H", id, flags, *counts) + question + rest

    other_name = bytes((question[0],)) + bytes(octet ^ 1 for octet in question[1 : 1 + question[0]])
    return {
        "another ID": packet(id=id ^ 0x5555),
        "another name": packet(question=other_name + question[1 + question[0] :]),
        "another type": packet(question=question[:-4] + b"\0\x10" + question[-2:]),
        "another class": packet(question=question[:-2] + b"\0\3"),
        "a query": packet(flags=flags & 0x7FFF),
        "another opcode": packet(flags=flags | 0x2800),
        "no question": struct.pack("!6H", id, flags, 0, *counts[1:]) + rest,
        "no question, FORMERR": struct.pack("!6H", id, flags & 0xFFF0 | 1, 0, 0, 0, 0),
        "two questions": struct.pack("!6H", id, flags, 2, *counts[1:]) + question * 2 + rest,
        "more records than there are": packet(counts=[1, 9, 0, 0]),
        "cut off": good[: len(good) - 3],
        "cut in the header": good[:7],
        "garbage behind it": good + b"garbage",
        "nothing": b"",
        "noise": b"\xff" * 40,
        "a pointer to itself": struct.pack("!6H", id, flags, 1, 1, 0, 0)
        + question
        + b"\xc0"
        + bytes((len(question) + 12,)),
    }


class FakeUpstream:
    """The server."""

    def __init__(
        self,
        *,
        udp: bool = True,
        tcp: bool = True,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.script: Script = answer_all
        self.asked: list[Asked] = []
        self.connections = 0
        """TCP connections accepted so far."""
        self.open_connections = 0
        self.errors: list[Exception] = []
        """What scripts raised; leaving the ``async with`` raises it again."""
        self.port = port
        self.host = host
        self._udp, self._tcp, self._tls = udp and tls is None, tcp, tls
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> FakeUpstream:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
        if self.errors and error is None:
            raise self.errors[0]

    @property
    def address(self) -> str:
        """``HOST:PORT``, for a Corefile."""
        return f"{self.host}:{self.port}"

    def count(self, name: str | None = None, proto: str | None = None, type: str | None = None) -> int:
        """How many queries came in: for a name, over a transport, of a type."""
        return sum(
            (name is None or asked.name == name)
            and (proto is None or asked.proto == proto)
            and (type is None or asked.type == type)
            for asked in self.asked
        )

    @property
    def names(self) -> Counter[str]:
        """How often each name was asked, health probes left out."""
        return Counter(asked.name for asked in self.asked if asked.name != ".")

    @property
    def ports(self) -> Counter[int]:
        """How often each source port was used over UDP."""
        return Counter(asked.peer[1] for asked in self.asked if asked.proto == "udp")

    def send(self, datagram: bytes, to: tuple[str, int]) -> None:
        """Send from the server's address what nobody has asked for."""
        assert self._transport is not None
        self._transport.sendto(datagram, to)

    async def start(self) -> None:
        """Listen; on the port of last time after a `stop`."""
        loop = asyncio.get_running_loop()
        for _ in range(50):
            try:
                if self._tcp or self._tls is not None:
                    self._server = await asyncio.start_server(self._connected, self.host, self.port, ssl=self._tls)
                    port = self._server.sockets[0].getsockname()[1]
                else:
                    port = self.port
                if self._udp:
                    self._transport, _ = await loop.create_datagram_endpoint(
                        lambda: _Datagrams(self), local_addr=(self.host, port)
                    )
                    port = self._transport.get_extra_info("sockname")[1]
                self.port = port
            except OSError:
                # The port is free for TCP and not for UDP: take another one.
                await self.stop()
                if self.port:
                    raise
                continue
            return
        raise OSError("no port is free for both UDP and TCP")

    async def stop(self) -> None:
        """Close everything: now nobody listens on the port."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Closed sockets leave the loop one round later.
        await asyncio.sleep(0)

    def take(self, asked: Asked) -> None:
        """A query has come in."""
        self.asked.append(asked)
        self._run(self._play(asked))

    async def _play(self, asked: Asked) -> None:
        try:
            await self.script(asked)
        except ConnectionError:
            pass
        except Exception as error:  # noqa: BLE001 - raised again where the test ends
            self.errors.append(error)

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        self._writers.add(writer)

        def send(packet: bytes) -> None:
            writer.write(struct.pack("!H", len(packet)) + packet)

        try:
            while True:
                packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                try:
                    asked = Asked(packet, writer.get_extra_info("peername")[:2], "tcp", send)
                except dns.exception.DNSException:
                    send(format_error(packet))
                    continue
                asked.close = writer.transport.abort
                self.take(asked)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self.open_connections -= 1
            self._writers.discard(writer)
            writer.transport.abort()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: FakeUpstream) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)

    def datagram_received(self, data: bytes, peer: Any) -> None:
        def send(packet: bytes) -> None:
            if not self._transport.is_closing():
                self._transport.sendto(packet, peer)

        try:
            asked = Asked(data, peer[:2], "udp", send)
        except dns.exception.DNSException:
            send(format_error(data))
        else:
            self._server.take(asked)


# --- scripts ---------------------------------------------------------------------------------------------------------


async def answer_all(asked: Asked) -> None:
    """The usual answer."""
    asked.send(asked.address() if asked.type == "A" else asked.reply())


async def silent(asked: Asked) -> None:
    """No answer, ever."""


def after(seconds: float, script: Script = answer_all) -> Script:
    """The script, so much later."""

    async def play(asked: Asked) -> None:
        await asyncio.sleep(seconds)
        await script(asked)

    return play


def by_name(scripts: dict[str, Script], otherwise: Script = answer_all) -> Script:
    """One script for each name or zone (the longest one that the name is in)."""

    async def play(asked: Asked) -> None:
        name = asked.name
        while name not in scripts and name.rstrip("."):
            name = name.partition(".")[2] or "."
        await scripts.get(name, otherwise)(asked)

    return play


def rcode(text: str) -> Script:
    """An empty answer with this rcode."""

    async def play(asked: Asked) -> None:
        asked.send(asked.reply(rcode=text))

    return play


def server_context(paths: tuple[Path, Path]) -> ssl.SSLContext:
    """A TLS server's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*paths)
    return context
