"""The HTTP face: health, readiness and metrics, each on the address that its directive names.

HTTP/1.1 GET and HEAD only, framed by h11.  Connections, request heads and time are bounded, and answers are made one
at a time with rests between them, so nothing that happens here harms DNS.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import h11

from kdns import __version__, limits
from kdns.accept import Acceptor
from kdns.log import Logger
from kdns.plugin import Responder

_PLAIN: Final = "text/plain; charset=utf-8"
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}


class HttpListener:
    """Serves the paths of one address."""

    def __init__(self, socks: list[socket.socket], paths: Mapping[str, Responder], tls: ssl.SSLContext | None) -> None:
        self.paths = paths
        """Path → responder."""
        self.tls = tls
        self.connections: dict[_Connection, None] = {}
        """The oldest one first."""
        self._socks = socks
        self._acceptors: list[Acceptor] = []
        self._loop = asyncio.get_running_loop()
        self._asking: deque[_Connection] = deque()
        """They have sent a request and wait for their turn."""
        self._turn: asyncio.Handle | None = None
        self._rest_until = 0.0

    def use(self, paths: Mapping[str, Responder], tls: ssl.SSLContext | None) -> None:
        """Reload: what to serve from now on, and how to encrypt the connections that come from now on."""
        self.paths, self.tls = paths, tls
        for acceptor in self._acceptors:
            acceptor.tls = tls

    def start(self) -> None:
        """Begin to accept."""
        for sock in self._socks:
            self._acceptors.append(
                Acceptor(sock, lambda sock, peer: _Connection(self), self._make_room, self.tls, limits.HTTP_TIMEOUT)
            )

    def close(self) -> None:
        """Stop serving at once."""
        for acceptor in self._acceptors:
            acceptor.close()
        for sock in self._socks:
            sock.close()
        for connection in list(self.connections):
            connection.abort()
        if self._turn is not None:
            self._turn.cancel()

    def joined(self, connection: _Connection) -> None:
        """A connection is open: the oldest makes room for it if there are too many, so that probes get through."""
        if len(self.connections) >= limits.HTTP_CONNECTIONS:
            self._make_room()
        self.connections[connection] = None

    def _make_room(self) -> None:
        if self.connections:
            next(iter(self.connections)).abort()

    def queue(self, connection: _Connection) -> None:
        """A connection has a request to be answered when its turn comes."""
        self._asking.append(connection)
        if self._turn is None:
            self._turn = self._loop.call_at(self._rest_until, self._take_turn)

    def _take_turn(self) -> None:
        """Answer one request, then leave the loop to DNS for some time: pages may be large, and clients many."""
        began = self._loop.time()
        self._asking.popleft().answer()
        now = self._loop.time()
        self._rest_until = now + limits.HTTP_REST * (now - began)
        self._turn = self._loop.call_at(self._rest_until, self._take_turn) if self._asking else None

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
        self._request: h11.Request | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._queued = False
        self._stuck = False
        """The client does not take its answers."""
        self._eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._owner.joined(self)
        self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        self._forget()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._forget()

    def _forget(self) -> None:
        self._transport = None
        self._owner.connections.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._stuck = True

    def resume_writing(self) -> None:
        self._stuck = False
        self._advance()

    def eof_received(self) -> bool:
        self._eof = True
        # Over TLS the end of the stream is the end of the connection.
        return self._queued and self._owner.tls is None

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)
        else:
            self._advance()

    def _advance(self) -> None:
        """Read the next request, as far as it has come, unless there is one that has not been answered."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._queued or self._stuck:
            return
        try:
            while (event := self._http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Request):
                    self._request = event
                elif isinstance(event, h11.EndOfMessage):
                    self._queued = True
                    self._owner.queue(self)
                    transport.pause_reading()
                    return
                elif isinstance(event, h11.ConnectionClosed):
                    transport.close()
                    return
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)
        else:
            transport.resume_reading()

    def answer(self) -> None:
        """Answer the request that has been queued."""
        self._queued = False
        transport, request = self._transport, self._request
        if transport is None or request is None:
            return
        method = request.method.decode("ascii")
        status, kind, body = self._owner.respond(method, request.target.decode("latin-1"))
        headers = [("content-type", kind), ("content-length", str(len(body))), ("server", f"kdns/{__version__}")]
        if self._eof:
            headers.append(("connection", "close"))
        self._send(status, headers, b"" if method == "HEAD" else body)
        if self._http.our_state is h11.MUST_CLOSE:
            transport.close()
            return
        self._http.start_next_cycle()
        self._wait()
        self._advance()

    def _refuse(self, status: int) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(status, [("content-length", "0"), ("connection", "close")], b"")
        if self._transport is not None:
            self._transport.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if self._transport is None:
            return
        head = h11.Response(status_code=status, headers=headers, reason=_REASONS.get(status, b""))
        out = self._http.send(head) or b""
        if body:
            out += self._http.send(h11.Data(data=body)) or b""
        out += self._http.send(h11.EndOfMessage()) or b""
        self._transport.write(out)

    def _wait(self) -> None:
        """From here on the client has limited time for its next request, and to take our answer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(limits.HTTP_TIMEOUT, self.abort)
