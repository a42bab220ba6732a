"""The functions of `kdns.upstream.plain`, or their compiled twins where those were built."""

from __future__ import annotations

from kdns.compiled import twin
from kdns.upstream import plain

receive, send_all, matches, read_reply = plain.receive, plain.send_all, plain.matches, plain.read_reply

_compiled = twin("kdns._upstream")
if _compiled is not None:
    receive, send_all = _compiled.receive, _compiled.send_all
    matches, read_reply = _compiled.matches, _compiled.read_reply
