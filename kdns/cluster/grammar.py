"""What the labels of a name below a zone say, and what a ``kubernetes`` directive says about names."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from kdns.name import Name, labels

ZONE_LABEL: Final = b"_zone"
DIRECTIVES: Final = (b"pin", b"prefer")
"""What may stand before `ZONE_LABEL`."""


class Options(Struct, frozen=True):
    """What a ``kubernetes`` directive says about names."""

    zones: tuple[Name, ...]
    ttl: int = 5
    pods: str = "disabled"
    """``disabled``, ``insecure`` or ``verified``."""
    pod_names: bool = False
    """Endpoints without a hostname are named after their Pod (``endpoint_pod_names``)."""
    namespaces: frozenset[bytes] = frozenset()
    """The only namespaces to show, as labels with their length octets; empty: all."""
    selected: bool = False
    """The index knows selected namespaces only (``namespace_labels``); others are not shown."""
    ignore_empty: bool = False
    """A Service with a cluster IP, but without a ready endpoint, does not exist (``ignore empty_service``)."""
    multicluster: tuple[Name, ...] = ()
    """Zones that are, with all below them, about ServiceImports."""
    zonal: bool = False
    """Headless Services have names for the endpoints in a topology zone; the index keeps the zones."""


class Asked(Struct, frozen=True, gc=False):
    """What the labels of a name mean; empty: not said."""

    kind: bytes = b""
    """``svc`` or ``pod``; empty for the zone itself and for its children of these names."""
    namespace: bytes = b""
    service: bytes = b""
    endpoint: bytes = b""
    port: bytes = b""
    protocol: bytes = b""
    cluster: bytes = b""
    """The member cluster of ``endpoint``; only in zones about ServiceImports."""
    zone: bytes = b""
    """Topology zone, with dots between its labels."""
    prefer: bool = False
    """If nothing is in ``zone``, the whole Service is meant."""


def parse(name: Name, zone: Name, multicluster: bool = False, zonal: bool = False) -> Asked | None:
    """Read a name in ``zone``; None when it has no meaning.

    ``multicluster``: the zone is about ServiceImports; ``zonal``: names for topology zones are wanted.
    """
    parts = labels(name[: len(name) - len(zone)] + b"\0")
    count = len(parts)
    if not count or (count == 1 and parts[0] in (b"svc", b"pod")):
        return Asked()
    if parts[-1] not in (b"svc", b"pod"):
        return None
    if count > 5:
        return _in_zone(parts) if zonal and not multicluster else None
    service = parts[-3] if count > 2 else b""
    if count < 5:
        return Asked(parts[-1], parts[-2] if count > 1 else b"", service, parts[0] if count == 4 else b"")
    first, second = parts[0], parts[1]
    if multicluster and first[0] != 0x5F and second[0] != 0x5F:
        return Asked(parts[-1], parts[-2], service, first, cluster=second)
    return Asked(parts[-1], parts[-2], service, b"", first.removeprefix(b"_"), second.removeprefix(b"_"))


def _in_zone(parts: list[bytes]) -> Asked | None:
    """``TOPOLOGY-ZONE.DIRECTIVE._zone.SERVICE.NS.svc``; the first of these may be several labels."""
    *zone, directive, anchor, service, namespace, kind = parts
    if anchor != ZONE_LABEL or directive not in DIRECTIVES or kind != b"svc":
        return None
    # A dot within a label is none between labels: like this it equals no zone.
    text = b".".join([label.replace(b".", b"\\.") for label in zone])
    return Asked(kind, namespace, service, zone=text, prefer=directive == b"prefer")
