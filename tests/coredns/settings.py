"""Corefiles for `test_parity`, the files that they name, and the upstream that they forward to."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.fakeupstream import Asked

ZONE_FILE = """
$ORIGIN zone.test.
@ 300 IN SOA ns hostmaster 7 3600 600 86400 60
@ 300 NS ns
ns 300 A 192.0.2.1
one 300 A 192.0.2.11
one 300 A 192.0.2.12
cname 300 CNAME one
*.wild 60 A 192.0.2.20
sub 300 NS ns.sub
ns.sub 300 A 192.0.2.40
mx 300 MX 10 one
srv 300 SRV 0 0 80 one
"""

HOSTS_FILE = """
192.0.2.61 host.hosts.test two.hosts.test
192.0.2.62 two.hosts.test
2001:db8::61 host.hosts.test
10.96.0.5 web.default.svc.cluster.local
192.0.2.99 ptr.hosts.test
"""


@dataclass(frozen=True)
class Setting:
    """One Corefile and what a test must know about it."""

    name: str
    text: str
    """With ``PORT`` where the port goes."""
    zones: tuple[str, ...] = ("cluster.local",)
    """Zones of *kubernetes* that are asked about."""
    labels: tuple[tuple[str, str], ...] = ()
    """What objects must be labelled with to be seen."""
    visible: tuple[str, ...] = ("namespaces", "services", "endpointslices")
    """Which objects of `World.mark` can be seen in answers."""
    cached: bool = False
    """Whether answers are kept, so that after a change they may be old."""
    keeps: float = 0.0
    """How many seconds, when that is short enough to wait for after each change; 0: no changes."""


def settings(api: str, upstream: str, folder: Path, rng: random.Random) -> list[Setting]:
    """All of them; what they leave open is decided by ``rng``."""
    (folder / "zone.test").write_text(ZONE_FILE)
    (folder / "hosts").write_text(HOSTS_FILE)

    def kubernetes(*lines: str, zones: str = "cluster.local") -> str:
        body = "".join(f"        {line}\n" for line in (f"endpoint {api}", *lines))
        return f"    kubernetes {zones} {{\n{body}    }}\n"

    def block(*parts: str, keys: str = ".:PORT") -> str:
        body = "".join(part if part.endswith("\n") else f"    {part}\n" for part in parts)
        return f"{keys} {{\n{body}}}\n"

    forward = f"forward . {upstream}"
    hosts = f"    hosts {folder}/hosts hosts.test {{\n        192.0.2.63 two.hosts.test\n        fallthrough\n    }}\n"
    everywhere = f"    hosts {folder}/hosts {{\n        ttl 77\n        fallthrough\n    }}\n"
    zone = f"file {folder}/zone.test zone.test"
    template = (
        '    template IN A tmpl.test {\n        match ^(?P<n>[a-z0-9]+)[.]tmpl[.]test[.]$\n'
        '        answer "{{ .Name }} 60 IN A 192.0.2.77"\n        fallthrough\n    }\n'
        "    template ANY ANY tmpl.test {\n        rcode NXDOMAIN\n"
        '        authority "tmpl.test 60 IN SOA ns.tmpl.test hm.tmpl.test 1 60 60 60 60"\n    }\n'
    )
    rewrite = (
        "    rewrite stop {\n        name regex (.*)[.]rewrite[.]test {1}.default.svc.cluster.local\n        answer auto\n    }\n"
        "    rewrite name exact old.exact.test web.default.svc.cluster.local\n"
        "    rewrite type HINFO A\n"
    )
    reverse = "in-addr.arpa ip6.arpa"
    ttl = rng.choice(("0", "5", "30", "3600"))
    pods = rng.choice(("disabled", "insecure", "verified"))
    both = ("namespaces", "services", "endpointslices", "pods")
    headless = ("namespaces", "endpointslices")
    return [
        Setting("kubeadm", block(
            "errors", kubernetes("pods insecure", f"fallthrough {reverse}", "ttl 30", zones=f"cluster.local {reverse}"),
            forward, "loadbalance")),
        Setting("verified", block(kubernetes("pods verified", "endpoint_pod_names", f"ttl {ttl}")), visible=both),
        Setting("bare", block(kubernetes(zones="cluster.local 10.0.0.0/16 10.96.0.0/12 fd00:96::/64"), hosts, forward)),
        Setting("noendpoints", block(kubernetes("noendpoints", "fallthrough", f"pods {pods}"), everywhere, forward),
                visible=("namespaces", "services")),
        Setting("namespaces", block(
            kubernetes("namespaces default prod svc ghost", f"pods {pods}", "fallthrough cluster.local",
                       zones=f"cluster.local {reverse}"), template, forward), visible=("services", "endpointslices")),
        Setting("namespace_labels", block(
            kubernetes("namespace_labels env=prod", "pods insecure", zones=f"cluster.local {reverse}"), zone, forward),
            labels=(("env", "prod"),)),
        Setting("labels", block(kubernetes("labels env in (prod, dev),team notin (b)", "pods verified", f"fallthrough {reverse}",
                                           zones=f"cluster.local {reverse}")),
                labels=(("env", "dev"),), visible=both),
        Setting("empty", block(kubernetes("ignore empty_service", "ttl 0", "endpoint_pod_names",
                                          zones=f"cluster.local {reverse}"), forward), visible=headless),
        Setting("zones", block(
            kubernetes("pods insecure", f"ttl {ttl}", f"fallthrough {reverse} sub.cluster.local",
                       zones=f"10.in-addr.arpa sub.cluster.local cluster.local up.test {reverse}"), hosts, zone, forward),
            zones=("cluster.local", "sub.cluster.local", "up.test")),
        Setting("root zone", block(kubernetes("pods insecure", "fallthrough", "ttl 5", zones="."), forward), zones=("", "local")),
        Setting("cache", block(
            "errors", kubernetes("pods insecure", f"fallthrough {reverse}", "ttl 30", zones=f"cluster.local {reverse}"),
            forward, "cache 30", "loop", "reload", "loadbalance", "prometheus 127.0.0.1:0"), cached=True),
        Setting("short cache", block(
            kubernetes("pods verified", "ttl 5", zones=f"cluster.local {reverse}"), hosts, zone, template, forward,
            "    cache {\n        success 2000 1 0\n        denial 2000 1 0\n        servfail 0\n    }\n", "loadbalance"),
            visible=both, cached=True, keeps=2.1),
        Setting("no denials", block(
            kubernetes(f"ttl {ttl}", f"pods {pods}"), rewrite, forward,
            "    cache {\n        disable denial cluster.local\n        disable success up.test\n    }\n"), cached=True),
        Setting("small plugins", block(
            "metadata", "log . {combined}", rewrite, everywhere, template, zone,
            kubernetes("pods insecure", f"ttl {ttl}", f"fallthrough {reverse}", zones=f"cluster.local {reverse}"), forward)),
        Setting("bufsize", block(f"bufsize {rng.choice((512, 1232, 4096))}", zone, kubernetes("pods insecure"), forward)),
        Setting("blocks",
                block(kubernetes("pods insecure", "ttl 30"), keys="cluster.local:PORT svc.cluster.local:PORT")
                + block(kubernetes(zones=f"cluster.local {reverse}"), forward, keys=f"in-addr.arpa:PORT ip6.arpa:PORT")
                + block(forward, "cache 20", keys="stub.test:PORT") + block(zone, hosts, keys="zone.test:PORT hosts.test:PORT")
                + block("whoami", keys="who.test:PORT") + block("errors", keys="local:PORT")
                + block(template, keys="test:PORT")),
        Setting("stub domains", block(
            "errors", f"forward stub.test {upstream}", f"forward up.test {upstream} {{\n        except nx.up.test\n    }}",
            kubernetes(f"pods {pods}", "endpoint_pod_names", "fallthrough cluster.local"))),
        Setting("bound", block("bind 127.0.0.1", kubernetes("pods insecure"), zone)),
    ]  # fmt: skip


async def upstream(asked: Asked) -> None:
    """What the world outside answers; nothing but the question decides."""
    name, kind, spelled = asked.name, asked.type, asked.spelling
    soa = ("up.test. 60 IN SOA ns.up.test. hm.up.test. 1 60 60 60 30",)
    first = name.split(".")[0]
    reply = asked.reply
    if not name.endswith(("up.test.", "stub.test.")):
        asked.send(reply(authority=(". 60 IN SOA a.root. b.root. 1 60 60 60 60",), rcode="NXDOMAIN"))
    elif first == "nx" or (name.count(".") > 3 and first == "x"):
        asked.send(reply(authority=soa, rcode="NXDOMAIN"))
    elif first == "fail":
        asked.send(reply(rcode="SERVFAIL"))
    elif first == "refused":
        asked.send(reply(rcode="REFUSED"))
    elif first == "empty":
        asked.send(reply(authority=soa))
    elif first == "nosoa":
        asked.send(reply(rcode="NXDOMAIN"))
    elif first in ("alias", "chain", "back") and kind in ("A", "AAAA", "CNAME"):
        target = {"alias": "www.up.test.", "chain": "alias.up.test.", "back": "web.default.svc.cluster.local."}[first]
        answer = [f"{spelled} 60 IN CNAME {target}"]
        if first == "chain" and kind != "CNAME":
            answer.append("alias.up.test. 50 IN CNAME www.up.test.")
        if first != "back" and kind == "A":
            answer.append("www.up.test. 40 IN A 192.0.2.1")
        asked.send(reply(*answer))
    elif first in ("big", "long") and kind in ("A", "TXT"):
        await _send_big(asked, 20 if first == "big" else 100)
    elif kind == "A":
        asked.send(reply(f"{spelled} 120 IN A 192.0.2.1", f"{spelled} 120 IN A 192.0.2.2", authority=("up.test. 300 IN NS ns.up.test.",),
                         additional=("ns.up.test. 300 IN A 192.0.2.53",), flags="QR AA RD RA"))  # fmt: skip
    elif kind == "MX":
        asked.send(reply(f"{spelled} 120 IN MX 10 Mail.up.test.", additional=("mail.up.test. 60 IN A 192.0.2.9",)))
    elif kind == "TXT":
        asked.send(reply(f'{spelled} 3 IN TXT "some" "text"', f'{spelled} 3 IN TXT "more"'))
    else:
        asked.send(reply(authority=soa, flags="QR RD RA AD"))


async def _send_big(asked: Asked, count: int) -> None:
    rdata = "TXT " + "t" * 40 if asked.type == "TXT" else "A 10.1.1."
    packet = asked.reply(*(f"{asked.spelling} 60 IN {rdata}{number}" for number in range(count)))
    size = max(asked.message.payload, 512) if asked.message.edns >= 0 else 512
    if asked.proto == "udp" and len(packet) > size:
        packet = asked.reply(flags="QR TC RD RA")
    asked.send(packet)
