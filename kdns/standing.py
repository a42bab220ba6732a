"""Which things stand on which facts: the reverse of a lease's facts, for whoever keeps replies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from kdns.message import Fact

T = TypeVar("T", bound=Hashable)


class Standing(Generic[T]):
    """Things by fact; the things are anything hashable but sets.

    Most facts carry one thing, and there may be as many facts as things: a set for each would take more memory than
    the things themselves, so a single thing stands in the table as it is.
    """

    __slots__ = ("_things",)

    def __init__(self) -> None:
        self._things: dict[Fact, T | set[T]] = {}

    def __len__(self) -> int:
        """Facts that something stands on."""
        return len(self._things)

    def add(self, thing: T, facts: Iterable[Fact]) -> None:
        """Let a thing stand on facts."""
        for fact in facts:
            found = self._things.setdefault(fact, thing)
            if isinstance(found, set):
                found.add(thing)
            elif found != thing:
                self._things[fact] = {found, thing}

    def remove(self, thing: T, facts: Iterable[Fact]) -> None:
        """It stands on them no more; unknown ones are ignored."""
        for fact in facts:
            found = self._things.get(fact)
            if isinstance(found, set):
                found.discard(thing)
                if len(found) == 1:
                    self._things[fact] = found.pop()
            elif found == thing:
                del self._things[fact]

    def on(self, fact: Fact) -> list[T]:
        """Everything that stands on a fact."""
        found = self._things.get(fact)
        if found is None:
            return []
        return list(found) if isinstance(found, set) else [found]
