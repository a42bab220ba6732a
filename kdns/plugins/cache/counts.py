"""The metrics of the ``cache`` plugin."""

from __future__ import annotations

from kdns.message import Duty
from kdns.metrics import Cell, Metrics
from kdns.plugins.cache.store import Store


class Counts:
    """The cells of one server address."""

    __slots__ = ("answers", "denials", "misses", "prefetches", "requests", "stale")

    def __init__(self, cells: dict[str, Cell], answers: HalfCounts, denials: HalfCounts) -> None:
        self.requests = cells["requests"]
        self.misses = cells["misses"]
        self.prefetches = cells["prefetch"]
        self.stale = cells["served_stale"]
        self.answers = answers
        self.denials = denials

    def missed(self, replays: int, query_octets: int, reply_octets: int) -> None:
        """A `message.Duty`: count replays of what is not kept here."""
        self.requests.value += replays
        self.misses.value += replays


class HalfCounts:
    """The cells of one half."""

    __slots__ = ("entries", "evictions", "hits", "owed", "requests")

    def __init__(self, requests: Cell, hits: Cell, evictions: Cell, entries: Cell) -> None:
        self.requests, self.hits, self.evictions, self.entries = requests, hits, evictions, entries
        self.owed: tuple[Duty, ...] = (self.replayed,)
        """The duty of a lease that owes this and nothing else."""

    def replayed(self, replays: int, query_octets: int, reply_octets: int) -> None:
        """A `message.Duty`: count replays of hits."""
        self.requests.value += replays
        self.hits.value += replays


class Counters:
    """All metrics of one cache."""

    def __init__(self, metrics: Metrics, zones: str, store: Store) -> None:
        self._zones = zones
        self._store = store
        labels = ("server", "zones", "view")
        self._totals = {
            name: metrics.counter(f"coredns_cache_{name}_total", text, labels)
            for name, text in {
                "requests": "The count of cache requests.",
                "misses": "The count of cache misses. Deprecated, derive misses from cache hits/requests counters.",
                "prefetch": "The number of times the cache has prefetched a cached item.",
                "served_stale": "The number of requests served from stale cache entries.",
                "drops": "The number responses that are not cached, because the reply is malformed.",
            }.items()
        }
        by_type = ("server", "type", "zones", "view")
        self._hits = metrics.counter("coredns_cache_hits_total", "The count of cache hits.", by_type)
        self._evictions = metrics.counter("coredns_cache_evictions_total", "The count of cache evictions.", by_type)
        self._entries = metrics.gauge("coredns_cache_entries", "The number of elements in the cache.", by_type)
        self.servers: dict[str, Counts] = {}
        """What `of` has given out."""

    def of(self, server: str) -> Counts:
        """The cells of a server address."""
        counts = self.servers.get(server)
        if counts is None:
            cells = {name: family.cell(server, self._zones, "") for name, family in self._totals.items()}
            counts = self.servers[server] = Counts(
                cells, self._half(server, "success", cells["requests"]), self._half(server, "denial", cells["requests"])
            )
        return counts

    def _half(self, server: str, kind: str, requests: Cell) -> HalfCounts:
        labels = (server, kind, self._zones, "")
        return HalfCounts(
            requests, self._hits.cell(*labels), self._evictions.cell(*labels), self._entries.cell(*labels)
        )

    def show(self) -> None:
        """Bring the gauges up to date."""
        self._set_entries(len(self._store.success), len(self._store.denial))

    def hide(self) -> None:
        """Nothing is kept for these servers any more, unless another configuration shows it again."""
        self._set_entries(0, 0)

    def _set_entries(self, success: int, denial: int) -> None:
        for counts in self.servers.values():
            counts.answers.entries.value = success
            counts.denials.entries.value = denial
