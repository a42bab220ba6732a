"""Record data as text and as wire."""

from __future__ import annotations

import dns.rdata
import dns.rdataclass
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdns import name, rdata
from kdns.message import (
    AAAA,
    CNAME,
    DNAME,
    DNSKEY,
    DS,
    HINFO,
    HTTPS,
    MX,
    NAPTR,
    NS,
    PTR,
    RRSIG,
    SOA,
    SRV,
    SVCB,
    TXT,
    A,
)

ORIGIN = name.from_text("example.org.")

DIGEST = bytes(range(20))

TEXTS = [
    (A, "192.0.2.1", b"\xc0\0\2\1"),
    (AAAA, "2001:db8::1", b"\x20\x01\x0d\xb8" + bytes(11) + b"\1"),
    (NS, "ns1.Example.org.", b"\3ns1\7Example\3org\0"),
    (CNAME, ".", b"\0"),
    (PTR, "a\\.b.c.", b"\3a.b\1c\0"),
    (DNAME, "example.net.", b"\7example\3net\0"),
    (MX, "10 mail.example.org.", b"\0\x0a\4mail\7example\3org\0"),
    (SRV, "1 2 53 a.", b"\0\1\0\2\0\x35\1a\0"),
    (TXT, '"one" "" "t\\"w\\\\o\\200"', b'\3one\0\6t"w\\o\xc8'),
    (HINFO, '"ANY obsoleted" "See RFC 8482"', b"\x0dANY obsoleted\x0cSee RFC 8482"),
    (rdata.CAA, '0 issue "ca.example.net; x=1"', b"\0\5issueca.example.net; x=1"),
    (rdata.SPF, '"v=spf1 -all"', b"\x0bv=spf1 -all"),
    (SOA, "a. b. 1 2 3 4 5", b"\1a\0\1b\0" + b"".join(bytes((0, 0, 0, i)) for i in range(1, 6))),
    (DS, f"60485 5 1 {DIGEST.hex()}", bytes.fromhex("ec450501") + DIGEST),
    (SVCB, '1 . alpn="h2"', b"\0\1\0\0\1\0\3\2h2"),
    (65400, "\\# 3 0a0b0c", b"\x0a\x0b\x0c"),
    (65400, "\\# 0", b""),
]  # fmt: skip


@pytest.mark.parametrize(("type", "text", "wire"), TEXTS)
def test_text_and_wire(type: int, text: str, wire: bytes) -> None:
    assert rdata.from_text(type, text) == wire
    assert rdata.to_text(type, wire) == text


@pytest.mark.parametrize(
    ("type", "text", "canonical"),
    [
        (CNAME, "www", "www.example.org."),
        (CNAME, "@", "example.org."),
        (MX, "  10\t mail ; comment", "10 mail.example.org."),
        (SOA, "@ root (\n 1 ; serial\n 1h 15m\n 1W2d 30 )", "example.org. root.example.org. 1 3600 900 777600 30"),
        (TXT, "one two;no", '"one" "two"'),
        (TXT, "tab\\009\\;", '"tab\\009;"'),
        (TXT, "é", '"\\195\\169"'),
        (AAAA, "2001:DB8:0:0::1", "2001:db8::1"),
        (A, "\\# 4 0A 00 0001", "10.0.0.1"),
        (NAPTR, '100 10 "u" "sip" "!^.*$!sip:x!" .', '100 10 "u" "sip" "!^.*$!sip:x!" .'),
        (HTTPS, "1 svc", "1 svc.example.org."),
    ],
)
def test_other_spellings(type: int, text: str, canonical: str) -> None:
    assert rdata.to_text(type, rdata.from_text(type, text, ORIGIN)) == canonical


@pytest.mark.parametrize(
    ("type", "text", "reason"),
    [
        (A, "", "missing"),
        (A, "1.2.3", "not an IP address"),
        (A, "::1", "not an IPv4 address"),
        (AAAA, "1.2.3.4", "not an IPv6 address"),
        (A, "1.2.3.4 5", "unexpected '5'"),
        (MX, "x mail.", "not a number"),
        (MX, "65536 mail.", "65535"),
        (MX, "10", "missing"),
        (CNAME, "a..b.", "empty"),
        (CNAME, "a" * 64 + ".", "63"),
        (CNAME, "\ud800", "surrogates"),
        (TXT, "", "missing"),
        (TXT, '"open', "unexpected"),
        (TXT, "\\300", "octet"),
        (TXT, "\\30", "escape"),
        (SOA, "a. b. 1 2 3 4 5000000000", "4294967295"),
        (SOA, "a. b. 1 2 3 4 1x", "not a time"),
        (rdata.CAA, "0 is-sue x", "not a tag"),
        (A, "\\# 3 010203", "length"),
        (CNAME, "\\# 1 01", "index out of range"),
        (CNAME, "\\# 1 40", "not a name"),
        (65400, "\\# 2 01", "announced"),
        (65400, "\\# x 01", "announced"),
        (65400, "\\# 1 zz", "hexadecimal"),
        (65400, "1.2.3.4", "HEX"),
        (DNSKEY, "nonsense", "DNSKEY"),
        (TXT, " ".join(["x" * 255] * 257), "65535"),
    ],
)
def test_bad_text(type: int, text: str, reason: str) -> None:
    with pytest.raises(rdata.BadRdata, match=reason):
        rdata.from_text(type, text)


@pytest.mark.parametrize(
    ("type", "wire"),
    [
        (A, b"\1\2\3"),
        (A, b"\1\2\3\4\5"),
        (AAAA, b""),
        (CNAME, b"\1a"),
        (CNAME, b"\x40" + bytes(70)),
        (CNAME, b"\0\0"),
        (MX, b"\0"),
        (SOA, b"\0\0"),
        (TXT, b"\2a"),
        (TXT, b""),
        (rdata.CAA, b"\0\1-x"),
        (rdata.CAA, b"\0\5a"),
        (DS, b"\0"),
        (65400, b"ab"),
    ],
)
def test_data_of_no_type_are_shown_as_they_are(type: int, wire: bytes) -> None:
    assert rdata.to_text(type, wire) == f"\\# {len(wire)} {wire.hex()}".rstrip()


def test_makers() -> None:
    target = name.from_text("a.")
    assert rdata.srv(1, 2, 53, target) == rdata.from_text(SRV, "1 2 53 a.")
    assert rdata.mx(10, target) == rdata.from_text(MX, "10 a.")
    assert rdata.soa(target, target, 1, 2, 3, 4, 5) == rdata.from_text(SOA, "a. a. 1 2 3 4 5")


def test_target() -> None:
    for type, text in ((CNAME, "b."), (NS, "b."), (PTR, "b."), (DNAME, "b."), (MX, "1 b."), (SRV, "1 2 3 b.")):
        assert rdata.target(type, rdata.from_text(type, text)) == b"\1b\0"
    assert rdata.target(A, b"\1\2\3\4") is None


@pytest.mark.parametrize(
    ("type", "text"),
    [
        (NS, "a."), (CNAME, "a."), (SOA, "a. b. 1 2 3 4 5"), (PTR, "a."), (14, "a. b."), (MX, "1 a."), (17, "a. b."),
        (18, "1 a."), (21, "1 a."), (26, "1 a. b."), (SRV, "1 2 3 a."), (36, "1 a."), (DNAME, "a."),
        (RRSIG, "A 8 2 30 20260101000000 20250101000000 1 a. AA=="), (47, "a. A"), (NAPTR, '1 2 "u" "" "re" a.'),
    ],
)  # fmt: skip
def test_where_the_names_are(type: int, text: str) -> None:
    wire = rdata.from_text(type, text)
    at, count = rdata.names_in(type, b"xyz" + wire, 3)
    assert wire[at - 3 :].startswith(b"\1a\0\1b\0" if count == 2 else b"\1a\0")
    assert count == text.count("b.") + 1


def test_data_without_names() -> None:
    assert rdata.names_in(A, b"\1\2\3\4") == (0, 0)
    with pytest.raises(IndexError):
        rdata.names_in(NAPTR, bytes(6))


def test_compressed_are_the_types_of_rfc_1035() -> None:
    assert set(rdata.COMPRESSED) == {NS, 3, 4, CNAME, SOA, 7, 8, 9, PTR, 14, MX}
    assert rdata.NAMES.items() >= rdata.COMPRESSED.items()


def test_seconds() -> None:
    assert [rdata.seconds(word) for word in ("0", "30", "1m", "1H30M", "2d", "1w")] == [0, 30, 60, 5400, 172800, 604800]
    for word in ("", "h", "1h30", "1y", "-1", "²"):
        with pytest.raises(rdata.BadRdata):
            rdata.seconds(word)


HAND = [A, AAAA, NS, CNAME, PTR, DNAME, MX, SOA, SRV, TXT, HINFO, rdata.CAA]
NAMES = st.lists(st.binary(min_size=1, max_size=10), max_size=4).map(name.from_labels)
STRINGS = st.binary(max_size=60).map(lambda s: bytes((len(s),)) + s)
DATA = {
    A: st.binary(min_size=4, max_size=4),
    AAAA: st.binary(min_size=16, max_size=16),
    MX: st.builds(rdata.mx, st.integers(0, 65535), NAMES),
    SOA: st.builds(rdata.soa, NAMES, NAMES, *(st.integers(0, 2**32 - 1),) * 5),
    SRV: st.builds(rdata.srv, *(st.integers(0, 65535),) * 3, NAMES),
    TXT: st.lists(STRINGS, min_size=1, max_size=3).map(b"".join),
    HINFO: st.tuples(STRINGS, STRINGS).map(b"".join),
    rdata.CAA: st.binary(max_size=30).map(lambda value: b"\x80\5issue" + value),
}


@given(st.sampled_from(HAND).flatmap(lambda type: st.tuples(st.just(type), DATA.get(type, NAMES))))
def test_there_and_back_as_dnspython_has_it(case: tuple[int, bytes]) -> None:
    type, wire = case
    text = rdata.to_text(type, wire)
    assert rdata.from_text(type, text) == wire
    other = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.RdataType.make(type), text)
    assert other.to_generic().data == wire
    theirs = dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.RdataType.make(type), wire, 0, len(wire)).to_text()
    assert rdata.from_text(type, theirs) == wire


@example(49, b"")
@given(st.integers(0, 65535), st.binary(max_size=40))
def test_any_data_can_be_shown(type: int, wire: bytes) -> None:
    assert rdata.to_text(type, wire)


@given(st.sampled_from([*HAND, DS, NAPTR, 65400]), st.text(max_size=40) | st.text('\\"();#@ .0a1', max_size=20))
def test_any_text_is_data_or_an_error(type: int, text: str) -> None:
    try:
        wire = rdata.from_text(type, text)
    except rdata.BadRdata:
        return
    assert rdata.from_text(type, rdata.to_text(type, wire)) == wire


def test_long_strings_are_cut_as_coredns_cuts_them() -> None:
    assert rdata.from_text(TXT, f'"{"x" * 300}" y') == b"\xff" + b"x" * 255 + b"\x2d" + b"x" * 45 + b"\1y"
    assert rdata.from_text(TXT, '""') == b"\0"
