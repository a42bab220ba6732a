"""The Kubernetes DNS specification, rule by rule."""

from __future__ import annotations

import random
from typing import Any, Final

import pytest

from kdns import message, name, rdata
from kdns.cluster.index import Index
from kdns.cluster.names import Asked, Chase, Names, parse, primary
from kdns.cluster.objects import KINDS, Delete, Init, InitApply, InitDone, Object
from kdns.denial import Denial
from kdns.message import AA, EDE_NOT_READY, FOREVER, NXDOMAIN, REFUSED, SERVFAIL, Reply
from kdns.name import pack_address
from kdns.patches import labels_below
from tests.indextest import (
    ZONES,
    answer,
    fill,
    kind_of,
    names_of,
    namespace,
    pod,
    put,
    relist,
    said,
    service,
    slice_of,
)
from tests.plugintest import ask

Z = "cluster.local."
WORLD: tuple[Object, ...] = (
    namespace("default"),
    namespace("dev"),
    namespace("empty"),
    service("web.dev", "10.96.0.1", ports=("http 80", "dns 53 UDP")),
    service("dual.dev", "10.96.0.2", "fd00::2", ports=("https 443",)),
    service("six.dev", "fd00::3"),
    service("bare.dev", "10.96.0.4", ports=()),
    service("pending.dev", ""),
    service("headless.dev", ports=("http 80", "admin 9090")),
    slice_of(
        "headless-a.dev", "10.1.1.1 h-0 pod-0", "10.1.1.2 - pod-1", of="headless", ports=("http 80", "admin 9090")
    ),
    slice_of("headless-b.dev", "10.1.1.1 h-0 pod-0", "10.1.1.3 h-0", of="headless", ports=("http 81",)),
    slice_of("headless-6.dev", "fd00:1::1 h-0", "fd00:1::", of="headless"),
    service("noready.dev"),
    slice_of("noready-a.dev", of="noready"),
    service("noports.dev", ports=()),
    slice_of("noports-a.dev", "10.1.3.1", of="noports", ports=()),
    service("anyport.dev"),
    slice_of("anyport-a.dev", "10.1.4.1", of="anyport", ports=("http -",)),
    slice_of("web-a.dev", "10.1.0.1 - web-0", "10.1.0.2 alpha", of="web"),
    slice_of("orphan-a.dev", "10.1.5.1", "10.1.1.1", of="orphan"),
    slice_of("stray.dev", "10.1.6.1"),
    service("web.default", "10.96.1.1"),
    service("ext.dev", externalName="www.Example.org"),
    service("extip.dev", externalName="192.0.2.1"),
    service("inside.dev", externalName="web.dev.svc.cluster.local"),
    service("dangling.dev", externalName="gone.dev.svc.cluster.local"),
    service("itself.dev", externalName="itself.dev.svc.cluster.local"),
    service("below.dev", externalName="x.below.dev.svc.cluster.local"),
    service("one.dev", externalName="two.dev.svc.cluster.local"),
    service("two.dev", externalName="one.dev.svc.cluster.local"),
    service("far.dev", externalName="ext.dev.svc.cluster.local"),
    service("top.dev", externalName="cluster.local"),
    pod("p-0.dev", "10.244.0.1", "fd00:244::1"),
    pod("p-1.default", "10.244.0.2"),
    pod("host-1.dev", "192.0.2.10"),
    pod("host-2.default", "192.0.2.10"),
)


ZONAL: tuple[Object, ...] = (
    namespace("dev"),
    service("db.dev"),
    slice_of("db-a.dev", "10.1.0.1 h-0 - z-a", "10.1.0.2 - - Z-a", "10.1.0.3 - - z.b.example", "10.1.0.4", of="db"),
    slice_of("db-6.dev", "fd00:1::1 - - z-a", of="db"),
    service("void.dev"),
    service("web.dev", "10.96.0.1"),
    slice_of("web-a.dev", "10.1.1.1 - - z-a", of="web"),
    service("ext.dev", externalName="www.example.org"),
)


@pytest.fixture(scope="module")
def index() -> Index:
    return fill(Index(KINDS, pod_names=True), *WORLD, now=1234.5)


@pytest.fixture(scope="module")
def names(index: Index) -> Names:
    return names_of(index, pods="verified")


# --- which name means what -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qname", "asked"),
    [
        ("", Asked()),
        ("svc.", Asked()),
        ("pod.", Asked()),
        ("x.", None),
        ("ns.svc.", Asked(b"svc", b"ns")),
        ("s.ns.svc.", Asked(b"svc", b"ns", b"s")),
        ("e.s.ns.svc.", Asked(b"svc", b"ns", b"s", b"e")),
        ("_p._tcp.s.ns.svc.", Asked(b"svc", b"ns", b"s", b"", b"p", b"tcp")),
        ("p.tcp.s.ns.svc.", Asked(b"svc", b"ns", b"s", b"", b"p", b"tcp")),
        ("_p._tcp.s.ns.pod.", Asked(b"pod", b"ns", b"s", b"", b"p", b"tcp")),
        ("x._p._tcp.s.ns.svc.", None),
        ("s.ns.what.", None),
        ("z.pin._zone.s.ns.svc.", None),
    ],
)
def test_parse(qname: str, asked: Asked | None) -> None:
    zone = name.from_text(Z)
    assert parse(name.from_text(qname + Z), zone) == asked


@pytest.mark.parametrize(
    ("qname", "asked"),
    [
        ("z.pin._zone.s.ns.svc.", Asked(b"svc", b"ns", b"s", zone=b"z")),
        ("z.Prefer._ZONE.s.ns.svc.", Asked(b"svc", b"ns", b"s", zone=b"z", prefer=True)),
        ("a.b.example.pin._zone.s.ns.svc.", Asked(b"svc", b"ns", b"s", zone=b"a.b.example")),
        ("a\\.b.example.pin._zone.s.ns.svc.", Asked(b"svc", b"ns", b"s", zone=b"a\\.b.example")),
        ("pin.pin._zone.s.ns.svc.", Asked(b"svc", b"ns", b"s", zone=b"pin")),
        ("pin._zone.s.ns.svc.", Asked(b"svc", b"ns", b"s", b"", b"pin", b"zone")),
        ("z.what._zone.s.ns.svc.", None),
        ("z.pin.zone.s.ns.svc.", None),
        ("z.pin._zone.s.ns.pod.", None),
        ("z.pin._zone.s.ns.what.", None),
    ],
)
def test_parse_topology_zones(qname: str, asked: Asked | None) -> None:
    assert parse(name.from_text(qname + Z), name.from_text(Z), zonal=True) == asked


@pytest.mark.parametrize(
    ("qname", "type", "lines"),
    [
        ("z-a.pin._zone.db.dev.svc.", "A", ["A 10.1.0.1", "A 10.1.0.2"]),
        ("Z-A.Pin._zone.DB.dev.svc.", "AAAA", ["AAAA fd00:1::1"]),
        ("z.b.example.pin._zone.db.dev.svc.", "A", ["A 10.1.0.3"]),
        ("z.b.example.pin._zone.db.dev.svc.", "AAAA", ["NODATA"]),
        ("z-a.pin._zone.db.dev.svc.", "TXT", ["NODATA"]),
        ("z-a.pin._zone.db.dev.svc.", "CNAME", ["NODATA"]),
        ("z.b.example.prefer._zone.db.dev.svc.", "SRV", [
            "SRV 0 100 80 10-1-0-3.db.dev.svc.cluster.local.", "+ A 10.1.0.3",
        ]),
        # nobody is there
        ("z-c.pin._zone.db.dev.svc.", "A", ["NODATA"]),
        ("z-c.pin._zone.db.dev.svc.", "SRV", ["NODATA"]),
        ("z-c.prefer._zone.db.dev.svc.", "A", ["A 10.1.0.1", "A 10.1.0.2", "A 10.1.0.3", "A 10.1.0.4"]),
        ("b.example.pin._zone.db.dev.svc.", "A", ["NODATA"]),
        ("z-a.pin._zone.void.dev.svc.", "A", ["NODATA"]),
        ("z-a.prefer._zone.void.dev.svc.", "A", ["NODATA"]),
        # no such name
        ("z-a.florp._zone.db.dev.svc.", "A", ["NXDOMAIN"]),
        ("z-a.pin._zone.web.dev.svc.", "A", ["NXDOMAIN"]),
        ("z-a.pin._zone.ext.dev.svc.", "A", ["NXDOMAIN"]),
        ("z-a.pin._zone.ghost.dev.svc.", "TXT", ["NXDOMAIN"]),
        ("z-a.pin._zone.db.nons.svc.", "A", ["NXDOMAIN"]),
        ("_http._tcp.z-a.pin._zone.db.dev.svc.", "A", ["NODATA"]),
    ],
)  # fmt: skip
def test_topology_zones(qname: str, type: str, lines: list[str]) -> None:
    names = names_of(fill(Index(KINDS, zones=True), *ZONAL), zonal=True)
    assert said(names, qname + Z, type) == lines


def test_what_names_of_topology_zones_stand_on() -> None:
    index = fill(Index(KINDS, zones=True), *ZONAL)
    names = names_of(index, zonal=True)
    names.prove(())
    key = b"\2db\3dev"
    for zone in ("z-a.pin", "z-c.pin", "z-c.prefer"):
        lease = reply_to(names, f"{zone}._zone.db.dev.svc.{Z}").lease
        assert (lease.until, lease.facts) == (FOREVER, (b"svc/" + key, b"ns/\3dev", b"eps/" + key))
    assert reply_to(names, f"z-a.pin._zone.web.dev.svc.{Z}").lease.denial is None
    assert apex_of(names, f"z-a.pin._zone.ghost.dev.svc.{Z}") == "svc." + Z
    put(index, slice_of("db-a.dev", "10.1.0.1 - - z-c", of="db"))
    assert said(names, f"z-c.pin._zone.db.dev.svc.{Z}") == ["A 10.1.0.1"]


def test_topology_zones_before_namespaces_are_known() -> None:
    names = names_of(fill(Index(KINDS, zones=True), *ZONAL, kinds=("services", "endpointslices")), zonal=True)
    qname = f"z-a.pin._zone.db.dev.svc.{Z}"
    assert said(names, qname) == ["A 10.1.0.1", "A 10.1.0.2"]
    assert reply_to(names, qname).lease.facts[-2:] == (b"known/namespaces", b"eps/\2db\3dev")


def test_topology_zones_before_endpoints_are_known() -> None:
    names = names_of(fill(Index(KINDS, zones=True), *ZONAL, kinds=("namespaces", "services")), zonal=True)
    assert said(names, f"z-a.pin._zone.db.dev.svc.{Z}") == ["SERVFAIL"]
    assert said(names, f"z-a.pin._zone.web.dev.svc.{Z}") == ["NXDOMAIN"]


def test_topology_zones_of_nobody_who_wants_them(index: Index) -> None:
    assert said(names_of(index), f"z-a.pin._zone.headless.dev.svc.{Z}") == ["NXDOMAIN"]


@pytest.mark.parametrize(
    ("qname", "type", "lines"),
    [
        # the zone itself
        ("", "A", ["NODATA"]),
        ("", "TXT", ["NODATA"]),
        ("svc.", "A", ["NODATA"]),
        ("svc.", "TXT", ["NODATA"]),
        ("pod.", "AAAA", ["NODATA"]),
        ("dns-version.", "TXT", ['TXT "1.1.0"']),
        ("dns-version.", "A", ["NODATA"]),
        ("a.dns-version.", "TXT", ["NXDOMAIN"]),
        ("what.", "A", ["NXDOMAIN"]),
        ("what.", "SOA", ["NXDOMAIN"]),
        ("web.dev.what.", "A", ["NXDOMAIN"]),
        # namespaces
        ("dev.svc.", "A", ["NODATA"]),
        ("empty.svc.", "TXT", ["NODATA"]),
        ("nons.svc.", "A", ["NXDOMAIN"]),
        # Services with a cluster IP
        ("web.dev.svc.", "A", ["A 10.96.0.1"]),
        ("WEB.Dev.sVc.", "A", ["A 10.96.0.1"]),
        ("web.dev.svc.", "AAAA", ["NODATA"]),
        ("dual.dev.svc.", "A", ["A 10.96.0.2"]),
        ("dual.dev.svc.", "AAAA", ["AAAA fd00::2"]),
        ("six.dev.svc.", "A", ["NODATA"]),
        ("six.dev.svc.", "AAAA", ["AAAA fd00::3"]),
        ("pending.dev.svc.", "A", ["NODATA"]),
        ("pending.dev.svc.", "SRV", ["NODATA"]),
        *[("web.dev.svc.", type, ["NODATA"]) for type in "CNAME MX NS SOA PTR TXT HTTPS CAA ANY DS".split()],
        ("gone.dev.svc.", "A", ["NXDOMAIN"]),
        ("web.empty.svc.", "A", ["NXDOMAIN"]),
        ("web.nons.svc.", "A", ["NXDOMAIN"]),
        ("orphan.dev.svc.", "A", ["NXDOMAIN"]),
        # their ports
        ("_http._tcp.web.dev.svc.", "SRV", ["SRV 0 100 80 web.dev.svc.cluster.local.", "+ A 10.96.0.1"]),
        ("http.tcp.web.dev.svc.", "SRV", ["SRV 0 100 80 web.dev.svc.cluster.local.", "+ A 10.96.0.1"]),
        ("_HTTP._TCP.web.dev.svc.", "A", ["A 10.96.0.1"]),
        ("_http._tcp.web.dev.svc.", "AAAA", ["NODATA"]),
        ("_http._tcp.web.dev.svc.", "TXT", ["NODATA"]),
        ("_http._udp.web.dev.svc.", "SRV", ["NXDOMAIN"]),
        ("_dns._udp.web.dev.svc.", "SRV", ["SRV 0 100 53 web.dev.svc.cluster.local.", "+ A 10.96.0.1"]),
        ("_what._tcp.web.dev.svc.", "A", ["NXDOMAIN"]),
        ("_tcp.web.dev.svc.", "A", ["NXDOMAIN"]),
        ("_http._tcp.gone.dev.svc.", "SRV", ["NXDOMAIN"]),
        (
            "web.dev.svc.",
            "SRV",
            ["SRV 0 50 80 web.dev.svc.cluster.local.", "SRV 0 50 53 web.dev.svc.cluster.local.", "+ A 10.96.0.1"],
        ),
        # both families count for the weight, though one record stands for both
        (
            "_https._tcp.dual.dev.svc.",
            "SRV",
            ["SRV 0 50 443 dual.dev.svc.cluster.local.", "+ A 10.96.0.2", "+ AAAA fd00::2"],
        ),
        ("bare.dev.svc.", "A", ["A 10.96.0.4"]),
        ("bare.dev.svc.", "SRV", ["NODATA"]),
        ("_http._tcp.bare.dev.svc.", "A", ["NXDOMAIN"]),
        # endpoints of a Service with a cluster IP
        ("10-1-0-1.web.dev.svc.", "A", ["A 10.1.0.1"]),
        ("alpha.web.dev.svc.", "A", ["A 10.1.0.2"]),
        ("10-1-0-2.web.dev.svc.", "A", ["NXDOMAIN"]),
        ("web-0.web.dev.svc.", "A", ["NXDOMAIN"]),
        # headless Services
        ("headless.dev.svc.", "A", ["A 10.1.1.1", "A 10.1.1.2", "A 10.1.1.3"]),
        ("headless.dev.svc.", "AAAA", ["AAAA fd00:1::1", "AAAA fd00:1::"]),
        ("headless.dev.svc.", "TXT", ["NODATA"]),
        ("h-0.headless.dev.svc.", "A", ["A 10.1.1.1", "A 10.1.1.3"]),
        ("h-0.headless.dev.svc.", "AAAA", ["AAAA fd00:1::1"]),
        ("h-0.headless.dev.svc.", "MX", ["NODATA"]),
        ("h-9.headless.dev.svc.", "A", ["NXDOMAIN"]),
        ("0.headless.dev.svc.", "A", ["NXDOMAIN"]),
        ("10-1-1-2.headless.dev.svc.", "A", ["A 10.1.1.2"]),
        ("10-1-1-2.headless.dev.svc.", "AAAA", ["NODATA"]),
        ("10-1-1-1.headless.dev.svc.", "A", ["NXDOMAIN"]),
        ("fd00-1--0.headless.dev.svc.", "AAAA", ["AAAA fd00:1::"]),
        ("fd00-1-0-0--0.headless.dev.svc.", "AAAA", ["NXDOMAIN"]),
        ("_admin._tcp.headless.dev.svc.", "A", ["A 10.1.1.1", "A 10.1.1.2"]),
        ("_what._tcp.headless.dev.svc.", "SRV", ["NXDOMAIN"]),
        (
            "_admin._tcp.headless.dev.svc.",
            "SRV",
            [
                "SRV 0 50 9090 h-0.headless.dev.svc.cluster.local.",
                "SRV 0 50 9090 10-1-1-2.headless.dev.svc.cluster.local.",
                "+ A 10.1.1.1",
                "+ A 10.1.1.2",
            ],
        ),
        (
            "_http._tcp.headless.dev.svc.",
            "SRV",
            [
                "SRV 0 16 80 h-0.headless.dev.svc.cluster.local.",
                "SRV 0 16 80 10-1-1-2.headless.dev.svc.cluster.local.",
                "SRV 0 16 81 h-0.headless.dev.svc.cluster.local.",
                "SRV 0 16 80 fd00-1--0.headless.dev.svc.cluster.local.",
                "+ A 10.1.1.1",
                "+ A 10.1.1.2",
                "+ A 10.1.1.3",
                "+ AAAA fd00:1::1",
                "+ AAAA fd00:1::",
            ],
        ),
        ("h-0.headless.dev.svc.", "CNAME", ["NODATA"]),
        ("noready.dev.svc.", "A", ["NXDOMAIN"]),
        ("_http._tcp.noready.dev.svc.", "SRV", ["NXDOMAIN"]),
        ("noports.dev.svc.", "A", ["A 10.1.3.1"]),
        ("noports.dev.svc.", "SRV", ["NODATA"]),
        ("_http._tcp.noports.dev.svc.", "A", ["NXDOMAIN"]),
        ("anyport.dev.svc.", "SRV", ["NODATA"]),
        ("_http._tcp.anyport.dev.svc.", "A", ["A 10.1.4.1"]),
        # external names
        ("ext.dev.svc.", "A", ["CNAME www.Example.org.", "chase www.Example.org."]),
        ("ext.dev.svc.", "AAAA", ["CNAME www.Example.org.", "chase www.Example.org."]),
        ("ext.dev.svc.", "CNAME", ["CNAME www.Example.org."]),
        ("ext.dev.svc.", "SRV", ["NODATA"]),
        ("ext.dev.svc.", "TXT", ["NODATA"]),
        ("x.ext.dev.svc.", "A", ["NXDOMAIN"]),
        ("_http._tcp.ext.dev.svc.", "A", ["NXDOMAIN"]),
        ("extip.dev.svc.", "A", ["NXDOMAIN"]),
        ("inside.dev.svc.", "A", ["CNAME web.dev.svc.cluster.local.", "A 10.96.0.1"]),
        ("inside.dev.svc.", "AAAA", ["NODATA"]),
        ("inside.dev.svc.", "CNAME", ["CNAME web.dev.svc.cluster.local."]),
        ("dangling.dev.svc.", "A", ["NODATA"]),
        ("itself.dev.svc.", "A", ["NODATA"]),
        ("below.dev.svc.", "A", ["NODATA"]),
        ("one.dev.svc.", "A", ["NODATA"]),
        ("top.dev.svc.", "A", ["NODATA"]),
        (
            "far.dev.svc.",
            "A",
            ["CNAME ext.dev.svc.cluster.local.", "CNAME www.Example.org.", "chase www.Example.org."],
        ),
        # Pods
        ("10-244-0-1.dev.pod.", "A", ["A 10.244.0.1"]),
        ("10-244-0-1.dev.pod.", "AAAA", ["NODATA"]),
        ("fd00-244--1.dev.pod.", "AAAA", ["AAAA fd00:244::1"]),
        ("10-244-0-1.default.pod.", "A", ["NXDOMAIN"]),
        ("10-244-0-9.dev.pod.", "A", ["NXDOMAIN"]),
        ("192-0-2-10.dev.pod.", "A", ["A 192.0.2.10"]),
        ("192-0-2-10.default.pod.", "A", ["A 192.0.2.10"]),
        ("x.y.10-244-0-1.dev.pod.", "A", ["A 10.244.0.1"]),
        ("x.y.z.10-244-0-1.dev.pod.", "A", ["NXDOMAIN"]),
        ("10-244-0-1.dev.pod.", "TXT", ["NODATA"]),
        ("10-244-0-1.dev.pod.", "SRV", ["SRV 0 100 0 10-244-0-1.dev.pod.cluster.local.", "+ A 10.244.0.1"]),
        ("dev.pod.", "A", ["NODATA"]),
        ("nons.pod.", "A", ["NXDOMAIN"]),
        ("what.dev.pod.", "A", ["NXDOMAIN"]),
    ],
)
def test_names(names: Names, qname: str, type: str, lines: list[str]) -> None:
    assert said(names, qname + Z, type) == lines


@pytest.mark.parametrize(
    ("address", "lines"),
    [
        ("10.96.0.1", ["PTR web.dev.svc.cluster.local."]),
        ("fd00::2", ["PTR dual.dev.svc.cluster.local."]),
        ("10.1.0.1", ["PTR 10-1-0-1.web.dev.svc.cluster.local."]),
        ("10.1.0.2", ["PTR alpha.web.dev.svc.cluster.local."]),
        ("10.1.1.1", ["PTR h-0.headless.dev.svc.cluster.local.", "PTR 10-1-1-1.orphan.dev.svc.cluster.local."]),
        ("fd00:1::", ["PTR fd00-1--0.headless.dev.svc.cluster.local."]),
        ("10.1.6.1", ["NXDOMAIN"]),
        ("10.244.0.1", ["NXDOMAIN"]),
        ("8.8.8.8", ["NXDOMAIN"]),
    ],
)
def test_reverse(names: Names, address: str, lines: list[str]) -> None:
    assert said(names, name.to_text(name.reverse(pack_address(address))), "PTR") == lines


@pytest.mark.parametrize(
    ("qname", "type", "lines"),
    [
        ("1.0.96.10.in-addr.arpa.", "A", ["NODATA"]),
        ("1.0.96.10.in-addr.arpa.", "TXT", ["NODATA"]),
        ("96.10.in-addr.arpa.", "PTR", ["NXDOMAIN"]),
        ("01.0.96.10.in-addr.arpa.", "PTR", ["NXDOMAIN"]),
        ("web.dev.svc.in-addr.arpa.", "A", ["NXDOMAIN"]),
        ("in-addr.arpa.", "PTR", ["NODATA"]),
        ("dns-version.in-addr.arpa.", "TXT", ['TXT "1.1.0"']),
        ("example.org.", "A", ["not ours"]),
        ("xcluster.local.", "A", ["not ours"]),
        ("web.dev.svcxcluster.local.", "A", ["not ours"]),
        ("local.", "A", ["not ours"]),
        (".", "NS", ["not ours"]),
    ],
)
def test_other_names(names: Names, qname: str, type: str, lines: list[str]) -> None:
    assert said(names, qname, type) == lines


def test_a_label_that_looks_like_the_zone_is_none(names: Names) -> None:
    inner = b"\x03svc\x07cluster\x05local\0"
    query = ask("example.org.")
    trap = b"%c%b" % (len(inner) + 4, b"\x03web" + inner) + b"\x03org\0"
    assert names.answer(query.replace(name=trap, spelling=trap)) is None
    nested = b"%cweb\x03dev%b" % (7 + len(inner) - 1, inner)
    assert names.answer(query.replace(name=nested, spelling=nested)) is None


# --- records, flags, leases ------------------------------------------------------------------------------------------


def reply_to(names: Names, qname: str, type: str = "A") -> Reply:
    found = answer(names, qname, type)
    assert isinstance(found, Reply)
    return found


def test_positive_answers(names: Names) -> None:
    found = reply_to(names, "WEB.dev.svc.Cluster.Local.")
    assert (found.rcode, found.flags, found.authority, found.plugin) == (0, AA, (), "kubernetes")
    (record,) = found.answer
    assert (name.to_text(record.owner), record.ttl) == ("WEB.dev.svc.Cluster.Local.", 30)
    assert found.lease.until == FOREVER
    assert found.lease.facts == (b"svc/\3web\3dev", b"ns/\3dev")


@pytest.mark.parametrize("qname", ["gone.dev.svc." + Z, "dev.svc." + Z, "what." + Z])
def test_negative_answers(names: Names, qname: str) -> None:
    found = reply_to(names, qname)
    assert found.flags == AA and found.lease.until == FOREVER
    (soa,) = found.authority
    text = rdata.to_text(soa.type, soa.rdata)
    assert text == "ns.dns.cluster.local. hostmaster.cluster.local. 1234 7200 1800 86400 30"
    assert (name.to_text(soa.owner), soa.ttl) == (Z, 30)


@pytest.mark.parametrize(
    ("qname", "type", "facts"),
    [
        ("gone.dev.svc.", "A", (b"svc/\4gone\3dev", b"ns/\3dev")),
        ("x.gone.dev.svc.", "A", (b"svc/\4gone\3dev", b"ns/\3dev")),
        ("nons.svc.", "A", (b"ns/\4nons",)),
        ("dev.svc.", "A", (b"ns/\3dev",)),
        ("what.", "A", ()),
        ("dns-version.", "TXT", ()),
        ("headless.dev.svc.", "A", (b"svc/\x08headless\3dev", b"ns/\3dev", b"eps/\x08headless\3dev")),
        ("h-9.web.dev.svc.", "A", (b"svc/\3web\3dev", b"ns/\3dev", b"eps/\3web\3dev")),
        ("_http._tcp.web.dev.svc.", "A", (b"svc/\3web\3dev", b"ns/\3dev")),
        ("10-244-0-1.dev.pod.", "A", (b"ns/\3dev", b"pod/\x0a\xf4\0\1")),
        ("inside.dev.svc.", "A", (b"svc/\3web\3dev", b"ns/\3dev", b"svc/\6inside\3dev")),
        ("dangling.dev.svc.", "A", (b"svc/\4gone\3dev", b"ns/\3dev", b"svc/\x08dangling\3dev")),
    ],
)
def test_answers_stand_on_facts(names: Names, qname: str, type: str, facts: tuple[bytes, ...]) -> None:
    lease = reply_to(names, qname + Z, type).lease
    assert (lease.until, lease.facts) == (FOREVER, facts)


def test_reverse_answers_stand_on_the_address(names: Names) -> None:
    for qname in ("1.0.96.10.in-addr.arpa.", "9.9.9.9.in-addr.arpa."):
        packed = name.reverse_address(name.from_text(qname))
        assert packed is not None
        assert reply_to(names, qname, "PTR").lease.facts == (b"ip/" + packed,)


def test_a_chase_stands_on_the_service(names: Names) -> None:
    found = answer(names, "far.dev.svc." + Z)
    assert isinstance(found, Chase)
    assert found.lease.facts == (b"svc/\3ext\3dev", b"ns/\3dev", b"svc/\3far\3dev")
    assert found.nothing.rcode == 0 and found.nothing.authority and found.nothing.lease == found.lease


def test_the_soa_asked_for_itself_is_always_new() -> None:
    index = fill(Index(KINDS), *WORLD, now=5.0)
    names = names_of(index, ttl=3600)
    assert said(names, Z, "SOA") == ["SOA ns.dns.cluster.local. hostmaster.cluster.local. 5 7200 1800 86400 3600"]
    put(index, service("new.dev", "10.96.0.99"), now=77.9)
    found = reply_to(names, "Cluster.local.", "SOA")
    assert (found.answer[0].ttl, name.to_text(found.answer[0].owner)) == (300, "Cluster.local.")
    assert rdata.to_text(message.SOA, found.answer[0].rdata).split()[2] == "77"
    assert found.lease.until == 0.0


def test_transfers_are_refused(names: Names) -> None:
    for type in ("AXFR", "IXFR"):
        assert reply_to(names, Z, type).rcode == REFUSED
        assert reply_to(names, "web.dev.svc." + Z, type).rcode == REFUSED
        assert answer(names, "example.org.", type) is None


# --- options ---------------------------------------------------------------------------------------------------------


def test_pods_disabled(index: Index) -> None:
    names = names_of(index)
    assert said(names, "10-244-0-1.dev.pod." + Z) == ["NXDOMAIN"]
    assert said(names, "dev.pod." + Z) == ["NXDOMAIN"]
    assert said(names, "pod." + Z) == ["NODATA"]


@pytest.mark.parametrize(
    ("label", "type", "lines"),
    [
        ("10-9-9-9", "A", ["A 10.9.9.9"]),
        ("10-9-9-9", "AAAA", ["NODATA"]),
        ("fd00--1", "AAAA", ["AAAA fd00::1"]),
        ("--1", "AAAA", ["AAAA ::1"]),
        ("--ffff-a09-909", "A", ["A 10.9.9.9"]),
        ("10-9-9", "A", ["NXDOMAIN"]),
        ("10-9-9-300", "A", ["NXDOMAIN"]),
        ("010-9-9-9", "A", ["NXDOMAIN"]),
        ("10-9--9", "A", ["NODATA"]),
        ("10\\.9-9-9", "A", ["NXDOMAIN"]),
        ("a:b--1", "AAAA", ["NXDOMAIN"]),
        ("\\255-1-1-1", "A", ["NXDOMAIN"]),
        ("-", "A", ["NXDOMAIN"]),
        ("10-9-9-9-", "A", ["NXDOMAIN"]),
    ],
)
def test_pods_insecure(index: Index, label: str, type: str, lines: list[str]) -> None:
    names = names_of(index, pods="insecure")
    assert said(names, f"{label}.dev.pod.{Z}", type) == lines
    assert said(names, f"{label}.nons.pod.{Z}", type) == ["NXDOMAIN"]


def test_endpoints_named_after_their_pods(index: Index) -> None:
    names = names_of(index, pod_names=True)
    assert said(names, "pod-1.headless.dev.svc." + Z) == ["A 10.1.1.2"]
    assert said(names, "10-1-1-2.headless.dev.svc." + Z) == ["NXDOMAIN"]
    assert said(names, "pod-0.headless.dev.svc." + Z) == ["NXDOMAIN"]
    assert said(names, "h-0.headless.dev.svc." + Z) == ["A 10.1.1.1", "A 10.1.1.3"]
    assert said(names, "2.1.1.10.in-addr.arpa.", "PTR") == ["PTR pod-1.headless.dev.svc.cluster.local."]
    assert said(names, "fd00-1--0.headless.dev.svc." + Z, "AAAA") == ["AAAA fd00:1::"]


def test_namespaces(index: Index) -> None:
    names = names_of(index, pods="verified", namespaces=frozenset([b"\7default", b"\4nons"]))
    assert said(names, "web.default.svc." + Z) == ["A 10.96.1.1"]
    assert said(names, "web.dev.svc." + Z) == said(names, "dev.svc." + Z) == ["NXDOMAIN"]
    assert said(names, "alpha.web.dev.svc." + Z) == said(names, "ext.dev.svc." + Z) == ["NXDOMAIN"]
    assert said(names, "10-244-0-1.dev.pod." + Z) == ["NXDOMAIN"]
    assert said(names, "nons.svc." + Z) == ["NXDOMAIN"]
    assert said(names, "1.0.96.10.in-addr.arpa.", "PTR") == ["NXDOMAIN"]
    assert said(names, "2.0.1.10.in-addr.arpa.", "PTR") == ["NXDOMAIN"]
    assert said(names, "1.1.96.10.in-addr.arpa.", "PTR") == ["PTR web.default.svc.cluster.local."]


def test_selected_namespaces_hide_the_others_from_reverse_lookups_too() -> None:
    index = fill(Index(KINDS), *[found for found in WORLD if found != namespace("dev")])
    names = names_of(index, selected=True)
    assert said(names, "web.dev.svc." + Z) == ["NXDOMAIN"]
    found = reply_to(names, "1.0.96.10.in-addr.arpa.", "PTR")
    assert found.rcode == NXDOMAIN
    assert found.lease.facts == (b"ip/\x0a\x60\0\1", b"ns/\3dev")
    put(index, namespace("dev"))
    assert said(names, "1.0.96.10.in-addr.arpa.", "PTR") == ["PTR web.dev.svc.cluster.local."]


def test_services_without_ready_endpoints_may_be_ignored(index: Index) -> None:
    names = names_of(index, ignore_empty=True)
    assert said(names, "web.dev.svc." + Z) == ["A 10.96.0.1"]
    assert said(names, "dual.dev.svc." + Z) == said(names, "_https._tcp.dual.dev.svc." + Z, "SRV") == ["NXDOMAIN"]
    assert said(names, "ext.dev.svc." + Z)[0] == "CNAME www.Example.org."
    assert b"eps/\3web\3dev" in reply_to(names, "web.dev.svc." + Z).lease.facts


def test_without_endpoints() -> None:
    kinds = ("namespaces", "services")
    names = names_of(fill(Index(kinds), *WORLD, kinds=kinds))
    assert said(names, "web.dev.svc." + Z) == ["A 10.96.0.1"]
    assert said(names, "headless.dev.svc." + Z) == ["NXDOMAIN"]
    assert said(names, "alpha.web.dev.svc." + Z) == ["NXDOMAIN"]
    assert said(names, "1.0.96.10.in-addr.arpa.", "PTR") == ["PTR web.dev.svc.cluster.local."]
    assert said(names, "1.1.1.10.in-addr.arpa.", "PTR") == ["NXDOMAIN"]


def test_ttl(index: Index) -> None:
    names = names_of(index, ttl=0)
    assert reply_to(names, "web.dev.svc." + Z).answer[0].ttl == 0
    assert reply_to(names, "dns-version." + Z, "TXT").answer[0].ttl == 28800
    assert reply_to(names, "what." + Z).authority[0].ttl == 0


def test_zones_within_zones(index: Index) -> None:
    inner = name.from_text("dev.svc.cluster.local.")
    names = names_of(index, (*ZONES, inner))
    assert said(names, "web.default.svc." + Z) == ["A 10.96.1.1"]
    # Here "web" is a label directly below a zone of ours.
    assert said(names, "web.dev.svc." + Z) == ["NXDOMAIN"]
    assert said(names, "web.dev.svc.dev.svc." + Z) == ["A 10.96.0.1"]


def test_the_primary_zone_is_the_first_that_is_not_reverse(index: Index) -> None:
    other = name.from_text("other.")
    assert primary((name.IN_ADDR_ARPA, other, ZONES[0])) == other
    assert primary((name.from_text("10.in-addr.arpa."), name.IP6_ARPA)) is None
    names = names_of(index, (name.IN_ADDR_ARPA, other, ZONES[0]))
    assert said(names, "1.0.96.10.in-addr.arpa.", "PTR") == ["PTR web.dev.svc.other."]


def test_names_that_would_be_too_long_are_left_out() -> None:
    zone = name.from_labels([b"z" * 63] * 2 + [b"y" * 57])
    long = "l" * 63
    index = fill(
        Index(KINDS), namespace("n"), service("s.n"), slice_of("s-a.n", f"10.0.0.1 {long}", "10.0.0.2", of="s")
    )
    names = names_of(index, (zone, name.IN_ADDR_ARPA))
    assert said(names, "1.0.0.10.in-addr.arpa.", "PTR") == ["NXDOMAIN"]
    text = name.to_text(zone)
    assert said(names, "s.n.svc." + text, "SRV") == [f"SRV 0 50 80 10-0-0-2.s.n.svc.{text}", "+ A 10.0.0.2"]


# --- in front of this server -----------------------------------------------------------------------------------------


def test_without_a_service_in_front() -> None:
    names = names_of(fill(Index(KINDS), *WORLD))
    assert said(names, Z, "NS") == ["NODATA"]
    names.local = (pack_address("192.0.2.2"), pack_address("fd00::53"))
    assert said(names, Z, "NS") == ["NS ns.dns.cluster.local.", "+ A 192.0.2.2", "+ AAAA fd00::53"]
    assert said(names, "ns.dns." + Z, "A") == ["A 192.0.2.2"]
    assert said(names, "NS.dns." + Z, "AAAA") == ["AAAA fd00::53"]
    assert said(names, "ns.dns." + Z, "TXT") == ["NODATA"]
    assert said(names, "dns." + Z) == ["NXDOMAIN"]
    assert reply_to(names, Z, "NS").lease.facts == (b"ip/\xc0\0\2\2", b"ip/" + pack_address("fd00::53"))


def test_the_services_in_front() -> None:
    index = fill(
        Index(KINDS),
        *WORLD,
        service("kube-dns.kube-system", "10.96.0.10", "fd00::10", ports=("dns 53 UDP", "dns-tcp 53")),
        slice_of("kube-dns-a.kube-system", "192.0.2.2", "192.0.2.3", of="kube-dns"),
        slice_of("kube-dns-6.kube-system", "fd00::53", of="kube-dns"),
        service("peers.kube-system"),
        slice_of("peers-a.kube-system", "192.0.2.2 dns-0", "192.0.2.3 dns-1", of="peers"),
        slice_of("peers-b.kube-system", "192.0.2.4 dns-2", of="peers"),
        slice_of("lost-a.kube-system", "192.0.2.2", of="lost"),
    )
    names = names_of(index)
    names.local = (pack_address("192.0.2.2"), pack_address("fd00::53"))
    front, peers = "kube-dns.kube-system.svc.cluster.local.", "peers.kube-system.svc.cluster.local."
    assert said(names, Z, "NS") == [
        f"NS {front}",
        f"NS dns-0.{peers}",
        f"NS dns-1.{peers}",
        *("+ A 10.96.0.10", "+ AAAA fd00::10", "+ A 192.0.2.2", "+ A 192.0.2.3"),
    ]
    assert said(names, "ns.dns." + Z, "AAAA") == ["AAAA fd00::10"]
    facts = reply_to(names, Z, "NS").lease.facts
    assert {b"svc/\x08kube-dns\x0bkube-system", b"eps/\x08kube-dns\x0bkube-system", b"ip/\xc0\0\2\2"} <= set(facts)


# --- what is not known yet -------------------------------------------------------------------------------------------

UNKNOWN = "SERVFAIL"


def partly(*known: str) -> Names:
    return names_of(fill(Index(KINDS), *WORLD, kinds=known), pods="verified")


@pytest.mark.parametrize(
    ("known", "qname", "type", "lines"),
    [
        # nothing at all
        ((), "web.dev.svc.", "A", [UNKNOWN]),
        ((), "what.", "A", [UNKNOWN]),
        ((), "dev.svc.", "A", [UNKNOWN]),
        ((), "", "A", ["NODATA"]),
        ((), "", "NS", [UNKNOWN]),
        ((), "ns.dns.", "A", [UNKNOWN]),
        ((), "svc.", "A", ["NODATA"]),
        ((), "dns-version.", "TXT", ['TXT "1.1.0"']),
        # no Namespaces: what is in one vouches for it
        (("services", "endpointslices", "pods"), "web.dev.svc.", "A", ["A 10.96.0.1"]),
        (("services", "endpointslices", "pods"), "_http._tcp.web.dev.svc.", "A", ["A 10.96.0.1"]),
        (("services", "endpointslices", "pods"), "dev.svc.", "A", [UNKNOWN]),
        (("services", "endpointslices", "pods"), "10-244-0-1.dev.pod.", "A", [UNKNOWN]),
        (("services", "endpointslices", "pods"), "gone.dev.svc.", "A", [UNKNOWN]),
        # no Services
        (("namespaces", "endpointslices", "pods"), "dev.svc.", "A", ["NODATA"]),
        (("namespaces", "endpointslices", "pods"), "web.dev.svc.", "A", [UNKNOWN]),
        (("namespaces", "endpointslices", "pods"), "h-0.headless.dev.svc.", "A", [UNKNOWN]),
        (("namespaces", "endpointslices", "pods"), "10-244-0-1.dev.pod.", "A", ["A 10.244.0.1"]),
        # no slices
        (("namespaces", "services", "pods"), "web.dev.svc.", "A", ["A 10.96.0.1"]),
        (("namespaces", "services", "pods"), "gone.dev.svc.", "A", ["NXDOMAIN"]),
        (("namespaces", "services", "pods"), "headless.dev.svc.", "A", [UNKNOWN]),
        (("namespaces", "services", "pods"), "headless.dev.svc.", "TXT", [UNKNOWN]),
        (("namespaces", "services", "pods"), "h-0.headless.dev.svc.", "A", [UNKNOWN]),
        (("namespaces", "services", "pods"), "alpha.web.dev.svc.", "A", [UNKNOWN]),
        (("namespaces", "services", "pods"), "_http._tcp.headless.dev.svc.", "SRV", [UNKNOWN]),
        (("namespaces", "services", "pods"), "_http._udp.web.dev.svc.", "SRV", ["NXDOMAIN"]),
        (("namespaces", "services", "pods"), "", "NS", [UNKNOWN]),
        (("namespaces", "services", "pods"), "what.", "A", ["NXDOMAIN"]),
        (
            ("namespaces", "services", "pods"),
            "inside.dev.svc.",
            "A",
            ["CNAME web.dev.svc.cluster.local.", "A 10.96.0.1"],
        ),
        # no Pods
        (("namespaces", "services", "endpointslices"), "10-244-0-1.dev.pod.", "A", [UNKNOWN]),
        (("namespaces", "services", "endpointslices"), "what.dev.pod.", "A", ["NXDOMAIN"]),
        (
            ("namespaces", "services", "endpointslices"),
            "headless.dev.svc.",
            "AAAA",
            ["AAAA fd00:1::1", "AAAA fd00:1::"],
        ),
    ],
)
def test_partial_knowledge(known: tuple[str, ...], qname: str, type: str, lines: list[str]) -> None:
    assert said(partly(*known), qname + Z, type) == lines


@pytest.mark.parametrize(
    ("known", "address", "lines"),
    [
        (("namespaces", "endpointslices", "pods"), "10.96.0.1", [UNKNOWN]),
        (("namespaces", "endpointslices", "pods"), "10.1.1.1", [UNKNOWN]),
        (("namespaces", "services", "pods"), "10.96.0.1", ["PTR web.dev.svc.cluster.local."]),
        (("namespaces", "services", "pods"), "10.1.1.1", [UNKNOWN]),
        (("namespaces", "services", "pods"), "8.8.8.8", [UNKNOWN]),
        (("services", "endpointslices", "pods"), "10.1.0.2", ["PTR alpha.web.dev.svc.cluster.local."]),
        (("services", "endpointslices", "pods"), "8.8.8.8", [UNKNOWN]),
        ((), "8.8.8.8", [UNKNOWN]),
    ],
)
def test_partial_knowledge_of_addresses(known: tuple[str, ...], address: str, lines: list[str]) -> None:
    assert said(partly(*known), name.to_text(name.reverse(pack_address(address))), "PTR") == lines


def test_reverse_lookups_of_selected_namespaces_need_to_know_them() -> None:
    names = names_of(fill(Index(KINDS), *WORLD, kinds=KINDS[1:]), selected=True)
    assert said(names, "2.0.1.10.in-addr.arpa.", "PTR") == said(names, "1.0.96.10.in-addr.arpa.", "PTR") == [UNKNOWN]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"selected": True}, [UNKNOWN]),
        ({"namespaces": frozenset([b"\3dev"])}, ["A 10.96.0.1"]),
        ({"namespaces": frozenset([b"\4prod"])}, [UNKNOWN]),
    ],
)
def test_a_service_vouches_only_for_a_namespace_that_may_be_shown(options: dict[str, Any], lines: list[str]) -> None:
    index = fill(Index(KINDS), *WORLD, kinds=KINDS[1:])
    assert said(names_of(index, **options), "web.dev.svc." + Z) == lines
    # Once Namespaces are known they decide, and what was said before is repeated no more.
    if lines != [UNKNOWN]:
        facts = reply_to(names_of(index, **options), "web.dev.svc." + Z).lease.facts
        assert b"known/namespaces" in facts
    assert b"known/namespaces" in relist(index, "namespaces", [])
    assert b"known/namespaces" not in relist(index, "namespaces", [])
    assert said(names_of(index, **options), "web.dev.svc." + Z) == ["NXDOMAIN"]


def test_half_a_reverse_name_is_not_denied_before_anything_is_known() -> None:
    assert said(partly(), "96.10.in-addr.arpa.", "PTR") == [UNKNOWN]


def test_a_chain_into_the_unknown_is_unknown() -> None:
    index = fill(
        Index(KINDS), *WORLD, service("to.dev", externalName="headless.dev.svc.cluster.local"), kinds=KINDS[:2]
    )
    assert said(names_of(index), "to.dev.svc." + Z) == [UNKNOWN]


def test_what_is_said_about_the_unknown() -> None:
    found = reply_to(partly("namespaces", "services"), "headless.dev.svc." + Z)
    assert (found.rcode, found.flags) == (SERVFAIL, AA)
    assert found.ede == ((EDE_NOT_READY, "endpointslices not synced"),)
    assert found.lease.until == 0.0 and found.authority and not found.error


# --- out of a snapshot -----------------------------------------------------------------------------------------------


def remembered(*known: str) -> Names:
    """Of a world that is remembered, but for these kinds, which are known."""
    index = Index(KINDS)
    for kind in KINDS:
        index.remember(kind, [found for found in WORLD if kind_of(found) == kind])
        index.recall(kind)
    return names_of(fill(index, *WORLD, kinds=known), pods="verified")


ALL_BUT_SLICES = ("namespaces", "services", "pods")


@pytest.mark.parametrize(
    ("known", "qname", "type", "lines"),
    [
        ((), "web.dev.svc.", "A", ["A 10.96.0.1"]),
        ((), "web.dev.svc.", "AAAA", ["NODATA"]),
        ((), "headless.dev.svc.", "AAAA", ["AAAA fd00:1::1", "AAAA fd00:1::"]),
        ((), "h-0.headless.dev.svc.", "AAAA", ["AAAA fd00:1::1"]),
        ((), "dev.svc.", "A", ["NODATA"]),
        ((), "inside.dev.svc.", "A", ["CNAME web.dev.svc.cluster.local.", "A 10.96.0.1"]),
        ((), "10-244-0-1.dev.pod.", "A", ["A 10.244.0.1"]),
        # whatever is not there may be there by now
        ((), "gone.dev.svc.", "A", [UNKNOWN]),
        ((), "gone.svc.", "A", [UNKNOWN]),
        ((), "web.gone.svc.", "A", [UNKNOWN]),
        ((), "noready.dev.svc.", "A", [UNKNOWN]),
        ((), "h-9.headless.dev.svc.", "A", [UNKNOWN]),
        ((), "_ftp._tcp.headless.dev.svc.", "SRV", [UNKNOWN]),
        ((), "_ftp._tcp.web.dev.svc.", "SRV", [UNKNOWN]),
        ((), "10-244-0-9.dev.pod.", "A", [UNKNOWN]),
        ((), "what.", "A", [UNKNOWN]),
        ((), "dangling.dev.svc.", "A", [UNKNOWN]),
        ((), "", "NS", [UNKNOWN]),
        # slices alone are remembered
        (ALL_BUT_SLICES, "headless.dev.svc.", "AAAA", ["AAAA fd00:1::1", "AAAA fd00:1::"]),
        (ALL_BUT_SLICES, "noready.dev.svc.", "A", [UNKNOWN]),
        (ALL_BUT_SLICES, "h-9.headless.dev.svc.", "A", [UNKNOWN]),
        (ALL_BUT_SLICES, "_ftp._tcp.headless.dev.svc.", "SRV", [UNKNOWN]),
        (ALL_BUT_SLICES, "_ftp._tcp.web.dev.svc.", "SRV", ["NXDOMAIN"]),
        (ALL_BUT_SLICES, "gone.dev.svc.", "A", ["NXDOMAIN"]),
    ],
)
def test_a_snapshot_says_what_there_is_never_what_there_is_not(
    known: tuple[str, ...], qname: str, type: str, lines: list[str]
) -> None:
    assert said(remembered(*known), qname + Z, type) == lines


@pytest.mark.parametrize(
    ("known", "address", "lines"),
    [
        ((), "10.96.0.1", ["PTR web.dev.svc.cluster.local."]),
        ((), "10.1.0.2", ["PTR alpha.web.dev.svc.cluster.local."]),
        ((), "8.8.8.8", [UNKNOWN]),
        (ALL_BUT_SLICES, "8.8.8.8", [UNKNOWN]),
        (("namespaces", "endpointslices"), "8.8.8.8", [UNKNOWN]),
        (("namespaces", "endpointslices", "services"), "8.8.8.8", ["NXDOMAIN"]),
    ],
)
def test_addresses_out_of_a_snapshot(known: tuple[str, ...], address: str, lines: list[str]) -> None:
    assert said(remembered(*known), name.to_text(name.reverse(pack_address(address))), "PTR") == lines


def test_who_is_in_front_of_this_server_out_of_a_snapshot() -> None:
    names = remembered()
    names.local = (pack_address("10.1.0.1"),)
    assert said(names, Z, "NS") == [f"NS web.dev.svc.{Z}", "+ A 10.96.0.1"]
    names.local = (pack_address("10.9.9.9"),)
    assert said(names, Z, "NS") == said(names, "ns.dns." + Z) == [UNKNOWN]


# --- chains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("links", "records"), [(10, 11), (11, 12), (12, 0)])
def test_chains_within_the_zone_are_bounded(links: int, records: int) -> None:
    chain = [service(f"c{i}.n", externalName=f"c{i + 1}.n.svc.cluster.local") for i in range(links)]
    index = fill(Index(KINDS), namespace("n"), *chain, service(f"c{links}.n", "10.0.0.1"))
    found = reply_to(names_of(index), "c0.n.svc." + Z)
    assert len(found.answer) == records
    assert found.rcode == 0


def test_many_endpoints_share_the_weight() -> None:
    many = [f"10.2.{i >> 8}.{i & 255}" for i in range(150)]
    index = fill(Index(KINDS), namespace("n"), service("s.n"), slice_of("s-a.n", *many, of="s"))
    lines = said(names_of(index), "s.n.svc." + Z, "SRV")
    assert len(lines) == 300
    assert all(line.startswith("SRV 0 1 80 ") for line in lines[:150])


def test_weights_are_those_of_corednss_floating_point() -> None:
    import math

    for count in range(1, 3000):
        assert max(1, 100 // count) == max(1, math.floor(100.0 / (100.0 * count) * 100))


# --- what an NXDOMAIN proves beside ----------------------------------------------------------------------------------


def proving(index: Index, barred: tuple[str, ...] = (), zones: tuple[bytes, ...] = ZONES, **options: Any) -> Names:
    names = names_of(index, zones, **options)
    names.prove({name.from_text(apex) for apex in barred})
    return names


def apex_of(names: Names, qname: str) -> str | None:
    found = reply_to(names, qname)
    denial = found.lease.denial
    assert denial is None or found.rcode == NXDOMAIN
    return name.to_text(denial.apex) if denial is not None else None


@pytest.mark.parametrize(
    ("qname", "apex"),
    [
        ("github.com.", ""),
        ("what.", ""),
        ("web.dev.svcs.", ""),
        ("a.dns-version.", None),
        ("b.a.dns.", None),
        ("gone.dev.svc.", "svc."),
        ("www.github.com.dev.svc.", "svc."),
        ("a.b.c.d.e.f.com.dev.svc.", "svc."),
        ("nons.svc.", "svc."),
        ("www.github.com.svc.", "svc."),
        ("a.web.dev.svc.", None),
        ("a.b.c.d.web.dev.svc.", None),
        ("x.orphan.dev.svc.", None),
        ("nons.pod.", "pod."),
        ("10-1-2-3.nons.pod.", "pod."),
        ("a.b.c.d.e.nons.pod.", "pod."),
        ("a.dev.pod.", None),
        ("a.b.c.d.e.dev.pod.", None),
    ],
)
def test_what_is_proven(index: Index, qname: str, apex: str | None) -> None:
    names = proving(index, pods="verified")
    assert apex_of(names, qname + Z) == (apex + Z if apex is not None else None)
    assert apex_of(names_of(index), qname + Z) is None
    barred = proving(index, (Z, "svc." + Z, "pod." + Z), pods="verified")
    assert apex_of(barred, qname + Z) is None
    assert reply_to(barred, qname + Z).lease.facts == reply_to(names, qname + Z).lease.facts


def test_what_exists_is_never_proven_away(index: Index) -> None:
    names = proving(index, pods="verified")
    for qname in ("", "svc.", "pod.", "dev.svc.", "dev.pod.", "dns-version.", "web.dev.svc.", "10-244-0-1.dev.pod."):
        found = reply_to(names, qname + Z)
        assert (found.rcode, found.lease.denial) == (0, None)
    assert reply_to(names, "9.9.9.9.in-addr.arpa.").lease.denial is None
    assert reply_to(names, "x.dev.svc." + Z, "AXFR").lease.denial is None


def test_without_pods_nothing_is_below_them(index: Index) -> None:
    names = proving(index, pods="disabled")
    for qname in ("dev.pod.", "10-244-0-1.dev.pod.", "a.b.c.d.e.dev.pod."):
        assert apex_of(names, qname + Z) == "pod." + Z


def test_zones_within_zones_prove_nothing_above_them(index: Index) -> None:
    inner = name.from_text("svc." + Z)
    names = proving(index, zones=(name.from_text(Z), inner))
    assert apex_of(names, "github.com." + Z) is None
    assert apex_of(names, "x.pod." + Z) is None
    assert apex_of(names, "github.com.svc." + Z) == "svc." + Z
    assert apex_of(names, "gone.dev.svc.svc." + Z) == "svc.svc." + Z
    assert apex_of(proving(index, zones=(name.ROOT,)), "gone.dev.svc.") is None


def test_nothing_is_proven_before_namespaces_and_services_are_known() -> None:
    index = Index(KINDS)
    names = proving(index)
    for kind in KINDS:
        found = reply_to(names, "gone.dev.svc." + Z)
        known = not {"namespaces", "services"} & set(index.waiting)
        assert (found.rcode, found.lease.denial is not None) == (NXDOMAIN if known else SERVFAIL, known)
        fill(index, kinds=(kind,))
    assert apex_of(names, "gone.dev.svc." + Z) == "svc." + Z


LABELS: Final = ("dev", "default", "web", "db", "svc", "pod", "dns", "ns", "10-0-0-1", "_http", "com", "dns-version")


@pytest.mark.parametrize("seed", range(4))
def test_what_is_denied_does_not_exist_whatever_happens(seed: int) -> None:
    """Denials that were given once are held against what is answered from then on."""
    chosen = random.Random(seed)
    index = fill(Index(KINDS))
    kinds = [
        ({"pods": "disabled"}, Z), ({"pods": "insecure"}, Z), ({"pods": "verified", "ignore_empty": True}, Z),
        ({"namespaces": frozenset((b"\3dev",)), "pods": "insecure"}, Z), ({"pods": "insecure"}, "local."),
    ]  # fmt: skip
    made = [proving(index, zones=(name.from_text(zone), *ZONES[1:]), **options) for options, zone in kinds]
    given: list[set[Denial]] = [set() for _ in made]
    refuted = 0
    for step in range(700):
        if step % 2:
            change(chosen, index)
        parts = chosen.choices(LABELS, k=chosen.randrange(1, 7))
        qname = ".".join([*parts, *chosen.choice([(), ("svc",), ("dev", "svc"), ("pod",)])]) + "."
        for names, denials, (_, zone) in zip(made, given, kinds, strict=True):
            query = ask(qname + zone)
            for type in (message.A, message.SRV, message.TXT):
                found = names.answer(query.replace(type=type))
                if isinstance(found, Reply) and found.lease.denial is not None:
                    denial = found.lease.denial
                    assert denial.existing.denies(query.name[: -len(denial.apex)])
                    denials.add(denial)
                for denial in denials:
                    below = labels_below(query.name, denial.apex)
                    if below and denial.existing.denies(query.name[:below]):
                        refuted += 1
                        assert isinstance(found, Reply) and found.rcode == NXDOMAIN
                        assert found.authority == (names._replies.soa(name.from_text(zone)),)
                        assert not (found.answer or found.additional) and found.flags == AA
    assert refuted > 3000
    assert all(denials for denials in given)


def change(chosen: random.Random, index: Index) -> None:
    """One object comes or goes, or a kind is listed anew."""
    space, own = chosen.choice(LABELS), chosen.choice(LABELS)
    found = chosen.choice([
        namespace(space), service(f"{own}.{space}", "10.0.0.1"), service(f"{own}.{space}"),
        slice_of(f"{own}-1.{space}", "10.0.0.1 web", of=own), pod(f"{own}.{space}", "10.0.0.1"),
        service(f"{own}.{space}", externalName="web.dev.svc.cluster.local"),
    ])  # fmt: skip
    happens = chosen.random()
    if happens < 0.6:
        put(index, found)
    elif happens < 0.9:
        index.apply(Delete(kind_of(found), found.namespace, found.name), 0.0)
    else:
        kind = kind_of(found)
        index.apply(Init(kind), 0.0)
        for number in range(chosen.randrange(3)):
            index.apply(InitApply(kind, found), float(number))
        index.apply(InitDone(kind), 0.0)
