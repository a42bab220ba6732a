"""One source of cluster objects and the index that it fills: what outlives a reload, and what server blocks share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final, Protocol

from msgspec import Struct

from kdns.cluster.ask import Selection
from kdns.cluster.index import Index, entry_key
from kdns.cluster.objects import Apply, EndpointSlice, Event
from kdns.log import Logger
from kdns.message import Fact
from kdns.metrics import Metrics

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
        return kinds


class Source(Protocol):
    """What hands on events: `kdns.cluster.api.ApiSource` or `kdns.cluster.manifests.ManifestSource`."""

    @property
    def status(self) -> dict[str, str]:
        """Why each kind is not known yet; empty when it is."""

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
        self.index = Index(settings.kinds, settings.pod_names, settings.pod_labels)
        self.synced = asyncio.Event()
        """Set once all objects are known."""
        self._drop = drop
        self._wall = wall
        self._programming = metrics.histogram(
            "coredns_kubernetes_dns_programming_duration_seconds",
            "Histogram of the time (in seconds) it took to program a dns instance.",
            PROGRAMMING,
            ("service_kind",),
        )
        self._started = False
        make = _manifests if settings.manifests else _api
        self._source = make(settings, self, metrics, log)

    def start(self) -> None:
        """Follow the source, in the running loop; calling it again does nothing."""
        if not self._started:
            self._started = True
            self._source.start()

    def close(self) -> None:
        """Follow it no more."""
        self._source.close()

    def unsynced(self) -> dict[str, str]:
        """The kinds that are not known yet, and why."""
        status = self._source.status
        return {kind: status.get(kind, "") for kind in self.index.waiting}

    def apply(self, event: Event) -> None:
        """Put an event in place and drop the facts that it touched."""
        now = self._wall()
        facts = self.index.apply(event, now)
        if facts:
            self._drop(facts)
        if not self.index.waiting and not self.synced.is_set():
            self.synced.set()
        if isinstance(event, Apply) and isinstance(event.object, EndpointSlice) and event.object.changed:
            self._observe(event.object, now)

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
    return ApiSource(connection, settings.kinds, cluster.apply, audit=audit, names=names, metrics=metrics, log=log)
