"""Following an API server through everything that it can do wrong."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kdns import __version__, limits
from kdns.cluster import api as sources
from kdns.cluster import http, pace
from kdns.cluster import watch as watches
from kdns.cluster.api import Selection
from kdns.cluster.credentials import ApiError, endpoint, in_cluster
from kdns.cluster.objects import KINDS
from tests.apitest import World, hasten
from tests.certificates import make_certificate
from tests.fakeapi import FakeApi, endpointslice, namespace, pod, service

pytestmark = pytest.mark.usefixtures("log")


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """The same, ten times as fast."""
    hasten(monkeypatch)
    monkeypatch.setattr(pace, "SLOWEST", 0.18)
    monkeypatch.setattr(watches, "BEGINNING", 0.5)
    monkeypatch.setattr(watches, "SILENCE", 0.3)
    monkeypatch.setattr(http, "ASK_AGAIN", 0.3)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as api:
        yield api


@pytest.fixture
async def world(api: FakeApi) -> AsyncIterator[World]:
    """One that follows services, and is in step."""
    api.put("services", service("a"))
    api.put("services", service("b"))
    async with World(api) as world:
        await world.knows("a", "b")
        await world.until(world.synced)
        yield world


# --- in step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watchlist", [True, False])
async def test_all_kinds_are_followed(watchlist):
    async with FakeApi(watchlist=watchlist) as api:
        api.put("services", service("web", cluster_ip="10.96.0.1"))
        api.put("endpointslices", endpointslice("web", ["10.1.0.1"]))
        api.put("pods", pod("web-0", "10.1.0.1"))
        async with World(api, {kind: Selection() for kind in KINDS}) as world:
            assert set(world.source.status) == set(KINDS) and all(world.source.status.values())
            await world.until(world.synced)
            assert world.source.status == world.source.trouble == dict.fromkeys(KINDS, "")
            assert [world.store.names(kind) for kind in KINDS] == [
                ["default", "kube-system"], ["web"], ["web-1"], ["web-0"],
            ]  # fmt: skip
            await world.until(lambda: all(api.watching(kind) for kind in KINDS))
            api.put("services", service("new"))
            api.put("namespaces", namespace("dev"))
            api.delete("endpointslices", "web-1")
            await world.knows("new", "web")
            await world.knows("default", "dev", "kube-system", kind="namespaces")
            await world.knows(kind="endpointslices")
            assert world.counted("kdns_kubernetes_relists_total") == 0
            assert api.requests[-1].headers["user-agent"] == f"kdns/{__version__}"


async def test_only_what_is_selected_is_followed(api):
    api.put("pods", pod("on", "10.1.0.1", labels={"app": "x"}))
    api.put("pods", pod("off", "10.1.0.2"))
    api.put("pods", pod("ended", "10.1.0.3", phase="Failed", labels={"app": "x"}))
    async with World(api, {"pods": Selection("app in (x)", "status.phase!=Failed")}) as world:
        await world.knows("on", kind="pods")
        api.put("pods", pod("off", "10.1.0.2", labels={"app": "x"}))
        await world.knows("off", "on", kind="pods")
        api.put("pods", pod("on", "10.1.0.1", phase="Failed", labels={"app": "x"}))
        await world.knows("off", kind="pods")


@pytest.mark.parametrize("watchlist", [True, False])
async def test_long_lists_leave_time_for_others(watchlist):
    async with FakeApi(watchlist=watchlist) as api:
        for number in range(3000):
            api.put("services", service(f"s{number}", cluster_ip="10.96.0.1"))
        async with World(api) as world:
            turns = 0
            while not world.synced():
                await asyncio.sleep(0)
                turns += world.store.events > 0
            assert len(world.store.names()) == 3000
            assert turns >= 20, "there was a turn for queries every millisecond or so"


async def test_the_end_of_a_list_leaves_time_for_others_and_comes_before_what_follows(api):
    turns = 0

    def finish(store, event):
        first = turns
        for _ in range(20):
            until = time.monotonic() + 0.002
            while time.monotonic() < until:
                pass
            yield
        store.apply(event)
        finished.append(turns - first)

    finished: list[int] = []
    api.put("services", service("web"))
    async with World(api, finish=finish) as world:
        while not world.synced():
            await asyncio.sleep(0)
            turns += 1
            assert finished or not world.synced(), "it is known when the end is reached"
        assert finished[0] >= 15, "there was a turn for queries after every step"
        api.put("services", service("new"))
        await world.knows("new", "web")


async def test_a_bug_in_the_end_of_a_list_leads_to_another(api, log):
    def finish(store, event):
        store.apply(event)
        yield
        if len(bugs) < 1:
            bugs.append(event)
            raise RuntimeError("a bug")

    bugs: list[Any] = []
    api.put("services", service("web"))
    async with World(api, finish=finish) as world:
        await world.until(lambda: bugs and world.synced())
        await world.knows("web")
        assert log.matching("a bug")


async def test_an_event_is_applied_at_once(world):
    delays = []
    for number in range(100):
        name = f"s{number}"
        world.api.put("services", service(name))
        delays.append(await world.until(lambda name=name: name in world.store.names()))
    assert sorted(delays)[90] < 0.05


async def test_bookmarks_keep_the_version_up_to_date(api):
    api.bookmark = 0.01
    async with World(api) as world:
        await world.until(world.synced)
        version = api.resource_version
        for number in range(5):
            api.put("pods", pod(f"p{number}", "10.1.0.1"))
        await asyncio.sleep(0.05)
        await api.cut()
        await world.until(lambda: api.watching("services"))
        assert int(api.requests[-1].query["resourceVersion"]) > version


# --- away and back ---------------------------------------------------------------------------------------------------


async def test_what_happened_while_the_connection_was_cut_is_told_afterwards(world):
    await world.api.cut()
    world.api.put("services", service("c"))
    world.api.delete("services", "a")
    await world.knows("b", "c")
    assert world.counted("kdns_kubernetes_relists_total") == 0
    assert world.store.gone == [("services", ("default", "a"))]


async def test_a_server_that_is_gone_for_a_while(world, log):
    await world.api.refuse()
    await world.until(lambda: "Connection refused" in world.source.trouble["services"])
    assert world.source.status == {"services": ""}, "known is known"
    await asyncio.sleep(0.5)
    await world.api.accept()
    world.api.put("services", service("c"))
    assert await world.knows("a", "b", "c") < 0.5
    await world.until(lambda: not world.source.trouble["services"])
    assert len(log.lines) <= 3 and all(
        "[WARNING] plugin/kubernetes: services: watch: " in line for line in log.lines[:1]
    )


async def test_trouble_and_its_end_are_logged(world, log, monkeypatch):
    monkeypatch.setattr(sources, "LOG_PAUSE", 0.0)
    await world.api.refuse()
    await world.until(lambda: log.matching("Connection refused"))
    await asyncio.sleep(0.1)
    assert len(log.matching("Connection refused")) == 1, "the same is told once a minute"
    await world.api.accept()
    await world.until(lambda: log.matching("[INFO] plugin/kubernetes: services: in step with the API server again"))


async def test_a_server_that_is_not_there_at_first(api):
    await api.refuse()
    async with World(api) as world:
        await world.until(lambda: "list: 127.0.0.1" in world.source.status["services"])
        await api.accept()
        assert await world.until(world.synced) < 0.5


async def test_a_server_that_is_about_to_stop_ends_its_watches(world):
    world.api.end_watches()
    await world.until(lambda: not world.api.watching("services"))
    world.api.put("services", service("c"))
    await world.knows("a", "b", "c")
    assert world.source.trouble == {"services": ""} and world.counted("kdns_kubernetes_relists_total") == 0


async def test_a_server_that_hangs(world):
    world.api.fault(stall=True)
    await world.api.cut()
    await asyncio.sleep(0.3)
    world.api.heal()
    world.api.put("services", service("c"))
    assert await world.knows("a", "b", "c") < 1


async def test_a_watch_whose_packets_vanish(world):
    """The figure is 15 s; new connections are as good as ever."""
    before = http.VANISHED
    world.api.half_open()
    world.api.put("services", service("c"))
    assert await world.knows("a", "b", "c") < before + 1.5
    assert world.counted("kdns_kubernetes_relists_total") == 0 and not world.store.gone


async def test_a_host_that_cannot_be_reached(world, monkeypatch):
    monkeypatch.setattr(http, "CONNECT", 0.3)
    world.api.blackhole()
    await world.api.cut()
    await world.until(lambda: "no connection within 0.3 s" in world.source.trouble["services"])
    world.api.put("services", service("c"))
    await asyncio.sleep(0.5)
    await world.api.accept()
    assert await world.knows("a", "b", "c") < http.CONNECT + 1
    assert world.counted("kdns_kubernetes_relists_total") == 0


async def test_a_watch_that_falls_silent_while_its_connection_lives(api, monkeypatch):
    monkeypatch.setattr(watches, "MUTE", (2.5, 0.2))
    api.bookmark = 0.02
    async with World(api) as world:
        await world.until(lambda: api.watching("services"))
        await asyncio.sleep(0.1)
        api.freeze()
        api.put("services", service("a"))
        assert await world.knows("a") < 2
        assert world.counted("kdns_kubernetes_relists_total") == 0


# --- lists again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_status", [True, False])
async def test_a_version_that_is_too_old_leads_to_a_list_that_is_a_diff(world, as_status):
    if as_status:
        world.api.fault(status=410, verb="watch", times=1)
    await world.api.cut()
    world.api.put("services", service("c"))
    world.api.delete("services", "a")
    world.api.forget_history()
    await world.knows("b", "c")
    await world.until(lambda: world.store.gone)
    assert world.store.gone == [("services", ("default", "a"))], "b was never gone"
    assert world.counted("kdns_kubernetes_relists_total") == 1


@pytest.mark.parametrize("future", ["silence", "error", "gone"])
async def test_a_server_that_has_gone_back(world, future):
    world.api.future = future
    saved = world.api.save()
    world.api.put("services", service("c"))
    await world.knows("a", "b", "c")
    await world.api.rewind(saved)
    await world.knows("a", "b")
    world.api.put("services", service("d"))
    await world.knows("a", "b", "d")


async def test_a_server_that_goes_back_in_its_bookmarks(api):
    api.bookmark = 0.02
    async with World(api) as world:
        for number in range(10):
            api.put("services", service(f"s{number}"))
        await world.until(lambda: len(world.store.names()) == 10)
        saved = api.save()
        api.put("services", service("x"))
        await world.until(lambda: len(world.store.names()) == 11)
        api._rv, items = saved  # without cutting anything
        for resource, store in api._stores.items():
            store.items = dict(items[resource])
        await world.until(lambda: len(world.store.names()) == 10)


async def test_410_for_ever_costs_few_lists_and_few_requests(world):
    world.api.requests.clear()
    world.api.fault(status=410, verb="watch")
    await world.api.cut()
    await asyncio.sleep(2.0)  # 20 s at the true pace
    streamed = [request for request in world.api.requests if "sendInitialEvents" in request.query]
    listed = [request for request in world.api.requests if request.verb == "list" and request.query["limit"] != "1"]
    assert 1 <= len(listed) <= 7 and len(streamed) <= 7
    assert len(world.api.requests) < 30
    assert world.store.names() == ["a", "b"] and not world.store.gone
    world.api.heal()
    world.api.put("services", service("c"))
    assert await world.knows("a", "b", "c") < 0.5


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"",
        b"<html>login</html>",
        b'{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":[]}',
        b'{"kind":"ServiceList","metadata":{"resourceVersion":"9"}}',
        b'{"kind":"ServiceList","metadata":{},"items":[]}',
        b'{"kind":"ServiceList","metadata":{"resourceVersion":"9"},"items":[{}]}',
        b"[" * 100_000,
    ],
)
async def test_a_list_that_makes_no_sense_changes_nothing(world, body, log):
    world.api.watchlist = False
    senseless = world.api.fault(body=body, verb="list")
    world.api.freeze()
    world.api.delete("services", "a")
    world.api.forget_history()
    world.api.say("services", b'{"type":"ERROR","object":{"code":410}}')
    await world.until(lambda: senseless.hits >= 4)
    assert world.store.names() == ["a", "b"]
    assert world.counted('kdns_kubernetes_rejected_total{reason="nonsense",resource="services"}') >= 3
    assert world.source.trouble["services"].startswith("list: ") and log.matching("services: watch: 410")
    world.api.heal()
    await world.knows("b")


@pytest.mark.parametrize(
    "line", [b"{}", b"garbage", b'{"type":"NEWS","object":{}}', b'{"type":"ADDED","object":{"kind":"Pod"}}']
)
async def test_a_streamed_list_that_makes_no_sense_is_taken_in_pages(world, line):
    world.api.fault(prefix=line + b"\n", verb="watch", times=2)
    world.api.forget_history()
    await world.api.cut()
    world.api.put("services", service("c"))
    await world.knows("a", "b", "c")
    assert not world.store.gone


async def test_a_streamed_list_whose_end_is_swallowed_is_taken_in_pages(api):
    api.end_bookmark = False
    api.put("services", service("a"))
    async with World(api) as world:
        await world.until(world.synced)
        assert "sendInitialEvents" in api.requests[0].query and api.requests[1].verb == "list"


async def test_a_list_cut_short_is_taken_up_again(api):
    api.watchlist = False
    for number in range(150):
        api.put("services", service(f"s{number:03}"))
    api.fault(truncate=3000, times=3, verb="list")
    async with World(api) as world:
        await world.until(world.synced)
        assert len(world.store.names()) == 150 and not world.store.gone


async def test_pages_that_expire_start_again(api):
    api.watchlist = False
    for number in range(300):
        api.put("services", service(f"s{number:03}"))
    async with World(api) as world:
        await world.until(lambda: world.store.events > 50)
        api.forget_pages()
        await world.until(world.synced)
        assert len(world.store.names()) == 300 and not world.store.gone


async def test_a_page_beyond_its_bound_is_asked_for_in_smaller_pieces(api, monkeypatch):
    monkeypatch.setattr(limits, "API_PAGE", 20_000)
    api.watchlist = False
    for number in range(200):
        api.put("services", service(f"s{number:03}"))
    async with World(api) as world:
        await world.until(world.synced)
        assert len(world.store.names()) == 200
        assert world.counted('kdns_kubernetes_rejected_total{reason="page",resource="services"}') >= 1


async def test_a_list_without_end_is_given_up(api, monkeypatch):
    monkeypatch.setattr(limits, "API_LIST", 50)
    for number in range(60):
        api.put("services", service(f"s{number:03}"))
    for api.watchlist in (True, False):
        async with World(api) as world:
            await world.until(lambda world=world: "more than 50 objects" in world.source.status["services"])
            assert len(world.store.names()) <= 50


async def test_an_odd_object_is_left_out_of_its_list(api, log):
    api.watchlist = False
    api.put("services", service("a"))
    api.put("services", service("odd") | {"spec": {"ports": "many"}})
    async with World(api) as world:
        await world.until(world.synced)
        assert world.store.names() == ["a"]
        assert world.counted('kdns_kubernetes_rejected_total{reason="odd",resource="services"}') == 1
        assert log.matching("services: Service default/odd")


# --- watches that make no sense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [b"garbage", b"{}", b'{"type":"NEWS","object":{}}', b'{"type":"ADDED","object":[]}', b"[" * 50_000]
)
async def test_a_line_that_makes_no_sense_is_healed_by_a_list(world, line, log):
    await asyncio.sleep(0.1)
    world.api.say("services", line)
    world.api.put("services", service("c"))
    await world.knows("a", "b", "c")
    await world.until(lambda: world.counted("kdns_kubernetes_relists_total") == 1)
    assert world.counted('kdns_kubernetes_rejected_total{reason="nonsense",resource="services"}') == 1
    assert log.matching("services: watch: ") and not world.store.gone


async def test_a_line_without_end(world, monkeypatch):
    monkeypatch.setattr(limits, "API_LINE", 2**18)
    endless = world.api.fault(endless=True)
    await world.api.cut()
    await world.until(lambda: endless.hits >= 3)
    assert world.store.names() == ["a", "b"]
    world.api.heal()
    world.api.put("services", service("c"))
    await world.knows("a", "b", "c")
    assert world.counted('kdns_kubernetes_rejected_total{reason="page",resource="services"}') >= 1
    world.api.fault(endless=True, verb="watch", times=1)
    await world.api.cut()
    world.api.put("services", service("d"))
    await world.knows("a", "b", "c", "d")
    assert world.counted('kdns_kubernetes_rejected_total{reason="line",resource="services"}') == 1


async def test_a_streamed_list_with_a_line_without_end(api, monkeypatch):
    monkeypatch.setattr(limits, "API_LINE", 2**18)
    api.fault(endless=True, verb="watch", times=1)
    async with World(api) as world:
        await world.until(world.synced)


async def test_events_repeated_and_out_of_order(world):
    held: list[bytes] = []

    def shuffle(resource: str, lines: list[bytes]) -> list[bytes]:
        held.extend(lines)
        if len(held) < 4:
            return []
        out = held[::-1] + held[:1]
        held.clear()
        return out

    world.api.filter = shuffle
    for _ in range(2):
        world.api.put("services", service("c"))
        world.api.delete("services", "a" if world.api.get("services", "a") else "b")
    await world.knows("c")
    await world.until(lambda: world.counted("kdns_kubernetes_relists_total") >= 1)


@pytest.mark.parametrize("event", [{"type": "ERROR", "object": {"code": 500}}, {"type": "ERROR", "object": None}])
async def test_error_events(world, event):
    world.api.fault(event=event, verb="watch", times=3)
    await world.api.cut()
    world.api.put("services", service("c"))
    await world.knows("a", "b", "c")


async def test_mutated_lines_end_nothing(world):
    luck = random.Random(7)
    good = b'{"type":"MODIFIED","object":{"kind":"Service","metadata":{"name":"a","namespace":"default"},"spec":{}}}'
    for _ in range(2000):
        line = bytearray(good)
        for _ in range(luck.randint(1, 6)):
            line[luck.randrange(len(line))] = luck.randrange(256)
        world.api.say("services", bytes(line).replace(b"\n", b" "))
    world.api.put("services", service("c"))
    await world.until(lambda: "c" in world.store.names())
    await world.until(lambda: world.store.names() == ["a", "b", "c"])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [403, 404, 429, 500, 503])
async def test_refusals_are_waited_out_and_told(api, code):
    refusal = api.fault(status=code)
    async with World(api) as world:
        await world.until(lambda: refusal.hits >= 4)
        assert str(code) in world.source.status["services"]
        api.heal()
        assert await world.until(world.synced) < 0.5


async def test_retry_after_is_honoured(world):
    fault = world.api.fault(status=429, retry_after=1, times=2)
    await world.api.cut()
    await world.until(lambda: fault.hits == 1)
    first = world.api.requests[-1].time
    await world.until(lambda: fault.hits == 2)
    assert 0.99 <= world.api.requests[-1].time - first <= 1.3


async def test_a_refusal_with_an_endless_reason(api):
    answer = b"HTTP/1.1 503 X\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\nContent-Length: 1000000\r\n\r\n"
    fault = api.fault(raw=answer + b"x" * limits.API_STATUS * 2, times=2)
    async with World(api) as world:
        await world.until(lambda: world.source.status["services"] == "list: 503")
        await world.until(world.synced)
        assert fault.hits == 2


async def test_rights_taken_away_and_given_back(tmp_path):
    (tmp_path / "token").write_text("t")
    async with FakeApi(tls=tmp_path, tokens={"t": ["services"]}) as api:
        (tmp_path / "localhost.crt").rename(tmp_path / "ca.crt")
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
        credentials = in_cluster(environ, str(tmp_path))
        kinds = {"services": Selection(), "pods": Selection()}
        async with World(api, kinds, credentials=credentials) as world:
            await world.until(lambda: not world.source.status["services"])
            await world.until(lambda: "403 Forbidden pods is forbidden" in world.source.status["pods"])
            api.tokens = {"t": None}
            await world.until(world.synced)
            api.tokens = {"other": None}
            await api.cut()
            await world.until(lambda: "401" in world.source.trouble["services"])
            (tmp_path / "token").write_text("other")
            api.put("services", service("a"))
            assert await world.knows("a") < 0.5


async def test_a_wrong_ca_is_told_and_never_passed_over(tmp_path):
    (tmp_path / "other").mkdir()
    async with FakeApi(tls=tmp_path / "other") as api:
        ca, _ = make_certificate(tmp_path)
        async with World(api, credentials=endpoint(api.url, ca=str(ca))) as world:
            await world.until(lambda: "self-signed certificate" in world.source.status["services"])
            assert not api.requests
            ca.write_text((tmp_path / "other" / "localhost.crt").read_text())
            await world.until(world.synced)


# --- ourselves -------------------------------------------------------------------------------------------------------


async def test_a_bug_in_the_index_ends_nothing(world, log):
    world.store.fail_with = RuntimeError("a bug")
    world.api.put("services", service("c"))
    await world.knows("a", "b", "c")
    assert log.matching("[ERROR] plugin/kubernetes: services: RuntimeError('a bug')")


async def test_the_end_is_clean(api):
    before = asyncio.all_tasks()
    world = World(api, {kind: Selection() for kind in KINDS})
    async with world:
        await world.until(world.synced)
        await world.until(lambda: api.watching("pods"))
    told = world.store.events
    await world.until(lambda: not api.watching("pods"))
    assert world.store.events == told
    await world.until(lambda: asyncio.all_tasks() <= before)
    world.metrics.expose()


async def test_the_end_before_anything_came(api):
    api.fault(stall=True)
    async with World(api) as world:
        await world.until(lambda: api.requests)
    async with World(api):
        pass


async def test_what_is_shown(world):
    world.api.put("services", service("c"))
    await world.knows("a", "b", "c")
    text = world.metrics.expose().decode()
    assert 'kdns_kubernetes_relists_total{resource="services"} 0.0' in text
    age = world.counted('kdns_kubernetes_last_event_age_seconds{resource="services"}')
    assert 0 <= age < 5
    assert world.counted("coredns_kubernetes_rest_client_requests_total") >= 1


def test_errors_are_of_the_tree():
    from kdns.errors import KdnsError

    assert issubclass(ApiError, KdnsError) and sources.ApiError is ApiError
