"""template: answer with records that are made from the query.

``template CLASS TYPE [ZONES...] { match REGEX...; var NAME EXPRESSION; expr EXPRESSION; answer RR...;
additional RR...; authority RR...; rcode CODE; ederror CODE [TEXT]; fallthrough [ZONES...] }``

Takes queries of CLASS and TYPE (``ANY``: all) for names in ZONES (default: those of the server block).  Several
templates of a server block are tried in their order.  The answer is authoritative.

* ``match REGEX...``: the name, in lower case and with its last dot, must match one of these RE2 expressions.
* ``var NAME EXPRESSION``: a variable for the expressions that follow, and for records as ``.Var.NAME``.
* ``expr EXPRESSION``: must be true too (all of them).
* ``answer``, ``additional``, ``authority RR...``: records as in a master file, in the language of Go templates
  (`kdns.gotemplate`), with ``.Zone .Name .Class .Type .Regex .Match .Group .Var .Remote .Question .Message``,
  ``.Meta "label"`` and ``parseInt``.  The target of a CNAME in the answer is resolved through the server itself when A
  or AAAA is asked.
* ``rcode CODE``: default NOERROR.  SERVFAIL is answered without records.
* ``ederror CODE [TEXT]``: an extended DNS error (RFC 8914) for askers that use EDNS.
* ``fallthrough [ZONES...]``: where ``match`` or ``expr`` say no, go on with the next template or plugin (for names in
  ZONES, or all); without it such names are SERVFAIL.
* ``upstream``: read and ignored.

The expressions are expr-lang's (`kdns.expr`), with the functions of `kdns.expr.query` and ``group(NUMBER or NAME)``.

Metrics: ``coredns_template_matches_total{server, zone, view, class, type}``, and with ``section`` and ``template`` more
``coredns_template_template_failures_total`` and ``coredns_template_rr_failures_total``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kdns.corefile import Directive
from kdns.expr import ExpressionError
from kdns.gotemplate import Template as RecordTemplate
from kdns.gotemplate import TemplateError
from kdns.message import AA, AAAA, CNAME, FOREVER, NO_LEASE, SERVFAIL, TC, A, Lease, Query, Record, Reply, failure
from kdns.metrics import Cell
from kdns.name import longest_zone
from kdns.plugin import Next, Plugin, Site
from kdns.plugins.template import rules
from kdns.plugins.template.lines import BadLine, record
from kdns.plugins.template.rules import Rule, Taken

_LABELS = ("server", "zone", "view", "class", "type")


class _Failed(Exception):
    """A record could not be made; the argument says why."""


class Template(Plugin):
    """Answers from templates."""

    name = "template"
    replayable = True
    inline = True

    def __init__(self, site: Site, templates: tuple[Rule, ...]) -> None:
        self._rules = templates
        self._zones = frozenset(zone for rule in templates for zone in rule.zones)
        self._ask = site.ask
        metrics = site.metrics
        self._matches = metrics.counter("coredns_template_matches_total", "Counter of template regex matches.", _LABELS)
        self._template_failures = metrics.counter(
            "coredns_template_template_failures_total",
            "Counter of go template failures.",
            (*_LABELS, "section", "template"),
        )
        self._rr_failures = metrics.counter(
            "coredns_template_rr_failures_total",
            "Counter of mis-templated RRs.",
            (*_LABELS, "section", "template"),
        )

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Template:
        """See the module."""
        return cls(site, tuple(rules.read(use, site.zones) for use in uses))

    async def resolve(self, query: Query, next: Next) -> Reply:
        """The first template that takes the query answers."""
        if longest_zone(query.name, self._zones) is None:
            return await next(query)
        anybody = True
        for rule in self._rules:
            zone = rule.zone_of(query)
            if zone is None:
                continue
            anybody = anybody and not rule.choosy
            try:
                taken = rule.take(query, zone)
            except ExpressionError:
                return Reply(SERVFAIL)
            if taken is not None:
                return await self._answer(rule, query, taken, anybody and not rule.personal)
            if longest_zone(query.name, rule.fallthrough) is None:
                return Reply(SERVFAIL)
        reply = await next(query)
        return reply if anybody else reply.leased(reply.lease.shrink(0.0))

    async def _answer(self, rule: Rule, query: Query, taken: Taken, anybody: bool) -> Reply:
        matches = self._matches.cell(query.listener.server, taken.zone, "", taken.klass, taken.type)
        matches.value += 1
        if rule.rcode == SERVFAIL:
            return Reply(SERVFAIL)
        lease = Lease(FOREVER, duties=(partial(_count, matches),)) if anybody else NO_LEASE
        flags = AA
        answer: list[Record] = []
        try:
            for template in rule.answer:
                answer.append(self._record(template, "answer", query, taken))
                if answer[-1].type == CNAME and query.type in (A, AAAA):
                    chased = await self._chase(query, answer[-1].rdata)
                    answer += chased.answer
                    lease = lease.meet(chased.lease)
                    flags = AA | chased.flags & TC
            additional = tuple([self._record(one, "additional", query, taken) for one in rule.additional])
            authority = tuple([self._record(one, "authority", query, taken) for one in rule.authority])
        except _Failed as error:
            return failure(SERVFAIL, str(error))
        return Reply(rule.rcode, tuple(answer), authority, additional, flags, lease, rule.ede, self.name)

    async def _chase(self, query: Query, target: bytes) -> Reply:
        return await self._ask(query.replace(name=target.lower(), spelling=target))

    def _record(self, template: RecordTemplate, section: str, query: Query, taken: Taken) -> Record:
        """Raises _Failed, having counted it."""
        family = self._template_failures
        try:
            text = template.render(taken.data)
            family = self._rr_failures
            return record(text)
        except (TemplateError, BadLine) as error:
            labels = (query.listener.server, taken.zone, "", taken.klass, taken.type, section, template.source)
            family.cell(*labels).value += 1
            raise _Failed(f"template: {section}: {error}") from None


def _count(matches: Cell, replays: int, query_octets: int, reply_octets: int) -> None:
    """A duty: replays of an answer count as matches."""
    matches.value += replays
