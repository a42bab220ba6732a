"""Control groups (version 1, or 2 where the files are there), for limits of memory and CPU."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from tests.chaos.verdict import NotHere

_ROOT = Path("/sys/fs/cgroup")
_COUNT = itertools.count()


class Cgroup:
    """One group; `within` puts a command into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def make(cls, controller: str, files: dict[str, str]) -> Cgroup:
        """A new group of this controller with these values; raises NotHere where that cannot be."""
        path = _ROOT / controller / f"chaos-{os.getpid()}-{next(_COUNT)}"
        try:
            path.mkdir()
            for name, text in files.items():
                (path / name).write_text(text)
        except OSError as error:
            raise NotHere(f"no control group for {controller}: {error}") from None
        return cls(path)

    def within(self) -> list[str]:
        """What the command line of a process in it begins with."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh"]

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def oom_kills(self) -> int:
        """How often the kernel has killed something in it."""
        text = (self.path / "memory.oom_control").read_text()
        found = [line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")]
        return int(found[0]) if found else 0

    def remove(self) -> None:
        """Take it away; what was in it has ended."""
        for _ in range(100):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.05)
