"""What can go wrong with `tests.fakeapi`: answers to requests (`Fault`), events on their way (`Mischief`)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.fakehttp import Request
from tests.fakeobjects import Object


@dataclass
class Fault:
    """What goes wrong with the requests that it is for."""

    resource: str | None = None
    """None: all."""
    verb: str | None = None
    """``list``, ``watch``, ``get``; None: all."""
    when: Callable[[Request], bool] = lambda request: True
    """And only for such."""
    times: int | None = None
    """For so many requests; None: until it is taken away."""
    status: int = 0
    """Answer this HTTP status."""
    retry_after: int = 0
    """Seconds, as header and in the Status object."""
    body: bytes | None = None
    """Answer 200 with this body instead of the true one (for a watch: these lines, then the end)."""
    prefix: bytes = b""
    """Say this before the true answer's body: a line of garbage, say."""
    delay: float = 0.0
    """Answer so many seconds late."""
    stall: bool = False
    """Never answer, and keep the connection."""
    truncate: int | None = None
    """Hang up after so many octets of the body."""
    rate: float = 0.0
    """Send so many octets of the body in a second; 0: as fast as they go."""
    endless: bool = False
    """Answer 200 and then one line without end."""
    reset: bool = False
    """Hang up without an answer."""
    raw: bytes | None = None
    """Send these octets instead of an HTTP answer, and hang up."""
    event: Object | None = None
    """For a watch: answer 200 and this one event, then end."""
    hits: int = 0
    """How many requests it has met."""

    def fits(self, request: Request) -> bool:
        return (
            self.times != 0
            and self.resource in (None, request.resource)
            and self.verb in (None, request.verb)
            and self.when(request)
        )  # fmt: skip


class Mischief:
    """A `FakeApi.filter` that loses, repeats and swaps events; ``lost`` counts those that were never told.

    The shares are of 1; ``swap`` holds an event back until the next one of its kind, or `flush`.
    """

    def __init__(self, lose: float = 0.0, repeat: float = 0.0, swap: float = 0.0, seed: int = 0) -> None:
        self.lost = 0
        self._lose, self._repeat, self._swap = lose, repeat, swap
        self._random = random.Random(seed)
        self._held: dict[str, list[bytes]] = {}

    def __call__(self, resource: str, lines: list[bytes]) -> list[bytes]:
        if self._random.random() < self._lose:
            self.lost += 1
            return []
        if self._random.random() < self._repeat:
            lines = lines * 2
        if self._random.random() < self._swap and resource not in self._held:
            self._held[resource] = lines
            return []
        return lines + self._held.pop(resource, [])

    def flush(self, say: Callable[[str, bytes], None]) -> None:
        """Tell what is still held back; ``say``: `FakeApi.say`."""
        for resource, lines in self._held.items():
            for line in lines:
                say(resource, line.rstrip())
        self._held.clear()
