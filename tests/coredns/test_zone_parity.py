"""The same zone and hosts files for kdns and the real CoreDNS: the same answers to systematic and to random questions.

What differs on purpose is asserted to do so, with the reason beside it; nothing else does.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import dns.dnssec
import dns.flags
import dns.message
import dns.query
import dns.zone
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from kdns import zonefile
from kdns.message import AA, AD, RA, TC, Edns, Record, rcode_text, type_number, type_text
from kdns.name import ancestors, from_text, is_under, to_text
from kdns.rdata import to_text as rdata_text
from kdns.wire import FormatError, pack_query, parse_reply
from kdns.zone import BadZone
from tests.support import Kdns, free_port

pytestmark = pytest.mark.skipif(shutil.which("coredns") is None, reason="coredns is not on PATH")

Answer: TypeAlias = tuple[str, int, list[str], list[str], list[str]]

TYPES = "A AAAA CNAME NS SOA MX TXT SRV PTR DNAME DS HTTPS SVCB CAA ANY RRSIG NSEC AXFR TYPE1000 TYPE65280".split()

ORG = r"""
$ORIGIN example.org.
$TTL 300
@ IN SOA NS1.example.org. hostmaster 7 1h 10m 1d 60
@ NS NS1
@ NS ns.Other.net.
ns1 A 192.0.2.1
ns1 AAAA 2001:db8::1
WWW 600 A 192.0.2.10
www A 192.0.2.11
alias CNAME www
Alias2 CNAME Alias
dangling CNAME nothere
ext CNAME www.example.net.
extnx CNAME nx.example.net.
extent CNAME ent.example.net.
extref CNAME www.elsewhere.test.
extback CNAME back.example.net.
loop1 CNAME loop2
loop2 CNAME loop1
selfloop CNAME selfloop
c1 CNAME c2
c2 CNAME c3
c3 CNAME c4
c4 CNAME c5
c5 CNAME c6
c6 CNAME c7
c7 CNAME c8
c8 CNAME c9
c9 CNAME c10
c10 CNAME c11
c11 CNAME c12
c12 A 192.0.2.12
*.wild A 192.0.2.20
*.wild TXT "wild"
*.wild MX 10 ns1
a.b.wild A 192.0.2.21
towild CNAME foo.wild
*.wc CNAME www
*.wcloop CNAME x.wcloop
*.wcx CNAME y.wild
deep.ent.tree A 192.0.2.30
toent CNAME ent.tree
todeleg CNAME host.sub
tocut CNAME sub
toapex CNAME @
sub NS ns.sub
sub NS ns1
sub NS ns.outside.net.
sub DS 12345 8 2 0011223344556677889900112233445566778899001122334455667788990011
ns.sub A 192.0.2.40
ns.sub AAAA 2001:db8::40
www.sub A 192.0.2.41
deeper.sub NS ns.deeper.sub
noglue NS ns.outside.net.
*.below.noglue A 192.0.2.42
dn DNAME Target.example.org.
dn TXT "at the dname"
x.dn A 192.0.2.50
a.target A 192.0.2.51
c.target CNAME a.target
dext DNAME example.net.
dloop DNAME dloop.example.org.
todn CNAME a.dn
dcut DNAME sub.example.org.
dwild DNAME wild.example.org.
mx MX 10 ns1
mx MX 20 NS1.Example.org.
mx MX 20 www
mx MX 30 alias
_s._tcp SRV 0 0 80 WWW
_s._tcp SRV 0 0 80 ns1
_s._udp SRV 0 0 80 www.example.net.
svc HTTPS 1 www alpn=h2
svcself HTTPS 1 . alpn=h2
svcb SVCB 1 ns1
svcalias HTTPS 0 ns1
txt TXT "a" "b"
txt TXT unquoted words ; and a comment
txt TXT ( "over"
  "lines" ) 
dup A 192.0.2.9
dup A 192.0.2.9
multi CNAME www
multi CNAME ns1
cnameother CNAME www
cnameother A 192.0.2.8
other.test. A 192.0.2.66
$GENERATE 1-3 g$ A 10.0.0.$
$GENERATE 2-8/2 h${0,3} 77 A 10.0.1.${10}
$GENERATE 10-11 x${0,4,x} TXT "$$ \$ ${1,2,X}"
*.d NS ns1
esc\.aped A 192.0.2.77
dec\046imal A 192.0.2.78
caa CAA 0 issue "ca.example"
typed TYPE65280 \# 4 0a000001
t A \# 4 0a000002
*.w2 A 192.0.2.91
*.x.w2 A 192.0.2.92
y.*.w3 A 192.0.2.93
10.in-addr PTR Some.Host.example.org.
ttl0 0 A 192.0.2.94
in IN 60 A 192.0.2.95
$TTL 2m
late A 192.0.2.96
$ORIGIN under.example.org.
@ A 192.0.2.97
here 5 IN A 192.0.2.98
     IN TXT "the same owner"
"""

NAMES = """
@ www WWW wWw alias alias2 dangling ext extnx extent extref extback loop1 selfloop c1 c2 c3 c12 wild x.wild X.WILD
y.x.wild b.wild a.b.wild c.b.wild *.wild x.*.wild towild x.wc wc y.x.wc x.wcloop x.wcx tree ent.tree deep.ent.tree
x.ent.tree x.deep.ent.tree toent todeleg tocut toapex sub www.sub ns.sub x.sub deeper.sub x.deeper.sub noglue
x.noglue below.noglue x.below.noglue dn a.dn x.dn b.dn c.dn z.y.dn a.target target c.target www.dext nx.dext dext
dloop x.dloop todn dcut a.dcut sub.dcut x.dwild b.dwild mx _s._tcp _tcp _s._udp svc svcself svcb svcalias txt dup
multi cnameother g1 g4 h002 h004 h003 x000a x000b d x.d *.d esc\\.aped esc.aped dec\\.imal dec\\046imal caa typed t
x.w2 x.x.w2 y.x.w2 *.w2 q.w3 y.q.w3 y.*.w3 w3 10.in-addr in-addr ttl0 in late under here.under nx x.nx a.b.c.d.e.f
nx.example.net. www.example.net. example.net. . org. other.test. test.
""".split()

NET = """
@ 60 IN SOA ns hm 1 2 3 4 5
www A 198.51.100.1
deep.ent A 198.51.100.2
back CNAME www.example.org.
"""


class Pair:
    """Both servers with the same configuration."""

    def __init__(self, ports: tuple[int, int], directory: Path) -> None:
        self._ports, self.directory = ports, directory
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(5)
        self._id = 0

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, name: str, kind: str, klass: int = 1, do: bool = False) -> tuple[Answer, Answer]:
        """(CoreDNS's, kdns's)"""
        core, ours = (self._ask(port, name, kind, klass, do) for port in self._ports)
        return core, ours

    def ask_kdns(self, name: str, kind: str) -> Answer:
        """kdns alone."""
        return self._ask(self._ports[1], name, kind, 1, False)

    def _ask(self, port: int, name: str, kind: str, klass: int, do: bool) -> Answer:
        self._id = self._id % 65535 + 1
        number = type_number(kind)
        assert number is not None
        folded = from_text(name)
        spelling = folded.upper() if name.isupper() else folded
        query = pack_query(self._id, 0, spelling, number, klass, Edns(4096, do))
        self._socket.sendto(query, ("127.0.0.1", port))
        while True:
            packet = self._socket.recv(65535)
            if packet[:2] == query[:2]:
                break
        try:
            message = parse_reply(packet)
        except FormatError as error:
            return f"malformed: {error}", 0, [], [], []
        return (
            rcode_text(message.rcode),
            message.flags & (AA | TC | RA | AD),
            _lines(message.answer),
            _lines(message.authority),
            _lines(message.additional),
        )


def _lines(records: Iterable[Record]) -> list[str]:
    return [
        f"{to_text(r.owner.lower())} {r.ttl} {type_text(r.type)} {rdata_text(r.type, r.rdata).lower()}" for r in records
    ]


@contextlib.contextmanager
def serving(directory: Path, corefile: str) -> Iterator[Pair]:
    """``corefile`` with ``PORT`` where the port goes; the working directory of both servers is ``directory``."""
    ports = free_port(), free_port()
    for name, port in zip(("coredns", "kdns"), ports, strict=True):
        (directory / f"Corefile.{name}").write_text(corefile.replace("PORT", str(port)))
    with open(directory / "coredns.log", "wb") as log:
        core = subprocess.Popen(
            ["coredns", "-conf", "Corefile.coredns"], cwd=directory, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        with Kdns("Corefile.kdns", cwd=directory), Pair(ports, directory) as pair:
            deadline = time.monotonic() + 10
            while "CoreDNS-" not in (directory / "coredns.log").read_text():
                assert time.monotonic() < deadline and core.poll() is None, (directory / "coredns.log").read_text()
                time.sleep(0.02)
            yield pair
    finally:
        core.kill()
        core.wait()


def empty_non_terminals(origin: str, owners: Iterable[str]) -> set[bytes]:
    """Names in the zone that exist only because names below them do."""
    apex = from_text(origin)
    names = {from_text(owner, apex) for owner in owners}
    return {above for name in names for above in ancestors(name) if is_under(above, apex)} - names


def wildcard_at_empty(empty: set[bytes], name: str, ours: Answer) -> bool:
    """CoreDNS lets a wildcard answer for an empty non-terminal, which exists (RFC 4592 section 2.2.2)."""
    targets = [line.rsplit(" ", 1)[1] for line in ours[2] if " CNAME " in line]
    return any(from_text(text) in empty for text in (name, *targets))


def test_zones(tmp_path: Path) -> None:
    (tmp_path / "db.org").write_text(ORG)
    (tmp_path / "db.net").write_text(NET)
    corefile = """
    .:PORT {
        bind 127.0.0.1
        file db.org example.org
    }
    example.net:PORT {
        bind 127.0.0.1
        file db.net
    }
    """
    empty = empty_non_terminals("example.org.", ("a.b.wild", "*.x.w2"))
    met = set()
    with serving(tmp_path, corefile) as pair:
        for word in NAMES:
            name = word if word.endswith(".") else "example.org." if word == "@" else f"{word}.example.org."
            name = name.upper() if word.isupper() else name
            for kind in TYPES:
                core, ours = pair.ask(name, kind)
                if core != ours:
                    assert wildcard_at_empty(empty, name, ours), (name, kind, core, ours)
                    met.add(word)
        assert met == {"b.wild", "b.dwild", "x.w2"}


def _random_zone(source: random.Random, origin: str) -> tuple[str, set[bytes]]:
    """A small zone over few labels, so that everything meets everything; and its empty non-terminals."""

    def name(outside: float = 0.0) -> str:
        if source.random() < outside:
            return source.choice(("ext.test.", "a.z1.test.", "nx.z0.test.", "b.z2.test.", "c.a.z3.test."))
        return ".".join(source.choice("ab*c") for _ in range(source.choice((1, 1, 2, 2, 3)))) + "." + origin

    data = {
        "A": lambda: f"10.0.0.{source.randint(1, 9)}",
        "AAAA": lambda: f"2001:db8::{source.randint(1, 9)}",
        "TXT": lambda: '"t"',
        "CNAME": lambda: name(0.2),
        "DNAME": lambda: name(0.2).replace("*.", ""),
        "NS": lambda: name(0.2),
        "MX": lambda: "10 " + name(0.1),
        "SRV": lambda: "0 0 80 " + name(0.1),
        "DS": lambda: "1 8 2 " + "00" * 32,
    }
    lines = [f"$TTL {source.choice((30, 300))}", f"{origin} IN SOA ns.{origin} hm.{origin} 1 2 3 4 5"]
    lines += [f"{origin} NS ns.{origin}"] * (source.random() < 0.7)
    lines += [f"ns.{origin} A 1.1.1.1"] * (source.random() < 0.5)
    lines += [f"{origin} A 1.1.1.2"] * (source.random() < 0.3)
    for _ in range(source.randint(2, 9)):
        kind = source.choice(("A", "CNAME", *data))
        lines.append(f"{name()} {kind} {data[kind]()}")
    # What stands below a DNAME is not there (RFC 6672 section 2.4); where a CNAME leads to it, CoreDNS takes it.
    renamed = tuple("." + line.split()[0] for line in lines if " DNAME " in line)
    lines = [line for line in lines if not line.split()[0].endswith(renamed)]
    return "\n".join(lines) + "\n", empty_non_terminals(origin, (line.split()[0] for line in lines[1:]))


@pytest.mark.parametrize("seed", [1, 2])
def test_random_zones(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    zones = [f"z{number}.test." for number in range(12)]
    empty: set[bytes] = set()
    for origin in zones:
        text, found = _random_zone(source, origin)
        empty |= found
        (tmp_path / origin).write_text(text)
    directives = "\n".join(f"file {origin} {origin}" for origin in zones)
    labels = [
        "",
        *"abcx*",
        *(f"{x}.{y}" for x in "abx*" for y in "abcx*"),
        *("a.b.a", "x.*.b", "c.a.c", "*.c.*", "x.x.x"),
    ]
    with serving(tmp_path, f".:PORT {{\nbind 127.0.0.1\n{directives}\n}}\n") as pair:
        for origin in zones:
            for label in labels:
                name = f"{label}.{origin}" if label else origin
                for kind in ("A", "CNAME", "NS", "MX", "SRV", "TXT", "DNAME", "DS", "SOA", "ANY"):
                    core, ours = pair.ask(name, kind)
                    if core != ours:
                        why = f"{name} {kind}\n{core}\n{ours}\n{(tmp_path / origin).read_text()}"
                        assert wildcard_at_empty(empty, name, ours), why


FALL = """
.:PORT {
    bind 127.0.0.1
    file db.org example.org {
        fallthrough FALL
    }
    file db.net example.net
    file missing example.com
    whoami
}
"""


@pytest.mark.parametrize("zones", ["", "sub.example.org nx.example.org", "example.net"])
def test_what_falls_through(tmp_path: Path, zones: str) -> None:
    (tmp_path / "db.org").write_text(ORG)
    (tmp_path / "db.net").write_text(NET)
    names = [
        "@",
        "www",
        "nx",
        "x.nx",
        "ent.tree",
        "tree",
        "x.sub",
        "b.c.wild",
        "wild",
        "dangling",
        "toent",
        "b.dn",
        "x.d",
    ]
    with serving(tmp_path, FALL.replace("FALL", zones)) as pair:
        for word in (
            *names,
            "example.net.",
            "nx.example.net.",
            "ent.example.net.",
            "example.com.",
            "a.example.com.",
            ".",
        ):
            name = word if word.endswith(".") else "example.org." if word == "@" else f"{word}.example.org."
            for kind in ("A", "TXT", "NS", "SOA", "AXFR", "ANY"):
                core, ours = pair.ask(name, kind)
                assert core == ours, (name, kind)
        for klass in (3, 4, 255):
            core, ours = pair.ask("www.example.org.", "A", klass)
            assert core == ours, klass


HOSTS = """
# comment
10.0.0.1 a.example.org A.Example.ORG # dup
10.0.0.2\ta.example.org  b.example.org
2001:db8::1 a.example.org six.example.org
10.0.0.9 *.wild.example.org
2001:db8::9 *.wild.example.org
10.0.0.10 x.wild.example.org
::ffff:10.0.0.11 mapped.example.org
fe80::1%eth0 zone.example.org
10.0.0.12 outside.test
010.0.0.14 lead.example.org
10.0.0.15
10.0.0.16 @ *.any.example.org
300.1.1.1 nope.example.org
10.0.0.17 example.org
10.0.0.18 *
10.0.0.20 dup.example.org dup.example.org
10.0.0.22 trailing.example.org.
10.0.0.23 *.*.deep.example.org
10.0.0.24 foo.*.mid.example.org
10.0.2.1 q.mix.example.org
"""

HOSTS_COREFILE = """
.:PORT {
    bind 127.0.0.1
    hosts hosts example.org {
        10.0.1.1 a.example.org
        10.0.1.2 inline.example.org y.wild.example.org
        10.0.1.3 *.mix.example.org
        ttl 77
        OPTIONS
    }
    LAST
}
"""


@pytest.mark.parametrize(
    "options",
    [
        "",
        "fallthrough",
        "fallthrough a.example.org x.wild.example.org nx.example.org in-addr.arpa",
        "fallthrough\nfallthrough_unsupported",
        "no_reverse",
    ],
)
@pytest.mark.parametrize("last", ["", "whoami"])
def test_hosts(tmp_path: Path, options: str, last: str) -> None:
    (tmp_path / "hosts").write_text(HOSTS)
    labels = "a A b six wild x.wild y.wild z.wild zz.z.wild *.wild mapped zone lead any x.any nope dup trailing".split()
    labels += "deep x.y.deep x.*.deep foo.*.mid foo.x.mid q.mix r.mix inline nx".split()
    names = [f"{label}.example.org." for label in labels]
    names += ["example.org.", "org.", ".", "outside.test.", "A.EXAMPLE.ORG.", "arpa.", "in-addr.arpa."]
    names += [f"{n}.0.0.10.in-addr.arpa." for n in (1, 2, 9, 11, 12, 14, 16, 20, 23)]
    names += ["1.1.0.10.in-addr.arpa.", "0.10.in-addr.arpa.", "x.1.0.0.10.in-addr.arpa.", "01.0.0.10.in-addr.arpa."]
    names.append("1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa.")
    names.append("b.0.0.0.0.0.a.0.f.f.f.f." + "0." * 20 + "ip6.arpa.")
    corefile = HOSTS_COREFILE.replace("OPTIONS", options).replace("LAST", last)
    with serving(tmp_path, corefile) as pair:
        for name in names:
            for kind in ("A", "AAAA", "PTR", "TXT", "SOA", "ANY", "HTTPS"):
                core, ours = pair.ask(name, kind)
                assert core == ours, (name, kind)


SOA = "@ 60 SOA ns hm 1 2 3 4 5\n"

READABLE = [
    "@ IN SOA ns hm 1 2 3 4 5\nwww IN A 192.0.2.1\n",
    SOA + "www A 192.0.2.1\na 70 A 192.0.2.2\nb A 192.0.2.3\n",
    SOA + " A 192.0.2.1\na 50 A 192.0.2.2\nb IN A 192.0.2.3\n",
    "$TTL 1h30m\n@ SOA ns hm 1 1d 2W 3h 1m30s\nwww IN 20 A 192.0.2.1\na 20 IN A 192.0.2.2\nb A 192.0.2.3\n",
    "$ttl 7\n" + SOA + "$Origin sub\n@ A 192.0.2.1\nb A 192.0.2.2\n$ORIGIN deep\n@ A 192.0.2.3\n",
    SOA + "@ 88 SOA ns2 hm2 10 2 3 4 5\nwww A 192.0.2.2\n",
    SOA + 'www a 192.0.2.1 ; comment\nA\tTXT\t( "x" ; one\n y ) ; two\n; three\n\n   ; four\nb A (\n 192.0.2.2\n )\n',
    "@ 60 SOA ( ns hm ; begins\n 1 2 3\n 4 5 )\nwww A 192.0.2.1",
    SOA + 'www TXT "a;b" c\\;d "e\\"f" g\\041h ( i )\na TXT ""\nb TXT "two  spaces" "(" ")"\n',
    SOA + "www CLASS1 TYPE1 \\# 4 c0000201\na TYPE65400 \\# 0\nb IN TYPE28 \\# 16 " + "00" * 15 + "01\n",
    SOA + "$INCLUDE part\nwww A 192.0.2.1\n$INCLUDE part sub\na A 192.0.2.9\n",
    SOA + "$INCLUDE deep/er\n",
    SOA
    + "$GENERATE 0-2 a$ A 10.0.0.$\n$GENERATE 1-1 b 9 IN CNAME www${2,3}\n$GENERATE 7-7 c$ 10 TXT ${0,4,o} $$ \\$\n",
    SOA + 'www PTR UPPER.test.\na MX 10 UPPER.test.\nb SRV 1 2 3 UPPER.test.\nc NAPTR 1 2 "s" "x" "" UPPER.test.\n',
    SOA + "www\\.x A 192.0.2.1\na\\032b A 192.0.2.2\n\\065 A 192.0.2.3\n",
    SOA + "www CNAME a\na A 192.0.2.1\nwww A 192.0.2.2\nb.sub A 192.0.2.3\nother.test. A 192.0.2.4\n",
    SOA + "www A 192.0.2.1\r\na A 192.0.2.2\r\n",
    SOA + "@ NS ns\n@ NS ns\nwww A 192.0.2.1\nwww A 192.0.2.1\n",
]

UNREADABLE = [
    "",
    "www 60 A 192.0.2.1\n",
    "@ SOA ns hm 1 2 3 4 5\n",
    "@ IN SOA ns hm 1 2 3 4 5\nwww A 192.0.2.1\n",
    SOA + "www A 192.0.2.1 trailing\n",
    SOA + "www FOO 192.0.2.1\n",
    SOA + "www 10 20 A 192.0.2.1\n",
    SOA + "www IN IN A 192.0.2.1\n",
    SOA + "www A 300.0.2.1\n",
    SOA + "www AAAA 192.0.2.1\n",
    SOA + "www..x A 192.0.2.1\n",
    SOA + "x" * 64 + " A 192.0.2.1\n",
    SOA + "$INCLUDE nothere\n",
    SOA + "$INCLUDE loop\n",
    SOA + "@ NSEC3PARAM 1 0 0 -\n",
    SOA + "www A ( 192.0.2.1\nb A 192.0.2.2\n",
    SOA + "www A 192.0.2.1 )\n",
    SOA + "\twww 77 A 192.0.2.1\n",
    SOA + '"www" A 192.0.2.1\n',
    SOA + "$TTL\n",
    SOA + "$TTL x\n",
    SOA + "$ORIGIN\n",
    SOA + "$GENERATE 3-1 a$ A 10.0.0.$\n",
    SOA + "$GENERATE 0-65536 a$ A 10.0.0.1\n",
    SOA + "$GENERATE 1-2 a${0,3,z} A 10.0.0.$\n",
    SOA + "$GENERATE 1-2 a${x} A 10.0.0.$\n",
    SOA + "$GENERATE 1-2 $GENERATE 1-2 a$ A 10.0.0.$\n",
    SOA + "www MX ten www\n",
    SOA + "www 99999999999 A 192.0.2.1\n",
]

PARTS = {
    "part": "inc A 192.0.2.7\n$TTL 5\ninc2 A 192.0.2.8\n$ORIGIN else\ninc3 A 192.0.2.9\n",
    "deep/er": "$INCLUDE ../part\n$INCLUDE beside under\n",
    "deep/beside": "www A 192.0.2.6\n",
    "loop": "$INCLUDE loop\n",
}


def _write_parts(directory: Path) -> None:
    (directory / "deep").mkdir()
    for name, text in PARTS.items():
        (directory / name).write_text(text)


def test_master_files_that_both_read(tmp_path: Path) -> None:
    _write_parts(tmp_path)
    for number, text in enumerate(READABLE):
        (tmp_path / f"db.{number}").write_bytes(text.encode())
    directives = "\n".join(f"file db.{number} r{number}.test" for number in range(len(READABLE)))
    labels = (
        "www a b c sub b.sub a.sub b.a b.a.b inc inc2 inc3 inc.sub inc2.sub inc3.else inc3.else.sub under www.under"
    )
    labels += " deep.sub a0 a2 a3 c7 www\\.x a\\032b nx"
    with serving(tmp_path, f".:PORT {{\nbind 127.0.0.1\n{directives}\n}}\n") as pair:
        for number, text in enumerate(READABLE):
            zone = f"r{number}.test."
            for name in (zone, *(f"{label}.{zone}" for label in labels.split())):
                for kind in ("A", "AAAA", "SOA", "NS", "TXT", "CNAME", "PTR", "MX", "SRV", "NAPTR", "TYPE65400"):
                    core, ours = pair.ask(name, kind)
                    assert core == ours, (name, kind, text)


@pytest.mark.parametrize("text", UNREADABLE)
def test_master_files_that_both_refuse(tmp_path: Path, text: str) -> None:
    _write_parts(tmp_path)
    (tmp_path / "db").write_text(text)
    (tmp_path / "Corefile").write_text(f"example.org:{free_port()} {{\nbind 127.0.0.1\nfile db\n}}\n")
    core = subprocess.run(["coredns", "-conf", "Corefile"], cwd=tmp_path, capture_output=True, timeout=10)
    assert core.returncode == 1

    def open_file(path: str) -> contextlib.AbstractContextManager[Iterable[str]]:
        return open(tmp_path / path)

    with pytest.raises(BadZone):
        zonefile.load("db", from_text("example.org."), open_file)


SIGNED = """
$TTL 300
@ SOA ns hm 1 2 3 4 5
@ NS ns
@ MX 10 ns
ns A 192.0.2.1
www A 192.0.2.2
www AAAA 2001:db8::2
alias CNAME www
dang CNAME nothere
*.wild A 192.0.2.3
*.wild TXT "x"
towild CNAME a.wild
*.wc CNAME www
a.b.ent A 192.0.2.4
sub NS ns.sub
sub DS 1 8 2 0000000000000000000000000000000000000000000000000000000000000000
ns.sub A 192.0.2.5
unsigned NS ns.unsigned
ns.unsigned A 192.0.2.6
dn DNAME www
"""


@pytest.fixture
def anchor(tmp_path: Path) -> str:
    """A signed zone in the file ``db``; the DS text of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    dnskey = dns.dnssec.make_dnskey(key.public_key(), dns.dnssec.Algorithm.ECDSAP256SHA256)
    zone = dns.zone.from_text(SIGNED, origin="s.test.", relativize=False)
    with zone.writer() as transaction:
        dns.dnssec.sign_zone(
            zone, transaction, [(key, dnskey)], inception=time.time() - 86400, expiration=time.time() + 86400
        )
    (tmp_path / "db").write_text(zone.to_text(relativize=False))
    return dns.dnssec.make_ds("s.test.", dnskey, "SHA256").to_text()


SIGNED_NAMES = (
    "@ www nx a.nx zzz alias dang x.wild wild towild x.wc wc y.x.wild ent b.ent a.b.ent x.ent sub x.sub unsigned "
    "x.unsigned dn x.dn *.wild".split()
)


@pytest.mark.usefixtures("anchor")
def test_signed_zones(tmp_path: Path) -> None:
    """CoreDNS leaves proofs out: that a wildcard's CNAME may stand for a name (whose RRSIG keeps the wildcard's owner),
    that there is no DS; and takes empty non-terminals and glue for what NSEC records should begin at or encircle."""
    met = set()
    with serving(tmp_path, ".:PORT {\nbind 127.0.0.1\nfile db s.test\n}\n") as pair:
        for word in SIGNED_NAMES:
            name = "s.test." if word == "@" else f"{word}.s.test."
            for kind in "A AAAA NS SOA MX CNAME DS DNSKEY NSEC RRSIG TXT DNAME ANY".split():
                assert pair.ask(name, kind)[0] == pair.ask(name, kind)[1]
                core, ours = pair.ask(name, kind, do=True)
                if core != ours:
                    met.add(word)
                    assert core[:2] == ours[:2]
                    assert all(line in ours[2] for line in core[2] if " RRSIG " not in line)
    assert met == {"x.wc", "wc", "x.ent", "unsigned", "x.unsigned"}


UNBOUND = """
server:
    interface: 127.0.0.1
    port: PORT
    do-daemonize: no
    username: ""
    chroot: ""
    pidfile: ""
    directory: "DIRECTORY"
    use-syslog: no
    do-not-query-localhost: no
    trust-anchor: "s.test. DS ANCHOR"
    local-zone: "test." nodefault
stub-zone:
    name: "s.test"
    stub-addr: 127.0.0.1@KDNS
# Nothing must be asked of the world outside.
stub-zone:
    name: "."
    stub-addr: 127.0.0.1@KDNS
"""


@pytest.mark.skipif(shutil.which("unbound") is None, reason="unbound is not on PATH")
def test_signed_zones_convince_a_validator(tmp_path: Path, anchor: str) -> None:
    ours, port = free_port(), free_port()
    (tmp_path / "Corefile").write_text(f".:{ours} {{\nbind 127.0.0.1\nfile db s.test\n}}\n")
    settings = UNBOUND.replace("PORT", str(port)).replace("DIRECTORY", str(tmp_path))
    (tmp_path / "unbound.conf").write_text(settings.replace("ANCHOR", anchor).replace("KDNS", str(ours)))
    with Kdns("Corefile", cwd=tmp_path), open(tmp_path / "unbound.log", "wb") as log:
        unbound = subprocess.Popen(["unbound", "-d", "-c", tmp_path / "unbound.conf"], stdout=log, stderr=log)
        try:
            while b"start of service" not in (tmp_path / "unbound.log").read_bytes():
                assert unbound.poll() is None, (tmp_path / "unbound.log").read_text()
                time.sleep(0.02)
            for word in SIGNED_NAMES:
                for kind in "A AAAA NS MX CNAME DS TXT".split():
                    # Below a cut the answers are not ours; the DS of the apex is the parent's; unbound 1.17 has no way
                    # to follow a question for the CNAME itself that a DNAME makes.
                    below = word.endswith(("sub", "unsigned")) and (word[:2] == "x." or kind != "DS")
                    if below or (word, kind) in (("@", "DS"), ("x.dn", "CNAME")):
                        continue
                    query = dns.message.make_query(
                        "s.test." if word == "@" else f"{word}.s.test.", kind, want_dnssec=True
                    )
                    reply = dns.query.udp(query, "127.0.0.1", 10, port)
                    assert reply.flags & dns.flags.AD, (word, kind, reply)
        finally:
            unbound.kill()
            unbound.wait()


def test_differences_on_purpose(tmp_path: Path) -> None:
    long = ".".join(("b" * 60, "b" * 60))
    (tmp_path / "org").write_text(
        "$TTL 60\n@ SOA ns hm 1 2 3 4 5\n*.wild A 192.0.2.1\na.b.wild A 192.0.2.2\n"
        f"out CNAME other.test.\nother.test. A 192.0.2.3\nlong DNAME {long}\n"
    )
    (tmp_path / "alone").write_text("@ 60 SOA ns hm 1 2 3 4 5\n")
    (tmp_path / "hosts").write_text("192.0.2.4 good.example.com bad..name.example.com\n")
    corefile = """
    .:PORT {
        bind 127.0.0.1
        hosts hosts example.com
        file org example.org
        file alone example.net
        forward . 127.0.0.1:9
    }
    """
    with serving(tmp_path, corefile) as pair:
        # RFC 4592 section 2.2.2: an empty non-terminal exists, so no wildcard stands for it.
        core, ours = pair.ask("b.wild.example.org.", "A")
        assert core[2] and not ours[2] and ours[0] == "NOERROR"
        # What a zone file says about names outside the zone is nobody's to say.
        core, ours = pair.ask("out.example.org.", "A")
        assert len(core[2]) == 2 and len(ours[2]) == 1
        # RFC 6672 section 2.2: a name that would be too long is YXDOMAIN, not a packet that nobody can read.
        core, ours = pair.ask(".".join(("a" * 60,) * 3) + ".long.example.org.", "A")
        assert core[0].startswith("malformed") and ours[0] == "YXDOMAIN" and len(ours[2]) == 1
        # The apex of a zone exists, even if it holds a SOA alone.
        core, ours = pair.ask("example.net.", "A")
        assert (core[0], ours[0]) == ("NXDOMAIN", "NOERROR")
        # Classes other than IN come in where there is `forward`; CoreDNS answers them out of its IN data.
        core, ours = pair.ask("www.example.org.", "A", 3)
        assert core[0] in ("NOERROR", "NXDOMAIN") and ours[0] == "SERVFAIL"
        # CoreDNS never answers when a name in the hosts file is none.
        assert pair.ask_kdns("4.2.0.192.in-addr.arpa.", "PTR")[2] == [
            "4.2.0.192.in-addr.arpa. 3600 PTR good.example.com."
        ]
