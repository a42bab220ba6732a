"""The same cluster for kdns and the real CoreDNS: the same answers, but for what `EXPECTED` says and why.

One CoreDNS serves a block for each set of options, out of a fake API server; kdns follows the same server.
``KDNS_PARITY_QUESTIONS`` says how many questions are asked of all blocks together.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
import yaml

from kdns import interfaces, message, name, wire
from kdns.cluster.index import Index
from kdns.cluster.objects import KINDS
from kdns.cluster.replies import dashed
from kdns.message import AA, NXDOMAIN, REFUSED, Query, Record, Reply
from kdns.name import is_under, pack_address
from kdns.plugin import Process
from kdns.plugins.kubernetes import Kubernetes
from tests import fakeapi
from tests.indextest import KIND_OF
from tests.plugintest import new_site, set_up
from tests.support import free_port

pytestmark = pytest.mark.skipif(shutil.which("coredns") is None, reason="coredns is not on PATH")

TYPES = "A AAAA SRV PTR TXT CNAME MX NS SOA HTTPS ANY DS CAA".split()
PORTS = "_http._tcp http.tcp _http._udp _dns._udp _nope._tcp _https._tcp _sctpp._sctp _admin._tcp _._tcp _._".split()
CLUSTERS = ("east", "West", "c-1", "_east", "_tcp")
TOPOLOGY = (
    "z-a.pin._zone Z-A.prefer._ZONE rack.b.example.pin._zone b.example.pin._zone z-gone.pin._zone z-gone.prefer._zone "
    "z-a.nope._zone pin._zone z-a._zone z-a.pin.zone _http._tcp.z-a.pin._zone x.y.pin.pin._zone"
).split()
CHAIN = 14

BLOCKS = {
    "verified": "pods verified",
    "pod names": "pods insecure\nendpoint_pod_names",
    "no pods": "fallthrough in-addr.arpa ip6.arpa",
    "falling through": "pods insecure\nfallthrough\nttl 0",
    "namespaces": "pods verified\nnamespaces dev nons\nttl 3600",
    "namespace labels": "pods insecure\nnamespace_labels env in (dev, other)",
    "labels": "pods verified\nlabels app=web",
    "no endpoints": "noendpoints",
    "ignoring": "ignore empty_service",
    "multicluster": "pods insecure\nmulticluster clusterset.local\nzonal",
    "multicluster, pod names": "endpoint_pod_names\nmulticluster clusterset.local",
    "multicluster, ignoring": "ignore empty_service\nmulticluster clusterset.local",
    "multicluster, labels": "labels app=web\nmulticluster clusterset.local",
    "multicluster, namespace labels": "namespace_labels env in (dev, other)\nmulticluster clusterset.local",
    "multicluster, no endpoints": "noendpoints\nmulticluster clusterset.local",
    "zonal": "zonal",
    "zonal, pod names": "endpoint_pod_names\nzonal",
}
QUESTIONS = int(os.environ.get("KDNS_PARITY_QUESTIONS", "4500")) // len(BLOCKS)

Answer: TypeAlias = tuple[str, str, list[str], list[str], list[str]]


# --- what differs, and why -------------------------------------------------------------------------------------------


def existing_txt(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """A zone, a namespace, ``svc`` or ``pod``: CoreDNS denies their existence to those who ask for TXT (RFC 2308)."""
    return type == "TXT" and core[0] in ("NXDOMAIN", "REFUSED") and ours[0] == "NOERROR" and not ours[2]


def owner_of_records(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """CoreDNS denies ``dns-version``, ``ns.dns`` and reverse names to those who ask for other types (RFC 2308)."""
    owners = qname.startswith(("dns-version.", "ns.dns.")) or qname.endswith(".arpa.")
    return owners and core[0] in ("NXDOMAIN", "REFUSED") and ours[0] == "NOERROR" and not ours[2]


def soa_of_nothing(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """CoreDNS says NODATA for the SOA of any name, existing or not (RFC 1034)."""
    return type == "SOA" and core[0] == "NOERROR" and not core[2] and ours[0] in ("NXDOMAIN", "REFUSED")


def svc_in_reverse_zone(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """CoreDNS knows ``svc`` and ``pod`` in reverse zones too, where nothing is below them."""
    return qname in ("svc.in-addr.arpa.", "svc.ip6.arpa.") and core[0] == "NOERROR"


def letters_of_the_zone(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """CoreDNS finds the NS records of a zone only in lower case (RFC 4343)."""
    return (qname, type) == ("CLUSTER.local.", "NS") and core[0] == "NOERROR" and not core[2] and bool(ours[2])


def hidden_namespace(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """With ``namespace_labels`` CoreDNS still tells names in hidden namespaces to reverse lookups."""
    return type == "PTR" and core[0] == "NOERROR" and set(ours[2]) < set(core[2])


def dotted_pod_name(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """With ``endpoint_pod_names`` CoreDNS makes names of Pod names with dots, which it then denies."""
    return "dotted.pod." in str(core) or (qname.startswith("10-1-1-6.") and core[0] == "NXDOMAIN")


def unlabelled_import(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """With ``namespace_labels`` CoreDNS wants to see the labels of Namespaces on ServiceImports, too."""
    return "clusterset" in qname and core[0] == "NXDOMAIN" and ours[0] == "NOERROR"


def import_without_protocol(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """A port of a ServiceImport without a protocol is TCP, says its API, but no API server fills it in; nor CoreDNS."""
    return ".noprotocol." in qname and core[0] == "NXDOMAIN" and ours[0] == "NOERROR"


def unspeakable(qname: str, type: str, core: Answer, ours: Answer) -> bool:
    """CoreDNS makes up names with empty labels for slices without a Service or a cluster, and then says nothing."""
    homeless = ".homeless." in f".{qname.lower()}" and type == "SRV"
    return core[0] == "silence" and (homeless or (qname == "1.1.9.10.in-addr.arpa." and type == "PTR"))


EVERYWHERE = (existing_txt, owner_of_records, soa_of_nothing, svc_in_reverse_zone, letters_of_the_zone, unspeakable)
EXPECTED: dict[str, tuple[Callable[[str, str, Answer, Answer], bool], ...]] = {
    "namespace labels": (hidden_namespace,),
    "pod names": (dotted_pod_name,),
    "zonal, pod names": (dotted_pod_name,),
    "multicluster": (import_without_protocol,),
    "multicluster, pod names": (import_without_protocol, dotted_pod_name),
    "multicluster, labels": (import_without_protocol,),
    "multicluster, namespace labels": (import_without_protocol, unlabelled_import, hidden_namespace),
    "multicluster, no endpoints": (import_without_protocol,),
}


# --- the cluster and the questions -----------------------------------------------------------------------------------


def world() -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, object) of everything."""
    with open(Path(__file__).parent / "world.yaml") as file:
        for found in yaml.safe_load_all(file):
            if found["kind"] != "ServiceImport":
                for port in [*(found.get("spec", {}).get("ports") or ()), *(found.get("ports") or ())]:
                    port.setdefault("protocol", "TCP")  # as the API server does
            yield KIND_OF[found["kind"]], found
    for i in range(CHAIN):
        target = f"chain{i + 1}.prod" if i + 1 < CHAIN else "web.dev"
        yield "services", fakeapi.service(f"chain{i}", "prod", external_name=f"{target}.svc.cluster.local")
    local = [name.address_text(address) for address in local_addresses()]
    for family, addresses in (("4", [a for a in local if ":" not in a]), ("6", [a for a in local if ":" in a])):
        if addresses:
            yield (
                "endpointslices",
                fakeapi.endpointslice("kube-dns", addresses, "kube-system", name=f"kube-dns-{family}"),
            )


def local_addresses() -> list[bytes]:
    return [address for _, address in interfaces.addresses() if address[0] != 127 and any(address[:15])]


def questions(index: Index) -> list[str]:
    """Every name that there is, and many that are near."""
    found = set("svc pod dns-version ns.dns dns x x.y svc.svc pod.svc svc.pod web.dev.nope web.nons.svc".split())
    odd = "- abc --1 1-2-3 1-2-3-4-5 300-1-1-1 01-2-3-4 10-244--0-1 10-9-9-9 fd00--1 10-244-0-3".split()
    known = "10-244-0-1 10-244-0-2 192-0-2-10 fd00-244--1 x.10-244-0-1 x.y.10-244-0-1 x.y.z.10-244-0-1".split()
    for space in ("dev", "prod", "default", "empty", "kube-system", "nons", "DEV"):
        found |= {f"{space}.svc", f"{space}.pod", space, f"_tcp.{space}.svc", f"headless.{space}.svc"}
        found |= {f"{label}.{space}.pod" for label in odd + known}
    # Not 10.1.6.1, of a slice without a Service: CoreDNS fails to pack its PTR record and says nothing at all.
    addresses = {pack_address(text) for text in ("10.244.0.1", "8.8.8.8", "10.1.1.4")}
    for entry in [*index.entries.values(), *index.imports.values()]:
        base = b".".join(name.labels(entry.key + b"\0")).decode() + ".svc"
        found |= {base, base.upper(), f"nope.{base}", f"_tcp.{base}", f"a.b.c.{base}", f"_http._tcp.x.{base}"}
        found |= {f"{port}.{base}" for port in PORTS}
        found |= {f"{zone}.{base}" for zone in TOPOLOGY}
        addresses |= set(entry.service.addresses if entry.service else ())
        for part in entry.slices:
            for address, host, pod in part.endpoints():
                # Nor those of slices that only have a ServiceImport, for the same reason.
                addresses |= {address} if index.entries.get(entry.key) is entry else set()
                labels = [label.decode() for label in (host, pod, dashed(address)) if label]
                labels += [f"{label}.{cluster}" for label in labels for cluster in CLUSTERS]
                found |= {f"{label}.{base}" for label in labels} | {f"_http._tcp.{label}.{base}" for label in labels}
    reverse = {name.to_text(name.reverse(address)) for address in addresses}
    reverse |= {"in-addr.arpa.", "ip6.arpa.", "10.in-addr.arpa.", "1.10.in-addr.arpa.", "svc.in-addr.arpa."}
    reverse |= {"dns-version.in-addr.arpa.", "ns.dns.in-addr.arpa.", "x.in-addr.arpa.", "0.ip6.arpa.", "svc.ip6.arpa."}
    reverse |= {"1.1.1.1.10.in-addr.arpa.", "01.1.1.10.in-addr.arpa.", "default.svc.10.in-addr.arpa."}
    return [
        *sorted(f"{own}.{zone}" for own in found for zone in ("cluster.local.", "clusterset.local.")),
        *sorted(reverse),
        *("cluster.local.", "CLUSTER.local.", "clusterset.local."),
    ]


# --- the two servers -------------------------------------------------------------------------------------------------


def directive(url: str, options: str) -> str:
    zones = "cluster.local clusterset.local" if "multicluster" in options else "cluster.local"
    return f"kubernetes {zones} in-addr.arpa ip6.arpa {{\nendpoint {url}\nttl 30\n{options}\n}}"


@contextlib.contextmanager
def coredns(directory: Path, url: str, ports: dict[str, int], outside: int) -> Iterator[None]:
    text = "".join(
        f".:{ports[label]} {{\n{directive(url, options)}\nforward . 127.0.0.1:{outside}\n}}\n"
        for label, options in BLOCKS.items()
    )
    text += f""".:{outside} {{
    template IN A www.example.org {{
        answer "www.example.org. 60 IN A 192.0.2.80"
    }}
    template IN ANY www.example.org {{
        rcode NOERROR
    }}
    template IN ANY example.org {{
        rcode NXDOMAIN
    }}
    template ANY ANY {{
        rcode REFUSED
    }}
}}
"""
    (directory / "Corefile").write_text(text)
    with open(directory / "coredns.log", "w") as output:
        process = subprocess.Popen(["coredns", "-conf", directory / "Corefile"], stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def answering(port: int) -> None:
    """Wait until CoreDNS does."""
    query = dns.message.make_query("dns-version.cluster.local.", "TXT")
    deadline = time.monotonic() + 30
    while True:
        try:
            await asyncio.to_thread(dns.query.udp, query, "127.0.0.1", 0.5, port)
            return
        except (OSError, dns.exception.Timeout):
            assert time.monotonic() < deadline, "CoreDNS does not answer"
            await asyncio.sleep(0.05)


async def outside_world(query: Query) -> Reply:
    """As the block for the outside."""
    if query.name == name.from_text("www.example.org."):
        found = (Record(query.spelling, message.A, 60, pack_address("192.0.2.80")),)
        return Reply(answer=found if query.type == message.A else (), flags=AA)
    return Reply(NXDOMAIN if is_under(query.name, name.from_text("example.org.")) else REFUSED, flags=AA)


@contextlib.asynccontextmanager
async def kdns_plugins(url: str) -> AsyncIterator[dict[str, Kubernetes]]:
    process = Process()
    process.ask = outside_world
    found: dict[str, Kubernetes] = {}
    for label, options in BLOCKS.items():
        plugin = set_up(Kubernetes, directive(url, options), new_site(process=process))
        assert isinstance(plugin, Kubernetes)
        found[label] = plugin
        await plugin.start()
    for plugin in found.values():
        await asyncio.wait_for(plugin._cluster.synced.wait(), 20)
    yield found
    for plugin in found.values():
        await plugin.stop()
    process.warehouse.keep_only(set())


def shown(reply: dns.message.Message) -> Answer:
    """What is compared: letters in lower case, no order, no serials."""

    def section(rrsets: list[Any]) -> list[str]:
        lines = []
        for rrset in rrsets:
            for line in rrset.to_text().lower().splitlines():
                words = line.split()
                if words[3] == "soa":
                    words[6] = "serial"
                lines.append(" ".join(words))
        return sorted(lines)

    flags = dns.flags.to_text(reply.flags & ~dns.flags.RD)
    rcode = dns.rcode.to_text(reply.rcode())
    return rcode, flags, section(reply.answer), section(reply.authority), section(reply.additional)


async def ours(plugin: Kubernetes, question: dns.message.QueryMessage) -> Answer:
    query = wire.parse_query(question.to_wire(), ("127.0.0.1", 4242), message.Listener())
    assert isinstance(query, Query)
    reply = await plugin.resolve(query, outside_world)
    return shown(dns.message.from_wire(wire.pack_reply(query, reply, 65535)))


def coredns_says(question: dns.message.QueryMessage, port: int) -> Answer:
    try:
        return shown(dns.query.tcp(question, "127.0.0.1", 3, port))
    except dns.exception.Timeout:
        return "silence", "", [], [], []


async def compare(label: str, plugin: Kubernetes, port: int, names: list[str]) -> tuple[Counter[str], list[str]]:
    """The expected differences, counted, and the others."""
    chosen = random.Random(label)
    expected: Counter[str] = Counter()
    wrong: list[str] = []
    if "multicluster" not in BLOCKS[label]:
        names = [qname for qname in names if not qname.endswith("clusterset.local.")]
    for _ in range(QUESTIONS):
        qname, type = chosen.choice(names), chosen.choice((*TYPES, "A", "AAAA", "SRV", "PTR"))
        question = dns.message.make_query(qname, type)
        theirs = await asyncio.to_thread(coredns_says, question, port)
        found = await ours(plugin, question)
        if found != theirs:
            reasons = (*EVERYWHERE, *EXPECTED.get(label, ()))
            reason = next((reason for reason in reasons if reason(qname, type, theirs, found)), None)
            if reason is not None:
                expected[reason.__name__] += 1
            else:
                wrong.append(f"{label}: {qname} {type}\n  CoreDNS {theirs}\n  kdns    {found}")
    return expected, wrong


async def test_the_same_answers(tmp_path: Path) -> None:
    ports = {label: free_port() for label in BLOCKS}
    async with fakeapi.FakeApi() as api:
        for kind, found in world():
            api.put(kind, found)
        with coredns(tmp_path, api.url, ports, free_port()):
            async with kdns_plugins(api.url) as plugins:
                await answering(ports["verified"])
                names = questions(plugins["multicluster, pod names"]._cluster.index)
                results = [await compare(label, plugins[label], port, names) for label, port in ports.items()]
    wrong = [text for _, found in results for text in found]
    assert not wrong, f"{len(wrong)} differences\n" + "\n".join(wrong[:10])
    expected = sum((counts for counts, _ in results), Counter[str]())
    if QUESTIONS >= 5000:
        # Differences that are gone need no exception any more.
        reasons = {*EVERYWHERE, *(reason for found in EXPECTED.values() for reason in found)}
        assert set(expected) == {reason.__name__ for reason in reasons}


def test_every_kind_of_object_is_in_the_world() -> None:
    assert {kind for kind, _ in world()} == {*KINDS, "serviceimports"}
