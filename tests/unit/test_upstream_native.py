"""Octets of upstreams: both twins take the same replies and read the same out of them."""

from __future__ import annotations

import random
import struct
import time
from typing import Any

import pytest

from kdns import limits, name, rdata, wire
from kdns.message import AAAA, CNAME, HTTPS, IN, MX, NS, PTR, RD, SOA, SRV, TXT, A, Edns, Listener, Query, Record, Reply
from kdns.upstream import plain
from tests.fakeupstream import odd_packets
from tests.fuzz.test_wire_fuzz import mutate, seeds
from tests.upstreamtest import compiled, needs_compiled, twins

WWW = name.spell("wWw.example.org.")
TARGET = name.from_text("host.example.net.")
SECONDS = 3.0
SOA_DATA = rdata.soa(TARGET, WWW, 1, 2, 3, 4, 5)


def query(edns: Edns | None = None, type: int = A) -> Query:
    asked = wire.parse_query(wire.pack_query(4711, RD, WWW, type, IN, edns), ("192.0.2.1", 5353), Listener(proto="tcp"))
    assert isinstance(asked, Query)
    return asked


def everyday() -> dict[str, bytes]:
    """Replies of the kinds that nearly all are of."""
    address = Record(WWW, A, 300, b"\xc0\0\2\1")
    kinds: dict[str, Reply] = {
        "address": Reply(0, (address,)),
        "addresses": Reply(0, tuple(Record(WWW, AAAA, n, bytes(15) + bytes((n,))) for n in range(8))),
        "alias": Reply(0, (Record(WWW, CNAME, 30, TARGET), Record(TARGET, A, 300, b"\xc0\0\2\1"))),
        "NXDOMAIN": Reply(3, authority=(Record(TARGET[5:], SOA, 30, SOA_DATA),)),
        "nothing": Reply(2),
        "mail": Reply(0, (Record(WWW, MX, 30, rdata.mx(10, TARGET)),), (Record(WWW, NS, 30, TARGET),), (address,)),
        "text": Reply(0, (Record(WWW, TXT, 2**31 - 1, b"\3abc\0"), Record(WWW, HTTPS, 5, b"\0\1\0"))),
        "reverse": Reply(0, (Record(WWW, PTR, 30, TARGET),)),
        "flags": Reply(5, (address,), flags=0x0480),
    }
    out = {kind: wire.pack_reply(query(), reply, 65535) for kind, reply in kinds.items()}
    out["EDNS"] = wire.pack_reply(query(Edns(1232, True)), Reply(16, (address,)), 65535)
    out["great TTL"] = out["address"].replace(struct.pack("!I", 300), b"\x80\0\0\1")
    out["names in full"] = out["address"].replace(b"\xc0\x0c", WWW)
    return out


def odd() -> dict[str, bytes]:
    """Good ones that are left to the Python reader, and bad ones."""
    good = everyday()
    answer = good["address"]
    end = 12 + len(WWW) + 4
    service = Reply(0, (Record(WWW, SRV, 30, rdata.srv(1, 2, 3, TARGET)),))
    return {
        **{f"odd: {kind}": packet for kind, packet in odd_packets(answer).items()},
        "service": wire.pack_reply(query(), service, 65535),
        "extended error": wire.pack_reply(query(Edns(1232, True)), Reply(2, ede=((22, "x"),)), 65535),
        "many": wire.pack_reply(query(), Reply(0, tuple(Record(WWW, A, 1, bytes(4)) for _ in range(100))), 65535),
        "truncated": wire.pack_reply(query(), Reply(0, tuple(Record(WWW, A, 1, bytes(4)) for _ in range(100))), 512),
        "cut off and truncated": bytes((*answer[:2], answer[2] | 2, *answer[3:-3])),
        "address of three octets": answer[:-6] + b"\0\3\1\2\3",
        "address of three octets in CH": answer[:-12] + b"\0\3" + answer[-10:-6] + b"\0\3\1\2\3",
        "alias longer than it says": answer[:end] + b"\xc0\x0c\0\5\0\1\0\0\0\1\0\3\xc0\x0c\0",
        "alias shorter than it says": answer[:end] + b"\xc0\x0c\0\5\0\1\0\0\0\1\0\1\xc0\x0c",
        "alias to beyond the end": answer[:end] + b"\xc0\x0c\0\5\0\1\0\0\0\1\0\2\xff\xff",
        "alias to the header": answer[:end] + b"\xc0\x0c\0\5\0\1\0\0\0\1\0\2\xc0\x02",
        "short SOA": answer[:end] + b"\xc0\x0c\0\6\0\1\0\0\0\1\0\x10" + b"\0\0" + bytes(14),
        "mail without a name": answer[:end] + b"\xc0\x0c\0\x0f\0\1\0\0\0\1\0\1\0",
        "OPT in the answer": answer[:end] + b"\0\0\x29\4\0\0\0\0\0\0\0",
        "two OPTs": answer[:6] + b"\0\0\0\0\0\2" + answer[12:end] + b"\0\0\x29\4\0\0\0\0\0\0\0" * 2,
        "OPT with a name": answer[:6] + b"\0\0\0\0\0\1" + answer[12:end] + b"\xc0\x0c\0\x29\4\0\0\0\0\0\0\0",
        "name of 256": answer[:6] + b"\0\1\0\0\0\0" + answer[12:end] + b"\x3e" * 63 * 4 + b"\2ab\0\0\1\0\1" + bytes(6),
        "label of 64": answer[:12] + b"\x40" + answer[13:],
        "only a header": answer[:12],
        "empty": b"",
    }


PACKETS = {**everyday(), **odd()}


def chain(pointers: int) -> bytes:
    """A reply whose second owner is so many pointers away, none of which has been followed before."""
    head = struct.pack("!6H", 1, 0x8000, 1, 2, 0, 0) + WWW + b"\0\1\0\1"
    links = b"".join(struct.pack("!H", 0xC000 | at) for at in [12, *range(len(head) + 12, 4096, 2)][:pointers])
    first = b"\xc0\x0c" + struct.pack("!HHIH", 65400, 1, 1, len(links)) + links
    last = len(head) + len(first) - 2
    return head + first + struct.pack("!H", 0xC000 | last) + b"\0\1\0\1\0\0\0\1\0\4\1\2\3\4"


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS.keys())
@needs_compiled
def test_twins_read_the_same(packet: bytes) -> None:
    assert compiled.read_reply(packet) == plain.read_reply(packet)


@pytest.mark.parametrize("kind", everyday())
@needs_compiled
def test_the_compiled_twin_reads_everyday_replies_itself(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packet = PACKETS[kind]
    expected = wire.parse_reply(packet)

    def unexpected(packet: bytes) -> None:
        raise AssertionError("left to the Python twin")

    monkeypatch.setattr(compiled, "parse_reply", unexpected)
    assert compiled.read_reply(packet) == expected


@pytest.mark.parametrize("pointers", [1, 5, limits.NAME_POINTERS - 1, limits.NAME_POINTERS, limits.NAME_POINTERS + 1])
@needs_compiled
def test_twins_follow_as_many_pointers(pointers: int) -> None:
    packet = chain(pointers)
    found = plain.read_reply(packet)
    assert compiled.read_reply(packet) == found
    assert (found is not None) == (pointers < limits.NAME_POINTERS)


@needs_compiled
def test_twins_agree_on_mutated_packets() -> None:
    dice = random.Random(20261127)
    corpus = [*everyday().values(), *seeds()]
    asked = (WWW.lower(), b"\0\1\0\1")
    deadline = time.monotonic() + SECONDS
    read = matched = count = 0
    while time.monotonic() < deadline and count < 200_000:
        count += 1
        packet = mutate(dice, corpus)
        found = plain.read_reply(packet)
        assert compiled.read_reply(packet) == found, packet.hex()
        read += found is not None
        if len(packet) >= 12:
            same = plain.matches(packet, *asked)
            assert compiled.matches(packet, *asked) == same, packet.hex()
            matched += same
    assert read > count / 50 and matched > count / 50


@pytest.mark.parametrize("native", twins())
def test_a_question_matches_in_any_case_and_no_other(native: Any) -> None:
    good = PACKETS["address"]
    asked = (WWW.lower(), b"\0\1\0\1")
    assert native.matches(good, *asked) and native.matches(good.replace(WWW, WWW.upper()), *asked)
    assert not native.matches(good, asked[0], b"\0\1\0\3")
    assert not native.matches(good, name.from_text("www.example.com."), asked[1])
    assert not native.matches(good, b"\0", asked[1])
    assert not native.matches(good[: 12 + len(WWW) + 3], *asked)
    for kind in ("another name", "another type", "another class", "a query", "another opcode", "two questions"):
        assert not native.matches(PACKETS[f"odd: {kind}"], *asked), kind
