"""What a zone says of itself: its SOA record, and who its name servers are.

They are the Services in front of this server, found by its own addresses; without any it is ``ns.dns`` itself.
"""

from __future__ import annotations

from typing import Final

from kdns.cluster.candidates import labelled
from kdns.cluster.grammar import Options
from kdns.cluster.index import Index
from kdns.cluster.objects import Service
from kdns.cluster.replies import SVC, Replies, fits
from kdns.cluster.shelves import Entry
from kdns.message import NS, SOA, Fact, Lease, Query, Record, Reply
from kdns.name import Name

SERVER_NAME: Final = b"\x02ns\x03dns"


class Apex:
    """Answers questions about a zone itself from an `Index`."""

    def __init__(self, index: Index, options: Options, replies: Replies) -> None:
        self.local: tuple[bytes, ...] = ()
        """Packed addresses of this server."""
        self._index = index
        self._replies = replies
        self._ttl = options.ttl
        self._pod_names = options.pod_names

    def answer(self, query: Query, zone: Name) -> Reply:
        """The reply to a question about the zone's own name."""
        if query.type == SOA:
            reply = self._replies.found(zone, (), (self._replies.soa(zone).with_owner(query.spelling),))
            return reply.leased(Lease())
        if query.type != NS:
            return self._replies.found(zone, ())
        kind, servers, facts = self._servers(zone)
        if kind:
            return self._replies.unknown(zone, kind)
        answer = tuple(
            [Record(query.spelling, NS, self._ttl, name) for name in dict.fromkeys(name for name, _ in servers)]
        )
        additional = tuple([self._replies.address(name, address) for name, address in servers])
        return self._replies.found(zone, facts, answer, additional)

    def server(self, query: Query, zone: Name) -> Reply:
        """The reply to a question about `SERVER_NAME` in the zone."""
        kind, servers, facts = self._servers(zone)
        if kind:
            return self._replies.unknown(zone, kind)
        return self._replies.addresses(query, zone, facts, dict.fromkeys(address for _, address in servers))

    def _servers(self, zone: Name) -> tuple[str, list[tuple[bytes, bytes]], tuple[Fact, ...]]:
        """What is in front of this server: ("", [(name, address)], facts), or the kind of objects that is not known."""
        unknown = [kind for kind in ("services", "endpointslices") if not self._index.synced(kind)]
        if not all(map(self._index.has, unknown)):
            return unknown[0], [], ()
        facts: list[Fact] = []
        servers: dict[tuple[bytes, bytes], None] = {}
        fronted = False
        for local in self.local:
            facts.append(b"ip/" + local)
            for entry in self._index.by_endpoint(local):
                fronted = True
                facts += (b"svc/" + entry.key, b"eps/" + entry.key)
                if entry.service is not None:
                    found = self._in_front(entry, entry.service, local)
                    servers.update(((below + SVC + zone, address), None) for below, address in found)
        if not fronted:
            if unknown:
                return unknown[0], [], ()
            servers.update(((SERVER_NAME + zone, local), None) for local in self.local)
        return "", [server for server in servers if fits(server[0])], tuple(facts)

    def _in_front(self, entry: Entry, service: Service, local: bytes) -> list[tuple[bytes, bytes]]:
        """(labels below ``svc``, address) of the Service of an endpoint; headless: of the endpoints beside it."""
        if not service.headless:
            return [(entry.key, address) for address in service.addresses]
        return [
            (b"%c%b%b" % (len(label), label, entry.key), address)
            for part in entry.slices
            if part.has(local)
            for address, label in labelled(part, self._pod_names)
        ]
