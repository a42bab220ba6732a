"""One other server: how to reach it, how well it answers, and all of them together."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import resource
import ssl
import weakref
from typing import TYPE_CHECKING, Final

import msgspec

from kdns import limits
from kdns.message import IN, NS, RD, rcode_text
from kdns.metrics import Buckets, Metrics
from kdns.name import ROOT, Name
from kdns.promise import Wakeups
from kdns.upstream.ask import Ask, Attempt, Cells, UpstreamError, timed_out
from kdns.upstream.health import Health
from kdns.upstream.outbox import Outbox
from kdns.upstream.poller import Poller
from kdns.upstream.stream import Peer, StreamPool, resolve
from kdns.upstream.udp import Allowance, UdpPool, endpoint_text
from kdns.upstream.wheel import Wheel
from kdns.wire import Message, pack_query

if TYPE_CHECKING:
    from kdns.upstream.group import Group

PROXY: Final = "forward"
"""Label ``proxy_name`` of CoreDNS's metrics."""
_PROBE_LATE: Final = 0.3
_PROBE_FAILED: Final = 1.0
"""Seconds after which a probe counts as late, and as failed (CoreDNS: 1 s)."""
_PROBE_PAUSE: Final = 0.1
"""Least seconds between probes, whatever the Corefile says."""
_TIME_BUCKETS: Final = tuple(0.00025 * 2**n for n in range(16))


class Tls(msgspec.Struct, frozen=True):
    """How to speak TLS."""

    certificate: str = ""
    """PEM file with our certificate; empty = none."""
    key: str = ""
    """PEM file with its key."""
    authorities: str = ""
    """PEM file with whom to trust; empty = whom this machine trusts."""
    digest: str = ""
    """Of the files' contents, so that changed files make new connections."""
    server_name: str = ""
    """Whom the server's certificate must name; empty = its address."""

    @classmethod
    def read(cls, certificate: str = "", key: str = "", authorities: str = "") -> Tls:
        """Look at the files.  Raises OSError and ssl.SSLError for what cannot be used."""
        digest = hashlib.sha256()
        for path in filter(None, (certificate, key, authorities)):
            with open(path, "rb") as file:
                digest.update(file.read())
        tls = cls(certificate, key, authorities, digest.hexdigest())
        tls.context()
        return tls

    def context(self) -> ssl.SSLContext:
        """The files, loaded; the same object for the same contents."""
        return _context(self.certificate, self.key, self.authorities, self.digest)


@functools.lru_cache(maxsize=limits.UPSTREAMS)
def _context(certificate: str, key: str, authorities: str, digest: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authorities or None)
    if certificate:
        context.load_cert_chain(certificate, key)
    return context


class Settings(msgspec.Struct, frozen=True):
    """Where an upstream is and how to speak with it: servers with the same settings are the same server."""

    host: str
    """An address, for IPv6 with a zone if need be."""
    port: int
    tls: Tls | None = None
    """None: UDP and TCP."""
    source: str = ""
    """Our address; empty = any."""
    expire: float = 10.0
    """Seconds that an unused connection is kept."""
    max_age: float = 0.0
    """Seconds that any connection is kept; 0 = no bound."""
    max_idle: int = 0
    """Unused connections kept of each kind; 0 = no bound but `limits`."""
    max_fails: int = 2
    """Probes that may fail before the server is down; 0: never probed, never down."""
    probe_every: float = 0.5
    probe_domain: Name = ROOT
    probe_recursion: bool = True
    probe_tcp: bool = False


class Upstream:
    """One server that is asked."""

    def __init__(self, settings: Settings, home: Upstreams) -> None:
        """Raises UpstreamError when this machine has no way to such an address."""
        self.settings = settings
        self.to = endpoint_text(settings.host, settings.port)
        """Metric label and name for people: ``192.0.2.1:53``."""
        self.health = Health(settings.max_fails)
        self.users = 0
        """Configurations that ask it; see `Upstreams`."""
        self._wheel = home.wheel
        self._metrics = home.metrics
        self._probing: asyncio.Task[None] | None = None
        self._closed = False
        tls = settings.tls
        lifetime = (settings.expire, settings.max_age, settings.max_idle)
        self._udp = None
        if tls is None:
            remote = resolve(settings.host, settings.port)
            self._udp = UdpPool(remote, settings.source, lifetime, home, self._cells("udp"))
        peer = Peer(
            settings.host,
            settings.port,
            settings.source,
            tls.context() if tls is not None else None,
            tls.server_name if tls is not None else "",
        )
        self._streams = StreamPool(peer, lifetime, home.wheel, self._cells("tcp-tls" if tls else "tcp"))
        self._durations = home.metrics.histogram(
            "coredns_proxy_request_duration_seconds",
            "Histogram of the time each request took.",
            _TIME_BUCKETS,
            ("proxy_name", "to", "rcode"),
        )
        self._by_rcode: dict[int, Buckets] = {}
        self._probe_failures = home.metrics.counter(
            "coredns_proxy_healthcheck_failures_total",
            "Counter of the number of failed healthchecks.",
            ("proxy_name", "to"),
        ).cell(PROXY, self.to)

    def _cells(self, proto: str) -> Cells:
        counter, cached, labels = self._metrics.counter, ("proxy_name", "to", "proto"), ("to", "proto")
        return Cells(
            counter(
                "coredns_proxy_conn_cache_hits_total",
                "Counter of connection cache hits per upstream and protocol.",
                cached,
            ).cell(PROXY, self.to, proto),
            counter(
                "coredns_proxy_conn_cache_misses_total",
                "Counter of connection cache misses per upstream and protocol.",
                cached,
            ).cell(PROXY, self.to, proto),
            counter(
                "kdns_upstream_strange_total",
                "Messages from an upstream's address that answer no question as it was asked: forged or odd.",
                labels,
            ).cell(self.to, proto),
            counter(
                "kdns_upstream_full_total", "Questions for which there was no new socket or connection.", labels
            ).cell(self.to, proto),
        )

    @property
    def sockets(self) -> tuple[int, int]:
        """How many UDP sockets and how many connections are open."""
        return self._udp.open if self._udp is not None else 0, self._streams.open

    def send(self, attempt: Attempt) -> None:
        """Put an attempt on its way: over UDP if it says so and the server speaks it.  Raises UpstreamError."""
        if attempt.proto == "udp" and self._udp is not None:
            self._udp.send(attempt)
        else:
            attempt.proto = "tcp"
            self._streams.send(attempt)

    async def exchange(self, name: bytes, type: int, flags: int = RD, proto: str = "udp", wait: float = 2.0) -> Message:
        """Ask one question and wait so many seconds for the answer; for what is asked rarely.  Raises UpstreamError."""
        question = _Question(name, type, flags)
        attempt = Attempt(question, self, proto, asyncio.get_running_loop().time())
        self.send(attempt)
        try:
            async with asyncio.timeout(wait):
                return await question.answer
        except TimeoutError:
            raise timed_out(attempt.carrier.waits_for if attempt.carrier is not None else self.to) from None
        finally:
            if attempt.carrier is not None:
                attempt.carrier.forget(attempt)

    # -- how well it answers

    def answered(self, attempt: Attempt, message: Message, now: float) -> None:
        """It answered an attempt."""
        took = now - attempt.sent
        self.health.answered(now, took, attempt.late)
        buckets = self._by_rcode.get(message.rcode)
        if buckets is None:
            buckets = self._durations.cell(PROXY, self.to, rcode_text(message.rcode))
            self._by_rcode[message.rcode] = buckets
        buckets.observe(took)

    def missed(self, attempt: Attempt, now: float) -> None:
        """It should have answered this attempt by now."""
        self.health.missed(now)
        if self.health.heard <= attempt.sent:
            self.doubt()

    def doubt(self) -> None:
        """Find out whether it answers at all, unless that is being done (CoreDNS: after an error)."""
        if self._probing is None and self.settings.max_fails and not self._closed:
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        """Probe until something comes back."""
        while not await self._alive():
            self._probe_failures.value += 1
            self.health.probe_failed()
            await asyncio.sleep(max(_PROBE_PAUSE, self.settings.probe_every))
        self._probing = None

    async def _alive(self) -> bool:
        settings, loop = self.settings, asyncio.get_running_loop()
        late = loop.call_later(_PROBE_LATE, self.health.probe_late)
        began = loop.time()
        try:
            await self.exchange(
                settings.probe_domain,
                NS,
                RD if settings.probe_recursion else 0,
                "tcp" if settings.probe_tcp else "udp",
                _PROBE_FAILED,
            )
        except UpstreamError:
            # An answer to a question may have come meanwhile: that is as good.
            return self.health.heard > began
        finally:
            late.cancel()
        self.health.alive(loop.time())
        return True

    def close(self) -> None:
        """Keep nothing any longer than questions under way need it."""
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
        if self._udp is not None:
            self._udp.close()
        self._streams.close()


class _Question(Ask):
    """A question with one attempt."""

    __slots__ = ("answer",)

    def __init__(self, name: bytes, type: int, flags: int) -> None:
        packet = pack_query(0, flags, name, type, IN, None)
        super().__init__(name.lower(), packet[-4:], packet[2:])
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def answered(self, attempt: Attempt, message: Message) -> None:
        if not self.answer.done():
            self.answer.set_result(message)

    def failed(self, attempt: Attempt, error: UpstreamError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Upstreams:
    """All servers that this process asks.

    Configurations share a server that they speak with in the same way, and a reload finds it as it was: its health, its
    sockets.  It is closed when the last configuration that asked it has let go of it.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.wheel = Wheel()
        self.wakeups = Wakeups()
        self.poller = Poller(self.wakeups)
        self.outbox = Outbox()
        self.groups: weakref.WeakSet[Group] = weakref.WeakSet()
        """Those who ask, as long as they live."""
        self.allowance = Allowance(min(limits.UPSTREAM_SOCKETS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._servers: dict[Settings, Upstream] = {}
        sockets = metrics.gauge("kdns_upstream_sockets", "Sockets open to upstreams.", ("proto",))
        self._udp_sockets, self._streams = sockets.cell("udp"), sockets.cell("tcp")
        self._under_way = metrics.gauge("kdns_upstream_under_way", "Different questions under way to upstreams.").cell()
        self._waiting = metrics.gauge("kdns_upstream_waiting", "Queries that wait for an upstream.").cell()
        self._healthy = metrics.gauge(
            "kdns_upstream_healthy", "Whether an upstream answers: 1, or 0 when it is silent or down.", ("to",)
        )
        self._no_more_scrapes = metrics.before_scrape(self._scrape)

    def take(self, settings: Settings) -> Upstream:
        """The server with these settings; give it back with `release`.  Raises UpstreamError."""
        server = self._servers.get(settings)
        if server is None:
            server = self._servers[settings] = Upstream(settings, self)
        server.users += 1
        return server

    def release(self, server: Upstream) -> None:
        """One who has taken the server asks it no more."""
        server.users -= 1
        if not server.users:
            self._servers.pop(server.settings, None)
            self._healthy.forget(server.to)
            server.close()

    def close(self) -> None:
        """The process asks nobody any more."""
        self._no_more_scrapes()
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for group in list(self.groups):
            group.end()
        self.wheel.close()
        self.poller.close()

    def _scrape(self) -> None:
        datagram = stream = 0
        for server in self._servers.values():
            opened = server.sockets
            datagram += opened[0]
            stream += opened[1]
            health = server.health
            self._healthy.cell(server.to).value = int(health.reachable)
        self._udp_sockets.value, self._streams.value = datagram, stream
        self._under_way.value = sum(group.under_way for group in self.groups)
        self._waiting.value = sum(group.waiting for group in self.groups)
