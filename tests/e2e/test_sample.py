"""The sample cluster as `make run` serves it: for each object the names that the Kubernetes DNS specification gives it.

The numbers are the sections of that specification (kubernetes/dns, docs/specification.md, 1.1.0).  Where a Service has
two cluster IPs the weights in its SRV records are CoreDNS's: a share for each address.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import dns.flags
import dns.rcode
import dns.reversename
import pytest
import pytest_asyncio
import yaml

from tests.e2e.corefiles import here
from tests.e2e.tools import internet
from tests.fakeupstream import FakeUpstream
from tests.support import ROOT, ask, serving

ZONE = "svc.cluster.local."

# Names are below `svc.cluster.local.` unless they end with a dot; nothing at the end of a line is NODATA.
TABLE = """
2.2   dns-version.cluster.local.                           TXT   "1.1.0"
2.3.1 kubernetes.default                                   A     10.96.0.1
2.3.1 kubernetes.default                                   AAAA
2.3.1 web.dev                                              A     10.96.5.5
2.3.1 kube-dns.kube-system                                 A     10.96.0.10
2.3.1 load-balancer.default                                A     10.96.7.7
2.3.1 node-port.default                                    A     10.96.6.6
2.3.1 dual-stack.default                                   A     10.96.8.8
2.3.1 dual-stack.default                                   AAAA  fd00:10:96::808
2.3.2 _https._tcp.kubernetes.default                       SRV   0 100 443 kubernetes.default
2.3.2 _dns._udp.kube-dns.kube-system                       SRV   0 100 53 kube-dns.kube-system
2.3.2 _dns._tcp.kube-dns.kube-system                       SRV   NXDOMAIN
2.3.2 _dns-tcp._tcp.kube-dns.kube-system                   SRV   0 100 53 kube-dns.kube-system
2.3.2 _metrics._tcp.kube-dns.kube-system                   SRV   0 100 9153 kube-dns.kube-system
2.3.2 _http._tcp.load-balancer.default                     SRV   0 100 80 load-balancer.default
2.3.2 _http._tcp.node-port.default                         SRV   0 100 8000 node-port.default
2.3.2 _http._tcp.dual-stack.default                        SRV   0 50 80 dual-stack.default
2.3.2 _http._tcp.web.default                               SRV   0 100 80 web.default
2.3.3 1.0.96.10.in-addr.arpa.                              PTR   kubernetes.default
2.3.3 10.0.96.10.in-addr.arpa.                             PTR   kube-dns.kube-system
2.3.3 7.7.96.10.in-addr.arpa.                              PTR   load-balancer.default
2.3.3 6.6.96.10.in-addr.arpa.                              PTR   node-port.default
2.3.3 8.8.96.10.in-addr.arpa.                              PTR   dual-stack.default
2.3.3 5.5.96.10.in-addr.arpa.                              PTR   web.dev
2.3.3 {fd00:10:96::808}                                    PTR   dual-stack.default
2.3.3 7.113.0.203.in-addr.arpa.                            PTR   NXDOMAIN
2.4.1 headless-service.default                             A     10.244.1.21 10.244.1.22 10.244.2.21 10.244.2.22
2.4.1 headless-service.default                             AAAA
2.4.1 10-244-1-21.headless-service.default                 A     10.244.1.21
2.4.1 10-244-2-23.headless-service.default                 A     NXDOMAIN
2.4.1 10-244-2-24.headless-service.default                 A     NXDOMAIN
2.4.1 postgres.default                                     A     10.244.1.31 10.244.2.31
2.4.1 postgres-0.postgres.default                          A     10.244.1.31
2.4.1 postgres-1.postgres.default                          A     10.244.2.31
2.4.1 postgres-2.postgres.default                          A     NXDOMAIN
2.4.1 peers.default                                        A     10.244.1.41 10.244.2.41
2.4.1 10-244-2-41.peers.default                            A     10.244.2.41
2.4.1 dual-headless.default                                A     10.244.1.51
2.4.1 dual-headless.default                                AAAA  fd00:10:244:1::51
2.4.1 one.dual-headless.default                            A     10.244.1.51
2.4.1 one.dual-headless.default                            AAAA  fd00:10:244:1::51
2.4.1 legacy-db.dev                                        A     192.0.2.51 192.0.2.52
2.4.1 primary.legacy-db.dev                                A     192.0.2.51
2.4.1 replica.legacy-db.dev                                A     192.0.2.52
2.4.1 broken.legacy-db.dev                                 A     NXDOMAIN
2.4.1 nobody.default                                       A     NXDOMAIN
2.4.2 _http._tcp.headless-service.default                  SRV   0 25 8080 10-244-1-21.headless-service.default; \
0 25 8080 10-244-1-22.headless-service.default; 0 25 8080 10-244-2-21.headless-service.default; \
0 25 8080 10-244-2-22.headless-service.default
2.4.2 _postgres._tcp.postgres.default                      SRV   0 50 5432 postgres-0.postgres.default; \
0 50 5432 postgres-1.postgres.default
2.4.2 _mysql._tcp.legacy-db.dev                            SRV   0 50 3306 primary.legacy-db.dev; \
0 50 3306 replica.legacy-db.dev
2.4.2 _mysql._udp.legacy-db.dev                            SRV   NXDOMAIN
2.4.3 21.1.244.10.in-addr.arpa.                            PTR   10-244-1-21.headless-service.default
2.4.3 31.1.244.10.in-addr.arpa.                            PTR   postgres-0.postgres.default
2.4.3 31.2.244.10.in-addr.arpa.                            PTR   postgres-1.postgres.default
2.4.3 41.2.244.10.in-addr.arpa.                            PTR   10-244-2-41.peers.default
2.4.3 51.2.0.192.in-addr.arpa.                             PTR   primary.legacy-db.dev
2.4.3 {fd00:10:244:1::51}                                  PTR   one.dual-headless.default
2.4.3 23.2.244.10.in-addr.arpa.                            PTR   NXDOMAIN
2.5   external-service.default                             CNAME github.com.
2.5   service-externalname.dev                             CNAME www.baidu.com.
-     10-244-1-11.web.default                              A     10.244.1.11
-     10-244-1-11.default.pod.cluster.local.               A     10.244.1.11
-     10-244-1-12.default.pod.cluster.local.               A     10.244.1.12
-     fd00-10-244-1--12.default.pod.cluster.local.         AAAA  fd00:10:244:1::12
-     10-244-1-41.dev.pod.cluster.local.                   A     NXDOMAIN
-     10-9-9-9.default.pod.cluster.local.                  A     NXDOMAIN
-     default                                              A
-     nowhere                                              A     NXDOMAIN
-     web.nowhere                                          A     NXDOMAIN
"""


def rows() -> list[tuple[str, str, list[str] | None]]:
    """Name, type, and the data that must come back; None: the name does not exist."""
    found: list[tuple[str, str, list[str] | None]] = []
    for line in TABLE.replace("\\\n", "").strip().splitlines():
        _, name, kind, *data = line.split(maxsplit=3)
        text = data[0] if data else ""
        parts = text.split("; ") if kind in ("SRV", "TXT") else text.split()
        pointing = ("SRV", "PTR", "CNAME")
        whole = [f"{part}.{ZONE}" if kind in pointing and not part.endswith(".") else part for part in parts]
        found.append((_whole(name), kind, None if text == "NXDOMAIN" else sorted(whole)))
    return found


def _whole(name: str) -> str:
    if name.startswith("{"):
        return dns.reversename.from_address(name.strip("{}")).to_text()
    return name if name.endswith(".") else f"{name}.{ZONE}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def port() -> AsyncIterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        async with FakeUpstream() as upstream:
            upstream.script = internet
            async with serving(here((ROOT / "Corefile.example").read_text(), upstream.address)) as server:
                yield server.ports[0]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("name", "kind", "data"), rows(), ids=[f"{name}-{kind}" for name, kind, _ in rows()])
async def test_names_of_the_specification(port: int, name: str, kind: str, data: list[str] | None) -> None:
    for spelling in (name, name.upper()):
        reply = await ask(port, spelling, kind)
        if data is None:
            assert reply.rcode() == dns.rcode.NXDOMAIN
            continue
        assert reply.rcode() == dns.rcode.NOERROR
        assert sorted(record.to_text() for rrset in reply.answer for record in rrset) == data
        assert {rrset.ttl for rrset in (*reply.answer, *reply.authority)} <= {30}
        assert dns.flags.to_text(reply.flags) == "QR AA RD"


@pytest.mark.asyncio(loop_scope="module")
async def test_an_outside_name_goes_to_the_upstream(port: int) -> None:
    reply = await ask(port, "github.com.")
    assert [record.to_text() for rrset in reply.answer for record in rrset] == ["20.205.243.166"]
    assert (await ask(port, "nobody.example.")).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.asyncio(loop_scope="module")
async def test_srv_answers_bring_the_addresses_along(port: int) -> None:
    reply = await ask(port, f"_postgres._tcp.postgres.default.{ZONE}", "SRV")
    assert sorted(rrset.to_text() for rrset in reply.additional) == [
        f"postgres-0.postgres.default.{ZONE} 30 IN A 10.244.1.31",
        f"postgres-1.postgres.default.{ZONE} 30 IN A 10.244.2.31",
    ]


def test_every_service_of_the_sample_is_in_the_table() -> None:
    files = (ROOT / "examples" / "cluster").glob("*.yaml")
    documents = [one for file in files for one in yaml.safe_load_all(file.read_text())]
    objects = [one for document in documents for one in document.get("items", [document])]
    services = [one["metadata"] for one in objects if one["kind"] == "Service"]
    asked = [name for name, _, _ in rows()]
    assert len(services) > 10
    for meta in services:
        assert any(name.endswith(f"{meta['name']}.{meta['namespace']}.{ZONE}") for name in asked), meta
