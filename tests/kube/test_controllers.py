"""What kdns makes out of manifests, beside what the control plane itself makes out of them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from typing import Any

import pytest

from kdns.cluster import decoding, objects
from kdns.cluster.documents import read
from kdns.cluster.selectors import EVERYTHING
from kdns.cluster.world import World, build, entry
from kdns.name import address_text
from tests.kube.apiclient import client
from tests.kube.controlplane import ControlPlane

Manifest = dict[str, Any]
APPS = ("a", "b", "c", "d")
PORTS = (("http", "TCP", "http"), ("dns", "UDP", "dns"), ("dns-tcp", "TCP", "dns"), ("side", "TCP", "side"))


def pods(choose: random.Random, namespace: str) -> list[Manifest]:
    """Sixteen Pods, as different as Pods can be for a Service."""
    out: list[Manifest] = []
    for app in APPS:
        for number in range(4):
            ports = [
                {"name": "http", "containerPort": choose.choice([80, 8080])},
                {"name": "dns", "containerPort": 53, "protocol": choose.choice(["UDP", "TCP"])},
            ]
            spec: Manifest = {"nodeName": "node", "containers": [{"name": "x", "image": "x", "ports": ports}]}
            if choose.random() < 0.5:
                spec["hostname"] = f"h{number}"
            if choose.random() < 0.6:
                spec["subdomain"] = f"s{choose.randrange(30)}"
            if choose.random() < 0.3:
                side = {"name": "side", "containerPort": 15000 + number}
                restart = choose.choice([{"restartPolicy": "Always"}, {}])
                spec["initContainers"] = [{"name": "side", "image": "x", "ports": [side], **restart}]
            labels = {"app": app} | ({"tier": choose.choice("pq")} if choose.random() < 0.5 else {})
            out.append(manifest("Pod", namespace, f"{app}-{number}", spec, labels))
    return out


def services(choose: random.Random, namespace: str) -> list[Manifest]:
    """Sixty Services over them."""
    out: list[Manifest] = []
    for number in range(60):
        chosen = choose.sample([*PORTS, ("number", "TCP", 9000 + number)], choose.randint(1, 4))
        ports = [{"name": name, "port": 1000 + i, "protocol": protocol} for i, (name, protocol, _) in enumerate(chosen)]
        for port, (_, _, target) in zip(ports, chosen, strict=True):
            if choose.random() < 0.8:
                port["targetPort"] = target
        spec: Manifest = {"ports": ports, "publishNotReadyAddresses": choose.random() < 0.3}
        if choose.random() < 0.9:
            spec["selector"] = {"app": choose.choice(APPS)}
            if choose.random() < 0.3:
                spec["selector"]["tier"] = choose.choice("pq")
        if choose.random() < 0.1:
            spec |= {"type": "ExternalName", "externalName": "example.org"}
        else:
            spec |= choose.choice([{}, {}, {"ipFamilyPolicy": "PreferDualStack"}, {"ipFamilies": ["IPv6"]}])
            if choose.random() < 0.5:
                spec["clusterIP"] = "None"
                if choose.random() < 0.3:
                    del spec["ports"]
        out.append(manifest("Service", namespace, f"s{number}", spec, {"number": str(number % 3)}))
    return out


def manifest(kind: str, namespace: str, name: str, spec: Manifest, labels: dict[str, str]) -> Manifest:
    meta = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": spec}


def status(choose: random.Random, number: int) -> Manifest:
    addresses = [f"10.244.0.{number + 1}"] + ([f"fd00::{number + 1}"] if choose.random() < 0.4 else [])
    return {
        "phase": choose.choice(["Running"] * 8 + ["Succeeded", "Failed"]),
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
        "conditions": [{"type": "Ready", "status": choose.choice(["True", "True", "True", "False"])}],
    }


Endpoints = dict[str, set[tuple[str, bytes, bytes, tuple[tuple[bytes, bytes, int], ...]]]]


def endpoints(slices: Iterable[objects.Object]) -> Endpoints:
    """Service → (address, hostname, pod, ports) of its ready endpoints."""
    out: Endpoints = {}
    for one in slices:
        assert isinstance(one, objects.EndpointSlice)
        packed = [one.addresses[at : at + one.width] for at in range(0, len(one.addresses), one.width)]
        none = [b""] * len(packed)
        hostnames = one.hostnames.split(b"\0") if one.hostnames else none
        names = one.pods.split(b"\0") if one.pods else none
        ports = tuple(sorted((port.name, port.protocol, port.number) for port in one.ports))
        for address, hostname, pod in zip(packed, hostnames, names, strict=True):
            out.setdefault(one.service.decode(), set()).add((address_text(address), hostname, pod, ports))
    return out


def theirs(control_plane: ControlPlane, namespace: str) -> Endpoints:
    found = json.loads(control_plane.kubectl("-n", namespace, "get", "endpointslices", "-o", "json"))
    return endpoints(decoding.from_manifest("endpointslices", item) for item in found["items"])


def ours(control_plane: ControlPlane, namespace: str, *kinds: str) -> World:
    """The world that kdns makes out of these kinds of objects."""
    text = control_plane.kubectl("-n", namespace, "get", ",".join(kinds), "-o", "json")
    return build(
        [entry(one) for one in read(text, "dump.json")], {"endpointslices": EVERYTHING, "services": EVERYTHING}, {}
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_endpoints_are_those_of_the_endpoint_slice_controller(control_plane: ControlPlane, seed: int) -> None:
    choose = random.Random(seed)
    namespace = f"controllers-{seed}"
    control_plane.apply(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
    )
    made = pods(choose, namespace)
    control_plane.apply(*services(choose, namespace), *made)
    with client(control_plane) as api:
        for number, pod in enumerate(made):
            api.patch_status("pods", namespace, pod["metadata"]["name"], status(choose, number), "merge")
    # Pods that are being deleted: nobody here takes the finalizer away.
    for name in ("a-0", "d-3"):
        keep = '{"metadata":{"finalizers":["example.org/keep"]}}'
        control_plane.kubectl("-n", namespace, "patch", "pod", name, "--type=merge", "-p", keep)
        control_plane.kubectl("-n", namespace, "delete", "pod", name, "--wait=false")
    expected = endpoints(ours(control_plane, namespace, "services", "pods").objects["endpointslices"].values())
    assert sum(map(len, expected.values())) > 50
    deadline = time.monotonic() + 30
    while theirs(control_plane, namespace) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    found = theirs(control_plane, namespace)
    assert {name: found.get(name) for name in expected} == expected
    assert found.keys() == expected.keys()
    # A cluster that is written out with its slices means the same.
    whole = ours(control_plane, namespace, "services", "pods", "endpointslices")
    assert endpoints(whole.objects["endpointslices"].values()) == expected
