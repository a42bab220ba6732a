"""The event loop, with UDP served from within its wait.

asyncio spends some ten microseconds on each time that a socket is readable.  `kdns._packetcache.Direct` waits in its
place: what the packet cache knows is answered there, and the loop learns only of what is left.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Iterable
from typing import Any, Final

from kdns.compiled import twin

_READ: Final = 1
"""EPOLLIN"""
_WRITE: Final = 4
"""EPOLLOUT"""


class DirectSelector(selectors.EpollSelector):
    """An epoll selector whose `direct` sockets need no callback for what the packet cache knows."""

    def __init__(self, direct: Any) -> None:
        super().__init__()
        self.direct = direct

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As any selector: what is ready, after at most ``timeout`` seconds (None: for ever)."""
        milliseconds = -1 if timeout is None else max(0, math.ceil(timeout * 1e3))
        try:
            found: Iterable[tuple[int, int]] = self.direct.wait(
                self.fileno(), milliseconds, max(1, len(self.get_map()))
            )
        except InterruptedError:
            return []
        ready: list[tuple[selectors.SelectorKey, int]] = []
        for fd, events in found:
            try:
                key = self.get_key(fd)
            except KeyError:
                continue
            mask = (events & ~_READ and selectors.EVENT_WRITE) | (events & ~_WRITE and selectors.EVENT_READ)
            ready.append((key, mask & key.events))
        return ready


class DirectLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop over a `DirectSelector`."""

    def __init__(self, direct: Any) -> None:
        super().__init__(DirectSelector(direct))
        self.direct = direct


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A `DirectLoop` where the compiled twin is built (see `kdns.compiled`), else asyncio's default."""
    compiled = twin("kdns._packetcache")
    return asyncio.new_event_loop() if compiled is None else DirectLoop(compiled.Direct())
