"""The ``log`` plugin: which answers get a line, and what the line says."""

from __future__ import annotations

import pytest

from kdns import message
from kdns.message import AA, NOERROR, NXDOMAIN, RA, REFUSED, SERVFAIL, Edns, Listener, Query, Reply
from kdns.plugin import Plugin
from kdns.plugins.log import Log, kind_of, reply_size
from tests.plugintest import LEASE, Clock, End, ask, at_once, new_site, record, refused, set_up
from tests.support import captured_log

A_RECORD = (record("example.org. 30 A 192.0.2.1"),)
SOA_RECORD = (record("example.org. 30 SOA ns.example.org. root.example.org. 1 2 3 4 5"),)
SUCCESS = Reply(answer=A_RECORD, lease=LEASE)
DENIAL = Reply(NXDOMAIN, authority=SOA_RECORD, lease=LEASE)
ERROR = Reply(REFUSED, lease=LEASE)


def lines(text: str, query: Query | None = None, reply: Reply = SUCCESS) -> list[str]:
    plugin = set_up(Log, text)
    with captured_log() as log:
        at_once(plugin, query or ask(), End(reply))
    return log.lines


def test_the_default_line() -> None:
    site = new_site()
    clock = site.process.now
    assert isinstance(clock, Clock)
    plugin = set_up(Log, "log", site)

    def answer(query: Query) -> Reply:
        clock.now += 0.037990251
        return Reply(answer=A_RECORD, flags=RA)

    query = ask("Example.org.", peer=("10.244.0.7", 50759), edns=Edns(512, False))
    with captured_log() as log:
        at_once(plugin, query, End(answer))
    expected = '10.244.0.7:50759 - 4711 "A IN example.org. udp 40 false 512" NOERROR qr,rd,ra 56 0.037990251s'
    assert log.lines == [f"[INFO] {expected}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('log . "{remote} {port} {local}"', "[2001:db8::1] 53 [::1]"),
        ("log . {type}/{class}/{name}/{proto}", "TYPE65400/CH/x.example./tcp"),
        ("log . {>id},{>opcode},{>do},{>bufsize}", "4711,0,true,65535"),
        ("log . {rcode}:{>rflags}:{rsize}", "24:qr,aa,rd,cd:27"),
        ("log . {/a/b}{/none}", "value-"),
        ("log . {}{unknown}{NAME}", "{}{unknown}{NAME}"),
        ('log . "{ {proto} }"', "{ tcp }"),
        ('log . "} {proto} {"', "} tcp {"),
        ("log . {duration}{", "0s{"),
        (
            "log . {combined}",
            '[2001:db8::1]:53 - 4711 "TYPE65400 CH x.example. tcp 38 true 65535" 24 qr,aa,rd,cd 27 0s "0"',
        ),
    ],
)
def test_formats(text: str, line: str) -> None:
    query = ask(
        "x.example.",
        65400,
        klass=message.CH,
        edns=Edns(100, True),
        peer=("2001:db8::1", 53),
        listener=Listener(proto="tcp", local=("::1", 53)),
        flags=message.RD | message.CD,
    ).replace(metadata={"a/b": lambda: "value"})
    assert lines(text, query, Reply(24, flags=AA)) == [f"[INFO] {line}"]


@pytest.mark.parametrize(("edns", "size"), [(None, "512"), (Edns(100, False), "512"), (Edns(1400, False), "1400")])
def test_the_size_that_the_client_offers(edns: Edns | None, size: str) -> None:
    assert lines("log . {>bufsize}", ask(edns=edns)) == [f"[INFO] {size}"]


def test_names_that_could_forge_lines_are_escaped() -> None:
    assert lines("log . {name}", ask("a\\010[INFO].example.")) == ["[INFO] a\\010[info].example."]


def test_a_label_without_metadata() -> None:
    assert lines("log . {/a/b}") == ["[INFO] -"]


@pytest.mark.parametrize(
    ("text", "qname", "logged"),
    [
        ("log", "example.org.", True),
        ("log example.org", "www.EXAMPLE.org.", True),
        ("log Example.ORG.", "example.org.", True),
        ("log example.org", "example.com.", False),
        ("log example.com example.org {common}", "example.org.", True),
        ("log {name}", "example.org.", False),
        ("log a.org b.org", "example.org.", False),
        # The first line whose name fits decides, even if it keeps silent.
        ("log org {\nclass error\n}\nlog .", "example.org.", False),
        ("log com {\nclass error\n}\nlog .", "example.org.", True),
    ],
)
def test_scopes(text: str, qname: str, logged: bool) -> None:
    assert len(lines(text, ask(qname))) == logged


@pytest.mark.parametrize(
    ("classes", "logged"),
    [
        ("class success", [True, False, False]),
        ("class denial", [False, True, False]),
        ("class error", [False, False, True]),
        ("class denial error", [False, True, True]),
        ("class denial\nclass success", [True, True, False]),
        ("class success all", [True, True, True]),
        ("", [True, True, True]),
    ],
)
def test_classes_and_leases(classes: str, logged: list[bool]) -> None:
    plugin = set_up(Log, f"log . {{\n{classes}\n}}")
    for reply, wanted in zip((SUCCESS, DENIAL, ERROR), logged, strict=True):
        with captured_log() as log:
            answered = at_once(plugin, ask(), End(reply))
        assert len(log.lines) == wanted
        # A line is owed for each answer, so one that is logged cannot be replayed.
        assert answered.lease == (LEASE.shrink(0.0) if wanted else LEASE)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (SUCCESS, "NOERROR"),
        (Reply(), "NOERROR"),
        (DENIAL, "NXDOMAIN"),
        (Reply(NXDOMAIN, answer=A_RECORD), "OTHERERROR"),
        (Reply(authority=SOA_RECORD), "NODATA"),
        (Reply(authority=(record("org. 1 NS a.org."), *SOA_RECORD)), "NODATA"),
        (Reply(authority=(record("org. 1 NS a.org."),)), "DELEGATION"),
        (Reply(SERVFAIL), "SERVERERROR"),
        (Reply(SERVFAIL, answer=A_RECORD), "SERVERERROR"),
        (Reply(message.NOTIMP), "SERVERERROR"),
        (ERROR, "OTHERERROR"),
        (Reply(REFUSED, answer=A_RECORD), "OTHERERROR"),
        (Reply(drop=True), "OTHERERROR"),
    ],
)
def test_kinds(reply: Reply, kind: str) -> None:
    assert kind_of(ask(), reply) == kind


def test_transfers_are_meta() -> None:
    assert kind_of(ask(kind=message.AXFR), SUCCESS) == "META"


def test_what_is_not_answered_is_logged_too() -> None:
    assert lines("log . {rcode}/{>rflags}/{rsize}", reply=Reply(drop=True)) == ["[INFO] -/-/0"]


def test_metadata() -> None:
    query = ask().replace(metadata={})
    lines("log . {\nclass error\n}", query, DENIAL)
    assert query.metadata is not None
    assert {label: read() for label, read in query.metadata.items()} == {"log/type": "NXDOMAIN", "log/class": "denial"}


def test_the_size_of_a_reply() -> None:
    assert reply_size(ask("."), Reply(NOERROR)) == 17
    assert reply_size(ask(), Reply(answer=A_RECORD, authority=SOA_RECORD, additional=A_RECORD)) == 29 + 27 + 77 + 27


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("log . {\nclass\n}", "Wrong argument count or unexpected line ending after 'class'"),
        ("log . {\nclass some\n}", "invalid Class: some"),
        ("log . {\nformat x\n}", "unknown property 'format'"),
        ("log a..b", "'a..b' is not a domain name: a label is empty"),
    ],
)
def test_what_is_wrong(text: str, says: str) -> None:
    assert refused(Log, text) == says


def test_it_keeps_the_lease_rules() -> None:
    plugin: Plugin = set_up(Log, "log example.com")
    assert plugin.replayable
    assert at_once(plugin, ask(), End(SUCCESS)) is SUCCESS
