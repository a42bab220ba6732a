"""What is sent to upstreams, a batch at a time.

A datagram that wakes its receiver costs three times as much as one that finds it awake.  So what a batch of queries has
to ask is sent in a row, as soon as all of them have been looked at.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from kdns.upstream.native import send_all


class Sender(Protocol):
    """A socket of one's own."""

    fd: int
    """-1: closed meanwhile."""

    def unsent(self, error: OSError) -> None:
        """The kernel would not take what was to be sent."""


class Outbox:
    """Collects datagrams, and sends them before the loop waits again."""

    def __init__(self) -> None:
        self._datagrams: list[tuple[Sender, bytes]] = []

    def add(self, sender: Sender, datagram: bytes) -> None:
        """Send this on a connected socket, soon."""
        if not self._datagrams:
            asyncio.get_running_loop().call_soon(self.flush)
        self._datagrams.append((sender, datagram))

    def flush(self) -> None:
        """Send everything."""
        datagrams, self._datagrams = self._datagrams, []
        for sender, error in send_all(datagrams):
            sender.unsent(error)
