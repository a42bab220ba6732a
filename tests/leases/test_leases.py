"""The lease rules, for all plugins that claim to be replayable: what is repeated is what the chain would say.

Three servers are built from the same Corefile and see the same changes and questions on the same clock:

* ``repeating``: with the packet cache in front, as kdns runs;
* ``asking``: every packet goes to the chain.  Its replies must be the same octets, but for the order of
  records and for ages, which may be greater in what is repeated; in the end both have counted the same;
* ``plain``: without ``cache`` too, so that nothing is ever remembered.  Its replies must hold the same records.

The data behind them change all the time: cluster objects, a hosts file, a zone file, a fake upstream.
"""

from __future__ import annotations

import os
from operator import le
from pathlib import Path
from typing import Any, Final

import pytest

from kdns.cluster.objects import (
    KINDS,
    Apply,
    Init,
    InitApply,
    InitDone,
)
from kdns.plugins.kubernetes import Kubernetes
from tests.leases.world import Elsewhere, Server, Told, World, go_on, servers
from tests.plugintest import Clock
from tests.support import TWINS, captured_log, installed, use_twin

QUESTIONS: Final = int(os.environ.get("KDNS_LEASES_QUESTIONS", 1500))

STACKS: Final = {
    "kubeadm": """
        errors
        prometheus localhost:0
        loadbalance
        cache 30
        kubernetes cluster.local in-addr.arpa { PODS FALL manifests EMPTY }
        elsewhere
    """,
    "no cache": """
        errors
        prometheus localhost:0
        loadbalance
        kubernetes cluster.local in-addr.arpa { PODS FALL manifests EMPTY }
        elsewhere
    """,
    "disabled": """
        errors
        prometheus localhost:0
        loadbalance round_robin {
            prefer 10.0.0.0/29
        }
        cache 30 {
            disable success cluster.local
            disable denial cluster.local
            keepttl
        }
        kubernetes cluster.local in-addr.arpa { PODS FALL manifests EMPTY }
        elsewhere
    """,
    "rewritten": """
        errors
        prometheus localhost:0
        loadbalance
        rewrite name suffix .example.com .default.svc.cluster.local answer auto
        rewrite name exact alias.test web0.default.svc.cluster.local
        rewrite ttl suffix .test 7
        cache 20 {
            success 2000 20 1
            denial 2000 9 1
            servfail 1s
        }
        kubernetes cluster.local in-addr.arpa { PODS FALL manifests EMPTY }
        elsewhere
    """,
    "files": """
        errors
        prometheus localhost:0
        loadbalance
        metadata
        cache
        template IN A t.test {
            match "^n[0-4]\\.t\\.test\\.$"
            answer "{{ .Name }} 60 IN A 192.0.2.9"
            fallthrough
        }
        hosts HOSTS h.test cluster.local {
            reload 0s
            fallthrough
        }
        kubernetes cluster.local in-addr.arpa { PODS FALL manifests EMPTY }
        file ZONE z.test {
            reload 0s
        }
        elsewhere
    """,
    "leftovers": """
        errors
        log . {
            class error
        }
        prometheus localhost:0
        loadbalance
        cache 30 {
            disable success cluster.local
            disable denial svc.cluster.local
        }
        kubernetes cluster.local in-addr.arpa { PODS HERE manifests EMPTY }
        elsewhere
    """,
    "below": """
        errors
        prometheus localhost:0
        cache 30
        kubernetes cluster.local in-addr.arpa { PODS HERE manifests EMPTY }
        elsewhere
    }
    team.svc.cluster.local:53 {
        prometheus localhost:0
        elsewhere
    """,
    "above": """
        errors
        prometheus localhost:0
        cache 30
        template IN A svc.cluster.local {
            match "^a.*\\.svc\\.cluster\\.local\\.$"
            answer "{{ .Name }} 60 IN A 192.0.2.9"
            fallthrough
        }
        kubernetes cluster.local in-addr.arpa { PODS HERE manifests EMPTY }
        elsewhere
    """,
    "clusterset": """
        errors
        prometheus localhost:0
        loadbalance
        cache 30
        kubernetes cluster.local clusterset.local in-addr.arpa {
            manifests EMPTY
            pods insecure
            fallthrough in-addr.arpa
            multicluster clusterset.local
            zonal
        }
        elsewhere
    """,
    "zonal": """
        errors
        prometheus localhost:0
        loadbalance
        kubernetes cluster.local {
            manifests EMPTY
            zonal
        }
        elsewhere
    """,
    "clusterset alone": """
        errors
        prometheus localhost:0
        kubernetes clusterset.local {
            manifests EMPTY
            ignore empty_service
            multicluster clusterset.local
        }
        elsewhere
    """,
}
LEFTOVERS: Final = {"leftovers": 0.85, "below": 0.5, "above": 0.5, "clusterset": 0.3, "clusterset alone": 0.3}
"""Share of new questions for names that nobody has; elsewhere it is small."""
PROVEN: Final = {
    "leftovers": QUESTIONS / 6,
    "below": QUESTIONS / 100,
    "clusterset": QUESTIONS / 100,
    "clusterset alone": QUESTIONS / 50,
}
"""How many names at least are answered by what is proven of others."""


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("stack", STACKS)
async def test_what_is_repeated_is_what_the_chain_would_say(
    stack: str, seed: int, twin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_twin(twin, monkeypatch)
    leftovers = LEFTOVERS.get(stack, 0.1)
    world = World(sum(stack.encode()) * 10 + seed, tmp_path, leftovers, stack)
    clock = Clock()
    with installed(Elsewhere), captured_log():
        async with servers(world.fill_in(STACKS[stack]), clock) as (repeating, asking, plain):
            for _ in range(QUESTIONS):
                await go_on(world, clock, (repeating, asking, plain))
                packet = world.question()
                replies = [server.ask(packet) for server in (repeating, asking, plain)]
                repeated, asked, truth = map(Told, replies)
                assert repeated.header == asked.header
                if asked.truncated:  # which records remain is as random as their order
                    continue
                assert repeated.sections == asked.sections
                assert (repeated.rcode, repeated.sections) == (truth.rcode, truth.sections)
                assert all(map(le, repeated.ttls, asked.ttls))
                assert len(replies[0]) == len(replies[1])
            assert repeating.counted() == asking.counted()
            assert repeating.repeated > QUESTIONS / 10
            # Names that nobody has are answered out of the packet cache although nobody asked for them before.
            assert repeating.proven > PROVEN.get(stack, -1)
            assert not (repeating.proven and stack in ("above", "rewritten", "files"))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("stack", ["kubeadm", "no cache", "rewritten"])
async def test_what_was_remembered_is_not_repeated_once_it_is_known(stack: str, seed: int, tmp_path: Path) -> None:
    """A start with a snapshot: one kind after the other is listed, with other objects than were remembered."""
    world = World(sum(stack.encode()) * 10 + seed + 5, tmp_path)
    clock = Clock()
    listed: list[str] = []
    stale = 0

    def objects() -> dict[str, list[Any]]:
        events = [world.event(what) for what in ("service", "slice", "pod", "namespace") for _ in range(12)]
        found: dict[str, dict[tuple[bytes, bytes], Any]] = {kind: {} for kind in KINDS}
        for event in events:
            if isinstance(event, Apply):
                found[event.kind][event.object.namespace, event.object.name] = event.object
        return {kind: list(things.values()) for kind, things in found.items()}

    def remember(server: Server, remembered: dict[str, list[Any]]) -> None:
        for plugin in server.of(Kubernetes):
            index = plugin._cluster.index
            index.waiting = tuple(plugin._cluster._settings.kinds)
            for kind in index.waiting:
                index.remember(kind, remembered[kind])
                index.recall(kind)

    def first_list(server: Server, kind: str, things: list[Any]) -> None:
        for event in (Init(kind), *(InitApply(kind, thing) for thing in things), InitDone(kind)):
            server.apply(event)

    with installed(Elsewhere), captured_log():
        async with servers(world.fill_in(STACKS[stack]), clock) as all_of_them:
            remembered = objects()
            for server in all_of_them:
                remember(server, remembered)
            for number in range(QUESTIONS):
                if number % (QUESTIONS // 5) == QUESTIONS // 10 and len(listed) < len(KINDS):
                    kind = world.random.choice([kind for kind in KINDS if kind not in listed])
                    listed.append(kind)
                    # Half of it is as it was.
                    things = objects()[kind] + world.random.sample(remembered[kind], len(remembered[kind]) // 2)
                    for server in all_of_them:
                        first_list(server, kind, things)
                if world.random.random() < 0.1:
                    change = world.event(world.random.choice(["service", "slice", "pod", "namespace"]))
                    for server in all_of_them if change.kind in listed else ():
                        server.apply(change)
                packet = world.question()
                repeated, asked, truth = (Told(server.ask(packet)) for server in all_of_them)
                assert repeated.header == asked.header
                if not asked.truncated:
                    assert repeated.sections == asked.sections
                    assert (repeated.rcode, repeated.sections) == (truth.rcode, truth.sections)
                # What `cache` has fetched it repeats without extended errors; the other way round would be a lie.
                marked, truly = ("out of a snapshot" in repr(told.header[-1]) for told in (repeated, truth))
                assert truly or not marked
                stale += marked
    assert len(listed) == len(KINDS) and stale > 5
