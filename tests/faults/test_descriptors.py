"""Without file descriptors: UDP goes on, nothing spins, nothing dies, and all is well again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import pytest

from tests.fakeupstream import FakeUpstream, after
from tests.faults.tools import WEB, client, corefile, cpu, descriptors, pulse, query, rcode, until, write_world
from tests.support import Kdns, ask, free_port, http_get

NONE_LEFT = 96
SOME_KEPT = 400
"""Of so many, upstreams and probes have theirs whatever clients do."""


@pytest.mark.parametrize("limit", [NONE_LEFT, SOME_KEPT])
async def test_running_out_of_descriptors(tmp_path: Path, limit: int) -> None:
    port, metrics_port = free_port(), free_port()
    write_world(tmp_path / "world")
    async with FakeUpstream() as upstream:
        conf = corefile(
            tmp_path,
            f""".:{port} {{
    bind 127.0.0.1
    errors
    prometheus 127.0.0.1:{metrics_port}
    kubernetes cluster.local {{
        manifests {tmp_path}/world
    }}
    forward . {upstream.address}
}}
""",
        )
        with Kdns(conf, within=("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")) as kdns:
            assert (await ask(port, WEB)).rcode() == 0
            calm = descriptors(kdns)
            socks: list[socket.socket] = []
            # More than it can accept, on both kinds of TCP ports.
            for number in range(600):
                sock = socket.socket()
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", (port, port, port, metrics_port)[number % 4]))
                socks.append(sock)
            await until(lambda: descriptors(kdns) >= (limit - 2 if limit == NONE_LEFT else 150))
            upstream.script = after(0.3)
            used, began = cpu(kdns), time.monotonic()
            async with pulse(port, every=0.05) as beat, client(port) as udp:
                forwarded = await udp.many([query(f"w{number}.example.") for number in range(300)], at_once=300)
                await asyncio.sleep(1.5)
            share = (cpu(kdns) - used) / (time.monotonic() - began)
            assert beat.fine, vars(beat)
            print(kdns.read()[-1500:])
            # Those for which there was no socket are told so; none is left without an answer.
            assert {reply and rcode(reply) for reply in forwarded} <= ({0, 2} if limit == NONE_LEFT else {0})
            # CoreDNS: 1.16.
            assert share < 0.5, share
            for sock in socks:
                sock.close()
            await until(lambda: descriptors(kdns) < NONE_LEFT - 20)
            upstream.script = after(0)
            async with client(port) as udp:
                async with asyncio.timeout(5):
                    while rcode(await udp.ask(query("again.example."))):
                        await asyncio.sleep(0.05)
            reply = await ask(port, WEB, tcp=True)
            assert reply.answer
            assert (await http_get(metrics_port, "/metrics"))[0] == 200
            await until(lambda: descriptors(kdns) <= calm + 16, 20)
            assert kdns.stop() == 0
            assert "Traceback" not in kdns.output, kdns.output
