"""The life of the process: start, reload, lameduck, stop.

A reload builds the whole new configuration, opens what sockets it lacks and starts its plugins before it touches
anything that runs; then it swaps the routes.  Whatever fails before that leaves everything as it was.  What the old
configuration alone used is let go a little later, when the queries that began on it have been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
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
from kdns.message import SERVFAIL, Query, Reply, failure
from kdns.name import to_text
from kdns.packetcache import PacketCache
from kdns.plugin import Plugin, Process
from kdns.plugins.reload import Reload
from kdns.values import listen_address

_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - CoreDNS listens on all addresses unless told otherwise


class ListenError(KdnsError):
    """An address that cannot be listened on; the message names it."""


class Server:
    """Serves what a Corefile says, until it is stopped."""

    def __init__(self, load: Callable[[], Corefile], port: int, process: Process | None = None) -> None:
        """``load`` reads the Corefile (KdnsError, OSError); ``port`` is for keys without one."""
        self.process = process or Process()
        self.process.ask = self._ask
        self._load = load
        self._port = port
        self._packets = PacketCache(limits.PACKET_CACHE_ENTRIES, limits.PACKET_CACHE_BYTES, self.process.metrics)
        self.process.facts.subscribe(self._packets.forget)
        self._current: Configuration | None = None
        self._tried = ""
        self._endpoints: dict[Endpoint, _Serving] = {}
        self._http: dict[str, HttpListener] = {}
        self._retiring: dict[asyncio.Task[None], Configuration] = {}
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
                self._refused(str(error))
                return False
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
        async with self._changing:
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
        await asyncio.gather(*(plugin.drain() for plugin in plugins), return_exceptions=True)
        for serving in self._endpoints.values():
            serving.stop_reading()
        if graceful:
            await self._wait_for_answers()
        for serving in self._endpoints.values():
            serving.close()
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
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
            try:
                new = build(self.process, corefile, self._port)
                sockets = {
                    endpoint: _open(endpoint, opened) for endpoint in new.services if endpoint not in self._endpoints
                }
                https = {address: _open_http(address, opened) for address in new.http if address not in self._http}
                for plugin in new.plugins:
                    started.append(plugin)
                    await _start(plugin)
            except BaseException:
                await _stop(started)
                self._keep_only_used()
                raise
            opened.pop_all()
        await self._put_in_force(new, sockets, https)

    async def _put_in_force(
        self,
        new: Configuration,
        sockets: dict[Endpoint, _Sockets],
        https: dict[str, list[socket.socket]],
    ) -> None:
        old, self._current = self._current, new
        self.process.plugins = new.plugins
        for endpoint, service in new.services.items():
            if endpoint in self._endpoints:
                self._endpoints[endpoint].handler.routes = service.routes
            else:
                self._endpoints[endpoint] = self._serve(endpoint, service, sockets[endpoint])
        self._packets.clear()
        for endpoint in [endpoint for endpoint in self._endpoints if endpoint not in new.services]:
            gone = self._endpoints.pop(endpoint)
            gone.stop_reading()
            asyncio.get_running_loop().call_later(limits.RETIRE, gone.close)
        await self._serve_http(new.http, https)
        if old is not None:
            self._retire(old)
        self._version.forget(*(("sha512", old.digest) if old else ("", "")))
        self._version.cell("sha512", new.digest).value = 1
        self._poll(new)

    def _serve(self, endpoint: Endpoint, service: Service, sockets: _Sockets) -> _Serving:
        handler = Handler(self.process, self._packets, service.routes)
        label, metrics = endpoint.label, self.process.metrics
        listeners: list[udp.UdpListener | stream.StreamListener] = [
            udp.UdpListener(sock, handler, self._packets, label, self._scope(), metrics) for sock in sockets.datagram
        ]
        listeners += [
            stream.StreamListener(sock, handler, self._packets, label, self._scope(), metrics, service.tls)
            for sock in sockets.stream
        ]
        return _Serving(handler, listeners)

    def _scope(self) -> bytes:
        return next(self._scopes).to_bytes(4, "big")

    async def _serve_http(self, new: dict[str, HttpService], sockets: dict[str, list[socket.socket]]) -> None:
        for address, service in new.items():
            if address in sockets:
                listener = self._http[address] = HttpListener(sockets[address], service.paths, service.tls)
                await listener.start()
            else:
                self._http[address].paths = service.paths
        for address in [address for address in self._http if address not in new]:
            self._http.pop(address).close()

    # -- what the old configuration leaves behind

    def _retire(self, old: Configuration) -> None:
        """Let the queries that began on the old chains end, then stop its plugins."""

        async def later() -> None:
            try:
                await asyncio.sleep(limits.RETIRE)
            finally:
                await _stop(old.plugins)

        if len(self._retiring) >= limits.RETIRING:
            next(iter(self._retiring)).cancel()
        task = asyncio.create_task(later())
        self._retiring[task] = old
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.pop(task, None)
        self._keep_only_used()

    def _keep_only_used(self) -> None:
        used: set[tuple[Any, ...]] = set()
        for configuration in (self._current, *self._retiring.values()):
            if configuration is not None:
                used |= configuration.taken
        self.process.warehouse.keep_only(used)

    # -- the rest

    def _refused(self, why: str) -> None:
        self._failed.value += 1
        self._log.error(f"Corefile changed but reload failed: {why}")

    def _poll(self, new: Configuration) -> None:
        """Look for changes as the last ``reload`` directive says."""
        self._log.info(f"Running configuration SHA512 = {new.digest}")
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        intervals = [plugin.interval for plugin in new.plugins if isinstance(plugin, Reload)]
        if intervals:
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

    async def _ask(self, query: Query) -> Reply:
        for endpoint, serving in self._endpoints.items():
            if endpoint.label == query.listener.server:
                return await serving.handler.resolve(query)
        return failure(SERVFAIL, f"nothing listens on {query.listener.server} any more")


class _Sockets(msgspec.Struct, frozen=True):
    """The open sockets of one Endpoint, IPv4 and IPv6."""

    datagram: list[socket.socket]
    stream: list[socket.socket]


class _Serving(msgspec.Struct, frozen=True):
    """One Endpoint that is served."""

    handler: Handler
    listeners: list[udp.UdpListener | stream.StreamListener]

    @property
    def waiting(self) -> int:
        """Queries that still wait for their answer."""
        return sum(listener.waiting for listener in self.listeners)

    def stop_reading(self) -> None:
        """Take no more queries."""
        for listener in self.listeners:
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


# RFC 1035 section 2.3.1; the root and reverse zones are excused.
_PREFERRED: Final = re.compile(r"\.|.*\.(in-addr|ip6)\.arpa\.|([A-Za-z]([A-Za-z0-9-]*[A-Za-z0-9])?\.)+")


def _open(endpoint: Endpoint, opened: contextlib.ExitStack) -> _Sockets:
    """Open an Endpoint's sockets.  Without a host both families are served, or the one that this machine has."""
    sockets = _Sockets([], [])
    port = endpoint.port
    for host in (endpoint.host,) if endpoint.host else _WILDCARDS:
        try:
            if endpoint.scheme == "dns":
                sockets.datagram.append(_closing(udp.open_socket(host, port), opened))
                # Port 0 means any, but the same one for all sockets of the endpoint.
                port = port or sockets.datagram[0].getsockname()[1]
            sockets.stream.append(_closing(stream.open_socket(host, port), opened))
            port = port or sockets.stream[0].getsockname()[1]
        except OSError as error:
            if not endpoint.host and error.errno in _NO_FAMILY:
                continue
            raise ListenError(f"cannot listen on {endpoint.label}: {_reason(host, port, error)}") from error
    if not sockets.stream:
        raise ListenError(f"cannot listen on {endpoint.label}: this machine has no address family for it")
    return sockets


def _open_http(address: str, opened: contextlib.ExitStack) -> list[socket.socket]:
    host, port = listen_address(address)
    hosts: tuple[str, ...] = _WILDCARDS
    if host:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ListenError(f"cannot listen on http://{address}: {error.strerror}") from error
        # As Go does it: a name stands for one address, an IPv4 one if it has any.
        hosts = (str(min(found, key=lambda info: info[0] != socket.AF_INET)[4][0]),)
    sockets: list[socket.socket] = []
    for host in hosts:
        try:
            sockets.append(_closing(stream.open_socket(host, port), opened))
        except OSError as error:
            if len(hosts) > 1 and error.errno in _NO_FAMILY:
                continue
            raise ListenError(f"cannot listen on http://{address}: {_reason(host, port, error)}") from error
    return sockets


_NO_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def _reason(host: str, port: int, error: OSError) -> str:
    return f"{host} port {port}: {error.strerror or error}"


def _closing(sock: socket.socket, opened: contextlib.ExitStack) -> socket.socket:
    opened.callback(sock.close)
    return sock


async def _start(plugin: Plugin) -> None:
    """Start a plugin within `limits.PLUGIN_START` seconds, or refuse the configuration."""
    try:
        async with asyncio.timeout(limits.PLUGIN_START):
            await plugin.start()
    except KdnsError:
        raise
    except Exception as error:  # a third-party plugin may raise anything; it must cost this load, not the process
        raise KdnsError(f"plugin/{plugin.name}: cannot start: {error!r}") from error


async def _stop(plugins: Iterable[Plugin]) -> None:
    for plugin in plugins:
        try:
            await plugin.stop()
        except Exception as error:  # noqa: BLE001 - stopping goes on with the others
            log.Logger(plugin.name).error(f"cannot stop: {error!r}")
