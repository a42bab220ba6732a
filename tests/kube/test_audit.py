"""The self-audit against a real API server: metadata lists, their pages, and lists of one object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kdns.cluster import auditor, http
from kdns.cluster.cluster import Cluster, Settings
from kdns.log import Logger
from kdns.metrics import Metrics
from tests.apitest import come_true, counted
from tests.kube.apiclient import ApiClient, client
from tests.kube.controlplane import ControlPlane
from tests.kube.test_trouble import endpoint_slice
from tests.support import captured_log

Object = dict[str, Any]
SPACE = "audited"
ADDRESS = "198.51.100.129"
"""Of no other test here: reverse names are shared by all namespaces."""
KINDS = ("namespaces", "services", "endpointslices", "pods")


def made(kind: str, name: str) -> Object:
    meta = {"name": name, "namespace": SPACE}
    if kind == "services":
        return {"metadata": meta, "spec": {"ports": [{"name": "http", "port": 80}]}}
    if kind == "pods":
        # No scheduler of ours takes it, and no controller asks for it.
        spec = {"schedulerName": "nobody", "containers": [{"name": "x", "image": "x"}]}
        return {"metadata": meta, "spec": spec}
    if kind == "endpointslices":
        item = endpoint_slice(name, ADDRESS)
        return item | {"metadata": item["metadata"] | {"namespace": SPACE}}
    return {"metadata": {"name": name}}


def create(api: ApiClient, kind: str, name: str) -> None:
    api.create(kind, made(kind, name))


def delete(api: ApiClient, kind: str, name: str) -> None:
    if kind == "pods":
        api.request("DELETE", f"api/v1/namespaces/{SPACE}/pods/{name}?gracePeriodSeconds=0")
    else:
        api.delete(kind, "" if kind == "namespaces" else SPACE, name)


@pytest.fixture
def api(control_plane: ControlPlane) -> Any:
    with client(control_plane) as api:
        yield api


@pytest.fixture(autouse=True)
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """No watch tells of objects whose names begin with ``lost``."""
    lines = http.Response.lines

    async def heard(response: http.Response) -> list[bytes] | None:
        found = await lines(response)
        return found and [line for line in found if b'"name":"lost' not in line]

    monkeypatch.setattr(http.Response, "lines", heard)
    monkeypatch.setattr(auditor, "PAUSE", 0.02)
    monkeypatch.setattr(auditor, "GRACE", 2.0)
    monkeypatch.setattr(auditor, "FIRST_LIMIT", 3)
    monkeypatch.setattr(auditor, "LARGEST", 3)


class Audited:
    def __init__(self, control_plane: ControlPlane) -> None:
        self.metrics = Metrics()
        settings = Settings(kubeconfig=str(control_plane.reader), pods=True, audit=1.0)
        self.cluster = Cluster(settings, lambda facts: None, self.metrics, Logger("kubernetes"))

    def knows(self, kind: str, name: str) -> bool:
        space = b"" if kind == "namespaces" else SPACE.encode()
        return (space, name.encode()) in set(self.cluster.index.names(kind))

    def counted(self, start: str) -> float:
        return counted(self.metrics, f"kdns_kubernetes_{start}")

    def audits(self, kind: str, result: str) -> float:
        return self.counted(f'audits_total{{resource="{kind}",result="{result}"')

    async def until(self, right: Callable[[], bool], seconds: float = 30.0) -> float:
        return await come_true(right, seconds, pause=0.02)


@pytest.fixture
async def audited(control_plane: ControlPlane) -> AsyncIterator[Audited]:
    made = Audited(control_plane)
    made.cluster.start()
    try:
        await made.until(made.cluster.synced.is_set)
        yield made
    finally:
        made.cluster.close()


async def change(api: ApiClient) -> None:
    """Objects come and go, and the watch tells of them, until this is cancelled."""
    number = 0
    while True:
        for kind in KINDS[1:]:
            await asyncio.to_thread(create, api, kind, f"told-{kind}-{number}")
            await asyncio.to_thread(delete, api, kind, f"told-{kind}-{number}")
        number += 1


async def test_what_the_watch_has_lost_is_found_in_pages_of_metadata(
    control_plane: ControlPlane, api: ApiClient, audited: Audited
) -> None:
    with captured_log() as log, client(control_plane) as another:
        create(api, "namespaces", SPACE)
        for kind in KINDS:
            create(api, kind, f"told-{kind}")
            create(api, kind, f"lost-{kind}")
        # Changes that are told are no losses.
        changing = asyncio.create_task(change(another))
        try:
            # As a reader who may list and watch, and not get.
            took = await audited.until(lambda: all(audited.knows(kind, f"lost-{kind}") for kind in KINDS))
            print(f"what was lost is there {took:.1f} s later")
            assert all(audited.knows(kind, f"told-{kind}") for kind in KINDS)
            for kind in KINDS[1:]:
                await asyncio.to_thread(delete, api, kind, f"lost-{kind}")
            await audited.until(lambda: not any(audited.knows(kind, f"lost-{kind}") for kind in KINDS[1:]))
            await audited.until(lambda: all(audited.audits(kind, "done") >= 2 for kind in KINDS[1:]))
            assert not changing.done()
        finally:
            changing.cancel()
            await asyncio.wait([changing])
        for kind in KINDS[1:]:
            assert audited.counted(f'audit_repairs_total{{resource="{kind}"}}') == 2, kind
            assert audited.audits(kind, "failed") == 0, kind
        assert audited.counted("relists_total") == 0
        assert not log.matching("audit: the API server sends whole objects")
        print(f"{audited.counted('audits_total')} audits")
