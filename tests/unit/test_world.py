"""What a set of manifests amounts to: Namespaces, cluster IPs, endpoints, and what contradicts itself."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from kdns.cluster import endpoints, objects
from kdns.cluster.documents import read
from kdns.cluster.objects import IMPORTS, KINDS, ObjectError
from kdns.cluster.selectors import EVERYTHING, Selector, parse
from kdns.cluster.world import Entry, World, build, entry
from kdns.name import address_text, pack_address
from tests.support import ROOT

ALL = dict.fromkeys(KINDS, EVERYTHING)
READY = "status: {podIP: %s, conditions: [{type: Ready, status: 'True'}]}"


def entries(text: str, file: str = "f.yaml") -> list[Entry]:
    return [entry(document) for document in read(text, file)]


def world(text: str, kinds: Mapping[str, Selector] = ALL) -> World:
    return build(entries(text), kinds, {})


def names(found: World, kind: str) -> list[str]:
    return sorted(b"/".join(key).decode() for key in found.objects[kind])


def service(found: World, name: str) -> objects.Service:
    one = found.objects["services"][b"default", name.encode()]
    assert isinstance(one, objects.Service)
    return one


def addresses(found: World, service: str, namespace: str = "default") -> list[tuple[str, str]]:
    """(address, hostname) of a Service's ready endpoints."""
    out: list[tuple[str, str]] = []
    for one in found.objects["endpointslices"].values():
        assert isinstance(one, objects.EndpointSlice)
        if (one.namespace.decode(), one.service.decode()) == (namespace, service):
            packed = [one.addresses[at : at + one.width] for at in range(0, len(one.addresses), one.width)]
            hostnames = one.hostnames.split(b"\0") if one.hostnames else [b""] * len(packed)
            out += [(address_text(a), h.decode()) for a, h in zip(packed, hostnames, strict=True)]
    return out


def manifest(kind: str, name: str, rest: str = "", version: str = "v1", namespace: str = "") -> str:
    where = f", namespace: {namespace}" if namespace else ""
    return f"---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{where}}}\n{rest}\n"


def pod(name: str, address: str, labels: str = "app: web", spec: str = "{}", namespace: str = "default") -> str:
    meta = f"{{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}"
    return f"---\napiVersion: v1\nkind: Pod\nmetadata: {meta}\nspec: {spec}\n{READY % address}\n"


def slice_(name: str, labels: str, address: str) -> str:
    meta = f"metadata: {{name: {name}, labels: {{{labels}}}}}"
    return (
        f"---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n{meta}\n"
        f"addressType: IPv4\nendpoints: [{{addresses: [{address}]}}]\nports: []\n"
    )


def import_(name: str, spec: str) -> str:
    return manifest("ServiceImport", name, f"spec: {spec}", version="multicluster.x-k8s.io/v1alpha1")


WEB = manifest("Service", "web", "spec: {clusterIP: None, selector: {app: web}}")

# --- Namespaces ------------------------------------------------------------------------------------------------------


def test_namespaces_that_objects_name_exist() -> None:
    found = world(
        manifest("Namespace", "declared")
        + manifest("Namespace", "default")
        + manifest("Service", "a", "spec: {}")
        + manifest("Service", "b", "spec: {}", namespace="dev")
        + manifest("ConfigMap", "c", namespace="config")
        + manifest("ClusterRole", "d", version="rbac.authorization.k8s.io/v1")
    )
    assert names(found, "namespaces") == ["/config", "/declared", "/default", "/dev"]


def test_other_kinds_are_left_alone() -> None:
    found = world(
        manifest("Service", "knative", "spec: 5", version="serving.knative.dev/v1")
        + "---\napiVersion: v1\nkind: ConfigMap\n"
        + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: []\n"
        + manifest("Deployment", "d", "spec: {replicas: 3}", version="apps/v1", namespace="dev") * 2
        + manifest("EndpointSlice", "old", version="discovery.k8s.io/v1beta1", namespace="dev")
    )
    assert {kind: names(found, kind) for kind in KINDS if kind != "namespaces"} == {
        "services": [],
        "endpointslices": [],
        "pods": [],
    }


# --- cluster IPs -----------------------------------------------------------------------------------------------------


def test_cluster_ips() -> None:
    found = world(
        manifest("Service", "stated", "spec: {clusterIP: 10.96.0.10}")
        + manifest("Service", "both", "spec: {clusterIP: 10.96.0.11, clusterIPs: [10.96.0.11, 'fd00::b']}")
        + manifest("Service", "second", "spec: {clusterIP: 10.96.0.12, ipFamilyPolicy: PreferDualStack}")
        + manifest("Service", "none", "spec: {type: NodePort}")
        + manifest("Service", "six", "spec: {ipFamilies: [IPv6]}")
        + manifest("Service", "headless", "spec: {clusterIP: None}")
        + manifest("Service", "external", "spec: {type: ExternalName, externalName: x.org}")
    )
    own = {name: tuple(map(address_text, service(found, name).addresses)) for name in ("stated", "both")}
    assert own == {"stated": ("10.96.0.10",), "both": ("10.96.0.11", "fd00::b")}
    allotted = {key[1]: address_text(address) for key, address in found.allotted.items()}
    assert set(allotted) == {"second", "none", "six"}
    assert allotted["second"].startswith("fd00:10:96::")
    assert address_text(service(found, "second").addresses[0]) == "10.96.0.12"
    assert tuple(map(address_text, service(found, "none").addresses)) == (allotted["none"],)
    assert tuple(map(address_text, service(found, "six").addresses)) == (allotted["six"],)
    assert service(found, "headless").headless
    assert service(found, "headless").addresses == service(found, "external").addresses == ()


def test_an_allotted_address_stays_until_somebody_states_it() -> None:
    first = world(manifest("Service", "a", "spec: {}"))
    (address,) = first.allotted.values()
    claimed = manifest("Service", "b", f"spec: {{clusterIP: {address_text(address)}}}")
    again = build(entries(manifest("Service", "a", "spec: {}") + claimed), ALL, first.allotted)
    assert service(again, "b").addresses == (address,)
    assert service(again, "a").addresses != (address,)


# --- endpoints -------------------------------------------------------------------------------------------------------


def test_endpoints_follow_from_pods_of_the_namespace() -> None:
    text = WEB + pod("a", "10.0.0.1") + pod("b", "10.0.0.2", spec="{hostname: h, subdomain: web}")
    text += pod("c", "10.0.0.3", namespace="dev") + pod("d", "10.0.0.4", labels="app: db")
    assert addresses(world(text), "web") == [("10.0.0.1", ""), ("10.0.0.2", "h")]


def test_services_without_pods_or_selector() -> None:
    text = WEB + manifest("Service", "plain", "spec: {}") + pod("a", "10.0.0.1", labels="x: y")
    assert names(world(text), "endpointslices") == []


def test_identity_of_stateful_set_pods() -> None:
    spec = "spec: {serviceName: web, selector: {matchLabels: {app: web}}}"
    text = WEB + manifest("StatefulSet", "db", spec, version="apps/v1") + pod("db-0", "10.0.0.1") + pod("x", "10.0.0.2")
    assert addresses(world(text), "web") == [("10.0.0.1", "db-0"), ("10.0.0.2", "")]


def test_written_slices_count_beside_derived_ones() -> None:
    text = WEB + pod("a", "10.0.0.1") + slice_("extra", "kubernetes.io/service-name: web", "10.0.0.9")
    assert sorted(addresses(world(text), "web")) == [("10.0.0.1", ""), ("10.0.0.9", "")]


def test_slices_of_a_cluster_that_was_written_out_count_as_they_are() -> None:
    managed = "endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io"
    text = WEB + pod("a", "10.0.0.1") + slice_("web-x", f"kubernetes.io/service-name: web, {managed}", "10.0.0.9")
    assert addresses(world(text), "web") == [("10.0.0.9", "")]


def test_pods_have_all_their_addresses() -> None:
    text = manifest("Pod", "a", "status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}")
    (one,) = world(text).objects["pods"].values()
    assert isinstance(one, objects.Pod)
    assert one.addresses == (pack_address("10.0.0.1"), pack_address("fd00::1"))


# --- what is wanted --------------------------------------------------------------------------------------------------


def test_only_wanted_kinds() -> None:
    found = world(WEB + pod("a", "10.0.0.1"), {"services": EVERYTHING, "namespaces": EVERYTHING})
    assert set(found.objects) == {"services", "namespaces"}


def test_service_imports_and_their_slices() -> None:
    labels = "multicluster.kubernetes.io/service-name: db, multicluster.kubernetes.io/source-cluster: east"
    text = import_("db", "{type: Headless, ports: []}") + import_("web", "{type: ClusterSetIP, ips: [10.112.0.1]}")
    text += slice_("db-east", f"{labels}, app: a", "10.9.0.1") + slice_(
        "db-1", f"{endpoints.SERVICE_NAME}: db", "10.1.0.1"
    )
    found = world(text, dict.fromkeys((*KINDS, *IMPORTS), EVERYTHING))
    assert names(found, "serviceimports") == ["default/db", "default/web"]
    assert names(found, "importedslices") == ["default/db-east"]
    assert names(found, "endpointslices") == ["default/db-1", "default/db-east"]
    (one,) = found.objects["importedslices"].values()
    assert isinstance(one, objects.ImportedSlice) and (one.service, one.cluster) == (b"db", b"east")
    # With the selectors of `Settings`.
    chosen = {"importedslices": parse("app=b,multicluster.kubernetes.io/service-name")}
    assert names(world(text, chosen), "importedslices") == []
    assert set(world(text).objects) == set(KINDS)


def test_label_selectors() -> None:
    text = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {tier: front}}\nspec: {selector: {app: web}}\n"
        + WEB
        + pod("p", "10.0.0.1")
        + pod("q", "10.0.0.2", labels="tier: front")
        + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: labelled, labels: {tier: front}}\n"
        + pod("r", "10.0.0.3", namespace="implied")
    )
    front = parse("tier=front")
    found = world(text, dict.fromkeys(KINDS, front))
    assert names(found, "services") == ["default/a"]
    assert names(found, "endpointslices") == ["default/a/IPv4/0"]
    assert names(found, "pods") == ["default/q"]
    assert names(found, "namespaces") == ["/labelled"]
    named = world(text, {"namespaces": parse("kubernetes.io/metadata.name in (implied, labelled)")})
    assert names(named, "namespaces") == ["/implied", "/labelled"]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "metadata: {name: a}\nspec: {ports: [{port: x}]}",
            "f.yaml:3: Service default/a: Expected `int | null`, got `str`",
        ),
        ("metadata: {name: a}\nspec: {ports: [{port: 70000}]}", "f.yaml:3: Service default/a: "),
        ("metadata: {name: a}\nspec: {selector: {a: 1}}", "f.yaml:3: Service default/a: Expected `str`, got `int`"),
        ("metadata: {name: a}\nspec: {clusterIP: x}", "f.yaml:3: Service default/a: clusterIPs: 'x' is not an IP"),
        ("metadata: {name: a, namespace: dev}", "f.yaml:3: Service dev/a: "),
        ("metadata: {name: a.b}\nspec: {}", "f.yaml:3: Service default/a.b: 'a.b' is not a domain-name label"),
        ("metadata: {name: A}\nspec: {}", "f.yaml:3: Service default/A: names have no capital letters"),
        ("metadata: {name: ''}\nspec: {}", "f.yaml:3: Service"),
        ("metadata: {generateName: a}\nspec: {}", "f.yaml:3: Service: Object missing required field `name`"),
        ("metadata: {name: 5}\nspec: {}", "f.yaml:3: Service: Expected `str`, got `int`"),
        ("metadata: {name: a, labels: {b: 1}}\nspec: {}", "f.yaml:3: Service: Expected `str`, got `int`"),
        ("metadata: []", "f.yaml:3: Service: Expected `object`"),
        ("spec: {}", "f.yaml:3: Service: Object missing required field `metadata`"),
    ],
)
def test_services_that_make_no_sense(text: str, reason: str) -> None:
    with pytest.raises(ObjectError) as caught:
        entries(f"# first\n---\napiVersion: v1\nkind: Service\n{text}\n")
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (manifest("Pod", "a", "status: {podIP: 10.0.0.256}"), "Pod default/a: '10.0.0.256' is not an IP address"),
        (manifest("Pod", "a", "status: {conditions: {}}"), "Pod default/a: Expected `array"),
        (slice_("a", "", "10.0.0.999"), "EndpointSlice default/a: '10.0.0.999' is not an IP address"),
        (slice_("a", "", "'fd00::1'"), "EndpointSlice default/a: address fd00::1 is not IPv4"),
        (slice_("a", "", "x").replace("IPv4", "IPv5"), "EndpointSlice default/a: addressType 'IPv5' is none of"),
        (slice_("a", "", "x").replace("addressType: IPv4", ""), "EndpointSlice default/a: Object missing"),
        (
            manifest("StatefulSet", "a", version="apps/v1"),
            "StatefulSet default/a: Object missing required field `spec`",
        ),
        (import_("a", "{type: Nope, ports: []}"), "ServiceImport default/a: Invalid enum value 'Nope'"),
        (import_("a", "{ports: []}"), "ServiceImport default/a: Object missing required field `type`"),
        (import_("a", "{type: ClusterSetIP, ips: [x]}"), "ServiceImport default/a: 'x' is not an IP address"),
        (manifest("Namespace", "a b"), "Namespace a b: 'a b' is not a domain-name label"),
    ],
)
def test_other_kinds_that_make_no_sense(text: str, reason: str) -> None:
    with pytest.raises(ObjectError) as caught:
        entries(text)
    assert str(caught.value).startswith(f"f.yaml:2: {reason}")


def test_names_instead_of_addresses_are_for_somebody_else() -> None:
    (one,) = entries(slice_("a", "kubernetes.io/service-name: web", "x.org").replace("IPv4", "FQDN"))
    assert isinstance(one.object, objects.EndpointSlice)
    assert one.object.addresses == b""


def test_the_namespace_of_other_kinds_must_be_one() -> None:
    with pytest.raises(ObjectError, match=r"f.yaml:2: .*'a\.b' is not a domain-name label"):
        world(manifest("ConfigMap", "c", namespace="a.b"))


FRAGMENTS = (
    *(
        "null",
        "[]",
        "{}",
        "*a",
        "&a ",
        "'",
        '"',
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "\n",
        "\t",
        "---\n",
        "|",
        "? ",
        "<<: ",
    ),
    *("-1", "0x", "1e999", "99999999999999999999", "true", "~", ".inf", "!!binary x", "!!set {a}", "!!bool x", "\x00"),
)


def test_whatever_is_written_is_a_world_or_an_error_with_its_place() -> None:
    choose = random.Random(1)
    files = sorted((ROOT / "examples" / "cluster").glob("*.yaml"))
    texts = [text for file in files for text in file.read_text().split("---\n")]
    worlds = 0
    for _ in range(1000):
        text = choose.choice(texts)
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(len(text) + 1)
            text = text[:at] + choose.choice(FRAGMENTS) + text[at + choose.randrange(8) :]
        try:
            worlds += len(world(text).objects) > 0
        except ObjectError as error:
            assert str(error).startswith("f.yaml:")
    assert worlds > 100


def test_duplicates() -> None:
    both = entries(manifest("Service", "a", "spec: {}")) + entries(WEB + manifest("Service", "a", "spec: {}"), "g.yaml")
    with pytest.raises(ObjectError, match=r"^g.yaml:7: Service default/a: stands in f.yaml:2, too$"):
        build(both, ALL, {})
    world(manifest("Service", "a", "spec: {}") + manifest("Service", "a", "spec: {}", namespace="dev"))
    world(manifest("Service", "a", "spec: {}") + manifest("Pod", "a"))


def test_a_cluster_ip_is_stated_once() -> None:
    text = manifest("Service", "a", "spec: {clusterIP: 10.96.0.1}") + manifest(
        "Service", "b", "spec: {clusterIP: 10.96.0.1}"
    )
    with pytest.raises(ObjectError, match=r"Service default/b: its cluster IP is that of f\.yaml:2, too"):
        world(text)
