"""K1 … K6 and K13: the control plane is away, silent, or tells half of the truth."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Any

from tests.chaos import world
from tests.chaos.stage import Load, Seen, Server, Setting, Stage, until
from tests.chaos.verdict import Run, Verdict
from tests.fakeapi import FakeApi, Mischief, service
from tests.fakehttp import Request

LOST = "lost.apps.svc.cluster.local."
"""Not in the backup."""
KINDS = ("namespaces", "services", "endpointslices", "pods")
ABSENT: dict[str, dict[str, Any]] = {
    "refused": {},
    "blackholed": {},
    "401": {"status": 401},
    "403": {"status": 403},
    "500": {"status": 500},
    "slow lists": {},
}
HELD = 3.0
"""Seconds until a question counts as lost while kdns starts: it holds those that it cannot answer for one second."""
NOISE = 0.002
"""Seconds: by so much p99 differs between two quiet windows here, where the load runs on the cores of kdns."""


async def absent_at_start(run: Run) -> Verdict:
    """K1: kdns starts while the API server refuses, is unreachable, answers errors, or takes its time."""
    verdict = Verdict(run)
    total, worst_start, worst_sync = 0, 0.0, 0.0
    modes = ("refused", "blackholed", "403") if run.quick else tuple(ABSENT)
    for mode in modes:
        run.say(mode)
        async with Stage(run) as stage:
            objects = world.fill(stage.api)
            known = world.questions(objects, run.seed)
            await break_api(stage, mode, run.seconds(6, 2))
            server = await stage.server(start=False)
            load = await stage.load(server, world.unknown(known), patience=HELD)
            began = asyncio.get_running_loop().time()
            starting = asyncio.create_task(server.start())
            await until(lambda server=server: answers(server), 15.0)  # type: ignore[misc]
            worst_start = max(worst_start, asyncio.get_running_loop().time() - began)
            await starting
            # What was asked before it listened has no answer, and is waited for as long as the rest.
            early, _ = await asyncio.gather(load.window(), asyncio.sleep(run.seconds(8, 2)))
            verdict.check(f"{mode}: the load was there before kdns", early.lost > 0)
            status, why = await server.readiness()
            verdict.check(f"{mode}: /ready is 503 and names the resource", status == 503 and "services" in why, why)
            seen = await load.window()
            total += seen.sent
            for what, count in (("lost", seen.lost), ("wrong", seen.wrong), ("NXDOMAIN", seen.nxdomain)):
                verdict.check(f"{mode}: 0 {what}", count == 0, f"{count}; {seen.examples[:1]}")
            if mode != "slow lists":
                worst_sync = max(worst_sync, await recovers(stage, server, mode))
    verdict.note("asked", total)
    verdict.at_most("first forwarded answer after exec", worst_start, 1.0, "s", clock=True)
    verdict.at_most("synced after the API returned", worst_sync, 2.0, "s", clock=True)
    return verdict


async def answers(server: Server) -> bool:
    """Whether a forwarded name is answered."""
    try:
        return await server.ask("first.example.org.", seconds=0.05) == world.FORWARDED
    except (OSError, TimeoutError):
        return False


async def break_api(stage: Stage, mode: str, seconds: float) -> None:
    """Let the API server fail as `ABSENT` says; ``seconds``: how slow a list is."""
    if mode == "refused":
        await stage.api.refuse()
    elif mode == "blackholed":
        stage.api.blackhole()
    elif mode == "slow lists":
        stage.api.fault(delay=seconds + 30)
    else:
        stage.api.fault(**ABSENT[mode])


async def recovers(stage: Stage, server: Server, mode: str) -> float:
    """Mend the API server; seconds until everything is known."""
    stage.api.heal()
    if mode in ("refused", "blackholed"):
        await stage.api.accept()
    return await server.until_ready(30)


async def warm_start(run: Run) -> Verdict:
    """K1, its Reach: a snapshot answers the last known names while the API server is away."""
    verdict = Verdict(run)
    file = run.directory / "snapshot"
    setting = Setting(kubernetes=f"pods verified\n        snapshot {file} {{\n            max_age 1h\n        }}")
    async with Stage(run, setting) as stage:
        objects = world.fill(stage.api)
        known = world.questions(objects, run.seed)
        first = await stage.server()
        await first.stop()
        await until(file.exists, 20, lambda: f"no {file}")
        await stage.api.refuse()
        second = await stage.server(start=False)
        stale = [one if one.outside else world.Question(one.name, one.type, (old(one),), one.weight) for one in known]
        began = asyncio.get_running_loop().time()
        starting = asyncio.create_task(second.start())
        name = next(one for one in stale if one.type == "A" and "*" not in one.name and not one.outside)

        async def known_again() -> bool:
            try:
                return await second.ask(name.name, seconds=0.05) == name.right[0]
            except (OSError, TimeoutError):
                return False

        await until(known_again, 15)
        took = asyncio.get_running_loop().time() - began
        await starting
        load = await stage.load(second, stale, patience=HELD)
        await asyncio.sleep(run.seconds(5, 1))
        verdict.clean(await load.window())
        verdict.at_most("first cluster answer after exec", took, 1.0, "s", clock=True)
        await stage.api.accept()
        load.expect({number: one.right for number, one in enumerate(known)})
        verdict.note("fresh again", await second.becomes(name.name, name.right[0] - {"EDE 3"}, 10), "s")
    return verdict


def old(one: world.Question) -> frozenset[str]:
    """The answer out of a snapshot: what was there is told as old news, what was not is not denied."""
    return world.NOT_READY if one.right[0] == world.NOWHERE else one.right[0] | {"EDE 3"}


async def killed(run: Run, setting: Setting | None = None) -> Verdict:
    """K2: the API server is killed and stays away."""
    verdict = Verdict(run)
    async with Stage(run, setting) as stage:
        objects = world.fill(stage.api)
        server = await stage.server()
        load = await stage.load(server, world.questions(objects, run.seed))
        await asyncio.sleep(run.seconds(2))
        await load.window()
        await asyncio.sleep(run.seconds(8, 1))
        before = await load.window()
        errors = total(await server.metrics(), "requests_total", 'code="<error>"')
        await stage.api.refuse()
        seconds = run.seconds(60, 3)
        await asyncio.sleep(seconds)
        errors = total(await server.metrics(), "requests_total", 'code="<error>"') - errors
        stage.api.put("services", service("late", "apps", cluster_ip="10.97.0.1"))
        outage = await load.window()
        await stage.api.accept()
        verdict.at_most(
            "converged", await server.becomes("late.apps.svc.cluster.local.", ["10.97.0.1"], 20), 2.0, "s", clock=True
        )
        back = await load.window()
        await asyncio.sleep(run.seconds(8, 1))
        after = await load.window()
        verdict.clean(outage)
        verdict.clean(back, "return")
        verdict.check("no SERVFAIL", outage.servfail == 0, str(outage.answers))
        slower(verdict, before, outage, after, 1.1)
        # The first tries of an outage are quicker, and so few that they matter in a short one only.
        verdict.at_most("reconnects", (errors / len(KINDS) - 4) / seconds, 1.0, "/s per resource")
    return verdict


def slower(verdict: Verdict, before: Seen, during: Seen, after: Seen, factor: float) -> None:
    """The latency during a fault beside that before and after it, of which the worse counts: others use the machine."""
    verdict.note("p99 before", before.p99, "s")
    verdict.note("p99 after", after.p99, "s")
    verdict.at_most("p99", during.p99, factor * max(before.p99, after.p99) + NOISE, "s", clock=True)


def total(samples: dict[str, float], *parts: str) -> float:
    """The sum of the samples whose key has these parts."""
    return sum(value for key, value in samples.items() if all(part in key for part in parts))


def is_list(request: Request) -> bool:
    """Whether a request begins a whole list: not a further page, a probe, an audit, or the look at one object."""
    query = request.query
    return query.get("sendInitialEvents") == "true" or (
        request.verb == "list"
        and not (request.bare or "continue" in query or query.get("limit") == "1" or "fieldSelector" in query)
    )


async def half_open(run: Run) -> Verdict:
    """K3: the watches' connections break without a word, and a hundred Services change behind them."""
    verdict = Verdict(run)
    async with Stage(run) as stage:
        objects = world.fill(stage.api)
        server = await stage.server()
        load = await stage.load(server, world.questions(objects, run.seed))
        stage.api.half_open()
        names = []
        for number in range(100):
            stage.api.put("services", service(f"new{number}", "apps", cluster_ip=f"10.97.0.{number + 1}"))
            names.append((f"new{number}.apps.svc.cluster.local.", f"10.97.0.{number + 1}"))
        took = await server.becomes(*names[-1:][0][:1], [names[-1][1]], 60)
        for name, address in names:
            verdict.check(f"{name} is right", await server.ask(name) == frozenset({address}))
        verdict.at_most("correct after", took, 15.0, "s")
        verdict.clean(await load.window())
    return verdict


async def backed_up(run: Run, stage: Stage) -> tuple[Server, Load, Any]:
    """A server under load, a backup of what was there before, and a Service that is not in it."""
    objects = world.fill(stage.api)
    saved = stage.api.save()
    server = await stage.server()
    load = await stage.load(server, world.questions(objects, run.seed))
    stage.api.put("services", service("lost", "apps", cluster_ip="10.97.0.1"))
    await server.becomes(LOST, ["10.97.0.1"], 10)
    return server, load, saved


def go_on(stage: Stage) -> None:
    """Fifty versions more."""
    for number in range(50):
        stage.api.put("services", service(f"noise{number}", "apps", cluster_ip="10.97.0.3"))


async def restored(run: Run) -> Verdict:
    """K5: etcd comes back from a backup: lower versions; watches from the future are silent, refused, or errors."""
    verdict = Verdict(run)
    for future in ("silence",) if run.quick else ("silence", "error", "gone"):
        run.say(future)
        async with Stage(run) as stage:
            server, load, saved = await backed_up(run, stage)
            go_on(stage)
            await server.becomes("noise49.apps.svc.cluster.local.", ["10.97.0.3"], 10)
            stage.api.future = future
            await stage.api.rewind(saved)
            stage.api.put("services", service("kept", "apps", cluster_ip="10.97.0.2"))
            took = await server.becomes(LOST, ["NXDOMAIN"], 60)
            took += await server.becomes("kept.apps.svc.cluster.local.", ["10.97.0.2"], 60)
            verdict.at_most(f"{future}: correct after", took, 30.0, "s")
            verdict.clean(await load.window(), future)
    return verdict


async def overtaken(run: Run) -> Verdict:
    """K5, harder: before kdns is back, the restored etcd has passed the version that kdns knows."""
    verdict = Verdict(run)
    async with Stage(run) as stage:
        server, load, saved = await backed_up(run, stage)
        await stage.api.rewind(saved)
        go_on(stage)
        took = await server.becomes(LOST, ["NXDOMAIN"], 600)
        took += await server.becomes("noise0.apps.svc.cluster.local.", ["10.97.0.3"], 600)
        verdict.at_most("correct after", took, 600.0, "s")
        verdict.clean(await load.window())
    return verdict


async def dropped(run: Run) -> Verdict:
    """K6: one event in twenty is never told."""
    verdict = Verdict(run)
    api = FakeApi(bookmark=5.0)
    objects = world.fill_big(api, run.number(2000, 40), run.number(20_000, 400))
    async with Stage(run, Setting(kubernetes=""), api) as stage:
        server = await stage.server()
        load = await stage.load(server, world.questions(objects, run.seed, pods=False))
        stage.api.filter = mischief = Mischief(lose=0.05, seed=run.seed)
        truth: dict[str, str] = {}
        for number in range(run.number(1000, 100)):
            name = f"d{number % 200}"
            truth[name] = f"10.99.{number // 250 % 250}.{number % 250 + 1}"
            stage.api.put("services", service(name, "n0", cluster_ip=truth[name]))
            await asyncio.sleep(run.seconds(20, 2) / 1000)
        stage.api.filter = lambda resource, lines: lines

        async def all_right() -> bool:
            for name, address in truth.items():
                if await server.ask(f"{name}.n0.svc.cluster.local.") != frozenset({address}):
                    return False
            return True

        verdict.note("events lost", mischief.lost)
        verdict.at_most("repaired after", await until(all_right, 600), 600.0, "s")
        repairs = total(await server.metrics(), "repair")
        verdict.at_least("repairs counted", repairs, 1)
        verdict.clean(await load.window())
        lists = max(sum(is_list(one) for one in api.requests if one.resource == kind) for kind in KINDS)
        verdict.at_most("whole lists of a resource", lists, 1)
        load.tell({"rate": 0.0})
        seconds, began = run.seconds(35), server.cpu()  # there is an audit in it
        await asyncio.sleep(seconds)
        verdict.at_most("CPU of a server that only audits", round(100 * (server.cpu() - began) / seconds, 2), 1.0, "%")
    return verdict


async def partial(run: Run) -> Verdict:
    """K13: EndpointSlices never come, everything else does."""
    verdict = Verdict(run)
    async with Stage(run) as stage:
        objects = world.fill(stage.api)
        stage.api.fault(resource="endpointslices", stall=True)
        server = await stage.server(ready=False)
        known = world.questions(objects, run.seed)
        first = next(one for one in objects if one["kind"] == "Service" and one["spec"].get("clusterIP") != "None")
        await server.becomes(f"{first['metadata']['name']}.apps.svc.cluster.local.", [first["spec"]["clusterIP"]], 20)
        load = await stage.load(server, [depending(one, objects) for one in known], patience=HELD)
        await asyncio.sleep(run.seconds(10, 2))
        status, why = await server.readiness()
        verdict.check("/ready is 503 and names endpointslices", status == 503 and "endpointslices" in why, why)
        verdict.clean(await load.window())
        stage.api.heal()
        await stage.api.cut()
        verdict.note("synced after", await server.until_ready(30), "s")
        load.expect({number: one.right for number, one in enumerate(known)})
        await asyncio.sleep(0.2)
        await load.window()
        await asyncio.sleep(run.seconds(3))
        verdict.clean(await load.window(), "after")
    return verdict


def depending(one: world.Question, objects: list[dict[str, Any]]) -> world.Question:
    """The question while nothing is known of endpoints: SERVFAIL if the answer depends on them, else as ever."""
    with_ips = [item for item in objects if item["kind"] == "Service" and item["spec"].get("clusterIP") != "None"]
    names = {f"{item['metadata']['name']}.apps.{world.SUFFIX}" for item in with_ips}
    reverse = {ip_address(item["spec"]["clusterIP"]).reverse_pointer + "." for item in with_ips}
    labels = one.name.split(".")
    own = ".".join(labels[2:]) if one.name.startswith("_") else one.name
    # Names of Pods, namespaces, and those that have too many labels to mean anything.
    other = one.outside or "*" in one.name or ".pod." in one.name or own.removesuffix(world.SUFFIX).count(".") == 1
    if other or own in names or own in reverse:
        return one
    return world.Question(one.name, one.type, (world.NOT_READY,), one.weight)
