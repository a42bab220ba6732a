"""Which endpoints and ports of a Service, or of a ServiceImport, a question is about."""

from __future__ import annotations

from typing import Final

from kdns.cluster.grammar import Asked
from kdns.cluster.objects import Port
from kdns.cluster.replies import dashed, undashed
from kdns.cluster.shelves import Slice, Zoned

NO_PORT: Final = Port(b"", b"", 0)
"""Stands for the ports of what has none: there are addresses then, but no SRV records."""


def fitting(ports: tuple[Port, ...], asked: Asked) -> tuple[Port, ...]:
    """The ports with the name and protocol asked for; `NO_PORT` when there are no ports and none is asked for."""
    if not asked.port and not asked.protocol:
        return ports or (NO_PORT,)
    return tuple([port for port in ports if asked.port in (b"", port.name) and asked.protocol in (b"", port.protocol)])


def labelled(part: Slice, pod_names: bool, wanted: bytes = b"") -> list[tuple[bytes, bytes]]:
    """(address, label) of the endpoints in a slice; only those with the label ``wanted``, unless that is empty.

    ``pod_names``: endpoints without a hostname are named after their Pod.
    """
    if not wanted:
        return _named(part.endpoints(), pod_names)
    # Most slices don't have the one that is wanted: a glance saves reading them.
    spelled = undashed(wanted)
    spelled = spelled if spelled and dashed(spelled) == wanted else b""
    if wanted not in part.hostnames and wanted not in part.pods and not part.has(spelled):
        return []
    return [
        (address, wanted)
        for address, hostname, pod in part.endpoints()
        if (hostname or (pod_names and pod) or (address == spelled and wanted)) == wanted
    ]


def within(part: Slice, pod_names: bool, zone: bytes) -> list[tuple[bytes, bytes]]:
    """(address, label) of the endpoints in a topology zone; none of a slice whose zones are not kept."""
    return _named(part.within(zone), pod_names) if isinstance(part, Zoned) else []


def _named(endpoints: list[tuple[bytes, bytes, bytes]], pod_names: bool) -> list[tuple[bytes, bytes]]:
    return [(address, hostname or (pod_names and pod) or dashed(address)) for address, hostname, pod in endpoints]
