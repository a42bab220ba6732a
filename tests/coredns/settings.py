"""Corefiles for `test_parity`, the files that they name, and the upstream that they forward to."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.flags

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


SNIPPETS = r"""
(zone) {
    file FOLDER/zone.test zone.test
}
(hosts) {
    hosts FOLDER/hosts hosts.test {
        192.0.2.63 two.hosts.test
        fallthrough
    }
}
(everywhere) {
    hosts FOLDER/hosts {
        ttl 77
        fallthrough
    }
}
(template) {
    template IN A tmpl.test {
        match ^(?P<n>[a-z0-9]+)[.]tmpl[.]test[.]$
        answer "{{ .Name }} 60 IN A 192.0.2.77"
        fallthrough
    }
    template ANY ANY tmpl.test {
        rcode NXDOMAIN
        authority "tmpl.test 60 IN SOA ns.tmpl.test hm.tmpl.test 1 60 60 60 60"
    }
}
(rewrite) {
    rewrite stop {
        name regex (.*)[.]rewrite[.]test {1}.default.svc.cluster.local
        answer auto
    }
    rewrite name exact old.exact.test web.default.svc.cluster.local
    rewrite type HINFO A
}
(all) {
    import hosts
    import template
    import zone
    forward . UPSTREAM
}
"""

COREFILES = r"""
# kubeadm
.:PORT {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . UPSTREAM
    loadbalance
}
# verified
.:PORT {
    kubernetes cluster.local {
        API
        pods verified
        endpoint_pod_names
        ttl TTL
    }
}
# bare
.:PORT {
    kubernetes cluster.local 10.0.0.0/16 10.96.0.0/12 fd00:96::/64 {
        API
    }
    import all
}
# noendpoints
.:PORT {
    kubernetes cluster.local {
        API
        noendpoints
        pods PODS
        fallthrough
    }
    import everywhere
    forward . UPSTREAM
}
# namespaces
.:PORT {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        namespaces default prod svc ghost
        pods PODS
        fallthrough cluster.local
    }
    import all
}
# namespace_labels
.:PORT {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        namespace_labels env=prod
        pods insecure
    }
    import all
}
# labels
.:PORT {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        labels env in (prod, dev),team notin (b)
        pods verified
        fallthrough in-addr.arpa ip6.arpa
    }
}
# empty services
.:PORT {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        ignore empty_service
        endpoint_pod_names
        ttl 0
    }
    forward . UPSTREAM
}
# zones
.:PORT {
    kubernetes 10.in-addr.arpa sub.cluster.local cluster.local up.test in-addr.arpa ip6.arpa {
        API
        pods insecure
        ttl TTL
        fallthrough in-addr.arpa ip6.arpa sub.cluster.local
    }
    import all
}
# root zone
.:PORT {
    kubernetes . {
        API
        pods insecure
        fallthrough
    }
    forward . UPSTREAM
}
# cache
.:PORT {
    errors
    loop
    reload
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . UPSTREAM
    cache 30
    loadbalance
}
# short cache
.:PORT {
    cache {
        success 2000 1 0
        denial 2000 1 0
        servfail 0
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        pods verified
        ttl 5
    }
    import all
    loadbalance
}
# no denials
.:PORT {
    cache {
        disable denial cluster.local
        disable success up.test
    }
    import rewrite
    kubernetes cluster.local {
        API
        pods PODS
        ttl TTL
    }
    import all
}
# small plugins
.:PORT {
    metadata
    log . {combined}
    import rewrite
    import everywhere
    import template
    import zone
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        pods insecure
        ttl TTL
        fallthrough in-addr.arpa ip6.arpa
    }
    forward . UPSTREAM
}
# bufsize
.:PORT {
    bufsize SIZE
    kubernetes cluster.local {
        API
        pods insecure
    }
    import all
}
# blocks
cluster.local:PORT svc.cluster.local:PORT {
    kubernetes cluster.local {
        API
        pods insecure
    }
}
in-addr.arpa:PORT ip6.arpa:PORT {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
    }
    forward . UPSTREAM
}
10.0.1.0/24:PORT 10.96.0.0/13:PORT {
    kubernetes cluster.local 10.0.1.0/24 10.96.0.0/13 {
        API
        fallthrough 10.96.0.0/16
    }
}
Cluster.Example:PORT {
    import template
    import zone
}
stub.test:PORT {
    forward . UPSTREAM {
        prefer_udp
    }
    cache 20
}
zone.test:PORT hosts.test:PORT {
    import zone
    import hosts
}
test:PORT {
    import template
}
local:PORT {
    errors
}
# stub domains
.:PORT {
    errors
    forward stub.test UPSTREAM {
        force_tcp
    }
    forward up.test UPSTREAM {
        except nx.up.test
    }
    kubernetes cluster.local {
        API
        pods PODS
        endpoint_pod_names
        fallthrough cluster.local
    }
}
# rewritten zone
.:PORT {
    rewrite name suffix .cluster.example .cluster.local answer auto
    rewrite ttl exact web.default.svc.cluster.local 17
    rewrite class CH IN
    rewrite name prefix old- new-
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        pods PODS
        endpoint_pod_names
        ttl TTL
    }
    hosts FOLDER/hosts {
        no_reverse
        ttl 3600
        fallthrough cluster.local zone.test arpa test .
    }
    import zone
    forward . UPSTREAM {
        max_concurrent 1000
        policy sequential
    }
    loadbalance round_robin
}
# no AAAA
.:PORT {
    errors
    template IN AAAA {
        rcode NOERROR
    }
    template ANY HTTPS cluster.local {
        rcode NXDOMAIN
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        API
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    import hosts
    file FOLDER/zone.test zone.test {
        fallthrough
    }
    forward . UPSTREAM
}
# serve stale
.:PORT {
    errors
    kubernetes cluster.local 10.in-addr.arpa {
        API
        pods verified
        endpoint_pod_names
        ttl TTL
    }
    forward . UPSTREAM
    cache 60 {
        serve_stale 1h immediate
        prefetch 3 10s 20%
        servfail 2s
    }
}
# bound
.:PORT {
    bind 127.0.0.1
    kubernetes cluster.local {
        API
        pods insecure
    }
    import zone
}
"""


@dataclass(frozen=True)
class Setting:
    """One Corefile and what a test must know about it."""

    name: str
    text: str
    """With ``PORT`` where the port goes."""
    zones: tuple[str, ...] = ("cluster.local",)
    """Zones of *kubernetes* that are asked about."""
    reverse: bool = True
    """Whether reverse names are asked about."""
    labels: tuple[tuple[str, str], ...] = ()
    """What objects must be labelled with to be seen."""
    visible: tuple[str, ...] = ("namespaces", "services", "endpointslices")
    """Which objects of `World.mark` can be seen in answers."""
    keeps: float = 0.0
    """With a cache: how many seconds answers are kept, when that is short enough to wait for after each change."""

    @property
    def cached(self) -> bool:
        """Whether answers are kept, so that after a change CoreDNS's may be old."""
        return "    cache" in self.text


_SPECIAL: dict[str, dict[str, Any]] = {
    "verified": {"visible": ("namespaces", "services", "endpointslices", "pods")},
    "noendpoints": {"visible": ("namespaces", "services")},
    "namespaces": {"visible": ("services", "endpointslices")},
    "namespace_labels": {"labels": (("env", "prod"),)},
    "labels": {
        "labels": (("env", "dev"),),
        "visible": ("namespaces", "services", "endpointslices", "pods"),
    },
    "empty services": {"visible": ("namespaces", "endpointslices")},
    "zones": {"zones": ("cluster.local", "sub.cluster.local", "up.test")},
    "serve stale": {"visible": ("namespaces", "services", "endpointslices", "pods")},
    # CoreDNS cannot write the names that reverse lookups would lead to, and stays silent.
    "rewritten zone": {"zones": ("cluster.local", "cluster.example")},
    "root zone": {"zones": ("", "local"), "reverse": False},
    "short cache": {"keeps": 2.1, "visible": ("namespaces", "services", "endpointslices", "pods")},
}


_TEXTS = dict(part.split("\n", 1) for part in COREFILES.split("\n# ")[1:])
NAMES = tuple(_TEXTS)
"""Of all settings."""


def choose(name: str, api: str, upstream: str, folder: Path, rng: random.Random) -> Setting:
    """The setting of this name, its files in ``folder``; what it leaves open is decided by ``rng``."""
    (folder / "zone.test").write_text(ZONE_FILE)
    (folder / "hosts").write_text(HOSTS_FILE)
    words = {
        "API": f"endpoint {api}",
        "UPSTREAM": upstream,
        "FOLDER": str(folder),
        "TTL": rng.choice(("0", "5", "30", "3600")),
        "PODS": rng.choice(("disabled", "insecure", "verified")),
        "SIZE": rng.choice(("512", "1232", "4096")),
    }
    text = SNIPPETS + _TEXTS[name]
    for word, value in words.items():
        text = text.replace(word, value)
    return Setting(name, text, **_SPECIAL.get(name, {}))


async def upstream(asked: Asked) -> None:
    """What the world outside answers; nothing but the question decides."""
    zone = next((zone for zone in ("up.test.", "stub.test.") if f".{asked.name}".endswith(f".{zone}")), "")
    if zone:
        await _answer(asked, zone)
    else:
        _send(asked, authority=(". 60 IN SOA a.root. b.root. 1 60 60 60 60",), rcode="NXDOMAIN")


async def _answer(asked: Asked, zone: str) -> None:
    kind, spelled = asked.type, asked.spelling
    soa = (f"{zone} 60 IN SOA ns.{zone} hm.{zone} 1 60 60 60 30",)
    first = asked.name.split(".")[0]
    if first == "nx" or (first == "x" and asked.name.count(".") > 3):
        _send(asked, authority=soa, rcode="NXDOMAIN")
    elif first in ("fail", "refused"):
        _send(asked, rcode={"fail": "SERVFAIL", "refused": "REFUSED"}[first])
    elif first == "empty":
        _send(asked, authority=soa)
    elif first == "nosoa":
        _send(asked, rcode="NXDOMAIN")
    elif first in ("alias", "chain", "back") and kind in ("A", "AAAA", "CNAME"):
        _send(asked, *_chain(first, spelled, kind))
    elif first in ("big", "long") and kind in ("A", "TXT"):
        _send_big(asked, 20 if first == "big" else 100)
    elif kind == "A":
        addresses = f"{spelled} 120 IN A 192.0.2.1", f"{spelled} 120 IN A 192.0.2.2"
        ns = f"{zone} 300 IN NS ns.{zone}", f"ns.{zone} 300 IN A 192.0.2.53"
        _send(asked, *addresses, authority=ns[:1], additional=ns[1:], flags="AA RA")
    elif kind == "MX":
        _send(asked, f"{spelled} 120 IN MX 10 Mail.{zone}", additional=(f"mail.{zone} 60 IN A 192.0.2.9",))
    elif kind == "TXT":
        _send(asked, f'{spelled} 3 IN TXT "some" "text"', f'{spelled} 3 IN TXT "more"')
    else:
        _send(asked, authority=soa, flags="RA AD")


def _send(asked: Asked, *answer: str, flags: str = "RA", **rest: Any) -> None:
    """Reply as true servers do, with RD and CD of the query."""
    given = asked.message.flags & (dns.flags.RD | dns.flags.CD)
    asked.send(asked.reply(*answer, flags=f"QR {flags} {dns.flags.to_text(given)}", **rest))


def _chain(first: str, spelled: str, kind: str) -> list[str]:
    target = {"alias": "www.up.test.", "chain": "alias.up.test.", "back": "web.default.svc.cluster.local."}[first]
    answer = [f"{spelled} 60 IN CNAME {target}"]
    if first == "chain" and kind != "CNAME":
        answer.append("alias.up.test. 50 IN CNAME www.up.test.")
    if first != "back" and kind == "A":
        answer.append("www.up.test. 40 IN A 192.0.2.1")
    return answer


def _send_big(asked: Asked, count: int) -> None:
    rdata = "TXT " + "t" * 40 if asked.type == "TXT" else "A 10.1.1."
    answer = [f"{asked.spelling} 60 IN {rdata}{number}" for number in range(count)]
    size = max(asked.message.payload, 512) if asked.message.edns >= 0 else 512
    if asked.proto == "udp" and len(asked.reply(*answer)) > size:
        _send(asked, flags="TC RA")
    else:
        _send(asked, *answer)
