"""How a scenario says what it measured and whether that is good enough."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class NotHere(Exception):
    """This machine lacks what the scenario needs; the message names it."""


@dataclass
class Run:
    """One run of one scenario."""

    directory: Path
    """For its files."""
    seed: int = 1
    scale: float = 1.0
    """Of its durations and numbers; 1 is what fits all scenarios into a quarter of an hour."""
    quick: bool = False
    """Within a test run: little load, and times do not count because others use the machine."""
    say: Callable[[str], None] = lambda text: None
    """Shows what is going on."""

    @property
    def rate(self) -> float:
        """Questions a second."""
        return 300.0 if self.quick else 5000.0

    @property
    def clients(self) -> int:
        return 10 if self.quick else 50

    def seconds(self, wanted: float, least: float = 1.0) -> float:
        """A duration."""
        return max(least, wanted * self.scale)

    def number(self, wanted: int, least: int = 1) -> int:
        """A number of things."""
        return max(least, round(wanted * self.scale))

    def keep_log(self, name: str, text: str) -> None:
        """Keep what a process has written, for who wants to know."""
        (self.directory / f"{name}.log").write_text(text)


@dataclass
class Verdict:
    """What was measured, and what of it is not good enough."""

    run: Run
    measured: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def note(self, what: str, value: float | int | str, unit: str = "") -> None:
        """A figure that decides nothing."""
        self.figures[what] = value
        self.measured.append(f"{what} {_text(value, unit)}")

    def at_most(self, what: str, value: float | int, bound: float, unit: str = "", clock: bool = False) -> None:
        """A figure with an upper bound; ``clock``: it depends on how busy the machine is and is only noted in a quick
        run."""
        self.note(what, value, unit)
        if value > bound and not (clock and self.run.quick):
            self.failed.append(f"{what} {_text(value, unit)} > {_text(bound, unit)}")

    def at_least(self, what: str, value: float | int, bound: float, unit: str = "") -> None:
        """A figure with a lower bound."""
        self.note(what, value, unit)
        if value < bound:
            self.failed.append(f"{what} {_text(value, unit)} < {_text(bound, unit)}")

    def check(self, what: str, good: bool, detail: str = "") -> None:
        """Something that must be so; told only when it is not."""
        self.figures[what] = good
        if not good:
            self.failed.append(f"not: {what}{f' ({detail})' if detail else ''}")

    def clean(self, seen: Any, what: str = "") -> None:
        """Nothing lost, nothing wrong; ``seen``: a `stage.Seen`."""
        prefix = f"{what}: " if what else ""
        self.note(f"{prefix}asked", seen.sent)
        self.check(f"{prefix}questions were asked", seen.sent > 0)
        for name in ("lost", "wrong"):
            self.at_most(f"{prefix}{name}", getattr(seen, name), 0)
        if seen.lost or seen.wrong:
            self.failed.append(f"{prefix}for example {seen.examples[0] if seen.examples else '?'}")


def _text(value: float | int | str, unit: str) -> str:
    if isinstance(value, str | int):
        return f"{value}{f' {unit}' if unit else ''}"
    if unit == "s" and abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g}{f' {unit}' if unit else ''}"


Play = Callable[[Run], Awaitable[Verdict]]


@dataclass(frozen=True)
class Scenario:
    """One line of the table."""

    id: str
    """As in the catalogue of reliability tests."""
    title: str
    figure: str
    """The Must figure, as it is tested here."""
    play: Play
    adapted: str = ""
    """What is otherwise than in the catalogue, and why."""
    quick: float = 0.0
    """The scale at which it runs in `make test`; 0: not at all."""
