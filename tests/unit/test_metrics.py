"""Counters, and how Prometheus reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kdns import limits
from kdns.metrics import Buckets, Metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(metrics: Metrics) -> Samples:
    """The exposition as Prometheus's own parser understands it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.expose().decode())
        for sample in family.samples
    }


def kinds(metrics: Metrics) -> dict[str, tuple[str, str]]:
    families = text_string_to_metric_families(metrics.expose().decode())
    return {family.name: (family.type, family.documentation) for family in families}


def test_counters_and_gauges() -> None:
    metrics = Metrics()
    plain = metrics.counter("coredns_panics_total", "How often.")
    plain.cell().add()
    plain.cell().value += 2
    labelled = metrics.gauge("coredns_x", 'With "quotes", \\ and\nlines.', ("zone", "type"))
    labelled.cell("example.org.", "A").value = 2.5
    labelled.cell('we"ird\\\n', "é").value = -1
    found = read(metrics)
    assert found["coredns_panics_total", ()] == 3
    assert found["coredns_x", (("type", "A"), ("zone", "example.org."))] == 2.5
    assert found["coredns_x", (("type", "é"), ("zone", 'we"ird\\\n'))] == -1
    assert kinds(metrics)["coredns_panics"] == ("counter", "How often.")
    assert kinds(metrics)["coredns_x"] == ("gauge", 'With "quotes", \\ and\nlines.')


def test_a_metric_without_labels_is_there_from_the_start() -> None:
    metrics = Metrics()
    metrics.counter("a_total", "")
    metrics.counter("b_total", "", ("x",))
    found = read(metrics)
    assert found["a_total", ()] == 0
    assert not [name for name, _ in found if name == "b_total"]


def test_a_counter_keeps_the_name_that_it_was_given() -> None:
    metrics = Metrics()
    metrics.counter("coredns_cache_hits_total", "").cell().add()
    assert b"\ncoredns_cache_hits_total 1.0\n" in metrics.expose()


def test_histograms() -> None:
    metrics = Metrics()
    family = metrics.histogram("d_seconds", "Durations.", (0.25, 1, 2), ("zone",))
    for value in (0.1, 0.25, 0.3, 1.5, 9):
        family.cell("z").observe(value)
    family.cell("z").observe(1, times=10)
    found = read(metrics)

    def at(bound: str) -> float:
        return found["d_seconds_bucket", (("le", bound), ("zone", "z"))]

    assert [at(bound) for bound in ("0.25", "1.0", "2.0", "+Inf")] == [2, 13, 14, 15]
    assert found["d_seconds_count", (("zone", "z"),)] == 15
    assert found["d_seconds_sum", (("zone", "z"),)] == pytest.approx(21.15)
    assert kinds(metrics)["d_seconds"] == ("histogram", "Durations.")


@given(st.lists(st.floats(-10, 10)), st.lists(st.floats(-10, 10), unique=True, min_size=1).map(sorted))
def test_an_observation_counts_below_each_bound_that_it_does_not_exceed(
    values: list[float], bounds: list[float]
) -> None:
    buckets = Buckets(bounds)
    for value in values:
        buckets.observe(value)
    total = 0
    for bound, count in zip(bounds, buckets.counts, strict=False):
        total += count
        assert total == sum(value <= bound for value in values)
    assert sum(buckets.counts) == len(values)


def test_the_process_itself_is_shown() -> None:
    found = read(Metrics())
    assert found["process_resident_memory_bytes", ()] > 2**20
    assert [name for name, _ in found if name == "python_info"]


def test_asking_twice_gives_the_same() -> None:
    metrics = Metrics()
    family = metrics.counter("a_total", "", ("x",))
    assert metrics.counter("a_total", "", ("x",)) is family
    assert family.cell("1") is family.cell("1")
    assert family.cell("1") is not family.cell("2")


@pytest.mark.parametrize("labels", [(), ("y",), ("x", "y")])
def test_one_name_is_one_metric(labels: tuple[str, ...]) -> None:
    metrics = Metrics()
    metrics.counter("a_total", "", ("x",))
    with pytest.raises(ValueError, match="already a counter with labels"):
        metrics.counter("a_total", "", labels)
    with pytest.raises(ValueError, match="already a counter"):
        metrics.gauge("a_total", "", ("x",))


@pytest.mark.parametrize("values", [(), ("1",), ("1", "2", "3")])
def test_as_many_values_as_labels(values: tuple[str, ...]) -> None:
    family = Metrics().counter("a_total", "", ("x", "y"))
    with pytest.raises(ValueError, match="has labels"):
        family.cell(*values)


def test_series_are_bounded() -> None:
    metrics = Metrics()
    family = metrics.counter("a_total", "", ("x", "y"))
    for number in range(limits.METRIC_SERIES):
        family.cell(str(number), "y").add()
    for number in range(limits.METRIC_SERIES, limits.METRIC_SERIES + 500):
        family.cell(str(number), "y").add()
    family.cell("0", "y").add()
    found = {labels: value for (name, labels), value in read(metrics).items() if name == "a_total"}
    assert len(found) == limits.METRIC_SERIES + 1
    assert found[("x", "other"), ("y", "other")] == 500
    assert found[("x", "0"), ("y", "y")] == 2


def test_forgotten_series_make_room() -> None:
    metrics = Metrics()
    family = metrics.gauge("a", "", ("x",))
    for number in range(limits.METRIC_SERIES):
        family.cell(str(number))
    family.forget("7")
    family.forget("never there")
    family.cell("new").value = 1
    found = read(metrics)
    assert ("a", (("x", "7"),)) not in found
    assert found["a", (("x", "new"),)] == 1


def test_hooks_run_before_each_scrape() -> None:
    metrics = Metrics()
    cell = metrics.counter("a_total", "").cell()
    leave = metrics.before_scrape(cell.add)
    assert read(metrics)["a_total", ()] == 1
    assert read(metrics)["a_total", ()] == 2
    metrics.settle()
    assert cell.value == 3
    leave()
    assert read(metrics)["a_total", ()] == 3


def test_a_hook_may_take_itself_out() -> None:
    metrics = Metrics()
    ran: list[str] = []

    def once() -> None:
        ran.append("once")
        leave()

    leave = metrics.before_scrape(once)
    metrics.before_scrape(lambda: ran.append("always"))
    metrics.settle()
    metrics.settle()
    assert ran == ["always", "once", "always"]


def test_series_may_come_while_others_are_read() -> None:
    metrics = Metrics()
    family = metrics.counter("a_total", "", ("x",))
    family.cell("1")
    for values, _ in family.samples():
        family.cell(values[0] + "1")
    assert len(list(family.samples())) == 2
