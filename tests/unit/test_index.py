"""The index: what each event touches, whole lists, and random histories against a little model of its own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from kdns import message, name
from kdns.cluster import index as index_module
from kdns.cluster.index import Index
from kdns.cluster.names import Chase, Names
from kdns.cluster.objects import IMPORTS, KINDS, Apply, Delete, EndpointSlice, Init, InitApply, InitDone, Object
from kdns.cluster.shelves import Imported, Slice, Zoned, entry_key
from kdns.message import Fact
from kdns.name import pack_address
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
    slice_of,
)

ALL_KINDS = (*KINDS, *IMPORTS)
WEB = b"\3web\3dev"
IP = b"ip/" + pack_address("10.1.0.1")


def new() -> Index:
    return Index(KINDS, pod_names=True, labels=True)


def facts_of(*texts: str) -> set[Fact]:
    """``svc/web.dev``, ``eps/web.dev``, ``ns/dev``, ``ip/10.0.0.1``, ``pod/10.0.0.1``."""
    found = set()
    for text in texts:
        kind, _, rest = text.partition("/")
        if kind in ("ip", "pod"):
            found.add(f"{kind}/".encode() + pack_address(rest))
        else:
            found.add(f"{kind}/".encode() + name.from_labels(rest.encode().split(b"."), b""))
    return found


# --- what single events touch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "touched"),
    [
        (None, namespace("dev"), facts_of("ns/dev")),
        (namespace("dev"), namespace("dev"), set()),
        (None, service("web.dev", "10.0.0.1"), facts_of("svc/web.dev", "ip/10.0.0.1")),
        (service("web.dev", "10.0.0.1"), service("web.dev", "10.0.0.1"), set()),
        (service("web.dev", "10.0.0.1"), service("web.dev", "10.0.0.1", selector={"a": "b"}), set()),
        (service("web.dev", "10.0.0.1"), service("web.dev", "10.0.0.1", ports=("x 1",)), facts_of("svc/web.dev")),
        (
            service("web.dev", "10.0.0.1", "fd00::1"),
            service("web.dev", "10.0.0.2", "fd00::1"),
            facts_of("svc/web.dev", "ip/10.0.0.1", "ip/10.0.0.2"),
        ),
        (service("web.dev"), service("web.dev", externalName="a.example"), facts_of("svc/web.dev")),
        (None, slice_of("a.dev", "10.1.0.1", of="web"), facts_of("eps/web.dev", "ip/10.1.0.1")),
        (None, slice_of("a.dev", of="web"), facts_of("eps/web.dev")),
        (None, slice_of("a.dev", "10.1.0.1"), set()),
        (slice_of("a.dev", "10.1.0.1", of="web"), slice_of("a.dev", "10.1.0.1", of="web", changed="2026"), set()),
        (
            slice_of("a.dev", "10.1.0.1", "10.1.0.2 h", of="web"),
            slice_of("a.dev", "10.1.0.1", "10.1.0.2 g", of="web"),
            facts_of("eps/web.dev", "ip/10.1.0.2"),
        ),
        (
            slice_of("a.dev", "10.1.0.1", of="web"),
            slice_of("a.dev", "10.1.0.1", of="web", ports=("x 1",)),
            facts_of("eps/web.dev"),
        ),
        (
            slice_of("a.dev", "10.1.0.1", of="web"),
            slice_of("a.dev", "10.1.0.1", of="other"),
            facts_of("eps/web.dev", "eps/other.dev", "ip/10.1.0.1"),
        ),
        (
            slice_of("a.dev", "10.1.0.1", of="web"),
            slice_of("a.dev", "10.1.0.1"),
            facts_of("eps/web.dev", "ip/10.1.0.1"),
        ),
        (None, pod("p.dev", "10.2.0.1", "fd00::1"), facts_of("pod/10.2.0.1", "pod/fd00::1")),
        (pod("p.dev", "10.2.0.1"), pod("p.dev", "10.2.0.1", labels={"a": "b"}), set()),
        (pod("p.dev", "10.2.0.1"), pod("p.dev"), facts_of("pod/10.2.0.1")),
        (pod("p.dev"), pod("p.dev", "10.2.0.1"), facts_of("pod/10.2.0.1")),
        (None, pod("p.dev", "10.2.0.1", terminating=True), set()),
        (pod("p.dev", "10.2.0.1"), pod("p.dev", "10.2.0.1", terminating=True), set()),
        (pod("p.dev", "10.2.0.1"), pod("p.dev", terminating=True), set()),
    ],
)
def test_facts(before: Object | None, after: Object, touched: set[Fact]) -> None:
    index = new()
    if before is not None:
        put(index, before)
    assert put(index, after, now=7) == touched
    assert put(index, after) == set()
    assert index.serial == (7 if touched else 0)


def test_the_serial_does_not_go_back_with_the_clock() -> None:
    index = new()
    put(index, service("web.dev", "10.0.0.1"), now=90_000)
    put(index, service("web.dev", "10.0.0.2"), now=3_600)
    assert index.serial == 90_000
    put(index, service("web.dev", "10.0.0.3"), now=90_001)
    assert index.serial == 90_001


def test_what_goes_touches_what_it_touched_when_it_came() -> None:
    for found in (
        namespace("dev"),
        service("web.dev", "10.0.0.1"),
        slice_of("a.dev", "10.1.0.1 h p", of="web"),
        pod("p.dev", "10.2.0.1"),
    ):
        index = new()
        came = put(index, found)
        gone = Delete(kind_of(found), found.namespace, found.name)
        assert index.apply(gone, 1) == came
        assert index.apply(gone, 1) == set()
        assert index.entries == {} and index.counts() == dict.fromkeys(KINDS, 0)
        assert not index.by_endpoint(pack_address("10.1.0.1")) and not index.pods(pack_address("10.2.0.1"))


def test_what_was_never_there_can_be_deleted() -> None:
    for kind in KINDS:
        for own in (b"x", b"x" * 300, b"a/b"):
            assert new().apply(Delete(kind, own, own), 1) == set()


def test_keys() -> None:
    assert entry_key(b"web", b"dev") == WEB
    assert entry_key(b"", b"dev") == entry_key(b"web", b"d" * 64) == b""


def test_options_decide_what_is_kept() -> None:
    index = Index(KINDS)
    put(index, slice_of("a.dev", "10.1.0.1 - p", of="web"))
    assert put(index, slice_of("a.dev", "10.1.0.1 - q", of="web")) == set()
    put(index, pod("p.dev", "10.2.0.1", labels={"a": "b"}))
    (known,) = index.pods(pack_address("10.2.0.1"))
    assert (known.labels, known.namespace, known.name) == (b"", b"dev", b"p")
    rich = new()
    put(rich, pod("p.dev", "10.2.0.1", labels={"a": "b"}))
    assert rich.pods(pack_address("10.2.0.1"))[0].labels == b'{"a":"b"}'


def test_zones_of_endpoints_are_kept_if_they_are_wanted() -> None:
    east, west = (slice_of("a.dev", f"10.1.0.1 - - {zone}", "10.1.0.2", of="web") for zone in ("East", "west"))
    index = Index(KINDS)
    put(index, east)
    assert type(index.entries[WEB].slices[0]) is Slice and put(index, west) == set()
    zonal = Index(KINDS, zones=True)
    put(zonal, east)
    (part,) = zonal.entries[WEB].slices
    assert isinstance(part, Zoned)
    assert part.within(b"east") == [(pack_address("10.1.0.1"), b"", b"")] and part.within(b"west") == []
    assert put(zonal, west) == {b"eps/" + WEB} and put(zonal, west) == set()
    put(zonal, slice_of("a.dev", "10.1.0.1", of="web"))
    (part,) = zonal.entries[WEB].slices
    assert isinstance(part, Zoned) and part.within(b"west") == []


def test_an_address_shared_by_many() -> None:
    index = new()
    address = pack_address("192.0.2.1")
    for own in ("a", "b", "c"):
        put(index, pod(f"{own}.dev", "192.0.2.1"))
    assert [known.name for known in index.pods(address)] == [b"a", b"b", b"c"]
    index.apply(Delete("pods", b"dev", b"b"), 1)
    assert [known.name for known in index.pods(address)] == [b"a", b"c"]
    index.apply(Delete("pods", b"dev", b"a"), 1)
    assert [known.name for known in index.pods(address)] == [b"c"]
    index.apply(Delete("pods", b"dev", b"c"), 1)
    assert index.pods(address) == ()


def test_addresses_are_found_at_their_boundaries_only() -> None:
    index = new()
    put(index, slice_of("a.dev", "10.1.10.1", "10.1.10.2", of="web"))
    (part,) = index.entries[WEB].slices
    assert part.has(pack_address("10.1.10.2")) and not part.has(bytes([1, 10, 1, 10])) and not part.has(b"")


def test_a_slice_before_its_service() -> None:
    index = new()
    put(index, slice_of("a.dev", "10.1.0.1", of="web"))
    assert index.entries[WEB].service is None and index.entries[WEB].ready
    put(index, service("web.dev"))
    assert said(names_of(fill(index, kinds=())), "web.dev.svc.cluster.local.") == ["SERVFAIL"]
    index.apply(Delete("services", b"dev", b"web"), 1)
    assert index.entries[WEB].service is None
    index.apply(Delete("endpointslices", b"dev", b"a"), 1)
    assert WEB not in index.entries


# --- whole lists -----------------------------------------------------------------------------------------------------


def test_kinds_are_known_when_their_first_list_is_complete() -> None:
    index = Index(("services", "pods"))
    assert index.synced("namespaces") and not index.synced("services")
    index.apply(Init("services"), 1)
    index.apply(InitApply("services", service("web.dev", "10.0.0.1")), 1)
    assert index.waiting == ("services", "pods")
    index.apply(InitDone("services"), 1)
    assert index.waiting == ("pods",)
    relist(index, "services", [])
    assert index.synced("services")


def test_events_of_a_list_that_never_began_are_a_bug() -> None:
    for event in (InitApply("pods", pod("p.dev")), InitDone("pods")):
        with pytest.raises(ValueError, match="without Init"):
            new().apply(event, 1)


def test_an_equal_list_touches_nothing() -> None:
    objects = [service("web.dev", "10.0.0.1"), service("api.dev")]
    index = fill(new(), *objects)
    assert relist(index, "services", reversed(objects), now=9) == set()
    assert index.serial == 0


def test_a_list_adds_at_once_and_changes_at_its_end() -> None:
    index = fill(new(), service("old.dev", "10.0.0.1"), service("web.dev", "10.0.0.2"))
    index.apply(Init("services"), 1)
    assert index.apply(InitApply("services", service("new.dev")), 1) == facts_of("svc/new.dev")
    assert index.apply(InitApply("services", service("web.dev", "10.0.0.3")), 1) == set()
    assert index.by_cluster_ip(pack_address("10.0.0.2"))
    assert index.apply(InitDone("services"), 1) == facts_of(
        "svc/web.dev", "ip/10.0.0.2", "ip/10.0.0.3", "svc/old.dev", "ip/10.0.0.1"
    )
    assert not index.by_cluster_ip(pack_address("10.0.0.2"))


def test_a_list_that_breaks_off_takes_nothing_away() -> None:
    index = fill(new(), service("web.dev", "10.0.0.1"))
    index.apply(Init("services"), 1)
    index.apply(InitApply("services", service("new.dev")), 1)
    index.apply(InitApply("services", service("web.dev", "10.0.0.9")), 1)
    index.apply(Init("services"), 1)
    assert set(index.entries) == {WEB, b"\3new\3dev"}
    assert index.apply(InitDone("services"), 1) == facts_of("svc/web.dev", "ip/10.0.0.1", "svc/new.dev")


def test_events_within_a_list_count() -> None:
    index = fill(new(), service("web.dev", "10.0.0.1"), service("api.dev", "10.0.0.2"))
    index.apply(Init("services"), 1)
    index.apply(InitApply("services", service("web.dev", "10.0.0.9")), 1)
    index.apply(InitApply("services", service("api.dev", "10.0.0.2")), 1)
    put(index, service("web.dev", "10.0.0.3"))
    put(index, service("late.dev", "10.0.0.4"))
    index.apply(Delete("services", b"dev", b"api"), 1)
    index.apply(InitDone("services"), 1)
    assert set(index.entries) == {WEB, b"\4late\3dev"}
    assert index.by_cluster_ip(pack_address("10.0.0.3"))


def test_an_endpoint_that_moved_between_slices_does_not_vanish_during_a_list() -> None:
    index = fill(
        new(),
        namespace("dev"),
        service("web.dev"),
        slice_of("a.dev", "10.1.0.1", "10.1.0.2", of="web"),
        slice_of("b.dev", "10.1.0.3", of="web"),
    )
    names = names_of(index)
    steps = [
        Init("endpointslices"),
        InitApply("endpointslices", slice_of("a.dev", "10.1.0.2", of="web")),
        InitApply("endpointslices", slice_of("b.dev", "10.1.0.3", "10.1.0.1", of="web")),
        InitDone("endpointslices"),
    ]
    for step in steps:
        index.apply(step, 1)
        assert sorted(said(names, "web.dev.svc.cluster.local.")) == ["A 10.1.0.1", "A 10.1.0.2", "A 10.1.0.3"]
        assert said(names, "1.0.1.10.in-addr.arpa.", "PTR") == ["PTR 10-1-0-1.web.dev.svc.cluster.local."]


def test_a_terminating_pod_in_a_list_stays_if_it_is_known() -> None:
    index = fill(new(), pod("p.dev", "10.2.0.1"))
    gone = [pod("p.dev", "10.2.0.1", terminating=True), pod("q.dev", "10.2.0.2", terminating=True)]
    assert relist(index, "pods", gone) == set()
    assert index.pods(pack_address("10.2.0.1")) and not index.pods(pack_address("10.2.0.2"))
    assert relist(index, "pods", []) == facts_of("pod/10.2.0.1")


# --- many changes at the end of a list -------------------------------------------------------------------------------


def many(prefix: str, third: int) -> list[Object]:
    return [slice_of(f"{prefix}{n}.dev", f"10.{third}.{n // 250}.{n % 250 + 1}", of=f"s{n}") for n in range(300)]


def begin(index: Index, kind: str, objects: Iterable[Object]) -> None:
    """A list up to its end."""
    index.apply(Init(kind), 1)
    for found in objects:
        index.apply(InitApply(kind, found), 1)


def test_many_changes_take_force_in_steps_gains_first() -> None:
    index = fill(new(), *many("x", 1))
    begin(index, "endpointslices", many("x", 2))
    old, young = pack_address("10.1.0.1"), pack_address("10.2.0.1")
    entry = index.entries[b"\2s0\3dev"]
    seen: list[tuple[bytes, ...]] = []
    steps = 0
    facts: set[Fact] = set()
    for touched in index.finish("endpointslices", 7):
        steps += 1
        assert len(touched) <= 4 * index_module.STEP
        facts |= touched
        now = tuple(sorted(entry.slices[0].each()))
        if now not in seen:
            seen.append(now)
    assert seen == [(old,), (old, young), (young,)]
    assert steps >= 6 and index.serial == 7
    assert facts == relist(fill(new(), *many("x", 1)), "endpointslices", many("x", 2)), "the same as all at once"
    assert relist(index, "endpointslices", many("x", 2)) == set()


def test_few_changes_take_force_together() -> None:
    index = fill(new(), pod("p.dev", "10.2.0.1"), pod("q.dev", "10.2.0.2"))
    begin(index, "pods", [pod("p.dev", "10.2.0.3")])
    touched = [facts for facts in index.finish("pods", 1) if facts]
    assert touched == [facts_of("pod/10.2.0.1", "pod/10.2.0.2", "pod/10.2.0.3")]


@pytest.mark.parametrize("ports", [("http 80",), ("other 81",)])
def test_endpoints_that_move_out_of_slices_that_go_never_vanish(ports: tuple[str, ...]) -> None:
    text = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(300)]
    staying = [slice_of(f"y{n}.dev", f"10.2.{n // 250}.{n % 250 + 1}", of=f"s{n}") for n in range(300)]
    index = fill(new(), *many("x", 1), *staying)
    moved = [
        slice_of(f"y{n}.dev", f"10.2.{n // 250}.{n % 250 + 1}", ip, of=f"s{n}", ports=ports)
        for n, ip in enumerate(text)
    ]
    begin(index, "endpointslices", moved)
    for _ in index.finish("endpointslices", 1):
        for n, ip in enumerate(text):
            parts = index.entries[entry_key(b"s%d" % n, b"dev")].slices
            assert any(part.has(pack_address(ip)) for part in parts) and index.by_endpoint(pack_address(ip))
    assert index.counts()["endpointslices"] == 300
    assert relist(index, "endpointslices", moved) == set()


def test_endpoints_that_move_between_slices_never_vanish_from_their_topology_zone() -> None:
    """Half of the slices take over the endpoints of the other half, some of them before, some after they are lost."""
    index = Index(KINDS, zones=True)
    text = [f"10.1.{n // 250}.{n % 250 + 1} h{n} - east" for n in range(600)]
    fill(index, *(slice_of(f"x{n:03}.dev", text[n], of=f"s{n // 2}") for n in range(600)))
    turned = []
    for n in range(0, 600, 2):  # the first named twice, as an API object may
        turned.append(slice_of(f"x{n:03}.dev", "10.9.0.1 - - west", "10.9.0.1 - - west", text[n + 1], of=f"s{n // 2}"))
        turned.append(slice_of(f"x{n + 1:03}.dev", text[n], of=f"s{n // 2}"))
    begin(index, "endpointslices", turned)
    for _ in index.finish("endpointslices", 1):
        for n in range(300):
            parts = [part for part in index.entries[entry_key(b"s%d" % n, b"dev")].slices if isinstance(part, Zoned)]
            east = {address for part in parts for address, _, _ in part.within(b"east")}
            assert east == {pack_address(one.split()[0]) for one in text[2 * n : 2 * n + 2]}
    assert relist(index, "endpointslices", turned) == set()


def test_slices_that_change_their_cluster_change_in_one_step() -> None:
    index = Index(ALL_KINDS)
    before, after = (
        [imported(f"x{n}.dev", f"10.{net}.0.{n + 1}", of="db", cluster=cluster) for n in range(120)]
        for net, cluster in ((1, "east"), (2, "west"))
    )
    fill(index, *before, kinds=ALL_KINDS)
    begin(index, "importedslices", after)
    for _ in index.finish("importedslices", 1):
        for part in index.imports[entry_key(b"db", b"dev")].slices:
            assert isinstance(part, Imported)
            assert {address[1] for address in part.each()} == {1 if part.cluster == b"east" else 2}


def test_pods_that_swap_their_addresses_in_steps() -> None:
    text = [f"10.2.{n // 250}.{n % 250 + 1}" for n in range(300)]
    index = fill(new(), *(pod(f"p{n}.dev", ip) for n, ip in enumerate(text)))
    begin(index, "pods", [pod(f"p{n}.dev", ip) for n, ip in enumerate(reversed(text))])
    for _ in index.finish("pods", 1):
        assert all(index.pods(pack_address(ip)) for ip in text)
    assert [found.name for found in index.pods(pack_address(text[0]))] == [b"p299"]


def test_slices_that_cannot_be_both_change_in_one_step() -> None:
    index = fill(new(), *many("x", 1))
    swapped = [
        slice_of(f"x{n}.dev", f"10.1.{n // 250}.{n % 250 + 1}", of=f"s{n}", ports=("other 81",)) for n in range(300)
    ]
    begin(index, "endpointslices", swapped)
    assert sum(bool(facts) for facts in index.finish("endpointslices", 1)) == 1
    assert relist(index, "endpointslices", swapped) == set()


def test_events_between_the_steps_count() -> None:
    """Nobody's list may undo what was heard after it."""
    index = fill(new(), *(pod(f"p{n}.dev", "10.2.0.1") for n in range(400)))
    begin(index, "pods", [pod(f"p{n}.dev", "10.2.0.2") for n in range(300)])
    steps = index.finish("pods", 1)
    next(facts for facts in steps if facts)
    for text, address in (("p0.dev", "10.2.0.3"), ("p299.dev", "10.2.0.4"), ("p350.dev", "10.2.0.5")):
        put(index, pod(text, address))
    index.apply(Delete("pods", b"dev", b"p1"), 1)
    for _ in steps:
        pass
    assert [found.name for found in index.pods(pack_address("10.2.0.3"))] == [b"p0"]
    assert [found.name for found in index.pods(pack_address("10.2.0.4"))] == [b"p299"]
    assert [found.name for found in index.pods(pack_address("10.2.0.5"))] == [b"p350"]
    assert len(index.pods(pack_address("10.2.0.2"))) == 297 and not index.pods(pack_address("10.2.0.1"))
    assert index.counts()["pods"] == 300


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_list_that_begins_between_the_steps_takes_over(after: int) -> None:
    wanted = [pod(f"p{n}.dev", "10.2.0.2") for n in range(300)]
    index = fill(new(), *(pod(f"p{n}.dev", "10.2.0.1") for n in range(400)))
    begin(index, "pods", wanted)
    steps = index.finish("pods", 1)
    for _ in range(after):
        next(steps)
    begin(index, "pods", wanted)
    assert not any(steps), "the old list changes nothing any more"
    index.apply(InitDone("pods"), 1)
    assert index.counts()["pods"] == 300 == len(index.pods(pack_address("10.2.0.2")))
    assert not index.pods(pack_address("10.2.0.1"))


def test_the_end_of_a_list_that_never_began_is_a_bug_in_steps_too() -> None:
    with pytest.raises(ValueError, match="without Init"):
        next(new().finish("pods", 1))


# --- random histories against a model --------------------------------------------------------------------------------

Spec = dict[str, Any]
State = dict[str, dict[tuple[str, str], Spec]]
Said = tuple[str, frozenset[str]]

SPACES, SERVICES, SLICES, PODS = ("a", "b"), ("s", "t"), ("x", "y", "z"), ("p", "q")
ADDRESSES = ("10.1.0.1", "10.1.0.2", "10.1.0.3")
SIX = ("fd00::1", "fd00::")
CLUSTER_IPS = ("10.9.0.1", "10.9.0.2", "fd99::1")
HOSTS = ("", "", "h")


def fact_free(text: str) -> str:
    return text.replace(".", "-").replace(":", "-") + ("0" if text.endswith(":") else "")


class Model:
    """The specification once more, as simply as it can be said, over plain dictionaries of text."""

    def __init__(self) -> None:
        self.state: State = {kind: {} for kind in KINDS}

    def endpoints(self, space: str, of: str) -> Iterator[tuple[str, str, str]]:
        """(address, label, port name) of the ready endpoints of a Service."""
        for (at, _), spec in self.state["endpointslices"].items():
            if at == space and spec["of"] == of:
                for address, host, own in spec["endpoints"]:
                    yield address, host or own or fact_free(address), spec["port"]

    def says(self, qname: str, type: str) -> Said:
        labels = qname.removesuffix(".cluster.local.").split(".")
        if qname.endswith("arpa."):
            return self.pointers(qname)
        space, kind = labels[-2], labels[-1]
        if ("", space) not in self.state["namespaces"]:
            return "NXDOMAIN", frozenset()
        if kind == "pod":
            text = labels[0].replace("-", "." if labels[0].count("-") == 3 else ":")
            found = [spec for (at, _), spec in self.state["pods"].items() if at == space and text in spec["addresses"]]
            return self.records(type, [text] if found else None)
        if len(labels) == 2:
            return "NODATA", frozenset()
        spec = self.state["services"].get((space, labels[-3]))
        if spec is None:
            return "NXDOMAIN", frozenset()
        return self.service(labels, spec, type)

    def service(self, labels: list[str], spec: Spec, type: str) -> Said:
        *front, own, space, _ = labels
        if "external" in spec:
            if front:
                return "NXDOMAIN", frozenset()
            if type not in ("A", "AAAA"):
                return "NODATA", frozenset()
            return "CHASE", frozenset([spec["external"]])
        endpoints = list(self.endpoints(space, own))
        base = f"{own}.{space}.svc.cluster.local."
        found = [(ip, base, spec["port"]) for ip in spec.get("ips", ())]
        if not spec.get("ips") or len(front) == 1:
            found = [(ip, f"{label}.{base}", port) for ip, label, port in endpoints]
            if len(front) == 1:
                found = [each for each in found if each[1] == f"{front[0]}.{base}"]
        if len(front) == 2:
            found = [each for each in found if each[2] == front[0].removeprefix("_")]
        if not found:
            return "NXDOMAIN", frozenset()
        if type != "SRV":
            return self.records(type, [ip for ip, _, _ in found])
        weight = max(1, 100 // len(found))
        records = {f"SRV 0 {weight} 80 {target}" for _, target, _ in found}
        return "RECORDS", frozenset(records | {"+ " + next(iter(self.records_of(ip))) for ip, _, _ in found})

    @staticmethod
    def records_of(ip: str) -> set[str]:
        return {f"{'AAAA' if ':' in ip else 'A'} {ip}"}

    def records(self, type: str, ips: list[str] | None) -> Said:
        if ips is None:
            return "NXDOMAIN", frozenset()
        found = {f"{type} {ip}" for ip in ips if (":" in ip) == (type == "AAAA")} if type in ("A", "AAAA") else set()
        return ("RECORDS" if found else "NODATA"), frozenset(found)

    def pointers(self, qname: str) -> Said:
        packed = name.reverse_address(name.from_text(qname))
        assert packed is not None
        address = name.address_text(packed)
        owners = [key for key, spec in self.state["services"].items() if address in spec.get("ips", ())]
        found = {f"PTR {own}.{space}.svc.cluster.local." for space, own in owners}
        if not found:
            for space in SPACES:
                for own in SERVICES:
                    for ip, label, _ in self.endpoints(space, own):
                        if ip == address:
                            found.add(f"PTR {label}.{own}.{space}.svc.cluster.local.")
        return ("RECORDS" if found else "NXDOMAIN"), frozenset(found)


def questions() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for space in SPACES:
        found.append((f"{space}.svc.cluster.local.", "A"))
        for own in SERVICES:
            base = f"{own}.{space}.svc.cluster.local."
            found += [(base, type) for type in ("A", "AAAA", "SRV", "TXT")]
            found += [(f"_http._tcp.{base}", type) for type in ("A", "SRV")]
            labels = ["h", "p", "q", *map(fact_free, (*ADDRESSES, *SIX))]
            found += [(f"{label}.{base}", type) for label in labels for type in ("A", "AAAA")]
        found += [(f"{fact_free(ip)}.{space}.pod.cluster.local.", "A") for ip in ADDRESSES]
        found.append((f"fd00--1.{space}.pod.cluster.local.", "AAAA"))
    found += [(name.to_text(name.reverse(pack_address(ip))), "PTR") for ip in (*ADDRESSES, *SIX, *CLUSTER_IPS)]
    return found


QUESTIONS = questions()
NAMES_OF_SERVICES = [(qname, type) for qname, type in QUESTIONS if qname[0] in "st" and type in ("A", "AAAA")]


def heard(names: Names, qname: str, type: str) -> tuple[Said, tuple[Fact, ...]]:
    """What the code under test says, in the words of the model, and the facts that it stands on."""
    found = answer(names, qname, type)
    assert found is not None
    if isinstance(found, Chase):
        return ("CHASE", frozenset([name.to_text(found.target)])), found.lease.facts
    lines = said(names, qname, type)
    if not found.answer:
        return (lines[0], frozenset()), found.lease.facts
    for section in (found.answer, found.additional):
        assert len({(r.owner, r.type, r.rdata) for r in section}) == len(section), f"{qname} {type}: a record twice"
    return ("RECORDS", frozenset(lines)), found.lease.facts


class History:
    """One random history: objects come, change, move and go; events reach the index kind by kind."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.truth: State = {kind: {} for kind in KINDS}
        self.pending: dict[str, list[tuple[tuple[str, str], Spec | None]]] = {kind: [] for kind in KINDS}
        self.model = Model()
        self.index = new()
        self.names = names_of(self.index, pods="verified", pod_names=True)
        self.cached: dict[tuple[str, str], tuple[Said, tuple[Fact, ...]]] = {}

    # -- the world

    def spec(self, kind: str) -> Spec:
        pick = self.random.choice
        if kind == "namespaces":
            return {}
        if kind == "pods":
            return {"addresses": pick([("10.1.0.1",), ("10.1.0.2", "fd00::1"), ("10.1.0.3",), ()])}
        if kind == "services":
            if self.random.random() < 0.15:
                return {"external": pick(["a.example.", "b.example."])}
            ips = pick([(), (), CLUSTER_IPS[:1], CLUSTER_IPS[1:], CLUSTER_IPS[1:2]])
            return {"ips": ips, "port": pick(["http", "other"])}
        family = SIX if self.random.random() < 0.2 else ADDRESSES
        count = self.random.randint(0, len(family))
        endpoints = [(ip, pick(HOSTS), pick(("", "p", "q"))) for ip in self.random.sample(family, count)]
        return {"of": pick((*SERVICES, "s", "")), "endpoints": endpoints, "port": pick(["http", "other"])}

    def happen(self) -> None:
        """Something changes in the cluster."""
        kind = self.random.choice(("namespaces", "services", "services", "endpointslices", "endpointslices", "pods"))
        space = self.random.choice(SPACES)
        own = {"services": SERVICES, "endpointslices": SLICES, "pods": PODS}.get(kind)
        key = (space, self.random.choice(own)) if own else ("", space)
        if key in self.truth[kind] and self.random.random() < 0.35:
            self.write(kind, key, None)
            if self.random.random() < 0.3:  # recreated at once
                self.write(kind, key, self.spec(kind))
        else:
            self.write(kind, key, self.spec(kind))

    def move(self) -> None:
        """An endpoint moves to another slice of its Service: it is added there before it is removed here."""
        slices = [(key, spec) for key, spec in self.truth["endpointslices"].items() if spec["endpoints"]]
        if not slices:
            return
        key, spec = self.random.choice(slices)
        moved = self.random.choice(spec["endpoints"])
        other = (key[0], self.random.choice([own for own in SLICES if own != key[1]]))
        there = self.truth["endpointslices"].get(other)
        rest = (
            [each for each in there["endpoints"] if each[0] != moved[0]] if there and there["of"] == spec["of"] else []
        )
        if any((":" in each[0]) != (":" in moved[0]) for each in rest):
            rest = []
        self.write("endpointslices", other, {**spec, "endpoints": [*rest, moved]})
        self.write("endpointslices", key, {**spec, "endpoints": [e for e in spec["endpoints"] if e != moved]})

    def write(self, kind: str, key: tuple[str, str], spec: Spec | None) -> None:
        if spec is None:
            self.truth[kind].pop(key, None)
        else:
            self.truth[kind][key] = spec
        self.pending[kind].append((key, spec))

    # -- its way to the index

    def build(self, kind: str, key: tuple[str, str], spec: Spec) -> Object:
        text = f"{key[1]}.{key[0]}"
        if kind == "namespaces":
            return namespace(key[1])
        if kind == "pods":
            return pod(text, *spec["addresses"])
        if kind == "services":
            if "external" in spec:
                return service(text, externalName=spec["external"])
            return service(text, *spec["ips"], ports=(f"{spec['port']} 80",))
        endpoints = [f"{ip} {host or '-'} {own or '-'}" for ip, host, own in spec["endpoints"]]
        return slice_of(text, *endpoints, of=spec["of"], ports=(f"{spec['port']} 80",))

    def deliver(self, kind: str) -> None:
        """The next event of this kind, perhaps twice."""
        key, spec = self.pending[kind].pop(0)
        state = self.model.state[kind]
        if spec is None:
            event: Apply | Delete = Delete(kind, key[0].encode(), key[1].encode())
            state.pop(key, None)
        else:
            event = Apply(kind, self.build(kind, key, spec))
            state[key] = spec
        self.touch(self.index.apply(event, 1))
        if self.random.random() < 0.2:
            assert self.index.apply(event, 1) == set(), f"the same event again touches something: {event}"

    def list(self, kind: str) -> None:
        """The state after some of the pending events comes as a whole list, perhaps at the second attempt."""
        old = dict(self.model.state[kind])
        for _ in range(self.random.randint(0, len(self.pending[kind]))):
            key, spec = self.pending[kind].pop(0)
            if spec is None:
                self.model.state[kind].pop(key, None)
            else:
                self.model.state[kind][key] = spec
        before = Model()
        before.state = {**self.model.state, kind: old}
        items = list(self.model.state[kind].items())
        for attempt in range(self.random.choice((1, 1, 2))):
            self.index.apply(Init(kind), 1)
            self.random.shuffle(items)
            upto = len(items) if attempt else self.random.choice((len(items), self.random.randint(0, len(items))))
            for key, spec in items[:upto]:
                self.touch(self.index.apply(InitApply(kind, self.build(kind, key, spec)), 1))
                self.check_between(before)
        self.index.apply(Init(kind), 1)
        for key, spec in items:
            self.touch(self.index.apply(InitApply(kind, self.build(kind, key, spec)), 1))
            self.check_between(before)
        if self.random.random() < 0.3:
            self.touch(self.index.apply(InitDone(kind), 1))
            return
        for facts in self.index.finish(kind, 1):
            self.touch(facts)
            self.check_between(before)
            self.check_what_stays(before)

    # -- what must hold

    def touch(self, facts: set[Fact]) -> None:
        """Forget what stands on the facts; what is still cached must still be true.  What exists follows at once."""
        for existing, names in (
            (self.index.below_svc, {*self.index.entries, *self.index.namespaces}),
            (self.index.below_pod, self.index.namespaces),
        ):
            assert len(existing) == len(names) and all(name in existing for name in names)
        for question in [q for q, (_, stands) in self.cached.items() if not facts.isdisjoint(stands)]:
            del self.cached[question]
        for question in self.random.sample(list(self.cached), min(6, len(self.cached))):
            assert heard(self.names, *question)[0] == self.cached[question][0], f"{question} was not dropped"

    def check_between(self, before: Model) -> None:
        """While a list comes in, what was there before and will be there after is there, and nothing else."""
        for question in self.random.sample(NAMES_OF_SERVICES, 3):
            now = heard(self.names, *question)[0]
            past, future = before.says(*question), self.model.says(*question)
            if past[0] == future[0] == "RECORDS":
                assert past[1] & future[1] <= now[1] <= past[1] | future[1], question
            elif past == future:
                assert now == past, question

    def check_what_stays(self, before: Model) -> None:
        """While a list takes force, what was there before and will be there after has not gone, whoever asks."""
        for question in self.random.sample(QUESTIONS, 6):
            now = heard(self.names, *question)[0]
            past, future = before.says(*question), self.model.says(*question)
            if past[0] == future[0] == "RECORDS":
                assert now[0] == "RECORDS", question
                if question[1] in ("A", "AAAA"):
                    assert past[1] & future[1] <= now[1] <= past[1] | future[1], question
            elif past[0] == future[0]:
                assert now[0] == past[0], question

    def check(self, count: int) -> None:
        """The index says what the model says."""
        for question in self.random.sample(QUESTIONS, count):
            found = heard(self.names, *question)
            expected = self.model.says(*question)
            if question[1] == "PTR" and len(expected[1]) > 1 and found[0][1] < expected[1]:
                # Two Services that hold one cluster IP for a moment: one of them is told.
                assert len(found[0][1]) == 1
            else:
                assert found[0] == expected, f"{question}: {found[0]}, not {expected}"
            self.cached[question] = found

    def run(self, steps: int) -> None:
        for kind in KINDS:
            self.index.apply(Init(kind), 1)
            self.index.apply(InitDone(kind), 1)
        for _ in range(steps):
            self.random.choice((self.happen, self.happen, self.happen, self.move))()
            waiting = [kind for kind in KINDS if self.pending[kind]]
            for _ in range(self.random.randint(0, 3)):
                kind = self.random.choice(KINDS)
                if self.random.random() < 0.1:
                    self.list(kind)
                elif kind in waiting and self.pending[kind]:
                    self.deliver(kind)
                self.check(3)
        for kind in self.random.sample(KINDS, len(KINDS)):
            while self.pending[kind]:
                self.deliver(kind)
                self.check(1)
        assert self.model.state == self.truth
        self.check(len(QUESTIONS) // 3)


HISTORIES = int(os.environ.get("KDNS_HISTORIES", "1500"))
"""How many histories are tried; the seeds are the same each time."""
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_random_histories(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "STEP", 1)
    monkeypatch.setattr(index_module, "LOOK", 2)
    for seed in range(part, HISTORIES, PARTS):
        history = History(seed)
        try:
            history.run(12)
        except AssertionError as error:
            raise AssertionError(f"history {seed}: {error}") from error


def test_the_model_and_the_index_hear_of_every_type() -> None:
    assert {type for _, type in QUESTIONS} <= set(message.TYPES.values())


# --- what is remembered ----------------------------------------------------------------------------------------------


def remembering(*objects: Object, kinds: tuple[str, ...] = KINDS) -> Index:
    """An index with a snapshot of these objects and nothing heard yet."""
    index = Index(kinds, True, True)
    for kind in kinds:
        index.remember(kind, [found for found in objects if kind_of(found) == kind])
        index.recall(kind)
    return index


SNAPSHOT: tuple[Object, ...] = (
    namespace("dev"),
    service("web.dev", "10.96.0.1"),
    service("peers.dev"),
    slice_of("peers-a.dev", "10.1.0.1", "10.1.0.2", of="peers"),
    pod("p-0.dev", "10.1.0.1"),
)


def test_what_is_remembered_is_there_but_not_known() -> None:
    index = remembering(*SNAPSHOT)
    assert set(index.remembered) == set(index.waiting) == set(KINDS)
    assert all(index.has(kind) and not index.synced(kind) for kind in KINDS)
    assert index.counts() == {"namespaces": 1, "services": 2, "endpointslices": 1, "pods": 1}
    assert index.serial == 0


def test_a_kind_of_which_there_was_nothing_is_remembered_too() -> None:
    index = remembering()
    assert index.has("pods") and not Index(KINDS).has("pods")


def test_what_nobody_watches_and_what_is_known_is_not_remembered() -> None:
    index = Index(("services",))
    index.remember("pods", [pod("p-0.dev", "10.1.0.1")])
    index.recall("pods")
    assert index.remembered == () and not index.counts()["pods"] and index.has("pods")
    relist(index, "services", [])
    index.remember("services", [service("web.dev", "10.96.0.1")])
    index.recall("services")
    assert index.remembered == () and not index.counts()["services"]


def test_a_service_with_half_its_endpoints_is_not_told_of() -> None:
    index = Index(KINDS)
    for kind in ("namespaces", "services"):
        index.recall(kind)
    for found in SNAPSHOT:
        index.remember(kind_of(found), [found])
    names = names_of(index)
    assert said(names, "web.dev.svc.cluster.local.") == ["A 10.96.0.1"]
    assert said(names, "peers.dev.svc.cluster.local.") == said(names, "1.0.1.10.in-addr.arpa.", "PTR") == ["SERVFAIL"]
    index.recall("endpointslices")
    assert len(said(names, "peers.dev.svc.cluster.local.")) == 2
    assert said(names, "1.0.1.10.in-addr.arpa.", "PTR") == ["PTR 10-1-0-1.peers.dev.svc.cluster.local."]
    index.forget()
    assert not any(index.counts().values())


def test_the_first_list_is_compared_with_what_is_remembered() -> None:
    index = remembering(*SNAPSHOT)
    facts = relist(index, "services", [service("web.dev", "10.96.0.9"), service("new.dev", "10.96.0.2")])
    ips = {b"ip/\x0a\x60\0" + bytes([last]) for last in (1, 2, 9)}
    assert facts == {b"svc/\3web\3dev", b"svc/\3new\3dev", b"svc/\5peers\3dev", b"known/services", *ips}
    assert index.remembered == ("namespaces", "endpointslices", "pods")
    assert relist(index, "endpointslices", [SNAPSHOT[3]]) == {b"known/endpointslices"}
    assert relist(index, "endpointslices", [SNAPSHOT[3]]) == set()


def test_what_is_remembered_stays_in_force_until_the_list_is_complete() -> None:
    index = remembering(*SNAPSHOT)
    index.apply(Init("services"), 1)
    index.apply(InitApply("services", service("web.dev", "10.96.0.9")), 1)
    assert said(names_of(index), "web.dev.svc.cluster.local.") == ["A 10.96.0.1"]
    assert index.apply(InitDone("services"), 1) >= {b"svc/\3web\3dev", b"known/services"}
    assert said(names_of(index), "web.dev.svc.cluster.local.") == ["A 10.96.0.9"]


def test_forgetting() -> None:
    index = remembering(*SNAPSHOT)
    index.forget()
    assert index.remembered == () and not any(index.counts().values()) and not index.entries
    assert index.by_cluster_ip(b"\x0a\x60\0\1") == index.by_endpoint(b"\x0a\1\0\1") == ()
    assert index.pods(b"\x0a\1\0\1") == ()
    assert index.waiting == KINDS


def test_a_copy_is_of_its_moment() -> None:
    index = fill(Index(KINDS, True, True), *SNAPSHOT)
    copies = {kind: index.copy(kind) for kind in KINDS}
    for kind in KINDS:
        relist(index, kind, [])
    assert not any(index.counts().values())
    for kind, copied in copies.items():
        assert set(copied) == {found for found in SNAPSHOT if kind_of(found) == kind}


def test_topology_zones_are_copied_where_they_are_kept() -> None:
    part = slice_of("web-a.dev", "10.1.0.1 - - east", "10.1.0.2 - - west", of="web")
    assert isinstance(part, EndpointSlice) and part.zones
    assert list(fill(Index(KINDS, zones=True), part).copy("endpointslices")) == [part]
    assert list(fill(Index(KINDS), part).copy("endpointslices")) == [replace(part, zones=b"")]
