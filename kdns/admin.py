"""The HTTP face: health, readiness and metrics, each on the address that its directive names.

HTTP/1.1 GET and HEAD only, framed by h11.  Connections, request heads and time are bounded, so nothing that happens
here harms DNS.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Final

import h11

from kdns import __version__, limits
from kdns.log import Logger
from kdns.plugin import Responder

_PLAIN: Final = "text/plain; charset=utf-8"


class HttpListener:
    """Serves the paths of one address."""

    def __init__(self, socks: list[socket.socket], paths: Mapping[str, Responder], tls: ssl.SSLContext | None) -> None:
        self.paths = paths
        """Path → responder; swap it to reload."""
        self.tls = tls
        self.connections: set[_Connection] = set()
        self._socks = socks
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        for sock in self._socks:
            server = await loop.create_server(
                lambda: _Connection(self),
                sock=sock,
                ssl=self.tls,
                ssl_handshake_timeout=limits.HTTP_TIMEOUT if self.tls else None,
            )
            self._servers.append(server)

    def close(self) -> None:
        """Stop serving at once."""
        for server in self._servers:
            server.close()
        for sock in self._socks:
            sock.close()
        for connection in list(self.connections):
            connection.abort()

    def respond(self, method: str, target: str) -> tuple[int, str, bytes]:
        """Status, content type and body for one request.  Never raises."""
        path = target.partition("?")[0]
        responder = self.paths.get(path)
        if responder is None:
            return 404, _PLAIN, b"404 page not found\n"
        if method not in ("GET", "HEAD"):
            return 405, _PLAIN, b"Method Not Allowed\n"
        try:
            return responder(target)
        except Exception as error:  # noqa: BLE001 - a responder's bug costs one page, never the process
            Logger("").error(f"HTTP {path}: {error!r}")
            return 500, _PLAIN, b"Internal Server Error\n"


class _Connection(asyncio.Protocol):
    def __init__(self, owner: HttpListener) -> None:
        self._owner = owner
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.HTTP_HEAD)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if len(self._owner.connections) >= limits.HTTP_CONNECTIONS:
            self.abort()
            return
        self._owner.connections.add(self)
        self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._owner.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            self._serve()
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)

    def _serve(self) -> None:
        while self._transport is not None:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._request = event
            elif isinstance(event, h11.EndOfMessage):
                self._answer(self._request.method.decode("ascii"), self._request.target.decode("latin-1"))
            elif isinstance(event, h11.ConnectionClosed):
                self._transport.close()
                return
            elif event is h11.NEED_DATA:
                return

    def _answer(self, method: str, target: str) -> None:
        status, kind, body = self._owner.respond(method, target)
        headers = [("content-type", kind), ("content-length", str(len(body))), ("server", f"kdns/{__version__}")]
        self._send(status, headers, b"" if method == "HEAD" else body)
        if self._http.our_state is h11.MUST_CLOSE and self._transport is not None:
            self._transport.close()
            self._transport = None
        else:
            self._http.start_next_cycle()
            self._wait()

    def _refuse(self, status: int) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(status, [("content-length", "0"), ("connection", "close")], b"")
        if self._transport is not None:
            self._transport.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if self._transport is None:
            return
        out = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        if body:
            out += self._http.send(h11.Data(data=body)) or b""
        out += self._http.send(h11.EndOfMessage()) or b""
        self._transport.write(out)

    def _wait(self) -> None:
        """From here on the client has limited time for its next request, and to take our answer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(limits.HTTP_TIMEOUT, self.abort)
