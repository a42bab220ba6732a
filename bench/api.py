"""A Kubernetes API server with the world's objects, for the servers that ask one: ``python -m bench.api PORT``."""

from __future__ import annotations

import asyncio
import sys

from bench.world import NAMESPACES, services
from tests import fakeapi


async def serve(port: int) -> None:
    """Serve until we are killed."""
    api = await fakeapi.FakeApi().start(port)
    for space in NAMESPACES:
        api.put("namespaces", fakeapi.namespace(space))
    for service in services():
        if service.headless:
            api.put("services", fakeapi.service(service.name, service.namespace))
            api.put("endpointslices", fakeapi.endpointslice(service.name, service.addresses, service.namespace))
        else:
            api.put("services", fakeapi.service(service.name, service.namespace, cluster_ip=service.addresses[0]))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
