"""whoami: tell the client its address, port and transport.

``whoami``

Every query is answered NOERROR without an answer section.  The additional section holds the client's address (A or
AAAA, at the name that was asked) and its port (SRV at ``_udp.`` or ``_tcp.`` below that name).
"""

from __future__ import annotations

from collections.abc import Sequence

from kdns import name, rdata
from kdns.corefile import Directive
from kdns.message import AA, AAAA, SRV, A, Query, Record, Reply
from kdns.plugin import Next, Plugin, Site


class Whoami(Plugin):
    """Answers everything, so it stands near the end of the chain."""

    name = "whoami"
    inline = True

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``whoami``."""
        for use in uses:
            use.exactly(0)
            use.no_block()
        return cls()

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Who asks; never leased, because it depends on who asks."""
        address, port = query.peer
        packed = name.pack_address(address)
        kind = A if len(packed) == 4 else AAAA
        records: tuple[Record, ...] = (Record(query.spelling, kind, 0, packed, query.klass),)
        proto = query.listener.proto.encode()
        if len(query.spelling) + len(proto) + 2 <= name.MAX_NAME:
            owner = bytes((len(proto) + 1,)) + b"_" + proto + query.spelling
            records += (Record(owner, SRV, 0, rdata.srv(0, 0, port, name.ROOT), query.klass),)
        return Reply(flags=AA, additional=records, plugin=self.name)
