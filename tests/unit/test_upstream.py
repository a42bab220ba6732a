"""Asking other servers: sockets, health, hedging, sharing, fairness, and what is not believed."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import msgspec
import pytest

from kdns import limits, message, name, wire
from kdns.message import SERVFAIL, Edns
from kdns.promise import Wakeups
from kdns.upstream import Settings, Tls, UpstreamError, native
from kdns.upstream.ask import Ask, Attempt, matching, random_numbers
from kdns.upstream.fair import Census, Window
from kdns.upstream.health import DOWN, GOOD, SILENT, WORSE, Health
from kdns.upstream.outbox import Outbox
from kdns.upstream.poller import Poller
from kdns.upstream.udp import Port
from kdns.upstream.wheel import STEP, Wheel
from tests.certificates import make_certificate
from tests.fakeupstream import (
    Asked,
    FakeUpstream,
    after,
    answer_all,
    odd_packets,
    server_context,
    silent,
)
from tests.plugintest import ask as ask_for
from tests.plugintest import shown
from tests.support import free_port, hang_up
from tests.upstreamtest import TCP, World, addresses, ask_many, compiled, needs_compiled, new_world, twins, until

needs_renewal = pytest.mark.skipif(native.renew is None, reason="the Python twin does not renew sockets")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


# --- the wheel -------------------------------------------------------------------------------------------------------


class Bell:
    def __init__(self, error: bool = False) -> None:
        self.rung: list[float] = []
        self.error = error

    def tick(self, now: float) -> None:
        self.rung.append(now)
        if self.error:
            raise RuntimeError("a bug")


async def test_wheel_is_never_early() -> None:
    wheel, loop = Wheel(), asyncio.get_running_loop()
    bells = {loop.time() + seconds: Bell() for seconds in (0, 0.001, STEP, 0.05, 0.05001, 0.11)}
    for when, bell in bells.items():
        wheel.at(when, bell)

    await until(lambda: not len(wheel))

    assert all(len(bell.rung) == 1 and bell.rung[0] >= when for when, bell in bells.items())


async def test_wheel_outlives_a_bug() -> None:
    wheel, loop = Wheel(), asyncio.get_running_loop()
    caught: list[Any] = []
    loop.set_exception_handler(lambda loop, context: caught.append(context["exception"]))
    bells = [Bell(), Bell(error=True), Bell()]
    for bell in bells:
        wheel.at(loop.time(), bell)

    await until(lambda: all(bell.rung for bell in bells))

    assert [str(error) for error in caught] == ["a bug"]


async def test_wheel_forgets_when_closed() -> None:
    wheel, bell = Wheel(), Bell()
    wheel.at(asyncio.get_running_loop().time(), bell)
    wheel.close()
    await asyncio.sleep(3 * STEP)
    assert not bell.rung and not len(wheel)


# --- the poller ------------------------------------------------------------------------------------------------------


class Reader:
    """Takes what comes, and closes others then."""

    def __init__(self, poller: Poller, closes: list[Reader]) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.fd = self.ours.fileno()
        self.poller, self.closes = poller, closes
        self.got: list[bytes | OSError] = []
        poller.watch(self.fd, self)

    def received(self, datagram: bytes) -> None:
        self.got.append(datagram)
        for reader in self.closes:
            reader.close()

    def broken(self, error: OSError) -> None:
        self.got.append(error)

    def close(self) -> None:
        if self.fd >= 0:
            self.poller.forget(self.fd)
            self.fd = -1
            self.ours.close()
        self.theirs.close()


@pytest.fixture(params=twins())
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the twins, in use."""
    monkeypatch.setattr("kdns.upstream.poller.receive", request.param.receive)
    monkeypatch.setattr("kdns.upstream.outbox.send_all", request.param.send_all)
    return request.param


async def test_poller_wakes_until_all_is_read_and_survives_sockets_that_close_one_another(native: Any) -> None:
    poller = Poller(Wakeups())
    first = Reader(poller, [])
    first.theirs.send(b"1")
    first.theirs.send(b"2")
    await until(lambda: first.got == [b"1", b"2"])

    second, third = Reader(poller, []), Reader(poller, [])
    second.closes.append(third)
    third.closes.append(second)
    second.theirs.send(b"x")
    third.theirs.send(b"x")
    await until(lambda: bool(second.got or third.got))
    await asyncio.sleep(0)

    assert len(second.got + third.got) == 1
    for reader in (first, second, third):
        reader.close()
    poller.close()
    poller.close()


async def test_poller_reads_more_sockets_than_at_once_and_datagrams_of_any_size(native: Any) -> None:
    poller = Poller(Wakeups())
    readers = [Reader(poller, []) for _ in range(150)]
    for number, reader in enumerate(readers):
        reader.theirs.send(bytes(number))
    readers[0].theirs.send(bytes(65535))
    await until(lambda: sum(len(reader.got) for reader in readers) == 151)
    assert [reader.got[0] for reader in readers] == [bytes(number) for number in range(150)]
    assert readers[0].got[1] == bytes(65535)
    for reader in readers:
        reader.close()
    poller.close()


async def test_poller_tells_what_the_kernel_says(native: Any) -> None:
    poller = Poller(Wakeups())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        nobody.bind(("127.0.0.1", 0))
        sock.connect(nobody.getsockname())
        sock.setblocking(False)
        nobody.close()
        reader = Reader(poller, [])
        poller.watch(sock.fileno(), reader)
        sock.send(b"x")
        await until(lambda: bool(reader.got))
    assert isinstance(reader.got[0], ConnectionRefusedError) and reader.got[0].strerror == "Connection refused"
    reader.close()
    poller.close()


# --- the outbox ------------------------------------------------------------------------------------------------------


class Mailer:
    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.fd = self.ours.fileno()
        self.errors: list[OSError] = []

    def unsent(self, error: OSError) -> None:
        self.errors.append(error)

    def close(self) -> None:
        self.fd = -1
        self.ours.close()


async def test_outbox_sends_in_turn_and_tells_whose_datagram_was_not_taken(native: Any) -> None:
    outbox = Outbox()
    first, second, gone = Mailer(), Mailer(), Mailer()
    outbox.add(first, b"1")
    outbox.add(gone, b"x")
    outbox.add(second, b"2")
    outbox.add(first, b"3")
    outbox.add(gone, b"y")
    second.theirs.close()
    gone.close()
    await asyncio.sleep(0.01)

    assert [first.theirs.recv(10) for _ in range(2)] == [b"1", b"3"]
    assert [error.errno for error in second.errors] == [errno.ECONNREFUSED]
    assert not first.errors and not gone.errors
    for mailer in (first, second, gone):
        mailer.close()
        mailer.theirs.close()


# --- health ----------------------------------------------------------------------------------------------------------


def test_health_is_good_until_something_is_against_it() -> None:
    health = Health(2)
    assert health.standing(0.0, 0.0) == GOOD and health.spotless and health.reachable
    health.answered(1.0, 0.01, late=False)
    assert health.spotless and health.heard == 1.0 and health.rtt == 0.01
    health.answered(2.0, 0.09, late=False)
    assert health.rtt == pytest.approx(0.02)


def test_health_of_a_slow_or_lossy_server_is_worse_than_the_others_for_a_while() -> None:
    health = Health(2)
    for second in range(4):
        health.missed(second / 10)
    assert health.standing(0.4, 0.0) == WORSE
    assert health.standing(0.4, 0.2) == GOOD, "not when the best one misses as much"
    assert health.standing(30.0, 0.0) == GOOD, "it wears off"


def test_health_recovers_with_answers() -> None:
    health = Health(2)
    for _ in range(50):
        health.missed(0.0)
    assert health.standing(0.0, 0.0) == WORSE
    for _ in range(100):
        health.answered(0.0, 0.01, late=False)
    assert health.standing(0.0, 0.0) == GOOD and health.spotless


def test_health_counts_a_late_answer_once() -> None:
    late, lost = Health(2), Health(2)
    for health in (late, lost):
        health.missed(0.0)
    late.answered(0.0, 1.0, late=True)
    assert late.miss(0.0) == lost.miss(0.0)


def test_health_goes_down_after_more_than_max_fails_probes() -> None:
    health = Health(2)
    health.probe_late()
    assert health.standing(0.0, 0.0) == SILENT and not health.reachable
    health.probe_failed()
    health.probe_failed()
    assert health.standing(0.0, 0.0) == SILENT
    health.probe_failed()
    assert health.standing(0.0, 0.0) == DOWN and health.down
    health.answered(5.0, 0.1, late=False)
    assert health.standing(5.0, 0.0) == GOOD and health.reachable and not health.fails


def test_health_is_never_down_without_max_fails() -> None:
    health = Health(0)
    for _ in range(10):
        health.probe_failed()
    assert health.reachable and not health.down


# --- fairness --------------------------------------------------------------------------------------------------------


class Held:
    def __init__(self, text: str) -> None:
        self.name = name.from_text(text)
        self.done = False


def held(*texts: str) -> list[Held]:
    return [Held(text) for text in texts]


def test_census_finds_the_dead_zone_and_spares_its_neighbours() -> None:
    flood = held(*(f"{n:x}.dead.example.org." for n in range(900)))
    innocent = held(*(f"www.shop{n}.example.org." for n in range(50)), *(f"www.shop{n}.net." for n in range(50)))
    census = Census([*flood[:450], *innocent, *flood[450:]], name.ROOT)

    assert census.give_way(name.from_text("zzz.dead.example.org.")) is None
    assert census.give_way(name.from_text("www.alive.example.org.")) is flood[0]
    assert census.give_way(name.from_text("www.other.com.")) is flood[1], "the oldest one first"


def test_census_sees_through_random_labels_at_any_depth() -> None:
    flood = held(*(f"{n:x}.{n * 7:x}.dead.test." for n in range(500)))
    census = Census(flood, name.ROOT)
    assert census.give_way(name.from_text("1.2.dead.test.")) is None
    assert census.give_way(name.from_text("www.live.test.")) is flood[0]


def test_census_takes_from_the_fullest_of_several() -> None:
    flood = held(*(f"{n}.a.test." for n in range(60)), *(f"{n}.b.test." for n in range(50)))
    census = Census(flood, name.ROOT)
    given = [census.give_way(name.from_text("www.c.test.")) for _ in range(20)]
    assert Counter(name.labels(question.name)[1] for question in given if question) == {b"a": 15, b"b": 5}


def test_census_skips_what_has_been_answered_meanwhile() -> None:
    flood = held(*(f"{n}.dead.test." for n in range(20)))
    census = Census(flood, name.ROOT)
    for question in flood[:19]:
        question.done = True
    assert census.give_way(name.from_text("x.test.")) is flood[19]
    assert census.give_way(name.from_text("x.test.")) is None, "nobody is left to give way"


def test_census_blames_nobody_when_all_are_alike() -> None:
    census = Census(held(*(f"www.shop{n}.tld{n}." for n in range(100))), name.ROOT)
    assert census.give_way(name.from_text("www.new.")) is None


def test_census_below_a_stub_zone_does_not_blame_the_stub_zone() -> None:
    zone = name.from_text("corp.example.")
    flood = held(*(f"{n}.dead.corp.example." for n in range(50)), "www.corp.example.")
    census = Census(flood, zone)
    assert census.give_way(name.from_text("www.live.corp.example.")) is flood[0]
    assert census.give_way(name.from_text("mail.corp.example.")) is flood[1]


def test_census_of_names_directly_below_the_zone() -> None:
    flood = held(*(f"{n}." for n in range(50)))
    census = Census(flood, name.ROOT)
    assert census.give_way(name.from_text("junk.")) is None


def test_census_is_quick_with_a_sample() -> None:
    flood = held(*(f"{n:x}.{n % 7}.dead.test." for n in range(20_000)))
    census = Census(flood, name.ROOT)
    assert census.give_way(name.from_text("www.live.test.")) is not None


class Queue:
    """A server that answers in turn, so many a second, and how a client with a Window fares with it."""

    def __init__(self, window: Window, capacity: float, distance: float = 0.001) -> None:
        self.window, self.service, self.distance = window, 1 / capacity, distance
        self.free_at = 0.0
        self.due: list[tuple[float, float]] = []
        self.answered: list[float] = []

    def step(self, now: float, demand: int) -> None:
        while self.due and self.due[0][0] <= now:
            done, sent = self.due.pop(0)
            self.answered.append(done - sent)
            self.window.answered(now, done - sent, len(self.due) + 1)
        for _ in range(demand):
            if len(self.due) < self.window.size:
                self.free_at = max(self.free_at, now) + self.service
                self.due.append((self.free_at + self.distance, now))


def test_window_stays_open_when_nothing_queues() -> None:
    window = Window(1000)
    queue = Queue(window, 10_000)
    for tick in range(1000):
        queue.step(tick / 100, 20)
    assert window.size == 1000


def test_window_keeps_the_queue_of_an_overloaded_server_short() -> None:
    window = Window(5000)
    queue = Queue(window, 200)
    for tick in range(3000):
        queue.step(tick / 100, 6)  # 600 a second, 30 seconds long
    settled = queue.answered[len(queue.answered) // 2 :]
    assert len(queue.answered) > 0.95 * 200 * 30, "the server was busy all the time"
    assert max(settled) < 1.5


def test_window_takes_a_long_way_for_what_it_is() -> None:
    window = Window(5000)
    queue = Queue(window, 10_000, distance=0.7)
    for tick in range(2000):
        queue.step(tick / 100, 10)
    assert window.size == 5000, "700 ms from the first answer on"

    window = Window(5000)
    near = Queue(window, 10_000, distance=0.001)
    for tick in range(500):
        near.step(tick / 100, 10)
    far = Queue(window, 10_000, distance=0.7)
    for tick in range(500, 4000):
        far.step(tick / 100, 10)
    assert window.size > 700, "it took the new distance for what it is, and a second's questions have room"


def test_window_is_never_smaller_than_it_may_be() -> None:
    window = Window(2)
    for tick in range(100):
        window.answered(tick, 3.0, 2)
    assert window.size == 2


# --- what is an answer -----------------------------------------------------------------------------------------------


def test_an_answer_is_to_the_very_question_in_any_case() -> None:
    wanted = ask_for("www.Example.org.")
    query = wire.pack_query(7, 0, wanted.spelling, 1, 1, None)
    ask = Ask(wanted.name, query[-4:], query[2:])
    sent: list[bytes] = []
    good = Asked(query, ("", 0), "udp", sent.append).address()

    for packet in (good, good.replace(b"Example", b"eXAMPLE")):
        found = matching(packet, ask)
        assert found is not None and shown(found.answer)[0].endswith("192.0.2.1")
    for kind, packet in odd_packets(good).items():
        if kind != "another ID":
            assert matching(packet, ask) is None, kind


def test_type_65_is_not_type_97() -> None:
    # 0x41 and 0x61 are "A" and "a".
    query = wire.pack_query(7, 0, name.from_text("a.test."), 65, 1, None)
    other = wire.pack_query(7, 0x8000, name.from_text("a.test."), 97, 1, None)
    assert matching(other, Ask(name.from_text("a.test."), query[-4:], query[2:])) is None


def test_random_numbers_are_16_bits_and_spread() -> None:
    numbers = list(itertools.islice(random_numbers(), 20_000))
    assert min(numbers) >= 0 and max(numbers) < 65536
    buckets = Counter(number >> 10 for number in numbers)
    # 64 buckets of 312 on average; 6 standard deviations.
    assert len(buckets) == 64 and all(200 < count < 430 for count in buckets.values())
    assert len(set(numbers)) > 15_000


# --- UDP -------------------------------------------------------------------------------------------------------------


async def test_asks_and_passes_the_answer_on(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake)
    reply = await group.ask(ask_for("WWW.example.org."))
    assert addresses(reply) == ["192.0.2.1"]
    assert (reply.plugin, reply.lease.until, reply.lease.facts) == ("forward", 0.0, ())
    assert fake.asked[0].spelling == "WWW.example.org.", "as the asker spelt it"
    assert fake.asked[0].proto == "udp"
    assert (group.waiting, group.under_way) == (0, 0)


async def test_flags_and_edns_go_up_and_come_down(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        options = (
            dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678"),
            dns.edns.NSIDOption(b"ns1"),
            dns.edns.EDEOption(dns.edns.EDECode.STALE_ANSWER, "old"),
        )
        asked.send(asked.reply(rcode="NXDOMAIN", flags="QR AA RD RA AD CD", options=options))

    fake.script = script
    ecs, cookie, padding, keepalive = (8, b"\0\1\x18\0\xc0\0\2"), (10, b"c" * 8), (12, b"\0" * 9), (11, b"")
    edns = Edns(4096, True, (ecs, cookie, padding, keepalive))
    flags = message.RD | message.AD | message.CD
    reply = await world.group(fake).ask(ask_for("x.test.", edns=edns, flags=flags))

    up = fake.asked[0].message
    assert up.flags == dns.flags.RD | dns.flags.AD | dns.flags.CD
    assert (up.payload, up.ednsflags & dns.flags.DO, [int(option.otype) for option in up.options]) == (
        4096,
        0x8000,
        [8],
    )
    assert reply.rcode == message.NXDOMAIN
    assert reply.flags == message.AA | message.RA | message.AD
    assert reply.options == ((3, b"ns1"),), "what is between us and the upstream stays there"
    assert reply.ede == ((3, "old"),)
    assert not reply.additional, "no OPT among the records"


async def test_no_edns_goes_up_without_edns(world: World, fake: FakeUpstream) -> None:
    await world.group(fake).ask(ask_for("x.test.", flags=0))
    up = fake.asked[0].message
    assert up.edns == -1 and up.flags == 0


async def test_the_true_reply_is_awaited_behind_each_odd_one(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        if asked.name != ".":
            odd = odd_packets(asked.address("192.0.2.66"))
            asked.send(list(odd.values())[int(asked.name.partition(".")[0])])
            await asyncio.sleep(0.01)
        asked.send(asked.address("192.0.2.7"))

    fake.script = script
    group = world.group(fake)
    kinds = len(odd_packets(Asked(wire.pack_query(1, 0, b"\1x\0", 1, 1, None), ("", 0), "udp", print).address()))
    for kind in range(kinds):
        reply = await group.ask(ask_for(f"{kind}.test."))
        assert addresses(reply) == ["192.0.2.7"], kind
    # asyncio's datagram transport does not send empty datagrams.
    assert world.value("kdns_upstream_strange_total") == kinds - 1
    assert fake.names.total() == kinds


async def test_the_true_reply_is_awaited_behind_a_storm(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        good = asked.address("192.0.2.7")
        if asked.proto == "udp":
            for n in range(200):
                asked.send(((asked.message.id + 1 + n) % 65536).to_bytes(2, "big") + good[2:])
            await asyncio.sleep(0.2)
        asked.send(good)

    fake.script = script
    assert addresses(await world.group(fake).ask(ask_for())) == ["192.0.2.7"]
    assert fake.count(proto="tcp") == 1, "who guesses IDs makes us ask over TCP"


async def test_an_answer_on_an_attacked_port_is_not_taken_while_tcp_is_asked(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        if asked.proto == "tcp":
            await asyncio.sleep(0.1)
            asked.send(asked.address("192.0.2.7"))
            return
        for n in range(limits.UPSTREAM_STRANGERS):
            asked.send(((asked.message.id + 1 + n) % 65536).to_bytes(2, "big") + asked.packet[2:])
        await asyncio.sleep(0.02)
        asked.send(asked.address("192.0.2.66"))

    fake.script = script
    assert addresses(await world.group(fake).ask(ask_for())) == ["192.0.2.7"]


async def test_an_attacked_port_is_listened_to_when_there_is_no_tcp(world: World) -> None:
    async def script(asked: Asked) -> None:
        for n in range(40):
            asked.send(((asked.message.id + 1 + n) % 65536).to_bytes(2, "big") + asked.packet[2:])
        await asyncio.sleep(0.2)
        asked.send(asked.address("192.0.2.7"))

    async with FakeUpstream(tcp=False) as fake:
        fake.script = script
        assert addresses(await world.group(fake).ask(ask_for())) == ["192.0.2.7"]


@pytest.mark.parametrize("renews", [False, pytest.param(True, marks=needs_compiled)], ids=["new", "renewed"])
async def test_ports_and_ids_cannot_be_foreseen(
    renews: bool, world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Port] = []
    monkeypatch.setattr("kdns.upstream.native.renew", compiled.renew if renews else None)
    watch = world.home.poller.watch
    monkeypatch.setattr(world.home.poller, "watch", lambda fd, port: (opened.append(port), watch(fd, port)))
    group = world.group(fake, max_attempts=1)
    for batch in range(40):
        await ask_many(group, *(f"{batch}.{n}.test." for n in range(50)))
    # The kernel may give a port a second time.
    assert sum(uses > limits.UPSTREAM_USES for uses in fake.ports.values()) < 0.05 * len(fake.ports)
    assert len(fake.ports) >= 2000 / limits.UPSTREAM_USES
    first = [asked.peer[1] for asked in fake.asked[:50]]
    assert len(set(first)) > 35, "a server with little to do uses each port once"
    assert len({asked.message.id for asked in fake.asked}) > 1900
    assert world.value("kdns_upstream_sockets", "udp") <= limits.UPSTREAM_PORTS
    hits, misses = (world.value(f"coredns_proxy_conn_cache_{kind}_total") for kind in ("hits", "misses"))
    assert hits + misses == 2000 and misses >= len(fake.ports)
    assert (len(opened) < misses) == renews, "a socket may have several ports, one after the other"


@needs_renewal
async def test_what_comes_in_on_a_spare_socket_is_not_read_on_its_next_port(world: World, fake: FakeUpstream) -> None:
    pool = world.server(fake)._udp
    assert pool is not None
    port = pool._new_port(0, 0.0)
    pool._retire(port)
    pool.close_if_done(port)
    assert list(pool._spare) == [port] and port.fd >= 0
    old = port.local
    port.waiting[0x7878] = attempt = Attempt(Ask(b"\0", b"\0\1\0\1", b""), world.server(fake), "udp", 0.0)
    fake.send(b"x" * 40, old)
    assert pool._new_port(1, 1.0) is port and port.local != old and port.born == 1.0
    await asyncio.sleep(0.02)
    assert port.waiting == {0x7878: attempt} and not port.strangers
    port.waiting.clear()
    pool.close_if_done(port)


@needs_renewal
async def test_a_spare_socket_on_which_something_comes_in_is_closed(world: World, fake: FakeUpstream) -> None:
    pool = world.server(fake)._udp
    assert pool is not None
    port = pool._new_port(0, 0.0)
    pool._retire(port)
    pool.close_if_done(port)
    fake.send(b"x" * 40, port.local)
    await until(lambda: port.fd < 0)
    assert not pool._spare and pool.open == 0 and world.value("kdns_upstream_strange_total") == 1


@needs_renewal
async def test_spare_sockets_are_closed_when_nothing_is_asked(world: World, fake: FakeUpstream) -> None:
    pool = world.server(fake, expire=0.2)._udp
    assert pool is not None
    port = pool._new_port(0, asyncio.get_running_loop().time())
    pool._retire(port)
    pool.close_if_done(port)
    assert pool._spare and pool.open == 1
    await until(lambda: pool.open == 0)
    assert not pool._spare and port.fd < 0


@needs_compiled
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_renewing_changes_the_port_alone(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as there, socket.socket(family, socket.SOCK_DGRAM) as here:
        try:
            there.bind((address, 0))
        except OSError as error:
            pytest.skip(f"no {address} here: {error}")
        remote = there.getsockname()
        here.connect(remote)
        here.setblocking(False)
        seen = set()
        for number in range(20):
            there.sendto(b"for the old port", here.getsockname())
            seen.add(here.getsockname()[1])
            assert compiled.renew(here.fileno(), remote)
            with pytest.raises(BlockingIOError):
                here.recv(100)
            here.send(bytes((number,)))
            assert there.recvfrom(10) == (bytes((number,)), here.getsockname())
            assert here.getpeername() == remote
        assert len(seen) > 15


@needs_compiled
def test_renewing_forgets_errors_and_what_stands_behind_them() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
            there.bind(("127.0.0.1", 0))
            remote = there.getsockname()
            here.connect(remote)
            here.setblocking(False)
            there.sendto(b"for the old port", here.getsockname())
        here.send(b"nobody listens now")
        assert compiled.renew(here.fileno(), remote)
        with pytest.raises(BlockingIOError):
            here.recv(100)


@needs_compiled
def test_renewing_what_cannot_be_renewed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        assert not compiled.renew(sock.fileno(), ("::1", 9, 0, 0))
        assert not compiled.renew(sock.fileno(), ("not an address", 9))
        fd = sock.fileno()
    assert not compiled.renew(fd, ("127.0.0.1", 9))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", free_port()))
        bound.connect(("127.0.0.1", 9))
        assert not compiled.renew(bound.fileno(), ("127.0.0.1", 9)), "its port would stay"


async def test_a_port_on_which_something_unasked_comes_in_is_never_used_again(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        asked.send(asked.address())
        await asyncio.sleep(0.02)
        asked.send(b"\xde\xad" + asked.packet[2:])

    fake.script = script
    group = world.group(fake)
    for batch in range(3):
        await ask_many(group, *(f"{batch}.{n}.test." for n in range(100)))
        ports = set(fake.ports)
        await until(lambda: world.value("kdns_upstream_sockets", "udp") == 0)
        assert world.value("kdns_upstream_strange_total") >= len(ports)


async def test_a_late_answer_is_no_forgery(world: World, fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script, other.script = after(0.3), after(0.3)
    group = world.group(fake, other, hasty=True, policy="sequential")
    await ask_many(group, *(f"{n}.test." for n in range(20)))
    await asyncio.sleep(0.5)
    assert world.value("kdns_upstream_strange_total") == 0


async def test_refused_is_told_at_once(world: World, fake: FakeUpstream) -> None:
    await fake.stop()
    reply = await world.group(fake).ask(ask_for())
    assert reply.rcode == SERVFAIL
    assert reply.error.startswith("read udp 127.0.0.1:") and reply.error.endswith(": read: connection refused")
    assert reply.ede[0][0] == message.EDE_NETWORK_ERROR


async def test_the_next_server_is_asked_at_once_when_one_refuses(
    world: World, fake: FakeUpstream, other: FakeUpstream
) -> None:
    await fake.stop()
    group = world.group(fake, other, policy="sequential")
    replies = await ask_many(group, *(f"{n}.test." for n in range(50)))
    assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)
    assert set(other.names.values()) == {1}


async def test_few_sockets_are_shared(world: World, fake: FakeUpstream) -> None:
    world.home.allowance.left = 20
    fake.script = after(0.05)
    group = world.group(fake)
    replies = await ask_many(group, *(f"{n}.test." for n in range(200)))
    assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)
    assert len(fake.ports) <= 40, "20 at once, and what was tired has been replaced"
    assert world.value("kdns_upstream_full_total", fake.address, "udp") > 0


async def test_a_port_that_must_be_kept_remembers_few_lost_answers(
    world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all 65,536 IDs of a port were lost, and looking for another one never ended."""
    monkeypatch.setattr(limits, "UPSTREAM_FORSAKEN", 100)
    world.home.allowance.left = 0
    server = world.server(fake, max_fails=0)
    ask, pool = Ask(b"\1a\0", b"\0\1\0\1", b"a question"), server._udp
    assert pool is not None
    for _ in range(5000):
        attempt = Attempt(ask, server, "udp", 0.0)
        server.send(attempt)
        assert attempt.carrier is not None
        attempt.carrier.forget(attempt)
    assert [len(port.forsaken) for port in pool._pool] == [100] * 4
    assert attempt.id in attempt.carrier.forsaken


class NoSockets:
    """From now on the kernel gives no more sockets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.EMFILE) -> None:
        self.asked = 0
        self._number = number
        monkeypatch.setattr("kdns.upstream.udp.socket.socket", self)

    def __call__(self, *_: Any) -> Any:
        self.asked += 1
        raise OSError(self._number, "Too many open files")


async def test_without_descriptors_the_open_sockets_do(
    world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = world.group(fake)
    await ask_many(group, *(f"{n}.test." for n in range(30)))
    kernel = NoSockets(monkeypatch)
    replies = await ask_many(group, *(f"{n}.more.test." for n in range(150)))
    assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)
    assert 1 <= kernel.asked < 10, "it is not asked again at every question"


async def test_without_any_descriptor_the_question_fails_at_once(
    world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = NoSockets(monkeypatch)
    group = world.group(fake, settings={"max_fails": 0})
    replies = await ask_many(group, *(f"{n}.test." for n in range(100)))
    assert {reply.rcode for reply in replies} == {SERVFAIL}
    assert replies[0].error == f"dial udp {fake.address}: connect: too many open files"
    assert replies[0].ede[0][0] == message.EDE_NETWORK_ERROR
    assert 1 <= kernel.asked < 10
    assert group.under_way == 0


async def test_unused_sockets_are_closed(world: World, fake: FakeUpstream) -> None:
    server = world.server(fake, expire=1.0)
    for n in range(30):
        await server.exchange(name.from_text(f"{n}.test."), 1)
    assert world.value("kdns_upstream_sockets", "udp") > 10
    await until(lambda: world.value("kdns_upstream_sockets", "udp") == 0)
    assert world.home.allowance.left > 0


async def test_sockets_have_a_greatest_age(world: World, fake: FakeUpstream) -> None:
    server = world.server(fake, expire=1000.0, max_age=100.0)
    pool = server._udp
    assert pool is not None
    for n in range(30):
        await server.exchange(name.from_text(f"{n}.test."), 1)
    assert pool.open > 10
    pool.tick(asyncio.get_running_loop().time() + 101)
    assert pool.open == 0


async def test_max_idle_bounds_what_is_kept(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake, settings={"max_idle": 3})
    for batch in range(5):
        await ask_many(group, *(f"{batch}.{n}.test." for n in range(20)))
        assert world.value("kdns_upstream_sockets", "udp") <= 3


async def test_a_source_address_is_used(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake, settings={"source": "127.0.0.9"})
    await group.ask(ask_for("a.test."))
    await group.ask(ask_for("a.test.", listener=TCP))
    assert [asked.peer[0] for asked in fake.asked] == ["127.0.0.9"] * 2


async def test_an_impossible_source_address_is_an_error_of_the_question(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake, settings={"source": "192.0.2.99", "max_fails": 0})
    reply = await group.ask(ask_for())
    assert reply.rcode == SERVFAIL and "cannot assign requested address" in reply.error
    reply = await group.ask(ask_for(listener=TCP))
    assert reply.rcode == SERVFAIL and reply.error.startswith(f"dial tcp {fake.address}: ")


async def test_a_big_answer_comes_through_udp(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        asked.send(asked.reply(*(f"big.test. 60 IN A 10.0.{n // 256}.{n % 256}" for n in range(2000))))

    fake.script = script
    reply = await world.group(fake).ask(ask_for("big.test.", edns=Edns(65535, False)))
    assert len(reply.answer) == 2000


async def test_an_unknown_address_family_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_ADDRFAMILY, "Address family not supported")

    monkeypatch.setattr("kdns.upstream.stream.socket.getaddrinfo", refuse)
    with pytest.raises(UpstreamError, match=r"dial \[2001:db8::1\]:53: "):
        world.home.take(Settings("2001:db8::1", 53))


# --- TCP and TLS -----------------------------------------------------------------------------------------------------


async def test_a_tcp_client_is_served_over_tcp_on_one_connection(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake)
    for n in range(5):
        assert addresses(await group.ask(ask_for(f"{n}.test.", listener=TCP))) == ["192.0.2.1"]
    assert fake.connections == 1 and fake.count(proto="tcp") == 5
    assert world.value("coredns_proxy_conn_cache_hits_total", "forward", fake.address, "tcp") == 4
    assert world.value("coredns_proxy_conn_cache_misses_total", "forward", fake.address, "tcp") == 1


async def test_connections_are_bounded_and_shared(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.1)
    group = world.group(fake, force_tcp=True)
    replies = await ask_many(group, *(f"{n}.test." for n in range(300)))
    assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)
    assert fake.connections <= limits.UPSTREAM_STREAMS


async def test_full_connections_are_an_error(world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPSTREAM_STREAMS", 2)
    monkeypatch.setattr(limits, "UPSTREAM_PIPELINE", 10)
    fake.script = after(0.2)
    group = world.group(fake, force_tcp=True)
    replies = await ask_many(group, *(f"{n}.test." for n in range(30)))
    errors = [reply.error for reply in replies if reply.error]
    assert errors == [f"dial tcp {fake.address}: all connections are full"] * 10
    assert fake.connections == 2
    assert world.value("kdns_upstream_full_total", fake.address, "tcp") >= 10


async def test_answers_on_one_connection_overtake_each_other(
    world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPSTREAM_STREAMS", 1)
    gate = asyncio.Event()

    async def script(asked: Asked) -> None:
        if asked.name == "slow.test.":
            await gate.wait()
        asked.send(asked.address())

    fake.script = script
    group = world.group(fake, force_tcp=True)
    slow = asyncio.ensure_future(group.ask(ask_for("slow.test.")))
    await until(lambda: fake.count("slow.test.") == 1)
    await ask_many(group, *(f"{n}.test." for n in range(20)))
    assert not slow.done()
    gate.set()
    assert addresses(await slow) == ["192.0.2.1"]
    assert fake.connections == 1


async def test_odd_messages_on_a_connection_are_ignored(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        for packet in odd_packets(asked.address("192.0.2.66")).values():
            asked.send(packet)
        asked.send(asked.address("192.0.2.7"))

    fake.script = script
    assert addresses(await world.group(fake, force_tcp=True).ask(ask_for())) == ["192.0.2.7"]
    assert fake.connections == 1


async def test_a_message_in_pieces_is_put_together(world: World) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        good = Asked(packet, ("", 0), "tcp", print).address()
        for octet in len(good).to_bytes(2, "big") + good:
            writer.write(bytes((octet,)))
            await writer.drain()
            await asyncio.sleep(0)
        await hang_up(writer)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        server = world.home.take(Settings("127.0.0.1", listener.sockets[0].getsockname()[1]))
        found = await server.exchange(name.from_text("x.test."), 1, proto="tcp")
        assert shown(found.answer) == ["x.test. 60 A 192.0.2.1"]
    finally:
        listener.close()


async def test_a_connection_closed_while_idle_costs_nothing(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake, force_tcp=True)
    assert addresses(await group.ask(ask_for("a.test."))) == ["192.0.2.1"]
    for _ in range(3):
        await fake.stop()
        await fake.start()
        # Some notice at once that they have been closed, some when they write.
        assert addresses(await group.ask(ask_for("b.test."))) == ["192.0.2.1"]


async def test_a_server_that_closes_after_each_answer_costs_nothing(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        asked.send(asked.address())
        await asyncio.sleep(0.001)
        asked.close()

    fake.script = script
    group = world.group(fake, force_tcp=True, max_attempts=1)
    for n in range(30):
        assert addresses(await group.ask(ask_for(f"{n}.test."))) == ["192.0.2.1"]


async def test_a_server_that_closes_in_the_middle_of_a_query_fails_it(world: World, fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        asked.close()

    fake.script = script
    group = world.group(fake, force_tcp=True)
    reply = await group.ask(ask_for())
    assert reply.rcode == SERVFAIL
    assert reply.error == "EOF" or "connection reset by peer" in reply.error
    assert fake.names["example.org."] == 2, "two attempts for one server"


async def test_a_connection_with_ourselves_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    # The fake holds its port for UDP only: somebody else may have it for TCP.
    for _ in range(10):
        async with FakeUpstream(tcp=False) as fake:
            here = ("127.0.0.1", fake.port)
            monkeypatch.setattr(
                loop,
                "create_connection",
                lambda make, *where, here=here, **how: connect(make, *where, **how | {"local_addr": here}),
            )
            reply = await world.group(fake, force_tcp=True, max_attempts=1).ask(ask_for())
        if "already in use" not in reply.error:
            break
    assert reply.error == f"dial tcp {fake.address}: connect: connection refused"


async def test_nobody_listens_on_tcp(world: World) -> None:
    async with FakeUpstream(tcp=False) as fake:
        reply = await world.group(fake, force_tcp=True).ask(ask_for())
    assert reply.error == f"dial tcp {fake.address}: connect: connection refused"
    assert reply.ede[0][0] == message.EDE_NETWORK_ERROR


async def test_a_connection_on_which_nothing_comes_is_given_up(world: World, fake: FakeUpstream) -> None:
    fake.script = silent
    group = world.group(fake, force_tcp=True, read_timeout=0.2, max_attempts=1)
    reply = await group.ask(ask_for())
    assert reply.error.startswith("read tcp 127.0.0.1:") and reply.error.endswith("i/o timeout")
    fake.script = answer_all
    assert addresses(await group.ask(ask_for("b.test."))) == ["192.0.2.1"]
    assert fake.connections >= 2


async def test_a_connection_that_does_not_open_is_given_up(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        # Whoever knocks now has to wait until somebody is let in.
        knocking = []
        for _ in range(4):
            knocking.append(socket.socket())
            knocking[-1].setblocking(False)
            knocking[-1].connect_ex(address)
        server = world.home.take(Settings(*address))
        with pytest.raises(UpstreamError, match=f"^dial tcp 127.0.0.1:{address[1]}: i/o timeout$"):
            await server.exchange(name.from_text("x.test."), 1, proto="tcp", wait=0.1)
        for sock in knocking:
            sock.close()


async def test_idle_connections_are_closed(world: World, fake: FakeUpstream) -> None:
    group = world.group(fake, force_tcp=True, settings={"expire": 0.01})
    await group.ask(ask_for())
    assert world.value("kdns_upstream_sockets", "tcp") == 1
    await until(lambda: world.value("kdns_upstream_sockets", "tcp") == 0 and not fake.open_connections)


async def test_connections_have_a_greatest_age_and_number(world: World, fake: FakeUpstream) -> None:
    fake.script = after(0.05)
    server = world.server(fake, max_idle=2, max_age=50.0)
    await asyncio.gather(*(server.exchange(name.from_text(f"{n}.test."), 1, proto="tcp") for n in range(8)))
    pool, now = server._streams, asyncio.get_running_loop().time()
    assert pool.open == 8
    pool.tick(now)
    assert pool.open == 2
    pool.tick(now + 51)
    assert pool.open == 0


async def test_tls(world: World, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "dns.example")
    trusted = Tls.read(authorities=str(certificate[0]))
    async with FakeUpstream(tls=server_context(certificate)) as fake:
        for server_name, error in (
            ("dns.example", ""),
            ("", ""),  # then the address must be in the certificate
            ("other.example", "tls: failed to verify certificate: Hostname mismatch"),
        ):
            tls = msgspec.structs.replace(trusted, server_name=server_name)
            group = world.group(fake, settings={"tls": tls}, policy="sequential")
            reply = await group.ask(ask_for("x.test."))
            if error:
                assert reply.rcode == SERVFAIL and error in reply.error
            else:
                assert addresses(reply) == ["192.0.2.1"]
        asked = [asked for asked in fake.asked if asked.name != "."]
        assert [asked.proto for asked in asked] == ["tcp"] * 2
        assert world.value("coredns_proxy_conn_cache_misses_total", "forward", fake.address, "tcp-tls") >= 2


async def test_tls_is_not_spoken_by_everybody(
    world: World, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPSTREAM_CONNECT", 0.2)
    group = world.group(fake, settings={"tls": Tls(), "max_fails": 0})
    reply = await group.ask(ask_for())
    assert reply.rcode == SERVFAIL and reply.error.startswith(f"dial tcp {fake.address}: ")


async def test_an_untrusted_certificate_is_refused(world: World, tmp_path: Path) -> None:
    async with FakeUpstream(tls=server_context(make_certificate(tmp_path))) as fake:
        group = world.group(fake, settings={"tls": Tls(), "max_fails": 0})
        reply = await group.ask(ask_for())
    assert "failed to verify certificate" in reply.error
    assert fake.count() == 0


async def test_a_client_certificate_is_shown(world: World, tmp_path: Path) -> None:
    certificate, client = make_certificate(tmp_path, "dns.example"), make_certificate(tmp_path, "client.example")
    context = server_context(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client[0])
    tls = Tls.read(str(client[0]), str(client[1]), str(certificate[0]))
    async with FakeUpstream(tls=context) as fake:
        assert addresses(await world.group(fake, settings={"tls": tls}).ask(ask_for())) == ["192.0.2.1"]


def test_tls_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Tls.read(authorities=str(tmp_path / "missing"))
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(ssl.SSLError):
        Tls.read(authorities=str(tmp_path / "junk"))
