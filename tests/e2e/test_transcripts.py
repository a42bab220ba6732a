"""What people see when they try out cluster DNS with `host` and `dig`: the same as with CoreDNS, line for line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator

import dns.flags
import dns.message
import dns.rcode
import pytest
import pytest_asyncio

from tests.e2e import pod
from tests.e2e.tools import SEARCH, corefile, internet
from tests.fakeupstream import FakeUpstream
from tests.support import ROOT, answers, ask, serving

HEADLESS = [
    f"headless-service.default.svc.cluster.local. 30 IN A {address}"
    for address in ("10.244.1.21", "10.244.1.22", "10.244.2.21", "10.244.2.22")
]
CNAME = ["external-service.default.svc.cluster.local. 30 IN CNAME github.com."]
BAIDU = [
    "service-externalname.dev.svc.cluster.local. 30 IN CNAME www.baidu.com.",
    "www.a.shifen.com. 30 IN A 153.3.238.102",
    "www.a.shifen.com. 30 IN A 153.3.238.110",
    "www.baidu.com. 30 IN CNAME www.a.shifen.com.",
]
GITHUB = ["github.com. 30 IN A 20.205.243.166"]
LEFTOVERS = [f"github.com.{zone}" for zone in SEARCH.split()]


# --- with the tools, in a pod whose resolv.conf is that of every pod -------------------------------------------------


def printed(*commands: str) -> list[str]:
    """What the commands print in a client pod."""
    why = pod.impossible() or " and ".join(tool for tool in ("host", "dig") if shutil.which(tool) is None)
    if why:
        pytest.skip(f"host and dig in a pod: {why}")
    run = subprocess.run(pod.command("tools", *commands), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    outputs: list[str] = json.loads(run.stdout)
    return outputs


def records(output: str) -> list[str]:
    """The answer section, sorted, with single blanks."""
    section = output.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0]
    return sorted(" ".join(line.split()) for line in section.splitlines())


def test_host_and_dig() -> None:
    headless, first, second, alias, chain, search = printed(
        "host -v -t a headless-service",
        "host postgres-0.postgres.default.svc.cluster.local",
        "host postgres-1.postgres.default.svc.cluster.local",
        "host -v -t cname external-service",
        "dig service-externalname.dev.svc.cluster.local",
        "host -v -t a github.com",
    )
    assert headless.startswith('Trying "headless-service.default.svc.cluster.local"\n;; ->>HEADER<<- opcode: QUERY, ')
    assert records(headless) == HEADLESS
    assert ";; flags: qr aa rd; QUERY: 1, ANSWER: 4, AUTHORITY: 0, ADDITIONAL: 0\n" in headless
    assert first == "postgres-0.postgres.default.svc.cluster.local has address 10.244.1.31\n"
    assert second == "postgres-1.postgres.default.svc.cluster.local has address 10.244.2.31\n"
    assert records(alias) == CNAME
    assert ";; flags: qr aa rd; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 0\n" in alias
    assert records(chain) == BAIDU
    assert ";; flags: qr aa rd; QUERY: 1, ANSWER: 4, AUTHORITY: 0, ADDITIONAL: 1\n" in chain
    assert re.findall(r'^Trying "(.*)"$', search, re.MULTILINE) == [*LEFTOVERS, "github.com"]
    assert records(search) == GITHUB
    assert ";; flags: qr rd ra; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 0\n" in search
    for output in (headless, alias, chain, search):
        assert "status: NOERROR" in output


# --- without them, question by question ------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    async with FakeUpstream() as upstream:
        upstream.script = internet
        async with serving(corefile(upstream.address)) as server:
            yield server.ports[0]


async def test_headless_service(port: int) -> None:
    reply = await ask(port, "headless-service.default.svc.cluster.local.")
    assert sorted(answers(reply)) == HEADLESS
    assert flags(reply) == "QR AA RD"


@pytest.mark.parametrize(("hostname", "address"), [("postgres-0", "10.244.1.31"), ("postgres-1", "10.244.2.31")])
async def test_pods_of_a_stateful_set(port: int, hostname: str, address: str) -> None:
    name = f"{hostname}.postgres.default.svc.cluster.local."
    for kind, expected in (("A", [f"{name} 30 IN A {address}"]), ("AAAA", []), ("MX", [])):
        reply = await ask(port, name, kind)
        assert (reply.rcode(), answers(reply), flags(reply)) == (dns.rcode.NOERROR, expected, "QR AA RD")


async def test_external_name_alone(port: int) -> None:
    reply = await ask(port, "external-service.default.svc.cluster.local.", "CNAME")
    assert (answers(reply), flags(reply)) == (CNAME, "QR AA RD")


@pytest.mark.parametrize("times", [1, 2])
async def test_external_name_with_what_the_upstream_says(port: int, times: int) -> None:
    for _ in range(times):
        reply = await ask(port, "service-externalname.dev.svc.cluster.local.", edns=0)
    assert answers(reply)[:2] == [BAIDU[0], BAIDU[3]]
    assert sorted(answers(reply)[2:]) == BAIDU[1:3]
    assert flags(reply) == "QR AA RD"


async def test_search_list(port: int) -> None:
    for leftover in LEFTOVERS:
        reply = await ask(port, leftover)
        assert (reply.rcode(), flags(reply)) == (dns.rcode.NXDOMAIN, "QR AA RD")
        assert [rrset.to_text().split()[:4] for rrset in reply.authority] == [["cluster.local.", "30", "IN", "SOA"]]
    reply = await ask(port, "github.com")
    assert (answers(reply), flags(reply)) == (GITHUB, "QR RD RA")


def flags(reply: dns.message.Message) -> str:
    return dns.flags.to_text(reply.flags)
