"""The road of one query: routing, waiting, failing, storing."""

import asyncio
import contextlib
from typing import Any

import pytest

from kdns import limits
from kdns.compiled import twin as twin_of
from kdns.denial import Denial, Existing
from kdns.handler import Handler, Routes, Waiting
from kdns.message import (
    AA,
    CH,
    DS,
    FOREVER,
    NO_LEASE,
    NOERROR,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    SOA,
    A,
    Lease,
    Listener,
    Query,
    Record,
    Reply,
)
from kdns.name import ROOT, from_text
from kdns.packetcache import PacketCache
from kdns.plugin import Next, Process
from kdns.promise import Promise, Wakeups
from kdns.wire import pack_query, parse_reply, road
from tests.support import TWINS, captured_log, until, use_twin

LISTENER = Listener("dns://:53", "udp", ("127.0.0.1", 53), "1")
PEER = ("127.0.0.1", 4711)
SCOPE = b"\0\0\0\1"


def answer(lease: Lease = NO_LEASE, **fields: object) -> Next:
    async def call(query: Query) -> Reply:
        record = Record(query.spelling, A, 30, b"\x0a\0\0\1")
        return Reply(NOERROR, (record,), flags=AA, lease=lease, plugin="test").replace(**fields)

    return call


class Sent:
    """What became of queries that waited."""

    def __init__(self) -> None:
        self.replies: list[bytes | None] = []

    def settled(self, waiting: Waiting, reply: bytes | None) -> None:
        self.replies.append(reply)


def packet(name: str, kind: int = A, klass: int = 1) -> bytes:
    return pack_query(77, 0x0100, from_text(name), kind, klass, None)


class World:
    def __init__(self, **chains: Next) -> None:
        self.clock = 1000.0
        self.process = Process(lambda: self.clock)
        self.packets = PacketCache(100, 100_000, self.process.metrics)
        self.process.facts.subscribe(self.packets.forget)
        zones = {from_text(zone.replace("_", ".")) if zone != "root" else ROOT: chain for zone, chain in chains.items()}
        self.handler = Handler(self.process, self.packets, Routes(zones, False))

    def ask(self, name: str, kind: int = A, klass: int = 1) -> bytes | Waiting | None:
        return self.handler.handle(packet(name, kind, klass), PEER, LISTENER, SCOPE)

    def rcode(self, name: str, kind: int = A, klass: int = 1) -> int:
        reply = self.ask(name, kind, klass)
        assert isinstance(reply, bytes)
        return parse_reply(reply).rcode


def served_by(name: str) -> Next:
    return answer(ede=(), plugin=name, rcode=NOERROR, answer=(Record(b"\0", A, 0, name.encode().ljust(4)),))


def who(world: World, name: str, kind: int = A) -> str:
    reply = world.ask(name, kind)
    assert isinstance(reply, bytes)
    return parse_reply(reply).answer[0].rdata.decode().strip()


def test_longest_zone_answers() -> None:
    world = World(root=served_by("root"), example_org_=served_by("org"), sub_example_org_=served_by("sub"))
    assert who(world, "a.sub.example.org.") == "sub"
    assert who(world, "SUB.example.org.".lower()) == "sub"
    assert who(world, "a.example.org.") == "org"
    assert who(world, "notexample.org.") == "root"


def test_ds_is_asked_of_the_parent_zone() -> None:
    world = World(root=served_by("root"), example_org_=served_by("org"), sub_example_org_=served_by("sub"))
    assert who(world, "sub.example.org.", DS) == "org"
    assert who(world, "a.sub.example.org.", DS) == "sub"
    assert who(world, "example.org.", DS) == "org"
    assert who(world, "other.", DS) == "root"


def test_no_block_and_empty_block_refuse() -> None:
    world = World(example_org_=served_by("org"))
    assert world.rcode("other.org.") == REFUSED
    world.handler.routes = Routes({ROOT: None}, False)
    assert world.rcode("other.org.") == REFUSED
    lines = world.process.metrics.expose().decode()
    assert (
        'coredns_dns_responses_total{plugin="",rcode="REFUSED",server="dns://:53",view="",zone="dropped"} 2.0' in lines
    )


def test_other_classes_are_refused_unless_a_plugin_wants_them() -> None:
    world = World(root=answer())
    assert world.rcode("version.bind.", klass=CH) == REFUSED
    world.handler.routes = Routes({ROOT: answer()}, True)
    assert world.rcode("version.bind.", klass=CH) == NOERROR


def test_a_plugin_that_raises_costs_one_answer() -> None:
    async def broken(query: Query) -> Reply:
        raise RuntimeError("a bug")

    world = World(root=broken)
    with captured_log() as log:
        assert world.rcode("a.") == SERVFAIL
    assert log.matching("Recovered from panic in server")
    assert "coredns_panics_total 1.0" in world.process.metrics.expose().decode()


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("wrong", [None, "text", {"answer": (Record(b"\0", A, 30, None),)}, {"rcode": "NOERROR"}])  # type: ignore[arg-type]
def test_a_reply_that_is_none_costs_one_answer(wrong: Any, twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_twin(twin, monkeypatch, "kdns._wire")
    monkeypatch.setattr("kdns.handler.pack_reply", (twin_of("kdns._wire") or road).pack_reply)

    async def broken(query: Query) -> Reply:
        return Reply(**wrong) if isinstance(wrong, dict) else wrong

    world = World(root=broken)
    with captured_log() as log:
        assert world.rcode("a.") == SERVFAIL
    assert log.matching("Recovered from panic in server")
    assert "coredns_panics_total 1.0" in world.process.metrics.expose().decode()


@pytest.mark.parametrize("fields", ["report", "lease"])
def test_what_a_plugin_wants_done_beside_costs_no_answer(fields: str) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    world = World(root=answer(**{fields: broken}))
    with captured_log() as log:
        assert world.rcode("a.") == NOERROR
    assert len(log.matching("Recovered from panic in server")) == 1


def test_silence() -> None:
    world = World(root=answer(drop=True))
    assert world.ask("a.") is None
    assert world.handler.handle(b"short", PEER, LISTENER, SCOPE) is None


async def test_a_chain_that_waits_is_finished_by_a_task() -> None:
    gate = asyncio.Event()

    async def slow(query: Query) -> Reply:
        await gate.wait()
        await asyncio.sleep(0)
        return await answer()(query)

    world = World(root=slow)
    waiting = world.ask("a.")
    assert isinstance(waiting, Waiting)
    sent = Sent()
    waiting.park(sent.settled)
    await asyncio.sleep(0)
    assert world.handler.in_flight == 1 and not sent.replies
    gate.set()
    await until(lambda: bool(sent.replies))
    assert world.handler.in_flight == 0
    assert sent.replies[0] is not None and parse_reply(sent.replies[0]).rcode == NOERROR


async def test_cancelled_and_failing_waits_reach_the_chain() -> None:
    ended: list[str] = []

    async def slow(query: Query) -> Reply:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return Reply()

    async def failing(query: Query) -> Reply:
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(broken.set_exception, ValueError("no"))
        try:
            await broken
        except ValueError:
            ended.append("failed")
        return await answer()(query)

    world = World(root=slow)
    waiting = world.ask("a.")
    assert isinstance(waiting, Waiting)
    sent = Sent()
    waiting.park(sent.settled)
    await asyncio.sleep(0)
    waiting.cancel()
    await until(lambda: bool(sent.replies))
    assert sent.replies == [None] and ended == ["cancelled"] and world.handler.in_flight == 0

    world.handler.routes = Routes({ROOT: failing}, False)
    waiting = world.ask("a.")
    assert isinstance(waiting, Waiting)
    waiting.park(sent.settled)
    await until(lambda: len(sent.replies) == 2)
    assert ended == ["cancelled", "failed"]
    assert sent.replies[1] is not None and parse_reply(sent.replies[1]).rcode == NOERROR


def promising(promise: Promise[str], ended: list[str]) -> Next:
    """A chain that waits for something of kdns's own."""

    async def call(query: Query) -> Reply:
        try:
            ended.append(await promise)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return await answer()(query)

    return call


async def parked(world: World, sent: Sent) -> Waiting:
    waiting = world.ask("a.")
    assert isinstance(waiting, Waiting)
    waiting.park(sent.settled)
    assert world.handler.in_flight == 1
    return waiting


async def test_a_chain_that_waits_for_a_promise_is_finished_without_a_task() -> None:
    promise: Promise[str] = Promise(Wakeups())
    ended: list[str] = []
    world, sent = World(root=promising(promise, ended)), Sent()
    before = asyncio.all_tasks()
    await parked(world, sent)
    promise.keep("kept")
    await until(lambda: bool(sent.replies))
    assert asyncio.all_tasks() == before
    assert sent.replies[0] is not None and parse_reply(sent.replies[0]).rcode == NOERROR
    assert ended == ["kept"] and world.handler.in_flight == 0


async def test_waits_for_promises_and_for_futures_follow_each_other() -> None:
    wakeups = Wakeups()
    promises: list[Promise[str]] = [Promise(wakeups) for _ in range(2)]

    async def chain(query: Query) -> Reply:
        for promise in promises:
            await promise
            async with asyncio.timeout(10) if asyncio.current_task() else contextlib.nullcontext():
                await asyncio.sleep(0.001)
        return await answer()(query)

    world, sent = World(root=chain), Sent()
    await parked(world, sent)
    for promise in promises:
        asyncio.get_running_loop().call_later(0.01, promise.keep, "x")
    await until(lambda: bool(sent.replies))
    assert sent.replies[0] is not None and world.handler.in_flight == 0


async def test_cancelling_reaches_a_chain_that_waits_for_a_promise() -> None:
    promise: Promise[str] = Promise(Wakeups())
    ended: list[str] = []
    world, sent = World(root=promising(promise, ended)), Sent()
    (await parked(world, sent)).cancel()
    assert ended == ["cancelled"] and sent.replies == [None] and world.handler.in_flight == 0
    promise.keep("late")
    await asyncio.sleep(0.01)
    assert sent.replies == [None]


async def test_a_chain_that_takes_its_time_to_be_cancelled_gets_it() -> None:
    promise: Promise[str] = Promise(Wakeups())
    ended: list[str] = []

    async def chain(query: Query) -> Reply:
        try:
            await promise
        finally:
            await asyncio.sleep(0.001)
            ended.append("tidy")
        return Reply()

    world, sent = World(root=chain), Sent()
    (await parked(world, sent)).cancel()
    await until(lambda: sent.replies == [None])
    assert ended == ["tidy"] and world.handler.in_flight == 0


@pytest.mark.parametrize("waits", ["not", "for a promise", "for a future"])
async def test_what_was_cancelled_below_is_a_bug_and_is_answered(waits: str) -> None:
    """Nobody has given up the query: a plugin's own task, say, was cancelled."""
    promise: Promise[str] = Promise(Wakeups())

    async def chain(query: Query) -> Reply:
        if waits == "for a promise":
            await promise
        elif waits == "for a future":
            await asyncio.sleep(0.001)
        raise asyncio.CancelledError

    world, sent = World(root=chain), Sent()
    with captured_log() as log:
        if waits == "not":
            assert world.rcode("a.") == SERVFAIL
        else:
            await parked(world, sent)
            promise.cancel()
            await until(lambda: bool(sent.replies))
            assert sent.replies[0] is not None and parse_reply(sent.replies[0]).rcode == SERVFAIL
    assert world.handler.in_flight == 0
    assert len(log.matching("Recovered from panic in server")) == 1
    exposed = world.process.metrics.expose().decode()
    assert (
        'coredns_dns_responses_total{plugin="",rcode="SERVFAIL",server="dns://:53",view="",zone="dropped"} 1.0'
        in exposed
    )


@pytest.mark.parametrize("own", [True, False], ids=["promise", "future"])
async def test_a_bug_behind_the_chain_is_logged_and_counts_as_settled(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: caught.append(str(context["exception"])))

    def broken(*args: object) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr("kdns.handler.pack_reply", broken)
    promise: Promise[str] = Promise(Wakeups())

    async def chain(query: Query) -> Reply:
        await (promise if own else asyncio.sleep(0.001))
        return Reply()

    world, sent = World(root=chain), Sent()
    await parked(world, sent)
    promise.keep("x")
    await until(lambda: sent.replies == [None] and caught == ["a bug"])
    assert world.handler.in_flight == 0


async def test_too_many_waiting_queries_are_shed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IN_FLIGHT", 2)

    async def slow(query: Query) -> Reply:
        await asyncio.sleep(30)
        return Reply()

    world = World(root=slow)
    sent, parked = Sent(), []
    for name in ("a.", "b."):
        waiting = world.ask(name)
        assert isinstance(waiting, Waiting)
        waiting.park(sent.settled)
        parked.append(waiting)
    assert world.rcode("c.") == SERVFAIL
    assert "kdns_shed_total 1.0" in world.process.metrics.expose().decode()
    for waiting in parked:
        waiting.cancel()
    await until(lambda: sent.replies == [None, None])


def stored(world: World, name: str) -> bytes | None:
    return world.packets.get(SCOPE, packet(name), world.clock)


def test_leased_replies_are_stored_and_dropped_with_their_facts() -> None:
    world = World(root=answer(Lease(FOREVER, (b"svc/a",))))
    reply = world.ask("a.")
    assert stored(world, "a.") == reply
    world.process.facts.drop([b"svc/other"])
    assert stored(world, "a.") == reply
    world.process.facts.drop([b"svc/a"])
    assert stored(world, "a.") is None


def test_without_a_lease_nothing_is_stored() -> None:
    world = World(root=answer())
    world.ask("a.")
    assert len(world.packets) == 0


def test_a_reply_computed_before_a_change_is_not_stored_after_it() -> None:
    world = World()

    async def changed_meanwhile(query: Query) -> Reply:
        world.process.facts.drop([b"svc/a"])
        return await answer(Lease(FOREVER, (b"svc/a",)))(query)

    world.handler.routes = Routes({ROOT: changed_meanwhile}, False)
    world.ask("a.")
    assert stored(world, "a.") is None


def test_a_reply_of_old_routes_is_not_stored_after_a_reload() -> None:
    world = World()

    async def reloaded_meanwhile(query: Query) -> Reply:
        world.handler.routes = Routes({ROOT: answer()}, False)
        return await answer(Lease(FOREVER))(query)

    world.handler.routes = Routes({ROOT: reloaded_meanwhile}, False)
    world.ask("a.")
    assert stored(world, "a.") is None


def test_a_denial_is_kept_only_where_all_names_below_its_apex_go_one_way() -> None:
    soa = Record(from_text("b.a."), SOA, 30, from_text("ns.b.a.") + from_text("host.b.a.") + bytes(20))
    denied = Denial(from_text("b.a."), Existing(1))
    chain = answer(Lease(FOREVER, (b"f",), denial=denied), rcode=NXDOMAIN, answer=(), authority=(soa,))
    for zones, proven in (
        (("root",), True), (("root", "b_a_"), True), (("root", "b_a_", "c_a_"), True),
        (("root", "x_b_a_"), False), (("root", "y_x_b_a_"), False),
    ):  # fmt: skip
        world = World(**dict.fromkeys(zones, chain))
        reply = world.ask("w.b.a.")
        assert stored(world, "w.b.a.") == reply
        assert (stored(world, "v.v.b.a.") is not None) == proven
        assert stored(world, "b.a.") is None
        assert world.handler.routes.one_way(from_text("b.a.")) == proven
        world.process.facts.drop([b"f"])
        assert (stored(world, "w.b.a.") is not None) == proven
    world = World(root=chain)
    world.handler.routes = Routes({ROOT: chain}, True)
    world.ask("w.b.a.", klass=CH)
    assert world.packets.get(SCOPE, packet("w.b.a.", klass=CH), world.clock)
    assert world.packets.get(SCOPE, packet("v.b.a.", klass=CH), world.clock) is None


def test_replays_are_reported_as_sends_are() -> None:
    reports: list[tuple[int, int, int]] = []
    report = lambda times, asked, sent, seconds: reports.append((times, asked, sent))  # noqa: E731
    world = World(root=answer(Lease(FOREVER), report=report))
    reply = world.ask("a.")
    assert isinstance(reply, bytes)
    for _ in range(3):
        assert stored(world, "a.") == reply
    world.packets.settle()
    assert reports == [(1, 19, len(reply)), (3, 19, len(reply))]


async def test_chases_are_bounded() -> None:
    world = World(root=answer())
    query = Query(b"\1a\0", A, 1, b"\1a\0", 1, 0, None, PEER, LISTENER, 19, depth=limits.CHASE_DEPTH + 1)
    reply = await world.handler.resolve(query)
    assert reply.rcode == SERVFAIL and "chases" in reply.error
