"""What is done to one server, one after the other, for one sample."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench import measure
from bench.control import Api
from bench.load import START_RATE, Generator
from bench.measure import BenchError
from bench.sample import Sample
from bench.world import Workload, marker

RELIST_SECONDS = 8.0
"""At least so long are the two measurements of ``relist``: a client of the API may wait a second or two."""
RELIST_AT = 0.5
"""Seconds after the questions have begun, the watches are cut."""
LOOK = 0.1
"""Seconds between looks whether the server knows what only the new list told."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured, of every server."""

    figures: frozenset[str]
    """Of `sample.FIGURES`."""
    seconds: float
    """Length of a measurement."""
    queries: int
    """How many questions that are asked once."""
    rate: float
    """Questions per second for latencies."""

    def wants(self, workload: Workload) -> frozenset[str]:
        """The figures that this workload can have: our generator knows no TCP, and a relist is short."""
        can = {"cpu"} if workload.tcp else {"latency"} if workload.relist else {"cpu", "latency", "qps"}
        return self.figures & can

    def later(self, workload: Workload) -> int:
        """Questions that are asked once, for all figures but ``cpu``."""
        steady = int(self.rate * self.seconds) + 1 if "latency" in self.wants(workload) else 0
        return steady + (10 * self.queries if workload.more and "qps" in self.wants(workload) else 0)


@dataclass(frozen=True)
class Server:
    """A server that has come to rest, what it is asked, and by what."""

    process: subprocess.Popen[bytes]
    port: int
    workload: Workload
    first: Path
    """The questions for dnsperf."""
    generator: Generator
    api: Api


def take(server: Server, plan: Plan) -> Sample:
    """All figures that the plan wants of this workload.  Raises BenchError."""
    pid = server.process.pid
    idle = measure.memory(pid)
    with measure.PeakPss(pid) as peak:
        found = _relist(server, plan) if server.workload.relist else _figures(server, plan)
    if server.process.poll() is not None:
        raise BenchError(f"it ended with status {server.process.returncode}")
    after = measure.memory(pid)
    return replace(found, idle=idle, after=after, peak_pss=peak.octets, peak_rss=measure.peak_rss(pid))


def _figures(server: Server, plan: Plan) -> Sample:
    workload, wanted = server.workload, plan.wants(server.workload)
    out = Sample()
    with _changing(server) as applied:
        if "cpu" in wanted:
            cost = measure.cost(
                server.process, server.port, server.first,
                seconds=plan.seconds, once=workload.once, tcp=workload.tcp,
            )  # fmt: skip
            out = replace(out, cost=cost)
        elif not workload.once:
            server.generator.run(server.port, plan.rate, 0.5)
        if "latency" in wanted:
            out = replace(out, steady=server.generator.run(server.port, plan.rate, plan.seconds))
        if "qps" in wanted:
            out = replace(out, best=server.generator.best(server.port, out.cost.qps if out.cost else START_RATE))
    return replace(out, changes=applied[0] if applied else None)


@contextlib.contextmanager
def _changing(server: Server) -> Iterator[list[float]]:
    """Let objects change meanwhile, if the workload wants that; afterwards the list has how many in a second."""
    applied: list[float] = []
    if not server.workload.changes:
        yield applied
        return
    with server.api.changing(server.workload.changes):
        before, start = server.api.applied(), time.monotonic()
        yield applied
        applied.append((server.api.applied() - before) / (time.monotonic() - start))


def _relist(server: Server, plan: Plan) -> Sample:
    """Latencies of hot names in peace, and while objects change and everything is listed again."""
    length = max(plan.seconds, RELIST_SECONDS)
    server.generator.run(server.port, plan.rate, 0.5)
    quiet = server.generator.run(server.port, plan.rate, length)
    looks = int(length / LOOK)
    with _changing(server) as applied, ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.generator.run, server.port, plan.rate, length)
        time.sleep(RELIST_AT)
        server.api.order(f"relist {looks}")
        start, relist = time.monotonic(), server.api.order("state")["relists"]
        names = [marker(relist, number).fqdn for number in range(looks)]
        relisted: float | None = None
        while names and relisted is None and not running.done():
            time.sleep(LOOK)
            if measure.answers(server.port, names.pop()):
                relisted = time.monotonic() - start
        in_time = not running.done()
        steady = running.result()
    if relisted is None or not in_time:
        raise BenchError(f"it had not listed everything again {length - RELIST_AT:g} s after its watches were cut")
    return Sample(quiet=quiet, steady=steady, changes=applied[0], relisted=relisted)
