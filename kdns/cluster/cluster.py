"""One source of cluster objects and the index that it fills: what outlives a reload, and what server blocks share."""

from __future__ import annotations

import asyncio
import os.path
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from kdns import limits
from kdns.cluster.ask import Selection
from kdns.cluster.index import Index
from kdns.cluster.objects import IMPORT_NAME, KINDS, Apply, EndpointSlice, Event, InitDone, Object
from kdns.cluster.shelves import entry_key, known_fact
from kdns.log import Logger
from kdns.message import Fact
from kdns.metrics import Metrics

if TYPE_CHECKING:
    from kdns.cluster.snapshot import Snapshot

LIVING: Final = "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"
"""Field selector for Pods (CoreDNS)."""
AUDIT: Final = 30.0
"""Seconds between comparisons with the API server, unless ``audit`` says otherwise."""
PROGRAMMING: Final = tuple(0.001 * 2**n for n in range(20))
"""Bounds of the histogram ``dns_programming_duration_seconds`` (CoreDNS)."""


class Settings(Struct, frozen=True):
    """Where objects come from and which of them are wanted; equal settings share one Cluster.

    The first of ``manifests``, ``kubeconfig`` and ``endpoint`` that is not empty counts; without any it is the cluster
    that we run in.
    """

    manifests: str = ""
    """A directory."""
    kubeconfig: str = ""
    context: str = ""
    endpoint: str = ""
    """URL of the API server."""
    tls: tuple[str, str, str] = ("", "", "")
    """Files for ``endpoint``: certificate, key, CA."""
    qps: float = 0.0
    burst: int = 0
    max_inflight: int = 0
    labels: str = ""
    """Label selector for Services, EndpointSlices and Pods."""
    namespace_labels: str = ""
    endpoints: bool = True
    """EndpointSlices are wanted."""
    pods: bool = False
    """Pods are wanted."""
    pod_names: bool = False
    """The names of Pods are wanted for their endpoints."""
    pod_labels: bool = False
    zones: bool = False
    """The topology zones of endpoints are wanted."""
    imports: bool = False
    """ServiceImports and their EndpointSlices are wanted."""
    audit: float = AUDIT
    """Seconds between comparisons with the API; 0: none.  See `kdns.cluster.auditor`."""

    @property
    def kinds(self) -> dict[str, Selection]:
        """The kinds to follow, and which of their objects."""
        kinds = {"namespaces": Selection(self.namespace_labels), "services": Selection(self.labels)}
        if self.endpoints:
            kinds["endpointslices"] = Selection(self.labels)
        if self.pods:
            kinds["pods"] = Selection(self.labels, LIVING)
        if self.imports:
            # Not by labels of Namespaces, which CoreDNS wants to see on ServiceImports.
            kinds["serviceimports"] = Selection()
            kinds["importedslices"] = Selection(f"{self.labels},{IMPORT_NAME}" if self.labels else IMPORT_NAME)
        return kinds

    @property
    def contents(self) -> dict[str, str]:
        """Kind → which of its objects the index holds, and what of them: equal texts mean the same.

        Only kinds that a snapshot keeps: ServiceImports it does not.
        """
        kinds = [(kind, selection) for kind, selection in self.kinds.items() if kind in KINDS]
        contents = {kind: f"{selection.labels!r} {selection.fields!r}" for kind, selection in kinds}
        for kind, more in (("endpointslices", (self.pod_names, self.zones)), ("pods", self.pod_labels)):
            if kind in contents:
                contents[kind] += f" {more}"
        return contents

    def identity(self) -> str:
        """Which cluster it is, as far as that can be told without asking it; raises OSError and ApiError.

        Two clusters may well have the same address inside, so the CA counts, or the whole kubeconfig.
        """
        from kdns.cluster import credentials

        if self.kubeconfig:
            return f"kubeconfig {self.kubeconfig} {self.context!r} {_digest(self.kubeconfig)}"
        if self.endpoint:
            return f"{self.endpoint} {_digest(self.tls[2])}"
        access = credentials.in_cluster()
        return f"{access.authority} {_digest(os.path.join(credentials.SERVICE_ACCOUNT, 'ca.crt'))}"


def _digest(file: str) -> str:
    """A text for what a small file says; the same for no file at all."""
    from hashlib import sha256

    if not file:
        return "-"
    with open(file, "rb") as opened:
        return sha256(opened.read(limits.API_CREDENTIALS)).hexdigest()[:16]


class Source(Protocol):
    """What hands on events: `kdns.cluster.api.ApiSource` or `kdns.cluster.manifests.ManifestSource`."""

    @property
    def status(self) -> dict[str, str]:
        """Why each kind is not known yet; empty when it is."""

    @property
    def trouble(self) -> dict[str, str]:
        """What is in the way of each kind at this moment, known or not; empty when nothing is."""

    def start(self) -> None:
        """Begin, in the running loop."""

    def close(self) -> None:
        """End."""


class Cluster:
    """An index and the source that keeps it up to date."""

    def __init__(
        self,
        settings: Settings,
        drop: Callable[[Iterable[Fact]], None],
        metrics: Metrics,
        log: Logger,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``drop`` takes the facts that each event touched; ``wall`` tells Unix time.

        Manifests are read here.  Raises ObjectError, BadValue or ApiError when the source cannot be used.
        """
        self.index = Index(settings.kinds, settings.pod_names, settings.pod_labels, settings.zones)
        self.synced = asyncio.Event()
        """Set once all objects are known."""
        self.restoring: asyncio.Task[None] | None = None
        """While a snapshot is read."""
        self.changes = 0
        """Moves with every event that touched a fact."""
        self._settings = settings
        self._snapshots: list[Snapshot] = []
        self._restored: Snapshot | None = None
        self._log = log
        self._drop = drop
        self._wall = wall
        self._programming = metrics.histogram(
            "coredns_kubernetes_dns_programming_duration_seconds",
            "Histogram of the time (in seconds) it took to program a dns instance.",
            PROGRAMMING,
            ("service_kind",),
        )
        self._in_use = metrics.gauge(
            "kdns_kubernetes_snapshot_in_use", "Whether answers come from a snapshot.", ("resource",)
        )
        self._started = False
        make = _manifests if settings.manifests else _api
        self._source = make(settings, self, metrics, log)

    def begin_with(self, snapshot: Snapshot) -> None:
        """Let `start` restore this snapshot, or the first good one of several; after the start it does nothing."""
        if not self._started:
            self._snapshots.append(snapshot)

    def start(self) -> None:
        """Follow the source, in the running loop; calling it again does nothing."""
        if self._started:
            return
        self._started = True
        if self._snapshots:
            self.restoring = asyncio.get_running_loop().create_task(self._restore(), name="restoring a snapshot")
        else:
            self._source.start()

    async def _restore(self) -> None:
        """Remember, then begin to follow: what is heard first must not be overwritten by what was true before."""
        try:
            for snapshot in self._snapshots:
                if await snapshot.restore(self.index):
                    self._restored = snapshot
                    break
                self._unsay()
        except Exception as error:  # noqa: BLE001 - a bug in reading old news must not keep the new ones out
            self.index.forget()
            self._log.error(f"a snapshot could not be restored: {error!r}")
            self._unsay()
        self._show_in_use()
        self.restoring = None
        self._source.start()

    def _unsay(self) -> None:
        """A snapshot was none, or of others: end what may have been answered from it before that turned out."""
        self._drop(set(map(known_fact, self.index.waiting)))

    def close(self) -> None:
        """Follow it no more."""
        if self.restoring is not None:
            self.restoring.cancel()
        self._source.close()

    def unsynced(self) -> dict[str, str]:
        """The kinds that are not known yet, and why."""
        status = self._source.status
        return {kind: self._instead(kind) + status.get(kind, "") for kind in self.index.waiting}

    def _instead(self, kind: str) -> str:
        """What answers meanwhile, for people."""
        if kind in self.index.remembered and self._restored is not None:
            # Not its age: whoever logs changes would log each second.
            return f"from a snapshot of {self._restored.told_time()}; "
        return ""

    def in_step(self) -> bool:
        """Whether everything is known, and nothing is in the way of knowing what changes."""
        index = self.index
        return not (index.waiting or index.listing or any(self._source.trouble.values()))

    def copy(self, kind: str) -> Iterator[Object]:
        """The objects of a kind as they are now, made one by one; see `snapshot.Known`."""
        return self.index.copy(kind)

    def apply(self, event: Event) -> None:
        """Put an event in place and drop the facts that it touched."""
        now = self._wall()
        remembered = self.index.remembered
        self._touched(self.index.apply(event, now), remembered)
        if isinstance(event, Apply) and isinstance(event.object, EndpointSlice) and event.object.changed:
            self._observe(event.object, now)

    def finish(self, event: InitDone) -> Iterator[None]:
        """As `apply`, in steps of a few milliseconds, so that others may have their turn in between."""
        steps = self.index.finish(event.kind, self._wall())
        while True:
            remembered = self.index.remembered
            facts = next(steps, None)
            if facts is None:
                return
            self._touched(facts, remembered)
            yield

    def _touched(self, facts: set[Fact], remembered: tuple[str, ...]) -> None:
        """Tell everybody; ``remembered``: what was remembered before."""
        if facts:
            self.changes += 1
            self._drop(facts)
        if remembered != self.index.remembered:
            self._end_memory()
        if not self.index.waiting and not self.synced.is_set():
            self.synced.set()

    def _end_memory(self) -> None:
        """A kind that was remembered is known."""
        self._show_in_use()
        if not self.index.remembered:
            self._log.info("the API server has been heard: the snapshot is no longer answered from")

    def _show_in_use(self) -> None:
        for kind in self._settings.kinds if self._snapshots else ():
            self._in_use.cell(kind).value = kind in self.index.remembered

    def _observe(self, changed: EndpointSlice, now: float) -> None:
        """Tell how long it took from the cause of a slice's change to the answers."""
        entry = self.index.entries.get(entry_key(changed.service, changed.namespace))
        try:
            began = datetime.fromisoformat(changed.changed).timestamp()
        except ValueError:
            return
        if entry is not None and entry.service is not None:
            kind = "headless_with_selector" if entry.service.headless else "cluster_ip"
            self._programming.cell(kind).observe(now - began)


# The sources are imported when they are needed: one knows YAML, the other HTTP and TLS, and neither is small.


def _manifests(settings: Settings, cluster: Cluster, metrics: Metrics, log: Logger) -> Source:
    from kdns.cluster.manifests import ManifestSource

    source = ManifestSource(settings.manifests, settings.kinds, cluster.apply, metrics, log)
    source.load()
    return source


def _api(settings: Settings, cluster: Cluster, metrics: Metrics, log: Logger) -> Source:
    from kdns.cluster import credentials
    from kdns.cluster.api import ApiSource
    from kdns.cluster.http import Connection

    access: credentials.Credentials
    if settings.kubeconfig:
        access = credentials.KubeconfigCredentials(settings.kubeconfig, settings.context)
    elif settings.endpoint:
        access = credentials.endpoint(settings.endpoint, *settings.tls)
    else:
        access = credentials.in_cluster()
    connection = Connection(access, metrics, qps=settings.qps, burst=settings.burst, max_inflight=settings.max_inflight)
    audit, names = settings.audit, cluster.index.names
    return ApiSource(
        connection, settings.kinds, cluster.apply, cluster.finish, audit=audit, names=names, metrics=metrics, log=log
    )
