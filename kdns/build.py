"""Corefile → Configuration: which plugins, chained how, answer for which zones on which addresses.

Nothing here listens, connects or runs: a Configuration that could be built can be thrown away.
"""

from __future__ import annotations

import itertools
import os.path
import ssl
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kdns import plugins
from kdns.corefile import Corefile, CorefileError, Directive, Key, ServerBlock
from kdns.errors import KdnsError
from kdns.handler import Routes
from kdns.name import Name, to_text
from kdns.plugin import HttpPath, Next, Plugin, Process, Responder, Site, build_chain

DEFAULT_PORTS: Final = {"tls": 853, "quic": 853, "grpc": 443, "https": 443, "https3": 443}
_CHAOS: Final = frozenset(("chaos", "forward"))
"""Directives that let classes other than IN in (CoreDNS: EnableChaos)."""


class Endpoint(msgspec.Struct, frozen=True, order=True):
    """One address that DNS is served on."""

    scheme: str
    """``dns`` or ``tls``."""
    host: str
    """An address, or empty for all."""
    port: int

    @property
    def label(self) -> str:
        """As metrics name it: ``dns://:53``, ``dns://127.0.0.1:53``, ``tls://[::1]:853``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Service(msgspec.Struct, frozen=True):
    """What is served on one Endpoint."""

    routes: Routes
    tls: ssl.SSLContext | None
    sockets: int = 0
    """UDP sockets for each address, each with a native thread; 0: one, without."""


class HttpService(msgspec.Struct, frozen=True):
    """What is served on one address of the HTTP face."""

    paths: dict[str, Responder]
    tls: ssl.SSLContext | None


class Configuration(msgspec.Struct, frozen=True):
    """All that one Corefile asks for."""

    digest: str
    plugins: list[Plugin]
    """Of all blocks, in chain order block by block."""
    services: dict[Endpoint, Service]
    http: dict[str, HttpService]
    """``host:port`` → paths."""
    taken: set[tuple[Any, ...]]
    """Keys of what the plugins keep in the Warehouse."""


def build(process: Process, corefile: Corefile, default_port: int) -> Configuration:
    """Set up all plugins of a Corefile and chain them.

    ``default_port`` is for keys without a port.  Raises KdnsError, with file and line, for the first thing wrong.
    """
    order = plugins.order({directive.name for block in corefile.blocks for directive in block.directives})
    chains = _Chains()
    http: dict[str, HttpService] = {}
    everything: list[Plugin] = []
    taken: set[tuple[Any, ...]] = set()
    for block in corefile.blocks:
        site = _site(process, block, default_port)
        chain = _block_chain(block, site, order)
        chains.add(block, site, chain, default_port)
        everything += site.plugins.values()
        taken |= site.taken
        for path in site.http:
            _add_http(http, path)
    return Configuration(corefile.digest, everything, chains.services(), http, taken)


def _site(process: Process, block: ServerBlock, default_port: int) -> Site:
    zones = tuple(dict.fromkeys(key.zone for key in block.keys))
    listens = tuple(dict.fromkeys(_endpoint(key, "", default_port).label for key in block.keys))
    site = Site(process, zones, os.path.dirname(block.file) or ".", listens)
    site.directives = block.directives
    return site


def _endpoint(key: Key, host: str, default_port: int) -> Endpoint:
    return Endpoint(key.scheme, host, key.port or DEFAULT_PORTS.get(key.scheme, default_port))


def _block_chain(block: ServerBlock, site: Site, order: Sequence[str]) -> Next | None:
    """Set up the block's plugins in chain order; None when it has none that answer."""
    uses: dict[str, list[Directive]] = {}
    for directive in block.directives:
        uses.setdefault(directive.name, []).append(directive)
    for name in sorted(uses, key=lambda name: order.index(name) if name in order else -1):
        site.plugins[name] = _set_up(name, uses[name], site)
    return build_chain(site.plugins.values()) if any(plugin.handles for plugin in site.plugins.values()) else None


def _set_up(name: str, uses: list[Directive], site: Site) -> Plugin:
    try:
        kind = plugins.find(name)
    except KdnsError as error:
        raise uses[0].error(str(error)) from error
    try:
        return kind.setup(uses, site)
    except CorefileError as error:
        raise CorefileError(error.file, error.line, error.message, name) from error
    except KdnsError as error:
        raise CorefileError(uses[0].file, uses[0].line, str(error), name) from error
    except Exception as error:  # a third-party plugin may raise anything; it must cost this load, not the process
        raise CorefileError(uses[0].file, uses[0].line, f"setup failed: {error!r}", name) from error


class _Chains:
    """Who answers for which zone where, and the conflicts."""

    def __init__(self) -> None:
        self._zones: dict[Endpoint, dict[Name, Next | None]] = {}
        self._any_class: set[Endpoint] = set()
        self._tls: dict[Endpoint, ssl.SSLContext | None] = {}
        self._sockets: dict[Endpoint, int] = {}
        self._hosts: dict[tuple[str, Name, int], str] = {}

    def add(self, block: ServerBlock, site: Site, chain: Next | None, default_port: int) -> None:
        """Put a block's chain on all its endpoints; sets the site's final ``listens``."""
        labels: list[str] = []
        for key, host in itertools.product(block.keys, site.bind or ("",)):
            endpoint = _endpoint(key, host, default_port)
            self._check(block, key, endpoint, site)
            self._zones.setdefault(endpoint, {})[key.zone] = chain
            self._tls[endpoint] = self._tls.get(endpoint) or site.tls
            self._sockets.setdefault(endpoint, site.sockets)
            if _CHAOS & site.plugins.keys():
                self._any_class.add(endpoint)
            labels.append(endpoint.label)
        site.listens = tuple(dict.fromkeys(labels))

    def services(self) -> dict[Endpoint, Service]:
        """All endpoints with their routes."""
        return {
            endpoint: Service(Routes(zones, endpoint in self._any_class), self._tls[endpoint], self._sockets[endpoint])
            for endpoint, zones in self._zones.items()
        }

    def _check(self, block: ServerBlock, key: Key, endpoint: Endpoint, site: Site) -> None:
        where = f"{key.scheme}://{to_text(key.zone)}:{endpoint.port}"
        if endpoint.host:
            where += f" on {endpoint.host}"
        if key.scheme not in ("dns", "tls"):
            raise CorefileError(block.file, block.line, f"cannot serve {where} - kdns does not have {key.scheme} yet")
        if key.scheme == "tls" and site.tls is None:
            raise CorefileError(block.file, block.line, f"cannot serve {where} - the block has no tls directive")
        if key.zone in self._zones.get(endpoint, {}):
            raise CorefileError(block.file, block.line, f"cannot serve {where} - it is already defined")
        # A wildcard listener and one on an address of its own would both be asked for the same zone.
        same = (key.scheme, key.zone, endpoint.port)
        if same in self._hosts and bool(self._hosts[same]) != bool(endpoint.host):
            raise CorefileError(block.file, block.line, f"cannot serve {where} - zone overlap listener capacity")
        self._hosts[same] = endpoint.host


def _add_http(http: dict[str, HttpService], path: HttpPath) -> None:
    service = http.get(path.address)
    if service is None:
        service = http[path.address] = HttpService({}, path.tls)
    elif (service.tls is None) != (path.tls is None):
        raise KdnsError(f"cannot serve http://{path.address} - both with and without tls")
    service.paths[path.path] = path.respond
