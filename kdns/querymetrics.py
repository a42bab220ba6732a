"""The metrics of queries, as CoreDNS has them: ``coredns_dns_*`` with its labels and buckets.

The ``prometheus`` plugin counts what its block answers; the handler counts, under the zone ``dropped``, what no block
was asked for.  A `Tally` is the set of cells for one combination of label values: looking it up is one dict access,
and counting into it is the same for one answer and for a thousand replays.
"""

from __future__ import annotations

from typing import Final

from kdns import limits
from kdns.message import Query, rcode_text, type_text
from kdns.metrics import Buckets, Cell, Metrics

TIME_BUCKETS: Final = tuple(0.00025 * 2**n for n in range(16))
SIZE_BUCKETS: Final = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3)
NO_ZONE: Final = "dropped"
"""Zone label of queries that no server block was asked for; without a dot, so it is never a zone's name."""

_KNOWN_TYPES: Final = frozenset(
    "A AAAA CNAME DNSKEY DS MX NSEC NSEC3 NS PTR RRSIG SOA SRV TXT HTTPS SVCB IXFR AXFR ANY".split()
)


class Tally:
    """Counts answers that share all label values."""

    __slots__ = ("_do", "_durations", "_query_sizes", "_reply_sizes", "_requests", "_responses")

    def __init__(
        self,
        requests: Cell,
        responses: Cell,
        do: Cell | None,
        durations: Buckets,
        sizes: tuple[Buckets, Buckets],
    ) -> None:
        self._requests, self._responses, self._do, self._durations = requests, responses, do, durations
        self._query_sizes, self._reply_sizes = sizes

    def sent(self, times: int, query_octets: int, reply_octets: int, seconds: float) -> None:
        """Count ``times`` answers of these sizes that took ``seconds`` each; a `message.Report`."""
        self._requests.value += times
        self._responses.value += times
        if self._do is not None:
            self._do.value += times
        self._durations.observe(seconds, times)
        self._query_sizes.observe(query_octets, times)
        self._reply_sizes.observe(reply_octets, times)


class QueryMetrics:
    """The ``coredns_dns_*`` metrics of the process; a second one on the same `Metrics` counts into the same cells."""

    def __init__(self, metrics: Metrics) -> None:
        by_server = ("server", "zone", "view")
        self._requests = metrics.counter(
            "coredns_dns_requests_total",
            "Counter of DNS requests made per zone, protocol and family.",
            (*by_server, "proto", "family", "type"),
        )
        self._durations = metrics.histogram(
            "coredns_dns_request_duration_seconds",
            "Histogram of the time (in seconds) each request took per zone.",
            TIME_BUCKETS,
            by_server,
        )
        self._query_sizes = metrics.histogram(
            "coredns_dns_request_size_bytes",
            "Size of the requests in bytes per zone and protocol.",
            SIZE_BUCKETS,
            (*by_server, "proto"),
        )
        self._reply_sizes = metrics.histogram(
            "coredns_dns_response_size_bytes",
            "Size of the responses in bytes per zone and protocol.",
            SIZE_BUCKETS,
            (*by_server, "proto"),
        )
        self._do = metrics.counter(
            "coredns_dns_do_requests_total", "Counter of DNS requests with DO bit set per zone.", by_server
        )
        self._responses = metrics.counter(
            "coredns_dns_responses_total", "Counter of response status codes.", (*by_server, "rcode", "plugin")
        )
        self._tallies: dict[tuple[str, str, str, str, int, bool, int, str], Tally] = {}

    def tally(self, query: Query, zone: str, rcode: int, plugin: str) -> Tally:
        """Where to count a reply to this query; ``zone`` is the label, ``plugin`` who made the reply."""
        listener = query.listener
        key = (listener.server, listener.proto, listener.family, zone, query.type, query.do, rcode, plugin)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._make(query, zone, rcode, plugin)
            # The type and the rcode are the asker's and the upstream's choice: keep a bounded number of short cuts.
            if len(self._tallies) < limits.METRIC_SERIES:
                self._tallies[key] = tally
        return tally

    def _make(self, query: Query, zone: str, rcode: int, plugin: str) -> Tally:
        listener = query.listener
        server = (listener.server, zone, "")
        kind = type_text(query.type)
        return Tally(
            self._requests.cell(*server, listener.proto, listener.family, kind if kind in _KNOWN_TYPES else "other"),
            self._responses.cell(*server, rcode_text(rcode), plugin),
            self._do.cell(*server) if query.do else None,
            self._durations.cell(*server),
            (self._query_sizes.cell(*server, listener.proto), self._reply_sizes.cell(*server, listener.proto)),
        )
