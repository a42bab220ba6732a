"""Somebody sets the clock: nothing of ours may notice that measures how much time has passed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

ALLOWED = {
    "cluster/cluster.py": "when the cluster changed, for the SOA serial and the programming metric",
    "cluster/kubeconfig.py": "for how much longer a token is good, at the moment it is made",
    "cluster/snapshot.py": "when a snapshot was written, for the next process",
    "plugins/cache/__init__.py": "whether signatures have expired",
}
"""Who may look at the clock on the wall, and what for."""
WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime"}


def looks(text: str) -> Iterator[int]:
    """The lines that name a function of the wall clock."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("time", "datetime", "date") and node.attr in WALL:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (node.lineno for name in node.names if name.name in WALL)


@pytest.mark.parametrize("text", ["time.time()", "now = time.time", "datetime.now(UTC)", "from time import time_ns"])
def test_who_looks_is_seen(text):
    assert list(looks(text)) == [1]


def test_time_that_passes_is_measured_by_a_clock_that_nobody_sets():
    package = Path(ROOT) / "kdns"
    found = {str(file.relative_to(package)): line for file in package.rglob("*.py") for line in looks(file.read_text())}
    assert {file: line for file, line in found.items() if file not in ALLOWED} == {}
