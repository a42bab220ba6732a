"""debug: let debug lines into the log.

``debug``

Without arguments.  It holds for the whole process as long as one server block has it.  Unlike CoreDNS it does not make
a plugin's failure end the process: the query is answered SERVFAIL and the failure logged, as always.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdns import log
from kdns.corefile import Directive
from kdns.plugin import Plugin, Site


class Debug(Plugin):
    """Turns debug lines on."""

    name = "debug"
    handles = False

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``debug``."""
        for use in uses:
            use.exactly(0)
            use.no_block()
        site.keep(cls.name, (), _DebugLines)
        return cls()


class _DebugLines:
    """On while a configuration that is in force, or about to be, asks for it."""

    def __init__(self) -> None:
        log.set_debug(True)

    def close(self) -> None:
        """No configuration asks any more."""
        log.set_debug(False)
