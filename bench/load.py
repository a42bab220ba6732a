"""Questions at a fixed rate, by the generator in load.c, and how high that rate may be."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import BenchError, pinned
from bench.sample import Best, Load

SOURCES = 8
"""Source ports."""
WAIT = 1.0
"""Seconds that a last answer may take."""
PROBE = 0.6
"""Seconds of one try at a rate."""
BEHIND = 0.02
"""Seconds that a server may be behind at the end of a try; if it is more, its socket buffer only hid the losses."""
PROBE_WAIT = 0.25
PROBES = 8
"""Rates that are tried to find the highest."""
CLOSE_ENOUGH = 1.05
"""Ratio of the lowest rate with losses to the highest without, at which the search ends."""
KEPT_UP = 0.97
"""Share of a rate that the generator must really have sent."""
START_RATE = 50_000.0
"""Where the search begins when nothing is known of the server."""


def compile_c(name: str, directory: Path) -> Path:
    """Compile ``name``.c of this package into a directory.  Raises BenchError."""
    source = Path(__file__).with_name(f"{name}.c")
    done = subprocess.run(
        ["cc", "-O2", "-Wall", "-o", directory / name, source], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"{source.name} cannot be compiled: {done.stderr.strip()}")
    return directory / name


@dataclass
class Generator:
    """The compiled generator and the questions that it asks."""

    program: Path
    file: Path
    """Lines ``name type``."""
    on: set[int]
    """Its cores."""
    position: int = 0
    """Questions of the file that have been asked.  The next run begins there; after the last comes the first."""

    def run(self, port: int, rate: float, seconds: float, *, wait: float = WAIT, realtime: bool = True) -> Load:
        """Ask 127.0.0.1 at ``rate`` for ``seconds``.  Raises BenchError.

        ``realtime`` asks for SCHED_FIFO, where we may: for rates that leave the generator time to sleep.
        """
        command = [str(self.program), *(["--realtime"] if realtime else []), "127.0.0.1", str(port), str(self.file)]
        command += [str(self.position), f"{rate:.3f}", f"{seconds:.3f}", str(SOURCES), f"{wait:g}"]
        with pinned(self.on):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(done.stderr.strip() or f"load ended with status {done.returncode}")
        told = read(json.loads(done.stdout))
        self.position += told.sent
        return told

    def best(self, port: int, start: float = START_RATE) -> Best:
        """Search the highest rate at which this server loses nothing."""

        def probe(rate: float) -> Load:
            time.sleep(0.1)  # for what the last try left behind in the server's queues
            return self.run(port, rate, PROBE, wait=PROBE_WAIT, realtime=False)

        return search(probe, start)


def read(told: dict[str, Any]) -> Load:
    """The generator's JSON."""
    latency, answered = told["latency_us"], told["answered"]
    return Load(
        told["offered"], told["rate"], told["sent"], answered, told["lost"], told["owed"], told["wrong"],
        latency["p50"], latency["p99"], latency["p99.9"], latency["max"], told["late_us"]["p99.9"],
        {rcode: count / answered for rcode, count in told["rcodes"].items()},
    )  # fmt: skip


def search(probe: Callable[[float], Load], start: float) -> Best:
    """Bisect (by ratios) to the highest rate at which `probe` loses nothing, in at most `PROBES` rates.

    A rate is good if in one of two tries nothing is lost and the server is not falling behind: on a machine that does
    other things as well, a lost packet may be anybody's fault.
    """

    def good(told: Load) -> bool:
        return not told.lost and told.owed <= BEHIND * told.rate

    def really(told: Load) -> bool:
        return told.rate >= KEPT_UP * told.offered

    low, high, bounded, rate = 0.0, math.inf, False, start
    for _ in range(PROBES):
        tries = [probe(rate)]
        if not (good(tries[0]) and really(tries[0])):
            tries.append(probe(rate))
        if any(good(told) and really(told) for told in tries):
            low = rate
        else:
            # What could not be sent is no failure of the server's.
            high, bounded = rate, all(map(good, tries))
        if low and high / low < CLOSE_ENOUGH:
            break
        if not low:
            rate = high / 2
        else:
            rate = low * 1.5 if math.isinf(high) else math.sqrt(low * high)
    return Best(low, bounded or math.isinf(high))
