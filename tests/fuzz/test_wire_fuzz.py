"""Mutated packets: nothing is raised, everything is a query, a well-formed error or silence, and memory stays flat.

``KDNS_FUZZ_PACKETS`` says how many (default: some seconds' worth), ``KDNS_FUZZ_SEED`` where the dice begin.
"""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from kdns import name, rdata, wire
from kdns.message import (
    AAAA,
    CNAME,
    IN,
    MX,
    NAPTR,
    NS,
    OPT,
    OPTION_COOKIE,
    RD,
    SOA,
    SRV,
    TXT,
    A,
    Edns,
    Listener,
    Query,
    Record,
    Reply,
)
from tests.wiretwins import TWINS, chosen

PACKETS = int(os.environ.get("KDNS_FUZZ_PACKETS", "100000"))
SEED = int(os.environ.get("KDNS_FUZZ_SEED", "20261121"))
SECONDS = 3.0 if "KDNS_FUZZ_PACKETS" not in os.environ else float("inf")

PEER = ("192.0.2.1", 5353)
LISTENERS = (Listener(), Listener(proto="tcp"))
WWW = name.spell("wWw.example.org.")


def seeds() -> list[bytes]:
    """Well-formed queries and replies with one of everything."""
    edns = Edns(1232, True, ((OPTION_COOKIE, b"12345678"), (100, b"")))
    queries = [
        wire.pack_query(1, RD, WWW, type, IN, e)
        for type in (A, AAAA, SRV, 255)
        for e in (None, Edns(4096, False), edns)
    ]
    target = name.from_text("mail.example.org.")
    records = (
        Record(WWW, CNAME, 30, target),
        Record(target, A, 30, b"\1\2\3\4"),
        Record(target, AAAA, 30, bytes(16)),
        Record(WWW, MX, 30, rdata.mx(10, target)),
        Record(WWW, SRV, 30, rdata.srv(1, 2, 3, target)),
        Record(WWW, SOA, 30, rdata.soa(target, WWW, 1, 2, 3, 4, 5)),
        Record(WWW, TXT, 2**31 - 1, b"\3abc\0"),
        Record(WWW, NAPTR, 0, rdata.from_text(NAPTR, '1 2 "s" "" "" a.b.')),
        Record(target[5:], NS, 30, target),
        Record(WWW, 65400, 30, b"\xc0\x0c"),
    )
    asked = wire.parse_query(queries[2], PEER, LISTENERS[0])
    assert isinstance(asked, Query)
    reply = Reply(3, records[:5], records[5:], records, ede=((14, "not ready"),))
    replies = [wire.pack_reply(asked, r, 65535) for r in (reply, Reply(answer=records[1:3]))]
    return queries + 4 * replies


def mutate(dice: random.Random, corpus: list[bytes]) -> bytes:
    packet = bytearray(dice.choice(corpus))
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(packet) + 1)
        match dice.randrange(9):
            case 0:
                packet[at : at + 1] = bytes((dice.randrange(256),))
            case 1 if packet:
                packet[at % len(packet)] ^= 1 << dice.randrange(8)
            case 2:
                del packet[at:]
            case 3:
                del packet[at : at + dice.randrange(1, 12)]
            case 4:
                packet[at:at] = dice.randbytes(dice.randrange(1, 12))
            case 5:
                packet[at : at + 2] = struct.pack("!H", 0xC000 | dice.randrange(len(packet) + 4))
            case 6:
                packet[at : at + 2] = struct.pack("!H", dice.choice((0, 1, 2, 3, OPT, 255, 0x7FFF, 0x8000, 0xFFFF)))
            case 7:
                other = dice.choice(corpus)
                start = dice.randrange(len(other))
                packet[at:at] = other[start : start + dice.randrange(60)]
            case _:
                # The counts in the header.
                count = 5 + 2 * dice.randrange(4)
                packet[count : count + 1] = bytes((dice.randrange(4),))
    return bytes(packet)


def packets(count: int) -> Iterator[bytes]:
    dice = random.Random(SEED)
    corpus = seeds()
    for index in range(count):
        yield dice.randbytes(dice.randrange(80)) if index % 50 == 0 else mutate(dice, corpus)


def check_query(packet: bytes, listener: Listener) -> None:
    outcome = wire.parse_query(packet, PEER, listener)
    if outcome is None:
        assert len(packet) < 12 or packet[2] & 0x80
    elif isinstance(outcome, bytes):
        assert outcome[:2] == packet[:2]
        assert outcome[2] & 0x80
        assert outcome[3] & 15 in (1, 4) or (outcome[3] & 15 == 0 and outcome[-6] == 1)
        assert len(outcome) <= 512
    else:
        reply = Reply(answer=(Record(outcome.name, A, 5, b"\1\2\3\4"),), ede=((0, "x"),))
        answered = wire.parse_reply(wire.pack_reply(outcome, reply, wire.reply_limit(outcome, reply)))
        assert (answered.spelling, answered.name, answered.type) == (outcome.spelling, outcome.name, outcome.type)
        assert (answered.edns is None) == (outcome.edns is None)
        assert len(answered.answer) == 1


def check_reply(packet: bytes) -> None:
    try:
        message = wire.parse_reply(packet)
    except wire.FormatError:
        return
    asked = Query(
        message.name, message.type, message.klass, message.spelling, message.id, 0, message.edns, PEER, LISTENERS[1], 0
    )
    reply = Reply(message.rcode, message.answer, message.authority, message.additional)
    again = wire.parse_reply(wire.pack_reply(asked, reply, 65535))
    assert [r.type for r in again.answer] == [r.type for r in message.answer]
    assert [r.owner.lower() for r in again.additional] == [r.owner.lower() for r in message.additional]
    for record in message.answer:
        rdata.to_text(record.type, record.rdata)


@pytest.mark.parametrize("twin", TWINS)
def test_mutated_packets(twin: str) -> None:
    with chosen(twin):
        mutated_packets()


def mutated_packets() -> None:
    end = time.monotonic() + SECONDS
    traced = max(200, PACKETS // 20)
    for done, packet in enumerate(packets(PACKETS)):
        if done == traced:
            # The first ones warmed up what is imported and cached on first use; these must leave nothing behind.
            tracemalloc.start()
        check_query(packet, LISTENERS[done & 1])
        check_reply(packet)
        if done == 2 * traced:
            left = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert left < 64 * 1024
        if done % 256 == 0 and time.monotonic() > end:
            break
    assert done > 2 * traced


def test_the_dice_roll_alike() -> None:
    assert list(packets(200)) == list(packets(200))
