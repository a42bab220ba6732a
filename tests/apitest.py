"""A source that follows a fake API server, and what its index would know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kdns.cluster import pace
from kdns.cluster.api import ApiSource, Connection, Selection
from kdns.cluster.credentials import endpoint
from kdns.cluster.objects import KINDS, Apply, Delete, Event, Init, InitApply, InitDone
from kdns.log import Logger
from kdns.metrics import Metrics
from tests.fakeapi import FakeApi

Key = tuple[str, str]


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries and lists follow each other after a tenth of their usual pauses, or less."""
    monkeypatch.setattr(pace, "FASTEST", 0.01)
    monkeypatch.setattr(pace, "FIRST_GAP", 0.1)
    monkeypatch.setattr(pace, "LAST_GAP", 0.4)
    monkeypatch.setattr(pace, "CALM", 1.0)


class Store:
    """An index that only knows what exists; a name is gone when an event says so, and never for a moment."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[Key, Any]] = {kind: {} for kind in KINDS}
        self.listing: dict[str, set[Key]] = {}
        self.gone: list[tuple[str, Key]] = []
        self.events = 0
        self.fail_with: Exception | None = None

    def apply(self, event: Event) -> None:
        self.events += 1
        if self.fail_with is not None:
            error, self.fail_with = self.fail_with, None
            raise error
        known = self.objects[event.kind]
        if isinstance(event, Init):
            self.listing[event.kind] = set()
        elif isinstance(event, InitDone):
            for key in set(known) - self.listing.pop(event.kind):
                self.remove(event.kind, key)
        elif isinstance(event, Delete):
            key = event.namespace.decode(), event.name.decode()
            self.listing.get(event.kind, set()).discard(key)
            self.remove(event.kind, key)
        else:
            key = event.object.namespace.decode(), event.object.name.decode()
            assert isinstance(event, Apply) or event.kind in self.listing
            if isinstance(event, InitApply):
                self.listing[event.kind].add(key)
            known[key] = event.object

    def remove(self, kind: str, key: Key) -> None:
        if self.objects[kind].pop(key, None) is not None:
            self.gone.append((kind, key))

    def keys(self, kind: str) -> Iterator[tuple[bytes, bytes]]:
        return iter([(namespace.encode(), name.encode()) for namespace, name in self.objects[kind]])

    def names(self, kind: str = "services") -> list[str]:
        return sorted(name for _, name in self.objects[kind])


def counted(metrics: Metrics, line: str) -> float:
    """The value of a metric, or the sum of several, by the beginning of its line."""
    lines = metrics.expose().decode().splitlines()
    return sum(float(found.split()[-1]) for found in lines if found.startswith(line))


async def come_true(what: Callable[[], Any], seconds: float, pause: float = 0.001) -> float:
    """Wait; how long it took."""
    started = time.monotonic()
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(pause)
    return time.monotonic() - started


class World:
    """A fake API server, a source that follows it, and what the source's index knows."""

    def __init__(
        self, api: FakeApi, kinds: dict[str, Selection] | None = None, audit: float = 0.0, **bounds: Any
    ) -> None:
        self.api, self.store, self.metrics = api, Store(), Metrics()
        finish = bounds.pop("finish", None)
        self.connection = Connection(bounds.pop("credentials", None) or endpoint(api.url), self.metrics, **bounds)
        self.source = ApiSource(
            self.connection,
            kinds if kinds is not None else {"services": Selection()},
            self.store.apply,
            finish and (lambda event: finish(self.store, event)),
            audit=audit,
            names=self.store.keys,
            metrics=self.metrics,
            log=Logger("kubernetes"),
        )

    async def __aenter__(self) -> World:
        self.source.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.source.close()
        await self.source.wait_closed()

    def synced(self) -> bool:
        return not any(self.source.status.values())

    async def until(self, what: Callable[[], Any], seconds: float = 10.0) -> float:
        return await come_true(what, seconds)

    async def knows(self, *names: str, kind: str = "services", seconds: float = 10.0) -> float:
        return await self.until(lambda: self.store.names(kind) == sorted(names), seconds)

    def counted(self, line: str) -> float:
        return counted(self.metrics, line)
