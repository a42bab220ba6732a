"""Three servers out of one Corefile, and a world that changes under them: see test_leases.py."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from kdns.build import build
from kdns.cluster.objects import (
    IMPORTS,
    KINDS,
    Apply,
    Delete,
    Endpoint,
    ImportedSlice,
    Init,
    InitDone,
    Namespace,
    Pod,
    Port,
    Service,
    ServiceImport,
    endpoint_slice,
)
from kdns.corefile import Directive
from kdns.handler import Handler, Waiting
from kdns.message import (
    AAAA,
    AD,
    AXFR,
    CD,
    CNAME,
    DS,
    FOREVER,
    HTTPS,
    MX,
    NS,
    NXDOMAIN,
    PTR,
    RA,
    RD,
    SERVFAIL,
    SOA,
    SRV,
    TC,
    TXT,
    A,
    Edns,
    Lease,
    Listener,
    Query,
    Record,
    Reply,
)
from kdns.metrics import Buckets
from kdns.name import from_text, reverse, spell
from kdns.packetcache import packet_cache
from kdns.plugin import Next, Plugin, Process, Site
from kdns.plugins.file import File
from kdns.plugins.hosts import Hosts
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import pack_query, parse_reply
from tests.plugintest import Clock, record, shown
from tests.support import parse

LISTENER: Final = Listener("dns://:53", "udp", ("127.0.0.1", 53))
PEER: Final = ("192.0.2.77", 5353)


class Elsewhere(Plugin):
    """A fake upstream, innermost: names ending in ``forever.`` hold until they change, all others have no lease.

    What names below ``moving.`` say stands on the fact ``moving/NAME``.
    """

    name = "elsewhere"
    replayable = True
    inline = True

    def __init__(self, site: Site) -> None:
        self.table: dict[bytes, int] = {}
        self.drop = site.facts.drop

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        return cls(site)

    async def resolve(self, query: Query, next: Next) -> Reply:
        name, kind = query.name, self.table.get(query.name)
        facts = (b"moving/" + name,) if name.endswith(b"\6moving\0") else ()
        until = FOREVER if name.endswith(b"\7forever\6moving\0") else 0.0
        lease = Lease(until, facts)
        if kind is None:
            kind = 1 + sum(name) % 7
        reply = Reply(flags=RA | (AD if kind % 2 else 0), lease=lease, plugin=self.name)
        if kind == 1 or query.type not in (A, TXT):
            return reply.replace(
                rcode=NXDOMAIN, authority=(record(f"elsewhere. {9 + kind} SOA ns. host. 1 2 3 4 300"),)
            )
        if kind == 2:
            return reply.replace(rcode=SERVFAIL)
        if kind == 3:
            return reply.replace(authority=(record("elsewhere. 40 SOA ns. host. 1 2 3 4 12"),))
        answer: list[Record] = []
        if kind == 4:
            answer = [Record(name, CNAME, 25, from_text("target.elsewhere."))]
            name = from_text("target.elsewhere.")
        data = [bytes((10, 9, kind, number)) for number in range(kind - 3)]
        answer += (
            Record(name, query.type, 3 + 2 * kind, b"\4" + rdata if query.type == TXT else rdata) for rdata in data
        )
        return reply.replace(answer=tuple(answer))

    def change(self, name: bytes, kind: int) -> None:
        self.table[name] = kind
        self.drop([b"moving/" + name])


class Server:
    """One configuration, and how to ask it."""

    def __init__(self, text: str, clock: Clock, packets: bool) -> None:
        self.process = Process(clock)
        self.packets = packet_cache(1000, 2**20, self.process.metrics)
        self.process.facts.subscribe(self.packets.forget)
        configuration = build(self.process, parse(f".:53 {{\n{text}\n}}"), 53)
        (service,) = configuration.services.values()
        self.handler = Handler(self.process, self.packets, service.routes)
        self.process.ask = self.handler.resolve
        self.plugins = configuration.plugins
        self.process.plugins = configuration.plugins
        self._scope = b"u1" if packets else b""
        self._asked: set[bytes] = set()
        self.repeated = 0
        """Replies out of the packet cache."""
        self.proven = 0
        """Names that were answered out of the packet cache at first sight."""

    async def start(self) -> None:
        for plugin in self.plugins:
            if not isinstance(plugin, Kubernetes):
                await plugin.start()
        for kind in (*KINDS, *IMPORTS):
            self.apply(Init(kind))
            self.apply(InitDone(kind))

    async def stop(self) -> None:
        for plugin in self.plugins:
            if not isinstance(plugin, Kubernetes):
                await plugin.stop()
        self.process.warehouse.keep_only(set())

    def of(self, kind: type[Any]) -> Iterator[Any]:
        return (plugin for plugin in self.plugins if isinstance(plugin, kind))

    def apply(self, event: Any) -> None:
        # Blocks that say the same of their cluster share it.
        for cluster, pods in {plugin._cluster: plugin._verified for plugin in self.of(Kubernetes)}.items():
            if event.kind in cluster.index.counts() and (event.kind != "pods" or pods):
                cluster.apply(event)

    async def look(self) -> None:
        """Read the files again."""
        for hosts in self.of(Hosts):
            await hosts._look("")
        for file in self.of(File):
            for served in file._zones.values():
                assert not await file._look(served)

    def ask(self, packet: bytes) -> bytes:
        reply: bytes | Waiting | None = None
        if self._scope:
            reply = self.packets.get(self._scope, packet, self.process.now())
            self.repeated += reply is not None
            name = packet[12 : packet.index(b"\0", 12)].lower()
            self.proven += reply is not None and name not in self._asked
            self._asked.add(name)
        if reply is None:
            reply = self.handler.handle(packet, PEER, LISTENER, self._scope)
        assert isinstance(reply, bytes)
        return reply

    def counted(self) -> dict[tuple[str, ...], Any]:
        """All counters of queries and of the cache, by name and labels."""
        self.process.metrics.settle()
        out: dict[tuple[str, ...], Any] = {}
        for family in self.process.metrics._families.values():
            if family.name.startswith(("coredns_dns_", "coredns_cache_")) and family.name != "coredns_cache_entries":
                for labels, cell in family.samples():
                    name = re.sub("cache_(hits|misses)", "cache_hits_and_misses", family.name)
                    key = (name, *(label for label in labels if label not in ("success", "denial")))
                    value = sum(cell.counts) if isinstance(cell, Buckets) else cell.value
                    out[key] = out.get(key, 0) + value
                    if isinstance(cell, Buckets):
                        out[*key, "sum"] = cell.sum
        return out


# --- the world and its changes ---------------------------------------------------------------------------------------


class World:
    """Random changes and random questions, the same for all servers."""

    def __init__(self, seed: int, directory: Path, leftovers: float = 0.1, stack: str = "") -> None:
        self.random = random.Random(seed)
        self.leftovers = leftovers
        self.imports = "clusterset" in stack
        """Half of all is about ServiceImports."""
        self.zonal = stack == "zonal"
        """Most of all is about headless Services and topology zones."""
        self.hosts, self.zone, self.empty = directory / "hosts", directory / "zone", directory / "empty"
        self.empty.mkdir()
        self.serial = 0
        self.asked: deque[bytes] = deque(maxlen=30)
        self.write_hosts()
        self.write_zone()

    def fill_in(self, text: str) -> str:
        """A Corefile with the paths and random options."""
        pods = self.random.choice(["pods disabled", "pods insecure", "pods verified"])
        fall = self.random.choice(["", "fallthrough", "fallthrough in-addr.arpa"])
        options = f"{pods}\nendpoint_pod_names\n{fall}\nttl {self.random.choice([0, 5, 30])}\n"
        text = re.sub(r"\{ PODS FALL manifests EMPTY \}", f"{{\nmanifests {self.empty}\n{options}}}", text)
        options = f"{pods}\nfallthrough in-addr.arpa\nttl 30\n"
        text = re.sub(r"\{ PODS HERE manifests EMPTY \}", f"{{\nmanifests {self.empty}\n{options}}}", text)
        text = text.replace("manifests EMPTY", f"manifests {self.empty}")
        return text.replace("HOSTS", str(self.hosts)).replace("ZONE", str(self.zone))

    def address(self) -> bytes:
        return bytes((10, 0, 0, self.random.randrange(12)))

    def write_hosts(self) -> None:
        lines = [f"10.7.0.{self.random.randrange(9)} h{self.random.randrange(4)}.h.test" for _ in range(5)]
        lines += [f"10.7.0.9 web{self.random.randrange(6)}.default.svc.cluster.local"]
        self.hosts.write_text("\n".join(lines) + "\n" + "#" * self.serial + "\n")

    def write_zone(self) -> None:
        self.serial += 1
        lines = [f"@ 60 IN SOA ns hostmaster {self.serial} 1 1 1 20", "@ 60 IN NS ns", "ns 60 IN A 192.0.2.1"]
        for number in range(4):
            octets = self.random.sample(range(9), self.random.randrange(4))
            lines += [f"n{number} {self.random.choice([30, 600])} IN A 10.6.0.{octet}" for octet in octets]
        if self.random.random() < 0.7:
            lines += ["*.w 30 IN A 10.6.1.1", "*.w 30 IN A 10.6.1.2", "m 30 IN MX 5 n0", "m 30 IN MX 5 n1"]
        lines += [
            f"c 44 IN CNAME n{self.random.randrange(6)}",
            "d 44 IN CNAME target.elsewhere.",
            "e IN CNAME web0.default.svc.cluster.local.",
        ]
        self.zone.write_text("\n".join(lines) + "\n")

    def change(self) -> Callable[[Server], None] | str:
        """One change, to be made to every server; a text when files were written."""
        what = self.random.choice(
            ["service"] * 4 + ["slice"] * 3 + ["pod", "namespace", "elsewhere", "elsewhere", "files"]
        )
        if what == "files":
            (self.write_hosts if self.random.random() < 0.5 else self.write_zone)()
            return "files"
        if what == "elsewhere":
            name, kind = from_text(self.moving()), self.random.randrange(1, 8)
            return lambda server: [plugin.change(name, kind) for plugin in server.of(Elsewhere)].clear()
        event = self.event(what)
        return lambda server: server.apply(event)

    def event(self, what: str) -> Any:
        space, name = self.random.choice([b"default", b"dev"]), b"web%d" % self.random.randrange(6)
        ports = (Port(b"http", b"tcp", 80), Port(b"dns", b"udp", 53))[: self.random.randrange(3)]
        gone = self.random.random() < 0.3
        if self.imports and what in ("service", "slice") and self.random.random() < 0.5:
            return self.import_event(what, space, name, ports, gone)
        if what == "namespace":
            return Delete("namespaces", b"", space) if gone else Apply("namespaces", Namespace(space))
        if what == "service":
            if gone:
                return Delete("services", space, name)
            kind = 2 if self.zonal else self.random.randrange(4)
            external = self.random.choice([b"target.elsewhere.", b"h1.h.test.", b"web1.default.svc.cluster.local."])
            service = Service(
                space, name, () if kind > 1 else (self.address(),), ports, kind == 2,
                spell(external.decode()) if kind == 3 else None,
            )  # fmt: skip
            return Apply("services", service)
        if what == "slice":
            slice_name = name + b"-%d" % self.random.randrange(2)
            if gone:
                return Delete("endpointslices", space, slice_name)
            endpoints = [
                Endpoint(
                    self.address(),
                    self.random.choice([b"", b"h1", b"h2"]),
                    b"pod%d" % number,
                    self.random.choice([b"", b"z1", b"z.2"]) if self.imports or self.zonal else b"",
                )
                for number in range(self.random.randrange(5))
            ]
            return Apply("endpointslices", endpoint_slice(space, slice_name, name, endpoints, ports))
        pod = b"pod%d" % self.random.randrange(4)
        return Delete("pods", space, pod) if gone else Apply("pods", Pod(space, pod, (self.address(),)))

    def import_event(self, what: str, space: bytes, name: bytes, ports: tuple[Port, ...], gone: bool) -> Any:
        kind = "serviceimports" if what == "service" else "importedslices"
        own = name if what == "service" else name + b"-%d" % self.random.randrange(2)
        if gone:
            return Delete(kind, space, own)
        if what == "service":
            headless = self.random.random() < 0.5
            return Apply(kind, ServiceImport(space, own, () if headless else (self.address(),), ports, headless))
        addresses = b"".join(self.address() for _ in range(self.random.randrange(4)))
        cluster = self.random.choice([b"east", b"west", b""])
        return Apply(kind, ImportedSlice(space, own, name, 4, addresses, ports=ports, cluster=cluster))

    def moving(self) -> str:
        return f"m{self.random.randrange(4)}.{self.random.choice(['', 'forever.'])}moving."

    def question(self) -> bytes:
        """A query packet; mostly one that was asked lately, by another asker."""
        if self.random.random() < self.leftovers:
            return self.packet(self.leftover(), self.random.choice([A, A, A, AAAA, AAAA, HTTPS, DS, SOA, AXFR]))
        if len(self.asked) == 30 and self.random.random() < 0.7:
            return self.asked_by_another(self.random.choice(self.asked))
        self.asked.append(self.new_question())
        return self.asked[-1]

    def asked_by_another(self, packet: bytes) -> bytes:
        """The same question with another ID, and with another cookie if it has one."""
        if packet[-12:-8] == b"\0\x0a\0\x08":
            packet = packet[:-8] + self.random.randbytes(8)
        return self.random.randbytes(2) + packet[2:]

    def new_question(self) -> bytes:
        pick, number = self.random.choice, self.random.randrange
        if self.imports and self.random.random() < 0.5:
            return self.packet(spell(self.import_name()), pick((A, A, A, AAAA, SRV, TXT)))
        if self.zonal and self.random.random() < 0.8:
            return self.packet(spell(self.zonal_name()), pick((A, A, A, AAAA, SRV, TXT)))
        web = f"web{number(6)}.{pick(['default', 'dev', 'none'])}.svc.cluster.local."
        name, kinds = pick([
            (web, (A, AAAA, SRV, TXT)), (web, (A,)), (web, (A,)),
            (f"{pick(['h1', 'pod1', '10-0-0-3'])}.{web}", (A,)),
            (f"{pick(['_http._tcp', '_dns._udp', '*._tcp'])}.{web}", (SRV,)),
            (f"10-0-0-{number(12)}.{pick(['default', 'dev'])}.pod.cluster.local.", (A,)),
            (pick(["default.svc.cluster.local.", "svc.cluster.local.", "dns-version.cluster.local."]), (A, TXT)),
            (pick(["ns.dns.cluster.local.", "nothing.cluster.local."]), (A, NS)),
            ("reverse", (PTR,)),
            (f"{pick(['s', 't', 'u'])}{number(9)}.elsewhere.", (A, A, TXT)), (self.moving(), (A,)),
            (f"h{number(5)}.h.test.", (A, AAAA)), (f"n{number(6)}.t.test.", (A, TXT)),
            (f"{pick(['n0', 'n1', 'n2', 'c', 'd', 'e', 'x.w', 'm', 'no'])}.z.test.", (A, MX)), ("z.test.", (NS, A)),
            (f"web{number(6)}.example.com.", (A, SRV)), ("alias.test.", (A,)),
        ])  # fmt: skip
        wire = reverse(self.address()) if name == "reverse" else spell(name)
        return self.packet(wire, pick(kinds))

    def import_name(self) -> str:
        pick = self.random.choice
        web = f"web{self.random.randrange(6)}.{pick(['default', 'dev', 'none'])}.svc"
        endpoint = f"10-0-0-{self.random.randrange(12)}"
        return pick([
            f"{web}.clusterset.local.",
            f"{web}.clusterset.local.",
            f"{endpoint}.{pick(['east', 'west'])}.{web}.clusterset.local.",
            f"{endpoint}.{web}.clusterset.local.",
            f"_http._tcp.{web}.clusterset.local.",
            self.zonal_name(),
            f"{pick(['default', 'dev'])}.svc.clusterset.local.",
            f"10-0-0-1.{pick(['default', 'dev'])}.pod.clusterset.local.",
        ])  # fmt: skip

    def zonal_name(self) -> str:
        pick = self.random.choice
        web = f"web{self.random.randrange(6)}.{pick(['default', 'dev'])}.svc.cluster.local."
        return f"{pick(['z1', 'z.2', 'z3'])}.{pick(['pin', 'prefer', 'prefer', 'x'])}._zone.{web}"

    def leftover(self) -> bytes:
        """What a search list makes of an outside name, and names in all the corners of the cluster's zone."""
        pick = self.random.choice
        labels = [pick("abcdefghijkl") * self.random.randrange(1, 9) for _ in range(self.random.randrange(1, 4))]
        below = pick([
            "default.svc.", "dev.svc.", "none.svc.", "web1.default.svc.", "svc.", "team.svc.", "default.pod.", "pod.",
            "a.b.pod.", "", "", "dns.", "dns-version.", "z" * 63 + "." + "y" * 63 + ".default.svc.",
        ])  # fmt: skip
        zone = pick(["cluster.local.", "clusterset.local."]) if self.imports else "cluster.local."
        return spell(f"{'.'.join(labels)}.{below}{zone}")

    def packet(self, wire: bytes, kind: int) -> bytes:
        """A query for a name, in one of all forms."""
        pick, number = self.random.choice, self.random.randrange
        if self.random.random() < 0.3:
            wire = bytes(octet ^ 32 if 97 <= octet <= 122 and self.random.random() < 0.5 else octet for octet in wire)
        edns = None
        if self.random.random() < 0.3:
            options = pick([(), (), ((10, self.random.randbytes(8)),), ((12, bytes(number(30))),), ((3, b""),)])
            edns = Edns(pick([512, 1232, 4096]), self.random.random() < 0.3, options)
        flags = pick([RD, RD, RD, 0, RD | AD, RD | CD])
        return pack_query(number(65536), flags, wire, kind, 1, edns)


class Told:
    """What a reply says.

    The serial of a cluster's SOA record is left out: it says when anything changed there, and denials need not follow.
    """

    def __init__(self, packet: bytes) -> None:
        message = parse_reply(packet)
        self.header = (message.id, message.flags, message.spelling, message.type, message.rcode, message.edns)
        self.rcode = message.rcode
        self.truncated = bool(message.flags & TC)
        self.sections: list[list[str]] = []
        """Owner, type and data of the records, sorted behind the aliases."""
        self.ttls: list[int] = []
        for records in (message.answer, message.authority, message.additional):
            ordered = [record for record in records if record.type == CNAME]
            ordered += sorted(
                (record for record in records if record.type != CNAME), key=lambda r: (r.owner.lower(), r.type, r.rdata)
            )
            self.ttls += [record.ttl for record in ordered]
            lines = shown(tuple(record.with_owner(record.owner.lower()).with_ttl(0) for record in ordered))
            self.sections.append([re.sub(r"(?i)( SOA ns\.dns\.\S+ \S+) \d+", r"\1 N", line) for line in lines])


@asynccontextmanager
async def servers(text: str, clock: Clock) -> AsyncIterator[list[Server]]:
    without = re.sub(r"\n\s*cache[^\n{]*(\{[^}]*\})?", "\n", text)
    made = [Server(text, clock, True), Server(text, clock, False), Server(without, clock, False)]
    try:
        for server in made:
            await server.start()
        yield made
    finally:
        for server in made:
            await server.stop()


async def go_on(world: World, clock: Clock, all_of_them: Sequence[Server]) -> None:
    """Between two questions something may change, for all servers alike, and time may pass."""
    if world.random.random() < 0.2:
        change = world.change()
        for server in all_of_them:
            if isinstance(change, str):
                await server.look()
            else:
                change(server)
    if world.random.random() < 0.1:
        clock.now += world.random.choice([0.25, 1.0, 3.5])
