"""Cluster IPs for Services that state none, as an API server would allot them.

IPv4 addresses come from 10.96.0.0/12, IPv6 ones from fd00:10:96::/112 (what kubeadm and kind take when nobody says
otherwise).  The place in the range follows from a hash of ``namespace/name``; when it is taken, the next free one is
used.  So the same manifests give the same addresses on every start, and no Service gets another's.  As in the API
server, the first 256 addresses are left to Services that state theirs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final, TypeAlias

from kdns.cluster.endpoints import Service
from kdns.cluster.objects import ObjectError
from kdns.name import BadName, pack_address

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Key: TypeAlias = tuple[str, str, str]
"""Namespace, name and address family of a Service."""

FAMILIES: Final = {4: "IPv4", 16: "IPv6"}
RANGES: Final[Mapping[str, Network]] = {
    "IPv4": ipaddress.IPv4Network("10.96.0.0/12"),
    "IPv6": ipaddress.IPv6Network("fd00:10:96::/112"),
}
STATED: Final = 256
"""First addresses of a range that are not allotted."""


def families(service: Service) -> tuple[str, ...]:
    """The address families of a Service, the first one first: as its addresses and ``ipFamilies`` say, else IPv4.

    A second one is added when ``ipFamilyPolicy`` asks for two.  Raises ObjectError when these contradict each other.
    """
    spec = service.spec
    said = spec.families or []
    if len(said) > 2 or len(set(said)) < len(said) or not set(said) <= set(RANGES):
        raise ObjectError(f"ipFamilies {said} are not one or both of IPv4 and IPv6")
    found = [FAMILIES[len(address)] for address in stated(service)]
    if (found and said and found != said[: len(found)]) or len(set(found)) < len(found):
        raise ObjectError(f"clusterIPs are of families {found}, ipFamilies are {said}")
    chosen = said or found or ["IPv4"]
    if len(chosen) == 1 and spec.policy in ("PreferDualStack", "RequireDualStack"):
        chosen = [*chosen, "IPv6" if chosen[0] == "IPv4" else "IPv4"]
    return tuple(chosen)


def stated(service: Service) -> tuple[bytes, ...]:
    """The cluster IPs that the manifest states; none for a headless Service.  Raises ObjectError for what is none."""
    spec = service.spec
    texts = spec.cluster_ips or [spec.cluster_ip or ""]
    if spec.cluster_ip is not None and spec.cluster_ip != texts[0]:
        raise ObjectError(f"clusterIP {spec.cluster_ip!r} is not the first of clusterIPs")
    if texts == ["None"] or texts == [""]:
        return ()
    try:
        return tuple(pack_address(text) for text in texts)
    except BadName as error:
        raise ObjectError(f"clusterIPs: {error}") from None


def allot(
    wanted: Iterable[Key], taken: Iterable[bytes], before: Mapping[Key, bytes], ranges: Mapping[str, Network] = RANGES
) -> dict[Key, bytes]:
    """An address for each of ``wanted``; none of them is in ``taken``, and no two are the same.

    What has one in ``before`` keeps it, unless somebody else states it now.  Raises ObjectError when a range is full.
    """
    used = set(taken)
    allotted: dict[Key, bytes] = {}
    new: list[Key] = []
    for key in sorted(wanted):
        address = before.get(key)
        if address is None or address in used:
            new.append(key)
        else:
            allotted[key] = address
    used.update(allotted.values())
    for key in new:
        allotted[key] = _free(key, ranges[key[2]], used)
        used.add(allotted[key])
    return allotted


def _free(key: Key, network: Network, used: set[bytes]) -> bytes:
    """The first free address from the place that the key's hash points to."""
    # The last address of a range is no Service's: in IPv4 it is the broadcast address.
    places = network.num_addresses - STATED - 1
    start = int.from_bytes(sha256(f"{key[0]}/{key[1]}".encode()).digest()[:8], "big")
    for step in range(max(0, places)):
        address = network[STATED + (start + step) % places].packed
        if address not in used:
            return address
    raise ObjectError(f"{network} has no free address left")
