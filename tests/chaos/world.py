"""Clusters whose answers are known: objects for the fake API server, and the questions about them.

The right answers are those of `tests.kube.expected`, which is written after the specification alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakeapi import FakeApi, endpointslice, namespace, pod, service
from tests.kube.expected import Cluster

Object = dict[str, Any]
NOWHERE = frozenset({"NXDOMAIN"})
FORWARDED = frozenset({"192.0.2.1"})
NOT_READY = frozenset({"SERVFAIL", "EDE 14"})
SUFFIX = "svc.cluster.local."


@dataclass
class Question:
    """``*`` in a name is another number each time."""

    name: str
    type: str
    right: tuple[frozenset[str], ...]
    """Any of these."""
    weight: float = 1.0
    outside: bool = False
    """It is forwarded."""


def fill(api: FakeApi, services: int = 40, endpoints: int = 4, pods: int = 20) -> list[Object]:
    """A small cluster: half of the Services headless; what is stored."""
    made = [api.put("namespaces", namespace("apps"))]
    for number in range(services):
        name = f"s{number}"
        headless = number % 2 == 1
        own = service(name, "apps", cluster_ip="None" if headless else f"10.96.{number // 250}.{number % 250 + 1}")
        made.append(api.put("services", own))
        addresses = [f"10.{1 + number // 60}.{number % 60 * 4 + at // 250}.{at % 250 + 1}" for at in range(endpoints)]
        made.append(api.put("endpointslices", endpointslice(name, addresses, "apps")))
    made += [api.put("pods", pod(f"p{number}", f"10.200.0.{number + 1}", "apps")) for number in range(pods)]
    return made


def questions(objects: Iterable[Object], seed: int = 1, most: int = 400, pods: bool = True) -> list[Question]:
    """Four fifths about the cluster, the rest forwarded, nine tenths of that cached; without ``pods`` nothing that
    kdns says only where it follows Pods."""
    known = Cluster(objects).answers()
    chance = random.Random(seed)
    items = sorted(item for item in known.items() if pods or not item[0][0].endswith(".pod.cluster.local."))
    picked = items if len(items) <= most else chance.sample(items, most)
    inside = [Question(name, type, (right,)) for (name, type), right in picked]
    names = [name for (name, _), _ in picked if name.endswith(SUFFIX)]
    misses = [Question(f"www*.example.org.{chance.choice(names)}", "A", (NOWHERE,)) for _ in range(len(inside) // 8)]
    return weighted([*inside, *misses]) + outside()


def weighted(inside: list[Question]) -> list[Question]:
    """Make them four fifths of the load."""
    for one in inside:
        one.weight = 0.8 / len(inside)
    return inside


def outside() -> list[Question]:
    """A fifth of the load: forwarded names."""
    cached = [Question(f"www{number}.example.org.", "A", (FORWARDED,), 0.018, True) for number in range(10)]
    return [*cached, Question("new*.example.net.", "A", (FORWARDED,), 0.02, True)]


def unknown(asked: Sequence[Question], right: frozenset[str] = NOT_READY) -> list[Question]:
    """The same questions while nothing is known of the cluster."""
    return [one if one.outside else Question(one.name, one.type, (right,), one.weight) for one in asked]


def big(services: int, endpoints: int, per_slice: int = 10) -> tuple[list[Object], list[Object]]:
    """The Services and slices of a large cluster; every second Service is headless."""
    own, slices = [], []
    number = 0
    for at in range(services):
        name, space = f"s{at}", f"n{at % 50}"
        ip = "None" if at % 2 else f"10.{96 + at // 65000}.{at // 250 % 250}.{at % 250 + 1}"
        own.append(service(name, space, cluster_ip=ip))
        wanted = endpoints // services + (at < endpoints % services)
        for part in range(0, wanted, per_slice):
            count = min(per_slice, wanted - part)
            addresses = [f"10.{n >> 16 & 63}.{n >> 8 & 255}.{n & 255}" for n in range(number, number + count)]
            number += count
            slices.append(endpointslice(name, addresses, space, name=f"{name}-{part}"))
    return own, slices


def fill_big(api: FakeApi, services: int, endpoints: int) -> list[Object]:
    """A large cluster into the server; what is stored."""
    made = [api.put("namespaces", namespace(f"n{number}")) for number in range(50)]
    own, slices = big(services, endpoints)
    made += [api.put("services", one) for one in own]
    return made + [api.put("endpointslices", one) for one in slices]
