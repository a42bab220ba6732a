"""Names that are proven not to exist: what lets one stored NXDOMAIN answer for every name that nobody has.

An authority that knows all names below an apex says so in the lease of an NXDOMAIN (`message.Lease.denial`): the same
reply, but for the question, is true for every name below the apex that its `Existing` denies, now and later.

`Existing` is the one thing in a lease that changes.  It belongs to whoever owns the data, and stands in for the facts
that a reply to a single name has: it is brought up to date together with the data, before facts are dropped, and
whoever holds it looks into it each time anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kdns.compiled import twin
from kdns.name import Name


class Existing:
    """The names that exist below an apex, down to a depth; a superset of them does no harm.

    They are relative, folded, in wire format and without the root octet: ``b"\\x07default"`` is one label deep,
    ``b"\\x03web\\x07default"`` two.  Whatever has ``depth`` labels and a name here as its end may exist.
    """

    __slots__ = ("_names", "depth")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        """Labels of the longest names that are kept, at least 1."""
        self._names: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: bytes) -> bool:
        return name in self._names

    def add(self, name: bytes) -> None:
        """A name has appeared: call it once until it goes.

        It is found only while its parents below the apex are here, too.
        """
        self._names.add(name)

    def discard(self, name: bytes) -> None:
        """A name has gone: call it once for each `add`."""
        self._names.discard(name)

    def clear(self) -> None:
        """Nothing exists any more."""
        self._names.clear()

    def denies(self, relative: bytes) -> bool:
        """Whether a name cannot exist: it, or something that it is below, is not here.

        ``relative``: well-formed labels in front of the apex, folded.  False: only the chain knows; so for the apex
        itself, which is empty.
        """
        starts = []
        at, end = 0, len(relative)
        while at < end:
            starts.append(at)
            at += 1 + relative[at]
        return self.lacks(relative, starts, end)

    def lacks(self, name: bytes, starts: Sequence[int], end: int) -> bool:
        """`denies` for ``name[:end]``, of whose labels it is known where they start."""
        names = self._names
        # A loop, because any() would take twice the time.
        for start in starts[: -self.depth - 1 : -1]:  # noqa: SIM110
            if name[start:end] not in names:
                return True
        return False


def make_existing(depth: int) -> Existing:
    """An `Existing` of the twin that the packet cache is of; see `kdns.compiled`."""
    compiled = twin("kdns._packetcache")
    existing: Existing = (Existing if compiled is None else compiled.Existing)(depth)
    return existing


class Denial(msgspec.Struct, frozen=True, gc=False):
    """What an NXDOMAIN proves beside its own name: see the head of this module."""

    apex: Name
    """The names of which this is said end in it, and are longer."""
    existing: Existing
    """Compared by identity."""
