"""multisocket: serve UDP from several sockets, each with a native thread of its own.

``multisocket [N]``

N (1 … 1024; default: the processors that this process may use) sockets are opened for each address of the server block,
and the kernel spreads the clients over them (SO_REUSEPORT).  A thread that needs no interpreter reads each of them and
answers what the packet cache knows; so kdns uses more than one processor, and a busy interpreter (a large zone, a slow
plugin) does not hold up hot answers.  What the packet cache does not know still goes through the one chain.

It takes the compiled twin of the packet cache (see `kdns.compiled`); without it one socket is served as ever, and a
warning is logged.  Of several blocks on one address the first decides, as in CoreDNS.  TCP is not affected.

Metrics: ``kdns_udp_overflows_total{server}``: queries let go because a thread had handed on more than the chain could
take.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from kdns.compiled import twin
from kdns.corefile import Directive, only
from kdns.plugin import Plugin, Site

MOST = 1024
"""Sockets (CoreDNS: 1024)."""


class Multisocket(Plugin):
    """Sets `Site.sockets`."""

    name = "multisocket"
    handles = False

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``multisocket [N]``."""
        use = only(uses)
        use.no_block()
        text = use.optional()
        count = use.integer(text) if text else len(os.sched_getaffinity(0))
        if count < 1:
            raise use.error(f"num sockets can not be zero or negative: {count}")
        if count > MOST:
            raise use.error(f"num sockets exceeds maximum ({MOST}): {count}")
        if twin("kdns._packetcache") is None:
            site.logger(cls.name).warning("one socket is served: the compiled packet cache is not there")
        else:
            site.sockets = count
        return cls()
