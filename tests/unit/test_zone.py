from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.message import NOERROR, NXDOMAIN, REFUSED, SERVFAIL, YXDOMAIN, Record, type_number, type_text
from kdns.name import from_text, is_under, to_text
from kdns.rdata import from_text as rdata
from kdns.rdata import to_text as rdata_text
from kdns.zone import BadZone, Found, Zone

ORIGIN = from_text("example.org.")

ZONE = """
@ SOA NS1.example.org. hostmaster 7 3600 600 86400 60
@ NS NS1
@ NS ns.Other.net.
ns1 A 192.0.2.1
ns1 AAAA 2001:db8::1
www A 192.0.2.10
www A 192.0.2.11
alias CNAME WWW
alias2 CNAME alias
ext CNAME www.example.net.
dangling CNAME nothere
toent CNAME tree
towild CNAME foo.wild
toapex CNAME @
tocut CNAME a.sub
todn CNAME a.dn
*.wild A 192.0.2.20
*.wild MX 10 ns1
a.b.wild A 192.0.2.21
*.wc CNAME www
y.*.star A 192.0.2.22
deep.tree A 192.0.2.30
sub NS ns.sub
sub NS ns1
sub DS \\# 5 0001080200
ns.sub A 192.0.2.40
deeper.sub NS ns.deeper.sub
bare NS ns.outside.net.
dn DNAME Target
dn TXT dn
a.target A 192.0.2.50
x.dn A 192.0.2.51
dloop DNAME dloop
mx MX 10 WWW
mx MX 20 www
mx MX 30 www.example.net.
srv SRV 0 0 80 WWW
svc HTTPS 1 ns1 alpn=h2
svcself HTTPS 1 .
"""


def records(text: str, origin: bytes = ORIGIN) -> list[Record]:
    """Lines of owner, type and data; TTL 300."""
    out = []
    for line in text.strip().splitlines():
        owner, kind, data = line.split(maxsplit=2)
        number = type_number(kind)
        assert number is not None
        out.append(Record(from_text(owner, origin), number, 300, rdata(number, data, origin)))
    return out


@pytest.fixture(scope="module")
def zone() -> Zone:
    return Zone(ORIGIN, records(ZONE))


def ask(zone: Zone, name: str, kind: str = "A", do: bool = False) -> Found:
    number = type_number(kind)
    assert number is not None
    return zone.lookup(from_text(name, zone.origin), number, do)


def lines(found: Iterable[Record]) -> list[str]:
    """Owners and targets without the zone's name."""

    def short(text: str) -> str:
        return text.replace(".example.org.", "")

    return [f"{short(to_text(r.owner))} {type_text(r.type)} {short(rdata_text(r.type, r.rdata))}" for r in found]


NS_SET = ["example.org. NS ns1", "example.org. NS ns.other.net."]
SOA_SET = ["example.org. SOA ns1 hostmaster 7 3600 600 86400 60"]


def test_it_knows_its_serial(zone: Zone) -> None:
    assert zone.serial == 7


def test_a_zone_needs_a_soa() -> None:
    with pytest.raises(BadZone, match="no SOA"):
        Zone(ORIGIN, records("www A 192.0.2.1"))


def test_the_last_soa_counts_wherever_it_stands() -> None:
    zone = Zone(ORIGIN, records("@ SOA a b 1 2 3 4 5\nwww SOA c d 2 2 3 4 5\n"))
    assert zone.serial == 2
    assert lines(ask(zone, "nx").authority) == ["www SOA c d 2 2 3 4 5"]


@pytest.mark.parametrize(
    ("name", "kind", "answer", "additional"),
    [
        ("www", "A", ["www A 192.0.2.10", "www A 192.0.2.11"], []),
        ("alias", "A", ["alias CNAME www", "www A 192.0.2.10", "www A 192.0.2.11"], []),
        ("alias2", "A", ["alias2 CNAME alias", "alias CNAME www", "www A 192.0.2.10", "www A 192.0.2.11"], []),
        ("alias", "CNAME", ["alias CNAME www"], []),
        # The target exists, but not with this type: the alias alone, beside NS (CoreDNS).
        ("alias", "AAAA", ["alias CNAME www"], []),
        ("x.wild", "A", ["x.wild A 192.0.2.20"], []),
        ("y.x.wild", "A", ["y.x.wild A 192.0.2.20"], []),
        ("*.wild", "A", ["*.wild A 192.0.2.20"], []),
        ("x.wild", "MX", ["x.wild MX 10 ns1"], ["ns1 A 192.0.2.1", "ns1 AAAA 2001:db8::1"]),
        ("x.wc", "A", ["x.wc CNAME www", "www A 192.0.2.10", "www A 192.0.2.11"], []),
        ("sub", "DS", ["sub DS \\# 5 0001080200"], []),
        ("dn", "TXT", ['dn TXT "dn"'], []),
        ("dn", "DNAME", ["dn DNAME target"], []),
        ("a.dn", "A", ["dn DNAME target", "a.dn CNAME a.target", "a.target A 192.0.2.50"], []),
        ("a.dn", "CNAME", ["dn DNAME target", "a.dn CNAME a.target"], []),
        (
            "mx",
            "MX",
            ["mx MX 10 www", "mx MX 20 www", "mx MX 30 www.example.net."],
            ["www A 192.0.2.10", "www A 192.0.2.11"],
        ),
        ("srv", "SRV", ["srv SRV 0 0 80 WWW"], ["www A 192.0.2.10", "www A 192.0.2.11"]),
        ("svc", "HTTPS", ['svc HTTPS 1 ns1 alpn="h2"'], ["ns1 A 192.0.2.1", "ns1 AAAA 2001:db8::1"]),
        ("svcself", "HTTPS", ["svcself HTTPS 1 ."], []),
    ],
)
def test_positive_answers_come_with_the_name_servers(
    zone: Zone, name: str, kind: str, answer: list[str], additional: list[str]
) -> None:
    found = ask(zone, name, kind)
    assert (found.rcode, found.authoritative, found.passable, found.chase) == (NOERROR, True, False, b"")
    assert lines(found.answer) == answer
    assert lines(found.authority) == NS_SET
    assert lines(found.additional) == additional


def test_the_apex(zone: Zone) -> None:
    soa = ask(zone, "@", "SOA")
    assert (lines(soa.answer), lines(soa.authority), soa.additional) == (SOA_SET, NS_SET, ())
    ns = ask(zone, "@", "NS")
    assert (lines(ns.answer), ns.authority) == (NS_SET, ())
    assert lines(ns.additional) == ["ns1 A 192.0.2.1", "ns1 AAAA 2001:db8::1"]


@pytest.mark.parametrize(
    ("name", "kind", "passable"),
    [
        ("www", "AAAA", False),
        ("www", "ANY", False),
        ("x.wild", "AAAA", False),
        ("q.star", "A", False),
        ("bare", "DS", False),
        # Nothing but SOA and NS at the apex, and empty non-terminals: a plugin may let them fall through (CoreDNS).
        ("@", "A", True),
        ("@", "DS", True),
        ("tree", "A", True),
        ("tree", "ANY", True),
        # A wildcard does not stand for a name that exists, empty or not (RFC 4592 section 2.2.2).
        ("b.wild", "A", True),
        ("star", "A", True),
    ],
)
def test_no_data(zone: Zone, name: str, kind: str, passable: bool) -> None:
    found = ask(zone, name, kind)
    assert (found.rcode, found.answer, found.authoritative, found.passable) == (NOERROR, (), True, passable)
    assert lines(found.authority) == SOA_SET


@pytest.mark.parametrize(
    # An existing name between the wildcard and the one asked for is the closest encloser (RFC 4592 section 3.3.1).
    "name",
    ["nx", "a.b.c.nx", "x.www", "c.b.wild", "x.a.b.wild", "x.*.wild", "x.tree", "x.alias", "x.star.www"],
)
def test_names_that_do_not_exist(zone: Zone, name: str) -> None:
    found = ask(zone, name)
    assert (found.rcode, found.answer, found.authoritative, found.passable) == (NXDOMAIN, (), True, True)
    assert lines(found.authority) == SOA_SET


def test_a_wildcard_is_named(zone: Zone) -> None:
    assert ask(zone, "x.wild").wildcard == from_text("*.wild", ORIGIN)
    assert ask(zone, "x.wc").wildcard == from_text("*.wc", ORIGIN)
    assert ask(zone, "*.wild").wildcard == b""


@pytest.mark.parametrize("name", ["sub", "www.sub", "ns.sub", "x.deeper.sub"])
@pytest.mark.parametrize("kind", ["A", "NS", "SOA", "CNAME"])
def test_referrals(zone: Zone, name: str, kind: str) -> None:
    found = ask(zone, name, kind)
    assert (found.rcode, found.answer, found.authoritative, found.passable) == (NOERROR, (), False, False)
    assert lines(found.authority) == ["sub NS ns.sub", "sub NS ns1"]
    # Glue below the cut only (CoreDNS).
    assert lines(found.additional) == ["ns.sub A 192.0.2.40"]


def test_a_referral_below_the_cut_even_for_ds(zone: Zone) -> None:
    assert not ask(zone, "x.sub", "DS").authoritative


def test_a_referral_without_glue(zone: Zone) -> None:
    found = ask(zone, "x.bare")
    assert (lines(found.authority), found.additional) == (["bare NS ns.outside.net."], ())


def test_an_alias_that_leads_into_a_delegation(zone: Zone) -> None:
    found = ask(zone, "tocut")
    assert lines(found.answer) == ["tocut CNAME a.sub"]
    assert lines(found.authority) == ["sub NS ns.sub", "sub NS ns1"]
    assert found.authoritative


@pytest.mark.parametrize(
    ("name", "kind", "answer", "chase"),
    [
        ("ext", "A", ["ext CNAME www.example.net."], "www.example.net."),
        ("dangling", "A", ["dangling CNAME nothere"], "nothere.example.org."),
        ("toent", "A", ["toent CNAME tree"], "tree.example.org."),
        ("towild", "A", ["towild CNAME foo.wild"], "foo.wild.example.org."),
        ("todn", "A", ["todn CNAME a.dn"], "a.dn.example.org."),
        ("x.dn", "A", ["dn DNAME target", "x.dn CNAME x.target"], "x.target.example.org."),
        ("alias", "NS", ["alias CNAME www"], "www.example.org."),
        ("toapex", "SOA", ["toapex CNAME example.org."], "example.org."),
        ("toapex", "A", ["toapex CNAME example.org."], "example.org."),
    ],
)
def test_what_the_server_must_be_asked_for(zone: Zone, name: str, kind: str, answer: list[str], chase: str) -> None:
    found = ask(zone, name, kind)
    assert lines(found.answer) == answer
    assert to_text(found.chase) == chase


@pytest.mark.parametrize(
    ("rcode", "got", "expected", "authority"),
    [
        (NOERROR, "www.example.net. A 192.0.2.99", NOERROR, NS_SET),
        (NOERROR, "", NOERROR, SOA_SET),
        (NXDOMAIN, "", NXDOMAIN, SOA_SET),
        (NXDOMAIN, "www.example.net. CNAME nx.example.net.", NXDOMAIN, SOA_SET),
        (SERVFAIL, "", SERVFAIL, NS_SET),
        (REFUSED, "", NOERROR, NS_SET),
    ],
)
def test_what_the_server_said(zone: Zone, rcode: int, got: str, expected: int, authority: list[str]) -> None:
    found = zone.conclude(ask(zone, "ext"), rcode, tuple(records(got)), 1)
    assert found.rcode == expected
    assert lines(found.answer) == ["ext CNAME www.example.net.", *got.splitlines()]
    assert lines(found.authority) == authority
    assert found.authoritative


def test_addresses_for_what_the_server_said(zone: Zone) -> None:
    said = records("www.example.net. MX 10 NS1\nwww.example.net. MX 20 ns1")
    found = zone.conclude(ask(zone, "ext", "MX"), NOERROR, tuple(said), 15)
    assert lines(found.additional) == ["ns1 A 192.0.2.1", "ns1 AAAA 2001:db8::1"]


def test_data_from_elsewhere_may_be_cut_off(zone: Zone) -> None:
    said = (Record(from_text("www.example.net."), 15, 1, b"\0\1\x07exam"), Record(b"\0", 33, 1, b""))
    assert zone.conclude(ask(zone, "ext", "MX"), NOERROR, said, 15).additional == ()


def test_a_chain_is_followed_ten_aliases_far() -> None:
    chain = "".join(f"c{n} CNAME c{n + 1}\n" for n in range(1, 12)) + "c12 A 192.0.2.1"
    zone = Zone(ORIGIN, records("@ SOA a b 1 2 3 4 5\n" + chain))
    assert lines(ask(zone, "c3").answer)[-1] == "c12 A 192.0.2.1"
    assert lines(ask(zone, "c2").answer) == [f"c{n} CNAME c{n + 1}" for n in range(2, 12)]


def test_a_loop_ends() -> None:
    zone = Zone(ORIGIN, records("@ SOA a b 1 2 3 4 5\na CNAME b\nb CNAME a"))
    found = ask(zone, "a")
    assert lines(found.answer) == ["a CNAME b", "b CNAME a"] * 5
    assert (found.rcode, found.chase) == (NOERROR, b"")


def test_a_dname_that_leads_to_itself_is_a_failure(zone: Zone) -> None:
    assert ask(zone, "x.dloop") == Found(SERVFAIL)


def test_a_dname_that_makes_too_long_a_name() -> None:
    long = ".".join(("b" * 60,) * 3)
    zone = Zone(ORIGIN, records(f"@ SOA a b 1 2 3 4 5\ndn DNAME {long}.test."))
    found = ask(zone, f"{'a' * 60}.{'a' * 60}.dn")
    assert (found.rcode, len(found.answer)) == (YXDOMAIN, 1)
    assert ask(zone, "a.dn").chase


def test_a_dname_at_the_apex() -> None:
    zone = Zone(ORIGIN, records("@ SOA a b 1 2 3 4 5\n@ NS ns.test.\n@ DNAME example.net.\n@ A 192.0.2.1"))
    assert lines(ask(zone, "a.b").answer) == [
        "example.org. DNAME example.net.",
        "a.b CNAME a.b.example.net.",
    ]
    assert lines(ask(zone, "@").answer) == ["example.org. A 192.0.2.1"]


def test_wildcards_below_a_cut_are_not_ours() -> None:
    zone = Zone(ORIGIN, records("@ SOA a b 1 2 3 4 5\nsub NS ns.test.\n*.sub A 192.0.2.1\n*.d NS ns.test."))
    assert not ask(zone, "x.sub").authoritative
    assert not ask(zone, "*.d").authoritative
    # A wildcard's NS is data like any other (CoreDNS; undefined in RFC 4592 section 4.2).
    assert lines(ask(zone, "x.d", "NS").answer) == ["x.d NS ns.test."]


def test_an_apex_without_name_servers() -> None:
    zone = Zone(ORIGIN, records("@ SOA a b 1 2 3 4 5"))
    assert ask(zone, "@", "NS") == Found(passable=True)
    assert ask(zone, "@").rcode == NOERROR


def test_the_root_zone() -> None:
    zone = Zone(b"\0", records("@ SOA a b 1 2 3 4 5\n@ NS a.\na A 192.0.2.1\norg NS ns.org\nns.org A 192.0.2.2", b"\0"))
    assert lines(ask(zone, ".", "NS").additional) == ["a. A 192.0.2.1"]
    assert lines(ask(zone, "www.example.org.").additional) == ["ns.org. A 192.0.2.2"]
    assert ask(zone, "nx.").rcode == NXDOMAIN
    assert ask(zone, ".").rcode == NOERROR


# --- signed zones ----------------------------------------------------------------------------------------------------


def _signed() -> Zone:
    plain = """
    @ SOA ns hm 1 2 3 4 5
    @ NS ns
    ns A 192.0.2.1
    alias CNAME ns
    a.b.ent A 192.0.2.2
    *.wc CNAME ns
    *.wild A 192.0.2.3
    sub NS ns.sub
    ns.sub A 192.0.2.4
    sub DS \\# 5 0001080200
    unsigned NS ns.sub
    dn DNAME ns
    """
    found = records(plain)
    kinds: dict[bytes, list[int]] = {}
    for record in found:
        held = kinds.setdefault(record.owner, [])
        if record.type not in held:
            held.append(record.type)
    owners = [owner for owner in kinds if owner != from_text("ns.sub", ORIGIN)]
    for owner in owners:
        found.append(Record(owner, 47, 300, ORIGIN + b"\0\1\x40"))
        for kind in (*kinds[owner], 47):
            if kind == 2 and owner != ORIGIN:
                continue
            found.append(Record(owner, 46, 300, kind.to_bytes(2, "big") + b"\x08\x02" + bytes(14) + ORIGIN + b"sig"))
    return Zone(ORIGIN, found)


def signed_lines(found: Iterable[Record]) -> list[str]:
    """Owners and types, signatures with what they cover."""
    out = []
    for record in found:
        covered = f"({type_text(int.from_bytes(record.rdata[:2], 'big'))})" if record.type == 46 else ""
        out.append(to_text(record.owner).replace(".example.org.", "") + " " + type_text(record.type) + covered)
    return out


APEX_SOA = ["example.org. SOA", "example.org. RRSIG(SOA)"]
APEX_NS = ["example.org. NS", "example.org. RRSIG(NS)"]


def nsec(*owners: str) -> list[str]:
    return [line for owner in owners for line in (f"{owner} NSEC", f"{owner} RRSIG(NSEC)")]


@pytest.mark.parametrize(
    ("name", "kind", "answer", "authority"),
    [
        ("@", "SOA", APEX_SOA, APEX_NS),
        ("@", "NS", APEX_NS, []),
        ("ns", "A", ["ns A", "ns RRSIG(A)"], APEX_NS),
        ("ns", "AAAA", [], APEX_SOA + nsec("ns")),
        ("alias", "A", ["alias CNAME", "alias RRSIG(CNAME)", "ns A", "ns RRSIG(A)"], APEX_NS),
        # Between alias and dn; and no wildcard at the apex.
        ("b", "A", [], APEX_SOA + nsec("alias", "example.org.")),
        ("ent", "A", [], APEX_SOA + nsec("dn")),
        ("x.ent", "A", [], APEX_SOA + nsec("a.b.ent", "dn")),
        ("x.wild", "A", ["x.wild A", "x.wild RRSIG(A)"], APEX_NS + nsec("*.wild")),
        ("x.wild", "AAAA", [], APEX_SOA + nsec("*.wild")),
        ("x.wc", "A", ["x.wc CNAME", "x.wc RRSIG(CNAME)", "ns A", "ns RRSIG(A)"], APEX_NS + nsec("*.wc")),
        ("x.sub", "A", [], ["sub NS", "sub DS", "sub RRSIG(DS)"]),
        ("sub", "DS", ["sub DS", "sub RRSIG(DS)"], APEX_NS),
        ("x.unsigned", "A", [], ["unsigned NS", *nsec("unsigned")]),
        ("unsigned", "DS", [], APEX_SOA + nsec("unsigned")),
        ("x.dn", "CNAME", ["dn DNAME", "dn RRSIG(DNAME)", "x.dn CNAME"], APEX_NS),
        ("@", "RRSIG", ["example.org. RRSIG(NSEC)"], APEX_NS),
    ],
)
def test_signed_zones(name: str, kind: str, answer: list[str], authority: list[str]) -> None:
    found = ask(_signed(), name, kind, do=True)
    assert signed_lines(found.answer) == answer
    assert signed_lines(found.authority) == authority


def test_proofs_go_along_with_what_the_server_says() -> None:
    zone = Zone(
        ORIGIN, [*records("@ SOA a b 1 2 3 4 5\n*.wc CNAME nx.test."), Record(ORIGIN, 47, 300, ORIGIN + b"\0\1\x40")]
    )
    found = zone.conclude(ask(zone, "x.wc", do=True), NXDOMAIN, (), 1, True)
    assert signed_lines(found.authority) == ["example.org. SOA", "example.org. NSEC"]


def test_signatures_are_for_those_who_ask() -> None:
    zone = _signed()
    for name in ("@", "ns", "b", "x.wild", "x.sub", "x.unsigned"):
        found = ask(zone, name)
        assert not [r for r in found.answer + found.authority + found.additional if r.type in (46, 47)]


# --- properties ------------------------------------------------------------------------------------------------------

labels = st.lists(st.sampled_from([b"\1a", b"\1b", b"\1*"]), max_size=4).map(lambda parts: b"".join(parts) + ORIGIN)


@given(st.lists(labels, max_size=8), labels)
def test_the_closest_encloser_decides(owners: list[bytes], name: bytes) -> None:
    """RFC 4592 in its own words, for zones of addresses alone."""
    zone = Zone(
        ORIGIN, [*records("@ SOA a b 1 2 3 4 5"), *(Record(owner, 1, 1, owner[:4].ljust(4)) for owner in owners)]
    )
    exists = {name[at:] for name in (*owners, ORIGIN) for at in range(len(name)) if is_under(name[at:], ORIGIN)}
    exists = {name for name in exists if name.endswith(ORIGIN)}
    found = zone.lookup(name, 1)
    encloser = name
    while encloser not in exists:
        encloser = encloser[1 + encloser[0] :]
    source = name if name in exists else b"\1*" + encloser
    if source in owners:
        assert {record.owner for record in found.answer} == {name}
        assert len(found.answer) == owners.count(source)
    else:
        assert found.answer == ()
        assert found.rcode == (NOERROR if source in exists else NXDOMAIN)
