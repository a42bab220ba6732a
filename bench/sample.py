"""What a measurement gives: plain values, in octets, seconds and microseconds as their names say."""

from __future__ import annotations

from dataclasses import dataclass, field

FIGURES = {
    "cpu": "CPU per answered query, and answers per second, with 100 questions outstanding",
    "latency": "p50, p99 and p99.9 at a fixed rate",
    "qps": "the highest rate at which nothing is lost",
}
"""Figure → what it is.  Memory is always told."""


@dataclass(frozen=True)
class Memory:
    """What processes take, in octets."""

    pss: int
    """Pages that are shared with others count in proportion."""
    rss: int


@dataclass(frozen=True)
class Cost:
    """What answers cost while as many were asked for as would come (dnsperf, 100 outstanding)."""

    answered: int
    seconds: float
    """CPU of the server, user and system."""
    qps: float
    """Answers per second."""
    lost: int
    latency: float
    """Average, in seconds."""
    rcodes: dict[str, float] = field(default_factory=dict)
    """Shares of the answers."""

    @property
    def us(self) -> float:
        """Microseconds of CPU per answered query."""
        return self.seconds / self.answered * 1e6 if self.answered else float("nan")


@dataclass(frozen=True)
class Load:
    """What came of questions at a fixed rate (load.c); latencies in microseconds from when each was due.

    What was lost is in the percentiles as slow as `load.WAIT`.
    """

    offered: float
    """Questions per second that were to be sent."""
    rate: float
    """Those that could be sent."""
    sent: int
    answered: int
    lost: int
    owed: int
    """What was not answered yet when the last question was sent."""
    wrong: int
    """Packets that answer no open question."""
    p50: float
    p99: float
    p999: float
    most: float
    late: float
    """p99.9 of how late the generator itself was; part of the latencies above."""
    rcodes: dict[str, float] = field(default_factory=dict)
    """Shares of the answers."""


@dataclass(frozen=True)
class Best:
    """The highest rate that was kept up with, and without a loss."""

    rate: float
    """Questions per second; 0: something was lost at every rate that was tried."""
    bounded: bool = False
    """The generator could send no faster: the server may well do more."""


@dataclass(frozen=True)
class Sample:
    """One server under one workload, once.  None is what was not measured."""

    cost: Cost | None = None
    steady: Load | None = None
    """At the fixed rate; of ``relist``: while objects changed and were listed again."""
    quiet: Load | None = None
    """Of ``relist``: the same before that."""
    best: Best | None = None
    idle: Memory = Memory(0, 0)
    """Before the questions."""
    after: Memory = Memory(0, 0)
    """After them."""
    peak_pss: int = 0
    """The most that was seen while they were asked, four times a second."""
    peak_rss: int = 0
    """VmHWM: the most since the start of the processes, as the kernel counts it."""
    changes: float | None = None
    """Object changes per second that the API told during the measurement."""
    relisted: float | None = None
    """Seconds after its watches were cut, by when the server had taken in all objects again."""
