"""deploy/kubernetes as a real API server sees it: accepted, and merged into what kubeadm has put there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kube.apiclient import until
from tests.kube.controlplane import NODES, ControlPlane
from tests.support import ROOT

DEPLOY = ROOT / "deploy" / "kubernetes"
REPLACE = DEPLOY / "overlays" / "replace-coredns"

# The Deployment of CoreDNS as kubeadm makes it, as far as it differs from kdns's.
COREDNS: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "coredns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"k8s-app": "kube-dns"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "template": {
            "metadata": {"labels": {"k8s-app": "kube-dns"}},
            "spec": {
                "serviceAccountName": "coredns",
                "priorityClassName": "system-cluster-critical",
                "dnsPolicy": "Default",
                "containers": [
                    {
                        "name": "coredns",
                        "image": "registry.k8s.io/coredns/coredns:v1.12.1",
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": True}],
                        "ports": [
                            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
                            {"name": "metrics", "containerPort": 9153, "protocol": "TCP"},
                            {"name": "liveness-probe", "containerPort": 8080, "protocol": "TCP"},
                            {"name": "readiness-probe", "containerPort": 8181, "protocol": "TCP"},
                        ],
                        "livenessProbe": {
                            "httpGet": {"path": "/health", "port": "liveness-probe", "scheme": "HTTP"},
                            "initialDelaySeconds": 60,
                            "timeoutSeconds": 5,
                            "failureThreshold": 5,
                        },
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": "readiness-probe", "scheme": "HTTP"}},
                    }
                ],
                "volumes": [
                    {
                        "name": "config-volume",
                        "configMap": {"name": "coredns", "items": [{"key": "Corefile", "path": "Corefile"}]},
                    }
                ],
            },
        },
    },
}
KUBE_DNS: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
    "spec": {
        "clusterIP": "10.96.0.10",
        "selector": {"k8s-app": "kube-dns"},
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
        ],
    },
}


def template(control_plane: ControlPlane) -> dict[str, Any]:
    found = json.loads(control_plane.kubectl("-n", "kube-system", "get", "deployment", "coredns", "-o", "json"))
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


PATHS = {
    ".": {"kdns": 2},
    "overlays/replace-coredns": {"coredns": 2},
    "overlays/replace-coredns-autoscaled": {"coredns": 1, "kube-dns-autoscaler": 1},
    "nodelocal": {"node-local-dns": NODES},
}
"""What can be applied, and how many Pods of which workloads come of it."""


def rolled_out(control_plane: ControlPlane, workload: str) -> None:
    """Its Pods run, and are what it says now; controllers may be slow to come back after other tests' outages."""
    control_plane.kubectl("-n", "kube-system", "rollout", "status", workload, "--timeout=60s")


@pytest.mark.parametrize("path", PATHS)
def test_the_api_server_accepts(control_plane: ControlPlane, path: str) -> None:
    control_plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", str(DEPLOY / path))


@pytest.fixture
def kubeadm(control_plane: ControlPlane) -> Iterator[None]:
    """What kubeadm has put there."""
    try:
        control_plane.apply(KUBE_DNS, COREDNS, command="create")
        yield
    finally:
        control_plane.remove(REPLACE)


@pytest.mark.usefixtures("kubeadm")
def test_there_and_back(control_plane: ControlPlane) -> None:
    rolled_out(control_plane, "deployment/coredns")
    before = template(control_plane)
    control_plane.kubectl("apply", "-k", str(REPLACE))
    rolled_out(control_plane, "deployment/coredns")
    after = template(control_plane)
    rendered = subprocess.check_output(["kubectl", "kustomize", str(REPLACE)], text=True)
    (container,) = after["containers"]
    assert f"image: {container['image']}" in rendered
    assert container["livenessProbe"].get("initialDelaySeconds", 0) == 0
    assert [port["name"] for port in container["ports"]] == [
        "dns",
        "dns-tcp",
        "metrics",
        "liveness-probe",
        "readiness-probe",
    ]
    assert len(container["volumeMounts"]) == len(after["volumes"]) == 1
    service = json.loads(control_plane.kubectl("-n", "kube-system", "get", "service", "kube-dns", "-o", "json"))
    assert service["spec"]["clusterIP"] == "10.96.0.10"
    assert len(service["spec"]["ports"]) == 3
    control_plane.kubectl("-n", "kube-system", "rollout", "undo", "deployment/coredns")
    assert template(control_plane) == before


def test_the_default_leaves_coredns_alone(control_plane: ControlPlane) -> None:
    def names() -> set[str]:
        kinds = "deployments,services,configmaps,serviceaccounts,poddisruptionbudgets"
        return set(control_plane.kubectl("-n", "kube-system", "get", kinds, "-o", "name").split())

    before = names()
    try:
        control_plane.kubectl("apply", "-k", str(DEPLOY))
        made = names() - before
        assert {name.rpartition("/")[2] for name in made} == {"kdns"}
    finally:
        control_plane.remove(DEPLOY)
    assert names() == before


@pytest.mark.parametrize("path", PATHS)
def test_pods_are_scheduled_and_become_endpoints(control_plane: ControlPlane, path: str) -> None:
    def found(what: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(control_plane.kubectl("-n", "kube-system", "get", what, "-o", "json"))[
            "items"
        ]
        return items

    control_plane.kubectl("apply", "-k", str(DEPLOY / path))
    try:
        workloads = control_plane.kubectl("-n", "kube-system", "get", "deployments,daemonsets", "-o", "name").split()
        for one in workloads:
            rolled_out(control_plane, one)
        pods = {pod["metadata"]["name"]: pod for pod in found("pods") if "deletionTimestamp" not in pod["metadata"]}
        for workload, count in PATHS[path].items():
            nodes = [pod["spec"]["nodeName"] for name, pod in pods.items() if name.startswith(f"{workload}-")]
            assert len(nodes) == count
            assert len(set(nodes)) == count, "two servers on one node are no redundancy"
        (service,) = (one["metadata"]["name"] for one in found("services"))
        wait_for_endpoints(control_plane, service, next(iter(PATHS[path].values())))
    finally:
        control_plane.remove(DEPLOY / path)


def wait_for_endpoints(control_plane: ControlPlane, service: str, count: int) -> None:
    """A Service has so many that are ready, once the controller has written them down."""
    command = [
        "-n",
        "kube-system",
        "get",
        "endpointslices",
        "-l",
        f"kubernetes.io/service-name={service}",
        "-o",
        "json",
    ]

    def there() -> bool:
        slices = json.loads(control_plane.kubectl(*command))["items"]
        endpoints = [one for each in slices for one in each.get("endpoints") or []]
        return len([one for one in endpoints if one["conditions"]["ready"]]) == count

    until(there, 10, pause=0.1)
