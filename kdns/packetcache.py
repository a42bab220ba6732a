"""Question bytes → reply bytes, as long as the lease holds.  Knows no DNS policy.

The packet cache repeats what the chain answered before, patched for who asks now: the ID and the spelling of the
question come from the asker's packet, ages and the order of addresses from the `message.Lease`.  A hit is one lookup
and one concatenation.  What it has not seen in exactly this form, or cannot read, it leaves to the chain.

Which packets are one question: see `kdns.questions`.

A reply whose lease has a ``denial`` (`kdns.denial`) becomes a general entry: one that answers for every name below the
apex that is proven not to exist, whatever its length.  It is asked when there is no entry for the very question, and
stands on no facts: `Existing` is looked into each time.  So names that nobody has cost one entry for all of them.  The
places that compression pointers lead to stand behind those names, and move with their length.

Room: as long as there is plenty of it every reply is taken in; then only those to questions that come a second time, so
that a flood of names that are asked once costs next to nothing.  A newcomer is young.  When the table is full the
oldest young entry goes, unless it was asked for again, which makes it old; old ones go only when they, too, have not
been asked for since the last look (second chance).

Ageing: with ``lease.age`` every TTL counts down by one at each whole second before ``lease.until`` (at each whole
second after `PacketCache.put` when that is `message.FOREVER`), just as the chain's own answer does that expires then.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from math import floor
from typing import Final

from kdns.compiled import twin
from kdns.denial import Existing
from kdns.log import Logger
from kdns.message import FOREVER, TC, Duty, Fact, Lease, Report
from kdns.metrics import Metrics
from kdns.name import MAX_LABEL, MAX_NAME
from kdns.patches import POINTER, Plan, Scheme, cut, make_plan, scheme
from kdns.questions import OPT_SIZE, Form, Key, form_of, options_ignored, storage_key
from kdns.standing import Standing

_LOG: Final = Logger("packetcache")
_HEADER: Final = 12
_TTL: Final = struct.Struct(">I")
_SHORT: Final = struct.Struct(">H")
_OVERHEAD: Final = 640
"""Octets that Python takes for an entry beside its key and its reply (measured)."""
_GENERAL_OVERHEAD: Final = 3328
"""The same for a general entry."""
_PLENTY: Final = 8
"""There is plenty of room while less than one part in so many is taken."""
_DOOR: Final = 1 << 17
"""Questions that can be remembered as having come once, in one octet each."""
_YOUNG_SHARE: Final = 10
"""The young ones give way first as long as they are more than one in so many."""
_CHANCES: Final = 32
"""Old entries in use that one eviction passes over; then one goes anyway, so that no query waits for a long walk."""


class Entry:
    """One stored reply, in the pieces from which a hit is put together."""

    __slots__ = (
        "before", "born", "duties", "facts", "fresh", "head", "hits", "key", "newer", "octets", "older", "origin",
        "paid", "plan", "report", "rotate", "run", "seen", "tail", "turns", "until", "width", "young",
    )  # fmt: skip

    head: bytes
    """Flags and counts."""
    before: bytes
    """With ``turns``: what stands before the run of addresses."""
    run: bytes
    """With ``turns``: the addresses, twice in a row; a rotation is a slice of it."""
    turns: tuple[int, ...]
    """Where in ``run`` the rotations begin; empty: nothing to rotate."""
    width: int
    """Octets of one rotation."""
    tail: bytes
    """What follows the question, or the run."""
    fresh: float
    """Until when these pieces are good; then `PacketCache._renew`."""
    hits: int
    paid: int
    """``hits`` when the duties were last settled."""
    seen: int
    """``hits`` when eviction last looked."""
    older: Entry
    newer: Entry
    key: Key
    facts: tuple[Fact, ...]
    duties: tuple[Duty, ...]
    report: Report | None
    octets: tuple[int, int, int]
    """Of the query, of the reply, and all that counts against the bound."""
    until: float
    origin: float
    """TTLs count down at whole seconds before or after this moment."""
    born: int
    """Whole seconds from ``origin`` to when it was stored."""
    rotate: bool
    plan: Plan | None
    """Made when the pieces are to be changed for the first time."""
    young: bool


class General(Entry):
    """One stored denial that answers for many names; ``octets`` are those without the name."""

    __slots__ = ("apex", "counted", "existing", "form", "pieces", "pointer", "scheme")

    apex: bytes
    """Without the root octet."""
    form: Form
    existing: Existing
    scheme: Scheme
    pointer: int
    """Both octets of the pointers, for a name without octets."""
    pieces: tuple[bytes, ...]
    """``tail`` without its pointers."""
    counted: array[int]
    """Hits that are not paid for, by octets of the name."""


class Line:
    """Entries in a doubly linked row, the oldest first."""

    __slots__ = ("_end", "count")

    def __init__(self) -> None:
        self._end = Entry()
        self._end.older = self._end.newer = self._end
        self.count = 0

    def append(self, entry: Entry) -> None:
        """Put it at the newest end."""
        end = self._end
        entry.newer = end
        entry.older = end.older
        end.older.newer = entry
        end.older = entry
        self.count += 1

    def remove(self, entry: Entry) -> None:
        """Take it out, wherever it stands."""
        entry.older.newer = entry.newer
        entry.newer.older = entry.older
        del entry.older, entry.newer
        self.count -= 1

    def oldest(self) -> Entry:
        """The first in the row, which must not be empty."""
        return self._end.newer


class Counts:
    """The metrics of a packet cache."""

    def __init__(self, metrics: Metrics) -> None:
        name = "kdns_packetcache_"
        self.hits = metrics.counter(name + "hits_total", "Queries answered from the packet cache.").cell()
        self.misses = metrics.counter(name + "misses_total", "Queries that went to the chain.").cell()
        self.entries = metrics.gauge(name + "entries", "Replies in the packet cache.").cell()
        self.bytes = metrics.gauge(name + "bytes", "Memory that these replies take.").cell()
        self.evicted = metrics.counter(name + "evictions_total", "Replies let go for want of room.").cell()
        self.dropped = metrics.counter(name + "dropped_total", "Replies dropped because a fact changed.").cell()


class PacketCache:
    """The table, bounded by entries and by octets.  Call it from one thread only.

    ``scope`` tells apart what the packet does not: the listener and the transport.  All scopes of a table have the same
    length.  ``now`` is in monotonic seconds, as ``lease.until`` is.
    """

    __slots__ = (
        "_apexes", "_counts", "_door", "_misses", "_old", "_standing", "_table", "_used", "_young", "max_bytes",
        "max_entries",
    )  # fmt: skip

    def __init__(self, max_entries: int, max_bytes: int, metrics: Metrics) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._table: dict[Key, Entry] = {}
        self._standing: Standing[Entry] = Standing()
        self._apexes: dict[bytes, dict[Form, General]] = {}
        """Apex without the root octet → its general entries, which are in the table, too."""
        self._young, self._old = Line(), Line()
        self._used = 0
        self._door = bytearray(_DOOR)
        self._counts = Counts(metrics)
        self._misses = self._counts.misses
        metrics.before_scrape(self.settle)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def lines(self) -> tuple[int, int]:
        """Young and old entries."""
        return self._young.count, self._old.count

    @property
    def facts(self) -> int:
        """How many facts something here stands on."""
        return len(self._standing)

    def get(self, scope: bytes, packet: bytes, now: float) -> bytes | None:
        """The whole reply to this packet, any packet; None: ask the chain."""
        end = packet.find(0, _HEADER)
        entry = self._table.get(scope + packet[2:end].lower() + packet[end:])
        if entry is None:
            entry = self._get_with_options(scope, packet, end)
            if entry is None and self._apexes:
                return self._get_general(scope, packet, end, now)
        if entry is None or (now >= entry.fresh and not self._renew(entry, now)):
            self._misses.value += 1
            return None
        entry.hits = hits = entry.hits + 1
        turns = entry.turns
        if turns:
            at = turns[hits % len(turns)]
            run = entry.run[at : at + entry.width]
            return packet[:2] + entry.head + packet[12 : end + 5] + entry.before + run + entry.tail
        return packet[:2] + entry.head + packet[12 : end + 5] + entry.tail

    def put(
        self, scope: bytes, packet: bytes, reply: bytes, lease: Lease, now: float, report: Report | None = None
    ) -> None:
        """Keep the reply to a packet as long as its lease says; ``report`` learns of replays with the lease's duties.

        The packet is one that was parsed without an error, and the reply repeats its question.  What cannot be found
        again (see above) or would not be true when repeated is not kept: a truncated choice of addresses that rotate.
        When room is scarce it is kept the second time.
        """
        tail_at = packet.find(0, _HEADER) + 5
        if lease.until <= now or reply[_HEADER:tail_at] != packet[_HEADER:tail_at]:
            return
        rotate = lease.rotate and reply[6:8] > b"\0\1"
        if rotate and reply[2] & TC >> 8:
            return
        entry = self._make(scope, packet, reply, lease)
        if entry is None:
            return
        entry.head, entry.tail = reply[2:_HEADER], reply[tail_at:]
        entry.turns, entry.rotate, entry.plan = (), rotate, None
        entry.duties, entry.report = lease.duties, report
        entry.hits = entry.paid = entry.seen = 0
        entry.until = lease.until
        entry.fresh = 0.0 if rotate else lease.until
        entry.origin = FOREVER
        if lease.age:
            entry.origin = now if lease.until == FOREVER else lease.until
            entry.born = floor(now - entry.origin)
            if not rotate:
                entry.fresh = min(lease.until, entry.origin + entry.born + 1)
        self._add(entry)

    def forget(self, facts: Iterable[Fact]) -> None:
        """Drop the replies that stand on one of these facts."""
        gone: list[Entry] = []
        for fact in facts:
            for entry in self._standing.on(fact):
                self._take_out(entry)
                gone.append(entry)
        self._counts.dropped.value += len(gone)
        # What is paid may drop facts, too: by then nothing is left that is not true any more.
        for entry in gone:
            self._pay(entry)

    def settle(self) -> None:
        """Pay what is owed for all hits so far, so that every counter is up to date; runs before each scrape."""
        self._counts.entries.value = len(self._table)
        self._counts.bytes.value = self._used
        for entry in list(self._table.values()):  # what is paid may drop facts
            if entry.hits != entry.paid:
                self._pay(entry)

    def clear(self) -> None:
        """Drop everything: the chain itself has changed."""
        gone = list(self._table.values())
        for entry in gone:
            self._take_out(entry)
        for entry in gone:
            self._pay(entry)

    # --- finding -----------------------------------------------------------------------------------------------------

    def _get_with_options(self, scope: bytes, packet: bytes, end: int) -> Entry | None:
        """The entry for a packet whose EDNS options do not matter; None when there are none, or others."""
        if end < 0 or len(packet) <= end + 5 + OPT_SIZE or not options_ignored(packet, end + 5):
            return None
        return self._table.get((scope + packet[2:end].lower() + packet[end : end + 14], len(packet)))

    def _get_general(self, scope: bytes, packet: bytes, end: int, now: float) -> bytes | None:
        """The reply of a general entry to a packet that has no entry of its own; ``end``: the first zero octet."""
        name = packet[_HEADER:end].lower()
        size = len(name) if 0 < end <= _HEADER + MAX_NAME - 1 else 0
        apexes = self._apexes
        starts = []
        at = 0
        while at < size and name[at] <= MAX_LABEL:
            starts.append(at)
            at += 1 + name[at]
            general = apexes.get(name[at:])
            if general is None or at > size:
                continue
            entry = general.get(scope + packet[2:_HEADER] + packet[end:])
            if entry is None:
                entry = self._general_with_options(general, scope, packet, end)
            if entry is None or not entry.existing.lacks(name, starts, at):
                continue
            if now < entry.fresh or self._renew(entry, now):
                entry.hits += 1
                entry.counted[size + 1] += 1
                tail = _SHORT.pack(entry.pointer + size + 1).join(entry.pieces)
                return packet[:2] + entry.head + packet[12 : end + 5] + tail
        self._misses.value += 1
        return None

    def _general_with_options(
        self, general: dict[Form, General], scope: bytes, packet: bytes, end: int
    ) -> General | None:
        """As `_get_with_options`, of the general entries of one apex."""
        if len(packet) <= end + 5 + OPT_SIZE or not options_ignored(packet, end + 5):
            return None
        return general.get((scope + packet[2:_HEADER] + packet[end : end + 14], len(packet) - (end + 1 - _HEADER)))

    def _renew(self, entry: Entry, now: float) -> bool:
        """Make the pieces good for this second; False when the entry is of no more use and has gone."""
        if now >= entry.until:
            self._remove(entry)
            return False
        plan = entry.plan
        if plan is None:
            plan = entry.plan = make_plan(entry.head, entry.tail, entry.rotate)
            if plan is None:
                self._remove(entry)
                return False
        base = bytearray(plan.base)
        if entry.origin != FOREVER:
            ticks = floor(now - entry.origin)
            for at, ttl in plan.ttls:
                _TTL.pack_into(base, at, max(0, ttl - (ticks - entry.born)))
            entry.fresh = min(entry.until, entry.origin + ticks + 1)
        else:
            entry.fresh = entry.until
        if plan.run:
            first, last = plan.run[0], plan.run[-1]
            entry.before = bytes(base[:first])
            entry.run = bytes(base[first:last]) * 2
            entry.width = last - first
            entry.turns = tuple(start - first for start in plan.run[:-1])
            entry.tail = bytes(base[last:])
        else:
            entry.tail = bytes(base)
            if isinstance(entry, General):
                entry.pieces = cut(entry.tail, entry.scheme.places)
        return True

    # --- keeping -----------------------------------------------------------------------------------------------------

    def _make(self, scope: bytes, packet: bytes, reply: bytes, lease: Lease) -> Entry | None:
        """An entry for this reply, with what tells a general one from others; None: it is not to be kept."""
        key = storage_key(scope, packet)
        if key is None:
            return None
        end = packet.find(0, _HEADER)
        denial = lease.denial
        fitting = scheme(packet, reply, denial) if denial is not None else None
        if denial is None or fitting is None:
            if not self._admits(packet[_HEADER : end + 5]):
                return None
            entry = Entry()
            entry.key, entry.facts = key, lease.facts
            entry.octets = (len(packet), len(reply), len(packet) + len(reply) + _OVERHEAD)
            return entry
        if not self._admits(denial.apex + packet[end + 1 : end + 5]):
            return None
        general = General()
        general.apex, general.form = denial.apex[:-1], form_of(scope, packet)
        general.key, general.facts = (general.apex, general.form), ()
        general.existing, general.scheme = denial.existing, fitting
        general.pieces, general.pointer = cut(reply[end + 5 :], fitting.places), (POINTER << 8) + fitting.target
        general.counted = _no_counts()
        name = end + 1 - _HEADER
        general.octets = (len(packet) - name, len(reply) - name, len(packet) + len(reply) + _GENERAL_OVERHEAD)
        return general

    def _admits(self, question: bytes) -> bool:
        """Whether there is plenty of room, or the question has come before; else it is remembered."""
        if len(self._table) * _PLENTY < self.max_entries and self._used * _PLENTY < self.max_bytes:
            return True
        # A question that takes another's place costs that one a walk through the chain, no more.
        mark = hash(question.lower())
        place, sign = mark % _DOOR, 1 + (mark >> 20) % 255  # 0: nothing has come yet
        if self._door[place] == sign:
            return True
        self._door[place] = sign
        return False

    def _add(self, entry: Entry) -> None:
        before = self._table.get(entry.key)
        if before is not None:
            self._remove(before)
        if isinstance(entry, General):
            self._apexes.setdefault(entry.apex, {})[entry.form] = entry
        self._table[entry.key] = entry
        self._standing.add(entry, entry.facts)
        entry.young = True
        self._young.append(entry)
        self._used += entry.octets[2]
        while len(self._table) > self.max_entries or self._used > self.max_bytes:
            self._evict()

    def _remove(self, entry: Entry) -> None:
        self._take_out(entry)
        self._pay(entry)

    def _take_out(self, entry: Entry) -> None:
        del self._table[entry.key]
        self._standing.remove(entry, entry.facts)
        (self._young if entry.young else self._old).remove(entry)
        self._used -= entry.octets[2]
        if isinstance(entry, General):
            general = self._apexes[entry.apex]
            del general[entry.form]
            if not general:
                del self._apexes[entry.apex]

    def _evict(self) -> None:
        """Let one entry go: see "Room" above."""
        chances = _CHANCES
        while True:
            young = self._young.count * _YOUNG_SHARE > len(self._table) or not self._old.count
            line = self._young if young else self._old
            entry = line.oldest()
            if entry.hits == entry.seen or not chances:
                break
            line.remove(entry)
            entry.seen, entry.young = entry.hits, False
            self._old.append(entry)
            chances -= not young
        self._remove(entry)
        self._counts.evicted.value += 1

    def _pay(self, entry: Entry) -> None:
        """Settle what is owed for one entry."""
        replays = entry.hits - entry.paid
        if replays:
            entry.paid = entry.hits
            self._counts.hits.value += replays
            for times, query_octets, reply_octets in _owed(entry, replays):
                pay(entry.duties, entry.report, times, query_octets, reply_octets)


def pay(duties: tuple[Duty, ...], report: Report | None, times: int, query_octets: int, reply_octets: int) -> None:
    """Do what is owed for replays.  Never raises: a plugin's bug there must not keep a reply whose fact has changed."""
    try:
        for duty in duties:
            duty(times, query_octets, reply_octets)
        if report is not None:
            # Replays take no time worth a bucket.
            report(times, query_octets, reply_octets, 0.0)
    except Exception as error:  # noqa: BLE001 - whatever it is
        _LOG.error(f"what is owed for {times} replays could not be paid: {error!r}")


def packet_cache(max_entries: int, max_bytes: int, metrics: Metrics) -> PacketCache:
    """The compiled twin where it is built, else the Python one; see `kdns.compiled`."""
    compiled = twin("kdns._packetcache")
    cache: PacketCache = (PacketCache if compiled is None else compiled.PacketCache)(max_entries, max_bytes, metrics)
    return cache


def _no_counts() -> array[int]:
    return array("Q", bytes(8 * (MAX_NAME + 1)))


def _owed(entry: Entry, replays: int) -> Iterable[tuple[int, int, int]]:
    """(Replays, octets of the query, octets of the reply) for each size in which an entry was repeated."""
    query_octets, reply_octets, _ = entry.octets
    if not isinstance(entry, General):
        return ((replays, query_octets, reply_octets),)
    counted, entry.counted = entry.counted, _no_counts()
    return [(times, query_octets + name, reply_octets + name) for name, times in enumerate(counted) if times]
