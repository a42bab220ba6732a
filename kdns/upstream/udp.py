"""Questions over UDP: a pool of connected sockets on ports that nobody can foresee.

A forger must hit the source port and the ID of a question that is under way (RFC 5452).  A new port for each question
costs three times as much as an old one, so a port serves `limits.UPSTREAM_USES` questions, is chosen by chance among up
to `limits.UPSTREAM_PORTS`, and is given up at once when something comes in on it that was not asked for: whoever sprays
a known port gets rid of it.  The chance is drawn over all places of the pool, the empty ones too, and an empty place
means a new port: a server with little to do uses each port once.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from kdns import limits
from kdns.upstream import native
from kdns.upstream.ask import Attempt, Cells, UpstreamError, matching, random_numbers

if TYPE_CHECKING:
    from kdns.upstream.server import Upstreams

_FIRST_SOCKETS: Final = 4
"""Sockets that every pool may have, whatever the others hold."""
_SPARES: Final = 64
"""Sockets that have done their duty and are kept to be given another port: that costs a fifth of a new one."""
_SCARCE: Final = 1.0
"""Seconds without new sockets after the kernel refused one."""


def endpoint_text(host: str, port: int) -> str:
    """``192.0.2.1:53``, ``[2001:db8::1]:53``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Allowance:
    """How many sockets may be open in all."""

    def __init__(self, left: int) -> None:
        self.left = left


class Port:
    """One connected socket."""

    __slots__ = (
        "_local",
        "_pool",
        "_sock",
        "born",
        "fd",
        "forsaken",
        "place",
        "spoilt",
        "strangers",
        "used",
        "uses",
        "waiting",
    )

    def __init__(self, sock: socket.socket, pool: UdpPool, born: float) -> None:
        self._sock = sock
        self.fd = sock.fileno()
        """-1: closed."""
        self._local: tuple[str, int] | None = None
        self._pool = pool
        self.born = self.used = born
        self.uses = 0
        self.strangers = 0
        """Datagrams that answered nothing."""
        self.waiting: dict[int, Attempt] = {}
        """ID → what waits for its answer."""
        self.forsaken: dict[int, None] = {}
        """IDs that were given up, the oldest first: their late answers are no forgeries."""
        self.place = -1
        """In the pool; -1 = no more questions, close when all have their answers."""
        self.spoilt = False
        """Something was not as it should be: not to be used again in any way."""

    @property
    def local(self) -> tuple[str, int]:
        """Our end; ask for it before the socket is closed."""
        if self._local is None:
            host, port = self._sock.getsockname()[:2]
            self._local = host, port
        return self._local

    @property
    def path(self) -> str:
        """``udp LOCAL->REMOTE``."""
        return f"udp {endpoint_text(*self.local)}->{self._pool.remote}"

    @property
    def waits_for(self) -> str:
        """``read udp LOCAL->REMOTE``."""
        return f"read {self.path}"

    def forget(self, attempt: Attempt) -> None:
        """The answer to this attempt is not wanted any more."""
        if self.waiting.get(attempt.id) is attempt:
            del self.waiting[attempt.id]
            forsaken = self.forsaken
            forsaken[attempt.id] = None
            # Where sockets are scarce a port may stay for all the hours in which an upstream is silent.
            if len(forsaken) > limits.UPSTREAM_FORSAKEN:
                del forsaken[next(iter(forsaken))]
            self._pool.tired(self)

    def renew(self, address: tuple[Any, ...], now: float) -> bool:
        """Begin anew, with another port; False: close it."""
        if native.renew is None or not native.renew(self.fd, address):
            return False
        self._local = None
        self.born = self.used = now
        self.uses = 0
        return True

    def close(self) -> None:
        """Give the port back."""
        self.fd = -1
        self._sock.close()

    def unsent(self, error: OSError) -> None:
        """The kernel would not take a question."""
        self._pool.fail(self, error, "write")

    def broken(self, error: OSError) -> None:
        """ICMP: nobody listens there, or no way leads there."""
        self._pool.fail(self, error, "read")

    def received(self, packet: bytes) -> None:
        """A datagram has come."""
        if len(packet) < 12:
            self._pool.burn(self)
            return
        id = packet[0] << 8 | packet[1]
        attempt = self.waiting.get(id)
        if attempt is None:
            if id not in self.forsaken:
                self._pool.burn(self)
            return
        if attempt.guarded:
            return
        message = matching(packet, attempt.ask)
        if message is None:
            self._pool.burn(self)
            return
        del self.waiting[id]
        if self.place < 0:
            self._pool.close_if_done(self)
        attempt.ask.answered(attempt, message)


class UdpPool:
    """All UDP sockets to one server."""

    def __init__(
        self,
        remote: tuple[socket.AddressFamily, Any],
        source: str,
        lifetime: tuple[float, float, int],
        home: Upstreams,
        cells: Cells,
    ) -> None:
        """``remote``: family and socket address; ``source``: our address, empty = any; ``lifetime``: seconds that an
        unused socket is kept, seconds that any is kept (0 = no bound), and how many unused ones (0 = no bound).
        """
        self._family, self._address = remote
        self.remote = endpoint_text(*self._address[:2])
        self._source = source
        self._expire, self._max_age, idle = lifetime
        self._most = min(idle or limits.UPSTREAM_PORTS, limits.UPSTREAM_PORTS)
        self._spares = _SPARES if native.renew is not None and not idle and not source else 0
        self._wheel, self._poller, self._outbox = home.wheel, home.poller, home.outbox
        self._allowance = home.allowance
        self._cells = cells
        self._random = random_numbers()
        self._pool: list[Port] = []
        self._spare: dict[Port, None] = {}
        """Neither asked on nor waited on; on its old port until it is given another."""
        self._scarce_until = 0.0
        self._scarce_why = "no socket to spare"
        self._sweeping = False
        self.open = 0
        """Sockets, those included that only wait for answers."""
        self.closed = False

    def send(self, attempt: Attempt) -> None:
        """Send the attempt's question on some port, with others in a batch.  Raises UpstreamError."""
        pool, random, now = self._pool, self._random, attempt.sent
        place = next(random) % limits.UPSTREAM_PORTS
        if place < len(pool):
            port = pool[place]
            self._cells.hits.value += 1
        else:
            port = self._new_port(place, now)
        waiting = port.waiting
        id = next(random)
        while id in waiting or id in port.forsaken:
            id = next(random)
        waiting[id] = attempt
        attempt.id = id
        attempt.carrier = port
        port.used = now
        port.uses += 1
        self._outbox.add(port, id.to_bytes(2, "big") + attempt.ask.tail)
        if port.uses >= limits.UPSTREAM_USES and port.place >= 0 and self._plenty(now):
            self._retire(port)

    def close(self) -> None:
        """No socket is kept any longer than its questions wait."""
        self.closed = True
        for port in [*self._pool, *self._spare]:
            self._retire(port)
            self.close_if_done(port)

    def tick(self, now: float) -> None:
        """Let go of what has not been used, or has been kept, for too long."""
        self._sweeping = False
        for port in list(self._pool):
            if now - port.used > self._expire or 0 < self._max_age < now - port.born:
                self._spoil(port)
        for port in list(self._spare):
            if now - port.used > self._expire:
                self._spoil(port)
        self._sweep_later(now)

    # -- what ports say

    def tired(self, port: Port) -> None:
        """The port has waited in vain for an answer: whoever has watched it for so long may know it by now."""
        port.spoilt = True
        if self._allowance.left > 0:
            self._retire(port)
        self.close_if_done(port)

    def burn(self, port: Port) -> None:
        """A datagram that answers nothing: the true answer is still awaited, but nothing more is asked here."""
        self._cells.strange.value += 1
        port.strangers += 1
        self._spoil(port)
        if port.strangers == limits.UPSTREAM_STRANGERS:
            for attempt in list(port.waiting.values()):
                attempt.ask.distrust(attempt)

    def fail(self, port: Port, error: OSError, verb: str) -> None:
        """Nothing that waits on this port will be answered."""
        self._retire(port)
        reason = UpstreamError(f"{verb} {port.path}: {verb}: {_words(error)}")
        lost = list(port.waiting.values())
        port.waiting.clear()
        self._spoil(port)
        for attempt in lost:
            attempt.ask.failed(attempt, reason)

    def close_if_done(self, port: Port) -> None:
        """Close the port if nothing more is asked there and nothing waits, or keep it to be given another number."""
        if port.place < 0 and not port.waiting and port.fd >= 0:
            if not port.spoilt and not self.closed and len(self._spare) < self._spares:
                self._spare[port] = None
            else:
                self._close(port)

    def _spoil(self, port: Port) -> None:
        """Ask nothing more on this port, and don't renew it."""
        port.spoilt = True
        self._retire(port)
        self.close_if_done(port)

    def _close(self, port: Port) -> None:
        self._spare.pop(port, None)
        self._poller.forget(port.fd)
        port.close()
        self.open -= 1
        self._allowance.left += 1

    # -- sockets come and go

    def _new_port(self, place: int, now: float) -> Port:
        """A new port; one of the pool when there can be no new one."""
        pool = self._pool
        if self._spare or self._plenty(now):
            try:
                port = self._open(now)
            except OSError as error:
                # No descriptors, ports or memory, or no way: asking again at every question would only burn time.
                self._scarce_until = now + _SCARCE
                self._scarce_why = _words(error)
            else:
                self._cells.misses.value += 1
                if len(pool) < self._most and not self.closed:
                    port.place = len(pool)
                    pool.append(port)
                    self._sweep_later(now)
                return port
        self._cells.full.value += 1
        if not pool:
            raise UpstreamError(f"dial udp {self.remote}: connect: {self._scarce_why}")
        self._cells.hits.value += 1
        return pool[place % len(pool)]

    def _open(self, now: float) -> Port:
        while self._spare:
            # The one that was used last: it is at hand.
            port, _ = self._spare.popitem()
            if port.renew(self._address, now):
                return port
            self._close(port)
        sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if self._source:
                sock.bind((self._source, 0))
            sock.connect(self._address)
            port = Port(sock, self, now)
            self._poller.watch(sock.fileno(), port)
        except OSError:
            sock.close()
            raise
        self.open += 1
        self._allowance.left -= 1
        return port

    def _plenty(self, now: float) -> bool:
        """Whether a new socket may be opened."""
        return (self._allowance.left > 0 or self.open < _FIRST_SOCKETS) and now >= self._scarce_until

    def _retire(self, port: Port) -> None:
        """Ask nothing more on this port."""
        place = port.place
        if place >= 0:
            last = self._pool.pop()
            if last is not port:
                self._pool[place] = last
                last.place = place
            port.place = -1

    def _sweep_later(self, now: float) -> None:
        if (self._pool or self._spare) and not self._sweeping:
            self._sweeping = True
            self._wheel.at(now + max(0.5, self._expire / 4), self)


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
