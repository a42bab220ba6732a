"""``python -m bench [WORKLOAD…]``: measure, show progress, print a table.  See README.md."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import measure, report
from bench.measure import BenchError, Sample
from bench.peers import PEERS, Peer, Place
from bench.world import OUTSIDE, WORKLOADS, Workload, services, write_questions


def main() -> int:
    """Run what the command line asks for; 1 when something could not be measured, 2 for a wrong command line."""
    options = _options()
    peers = [PEERS[name] for name in options.peers]
    tools = [tool for tool in ("dnsperf", "cc") if shutil.which(tool) is None]
    if tools:
        print(f"bench needs {' and '.join(tools)} on PATH", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="kdns-bench-") as directory:
        bench = Bench(Path(directory), options.queries, options.seconds)
        failed = bench.run([WORKLOADS[name] for name in options.workloads], peers, options.rounds)
    names = [peer.name for peer in peers]
    text = report.markdown(bench.samples, names)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "bench.md").write_text(text)
        report.write_json(bench.samples, options.out / "bench.json")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    found = [name for name, peer in PEERS.items() if peer.found]
    parser = argparse.ArgumentParser(prog="bench", description="What a query costs, beside other DNS servers.")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {' '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--peers", default=",".join(found), help="comma-separated (default: all that are on PATH)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each figure (default 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement (default 4)")
    parser.add_argument("--queries", type=int, default=60_000, help="questions that are asked once (default 60,000)")
    parser.add_argument("--out", type=Path, help="directory for bench.md and bench.json")
    options = parser.parse_args()
    options.workloads = options.workloads or list(WORKLOADS)
    options.peers = [name for name in options.peers.split(",") if name]
    for kind, names, known in (("workload", options.workloads, WORKLOADS), ("peer", options.peers, PEERS)):
        for name in names:
            if name not in known:
                parser.error(f"unknown {kind} '{name}'; there are {' '.join(known)}")
    for name in options.peers:
        if not PEERS[name].found:
            parser.error(f"'{PEERS[name].program}' is not on PATH")
    return options


class Bench:
    """All that runs during one benchmark."""

    def __init__(self, directory: Path, queries: int, seconds: float) -> None:
        self.samples: report.Samples = {}
        self._directory = directory
        self._queries, self._seconds = queries, seconds
        self._step = 0

    def run(self, workloads: list[Workload], peers: list[Peer], rounds: int) -> int:
        """Measure everything, the servers of each round one after the other; returns how often that failed."""
        plan = [
            (workload, peer)
            for workload in workloads
            for _ in range(rounds)
            for peer in peers
            if (peer.forwards or not workload.forwards) and (peer.tcp or not workload.tcp)
        ]
        failed = 0
        self._compile()
        for workload in workloads:
            self.samples[workload.name] = {}
            write_questions(workload, self._queries, self._directory / f"{workload.name}.txt")
        with self._around() as (upstream, api):
            for workload, peer in plan:
                row = self.samples[workload.name].setdefault(peer.name, [])
                self._progress(len(plan), workload, peer, len(row) + 1)
                try:
                    row.append(self._measure(workload, peer, upstream, api))
                except BenchError as error:
                    failed += 1
                    print(f"\r{peer.name}, {workload.name}: {error}\033[K", file=sys.stderr)
        print("\r\033[K", end="", file=sys.stderr)
        return failed

    def _progress(self, steps: int, workload: Workload, peer: Peer, number: int) -> None:
        self._step += 1
        text = f"[{self._step}/{steps}] {workload.name}, round {number}: {peer.name}"
        # One line on a terminal; in a log every step has its own.
        print(f"\r{text}\033[K" if sys.stderr.isatty() else text, end="" if sys.stderr.isatty() else "\n",
              file=sys.stderr, flush=True)  # fmt: skip

    def _compile(self) -> None:
        source = Path(__file__).with_name("echo.c")
        subprocess.run(["cc", "-O2", "-Wall", "-o", self._directory / "echo", source], check=True)

    @contextlib.contextmanager
    def _around(self) -> Iterator[tuple[int, int]]:
        """The upstream and the Kubernetes API, on the client's cores; their ports."""
        _, others = measure.cores()
        upstream, api = measure.free_ports(1), measure.free_ports(1)
        echo = [str(self._directory / "echo"), str(upstream), "answer"]
        log = self._directory / "api.log"
        with (
            measure.running(echo, others, self._directory / "upstream.log") as process,
            measure.running([sys.executable, "-m", "bench.api", str(api)], others, log) as objects,
        ):
            measure.await_answer(process, upstream, f"x.{OUTSIDE} A", ("NOERROR",))
            measure.await_line(objects, log, "ready")
            yield upstream, api

    def _measure(self, workload: Workload, peer: Peer, upstream: int, api: int) -> Sample:
        directory = self._directory / f"{peer.name}-{self._step}"
        directory.mkdir()
        first = measure.free_ports(4)
        place = Place(directory, first, upstream, api, first + 1, self._queries)
        core, _ = measure.cores()
        with measure.running(peer.command(place), core, directory / "log") as process:
            rcodes = ("NOERROR",) if peer.dns else ()
            measure.await_answer(process, place.port, f"{services()[-1].fqdn} A", rcodes)
            measure.settle(process)
            questions = self._directory / f"{workload.name}.txt"
            return measure.sample(process, place.port, questions, self._seconds, workload.once, workload.tcp)


if __name__ == "__main__":
    sys.exit(main())
