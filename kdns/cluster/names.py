"""The Kubernetes DNS specification: which records a name has, and why it has none.

Below a zone Z, from right to left; anything else does not exist:

==============================================  =======================================================================
``Z``                                           SOA; NS: the Services in front of this server, or ``ns.dns.Z``
``dns-version.Z``, ``ns.dns.Z``                 TXT ``1.1.0``; the addresses of this server
``svc.Z``, ``pod.Z``, ``NS.svc.Z``              exist, but have no records
``SERVICE.NS.svc.Z``                            cluster IPs; headless: all ready endpoints; external name: CNAME
``ENDPOINT.SERVICE.NS.svc.Z``                   one ready endpoint, of whatever kind of Service
``_PORT._PROTOCOL.SERVICE.NS.svc.Z``            the same restricted to a named port; the underscores may be missing
``TZ.pin._zone.SERVICE.NS.svc.Z``               the ready endpoints of a headless Service in the topology zone TZ
``TZ.prefer._zone.SERVICE.NS.svc.Z``            the same, or all of them if there are none
``1-2-3-4.NS.pod.Z``                            the address itself; up to two further labels on the left mean nothing
==============================================  =======================================================================

Those of topology zones only if they are wanted (``zonal``); they exist as soon as the Service does.  The zone itself is
in `kdns.cluster.apex`, reverse names are in `kdns.cluster.reverse`, ServiceImports in `kdns.cluster.clusterset`.

Sources: Kubernetes DNS-Based Service Discovery 1.1.0; where it is silent, the behaviour of CoreDNS 1.14.7.  A name that
owns a record of any type is never NXDOMAIN (RFC 2308 section 5: that would deny all its types).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from msgspec import Struct

from kdns import rdata
from kdns.cluster.apex import SERVER_NAME, Apex
from kdns.cluster.candidates import fitting, labelled, within
from kdns.cluster.clusterset import Clusterset
from kdns.cluster.grammar import Asked, Options, parse
from kdns.cluster.index import Index
from kdns.cluster.objects import Service
from kdns.cluster.replies import REFUSAL, SVC, WIDTHS, Candidate, Replies, undashed
from kdns.cluster.reverse import Reverse, is_reverse, primary
from kdns.cluster.shelves import Entry, Slice, entry_key, known_fact
from kdns.denial import Denial, make_existing
from kdns.message import AXFR, CNAME, FOREVER, IXFR, SERVFAIL, SRV, TXT, Fact, Lease, Query, Record, Reply
from kdns.name import ROOT, Name, above, is_under, longest_zone

__all__ = ["Asked", "Chase", "Names", "Options", "parse", "primary"]

VERSION: Final = b"\x051.1.0"
"""Of the specification, as TXT data."""
VERSION_TTL: Final = 28800
CHAIN: Final = 10
"""CNAMEs followed within the zone (CoreDNS: 10)."""

_POD: Final = b"\x03pod"
_VERSION_NAME: Final = b"\x0bdns-version"
_CHILDREN: Final = (b"", SVC, _POD, _VERSION_NAME, b"\x03dns")
"""What may exist in a zone: itself, these, and names below these."""


class Chase(Struct, frozen=True):
    """The answer is ``cnames`` and what the whole server says about ``target``."""

    cnames: tuple[Record, ...]
    target: bytes
    """In the spelling of the Service."""
    nothing: Reply
    """The answer when the server says nothing at all."""
    lease: Lease


class Names:
    """Answers questions from an `Index`.  Zones, names and types are as in `message.Query`."""

    def __init__(self, index: Index, options: Options) -> None:
        self._index = index
        self._entries = index.entries
        self._options = options
        self._ttl = options.ttl
        self._zones = options.zones
        self._imports = frozenset(
            zone for zone in options.zones if longest_zone(zone, options.multicluster) is not None
        )
        self._replies = Replies(index, options.ttl, self._imports)
        self._clusterset = Clusterset(index, options, self._replies)
        self._reverse = Reverse(index, options, self._replies, self._exposed)
        self._apex = Apex(index, options, self._replies)
        self._denials: dict[Name, Denial] = {}
        """By apex."""
        # Names of Services and Pods, by far the most asked, are found without reading all their labels: what precedes
        # the suffix is a key of the index or not.  Only below zones without zones below them is that the longest zone.
        nested = above(options.zones)
        self._plain = [zone for zone in options.zones if not is_reverse(zone) and zone not in nested]
        self._suffixes = [
            (SVC + zone, _POD + zone, -len(SVC + zone), zone) for zone in self._plain if zone not in self._imports
        ]

    @property
    def local(self) -> tuple[bytes, ...]:
        """Packed addresses of this server, by which it finds the Services in front of it."""
        return self._apex.local

    @local.setter
    def local(self, addresses: tuple[bytes, ...]) -> None:
        self._apex.local = addresses

    def prove(self, barred: Collection[Name]) -> None:
        """From now on say, with the NXDOMAIN for a name, for which others it is true, too (`kdns.denial`).

        ``barred``: apexes for which that is not to be said.
        """
        children = make_existing(1)
        for child in _CHILDREN[1:]:
            children.add(child)
        # Where there are no Pods, nothing exists.
        below_pod = self._index.below_pod if self._options.pods != "disabled" else make_existing(1)
        for zone in self._plain:
            # The names in the root's SOA record are written shorter for some questions than for others.
            if zone != ROOT:
                below_svc = self._index.below_import if zone in self._imports else self._index.below_svc
                for apex, existing in ((zone, children), (SVC + zone, below_svc), (_POD + zone, below_pod)):
                    if apex not in barred:
                        self._denials[apex] = Denial(apex, existing)

    def zone(self, name: Name) -> Name | None:
        """The zone that answers for ``name``; None: somebody else."""
        return longest_zone(name, self._zones)

    def read(self, name: Name) -> tuple[Asked | None, bool] | None:
        """What a name means (None: nothing), and whether its zone is about ServiceImports; None: it is not ours."""
        zone = self.zone(name)
        if zone is None:
            return None
        imports = zone in self._imports
        return parse(name, zone, imports, self._options.zonal), imports

    def answer(self, query: Query) -> Reply | Chase | None:
        """The reply to a query; None when it is in none of our zones.

        Whether a name that does not exist (NXDOMAIN) falls through to the next plugin is the caller's business.
        """
        if query.type == AXFR or query.type == IXFR:
            return REFUSAL if self.zone(query.name) is not None else None
        return self._lookup(query, ())

    # -- names

    def _lookup(self, query: Query, trail: tuple[Name, ...]) -> Reply | Chase | None:
        """``trail``: names whose CNAMEs have led here."""
        name = query.name
        for svc, pod, cut, zone in self._suffixes:
            if name.endswith(svc):
                head = name[:cut]
                entry = self._entries.get(head)
                if entry is not None:
                    return self._service(query, zone, head, entry, trail)
                facts = self._nothing(head)
                if facts is not None:
                    return self._replies.missing(zone, facts, denial=self._denials.get(svc))
            elif name.endswith(pod) and len(name) + cut > 2:
                at = 1 + name[0]
                if at + 1 + name[at] == len(name) + cut:
                    return self._pod(query, zone, name[1:at], name[at:cut])
            elif name.endswith(zone) and _child(name[: len(name) - len(zone)]) not in _CHILDREN:
                return self._replies.missing(zone, (), denial=self._denials.get(zone))
        found = longest_zone(name, self._zones)
        if found is None:
            return None
        head = name[: len(name) - len(found)]
        if not head:
            return self._apex.answer(query, found)
        if head == _VERSION_NAME:
            version = (Record(query.spelling, TXT, VERSION_TTL, VERSION),) if query.type == TXT else ()
            return self._replies.found(found, (), version)
        if head == SERVER_NAME:
            return self._apex.server(query, found)
        if is_reverse(found):
            return self._reverse.answer(query, found)
        return self._forward(query, found, trail)

    def _forward(self, query: Query, zone: Name, trail: tuple[Name, ...]) -> Reply | Chase:
        imports = zone in self._imports
        asked = parse(query.name, zone, imports, self._options.zonal)
        if asked is None:
            return self._replies.missing(zone, (), denial=self._proof(query.name, zone))
        if not asked.namespace:
            return self._replies.found(zone, ())
        namespace = b"%c%b" % (len(asked.namespace), asked.namespace)
        if asked.kind == b"pod":
            return self._pod(query, zone, asked.service, namespace)
        if not asked.service:
            facts = (b"ns/" + namespace,)
            if self._exposed(namespace):
                return self._replies.found(zone, facts)
            return self._replies.missing(zone, facts, denial=self._proof(query.name, zone))
        if imports:
            denial = self._proof(query.name, zone)
            return self._clusterset.answer(query, zone, asked, self._exposed(namespace), denial)
        key = entry_key(asked.service, asked.namespace)
        entry = self._entries.get(key)
        if asked.zone:
            return self._in_zone(query, zone, key, entry, asked)
        if asked.endpoint or asked.port or asked.protocol:
            return self._part(query, zone, key, entry, asked)
        return self._service(query, zone, key, entry, trail)

    def _nothing(self, head: bytes) -> tuple[Fact, ...] | None:
        """On which facts it stands that nothing exists at these labels below ``svc``; None: something may."""
        before = last = at = 0
        while at < len(head):
            before, last, at = last, at, at + 1 + head[at]
        if at != len(head) or not at:  # a label that only looks like the suffix; ``svc`` itself
            return None
        namespace = head[last:]
        if not last:
            return None if namespace in self._index.namespaces else (b"ns/" + namespace,)
        key = head[before:]
        if key in self._entries and (namespace in self._index.namespaces or self._index.waiting):
            return None  # without Namespaces the Service itself may vouch for its own
        return b"svc/" + key, b"ns/" + namespace

    def _proof(self, name: Name, zone: Name) -> Denial | None:
        """What denies this name, and others with it: that nothing is below ``pod``, ``svc`` or the zone itself."""
        for apex in (_POD + zone, SVC + zone, zone):
            if is_under(name, apex):
                denial = self._denials.get(apex)
                return denial if denial is not None and denial.existing.denies(name[: -len(apex)]) else None
        return None

    def _exposed(self, namespace: bytes) -> bool:
        """Whether a namespace, given with its length octet, is there and shown."""
        only = self._options.namespaces
        return namespace in self._index.namespaces and (not only or namespace in only)

    def _shown(self, key: bytes, entry: Entry | None) -> tuple[Service | None, tuple[Fact, ...]]:
        """The Service of an entry, None if it is not there or not shown, and the facts on which that stands.

        While Namespaces are not known yet, a Service that is there vouches for its own.
        """
        namespace = key[1 + key[0] :]
        facts: tuple[Fact, ...] = (b"svc/" + key, b"ns/" + namespace)
        service = entry.service if entry is not None else None
        if service is None or self._exposed(namespace):
            return service, facts
        only = self._options.namespaces
        if self._options.selected or self._index.synced("namespaces") or (only and namespace not in only):
            return None, facts
        return service, (*facts, known_fact("namespaces"))

    # -- Services

    def _service(
        self, query: Query, zone: Name, key: bytes, entry: Entry | None, trail: tuple[Name, ...]
    ) -> Reply | Chase:
        """A whole Service."""
        service, facts = self._shown(key, entry)
        if entry is None or service is None:
            return self._replies.missing(zone, facts)
        if service.external is not None:
            return self._external(query, zone, service.external, facts, trail)
        if service.headless or self._options.ignore_empty:
            facts = (*facts, b"eps/" + key)
            without = self._without_endpoints(zone, facts, entry)
            if without is not None:
                return without
        type = query.type
        width = WIDTHS.get(type)
        if width is None:
            found = self._candidates(entry, Asked()) if type == SRV else []
            return self._replies.srv(query, zone, facts, found)
        addresses = _endpoint_addresses(entry, width) if service.headless else service.addresses
        ttl, owner = self._ttl, query.spelling
        answer = [Record(owner, type, ttl, address) for address in addresses if len(address) == width]
        return self._replies.found(zone, facts, tuple(answer))

    def _part(self, query: Query, zone: Name, key: bytes, entry: Entry | None, asked: Asked) -> Reply:
        """One endpoint of a Service, or a Service restricted to a port."""
        service, facts = self._shown(key, entry)
        if entry is None or service is None or service.external is not None:
            return self._replies.missing(zone, facts)
        needed: tuple[str, ...] = ()
        if service.headless or asked.endpoint or self._options.ignore_empty:
            facts, needed = (*facts, b"eps/" + key), ("endpointslices",)
            without = self._without_endpoints(zone, facts, entry)
            if without is not None:
                return without
        found = self._candidates(entry, asked)
        if not found:
            return self._replies.missing(zone, facts, *needed)
        if query.type == SRV:
            return self._replies.srv(query, zone, facts, found)
        return self._replies.addresses(query, zone, facts, dict.fromkeys(address for _, address, _ in found))

    def _in_zone(self, query: Query, zone: Name, key: bytes, entry: Entry | None, asked: Asked) -> Reply:
        """The endpoints of a headless Service in a topology zone.  What is no such Service has no such names."""
        service, facts = self._shown(key, entry)
        if entry is None or service is None or not service.headless:
            return self._replies.missing(zone, facts)
        facts = (*facts, b"eps/" + key)
        found = self._candidates(entry, asked) if self._index.has("endpointslices") else []
        if not found and not self._index.synced("endpointslices"):
            return self._replies.unknown(zone, "endpointslices")
        if not found and asked.prefer:
            found = self._candidates(entry, Asked())
        if query.type == SRV:
            return self._replies.srv(query, zone, facts, found)
        return self._replies.addresses(query, zone, facts, dict.fromkeys(address for _, address, _ in found))

    def _without_endpoints(self, zone: Name, facts: tuple[Fact, ...], entry: Entry) -> Reply | None:
        """What is said when the endpoints are not known, or there are none; None: there are some."""
        if entry.ready and self._index.has("endpointslices"):
            return None
        return self._replies.missing(zone, facts, "endpointslices")

    def _candidates(self, entry: Entry, asked: Asked) -> list[Candidate]:
        """(labels below ``svc``, address, port) of everything that fits; ports without a number are `NO_PORT`."""
        service = entry.service
        if service is not None and not service.headless and not asked.endpoint:
            ports = fitting(service.ports, asked)
            return [(entry.key, address, port) for port in ports for address in service.addresses]
        found: list[Candidate] = []
        for part in entry.slices:
            ports = fitting(part.ports, asked)
            if ports:
                for address, label in self._labelled(part, asked):
                    below = b"%c%b%b" % (len(label), label, entry.key)
                    found.extend((below, address, port) for port in ports)
        return found

    def _labelled(self, part: Slice, asked: Asked) -> list[tuple[bytes, bytes]]:
        """(address, label) of the endpoints in a slice that are asked for."""
        pod_names = self._options.pod_names
        if asked.zone:
            return within(part, pod_names, asked.zone)
        return labelled(part, pod_names, asked.endpoint)

    def _external(
        self, query: Query, zone: Name, target: bytes, facts: tuple[Fact, ...], trail: tuple[Name, ...]
    ) -> Reply | Chase:
        if not target:
            return self._replies.missing(zone, facts)
        cname = Record(query.spelling, CNAME, self._ttl, target)
        if query.type == CNAME:
            return self._replies.found(zone, facts, (cname,))
        name, folded = query.name, target.lower()
        if query.type not in WIDTHS or is_under(folded, name) or name in trail or len(trail) > CHAIN:
            return self._replies.found(zone, facts)
        if not is_under(folded, zone):
            return Chase((cname,), target, self._replies.found(zone, facts), Lease(FOREVER, facts))
        further = self._lookup(query.replace(name=folded, spelling=target), (*trail, name))
        if isinstance(further, Chase):
            lease = further.lease.shrink(FOREVER, facts)
            return Chase((cname, *further.cnames), further.target, self._replies.found(zone, lease.facts), lease)
        if further is None or further.rcode == SERVFAIL:
            return further or self._replies.found(zone, facts)
        # As CoreDNS: a CNAME that leads to nothing within the zone is not shown.
        answer = (cname, *further.answer) if further.answer else ()
        return self._replies.found(zone, further.lease.shrink(FOREVER, facts).facts, answer)

    # -- Pods

    def _pod(self, query: Query, zone: Name, label: bytes, namespace: bytes) -> Reply:
        """The address that ``label`` spells; an empty label asks for the namespace, which has its length octet."""
        facts: tuple[Fact, ...] = (b"ns/" + namespace,)
        mode = self._options.pods
        if mode == "disabled" or not self._exposed(namespace):
            return self._replies.missing(zone, facts, denial=self._proof(query.name, zone))
        if not label:
            return self._replies.found(zone, facts)
        address = undashed(label)
        if not address:
            return self._replies.missing(zone, facts)
        if mode == "verified":
            facts = (*facts, b"pod/" + address)
            if not any(pod.namespace == namespace[1:] for pod in self._index.pods(address)):
                return self._replies.missing(zone, facts, "pods")
        if query.type == SRV:
            # CoreDNS has one for every Pod name, with port 0.
            target = b"%c%b%b\x03pod%b" % (len(label), label, namespace, zone)
            srv = Record(query.spelling, SRV, self._ttl, rdata.srv(0, 100, 0, target))
            return self._replies.found(zone, facts, (srv,), (self._replies.address(target, address),))
        fitting = len(address) == WIDTHS.get(query.type)
        answer = (Record(query.spelling, query.type, self._ttl, address),) if fitting else ()
        return self._replies.found(zone, facts, answer)


def _child(head: bytes) -> bytes:
    """The last label of what precedes a zone, with its length octet; empty: there is none, or what is no label."""
    last = at = 0
    while at < len(head):
        last, at = at, at + 1 + head[at]
    return head[last:] if at == len(head) else b""


def _endpoint_addresses(entry: Entry, width: int) -> dict[bytes, None]:
    """All addresses of this width, each once."""
    found: dict[bytes, None] = {}
    for part in entry.slices:
        if part.width == width:
            found.update(dict.fromkeys(part.each()))
    return found
