"""kubernetes: answer for the Services and Pods of a cluster.

``kubernetes [ZONES…] { … }``

Answers names in ZONES (default: the server block's) from the objects of a Kubernetes cluster, as the Kubernetes DNS
specification says; see `kdns.cluster.names` for which names there are.  ZONES may be networks, whose reverse zones are
meant; reverse lookups point into the first zone that is not reverse.  Once per server block.

Where the objects come from; without any of these it is the cluster that kdns runs in:

- ``endpoint URL``: an API server; ``tls CERT KEY CACERT``: files for it
- ``kubeconfig FILE [CONTEXT]``: an API server as in a kubeconfig of any kind; goes before ``endpoint``
- ``manifests DIR`` (kdns only): YAML files, followed when they change; no cluster is needed
- ``apiserver_qps N``, ``apiserver_burst N``, ``apiserver_max_inflight N``: bounds for requests to it; 0: none
- ``snapshot FILE { max_age DURATION }`` (kdns only; 24h): what is known is written to FILE now and then; a start
  answers from there, unless it is older, with the extended error "Stale Answer" and TTLs of 5 s at most, until the API
  server is heard.  Names that are not in it are "Not Ready", and so is ``ready``: see `kdns.cluster.snapshot`
- ``startup_timeout DURATION`` (5s): how long a reload waits for the cluster, if it needs another than before.  A start
  waits for nothing: what can be known is answered at once; in this time other names wait up to a second, then, and at
  once after it, they are SERVFAIL with the extended error "Not Ready"
- ``audit [INTERVAL|off]`` (30s; kdns only): how often all is compared with the API server, see `kdns.cluster.auditor`

Which objects, and which names:

- ``namespaces NS…``, ``namespace_labels SELECTOR``: only these namespaces; ``labels SELECTOR``: only these Services,
  EndpointSlices and Pods
- ``multicluster ZONES…``: ZONES, which are among those above, are about ServiceImports (see
  `kdns.cluster.clusterset`)
- ``zonal``: headless Services have names for their endpoints in a topology zone
- ``noendpoints``: no EndpointSlices, hence no headless Services and no names of endpoints
- ``endpoint_pod_names``: an endpoint without a hostname is named after its Pod
- ``pods disabled|insecure|verified`` (disabled): names of Pods like ``10-1-2-3.NS.pod.ZONE``: none, whatever is asked,
  or those of Pods that exist
- ``ignore empty_service``: a Service without ready endpoints does not exist
- ``ttl SECONDS`` (5; 0 … 3600): of all records
- ``fallthrough [ZONES…]``: names that do not exist (in ZONES) are left to the plugins below

Labels for ``metadata``: ``kubernetes/`` ``port-name``, ``protocol``, ``endpoint``, ``service``, ``namespace``, ``kind``
(``svc`` or ``pod``), ``parse-error``; in a zone of ``multicluster`` ``cluster``; with ``zonal`` ``zone``; with ``pods
verified`` ``client-namespace``, ``client-pod-name``, ``client-label/KEY``.

Metrics: ``coredns_kubernetes_dns_programming_duration_seconds{service_kind}``: from the cause of a change of endpoints
to the answers; ``kdns_kubernetes_snapshot_in_use{resource}``: 1 while answers come from a snapshot; those of
`kdns.cluster.http`, `kdns.cluster.api`, `kdns.cluster.auditor`, `kdns.cluster.snapshot` and `kdns.cluster.manifests`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import astuple

from kdns import interfaces, limits
from kdns.cluster.cluster import Cluster
from kdns.cluster.names import Asked, Chase, Names
from kdns.cluster.objects import pod_labels
from kdns.cluster.replies import stale
from kdns.corefile import Directive, only
from kdns.message import AA, FOREVER, NXDOMAIN, SERVFAIL, TC, Query, Reply
from kdns.name import BadName, Name, above, longest_zone, pack_address
from kdns.plugin import Next, Plugin, Site
from kdns.plugins.kubernetes.options import Reading

if TYPE_CHECKING:
    from kdns.cluster.snapshot import Snapshot

HOLD: Final = 1.0
"""Seconds that a query may wait for the first sync: clients ask again later than that."""
RESTORE: Final = 0.1
"""Seconds that a start waits for a snapshot to be read."""
REMIND: Final = 0.5
"""Seconds between log lines while waiting (CoreDNS)."""


class Kubernetes(Plugin):
    """Answers from a Cluster."""

    name = "kubernetes"
    replayable = True
    inline = True

    def __init__(self, reading: Reading, cluster: Cluster, site: Site) -> None:
        self._site = site
        self._log = site.logger(self.name)
        self._cluster = cluster
        self._index = cluster.index
        self._snapshot = _snapshot(reading, cluster, site)
        self._names = Names(cluster.index, reading.options)
        self._fall = reading.fall
        self._timeout = reading.timeout
        self._verified = reading.settings.pods
        self._zonal = reading.options.zonal
        self._waiting: asyncio.Task[None] | None = None

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``kubernetes [ZONES…] { … }``."""
        reading = Reading(only(uses), site)
        log = site.logger(cls.name)
        for warning in reading.warnings:
            log.warning(warning)
        settings = reading.settings
        cluster = site.keep("cluster", astuple(settings), lambda: Cluster(settings, site.facts.drop, site.metrics, log))
        return cls(reading, cluster, site)

    def prove(self, barred: frozenset[Name]) -> None:
        """Say what names there are not, too; names in a zone that falls through are not ours to deny."""
        self._names.prove(barred | above(self._fall))

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Answer, chase an external name, or leave the query to the rest of the chain."""
        reply = self._names.answer(query)
        if isinstance(reply, Reply) and reply.rcode == SERVFAIL and self._waiting is not None:
            reply = await self._wait(query)
        if reply is None:
            return await next(query)
        if isinstance(reply, Chase):
            reply = await self._chase(query, reply)
        elif reply.rcode == NXDOMAIN and query.name.endswith(self._fall) and longest_zone(query.name, self._fall):
            # What the others say stands on there being no such name here.
            other = await next(query)
            return other.leased(other.lease.shrink(FOREVER, reply.lease.facts))
        remembered = self._index.remembered
        return stale(reply, remembered) if remembered else reply

    async def _wait(self, query: Query) -> Reply | Chase | None:
        """Wait for the snapshot, then for the first sync, until the name is known; the last that can be said of it."""
        until = self._site.now() + HOLD
        for task in (self._cluster.restoring, self._waiting):
            left = until - self._site.now()
            if task is not None and left > 0:
                await asyncio.wait([task], timeout=left)
                reply = self._names.answer(query)
                if not isinstance(reply, Reply) or reply.rcode != SERVFAIL:
                    break
        return self._names.answer(query)

    async def _chase(self, query: Query, chase: Chase) -> Reply:
        """The whole server's answer for the target; when that is no answer, the CNAME alone."""
        target = await self._site.ask(query.replace(name=chase.target.lower(), spelling=chase.target))
        if target.drop:
            return chase.nothing
        return Reply(
            answer=(*chase.cnames, *target.answer),
            flags=AA | (target.flags & TC),
            lease=target.lease.shrink(FOREVER, chase.lease.facts),
            ede=target.ede,
            plugin=self.name,
        )

    # -- life

    async def start(self) -> None:
        """Follow the cluster; waits for it, at most ``startup_timeout``, if an old configuration serves meanwhile."""
        self._names.local = _local_addresses(self._site.bind)
        self._cluster.start()
        if self._snapshot is not None:
            self._snapshot.keep(self._cluster)
        if self._cluster.synced.is_set():
            return
        self._waiting = asyncio.create_task(self._await_cluster())
        self._waiting.add_done_callback(self._waited)
        if self._cluster.restoring is not None:
            await asyncio.wait([self._cluster.restoring], timeout=RESTORE)
        if self._site.process.plugins:
            await asyncio.wait([self._waiting], timeout=limits.PLUGIN_START / 2)

    def _waited(self, task: asyncio.Task[None]) -> None:
        self._waiting = None

    async def drain(self) -> None:
        """The next start is to know what we know."""
        if self._snapshot is not None:
            await self._snapshot.write_last(self._cluster)

    async def stop(self) -> None:
        """The Cluster itself, and its snapshot, are the Warehouse's."""
        if self._waiting is not None:
            self._waiting.cancel()

    async def _await_cluster(self) -> None:
        """Tell of the wait as CoreDNS does."""
        until = self._site.now() + self._timeout
        while not self._cluster.synced.is_set():
            left = until - self._site.now()
            if left <= 0:
                self._log.warning("starting server with unsynced Kubernetes API")
                self._log.warning(f"not known yet: {self.unready()}")
                return
            try:
                async with asyncio.timeout(min(left, REMIND)):
                    await self._cluster.synced.wait()
            except TimeoutError:
                if left > REMIND:
                    self._log.info("waiting for Kubernetes API before starting server")

    def unready(self) -> str:
        """Which kinds of objects are not known, and why."""
        return "; ".join(f"{kind}: {why}" for kind, why in self._cluster.unsynced().items())

    # -- metadata

    def metadata(self, query: Query) -> dict[str, Callable[[], str]]:
        """What the name means, and who asks."""
        labels = self._client(query) if self._verified else {}
        read = self._names.read(query.name)
        if read is None:
            return labels
        asked, imports = read
        if asked is None:
            labels["kubernetes/parse-error"] = lambda: "invalid query name"
        else:
            labels |= _meaning(asked, imports, self._zonal)
        return labels

    def _client(self, query: Query) -> dict[str, Callable[[], str]]:
        """The Pod that asks, if its address is a Pod's."""
        try:
            pods = self._cluster.index.pods(pack_address(query.peer[0]))
        except BadName:
            return {}
        if not pods:
            return {}
        pod = pods[0]
        values = {
            "client-namespace": pod.namespace.decode(),
            "client-pod-name": pod.name.decode(),
            **{f"client-label/{key}": value for key, value in pod_labels(pod.labels).items()},
        }
        return {f"kubernetes/{label}": _constant(value) for label, value in values.items()}


def _snapshot(reading: Reading, cluster: Cluster, site: Site) -> Snapshot | None:
    """The snapshot that the directive asks for; None: none."""
    if not reading.snapshot:
        return None
    # It costs a megabyte: only who wants snapshots is to pay.
    from kdns.cluster.snapshot import Snapshot

    settings = reading.settings
    key = (reading.snapshot, reading.max_age, *astuple(settings))
    log = site.logger(Kubernetes.name)
    snapshot = site.keep(
        "snapshot",
        key,
        lambda: Snapshot(reading.snapshot, reading.max_age, settings.contents, settings.identity, site.metrics, log),
    )
    cluster.begin_with(snapshot)
    return snapshot


def _meaning(asked: Asked, imports: bool, zonal: bool) -> dict[str, Callable[[], str]]:
    values = {
        "port-name": asked.port,
        "protocol": asked.protocol,
        "endpoint": asked.endpoint,
        "service": asked.service,
        "namespace": asked.namespace,
        "kind": asked.kind,
    }
    if imports:
        values["cluster"] = asked.cluster
    if zonal:
        values["zone"] = asked.zone
    return {
        f"kubernetes/{label}": _constant(value.decode("ascii", "backslashreplace")) for label, value in values.items()
    }


def _constant(value: str) -> Callable[[], str]:
    return lambda: value


def _local_addresses(bind: tuple[str, ...]) -> tuple[bytes, ...]:
    """Where this server can be reached, loopback excepted: what ``bind`` says, or the addresses of the machine."""
    if bind:
        found = [pack_address(address.partition("%")[0]) for address in bind]
    else:
        try:
            found = [address for _, address in interfaces.addresses()]
        except OSError:
            found = []
    return tuple(dict.fromkeys(address for address in found if not _is_loopback(address)))


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"
