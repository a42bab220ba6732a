"""coredns_dns_* metrics: labels, buckets, replays."""

from kdns.message import Edns, Listener, Query
from kdns.metrics import Metrics
from kdns.name import from_text
from kdns.querymetrics import QueryMetrics


def query(kind: int = 1, do: bool = False) -> Query:
    name = from_text("web.default.svc.cluster.local.")
    edns = Edns(1232, True) if do else None
    return Query(
        name, kind, 1, name, 7, 0x0100, edns, ("127.0.0.1", 5), Listener("dns://:53", "udp", ("", 53), "1"), 40
    )


def exposed(metrics: Metrics) -> list[str]:
    return [line for line in metrics.expose().decode().splitlines() if line.startswith("coredns_dns_")]


def test_one_answer_counts_everywhere() -> None:
    metrics = Metrics()
    QueryMetrics(metrics).tally(query(), ".", 0, "kubernetes").sent(1, 40, 140, 0.0003)
    lines = exposed(metrics)
    labels = 'server="dns://:53"'
    assert f'coredns_dns_requests_total{{family="1",proto="udp",{labels},type="A",view="",zone="."}} 1.0' in lines
    assert f'coredns_dns_responses_total{{plugin="kubernetes",rcode="NOERROR",{labels},view="",zone="."}} 1.0' in lines
    assert f'coredns_dns_request_duration_seconds_bucket{{le="0.00025",{labels},view="",zone="."}} 0.0' in lines
    assert f'coredns_dns_request_duration_seconds_bucket{{le="0.0005",{labels},view="",zone="."}} 1.0' in lines
    assert f'coredns_dns_response_size_bytes_sum{{proto="udp",{labels},view="",zone="."}} 140.0' in lines
    assert not [line for line in lines if line.startswith("coredns_dns_do_requests_total{")]


def test_replays_count_as_often() -> None:
    metrics = Metrics()
    tally = QueryMetrics(metrics).tally(query(do=True), "cluster.local.", 3, "cache")
    tally.sent(1, 40, 140, 0.1)
    tally.sent(1000, 40, 140, 0.0)
    lines = exposed(metrics)
    labels = 'server="dns://:53",view="",zone="cluster.local."'
    assert f"coredns_dns_do_requests_total{{{labels}}} 1001.0" in lines
    assert f"coredns_dns_request_duration_seconds_count{{{labels}}} 1001.0" in lines
    assert f'coredns_dns_request_size_bytes_sum{{proto="udp",{labels}}} 40040.0' in lines


def test_unusual_types_share_a_label() -> None:
    metrics = Metrics()
    queries = QueryMetrics(metrics)
    for kind in range(1000, 1100):
        queries.tally(query(kind), ".", 0, "").sent(1, 40, 40, 0.0)
    series = [line for line in exposed(metrics) if line.startswith("coredns_dns_requests_total{")]
    assert len(series) == 1 and 'type="other"' in series[0] and series[0].endswith(" 100.0")


def test_short_cuts_are_bounded() -> None:
    metrics = Metrics()
    queries = QueryMetrics(metrics)
    for number in range(3000):
        queries.tally(query(), f"{number}.", 0, "").sent(1, 40, 40, 0.0)
    assert len(queries._tallies) == 1001
    counts = [float(line.split()[-1]) for line in exposed(metrics) if line.startswith("coredns_dns_requests_total{")]
    assert sum(counts) == 3000 and max(counts) == 2000


def test_sizes_not_yet_settled_are_bounded() -> None:
    metrics = Metrics()
    tally = QueryMetrics(metrics).tally(query(), ".", 0, "")
    for size in range(2500):
        tally.sent(1, 40, size, 0.0)
        assert len(tally._sizes) <= 1000
    labels = 'proto="udp",server="dns://:53",view="",zone="."'
    assert f"coredns_dns_response_size_bytes_count{{{labels}}} 2500.0" in exposed(metrics)
