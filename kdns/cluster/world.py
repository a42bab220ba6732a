"""The cluster that a set of manifests describes: what they say, and what a control plane would add to it.

Each manifest is trimmed to an `Entry` as soon as it is read; `build` puts the entries of all files together:

- A Namespace exists when a file declares it or an object is in it.
- A Service without a cluster IP gets one (see `clusterips`).
- A Service with a selector gets the EndpointSlices that follow from the Pods (see `endpoints`), unless there are slices
  of the endpoint slice controller for it: then somebody has written out a live cluster, and they count as they are.
- Pods of a StatefulSet get its identity; a StatefulSet or Deployment by itself makes no Pods, as nothing here could
  give them addresses.
- ServiceImports are taken as they stand, with the EndpointSlices that name them; nothing imports them.
- Label selectors choose among all of these, as the API server would.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct, field

from kdns.cluster import clusterips, decoding, endpoints, objects
from kdns.cluster.objects import IMPORT_NAME, IMPORTS, KINDS, SINGULAR, Object, ObjectError
from kdns.cluster.selectors import Selector
from kdns.name import BadName, pack_address

if TYPE_CHECKING:
    from kdns.cluster.documents import Document

STATEFUL_SETS: Final = "statefulsets"
_READ: Final = {
    ("v1", "Namespace"): "namespaces",
    ("v1", "Service"): "services",
    ("v1", "Pod"): "pods",
    ("discovery.k8s.io/v1", "EndpointSlice"): "endpointslices",
    ("apps/v1", "StatefulSet"): STATEFUL_SETS,
    ("multicluster.x-k8s.io/v1alpha1", "ServiceImport"): "serviceimports",
}
_NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
"""The label that the API server puts on every Namespace."""

Source: TypeAlias = endpoints.Service | endpoints.Pod | endpoints.StatefulSet
Objects: TypeAlias = dict[str, dict[tuple[bytes, bytes], Object]]
"""Kind → (namespace, name) → object."""


class Entry(Struct, frozen=True, gc=False):
    """What is kept of one manifest."""

    where: str
    """``FILE:LINE``."""
    kind: str
    """One of `objects.KINDS`, ``serviceimports`` or `STATEFUL_SETS`; empty for what DNS has no use for."""
    namespace: str
    """Empty for what is in no namespace."""
    name: str
    labels: dict[str, str]
    object: Object | None = None
    source: Source | None = None
    """What endpoints are worked out from."""
    imported: Object | None = None
    """An EndpointSlice as one of a ServiceImport, if it names one."""

    def error(self, text: str) -> ObjectError:
        """An error that tells where this object stands, and its name."""
        singular = SINGULAR.get(self.kind, "StatefulSet")
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return ObjectError(f"{self.where}: {singular} {name}: {text}")

    def with_addresses(self, addresses: tuple[bytes, ...]) -> Entry:
        """The same Service with these cluster IPs."""
        if not isinstance(self.object, objects.Service):
            return self
        return msgspec.structs.replace(self, object=msgspec.structs.replace(self.object, addresses=addresses))


class World(Struct, frozen=True):
    """A whole cluster."""

    objects: Objects
    """What the index is to know; has just the kinds that were asked for."""
    allotted: dict[clusterips.Key, bytes]
    """The cluster IPs that no manifest states."""


# --- one manifest ----------------------------------------------------------------------------------------------------


class _Identity(Struct):
    metadata: endpoints.Meta


class _SliceEndpoint(Struct):
    addresses: list[str]


class _Slice(Struct):
    family: str = field(name="addressType")
    endpoints: list[_SliceEndpoint] | None = None


class _ImportSpec(Struct):
    type: Literal["ClusterSetIP", "Headless"]
    ips: list[str] | None = None


class _Import(Struct):
    spec: _ImportSpec


def entry(document: Document) -> Entry:
    """What counts of a manifest.  Raises ObjectError ``FILE:LINE: Kind namespace/name: reason``."""
    kind = _READ.get((document.version, document.kind), "")
    if not kind:
        meta = document.content.get("metadata")
        namespace = meta.get("namespace") if isinstance(meta, dict) else None
        return Entry(document.where, "", namespace if isinstance(namespace, str) else "", "", {})
    try:
        meta = msgspec.convert(document.content, _Identity).metadata
    except msgspec.ValidationError as error:
        raise ObjectError(f"{document.where}: {document.kind}: {error}") from None
    namespace = "" if kind == "namespaces" else meta.namespace or "default"
    bare = Entry(document.where, kind, namespace, meta.name, meta.labels or {})
    if (namespace + meta.name).lower() != namespace + meta.name:
        raise bare.error("names have no capital letters")
    try:
        found = decoding.from_manifest(kind, document.content) if kind in SINGULAR else None
        slice = kind == "endpointslices" and IMPORT_NAME in bare.labels
        imported = decoding.from_manifest("importedslices", document.content) if slice else None
    except ObjectError as error:
        raise ObjectError(f"{document.where}: {error}") from None
    try:
        source = _source(kind, document.content)
        return msgspec.structs.replace(bare, object=found, source=source, imported=imported)
    except (msgspec.ValidationError, ObjectError) as error:
        raise bare.error(str(error)) from None


def _source(kind: str, manifest: dict[str, Any]) -> Source | None:
    """What endpoints are worked out from, for kinds that bear on them; every kind is checked as far as DNS reads it."""
    if kind == "services":
        service = endpoints.service(manifest)
        clusterips.families(service)
        return service
    if kind == "pods":
        pod = endpoints.pod(manifest)
        _packed(pod.addresses)
        return pod
    if kind == STATEFUL_SETS:
        return endpoints.stateful_set(manifest)
    if kind == "endpointslices":
        _check_slice(msgspec.convert(manifest, _Slice))
    if kind == "serviceimports":
        _packed(msgspec.convert(manifest, _Import).spec.ips or ())
    return None


def _check_slice(found: _Slice) -> None:
    if found.family == "FQDN":
        return
    if found.family not in clusterips.RANGES:
        raise ObjectError(f"addressType {found.family!r} is none of IPv4, IPv6 and FQDN")
    texts = [address for endpoint in found.endpoints or () for address in endpoint.addresses]
    for text, address in zip(texts, _packed(texts), strict=True):
        if clusterips.FAMILIES[len(address)] != found.family:
            raise ObjectError(f"address {text} is not {found.family}")


def _packed(texts: Iterable[str]) -> list[bytes]:
    try:
        return [pack_address(text) for text in texts]
    except BadName as error:
        raise ObjectError(str(error)) from None


# --- all of them -----------------------------------------------------------------------------------------------------


def build(entries: Iterable[Entry], kinds: Mapping[str, Selector], before: Mapping[clusterips.Key, bytes]) -> World:
    """The cluster that these manifests describe, as far as ``kinds`` asks for it; each kind with its label selector.

    ``before``: what the `World` before this one allotted.  Raises ObjectError when two manifests contradict each other.
    """
    by_kind = _by_kind(entries)
    services, allotted = _with_addresses(by_kind["services"], before)
    found: dict[str, Iterable[Entry]] = {
        "namespaces": _namespaces(by_kind),
        "services": services,
        "endpointslices": chain(by_kind["endpointslices"], _derived(by_kind)),
        "pods": by_kind["pods"],
        "serviceimports": by_kind["serviceimports"],
        "importedslices": [
            msgspec.structs.replace(one, object=one.imported) for one in by_kind["endpointslices"] if one.imported
        ],
    }
    chosen: Objects = {}
    for kind in (*KINDS, *IMPORTS):
        if kind in kinds:
            chosen[kind] = {
                (one.object.namespace, one.object.name): one.object
                for one in found[kind]
                if one.object is not None and kinds[kind].fits(one.labels)
            }
    return World(chosen, allotted)


def _by_kind(entries: Iterable[Entry]) -> defaultdict[str, list[Entry]]:
    """The entries sorted out, none of them twice."""
    by_kind: defaultdict[str, list[Entry]] = defaultdict(list)
    seen: dict[tuple[str, str, str], Entry] = {}
    for one in entries:
        by_kind[one.kind].append(one)
        if one.kind:
            other = seen.setdefault((one.kind, one.namespace, one.name), one)
            if other is not one:
                raise one.error(f"stands in {other.where}, too")
    return by_kind


def _namespaces(by_kind: Mapping[str, list[Entry]]) -> Iterator[Entry]:
    """The declared Namespaces, and those that only objects name."""
    declared = {one.name for one in by_kind["namespaces"]}
    for one in by_kind["namespaces"]:
        yield msgspec.structs.replace(one, labels=one.labels | {_NAMESPACE_NAME: one.name})
    for entries in by_kind.values():
        for one in entries:
            if one.namespace and one.namespace not in declared:
                declared.add(one.namespace)
                yield _implied(one)


def _implied(one: Entry) -> Entry:
    """The Namespace that an object is in."""
    try:
        found = decoding.from_manifest("namespaces", {"metadata": {"name": one.namespace}})
    except ObjectError as error:
        raise ObjectError(f"{one.where}: {error}") from None
    return Entry(one.where, "namespaces", "", one.namespace, {_NAMESPACE_NAME: one.namespace}, found)


def _with_addresses(
    services: Iterable[Entry], before: Mapping[clusterips.Key, bytes]
) -> tuple[list[Entry], dict[clusterips.Key, bytes]]:
    """The Services, each with the addresses it should have; and the addresses that no manifest states."""
    stated: dict[bytes, Entry] = {}
    places: list[tuple[Entry, list[bytes | clusterips.Key]]] = []
    for one in services:
        places.append((one, own := _addresses(one)))
        for address in own:
            if isinstance(address, bytes) and stated.setdefault(address, one) is not one:
                raise one.error(f"its cluster IP is that of {stated[address].where}, too")
    wanted = [place for _, own in places for place in own if isinstance(place, tuple)]
    allotted = clusterips.allot(wanted, stated, before)
    out = [
        one.with_addresses(tuple(place if isinstance(place, bytes) else allotted[place] for place in own))
        for one, own in places
    ]
    return out, allotted


def _addresses(one: Entry) -> list[bytes | clusterips.Key]:
    """The cluster IPs of a Service: those that it states, and the keys of those to be allotted."""
    source = one.source
    if not isinstance(source, endpoints.Service) or source.headless or source.spec.type == "ExternalName":
        return []
    stated = clusterips.stated(source)
    rest = clusterips.families(source)[len(stated) :]
    return [*stated, *((one.namespace, one.name, family) for family in rest)]


def _derived(by_kind: Mapping[str, list[Entry]]) -> Iterator[Entry]:
    """The EndpointSlices of Services with selectors."""
    written = {
        (one.namespace, one.labels.get(endpoints.SERVICE_NAME))
        for one in by_kind["endpointslices"]
        if one.labels.get(endpoints.MANAGED_BY) == endpoints.CONTROLLER
    }
    pods = _pods(by_kind)
    for one in by_kind["services"]:
        source = one.source
        if isinstance(source, endpoints.Service) and source.selects and (one.namespace, one.name) not in written:
            families = clusterips.families(source)
            for manifest in endpoints.slices(source, families, pods.get(one.namespace, endpoints.Pods(()))):
                meta = manifest["metadata"]
                found = decoding.from_manifest("endpointslices", manifest)
                yield Entry(one.where, "endpointslices", one.namespace, meta["name"], meta["labels"], found)


def _pods(by_kind: Mapping[str, list[Entry]]) -> dict[str, endpoints.Pods]:
    """The Pods of each namespace, with the identity that their StatefulSets give them."""
    sets: defaultdict[str, dict[str, endpoints.StatefulSet]] = defaultdict(dict)
    for one in by_kind[STATEFUL_SETS]:
        if isinstance(one.source, endpoints.StatefulSet):
            sets[one.namespace][one.name] = one.source
    pods: defaultdict[str, list[endpoints.Pod]] = defaultdict(list)
    for one in by_kind["pods"]:
        if isinstance(one.source, endpoints.Pod):
            pods[one.namespace].append(one.source.named(sets[one.namespace]))
    return {namespace: endpoints.Pods(members) for namespace, members in pods.items()}
