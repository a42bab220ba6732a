"""What the API server sends, as far as `objects` reads it: shapes for `msgspec`, which skips all other fields.

No renaming rule turns ``pod_ip`` into ``podIP``, so such fields are named by hand: a field under a wrong name would be
silently empty.  Whatever Go writes as ``null`` (empty lists, absent pointers) may be None here.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw, Struct, field

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `msgspec` raises for data that are not what was expected."""


class SliceLabels(Struct, gc=False):
    """The one label of a slice that matters."""

    service: str | None = field(name="kubernetes.io/service-name", default=None)


class ImportedLabels(Struct, gc=False):
    """The labels of a slice that belongs to a ServiceImport."""

    service: str | None = field(name="multicluster.kubernetes.io/service-name", default=None)
    cluster: str | None = field(name="multicluster.kubernetes.io/source-cluster", default=None)


class SliceAnnotations(Struct, gc=False):
    """The one annotation of a slice that matters."""

    changed: str | None = field(name="endpoints.kubernetes.io/last-change-trigger-time", default=None)


class Meta(Struct, gc=False):
    """Metadata of any object."""

    name: str
    namespace: str | None = None
    resource_version: str | None = field(name="resourceVersion", default=None)


class SliceMeta(Meta, gc=False):
    """Metadata of an EndpointSlice."""

    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None


class ImportedMeta(Meta, gc=False):
    """Metadata of an EndpointSlice that belongs to a ServiceImport."""

    labels: ImportedLabels | None = None


class PodMeta(Meta, gc=False):
    """Metadata of a Pod."""

    labels: Raw = Raw()
    """As JSON text; empty when absent.  `Raw` takes ``null`` as it is, and stands in no union."""
    deleted: str | None = field(name="deletionTimestamp", default=None)


class Namespace(Struct, gc=False):
    """v1 Namespace."""

    metadata: Meta
    kind: str | None = None


class Port(Struct, frozen=True, gc=False):
    """A port of a Service, or of a slice."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class ServiceSpec(Struct, gc=False):
    """``spec`` of a Service."""

    type: str | None = None
    cluster_ip: str | None = field(name="clusterIP", default=None)
    cluster_ips: list[str] | None = field(name="clusterIPs", default=None)
    external_name: str | None = field(name="externalName", default=None)
    ports: list[Port] | None = None


class Service(Struct, gc=False):
    """v1 Service."""

    metadata: Meta
    spec: ServiceSpec
    kind: str | None = None


class ServiceImportSpec(Struct, gc=False):
    """``spec`` of a ServiceImport."""

    type: str | None = None
    ips: list[str] | None = None
    ports: list[Port] | None = None


class ServiceImport(Struct, gc=False):
    """multicluster.x-k8s.io/v1alpha1 ServiceImport."""

    metadata: Meta
    spec: ServiceImportSpec
    kind: str | None = None


class Conditions(Struct, gc=False):
    """``conditions`` of an endpoint."""

    ready: bool | None = None


class Target(Struct, gc=False):
    """``targetRef`` of an endpoint."""

    name: str | None = None


class Endpoint(Struct, gc=False):
    """One endpoint of a slice."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    hostname: str | None = None
    target: Target | None = field(name="targetRef", default=None)
    zone: str | None = None


class EndpointSlice(Struct, gc=False):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: SliceMeta
    address_type: str = field(name="addressType")
    endpoints: list[Endpoint] | None = None
    ports: list[Port] | None = None
    kind: str | None = None


class ImportedSlice(Struct, gc=False):
    """An EndpointSlice, read as one that belongs to a ServiceImport."""

    metadata: ImportedMeta
    address_type: str = field(name="addressType")
    endpoints: list[Endpoint] | None = None
    ports: list[Port] | None = None
    kind: str | None = None


class PodIP(Struct, gc=False):
    """One of ``status.podIPs``."""

    ip: str | None = None


class PodStatus(Struct, gc=False):
    """``status`` of a Pod."""

    phase: str | None = None
    pod_ip: str | None = field(name="podIP", default=None)
    pod_ips: list[PodIP] | None = field(name="podIPs", default=None)


class Pod(Struct, gc=False):
    """v1 Pod."""

    metadata: PodMeta
    status: PodStatus | None = None
    kind: str | None = None


class Identified(Struct, gc=False):
    """Any object, as far as it takes to name it."""

    metadata: Meta
    kind: str | None = None


class ListMeta(Struct, gc=False):
    """Metadata of a list."""

    resource_version: str = field(name="resourceVersion")
    continue_: str | None = field(name="continue", default=None)


class List(Struct):
    """A page of any list."""

    metadata: ListMeta
    items: list[Raw] | None
    kind: str | None = None


class Event(Struct):
    """A line of a watch."""

    type: str
    object: Raw


class StatusDetails(Struct, gc=False):
    """``details`` of a Status."""

    retry_after: int | None = field(name="retryAfterSeconds", default=None)


class Status(Struct, gc=False):
    """v1 Status: why a request failed."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: StatusDetails | None = None


class BookmarkMeta(Struct, gc=False):
    """Metadata in a BOOKMARK event."""

    resource_version: str = field(name="resourceVersion")
    annotations: dict[str, str] | None = None


class Bookmark(Struct, gc=False):
    """The object of a BOOKMARK event."""

    metadata: BookmarkMeta
