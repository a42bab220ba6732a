"""What the documentation says is so: its Corefiles start and answer, its links lead somewhere, no option is missing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dns.rcode
import pytest
import pytest_asyncio

from kdns import plugins
from kdns.build import build
from kdns.errors import KdnsError
from kdns.plugin import Plugin, Process
from tests.e2e.corefiles import here
from tests.fakeapi import FakeApi, namespace, service
from tests.fakeupstream import FakeUpstream
from tests.plugintest import set_up
from tests.support import ROOT, answers, ask, captured_log, parse, serving

PAGES = sorted(path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts))
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = {
    "bind lo": "except",
    "cache": "success denial prefetch serve_stale serve_stale_policy servfail disable keepttl",
    "errors": "consolidate stacktrace",
    "file examples/db.example.org": "reload fallthrough upstream",
    "forward . 192.0.2.1": "except force_tcp prefer_udp expire max_age max_idle_conns read_timeout max_fails tls "
    "max_connect_attempts tls_servername policy health_check max_concurrent next next_on_nodata failover "
    "source_address resolver failfast_all_unhealthy_upstreams doh_method",
    "health": "lameduck",
    "hosts": "ttl no_reverse reload fallthrough",
    "kubernetes cluster.local": "endpoint tls kubeconfig namespaces namespace_labels labels pods endpoint_pod_names "
    "ttl noendpoints fallthrough ignore startup_timeout apiserver_qps apiserver_burst apiserver_max_inflight manifests "
    "snapshot",
    "loadbalance": "prefer",
    "loadbalance weighted weights": "reload",
    "log": "class",
    "prometheus": "runtime_metrics tls",
    "ready": "monitor",
    "rewrite": "name type class edns0 ttl rcode cname",
    "template IN A": "match var expr answer additional authority rcode ederror fallthrough upstream",
    "tls cert.pem key.pem": "client_auth keylog",
}
"""What may stand in a directive's block (for rewrite: its rules), in CoreDNS 1.14.7 and of kdns's own."""


def corefiles() -> Iterator[tuple[str, str]]:
    """Where it stands, and its text."""
    for page in PAGES:
        for number, (language, text) in enumerate(BLOCK.findall(page.read_text()), 1):
            if language == "corefile":
                yield f"{page.relative_to(ROOT)}-{number}", text
    yield "Corefile.example", (ROOT / "Corefile.example").read_text()


COREFILES = dict(corefiles())


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as api:
        api.put("namespaces", namespace("dev"))
        api.put("services", service("web", "dev", cluster_ip="10.96.5.5"))
        yield api


def question(text: str) -> tuple[str, str]:
    """A name that the Corefile has an answer for, as far as can be told from afar, and its type."""
    if "kubernetes" in text:
        return "web.dev.svc.cluster.local.", "A"
    zones = re.findall(r"^([a-z][a-z.]+)", text, re.MULTILINE)
    name = zones[0] if zones else "example.org"
    return f"{name}.", "SOA" if "file" in text else "A"


def test_there_are_corefiles_to_start() -> None:
    assert len(COREFILES) > 25
    assert {"README.md-5", "Corefile.example"} <= COREFILES.keys()


@pytest.mark.parametrize("place", COREFILES)
def test_every_corefile_is_taken_as_it_stands(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with captured_log():
        assert build(Process(), parse(COREFILES[place]), 53).services


@pytest.mark.parametrize("place", COREFILES)
async def test_every_corefile_starts_and_answers(
    place: str, upstream: FakeUpstream, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = here(COREFILES[place], upstream.address, api.url)
    name, kind = question(text)
    with captured_log():
        async with serving(text) as server:
            reply = await ask(server.ports[0], name, kind)
    if "kubernetes" in text:
        assert answers(reply)[0].split()[2:] == ["IN", "A", "10.96.5.5"]
    elif any(directive in text for directive in ("whoami", "forward", "file")):
        assert reply.rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize("directive", sorted({*plugins.BUILT_IN, "import"}))
def test_every_directive_has_a_page_with_all_its_options(directive: str) -> None:
    page = (ROOT / "docs" / "plugins" / f"{directive}.md").read_text()
    assert re.match(rf"# {directive}\n", page)
    assert "\n## Example" in page
    options = [option for line, words in OPTIONS.items() if line.split()[0] == directive for option in words.split()]
    assert not [option for option in options if not re.search(rf"\b{option}\b", page)]


# hosts takes any line, for an address may be anything; tls looks at its files first.
@pytest.mark.parametrize("line", [line for line in OPTIONS if not line.startswith(("hosts", "tls"))])
def test_the_options_in_the_list_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kind = plugins.find(line.split()[0])
    unknown = said(kind, f"{line} {{\nnonsense x\n}}")
    assert "nonsense" in unknown
    for option in OPTIONS[line].split():
        assert said(kind, f"{line} {{\n{option} x\n}}") != unknown.replace("nonsense", option)


def said(kind: type[Plugin], text: str) -> str:
    """What a plugin has against this text; empty when nothing."""
    try:
        set_up(kind, text)
    except KdnsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]]+\]: (\S+)", text, re.MULTILINE)
    lost = [
        target
        for target in targets
        if "://" not in target
        and not target.startswith(("#", "mailto:"))
        and not (page.parent / target.partition("#")[0]).exists()
    ]
    assert not lost
