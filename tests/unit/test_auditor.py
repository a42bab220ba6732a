"""Finding what the watch has lost, whatever the API server does meanwhile, and nothing else."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kdns import limits
from kdns.cluster import auditor
from kdns.cluster import watch as watches
from kdns.cluster.api import Selection
from kdns.cluster.cluster import Cluster, Settings
from kdns.cluster.objects import KINDS
from kdns.log import Logger
from kdns.metrics import Metrics
from tests.apitest import World, hasten
from tests.fakeapi import FakeApi, Mischief, endpointslice, namespace, pod, service
from tests.fakehttp import Request

INTERVAL = 0.1
ALL = {kind: Selection() for kind in KINDS}


pytestmark = pytest.mark.usefixtures("log")


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """The same, much faster."""
    hasten(monkeypatch)
    monkeypatch.setattr(auditor, "PAUSE", 0.01)
    monkeypatch.setattr(auditor, "GRACE", 0.1)
    monkeypatch.setattr(auditor, "GAP", 0.0)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as api:
        for name in "abc":
            api.put("services", service(name))
        yield api


@pytest.fixture
async def world(api: FakeApi) -> AsyncIterator[World]:
    """One that follows services, is in step, and is audited."""
    async with World(api, audit=INTERVAL) as world:
        await world.until(world.synced)
        await world.until(lambda: api.watching("services"))
        yield world


def repairs(world: World, kind: str = "services") -> float:
    return world.counted(f'kdns_kubernetes_audit_repairs_total{{resource="{kind}"}}')


def audits(world: World, result: str = "done") -> float:
    return world.counted(f'kdns_kubernetes_audits_total{{resource="services",result="{result}"}}')


async def rounds(world: World, count: int = 2, result: str = "done") -> None:
    """Wait for so many more audits."""
    until = audits(world, result) + count
    await world.until(lambda: audits(world, result) >= until)


def of_metadata(request: Request) -> bool:
    return request.bare and request.resource == "services"


def looks(api: FakeApi) -> int:
    """How often single objects were asked for."""
    return sum("metadata.name" in request.query.get("fieldSelector", "") for request in api.requests)


def lose_all(resource: str, lines: list[bytes]) -> list[bytes]:
    return []


def addresses(world: World, name: str) -> tuple[bytes, ...]:
    return world.store.objects["services"]["default", name].addresses


# --- what was lost is found ------------------------------------------------------------------------------------------


async def test_lost_events_are_made_up_for(api, world, log):
    await rounds(world, 1)
    told, api.filter = api.filter, lose_all
    api.put("services", service("new"))
    api.put("services", service("b", cluster_ip="10.96.0.9"))
    api.delete("services", "c")
    api.filter = told
    await world.knows("a", "b", "new")
    await world.until(lambda: addresses(world, "b"))
    await rounds(world)
    assert repairs(world) == 3 and world.counted("kdns_kubernetes_relists_total") == 0
    assert world.store.gone == [("services", ("default", "c"))]
    lines = log.matching("services: audit: 3 put right of which the watch had not told: default/")
    assert len(lines) == 1 and all(f"default/{name}" in lines[0] for name in ("b", "c", "new"))
    api.put("services", service("c"))
    await world.knows("a", "b", "c", "new")
    assert repairs(world) == 3, "the watch goes on"


async def test_one_lost_event_and_then_silence(api, world):
    """Another watch from where this one has come to would tell nothing."""
    api.filter = lose_all
    api.put("services", service("lost"))
    api.filter = lambda resource, lines: lines
    api.put("services", service("told"))
    await world.knows("a", "b", "c", "told")
    await rounds(world, 1)
    await world.knows("a", "b", "c", "lost", "told")


@pytest.mark.parametrize("watchlist", [True, False])
async def test_five_in_a_hundred_events_lost(watchlist):
    luck = random.Random(5)
    async with FakeApi(watchlist=watchlist) as api:
        for number in range(600):
            api.put("services", service(f"s{number}"))
            api.put("endpointslices", endpointslice(f"s{number}", ["10.1.0.1"]))
            api.put("pods", pod(f"p{number}", "10.1.0.1"))
        async with World(api, ALL, audit=INTERVAL) as world:
            await world.until(world.synced)
            await world.until(lambda: all(api.watching(kind) for kind in KINDS))
            api.filter = mischief = Mischief(lose=0.05, seed=1)
            for _ in range(1500):
                change(api, luck)
                if not luck.randrange(20):
                    await asyncio.sleep(0.001)
            api.filter = lambda resource, lines: lines
            await world.until(lambda: known(world) == existing(api), 20)
            total = sum(repairs(world, kind) for kind in KINDS)
            assert mischief.lost > 40 and 20 < total <= mischief.lost, (mischief.lost, total)


def change(api: FakeApi, luck: random.Random) -> None:
    """One change to one object of one kind."""
    number = luck.randrange(600)
    kind = luck.choice(["services", "endpointslices", "pods"])
    name = {"services": f"s{number}", "endpointslices": f"s{number}-1", "pods": f"p{number}"}[kind]
    if luck.random() < 0.3 and api.get(kind, name):
        api.delete(kind, name)
        return
    address = f"10.1.{luck.randrange(256)}.1"
    made = {
        "services": service(f"s{number}", cluster_ip=address),
        "endpointslices": endpointslice(f"s{number}", [address]),
        "pods": pod(f"p{number}", address),
    }
    api.put(kind, made[kind])


def existing(api: FakeApi) -> dict[str, Any]:
    """Of each object its name, and its address."""
    return {kind: {key: address(item) for key, item in api._stores[kind].items.items()} for kind in KINDS}


def address(item: dict[str, Any]) -> str:
    if "endpoints" in item:
        return item["endpoints"][0]["addresses"][0]
    return item.get("status", {}).get("podIP") or item.get("spec", {}).get("clusterIP", "").replace("None", "")


def known(world: World) -> dict[str, Any]:
    return {kind: {key: packed(found) for key, found in world.store.objects[kind].items()} for kind in KINDS}


def packed(found: Any) -> str:
    first = getattr(found, "addresses", b"")
    first = first[0] if isinstance(first, tuple) and first else first or b""
    return ".".join(map(str, first))


async def test_very_many_differences_lead_to_a_list(api, world, log, monkeypatch):
    monkeypatch.setattr(auditor, "FEW", 5)
    api.filter = lose_all
    for number in range(6):
        api.put("services", service(f"s{number}"))
    await world.knows("a", "b", "c", *(f"s{number}" for number in range(6)))
    assert repairs(world) == 6 and world.counted("kdns_kubernetes_relists_total") == 1 and not looks(api)
    assert log.matching("services: watch: audit: 6 objects are not as the API server has them")
    for number in range(6):
        api.delete("services", f"s{number}")
    await world.knows("a", "b", "c")
    assert world.counted("kdns_kubernetes_relists_total") == 2


async def test_more_differences_than_are_noted(api, monkeypatch):
    monkeypatch.setattr(limits, "AUDIT_DOUBTS", 3)
    api.bookmark = 0.02  # otherwise the watch would be given up, and the next one would tell the rest
    async with World(api, audit=INTERVAL) as world:
        await world.until(lambda: api.watching("services"))
        api.filter = lose_all
        for number in range(20):
            api.put("services", service(f"s{number}"))
        api.delete("services", "a")
        await world.knows("b", "c", *(f"s{number}" for number in range(20)))
        assert audits(world, "overtaken") >= 6, "three at a time"
        assert repairs(world) == 21
        await rounds(world, 1)


async def test_a_watch_that_has_gone_deaf_is_given_up(api, world):
    api.freeze()
    api.put("services", service("new"))
    watch = next(iter(api._stores["services"].watchers))
    await world.knows("a", "b", "c", "new")
    await world.until(lambda: watch not in api._stores["services"].watchers and api.watching("services"))
    assert repairs(world) == 1 and world.counted("kdns_kubernetes_relists_total") == 0


async def test_a_server_that_has_gone_back_without_a_word(api, world, log):
    saved = api.save()
    api.put("services", service("new"))
    await world.knows("a", "b", "c", "new")
    api._rv = saved[0]
    api._stores["services"].items = dict(saved[1]["services"])
    await world.knows("a", "b", "c")
    assert log.matching("services: watch: audit: the server went back from version")
    assert not repairs(world) and world.counted("kdns_kubernetes_relists_total") == 1


async def test_a_server_that_went_back_and_on_beyond_where_it_had_been(api, world):
    """Its version tells nothing then."""
    saved = api.save()
    for name in ("x", "y", "z"):
        api.put("services", service(name))
    api.put("services", service("a", cluster_ip="10.96.0.9"))
    await world.knows("a", "b", "c", "x", "y", "z")
    await world.until(lambda: addresses(world, "a"))
    api._rv, items = saved
    for kind, store in api._stores.items():
        store.items = dict(items[kind])
        store.history.clear()
    for number in range(10):
        api.put("pods", pod(f"p{number}", "10.1.0.1"))
    await api.cut()
    await world.knows("a", "b", "c")
    await world.until(lambda: not addresses(world, "a"))
    assert repairs(world) == 4 and world.counted("kdns_kubernetes_relists_total") == 0


# --- and nothing else ------------------------------------------------------------------------------------------------


async def test_ordinary_changes_are_no_losses(api, monkeypatch):
    monkeypatch.setattr(auditor, "LARGEST", 20)
    monkeypatch.setattr(auditor, "GRACE", 0.3)
    for number in range(200):
        api.put("services", service(f"s{number}"))
    luck = random.Random(3)
    async with World(api, audit=0.05) as world:
        await world.until(world.synced)
        until = asyncio.get_running_loop().time() + 3
        while asyncio.get_running_loop().time() < until:
            for _ in range(10):
                name = f"s{luck.randrange(300)}"
                if luck.random() < 0.4 and api.get("services", name):
                    api.delete("services", name)
                else:
                    api.put("services", service(name))
            await asyncio.sleep(0.01)
        assert audits(world) >= 3 and not repairs(world) and not looks(api)


async def test_events_that_are_late_are_waited_for(api, world, monkeypatch):
    monkeypatch.setattr(auditor, "GRACE", 0.5)
    held: list[bytes] = []

    def hold(resource: str, lines: list[bytes]) -> list[bytes]:
        held.extend(lines)
        return []

    api.filter = hold
    api.put("services", service("new"))
    api.delete("services", "a")
    asked = len(api.requests)
    await world.until(lambda: any(of_metadata(request) for request in list(api.requests)[asked:]))
    await asyncio.sleep(0.05)
    for line in held:
        api.say("services", line.rstrip())
    await world.knows("b", "c", "new")
    await rounds(world, 1)
    assert not repairs(world) and not looks(api)


async def test_only_what_is_selected_is_compared(api):
    for name, labels in (("on", {"app": "x"}), ("off", {})):
        api.put("services", service(name, labels=labels))
        api.put("pods", pod(name, "10.1.0.1", labels=labels))
    api.put("pods", pod("ended", "10.1.0.1", phase="Failed", labels={"app": "x"}))
    kinds = {"services": Selection("app=x"), "pods": Selection("app=x", "status.phase!=Failed")}
    async with World(api, kinds, audit=INTERVAL) as world:
        await world.until(world.synced)
        await rounds(world)
        assert not repairs(world) and not repairs(world, "pods") and not looks(api)
        api.filter = lose_all
        api.put("services", service("on", cluster_ip="10.96.0.9", labels={"app": "x"}))
        api.put("pods", pod("on", "10.1.0.1", phase="Failed", labels={"app": "x"}))
        await world.until(lambda: addresses(world, "on"))
        await world.knows(kind="pods")
        assert repairs(world) == 1 and repairs(world, "pods") == 1


async def test_objects_that_make_no_sense_are_looked_at_once(api):
    api.put("services", service("odd") | {"spec": {"ports": "many"}})
    api.watchlist = False
    api.bookmark = 0.02  # otherwise the watch would be given up, and the next one would tell of it
    async with World(api, audit=INTERVAL) as world:
        await world.until(world.synced)
        await rounds(world)
        assert not looks(api) and not repairs(world)
        api.filter = lose_all
        api.put("services", service("a") | {"spec": {"ports": "many"}})
        await world.knows("b", "c")
        await rounds(world, 3)
        assert looks(api) == 1 and repairs(world) == 1 and world.counted("kdns_kubernetes_relists_total") == 0


async def test_without_it_nothing_is_asked(api):
    async with World(api) as world:
        await world.until(world.synced)
        await asyncio.sleep(3 * INTERVAL)
        assert not any(request.bare for request in api.requests)
        assert all(follower._ledger is None for follower in world.source._followers)


async def test_pages_and_kinds_have_their_pauses(api, monkeypatch):
    monkeypatch.setattr(auditor, "PAUSE", 0.05)
    monkeypatch.setattr(auditor, "LARGEST", 50)
    monkeypatch.setattr(auditor, "FIRST_LIMIT", 50)
    for number in range(300):
        api.put("services", service(f"s{number}"))
    async with World(api, ALL, audit=0.01) as world:
        await world.until(world.synced)
        await rounds(world, 3)
        asked = [request.time for request in api.requests if request.bare]
        assert len(asked) > 20
        assert min(later - earlier for earlier, later in pairwise(asked)) >= 0.045


# --- an API server that is not as it should be -----------------------------------------------------------------------


async def test_a_server_that_sends_whole_objects(api, log):
    api.fault(when=lambda request: bool(request.headers.update(accept="application/json")))
    async with World(api, audit=INTERVAL) as world:
        await world.until(world.synced)
        api.filter = lose_all
        api.put("services", service("new"))
        await world.knows("a", "b", "c", "new")
        await rounds(world)
        assert repairs(world) == 1
        assert len(log.matching("services: audit: the API server sends whole objects where metadata would do")) == 1


FAULTS: list[dict[str, Any]] = [
    {"status": 406},
    {"status": 403},
    {"status": 410},
    {"status": 500, "retry_after": 1},
    {"body": b"{}"},
    {"body": b"garbage"},
    {"body": b'{"kind":"PartialObjectMetadataList","metadata":{"resourceVersion":"1"},"items":[{"metadata":{}}]}'},
    {"body": b'{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[]}'},
    {"truncate": 20},
    {"raw": b"HTTP/1.1 200 OK\r\n\r\n"},
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_refusals_and_nonsense_change_nothing(api, world, fault, log):
    api.filter = lose_all
    api.put("services", service("new"))
    api.filter = lambda resource, lines: lines
    broken = api.fault(when=of_metadata, **fault)
    await rounds(world, 3, "failed")
    assert world.store.names() in (["a", "b", "c"], ["a", "b", "c", "new"]) and not world.store.gone
    assert len(log.matching("services: audit: ")) <= 2, "the same is told once"
    assert world.source.trouble == {"services": ""}
    api.put("services", service("told"))
    await world.until(lambda: "told" in world.store.names())
    api.heal(broken)
    await world.knows("a", "b", "c", "new", "told")
    await rounds(world, 1)


async def test_a_server_that_does_not_understand_whom_it_is_asked_for(api, world, log):
    others = json.dumps(
        {"kind": "ServiceList", "metadata": {"resourceVersion": "9"}, "items": [service("x")]}
    ).encode().replace(b'"labels"', b'"resourceVersion":"3","labels"')  # fmt: skip
    api.fault(when=lambda request: "metadata.name" in request.query.get("fieldSelector", ""), body=others)
    api.filter = lose_all
    api.put("services", service("a", cluster_ip="10.96.0.9"))
    await rounds(world, 2, "failed")
    assert world.store.names() == ["a", "b", "c"] and not repairs(world)
    assert log.matching("services: audit: metadata of services: asked for one object")


async def test_a_list_that_is_too_old_goes_on_as_of_now(api, world, monkeypatch):
    monkeypatch.setattr(auditor, "LARGEST", 10)
    for number in range(30):
        api.put("services", service(f"s{number}"))
    names = ["a", "b", "c", *(f"s{number}" for number in range(30))]
    await world.knows(*names)
    await rounds(world, 2)
    tokens: list[str] = []

    def expires(request: Request) -> bool:
        token = request.query.get("continue", "")
        if not of_metadata(request) or not token or tokens:
            return False
        tokens.append(token)
        body = json.dumps({"kind": "Status", "code": 410, "metadata": {"continue": token}}).encode()
        fault.raw = b"HTTP/1.1 410 Gone\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        return True

    api.filter = lose_all
    api.put("services", service("zzz"))
    fault = api.fault(when=expires, raw=b"")
    failed = audits(world, "failed")
    await world.knows(*names, "zzz")
    assert tokens and audits(world, "failed") == failed and repairs(world) == 1
    assert sum(request.query.get("continue") == tokens[0] for request in api.requests) == 2


async def test_pages_as_large_as_they_may_be(api, world, monkeypatch):
    for number in range(90):
        api.put("services", service(f"s{number}"))
    names = ["a", "b", "c", *(f"s{number}" for number in range(90))]
    await world.knows(*names)
    monkeypatch.setattr(limits, "API_PAGE", 5_000)
    monkeypatch.setattr(auditor, "PAGE_SIZE", 4_000)
    api.filter = lose_all
    api.put("services", service("zzz"))
    await world.knows(*names, "zzz")
    asked = [int(request.query["limit"]) for request in api.requests if of_metadata(request)]
    assert 2 < asked[-1] < 40, asked
    await rounds(world, 2)  # by then the watch that was given up has been followed by another
    monkeypatch.setattr(limits, "API_PAGE", 100)
    await rounds(world, 1, "failed")


async def test_a_list_without_end_is_given_up(api, monkeypatch):
    monkeypatch.setattr(limits, "AUDIT_TIME", 0.1)
    page = {"kind": "PartialObjectMetadataList", "metadata": {"resourceVersion": "99999", "continue": "t"}, "items": []}
    endless = api.fault(when=of_metadata, body=json.dumps(page).encode())
    async with World(api, audit=INTERVAL) as world:
        await world.until(world.synced)
        await rounds(world, 2, "failed")
        api.heal(endless)
        await rounds(world, 2)
        assert not repairs(world)


async def test_a_server_that_hangs_holds_up_the_audit_alone(api, world):
    api.fault(when=of_metadata, stall=True)
    await asyncio.sleep(3 * INTERVAL)
    api.put("services", service("told"))
    assert await world.knows("a", "b", "c", "told") < 1


async def test_a_list_overtakes_the_round(api, world):
    api.fault(when=of_metadata, delay=0.3, times=1)
    await world.until(lambda: any(of_metadata(request) for request in api.requests))
    api.forget_history()
    api.put("services", service("new"))
    api.say("services", b'{"type":"ERROR","object":{"code":410}}')
    await world.until(lambda: audits(world, "overtaken") == 1)
    await world.knows("a", "b", "c", "new")
    await rounds(world, 1)
    assert not repairs(world)


async def test_a_list_that_is_taking_force_is_not_compared(api, log):
    """The watch is in step as soon as the last page has come, but it takes a while to put all in place."""

    def finish(store, event):
        store.apply(event)
        for _ in range(50):
            time.sleep(0.002)  # long enough for others to be given their turn
            yield

    api.fault(when=of_metadata, delay=0.15)
    async with World(api, audit=0.02, finish=finish) as world:
        await world.until(world.synced)
        for number in range(3):
            await world.until(lambda: api.watching("services"))
            api.put("services", service(f"new{number}"))
            api.say("services", b'{"type":"ERROR","object":{"code":410}}')
            relists = number + 1
            await world.until(lambda relists=relists: world.counted("kdns_kubernetes_relists_total") >= relists)
        await rounds(world)
        assert not repairs(world) and not log.matching("put right")


async def test_while_the_watch_is_in_trouble_nothing_is_compared(api, world):
    api.fault(verb="watch", status=500)
    api.fault(when=lambda request: not request.bare and request.verb == "list", status=500)
    await api.cut()
    await world.until(lambda: world.source.trouble["services"])
    await asyncio.sleep(2 * INTERVAL)
    api.requests.clear()
    await asyncio.sleep(3 * INTERVAL)
    assert not any(request.bare for request in api.requests)


# --- ourselves -------------------------------------------------------------------------------------------------------


async def test_a_bug_in_the_index_ends_nothing(api, world, log):
    api.filter = lose_all
    api.put("services", service("new"))
    world.store.fail_with = RuntimeError("a bug")
    await world.until(lambda: world.store.fail_with is None)
    await world.knows("a", "b", "c", "new")
    assert log.matching("audit: RuntimeError('a bug')") and world.counted("kdns_kubernetes_relists_total") == 1
    await rounds(world, 1)


# --- with the true index ---------------------------------------------------------------------------------------------


@pytest.fixture
def clusters() -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(api: FakeApi, **settings: Any) -> Cluster:
        asked = Settings(endpoint=api.url, pods=True, audit=INTERVAL, **settings)
        made.append(Cluster(asked, lambda facts: None, Metrics(), Logger("kubernetes")))
        made[-1].start()
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


async def test_the_index_tells_the_names_of_what_is_gone(api, clusters):
    api.put("endpointslices", endpointslice("a", ["10.1.0.1"]))
    api.put("endpointslices", endpointslice("", ["10.1.0.2"], name="of-nobody"))
    api.put("pods", pod("p", "10.1.0.1"))
    api.put("namespaces", namespace("dev"))
    cluster = clusters(api)
    async with asyncio.timeout(10):
        await cluster.synced.wait()
        while not all(api.watching(kind) for kind in KINDS):
            await asyncio.sleep(0.01)
        assert set(cluster.index.names("services")) == {(b"default", name) for name in (b"a", b"b", b"c")}
        assert set(cluster.index.names("endpointslices")) == {(b"default", b"a-1")}
        assert set(cluster.index.names("namespaces")) == {(b"", b"default"), (b"", b"dev"), (b"", b"kube-system")}
        api.filter = lose_all
        api.delete("services", "a")
        api.delete("endpointslices", "a-1")
        api.delete("endpointslices", "of-nobody")
        api.delete("pods", "p")
        api.delete("namespaces", "dev")
        while cluster.index.counts() != {"namespaces": 2, "services": 2, "endpointslices": 0, "pods": 0}:
            await asyncio.sleep(0.01)
        await asyncio.sleep(4 * INTERVAL)
    assert sum(request.query.get("fieldSelector", "").count("of-nobody") for request in api.requests) == 0


async def test_services_of_other_clusters_are_compared_too(api, clusters):
    cluster = clusters(api, imports=True)
    item = {"metadata": {"name": "far"}, "spec": {"type": "ClusterSetIP", "ips": ["10.100.0.1"], "ports": []}}
    labels = {"multicluster.kubernetes.io/service-name": "far", "multicluster.kubernetes.io/source-cluster": "east"}
    async with asyncio.timeout(10):
        await cluster.synced.wait()
        while not (api.watching("serviceimports") and api.watching("endpointslices") == 2):
            await asyncio.sleep(0.01)
        api.filter = lose_all
        api.put("serviceimports", item)
        api.put("endpointslices", endpointslice("", ["10.1.0.9"], name="far-1", labels=labels))
        for kind, name in (("serviceimports", b"far"), ("importedslices", b"far-1")):
            while (b"default", name) not in set(cluster.index.names(kind)):
                await asyncio.sleep(0.01)
        api.delete("endpointslices", "far-1")
        while set(cluster.index.names("importedslices")):
            await asyncio.sleep(0.01)


def test_the_bounds_of_a_large_cluster_fit_into_its_time():
    """150,000 Pods with 2 KiB of metadata each, half an hour before a token could expire twice."""
    pages = 150_000 / (watches.PAGE_SIZE / 2048)
    assert pages * auditor.PAUSE < 300 < limits.AUDIT_TIME


async def test_manifests_are_not_audited(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: dev}\n")
    cluster = Cluster(Settings(manifests=str(tmp_path)), lambda facts: None, Metrics(), Logger("kubernetes"))
    assert cluster.index.counts()["namespaces"] == 1
    cluster.close()
