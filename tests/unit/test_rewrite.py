"""The ``rewrite`` plugin: what the chain is asked, and what the client gets."""

from __future__ import annotations

import pytest

from kdns import message, name
from kdns.message import NOERROR, NXDOMAIN, RA, SERVFAIL, TC, Edns, Lease, Listener, Query, Reply
from kdns.plugins.rewrite import Rewrite, fields
from tests.plugintest import LEASE, End, ask, at_once, new_site, record, refused, set_up, shown


def end(*lines: str, **more: object) -> End:
    return End(Reply(answer=tuple(record(line) for line in lines), lease=LEASE).replace(**more))


def asked(rules: str, query: Query) -> Query:
    """What the rest of the chain is asked."""
    chain = End()
    at_once(set_up(Rewrite, rules), query, chain)
    return chain.asked[0]


def answered(rules: str, qname: str, *lines: str) -> list[str]:
    """The answer section that the client gets when the chain answers with these records."""
    return shown(at_once(set_up(Rewrite, rules), ask(qname), end(*lines)).answer)


# --- name ------------------------------------------------------------------------------------------------------------

IN_AND_OUT = "rewrite {\nname regex (.*)\\.front\\.org {1}.back.org\nanswer name (.*)\\.back\\.org {1}.front.org\n"


@pytest.mark.parametrize(
    ("rules", "qname", "new"),
    [
        ("rewrite name a.org b.org", "A.org.", "b.org."),
        ("rewrite name a.org. B.org.", "a.org.", "b.org."),
        ("rewrite name a.org b.org", "x.a.org.", "x.a.org."),
        ("rewrite name exact . b.org", ".", "b.org."),
        ("rewrite name prefix a.b. x.", "A.b.org.", "x.org."),
        # The dot that is put behind FROM makes this one useless: as in CoreDNS.
        ("rewrite name prefix ab x", "abc.org.", "abc.org."),
        ("rewrite name suffix a.org b.org", "www.a.org.", "www.b.org."),
        ("rewrite name suffix a.org b.org", "xa.org.", "xb.org."),
        ("rewrite name suffix .a.org .b.org", "xa.org.", "xa.org."),
        ("rewrite name suffix .a.org .", "www.a.org.", "www."),
        ("rewrite name substring a. b.", "a.a.org.", "b.b.org."),
        ("rewrite name regex (a+)(b)?\\.org {2}{1}", "aaab.org.", "baaa."),
        ("rewrite name regex ^(a+)b {0}.org", "aab.net.", "aab.org."),
        ("rewrite name regex (a+)(b)?\\.org {2}{1}.net", "aa.org.", "aa.net."),
        ("rewrite name regex ^b x.org", "ab.org.", "ab.org."),
        ("REWRITE NAME a b".lower().replace("name", "NAME"), "a.", "b."),
        ("rewrite STOP name EXACT a b", "a.", "b."),
        ("rewrite name suffix a\\.b.org c.org", "x.a\\.b.org.", "x.c.org."),
        # Rules in order: the first that applies ends it, unless it says continue.
        ("rewrite name a b\nrewrite name b c", "a.", "b."),
        ("rewrite continue name a b\nrewrite name b c", "a.", "c."),
        ("rewrite name x y\nrewrite name a b", "a.", "b."),
        ("rewrite stop {\nname regex\n(.*)\\.a\n{1}.b\n}", "x.a.", "x.b."),
    ],
)
def test_the_name_that_is_asked(rules: str, qname: str, new: str) -> None:
    query = ask(qname)
    got = asked(rules, query)
    assert name.to_text(got.name) == new
    changed = got.name != query.name
    assert got == (query.renamed(name.from_text(new)) if changed else query)


@pytest.mark.parametrize(
    ("rules", "records", "expected"),
    [
        # `exact` turns everything back by itself, names below included.
        (
            "rewrite name www.front.org www.back.org",
            ["WWW.back.org. 1 CNAME x.www.back.org.", "x.www.back.org. 1 A 192.0.2.1", "xwww.back.org. 1 NS a.org."],
            ["www.front.org. 1 CNAME x.www.front.org.", "x.www.front.org. 1 A 192.0.2.1", "xwww.back.org. 1 NS a.org."],
        ),
        # Without `answer` the records keep their names.
        (
            "rewrite name suffix front.org back.org",
            ["www.back.org. 1 CNAME a.back.org."],
            ["www.back.org. 1 CNAME a.back.org."],
        ),
        # `suffix` with `auto` turns every name below the suffix back.
        (
            "rewrite name suffix front.org back.org answer auto",
            ["www.back.org. 1 CNAME a.back.org.", "a.back.org. 1 MX 5 mail.back.org.", "b.org. 1 NS b.org."],
            ["www.front.org. 1 CNAME a.front.org.", "a.front.org. 1 MX 5 mail.front.org.", "b.org. 1 NS b.org."],
        ),
        # `cache` repeats a name as another client has spelled it.
        (
            "rewrite name suffix front.org back.org answer auto",
            ["wWw.bAck.oRg. 1 CNAME A.BACK.org."],
            ["wWw.front.org. 1 CNAME A.front.org."],
        ),
        # `auto` of other kinds knows only the name that was asked.
        (
            "rewrite name regex (.*)\\.front\\.org {1}.back.org answer auto",
            ["www.back.org. 1 CNAME a.back.org.", "a.back.org. 1 SRV 1 2 3 www.back.org."],
            ["www.front.org. 1 CNAME a.back.org.", "a.back.org. 1 SRV 1 2 3 www.front.org."],
        ),
        (
            "rewrite name substring front. back. answer auto",
            ["www.back.org. 1 A 192.0.2.1"],
            ["www.front.org. 1 A 192.0.2.1"],
        ),
        (
            "rewrite name prefix www.front. www.back. answer auto",
            ["www.back.org. 1 A 192.0.2.1"],
            ["www.front.org. 1 A 192.0.2.1"],
        ),
        (
            f"{IN_AND_OUT}}}",
            ["www.back.org. 1 CNAME a.back.org.", "a.back.org. 1 A 192.0.2.1"],
            ["www.front.org. 1 CNAME a.back.org.", "a.front.org. 1 A 192.0.2.1"],
        ),
        (
            f"{IN_AND_OUT}value (.*)\\.back\\.org {{1}}.other.org\n}}",
            [
                "www.back.org. 1 CNAME a.back.org.",
                "a.back.org. 1 NS a.back.org.",
                "a.back.org. 1 PTR a.back.org.",
                "a.back.org. 1 DNAME a.back.org.",
                "a.back.org. 1 MX 1 a.back.org.",
                "a.back.org. 1 SRV 1 2 3 a.back.org.",
                'a.back.org. 1 NAPTR 1 2 "u" "sip" "" a.back.org.',
                "a.back.org. 1 SOA a.back.org. b.back.org. 1 2 3 4 5",
                "a.back.org. 1 A 192.0.2.1",
                'a.back.org. 1 TXT "a.back.org."',
            ],
            [
                "www.front.org. 1 CNAME a.other.org.",
                "a.front.org. 1 NS a.other.org.",
                "a.front.org. 1 PTR a.other.org.",
                "a.front.org. 1 DNAME a.other.org.",
                "a.front.org. 1 MX 1 a.other.org.",
                "a.front.org. 1 SRV 1 2 3 a.other.org.",
                'a.front.org. 1 NAPTR 1 2 "u" "sip" "" a.other.org.',
                "a.front.org. 1 SOA a.other.org. b.back.org. 1 2 3 4 5",
                "a.front.org. 1 A 192.0.2.1",
                'a.front.org. 1 TXT "a.back.org."',
            ],
        ),
        # Rules are undone from the last to the first.
        (
            "rewrite continue name suffix front.org mid.org answer auto\n"
            "rewrite name suffix mid.org back.org answer auto",
            ["www.back.org. 1 CNAME mid.org."],
            ["www.front.org. 1 CNAME front.org."],
        ),
    ],
)
def test_names_in_the_reply(rules: str, records: list[str], expected: list[str]) -> None:
    assert answered(rules, "www.front.org.", *records) == expected


def test_all_sections_are_turned_back() -> None:
    records = (record("www.back.org. 1 NS www.back.org."),)
    chain = End(Reply(answer=records, authority=records, additional=records, lease=LEASE))
    reply = at_once(set_up(Rewrite, "rewrite name www.front.org www.back.org"), ask("www.front.org."), chain)
    assert shown(reply.answer) == ["www.front.org. 1 NS www.front.org."]
    assert reply.authority == reply.additional == reply.answer
    assert reply.lease == LEASE


def test_a_name_that_is_none_any_more() -> None:
    chain = End()
    plugin = set_up(Rewrite, "rewrite name regex ^a(.*) .{1}")
    reply = at_once(plugin, ask("ab.org."), chain)
    assert (reply.rcode, reply.lease, reply.answer, chain.asked) == (SERVFAIL, message.NO_LEASE, (), [])
    assert reply.error == "invalid name after rewrite: .b.org.."
    plugin = set_up(Rewrite, "rewrite name regex a b.org answer name ^b(.*) ..{1}")
    reply = at_once(plugin, ask("a.org."), end("b.org. 1 A 192.0.2.1"))
    assert reply.rcode == SERVFAIL
    assert reply.error == "invalid name in the reply after rewrite: ...org.."


# --- type, class, ttl, rcode -----------------------------------------------------------------------------------------


def test_type_and_class() -> None:
    assert asked("rewrite type aaaa A", ask(kind=message.AAAA)) == ask(kind=message.A)
    assert asked("rewrite type AAAA A", ask(kind=message.MX)) == ask(kind=message.MX)
    assert asked("rewrite class ch IN", ask(klass=message.CH)) == ask()
    assert asked("rewrite class CH IN", ask(klass=4)) == ask(klass=4)
    query = ask(kind=message.AAAA)
    both = "rewrite continue type AAAA A\nrewrite name example.org a.org"
    assert asked(both, query) == ask("a.org.").replace(size=query.size)


@pytest.mark.parametrize(
    ("rules", "ttls"),
    [
        ("rewrite ttl www.org 7", [7, 7]),
        ("rewrite ttl other.org 7", [5, 500]),
        ("rewrite ttl exact www.org 10-100", [10, 100]),
        ("rewrite ttl prefix ww 10-", [5, 500]),
        ("rewrite ttl prefix www. 10-", [10, 500]),
        ("rewrite ttl suffix org -100", [5, 100]),
        ("rewrite ttl substring w.o 8", [5, 500]),
        ("rewrite ttl substring w.org. 8", [8, 8]),
        ("rewrite ttl regex ^w+\\. 8", [8, 8]),
        ("rewrite ttl www.org 4294967295", [2**31 - 1, 2**31 - 1]),
        # Undone from the last to the first: what the first says is what stays.
        ("rewrite continue ttl www.org 9\nrewrite ttl www.org 8", [9, 9]),
        ("rewrite ttl www.org 9\nrewrite ttl www.org 8", [9, 9]),
    ],
)
def test_ttls(rules: str, ttls: list[int]) -> None:
    records = (record("a.org. 5 A 192.0.2.1"), record("a.org. 500 A 192.0.2.2"))
    reply = at_once(
        set_up(Rewrite, rules), ask("WWW.org."), End(Reply(answer=records, authority=records, additional=records))
    )
    for section in (reply.answer, reply.authority, reply.additional):
        assert [r.ttl for r in section] == ttls


@pytest.mark.parametrize(
    ("rules", "rcode"),
    [
        ("rewrite rcode www.org NXDOMAIN SERVFAIL", SERVFAIL),
        ("rewrite rcode www.org nxdomain 0", NOERROR),
        ("rewrite rcode www.org 3 23", 23),
        ("rewrite rcode www.org 2 0", NXDOMAIN),
        ("rewrite rcode other.org 3 0", NXDOMAIN),
        ("rewrite rcode suffix org 3 0", NOERROR),
        ("rewrite rcode regex .* 3 5", 5),
    ],
)
def test_rcodes(rules: str, rcode: int) -> None:
    reply = at_once(set_up(Rewrite, rules), ask("www.org."), End(Reply(NXDOMAIN, lease=LEASE)))
    assert reply == Reply(rcode, lease=LEASE)


# --- cname -----------------------------------------------------------------------------------------------------------

CHAIN = ("www.org. 1 CNAME a.org.", "x.org. 1 TXT x", "a.org. 1 CNAME b.org.", "b.org. 1 A 192.0.2.1")


async def retargeted(rules: str, found: Reply, *, kind: int = message.A) -> tuple[list[Query], Reply]:
    """What the server is asked, and the reply."""
    server = End(found)
    site = new_site()
    site.process.ask = server
    chain = End(Reply(answer=tuple(record(line) for line in CHAIN), flags=RA | TC, lease=LEASE))
    reply = await set_up(Rewrite, rules, site).resolve(ask("www.org.", kind), chain)
    return server.asked, reply


@pytest.mark.parametrize(
    ("rules", "target"),
    [
        ("rewrite cname b.org c.org", "c.org."),
        ("rewrite cname exact B.org C.org", "c.org."),
        ("rewrite cname prefix b. c.d.", "c.d.org."),
        ("rewrite cname suffix b.org. c.net.", "c.net."),
        ("rewrite cname substring b.o c.", "c.rg."),
        ("rewrite cname regex ^(b)\\.org {1}.net", "b.net."),
    ],
)
async def test_cnames(rules: str, target: str) -> None:
    found = Reply(answer=(record(f"{target} 2 A 192.0.2.9"),), lease=Lease(100.0, (b"other",)))
    queries, reply = await retargeted(rules, found)
    assert queries == [ask("www.org.").renamed(name.from_text(target)).replace(depth=1)]
    assert shown(reply.answer) == [
        "www.org. 1 CNAME a.org.",
        f"a.org. 1 CNAME {target}",
        f"{target} 2 A 192.0.2.9",
    ]
    assert (reply.flags, reply.rcode) == (RA, NOERROR)
    assert reply.lease == Lease(100.0, (b"fact", b"other"))


async def test_cnames_that_lead_nowhere() -> None:
    _, reply = await retargeted("rewrite cname a.org c.org", Reply(NXDOMAIN, flags=TC))
    assert shown(reply.answer) == ["www.org. 1 CNAME c.org."]
    assert (reply.flags, reply.rcode) == (RA | TC, NOERROR)
    _, reply = await retargeted("rewrite cname a.org c.org", Reply(drop=True))
    assert shown(reply.answer)[0] == CHAIN[0]


async def test_cnames_that_are_not_meant() -> None:
    # The suffix has no dot at its end, but targets have one: as in CoreDNS.
    queries, reply = await retargeted("rewrite cname suffix b.org c.org", Reply())
    assert (queries, len(reply.answer), reply.lease) == ([], len(CHAIN), LEASE)


# --- edns0 -----------------------------------------------------------------------------------------------------------

MINE = (65001, b"mine")
COOKIE = (10, b"cookie")


@pytest.mark.parametrize(
    ("rule", "passed_on", "told"),
    [
        ("local set 65001 0x6162", [(65001, b"ab")], [(65001, b"ab")]),
        ("local set 0xfde9 ab revert", [(65001, b"ab")], [MINE]),
        ("local set 65002 ab", [MINE, (65002, b"ab")], [(65002, b"ab")]),
        ("local set 65002 ab revert", [MINE, (65002, b"ab")], []),
        ("local replace 65001 ab", [(65001, b"ab")], [(65001, b"ab")]),
        ("local replace 65002 ab", [MINE], []),
        ("local append 65001 ab", [MINE, (65001, b"ab")], [MINE, (65001, b"ab")]),
        ("local append 65001 {qtype}", [MINE], []),
        ("local append 65002 {qtype}", [MINE, (65002, b"\0\1")], [(65002, b"\0\1")]),
        ("local unset 65001", [], []),
        ("LOCAL UNSET 65002", [MINE], []),
        ("local set 1 {qname}", [MINE, (1, b"Example.org.")], [(1, b"Example.org.")]),
        ("local set 1 {client_ip}", [MINE, (1, bytes([192, 0, 2, 7]))], [(1, bytes([192, 0, 2, 7]))]),
        ("local set 1 {client_port}", [MINE, (1, b"\x10\x92")], [(1, b"\x10\x92")]),
        ("local set 1 {protocol}", [MINE, (1, b"udp")], [(1, b"udp")]),
        ("local set 1 {server_ip}", [MINE, (1, b"\x7f\0\0\1")], [(1, b"\x7f\0\0\1")]),
        ("local set 1 {server_port}", [MINE, (1, b"\0\x35")], [(1, b"\0\x35")]),
        ("local set 1 {some/label}", [MINE, (1, b"value")], [(1, b"value")]),
        ("local set 1 {no/label}", [MINE], []),
        ("nsid set", [MINE, (3, b"")], [(3, b"")]),
        ("nsid set revert", [MINE, (3, b"")], []),
        ("nsid replace", [MINE], []),
        ("nsid unset", [MINE], []),
        ("subnet set 20 56", [MINE, (8, b"\0\1\x14\0\xc0\0\0")], []),
        ("subnet append 0 0 revert", [MINE, (8, b"\0\1\0\0")], []),
        ("subnet replace 24 56", [MINE], []),
        ("subnet unset", [MINE], []),
    ],
)
def test_edns(rule: str, passed_on: list[tuple[int, bytes]], told: list[tuple[int, bytes]]) -> None:
    chain = End()
    query = ask("Example.org.", edns=Edns(1400, True, (COOKIE, MINE))).replace(metadata={"some/label": lambda: "value"})
    reply = at_once(set_up(Rewrite, f"rewrite edns0 {rule}"), query, chain)
    edns = chain.asked[0].edns
    assert edns == Edns(1400, True, (COOKIE, *passed_on))
    assert reply.options == tuple(told)


def test_edns_where_there_was_none() -> None:
    assert asked("rewrite edns0 local set 1 a", ask()).edns == Edns(4096, False, ((1, b"a"),))
    assert asked("rewrite edns0 local replace 1 a", ask()).edns is None
    assert asked("rewrite edns0 local set 1 {some/label}", ask()).edns is None


def test_options_in_turn() -> None:
    chain = End()
    rules = (
        "rewrite continue edns0 local set 1 a\nrewrite continue edns0 local set 1 b\nrewrite edns0 local set 2 c revert"
    )
    reply = at_once(set_up(Rewrite, rules), ask(edns=Edns(512, False)), chain)
    assert chain.asked[0].edns == Edns(512, False, ((1, b"b"), (2, b"c")))
    assert reply.options == ((1, b"b"),)


def test_client_subnets_of_ipv6_and_of_replacement() -> None:
    query = ask(peer=("2001:db8::ffff", 1), edns=Edns(512, False, ((8, b"theirs"), MINE)))
    edns = asked("rewrite edns0 subnet replace 24 127", query).edns
    data = bytes.fromhex("00027f0020010db800000000000000000000fffe")
    assert edns is not None
    assert edns.options == (MINE, (8, data))


def test_the_server_address_where_it_is_not_known() -> None:
    query = ask(listener=Listener(local=("0.0.0.0", 53)))
    assert asked("rewrite edns0 local set 1 {server_ip}", query) == query


@pytest.mark.parametrize(
    ("rule", "replayable"),
    [
        ("name a b", True),
        ("edns0 local set 1 a", True),
        ("edns0 local set 1 {qtype}", True),
        ("edns0 nsid set", True),
        ("edns0 local set 1 {protocol}", True),
        ("edns0 local set 1 {client_ip}", False),
        ("edns0 local set 1 {a/b}", False),
        ("edns0 local set 1 {qname}", False),
        ("edns0 subnet set 24 56", False),
        ("edns0 subnet unset", True),
    ],
)
def test_what_depends_on_the_asker_is_not_replayed(rule: str, replayable: bool) -> None:
    assert set_up(Rewrite, f"rewrite ttl a 1\nrewrite {rule}").replayable is replayable


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("", "no rule type specified for rewrite"),
        ("stop", "stop rule must begin with a rule type"),
        ("continue", "continue rule must begin with a rule type"),
        ("foo a b", 'invalid rule type "foo"'),
        ("answer name a b", "response rewrites must begin with a name rule"),
        ("name", "too few arguments for a name rule"),
        ("name a", "too few arguments for a name rule"),
        (
            "name a b c",
            "name rule supports only exact, prefix, suffix, substring, and regex name matching, received: a",
        ),
        ("name exact a b c", "invalid arguments for exact rule"),
        ("name exact a b c d", "exceeded the number of arguments for a non-answer rule argument for exact rule"),
        (
            "name exact a b auto answer",
            "exceeded the number of arguments for a non-answer rule argument for exact rule",
        ),
        ("name exact a b answer auto answer", "type missing for answer rule for exact rule"),
        ("name exact a b answer foo", 'invalid type "foo" for answer rule for exact rule'),
        ("name exact a b answer name x", "name answer rule for exact rule: 2 arguments required"),
        ("name exact a b answer value x y name", "name answer rule for exact rule: 2 arguments required"),
        (
            "name exact a b answer auto name x y",
            "auto name answer rule cannot be combined with explicit name answer rules",
        ),
        ("name regex ( b", "error parsing regexp: missing ): (: `(`"),
        (
            "name regex a {1}",
            "the rewrite regex pattern ({1}) uses more subexpressions than its corresponding matching "
            "regex pattern (a)",
        ),
        ("type A", "type rules must have exactly two arguments"),
        ("type A FOO", 'invalid type "FOO"'),
        ("class foo IN", 'invalid class "FOO"'),
        ("ttl a", "too few (1) arguments for a ttl rule"),
        ("ttl a x", "invalid TTL 'x' for a ttl rule"),
        ("ttl a -", "invalid TTL '-' for a ttl rule"),
        ("ttl a 7-5", "invalid TTL '7-5' for a ttl rule"),
        ("ttl a 5-7-9", "invalid TTL '5-7-9' for a ttl rule"),
        ("ttl a 4294967296", "invalid TTL '4294967296' for a ttl rule"),
        ("ttl foo a 5", "ttl rule supports only exact, prefix, suffix, substring, and regex name matching"),
        ("ttl exact a 5 6", "too many arguments for a ttl rule"),
        ("ttl regex ( 5", "error parsing regexp: missing ): (: `(`"),
        ("rcode a 0", "too few (2) arguments for a rcode rule"),
        ("rcode a 24 0", "invalid matching RCODE '24' for a rcode rule"),
        ("rcode a 0 FOO", "invalid replacement RCODE 'FOO' for a rcode rule"),
        ("rcode exact a 0 1 2", "too many arguments for a rcode rule"),
        ("cname a", "too few (1) arguments for a cname rule"),
        ("cname foo a b", "unknown cname rewrite type: foo"),
        ("cname regex ( b", "error parsing regexp: missing ): (: `(`"),
        ("edns0 local", "too few arguments for an EDNS0 rule"),
        ("edns0 local foo 1 a", 'invalid action: "foo"'),
        ("edns0 foo set 1 a", 'invalid rule type "foo"'),
        ("edns0 local set 1", "EDNS0 local rules require three or four args"),
        ("edns0 local set 1 revert", "EDNS0 local rules require three or four args"),
        ("edns0 local set x a", "'x' is not a number up to 65535"),
        ("edns0 local set 65536 a", "'65536' is not a number up to 65535"),
        ("edns0 local set 1 0x6", "'0x6' is not hexadecimal"),
        ("edns0 local set 1 {foo}", 'unsupported variable name "{foo}"'),
        ("edns0 local set 1 {/foo}", 'unsupported variable name "{/foo}"'),
        ("edns0 local unset", "local unset action requires exactly two arguments"),
        ("edns0 nsid set 1", "EDNS0 NSID rules can accept no more than one arg"),
        ("edns0 subnet set 24", "EDNS0 subnet rules require three or four args"),
        ("edns0 subnet set 33 56", "invalid IPv4 bit mask length 33"),
        ("edns0 subnet set 24 129", "invalid IPv6 bit mask length 129"),
        ("edns0 subnet set -1 56", "'-1' is not a number up to 65535"),
        ("edns0 subnet unset 1", "subnet unset action requires exactly one argument"),
        ("name a b {\nx\n}", "unknown property 'x'"),
    ],
)
def test_what_is_wrong(rule: str, says: str) -> None:
    assert refused(Rewrite, f"rewrite {rule}") == says


async def test_ttls_that_count_down_are_not_repeated_behind_our_back() -> None:
    rule = fields.ttl_rule(["exact", "example.org", "30-60"])
    for age, until in ((True, 0.0), (False, 99.0)):
        reply = Reply(lease=Lease(99.0, (b"a fact",), age=age))
        assert (await rule.revert(reply)).lease.until == until
        assert (await rule.revert(reply)).lease.facts == (b"a fact",)
