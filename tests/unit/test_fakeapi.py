"""The fake API server does what an API server does; the real CoreDNS, where it is installed, believes it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from collections.abc import AsyncIterator

import dns.exception
import pytest

from tests import support
from tests.fakeapi import (
    FakeApi,
    Mischief,
    Refusal,
    endpointslice,
    matches_fields,
    matches_labels,
    namespace,
    pod,
    service,
)


class Client:
    """One connection, as plain as can be."""

    def __init__(self, api: FakeApi, token: str = "", accept: str = "application/json") -> None:
        self.api, self.token, self.accept = api, token, accept
        self.writer: asyncio.StreamWriter | None = None

    async def get(self, target: str) -> tuple[int, dict[str, str]]:
        self.close()
        self.reader, self.writer = await asyncio.open_connection(self.api.host, self.api.port)
        authorization = f"Authorization: Bearer {self.token}\r\n" if self.token else ""
        self.writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nAccept: {self.accept}\r\n{authorization}\r\n".encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(": ") for line in head[1:] if line)
        return int(head[0].split()[1]), {key.lower(): value for key, _, value in pairs}

    async def json(self, target: str) -> tuple[int, dict]:
        status, headers = await self.get(target)
        body = await self.reader.readexactly(int(headers["content-length"]))
        self.close()
        return status, json.loads(body)

    async def line(self) -> dict | None:
        """The next event of a watch; None at its end."""
        size = int(await asyncio.wait_for(self.reader.readline(), 5), 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return json.loads(data) if data else None

    async def lines(self, count: int) -> list[tuple[str, str]]:
        events = [await self.line() for _ in range(count)]
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events if event]

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as api:
        yield api


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    client = Client(api)
    yield client
    client.close()


def names(found: dict) -> list[str]:
    return [item["metadata"]["name"] for item in found["items"]]


SERVICES = "/api/v1/services"
WATCH = f"{SERVICES}?watch=true&allowWatchBookmarks=true"


async def test_objects_are_completed_and_listed(api: FakeApi, client: Client):
    stored = api.put("services", service("web", cluster_ip="10.96.0.1"))
    status, found = await client.json(SERVICES)
    assert status == 200 and found["kind"] == "ServiceList" and found["apiVersion"] == "v1"
    assert found["metadata"] == {"resourceVersion": stored["metadata"]["resourceVersion"]}
    assert found["items"][0]["spec"]["clusterIP"] == "10.96.0.1"
    assert stored["kind"] == "Service" and stored["metadata"]["uid"]
    again = api.put("services", service("web"))
    assert again["metadata"]["uid"] == stored["metadata"]["uid"]
    assert api.get("services", "web") == again and api.get("services", "other") is None
    status, found = await client.json("/apis/discovery.k8s.io/v1/endpointslices")
    assert status == 200 and found["kind"] == "EndpointSliceList" and found["items"] == []
    _, found = await client.json("/api/v1/namespaces")
    assert names(found) == ["default", "kube-system"]


async def test_pages_are_of_one_version(api: FakeApi, client: Client):
    for name in "abcde":
        api.put("services", service(name))
    _, first = await client.json(f"{SERVICES}?limit=2")
    assert names(first) == ["a", "b"] and first["metadata"]["remainingItemCount"] == 3
    api.delete("services", "c")
    _, second = await client.json(f"{SERVICES}?limit=2&continue={first['metadata']['continue']}")
    assert names(second) == ["c", "d"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    api.forget_pages()
    status, gone = await client.json(f"{SERVICES}?limit=2&continue={second['metadata']['continue']}")
    assert status == 410 and gone["reason"] == "Expired"


async def test_watch_from_a_version(api: FakeApi, client: Client):
    version = api.resource_version
    api.put("services", service("a"))
    assert (await client.get(f"{WATCH}&resourceVersion={version}"))[0] == 200
    api.put("services", service("a"))
    api.delete("services", "a")
    assert await client.lines(3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    assert api.watching("services") == 1 and api.count("services", "watch") == 1
    client.close()
    await until(lambda: not api.watching("services"))


async def test_watch_with_initial_events(api: FakeApi, client: Client):
    api.put("services", service("a"))
    await client.get(f"{WATCH}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan")
    assert await client.lines(1) == [("ADDED", "a")]
    bookmark = await client.line()
    assert bookmark is not None and bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert bookmark["object"]["metadata"]["resourceVersion"] == str(api.resource_version)
    api.end_bookmark = False
    await client.get(f"{WATCH}&sendInitialEvents=true")
    api.put("services", service("b"))
    assert await client.lines(2) == [("ADDED", "a"), ("ADDED", "b")]
    api.watchlist = False
    assert (await client.json(f"{WATCH}&sendInitialEvents=true"))[0] == 422
    await client.get(WATCH)
    assert await client.lines(2) == [("ADDED", "a"), ("ADDED", "b")]


async def test_bookmarks_and_the_end_of_a_watch(api: FakeApi, client: Client):
    api.bookmark = 0.01
    await client.get(f"{WATCH}&resourceVersion={api.resource_version}&timeoutSeconds=1")
    assert (await client.lines(2)) == [("BOOKMARK", "")] * 2
    api.bookmark = 60
    await client.get(f"{WATCH}&resourceVersion={api.resource_version}&timeoutSeconds=0.01")
    assert await client.line() is None
    await client.get(f"{WATCH}&resourceVersion={api.resource_version}")
    api.end_watches()
    assert await client.line() is None


async def test_watch_from_before_the_history(api: FakeApi, client: Client):
    api.put("services", service("a"))
    version = api.resource_version
    api.put("services", service("b"))
    api.forget_history()
    await client.get(f"{WATCH}&resourceVersion={version}")
    event = await client.line()
    assert event is not None and event["type"] == "ERROR" and event["object"]["code"] == 410
    async with FakeApi(window=2) as small:
        version = small.resource_version
        for name in "abc":
            small.put("services", service(name))
        other = Client(small)
        await other.get(f"{WATCH}&resourceVersion={version}")
        event = await other.line()
        assert event is not None and event["object"]["code"] == 410
        await other.get(f"{WATCH}&resourceVersion={version + 1}")
        assert await other.lines(2) == [("ADDED", "b"), ("ADDED", "c")]
        other.close()


async def test_watch_from_the_future(api: FakeApi, client: Client):
    future = api.resource_version + 100
    await client.get(f"{WATCH}&resourceVersion={future}")
    api.put("services", service("a"))
    assert await client.lines(1) == [("ADDED", "a")]
    api.future = "error"
    await client.get(f"{WATCH}&resourceVersion={future}")
    event = await client.line()
    assert event is not None and event["object"]["message"].startswith("Too large resource version")
    api.future = "gone"
    assert (await client.json(f"{WATCH}&resourceVersion={future}"))[0] == 410
    assert (await client.json(f"{WATCH}&resourceVersion=x"))[0] == 400


async def test_selectors_in_lists_and_watches(api: FakeApi, client: Client):
    api.put("pods", pod("a", "10.0.0.1", labels={"app": "x"}))
    api.put("pods", pod("b", "10.0.0.2", "kube-system", phase="Failed", labels={"app": "x"}))
    api.put("pods", pod("c", "10.0.0.3"))
    _, found = await client.json("/api/v1/pods?fieldSelector=status.phase!%3DFailed&labelSelector=app%3Dx")
    assert names(found) == ["a"]
    _, found = await client.json("/api/v1/namespaces/kube-system/pods")
    assert names(found) == ["b"]
    await client.get(f"/api/v1/pods?watch=true&labelSelector=app&resourceVersion={api.resource_version}")
    api.put("pods", pod("c", "10.0.0.3", labels={"app": "y"}))
    api.put("pods", pod("a", "10.0.0.1"))
    api.delete("pods", "a")
    api.delete("pods", "c")
    assert await client.lines(3) == [("ADDED", "c"), ("DELETED", "a"), ("DELETED", "c")]
    assert (await client.json("/api/v1/pods?labelSelector=%28"))[0] == 400


@pytest.mark.parametrize(
    "selector, fits",
    [
        ("", True), ("a=1", True), ("a==1,b", True), ("a!=1", False), ("c!=1", True), ("!c", True), ("! a", False),
        ("c", False), ("a in (0, 1)", True), ("a notin (0,1)", False), ("c notin (0),a", True), ("a in (0),a", False),
    ],
)  # fmt: skip
def test_label_selectors(selector, fits):
    assert matches_labels(selector, {"a": "1", "b": "2"}) is fits


def test_field_selectors():
    item = pod("a", "10.0.0.1")
    assert matches_fields("metadata.name=a,metadata.namespace==default,status.phase!=Failed", item)
    assert not matches_fields("metadata.name!=a", item)
    with pytest.raises(Refusal, match="not supported"):
        matches_fields("spec.x=1", item)


async def test_tokens():
    async with FakeApi(tokens={"all": None, "some": ["pods"]}) as api:
        assert (await Client(api).json(SERVICES))[0] == 401
        assert (await Client(api, "all").json(SERVICES))[0] == 200
        status, refusal = await Client(api, "some").json(SERVICES)
        assert status == 403 and "services is forbidden" in refusal["message"]
        assert (await Client(api, "some").json("/api/v1/pods"))[0] == 200


async def test_other_paths(api: FakeApi, client: Client):
    assert (await client.json("/version"))[1]["major"] == "1"
    assert (await client.json("/readyz"))[0] == 200
    _, found = await client.json("/apis/discovery.k8s.io/v1")
    assert [resource["name"] for resource in found["resources"]] == ["endpointslices"]
    assert (await client.json("/apis/x/v1"))[0] == 404
    assert (await client.json("/api/v1/endpointslices"))[0] == 404


async def test_faults_in_answers(api: FakeApi, client: Client):
    fault = api.fault(status=429, retry_after=3, resource="services", times=1)
    status, headers = await client.get(SERVICES)
    assert status == 429 and headers["retry-after"] == "3" and fault.hits == 1
    client.close()
    assert (await client.json(SERVICES))[0] == 200
    assert (await client.json("/api/v1/pods"))[0] == 200
    api.fault(body=b"{}", verb="list")
    assert await client.json(SERVICES) == (200, {})
    assert (await client.json("/version"))[1]
    api.heal()
    slow = api.fault(delay=0.05)
    started = time.monotonic()
    assert (await client.json(SERVICES))[0] == 200
    assert time.monotonic() - started >= 0.05
    api.heal(slow)
    api.fault(truncate=10)
    _, headers = await client.get(SERVICES)
    assert int(headers["content-length"]) > 10 and len(await client.reader.read()) == 10
    api.heal()
    api.fault(prefix=b"garbage")
    await client.get(SERVICES)
    assert (await client.reader.read(7)) == b"garbage"
    api.heal()
    api.fault(raw=b"SSH-2.0\r\n\r\n")
    with pytest.raises(IndexError):
        await client.get(SERVICES)
    api.heal()
    api.fault(reset=True)
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await client.get(SERVICES)
    api.heal()
    api.fault(stall=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.get(SERVICES), 0.02)


async def test_faults_in_watches(api: FakeApi, client: Client):
    api.fault(event={"type": "ERROR", "object": {"metadata": {}, "code": 500}}, times=1)
    await client.get(WATCH)
    assert await client.lines(1) == [("ERROR", "")]
    assert await client.line() is None
    api.fault(endless=True, times=1)
    await client.get(WATCH)
    assert len(await client.reader.readexactly(2**20)) == 2**20
    client.close()
    api.fault(prefix=b'{"type":"ODD","object":{"metadata":{}}}\n', truncate=100)
    await client.get(WATCH)
    assert await client.lines(1) == [("ODD", "")]
    api.put("services", service("a"))
    assert len(await client.reader.read()) < 100


async def test_silence_and_mangled_lines(api: FakeApi, client: Client):
    await client.get(f"{WATCH}&resourceVersion={api.resource_version}")
    api.freeze()
    api.put("services", service("lost"))
    api.thaw()
    api.put("services", service("a"))
    assert await client.lines(1) == [("ADDED", "a")]
    api.filter = lambda resource, lines: lines * 2
    api.put("services", service("b"))
    assert await client.lines(2) == [("ADDED", "b")] * 2
    api.say("services", b'{"type":"X","object":{"metadata":{}}}')
    assert await client.lines(1) == [("X", "")]


async def test_refusing_and_cutting_connections(api: FakeApi, client: Client):
    await client.get(f"{WATCH}&resourceVersion={api.resource_version}")
    port = api.port
    await api.refuse()
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await client.reader.readexactly(1)
    with pytest.raises(OSError):
        await client.get(SERVICES)
    await api.accept()
    assert api.port == port and (await client.json(SERVICES))[0] == 200


async def test_connections_that_break_without_a_word(api: FakeApi, client: Client):
    await client.get(f"{WATCH}&resourceVersion={api.resource_version}")
    assert client.writer is not None
    link = client.writer.get_extra_info("socket")
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100)
    api.half_open()
    api.put("services", service("untold"))
    with pytest.raises(TimeoutError):  # neither the event nor an end
        await asyncio.wait_for(client.reader.readexactly(1), 0.1)
    client.writer.write(b"x")  # nobody acknowledges it
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.readexactly(1), 5)  # of the socket, after its TCP_USER_TIMEOUT
    assert names((await client.json(SERVICES))[1]) == ["untold"]
    api.blackhole()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.get(SERVICES), 0.1)
    await api.accept()
    assert (await client.json(SERVICES))[0] == 200


async def test_lists_of_versions(api: FakeApi, client: Client):
    version = api.resource_version
    assert (await client.json(f"{SERVICES}?resourceVersion={version}&resourceVersionMatch=NotOlderThan"))[0] == 200
    status, body = await client.json(f"{SERVICES}?resourceVersion={version + 1}&resourceVersionMatch=NotOlderThan")
    assert status == 504 and body["message"].startswith("Too large resource version")
    api.put("services", service("a"))
    assert (await client.json(f"{SERVICES}?resourceVersion={version}&resourceVersionMatch=Exact"))[0] == 410
    assert (await client.json(f"{SERVICES}?resourceVersion=x"))[0] == 400
    assert (await client.json(f"{SERVICES}?resourceVersion=0"))[0] == 200


async def test_metadata_alone(api: FakeApi):
    api.put("services", service("a", labels={"x": "y"}))
    client = Client(api, accept="application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
    _, found = await client.json(SERVICES)
    assert found["kind"] == "PartialObjectMetadataList"
    (item,) = found["items"]
    assert item["kind"] == "PartialObjectMetadata" and "spec" not in item and item["metadata"]["labels"] == {"x": "y"}
    client.accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    await client.get(WATCH)
    api.put("services", service("b"))
    for name in ("a", "b"):
        event = await client.line()
        assert event and event["object"]["metadata"]["name"] == name and "spec" not in event["object"]
    client.close()


async def test_bodies_in_no_hurry(api: FakeApi, client: Client):
    api.fault(rate=2000, times=1)
    api.put("services", service("a"))
    began = time.monotonic()
    _, found = await client.json(SERVICES)
    assert names(found) == ["a"] and time.monotonic() - began > len(json.dumps(found)) / 4000


async def test_events_lost_doubled_and_out_of_order(api: FakeApi, client: Client):
    await client.get(f"{WATCH}&resourceVersion={api.resource_version}")
    api.filter = lost = Mischief(lose=1.0)
    api.put("services", service("lost"))
    api.filter = Mischief(repeat=1.0)
    api.put("services", service("twice"))
    api.filter = swaps = Mischief(swap=1.0)
    for name in ("late", "early", "held"):
        api.put("services", service(name))
    assert await client.lines(4) == [("ADDED", name) for name in ("twice", "twice", "early", "late")]
    swaps.flush(api.say)
    assert await client.lines(1) == [("ADDED", "held")]
    assert lost.lost == 1


async def test_other_addresses():
    async with FakeApi(host="::1") as api:
        assert api.url == f"http://[::1]:{api.port}"
        assert (await Client(api).json(SERVICES))[0] == 200


async def test_going_back(api: FakeApi, client: Client):
    api.put("services", service("a"))
    saved = api.save()
    version = api.resource_version
    api.put("services", service("b"))
    await api.rewind(saved)
    assert api.resource_version == version
    assert names((await client.json(SERVICES))[1]) == ["a"]
    api.put("services", service("c"))
    assert names((await client.json(SERVICES))[1]) == ["a", "c"]


async def test_builders(api: FakeApi):
    assert service("a", external_name="x.org")["spec"] == {"type": "ExternalName", "externalName": "x.org"}
    assert service("a", cluster_ip=["10.0.0.1", "fd00::1"])["spec"]["clusterIPs"] == ["10.0.0.1", "fd00::1"]
    six = endpointslice("a", [("fd00::1", "h")], ready=False)
    assert six["addressType"] == "IPv6" and six["endpoints"][0]["hostname"] == "h"
    assert namespace("a", {"x": "y"})["metadata"]["labels"] == {"x": "y"}


async def until(what, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.002)


@pytest.mark.skipif(shutil.which("coredns") is None, reason="no coredns on PATH")
@pytest.mark.parametrize("watchlist", [True, False])
async def test_the_real_coredns_follows_it(tmp_path, watchlist):
    async with FakeApi(watchlist=watchlist) as api:
        api.put("services", service("web", cluster_ip="10.96.0.5"))
        api.put("services", service("headless"))
        api.put("endpointslices", endpointslice("headless", [("10.1.0.1", "one"), "10.1.0.2"]))
        port = support.free_port()
        corefile = tmp_path / "Corefile"
        corefile.write_text(f".:{port} {{\n kubernetes cluster.local {{\n  endpoint {api.url}\n }}\n}}\n")
        process = await asyncio.create_subprocess_exec("coredns", "-conf", corefile, stdout=asyncio.subprocess.DEVNULL)

        async def answer(name: str) -> list[str]:
            try:
                reply = await support.ask(port, f"{name}.default.svc.cluster.local", timeout=0.5)
            except (OSError, dns.exception.Timeout):
                return ["nobody there"]
            return sorted(line.split()[-1] for line in support.answers(reply))

        async def comes_to_be(name: str, expected: list[str]) -> None:
            async with asyncio.timeout(10):
                while await answer(name) != expected:
                    await asyncio.sleep(0.01)

        try:
            await comes_to_be("web", ["10.96.0.5"])
            assert await answer("headless") == ["10.1.0.1", "10.1.0.2"]
            assert await answer("one.headless") == ["10.1.0.1"]
            api.put("services", service("new", cluster_ip="10.96.0.6"))
            await comes_to_be("new", ["10.96.0.6"])
            api.delete("services", "new")
            await comes_to_be("new", [])
            await api.cut()
            api.put("services", service("later", cluster_ip="10.96.0.7"))
            await comes_to_be("later", ["10.96.0.7"])
        finally:
            process.kill()
            await process.wait()
