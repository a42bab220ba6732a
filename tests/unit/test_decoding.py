"""API objects that are read: what is kept, what is refused, and that nothing else is raised."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.cluster import decoding
from kdns.cluster.decoding import Status, decode_event, decode_list, decode_status, from_manifest
from kdns.cluster.objects import (
    IMPORTS,
    KINDS,
    SINGULAR,
    EndpointSlice,
    ImportedSlice,
    Namespace,
    ObjectError,
    Pod,
    Port,
    Service,
    ServiceImport,
    pod_labels,
)
from kdns.name import pack_address

# As `kubectl get -o json` shows them, managed fields and all: fields under a wrong name would be silently empty.
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "Web",
        "namespace": "dev",
        "resourceVersion": "321",
        "uid": "1b2c",
        "creationTimestamp": "2026-11-21T09:44:25Z",
        "annotations": {"a": "b"},
        "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:ports": {".": {}}}}}],
    },
    "spec": {
        "clusterIP": "10.96.0.5",
        "clusterIPs": ["10.96.0.5", "fd00::5"],
        "internalTrafficPolicy": "Cluster",
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": [
            {"name": "Http", "port": 80, "protocol": "TCP", "targetPort": 8080},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
        ],
        "selector": {"app": "web"},
        "sessionAffinity": "None",
        "type": "ClusterIP",
    },
    "status": {"loadBalancer": {}},
}
SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "addressType": "IPv4",
    "metadata": {
        "name": "web-abc",
        "namespace": "dev",
        "resourceVersion": "322",
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-21T09:44:25Z"},
        "labels": {"kubernetes.io/service-name": "web", "app": "web"},
        "ownerReferences": [{"kind": "Service", "name": "web"}],
    },
    "endpoints": [
        {
            "addresses": ["10.1.0.1"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "hostname": "Web-0",
            "nodeName": "n1",
            "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "dev", "uid": "7"},
            "zone": "z1",
        },
        {"addresses": ["10.1.0.2"], "conditions": {"ready": False}},
        {"addresses": ["10.1.0.3"], "conditions": {"ready": None}},
        {"addresses": ["10.1.0.4"], "conditions": None},
        {"addresses": ["10.1.0.5"], "targetRef": {"kind": "Pod", "name": "dotted.name"}},
    ],
    "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": None, "port": None, "protocol": None}],
}
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web-0", "namespace": "dev", "resourceVersion": "9", "labels": {"app": "web"}},
    "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    "status": {
        "phase": "Running",
        "hostIP": "192.0.2.1",
        "podIP": "10.1.0.1",
        "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00:1::1"}],
    },
}
V4, V6 = pack_address("10.96.0.5"), pack_address("fd00::5")


def change(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with another value at ``a.b.c``."""
    copy: dict[str, Any] = json.loads(json.dumps(base))
    at = copy
    *way, last = path.split(".")
    for step in way:
        at = at.setdefault(step, {})
    at[last] = value
    return copy


def event(kind: str, obj: object) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode()


# --- trimming --------------------------------------------------------------------------------------------------------


def test_service() -> None:
    ports = (Port(b"http", b"tcp", 80), Port(b"dns", b"udp", 53))
    assert from_manifest("services", SERVICE) == Service(b"dev", b"web", (V4, V6), ports)


def test_service_without_cluster_ips_has_its_cluster_ip() -> None:
    found = from_manifest("services", change(SERVICE, "spec.clusterIPs", None))
    assert isinstance(found, Service) and found.addresses == (V4,)


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"clusterIPs": ["None"], "clusterIP": "None"}])
def test_headless_service(spec: object) -> None:
    found = from_manifest("services", change(SERVICE, "spec", spec))
    assert found == Service(b"dev", b"web", headless=True)


def test_service_that_has_no_cluster_ip_yet() -> None:
    assert from_manifest("services", change(SERVICE, "spec", {"type": "ClusterIP"})) == Service(b"dev", b"web")


@pytest.mark.parametrize(
    ("target", "wire"),
    [
        ("www.Example.org", b"\x03www\x07Example\x03org\0"),
        ("www.example.org.", b"\x03www\x07example\x03org\0"),
        ("192.0.2.1", b""),
        ("fd00::1", b""),
        ("", b""),
        (None, b""),
        ("a..b", b""),
        ("x" * 64, b""),
    ],
)
def test_external_name(target: object, wire: bytes) -> None:
    found = from_manifest("services", change(SERVICE, "spec", {"type": "ExternalName", "externalName": target}))
    assert found == Service(b"dev", b"web", external=wire)


def test_slice() -> None:
    found = from_manifest("endpointslices", SLICE)
    assert found == EndpointSlice(
        b"dev",
        b"web-abc",
        b"web",
        4,
        bytes([10, 1, 0, 1, 10, 1, 0, 3, 10, 1, 0, 4, 10, 1, 0, 5]),
        b"web-0\0\0\0",
        b"web-0\0\0\0",
        (Port(b"http", b"tcp", 80), Port(b"", b"tcp", 0)),
        "2026-11-21T09:44:25Z",
        b"z1\0\0\0",
    )


def test_slice_with_nulls() -> None:
    bare = {"metadata": {"name": "s", "namespace": "n"}, "addressType": "IPv6", "endpoints": None, "ports": None}
    assert from_manifest("endpointslices", bare) == EndpointSlice(b"n", b"s", b"", 16)
    with_null = change(SLICE, "endpoints", [{"addresses": None, "hostname": None, "targetRef": None}])
    found = from_manifest("endpointslices", with_null)
    assert isinstance(found, EndpointSlice) and found.addresses == b""
    unlabelled = change(change(SLICE, "metadata.labels", None), "metadata.annotations", None)
    found = from_manifest("endpointslices", unlabelled)
    assert isinstance(found, EndpointSlice) and (found.service, found.changed) == (b"", "")


def test_slices_of_names_and_addresses_of_the_other_family_are_left_out() -> None:
    names = change(SLICE, "addressType", "FQDN")
    found = from_manifest("endpointslices", change(names, "endpoints", [{"addresses": ["a.example"]}]))
    assert isinstance(found, EndpointSlice) and found.addresses == b""
    found = from_manifest("endpointslices", change(SLICE, "endpoints", [{"addresses": ["fd00::1", "10.0.0.1", "x"]}]))
    assert isinstance(found, EndpointSlice) and found.addresses == bytes([10, 0, 0, 1])


def test_pod() -> None:
    found = from_manifest("pods", POD)
    assert isinstance(found, Pod)
    assert (found.namespace, found.name) == (b"dev", b"web-0")
    assert found.addresses == (pack_address("10.1.0.1"), pack_address("fd00:1::1"))
    assert pod_labels(found.labels) == {"app": "web"}
    assert not found.terminating


def test_pod_with_the_old_field_only_and_without_any() -> None:
    found = from_manifest("pods", change(POD, "status", {"podIP": "10.1.0.1"}))
    assert isinstance(found, Pod) and found.addresses == (pack_address("10.1.0.1"),)
    found = from_manifest("pods", change(POD, "status", {"podIP": "", "podIPs": [{"ip": None}]}))
    assert isinstance(found, Pod) and found.addresses == ()
    found = from_manifest("pods", {"metadata": {"name": "p"}})
    assert found == Pod(b"default", b"p")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Unknown"])
def test_pods_that_have_ended_have_no_address(phase: str) -> None:
    found = from_manifest("pods", change(POD, "status.phase", phase))
    assert isinstance(found, Pod) and found.addresses == ()


def test_pod_that_is_being_deleted() -> None:
    found = from_manifest("pods", change(POD, "metadata.deletionTimestamp", "2026-11-21T09:44:25Z"))
    assert isinstance(found, Pod) and found.terminating and found.addresses


@pytest.mark.parametrize("labels", [None, {}])
def test_pod_without_labels(labels: object) -> None:
    found = from_manifest("pods", change(POD, "metadata.labels", labels))
    assert isinstance(found, Pod) and pod_labels(found.labels) == {}


def test_namespace() -> None:
    assert from_manifest("namespaces", {"metadata": {"name": "Dev", "labels": {"a": "b"}}}) == Namespace(b"dev")


def test_manifests_without_namespace_are_in_default() -> None:
    found = from_manifest("services", {"metadata": {"name": "s"}, "spec": {}})
    assert found == Service(b"default", b"s")


def test_equal_parts_are_one_object() -> None:
    one, two = from_manifest("services", SERVICE), from_manifest("services", change(SERVICE, "metadata.name", "two"))
    assert isinstance(one, Service) and isinstance(two, Service)
    assert one.ports is two.ports and one.namespace is two.namespace


# --- what makes no sense ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "manifest", "text"),
    [
        ("services", change(SERVICE, "spec.clusterIPs", 4), "Service dev/Web: Expected `array | null`, got `int`"),
        ("services", change(SERVICE, "metadata.name", "a.b"), "Service dev/a.b: 'a.b' is not a domain-name label"),
        ("services", change(SERVICE, "metadata.name", "x" * 64), "is not a domain-name label"),
        ("services", change(SERVICE, "metadata.name", "ä"), "is not a domain-name label"),
        ("services", change(SERVICE, "spec.ports", [{"port": 65536}]), "65536 is not a port number"),
        ("services", change(SERVICE, "spec.ports", [{"port": -1}]), "-1 is not a port number"),
        ("services", change(SERVICE, "kind", "Pod"), "Service dev/Web: its kind is 'Pod'"),
        ("services", {"spec": {}}, "Service without a name: Object missing required field `metadata`"),
        ("services", {"metadata": 5}, "Service without a name"),
        ("endpointslices", change(SLICE, "metadata.labels", {"kubernetes.io/service-name": "a/b c"}), "'a/b c' is not"),
        ("endpointslices", change(SLICE, "metadata.name", ""), "has no name"),
        (
            "endpointslices",
            {"metadata": {"name": "s"}},
            "EndpointSlice default/s: Object missing required field `addressType`",
        ),
        ("pods", change(POD, "status", "Failure"), "Pod dev/web-0: Expected `object | null`, got `str`"),
        ("namespaces", {"metadata": {"name": ""}}, "'' is not a domain-name label"),
        ("services", {"metadata": {"name": object()}}, "Service: Encoding objects of type object is unsupported"),
    ],
)
def test_odd_objects_are_refused_by_name(kind: str, manifest: dict[str, Any], text: str) -> None:
    with pytest.raises(ObjectError, match=r".") as caught:
        from_manifest(kind, manifest)
    assert text in str(caught.value)


# --- lists -----------------------------------------------------------------------------------------------------------


def listed(kind: str, items: object, **meta: object) -> bytes:
    metadata = {"resourceVersion": "77", **meta}
    return json.dumps(
        {"kind": f"{SINGULAR[kind]}List", "apiVersion": "v1", "metadata": metadata, "items": items}
    ).encode()


def test_list() -> None:
    page = decode_list("services", listed("services", [SERVICE], **{"continue": "abc", "remainingItemCount": 7}))
    assert [found.name for found in page.objects] == [b"web"]
    assert (page.odd, page.resource_version, page.continue_) == ([], "77", "abc")


@pytest.mark.parametrize("kind", KINDS)
def test_empty_lists(kind: str) -> None:
    for items in ([], None):
        page = decode_list(kind, listed(kind, items))
        assert (page.objects, page.continue_) == ([], "")


def test_an_odd_object_costs_itself_only() -> None:
    page = decode_list("services", listed("services", [change(SERVICE, "spec", 5), SERVICE]))
    assert [found.name for found in page.objects] == [b"web"]
    assert page.odd == ["Service dev/Web: Expected `object`, got `int` - at `$.spec`"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"items": []}',
        b'{"metadata": {}, "items": []}',
        b'{"metadata": {"resourceVersion": ""}, "items": []}',
        b'{"metadata": {"resourceVersion": "1"}}',
        b'{"metadata": {"resourceVersion": "1"}, "items": {}}',
        b'{"metadata": {"resourceVersion": "1"}, "items": [{}]}',
        b'{"metadata": {"resourceVersion": "1"}, "items": [3]}',
        b'{"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": []}',
        b'{"kind": "Status", "metadata": {"resourceVersion": "1"}, "items": []}',
        b'{"metadata": {"resourceVersion": "1"}, "items": [',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_list_is_refused_as_a_whole(data: bytes) -> None:
    with pytest.raises(ObjectError, match=r"^list of services: "):
        decode_list("services", data)


# --- watches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "obj"), [("services", SERVICE), ("endpointslices", SLICE), ("pods", POD)])
def test_events(kind: str, obj: dict[str, Any]) -> None:
    for word in ("ADDED", "MODIFIED"):
        found = decode_event(kind, event(word, obj))
        assert found.type == word
        assert type(found.object).__name__ == SINGULAR[kind]
        assert (found.namespace, found.resource_version) == (b"dev", obj["metadata"]["resourceVersion"])
    gone = decode_event(kind, event("DELETED", obj))
    assert (gone.type, gone.object, gone.namespace, gone.name) == (
        "DELETED",
        None,
        b"dev",
        obj["metadata"]["name"].encode(),
    )


def test_an_object_that_makes_no_sense_any_more_can_still_be_deleted() -> None:
    assert decode_event("services", event("DELETED", change(SERVICE, "spec", 5))).name == b"Web"


def test_bookmarks() -> None:
    mark = {
        "kind": "Pod",
        "metadata": {"resourceVersion": "12", "creationTimestamp": None},
        "spec": {"containers": None},
    }
    found = decode_event("pods", event("BOOKMARK", mark))
    assert (found.type, found.resource_version, found.initial_end) == ("BOOKMARK", "12", False)
    last = change(mark, "metadata.annotations", {"k8s.io/initial-events-end": "true"})
    assert decode_event("pods", event("BOOKMARK", last)).initial_end


def test_errors() -> None:
    refusal = {
        "kind": "Status",
        "status": "Failure",
        "message": "too old",
        "reason": "Expired",
        "code": 410,
        "details": {"retryAfterSeconds": 3},
    }
    found = decode_event("pods", event("ERROR", refusal))
    assert found.status == Status(410, "Expired", "too old", 3)
    assert decode_status(b'{"code": 429, "details": null}') == Status(429)
    assert decode_status(b"<html>") == decode_status(b"[" * 100_000) == Status()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b"{}",
        b'{"type": "ADDED"}',
        b'{"type": "WHAT", "object": {}}',
        b'{"type": "ADDED", "object": {}}',
        b'{"type": "ADDED", "object": null}',
        b'{"type": "DELETED", "object": {"metadata": {}}}',
        b'{"type": "DELETED", "object": {"kind": "Node", "metadata": {"name": "n", "namespace": "n"}}}',
        b'{"type": "DELETED", "object": {"metadata": {"name": ""}}}',
        b'{"type": "BOOKMARK", "object": {"metadata": {}}}',
        b'{"type": 5, "object": {}}',
        b'{"type": "ADDED", "object": ' + b"[" * 100_000,
        b'{"type": "ADDED", "object": {"metadata": {"name": "\\ud800", "namespace": "n"}}}',
    ],
)
def test_lines_that_make_no_sense(line: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(ObjectError):
            decode_event(kind, line)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
IMPORT: dict[str, Any] = {
    "metadata": {"name": "Web", "namespace": "dev", "labels": {"a": "b"}},
    "spec": {
        "type": "ClusterSetIP",
        "ips": ["10.96.0.5", "fd00::5", "nowhere"],
        "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
    },
}
IMPORTED = change(
    SLICE,
    "metadata.labels",
    {"multicluster.kubernetes.io/service-name": "db", "multicluster.kubernetes.io/source-cluster": "East"},
)


def test_service_import() -> None:
    ports = (Port(b"http", b"tcp", 80), Port(b"dns", b"udp", 53))
    assert from_manifest("serviceimports", IMPORT) == ServiceImport(b"dev", b"web", (V4, V6), ports)
    headless = from_manifest("serviceimports", change(IMPORT, "spec", {"type": "Headless", "ports": None}))
    assert headless == ServiceImport(b"dev", b"web", headless=True)
    assert from_manifest("services", SERVICE) != ServiceImport(b"dev", b"web", (V4, V6), ports)


def test_imported_slice() -> None:
    plain, found = from_manifest("endpointslices", SLICE), from_manifest("importedslices", IMPORTED)
    assert isinstance(plain, EndpointSlice) and isinstance(found, ImportedSlice)
    assert (found.service, found.cluster) == (b"db", b"east")
    assert (found.addresses, found.hostnames, found.ports) == (plain.addresses, plain.hostnames, plain.ports)
    # Its way from the cause to the answers is measured once, and it has no names for topology zones.
    assert (found.changed, found.zones) == ("", b"")


@pytest.mark.parametrize("cluster", [None, "", "a.b", "x" * 64])
def test_a_cluster_that_is_no_label_is_none(cluster: object) -> None:
    label = "multicluster.kubernetes.io/source-cluster"
    found = from_manifest("importedslices", change(IMPORTED, "metadata.labels", {label: cluster}))
    assert isinstance(found, ImportedSlice) and (found.service, found.cluster) == (b"", b"")


@pytest.mark.parametrize(
    ("zone", "kept"),
    [("us-West-2a", b"us-west-2a"), ("rack.example.com", b"rack.example.com"), ("a b", b""), ("a\\b", b""), ("", b"")],
)
def test_zones_are_kept_as_they_are_asked_for(zone: str, kept: bytes) -> None:
    endpoints = [{"addresses": ["10.1.0.1"], "zone": zone}, {"addresses": ["10.1.0.2"]}]
    found = from_manifest("endpointslices", change(SLICE, "endpoints", endpoints))
    assert isinstance(found, EndpointSlice) and found.zones == (kept + b"\0" if kept else b"")


_PATHS = st.sampled_from(
    "kind metadata metadata.name metadata.namespace metadata.labels metadata.annotations spec spec.type spec.clusterIP "
    "spec.clusterIPs spec.ports spec.externalName spec.ips addressType endpoints ports status status.podIPs "
    "status.podIP".split()
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [
            ("services", SERVICE),
            ("endpointslices", SLICE),
            ("pods", POD),
            ("serviceimports", IMPORT),
            ("importedslices", IMPORTED),
        ]
    ),
    _PATHS,
    _JSON,
)
def test_any_value_anywhere_is_taken_or_refused(case: tuple[str, dict[str, Any]], path: str, value: object) -> None:
    kind, base = case
    changed = change(base, path, value)
    for read in (
        lambda: from_manifest(kind, changed),
        lambda: decode_event(kind, event("MODIFIED", changed)),
        lambda: decode_list(kind, listed(kind, [changed, base])),
    ):
        try:
            read()
        except ObjectError as error:
            assert SINGULAR[kind] in str(error) or f"of {kind}: " in str(error)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 2000), st.integers(0, 2000))
def test_cut_and_spliced_bytes_are_taken_or_refused(junk: bytes, start: int, end: int) -> None:
    data = event("ADDED", SLICE)
    broken = data[: start % len(data)] + junk + data[end % len(data) :]
    for read in (decode_event, decode_list):
        with contextlib.suppress(ObjectError):
            read("endpointslices", broken)


def test_every_kind_has_a_codec() -> None:
    assert set(decoding._CODECS) == {*KINDS, *IMPORTS} == set(SINGULAR)
