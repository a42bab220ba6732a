"""kdns as a process beside the control plane, and somebody who never stops asking it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from tests.kube.expected import NOWHERE, Question
from tests.support import Kdns, free_port

OUTSIDE = "192.0.2.80"
"""The address of ``target.example.org``."""
PACE = 0.01
PATIENCE = 2.0
"""Seconds after which a query counts as lost: resolvers wait no longer than five, and this is loopback."""


class Served:
    """A running kdns."""

    def __init__(self, process: Kdns, port: int, http: int) -> None:
        self.process = process
        self.port = port
        self.http = http
        """Where /ready is."""
        self._link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._link.connect(("127.0.0.1", port))

    def ask(self, name: str, type: str = "A") -> frozenset[str]:
        """What it says: records as `expected.Expected` has them, or the error's name; raises dns.exception.Timeout."""
        return said(self.ask_fully(name, type))

    def ask_fully(self, name: str, type: str = "A") -> dns.message.Message:
        """The whole reply."""
        query = dns.message.make_query(name, type, use_edns=0, payload=1232)
        reply = dns.query.udp(query, "127.0.0.1", PATIENCE, self.port, sock=self._link, ignore_unexpected=True)
        if reply.flags & dns.flags.TC:
            reply = dns.query.tcp(query, "127.0.0.1", PATIENCE, self.port)
        return reply

    def close(self) -> None:
        """Stop asking."""
        self._link.close()


def said(reply: dns.message.Message) -> frozenset[str]:
    """A reply as `expected.Expected` has it: SRV records without weight; CNAMEs only if asked for."""
    if reply.rcode() != dns.rcode.NOERROR:
        return frozenset({dns.rcode.to_text(reply.rcode())})
    asked = reply.question[0].rdtype
    return frozenset(
        f"{data.priority} {data.port} {data.target}".lower() if asked == dns.rdatatype.SRV else data.to_text().lower()
        for rrset in reply.answer
        if rrset.rdtype == asked
        for data in rrset
    )


def corefile(port: int, http: int, access: str, zones: str) -> str:
    """As kubeadm's; ``access``: lines for the kubernetes block; ``zones``: further ones."""
    return f"""
        .:{port} {{
            bind 127.0.0.1
            errors
            ready 127.0.0.1:{http}
            hosts {{
                {OUTSIDE} target.example.org
                fallthrough
            }}
            kubernetes cluster.local in-addr.arpa ip6.arpa {zones} {{
                {access}
                pods verified
                ttl 30
            }}
            cache 30
            loadbalance
        }}
    """


@contextmanager
def serving(
    directory: Path, access: str, within: Sequence[str] = (), ready: float = 30.0, zones: str = ""
) -> Iterator[Served]:
    """kdns with that access to a cluster; ``within``: the beginning of its command line; ``ready``: seconds until
    it must know the cluster (0: do not wait); ``zones``: further ones."""
    port, http = free_port(), free_port()
    file = directory / f"Corefile-{port}"
    file.write_text(corefile(port, http, access, zones))
    with Kdns(file, within=within) as process:
        served = Served(process, port, http)
        try:
            deadline = time.monotonic() + ready
            while ready and not served.ask("kubernetes.default.svc.cluster.local.") - NOWHERE - {"SERVFAIL"}:
                assert time.monotonic() < deadline, process.read()
                time.sleep(0.02)
            yield served
        finally:
            served.close()
            process.stop()


class Asker:
    """Asks a hundred times a second what has a known answer, and writes down each answer that is not it."""

    def __init__(self, served: Served, known: dict[Question, frozenset[str]]) -> None:
        self.asked = 0
        self.wrong: list[str] = []
        self.slowest = 0.0
        """Seconds."""
        self._port = served.port
        self._known = known
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.connect(("127.0.0.1", self._port))
            link.settimeout(PATIENCE)
            due = time.monotonic()
            for (name, type), right in cycle(self._known.items()):
                # A name that was never asked before is looked up in the index; the others may come out of the cache.
                self._ask(link, name, type, right)
                self._ask(link, f"no-{self.asked}.{name}", "A", NOWHERE)
                due = max(due + 2 * PACE, time.monotonic())
                if self._stop.wait(max(0.0, due - time.monotonic())):
                    return

    def _ask(self, link: socket.socket, name: str, type: str, right: frozenset[str]) -> None:
        query = dns.message.make_query(name, type)
        self.asked += 1
        started = time.monotonic()
        try:
            link.send(query.to_wire())
            while (reply := dns.message.from_wire(link.recv(4096))).id != query.id:
                pass
            answer = said(reply)
        except OSError as error:
            answer = frozenset({f"lost: {error}"})
        self.slowest = max(self.slowest, time.monotonic() - started)
        if answer != right:
            self.wrong.append(f"{time.monotonic():.3f} {name} {type}: {sorted(answer)} instead of {sorted(right)}")


def lag(served: Served, name: str, right: Callable[[frozenset[str]], bool], since: float, bound: float) -> float:
    """Seconds from ``since`` until its answer is right; raises AssertionError when that takes longer than ``bound``."""
    while not right(answer := served.ask(name)):
        if time.monotonic() - since > bound:
            raise AssertionError(f"{name} is still {sorted(answer)} after {bound:g} s: {served.process.read()}")
        time.sleep(0.001)
    return time.monotonic() - since
