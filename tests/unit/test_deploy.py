"""What deploy/kubernetes renders to, and the Dockerfile: fields the API knows, and what an operator relies on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdns
from kdns import corefile, plugins, values
from tests.kubemodels import check

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "kubernetes"
EVERYTHING = (".", "overlays/replace-coredns", "overlays/replace-coredns-autoscaled", "nodelocal")
REPLACE = "overlays/replace-coredns"
AUTOSCALED = "overlays/replace-coredns-autoscaled"

Manifest = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the manifests")


@cache
def rendered(path: str) -> tuple[Manifest, ...]:
    """The objects that ``kubectl apply -k`` would send."""
    text = subprocess.check_output(["kubectl", "kustomize", str(DEPLOY / path)], text=True)
    return tuple(yaml.safe_load_all(text))


def find(path: str, kind: str, name: str) -> Manifest:
    (found,) = [one for one in rendered(path) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def names(path: str) -> set[tuple[str, str]]:
    return {(one["kind"], one["metadata"]["name"]) for one in rendered(path)}


def pod_spec(path: str, kind: str, name: str) -> Manifest:
    spec: Manifest = find(path, kind, name)["spec"]["template"]["spec"]
    return spec


def container(path: str, kind: str, name: str) -> Manifest:
    (found,) = pod_spec(path, kind, name)["containers"]
    one: Manifest = found
    return one


SERVERS = (
    (".", "Deployment", "kdns"),
    (REPLACE, "Deployment", "coredns"),
    ("nodelocal", "DaemonSet", "node-local-dns"),
)
DEPLOYMENTS = SERVERS[:2]
each_server = pytest.mark.parametrize("server", SERVERS, ids=[name for _, _, name in SERVERS])
each_deployment = pytest.mark.parametrize("server", DEPLOYMENTS, ids=[name for _, _, name in DEPLOYMENTS])


# --- the API's schemas -----------------------------------------------------------------------------------------------


@needs_kubectl
@pytest.mark.parametrize("path", EVERYTHING)
def test_the_api_knows_every_field(path: str) -> None:
    for one in rendered(path):
        check(one)


@pytest.mark.parametrize(
    "spec",
    [
        {"port": []},
        {"ports": [{"port": "53"}]},
        {"ports": [{"name": "dns"}]},
        {"ports": [{"port": 53, "node_port": 5}]},
        {"selector": {"a": 1}},
    ],
)
def test_the_check_finds_mistakes(spec: Manifest) -> None:
    good: Manifest = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 53, "targetPort": "dns"}]}}
    check(good)
    with pytest.raises((ValueError, AssertionError)):
        check(good | {"spec": spec})


@needs_kubectl
@pytest.mark.parametrize("path", EVERYTHING)
def test_everything_is_in_kube_system(path: str) -> None:
    for one in rendered(path):
        cluster_wide = one["kind"] in ("ClusterRole", "ClusterRoleBinding")
        assert one["metadata"].get("namespace") == (None if cluster_wide else "kube-system")


# --- what is there ---------------------------------------------------------------------------------------------------


@needs_kubectl
def test_the_default_stands_beside_coredns() -> None:
    assert names(".") == {
        ("ServiceAccount", "kdns"),
        ("ClusterRole", "system:kdns"),
        ("ClusterRoleBinding", "system:kdns"),
        ("ConfigMap", "kdns"),
        ("Service", "kdns"),
        ("Deployment", "kdns"),
        ("PodDisruptionBudget", "kdns"),
    }
    assert not names(".") & names(REPLACE)
    assert "kube-dns" not in subprocess.check_output(["kubectl", "kustomize", str(DEPLOY)], text=True)
    assert "clusterIP" not in find(".", "Service", "kdns")["spec"]


@needs_kubectl
def test_the_overlay_has_corednss_names() -> None:
    assert names(REPLACE) == {
        ("ServiceAccount", "coredns"),
        ("ClusterRole", "system:coredns"),
        ("ClusterRoleBinding", "system:coredns"),
        ("ConfigMap", "coredns"),
        ("Service", "kube-dns"),
        ("Deployment", "coredns"),
        ("PodDisruptionBudget", "coredns"),
    }
    deployment = find(REPLACE, "Deployment", "coredns")
    assert deployment["metadata"]["labels"]["k8s-app"] == "kube-dns"
    assert deployment["spec"]["selector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert deployment["spec"]["template"]["metadata"]["labels"] == {"k8s-app": "kube-dns"}
    # `kubectl apply` merges containers, volumes and mounts by these names: others would be added to CoreDNS's.
    assert container(*SERVERS[1])["name"] == "coredns"
    assert [volume["name"] for volume in pod_spec(*SERVERS[1])["volumes"]] == ["config-volume"]
    assert container(*SERVERS[1])["volumeMounts"] == [
        {"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": True}
    ]


@needs_kubectl
def test_the_service_of_the_cluster() -> None:
    service = find(REPLACE, "Service", "kube-dns")
    assert service["metadata"]["labels"] == {
        "k8s-app": "kube-dns",
        "kubernetes.io/cluster-service": "true",
        "kubernetes.io/name": "CoreDNS",
    }
    assert service["metadata"]["annotations"] == {"prometheus.io/scrape": "true", "prometheus.io/port": "9153"}
    assert service["spec"]["clusterIP"] == "10.96.0.10"
    assert service["spec"]["selector"] == {"k8s-app": "kube-dns"}
    assert service["spec"]["ports"] == [
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
        {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
    ]


@needs_kubectl
@each_server
def test_references_lead_somewhere(server: tuple[str, str, str]) -> None:
    path, kind, name = server
    there = names(path)
    spec = pod_spec(path, kind, name)
    assert ("ServiceAccount", spec["serviceAccountName"]) in there
    (volume,) = spec["volumes"]
    assert volume["configMap"]["items"] == [{"key": "Corefile", "path": "Corefile"}]
    assert set(find(path, "ConfigMap", volume["configMap"]["name"])["data"]) == {"Corefile"}
    labels = find(path, kind, name)["spec"]["template"]["metadata"]["labels"]
    for one in rendered(path):
        if one["kind"] in ("Service", "PodDisruptionBudget"):
            selector = one["spec"]["selector"]
            assert selector.get("matchLabels", selector) == labels
        if one["kind"] == "ClusterRoleBinding":
            assert (one["roleRef"]["kind"], one["roleRef"]["name"]) in there
            (subject,) = one["subjects"]
            assert (subject["kind"], subject["name"], subject["namespace"]) == (
                "ServiceAccount",
                spec["serviceAccountName"],
                "kube-system",
            )


@needs_kubectl
@each_deployment
def test_rbac_is_to_list_and_to_watch(server: tuple[str, str, str]) -> None:
    path, _, name = server
    rules = find(path, "ClusterRole", f"system:{name}")["rules"]
    assert all(rule["verbs"] == ["list", "watch"] for rule in rules)
    allowed = {(group, resource) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"]}
    needed = {("", "services"), ("", "pods"), ("", "namespaces"), ("discovery.k8s.io", "endpointslices")}
    # CoreDNS's own role has Endpoints, too: the overlay keeps them for the way back.
    assert allowed == needed | ({("", "endpoints")} if path == REPLACE else set())


@needs_kubectl
@pytest.mark.parametrize(("path", "name"), [(".", "kdns"), (REPLACE, "coredns")])
def test_multicluster_adds_one_permission(path: str, name: str, tmp_path: Path) -> None:
    role = find(path, "ClusterRole", f"system:{name}")
    content = {
        "kind": "Kustomization",
        "resources": [os.path.relpath(DEPLOY / path, tmp_path)],
        "components": [os.path.relpath(DEPLOY / "components" / "multicluster", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(content))
    text = subprocess.check_output(["kubectl", "kustomize", str(tmp_path)], text=True)
    added = {"apiGroups": ["multicluster.x-k8s.io"], "resources": ["serviceimports"], "verbs": ["list", "watch"]}
    changed = {**role, "rules": [*role["rules"], added]}
    expected = [changed if one == role else one for one in rendered(path)]
    assert sorted(map(json.dumps, yaml.safe_load_all(text))) == sorted(map(json.dumps, expected))


# --- how a pod runs --------------------------------------------------------------------------------------------------


@needs_kubectl
@each_server
def test_containers_have_no_rights_to_speak_of(server: tuple[str, str, str]) -> None:
    spec = pod_spec(*server)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in (*spec["containers"], *spec.get("initContainers", [])):
        context = one["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"]["drop"] == ["ALL"]
        assert "privileged" not in context
    assert container(*server)["securityContext"]["capabilities"]["add"] == ["NET_BIND_SERVICE"]
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


@needs_kubectl
@each_deployment
def test_a_user_that_is_not_root_may_have_port_53(server: tuple[str, str, str]) -> None:
    context = pod_spec(*server)["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"]) == (True, 65532, 65532)
    assert context["sysctls"] == [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    assert "runAsUser" not in container(*server)["securityContext"]


@needs_kubectl
def test_the_node_cache_may_not_set_sysctls() -> None:
    spec = pod_spec(*SERVERS[2])
    assert spec["hostNetwork"] is True
    assert "sysctls" not in spec["securityContext"]
    assert container(*SERVERS[2])["securityContext"]["runAsUser"] == 0


@needs_kubectl
@each_deployment
def test_a_server_is_replaced_without_a_gap(server: tuple[str, str, str]) -> None:
    path, kind, name = server
    spec = find(path, kind, name)["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    budget = find(path, "PodDisruptionBudget", name)
    assert budget["spec"]["maxUnavailable"] == 1
    pod, one = pod_spec(*server), container(*server)
    readiness = one["readinessProbe"]
    assert (readiness["periodSeconds"], readiness["failureThreshold"]) == (2, 1)
    lameduck = option(path, name, "health", "lameduck")
    proxies_follow = 5
    assert lameduck >= readiness["periodSeconds"] * readiness["failureThreshold"] + proxies_follow
    assert pod["terminationGracePeriodSeconds"] == lameduck + 10


@needs_kubectl
@each_deployment
def test_probes_and_ports(server: tuple[str, str, str]) -> None:
    one = container(*server)
    assert [(port["name"], port["containerPort"], port["protocol"]) for port in one["ports"]] == [
        ("dns", 53, "UDP"),
        ("dns-tcp", 53, "TCP"),
        ("metrics", 9153, "TCP"),
        ("liveness-probe", 8080, "TCP"),
        ("readiness-probe", 8181, "TCP"),
    ]
    probes = {name: one[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    health = {"path": "/health", "port": "liveness-probe", "scheme": "HTTP"}
    ready = {"path": "/ready", "port": "readiness-probe", "scheme": "HTTP"}
    assert probes == {"startupProbe": health, "livenessProbe": health, "readinessProbe": ready}
    assert one["livenessProbe"]["initialDelaySeconds"] == 0
    assert one["args"] == ["-conf", "/etc/coredns/Corefile"]


@needs_kubectl
@each_deployment
def test_place_and_resources(server: tuple[str, str, str]) -> None:
    path, kind, name = server
    spec = pod_spec(*server)
    assert spec["priorityClassName"] == "system-cluster-critical"
    assert spec["dnsPolicy"] == "Default"
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert spec["tolerations"] == [
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
    ]
    assert container(*server)["resources"] == {
        "limits": {"memory": "170Mi"},
        "requests": {"cpu": "100m", "memory": "70Mi"},
    }
    spread = {one["topologyKey"]: one for one in spec["topologySpreadConstraints"]}
    assert set(spread) == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert spread["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
    labels = find(path, kind, name)["spec"]["template"]["metadata"]["labels"]
    assert all(one["maxSkew"] == 1 and one["labelSelector"]["matchLabels"] == labels for one in spread.values())


@needs_kubectl
@each_server
def test_the_image_is_this_version(server: tuple[str, str, str]) -> None:
    assert container(*server)["image"] == f"kdns:{kdns.__version__}"
    for one in pod_spec(*server).get("initContainers", []):
        assert re.fullmatch(r"[a-z./]+:\d+\.\d+\.\d+", one["image"])


# --- autoscaler and node cache ---------------------------------------------------------------------------------------


@needs_kubectl
def test_the_autoscaler() -> None:
    assert "replicas" not in find(AUTOSCALED, "Deployment", "coredns")["spec"]
    for kind, name in names(REPLACE) - {("Deployment", "coredns")}:
        assert find(AUTOSCALED, kind, name) == find(REPLACE, kind, name)
    command = container(AUTOSCALED, "Deployment", "kube-dns-autoscaler")["command"]
    assert "--target=deployment/coredns" in command
    assert "--configmap=kube-dns-autoscaler" in command
    assert json.loads(find(AUTOSCALED, "ConfigMap", "kube-dns-autoscaler")["data"]["linear"]) == {
        "coresPerReplica": 256,
        "nodesPerReplica": 16,
        "preventSinglePointFailure": True,
        "includeUnschedulableNodes": True,
    }
    (scale, configuration) = find(AUTOSCALED, "Role", "kube-dns-autoscaler")["rules"]
    assert (scale["resources"], scale["resourceNames"]) == (["deployments/scale"], ["coredns"])
    assert configuration["resourceNames"] == ["kube-dns-autoscaler"]


@needs_kubectl
def test_the_node_cache() -> None:
    spec = pod_spec(*SERVERS[2])
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["dnsPolicy"] == "Default"
    assert {"effect": "NoExecute", "operator": "Exists"} in spec["tolerations"]
    assert {"effect": "NoSchedule", "operator": "Exists"} in spec["tolerations"]
    daemons = find("nodelocal", "DaemonSet", "node-local-dns")["spec"]
    assert daemons["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": "10%"}
    (address,) = spec["initContainers"]
    assert address["securityContext"]["capabilities"]["add"] == ["NET_ADMIN"]
    local = container(*SERVERS[2])["livenessProbe"]["httpGet"]["host"]
    assert f"ip addr add {local}/32" in address["command"][-1]
    assert find("nodelocal", "ServiceAccount", "node-local-dns")["automountServiceAccountToken"] is False
    blocks = parsed("nodelocal", "node-local-dns").blocks
    assert [block.keys[0].text for block in blocks] == ["cluster.local:53", "in-addr.arpa:53", "ip6.arpa:53", ".:53"]
    for block in blocks:
        options = {directive.name: directive for directive in block.directives}
        assert options["bind"].args == (local,)
        cluster = options["forward"].args == (".", "10.96.0.10")
        assert cluster == (block.keys[0].text != ".:53")
        assert bool(options["forward"].body) == cluster


@needs_kubectl
def test_the_lameduck_of_a_node_cache_would_keep_its_port_from_the_next() -> None:
    health = parsed("nodelocal", "node-local-dns").blocks[0].directives[-1]
    assert (health.name, health.args, health.body) == ("health", ("169.254.20.10:8080",), None)


# --- components ------------------------------------------------------------------------------------------------------


@needs_kubectl
@pytest.mark.parametrize(("resource", "name"), [("base", "kdns"), (REPLACE, "coredns")])
def test_a_place_for_snapshots(tmp_path: Path, resource: str, name: str) -> None:
    """With the component the one container may write to one place; nothing else changes."""
    shutil.copytree(DEPLOY, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes" / "mine"
    mine.mkdir()
    kustomization = {"resources": [f"../{resource}"], "components": ["../components/snapshot"]}
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    text = subprocess.check_output(["kubectl", "kustomize", str(mine)], text=True)
    changed = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}
    for one in changed.values():
        check(one)
    plain = {(one["kind"], one["metadata"]["name"]): one for one in rendered(resource)}
    spec = changed["Deployment", name]["spec"]["template"]["spec"]
    assert spec["volumes"].pop() == {"name": "snapshot", "emptyDir": {"sizeLimit": "256Mi"}}
    assert spec["containers"][0]["volumeMounts"].pop() == {"name": "snapshot", "mountPath": "/var/lib/kdns"}
    assert changed == plain


# --- Corefiles -------------------------------------------------------------------------------------------------------


def parsed(path: str, name: str) -> corefile.Corefile:
    text = find(path, "ConfigMap", name)["data"]["Corefile"]

    def nothing(_: str) -> Any:
        raise AssertionError("it imports nothing")

    return corefile.parse(text, "Corefile", env={}, read=nothing, glob=nothing)


def option(path: str, name: str, directive: str, wanted: str) -> float:
    """An option's duration."""
    (found,) = [one for one in parsed(path, name).blocks[0].directives if one.name == directive]
    (value,) = [one.args[0] for one in found.body or () if one.name == wanted]
    return values.duration(value)


@needs_kubectl
@each_server
def test_corefiles(server: tuple[str, str, str]) -> None:
    path, _, name = server
    read = parsed(path, name)
    assert read.warnings == ()
    for block in read.blocks:
        for directive in block.directives:
            assert plugins.find(directive.name).name == directive.name


@needs_kubectl
def test_the_overlays_corefile_is_one_that_coredns_reads() -> None:
    """So the way back is open: no directive or option of it is kdns's own."""
    binary = shutil.which("coredns")
    if binary is None:
        pytest.skip("needs coredns on PATH")
    text = find(REPLACE, "ConfigMap", "coredns")["data"]["Corefile"]
    # Without a cluster CoreDNS gives up at the kubernetes plugin, after all directives have been recognised.
    found = subprocess.run(
        [binary, "-conf", "stdin", "-dns.port", "0"],
        input=text.replace(".:53", ".:0"),
        capture_output=True,
        text=True,
        timeout=20,
        env={key: value for key, value in os.environ.items() if not key.startswith("KUBERNETES_")},
        check=False,
    )
    assert "unable to load in-cluster configuration" in found.stderr + found.stdout


# --- Dockerfile ------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def stages() -> list[list[tuple[str, str]]]:
    out: list[list[tuple[str, str]]] = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            out.append([])
        out[-1].append(instruction)
    return out


def test_the_image_has_two_stages_of_one_python() -> None:
    build, final = stages()
    assert build[0][1] == "python:3.13-slim-trixie AS build"
    assert final[0][1] == "gcr.io/distroless/python3-debian13"
    entrypoint = json.loads(dict(final)["ENTRYPOINT"])
    assert entrypoint == ["/usr/bin/python3.13", "-m", "kdns"]


def test_the_final_stage_only_copies() -> None:
    final = dict(stages()[-1])
    assert set(final) == {"FROM", "COPY", "ENV", "USER", "WORKDIR", "EXPOSE", "ENTRYPOINT"}
    assert final["COPY"] == "--from=build /app /app"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final["USER"])
    environment = dict(pair.split("=") for pair in final["ENV"].split())
    assert environment == {
        "PYTHONPATH": "/app",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "KDNS_COMPILED": "must",
    }


def test_the_image_is_compiled() -> None:
    commands = [rest for word, rest in stages()[0] if word == "RUN"]
    assert any("gcc" in command for command in commands)
    assert any(command.startswith("KDNS_COMPILED=must pip install") for command in commands)
    assert "**/*.so" in (ROOT / ".dockerignore").read_text().splitlines()


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [source for word, rest in stages()[0] if word == "COPY" for source in rest.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


@needs_kubectl
@each_deployment
def test_the_image_and_the_pod_agree(server: tuple[str, str, str]) -> None:
    final = dict(stages()[-1])
    context = pod_spec(*server)["securityContext"]
    assert final["USER"] == f"{context['runAsUser']}:{context['runAsGroup']}"
    exposed = {tuple(port.split("/")) for port in final["EXPOSE"].split()}
    assert exposed == {(str(p["containerPort"]), p["protocol"].lower()) for p in container(*server)["ports"]}
