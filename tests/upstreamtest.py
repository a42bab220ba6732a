"""For tests of what asks other servers: a group of fake ones, and questions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kdns.message import Listener, Reply
from kdns.metrics import Metrics
from kdns.upstream import Group, Options, Settings, Upstream, Upstreams, plain
from tests.fakeupstream import FakeUpstream
from tests.plugintest import ask as ask_for
from tests.plugintest import shown

try:
    from kdns import _upstream as compiled
except ImportError:
    compiled = None
needs_compiled = pytest.mark.skipif(compiled is None, reason="kdns._upstream was not built")


def twins() -> list[Any]:
    """`kdns.upstream.plain` and its compiled twin, as parameters."""
    return [pytest.param(plain, id="plain"), pytest.param(compiled, id="compiled", marks=needs_compiled)]


TCP = Listener(proto="tcp", local=("127.0.0.1", 53))
"""What a client over TCP comes in through."""


class World:
    """The upstreams of one test."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.home = Upstreams(self.metrics)

    def server(self, fake: FakeUpstream, **settings: Any) -> Upstream:
        return self.home.take(Settings("127.0.0.1", fake.port, **settings))

    def group(
        self, *fakes: FakeUpstream, hasty: bool = False, settings: dict[str, Any] | None = None, **options: Any
    ) -> Group:
        """Servers to ask; ``hasty``: as in real life, late ones are probed and their questions asked elsewhere.

        Otherwise a busy test machine is not taken for a slow upstream.
        """
        servers = [self.server(fake, **(settings or {})) for fake in fakes]
        group = Group(servers, Options(**options), self.home)
        if not hasty:
            group.hedge = group.window.target = 60.0
            group.look = lambda: None  # type: ignore[method-assign]
        return group

    def value(self, metric: str, *labels: str) -> float:
        """What a metric stands at, over all labels unless they are given."""
        self.metrics.settle()
        family = self.metrics._families[metric]
        return sum(cell.value for values, cell in family.samples() if not labels or values == labels)


@contextlib.asynccontextmanager
async def new_world() -> AsyncIterator[World]:
    """A world that is closed at the end."""
    made = World()
    yield made
    made.home.close()
    # Aborted connections are closed one round later.
    await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that must come about; how soon is not the question."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def addresses(reply: Reply) -> list[str]:
    """The data of the answer's records; there must have been no error."""
    assert not reply.error, reply.error
    return [line.split()[-1] for line in shown(reply.answer)]


async def ask_many(group: Group, *names: str, **fields: Any) -> list[Reply]:
    return await asyncio.gather(*(group.ask(ask_for(qname, **fields)) for qname in names))
