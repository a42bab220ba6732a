"""The last snapshot of a cluster, for a start without its API server: written while all is well, read once.

`Snapshot.restore` hands the objects of the file to the index before any event, a millisecond's worth at a time.  A file
that is damaged, too old or of another cluster is refused with one log line; then everything is as if there were none.
A kind of which other settings chose the objects is left out alone: who adds ``pods verified`` while the API server is
away loses nothing else.

`Snapshot.keep` has the file written: soon after the first sync, then when something has changed, and often enough to
show that it is still true; at most every `GAP` seconds, and for 1 % of the time.  Only what is in step with the API
server is written, so the age of a snapshot is that of its truth.  The loop is held for a copy of references (an object
never changes) and then for a frame at a time; the disk is waited for in a thread.  A disk that cannot be written to is
one warning, until it can be.

Metrics, by ``file``:

- ``kdns_kubernetes_snapshot_age_seconds``: since what the file holds was last known to be true;
- ``kdns_kubernetes_snapshot_last_write_timestamp_seconds``: when this process last wrote it; 0: never;
- ``kdns_kubernetes_snapshot_size_bytes``: of what it last wrote or read;
- ``kdns_kubernetes_snapshot_refusals_total{reason}``: a file not read (``damaged``, ``version``, ``foreign``, ``old``,
  ``large``, ``unreadable``, ``settings``: a kind of it) or not written (``unwritable``, ``large``, ``foreign``,
  ``busy``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from msgspec.structs import replace

from kdns import limits
from kdns.cluster.objects import EndpointSlice, Object, Service
from kdns.cluster.snapshotfile import FRAME, ORDER, Header, Pen, Reader, SnapshotError, frame, unframe
from kdns.errors import KdnsError
from kdns.log import Logger
from kdns.metrics import Metrics
from kdns.values import duration_text

TICK: Final = 5.0
"""Seconds between two looks whether it should be written."""
GAP: Final = 60.0
"""Seconds from one writing to the next, at least."""
REFRESH: Final = 600.0
"""Seconds after which it is written though nothing has changed; or a quarter of its greatest age, if that is less."""
SHARE: Final = 0.01
"""Of the time at most goes into writing."""
AT_END: Final = 2.0
"""Seconds that the last writing may take while the process ends."""
SKEW: Final = 60.0
"""Seconds by which the clock may have gone back since the file was written."""
SLICE: Final = 0.001
"""Seconds of work until queries get their turn."""
PIECE: Final = 2**18
"""Octets that are handed to the thread at once."""

T = TypeVar("T")


class Known(Protocol):
    """What a snapshot is of: a `kdns.cluster.cluster.Cluster`."""

    changes: int
    """Moves with every change."""

    def in_step(self) -> bool:
        """Whether everything is known and true at this moment, as far as anybody can tell."""

    def copy(self, kind: str) -> Iterator[Object]:
        """The objects of a kind as they are now, made one by one."""


class Rememberer(Protocol):
    """Who takes in what is restored: a `kdns.cluster.index.Index`."""

    def remember(self, kind: str, objects: list[Object]) -> None:
        """Some objects of a kind."""

    def recall(self, kind: str) -> None:
        """They may be told of from now on."""

    def forget(self) -> None:
        """All of it was wrong."""


class Snapshot:
    """One file."""

    def __init__(
        self,
        path: str,
        max_age: float,
        contents: Mapping[str, str],
        identity: Callable[[], str],
        metrics: Metrics,
        log: Logger,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``max_age`` in seconds; ``contents``: kind → which of its objects, and what of them; ``identity``: which
        cluster (raises OSError or KdnsError when that cannot be told now), asked in a thread; ``wall``: Unix time."""
        self.path = path
        self.taken: float | None = None
        """Unix time at which what the file holds was true; None: there is no file that counts."""
        self._max_age = max_age
        self._contents = dict(contents)
        self._identity = identity
        self._metrics = metrics
        self._log = log
        self._wall = wall
        self._now = time.monotonic
        self._task: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(1, "snapshot")
        self._pen: Pen | None = None  # of the thread
        self._tidied: Future[None] | None = None  # when the thread has done with the last writing
        self._writing = asyncio.Lock()
        self._written: int | None = None  # `Known.changes` at that time
        self._tried_at = float("-inf")
        self._gap = GAP
        self._complaint = ""
        self._refusals = metrics.counter(
            "kdns_kubernetes_snapshot_refusals_total", "Snapshots not read or not written.", ("file", "reason")
        )
        self._age = metrics.gauge(
            "kdns_kubernetes_snapshot_age_seconds", "Since what the snapshot holds was known to be true.", ("file",)
        )
        self._size = metrics.gauge("kdns_kubernetes_snapshot_size_bytes", "Size of the snapshot.", ("file",)).cell(path)
        self._write_time = metrics.gauge(
            "kdns_kubernetes_snapshot_last_write_timestamp_seconds", "When the snapshot was last written.", ("file",)
        ).cell(path)
        self._forget_hook = metrics.before_scrape(self._show_age)

    @property
    def age(self) -> float | None:
        """Seconds since what the file holds was true; None: there is no file that counts."""
        return None if self.taken is None else max(0.0, self._wall() - self.taken)

    def close(self) -> None:
        """Write it no more."""
        if self._task is None:
            self._worker.shutdown(wait=False)
        else:
            self._task.add_done_callback(lambda task: self._worker.shutdown(wait=False))
            self._task.cancel()
        self._forget_hook()
        self._age.forget(self.path)

    def _show_age(self) -> None:
        age = self.age
        if age is not None:
            self._age.cell(self.path).value = age

    def _refuse(self, error: SnapshotError) -> None:
        self._refusals.cell(self.path, error.reason).value += 1

    # -- reading

    async def restore(self, into: Rememberer) -> bool:
        """Hand on what the file holds; whether it held anything that counts.  A refusal is logged, never raised."""
        try:
            async with asyncio.timeout(limits.SNAPSHOT_TIME):
                mine, reader = await self._aside(self._open)
        except FileNotFoundError:
            self._log.info(f"no snapshot yet: {self.path}")
            return False
        except TimeoutError:
            return self._refused(SnapshotError(self.path, "unreadable", f"not read in {limits.SNAPSHOT_TIME:g} s"))
        except SnapshotError as error:
            return self._refused(error)
        try:
            counts = await self._hand_on(reader, self._accept(reader.header, mine), into)
        except SnapshotError as error:
            into.forget()
            return self._refused(error)
        finally:
            reader.close()
        self.taken = reader.header.taken
        self._size.value = reader.size
        found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        self._log.warning(f"{self.path}: {found}, true {duration_text(round(self.age or 0.0))} ago, stand in")
        return True

    def _open(self) -> tuple[str, Reader]:
        """Which cluster is ours, and the file."""
        reader = Reader(self.path)
        try:
            return self._identity(), reader
        except (OSError, KdnsError) as error:
            reader.close()
            raise SnapshotError(self.path, "foreign", f"it cannot be told which cluster is ours: {error}") from None

    def told_time(self) -> str:
        """The time at which what the file holds was true, in words."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.taken or 0.0))

    def _refused(self, error: SnapshotError) -> bool:
        self._refuse(error)
        self._log.error(f"{error}; the snapshot is not used")
        return False

    def _accept(self, header: Header, mine: str) -> list[str]:
        """The kinds that may be taken from this file; raises SnapshotError when it is none for us."""
        age = self._wall() - header.taken
        if not -SKEW <= age <= self._max_age:
            told = f"{duration_text(round(age))} old" if age > 0 else "from the future, going by our clock"
            raise SnapshotError(self.path, "old", f"{told}; max_age is {duration_text(self._max_age)}")
        if header.cluster != mine:
            raise SnapshotError(self.path, "foreign", f"of another cluster: {header.cluster}, ours is {mine}")
        kinds = [kind for kind in self._contents if header.kinds.get(kind) == self._contents[kind]]
        for kind in self._contents:
            if kind not in kinds and kind in header.kinds:
                self._refuse(SnapshotError(self.path, "settings", ""))
                self._log.warning(f"{self.path}: its {kind} were chosen by other settings and are left out")
        if not kinds:
            raise SnapshotError(self.path, "foreign", "made with settings that have nothing in common with ours")
        return kinds

    async def _hand_on(self, reader: Reader, kinds: list[str], into: Rememberer) -> dict[str, int]:
        """Remember the objects of these kinds; how many there were of each.  Raises SnapshotError."""
        counts = dict.fromkeys(kinds, 0)
        for kind in kinds:
            # A Service of which half the endpoints are here must not be told of; anything else may come bit by bit.
            if kind != "endpointslices":
                into.recall(kind)
        # Equal values become one object, as they are when they come from the API server.
        same: dict[Any, Any] = {}
        turn = self._now() + SLICE
        for data in reader.frames():
            try:
                kind, objects = unframe(data)
            except ValueError as error:
                raise SnapshotError(self.path, "damaged", f"made by somebody else: {error}") from None
            if kind in counts:
                into.remember(kind, [_shared(one, same) for one in objects])
                counts[kind] += len(objects)
            if self._now() >= turn:
                await asyncio.sleep(0)
                turn = self._now() + SLICE
        for kind in kinds:
            into.recall(kind)
        return counts

    # -- writing

    def keep(self, known: Known) -> None:
        """Have the file written from now on, in the running loop; calling it again does nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep(known), name=f"snapshot {self.path}")

    async def _keep(self, known: Known) -> None:
        refresh = min(REFRESH, self._max_age / 4)
        while True:
            await asyncio.sleep(TICK)
            idle = self._now() - self._tried_at
            if idle >= self._gap and (known.changes != self._written or idle >= refresh):
                try:
                    await self._write_in_time(known)
                except TimeoutError:
                    text = f"cannot be written: the disk has not answered for {limits.SNAPSHOT_WRITE:g} s"
                    self._complain(SnapshotError(self.path, "unwritable", text))
                except Exception as error:  # noqa: BLE001 - a bug must cost this snapshot only
                    self._complain(SnapshotError(self.path, "unwritable", f"cannot be written: {error!r}"))

    async def _write_in_time(self, known: Known) -> None:
        """Raises TimeoutError when the disk does not answer, or still has not done so since the last time."""
        if self._tidied is not None and not self._tidied.done():
            self._tried_at = self._now()
            raise TimeoutError
        async with asyncio.timeout(limits.SNAPSHOT_WRITE):
            await self.write(known)

    async def write_last(self, known: Known) -> None:
        """Write what has changed since the last time, as the process ends; gives up after `AT_END` seconds."""
        if known.changes != self._written:
            try:
                async with asyncio.timeout(AT_END):
                    await self.write(known)
            except TimeoutError:
                self._complain(SnapshotError(self.path, "unwritable", f"not written in {AT_END:g} s at the end"))

    async def write(self, known: Known) -> bool:
        """Write the file now; whether that was done: not while something is unknown or in the way."""
        async with self._writing:
            if not known.in_step():
                return False
            began = self._tried_at = self._now()
            changes, taken = known.changes, self._wall()
            try:
                self._size.value = await self._write(taken, known)
            except SnapshotError as error:
                self._complain(error)
                return False
            except (OSError, KdnsError) as error:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._complain(SnapshotError(self.path, "unwritable", f"cannot be written: {text}"))
                return False
            self._gap = max(GAP, (self._now() - began) / SHARE)
            self._written, self.taken, self._write_time.value = changes, taken, taken
            if self._complaint:
                self._complaint = ""
                self._log.info(f"{self.path}: written again")
            return True

    def _complain(self, error: SnapshotError) -> None:
        self._refuse(error)
        if str(error) != self._complaint:
            self._complaint = str(error)
            self._log.warning(f"{error}; the snapshot before it, if any, stays")

    async def _write(self, taken: float, known: Known) -> int:
        """Write the whole file; its size in octets."""
        try:
            pen = await self._aside(self._begin, taken)
            pending = bytearray()
            turn = self._now() + SLICE
            kinds = [kind for kind in ORDER if kind in self._contents]
            for data in (data for kind in kinds for data in _frames(kind, known.copy(kind))):
                pending += data
                if len(pending) >= PIECE:
                    await self._aside(pen.write, bytes(pending))
                    pending.clear()
                elif self._now() >= turn:
                    await asyncio.sleep(0)
                else:
                    continue
                turn = self._now() + SLICE
            await self._aside(self._commit, bytes(pending))
            return pen.size
        finally:
            # Whatever of it still goes on in the thread comes first.
            self._tidied = self._worker.submit(self._end)

    def _begin(self, taken: float) -> Pen:
        self._pen = Pen(self.path)
        self._pen.begin(Header(self._identity(), taken, self._contents))
        return self._pen

    def _commit(self, rest: bytes) -> None:
        if self._pen is not None:
            self._pen.write(rest)
            self._pen.commit()

    def _end(self) -> None:
        if self._pen is not None:
            self._pen.close()
            self._pen = None

    async def _aside(self, call: Callable[..., T], *args: object) -> T:
        """Do in the file's own thread, one after the other, what may block."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call, *args)


def _frames(kind: str, objects: Iterator[Object]) -> Iterator[bytes]:
    while part := list(islice(objects, FRAME.get(kind, 500))):
        yield frame(kind, part)


def _shared(one: Object, same: dict[Any, Any]) -> Object:
    """The same object with what equals a part of one before it out of that."""
    if isinstance(one, Service | EndpointSlice):
        namespace = same.setdefault(one.namespace, one.namespace)
        return replace(one, namespace=namespace, ports=same.setdefault(one.ports, one.ports))
    return one
