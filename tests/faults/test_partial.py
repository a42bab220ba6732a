"""One kind of objects is not to be had: what does not depend on it is answered, the rest is SERVFAIL and never denied,
nothing of the cluster goes to the upstream, and the log and ``/ready`` say which kind it is and why.

The server is in this process, the API server and the upstream are fakes over real sockets.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest
from dns.edns import EDEOption

from kdns.cluster import api as api_module
from tests.fakeapi import FakeApi, endpointslice, pod, service
from tests.fakeupstream import FakeUpstream
from tests.support import Lines, answers, ask, captured_log, free_port, http_get, serving, until

ZONE = "default.svc.cluster.local."
UNKNOWN = "SERVFAIL/14"
WORLD = {
    f"web.{ZONE} A": "10.96.0.5",
    f"_http._tcp.web.{ZONE} SRV": f"0 100 80 web.{ZONE}",
    f"ext.{ZONE} CNAME": "www.example.",
    f"peers.{ZONE} A": "10.1.0.1",
    f"p.peers.{ZONE} A": "10.1.0.1",
    "10-1-0-1.default.pod.cluster.local. A": "10.1.0.1",
    "5.0.96.10.in-addr.arpa. PTR": f"web.{ZONE}",
    "1.0.1.10.in-addr.arpa. PTR": f"p.peers.{ZONE}",
    "default.svc.cluster.local. A": "NODATA",
    "svc.cluster.local. A": "NODATA",
    "dns-version.cluster.local. TXT": '"1.1.0"',
    f"nobody.{ZONE} A": "NXDOMAIN",
    f"x.web.{ZONE} A": "NXDOMAIN",
    "10-1-0-9.default.pod.cluster.local. A": "NXDOMAIN",
    "nobody.nowhere.svc.cluster.local. A": "NXDOMAIN",
    "nowhere.svc.cluster.local. A": "NXDOMAIN",
    "what.cluster.local. A": "NXDOMAIN",
    "9.9.1.10.in-addr.arpa. PTR": "NXDOMAIN from the upstream",
    "www.example. A": "192.0.2.1",
}
"""Question → the answer when everything is known; NODATA, the rcode."""
NAMES = (f"web.{ZONE} A", f"_http._tcp.web.{ZONE} SRV", f"ext.{ZONE} CNAME")
ALWAYS = {"svc.cluster.local. A", "dns-version.cluster.local. TXT", "www.example. A"}
SURE: dict[str, set[str]] = {
    # A Service that is there shows that its namespace is.
    "namespaces": {
        *(*NAMES, f"peers.{ZONE} A", f"p.peers.{ZONE} A"),
        *("5.0.96.10.in-addr.arpa. PTR", "1.0.1.10.in-addr.arpa. PTR"),
    },
    "services": {"default.svc.cluster.local. A", "10-1-0-1.default.pod.cluster.local. A"},
    "endpointslices": WORLD.keys()
    - {
        *(f"peers.{ZONE} A", f"p.peers.{ZONE} A", f"x.web.{ZONE} A"),
        *("1.0.1.10.in-addr.arpa. PTR", "9.9.1.10.in-addr.arpa. PTR"),
    },
    "pods": WORLD.keys() - {"10-1-0-1.default.pod.cluster.local. A", "10-1-0-9.default.pod.cluster.local. A"},
}
"""Kind that is missing → the questions that are answered all the same."""


class Served:
    def __init__(self, port: int, ready: int, api: FakeApi, upstream: FakeUpstream, log: Lines) -> None:
        self.port, self.ready, self.api, self.upstream, self.log = port, ready, api, upstream, log

    async def ask(self, question: str) -> str:
        name, kind = question.split(" ")
        reply = await ask(self.port, name, kind, edns=0)
        if reply.rcode() == dns.rcode.SERVFAIL:
            return "/".join(["SERVFAIL", *codes(reply)])
        if reply.rcode() != dns.rcode.NOERROR:
            asked = " from the upstream" if name in self.upstream.names else ""
            return dns.rcode.to_text(reply.rcode()) + asked
        return answers(reply)[0].split(" ", 4)[4] if reply.answer else "NODATA"

    async def reasons(self) -> dict[str, str]:
        """What ``/ready`` says of each kind."""
        status, text = await http_get(self.ready, "/ready")
        if status == 200:
            return {}
        assert text.startswith("kubernetes\nkubernetes: "), text
        return dict(part.split(": ", 1) for part in text.partition("\nkubernetes: ")[2].split("; "))


def codes(reply: dns.message.Message) -> list[str]:
    return [str(int(option.code)) for option in reply.options if isinstance(option, EDEOption)]


@contextlib.asynccontextmanager
async def served(api: FakeApi, endpoint: str = "", *more: str) -> AsyncIterator[Served]:
    api.put("services", service("web", cluster_ip="10.96.0.5"))
    api.put("services", service("ext", external_name="www.example"))
    api.put("services", service("peers"))
    api.put("endpointslices", endpointslice("peers", [("10.1.0.1", "p")]))
    api.put("pods", pod("p", "10.1.0.1"))
    ready = free_port()

    async def script(asked: Any) -> None:
        asked.send(asked.address("192.0.2.1") if asked.name == "www.example." else asked.reply(rcode="NXDOMAIN"))

    async with FakeUpstream() as upstream:
        upstream.script = script
        text = f""". {{
    bind 127.0.0.1
    errors
    ready 127.0.0.1:{ready} {{
        monitor continuously
    }}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        endpoint {endpoint or api.url}
        {chr(10).join(more)}
        pods verified
        startup_timeout 1ms
        fallthrough in-addr.arpa ip6.arpa
    }}
    cache 30
    forward . {upstream.address}
}}
"""
        with captured_log() as log:
            async with serving(text) as server:
                yield Served(server.ports[0], ready, api, upstream, log)


async def becomes_ready(world: Served) -> None:
    while await world.reasons():
        pass


@pytest.mark.parametrize("missing", ["namespaces", "services", "endpointslices", "pods"])
async def test_one_kind_is_forbidden(missing: str) -> None:
    async with FakeApi() as api:
        refusal = api.fault(resource=missing, status=403)
        async with served(api) as world:
            while len(reasons := await world.reasons()) != 1 or "403" not in reasons.get(missing, ""):
                pass
            sure = SURE[missing] | ALWAYS
            for question, answer in WORLD.items():
                found = await world.ask(question)
                assert found == (answer if question in sure else UNKNOWN), question
            cluster = [name for name in world.upstream.names if name.endswith(("cluster.local.", ".10.in-addr.arpa."))]
            assert cluster == (["9.9.1.10.in-addr.arpa."] if "9.9.1.10.in-addr.arpa. PTR" in sure else [])
            warnings = [line for line in world.log.matching("[WARNING] plugin/kubernetes:") if "403" in line]
            assert warnings and all(f"{missing}: list: 403" in line for line in warnings)
            # The permission comes: from then on everything is answered, and nothing of before is repeated.
            api.heal(refusal)
            await becomes_ready(world)
            for question, answer in WORLD.items():
                assert await world.ask(question) == answer, question


@pytest.mark.parametrize("missing", ["namespaces", "services", "endpointslices", "pods"])
async def test_one_kind_does_not_answer(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "SILENT", 0.1)
    async with FakeApi() as api:
        api.fault(resource=missing, stall=True)
        async with served(api) as world:
            while await world.reasons() != {missing: "the API server does not answer"}:
                pass
            assert await world.ask("9.9.1.10.in-addr.arpa. PTR") == (
                UNKNOWN if missing != "pods" else "NXDOMAIN from the upstream"
            )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 401}, "list: 401"),
        ({"status": 404}, "list: 404"),
        ({"status": 500}, "list: 500"),
        ({"status": 503, "retry_after": 1}, "list: 503"),
        ({"reset": True}, "closed"),
        ({"raw": b"SSH-2.0-OpenSSH_9.2\r\n"}, "list: 127.0.0.1:"),
        ({"body": b"<html>a proxy's login page</html>"}, "malformed"),
    ],
)
async def test_what_is_in_the_way_is_told(fault: dict[str, Any], said: str) -> None:
    async with FakeApi() as api:
        api.fault(resource="services", **fault)
        async with served(api) as world:
            while len(reasons := await world.reasons()) != 1 or said not in reasons["services"]:
                pass
            await until(lambda: bool([line for line in world.log.matching("services: list: ") if said in line]))


async def test_nobody_listens() -> None:
    async with FakeApi() as api, served(api, f"http://127.0.0.1:{free_port()}") as world:
        while not all("refused" in why for why in (await world.reasons()).values()):
            pass
        assert world.log.matching("services: list: 127.0.0.1:")


async def test_no_such_host() -> None:
    async with FakeApi() as api, served(api, "http://nowhere.invalid:6443") as world:
        while not all("nowhere.invalid:6443: " in why for why in (await world.reasons()).values()):
            pass
        assert world.log.matching("services: list: nowhere.invalid:6443: ")


async def test_a_certificate_of_somebody_else(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
    other = FakeApi(tls=second)
    async with FakeApi(tls=first) as api:
        key = str(Path(other.ca_file).with_suffix(".key"))
        tls = f"tls {other.ca_file} {key} {other.ca_file}"
        async with served(api, "", tls) as world:
            while not all("certificate" in why for why in (await world.reasons()).values()):
                pass
            assert [line for line in world.log.matching("services: list: ") if "certificate" in line]
            assert await world.ask("5.0.96.10.in-addr.arpa. PTR") == UNKNOWN
