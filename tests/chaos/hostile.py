"""K12: an API server that sends what makes no sense, much too much, or asks for patience."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tests.chaos import world
from tests.chaos.stage import Stage
from tests.chaos.verdict import Run, Verdict
from tests.fakeapi import endpointslice, pod, service
from tests.faults.tools import MIB, peak_rss, rss

WRONG: tuple[Any, ...] = (None, True, -1, 2**70, 1.5, "", "x" * 300, [], [None], {}, {"a": {"b": []}})
OBJECTS: dict[str, dict[str, Any]] = {
    "services": {"kind": "Service", "apiVersion": "v1"} | service("odd", "hostile", cluster_ip="10.98.0.1"),
    "endpointslices": {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1"}
    | endpointslice("odd", [("10.98.1.1", "host")], "hostile"),
    "pods": {"kind": "Pod", "apiVersion": "v1"} | pod("odd", "10.98.2.1", "hostile"),
}


def frames(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Watch lines gone wrong, without end: (resource, line).  None of them speaks of an object that others ask for."""
    while True:
        resource = chance.choice(list(OBJECTS))
        item = json.loads(json.dumps(OBJECTS[resource]))
        # An ERROR ends the watch, and kdns takes its time until the next one.
        type = (
            "ERROR" if chance.random() < 0.001 else chance.choice(("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ODD"))
        )
        event = {"type": type, "object": item}
        kind = chance.random()
        if kind < 0.5:
            spoil(event, chance)
        line = bytearray(json.dumps(event).encode())
        if 0.4 < kind < 0.8:
            for _ in range(chance.randint(1, 8)):
                line[chance.randrange(len(line))] = chance.randrange(256)
        elif kind > 0.8:
            del line[chance.randrange(len(line)) :]
        yield resource, bytes(line).replace(b"\n", b" ")


def spoil(event: dict[str, Any], chance: random.Random) -> None:
    """Put something of a wrong type into one place, wherever that is."""
    places: list[tuple[Any, Any]] = []

    def walk(found: Any) -> None:
        keys = found if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ()
        for key in keys:
            places.append((found, key))
            walk(found[key])

    walk(event)
    holder, key = chance.choice(places)
    if key != "namespace":  # it keeps these objects apart from those that others ask for
        holder[key] = chance.choice(WRONG)


async def nonsense(run: Run) -> Verdict:
    """K12: mutated watch lines, broken lists, a huge object, and 429 with Retry-After."""
    verdict = Verdict(run)
    chance = random.Random(run.seed)
    async with Stage(run) as stage:
        api = stage.api
        asked = world.questions(world.fill(api), run.seed)
        server = await stage.server()
        load = await stage.load(server, asked)
        await asyncio.sleep(1)
        before = rss(server.kdns)
        wanted, told = run.number(100_000, 1000), 0
        run.say(f"{wanted} mutated lines")
        until = time.monotonic() + run.seconds(60, 5)
        for resource, line in frames(chance):
            if api.watching(resource):
                api.say(resource, line)
                told += 1
            if told % 50 == 0 or not api.watching(resource):
                await asyncio.sleep(0.002)
            if told >= wanted or time.monotonic() > until:
                break
        for fault in ({"truncate": 100}, {"body": b'{"kind":"ServiceList","items":['}, {"endless": True}):
            broken = api.fault(resource="services", **fault)
            api.forget_history()
            await api.cut()
            await asyncio.sleep(run.seconds(3, 1))
            api.heal(broken)
        huge = service("huge", "hostile", cluster_ip="10.98.0.9") | {"data": {"x": "y" * int(1.4 * MIB)}}
        api.put("services", huge)
        gaps = await patience(stage, run)
        verdict.check(
            "Retry-After is honoured ± 20 %", bool(gaps) and all(2.4 <= gap <= 4.0 for gap in gaps), f"{gaps}"
        )
        api.put("services", service("after", "apps", cluster_ip="10.97.3.1"))
        verdict.at_least("mutated lines", told, 0.5 * wanted)
        took = await server.becomes("after.apps.svc.cluster.local.", ["10.97.3.1"], 90)
        verdict.note("converged", took, "s")
        verdict.at_most("memory grew by", (peak_rss(server.kdns) - before) / MIB, 32.0, "MiB")
        verdict.clean(await load.window())
    return verdict


async def patience(stage: Stage, run: Run) -> list[float]:
    """Seconds between requests for Services while each is answered 429 with Retry-After: 3."""
    refusal = stage.api.fault(resource="services", status=429, retry_after=3)
    await stage.api.cut()
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(run.seconds(12, 8))
    stage.api.heal(refusal)
    times = [one.time for one in stage.api.requests if one.resource == "services" and one.time >= began]
    return [round(later - sooner, 2) for sooner, later in pairwise(times)]
