"""TCP and DNS over TLS: two octets of length, then a message (RFC 7766, RFC 7858).

Queries of one connection are worked on side by side and answered as they become ready.  A connection is cut off when
it brings no whole query for a while (slow senders, idle clients), when it does not take its answers, and, the longest
idle one first, when there are too many.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections import OrderedDict
from typing import Any, Final

from kdns import limits
from kdns.accept import Acceptor
from kdns.handler import Handler, Waiting
from kdns.message import Listener
from kdns.metrics import Family, Metrics
from kdns.packetcache import PacketCache

_SWEEP: Final = 1.0
"""Seconds between looks at idle and stuck connections."""


def open_socket(host: str, port: int) -> socket.socket:
    """A bound, listening, non-blocking TCP socket; ``host`` is an address without zone.  Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(limits.TCP_ACCEPT_QUEUE)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


class StreamListener:
    """Accepts the connections of one TCP socket, for DNS over TCP or, with a TLS context, over TLS."""

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        packets: PacketCache,
        server: str,
        scope: bytes,
        metrics: Metrics,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.sock = sock
        self.handler = handler
        self.packets = packets
        self.server = server
        self.scope = scope
        self.connections: OrderedDict[Connection, None] = OrderedDict()
        """The longest idle one first."""
        self.closed: Family = metrics.counter(
            "kdns_tcp_connections_closed_total", "TCP connections cut off by the server.", ("server", "reason")
        )
        self._open = metrics.gauge("kdns_tcp_connections", "Open TCP connections.", ("server",)).cell(server)
        self.encrypted = tls is not None
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(sock, self._make, self._make_room, tls, limits.TLS_HANDSHAKE)
        self._sweeper = self._loop.call_later(_SWEEP, self._sweep)
        # The other descriptors are for the other listeners, upstreams and probes.
        self._most = min(limits.TCP_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    @property
    def waiting(self) -> int:
        """Queries that were read here and still wait for their answer, or to be taken by the client."""
        return sum(len(connection.waiting) for connection in self.connections)

    def use(self, tls: ssl.SSLContext | None) -> None:
        """Connections that come from now on are encrypted with this."""
        self._acceptor.tls = tls

    def stop_reading(self) -> None:
        """Accept no more connections and read no more queries; what waits is still answered."""
        self._acceptor.stop()
        for connection in list(self.connections):
            connection.finish()

    def close(self) -> None:
        """Cut everything off."""
        self.stop_reading()
        self._sweeper.cancel()
        self._acceptor.close()
        for connection in list(self.connections):
            connection.abort()
        self.sock.close()

    def touch(self, connection: Connection) -> None:
        """A connection has brought a whole query."""
        connection.last = self._loop.time()
        self.connections.move_to_end(connection)

    def joined(self, connection: Connection) -> None:
        """A connection is open: make room for it if there are too many."""
        self.connections[connection] = None
        self._open.value = len(self.connections)
        if len(self.connections) > self._most:
            self.cut(next(iter(self.connections)), "limit")

    def left(self, connection: Connection) -> None:
        """A connection is closed."""
        self.connections.pop(connection, None)
        self._open.value = len(self.connections)

    def cut(self, connection: Connection, reason: str) -> None:
        """Close a connection that has overstayed."""
        self.closed.cell(self.server, reason).value += 1
        self.left(connection)
        connection.abort()

    def _make(self, sock: socket.socket, peer: Any) -> Connection:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        local = sock.getsockname()
        family = "2" if sock.family == socket.AF_INET6 else "1"
        return Connection(self, Listener(self.server, "tcp", (local[0], local[1]), family), (peer[0], peer[1]))

    def _make_room(self) -> None:
        """No more file descriptors: give back the longest idle connection's."""
        if self.connections:
            self.cut(next(iter(self.connections)), "descriptors")

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self.connections):
            if connection.stuck_since and now - connection.stuck_since > limits.TCP_WRITE:
                self.cut(connection, "write")
            elif now - connection.last > limits.TCP_IDLE and not connection.waiting:
                self.cut(connection, "idle")
            elif connection.partial_since and now - connection.partial_since > limits.TCP_READ:
                self.cut(connection, "read")
        self._sweeper = self._loop.call_later(_SWEEP, self._sweep)


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, owner: StreamListener, listener: Listener, peer: tuple[str, int]) -> None:
        self.waiting: set[Waiting] = set()
        """Queries that wait for something."""
        self.last = 0.0
        """When the last whole query came (monotonic seconds)."""
        self.stuck_since = 0.0
        """Since when the client does not take its answers; 0 = it does."""
        self.partial_since = 0.0
        """Since when a query has been half here; 0 = none is."""
        self._owner = owner
        self._listener = listener
        self._peer = peer
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._eof = False
        self._finishing = False
        self._resting = False
        """Other sockets have their turn before this one's queries are worked on again."""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to count time and queries."""
        self._transport = transport  # type: ignore[assignment]
        self._transport.set_write_buffer_limits(high=limits.TCP_BACKLOG)  # type: ignore[union-attr]
        self.last = self._loop.time()
        self._owner.joined(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget what nobody waits for any more."""
        self._transport = None
        self._owner.left(self)
        self._buffer.clear()
        for waiting in list(self.waiting):
            waiting.cancel()

    def eof_received(self) -> bool:
        """The client asks no more, but still wants its answers."""
        self._eof = True
        self._work()
        # Over TLS the end of the stream is the end of the connection.
        return not self._owner.encrypted

    def pause_writing(self) -> None:
        """The client does not take its answers: read no more until it does."""
        self.stuck_since = self._loop.time()
        self._update_reading()

    def resume_writing(self) -> None:
        """The client takes its answers again."""
        self.stuck_since = 0.0
        self._work()

    def data_received(self, data: bytes) -> None:
        """Answer every whole query in what has come so far."""
        self._buffer += data
        self._work()

    def finish(self) -> None:
        """Read no more, answer what has been read, then close."""
        self._finishing = True
        self._update_reading()
        self._close_when_done()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _work(self) -> None:
        """Take whole queries out of the buffer as long as there is room for their answers, a batch at a time."""
        buffer = self._buffer
        out: list[bytes] = []
        size = at = taken = 0
        while self._can_take() and len(buffer) - at >= 2:
            end = at + 2 + (buffer[at] << 8 | buffer[at + 1])
            if len(buffer) < end:
                break
            reply = self._ask(bytes(buffer[at + 2 : end]))
            at = end
            taken += 1
            if taken == limits.TCP_BATCH:
                self._resting = True
                self._loop.call_soon(self._go_on)
            if reply is not None:
                out.append(len(reply).to_bytes(2, "big") + reply)
                size += len(reply)
                if size >= limits.TCP_BACKLOG:
                    # Writing so much at once tells us whether the client takes it: it may stop this loop.
                    self._write(out)
                    out, size = [], 0
        self._write(out)
        if at:
            del buffer[:at]
            self._owner.touch(self)
        if not buffer or not self._can_take():
            self.partial_since = 0.0
        elif at or not self.partial_since:
            self.partial_since = self._loop.time()
        self._update_reading()
        self._close_when_done()

    def _go_on(self) -> None:
        self._resting = False
        self._work()

    def _write(self, replies: list[bytes]) -> None:
        if replies and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(replies))

    def _close_when_done(self) -> None:
        if self.waiting or self._resting or self._transport is None:
            return
        if self._finishing or (self._eof and self._can_take()):
            self._transport.close()

    def _can_take(self) -> bool:
        return not self.stuck_since and not self._resting and len(self.waiting) < limits.TCP_PIPELINE

    def _ask(self, packet: bytes) -> bytes | None:
        owner = self._owner
        reply: bytes | Waiting | None = owner.packets.get(owner.scope, packet, self._loop.time())
        if reply is None:
            reply = owner.handler.handle(packet, self._peer, self._listener, owner.scope)
        if not isinstance(reply, Waiting):
            return reply
        self.waiting.add(reply)
        reply.park(self._settled)
        return None

    def _settled(self, waiting: Waiting, reply: bytes | None) -> None:
        self.waiting.discard(waiting)
        if reply is not None:
            self._write([len(reply).to_bytes(2, "big") + reply])
        if self._paused:
            self._work()
        else:
            self._close_when_done()

    def _update_reading(self) -> None:
        """Read from the client only while there is room for what it sends."""
        pause = self._finishing or not self._can_take()
        if pause is self._paused or self._transport is None or self._transport.is_closing() or self._eof:
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
