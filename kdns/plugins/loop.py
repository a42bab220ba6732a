"""loop: find out whether forwarded queries come back.

``loop`` (no arguments, once per server block)

An upstream that leads back here, most often a node's resolv.conf that names the local stub resolver, makes every
forwarded query circle until something breaks.  At start the plugin asks its own server for ``HINFO
<random>.<random>.<zone>``, as CoreDNS does, the zone being the first one of the server block.  A name that nobody else
can know and that is seen a second time has come back.

CoreDNS ends the process then, and takes the cluster's own names down with it.  Here the same line is logged as an
error, and what would be forwarded is answered SERVFAIL with an extended error at once, while all that is answered
before ``forward`` goes on.  Every few seconds another probe finds out whether the loop is still there.

Loops that come up later, or that only some names run into, end too: a question that is under way is not asked again
(see ``kdns.upstream``).

Metrics: ``kdns_loop_detected{zone}``: 1 while the zone's queries come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import asyncio_dgram

from kdns.corefile import Directive, only
from kdns.message import EDE_OTHER, HINFO, IN, RD, SERVFAIL, Query, Reply, failure
from kdns.name import BadName, Name, from_labels, to_text
from kdns.plugin import Next, Plugin, Site
from kdns.wire import pack_query

_VALID: Final = 30.0
"""Seconds after the start in which probes are sent (CoreDNS: 30 s)."""
_AGAIN: Final = 1.0
_ANSWER: Final = 2.0
"""Seconds between probes that got no answer, and for one to get it (CoreDNS: 1 s and 2 s)."""
_STRAGGLERS: Final = 2.0
"""Seconds after its answer in which a probe may still come back (CoreDNS: 2 s)."""
_UNSEEN: Final = 3
"""Probes that may be answered without having come here: by an old configuration, or by a plugin before this one."""
_RECHECK: Final = 5.0
"""Seconds between probes while there is a loop."""
_ADVICE: Final = "see https://coredns.io/plugins/loop#troubleshooting"


class Loop(Plugin):
    """Watches for its own probes."""

    name = "loop"
    replayable = True
    inline = True

    def __init__(self, site: Site) -> None:
        self._site = site
        self._zone: Name = site.zones[0]
        self._log = site.logger(self.name)
        self._detected = site.metrics.gauge(
            "kdns_loop_detected", "Whether forwarded queries of the zone come back.", ("zone",)
        )
        self._address = ""
        self._probe: Name | None = None
        self._seen = 0
        self._looping = False
        self._broken = failure(
            SERVFAIL, f'forwarding loop for zone "{to_text(self._zone)}"', self.name, ((EDE_OTHER, "forwarding loop"),)
        )
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``loop``."""
        use = only(uses)
        use.exactly(0)
        use.no_block()
        return cls(site)

    async def start(self) -> None:
        """Begin to probe, once this configuration answers."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Probe no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        others = [plugin for plugin in self._site.process.plugins if isinstance(plugin, Loop) and plugin is not self]
        # After a reload the gauge may be that of the one who watches the zone now.
        if not any(plugin._looping and plugin._zone == self._zone for plugin in others):
            self._detected.forget(to_text(self._zone))

    def resolve(self, query: Query, next: Next) -> Coroutine[Any, Any, Reply]:
        """Count probes; break the loop."""
        if query.type == HINFO and query.name == self._probe:
            self._seen += 1
            if self._seen > 1:
                self._come_back(query)
                return self._break()
        elif self._looping:
            return self._break()
        # Not awaited here: this link of the chain costs a call, and no coroutine.
        return next(query)

    async def _break(self) -> Reply:
        return self._broken

    def _come_back(self, query: Query) -> None:
        if self._looping:
            return
        self._looping = True
        zone = to_text(self._zone)
        self._detected.cell(zone).value = 1
        host, port = query.peer
        source = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._log.error(
            f'Loop ({source} -> {self._address}) detected for zone "{zone}", {_ADVICE}. '
            f'Query: "HINFO {to_text(query.name)}"'
        )

    async def _watch(self) -> None:
        """Probe until it is known that there is no loop."""
        target = self._target()
        if target is None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + _VALID
        unseen = 0
        while self._looping or (loop.time() < until and unseen < _UNSEEN):
            answered = await self._ask(*target)
            if answered and self._seen == 1:
                # The answer may have been quicker than the loop.
                await asyncio.sleep(_STRAGGLERS)
                if self._seen == 1:
                    break
            unseen += answered and not self._seen
            await asyncio.sleep(_RECHECK if self._looping else _AGAIN)
        self._probe = None
        if self._looping:
            self._looping = False
            self._detected.cell(to_text(self._zone)).value = 0
            self._log.info(f'Loop for zone "{to_text(self._zone)}" is gone')

    def _target(self) -> tuple[str, int] | None:
        """Where this server block listens; None where that cannot be asked over UDP."""
        for label in self._site.listens:
            scheme, _, self._address = label.partition("://")
            host, _, port = self._address.rpartition(":")
            if scheme == "dns" and port != "0":
                return host.strip("[]") or "127.0.0.1", int(port)
        return None

    async def _ask(self, host: str, port: int) -> bool:
        """Send a new probe; whether it was answered."""
        labels = (b"%d" % secrets.randbelow(2**62) for _ in range(2))
        try:
            name = from_labels(labels, self._zone)
        except BadName:
            # A zone so long that no probe fits below it: a name in the zone itself would be no secret.
            return True
        self._probe, self._seen = name, 0
        id = secrets.randbelow(2**16)
        try:
            stream = await asyncio_dgram.connect((host, port))
        except OSError:
            return False
        try:
            async with asyncio.timeout(_ANSWER):
                await stream.send(pack_query(id, RD, name, HINFO, IN, None))
                while (await stream.recv())[0][:2] != id.to_bytes(2, "big"):
                    pass
        except (OSError, TimeoutError, asyncio_dgram.TransportClosed):
            return False
        finally:
            stream.close()
        return True
