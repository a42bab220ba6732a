"""bufsize: bound the size of UDP answers.

``bufsize [SIZE]``

The UDP size that a client offers (EDNS) is lowered to SIZE, 512 to 4096, default 1232; so answers over UDP are at most
SIZE octets, upstream servers are asked for no more, and the client is told.  It also lifts the bound of 1232 octets
that kdns keeps without this plugin.  Clients without EDNS get at most 512 octets in any case.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kdns.corefile import Directive
from kdns.message import Query, Reply
from kdns.plugin import Next, Plugin, Site

_DEFAULT = 1232


class Bufsize(Plugin):
    """Lowers the size on the way in and bounds the reply on the way out."""

    name = "bufsize"
    replayable = True
    blind = True
    inline = True

    def __init__(self, size: int) -> None:
        self._size = size

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``bufsize [SIZE]``; the first of several counts."""
        use = uses[0]
        use.no_block()
        size = use.optional()
        return cls(use.integer(size, 512, 4096) if size else _DEFAULT)

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Ask the rest of the chain with the smaller size."""
        edns = query.edns
        if edns is not None and edns.size > self._size:
            query = query.replace(edns=msgspec.structs.replace(edns, size=self._size))
        return (await next(query)).replace(limit=self._size)
