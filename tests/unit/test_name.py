"""Domain names as wire bytes."""

from __future__ import annotations

import ipaddress

import dns.exception
import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns import name
from kdns.name import BadName

LABELS = st.lists(st.binary(min_size=1, max_size=12), max_size=8)
WIRE = LABELS.map(name.from_labels)


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        (".", b"\0"),
        ("", b"\0"),
        ("org.", b"\3org\0"),
        ("www.Example.ORG.", b"\3www\7example\3org\0"),
        ("a\\.b.c.", b"\3a.b\1c\0"),
        ("a\\\\.c.", b"\2a\\\1c\0"),
        ("\\000\\255.", b"\2\0\xff\0"),
        ("a\\032b.", b"\3a b\0"),
        ("é.", b"\2\xc3\xa9\0"),
        ("é\\..", b"\3\xc3\xa9.\0"),
        ("*.a.", b"\1*\1a\0"),
        ("_dns._udp.", b"\4_dns\4_udp\0"),
    ],
)
def test_from_text(text: str, wire: bytes) -> None:
    assert name.from_text(text) == wire


def test_origin() -> None:
    origin = name.from_text("example.org.")
    assert name.from_text("www", origin) == name.from_text("www.example.org.")
    assert name.from_text("w\\.w", origin) == b"\3w.w" + origin
    assert name.from_text("@", origin) == origin
    assert name.from_text("www.", origin) == b"\3www\0"
    assert name.from_text("www") == b"\3www\0"


def test_spell_keeps_the_letters() -> None:
    assert name.spell("WwW.a.") == b"\3WwW\1a\0"
    assert name.spell("W\\.W.a.") == b"\3W.W\1a\0"


@pytest.mark.parametrize(
    "text",
    [
        "..",
        ".a.",
        "a..b.",
        "a\\..b..",
        "a" * 64,
        "\\097" * 64,
        ".".join(["a" * 63] * 4),
        "a\\",
        "a\\25",
        "a\\256.",
        "a\\2x5.",
        "\ud800.",
        "\\.\ud800.",
    ],
)
def test_no_names(text: str) -> None:
    with pytest.raises(BadName):
        name.from_text(text)


def test_longest() -> None:
    text = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(name.from_text(text)) == name.MAX_NAME
    with pytest.raises(BadName, match="255"):
        name.from_text(text + "b")
    with pytest.raises(BadName, match="255"):
        name.from_text(text, name.from_text("a."))


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"\0", "."),
        (b"\3www\1a\0", "www.a."),
        (b"\4a.b\\\1c\0", "a\\.b\\\\.c."),
        (b"\3a b\0", "a\\032b."),
        (b"\4\0\x7f\xff;\0", "\\000\\127\\255\\;."),
        (b"\5_a-*/\0", "_a-*/."),
    ],
)
def test_to_text(wire: bytes, text: str) -> None:
    assert name.to_text(wire) == text


@given(WIRE)
def test_text_and_back(wire: bytes) -> None:
    text = name.to_text(wire)
    assert text.isascii()
    assert text.isprintable()
    assert name.spell(text) == wire
    assert dns.name.from_text(text).to_wire() == wire
    assert name.spell(dns.name.from_wire(wire, 0)[0].to_text()) == wire


@given(st.text(max_size=40) | st.text("a\\.09 ", max_size=20))
def test_any_text(text: str) -> None:
    try:
        wire = name.spell(text)
    except BadName:
        return
    assert name.spell(name.to_text(wire)) == wire
    assert len(wire) <= name.MAX_NAME


@given(LABELS)
def test_labels(labels: list[bytes]) -> None:
    wire = name.from_labels(labels)
    assert name.labels(wire) == labels
    assert name.count_labels(wire) == len(labels)
    assert list(name.ancestors(wire)) == [name.from_labels(labels[i:]) for i in range(len(labels) + 1)]
    assert name.parent(wire) == name.from_labels(labels[1:])


def test_from_labels() -> None:
    suffix = name.from_text("a.b.")
    assert name.from_labels([b"x"], suffix) == b"\1x" + suffix
    for labels in ([b""], [b"a" * 64], [b"a" * 63] * 4):
        with pytest.raises(BadName):
            name.from_labels(labels)


def test_is_under() -> None:
    zone = name.from_text("b.c.")
    assert name.is_under(zone, zone)
    assert name.is_under(name.from_text("a.b.c."), zone)
    assert name.is_under(zone, name.ROOT)
    assert not name.is_under(name.from_text("c."), zone)
    assert not name.is_under(name.from_text("a.xb.c."), zone)
    # The octets of the zone, but not at a label boundary.
    assert not name.is_under(b"\4x\1b\1c\0", b"\1b\1c\0")
    assert not name.is_under(b"\5x\1b\1c\0", b"\1b\1c\0")


@given(WIRE, WIRE)
def test_is_under_as_dnspython_has_it(one: bytes, two: bytes) -> None:
    for inner, outer in ((one.lower(), two.lower()), (name.from_labels(name.labels(one)[:4], two[:100]), two[:100])):
        try:
            parsed = dns.name.from_wire(inner, 0)[0], dns.name.from_wire(outer, 0)[0]
        except dns.exception.DNSException:
            continue
        assert name.is_under(inner.lower(), outer.lower()) == parsed[0].is_subdomain(parsed[1])


def test_above() -> None:
    zones = [name.from_text(zone) for zone in ("a.b.c.", "x.b.c.", "c.", ".")]
    assert name.above(zones) == {name.from_text(text) for text in ("b.c.", "c.", ".")}
    assert name.above([name.ROOT]) == name.above([]) == set()


def test_longest_zone() -> None:
    zones = [name.from_text(text) for text in (".", "org.", "example.org.", "other.org.")]
    assert name.longest_zone(name.from_text("www.example.org."), zones) == zones[2]
    assert name.longest_zone(name.from_text("org."), zones) == zones[1]
    assert name.longest_zone(name.from_text("net."), zones) == zones[0]
    assert name.longest_zone(name.from_text("net."), zones[1:]) is None
    assert name.longest_zone(name.from_text("net."), ()) is None


@given(st.ip_addresses())
def test_reverse(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    wire = name.reverse(address.packed)
    assert name.to_text(wire) == address.reverse_pointer + "."
    assert name.reverse_address(wire) == address.packed
    assert name.reverse_address(b"\1x" + wire) is None
    assert name.reverse_address(name.parent(wire)) is None


@pytest.mark.parametrize(
    "text",
    [
        "01.0.0.10.in-addr.arpa.",
        "256.0.0.10.in-addr.arpa.",
        "1000.0.0.10.in-addr.arpa.",
        "x.0.0.10.in-addr.arpa.",
        "-1.0.0.10.in-addr.arpa.",
        "in-addr.arpa.",
        "1.0.0.10.in-addr.arpa.org.",
        "1.0.0.10.",
        "g." + "0." * 31 + "ip6.arpa.",
        "\\032." * 2 + "0." * 30 + "ip6.arpa.",
        "0." * 31 + "ip6.arpa.",
        "00." + "0." * 30 + "ip6.arpa.",
        "0." * 33 + "ip6.arpa.",
        "\\200." + "0." * 31 + "ip6.arpa.",
        "ip6.arpa.",
    ],
)
def test_no_reverse_names(text: str) -> None:
    assert name.reverse_address(name.from_text(text)) is None


@pytest.mark.parametrize(
    ("text", "packed"),
    [("192.0.2.1", b"\xc0\0\2\1"), ("::1", bytes(15) + b"\1"), ("2001:db8::", b"\x20\x01\x0d\xb8" + bytes(12))],
)
def test_addresses(text: str, packed: bytes) -> None:
    assert name.pack_address(text) == packed
    assert name.address_text(packed) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "256.1.1.1",
        "1.2.3.4 ",
        ":",
        "fe80::1%eth0",
        "x",
        "1.2.3.4\0",
        "::1\0",
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(BadName):
        name.pack_address(text)
