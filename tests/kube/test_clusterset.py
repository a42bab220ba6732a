"""ServiceImports and topology zones of a real cluster: its CRD, its permissions, its controllers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import yaml

from tests.kube.apiclient import ApiClient, client, until
from tests.kube.controlplane import NODES, ControlPlane
from tests.kube.expected import NOWHERE
from tests.kube.served import Served, serving
from tests.support import ROOT, http_get

Object = dict[str, Any]
SPACE = "set"
SUFFIX = f"{SPACE}.svc.clusterset.local."
GROUP = "multicluster.x-k8s.io"
UNKNOWN = frozenset({"SERVFAIL"})
SOON = 30.0
COMPONENT = ROOT / "deploy" / "kubernetes" / "components" / "multicluster" / "kustomization.yaml"

CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"serviceimports.{GROUP}",
        "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements/pull/2925"},
    },
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": "serviceimports", "singular": "serviceimport", "kind": "ServiceImport"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}


def service_import(name: str, *ips: str) -> Object:
    spec: Object = {"type": "ClusterSetIP" if ips else "Headless", "ports": [{"name": "http", "port": 80}]}
    spec |= {"ips": list(ips)} if ips else {}
    version = f"{GROUP}/v1alpha1"
    return {
        "apiVersion": version,
        "kind": "ServiceImport",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": spec,
    }


def endpoint_slice(of: str, cluster: str, address: str) -> Object:
    labels = {"service-name": of, "source-cluster": cluster}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{of}-{cluster}",
            "namespace": SPACE,
            "labels": {f"multicluster.kubernetes.io/{key}": value for key, value in labels.items()},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane) -> Iterator[ApiClient]:
    with client(control_plane) as api:
        api.create("namespaces", {"metadata": {"name": SPACE}})
        yield api


@pytest.fixture(scope="module")
def served(control_plane: ControlPlane, api: ApiClient) -> Iterator[Served]:
    access = f"kubeconfig {control_plane.reader}\nmulticluster clusterset.local\nzonal"
    with serving(control_plane.state, access, zones="clusterset.local") as served:
        yield served


@contextmanager
def granted(control_plane: ControlPlane) -> Iterator[None]:
    """What deploy/ grants for it, to the user of these tests, as long as this lasts."""
    (patch,) = yaml.safe_load(COMPONENT.read_text())["patches"]
    rule = yaml.safe_load(patch["patch"])[0]["value"]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "imports"}
    bound = yaml.safe_load(control_plane.kubectl("get", "clusterrolebinding", "reader", "-o", "yaml"))["subjects"]
    version = "rbac.authorization.k8s.io/v1"
    control_plane.apply(
        {"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": "imports"}, "rules": [rule]},
        {
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "imports"},
            "roleRef": role,
            "subjects": bound,
        },
    )
    try:
        yield
    finally:
        control_plane.kubectl("delete", "clusterrole/imports", "clusterrolebinding/imports")


async def test_imports_from_forbidden_to_gone(control_plane: ControlPlane, api: ApiClient, served: Served) -> None:
    """One history of ServiceImports; the names of this cluster are answered throughout."""

    async def ready(text: str) -> None:
        status, body = 0, ""
        deadline = time.monotonic() + SOON
        while text not in body and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            status, body = await http_get(served.http, "/ready")
        assert text in body and (status == 200) == (text == "OK"), body

    await ready("kubernetes: serviceimports: list: 403 Forbidden")
    assert served.ask(f"web.{SUFFIX}") == UNKNOWN
    assert served.ask("kubernetes.default.svc.cluster.local.") - NOWHERE - UNKNOWN
    with granted(control_plane), ExitStack() as stack:
        await ready("kubernetes: serviceimports: list: 404")
        assert served.ask(f"web.{SUFFIX}") == UNKNOWN
        assert served.ask("no-such.default.svc.cluster.local.") == NOWHERE
        remove = ("delete", "--ignore-not-found", "crd", CRD["metadata"]["name"])
        stack.callback(control_plane.kubectl, *remove)
        control_plane.apply(CRD)
        until(lambda: served.ask(f"web.{SUFFIX}") == NOWHERE, SOON)
        await ready("OK")
        control_plane.kubectl("wait", "--for=condition=Established", f"crd/{CRD['metadata']['name']}", "--timeout=30s")
        control_plane.apply(
            service_import("web", "10.112.0.1", "fd00:112::1"),
            service_import("db"),
            endpoint_slice("db", "east", "203.0.113.1"),
            endpoint_slice("db", "west", "203.0.113.2"),
        )
        until(lambda: served.ask(f"web.{SUFFIX}") == {"10.112.0.1"}, SOON)
        until(lambda: served.ask(f"db.{SUFFIX}") == {"203.0.113.1", "203.0.113.2"}, SOON)
        assert served.ask(f"web.{SUFFIX}", "AAAA") == {"fd00:112::1"}
        assert served.ask(f"_http._tcp.web.{SUFFIX}", "SRV") == {f"0 80 web.{SUFFIX}"}
        assert served.ask(f"203-0-113-2.west.db.{SUFFIX}") == {"203.0.113.2"}
        assert served.ask(f"203-0-113-2.east.db.{SUFFIX}") == NOWHERE
        assert served.ask(f"db.{SPACE}.svc.cluster.local.") == NOWHERE
        control_plane.kubectl("delete", "-n", SPACE, "endpointslice", "db-east")
        until(lambda: served.ask(f"db.{SUFFIX}") == {"203.0.113.2"}, SOON)
        control_plane.kubectl(*remove)
        until(lambda: served.ask(f"web.{SUFFIX}") == NOWHERE, SOON)
        assert served.ask("kubernetes.default.svc.cluster.local.") - NOWHERE - UNKNOWN


def test_topology_zones_are_those_of_the_nodes(control_plane: ControlPlane, served: Served) -> None:
    meta: Object = {"name": "spread", "namespace": SPACE}
    selector = {"app": "spread"}
    container = {"name": "x", "image": "x"}
    spread = {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": selector},
    }
    pod = {"metadata": {"labels": selector}, "spec": {"containers": [container], "topologySpreadConstraints": [spread]}}
    control_plane.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"replicas": NODES, "selector": {"matchLabels": selector}, "template": pod},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"clusterIP": "None", "selector": selector, "ports": [{"port": 80}]},
        },
    )
    name = f"spread.{SPACE}.svc.cluster.local."
    until(lambda: len(served.ask(name) - NOWHERE - UNKNOWN) == NODES, SOON)
    by_zone = [served.ask(f"zone-{number}.pin._zone.{name}") for number in range(NODES)]
    assert all(len(addresses) == 1 for addresses in by_zone)
    assert frozenset().union(*by_zone) == served.ask(name) == served.ask(f"elsewhere.prefer._zone.{name}")
    assert served.ask(f"elsewhere.pin._zone.{name}") == frozenset()
