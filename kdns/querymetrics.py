"""The metrics of queries, as CoreDNS has them: ``coredns_dns_*`` with its labels and buckets.

The ``prometheus`` plugin counts what its block answers; the handler counts, under the zone ``dropped``, what no block
was asked for.  A `Tally` is the set of cells for one combination of label values: looking it up is one dict access,
and counting into it is the same for one answer and for a thousand replays.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from kdns import limits
from kdns.message import NOERROR, Query, rcode_text, type_number
from kdns.metrics import Buckets, Cell, Metrics

TIME_BUCKETS: Final = tuple(0.00025 * 2**n for n in range(16))
SIZE_BUCKETS: Final = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3)
NO_ZONE: Final = "dropped"
"""Zone label of queries that no server block was asked for; without a dot, so it is never a zone's name."""

_TYPE_LABELS: Final = {
    type_number(kind): kind
    for kind in "A AAAA CNAME DNSKEY DS MX NSEC NSEC3 NS PTR RRSIG SOA SRV TXT HTTPS SVCB IXFR AXFR ANY".split()
}
"""Of the types that CoreDNS tells apart."""


class Tally:
    """Counts answers that share all label values.

    Sizes are counted as they are, and sorted into buckets by `settle`: few different ones come.
    """

    __slots__ = ("_counted", "_durations", "_query_sizes", "_reply_sizes", "_sizes")

    def __init__(self, counted: tuple[Cell, ...], durations: Buckets, query_sizes: Buckets, reply_sizes: Buckets):
        self._counted = counted
        self._durations, self._query_sizes, self._reply_sizes = durations, query_sizes, reply_sizes
        self._sizes: dict[tuple[int, int], int] = {}

    def sent(self, times: int, query_octets: int, reply_octets: int, seconds: float) -> None:
        """Count ``times`` answers of these sizes that took ``seconds`` each; a `message.Report`."""
        durations = self._durations
        durations.counts[bisect_left(durations.bounds, seconds)] += times
        durations.sum += seconds * times
        sizes = query_octets, reply_octets
        count = self._sizes.get(sizes)
        if count is None:
            if len(self._sizes) >= limits.SIZES_UNSETTLED:
                self.settle()
            count = 0
        self._sizes[sizes] = count + times

    def settle(self) -> None:
        """Bring all metrics up to date."""
        for (query_octets, reply_octets), times in self._sizes.items():
            for cell in self._counted:
                cell.value += times
            self._query_sizes.observe(query_octets, times)
            self._reply_sizes.observe(reply_octets, times)
        self._sizes.clear()


class QueryMetrics:
    """The ``coredns_dns_*`` metrics of the process: there is one, `plugin.Process.queries`."""

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
        self._tallies: dict[tuple[str, str, str, str, str, bool, int, str], Tally] = {}
        metrics.before_scrape(self._settle)

    def tally(self, query: Query, zone: str, rcode: int, plugin: str) -> Tally:
        """Where to count a reply to this query; ``zone`` is the label, ``plugin`` who made the reply.

        Beyond `limits.METRIC_SERIES` sets of labels all new ones share the one that says ``other``.
        """
        listener, edns = query.listener, query.edns
        kind = _TYPE_LABELS.get(query.type, "other")
        do = edns is not None and edns.do
        key = (listener.server, listener.proto, listener.family, zone, kind, do, rcode, plugin)
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= limits.METRIC_SERIES:
                key = ("other", "other", "other", "other", "other", False, NOERROR, "other")
            tally = self._tallies.get(key) or self._make(*key)
            self._tallies[key] = tally
        return tally

    def _make(
        self, server: str, proto: str, family: str, zone: str, kind: str, do: bool, rcode: int, plugin: str
    ) -> Tally:
        by_server = (server, zone, "")
        counted = [
            self._requests.cell(*by_server, proto, family, kind),
            self._responses.cell(*by_server, rcode_text(rcode), plugin),
        ]
        if do:
            counted.append(self._do.cell(*by_server))
        return Tally(
            tuple(counted),
            self._durations.cell(*by_server),
            self._query_sizes.cell(*by_server, proto),
            self._reply_sizes.cell(*by_server, proto),
        )

    def _settle(self) -> None:
        for tally in self._tallies.values():
            tally.settle()
