from collections.abc import Callable
from typing import Any

from kdns import denial, packetcache
from kdns.message import Listener

class Existing(denial.Existing):
    """As `kdns.denial.Existing`, of which it is no subclass when it runs."""

class PacketCache(packetcache.PacketCache):
    """As `kdns.packetcache.PacketCache`, of which it is no subclass when it runs."""

class Back:
    """The way back to an asker, for an answer that comes later."""

    def send(self, reply: bytes) -> None: ...

class Receiver:
    """Reads one UDP socket, answers what the packet cache knows, and puts everything else to the handler."""

    unsent: int
    overflows: int
    def __init__(
        self,
        fd: int,
        wildcard: bool,
        cache: PacketCache,
        scope: bytes,
        handle: Callable[[bytes, tuple[str, int], Listener, bytes], Any],
        late: Callable[[Any, Back], None],
        listener: Listener,
        queue: int = 0,
    ) -> None: ...
    def fileno(self) -> int: ...
    def drain(self) -> bool: ...
    def stop(self) -> None: ...
    def send_through(self, sock: Any) -> None: ...
    def close(self) -> None: ...

class Direct:
    """Serves UDP sockets from within ``epoll_wait``."""

    def attach(self, receiver: Receiver) -> None: ...
    def detach(self, receiver: Receiver) -> None: ...
    def wait(self, epoll: int, timeout: int, most: int) -> list[tuple[int, int]]: ...
