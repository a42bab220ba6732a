"""What many tests need: a server in this process or in one of its own, and questions over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rdatatype
import pytest

from kdns import build, corefile, log, plugins
from kdns.compiled import VARIABLE
from kdns.plugin import Plugin
from kdns.server import Server

ROOT = Path(__file__).resolve().parent.parent

TWINS = ("python", "compiled")
"""What `use_twin` takes: tests of what has a compiled twin run on both."""


def use_twin(twin: str, monkeypatch: pytest.MonkeyPatch, module: str = "kdns._packetcache") -> str:
    """Let kdns choose this twin; skips where the compiled one is not built, unless the environment demands it."""
    if twin == "compiled" and os.environ.get(VARIABLE) != "must":
        pytest.importorskip(module, reason="not compiled here", exc_type=ImportError)
    monkeypatch.setenv(VARIABLE, "must" if twin == "compiled" else "never")
    return twin


class Lines(log.Sink):
    """A log sink that keeps the lines."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)

    def matching(self, part: str) -> list[str]:
        return [line for line in self.lines if part in line]


@contextlib.contextmanager
def captured_log() -> Iterator[Lines]:
    """Log lines go into the result instead of standard output."""
    lines = Lines()
    before = log.set_sink(lines)
    try:
        yield lines
    finally:
        log.set_sink(before)


def free_port() -> int:
    """A port that nothing listens on at the moment, on UDP and TCP.

    It is none of those that the kernel gives to whoever asks for any, so nobody gets it by chance before it is used.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram, socket.socket() as stream:
            try:
                for sock in (datagram, stream):
                    sock.bind(("", port))
            except OSError:
                continue
            return port


def parse(text: str, name: str = "Corefile") -> corefile.Corefile:
    """A Corefile's text, parsed as the command does it."""
    return corefile.parse(text, name, env=os.environ, read=corefile.read_file, glob=corefile.glob_files)


@contextlib.asynccontextmanager
async def serving(text: str | Callable[[], str], name: str = "Corefile") -> AsyncIterator[Server]:
    """A server in this process; keys without a port get a free one: ``server.ports[0]``."""
    read = text if callable(text) else lambda: text
    server = Server(lambda: parse(read(), name), 0)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(
    port: int,
    name: str,
    kind: str = "A",
    *,
    host: str = "127.0.0.1",
    tcp: bool = False,
    timeout: float = 5.0,
    edns: bool | int = False,
    payload: int = 1232,
    klass: str = "IN",
) -> dns.message.Message:
    """One question over a real socket, from a thread so that a server in this process can answer."""
    query = dns.message.make_query(name, kind, klass, use_edns=edns if edns is not False else None, payload=payload)
    send = dns.query.tcp if tcp else dns.query.udp
    return await asyncio.to_thread(send, query, host, timeout, port)


def answers(reply: dns.message.Message) -> list[str]:
    """The answer section as ``name TTL class type data`` lines, sorted within nothing: order as sent."""
    return [line for rrset in reply.answer for line in rrset.to_text().splitlines()]


class Kdns:
    """The command ``kdns`` in a process of its own."""

    def __init__(
        self, conf: Path | str, *flags: str, cwd: Path | None = None, wait: float = 15.0, within: Sequence[str] = ()
    ) -> None:
        """``within``: what its command line begins with, such as ``env NAME=VALUE``."""
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "kdns", "-conf", str(conf), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd or ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.output = ""
        try:
            self._wait_for("kdns-", wait)
        except BaseException:
            self.__exit__()
            raise

    def _wait_for(self, text: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.read():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"kdns did not say {text!r}: {self.read()}")
            time.sleep(0.01)

    def read(self) -> str:
        """All that it has written so far."""
        assert self.process.stdout is not None
        if not self.process.stdout.closed:
            self.output += (self.process.stdout.read() or b"").decode()
        return self.output

    def wait_for(self, text: str, seconds: float = 15.0) -> None:
        """Wait until it has written this."""
        self._wait_for(text, seconds)

    def stop(self, signal: int = 15, seconds: float = 15.0) -> int:
        """End it; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal)
        code = self.process.wait(seconds)
        self.read()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> Kdns:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def installed(*kinds: type[Plugin]) -> Iterator[None]:
    """Directives of these names exist, innermost in the chain, as if a package had brought them."""
    find, order = plugins.find, plugins.order
    found = {kind.name: kind for kind in kinds}
    build.plugins.find = lambda name: found[name] if name in found else find(name)  # type: ignore[assignment]
    build.plugins.order = lambda directives: (*order(directives), *found)  # type: ignore[assignment]
    try:
        yield
    finally:
        plugins.find, plugins.order = find, order  # type: ignore[assignment]


async def http_get(
    port: int, path: str, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1"
) -> tuple[int, str]:
    """Status and body of a GET."""
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the answer.
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()
    finally:
        await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection and wait until it is: one that is still closing when its loop ends is never closed."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to come true, at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def edit(path: Path, text: str) -> None:
    """Replace a file in one step, as a ConfigMap is."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)
