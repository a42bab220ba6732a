"""health: tell over HTTP that the process is alive.

``health [ADDRESS] { lameduck DURATION [MOST] }``

``GET /health`` on ADDRESS (default ``:8080``) answers 200 ``OK`` as long as the process runs, whatever its backends
do.  ``lameduck``: when the process is told to stop it goes on answering, DNS and health, for DURATION (Go syntax)
before it closes its sockets, so that those who still send here are answered.  With MOST (kdns only) it goes on after
that as long as queries keep coming, until none has come for `QUIET` seconds, but for no more than MOST in all: some
still send here when others have long been told otherwise.  It is never shorter than DURATION: that nobody sends in
this moment does not show that everybody has been told.  A request to itself each second measures how busy the process
is.

Metrics: ``coredns_health_request_duration_seconds``, ``coredns_health_request_failures_total``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Final

from kdns import limits
from kdns.corefile import Directive
from kdns.plugin import HttpPath, Plugin, Site
from kdns.values import duration_text, listen_address

QUIET: Final = 2.0
"""Seconds without a query after which nobody is thought to send here any more."""
POLL: Final = 0.25
"""Seconds between two looks whether queries have come."""
_DEFAULT: Final = ":8080"
_EVERY: Final = 1.0
_TIMEOUT: Final = 3.0
_BUCKETS: Final = tuple(0.00025 * 10**n for n in range(5))


class Health(Plugin):
    """Answers ``/health`` and keeps the process alive for a while when it is told to stop."""

    name = "health"
    handles = False

    def __init__(self, site: Site, address: str, lameduck: float, most: float = 0.0) -> None:
        self._address = address
        self._url = f"http://{address}/health"
        self._lameduck = lameduck
        self._most = most
        self._now = site.now
        self._process = site.process
        self._log = site.logger(self.name)
        self._durations = site.metrics.histogram(
            "coredns_health_request_duration_seconds",
            "Histogram of the time (in seconds) each request took.",
            _BUCKETS,
        ).cell()
        self._failures = site.metrics.counter(
            "coredns_health_request_failures_total", "The number of times the health check failed."
        ).cell()
        self._task: asyncio.Task[None] | None = None
        site.http.append(HttpPath(address, "/health", lambda target: (200, "text/plain; charset=utf-8", b"OK")))

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``health [ADDRESS] { lameduck DURATION [MOST] }``; the last of several wins, as in CoreDNS."""
        address, lameduck, most = _DEFAULT, 0.0, 0.0
        for use in uses:
            address = use.optional(_DEFAULT)
            use.listen_address(address)
            for option in use.options("lameduck"):
                least, *rest = option.between(1, 2)
                lameduck = option.duration(least)
                most = option.duration(rest[0], lameduck) if rest else 0.0
        return cls(site, address, lameduck, most)

    async def start(self) -> None:
        """Begin to measure."""
        self._task = asyncio.create_task(self._measure())

    async def drain(self) -> None:
        """Lameduck: the process answers on for a while."""
        if not self._lameduck and not self._most:
            return
        self._log.info(f"Going into lameduck mode for {duration_text(self._lameduck)}")
        if self._most:
            await self._until_quiet()
        else:
            await asyncio.sleep(self._lameduck)

    async def _until_quiet(self) -> None:
        """Answer on until nobody asks any more, within the bounds."""
        asked, began = self._process.asked, self._now()
        first = count = asked()
        last = began
        while (now := self._now()) < began + self._lameduck or (now < began + self._most and now < last + QUIET):
            await asyncio.sleep(POLL)
            if asked() != count:
                count, last = asked(), self._now()
        told = f"{count - first} queries came meanwhile, the last {duration_text(round(now - last, 1))} ago"
        if count == first:
            told = "no query came meanwhile"
        self._log.info(f"Lameduck ends after {duration_text(round(now - began, 1))}: {told}")

    async def stop(self) -> None:
        """Measure no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def _in_force(self) -> bool:
        """Whether this configuration answers; else a reload may have taken the address away, even under a request."""
        return self in self._process.plugins

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            if not self._in_force:
                continue
            began = self._now()
            problem = ""
            try:
                async with asyncio.timeout(_TIMEOUT):
                    await self._request()
            except (OSError, TimeoutError) as error:
                problem = str(error) or "time-out"
            if problem and not self._in_force:
                continue
            elapsed = self._now() - began
            self._durations.observe(elapsed)
            if problem:
                self._failures.value += 1
                self._log.warning(f'Local health request to "{self._url}" failed: {problem}')
            elif elapsed > 1.0:
                self._log.warning(f'Local health request to "{self._url}" took more than 1s: {elapsed:.3f}s')

    async def _request(self) -> None:
        host, port = listen_address(self._address)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or "localhost", port, type=socket.SOCK_STREAM)
        # As the listener chooses: an IPv4 address if there is one.
        family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            await loop.sock_recv(sock, limits.HTTP_HEAD)
