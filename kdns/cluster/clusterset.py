"""Names of ServiceImports: the Services of a whole set of clusters, in zones like ``clusterset.local``.

Below such a zone Z, from right to left; what has no Service in it is as in any other zone (see `kdns.cluster.names`):

==================================================  ===================================================================
``SERVICE.NS.svc.Z``                                IPs of the ServiceImport; headless: all ready endpoints
``ENDPOINT.CLUSTER.SERVICE.NS.svc.Z``               one ready endpoint in a member cluster, of whatever kind
``_PORT._PROTOCOL.SERVICE.NS.svc.Z``                the same restricted to a named port; one underscore is needed
==================================================  ===================================================================

There are no reverse names.  An endpoint of which no cluster is known is named without one.

Sources: KEP-1645 and the DNS specification of the Multi-Cluster Services API; where they are silent, the behaviour of
CoreDNS 1.14.7.
"""

from __future__ import annotations

from kdns.cluster.candidates import fitting, labelled
from kdns.cluster.grammar import Asked, Options
from kdns.cluster.index import Index
from kdns.cluster.objects import Service
from kdns.cluster.replies import Candidate, Replies
from kdns.cluster.shelves import Entry, Imported, entry_key
from kdns.denial import Denial
from kdns.message import SRV, Fact, Query, Reply
from kdns.name import Name


class Clusterset:
    """Answers questions about ServiceImports from an `Index`."""

    def __init__(self, index: Index, options: Options, replies: Replies) -> None:
        self._index = index
        self._options = options
        self._replies = replies

    def answer(self, query: Query, zone: Name, asked: Asked, exposed: bool, denial: Denial | None) -> Reply:
        """The reply to a question about a ServiceImport or a part of it.

        ``exposed``: whether its namespace is there and shown; ``denial``: what denies the name and others with it.
        """
        key = entry_key(asked.service, asked.namespace)
        facts: tuple[Fact, ...] = (b"imp/" + key, b"ns/" + key[1 + key[0] :])
        entry = self._index.imports.get(key)
        service = entry.service if entry is not None else None
        if entry is None or service is None or not exposed:
            return self._replies.missing(zone, facts, denial=denial)
        if service.headless or asked.endpoint or self._options.ignore_empty:
            facts = (*facts, b"ime/" + key)
            if not self._index.synced("importedslices"):
                return self._replies.unknown(zone, "importedslices")
            if not entry.ready:
                return self._replies.missing(zone, facts)
        found = self._candidates(entry, service, asked)
        if found is None:
            return self._replies.missing(zone, facts)
        if query.type == SRV:
            return self._replies.srv(query, zone, facts, found)
        return self._replies.addresses(query, zone, facts, dict.fromkeys(address for _, address, _ in found))

    def _candidates(self, entry: Entry, service: Service, asked: Asked) -> list[Candidate] | None:
        """What fits the question; None: there is no such name.  Nothing is of a ServiceImport without an IP."""
        if not service.headless and not asked.endpoint:
            # CoreDNS: without ports it does not exist, unlike a Service.
            ports = fitting(service.ports, asked) if service.ports else ()
            return [(entry.key, address, port) for port in ports for address in service.addresses] if ports else None
        found: list[Candidate] = []
        for part in entry.slices:
            cluster = part.cluster if isinstance(part, Imported) else b""
            if asked.endpoint and asked.cluster != cluster:
                continue
            below = b"%c%b%b" % (len(cluster), cluster, entry.key) if cluster else entry.key
            ports = fitting(part.ports, asked)
            for address, label in labelled(part, self._options.pod_names, asked.endpoint) if ports else ():
                target = b"%c%b%b" % (len(label), label, below)
                found.extend((target, address, port) for port in ports)
        return found or None
