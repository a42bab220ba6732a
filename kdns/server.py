"""The life of the process: start, reload, lameduck, stop.

A reload builds the whole new configuration, opens what sockets it lacks and starts its plugins before it touches
anything that runs; then it swaps the routes.  Whatever fails before that leaves everything as it was.  What the old
configuration alone used is let go a little later, when the queries that began on it have been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from kdns import limits, log
from kdns.admin import HttpListener
from kdns.build import Configuration, Endpoint, HttpService, Service, build
from kdns.corefile import Corefile
from kdns.errors import KdnsError
from kdns.handler import Handler
from kdns.listen import stream, udp
from kdns.listen.sockets import Sockets, open_datagram_again, open_dns, open_http
from kdns.message import SERVFAIL, Query, Reply, failure
from kdns.name import to_text
from kdns.packetcache import packet_cache
from kdns.plugin import Plugin, Process
from kdns.plugins.reload import Reload


class Server:
    """Serves what a Corefile says, until it is stopped."""

    def __init__(self, load: Callable[[], Corefile], port: int, process: Process | None = None) -> None:
        """``load`` reads the Corefile (KdnsError, OSError); ``port`` is for keys without one."""
        self.process = process or Process()
        self.process.ask = self._ask
        self.process.asked = self._asked
        self._load = load
        self._port = port
        self._packets = packet_cache(limits.PACKET_CACHE_ENTRIES, limits.PACKET_CACHE_BYTES, self.process.metrics)
        self.process.facts.subscribe(self._packets.forget)
        self._lookups = [
            self.process.metrics.counter(f"kdns_packetcache_{what}_total", "").cell() for what in ("hits", "misses")
        ]
        self._current: Configuration | None = None
        self._building = False
        """A new configuration takes things out of the Warehouse that nobody else may use yet."""
        self._tried = ""
        self._unreadable = ""
        self._endpoints: dict[Endpoint, _Serving] = {}
        self._http: dict[str, HttpListener] = {}
        self._retired: list[_Retired] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._polling: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[bool] | None = None
        self._log = log.Logger("reload")
        self._scopes = itertools.count(1)
        self._failed = self.process.metrics.counter(
            "coredns_reload_failed_total", "Counter of the number of failed reload attempts."
        ).cell()
        self._version = self.process.metrics.gauge(
            "coredns_reload_version_info",
            "A metric with hash info of the loaded configuration.",
            ("hash", "value"),
        )

    async def start(self) -> None:
        """Load the Corefile and serve it.  Raises KdnsError or OSError, having closed what was opened."""
        corefile = self._load()
        self._tried = corefile.digest
        await self._change(corefile)

    async def reload(self, force: bool = False) -> bool:
        """Load the Corefile again; whether a new configuration is in force.

        Without ``force`` only when it says something new: what was refused is not tried again until it changes.
        A Corefile that cannot be served is logged and counted, and the one that runs goes on.
        """
        async with self._changing:
            if self.process.stopping:
                return False
            try:
                corefile = await asyncio.to_thread(self._load)
            except (KdnsError, OSError) as error:
                # Said once, not at every look at a file that stays wrong.
                if force or str(error) != self._unreadable:
                    self._refused(str(error))
                self._unreadable = str(error)
                return False
            self._unreadable = ""
            if not force and corefile.digest == self._tried:
                return False
            self._tried = corefile.digest
            log.emit(log.INFO, "Reloading")
            try:
                await self._change(corefile)
            except (KdnsError, OSError) as error:
                self._refused(str(error))
                return False
            log.emit(log.INFO, "Reloading complete")
            return True

    async def stop(self, graceful: bool = True) -> None:
        """Lameduck, then answer what has been asked, then close everything.

        ``graceful`` False closes at once after lameduck (SIGINT, as CoreDNS does).  Calling it again does nothing.
        """
        if self.process.stopping:
            return
        self.process.stopping = True
        if self._polling is not None:
            self._polling.cancel()
        # A reload in progress is let finish, but a plugin that takes its time to start does not hold up the end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.GRACE):
                await self._changing.acquire()
        await self._end(graceful)

    @property
    def ports(self) -> list[int]:
        """The ports that DNS is served on, for who asked for port 0, which means any."""
        return [serving.listeners[0].sock.getsockname()[1] for serving in self._endpoints.values()]

    def banner(self) -> list[str]:
        """CoreDNS's first lines: which zones are served where."""
        lines: list[str] = []
        for endpoint, serving in sorted(self._endpoints.items()):
            lines += serving.banner(endpoint)
        return lines

    async def _end(self, graceful: bool) -> None:
        plugins = self._current.plugins if self._current else []
        await asyncio.gather(*(_drain(plugin) for plugin in plugins))
        for serving in self._endpoints.values():
            serving.stop_reading()
        asked = self._asked()
        if graceful:
            await self._wait_for_answers()
            # What has come meanwhile lies in the sockets: it is answered as far as that can be done at once.
            for serving in self._endpoints.values():
                serving.read_the_rest()
        self._tell_stragglers(self._asked() - asked, sum(serving.waiting for serving in self._endpoints.values()))
        for serving in self._endpoints.values():
            serving.close()
        for retired in list(self._retired):
            self._let_go(retired)
        await asyncio.gather(*self._stopping)
        await _stop(plugins)
        for http in self._http.values():
            http.close()
        self.process.warehouse.keep_only(set())

    # -- one change of configuration

    async def _change(self, corefile: Corefile) -> None:
        for warning in corefile.warnings:
            log.emit(log.WARNING, warning)
        started: list[Plugin] = []
        with contextlib.ExitStack() as opened:
            self._building = True
            try:
                new = build(self.process, corefile, self._port)
                self._make_way(new.services)
                dns = {
                    endpoint: self._open(endpoint, service, opened)
                    for endpoint, service in new.services.items()
                    if endpoint not in self._endpoints or self._endpoints[endpoint].sockets != service.sockets
                }
                http = {address: open_http(address, opened) for address in new.http if address not in self._http}
                for plugin in new.plugins:
                    started.append(plugin)
                    await _start(plugin)
            except BaseException:
                await _stop(started)
                self._building = False
                self._keep_only_used()
                raise
            opened.pop_all()
        self._building = False
        self._put_in_force(new, dns, http)

    def _open(self, endpoint: Endpoint, service: Service, opened: contextlib.ExitStack) -> Sockets:
        """The sockets of an endpoint that is new, or is to have another number of them for UDP."""
        serving = self._endpoints.get(endpoint)
        if serving is None:
            place = endpoint.label, endpoint.scheme, endpoint.host, endpoint.port
            return open_dns(*place, opened, service.sockets)
        old = [listener.sock for listener in serving.datagram]
        return Sockets(open_datagram_again(endpoint.label, old, opened, service.sockets), [])

    def _make_way(self, wanted: Iterable[Endpoint]) -> None:
        """Close what an older configuration has left open where the new one wants to listen again."""
        for retired in self._retired:
            for endpoint in retired.leaving.keys() & set(wanted):
                retired.leaving.pop(endpoint).close()

    def _put_in_force(
        self,
        new: Configuration,
        dns: dict[Endpoint, Sockets],
        http: dict[str, list[socket.socket]],
    ) -> None:
        old, self._current = self._current, new
        self.process.plugins = new.plugins
        for endpoint, service in new.services.items():
            if endpoint in self._endpoints:
                self._endpoints[endpoint].use(service)
                if endpoint in dns:
                    self._replace_datagram(endpoint, service, dns[endpoint])
            else:
                self._endpoints[endpoint] = self._serve(endpoint, service, dns[endpoint])
        self._packets.clear()
        leaving: dict[Endpoint, _Serving] = {}
        for endpoint in [endpoint for endpoint in self._endpoints if endpoint not in new.services]:
            leaving[endpoint] = self._endpoints.pop(endpoint)
            leaving[endpoint].stop_reading()
        self._serve_http(new.http, http)
        if old is not None:
            self._retire(old, leaving)
        self._version.forget(*(("sha512", old.digest) if old else ("", "")))
        self._version.cell("sha512", new.digest).value = 1
        self._poll(new)

    def _serve(self, endpoint: Endpoint, service: Service, opened: Sockets) -> _Serving:
        handler = Handler(self.process, self._packets, service.routes)
        datagram = self._datagram(endpoint, service, opened, handler)
        streams = [
            stream.StreamListener(
                sock, handler, self._packets, endpoint.label, self._scope(), self.process.metrics, service.tls
            )
            for sock in opened.stream
        ]
        return _Serving(handler, datagram, streams, service.sockets)

    def _datagram(
        self, endpoint: Endpoint, service: Service, opened: Sockets, handler: Handler
    ) -> list[udp.UdpListener]:
        # Sockets that share an address share their answers, too.
        scopes = {sock.family: self._scope() for sock in opened.datagram}
        threads = len(opened.datagram) if service.sockets else 0
        return [
            udp.UdpListener(
                sock, handler, self._packets, endpoint.label, scopes[sock.family], self.process.metrics, threads
            )
            for sock in opened.datagram
        ]

    def _replace_datagram(self, endpoint: Endpoint, service: Service, opened: Sockets) -> None:
        """Go over to another number of UDP sockets; what the old ones hold is answered first."""
        serving = self._endpoints[endpoint]
        old, serving.datagram = serving.datagram, self._datagram(endpoint, service, opened, serving.handler)
        serving.sockets = service.sockets
        heirs = {listener.sock.family: listener for listener in serving.datagram}
        for listener in old:
            listener.hand_over(heirs[listener.sock.family])
        if not service.sockets:
            for listener in serving.datagram:
                udp.share(listener.sock, False)

    def _scope(self) -> bytes:
        return next(self._scopes).to_bytes(4, "big")

    def _serve_http(self, new: dict[str, HttpService], sockets: dict[str, list[socket.socket]]) -> None:
        for address, service in new.items():
            if address in sockets:
                listener = self._http[address] = HttpListener(sockets[address], service.paths, service.tls)
                listener.start()
            else:
                self._http[address].use(service.paths, service.tls)
        for address in [address for address in self._http if address not in new]:
            self._http.pop(address).close()

    # -- what the old configuration leaves behind

    def _retire(self, old: Configuration, leaving: dict[Endpoint, _Serving]) -> None:
        """Let the queries that began on the old chains end, then stop its plugins and close its own sockets."""
        if len(self._retired) >= limits.RETIRING:
            self._let_go(self._retired[0])
        retired = _Retired(old, leaving)
        retired.timer = asyncio.get_running_loop().call_later(limits.RETIRE, self._let_go, retired)
        self._retired.append(retired)

    def _let_go(self, retired: _Retired) -> None:
        if retired.timer is not None:
            retired.timer.cancel()
        self._retired.remove(retired)
        for serving in retired.leaving.values():
            serving.close()
        task = asyncio.create_task(_stop(retired.configuration.plugins))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        self._keep_only_used()

    def _keep_only_used(self) -> None:
        if self._building:
            return
        used: set[tuple[Any, ...]] = set()
        for configuration in (self._current, *(retired.configuration for retired in self._retired)):
            if configuration is not None:
                used |= configuration.taken
        self.process.warehouse.keep_only(used)

    # -- the rest

    def _refused(self, why: str) -> None:
        self._failed.value += 1
        self._log.error(f"Corefile changed but reload failed: {why}")

    def _poll(self, new: Configuration) -> None:
        """Look for changes as the last ``reload`` directive says."""
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        intervals = [plugin.interval for plugin in new.plugins if isinstance(plugin, Reload)]
        if intervals:
            self._log.info(f"Running configuration SHA512 = {new.digest}")
            self._polling = asyncio.create_task(self._poll_every(intervals[-1]))

    async def _poll_every(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            # A task of its own, because a reload that succeeds cancels this one.
            self._reloading = asyncio.create_task(self.reload())
            await asyncio.wait([self._reloading])

    async def _wait_for_answers(self) -> None:
        deadline = self.process.now() + limits.GRACE
        while self.process.now() < deadline and any(serving.waiting for serving in self._endpoints.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def _tell_stragglers(self, late: int, cut: int) -> None:
        """Say what a longer lameduck, or upstreams that answer, would have saved; nothing is said of nothing."""
        if late:
            log.emit(log.WARNING, f"{late} queries came after the end of lameduck: it was too short for some")
        if cut:
            log.emit(log.WARNING, f"{cut} queries are cut off unanswered")

    def _asked(self) -> int:
        """How many queries have come: each has been looked up in the packet cache."""
        self._packets.settle()
        return int(sum(cell.value for cell in self._lookups))

    async def _ask(self, query: Query) -> Reply:
        for endpoint, serving in self._endpoints.items():
            if endpoint.label == query.listener.server:
                return await serving.handler.resolve(query)
        return failure(SERVFAIL, f"nothing listens on {query.listener.server} any more")


class _Serving(msgspec.Struct):
    """One Endpoint that is served."""

    handler: Handler
    datagram: list[udp.UdpListener]
    streams: list[stream.StreamListener]
    sockets: int
    """As in `build.Service`."""

    @property
    def listeners(self) -> list[udp.UdpListener | stream.StreamListener]:
        """All that listens."""
        return [*self.datagram, *self.streams]

    @property
    def waiting(self) -> int:
        """Queries that still wait for their answer."""
        return sum(listener.waiting for listener in self.listeners)

    def use(self, service: Service) -> None:
        """Reload: answer what is asked from now on like this."""
        self.handler.routes = service.routes
        for listener in self.streams:
            listener.use(service.tls)

    def stop_reading(self) -> None:
        """Take no more queries."""
        for listener in self.listeners:
            listener.stop_reading()

    def read_the_rest(self) -> None:
        """Answer the datagrams that have come since `stop_reading`."""
        for listener in self.datagram:
            listener.stop_reading()

    def close(self) -> None:
        """Let go of all sockets."""
        for listener in self.listeners:
            listener.close()

    def banner(self, endpoint: Endpoint) -> list[str]:
        """CoreDNS's line for each zone."""
        port = self.listeners[0].sock.getsockname()[1]
        scheme = "" if endpoint.scheme == "dns" else f"{endpoint.scheme}://"
        where = f"{port} on {endpoint.host}" if endpoint.host else str(port)
        lines: list[str] = []
        for zone in sorted(to_text(zone) for zone in self.handler.routes.chains):
            if not _PREFERRED.fullmatch(zone):
                lines.append(f'Warning: Domain "{zone}" does not follow RFC1035 preferred syntax')
            lines.append(f"{scheme}{zone}:{where}")
        return lines


class _Retired(msgspec.Struct, eq=False):
    """A configuration that is no longer in force."""

    configuration: Configuration
    leaving: dict[Endpoint, _Serving]
    """What it alone listened on: read no more, open for late answers."""
    timer: asyncio.TimerHandle | None = None


# RFC 1035 section 2.3.1; the root and reverse zones are excused.
_PREFERRED: Final = re.compile(r"\.|.*\.(in-addr|ip6)\.arpa\.|([A-Za-z]([A-Za-z0-9-]*[A-Za-z0-9])?\.)+")


async def _start(plugin: Plugin) -> None:
    """Start a plugin within `limits.PLUGIN_START` seconds, or refuse the configuration."""
    try:
        async with asyncio.timeout(limits.PLUGIN_START):
            await plugin.start()
    except KdnsError:
        raise
    except Exception as error:  # a third-party plugin may raise anything; it must cost this load, not the process
        raise KdnsError(f"plugin/{plugin.name}: cannot start: {error!r}") from error


async def _drain(plugin: Plugin) -> None:
    try:
        await plugin.drain()
    except Exception as error:  # noqa: BLE001 - the others drain on, and stopping goes on
        log.Logger(plugin.name).error(f"cannot drain: {error!r}")


async def _stop(plugins: Iterable[Plugin]) -> None:
    for plugin in plugins:
        try:
            await plugin.stop()
        except Exception as error:  # noqa: BLE001 - stopping goes on with the others
            log.Logger(plugin.name).error(f"cannot stop: {error!r}")
