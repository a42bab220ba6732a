"""UDP: drain the socket in bounded batches, and answer from the address that was asked.

asyncio's own datagram transport costs ten times as much per packet and queues without a bound; here the kernel's
receive buffer is the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

from kdns import limits
from kdns.compiled import twin
from kdns.handler import Handler, Waiting
from kdns.log import Logger
from kdns.message import Listener
from kdns.metrics import Cell, Metrics
from kdns.packetcache import PacketCache

# Room for one in_pktinfo or in6_pktinfo.
_ANCILLARY: Final = socket.CMSG_SPACE(20)
_IP_PKTINFO: Final = 8
_IN_PKTINFO: Final = 12
_ANY_INTERFACE: Final = bytes(4)
_RECEIVE_BUFFER: Final = 4 * 2**20


def open_socket(host: str, port: int, shared: bool = False) -> socket.socket:
    """A bound non-blocking UDP socket; ``host`` is an address without zone, port 0 takes any.  Raises OSError.

    ``shared``: further sockets of ours may be bound to the same address (SO_REUSEPORT).

    A wildcard socket learns which address was asked (IP_PKTINFO), so that the answer comes from there: clients and
    connection tracking drop answers from another one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if is_wildcard(host):
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        share(sock, shared)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def share(sock: socket.socket, shared: bool) -> None:
    """Whether other sockets of ours may be bound to the address of this one."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)


def is_shared(sock: socket.socket) -> bool:
    """What `share` has said last."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def is_wildcard(host: str) -> bool:
    """Whether a socket bound to this address answers for all of the host's."""
    return host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class UdpListener:
    """Reads one UDP socket and answers what comes in, on the twin that its packet cache is of (see `kdns.compiled`).

    ``threads``: so many native threads serve the address, one of them this socket: it reads it and answers what the
    packet cache knows; the compiled twin only.  0: none.
    """

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        packets: PacketCache,
        server: str,
        scope: bytes,
        metrics: Metrics,
        threads: int = 0,
    ) -> None:
        host, port = sock.getsockname()[:2]
        self.sock = sock
        self._handler = handler
        self._waiting: dict[Waiting, Any] = {}
        """Queries that wait for something → the way back to the asker."""
        self._answered: list[tuple[Any, bytes]] = []
        """Replies that waited, with the same."""
        self._predecessors: set[UdpListener] = set()
        """Earlier listeners whose late answers go through this one's socket, as long as they have any."""
        self._heir: UdpListener | None = None
        self._loop = asyncio.get_running_loop()
        listener = Listener(server, "udp", (host, port), "2" if sock.family == socket.AF_INET6 else "1")
        call = (is_wildcard(host), packets, scope, handler.handle, self._late, listener)
        self._receiver: Any
        if isinstance(packets, PacketCache):
            self._receiver = Receiver(sock, *call)
        else:
            self._receiver = _native_receiver(sock, call, threads)
        self._unsent: Cell = metrics.counter(
            "kdns_udp_unsent_total", "Replies that the kernel would not take.", ("server",)
        ).cell(server)
        self._overflows: Cell = metrics.counter(
            "kdns_udp_overflows_total", "Queries let go because a native thread's queue was full.", ("server",)
        ).cell(server)
        self._counted = (0, 0)
        self._no_scrape = metrics.before_scrape(self._settle)
        self._direct = getattr(self._loop, "direct", None)
        self._watched = self._receiver.fileno()
        self._loop.add_reader(self._watched, self._receiver.drain)
        if self._direct is not None and self._watched == sock.fileno() and not isinstance(packets, PacketCache):
            self._direct.attach(self._receiver)
        else:
            self._direct = None

    @property
    def waiting(self) -> int:
        """Queries that were read here and still wait for their answer."""
        return len(self._waiting) + sum(listener.waiting for listener in self._predecessors)

    def stop_reading(self) -> None:
        """Answer what the socket holds, then read no more; what waits is still answered."""
        self._leave()
        self._receiver.stop()

    def close(self) -> None:
        """Let go of the socket and of every query that still waits."""
        self._leave()
        for listener in (self, *self._predecessors):
            listener._give_up()
        self._settle()
        self._no_scrape()
        self.sock.close()

    def hand_over(self, heir: UdpListener) -> None:
        """Answer what the socket holds, then close it; what waits is answered through the heir's (same address)."""
        # A connected socket takes no part in the kernel's choice among those of an address (Linux 5.4), so nothing can
        # come between the last look and the close.  Where it cannot be connected, that little may be lost.
        with contextlib.suppress(OSError):
            self.sock.connect(self.sock.getsockname())
        self.stop_reading()
        for listener in (self, *self._predecessors):
            listener._receiver.send_through(heir.sock)
            listener._heir = heir
            heir._predecessors.add(listener)
            listener._go_when_done()
        self._predecessors = set()
        self._no_scrape()
        self.sock.close()

    def _go_when_done(self) -> None:
        """A listener that has handed over is kept for its late answers only."""
        if self._heir is not None and not self._waiting and not self._answered:
            self._heir._predecessors.discard(self)
            self._receiver.close()
        self._settle()

    def _give_up(self) -> None:
        for waiting in list(self._waiting):
            waiting.cancel()
        self._send_late()
        self._receiver.close()

    def _leave(self) -> None:
        if self._direct is not None:
            self._direct.detach(self._receiver)
        self._loop.remove_reader(self._watched)

    def _late(self, waiting: Waiting, back: Any) -> None:
        """A query waits for something: the answer is sent later."""
        self._waiting[waiting] = back
        waiting.park(self._settled)

    def _settled(self, waiting: Waiting, reply: bytes | None) -> None:
        back = self._waiting.pop(waiting)
        if reply is not None:
            # All that one look at the upstreams brought go out in a row: that wakes the client once, not each time.
            if not self._answered:
                self._loop.call_soon(self._send_late)
            self._answered.append((back, reply))
        elif self._heir is not None:
            self._go_when_done()

    def _send_late(self) -> None:
        answered, self._answered = self._answered, []
        for back, reply in answered:
            back.send(reply)
        if self._heir is not None:
            self._go_when_done()

    def _settle(self) -> None:
        unsent, overflows = self._receiver.unsent, self._receiver.overflows
        self._unsent.value += unsent - self._counted[0]
        self._overflows.value += overflows - self._counted[1]
        self._counted = unsent, overflows


def _native_receiver(sock: socket.socket, call: tuple[Any, ...], threads: int) -> Any:
    """The compiled receiver; without the thread that it should have where the system has none to give."""
    receiver = twin("kdns._packetcache").Receiver
    if threads:
        queue = max(limits.UDP_QUEUE // threads, limits.UDP_QUEUE_LEAST)
        try:
            return receiver(sock.fileno(), *call, queue)
        except OSError as error:
            Logger("multisocket").error(f"a socket is served without a thread of its own: {error.strerror}")
    return receiver(sock.fileno(), *call)


class Receiver:
    """Reads a UDP socket, answers what the packet cache knows, and puts everything else to the handler.

    The Python twin of ``kdns._packetcache.Receiver``: ``handle(packet, peer, listener, scope)`` gives the reply's
    octets, None for silence, or something else: then ``late(that, back)`` is called, and ``back.send(reply)`` answers
    later.
    """

    overflows = 0
    """Only a native thread has a queue that can be full."""

    def __init__(
        self, sock: socket.socket, wildcard: bool, packets: PacketCache, scope: bytes,
        handle: Callable[[bytes, tuple[str, int], Listener, bytes], bytes | Waiting | None],
        late: Callable[[Waiting, Back], None], listener: Listener,
    ) -> None:  # fmt: skip
        self.sock = sock
        self.unsent = 0
        """Replies that the kernel would not take."""
        self.closed = False
        self._packets, self._scope = packets, scope
        self._handle, self._late, self._listener = handle, late, listener
        self._now = asyncio.get_running_loop().time
        self.drain = self._drain_wildcard if wildcard else self._drain
        """Reads and answers one batch."""

    def fileno(self) -> int:
        """What is readable when `drain` has something to do."""
        return self.sock.fileno()

    def stop(self) -> None:
        """Answer what the socket holds, then read no more; late answers can still be sent."""
        for _ in range(limits.UDP_LAST_BATCHES):
            self.drain()

    def send_through(self, sock: socket.socket) -> None:
        """Send late answers through another socket of the same address."""
        self.sock = sock

    def close(self) -> None:
        """Send nothing any more: the socket is about to be closed."""
        self.closed = True

    def _drain(self) -> None:
        receive, send, answer = self.sock.recvfrom, self.sock.sendto, self._packets.get
        scope, now = self._scope, self._now()
        for _ in range(limits.UDP_BATCH):
            try:
                packet, peer = receive(limits.UDP_QUERY)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error for an earlier reply, or a fault of this one read: the next datagram is another matter.
                continue
            reply = answer(scope, packet, now) or self._ask(packet, peer, None)
            if reply is None:
                continue
            try:
                send(reply, peer)
            except OSError:
                self.unsent += 1

    def _drain_wildcard(self) -> None:
        receive, send, answer = self.sock.recvmsg, self.sock.sendmsg, self._packets.get
        scope, now = self._scope, self._now()
        for _ in range(limits.UDP_BATCH):
            try:
                packet, ancillary, _flags, peer = receive(limits.UDP_QUERY, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                continue
            if ancillary and len(ancillary[0][2]) == _IN_PKTINFO:
                # The source address is to be kept, the interface is for the routing table to choose.
                ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, _ANY_INTERFACE + ancillary[0][2][4:])]
            reply = answer(scope, packet, now) or self._ask(packet, peer, ancillary)
            if reply is None:
                continue
            try:
                send((reply,), ancillary, 0, peer)
            except OSError:
                self.unsent += 1

    def _ask(self, packet: bytes, peer: Any, ancillary: Any) -> bytes | None:
        """The reply's bytes when they are to be had at once."""
        reply = self._handle(packet, peer[:2], self._listener, self._scope)
        if not isinstance(reply, Waiting):
            return reply
        self._late(reply, Back(self, peer, ancillary))
        return None


class Back:
    """The way back to an asker, for an answer that comes later."""

    __slots__ = ("_ancillary", "_peer", "_receiver")

    def __init__(self, receiver: Receiver, peer: Any, ancillary: Any) -> None:
        self._receiver, self._peer, self._ancillary = receiver, peer, ancillary

    def send(self, reply: bytes) -> None:
        """Send the reply; one that the kernel does not take is counted."""
        receiver = self._receiver
        if receiver.closed:
            return
        try:
            if self._ancillary is None:
                receiver.sock.sendto(reply, self._peer)
            else:
                receiver.sock.sendmsg((reply,), self._ancillary, 0, self._peer)
        except OSError:
            receiver.unsent += 1
