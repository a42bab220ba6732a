"""What is known about how well another server answers, and what follows from it for the choice of server.

Evidence of three kinds, each slower and surer than the one before::

    a question is late               → it counts as missed; a probe is sent             standing
    many questions are late          → the server is worse than the others              WORSE
    the probe is late too            → the server is silent                             SILENT
    more than max_fails probes fail  → the server is down, as CoreDNS sees it           DOWN

Any answer ends SILENT and DOWN.  WORSE wears off with time, so that a few questions find out whether it got better.
Pure: ``now`` is an argument, in seconds.
"""

from __future__ import annotations

import math
from typing import Final

GOOD: Final = 0
WORSE: Final = 1
SILENT: Final = 2
DOWN: Final = 3

WORSE_BY: Final = 0.2
"""A server is WORSE when it misses this much more of its questions than the best one does."""
_WEIGHT: Final = 1 / 16
_HALF_LIFE: Final = 5.0


class Health:
    """The health of one upstream."""

    __slots__ = ("_miss", "_miss_at", "fails", "heard", "max_fails", "rtt", "silent", "spotless")

    def __init__(self, max_fails: int) -> None:
        self.max_fails = max_fails
        """0: it is never thought to be silent or down."""
        self.fails = 0
        """Probes that failed in a row."""
        self.silent = False
        self.spotless = True
        """There is nothing at all against it."""
        self.heard = -math.inf
        """When anything came from it last."""
        self.rtt = 0.0
        """Smoothed seconds to an answer; 0 = none so far."""
        self._miss = 0.0
        self._miss_at = 0.0

    def answered(self, now: float, took: float, late: bool) -> None:
        """A question was answered after ``took`` seconds; ``late``: it has been counted as missed."""
        self.heard = now
        self.rtt = self.rtt + (took - self.rtt) / 8 if self.rtt else took
        if not self.spotless:
            self.alive(now)
            if not late:
                self._count_miss(now, 0.0)

    def missed(self, now: float) -> None:
        """A question is late."""
        self._count_miss(now, 1.0)

    def alive(self, now: float) -> None:
        """Something came."""
        self.heard = now
        self.silent = False
        self.fails = 0
        self.spotless = not self._miss

    def probe_late(self) -> None:
        """A probe is late."""
        self.silent = self.max_fails > 0
        self.spotless = False

    def probe_failed(self) -> None:
        """A probe was not answered at all."""
        self.fails += 1
        self.probe_late()

    @property
    def down(self) -> bool:
        """Whether more than ``max_fails`` probes failed (CoreDNS's rule)."""
        return self.fails > self.max_fails > 0

    @property
    def reachable(self) -> bool:
        """Neither silent nor down."""
        return not self.silent and not self.down

    def miss(self, now: float) -> float:
        """The share of its questions that it is likely to miss, 0 … 1."""
        if not self._miss:
            return 0.0
        return float(self._miss * 0.5 ** ((now - self._miss_at) / _HALF_LIFE))

    def standing(self, now: float, best_miss: float) -> int:
        """GOOD, WORSE, SILENT or DOWN; ``best_miss`` is the `miss` of the best of the servers to choose from."""
        if self.down:
            return DOWN
        if self.silent:
            return SILENT
        return WORSE if self._miss and self.miss(now) > best_miss + WORSE_BY else GOOD

    def _count_miss(self, now: float, value: float) -> None:
        before = self.miss(now)
        self._miss = before + (value - before) * _WEIGHT
        if self._miss < 0.01:
            self._miss = 0.0
        self._miss_at = now
        self.spotless = not (self._miss or self.silent or self.fails)
