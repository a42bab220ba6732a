"""L13: a network namespace in which there is no IPv4 at all, not even on the loopback interface.

``python -m tests.chaos.six DIRECTORY SEED SCALE QUICK`` plays in it and prints the verdict as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from tests.chaos import control, world
from tests.chaos.life import reload
from tests.chaos.stage import Setting, Stage
from tests.chaos.verdict import NotHere, Run, Verdict
from tests.e2e.pod import impossible
from tests.support import ROOT

_INTO = 'ip link set lo up && ip -4 address flush dev lo && ip -6 address show dev lo | grep -q ::1 && exec "$@"'


async def six_only(run: Run) -> Verdict:
    """L13: an outage of the API server and a reload where there is IPv6 alone."""
    if why := impossible():
        raise NotHere(why)
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    words = [str(run.directory), str(run.seed), str(run.scale), str(int(run.quick))]
    child = await asyncio.create_subprocess_exec(
        *("unshare", "--net", *root, "sh", "-ec", _INTO, "sh", sys.executable, "-m", "tests.chaos.six", *words),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        printed, complaints = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise RuntimeError(complaints.decode()[-3000:])
    found = json.loads(printed)
    return Verdict(run, found["measured"], found["failed"], found["figures"])


async def play(run: Run) -> Verdict:
    """What is played in there."""
    setting = Setting(host="::1")
    run = replace(run, scale=0.3 * run.scale)
    verdict = await control.killed(run, setting)
    async with Stage(run, setting) as stage:
        asked = world.questions(world.fill(stage.api), run.seed)
        server = await stage.server()
        load = await stage.load(server, asked)
        server.file.write_text(server.corefile().replace("cache 30", "cache 20"))
        await reload(server)
        await asyncio.sleep(run.seconds(3))
        verdict.clean(await load.window(), "reload")
        verdict.check("it ends with 0", await server.stop() == 0)
    return verdict


def main(directory: str, seed: str, scale: str, quick: str) -> None:
    """Play, print the verdict."""
    run = Run(Path(directory), int(seed), float(scale), bool(int(quick)))
    verdict = asyncio.run(play(run))
    print(json.dumps({name: found for name, found in asdict(verdict).items() if name != "run"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
