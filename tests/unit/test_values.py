"""Values as a Corefile writes them."""

from __future__ import annotations

import pytest

from kdns import limits, name, values
from kdns.values import BadValue


def names(*texts: str) -> tuple[bytes, ...]:
    return tuple(name.from_text(text) for text in texts)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("1h5m", 3900),
        ("250ms", 0.25),
        ("0", 0),
        ("-0", 0),
        ("+5s", 5),
        ("-1.5s", -1.5),
        (".5s", 0.5),
        ("5.s", 5),
        ("1m0.5s", 60.5),
        ("3us", 3e-6),
        ("3µs", 3e-6),
        ("3μs", 3e-6),
        ("7ns", 7e-9),
        ("2540400h", 2540400 * 3600),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("30", 'time: missing unit in duration "30"'),
        ("1h5", 'time: missing unit in duration "1h5"'),
        ("3x", 'time: unknown unit "x" in duration "3x"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("", 'time: invalid duration ""'),
        ("s", 'time: invalid duration "s"'),
        (".s", 'time: invalid duration ".s"'),
        ("-", 'time: invalid duration "-"'),
        ("--1s", 'time: invalid duration "--1s"'),
        ("+-1s", 'time: invalid duration "+-1s"'),
        ("1s ", 'time: unknown unit "s " in duration "1s "'),
        ("2562048h", 'time: invalid duration "2562048h"'),
        ("٣s", 'time: invalid duration "٣s"'),
    ],
)
def test_no_durations(text: str, says: str) -> None:
    with pytest.raises(BadValue) as caught:
        values.duration(text)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (5, "5s"),
        (1.5, "1.5s"),
        (60, "1m0s"),
        (90.25, "1m30.25s"),
        (3900, "1h5m0s"),
        (3600, "1h0m0s"),
        (-5, "-5s"),
        (0.25, "250ms"),
        (0.0015, "1.5ms"),
        (1.5e-5, "15µs"),
        (7e-9, "7ns"),
        (5.001, "5.001s"),
        (0.9999999999, "1s"),
        (-1e-12, "0s"),
    ],
)
def test_durations_as_go_writes_them(seconds: float, text: str) -> None:
    assert values.duration_text(seconds) == text


def test_integers() -> None:
    assert values.integer("42") == 42
    assert values.integer("-1", -1, 0) == -1
    assert values.integer("+7", 7, 7) == 7
    for text, low, high in [
        ("", None, None),
        ("1.5", None, None),
        ("9" * 21, None, None),
        ("٣", None, None),
        ("0", 1, 2),
        ("3", 1, 2),
    ]:
        with pytest.raises(BadValue):
            values.integer(text, low, high)
    with pytest.raises(BadValue, match="less than 1"):
        values.integer("0", 1)
    with pytest.raises(BadValue, match="more than 1"):
        values.integer("2", None, 1)


@pytest.mark.parametrize(
    ("text", "zones"),
    [
        ("example.org", ["example.org."]),
        ("Example.ORG.", ["example.org."]),
        (".", ["."]),
        ("@", ["\\@."]),
        ("example.org:5353", ["example.org."]),
        ("tls://example.org", ["example.org."]),
        ("10.0.0.0/24", ["0.0.10.in-addr.arpa."]),
        ("10.0.0.9/24", ["0.0.10.in-addr.arpa."]),
        ("10.0.0.0/8", ["10.in-addr.arpa."]),
        ("0.0.0.0/0", ["in-addr.arpa."]),
        ("10.1.2.3/32", ["3.2.1.10.in-addr.arpa."]),
        ("10.0.0.0/15", ["0.10.in-addr.arpa.", "1.10.in-addr.arpa."]),
        ("10.0.0.0/24:5300", ["0.0.10.in-addr.arpa."]),
        ("2001:db8::/32", ["8.b.d.0.1.0.0.2.ip6.arpa."]),
        ("2001:db8::/31", ["8.b.d.0.1.0.0.2.ip6.arpa.", "9.b.d.0.1.0.0.2.ip6.arpa."]),
        ("10.0.0.0/24.", ["10.0.0.0/24."]),
        ("10.0.0.0/33", ["10.0.0.0/33."]),
        ("10.0.0.0/255.0.0.0", ["10.0.0.0/255.0.0.0."]),
    ],
)
def test_zones(text: str, zones: list[str]) -> None:
    assert values.expand_zone(text) == names(*zones)


def test_a_network_off_the_boundary_gives_many_zones() -> None:
    zones = values.expand_zone("10.0.0.0/17")
    assert len(zones) == 128
    assert zones[0] == name.from_text("0.0.10.in-addr.arpa")
    assert zones[127] == name.from_text("127.0.10.in-addr.arpa")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a..b", "zone is not a valid domain name: a..b"),
        (":53", "zone is not a valid domain name: "),
        ("a.org:", 'expecting data after last colon: "a.org:"'),
        ("a" * 64, "zone is not a valid domain name: " + "a" * 64),
        ("a." * 128, "specified zone is too long: 256 > 255"),
        ("::/0", "invalid CIDR ::/0"),
        ("0::/8", "invalid CIDR 0::/8"),
        ("a.org:65536", "address 65536: invalid port"),
        ("a.org:-1", "address -1: invalid port"),
        ("a.org:0", "address 0: invalid port"),
        ("a.org:" + "9" * 5000, f"address {'9' * 5000}: invalid port"),
    ],
)
def test_no_zones(text: str, says: str) -> None:
    with pytest.raises(BadValue) as caught:
        values.zone_and_port(text)
    assert str(caught.value) == says


def test_zone_lists() -> None:
    assert values.zones((), (b"\1x\0",)) == (b"\1x\0",)
    assert values.zones(("b", "10.0.0.0/15"), ()) == names("b", "0.10.in-addr.arpa", "1.10.in-addr.arpa")
    with pytest.raises(BadValue, match=f"over {limits.COREFILE_ZONES} zones"):
        values.zones(["10.0.0.0/9"] * 80, ())


def test_ports_of_keys() -> None:
    assert values.zone_and_port("a.org:5300") == (names("a.org"), 5300)
    assert values.zone_and_port("a.org:+5300") == (names("a.org"), 5300)
    assert values.zone_and_port("a.org") == (names("a.org"), None)
    assert values.zone_and_port("a:b") == (names("a:b"), None)
    assert values.strip_scheme("https3://a") == ("https3", "a")
    assert values.strip_scheme("foo://a") == ("dns", "foo://a")


def test_networks() -> None:
    assert str(values.cidr("10.1.2.3/8")) == "10.0.0.0/8"
    assert str(values.cidr("2001:db8::1/64")) == "2001:db8::/64"
    for text in (
        "10.0.0.0",
        "10.0.0.0/33",
        "10/8",
        "x/8",
        "10.0.0.0/255.0.0.0",
        "fe80::%1/64",
        "10.0.0.0/-1",
        "10.0.0.0/٣",
    ):
        with pytest.raises(BadValue, match="invalid CIDR address"):
            values.cidr(text)


def test_addresses() -> None:
    assert values.host_port("1.2.3.4", 53) == ("1.2.3.4", 53)
    assert values.host_port("1.2.3.4:5300", 53) == ("1.2.3.4", 5300)
    assert values.host_port("::1", 53) == ("::1", 53)
    assert values.host_port("[::1]", 53) == ("::1", 53)
    assert values.host_port("[fe80::1%lo]:5300", 53) == ("fe80::1%lo", 5300)
    for text in ("", "example.org", "1.2.3", "1.2.3.4:99999", "1.2.3.4:x", "[::1]x"):
        with pytest.raises(BadValue):
            values.host_port(text, 53)


def test_listen_addresses() -> None:
    assert values.listen_address(":8080") == ("", 8080)
    assert values.listen_address("localhost:0") == ("localhost", 0)
    assert values.listen_address("[::1]:8181") == ("::1", 8181)
    for text in ("8080", "localhost", ":x", ":65536", "::1:80", "[::1]", "[::1", "a[b:80"):
        with pytest.raises(BadValue, match="address"):
            values.listen_address(text)


def test_regexps_are_re2() -> None:
    compiled = values.regexp(r"^(?P<pod>[a-z]+)\.(x)?")
    match = compiled.search("web.example.")
    assert match is not None
    assert match.groupdict() == {"pod": "web"}
    assert match.groups() == ("web", None)
    # A pattern that a backtracking engine does not finish.
    assert values.regexp("(a*)*$").fullmatch("a" * 10_000 + "b") is None
    for text in ("a(", r"(a)\1", "(?=a)", "a{1001}"):
        with pytest.raises(BadValue, match="error parsing regexp"):
            values.regexp(text)
    values.regexp("a" * limits.REGEXP)
    with pytest.raises(BadValue, match="over 10000 characters"):
        values.regexp("a" * (limits.REGEXP + 1))
