"""``python -m tests.chaos [TEST…]``: run scenarios one after the other, show progress, print a table.

Exit status 1 when one fails, 2 for a wrong command line.  ``--scale 10`` gives the outages the length that the
catalogue of reliability tests asks for; ``--seed`` repeats a run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.catalogue import SCENARIOS
from tests.chaos.verdict import NotHere, Run, Scenario, Verdict

BOUND = 600.0
"""Seconds that a scenario of scale 1 may take: twice as long as any takes on a machine that others use, too."""


@dataclass
class Result:
    """What became of a scenario."""

    id: str
    title: str
    figure: str
    outcome: str
    """``passed``, ``FAILED``, ``not yet`` or ``not here``."""
    measured: str
    failed: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    adapted: str = ""


def main() -> int:
    options = _options()
    wanted = [one for one in SCENARIOS if not options.tests or one.id.lower() in options.tests]
    seed = int(time.time()) if options.seed is None else options.seed
    busy = os.getloadavg()[0]
    print(f"{len(wanted)} scenarios, seed {seed}, scale {options.scale:g}, load average {busy:.1f}", file=sys.stderr)
    results = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        logs = options.logs or Path(directory)
        for number, one in enumerate(wanted, 1):
            results.append(_play(one, f"[{number}/{len(wanted)}]", logs, seed, options))
    print(table(results))
    if options.out:
        options.out.write_text(
            json.dumps(
                {
                    "seed": seed,
                    "scale": options.scale,
                    "load_average": busy,
                    "results": [asdict(one) for one in results],
                },
                indent=1,
            )
        )
    return int(any(one.outcome == "FAILED" for one in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description="Faults of the control plane and of processes.")
    parser.add_argument("tests", nargs="*", metavar="TEST", type=str.lower, help="e.g. K2 (default: all)")
    parser.add_argument("--seed", type=int, help="of everything that is random (default: another each time)")
    parser.add_argument("--scale", type=float, default=1.0, help="of durations and numbers (default 1)")
    parser.add_argument("--quick", action="store_true", help="as in make test: little load, times do not count")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    parser.add_argument("--logs", type=Path, help="directory for Corefiles and what kdns writes")
    options = parser.parse_args()
    unknown = set(options.tests) - {one.id.lower() for one in SCENARIOS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {' '.join(one.id for one in SCENARIOS)}")
    return options


def _play(one: Scenario, progress: str, logs: Path, seed: int, options: argparse.Namespace) -> Result:
    directory = logs / one.id
    directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(
            f"{progress} {one.id} {one.title}: {text} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True
        )

    say("begins")
    run = Run(directory, seed, options.scale, options.quick, say)
    result = Result(one.id, one.title, one.figure, "FAILED", "", adapted=one.adapted)
    try:
        verdict = asyncio.run(_bounded(one, run))
        result.outcome = "FAILED" if verdict.failed else "passed"
        result.measured, result.failed, result.figures = ", ".join(verdict.measured), verdict.failed, verdict.figures
    except NotHere as error:
        result.outcome, result.measured = "not here", str(error)
    except Exception as error:  # noqa: BLE001 - the table tells of it, and the others are played
        traceback.print_exc()
        result.failed = [f"{type(error).__name__}: {error}"]
    result.seconds = time.monotonic() - began
    say(f"{result.outcome} {result.measured} {'; '.join(result.failed)}")
    return result


async def _bounded(one: Scenario, run: Run) -> Verdict:
    async with asyncio.timeout(BOUND * max(1.0, run.scale)):
        return await one.play(run)


def table(results: list[Result]) -> str:
    """As a Markdown table."""
    lines = ["| test | passes if | measured | s | |", "| --- | --- | --- | --- | --- |"]
    for one in results:
        said = one.measured + (f" **{'; '.join(one.failed)[:600]}**" if one.failed else "")
        lines.append(f"| {one.id} {one.title} | {one.figure} | {said} | {one.seconds:.0f} | {one.outcome} |")
    counts = {outcome: sum(one.outcome == outcome for one in results) for outcome in ("passed", "FAILED", "not here")}
    return "\n".join([*lines, "", ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)])


if __name__ == "__main__":
    sys.exit(main())
