"""Address families of Services, and cluster IPs for those that state none."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from kdns.cluster import clusterips, endpoints
from kdns.cluster.clusterips import allot, families, stated
from kdns.cluster.objects import ObjectError
from kdns.name import pack_address

SMALL = {"IPv4": ipaddress.IPv4Network("10.96.0.0/23"), "IPv6": ipaddress.IPv6Network("fd00::/119")}
KEYS = [("default", f"s{number}", "IPv4") for number in range(255)]


def service(**spec: Any) -> endpoints.Service:
    return endpoints.service({"metadata": {"name": "a"}, "spec": spec})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ("IPv4",)),
        ({"ipFamilies": ["IPv6"]}, ("IPv6",)),
        ({"ipFamilies": []}, ("IPv4",)),
        ({"ipFamilies": ["IPv6", "IPv4"]}, ("IPv6", "IPv4")),
        ({"ipFamilyPolicy": "SingleStack"}, ("IPv4",)),
        ({"ipFamilyPolicy": "PreferDualStack"}, ("IPv4", "IPv6")),
        ({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}, ("IPv6", "IPv4")),
        ({"clusterIP": "fd00::1"}, ("IPv6",)),
        ({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]}, ("IPv4", "IPv6")),
        ({"clusterIP": "fd00::1", "ipFamilyPolicy": "PreferDualStack"}, ("IPv6", "IPv4")),
        ({"clusterIP": "10.96.0.1", "ipFamilies": ["IPv4", "IPv6"]}, ("IPv4", "IPv6")),
        ({"clusterIP": "None", "ipFamilies": ["IPv6"]}, ("IPv6",)),
    ],
)
def test_families(spec: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert families(service(**spec)) == expected


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"ipFamilies": ["IPv5"]}, "not one or both"),
        ({"ipFamilies": ["IPv4", "IPv4"]}, "not one or both"),
        ({"ipFamilies": ["IPv4", "IPv6", "IPv4"]}, "not one or both"),
        ({"ipFamilies": ["IPv6"], "clusterIP": "10.96.0.1"}, "clusterIPs are of families"),
        ({"ipFamilies": ["IPv4"], "clusterIPs": ["10.96.0.1", "fd00::1"]}, "clusterIPs are of families"),
        ({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}, "clusterIPs are of families"),
        ({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.1"]}, "not the first of clusterIPs"),
        ({"clusterIP": "10.96.0.256"}, "not an IP address"),
        ({"clusterIPs": ["None", "10.96.0.1"]}, "not an IP address"),
    ],
)
def test_contradictions(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(ObjectError, match=reason):
        families(service(**spec))


def test_stated() -> None:
    assert stated(service()) == ()
    assert stated(service(clusterIP="")) == ()
    assert stated(service(clusterIP="None", clusterIPs=["None"])) == ()
    both = ["10.96.0.1", "fd00::1"]
    assert stated(service(clusterIPs=both)) == tuple(map(pack_address, both))


def test_the_same_addresses_every_time() -> None:
    key = ("default", "web", "IPv4")
    # This is a promise to whoever has written such an address down: it may never change.
    assert allot([key], (), {}) == {key: pack_address("10.100.195.26")}
    assert allot([("default", "web", "IPv6")], (), {}) == {("default", "web", "IPv6"): pack_address("fd00:10:96::ecbc")}
    assert allot(KEYS, (), {}, SMALL) == allot(reversed(KEYS), (), {}, SMALL)


def test_addresses_are_in_the_range_and_different() -> None:
    both = [(namespace, name, family) for namespace, name, _ in KEYS for family in ("IPv4", "IPv6")]
    found = allot(both, (), {}, SMALL)
    assert set(found) == set(both)
    assert len(set(found.values())) == len(both)
    for (_, _, family), packed in found.items():
        address = ipaddress.ip_address(packed)
        assert address in SMALL[family]
        assert clusterips.STATED <= int(address) - int(SMALL[family][0]) < SMALL[family].num_addresses - 1


def test_a_full_range() -> None:
    with pytest.raises(ObjectError, match=r"10\.96\.0\.0/23 has no free address left"):
        allot([*KEYS, ("default", "one-more", "IPv4")], (), {}, SMALL)


def test_stated_addresses_are_not_allotted() -> None:
    (address,) = allot(KEYS[:1], (), {}).values()
    (other,) = allot(KEYS[:1], {address}, {}).values()
    assert int.from_bytes(other, "big") == int.from_bytes(address, "big") + 1


def test_what_has_an_address_keeps_it() -> None:
    before = allot(KEYS[:100], (), {}, SMALL)
    after = allot(KEYS[50:200], (), before, SMALL)
    assert all(after[key] == before[key] for key in KEYS[50:100])
    taken = before[KEYS[0]]
    moved = allot(KEYS[:100], {taken}, before, SMALL)
    assert moved[KEYS[0]] != taken
    assert all(moved[key] == before[key] for key in KEYS[1:100])
