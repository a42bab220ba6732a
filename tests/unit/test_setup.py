"""setup.py: compiled twins where there is a compiler, and what becomes of an install where there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_COMPILER = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
TWINS = sorted(path.stem for path in (ROOT / "kdns").glob("*.pyx"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what setup.py works on, without anything that was built."""
    shutil.copytree(ROOT / "kdns", tmp_path / "kdns", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def setup(tree: Path, wanted: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", *arguments],
        cwd=tree,
        env={**os.environ, "KDNS_COMPILED": wanted, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def built(tree: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in (tree / "out").glob("kdns/*.so"))


def build(tree: Path, wanted: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return setup(tree, wanted, "build_ext", "--build-lib", "out", **environment)


def test_there_are_twins() -> None:
    assert "_wire" in TWINS


@pytest.mark.parametrize("place", ["--build-lib=out", "--inplace"])
def test_without_a_compiler_kdns_is_installed_without_them(tree: Path, place: str) -> None:
    result = setup(tree, "auto", "build_ext", place, **NO_COMPILER)
    assert result.returncode == 0, result.stderr
    assert list(tree.rglob("*.so")) == []


def test_without_a_compiler_must_fails(tree: Path) -> None:
    result = build(tree, "must", **NO_COMPILER)
    assert result.returncode != 0
    assert "/nonexistent/cc" in result.stderr + result.stdout


def test_never_does_not_even_try(tree: Path) -> None:
    result = build(tree, "never", **NO_COMPILER)
    assert result.returncode == 0, result.stderr
    assert not (tree / "build").exists()


def test_another_word_is_an_error(tree: Path) -> None:
    result = build(tree, "perhaps")
    assert result.returncode != 0
    assert "KDNS_COMPILED is one of auto, must and never, not 'perhaps'" in result.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_with_a_compiler_all_are_built_and_run(tree: Path) -> None:
    # Not for speed: -O0 compiles in a third of the time.
    result = build(tree, "must", KDNS_CFLAGS="-O0")
    assert result.returncode == 0, result.stderr
    assert built(tree) == TWINS
    for module in (tree / "out/kdns").glob("*.so"):
        shutil.copy(module, tree / "kdns")
    code = f"import kdns.server, kdns.wire; print(kdns.__file__); {'; '.join(f'import kdns.{twin}' for twin in TWINS)}"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env={**os.environ, "KDNS_COMPILED": "must", "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(tree / "kdns/__init__.py")


def test_nothing_in_it_is_deprecated(tree: Path) -> None:
    command = [sys.executable, "-W", "error", "setup.py", "-q", "--version"]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_an_sdist_has_all_that_they_are_made_from(tree: Path) -> None:
    result = setup(tree, "auto", "-q", "sdist")
    assert result.returncode == 0, result.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = [path for path in (tree / "kdns").rglob("*") if path.suffix in (".pyx", ".pxd", ".pyi")]
    sources += (path for path in (tree / "kdns/native").glob("*") if path.is_file())
    assert {"setup.py", "kdns/py.typed"} | {str(path.relative_to(tree)) for path in sources} <= names
    assert not [name for name in names if re.search(r"\.so$|^build/", name)]
