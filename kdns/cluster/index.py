"""The index of cluster objects: every change goes in place and says which facts it touched.

Facts, as leases carry them (`message.Fact`); KEY is the wire labels ``<service><namespace>`` with their length octets:

=================  ====================================================================================
``ns/`` label      whether this namespace is there (the label with its length octet)
``svc/`` KEY       the Service object: its kind, cluster IPs, ports, external name
``eps/`` KEY       the ready endpoints of all slices of the Service
``ip/`` address    what a reverse lookup of the packed address says
``pod/`` address   which Pods have the packed address
``known/`` kind    whether all objects of this kind are known; dropped when its first list is complete
``imp/`` KEY       the ServiceImport object: its kind, IPs, ports
``ime/`` KEY       the ready endpoints of all slices of the ServiceImport
=================  ====================================================================================

A fact is touched when an answer that stands on it may have changed, also when its object appears or goes; status noise
touches none.  Kinds come in streams of their own, so a slice may precede its Service.

A whole list (Init … InitDone) is compared with what is known: new objects are served at once, changes and losses take
force when the list is complete: together, or, when they are many, first what is gained and then what is lost (see
`Index.finish`).  So nothing that exists throughout ever vanishes, not even an endpoint that has moved from one slice to
another, and a list that breaks off changes nothing for the worse.

`Existing` (see `kdns.denial`) says at any time which Services and namespaces have something here; what it denies has
nothing, whatever a ``kubernetes`` directive may hide of the rest.

Objects may be remembered before the first list, out of a snapshot: that list is compared with them in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from kdns.cluster.objects import (
    IMPORTS,
    Apply,
    Delete,
    Event,
    Init,
    InitApply,
    Object,
)
from kdns.cluster.shelves import Entries, Entry, Known, Many, Namespaces, Pods, Services, Shelf, Slices, known_fact
from kdns.denial import make_existing
from kdns.message import Fact

STEP: Final = 100
"""Objects that `Index.finish` changes or takes away in one step: about 3 ms with 10 endpoints each."""
LOOK: Final = 10_000
"""Places that it compares with the list in one step."""


class _Relist(Struct):
    """A list that is under way."""

    seen: set[bytes]
    changes: dict[bytes, Object]
    """What takes force when the list is complete."""


class Index:
    """The objects of one source.

    ``kinds``: what the source watches; other kinds count as known to be empty.  ``pod_names``: keep the pod names of
    endpoints; ``labels``: keep the labels of Pods; ``zones``: keep the topology zones of endpoints.
    """

    def __init__(
        self, kinds: Iterable[str], pod_names: bool = False, labels: bool = False, zones: bool = False
    ) -> None:
        self.below_svc = make_existing(2)
        """`namespaces`, and the keys of `entries`."""
        self.below_pod = make_existing(1)
        """`namespaces`."""
        self.below_import = make_existing(2)
        """`namespaces`, and the keys of `imports`; kept only while imports are watched."""
        entries, imports = Entries(self.below_svc), Entries(self.below_import)
        self.entries = entries.by_key
        """Service names (`entry_key`) → entries."""
        self.imports = imports.by_key
        """Names of ServiceImports → entries, whose slices are `Imported`."""
        self.namespaces: set[bytes] = set()
        """Labels with their length octets."""
        self.serial = 0
        """Unix time of the last change that touched a fact of this cluster; 0 before the first."""
        self.import_serial = 0
        """The same for ServiceImports, their slices, and namespaces."""
        self.waiting: tuple[str, ...] = tuple(kinds)
        """Kinds whose first list is not complete."""
        self.remembered: tuple[str, ...] = ()
        """Those of them whose objects are known from a snapshot: they were there, and others may be, too."""
        self._cluster_ips: Many[Entry] = Many()
        self._endpoint_ips: Many[Entry] = Many()
        self._pod_ips: Many[Known] = Many()
        self._shelves: dict[str, Shelf] = {
            "services": Services(entries, self._cluster_ips),
            "endpointslices": Slices(entries, self._endpoint_ips, pod_names, zones),
            "pods": Pods(self._pod_ips, labels),
        }
        below = [self.below_svc, self.below_pod]
        if IMPORTS[0] in self.waiting:
            self._shelves["serviceimports"] = Services(imports, None, b"imp/")
            self._shelves["importedslices"] = Slices(imports, None, pod_names, fact=b"ime/")
            below.append(self.below_import)
        self._shelves["namespaces"] = Namespaces(self.namespaces, *below)
        self._relists: dict[str, _Relist] = {}

    def apply(self, event: Event, now: float) -> set[Fact]:
        """Put the event in place; ``now``: Unix time.  Returns the facts touched.

        Raises ValueError for InitApply and InitDone without Init, which no source may send.
        """
        facts = self._apply(event)
        self._count(event.kind, facts, now)
        return facts

    def finish(self, kind: str, now: float) -> Iterator[set[Fact]]:
        """As `apply` of InitDone, in steps of a few milliseconds; yields the facts that each has touched.

        Between two steps everything is consistent, and other events may be applied, of this kind, too.  What exists
        before and after is there all the time: first come the gains of all objects, then their losses.  Objects that
        cannot be both for a moment (a Service that changes, a slice with other ports) change in one step.
        """
        relist = self._relists.get(kind)
        if relist is None:
            raise ValueError(f"InitDone of {kind} without Init")
        for facts in self._steps(kind, self._shelves[kind], relist):
            self._count(kind, facts, now)
            yield facts

    def _count(self, kind: str, facts: set[Fact], now: float) -> None:
        """Move the serials that a change of these facts moves; none goes back with the clock (RFC 1982)."""
        if facts:
            imported = kind in IMPORTS
            if not imported:
                self.serial = max(self.serial, int(now))
            if imported or kind == "namespaces":
                self.import_serial = max(self.import_serial, int(now))

    def synced(self, kind: str) -> bool:
        """Whether the objects of this kind are known: the first list is complete, or nobody watches them."""
        return kind not in self.waiting

    @property
    def listing(self) -> bool:
        """Whether a list has begun, and not yet taken force as a whole."""
        return bool(self._relists)

    def has(self, kind: str) -> bool:
        """Whether objects of this kind that are here may be told of: they are known, or remembered as a whole."""
        return kind not in self.waiting or kind in self.remembered

    def remember(self, kind: str, objects: Iterable[Object]) -> None:
        """Take in objects of a snapshot, before any event of this kind; a kind that nobody watches is left out."""
        if kind in self.waiting:
            shelf = self._shelves[kind]
            for found in objects:
                shelf.put(shelf.key(found.namespace, found.name), found)

    def recall(self, kind: str) -> None:
        """What is remembered of a kind may be told of from now on; of EndpointSlices only when all are here."""
        if kind in self.waiting and kind not in self.remembered:
            self.remembered = (*self.remembered, kind)

    def forget(self) -> None:
        """Take out again all that is remembered, while nothing is known: the snapshot has turned out to be none."""
        for kind in self.waiting:
            shelf = self._shelves[kind]
            for key in list(shelf.places()):
                shelf.remove(key)
        self.remembered = ()

    def copy(self, kind: str) -> Iterator[Object]:
        """The objects of a kind as they are at this moment; they are made one by one, whatever changes meanwhile."""
        shelf = self._shelves[kind]
        return map(shelf.thaw, shelf.copy())

    def by_cluster_ip(self, address: bytes) -> tuple[Entry, ...]:
        """The Services with this cluster IP: one, but for moments in which an address changes hands."""
        return self._cluster_ips.get(address)

    def by_endpoint(self, address: bytes) -> tuple[Entry, ...]:
        """The entries with a ready endpoint of this address."""
        return self._endpoint_ips.get(address)

    def pods(self, address: bytes) -> tuple[Known, ...]:
        """The Pods with this address: several when they use the host's network."""
        return self._pod_ips.get(address)

    def counts(self) -> dict[str, int]:
        """How many objects of each kind are known."""
        return {kind: len(shelf.places()) for kind, shelf in self._shelves.items()}

    def names(self, kind: str) -> Iterator[tuple[bytes, bytes]]:
        """Namespace and name of each object of a kind that is known at this moment, whatever changes meanwhile."""
        shelf = self._shelves[kind]
        return map(shelf.whose, list(shelf.places()))

    def _apply(self, event: Event) -> set[Fact]:
        shelf = self._shelves[event.kind]
        relist = self._relists.get(event.kind)
        if isinstance(event, Apply):
            key = shelf.key(event.object.namespace, event.object.name)
            if relist is not None:
                relist.seen.add(key)
                relist.changes.pop(key, None)
            return shelf.put(key, event.object)
        if isinstance(event, Delete):
            key = shelf.key(event.namespace, event.name)
            if relist is not None:
                relist.seen.discard(key)
                relist.changes.pop(key, None)
            return shelf.remove(key)
        if isinstance(event, Init):
            self._relists[event.kind] = _Relist(set(), {})
            return set()
        if relist is None:
            raise ValueError(f"{type(event).__name__} of {event.kind} without Init")
        if isinstance(event, InitApply):
            return _noted(shelf, relist, event.object)
        return self._finish(event.kind, shelf, relist)

    def _finish(self, kind: str, shelf: Shelf, relist: _Relist) -> set[Fact]:
        gone = [key for key in shelf.places() if key not in relist.seen]
        return _changed(shelf, relist, list(relist.changes)) | _lost(shelf, relist, gone) | self._end(kind)

    def _steps(self, kind: str, shelf: Shelf, relist: _Relist) -> Iterator[set[Fact]]:
        gone: list[bytes] = []
        for some in _pieces(list(shelf.places()), LOOK):
            gone += [key for key in some if key not in relist.seen]
            yield set()
            if self._relists.get(kind) is not relist:
                return
        if len(gone) + len(relist.changes) > STEP:
            for facts in _in_steps(shelf, relist, gone):
                yield facts
                if self._relists.get(kind) is not relist:  # another list has begun: it will find what is left to do
                    return
            gone = []
        yield _changed(shelf, relist, list(relist.changes)) | _lost(shelf, relist, gone) | self._end(kind)

    def _end(self, kind: str) -> set[Fact]:
        """The list has taken force."""
        del self._relists[kind]
        if kind not in self.waiting:
            return set()
        self.waiting = tuple(other for other in self.waiting if other != kind)
        self.remembered = tuple(other for other in self.remembered if other != kind)
        return {known_fact(kind)}


def _pieces(keys: list[bytes], size: int) -> Iterator[list[bytes]]:
    return (keys[at : at + size] for at in range(0, len(keys), size))


def _changed(shelf: Shelf, relist: _Relist, keys: Iterable[bytes]) -> set[Fact]:
    """Let these changes take force, but for those that a later event has made up for."""
    facts: set[Fact] = set()
    for key in keys:
        changed = relist.changes.pop(key, None)
        if changed is not None:
            facts |= shelf.put(key, changed)
    return facts


def _lost(shelf: Shelf, relist: _Relist, keys: Iterable[bytes]) -> set[Fact]:
    """Take away what the list did not have, and no event since."""
    facts: set[Fact] = set()
    for key in keys:
        if key not in relist.seen:
            facts |= shelf.remove(key)
    return facts


def _in_steps(shelf: Shelf, relist: _Relist, gone: list[bytes]) -> Iterator[set[Fact]]:
    """First all gains, then all losses; see `Index.finish`."""
    swaps: list[bytes] = []
    for some in _pieces(list(relist.changes), STEP):
        facts: set[Fact] = set()
        for key in some:
            changed = relist.changes.get(key)
            both = shelf.both(key, changed) if changed is not None else None
            if both is not None:
                facts |= shelf.put(key, both)
            else:
                swaps.append(key)
        yield facts
    # What these lose another of them may gain, so they change together.
    yield _changed(shelf, relist, swaps)
    for some in _pieces(list(relist.changes), STEP):
        yield _changed(shelf, relist, some)
    for some in _pieces(gone, STEP):
        yield _lost(shelf, relist, some)


def _noted(shelf: Shelf, relist: _Relist, found: Object) -> set[Fact]:
    """One object of a list: an addition is served at once, a change when the list is complete."""
    key = shelf.key(found.namespace, found.name)
    relist.seen.add(key)
    change = shelf.change(key, found)
    if change is None:
        return shelf.put(key, found)
    if change:
        relist.changes[key] = found
    return set()
