import select
from collections.abc import Sequence
from typing import TypeVar

from kdns.upstream.plain import HasSocket
from kdns.wire import Message

S = TypeVar("S", bound=HasSocket)
W = TypeVar("W")

def receive(epoll: select.epoll, watched: dict[int, W]) -> list[tuple[W, bytes | OSError]]: ...
def send_all(datagrams: Sequence[tuple[S, bytes]]) -> list[tuple[S, OSError]]: ...
def matches(packet: bytes, name: bytes, kind: bytes) -> bool: ...
def read_reply(packet: bytes) -> Message | None: ...
