"""A Kubernetes API server with the world's objects, for the servers that follow one.

``python -m bench.api PORT SERVICES SLICES [ENDPOINTS [pods]]``: so many endpoints in a slice, and a Pod for each if
``pods`` says so.  Says ``ready``, then does what the lines on standard input want, each
answered by one line of JSON; ends with its input.

- ``changes RATE``: from now on change objects so many times a second (`Changes`); 0 ends it and takes them away.
- ``relist MARKERS``: cut all watches, and answer 410 to whoever wants to go on where they were.  So many Services
  (`world.marker`) are new in the next lists, and no watch has told of them.
- ``touch NUMBER``: change the endpoint of `world.touched`; ``{"at": seconds of the monotonic clock}``.
- ``state``: ``{"applied": changes so far, "relists": so many}``.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench.world import (
    ENDPOINTS,
    LAST_NAMESPACE,
    NAMESPACES,
    Service,
    changing,
    marker,
    marker_pod,
    services,
    slices,
    touched,
)
from tests import fakeapi

WINDOW = 20_000
"""Changes that a watch may go back: nobody is to list again because they were slow, only because we want it."""
TICK = 0.005
BURST = 100
"""Changes in one go, when we are late."""


class Changes:
    """Objects that come, change and go: of every four steps about two change a slice, one the Service itself."""

    def __init__(self, api: fakeapi.FakeApi) -> None:
        self.applied = 0
        self._api = api
        self._random = random.Random(7)
        self._there: set[Service] = set()
        self._steps = self._endless()

    async def run(self, rate: float) -> None:
        """Apply so many changes a second until cancelled; what was missed is made up for."""
        loop = asyncio.get_running_loop()
        start, first = loop.time(), self.applied
        while True:
            due = int((loop.time() - start) * rate) + first - self.applied
            self.apply(min(due, BURST))
            await asyncio.sleep(TICK)

    def apply(self, count: int) -> None:
        """Apply so many changes, each of one object."""
        for _ in range(count):
            next(self._steps)
            self.applied += 1

    def clear(self) -> None:
        """Delete what is there."""
        for service in sorted(self._there, key=lambda service: service.fqdn):
            for resource, name in (("endpointslices", f"{service.name}-1"), ("services", service.name)):
                if self._api.get(resource, name, service.namespace):
                    self._api.delete(resource, name, service.namespace)
        self._there.clear()
        self._steps = self._endless()

    def _endless(self) -> Iterator[None]:
        names = changing()
        while True:
            service = self._random.choice(names)
            if service not in self._there:
                self._there.add(service)
                self._put_service(service)
                yield
                self._put_slice(service)
            elif (chance := self._random.random()) < 0.6:
                self._put_slice(service)
            elif chance < 0.85:
                self._put_service(service)
            else:
                self._api.delete("endpointslices", f"{service.name}-1", service.namespace)
                yield
                self._api.delete("services", service.name, service.namespace)
                self._there.discard(service)
            yield

    def _put_service(self, service: Service) -> None:
        put_service(self._api, service, port=self._random.randrange(1024, 65536))

    def _put_slice(self, service: Service) -> None:
        addresses = [f"10.200.{self._random.randrange(256)}.{self._random.randrange(1, 255)}" for _ in range(3)]
        self._api.put("endpointslices", fakeapi.endpointslice(service.name, addresses, service.namespace))


def put_service(api: fakeapi.FakeApi, service: Service, port: int = 80) -> None:
    """Put a Service of the world."""
    ip = "None" if service.headless else service.addresses[0]
    api.put("services", fakeapi.service(service.name, service.namespace, cluster_ip=ip, ports=[("http", port)]))


def fill(
    api: fakeapi.FakeApi, service_count: int, slice_count: int, endpoints: int = ENDPOINTS, pods: bool = False
) -> None:
    """Put the world's objects."""
    for space in NAMESPACES:
        api.put("namespaces", fakeapi.namespace(space))
    for service in services(service_count):
        put_service(api, service)
    for name, service, addresses in slices(service_count, slice_count, endpoints):
        item = fakeapi.endpointslice(service.name, addresses, service.namespace, name=name)
        for number, endpoint in enumerate(item["endpoints"]):
            endpoint |= {"nodeName": f"node-{number}", "targetRef": _target(service, f"{name}-{number}")}
        api.put("endpointslices", item)
        for number, address in enumerate(addresses if pods else ()):
            labels = {"app": service.name, "pod-template-hash": "5d8f7c9b6"}
            api.put("pods", fakeapi.pod(f"{name}-{number}", address, service.namespace, labels=labels))


def _target(service: Service, pod: str) -> fakeapi.Object:
    return {"kind": "Pod", "namespace": service.namespace, "name": pod, "uid": "00000000-0000-4000-8000-000000000000"}


class Director:
    """Does what the lines want."""

    def __init__(self, api: fakeapi.FakeApi, pods: bool = False) -> None:
        """``pods``: there are Pods, and a list of them has its marker, too."""
        self.changes = Changes(api)
        self._api = api
        self._pods = pods
        self._task: asyncio.Task[None] | None = None
        self._relists = 0
        self._markers: list[Service] = []

    async def obey(self, line: str) -> dict[str, Any]:
        """Do it; what to answer.  Raises ValueError for what is no order."""
        match line.split():
            case ["changes", rate]:
                await self._change(float(rate))
            case ["relist", count]:
                self._relist(int(count))
            case ["touch", number]:
                service = touched(int(number))
                if not self._api.get("services", service.name, service.namespace):
                    put_service(self._api, service)
                at = time.monotonic()
                self._api.put("endpointslices", _slice_of(service))
                return {"at": at}
            case ["state"]:
                return {"applied": self.changes.applied, "relists": self._relists}
            case _:
                raise ValueError(f"no order: {line!r}")
        return {}

    async def _change(self, rate: float) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if rate:
            self._task = asyncio.create_task(self.changes.run(rate))
        else:
            self.changes.clear()

    def _relist(self, count: int) -> None:
        # Nobody is told of these changes, so everyone's version is too old and they have to list.
        self._api.freeze()
        for service in self._markers:
            self._api.delete("endpointslices", f"{service.name}-1", service.namespace)
            self._api.delete("services", service.name, service.namespace)
        self._relists += 1
        self._markers = [marker(self._relists, number) for number in range(count)]
        self._api.put("namespaces", fakeapi.namespace(LAST_NAMESPACE))
        for service in self._markers:
            put_service(self._api, service)
            self._api.put("endpointslices", _slice_of(service))
        if self._pods:
            _, address = marker_pod(self._relists)
            self._api.put("pods", fakeapi.pod("relist", address, LAST_NAMESPACE))
        self._api.forget_history()
        self._api.thaw()
        self._api.end_watches()


def _slice_of(service: Service) -> fakeapi.Object:
    return fakeapi.endpointslice(service.name, service.addresses, service.namespace)


async def serve(port: int, service_count: int, slice_count: int, endpoints: int = ENDPOINTS, pods: str = "") -> None:
    """Serve until our input ends."""
    api = await fakeapi.FakeApi(window=WINDOW).start(port)
    fill(api, service_count, slice_count, endpoints, bool(pods))
    director = Director(api, bool(pods))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := await reader.readline():
        print(json.dumps(await director.obey(line.decode())), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(*map(int, sys.argv[1:5]), *sys.argv[5:]))
