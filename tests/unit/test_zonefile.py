from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns import limits, zonefile
from kdns.message import type_number
from kdns.name import from_text
from kdns.rdata import to_text
from kdns.zone import BadZone, Zone

ORIGIN = from_text("example.org.")
SOA = "@ 60 SOA ns hm 7 2 3 4 5\n"


class Files:
    """Files in memory; counts how many are open."""

    def __init__(self, **files: str | bytes) -> None:
        self.files = files
        self.open_now = 0

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[io.TextIOBase]:
        text = self.files.get(path.replace("/", "_"))
        if text is None:
            raise FileNotFoundError(2, "No such file or directory")
        data = text if isinstance(text, bytes) else text.encode()
        self.open_now += 1
        try:
            yield io.TextIOWrapper(io.BytesIO(data), "utf-8", zonefile.OCTETS)
        finally:
            self.open_now -= 1


def load(text: str | bytes, **files: str | bytes) -> zonefile.Loaded:
    store = Files(db=text, **files)
    try:
        return zonefile.load("db", ORIGIN, store.open)
    finally:
        assert store.open_now == 0


def zone(text: str | bytes, **files: str | bytes) -> Zone:
    loaded = load(text, **files).zone
    assert loaded is not None
    return loaded


def ask(held: Zone, name: str, kind: str = "A") -> list[str]:
    number = type_number(kind)
    assert number is not None
    found = held.lookup(from_text(name, ORIGIN), number)
    return [f"{record.ttl} {to_text(record.type, record.rdata)}" for record in found.answer]


def problem(text: str | bytes, **files: str | bytes) -> str:
    with pytest.raises(BadZone) as error:
        load(text, **files)
    return str(error.value)


def test_a_whole_zone() -> None:
    held = zone(
        """
        ; A comment, and lines without a record.

$TTL 1h
@           IN SOA  ns1 hostmaster (
                    2026112101  ; serial
                    2h 30m 2w   ; refresh, retry, expire
                    5m )        ; minimum
            IN NS   ns1
ns1         A 192.0.2.1
WWW 5m IN   A 192.0.2.2
    IN 10   A 192.0.2.3
            TXT "a;b" ( "over
lines" c\\;d ) ; done
"""
    )
    assert held.serial == 2026112101
    assert ask(held, "@", "SOA") == [
        "3600 ns1.example.org. hostmaster.example.org. 2026112101 7200 1800 1209600 300",
    ]
    assert ask(held, "@", "NS") == ["3600 ns1.example.org."]
    assert ask(held, "www") == ["300 192.0.2.2", "10 192.0.2.3"]
    assert ask(held, "www", "TXT") == ['3600 "a;b" "over\\010lines" "c;d"']


@pytest.mark.parametrize(
    ("text", "ttls"),
    [
        # A TTL counts for the records behind it ...
        (SOA + "a A 1.1.1.1\nb 70 A 1.1.1.1\nc A 1.1.1.1\n", {"a": 60, "b": 70, "c": 70}),
        # ... unless $TTL has been given, before or after.
        ("$TTL 9\n" + SOA + "a A 1.1.1.1\nb 70 A 1.1.1.1\nc A 1.1.1.1\n", {"a": 9, "b": 70, "c": 9}),
        (SOA + "a A 1.1.1.1\n$TTL 1m30s\nb 70 A 1.1.1.1\nc A 1.1.1.1\n", {"a": 60, "b": 70, "c": 90}),
        # Without any, behind a class and where the owner is left out, it is the one before, at first 0 (CoreDNS).
        ("@ IN SOA ns hm 1 2 3 4 5\na IN A 1.1.1.1\n", {"a": 0}),
        ("a IN A 1.1.1.1\n TXT x\n@ SOA ns hm 1 2 3 4 5\n".replace("@", "@ 5"), {"a": 0}),
        # RFC 2181 section 8.
        (SOA + "a 2147483648 A 1.1.1.1\nb 2147483647 A 1.1.1.1\n", {"a": 0, "b": 2147483647}),
    ],
)
def test_ttls(text: str, ttls: dict[str, int]) -> None:
    held = zone(text)
    for name, ttl in ttls.items():
        assert ask(held, name) == [f"{ttl} 1.1.1.1"]


def test_ttl_and_class_in_either_order() -> None:
    held = zone(SOA + "a 5 IN A 1.1.1.1\nb IN 5 A 1.1.1.1\nc CLASS1 5 TYPE1 \\# 4 01010101\nd in a 1.1.1.1")
    assert [ask(held, name) for name in "abcd"] == [["5 1.1.1.1"]] * 4


def test_origins() -> None:
    held = zone(
        SOA + "$origin sub\n@ A 1.1.1.1\na A 1.1.1.2\n$ORIGIN deep\n@ A 1.1.1.3\n$ORIGIN example.org.\nz A 1.1.1.4"
    )
    assert ask(held, "sub") == ["60 1.1.1.1"]
    assert ask(held, "a.sub") == ["60 1.1.1.2"]
    assert ask(held, "deep.sub") == ["60 1.1.1.3"]
    assert ask(held, "z") == ["60 1.1.1.4"]


def test_escapes_in_owners() -> None:
    held = zone(SOA + "a\\.b A 1.1.1.1\n\\065 A 1.1.1.2\nsp\\032ace A 1.1.1.3\n\\@ A 1.1.1.4\n")
    assert ask(held, "A\\046b") == ["60 1.1.1.1"]
    assert ask(held, "a") == ["60 1.1.1.2"]
    assert ask(held, "sp\\032ace") == ["60 1.1.1.3"]
    assert ask(held, "\\064") == ["60 1.1.1.4"]


def test_octets_that_are_not_utf8_mean_themselves() -> None:
    held = zone(SOA.encode() + b'a TXT "\xe9" "\xc3\xa9"\n')
    assert ask(held, "a", "TXT") == ['60 "\\233" "\\195\\169"']


def test_only_decoding_takes_octets() -> None:
    with pytest.raises(UnicodeEncodeError):
        "é".encode("ascii", zonefile.OCTETS)


# --- directives ------------------------------------------------------------------------------------------------------


def test_include_is_relative_to_its_file_and_leaves_everything_as_it_was() -> None:
    held = zone(
        SOA + "own A 1.1.1.1\n$INCLUDE deep/one\n A 1.1.1.2\n$INCLUDE deep/two sub\nlast A 1.1.1.3\n",
        deep_one="$TTL 5\ninc A 2.2.2.1\n$ORIGIN else\nother A 2.2.2.2\n$INCLUDE two\n",
        deep_two=" A 2.2.2.3\nmore A 2.2.2.4\n",
    )
    assert ask(held, "own") == ["60 1.1.1.1", "60 1.1.1.2", "60 2.2.2.3"]
    assert ask(held, "inc") == ["5 2.2.2.1"]
    assert ask(held, "other.else") == ["5 2.2.2.2", "5 2.2.2.3"]
    assert ask(held, "more.else") == ["5 2.2.2.4"]
    assert ask(held, "more.sub") == ["60 2.2.2.4"]
    assert ask(held, "last") == ["60 1.1.1.3"]


def test_generate() -> None:
    held = zone(
        SOA + "$GENERATE 1-3 a$ A 10.0.0.$\n$GENERATE 4-8/2 b${1,3} 7 IN CNAME c${-4,2,x}.$$.\\$\n"
        '$GENERATE 10-10 d TXT "${0,0,X}" ${0,4,o} $\n A 1.1.1.1\n'
        "$GENERATE 1-1 e\\.$ A 1.1.1.2\n"
    )
    assert [ask(held, f"a{n}") for n in range(5)] == [[], *([f"3600 10.0.0.{n}"] for n in (1, 2, 3)), []]
    assert [ask(held, f"b00{n}", "CNAME") for n in (5, 7, 9)] == [
        ["7 c00.\\$.\\$.example.org."],
        ["7 c02.\\$.\\$.example.org."],
        ["7 c04.\\$.\\$.example.org."],
    ]
    assert ask(held, "d", "TXT") == ['3600 "A" "0012" "10"']
    assert ask(held, "e\\.1") == ["3600 1.1.1.2"]
    # The owner behind it is the one before it.
    assert ask(held, "@") == ["60 1.1.1.1"]


@pytest.mark.parametrize("range_", ["3-1", "1", "a-b", "1-2/0", "0-65536", "1-2/x", "-1-2", "1-99999999999"])
def test_bad_ranges(range_: str) -> None:
    assert problem(SOA + f"$GENERATE {range_} a$ A 10.0.0.$\n").startswith("db:2: bad $GENERATE range")


@pytest.mark.parametrize(
    "modifier", ["{}", "{x}", "{1,x}", "{1,2,z}", "{1,2,d,4}", "{1", "{-2}", "{2147483647}", "{0,256}"]
)
def test_bad_modifiers(modifier: str) -> None:
    assert problem(SOA + f"$GENERATE 1-2 a${modifier} A 10.0.0.$\n") == "db:2: bad $GENERATE modifier"


def test_the_longest_range() -> None:
    assert ask(zone(SOA + "$GENERATE 1-65536 a$ A 1.1.1.1\n"), "a65536") == ["3600 1.1.1.1"]


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "db: has no SOA record for zone example.org."),
        ("www 60 A 1.1.1.1\n", "db: has no SOA record for zone example.org."),
        ("@ SOA ns hm 1 2 3 4 5\n", "db:1: no TTL here, before or by $TTL"),
        (SOA + "www A 1.1.1.1 x\n", "db:2: A '1.1.1.1 x': "),
        (SOA + "\n\nwww A (\n1.1.1.1 x\n)\n", "db:4: A '1.1.1.1 x': "),
        (SOA + "www FOO x\n", "db:2: 'FOO' is not a type, class or TTL"),
        (SOA + "www 1 2 A 1.1.1.1\n", "db:2: '2' is not a type, class or TTL"),
        (SOA + "www IN IN A 1.1.1.1\n", "db:2: 'IN' is not a type, class or TTL"),
        (SOA + "www\n", "db:2: a record without a type"),
        (SOA + "www 5 IN\n", "db:2: a record without a type"),
        (SOA + "www A\n", "db:2: A '': "),
        (SOA + "www..x A 1.1.1.1\n", "db:2: 'www..x' is not a domain name"),
        (SOA + '"www" A 1.1.1.1\n', 'db:2: a name in quotes: "www"'),
        (SOA + "www 5x A 1.1.1.1\n", "db:2: '5x' is not a time"),
        (SOA + "www 4294967296 A 1.1.1.1\n", "db:2: TTL 4294967296 does not fit into 32 bits"),
        (SOA + "www A ( 1.1.1.1\n", "db:2: the file ends within parentheses or quotes"),
        (SOA + '\nwww TXT "abc\n', "db:3: the file ends within parentheses or quotes"),
        (SOA + "www A 1.1.1.1 )\n", "db:2: ')' without '('"),
        (SOA + "@ NSEC3PARAM 1 0 0 -\n", "db:2: NSEC3 zones cannot be served"),
        (SOA + "$TTL\n", "db:2: wrong number of words behind $TTL"),
        (SOA + "$TTL 1 2\n", "db:2: wrong number of words behind $TTL"),
        (SOA + "$TTL x\n", "db:2: 'x' is not a time"),
        (SOA + "$ORIGIN a..b\n", "db:2: 'a..b' is not a domain name"),
        (SOA + "$GENERATE 1-2 a\n", "db:2: wrong number of words behind $GENERATE"),
        (SOA + "$INCLUDE nothere\n", "db:2: cannot read nothere: No such file or directory"),
        (SOA + "$INCLUDE part\n", "part:1: 'FOO' is not a type, class or TTL"),
        (SOA + "$INCLUDE db\n", "db:2: $INCLUDE nested over 7 deep"),
        (SOA + "$INCLUDE part a..b\n", "db:2: 'a..b' is not a domain name"),
    ],
)
def test_errors_say_where(text: str, says: str) -> None:
    assert problem(text, part="www FOO x\n").startswith(says)


def test_a_missing_file_is_an_oserror() -> None:
    with pytest.raises(FileNotFoundError):
        zonefile.load("db", ORIGIN, Files().open)


def test_what_is_not_in_the_zone_is_left_out_with_a_warning() -> None:
    loaded = load(SOA + "a A 1.1.1.1\nb.test. A 1.1.1.2\nc.test. A 1.1.1.3\na CH TXT x\n")
    assert loaded.warning == "3 records outside zone example.org. or class IN left out, the first at db:3"
    assert loaded.zone is not None
    assert ask(loaded.zone, "a", "TXT") == []
    assert load(SOA).warning == ""


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_too_much_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ZONE_TEXT", 100)
    assert problem(SOA + "; x\n" * 100).endswith("over 100 characters in all")
    assert problem(SOA + "$INCLUDE part\n", part="; x\n" * 100).startswith("part:")
    assert problem(SOA + "$GENERATE 1-9 a$ A 10.0.0.$\n") == "db:2: over 100 characters in all"


def test_too_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ZONE_RECORDS", 3)
    zone(SOA + "a A 1.1.1.1\nb A 1.1.1.1\n")
    assert problem(SOA + "a A 1.1.1.1\nb A 1.1.1.1\nc A 1.1.1.1\n") == "db:4: over 3 records"
    assert problem(SOA + "$GENERATE 1-9 a$ A 10.0.0.$\n") == "db:2: over 3 records"


def test_too_long_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ZONE_ENTRY", 50)
    for long in (
        "a A " + " " * 50 + "1.1.1.1\n",
        "a A (\n" + "\n" * 50 + "1.1.1.1 )\n",
        'a TXT "' + "x\n" * 30 + '"\n',
    ):
        assert problem(SOA + long) == "db:2: an entry of over 50 characters"


# --- reading again ---------------------------------------------------------------------------------------------------


def test_reading_ends_at_a_known_serial() -> None:
    store = Files(db=SOA + "this is not read\n")
    assert zonefile.load("db", ORIGIN, store.open, known_serial=7) == zonefile.Loaded(None, "")
    assert store.open_now == 0
    with pytest.raises(BadZone):
        zonefile.load("db", ORIGIN, store.open, known_serial=6)


def test_a_second_soa_does_not_end_it() -> None:
    store = Files(db=SOA.replace("7", "8") + SOA)
    loaded = zonefile.load("db", ORIGIN, store.open, known_serial=7)
    assert loaded.zone is not None
    assert loaded.zone.serial == 7


def test_others_get_their_turn() -> None:
    pauses: list[None] = []
    store = Files(db=SOA + "$GENERATE 1-1000 a$ A 1.1.1.1\n")
    zonefile.load("db", ORIGIN, store.open, pause=lambda: pauses.append(None))
    assert len(pauses) == 16


def test_the_sample_zone() -> None:
    text = (Path(__file__).parents[2] / "examples" / "db.example.org").read_text()
    loaded = load(text)
    assert loaded.warning == ""
    assert loaded.zone is not None
    assert ask(loaded.zone, "node-9") == ["300 192.0.2.109"]
    assert ask(loaded.zone, "x.y.apps") == ["3600 192.0.2.90"]
    assert ask(loaded.zone, "www", "HTTPS") == ['300 1 . alpn="h2,h3"']


@given(st.text(st.sampled_from(' \t\n"();\\$@a.1AN'), max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(BadZone):
        load(SOA + text)


@given(st.binary(max_size=60))
def test_no_octets_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(BadZone):
        load(SOA.encode() + data)
