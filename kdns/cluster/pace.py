"""How soon the API server is asked again: after failures, and for whole lists.  `now` is monotonic seconds.

Failures are repeated after 0.1 s, growing to `SLOWEST`, with jitter: never more than one request a second in the long
run, and never a recovery noticed more than two seconds late.  Lists cost the server more: within a spell of trouble
they are 2, 4, 8, … 60 s apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kdns import limits

FASTEST: Final = 0.1
"""Seconds after the first failure of a row; as all that follow, up to half of it less."""
SLOWEST: Final = 1.8
"""Seconds between failures in the long run."""
FIRST_GAP: Final = 2.0
"""Seconds from one list to the next in a spell of trouble; then twice as many each time, up to the next figure."""
LAST_GAP: Final = 60.0
CALM: Final = 30.0
"""A list that was good for so many seconds ends the spell."""
MANNERS: Final = 0.2
"""By which part at most a Retry-After is exceeded, so that not everybody comes back at once."""


class Pace:
    """The pace of one kind."""

    def __init__(self, chance: Callable[[], float]) -> None:
        """``chance``: random numbers from 0 to 1."""
        self.list_at: float | None = None
        """When a list is due; None: none is."""
        self._chance = chance
        self._failures = 0
        self._listed_at = float("-inf")
        self._gap = 0.0

    def steady(self) -> None:
        """All was well for a while: the next failure is the first of a row."""
        self._failures = 0

    def pause(self, after: int) -> float:
        """Seconds to wait after a failure; ``after``: how many the server wants us to wait (0: it did not say)."""
        grown: float = min(SLOWEST, FASTEST * 2 ** min(self._failures, 10))
        self._failures += 1
        wanted = min(after, limits.API_RETRY_AFTER) * (1 + MANNERS * self._chance())
        return max(grown * (0.5 + 0.5 * self._chance()), wanted)

    def want_list(self, now: float) -> None:
        """A list is needed, as soon as there have not been too many."""
        if self.list_at is not None:
            return
        if now - self._listed_at >= CALM:
            self._gap = 0.0
        else:
            self._gap = min(LAST_GAP, max(FIRST_GAP, 2 * self._gap))
        self.list_at = max(now, self._listed_at + self._gap)

    def begin_list(self) -> None:
        """The list that was wanted is asked for."""
        self.list_at = None

    def end_list(self, now: float) -> None:
        """A list is complete."""
        self.list_at = None
        self._listed_at = now
