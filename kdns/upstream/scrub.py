"""What of an upstream's reply is passed on: the chain of the question, and what belongs to it.

An upstream is trusted for what it was asked, and not for anything else: a stub zone's server may be run by somebody
else than the root's, and both answer into the same cache.  The rules, by section:

- **answer**: records at the question's name and at the names that its CNAMEs and DNAMEs lead to.
- **authority**: the SOA, NS and DS of zones that one of these names is in, and the NSEC and NSEC3 of such zones.  NS
  and DS only at or below the zone that is forwarded: whoever is asked for ``corp.example`` does not delegate
  ``example``.  A SOA also above it, because that alone tells for how long a name does not exist.
- **additional**: addresses of names that the records above point to, when they are in the zone that is forwarded.

Signatures stay with what they sign.  Every name is visited once, so a loop in the chain is harmless.
"""

from __future__ import annotations

from typing import Final

from kdns.message import AAAA, CNAME, DNAME, DS, HTTPS, MX, NS, NSEC, NSEC3, RRSIG, SOA, SRV, SVCB, A, Record
from kdns.name import ROOT, Name, ancestors, is_under, parent
from kdns.wire import Message

_TARGET_AT: Final = {NS: 0, MX: 2, SRV: 6, SVCB: 2, HTTPS: 2}
"""Types whose targets' addresses come along, and where in the data the target stands."""
_SIGNER_AT: Final = 18
_CHAIN: Final = 32
"""Names of a chain; what comes behind them is cut off.  Resolvers give up much sooner."""

Sections = tuple[tuple[Record, ...], tuple[Record, ...], tuple[Record, ...]]


def scrub(message: Message, zone: Name) -> Sections:
    """The sections of an answer without what it was not asked for; ``zone`` is the one that is forwarded."""
    name = message.name
    answer, authority, additional = message.answer, message.authority, message.additional
    if answer:
        for record in answer:
            # The usual answer is one set of records at the name itself.
            if record.owner != name or record.type == CNAME:
                answer, chain = _chain(message)
                break
        else:
            chain = {name}
    else:
        chain = {name}
    if authority:
        authority = _authority(authority, chain, zone)
    if additional:
        additional = _additional(additional, answer + authority, zone)
    return answer, authority, additional


def _chain(message: Message) -> tuple[tuple[Record, ...], set[Name]]:
    """The answer's records that belong to the question, and the names of its chain."""
    aliases: dict[Name, Name] = {}
    renamed: dict[Name, Name] = {}
    for record in message.answer:
        if record.type == CNAME:
            aliases.setdefault(record.owner.lower(), record.rdata.lower())
        elif record.type == DNAME:
            renamed.setdefault(record.owner.lower(), record.rdata.lower())
    names: set[Name] = set()
    above: set[Name] = set()
    name: Name | None = message.name
    while name is not None and name not in names and len(names) < _CHAIN:
        names.add(name)
        renaming = next((owner for owner in ancestors(parent(name)) if owner in renamed), None)
        following = aliases.get(name)
        if renaming is not None:
            above.add(renaming)
            if following is None:
                # RFC 6672 section 3.1 has the reply say so with a CNAME; not all do.
                following = name[: len(name) - len(renaming)] + renamed[renaming]
        name = following
    kept = tuple(
        record
        for record in message.answer
        if (owner := record.owner.lower()) in names or (owner in above and record.type in (DNAME, RRSIG))
    )
    return kept, names


def _authority(records: tuple[Record, ...], chain: set[Name], zone: Name) -> tuple[Record, ...]:
    around = {above for name in chain for above in ancestors(name)}
    zones: set[Name] = set()
    kept: set[tuple[Name, int]] = set()
    for record in records:
        owner, type = record.owner.lower(), record.type
        if type in (SOA, NS, DS) and owner in around and (type == SOA or is_under(owner, zone)):
            zones.add(owner)
            kept.add((owner, type))
        elif type == RRSIG:
            signer = _name_at(record.rdata, _SIGNER_AT)
            if signer in around:
                zones.add(signer)

    def belongs(record: Record) -> bool:
        owner, type = record.owner.lower(), record.type
        if type == RRSIG:
            type = int.from_bytes(record.rdata[:2], "big")
        return (owner, type) in kept or (type in (NSEC, NSEC3) and any(above in zones for above in ancestors(owner)))

    return tuple(filter(belongs, records))


def _additional(records: tuple[Record, ...], above: tuple[Record, ...], zone: Name) -> tuple[Record, ...]:
    wanted: set[Name] = set()
    for record in above:
        at = _TARGET_AT.get(record.type)
        if at is not None and len(record.rdata) > at:
            target = _name_at(record.rdata, at)
            # The target "." of SVCB is the owner itself (RFC 9460 section 2.5.2).
            wanted.add(record.owner.lower() if target == ROOT else target)
    return tuple(
        record
        for record in records
        if record.type in (A, AAAA, RRSIG) and (owner := record.owner.lower()) in wanted and is_under(owner, zone)
    )


def _name_at(rdata: bytes, at: int) -> Name:
    """The uncompressed name at ``at``, folded; the root when it is cut off."""
    end = at
    size = len(rdata)
    while end < size and (length := rdata[end]):
        end += 1 + length
    return rdata[at : end + 1].lower() if end < size else ROOT
