"""What a DNS server has to say about a cluster, worked out of what the API itself says (in `kubectl -o json`).

Written after the Kubernetes DNS specification 1.1.0 alone; shares no line with kdns.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeAlias

Question: TypeAlias = tuple[str, str]
"""Name and type."""
Expected: TypeAlias = dict[Question, frozenset[str]]
"""Records without owner, TTL and weight; `NOWHERE`: there is no such name; empty: it has nothing of that type."""

NOWHERE = frozenset({"NXDOMAIN"})
ZONE = "cluster.local."
RUNNING = ("Pending", "Running")


class Cluster:
    """A cluster's objects."""

    def __init__(self, items: Iterable[dict[str, Any]]) -> None:
        self.records: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.gone: set[str] = set()
        """Names that would exist if something were ready."""
        kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for item in items:
            kinds[item["kind"]].append(item)
        self._slices: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for one in kinds["EndpointSlice"]:
            of = (one["metadata"].get("labels") or {}).get("kubernetes.io/service-name", "")
            self._slices[_namespace(one), of].append(one)
        for one in kinds["Namespace"]:
            for kind in ("svc", "pod"):
                self._exists(f"{one['metadata']['name']}.{kind}.{ZONE}")
        for service in kinds["Service"]:
            self._service(service)
        for pod in kinds["Pod"]:
            self._pod(pod)

    def answers(self) -> Expected:
        """Every name with the types that the specification speaks of."""
        known: Expected = {
            (name, type): frozenset(by_type[type])
            for name, by_type in self.records.items()
            for type in ("A", "AAAA", "SRV", "PTR", "CNAME")
            if type in by_type or (type in ("A", "AAAA") and "CNAME" not in by_type and not name.startswith("_"))
        }
        return {(name, "A"): NOWHERE for name in self.gone} | known

    def _exists(self, name: str) -> None:
        self.records[name.lower()]

    def _add(self, name: str, type: str, *data: str) -> None:
        self.records[name.lower()][type].update(data)

    def _address(self, name: str, address: str) -> None:
        self._add(name, "A" if "." in address else "AAAA", str(ipaddress.ip_address(address)))

    # -- Services

    def _service(self, service: dict[str, Any]) -> None:
        spec, meta = service["spec"], service["metadata"]
        name = f"{meta['name']}.{meta['namespace']}.svc.{ZONE}"
        if spec.get("type") == "ExternalName":
            self._add(name, "CNAME", spec["externalName"].rstrip(".") + ".")
            return
        headless = spec.get("clusterIP") == "None"
        if headless:
            self.gone.add(name)
        else:
            self._cluster_ip(name, spec)
        for one in self._slices[meta["namespace"], meta["name"]]:
            self._endpoints(name, one, headless)

    def _cluster_ip(self, name: str, spec: dict[str, Any]) -> None:
        for address in spec["clusterIPs"]:
            self._address(name, address)
            self._add(_reverse(address), "PTR", name)
        for port in spec.get("ports", []):
            self._port(name, port, name)

    def _port(self, service: str, port: dict[str, Any], target: str) -> None:
        record = f"0 {port['port']} {target.lower()}"
        self._add(service, "SRV", record)
        if port.get("name"):
            named = f"_{port['name']}._{port.get('protocol', 'TCP').lower()}.{service}"
            self._add(named, "SRV", record)

    def _endpoints(self, service: str, one: dict[str, Any], headless: bool) -> None:
        for endpoint in one.get("endpoints") or []:
            ready = endpoint.get("conditions", {}).get("ready")
            for address in endpoint["addresses"]:
                name = f"{endpoint.get('hostname') or dashed(address)}.{service}"
                if ready is False:
                    self.gone.add(name)
                    continue
                self._address(name, address)
                self._add(_reverse(address), "PTR", name)
                if headless:
                    self._address(service, address)
                    for port in one.get("ports") or []:
                        self._port(service, port, name)

    # -- Pods

    def _pod(self, pod: dict[str, Any]) -> None:
        status = pod.get("status", {})
        for address in (found["ip"] for found in status.get("podIPs", [])):
            name = f"{dashed(address)}.{_namespace(pod)}.pod.{ZONE}"
            if status.get("phase") in RUNNING and "deletionTimestamp" not in pod["metadata"]:
                self._address(name, address)
            else:
                self.gone.add(name)


def dashed(address: str) -> str:
    """An address as the label of an endpoint or a Pod."""
    if ":" not in address:
        return address.replace(".", "-")
    text = str(ipaddress.ip_address(address)).replace(":", "-")
    return text + "0" if text.endswith("-") else text


def _namespace(item: dict[str, Any]) -> str:
    found: str = item["metadata"]["namespace"]
    return found


def _reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer + "."
