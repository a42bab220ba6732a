"""What a scenario stands on: the fake API server in this process, and kdns, an upstream and the load in their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.chaos.answers import said
from tests.chaos.load import EDNS, TYPES
from tests.chaos.verdict import Run
from tests.chaos.world import Question
from tests.fakeapi import FakeApi
from tests.faults import tools
from tests.support import ROOT, Kdns, free_port, hang_up, http_get


@dataclass
class Seen:
    """What became of the questions of one window (see `tests.chaos.load`); times are seconds."""

    sent: int
    lost: int
    wrong: int
    examples: list[str]
    answers: dict[str, int]
    p50: float
    p99: float
    p100: float
    seconds: float

    @property
    def servfail(self) -> int:
        return self.answers.get("2", 0)

    @property
    def nxdomain(self) -> int:
        return self.answers.get("3", 0)


class Load:
    """A process that asks and checks; windows are measured one after the other."""

    def __init__(
        self, run: Run, targets: Sequence[tuple[str, int]], questions: Sequence[Question], patience: float = 1.0
    ) -> None:
        setup = {
            "patience": patience,
            "rate": run.rate, "seed": run.seed, "targets": targets, "clients": run.clients,
            "questions": [[one.name, one.type, one.weight, list(map(sorted, one.right))] for one in questions],
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.load"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.tell(setup)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"asking\n":  # a busy machine takes its time to start a process
            raise RuntimeError("the load does not start")

    def tell(self, order: dict[str, Any]) -> None:
        """Send a command, see `tests.chaos.load.Generator.obey`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def expect(self, changes: dict[int, Iterable[frozenset[str]]]) -> None:
        """From now on these questions, by their place in the list, have other right answers."""
        self.tell({"expect": {number: [sorted(one) for one in right] for number, right in changes.items()}})

    async def begin(self) -> None:
        """Wait until it asks: on a busy machine its process takes a while to start."""
        assert self._process.stdout is not None
        if not await asyncio.to_thread(self._process.stdout.readline):
            raise RuntimeError("the load has ended")

    async def window(self) -> Seen:
        """End the present window and begin another; what was in it, when all its questions are settled."""
        assert self._process.stdout is not None
        self.tell({"window": True})
        line = await asyncio.to_thread(self._process.stdout.readline)
        if not line:
            raise RuntimeError("the load has ended")
        return Seen(**json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


@dataclass
class Setting:
    """What differs between the Corefiles of scenarios."""

    access: str = ""
    """Lines of the kubernetes block that say where the objects come from; empty: the stage's API server."""
    kubernetes: str = "pods verified"
    """Further lines of it."""
    health: str = ""
    """Lines of the health block."""
    top: str = ""
    """Further lines of the server block."""
    host: str = "127.0.0.1"
    within: Sequence[str] = ()
    """What kdns's command line begins with."""
    flags: Sequence[str] = field(default_factory=tuple)


class Server:
    """One kdns with ports of its own, apart from the DNS port if one is given."""

    def __init__(self, stage: Stage, file: Path, port: int = 0) -> None:
        self.setting, self.file = stage.setting, file
        self.port = port or free_port()
        self.health, self.ready, self.metrics_port = free_port(), free_port(), free_port()
        self._api, self._upstream = stage.api, stage.upstream
        self.process: Kdns | None = None

    def corefile(self) -> str:
        setting = self.setting
        host, literal = setting.host, f"[{setting.host}]" if ":" in setting.host else setting.host
        return f""".:{self.port} {{
    bind {host}
    errors
    health {literal}:{self.health} {{
        {setting.health}
    }}
    ready {literal}:{self.ready}
    prometheus {literal}:{self.metrics_port}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        {setting.access or f"endpoint {self._api.url}"}
        {setting.kubernetes}
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    {setting.top}
    forward . {literal}:{self._upstream}
    cache 30
    loadbalance
}}
"""

    async def start(self, write: bool = True) -> None:
        """Start the process and wait until it says that it serves; ``write`` its Corefile before."""
        if write:
            self.file.write_text(self.corefile())
        self.process = await asyncio.to_thread(Kdns, self.file, *self.setting.flags, within=self.setting.within)

    @property
    def kdns(self) -> Kdns:
        assert self.process is not None
        return self.process

    async def until_ready(self, seconds: float = 60.0) -> float:
        """Seconds until ``/ready`` is 200."""
        return await until(lambda: self._is(self.ready, "/ready"), seconds, self._said)

    async def readiness(self) -> tuple[int, str]:
        return await http_get(self.ready, "/ready", host=self.setting.host)

    async def _is(self, port: int, path: str) -> bool:
        with contextlib.suppress(OSError, TimeoutError):
            return (await http_get(port, path, host=self.setting.host))[0] == 200
        return False

    def _said(self) -> str:
        return f"kdns said: {self.kdns.read()[-2000:]}"

    async def metrics(self) -> dict[str, float]:
        status, text = await http_get(self.metrics_port, "/metrics", host=self.setting.host)
        assert status == 200
        pairs = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {key: float(value) for key, _, value in pairs}

    def cpu(self) -> float:
        """Seconds of CPU time used so far."""
        fields = Path(f"/proc/{self.kdns.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def ask(self, name: str, type: str = "A", seconds: float = 2.0) -> frozenset[str]:
        """What it says (see `tests.chaos.answers`); raises TimeoutError."""
        return said(await self.ask_fully(name, type, seconds))

    async def ask_fully(self, name: str, type: str = "A", seconds: float = 2.0) -> bytes:
        packet = tools.query(name, id=time.monotonic_ns() & 0xFFFF, type=TYPES[type], edns=EDNS)
        family = socket.AF_INET6 if ":" in self.setting.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((self.setting.host, self.port))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(sock, packet)
                return await loop.sock_recv(sock, 65535)

    async def ask_whole(self, name: str) -> frozenset[str]:
        """Its addresses, over TCP if they are many."""
        reply = await self.ask_fully(name)
        if not reply[2] & 2:
            return said(reply)
        reader, writer = await asyncio.open_connection(self.setting.host, self.port)
        try:
            writer.write(tools.framed(tools.query(name, id=1, edns=EDNS)))
            async with asyncio.timeout(5):
                return said(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        finally:
            await hang_up(writer)

    async def becomes(self, name: str, right: Iterable[str], seconds: float, type: str = "A") -> float:
        """Seconds until this is the answer."""
        wanted = frozenset(right)

        async def is_right() -> bool:
            try:
                return await self.ask(name, type) == wanted
            except (TimeoutError, OSError):
                return False

        return await until(is_right, seconds, self._said)

    async def stop(self, signal: int = 15, seconds: float = 40.0) -> int:
        return await asyncio.to_thread(self.kdns.stop, signal, seconds)

    def kill(self) -> None:
        """End it, if it still runs, and close what is open."""
        if self.process is not None:
            self.process.read()
            self.process.__exit__()


class Stage:
    """``async with Stage(run, setting) as stage``: the API server and the upstream run; `server`, `load` make the rest.

    ``api``: one that the scenario has made itself, with its objects in it.
    """

    def __init__(self, run: Run, setting: Setting | None = None, api: FakeApi | None = None) -> None:
        self.run = run
        self.setting = setting or Setting()
        self.api = api or FakeApi(bookmark=5.0, host=self.setting.host)
        self.upstream = 0
        self._servers: list[Server] = []
        self._loads: list[Load] = []
        self._upstream: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Stage:
        command = [sys.executable, "-m", "tests.e2e.upstream", self.setting.host]
        self._upstream = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._upstream.stdout is not None
        self.upstream = int(await asyncio.to_thread(self._upstream.stdout.readline))
        await self.api.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for load in self._loads:
            load.close()
        ran = [server for server in self._servers if server.process is not None]
        for server in ran:
            server.kill()
            self.run.keep_log(server.file.name, server.kdns.output)
        await self.api.stop()
        assert self._upstream is not None and self._upstream.stdout is not None
        self._upstream.kill()
        self._upstream.stdout.close()
        self._upstream.wait()
        for server in ran:
            if error is None and ("Traceback" in server.kdns.output or "panic" in server.kdns.output):
                raise AssertionError(f"kdns stumbled: {server.kdns.output[-3000:]}")

    async def server(self, start: bool = True, ready: bool = True, port: int = 0) -> Server:
        """One more kdns; ``start`` it, and wait until it is ``ready``."""
        made = Server(self, self.run.directory / f"Corefile-{len(self._servers)}", port)
        self._servers.append(made)
        if start:
            await made.start()
            if ready:
                await made.until_ready()
        return made

    async def load(
        self, servers: Server | Sequence[Server], questions: Sequence[Question], patience: float = 1.0
    ) -> Load:
        """Begin to ask these servers."""
        several = [servers] if isinstance(servers, Server) else servers
        made = Load(self.run, [(self.setting.host, server.port) for server in several], questions, patience)
        self._loads.append(made)
        await made.begin()
        return made


async def until(condition: Callable[[], Any], seconds: float, why: Callable[[], str] = lambda: "") -> float:
    """Wait for something that must come about; how long it took, in seconds.  Raises TimeoutError with ``why``."""
    began = time.monotonic()
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:g} s; {why()}")
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def meanwhile(work: Any) -> AsyncIterator[None]:
    """Run this coroutine beside the body, and end it then; what it raises is raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
