"""What a rewrite rule is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from kdns.message import Query, Reply

Revert: TypeAlias = Callable[[Reply], Awaitable[Reply]]
"""What a rule that was applied does to the reply on its way out."""

Applied: TypeAlias = tuple[Query, tuple[Revert, ...]]
"""The query as the rule leaves it, and what it does to the reply.  The last one is done first."""


class Rule(Protocol):
    """One ``rewrite`` line, without its ``continue`` or ``stop``."""

    def apply(self, query: Query, text: str) -> Applied | None:
        """What the rule does to a query whose name reads ``text`` in lower case; None when it is not meant.

        Raises BadName when the name would be none any more.
        """
