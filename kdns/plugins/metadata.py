"""metadata: collect what plugins know about a query, for those that print it or decide by it.

``metadata [ZONES…]``

For queries in ZONES (default: the server block's) every plugin of the block that has something to tell publishes it
under a label with a slash in it, such as ``kubernetes/service`` or ``forward/upstream``.  ``log`` prints a label with
``{/kubernetes/service}``, ``rewrite`` and ``template`` use them, too.  A value is worked out when somebody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdns.corefile import Directive, only
from kdns.message import Query, Reply
from kdns.name import Name, is_under
from kdns.plugin import Next, Plugin, Site


class Metadata(Plugin):
    """Gives the query its labels before the rest of the chain sees it."""

    name = "metadata"
    replayable = True
    blind = True
    inline = True

    def __init__(self, zones: tuple[Name, ...], site: Site) -> None:
        self._zones = zones
        self._site = site
        self._providers: tuple[Plugin, ...] = ()

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``metadata [ZONES…]``."""
        use = only(uses)
        use.no_block()
        return cls(use.zones(use.args, site.zones), site)

    async def start(self) -> None:
        """Find out who has something to tell."""
        self._providers = tuple(
            plugin for plugin in self._site.plugins.values() if type(plugin).metadata is not Plugin.metadata
        )

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Ask the rest of the chain with labels; outside ZONES they are empty, but plugins may add to them."""
        labels: dict[str, Callable[[], str]] = {}
        if any(is_under(query.name, zone) for zone in self._zones):
            for plugin in self._providers:
                labels |= plugin.metadata(query)
        return await next(query.replace(metadata=labels))
