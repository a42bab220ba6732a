"""Every change in the cluster is in the next answers, whatever `cache 30` has kept: 200 random ones, one by one.

kdns runs in a process of its own with kubeadm's Corefile; the API server is a fake in this one.  A little model of the
cluster says what each name must answer.  Before a change all names that it could touch are asked, so that their answers
are kept; from the moment that the event is sent they may answer as before or as they must from now on, nothing else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.rcode
import dns.reversename
import pytest_asyncio

from tests.e2e.corefiles import here
from tests.fakeapi import FakeApi, endpointslice, namespace, service
from tests.fakeupstream import Asked, FakeUpstream
from tests.support import ROOT, Kdns, free_port

CHANGES = 200
WITHIN = 0.05
"""Seconds from the event to the right answers, for 99 of 100 changes; where asking alone takes long, twice that."""
SEED = 20261121
ZONE = "svc.cluster.local."
TARGETS = {"www.example.org.": "192.0.2.1", "www.example.net.": "192.0.2.2"}
Place = tuple[str, str]
"""Namespace and name of a Service."""
Answer = frozenset[str]
"""Data of all records, or the rcode."""
NXDOMAIN = Answer({"NXDOMAIN"})


@dataclass(frozen=True)
class Question:
    """A name of a namespace, of a Service, of one of its endpoints, or of an address."""

    space: str = ""
    service: str = ""
    host: str = ""
    address: str = ""

    def message(self) -> dns.message.Message:
        if self.address:
            return dns.message.make_query(dns.reversename.from_address(self.address), "PTR")
        labels = [label for label in (self.host, self.service, self.space) if label]
        return dns.message.make_query(f"{'.'.join(labels)}.{ZONE}", "A")


class Cluster:
    """What there is, in the API and in the model."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.random = random.Random(SEED)
        self.namespaces: set[str] = set()
        self.services: dict[Place, str] = {}
        """What a Service is: its cluster IP, ``None`` for headless, or the name that it stands for."""
        self.slices: dict[Place, dict[str, str]] = {}
        """Hostname → address."""
        self.places = [(space, name) for space in ("default", "dev", "test") for name in ("web", "db", "api")]
        for space in ("default", "dev", "test"):
            self._namespace(space)

    def change(self, place: Place) -> str:
        """Change one thing there; says what."""
        chance = self.random.random()
        if chance < 0.1:
            return self._namespace(place[0])
        if chance < 0.55:
            return self._service(place)
        return self._slice(place)

    def questions(self, *places: Place) -> set[Question]:
        """What can be asked about these Services, as they are."""
        return {question for place in places for question in self._questions(place)}

    def answer(self, question: Question) -> Answer:
        """What it must answer now."""
        place = question.space, question.service
        what = self.services.get(place, "")
        endpoints = self.slices.get(place, {})
        if question.address:
            return self._pointers(question.address) or NXDOMAIN
        if question.space not in self.namespaces:
            return NXDOMAIN
        if not question.service:
            return Answer()
        if what in TARGETS:
            return NXDOMAIN if question.host else Answer({what, TARGETS[what]})
        if question.host:
            return Answer({endpoints[question.host]}) if what and question.host in endpoints else NXDOMAIN
        return Answer(endpoints.values() if what == "None" else {what} if what else ()) or NXDOMAIN

    def _pointers(self, address: str) -> Answer:
        found = {f"{name}.{space}.{ZONE}" for (space, name), what in self.services.items() if what == address}
        for (space, name), endpoints in self.slices.items():
            # As in CoreDNS, an endpoint's address points back whatever its Service is.
            found |= {f"{host}.{name}.{space}.{ZONE}" for host, one in endpoints.items() if one == address}
        return Answer(found)

    def _questions(self, place: Place) -> set[Question]:
        space, name = place
        endpoints = self.slices.get(place, {})
        addresses = {one for one in (*endpoints.values(), self.services.get(place, "")) if one.startswith("10.")}
        return {
            Question(space),
            Question(space, name),
            *(Question(space, name, host) for host in endpoints),
            *(Question(address=address) for address in addresses),
        }

    # -- single changes

    def _service(self, place: Place) -> str:
        """Create one, delete it, give it another address, or make it another kind of Service."""
        space, name = place
        if place in self.services and self.random.random() < 0.35:
            self.api.delete("services", name, space)
            del self.services[place]
            return f"{place} is gone"
        what = self.random.choice([self._address("10.96"), self._address("10.96"), "None", "None", *TARGETS])
        self.services[place] = what
        if what in TARGETS:
            self.api.put("services", service(name, space, external_name=what.rstrip(".")))
        else:
            self.api.put("services", service(name, space, cluster_ip=what))
        return f"{place} is {what}"

    def _slice(self, place: Place) -> str:
        """Endpoints appear, move, or go."""
        space, name = place
        if place in self.slices and self.random.random() < 0.25:
            self.api.delete("endpointslices", f"{name}-1", space)
            del self.slices[place]
            return f"the slice of {place} is gone"
        hosts = self.random.sample(["one", "two", "three"], self.random.randint(0, 3))
        self.slices[place] = {host: self._address("10.244") for host in hosts}
        pairs = [(address, host) for host, address in self.slices[place].items()]
        self.api.put("endpointslices", endpointslice(name, pairs, space))
        return f"the slice of {place} is {self.slices[place]}"

    def _namespace(self, space: str) -> str:
        """It appears, or goes, and its Services with it."""
        if space in self.namespaces:
            self.api.delete("namespaces", space)
        else:
            self.api.put("namespaces", namespace(space))
        self.namespaces ^= {space}
        return f"namespaces are {self.namespaces}"

    def _address(self, prefix: str) -> str:
        return f"{prefix}.{self.random.randrange(3)}.{self.random.randrange(1, 250)}"


class Client(asyncio.DatagramProtocol):
    """Asks as fast as it gets answers."""

    def __init__(self) -> None:
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.reply.set_result(data)

    async def ask(self, question: Question) -> Answer:
        self.reply = asyncio.get_running_loop().create_future()
        query = question.message()
        self.transport.sendto(query.to_wire())
        async with asyncio.timeout(5):
            reply = dns.message.from_wire(await self.reply)
        assert query.is_response(reply)
        if reply.rcode() != dns.rcode.NOERROR:
            return Answer({dns.rcode.to_text(reply.rcode())})
        return Answer(record.to_text() for rrset in reply.answer for record in rrset)


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async def script(asked: Asked) -> None:
        target = TARGETS.get(asked.name)
        asked.send(asked.address(target) if target else asked.reply(rcode="NXDOMAIN"))

    async with FakeUpstream() as upstream:
        upstream.script = script
        yield upstream


async def test_every_change_is_in_the_next_answer(tmp_path: Path, upstream: FakeUpstream) -> None:
    text = (ROOT / "tests" / "corefiles" / "kubeadm-old" / "Corefile").read_text()
    assert "    cache 30\n" in text
    port = free_port()
    async with FakeApi() as api:
        cluster = Cluster(api)
        text = here(text, upstream.address).replace("pods insecure", f"pods insecure\nendpoint {api.url}")
        (tmp_path / "Corefile").write_text(text)
        with await asyncio.to_thread(Kdns, tmp_path / "Corefile", "-dns.port", str(port)) as kdns:
            await follow(cluster, port)
            assert kdns.stop() == 0
    assert "[ERROR]" not in kdns.output


async def follow(cluster: Cluster, port: int) -> None:
    """Make the changes, and ask about each."""
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", port))
    try:
        times = [await follow_one(cluster, client) for _ in range(CHANGES)]
        for question in cluster.questions(*cluster.places):
            assert await client.ask(question) == cluster.answer(question), question
    finally:
        transport.close()
    asking, changing = (sorted(column)[CHANGES * 99 // 100 - 1] for column in zip(*times, strict=True))
    assert changing <= max(WITHIN, 2 * asking), sorted(times, key=max)[-10:]


async def follow_one(cluster: Cluster, client: Client) -> tuple[float, float]:
    """Make one change; the seconds that asking takes without one, and those from its event to the right answers."""
    place, *others = cluster.random.sample(cluster.places, 4)
    touched = cluster.questions(place)
    before = {question: cluster.answer(question) for question in touched | cluster.questions(*others)}
    began = time.monotonic()
    for question, answer in before.items():
        assert await client.ask(question) == answer, question
    asking = time.monotonic() - began
    began = time.monotonic()
    text = cluster.change(place)
    touched |= cluster.questions(place)
    for question in touched:
        now = cluster.answer(question)
        while (found := await client.ask(question)) != now:
            assert found == before.get(question, NXDOMAIN), (text, question)
            assert time.monotonic() - began < 5, (text, question, found, now)
    return asking, time.monotonic() - began
