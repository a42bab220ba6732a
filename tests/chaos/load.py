"""The steady load: a process of its own that asks over UDP at a given rate and checks every answer.

``python -m tests.chaos.load`` reads commands on standard input, one JSON object a line, says when it begins, and writes
one `Window` a line when a window has ended and all its questions have been answered or given up.  `stage.Load` is the
other end.  Open loop: it asks when it is time, whether earlier questions are answered or not.  Its clients are sockets
with addresses of their own (127.1.0.1 and up; over IPv6 they share one), so that a server or a NAT can tell them apart.

A question counts as ``lost`` when it has no answer after a second (``patience``), and as ``wrong`` when it has one
that is not right.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import time
from collections import deque
from typing import Any

from kdns.message import Edns
from tests.chaos.answers import said
from tests.faults.tools import query as question_packet

EXAMPLES = 5
KEPT = 500
"""Forms of the right answer to one question that are known by heart: order and TTL vary."""
WAKE = 0.001
ANY = frozenset({"any"})
"""As a right answer: any records at all, or that there are too many for UDP."""
EDNS = Edns(1232, False)
"""Every question has it, so that extended errors are told."""
ERRORS = {"SERVFAIL", "NXDOMAIN", "REFUSED", "FORMERR", "NOTIMP", "garbage", "a record twice"}
FRESH_EVERY = 0.05
"""Seconds after which one of the fresh clients is replaced by one with another port."""
_SO_RCVBUFFORCE = 33
TYPES = {"A": 1, "CNAME": 5, "PTR": 12, "TXT": 16, "AAAA": 28, "SRV": 33}


class Window:
    """What became of the questions of some time."""

    def __init__(self) -> None:
        self.sent = self.lost = self.wrong = self.waiting = 0
        self.examples: list[str] = []
        self.answers: dict[str, int] = {}
        """How often which rcode came."""
        self.times: list[float] = []
        self.began = time.monotonic()
        self.seconds = 0.0

    def complain(self, text: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{time.monotonic() - self.began:.2f} s: {text}")

    def line(self) -> dict[str, Any]:
        times = sorted(self.times)
        kept = {name: getattr(self, name) for name in ("sent", "lost", "wrong", "examples", "answers")}
        at = {f"p{share:g}": _share(times, share) for share in (50, 99, 100)}
        return kept | at | {"seconds": self.seconds}


def _share(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share / 100))] if times else 0.0


class Client:
    """One socket, that is one flow; ``target`` is where its packets end up."""

    def __init__(self, address: str, target: tuple[str, int], fresh: bool) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):  # not for everyone
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 2**22)
        self.sock.bind((address, 0))
        self.sock.setblocking(False)
        self.address, self.target, self.fresh = address, target, fresh
        self.id = random.randrange(65536)
        self.pending: dict[int, tuple[float, int, str, Window]] = {}


class Generator:
    """The process's work."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.rate: float = setup["rate"]
        self.patience: float = setup["patience"]
        self.random = random.Random(setup["seed"])
        self.targets = [(host, port) for host, port in setup["targets"]]
        self.questions: list[tuple[str, int]] = []
        self.right: list[list[frozenset[str]]] = []
        self.known: list[set[bytes]] = []
        self.packets: list[bytes] = []
        order = []
        for number, (name, type, weight, right) in enumerate(setup["questions"]):
            self.questions.append((name, TYPES[type]))
            self.right.append([frozenset(one) for one in right])
            self.known.append(set())
            self.packets.append(b"" if "*" in name else question_packet(name, type=TYPES[type], edns=EDNS)[2:])
            order.append((number, weight))
        self.order = [number for number, _ in order]
        self.weights = [weight for _, weight in order]
        six = ":" in self.targets[0][0]
        self.poll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.active: list[Client] = []
        self.fresh: deque[Client] = deque()
        self.retired: deque[tuple[float, Client]] = deque()
        for number in range(setup["clients"]):
            self.active.append(self.client("::1" if six else f"127.1.0.{1 + number}", number % 5 == 0))
        self.fresh.extend(client for client in self.active if client.fresh)
        self.due: deque[tuple[float, Client, int]] = deque()
        self.window = Window()
        self.closing: list[Window] = []
        self.serial = 0
        self.picks: list[int] = []
        self.input = b""

    def client(self, address: str, fresh: bool) -> Client:
        made = Client(address, self.random.choice(self.targets), fresh)
        self.clients[made.sock.fileno()] = made
        self.poll.register(made.sock.fileno(), select.EPOLLIN)
        return made

    def run(self) -> None:
        self.poll.register(0, select.EPOLLIN)
        print("begun", flush=True)
        last, credit, renew = time.monotonic(), 0.0, 0.0
        while True:
            for fd, _ in self.poll.poll(WAKE):
                if fd == 0:
                    data = os.read(0, 2**20)
                    if not data:
                        return
                    self.commands(data)
                elif fd in self.clients:
                    self.receive(self.clients[fd])
            now = time.monotonic()
            # After a pause that the machine forced on us the time is not made up for in one burst.
            credit += min(now - last, 0.02) * self.rate
            last = now
            while credit >= 1:
                credit -= 1
                self.send(now)
            if now >= renew and self.fresh:
                renew = now + FRESH_EVERY
                self.renew(now)
            self.give_up(now)

    def send(self, now: float) -> None:
        if not self.picks:
            self.picks = self.random.choices(self.order, self.weights, k=1024)
        number = self.picks.pop()
        client = self.active[self.serial % len(self.active)]
        self.serial += 1
        packet, name = self.packets[number], self.questions[number][0]
        if not packet:
            name = name.replace("*", str(self.serial))
            packet = question_packet(name, type=self.questions[number][1], edns=EDNS)[2:]
        client.id = id = (client.id + 1) & 0xFFFF
        self.window.sent += 1
        self.window.waiting += 1
        with contextlib.suppress(BlockingIOError):
            client.sock.sendto(id.to_bytes(2, "big") + packet, client.target)
        client.pending[id] = (now, number, name, self.window)
        self.due.append((now + self.patience, client, id))

    def receive(self, client: Client) -> None:
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                data = client.sock.recv(65535)
                found = client.pending.pop(data[0] << 8 | data[1], None)
                if found is None:
                    continue
                asked_at, number, name, window = found
                window.waiting -= 1
                window.times.append(now - asked_at)
                rcode = str(data[3] & 15)
                window.answers[rcode] = window.answers.get(rcode, 0) + 1
                rest = data[2:]
                if rest not in self.known[number]:
                    self.check(number, name, rest, data, window)

    def check(self, number: int, name: str, rest: bytes, data: bytes, window: Window) -> None:
        answer = said(data)
        right = self.right[number]
        anything = ANY in right and (data[2] & 2 or (answer and not answer & ERRORS))
        if anything or answer in right:
            if self.packets[number] and len(self.known[number]) < KEPT:
                self.known[number].add(rest)
            return
        window.wrong += 1
        texts = " or ".join(str(sorted(one)) for one in right)
        window.complain(f"{name} {self.questions[number][1]}: {sorted(answer)}, not {texts}")

    def give_up(self, now: float) -> None:
        while self.due and self.due[0][0] <= now:
            asked_until, client, id = self.due.popleft()
            found = client.pending.get(id)
            if found is not None and found[0] + self.patience == asked_until:
                # It may be in the socket's buffer: we, too, may have been late.
                self.receive(client)
            if client.pending.get(id) is found and found is not None and found[0] + self.patience == asked_until:
                del client.pending[id]
                found[3].waiting -= 1
                found[3].lost += 1
                found[3].complain(f"{found[2]} of {client.address} to {client.target[1]}: no answer")
        for window in [window for window in self.closing if not window.waiting]:
            self.closing.remove(window)
            print(json.dumps(window.line()), flush=True)
        while self.retired and self.retired[0][0] <= now:
            client = self.retired.popleft()[1]
            del self.clients[client.sock.fileno()]
            self.poll.unregister(client.sock.fileno())
            client.sock.close()

    def renew(self, now: float) -> None:
        """One of the fresh clients comes back with another port."""
        old = self.fresh.popleft()
        new = self.client(old.address, True)
        self.active[self.active.index(old)] = new
        self.fresh.append(new)
        self.retired.append((now + 2 * self.patience, old))

    def commands(self, data: bytes) -> None:
        *lines, self.input = (self.input + data).split(b"\n")
        for line in lines:
            self.obey(json.loads(line))

    def obey(self, order: dict[str, Any]) -> None:
        if "window" in order:
            self.window.seconds = time.monotonic() - self.window.began
            self.closing.append(self.window)
            self.window = Window()
        if "rate" in order:
            self.rate = order["rate"]
        if "targets" in order:  # for new flows
            self.targets = [(host, port) for host, port in order["targets"]]
        if "leave" in order:  # flows that led to this port are led elsewhere, all but a share of them
            moved = [client for client in self.active if client.target[1] == order["leave"]]
            for client in moved[int(len(moved) * order.get("pinned", 0.0)) :]:
                client.target = self.random.choice(self.targets)
        for number, right in order.get("expect", {}).items():
            self.right[int(number)] = [frozenset(one) for one in right]
            self.known[int(number)].clear()


def main() -> None:
    """The first line says what to do, all others are commands."""
    data = b""
    while b"\n" not in data:
        data += os.read(0, 2**20)
    first, _, rest = data.partition(b"\n")
    generator = Generator(json.loads(first))
    generator.commands(rest)
    print("asking", flush=True)
    generator.run()


if __name__ == "__main__":
    main()
