"""API objects, lists and watch events read from JSON text, and trimmed to what DNS needs.

What DNS does not need is never decoded (see `shapes`).  An object that makes no sense is an ObjectError that names it.

Sources: those of `objects`; the shapes of lists and watch events are those of "Kubernetes API Concepts".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct, ValidationError

from kdns import name as names
from kdns.cluster import shapes
from kdns.cluster.objects import (
    SINGULAR,
    Endpoint,
    EndpointSlice,
    ImportedSlice,
    Namespace,
    Object,
    ObjectError,
    Pod,
    Port,
    Service,
    ServiceImport,
    endpoint_slice,
)
from kdns.cluster.shapes import UNREADABLE

T = TypeVar("T")

# --- what the API sends ----------------------------------------------------------------------------------------------


class Status(Struct, frozen=True):
    """Why the API server refuses: the object of an ERROR event, or the body of a failed request."""

    code: int = 0
    reason: str = ""
    """``Expired``, ``Forbidden``, …"""
    message: str = ""
    retry_after: int = 0
    """Seconds; 0 = not said."""


class WatchEvent(Struct, frozen=True):
    """One line of a watch."""

    type: str
    """ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""
    object: Object | None = None
    """For ADDED and MODIFIED."""
    namespace: bytes = b""
    name: bytes = b""
    """Whose event it is; also for DELETED."""
    resource_version: str = ""
    initial_end: bool = False
    """This bookmark ends the initial events of a streamed list."""
    status: Status | None = None
    """For ERROR."""


class Page(Struct, frozen=True):
    """One page of a list."""

    objects: list[Object]
    odd: list[str]
    """Complaints about objects that were left out because they make no sense."""
    resource_version: str
    continue_: str
    """Token for the next page; empty: this is the last."""
    versions: tuple[str, ...] = ()
    """The resource version of each object."""
    left: tuple[WatchEvent, ...] = ()
    """Who was left out, without an object."""


# --- trimming --------------------------------------------------------------------------------------------------------

_LABEL = re.compile(r"[!-\-/-~]{1,63}")
_ZONE = re.compile(r"[!-\[\]-~]+")
_WIDTHS: Final = {"IPv4": 4, "IPv6": 16}
_ENDED: Final = ("Succeeded", "Failed", "Unknown")


# Cached, so that the few thousand namespaces and services that most objects name are one bytes object each.
@lru_cache(8192)
def _label(text: str) -> bytes:
    """Text of one label → lower-case bytes; raises ValidationError."""
    if not _LABEL.fullmatch(text):
        raise ValidationError(f"{text!r} is not a domain-name label")
    return text.lower().encode()


def _label_or_none(text: str | None) -> bytes:
    """As `_label`, but empty for what is no label."""
    return text.lower().encode() if text and _LABEL.fullmatch(text) else b""


# Cached for the same reason: there are few zones.
@lru_cache(1024)
def _zone(text: str) -> bytes:
    """The name of a topology zone, lower-case; empty for what no name that is asked for can spell."""
    return text.lower().encode() if _ZONE.fullmatch(text) else b""


def _address(text: str) -> bytes:
    """Packed address, or empty for what is none."""
    try:
        return names.pack_address(text)
    except names.BadName:
        return b""


def _ports(raw: list[shapes.Port] | None) -> tuple[Port, ...]:
    return _shared_ports(tuple(raw)) if raw else ()


# Cached, so that equal port lists are one tuple.
@lru_cache(4096)
def _shared_ports(raw: tuple[shapes.Port, ...]) -> tuple[Port, ...]:
    return tuple(
        Port(
            (port.name or "").lower().encode(), (port.protocol or "TCP").lower().encode(), _port_number(port.port or 0)
        )
        for port in raw
    )


def _port_number(number: int) -> int:
    if not 0 <= number <= 65535:
        raise ValidationError(f"{number} is not a port number")
    return number


def _namespace(raw: shapes.Namespace) -> Namespace:
    return Namespace(_label(raw.metadata.name))


def _service(raw: shapes.Service) -> Service:
    namespace, name = _label(raw.metadata.namespace or ""), _label(raw.metadata.name)
    spec = raw.spec
    ports = _ports(spec.ports)
    if spec.type == "ExternalName":
        return Service(namespace, name, (), ports, False, _external(spec.external_name or ""))
    texts = spec.cluster_ips or [spec.cluster_ip or ""]
    addresses = tuple(filter(None, map(_address, texts)))
    return Service(namespace, name, addresses, ports, texts[0] == "None")


def _external(text: str) -> bytes:
    """Wire name of an ExternalName, relative to the root whether it ends with a dot or not."""
    if not text or _address(text):
        return b""
    try:
        return names.spell(text.removesuffix(".") + ".")
    except names.BadName:
        return b""


def _slice(raw: shapes.EndpointSlice) -> EndpointSlice:
    meta = raw.metadata
    service = meta.labels.service if meta.labels else None
    changed = meta.annotations.changed if meta.annotations else None
    width = _WIDTHS.get(raw.address_type, 0)
    endpoints = _endpoints(raw.endpoints or []) if width else []
    return endpoint_slice(
        _label(meta.namespace or ""),
        _own_name(meta.name),
        _label(service) if service else b"",
        endpoints,
        _ports(raw.ports),
        width or 4,
        changed or "",
    )


def _import(raw: shapes.ServiceImport) -> ServiceImport:
    spec = raw.spec
    addresses = tuple(filter(None, map(_address, spec.ips or ())))
    return ServiceImport(
        _label(raw.metadata.namespace or ""),
        _label(raw.metadata.name),
        addresses,
        _ports(spec.ports),
        spec.type == "Headless",
    )


def _imported_slice(raw: shapes.ImportedSlice) -> ImportedSlice:
    meta = raw.metadata
    labels = meta.labels or shapes.ImportedLabels()
    width = _WIDTHS.get(raw.address_type, 0)
    found = endpoint_slice(
        _label(meta.namespace or ""),
        _own_name(meta.name),
        _label(labels.service) if labels.service else b"",
        _endpoints(raw.endpoints or []) if width else [],
        _ports(raw.ports),
        width or 4,
    )
    cluster = _label_or_none(labels.cluster)
    addresses, hostnames, pods = found.addresses, found.hostnames, found.pods
    return ImportedSlice(
        found.namespace,
        found.name,
        found.service,
        found.width,
        addresses,
        hostnames,
        pods,
        found.ports,
        cluster=cluster,
    )


def _endpoints(raw: list[shapes.Endpoint]) -> list[Endpoint]:
    """The addresses of the endpoints whose condition ``ready`` is true or not said."""
    out: list[Endpoint] = []
    for endpoint in raw:
        if endpoint.conditions is not None and endpoint.conditions.ready is False:
            continue
        hostname = _label_or_none(endpoint.hostname)
        pod = _label_or_none(endpoint.target.name) if endpoint.target else b""
        zone = _zone(endpoint.zone) if endpoint.zone else b""
        addresses = filter(None, map(_address, endpoint.addresses or ()))
        out.extend(Endpoint(address, hostname, pod, zone) for address in addresses)
    return out


def _pod(raw: shapes.Pod) -> Pod:
    meta, status = raw.metadata, raw.status or shapes.PodStatus()
    texts = [ip.ip for ip in status.pod_ips or ()] + [status.pod_ip]
    found = () if status.phase in _ENDED else filter(None, (_address(text) for text in texts if text))
    return Pod(
        _label(meta.namespace or ""),
        _own_name(meta.name),
        tuple(dict.fromkeys(found)),
        bytes(meta.labels) if meta.labels else b"",
        bool(meta.deleted),
    )


def _own_name(text: str) -> bytes:
    """The name of an object whose name is in no domain name."""
    if not text:
        raise ValidationError("the object has no name")
    return text.encode()


class _Codec(Generic[T]):
    """How objects of one kind are read."""

    def __init__(self, kind: str, raw: type[T], trim: Callable[[T], Object]) -> None:
        self._kind = kind
        self._decode = msgspec.json.Decoder(raw).decode
        self._trim = trim

    def __call__(self, data: bytes | Raw) -> tuple[Object, str]:
        """Object and resource version; raises ObjectError that names the object."""
        try:
            raw: Any = self._decode(data)
            if raw.kind and raw.kind != SINGULAR[self._kind]:
                raise ValidationError(f"its kind is {raw.kind!r}")
            return self._trim(raw), raw.metadata.resource_version or ""
        except UNREADABLE as error:
            raise ObjectError(f"{_who(self._kind, data)}: {error}") from None


_CODECS: Final[dict[str, _Codec[Any]]] = {
    "namespaces": _Codec("namespaces", shapes.Namespace, _namespace),
    "services": _Codec("services", shapes.Service, _service),
    "endpointslices": _Codec("endpointslices", shapes.EndpointSlice, _slice),
    "pods": _Codec("pods", shapes.Pod, _pod),
    "serviceimports": _Codec("serviceimports", shapes.ServiceImport, _import),
    "importedslices": _Codec("importedslices", shapes.ImportedSlice, _imported_slice),
}


_identify = msgspec.json.Decoder(shapes.Identified).decode


def _who(kind: str, data: bytes | Raw) -> str:
    """The object's name for an error message."""
    try:
        meta = _identify(data).metadata
    except UNREADABLE:
        return f"{SINGULAR[kind]} without a name"
    return f"{SINGULAR[kind]} {meta.namespace}/{meta.name}" if meta.namespace else f"{SINGULAR[kind]} {meta.name}"


# --- decoding --------------------------------------------------------------------------------------------------------


_decode_list = msgspec.json.Decoder(shapes.List).decode


def decode_list(kind: str, data: bytes) -> Page:
    """One page of a list from the API.

    An object with a name but senseless content is left out and complained about in `Page.odd`.  Raises ObjectError for
    what is no list of this kind at all: no ``items``, no resource version, items without a name, another kind.
    """
    try:
        page = _decode_list(data)
    except UNREADABLE as error:
        raise ObjectError(f"list of {kind}: {error}") from None
    if page.kind and page.kind != SINGULAR[kind] + "List":
        raise ObjectError(f"list of {kind}: its kind is {page.kind!r}")
    if not page.metadata.resource_version:
        raise ObjectError(f"list of {kind}: it has no resource version")
    decode = _CODECS[kind]
    objects: list[Object] = []
    versions: list[str] = []
    odd: list[str] = []
    left: list[WatchEvent] = []
    for item in page.items or ():
        try:
            found, version = decode(item)
        except ObjectError as error:
            if str(error).startswith(f"{SINGULAR[kind]} without a name"):
                raise ObjectError(f"list of {kind}: {error}") from None
            odd.append(str(error))
            meta = _identify(item).metadata
            namespace = (meta.namespace or "").encode()
            left.append(WatchEvent("", None, namespace, meta.name.encode(), meta.resource_version or ""))
        else:
            objects.append(found)
            versions.append(version)
    token = page.metadata.continue_ or ""
    return Page(objects, odd, page.metadata.resource_version, token, tuple(versions), tuple(left))


_decode_event = msgspec.json.Decoder(shapes.Event).decode
_decode_status = msgspec.json.Decoder(shapes.Status).decode
_decode_bookmark = msgspec.json.Decoder(shapes.Bookmark).decode


def decode_event(kind: str, line: bytes) -> WatchEvent:
    """One line of a watch of this kind; raises ObjectError for an unknown type and a senseless object."""
    try:
        event = _decode_event(line)
        if event.type == "BOOKMARK":
            return _bookmark(event.object)
        if event.type == "ERROR":
            return WatchEvent("ERROR", status=decode_status(event.object))
        if event.type == "DELETED":
            gone = _identify(event.object)
            if gone.kind and gone.kind != SINGULAR[kind]:
                raise ValidationError(f"its kind is {gone.kind!r}")
            meta = gone.metadata
            own = (meta.namespace or "").encode(), _own_name(meta.name)
            return WatchEvent("DELETED", None, *own, meta.resource_version or "")
    except UNREADABLE as error:
        raise ObjectError(f"watch of {kind}: {error}") from None
    if event.type not in ("ADDED", "MODIFIED"):
        raise ObjectError(f"watch of {kind}: unknown event type {event.type!r}")
    found, version = _CODECS[kind](event.object)
    return WatchEvent(event.type, found, found.namespace, found.name, version)


def _bookmark(data: Raw) -> WatchEvent:
    meta = _decode_bookmark(data).metadata
    ends = (meta.annotations or {}).get("k8s.io/initial-events-end") == "true"
    return WatchEvent("BOOKMARK", resource_version=meta.resource_version, initial_end=ends)


def decode_status(data: bytes | Raw) -> Status:
    """The Status object in an ERROR event or in the body of a refusal; an empty Status when it is none."""
    try:
        raw = _decode_status(data)
    except UNREADABLE:
        return Status()
    after = raw.details.retry_after if raw.details else None
    return Status(raw.code or 0, raw.reason or "", raw.message or "", after or 0)


def from_manifest(kind: str, manifest: dict[str, Any]) -> Object:
    """An object out of a parsed YAML or JSON document; a missing namespace is ``default``.

    Raises ObjectError that names the object.
    """
    meta = manifest.get("metadata")
    if kind != "namespaces" and isinstance(meta, dict) and not meta.get("namespace"):
        manifest = manifest | {"metadata": meta | {"namespace": "default"}}
    try:
        data = msgspec.json.encode(manifest)
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ObjectError(f"{SINGULAR[kind]}: {error}") from None
    return _CODECS[kind](data)[0]
