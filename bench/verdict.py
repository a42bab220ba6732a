"""What kdns is held to, and whether a run shows that it is so."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from statistics import median

from bench.sample import Sample

Samples = dict[str, dict[str, list[Sample]]]
"""Workload → peer → one sample per round."""


@dataclass(frozen=True)
class Target:
    """One figure of one peer that must not be higher."""

    workload: str
    peer: str
    figure: str
    """Of `FIGURES`."""
    limit: float
    base: str = ""
    """The peer whose same figure is multiplied by the limit; empty: the limit is a figure, or ``quiet``."""

    @property
    def text(self) -> str:
        """The target in words."""
        what, unit = NAMES[self.figure]
        limit = f"{self.limit:g} × {self.base}" if self.base else f"{self.limit:g}{unit}"
        return f"{self.workload}: {what} of {self.peer} ≤ {limit}"


NAMES = {
    "cpu": ("CPU per query", " us"),
    "pss": ("Pss after the questions", " MiB"),
    "disturbed": ("p99.9", " × quiet p99.9"),
}
"""Figure → (its name, the unit of its limit)."""

TARGETS = (
    *(
        Target(workload, "kdns", "cpu", limit, base)
        for workload in ("hot", "search", "forward-hit")
        for base, limit in (("echo", 1.25), ("nsd", 1.0), ("coredns", 0.33))
    ),
    *(Target(workload, "kdns-pure", "cpu", 2.2, "echo") for workload in ("hot", "search", "forward-hit")),
    Target("cold", "kdns", "cpu", 0.6, "coredns"),
    Target("nxdomain", "kdns", "cpu", 0.6, "coredns"),
    Target("forward-miss", "kdns", "cpu", 0.9, "coredns"),
    Target("tcp", "kdns", "cpu", 0.6, "coredns"),
    Target("hot", "kdns", "pss", 45),
    Target("relist", "kdns-multisocket", "disturbed", 2),
)
"""All targets."""


def figure(name: str, found: list[Sample]) -> float | None:
    """The median of a figure; None when nobody measured it."""
    values: list[float] = []
    for sample in found:
        if name == "cpu" and sample.cost:
            values.append(sample.cost.us)
        elif name == "pss" and sample.after.pss:
            values.append(sample.after.pss / 2**20)
        elif name == "disturbed" and sample.quiet and sample.steady and sample.quiet.p999:
            values.append(sample.steady.p999 / sample.quiet.p999)
    return median(values) if values else None


def judged(samples: Samples) -> Iterator[tuple[Target, float]]:
    """(target, what was measured, in the terms of its limit) of all targets that this run can judge."""
    for target in TARGETS:
        row = samples.get(target.workload, {})
        own = figure(target.figure, row.get(target.peer, []))
        base = figure(target.figure, row.get(target.base, [])) if target.base else 1.0
        if own is not None and base:
            yield target, own / base


def doubted(target: Target, doubtful: Collection[tuple[str, str]]) -> bool:
    """Whether the answers behind a figure, or behind what it is compared with, were not as they should be.

    ``doubtful``: (workload, peer) of such answers.
    """
    return any((target.workload, peer) in doubtful for peer in (target.peer, target.base))


def markdown(samples: Samples, doubtful: Collection[tuple[str, str]] = ()) -> str:
    """The verdict as a table; empty when this run can judge nothing.  ``doubtful``: see `doubted`."""
    found = list(judged(samples))
    if not found:
        return ""
    lines = [
        f"| {target.text} | {measured:.2f} | {'met' if measured <= target.limit else '**not met**'}"
        f"{', **but see below**' * doubted(target, doubtful)} |"
        for target, measured in found
    ]
    table = "\n".join(["| target | measured | |", "|---|---|---|", *lines])
    left = [one.text for one in TARGETS if one.workload in samples and one not in [target for target, _ in found]]
    return table + (f"\n\nNot judged, for want of a figure: {'; '.join(left)}." if left else "")
