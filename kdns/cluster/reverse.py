"""Reverse names: which Service, or which endpoints, have an address.

A cluster IP points to its Service, any other address to the ready endpoints that have it; always into the first zone
that is no reverse zone.

Source: Kubernetes DNS-Based Service Discovery 1.1.0; where it is silent, the behaviour of CoreDNS 1.14.7.
"""

from __future__ import annotations

from collections.abc import Callable

from kdns.cluster.candidates import labelled
from kdns.cluster.grammar import Options
from kdns.cluster.index import Index
from kdns.cluster.replies import SVC, Replies, fits
from kdns.cluster.shelves import Entry
from kdns.message import PTR, Fact, Query, Record, Reply
from kdns.name import IN_ADDR_ARPA, IP6_ARPA, Name, is_under, reverse_address


class Reverse:
    """Answers questions about addresses from an `Index`."""

    def __init__(self, index: Index, options: Options, replies: Replies, exposed: Callable[[bytes], bool]) -> None:
        """``exposed``: whether a namespace, given with its length octet, is there and shown."""
        self._index = index
        self._replies = replies
        self._exposed = exposed
        self._ttl = options.ttl
        self._pod_names = options.pod_names
        self._primary = primary(options.zones) or options.zones[0]
        self._filtered = bool(options.namespaces) or options.selected

    def answer(self, query: Query, zone: Name) -> Reply:
        """The reply to a question about a name in a reverse zone."""
        address = reverse_address(query.name)
        if address is None:
            return self._replies.missing(zone, ())
        facts: list[Fact] = [b"ip/" + address]
        for entry in self._index.by_cluster_ip(address):
            if self._named(entry, facts):
                return self._pointers(query, zone, facts, [entry.key])
        for kind in ("services", "endpointslices", *(("namespaces",) if self._filtered else ())):
            if not self._index.has(kind):
                return self._replies.unknown(zone, kind)
        targets: dict[bytes, None] = {}
        for entry in self._index.by_endpoint(address):
            if self._named(entry, facts):
                for part in entry.slices:
                    if part.has(address):
                        named = labelled(part, self._pod_names)
                        targets.update(
                            (b"%c%b%b" % (len(label), label, entry.key), None) for at, label in named if at == address
                        )
        return self._pointers(query, zone, facts, list(targets), "endpointslices")

    def _named(self, entry: Entry, facts: list[Fact]) -> bool:
        """Whether reverse lookups may name this Service; the fact on which that stands joins ``facts``."""
        if not self._filtered:
            return True
        namespace = entry.key[1 + entry.key[0] :]
        facts.append(b"ns/" + namespace)
        return self._exposed(namespace)

    def _pointers(self, query: Query, zone: Name, facts: list[Fact], targets: list[bytes], *needed: str) -> Reply:
        names = [target + SVC + self._primary for target in targets]
        answer = tuple([Record(query.spelling, PTR, self._ttl, name) for name in names if fits(name)])
        if not answer:
            return self._replies.missing(zone, tuple(facts), *needed)
        return self._replies.found(zone, tuple(facts), answer if query.type == PTR else ())


def primary(zones: tuple[Name, ...]) -> Name | None:
    """The zone that reverse lookups point into: the first that is no reverse zone; None: there is none."""
    return next((zone for zone in zones if not is_reverse(zone)), None)


def is_reverse(zone: Name) -> bool:
    """Whether the names in a zone are addresses."""
    return is_under(zone, IN_ADDR_ARPA) or is_under(zone, IP6_ARPA)
