"""The places of the index: one shelf for each kind of objects, and what stands there.

A shelf puts an object in place, takes one away, and says which facts (see `kdns.cluster.index`) that has touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from kdns.cluster.objects import EndpointSlice, ImportedSlice, Namespace, Object, Pod, Port, Service
from kdns.denial import Existing
from kdns.message import Fact

T = TypeVar("T")


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

    def rows(self) -> list[tuple[bytes, bytes, bytes, bytes]]:
        """As `endpoints`, with the topology zone of each, which may be empty."""
        return [(*found, b"") for found in self.endpoints()]

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

    def rows(self) -> list[tuple[bytes, bytes, bytes, bytes]]:
        zones: Iterable[bytes] = self.zones.split(b"\0") if self.zones else repeat(b"")
        return [(*found, zone) for found, zone in zip(self.endpoints(), zones, strict=False)]

    def within(self, zone: bytes) -> list[tuple[bytes, bytes, bytes]]:
        """As `endpoints`, of those in this zone."""
        return [found[:3] for found in self.rows() if found[3] == zone]


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


class Many(Generic[T]):
    """Address → the few things that have it.  Nearly always it is one, which then stands there without a tuple."""

    def __init__(self) -> None:
        self._map: dict[bytes, T | tuple[T, ...]] = {}

    def get(self, address: bytes) -> tuple[T, ...]:
        """All that have it."""
        found = self._map.get(address)
        if found is None:
            return ()
        return found if isinstance(found, tuple) else (found,)

    def add(self, address: bytes, thing: T) -> None:
        """It has the address, too."""
        known = self.get(address)
        if not any(other is thing for other in known):
            self._map[address] = (*known, thing) if known else thing

    def remove(self, address: bytes, thing: T) -> None:
        """It has the address no more."""
        rest = tuple(other for other in self.get(address) if other is not thing)
        if not rest:
            self._map.pop(address, None)
        else:
            self._map[address] = rest if len(rest) > 1 else rest[0]


class Shelf:
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


class Namespaces(Shelf):
    """Which namespaces there are."""

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


class Entries:
    """The entries, which Services and slices share: made by whoever comes first, gone with the last."""

    def __init__(self, existing: Existing) -> None:
        self.by_key: dict[bytes, Entry] = {}
        self._existing = existing

    def get(self, key: bytes) -> Entry:
        """The entry, made when it is not there."""
        entry = self.by_key.get(key)
        if entry is None:
            self._existing.add(key)
            entry = self.by_key[key] = Entry(key)
        return entry

    def tidy(self, entry: Entry) -> None:
        """Take the entry out if nothing is left in it."""
        if entry.service is None and not entry.slices:
            del self.by_key[entry.key]
            self._existing.discard(entry.key)


class Services(Shelf):
    """Services, or ServiceImports: without ``by_ip`` nobody looks for them by their addresses."""

    def __init__(self, entries: Entries, by_ip: Many[Entry] | None, fact: bytes = b"svc/") -> None:
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


class Slices(Shelf):
    """Slices of Services, or of ServiceImports: without ``by_ip`` nobody looks for those by their addresses."""

    def __init__(
        self,
        entries: Entries,
        by_ip: Many[Entry] | None,
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
        after = self._trim(key, new)
        if entry.key != entry_key(new.service, new.namespace) or _common(old) != _common(after):
            return None
        rows = dict.fromkeys([*after.rows(), *old.rows()])
        if not rows:
            return new
        addresses, *texts = zip(*rows, strict=True)
        hostnames, pods, zones = map(b"\0".join, texts)
        return replace(new, addresses=b"".join(addresses), hostnames=hostnames, pods=pods, zones=zones)

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


def _common(part: Slice) -> tuple[object, ...]:
    """What a slice says of all its endpoints alike."""
    return part.width, part.ports, part.cluster if isinstance(part, Imported) else b""


class Pods(Shelf):
    """Pods by their names, and by their addresses."""

    def __init__(self, by_ip: Many[Known], labels: bool) -> None:
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
