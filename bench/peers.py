"""The servers that are compared: their configurations, and how each is started.

Every server listens on 127.0.0.1 (kdns and CoreDNS, by the Corefile of kubeadm, on all addresses), runs in the
foreground, and has one thread or process to answer queries, no query log and no rate limits.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

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


def named(text: str) -> list[str]:
    """A command line's ``A,B``, without repetitions."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def make_directory(parser: argparse.ArgumentParser, out: Path | None) -> None:
    """Make what ``--out`` names, if it names anything; that it cannot be made is the parser's error."""
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: {error}")


def twins(setup: Path = ROOT / "setup.py") -> list[str]:
    """The extension modules that setup.py builds, from its table ``TWINS``; ValueError when that cannot be read."""
    for node in ast.parse(setup.read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name("TWINS")], value=value) | ast.AnnAssign(ast.Name("TWINS"), value=value):
                return list(ast.literal_eval(value or ast.Dict([], [])))
    raise ValueError(f"{setup} has no table TWINS")


def not_compiled(modules: list[str]) -> str:
    """Why kdns cannot run with these compiled twins; empty when it can."""
    if not modules:
        return "setup.py names no compiled twins"
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            return f"its compiled twins are not built ({error}): see KDNS_COMPILED in setup.py"
    return ""


@functools.cache
def _not_compiled() -> str:
    return not_compiled(twins())


@functools.cache
def _no_multisocket() -> str:
    from kdns.plugins import PluginError, find

    try:
        find("multisocket")
    except PluginError as error:
        return str(error)
    return _not_compiled()


def not_on_path(program: str) -> str:
    """Why this program cannot run; empty when it can."""
    return "" if shutil.which(program) else f"'{program}' is not on PATH"


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
    follows: bool = False
    """Follows a Kubernetes API."""
    optional: bool = False
    """Measured only when the command line names it."""
    environment: dict[str, str] = field(default_factory=dict)
    lacks: Callable[[], str] = str
    """What else it lacks on this machine; empty: nothing."""
    version: tuple[str, ...] = ()
    """Arguments that make it tell its version."""

    @property
    def missing(self) -> str:
        """Why it cannot be measured; empty when it can."""
        return not_on_path(self.program) or self.lacks()

    def told_version(self) -> str:
        """What it says about its version, in a line; empty when it says nothing that looks like one."""
        if not self.version:
            return ""
        done = subprocess.run([self.program, *self.version], capture_output=True, text=True, timeout=10, check=False)
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
        return next((line for line in lines if re.search(r"\d+\.\d+", line)), "")


def corefile(place: Place, first: str = "errors") -> Path:
    """The Corefile of kubeadm, but for the ports and the long lameduck; `first` are its first lines."""
    return place.write(
        "Corefile",
        f""".:{place.port} {{
    {first}
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


def _multisocket(place: Place) -> list[str]:
    return [sys.executable, "-m", "kdns", "-conf", str(corefile(place, "multisocket 1\n    errors"))]


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


def _own(name: str, command: Callable[[Place], list[str]], twin: str, **more: Any) -> Peer:
    environment = {"KDNS_COMPILED": twin}
    version = ("-m", "kdns", "-version")
    return Peer(name, sys.executable, command, follows=True, environment=environment, version=version, **more)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("echo", "cc", _echo, forwards=False, tcp=False, dns=False),
        _own("kdns", _kdns, "must", lacks=_not_compiled),
        _own("kdns-pure", _kdns, "never"),
        _own("kdns-multisocket", _multisocket, "must", lacks=_no_multisocket, optional=True),
        Peer("coredns", "coredns", _coredns, follows=True, version=("-version",)),
        Peer("unbound", "unbound", _unbound, version=("-V",)),
        Peer("named", "named", _named, version=("-v",)),
        Peer("dnsmasq", "dnsmasq", _dnsmasq, version=("--version",)),
        Peer("knot", "knotd", _knot, forwards=False, version=("--version",)),
        Peer("nsd", "nsd", _nsd, forwards=False, version=("-v",)),
    )
}
"""In the order of the tables."""
