"""Rules about names: ``name`` with its ``answer`` parts, and ``cname``.

They work on names as they are written in master files, as CoreDNS does: ``suffix example.org.`` also fits
``myexample.org.``.  A `Change` gives the new text of a name, or None when it does not fit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from kdns import message, name, values
from kdns.message import Query, Record, Reply
from kdns.plugins.rewrite.rule import Applied, Revert
from kdns.rdata import names_in
from kdns.values import BadValue, Regexp

Change: TypeAlias = Callable[[str], str | None]
Asker: TypeAlias = Callable[[Query], Awaitable[Reply]]

KINDS: Final = ("exact", "prefix", "suffix", "substring", "regex")


def fqdn(text: str) -> str:
    """A name of a Corefile in lower case and with its dot at the end."""
    text = text.lower()
    return text if text.endswith(".") else text + "."


# --- changes of a name's text ----------------------------------------------------------------------------------------


def change(kind: str, old: str, new: str) -> Change:
    """How ``KIND OLD NEW`` changes a name; for ``regex`` ``{N}`` in NEW stands for a group of OLD."""
    if kind == "exact":
        return lambda text: new if text == old else None
    if kind == "prefix":
        return lambda text: new + text[len(old) :] if text.startswith(old) else None
    if kind == "suffix":
        return lambda text: text[: len(text) - len(old)] + new if text.endswith(old) else None
    if kind == "substring":
        return lambda text: text.replace(old, new) if old in text else None
    return _substitution(values.regexp(old), new)


def matcher(kind: str, wanted: str) -> Callable[[str], bool]:
    """Whether a name fits ``KIND WANTED``."""
    fits = change(kind, wanted if kind == "regex" else fqdn(wanted), "")
    return lambda text: fits(text) is not None


def _substitution(pattern: Regexp, new: str) -> Change:
    def substitute(text: str) -> str | None:
        match = pattern.search(text)
        if match is None:
            return None
        out = new.replace("{0}", match.group(0))
        for number, group in enumerate(match.groups(), 1):
            out = out.replace(f"{{{number}}}", group or "")
        return out

    return substitute


def _checked_substitution(old: str, new: str) -> Change:
    """A substitution whose ``{N}`` are all groups of the pattern."""
    pattern = values.regexp(old)
    if sum(f"{{{number}}}" in new for number in range(101)) > pattern.groups:
        raise BadValue(
            f"the rewrite regex pattern ({new}) uses more subexpressions than its corresponding matching "
            f"regex pattern ({old})"
        )
    return _substitution(pattern, fqdn(new))


def _back(new: str, old: str, within_labels: bool = False) -> Change:
    """From names that end with the rewritten one, however they are spelled, back to those that end with the old; only
    that name and names below it unless it may begin ``within_labels``, as a suffix does."""

    def back(text: str) -> str | None:
        kept = text[: len(text) - len(new)]
        if not text.lower().endswith(new) or not (within_labels or not kept or kept.endswith(".")):
            return None
        return kept + old

    return back


# --- changes of the names in a reply ---------------------------------------------------------------------------------

_WITH_VALUES: Final = frozenset(
    (
        message.SRV,
        message.MX,
        message.CNAME,
        message.NS,
        message.DNAME,
        message.NAPTR,
        message.SOA,
        message.PTR,
    )
)


def owners(changed: Change) -> Revert:
    """Change the names that records belong to, in all sections."""
    return _records(lambda record: record.with_owner(_apply(changed, record.owner)))


def targets(changed: Change) -> Revert:
    """Change the names that records point to, in all sections; of a SOA the first one."""

    def retarget(record: Record) -> Record:
        if record.type not in _WITH_VALUES:
            return record
        at, _ = names_in(record.type, record.rdata)
        end = _end(record.rdata, at)
        rdata = record.rdata[:at] + _apply(changed, record.rdata[at:end]) + record.rdata[end:]
        return msgspec.structs.replace(record, rdata=rdata)

    return _records(retarget)


def _records(changed: Callable[[Record], Record]) -> Revert:
    async def revert(reply: Reply) -> Reply:
        return reply.replace(
            answer=tuple([changed(record) for record in reply.answer]),
            authority=tuple([changed(record) for record in reply.authority]),
            additional=tuple([changed(record) for record in reply.additional]),
        )

    return revert


def _apply(changed: Change, wire: bytes) -> bytes:
    text = changed(name.to_text(wire))
    return wire if text is None else _wire(text)


def _wire(text: str) -> bytes:
    """The name that a text spells; raises BadName with just that text."""
    try:
        return name.spell(text)
    except name.BadName:
        raise name.BadName(text) from None


def _end(rdata: bytes, at: int) -> int:
    while length := rdata[at]:
        at += 1 + length
    return at + 1


# --- rewrite name ----------------------------------------------------------------------------------------------------


class NameRule(msgspec.Struct, frozen=True):
    """``name [KIND] FROM TO [answer …]``."""

    change: Change
    auto: bool
    """Names in the reply go back to the one that was asked."""
    reverts: tuple[Revert, ...]

    def apply(self, query: Query, text: str) -> Applied | None:
        """Ask for the new name."""
        new = self.change(text)
        if new is None:
            return None
        renamed = query.renamed(_wire(new).lower())
        if not self.auto:
            return renamed, self.reverts
        back = _back(new, text)
        return renamed, (owners(back), targets(back), *self.reverts)


def name_rule(words: Sequence[str]) -> NameRule:
    """Read the words behind ``name``; raises BadValue."""
    if len(words) < 2:
        raise BadValue("too few arguments for a name rule")
    kind, old, new = ("exact", *words) if len(words) == 2 else (words[0].lower(), *words[1:3])
    auto, reverts = _answers(kind, words[3:]) if len(words) > 3 else (False, ())
    if kind not in KINDS:
        raise BadValue(f"name rule supports only {', '.join(KINDS[:-1])}, and regex name matching, received: {kind}")
    if kind == "regex":
        return NameRule(_checked_substitution(old, new), auto, reverts)
    old, new = fqdn(old), fqdn(new)
    if kind == "suffix" and auto:
        back = _back(new, old, within_labels=True)
        return NameRule(change(kind, old, new), False, (owners(back), targets(back), *reverts))
    return NameRule(change(kind, old, new), auto or kind == "exact", reverts)


def _answers(kind: str, words: Sequence[str]) -> tuple[bool, tuple[Revert, ...]]:
    """``answer (auto | name RE TO | value RE TO)``, repeated; the word ``answer`` may be left out after the first."""
    if len(words) < 2:
        raise BadValue(f"invalid arguments for {kind} rule")
    if words[0] != "answer":
        raise BadValue(f"exceeded the number of arguments for a non-answer rule argument for {kind} rule")
    left = list(words)
    auto = with_names = False
    reverts: list[Revert] = []
    while left:
        word = left.pop(0)
        if word == "answer":
            if not left:
                raise BadValue(f"type missing for answer rule for {kind} rule")
            word = left.pop(0)
        if word == "auto":
            auto = True
            continue
        if word not in ("name", "value"):
            raise BadValue(f'invalid type "{word}" for answer rule for {kind} rule')
        if len(left) < 2:
            raise BadValue(f"{word} answer rule for {kind} rule: 2 arguments required")
        changed = _checked_substitution(left.pop(0), left.pop(0))
        reverts.append(owners(changed) if word == "name" else targets(changed))
        with_names |= word == "name"
    if auto and with_names:
        raise BadValue("auto name answer rule cannot be combined with explicit name answer rules")
    return auto, tuple(reverts)


# --- rewrite cname ---------------------------------------------------------------------------------------------------


class CnameRule(msgspec.Struct, frozen=True):
    """``cname [KIND] FROM TO``: point a CNAME of the answer elsewhere and resolve it anew."""

    change: Change
    ask: Asker

    def apply(self, query: Query, text: str) -> Applied | None:
        """Leave the query as it is and wait for the answer."""

        async def revert(reply: Reply) -> Reply:
            return await self._retarget(query, reply)

        return query, (revert,)

    async def _retarget(self, query: Query, reply: Reply) -> Reply:
        """CNAMEs up to the first one that fits, that one to its new target, and what the server says about that."""
        chain: list[Record] = []
        for record in reply.answer:
            if record.type != message.CNAME:
                continue
            new = self.change(name.to_text(record.rdata.lower()))
            if new is None:
                chain.append(record)
                continue
            target = _wire(new).lower()
            chain.append(msgspec.structs.replace(record, rdata=target))
            found = await self.ask(query.renamed(target))
            if found.drop:
                return reply
            return reply.replace(
                answer=(*chain, *found.answer),
                flags=reply.flags & ~message.TC | found.flags & message.TC,
                lease=reply.lease.meet(found.lease),
            )
        return reply


def cname_rule(words: Sequence[str], ask: Asker) -> CnameRule:
    """Read the words behind ``cname``; raises BadValue."""
    if not 2 <= len(words) <= 3:
        raise BadValue(f"too few ({len(words)}) arguments for a cname rule")
    kind, old, new = ("exact", *words) if len(words) == 2 else (words[0].lower(), *words[1:])
    if kind not in KINDS:
        raise BadValue(f"unknown cname rewrite type: {kind}")
    old, new = old.lower(), new.lower()
    if kind == "exact":
        old, new = fqdn(old), fqdn(new)
    return CnameRule(change(kind, old, new), ask)
