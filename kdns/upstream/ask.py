"""What passes between a question and the sockets that carry it: Ask, Attempt, and what may be an answer."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kdns.errors import KdnsError
from kdns.message import EDE_NETWORK_ERROR, EDE_NO_REACHABLE_AUTHORITY
from kdns.metrics import Cell
from kdns.name import Name
from kdns.upstream.native import matches, read_reply
from kdns.wire import Message

if TYPE_CHECKING:
    from kdns.upstream.server import Upstream


class UpstreamError(KdnsError):
    """Another server did not answer; the message is worded as Go's ``net`` package does, which operators grep for."""

    def __init__(self, text: str, ede: int = EDE_NETWORK_ERROR) -> None:
        super().__init__(text)
        self.ede = ede
        """Extended error for the client (RFC 8914)."""


def timed_out(waits_for: str) -> UpstreamError:
    """The error of an upstream that stays silent; see `Carrier.waits_for`."""
    return UpstreamError(f"{waits_for}: i/o timeout", EDE_NO_REACHABLE_AUTHORITY)


class Carrier(Protocol):
    """A socket that carries questions."""

    @property
    def local(self) -> tuple[str, int]:
        """Our end."""

    @property
    def waits_for(self) -> str:
        """``read udp LOCAL->REMOTE``, for messages."""

    def forget(self, attempt: Attempt) -> None:
        """The answer to this attempt is not wanted any more."""


class Cells(NamedTuple):
    """What a pool of sockets counts."""

    hits: Cell
    """Questions on sockets that were open already."""
    misses: Cell
    """New sockets."""
    strange: Cell
    """Messages that answer nothing."""
    full: Cell
    """Questions for which there was no new socket."""


class Ask:
    """One question on its way to other servers, and what becomes of it.

    Carriers hold Attempts, so what they need of the question is here: ``name`` (folded) and ``kind`` (type and class,
    4 octets) to know the answer by, ``tail`` (the query packet without its ID) to send.
    """

    __slots__ = ("kind", "name", "tail")

    def __init__(self, name: Name, kind: bytes, tail: bytes) -> None:
        self.name, self.kind, self.tail = name, kind, tail

    def answered(self, attempt: Attempt, message: Message) -> None:
        """The upstream's answer has come."""
        raise NotImplementedError

    def failed(self, attempt: Attempt, error: UpstreamError) -> None:
        """None will come on this way."""
        raise NotImplementedError

    def distrust(self, attempt: Attempt) -> None:
        """Somebody is guessing IDs on the attempt's port: an answer there may be forged."""


class Attempt:
    """One packet of an Ask to one upstream."""

    id = 0
    late = False
    """The upstream should have answered by now."""
    overdue = False
    """The read time-out has passed."""
    guarded = False
    """Don't take the answer: the port is under attack and another attempt asks on a safe way."""
    guards: Attempt | None = None
    """The attempt that this one asks again for on a safe way."""

    def __init__(self, ask: Ask, upstream: Upstream, proto: str, sent: float) -> None:
        self.ask = ask
        self.upstream = upstream
        self.proto = proto
        """``udp`` or ``tcp`` (also under TLS)."""
        self.sent = sent
        """When, by the loop's clock."""
        self.carrier: Carrier | None = None
        """None until it is on its way."""


def matching(packet: bytes, ask: Ask) -> Message | None:
    """The packet as the answer to ``ask``; None for whatever is not a well-formed answer to just this question."""
    return read_reply(packet) if matches(packet, ask.name, ask.kind) else None


def random_numbers() -> Iterator[int]:
    """Endless unpredictable 16-bit numbers: the system's, fetched in batches."""
    while True:
        yield from array("H", os.urandom(2048))
