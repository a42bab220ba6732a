"""Bytes ↔ values: the wire format of DNS messages (RFC 1035, 6891, 8914), and nothing else.

Strict on what comes in (RFC 9267, 9619): a pointer leads backwards, past the header, at most `limits.NAME_POINTERS`
times; counts, lengths and the end of the packet must agree.  What `parse_query` cannot use is answered or left alone as
RFC 8906 asks, never raised.

What goes out is compressed against the question first and without regard to case, so that the answers to all spellings
of a question differ in the question alone.

`road` has what every query needs; it has a compiled twin, ``kdns._wire``, and which of them runs is decided here.
`other` has what is said to other servers and by them; `reading` is what both have in common.
"""

from __future__ import annotations

from collections.abc import Callable

from kdns.compiled import twin
from kdns.message import Listener, Query, Reply
from kdns.wire import road
from kdns.wire.other import Message, pack_query, parse_reply
from kdns.wire.reading import FormatError
from kdns.wire.road import TCP_MAX, UDP_MIN

__all__ = [
    "TCP_MAX", "UDP_MIN", "FormatError", "Message", "pack_query", "pack_reply", "parse_query", "parse_reply",
    "reply_limit",
]  # fmt: skip

_twin = twin("kdns._wire") or road
parse_query: Callable[[bytes, tuple[str, int], Listener], Query | bytes | None] = _twin.parse_query
reply_limit: Callable[[Query, Reply], int] = _twin.reply_limit
pack_reply: Callable[[Query, Reply, int], bytes] = _twin.pack_reply
