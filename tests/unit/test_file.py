"""file: zones out of files, kept up to date; the lookup itself is tested with the zone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kdns import zonefile
from kdns.corefile import CorefileError
from kdns.message import (
    AA,
    EDE_NOT_READY,
    FOREVER,
    NO_LEASE,
    NOERROR,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    Lease,
    Listener,
    Query,
    Record,
    Reply,
    type_number,
)
from kdns.name import from_text
from kdns.plugin import EndOfChain, Process, Site
from kdns.plugins.file import File
from kdns.rdata import to_text
from kdns.zone import BadZone
from tests.support import ask, captured_log, edit, parse, serving, until

SOA = "@ 60 SOA ns hm {serial} 2 3 4 5\n"
ZONE = SOA.format(serial=1) + "www A 192.0.2.1\next CNAME www.example.net.\n*.wild A 192.0.2.2\na.ent A 192.0.2.3\n"


def query(name: str, kind: str = "A", klass: int = 1, depth: int = 0, **more: object) -> Query:
    number = type_number(kind)
    assert number is not None
    wire = from_text(name)
    return Query(wire, number, klass, wire, 1, 0, None, ("192.0.2.9", 53), Listener(), 40, depth).replace(**more)


def setup(
    directory: Path, lines: str, process: Process | None = None, zones: tuple[str, ...] = ("example.org.",)
) -> File:
    [block] = parse(f". {{\n{lines}\n}}\n").blocks
    site = Site(process or Process(), tuple(map(from_text, zones)))
    site.root = str(directory)
    plugin = File.setup(block.directives, site)
    assert isinstance(plugin, File)
    return plugin


async def started(directory: Path, lines: str = "file db {\nreload 0\n}", process: Process | None = None) -> File:
    plugin = setup(directory, lines, process)
    await plugin.start()
    return plugin


async def below(query: Query) -> Reply:
    """A next plugin that can be told apart."""
    return Reply(NXDOMAIN, lease=Lease(100.0, (b"below",)), plugin="below")


def answer(reply: Reply) -> list[str]:
    return [to_text(record.type, record.rdata) for record in reply.answer]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "db").write_text(ZONE)
    return tmp_path


# --- queries ---------------------------------------------------------------------------------------------------------


async def test_answers_are_authoritative_and_stand_on_the_zone(directory: Path) -> None:
    file = await started(directory)
    fact = b"zone/%s/%s" % (os.fsencode(directory / "db"), from_text("example.org."))
    for name, rcode in (("www.example.org.", NOERROR), ("nx.example.org.", NXDOMAIN), ("example.org.", NOERROR)):
        reply = await file.resolve(query(name), below)
        assert (reply.rcode, reply.flags, reply.plugin) == (rcode, AA, "file")
        assert reply.lease == Lease(FOREVER, (fact,))
    assert answer(await file.resolve(query("www.example.org."), below)) == ["192.0.2.1"]


async def test_a_referral_is_not_authoritative(directory: Path) -> None:
    (directory / "db").write_text(ZONE + "sub NS ns.test.\n")
    reply = await (await started(directory)).resolve(query("x.sub.example.org."), below)
    assert (reply.flags, len(reply.authority)) == (0, 1)


async def test_other_names_and_classes_are_for_the_next_plugin(directory: Path) -> None:
    file = await started(directory)
    for asked in (query("example.net."), query("."), query("xexample.org."), query("www.example.org.", klass=3)):
        assert (await file.resolve(asked, below)).lease == Lease(100.0, (b"below",))
        assert await file.resolve(asked, EndOfChain("file")) == Reply(REFUSED)


@pytest.mark.parametrize("kind", ["AXFR", "IXFR"])
async def test_no_transfers(directory: Path, kind: str) -> None:
    assert await (await started(directory)).resolve(query("example.org.", kind), below) == Reply(REFUSED)


@pytest.mark.parametrize(
    ("option", "through"),
    [
        ("", []),
        ("fallthrough", ["nx", "ent", "@"]),
        ("fallthrough nx.example.org", ["nx"]),
        ("fallthrough example.net", []),
    ],
)
async def test_fallthrough_stands_on_the_zone_too(directory: Path, option: str, through: list[str]) -> None:
    file = await started(directory, f"file db {{\nreload 0\n{option}\n}}")
    for label in ("nx", "ent", "@", "www", "x.wild"):
        name = "example.org." if label == "@" else f"{label}.example.org."
        reply = await file.resolve(query(name), below)
        assert (reply.plugin == "below") == (label in through)
        if label in through:
            assert reply.lease.until == 100.0
            assert set(reply.lease.facts) == {b"below", *file._sources[from_text("example.org.")].lease.facts}


async def test_the_longest_zone_answers(directory: Path) -> None:
    (directory / "sub").write_text(SOA.format(serial=2) + "www A 192.0.2.99\n")
    file = await started(directory, "file db {\nreload 0\n}\nfile sub sub.example.org")
    assert answer(await file.resolve(query("www.sub.example.org."), below)) == ["192.0.2.99"]
    assert (await file.resolve(query("nx.sub.example.org."), below)).authority[0].owner == from_text("sub.example.org.")
    await file.stop()


async def test_one_file_for_several_zones(directory: Path) -> None:
    file = await started(directory, "file db example.org example.net 10.0.0.0/23 {\nreload 0\n}")
    for zone in ("example.org.", "example.net.", "1.0.10.in-addr.arpa."):
        assert answer(await file.resolve(query("www." + zone), below)) == ["192.0.2.1"]


async def test_the_wildcard_is_metadata(directory: Path) -> None:
    file = await started(directory)
    asked = query("x.wild.example.org.", metadata={})
    await file.resolve(asked, below)
    assert asked.metadata is not None
    assert asked.metadata["zone/wildcard"]() == "*.wild.example.org."
    await file.resolve(query("x.wild.example.org."), below)


async def test_a_dname_loop_is_a_failure(directory: Path) -> None:
    (directory / "db").write_text(ZONE + "dn DNAME dn\n")
    reply = await (await started(directory)).resolve(query("x.dn.example.org."), below)
    assert (reply.rcode, reply.error, reply.lease) == (SERVFAIL, "DNAME loop", NO_LEASE)


# --- CNAME chases ----------------------------------------------------------------------------------------------------


def answering(process: Process, reply: Reply) -> list[Query]:
    """Let the server say ``reply``; the result collects what it was asked."""
    asked: list[Query] = []

    async def server(query: Query) -> Reply:
        asked.append(query)
        return reply

    process.ask = server
    return asked


async def test_targets_outside_are_asked_of_the_server(directory: Path) -> None:
    process = Process()
    target = from_text("www.example.net.")
    said = Record(target, 1, 30, bytes((192, 0, 2, 7)))
    inner = Lease(50.0, (b"there",), age=True, duties=(lambda *_: None,))
    asked = answering(process, Reply(answer=(said,), flags=0x80, lease=inner))
    file = await started(directory, process=process)
    reply = await file.resolve(query("ext.example.org.", depth=2), below)
    assert [(q.name, q.type, q.depth) for q in asked] == [(target, 1, 3)]
    assert answer(reply) == ["www.example.net.", "192.0.2.7"]
    assert (reply.rcode, reply.flags) == (NOERROR, AA)
    own = file._sources[from_text("example.org.")].lease.facts
    assert reply.lease == Lease(50.0, (*own, b"there"), age=True, duties=inner.duties)


@pytest.mark.parametrize(
    ("said", "rcode", "authority"),
    [
        (Reply(NXDOMAIN), NXDOMAIN, 6),
        (Reply(SERVFAIL), SERVFAIL, None),
        (Reply(REFUSED), NOERROR, None),
        (Reply(), NOERROR, 6),
        (Reply(drop=True), NOERROR, None),
    ],
)
async def test_what_becomes_of_a_failing_chase(directory: Path, said: Reply, rcode: int, authority: int | None) -> None:
    process = Process()
    answering(process, said)
    file = await started(directory, process=process)
    reply = await file.resolve(query("ext.example.org."), below)
    assert (reply.rcode, answer(reply), reply.lease.until, reply.drop) == (rcode, ["www.example.net."], 0.0, False)
    assert [record.type for record in reply.authority] == ([authority] if authority else [])


async def test_chases_end(directory: Path) -> None:
    file = await started(directory)
    assert (await file.resolve(query("www.example.org.", depth=8), below)).rcode == NOERROR
    assert (await file.resolve(query("www.example.org.", depth=9), below)).rcode == SERVFAIL


async def test_through_the_whole_server(directory: Path) -> None:
    (directory / "net").write_text(SOA.format(serial=2) + "www A 192.0.2.8\n")
    text = f". {{\nfile {directory}/db example.org\n}}\nexample.net {{\nfile {directory}/net\n}}\n"
    async with serving(text) as server:
        reply = await ask(server.ports[0], "ext.example.org.")
        assert [rrset.to_text() for rrset in reply.answer] == [
            "ext.example.org. 60 IN CNAME www.example.net.",
            "www.example.net. 60 IN A 192.0.2.8",
        ]


async def test_answers_in_the_packet_cache_go_with_the_zone(directory: Path) -> None:
    with captured_log() as log:
        async with serving(f"example.org {{\nfile {directory}/db {{\nreload 10ms\n}}\n}}\n") as server:
            for _ in range(2):
                assert [rrset[0].to_text() for rrset in (await ask(server.ports[0], "www.example.org.")).answer] == [
                    "192.0.2.1"
                ]
            edit(directory / "db", SOA.format(serial=2) + "www A 192.0.2.2\n")
            await until(lambda: bool(log.matching("Successfully reloaded zone")))
            reply = await ask(server.ports[0], "www.example.org.")
            assert reply.answer[0][0].to_text() == "192.0.2.2"


# --- setup -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("file", "2 - .*Wrong argument count"),
        ("file db {\nreload\n}", "3 - .*Wrong argument count"),
        ("file db {\nreload 5\n}", "3 - .*missing unit"),
        ("file db {\nreload -5s\n}", "3 - .*must be at least 0s"),
        ("file db {\nfallthrough a..b\n}", "3 - .*a..b"),
        ("file db {\ntransfer to *\n}", "3 - .*unknown property 'transfer'"),
        ("file db a..b", "2 - .*a..b"),
        ("file bad", "2 - .*bad:1: "),
        ("file nosoa", "2 - .*nosoa: has no SOA"),
        ("file .", "2 - .*open .*: Is a directory"),
        ("file missing {\nreload 0\n}", "2 - .*open .*missing: No such file or directory"),
    ],
)
def test_what_is_wrong(directory: Path, lines: str, problem: str) -> None:
    (directory / "bad").write_text("www FOO\n")
    (directory / "nosoa").write_text("www 60 A 192.0.2.1\n")
    if lines == "file .":
        lines = "file . {\nreload 0\n}"
    with captured_log(), pytest.raises(CorefileError, match=f"Corefile:{problem}"):
        setup(directory, lines)


def test_options_count_for_those_behind(directory: Path) -> None:
    file = setup(directory, "file db a.test\nfile db b.test {\nreload 5s\nreload_by_mtime\nupstream\n}\nfile db c.test")
    found = [(served.interval, served.by_mtime) for served in file._zones.values()]
    assert found == [(60.0, False), (5.0, True), (5.0, True)]


async def test_a_missing_file_is_waited_for(directory: Path) -> None:
    with captured_log() as log:
        file = await started(directory, "file missing {\nreload 10ms\n}")
        assert log.matching('[WARNING] plugin/file: Failed to open "open ')
        reply = await file.resolve(query("www.example.org."), below)
        assert (reply.rcode, reply.ede[0][0], reply.lease) == (SERVFAIL, EDE_NOT_READY, NO_LEASE)
        assert await file.resolve(query("example.org.", "AXFR"), below) == Reply(REFUSED)
        await until(lambda: bool(log.matching("[ERROR] plugin/file: Failed to open zone")))
        edit(directory / "missing", ZONE)
        await until(lambda: bool(log.matching("Successfully reloaded zone")))
        assert answer(await file.resolve(query("www.example.org."), below)) == ["192.0.2.1"]
        await file.stop()


async def test_what_is_left_out_is_said(directory: Path) -> None:
    (directory / "db").write_text(ZONE + "other.test. A 192.0.2.1\n")
    with captured_log() as log:
        await started(directory)
    assert log.matching("1 records outside zone example.org.")


# --- keeping up to date ----------------------------------------------------------------------------------------------


def watching(process: Process) -> list[bytes]:
    """Facts as they are dropped."""
    dropped: list[bytes] = []
    process.facts.subscribe(dropped.extend)
    return dropped


async def test_a_new_serial_is_taken(directory: Path) -> None:
    process = Process()
    with captured_log() as log:
        file = await started(directory, "file db {\nreload 10ms\n}", process)
        dropped = watching(process)
        edit(directory / "db", SOA.format(serial=2) + "www A 192.0.2.77\n")
        await until(lambda: bool(dropped))
        reply = await file.resolve(query("www.example.org."), below)
        assert answer(reply) == ["192.0.2.77"]
        assert dropped == list(reply.lease.facts)
        await file.stop()
    assert log.matching(
        f'[INFO] plugin/file: Successfully reloaded zone "example.org." in "{directory}/db" with 2 SOA serial'
    )


async def test_a_known_serial_is_not(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(*args: object) -> zonefile.Loaded:
        nonlocal looks
        looks += 1
        return load(*args)  # type: ignore[arg-type]

    load = zonefile.load
    process = Process()
    file = await started(directory, "file db {\nreload 5ms\n}", process)
    monkeypatch.setattr(zonefile, "load", counted)
    dropped = watching(process)
    edit(directory / "db", SOA.format(serial=1) + "www A 192.0.2.77\n")
    await until(lambda: looks > 2)
    await file.stop()
    assert answer(await file.resolve(query("www.example.org."), below)) == ["192.0.2.1"]
    assert dropped == []


async def test_a_bad_edit_leaves_the_old_zone(directory: Path) -> None:
    process = Process()
    refused = process.metrics.counter("kdns_file_refused_total", "").cell
    with captured_log() as log:
        file = await started(directory, "file db {\nreload 5ms\n}", process)
        edit(directory / "db", SOA.format(serial=2) + "www FOO\n")
        await until(lambda: process.metrics.counter("kdns_file_refused_total", "").cell().value > 2)
        assert answer(await file.resolve(query("www.example.org."), below)) == ["192.0.2.1"]
        os.remove(directory / "db")
        await until(lambda: bool(log.matching("Failed to open zone")))
        assert answer(await file.resolve(query("www.example.org."), below)) == ["192.0.2.1"]
        edit(directory / "db", SOA.format(serial=3) + "www A 192.0.2.3\n")
        await until(lambda: bool(log.matching("Successfully reloaded")))
        await file.stop()
    assert len(log.matching('[ERROR] plugin/file: Parsing zone "example.org.": ')) == 1
    assert refused().value > 2


async def test_by_mtime_takes_edits_without_a_new_serial(directory: Path) -> None:
    (directory / "db").write_text(ZONE + "$INCLUDE part\n")
    (directory / "part").write_text("inc A 192.0.2.50\n")
    process = Process()
    with captured_log() as log:
        file = await started(directory, "file db {\nreload 5ms\nreload_by_mtime\n}", process)
        dropped = watching(process)
        await asyncio.sleep(0.03)
        assert (dropped, log.lines) == ([], [])
        edit(directory / "part", "inc A 192.0.2.51\n")
        await until(lambda: len(dropped) == 1)
        assert answer(await file.resolve(query("inc.example.org."), below)) == ["192.0.2.51"]
        edit(directory / "db", ZONE)
        await until(lambda: len(dropped) == 2)
        assert (await file.resolve(query("inc.example.org."), below)).rcode == NXDOMAIN
        await file.stop()


async def test_stopping_ends_a_reading_thread(directory: Path) -> None:
    file = await started(directory)
    source = file._sources[from_text("example.org.")]
    assert source.read(pause=file._pause).loaded.zone is not None
    await file.stop()
    with pytest.raises(BadZone, match="stopped"):
        source.read(pause=file._pause)


# --- reloads of the Corefile -----------------------------------------------------------------------------------------


async def test_unchanged_zones_outlive_a_reload(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    first = await started(directory, process=process)
    monkeypatch.setattr(zonefile, "load", lambda *_: pytest.fail("read again"))
    dropped = watching(process)
    second = await started(directory, "file db example.org {\nreload 0\nfallthrough\n}", process)
    zone = from_text("example.org.")
    assert first._sources[zone] is second._sources[zone]
    assert dropped == []


async def test_changed_ones_are_taken_when_the_new_configuration_starts(directory: Path) -> None:
    process = Process()
    first = await started(directory, process=process)
    edit(directory / "db", SOA.format(serial=1) + "www A 192.0.2.77\n")
    second = setup(directory, "file db {\nreload 0\n}", process)
    assert answer(await first.resolve(query("www.example.org."), below)) == ["192.0.2.1"]
    dropped = watching(process)
    await second.start()
    assert dropped
    assert answer(await first.resolve(query("www.example.org."), below)) == ["192.0.2.77"]


async def test_a_file_that_is_gone_keeps_its_zone(directory: Path) -> None:
    process = Process()
    await started(directory, process=process)
    os.remove(directory / "db")
    with captured_log() as log:
        second = await started(directory, "file db {\nreload 1h\n}", process)
    assert log.matching("trying again in 3600s")
    assert answer(await second.resolve(query("www.example.org."), below)) == ["192.0.2.1"]
    await second.stop()


async def test_a_line_without_end_is_not_read_whole(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.limits.ZONE_ENTRY", 1000)
    (directory / "db").write_text(ZONE + "www TXT " + "x" * 5000)
    with pytest.raises(CorefileError, match="db:6: an entry of over 1000 characters"):
        setup(directory, "file db")
