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

What it can do: lists with ``limit`` and ``continue`` (consistent: pages of one list are of one version), with
``resourceVersion`` (a version of the future is refused), label, field selectors (``metadata.name``,
``metadata.namespace``, ``status.phase``), watches with ``resourceVersion``, ``timeoutSeconds``, bookmarks and
``sendInitialEvents``, a window of history beyond which a watch is answered 410, metadata alone
(``PartialObjectMetadataList``), and bearer tokens.  The real CoreDNS syncs from it (``kubernetes { endpoint URL }``).

Faults: see `Fault`, `FakeApi.fault` and the methods below it: killed (`refuse`), unreachable (`blackhole`), connections
that break without a word (`half_open`), watches that say nothing (`freeze`), a lost history (`forget_history`), etcd
restored (`rewind`), events lost, doubled and out of order (`Mischief`), other certificates (`new_certificate`).
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
from pathlib import Path
from typing import Any

from tests.certificates import make_certificate
from tests.fakefaults import Fault, Mischief
from tests.fakehttp import Answer, Gone, Request, deafen, read_request, undeafen
from tests.fakeobjects import (
    CLUSTER_WIDE,
    RESOURCES,
    Object,
    Refusal,
    endpointslice,
    matches_fields,
    matches_labels,
    namespace,
    pod,
    service,
)
from tests.fakestore import METADATA_LIST, Change, Store, Watcher, bare, bookmark_line, event_line, lines_of

__all__ = [  # with the builders of objects: most who need a server need them, too
    "FakeApi",
    "Fault",
    "Mischief",
    "Object",
    "Refusal",
    "endpointslice",
    "matches_fields",
    "matches_labels",
    "namespace",
    "pod",
    "service",
]


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
        host: str = "127.0.0.1",
    ) -> None:
        """``window``: changes of a kind that a watch may go back; ``bookmark``: seconds between bookmarks;
        ``watchlist``: knows ``sendInitialEvents``; ``tokens``: token → resources that it may read (None: all);
        no dict at all lets everyone read everything."""
        self.tokens = tokens
        self.host = host
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
        self._stores = {resource: Store(resource, window) for resource in RESOURCES}
        self._faults: list[Fault] = []
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._frozen = False
        self._unreachable = False
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        if tls:
            self.new_certificate()
        for name in ("default", "kube-system"):
            self.put("namespaces", namespace(name))

    # --- life

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    async def start(self, port: int = 0) -> FakeApi:
        """Listen, on a free port unless one is given."""
        self._server = await asyncio.start_server(
            self._accepted, self.host, port or self.port, ssl=self._context, limit=2**16
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
        self._changed(store, Change(self._rv, "MODIFIED" if before else "ADDED", item, before))
        return json.loads(json.dumps(item))

    def delete(self, resource: str, name: str, namespace: str = "default") -> None:
        """Delete an object; KeyError when it is not there."""
        store = self._stores[resource]
        before = store.items.pop(("" if resource in CLUSTER_WIDE else namespace, name))
        self._rv += 1
        item = before | {"metadata": before["metadata"] | {"resourceVersion": str(self._rv)}}
        self._changed(store, Change(self._rv, "DELETED", item, before))

    def get(self, resource: str, name: str, namespace: str = "default") -> Object | None:
        return self._stores[resource].items.get(("" if resource in CLUSTER_WIDE else namespace, name))

    def _changed(self, store: Store, change: Change) -> None:
        store.record(change)
        for watcher in store.watchers:
            lines = lines_of(change, watcher.selects)
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
        """Listen again, on the same port; after `blackhole`: on the same socket."""
        if self._server is None:
            await self.start()
        elif self._unreachable:
            for sock in self._server.sockets:
                undeafen(sock)
        self._unreachable = False

    def half_open(self) -> None:
        """Nothing comes through any more on the connections that there are, either way, and nobody is told.

        New connections are as good as ever: a router on the old way has died.
        """
        for writer in self._connections.values():
            deafen(writer.get_extra_info("socket"))
        for store in self._stores.values():
            for watcher in store.watchers:
                watcher.cut_off = True

    def blackhole(self) -> None:
        """`half_open`, and packets for new connections vanish, too: the host is unreachable.  `accept` ends it."""
        assert self._server is not None
        self.half_open()
        self._unreachable = True
        for sock in self._server.sockets:
            deafen(sock)

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
            while (request := await read_request(reader)) is not None:
                await self._answer(request, reader, writer)
        except (Gone, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            del self._connections[task]
            writer.transport.abort()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request.time = asyncio.get_running_loop().time()
        self._route(request)
        self.requests.append(request)
        answer = Answer(writer)
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

    async def _go_wrong(self, fault: Fault, answer: Answer, reader: asyncio.StreamReader) -> bool:
        """Do what the fault wants; whether that was all."""
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.reset:
            raise Gone
        if fault.stall:
            await reader.read()
            raise Gone
        if fault.raw is not None:
            answer.writer.write(fault.raw)
            await answer.writer.drain()
            raise Gone
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
        answer.prefix, answer.left, answer.rate = fault.prefix, fault.truncate, fault.rate
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
            self._check_version(request)
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
        if request.bare:
            return METADATA_LIST | {"metadata": meta, "items": [bare(item) for item in page]}
        plain = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in page]
        return {"kind": store.kind + "List", "apiVersion": store.version, "metadata": meta, "items": plain}

    def _check_version(self, request: Request) -> None:
        """Refuse a list that is to be no older than a version that has not been, or of exactly another than this."""
        asked = request.query.get("resourceVersion", "")
        if not asked or asked == "0":
            return
        if not asked.isdecimal():
            raise Refusal(400, "BadRequest", f"invalid resource version {asked!r}")
        if int(asked) > self._rv:
            raise Refusal(504, "Timeout", f"Too large resource version: {asked}, current: {self._rv}", 1)
        if request.query.get("resourceVersionMatch") == "Exact" and int(asked) != self._rv:
            raise _too_old(int(asked), self._rv)

    def forget_pages(self) -> None:
        """Every ``continue`` token that is out is answered 410."""
        for store in self._stores.values():
            store.snapshots.clear()

    # --- watches

    async def _watch(self, request: Request, answer: Answer, reader: asyncio.StreamReader) -> None:
        store = self._stores[request.resource]
        watcher = Watcher(self._selects(request), bare=request.bare)
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

    async def _stream(self, store: Store, watcher: Watcher, answer: Answer, timeout: float, bookmarks: bool) -> None:
        loop = asyncio.get_running_loop()
        end, bookmark_at = loop.time() + timeout, loop.time() + self.bookmark
        while loop.time() < end:
            while watcher.lines:
                line = watcher.lines.popleft()
                if not line:
                    return
                await answer.chunk(line)
            if watcher.gone:
                raise Gone
            if watcher.cut_off:
                await asyncio.Event().wait()  # until the connection is cut
            watcher.news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(end, bookmark_at) if bookmarks else end):
                    await watcher.news.wait()
            if bookmarks and loop.time() >= bookmark_at:
                bookmark_at += self.bookmark
                if not self._frozen:
                    watcher.tell([bookmark_line(store, self._rv)])

    def _first_lines(self, request: Request, store: Store, selects: Callable[[Object], bool]) -> list[bytes]:
        """What a watch begins with: everything, what has happened since its version, or an ERROR event."""
        asked = request.query.get("resourceVersion", "")
        if request.query.get("sendInitialEvents") == "true":
            if not self.watchlist:
                text = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
                raise Refusal(422, "Invalid", text)
            lines = self._all_lines(store, selects)
            return [*lines, bookmark_line(store, self._rv, ends=True)] if self.end_bookmark else lines
        if asked in ("", "0"):
            return self._all_lines(store, selects)
        if not asked.isdecimal():
            raise Refusal(400, "BadRequest", f"invalid resource version {asked!r}")
        version = int(asked)
        if version > self._rv:
            return self._from_the_future(version)
        if version < store.forgotten:
            return [event_line("ERROR", _too_old(version, store.forgotten).status)]
        return [line for change in store.history if change.version > version for line in lines_of(change, selects)]

    def _from_the_future(self, version: int) -> list[bytes]:
        if self.future == "gone":
            raise _too_old(version, self._rv)
        if self.future == "error":
            text = f"Too large resource version: {version}, current: {self._rv}"
            return [event_line("ERROR", Refusal(504, "Timeout", text, 1).status)]
        return []

    def _all_lines(self, store: Store, selects: Callable[[Object], bool]) -> list[bytes]:
        return [event_line("ADDED", item) for _, item in sorted(store.items.items()) if selects(item)]


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
