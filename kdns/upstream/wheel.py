"""Time-outs for many, cheaply: one timer of the event loop per step of time, not one per question."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

STEP: Final = 0.02
"""Seconds between two steps: a time-out comes up to so much late, never early."""


class Timed(Protocol):
    """Something that wants to be woken."""

    def tick(self, now: float) -> None:
        """The time has come; ``now`` is the loop's clock in seconds."""


class Wheel:
    """Wakes things at their time."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Timed, None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def at(self, when: float, thing: Timed) -> int:
        """Call ``thing.tick`` at ``when`` (the loop's clock) or up to one `STEP` later; returns what `forget` wants."""
        slot = int(when / STEP) + 1
        waiting = self._slots.get(slot)
        if waiting is not None:
            waiting[thing] = None
        else:
            self._slots[slot] = {thing: None}
            self._timers[slot] = asyncio.get_running_loop().call_at(slot * STEP, self._turn, slot)
        return slot

    def forget(self, slot: int, thing: Timed) -> None:
        """Don't wake it; nothing happens when it has been woken."""
        waiting = self._slots.get(slot)
        if waiting is not None:
            waiting.pop(thing, None)

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def close(self) -> None:
        """Wake nobody any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._slots.clear()

    def _turn(self, slot: int) -> None:
        waiting = self._slots.pop(slot)
        del self._timers[slot]
        now = asyncio.get_running_loop().time()
        try:
            while waiting:
                waiting.popitem()[0].tick(now)
        finally:
            # Some are left only when one of them has raised, which is a bug: the others must not wait for ever.
            for thing in waiting:
                self.at(now, thing)
