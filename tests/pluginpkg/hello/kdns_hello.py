"""hello: answer TXT questions for ``hello.ZONE`` with a greeting.

``hello [TEXT]``
"""

from __future__ import annotations

from collections.abc import Sequence

from kdns.corefile import Directive, only
from kdns.message import AA, FOREVER, TXT, Lease, Query, Record, Reply
from kdns.name import Name, from_labels
from kdns.plugin import Next, Plugin, Site


class Hello(Plugin):
    """Greets."""

    name = "hello"
    before = "kubernetes"
    replayable = True

    def __init__(self, zones: Sequence[Name], text: bytes) -> None:
        self._names = {from_labels((b"hello",), zone) for zone in zones}
        self._rdata = bytes((len(text),)) + text

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``hello [TEXT]``."""
        use = only(uses)
        text = use.optional("hello").encode()
        if len(text) > 255:
            raise use.error("the greeting is over 255 octets")
        return cls(site.zones, text)

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Greet, or pass on."""
        if query.type != TXT or query.name not in self._names:
            return await next(query)
        record = Record(query.name, TXT, 60, self._rdata)
        return Reply(answer=(record,), flags=AA, lease=Lease(FOREVER), plugin=self.name)
