"""Which endpoints a Service has, as the cluster's own controllers would work it out from Services and Pods.

What comes out are EndpointSlice manifests like those of the endpoint slice controller, at most 100 endpoints in each:

- Pods in phase Succeeded or Failed, and Pods without an address of the slice's family, have no endpoint.
- An endpoint is ready when its Pod is (condition ``Ready``) and is not being deleted, or when the Service publishes
  addresses that are not ready.
- It has the Pod's hostname when the Pod's subdomain is the Service's name.
- A named target port is looked up in each Pod, so Pods of one Service may end up in slices with different ports.
- Services of type ExternalName, and those without a selector, have no slices of their own.

Nodes play no part: a Pod counts as if its node were there.  Sources: Kubernetes documentation ("EndpointSlices", "DNS
for Services and Pods"), and the behaviour of kube-controller-manager 1.34.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Struct, field

SLICE_SIZE: Final = 100
"""Endpoints in one slice (the controller's default)."""
SERVICE_NAME: Final = "kubernetes.io/service-name"
MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
CONTROLLER: Final = "endpointslice-controller.k8s.io"
HEADLESS: Final = "service.kubernetes.io/headless"

_ENDED: Final = ("Succeeded", "Failed")
_ORDINAL: Final = re.compile(r"(.+)-([0-9]+)")

Ports: TypeAlias = tuple[tuple[str, str, int], ...]
"""(name, protocol, number) of each."""
PortNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535)]


# --- manifests, trimmed to what decides about endpoints --------------------------------------------------------------


class Meta(Struct, frozen=True, gc=False):
    """``metadata`` of any object."""

    name: str
    namespace: str | None = None
    labels: dict[str, str] | None = None


class ServicePort(Struct, frozen=True, gc=False):
    """One of ``spec.ports``."""

    port: PortNumber
    name: str | None = None
    protocol: str | None = None
    target: PortNumber | str | None = field(name="targetPort", default=None)


class ServiceSpec(Struct, frozen=True, gc=False):
    """``spec`` of a Service."""

    type: str | None = None
    cluster_ip: str | None = field(name="clusterIP", default=None)
    cluster_ips: list[str] | None = field(name="clusterIPs", default=None)
    families: list[str] | None = field(name="ipFamilies", default=None)
    policy: str | None = field(name="ipFamilyPolicy", default=None)
    selector: dict[str, str] | None = None
    publish_not_ready: bool | None = field(name="publishNotReadyAddresses", default=None)
    ports: list[ServicePort] | None = None


class Service(Struct, frozen=True, gc=False):
    """A Service manifest."""

    metadata: Meta
    spec: ServiceSpec

    @property
    def selects(self) -> bool:
        """Whether its endpoints follow from the Pods that it selects."""
        return bool(self.spec.selector) and self.spec.type != "ExternalName"

    @property
    def headless(self) -> bool:
        """Whether it is to have no address of its own."""
        return "None" in (self.spec.cluster_ip, *(self.spec.cluster_ips or ()))


class StatefulSet(Struct, frozen=True, gc=False):
    """What a StatefulSet gives its Pods."""

    subdomain: str
    """``serviceName``: the Service that governs them."""
    selector: dict[str, str]


class Pod(Struct, frozen=True, gc=False):
    """What a Pod brings to the Services that select it."""

    name: str
    labels: dict[str, str]
    addresses: tuple[str, ...]
    """Empty also when the Pod has ended."""
    ready: bool
    terminating: bool
    hostname: str
    subdomain: str
    ports: Ports
    """The ports that have names."""

    def named(self, sets: Mapping[str, StatefulSet]) -> Pod:
        """The Pod with hostname and subdomain from its StatefulSet, when it has none of its own.

        ``sets`` are the StatefulSets of its namespace by name; a Pod ``NAME-ORDINAL`` that such a set selects is its.
        """
        match = _ORDINAL.fullmatch(self.name)
        owner = sets.get(match[1]) if match and not self.hostname else None
        if owner is None or not owner.selector.items() <= self.labels.items():
            return self
        return msgspec.structs.replace(self, hostname=self.name, subdomain=owner.subdomain)


class _ContainerPort(Struct):
    number: PortNumber = field(name="containerPort")
    name: str | None = None
    protocol: str | None = None


class _Container(Struct):
    ports: list[_ContainerPort] | None = None
    restart: str | None = field(name="restartPolicy", default=None)


class _PodMeta(Meta, frozen=True, gc=False):
    deleted: str | None = field(name="deletionTimestamp", default=None)


class _PodSpec(Struct):
    hostname: str | None = None
    subdomain: str | None = None
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = field(name="initContainers", default=None)


class _Condition(Struct):
    type: str
    status: str


class _Address(Struct):
    ip: str


class _PodStatus(Struct):
    phase: str | None = None
    address: str | None = field(name="podIP", default=None)
    addresses: list[_Address] | None = field(name="podIPs", default=None)
    conditions: list[_Condition] | None = None


class _Pod(Struct):
    metadata: _PodMeta
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


class _LabelSelector(Struct):
    labels: dict[str, str] | None = field(name="matchLabels", default=None)


class _StatefulSetSpec(Struct):
    service: str | None = field(name="serviceName", default=None)
    selector: _LabelSelector | None = None


class _StatefulSet(Struct):
    metadata: Meta
    spec: _StatefulSetSpec


def service(manifest: Mapping[str, Any]) -> Service:
    """A Service out of its manifest; raises msgspec.ValidationError."""
    return msgspec.convert(manifest, Service)


def stateful_set(manifest: Mapping[str, Any]) -> StatefulSet:
    """A StatefulSet out of its manifest; raises msgspec.ValidationError."""
    spec = msgspec.convert(manifest, _StatefulSet).spec
    return StatefulSet(spec.service or "", (spec.selector.labels if spec.selector else None) or {})


def pod(manifest: Mapping[str, Any]) -> Pod:
    """A Pod out of its manifest; raises msgspec.ValidationError."""
    raw = msgspec.convert(manifest, _Pod)
    spec, status = raw.spec or _PodSpec(), raw.status or _PodStatus()
    addresses = [address.ip for address in status.addresses or ()] or [status.address or ""]
    return Pod(
        raw.metadata.name,
        raw.metadata.labels or {},
        () if status.phase in _ENDED else tuple(filter(None, addresses)),
        any(condition.type == "Ready" and condition.status == "True" for condition in status.conditions or ()),
        raw.metadata.deleted is not None,
        spec.hostname or "",
        spec.subdomain or "",
        tuple(_named_ports(spec)),
    )


def _named_ports(spec: _PodSpec) -> Iterator[tuple[str, str, int]]:
    """The ports that have names, of the containers and of the sidecars among the init containers."""
    sidecars = [container for container in spec.init_containers or () if container.restart == "Always"]
    for container in (*(spec.containers or ()), *sidecars):
        for port in container.ports or ():
            if port.name:
                yield port.name, port.protocol or "TCP", port.number


# --- the controller --------------------------------------------------------------------------------------------------


class Pods:
    """The Pods of one namespace, to be found by selector."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self._by_label: defaultdict[tuple[str, str], list[Pod]] = defaultdict(list)
        for one in sorted(pods, key=lambda pod: pod.name):
            for label in one.labels.items():
                self._by_label[label].append(one)

    def selected(self, selector: Mapping[str, str]) -> list[Pod]:
        """The Pods that have all these labels, at least one; ordered by name."""
        candidates = min((self._by_label.get(label, []) for label in selector.items()), key=len)
        return [one for one in candidates if selector.items() <= one.labels.items()]


def slices(service: Service, families: Sequence[str], pods: Pods) -> Iterator[dict[str, Any]]:
    """The EndpointSlice manifests of a Service that selects its endpoints.

    ``families`` are its address families, ``IPv4`` and ``IPv6``; ``pods`` those of its namespace.  The names have a
    slash in them, so they are never the name of a slice that somebody wrote.
    """
    selected = pods.selected(service.spec.selector or {})
    for family in families:
        by_ports: defaultdict[Ports, list[dict[str, Any]]] = defaultdict(list)
        for one in selected:
            addresses = [address for address in one.addresses if (":" in address) == (family == "IPv6")]
            if addresses:
                by_ports[_ports(service, one)].append(_endpoint(service, one, addresses))
        parts = [
            (ports, endpoints[at : at + SLICE_SIZE])
            for ports, endpoints in by_ports.items()
            for at in range(0, len(endpoints), SLICE_SIZE)
        ]
        for number, (ports, endpoints) in enumerate(parts):
            yield _slice(service, f"{service.metadata.name}/{family}/{number}", family, ports, endpoints)


def _slice(service: Service, name: str, family: str, ports: Ports, endpoints: list[dict[str, Any]]) -> dict[str, Any]:
    meta = service.metadata
    labels = {key: value for key, value in (meta.labels or {}).items() if key != HEADLESS}
    if service.headless:
        labels[HEADLESS] = ""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": labels | {SERVICE_NAME: meta.name, MANAGED_BY: CONTROLLER},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [{"name": name, "protocol": protocol, "port": number} for name, protocol, number in ports],
    }


def _endpoint(service: Service, one: Pod, addresses: list[str]) -> dict[str, Any]:
    ready = bool(service.spec.publish_not_ready) or (one.ready and not one.terminating)
    endpoint: dict[str, Any] = {
        "addresses": addresses,
        "conditions": {"ready": ready, "serving": one.ready, "terminating": one.terminating},
        "targetRef": {"kind": "Pod", "name": one.name},
    }
    if one.hostname and one.subdomain == service.metadata.name:
        endpoint["hostname"] = one.hostname
    return endpoint


def _ports(service: Service, one: Pod) -> Ports:
    """The Service's ports as this Pod has them; one whose name the Pod does not know is left out."""
    found: list[tuple[str, str, int]] = []
    for port in service.spec.ports or ():
        protocol = port.protocol or "TCP"
        number = _target(port.target or port.port, protocol, one)
        if number:
            found.append((port.name or "", protocol, number))
    return tuple(found)


def _target(target: int | str, protocol: str, one: Pod) -> int:
    """Number of a target port; 0 when the Pod has none of this name."""
    if isinstance(target, int):
        return target
    return next((number for name, known, number in one.ports if (name, known) == (target, protocol)), 0)
