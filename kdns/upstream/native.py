"""The functions of `kdns.upstream.plain`, or their compiled twins where those were built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdns.compiled import twin
from kdns.upstream import plain

receive, send_all, matches, read_reply = plain.receive, plain.send_all, plain.matches, plain.read_reply
renew: Callable[[int, tuple[Any, ...]], bool] | None = None
"""Give a connected UDP socket of this file descriptor another port to the same address; False: that did not work.
None: Python's sockets can't."""

_compiled = twin("kdns._upstream")
if _compiled is not None:
    receive, send_all = _compiled.receive, _compiled.send_all
    matches, read_reply = _compiled.matches, _compiled.read_reply
    renew = _compiled.renew
