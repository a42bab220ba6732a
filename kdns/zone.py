"""One zone and the authoritative lookup in it: names and types → sections, without any I/O.

The rules are those of RFC 1034 section 4.3.2 with wildcards as RFC 4592, DNAME as RFC 6672 and, for zones that are
signed when they are read, RRSIG and NSEC as RFC 4035 section 3.1 has them.  Where those leave a choice (NS beside
positive answers, which glue, how long a CNAME chain) the answer is the one that CoreDNS's ``file`` gives.

::

    name ── a zone cut or DNAME above it? ── referral, or synthesised CNAME
      ├── exists with records ───────────── answer, CNAME chain, or NODATA
      ├── exists without (empty non-terminal) ── NODATA
      └── does not ── wildcard at the closest encloser? ── as if it existed with the wildcard's records; else NXDOMAIN
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from kdns.errors import KdnsError
from kdns.message import (
    AAAA,
    CNAME,
    DNAME,
    DS,
    HTTPS,
    MX,
    NOERROR,
    NS,
    NSEC,
    NXDOMAIN,
    RRSIG,
    SERVFAIL,
    SOA,
    SRV,
    SVCB,
    YXDOMAIN,
    A,
    Record,
)
from kdns.name import MAX_NAME, Name, is_under, labels

RRset: TypeAlias = tuple[Record, ...]
"""Records of one owner and one type, in the order in which they were read; also any run of records."""

Node: TypeAlias = tuple[RRset, ...]
"""What one name holds; ``()`` is an empty non-terminal.  So few that a scan beats a dictionary, in time and memory."""

_HOPS: Final = 9
"""CNAMEs followed inside the zone behind the first one (CoreDNS)."""

_TARGET_AT: Final = {MX: 2, SRV: 6, SVCB: 2, HTTPS: 2}
"""Types whose targets' addresses go into the additional section, and where in the data the target begins."""


class BadZone(KdnsError):
    """A zone that cannot be served; the message says why and, for a master file, where (``FILE:LINE: …``)."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """What a zone has to say to a question."""

    rcode: int = NOERROR
    answer: RRset = ()
    authority: RRset = ()
    additional: RRset = ()
    authoritative: bool = True
    """The AA flag: False for a bare referral."""
    chase: Name = b""
    """If not empty, the answer ends in a CNAME to this name, which is not to be answered from here: ask the whole
    server for it and give what it says to `Zone.conclude`."""
    passable: bool = False
    """Nothing is held at the name itself: a plugin may let the question fall through."""
    wildcard: Name = b""
    """Owner of the wildcard that the answer was made from; empty when there was none."""


class Zone:
    """The records of one zone; never changes once it is made."""

    __slots__ = ("_cuts", "_nodes", "_ns", "_nsec", "_soa", "origin", "serial")

    def __init__(self, origin: Name, records: Iterable[Record]) -> None:
        """Take all records in; owners must be folded, and those outside ``origin`` must have been left out.

        The last SOA counts, at whatever owner it stands (CoreDNS).  Raises BadZone when there is none.
        """
        self.origin = origin
        building: dict[Name, list[Record]] = {origin: []}
        soa: Record | None = None
        for record in records:
            record = _folded(record)
            if record.type == SOA:
                soa = record
            else:
                building.setdefault(record.owner, []).append(record)
        if soa is None:
            raise BadZone("has no SOA record")
        self.serial = int.from_bytes(soa.rdata[-20:-16], "big")
        self._nodes: dict[Name, Node] = {name: _grouped(held) for name, held in building.items()}
        # SOA and NS of the apex stand apart from its other records, which may well be none.
        apex = self._nodes[origin]
        signatures = _of(apex, RRSIG)
        ns = _of(apex, NS)
        self._soa = (soa,), (soa, *_covering(signatures, SOA))
        self._ns = ns, (*ns, *_covering(signatures, NS))
        self._nodes[origin] = _without_soa_and_ns(apex)
        self._add_empty_non_terminals()
        self._cuts = {
            name: node for name, node in self._nodes.items() if (_of(node, NS) and name != origin) or _of(node, DNAME)
        }
        self._nsec = sorted((_canonical(name), name) for name, node in self._nodes.items() if _of(node, NSEC))

    def _add_empty_non_terminals(self) -> None:
        for name in list(self._nodes):
            if name != self.origin:
                above = name[1 + name[0] :]
                while above not in self._nodes:
                    self._nodes[above] = ()
                    above = above[1 + above[0] :]

    # --- the lookup --------------------------------------------------------------------------------------------------

    def lookup(self, name: Name, type: int, do: bool = False) -> Found:
        """Answer for a name at or under the origin; ``do`` adds RRSIG and NSEC records as far as the zone has them."""
        if name == self.origin and type == SOA:
            return Found(answer=self._soa[do], authority=self._ns[do])
        if name == self.origin and type == NS:
            ns = self._ns[do]
            return Found(answer=ns, additional=self._glue(ns, self.origin, do), passable=not ns)
        if self._cuts and (cut := self._cut(name, type)) is not None:
            node = self._nodes[cut]
            if cut != name and (dname := _of(node, DNAME)):
                return self._rename(name, cut, _signed(node, dname, do), type, do)
            return self._referral((), cut, node, do)
        node_or_none = self._nodes.get(name)
        if node_or_none:
            return self._answer(name, node_or_none, (), type, do)
        if node_or_none is not None:
            return Found(authority=self._soa[do] + self._denial(name, do=do), passable=True)
        return self._synthesis(name, type, do)

    def conclude(self, found: Found, rcode: int, records: RRset, type: int, do: bool = False) -> Found:
        """The whole answer, when the server has said ``rcode`` and ``records`` to what was to be chased.

        An rcode other than NXDOMAIN and SERVFAIL leaves the alias standing alone (CoreDNS).
        """
        answer = found.answer + records
        negative = rcode == NXDOMAIN or (rcode == NOERROR and not records)
        return Found(
            rcode if rcode in (NXDOMAIN, SERVFAIL) else NOERROR,
            answer,
            (self._soa if negative else self._ns)[do] + found.authority,
            self._addresses(answer, do) if type in _TARGET_AT else (),
            wildcard=found.wildcard,
        )

    def _cut(self, name: Name, type: int) -> Name | None:
        """The topmost delegation or DNAME owner that takes ``name`` out of our hands; None: it is ours."""
        found = None
        end = len(name) - len(self.origin)
        at = 0
        while at <= end:
            owner = name[at:]
            if owner in self._cuts and (at or (type != DS and _of(self._cuts[owner], NS))):
                found = owner
            at += 1 + name[at]
        return found

    def _answer(self, owner: Name, node: Node, proof: RRset, type: int, do: bool) -> Found:
        """From an owner's records; ``proof`` denies the name that was asked for when the owner is a wildcard."""
        cname = _of(node, CNAME)
        if cname and type != CNAME:
            return self._follow(_signed(node, cname, do), proof, cname[0].rdata, type, do)
        rrset = _of(node, type)
        if not rrset:
            nsec = self._denial(owner, do=do)
            return Found(authority=self._soa[do] + (nsec if nsec == proof else nsec + proof))
        additional = self._addresses(rrset, do) if type in _TARGET_AT else ()
        return Found(answer=_signed(node, rrset, do), authority=self._ns[do] + proof, additional=additional)

    def _follow(self, answer: RRset, proof: RRset, target: Name, type: int, do: bool) -> Found:
        """Behind a CNAME: as far as exact names of this zone lead, everything else is for the whole server."""
        for hop in range(_HOPS + 1):
            cut = self._cut(target, type) if self._cuts else None
            if cut is not None and (cut == target or not _of(self._nodes[cut], DNAME)):
                return self._referral(answer, cut, self._nodes[cut], do)
            node = self._nodes.get(target) if cut is None else None
            if not node or type == NS or (type == SOA and target == self.origin):
                return Found(answer=answer, authority=proof, chase=target)
            if hop == _HOPS:
                break
            cname = _of(node, CNAME)
            answer += _signed(node, cname or _of(node, type), do)
            if not cname:
                break
            target = cname[0].rdata
        additional = self._addresses(answer, do) if type in _TARGET_AT else ()
        return Found(answer=answer, authority=self._ns[do] + proof, additional=additional)

    def _rename(self, name: Name, owner: Name, dname: RRset, type: int, do: bool) -> Found:
        """Below a DNAME (RFC 6672 section 3.2); a substitution that leaves the name as it is can only loop."""
        target = name[: len(name) - len(owner)] + dname[0].rdata
        if len(target) > MAX_NAME:
            return Found(YXDOMAIN, answer=dname, authority=self._ns[do])
        if target == name:
            return Found(SERVFAIL)
        answer = (*dname, Record(name, CNAME, dname[0].ttl, target))
        if type == CNAME:
            return Found(answer=answer, authority=self._ns[do])
        return self._follow(answer, (), target, type, do)

    def _referral(self, answer: RRset, cut: Name, node: Node, do: bool) -> Found:
        ns = _of(node, NS)
        glue = self._glue(ns, cut, do)
        if do:
            ns += _signed(node, _of(node, DS) or _of(node, NSEC), do)
        return Found(answer=answer, authority=ns, additional=glue, authoritative=bool(answer))

    def _synthesis(self, name: Name, type: int, do: bool) -> Found:
        """For a name that does not exist: from the wildcard at its closest encloser (RFC 4592), or NXDOMAIN."""
        encloser = name[1 + name[0] :]
        while encloser not in self._nodes:
            encloser = encloser[1 + encloser[0] :]
        wildcard = b"\1*" + encloser
        node = self._nodes.get(wildcard)
        if node is None:
            authority = self._soa[do] + self._denial(name, wildcard, do=do)
            return Found(NXDOMAIN, authority=authority, passable=True)
        proof = self._denial(name, do=do)
        if not node:
            return Found(authority=self._soa[do] + proof)
        mine = tuple(tuple(record.with_owner(name) for record in rrset) for rrset in node)
        return msgspec.structs.replace(self._answer(wildcard, mine, proof, type, do), wildcard=wildcard)

    # --- beside the answer -------------------------------------------------------------------------------------------

    def _glue(self, ns: RRset, owner: Name, do: bool) -> RRset:
        """Addresses of those name servers whose names lie at or below the owner of their NS records."""
        out: RRset = ()
        for record in ns:
            if record.type == NS and is_under(record.rdata, owner):
                out += self._addresses_of(record.rdata, do)
        return out

    def _addresses(self, answer: RRset, do: bool) -> RRset:
        """Addresses of the targets of MX, SRV, SVCB and HTTPS records that lie in this zone, each target once."""
        out: RRset = ()
        seen: set[Name] = set()
        for record in answer:
            at = _TARGET_AT.get(record.type)
            if at is not None:
                target = _name_at(record.rdata, at)
                if target not in seen:
                    seen.add(target)
                    out += self._addresses_of(target, do)
        return out

    def _addresses_of(self, name: Name, do: bool) -> RRset:
        node = self._nodes.get(name, ())
        return _signed(node, _of(node, A), do) + _signed(node, _of(node, AAAA), do)

    def _denial(self, *names: Name, do: bool) -> RRset:
        """The NSEC records that cover these names, with their signatures."""
        out: RRset = ()
        if do and self._nsec:
            # Before the first name comes, as the circle closes, the last one.
            owners = dict.fromkeys(
                self._nsec[bisect_right(self._nsec, (_canonical(name), name)) - 1][1] for name in names
            )
            for owner in owners:
                node = self._nodes[owner]
                out += _signed(node, _of(node, NSEC), do)
        return out


# --- records ---------------------------------------------------------------------------------------------------------


def _of(node: Node, type: int) -> RRset:
    for rrset in node:
        if rrset[0].type == type:
            return rrset
    return ()


def _grouped(records: list[Record]) -> Node:
    if len(records) == 1:
        return (tuple(records),)
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record.type, []).append(record)
    return tuple(tuple(group) for group in groups.values())


def _without_soa_and_ns(apex: Node) -> Node:
    kept = tuple(r for r in _of(apex, RRSIG) if _covered(r) not in (SOA, NS))
    others = tuple(rrset for rrset in apex if rrset[0].type not in (NS, RRSIG))
    return (*others, kept) if kept else others


def _covered(signature: Record) -> int:
    """The type that an RRSIG covers (RFC 4034 section 3.1)."""
    return int.from_bytes(signature.rdata[:2], "big")


def _covering(signatures: RRset, type: int) -> RRset:
    return tuple(record for record in signatures if _covered(record) == type)


def _signed(node: Node, rrset: RRset, do: bool) -> RRset:
    """The RRset and, with ``do``, its signatures."""
    if do and rrset and (signatures := _of(node, RRSIG)):
        return rrset + _covering(signatures, rrset[0].type)
    return rrset


def _name_at(rdata: bytes, at: int) -> Name:
    """The name that begins in the data at ``at``, folded; where the data end too early, so does the name."""
    end = at
    while end < len(rdata) and rdata[end]:
        end += 1 + rdata[end]
    return rdata[at : end + 1].lower()


def _folded(record: Record) -> Record:
    """The record with the names in its data in lower case where CoreDNS has them so; spares doing it per query."""
    rdata = record.rdata
    if record.type in (NS, CNAME, DNAME):
        folded = rdata.lower()
    elif record.type == SOA:
        folded = rdata[:-20].lower() + rdata[-20:]
    elif record.type in (MX, SVCB, HTTPS):
        name = _name_at(rdata, 2)
        folded = rdata[:2] + name + rdata[2 + len(name) :]
    else:
        return record
    return record if folded == rdata else Record(record.owner, record.type, record.ttl, folded, record.klass)


def _canonical(name: Name) -> tuple[bytes, ...]:
    """Sort key of RFC 4034 section 6.1: labels from the right."""
    return tuple(reversed(labels(name)))
