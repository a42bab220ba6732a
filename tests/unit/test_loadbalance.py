"""The loadbalance plugin: orders, weights, and what the packet cache may do."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from kdns import limits
from kdns.message import AAAA, AXFR, FOREVER, MX, NXDOMAIN, SRV, TXT, A, Lease, Query, Reply
from kdns.plugin import Plugin
from kdns.plugins.loadbalance import BadWeights, Loadbalance, Weighted, parse_weights
from tests.plugintest import End, ask, at_once, new_site, record, refused, set_up, shown
from tests.support import captured_log

ROUND_ROBIN = set_up(Loadbalance, "loadbalance")
LEASED = Lease(until=FOREVER, facts=(b"f",), age=True)


def reply_of(*texts: str, lease: Lease = LEASED) -> Reply:
    return Reply(answer=tuple(record(text) for text in texts), lease=lease)


def a(*octets: int) -> list[str]:
    return [f"x.org. 5 A 10.0.0.{octet}" for octet in octets]


def orders(plugin: Plugin, reply: Reply, query: Query | None = None, times: int = 400) -> Counter[tuple[str, ...]]:
    """The orders of the answer that come out, by last word of the records."""
    end = End(reply)
    return Counter(
        tuple(line.split()[-1] for line in shown(at_once(plugin, query or ask("x.org."), end).answer))
        for _ in range(times)
    )


# --- round_robin -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["loadbalance", "loadbalance round_robin", "loadbalance weighted f\nloadbalance"])
def test_every_order_is_as_likely_as_any_other(text: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    site = new_site()
    site.root = str(tmp_path)
    found = orders(set_up(Loadbalance, text, site), reply_of(*a(1, 2, 3)), times=3000)
    assert len(found) == 6
    assert all(350 < count < 650 for count in found.values())


def test_aliases_first_addresses_and_mail_last() -> None:
    reply = reply_of(
        "x.org. 5 A 10.0.0.1",
        "x.org. 5 MX 10 m1.",
        "x.org. 5 TXT t",
        "x.org. 5 CNAME y.org.",
        "x.org. 5 AAAA fd00::1",
        "x.org. 5 MX 10 m2.",
        "y.org. 5 CNAME z.org.",
    )
    for order in orders(ROUND_ROBIN, reply):
        assert order[:3] == ("y.org.", "z.org.", '"t"')
        assert set(order[3:5]) == {"10.0.0.1", "fd00::1"}
        assert set(order[5:]) == {"m1.", "m2."}
    assert len(orders(ROUND_ROBIN, reply)) == 4


def test_each_section_for_itself() -> None:
    glue = tuple(record(f"ns{number}. 5 A 10.0.0.{number}") for number in range(4))
    seen = set()
    for _ in range(100):
        reply = at_once(ROUND_ROBIN, ask(), End(Reply(authority=glue[:2], additional=glue[2:])))
        assert set(reply.authority) == set(glue[:2]) and set(reply.additional) == set(glue[2:])
        seen.add((reply.authority, reply.additional))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("query", "reply"),
    [
        (ask(), Reply(NXDOMAIN, answer=tuple(record(text) for text in a(1, 2)))),
        (ask(kind=AXFR), reply_of(*a(1, 2))),
        (ask(), reply_of(*a(1))),
        (ask(), Reply()),
    ],
)
def test_what_is_left_alone(query: Query, reply: Reply) -> None:
    assert at_once(ROUND_ROBIN, query, End(reply)) is reply


def test_the_packet_cache_may_rotate_what_is_leased() -> None:
    lease = at_once(ROUND_ROBIN, ask(), End(reply_of(*a(1, 2)))).lease
    assert lease == Lease(until=FOREVER, facts=(b"f",), age=True, rotate=True)
    unleased = reply_of(*a(1, 2), lease=Lease(facts=(b"f",)))
    assert at_once(ROUND_ROBIN, ask(), End(unleased)).lease == Lease(facts=(b"f",))


def test_mail_servers_are_asked_of_the_chain_each_time() -> None:
    for texts, until in ((["x.org. 5 MX 10 m1.", "x.org. 5 MX 10 m2."], 0.0), (["x.org. 5 MX 10 m1.", *a(1)], FOREVER)):
        lease = at_once(ROUND_ROBIN, ask(kind=MX), End(reply_of(*texts))).lease
        assert (lease.until, lease.facts) == (until, (b"f",))


# --- prefer ----------------------------------------------------------------------------------------------------------


def test_preferred_networks_come_first() -> None:
    plugin = set_up(Loadbalance, "loadbalance {\nprefer 10.2.0.0/16 fd00::/8\nprefer 10.1.0.0/16\n}")
    reply = reply_of(
        "x.org. 5 TXT t",
        "x.org. 5 A 10.1.0.1",
        "x.org. 5 AAAA fd00::1",
        "x.org. 5 A 10.9.0.1",
        "x.org. 5 CNAME y.org.",
        "x.org. 5 MX 10 m.",
        "x.org. 5 A 10.2.0.1",
        "x.org. 5 AAAA 2001:db8::1",
    )
    found = orders(plugin, reply)
    assert set(found) == {
        ("y.org.", "10.2.0.1", "fd00::1", "10.1.0.1", *others, "m.", '"t"')
        for others in (("10.9.0.1", "2001:db8::1"), ("2001:db8::1", "10.9.0.1"))
    }


def test_preference_in_the_additional_section_too_but_not_in_the_authority() -> None:
    plugin = set_up(Loadbalance, "loadbalance round_robin {\nprefer 10.0.0.2/32\n}")
    records = tuple(record(text) for text in a(1, 2))
    seen = {
        (reply.authority, reply.additional)
        for reply in (at_once(plugin, ask(), End(Reply(authority=records, additional=records))) for _ in range(100))
    }
    assert {additional for _, additional in seen} == {records[::-1]}
    assert len({authority for authority, _ in seen}) == 2


@pytest.mark.parametrize(("octets", "until"), [((1, 200), FOREVER), ((1, 2, 200), 0.0), ((1, 200, 201), 0.0)], ids=str)
def test_only_an_order_without_choice_is_repeated(octets: tuple[int, ...], until: float) -> None:
    plugin = set_up(Loadbalance, "loadbalance {\nprefer 10.0.0.0/25\n}")
    lease = at_once(plugin, ask(), End(reply_of(*a(*octets)))).lease
    assert (lease.until, lease.facts, lease.rotate) == (until, (b"f",), False)


# --- weighted --------------------------------------------------------------------------------------------------------

WEIGHTS = """
# comment
X.org
10.0.0.1 3
  10.0.0.2   1
::ffff:10.0.0.3 2
y.org.
10.0.0.1 255
x.org
fd00::1 4
10.0.0.1 200
"""


def weighted(tmp_path: Path, text: str = WEIGHTS, options: str = "") -> Weighted:
    (tmp_path / "weights").write_text(text)
    site = new_site()
    site.root = str(tmp_path)
    plugin = set_up(Loadbalance, f"loadbalance weighted weights {{\n{options}\n}}", site)
    assert isinstance(plugin, Weighted)
    return plugin


def test_the_first_address_by_weight_and_the_others_stay(tmp_path: Path) -> None:
    plugin = weighted(tmp_path)
    found = orders(plugin, reply_of(*a(1, 2, 3)), times=6000)
    assert set(found) == {
        ("10.0.0.1", "10.0.0.2", "10.0.0.3"), ("10.0.0.2", "10.0.0.1", "10.0.0.3"), ("10.0.0.3", "10.0.0.2", "10.0.0.1")
    }  # fmt: skip
    share = {order[0]: count / 1000 for order, count in found.items()}
    assert share["10.0.0.1"] == pytest.approx(3, abs=0.3)
    assert share["10.0.0.3"] == pytest.approx(2, abs=0.3)


def test_addresses_without_a_weight_weigh_one(tmp_path: Path) -> None:
    found = orders(weighted(tmp_path), reply_of("X.ORG. 5 A 10.0.0.1", "x.org. 5 A 10.0.0.99"), times=4000)
    assert found["10.0.0.1", "10.0.0.99"] == pytest.approx(3000, abs=200)


def test_which_questions_and_sections(tmp_path: Path) -> None:
    plugin = weighted(tmp_path)
    addresses = tuple(record(text) for text in a(1, 2))
    for kind in (A, AAAA, SRV):
        seen = set()
        for _ in range(60):
            reply = at_once(plugin, ask(kind=kind), End(Reply(0, addresses, addresses, addresses, lease=LEASED)))
            assert reply.authority == addresses
            assert (reply.lease.until, reply.lease.facts) == (0.0, (b"f",))
            seen.add((reply.answer, reply.additional))
        assert len(seen) == 4
    reply = Reply(0, addresses, addresses, addresses, lease=LEASED)
    assert at_once(plugin, ask(kind=TXT), End(reply)) is reply
    reply = reply_of("x.org. 5 SRV 0 0 1 y.", "x.org. 5 CNAME z.")
    assert at_once(plugin, ask(kind=SRV), End(reply)) is reply


def test_order_of_groups_and_a_lease_without_choice(tmp_path: Path) -> None:
    reply = reply_of("x.org. 5 MX 1 m.", "x.org. 5 A 10.0.0.1", "x.org. 5 TXT t", "w.org. 5 CNAME x.org.")
    answered = at_once(weighted(tmp_path), ask(), End(reply))
    assert [line.split()[-1] for line in shown(answered.answer)] == ["x.org.", '"t"', "10.0.0.1", "m."]
    assert answered.lease == LEASED


async def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    plugin = weighted(tmp_path, "x.org\n10.0.0.1 255", "reload 5ms")
    with captured_log() as lines:
        await plugin.start()
        try:
            for text, sign in (
                ("x.org\n10.0.0.2 255\n", "[INFO] plugin/loadbalance: Successfully reloaded weight file"),
                ("10.0.0.1 1\n", "weights:1 - missing domain name"),
            ):
                (tmp_path / "weights").write_text(text)
                async with asyncio.timeout(5):
                    while not lines.matching(sign):
                        await asyncio.sleep(0.002)
            assert plugin._weights == {b"\1x\3org\0": {b"\n\0\0\2": 255}}
            (tmp_path / "weights").unlink()
            async with asyncio.timeout(5):
                while not lines.matching("No such file"):
                    await asyncio.sleep(0.002)
            assert plugin._weights
        finally:
            await plugin.stop()


async def test_a_missing_file_is_a_warning_unless_it_is_never_looked_at_again(tmp_path: Path) -> None:
    plugin = set_up(Loadbalance, f"loadbalance weighted {tmp_path}/nothing")
    with captured_log() as lines:
        await plugin.start()
        await plugin.stop()
    assert lines.matching(
        f"[WARNING] plugin/loadbalance: Failed to open weight file {tmp_path}/nothing. Will try again"
    )
    assert len(orders(plugin, reply_of(*a(1, 2)))) == 2
    assert "weight file open error" in refused(
        Loadbalance, f"loadbalance weighted {tmp_path}/nothing {{\nreload 0s\n}}"
    )


async def test_reload_0_never_looks_again(tmp_path: Path) -> None:
    plugin = weighted(tmp_path, options="reload 0s")
    await plugin.start()
    assert plugin._polling is None
    await plugin.stop()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1 1", "W:1 - missing domain name"),
        ("x.org\n10.0.0.1", 'W:2 - wrong domain name:"10.0.0.1" (Maybe a missing weight value?)'),
        ("x..org", 'W:1 - wrong domain name:"x..org": '),
        ("\n#\nx.org\n10.0.0 1", 'W:4 - wrong IP address:"10.0.0"'),
        ("x.org\n10.0.0.1 0", 'W:2 - wrong weight value:"0"'),
        ("x.org\n10.0.0.1 256", 'W:2 - wrong weight value:"256"'),
        ("x.org\n10.0.0.1 -1", 'W:2 - wrong weight value:"-1"'),
        ("x.org\n10.0.0.1 x", 'W:2 - wrong weight value:"x"'),
        ("x.org\n10.0.0.1 1 1", 'W:2 - could not parse weight line:"10.0.0.1 1 1"'),
        ("#" * (limits.WEIGHT_FILE + 1), f"weight file W is over {limits.WEIGHT_FILE} octets"),
    ],
)
def test_bad_weight_files(text: str, reason: str) -> None:
    with pytest.raises(BadWeights) as caught:
        parse_weights(text.encode(), "W")
    assert str(caught.value).startswith(reason)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("loadbalance fastest", "unknown policy: fastest"),
        ("loadbalance round_robin x", "unknown property for round_robin"),
        ("loadbalance {\nreload 5s\n}", "unknown property 'reload'"),
        ("loadbalance {\nprefer 10.0.0.1\n}", "invalid CIDR address: 10.0.0.1"),
        ("loadbalance weighted", "missing weight file argument"),
        ("loadbalance weighted a b", "unexpected argument(s)"),
        ("loadbalance weighted a {\nprefer 10.0.0.0/8\n}", "unknown property 'prefer'"),
        ("loadbalance weighted a {\nreload\n}", "Wrong argument count or unexpected line ending after 'reload'"),
        ("loadbalance weighted a {\nreload x\n}", 'time: invalid duration "x"'),
    ],
)
def test_what_is_wrong(text: str, reason: str) -> None:
    assert refused(Loadbalance, text) == reason


def test_a_bad_weight_file_refuses_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("x.org\n10.0.0.1 0\n")
    assert refused(Loadbalance, f"loadbalance weighted {tmp_path}/weights").endswith(
        'weights:2 - wrong weight value:"0"'
    )
