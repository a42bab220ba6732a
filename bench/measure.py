"""Processes on their cores, what they cost, and what dnsperf says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode

START = 120.0
"""Seconds until a server must answer: some read 100,000 records first."""
SETTLE = 0.5
"""Seconds of rest before a measurement."""
STOP = 10.0


class BenchError(Exception):
    """Something cannot be measured; the message says why."""


@dataclass(frozen=True)
class Memory:
    """What processes take, in octets."""

    pss: int
    """Pages that are shared with others count in proportion."""
    rss: int


@dataclass
class Sample:
    """One server under one workload, once."""

    answered: int
    seconds: float
    """CPU of the server, user and system."""
    qps: float
    lost: int
    latency: float
    """Average, in seconds."""
    rcodes: dict[str, float] = field(default_factory=dict)
    """Shares of the answers."""
    idle: Memory = field(default_factory=lambda: Memory(0, 0))
    """Before the questions."""
    after: Memory = field(default_factory=lambda: Memory(0, 0))
    """After them."""

    @property
    def cost(self) -> float:
        """Microseconds of CPU per answered query."""
        return self.seconds / self.answered * 1e6 if self.answered else float("nan")


def cores() -> tuple[set[int], set[int]]:
    """The core for the server and those for everything else."""
    available = sorted(os.sched_getaffinity(0))
    return {available[0]}, set(available[1:]) or {available[0]}


@contextlib.contextmanager
def running(command: list[str], on: set[int], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to cores; ended, with its children, at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, cwd=Path(__file__).resolve().parent.parent,
            preexec_fn=lambda: os.sched_setaffinity(0, on),
        )  # fmt: skip
    try:
        yield process
    finally:
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


def cpu(pids: list[int]) -> float:
    """Seconds of CPU that these processes have had, user and system."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def memory(pids: list[int]) -> Memory:
    """What these processes take together."""
    total = {"Pss": 0, "Rss": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            for kind, kib in re.findall(r"^(Pss|Rss):\s+(\d+) kB", text, re.M):
                total[kind] += int(kib) * 1024
    return Memory(total["Pss"], total["Rss"])


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


def await_answer(process: subprocess.Popen[bytes], port: int, question: str, rcodes: tuple[str, ...]) -> None:
    """Wait until the server gives a right answer; raises BenchError."""
    name, kind = question.split()
    query = dns.message.make_query(name, kind)
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"it ended with status {process.returncode}")
        try:
            reply = dns.query.udp(query, "127.0.0.1", 1.0, port, ignore_unexpected=True)
            if not rcodes or dns.rcode.to_text(reply.rcode()) in rcodes:
                return
        except (OSError, dns.exception.DNSException):
            pass
        time.sleep(0.05)
    raise BenchError(f"no right answer to {question!r} in {START:g} s")


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
        pids = family(process.pid)
        before = cpu(pids)
        time.sleep(SETTLE)
        if cpu(pids) - before < SETTLE / 50:
            return


def dnsperf(port: int, file: Path, on: set[int], *, seconds: float, once: bool, tcp: bool) -> dict[str, str]:
    """Run dnsperf against a port; its statistics by their names."""
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(file), "-q", "100", "-T", "1", "-t", "3"]
    command += ["-m", "tcp", "-c", "4"] if tcp else ["-c", "1"]
    command += ["-n", "1"] if once else ["-l", f"{seconds:g}"]
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, on), check=False
    )
    statistics = dict(re.findall(r"^\s+([A-Z][^:\n]+):\s+(.+)$", done.stdout, re.M))
    if "Queries completed" not in statistics:
        raise BenchError(f"dnsperf: {done.stderr.strip() or done.stdout.strip()}")
    return statistics


def sample(process: subprocess.Popen[bytes], port: int, file: Path, seconds: float, once: bool, tcp: bool) -> Sample:
    """Ask a running server, and tell what that cost."""
    _, others = cores()
    if not once:
        dnsperf(port, file, others, seconds=0.5, once=False, tcp=tcp)
    pids = family(process.pid)
    idle = memory(pids)
    before = cpu(pids)
    told = dnsperf(port, file, others, seconds=seconds, once=once, tcp=tcp)
    spent = cpu(pids) - before
    shares = re.findall(r"(\w+) \d+ \((\d+\.\d+)%\)", told.get("Response codes", ""))
    return Sample(
        int(told["Queries completed"].split()[0]),
        spent,
        float(told["Queries per second"]),
        int(told["Queries lost"].split()[0]),
        float(told["Average Latency (s)"].split()[0]),
        {rcode: float(share) / 100 for rcode, share in shares},
        idle,
        memory(pids),
    )
