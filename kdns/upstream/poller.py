"""Wake the UDP sockets of all pools through one file descriptor of the event loop.

Pools open and close sockets all the time, and each of them rarely holds more than one datagram.  asyncio takes 7 us to
learn of a socket and to forget it, and 2 us for each one that is ready; an epoll of our own, which asyncio watches as
it would a socket, takes a quarter of that.
"""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

from kdns.promise import Wakeups
from kdns.upstream.native import receive


class Readable(Protocol):
    """A socket that is watched."""

    fd: int
    """-1: closed meanwhile."""

    def received(self, datagram: bytes) -> None:
        """This has come."""

    def broken(self, error: OSError) -> None:
        """Nothing could be read: ICMP, say, that nobody listens there."""


class Poller:
    """Tells sockets when they have something to read."""

    def __init__(self, wakeups: Wakeups) -> None:
        """``wakeups``: those that what is read wakes go on when all of it has been read."""
        self._wakeups = wakeups
        self._epoll: select.epoll | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: dict[int, Readable] = {}

    def watch(self, fd: int, what: Readable) -> None:
        """Tell ``what`` what comes on ``fd``.  Raises OSError."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._epoll.fileno(), self._ready)
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = what

    def forget(self, fd: int) -> None:
        """The socket is about to be closed; the kernel forgets it by itself then."""
        self._watched.pop(fd, None)

    def close(self) -> None:
        """Watch nothing any more."""
        if self._epoll is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._epoll = None
        self._watched.clear()

    def _ready(self) -> None:
        watched, wakeups = self._watched, self._wakeups
        if self._epoll is None:
            return
        wakeups.held = True
        try:
            for what, got in receive(self._epoll, watched):
                # One that came before it in this round may have closed it.
                if what.fd < 0:
                    continue
                if isinstance(got, bytes):
                    what.received(got)
                else:
                    what.broken(got)
        finally:
            wakeups.held = False
            wakeups.run()
