"""The compiled twin of the wire format's road against the readable one: the same for every packet and every reply.

``KDNS_FUZZ_PACKETS`` says how many of each (default: some seconds' worth), ``KDNS_FUZZ_SEED`` where the dice begin.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from kdns import name, rdata, wire
from kdns.message import AA, AD, CD, IN, QR, RA, RD, RRSIG, SOA, SRV, TC, A, Edns, Listener, Query, Record, Reply
from kdns.wire import road
from tests.fuzz.test_wire_fuzz import LISTENERS, PACKETS, PEER, SEED, mutate, packets
from tests.wiretwins import compiled


@pytest.fixture(scope="module")
def twin() -> ModuleType:
    return compiled()


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, or the kind of error that it raises."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the twins have to agree
        return type(error)


# --- queries in ------------------------------------------------------------------------------------------------------


def test_parse_query(twin: ModuleType) -> None:
    for packet, listener in zip(packets(PACKETS), itertools.cycle(LISTENERS), strict=False):
        mine, other = twin.parse_query(packet, PEER, listener), road.parse_query(packet, PEER, listener)
        assert mine == other, packet
        assert type(mine) is type(other)
        if isinstance(mine, Query):
            assert mine.do is other.do
            assert mine.listener is listener
            assert mine.peer is PEER


@pytest.mark.parametrize("length", [*range(10), 254, 255, 256, 257])
def test_every_end(twin: ModuleType, length: int) -> None:
    """Every packet that is the beginning of a whole one, with names around all bounds."""
    labels = [b"a" * 63] * (length // 64) + [b"b" * (length % 64 - 1)] * (length % 64 > 1)
    spelling = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    edns = Edns(1232, True, tuple((code, b"x" * code) for code in range(5)))
    whole = wire.pack_query(7, RD, spelling, A, IN, edns)
    for end in range(len(whole) + 1):
        assert twin.parse_query(whole[:end], PEER, LISTENERS[0]) == road.parse_query(whole[:end], PEER, LISTENERS[0])


@pytest.mark.parametrize("counts", [*itertools.product((0, 1, 2), (0, 1), (0, 1, 2), (0, 1, 2, 3))])
def test_all_counts(twin: ModuleType, counts: tuple[int, ...]) -> None:
    for type in (A, 251):
        question = b"\3wWw\0" + type.to_bytes(2, "big") + b"\0\1"
        for rest in (
            b"",
            b"\0\0\x29\4\xd0" + bytes(6),
            b"\xc0\x0c\0\6\0\1" + bytes(6),
            b"\0\0\x29\4\xd0\0\1" + bytes(4),
        ):
            for flags in (RD, CD, 0x2800, QR):
                head = b"\1\2" + b"".join(number.to_bytes(2, "big") for number in (flags, *counts))
                for packet in (head + question + rest * sum(counts[1:]), head + question + rest):
                    arguments = packet, PEER, LISTENERS[0]
                    assert twin.parse_query(*arguments) == road.parse_query(*arguments)


def test_silence_for_port_0(twin: ModuleType) -> None:
    packet = wire.pack_query(7, RD, b"\0", A, IN, None)
    assert twin.parse_query(packet, ("192.0.2.1", 0), LISTENERS[0]) is None


# --- replies out -----------------------------------------------------------------------------------------------------

NAMES = [
    name.spell(text)
    for text in (
        "www.example.org.",
        "wWw.eXample.ORG.",
        "example.org.",
        "org.",
        ".",
        "a.b.c.d.e.example.org.",
        "ns.dns.example.org.",
        "hostmaster.EXAMPLE.org.",
        "www.example.com.",
        "xwww.example.org.",
        "x" * 63 + ".example.org.",
    )
]
LONGEST = b"\x3f" + b"a" * 63 + b"\x3f" + b"b" * 63 + b"\x3f" + b"c" * 63 + b"\x3d" + b"d" * 61 + b"\0"
ODD_NAMES = [
    b"",
    b"\1",
    b"\3ww",
    b"\0\0",
    b"\3www\0rest",
    b"\xc0\x0c",
    b"\x40" + b"a" * 64 + b"\0",
    LONGEST,
    b"\2x" + LONGEST,
]
TYPES = [A, A, A, 28, 28, SRV, SRV, SOA, SOA, 2, 5, 12, 14, 15, 16, 17, 35, 39, RRSIG, 47, 24, 257, 65400]
FLAGS = (0, AA, TC, RA, AD, AA | RA, 0xFFFF)


class Dice(random.Random):
    """Makes up replies; now and then something in them is odd."""

    def name(self) -> bytes:
        if self.random() < 0.01:
            return self.choice(ODD_NAMES)
        if self.random() < 0.1:
            return b"%c%b" % (4, b"h%03d" % self.randrange(1000)) + self.choice(NAMES)
        return self.choice(NAMES)

    def data(self, type: int) -> bytes:
        if self.random() < 0.02:
            return self.randbytes(self.randrange(30))
        if type == SOA:
            return rdata.soa(self.name(), self.name(), *(self.getrandbits(32) for _ in range(5)))
        skip, count = rdata.NAMES.get(type, (self.randrange(20), 0))
        return bytes(skip) + b"".join([self.name() for _ in range(count)]) + bytes(self.choice((0, 0, 0, 3)))

    def record(self) -> Record:
        type = self.choice(TYPES)
        ttl = self.choice((0, 5, 30, 2**31 - 1, 2**32 - 1))
        record = Record(self.name(), type, ttl, self.data(type), self.choice((1, 1, 1, 3, 65535)))
        return self.odd_record(record) if self.random() < 0.005 else record

    def odd_record(self, record: Record) -> Any:
        return self.choice(
            (
                Record(record.owner, -1, 0, b""),
                Record(record.owner, 65536, 0, b""),
                Record(record.owner, A, -1, b""),
                Record(record.owner, A, 2**32, b""),
                Record(record.owner, A, 2**70, b""),
                Record(record.owner, A, 0, b"", 65536),
                Record(record.owner, 16, 0, bytes(65536)),
                Record(record.owner, 16, 0, bytes(65535)),
                Record(record.owner, A, True, b"abcd"),
                Record(record.owner, A, 1.0, b"abcd"),  # type: ignore[arg-type]
                Record(record.owner, A, 1, bytearray(b"abcd")),  # type: ignore[arg-type]
                Record(record.owner, A, 1, "abcd"),  # type: ignore[arg-type]
                Record("name", A, 1, b"abcd"),  # type: ignore[arg-type]
                Record(record.owner, None, 1, b"abcd"),  # type: ignore[arg-type]
                None,
            )
        )

    def section(self) -> Any:
        records = [self.record() for _ in range(self.choice((0, 0, 1, 1, 1, 2, 3, 8, 40)))]
        return records if self.random() < 0.01 else tuple(records)

    def reply(self) -> Reply:
        reply = Reply(self.choice((0, 0, 3, 2, 5)), self.section(), self.section(), self.section(), self.choice(FLAGS))
        match self.randrange(12):
            case 0:
                options = tuple((self.choice((3, 10, 65535)), self.randbytes(self.randrange(20))) for _ in range(3))
                return reply.replace(options=options, ede=((14, "not ready €"),))
            case 1:
                return reply.replace(ede=((self.randrange(30), "x" * self.randrange(300)), (0, "\ud800")))
            case 2:
                return reply.replace(
                    rcode=self.choice((15, 16, 23, 4095, 4096, -1)), limit=self.choice((0, 100, 512, 4096))
                )
            case 3:
                return reply.replace(flags=self.choice((-1, 2**40)), limit=self.choice((-5, 70_000)))
            case 4 if self.random() < 0.1:
                return reply.replace(options=self.choice((((-1, b""),), ((1, "x"),), ((1, bytes(70_000)),), (1, 2))))
            case _:
                return reply

    def query(self) -> Query:
        edns = self.choice((None, None, Edns(1232, False), Edns(self.randrange(65536), True, ((10, b"x"),))))
        spelling = self.name()
        flags = self.choice((0, RD, CD | RD, 0x2800, 0xFFFF))
        query = Query(
            spelling.lower(), self.choice(TYPES), IN, spelling, self.getrandbits(16), flags, edns, PEER, Listener(), 1
        )
        if self.random() < 0.99:
            return query
        changes: dict[str, Any] = self.choice(
            (
                {"type": 65536},
                {"id": -1},
                {"klass": 70_000},
                {"edns": Edns(65536, False)},
                {"flags": -1},
                {"name": NAMES[0]},
            )
        )
        return query.replace(**changes)

    def limit(self) -> int:
        return self.choice((512, 512, 600, 1232, 1232, 4096, 65535, 65535, 0, -3, 10**6, 2**80))


def test_pack_reply(twin: ModuleType) -> None:
    dice = Dice(SEED)
    for _ in range(PACKETS // 5):
        query, reply = dice.query(), dice.reply()
        for _ in range(2):
            limit = dice.limit()
            assert outcome(twin.pack_reply, query, reply, limit) == outcome(road.pack_reply, query, reply, limit), (
                query,
                reply,
                limit,
            )
        assert outcome(twin.reply_limit, query, reply) == outcome(road.reply_limit, query, reply)


@pytest.mark.parametrize("edns", [None, Edns(512, True), Edns(4096, False, ((10, b"x"),))])
@pytest.mark.parametrize("limit", [512, 1232, 65535])
def test_sound_replies_are_packed_in_c(
    twin: ModuleType, edns: Edns | None, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The readable twin is asked only for what is odd: not by mistake for all."""
    query = Query(NAMES[0], A, IN, NAMES[1], 1, RD, edns, PEER, LISTENERS[1], 40)
    soa = Record(NAMES[2], SOA, 5, rdata.soa(NAMES[6], NAMES[7], 1, 2, 3, 4, 5))
    srv = tuple(Record(NAMES[0], SRV, 5, rdata.srv(0, 1, 53, owner)) for owner in NAMES)
    addresses = tuple(Record(owner, A, 5, bytes(4)) for owner in NAMES * 9)
    aliases = (Record(NAMES[0], 5, 5, NAMES[5]), Record(NAMES[5], 15, 5, rdata.mx(1, NAMES[1])))
    replies = [
        Reply(flags=AA),
        Reply(3, authority=(soa,), flags=AA),
        Reply(answer=(Record(NAMES[0], A, 5, bytes(4)),)),
        Reply(answer=aliases, authority=(soa,)),
        Reply(answer=srv, additional=addresses),
        Reply(16, ede=((14, "not ready"),), options=((3, b"x"),)),
    ]
    expected = [road.pack_reply(query, reply, limit) for reply in replies]
    monkeypatch.delattr(road, "pack_reply")
    assert [twin.pack_reply(query, reply, limit) for reply in replies] == expected


def test_answers_to_mutated_queries(twin: ModuleType) -> None:
    """What the road really packs: replies to all sorts of questions, well-formed ones for the most part."""
    dice, corpus = Dice(SEED), [wire.pack_query(7, RD, spelling, A, IN, None) for spelling in NAMES]
    done = 0
    for _ in range(PACKETS // 5):
        query = road.parse_query(mutate(dice, corpus), PEER, LISTENERS[0])
        if isinstance(query, Query):
            done += 1
            soa = Record(dice.choice(NAMES), SOA, 30, dice.data(SOA))
            for reply in (
                Reply(answer=(Record(query.name, query.type, 30, b"\1\2\3\4"),), flags=AA),
                Reply(answer=(Record(query.spelling, query.type, 30, b"\1\2\3\4"),), flags=AA),
                Reply(3, authority=(soa,), flags=AA),
                Reply(3, authority=(soa, soa), flags=AA),
            ):
                assert twin.pack_reply(query, reply, 512) == road.pack_reply(query, reply, 512), (query, reply)
    assert done > PACKETS // 100


@pytest.mark.parametrize("label", [1, 2, 5, 20])
def test_more_names_than_a_pointer_can_reach(twin: ModuleType, label: int) -> None:
    dice = Dice(SEED)
    query = Query(NAMES[0], A, IN, NAMES[0], 1, RD, None, PEER, LISTENERS[1], 40)
    names = [
        b"".join(b"%c%b" % (label, dice.randbytes(label)) for _ in range(dice.randrange(1, 250 // (label + 1)))) + b"\0"
        for _ in range(3000)
    ]
    records = tuple(
        Record(dice.choice(names), dice.choice((A, 5, SRV)), 1, bytes(6) + dice.choice(names)) for _ in names
    )
    records += tuple(Record(owner, 5, 1, owner) for owner in names)
    for limit in (512, 1232, 20_000, 65535, 10**6):
        for section in (records, records[::-1], records[3000:]):
            reply = Reply(answer=section, additional=section)
            assert twin.pack_reply(query, reply, limit) == road.pack_reply(query, reply, limit)
