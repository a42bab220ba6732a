"""The lines that *log* and *errors* write, beside those of the real CoreDNS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.query
import pytest

from tests.support import captured_log, free_port, serving

pytestmark = pytest.mark.skipif(shutil.which("coredns") is None, reason="coredns is not on PATH")

ZONE = """
$ORIGIN back.test.
@ 3600 IN SOA ns.back.test. host.back.test. 1 2 3 4 5
@ 3600 IN NS ns.back.test.
www 60 IN A 192.0.2.1
www 60 IN MX 10 www.back.test.
sub 60 IN NS ns.sub.back.test.
"""

EVERYTHING = (
    'log . "{remote}|{proto}|{type}|{class}|{name}|{size}|{rsize}|{rcode}|{>rflags}|{>id}|{>opcode}|{>do}|{>bufsize}|'
    '{/log/class}|{x}|{ {name} }|} {"'
)
CASES = [
    f"{EVERYTHING}\nwhoami",
    f"{EVERYTHING}\nfile ZONE back.test",
    "log\nwhoami",
    "log . {combined}\nfile ZONE back.test",
    "log back.test {\nclass denial\n}\nlog . {\nclass error success\n}\nfile ZONE back.test",
    "log www.back.test\nlog test {\nclass success\n}\nfile ZONE back.test",
    "metadata\nlog . {/log/class}-{/log/type}-{/nope/x}\nwhoami",
    "errors\nlog",
    "errors",
    "errors {\nconsolidate 1h .* warning show_first\n}\nlog",
    "errors {\nconsolidate 1h next\n}\nlog",
    "errors\nrewrite name regex a(.*) ..{1}\nwhoami",
]


def questions() -> list[dns.message.Message]:
    queries = [
        dns.message.make_query(name, kind, use_edns=edns, payload=payload, want_dnssec=edns is True)
        for name, kind, edns, payload in (
            ("www.back.test", "A", None, 0),
            ("WWW.back.test", "MX", None, 0),
            ("nope.back.test", "A", 0, 1400),
            ("www.back.test", "TXT", 0, 100),
            ("x.sub.back.test", "A", None, 0),
            ("other.test", "A", None, 0),
            ("a.org", "AAAA", True, 4096),
            ("www.back.test", "TYPE65400", None, 0),
        )
    ]
    queries[1].flags |= dns.flags.CD
    for number, query in enumerate(queries):
        query.id = number
    return queries


def ask_all(port: int) -> None:
    for query in questions():
        for send in (dns.query.udp, dns.query.tcp):
            with contextlib.suppress(dns.exception.DNSException):
                send(query, "127.0.0.1", 5, port)


def lines(said: list[str]) -> list[str]:
    """Lines about queries, without what is of the moment; UDP and TCP may be logged in either order."""
    out: list[str] = []
    for line in said:
        if "SIGTERM" in line or "plugin/reload" in line or not re.match(r"\[(INFO|WARNING|ERROR)\] ", line):
            continue
        line = re.sub(r"127\.0\.0\.1:\d+", "CLIENT", line)
        line = re.sub(r" [0-9.]+s(?= |$)", " TIME", line)
        out.append(line)
    return sorted(out)


def real(folder: Path, text: str, port: int) -> list[str]:
    (folder / "Corefile").write_text(text)
    process = subprocess.Popen(
        ["coredns", "-conf", folder / "Corefile"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if line.startswith("CoreDNS-"):
                break
        ask_all(port)
        process.terminate()
        said = process.stdout.read().splitlines()
    process.wait()
    return lines(said)


@pytest.mark.parametrize("body", CASES)
async def test_the_same_lines(tmp_path: Path, body: str) -> None:
    (tmp_path / "zone").write_text(ZONE)
    port = free_port()
    text = f".:{port} {{\n{body.replace('ZONE', str(tmp_path / 'zone'))}\n}}\n"
    theirs = await asyncio.to_thread(real, tmp_path, text, port)
    with captured_log() as log:
        async with serving(text):
            await asyncio.to_thread(ask_all, port)
    assert theirs
    assert lines(log.lines) == theirs
