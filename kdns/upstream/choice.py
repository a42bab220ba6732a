"""Which of several servers is asked next: the best ones by their health, among these as the policy says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdns.upstream.ask import random_numbers
from kdns.upstream.health import DOWN, GOOD, SILENT, WORSE

if TYPE_CHECKING:
    from kdns.upstream.server import Upstream


class Choice:
    """Chooses among the servers of a group."""

    def __init__(self, upstreams: Sequence[Upstream], policy: str) -> None:
        """``policy``: ``random``, ``round_robin`` or ``sequential``."""
        self._upstreams = upstreams
        self._policy = policy
        self._random = random_numbers()
        self._turn = 0

    def any(self) -> Upstream:
        """One of them by chance."""
        return self._upstreams[next(self._random) % len(self._upstreams)]

    def next(self, tried: list[Upstream], now: float) -> Upstream | None:
        """The next one to ask after those ``tried``, which is cleared when all have been.  None when all are down."""
        first = not tried
        if first:
            for upstream in self._upstreams:
                if not upstream.health.spotless:
                    break
            else:
                return self._by_policy(self._upstreams, True)
        standings = self._standings(now)
        best = min(standings)
        if best == DOWN:
            return None
        line = self._fresh(tried, standings)
        if not line:
            tried.clear()
            line = self._fresh(tried, standings)
        return self._by_policy(line, first)

    def has_fresh(self, tried: list[Upstream], now: float) -> bool:
        """Whether one is left that has not been tried, and is not silent when others are not."""
        return len(tried) < len(self._upstreams) and bool(self._fresh(tried, self._standings(now)))

    def _fresh(self, tried: list[Upstream], standings: list[int]) -> list[Upstream]:
        """The best of those that have not been tried, but none that is silent when others are not."""
        pairs = [pair for pair in zip(self._upstreams, standings, strict=True) if pair[0] not in tried]
        best = min((standing for _, standing in pairs), default=DOWN)
        if best >= SILENT and best > min(standings):
            return []
        return [upstream for upstream, standing in pairs if standing == best]

    def _standings(self, now: float) -> list[int]:
        best = min(upstream.health.miss(now) for upstream in self._upstreams)
        standings = [upstream.health.standing(now, best) for upstream in self._upstreams]
        if self._policy == "sequential":
            # The order is a wish of the operator's: a slow first server is still the first.
            return [GOOD if standing == WORSE else standing for standing in standings]
        return standings

    def _by_policy(self, line: Sequence[Upstream], first: bool) -> Upstream:
        policy = self._policy
        if len(line) == 1 or policy == "sequential":
            return line[0]
        if policy == "random":
            return line[next(self._random) % len(line)]
        if first:
            self._turn += 1
            at = self._turn % len(self._upstreams)
            for upstream in (*self._upstreams[at:], *self._upstreams[:at]):
                if upstream in line:
                    return upstream
        return line[0]
