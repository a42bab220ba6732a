"""hosts: names and addresses out of a file and the Corefile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns import limits
from kdns.corefile import CorefileError
from kdns.message import AA, FOREVER, NOERROR, SERVFAIL, Lease, Listener, Query, Reply, type_number
from kdns.name import ROOT, from_text
from kdns.plugin import Process, Site
from kdns.plugins import hosts
from kdns.plugins.hosts import Hosts
from kdns.rdata import to_text
from tests.support import ask, captured_log, edit, parse, serving, until

HOSTS = """
# comment
10.0.0.1   a.example.org  A.Example.org. # twice
10.0.0.2\tb.example.org
2001:db8::1 a.example.org
fe80::1%eth0 link.example.org
::ffff:10.0.0.3 mapped.example.org
10.0.0.9 *.wild.example.org x.wild.example.org
2001:db8::9 *.wild.example.org
10.0.0.4 other.test
not-an-address c.example.org
10.0.0.5
010.0.0.6 c.example.org
10.0.0.7 @
"""


def query(name: str, kind: str = "A", klass: int = 1) -> Query:
    number = type_number(kind)
    assert number is not None
    wire = from_text(name)
    return Query(wire, number, klass, wire, 1, 0, None, ("192.0.2.9", 53), Listener(), 40)


def setup(directory: Path, lines: str, process: Process | None = None, zones: tuple[str, ...] = (".",)) -> Hosts:
    [block] = parse(f". {{\n{lines}\n}}\n").blocks
    site = Site(process or Process(), tuple(map(from_text, zones)))
    site.root = str(directory)
    plugin = Hosts.setup(block.directives, site)
    assert isinstance(plugin, Hosts)
    return plugin


async def started(directory: Path, lines: str, process: Process | None = None) -> Hosts:
    plugin = setup(directory, lines, process)
    await plugin.start()
    return plugin


async def below(query: Query) -> Reply:
    return Reply(lease=Lease(100.0, (b"below",)), plugin="below")


def answer(reply: Reply) -> list[str]:
    return [f"{record.ttl} {to_text(record.type, record.rdata)}" for record in reply.answer]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "hosts").write_text(HOSTS)
    return tmp_path


ZONE = (
    "hosts hosts example.org {\nreload 0\n10.0.1.1 a.example.org inline.example.org\n10.0.1.2 *.mix.example.org\n%s\n}"
)


# --- queries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.example.org.", "A", ["10.0.0.1", "10.0.0.1", "10.0.1.1"]),
        ("a.example.org.", "AAAA", ["2001:db8::1"]),
        ("inline.example.org.", "A", ["10.0.1.1"]),
        ("link.example.org.", "AAAA", ["fe80::1"]),
        ("mapped.example.org.", "A", ["10.0.0.3"]),
        ("b.example.org.", "AAAA", []),
        ("b.example.org.", "TXT", []),
        ("b.example.org.", "SOA", []),
        ("y.wild.example.org.", "A", ["10.0.0.9"]),
        ("x.wild.example.org.", "A", ["10.0.0.9"]),
        # No line of its own in this family (CoreDNS).
        ("x.wild.example.org.", "AAAA", ["2001:db8::9"]),
        ("*.wild.example.org.", "A", ["10.0.0.9"]),
        ("y.wild.example.org.", "TXT", []),
        ("q.mix.example.org.", "A", ["10.0.1.2"]),
    ],
)
async def test_known_names(directory: Path, name: str, kind: str, expected: list[str]) -> None:
    plugin = await started(directory, ZONE % "")
    reply = await plugin.resolve(query(name, kind), below)
    assert answer(reply) == [f"3600 {text}" for text in expected]
    assert (reply.rcode, reply.flags, reply.plugin, reply.authority) == (NOERROR, AA, "hosts", ())
    assert reply.lease == Lease(FOREVER, (b"hosts/" + os.fsencode(directory / "hosts"),))


@pytest.mark.parametrize(
    "name",
    ["nx.example.org.", "wild.example.org.", "z.y.wild.example.org.", "c.example.org.", "example.org."],
)
@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT"])
async def test_unknown_names_fail_or_fall_through(directory: Path, name: str, kind: str) -> None:
    plugin = await started(directory, ZONE % "")
    reply = await plugin.resolve(query(name, kind), below)
    assert (reply.rcode, reply.lease, reply.error) == (SERVFAIL, Lease(0.0, plugin._source.lease.facts), "")
    plugin = await started(directory, ZONE % "fallthrough")
    reply = await plugin.resolve(query(name, kind), below)
    assert reply.lease == Lease(100.0, (b"below", *plugin._source.lease.facts))
    plugin = await started(directory, ZONE % "fallthrough example.net")
    assert (await plugin.resolve(query(name, kind), below)).rcode == SERVFAIL


async def test_names_outside_the_zones_are_not_ours(directory: Path) -> None:
    plugin = await started(directory, ZONE % "")
    for asked in (query("other.test."), query("."), query("a.example.org.", klass=3)):
        assert (await plugin.resolve(asked, below)).lease == Lease(100.0, (b"below",))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1.0.0.10.in-addr.arpa.", ["a.example.org.", "a.example.org."]),
        ("1.1.0.10.in-addr.arpa.", ["a.example.org.", "inline.example.org."]),
        ("9.0.0.10.in-addr.arpa.", ["x.wild.example.org."]),
        ("1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa.", ["a.example.org."]),
        ("3.0.0.0.0.0.a.0.f.f.f.f." + "0." * 20 + "ip6.arpa.", ["mapped.example.org."]),
    ],
)
async def test_reverse_names_wherever_they_are(directory: Path, name: str, expected: list[str]) -> None:
    plugin = await started(directory, ZONE % "ttl 5")
    assert answer(await plugin.resolve(query(name, "PTR"), below)) == [f"5 {text}" for text in expected]
    plugin = await started(directory, ZONE % "no_reverse")
    assert (await plugin.resolve(query(name, "PTR"), below)).plugin == "below"


async def test_unknown_addresses_are_passed_on(directory: Path) -> None:
    plugin = await started(directory, ZONE % "")
    for name in ("4.0.0.10.in-addr.arpa.", "2.1.0.10.in-addr.arpa."):
        reply = await plugin.resolve(query(name, "PTR"), below)
        assert reply.lease == Lease(100.0, (b"below", *plugin._source.lease.facts))
    for name in ("0.10.in-addr.arpa.", "x.1.0.0.10.in-addr.arpa.", "a.example.org.", "arpa."):
        assert (await plugin.resolve(query(name, "PTR"), below)).lease == Lease(100.0, (b"below",))


async def test_other_types_may_fall_through(directory: Path) -> None:
    plugin = await started(directory, ZONE % "fallthrough b.example.org\nfallthrough_unsupported")
    assert (await plugin.resolve(query("b.example.org.", "HTTPS"), below)).plugin == "below"
    assert (await plugin.resolve(query("b.example.org.", "AAAA"), below)).plugin == "hosts"
    assert (await plugin.resolve(query("a.example.org.", "HTTPS"), below)).plugin == "hosts"


async def test_everything_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").write_text("10.0.0.1 host @\n10.0.0.2 *\n")
    monkeypatch.setattr(hosts, "_DEFAULT_FILE", str(tmp_path / "etc"))
    plugin = await started(tmp_path, "hosts")
    assert answer(await plugin.resolve(query("host."), below)) == ["3600 10.0.0.1"]
    assert answer(await plugin.resolve(query("@."), below)) == ["3600 10.0.0.1"]
    assert answer(await plugin.resolve(query("anything."), below)) == ["3600 10.0.0.2"]
    assert (await plugin.resolve(query("."), below)).rcode == SERVFAIL
    await plugin.stop()


# --- setup -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("hosts\nhosts", "3 - .*only be used once"),
        ("hosts hosts a..b", "2 - .*a..b"),
        ("hosts hosts {\nttl\n}", "3 - .*Wrong argument count"),
        ("hosts hosts {\nttl 0\n}", "3 - .*not in range"),
        ("hosts hosts {\nttl 65536\n}", "3 - .*not in range"),
        ("hosts hosts {\nttl 1m\n}", "3 - .*not an integer"),
        ("hosts hosts {\nreload\n}", "3 - .*Wrong argument count"),
        ("hosts hosts {\nreload -1s\n}", "3 - .*must be at least"),
        ("hosts hosts {\nfallthrough\n10.0.0.1 a\n}", "4 - .*unknown property '10.0.0.1'"),
        ("hosts hosts {\nfallthrough_unsupported\n}", "2 - .*fallthrough_unsupported requires fallthrough"),
        ("hosts hosts {\nfallthrough\nfallthrough_unsupported x\n}", "4 - .*Wrong argument count"),
        ("hosts hosts/below", "2 - .*unable to access hosts file '.*hosts/below': Not a directory"),
    ],
)
def test_what_is_wrong(directory: Path, lines: str, problem: str) -> None:
    with pytest.raises(CorefileError, match=f"Corefile:{problem}"):
        setup(directory, lines)


async def test_odd_files_are_warnings(directory: Path) -> None:
    with captured_log() as log:
        missing = await started(directory, "hosts missing {\nreload 0\n10.0.0.1 a\n}")
        folder = await started(directory, "hosts . {\nreload 0\n10.0.0.1 a\n}")
    assert log.lines == [
        f"[WARNING] plugin/hosts: File does not exist: {directory}/missing",
        f'[WARNING] plugin/hosts: Hosts file "{directory}/." is a directory',
    ]
    for plugin in (missing, folder):
        assert answer(await plugin.resolve(query("a."), below)) == ["3600 10.0.0.1"]


# --- keeping up to date ----------------------------------------------------------------------------------------------


def watching(process: Process) -> list[bytes]:
    dropped: list[bytes] = []
    process.facts.subscribe(dropped.extend)
    return dropped


def gauge(process: Process, name: str, *labels: str) -> float:
    names = ("hostsfile",) if labels else ()
    value: float = process.metrics.gauge(name, "", names).cell(*labels).value
    return value


async def test_changes_are_taken(directory: Path) -> None:
    process = Process()
    path = str(directory / "hosts")
    edit(directory / "hosts", "10.0.0.1 a\n10.0.0.2 *.b\n")
    with captured_log() as log:
        plugin = await started(directory, "hosts hosts {\nreload 5ms\n10.0.0.3 c\n}", process)
        assert gauge(process, "coredns_hosts_entries", path) == 5
        dropped = watching(process)
        os.utime(path, (1000, 1000))
        await until(lambda: plugin._source.stamp is not None and plugin._source.stamp[0] == 1000 * 10**9)
        assert dropped == []
        edit(directory / "hosts", "10.0.0.7 a\n")
        await until(lambda: dropped != [])
        assert dropped == list(plugin._source.lease.facts)
        assert answer(await plugin.resolve(query("a."), below)) == ["3600 10.0.0.7"]
        assert gauge(process, "coredns_hosts_entries", path) == 4
        assert gauge(process, "coredns_hosts_reload_timestamp_seconds") == pytest.approx(os.stat(path).st_mtime)
        os.remove(path)
        await until(lambda: bool(log.matching("the last content stays: No such file or directory")))
        assert answer(await plugin.resolve(query("a."), below)) == ["3600 10.0.0.7"]
        edit(directory / "hosts", "10.0.0.8 a\n")
        await until(lambda: len(dropped) > 1)
        await plugin.stop()
    assert len(log.matching("[WARNING]")) == 1


async def test_too_large_a_file_is_not_taken(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOSTS_FILE", 20)
    edit(directory / "hosts", "10.0.0.1 a\n")
    with captured_log() as log:
        plugin = await started(directory, "hosts hosts {\nreload 5ms\n}")
        edit(directory / "hosts", "10.0.0.2 a\n" * 2)
        await until(lambda: bool(log.matching("the last content stays: over 20 octets")))
        await plugin.stop()
    assert answer(await plugin.resolve(query("a."), below)) == ["3600 10.0.0.1"]


async def test_stopping_ends_a_reading_thread(directory: Path) -> None:
    plugin = await started(directory, "hosts hosts {\nreload 0\n}")
    await plugin.stop()
    edit(directory / "hosts", "10.0.0.2 a\n")
    with pytest.raises(ValueError, match="stopped"):
        plugin._source.read(plugin._pause)


def test_how_many_addresses_and_names() -> None:
    most = limits.HOSTS_PER_KEY
    lines = [f"10.0.{n >> 8}.{n & 255} many" for n in range(most + 7)] + [f"10.9.9.9 n{n}" for n in range(most + 3)]
    table = hosts.read(lines, (ROOT,), True)
    assert len(table.addresses(from_text("many."), False)) == 4 * most
    assert len(table.names(bytes((10, 9, 9, 9)))) == most
    assert table.skipped == 7 + 3
    assert table.entries == 2 * most + (most + 3) + most


async def test_what_is_skipped_is_counted(directory: Path) -> None:
    process = Process()
    edit(directory / "hosts", "10.0.0.1 a..b a " + "x" * 64 + "\n")
    await started(directory, "hosts hosts {\nreload 0\n10.0.0.1 c..d\n}", process)
    assert gauge(process, "kdns_hosts_skipped_entries", str(directory / "hosts")) == 3


async def test_answers_in_the_packet_cache_go_with_the_file(directory: Path) -> None:
    async with serving(f". {{\nhosts {directory}/hosts {{\nreload 10ms\n}}\n}}\n") as server:
        dropped = watching(server.process)
        for _ in range(2):
            assert (await ask(server.ports[0], "b.example.org.")).answer[0][0].to_text() == "10.0.0.2"
        edit(directory / "hosts", "10.0.0.77 b.example.org\n")
        await until(lambda: dropped != [])
        assert (await ask(server.ports[0], "b.example.org.")).answer[0][0].to_text() == "10.0.0.77"


# --- reloads of the Corefile -----------------------------------------------------------------------------------------


async def test_unchanged_files_outlive_a_reload(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    lines = "hosts hosts {\nreload 0\n10.0.1.1 a.example.org\n%s\n}"
    first = await started(directory, lines % "", process)
    process.plugins = [first]
    monkeypatch.setattr(hosts.Source, "read", lambda *_: pytest.fail("read again"))
    dropped = watching(process)
    same = await started(directory, lines % "", process)
    assert dropped == []
    assert same._source is first._source
    process.plugins = [same]
    await first.stop()
    assert dropped == []


@pytest.mark.parametrize("more", ["10.0.1.2 b.example.org", "ttl 60", "fallthrough"])
async def test_what_another_configuration_would_not_say_is_dropped(directory: Path, more: str) -> None:
    process = Process()
    first = await started(directory, "hosts hosts {\nreload 0\n}", process)
    process.plugins = [first]
    dropped = watching(process)
    second = await started(directory, f"hosts hosts {{\nreload 0\n{more}\n}}", process)
    assert dropped == list(first._source.lease.facts)
    process.plugins = [second]
    await first.stop()
    assert len(dropped) == 2


async def test_other_zones_are_another_table(directory: Path) -> None:
    process = Process()
    one = await started(directory, "hosts hosts example.org {\nreload 0\n}", process)
    two = await started(directory, "hosts hosts test {\nreload 0\n}", process)
    assert one._source is not two._source
    assert answer(await two.resolve(query("other.test."), below)) == ["3600 10.0.0.4"]


# --- properties ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=100))
def test_no_octets_raise(data: bytes) -> None:
    hosts.read(data.decode("utf-8", "surrogateescape").splitlines(), (ROOT,), True)


@given(st.text("*.ax@ \\#%:1", max_size=60))
def test_no_text_raises(text: str) -> None:
    hosts.read(["10.0.0.1 " + text, text], (ROOT,), True)
