"""A ``forward`` line and its block → a `Stub`."""

from __future__ import annotations

import ssl
from typing import Any, Final

import msgspec

from kdns import limits
from kdns.corefile import Directive
from kdns.log import Logger
from kdns.message import NOERROR, rcode_number
from kdns.name import ROOT, BadName, Name, from_text, is_under, to_text
from kdns.plugin import Site
from kdns.plugins.forward.targets import Target, is_address, read
from kdns.upstream import Options, Settings, Tls
from kdns.values import BadValue, expand_zone, host_port

_POLICIES: Final = ("random", "round_robin", "sequential")
_UINT32: Final = 2**32 - 1


class Stub(msgspec.Struct, frozen=True):
    """What one ``forward`` line says."""

    use: Directive
    zone: Name
    excepted: tuple[Name, ...]
    targets: tuple[Target, ...]
    group: Options
    server: Settings
    """What all its servers share; host, port and server name are still to be filled in."""
    resolvers: tuple[tuple[str, int], ...]
    next_rcodes: frozenset[int]
    next_on_nodata: bool

    def covers(self, name: Name) -> bool:
        """Whether it is asked for this name; its own zone's name cannot be excepted (CoreDNS)."""
        if self.zone != ROOT and not is_under(name, self.zone):
            return False
        return not self.excepted or name == self.zone or not any(is_under(name, zone) for zone in self.excepted)

    def settings(self, target: Target) -> Settings:
        """How to speak with one of its servers."""
        tls = None
        if target.tls and self.server.tls is not None:
            server_name = target.server_name or self.server.tls.server_name
            tls = msgspec.structs.replace(self.server.tls, server_name=server_name)
        return msgspec.structs.replace(self.server, host=target.host, port=target.port, tls=tls)


def read_stub(use: Directive, site: Site, log: Logger) -> Stub:
    """Read one ``forward FROM TO… { … }``.  Raises CorefileError."""
    source, *words = use.between(2)
    if len(words) > limits.UPSTREAMS:
        raise use.error(f"more than {limits.UPSTREAMS} TOs configured: {len(words)}")
    zone = _zone(use, source, log)
    block = _Block(site)
    for option in use.options():
        block.read(option)
    block.check(use)
    targets = read(use, words, log)
    for target in targets:
        if target.server_name and block.tls.server_name:
            raise use.error(
                f"both forward ('{block.tls.server_name}') and proxy level ('{target.server_name}') TLS servernames "
                f"are set for upstream proxy 'tls://{target.host}:{target.port}'"
            )
    return Stub(
        use,
        zone,
        tuple(block.excepted),
        targets,
        Options(zone=zone, **block.group, failover=frozenset(block.failover)),
        Settings("", 0, block.tls, **block.server),
        tuple(block.resolvers),
        frozenset(block.next_rcodes),
        block.next_on_nodata,
    )


def _zone(use: Directive, text: str, log: Logger) -> Name:
    try:
        zones = expand_zone(text)
    except BadValue:
        raise use.error(f"unable to normalize '{text}'") from None
    if len(zones) > 1:
        log.warning(f"Unsupported CIDR notation: '{text}' expands to multiple zones. Using only '{to_text(zones[0])}'.")
    return zones[0]


class _Block:
    """The options of a block, as far as they have been read."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.excepted: list[Name] = []
        self.failover: set[int] = set()
        self.next_rcodes: set[int] = set()
        self.next_on_nodata = False
        self.resolvers: list[tuple[str, int]] = []
        self.tls = Tls()
        self.group: dict[str, Any] = {}
        self.server: dict[str, Any] = {}

    def read(self, option: Directive) -> None:
        """One line."""
        match option.name:
            case "except":
                self.excepted += option.zones(option.between(1), ())
            case "force_tcp":
                option.exactly(0)
                self.group["force_tcp"] = self.server["probe_tcp"] = True
            case "prefer_udp":
                option.exactly(0)
                self.group["prefer_udp"] = True
            case "failfast_all_unhealthy_upstreams":
                option.exactly(0)
                self.group["failfast"] = True
            case "next_on_nodata":
                option.exactly(0)
                self.next_on_nodata = True
            case "expire" | "max_age":
                self.server[option.name] = option.duration(option.arg())
            case "max_idle_conns":
                self.server["max_idle"] = option.integer(option.arg(), 0)
            case "max_fails":
                self.server["max_fails"] = option.integer(option.arg(), 0, _UINT32)
            case "max_connect_attempts":
                self.group["max_attempts"] = option.integer(option.arg(), 0, _UINT32)
            case "max_concurrent":
                self.group["max_concurrent"] = option.integer(option.arg(), 0)
            case "policy":
                self.group["policy"] = option.arg()
                if self.group["policy"] not in _POLICIES:
                    raise option.error(f"unknown policy '{option.args[0]}'")
            case "failover":
                self.failover |= _rcodes(option)
                if NOERROR in self.failover:
                    raise option.error("NoError cannot be used in failover")
            case "next":
                self.next_rcodes |= _rcodes(option)
            case _:
                self._read_more(option)

    def _read_more(self, option: Directive) -> None:
        match option.name:
            case "read_timeout":
                self.group["read_timeout"] = seconds = option.duration(option.arg())
                if not seconds:
                    raise option.error(f"read_timeout must be positive: {option.args[0]}")
            case "doh_method":
                if option.arg() not in ("GET", "POST"):
                    raise option.error("doh_method must be either POST or GET")
            case "health_check":
                self._health_check(option)
            case "tls":
                self._tls(option)
            case "tls_servername":
                self.tls = msgspec.structs.replace(self.tls, server_name=option.arg())
            case "source_address":
                self.server["source"] = option.arg()
                if not is_address(option.args[0]):
                    raise option.error(f"invalid IP address: {option.args[0]}")
            case "resolver":
                self.resolvers = [_resolver(option, text) for text in option.between(1)]
            case _:
                raise option.unknown()

    def check(self, use: Directive) -> None:
        """What the options must be to one another."""
        max_age, expire = self.server.get("max_age", 0.0), self.server.get("expire", Settings("", 0).expire)
        if 0 < max_age < expire:
            raise use.error(f"max_age ({max_age:g}s) must not be less than expire ({expire:g}s)")

    def _health_check(self, option: Directive) -> None:
        interval, *words = option.between(1)
        self.server["probe_every"] = option.duration(interval)
        self.server["probe_domain"] = from_text(".")
        while words:
            word = words.pop(0)
            if word == "no_rec":
                self.server["probe_recursion"] = False
            elif word == "domain":
                if not words:
                    raise option.wrong_count()
                domain = words.pop(0)
                try:
                    self.server["probe_domain"] = from_text(domain)
                except BadName:
                    raise option.error(f"health_check: invalid domain name {domain}") from None
            else:
                raise option.error(f"health_check: unknown option {word}")

    def _tls(self, option: Directive) -> None:
        files = [self._site.path(file) for file in option.between(0, 3)]
        certificate, key = files[:2] if len(files) > 1 else ("", "")
        authorities = files[-1] if len(files) in (1, 3) else ""
        try:
            tls = Tls.read(certificate, key, authorities)
        except ssl.SSLError as error:
            raise option.error(f"could not load TLS cert: {error.reason or error}") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise option.error(f"could not load TLS cert: open {error.filename}: {reason}") from None
        self.tls = msgspec.structs.replace(tls, server_name=self.tls.server_name)


def _rcodes(option: Directive) -> set[int]:
    rcodes: set[int] = set()
    for text in option.between(1):
        rcode = rcode_number(text)
        if rcode is None:
            raise option.error(f"{text} is not a valid rcode")
        rcodes.add(rcode)
    return rcodes


def _resolver(option: Directive, text: str) -> tuple[str, int]:
    try:
        return host_port(text, 53)
    except BadValue:
        raise option.error(f'resolver must be an IP address or IP:port: "{text}"') from None
