"""The same odd Corefiles for kdns's parser and for the real CoreDNS: both take them or both refuse them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kdns import corefile, name
from kdns.corefile import CorefileError
from kdns.plugin import ORDER
from tests.support import free_port

pytestmark = pytest.mark.skipif(shutil.which("coredns") is None, reason="coredns is not on PATH")

FILES = {
    "one": "whoami\n",
    "x.two": "log\n",
    "server": ".:P {\nwhoami\n}\n",
    "close": "whoami\n}\nb.org:P {\n",
    "opts": "success 100\n",
    "key": "b.org:P",
    "empty": "",
    "dup": "log",
}
ENV = {"Z": "z.org", "W": "whoami"}

ALIKE = [
    ".:P {\nwhoami\n}\n",
    ".:P {\nwhoami#x\n}\n",
    '.:P {\nwhoami\nlog . "a b"\n}',
    ".:P\nwhoami\n",
    ".:P\n{\nwhoami\n}",
    ".:P {\nwhoami }\n",
    ".:P { whoami\n}",
    ".:P { whoami }",
    "a.org:P b.org:P,c.org:P {\nwhoami\n}",
    "a.org:P, b.org:P,\n\n# x\nc.org:P {\nwhoami\n}",
    "a.org:P, {\nwhoami\n}",
    "a.org:P,",
    ".:P {\nwhoami\n",
    ".:P {\ncache {\n}\n",
    ".:P {\ncache {\n",
    ".:P {\nwhoami\n}\n}",
    ".:P {\nwhoami\n}\n{",
    "{",
    "}",
    '"" .:P {\nwhoami\n}',
    "(s) {\nwhoami\n}\n.:P {\nimport s\n}",
    "(s) {\nwhoami\n}\n(s) {\n}\n.:P {\n}",
    ".:P {\nimport s\n}\n(s) {\nwhoami\n}",
    "(s) {\n",
    "(s) {\nimport s\n}\n.:P {\n}",
    "(a) {\nimport b\n}\n(b) {\nimport a\n}\n.:P {\nimport a\n}",
    '() {\nwhoami\n}\n.:P {\nimport ""\n}',
    ".:P {\nimport\n}",
    ".:P {\nimport a b\n}",
    ".:P {\nimport nope\n}",
    ".:P {\nimport nope*\n}",
    ".:P {\nimport */*.x\n}",
    ".:P {\nimport [a]\n}",
    ".:P {\nimport [a\n}",
    ".:P {\nimport ]a\n}",
    ".:P {\nimport .\n}",
    ".:P {\nimport {$NOPE}\n}",
    ".:P {\nimport one\nimport *.two\n}\n",
    "import server\n",
    ".:P {\nimport close\nwhoami\n}\n",
    ".:P {\ncache {\nimport opts\n}\n}\n",
    ".:P,\nimport key\n{\nwhoami\n}\n",
    "import empty\n.:P {\nwhoami\n}",
    ".:P {\nfoo\n}",
    ".:P {\n{\n}\n}",
    "{$ZZ}:P {\nwhoami\n}",
    "{$Z}:P {\nwhoami\n}",
    ".:P {\n{$W}\n}",
    ".:P {\n{%W%}\n}",
    ".:P {\nlog {$}\n}",
    ".:P {\nlog {$Z\n}",
    '.:P {\nlog "abc\n',
    '.:P\nlog "abc',
    '.:P\nlog "a\\"b"',
    ".:P {\nwhoami\n} b.org:P {\nwhoami\n}",
    ".:P {\nwhoami\n}b.org:P {\nwhoami\n}",
    ".:P {\r\nwhoami\r\n}\r\n",
    "\ufeff.:P {\nwhoami\n}",
    "a..b:P {\n}",
    ".a:P {\n}",
    "a.b.:P {\n}",
    "a" * 64 + ":P {\n}",
    "a." * 127 + ":P {\n}",
    "a." * 128 + ":P {\n}",
    ":P {\n}",
    "a.org: {\n}",
    "a.org:x:P {\n}",
    "*.a:P {\n}",
    "a_b:P {\n}",
    "tls://.:P {\n}",
    "foo://a:P {\n}",
    "dns://:P {\n}",
    "dns://.:P {\n}",
    "10.0.0.0/24:P {\n}",
    "10.0.0.0/17:P {\n}",
    "10.0.0.1/15:P {\n}",
    "10.0.0.0/24.:P {\n}",
    "10.0.0.0/33:P {\n}",
    "10.0.0.0/0:P {\n}",
    "2001:db8::/32:P {\n}",
    "2001:db8::/31:P {\n}",
    "::/0:P {\n}",
    "0::/0:P {\n}",
    "2001:db8::/129:P {\n}",
    "10.0.0.010/24:P {\n}",
    "10.0.0.0/024:P {\n}",
    "::ffff:1.2.3.4/120:P {\n}",
    "fe80::%1/64:P {\n}",
    ".:99999 {\nwhoami\n}",
    ".:-1 {\nwhoami\n}",
    ".:+P {\n}",
    ".:P {\nerrors { }\n}",
    ".:P {\nerrors {\n} x\n}",
    ".:P {\nlog {\n{\n}\n}\n}",
    ".:P {\nlog {\n} }\n}",
    ".:P {\nerrors\n\0\n}",
    ".:P {\nhosts { 1.2.3.4 a\n 1.2.3.5 b\n}\n}",
    ".:P {\nlog import x\n}",
    ".:P {\ncache x{ y\n}",
    ".:P{\nwhoami\n}",
]

REFUSED_BY_KDNS_ALONE = [
    # CoreDNS takes the brace for a second `log` directive.
    ".:P {\nlog\n{\n}\n}",
    ".:P {\nlog {\n} {\n}\n}",
    # It starts without a listener, or with one on a random port.
    "unix://a:P {\nwhoami\n}",
    ".:0 {\nwhoami\n}",
]


def real(folder: Path, port: int) -> tuple[bool, list[str]]:
    """Whether CoreDNS starts, and the zones of its banner or the last line it says."""
    process = subprocess.Popen(
        ["coredns", "-conf", "Corefile", "-dns.port", str(port)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | ENV,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    said: list[str] = []
    started = False
    with process, process.stdout:
        for line in process.stdout:
            started = started or line.startswith("CoreDNS-")
            if started:
                process.kill()
                break
            if f":{port}" in line and "WARNING" not in line and "Warning" not in line:
                said.append(line.strip())
    return started, sorted(said)


def ours(folder: Path, port: int) -> tuple[bool, list[str]]:
    """The same of kdns's parser."""
    try:
        found = corefile.load(str(folder / "Corefile"), ENV, ORDER.__contains__)
    except CorefileError:
        return False, []
    return True, sorted(
        f"{'' if key.scheme == 'dns' else key.scheme + '://'}{name.to_text(key.zone)}:{key.port or port}"
        for block in found.blocks
        for key in block.keys
    )


def write(folder: Path, text: str) -> int:
    port = free_port()
    for file, content in FILES.items():
        (folder / file).write_text(content.replace(":P", f":{port}"))
    (folder / "Corefile").write_bytes(text.replace(":P", f":{port}").replace("+P", f"+{port}").encode())
    return port


@pytest.mark.parametrize("text", ALIKE)
def test_taken_or_refused_alike(tmp_path: Path, text: str) -> None:
    port = write(tmp_path, text)
    started, zones = real(tmp_path, port)
    taken, keys = ours(tmp_path, port)
    assert taken == started
    if taken:
        assert keys == zones


@pytest.mark.parametrize("text", REFUSED_BY_KDNS_ALONE)
def test_refused_by_kdns_alone(tmp_path: Path, text: str) -> None:
    port = write(tmp_path, text)
    assert real(tmp_path, port)[0]
    assert not ours(tmp_path, port)[0]
