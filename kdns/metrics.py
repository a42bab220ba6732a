"""kdns's own counters, read by ``prometheus_client`` only when somebody scrapes.

A hot path holds a `Cell` (or a `Buckets`) and adds to it: 0.1 us.  Names and labels are CoreDNS's own.  One `Metrics`
lives as long as the process, so figures survive a reload; asking for a metric twice gives the same one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kdns import limits

if TYPE_CHECKING:
    from prometheus_client import Metric

Labels = tuple[str, ...]


class Cell:
    """One number that a metric has for one set of label values."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Count; hot paths write ``cell.value += 1`` themselves."""
        self.value += amount


class Buckets:
    """One histogram for one set of label values; ``bounds`` are upper bounds without +Inf."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``times`` observations of ``value``."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Family:
    """A metric: its name, help, label names, and a Cell or Buckets per set of label values."""

    def __init__(self, name: str, kind: str, text: str, labels: Labels, make: Callable[[], Any]) -> None:
        self.name, self.kind, self.text, self.labels = name, kind, text, labels
        self._make = make
        self._cells: dict[Labels, Any] = {}

    def cell(self, *values: str) -> Any:
        """The Cell (counter, gauge) or Buckets (histogram) of these label values, made when new.

        Beyond `limits.METRIC_SERIES` label sets all new ones share the one whose every value is ``other``.
        """
        cell = self._cells.get(values)
        if cell is None:
            if len(values) != len(self.labels):
                raise ValueError(f"{self.name} has labels {self.labels}, not {values}")
            if len(self._cells) >= limits.METRIC_SERIES:
                values = ("other",) * len(values)
            cell = self._cells.setdefault(values, self._make())
        return cell

    def forget(self, *values: str) -> None:
        """Show this label set no longer (a gauge of something that is gone)."""
        self._cells.pop(values, None)

    def samples(self) -> Iterator[tuple[Labels, Any]]:
        """Label values with their Cell or Buckets."""
        return iter(list(self._cells.items()))


class Metrics:
    """All metrics of the process."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._before: list[Callable[[], None]] = []

    def counter(self, name: str, text: str, labels: Labels = ()) -> Family:
        """A count that only grows; ``name`` is the exposed one (``coredns_panics_total``)."""
        return self._family(name, "counter", text, labels, Cell)

    def gauge(self, name: str, text: str, labels: Labels = ()) -> Family:
        """A value that is set: write ``cell.value``, in a `before_scrape` hook where it is costly to keep up."""
        return self._family(name, "gauge", text, labels, Cell)

    def histogram(self, name: str, text: str, bounds: Sequence[float], labels: Labels = ()) -> Family:
        """A distribution over buckets with these upper bounds (+Inf is added)."""
        return self._family(name, "histogram", text, labels, lambda: Buckets(bounds))

    def _family(self, name: str, kind: str, text: str, labels: Labels, make: Callable[[], Any]) -> Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Family(name, kind, text, labels, make)
            if not labels:
                family.cell()
        elif family.labels != labels or family.kind != kind:
            raise ValueError(f"{name} is already a {family.kind} with labels {family.labels}")
        return family

    def before_scrape(self, hook: Callable[[], None]) -> Callable[[], None]:
        """Call ``hook`` before each scrape, to settle what is counted lazily; the result takes it out again."""
        self._before.append(hook)
        return lambda: self._before.remove(hook)

    def settle(self) -> None:
        """Run the `before_scrape` hooks, so that every counter is up to date; the newest first, for it may count into
        what an older one holds."""
        for hook in reversed(list(self._before)):
            hook()

    def expose(self) -> bytes:
        """The Prometheus text format 0.0.4, with ``process_*`` and ``python_*`` metrics."""
        from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
        from prometheus_client.exposition import generate_latest

        self.settle()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        return generate_latest(registry)

    def collect(self) -> Iterable[Metric]:
        """For ``prometheus_client``: all metrics as its values."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for family in list(self._families.values()):
            if family.kind == "histogram":
                histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
                for values, buckets in family.samples():
                    histogram.add_metric(values, _cumulated(buckets), sum_value=buckets.sum)
                yield histogram
                continue
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = make(family.name, family.text, labels=family.labels)
            for values, cell in family.samples():
                metric.add_metric(values, cell.value)
            yield metric


def _cumulated(buckets: Buckets) -> list[tuple[str, float]]:
    total = 0
    out: list[tuple[str, float]] = []
    for bound, count in zip((*buckets.bounds, float("inf")), buckets.counts, strict=True):
        total += count
        out.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
    return out
