"""Who has to give way when too much is under way at once: the zone that holds most of it, never its neighbours.

Names that nobody can answer quickly pile up (*water torture* below a dead zone), names that are answered do not.  So
when there is no room left, a `Census` of what is under way finds the zones that hold it, and the oldest question of the
fullest one is given up for a newcomer from elsewhere; a newcomer from that zone is turned away itself.

And `Window` finds out how much an upstream takes: when even its quickest answers are slow, a queue stands there, and
asking more would only make all answers too late (the idea of CoDel, RFC 8289).

Pure: ``now`` is an argument, in seconds.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

from kdns.name import Name, count_labels, is_under

_SAMPLE: Final = 1000
"""Questions looked at in one census: some milliseconds."""
_HEAVY: Final = 1 / 8
"""A zone is heavy when it holds such a share of all, without the heavy zones below it."""


class Held(Protocol):
    """A question under way."""

    name: Name

    @property
    def done(self) -> bool:
        """Whether it has been answered meanwhile."""


H = TypeVar("H", bound=Held)


class Census(Generic[H]):
    """Which zones hold the questions under way, as counted at one moment."""

    def __init__(self, held: Sequence[H], zone: Name) -> None:
        """``held``: oldest first; ``zone``: the one that all of it is below, as whole it is not to blame."""
        step = max(1, len(held) // _SAMPLE)
        sample = held[::step]
        self._heavy: dict[Name, deque[H]] = {}
        for heavy in _heavy_zones([question.name for question in sample], zone):
            self._heavy[heavy] = deque()
        for question in sample:
            owner = self._zone_of(question.name)
            if owner is not None:
                self._heavy[owner].append(question)

    def give_way(self, name: Name) -> H | None:
        """The question to give up for a new one at ``name``; None: the new one itself is to be turned away."""
        fullest = max(self._heavy, key=lambda zone: len(self._heavy[zone]), default=None)
        if fullest is None or self._zone_of(name) == fullest:
            return None
        questions = self._heavy[fullest]
        while questions:
            question = questions.popleft()
            if not question.done:
                return question
        return None

    def _zone_of(self, name: Name) -> Name | None:
        """The innermost heavy zone that a name is in."""
        for zone in self._heavy:
            if is_under(name, zone):
                return zone
        return None


def _heavy_zones(names: Sequence[Name], zone: Name) -> list[Name]:
    """The zones that hold more than their share, inner ones first."""
    counts: Counter[Name] = Counter()
    for name in names:
        counts.update(_zones_of(name, zone))
    enough = max(2.0, len(names) * _HEAVY)
    # Without this cut a census would sort thousands of zones that hold one name each.
    candidates = [name for name, count in counts.items() if count >= enough]
    heavy: list[Name] = []
    for candidate in sorted(candidates, key=count_labels, reverse=True):
        if counts[candidate] >= enough:
            heavy.append(candidate)
            for outer in _outside(candidate, zone):
                counts[outer] -= counts[candidate]
    return heavy


def _zones_of(name: Name, zone: Name) -> Iterator[Name]:
    """The zones that may be to blame for a name: all above it and below ``zone``, or ``zone`` if there is none."""
    parents = list(_outside(name, zone))
    yield from parents or (zone,)


def _outside(name: Name, zone: Name) -> Iterable[Name]:
    """The names strictly above ``name`` and strictly below ``zone``."""
    least = len(zone)
    while name[0] and len(name := name[1 + name[0] :]) > least:
        yield name


class Window:
    """How many questions an upstream, or a group of them, gets at once."""

    LEAST: Final = 16
    _EPOCH: Final = 0.1

    def __init__(self, most: int) -> None:
        self.size = float(most)
        """Questions."""
        self.target = 0.5
        """Seconds that the quickest answers may take before that counts as a queue."""
        self._most = float(most)
        self._least = float(min(self.LEAST, most))
        self._usual = math.inf
        self._quickest = math.inf
        self._until = 0.0

    def answered(self, now: float, took: float, under_way: int) -> bool:
        """An answer took so many seconds, and so many questions are under way; True at the end of an epoch."""
        if took < self._quickest:
            self._quickest = took
        if now < self._until:
            return False
        self._adjust(now, under_way)
        return True

    def _adjust(self, now: float, under_way: int) -> None:
        quickest, self._quickest = self._quickest, math.inf
        self._until = now + self._EPOCH
        self._usual = min(self._usual, quickest)
        if quickest <= max(self.target, 2 * self._usual):
            self.size = min(self._most, self.size * 1.05 + 2)
        elif under_way <= self._least:
            # So few cannot make a queue: the way there has become longer.
            self._usual = quickest
        else:
            self.size = max(self._least, 0.7 * min(self.size, under_way))
            # What is under way was sent before: look again when it is through.
            self._until = now + max(self._EPOCH, quickest)
