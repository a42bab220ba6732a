"""The contract that plugin authors read: the chain, leases under it, facts, and what outlives a reload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest

from kdns.denial import Denial, Existing
from kdns.message import FOREVER, NO_LEASE, SERVFAIL, A, Fact, Lease, Listener, Query, Reply
from kdns.name import from_text
from kdns.plugin import (
    EndOfChain,
    Facts,
    Next,
    Plugin,
    Process,
    Site,
    Warehouse,
    build_chain,
)
from tests.support import captured_log

NAME = from_text("example.org.")
QUERY = Query(NAME, A, 1, NAME, 1, 0, None, ("192.0.2.1", 53), Listener(), 30)
LEASE = Lease(FOREVER, (b"x",), rotate=True, duties=(lambda *_: None,))


class Passing(Plugin):
    """Passes on; notes the tasks that it ran in."""

    name = "passing"
    replayable = True
    inline = True

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[object] | None] = []

    async def resolve(self, query: Query, next: Next) -> Reply:
        try:
            self.tasks.append(asyncio.current_task())
        except RuntimeError:
            self.tasks.append(None)
        return await next(query)


class Answering(Plugin):
    name = "answering"
    replayable = True
    inline = True

    async def resolve(self, query: Query, next: Next) -> Reply:
        return Reply(lease=LEASE, plugin=self.name)


class Forgetful(Passing):
    """Keeps no lease rules."""

    name = "forgetful"
    replayable = False


class Ordinary(Passing):
    """Of a third party that knows nothing of tasks."""

    name = "ordinary"
    inline = False


# --- the chain -------------------------------------------------------------------------------------------------------


async def test_plugins_nest_in_the_order_given() -> None:
    seen: list[str] = []

    class Noting(Plugin):
        replayable = inline = True

        def __init__(self, label: str) -> None:
            self.label = label

        async def resolve(self, query: Query, next: Next) -> Reply:
            seen.append(f"{self.label} down")
            reply = await next(query)
            seen.append(f"{self.label} up")
            return reply

    reply = await build_chain([Noting("a"), Noting("b"), Answering(), Noting("c")])(QUERY)
    assert seen == ["a down", "b down", "b up", "a up"]
    assert reply.plugin == "answering"


async def test_configuration_only_is_no_link() -> None:
    silent = Passing()
    silent.handles = False
    assert (await build_chain([silent, Answering()])(QUERY)).plugin == "answering"
    assert silent.tasks == []


async def test_the_end_of_the_chain() -> None:
    reply = await build_chain([Plugin(), Passing()])(QUERY)
    assert (reply.rcode, reply.error, reply.lease) == (SERVFAIL, "plugin/passing: no next plugin found", NO_LEASE)
    assert isinstance(build_chain([]), EndOfChain)

    async def last(query: Query) -> Reply:
        return Reply(plugin="last")

    assert (await build_chain([Passing()], last)(QUERY)).plugin == "last"


async def test_the_last_plugin_sees_that_it_is_the_last() -> None:
    """``file`` REFUSES there what it would pass on."""
    seen: list[Next] = []

    class Looking(Plugin):
        replayable = inline = True

        async def resolve(self, query: Query, next: Next) -> Reply:
            seen.append(next)
            return await next(query)

    await build_chain([Looking(), Looking()])(QUERY)
    assert [isinstance(call, EndOfChain) for call in seen] == [False, True]


async def test_a_plugin_passes_on_by_default() -> None:
    assert (await build_chain([Plugin(), Answering()])(QUERY)).plugin == "answering"


def test_a_chain_that_never_waits_needs_no_loop() -> None:
    answering = build_chain([Passing(), Passing(), Answering()])(QUERY)
    with pytest.raises(StopIteration) as done:
        answering.send(None)
    assert done.value.value.plugin == "answering"


async def test_who_is_not_inline_gets_a_task_of_their_own() -> None:
    inline, ordinary = Passing(), Ordinary()
    await build_chain([inline, ordinary, Answering()])(QUERY)
    here = asyncio.current_task()
    assert inline.tasks == [here]
    assert ordinary.tasks[0] not in (None, here)


async def test_timeouts_work_in_a_plugin_that_is_not_inline() -> None:
    class Impatient(Plugin):
        replayable = True

        async def resolve(self, query: Query, next: Next) -> Reply:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
            return Reply()

    # Stepped by hand, as the handler does it, so that there is no current task.
    answering = build_chain([Impatient()])(QUERY)
    waiting = answering.send(None)
    await asyncio.wait([waiting])
    with pytest.raises(TimeoutError):
        answering.send(None)


class Endless(Plugin):
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def resolve(self, query: Query, next: Next) -> Reply:
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.set()
        return Reply()


async def test_who_gives_up_a_query_ends_its_task(caplog: pytest.LogCaptureFixture) -> None:
    endless = Endless()
    task = asyncio.create_task(build_chain([endless])(QUERY))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert endless.ended.is_set()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_who_drops_a_query_stepped_by_hand_ends_its_task() -> None:
    """As the handler does when too many queries wait: else their tasks would be without a bound."""
    endless = Endless()
    answering = build_chain([endless])(QUERY)
    answering.send(None)
    await asyncio.sleep(0)
    answering.close()
    async with asyncio.timeout(5):
        await endless.ended.wait()


async def test_errors_come_through() -> None:
    class Broken(Plugin):
        async def resolve(self, query: Query, next: Next) -> Reply:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await build_chain([Passing(), Broken()])(QUERY)


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_leases_come_up_through_replayable_plugins() -> None:
    assert (await build_chain([Passing(), Ordinary(), Answering()])(QUERY)).lease is LEASE


@pytest.mark.parametrize("outside", [[], [Passing()]])
async def test_others_take_the_time_off_a_lease_but_not_its_facts(outside: list[Plugin]) -> None:
    lease = (await build_chain([*outside, Forgetful(), Answering()])(QUERY)).lease
    assert (lease.until, lease.facts) == (0.0, (b"x",))


async def test_a_plugin_may_be_replayable_by_configuration() -> None:
    plugin = Forgetful()
    plugin.replayable = True
    assert (await build_chain([plugin, Answering()])(QUERY)).lease is LEASE


async def test_no_lease_stays_none() -> None:
    assert (await build_chain([Forgetful()])(QUERY)).lease is NO_LEASE


def test_leases_meet() -> None:
    one, two = (lambda *_: None), (lambda *_: None)
    a = Lease(10.0, (b"a", b"b"), rotate=True, duties=(one,))
    b = Lease(5.0, (b"b", b"c"), age=True, duties=(two,))
    assert a.meet(b) == Lease(5.0, (b"a", b"b", b"c"), rotate=True, age=True, duties=(one, two))
    assert a.meet(NO_LEASE) == Lease(0.0, (b"a", b"b"), rotate=True, duties=(one,))


# --- who may prove denials -------------------------------------------------------------------------------------------


class Proving(Passing):
    """Notes which apexes are barred."""

    def __init__(self) -> None:
        super().__init__()
        self.barred: frozenset[bytes] | None = None

    def prove(self, barred: frozenset[bytes]) -> None:
        self.barred = barred


def blind(*apart: str) -> Plugin:
    plugin = Passing()
    plugin.blind, plugin.apart = True, [from_text(zone) for zone in apart]
    return plugin


def test_whoever_is_below_blind_plugins_only_may_prove_denials() -> None:
    first, second, third = Proving(), Proving(), Proving()
    build_chain([blind(), blind(), first, Passing(), second])
    assert first.barred == frozenset()
    assert second.barred is None
    first, second, third = Proving(), Proving(), Proving()
    first.blind = second.blind = True
    build_chain([first, blind("a.org."), second, blind("b.com.", "."), third])
    assert first.barred == frozenset()
    assert second.barred == {b"\3org\0", b"\0"}
    assert third.barred == {b"\3org\0", b"\3com\0", b"\0"}


def test_configuration_only_bars_nothing() -> None:
    silent, proving = Passing(), Proving()
    silent.handles = False
    build_chain([silent, proving])
    assert proving.barred == frozenset()


async def test_what_the_whole_server_says_proves_nothing_for_who_asked() -> None:
    process = Process()
    lease = Lease(FOREVER, (b"x",), rotate=True, denial=Denial(NAME, Existing(1)))

    async def server(query: Query) -> Reply:
        return Reply(lease=lease)

    process.ask = server
    assert (await Site(process, ()).ask(QUERY)).lease == Lease(FOREVER, (b"x",), rotate=True)


# --- facts -----------------------------------------------------------------------------------------------------------


def test_drops_reach_all_who_subscribe() -> None:
    facts = Facts()
    heard: list[tuple[str, frozenset[Fact]]] = []

    def listener(label: str) -> object:
        def forget(dropped: Iterable[Fact]) -> None:
            heard.append((label, frozenset(dropped)))

        return facts.subscribe(forget)

    listener("a")
    leave = listener("b")
    facts.drop(iter((b"x", b"y", b"x")))
    assert heard == [("a", frozenset((b"x", b"y"))), ("b", frozenset((b"x", b"y")))]
    assert callable(leave)
    leave()
    facts.drop((b"z",))
    assert heard[2:] == [("a", frozenset((b"z",)))]


def test_drops_reach_those_behind_one_that_fails() -> None:
    facts = Facts()
    heard: list[frozenset[Fact]] = []

    def broken(dropped: Iterable[Fact]) -> None:
        raise RuntimeError("a bug")

    facts.subscribe(broken)
    facts.subscribe(lambda dropped: heard.append(frozenset(dropped)))
    with pytest.raises(RuntimeError):
        facts.drop((b"x",))
    assert heard == [frozenset((b"x",))]


def test_the_epoch_moves_with_every_drop_that_drops_something() -> None:
    facts = Facts()
    facts.drop(())
    assert facts.epoch == 0
    facts.drop((b"x",))
    facts.drop({b"x"})
    assert facts.epoch == 2


def test_the_epoch_has_moved_before_anybody_hears_of_it() -> None:
    facts = Facts()
    seen: list[int] = []
    facts.subscribe(lambda _: seen.append(facts.epoch))
    facts.drop((b"x",))
    assert seen == [1]


# --- what outlives a reload ------------------------------------------------------------------------------------------


class Thing:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_things_are_made_once_and_closed_when_nobody_takes_them() -> None:
    warehouse = Warehouse()
    first: set[tuple[object, ...]] = set()
    a, b = warehouse.take(("a",), Thing, first), warehouse.take(("b", 1), Thing, first)
    plain = warehouse.take(("dict",), dict, first)
    assert first == {("a",), ("b", 1), ("dict",)}
    second: set[tuple[object, ...]] = set()
    assert warehouse.take(("a",), Thing, second) is a
    warehouse.keep_only(second)
    assert (a.closed, b.closed, plain) == (0, 1, {})
    assert warehouse.take(("b", 1), Thing, second) is not b
    warehouse.keep_only(set())
    assert (a.closed, b.closed) == (1, 1)


def test_what_cannot_be_made_is_not_kept() -> None:
    warehouse = Warehouse()
    with pytest.raises(ZeroDivisionError):
        warehouse.take(("a",), lambda: 1 // 0, set())
    assert warehouse.take(("a",), lambda: 5, set()) == 5


# --- where a plugin stands -------------------------------------------------------------------------------------------


def test_a_site_keeps_by_kind() -> None:
    process = Process()
    one, two = Site(process, (NAME,)), Site(process, (NAME,))
    thing = one.keep("kind", ("a",), Thing)
    assert two.keep("kind", ("a",), Thing) is thing
    assert two.keep("other", ("a",), Thing) is not thing
    assert one.taken == {("kind", "a")}
    assert two.taken == {("kind", "a"), ("other", "a")}


def test_paths_are_relative_to_the_root() -> None:
    site = Site(Process(), (NAME,))
    assert site.path("db") == "db"
    site.root = "/etc/kdns"
    assert (site.path("db"), site.path("/db")) == ("/etc/kdns/db", "/db")


def test_labels_and_the_process_around() -> None:
    process = Process(clock=lambda: 5.0)
    site = Site(process, (NAME, b"\0"))
    assert site.now() == 5.0
    assert (site.facts, site.metrics) == (process.facts, process.metrics)
    with captured_log() as log:
        site.logger("x").info("here")
    assert log.lines == ["[INFO] plugin/x: here"]


async def test_asking_the_server_goes_one_deeper() -> None:
    process = Process()
    site = Site(process, (NAME,))
    assert (await site.ask(QUERY)).error == "the server is not running"
    asked: list[Query] = []

    async def server(query: Query) -> Reply:
        asked.append(query)
        return Reply()

    process.ask = server
    await site.ask(QUERY.replace(depth=3))
    assert asked == [QUERY.replace(depth=4)]


async def test_what_a_plugin_need_not_do() -> None:
    plugin = Plugin()
    await plugin.start()
    await plugin.drain()
    await plugin.stop()
    assert plugin.unready() == ""
    assert plugin.metadata(QUERY) == {}
    with pytest.raises(NotImplementedError):
        Plugin.setup([], Site(Process(), ()))
