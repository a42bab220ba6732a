"""``python -m bench [WORKLOAD…]``: measure, show progress, print tables.  See README.md."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench import measure, picture, report
from bench.peers import PEERS, Peer, make_directory, named
from bench.phases import Plan
from bench.report import Run
from bench.run import Bench, possible
from bench.sample import FIGURES
from bench.world import WORKLOADS

MOST_SECONDS, MOST_QUERIES, MOST_RATE = 600, 1_000_000, 1_000_000


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when something could not be measured, 2 for a wrong command line."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    peers = [PEERS[name] for name in options.peers]
    workloads = [WORKLOADS[name] for name in options.workloads]
    absent = {name: peer.missing for name, peer in PEERS.items() if peer.missing and not peer.optional}
    for name, why in absent.items():
        print(f"not measured: {name}: {why}", file=sys.stderr)
    plan = Plan(frozenset(options.figures), options.seconds, options.queries, options.rate)
    try:
        with (
            measure.ending_well(),
            tempfile.TemporaryDirectory(prefix="kdns-bench-") as directory,
            measure.pinned(measure.cores()[1]),
        ):
            bench = Bench(Path(directory), plan)
            bench.run(workloads, peers, options.rounds)
    except measure.BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return 1
    versions = {peer.name: version for peer in peers if (version := peer.told_version())}
    run = Run(bench.samples, options.peers, options.rounds, options.rate, absent, bench.failures, versions)
    text = report.markdown(run)
    print(text)
    if options.out:
        (options.out / "bench.md").write_text(text)
        report.write_json(run, options.out / "bench.json")
        if costs := report.medians(run.samples, report.cost):
            (options.out / "bench.svg").write_text(picture.svg(costs, report.where(run)))
    return 1 if bench.failures else 0


def _parser() -> argparse.ArgumentParser:
    def lines(items: dict[str, str]) -> str:
        return "\n".join(f"  {name:<17}{text}" for name, text in items.items())

    epilog = "\n".join([
        "workloads:", lines({name: workload.what for name, workload in WORKLOADS.items()}),
        "\npeers:", lines({name: _about(peer) for name, peer in PEERS.items()}),
        "\nfigures:", lines(FIGURES),
        "\nbench/README.md says how it is measured.",
    ])  # fmt: skip
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="What a DNS query costs, beside other servers on this machine.",
        epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help="default: all that a chosen peer can do")
    add("--peers", type=named, metavar="A,B", help="default: all that are found, but for the optional ones")
    add("--figures", type=named, metavar="A,B", default=list(FIGURES), help="default: all")
    add("--rounds", type=int, metavar="N", default=3, help="measurements of each figure (default 3)")
    add("--seconds", type=float, metavar="S", default=4.0, help="length of one measurement (default 4)")
    add("--queries", type=int, metavar="N", default=60_000, help="questions that are asked once (default 60000)")
    add("--rate", type=float, metavar="N", default=5000.0, help="questions per second for latencies (default 5000)")
    add("--out", type=Path, metavar="DIR", help="write bench.md, bench.json and (of figure cpu) bench.svg there")
    return parser


def _about(peer: Peer) -> str:
    if peer.missing:
        return f"not found: {peer.missing}"
    return "found; optional: only when --peers names it" if peer.optional else "found"


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.peers is None:
        options.peers = [name for name, peer in PEERS.items() if not peer.missing and not peer.optional]
    named = list(dict.fromkeys(options.workloads))
    for kind, names, known in (
        ("workload", named, WORKLOADS), ("peer", options.peers, PEERS), ("figure", options.figures, FIGURES),
    ):  # fmt: skip
        for name in names:
            if name not in known:
                parser.error(f"unknown {kind} '{name}'; there are {' '.join(known)}")
    if not options.peers or not options.figures:
        parser.error("there must be a peer and a figure to measure")
    for name in options.peers:
        if why := PEERS[name].missing:
            parser.error(f"{name} cannot be measured: {why}")
    for name, low, high in (
        ("rounds", 1, 100), ("seconds", 0.1, MOST_SECONDS), ("queries", 100, MOST_QUERIES), ("rate", 10, MOST_RATE),
    ):  # fmt: skip
        if not low <= getattr(options, name) <= high:
            parser.error(f"--{name} must be from {low} to {high:,}")
    _choose_workloads(parser, options, named)
    tools = ["cc", *(["dnsperf"] if "cpu" in options.figures else [])]
    for tool in tools:
        if shutil.which(tool) is None:
            parser.error(f"'{tool}' is not on PATH")
    make_directory(parser, options.out)
    return options


def _choose_workloads(parser: argparse.ArgumentParser, options: argparse.Namespace, named: list[str]) -> None:
    """Those named, or all that somebody can do; an error when nobody can do what is named."""
    plan = Plan(frozenset(options.figures), options.seconds, options.queries, options.rate)
    able = [
        name
        for name, workload in WORKLOADS.items()
        if plan.wants(workload) and any(possible(workload, PEERS[peer]) for peer in options.peers)
    ]
    for name in named:
        if name not in able:
            parser.error(f"none of these figures of '{name}' can be measured of any of {' '.join(options.peers)}")
    options.workloads = named or able


if __name__ == "__main__":
    sys.exit(main())
