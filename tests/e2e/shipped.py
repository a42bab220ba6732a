"""Run in a pod of its own (see `tests.e2e.pod`): serve one folder of tests/corefiles unchanged, and ask about it.

``python -m tests.e2e.shipped FOLDER`` says ``asked`` when only the end is left to see, and exits 0 when all was as it
should be; otherwise a traceback says what was not.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass

import dns.rcode

from kdns.cli import INTERRUPTED
from tests.e2e.pod import Pod
from tests.fakeapi import endpointslice, service
from tests.fakeupstream import Asked
from tests.support import ROOT, Kdns, answers, ask, http_get

NODE = "192.0.2.53"
"""The node's resolver, in resolv.conf."""
CLUSTER = "10.96.0.11"
"""The cluster's DNS as NodeLocal DNSCache knows it (kube-dns-upstream)."""
LOCAL = "169.254.20.10"
LONG = 5.0
"""Seconds of lameduck that are waited for; that of most folders."""


@dataclass
class Case:
    """What a folder promises."""

    ttl: int = 30
    lameduck: float = 5
    port: int = 53
    hosts: tuple[str, ...] = (Pod.ADDRESS,)
    """Where DNS is served."""
    health: str = Pod.ADDRESS
    metrics: int = 9153
    ready: bool = True
    more: tuple[tuple[str, str, str], ...] = ()
    """Name, type, and the data that answer it or an rcode."""
    logs: tuple[str, ...] = ()
    """What it logs about `more`."""


CASES = {
    "addons-base": Case(),
    "aks": Case(
        more=(
            ("example2.org.", "A", "10.0.0.2"),
            ("web.domain.example.", "A", "10.0.0.5"),
            ("db.puglife.local.", "A", "192.11.0.1"),
            ("a.b.c.d.internal.cloudapp.net.", "A", "NXDOMAIN"),
            ("vm.internal.cloudapp.net.", "A", NODE),
            ("any.reddog.microsoft.com.", "AAAA", "NXDOMAIN"),
        ),
        logs=('"A IN web.domain.example. udp ', '"A IN vm.internal.cloudapp.net. udp '),
    ),
    "aks-bare": Case(),
    "coredns-deployment": Case(ttl=5, more=(("db.acme.local.", "A", "10.150.0.1 10.150.0.2"),)),
    "eks": Case(ttl=5),
    "gardener": Case(
        port=8053,
        lameduck=15,
        more=(
            ("web.default.svc.cluster.local.svc.cluster.local.", "A", "10.0.0.5"),
            ("api.gardener.cloud.svc.cluster.local.", "A", NODE),
            ("api.k8s.example.com.svc.cluster.local.", "A", NODE),
        ),
    ),
    "helm": Case(lameduck=10),
    "k3s": Case(
        ttl=5,
        lameduck=0,
        more=(
            ("k3s-server-0.", "A", "10.42.0.10"),
            ("k3s-server-0.", "AAAA", "fd00:42::10"),
            ("11.0.42.10.in-addr.arpa.", "PTR", "k3s-agent-0."),
            ("printer.home.lan.", "A", "192.168.1.1"),
        ),
        logs=('"A IN github.com.default.svc.cluster.local. udp ',),
    ),
    "kubeadm": Case(),
    "kubeadm-old": Case(),
    "nodelocal": Case(
        lameduck=0,
        hosts=(LOCAL, "10.96.0.10"),
        health=LOCAL,
        metrics=9253,
        ready=False,
        more=(("1.ip6.arpa.", "A", CLUSTER),),
    ),
}


async def cluster_dns(asked: Asked) -> None:
    """What stands behind NodeLocal DNSCache; over TCP, as it is told to."""
    assert asked.proto == "tcp", f"{asked.name} over {asked.proto}"
    if asked.name.startswith("github.com."):
        soa = "cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30"
        asked.send(asked.reply(rcode="NXDOMAIN", authority=(soa,)))
    elif asked.type == "PTR":
        asked.send(asked.reply(f"{asked.name} 30 IN PTR web.default.svc.cluster.local."))
    else:
        asked.send(asked.address("10.0.0.5" if "cluster.local" in asked.name else CLUSTER, 30))


class Run:
    """One folder, served and asked."""

    def __init__(self, folder: str) -> None:
        self.case = CASES[folder]
        self.pod = Pod(
            coredns=ROOT / "tests" / "corefiles" / folder,
            resolv_conf=f"search example.net\nnameserver {NODE}\noptions ndots:5\n",
            upstreams=(NODE, CLUSTER, "10.150.0.1", "10.150.0.2", "192.11.0.1", "192.168.1.1"),
            addresses=(LOCAL, "10.96.0.10") if folder == "nodelocal" else (),
        )
        self.pod.upstreams[CLUSTER].script = cluster_dns
        self.pod.api.put("services", service("web", cluster_ip="10.0.0.5"))
        self.pod.api.put("services", service("db"))
        self.pod.api.put("endpointslices", endpointslice("db", [("10.0.9.1", "db-0"), ("10.0.9.2", "db-1")]))

    async def __call__(self) -> None:
        async with asyncio.timeout(60), self.pod:
            kdns = await asyncio.to_thread(self.pod.kdns)
            with kdns:
                await self.is_ready()
                for host in self.case.hosts:
                    for tcp in (False, True):
                        await self.answers(host, tcp)
                await self.metrics()
                print("asked", flush=True)
                await self.ends(kdns)
                for line in self.case.logs:
                    assert line in kdns.output, kdns.output
                assert "[ERROR]" not in kdns.output, kdns.output

    async def is_ready(self) -> None:
        assert await http_get(8080, "/health", host=self.case.health) == (200, "OK")
        if self.case.ready:
            async with asyncio.timeout(10):
                while await http_get(8181, "/ready", host=Pod.ADDRESS) != (200, "OK"):
                    await asyncio.sleep(0.05)

    async def answers(self, host: str, tcp: bool) -> None:
        expected = (
            ("web.default.svc.cluster.local.", "A", "10.0.0.5"),
            ("5.0.0.10.in-addr.arpa.", "PTR", "web.default.svc.cluster.local."),
            ("github.com.", "A", NODE),
            ("github.com.default.svc.cluster.local.", "A", "NXDOMAIN"),
            *self.case.more,
        )
        if CLUSTER not in str(expected):
            expected += (("db-1.db.default.svc.cluster.local.", "A", "10.0.9.2"),)
        for name, kind, data in expected:
            reply = await ask(self.case.port, name, kind, host=host, tcp=tcp)
            if data == "NXDOMAIN":
                assert reply.rcode() == dns.rcode.NXDOMAIN, reply
                continue
            assert reply.rcode() == dns.rcode.NOERROR, reply
            found = answers(reply)
            assert len(found) == 1, reply
            assert found[0].split()[0] == name, reply
            assert found[0].split()[4] in data.split(), reply
            if data.startswith("10.0.") and "example" not in name:
                assert int(found[0].split()[1]) <= self.case.ttl, reply

    async def metrics(self) -> None:
        status, text = await http_get(self.case.metrics, "/metrics", host=Pod.ADDRESS)
        assert status == 200
        for metric in ("coredns_dns_requests_total{", "coredns_dns_responses_total{", "coredns_build_info{"):
            assert metric in text, text

    async def ends(self, kdns: Kdns) -> None:
        """SIGTERM: on it goes for the lameduck time, with live answers, and then it ends well.

        Of a long lameduck only the beginning is waited for: the rest is like it, and a second SIGINT ends it.
        """
        began = time.monotonic()
        kdns.process.send_signal(signal.SIGTERM)
        if self.case.lameduck:
            await asyncio.to_thread(kdns.wait_for, f"Going into lameduck mode for {self.case.lameduck:g}s")
            self.pod.api.put("services", service("late", cluster_ip="10.0.0.6"))
            await asyncio.sleep(0.5)
            reply = await ask(self.case.port, "late.default.svc.cluster.local.", host=self.case.hosts[0])
            assert answers(reply)[0].endswith("10.0.0.6"), reply
            assert await http_get(8080, "/health", host=self.case.health) == (200, "OK")
        if self.case.lameduck > LONG:
            await asyncio.sleep(began + LONG - time.monotonic())
            assert answers(await ask(self.case.port, "web.default.svc.cluster.local.", host=self.case.hosts[0]))
            assert await asyncio.to_thread(kdns.stop, signal.SIGINT) == INTERRUPTED, kdns.output
            return
        code = await asyncio.to_thread(kdns.stop, 0, self.case.lameduck + 10)
        assert code == 0, kdns.output
        assert time.monotonic() - began >= self.case.lameduck


if __name__ == "__main__":
    asyncio.run(Run(sys.argv[1])())
