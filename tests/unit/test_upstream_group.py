"""Asking a group of servers: who is asked next, what is shared, who gives way, and when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kdns import limits, message, name
from kdns.message import NXDOMAIN, REFUSED, SERVFAIL, Edns
from kdns.upstream import UpstreamError
from tests.fakeupstream import Asked, FakeUpstream, after, answer_all, by_name, rcode, silent
from tests.plugintest import ask as ask_for
from tests.upstreamtest import TCP, World, addresses, ask_many, new_world, until

LATE = 4.5
"""Seconds that nothing here takes on the busiest machine, and that CoreDNS takes where it says "late"."""


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


# --- one question, many askers ---------------------------------------------------------------------------------------


async def test_a_question_under_way_is_asked_once(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.05)
    group = world.group(fake, max_attempts=1)
    spellings = ["www.example.org.", "WWW.example.org.", "wWw.ExAmPlE.oRg."]
    replies = await ask_many(group, *(spellings[n % 3] for n in range(1000)))
    assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)
    assert fake.count() == 1
    assert world.value("kdns_upstream_shared_total") == 999
    assert (group.waiting, group.under_way, group._flights, group._clients) == (0, 0, {}, {})


async def test_a_failure_is_shared_too(world: World, fake: FakeUpstream) -> None:
    fake.script = silent
    replies = await ask_many(world.group(fake, read_timeout=0.3), *["x.test."] * 100)
    assert {reply.rcode for reply in replies} == {SERVFAIL}
    assert fake.names["x.test."] <= 2


async def test_what_makes_another_answer_is_another_question(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.1)
    group = world.group(fake)
    different: list[dict[str, Any]] = [
        {},
        {"kind": message.AAAA},
        {"klass": message.CH},
        {"flags": 0},
        {"flags": message.RD | message.CD},
        {"edns": Edns(1232, True)},
        {"edns": Edns(1232, False, ((8, b"\0\1\x18\0\xc0\0\2"),))},
        {"listener": TCP},
    ]
    alike: list[dict[str, Any]] = [{}, {"edns": Edns(1232, False)}, {"edns": Edns(4096, False, ((10, b"cookie!!"),))}]
    await asyncio.gather(*(group.ask(ask_for("a.test.", **fields)) for fields in different[:5]))
    assert fake.count("a.test.") == 5
    await asyncio.gather(*(group.ask(ask_for("b.test.", **fields)) for fields in [{}, *different[5:]]))
    assert fake.count("b.test.") == 4
    await asyncio.gather(*(group.ask(ask_for("c.test.", **fields)) for fields in alike))
    assert fake.count("c.test.") == 1


async def test_variants_of_one_question_are_bounded(world: World, fake: FakeUpstream) -> None:
    under_way = [0, 0]

    async def script(asked: Asked) -> None:
        under_way[0] += 1
        under_way[1] = max(under_way)
        await asyncio.sleep(0.01)
        under_way[0] -= 1
        asked.send(asked.address())

    fake.script = script
    group = world.group(fake, max_attempts=1)
    subnets = [Edns(1232, False, ((8, b"\0\1\x18\0\xc0\0" + bytes((n,))),)) for n in range(40)]
    replies = await asyncio.gather(*(group.ask(ask_for("a.test.", edns=edns)) for edns in subnets))
    assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)
    assert under_way[1] <= limits.UPSTREAM_VARIANTS


async def test_variants_do_not_wait_for_ever(world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPSTREAM_TIME", 0.3)
    fake.script = silent
    group = world.group(fake, read_timeout=0.3)
    subnets = [Edns(1232, False, ((8, b"\0\1\x18\0\xc0\0" + bytes((n,))),)) for n in range(20)]
    replies = await asyncio.gather(*(group.ask(ask_for("a.test.", edns=edns)) for edns in subnets))
    assert {reply.rcode for reply in replies} == {SERVFAIL}
    assert world.value("kdns_upstream_rejects_total", "variants") > 0


async def test_one_who_goes_away_takes_nobody_with_him(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.1)
    group = world.group(fake)
    first, second = (asyncio.ensure_future(group.ask(ask_for("a.test."))) for _ in range(2))
    await until(lambda: fake.count() == 1)
    first.cancel()
    assert addresses(await second) == ["192.0.2.1"]
    assert first.cancelled() and group.waiting == 0
    lonely = asyncio.ensure_future(group.ask(ask_for("b.test.")))
    await until(lambda: fake.count() == 2)
    lonely.cancel()
    await until(lambda: group.under_way == 0)


# --- a server that is late -------------------------------------------------------------------------------------------


async def test_another_server_is_asked_when_the_first_is_late(
    world: World, fake: FakeUpstream, other: FakeUpstream
) -> None:
    fake.script = silent
    loop = asyncio.get_running_loop()
    began = loop.time()
    group = world.group(fake, other, hasty=True, policy="sequential")
    assert addresses(await group.ask(ask_for("a.test."))) == ["192.0.2.1"]
    assert loop.time() - began < 1.9, "long before the read time-out"
    assert world.value("kdns_upstream_hedges_total") == 1


async def test_a_silent_server_is_shunned_and_taken_back(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    group = world.group(fake, other, hasty=True, policy="sequential", settings={"probe_every": 0.05})
    fake.script = silent
    await group.ask(ask_for("a.test."))
    await until(lambda: world.value("kdns_upstream_healthy") == 1)
    assert fake.count(".", type="NS") >= 1
    before = fake.names.total()
    await ask_many(group, *(f"{n}.test." for n in range(50)))
    assert fake.names.total() == before, "it gets no questions but probes"
    fake.script = answer_all
    await until(lambda: world.value("kdns_upstream_healthy") == 2)
    await group.ask(ask_for("b.test."))
    assert fake.names["b.test."] == 1


async def test_a_slow_name_makes_no_server_silent(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script = other.script = by_name({"slow.test.": after(0.8)})
    group = world.group(fake, other, hasty=True, policy="sequential")
    assert addresses(await group.ask(ask_for("slow.test."))) == ["192.0.2.1"]
    assert world.value("kdns_upstream_healthy") == 2


async def test_a_late_answer_is_still_taken(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script, other.script = after(0.9), silent
    group = world.group(fake, other, hasty=True, policy="sequential", read_timeout=1.5)
    assert addresses(await group.ask(ask_for("a.test."))) == ["192.0.2.1"]


async def test_lost_packets_are_sent_again(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        if fake.names[asked.name] > 1:
            asked.send(asked.address())

    fake.script = script
    assert addresses(await world.group(fake, hasty=True).ask(ask_for("a.test."))) == ["192.0.2.1"]
    assert fake.names["a.test."] == 2
    assert fake.asked[0].message.id != fake.asked[1].message.id


async def test_a_slow_server_loses_the_traffic_but_for_samples(
    world: World, fake: FakeUpstream, other: FakeUpstream
) -> None:
    other.script = after(0.3)
    group = world.group(fake, other, hasty=True, policy="random")
    await ask_many(group, *(f"{n}.a.test." for n in range(60)))
    slow = other.names.total()
    for batch in range(10):
        await ask_many(group, *(f"{batch}.{n}.b.test." for n in range(30)))
    assert other.names.total() - slow < 100, "of 300, half of which it would have got"


async def test_all_servers_silent_is_a_failure_in_good_time(
    world: World, fake: FakeUpstream, other: FakeUpstream
) -> None:
    fake.script = other.script = silent
    loop = asyncio.get_running_loop()
    began = loop.time()
    reply = await world.group(fake, other, hasty=True).ask(ask_for("a.test."))
    assert 2.0 < loop.time() - began < LATE
    assert reply.rcode == SERVFAIL and reply.error.endswith("i/o timeout")
    assert reply.ede == ((message.EDE_NO_REACHABLE_AUTHORITY, "no upstream answers"),)
    assert fake.names.total() + other.names.total() <= 4


async def test_a_name_gets_more_time_when_the_server_lives(world: World, fake: FakeUpstream) -> None:
    fake.script = by_name({"slow.test.": after(1.8)})
    group = world.group(fake, hasty=True, read_timeout=1.2)
    assert addresses(await group.ask(ask_for("slow.test."))) == ["192.0.2.1"]


async def test_a_name_gets_all_the_time_from_a_server_that_is_not_probed(world: World, fake: FakeUpstream) -> None:
    fake.script = after(1.4)
    group = world.group(fake, hasty=True, read_timeout=1.0, settings={"max_fails": 0})
    assert addresses(await group.ask(ask_for("slow.test."))) == ["192.0.2.1"]
    assert fake.count(".") == 0


async def test_even_from_a_server_that_lives_a_question_fails_some_day(world: World, fake: FakeUpstream) -> None:
    fake.script = by_name({"dead.test.": silent})
    group = world.group(fake, hasty=True, read_timeout=0.3)
    reply = await group.ask(ask_for("dead.test."))
    assert reply.rcode == SERVFAIL and reply.ede[0][0] == message.EDE_NO_REACHABLE_AUTHORITY
    assert group.under_way == 0


async def test_an_overloaded_server_is_not_asked_twice_as_much(world: World, fake: FakeUpstream) -> None:
    fake.script = by_name({"dead.test.": silent})
    group = world.group(fake, hasty=True, read_timeout=0.7)
    await ask_many(group, *(f"{n}.dead.test." for n in range(800)))
    sent = sum(world.value(f"coredns_proxy_conn_cache_{kind}_total") for kind in ("hits", "misses"))
    again = sent - 800 - fake.count(".")
    assert 0 < again <= 300, "the first ones, whose fate did not yet say that it has too much to do, and a tenth"


async def test_packets_for_one_question_are_bounded(world: World) -> None:
    fakes = [FakeUpstream() for _ in range(10)]
    for fake in fakes:
        await fake.start()
        fake.script = rcode("SERVFAIL")
    group = world.group(*fakes, hasty=True, max_attempts=0, failover=frozenset({SERVFAIL}))
    await group.ask(ask_for("a.test."))
    for fake in fakes:
        fake.script = silent
    group = world.group(*fakes, hasty=True, max_attempts=0, read_timeout=0.1, settings={"max_fails": 0})
    await group.ask(ask_for("b.test."))
    asked = sum(fake.names["a.test."] for fake in fakes), sum(fake.names["b.test."] for fake in fakes)
    for fake in fakes:
        await fake.stop()
    assert asked[0] == 10
    assert 3 <= asked[1] <= limits.UPSTREAM_SENDS


async def test_max_attempts(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script = other.script = silent
    await world.group(fake, other, hasty=True, max_attempts=1, read_timeout=0.4).ask(ask_for("a.test."))
    assert fake.names.total() + other.names.total() == 1


# --- probes ----------------------------------------------------------------------------------------------------------


async def test_probes_ask_what_they_are_told_to_until_something_comes(world: World, fake: FakeUpstream) -> None:
    settings = {
        "probe_every": 0.05,
        "probe_domain": name.from_text("check.example."),
        "probe_recursion": False,
        "probe_tcp": True,
    }
    group = world.group(fake, settings=settings)
    await fake.stop()
    assert (await group.ask(ask_for())).rcode == SERVFAIL
    await until(lambda: world.value("coredns_proxy_healthcheck_failures_total") >= 3)
    fake.script = rcode("REFUSED")
    await fake.start()
    await until(lambda: fake.count("check.example.", "tcp", "NS") > 0)
    assert fake.asked[-1].message.flags == 0
    await until(lambda: world.value("kdns_upstream_healthy") == 1)
    probes = fake.count("check.example.")
    await asyncio.sleep(0.2)
    assert fake.count("check.example.") == probes, "any answer at all ends probing"


async def test_probes_have_a_pause_between_them(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake, settings={"probe_every": 0.0})
    await fake.stop()
    await group.ask(ask_for())
    await asyncio.sleep(0.5)
    assert world.value("coredns_proxy_healthcheck_failures_total") <= 6


async def test_servers_that_are_down_are_asked_for_want_of_better_ones(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake, settings={"probe_every": 0.1})
    await fake.stop()
    await group.ask(ask_for("a.test."))
    await until(lambda: group.upstreams[0].health.down)
    reply = await group.ask(ask_for("b.test."))
    assert reply.error.endswith("connection refused")
    assert world.value("coredns_forward_healthcheck_broken_total") >= 1


async def test_failfast_asks_nobody_then(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    group = world.group(fake, other, failfast=True, settings={"probe_every": 0.1})
    await fake.stop()
    await other.stop()
    await group.ask(ask_for("a.test."))
    for upstream in group.upstreams:
        upstream.doubt()
    await until(lambda: all(upstream.health.down for upstream in group.upstreams))
    reply = await group.ask(ask_for("b.test."))
    assert (reply.rcode, reply.error) == (SERVFAIL, "no healthy proxies")
    assert reply.ede[0][0] == message.EDE_NO_REACHABLE_AUTHORITY
    await fake.start()
    await until(lambda: not group.upstreams[0].health.down)
    assert addresses(await group.ask(ask_for("c.test."))) == ["192.0.2.1"]


async def test_a_server_that_is_let_go_is_probed_no_more(world: World, fake: FakeUpstream) -> None:
    server = world.server(fake, probe_every=0.1)
    fake.script = silent
    server.doubt()
    await until(lambda: fake.count(".") > 0)
    world.home.release(server)
    server.doubt()
    await asyncio.sleep(0.3)
    assert fake.count(".") == 1


# --- policies and rcodes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["random", "round_robin", "sequential"])
async def test_policies(world: World, policy: str) -> None:
    fakes = [FakeUpstream() for _ in range(3)]
    for fake in fakes:
        await fake.start()
    group = world.group(*fakes, policy=policy)
    for n in range(60):
        await group.ask(ask_for(f"{n}.test."))
    counts = [fake.names.total() for fake in fakes]
    order = [min(n for n in range(3) if f"{question}.test." in fakes[n].names) for question in range(6)]
    for fake in fakes:
        await fake.stop()
    if policy == "sequential":
        assert counts == [60, 0, 0]
    elif policy == "round_robin":
        assert counts == [20, 20, 20] and order == [1, 2, 0, 1, 2, 0], "CoreDNS begins with the second one"
    else:
        # 20 on average; more than 4 standard deviations.
        assert sum(counts) == 60 and min(counts) > 3


async def test_round_robin_without_the_silent_one(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    async with FakeUpstream() as third:
        group = world.group(fake, other, third, policy="round_robin")
        group.upstreams[1].health.probe_late()
        for n in range(20):
            await group.ask(ask_for(f"{n}.test."))
        assert fake.names.total() + third.names.total() == 20 and min(fake.names.total(), third.names.total()) >= 5


async def test_sequential_asks_a_slow_first_server_first(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    group = world.group(fake, other, policy="sequential")
    for _ in range(50):
        group.upstreams[0].health.missed(group.loop.time())
    await group.ask(ask_for())
    assert fake.names.total() == 1


async def test_an_error_rcode_is_an_answer(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script = rcode("SERVFAIL")
    reply = await world.group(fake, other, policy="sequential").ask(ask_for())
    assert (reply.rcode, reply.error) == (SERVFAIL, "")
    assert other.count() == 0
    assert world.value("coredns_forward_healthcheck_broken_total") == 0


async def test_failover_asks_the_others(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script = rcode("SERVFAIL")
    group = world.group(fake, other, policy="sequential", failover=frozenset({SERVFAIL, REFUSED}))
    assert addresses(await group.ask(ask_for("a.test."))) == ["192.0.2.1"]
    other.script = rcode("REFUSED")
    reply = await group.ask(ask_for("b.test."))
    assert (reply.rcode, reply.error) == (REFUSED, ""), "the last answer, when none is better"
    assert (fake.names["b.test."], other.names["b.test."]) == (1, 1)


async def test_failover_keeps_the_answer_it_has(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script, other.script = rcode("NXDOMAIN"), silent
    group = world.group(fake, other, policy="sequential", failover=frozenset({NXDOMAIN}), read_timeout=0.4)
    reply = await group.ask(ask_for())
    assert (reply.rcode, reply.error) == (NXDOMAIN, "")


async def test_max_attempts_does_not_count_failovers(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script = rcode("SERVFAIL")
    options = {"policy": "sequential", "failover": frozenset({SERVFAIL}), "max_attempts": 1}
    assert addresses(await world.group(fake, other, **options).ask(ask_for())) == ["192.0.2.1"]


async def truncated(asked: Asked) -> None:
    """Truncated over UDP, whole over TCP."""
    asked.send(asked.reply(flags="QR TC RD RA") if asked.proto == "udp" else asked.address())


async def test_a_truncated_answer_is_passed_on(world: World, fake: FakeUpstream) -> None:
    fake.script = truncated
    reply = await world.group(fake).ask(ask_for())
    assert reply.flags & message.TC and not reply.answer
    assert fake.count(proto="tcp") == 0


@pytest.mark.parametrize("listener", [None, TCP])
async def test_prefer_udp_asks_again_over_tcp_by_itself(world: World, fake: FakeUpstream, listener: Any) -> None:
    fake.script = truncated
    reply = await world.group(fake, prefer_udp=True).ask(ask_for(listener=listener))
    assert addresses(reply) == ["192.0.2.1"]
    assert [asked.proto for asked in fake.asked] == ["udp", "tcp"]


async def test_prefer_udp_takes_the_truncated_answer_when_there_is_no_tcp(world: World) -> None:
    async with FakeUpstream(tcp=False) as fake:
        fake.script = truncated
        reply = await world.group(fake, prefer_udp=True, max_attempts=1).ask(ask_for())
    assert reply.flags & message.TC and not reply.error


async def test_force_tcp(world: World, fake: FakeUpstream) -> None:
    await world.group(fake, force_tcp=True, prefer_udp=True).ask(ask_for())
    assert [asked.proto for asked in fake.asked] == ["tcp"]


# --- too much at once ------------------------------------------------------------------------------------------------


async def test_max_concurrent_turns_away(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.1)
    group = world.group(fake, max_concurrent=3)
    replies = await ask_many(group, *(f"www.shop{n}.tld{n}." for n in range(5)))
    assert [reply.rcode for reply in replies] == [0, 0, 0, REFUSED, REFUSED]
    assert replies[-1].error == "concurrent queries exceeded maximum 3"
    assert world.value("coredns_forward_max_concurrent_rejects_total") == 2
    assert world.value("kdns_upstream_rejects_total", "max_concurrent") == 2
    assert addresses(await group.ask(ask_for("again.test."))) == ["192.0.2.1"]


async def test_max_concurrent_counts_a_shared_question_once(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.1)
    replies = await ask_many(world.group(fake, max_concurrent=1), *["a.test."] * 50)
    assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)


async def test_water_torture_below_a_dead_zone_refuses_nobody_else(world: World, fake: FakeUpstream) -> None:
    fake.script = by_name({"dead.example.org.": silent})
    group = world.group(fake, max_concurrent=50)
    flood = [asyncio.ensure_future(group.ask(ask_for(f"{n:x}.dead.example.org."))) for n in range(500)]
    await asyncio.sleep(0)
    innocent = await ask_many(group, *(f"www.shop{n}.example.org." for n in range(40)))
    innocent += await ask_many(group, *(f"www.shop{n}.test." for n in range(40)))
    assert all(addresses(reply) == ["192.0.2.1"] for reply in innocent)
    assert group.under_way <= 50
    for task in flood:
        task.cancel()
    replies = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(not isinstance(reply, BaseException) for reply in replies) >= 450, "they were turned away"


async def test_without_max_concurrent_there_is_a_bound_too(
    world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPSTREAM_FLIGHTS", 20)
    fake.script = after(0.1)
    replies = await ask_many(world.group(fake), *(f"www.shop{n}.tld{n}." for n in range(30)))
    turned_away = [reply for reply in replies if reply.error]
    assert len(turned_away) == 10 and {reply.rcode for reply in turned_away} == {SERVFAIL}
    assert turned_away[0].ede == ((message.EDE_OTHER, "overloaded"),)


async def test_an_overloaded_server_gets_what_it_can_do(world: World, fake: FakeUpstream) -> None:
    """It answers 50 questions a second in turn, 200 are asked for 3 seconds."""
    lock = asyncio.Lock()

    async def script(asked: Asked) -> None:
        async with lock:
            await asyncio.sleep(0.02)
        asked.send(asked.address())

    fake.script = script
    group = world.group(fake)
    group.window.target = 0.5
    loop = asyncio.get_running_loop()
    began = loop.time()
    tasks = []
    for n in range(600):
        tasks.append(asyncio.ensure_future(group.ask(ask_for(f"{n}.shop{n}.test."))))
        await asyncio.sleep(max(0.0, began + n / 200 - loop.time()))
    good = sum(not reply.error for reply in await asyncio.gather(*tasks))
    assert good > 0.4 * fake.names.total(), "what it has done was not in vain"
    assert world.value("kdns_upstream_rejects_total", "window") > 0


async def test_a_client_over_udp_cannot_hoard(
    world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPSTREAM_CLIENT", 10)
    fake.script = after(0.1)
    group = world.group(fake)
    hoarder = ask_many(group, *(f"{n}.test." for n in range(30)), peer=("192.0.2.66", 1))
    others = [group.ask(ask_for(f"{n}.other.test.", peer=(f"192.0.2.{n}", 1))) for n in range(20)]
    many, few, over_tcp = await asyncio.gather(
        hoarder, asyncio.gather(*others), ask_many(group, *(f"{n}.tcp.test." for n in range(30)), listener=TCP)
    )
    assert sum(not reply.error for reply in many) == 10
    assert all(addresses(reply) == ["192.0.2.1"] for reply in [*few, *over_tcp])
    assert world.value("kdns_upstream_rejects_total", "client") == 20
    same = await ask_many(group, *["x.test."] * 30, peer=("192.0.2.66", 1))
    assert sum(not reply.error for reply in same) == 10, "nor by asking one thing many times"


async def test_those_who_wait_are_bounded(world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IN_FLIGHT", 50)
    fake.script = after(0.1)
    replies = await ask_many(world.group(fake), *["a.test."] * 60)
    assert sum(reply.rcode == SERVFAIL for reply in replies) == 10
    assert world.value("kdns_upstream_rejects_total", "waiting") == 10


async def test_gauges_show_what_is_under_way(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.2)
    group = world.group(fake)
    tasks = [asyncio.ensure_future(group.ask(ask_for(qname))) for qname in ("a.test.", "a.test.", "b.test.")]
    await until(lambda: fake.count() == 2)
    assert world.value("kdns_upstream_under_way") == 2
    assert world.value("kdns_upstream_waiting") == 3
    await asyncio.gather(*tasks)
    assert world.value("kdns_upstream_under_way") == 0


async def test_when_all_ends_what_waits_fails(fake: FakeUpstream) -> None:
    fake.script = silent
    async with new_world() as world:
        group = world.group(fake)
        tasks = [
            asyncio.ensure_future(group.ask(ask_for("a.test."))),
            asyncio.ensure_future(group.ask(ask_for("b.test.", listener=TCP))),
        ]
        await until(lambda: fake.count() == 2)
    assert [(await task).rcode for task in tasks] == [SERVFAIL, SERVFAIL]
    assert group.upstreams[0].sockets == (0, 0)


# --- loops -----------------------------------------------------------------------------------------------------------


async def test_a_question_that_comes_back_on_our_own_socket_is_a_loop(world: World, fake: FakeUpstream) -> None:
    """The upstream is this very server: what it is asked comes in here again, from the socket it was sent on."""
    group = world.group(fake)

    async def script(asked: Asked) -> None:
        if asked.name != ".":
            reply = await group.ask(ask_for(asked.name, peer=asked.peer))
            asked.send(asked.reply(rcode=message.rcode_text(reply.rcode)))

    fake.script = script
    loop = asyncio.get_running_loop()
    began = loop.time()
    replies = await ask_many(group, *["a.test."] * 5)
    assert loop.time() - began < LATE
    assert {reply.rcode for reply in replies} == {SERVFAIL}
    assert "forwarding loop" in replies[0].error
    assert fake.names["a.test."] <= 2


async def test_a_looping_upstream_gives_way_to_one_that_does_not(
    world: World, fake: FakeUpstream, other: FakeUpstream
) -> None:
    group = world.group(fake, other, policy="sequential")

    async def script(asked: Asked) -> None:
        if asked.name != ".":
            reply = await group.ask(ask_for(asked.name, peer=asked.peer))
            assert "forwarding loop" in reply.error
            asked.send(asked.reply(rcode="SERVFAIL"))

    fake.script = script
    assert addresses(await group.ask(ask_for("a.test."))) == ["192.0.2.1"]


async def test_a_loop_over_another_server_ends(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake, read_timeout=0.5)

    async def script(asked: Asked) -> None:
        if asked.name != ".":
            reply = await group.ask(ask_for(asked.name, peer=("127.0.0.1", 5)))
            asked.send(asked.reply(rcode=message.rcode_text(reply.rcode)))

    fake.script = script
    reply = await group.ask(ask_for("a.test."))
    assert reply.rcode == SERVFAIL
    assert fake.names["a.test."] <= 2
    await until(lambda: (group.under_way, group.waiting) == (0, 0))


# --- one question by itself ------------------------------------------------------------------------------------------


async def test_exchange(world: World, fake: FakeUpstream) -> None:
    server = world.server(fake)
    found = await server.exchange(name.from_text("x.test."), message.AAAA)
    assert (found.rcode, found.name, found.type) == (0, name.from_text("x.test."), message.AAAA)
    fake.script = silent
    with pytest.raises(UpstreamError, match=r"^read udp 127\.0\.0\.1:\d+->127\.0\.0\.1:\d+: i/o timeout$"):
        await server.exchange(name.from_text("x.test."), message.A, wait=0.05)
    await fake.stop()
    with pytest.raises(UpstreamError, match="connection refused"):
        await server.exchange(name.from_text("x.test."), message.A)
    assert world.value("kdns_upstream_sockets", "udp") <= 1, "the one that has been answered on"


async def test_servers_are_shared_and_let_go_by_the_last(world: World, fake: FakeUpstream) -> None:
    first, second = world.server(fake), world.server(fake)
    different = world.server(fake, expire=3.0)
    assert first is second and different is not first
    world.home.release(first)
    assert world.server(fake) is first
    for _ in range(2):
        world.home.release(first)
    assert world.server(fake) is not first


async def test_a_server_that_is_let_go_still_answers_what_is_under_way(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.1)
    group = world.group(fake)
    waiting = [
        asyncio.ensure_future(group.ask(ask_for("a.test."))),
        asyncio.ensure_future(group.ask(ask_for("b.test.", listener=TCP))),
    ]
    await until(lambda: fake.count() == 2)
    server = group.upstreams[0]
    world.home.release(server)
    for reply in await asyncio.gather(*waiting):
        assert addresses(reply) == ["192.0.2.1"]
    assert server.sockets == (0, 0)
    # A question of the old configuration that comes now is answered too, and nothing stays open.
    assert addresses(await group.ask(ask_for("c.test."))) == ["192.0.2.1"]
    assert addresses(await group.ask(ask_for("d.test.", listener=TCP))) == ["192.0.2.1"]
    assert server.sockets == (0, 0)
