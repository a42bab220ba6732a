"""Questions over TCP and TLS: a few connections, each with many questions on it at once (RFC 7766).

Answers are told apart by their IDs and may overtake each other.  But many servers, CoreDNS among them, answer one
connection in order, and there a slow name holds up all behind it: so a question goes to a connection with nothing on it
if there is one, and a new one is opened as long as there may be more of them; only then they share.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Any, Final

import msgspec

from kdns import limits
from kdns.upstream.ask import Attempt, Cells, UpstreamError, matching, random_numbers
from kdns.upstream.udp import endpoint_text
from kdns.upstream.wheel import Wheel

_SHARE: Final = {"tcp": 1, "tls": 8}
"""Questions on one connection before another one is opened; a TLS handshake is worth waiting for others."""


class Peer(msgspec.Struct, frozen=True):
    """Where connections of a pool lead."""

    host: str
    port: int
    source: str
    """Our address; empty = any."""
    context: ssl.SSLContext | None
    """None: plain TCP."""
    server_name: str
    """Whom the certificate must name; empty = ``host``."""


class Stream(asyncio.Protocol):
    """One connection."""

    def __init__(self, pool: StreamPool, now: float) -> None:
        self._pool = pool
        self.local: tuple[str, int] = ("", 0)
        self.born = self.used = now
        self.heard = now
        """When anything came in last."""
        self.waiting: dict[int, Attempt] = {}
        self.open = False
        """The handshake is over."""
        self.retired = False
        """No more questions; close when all have their answers."""
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._received = bytearray()

    @property
    def waits_for(self) -> str:
        """``read tcp LOCAL->REMOTE``; before the connection is open ``dial tcp REMOTE``."""
        return f"read tcp {endpoint_text(*self.local)}->{self._pool.remote}" if self.open else self.dials

    @property
    def dials(self) -> str:
        """``dial tcp REMOTE``."""
        return f"dial tcp {self._pool.remote}"

    def send(self, attempt: Attempt, id: int) -> None:
        """Send the attempt's question, at once or when the connection is open."""
        self.waiting[id] = attempt
        attempt.id = id
        attempt.carrier = self
        self.used = attempt.sent
        tail = attempt.ask.tail
        frame = (len(tail) + 2).to_bytes(2, "big") + id.to_bytes(2, "big") + tail
        if self._transport is not None:
            self._transport.write(frame)
        else:
            self._unsent.append(frame)

    def forget(self, attempt: Attempt) -> None:
        """The answer to this attempt is not wanted any more."""
        if self.waiting.get(attempt.id) is attempt:
            del self.waiting[attempt.id]
            if self.heard <= attempt.sent:
                # Nothing at all since then: the connection may be dead without anybody having said so.
                self.retired = True
            self.close_if_done()

    def close_if_done(self) -> None:
        """Close a retired connection on which nothing waits."""
        if self.retired and not self.waiting:
            self.close()

    def close(self) -> None:
        """Close at once."""
        self._pool.drop(self)
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: UpstreamError) -> None:
        """The connection is no more; nothing on it will be answered."""
        self._pool.drop(self)
        lost = list(self.waiting.values())
        self.waiting.clear()
        for attempt in lost:
            self._pool.lost(self, attempt, error)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over: send what has been asked meanwhile."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own promise, said for the type checker
        self._transport = transport
        self.local = (transport.get_extra_info("sockname") or self.local)[:2]
        if self.local == (transport.get_extra_info("peername") or ())[:2]:
            # Nobody listens, and chance gave us the very port that we connect to: TCP connects a socket with itself.
            self.fail(UpstreamError(f"{self.dials}: connect: connection refused"))
            transport.abort()
            return
        self.open = True
        transport.write(b"".join(self._unsent))
        self._unsent.clear()
        self.close_if_done()

    def data_received(self, data: bytes) -> None:
        """Take whole messages out of the stream."""
        self.heard = asyncio.get_running_loop().time()
        received = self._received
        received += data
        at = 0
        while len(received) >= at + 2:
            end = at + 2 + int.from_bytes(received[at : at + 2], "big")
            if len(received) < end:
                break
            packet = bytes(received[at + 2 : end])
            at = end
            self._message(packet)
        del received[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed it, or the network."""
        reason = "EOF" if exc is None else f"{self.waits_for}: read: {_words(exc)}"
        self.fail(UpstreamError(reason))

    def _message(self, packet: bytes) -> None:
        attempt = self.waiting.get(packet[0] << 8 | packet[1]) if len(packet) >= 12 else None
        message = matching(packet, attempt.ask) if attempt is not None else None
        if attempt is None or message is None:
            self._pool.cells.strange.value += 1
            return
        del self.waiting[attempt.id]
        # Retired connections close when their last answer has come.
        self.close_if_done()
        attempt.ask.answered(attempt, message)


class StreamPool:
    """All TCP or TLS connections to one server."""

    def __init__(self, peer: Peer, lifetime: tuple[float, float, int], wheel: Wheel, cells: Cells) -> None:
        """``lifetime``: as for `UdpPool`."""
        self._peer = peer
        self.remote = endpoint_text(peer.host, peer.port)
        self._expire, self._max_age, self._idle = lifetime
        self._wheel = wheel
        self.cells = cells
        self._share = _SHARE["tls" if peer.context is not None else "tcp"]
        self._random = random_numbers()
        self._streams: list[Stream] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._sweeping = False
        self.closed = False

    @property
    def open(self) -> int:
        """Connections, those included that are being opened."""
        return len(self._streams)

    def send(self, attempt: Attempt) -> None:
        """Send the attempt's question on some connection.  Raises UpstreamError."""
        stream = self._choose(attempt.sent)
        id = next(self._random)
        while id in stream.waiting:
            id = next(self._random)
        stream.send(attempt, id)

    def drop(self, stream: Stream) -> None:
        """This connection is no more."""
        if stream in self._streams:
            self._streams.remove(stream)

    def lost(self, stream: Stream, attempt: Attempt, error: UpstreamError) -> None:
        """The answer to this attempt went down with its connection."""
        if stream.open and attempt.sent > stream.born:
            # Servers close connections when they have been idle, or have had enough of them.  That says nothing about
            # the server: ask again.  Each time an older connection is gone, so this ends with a new one at the latest.
            try:
                self.send(attempt)
            except UpstreamError as new:
                error = new
            else:
                return
        attempt.ask.failed(attempt, error)

    def close(self) -> None:
        """No connection is kept any longer than its questions wait."""
        self.closed = True
        for stream in list(self._streams):
            stream.retired = True
            stream.close_if_done()

    def tick(self, now: float) -> None:
        """Let go of what has not been used, or has been kept, for too long, and of what is idle above the bound."""
        self._sweeping = False
        idle = 0
        for stream in list(self._streams):
            if 0 < self._max_age < now - stream.born:
                stream.retired = True
            elif not stream.waiting:
                idle += 1
                stream.retired |= now - stream.used > self._expire or 0 < self._idle < idle
            stream.close_if_done()
        self._sweep_later(now)

    def _choose(self, now: float) -> Stream:
        streams = [stream for stream in self._streams if not stream.retired]
        if streams:
            stream = min(streams, key=lambda stream: (len(stream.waiting), not stream.open))
            full = len(self._streams) >= limits.UPSTREAM_STREAMS
            if len(stream.waiting) < self._share or (full and len(stream.waiting) < limits.UPSTREAM_PIPELINE):
                self.cells.hits.value += 1
                return stream
        if len(self._streams) >= limits.UPSTREAM_STREAMS:
            self.cells.full.value += 1
            raise UpstreamError(f"dial tcp {self.remote}: all connections are full")
        return self._open(now)

    def _open(self, now: float) -> Stream:
        """A connection that is being opened; it takes questions already."""
        self.cells.misses.value += 1
        stream = Stream(self, now)
        stream.retired = self.closed
        self._streams.append(stream)
        task = asyncio.get_running_loop().create_task(self._connect(stream))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._sweep_later(now)
        return stream

    async def _connect(self, stream: Stream) -> None:
        peer = self._peer
        options: dict[str, Any] = {}
        if peer.context is not None:
            options = {"ssl": peer.context, "server_hostname": peer.server_name or peer.host}
        if peer.source:
            options["local_addr"] = (peer.source, 0)
        reason = "i/o timeout"
        try:
            async with asyncio.timeout(limits.UPSTREAM_CONNECT):
                await asyncio.get_running_loop().create_connection(lambda: stream, peer.host, peer.port, **options)
            return
        except TimeoutError:
            pass
        except ssl.SSLCertVerificationError as error:
            reason = f"tls: failed to verify certificate: {error.verify_message}"
        except OSError as error:
            reason = f"connect: {_words(error)}"
        stream.fail(UpstreamError(f"{stream.dials}: {reason}"))

    def _sweep_later(self, now: float) -> None:
        if self._streams and not self._sweeping:
            self._sweeping = True
            self._wheel.at(now + max(0.5, self._expire / 4), self)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error).lower() or type(error).__name__


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """An address text, IPv6 zone included, as sockets take it.  Raises UpstreamError when this machine cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except OSError as error:
        raise UpstreamError(f"dial {endpoint_text(host, port)}: {_words(error)}") from None
    return found[0][0], found[0][4]
