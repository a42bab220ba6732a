"""rewrite: change queries on their way in and replies on their way out, unseen by the client.

``rewrite [continue | stop] RULE``, or the words of one RULE in a block, over as many lines as one likes.

Rules are tried in textual order.  ``stop`` (the default) ends with the first that applies, ``continue`` goes on with
the query as the rule left it.  RULE is one of

* ``name [exact | prefix | suffix | substring | regex] FROM TO [answer …]``: ask for another name.  FROM and TO are
  completed with a dot at the end, also with ``prefix`` and ``substring``; with ``regex`` (RE2) FROM is searched
  anywhere in the name, and ``{N}`` in TO stands for its groups.  ``exact`` undoes the change in the reply by itself,
  the others as they are told: ``answer auto`` turns names in the reply back, ``answer name RE TO`` rewrites the names
  that records belong to, ``answer value RE TO`` those that they point to.
* ``type FROM TO``, ``class FROM TO``: ask for another type, in another class.
* ``ttl [KIND] NAME (S | MIN-MAX | MIN- | -MAX)``: set or bound the TTLs in replies about NAME.
* ``rcode [KIND] NAME FROM TO``: another rcode in replies about NAME.
* ``cname [KIND] FROM TO``: in answers, point CNAMEs to FROM at TO, and resolve that through the whole server.
* ``edns0 local (set | append | replace) CODE DATA [revert]``, ``edns0 local unset CODE``: an EDNS option in the query.
  DATA is text, ``0x`` and hexadecimal digits, ``{qname}``, ``{qtype}``, ``{client_ip}``, ``{client_port}``,
  ``{protocol}``, ``{server_ip}``, ``{server_port}`` or a label of ``metadata`` in braces.
* ``edns0 nsid (set | append | replace | unset) [revert]``.
* ``edns0 subnet (set | append | replace) V4BITS V6BITS [revert]``, ``edns0 subnet unset``: EDNS client subnet.

Clients that use EDNS are shown local and NSID options that were set, unless the rule says ``revert``.

A name that is none any more after a rewrite is answered SERVFAIL.  The question section is always the client's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from kdns import name
from kdns.corefile import Directive
from kdns.message import SERVFAIL, Query, Reply, failure
from kdns.name import BadName
from kdns.plugin import Next, Plugin, Site
from kdns.plugins.rewrite.edns import EdnsRule, edns_rule
from kdns.plugins.rewrite.fields import class_rule, rcode_rule, ttl_rule, type_rule
from kdns.plugins.rewrite.names import Asker, cname_rule, name_rule
from kdns.plugins.rewrite.rule import Revert, Rule
from kdns.values import BadValue


class Line(msgspec.Struct, frozen=True):
    """One ``rewrite`` line."""

    rule: Rule
    stop: bool


class Rewrite(Plugin):
    """Applies the rules of one server block."""

    name = "rewrite"
    inline = True

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        self.replayable = not any(isinstance(line.rule, EdnsRule) and line.rule.personal for line in lines)

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``rewrite [continue | stop] RULE``, repeated."""
        lines: list[Line] = []
        for use in uses:
            words = list(use.args)
            if len(words) < 2:
                for option in use.options():
                    words += (option.name, *option.args)
            else:
                use.no_block()
            try:
                lines.append(read_line(words, site.ask))
            except BadValue as error:
                raise use.error(str(error)) from None
        return cls(lines)

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Ask the rest of the chain what the rules make of the query, and turn the reply back."""
        reverts: list[Revert] = []
        try:
            query = self._rewrite(query, reverts)
        except BadName as error:
            return failure(SERVFAIL, f"invalid name after rewrite: {error}", self.name)
        reply = await next(query)
        try:
            for revert in reversed(reverts):
                reply = await revert(reply)
        except BadName as error:
            return failure(SERVFAIL, f"invalid name in the reply after rewrite: {error}", self.name)
        return reply

    def _rewrite(self, query: Query, reverts: list[Revert]) -> Query:
        text = name.to_text(query.name)
        for line in self._lines:
            applied = line.rule.apply(query, text)
            if applied is None:
                continue
            changed, more = applied
            reverts += more
            if changed.name != query.name:
                text = name.to_text(changed.name)
            query = changed
            if line.stop:
                break
        return query


def read_line(words: Sequence[str], ask: Asker) -> Line:
    """The words of one ``rewrite`` line; ``ask`` asks the whole server.  Raises BadValue."""
    if not words:
        raise BadValue("no rule type specified for rewrite")
    first = words[0].lower()
    if first in ("continue", "stop"):
        if len(words) < 2:
            raise BadValue(f"{first} rule must begin with a rule type")
        return Line(_rule(words[1].lower(), words[2:], ask), first == "stop")
    return Line(_rule(first, words[1:], ask), True)


def _rule(kind: str, words: Sequence[str], ask: Asker) -> Rule:
    if kind == "cname":
        return cname_rule(words, ask)
    if kind == "answer":
        raise BadValue("response rewrites must begin with a name rule")
    read = _READERS.get(kind)
    if read is None:
        raise BadValue(f'invalid rule type "{kind}"')
    return read(words)


_READERS: Final[dict[str, Callable[[Sequence[str]], Rule]]] = {
    "name": name_rule,
    "type": type_rule,
    "class": class_rule,
    "ttl": ttl_rule,
    "rcode": rcode_rule,
    "edns0": edns_rule,
}
