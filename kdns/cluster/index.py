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

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from kdns.cluster.objects import (
    IMPORTS,
    Apply,
    Delete,
    EndpointSlice,
    Event,
    ImportedSlice,
    Init,
    InitApply,
    Namespace,
    Object,
    Pod,
    Port,
    Service,
)
from kdns.denial import Existing, make_existing
from kdns.message import Fact

T = TypeVar("T")

STEP: Final = 100
"""Objects that `Index.finish` changes or takes away in one step: about 3 ms with 10 endpoints each."""
LOOK: Final = 10_000
"""Places that it compares with the list in one step."""


class Slice(Struct, frozen=True, gc=False):
    """The ready endpoints of one slice, as the index keeps them; fields as in `objects.EndpointSlice`."""

    key: bytes
    width: int
    addresses: bytes
    hostnames: bytes
    pods: bytes
    ports: tuple[Port, ...]

    def each(self) -> list[bytes]:
        """The packed addresses."""
        width, packed = self.width, self.addresses
        return [packed[at : at + width] for at in range(0, len(packed), width)]

    def endpoints(self) -> list[tuple[bytes, bytes, bytes]]:
        """(address, hostname, pod name) of each endpoint; hostname and pod name may be empty."""
        hostnames: Iterable[bytes] = self.hostnames.split(b"\0") if self.hostnames else repeat(b"")
        pods: Iterable[bytes] = self.pods.split(b"\0") if self.pods else repeat(b"")
        return list(zip(self.each(), hostnames, pods, strict=False))

    def has(self, address: bytes) -> bool:
        """Whether it holds this address."""
        width, at = self.width, -1
        if len(address) == width:
            while (at := self.addresses.find(address, at + 1)) >= 0:
                if not at % width:
                    return True
        return False


class Zoned(Slice, frozen=True, gc=False):
    """A slice of which the topology zones are kept, too."""

    zones: bytes

    def within(self, zone: bytes) -> list[tuple[bytes, bytes, bytes]]:
        """As `endpoints`, of those in this zone."""
        zones = self.zones.split(b"\0") if self.zones else []
        return [found for found, own in zip(self.endpoints(), zones, strict=False) if own == zone]


class Imported(Slice, frozen=True, gc=False):
    """A slice of a ServiceImport."""

    cluster: bytes
    """The member cluster that it is from; may be empty."""


class Entry(Struct, gc=False):
    """All that is known under the name of one Service, or of one ServiceImport."""

    key: bytes
    service: Service | None = None
    """None: there are slices for it, but the Service (the ServiceImport) itself is not (yet) there."""
    slices: tuple[Slice, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it has a ready endpoint."""
        return any(part.addresses for part in self.slices)


class Known(Struct, frozen=True, gc=False):
    """A Pod, as the index keeps it: there may be 150,000 of them."""

    key: bytes
    """``namespace/name``."""
    first: bytes
    """Its first address, packed; empty when it has none."""
    others: tuple[bytes, ...]
    labels: bytes
    """As in `objects.Pod`."""

    @property
    def namespace(self) -> bytes:
        """The Pod's namespace."""
        return self.key.partition(b"/")[0]

    @property
    def name(self) -> bytes:
        """The Pod's name."""
        return self.key.partition(b"/")[2]

    @property
    def addresses(self) -> tuple[bytes, ...]:
        """Packed, of both families."""
        return (self.first, *self.others) if self.first else ()


def entry_key(service: bytes, namespace: bytes) -> bytes:
    """Wire labels ``<service><namespace>``; empty for what can be no labels."""
    if not (0 < len(service) < 64 and 0 < len(namespace) < 64):
        return b""
    return b"%c%b%c%b" % (len(service), service, len(namespace), namespace)


def known_fact(kind: str) -> Fact:
    """The fact whether all objects of a kind are known: what was said before they were may be wrong."""
    return b"known/" + kind.encode()


class _Many(Generic[T]):
    """Address → the few things that have it.  Nearly always it is one, which then stands there without a tuple."""

    def __init__(self) -> None:
        self._map: dict[bytes, T | tuple[T, ...]] = {}

    def get(self, address: bytes) -> tuple[T, ...]:
        found = self._map.get(address)
        if found is None:
            return ()
        return found if isinstance(found, tuple) else (found,)

    def add(self, address: bytes, thing: T) -> None:
        known = self.get(address)
        if not any(other is thing for other in known):
            self._map[address] = (*known, thing) if known else thing

    def remove(self, address: bytes, thing: T) -> None:
        rest = tuple(other for other in self.get(address) if other is not thing)
        if not rest:
            self._map.pop(address, None)
        else:
            self._map[address] = rest if len(rest) > 1 else rest[0]


class _Shelf:
    """Where the objects of one kind stand."""

    def key(self, namespace: bytes, name: bytes) -> bytes:
        """The object's place."""
        return b"%b/%b" % (namespace, name)

    def whose(self, key: bytes) -> tuple[bytes, bytes]:
        """The namespace and the name to which a place belongs."""
        namespace, _, name = key.partition(b"/")
        return namespace, name

    def places(self) -> Collection[bytes]:
        """All places that are taken."""
        raise NotImplementedError

    def copy(self) -> Sequence[Any]:
        """What stands there at this moment, in a form that no later change touches; see `thaw`."""
        raise NotImplementedError

    def thaw(self, thing: Any) -> Object:
        """The object that one thing of a `copy` was put there as."""
        raise NotImplementedError

    def change(self, key: bytes, new: Any) -> bool | None:
        """What putting ``new`` there would be: None an addition, True a change, False no change."""
        raise NotImplementedError

    def both(self, key: bytes, new: Any) -> Any:
        """What stands there and ``new`` in one object, which says nothing that neither says; None: that cannot be."""
        return None

    def put(self, key: bytes, new: Any) -> set[Fact]:
        """Add or replace; returns the facts touched."""
        raise NotImplementedError

    def remove(self, key: bytes) -> set[Fact]:
        """Take away, if it is there; returns the facts touched."""
        raise NotImplementedError


class _Namespaces(_Shelf):
    def __init__(self, known: set[bytes], *existing: Existing) -> None:
        self._known = known
        self._existing = existing

    def key(self, namespace: bytes, name: bytes) -> bytes:
        return b"%c%b" % (len(name), name) if len(name) < 64 else b""

    def whose(self, key: bytes) -> tuple[bytes, bytes]:
        return b"", key[1:]

    def places(self) -> Collection[bytes]:
        return self._known

    def copy(self) -> Sequence[bytes]:
        return tuple(self._known)

    def thaw(self, thing: bytes) -> Object:
        return Namespace(thing[1:])

    def change(self, key: bytes, new: Namespace) -> bool | None:
        return False if key in self._known else None

    def put(self, key: bytes, new: Namespace) -> set[Fact]:
        if key in self._known:
            return set()
        for existing in self._existing:
            existing.add(key)
        self._known.add(key)
        return {b"ns/" + key}

    def remove(self, key: bytes) -> set[Fact]:
        if key not in self._known:
            return set()
        self._known.remove(key)
        for existing in self._existing:
            existing.discard(key)
        return {b"ns/" + key}


class _Entries:
    """The entries, which Services and slices share: made by whoever comes first, gone with the last."""

    def __init__(self, existing: Existing) -> None:
        self.by_key: dict[bytes, Entry] = {}
        self._existing = existing

    def get(self, key: bytes) -> Entry:
        entry = self.by_key.get(key)
        if entry is None:
            self._existing.add(key)
            entry = self.by_key[key] = Entry(key)
        return entry

    def tidy(self, entry: Entry) -> None:
        if entry.service is None and not entry.slices:
            del self.by_key[entry.key]
            self._existing.discard(entry.key)


class _Services(_Shelf):
    """Services, or ServiceImports: without ``by_ip`` nobody looks for them by their addresses."""

    def __init__(self, entries: _Entries, by_ip: _Many[Entry] | None, fact: bytes = b"svc/") -> None:
        self._entries = entries
        self._by_ip = by_ip
        self._fact = fact

    def key(self, namespace: bytes, name: bytes) -> bytes:
        return entry_key(name, namespace)

    def whose(self, key: bytes) -> tuple[bytes, bytes]:
        return key[2 + key[0] :], key[1 : 1 + key[0]]

    def places(self) -> Collection[bytes]:
        return [entry.key for entry in self._entries.by_key.values() if entry.service is not None]

    def copy(self) -> Sequence[Service]:
        return [entry.service for entry in self._entries.by_key.values() if entry.service is not None]

    def thaw(self, thing: Service) -> Object:
        return thing

    def _old(self, key: bytes) -> Service | None:
        entry = self._entries.by_key.get(key)
        return entry.service if entry is not None else None

    def change(self, key: bytes, new: Service) -> bool | None:
        old = self._old(key)
        return None if old is None else old != new

    def put(self, key: bytes, new: Service) -> set[Fact]:
        if self._old(key) == new:
            return set()
        return self._set(self._entries.get(key), new)

    def remove(self, key: bytes) -> set[Fact]:
        return self._set(self._entries.by_key[key], None) if self._old(key) is not None else set()

    def _set(self, entry: Entry, new: Service | None) -> set[Fact]:
        old = entry.service
        entry.service = new
        facts = {self._fact + entry.key}
        if self._by_ip is not None:
            before = set(old.addresses) if old is not None else set()
            after = set(new.addresses) if new is not None else set()
            for address in before - after:
                self._by_ip.remove(address, entry)
            for address in after - before:
                self._by_ip.add(address, entry)
            facts.update(b"ip/" + address for address in before ^ after)
        self._entries.tidy(entry)
        return facts


class _Slices(_Shelf):
    """Slices of Services, or of ServiceImports: without ``by_ip`` nobody looks for those by their addresses."""

    def __init__(
        self,
        entries: _Entries,
        by_ip: _Many[Entry] | None,
        pod_names: bool,
        zones: bool = False,
        fact: bytes = b"eps/",
    ) -> None:
        self._entries = entries
        self._by_ip = by_ip
        self._pod_names = pod_names
        self._zones = zones
        self._fact = fact
        self._entry_of: dict[bytes, Entry] = {}

    def places(self) -> Collection[bytes]:
        return self._entry_of

    def copy(self) -> Sequence[tuple[bytes, Slice]]:
        return [(entry.key, part) for entry in self._entries.by_key.values() for part in entry.slices]

    def thaw(self, thing: tuple[bytes, Slice]) -> Object:
        place, part = thing
        service, namespace = place[1 : 1 + place[0]], place[2 + place[0] :]
        name = part.key[len(namespace) + 1 :]
        zones = part.zones if isinstance(part, Zoned) else b""
        return EndpointSlice(
            namespace, name, service, part.width, part.addresses, part.hostnames, part.pods, part.ports, zones=zones
        )

    def _old(self, key: bytes) -> tuple[Entry | None, Slice | None]:
        entry = self._entry_of.get(key)
        if entry is None:
            return None, None
        return entry, next(part for part in entry.slices if part.key == key)

    def _trim(self, key: bytes, new: EndpointSlice) -> Slice:
        pods = new.pods if self._pod_names else b""
        if isinstance(new, ImportedSlice):
            return Imported(key, new.width, new.addresses, new.hostnames, pods, new.ports, new.cluster)
        if self._zones:
            return Zoned(key, new.width, new.addresses, new.hostnames, pods, new.ports, new.zones)
        return Slice(key, new.width, new.addresses, new.hostnames, pods, new.ports)

    def change(self, key: bytes, new: EndpointSlice) -> bool | None:
        entry, old = self._old(key)
        if entry is None:
            return None
        return entry.key != entry_key(new.service, new.namespace) or old != self._trim(key, new)

    def both(self, key: bytes, new: EndpointSlice) -> EndpointSlice | None:
        entry, old = self._old(key)
        if entry is None or old is None:
            return new
        if entry.key != entry_key(new.service, new.namespace) or (old.width, old.ports) != (new.width, new.ports):
            return None
        # In this order, so that whatever else the new object has in parallel fits its own endpoints.
        found = list(dict.fromkeys([*self._trim(key, new).endpoints(), *old.endpoints()]))
        addresses, hostnames, pods = zip(*found, strict=True) if found else ((), (), ())
        return replace(new, addresses=b"".join(addresses), hostnames=b"\0".join(hostnames), pods=b"\0".join(pods))

    def put(self, key: bytes, new: EndpointSlice) -> set[Fact]:
        if self.change(key, new) is False:
            return set()
        place = entry_key(new.service, new.namespace)
        entry = self._entry_of.get(key)
        facts: set[Fact] = set()
        if entry is not None and entry.key != place:
            facts = self.remove(key)
        if place:
            facts |= self._set(key, self._entries.get(place), self._trim(key, new))
        return facts

    def remove(self, key: bytes) -> set[Fact]:
        entry = self._entry_of.get(key)
        return self._set(key, entry, None) if entry is not None else set()

    def _set(self, key: bytes, entry: Entry, new: Slice | None) -> set[Fact]:
        old = next((part for part in entry.slices if part.key == key), None)
        others = tuple(part for part in entry.slices if part is not old)
        facts = {self._fact + entry.key}
        if new is None:
            entry.slices = others
            del self._entry_of[key]
        else:
            entry.slices = (*others, new)
            self._entry_of[key] = entry
        if self._by_ip is not None:
            before = set(old.endpoints()) if old is not None else set()
            after = set(new.endpoints()) if new is not None else set()
            for address, _, _ in before - after:
                if not any(part.has(address) for part in entry.slices):
                    self._by_ip.remove(address, entry)
            for address, _, _ in after - before:
                self._by_ip.add(address, entry)
            facts.update(b"ip/" + address for address, _, _ in before ^ after)
        self._entries.tidy(entry)
        return facts


class _Pods(_Shelf):
    def __init__(self, by_ip: _Many[Known], labels: bool) -> None:
        self._pods: dict[bytes, Known] = {}
        self._by_ip = by_ip
        self._labels = labels

    def places(self) -> Collection[bytes]:
        return self._pods

    def copy(self) -> Sequence[Known]:
        return list(self._pods.values())

    def thaw(self, thing: Known) -> Object:
        return Pod(thing.namespace, thing.name, thing.addresses, thing.labels)

    def change(self, key: bytes, new: Pod) -> bool | None:
        old = self._pods.get(key)
        if new.terminating:
            return False
        return None if old is None else old != self._trim(key, new)

    def both(self, key: bytes, new: Pod) -> Pod:
        old = self._pods.get(key)
        before = old.addresses if old is not None else ()
        return replace(new, addresses=tuple(dict.fromkeys((*new.addresses, *before))))

    def put(self, key: bytes, new: Pod) -> set[Fact]:
        # CoreDNS: the end of a Pod's life begins no entry and changes none; Delete ends it.
        return set() if new.terminating else self._set(key, self._trim(key, new))

    def remove(self, key: bytes) -> set[Fact]:
        return self._set(key, None)

    def _trim(self, key: bytes, pod: Pod) -> Known:
        first = pod.addresses[0] if pod.addresses else b""
        return Known(key, first, pod.addresses[1:], pod.labels if self._labels else b"")

    def _set(self, key: bytes, new: Known | None) -> set[Fact]:
        old = self._pods.get(key)
        before = old.addresses if old is not None else ()
        after = new.addresses if new is not None else ()
        if old is not None:
            for address in before:
                self._by_ip.remove(address, old)
        if new is not None:
            self._pods[key] = new
            for address in after:
                self._by_ip.add(address, new)
        else:
            self._pods.pop(key, None)
        return {b"pod/" + address for address in set(before) ^ set(after)}


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
        entries, imports = _Entries(self.below_svc), _Entries(self.below_import)
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
        self._cluster_ips: _Many[Entry] = _Many()
        self._endpoint_ips: _Many[Entry] = _Many()
        self._pod_ips: _Many[Known] = _Many()
        self._shelves: dict[str, _Shelf] = {
            "services": _Services(entries, self._cluster_ips),
            "endpointslices": _Slices(entries, self._endpoint_ips, pod_names, zones),
            "pods": _Pods(self._pod_ips, labels),
        }
        below = [self.below_svc, self.below_pod]
        if IMPORTS[0] in self.waiting:
            self._shelves["serviceimports"] = _Services(imports, None, b"imp/")
            self._shelves["importedslices"] = _Slices(imports, None, pod_names, fact=b"ime/")
            below.append(self.below_import)
        self._shelves["namespaces"] = _Namespaces(self.namespaces, *below)
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

    def _finish(self, kind: str, shelf: _Shelf, relist: _Relist) -> set[Fact]:
        gone = [key for key in shelf.places() if key not in relist.seen]
        return _changed(shelf, relist, list(relist.changes)) | _lost(shelf, relist, gone) | self._end(kind)

    def _steps(self, kind: str, shelf: _Shelf, relist: _Relist) -> Iterator[set[Fact]]:
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


def _changed(shelf: _Shelf, relist: _Relist, keys: Iterable[bytes]) -> set[Fact]:
    """Let these changes take force, but for those that a later event has made up for."""
    facts: set[Fact] = set()
    for key in keys:
        changed = relist.changes.pop(key, None)
        if changed is not None:
            facts |= shelf.put(key, changed)
    return facts


def _lost(shelf: _Shelf, relist: _Relist, keys: Iterable[bytes]) -> set[Fact]:
    """Take away what the list did not have, and no event since."""
    facts: set[Fact] = set()
    for key in keys:
        if key not in relist.seen:
            facts |= shelf.remove(key)
    return facts


def _in_steps(shelf: _Shelf, relist: _Relist, gone: list[bytes]) -> Iterator[set[Fact]]:
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


def _noted(shelf: _Shelf, relist: _Relist, found: Object) -> set[Fact]:
    """One object of a list: an addition is served at once, a change when the list is complete."""
    key = shelf.key(found.namespace, found.name)
    relist.seen.add(key)
    change = shelf.change(key, found)
    if change is None:
        return shelf.put(key, found)
    if change:
        relist.changes[key] = found
    return set()
