"""K7: random histories of objects, on the road of true watches, held against the specification.

A history makes a small cluster and lets it live: objects come, change, go, come again with another UID; endpoints move
from slice to slice; addresses change hands.  Every kind has a stream of its own, as in an API server, so what happened
in one order is heard in another.  Streams break off and are resumed, repeat events, lose lines, are too old (410) and
listed again in pages, while objects go on changing; lists take force in steps, between which other kinds are heard.
All that is JSON text and goes the way of a real watch: `decode_event` and `decode_list`, `Watch`, `Index`, `Names`.

What must hold:

- when everything has been heard, each answer is that of `tests.kube.expected`, which knows the specification and whole
  objects, and nothing of kdns; also an answer that was given earlier and whose facts have not been dropped since;
- whenever an endpoint is there in what a stream has told and in all that it will have told next, it is answered: also
  one that moves between slices, and one in the middle of a list.

``python -m tests.chaos.histories FIRST COUNT`` prints the mismatches of so many histories, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import deque
from functools import lru_cache
from typing import Any
from unittest.mock import patch

from msgspec.json import encode

from kdns import message
from kdns import name as names
from kdns.cluster import index
from kdns.cluster.decoding import Status, decode_event, decode_list
from kdns.cluster.index import Index
from kdns.cluster.names import Chase, Names, Options
from kdns.cluster.objects import KINDS, InitDone
from kdns.cluster.watch import Ended, Failed, Listed, Nonsense, Opened, Refused, State, Watch
from kdns.message import Fact
from tests.chaos.answers import AAAA, CNAME, PTR, SRV, A
from tests.chaos.verdict import Run, Verdict
from tests.fakeobjects import RESOURCES, endpointslice, namespace, pod, service
from tests.kube.expected import NOWHERE, Cluster, Question
from tests.plugintest import ask
from tests.support import ROOT

Object = dict[str, Any]
Key = tuple[str, str]

SPACES, SERVICES, SLICES, PODS = ("a", "b"), ("s", "t"), ("x", "y", "z"), ("p", "q")
FOUR = ("10.1.0.1", "10.1.0.2", "10.1.0.3")
SIX = ("fd00::1", "fd00::2")
IPS = (["10.9.0.1"], ["10.9.0.2"], ["10.9.0.3", "fd99::1"], ["10.9.0.4"])
ZONES = tuple(names.from_text(zone) for zone in ("cluster.local.", "in-addr.arpa.", "ip6.arpa."))
OWN = {"namespaces": ("",), "services": SERVICES, "endpointslices": SLICES, "pods": PODS}
STEPS = 12
KINDS_BY_WEIGHT = ("namespaces", *("services",) * 3, *("endpointslices",) * 3, *("pods",) * 2)
GONE = b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}'


class Mismatch(Exception):
    """kdns says something else than it should."""


class Stream:
    """One kind's way from the API server to the index."""

    def __init__(self, kind: str, history: History) -> None:
        self.kind = kind
        self.truth: dict[Key, Object] = {}
        """What the API server has."""
        self.told: dict[Key, Object] = {}
        """What it had at the version up to which the stream has been heard."""
        self.lines: deque[tuple[int, Key, Object | None, bytes]] = deque()
        """Changes that have not been heard: version, whose, what it is then (None: gone), the line."""
        self.before: dict[Key, Object] = {}
        """What was known when the last list began."""
        self.last: bytes = b""
        self.version = 1
        self.watch = Watch(kind, chance=lambda: 0.0)
        self.now = 0.0
        self._history = history

    def change(self, key: Key, item: Object | None) -> None:
        """Something happens in the API server."""
        history = self._history
        history.version += 1
        if item is None:
            type, item_then = "DELETED", self.truth.pop(key)
        else:
            type, item_then = "MODIFIED" if key in self.truth else "ADDED", item
            self.truth[key] = item
        meta = item_then["metadata"] | {"resourceVersion": str(history.version)}
        line = encode({"type": type, "object": item_then | {"metadata": meta}})
        self.lines.append((history.version, key, item, line))

    def feed(self, what: Any) -> None:
        self.now += 0.01
        for event in self.watch.feed(what, self.now):
            if isinstance(event, InitDone):
                self.finish()
            else:
                self._history.touch(self._history.index.apply(event, 1.0))

    def finish(self) -> None:
        """A list takes force in steps, and others hear of their own between them."""
        history = self._history
        for facts in history.index.finish(self.kind, 1.0):
            history.touch(facts)
            if self.kind == "endpointslices":
                history.check_between(self.before, self.told)
            if history.chance() < 0.1 and not history.finishing:
                history.finishing = True
                history.streams[history.random.choice([kind for kind in KINDS if kind != self.kind])].hear()
                history.finishing = False

    # -- what a server and the network do

    def hear(self) -> None:
        """The next event; perhaps twice."""
        while not self.watch.open:
            self.answer()
        if not self.lines:
            return
        line = self.lines[0][3]
        self.tell()
        self.feed(decode_event(self.kind, line))
        self.last = line
        if self._history.chance() < 0.15:
            self.feed(decode_event(self.kind, line))

    def tell(self) -> None:
        """The next change has been told, whoever heard it."""
        self.version, key, item, _ = self.lines.popleft()
        if item is None:
            self.told.pop(key, None)
        else:
            self.told[key] = item

    def answer(self) -> None:
        """Answer the request that is due, as a server does."""
        state = self.watch.state
        if state is State.WATCH:
            self.feed(Opened())
        elif state is State.PROBE:
            text = self.page([], "")
            self.feed(Listed(decode_list(self.kind, text), len(text)))
        else:
            self.list(dict(self.told))

    def stumble(self) -> None:
        """The stream breaks off, or something goes wrong in it, so that everything is listed again."""
        kind = self._history.chance()
        before = dict(self.told)
        if kind < 0.2 or not self.watch.open:
            if self.watch.open:
                self.feed(Ended())
            return
        if kind < 0.5 and self.lines:  # a line that cannot be read
            self.feed(Nonsense("noise"))
            self.tell()
        elif kind < 0.7 and self.last:  # an event that has long been: what is known now is wrong
            self.feed(decode_event(self.kind, self.last))
            before = {}
        self.now += 100.0  # past every pause
        if self.watch.open:
            self.feed(decode_event(self.kind, GONE))
        while self.watch.state not in (State.STREAM, State.LIST):
            self.now += 100.0
            if self.watch.state is State.PROBE:
                self.answer()
            else:
                self.feed(Refused(Status(410, "Expired")))
        self.list(before)

    def list(self, before: dict[Key, Object]) -> None:
        """A whole list, streamed or in pages, of a version between what was heard and now; it may break off first.

        ``before``: what is known.
        """
        self.before = before
        for _ in range(self._history.random.randint(0, len(self.lines))):
            self.tell()
        items = [item for _, item in sorted(self.told.items())]
        while self.watch.state is not State.WATCH:
            if self.watch.state is State.LIST:
                self.pages(items, before)
            elif self._history.chance() < 0.4:
                self.feed(Refused(Status(422, "Invalid")))
            else:
                self.stream(items, before)

    def stream(self, items: list[Object], before: dict[Key, Object]) -> None:
        self.feed(Opened())
        ends = self._history.chance() < 0.7
        for item in items if ends else items[: len(items) // 2]:
            self.feed(decode_event(self.kind, encode({"type": "ADDED", "object": item})))
            if self.kind == "endpointslices":
                self._history.check_between(before, self.told)
        if not ends:
            self.feed(Failed("cut"))
            return
        version, kind = RESOURCES[self.kind]
        meta = {"resourceVersion": str(self.version), "annotations": {"k8s.io/initial-events-end": "true"}}
        bookmark = {"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": meta}}
        self.feed(decode_event(self.kind, encode(bookmark)))

    def pages(self, items: list[Object], before: dict[Key, Object]) -> None:
        whole = self._history.chance() < 0.7
        size = self._history.random.randint(1, 3)
        pages = [items[at : at + size] for at in range(0, len(items), size)] or [[]]
        for number, page in enumerate(pages, 1):
            if not whole and number == len(pages):
                self.feed(Refused(Status(410, "Expired")))  # the token is no longer known
                return
            text = self.page(page, "more" if number < len(pages) else "")
            self.feed(Listed(decode_list(self.kind, text), len(text)))
            if self.kind == "endpointslices":
                self._history.check_between(before, self.told)

    def page(self, items: list[Object], more: str) -> bytes:
        version, kind = RESOURCES[self.kind]
        meta = {"resourceVersion": str(self.version), "continue": more}
        found = {"kind": f"{kind}List", "apiVersion": version, "metadata": meta, "items": items}
        return encode(found)


class History:
    """One random history."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.chance = self.random.random
        self.version = 1
        self.uid = 0
        self.finishing = False
        self.index = Index(KINDS)
        self.names = Names(self.index, Options(ZONES, ttl=30, pods="verified"))
        self.streams = {kind: Stream(kind, self) for kind in KINDS}
        self.remembered: dict[Question, tuple[frozenset[str], tuple[Fact, ...]]] = {}

    def run(self) -> None:
        for kind, stream in self.streams.items():
            for space in SPACES:
                for own in OWN[kind]:
                    key = ("", space) if kind == "namespaces" else (space, own)
                    if self.chance() < 0.7:
                        stream.change(key, self.make(kind, key))
        for kind in self.random.sample(KINDS, len(KINDS)):
            self.streams[kind].answer()
        for _ in range(STEPS):
            if self.chance() < 0.25:
                self.move()
                if self.chance() < 0.3:
                    self.streams["endpointslices"].stumble()
            else:
                self.happen()
            for _ in range(self.random.randint(0, 3)):
                stream = self.streams[self.random.choice(KINDS)]
                if self.chance() < 0.1:
                    stream.stumble()
                else:
                    stream.hear()
            if self.chance() < 0.2:
                self.remember()
        for kind in self.random.sample(KINDS, len(KINDS)):
            while self.streams[kind].lines:
                self.streams[kind].hear()
        self.check()

    # -- the cluster

    def happen(self) -> None:
        """Somebody changes something."""
        kind = self.random.choice(KINDS_BY_WEIGHT)
        space = self.random.choice(SPACES)
        key = ("", space) if kind == "namespaces" else (space, self.random.choice(OWN[kind]))
        stream = self.streams[kind]
        if key in stream.truth and self.chance() < 0.35:
            stream.change(key, None)
            if self.chance() < 0.4:  # another one of the same name, at once
                stream.change(key, self.make(kind, key))
        else:
            item = self.make(kind, key)
            if key in stream.truth:
                item["metadata"]["uid"] = stream.truth[key]["metadata"]["uid"]
            stream.change(key, item)

    def make(self, kind: str, key: Key) -> Object:
        pick, (space, own) = self.random.choice, key
        if kind == "namespaces":
            item = namespace(own)
        elif kind == "services":
            item = self.service(own, space)
        elif kind == "endpointslices":
            item = self.slice(own, space)
        else:
            item = pod(own, pick(FOUR), space, phase=pick(("Pending", "Running", "Running", "Succeeded", "Failed")))
            if self.chance() < 0.3:
                item["status"]["podIPs"].append({"ip": pick(SIX)})
        self.uid += 1
        version, name = RESOURCES[kind]
        item["metadata"] |= {"uid": f"uid-{self.uid}", "resourceVersion": str(self.version)}
        return {"kind": name, "apiVersion": version} | item

    def service(self, own: str, space: str) -> Object:
        ports = self.random.choice(((("http", 80),), (("http", 80), ("dns", 53, "UDP"))))
        kind = self.chance()
        if kind < 0.15:
            return service(own, space, external_name=self.random.choice(("www.example.org", "x.example.net.")))
        # A cluster IP belongs to one Service at a time; what it was before may still be on its way.
        taken = {ip for item in self.streams["services"].truth.values() for ip in item["spec"].get("clusterIPs", ())}
        free = [ips for ips in IPS if taken.isdisjoint(ips)]
        headless = kind < 0.5 or not free
        return service(own, space, cluster_ip="None" if headless else self.random.choice(free), ports=ports)

    def slice(self, own: str, space: str) -> Object:
        pool = SIX if self.chance() < 0.2 else FOUR
        hostnames = ["", "", "", "h", "i"]
        picked = self.random.sample(pool, self.random.randint(0, len(pool)))
        item = endpointslice(
            self.random.choice(SERVICES),
            [(ip, self.random.choice(hostnames)) for ip in picked],
            space,
            name=own,
            ports=self.random.choice(((("http", 80),), (("http", 80), ("dns", 53, "UDP")))),
        )
        item["addressType"] = "IPv6" if pool is SIX else "IPv4"
        for endpoint in item["endpoints"]:
            endpoint["conditions"] = self.random.choice(
                ({"ready": True}, {"ready": True, "serving": True}, {}, {"ready": False}, {"ready": True})
            )
        return item

    def move(self) -> None:
        """An endpoint moves to another slice of its Service: it is there before it is gone here, or the other way."""
        stream = self.streams["endpointslices"]
        full = [key for key, item in stream.truth.items() if item["endpoints"]]
        if not full:
            return
        source = self.random.choice(full)
        item = stream.truth[source]
        target = (source[0], self.random.choice([own for own in SLICES if own != source[1]]))
        moved = self.random.choice(item["endpoints"])
        there = stream.truth.get(target)
        kept = there["endpoints"] if there and there["addressType"] == item["addressType"] else []
        into = item | {"metadata": item["metadata"] | {"name": target[1]}, "endpoints": [*kept, moved]}
        rest = item | {"endpoints": [one for one in item["endpoints"] if one is not moved]}
        changes = [(target, into), (source, rest)]
        for key, changed in changes if self.chance() < 0.8 else reversed(changes):
            stream.change(key, changed)

    # -- what must hold

    def touch(self, facts: set[Fact]) -> None:
        """Forget what stands on these facts, as caches do."""
        if facts:
            for question in [q for q, (_, stands) in self.remembered.items() if not facts.isdisjoint(stands)]:
                del self.remembered[question]

    def remember(self) -> None:
        """Ask something now; the answer may be repeated until its facts are dropped."""
        for _ in range(8):
            question = self.random.choice(QUESTIONS)
            self.remembered[question] = self.said(*question)

    def check_between(self, before: dict[Key, Object], after: dict[Key, Object]) -> None:
        """In the midst of a list of slices: who is ready before and after, in whatever slice, is answered."""
        services = {key: item for key, item in self.streams["services"].told.items() if _headless(item)}
        for space, own in services:
            if ("", space) not in self.streams["namespaces"].told:
                continue
            both = _ready(before, space, own) & _ready(after, space, own)
            for type, dot in (("A", "."), ("AAAA", ":")):
                wanted = {ip for ip in both if dot in ip}
                found, _ = self.said(f"{own}.{space}.svc.cluster.local.", type)
                if wanted - found and self.index.synced("services"):
                    raise Mismatch(f"in a list {own}.{space} {type} lost {sorted(wanted - found)}: {sorted(found)}")

    def check(self) -> None:
        """Every name says what the specification says of the objects that there are.

        Where it is silent kdns does what CoreDNS does, and two things are not asked: addresses of a port's name, and
        whether an address still points to endpoints whose Service is gone, or an ExternalName by now.
        """
        items = [item for stream in self.streams.values() for item in stream.truth.values()]
        spaces = {key[1] for key in self.streams["namespaces"].truth}
        known = Cluster(items).answers()
        phantoms = self.phantoms()
        orphans = Cluster([*items, *phantoms]).answers() if phantoms else known
        hidden = [
            f".{space}.{kind}.cluster.local." for space in SPACES if space not in spaces for kind in ("svc", "pod")
        ]
        for question in [*known, *QUESTIONS, *self.remembered]:
            name, type = question
            if name.startswith("_") and type != "SRV":
                continue
            if name.endswith(tuple(hidden)):
                right = NOWHERE  # of a namespace that is gone nothing is left, whatever its objects say
            elif question in known:
                right = known[question]
            else:
                right = self.unlisted(question, known)
            found, _ = self.remembered.get(question) or self.said(*question)
            if found != right and not (
                name.endswith("arpa.") and found <= orphans.get(question, NOWHERE) >= right - NOWHERE
            ):
                raise Mismatch(f"{question}: {sorted(found)}, not {sorted(right)}")
        for name, type in orphans:
            if name.endswith("arpa.") and (name, type) not in known:
                found, _ = self.said(name, type)
                if found not in (orphans[name, type], NOWHERE, frozenset()):
                    raise Mismatch(f"{name} {type}: {sorted(found)}, not {sorted(orphans[name, type])} or nothing")

    def phantoms(self) -> list[Object]:
        """Headless Services where slices have none."""
        truth = self.streams["services"].truth
        sliced = {
            (space, item["metadata"]["labels"]["kubernetes.io/service-name"])
            for (space, _), item in self.streams["endpointslices"].truth.items()
        }
        return [
            {"kind": "Service"} | service(own, space)
            for space in SPACES
            for own in SERVICES
            if ((space, own) not in truth or "externalName" in truth[space, own]["spec"]) and (space, own) in sliced
        ]

    def unlisted(self, question: Question, known: dict[Question, frozenset[str]]) -> frozenset[str]:
        """The answer for a type that a name has no records of, or a name that there is not."""
        there = any((question[0], type) in known and known[question[0], type] != NOWHERE for type in TYPES)
        return frozenset() if there else NOWHERE

    def said(self, name: str, type: str) -> tuple[frozenset[str], tuple[Fact, ...]]:
        """What kdns says, as `expected` has it, and the facts that it stands on."""
        found = self.names.answer(query(name, type))
        if found is None:
            raise Mismatch(f"{name}: not ours")
        if isinstance(found, Chase):
            return frozenset(), found.lease.facts
        if found.rcode:
            return frozenset({message.rcode_text(found.rcode)}), found.lease.facts
        records = [record for record in found.answer if record.type == TYPES[type]]
        texts = [_text(record.type, record.rdata) for record in records]
        if len(set(texts)) != len(texts):
            raise Mismatch(f"{name} {type}: a record twice")
        return frozenset(texts), found.lease.facts


TYPES = {"A": A, "AAAA": AAAA, "SRV": SRV, "PTR": PTR, "CNAME": CNAME}
EVERY_NAME = [f"{own}.{space}.svc.cluster.local." for space in SPACES for own in SERVICES]
EVERY_NAME += [f"{label}.{base}" for base in EVERY_NAME[:4] for label in ("_http._tcp", "_dns._udp", "h", "10-1-0-1")]
EVERY_NAME += [f"{ip.replace('.', '-')}.{space}.pod.cluster.local." for space in SPACES for ip in FOUR]


QUESTIONS = [(name, type) for name in EVERY_NAME if name[0] != "_" for type in ("A", "AAAA")]
QUESTIONS += [(name, "SRV") for name in EVERY_NAME if name[0] == "_" or name in EVERY_NAME[:4]]
QUESTIONS += [
    (names.to_text(names.reverse(names.pack_address(ip))), "PTR")
    for ip in (*FOUR, *SIX, *(ip for ips in IPS for ip in ips))
]


@lru_cache(10_000)
def query(name: str, type: str) -> message.Query:
    return ask(name, TYPES[type])


def _text(type: int, data: bytes) -> str:
    if type == SRV:
        return f"{int.from_bytes(data[:2], 'big')} {int.from_bytes(data[4:6], 'big')} {names.to_text(data[6:])}"
    return names.to_text(data) if type in (PTR, CNAME) else names.address_text(data)


def _headless(item: Object) -> bool:
    return item["spec"].get("clusterIP") == "None"


def _ready(slices: dict[Key, Object], space: str, own: str) -> set[str]:
    """The ready endpoints of a Service."""
    return {
        address
        for (at, _), item in slices.items()
        if at == space and item["metadata"]["labels"]["kubernetes.io/service-name"] == own
        for endpoint in item["endpoints"]
        if endpoint["conditions"].get("ready") is not False
        for address in endpoint["addresses"]
    }


def mismatches(first: int, count: int) -> list[str]:
    """What is wrong in these histories; each is its seed and what was said."""
    found = []
    # Few objects in as many steps as many take.
    with patch.multiple(index, STEP=1, LOOK=2):
        for seed in range(first, first + count):
            try:
                History(seed).run()
            except Mismatch as error:
                found.append(f"history {seed}: {error}")
    return found


async def histories(run: Run) -> Verdict:
    """K7: as many as can be, one process for each processor."""
    verdict = Verdict(run)
    count = run.number(100_000, 100)
    parts = os.cpu_count() or 1
    share = -(-count // parts)
    first = run.seed * 1_000_000_000

    async def part(number: int) -> list[str]:
        words = [str(first + number * share), str(share)]
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.histories", *words), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        try:
            printed, _ = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode:
            raise RuntimeError("the histories broke off")
        found: list[str] = json.loads(printed)
        return found

    found = [each for one in await asyncio.gather(*map(part, range(parts))) for each in one]
    verdict.note("histories", share * parts)
    verdict.at_most("mismatches", len(found), 0)
    verdict.failed += found[:3]
    return verdict


if __name__ == "__main__":
    print(json.dumps(mismatches(int(sys.argv[1]), int(sys.argv[2]))))
