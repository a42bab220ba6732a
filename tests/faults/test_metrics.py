"""What the metrics say is what happened, and strangers cannot make them grow."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from kdns.message import AAAA, SRV
from tests.fakeupstream import Asked, FakeUpstream
from tests.faults.test_tcp import read_reply
from tests.faults.tools import WEB, client, corefile, framed, metrics, query, rcode, total, write_world
from tests.support import Kdns, free_port, hang_up, use_twin

LEFTOVER = "*.default.svc.cluster.local."
"""Names that nobody has, each another one."""


async def serve(directory: Path, upstream: FakeUpstream, line: str = "") -> tuple[Kdns, int, int]:
    port, metrics_port = free_port(), free_port()
    write_world(directory / "world")
    conf = corefile(
        directory,
        f""".:{port} {{
    bind 127.0.0.1
    {line}
    errors
    prometheus 127.0.0.1:{metrics_port}
    cache 300
    kubernetes cluster.local {{
        manifests {directory}/world
    }}
    forward . {upstream.address}
}}
""",
    )
    return await asyncio.to_thread(Kdns, conf), port, metrics_port


async def over_tcp(port: int, packets: list[bytes]) -> list[bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    for packet in packets:
        writer.write(framed(packet))
        found.append(await read_reply(reader))
    await hang_up(writer)
    return found


@pytest.mark.parametrize(
    ("twin", "line", "queries"),
    [("compiled", "", 100_000), ("compiled", "multisocket 2", 20_000), ("python", "", 10_000)],
    ids=["compiled", "multisocket", "python"],
)
async def test_counts_are_exact_with_hits_of_every_cache(
    twin: str, line: str, queries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer counts once: from the chain, the cache plugin, or the packet cache, which proved some denials."""
    use_twin(twin, monkeypatch)
    dice = random.Random(3)
    kinds = {
        WEB: (1, "A", 0),
        "nobody.default.svc.cluster.local.": (1, "A", 3),
        "web.default.svc.cluster.local": (SRV, "SRV", 0),
        "www.example.": (1, "A", 0),
        "mail.example.": (AAAA, "AAAA", 0),
    }
    names = [dice.choice([*kinds, LEFTOVER]) for _ in range(queries)]
    kinds[LEFTOVER] = (1, "A", 3)
    expected: Counter[tuple[str, ...]] = Counter()
    octets: Counter[str] = Counter()
    async with FakeUpstream() as upstream:
        kdns, port, metrics_port = await serve(tmp_path, upstream, line)
        with kdns:
            packets = [
                query(name.replace("*", f"{dice.getrandbits(dice.randint(4, 100)):x}"), number & 0xFFFF, kinds[name][0])
                for number, name in enumerate(names)
            ]
            split = queries * 9 // 10
            async with client(port) as udp:
                replies: list[bytes | None] = await udp.many(packets[:split])
            replies += await over_tcp(port, packets[split:])
            for number, (name, reply) in enumerate(zip(names, replies, strict=True)):
                proto = "udp" if number < split else "tcp"
                assert reply is not None and rcode(reply) == kinds[name][2]
                expected["requests", f'type="{kinds[name][1]}"', f'proto="{proto}"'] += 1
                expected["responses", f'rcode="{"NXDOMAIN" if rcode(reply) else "NOERROR"}"'] += 1
                octets[proto] += len(reply)
            samples = await metrics(metrics_port)
            again = await metrics(metrics_port)
    for (what, *labels), count in expected.items():
        assert total(samples, f"coredns_dns_{what}_total", *labels) == count, (what, labels)
    for proto, size in octets.items():
        assert total(samples, "coredns_dns_response_size_bytes_sum", f'proto="{proto}"') == size
    assert total(samples, "coredns_dns_requests_total") == queries
    assert total(samples, "coredns_dns_responses_total") == queries
    assert total(samples, "coredns_dns_request_duration_seconds_count") == queries
    assert (
        total(samples, "coredns_dns_responses_total", 'plugin="kubernetes"')
        + total(samples, "coredns_dns_responses_total", 'plugin="forward"')
        + total(samples, "coredns_dns_responses_total", 'plugin="cache"')
        == queries
    )
    assert total(again, "coredns_dns_requests_total") == queries
    assert total(samples, "coredns_panics_total") == 0
    # Each cache had its share, or this says nothing.
    assert total(samples, "coredns_cache_hits_total") > queries // 30
    assert total(samples, "kdns_packetcache_hits_total") > queries // 2
    assert total(samples, "kdns_packetcache_misses_total") + total(samples, "kdns_packetcache_hits_total") == queries


async def test_strangers_make_no_series(tmp_path: Path) -> None:
    dice = random.Random(5)

    async def anything(asked: Asked) -> None:
        asked.send(asked.reply(rcode=("NOERROR", "NXDOMAIN", "REFUSED")[len(asked.name) % 3]))

    async with FakeUpstream() as upstream:
        upstream.script = anything
        kdns, port, metrics_port = await serve(tmp_path, upstream)
        with kdns:
            async with client(port) as udp:
                await udp.many([query("www.example.", 0, type) for type in (1, 16, 99)])
                before = await metrics(metrics_port)
                packets = [
                    query(
                        f"{dice.randbytes(dice.randint(1, 8)).hex()}.example.",
                        0,
                        dice.choice((1, 28, dice.randint(300, 60000))),
                    )
                    for _ in range(5000)
                ]
                replies = await udp.many(packets)
            after = await metrics(metrics_port)
            assert replies.count(None) == 0
            assert len(after) - len(before) < 60, sorted(set(after) - set(before))
