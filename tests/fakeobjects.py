"""API objects for tests: builders of small ones, what selectors select, and how an API server refuses.

Objects are plain dicts as ``kubectl get -o json`` shows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Object = dict[str, Any]


class Refusal(Exception):
    """An answer that is a Status object."""

    def __init__(self, code: int, reason: str, message: str, retry_after: int = 0) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after
        details = {"retryAfterSeconds": retry_after} if retry_after else {}
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": reason, "message": message, "code": code, "details": details,
        }  # fmt: skip


RESOURCES: dict[str, tuple[str, str]] = {
    "namespaces": ("v1", "Namespace"),
    "services": ("v1", "Service"),
    "pods": ("v1", "Pod"),
    "nodes": ("v1", "Node"),
    "endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "serviceimports": ("multicluster.x-k8s.io/v1alpha1", "ServiceImport"),
}
"""Plural → (apiVersion, kind)."""
CLUSTER_WIDE = ("namespaces", "nodes")


# --- objects ---------------------------------------------------------------------------------------------------------


def namespace(name: str, labels: dict[str, str] | None = None) -> Object:
    return {"metadata": {"name": name, "labels": labels or {}}}


def service(
    name: str,
    namespace: str = "default",
    *,
    cluster_ip: str | list[str] = "None",
    ports: Iterable[tuple[str, int] | tuple[str, int, str]] = (("http", 80),),
    labels: dict[str, str] | None = None,
    external_name: str = "",
) -> Object:
    """A Service; ``cluster_ip`` "None" makes it headless, ``external_name`` makes it an alias."""
    meta = {"name": name, "namespace": namespace, "labels": labels or {}}
    if external_name:
        return {"metadata": meta, "spec": {"type": "ExternalName", "externalName": external_name}}
    ips = [cluster_ip] if isinstance(cluster_ip, str) else cluster_ip
    spec = {"type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips, "ports": [_port(*port) for port in ports]}
    return {"metadata": meta, "spec": spec}


def _port(name: str, number: int, protocol: str = "TCP") -> Object:
    return {"name": name, "port": number, "protocol": protocol}


def endpointslice(
    service: str,
    addresses: Iterable[str | tuple[str, str]],
    namespace: str = "default",
    *,
    name: str = "",
    ports: Iterable[tuple[str, int] | tuple[str, int, str]] = (("http", 80),),
    labels: dict[str, str] | None = None,
    ready: bool = True,
) -> Object:
    """A slice of a Service; each address alone or with its hostname."""
    pairs = [(address, "") if isinstance(address, str) else address for address in addresses]
    endpoints = [
        {"addresses": [address], "conditions": {"ready": ready}} | ({"hostname": hostname} if hostname else {})
        for address, hostname in pairs
    ]
    return {
        "metadata": {
            "name": name or f"{service}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service} | (labels or {}),
        },
        "addressType": "IPv6" if pairs and ":" in pairs[0][0] else "IPv4",
        "endpoints": endpoints,
        "ports": [_port(*port) for port in ports],
    }


def pod(name: str, ip: str, namespace: str = "default", *, phase: str = "Running", **meta: Any) -> Object:
    return {
        "metadata": {"name": name, "namespace": namespace} | meta,
        "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]},
    }


# --- selectors -------------------------------------------------------------------------------------------------------

_TERM = re.compile(
    r"\s*(?P<absent>!)?\s*(?P<key>[A-Za-z0-9_./-]+)\s*"
    r"(?:(?P<op>==|!=|=)\s*(?P<value>[A-Za-z0-9_.-]*)|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?\s*(?:,|$)"
)


def matches_labels(selector: str, labels: dict[str, str]) -> bool:
    at = 0
    while at < len(selector):
        term = _TERM.match(selector, at)
        if term is None:
            raise Refusal(400, "BadRequest", f"unable to parse requirement: {selector}")
        at = term.end()
        found = labels.get(term["key"])
        if term["set"]:
            inside = found in [value.strip() for value in term["values"].split(",")]
            fits = inside if term["set"] == "in" else not inside
        elif term["op"]:
            fits = (found == term["value"]) != (term["op"] == "!=")
        else:
            fits = (found is None) == bool(term["absent"])
        if not fits:
            return False
    return True


def matches_fields(selector: str, item: Object) -> bool:
    known = {
        "metadata.name": item["metadata"]["name"],
        "metadata.namespace": item["metadata"].get("namespace", ""),
        "status.phase": item.get("status", {}).get("phase", ""),
    }
    for term in filter(None, selector.split(",")):
        key, equal, value = re.split(r"(==|!=|=)", term, maxsplit=1)
        if key not in known:
            raise Refusal(400, "BadRequest", f"field label not supported: {key}")
        if (known[key] == value) == (equal == "!="):
            return False
    return True
