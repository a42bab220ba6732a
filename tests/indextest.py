"""For tests of cluster names: small objects, an index that holds them, and answers as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdns import message, name, rdata
from kdns.cluster.decoding import from_manifest
from kdns.cluster.index import Index
from kdns.cluster.names import Chase, Names, Options
from kdns.cluster.objects import KINDS, Apply, Init, InitApply, InitDone, Object
from kdns.message import Record, Reply
from tests.plugintest import ask

KIND_OF = {
    "Namespace": "namespaces",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "Pod": "pods",
    "ServiceImport": "serviceimports",
    "ImportedSlice": "importedslices",
}
ZONES = tuple(name.from_text(zone) for zone in ("cluster.local.", "in-addr.arpa.", "ip6.arpa."))


def namespace(text: str) -> Object:
    return from_manifest("namespaces", {"metadata": {"name": text}})


def service(text: str, *addresses: str, ports: Iterable[str] = ("http 80",), **spec: Any) -> Object:
    """``service("web.dev", "10.96.0.5")``; without addresses it is headless, unless ``externalName`` is given."""
    own, _, space = text.partition(".")
    spec["ports"] = [port_of(port) for port in ports]
    if "externalName" in spec:
        spec["type"] = "ExternalName"
    else:
        spec["clusterIPs"] = list(addresses) or ["None"]
    return from_manifest("services", {"metadata": {"name": own, "namespace": space}, "spec": spec})


def port_of(text: str) -> dict[str, Any]:
    """``http 80`` / ``dns 53 UDP`` / ``- 80`` (no name) / ``http -`` (no number)."""
    words = text.split()
    port: dict[str, Any] = {"protocol": words[2] if len(words) > 2 else "TCP"}
    if words[0] != "-":
        port["name"] = words[0]
    if words[1] != "-":
        port["port"] = int(words[1])
    return port


def slice_of(
    text: str, *endpoints: str, of: str = "", ports: Iterable[str] = ("http 80",), changed: str = ""
) -> Object:
    """``slice_of("web-a.dev", "10.1.0.1 host pod zone", of="web")``; ``-`` for what there is not."""
    labels = {"kubernetes.io/service-name": of} if of else {}
    notes = {"endpoints.kubernetes.io/last-change-trigger-time": changed} if changed else {}
    return from_manifest("endpointslices", _slice(text, endpoints, ports, labels, notes))


def imported(text: str, *endpoints: str, of: str, cluster: str = "", ports: Iterable[str] = ("http 80",)) -> Object:
    """As `slice_of`, but of a ServiceImport: ``imported("web-east.dev", "10.1.0.1", of="web", cluster="east")``."""
    labels = {"multicluster.kubernetes.io/service-name": of}
    labels |= {"multicluster.kubernetes.io/source-cluster": cluster} if cluster else {}
    return from_manifest("importedslices", _slice(text, endpoints, ports, labels, {}))


def _slice(
    text: str, endpoints: Iterable[str], ports: Iterable[str], labels: dict[str, str], notes: dict[str, str]
) -> dict[str, Any]:
    own, _, space = text.partition(".")
    found = []
    for endpoint in endpoints:
        address, *more = (*endpoint.split(), "-", "-", "-")[:4]
        host, pod, zone = (None if word == "-" else word for word in more)
        target = {"name": pod} if pod else None
        found.append({"addresses": [address], "hostname": host, "targetRef": target, "zone": zone})
    return {
        "metadata": {"name": own, "namespace": space, "labels": labels, "annotations": notes},
        "addressType": "IPv6" if any(":" in endpoint for endpoint in endpoints) else "IPv4",
        "endpoints": found,
        "ports": [port_of(port) for port in ports],
    }


def service_import(text: str, *addresses: str, ports: Iterable[str] = ("http 80",)) -> Object:
    """``service_import("web.dev", "10.112.0.5")``; without addresses it is headless."""
    own, _, space = text.partition(".")
    spec = {"ports": [port_of(port) for port in ports]}
    spec |= {"type": "ClusterSetIP", "ips": list(addresses)} if addresses else {"type": "Headless"}
    return from_manifest("serviceimports", {"metadata": {"name": own, "namespace": space}, "spec": spec})


def pod(text: str, *addresses: str, labels: dict[str, str] | None = None, terminating: bool = False) -> Object:
    own, _, space = text.partition(".")
    meta: dict[str, Any] = {"name": own, "namespace": space, "labels": labels or {}}
    if terminating:
        meta["deletionTimestamp"] = "2026-11-21T09:44:25Z"
    status = {"phase": "Running", "podIPs": [{"ip": address} for address in addresses]}
    return from_manifest("pods", {"metadata": meta, "status": status})


def kind_of(found: Object) -> str:
    return KIND_OF[type(found).__name__]


def relist(index: Index, kind: str, objects: Iterable[Object], now: float = 0.0) -> set[bytes]:
    """A whole list; the facts that it touched."""
    facts = index.apply(Init(kind), now)
    for found in objects:
        facts |= index.apply(InitApply(kind, found), now)
    return facts | index.apply(InitDone(kind), now)


def fill(index: Index, *objects: Object, kinds: Iterable[str] = KINDS, now: float = 0.0) -> Index:
    """List the objects of these kinds."""
    for kind in kinds:
        relist(index, kind, [found for found in objects if kind_of(found) == kind], now)
    return index


def put(index: Index, found: Object, now: float = 0.0) -> set[bytes]:
    return index.apply(Apply(kind_of(found), found), now)


def names_of(index: Index, zones: tuple[bytes, ...] = ZONES, **options: Any) -> Names:
    return Names(index, Options(zones, **{"ttl": 30, **options}))


def answer(names: Names, qname: str, type: str = "A") -> Reply | Chase | None:
    number = message.type_number(type)
    assert number is not None
    return names.answer(ask(qname, number))


def said(names: Names, qname: str, type: str = "A") -> list[str]:
    """The answer as text: the rcode if there are no records, else each record; an additional one after ``+``."""
    found = answer(names, qname, type)
    if found is None:
        return ["not ours"]
    if isinstance(found, Chase):
        return [*(shown(record) for record in found.cnames), f"chase {name.to_text(found.target)}"]
    lines = [shown(record) for record in found.answer] + ["+ " + shown(record) for record in found.additional]
    return lines or [message.rcode_text(found.rcode) if found.rcode else "NODATA"]


def shown(record: Record) -> str:
    """``A 192.0.2.1``, with the owner before it when it is not below cluster.local."""
    return f"{message.type_text(record.type)} {rdata.to_text(record.type, record.rdata)}"
