"""The log's reader stalls or goes away while everything fails and is logged: nothing dies, blocks or grows."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.tools import MIB, client, corefile, metrics, pulse, query, rcode, rss, total, write_world
from tests.support import Kdns, free_port

FAILURES = 6000


class Served:
    def __init__(self, directory: Path) -> None:
        self.port, self.metrics_port, dead = free_port(), free_port(), free_port()
        write_world(directory / "world")
        conf = corefile(
            directory,
            f""".:{self.port} {{
    bind 127.0.0.1
    log
    errors
    prometheus 127.0.0.1:{self.metrics_port}
    kubernetes cluster.local {{
        manifests {directory}/world
    }}
    forward . 127.0.0.1:{dead}
}}
""",
        )
        self.kdns = Kdns(conf)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path)
    with served.kdns:
        yield served


async def flood(port: int, count: int = FAILURES) -> int:
    """Ask names that the dead upstream must fail on, with labels as long as they may be; how many were answered."""
    dice = random.Random(1)
    async with client(port) as udp:
        names = (f"{dice.randbytes(30).hex()}.{dice.randbytes(30).hex()}.example." for _ in range(count))
        replies = await udp.many(query(name) for name in names)
    assert {rcode(reply) for reply in replies if reply} == {2}
    return count - replies.count(None)


async def test_the_reader_stalls(served: Served) -> None:
    await flood(served.port, 500)
    before = rss(served.kdns)
    async with pulse(served.port) as beat:
        # Nobody reads the pipe: 64 KiB fit in, then the writer waits.
        assert await flood(served.port) == FAILURES
    grown = rss(served.kdns) - before
    samples = await metrics(served.metrics_port)
    assert beat.fine, vars(beat)
    assert grown < 24 * MIB, grown / MIB
    assert total(samples, "kdns_log_dropped_total") > 0
    assert total(samples, "kdns_errors_suppressed_total") > 0
    # Once it is read again, lines come again.
    served.kdns.wait_for(".example. A: ")
    assert await flood(served.port, 300) == 300
    served.kdns.read()
    assert served.kdns.stop() == 0
    assert "Traceback" not in served.kdns.output


async def test_the_reader_goes_away(served: Served) -> None:
    await flood(served.port, 500)
    before = rss(served.kdns)
    stdout = served.kdns.process.stdout
    assert stdout is not None
    stdout.close()
    async with pulse(served.port) as beat:
        assert await flood(served.port) == FAILURES
    assert beat.fine, vars(beat)
    assert rss(served.kdns) - before < 24 * MIB
    assert total(await metrics(served.metrics_port), "kdns_log_dropped_total") > FAILURES // 2
    served.kdns.process.terminate()
    assert served.kdns.process.wait(15) == 0
