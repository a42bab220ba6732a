"""What upstreams need done with octets and sockets, many at a time, in Python; `kdns._upstream` is the compiled twin.

Use it through `kdns.upstream.native`.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

from kdns.wire import FormatError, Message, parse_reply

_HEADER: Final = 12
_LARGEST: Final = 65535
_AT_ONCE: Final = 64
"""Sockets read per call, so that timers and others get their turn."""


class HasSocket(Protocol):
    """Something with a socket of its own."""

    fd: int
    """-1: closed."""


S = TypeVar("S", bound=HasSocket)
W = TypeVar("W")


def receive(epoll: select.epoll, watched: Mapping[int, W]) -> list[tuple[W, bytes | OSError]]:
    """What has come on sockets: one datagram of each that has any, with what watches it; or what is wrong with it.

    ``watched``, by file descriptor, is what is registered with ``epoll``.
    """
    got: list[tuple[W, bytes | OSError]] = []
    for fd, _ in epoll.poll(0, _AT_ONCE):
        what = watched.get(fd)
        if what is None:
            continue
        try:
            got.append((what, os.read(fd, _LARGEST)))
        except (BlockingIOError, InterruptedError):
            continue
        except OSError as error:
            got.append((what, error))
    return got


def send_all(datagrams: Sequence[tuple[S, bytes]]) -> list[tuple[S, OSError]]:
    """Send each datagram on its connected socket, closed ones left out; what went wrong."""
    failed: list[tuple[S, OSError]] = []
    for sender, datagram in datagrams:
        fd = sender.fd
        if fd >= 0:
            try:
                os.write(fd, datagram)
            except OSError as error:
                failed.append((sender, error))
    return failed


def matches(packet: bytes, name: bytes, kind: bytes) -> bool:
    """Whether a packet is a response to just this question: ``name`` folded, ``kind`` type and class, 4 octets."""
    end = _HEADER + len(name)
    return (
        packet[end : end + 4] == kind
        and packet[_HEADER:end].lower() == name
        # A response, opcode QUERY, one question.
        and packet[2] & 0xF8 == 0x80
        and packet[4:6] == b"\0\1"
    )


def read_reply(packet: bytes) -> Message | None:
    """The Message in a packet; None: it is no whole, well-formed response."""
    try:
        return parse_reply(packet)
    except FormatError:
        return None
