"""Samples → medians, ratios, Markdown tables and JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench import verdict
from bench.load import WAIT
from bench.sample import Load, Sample
from bench.verdict import Samples
from bench.world import WORKLOADS

MANY = 0.001
"""Share of lost questions, wrong rcodes or missing changes above which a figure is complained about."""


@dataclass(frozen=True)
class Run:
    """All that is to be told."""

    samples: Samples
    peers: list[str]
    rounds: int
    rate: float
    """Questions per second for latencies."""
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that could not be measured, and why."""
    failures: list[str] = field(default_factory=list)
    """Measurements that failed."""
    versions: dict[str, str] = field(default_factory=dict)


Value = Callable[[Sample], float | None]


def medians(samples: Samples, value: Value) -> dict[str, dict[str, float]]:
    """Workload → peer → median of what was measured; only what was measured."""
    out: dict[str, dict[str, float]] = {}
    for workload, row in samples.items():
        for peer, found in row.items():
            values = [one for one in map(value, found) if one is not None]
            if values:
                out.setdefault(workload, {})[peer] = median(values)
    return out


def cost(sample: Sample) -> float | None:
    """Microseconds of CPU per answered query."""
    return sample.cost.us if sample.cost else None


def markdown(run: Run) -> str:
    """The whole report."""
    parts = [f"# What a query costs\n\n{where(run)}"]
    for heading, tables in (
        ("CPU per query", _cpu(run)),
        ("Verdict", filter(None, [verdict.markdown(run.samples, doubtful(run.samples))])),
        ("Answers per second", _throughput(run)),
        ("Latency", _latency(run)),
        ("Memory", _memory(run)),
        ("Not as it should be", _list([*run.failures, *complaints(run.samples)])),
        ("Not measured", _list([f"{peer}: {why}" for peer, why in run.absent.items()])),
        ("Versions", _list([f"{peer}: {version}" for peer, version in run.versions.items()])),
    ):
        found = list(tables)
        parts += [f"## {heading}", *found] if found else []
    return "\n\n".join(parts) + "\n"


def where(run: Run) -> str:
    """On what machine, when, and how often."""
    return f"{machine()}; medians of {run.rounds} rounds" if run.rounds > 1 else f"{machine()}; one round"


def machine() -> str:
    """What machine this is, and the date."""
    parts = (platform.machine(), _processor(), f"{os.cpu_count()} cores", f"Linux {platform.release()}")
    return ", ".join((*parts, time.strftime("%Y-%m-%d")))


def _list(items: list[str]) -> list[str]:
    return ["\n".join(f"- {item}" for item in items)] if items else []


def _cpu(run: Run) -> Iterator[str]:
    costs = medians(run.samples, cost)
    if not costs:
        return
    yield "CPU of the server, user and system, per answered query in microseconds (in brackets: the ratio to echo):"
    yield _table(run, costs, lambda workload, peer: _with_ratio(costs[workload], peer))
    for base, name in (("coredns", "CoreDNS"), ("nsd", "NSD")):
        ratios = {
            workload: {peer: value / row[base] for peer, value in row.items()}
            for workload, row in costs.items()
            if base in row and len(row) > 1
        }
        if ratios:
            yield f"The same as a ratio to {name}:"
            yield _table(run, ratios, lambda workload, peer, ratios=ratios: f"{ratios[workload][peer]:.2f}")


def _with_ratio(row: dict[str, float], peer: str) -> str:
    ratio = f" ({row[peer] / row['echo']:.2f})" if "echo" in row and peer != "echo" else ""
    return f"{row[peer]:.1f}{ratio}"


def _throughput(run: Run) -> Iterator[str]:
    best = medians(run.samples, lambda sample: sample.best.rate if sample.best else None)
    if best:
        bounded = {
            (workload, peer)
            for workload, row in run.samples.items()
            for peer, found in row.items()
            if any(sample.best and sample.best.bounded for sample in found)
        }
        yield (
            "The highest rate without a loss, the server on one core (≥: the generator could send no more; 0: there "
            "was a loss at every rate that was tried):"
        )
        yield _table(
            run, best, lambda workload, peer: "≥ " * ((workload, peer) in bounded) + f"{best[workload][peer]:,.0f}"
        )
    full = medians(run.samples, lambda sample: sample.cost.qps if sample.cost else None)
    if full:
        yield "Answers per second with 100 questions outstanding (dnsperf; it may be the slower of the two):"
        yield _table(run, full, lambda workload, peer: f"{full[workload][peer]:,.0f}")


def _latency(run: Run) -> Iterator[str]:
    fixed = {workload: row for workload, row in run.samples.items() if workload != "relist"}
    table = {name: medians(fixed, _of_load("steady", name)) for name in ("p50", "p99", "p999")}
    if table["p50"]:
        lost = f"a lost question counts as {WAIT:g} s"
        yield f"Microseconds at {run.rate:,.0f} questions a second, p50 / p99 / p99.9 ({lost}):"
        yield _table(
            run, table["p50"],
            lambda workload, peer: " / ".join(f"{values[workload][peer]:,.0f}" for values in table.values()),
        )  # fmt: skip
    relist = {workload: row for workload, row in run.samples.items() if workload == "relist"}
    quiet, loud = (medians(relist, _of_load(name, "p999")) for name in ("quiet", "steady"))
    if quiet:
        ratio = medians(relist, lambda sample: verdict.figure("disturbed", [sample]))
        yield (
            f"p99.9 in microseconds of hot names at {run.rate:,.0f} questions a second: in peace → under 1,000 changes "
            "a second while 10,000 Services and 15,000 slices are listed again (in brackets: the ratio; a lost "
            f"question counts as {WAIT:g} s):"
        )
        yield _table(
            run, quiet,
            lambda workload, peer: (
                f"{quiet[workload][peer]:,.0f} → {loud[workload][peer]:,.0f} ({ratio[workload][peer]:.2f})"
            ),
        )  # fmt: skip
    late = [load.late for load in _loads(run.samples)]
    if late:
        yield (
            f"Of these p99.9, the generator itself was late by {median(late):,.0f} µs (median of all measurements; "
            f"at most {max(late):,.0f})."
        )


def _of_load(name: str, percentile: str) -> Value:
    def value(sample: Sample) -> float | None:
        load = getattr(sample, name)
        return getattr(load, percentile) if load else None

    return value


def _loads(samples: Samples) -> Iterator[Load]:
    for row in samples.values():
        for found in row.values():
            for sample in found:
                yield from filter(None, (sample.quiet, sample.steady))


def _memory(run: Run) -> Iterator[str]:
    values: dict[str, Value] = {
        "idle": lambda sample: sample.idle.pss,
        "after": lambda sample: sample.after.pss,
        "peak": lambda sample: sample.peak_pss,
        "rss": lambda sample: sample.peak_rss,
    }
    table = {name: medians(run.samples, value) for name, value in values.items()}
    if table["idle"]:
        yield (
            "MiB: Pss before the questions / after them / the most in between; and the most RSS since the start "
            "(VmHWM, all processes of a server):"
        )
        yield _table(
            run, table["idle"],
            lambda workload, peer: " / ".join(f"{one[workload][peer] / 2**20:.1f}" for one in table.values()),
        )  # fmt: skip


def _table(run: Run, rows: dict[str, dict[str, float]], cell: Callable[..., str]) -> str:
    """A table of workloads and peers, with a dash where nothing was measured."""
    peers = [peer for peer in run.peers if any(peer in row for row in rows.values())]
    lines = ["| |" + "".join(f" {peer} |" for peer in peers), "|---|" + "---|" * len(peers)]
    for workload, row in rows.items():
        cells = "".join(f" {cell(workload, peer) if peer in row else '–'} |" for peer in peers)
        lines.append(f"| {WORKLOADS[workload].what} |{cells}")
    return "\n".join(lines)


def complaints(samples: Samples) -> list[str]:
    """Where a figure is not of right answers to all questions, or not under the conditions that it names."""
    out: list[str] = []
    for workload, row in samples.items():
        for peer, found in row.items():
            out += [f"{peer}, {workload}: {text}" for text in _complaints(workload, peer, found)]
    return out


def doubtful(samples: Samples) -> set[tuple[str, str]]:
    """(workload, peer) of whom there is a complaint."""
    return {
        (workload, peer)
        for workload, row in samples.items()
        for peer, found in row.items()
        if any(_complaints(workload, peer, found))
    }


def _complaints(workload: str, peer: str, found: list[Sample]) -> Iterator[str]:
    costs = [sample.cost for sample in found if sample.cost]
    loads = [load for sample in found for load in (sample.quiet, sample.steady) if load]
    lost = max((one.lost / max(1, one.answered + one.lost) for one in costs), default=0.0)
    if lost > MANY:
        yield f"{lost:.1%} of the questions unanswered"
    lost = max((one.lost / max(1, one.sent) for one in loads), default=0.0)
    if lost > MANY:
        yield f"{lost:.1%} of the questions at the fixed rate unanswered within {WAIT:g} s"
    slow = min((one.rate / one.offered for one in loads), default=1.0)
    if slow < 1 - 10 * MANY:
        yield f"the generator sent only {slow:.1%} of the fixed rate"
    wanted = WORKLOADS[workload].rcodes
    rcodes = [one.rcodes for one in costs if one.answered] + [one.rcodes for one in loads if one.answered]
    right = [sum(shares.get(rcode, 0.0) for rcode in wanted) for shares in rcodes]
    if peer != "echo" and right and 1 - min(right) > MANY:
        yield f"{1 - min(right):.1%} of the answers are not {' or '.join(wanted)}"
    if any(one.wrong for one in loads):
        yield f"{max(one.wrong for one in loads)} packets that answer no question that was open"
    changes = [sample.changes for sample in found if sample.changes is not None]
    if changes and min(changes) < 0.95 * WORKLOADS[workload].changes:
        yield f"only {min(changes):,.0f} changes a second"


def write_json(run: Run, path: Path) -> None:
    """All samples, for who wants to reckon otherwise."""
    doubts = doubtful(run.samples)
    data = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "rate": run.rate,
        "versions": run.versions,
        "not_measured": run.absent,
        "not_as_it_should_be": [*run.failures, *complaints(run.samples)],
        "verdict": [
            {
                "target": target.text,
                "limit": target.limit,
                "measured": measured,
                "met": measured <= target.limit,
                "doubted": verdict.doubted(target, doubts),
            }
            for target, measured in verdict.judged(run.samples)
        ],
        "samples": {
            workload: {peer: [asdict(one) | {"cost_us": cost(one)} for one in found] for peer, found in row.items()}
            for workload, row in run.samples.items()
        },
    }
    path.write_text(json.dumps(data, indent=1) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
