"""Samples → medians, ratios, a Markdown table and JSON."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.measure import Sample
from bench.world import WORKLOADS

Samples = dict[str, dict[str, list[Sample]]]
"""Workload → peer → one sample per round."""


def markdown(samples: Samples, peers: list[str]) -> str:
    """All tables."""
    title = f"{platform.machine()}, {_processor()}, Linux {platform.release()}, {time.strftime('%Y-%m-%d')}"
    rounds = max((len(found) for row in samples.values() for found in row.values()), default=0)
    parts = [
        f"# What a query costs\n\n{title}; medians of {rounds} rounds\n",
        "CPU of the server, user and system, per answered query in microseconds (in brackets: the ratio to echo)\n",
        _table(samples, peers, lambda s: s.cost, "{:.1f}", "echo"),
    ]
    if "coredns" in peers:
        parts += ["\nThe same as a ratio to CoreDNS\n", _table(samples, peers, lambda s: s.cost, "", "coredns")]
    for text, value, form in (
        ("Answers per second, 100 questions outstanding, the server on one core", lambda s: s.qps, "{:,.0f}"),
        ("Memory before the questions: Pss in MiB", lambda s: s.idle.pss / 2**20, "{:.1f}"),
        ("Memory before the questions: RSS in MiB", lambda s: s.idle.rss / 2**20, "{:.1f}"),
        ("Memory after the questions: Pss in MiB", lambda s: s.after.pss / 2**20, "{:.1f}"),
    ):
        parts += [f"\n{text}\n", _table(samples, peers, value, form, "")]
    problems = list(complaints(samples))
    if problems:
        parts += ["\nNot as it should be:\n", *(f"- {problem}" for problem in problems)]
    return "\n".join(parts) + "\n"


def _table(samples: Samples, peers: list[str], value: Callable[[Sample], float], form: str, base: str) -> str:
    lines = ["| |" + "".join(f" {peer} |" for peer in peers), "|---|" + "---|" * len(peers)]
    for workload, row in samples.items():
        medians = {peer: median(map(value, found)) for peer, found in row.items() if found}
        cells = []
        for peer in peers:
            if peer not in medians:
                cells.append("–")
                continue
            shown = form.format(medians[peer]) if form else ""
            if base in medians and (not form or peer != base):
                ratio = f"{medians[peer] / medians[base]:.2f}"
                shown = f"{shown} ({ratio})" if form else ratio
            cells.append(shown or "–")
        lines.append(f"| {WORKLOADS[workload].what} |" + "".join(f" {cell} |" for cell in cells))
    return "\n".join(lines)


def complaints(samples: Samples) -> list[str]:
    """Where a figure is not of right answers to all questions."""
    out: list[str] = []
    for workload, row in samples.items():
        wanted = WORKLOADS[workload].rcodes
        for peer, found in row.items():
            lost = max((s.lost / max(1, s.answered + s.lost) for s in found), default=0.0)
            wrong = max((1 - sum(s.rcodes.get(rcode, 0.0) for rcode in wanted) for s in found), default=0.0)
            if lost > 0.001:
                out.append(f"{peer}, {workload}: {lost:.1%} of the questions unanswered")
            if peer != "echo" and wrong > 0.001:
                out.append(f"{peer}, {workload}: {wrong:.1%} of the answers are not {' or '.join(wanted)}")
    return out


def write_json(samples: Samples, path: Path) -> None:
    """All samples, for who wants to reckon otherwise."""
    data = {
        "machine": platform.machine(),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "samples": {
            workload: {peer: [asdict(s) | {"cost_us": s.cost} for s in found] for peer, found in row.items()}
            for workload, row in samples.items()
        },
    }
    path.write_text(json.dumps(data, indent=1) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
