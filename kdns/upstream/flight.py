"""One question under way: which servers have been asked, who waits, and what happens next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from kdns import limits
from kdns.message import TC, Reply
from kdns.promise import Promise
from kdns.upstream.ask import Ask, Attempt, UpstreamError, timed_out
from kdns.wire import Message

if TYPE_CHECKING:
    from kdns.upstream.group import Group
    from kdns.upstream.server import Upstream

Outcome: TypeAlias = tuple[Reply, str]
"""The reply, and which upstream it came from (the last one asked when none answered)."""

Shape: TypeAlias = tuple[int, str, bool, tuple[tuple[int, bytes], ...]]
"""What else than name, type and class makes an answer: flags, transport, DO, EDNS options."""

_RETRY: Final = 0.5
"""Seconds until a server that has been asked already is asked again."""


class Flight(Ask):
    """A question under way to the servers of a `Group`."""

    airborne = True
    sends = 0
    failovers = 0
    fallback: tuple[Message, str] | None = None
    """An answer that will do if nothing better comes."""
    error: UpstreamError | None = None
    _tick_at = 0

    def __init__(self, group: Group, key: bytes, tail: bytes, shape: Shape, now: float) -> None:
        """``key``: name (folded), type and class."""
        self.key, self.name, self.kind, self.tail = key, key[:-4], key[-4:], tail
        self.group = group
        self.shape = shape
        self.proto = shape[1]
        self.began = self.launched = now
        self.waiters: list[Promise[Outcome]] = []
        self.attempts: list[Attempt] = []
        self.tried: list[Upstream] = []
        """Asked in this round."""
        self.left = group.tries

    @property
    def done(self) -> bool:
        """Whether all who waited have their answer."""
        return not self.airborne

    def join(self) -> Promise[Outcome]:
        """A promise of one's own for the outcome: one who goes away takes nobody with him."""
        promise: Promise[Outcome] = Promise(self.group.wakeups)
        self.waiters.append(promise)
        return promise

    def start(self) -> None:
        """Ask the first server."""
        if self._launch(self.began):
            self._tick_at = self.group.wheel.at(self.began + min(self.group.hedge, self.group.patience), self)
        else:
            self._fail()

    def looped(self, peer: tuple[str, int]) -> bool:
        """Whether ``peer``, who asks the same, is one of our own sockets: then an upstream leads back to us.

        That upstream is asked no more in this flight.
        """
        for attempt in self.attempts:
            if attempt.carrier is not None and attempt.carrier.local == peer:
                attempt.carrier.forget(attempt)
                self.failed(attempt, UpstreamError(f"forwarding loop: {attempt.upstream.to} leads back here"))
                return True
        return False

    def give_up(self, reply: Reply) -> None:
        """Another question needs the room."""
        self._land((reply, self._last_asked()))

    # -- Ask

    def answered(self, attempt: Attempt, message: Message) -> None:
        """An upstream has answered."""
        group = self.group
        now = group.loop.time()
        self.attempts.remove(attempt)
        upstream = attempt.upstream
        upstream.answered(attempt, message, now)
        if group.window.answered(now, now - attempt.sent, group.under_way):
            group.look()
        options = group.options
        if message.flags & TC and options.prefer_udp and attempt.proto == "udp":
            self.fallback = (message, upstream.to)
            if self._send(upstream, "tcp", now):
                return
        if options.failover and message.rcode in options.failover:
            self.failovers += 1
            self.fallback = (message, upstream.to)
            if self.failovers < len(group.upstreams) and (self._launch(now, 1) or self.attempts):
                return
        self._land((group.reply(message), upstream.to))

    def failed(self, attempt: Attempt, error: UpstreamError) -> None:
        """Nothing will come of this attempt: on to the next server at once."""
        self.attempts.remove(attempt)
        self.error = error
        attempt.upstream.doubt()
        if attempt.guards is not None:
            # There is no safe way: the answer on the other one is better than none.
            attempt.guards.guarded = False
        elif self._launch(self.group.loop.time()):
            return
        if not self.attempts:
            self._fail()

    def distrust(self, attempt: Attempt) -> None:
        """Ask over TCP, where nobody can forge, and take that answer."""
        if self._send(attempt.upstream, "tcp", self.group.loop.time(), attempt):
            attempt.guarded = True

    # -- Timed

    def tick(self, now: float) -> None:
        """See who is late, and what to do about it."""
        if not self.airborne:
            return
        group = self.group
        for attempt in self.attempts:
            if not attempt.late and now - attempt.sent >= group.hedge:
                attempt.late = True
                attempt.upstream.missed(attempt, now)
            if not attempt.overdue and now - attempt.sent >= group.options.read_timeout:
                attempt.overdue = True
                attempt.upstream.doubt()
        age = now - self.began
        if age >= group.longest or (age >= group.patience and not self._hope()):
            self._fail()
            return
        fresh = group.choice.has_fresh(self.tried, now)
        if self.left and now >= self.launched + self._wait(fresh) and group.may_ask_again(self, fresh, now):
            self._launch(now)
            fresh = group.choice.has_fresh(self.tried, now)
        self._tick_at = group.wheel.at(self._next_tick(now, self._wait(fresh)), self)

    def _wait(self, fresh: bool) -> float:
        """How long after the last attempt the next one may follow."""
        return self.group.hedge if fresh else max(_RETRY, self.group.hedge)

    def _next_tick(self, now: float, wait: float) -> float:
        group = self.group
        times = [self.began + group.patience, self.began + group.longest]
        times += [attempt.sent + group.hedge for attempt in self.attempts if not attempt.late]
        if self.left:
            times.append(self.launched + wait)
        # Without credit for another attempt (`Group.may_ask_again`) look again soon.
        return min((time for time in times if time > now), default=now + self.group.hedge)

    def _hope(self) -> bool:
        """Whether an upstream that was asked lives, so that it is this name that takes so long."""
        return any(
            attempt.upstream.health.heard > self.began or not attempt.upstream.settings.max_fails
            for attempt in self.attempts
        )

    # -- attempts

    def _launch(self, now: float, free: int = 0) -> bool:
        """Ask the next server; ``free``: so many attempts are not counted.  False when that is not possible."""
        self.left += free
        while self.left and self.airborne:
            self.left -= 1
            upstream = self.group.choose(self.tried, now)
            if upstream is None:
                return False
            self.tried.append(upstream)
            if self._send(upstream, self.proto, now):
                self.launched = now
                return True
        return False

    def _send(self, upstream: Upstream, proto: str, now: float, guards: Attempt | None = None) -> bool:
        if self.sends >= limits.UPSTREAM_SENDS:
            return False
        self.sends += 1
        attempt = Attempt(self, upstream, proto, now)
        if guards is not None:
            attempt.guards = guards
        self.attempts.append(attempt)
        try:
            upstream.send(attempt)
        except UpstreamError as error:
            self.attempts.remove(attempt)
            self.error = error
            upstream.doubt()
            return False
        return True

    # -- the end

    def _fail(self) -> None:
        """Nobody answered."""
        if self.fallback is not None:
            message, to = self.fallback
            self._land((self.group.reply(message), to))
            return
        error = self.error
        if self.attempts:
            carrier = self.attempts[-1].carrier
            error = timed_out(carrier.waits_for if carrier is not None else self._last_asked())
        self._land((self.group.failure(error), self._last_asked()))

    def _last_asked(self) -> str:
        return self.tried[-1].to if self.tried else ""

    def _land(self, outcome: Outcome) -> None:
        """Tell all who wait."""
        self.airborne = False
        group = self.group
        group.landed(self)
        # Thousands that have landed would push what is needed out of the processor's cache until their time comes.
        group.wheel.forget(self._tick_at, self)
        for attempt in self.attempts:
            if attempt.carrier is not None:
                attempt.carrier.forget(attempt)
        self.attempts.clear()
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.keep(outcome)
