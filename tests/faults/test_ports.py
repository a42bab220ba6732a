"""A port in use is an error at start that names it; at a reload it changes nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.tools import client, corefile, query, rcode
from tests.support import ROOT, Kdns, free_port

TEXT = """.:DNS {
    bind 127.0.0.1
    health 127.0.0.1:HEALTH
    ready 127.0.0.1:READY
    prometheus 127.0.0.1:METRICS
    whoami
}
"""
KINDS = {"DNS": socket.SOCK_DGRAM, "DNS over TCP": socket.SOCK_STREAM} | dict.fromkeys(
    ("HEALTH", "READY", "METRICS"), socket.SOCK_STREAM
)


def with_ports(ports: dict[str, int]) -> str:
    text = TEXT
    for what, port in ports.items():
        text = text.replace(what, str(port))
    return text


@pytest.mark.parametrize("what", KINDS)
def test_a_port_in_use_is_named(tmp_path: Path, what: str) -> None:
    ports = {kind: free_port() for kind in ("DNS", "HEALTH", "READY", "METRICS")}
    taken = ports[what.split()[0]]
    with socket.socket(socket.AF_INET, KINDS[what]) as holder:
        holder.bind(("127.0.0.1", taken))
        if KINDS[what] == socket.SOCK_STREAM:
            holder.listen()
        conf = corefile(tmp_path, with_ports(ports))
        result = subprocess.run(
            [sys.executable, "-m", "kdns", "-conf", str(conf)], capture_output=True, text=True, timeout=30, cwd=ROOT
        )
    assert result.returncode == 1
    assert f"127.0.0.1 port {taken}: Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_second_instance_does_not_share_the_ports(tmp_path: Path) -> None:
    ports = {kind: free_port() for kind in ("DNS", "HEALTH", "READY", "METRICS")}
    conf = corefile(tmp_path, with_ports(ports))
    with Kdns(conf) as kdns:
        second = subprocess.run(
            [sys.executable, "-m", "kdns", "-conf", str(conf)], capture_output=True, text=True, timeout=30, cwd=ROOT
        )
        assert second.returncode == 1 and f"port {ports['DNS']}: Address already in use" in second.stderr
        async with client(ports["DNS"]) as udp:
            assert rcode(await udp.ask(query("a.example."))) == 0
        assert kdns.stop() == 0
