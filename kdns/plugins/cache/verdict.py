"""What a reply is to a cache, and how long it may be kept: RFC 2308, RFC 9520 and CoreDNS's rules.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kdns.message import (
    AD,
    ANY,
    AXFR,
    CNAME,
    EDE_NETWORK_ERROR,
    EDE_NO_REACHABLE_AUTHORITY,
    EDE_NOT_READY,
    IXFR,
    NOERROR,
    NOTIMP,
    NS,
    NXDOMAIN,
    RRSIG,
    SERVFAIL,
    SOA,
    TC,
    Query,
    Record,
    Reply,
)
from kdns.name import Name
from kdns.plugins.cache.options import Options

ANSWER: Final = 1
REFERRAL: Final = 2
DENIAL: Final = 3
"""NXDOMAIN, or NODATA with a SOA."""
FAILURE: Final = 4
"""SERVFAIL or NOTIMP."""
OTHER: Final = 5
"""Never kept."""

_DENIALS: Final = (NOERROR, NXDOMAIN)
_UNPLAIN: Final = AD | TC

SHORT: Final = 5
"""Seconds that a reply without a TTL of its own is kept."""
_OWN_FAILURE: Final = 1
"""Seconds that it is remembered that no upstream could be asked (RFC 9520 section 3.2: at least 1): long enough
against a storm of attempts, short enough to be right soon after the upstream is back."""
_RESOLUTION_FAILURES: Final = frozenset((EDE_NO_REACHABLE_AUTHORITY, EDE_NETWORK_ERROR))


def classify(query: Query, reply: Reply, wall: Callable[[], float]) -> int:
    """ANSWER, REFERRAL, DENIAL, FAILURE or OTHER.  ``wall``: seconds since 1970, for the validity of signatures."""
    rcode = reply.rcode
    if query.type in (AXFR, IXFR) or (query.do and not signatures_valid(reply, int(wall()))):
        return OTHER
    if reply.answer:
        if rcode != NOERROR:
            return FAILURE if rcode in (SERVFAIL, NOTIMP) else OTHER
        return DENIAL if reply.authority and has_soa(reply) and not answers(query, reply) else ANSWER
    if rcode == NXDOMAIN:
        return DENIAL
    if rcode in (SERVFAIL, NOTIMP):
        return FAILURE
    if rcode != NOERROR:
        return OTHER
    if has_soa(reply):
        return DENIAL
    return REFERRAL if any(record.type == NS for record in reply.authority) else ANSWER


def storable(query: Query, reply: Reply, kind: int) -> bool:
    """Whether a reply of this kind may be kept at all.

    Not without a SOA: a denial (RFC 2308 section 5), nor an alias that leads to nothing, which is one in disguise.
    A failure of our own is kept when it is one of resolving (RFC 9520), not when kdns has yet to become ready.
    """
    if kind == OTHER or reply.flags & TC:
        return False
    if kind == FAILURE:
        codes = {code for code, _ in reply.ede}
        return EDE_NOT_READY not in codes and (not reply.error or bool(codes & _RESOLUTION_FAILURES))
    if kind == DENIAL:
        return has_soa(reply)
    return not reply.answer or _plainly_answers(query, reply) or answers(query, reply)


def lifetime(reply: Reply, kind: int, options: Options) -> int:
    """Seconds that a reply is kept; also the TTL that all its records get, kept or not.

    The least TTL of all records within the half's bounds; for a denial also the SOA's MINIMUM (RFC 2308 section 5).
    """
    if kind == FAILURE:
        return int(min(options.servfail, _OWN_FAILURE) if reply.error else options.servfail)
    half = options.denial if kind == DENIAL else options.success
    if kind in (REFERRAL, OTHER) or not (reply.answer or reply.authority or reply.additional):
        ttl = SHORT
    else:
        ttl = _least_ttl(reply, half.most)
        if kind == DENIAL:
            ttl = min([ttl, *(_minimum(record) for record in reply.authority if record.type == SOA)])
    # Not min() and max(): every first-time name comes this way.
    if ttl < half.least:
        ttl = half.least
    return ttl if ttl < half.most else half.most


def plain_ttl(options: Options) -> Callable[[Reply], int]:
    """What tells `lifetime` of a plain answer, or of a denial with nothing but its SOA; 0: it is something else."""
    low, high = options.success.least, options.success.most
    known: Record | None = None
    known_ttl = 0

    def find(reply: Reply) -> int:
        nonlocal known, known_ttl
        if reply.flags & _UNPLAIN or reply.additional:
            return 0
        if not reply.answer:
            if len(reply.authority) != 1 or reply.rcode not in _DENIALS:
                return 0
            soa = reply.authority[0]
            # The next denial brings the same record.
            if soa is not known:
                known, known_ttl = soa, denial_ttl(soa, options)
            return known_ttl
        if reply.rcode != NOERROR or reply.authority:
            return 0
        ttl = high
        for record in reply.answer:
            if record.type == RRSIG:
                return 0
            if record.ttl < ttl:
                ttl = record.ttl
        return ttl if ttl > low else min(low, high)

    return find


def denial_ttl(soa: Record, options: Options) -> int:
    """`lifetime` of a denial with this record alone; 0: it is no SOA."""
    if soa.type != SOA:
        return 0
    half = options.denial
    return min(max(min(soa.ttl, _minimum(soa)), half.least), half.most)


def _least_ttl(reply: Reply, ttl: int) -> int:
    """The least TTL in the reply, at most ``ttl``."""
    for section in (reply.answer, reply.authority, reply.additional):
        for record in section:
            if record.ttl < ttl:
                ttl = record.ttl
    return ttl


def _minimum(soa: Record) -> int:
    value = int.from_bytes(soa.rdata[-4:], "big")
    return value if value < 2**31 else 0


def has_soa(reply: Reply) -> bool:
    """Whether the authority section says how long a denial may be kept."""
    return any(record.type == SOA for record in reply.authority)


def _plainly_answers(query: Query, reply: Reply) -> bool:
    """What `answers` says in nearly all cases, found sooner."""
    name, type, klass = query.name, query.type, query.klass
    for record in reply.answer:
        if record.type != type or record.owner != name or record.klass != klass:
            return False
    return type != CNAME


def answers(query: Query, reply: Reply) -> bool:
    """Whether the answer section, aliases followed, has what was asked for; not when the aliases loop or fork."""
    if reply.rcode != NOERROR or not reply.answer:
        return False
    name, type = query.name, query.type
    if type == ANY:
        return _has(reply, name, ANY, query.klass)
    targets = _targets(reply, query.klass)
    if type == CNAME:
        return len(targets.get(name, ())) == 1
    visited: set[Name] = set()
    while found := targets.get(name):
        if len(found) > 1 or name in visited:
            return False
        visited.add(name)
        (name,) = found
    return _has(reply, name, type, query.klass)


def _has(reply: Reply, name: Name, type: int, klass: int) -> bool:
    for record in reply.answer:
        if type in (ANY, record.type) and klass in (ANY, record.klass) and record.owner.lower() == name:
            return True
    return False


def _targets(reply: Reply, klass: int) -> dict[Name, set[Name]]:
    """What each alias of the answer leads to."""
    targets: dict[Name, set[Name]] = {}
    for record in reply.answer:
        if record.type == CNAME and klass in (ANY, record.klass):
            targets.setdefault(record.owner.lower(), set()).add(record.rdata.lower())
    return targets


def signatures_valid(reply: Reply, now: int) -> bool:
    """Whether ``now`` is within the time of every RRSIG (serial number arithmetic, RFC 4034 section 3.1.5)."""
    for section in (reply.answer, reply.authority, reply.additional):
        for record in section:
            if record.type == RRSIG:
                expiration = int.from_bytes(record.rdata[8:12], "big")
                inception = int.from_bytes(record.rdata[12:16], "big")
                if (expiration - now) & 0xFFFFFFFF >= 2**31 or (now - inception) & 0xFFFFFFFF >= 2**31:
                    return False
    return True
