"""R1 … R3: a real control plane: killed and restored, with a thousand nodes, and five thousand Pods that are replaced.

The programs are those of `tests.kube`: in KUBEBUILDER_ASSETS, or in ~/.cache/kdns/kube.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.chaos import world
from tests.chaos.large import pss
from tests.chaos.stage import Server, Setting, Stage, until
from tests.chaos.verdict import NotHere, Run, Verdict
from tests.kube.controlplane import ControlPlane, NotStarted, missing
from tests.kube.expected import Cluster

Object = dict[str, Any]
SPACE = "chaos"
PER_DEPLOYMENT = 100


@functools.cache
def plane() -> ControlPlane:
    """One for all scenarios of this process, stopped at its end; raises NotHere."""
    assets = os.environ.get("KUBEBUILDER_ASSETS") or str(Path("~/.cache/kdns/kube").expanduser())
    if lacking := missing(assets):
        raise NotHere(f"{assets} has no {', '.join(lacking)}")
    if shutil.which("kubectl") is None:
        raise NotHere("kubectl is not on PATH")
    directory = tempfile.TemporaryDirectory(prefix="chaos-kube-")
    atexit.register(directory.cleanup)
    made = ControlPlane(Path(assets), Path(directory.name), qps=1000)
    atexit.register(made.stop)
    try:
        made.start()
    except (NotStarted, OSError, RuntimeError) as error:
        raise NotHere(str(error)) from None
    made.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    return made


def service(name: str, **spec: Any) -> Object:
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SPACE},
        "spec": {"ports": ports, **spec},
    }  # fmt: skip


def deployment(name: str, replicas: int) -> Object:
    labels = {"app": name}
    pod = {"containers": [{"name": "main", "image": "none"}], "terminationGracePeriodSeconds": 0}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def items(kinds: str = "services,endpointslices,namespaces,pods") -> list[Object]:
    """What the API has now."""
    found: list[Object] = json.loads(plane().kubectl("get", kinds, "-A", "-o", "json"))["items"]
    return found


async def begin(run: Run, stage: Stage) -> tuple[Server, list[world.Question]]:
    """kdns beside the control plane, and the questions whose answers stay."""
    server = await stage.server()
    return server, world.questions(await asyncio.to_thread(items), run.seed)


async def outages(run: Run) -> Verdict:
    """R1, R2: the API server, then etcd, are killed and come back."""
    verdict = Verdict(run)
    control_plane = await asyncio.to_thread(plane)
    objects = [service(f"one-{number}") for number in range(10)]
    await asyncio.to_thread(control_plane.apply, *objects)
    async with Stage(run, Setting(access=f"kubeconfig {control_plane.reader}")) as stage:
        server, asked = await begin(run, stage)
        load = await stage.load(server, asked)
        for number, (what, seconds) in enumerate((("kube-apiserver", run.seconds(15, 3)), ("etcd", run.seconds(8, 3)))):
            run.say(f"{what} is killed")
            await asyncio.to_thread(control_plane.kill, what)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(control_plane.revive, what)
            await asyncio.to_thread(control_plane.wait_ready)
            made = await until(lambda number=number: _made(control_plane, f"late-{number}"), 60)  # type: ignore[misc]
            address = control_plane.kubectl(
                *f"get service late-{number} -n {SPACE} -o jsonpath={{.spec.clusterIP}}".split()
            )
            took = await server.becomes(f"late-{number}.{SPACE}.svc.cluster.local.", [address], 30)
            verdict.note(f"{what}: takes changes after", made, "s")
            verdict.at_most(f"{what}: seen after", took, 5.0, "s", clock=True)
            seen = await load.window()
            verdict.clean(seen, what)
            verdict.check(f"{what}: no SERVFAIL", seen.servfail == 0, str(seen.answers))
    return verdict


async def _made(control_plane: ControlPlane, name: str) -> bool:
    try:
        await asyncio.to_thread(control_plane.apply, service(name))
    except RuntimeError:
        return False
    return True


async def replaced(run: Run) -> Verdict:
    """R3: a thousand kwok nodes, and a rolling update of five thousand Pods behind headless Services."""
    verdict = Verdict(run)
    control_plane = await asyncio.to_thread(plane)
    nodes, pods = run.number(1000, 10), run.number(5000, 50)
    run.say(f"{nodes} nodes, {pods} pods")
    await asyncio.to_thread(control_plane.add_nodes, nodes)
    each = min(PER_DEPLOYMENT, pods)
    names = [f"app-{number}" for number in range(pods // each)]
    made = [service(name, clusterIP="None", selector={"app": name}) for name in names]
    made += [service(f"{name}-ip", selector={"app": name}) for name in names]
    made += [deployment(name, each) for name in names]
    await asyncio.to_thread(control_plane.apply, *made, command="create")
    async with Stage(run, Setting(access=f"kubeconfig {control_plane.reader}")) as stage:
        await until(lambda: rolled_out(names, each), 240)
        server, _ = await begin(run, stage)
        await until(lambda: in_step(server, names), 60)
        verdict.note("Pss", pss(server), "MiB")
        asked = [world.Question(f"{name}.{SPACE}.svc.cluster.local.", "A", (frozenset({"any"}),)) for name in names]
        fixed = [one for one in world.questions(items("services,namespaces"), run.seed) if f".{SPACE}." in one.name]
        load = await stage.load(
            server, world.weighted([*asked, *(one for one in fixed if one.right[0] != world.NOWHERE)])
        )
        run.say("rolling update")
        await asyncio.to_thread(update, names)
        await until(lambda: rolled_out(names, each), 240)
        took = await until(lambda: in_step(server, names), 60)
        seen = await load.window()
        verdict.note("rolling update took", seen.seconds, "s")
        verdict.at_most("right after its end", took, 5.0, "s", clock=True)
        verdict.note("p99", seen.p99, "s")
        verdict.clean(seen)
    await asyncio.to_thread(control_plane.kubectl, "delete", "deployment", "--all", "-n", SPACE, "--wait=false")
    return verdict


def update(names: list[str]) -> None:
    """Change the Pods' template."""
    patch = {"spec": {"template": {"metadata": {"annotations": {"again": "yes"}}}}}
    for name in names:
        plane().kubectl("patch", "deployment", name, "-n", SPACE, "-p", json.dumps(patch))


async def rolled_out(names: list[str], each: int) -> bool:
    """Whether all Pods are of the last template and available."""
    await asyncio.sleep(1)
    text = await asyncio.to_thread(plane().kubectl, "get", "deployments", "-n", SPACE, "-o", "json")
    found = {one["metadata"]["name"]: one for one in json.loads(text)["items"]}
    return all(_done(found[name], each) for name in names)


def _done(one: Object, each: int) -> bool:
    status = one.get("status", {})
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return counts == [each] * 3 and status.get("observedGeneration") == one["metadata"]["generation"]


async def in_step(server: Server, names: list[str]) -> bool:
    """Whether kdns says what the API says about these headless Services."""
    found = await asyncio.to_thread(items, "services,endpointslices,namespaces")
    known = Cluster(found).answers()
    for name in names:
        full = f"{name}.{SPACE}.svc.cluster.local."
        if await server.ask_whole(full) != known.get((full, "A")):
            return False
    return True
