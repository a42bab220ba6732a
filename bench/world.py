"""The data that all servers answer from, and the questions they are asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

NAMESPACES = [f"team-{number}" for number in range(5)]
SERVICES = 1000
ENDPOINTS = 3
"""Of every headless Service."""
HEADLESS_EVERY = 10
ZONE = "cluster.local."
OUTSIDE = "bench.example."
"""The zone behind the upstream."""
TTL = 30
CHANGING = 200
"""Services that come and go while objects change."""
CHANGES = 1000
"""Changes of objects in a second."""
LARGE = (10_000, 15_000)
"""Services and slices of the cluster that is listed again."""
LAST_NAMESPACE = "zz"
"""Comes last in every list."""
HOT = 200
"""Services whose names are asked over and over."""


@dataclass(frozen=True)
class Service:
    """A Service, as every server is to know it."""

    namespace: str
    name: str
    addresses: tuple[str, ...]
    """The cluster IP, or the endpoints of a headless one."""
    headless: bool

    @property
    def fqdn(self) -> str:
        return f"{self.name}.{self.namespace}.svc.{ZONE}"


def services(count: int = SERVICES) -> list[Service]:
    """So many Services; the same in every run, and the first ones the same for every count."""
    out: list[Service] = []
    for number in range(count):
        headless = number % HEADLESS_EVERY == 0
        first = number // 250, number % 250 + 1
        addresses = (
            tuple(f"10.{1 + endpoint}.{first[0]}.{first[1]}" for endpoint in range(ENDPOINTS))
            if headless
            else (f"10.96.{first[0]}.{first[1]}",)
        )
        out.append(Service(NAMESPACES[number % len(NAMESPACES)], f"svc-{number}", addresses, headless))
    return out


def slices(
    service_count: int, slice_count: int, endpoints: int = ENDPOINTS
) -> Iterator[tuple[str, Service, tuple[str, ...]]]:
    """(name, Service, addresses) of EndpointSlices: one for each headless Service, and more for the others' endpoints
    until there are `slice_count`.  With another number of endpoints every slice has so many, of its own."""
    for number, (name, service, addresses) in enumerate(_slices(service_count, slice_count)):
        own = range(number * endpoints, (number + 1) * endpoints)
        yield name, service, addresses if endpoints == ENDPOINTS else tuple(map(_endpoint_address, own))


def _endpoint_address(number: int) -> str:
    return f"10.{128 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"


def _slices(service_count: int, slice_count: int) -> Iterator[tuple[str, Service, tuple[str, ...]]]:
    told = 0
    for service in services(service_count):
        if service.headless:
            told += 1
            yield f"{service.name}-1", service, service.addresses
    others = [service for service in services(service_count) if not service.headless]
    for number in range(slice_count - told):
        service, last = others[number % len(others)], f"{number // 250 % 250}.{number % 250 + 1}"
        addresses = tuple(f"10.{100 + 20 * endpoint + number // 62500}.{last}" for endpoint in range(ENDPOINTS))
        yield f"{service.name}-{1 + number // len(others)}", service, addresses


def changing() -> list[Service]:
    """The Services that come and go; half of them headless.  Only servers that follow the API have them."""
    return [
        Service(NAMESPACES[number % len(NAMESPACES)], f"change-{number}", (f"10.99.0.{number + 1}",), number % 2 == 0)
        for number in range(CHANGING)
    ]


def marker(relist: int, number: int) -> Service:
    """A headless Service that only a new list tells of, at the end of every list: for the n-th relist, as many as are
    wanted, so that each name is asked once and no cached denial is in the way."""
    return Service(LAST_NAMESPACE, f"relist-{relist}-{number}", ("10.201.0.1",), True)


def marker_pod(relist: int) -> tuple[str, str]:
    """(name, address) of the Pod that only a new list tells of; with ``pods verified`` the name is there when it is."""
    address = f"10.203.{relist // 250 % 250}.{relist % 250 + 1}"
    return f"{address.replace('.', '-')}.{LAST_NAMESPACE}.pod.{ZONE}", address


def touched(number: int) -> Service:
    """The headless Service whose one endpoint tells how often it has been touched."""
    return Service(NAMESPACES[0], "touched", (f"10.204.{number // 250 % 250}.{number % 250 + 1}",), True)


def pods(count: int) -> Iterator[tuple[str, str]]:
    """(name, address) of so many Pods, for names that are asked once."""
    for number in range(count):
        address = f"10.{64 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"
        yield f"{address.replace('.', '-')}.{NAMESPACES[number % len(NAMESPACES)]}.pod.{ZONE}", address


def outside(count: int) -> list[str]:
    """So many names that the upstream answers."""
    return [f"n{number}.{OUTSIDE}" for number in range(count)]


def cluster_records(pod_count: int) -> Iterator[tuple[str, str, str]]:
    """(name, type, data) for servers that know nothing of Kubernetes."""
    for service in services():
        for address in service.addresses:
            yield service.fqdn, "A", address
        if service.headless:
            for address in service.addresses:
                yield f"{address.replace('.', '-')}.{service.fqdn}", "A", address
    for name, address in pods(pod_count):
        yield name, "A", address


# --- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """What is asked, and how."""

    name: str
    what: str
    questions: Callable[[int], Iterator[str]]
    """(how many) → lines ``name type``."""
    once: bool = False
    """Every question is asked once; otherwise the file is asked over and over."""
    forwards: bool = False
    """Needs a server that asks another."""
    tcp: bool = False
    changes: int = 0
    """Changes of objects in a second meanwhile.  Only for servers that follow a Kubernetes API."""
    relist: bool = False
    """Everything is listed again meanwhile, in a large cluster; only latencies are measured."""
    more: bool = False
    """There is no end to its questions: servers need no data for them."""
    rcodes: tuple[str, ...] = ("NOERROR",)
    """What a right server answers."""


def _hot(count: int) -> Iterator[str]:
    names = [service.fqdn for service in services()[:HOT]]
    chosen = random.Random(1)
    return (f"{chosen.choice(names)} A" for _ in range(10_000))


def _cold(count: int) -> Iterator[str]:
    """Service names as far as they go, Pod names for the rest, in random order."""
    names = [service.fqdn for service in services()] + [name for name, _ in pods(count)]
    names = names[:count]
    random.Random(2).shuffle(names)
    return (f"{name} A" for name in names)


def _nxdomain(count: int) -> Iterator[str]:
    chosen = random.Random(3)
    return (f"no-{chosen.getrandbits(48):x}.{chosen.choice(NAMESPACES)}.svc.{ZONE} A" for _ in range(count))


def _search(count: int) -> Iterator[str]:
    """What a Pod's resolver asks with ndots:5 for outside names and for Services by their short names."""
    chosen = random.Random(4)
    known, names = services()[:100], outside(100)
    for _ in range(2_000):
        namespace = chosen.choice(NAMESPACES)
        if chosen.random() < 0.5:
            service = chosen.choice(known)
            short = f"{service.name}.{service.namespace}."
            searched = [f"{short}{namespace}.svc.{ZONE}", f"{short}svc.{ZONE}"]
        else:
            name = chosen.choice(names)
            searched = [f"{name}{namespace}.svc.{ZONE}", f"{name}svc.{ZONE}", f"{name}{ZONE}", name]
        for name in searched:
            yield f"{name} A"
            yield f"{name} AAAA"


def _forward_hit(count: int) -> Iterator[str]:
    chosen = random.Random(5)
    return (f"{chosen.choice(outside(100))} A" for _ in range(10_000))


def _forward_miss(count: int) -> Iterator[str]:
    return (f"{name} A" for name in outside(count))


def _changes(count: int) -> Iterator[str]:
    hot, others = ([service.fqdn for service in found] for found in (services()[:HOT], changing()))
    chosen = random.Random(6)
    for _ in range(5_000):
        yield f"{chosen.choice(hot)} A"
        yield f"{chosen.choice(others)} A"


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("hot", "hot cluster names", _hot),
        Workload("cold", "cluster names asked once (Pods and Services)", _cold, once=True),
        Workload(
            "nxdomain", "random NXDOMAIN below a namespace", _nxdomain, once=True, more=True, rcodes=("NXDOMAIN",)
        ),
        Workload("search", "ndots:5 search mix, A and AAAA", _search, rcodes=("NOERROR", "NXDOMAIN")),
        Workload("forward-hit", "forwarded, cached", _forward_hit),
        Workload("forward-miss", "forwarded, every name new", _forward_miss, once=True, forwards=True, more=True),
        Workload("tcp", "TCP, 4 connections, pipelined", _hot, tcp=True),
        Workload(
            "changes",
            "hot names and names that change, 1,000 changes/s",
            _changes,
            changes=CHANGES,
            rcodes=("NOERROR", "NXDOMAIN"),
        ),
        Workload("relist", "hot names, 1,000 changes/s and a relist", _hot, changes=CHANGES, relist=True),
    )
}


def write_questions(workload: Workload, count: int, path: Path) -> None:
    """The file that dnsperf and our own generator read."""
    with path.open("w") as file:
        file.writelines(f"{line}\n" for line in workload.questions(count))


def write_zone(origin: str, records: Iterator[tuple[str, str, str]], path: Path) -> None:
    """A master file for servers that read one."""
    with path.open("w") as file:
        file.write(f"$ORIGIN {origin}\n$TTL {TTL}\n@ SOA ns.dns hostmaster 1 7200 1800 86400 {TTL}\n@ NS ns.dns\n")
        file.write("ns.dns A 10.96.0.10\n")
        file.writelines(f"{name} {kind} {data}\n" for name, kind, data in records)
