"""The cache plugin: what it keeps, for how long, and what it says then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from kdns import limits, message
from kdns.corefile import Directive
from kdns.message import (
    AA,
    AAAA,
    AD,
    AXFR,
    CD,
    FOREVER,
    NXDOMAIN,
    RA,
    RD,
    REFUSED,
    SERVFAIL,
    TC,
    A,
    Edns,
    Lease,
    Listener,
    Query,
    Record,
    Reply,
    failure,
)
from kdns.name import from_text
from kdns.plugin import Process, Site
from kdns.plugins.cache import Cache, verdict
from kdns.plugins.cache.options import Half, Options, behind, parse
from tests.plugintest import Clock, End, ask, at_once, new_site, record, refused, set_up, shown, uses
from tests.support import captured_log

SOA = record("example.org. 60 SOA ns. host. 1 2 3 4 60")
LABELS = ("dns://:53", ".", "")


class World:
    """A cache in front of an end that answers what it is told to."""

    def __init__(self, text: str = "cache", reply: Reply | None = None) -> None:
        self.clock = Clock()
        self.process = Process(self.clock)
        self.site = new_site(process=self.process)
        self.site.listens = ("dns://:53",)
        plugin = set_up(Cache, text, self.site)
        assert isinstance(plugin, Cache)
        self.cache = plugin
        self.reply = reply or good()
        self.end = End(lambda query: self.reply)

    async def start(self) -> World:
        await self.cache.start()
        return self

    def ask(self, query: Query | None = None) -> Reply:
        return at_once(self.cache, query or ask(), self.end)

    async def wait_ask(self, query: Query | None = None) -> Reply:
        return await self.cache.resolve(query or ask(), self.end)

    async def settle(self) -> None:
        """Let all refreshes come to their end."""
        while self.cache._refreshes:
            await asyncio.sleep(0)

    @property
    def asked(self) -> int:
        return len(self.end.asked)

    def value(self, name: str, kind: str = "") -> float:
        self.process.metrics.settle()
        labels = ("dns://:53", kind, ".", "") if kind else LABELS
        family = self.process.metrics._families[f"coredns_cache_{name}"]
        return float(family.cell(*labels).value)


Start = Callable[..., Coroutine[Any, Any, World]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Make a World; its cache is stopped at the end."""
    worlds: list[World] = []

    async def make(text: str = "cache", reply: Reply | None = None) -> World:
        worlds.append(await World(text, reply).start())
        return worlds[-1]

    yield make
    for world in worlds:
        await world.cache.stop()


def good(*texts: str, **fields: Any) -> Reply:
    records = tuple(record(text) for text in texts or ("example.org. 30 A 192.0.2.1",))
    return Reply(answer=records, plugin="end", **fields)


def denied(rcode: int = NXDOMAIN, soa: Record | None = SOA, **fields: Any) -> Reply:
    return Reply(rcode, authority=(soa,) if soa else (), plugin="end", **fields)


def addresses(reply: Reply) -> list[str]:
    return [line.split()[-1] for line in shown(reply.answer)]


# --- hits and misses -------------------------------------------------------------------------------------------------


async def test_a_second_question_is_answered_from_the_cache(start: Start) -> None:
    world = await start(reply=good(flags=RA))
    first = world.ask()
    assert (first.flags, first.plugin, shown(first.answer)) == (RA, "end", ["example.org. 30 A 192.0.2.1"])
    world.clock.now += 12.5
    second = world.ask(ask("EXAMPLE.org."))
    assert (second.flags, second.plugin, shown(second.answer)) == (AA | RA, "cache", ["example.org. 18 A 192.0.2.1"])
    assert world.asked == 1
    assert world.value("requests_total") == 2
    assert world.value("misses_total") == 1
    assert world.value("hits_total", "success") == 1
    assert world.value("entries", "success") == 1


@pytest.mark.parametrize(
    "other",
    [
        ask("www.example.org."),
        ask(kind=AAAA),
        ask(klass=message.CH),
        ask(flags=RD | CD),
        ask(edns=Edns(1232, True)),
    ],
)
async def test_what_tells_questions_apart(start: Start, other: Query) -> None:
    world = await start()
    world.ask()
    world.ask(other)
    assert world.asked == 2


@pytest.mark.parametrize(
    "other",
    [ask(flags=0), ask(flags=RD | AD), ask(edns=Edns(1232, False)), ask(peer=("2001:db8::1", 1)), ask("EXAMPLE.ORG.")],
)
async def test_what_does_not(start: Start, other: Query) -> None:
    world = await start()
    world.ask()
    world.ask(other)
    assert world.asked == 1


async def test_servers_share_entries_and_are_counted_apart(start: Start) -> None:
    world = await start()
    world.ask()
    world.ask(ask(listener=Listener("dns://10.0.0.1:53")))
    assert world.asked == 1
    assert world.value("hits_total", "success") == 0
    hits = world.process.metrics._families["coredns_cache_hits_total"]
    assert hits.cell("dns://10.0.0.1:53", "success", ".", "").value == 1


async def test_only_below_its_zones(start: Start) -> None:
    world = await start("cache 30 org. example.net.")
    for name, times in (("example.org.", 1), ("example.com.", 2), ("net.", 2), ("a.example.net.", 1)):
        before = world.asked
        world.reply = good(f"{name} 3600 A 192.0.2.1")
        replies = [world.ask(ask(name)) for _ in range(2)]
        assert world.asked - before == times
        assert replies[0].answer[0].ttl == (30 if times == 1 else 3600)
    requests = world.process.metrics._families["coredns_cache_requests_total"]
    assert requests.cell("dns://:53", "org.,example.net.", "").value == 4


async def test_transfers_pass_untouched(start: Start) -> None:
    world = await start("cache 5")
    for _ in range(2):
        assert world.ask(ask(kind=AXFR)) is world.reply
    assert world.asked == 2


# --- how long --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reply", "ttl"),
    [
        ("cache", good("example.org. 7200 A 192.0.2.1"), 3600),
        ("cache 30", good("example.org. 7200 A 192.0.2.1"), 30),
        ("cache", good("example.org. 1 A 192.0.2.1"), 5),
        ("cache 3", good("example.org. 300 A 192.0.2.1"), 3),
        ("cache {\nsuccess 1000 100 20\n}", good("example.org. 7 A 192.0.2.1"), 20),
        ("cache {\nsuccess 1000 100 20\n}", good("example.org. 700 A 192.0.2.1"), 100),
        ("cache {\nsuccess 1000 100 0\n}", good("example.org. 1 A 192.0.2.1"), 1),
        ("cache", good("example.org. 90 A 192.0.2.1", "example.org. 80 A 192.0.2.2"), 80),
        ("cache", good("example.org. 90 A 192.0.2.1", authority=(record("org. 70 NS ns."),)), 70),
        ("cache", good("example.org. 90 A 192.0.2.1", additional=(record("ns. 20 A 192.0.2.5"),)), 20),
        ("cache", denied(), 60),
        ("cache", denied(message.NOERROR), 60),
        ("cache", denied(soa=record("org. 7200 SOA ns. host. 1 2 3 4 7200")), 1800),
        # RFC 2308 section 5; CoreDNS looks at the TTL alone.
        ("cache", denied(soa=record("org. 7200 SOA ns. host. 1 2 3 4 40")), 40),
        ("cache", denied(soa=record("org. 50 SOA ns. host. 1 2 3 4 400")), 50),
        ("cache", denied(soa=record("org. 50 SOA ns. host. 1 2 3 4 4294967295")), 5),
        ("cache {\ndenial 1000 100 20\n}", denied(soa=record("org. 7 SOA ns. host. 1 2 3 4 7")), 20),
        ("cache 10", denied(), 10),
        ("cache", Reply(SERVFAIL, additional=(record("x. 90 TXT y"),)), 5),
        ("cache {\nservfail 20s\n}", Reply(SERVFAIL, additional=(record("x. 90 TXT y"),)), 20),
        ("cache {\nservfail 20s\n}", Reply(message.NOTIMP, additional=(record("x. 90 TXT y"),)), 20),
        ("cache", Reply(authority=(record("example.org. 600 NS ns."),)), 5),
        ("cache", Reply(additional=(record("example.org. 600 TXT hello"),)), 600),
        ("cache", Reply(), 5),
    ],
)
async def test_lifetimes(start: Start, text: str, reply: Reply, ttl: int) -> None:
    world = await start(text, reply)
    first = world.ask()
    ttls = {record.ttl for section in (first.answer, first.authority, first.additional) for record in section}
    assert ttls <= {ttl}
    world.clock.now += ttl - 0.001
    last = world.ask()
    assert world.asked == 1
    ttls = {record.ttl for section in (last.answer, last.authority, last.additional) for record in section}
    assert ttls <= {1}
    assert last.rcode == reply.rcode
    world.clock.now += 0.001
    world.ask()
    assert world.asked == 2


async def test_ttls_count_down_by_whole_seconds(start: Start) -> None:
    world = await start()
    world.ask()
    for elapsed, ttl in ((0.0, 30), (0.9, 30), (1.0, 29), (1.9, 29), (29.0, 1), (29.9, 1)):
        world.clock.now = 1000.0 + elapsed
        assert world.ask().answer[0].ttl == ttl


async def test_keepttl(start: Start) -> None:
    world = await start("cache {\nkeepttl\n}")
    world.ask()
    world.clock.now += 29.5
    reply = world.ask()
    assert reply.answer[0].ttl == 30
    assert not reply.lease.age
    world.clock.now += 0.5
    world.ask()
    assert world.asked == 2


# --- what is not kept ------------------------------------------------------------------------------------------------

SIGNED = "A 8 2 30 20360101000000 20260101000000 1 example.org. AAAA"


def signature(expires: float, begins: float = 0.0) -> Record:
    now = int(time.time())
    data = b"\0\1\10\2\0\0\0\36" + (now + int(expires)).to_bytes(4, "big") + (now + int(begins)).to_bytes(4, "big")
    return Record(from_text("example.org."), message.RRSIG, 30, data + b"\0\1\0signature")


@pytest.mark.parametrize(
    "reply",
    [
        good(flags=TC),
        Reply(REFUSED),
        Reply(message.FORMERR),
        denied(soa=None),
        good("example.org. 30 CNAME www.example.org.", rcode=NXDOMAIN, authority=(SOA,)),
        good("example.org. 30 CNAME www.example.org."),
        good("example.org. 30 CNAME www.example.org.", "www.example.org. 30 CNAME example.org."),
        good(
            "example.org. 30 CNAME a.example.org.", "example.org. 30 CNAME b.example.org.", "b.example.org. 5 A 1.2.3.4"
        ),
        good("www.example.org. 30 A 192.0.2.1"),
        failure(SERVFAIL, "no next plugin found"),
        failure(SERVFAIL, "not ready", ede=((message.EDE_NOT_READY, ""),)),
        Reply(SERVFAIL, ede=((message.EDE_NOT_READY, ""),)),
        Reply(drop=True),
    ],
)
async def test_never_kept(start: Start, reply: Reply) -> None:
    world = await start(reply=reply)
    for _ in range(2):
        again = world.ask()
        assert (again.rcode, len(again.answer), again.drop) == (reply.rcode, len(reply.answer), reply.drop)
    assert world.asked == 2
    assert world.value("misses_total") == 2


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (good("example.org. 30 CNAME www.example.org.", "WWW.example.org. 30 A 192.0.2.1"), "success"),
        (good("example.org. 30 CNAME www.example.org.", authority=(SOA,)), "denial"),
        (denied(message.NOERROR), "denial"),
        (Reply(SERVFAIL), "denial"),
        (Reply(), "success"),
    ],
)
async def test_kept_in_which_half(start: Start, reply: Reply, kind: str) -> None:
    world = await start(reply=reply)
    world.ask()
    world.ask()
    assert world.value("hits_total", kind) == 1
    assert world.value("entries", kind) == 1
    assert world.asked == 1


@pytest.mark.parametrize(
    ("kind", "answer", "kept"),
    [
        (message.CNAME, ["example.org. 30 CNAME www.example.org."], True),
        (message.CNAME, ["www.example.org. 30 CNAME example.org."], False),
        (message.ANY, ["example.org. 30 TXT x"], True),
        (message.ANY, ["www.example.org. 30 TXT x"], False),
        (AAAA, ["example.org. 30 A 192.0.2.1"], False),
    ],
)
async def test_what_answers_a_question(start: Start, kind: int, answer: list[str], kept: bool) -> None:
    world = await start(reply=good(*answer))
    for _ in range(2):
        world.ask(ask(kind=kind))
    assert world.asked == (1 if kept else 2)


@pytest.mark.parametrize(("expires", "begins", "kept"), [(100, -100, True), (-1, -100, False), (100, 50, False)])
async def test_signatures_out_of_their_time_are_not_kept(
    start: Start, expires: float, begins: float, kept: bool
) -> None:
    answer = (record("example.org. 30 A 192.0.2.1"), signature(expires, begins))
    world = await start(reply=Reply(answer=answer))
    for _ in range(2):
        world.ask(ask(edns=Edns(1232, True)))
    assert world.asked == (1 if kept else 2)
    for _ in range(2):  # who does not ask for signatures does not care
        world.ask()
    assert world.asked == (2 if kept else 3)


async def test_an_upstream_that_fails_is_not_asked_again_for_a_second(start: Start) -> None:
    world = await start(reply=failure(SERVFAIL, "timed out", ede=((message.EDE_NO_REACHABLE_AUTHORITY, ""),)))
    assert world.ask().error == "timed out"
    again = world.ask()
    assert (again.rcode, again.error, again.ede) == (SERVFAIL, "", ((message.EDE_CACHED_ERROR, ""),))
    assert world.asked == 1
    world.clock.now += 1.0
    world.ask()
    assert world.asked == 2


async def test_servfail_0_keeps_no_failures(start: Start) -> None:
    world = await start("cache {\nservfail 0\n}", Reply(SERVFAIL))
    world.ask()
    world.ask()
    world.reply = failure(SERVFAIL, "timed out", ede=((message.EDE_NETWORK_ERROR, ""),))
    world.ask()
    world.ask()
    assert world.asked == 4


@pytest.mark.parametrize(
    ("text", "reply", "name", "kept"),
    [
        ("disable success", good(), "example.org.", False),
        ("disable success", denied(), "example.org.", True),
        ("disable denial", denied(), "example.org.", False),
        ("disable denial", Reply(SERVFAIL), "example.org.", False),
        ("disable denial", good(), "example.org.", True),
        ("disable success cluster.local example.org", good("a.example.org. 9 A 1.2.3.4"), "a.example.org.", False),
        ("disable success cluster.local", good(), "example.org.", True),
        ("disable denial org\ndisable denial net", denied(), "example.org.", True),
    ],
)
async def test_disable(start: Start, text: str, reply: Reply, name: str, kept: bool) -> None:
    world = await start(f"cache 5 {{\n{text}\n}}", reply)
    for _ in range(2):
        answered = world.ask(ask(name))
        assert all(record.ttl == 5 for record in answered.answer + answered.authority)
    assert world.asked == (1 if kept else 2)


# --- DNSSEC ----------------------------------------------------------------------------------------------------------


async def test_ad_is_asked_for_and_shown_to_who_asks_for_it(start: Start) -> None:
    world = await start(reply=good(flags=AD | RA))
    assert not world.ask().flags & AD
    assert world.end.asked[0].flags == RD | AD
    assert world.ask(ask(flags=AD)).flags & AD
    assert not world.ask().flags & AD
    assert world.asked == 1
    assert world.ask(ask(edns=Edns(1232, True))).flags & AD
    assert world.ask(ask(edns=Edns(1232, True))).flags & AD


# --- the two halves --------------------------------------------------------------------------------------------------


def name(number: int) -> Query:
    return ask(f"n{number}.example.org.")


async def test_halves_are_bounded_and_apart(start: Start) -> None:
    world = await start("cache {\nsuccess 1\ndenial 1300\n}")
    world.end = End(lambda query: Reply(answer=(Record(query.name, A, 30, b"\1\2\3\4"),)))
    for number in range(1100):
        world.ask(name(number))
    assert world.value("entries", "success") == 1024
    assert world.value("evictions_total", "success") == 76
    world.end = End(lambda query: denied())
    for number in range(2000, 5000):
        world.ask(name(number))
    assert world.value("entries", "success") == 1024
    assert world.value("entries", "denial") == 1280
    assert world.value("evictions_total", "denial") == 1720


async def test_the_least_recently_used_goes_first(start: Start) -> None:
    world = await start("cache {\nsuccess 1024\n}")
    world.end = End(lambda query: Reply(answer=(Record(query.name, A, 30, b"\1\2\3\4"),)))
    for number in range(3000):
        world.ask(name(number))
        world.ask(name(0))
    assert world.asked == 3000


async def test_halves_are_bounded_in_memory(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CACHE_BYTES", 100_000)
    world = await start()
    world.end = End(lambda query: Reply(answer=(Record(query.name, message.TXT, 30, b"x" * 9000),)))
    for number in range(30):
        world.ask(ask(f"n{number}.example.org.", message.TXT))
    assert world.value("entries", "success") == 10
    assert world.value("evictions_total", "success") == 20


async def test_a_servfail_yields_to_an_answer_and_a_denial_replaces_it(start: Start) -> None:
    world = await start("cache 30 {\nprefetch 1 1m 90%\n}")
    world.ask()
    world.clock.now += 10
    world.reply = Reply(SERVFAIL)
    world.ask()
    await world.settle()
    assert world.asked == 2
    assert world.ask().rcode == message.NOERROR  # although the SERVFAIL is kept, too
    assert world.value("entries", "denial") == 1
    await world.settle()
    world.reply = denied()
    world.ask()
    await world.settle()
    assert world.ask().rcode == NXDOMAIN
    assert world.value("entries", "success") == 0


# --- facts -----------------------------------------------------------------------------------------------------------


def standing(reply: Reply, *facts: bytes) -> Reply:
    return reply.leased(Lease(2000.0, facts))


@pytest.mark.parametrize("reply", [good(), denied(), Reply(SERVFAIL), Reply()])
async def test_what_stands_on_a_changed_fact_goes(start: Start, reply: Reply) -> None:
    world = await start(reply=standing(reply, b"svc/a", b"ns/b"))
    world.ask()
    world.site.facts.drop([b"svc/b"])
    world.ask()
    assert world.asked == 1
    world.site.facts.drop([b"ns/b"])
    assert len(world.cache._store.success) == len(world.cache._store.denial) == 0
    world.ask()
    assert world.asked == 2
    assert world.process.metrics._families["kdns_cache_dropped_total"].cell().value == 1


async def test_what_was_computed_before_a_change_is_not_kept_after_it(start: Start) -> None:
    world = await start()
    replies = {"example.org.": standing(good(), b"svc/a"), "other.org.": good("other.org. 30 A 192.0.2.1")}

    def change(query: Query) -> Reply:
        world.site.facts.drop([b"anything"])
        return replies["other.org." if query.name == from_text("other.org.") else "example.org."]

    world.end = End(change)
    for _ in range(2):
        world.ask()
    assert world.asked == 2
    for _ in range(2):
        world.ask(ask("other.org."))
    assert world.asked == 3


async def test_expired_entries_on_changed_facts_are_not_served_stale(start: Start) -> None:
    world = await start("cache {\nserve_stale\n}", standing(good(), b"svc/a"))
    world.ask()
    world.clock.now += 100
    world.site.facts.drop([b"svc/a"])
    world.reply = Reply(SERVFAIL)
    assert world.ask().rcode == SERVFAIL


async def test_evicted_entries_leave_no_facts_behind(start: Start) -> None:
    world = await start("cache {\nsuccess 1024\n}")
    world.end = End(lambda query: standing(Reply(answer=(Record(query.name, A, 30, b"\1\2\3\4"),)), query.name))
    for number in range(1100):
        world.ask(name(number))
    assert len(world.cache._store._standing) == 1024


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_the_first_reply_is_not_to_be_repeated_and_a_hit_is(start: Start) -> None:
    world = await start(reply=standing(good(), b"svc/a"))
    assert world.ask().lease == Lease(0.0, (b"svc/a",))
    world.clock.now += 1.5
    lease = world.ask().lease
    assert (lease.until, lease.facts, lease.age, lease.rotate) == (1030.0, (b"svc/a",), True, False)
    (duty,) = lease.duties
    duty(7, 40, 60)
    assert world.value("hits_total", "success") == 8
    assert world.value("requests_total") == 9
    assert world.value("misses_total") == 1


async def test_denials_and_failures_may_be_repeated_too(start: Start) -> None:
    world = await start(reply=denied())
    world.ask()
    lease = world.ask().lease
    assert lease.until == 1060.0
    lease.duties[0](3, 40, 60)
    assert world.value("hits_total", "denial") == 4
    world = await start(reply=Reply(SERVFAIL))
    world.ask()
    again = world.ask()
    assert again.lease.until == 1005.0
    assert again.ede == ((message.EDE_CACHED_ERROR, ""),)


@pytest.mark.parametrize(("reply", "kind"), [(good("example.org. 9 A 1.2.3.4"), "success"), (denied(), "denial")])
async def test_what_is_true_until_a_fact_changes_is_left_to_the_packet_cache(
    start: Start, reply: Reply, kind: str
) -> None:
    world = await start("cache 5", reply.leased(Lease(FOREVER, (b"svc/a",))))
    for asked in (1, 2):
        first = world.ask()
        assert {record.ttl for record in first.answer + first.authority} == {5}
        assert (first.lease.until, first.lease.facts, first.lease.age) == (FOREVER, (b"svc/a",), False)
        assert world.asked == asked
    first.lease.duties[0](5, 40, 60)
    assert world.value("hits_total", kind) == 5
    assert world.value("requests_total") == 7
    assert world.value("entries", kind) == 0


async def test_what_is_not_kept_keeps_its_lease(start: Start) -> None:
    world = await start("cache {\ndisable success\n}", good().leased(Lease(FOREVER, (b"svc/a",))))
    lease = world.ask().lease
    assert (lease.until, lease.facts, lease.age) == (FOREVER, (b"svc/a",), False)
    lease.duties[0](5, 40, 60)
    assert world.value("requests_total") == world.value("misses_total") == 6
    world.reply = good()
    assert world.ask().lease == Lease()


# --- prefetch --------------------------------------------------------------------------------------------------------


async def prefetching(start: Start, text: str = "prefetch 3", ttl: int = 100) -> World:
    world = await start(f"cache {{\n{text}\n}}", good(f"example.org. {ttl} A 192.0.2.1"))
    world.ask()
    world.reply = good(f"example.org. {ttl} A 192.0.2.2")
    return world


async def test_what_is_popular_is_fetched_before_it_expires(start: Start) -> None:
    world = await prefetching(start, "prefetch 3 200s")
    world.ask()
    world.ask()
    world.clock.now += 89.9
    world.ask()
    await world.settle()
    assert world.asked == 1  # the window is not open yet
    world.clock.now += 0.1
    assert addresses(world.ask()) == ["192.0.2.1"]
    await world.settle()
    assert world.asked == 2
    assert world.value("prefetch_total") == 1
    reply = world.ask()
    assert (addresses(reply), reply.answer[0].ttl) == (["192.0.2.2"], 100)
    # It stays popular.
    world.clock.now += 91
    world.ask()
    await world.settle()
    assert world.asked == 3


async def test_what_is_not_popular_is_not(start: Start) -> None:
    world = await prefetching(start, "prefetch 3 60s 50%")
    world.ask()
    world.ask()
    world.clock.now += 60.5  # a gap: counting begins again
    world.ask()
    world.ask()
    await world.settle()
    assert world.asked == 1
    world.ask()
    await world.settle()
    assert world.asked == 2


async def test_one_prefetch_at_a_time_with_the_askers_identity(start: Start) -> None:
    world = await prefetching(start, "prefetch 1 1h 90%")
    world.clock.now += 50
    asker = ask(peer=("198.51.100.9", 999), flags=RD).replace(metadata={})
    wait = asyncio.Event()

    async def slow(query: Query) -> Reply:
        await wait.wait()
        return await world.end(query)

    for _ in range(3):
        at_once(world.cache, asker, slow)
        await asyncio.sleep(0)
    assert world.value("prefetch_total") == 1
    wait.set()
    await world.settle()
    (_, refreshed) = world.end.asked
    assert (refreshed.peer, refreshed.listener, refreshed.flags) == (asker.peer, asker.listener, RD | AD)
    assert refreshed.metadata == {} and refreshed.metadata is not asker.metadata


async def test_replays_end_when_the_window_opens_and_count(start: Start) -> None:
    world = await prefetching(start, "prefetch 3 1h")
    world.clock.now += 0.5
    lease = world.ask().lease
    assert lease.until == 1090.0
    assert lease.age
    world.clock.now = 1090.0
    lease.duties[0](2, 40, 60)
    assert world.value("hits_total", "success") == 3
    assert world.ask().lease.until == 0.0
    await world.settle()
    assert world.asked == 2


async def test_replays_do_not_run_over_a_gap(start: Start) -> None:
    world = await prefetching(start, "prefetch 3 10s")
    world.clock.now += 0.5
    lease = world.ask().lease
    assert lease.until == 1010.0  # within the gap, and a whole number of seconds before the expiry
    world.clock.now = 1095.0
    lease.duties[0](50, 40, 60)  # the last of them was at 1010 at the latest
    world.ask()
    world.ask()
    await world.settle()
    assert world.asked == 1


async def test_prefetch_0_is_none(start: Start) -> None:
    world = await prefetching(start, "prefetch 0")
    assert world.ask().lease.until == 1100.0


# --- stale answers ---------------------------------------------------------------------------------------------------


async def stale(start: Start, text: str, reply: Reply | None = None, policy: str = "") -> World:
    """A cache whose one entry has just expired."""
    world = await start(f"cache {{\n{text}\n{policy}\n}}", reply)
    world.ask()
    world.clock.now += 60
    world.reply = good("example.org. 30 A 192.0.2.2")
    return world


STALE = ((message.EDE_STALE_ANSWER, ""),)


async def test_immediate(start: Start) -> None:
    world = await stale(start, "serve_stale")
    reply = world.ask()
    assert shown(reply.answer) == ["example.org. 0 A 192.0.2.1"]
    assert (reply.ede, reply.lease.until, reply.flags, reply.plugin) == (STALE, 0.0, AA, "cache")
    world.ask()  # before the refresh has run: no second one
    await world.settle()
    assert world.asked == 2
    assert shown(world.ask().answer) == ["example.org. 30 A 192.0.2.2"]
    assert world.value("served_stale_total") == 2
    assert world.value("hits_total", "success") == 3
    assert world.value("prefetch_total") == 1
    assert world.value("misses_total") == 1


async def test_a_stale_nxdomain_says_so(start: Start) -> None:
    world = await stale(start, "serve_stale", denied())
    reply = world.ask()
    assert (reply.rcode, reply.ede) == (NXDOMAIN, ((message.EDE_STALE_NXDOMAIN, ""),))
    await world.settle()
    assert addresses(world.ask()) == ["192.0.2.2"]


async def test_not_for_ever(start: Start) -> None:
    world = await stale(start, "serve_stale 2m", good())
    world.reply = Reply(SERVFAIL)
    world.clock.now += 89.9
    assert world.ask().rcode == 0
    await world.settle()
    world.clock.now += 0.1
    assert world.ask().rcode == SERVFAIL


async def test_failures_are_never_served_stale(start: Start) -> None:
    world = await stale(start, "serve_stale", Reply(SERVFAIL))
    assert world.ask().rcode == 0
    assert world.asked == 2


@pytest.mark.parametrize(
    ("text", "ttl"),
    [("serve_stale 1h immediate 30s", 30), ("serve_stale\nkeepttl", 30), ("serve_stale 1h verify 0 7s", 7)],
)
async def test_ttl_of_stale_answers(start: Start, text: str, ttl: int) -> None:
    world = await stale(start, text)
    world.reply = Reply(SERVFAIL)
    reply = await world.wait_ask()
    assert shown(reply.answer) == [f"example.org. {ttl} A 192.0.2.1"]


async def test_recheck(start: Start) -> None:
    world = await stale(start, "serve_stale 1h immediate 0s 30s")
    world.reply = Reply(SERVFAIL)
    for elapsed, asked in ((0, 2), (29, 2), (2, 3), (1, 3)):
        world.clock.now += elapsed
        assert addresses(world.ask()) == ["192.0.2.1"]
        await world.settle()
        assert world.asked == asked


async def test_without_recheck_each_question_tries_again(start: Start) -> None:
    world = await stale(start, "serve_stale")
    world.reply = Reply(SERVFAIL)
    for asked in (2, 3, 4):
        assert addresses(world.ask()) == ["192.0.2.1"]
        await world.settle()
        assert world.asked == asked


@pytest.mark.parametrize(
    ("fresh", "taken"),
    [
        (good("example.org. 30 A 192.0.2.2"), True),
        (denied(), True),
        (Reply(), True),
        (Reply(SERVFAIL), False),
        (failure(SERVFAIL, "timed out", ede=((message.EDE_NO_REACHABLE_AUTHORITY, ""),)), False),
        (Reply(REFUSED), False),
        (good("example.org. 30 A 192.0.2.2", flags=TC), False),
        (Reply(drop=True), False),
    ],
)
@pytest.mark.parametrize("timeout", ["", "5s"])
async def test_verify(start: Start, fresh: Reply, taken: bool, timeout: str) -> None:
    world = await stale(start, f"serve_stale 1h verify {timeout}")
    world.reply = fresh
    reply = await world.wait_ask()
    assert world.asked == 2
    if taken:
        assert (reply.rcode, len(reply.answer), reply.ede) == (fresh.rcode, len(fresh.answer), ())
        assert reply.plugin == ("cache" if timeout else fresh.plugin)
        assert world.value("served_stale_total") == 0
    else:
        assert (shown(reply.answer), reply.ede) == (["example.org. 0 A 192.0.2.1"], STALE)
        assert world.value("served_stale_total") == 1
    assert world.value("prefetch_total") == 0
    await world.wait_ask()
    assert world.asked == (2 if taken else 3)


async def test_verify_gives_up_after_its_time_and_goes_on_behind(start: Start) -> None:
    world = await stale(start, "serve_stale 1h verify 1ms")
    arrived = asyncio.Event()

    async def slow(query: Query) -> Reply:
        await arrived.wait()
        return await world.end(query)

    replies = await asyncio.gather(*(world.cache.resolve(ask(), slow) for _ in range(5)))
    assert {address for reply in replies for address in addresses(reply)} == {"192.0.2.1"}
    arrived.set()
    await asyncio.gather(*world.cache._refreshes.values())
    assert world.asked == 2  # one refresh for all of them
    assert addresses(world.ask()) == ["192.0.2.2"]


async def test_who_waits_for_the_same_verification_gets_the_same_answer(start: Start) -> None:
    world = await stale(start, "serve_stale 1h verify")
    arrived = asyncio.Event()

    async def slow(query: Query) -> Reply:
        await arrived.wait()
        return await world.end(query)

    waiting = [asyncio.create_task(world.cache.resolve(ask(), slow)) for _ in range(5)]
    await asyncio.sleep(0)
    arrived.set()
    assert [addresses(reply) for reply in await asyncio.gather(*waiting)] == [["192.0.2.2"]] * 5
    assert world.asked == 2


async def test_verify_with_recheck(start: Start) -> None:
    world = await stale(start, "serve_stale 1h verify 0 0s 30s")
    world.reply = Reply(SERVFAIL)
    for elapsed, asked in ((0, 2), (29, 2), (2, 3)):
        world.clock.now += elapsed
        assert addresses(await world.wait_ask()) == ["192.0.2.1"]
        assert world.asked == asked
    # While a refresh is under way nobody waits for it.
    world.clock.now += 31
    arrived = asyncio.Event()

    async def slow(query: Query) -> Reply:
        await arrived.wait()
        return await world.end(query)

    first = asyncio.create_task(world.cache.resolve(ask(), slow))
    await asyncio.sleep(0)
    assert addresses(world.ask()) == ["192.0.2.1"]
    arrived.set()
    assert (await first).ede == STALE


async def test_a_bug_behind_the_cache_does_not_keep_stale_answers_back(start: Start) -> None:
    world = await stale(start, "serve_stale 1h verify")

    def bug(query: Query) -> Reply:
        raise ZeroDivisionError

    world.end = End(bug)
    with captured_log() as lines:
        assert addresses(await world.wait_ask()) == ["192.0.2.1"]
    assert lines.matching("[ERROR] plugin/cache: refresh failed: ZeroDivisionError()")


async def test_refreshes_are_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CACHE_REFRESHES", 3)
    world = await start("cache {\nserve_stale\n}")
    world.end = End(lambda query: Reply(answer=(Record(query.name, A, 30, b"\1\2\3\4"),)))
    for number in range(5):
        world.ask(name(number))
    world.clock.now += 60
    for number in range(5):
        assert world.ask(name(number)).ede == STALE
    skipped = world.process.metrics._families["kdns_cache_refreshes_skipped_total"].cell()
    assert skipped.value == 2
    await world.settle()
    assert world.asked == 8
    for number in range(5):
        world.ask(name(number))
    await world.settle()
    assert (world.asked, skipped.value) == (10, 2)


async def test_stop_ends_refreshes(start: Start) -> None:
    world = await stale(start, "serve_stale 1h verify")
    never = asyncio.Event()

    async def hang(query: Query) -> Reply:
        await never.wait()
        raise AssertionError

    waiting = asyncio.create_task(world.cache.resolve(ask(), hang))
    await asyncio.sleep(0)
    await world.cache.stop()
    assert addresses(await waiting) == ["192.0.2.1"]
    await world.cache.start()


POLICY = "serve_stale_policy prefer_positive"


@pytest.mark.parametrize("fresh", [denied(), Reply(SERVFAIL), Reply(), Reply(authority=(record("org. 5 NS ns."),))])
@pytest.mark.parametrize("mode", ["immediate", "verify", "verify 5s"])
async def test_prefer_positive_keeps_the_last_answer(start: Start, fresh: Reply, mode: str) -> None:
    world = await stale(start, f"serve_stale 1h {mode}", policy=POLICY)
    world.reply = fresh
    for _ in range(3):
        reply = await world.wait_ask()
        assert (addresses(reply), reply.ede) == (["192.0.2.1"], STALE)
        await world.settle()
    world.reply = good("example.org. 30 A 192.0.2.2")
    await world.wait_ask()
    await world.settle()
    reply = await world.wait_ask()
    assert (addresses(reply), reply.ede) == (["192.0.2.2"], ())
    world.clock.now += 3630
    world.reply = denied()
    assert (await world.wait_ask()).rcode == NXDOMAIN


async def test_without_it_the_newest_reply_counts(start: Start) -> None:
    world = await stale(start, "serve_stale")
    world.reply = denied()
    world.ask()
    await world.settle()
    assert world.ask().rcode == NXDOMAIN


async def test_a_preferred_answer_goes_with_its_facts(start: Start) -> None:
    world = await stale(start, "serve_stale", standing(good(), b"svc/a"), POLICY)
    world.reply = Reply()
    world.ask()
    await world.settle()
    assert addresses(world.ask()) == ["192.0.2.1"]
    world.site.facts.drop([b"svc/a"])
    await world.settle()
    assert addresses(world.ask()) == []


# --- metadata --------------------------------------------------------------------------------------------------------


async def test_the_wildcard_behind_an_answer_is_told_again(start: Start) -> None:
    world = await start()

    def wild(query: Query) -> Reply:
        assert query.metadata is not None
        query.metadata["zone/wildcard"] = lambda: "*.org."
        return good()

    world.end = End(wild)
    for _ in range(2):
        query = ask().replace(metadata={})
        world.ask(query)
        assert query.metadata is not None and query.metadata["zone/wildcard"]() == "*.org."
    assert world.asked == 1


# --- reload ----------------------------------------------------------------------------------------------------------


def configured(process: Process, block: str) -> Site:
    site = new_site(process=process)
    site.listens = ("dns://:53",)
    site.directives = uses(block)
    return site


async def test_what_is_kept_outlives_a_reload_unless_the_plugins_behind_change() -> None:
    process = Process(Clock())
    end = End(good())

    async def asked(block: str) -> int:
        site = configured(process, block)
        directives = [use for use in site.directives if use.name == "cache"]
        plugin = Cache.setup(directives, site)
        await plugin.start()
        process.warehouse.keep_only(site.taken)
        before = len(end.asked)
        at_once(plugin, ask(), end)
        await plugin.stop()
        return len(end.asked) - before

    assert await asked("errors\ncache 30\nforward . 192.0.2.1") == 1
    assert await asked("errors\ncache 30\nforward . 192.0.2.1") == 0
    assert await asked("log\ncache 60 {\nsuccess 2000\n}\nforward . 192.0.2.1\nrewrite name a b") == 0
    assert await asked("cache 30\nforward . 192.0.2.1 {\nforce_tcp\n}") == 1
    assert await asked("cache 30\nhosts {\n10.0.0.1 a\n}\nforward . 192.0.2.1 {\nforce_tcp\n}") == 1
    assert process.facts._subscribers and len(process.facts._subscribers) == 1


async def test_a_smaller_capacity_is_in_force_after_a_reload() -> None:
    process = Process(Clock())
    end = End(lambda query: Reply(answer=(Record(query.name, A, 30, b"\1\2\3\4"),)))
    site = configured(process, "cache")
    for capacity, entries in ((2048, 1500), (1024, 1024)):
        plugin = Cache.setup(uses(f"cache {{\nsuccess {capacity}\n}}"), site)
        await plugin.start()
        for number in range(1500 if capacity == 2048 else 0):
            at_once(plugin, name(number), end)
        process.metrics.settle()
        cell = process.metrics._families["coredns_cache_entries"].cell("dns://:53", "success", ".", "")
        assert cell.value == entries
        await plugin.stop()
        assert cell.value == 0


def test_what_lies_behind() -> None:
    block = uses("log\nroot /a\ncache 30\nmine x\nforward . 192.0.2.1 {\nforce_tcp\n}")
    assert behind("cache", block) == (
        ("root", ("/a",), ()),
        ("mine", ("x",), ()),
        ("forward", (".", "192.0.2.1"), (("force_tcp", (), ()),)),
    )


# --- options ---------------------------------------------------------------------------------------------------------


def options(text: str) -> Options:
    (use,) = uses(text)
    return parse(use, (from_text("example.org."),))


DEFAULT = Options((from_text("example.org."),), Half(9984, 3600, 5), Half(9984, 1800, 5))


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("cache", {}),
        ("cache {\n}", {}),
        ("cache 10", {"success": Half(9984, 10, 5), "denial": Half(9984, 10, 5)}),
        ("cache org", {"zones": (from_text("org."),)}),
        ("cache 10 org 10.0.0.0/8", {"zones": (from_text("org."), from_text("10.in-addr.arpa.")),
                                     "success": Half(9984, 10, 5), "denial": Half(9984, 10, 5)}),
        ("cache {\nsuccess 100\n}", {"success": Half(1024, 3600, 5)}),
        ("cache {\nsuccess 2000 20\n}", {"success": Half(1792, 20, 5)}),
        ("cache {\ndenial 2000 20 0 more words\n}", {"denial": Half(1792, 20, 0)}),
        ("cache 9 {\ndenial 10000\n}", {"success": Half(9984, 9, 5), "denial": Half(9984, 9, 5)}),
        ("cache {\nprefetch 10\n}", {"prefetch": 10}),
        ("cache {\nprefetch 10 2m 20%\n}", {"prefetch": 10, "prefetch_gap": 120.0, "prefetch_percentage": 20}),
        ("cache {\nserve_stale\n}", {"stale": 3600.0}),
        ("cache {\nserve_stale 30m\n}", {"stale": 1800.0}),
        ("cache {\nserve_stale 1h IMMEDIATE 30s 1m\n}", {"stale": 3600.0, "stale_ttl": 30, "recheck": 60.0}),
        ("cache {\nserve_stale 1h verify\n}", {"stale": 3600.0, "verify": True}),
        ("cache {\nserve_stale 1h verify 100ms 30s 1m\n}",
         {"stale": 3600.0, "verify": True, "verify_timeout": 0.1, "stale_ttl": 30, "recheck": 60.0}),
        ("cache {\nserve_stale\nserve_stale_policy Prefer_Positive\n}", {"stale": 3600.0, "prefer_positive": True}),
        ("cache {\nservfail 0\n}", {"servfail": 0.0}),
        ("cache {\nservfail 5m\n}", {"servfail": 300.0}),
        ("cache {\ndisable success\n}", {"no_success": (b"\0",)}),
        ("cache {\ndisable denial a b\n}", {"no_denial": (from_text("a."), from_text("b."))}),
        ("cache {\nkeepttl\n}", {"keep_ttl": True}),
    ],
)  # fmt: skip
def test_options(text: str, changes: dict[str, Any]) -> None:
    import msgspec

    assert options(text) == msgspec.structs.replace(DEFAULT, **changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cache 0", "cache TTL can not be zero or negative: 0"),
        ("cache -5", "cache TTL can not be zero or negative: -5"),
        ("cache {\nsuccess\n}", "Wrong argument count or unexpected line ending after 'success'"),
        ("cache {\nsuccess x\n}", "'x' is not an integer"),
        ("cache {\nsuccess 10 0\n}", "cache TTL can not be zero or negative: 0"),
        ("cache {\nsuccess 10 5 -1\n}", "cache min TTL can not be negative: -1"),
        ("cache {\ndenial 10 -5\n}", "cache TTL can not be zero or negative: -5"),
        ("cache {\nprefetch\n}", "Wrong argument count or unexpected line ending after 'prefetch'"),
        ("cache {\nprefetch -1\n}", "prefetch amount should be positive: -1"),
        ("cache {\nprefetch 1 x\n}", 'time: invalid duration "x"'),
        ("cache {\nprefetch 1 1m 10\n}", "last character of percentage should be `%`, but is: '0'"),
        ("cache {\nprefetch 1 1m 9%\n}", "percentage should fall in range [10, 90]: 9"),
        ("cache {\nprefetch 1 1m 91%\n}", "percentage should fall in range [10, 90]: 91"),
        ("cache {\nprefetch 1 1m %\n}", "'' is not an integer"),
        ("cache {\nprefetch 1 1m 10% x\n}", "Wrong argument count or unexpected line ending after 'x'"),
        ("cache {\nserve_stale -1h\n}", "duration '-1h' must be at least 0s"),
        ("cache {\nserve_stale 1h sometimes\n}", "invalid value for serve_stale refresh mode: sometimes"),
        ("cache {\nserve_stale 1h verify -1s\n}", "duration '-1s' must be at least 0s"),
        ("cache {\nserve_stale 1h immediate 1500ms\n}", "serve_stale response TTL must be a whole number of seconds"),
        ("cache {\nserve_stale 1h immediate 1s 6m\n}", "duration '6m' must be in range [0s, 300s]"),
        ("cache {\nserve_stale 1h immediate 1s 1s 1s\n}", "Wrong argument count or unexpected line ending after '1s'"),
        ("cache {\nserve_stale 1h verify 1s 1s 1s 1s\n}", "Wrong argument count or unexpected line ending after '1s'"),
        ("cache {\nserve_stale_policy prefer_positive\n}", "serve_stale_policy requires serve_stale"),
        ("cache {\nserve_stale\nserve_stale_policy x\n}", "invalid serve_stale_policy: x"),
        ("cache {\nserve_stale\n" + f"{POLICY}\n" * 2 + "}", "serve_stale_policy can only be specified once"),
        ("cache {\nservfail\n}", "Wrong argument count or unexpected line ending after 'servfail'"),
        ("cache {\nservfail 6m\n}", "duration '6m' must be in range [0s, 300s]"),
        ("cache {\ndisable\n}", "Wrong argument count or unexpected line ending after 'disable'"),
        ("cache {\ndisable all\n}", 'cache type for disable must be "success" or "denial"'),
        ("cache {\nkeepttl 1\n}", "Wrong argument count or unexpected line ending after '1'"),
        ("cache {\nnonsense\n}", "unknown property 'nonsense'"),
        ("cache\ncache", "this plugin can only be used once per Server Block"),
    ],
)
def test_bad_options(text: str, reason: str) -> None:
    assert refused(Cache, text) == reason


def test_classify_leaves_nothing_out() -> None:
    kinds = {
        verdict.classify(ask(), reply, time.time)
        for reply in (good(), denied(), Reply(SERVFAIL), Reply(REFUSED), Reply(authority=(record("org. 5 NS ns."),)))
    }
    assert kinds == {verdict.ANSWER, verdict.DENIAL, verdict.FAILURE, verdict.OTHER, verdict.REFERRAL}
    assert verdict.classify(ask(kind=AXFR), good(), time.time) == verdict.OTHER


def test_a_directive_knows_its_place() -> None:
    use = Directive("cache", ("0",), None, "Corefile", 7)
    with pytest.raises(Exception, match="Corefile:7 - "):
        parse(use, (b"\0",))


@pytest.mark.parametrize(
    "reply",
    [
        good(),
        good("example.org. 0 A 192.0.2.1"),
        good("example.org. 99999 A 192.0.2.1"),
        good("example.org. 40 A 192.0.2.1").replace(additional=(record("a.example.org. 3 A 192.0.2.2"),)),
        denied(),
        denied().replace(rcode=message.NOERROR),
        Reply(),
        Reply(SERVFAIL),
        Reply(REFUSED),
        Reply(authority=(record("org. 5 NS ns."),)),
    ],
)
@pytest.mark.parametrize("text", ["cache", "cache 7", "cache {\nsuccess 1024 30 50\ndenial 1024 10 0\n}"])
async def test_the_short_way_comes_to_the_same(start: Start, reply: Reply, text: str) -> None:
    world = await start(text)
    options = world.cache._options
    plain = verdict.plain_ttl(options)(reply)
    assert plain in (0, verdict.lifetime(reply, verdict.classify(ask(), reply, time.time), options))
