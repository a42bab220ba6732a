"""The one road of a query: packet in, packet out, for every transport.

::

    packet ─ parse_query ─ route (longest zone) ─ chain ─ pack_reply ─ packet cache ─ packet
               │ None, or an error's bytes    │ none: REFUSED

A listener asks the packet cache first and comes here on a miss.  `Handler.handle` runs the road at once as far as it
goes without waiting; the rest of a chain that waits is a `Waiting`, which becomes a task only where it waits for
something that is not kdns's own.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from kdns import limits
from kdns.log import Logger
from kdns.message import DS, FOREVER, IN, REFUSED, SERVFAIL, Listener, Query, Reply, failure
from kdns.name import ROOT, Name, above, parent
from kdns.packetcache import PacketCache
from kdns.plugin import Next, Process
from kdns.promise import Promise
from kdns.querymetrics import NO_ZONE
from kdns.wire import pack_reply, parse_query, reply_limit

Answering: TypeAlias = Coroutine[Any, Any, bytes | None]

_NO_BLOCK: Final = Reply(REFUSED)


class Waiting:
    """A query whose chain waits for something: `park` it."""

    __slots__ = ("_answering", "_future", "_gone", "_handler", "_query", "_settled", "_task")

    _settled: Callable[[Waiting, bytes | None], None]

    def __init__(self, handler: Handler, query: Query, answering: Answering, future: Any) -> None:
        """``answering`` was stepped by hand until it waited for ``future``."""
        self._handler = handler
        self._query = query
        self._gone = False
        self._answering = answering
        self._future = future
        self._task: asyncio.Task[bytes | None] | None = None

    def park(self, settled: Callable[[Waiting, bytes | None], None]) -> None:
        """Go on when what is waited for has come.

        ``settled`` is called once, at the end, with this and the reply: None: stay silent.
        """
        self._settled = settled
        self._handler.in_flight += 1
        self._wait(self._future)

    def cancel(self) -> None:
        """Nobody wants the reply any more; what is parked is settled without one."""
        self._gone = True
        if self._task is not None:
            self._task.cancel()
            return
        self._future.remove_done_callback(self._wake)
        self._step(asyncio.CancelledError())

    def _wait(self, future: Any) -> None:
        self._future = future
        if type(future) is Promise:
            future.add_done_callback(self._wake)
        else:
            self._task = asyncio.get_running_loop().create_task(_finish(self._answering, future))
            self._task.add_done_callback(self._finished)

    def _wake(self, promise: Promise[Any]) -> None:
        self._step(None)

    def _step(self, error: BaseException | None) -> None:
        """Run the coroutine until it waits again, or ends."""
        answering = self._answering
        try:
            future = answering.send(None) if error is None else answering.throw(error)
        except StopIteration as done:
            self._settle(done.value if error is None else None)
        except asyncio.CancelledError as cancelled:
            self._settle(self._cut_off(cancelled))
        except BaseException:
            self._settle(None)
            raise
        else:
            self._wait(future)

    def _finished(self, task: asyncio.Task[bytes | None]) -> None:
        reply: bytes | None = None
        try:
            reply = task.result()
        except asyncio.CancelledError as cancelled:
            reply = self._cut_off(cancelled)
        finally:
            self._settle(reply)

    def _cut_off(self, cancelled: asyncio.CancelledError) -> bytes | None:
        """The reply when something was cancelled: we, or what a plugin waited for, which is a bug like any other."""
        return None if self._gone else self._handler.cut_off(self._query, cancelled)

    def _settle(self, reply: bytes | None) -> None:
        self._handler.in_flight -= 1
        self._settled(self, reply)


class Routes(msgspec.Struct, frozen=True):
    """Who answers what, on one listening address; replaced as a whole by a reload."""

    chains: Mapping[Name, Next | None]
    """Zone → its server block's chain; None: a block without plugins, which refuses."""
    any_class: bool
    """Whether classes other than IN reach the chains."""
    _above: frozenset[Name] = frozenset()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "_above", frozenset(above(self.chains)))

    def one_way(self, apex: Name) -> bool:
        """Whether all names below ``apex`` go the same way: no zone begins there."""
        return apex not in self._above

    def find(self, name: Name, kind: int) -> Next | None:
        """The chain of the longest zone that ``name`` is in; None refuses.

        A DS record belongs to the parent zone (RFC 4035 section 3.1.4.1): it is asked of the longest zone strictly
        above the name, and of the name's own only when there is none but the root.
        """
        if kind != DS:
            return self._longest(name)
        above = self._longest(parent(name), without=ROOT)
        return above or self._longest(name)

    def _longest(self, name: Name, without: Name | None = None) -> Next | None:
        chains = self.chains
        if len(chains) == 1 and ROOT in chains:
            return chains[ROOT] if without != ROOT else None
        at = 0
        while True:
            zone = name[at:]
            if zone in chains and zone != without:
                return chains[zone]
            length = zone[0]
            if not length:
                return None
            at += 1 + length


class Handler:
    """Answers the queries of one listening address."""

    def __init__(self, process: Process, packets: PacketCache, routes: Routes) -> None:
        self.routes = routes
        """Swap it to reload: queries in work finish on the chains that they began with."""
        self.in_flight = 0
        """Queries of this address that wait for something."""
        self._process = process
        self._packets = packets
        self._facts = process.facts
        self._now = process.now
        self._queries = process.queries
        self._panics = process.metrics.counter(
            "coredns_panics_total", "A metrics that counts the number of panics."
        ).cell()
        self._shed = process.metrics.counter(
            "kdns_shed_total", "Queries answered SERVFAIL because too many were waiting."
        ).cell()
        self._log = Logger("")

    def handle(self, packet: bytes, peer: tuple[str, int], listener: Listener, scope: bytes) -> bytes | Waiting | None:
        """Answer one packet: the reply's bytes, None to stay silent, or Waiting.

        ``scope`` tells listeners and transports apart in the packet cache; empty = do not use it.  Never raises.
        """
        query = parse_query(packet, peer, listener)
        if not isinstance(query, Query):
            return query
        answering = self._answer(query, packet, scope)
        try:
            future = answering.send(None)
        except StopIteration as done:
            result: bytes | None = done.value
            return result
        except asyncio.CancelledError as cancelled:
            return self.cut_off(query, cancelled)
        if self.in_flight >= limits.IN_FLIGHT:
            answering.close()
            self._shed.value += 1
            return pack_reply(query, Reply(SERVFAIL), reply_limit(query, _NO_BLOCK))
        return Waiting(self, query, answering, future)

    def cut_off(self, query: Query, error: BaseException) -> bytes:
        """The reply to a query whose chain has ended with an error that no plugin may raise."""
        reply = self._recover(query, error)
        packed = pack_reply(query, reply, reply_limit(query, reply))
        if reply.report is not None:
            reply.report(1, query.size, len(packed), 0.0)
        return packed

    async def resolve(self, query: Query) -> Reply:
        """Route a query and ask its chain.  Never raises; a query of kdns to itself comes in here."""
        if query.depth > limits.CHASE_DEPTH:
            return failure(SERVFAIL, "too many CNAME chases")
        chain = self._route(query)
        if chain is None:
            return self._refuse(query)
        try:
            return await chain(query)
        except Exception as error:  # noqa: BLE001 - a plugin's bug costs one answer, never the process
            return self._recover(query, error)

    def _route(self, query: Query) -> Next | None:
        routes = self.routes
        return routes.find(query.name, query.type) if query.klass == IN or routes.any_class else None

    def _panic(self, query: Query, error: BaseException) -> None:
        self._panics.value += 1
        self._log.error(f'Recovered from panic in server: "{query.listener.server}" {error!r}')

    def _recover(self, query: Query, error: BaseException) -> Reply:
        self._panic(query, error)
        return Reply(SERVFAIL, report=self._queries.tally(query, NO_ZONE, SERVFAIL, "").sent)

    def _refuse(self, query: Query) -> Reply:
        return Reply(REFUSED, report=self._queries.tally(query, NO_ZONE, REFUSED, "").sent)

    async def _answer(self, query: Query, packet: bytes, scope: bytes) -> bytes | None:
        started = self._now()
        epoch = self._facts.epoch
        routes = self.routes
        chain = self._route(query)
        # As `resolve`, without the cost of one more coroutine; a reply that cannot be packed is a plugin's bug, too.
        try:
            reply = self._refuse(query) if chain is None else await chain(query)
            if reply.drop:
                return None
            packed = pack_reply(query, reply, reply_limit(query, reply))
        except Exception as error:  # noqa: BLE001 - a plugin's bug costs one answer, never the process
            reply = self._recover(query, error)
            packed = pack_reply(query, reply, reply_limit(query, reply))
        now = self._now()
        try:
            report = reply.report
            if report is not None:
                report(1, query.size, len(packed), now - started)
            lease = reply.lease
            unchanged = routes is self.routes and (epoch == self._facts.epoch or not lease.facts)
            if lease.until > now and scope and unchanged:
                denial = lease.denial
                if denial is not None and (query.klass != IN or not routes.one_way(denial.apex)):
                    lease = lease.shrink(FOREVER)
                self._packets.put(scope, packet, packed, lease, now, report)
        except Exception as error:  # noqa: BLE001 - what a plugin wants done beside must not cost the answer
            self._panic(query, error)
        return packed


async def _finish(answering: Answering, future: Any) -> bytes | None:
    return await _resume(answering, future)


@types.coroutine
def _resume(answering: Answering, future: Any) -> Generator[Any, Any, bytes | None]:
    """Await a coroutine that was stepped by hand until it waited for ``future``."""
    try:
        while True:
            try:
                value = yield future
            except BaseException as error:  # noqa: BLE001 - whatever the loop throws in belongs to the coroutine
                future = answering.throw(error)
            else:
                future = answering.send(value)
    except StopIteration as done:
        result: bytes | None = done.value
        return result
