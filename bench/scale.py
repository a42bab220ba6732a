"""``python -m bench.scale``: what a large cluster costs, first listed, listed again, and while it changes.

See README.md.  Each server is started by itself in its own memory cgroup; what it is held to stands in `TARGETS`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import dns.exception
import dns.message
import dns.query

from bench import measure, world
from bench.control import Api, api
from bench.load import Generator, compile_c
from bench.measure import BenchError
from bench.peers import PEERS, Peer, Place, make_directory, named
from bench.report import machine
from bench.sample import Load

MIB = 2**20
LIMIT = 170 * MIB
"""Memory that kdns may have."""
CGROUPS = Path("/sys/fs/cgroup/memory")
PATIENCE = 120.0
"""Seconds that a list may take."""
FOREIGN_RELISTS = 3
"""Of others than kdns, which pause for up to a minute between lists."""
CHANGES = 1000
"""Changes of objects in a second."""
RELIST_AT = 0.5
TOUCH_EVERY = 0.02
"""Seconds from one change whose answer is waited for to the next."""
OURS = "from kdns.cluster import pace; pace.CALM = 0.0; from kdns.cli import main; raise SystemExit(main())"
"""kdns, but for the pause between two lists that follow soon after each other."""


@dataclass(frozen=True)
class Row:
    """A cluster, and what the first list of it may cost."""

    services: int
    slices: int
    endpoints: int
    """In a slice."""
    pods: bool
    """A Pod for each endpoint, ``pods verified`` and ``endpoint_pod_names``."""
    pss: float
    """MiB after the first list."""
    sync: float
    """Seconds of CPU until then."""

    @property
    def text(self) -> str:
        every = self.slices * self.endpoints
        pods = f" and {every:,} Pods (`pods verified`, `endpoint_pod_names`)" if self.pods else ""
        return f"{self.services:,} Services, {self.slices:,} slices, {every:,} endpoints{pods}"


ROWS = {1: Row(10_000, 15_000, 10, False, 75, 3.0), 2: Row(10_000, 15_000, 10, True, 120, 8.0)}
RELIST_CPU = {1: 2.9}
"""Seconds of CPU of one relist, in rows that are held to it."""


@dataclass
class Figures:
    """What was measured of one server; None is what was not."""

    sync_cpu: float | None = None
    """Seconds, from the start of the process."""
    pss: float | None = None
    """MiB, after the first list."""
    pss_after: float | None = None
    """MiB, after all of them."""
    peak: float | None = None
    """The most memory during the relists over what it was before: of Pss, or of RSS as the kernel counts it (VmHWM),
    whichever is more."""
    relist_cpu: list[float] = field(default_factory=list)
    """Seconds, each."""
    relist_seconds: list[float] = field(default_factory=list)
    """Until the server knew what is last in the lists."""
    load: Load | None = None
    """Of hot names during a relist."""
    waited: float | None = None
    """The longest that the server was ready to run but had no core in 50 ms meanwhile, in milliseconds: the machine's
    part of the latencies."""
    event_us: float | None = None
    """CPU of one change of an object, all in all, in microseconds."""
    answers: list[float] = field(default_factory=list)
    """Seconds from a change to the first answer that has it."""
    killed: int | None = None
    """How often the kernel ended it for its memory; None: it had no limit."""

    @property
    def answer_p99(self) -> float | None:
        """Milliseconds."""
        return sorted(self.answers)[int(len(self.answers) * 0.99)] * 1e3 if self.answers else None


@dataclass(frozen=True)
class Target:
    """One line of the table."""

    name: str
    value: Callable[[Figures], float | None]
    most: Callable[[int, Row], float | None]
    """(number of the row, row) → what it may be; None: it is only told."""
    form: str = "{:.1f}"


def _none(*_: object) -> None:
    return None


TARGETS = (
    Target("first list: CPU, s", lambda f: f.sync_cpu, lambda _, row: row.sync, "{:.2f}"),
    Target("Pss after it, MiB", lambda f: f.pss, lambda _, row: row.pss),
    Target("Pss after all relists, MiB", lambda f: f.pss_after, _none),
    Target("relists: most memory ÷ that before", lambda f: f.peak, lambda *_: 1.25, "{:.2f}"),
    Target("relist: CPU, s (median)", lambda f: median(f.relist_cpu) if f.relist_cpu else None,
           lambda number, _: RELIST_CPU.get(number), "{:.2f}"),
    Target("relist: until all is known, s (median)",
           lambda f: median(f.relist_seconds) if f.relist_seconds else None, _none),
    Target("during a relist: p99, ms", lambda f: f.load.p99 / 1e3 if f.load else None, lambda *_: 35.0, "{:.2f}"),
    Target("p99.9, ms", lambda f: f.load.p999 / 1e3 if f.load else None, _none, "{:.2f}"),
    Target("lost", lambda f: f.load.lost if f.load else None, lambda *_: 0, "{:.0f}"),
    Target("wrong (packets, rcodes)", lambda f: wrong(f.load) if f.load else None, lambda *_: 0, "{:.0f}"),
    Target("no core for the server, ms (worst of 50)", lambda f: f.waited, _none),
    Target("one change: CPU, us", lambda f: f.event_us, lambda *_: 200, "{:.0f}"),
    Target(f"change → answer at {CHANGES:,} changes/s: p99, ms", lambda f: f.answer_p99, lambda *_: 10.0, "{:.2f}"),
    Target("ended for its memory", lambda f: f.killed, lambda *_: 0, "{:.0f}"),
)  # fmt: skip


def wrong(load: Load) -> float:
    """Packets that answer nothing, and answers that are not NOERROR."""
    return load.wrong + round((1 - load.rcodes.get("NOERROR", 0.0)) * load.answered)


@dataclass(frozen=True)
class Plan:
    """What to do to each server."""

    relists: int = 20
    seconds: float = 8.0
    """Length of the measurement of latencies during a relist, at least; a large list takes longer."""
    rate: float = 5000.0
    touches: int = 300
    """Changes whose answers are waited for, at most: `TOUCH_EVERY` and the wait for the answer lie between them."""


# --- a server with its bounds -----------------------------------------------------------------------------------------


def corefile(place: Place, row: Row) -> Path:
    """What matters here of a cluster's Corefile, without a cache for names that are not there yet."""
    more = "pods verified\n        endpoint_pod_names" if row.pods else "pods insecure"
    return place.write(
        "Corefile",
        f""".:{place.port} {{
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        endpoint http://127.0.0.1:{place.api}
        {more}
        fallthrough in-addr.arpa ip6.arpa
        ttl {world.TTL}
    }}
    loadbalance
}}
""",
    )


def command(peer: Peer, file: Path) -> list[str]:
    """How to start a peer."""
    own = peer.name.startswith("kdns")
    return [*([sys.executable, "-c", OURS] if own else [peer.program]), "-conf", str(file)]


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Path | None]:
    """A memory cgroup (version 1) of our own with this limit in octets; None where we may not make one."""
    group = CGROUPS / f"kdns-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def within(group: Path | None, words: list[str]) -> list[str]:
    """The command, run within the cgroup."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *words] if group else words


def killed(group: Path) -> int:
    """How often the kernel has ended a process of the group."""
    found = re.search(r"^oom_kill (\d+)", (group / "memory.oom_control").read_text(), re.M)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def undisturbed(pid: int) -> Iterator[None]:
    """Let the leader of a session come before the machine's other work, where we may; afterwards as before.

    By niceness, of its threads and of what the kernel groups by sessions (autogroups), not by a real-time class, in
    which the threads of one process would wait for each other for 100 ms.
    """

    def nice(value: int) -> None:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(task), value)
            Path(f"/proc/{pid}/autogroup").write_text(str(value))

    nice(-20)
    try:
        yield
    finally:
        nice(0)


class Waiting(measure.Looking):
    """``with Waiting(pid) as waiting``: how long a process stands in line for its core; `worst` in milliseconds."""

    PAUSE = 0.05

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.worst = 0.0
        self._tasks = Path(f"/proc/{pid}/task")

    def _look(self) -> None:
        before = self._read()
        while not self._end.wait(self.PAUSE):
            now = self._read()
            self.worst, before = max(self.worst, now - before), now

    def _read(self) -> float:
        """All its threads together."""
        total = 0.0
        with contextlib.suppress(OSError):
            for task in self._tasks.iterdir():
                total += int((task / "schedstat").read_text().split()[1]) / 1e6
        return total


# --- what is done to it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running server that has listed everything once."""

    process: subprocess.Popen[bytes]
    port: int
    row: Row
    api: Api


def _await(server: Server, relist: int) -> None:
    """Wait until the server knows what comes last in the lists; raises BenchError."""
    names = [world.marker(relist, 0).fqdn, *([world.marker_pod(relist)[0]] if server.row.pods else [])]
    until = time.monotonic() + PATIENCE
    while names:
        if server.process.poll() is not None:
            raise BenchError(f"it ended with status {server.process.returncode}")
        if time.monotonic() > until:
            raise BenchError(f"{names[0]} is not known after {PATIENCE:g} s")
        if measure.answers(server.port, names[0]):
            names.pop(0)
        else:
            time.sleep(0.02)


def relist(server: Server, out: Figures) -> None:
    """Have everything listed again, and wait until it has been."""
    before, start = measure.cpu(server.process.pid), time.monotonic()
    server.api.order("relist 1")
    _await(server, server.api.order("state")["relists"])
    out.relist_seconds.append(time.monotonic() - start)
    measure.settle(server.process)
    out.relist_cpu.append(measure.cpu(server.process.pid) - before)


def relists(server: Server, count: int, out: Figures) -> None:
    """So many, and what they do to memory."""
    pid = server.process.pid
    before = measure.memory(pid)
    out.pss = before.pss / MIB
    with measure.PeakPss(pid) as peak:
        for _ in range(count):
            relist(server, out)
    out.peak = max(peak.octets / before.pss, measure.peak_rss(pid) / before.rss)
    out.pss_after = measure.memory(pid).pss / MIB


def latencies(server: Server, generator: Generator, plan: Plan, out: Figures) -> None:
    """Hot names while everything is listed again."""
    pid = server.process.pid
    generator.run(server.port, plan.rate, 0.5)
    seconds = max(plan.seconds, RELIST_AT + 2 * max(out.relist_seconds, default=0.0))
    with undisturbed(pid), Waiting(pid) as waiting, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(generator.run, server.port, plan.rate, seconds)
        time.sleep(RELIST_AT)
        server.api.order("relist 1")
        _await(server, server.api.order("state")["relists"])
        if asked.done():
            raise BenchError(f"the relist was not over after {seconds:g} s")
        out.load = asked.result()
    out.waited = waiting.worst
    measure.settle(server.process)


def changes(server: Server, generator: Generator, plan: Plan, out: Figures) -> None:
    """What a change costs, and how soon it is in the answers."""
    pid = server.process.pid
    with server.api.changing(CHANGES):
        time.sleep(0.2)
        before, spent = server.api.applied(), measure.cpu(pid)
        time.sleep(plan.touches * TOUCH_EVERY / 2)
        count, spent = server.api.applied() - before, measure.cpu(pid) - spent
        out.event_us = spent / count * 1e6 if count else None
        with undisturbed(pid), ThreadPoolExecutor(1) as pool:
            asked = pool.submit(generator.run, server.port, plan.rate, plan.touches * TOUCH_EVERY)
            for number in itertools.count():
                took = touch(server, number)
                if asked.done():  # all that counts had queries beside it
                    break
                out.answers.append(took)
                time.sleep(TOUCH_EVERY)
            if (load := asked.result()).answered < 0.99 * load.sent:
                raise BenchError(f"only {load.answered:,} of {load.sent:,} questions beside the changes were answered")


def touch(server: Server, number: int) -> float:
    """Change one object; seconds until an answer tells of it.  Raises BenchError."""
    at = float(server.api.order(f"touch {number}")["at"])
    service = world.touched(number)
    query = dns.message.make_query(service.fqdn, "A")
    while (now := time.monotonic()) - at < PATIENCE:
        with contextlib.suppress(OSError, dns.exception.DNSException):
            reply = dns.query.udp(query, "127.0.0.1", 0.5, server.port, ignore_unexpected=True)
            if any(service.addresses[0] in rrset.to_text() for rrset in reply.answer):
                return time.monotonic() - at
    raise BenchError(f"change {number} is not known {now - at:.0f} s later")


def take(peer: Peer, row: Row, plan: Plan, api: Api, generator: Generator, directory: Path, out: Figures) -> None:
    """All figures of one peer.  Raises BenchError; what was measured until then is there."""
    directory.mkdir()
    own = peer.name.startswith("kdns")
    port, log = measure.free_ports(1), directory / "log"
    place = Place(directory, port, 0, api.port, 0, 0)
    with cgroup(LIMIT) if own else contextlib.nullcontext() as group:
        words = within(group, command(peer, corefile(place, row)))
        with measure.running(words, measure.cores()[0], log, peer.environment) as process:
            server = Server(process, port, row, api)
            try:
                _await(server, api.order("state")["relists"])
                measure.settle(process)
                out.sync_cpu = measure.cpu(process.pid)
                relists(server, plan.relists if own else min(plan.relists, FOREIGN_RELISTS), out)
                latencies(server, generator, plan, out)
                changes(server, generator, plan, out)
            except BenchError as error:
                out.killed = killed(group) if group else None
                raise BenchError(f"{error} (ended for its memory: {out.killed}){measure.last_words(log)}") from None
            out.killed = killed(group) if group else None


# --- the table --------------------------------------------------------------------------------------------------------


def judge(number: int, row: Row, target: Target, figures: Figures) -> bool | None:
    """Whether a target is met; None when it is none, or was not measured."""
    value, most = target.value(figures), target.most(number, row)
    return None if value is None or most is None else value <= most


def table(number: int, row: Row, found: dict[str, Figures]) -> str:
    """Markdown; kdns is judged, the others are told beside it."""
    lines = [f"{row.text}:", "", f"| | at most | {' | '.join(found)} |", "|---" * (2 + len(found)) + "|"]
    for target in TARGETS:
        most = target.most(number, row)
        cells = []
        for peer, figures in found.items():
            value, met = target.value(figures), judge(number, row, target, figures)
            text = "–" if value is None else target.form.format(value)
            judged = peer.startswith("kdns") and met is not None
            cells.append(f"{text} {'met' if met else '**not met**'}" if judged else text)
        lines.append(f"| {target.name} | {'' if most is None else f'{most:g}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(number: int, row: Row, peers: list[Peer], plan: Plan) -> tuple[dict[str, Figures], list[str]]:
    """Measure; the figures of each peer, and what failed."""
    found: dict[str, Figures] = {}
    failures: list[str] = []
    _, others = measure.cores()
    with tempfile.TemporaryDirectory(prefix="kdns-scale-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        stack.enter_context(measure.pinned(others))
        program = compile_c("load", directory)
        questions = directory / "questions"
        world.write_questions(world.WORKLOADS["hot"], 0, questions)
        size = [str(row.endpoints), *(["pods"] if row.pods else [])]
        followed = stack.enter_context(api(others, directory / "api.log", row.services, row.slices, *size))
        followed.order("relist 1")
        for peer in peers:
            print(f"row {number}: {peer.name}", file=sys.stderr)
            try:
                generator = Generator(program, questions, others)
                found[peer.name] = Figures()
                take(peer, row, plan, followed, generator, directory / peer.name, found[peer.name])
            except BenchError as error:
                failures.append(f"row {number}, {peer.name}: {error}")
    return found, failures


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when a target is not met or something failed."""
    try:
        with measure.ending_well():
            return _main(_options(arguments))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
    return 1


def _main(options: argparse.Namespace) -> int:
    plan = replace(Plan(), relists=options.relists, seconds=options.seconds)
    peers = [PEERS[name] for name in options.peers]
    texts, failures, saved, good = [], [], {}, True
    for number in dict.fromkeys(options.row or ROWS):
        row = ROWS[number]
        found, failed = run(number, row, peers, plan)
        failures += failed
        texts.append(table(number, row, found))
        saved[number] = {peer: asdict(figures) for peer, figures in found.items()}
        own = [figures for peer, figures in found.items() if peer.startswith("kdns")]
        good &= all(judge(number, row, target, figures) is not False for target in TARGETS for figures in own)
    failed = ["\n".join(f"- {failure}" for failure in failures)] if failures else []
    text = "\n\n".join([f"# What a large cluster costs\n\n{machine()}", *texts, *failed]) + "\n"
    print(text)
    if options.out:
        (options.out / "scale.md").write_text(text)
        told = {"where": machine(), "not_as_it_should_be": failures, "rows": saved}
        (options.out / "scale.json").write_text(json.dumps(told, indent=1) + "\n")
    return 0 if good and not failures else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    able = [name for name in ("kdns", "kdns-pure", "kdns-multisocket", "coredns") if not PEERS[name].missing]
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description="What a large cluster costs.")
    add = parser.add_argument
    add("--row", type=int, choices=list(ROWS), action="append", help="which cluster; default: each")
    add("--relists", type=int, default=20, metavar="N", help="default 20")
    add("--seconds", type=float, default=8.0, metavar="S", help="length of the relist under questions (default 8)")
    add("--peers", type=named, metavar="A,B",
        default=[name for name in able if name != "kdns-multisocket"], help=f"of {' '.join(able)}")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="write scale.md and scale.json there")
    options = parser.parse_args(arguments)
    for name in options.peers or [""]:
        if name not in able:
            parser.error(f"'{name}' cannot be measured; there are {' '.join(able)}")
    if not (1 <= options.relists <= 1000 and 1 <= options.seconds <= 300):
        parser.error("--relists must be from 1 to 1000, --seconds from 1 to 300")
    if shutil.which("cc") is None:
        parser.error("'cc' is not on PATH")
    make_directory(parser, options.out)
    return options


if __name__ == "__main__":
    sys.exit(main())
