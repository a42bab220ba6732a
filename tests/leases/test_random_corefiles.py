"""The lease rules under Corefiles that nobody has thought of: see `test_leases`, which has the servers and the world.

What lets one stored NXDOMAIN answer for other names (`kdns.denial`) stands on how the Corefile is made: which plugins
are above the authority, for which zones, and which zones have server blocks of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from operator import le
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.leases.world import Elsewhere, Server, Told, World, go_on, servers
from tests.plugintest import Clock
from tests.support import TWINS, captured_log, installed, use_twin

SEEDS: Final = (0, 2, 12, 16, 18, 25, 62, 73, 83, 99)
"""Each has found a fault that was put in for a trial: a plugin that is not blind overlooked, a zone that a log line, a
cache, a fallthrough or a block of its own tells apart, a cookie that went to somebody else."""
MORE: Final = int(os.environ.get("KDNS_LEASES_COREFILES", 0))
"""So many further seeds."""
QUESTIONS: Final = 500
ZONES: Final = (
    "local", "cluster.local", "svc.cluster.local", "pod.cluster.local", "default.svc.cluster.local",
    "dev.svc.cluster.local", "none.svc.cluster.local", "team.svc.cluster.local", "web1.default.svc.cluster.local",
    "default.pod.cluster.local", "dns.cluster.local", "a.b.pod.cluster.local",
)  # fmt: skip
"""Where something may begin that other names know nothing of."""
CLUSTERS: Final = (
    "cluster.local", "cluster.local", "cluster.local in-addr.arpa", "cluster.local svc.cluster.local",
    "cluster.local dev.svc.cluster.local", "local", "cluster.local pod.cluster.local", "svc.cluster.local",
    "cluster.local clusterset.local",
)  # fmt: skip


MANY: Final = ("rewrite", "template", "log", "file")
"""Directives that a block may have several times."""


class Corefile:
    """A random one: the text between the braces of the first server block, further ones included.

    It is what many clusters have, and up to three things that are not usual.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def text(self) -> str:
        zones = self.random.sample(ZONES, 3)
        further = (zones[:1], zones[1:])[: self.random.choice([0, 0, 0, 1, 2])]
        return "\n".join(
            [
                self.block(0.95, self.random.choice([0, 1, 1, 2, 2, 3])),
                *(f"}}\n{':53 '.join(keys)}:53 {{\n{self.block(0.4, self.random.randrange(3))}" for keys in further),
            ]
        )

    def block(self, authority: float, unusual: int) -> str:
        """With a ``kubernetes`` in so many of all cases."""
        pick = self.random.choice
        logged = pick(["success", "error", "denial", "denial"])
        lines = [
            *self.maybe(0.7, "errors"),
            *self.maybe(0.9, "prometheus localhost:0"),
            *self.maybe(0.3, f"log {self.zones() or '.'} {{\nclass {logged}\n}}"),
            *self.maybe(0.4, "loadbalance"),
            *self.maybe(0.6, self.cache()),
            *self.maybe(authority, self.kubernetes()),
            *(pick(self.UNUSUAL)(self) for _ in range(unusual)),
            "elsewhere",
        ]
        # The chain has its own order; some directives may be there once only.
        once = {line.split()[0]: line for line in lines}
        return "\n".join(line for line in lines if line.split()[0] in MANY or once[line.split()[0]] is line)

    def maybe(self, chance: float, text: str) -> list[str]:
        return [text] if self.random.random() < chance else []

    def zones(self, most: int = 2) -> str:
        return " ".join(self.random.sample(ZONES, self.random.randrange(most + 1)))

    def fall(self) -> str:
        return self.random.choice(["", "", "fallthrough", f"fallthrough {self.random.choice(ZONES)}"])

    def cache(self) -> str:
        pick = self.random.choice
        options = [
            *self.maybe(0.4, f"disable {pick(['success', 'denial', 'denial'])} {self.zones()}"),
            *self.maybe(0.2, "keepttl"),
            *self.maybe(0.3, f"success 2000 {pick([5, 20])} 1"),
            *self.maybe(0.3, f"denial 2000 {pick([5, 20])} 1"),
            *self.maybe(0.3, f"servfail {pick(['0s', '1s'])}"),
        ]
        inside = "\n".join(options)
        return f"cache {pick(['', '30', '7'])} {pick(['', '', self.zones()])} {{\n{inside}\n}}"

    def rewrite(self) -> str:
        pick = self.random.choice
        zone = pick(ZONES)
        return "rewrite " + pick([
            f"name suffix .{zone} .{pick(ZONES)} answer auto",
            f"name exact {zone} web0.default.svc.cluster.local",
            f"name regex ^a+\\.(.*)\\.{zone}\\.$ {{1}}.default.svc.cluster.local",
            "continue name prefix b c",
            f"ttl suffix .{zone}. {pick(['7', '10-', '-3'])}",
            f"rcode suffix .{zone}. NXDOMAIN NOERROR",
            "type AAAA A",
            "edns0 local set 65001 0xabcd",
            "edns0 local append 10 0x0102030405060708",
            "edns0 local replace 12 0x0102",
        ])  # fmt: skip

    def template(self) -> str:
        pick = self.random.choice
        match = pick(["", "match ^[a-f].*", "match ^[a-f].*\\.svc\\.cluster\\.local\\.$"])
        answer = pick(['answer "{{ .Name }} 60 IN A 192.0.2.9"', "rcode NXDOMAIN", "rcode REFUSED"])
        fall = pick(["fallthrough", self.fall()])
        return f"template IN {pick(['A', 'ANY', 'AAAA'])} {self.zones()} {{\n{match}\n{answer}\n{fall}\n}}"

    def hosts(self) -> str:
        pick = self.random.choice
        line = f"10.7.0.8 {pick(['a', 'bb', '*'])}.{pick(ZONES)}"
        return f"hosts HOSTS {self.zones()} {{\n{line}\nreload 0s\n{self.fall()}\n}}"

    def kubernetes(self) -> str:
        pick = self.random.choice
        zones = pick(CLUSTERS)
        options = [
            "manifests EMPTY",
            f"pods {pick(['disabled', 'insecure', 'verified'])}",
            f"ttl {pick([0, 5, 30])}",
            pick(["", "fallthrough in-addr.arpa", self.fall()]),
            *self.maybe(0.2, "namespaces " + pick(["dev", "default none"])),
            *self.maybe(0.2, "ignore empty_service"),
            *self.maybe(0.3, "endpoint_pod_names"),
            pick(["", "", "noendpoints", "zonal", "zonal"]),
            *(["multicluster clusterset.local"] if "clusterset" in zones else []),
        ]
        inside = "\n".join(options)
        return f"kubernetes {zones} {{\n{inside}\n}}"

    def file(self) -> str:
        return f"file ZONE {self.random.choice(['z.test', *ZONES])} {{\nreload 0s\n{self.fall()}\n}}"

    def metadata(self) -> str:
        return f"metadata {self.zones()}"

    def bufsize(self) -> str:
        return f"bufsize {self.random.choice([512, 1232, 4096])}"

    def preference(self) -> str:
        return "loadbalance round_robin {\nprefer 10.0.0.0/29\n}"

    UNUSUAL: Final[tuple[Callable[[Corefile], str], ...]] = (
        rewrite, rewrite, template, template, template, hosts, hosts, file, metadata, bufsize, preference, cache,
        kubernetes,
    )  # fmt: skip


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("seed", (*SEEDS, *range(1000, 1000 + MORE)))
async def test_what_is_repeated_is_what_the_chain_would_say(
    seed: int, twin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_twin(twin, monkeypatch)
    text = Corefile(seed).text()
    world = World(seed, tmp_path, 0.6, "clusterset" if "clusterset" in text else "")
    clock = Clock()

    def ask(server: Server, packet: bytes) -> tuple[bytes, list[str]]:
        """The reply, and what was logged but for how long it took."""
        log.lines.clear()
        return server.ask(packet), [line.rpartition(" ")[0] for line in log.lines]

    with installed(Elsewhere), captured_log() as log:
        async with servers(world.fill_in(text), clock) as (repeating, asking, plain):
            for _ in range(QUESTIONS):
                await go_on(world, clock, (repeating, asking, plain))
                packet = world.question()
                replies, logged = zip(*(ask(server, packet) for server in (repeating, asking, plain)), strict=True)
                assert logged[0] == logged[1], text
                repeated, asked, truth = map(Told, replies)
                assert repeated.header == asked.header, text
                if asked.truncated:  # which records remain is as random as their order
                    continue
                assert repeated.sections == asked.sections, text
                assert (repeated.rcode, repeated.sections) == (truth.rcode, truth.sections), text
                assert all(map(le, repeated.ttls, asked.ttls)), text
                assert len(replies[0]) == len(replies[1]), text
            assert repeating.counted() == asking.counted(), text
