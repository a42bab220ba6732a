"""kdns on a real cluster: what it answers beside what the API itself says, and how soon after a change."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kube.apiclient import ApiClient, client
from tests.kube.controlplane import ControlPlane
from tests.kube.expected import NOWHERE, Cluster, Expected, dashed
from tests.kube.served import OUTSIDE, Served, lag, serving

Object = dict[str, Any]
SPACE = "served"
SUFFIX = f"{SPACE}.svc.cluster.local."
PROMISE = 0.05
"""Seconds after which a change is answered right, 95 times of 100: the promise of the issue."""
CHANGES = 20
ROUNDS = 3
"""Rounds to keep the promise in: a busy machine delays the watch event, kdns and this test alike."""
SETTLED = 60.0
"""Seconds until controllers have done their work, on a busy machine."""


# --- a cluster with one of everything --------------------------------------------------------------------------------


def item(kind: str, name: str, spec: Object, version: str = "v1", **more: Any) -> Object:
    meta = {"name": name, "namespace": SPACE, "labels": {"app": name}}
    return {"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec, **more}


def service(name: str, app: str = "", **spec: Any) -> Object:
    selector = {"selector": {"app": app}} if app else {}
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]
    return item("Service", name, {"ports": ports, **selector, **spec})


def workload(kind: str, name: str, replicas: int, **spec: Any) -> Object:
    container = {"name": "x", "image": "x", "ports": [{"name": "http", "containerPort": 8080}]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    selector = {"matchLabels": {"app": name}}
    return item(
        kind, name, {"replicas": replicas, "selector": selector, "template": template, **spec}, version="apps/v1"
    )


def endpoint_slice(name: str, of: str, type: str, *addresses: str, ready: bool | None = True) -> Object:
    endpoint: Object = {"addresses": list(addresses), "conditions": {} if ready is None else {"ready": ready}}
    meta = {"name": name, "namespace": SPACE, "labels": {"kubernetes.io/service-name": of}}
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": meta,
        "addressType": type,
        "endpoints": [endpoint],
        "ports": ports,
    }


HEADLESS: Object = {"clusterIP": "None"}
DUAL: Object = {"ipFamilyPolicy": "RequireDualStack"}
THINGS = [
    workload("StatefulSet", "postgres", 2, serviceName="postgres"),
    service("postgres", "postgres", **HEADLESS),
    workload("Deployment", "web", 3),
    service("web", "web"),
    service("web-headless", "web", **HEADLESS),
    service("web-all", "web", **HEADLESS, publishNotReadyAddresses=True),
    service("dual", "web", **DUAL),
    service("six", "web", ipFamilies=["IPv6"]),
    service("dual-headless", "both", **HEADLESS, **DUAL),
    service("balanced", "web", type="LoadBalancer"),
    service("on-nodes", "web", type="NodePort"),
    service("nobody", "nobody", **HEADLESS),
    service("nobody-at-ip", "nobody"),
    service("own", **HEADLESS, **DUAL),
    endpoint_slice("own-4", "own", "IPv4", "192.0.2.1"),
    endpoint_slice("own-4-unready", "own", "IPv4", "192.0.2.2", ready=False),
    endpoint_slice("own-6", "own", "IPv6", "2001:db8::", ready=None),
    item("Service", "outside", {"type": "ExternalName", "externalName": "target.example.org"}),
    item("Service", "nowhere", {"type": "ExternalName", "externalName": "other.example.org."}),
    item("Pod", "named", {"hostname": "host", "subdomain": "sub", "containers": [{"name": "x", "image": "x"}]}),
    service("sub", "named", **HEADLESS),
    item("Pod", "both", {"nodeName": "by-hand", "containers": [{"name": "x", "image": "x"}]}),
    service("changing", "changing", **HEADLESS),
    workload("Deployment", "changing", 2),
]


@pytest.fixture(scope="package")
def api(control_plane: ControlPlane) -> Iterator[ApiClient]:
    with client(control_plane) as api:
        yield api


@pytest.fixture(scope="package")
def served(control_plane: ControlPlane, api: ApiClient) -> Iterator[Served]:
    """A kdns that has followed all of it from before it was there."""
    with serving(control_plane.state, f"kubeconfig {control_plane.reader}") as served:
        control_plane.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}},
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "by-hand"}},
        )
        control_plane.apply(*THINGS, command="create")
        api.patch_status("services", SPACE, "balanced", {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}})
        api.patch_status("pods", SPACE, "both", running("10.244.1.1", "fd00:10:244::1"))
        for which in ("statefulset/postgres", "deployment/web", "deployment/changing"):
            control_plane.kubectl("-n", SPACE, "rollout", "status", which, f"--timeout={SETTLED:g}s")
        yield served


def running(*addresses: str) -> Object:
    return {
        "phase": "Running",
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
        "conditions": [{"type": "Ready", "status": "True"}],
    }


def expected(control_plane: ControlPlane) -> Expected:
    found = control_plane.kubectl("get", "namespaces,services,endpointslices,pods", "-A", "-o", "json")
    return Cluster(json.loads(found)["items"]).answers()


def differences(served: Served, right: Expected) -> dict[str, str]:
    out = {}
    for (name, type), records in right.items():
        if (answer := served.ask(name, type)) != records:
            out[f"{name} {type}"] = f"{sorted(answer)} instead of {sorted(records)}"
    return out


def settle(control_plane: ControlPlane, served: Served, enough: Callable[[Expected], bool]) -> Expected:
    """What is expected once there is enough, after kdns has said it all; the controllers may still be at work."""
    deadline = time.monotonic() + SETTLED
    while True:
        right = expected(control_plane)
        wrong = differences(served, right) if enough(right) else {"": "the cluster is not complete yet"}
        if not wrong:
            return right
        assert time.monotonic() < deadline, wrong
        time.sleep(0.2)


# --- the tests -------------------------------------------------------------------------------------------------------


def test_answers_are_what_the_api_says(control_plane: ControlPlane, served: Served) -> None:
    def complete(right: Expected) -> bool:
        return (
            len(right[f"web-headless.{SUFFIX}", "A"]) == 3
            and len(right[f"postgres.{SUFFIX}", "A"]) == 2
            and (f"host.sub.{SUFFIX}", "A") in right
            and len(right[f"dual-headless.{SUFFIX}", "AAAA"]) == 1
        )

    right = settle(control_plane, served, complete)

    # What the API says is what was meant: each kind of Service has its names.
    for name in ("web", "dual", "balanced", "on-nodes", "nobody-at-ip", "own", "sub", "postgres-0.postgres"):
        assert len(right[f"{name}.{SUFFIX}", "A"]) == 1, name
    for name in ("dual", "six", "own"):
        assert len(right[f"{name}.{SUFFIX}", "AAAA"]) == 1, name
    assert right[f"six.{SUFFIX}", "A"] == frozenset()
    assert right[f"nobody.{SUFFIX}", "A"] == NOWHERE
    assert right[f"192-0-2-2.own.{SUFFIX}", "A"] == NOWHERE
    assert right[f"_http._tcp.postgres.{SUFFIX}", "SRV"] == {
        f"0 8080 postgres-0.postgres.{SUFFIX}",
        f"0 8080 postgres-1.postgres.{SUFFIX}",
    }
    assert right[f"_dns._udp.balanced.{SUFFIX}", "SRV"] == {f"0 53 balanced.{SUFFIX}"}
    (address,) = right[f"host.sub.{SUFFIX}", "A"]
    assert right[f"{dashed(address)}.{SPACE}.pod.cluster.local.", "A"] == {address}
    assert right[".".join(reversed(address.split("."))) + ".in-addr.arpa.", "PTR"] == {f"host.sub.{SUFFIX}"}


def test_names_that_lead_outside(served: Served) -> None:
    assert served.ask(f"outside.{SUFFIX}", "CNAME") == {"target.example.org."}
    assert served.ask(f"outside.{SUFFIX}") == {OUTSIDE}
    assert served.ask(f"nowhere.{SUFFIX}", "CNAME") == {"other.example.org."}
    assert served.ask(f"nowhere.{SUFFIX}") == frozenset()


def test_what_is_not_there(served: Served) -> None:
    for name in (
        f"none.{SUFFIX}",
        "web.none.svc.cluster.local.",
        f"none.postgres.{SUFFIX}",
        f"postgres-2.postgres.{SUFFIX}",
        f"_none._tcp.web.{SUFFIX}",
        f"_http._udp.web.{SUFFIX}",
        f"10-244-99-99.{SPACE}.pod.cluster.local.",
        "10-244-1-1.default.pod.cluster.local.",
    ):
        assert served.ask(name) == NOWHERE, name
    # The balancer's address is for those outside.
    assert served.ask("1.100.51.198.in-addr.arpa.", "PTR") != {f"balanced.{SUFFIX}"}


def test_readiness_is_followed(control_plane: ControlPlane, served: Served, api: ApiClient) -> None:
    name = f"changing.{SUFFIX}"
    settle(control_plane, served, lambda right: len(right[name, "A"]) == 2)
    pods = api.request("GET", f"api/v1/namespaces/{SPACE}/pods?labelSelector=app%3Dchanging")["items"]
    address = pods[0]["status"]["podIP"]
    for ready, count in (("False", 1), ("True", 2)):
        condition = {"type": "Ready", "status": ready}
        api.patch_status("pods", SPACE, pods[0]["metadata"]["name"], {"conditions": [condition]})
        right = settle(control_plane, served, lambda right, count=count: len(right[name, "A"]) == count)  # type: ignore[misc]
        assert (address in right[name, "A"]) == (ready == "True")
        # An unready Pod is still a Pod.
        assert right[f"{dashed(address)}.{SPACE}.pod.cluster.local.", "A"] == {address}


def test_changes_are_answered_at_once(control_plane: ControlPlane, served: Served, api: ApiClient) -> None:
    """Through ``cache 30``, after the opposite was answered a moment ago."""
    for number in range(ROUNDS):
        lags = sorted(one for index in range(CHANGES) for one in change(served, api, f"quick-{number}-{index}"))
        late = [f"{one * 1000:.1f} ms" for one in lags[-3:]]
        print(f"right after {lags[len(lags) // 2] * 1000:.1f} ms (median), at worst after {late}")
        if lags[int(len(lags) * 0.95) - 1] <= PROMISE:
            break
    else:
        raise AssertionError(f"{lags}")


def change(served: Served, api: ApiClient, name: str) -> tuple[float, float]:
    """Seconds from the API's answer until a new Service is known, and until a deleted one is not."""
    full = f"{name}.{SUFFIX}"
    for _ in range(2):  # the second answer comes out of the cache, at last
        assert served.ask(full) == NOWHERE
    made = api.create("services", service(name))
    created = lag(served, full, {made["spec"]["clusterIP"]}.__eq__, time.monotonic(), 5.0)
    served.ask(full)
    api.delete("services", SPACE, name)
    return created, lag(served, full, NOWHERE.__eq__, time.monotonic(), 5.0)


def test_changes_by_kubectl_are_answered_when_it_returns(control_plane: ControlPlane, served: Served) -> None:
    lags = []
    for number in range(3):
        full = f"kubectl-{number}.{SUFFIX}"
        assert served.ask(full) == NOWHERE
        control_plane.apply(service(f"kubectl-{number}"), command="create")
        lags.append(lag(served, full, NOWHERE.__ne__, time.monotonic(), 5.0))
        control_plane.kubectl("-n", SPACE, "delete", "service", f"kubectl-{number}")
        lags.append(lag(served, full, NOWHERE.__eq__, time.monotonic(), 5.0))
    print("after kubectl:", [f"{one * 1000:.1f} ms" for one in lags])
    assert sorted(lags)[len(lags) // 2] <= PROMISE
