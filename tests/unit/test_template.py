"""The template plugin.  What CoreDNS 1.14.7 answers was looked up there; ``var`` and ``expr`` are newer."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from kdns import name, rdata
from kdns.corefile import CorefileError
from kdns.message import (
    AA,
    AAAA,
    ANY,
    CNAME,
    FOREVER,
    IN,
    MX,
    NXDOMAIN,
    PTR,
    RD,
    REFUSED,
    SERVFAIL,
    SOA,
    SRV,
    TC,
    TXT,
    A,
    Edns,
    Lease,
    Listener,
    Query,
    Record,
    Reply,
    type_number,
)
from kdns.plugin import Process, Site
from kdns.plugins.template import Template
from kdns.plugins.template.lines import BadLine, record
from tests.support import parse

NEXT = Reply(plugin="next", lease=Lease(FOREVER, (b"fact",)))


class World:
    """A template plugin of one server block, and all that it asks of others."""

    def __init__(self, body: str, zones: str = ".") -> None:
        block = parse(f"{zones} {{\n{body}\n}}").blocks[0]
        self.process = Process()
        self.asked: list[Query] = []
        self.upstream = Reply()

        async def ask(query: Query) -> Reply:
            self.asked.append(query)
            return self.upstream

        self.process.ask = ask
        uses = [directive for directive in block.directives if directive.name == "template"]
        self.plugin = Template.setup(uses, Site(self.process, tuple(key.zone for key in block.keys)))

    def ask(self, text: str, type: str = "A", klass: int = IN, **changes: object) -> Reply:
        async def next(query: Query) -> Reply:
            return NEXT

        number = type_number(type)
        assert number is not None
        spelling = name.spell(text)
        query = Query(
            spelling.lower(), number, klass, spelling, 7, RD, None, ("10.0.0.7", 5353), Listener("dns://:53"), 40
        ).replace(**changes)
        return asyncio.run(self.plugin.resolve(query, next))

    def texts(self, text: str, type: str = "A", **changes: object) -> list[str]:
        reply = self.ask(text, type, **changes)  # type: ignore[arg-type]
        return [shown(one) for one in reply.answer]

    def count(self, metric: str) -> dict[tuple[str, ...], float]:
        family = self.process.metrics.counter(metric, "", self.plugin._matches.labels)
        return {labels: cell.value for labels, cell in family.samples()}


def shown(one: Record) -> str:
    return f"{name.to_text(one.owner)} {one.ttl} {rdata.to_text(one.type, one.rdata)}"


AKS = r"""
template ANY ANY internal.cloudapp.net {
    match "^(?:[^.]+\.){4,}internal\.cloudapp\.net\.$"
    rcode NXDOMAIN
    fallthrough
}
template ANY ANY reddog.microsoft.com {
    rcode NXDOMAIN
}
"""


def test_aks() -> None:
    world = World(AKS)
    taken = world.ask("a.b.c.d.internal.cloudapp.net.")
    assert (taken.rcode, taken.flags, taken.plugin) == (NXDOMAIN, AA, "template")
    assert (taken.answer, taken.authority, taken.additional) == ((), (), ())
    assert world.ask("a.b.c.internal.cloudapp.net.") is NEXT
    assert world.ask("A.Reddog.microsoft.COM.", "MX").rcode == NXDOMAIN
    assert world.ask("microsoft.com.") is NEXT


def test_records_in_all_sections() -> None:
    world = World(
        r"""
        template IN ANY example {
            match "[.](?P<dc>dc1|dc2)[.]example[.]$"
            answer "{{ .Name }} 60 IN TXT \"{{ .Group.dc }} {{ .Type }} {{ .Class }} {{ .Zone }} {{ index .Match 1 }}\""
            authority "example. IN NS ns0.example."
            additional "ns0.example. 60 A 203.0.113.8"
            ederror 21 "because"
        }"""
    )
    reply = world.ask("a.DC1.example.", "TXT")
    assert [shown(one) for one in reply.answer] == ['a.dc1.example. 60 "dc1 TXT IN example. dc1"']
    assert [shown(one) for one in reply.authority] == ["example. 3600 ns0.example."]
    assert [shown(one) for one in reply.additional] == ["ns0.example. 60 203.0.113.8"]
    assert (reply.ede, reply.flags, reply.rcode) == (((21, "because"),), AA, 0)
    # What any type is asked of is called by the template's type, and what has no name by none.
    assert world.texts("a.dc2.example.", "ANY") == ['a.dc2.example. 60 "dc2 ANY IN example. dc2"']
    assert world.texts("a.dc2.example.", "TYPE65400") == ['a.dc2.example. 60 "dc2  IN example. dc2"']


def test_two_records_two_expressions() -> None:
    world = World(
        """template IN A example {
            match ^(.*)-(.*)[.]example ^(q+)
            answer "{{ .Name }} 1 IN A 10.0.0.1" "{{ .Name }} 2 IN A 10.0.0.{{ len .Match }}"
            upstream 1.2.3.4
        }"""
    )
    assert world.texts("a-b.example.") == ["a-b.example. 1 10.0.0.1", "a-b.example. 2 10.0.0.3"]
    assert world.texts("qq.example.") == ["qq.example. 1 10.0.0.1", "qq.example. 2 10.0.0.2"]
    assert world.ask("z.example.").rcode == SERVFAIL


def test_hexadecimal() -> None:
    world = World(
        """template IN A example {
            match "^ip0a(?P<b>[a-f0-9]{2})(?P<c>[a-f0-9]{2})[.]example[.]$"
            answer "{{ .Name }} A 10.0.{{ parseInt .Group.b 16 8 }}.{{ parseInt .Group.c 16 8 }}"
            fallthrough
        }"""
    )
    assert world.texts("ip0a7b0c.example.") == ["ip0a7b0c.example. 3600 10.0.123.12"]
    assert world.ask("other.example.") is NEXT


def test_reverse_zone() -> None:
    world = World(
        r"""template IN PTR 10.0.0.0/8 {
            match ^(?P<d>\d+)[.](?P<c>\d+)[.](?P<b>\d+)[.]10[.]in-addr[.]arpa[.]$
            answer "{{ .Name }} 60 IN PTR ip-10-{{ .Group.b }}-{{ .Group.c }}-{{ .Group.d }}.{{ .Zone }}"
        }"""
    )
    assert world.texts("4.3.2.10.in-addr.arpa.", "PTR") == ["4.3.2.10.in-addr.arpa. 60 ip-10-2-3-4.10.in-addr.arpa."]
    assert world.ask("4.3.2.11.in-addr.arpa.", "PTR") is NEXT


def test_classes_and_types() -> None:
    world = World('template CH TXT bind {\nanswer "{{ .Name }} 0 {{ .Class }} TXT {{ .Type }}"\n}', "bind")
    assert world.texts("version.bind.", "TXT", klass=3) == ['version.bind. 0 "TXT"']
    assert world.ask("version.bind.", "TXT", klass=3).answer[0].klass == 3
    assert world.texts("version.bind.", "ANY", klass=255) == ['version.bind. 0 "TXT"']
    assert world.ask("version.bind.", "TXT") is NEXT
    assert world.ask("version.bind.", "A", klass=3) is NEXT


def test_the_next_template_or_plugin() -> None:
    world = World(
        r"""
        template IN A {
            match ^a\.
            answer "{{ .Name }} IN A 1.2.3.4"
            fallthrough fall.example
        }
        template IN A {
            answer "{{ .Name }} 5 A 1.2.3.5"
        }"""
    )
    assert world.texts("a.x.") == ["a.x. 3600 1.2.3.4"]
    assert world.texts("b.fall.example.") == ["b.fall.example. 5 1.2.3.5"]
    refused = world.ask("b.x.")
    assert (refused.rcode, refused.plugin, refused.flags, refused.lease.until) == (SERVFAIL, "", 0, 0)
    assert world.ask("a.x.", "AAAA") is NEXT


def test_rcodes() -> None:
    world = World(
        """
        template IN A example {
            rcode SERVFAIL
            answer "nothing is made of this {{ .Nope }}"
        }
        template IN AAAA example {
            rcode REFUSED
            answer "{{ .Name }} 60 IN AAAA ::1"
        }
        template IN MX example {
            rcode BADSIG
        }"""
    )
    failed = world.ask("a.example.")
    assert (failed.rcode, failed.flags, failed.answer, failed.error) == (SERVFAIL, 0, (), "")
    refused = world.ask("a.example.", "AAAA")
    assert (refused.rcode, refused.flags, len(refused.answer)) == (REFUSED, AA, 1)
    assert world.ask("a.example.", "MX").rcode == 16
    assert sum(world.count("coredns_template_matches_total").values()) == 3


def test_cname_targets_are_resolved() -> None:
    world = World('template IN ANY example {\nanswer "{{ .Name }} 60 IN CNAME Target.test."\n}')
    address = Record(name.from_text("target.test."), A, 5, b"\xc0\0\2\7")
    world.upstream = Reply(answer=(address,), flags=AA | TC, lease=Lease(9.0, (b"svc",), age=True))
    reply = world.ask("a.example.")
    assert [one.type for one in reply.answer] == [CNAME, A]
    assert reply.flags == AA | TC
    assert (reply.lease.until, reply.lease.facts, reply.lease.age) == (9.0, (b"svc",), True)
    (chased,) = world.asked
    assert (chased.name, chased.spelling, chased.type) == (address.owner, name.spell("Target.test."), A)
    assert chased.depth == 1
    world.ask("a.example.", "AAAA")
    world.ask("a.example.", "CNAME")
    assert [query.type for query in world.asked] == [A, AAAA]
    world.upstream = Reply(SERVFAIL, error="no upstream")
    reply = world.ask("a.example.")
    assert (reply.rcode, [one.type for one in reply.answer], reply.lease.until) == (0, [CNAME], 0)


def test_matches_are_counted_replays_too() -> None:
    world = World(AKS)
    lease = world.ask("a.reddog.microsoft.com.").lease
    assert (lease.until, lease.facts) == (FOREVER, ())
    key = ("dns://:53", "reddog.microsoft.com.", "", "IN", "A")
    assert world.count("coredns_template_matches_total") == {key: 1}
    for duty in lease.duties:
        duty(10, 40, 40)
    assert world.count("coredns_template_matches_total") == {key: 11}


@pytest.mark.parametrize(
    ("answer", "metric", "error"),
    [
        ("{{ .Nope }} 60 IN A 1.2.3.4", "template_failures_total", "Nope"),
        ("{{ index .Match 7 }} 60 IN A 1.2.3.4", "template_failures_total", "index"),
        ("{{ .Group.x }} 60 IN A 1.2.3.4", "rr_failures_total", "<no"),
        ("{{ .Name }} 60 IN A 1.2.3.400", "rr_failures_total", "1.2.3.400"),
        ("{{ if false }}x{{ end }}", "rr_failures_total", "no record"),
    ],
)
@pytest.mark.parametrize("section", ["answer", "additional", "authority"])
def test_failures(answer: str, metric: str, error: str, section: str) -> None:
    world = World(f'template IN A example {{\n{section} "{answer}"\n}}')
    reply = world.ask("a.example.")
    assert (reply.rcode, reply.lease.until, reply.answer) == (SERVFAIL, 0, ())
    assert error in reply.error
    counts = {}
    for family in (world.plugin._template_failures, world.plugin._rr_failures):
        counts |= {family.name: {labels: cell.value for labels, cell in family.samples()}}
    labels = ("dns://:53", "example.", "", "IN", "A", section, answer)
    assert counts.pop(f"coredns_template_{metric}") == {labels: 1}
    assert list(counts.values()) == [{}]


@pytest.mark.parametrize(
    ("option", "steady"),
    [
        ('answer "{{ .Name }} 60 IN A 1.2.3.4"', True),
        ('answer "{{ .Name }} 60 IN TXT {{ .Remote }}"', False),
        ('answer "{{ .Name }} 60 IN TXT x{{ .Meta \\"a/b\\" }}"', False),
        ('answer "{{ .Question.Name }} 60 IN A 1.2.3.4"', False),
        ('answer "{{ .Name }} 60 IN TXT {{ .Message.Id }}"', False),
        ('answer "{{ with . }}{{ .Name }} 60 IN TXT {{ .Remote }}{{ end }}"', False),
        ("expr name() == 'a.example.' && type() == 'A'", True),
        ("expr incidr(client_ip(), '10.0.0.0/8')", False),
        ("var ip client_ip()", False),
    ],
)
def test_what_depends_on_the_asker_is_not_replayed(option: str, steady: bool) -> None:
    world = World(f"template IN A example {{\n{option}\n}}")
    reply = world.ask("a.example.", edns=Edns(1232, False))
    assert reply.rcode == 0
    assert (reply.lease.until == FOREVER) is steady


def test_what_a_condition_on_the_asker_let_pass_is_not_replayed() -> None:
    world = World(
        """
        template IN A example {
            expr client_ip() == '10.0.0.1'
            answer "{{ .Name }} 60 IN A 1.2.3.4"
            fallthrough
        }
        template IN A sub.example {
            answer "{{ .Name }} 60 IN A 1.2.3.5"
        }"""
    )
    assert world.texts("a.sub.example.", peer=("10.0.0.1", 5)) == ["a.sub.example. 60 1.2.3.4"]
    second = world.ask("a.sub.example.")
    assert ([shown(one) for one in second.answer], second.lease.until) == (["a.sub.example. 60 1.2.3.5"], 0)
    passed = world.ask("a.example.")
    assert (passed.plugin, passed.lease) == ("next", Lease(0.0, (b"fact",)))
    assert world.ask("a.example.", "AAAA") is NEXT


def test_all_fields() -> None:
    world = World(
        """template IN TXT example {
            answer "{{ .Name }} TXT {{ .Remote }} {{ .Question.Name }} {{ .Question.Qtype }} {{ .Meta \\"k/ns\\" }}"
            answer "{{ .Name }} TXT {{ .Message.RecursionDesired }} {{ (index .Message.Question 0).Qclass }}"
            answer "{{ .Name }} TXT {{ .Message.Id }} \\"{{ .Group }}\\" \\"{{ .Match }}\\" {{ .Regex }}"
        }"""
    )
    assert world.texts("a.eXample.", "TXT", metadata={"k/ns": lambda: "dev"}) == [
        'a.example. 3600 "10.0.0.7" "a.eXample." "16" "dev"',
        'a.example. 3600 "true" "1"',
        'a.example. 3600 "7" "map[0:a.example.]" "[a.example.]" ".*"',
    ]


def test_variables_and_conditions() -> None:
    world = World(
        """template IN A example.com {
            match ^(?P<ip>[0-9]{1,3}(-[0-9]{1,3}){3})[.](?P<id>[a-z2-7]{4})[.]example[.]com[.]$
            var ip replace(group('ip'), '-', '.')
            var half 7 / 2
            var long len(ip) > 3
            expr "any(['10.0.0.0/8', '192.168.0.0/16'], incidr(ip, #))"
            expr long
            answer "{{ .Name }} 60 IN A {{ .Var.ip }}"
            additional "{{ .Name }} 60 IN TXT {{ .Var.half }} {{ .Var.long }}"
            fallthrough
        }"""
    )
    reply = world.ask("10-1-2-3.abcd.example.com.")
    assert [shown(one) for one in reply.answer] == ["10-1-2-3.abcd.example.com. 60 10.1.2.3"]
    assert [shown(one) for one in reply.additional] == ['10-1-2-3.abcd.example.com. 60 "3.5" "true"']
    assert reply.lease.until == FOREVER
    assert world.ask("8-8-8-8.abcd.example.com.") is NEXT
    # An expression that cannot be worked out is a failure, whatever may fall through.
    assert world.ask("10-1-2-999.abcd.example.com.").rcode == SERVFAIL


def test_conditions_that_are_not_true() -> None:
    for condition in ("false", "1", "type() == 'AAAA'", "group(1) == 'x'", "group('x') == 'x'", "group(nil) == 'x'"):
        assert World(f"template IN A example {{\nexpr {condition}\nfallthrough\n}}").ask("a.example.") is NEXT
        assert World(f"template IN A example {{\nexpr {condition}\n}}").ask("a.example.").rcode == SERVFAIL


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("template", "Wrong argument count or unexpected line ending after 'template'"),
        ("template IN", "Wrong argument count or unexpected line ending after 'IN'"),
        ("template in A", "invalid query class in"),
        ("template IN a", "invalid RR class a"),
        ("template IN TYPE65400", "invalid RR class TYPE65400"),
        ("template IN A a..b", "a..b"),
        ("template IN A {\nmatch\n}", "after 'match'"),
        ("template IN A {\nmatch (\n}", "error parsing regexp: missing"),
        ("template IN A {\nmatch a(?=b)\n}", "error parsing regexp"),
        ("template IN A {\nmatch " + "a" * 10_001 + "\n}", "10000"),
        ("template IN A {\nanswer\n}", "after 'answer'"),
        ('template IN A {\nanswer "{{ .Name"\n}', "could not compile template: {{ .Name, unclosed action"),
        ('template IN A {\nauthority "{{ foo }}"\n}', "function 'foo' not defined"),
        ("template IN A {\nadditional\n}", "after 'additional'"),
        ("template IN A {\nrcode\n}", "after 'rcode'"),
        ("template IN A {\nrcode nxdomain\n}", "unknown rcode nxdomain"),
        ("template IN A {\nederror\n}", "after 'ederror'"),
        ("template IN A {\nederror x\n}", "'x' is not an integer"),
        ("template IN A {\nederror 65536\n}", "range"),
        ("template IN A {\nederror 1 a b\n}", "after 'b'"),
        ("template IN A {\nnope\n}", "Wrong argument count or unexpected line ending after 'nope'"),
        ("template IN A {\nvar x\n}", "after 'x'"),
        ("template IN A {\nvar 1x 1\n}", 'invalid variable name "1x"'),
        ("template IN A {\nvar len 1\n}", 'variable name "len" is reserved'),
        ("template IN A {\nvar group 1\n}", 'variable name "group" is reserved'),
        ("template IN A {\nvar now 1\n}", 'variable name "now" is reserved'),
        ("template IN A {\nvar x 1 +\n}", "could not compile expression: x, unexpected end"),
        ("template IN A {\nexpr\n}", "after 'expr'"),
        ("template IN A {\nexpr y == 1\nvar y 1\n}", "could not compile expression: unknown name y"),
        ("template IN A {\nfallthrough a..b\n}", "a..b"),
    ],
)
def test_bad_directives(text: str, error: str) -> None:
    with pytest.raises(CorefileError) as caught:
        World(text)
    assert error in caught.value.message
    assert caught.value.line >= 2


LINES = [
    ("a. 60 IN A 1.2.3.4", (A, 60, IN)),
    ("a. IN 60 A 1.2.3.4", (A, 60, IN)),
    ("a. A 1.2.3.4", (A, 3600, IN)),
    ("a 60 A 1.2.3.4", (A, 60, IN)),
    ("@ 60 A 1.2.3.4", (A, 60, IN)),
    ("a. 1h in a 1.2.3.4", (A, 3600, IN)),
    ("\n\n  \na. 60 IN A 1.2.3.4\n\n", (A, 60, IN)),
    ("a. 60 IN A 1.2.3.4 ; comment (", (A, 60, IN)),
    ("a. 60 IN A 1.2.3.4\nb. 60 IN A 1.1.1.1", (A, 60, IN)),
    ('a. 60 IN TXT "one\ntwo" three', (TXT, 60, IN)),
    ("a. 60 IN SOA ns. h. (1 60 ; serial )\n 60 60 60)\nb. A 1.2.3.4", (SOA, 60, IN)),
    ("a. 60 CH TXT x", (TXT, 60, 3)),
    ("a. 60 CLASS7 TYPE1 \\# 4 01020304", (A, 60, 7)),
    ("a. 60 IN TYPE65400 \\# 1 00", (65400, 60, IN)),
    ("a. 2147483647 A 1.2.3.4", (A, 2**31 - 1, IN)),
    ("a. 2147483648 A 1.2.3.4", (A, 0, IN)),
    ("A.B. 60 IN CNAME C.D.", (CNAME, 60, IN)),
    ("a. MX 10 m", (MX, 3600, IN)),
    ("a. SRV 0 0 53 s.", (SRV, 3600, IN)),
    ("a. PTR b.", (PTR, 3600, IN)),
]


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_lines(text: str, expected: tuple[int, int, int]) -> None:
    read = record(text)
    assert (read.type, read.ttl, read.klass) == expected
    assert read.owner.lower() in (b"\1a\0", b"\1a\1b\0", b"\0")
    if expected[0] == A:
        assert read.rdata == b"\1\2\3\4"


@pytest.mark.parametrize(
    "text",
    [
        *("", "  \n ", "; c", " a. 60 A 1.2.3.4", '"a." 60 A 1.2.3.4', "a.", "a. 60", "a. IN", "a. 60 60 A 1.2.3.4"),
        *("a. IN IN A 1.2.3.4", "a. 60 IN FOO 1", "a. -1 A 1.2.3.4", "a. 4294967296 A 1.2.3.4", "a. 1x A 1.2.3.4"),
        *(
            "a. A 1.2.3",
            "a. A 1.2.3.4 x",
            "a. A",
            "a..b. A 1.2.3.4",
            "<no value> A 1.2.3.4",
            "a. OPT \\# 0",
            "a. ANY x",
        ),
    ],
)
def test_no_lines(text: str) -> None:
    with pytest.raises(BadLine):
        record(text)


def test_random_names_leave_nothing_behind() -> None:
    world = World('template IN A {\nmatch ^(?P<a>[^.]+)\nanswer "{{ .Name }} 60 IN A 10.0.0.1"\n}')

    def ask(start: int, count: int) -> None:
        for index in range(start, start + count):
            world.ask(f"n{index}.example.")

    def held() -> int:
        """Octets that lines of kdns have taken: what other threads of the test runner take meanwhile is not meant."""
        snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/kdns/*")])
        return sum(trace.size for trace in snapshot.traces)

    tracemalloc.start()
    ask(0, 1100)
    before = held()
    ask(5000, 1200)
    left = held() - before
    tracemalloc.stop()
    # The records of the last 1,024 short texts are kept; they take the places of others.
    assert left < 32 * 1024
    assert record("a. A 1.2.3.4") is record("a. A 1.2.3.4")
    assert record("a. A 1.2.3.4" + " " * 600) == record("a. A 1.2.3.4")


def test_any_is_any() -> None:
    assert World('template ANY ANY {\nanswer "{{ .Name }} 60 {{ .Type }} 1.2.3.4"\n}').texts("a.") == ["a. 60 1.2.3.4"]
    assert World("template ANY ANY {\nrcode NXDOMAIN\n}").ask("a.", "ANY", klass=255).rcode == NXDOMAIN
    assert (ANY, AAAA) == (255, 28)
