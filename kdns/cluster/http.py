"""HTTP/1.1 to an API server: GET, and nothing else; bodies as they come, or line by line.

`Connection.get` asks again on a fresh connection when no answer comes for a while, without giving up the first try: a
server that is slow is waited for, one that hung and is back is noticed at once.  Connections are kept and used again.
A peer that vanishes without a word is noticed by keep-alive probes and TCP_USER_TIMEOUT within `VANISHED` seconds.
Bounds: `limits.API_HEAD`, `limits.API_LINE`, and what the caller of `Response.read` says.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import h11

from kdns import __version__, limits
from kdns.cluster.credentials import Access, ApiError, Credentials
from kdns.metrics import Metrics

CONNECT: Final = 3.0
"""Seconds until a connection, TLS included, must stand."""
ASK_AGAIN: Final = 3.0
"""Seconds without an answer until the same is asked on a fresh connection."""
ANSWER: Final = 75.0
"""Seconds until the head of an answer must have come; the API server itself gives up after 60."""
READ: Final = 15.0
"""Seconds that `Response.read` may take."""
VANISHED: Final = 5.0
"""Seconds after which a silent connection to a host that is gone breaks."""
IDLE: Final = 8
"""Connections kept for later."""
BURST: Final = 10
"""Requests at once under ``apiserver_qps`` (client-go's default)."""
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of the histograms (Prometheus's default)."""
JSON: Final = "application/json"
HEADERS: Final = (
    ("User-Agent", f"kdns/{__version__}"),
    ("Accept-Encoding", "identity"),
)


class TooLarge(ApiError):
    """What came is beyond its bound."""


class _Link:
    """One TCP or TLS connection."""

    def __init__(self, access: Access, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.access = access
        self._reader = reader
        self._writer = writer
        self._ended = False
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.API_HEAD)

    @classmethod
    async def open(cls, access: Access) -> _Link:
        """Connect; raises ApiError."""
        try:
            async with asyncio.timeout(CONNECT):
                return await cls._open(access)
        except TimeoutError:
            raise ApiError(f"{access.authority}: no connection within {CONNECT:g} s") from None
        except (OSError, ValueError) as error:
            raise ApiError(f"{access.authority}: {_reason(error)}") from None

    @classmethod
    async def _open(cls, access: Access) -> _Link:
        if access.proxy:
            return await cls._open_through_proxy(access)
        name = access.server_name if access.tls else None
        # Only names have several addresses to try; asyncio is untidy about such tries when it is cancelled.
        stagger = None if _is_address(access.host) else 0.25
        reader, writer = await asyncio.open_connection(
            access.host, access.port, ssl=access.tls, server_hostname=name, happy_eyeballs_delay=stagger
        )
        _watch_over(writer)
        return cls(access, reader, writer)

    @classmethod
    async def _open_through_proxy(cls, access: Access) -> _Link:
        proxy = urlsplit(access.proxy)
        if proxy.scheme != "http" or not proxy.hostname:
            raise ApiError(f"{access.authority}: cannot use proxy {proxy.scheme}://{proxy.hostname}, only http://")
        reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port or 80)
        try:
            _watch_over(writer)
            headers = [("Host", access.authority)]
            if proxy.username:
                secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
                headers.append(("Proxy-Authorization", f"Basic {base64.b64encode(secret).decode()}"))
            head = await cls(access, reader, writer).ask("CONNECT", access.authority, headers)
            if not 200 <= head.status_code < 300:
                raise ApiError(f"{access.authority}: proxy {proxy.hostname} says {head.status_code}")
            if access.tls:
                await writer.start_tls(access.tls, server_hostname=access.server_name)
        except BaseException:
            writer.transport.abort()
            raise
        return cls(access, reader, writer)

    async def ask(self, method: str, target: str, headers: list[tuple[str, str]]) -> h11.Response:
        """Send a request and wait for the head of its answer; raises ApiError."""
        try:
            request = self._http.send(h11.Request(method=method, target=target, headers=headers)) or b""
            self._writer.write(request + (self._http.send(h11.EndOfMessage()) or b""))
        except (h11.LocalProtocolError, UnicodeError) as error:  # a token that can be no header
            raise ApiError(f"{self.access.authority}: {error}") from None
        while True:
            event = await self.event()
            if isinstance(event, h11.Response):
                return event

    async def event(self) -> Any:
        """What comes next, as h11 sees it; raises ApiError."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._reader.read(65536)
                self._ended = not data
                self._http.receive_data(data)
            return event
        except h11.RemoteProtocolError as error:
            text = "the connection was closed" if self._ended else str(error)
            raise ApiError(f"{self.access.authority}: {text}") from None
        except OSError as error:
            raise ApiError(f"{self.access.authority}: {_reason(error)}") from None

    def renew(self) -> bool:
        """Make ready for another request, if that can be."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE or self._reader.at_eof():
            return False
        self._http.start_next_cycle()
        return True

    @property
    def alive(self) -> bool:
        """Whether the server has not closed it, as far as we know."""
        return not (self._reader.at_eof() or self._writer.is_closing())

    def abort(self) -> None:
        """Hang up."""
        self._writer.transport.abort()


def _is_address(host: str) -> bool:
    """Whether this is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _watch_over(writer: asyncio.StreamWriter) -> None:
    """Let the kernel notice a peer that is gone: by probes while nothing is sent, by missing ACKs otherwise."""
    link: socket.socket = writer.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 2),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(VANISHED * 1000)),
    ):
        if hasattr(socket, option):  # not everywhere outside Linux
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _reason(error: Exception) -> str:
    """What is wrong, without numbers and addresses."""
    if isinstance(error, ssl.SSLError):
        return getattr(error, "verify_message", "") or error.reason or str(error)
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or repr(error)


class Response:
    """The answer to one request.  `close` it."""

    def __init__(self, link: _Link, head: h11.Response, done: Callable[[_Link], None]) -> None:
        self.status = head.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        """By lower-case name."""
        self._link = link
        self._done: Callable[[_Link], None] | None = done
        self._pieces: list[bytes] = []  # of a line that is not whole
        self._size = 0

    async def chunk(self) -> bytes | None:
        """What comes next of the body; None at its end.  Raises ApiError when it breaks off."""
        while not isinstance(event := await self._link.event(), h11.EndOfMessage):
            if isinstance(event, h11.Data) and event.data:
                return bytes(event.data)
        return None

    async def read(self, bound: int) -> bytes:
        """The whole body; raises TooLarge beyond ``bound`` octets and ApiError when it does not come in time."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(READ):
                while (data := await self.chunk()) is not None:
                    parts.append(data)
                    size += len(data)
                    if size > bound:
                        raise TooLarge(f"an answer of over {bound} octets")
        except TimeoutError:
            raise ApiError(f"{self._link.access.authority}: no whole answer within {READ:g} s") from None
        return b"".join(parts)

    async def lines(self) -> list[bytes] | None:
        """The next lines of the body, without line ends and empty ones; None at its end.

        Raises TooLarge for a line beyond `limits.API_LINE`, and ApiError when the body breaks off.
        """
        while (data := await self.chunk()) is not None:
            head, *rest = data.split(b"\n")
            self._pieces.append(head)
            self._size += len(head)
            if self._size > limits.API_LINE:
                raise TooLarge(f"a line of over {limits.API_LINE} octets")
            if rest:
                lines = [b"".join(self._pieces), *rest[:-1]]
                self._pieces = [rest[-1]]
                self._size = len(rest[-1])
                return [line for line in lines if line]
        return None

    def close(self) -> None:
        """Done with it: if it was read to its end its connection is used again, otherwise closed."""
        if self._done is not None:
            self._done(self._link)
            self._done = None


class Connection:
    """All requests to one API server.

    ``qps`` and ``burst`` bound their rate (``apiserver_qps``, ``apiserver_burst``; qps 0: no bound, burst 0: `BURST`),
    ``max_inflight`` how many may wait for the head of their answer at once (0: any number).
    """

    def __init__(
        self,
        credentials: Credentials,
        metrics: Metrics,
        *,
        qps: float = 0.0,
        burst: int = 0,
        max_inflight: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._now = now
        self._idle: list[_Link] = []
        self._closed = False
        self._bucket = _Bucket(qps, burst or BURST, now) if qps else None
        self._inflight = asyncio.Semaphore(max_inflight) if max_inflight else None
        prefix = "coredns_kubernetes_rest_client_"
        self._latency = metrics.histogram(
            f"{prefix}request_duration_seconds", "Request latency in seconds.", SECONDS, ("verb", "host")
        )
        self._throttled = metrics.histogram(
            f"{prefix}rate_limiter_duration_seconds", "Client side rate limiter latency.", SECONDS, ("verb", "host")
        )
        self._requests = metrics.counter(
            f"{prefix}requests_total", "Number of HTTP requests.", ("code", "method", "host")
        )

    async def get(self, target: str, accept: str = JSON) -> Response:
        """Ask for a path and query; the answer, whatever its status.  Raises ApiError when there is none.

        ``accept``: the media types that are wanted.
        """
        attempts = [asyncio.create_task(self._attempt(target, accept))]
        answered: asyncio.Task[Response] | None = None
        until = self._now() + ANSWER
        try:
            while self._now() < until:
                done, _ = await asyncio.wait(attempts, timeout=ASK_AGAIN, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    answered = done.pop()
                    return answered.result()
                for attempt in attempts[1:]:
                    _give_up(attempt)
                self._forget_idle()  # what was kept may be as dead
                attempts[1:] = [asyncio.create_task(self._attempt(target, accept))]
            raise ApiError(f"no answer within {ANSWER:g} s")
        finally:
            for attempt in attempts:
                if attempt is not answered:
                    _give_up(attempt)

    async def _attempt(self, target: str, accept: str) -> Response:
        access = await self._credentials.access()
        response = await self._limited(access, target, accept)
        if response.status != 401:
            return response
        try:
            self._credentials.rejected()
            renewed = await self._credentials.access()
        except BaseException:
            response.close()
            raise
        if renewed.authorization == access.authorization and renewed.tls is access.tls:
            return response
        response.close()
        return await self._limited(renewed, target, accept)

    async def _limited(self, access: Access, target: str, accept: str) -> Response:
        if self._bucket is not None:
            self._throttled.cell("GET", access.authority).observe(await self._bucket.take())
        if self._inflight is None:
            return await self._send(access, target, accept)
        async with self._inflight:
            return await self._send(access, target, accept)

    async def _send(self, access: Access, target: str, accept: str) -> Response:
        while self._idle:
            link = self._idle.pop()
            if link.access.tls is access.tls and link.alive:
                try:
                    return await self._exchange(link, access, target, accept)
                except ApiError:  # the server has closed it just now, as it may; a fresh one tells
                    continue
            link.abort()
        started = self._now()
        try:
            return await self._exchange(await _Link.open(access), access, target, accept)
        except ApiError:
            self._count("<error>", access, started)
            raise

    async def _exchange(self, link: _Link, access: Access, target: str, accept: str) -> Response:
        headers = [("Host", access.authority), ("Accept", accept), *HEADERS]
        if access.authorization:
            headers.append(("Authorization", access.authorization))
        started = self._now()
        try:
            head = await link.ask("GET", access.path + target, headers)
        except BaseException:
            link.abort()
            raise
        self._count(str(head.status_code), access, started)
        return Response(link, head, self._keep)

    def _count(self, code: str, access: Access, started: float) -> None:
        self._requests.cell(code, "GET", access.authority).value += 1
        self._latency.cell("GET", access.authority).observe(self._now() - started)

    def _keep(self, link: _Link) -> None:
        if not self._closed and len(self._idle) < IDLE and link.renew():
            self._idle.append(link)
        else:
            link.abort()

    def close(self) -> None:
        """Hang up on all connections that are not in use, and on the others when they no longer are."""
        self._closed = True
        self._forget_idle()

    def _forget_idle(self) -> None:
        while self._idle:
            self._idle.pop().abort()


def _give_up(attempt: asyncio.Task[Response]) -> None:
    attempt.cancel()
    attempt.add_done_callback(_throw_away)


def _throw_away(attempt: asyncio.Task[Response]) -> None:
    """Close what came too late; to ask for an exception marks it as seen."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


class _Bucket:
    """Tokens that come ``rate`` a second, ``size`` of them at most."""

    def __init__(self, rate: float, size: int, now: Callable[[], float]) -> None:
        self._rate = rate
        self._size = size
        self._now = now
        self._free_at = float("-inf")  # when the bucket was, or will be, empty

    async def take(self) -> float:
        """Wait for a token; how long it took, in seconds."""
        now = self._now()
        self._free_at = max(self._free_at, now - self._size / self._rate) + 1 / self._rate
        wait = self._free_at - now
        if wait > 0:
            await asyncio.sleep(wait)
        return max(wait, 0.0)
