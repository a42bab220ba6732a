"""The API server fails in every way: names keep being answered, nothing senseless is believed, nothing grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dns.message
import pytest
from dns.edns import EDEOption

from kdns import limits
from kdns.message import Edns
from tests.fakeapi import FakeApi, endpointslice, service
from tests.fakeupstream import FakeUpstream
from tests.faults.tools import (
    MIB,
    WEB,
    WEB_ADDRESS,
    client,
    corefile,
    peak_rss,
    pulse,
    query,
    rcode,
    rss,
    until,
)
from tests.support import Kdns, ask, free_port, http_get

PTR = 12
ABSENT = "nobody.default.svc.cluster.local."


class Served:
    def __init__(self, directory: Path, api: FakeApi, upstream: FakeUpstream) -> None:
        self.directory, self.api, self.upstream = directory, api, upstream
        self.port, self.ready = free_port(), free_port()
        self.conf = corefile(
            directory,
            f""".:{self.port} {{
    bind 127.0.0.1
    errors
    ready 127.0.0.1:{self.ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        endpoint http://127.0.0.1:{api.port or free_port()}
        fallthrough in-addr.arpa ip6.arpa
    }}
    forward . {upstream.address}
}}
""",
        )

    async def run(self) -> Kdns:
        """The process, as soon as it says that it serves; the API server lives in this loop."""
        return await asyncio.to_thread(Kdns, self.conf)

    async def rcode(self, name: str, kind: str = "A") -> int:
        return (await ask(self.port, name, kind)).rcode()

    async def becomes(self, name: str, rcode: int, seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while await self.rcode(name) != rcode:
                await asyncio.sleep(0.05)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    api = FakeApi()
    api.put("services", service("web", cluster_ip="10.96.0.5"))
    api.put("services", service("peers"))
    api.put("endpointslices", endpointslice("peers", ["10.1.0.1", "10.1.0.2"]))
    async with api, FakeUpstream() as upstream:
        yield Served(tmp_path, api, upstream)


async def end(kdns: Kdns) -> None:
    assert await asyncio.to_thread(kdns.stop) == 0
    assert "Traceback" not in kdns.output and "panic" not in kdns.output, kdns.output


@pytest.mark.parametrize("how", ["refused", "stalls", "500", "403", "garbage", "{}"])
async def test_absent_at_start(served: Served, how: str) -> None:
    faults: dict[str, dict[str, Any]] = {
        "stalls": {"stall": True},
        "500": {"status": 500},
        "403": {"status": 403},
        "garbage": {"body": b"\x16\x03garbage"},
        "{}": {"body": b"{}"},
    }
    if how == "refused":
        await served.api.refuse()
    else:
        served.api.fault(**faults[how])
    with await served.run() as kdns:
        began = time.monotonic()
        async with client(served.port) as udp:
            # A forwarded name does not wait for the cluster.
            reply = await udp.ask(query("www.example."))
            assert not rcode(reply) and time.monotonic() - began < 2.0
            asked = {WEB: 1, ABSENT: 1, "x.y.z.cluster.local.": 1, "5.0.96.10.in-addr.arpa.": PTR}
            packets = [query(name, type=type, edns=Edns(1232, False)) for name, type in asked.items()]
            for found in await udp.many(packets):
                assert found is not None
                message = dns.message.from_wire(found)
                codes = [option.code for option in message.options if isinstance(option, EDEOption)]
                assert message.rcode() == 2 and codes == [14], message
        assert not [name for name in served.upstream.names if "arpa" in name or "cluster" in name]
        status, text = await http_get(served.ready, "/ready")
        said = {"refused": "refused", "stalls": "", "500": "500", "403": "403", "garbage": "", "{}": ""}[how]
        assert status == 503 and text.startswith("kubernetes") and "services" in text and said in text, text
        if how == "refused":
            await served.api.accept()
        served.api.heal()
        if how == "stalls":
            await served.api.cut()
        await served.becomes(WEB, 0)
        await served.becomes(ABSENT, 3)
        async with asyncio.timeout(15):
            while (await http_get(served.ready, "/ready"))[0] != 200:
                await asyncio.sleep(0.05)
        await end(kdns)


FAULTS: list[dict[str, Any]] = [
    {"status": 410},
    {"status": 500},
    {"status": 429, "retry_after": 1},
    {"body": b"garbage"},
    {"reset": True},
]


async def test_stopped_restarted_and_answering_errors(served: Served) -> None:
    with await served.run() as kdns:
        await served.becomes(WEB, 0)
        api = served.api
        async with (
            pulse(served.port) as web,
            pulse(served.port, query(ABSENT), lambda reply: rcode(reply) == 3) as absent,
        ):
            for number, fault in enumerate(FAULTS):
                broken = api.fault(**fault)
                await api.cut()
                await until(lambda broken=broken: broken.hits >= 3)  # type: ignore[misc]
                api.put("services", service(f"new{number}", cluster_ip=f"10.96.1.{number}"))
                api.heal(broken)
                await served.becomes(f"new{number}.default.svc.cluster.local.", 0, 10)
            await api.refuse()
            await asyncio.sleep(1.0)
            api.put("services", service("late", cluster_ip="10.96.2.1"))
            await api.accept()
            began = time.monotonic()
            await served.becomes("late.default.svc.cluster.local.", 0, 10)
            took = time.monotonic() - began
        assert web.fine and absent.fine, (vars(web), vars(absent))
        assert took < 5.0, took
        assert (await http_get(served.ready, "/ready"))[0] == 200
        await end(kdns)


NONSENSE = [
    b"{}",
    b"null",
    b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9999"},"items":[]}',
    b'{"kind":"Status","status":"Failure","code":500}',
    b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9999"},"items":[',
    b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":17},"items":[]}',
    b"[" * 100_000,
]
"""What is no list of Services."""

LINES = [
    b"{}",
    b"garbage",
    b'{"type":"EXPLODED","object":{"metadata":{"name":"web","namespace":"default"}}}',
    b'{"type":"DELETED","object":{}}',
    b'{"type":"DELETED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"default"}}}',
    b'{"type":"MODIFIED","object":{"kind":"Service","metadata":{"name":5}}}',
    b'{"type":"BOOKMARK","object":{"kind":"Service","metadata":{}}}',
    b'{"type":"DELETED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","names',
    b"\xff" * 3000,
]
"""What is no event that tells of Services."""


async def test_lists_and_watches_that_make_no_sense_change_nothing(served: Served) -> None:
    with await served.run() as kdns:
        await served.becomes(WEB, 0)
        api = served.api
        async with pulse(served.port) as web:
            for line in LINES:
                await until(lambda: api.watching("services") > 0)
                api.say("services", line)
                await asyncio.sleep(0.05)
            for nonsense in NONSENSE:
                broken = api.fault(resource="services", body=nonsense)
                api.forget_history()
                await api.cut()
                await until(lambda broken=broken: broken.hits >= 1)  # type: ignore[misc]
                await asyncio.sleep(0.05)
                api.heal(broken)
            api.put("services", service("after", cluster_ip="10.96.3.1"))
            await served.becomes("after.default.svc.cluster.local.", 0, 20)
        assert web.fine, (vars(web), kdns.read())
        await end(kdns)


async def test_a_line_or_body_without_end_takes_no_memory(served: Served) -> None:
    with await served.run() as kdns:
        await served.becomes(WEB, 0)
        api = served.api
        before = rss(kdns)
        async with pulse(served.port) as web:
            endless = [api.fault(resource=kind, endless=True) for kind in ("services", "endpointslices")]
            await api.cut()
            await until(lambda: all(fault.hits >= 2 for fault in endless))
            grown = peak_rss(kdns) - before
            api.heal()
            api.put("services", service("after", cluster_ip="10.96.3.1"))
            await served.becomes("after.default.svc.cluster.local.", 0, 20)
        assert web.fine, (vars(web), kdns.read())
        assert grown < 8 * max(limits.API_PAGE, limits.API_LINE), grown / MIB
        await end(kdns)


async def test_an_object_with_very_much_in_it_is_bounded(served: Served) -> None:
    with await served.run() as kdns:
        await served.becomes(WEB, 0)
        before = rss(kdns)
        async with pulse(served.port) as web:
            huge = service("huge", cluster_ip="10.96.0.9") | {"data": {"x": "y" * (6 * MIB)}}
            served.api.put("services", huge)
            await asyncio.sleep(0.5)
            served.api.put("services", service("after", cluster_ip="10.96.3.1"))
            await served.becomes("after.default.svc.cluster.local.", 0, 20)
            grown = peak_rss(kdns) - before
        assert web.fine, (vars(web), kdns.read())
        assert grown < 64 * MIB, grown / MIB
        assert WEB_ADDRESS in (await ask(served.port, WEB)).to_wire()
        await end(kdns)
