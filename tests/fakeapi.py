"""A fake Kubernetes API server over real HTTP, for tests: lists, watches, and every fault that an API server can have.

::

    api = FakeApi()
    await api.start()                       # api.url, api.port
    api.put("services", service("web", cluster_ip="10.96.0.5"))
    api.delete("services", "web")
    await api.stop()

It runs in the loop of its caller; ``tls=DIRECTORY`` gives it a certificate there (`FakeApi.ca_file`).  Objects are
plain dicts as ``kubectl get -o json`` shows them; what an API server fills in (version, kind, uid, resourceVersion,
namespace ``default``) is filled in.  One counter gives resource versions to all kinds, as etcd does.

What it can do: lists with ``limit`` and ``continue`` (consistent: pages of one list are of one version), label, field
selectors (``metadata.name``, ``metadata.namespace``, ``status.phase``), watches with ``resourceVersion``,
``timeoutSeconds``, bookmarks and ``sendInitialEvents``, a window of history beyond which a watch is answered 410, and
bearer tokens.  The real CoreDNS syncs from it (``kubernetes cluster.local { endpoint http://127.0.0.1:PORT }``).

Faults: see `Fault`, `FakeApi.fault` and the methods below it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import re
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.certificates import make_certificate

Object = dict[str, Any]

RESOURCES: dict[str, tuple[str, str]] = {
    "namespaces": ("v1", "Namespace"),
    "services": ("v1", "Service"),
    "pods": ("v1", "Pod"),
    "nodes": ("v1", "Node"),
    "endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "serviceimports": ("multicluster.x-k8s.io/v1alpha1", "ServiceImport"),
}
"""Plural → (apiVersion, kind)."""
CLUSTER_WIDE = ("namespaces", "nodes")


# --- objects ---------------------------------------------------------------------------------------------------------


def namespace(name: str, labels: dict[str, str] | None = None) -> Object:
    return {"metadata": {"name": name, "labels": labels or {}}}


def service(
    name: str,
    namespace: str = "default",
    *,
    cluster_ip: str | list[str] = "None",
    ports: Iterable[tuple[str, int] | tuple[str, int, str]] = (("http", 80),),
    labels: dict[str, str] | None = None,
    external_name: str = "",
) -> Object:
    """A Service; ``cluster_ip`` "None" makes it headless, ``external_name`` makes it an alias."""
    meta = {"name": name, "namespace": namespace, "labels": labels or {}}
    if external_name:
        return {"metadata": meta, "spec": {"type": "ExternalName", "externalName": external_name}}
    ips = [cluster_ip] if isinstance(cluster_ip, str) else cluster_ip
    spec = {"type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips, "ports": [_port(*port) for port in ports]}
    return {"metadata": meta, "spec": spec}


def _port(name: str, number: int, protocol: str = "TCP") -> Object:
    return {"name": name, "port": number, "protocol": protocol}


def endpointslice(
    service: str,
    addresses: Iterable[str | tuple[str, str]],
    namespace: str = "default",
    *,
    name: str = "",
    ports: Iterable[tuple[str, int] | tuple[str, int, str]] = (("http", 80),),
    labels: dict[str, str] | None = None,
    ready: bool = True,
) -> Object:
    """A slice of a Service; each address alone or with its hostname."""
    pairs = [(address, "") if isinstance(address, str) else address for address in addresses]
    endpoints = [
        {"addresses": [address], "conditions": {"ready": ready}} | ({"hostname": hostname} if hostname else {})
        for address, hostname in pairs
    ]
    return {
        "metadata": {
            "name": name or f"{service}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service} | (labels or {}),
        },
        "addressType": "IPv6" if pairs and ":" in pairs[0][0] else "IPv4",
        "endpoints": endpoints,
        "ports": [_port(*port) for port in ports],
    }


def pod(name: str, ip: str, namespace: str = "default", *, phase: str = "Running", **meta: Any) -> Object:
    return {
        "metadata": {"name": name, "namespace": namespace} | meta,
        "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]},
    }


# --- selectors -------------------------------------------------------------------------------------------------------

_TERM = re.compile(
    r"\s*(?P<absent>!)?\s*(?P<key>[A-Za-z0-9_./-]+)\s*"
    r"(?:(?P<op>==|!=|=)\s*(?P<value>[A-Za-z0-9_.-]*)|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?\s*(?:,|$)"
)


def matches_labels(selector: str, labels: dict[str, str]) -> bool:
    at = 0
    while at < len(selector):
        term = _TERM.match(selector, at)
        if term is None:
            raise Refusal(400, "BadRequest", f"unable to parse requirement: {selector}")
        at = term.end()
        found = labels.get(term["key"])
        if term["set"]:
            inside = found in [value.strip() for value in term["values"].split(",")]
            fits = inside if term["set"] == "in" else not inside
        elif term["op"]:
            fits = (found == term["value"]) != (term["op"] == "!=")
        else:
            fits = (found is None) == bool(term["absent"])
        if not fits:
            return False
    return True


def matches_fields(selector: str, item: Object) -> bool:
    known = {
        "metadata.name": item["metadata"]["name"],
        "metadata.namespace": item["metadata"].get("namespace", ""),
        "status.phase": item.get("status", {}).get("phase", ""),
    }
    for term in filter(None, selector.split(",")):
        key, equal, value = re.split(r"(==|!=|=)", term, maxsplit=1)
        if key not in known:
            raise Refusal(400, "BadRequest", f"field label not supported: {key}")
        if (known[key] == value) == (equal == "!="):
            return False
    return True


# --- requests, refusals, faults --------------------------------------------------------------------------------------


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    resource: str = ""
    """Plural; empty: none that the server knows."""
    namespace: str = ""
    time: float = 0.0

    @property
    def verb(self) -> str:
        """``list``, ``watch`` or ``get``."""
        if not self.resource:
            return "get"
        return "watch" if self.query.get("watch") in ("true", "1") else "list"


class Refusal(Exception):
    """An answer that is a Status object."""

    def __init__(self, code: int, reason: str, message: str, retry_after: int = 0) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after
        details = {"retryAfterSeconds": retry_after} if retry_after else {}
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": reason, "message": message, "code": code, "details": details,
        }  # fmt: skip


@dataclass
class Fault:
    """What goes wrong with the requests that it is for."""

    resource: str | None = None
    """None: all."""
    verb: str | None = None
    """``list``, ``watch``, ``get``; None: all."""
    times: int | None = None
    """For so many requests; None: until it is taken away."""
    status: int = 0
    """Answer this HTTP status."""
    retry_after: int = 0
    """Seconds, as header and in the Status object."""
    body: bytes | None = None
    """Answer 200 with this body instead of the true one (for a watch: these lines, then the end)."""
    prefix: bytes = b""
    """Say this before the true answer's body: a line of garbage, say."""
    delay: float = 0.0
    """Answer so many seconds late."""
    stall: bool = False
    """Never answer, and keep the connection."""
    truncate: int | None = None
    """Hang up after so many octets of the body."""
    endless: bool = False
    """Answer 200 and then one line without end."""
    reset: bool = False
    """Hang up without an answer."""
    raw: bytes | None = None
    """Send these octets instead of an HTTP answer, and hang up."""
    event: Object | None = None
    """For a watch: answer 200 and this one event, then end."""
    hits: int = 0
    """How many requests it has met."""

    def fits(self, request: Request) -> bool:
        return (
            self.times != 0
            and self.resource in (None, request.resource)
            and self.verb in (None, request.verb)
        )  # fmt: skip


class _Gone(Exception):
    """The connection is to be dropped without a word."""


@dataclass
class _Change:
    """One step of history."""

    version: int
    type: str
    item: Object
    before: Object | None


@dataclass(eq=False)
class _Watcher:
    """One open watch."""

    selects: Callable[[Object], bool]
    lines: deque[bytes] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False

    def tell(self, lines: Iterable[bytes]) -> None:
        self.lines.extend(lines)
        self.news.set()

    async def notice_end(self, reader: asyncio.StreamReader) -> None:
        """Wait until the client hangs up."""
        with contextlib.suppress(OSError):
            await reader.read(1)
        self.gone = True
        self.news.set()


class _Store:
    """The objects of one kind, and how they came to be."""

    def __init__(self, resource: str, window: int) -> None:
        self.resource = resource
        self.version, self.kind = RESOURCES[resource]
        self.items: dict[tuple[str, str], Object] = {}
        self.history: deque[_Change] = deque(maxlen=window)
        self.forgotten = 0
        """Changes up to this version are not in the history."""
        self.watchers: set[_Watcher] = set()
        self.snapshots: dict[int, list[Object]] = {}
        """What lists that are still being paged saw, by version."""

    def key(self, item: Object) -> tuple[str, str]:
        return item["metadata"].get("namespace", ""), item["metadata"]["name"]

    def record(self, change: _Change) -> None:
        if len(self.history) == self.history.maxlen:
            self.forgotten = self.history[0].version
        self.history.append(change)


# --- the server ------------------------------------------------------------------------------------------------------


class FakeApi:
    """See the top of this module."""

    def __init__(
        self,
        *,
        tls: Path | None = None,
        window: int = 1000,
        bookmark: float = 60.0,
        watchlist: bool = True,
        tokens: dict[str, Iterable[str] | None] | None = None,
    ) -> None:
        """``window``: changes of a kind that a watch may go back; ``bookmark``: seconds between bookmarks;
        ``watchlist``: knows ``sendInitialEvents``; ``tokens``: token → resources that it may read (None: all);
        no dict at all lets everyone read everything."""
        self.tokens = tokens
        self.bookmark = bookmark
        self.watchlist = watchlist
        self.end_bookmark = True
        """Whether streamed lists end with their bookmark; some proxies swallow it."""
        self.future = "silence"
        """A watch from a version that has not been: ``silence`` accepts it, ``error`` says so, ``gone`` is 410."""
        self.filter: Callable[[str, list[bytes]], list[bytes]] = lambda resource, lines: lines
        """Watch lines of a change on their way to a watcher: drop, repeat, hold back or mangle them."""
        self.requests: deque[Request] = deque(maxlen=100_000)
        self.port = 0
        self.ca_file = ""
        self._rv = 1
        self._stores = {resource: _Store(resource, window) for resource in RESOURCES}
        self._faults: list[Fault] = []
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._frozen = False
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        if tls:
            self.new_certificate()
        for name in ("default", "kube-system"):
            self.put("namespaces", namespace(name))

    # --- life

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> FakeApi:
        """Listen on 127.0.0.1, on a free port unless one is given."""
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", port or self.port, ssl=self._context, limit=2**16
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """End everything."""
        await self.refuse()

    def new_certificate(self, client_ca: str = "") -> None:
        """Another certificate from the next start or `accept` on, in `ca_file`, too; ``client_ca``: ask for theirs."""
        assert self._tls is not None
        certificate, key = make_certificate(self._tls)
        self.ca_file = str(certificate)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        if client_ca:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(client_ca)

    async def __aenter__(self) -> FakeApi:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- objects

    @property
    def resource_version(self) -> int:
        """The version of the last change."""
        return self._rv

    def put(self, resource: str, item: Object) -> Object:
        """Create or replace an object; what is stored, as a new dict."""
        store = self._stores[resource]
        item = json.loads(json.dumps(item))
        meta = item["metadata"]
        if resource not in CLUSTER_WIDE:
            meta.setdefault("namespace", "default")
        before = store.items.get(store.key(item))
        self._rv += 1
        meta["resourceVersion"] = str(self._rv)
        meta.setdefault("uid", before["metadata"]["uid"] if before else f"00000000-0000-4000-8000-{self._rv:012d}")
        meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        item = {"kind": store.kind, "apiVersion": store.version} | item
        store.items[store.key(item)] = item
        self._changed(store, _Change(self._rv, "MODIFIED" if before else "ADDED", item, before))
        return json.loads(json.dumps(item))

    def delete(self, resource: str, name: str, namespace: str = "default") -> None:
        """Delete an object; KeyError when it is not there."""
        store = self._stores[resource]
        before = store.items.pop(("" if resource in CLUSTER_WIDE else namespace, name))
        self._rv += 1
        item = before | {"metadata": before["metadata"] | {"resourceVersion": str(self._rv)}}
        self._changed(store, _Change(self._rv, "DELETED", item, before))

    def get(self, resource: str, name: str, namespace: str = "default") -> Object | None:
        return self._stores[resource].items.get(("" if resource in CLUSTER_WIDE else namespace, name))

    def _changed(self, store: _Store, change: _Change) -> None:
        store.record(change)
        for watcher in store.watchers:
            lines = _lines_of(change, watcher.selects)
            if lines and not self._frozen:
                watcher.tell(self.filter(store.resource, lines))

    # --- faults

    def fault(self, **what: Any) -> Fault:
        """Let requests go wrong from now on, see `Fault`; of several that fit the latest counts."""
        fault = Fault(**what)
        self._faults.append(fault)
        return fault

    def heal(self, *faults: Fault) -> None:
        """Take these faults away, or all."""
        self._faults = [fault for fault in self._faults if faults and fault not in faults]

    async def refuse(self) -> None:
        """Stop listening and cut all connections: what a killed server looks like.  `accept` ends it."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def accept(self) -> None:
        """Listen again, on the same port."""
        await self.start()

    async def cut(self) -> None:
        """Cut all connections, without a word."""
        tasks = list(self._connections)
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def freeze(self) -> None:
        """Open watches fall silent; what happens meanwhile is never told to them."""
        self._frozen = True

    def thaw(self) -> None:
        """Watches speak again, of what happens from now on."""
        self._frozen = False

    def forget_history(self) -> None:
        """Every watch from a version before now is answered 410 (as after a compaction)."""
        for store in self._stores.values():
            store.history.clear()
            store.forgotten = self._rv

    def end_watches(self) -> None:
        """End open watches as a server does that is about to stop."""
        for store in self._stores.values():
            for watcher in store.watchers:
                watcher.tell([b""])

    def say(self, resource: str, line: bytes) -> None:
        """Put a line of your own into the open watches of a kind."""
        for watcher in self._stores[resource].watchers:
            watcher.tell([line + b"\n"])

    def save(self) -> Any:
        """The present state, for `rewind`."""
        return self._rv, {resource: dict(store.items) for resource, store in self._stores.items()}

    async def rewind(self, saved: Any) -> None:
        """Go back to a saved state, resource versions too, and cut all connections: etcd restored from a backup."""
        self._rv, items = saved[0], saved[1]
        for resource, store in self._stores.items():
            store.items = dict(items[resource])
            store.history.clear()
            store.snapshots.clear()
            store.forgotten = 0
        await self.cut()

    def count(self, resource: str | None = None, verb: str | None = None) -> int:
        """How many requests there have been."""
        return sum(resource in (None, request.resource) and verb in (None, request.verb) for request in self.requests)

    def watching(self, resource: str) -> int:
        """How many watches are open."""
        return len(self._stores[resource].watchers)

    # --- connections

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while (request := await _read_request(reader)) is not None:
                await self._answer(request, reader, writer)
        except (_Gone, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            del self._connections[task]
            writer.transport.abort()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request.time = asyncio.get_running_loop().time()
        self._route(request)
        self.requests.append(request)
        answer = _Answer(writer)
        fault = next((fault for fault in reversed(self._faults) if fault.fits(request)), None)
        try:
            if fault is not None:
                fault.hits += 1
                if fault.times is not None:
                    fault.times -= 1
                if await self._go_wrong(fault, answer, reader):
                    return
            self._authorize(request)
            if request.verb == "get":
                await answer.whole(200, _discovery(request.path))
            elif request.verb == "list":
                await answer.whole(200, self._list(request))
            else:
                await self._watch(request, answer, reader)
        except Refusal as refusal:
            await answer.whole(refusal.code, refusal.status, refusal.retry_after)

    async def _go_wrong(self, fault: Fault, answer: _Answer, reader: asyncio.StreamReader) -> bool:
        """Do what the fault wants; whether that was all."""
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.reset:
            raise _Gone
        if fault.stall:
            await reader.read()
            raise _Gone
        if fault.raw is not None:
            answer.writer.write(fault.raw)
            await answer.writer.drain()
            raise _Gone
        if fault.status:
            raise Refusal(fault.status, "", f"as the test wants it: {fault.status}", fault.retry_after)
        if fault.endless:
            await answer.begin()
            while True:
                await answer.chunk(b"x" * 65536)
        if fault.event is not None:
            await answer.begin()
            await answer.chunk(json.dumps(fault.event).encode() + b"\n")
            await answer.end()
            return True
        if fault.body is not None:
            await answer.whole(200, fault.body)
            return True
        answer.prefix, answer.left = fault.prefix, fault.truncate
        return False

    def _route(self, request: Request) -> None:
        match = re.fullmatch(r"/(?:api/(v1)|apis/([^/]+/[^/]+))/(?:namespaces/([^/]+)/)?([a-z]+)", request.path)
        if match and match[4] in RESOURCES and RESOURCES[match[4]][0] == (match[1] or match[2]):
            request.resource, request.namespace = match[4], match[3] or ""

    def _authorize(self, request: Request) -> None:
        if self.tokens is None:
            return
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        allowed = self.tokens[token]
        if allowed is not None and request.resource and request.resource not in allowed:
            message = (
                f'{request.resource} is forbidden: User "test" cannot {request.verb} resource "{request.resource}"'
            )
            raise Refusal(403, "Forbidden", message)

    # --- lists

    def _selects(self, request: Request) -> Callable[[Object], bool]:
        labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")

        def selects(item: Object) -> bool:
            meta = item["metadata"]
            return (
                (not request.namespace or meta.get("namespace") == request.namespace)
                and matches_labels(labels, meta.get("labels") or {})
                and matches_fields(fields, item)
            )

        return selects

    def _list(self, request: Request) -> Object:
        store = self._stores[request.resource]
        limit = int(request.query.get("limit") or 0)
        token = request.query.get("continue", "")
        version, start = (int(part) for part in base64.b64decode(token).split(b".")) if token else (self._rv, 0)
        if not token:
            selects = self._selects(request)
            seen = [item for _, item in sorted(store.items.items()) if selects(item)]
        elif version in store.snapshots:
            seen = store.snapshots[version]
        else:
            raise Refusal(410, "Expired", "The provided continue parameter is too old")
        page = seen[start : start + limit] if limit else seen[start:]
        meta: Object = {"resourceVersion": str(version)}
        if start + len(page) < len(seen):
            store.snapshots[version] = seen
            for old in sorted(store.snapshots)[:-8]:
                del store.snapshots[old]
            meta["continue"] = base64.b64encode(b"%d.%d" % (version, start + len(page))).decode()
            meta["remainingItemCount"] = len(seen) - start - len(page)
        bare = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in page]
        return {"kind": store.kind + "List", "apiVersion": store.version, "metadata": meta, "items": bare}

    def forget_pages(self) -> None:
        """Every ``continue`` token that is out is answered 410."""
        for store in self._stores.values():
            store.snapshots.clear()

    # --- watches

    async def _watch(self, request: Request, answer: _Answer, reader: asyncio.StreamReader) -> None:
        store = self._stores[request.resource]
        watcher = _Watcher(self._selects(request))
        watcher.tell(self._first_lines(request, store, watcher.selects))
        timeout = float(request.query.get("timeoutSeconds") or random.uniform(1800, 3600))
        bookmarks = request.query.get("allowWatchBookmarks") in ("true", "1")
        store.watchers.add(watcher)
        listener = asyncio.create_task(watcher.notice_end(reader))
        try:
            await answer.begin()
            await self._stream(store, watcher, answer, timeout, bookmarks)
            await answer.end()
        finally:
            store.watchers.discard(watcher)
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _stream(self, store: _Store, watcher: _Watcher, answer: _Answer, timeout: float, bookmarks: bool) -> None:
        loop = asyncio.get_running_loop()
        end, bookmark_at = loop.time() + timeout, loop.time() + self.bookmark
        while loop.time() < end:
            while watcher.lines:
                line = watcher.lines.popleft()
                if not line:
                    return
                await answer.chunk(line)
            if watcher.gone:
                raise _Gone
            watcher.news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(end, bookmark_at) if bookmarks else end):
                    await watcher.news.wait()
            if bookmarks and loop.time() >= bookmark_at:
                bookmark_at += self.bookmark
                if not self._frozen:
                    watcher.tell([_bookmark(store, self._rv)])

    def _first_lines(self, request: Request, store: _Store, selects: Callable[[Object], bool]) -> list[bytes]:
        """What a watch begins with: everything, what has happened since its version, or an ERROR event."""
        asked = request.query.get("resourceVersion", "")
        if request.query.get("sendInitialEvents") == "true":
            if not self.watchlist:
                text = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
                raise Refusal(422, "Invalid", text)
            lines = self._all_lines(store, selects)
            return [*lines, _bookmark(store, self._rv, ends=True)] if self.end_bookmark else lines
        if asked in ("", "0"):
            return self._all_lines(store, selects)
        if not asked.isdecimal():
            raise Refusal(400, "BadRequest", f"invalid resource version {asked!r}")
        version = int(asked)
        if version > self._rv:
            return self._from_the_future(version)
        if version < store.forgotten:
            return [_event("ERROR", _too_old(version, store.forgotten).status)]
        return [line for change in store.history if change.version > version for line in _lines_of(change, selects)]

    def _from_the_future(self, version: int) -> list[bytes]:
        if self.future == "gone":
            raise _too_old(version, self._rv)
        if self.future == "error":
            text = f"Too large resource version: {version}, current: {self._rv}"
            return [_event("ERROR", Refusal(504, "Timeout", text, 1).status)]
        return []

    def _all_lines(self, store: _Store, selects: Callable[[Object], bool]) -> list[bytes]:
        return [_event("ADDED", item) for _, item in sorted(store.items.items()) if selects(item)]


def _event(type: str, item: Object) -> bytes:
    return json.dumps({"type": type, "object": item}, separators=(",", ":")).encode() + b"\n"


def _bookmark(store: _Store, version: int, ends: bool = False) -> bytes:
    meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if ends:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    return _event("BOOKMARK", {"kind": store.kind, "apiVersion": store.version, "metadata": meta})


def _lines_of(change: _Change, selects: Callable[[Object], bool]) -> list[bytes]:
    """The line in which a watcher hears of a change: an object may come into its selection or leave it."""
    was = change.before is not None and selects(change.before)
    fits = change.type != "DELETED" and selects(change.item)
    if not (was or fits):
        return []
    return [_event("DELETED" if not fits else "MODIFIED" if was else "ADDED", change.item)]


def _too_old(version: int, oldest: int) -> Refusal:
    return Refusal(410, "Expired", f"too old resource version: {version} ({oldest})")


def _discovery(path: str) -> Object:
    """What clients may want to know about the server."""
    if path in ("/readyz", "/livez", "/healthz"):
        return {}
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0", "platform": "linux/amd64"}
    group = path.removeprefix("/apis/").removeprefix("/api/")
    found = [(plural, kind) for plural, (version, kind) in RESOURCES.items() if version == group]
    if not found:
        raise Refusal(404, "NotFound", "the server could not find the requested resource")
    resources = [
        {"name": plural, "kind": kind, "namespaced": plural not in CLUSTER_WIDE, "verbs": ["list", "watch"]}
        for plural, kind in found
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = head[0].split(" ")
    parts = urlsplit(target)
    query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:] if line)}
    await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, parts.path, query, headers)


class _Answer:
    """One HTTP answer on its way, with what a fault makes of it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.prefix = b""
        self.left: int | None = None

    async def whole(self, code: int, body: Object | bytes, retry_after: int = 0) -> None:
        data = self.prefix + (body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode())
        head = f"HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        if retry_after:
            head += f"Retry-After: {retry_after}\r\n"
        self.writer.write(head.encode() + b"\r\n")
        await self._send(data)

    async def begin(self) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.writer.write(head.encode())
        if self.prefix:
            await self.chunk(self.prefix)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self._send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def _send(self, data: bytes) -> None:
        if self.left is not None:
            self.left -= len(data)
            if self.left <= 0:
                self.writer.write(data[: self.left] if self.left else data)
                await self.writer.drain()
                self.writer.close()
                raise _Gone
        self.writer.write(data)
        await self.writer.drain()
