"""What a plugin author reads: the Plugin, its Site, the order of the chain, and how the chain is built.

A plugin answers a query, passes it on, or passes it on and returns another reply::

    class Hello(Plugin):
        name = "hello"
        replayable = True

        @classmethod
        def setup(cls, uses, site):
            if uses[0].args:
                raise uses[0].error("takes no arguments")
            return cls()

        async def resolve(self, query, next):
            reply = await next(query)
            return reply

Lease rules (see `message.Lease`):

1. Only a plugin that makes an answer grants ``until``.  What depends on who asks grants none.
2. Everyone above may only shrink it: ``until`` takes the minimum, ``facts`` the union; ``until = 0`` keeps the facts.
3. Under a plugin that is not ``replayable`` the chain builder sets ``until`` to 0.
4. A reply that was computed before a fact was dropped is not stored after it: see `Facts.epoch`.
5. What is owed per query is owed for replays too: a plugin that counts adds a `message.Duty` to the lease.
6. A lease's ``denial`` says that an NXDOMAIN is true for other names, too (`kdns.denial`).  No plugin sees those any
   more, so it is granted below plugins that are ``blind`` only: see `Plugin.prove`.

A plugin of kdns itself never awaits anything that needs a current task (``asyncio.timeout``, ``wait_for``): chains are
stepped by hand, even while they wait for an upstream, and become a task only when they wait for something of asyncio's.
Third-party plugins need not know: they get a task of their own unless they say ``inline = True``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, TypeVar

import msgspec

from kdns.log import Logger
from kdns.message import FOREVER, SERVFAIL, Fact, Query, Reply, failure
from kdns.metrics import Metrics
from kdns.name import Name, above
from kdns.querymetrics import QueryMetrics

if TYPE_CHECKING:
    from kdns.corefile import Directive

API: Final = 1
"""Version of this contract; a third-party plugin states the one it was written for as ``api``."""

ORDER: Final[tuple[str, ...]] = (
    "root", "metadata", "geoip", "cancel", "proxyproto", "quic", "grpc_server", "https", "https3", "timeouts",
    "multisocket", "reload", "nsid", "bufsize", "bind", "debug", "trace", "ready", "health", "pprof", "shed",
    "prometheus", "errors", "log", "dnstap", "local", "dns64", "any", "chaos", "loadbalance", "tsig", "rewrite",
    "autopath", "acl", "cache", "header", "dnssec", "tls", "minimal", "template", "transfer", "hosts", "route53",
    "azure", "clouddns", "k8s_external", "kubernetes", "file", "auto", "secondary", "etcd", "loop", "forward", "grpc",
    "erratic", "whoami", "on", "sign", "view", "nomad",
)  # fmt: skip
"""The chain from the outermost plugin inwards: CoreDNS v1.14.7's ``plugin.cfg``, whatever the order in the Corefile."""

Next: TypeAlias = Callable[[Query], Coroutine[Any, Any, Reply]]
"""The rest of the chain."""

T = TypeVar("T")


class Plugin:
    """One directive of one server block."""

    name: ClassVar[str] = ""
    """Directive, metric label and name in logs."""
    api: ClassVar[int] = API
    replayable: bool = False
    """True: I keep the lease rules above.  May be set per instance."""
    blind: bool = False
    """True: when a name does not exist, what I do depends on nothing in the name but which of the zones ``apart`` it is
    in.  May be set per instance."""
    apart: Iterable[Name] = ()
    """Zones that I tell apart although I am ``blind``; final when ``setup`` returns."""
    inline: ClassVar[bool] = False
    """True: I await nothing that needs a current task."""
    handles: bool = True
    """False: configuration only, not a link of the chain.  May be set per instance."""
    before: ClassVar[str] = ""
    """Third-party plugins: stand directly before this directive in the chain (or ``after`` one)."""
    after: ClassVar[str] = ""

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """Read the directive's occurrences in one server block, in textual order, and check them all.

        Raises CorefileError (``use.error("…")``) for what is wrong.  May read files; must not listen, connect or spawn.
        """
        raise NotImplementedError

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Answer, or ``return await next(query)``."""
        return await next(query)

    def prove(self, barred: frozenset[Name]) -> None:
        """I may grant leases with a `denial.Denial`, but none whose apex is in ``barred``.

        Plugins above me tell names below those apart.  The chain builder calls it, unless one of them is not ``blind``.
        """

    async def start(self) -> None:
        """Begin background work.  Runs before this configuration answers; raising refuses the whole (re)load."""

    async def drain(self) -> None:
        """The process is about to end: runs while everything still answers (lameduck).  Not called on reload."""

    async def stop(self) -> None:
        """This configuration answers no more: end background work."""

    def unready(self) -> str:
        """Why ``/ready`` should say no; empty when ready."""
        return ""

    def metadata(self, query: Query) -> dict[str, Callable[[], str]]:
        """Labels for the ``metadata`` plugin: ``{"name/label": function}``; the functions run only when read."""
        return {}


class Facts:
    """The board on which changes are posted: who replays answers subscribes, who owns data drops facts."""

    def __init__(self) -> None:
        self.epoch = 0
        """Moves with every drop.  Note it before asking the chain; store the reply only if it has not moved or the
        reply stands on no facts."""
        self._subscribers: list[Callable[[Iterable[Fact]], None]] = []

    def subscribe(self, forget: Callable[[Iterable[Fact]], None]) -> Callable[[], None]:
        """Call ``forget(facts)`` at each drop, at once; the result takes the subscription back."""
        self._subscribers.append(forget)
        return lambda: self._subscribers.remove(forget)

    def drop(self, facts: Iterable[Fact]) -> None:
        """These have changed: no answer that stood on one of them is repeated from now on.

        What a subscriber raises is raised again when all have been told.
        """
        facts = frozenset(facts)
        if not facts:
            return
        self.epoch += 1
        with contextlib.ExitStack() as told:
            for forget in reversed(self._subscribers):
                told.callback(forget, facts)


class Warehouse:
    """What outlives a reload: cache stores, upstream health, cluster indexes, by a key that tells what they are for.

    Each (re)load takes what it needs through its `Site`; when it is in force the rest is closed, and when it is
    refused what was made for it is closed.
    """

    def __init__(self) -> None:
        self._things: dict[tuple[Any, ...], Any] = {}

    def take(self, key: tuple[Any, ...], make: Callable[[], T], taken: set[tuple[Any, ...]]) -> T:
        """The thing under ``key``, made when it is not there; the key joins ``taken``."""
        taken.add(key)
        if key not in self._things:
            self._things[key] = make()
        thing: T = self._things[key]
        return thing

    def keep_only(self, keys: set[tuple[Any, ...]]) -> None:
        """Close and forget everything under other keys."""
        for key in [key for key in self._things if key not in keys]:
            thing = self._things.pop(key)
            close = getattr(thing, "close", None)
            if close is not None:
                close()


Responder: TypeAlias = Callable[[str], tuple[int, str, bytes]]
"""HTTP GET: the target with its query string → (status, content type, body)."""


class HttpPath(msgspec.Struct, frozen=True):
    """One path on the process's HTTP face."""

    address: str
    """``host:port``; an empty host means all addresses."""
    path: str
    respond: Responder
    tls: ssl.SSLContext | None = None
    """None: plain HTTP."""


class Process:
    """What all server blocks of the process share, and what outlives a reload."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        """Monotonic seconds."""
        self.facts = Facts()
        self.metrics = Metrics()
        self.queries = QueryMetrics(self.metrics)
        """Who counts queries."""
        self.warehouse = Warehouse()
        self.ask: Callable[[Query], Awaitable[Reply]] = _no_server
        """A question to the whole server, server-block routing included."""
        self.asked: Callable[[], int] = lambda: 0
        """How many queries have come to all listeners so far."""
        self.plugins: list[Plugin] = []
        """All plugins of the configuration that is in force, in chain order."""
        self.stopping = False
        """The process is about to end."""


async def _no_server(query: Query) -> Reply:
    return failure(SERVFAIL, "the server is not running")


class Site:
    """Where a plugin stands: its server block and the process around it."""

    def __init__(self, process: Process, zones: tuple[Name, ...], directory: str = ".", listens: tuple[str, ...] = ()):
        self.process = process
        self.listens = listens
        """``server`` metric labels of the block's listeners (``dns://:53``), the first key's first; final once all
        plugins are set up, when ``bind`` has been seen."""
        self.zones = zones
        """The block's zones, folded: the default scope of a plugin."""
        self.directory = directory
        """Directory of the Corefile."""
        self.root = ""
        """Base directory for relative file names (the ``root`` directive); empty = the working directory."""
        self.plugins: dict[str, Plugin] = {}
        """The block's plugins by directive, complete once all are set up: look others up in ``start`` or later."""
        self.bind: tuple[str, ...] = ()
        """Addresses to listen on (the ``bind`` directive); empty = all."""
        self.sockets = 0
        """UDP sockets for each address, each with a native thread (the ``multisocket`` directive); 0: one, without."""
        self.tls: ssl.SSLContext | None = None
        """For the block's encrypted listeners (the ``tls`` directive)."""
        self.http: list[HttpPath] = []
        """HTTP paths to serve; add to it in ``setup``."""
        self.directives: tuple[Directive, ...] = ()
        """What the block says, in textual order."""
        self.taken: set[tuple[Any, ...]] = set()

    @property
    def now(self) -> Callable[[], float]:
        """The monotonic clock, in seconds."""
        return self.process.now

    @property
    def facts(self) -> Facts:
        """Where to drop facts and learn of dropped ones."""
        return self.process.facts

    @property
    def metrics(self) -> Metrics:
        """Where counters come from."""
        return self.process.metrics

    def keep(self, kind: str, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Something that outlives a reload as long as a configuration asks for it under the same kind and key."""
        return self.process.warehouse.take((kind, *key), make, self.taken)

    def path(self, file: str) -> str:
        """A file name from the Corefile, relative to ``root``."""
        import os.path

        return os.path.join(self.root, file)

    async def ask(self, query: Query) -> Reply:
        """A question to the whole server (CoreDNS: ``upstream.Lookup``), as deep as `limits.CHASE_DEPTH` allows."""
        reply = await self.process.ask(query.replace(depth=query.depth + 1))
        # What is proven is proven for that question, not for the one that led to it.
        return reply.leased(reply.lease.shrink(FOREVER)) if reply.lease.denial is not None else reply

    def logger(self, name: str) -> Logger:
        """A logger for the plugin of this name."""
        return Logger(name)


class EndOfChain:
    """What answers when no plugin did: SERVFAIL, with CoreDNS's text, which names the last plugin."""

    def __init__(self, last: str) -> None:
        self._reply = failure(SERVFAIL, f"plugin/{last}: no next plugin found")

    async def __call__(self, query: Query) -> Reply:
        """Answer as any Next."""
        return self._reply


def build_chain(plugins: Iterable[Plugin], last: Next | None = None) -> Next:
    """Nest the plugins, outermost first, into one function; ``last`` answers when none of them did."""
    answering = [plugin for plugin in plugins if plugin.handles]
    _tell_who_may_prove(answering)
    call = last or EndOfChain(answering[-1].name if answering else "")
    for plugin in reversed(answering):
        call = _link(plugin, call)
    return call


def _tell_who_may_prove(plugins: Iterable[Plugin]) -> None:
    """Every plugin that only blind ones are above, outermost first.

    Said once here, this costs no query anything; cutting leases on their way up would cost each link a coroutine.
    """
    barred: frozenset[Name] = frozenset()
    for plugin in plugins:
        plugin.prove(barred)
        if not plugin.blind:
            return
        barred |= above(plugin.apart)


def _link(plugin: Plugin, inner: Next) -> Next:
    resolve = plugin.resolve if plugin.inline else _in_task(plugin)
    if plugin.replayable:
        return lambda query: resolve(query, inner)

    async def call(query: Query) -> Reply:
        reply = await resolve(query, inner)
        if reply.lease.until:
            return reply.leased(reply.lease.shrink(0.0))
        return reply

    return call


def _in_task(plugin: Plugin) -> Callable[[Query, Next], Coroutine[Any, Any, Reply]]:
    async def resolve(query: Query, inner: Next) -> Reply:
        task = asyncio.create_task(plugin.resolve(query, inner))
        try:
            return await task
        except GeneratorExit:
            # Who steps the chain by hand has dropped it, and what was awaited does not learn of that by itself.
            task.cancel()
            raise

    return resolve
