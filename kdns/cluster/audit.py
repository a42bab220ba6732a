"""What has been heard of every object, in nine octets each, and how a list of metadata compares with it.

A `Ledger` is written by the watch: of each object a digest of its name, one of its resource version, and the number of
the round in which it was last heard of.  Every write to an object gives it another resource version, and a new object
of an old name too, so two equal digests of versions are one state of one object.

A `Round` holds the pages of a metadata list against the ledger.  What the watch has told of since the round began is
left out: the list may be older than that.  What is left differs because its event has been lost or is on its way; time
tells (`Round.open`), and then the object itself is looked at.  An object that the ledger has and the list has not is
known by its digest alone, until somebody goes through the names in the index.

Digests are Python's hashes, keyed anew in each process: of 24 bits for versions (a lost event passes unnoticed once in
16 million times), of 50 for names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct, field

from kdns import limits
from kdns.cluster import shapes
from kdns.cluster.objects import SINGULAR, ObjectError

METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json;q=0.5"
"""What is asked for: metadata alone; whole objects from a server that cannot do that."""

Place: TypeAlias = tuple[int, bytes]
"""The digest of a name: in which shard it is, and what it is called there."""

_SHARDS: Final = 1024
_KEY: Final = 5
_VERSION: Final = slice(5, 8)
_ROUND: Final = 8
_SIZE: Final = 9
_ROUNDS: Final = 256
_GONE: Final = bytes(3)
"""In place of a version: the object has been deleted in this round."""


def place_of(namespace: bytes, name: bytes) -> Place:
    """Where the ledger keeps an object."""
    digest = hash(b"%b/%b" % (namespace, name))
    return digest % _SHARDS, (digest // _SHARDS % 256**_KEY).to_bytes(_KEY, "little")


def digest_of(version: str) -> bytes:
    """A digest of a resource version; empty for the empty version, which means that there is no object."""
    return (hash(version) % (2**24 - 1) + 1).to_bytes(3, "little") if version else b""


class Ledger:
    """What has been heard of the objects of one kind."""

    def __init__(self) -> None:
        self.round = 0
        """Moves on with every `begin`, modulo 256: whoever finds another number than its own has been overtaken."""
        self._shards = [bytearray() for _ in range(_SHARDS)]
        self._deleted = 0

    def __len__(self) -> int:
        return sum(map(len, self._shards)) // _SIZE - self._deleted

    @property
    def size(self) -> int:
        """Octets of memory."""
        return sum(shard.__sizeof__() for shard in self._shards)

    def begin(self) -> None:
        """A list or a round begins: from now on it is written down who is heard of."""
        self.round = (self.round + 1) % _ROUNDS
        if self._deleted:
            for shard in self._shards:
                _purge(shard)
            self._deleted = 0

    def note(self, namespace: bytes, name: bytes, version: str) -> None:
        """The object is there in this version (empty: in one that nobody has told)."""
        self._write(place_of(namespace, name), digest_of(version or "?"))

    def forget(self, namespace: bytes, name: bytes) -> None:
        """The object is gone; a list that began before may still show it."""
        self._write(place_of(namespace, name), _GONE)
        if self._deleted > limits.AUDIT_DELETED:
            self.begin()

    def sweep(self) -> None:
        """A whole list has been noted: what was not heard of since `begin` is gone."""
        for place in self.absent():
            self.drop(place)

    def absent(self) -> set[Place]:
        """Who has not been heard of since `begin`."""
        found: set[Place] = set()
        for number, shard in enumerate(self._shards):
            rounds = shard[_ROUND::_SIZE]
            if rounds.count(self.round) < len(rounds):
                places = (at * _SIZE for at, last in enumerate(rounds) if last != self.round)
                found.update((number, bytes(shard[at : at + _KEY])) for at in places)
        return found

    def drop(self, place: Place) -> None:
        """Take out whoever has not been heard of since `begin`."""
        shard = self._shards[place[0]]
        at = _find(shard, place[1])
        if at >= 0 and shard[at + _ROUND] != self.round:
            _remove(shard, at)

    def digest(self, namespace: bytes, name: bytes) -> bytes:
        """Of the object's last known version; empty: it is not there."""
        number, key = place_of(namespace, name)
        shard = self._shards[number]
        at = _find(shard, key)
        found = bytes(shard[at : at + _SIZE][_VERSION]) if at >= 0 else b""
        return found if found != _GONE else b""

    def holds(self, namespace: bytes, name: bytes, version: str) -> bool:
        """Whether this is the object's last known version; empty: whether it is not there."""
        return self.digest(namespace, name) == digest_of(version)

    def check(self, namespace: bytes, name: bytes, digest: bytes) -> bytes | None:
        """Compare with what a list says; the digest that is known instead (empty: none), None if all is well.

        All is well with objects that were heard of since `begin`, whatever the list says.
        """
        number, key = place_of(namespace, name)
        shard = self._shards[number]
        at = _find(shard, key)
        if at < 0:
            return b""
        if shard[at + _ROUND] == self.round:
            return None
        shard[at + _ROUND] = self.round
        known = bytes(shard[at : at + _SIZE][_VERSION])
        return known if known != digest else None

    def _write(self, place: Place, digest: bytes) -> None:
        shard = self._shards[place[0]]
        at = _find(shard, place[1])
        if at < 0:
            shard += place[1] + digest
            shard.append(self.round)
            self._deleted += digest == _GONE
            return
        self._deleted += (digest == _GONE) - (shard[at : at + _SIZE][_VERSION] == _GONE)
        shard[at + _KEY : at + _ROUND] = digest
        shard[at + _ROUND] = self.round


def _find(shard: bytearray, key: bytes) -> int:
    """Where the entry of a key begins; -1: nowhere."""
    at = shard.find(key)
    while at >= 0 and at % _SIZE:
        at = shard.find(key, at + 1)
    return at


def _remove(shard: bytearray, at: int) -> None:
    """Take an entry out; the last one moves into its place."""
    last = shard[-_SIZE:]
    shard[at : at + _SIZE] = last
    del shard[-_SIZE:]


def _purge(shard: bytearray) -> None:
    """Take out who is gone."""
    at = shard.find(_GONE)
    while at >= 0:
        if at % _SIZE == _KEY:
            _remove(shard, at - _KEY)
            at -= _KEY + 1
        at = shard.find(_GONE, at + 1)


# --- one comparison --------------------------------------------------------------------------------------------------


class Doubt(Struct, frozen=True, gc=False):
    """An object of which the list says something else than the watch did."""

    namespace: bytes
    name: bytes
    listed: bytes
    """Digest of the version in the list; empty: it is not there."""
    known: bytes
    """Digest of the version that the watch told of; empty: none."""


class Round:
    """One comparison of one kind."""

    def __init__(self, ledger: Ledger) -> None:
        """Begin; the list must be asked for afterwards."""
        ledger.begin()
        self._ledger = ledger
        self._number = ledger.round
        self._doubts: list[Doubt] = []
        self._whole = False

    @property
    def overtaken(self) -> bool:
        """Whether another list has begun, so that this one says nothing any more."""
        return self._ledger.round != self._number

    @property
    def full(self) -> bool:
        """Whether there are more differences than `limits.AUDIT_DOUBTS`; further ones are not looked for."""
        return len(self._doubts) >= limits.AUDIT_DOUBTS

    def compare(self, page: Metadata) -> None:
        """Take one page; ``page.continue_`` tells whether it is the last."""
        for item in page.items:
            listed = digest_of(item.version)
            known = self._ledger.check(item.namespace, item.name, listed)
            if known is not None and not self.full:
                self._doubts.append(Doubt(item.namespace, item.name, listed, known))
        self._whole = not page.continue_

    def open(self) -> list[Doubt]:
        """The differences that the watch has not explained by now."""
        return [doubt for doubt in self._doubts if not self.explained(doubt)]

    def explained(self, doubt: Doubt) -> bool:
        """Whether the watch has told of the object meanwhile."""
        return self._ledger.digest(doubt.namespace, doubt.name) != doubt.known

    def absent(self) -> set[Place]:
        """Who was not in the list, nor has been heard of meanwhile; nobody before the list is whole."""
        return self._ledger.absent() if self._whole else set()

    def accuse(self, namespace: bytes, name: bytes) -> Doubt:
        """The doubt about an object that was not in the list."""
        return Doubt(namespace, name, b"", self._ledger.digest(namespace, name))


# --- what the API sends ----------------------------------------------------------------------------------------------


class Item(Struct, frozen=True, gc=False):
    """One object of a metadata list."""

    namespace: bytes
    name: bytes
    version: str


class Metadata(Struct, frozen=True):
    """A page of a metadata list."""

    items: list[Item]
    version: str
    continue_: str
    """Token for the next page; empty: this is the last."""
    partial: bool
    """It holds metadata alone, as it was asked for."""


class _List(Struct):
    metadata: shapes.ListMeta
    items: list[shapes.Identified] | None
    kind: str | None = None


class _ExpiredMeta(Struct):
    continue_: str | None = field(name="continue", default=None)


class _Expired(Struct):
    metadata: _ExpiredMeta


_PARTIAL: Final = "PartialObjectMetadataList"
_decode_list = msgspec.json.Decoder(_List).decode
_decode_expired = msgspec.json.Decoder(_Expired).decode


def decode_metadata(kind: str, data: bytes) -> Metadata:
    """A page of a list, be it of metadata or of whole objects.

    Raises ObjectError for what is no list of this kind, or lacks names or versions.
    """
    try:
        page = _decode_list(data)
    except shapes.UNREADABLE as error:
        raise ObjectError(f"metadata of {kind}: {error}") from None
    if page.kind not in (None, "", _PARTIAL, SINGULAR[kind] + "List"):
        raise ObjectError(f"metadata of {kind}: its kind is {page.kind!r}")
    metas = [item.metadata for item in page.items or ()]
    if not page.metadata.resource_version or not all(meta.name and meta.resource_version for meta in metas):
        raise ObjectError(f"metadata of {kind}: a name or a resource version is missing")
    items = [Item((meta.namespace or "").encode(), meta.name.encode(), meta.resource_version or "") for meta in metas]
    return Metadata(items, page.metadata.resource_version, page.metadata.continue_ or "", page.kind == _PARTIAL)


def decode_token(data: bytes) -> str:
    """The token in a 410 with which a list goes on, as it is by now; empty when there is none."""
    try:
        return _decode_expired(data).metadata.continue_ or ""
    except shapes.UNREADABLE:
        return ""


def named(kind: str, items: Iterable[Item], namespace: bytes, name: bytes) -> str:
    """The version out of a list that was asked for one object alone; empty: there is none.

    Raises ObjectError when the list holds anything else: then the server has not understood.
    """
    version = ""
    for item in items:
        if (item.namespace, item.name) != (namespace, name):
            raise ObjectError(f"metadata of {kind}: asked for one object, the API server sent others")
        version = item.version
    return version
