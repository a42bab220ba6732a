"""The endpoints of a Service out of its Pods, as the endpoint slice controller works them out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kdns.cluster import endpoints
from kdns.cluster.endpoints import Pods, slices

Manifest = dict[str, Any]
READY = [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]
UNREADY = [{"type": "Ready", "status": "False"}]


def pod(name: str, *addresses: str, **changes: Any) -> Manifest:
    """A ready Pod labelled ``app: web``; ``changes`` replace its parts."""
    return {
        "metadata": {"name": name, "labels": {"app": "web"}} | changes.get("metadata", {}),
        "spec": changes.get("spec", {}),
        "status": {
            "phase": "Running",
            "conditions": READY,
            "podIP": addresses[0] if addresses else None,
            "podIPs": [{"ip": address} for address in addresses],
        }
        | changes.get("status", {}),
    }


def service(labels: dict[str, str] | None = None, **spec: Any) -> endpoints.Service:
    """Service ``web`` that selects ``app: web``."""
    metadata = {"name": "web", "namespace": "default", "labels": labels}
    return endpoints.service({"metadata": metadata, "spec": {"selector": {"app": "web"}} | spec})


def derived(owner: endpoints.Service, *pods: Manifest, families: tuple[str, ...] = ("IPv4",)) -> list[Manifest]:
    return list(slices(owner, families, Pods(endpoints.pod(one) for one in pods)))


def members(owner: endpoints.Service, *pods: Manifest, family: str = "IPv4") -> list[tuple[list[str], bool]]:
    """(addresses, ready) of each endpoint."""
    return [
        (endpoint["addresses"], endpoint["conditions"]["ready"])
        for found in derived(owner, *pods, families=(family,))
        for endpoint in found["endpoints"]
    ]


def ports(owner: endpoints.Service, *pods: Manifest) -> list[list[tuple[str, str, int]]]:
    return [
        [(port["name"], port["protocol"], port["port"]) for port in found["ports"]] for found in derived(owner, *pods)
    ]


# --- which Pods, and are they ready ----------------------------------------------------------------------------------


def test_a_whole_slice() -> None:
    owner = service({"tier": "front", endpoints.HEADLESS: "x"}, ports=[{"port": 80}])
    assert derived(owner, pod("a", "10.0.0.1")) == [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "web/IPv4/0",
                "namespace": "default",
                "labels": {
                    "tier": "front",
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": ["10.0.0.1"],
                    "conditions": {"ready": True, "serving": True, "terminating": False},
                    "targetRef": {"kind": "Pod", "name": "a"},
                }
            ],
            "ports": [{"name": "", "protocol": "TCP", "port": 80}],
        }
    ]


def test_only_pods_that_have_all_labels_are_selected() -> None:
    owner = service(selector={"app": "web", "tier": "front"})
    both = pod("both", "10.0.0.1", metadata={"labels": {"app": "web", "tier": "front", "more": "x"}})
    one = pod("one", "10.0.0.2")
    none = pod("none", "10.0.0.3", metadata={"labels": None})
    assert members(owner, both, one, none) == [(["10.0.0.1"], True)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True]),
        ({"status": {"conditions": UNREADY}}, [False]),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, [False]),
        ({"status": {"conditions": None}}, [False]),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, [False]),
        ({"status": {"phase": "Pending"}}, [True]),
        ({"status": {"phase": "Succeeded"}}, []),
        ({"status": {"phase": "Failed"}}, []),
        ({"status": {"podIP": None, "podIPs": None}}, []),
        ({"status": {"podIPs": None}}, [True]),
        ({"status": {"podIPs": []}}, [True]),
    ],
)
@pytest.mark.parametrize("publish", [False, True])
def test_readiness(changes: Manifest, expected: list[bool], publish: bool) -> None:
    owner = service(publishNotReadyAddresses=publish)
    found = members(owner, pod("a", "10.0.0.1", **changes))
    assert [ready for _, ready in found] == [one or publish for one in expected]


def test_conditions_beside_ready() -> None:
    gone = pod("a", "10.0.0.1", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    (found,) = derived(service(), gone)
    assert found["endpoints"][0]["conditions"] == {"ready": False, "serving": True, "terminating": True}


def test_a_pod_without_status_and_spec() -> None:
    assert members(service(), {"metadata": {"name": "a", "labels": {"app": "web"}}}) == []


# --- families --------------------------------------------------------------------------------------------------------


def test_each_family_has_its_slices() -> None:
    both = pod("both", "10.0.0.1", "fd00::1")
    six = pod("six", "fd00::2")
    assert members(service(), both, six) == [(["10.0.0.1"], True)]
    assert members(service(), both, six, family="IPv6") == [(["fd00::1"], True), (["fd00::2"], True)]
    found = derived(service(), both, six, families=("IPv6", "IPv4"))
    assert [(one["metadata"]["name"], one["addressType"]) for one in found] == [
        ("web/IPv6/0", "IPv6"),
        ("web/IPv4/0", "IPv4"),
    ]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"hostname": "h", "subdomain": "web"}, "h"),
        ({"hostname": "h", "subdomain": "other"}, None),
        ({"hostname": "h"}, None),
        ({"subdomain": "web"}, None),
    ],
)
def test_hostname(spec: Manifest, expected: str | None) -> None:
    (found,) = derived(service(), pod("a", "10.0.0.1", spec=spec))
    assert found["endpoints"][0].get("hostname") == expected


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("db-0", {}, ("db-0", "dbs")),
        ("db-12", {}, ("db-12", "dbs")),
        ("db-0", {"hostname": "own", "subdomain": "x"}, ("own", "x")),
        ("db-x", {}, ("", "")),
        ("db", {}, ("", "")),
        ("other-0", {}, ("", "")),
    ],
)
def test_identity_from_a_stateful_set(name: str, spec: Manifest, expected: tuple[str, str]) -> None:
    owner = endpoints.stateful_set(
        {"metadata": {"name": "db"}, "spec": {"serviceName": "dbs", "selector": {"matchLabels": {"app": "web"}}}}
    )
    found = endpoints.pod(pod(name, spec=spec)).named({"db": owner})
    assert (found.hostname, found.subdomain) == expected


def test_a_stateful_set_names_only_pods_that_it_selects() -> None:
    owner = endpoints.stateful_set({"metadata": {"name": "db"}, "spec": {"selector": {"matchLabels": {"app": "x"}}}})
    assert endpoints.pod(pod("db-0")).named({"db": owner}).hostname == ""


# --- ports -----------------------------------------------------------------------------------------------------------


def test_ports_are_the_pods_ports() -> None:
    containers = [
        {"ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 1}]},
        {"ports": [{"name": "dns", "containerPort": 5353, "protocol": "UDP"}]},
        {},
    ]
    sidecars = [
        {"restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15001}]},
        {"ports": [{"name": "init", "containerPort": 9}]},
    ]
    owner = service(
        ports=[
            {"name": "web", "port": 80, "targetPort": "http"},
            {"name": "plain", "port": 81},
            {"name": "zero", "port": 82, "targetPort": 0},
            {"name": "number", "port": 83, "targetPort": 8083},
            {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"},
            {"name": "proxy", "port": 84, "targetPort": "proxy"},
            {"name": "tcp-dns", "port": 53, "targetPort": "dns"},
            {"name": "init", "port": 85, "targetPort": "init"},
            {"name": "missing", "port": 86, "targetPort": "8080"},
        ]
    )
    assert ports(owner, pod("a", "10.0.0.1", spec={"containers": containers, "initContainers": sidecars})) == [
        [
            ("web", "TCP", 8080),
            ("plain", "TCP", 81),
            ("zero", "TCP", 82),
            ("number", "TCP", 8083),
            ("dns", "UDP", 5353),
            ("proxy", "TCP", 15001),
        ]
    ]


def test_pods_with_different_ports_are_in_different_slices() -> None:
    def named(name: str, address: str, number: int) -> Manifest:
        return pod(name, address, spec={"containers": [{"ports": [{"name": "http", "containerPort": number}]}]})

    owner = service(ports=[{"port": 80, "targetPort": "http"}])
    pods = [named("a", "10.0.0.1", 80), named("b", "10.0.0.2", 81), named("c", "10.0.0.3", 80), pod("d", "10.0.0.4")]
    found = derived(owner, *pods)
    assert [([one["addresses"] for one in part["endpoints"]], part["ports"]) for part in found] == [
        ([["10.0.0.1"], ["10.0.0.3"]], [{"name": "", "protocol": "TCP", "port": 80}]),
        ([["10.0.0.2"]], [{"name": "", "protocol": "TCP", "port": 81}]),
        ([["10.0.0.4"]], []),
    ]


def test_headless_with_and_without_ports() -> None:
    for headless in ({"clusterIP": "None"}, {"clusterIPs": ["None"]}):
        (found,) = derived(service(**headless), pod("a", "10.0.0.1"))
        assert found["ports"] == []
        assert found["metadata"]["labels"][endpoints.HEADLESS] == ""
    assert ports(service(clusterIP="None", ports=[{"port": 80}]), pod("a", "10.0.0.1")) == [[("", "TCP", 80)]]


def test_slices_hold_a_hundred_endpoints() -> None:
    pods = [pod(f"p{number:03}", f"10.0.{number // 100}.{number % 100}") for number in range(205)]
    found = derived(service(), *pods)
    assert [len(one["endpoints"]) for one in found] == [100, 100, 5]
    assert [one["metadata"]["name"] for one in found] == ["web/IPv4/0", "web/IPv4/1", "web/IPv4/2"]


# --- which Services, and what is no manifest -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, True),
        ({"type": "LoadBalancer"}, True),
        ({"selector": None}, False),
        ({"selector": {}}, False),
        ({"type": "ExternalName", "externalName": "x.org"}, False),
    ],
)
def test_who_selects(spec: Manifest, expected: bool) -> None:
    assert service(**spec).selects is expected


@pytest.mark.parametrize(
    "spec",
    [
        {"ports": [{"port": "80"}]},
        {"ports": [{"port": 70000}]},
        {"ports": [{"port": 1, "targetPort": 70000}]},
        {"ports": {}},
        {"selector": {"a": 1}},
        {"ipFamilies": "IPv4"},
        {"publishNotReadyAddresses": "yes"},
    ],
)
def test_wrong_types(spec: Manifest) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.spec\."):
        service(**spec)


def test_wrong_types_in_pods() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"status\.conditions"):
        endpoints.pod(pod("a", status={"conditions": [{"type": "Ready", "status": True}]}))
    with pytest.raises(msgspec.ValidationError, match="containerPort"):
        endpoints.pod(pod("a", spec={"containers": [{"ports": [{"containerPort": 70000}]}]}))
