"""The C below the compiled twins under the sanitizers; the invariants are stated in tests/native/*.c."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

RUNS = os.environ.get("KDNS_FUZZ_RUNS", "3000")
NATIVE = ROOT / "kdns/native"


def run(tmp_path: Path, sanitizers: str, sources: list[Path], *arguments: str, defines: tuple[str, ...] = ()) -> str:
    """Build a C program with sanitizers and run it; what it says."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path / "program"
    flags = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [compiler, *flags, *(f"-D{define}" for define in defines), f"-I{NATIVE}", *map(str, sources), "-lm",
         "-lpthread", "-o", str(program)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "cannot find" in built.stderr:
        pytest.skip(f"no sanitizer runtime: {built.stderr.splitlines()[0]}")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_table_under_random_operations(tmp_path: Path) -> None:
    sources = [
        ROOT / "tests/native/fuzz_table.c",
        *(NATIVE / f"{name}.c" for name in ("table", "entry", "facts", "question", "plan", "names")),
    ]
    seed = str(int.from_bytes(os.urandom(4), "big"))
    said = run(tmp_path, "address,undefined", sources, RUNS, seed, defines=("DRIVER", "KD_FIRST_BUCKETS=2"))
    assert said == f"{RUNS} runs\n"


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_threads_beside_the_interpreter(sanitizers: str, tmp_path: Path) -> None:
    sources = [ROOT / "tests/native/race.c", *sorted(NATIVE.glob("*.c"))]
    asked, answered, handed = (int(part.split()[0]) for part in run(tmp_path, sanitizers, sources).split(","))
    assert asked == answered + handed
    assert answered and handed
