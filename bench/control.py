"""The benchmark's hold on its Kubernetes API, which is a process of its own: see api.py."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import BenchError, free_ports, last_words, running


class Api:
    """A running `bench.api`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.port = port
        self._process, self._log = process, log
        self._line()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"the Kubernetes API ended{last_words(self._log)}")
        return line

    def order(self, line: str) -> Any:
        """Have something done; the answer.  Raises BenchError when the API is gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        return json.loads(self._line())

    @contextlib.contextmanager
    def changing(self, rate: float) -> Iterator[None]:
        """Change objects meanwhile; afterwards they are gone."""
        self.order(f"changes {rate:g}")
        try:
            yield
        finally:
            self.order("changes 0")

    def applied(self) -> int:
        """How many changes there have been."""
        return int(self.order("state")["applied"])


@contextlib.contextmanager
def api(on: set[int], log: Path, services: int, slices: int, *more: str) -> Iterator[Api]:
    """A Kubernetes API with so many objects, on these cores; ``more``: the other arguments of `bench.api`."""
    port = free_ports(1)
    command = [sys.executable, "-m", "bench.api", str(port), str(services), str(slices), *more]
    with running(command, on, log, piped=True) as process:
        yield Api(process, port, log)
