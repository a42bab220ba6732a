"""Names of ServiceImports.  The real CoreDNS answers the same ones in tests/coredns/test_cluster_names.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from kdns import message, name
from kdns.cluster.decoding import from_manifest
from kdns.cluster.index import Index
from kdns.cluster.names import Asked, Names, parse
from kdns.cluster.objects import IMPORTS, KINDS, Delete, Object
from kdns.message import FOREVER, NXDOMAIN, SERVFAIL, Fact, Reply
from tests.indextest import (
    answer,
    fill,
    imported,
    kind_of,
    names_of,
    namespace,
    pod,
    put,
    relist,
    said,
    service,
    service_import,
    slice_of,
)

ALL = (*KINDS, *IMPORTS)
ZONES = tuple(map(name.from_text, ("cluster.local.", "clusterset.local.", "in-addr.arpa.")))
SET = (ZONES[1],)
Z = "clusterset.local."

WORLD = (
    namespace("dev"),
    namespace("empty"),
    service("web.dev", "10.96.0.1"),
    service("only-here.dev", "10.96.0.2"),
    slice_of("web-a.dev", "10.1.0.1", of="web"),
    service_import("web.dev", "10.112.0.1", ports=("http 80", "dns 53 UDP")),
    imported("web-east.dev", "10.9.0.1 w-0", "10.9.0.2", of="web", cluster="east", ports=("http 8080",)),
    service_import("dual.dev", "10.112.0.2", "fd00:112::2"),
    service_import("db.dev"),
    imported("db-east.dev", "10.9.1.1 db-0", "10.9.1.2 - db-pod", of="db", cluster="East"),
    imported("db-west.dev", "10.9.1.3 db-0", of="db", cluster="west", ports=("http 81", "admin 90")),
    imported("db-six.dev", "fd00:9::", of="db", cluster="west"),
    service_import("noports.dev", "10.112.0.3", ports=()),
    service_import("noready.dev"),
    service_import("bare.dev"),
    imported("bare-x.dev", "10.9.2.1", of="bare", cluster="c-1", ports=()),
    service_import("homeless.dev"),
    imported("homeless-x.dev", "10.9.3.1 o-0", of="homeless"),
    imported("nobody-x.dev", "10.9.4.1", of="nobody", cluster="east"),
    service_import("web.nons", "10.112.0.9"),
    pod("p.dev", "10.244.0.1"),
)


def set_names(index: Index, **options: Any) -> Names:
    return names_of(index, **{"zones": ZONES, "multicluster": SET, **options})


@pytest.fixture(scope="module")
def index() -> Index:
    return fill(Index(ALL, pod_names=True), *WORLD, kinds=ALL, now=7.0)


@pytest.fixture(scope="module")
def names(index: Index) -> Names:
    return set_names(index, pods="insecure")


@pytest.mark.parametrize(
    ("qname", "asked"),
    [
        ("s.ns.svc.", Asked(b"svc", b"ns", b"s")),
        ("e.s.ns.svc.", Asked(b"svc", b"ns", b"s", b"e")),
        ("e.c.s.ns.svc.", Asked(b"svc", b"ns", b"s", b"e", cluster=b"c")),
        ("_e.c.s.ns.svc.", Asked(b"svc", b"ns", b"s", b"", b"e", b"c")),
        ("http._tcp.s.ns.svc.", Asked(b"svc", b"ns", b"s", b"", b"http", b"tcp")),
        ("x.e.c.s.ns.svc.", None),
        ("z.pin._zone.s.ns.svc.", None),
    ],
)
def test_parse(qname: str, asked: Asked | None) -> None:
    assert parse(name.from_text(qname + Z), SET[0], multicluster=True, zonal=True) == asked


@pytest.mark.parametrize(
    ("qname", "type", "lines"),
    [
        # what has no Service in it is as in any other zone
        ("", "A", ["NODATA"]),
        ("svc.", "A", ["NODATA"]),
        ("dns-version.", "TXT", ['TXT "1.1.0"']),
        ("what.", "A", ["NXDOMAIN"]),
        ("dev.svc.", "A", ["NODATA"]),
        ("nons.svc.", "A", ["NXDOMAIN"]),
        ("10-244-0-9.dev.pod.", "A", ["A 10.244.0.9"]),
        # with IPs of the cluster set
        ("web.dev.svc.", "A", ["A 10.112.0.1"]),
        ("WEB.dev.SVC.", "A", ["A 10.112.0.1"]),
        ("web.dev.svc.", "AAAA", ["NODATA"]),
        ("web.dev.svc.", "TXT", ["NODATA"]),
        ("dual.dev.svc.", "AAAA", ["AAAA fd00:112::2"]),
        ("dual.dev.svc.", "SRV", [
            "SRV 0 50 80 dual.dev.svc.clusterset.local.", "+ A 10.112.0.2", "+ AAAA fd00:112::2",
        ]),
        ("_dns._udp.web.dev.svc.", "SRV", ["SRV 0 100 53 web.dev.svc.clusterset.local.", "+ A 10.112.0.1"]),
        ("_http._tcp.web.dev.svc.", "A", ["A 10.112.0.1"]),
        ("http._tcp.web.dev.svc.", "A", ["A 10.112.0.1"]),
        ("http.tcp.web.dev.svc.", "A", ["NXDOMAIN"]),
        ("_nope._tcp.web.dev.svc.", "A", ["NXDOMAIN"]),
        ("noports.dev.svc.", "A", ["NXDOMAIN"]),
        ("only-here.dev.svc.", "A", ["NXDOMAIN"]),
        ("web.nons.svc.", "A", ["NXDOMAIN"]),
        ("nobody.dev.svc.", "A", ["NXDOMAIN"]),
        # endpoints
        ("w-0.east.web.dev.svc.", "A", ["A 10.9.0.1"]),
        ("10-9-0-2.EAST.web.dev.svc.", "A", ["A 10.9.0.2"]),
        ("w-0.west.web.dev.svc.", "A", ["NXDOMAIN"]),
        ("w-0.web.dev.svc.", "A", ["NXDOMAIN"]),
        ("w-0.east.web.dev.svc.", "SRV", ["SRV 0 100 8080 w-0.east.web.dev.svc.clusterset.local.", "+ A 10.9.0.1"]),
        ("10-1-0-1.web.dev.svc.", "A", ["NXDOMAIN"]),
        # headless
        ("db.dev.svc.", "A", ["A 10.9.1.1", "A 10.9.1.2", "A 10.9.1.3"]),
        ("db.dev.svc.", "AAAA", ["AAAA fd00:9::"]),
        ("db-0.east.db.dev.svc.", "A", ["A 10.9.1.1"]),
        ("db-0.west.db.dev.svc.", "A", ["A 10.9.1.3"]),
        ("db-0.west.db.dev.svc.", "AAAA", ["NODATA"]),
        ("fd00-9--0.west.db.dev.svc.", "AAAA", ["AAAA fd00:9::"]),
        ("_admin._tcp.db.dev.svc.", "SRV", ["SRV 0 100 90 db-0.west.db.dev.svc.clusterset.local.", "+ A 10.9.1.3"]),
        ("_http._tcp.db.dev.svc.", "SRV", [
            "SRV 0 25 80 db-0.east.db.dev.svc.clusterset.local.",
            "SRV 0 25 80 10-9-1-2.east.db.dev.svc.clusterset.local.",
            "SRV 0 25 81 db-0.west.db.dev.svc.clusterset.local.",
            "SRV 0 25 80 fd00-9--0.west.db.dev.svc.clusterset.local.",
            "+ A 10.9.1.1", "+ A 10.9.1.2", "+ A 10.9.1.3", "+ AAAA fd00:9::",
        ]),
        ("noready.dev.svc.", "A", ["NXDOMAIN"]),
        ("bare.dev.svc.", "A", ["A 10.9.2.1"]),
        ("bare.dev.svc.", "SRV", ["NODATA"]),
        ("10-9-2-1.c-1.bare.dev.svc.", "A", ["A 10.9.2.1"]),
        # of which no cluster is known
        ("homeless.dev.svc.", "SRV", ["SRV 0 100 80 o-0.homeless.dev.svc.clusterset.local.", "+ A 10.9.3.1"]),
        ("o-0.homeless.dev.svc.", "A", ["A 10.9.3.1"]),
        ("o-0.east.homeless.dev.svc.", "A", ["NXDOMAIN"]),
    ],
)  # fmt: skip
def test_names(names: Names, qname: str, type: str, lines: list[str]) -> None:
    assert said(names, qname + Z, type) == lines


def test_the_own_cluster_is_not_mixed_in(names: Names) -> None:
    assert said(names, "web.dev.svc.cluster.local.") == ["A 10.96.0.1"]
    assert said(names, "db.dev.svc.cluster.local.") == ["NXDOMAIN"]
    assert said(names, "w-0.web.dev.svc.cluster.local.") == ["NXDOMAIN"]
    for address in ("10.112.0.1", "10.9.0.1"):
        assert said(names, name.to_text(name.reverse(name.pack_address(address))), "PTR") == ["NXDOMAIN"]


def test_options(index: Index) -> None:
    named = set_names(index, pod_names=True)
    assert said(named, "db-pod.east.db.dev.svc." + Z) == ["A 10.9.1.2"]
    assert said(named, "10-9-1-2.east.db.dev.svc." + Z) == ["NXDOMAIN"]
    ignoring = set_names(index, ignore_empty=True)
    assert said(ignoring, "web.dev.svc." + Z) == ["A 10.112.0.1"]
    assert said(ignoring, "dual.dev.svc." + Z) == ["NXDOMAIN"]
    assert said(set_names(index, namespaces=frozenset([b"\5empty"])), "web.dev.svc." + Z) == ["NXDOMAIN"]


def test_zones_below_one_of_the_set_are_of_the_set(index: Index) -> None:
    sub = name.from_text("sub.clusterset.local.")
    names = set_names(index, zones=(*ZONES, sub))
    assert said(names, "dual.dev.svc.sub." + Z) == ["A 10.112.0.2"]
    assert said(set_names(index, zones=(*ZONES, sub), multicluster=(sub,)), "dual.dev.svc." + Z) == ["NXDOMAIN"]


def test_what_is_read(names: Names) -> None:
    assert names.read(name.from_text("e.c.s.ns.svc." + Z)) == (Asked(b"svc", b"ns", b"s", b"e", cluster=b"c"), True)
    assert names.read(name.from_text("e.s.ns.svc.cluster.local.")) == (Asked(b"svc", b"ns", b"s", b"e"), False)
    assert names.read(name.from_text("a.b." + Z)) == (None, True)
    assert names.read(name.from_text("example.org.")) is None


@pytest.mark.parametrize(
    ("qname", "facts"),
    [
        ("web.dev.svc.", (b"imp/\3web\3dev", b"ns/\3dev")),
        ("gone.dev.svc.", (b"imp/\4gone\3dev", b"ns/\3dev")),
        ("db.dev.svc.", (b"imp/\2db\3dev", b"ns/\3dev", b"ime/\2db\3dev")),
        ("w-0.east.web.dev.svc.", (b"imp/\3web\3dev", b"ns/\3dev", b"ime/\3web\3dev")),
        ("noready.dev.svc.", (b"imp/\7noready\3dev", b"ns/\3dev", b"ime/\7noready\3dev")),
    ],
)
def test_answers_stand_on_facts(names: Names, qname: str, facts: tuple[bytes, ...]) -> None:
    found = answer(names, qname + Z)
    assert isinstance(found, Reply) and (found.lease.until, found.lease.facts) == (FOREVER, facts)


def test_ports_without_a_protocol_are_tcp() -> None:
    spec = {"type": "ClusterSetIP", "ips": ["10.112.0.1"], "ports": [{"name": "http", "port": 80}]}
    found = from_manifest("serviceimports", {"metadata": {"name": "s", "namespace": "dev"}, "spec": spec})
    bare = fill(Index(ALL), namespace("dev"), found, kinds=ALL)
    assert said(set_names(bare), "_http._tcp.s.dev.svc." + Z) == ["A 10.112.0.1"]


# --- what is not known -----------------------------------------------------------------------------------------------


def rcode(names: Names, qname: str) -> tuple[int, str]:
    found = answer(names, qname)
    assert isinstance(found, Reply)
    return found.rcode, found.ede[0][1] if found.ede else ""


def test_without_serviceimports_only_the_zones_of_the_set_suffer() -> None:
    names = set_names(fill(Index(ALL), *WORLD, kinds=KINDS))
    assert rcode(names, "web.dev.svc." + Z) == (SERVFAIL, "serviceimports not synced")
    assert rcode(names, "what." + Z) == (SERVFAIL, "serviceimports not synced")
    assert rcode(names, "dev.svc." + Z) == (0, "")
    assert said(names, "web.dev.svc.cluster.local.") == ["A 10.96.0.1"]
    assert rcode(names, "gone.dev.svc.cluster.local.") == (NXDOMAIN, "")


def test_what_is_known_of_imports_is_told() -> None:
    names = set_names(fill(Index(ALL), *WORLD, kinds=("namespaces", "serviceimports")))
    assert said(names, "web.dev.svc." + Z) == ["A 10.112.0.1"]
    assert rcode(names, "gone.dev.svc." + Z) == (NXDOMAIN, "")
    assert rcode(names, "db.dev.svc." + Z) == (SERVFAIL, "importedslices not synced")
    assert rcode(names, "w-0.east.web.dev.svc." + Z) == (SERVFAIL, "importedslices not synced")
    assert rcode(names, "gone.dev.svc.cluster.local.") == (SERVFAIL, "services not synced")


# --- serials, and what is kept ---------------------------------------------------------------------------------------


def serial(names: Names, zone: str) -> int:
    found = answer(names, zone, "SOA")
    assert isinstance(found, Reply)
    return int.from_bytes(found.answer[0].rdata[-20:-16], "big")


def test_each_world_has_its_serial() -> None:
    index = fill(Index(ALL), *WORLD, kinds=ALL, now=7.0)
    names = set_names(index)
    put(index, service("new.dev", "10.96.0.9"), 8.0)
    put(index, service_import("new.dev", "10.112.0.10"), 9.0)
    assert (serial(names, "cluster.local."), serial(names, Z)) == (8, 9)
    put(index, imported("new-x.dev", "10.9.8.1", of="new"), 10.0)
    assert (serial(names, "cluster.local."), serial(names, Z)) == (8, 10)
    put(index, namespace("later"), 11.0)
    assert (serial(names, "cluster.local."), serial(names, Z)) == (11, 11)


def test_without_multicluster_nothing_is_kept() -> None:
    index = fill(Index(KINDS), *WORLD)
    assert set(index.counts()) == set(KINDS)
    assert not index.imports and not len(index.below_import)
    with pytest.raises(KeyError):
        put(index, service_import("web.dev", "10.112.0.1"))


@pytest.mark.parametrize(
    ("before", "after", "touched"),
    [
        (None, service_import("web.dev", "10.112.0.1"), {b"imp/\3web\3dev"}),
        (service_import("web.dev", "10.112.0.1"), service_import("web.dev", "10.112.0.1"), set()),
        (service_import("web.dev", "10.112.0.1"), service_import("web.dev"), {b"imp/\3web\3dev"}),
        (None, imported("a.dev", "10.9.0.1", of="web", cluster="east"), {b"ime/\3web\3dev"}),
        (
            imported("a.dev", "10.9.0.1", of="web", cluster="east"),
            imported("a.dev", "10.9.0.1", of="web", cluster="west"),
            {b"ime/\3web\3dev"},
        ),
        (
            imported("a.dev", "10.9.0.1", of="web", cluster="east"),
            imported("a.dev", "10.9.0.1", of="db", cluster="east"),
            {b"ime/\3web\3dev", b"ime/\2db\3dev"},
        ),
    ],
)
def test_facts(before: Object | None, after: Object, touched: set[Fact]) -> None:
    index = fill(Index(ALL), kinds=ALL)
    if before is not None:
        put(index, before)
    assert put(index, after) == touched


# --- what is proven --------------------------------------------------------------------------------------------------


def apex_of(names: Names, qname: str) -> str | None:
    found = answer(names, qname)
    assert isinstance(found, Reply)
    return name.to_text(found.lease.denial.apex) if found.lease.denial is not None else None


@pytest.mark.parametrize(
    ("qname", "apex"),
    [
        ("what.", Z),
        ("web.dev.what.", Z),
        ("nons.svc.", "svc." + Z),
        ("only-here.dev.svc.", "svc." + Z),
        ("x.y.only-here.dev.svc.", "svc." + Z),
        ("u.v.w.x.y.only-here.dev.svc.", "svc." + Z),
        ("x.y.nons.pod.", "pod." + Z),
        ("w-9.east.web.dev.svc.", None),
        ("u.v.w.x.y.web.dev.svc.", None),
        ("nobody.dev.svc.", None),
        ("noready.dev.svc.", None),
    ],
)
def test_what_is_proven(index: Index, qname: str, apex: str | None) -> None:
    names = set_names(index, pods="insecure")
    names.prove(())
    assert apex_of(names, qname + Z) == apex


def test_a_service_here_does_not_keep_a_name_of_the_set_alive_nor_the_reverse(index: Index) -> None:
    names = set_names(index)
    names.prove(())
    assert apex_of(names, "only-here.dev.svc." + Z) == "svc." + Z
    assert apex_of(names, "db.dev.svc.cluster.local.") == "svc.cluster.local."


SPACES = ("dev", "prod")
OWN = ("web", "db")
ADDRESSES = ("10.9.0.1", "10.9.0.2", "10.9.0.3")
QUESTIONS = [
    (f"{front}{own}.{space}.svc.{Z}", type)
    for space in (*SPACES, "none")
    for own in (*OWN, "gone")
    for front in ("", "_http._tcp.", "h.east.", "10-9-0-1.west.", "h.", "10-9-0-2.", "a.b.c.d.")
    for type in ("A", "SRV")
] + [(f"{space}.svc.{Z}", "A") for space in (*SPACES, "none")]


def random_event(pick: Callable[[Any], Any], odds: Callable[[], float]) -> tuple[str, str, str, Object | None]:
    """(kind, namespace, name, the object or None when it goes)"""
    space, own = pick(SPACES), pick(OWN)
    kind = pick(("namespaces", *IMPORTS, *IMPORTS))
    if kind == "namespaces":
        return kind, "", space, None if odds() < 0.3 else namespace(space)
    port = (pick(("http 80", "other 81")),)
    if kind == "serviceimports":
        found = service_import(f"{own}.{space}", *pick(((), ("10.112.0.1",))), ports=port)
        return kind, space, own, None if odds() < 0.3 else found
    part = pick(("a", "b", "c"))
    endpoints = [f"{address} {pick(('-', 'h'))}" for address in ADDRESSES if odds() < 0.4]
    slice = imported(f"{part}.{space}", *endpoints, of=own, cluster=pick(("east", "west", "")), ports=port)
    return kind, space, part, None if odds() < 0.3 else slice


@pytest.mark.parametrize("seed", range(20))
def test_what_is_repeated_and_denied_stays_true(seed: int) -> None:
    """Answers that stand on untouched facts, and what is denied, against an index that is filled anew each time."""
    chosen = random.Random(seed)
    index = fill(Index(ALL), kinds=ALL)
    names = set_names(index)
    names.prove(())
    state: dict[str, dict[tuple[str, str], Object]] = {kind: {} for kind in ALL}
    cached: dict[tuple[str, str], tuple[list[str], tuple[Fact, ...]]] = {}
    proofs = set()
    for _ in range(150):
        kind, space, own, found = random_event(chosen.choice, chosen.random)
        if found is None:
            state[kind].pop((space, own), None)
            facts = index.apply(Delete(kind, space.encode(), own.encode()), 1)
        else:
            state[kind][space, own] = found
            facts = put(index, found)
        if chosen.random() < 0.1:
            facts |= relist(index, kind, state[kind].values())
        cached = {question: said for question, said in cached.items() if facts.isdisjoint(said[1])}
        truth = set_names(fill(Index(ALL), *[one for every in state.values() for one in every.values()], kinds=ALL))
        for qname, type in chosen.sample(QUESTIONS, 25):
            expected = sorted(said(truth, qname, type))
            assert sorted(said(names, qname, type)) == expected, f"{qname} {type}"
            if (qname, type) in cached:
                assert cached[qname, type][0] == expected, f"{qname} {type} was not dropped"
            reply = answer(names, qname, type)
            assert isinstance(reply, Reply)
            cached[qname, type] = expected, reply.lease.facts
            if reply.lease.denial is not None:
                proofs.add(reply.lease.denial)
            asked = name.from_text(qname)
            for proof in proofs:
                if asked.endswith(proof.apex) and proof.existing.denies(asked[: -len(proof.apex)]):
                    assert expected == ["NXDOMAIN"], f"{qname} is denied"
    assert len(proofs) >= 1


def test_types_of_the_questions_are_known() -> None:
    assert {type for _, type in QUESTIONS} <= set(message.TYPES.values())
    assert {kind_of(found) for found in WORLD} == set(ALL)
