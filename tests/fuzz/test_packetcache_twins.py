"""Both packet caches see the same packets, replies, leases and names, honest ones and broken ones, and do the same.

What they repeat, how many entries and facts they hold, what they count and what they pay for are compared after every
step.  They differ by right where the compiled one can read more: names with a zero octet in a label, denials whose
pointers lead to several places, addresses that cannot take turns (refused at once, not at the first hit); and a denial
that has expired sends to the chain what one of a higher apex could deny.  Nothing of that is made here.
"""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from typing import Any, Final

import pytest

from kdns import denial, packetcache
from kdns.denial import Denial
from kdns.message import FOREVER, Edns, Lease, Listener, Query
from kdns.metrics import Metrics
from kdns.wire import pack_query, parse_query

STEPS: Final = int(os.environ.get("KDNS_TWIN_STEPS", 300))
SEEDS: Final = range(40)
LISTENER: Final = Listener("dns://:53", "udp", ("127.0.0.1", 53))
LABELS: Final = (
    b"\3web", b"\3WeB", b"\7default", b"\3svc", b"\1x", b"\x3f" + b"y" * 63, b"\1[", b"\1@", b"\1\xc3", b"\2\1\2",
)  # fmt: skip
APEXES: Final = (b"\3svc\0", b"\7default\3svc\0", b"\0")
FACTS: Final = tuple(b"f%d" % number for number in range(6))
TTLS: Final = (0, 1, 5, 30, 3600, 2**31, 2**32 - 1)


class Twin:
    """One packet cache, the names that its denials stand on, and what was paid."""

    def __init__(self, module: Any, names: Any) -> None:
        self.metrics = Metrics()
        self.cache = module.PacketCache(100_000, 2**30, self.metrics)
        self.existing = names.Existing(2)
        self.paid: Counter[tuple[int, int]] = Counter()

    def pay(self, times: int, query: int, reply: int) -> None:
        self.paid[query, reply] += times

    def state(self) -> dict[str, Any]:
        """What must be the same of both."""
        self.metrics.settle()
        families = [f for f in self.metrics._families.values() if f.name.startswith("kdns_packetcache_")]
        counted = {f.name: f.cell().value for f in families if f.name != "kdns_packetcache_bytes"}
        return {**counted, "facts": self.cache.facts, "paid": +self.paid}


class History:
    """What happens to both."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = self.random.choice([0.0, 1000.25, 1e6])
        self.stored: list[bytes] = []
        self.names: list[bytes] = []

    def name(self, most: int) -> bytes:
        return b"".join(self.random.choice(LABELS) for _ in range(self.random.randrange(most + 1))) + b"\0"

    def packet(self) -> bytes:
        """A query, mostly well-formed."""
        pick, chance = self.random.choice, self.random.random
        name = self.name(3)[:-1] + pick(APEXES) if chance() < 0.6 else self.name(4)
        edns = None
        if chance() < 0.5:
            options = [
                (pick((10, 10, 12, 12, 3)), self.random.randbytes(pick((0, 1, 8, 24))))
                for _ in range(pick((0, 0, 1, 1, 2, 3)))
            ]
            edns = Edns(pick((512, 1232, 4096)), chance() < 0.3, tuple(options))
        flags = pick((0x100, 0x100, 0, 0x110, 0x120, 0x130, 0x140, 0x180, 0x101, 0x200, 0x8100, 0x4100))
        packet = bytearray(pack_query(self.random.randrange(65536), flags, name, pick((1, 1, 28, 6, 65, 255)), 1, edns))
        if chance() < 0.06:
            for _ in range(self.random.randrange(1, 4)):
                packet[self.random.randrange(len(packet))] = pick(
                    (0, 1, 10, 12, 0x29, 0xC0, self.random.randrange(256))
                )
        if chance() < 0.03:
            del packet[self.random.randrange(len(packet)) :]
        if chance() < 0.03:
            packet += self.random.randbytes(self.random.randrange(1, 5))
        return bytes(packet)

    def again(self) -> bytes:
        """A query that was answered, spelled otherwise; or one that differs from it in the name alone."""
        packet = bytearray(self.random.choice(self.stored[-6:]))
        packet[:2] = self.random.randbytes(2)
        for at in range(12, packet.index(0, 12)):
            if bytes(packet[at : at + 1]).isalpha() and self.random.random() < 0.5:
                packet[at] ^= 32
        if self.random.random() < 0.2:
            packet[12:12] = self.name(3)[:-1]
        return bytes(packet)

    def record(self, owner: bytes, kind: int, data: bytes) -> bytes:
        return owner + struct.pack(">HHIH", kind, 1, self.random.choice(TTLS), len(data)) + data

    def reply(self, packet: bytes) -> bytes:
        """A reply to a query: addresses, behind an alias or not, a denial, both or nothing."""
        chance = self.random.random
        end = packet.index(0, 12)
        starts = [12]
        while starts[-1] < end:
            starts.append(starts[-1] + 1 + packet[starts[-1]])
        head = bytearray(packet[: end + 5])
        head[2] |= 0x80 | (2 if chance() < 0.05 else 0)
        head[3] = head[3] & 0x30 | self.random.choice((0x80, 0x83))
        body, what = b"", chance()
        counts = [0, 0, 0]
        if what < 0.45:
            owner = b"\xc0\x0c"
            if chance() < 0.3:
                owner = struct.pack(">H", 0xC000 | len(head) + 12)
                body += self.record(b"\xc0\x0c", 5, b"\1t\xc0\x0c")
                counts[0] += 1
            for number in range(self.random.randrange(5)):
                body += self.record(owner, 1, bytes((10, 0, 0, number)))
                counts[0] += 1
            if chance() < 0.3:
                body += self.record(owner, 46, b"signature")
                counts[0] += 1
        if what > 0.4:
            zone = struct.pack(">H", 0xC000 | self.random.choice(starts[-2:] if chance() < 0.7 else starts))
            ends = [zone if chance() < 0.95 else b"\1z\0" for _ in range(3)]
            body += self.record(ends[0], 6, b"\2ns" + ends[1] + b"\4host" + ends[2] + bytes(20))
            counts[1] += 1
            if chance() < 0.1:
                body += self.record(b"\xc0\x0c", 2, b"\0")
                counts[1] += 1
        if packet[11] and chance() < 0.8:
            body += b"\0\0\x29\4\xd0" + bytes(6)
            counts[2] += 1
        struct.pack_into(">HHH", head, 6, *counts)
        return bytes(head) + body

    def get(self, twins: list[Twin], packet: bytes) -> bytes:
        """Ask both; in which scope."""
        scope = self.random.choice((b"u1", b"u1", b"t1"))
        one, other = (twin.cache.get(scope, packet, self.now) for twin in twins)
        assert one == other, packet.hex()
        return scope

    def put(self, twins: list[Twin]) -> None:
        """As a listener does: what is put was asked for before."""
        chance = self.random.random
        packet = self.random.choice(self.stored) if self.stored and chance() < 0.5 else self.packet()
        query = parse_query(packet, ("192.0.2.1", 5), LISTENER)
        if not isinstance(query, Query) or 0 in query.name[:-1]:
            return
        self.stored.append(packet)
        scope = self.get(twins, packet)
        reply = self.reply(packet)
        denies, rotate, age, owed = (chance() < 0.5 for _ in range(4))
        until = (
            FOREVER if denies else self.random.choice((FOREVER, self.now + self.random.choice((-1, 0, 0.5, 3, 30.5))))
        )
        facts = tuple(self.random.sample(FACTS, self.random.randrange(3)))
        apex = self.random.choice(APEXES)
        for twin in twins:
            proof = Denial(apex, twin.existing) if denies else None
            lease = Lease(until, facts, rotate, age, (twin.pay,) if owed else (), proof)
            twin.cache.put(scope, packet, reply, lease, self.now)

    def change(self, twins: list[Twin]) -> None:
        """Facts are dropped, time passes, names come and go, or all is cleared."""
        what = self.random.random()
        if what < 0.2:
            fact = self.random.choice(FACTS)
            for twin in twins:
                twin.cache.forget([fact])
        elif what < 0.6:
            self.now += self.random.choice((0.25, 0.5, 1, 3.25))
        elif what < 0.85:
            name = self.name(2)[:-1].lower()
            if name and name not in self.names:
                self.names.append(name)
                for twin in twins:
                    twin.existing.add(name)
        elif what < 0.99 and self.names:
            name = self.names.pop(self.random.randrange(len(self.names)))
            for twin in twins:
                twin.existing.discard(name)
        elif what >= 0.99:
            for twin in twins:
                twin.cache.clear()


@pytest.mark.parametrize("seed", SEEDS)
def test_both_twins_do_the_same(seed: int) -> None:
    compiled = pytest.importorskip("kdns._packetcache", reason="not compiled here", exc_type=ImportError)
    history = History(seed)
    twins = [Twin(packetcache, denial), Twin(compiled, compiled)]
    for step in range(STEPS):
        what = history.random.random()
        if what < 0.35:
            history.put(twins)
        elif what < 0.75:
            packet = history.again() if history.stored and history.random.random() < 0.8 else history.packet()
            history.get(twins, packet)
        else:
            history.change(twins)
        assert twins[0].state() == twins[1].state(), f"step {step}"
    assert twins[0].state()["kdns_packetcache_hits_total"] > STEPS / 100
