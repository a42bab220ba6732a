"""cancel: give up on a query that takes too long.

``cancel [DURATION]``

A query that is not answered within DURATION (default 5001ms) is answered SERVFAIL, and what waits for it is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kdns.corefile import Directive
from kdns.message import SERVFAIL, Query, Reply, failure
from kdns.plugin import Next, Plugin, Site

_DEFAULT = 5.001


class Cancel(Plugin):
    """A deadline around the rest of the chain."""

    name = "cancel"
    replayable = True
    blind = True
    inline = False

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``cancel [DURATION]``; the last one of several counts."""
        seconds = _DEFAULT
        for use in uses:
            use.no_block()
            text = use.optional()
            seconds = use.duration(text, low=float("-inf")) if text else _DEFAULT
            if seconds <= 0:
                raise use.error(f'invalid negative duration: "{text}"')
        return cls(seconds)

    async def resolve(self, query: Query, next: Next) -> Reply:
        """The chain's reply, or SERVFAIL when the time is over."""
        deadline = asyncio.timeout(self._seconds)
        try:
            async with deadline:
                return await next(query)
        except TimeoutError:
            if not deadline.expired():
                raise
            return failure(SERVFAIL, "context deadline exceeded", self.name)
