"""What `tests.fakeapi` keeps: the objects of one kind, their history, who watches them, and the lines that tell it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.fakeobjects import RESOURCES, Object


@dataclass
class Change:
    """One step of history."""

    version: int
    type: str
    item: Object
    before: Object | None


@dataclass(eq=False)
class Watcher:
    """One open watch."""

    selects: Callable[[Object], bool]
    lines: deque[bytes] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    cut_off: bool = False
    """Nothing reaches the client any more, and nothing is sent."""
    bare: bool = False
    """Metadata alone are wanted."""

    def tell(self, lines: Iterable[bytes]) -> None:
        if self.cut_off:
            return
        self.lines.extend(map(_bare_line, lines) if self.bare else lines)
        self.news.set()

    async def notice_end(self, reader: asyncio.StreamReader) -> None:
        """Wait until the client hangs up."""
        with contextlib.suppress(OSError):
            await reader.read(1)
        self.gone = True
        self.news.set()


class Store:
    """The objects of one kind, and how they came to be."""

    def __init__(self, resource: str, window: int) -> None:
        self.resource = resource
        self.version, self.kind = RESOURCES[resource]
        self.items: dict[tuple[str, str], Object] = {}
        self.history: deque[Change] = deque(maxlen=window)
        self.forgotten = 0
        """Changes up to this version are not in the history."""
        self.watchers: set[Watcher] = set()
        self.snapshots: dict[int, list[Object]] = {}
        """What lists that are still being paged saw, by version."""

    def key(self, item: Object) -> tuple[str, str]:
        return item["metadata"].get("namespace", ""), item["metadata"]["name"]

    def record(self, change: Change) -> None:
        if len(self.history) == self.history.maxlen:
            self.forgotten = self.history[0].version
        self.history.append(change)


METADATA_LIST = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}


def bare(item: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _bare_line(line: bytes) -> bytes:
    """A watch line as who wants metadata alone hears it."""
    event = json.loads(line) if line else {}
    if event.get("type") not in ("ADDED", "MODIFIED", "DELETED"):
        return line
    return event_line(event["type"], bare(event["object"]))


def event_line(type: str, item: Object) -> bytes:
    return json.dumps({"type": type, "object": item}, separators=(",", ":")).encode() + b"\n"


def bookmark_line(store: Store, version: int, ends: bool = False) -> bytes:
    meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if ends:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    return event_line("BOOKMARK", {"kind": store.kind, "apiVersion": store.version, "metadata": meta})


def lines_of(change: Change, selects: Callable[[Object], bool]) -> list[bytes]:
    """The line in which a watcher hears of a change: an object may come into its selection or leave it."""
    was = change.before is not None and selects(change.before)
    fits = change.type != "DELETED" and selects(change.item)
    if not (was or fits):
        return []
    return [event_line("DELETED" if not fits else "MODIFIED" if was else "ADDED", change.item)]
