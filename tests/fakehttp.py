"""The HTTP side of `tests.fakeapi`: requests as they come, answers on their way, and sockets that go deaf."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakeobjects import Object

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_RETURN_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A socket filter of one instruction: keep 0 octets of every packet."""


class Gone(Exception):
    """The connection is to be dropped without a word."""


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    resource: str = ""
    """Plural; empty: none that the server knows."""
    namespace: str = ""
    time: float = 0.0

    @property
    def verb(self) -> str:
        """``list``, ``watch`` or ``get``."""
        if not self.resource:
            return "get"
        return "watch" if self.query.get("watch") in ("true", "1") else "list"

    @property
    def bare(self) -> bool:
        """Whether metadata alone are wanted (``as=PartialObjectMetadata…``)."""
        return "as=PartialObjectMetadata" in self.headers.get("accept", "")


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = head[0].split(" ")
    parts = urlsplit(target)
    query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:] if line)}
    await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, parts.path, query, headers)


class Answer:
    """One HTTP answer on its way, with what a fault makes of it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.prefix = b""
        self.left: int | None = None
        """Octets of the body until the connection breaks; None: it does not."""
        self.rate = 0.0
        """Octets of the body in a second; 0: as fast as they go."""

    async def whole(self, code: int, body: Object | bytes, retry_after: int = 0) -> None:
        data = self.prefix + (body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode())
        head = f"HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        if retry_after:
            head += f"Retry-After: {retry_after}\r\n"
        self.writer.write(head.encode() + b"\r\n")
        await self._send(data)

    async def begin(self) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.writer.write(head.encode())
        if self.prefix:
            await self.chunk(self.prefix)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self._send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def _send(self, data: bytes) -> None:
        if self.left is not None:
            self.left -= len(data)
            if self.left <= 0:
                self.writer.write(data[: self.left] if self.left else data)
                await self.writer.drain()
                self.writer.close()
                raise Gone
        if not self.rate:
            self.writer.write(data)
            await self.writer.drain()
            return
        piece = max(1, int(self.rate / 20))
        for at in range(0, len(data), piece):
            self.writer.write(data[at : at + piece])
            await self.writer.drain()
            await asyncio.sleep(piece / self.rate)


def deafen(sock: Any) -> None:
    """Let the kernel throw away, unacknowledged, all packets that come for this socket, handshakes included.

    The other side sees what it sees when the way to a host breaks without a word.  Linux only.
    """
    program = ctypes.create_string_buffer(_RETURN_NOTHING)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def undeafen(sock: Any) -> None:
    """End `deafen`."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
