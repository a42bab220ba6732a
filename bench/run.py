"""All that runs during one benchmark: servers one after the other, and what they need around them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from bench import measure, phases
from bench.control import Api, api
from bench.load import Generator, compile_c
from bench.measure import BenchError
from bench.peers import Peer, Place
from bench.phases import Plan, Server
from bench.sample import Sample
from bench.verdict import Samples
from bench.world import LARGE, OUTSIDE, SERVICES, Workload, services, write_questions


def possible(workload: Workload, peer: Peer) -> bool:
    """Whether this peer can do what the workload needs."""
    return (
        (peer.forwards or not workload.forwards)
        and (peer.tcp or not workload.tcp)
        and (peer.follows or not workload.changes)
    )


@dataclass(frozen=True)
class Surroundings:
    """What the servers ask."""

    upstream: int
    """Port of a server that answers every name."""
    small: Api
    large: Api | None
    """For ``relist``."""


class Bench:
    """One benchmark: `samples` are its figures, `failures` says what could not be measured."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.samples: Samples = {}
        self.failures: list[str] = []
        self._directory, self._plan = directory, plan
        self._generators: dict[str, Generator] = {}
        self._servers = 0

    def run(self, workloads: list[Workload], peers: list[Peer], rounds: int) -> None:
        """Measure everything, the servers of each round one after the other.  Raises BenchError when nothing can be."""
        steps = [
            (workload, number + 1, peer)
            for workload in workloads
            for number in range(rounds)
            for peer in peers
            if possible(workload, peer)
        ]
        compile_c("echo", self._directory)
        program = compile_c("load", self._directory)
        _, others = measure.cores()
        for workload in workloads:
            self.samples[workload.name] = {}
            self._write_questions(workload)
            self._generators[workload.name] = Generator(program, self._file(workload), others)
        progress = Progress(steps)
        with self._around(any(workload.relist for workload in workloads)) as around:
            for workload, number, peer in steps:
                with progress.step(workload, number, peer):
                    try:
                        sample = self._measure(workload, peer, around)
                    except BenchError as error:
                        self.failures.append(f"{peer.name}, {workload.name}, round {number}: {error}")
                        progress.say(self.failures[-1])
                    else:
                        self.samples[workload.name].setdefault(peer.name, []).append(sample)
        progress.end()

    def _file(self, workload: Workload, part: str = "") -> Path:
        return self._directory / f"{workload.name}{part}.txt"

    def _write_questions(self, workload: Workload) -> None:
        """All questions, and those for dnsperf, which asks a whole file: the first ones of what is asked once."""
        count = self._plan.queries + self._plan.later(workload) if workload.once else self._plan.queries
        write_questions(workload, count, self._file(workload))
        with self._file(workload).open() as file, self._file(workload, "-first").open("w") as first:
            first.writelines(
                line for number, line in enumerate(file) if not workload.once or number < self._plan.queries
            )

    @contextlib.contextmanager
    def _around(self, relist: bool) -> Iterator[Surroundings]:
        """The upstream and the Kubernetes APIs, on the client's cores."""
        _, others = measure.cores()
        port = measure.free_ports(1)
        echo = [str(self._directory / "echo"), str(port), "answer"]
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(measure.running(echo, others, self._directory / "upstream.log"))
            small = stack.enter_context(api(others, self._directory / "api.log", SERVICES, 0))
            large = stack.enter_context(api(others, self._directory / "large.log", *LARGE)) if relist else None
            measure.await_answer(process, port, f"x.{OUTSIDE} A", ("NOERROR",))
            yield Surroundings(port, small, large)

    def _measure(self, workload: Workload, peer: Peer, around: Surroundings) -> Sample:
        self._servers += 1
        directory = self._directory / f"{self._servers}-{peer.name}"
        directory.mkdir()
        followed = around.large if workload.relist and around.large else around.small
        first = measure.free_ports(4)
        pods = self._plan.queries + int(self._plan.rate * self._plan.seconds) + 1
        place = Place(directory, first, around.upstream, followed.port, first + 1, pods)
        core, _ = measure.cores()
        log, generator = directory / "log", self._generators[workload.name]
        with measure.running(peer.command(place), core, log, peer.environment) as process:
            rcodes = ("NOERROR",) if peer.dns else ()
            measure.await_answer(process, place.port, f"{services()[-1].fqdn} A", rcodes, log)
            measure.settle(process)
            # What was asked of dnsperf is not asked again.
            generator.position = self._plan.queries if workload.once else 0
            server = Server(process, place.port, workload, self._file(workload, "-first"), generator, followed)
            return phases.take(server, self._plan)


class Progress:
    """Says on standard error what is done, how long that has taken, and about how long the rest will."""

    def __init__(self, steps: list[tuple[Workload, int, Peer]]) -> None:
        self._left = [(workload.name, peer.name) for workload, _, peer in steps]
        self._count = len(steps)
        self._start = time.monotonic()
        self._took: dict[tuple[str, str], list[float]] = {}
        self._terminal = sys.stderr.isatty()

    @contextlib.contextmanager
    def step(self, workload: Workload, number: int, peer: Peer) -> Iterator[None]:
        """One measurement."""
        text = f"[{self._count - len(self._left) + 1}/{self._count}] {workload.name}, round {number}: {peer.name}"
        rest = self.rest()
        text += f" · {clock(time.monotonic() - self._start)} gone" + (
            "" if rest is None else f", about {clock(rest)} left"
        )
        # One line on a terminal; in a log every step has its own.
        print(f"\r{text}\033[K" if self._terminal else text, end="" if self._terminal else "\n",
              file=sys.stderr, flush=True)  # fmt: skip
        start = time.monotonic()
        yield
        self._took.setdefault(self._left.pop(0), []).append(time.monotonic() - start)

    def rest(self) -> float | None:
        """Seconds that what is left will take if it goes on like this; None before the first step has ended."""
        every = [took for found in self._took.values() for took in found]
        if not every:
            return None
        return sum(self._expected(step, mean(every)) for step in self._left)

    def _expected(self, step: tuple[str, str], otherwise: float) -> float:
        if step in self._took:
            return mean(self._took[step])
        same = [took for (workload, _), found in self._took.items() if workload == step[0] for took in found]
        return mean(same) if same else otherwise

    def say(self, text: str) -> None:
        """A line of its own."""
        print(f"\r{text}\033[K" if self._terminal else text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave no half line behind."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
