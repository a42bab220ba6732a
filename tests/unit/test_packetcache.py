"""The packet cache: what it repeats, for how long, patched how, within which bounds."""

from __future__ import annotations

import random
import struct
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.denial import Denial, make_existing
from kdns.message import AA, AAAA, FOREVER, NXDOMAIN, A, Duty, Edns, Fact, Lease, Listener, Query, Reply
from kdns.metrics import Metrics
from kdns.name import from_text, spell
from kdns.packetcache import PacketCache, packet_cache
from kdns.questions import storage_key
from kdns.wire import pack_query, pack_reply, parse_query
from tests.plugintest import record
from tests.support import TWINS, captured_log, use_twin

UDP, TCP = b"u1", b"t1"
ALWAYS = Lease(until=FOREVER)


@pytest.fixture(params=TWINS, autouse=True)
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here is true of the Python packet cache and of the compiled one."""
    return use_twin(request.param, monkeypatch)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def cache(metrics: Metrics) -> PacketCache:
    return packet_cache(1000, 2**20, metrics)


def question(
    name: str = "web.default.svc.cluster.local.",
    rdtype: str = "A",
    *,
    id: int = 1,
    edns: int | None = None,
    options: tuple[dns.edns.Option, ...] = (),
    flags: int = dns.flags.RD,
) -> bytes:
    message = dns.message.make_query(
        name, rdtype, id=id, use_edns=False if edns is None else 0, payload=edns or 1232, options=list(options)
    )
    message.flags = dns.flags.Flag(flags)
    return message.to_wire()


def answer(packet: bytes, *records: str, tc: bool = False, authority: tuple[str, ...] = ()) -> bytes:
    query = dns.message.from_wire(packet)
    reply = dns.message.make_response(query, recursion_available=True)
    reply.answer = [dns.rrset.from_text(*line.split(" ", 4)) for line in records]
    reply.authority = [dns.rrset.from_text(*line.split(" ", 4)) for line in authority]
    if tc:
        reply.flags |= dns.flags.TC
    return reply.to_wire()


def web(*addresses: str, ttl: int = 30) -> tuple[str, ...]:
    return tuple(f"web.default.svc.cluster.local. {ttl} IN A {address}" for address in addresses)


def addresses(reply: bytes | None) -> list[str]:
    assert reply is not None
    return [
        item.to_text()
        for rrset in dns.message.from_wire(reply, one_rr_per_rrset=True).answer
        for item in rrset
        if rrset.rdtype in (1, 28)
    ]


def ttls(reply: bytes | None) -> list[int]:
    assert reply is not None
    message = dns.message.from_wire(reply, one_rr_per_rrset=True)
    return [rrset.ttl for section in (message.answer, message.authority, message.additional) for rrset in section]


def value(metrics: Metrics, name: str) -> float:
    metrics.settle()
    cells = [family for family in metrics._families.values() if family.name == f"kdns_packetcache_{name}"]
    return float(cells[0].cell().value)


def stored(cache: PacketCache, packet: bytes, lease: Lease = ALWAYS, now: float = 0.0) -> bytes:
    reply = answer(packet, *web("10.0.0.1"))
    for _ in range(2):  # when room is scarce the first time is only remembered
        cache.put(UDP, packet, reply, lease, now)
    return reply


def kept(packet: bytes) -> bool:
    """Whether some reply to this packet is stored."""
    cache = packet_cache(10, 10_000, Metrics())
    for _ in range(2):
        cache.put(UDP, packet, packet, ALWAYS, 0.0)
    return len(cache) > 0


# --- what is one question --------------------------------------------------------------------------------------------


def test_a_hit_carries_the_askers_id_and_spelling(cache: PacketCache) -> None:
    stored(cache, question(id=7))
    packet = question("WEB.Default.svc.clusteR.local.", id=0xBEEF)
    reply = cache.get(UDP, packet, 1.0)
    assert reply == answer(packet, *web("10.0.0.1"))
    assert b"WEB" in reply


@pytest.mark.parametrize(
    "other",
    [
        question("web2.default.svc.cluster.local."),
        question(rdtype="AAAA"),
        question(flags=0),
        question(flags=dns.flags.RD | dns.flags.CD),
        question(flags=dns.flags.RD | dns.flags.AD),
        question(edns=1232),
        question()[:-2] + b"\0\3",
        question()[:-1],
        question() + b"\0",
        question()[:20],
        b"",
        b"\0",
        b"\0" * 12,
    ],
)
def test_other_questions_miss(cache: PacketCache, other: bytes) -> None:
    stored(cache, question())
    assert cache.get(UDP, other, 1.0) is None


def test_the_scope_tells_listeners_and_transports_apart(cache: PacketCache) -> None:
    stored(cache, question())
    assert cache.get(TCP, question(), 1.0) is None


def test_edns_sizes_and_the_do_bit_are_kept_apart(cache: PacketCache) -> None:
    stored(cache, question(edns=1232))
    assert cache.get(UDP, question(edns=1232, id=9), 1.0)
    assert cache.get(UDP, question(edns=4096), 1.0) is None
    do = bytearray(question(edns=1232))
    do[-4] |= 0x80
    assert cache.get(UDP, bytes(do), 1.0) is None


def cookie(data: bytes) -> dns.edns.Option:
    return dns.edns.GenericOption(10, data)


def padding(octets: int) -> dns.edns.Option:
    return dns.edns.GenericOption(12, bytes(octets))


def test_cookies_and_padding_are_ignored_but_not_the_length(cache: PacketCache) -> None:
    packet = question(edns=1232, options=(cookie(b"12345678"),))
    stored(cache, packet)
    other = question("WEB.default.svc.cluster.local.", id=3, edns=1232, options=(cookie(b"abcdefgh"),))
    assert cache.get(UDP, other, 1.0) == answer(other, *web("10.0.0.1"))
    padded = question(edns=1232, options=(padding(8),))
    assert len(padded) == len(packet)
    assert cache.get(UDP, padded, 1.0)
    assert cache.get(UDP, question(edns=1232, options=(cookie(b"abcdefgh0123456"),)), 1.0) is None
    assert cache.get(UDP, question(edns=1232), 1.0) is None
    assert cache.get(UDP, question(edns=512, options=(cookie(b"abcdefgh"),)), 1.0) is None


@pytest.mark.parametrize(
    "options",
    [
        (dns.edns.GenericOption(3, b""),),
        (dns.edns.GenericOption(8, b"\0\1\x18\0\1\2\3"),),
        (cookie(b"12345678"), dns.edns.GenericOption(3, b"")),
        (padding(1), padding(1), padding(1)),
    ],
)
def test_other_options_are_never_stored(cache: PacketCache, options: tuple[dns.edns.Option, ...]) -> None:
    packet = question(edns=1232, options=options)
    stored(cache, packet)
    assert len(cache) == 0
    assert cache.get(UDP, packet, 1.0) is None


def test_lying_option_lengths_miss(cache: PacketCache) -> None:
    packet = question(edns=1232, options=(cookie(b"12345678"),))
    stored(cache, packet)
    at = len(packet) - 14
    assert packet[at : at + 2] == b"\0\x0c"
    for length, option_length in ((12, 9), (12, 7), (11, 8), (13, 8), (0, 8)):
        lying = packet[:at] + struct.pack(">HHH", length, 10, option_length) + packet[at + 6 :]
        assert cache.get(UDP, lying, 1.0) is None
        assert not kept(lying)


@pytest.mark.parametrize(
    "flags",
    [0x8100, 0x0500, 0x0300, 0x0180, 0x0140, 0x0101, 0x1100, 0x2800],
    ids="QR AA TC RA Z rcode opcode2 op5".split(),
)
def test_odd_flags_are_never_stored(flags: int) -> None:
    packet = question()
    assert not kept(packet[:2] + flags.to_bytes(2, "big") + packet[4:])


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 2), (1, 0, 0, 1)])
def test_odd_counts_are_never_stored(counts: tuple[int, ...]) -> None:
    packet = question()
    assert not kept(packet[:4] + struct.pack(">HHHH", *counts) + packet[12:])


@pytest.mark.parametrize("size", range(17))
def test_stumps_are_never_stored(size: int) -> None:
    assert not kept(question()[:size])


octets = st.binary(max_size=60)
plain = st.builds(
    lambda labels, type_, flags, id_: (
        struct.pack(">HHHHHH", id_, flags, 1, 0, 0, 0)
        + b"".join(bytes((len(label),)) + label for label in labels)
        + b"\0"
        + struct.pack(">HH", type_, 1)
    ),
    st.lists(st.text("abABx-", min_size=1, max_size=3).map(str.encode), max_size=3),
    st.sampled_from([1, 28, 0x41, 0x61]),
    st.sampled_from([0, 0x100, 0x110, 0x4100, 0x6100, 0x0141, 0x0161]),
    st.integers(0, 1),
)


def canonical(packet: bytes) -> bytes:
    return packet[2:12] + packet[12:-4].lower() + packet[-4:]


@given(plain, plain)
def test_keys_are_equal_exactly_for_the_same_question(one: bytes, two: bytes) -> None:
    cache = packet_cache(10, 10_000, Metrics())
    cache.put(UDP, one, one, ALWAYS, 0.0)
    if not len(cache):
        assert storage_key(UDP, one) is None
        assert int.from_bytes(one[2:4], "big") & ~0x0130
        return
    assert (cache.get(UDP, two, 0.0) is not None) == (canonical(one) == canonical(two))


@given(octets)
def test_no_octets_make_it_raise(packet: bytes) -> None:
    cache = packet_cache(10, 10_000, Metrics())
    stored(cache, question())
    assert cache.get(UDP, packet, 0.0) is None
    kept(packet)


# --- for how long ----------------------------------------------------------------------------------------------------


def test_until(cache: PacketCache) -> None:
    stored(cache, question(), Lease(until=10.0), now=5.0)
    assert cache.get(UDP, question(), 9.999)
    assert cache.get(UDP, question(), 10.0) is None
    assert len(cache) == 0


def test_no_lease_is_not_stored(cache: PacketCache) -> None:
    stored(cache, question(), Lease(), now=5.0)
    stored(cache, question(), Lease(until=5.0), now=5.0)
    assert len(cache) == 0


def test_a_reply_to_something_else_is_not_stored(cache: PacketCache) -> None:
    cache.put(UDP, question(), answer(question("other.")), ALWAYS, 0.0)
    assert len(cache) == 0


def test_ttls_stay_without_age(cache: PacketCache) -> None:
    stored(cache, question(), Lease(until=100.0))
    assert ttls(cache.get(UDP, question(), 99.0)) == [30]


def test_ttls_count_down_at_whole_seconds_before_until(cache: PacketCache) -> None:
    packet = question(edns=1232)
    soa = ("cluster.local. 30 IN SOA ns. host. 1 2 3 4 5",)
    cache.put(UDP, packet, answer(packet, *web("10.0.0.1"), authority=soa), Lease(until=30.25, age=True), 0.5)
    for now, left in ((0.5, 30), (1.24, 30), (1.25, 29), (1.3, 29), (2.25, 28), (20.0, 11), (29.25, 1), (30.2, 1)):
        reply = cache.get(UDP, packet, now)
        assert ttls(reply) == [left, left], now
        assert reply and dns.message.from_wire(reply).edns == 0
    assert cache.get(UDP, packet, 30.25) is None


def test_ttls_count_down_from_when_it_was_stored_when_there_is_no_end(cache: PacketCache) -> None:
    stored(cache, question(), Lease(until=FOREVER, age=True), now=5.5)
    assert [ttls(cache.get(UDP, question(), now))[0] for now in (5.6, 6.49, 6.5, 7.0, 34.5, 35.5, 99.0)] == [
        30, 30, 29, 29, 1, 0, 0,
    ]  # fmt: skip


def test_a_later_reply_replaces_an_earlier_one(cache: PacketCache) -> None:
    stored(cache, question())
    packet = question(id=5)
    cache.put(UDP, packet, answer(packet, *web("10.0.0.2")), ALWAYS, 1.0)
    assert len(cache) == 1
    assert addresses(cache.get(UDP, packet, 2.0)) == ["10.0.0.2"]


def test_clear(cache: PacketCache) -> None:
    stored(cache, question())
    cache.clear()
    assert len(cache) == 0
    assert cache.get(UDP, question(), 1.0) is None


# --- rotation --------------------------------------------------------------------------------------------------------

ROTATE = Lease(until=100.0, rotate=True)
FOUR = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")


def test_addresses_rotate(cache: PacketCache) -> None:
    cache.put(UDP, question(), answer(question(), *web(*FOUR)), ROTATE, 0.0)
    replies = [addresses(cache.get(UDP, question(), 1.0)) for _ in range(8)]
    assert sorted(reply[0] for reply in replies) == sorted(FOUR * 2)
    for reply in replies:
        at = FOUR.index(reply[0])
        assert tuple(reply) == FOUR[at:] + FOUR[:at]


def test_order_stays_without_rotate(cache: PacketCache) -> None:
    cache.put(UDP, question(), answer(question(), *web(*FOUR)), ALWAYS, 0.0)
    assert {tuple(addresses(cache.get(UDP, question(), 1.0))) for _ in range(8)} == {FOUR}


def test_rotated_addresses_age_and_everything_else_keeps_its_place(cache: PacketCache) -> None:
    packet = question("alias.example.", edns=1232)
    reply = answer(
        packet,
        "alias.example. 30 IN CNAME web.example.",
        "web.example. 30 IN A 10.0.0.1",
        "web.example. 30 IN A 10.0.0.2",
        "web.example. 30 IN AAAA fd00::1",
        authority=("example. 30 IN NS ns.example.",),
    )
    cache.put(UDP, packet, reply, Lease(until=30.0, rotate=True, age=True), 0.0)
    firsts = set()
    for _ in range(3):
        message = dns.message.from_wire(cache.get(UDP, packet, 2.5) or b"", one_rr_per_rrset=True)
        assert message.answer[0].to_text() == "alias.example. 28 IN CNAME web.example."
        assert {(r.name.to_text(), r.ttl) for r in message.answer[1:]} == {("web.example.", 28)}
        assert sorted(r[0].to_text() for r in message.answer[1:]) == ["10.0.0.1", "10.0.0.2", "fd00::1"]
        assert message.authority[0].to_text() == "example. 28 IN NS ns.example."
        assert message.edns == 0
        firsts.add(message.answer[1][0].to_text())
    assert len(firsts) == 3
    assert ttls(cache.get(UDP, packet, 3.0)) == [27] * 5


def test_one_address_behind_an_alias_has_nothing_to_rotate(cache: PacketCache) -> None:
    packet = question("alias.example.")
    reply = answer(packet, "alias.example. 30 IN CNAME web.example.", "web.example. 30 IN A 10.0.0.1")
    cache.put(UDP, packet, reply, ROTATE, 0.0)
    assert [cache.get(UDP, packet, 1.0) for _ in range(3)] == [reply] * 3


@pytest.mark.parametrize(
    "records",
    [
        # The name of the first address is written out, the second points to it.
        ("other.name. 30 IN A 10.0.0.1", "other.name. 30 IN A 10.0.0.2"),
        # Two names.
        ("web.example. 30 IN A 10.0.0.1", "a.web.example. 30 IN A 10.0.0.2"),
        # Something between.
        ("web.example. 30 IN A 10.0.0.1", "web.example. 30 IN TXT x", "web.example. 30 IN A 10.0.0.2"),
    ],
)
def test_addresses_that_cannot_rotate_are_left_to_the_chain(cache: PacketCache, records: tuple[str, ...]) -> None:
    packet = question("web.example.")
    cache.put(UDP, packet, answer(packet, *records), ROTATE, 0.0)
    assert cache.get(UDP, packet, 1.0) is None
    assert len(cache) == 0


def test_a_truncated_choice_is_left_to_the_chain(cache: PacketCache) -> None:
    cache.put(UDP, question(), answer(question(), *web(*FOUR), tc=True), ROTATE, 0.0)
    assert len(cache) == 0
    cache.put(UDP, question(), answer(question(), *web(*FOUR), tc=True), ALWAYS, 0.0)
    assert len(cache) == 1


# --- facts -----------------------------------------------------------------------------------------------------------


def test_forget_drops_exactly_what_stands_on_a_fact(cache: PacketCache, metrics: Metrics) -> None:
    names = [f"n{number}.example." for number in range(60)]
    stands_on: dict[str, tuple[Fact, ...]] = {
        name: tuple({b"svc/%d" % (number % 7), b"ns/%d" % (number % 3)}) for number, name in enumerate(names)
    }
    for name, facts in stands_on.items():
        stored(cache, question(name), Lease(until=FOREVER, facts=facts))
    dropped = [b"svc/3", b"ns/1", b"svc/nobody"]
    cache.forget(dropped)
    left = {name for name in names if cache.get(UDP, question(name), 1.0)}
    assert left == {name for name, facts in stands_on.items() if not set(facts) & set(dropped)}
    assert value(metrics, "dropped_total") == len(names) - len(left) > 0
    cache.forget(b"ns/%d" % number for number in range(3))
    assert len(cache) == 0
    assert cache.facts == 0


def test_facts_are_forgotten_with_their_entries() -> None:
    cache = packet_cache(10, 2**20, Metrics())
    for number in range(50):
        stored(cache, question(f"n{number}."), Lease(until=10.0, facts=(b"f%d" % number, b"all")))
    assert len(cache) == 10
    assert cache.facts == 11
    cache.get(UDP, question("n49."), 11.0)
    assert cache.facts == 10
    stored(cache, question("n48."), Lease(until=10.0))
    assert cache.facts == 9
    cache.forget([b"f49", b"f48"])
    assert len(cache) == 9
    cache.forget([b"all"])
    assert len(cache) == 1
    assert cache.facts == 0


# --- what is owed ----------------------------------------------------------------------------------------------------


def test_duties_are_settled_once_for_each_replay(cache: PacketCache, metrics: Metrics) -> None:
    owed: list[tuple[int, int, int]] = []
    other: list[int] = []
    duties: tuple[Duty, ...] = (lambda *octets: owed.append(octets), lambda n, q, r: other.append(n))
    lease = Lease(until=10.0, facts=(b"f",), duties=duties)
    packet = question()

    def hits(count: int) -> None:
        for _ in range(count):
            assert cache.get(UDP, packet, 1.0)

    reply = stored(cache, packet, lease)
    octets = (len(packet), len(reply))
    hits(3)
    assert owed == []
    cache.settle()
    cache.settle()
    assert owed.pop() == (3, *octets) and not owed
    hits(2)
    metrics.settle()
    assert owed.pop() == (2, *octets)
    hits(1)
    stored(cache, packet, lease)  # replaced
    assert owed.pop() == (1, *octets)
    hits(4)
    cache.forget([b"f"])
    assert owed.pop() == (4, *octets)
    stored(cache, packet, lease)
    hits(5)
    cache.get(UDP, packet, 10.0)  # expired
    assert owed.pop() == (5, *octets)
    stored(cache, packet, lease)
    hits(6)
    cache.clear()
    assert owed.pop() == (6, *octets)
    assert not owed
    assert sum(other) == 21
    assert value(metrics, "hits_total") == 21
    assert value(metrics, "misses_total") == 1


@pytest.mark.parametrize("how", ["settle", "forget", "clear"])
def test_a_duty_may_drop_facts(how: str, cache: PacketCache, metrics: Metrics) -> None:
    paid: list[int] = []

    def duty(times: int, query: int, reply: int) -> None:
        paid.append(times)
        cache.forget([b"f"])
        metrics.settle()
        stored(cache, question("other."), Lease(FOREVER))
        cache.get(UDP, question("other."), 0.0)

    for number in range(30):
        packet = question(f"n{number}.")
        cache.put(UDP, packet, answer(packet), Lease(FOREVER, (b"f",), duties=(duty,)), 0.0)
        assert cache.get(UDP, packet, 0.0)
    {"settle": metrics.settle, "forget": lambda: cache.forget([b"f"]), "clear": cache.clear}[how]()
    assert paid == [1] * 30
    assert cache.facts == 0
    cache.clear()
    assert len(cache) == 0 and value(metrics, "bytes") == 0


def test_a_duty_that_raises_keeps_no_reply(cache: PacketCache, metrics: Metrics) -> None:
    def duty(times: int, query: int, reply: int) -> None:
        raise RuntimeError("a bug")

    for number in range(4):
        packet = question(f"n{number}.")
        cache.put(UDP, packet, answer(packet), Lease(FOREVER, (b"f%d" % (number // 2),), duties=(duty,)), 0.0)
        assert cache.get(UDP, packet, 0.0)
    with captured_log() as log:
        cache.forget([b"f0", b"f1"])
    assert len(cache) == cache.facts == 0
    assert len(log.matching("could not be paid: RuntimeError('a bug')")) == 4
    assert value(metrics, "hits_total") == 4


def test_duties_are_settled_on_eviction() -> None:
    owed: list[int] = []
    cache = packet_cache(1, 2**20, Metrics())
    lease = Lease(until=10.0, duties=(lambda n, q, r: owed.append(n),))
    stored(cache, question("a."), lease)
    assert cache.get(UDP, question("a."), 1.0)
    stored(cache, question("b."), lease)
    stored(cache, question("c."), lease)
    cache.settle()
    assert owed == [1]


# --- room ------------------------------------------------------------------------------------------------------------


def test_bounded_by_entries() -> None:
    metrics = Metrics()
    cache = packet_cache(100, 2**20, metrics)
    for number in range(1000):
        stored(cache, question(f"n{number}."))
        assert len(cache) <= 100
    assert value(metrics, "entries") == 100
    assert value(metrics, "evictions_total") == 900


def test_bounded_by_octets() -> None:
    metrics = Metrics()
    cache = packet_cache(10**6, 100_000, metrics)
    for number in range(1000):
        stored(cache, question(f"n{number}."))
    assert 50 < len(cache) < 400
    assert 90_000 < value(metrics, "bytes") <= 100_000
    cache.clear()
    assert value(metrics, "bytes") == 0
    big = packet_cache(10, 1000, metrics)
    stored(big, question())
    for _ in range(2):
        big.put(UDP, question("big."), answer(question("big."), *["big. 30 IN TXT " + "x" * 250] * 9), ALWAYS, 0.0)
    assert len(big) == 0


def test_a_million_names_stay_within_the_bounds(twin: str) -> None:
    metrics = Metrics()
    cache = packet_cache(2000, 2**20, metrics)
    hot = [question(f"hot{number}.") for number in range(100)]
    for packet in hot:
        stored(cache, packet)
    packet = question("xxxxxxxx.example.")
    before, after = packet.split(b"xxxxxxxx")
    head, tail = answer(packet, "xxxxxxxx.example. 30 IN A 10.0.0.1").split(b"xxxxxxxx")
    lease = Lease(FOREVER, (b"f",))
    for number in range(1_000_000 if twin == "compiled" else 100_000):
        name = b"%08x" % number
        for _ in range(2):
            cache.put(UDP, before + name + after, head + name + tail, lease, 1.0)
        if number % 1000 == 0:
            assert len(cache) <= 2000
            assert all(cache.get(UDP, packet, 1.0) for packet in hot)
    assert value(metrics, "bytes") <= 2**20
    assert value(metrics, "evictions_total") > 90_000
    cache.forget([b"f"])
    assert len(cache) == 100


def test_what_comes_once_is_taken_in_only_while_there_is_plenty_of_room() -> None:
    metrics = Metrics()
    cache = packet_cache(800, 2**20, metrics)
    packets = [question(f"n{number}.") for number in range(500)]
    for packet in packets:
        cache.put(UDP, packet, answer(packet), ALWAYS, 0.0)
    # A few look as if they had come before.
    assert 100 <= len(cache) < 110
    spelled_otherwise = [packet[:12] + packet[12:].upper() for packet in packets]
    for packet in spelled_otherwise:
        cache.put(UDP, packet, answer(packet), ALWAYS, 0.0)
    assert len(cache) > 490
    assert value(metrics, "evictions_total") == 0
    big = packet_cache(800, 80_000, Metrics())
    taken: list[int] = []
    for packet in packets:
        big.put(UDP, packet, answer(packet), ALWAYS, 0.0)
        taken.append(len(big))
    # One of 256 looks so.  Without a look whether they come again there would be seven times as many.
    plenty = next(count for count, packet in enumerate(packets) if taken[count] == count)
    assert 10 < plenty <= len(big) < plenty + 15


def test_a_flood_of_names_asked_twice_does_not_push_out_those_in_use() -> None:
    cache = packet_cache(200, 2**20, Metrics())
    hot = [question(f"hot{number}.") for number in range(100)]
    for packet in hot:
        stored(cache, packet)
        assert cache.get(UDP, packet, 1.0)
    for number in range(5000):
        stored(cache, question(f"n{number}."))
        if number % 1000 == 999:
            assert all(cache.get(UDP, packet, 1.0) for packet in hot)


def test_names_that_are_asked_no_more_make_room() -> None:
    cache = packet_cache(100, 2**20, Metrics())

    def use(prefix: str) -> list[bytes]:
        packets = [question(f"{prefix}{number}.") for number in range(100)]
        for _ in range(6):
            for packet in packets:
                if cache.get(UDP, packet, 1.0) is None:
                    stored(cache, packet)
                    cache.get(UDP, packet, 1.0)
        return packets

    use("early")
    late = use("late")
    assert sum(cache.get(UDP, packet, 1.0) is not None for packet in late) >= 90


def test_when_all_are_in_use_one_goes_nevertheless() -> None:
    cache = packet_cache(100, 2**20, Metrics())
    packets = [question(f"n{number}.") for number in range(300)]
    for packet in packets:
        stored(cache, packet)
        for other in packets:
            cache.get(UDP, other, 1.0)
    assert len(cache) == 100


def test_random_use_agrees_with_a_model() -> None:
    random_ = random.Random(4)
    metrics = Metrics()
    cache = packet_cache(40, 2**20, metrics)
    names = [f"n{number}." for number in range(60)]
    model: dict[str, tuple[bytes, float, bytes]] = {}
    owed: dict[str, int] = dict.fromkeys(names, 0)
    hits = 0
    now = 0.0
    for step in range(6000):
        now += random_.random() / 50
        name = random_.choice(names)
        packet = question(name, id=step)
        reply = cache.get(UDP, packet, now)
        if reply is not None:
            hits += 1
            owed[name] -= 1
            expected, until, _ = model[name]
            assert reply == packet[:2] + expected[2:] and now < until
        elif random_.random() < 0.7:
            expected = answer(packet, f"{name} 30 IN A 10.0.0.{step % 250}")
            fact = b"f%d" % random_.randrange(20)

            def duty(replays: int, query: int, answered: int, name: str = name) -> None:
                owed[name] += replays

            model[name] = (expected, now + 5, fact)
            cache.put(UDP, packet, expected, Lease(until=now + 5, facts=(fact,), duties=(duty,)), now)
        if random_.random() < 0.05:
            fact = b"f%d" % random_.randrange(20)
            cache.forget([fact])
            for name in [name for name in model if model[name][2] == fact]:
                del model[name]
    cache.settle()
    assert set(owed.values()) == {0}
    assert value(metrics, "hits_total") == hits > 1000
    assert sum(cache.lines) == len(cache) <= 40


@pytest.mark.parametrize("fact", ["text", None, 5])
def test_the_compiled_twin_refuses_facts_that_are_no_octets(fact: Any, cache: PacketCache, twin: str) -> None:
    """So that a plugin that gives such facts reads no memory that is not its own."""
    if twin == "python":
        pytest.skip("takes anything that can be hashed")
    packet = question()
    with pytest.raises(TypeError):
        cache.put(UDP, packet, answer(packet), Lease(FOREVER, (fact,)), 0.0)
    with pytest.raises(TypeError):
        cache.forget([fact])
    assert len(cache) == 0 and cache.facts == 0


# --- names that nobody has -------------------------------------------------------------------------------------------

NOBODY = Reply(
    NXDOMAIN,
    authority=(record("cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30"),),
    flags=AA,
)
SVC = from_text("svc.cluster.local.")


class Leftovers:
    """A packet cache, and what a chain would say of names below ``svc.cluster.local.`` that nobody has."""

    def __init__(self, cache: PacketCache, *names: str, **lease: object) -> None:
        self.cache = cache
        self.existing = make_existing(2)
        for name in names:
            self.existing.add(from_text(name, b""))
        self.lease = Lease(**{"until": FOREVER, "facts": (b"f",), "denial": Denial(SVC, self.existing), **lease})  # type: ignore[arg-type]

    def chain(self, packet: bytes) -> bytes:
        query = parse_query(packet, ("192.0.2.1", 5), Listener())
        assert isinstance(query, Query)
        return pack_reply(query, NOBODY, 512)

    def put(self, packet: bytes, now: float = 0.0) -> None:
        for _ in range(2):
            self.cache.put(UDP, packet, self.chain(packet), self.lease, now)


def ask(name: str, type: int = A, edns: Edns | None = None, id: int = 9, flags: int = 0x0100) -> bytes:
    return pack_query(id, flags, spell(name), type, 1, edns)


COOKIE = Edns(1232, True, ((10, b"12345678"),))


@pytest.mark.parametrize("edns", [None, Edns(1232, False), COOKIE])
def test_one_reply_denies_all_names_that_nobody_has(cache: PacketCache, metrics: Metrics, edns: Edns | None) -> None:
    nobody = Leftovers(cache, "dev", "web.dev")
    nobody.put(ask("www.example.com.dev.svc.cluster.local.", edns=edns))
    assert len(cache) == 1
    names = ["a", "A.b.DEV", "no.such", "x" * 63 + ".dev", ".".join(["y" * 50] * 4), "a.b.c.d.e.f.g.h", "a\\003svc"]
    for number, name in enumerate(names):
        packet = ask(name + ".Svc.cluster.LOCAL.", edns=edns, id=number)
        assert cache.get(UDP, packet, 1.0) == nobody.chain(packet)
    for name in ("dev.", "web.dev.", "a.b.web.dev.", ""):
        assert cache.get(UDP, ask(name + "svc.cluster.local.", edns=edns), 1.0) is None
    for name in ("a.cluster.local.", "a.pod.cluster.local.", "asvc.cluster.local.", "svc.cluster.local.example.", "."):
        assert cache.get(UDP, ask(name, edns=edns), 1.0) is None
    assert value(metrics, "hits_total") == len(names)
    assert value(metrics, "misses_total") == 9


def test_other_forms_of_questions_are_others(cache: PacketCache) -> None:
    nobody = Leftovers(cache)
    name = "a.svc.cluster.local."
    nobody.put(ask(name, edns=COOKIE))
    assert cache.get(UDP, ask("bb.svc.cluster.local.", edns=Edns(1232, True, ((10, b"abcdefgh"),))), 0.0)
    for packet in (
        ask(name), ask(name, AAAA, COOKIE), ask(name, edns=COOKIE, flags=0), ask(name, edns=COOKIE)[:-1],
        ask(name, edns=Edns(1232, False, COOKIE.options)), ask(name, edns=Edns(1400, True, COOKIE.options)),
        ask(name, edns=Edns(1232, True, ((10, b"1234567890123456"),))), ask(name, edns=Edns(1232, True)),
        ask(name, edns=Edns(1232, True, ((3, b"12345678"),))),
    ):  # fmt: skip
        assert cache.get(UDP, packet, 0.0) is None
    assert cache.get(TCP, ask(name, edns=COOKIE), 0.0) is None


def test_what_is_no_name_is_not_denied(cache: PacketCache) -> None:
    nobody = Leftovers(cache)
    nobody.put(ask("a.svc.cluster.local."))
    good = ask("abcdef.svc.cluster.local.")
    assert cache.get(UDP, good, 0.0)
    head, rest = good[:12], good[19:]
    zero = head + b"\x06abc\0ef" + rest
    assert cache.get(UDP, zero, 0.0) in (None, nobody.chain(zero)), "which is a name that the Python twin leaves alone"
    labels = b"\x3f" + b"a" * 63
    for name in (
        b"\x06abcdef\0", b"\x46" + b"a" * 70, b"\xc0" + b"a" * 192, b"\x09abcdef", labels * 4, b"\x01",
    ):  # fmt: skip
        assert cache.get(UDP, head + name + rest, 0.0) is None
    assert cache.get(UDP, head + labels * 3 + b"\x2b" + b"a" * 43 + rest, 0.0)
    assert cache.get(UDP, head + labels * 3 + b"\x2c" + b"a" * 44 + rest, 0.0) is None


@given(octets)
def test_no_octets_make_a_denial_raise(packet: bytes) -> None:
    cache = packet_cache(10, 10_000, Metrics())
    Leftovers(cache).put(ask("a.svc.cluster.local."))
    name = b"\1a" + SVC
    for asked in (packet, packet[:12].ljust(12, b"\0") + name + packet[12:], packet[:12] + packet[12:] + SVC):
        cache.get(UDP, asked, 0.0)


def test_names_come_and_go(cache: PacketCache) -> None:
    nobody = Leftovers(cache, "dev")
    nobody.put(ask("x.dev.svc.cluster.local."))
    packet = ask("a.web.dev.svc.cluster.local.")
    assert cache.get(UDP, packet, 0.0)
    nobody.existing.add(from_text("web.dev", b""))
    assert cache.get(UDP, packet, 0.0) is None
    # What is not denied is an entry of its own, with its facts.
    nobody.put(packet)
    assert len(cache) == 2 and cache.get(UDP, packet, 0.0)
    nobody.existing.discard(from_text("web.dev", b""))
    cache.forget([b"f"])
    assert len(cache) == 1 and cache.get(UDP, packet, 0.0)


def test_an_entry_for_the_very_question_comes_first(cache: PacketCache) -> None:
    nobody = Leftovers(cache)
    packet = ask("web.default.svc.cluster.local.")
    exact = stored(cache, packet, Lease(FOREVER, (b"svc",)))
    nobody.put(ask("x.svc.cluster.local."))
    assert cache.get(UDP, packet, 0.0) == exact
    cache.forget([b"svc"])
    assert cache.get(UDP, packet, 0.0) == nobody.chain(packet)


def test_the_nearest_apex_is_asked_first(cache: PacketCache) -> None:
    nobody, outer = Leftovers(cache, "dev"), make_existing(1)
    outer.add(b"\3svc")
    lease = Lease(FOREVER, denial=Denial(from_text("cluster.local."), outer))
    other = ask("x.other.cluster.local.")
    for _ in range(2):
        cache.put(UDP, other, nobody.chain(other), lease, 0.0)
    nobody.put(ask("x.svc.cluster.local."))
    assert len(cache) == 2
    for name, denied in (("y.svc", True), ("dev.svc", False), ("y.pod", True), ("svc", False)):
        assert (cache.get(UDP, ask(name + ".cluster.local."), 0.0) is not None) == denied


def test_a_denial_below_the_root(cache: PacketCache) -> None:
    existing = make_existing(1)
    existing.add(b"\5there")
    packet = ask("a.b.")
    reply = Reply(NXDOMAIN, authority=(record(". 30 SOA . . 1 2 3 4 5"),))
    query = parse_query(packet, ("192.0.2.1", 5), Listener())
    assert isinstance(query, Query)
    for _ in range(2):
        cache.put(UDP, packet, pack_reply(query, reply, 512), Lease(FOREVER, denial=Denial(b"\0", existing)), 0.0)
    other = ask("longer.name.")
    query = parse_query(other, ("192.0.2.1", 5), Listener())
    assert isinstance(query, Query)
    assert cache.get(UDP, other, 0.0) == pack_reply(query, reply, 512)
    assert cache.get(UDP, ask("a.there."), 0.0) is None
    assert cache.get(UDP, ask("."), 0.0) is None


def test_denials_end_and_age(cache: PacketCache) -> None:
    nobody = Leftovers(cache, until=10.5, age=True)
    nobody.put(ask("x.svc.cluster.local."))
    other = ask("other.name.svc.cluster.local.", edns=None)
    assert cache.get(UDP, other, 0.4) == nobody.chain(other)
    for now, left in ((0.5, 29), (1.5, 28), (2.0, 28), (10.4, 20)):
        assert ttls(cache.get(UDP, other, now)) == [left]
    assert cache.get(UDP, other, 10.5) is None
    assert len(cache) == 0


def test_denials_are_paid_by_their_sizes() -> None:
    random_ = random.Random(5)
    metrics = Metrics()
    cache = packet_cache(1000, 2**20, metrics)
    owed: dict[tuple[int, int], int] = {}
    model: dict[tuple[int, int], int] = {}
    hits = 0

    def duty(times: int, query: int, reply: int) -> None:
        owed[query, reply] = owed.get((query, reply), 0) + times

    nobody = Leftovers(cache, duties=(duty,))
    reported: list[tuple[int, int, int, float]] = []
    for step in range(3000):
        name = ".".join("x" * random_.randrange(1, 20) for _ in range(random_.randrange(1, 4)))
        edns = random_.choice([None, COOKIE])
        packet = ask(name + ".svc.cluster.local.", edns=edns)
        reply = cache.get(UDP, packet, 0.0)
        if reply is None:
            report = lambda *sent: reported.append(sent)  # noqa: E731
            cache.put(UDP, packet, nobody.chain(packet), nobody.lease, 0.0, report)
        else:
            hits += 1
            assert reply == nobody.chain(packet)
            sizes = len(packet), len(reply)
            model[sizes] = model.get(sizes, 0) + 1
        if step % 1000 == 500:
            metrics.settle()
        if step % 1000 == 999:
            cache.clear()
    cache.settle()
    assert owed == model and len(model) > 50
    assert sum(times for times, *_ in reported) == hits == value(metrics, "hits_total") > 2900
    assert {sizes[1:3] for sizes in reported} == set(model) and all(seconds == 0 for *_, seconds in reported)


def test_denials_take_their_place_in_the_table(metrics: Metrics) -> None:
    cache = packet_cache(20, 2**20, metrics)
    nobody = Leftovers(cache)
    for type in range(100, 150):
        nobody.put(ask("x.svc.cluster.local.", type))
    assert len(cache) == 20
    assert value(metrics, "evictions_total") == 30
    assert value(metrics, "bytes") > 20 * 2000
    assert cache.get(UDP, ask("y.svc.cluster.local.", 149), 0.0)
    assert cache.get(UDP, ask("y.svc.cluster.local.", 100), 0.0) is None
    cache.clear()
    assert value(metrics, "bytes") == 0


@pytest.mark.parametrize("edns", [None, Edns(1232, False)])
def test_with_little_room_a_denial_is_kept_the_second_time(edns: Edns | None) -> None:
    """Whatever form the questions have."""
    cache = packet_cache(8, 2**20, Metrics())
    stored(cache, question())
    nobody = Leftovers(cache)
    for packet in (ask("a.svc.cluster.local."), ask("bb.svc.cluster.local.", edns=edns)):
        assert cache.get(UDP, packet, 0.0) is None
        cache.put(UDP, packet, nobody.chain(packet), nobody.lease, 0.0)
    assert cache.get(UDP, ask("ccc.svc.cluster.local.", edns=edns), 0.0)


def test_no_question_seems_to_have_come_before() -> None:
    cache = packet_cache(8, 2**20, Metrics())
    stored(cache, question())
    for number in range(2000):
        packet = question(f"n{number}.example.")
        cache.put(UDP, packet, answer(packet), ALWAYS, 0.0)
    # Two that share place and sign would be a rare chance.
    assert len(cache) <= 3


def test_a_flood_of_names_that_nobody_has_leaves_the_table_as_it_is() -> None:
    metrics = Metrics()
    cache = packet_cache(1000, 2**20, metrics)
    nobody = Leftovers(cache, "default", *(f"web{number}.default" for number in range(500)))
    good = [question(f"web{number}.default.svc.cluster.local.") for number in range(500)]
    for packet in good:
        stored(cache, packet)
    size, misses = len(cache), 0
    for number in range(100_000):
        packet = ask(f"no-{number * 7919:x}.default.svc.cluster.local.")
        if cache.get(UDP, packet, 0.0) is None:
            misses += 1
            cache.put(UDP, packet, nobody.chain(packet), nobody.lease, 0.0)
    assert misses <= 2
    assert len(cache) == size + 1
    assert all(cache.get(UDP, packet, 0.0) for packet in good)
    assert value(metrics, "evictions_total") == 0
