"""Builds the compiled twins of kdns's hot modules; all the rest is in pyproject.toml.

``KDNS_COMPILED`` says what happens without a C compiler: ``auto`` (the default) installs kdns without them, ``must``
makes that an error, ``never`` does not even try.  `kdns.compiled` reads the same variable when kdns runs.
``KDNS_CFLAGS`` adds compiler and linker flags, such as ``-fsanitize=address,undefined``.
"""

from __future__ import annotations

import glob
import os
import shlex

from setuptools import Extension, setup

WANTED = os.environ.get("KDNS_COMPILED", "auto")
FLAGS = shlex.split(os.environ.get("KDNS_CFLAGS", ""))

TWINS: dict[str, list[str]] = {
    "kdns._packetcache": [
        "kdns/_packetcache.pyx", "kdns/native/table.c", "kdns/native/entry.c", "kdns/native/facts.c",
        "kdns/native/question.c", "kdns/native/plan.c", "kdns/native/names.c", "kdns/native/udp.c",
        "kdns/native/threads.c",
    ],
    "kdns._upstream": ["kdns/_upstream.pyx"],
    "kdns._wire": ["kdns/_wire.pyx"],
}  # fmt: skip
"""Extension module → the sources that go into it."""


def extensions() -> list[Extension]:
    """The extension modules to build; empty for ``never``."""
    if WANTED not in ("auto", "must", "never"):
        raise SystemExit(f"KDNS_COMPILED is one of auto, must and never, not {WANTED!r}")
    if WANTED == "never":
        return []
    from Cython.Build import cythonize

    flags = ["-O2", "-g0", *FLAGS]
    found: list[Extension] = cythonize(
        [
            Extension(module, sources, extra_compile_args=flags, extra_link_args=FLAGS)
            for module, sources in TWINS.items()
        ],
        build_dir="build",
        language_level=3,
    )
    for extension in found:
        # Said here, for Cython makes Extensions of its own and leaves this out.
        extension.optional = WANTED != "must"
        extension.depends = [*glob.glob("kdns/native/*.h"), *glob.glob("kdns/*.pxd")]
    return found


setup(ext_modules=extensions())
