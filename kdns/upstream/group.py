"""The servers that one ``forward`` line asks, and everything that is under way to them.

One question, however many ask it, is one `Flight`: it is asked once, and all who wait get its answer.  A flight is a
table of attempts and a few times, driven by what comes in and by the `Wheel`; there is no task and no timer for it.
Those who ask await one Promise each.

::

    ask ──▶ join a flight with the same question ─────────────────────────────▶ its answer
        └─▶ room? ──▶ first upstream of the policy ──▶ answer ───────────────▶ scrubbed, to all who wait
             │           │ late: ask another one       │ failover rcode: ask the next one
             │           │ error: ask the next one     │ truncated, prefer_udp: ask again over TCP
             │           └ nobody answers in time ────────────────────────────▶ SERVFAIL, EDE 22 or 23
             └─ none: the fullest zone gives way (`fair`), or REFUSED
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from kdns import limits
from kdns.message import (
    AA,
    AD,
    CD,
    EDE_NETWORK_ERROR,
    EDE_NO_REACHABLE_AUTHORITY,
    EDE_OTHER,
    OPTION_COOKIE,
    OPTION_ECS,
    OPTION_EXPIRE,
    OPTION_KEEPALIVE,
    OPTION_NSID,
    OPTION_PADDING,
    RA,
    RD,
    REFUSED,
    SERVFAIL,
    TC,
    Edns,
    Query,
    Reply,
    failure,
)
from kdns.metrics import Metrics
from kdns.name import ROOT, Name
from kdns.promise import Promise
from kdns.upstream.ask import UpstreamError
from kdns.upstream.choice import Choice
from kdns.upstream.fair import Census, Window
from kdns.upstream.flight import Flight, Outcome, Shape
from kdns.upstream.scrub import scrub
from kdns.upstream.server import PROXY, Upstream, Upstreams
from kdns.wire import Message, pack_query


class Options(msgspec.Struct, frozen=True):
    """How a group asks its servers."""

    zone: Name = ROOT
    """What is forwarded: answers are trusted for nothing outside."""
    policy: str = "random"
    """``random``, ``round_robin`` or ``sequential``."""
    max_concurrent: int = 0
    """Questions under way at once; 0 = no bound but `limits.UPSTREAM_FLIGHTS`."""
    max_attempts: int | None = None
    """Attempts for one question; None = two for each server, 0 = no bound but `limits.UPSTREAM_SENDS`."""
    force_tcp: bool = False
    prefer_udp: bool = False
    failfast: bool = False
    """Ask nobody when all servers are down."""
    failover: frozenset[int] = frozenset()
    """Rcodes with which an answer is taken only if the other servers give no other."""
    read_timeout: float = 2.0
    """Seconds."""


_FIRST_HEDGE: Final = 0.25
_HEDGES: Final = (0.1, 1.0)
"""Seconds until another server is asked, when nothing is known yet, and within which bounds else: three times what the
quickest server usually takes."""
_HEDGE_SHARE: Final = 0.1
_HEDGE_BURST: Final = 50.0
"""Of all questions, the share that may be asked a second time without a good reason (an overloaded server must not get
still more), and how many may at once."""
_LOSSY: Final = 0.5
"""A server that misses less than this of its questions is worth asking again."""
_PATIENCE: Final = 1.2
"""Read time-outs after which a question fails when no server has given a sign of life since it was asked."""
_CENSUS: Final = 0.05
"""Seconds between two censuses."""

_ASKED_FLAGS: Final = RD | CD | AD
_PASSED_FLAGS: Final = AA | TC | RA | AD
_HOP_BY_HOP: Final = frozenset((OPTION_COOKIE, OPTION_KEEPALIVE, OPTION_PADDING))
_PASSED_OPTIONS: Final = frozenset((OPTION_NSID, OPTION_ECS, OPTION_EXPIRE))
_EDE_TEXTS: Final = {EDE_NO_REACHABLE_AUTHORITY: "no upstream answers", EDE_NETWORK_ERROR: "no upstream can be reached"}
_LOOP: Final = failure(
    SERVFAIL, "forwarding loop: an upstream leads back here", PROXY, ((EDE_OTHER, "forwarding loop"),)
)
_TOO_MANY: Final = failure(SERVFAIL, "too many queries wait for upstreams", PROXY, ((EDE_OTHER, "overloaded"),))
_pack_kind = struct.Struct("!HH").pack


class Group:
    """The servers of one ``forward`` line."""

    def __init__(self, upstreams: Sequence[Upstream], options: Options, home: Upstreams) -> None:
        """Raises RuntimeError outside an event loop."""
        self.upstreams = tuple(upstreams)
        self.choice = Choice(self.upstreams, options.policy)
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.wheel = home.wheel
        self.wakeups = home.wakeups
        tries = 2 * len(self.upstreams) if options.max_attempts is None else options.max_attempts
        self.tries = min(tries or limits.UPSTREAM_SENDS, limits.UPSTREAM_SENDS)
        """Attempts for one question."""
        self.hedge = _FIRST_HEDGE
        """Seconds that a server has to answer before another one is asked."""
        self.longest = min(limits.UPSTREAM_TIME, options.read_timeout * max(2, self.tries))
        """Seconds until a question fails."""
        self.patience = min(self.longest, options.read_timeout * _PATIENCE)
        """Seconds until it fails when there is no sign of life."""
        self.under_way = 0
        """Different questions."""
        self.waiting = 0
        """Queries that wait for them."""
        self._proto = "tcp" if options.force_tcp else "udp" if options.prefer_udp else ""
        """How to ask; empty = as the client does."""
        self._most = min(options.max_concurrent or limits.UPSTREAM_FLIGHTS, limits.UPSTREAM_FLIGHTS)
        self.window = Window(self._most)
        self._flights: dict[bytes, list[Flight]] = {}
        self._clients: dict[str, int] = {}
        self._credit = _HEDGE_BURST
        self._census: Census[Flight] | None = None
        self._counted = 0.0
        self._meters = _Meters(home.metrics)
        home.groups.add(self)

    def end(self) -> None:
        """Nobody listens any more: fail what is under way."""
        for flights in list(self._flights.values()):
            for flight in list(flights):
                flight.give_up(self.failure(None))

    # -- those who ask

    async def ask(self, query: Query) -> Reply:
        """The answer of some upstream, or a failure; leased for no time at all."""
        client = query.peer[0] if query.listener.proto == "udp" else ""
        clients = self._clients
        pending = clients.get(client, 0)
        if pending >= limits.UPSTREAM_CLIENT and client:
            return self._turn_away("client")
        if self.waiting >= limits.IN_FLIGHT:
            return self._turn_away("waiting")
        clients[client] = pending + 1
        self.waiting += 1
        try:
            boarded = self._board(query)
            if isinstance(boarded, _Full):
                boarded = await self._board_later(query, boarded)
            if isinstance(boarded, Reply):
                return boarded
            reply, to = await boarded
        finally:
            self.waiting -= 1
            if clients[client] == 1:
                del clients[client]
            else:
                clients[client] -= 1
        if query.metadata is not None:
            query.metadata["forward/upstream"] = lambda: to
        return reply

    def _board(self, query: Query) -> Promise[Outcome] | _Full | Reply:
        """Join the flight that asks this question, or start one."""
        edns = query.edns
        if edns is not None and edns.options:
            options = tuple(option for option in edns.options if option[0] not in _HOP_BY_HOP)
            edns = Edns(edns.size, edns.do, options)
        proto = self._proto or query.listener.proto
        flags = query.flags & _ASKED_FLAGS
        shape: Shape = (flags, proto, False, ()) if edns is None else (flags, proto, edns.do, edns.options)
        key = query.name + _pack_kind(query.type, query.klass)
        flights = self._flights.get(key)
        if flights is not None:
            for flight in flights:
                if flight.shape == shape:
                    if flight.looped(query.peer):
                        return _LOOP
                    self._meters.shared.value += 1
                    return flight.join()
            if len(flights) >= limits.UPSTREAM_VARIANTS:
                return _Full(flights[0].join())
        now = self.loop.time()
        if self.under_way >= self.window.size:
            refusal = self._make_room(query.name, now)
            if refusal is not None:
                return refusal
        packet = pack_query(0, flags, query.spelling, query.type, query.klass, edns)
        flight = Flight(self, key, packet[2:], shape, now)
        self._flights.setdefault(key, []).append(flight)
        self.under_way += 1
        if self._credit < _HEDGE_BURST:
            self._credit += _HEDGE_SHARE
        promise = flight.join()
        flight.start()
        return promise

    async def _board_later(self, query: Query, full: _Full) -> Promise[Outcome] | Reply:
        """Wait until one of the variants of the question has landed, and make it another one's turn."""
        until = self.loop.time() + limits.UPSTREAM_TIME
        while self.loop.time() < until:
            await full.promise
            boarded = self._board(query)
            if not isinstance(boarded, _Full):
                return boarded
            full = boarded
        return self._turn_away("variants")

    def _make_room(self, name: Name, now: float) -> Reply | None:
        """Make room for a question at ``name``; the refusal when its own zone is what fills it."""
        refusal = self._turn_away("max_concurrent" if self.under_way >= self._most else "window")
        if self._census is None or now >= self._counted:
            self._census = Census(
                [flight for flights in self._flights.values() for flight in flights], self.options.zone
            )
            self._counted = now + _CENSUS
        gives_way = self._census.give_way(name)
        if gives_way is None:
            return refusal
        gives_way.give_up(refusal)
        return None

    def _turn_away(self, reason: str) -> Reply:
        self._meters.rejects.cell(reason).value += 1
        if reason == "max_concurrent" and self.options.max_concurrent:
            self._meters.max_concurrent.value += 1
            return failure(REFUSED, f"concurrent queries exceeded maximum {self.options.max_concurrent}", PROXY)
        return _TOO_MANY

    # -- whom to ask

    def choose(self, tried: list[Upstream], now: float) -> Upstream | None:
        """The next server to ask; ``tried`` is cleared when a new round begins.  None: nobody, all are down."""
        upstream = self.choice.next(tried, now)
        if upstream is None:
            self._meters.broken.value += 1
            # CoreDNS: if all are down it is rather the health check that is broken.
            return None if self.options.failfast else self.choice.any()
        return upstream

    def may_ask_again(self, flight: Flight, fresh: bool, now: float) -> bool:
        """Whether a question may be asked once more though its last server has not failed, only kept it waiting.

        ``fresh``: a server is left that has not been tried.  Freely: away from a server that is silent, and back to one
        that loses some of its questions; one that misses most of them is dead or has too much to do already.
        """
        servers = [attempt.upstream.health for attempt in flight.attempts]
        if fresh:
            freely = not any(health.reachable for health in servers)
        else:
            freely = all(health.miss(now) < _LOSSY for health in servers)
        if not freely:
            if self._credit < 1:
                return False
            self._credit -= 1
        self._meters.hedges.value += 1
        return True

    # -- what becomes of a flight

    def look(self) -> None:
        """See how quick the servers are; now and then."""
        quickest = min((upstream.health.rtt for upstream in self.upstreams if upstream.health.rtt), default=0.0)
        self.hedge = max(_HEDGES[0], min(3 * quickest, _HEDGES[1]))

    def landed(self, flight: Flight) -> None:
        """The flight has its outcome."""
        flights = self._flights[flight.key]
        flights.remove(flight)
        if not flights:
            del self._flights[flight.key]
        self.under_way -= 1

    def reply(self, message: Message) -> Reply:
        """An upstream's answer as a Reply: scrubbed, and without what was between it and us."""
        answer, authority, additional = scrub(message, self.options.zone)
        if (
            len(answer) != len(message.answer)
            or len(authority) != len(message.authority)
            or len(additional) != len(message.additional)
        ):
            self._meters.scrubbed.value += 1
        edns = message.edns
        options: tuple[tuple[int, bytes], ...] = ()
        if edns is not None and edns.options:
            options = tuple(option for option in edns.options if option[0] in _PASSED_OPTIONS)
        return Reply(
            message.rcode,
            answer,
            authority,
            additional,
            message.flags & _PASSED_FLAGS,
            ede=message.ede,
            plugin=PROXY,
            options=options,
        )

    def failure(self, error: UpstreamError | None) -> Reply:
        """The reply when no upstream has answered; ``error`` None: nobody was asked."""
        ede = error.ede if error is not None else EDE_NO_REACHABLE_AUTHORITY
        text = str(error) if error is not None else "no healthy proxies"
        return failure(SERVFAIL, text, PROXY, ((ede, _EDE_TEXTS[ede]),))


class _Full(msgspec.Struct, frozen=True):
    """All variants that a question may have are under way."""

    promise: Promise[Outcome]
    """Of one of them."""


class _Meters:
    """The metrics of all groups."""

    def __init__(self, metrics: Metrics) -> None:
        self.broken = metrics.counter(
            "coredns_forward_healthcheck_broken_total",
            "Counter of the number of complete failures of the healthchecks.",
        ).cell()
        self.max_concurrent = metrics.counter(
            "coredns_forward_max_concurrent_rejects_total",
            "Counter of the number of queries rejected because the concurrent queries were at maximum.",
        ).cell()
        self.rejects = metrics.counter(
            "kdns_upstream_rejects_total", "Questions turned away because too much was under way.", ("reason",)
        )
        self.shared = metrics.counter(
            "kdns_upstream_shared_total", "Queries answered with a question that was under way already."
        ).cell()
        self.hedges = metrics.counter(
            "kdns_upstream_hedges_total", "Questions asked once more because an upstream was late."
        ).cell()
        self.scrubbed = metrics.counter(
            "kdns_upstream_scrubbed_total", "Answers with records that did not belong to the question."
        ).cell()
