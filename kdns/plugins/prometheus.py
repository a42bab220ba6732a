"""prometheus: count the queries of this server block, and show all metrics over HTTP.

``prometheus [ADDRESS] { runtime_metrics; tls FILE }``

``GET /metrics`` on ADDRESS (default ``localhost:9153``) gives CoreDNS's metrics and those of the process in the
Prometheus text format.  Queries are counted only in the blocks that have this directive; blocks with the same address
share one listener.  ``tls FILE`` serves it over TLS as a Prometheus web configuration file (YAML) says:
``tls_server_config`` with ``cert_file``, ``key_file`` and, to ask for client certificates, ``client_ca_file``.
``runtime_metrics`` is accepted: the Python runtime's few metrics are always there.

Metrics: ``coredns_build_info{version, revision, goversion}``, ``coredns_panics_total``,
``coredns_plugin_enabled{server, zone, view, name}``, and with labels ``server, zone, view`` and more
``coredns_dns_requests_total``, ``coredns_dns_request_duration_seconds``, ``coredns_dns_request_size_bytes``,
``coredns_dns_do_requests_total``, ``coredns_dns_response_size_bytes``, ``coredns_dns_responses_total``.
"""

from __future__ import annotations

import itertools
import os.path
import platform
import ssl
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from kdns import __version__, log
from kdns.corefile import Directive, only
from kdns.message import Query, Reply
from kdns.name import longest_zone, to_text
from kdns.plugin import HttpPath, Next, Plugin, Site

_DEFAULT: Final = "localhost:9153"
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Prometheus(Plugin):
    """Counts queries and shows all metrics."""

    name = "prometheus"
    replayable = True
    blind = True
    inline = True

    def __init__(self, site: Site, address: str, tls: ssl.SSLContext | None) -> None:
        self._site = site
        self.apart = site.zones
        self._zones = {zone: to_text(zone) for zone in site.zones}
        self._only_zone = next(iter(self._zones.values())) if set(self._zones) == {b"\0"} else ""
        self._tally = site.process.queries.tally
        self._enabled = site.metrics.gauge(
            "coredns_plugin_enabled",
            "A metric that indicates whether a plugin is enabled on per server and zone basis.",
            ("server", "zone", "view", "name"),
        )
        build = site.metrics.gauge(
            "coredns_build_info",
            "A metric with a constant '1' value labeled by version, revision, and goversion from which kdns was built.",
            ("version", "revision", "goversion"),
        )
        build.cell(__version__, "", f"python{platform.python_version()}").value = 1
        dropped = site.metrics.counter(
            "kdns_log_dropped_total", "Log lines let go because nobody took them off our hands."
        ).cell()

        def show(target: str) -> tuple[int, str, bytes]:
            dropped.value = log.dropped()
            return 200, _CONTENT_TYPE, site.metrics.expose()

        site.http.append(HttpPath(address, "/metrics", show, tls))

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``prometheus [ADDRESS] { runtime_metrics; tls FILE }``."""
        use = only(uses)
        address = use.optional(_DEFAULT)
        use.listen_address(address)
        tls: ssl.SSLContext | None = None
        for option in use.body or ():
            if option.name == "runtime_metrics":
                option.exactly(0)
            elif option.name == "tls":
                if tls is not None:
                    raise option.error("tls block already specified")
                tls = _tls_context(option, site.path(option.arg()))
            else:
                raise option.error(f"unknown option: {option.name}")
        return cls(site, address, tls)

    async def start(self) -> None:
        """Show which plugins are on."""
        for values in self._shown():
            self._enabled.cell(*values).value = 1

    async def stop(self) -> None:
        """Show them no more, but for those that the configuration in force shows, too."""
        running = [plugin for plugin in self._site.process.plugins if isinstance(plugin, Prometheus)]
        for values in self._shown().difference(*(plugin._shown() for plugin in running)):
            self._enabled.forget(*values)

    def _shown(self) -> set[tuple[str, str, str, str]]:
        """Server, zone, view and name of each plugin of the block that is a link of the chain."""
        names = [plugin.name for plugin in self._site.plugins.values() if plugin.handles]
        return set(itertools.product(self._site.listens, self._zones.values(), ("",), names))

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Pass on, and say who counts the reply."""
        reply = await next(query)
        zone = self._only_zone or self._zones.get(longest_zone(query.name, self._zones) or b"", ".")
        return replace(reply, report=self._tally(query, zone, reply.rcode, reply.plugin).sent)


def _tls_context(option: Directive, file: str) -> ssl.SSLContext:
    import yaml

    try:
        with open(file, encoding="utf-8") as stream:
            settings = yaml.safe_load(stream)["tls_server_config"]
        beside = os.path.dirname(file)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(os.path.join(beside, settings["cert_file"]), os.path.join(beside, settings["key_file"]))
        if authority := settings.get("client_ca_file"):
            context.load_verify_locations(os.path.join(beside, authority))
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise option.error(f"cannot use web configuration {file}: {error}") from error
    return context
