"""K4, K11 and K14: many objects, listed over and over, under a limit of memory, or changing all the time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.chaos import world
from tests.chaos.cgroup import Cgroup
from tests.chaos.control import is_list, slower
from tests.chaos.stage import Server, Setting, Stage
from tests.chaos.verdict import Run, Verdict
from tests.fakeapi import FakeApi, endpointslice, service
from tests.faults.tools import MIB, peak_rss, rss

EXPIRED = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}
KINDS = ("services", "endpointslices", "namespaces")


def forget_peak(server: Server) -> None:
    """Measure the peak of memory from now on."""
    Path(f"/proc/{server.kdns.process.pid}/clear_refs").write_text("5")


def pss(server: Server) -> float:
    """MiB, shared pages by share."""
    text = Path(f"/proc/{server.kdns.process.pid}/smaps_rollup").read_text()
    return int(text.partition("\nPss:")[2].split()[0]) / 1024


async def expired(run: Run) -> Verdict:
    """K4: every watch that is resumed is answered 410, in a large cluster."""
    verdict = Verdict(run)
    api = FakeApi(bookmark=5.0)
    objects = world.fill_big(api, run.number(10_000, 200), run.number(100_000, 2000))
    asked = world.questions(objects, run.seed, pods=False)
    async with Stage(run, Setting(kubernetes=""), api) as stage:
        server = await stage.server()
        load = await stage.load(server, asked)
        await asyncio.sleep(2)
        await load.window()
        await asyncio.sleep(run.seconds(5))
        before = await load.window()
        steady = rss(server.kdns)
        forget_peak(server)
        api.fault(verb="watch", event=EXPIRED, when=lambda request: "sendInitialEvents" not in request.query)
        api.requests.clear()
        seconds = run.seconds(60, 4)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await api.cut()  # so that watches are resumed
            await asyncio.sleep(3)
        during = await load.window()
        lists = [sum(is_list(one) for one in api.requests if one.resource == kind) for kind in KINDS]
        verdict.at_most(f"lists of a resource in {seconds:.0f} s", max(lists), 7 if seconds <= 60 else 10)
        verdict.at_least("and", min(lists), 1)  # else nothing was put to the test
        verdict.clean(during)
        verdict.note("p99 before", before.p99, "s")
        verdict.at_most("p99", during.p99, max(0.005, 2 * before.p99), "s", clock=True)
        if not run.quick:
            verdict.at_most("peak / steady memory", peak_rss(server.kdns) / steady, 1.25)
    return verdict


async def limited(run: Run) -> Verdict:
    """K11: the shape of 5,000 nodes under a memory limit, and the API server restarts over and over."""
    verdict = Verdict(run)
    group = Cgroup.make("memory", {"memory.limit_in_bytes": str(170 * MIB)})
    api = FakeApi(bookmark=5.0)
    objects = world.fill_big(api, run.number(8_000, 200), run.number(150_000, 2000))
    try:
        async with Stage(run, Setting(kubernetes="", within=group.within()), api) as stage:
            server = await stage.server()
            first = server.cpu()
            verdict.note("first sync", first, "s of CPU")
            load = await stage.load(server, world.questions(objects, run.seed, pods=False))
            await asyncio.sleep(run.seconds(5))
            steady = pss(server)
            forget_peak(server)
            await load.window()
            restarts = run.number(5, 1)
            for number in range(restarts):
                run.say(f"restart {number + 1} of {restarts}")
                await restart(stage, server, number)
            during = await load.window()
            verdict.at_most("steady Pss", steady, 85.0, "MiB")
            verdict.at_most("peak RSS", peak_rss(server.kdns) / MIB, 170.0, "MiB")
            verdict.note("peak / steady Pss", peak_rss(server.kdns) / MIB / steady)
            verdict.note("restarts", restarts)
            verdict.check("no OOM", server.kdns.process.poll() is None and not group.oom_kills())
            verdict.note("p99", during.p99, "s")
            verdict.clean(during)
    finally:
        group.remove()
    return verdict


async def restart(stage: Stage, server: Server, number: int) -> None:
    """The API server goes, comes back without a history, and a change is seen: everything has been listed."""
    await stage.api.refuse()
    await asyncio.sleep(0.5)
    stage.api.forget_history()
    stage.api.put("services", service("again", "n0", cluster_ip=f"10.95.0.{number + 1}"))
    await stage.api.accept()
    await server.becomes("again.n0.svc.cluster.local.", [f"10.95.0.{number + 1}"], 120)


async def churn(run: Run) -> Verdict:
    """K14: a thousand changes a second; how soon each fiftieth is answered."""
    verdict = Verdict(run)
    async with Stage(run) as stage:
        api = stage.api
        asked = world.questions(world.fill(api), run.seed)
        server = await stage.server()
        load = await stage.load(server, asked)
        await asyncio.sleep(run.seconds(2))
        await load.window()
        await asyncio.sleep(run.seconds(5))
        before = await load.window()
        changes = Changes(api, 100.0 if run.quick else 1000.0)
        working = asyncio.create_task(changes.run(run.seconds(30, 2)))
        delays = []
        while not working.done():
            delays.append(await changes.delay(server))
            await asyncio.sleep(0.03)
        await working
        during = await load.window()
        await asyncio.sleep(run.seconds(5))
        after = await load.window()
        delays.sort()
        verdict.at_least("changes a second", round(changes.made / during.seconds), 0.0 if run.quick else 900)
        verdict.note("median change → answer", delays[len(delays) // 2], "s")
        p99 = delays[min(len(delays) - 1, int(0.99 * len(delays)))]
        verdict.at_most("p99 change → answer", p99, 0.1, "s", clock=True)
        verdict.at_most("stalest", delays[-1], 1.0, "s", clock=True)
        verdict.clean(during)
        slower(verdict, before, during, after, 1.5)
    return verdict


class Changes:
    """Changes Services and slices at a steady rate."""

    def __init__(self, api: FakeApi, rate: float) -> None:
        self.made = 0
        self._api, self._rate = api, rate
        self._probe = 0

    async def run(self, seconds: float) -> None:
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            # No burst makes up for what the machine held up.
            for _ in range(min(20, int((now - began) * self._rate) - self.made)):
                self._change()
            await asyncio.sleep(0.005)

    def _change(self) -> None:
        self.made += 1
        number = self.made
        address = f"10.99.{number // 250 % 250}.{number % 250}"
        if number % 2:
            self._api.put("services", service(f"c{number % 500}", "churn", cluster_ip=address))
        else:
            self._api.put("endpointslices", endpointslice(f"c{number % 500}", [address], "churn"))

    async def delay(self, server: Server) -> float:
        """Change one more Service; seconds until the new answer comes."""
        self._probe += 1
        address = f"10.94.{self._probe // 250}.{self._probe % 250}"
        self._api.put("services", service("probe", "apps", cluster_ip=address))
        began = time.monotonic()
        wanted = frozenset({address})
        while await server.ask("probe.apps.svc.cluster.local.") != wanted:
            if time.monotonic() - began > 10:
                break
        return time.monotonic() - began
