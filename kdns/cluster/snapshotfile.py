"""The file of a snapshot: what it looks like, and how it is written and read without trusting it.

::

    kdns snapshot 1\\n          MAGIC and VERSION
    length, Header             what it is of, and when that was true
    length, kind, objects      one kind after the other, in the order of `ORDER`, `FRAME` objects at a time
    0                          the end
    BLAKE2b of all this        32 octets, and nothing behind them

A length has four octets, big-endian; a kind one, its place in `objects.KINDS`; header and objects are MessagePack.

A file is written beside its place, brought to disk, and renamed: at every moment the place holds a whole one, whoever
is killed.  The neighbour is locked, so that two processes with one place do not write into each other's; and what is
at either is replaced only if it is a snapshot or empty, whatever somebody writes into a Corefile.

A file is read twice, a frame at a time: for its sum, and only if that is right for what it holds.  So what counts is
the size of a frame, not that of the file.  All this blocks, and is meant for a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from typing import IO, Any, Final

import msgspec
from msgspec import Struct

from kdns import limits
from kdns.cluster.objects import KINDS, EndpointSlice, Namespace, Object, Pod, Service
from kdns.errors import KdnsError
from kdns.name import BadName, from_labels, labels

MAGIC: Final = b"kdns snapshot "
VERSION: Final = b"1\n"
"""Another one for every change of what stands in the file, the fields of `objects` included."""
ORDER: Final = ("namespaces", "services", "endpointslices", "pods")
"""Kinds as they are written, and so read: what is asked most comes first."""
FRAME: Final = {"endpointslices": 50}
"""Objects in a frame, by kind; the others 500.  A slice may have 1,000 endpoints."""
SUFFIX: Final = ".new"
"""What the neighbour's name has more."""
_SUM: Final = 32
_PIECE: Final = 2**18
_END: Final = bytes(4)
_TYPES: Final[dict[str, type[Object]]] = {
    "namespaces": Namespace,
    "services": Service,
    "endpointslices": EndpointSlice,
    "pods": Pod,
}


class SnapshotError(KdnsError):
    """A snapshot cannot be used or written; the message names the file and says why."""

    def __init__(self, path: str, reason: str, text: str) -> None:
        """``reason``: one word, for metrics."""
        super().__init__(f"{path}: {text}")
        self.reason = reason


class Header(Struct, frozen=True, array_like=True):
    """What a snapshot is of."""

    cluster: str
    """Which cluster, as `cluster.identity` tells it."""
    taken: float
    """Unix time at which all of it was true."""
    kinds: dict[str, str]
    """Kind → which of its objects are here, and what of them: as `cluster.Settings.contents` tells it."""


# --- objects ↔ octets ------------------------------------------------------------------------------------------------

_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_DECODERS: Final[dict[str, msgspec.msgpack.Decoder[Any]]] = {
    kind: msgspec.msgpack.Decoder(list[found])  # type: ignore[valid-type]
    for kind, found in _TYPES.items()
}


def frame(kind: str, objects: Iterable[Object]) -> bytes:
    """A frame of objects of one kind."""
    data = _encode(objects)
    return (len(data) + 1).to_bytes(4, "big") + bytes((KINDS.index(kind),)) + data


def unframe(data: bytes) -> tuple[str, list[Object]]:
    """The kind and the objects of a frame, its length aside; raises ValueError for one that `frame` cannot have made.

    The sum tells of accidents; this keeps out what would harm the index if somebody made a file by hand.
    """
    if not data or data[0] >= len(KINDS):
        raise ValueError("no such kind")
    kind = KINDS[data[0]]
    found: list[Object] = _DECODERS[kind].decode(data[1:])
    for one in found:
        _check(one)
    return kind, found


def _check(one: Object) -> None:
    if isinstance(one, Namespace):
        _need(0 < len(one.name) < 64)
        return
    _need(0 < len(one.namespace) < 64 and bool(one.name))
    # People are told of them; what is not text raises a ValueError, too.
    one.namespace.decode()
    one.name.decode()
    if isinstance(one, EndpointSlice):
        _check_endpoints(one)
    else:
        _need(all(len(address) in (4, 16) for address in one.addresses))
    if isinstance(one, Service):
        _need(len(one.name) < 64)
        _check_target(one.external or b"\0")
    if not isinstance(one, Pod):
        _need(all(0 <= port.number < 65536 and len(port.name) < 64 and len(port.protocol) < 64 for port in one.ports))


def _check_endpoints(one: EndpointSlice) -> None:
    _need(one.width in (4, 16) and not len(one.addresses) % one.width)
    count = len(one.addresses) // one.width
    for texts, longest in ((one.hostnames, 63), (one.pods, 63), (one.zones, limits.SNAPSHOT_FRAME)):
        parts = texts.split(b"\0") if texts else [b""] * count
        _need(len(parts) == count and all(len(part) <= longest for part in parts))


def _check_target(name: bytes) -> None:
    try:
        _need(from_labels(labels(name)) == name)
    except (BadName, IndexError):
        raise ValueError("not a name") from None


def _need(fine: bool) -> None:
    if not fine:
        raise ValueError("an object that cannot be")


# --- writing ---------------------------------------------------------------------------------------------------------


class Pen:
    """Writes one snapshot; `commit` puts it in its place, `close` without that leaves nothing behind.

    Every method raises OSError when the disk will not have it.
    """

    def __init__(self, path: str) -> None:
        """Raises SnapshotError when something else stands in the place, or another process is at it."""
        _check_place(path)
        self._path = path
        self._new = path + SUFFIX
        self._file: IO[bytes] | None = _locked(path, self._new)
        self._sum = hashlib.blake2b(digest_size=_SUM)
        self.size = 0
        """Octets so far."""

    def begin(self, header: Header) -> None:
        """The first thing to write."""
        data = _encode(header)
        self.write(MAGIC + VERSION + len(data).to_bytes(4, "big") + data)

    def write(self, data: bytes) -> None:
        """A frame.  Raises SnapshotError when the whole gets larger than a snapshot may be."""
        self.size += len(data)
        if self.size > limits.SNAPSHOT_FILE:
            raise SnapshotError(self._path, "large", f"a snapshot of more than {limits.SNAPSHOT_FILE} octets")
        if self._file is not None:
            self._sum.update(data)
            self._file.write(data)

    def commit(self) -> None:
        """The end: bring everything to disk and rename it to its place."""
        self.write(_END)
        if self._file is not None:
            self._file.write(self._sum.digest())
            self._file.flush()
            os.fsync(self._file.fileno())
            os.rename(self._new, self._path)
            self._let_go()
            _sync_directory(self._path)

    def close(self) -> None:
        """Give up, unless `commit` has been; never raises."""
        if self._file is not None:
            # Where it cannot be taken away it does no harm: nobody reads it, and the next one writes over it.
            with contextlib.suppress(OSError):
                os.unlink(self._new)
            self._let_go()

    def _let_go(self) -> None:
        """Close the file: that ends the lock, so the name must not be ours any more."""
        file, self._file = self._file, None
        if file is not None:
            # What its buffer may still hold is not wanted: what had to be on disk has been brought there before.
            with contextlib.suppress(OSError):
                file.close()


def _check_place(path: str) -> None:
    """Refuse to replace what is no snapshot."""
    try:
        with _open(path) as file:
            start = file.read(len(MAGIC))
    except FileNotFoundError:
        return
    if start and start != MAGIC:
        raise SnapshotError(path, "foreign", "not a snapshot of kdns: it is left as it is")


def _open(path: str) -> io.FileIO:
    """Open a regular file for reading, never waiting for whoever is at the other end; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", path)
    return io.FileIO(descriptor)


def _locked(path: str, new: str) -> IO[bytes]:
    """The neighbour, empty and ours alone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(new, flags, 0o600), "wb")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.stat(new, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            raise SnapshotError(path, "busy", "another process is writing it") from None
        found = os.fstat(file.fileno())
        # Whoever had it may have renamed it between our opening and our locking it: then it is the snapshot itself.
        if (here.st_dev, here.st_ino) != (found.st_dev, found.st_ino):
            raise SnapshotError(path, "busy", "another process is writing it")
        _check_neighbour(path, new, found)
        os.fchmod(file.fileno(), 0o600)
        os.ftruncate(file.fileno(), 0)
    except BaseException:
        file.close()
        raise
    return file


def _check_neighbour(path: str, new: str, found: os.stat_result) -> None:
    """Refuse to write over what no snapshot has left there: one that was killed, or a power failure, which is zeros."""
    if not stat.S_ISREG(found.st_mode):
        raise SnapshotError(path, "foreign", f"{new} is not a file")
    if found.st_nlink > 1:
        raise SnapshotError(path, "foreign", f"{new} has another name, too: it is left as it is")
    with _open(new) as file:
        start = file.read(len(MAGIC))
    if any(start) and not MAGIC.startswith(start):
        raise SnapshotError(path, "foreign", f"{new} is not a snapshot of kdns: it is left as it is")


def _sync_directory(path: str) -> None:
    """So that the renaming, too, outlives a power failure."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# --- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """A snapshot that is whole."""

    def __init__(self, path: str) -> None:
        """Read it for its sum.  Raises SnapshotError; FileNotFoundError when nothing is there."""
        self.path = path
        self.size = 0
        """Octets."""
        try:
            self._file = _open(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SnapshotError(path, "unreadable", f"cannot be read: {error.strerror}") from None
        try:
            self.header = self._verify()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def frames(self) -> Iterator[bytes]:
        """The frames with objects, for `unframe`; raises SnapshotError."""
        try:
            while size := self._length():
                data = self._file.read(size)
                if len(data) != size:
                    raise self._wrong("damaged", "it changed while it was read")
                yield data
        except OSError as error:
            raise self._wrong("unreadable", f"cannot be read: {error.strerror}") from None

    def _verify(self) -> Header:
        """Check everything; the file then stands at the first frame."""
        try:
            size = self.size = os.fstat(self._file.fileno()).st_size
            if size > limits.SNAPSHOT_FILE + _SUM:
                raise self._wrong("large", f"larger than {limits.SNAPSHOT_FILE} octets")
            start = self._file.read(len(MAGIC) + len(VERSION))
            if not start.startswith(MAGIC):
                raise self._wrong("foreign", "not a snapshot of kdns" if start else "empty")
            if start[len(MAGIC) :] != VERSION:
                raise self._wrong("version", "of another version of kdns, or damaged")
            self._check_sum(size)
            self._file.seek(len(start))
            return _decode_header(self._file.read(self._length()))
        except OSError as error:
            raise self._wrong("unreadable", f"cannot be read: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._wrong("damaged", "damaged: its header makes no sense") from None

    def _length(self) -> int:
        """How much comes next."""
        length = int.from_bytes(self._file.read(4), "big")
        if length > limits.SNAPSHOT_FRAME:
            raise self._wrong("damaged", f"damaged: a frame of over {limits.SNAPSHOT_FRAME} octets")
        return length

    def _check_sum(self, size: int) -> None:
        self._file.seek(0)
        total = hashlib.blake2b(digest_size=_SUM)
        left = size - _SUM
        while left > 0:
            piece = self._file.read(min(left, _PIECE))
            if not piece:
                break
            total.update(piece)
            left -= len(piece)
        if left or total.digest() != self._file.read(_SUM + 1):
            raise self._wrong("damaged", "damaged: its checksum is wrong")

    def _wrong(self, reason: str, text: str) -> SnapshotError:
        return SnapshotError(self.path, reason, text)
