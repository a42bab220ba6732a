"""The sample cluster and Corefile.example: every `dig` in their comments answers what stands below it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import dns.rcode
import dns.reversename
import pytest
import pytest_asyncio
import yaml

from tests.kubemodels import check
from tests.support import ROOT, answers, ask, free_port, http_get, parse, serving

FILES = sorted((ROOT / "examples" / "cluster").glob("*.yaml"))
EXAMPLE = ROOT / "Corefile.example"


def digs() -> list[tuple[str, list[str]]]:
    """Each ``dig`` in the comments, without address and port, and the lines below it."""
    found: list[tuple[str, list[str]]] = []
    for file in FILES:
        for line in file.read_text().splitlines():
            if match := re.fullmatch(r"#   dig @127\.0\.0\.1 -p 1053 (.*)", line):
                found.append((match[1], []))
            elif line.startswith("#     "):
                found[-1][1].append(line.removeprefix("#     "))
    return found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def ports() -> AsyncIterator[dict[str, int]]:
    """Corefile.example served on free ports, with an upstream that nobody listens at: the port for each in the file."""
    ports = {port: free_port() for port in ("1053", "18080", "18181", "19153")}
    text = re.sub("|".join(ports), lambda match: str(ports[match[0]]), EXAMPLE.read_text())
    text = text.replace("/etc/resolv.conf", f"127.0.0.1:{free_port()}").replace("    loop\n", "")
    text = text.replace("lameduck 5s", "lameduck 0s")
    for path in ("examples/cluster", "examples/db.example.org"):
        text = text.replace(path, str(ROOT / path))
    async with serving(text):
        yield ports


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("command", "expected"), digs(), ids=[command for command, _ in digs()])
async def test_digs_in_comments(ports: dict[str, int], command: str, expected: list[str]) -> None:
    words = command.split()
    if words[0] == "-x":
        name, kind = dns.reversename.from_address(words[1]).to_text(), "PTR"
    else:
        name, kind = words[0], (words[1:] or ["A"])[0]
    reply = await ask(ports["1053"], name, kind)
    if expected == ["NXDOMAIN"]:
        assert reply.rcode() == dns.rcode.NXDOMAIN
        return
    assert reply.rcode() == dns.rcode.NOERROR
    assert sorted(record.to_text() for rrset in reply.answer for record in rrset) == expected
    assert {rrset.ttl for rrset in reply.answer} == {30}


def test_every_dig_says_what_to_expect() -> None:
    assert len(digs()) > 20
    assert all(expected for _, expected in digs())


@pytest.mark.asyncio(loop_scope="module")
async def test_the_static_zone(ports: dict[str, int]) -> None:
    assert answers(await ask(ports["1053"], "example.org", "MX")) == ["example.org. 3600 IN MX 10 mail.example.org."]


@pytest.mark.asyncio(loop_scope="module")
async def test_http_ports(ports: dict[str, int]) -> None:
    assert await http_get(ports["18080"], "/health") == (200, "OK")
    assert await http_get(ports["18181"], "/ready") == (200, "OK")
    status, text = await http_get(ports["19153"], "/metrics")
    assert status == 200
    assert "coredns_dns_requests_total" in text


def test_corefile_example_listens_on_loopback_only() -> None:
    read = parse(EXAMPLE.read_text())
    assert [block.keys[0].text for block in read.blocks] == [".:1053", "consul.local:1053", "example.org:1053"]
    for block in read.blocks:
        used = {directive.name: directive for directive in block.directives}
        assert used["bind"].args == ("127.0.0.1",)
        for name in ("health", "ready", "prometheus"):
            assert name not in used or used[name].args[0].startswith("127.0.0.1:")


def test_the_sample_has_one_of_everything() -> None:
    documents = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
    objects = [one for document in documents for one in document.get("items", [document])]
    services = [one["spec"] for one in objects if one["kind"] == "Service"]
    assert {spec.get("type", "ClusterIP") for spec in services} == {
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "ExternalName",
    }
    assert {"None", "10.96.0.1", "10.96.0.10", None} <= {spec.get("clusterIP") for spec in services}
    assert any(len(spec.get("clusterIPs", [])) == 2 for spec in services)
    assert any(spec.get("publishNotReadyAddresses") for spec in services)
    kinds = {"Namespace", "Service", "EndpointSlice", "Pod", "StatefulSet"}
    assert {one["kind"] for one in objects} == kinds
    assert {one["metadata"]["name"] for one in objects if one["kind"] == "Namespace"} == {
        "default",
        "dev",
        "kube-system",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_sample_is_made_of_manifests_that_kubernetes_knows(file: Path) -> None:
    for document in yaml.safe_load_all(file.read_text()):
        for one in document.get("items", [document]):
            check(one)


async def test_an_edit_is_seen(tmp_path: Path) -> None:
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: new}\nspec: {clusterIP: 10.96.1.1}\n"
    (tmp_path / "cluster").mkdir()
    text = ". {\nerrors\ncache 30\nkubernetes cluster.local {\nmanifests %s\nttl 30\n}\n}" % (tmp_path / "cluster")
    async with serving(text) as running:
        name = "new.default.svc.cluster.local"
        assert (await ask(running.ports[0], name)).rcode() == dns.rcode.NXDOMAIN
        (tmp_path / "cluster" / "new.yaml").write_text(service)
        async with asyncio.timeout(10):
            while not (reply := await ask(running.ports[0], name)).answer:
                await asyncio.sleep(0.05)
        assert answers(reply) == [f"{name}. 30 IN A 10.96.1.1"]
