"""Which twin of a module runs: the compiled one where it was built, else the readable Python one.

The environment variable ``KDNS_COMPILED`` decides: ``auto`` (the default) takes the compiled twin if it is there,
``must`` fails without it, ``never`` leaves it alone.  Tests run on both.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Final

from kdns.errors import KdnsError

VARIABLE: Final = "KDNS_COMPILED"


class NotCompiled(KdnsError):
    """The compiled twin is demanded and not there, or ``KDNS_COMPILED`` says nothing that can be understood."""


def twin(module: str) -> Any:
    """The compiled module of this name (``kdns._packetcache``); None: use the Python one.  Raises NotCompiled."""
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ("auto", "must", "never"):
        raise NotCompiled(f"{VARIABLE} is one of auto, must and never, not {wanted!r}")
    if wanted == "never":
        return None
    try:
        return import_module(module)
    except ImportError as error:
        if wanted == "must":
            raise NotCompiled(f"{VARIABLE}=must, but {module} cannot be imported: {error}") from error
        return None
