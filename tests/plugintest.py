"""For tests of single plugins: directives out of text, a site to stand on, queries, an end of the chain."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdns import corefile, message, name, rdata
from kdns.corefile import CorefileError, Directive
from kdns.message import Edns, Lease, Listener, Query, Record, Reply
from kdns.plugin import Next, Plugin, Process, Site


def uses(text: str) -> tuple[Directive, ...]:
    """The directives of one server block."""
    (block,) = corefile.parse(f". {{\n{text}\n}}", "C", env={}, read=lambda path: "", glob=lambda path: []).blocks
    return block.directives


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def new_site(*zones: str, process: Process | None = None) -> Site:
    """A server block with these zones (the root when there are none)."""
    return Site(process or Process(Clock()), tuple(name.from_text(zone) for zone in zones or (".",)))


def set_up(kind: type[Plugin], text: str, site: Site | None = None) -> Plugin:
    """A plugin as a server block with this text gets it."""
    return kind.setup(uses(text), site or new_site())


def refused(kind: type[Plugin], text: str) -> str:
    """What the plugin says about a text that is wrong."""
    with pytest.raises(CorefileError) as caught:
        set_up(kind, text)
    return caught.value.message.removeprefix("Error during parsing: ")


def ask(
    qname: str = "example.org.",
    kind: int = message.A,
    *,
    edns: Edns | None = None,
    peer: tuple[str, int] = ("192.0.2.7", 4242),
    listener: Listener | None = None,
    flags: int = message.RD,
    klass: int = message.IN,
) -> Query:
    """A query."""
    spelling = name.spell(qname)
    size = 12 + len(spelling) + 4 + (11 if edns else 0)
    return Query(
        name=spelling.lower(),
        type=kind,
        klass=klass,
        spelling=spelling,
        id=4711,
        flags=flags,
        edns=edns,
        peer=peer,
        listener=listener or Listener(local=("127.0.0.1", 53)),
        size=size,
    )


def record(text: str) -> Record:
    """``www.example.org. 30 A 192.0.2.1`` → Record."""
    owner, ttl, kind, data = text.split(None, 3)
    number = message.type_number(kind)
    assert number is not None
    return Record(name.spell(owner), number, int(ttl), rdata.from_text(number, data))


def shown(records: tuple[Record, ...]) -> list[str]:
    """Records → ``www.example.org. 30 A 192.0.2.1``."""
    return [
        f"{name.to_text(r.owner)} {r.ttl} {message.type_text(r.type)} {rdata.to_text(r.type, r.rdata)}" for r in records
    ]


LEASE = Lease(until=5000.0, facts=(b"fact",))


class End:
    """The end of a chain: remembers what it is asked and answers what it is told to."""

    def __init__(self, answer: Reply | Callable[[Query], Reply] | None = None) -> None:
        self.asked: list[Query] = []
        self._answer = answer or Reply(answer=(record("example.org. 30 A 192.0.2.1"),), lease=LEASE, plugin="end")

    async def __call__(self, query: Query) -> Reply:
        self.asked.append(query)
        return self._answer(query) if callable(self._answer) else self._answer


def at_once(plugin: Plugin, query: Query, next: Next) -> Reply:
    """The plugin's reply; it must not wait for anything."""
    try:
        plugin.resolve(query, next).send(None)  # type: ignore[attr-defined]
    except StopIteration as done:
        reply: Reply = done.value
        return reply
    raise AssertionError("the plugin waited")
