"""Both twins of the wire format's road, for tests that hold them to the same."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from kdns import wire
from kdns.wire import road

TWINS = ("kdns.wire.road", "kdns._wire")
CHOSEN = ("parse_query", "pack_reply", "reply_limit")


def compiled() -> ModuleType:
    """The compiled twin; skips the test when it was not built."""
    return pytest.importorskip(TWINS[1], exc_type=ImportError)


@contextlib.contextmanager
def chosen(twin: str) -> Iterator[ModuleType]:
    """`kdns.wire` with this twin."""
    module = importlib.import_module(twin) if twin == road.__name__ else compiled()
    with pytest.MonkeyPatch.context() as patch:
        for name in CHOSEN:
            patch.setattr(wire, name, getattr(module, name))
        yield module
