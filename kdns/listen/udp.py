"""UDP: drain the socket in bounded batches, and answer from the address that was asked.

asyncio's own datagram transport costs ten times as much per packet and queues without a bound; here the kernel's
receive buffer is the queue.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from kdns import limits
from kdns.handler import Handler, Waiting
from kdns.message import Listener
from kdns.metrics import Cell, Metrics
from kdns.packetcache import PacketCache

# Room for one in_pktinfo or in6_pktinfo.
_ANCILLARY: Final = socket.CMSG_SPACE(20)
_IP_PKTINFO: Final = 8
_IN_PKTINFO: Final = 12
_ANY_INTERFACE: Final = bytes(4)
_RECEIVE_BUFFER: Final = 4 * 2**20


def open_socket(host: str, port: int) -> socket.socket:
    """A bound non-blocking UDP socket; ``host`` is an address without zone, port 0 takes any.  Raises OSError.

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
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def is_wildcard(host: str) -> bool:
    """Whether a socket bound to this address answers for all of the host's."""
    return host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class UdpListener:
    """Reads one UDP socket and answers what comes in."""

    def __init__(
        self, sock: socket.socket, handler: Handler, packets: PacketCache, server: str, scope: bytes, metrics: Metrics
    ) -> None:
        host, port = sock.getsockname()[:2]
        self.sock = sock
        self._handler = handler
        self._packets = packets
        self._scope = scope
        self._listener = Listener(server, "udp", (host, port), "2" if sock.family == socket.AF_INET6 else "1")
        self._wildcard = is_wildcard(host)
        self._unsent: Cell = metrics.counter(
            "kdns_udp_unsent_total", "Replies that the kernel would not take.", ("server",)
        ).cell(server)
        self._waiting: dict[Waiting, tuple[Any, Any]] = {}
        """Queries that wait for something → who asks, and how the answer gets there."""
        self._late: list[tuple[bytes, Any, Any]] = []
        """Replies that waited, with the same."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._drain_wildcard if self._wildcard else self._drain)

    @property
    def waiting(self) -> int:
        """Queries that were read here and still wait for their answer."""
        return len(self._waiting)

    def stop_reading(self) -> None:
        """Answer what the socket holds, then read no more; what waits is still answered."""
        for _ in range(limits.UDP_LAST_BATCHES):
            (self._drain_wildcard if self._wildcard else self._drain)()
        self._loop.remove_reader(self.sock.fileno())

    def close(self) -> None:
        """Let go of the socket and of every query that still waits."""
        self._loop.remove_reader(self.sock.fileno())
        for waiting in list(self._waiting):
            waiting.cancel()
        self._send_late()
        self.sock.close()

    def _drain(self) -> None:
        receive, send, answer = self.sock.recvfrom, self.sock.sendto, self._packets.get
        scope = self._scope
        now = self._loop.time()
        for _ in range(limits.UDP_BATCH):
            try:
                packet, peer = receive(limits.UDP_QUERY)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error for an earlier reply, or a fault of this one read: the next datagram is another matter.
                continue
            reply = answer(scope, packet, now)
            if reply is None:
                reply = self._ask(packet, peer, None)
                if reply is None:
                    continue
            try:
                send(reply, peer)
            except OSError:
                self._unsent.value += 1

    def _drain_wildcard(self) -> None:
        receive, send, answer = self.sock.recvmsg, self.sock.sendmsg, self._packets.get
        scope = self._scope
        now = self._loop.time()
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
            reply = answer(scope, packet, now)
            if reply is None:
                reply = self._ask(packet, peer, ancillary)
                if reply is None:
                    continue
            try:
                send((reply,), ancillary, 0, peer)
            except OSError:
                self._unsent.value += 1

    def _ask(self, packet: bytes, peer: Any, ancillary: Any) -> bytes | None:
        """The reply's bytes when they are to be had at once; they are sent later when not."""
        reply = self._handler.handle(packet, peer[:2], self._listener, self._scope)
        if not isinstance(reply, Waiting):
            return reply
        self._waiting[reply] = peer, ancillary
        reply.park(self._settled)
        return None

    def _settled(self, waiting: Waiting, reply: bytes | None) -> None:
        peer, ancillary = self._waiting.pop(waiting)
        if reply is not None:
            # All that one look at the upstreams brought go out in a row: that wakes the client once, not each time.
            if not self._late:
                self._loop.call_soon(self._send_late)
            self._late.append((reply, peer, ancillary))

    def _send_late(self) -> None:
        late, self._late = self._late, []
        for reply, peer, ancillary in late:
            try:
                if ancillary is None:
                    self.sock.sendto(reply, peer)
                else:
                    self.sock.sendmsg((reply,), ancillary, 0, peer)
            except OSError:
                self._unsent.value += 1
