"""How answers about cluster names are put together: records, the zone's SOA, and what is said when there are none.

An answer stands until one of its facts (see `index`) is dropped.  The serial in the SOA of a negative answer may then
be older than the index: nobody follows changes by it, so such answers stand, too; only the SOA that is asked for itself
is made anew for each question.  What depends on objects that are not known yet is SERVFAIL, with EDE 14 (Not Ready).
A snapshot says what there was, never what there is not: its names are answered with EDE 3 (Stale Answer), see `stale`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, TypeAlias

from kdns import rdata
from kdns.cluster.index import Index
from kdns.cluster.objects import Port
from kdns.cluster.shelves import known_fact
from kdns.denial import Denial
from kdns.message import (
    AA,
    AAAA,
    EDE_NOT_READY,
    EDE_STALE_ANSWER,
    FOREVER,
    NOERROR,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    SOA,
    SRV,
    A,
    Fact,
    Lease,
    Query,
    Record,
    Reply,
)
from kdns.name import MAX_NAME, BadName, Name, address_text, pack_address

PLUGIN: Final = "kubernetes"
REFUSAL: Final = Reply(REFUSED, plugin=PLUGIN)

WIDTHS: Final = {A: 4, AAAA: 16}
"""Type of an address record → octets of its address."""

SVC: Final = b"\x03svc"
Candidate: TypeAlias = tuple[bytes, bytes, Port]
"""Something that fits a question: labels below ``svc``, address, port."""

_OCTETS: Final = {b"%d" % octet: octet for octet in range(256)}
STALE_TTL: Final = 5
"""Seconds at most for which an answer out of a snapshot may be kept: the true one may be there in a moment."""
_KINDS: Final = {
    b"ns": ("namespaces",),
    b"svc": ("services",),
    b"eps": ("endpointslices",),
    b"ip": ("services", "endpointslices"),
    b"pod": ("pods",),
}
"""First part of a fact (see `index`) → the kinds of objects that it is about."""

_MAPPED: Final = bytes(10) + b"\xff\xff"


class Replies:
    """Makes the replies of one ``kubernetes`` directive; ``ttl`` in seconds.

    ``imports``: the zones that are about ServiceImports, and not about the Services of this cluster.
    """

    def __init__(self, index: Index, ttl: int, imports: Collection[Name] = ()) -> None:
        self._index = index
        self._ttl = ttl
        self._imports = frozenset(imports)
        self._soas: dict[Name, tuple[int, Record]] = {}

    def found(
        self, zone: Name, facts: tuple[Fact, ...], answer: tuple[Record, ...] = (), additional: tuple[Record, ...] = ()
    ) -> Reply:
        """What is asked for a name that exists; without records that is NODATA."""
        authority = () if answer else (self.soa(zone),)
        return Reply(0, answer, authority, additional, AA, Lease(FOREVER, facts), plugin=PLUGIN)

    def missing(self, zone: Name, facts: tuple[Fact, ...], *kinds: str, denial: Denial | None = None) -> Reply:
        """NXDOMAIN; SERVFAIL while that cannot be known, for want of Namespaces, Services, or the ``kinds`` named.

        ``denial``: what the NXDOMAIN proves beside.

        Even a name without meaning is not denied before Namespaces and Services are known (as in CoreDNS): then kdns
        knows nothing of its zone.  Where a zone is about ServiceImports, they stand for Services.
        """
        if self._index.waiting:
            services = "serviceimports" if zone in self._imports else "services"
            for kind in ("namespaces", services, *kinds):
                if not self._index.synced(kind):
                    return self.unknown(zone, kind)
        lease = Lease(FOREVER, facts, denial=denial)
        return Reply(NXDOMAIN, (), (self.soa(zone),), (), AA, lease, plugin=PLUGIN)

    def unknown(self, zone: Name, kind: str) -> Reply:
        """SERVFAIL: the objects of this kind are not known yet."""
        ede = ((EDE_NOT_READY, f"{kind} not synced"),)
        return Reply(SERVFAIL, (), (self.soa(zone),), (), AA, ede=ede, plugin=PLUGIN)

    def soa(self, zone: Name) -> Record:
        """The zone's SOA record."""
        serial = self._index.import_serial if zone in self._imports else self._index.serial
        known = self._soas.get(zone)
        if known is not None and known[0] == serial:
            return known[1]
        mname, rname = b"\x02ns\x03dns" + zone, b"\x0ahostmaster" + zone
        data = rdata.soa(mname, rname, serial & 0xFFFFFFFF, 7200, 1800, 86400, self._ttl)
        soa = Record(zone, SOA, min(self._ttl, 300), data)
        self._soas[zone] = serial, soa
        return soa

    def address(self, owner: bytes, address: bytes) -> Record:
        """The A or AAAA record of a packed address."""
        return Record(owner, A if len(address) == 4 else AAAA, self._ttl, address)

    def addresses(self, query: Query, zone: Name, facts: tuple[Fact, ...], addresses: Iterable[bytes]) -> Reply:
        """A or AAAA records of the addresses that fit the type asked for; other types have none."""
        owner, type, ttl = query.spelling, query.type, self._ttl
        width = WIDTHS.get(type)
        answer = tuple([Record(owner, type, ttl, address) for address in addresses if len(address) == width])
        return self.found(zone, facts, answer)

    def srv(self, query: Query, zone: Name, facts: tuple[Fact, ...], found: Collection[Candidate]) -> Reply:
        """One SRV record for each target and port; all candidates, though they may share one, divide the weight."""
        weight = max(1, 100 // len(found)) if found else 0
        answer: dict[tuple[bytes, int], Record] = {}
        additional: dict[tuple[bytes, bytes], Record] = {}
        for below, address, port in found:
            target = below + SVC + zone
            if port.number and fits(target):
                data = rdata.srv(0, weight, port.number, target)
                answer[target, port.number] = Record(query.spelling, SRV, self._ttl, data)
                additional[target, address] = self.address(target, address)
        return self.found(zone, facts, tuple(answer.values()), tuple(additional.values()))


def stale(reply: Reply, remembered: tuple[str, ...]) -> Reply:
    """The reply as it is to be given while objects of the kinds ``remembered`` are those of a snapshot.

    One that stands on none of them is as it is.  The others have EDE 3 and short TTLs, and stand until their kinds are
    known.
    """
    if reply.rcode != NOERROR or not reply.lease.facts:
        return reply
    about = {kind for fact in reply.lease.facts for kind in _KINDS.get(fact.partition(b"/")[0], ())}
    kinds = [kind for kind in remembered if kind in about]
    if not kinds:
        return reply
    ede = (EDE_STALE_ANSWER, f"{', '.join(kinds)} out of a snapshot")
    return reply.replace(
        answer=_soon(reply.answer),
        authority=_soon(reply.authority),
        additional=_soon(reply.additional),
        lease=reply.lease.shrink(FOREVER, tuple(map(known_fact, kinds))),
        ede=(*reply.ede, ede),
    )


def _soon(records: tuple[Record, ...]) -> tuple[Record, ...]:
    return tuple([record.with_ttl(min(record.ttl, STALE_TTL)) for record in records])


def dashed(address: bytes) -> bytes:
    """The label of an endpoint without a name: its address with dashes; none ends with a dash."""
    if len(address) == 4:
        return b"%d-%d-%d-%d" % tuple(address)
    label = address_text(address).replace(":", "-").encode()
    return label + b"0" if label.endswith(b"-") else label


def undashed(label: bytes) -> bytes:
    """The packed address that a label spells with dashes; empty when it is none."""
    parts = label.split(b"-")
    if len(parts) == 4:
        try:
            return bytes([_OCTETS[part] for part in parts])
        except KeyError:
            if b"" not in parts:
                return b""
    if b"." in label or b":" in label:
        return b""
    try:
        address = pack_address(label.replace(b"-", b":").decode("ascii"))
    except (BadName, UnicodeDecodeError):
        return b""
    return address[12:] if address.startswith(_MAPPED) else address


def fits(name: bytes) -> bool:
    """Whether a name that was put together is not too long to be one."""
    return len(name) <= MAX_NAME
