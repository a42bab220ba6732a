"""API objects trimmed to what DNS needs, and the five words in which a source of objects speaks to the index.

Names, namespaces, hostnames and port names are lower-case bytes, as labels stand in a wire name; addresses are packed
(4 or 16 octets).  How they are read is in `decoding`.

Sources: Kubernetes API reference v1 (Service, Namespace, Pod), discovery.k8s.io/v1 (EndpointSlice) and KEP-1645, the
Multi-Cluster Services API (ServiceImport).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from kdns.cluster import shapes
from kdns.errors import KdnsError

KINDS: Final = ("namespaces", "services", "endpointslices", "pods")
"""The kinds of objects in one cluster, by their plural in API paths."""

IMPORTS: Final = ("serviceimports", "importedslices")
"""The kinds that ``multicluster`` adds; the second are the EndpointSlices of ServiceImports, in a stream of their own:
they are few, and a slice may belong to a Service and to a ServiceImport."""

IMPORT_NAME: Final = "multicluster.kubernetes.io/service-name"
"""The label that makes an EndpointSlice one of a ServiceImport."""

SINGULAR: Final = {
    "namespaces": "Namespace",
    "services": "Service",
    "endpointslices": "EndpointSlice",
    "pods": "Pod",
    "serviceimports": "ServiceImport",
    "importedslices": "EndpointSlice",
}
"""Plural → what the API writes as ``kind``."""


class ObjectError(KdnsError):
    """An object, list or watch line that makes no sense; the message names the object as far as it can be known."""


# --- objects ---------------------------------------------------------------------------------------------------------

# A snapshot (see `snapshotfile`) holds them as arrays: whoever changes a field here changes its version there.


class Namespace(Struct, frozen=True, gc=False, array_like=True):
    """That a namespace exists."""

    name: bytes
    namespace: bytes = b""
    """Always empty: namespaces are in none."""


class Port(Struct, frozen=True, gc=False, array_like=True):
    """A port of a Service or of a slice's endpoints."""

    name: bytes
    """Empty: the port has no name."""
    protocol: bytes
    """``tcp``, ``udp`` or ``sctp``."""
    number: int
    """1 … 65535; 0 = all ports, so there is no SRV record."""


class Service(Struct, frozen=True, gc=False, array_like=True):
    """What DNS says about a Service."""

    namespace: bytes
    name: bytes
    addresses: tuple[bytes, ...] = ()
    """Cluster IPs in the order of ``clusterIPs``."""
    ports: tuple[Port, ...] = ()
    headless: bool = False
    external: bytes | None = None
    """Target of type ExternalName, as wire name in its own spelling; empty when it can be no CNAME target (an IP
    address, or no name at all); None for every other type."""


class ServiceImport(Service, frozen=True, gc=False):
    """What DNS says about a ServiceImport: its IPs are those of the cluster set, and it is never external."""


class EndpointSlice(Struct, frozen=True, gc=False, array_like=True):
    """The ready endpoints of one slice.  The lists run in parallel; an address may appear more than once."""

    namespace: bytes
    name: bytes
    service: bytes
    """Name of the Service it belongs to (label ``kubernetes.io/service-name``); empty: none."""
    width: int = 4
    """Octets of one address: 4 or 16."""
    addresses: bytes = b""
    """Packed addresses one after the other."""
    hostnames: bytes = b""
    """Hostnames joined by NUL, an empty one where there is none; empty when no endpoint has one."""
    pods: bytes = b""
    """Pod names that can be labels, in the same form."""
    ports: tuple[Port, ...] = ()
    """Empty: the endpoints are reachable, but no port is known."""
    changed: str = ""
    """When the change happened that led to this version (RFC 3339), as the slice controller notes it; may be empty."""
    zones: bytes = b""
    """Topology zones in lower case, in the same form as hostnames."""


class ImportedSlice(EndpointSlice, frozen=True, gc=False):
    """The ready endpoints of one slice of a ServiceImport, which ``service`` names."""

    cluster: bytes = b""
    """The member cluster that it is from; empty: not said, or not by what can be a label."""


class Pod(Struct, frozen=True, gc=False, array_like=True):
    """The addresses of a Pod."""

    namespace: bytes
    name: bytes
    addresses: tuple[bytes, ...] = ()
    """Of both families; empty when the Pod has none (yet), or has ended (phase Succeeded, Failed or Unknown)."""
    labels: bytes = b""
    """``metadata.labels`` as JSON text, decoded by `pod_labels` when somebody wants to see them; empty: none."""
    terminating: bool = False
    """Deletion has begun: a Pod that is known stays so until it is gone, one that is not known does not appear."""


Object: TypeAlias = Namespace | Service | EndpointSlice | Pod
"""A ServiceImport counts as a Service, an ImportedSlice as an EndpointSlice."""


class Endpoint(Struct, frozen=True, gc=False):
    """One endpoint address, for `endpoint_slice`."""

    address: bytes
    hostname: bytes = b""
    pod: bytes = b""
    zone: bytes = b""


def endpoint_slice(
    namespace: bytes,
    name: bytes,
    service: bytes,
    endpoints: Iterable[Endpoint],
    ports: tuple[Port, ...] = (),
    width: int = 4,
    changed: str = "",
) -> EndpointSlice:
    """An EndpointSlice of ready endpoints; those with an address of another width are left out."""
    kept = [endpoint for endpoint in endpoints if len(endpoint.address) == width]
    return EndpointSlice(
        namespace,
        name,
        service,
        width,
        b"".join([endpoint.address for endpoint in kept]),
        _joined([endpoint.hostname for endpoint in kept]),
        _joined([endpoint.pod for endpoint in kept]),
        ports,
        changed,
        _joined([endpoint.zone for endpoint in kept]),
    )


def _joined(parts: list[bytes]) -> bytes:
    return b"\0".join(parts) if any(parts) else b""


def pod_labels(text: bytes) -> dict[str, str]:
    """The labels out of `Pod.labels`; empty when they make no sense."""
    try:
        return msgspec.json.decode(text, type=dict[str, str] | None) or {} if text else {}
    except shapes.UNREADABLE:
        return {}


# --- the five words --------------------------------------------------------------------------------------------------


class Init(Struct, frozen=True, gc=False):
    """A whole list of this kind begins; what is known stays in force meanwhile."""

    kind: str


class InitApply(Struct, frozen=True, gc=False):
    """One object of the list."""

    kind: str
    object: Object


class InitDone(Struct, frozen=True, gc=False):
    """The list is complete: what it did not have is gone."""

    kind: str


class Apply(Struct, frozen=True, gc=False):
    """An object is new or has changed."""

    kind: str
    object: Object


class Delete(Struct, frozen=True, gc=False):
    """An object is gone."""

    kind: str
    namespace: bytes
    name: bytes


Event: TypeAlias = Init | InitApply | InitDone | Apply | Delete
