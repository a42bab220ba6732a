"""forward: ask other servers.

``forward FROM TO… { OPTIONS }``, several times in a server block for several zones (stub domains): they are tried in
textual order, the first one that covers the name is asked.  A TO is an address with an optional port, with ``dns://``
or ``tls://`` before it; a file like ``/etc/resolv.conf``; or a host name, looked up once at start.

Options (CoreDNS's all): ``except NAME…``, ``force_tcp``, ``prefer_udp``, ``expire DUR`` (10s), ``max_age DUR``,
``max_idle_conns N``, ``read_timeout DUR`` (2s), ``max_fails N`` (2), ``max_connect_attempts N``,
``tls [CERT KEY] [CA]``, ``tls_servername NAME``, ``policy random|round_robin|sequential``,
``health_check DUR [no_rec] [domain NAME]``, ``max_concurrent N``, ``next RCODE…``, ``next_on_nodata``,
``failfast_all_unhealthy_upstreams``, ``failover RCODE…``, ``source_address IP``, ``resolver IP[:PORT]…``,
``doh_method GET|POST`` (read, but there are no ``https://`` upstreams).

The same question asked by many is asked upstream once; a late server's question goes to another one as well; answers
are taken only if they are to the question that was asked, and passed on without records that don't belong to it.  See
``kdns.upstream`` for how, and docs/plugins/forward.md for all options.

Metrics: ``coredns_proxy_request_duration_seconds``, ``coredns_proxy_healthcheck_failures_total``,
``coredns_proxy_conn_cache_hits_total`` and ``_misses_total``, ``coredns_forward_healthcheck_broken_total``,
``coredns_forward_max_concurrent_rejects_total``, and ``kdns_upstream_*``.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from kdns.corefile import CorefileError, Directive
from kdns.message import NOERROR, Query, Reply
from kdns.plugin import Next, Plugin, Site
from kdns.plugins.forward.options import Stub, read_stub
from kdns.plugins.forward.targets import look_up
from kdns.upstream import Group, Upstream, UpstreamError, Upstreams


class Forward(Plugin):
    """Asks the servers of its first line that covers the name."""

    name = "forward"
    replayable = True
    inline = True

    def __init__(self, stubs: Sequence[Stub], site: Site) -> None:
        self._stubs = stubs
        self._home: Upstreams = site.keep("upstreams", (), lambda: Upstreams(site.metrics))
        self._taken: list[Upstream] = []
        self._lines: list[tuple[Stub, Group]] = []

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """Read all ``forward`` lines of the server block."""
        log = site.logger(cls.name)
        return cls([read_stub(use, site, log) for use in uses], site)

    async def start(self) -> None:
        """Look up host names and get hold of the servers.  Raises CorefileError."""
        for stub in self._stubs:
            targets = await look_up(stub.use, stub.targets, stub.resolvers, self._home)
            servers: list[Upstream] = []
            for target in targets:
                try:
                    servers.append(self._home.take(stub.settings(target)))
                except UpstreamError as error:
                    raise CorefileError(stub.use.file, stub.use.line, str(error), self.name) from None
                self._taken.append(servers[-1])
            self._lines.append((stub, Group(servers, stub.group, self._home)))

    async def stop(self) -> None:
        """Let go of the servers; the next configuration may have got hold of them already."""
        while self._taken:
            self._home.release(self._taken.pop())

    def resolve(self, query: Query, next: Next) -> Coroutine[Any, Any, Reply]:
        """Ask upstream if a line covers the name."""
        if len(self._lines) == 1:
            stub, group = self._lines[0]
            return group.ask(query) if stub.covers(query.name) else next(query)
        return self._try_lines(query, next)

    async def _try_lines(self, query: Query, next: Next) -> Reply:
        name = query.name
        lines = self._lines
        for place, (stub, group) in enumerate(lines, 1):
            if stub.covers(name):
                reply = await group.ask(query)
                if place < len(lines) and _hands_on(stub, reply):
                    continue
                return reply
        return await next(query)


def _hands_on(stub: Stub, reply: Reply) -> bool:
    """Whether the following ``forward`` lines are to be tried as well: ``next`` and ``next_on_nodata``."""
    if reply.error:
        return False
    return reply.rcode in stub.next_rcodes or (stub.next_on_nodata and reply.rcode == NOERROR and not reply.answer)
