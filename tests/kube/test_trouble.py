"""The API server, etcd or permissions go away and come back: nobody who asks kdns notices, and the next change is seen.

Each test prints how long things took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.kube.apiclient import ApiClient, attempt, client, until
from tests.kube.controlplane import READER, READING, ControlPlane
from tests.kube.expected import NOWHERE, Expected
from tests.kube.served import Asker, Served, lag, serving
from tests.support import http_get

Object = dict[str, Any]
SPACE = "trouble"
SUFFIX = f"{SPACE}.svc.cluster.local."
SEEN = 5.0
"""Seconds after which the first change afterwards is answered, at most."""
BACK = 60.0
"""Seconds until the API server takes requests again, on a busy machine."""


def service(name: str, **spec: Any) -> Object:
    meta = {"name": name, "namespace": SPACE}
    ports = [{"name": "http", "port": 80}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports, **spec}}


def endpoint_slice(of: str, *addresses: str) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": of, "namespace": SPACE, "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


@pytest.fixture(scope="package")
def api(control_plane: ControlPlane) -> Iterator[ApiClient]:
    with client(control_plane) as api:
        yield api


@pytest.fixture(scope="package")
def known(control_plane: ControlPlane, api: ApiClient) -> Expected:
    """Names that exist throughout, and what they mean."""
    api.create("namespaces", {"metadata": {"name": SPACE}})
    right: Expected = {}
    for number in range(4):
        made = api.create("services", service(f"one-{number}"))
        right[f"one-{number}.{SUFFIX}", "A"] = frozenset({made["spec"]["clusterIP"]})
        right[f"_http._tcp.one-{number}.{SUFFIX}", "SRV"] = frozenset({f"0 80 one-{number}.{SUFFIX}"})
        addresses = [f"203.0.113.{128 + number * 4 + host}" for host in range(3)]
        api.create("services", service(f"many-{number}", clusterIP="None"))
        api.create("endpointslices", endpoint_slice(f"many-{number}", *addresses))
        right[f"many-{number}.{SUFFIX}", "A"] = frozenset(addresses)
    return right


@pytest.fixture(scope="package")
def served(control_plane: ControlPlane, known: Expected) -> Iterator[Served]:
    with serving(control_plane.state, f"kubeconfig {control_plane.reader}") as served:
        until(lambda: all(served.ask(*question) == right for question, right in known.items()), 10)
        yield served


@contextmanager
def nothing_is_lost(served: Served, known: Expected) -> Iterator[Asker]:
    """Somebody asks all the time, and all answers are right."""
    with Asker(served, known) as asker:
        yield asker
    print(f"{asker.asked} queries, the slowest took {asker.slowest * 1000:.1f} ms")
    assert not asker.wrong, (len(asker.wrong), asker.wrong[:5], served.process.read())


def first_change(control_plane: ControlPlane, served: Served, api: ApiClient, name: str) -> None:
    """Make a change as soon as the API server takes one; it is answered soon."""
    full = f"{name}.{SUFFIX}"
    assert served.ask(full) == NOWHERE
    began = time.monotonic()
    until(lambda: attempt(lambda: api.create("services", service(name))), BACK, pause=0.02)
    made = time.monotonic()
    with client(control_plane, READER) as reader:
        # It lets nobody else in until it has read its roles: the time until then is not ours.
        until(lambda: attempt(lambda: reader.request("GET", "api/v1/services?limit=1")), BACK, pause=0.02)
    lag(served, full, NOWHERE.__ne__, time.monotonic(), SEEN)
    print(f"{name}: a change is taken after {made - began:.2f} s, and seen {time.monotonic() - made:.2f} s later")


def test_the_api_server_is_killed(control_plane: ControlPlane, served: Served, known: Expected, api: ApiClient) -> None:
    with nothing_is_lost(served, known):
        with control_plane.without("kube-apiserver"):
            time.sleep(8)
        first_change(control_plane, served, api, "after-the-api-server")


def test_etcd_is_killed(control_plane: ControlPlane, served: Served, known: Expected, api: ApiClient) -> None:
    with nothing_is_lost(served, known):
        with control_plane.without("etcd"):
            time.sleep(5)
        first_change(control_plane, served, api, "after-etcd")


async def test_permissions_are_taken_away(
    control_plane: ControlPlane, served: Served, known: Expected, api: ApiClient
) -> None:
    _, binding = READING
    with nothing_is_lost(served, known), ExitStack() as stack:
        api.delete("clusterrolebindings", "", "reader")
        stack.callback(control_plane.apply, binding)  # whatever comes: the other tests need it
        # What is open stays open: permissions matter for new requests only.
        api.create("services", service("still-open"))
        lag(served, f"still-open.{SUFFIX}", NOWHERE.__ne__, time.monotonic(), SEEN)
        with control_plane.without("kube-apiserver"):
            pass
        until(lambda: attempt(lambda: api.create("services", service("meanwhile"))), BACK, pause=0.05)
        with serving(control_plane.state, f"kubeconfig {control_plane.reader}", ready=0) as newcomer:
            until(lambda: "forbidden" in newcomer.process.read(), 10, pause=0.05)
            assert served.ask(f"meanwhile.{SUFFIX}") == NOWHERE
            assert await readiness(served) == 200
            status, why = await http_get(newcomer.http, "/ready")
            assert status == 503
            assert "services: list: 403 Forbidden" in why
            time.sleep(3)  # until both ask as seldom as they ever do
            reply = newcomer.ask_fully(f"one-0.{SUFFIX}")
            assert "SERVFAIL" in reply.to_text()
            assert "EDE 14" in reply.to_text()
            api.create("clusterrolebindings", binding)
            given = time.monotonic()
            first_change(control_plane, served, api, "after-permissions")
            lag(served, f"meanwhile.{SUFFIX}", NOWHERE.__ne__, given, SEEN)
            ready = lag(newcomer, f"one-0.{SUFFIX}", known[f"one-0.{SUFFIX}", "A"].__eq__, given, SEEN)
            print(f"who started without permissions answers {ready:.3f} s after it got them")
            while await readiness(newcomer) != 200:
                assert time.monotonic() - given < SEEN
                time.sleep(0.05)


async def readiness(served: Served) -> int:
    status, _ = await http_get(served.http, "/ready")
    return status
