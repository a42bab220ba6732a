"""Cluster objects out of YAML files: ``kubernetes cluster.local { manifests DIR }``, no cluster needed.

All ``.yaml``, ``.yml`` and ``.json`` files below the directory are read, names that begin with a dot excepted; what
they amount to is in `kdns.cluster.world`.  They are looked at twice a second: once nothing has moved between two looks,
files that changed are read again, and every kind of objects that came out different is handed on as a whole list, so
the index changes only what changed.  That takes a second or less, and a file that is still being written is not read.

An edit that makes no sense changes nothing: the last good objects stay, one log line says what is wrong and where, and
`ManifestSource.trouble` repeats it until the files are good again.

Metrics: ``kdns_manifests_refused_total``: how often the files made no sense, or went beyond a bound.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from kdns import limits
from kdns.cluster import selectors
from kdns.cluster.ask import Selection
from kdns.cluster.objects import Event, Init, InitApply, InitDone, Object, ObjectError
from kdns.cluster.world import Entry, World, build, entry
from kdns.files import Stamp, stamp_of
from kdns.log import Logger
from kdns.metrics import Metrics

SUFFIXES: Final = (".yaml", ".yml", ".json")
INTERVAL: Final = 0.5
"""Seconds between two looks at the files."""
SHARE: Final = 0.05
"""Of a processor at most goes into looking: with many thousand files the looks are further apart."""
BATCH: Final = 500
"""Objects handed on before queries get their turn."""
ORDER: Final = ("namespaces", "endpointslices", "pods", "services", "importedslices", "serviceimports")
"""Kinds as they are handed on: a new Service appears with its endpoints."""


class _File(Struct, frozen=True):
    """A file that was read."""

    stamp: Stamp
    entries: tuple[Entry, ...]


class ManifestSource:
    """Keeps an index in step with a directory of manifests."""

    def __init__(
        self,
        directory: str,
        kinds: Mapping[str, Selection],
        apply: Callable[[Event], object],
        metrics: Metrics,
        log: Logger,
        interval: float = INTERVAL,
    ) -> None:
        """``kinds`` are those that are wanted, each with its label selector (what field selectors are for, the trimming
        of objects does).  ``apply`` takes the events, in the thread of the event loop.  Raises BadValue for a selector.
        """
        self._directory = directory
        self._kinds = {kind: selectors.parse(selection.labels) for kind, selection in kinds.items()}
        self._apply = apply
        self._log = log
        self._interval = interval
        self._refused = metrics.counter("kdns_manifests_refused_total", "How often the manifests made no sense.").cell()
        self._files: dict[str, _File] = {}
        self._world = World({}, {})
        self._loaded = False
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def status(self) -> dict[str, str]:
        """Why a kind is not known yet, in words for ``/ready``; empty once the files have been read."""
        return dict.fromkeys(self._kinds, "" if self._loaded else f"{self._directory} has not been read")

    @property
    def trouble(self) -> dict[str, str]:
        """What is wrong with the files at this moment; empty: nothing."""
        return dict.fromkeys(self._kinds, self._trouble)

    def load(self) -> None:
        """Read all files now and hand on what they hold; raises ObjectError when they make no sense."""
        try:
            files, world = self._read(_stamps(self._directory))
        except ObjectError:
            self._refused.value += 1
            raise
        for _ in self._install(files, world):
            pass

    def start(self) -> None:
        """Follow the files from now on; needs the running event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow(), name=f"manifests {self._directory}")
            self._task.add_done_callback(self._ended)

    def close(self) -> None:
        """Follow the files no longer."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Only a bug ends the following before `close` does; then somebody should know."""
        if not task.cancelled() and (error := task.exception()):
            self._trouble = f"{self._directory} is followed no longer: {error!r}"
            self._log.error(self._trouble)

    # --- following ---------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        done: object = {path: file.stamp for path, file in self._files.items()}
        last: object = None
        while True:
            began = time.monotonic()
            look = await asyncio.to_thread(self._look)
            took = time.monotonic() - began
            if look != done and look == last:
                done = look
                await self._update(look)
            last = look
            await asyncio.sleep(max(self._interval, took / SHARE))

    def _look(self) -> dict[str, Stamp] | str:
        """The files as they are now, or why they cannot be seen."""
        try:
            return _stamps(self._directory)
        except ObjectError as error:
            return str(error)

    async def _update(self, look: dict[str, Stamp] | str) -> None:
        """Take over what has changed, or complain."""
        found = look if isinstance(look, str) else await asyncio.to_thread(self._try, look)
        if await asyncio.to_thread(self._look) != look:
            # Somebody wrote while we read, so this may be half of it; the next looks will tell.
            return
        if isinstance(found, str):
            self._refuse(found)
            return
        for _ in self._install(*found):
            await asyncio.sleep(0)
        if self._trouble:
            self._trouble = ""
            self._log.info(f"{self._directory}: the manifests are good again")

    def _refuse(self, trouble: str) -> None:
        self._refused.value += 1
        if trouble != self._trouble:
            self._trouble = trouble
            self._log.error(f"{trouble} (what was read before stays in force)")

    # --- reading and handing on --------------------------------------------------------------------------------------

    def _try(self, stamps: Mapping[str, Stamp]) -> tuple[dict[str, _File], World] | str:
        """As `_read`, or what is wrong."""
        try:
            return self._read(stamps)
        except ObjectError as error:
            return str(error)

    def _read(self, stamps: Mapping[str, Stamp]) -> tuple[dict[str, _File], World]:
        """The files, and the cluster that they describe; changes nothing, so it may run in a thread."""
        files: dict[str, _File] = {}
        for path, stamp in stamps.items():
            known = self._files.get(path)
            files[path] = known if known is not None and known.stamp == stamp else _File(stamp, _entries(path))
        entries = (one for file in files.values() for one in file.entries)
        return files, build(entries, self._kinds, self._world.allotted)

    def _install(self, files: dict[str, _File], world: World) -> Iterator[None]:
        """Hand on the kinds that have changed; yields now and then, so that queries may be answered in between."""
        before = self._world.objects
        for kind in ORDER:
            if kind in self._kinds and world.objects[kind] != before.get(kind):
                yield from self._hand_on(kind, world.objects[kind].values())
        self._files, self._world, self._loaded = files, world, True

    def _hand_on(self, kind: str, objects: Iterable[Object]) -> Iterator[None]:
        self._apply(Init(kind))
        for number, one in enumerate(objects, 1):
            self._apply(InitApply(kind, one))
            if number % BATCH == 0:
                yield
        self._apply(InitDone(kind))


def _stamps(directory: str) -> dict[str, Stamp]:
    """Every manifest file below a directory, in order of names; raises ObjectError."""
    stamps: dict[str, Stamp] = {}
    total = 0
    try:
        for path in _paths(directory):
            status = os.stat(path)
            total += status.st_size
            stamps[path] = stamp_of(status)
            if not stat.S_ISREG(status.st_mode):
                raise ObjectError(f"{path}: not a file")
            if status.st_size > limits.MANIFEST_FILE:
                raise ObjectError(f"{path}: larger than {limits.MANIFEST_FILE} octets")
            if len(stamps) > limits.MANIFEST_FILES:
                raise ObjectError(f"{directory}: more than {limits.MANIFEST_FILES} files")
            if total > limits.MANIFEST_BYTES:
                raise ObjectError(f"{directory}: more than {limits.MANIFEST_BYTES} octets in all files together")
    except OSError as error:
        raise ObjectError(f"{error.filename or directory}: {error.strerror}") from None
    return stamps


def _paths(directory: str) -> Iterator[str]:
    """Manifest files below a directory in order of names; raises OSError."""
    folders: list[str] = []
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            # Links to directories are left alone: they may lead back up.
            if not os.path.islink(path):
                folders.append(path)
        elif name.endswith(SUFFIXES):
            yield path
    for folder in folders:
        yield from _paths(folder)


def _entries(path: str) -> tuple[Entry, ...]:
    """What counts in a file; raises ObjectError."""
    # PyYAML costs 2 MiB: only who reads manifests is to pay.
    from kdns.cluster.documents import read

    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(limits.MANIFEST_FILE + 1)
    except OSError as error:
        raise ObjectError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ObjectError(f"{path}: not UTF-8: {error.reason}") from None
    return tuple(entry(document) for document in read(text, path))
