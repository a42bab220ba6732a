"""L1 … L10: the life of processes: rollouts, kills, reloads of all kinds, too little CPU."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from kdns.errors import KdnsError
from tests.chaos import world
from tests.chaos.cgroup import Cgroup
from tests.chaos.stage import Load, Server, Setting, Stage, until
from tests.chaos.verdict import Run, Verdict
from tests.support import http_get, parse

# --- rollouts --------------------------------------------------------------------------------------------------------


def lead(load: Load, servers: list[Server]) -> None:
    """New flows go to these from now on."""
    load.tell({"targets": [("127.0.0.1", server.port) for server in servers]})


def leave(load: Load, server: Server, pinned: float = 0.0) -> None:
    """Flows to this server go elsewhere from now on, all but a share of them."""
    load.tell({"leave": server.port, "pinned": pinned})


async def rollout(run: Run) -> Verdict:
    """L1: replicas are replaced one after the other, and who sends queries learns of it late."""
    verdict = Verdict(run)
    chance = random.Random(run.seed)
    async with Stage(run, Setting(health="lameduck 7s")) as stage:
        asked = world.questions(world.fill(stage.api), run.seed)
        serving = [await stage.server(), await stage.server()]
        load = await stage.load(serving, asked)
        ending: list[asyncio.Task[int]] = []
        rollouts = run.number(6, 1)
        for number in range(rollouts):
            run.say(f"rollout {number + 1} of {rollouts}")
            old, new = serving[0], await stage.server()
            serving = [serving[1], new]
            old.kdns.process.send_signal(signal.SIGTERM)
            ending.append(asyncio.create_task(old.stop()))
            await asyncio.sleep(chance.uniform(0, 2 if run.quick else 5))
            lead(load, serving)
            leave(load, old)
        codes = await asyncio.gather(*ending)
        seen = await load.window()
        verdict.note("rollouts", rollouts)
        verdict.check("all ended with 0", not any(codes), str(codes))
        verdict.clean(seen)
        verdict.check("no SERVFAIL", seen.servfail == 0, str(seen.answers))
    return verdict


async def pinned(run: Run) -> Verdict:
    """L2: some flows are led to the old server for long, because of stale connection tracking."""
    verdict = Verdict(run)
    async with Stage(run, Setting(health="lameduck 3s 25s")) as stage:
        asked = world.questions(world.fill(stage.api), run.seed)
        old = await stage.server()
        new = await stage.server()
        load = await stage.load([old], asked)
        await asyncio.sleep(0.5)
        old.kdns.process.send_signal(signal.SIGTERM)
        ending = asyncio.create_task(old.stop())
        lead(load, [new])
        leave(load, old, pinned=0.3)
        await asyncio.sleep(run.seconds(15, 5))
        verdict.check("it still answers its stragglers", not ending.done())
        leave(load, old)
        left = time.monotonic()
        verdict.check("it ends with 0", await ending == 0)
        verdict.at_most("ends after the last straggler", time.monotonic() - left, 5.0, "s", clock=True)
        verdict.clean(await load.window())
    return verdict


async def killed(run: Run) -> Verdict:
    """L3: a process is killed and started again at once, as by a supervisor."""
    verdict = Verdict(run)
    async with Stage(run) as stage:
        asked = world.questions(world.fill(stage.api), run.seed)
        server = await stage.server()
        for one in asked:
            if not one.outside:
                one.right = (*one.right, world.NOT_READY)  # until it is in step again
        load = await stage.load(server, asked)
        kills, slowest, gone = run.number(5, 1), 0.0, 0.0
        for number in range(kills):
            await asyncio.sleep(run.seconds(2, 0.5))
            run.say(f"kill {number + 1} of {kills}")
            began = time.monotonic()
            await server.stop(signal.SIGKILL)
            await server.start()
            await until(lambda: _right(server, asked[0]), 20)
            slowest = max(slowest, time.monotonic() - began)
            gone += time.monotonic() - began
        await asyncio.sleep(1)
        seen = await load.window()
        await server.until_ready()
        load.expect({number: one.right[:1] for number, one in enumerate(asked)})
        await load.window()
        await asyncio.sleep(run.seconds(3))
        verdict.clean(await load.window(), "afterwards")
        verdict.at_most("back after", slowest, 2.0, "s", clock=True)
        verdict.at_most("wrong", seen.wrong, 0)
        verdict.at_most("lost / asked while it was away", seen.lost / (gone * seen.sent / seen.seconds), 1.0)
        verdict.note("lost", seen.lost)
        if seen.wrong:
            verdict.failed += seen.examples[:2]
    return verdict


async def _right(server: Server, question: world.Question) -> bool:
    try:
        return await server.ask(question.name, question.type, 0.1) == question.right[0]
    except (OSError, TimeoutError):
        return False


# --- reloads ---------------------------------------------------------------------------------------------------------

PLACES = ("health", "ready", "metrics_port")


async def reload(server: Server, said: str = "Reloading complete") -> None:
    """SIGUSR1, and wait for what the log says then."""
    before = server.kdns.read().count(said)
    server.kdns.process.send_signal(signal.SIGUSR1)
    await until(lambda: server.kdns.read().count(said) > before, 60, lambda: server.kdns.output[-2000:])


def mutated(text: str, chance: random.Random) -> str:
    """A Corefile gone wrong: words, lines and characters lost, doubled, swapped, from elsewhere."""
    lines = text.splitlines()
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(lines))
        kind = chance.randrange(7)
        words = lines[at].split() or [""]
        if kind == 0:
            del lines[at : at + chance.randint(1, 3)]
        elif kind == 1:
            lines.insert(at, lines[chance.randrange(len(lines))])
        elif kind == 2:
            words[chance.randrange(len(words))] = chance.choice(
                ("{", "}", '"', "import", "{$X", "-1", "\x00", "é" * 99)
            )
            lines[at] = " ".join(words)
        elif kind == 3:
            chance.shuffle(words)
            lines[at] = " ".join(words)
        elif kind == 4 and lines[at]:
            cut = chance.randrange(len(lines[at]))
            lines[at] = lines[at][:cut] + chr(chance.randrange(1, 0x250)) + lines[at][cut + 1 :]
        elif kind == 5:
            lines[at] *= chance.randint(2, 50)
        else:
            lines[at] = lines[at][: len(lines[at]) // 2]
        lines = lines or [""]
    return "\n".join(lines)


BAD_LINES = (
    "nonsense",
    "dnssec",
    "cache 30 {\n        forever\n    }",
    "health 127.0.0.1:1:2",
    "forward .",
    "kubernetes {\n        ttl 99999\n    }",
    "tls missing.pem missing.pem",
    "import missing.conf",
    "bind 192.0.2.99",
)


async def bad_corefiles(run: Run) -> Verdict:
    """L5: mutated Corefiles: the parser keeps its time, and the server keeps its configuration."""
    verdict = Verdict(run)
    chance = random.Random(run.seed)
    async with Stage(run) as stage:
        asked = world.questions(world.fill(stage.api), run.seed)
        server = await stage.server()
        good = server.corefile()
        load = await stage.load(server, asked)
        count, slowest, refused = run.number(10_000, 500), 0.0, []
        for number in range(count):
            text = mutated(good, chance)
            began = time.process_time()
            try:
                parse(text)
            except KdnsError:
                refused.append(text)
            slowest = max(slowest, time.process_time() - began)
            if number % 20 == 0:
                await asyncio.sleep(0)  # the API server is in this process
        verdict.note("mutated", count)
        verdict.note("refused by the parser", len(refused))
        verdict.at_most("slowest", slowest, 0.1, "s of CPU")
        bad = [good.replace("    errors\n", f"    errors\n    {line}\n", 1) for line in BAD_LINES]
        bad += chance.sample(refused, run.number(60, 5))
        failures = await reload_all(server, bad)
        for place in PLACES:
            path = {"metrics_port": "/metrics"}.get(place, f"/{place}")
            verdict.check(f"{path} answers", (await http_get(getattr(server, place), path))[0] == 200)
        counted = (await server.metrics()).get("coredns_reload_failed_total", 0)
        verdict.note("bad reloads", len(bad))
        verdict.check("each is counted once", counted == len(bad), f"{counted}")
        verdict.check("each is logged once", failures == len(bad), f"{failures}")
        server.file.write_text(good.replace("cache 30", "cache 29"))
        await reload(server)
        verdict.clean(await load.window())
    return verdict


async def reload_all(server: Server, texts: list[str]) -> int:
    """Reload with each of these, which must fail; how many failures the log tells of."""
    said = "reload failed"
    for text in texts:
        server.file.write_text(text)
        await reload(server, said)
    return server.kdns.read().count(said)


async def reload_without_api(run: Run) -> Verdict:
    """L6: reloads while the API server is down."""
    verdict = Verdict(run)
    async with Stage(run) as stage:
        asked = world.questions(world.fill(stage.api), run.seed)
        server = await stage.server()
        load = await stage.load(server, asked)
        await stage.api.refuse()
        reloads = run.number(10, 2)
        for number in range(reloads):
            server.file.write_text(server.corefile().replace("cache 30", f"cache {20 + number}"))
            await reload(server)
            await asyncio.sleep(run.seconds(1, 0.2))
        seen = await load.window()
        verdict.note("reloads", reloads)
        verdict.check("no SERVFAIL", seen.servfail == 0, str(seen.answers))
        verdict.clean(seen)
    return verdict


class ConfigMap:
    """A directory that the kubelet keeps: files are links into a directory that is swapped as a whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._count = 0

    def write(self, files: dict[str, str | None]) -> None:
        """All files at once; None: there is no such file."""
        self._count += 1
        data = self.directory / f"..{self._count}"
        data.mkdir()
        for name, text in files.items():
            if text is not None:
                (data / name).write_text(text)
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        link = self.directory / "..tmp"
        link.symlink_to(data.name)
        os.replace(link, self.directory / "..data")


def steps(good: str) -> Iterator[tuple[str, dict[str, str | None], tuple[int, ...]]]:
    """(what happens to the ConfigMap, its files, how many reloads that may be)."""
    names: dict[str, str | None] = {"Corefile": good, "more": "# nothing\n"}
    yield "swapped, content the same", dict(names), (0,)
    changed = good.replace("cache 30", "cache 31")
    yield "another content", names | {"Corefile": changed}, (1,)
    names = {"Corefile": changed, "more": "whoami\n"}
    yield "the imported file changes", dict(names), (1,)
    yield "the file is missing", names | {"Corefile": None}, (0,)
    yield "it is back", dict(names), (0,)
    yield "half written", names | {"Corefile": changed[: len(changed) // 2]}, (0,)
    yield "NUL in it", names | {"Corefile": changed.replace("cache", "ca\0che")}, (0,)
    yield "whole again", dict(names), (0,)
    yield "a megabyte of comments", names | {"Corefile": changed + "# more\n" * 150_000}, (0, 1)
    yield "and another content", names | {"Corefile": good.replace("cache 30", "cache 28")}, (1,)


async def config_maps(run: Run) -> Verdict:
    """L7: what happens to a mounted ConfigMap; one reload for each change of content."""
    verdict = Verdict(run)
    async with Stage(run, Setting(top="import more\n    reload 2s 0s")) as stage:
        asked = world.questions(world.fill(stage.api), run.seed)
        server = await stage.server(start=False)
        good = server.corefile()
        directory = ConfigMap(run.directory / "config")
        directory.write({"Corefile": good, "more": "# nothing\n"})
        server.file = directory.directory / "Corefile"
        await server.start(write=False)
        await server.until_ready()
        load = await stage.load(server, asked)
        slowest = 0.0
        for what, files, wanted in [*steps(good)][: 2 if run.quick else None]:
            run.say(what)
            before = reloads = server.kdns.read().count("Reloading complete")
            directory.write(files)
            began = time.monotonic()
            while time.monotonic() - began < (4.5 if 0 in wanted else 10) and reloads == before:
                await asyncio.sleep(0.05)
                reloads = server.kdns.read().count("Reloading complete")
            slowest = max(slowest, 0.0 if 0 in wanted else time.monotonic() - began)
            verdict.check(f"{what}: {wanted} reloads", reloads - before in wanted, f"{reloads - before}")
        verdict.at_most("slowest pickup", slowest, 10.0, "s")
        await asyncio.sleep(run.seconds(5, 1))
        verdict.clean(await load.window())
    return verdict


# --- too little CPU --------------------------------------------------------------------------------------------------


async def starved(run: Run) -> Verdict:
    """L10: a CPU quota; 80 % of the load that it can bear, then ten times that load."""
    verdict = Verdict(run)
    for milli in (100, 200):
        group = Cgroup.make("cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"})
        try:
            async with Stage(run, Setting(within=group.within())) as stage:
                asked = world.questions(world.fill(stage.api), run.seed)
                server = await stage.server()
                load = await stage.load(server, asked)
                load.tell({"rate": 1000})
                await asyncio.sleep(1)
                await load.window()
                began = server.cpu()
                await asyncio.sleep(1)
                cost = (server.cpu() - began) / (await load.window()).sent
                group.write("cpu.cfs_quota_us", str(milli * 100))
                bearable = await highest(load, 0.6 * milli / 1000 / cost, 2 if run.quick else 12)
                load.tell({"rate": 0.8 * bearable})
                await asyncio.sleep(2)
                await load.window()
                await asyncio.sleep(run.seconds(10, 3))
                seen = await load.window()
                verdict.note(f"{milli}m: bearable", round(bearable), "qps")
                verdict.at_most(f"{milli}m: p99 at 80 %", seen.p99, 0.1, "s", clock=True)
                verdict.clean(seen, f"{milli}m at 80 %")
                load.tell({"rate": 10 * bearable})
                slowest = await slowest_health(server, run.seconds(10, 3))
                seen = await load.window()
                verdict.at_most(f"{milli}m: slowest /health at 1000 %", slowest, 1.0, "s", clock=True)
                verdict.at_most(f"{milli}m: wrong at 1000 %", seen.wrong, 0)
                verdict.note(f"{milli}m: answered at 1000 %", round((seen.sent - seen.lost) / seen.seconds), "qps")
        finally:
            group.remove()
    return verdict


async def highest(load: Load, rate: float, steps: int) -> float:
    """The highest rate, from this one on, that is borne for four seconds; a query costs less in a crowd.

    What is too much queues up in the socket's buffer before anything is lost: a fortieth too much is 0.1 s after four.
    """
    found = rate
    for _ in range(steps):
        load.tell({"rate": rate})
        await load.window()
        await asyncio.sleep(4)
        seen = await load.window()
        if seen.lost or seen.p99 > 0.1:
            break
        found, rate = rate, rate * 1.2
    return found


async def slowest_health(server: Server, seconds: float) -> float:
    """The longest that ``/health`` took, asked twice a second."""
    until, slowest = time.monotonic() + seconds, 0.0
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            status, _ = await http_get(server.health, "/health")
        except (OSError, TimeoutError):
            status = 0
        slowest = max(slowest, time.monotonic() - began if status == 200 else 99.0)
        await asyncio.sleep(0.5)
    return slowest
