"""What a cache keeps: items in two halves, answers and denials, so that neither pushes out the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from cachetools import LRUCache
from msgspec.structs import replace

from kdns import limits
from kdns.message import AA, AD, FOREVER, NOTIMP, RA, SERVFAIL, Fact, Query, Record, Reply
from kdns.metrics import Cell
from kdns.plugin import Facts
from kdns.standing import Standing

Key: TypeAlias = tuple[bytes, int]
"""The name asked for, folded, and type, class, DO and CD in one number."""

_ITEM_OCTETS: Final = 600
_RECORD_OCTETS: Final = 150


class Item:
    """A reply and what is known about its use."""

    __slots__ = (
        "answering", "expiry", "facts", "flags", "good", "half", "hits", "key", "last", "octets", "reply",
        "retry", "ttl", "wildcard",
    )  # fmt: skip

    def __init__(self, key: Key, reply: Reply, ttl: int, now: float) -> None:
        self.key = key
        self.reply = reply
        """As it is to be repeated, but for flags, lease and age."""
        self.flags = AA | reply.flags & (RA | AD)
        """Of a repeated reply: always authoritative, as CoreDNS has it."""
        self.facts = reply.lease.facts
        self.ttl = ttl
        self.expiry = now + ttl
        self.answering = False
        """It has what was asked for; reckoned only where somebody wants to know (``prefer_positive``)."""
        self.good: Item | None = None
        """The last answering item that this one took the place of (``prefer_positive``)."""
        self.wildcard: Callable[[], str] | None = None
        """Metadata that goes with the reply."""
        self.half: Half | None = None
        self.hits = 0
        """Uses without a long gap between them (``prefetch``)."""
        self.last = 0.0
        self.retry = 0.0
        """Not to be refreshed before."""
        octets = _ITEM_OCTETS
        for record in reply.answer:
            octets += _RECORD_OCTETS + len(record.owner) + len(record.rdata)
        if reply.authority or reply.additional:
            for record in reply.authority + reply.additional:
                octets += _RECORD_OCTETS + len(record.owner) + len(record.rdata)
        self.octets = octets
        """Memory, more or less."""

    @property
    def failure(self) -> bool:
        """Good to hold back a storm for a moment, but never to be used when stale (RFC 9520 section 3.2)."""
        return self.reply.rcode in (SERVFAIL, NOTIMP)

    @property
    def servfail(self) -> bool:
        """It says nothing about the name, so any answer is better."""
        return self.reply.rcode == SERVFAIL

    def keep_good(self, good: Item | None) -> None:
        """Hold the last answering item, and go with it when its facts change."""
        self.good = good
        if good is not None:
            self.facts = tuple({*self.facts, *good.facts})
            self.octets += good.octets

    def best(self) -> Item | None:
        """With ``prefer_positive``: this item if it has what was asked for, or the last one that had."""
        return self if self.answering else self.good


class Half:
    """Items, bounded in number and in memory; the least recently used one goes first."""

    __slots__ = ("_octets", "_order", "_standing", "capacity", "evicted", "items")

    def __init__(self, standing: Standing[Item]) -> None:
        self.capacity = 1
        self.evicted = 0
        """Items let go for want of room."""
        self.items: dict[Key, Item] = {}
        """To look whether there is anything; `get` to use it."""
        # Knows who goes first; the bounds are kept here, and most questions find nothing: that must cost nothing.
        self._order: LRUCache[Key, None] = LRUCache(FOREVER)
        self._octets = 0
        self._standing = standing

    def __len__(self) -> int:
        return len(self.items)

    def get(self, key: Key) -> Item | None:
        """What is under a key, which has been used by that."""
        item = self.items.get(key)
        if item is not None:
            self._order[key]
        return item

    def put(self, item: Item) -> None:
        """Keep an item in the place of any other under its key."""
        self.drop(item.key)
        item.half = self
        self.items[item.key] = item
        self._order[item.key] = None
        self._octets += item.octets
        if item.facts:
            self._standing.add(item, item.facts)
        self.shrink()

    def drop(self, key: Key) -> None:
        """Forget what is under a key, if anything."""
        if key in self.items:
            del self._order[key]
            self._forget(key)

    def shrink(self) -> None:
        """Let items go until the bounds are kept."""
        while len(self.items) > self.capacity or self._octets > limits.CACHE_BYTES:
            key, _ = self._order.popitem()
            self._forget(key)
            self.evicted += 1

    def _forget(self, key: Key) -> None:
        item = self.items.pop(key)
        self._octets -= item.octets
        if item.facts:
            self._standing.remove(item, item.facts)


class Store:
    """Both halves; outlives a reload."""

    def __init__(self, facts: Facts, dropped: Cell) -> None:
        self._standing: Standing[Item] = Standing()
        self._dropped = dropped
        self.success = Half(self._standing)
        self.denial = Half(self._standing)
        self._unsubscribe = facts.subscribe(self.forget)

    def close(self) -> None:
        """Nobody uses it any more."""
        self._unsubscribe()

    def bound(self, success: int, denial: int) -> None:
        """Set how many items each half holds."""
        for half, capacity in ((self.success, success), (self.denial, denial)):
            half.capacity = capacity
            half.shrink()

    def forget(self, facts: Iterable[Fact]) -> None:
        """Drop the items that stand on one of these facts."""
        for fact in facts:
            for item in self._standing.on(fact):
                if item.half is not None:
                    item.half.drop(item.key)
                    self._dropped.value += 1


def key_of(query: Query) -> Key:
    """Under what the reply to a query is kept: replies with and without DNSSEC are different ones."""
    edns = query.edns
    dnssec = edns is not None and edns.do
    return query.name, query.type << 18 | query.klass << 2 | dnssec << 1 | query.flags >> 4 & 1


def with_ttl(reply: Reply, ttl: int) -> Reply:
    """The reply with one TTL on all records."""
    for section in (reply.answer, reply.authority, reply.additional):
        for record in section:
            if record.ttl != ttl:
                return replace(
                    reply,
                    answer=_with_ttl(reply.answer, ttl),
                    authority=_with_ttl(reply.authority, ttl) if reply.authority else (),
                    additional=_with_ttl(reply.additional, ttl) if reply.additional else (),
                )
    return reply


def _with_ttl(records: tuple[Record, ...], ttl: int) -> tuple[Record, ...]:
    return tuple([Record(record.owner, record.type, ttl, record.rdata, record.klass) for record in records])
