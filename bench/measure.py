"""Processes on their cores, what they cost, and what dnsperf says."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import dns.exception
import dns.message
import dns.query
import dns.rcode

from bench.sample import Cost, Memory

START = 120.0
"""Seconds until a server must answer: some read 100,000 records first."""
SETTLE = 0.5
"""Seconds of rest before a measurement."""
STOP = 10.0


class BenchError(Exception):
    """Something cannot be measured; the message says why."""


@functools.cache
def cores() -> tuple[set[int], set[int]]:
    """The core for the server and those for everything else, of what we had at the beginning."""
    available = sorted(os.sched_getaffinity(0))
    return {available[0]}, set(available[1:]) or {available[0]}


@contextlib.contextmanager
def ending_well() -> Iterator[None]:
    """SIGTERM ends us by an exception meanwhile, so that the servers end, too: they have sessions of their own."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def pinned(on: set[int]) -> Iterator[None]:
    """Keep this thread, and whatever it starts meanwhile, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, on)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(
    command: list[str], on: set[int], log: Path, environment: Mapping[str, str] | None = None, *, piped: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to cores, with these variables beside ours; ended, with its children, at the end.

    ``piped``: standard input and output are pipes instead of nothing and the log.
    """
    with log.open("wb") as output, pinned(on):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else output, stderr=output, start_new_session=True,
            cwd=Path(__file__).resolve().parent.parent, env={**os.environ, **(environment or {})},
        )  # fmt: skip
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP)
        # What is left of its children has no other parent to end it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    out = [pid]
    for process in out:
        out += children.get(process, [])
    return out


def cpu(pid: int) -> float:
    """Seconds of CPU that a process and its descendants have had, user and system, with all their threads; those
    threads and children that have ended included."""
    total = 0.0
    for process in family(pid):
        with contextlib.suppress(OSError):
            # Of children that it has waited for: cutime and cstime, in ticks.
            ended = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[13:15]
            total += sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")
            # The clock of another process, as clock_getcpuclockid(3) makes its number; a sum over /proc/PID/task would
            # lack the threads that have ended.
            total += time.clock_gettime(~process << 3 | 2)
    return total


def memory(pid: int) -> Memory:
    """What a process and its descendants take together."""
    total = {"Pss": 0, "Rss": 0}
    for process in family(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            for kind, kib in re.findall(r"^(Pss|Rss):\s+(\d+) kB", text, re.M):
                total[kind] += int(kib) * 1024
    return Memory(total["Pss"], total["Rss"])


def peak_rss(pid: int) -> int:
    """The most memory that a process and its descendants of now each ever had resident, together, in octets."""
    total = 0
    for process in family(pid):
        with contextlib.suppress(OSError):
            found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.M)
            total += int(found[1]) * 1024 if found else 0
    return total


class Looking:
    """A context in which a thread of its own runs `_look`, which ends when `_end` is set."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        raise NotImplementedError


class PeakPss(Looking):
    """``with PeakPss(pid) as peak``: look at a process's memory, its descendants' included, now and then; `octets` is
    the most of it."""

    PAUSE = 0.25
    """Seconds between looks: each costs the process a little."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.octets = 0
        self._pid = pid

    def _look(self) -> None:
        more = True
        while more:
            # Also once more at the end.
            more = not self._end.wait(self.PAUSE)
            self.octets = max(self.octets, memory(self._pid).pss)


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nothing listens on."""
    while True:
        with contextlib.ExitStack() as stack:
            first = 0
            try:
                for number in range(count):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
                        sock.bind(("127.0.0.1", first + number if first else 0))
                        first = first or sock.getsockname()[1]
            except OSError:
                continue
            return first


def last_words(log: Path) -> str:
    """The end of a server's log, for an error that it explains."""
    lines = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
    return ": " + " / ".join(line.strip()[:300] for line in lines) if lines else ""


def await_answer(
    process: subprocess.Popen[bytes], port: int, question: str, rcodes: tuple[str, ...], log: Path | None = None
) -> None:
    """Wait until the server gives a right answer; raises BenchError, with the end of its log."""
    name, kind = question.split()
    query = dns.message.make_query(name, kind)
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"it ended with status {process.returncode}{last_words(log) if log else ''}")
        try:
            reply = dns.query.udp(query, "127.0.0.1", 1.0, port, ignore_unexpected=True)
            if not rcodes or dns.rcode.to_text(reply.rcode()) in rcodes:
                return
        except (OSError, dns.exception.DNSException):
            pass
        time.sleep(0.05)
    raise BenchError(f"no right answer to {question!r} in {START:g} s{last_words(log) if log else ''}")


def answers(port: int, name: str) -> bool:
    """Whether a server has an address for this name now; False also when it says nothing for a moment."""
    try:
        reply = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", 0.5, port, ignore_unexpected=True)
    except (OSError, dns.exception.DNSException):
        return False
    return bool(reply.answer)


def await_line(process: subprocess.Popen[bytes], log: Path, line: str) -> None:
    """Wait until the process has written a line; raises BenchError."""
    deadline = time.monotonic() + START
    while line not in log.read_text().splitlines():
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"it did not say {line!r}: {log.read_text()}")
        time.sleep(0.02)


def settle(process: subprocess.Popen[bytes]) -> None:
    """Let a server come to rest: until it has hardly worked for a moment."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        before = cpu(process.pid)
        time.sleep(SETTLE)
        if cpu(process.pid) - before < SETTLE / 50:
            return


def dnsperf(port: int, file: Path, on: set[int], *, seconds: float, once: bool, tcp: bool) -> dict[str, str]:
    """Run dnsperf against a port; its statistics by their names."""
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(file), "-q", "100", "-T", "1", "-t", "3"]
    command += ["-m", "tcp", "-c", "4"] if tcp else ["-c", "1"]
    command += ["-n", "1"] if once else ["-l", f"{seconds:g}"]
    with pinned(on):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    statistics = dict(re.findall(r"^\s+([A-Z][^:\n]+):\s+(.+)$", done.stdout, re.M))
    if "Queries completed" not in statistics:
        raise BenchError(f"dnsperf: {done.stderr.strip() or done.stdout.strip()}")
    return statistics


def cost(process: subprocess.Popen[bytes], port: int, file: Path, *, seconds: float, once: bool, tcp: bool) -> Cost:
    """Ask a running server as fast as it answers, and tell what that cost."""
    _, others = cores()
    if not once:
        dnsperf(port, file, others, seconds=0.5, once=False, tcp=tcp)
    before = cpu(process.pid)
    told = dnsperf(port, file, others, seconds=seconds, once=once, tcp=tcp)
    spent = cpu(process.pid) - before
    shares = re.findall(r"(\w+) \d+ \((\d+\.\d+)%\)", told.get("Response codes", ""))
    return Cost(
        int(told["Queries completed"].split()[0]),
        spent,
        float(told["Queries per second"]),
        int(told["Queries lost"].split()[0]),
        float(told["Average Latency (s)"].split()[0]),
        {rcode: float(share) / 100 for rcode, share in shares},
    )
