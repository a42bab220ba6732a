"""The servers that are compared: their configurations, and how each is started.

Every server listens on 127.0.0.1 (kdns and CoreDNS, by the Corefile of kubeadm, on all addresses), runs in the
foreground, and has one thread or process to answer queries, no query log and no rate limits.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import world
from bench.world import OUTSIDE, TTL, ZONE, cluster_records, write_zone

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Place:
    """Where a peer may put its files, and whom it may ask."""

    directory: Path
    port: int
    upstream: int
    """Port of a server that answers every name."""
    api: int
    """Port of the Kubernetes API."""
    http: int
    """First of three free ports for metrics and health."""
    pods: int
    """How many Pods servers without Kubernetes should know."""

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path


@dataclass(frozen=True)
class Peer:
    """A server that may be on this machine."""

    name: str
    program: str
    """What must be on PATH."""
    command: Callable[[Place], list[str]]
    """Writes the configuration and says how to start the server."""
    forwards: bool = True
    """Can ask another server."""
    tcp: bool = True
    dns: bool = True
    """Answers what is asked; the echo does not."""

    @property
    def found(self) -> bool:
        return shutil.which(self.program) is not None


def corefile(place: Place, runtime: str = "") -> Path:
    """The Corefile of kubeadm, but for the ports and the long lameduck."""
    return place.write(
        "Corefile",
        f""".:{place.port} {{
    errors
    health 127.0.0.1:{place.http}
    ready 127.0.0.1:{place.http + 1}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        endpoint http://127.0.0.1:{place.api}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl {TTL}
    }}
    prometheus 127.0.0.1:{place.http + 2}
    forward . 127.0.0.1:{place.upstream} {{
        max_concurrent 1000
    }}
    cache 30
    loop
    reload
    loadbalance
}}
""",
    )


def _kdns(place: Place) -> list[str]:
    return [sys.executable, "-m", "kdns", "-conf", str(corefile(place))]


def _coredns(place: Place) -> list[str]:
    return ["coredns", "-conf", str(corefile(place))]


def _echo(place: Place) -> list[str]:
    return [str(place.directory.parent / "echo"), str(place.port)]


def _zones(place: Place) -> dict[str, Path]:
    """Master files of the cluster's zone and of the outside one."""
    # Written once for all servers and rounds: 100,000 records take a while.
    files = {zone: place.directory.parent / f"{zone}{place.pods}.zone" for zone in (ZONE, OUTSIDE)}
    if not files[OUTSIDE].exists():
        write_zone(ZONE, cluster_records(place.pods), files[ZONE])
        write_zone(OUTSIDE, ((name, "A", "192.0.2.1") for name in world.outside(place.pods)), files[OUTSIDE])
    return files


def _nsd(place: Place) -> list[str]:
    zones = "".join(f'zone:\n  name: "{zone}"\n  zonefile: "{path}"\n' for zone, path in _zones(place).items())
    path = place.write(
        "nsd.conf",
        f"""server:
  ip-address: 127.0.0.1@{place.port}
  server-count: 1
  username: ""
  zonesdir: "{place.directory}"
  pidfile: "{place.directory}/nsd.pid"
  xfrdfile: "{place.directory}/xfrd.state"
  xfrdir: "{place.directory}"
  zonelistfile: "{place.directory}/zone.list"
  database: ""
  logfile: "{place.directory}/nsd.log"
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
  tcp-count: 100
remote-control:
  control-enable: no
{zones}""",
    )
    return ["nsd", "-d", "-c", str(path)]


def _knot(place: Place) -> list[str]:
    zones = "".join(
        f'  - domain: "{zone}"\n    file: "{path}"\n    zonefile-sync: -1\n    journal-content: none\n'
        for zone, path in _zones(place).items()
    )
    path = place.write(
        "knot.conf",
        f"""server:
  listen: 127.0.0.1@{place.port}
  rundir: "{place.directory}"
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: "{place.directory}"
control:
  listen: "{place.directory}/knot.sock"
log:
  - target: stderr
    any: error
zone:
{zones}""",
    )
    return ["knotd", "-c", str(path)]


def _unbound(place: Place) -> list[str]:
    data = "".join(f'  local-data: "{name} {TTL} {kind} {data}"\n' for name, kind, data in cluster_records(place.pods))
    soa = f"{ZONE} {TTL} SOA ns.dns.{ZONE} hostmaster.{ZONE} 1 7200 1800 86400 {TTL}"
    path = place.write(
        "unbound.conf",
        f"""server:
  interface: 127.0.0.1@{place.port}
  access-control: 127.0.0.0/8 allow
  do-daemonize: no
  num-threads: 1
  username: ""
  chroot: ""
  directory: "{place.directory}"
  pidfile: "{place.directory}/unbound.pid"
  use-syslog: no
  logfile: "{place.directory}/unbound.log"
  module-config: "iterator"
  do-not-query-localhost: no
  incoming-num-tcp: 100
  outgoing-range: 900
  num-queries-per-thread: 1000
  local-zone: "{ZONE}" static
  local-data: "{soa}"
{data}remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@{place.upstream}
""",
    )
    return ["unbound", "-d", "-c", str(path)]


def _named(place: Place) -> list[str]:
    zones = "".join(f'zone "{zone}" {{ type primary; file "{path}"; }};\n' for zone, path in _zones(place).items())
    # The outside zone is the upstream's.
    zones = "".join(line for line in zones.splitlines(keepends=True) if OUTSIDE not in line)
    path = place.write(
        "named.conf",
        f"""options {{
  directory "{place.directory}";
  pid-file "{place.directory}/named.pid";
  session-keyfile "{place.directory}/session.key";
  listen-on port {place.port} {{ 127.0.0.1; }};
  listen-on-v6 {{ none; }};
  recursion yes;
  allow-query {{ any; }};
  allow-recursion {{ any; }};
  forward only;
  forwarders {{ 127.0.0.1 port {place.upstream}; }};
  dnssec-validation no;
}};
controls {{ }};
{zones}""",
    )
    return ["named", "-g", "-n", "1", "-c", str(path)]


def _dnsmasq(place: Place) -> list[str]:
    def lines() -> Iterator[str]:
        for name, kind, data in cluster_records(place.pods):
            if kind == "A":
                yield f"{data} {name.rstrip('.')}\n"

    hosts = place.write("hosts", "".join(lines()))
    settings = {
        "port": place.port, "listen-address": "127.0.0.1", "addn-hosts": hosts, "local": f"/{ZONE.rstrip('.')}/",
        "server": f"127.0.0.1#{place.upstream}", "cache-size": 10000, "dns-forward-max": 1000, "local-ttl": TTL,
        "pid-file": place.directory / "dnsmasq.pid", "user": "root",
    }  # fmt: skip
    flags = ["--keep-in-foreground", "--bind-interfaces", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"]
    return ["dnsmasq", *flags, *(f"--{key}={value}" for key, value in settings.items())]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("echo", "cc", _echo, forwards=False, tcp=False, dns=False),
        Peer("kdns", sys.executable, _kdns),
        Peer("coredns", "coredns", _coredns),
        Peer("unbound", "unbound", _unbound),
        Peer("named", "named", _named),
        Peer("dnsmasq", "dnsmasq", _dnsmasq),
        Peer("knot", "knotd", _knot, forwards=False),
        Peer("nsd", "nsd", _nsd, forwards=False),
    )
}
