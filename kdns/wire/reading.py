"""What both directions read: names with compression pointers (RFC 1035, RFC 9267) and EDNS options (RFC 6891)."""

from __future__ import annotations

import struct
from typing import Final

from kdns import limits
from kdns.errors import KdnsError
from kdns.name import MAX_NAME

HEADER: Final = 12
"""Octets of a message's header."""
DO: Final = 0x8000
"""The flag in the OPT record's extension."""

pack_header = struct.Struct("!6H").pack
read_header = struct.Struct("!6H").unpack_from
pack_pair = struct.Struct("!HH").pack
read_pair = struct.Struct("!HH").unpack_from
read_fixed = struct.Struct("!HHIH").unpack_from
pack_opt = struct.Struct("!BHHIH").pack


class FormatError(KdnsError):
    """A packet that breaks the protocol; the message says how."""


def read_options(packet: bytes, at: int, end: int) -> tuple[tuple[int, bytes], ...]:
    """The (code, data) of an OPT record's data from ``at`` to ``end``.

    Raises FormatError, also for more than `limits.EDNS_OPTIONS`; struct.error when the packet ends first.
    """
    if end > len(packet):
        raise FormatError("the OPT record is cut off")
    options: list[tuple[int, bytes]] = []
    while at < end:
        code, length = read_pair(packet, at)
        at += 4
        options.append((code, packet[at : at + length]))
        at += length
        if len(options) > limits.EDNS_OPTIONS:
            raise FormatError("too many EDNS options")
    if at != end:
        raise FormatError("an EDNS option is cut off")
    return tuple(options)


def read_name(packet: bytes, at: int, known: dict[int, bytes]) -> tuple[bytes, int]:
    """The name at ``at``, uncompressed and as spelled, and where it ends; ``known``: names by offset, added to.

    Raises FormatError; IndexError when the packet ends first.
    """
    begin = start = at
    name = b""
    end = 0
    hops: list[tuple[int, int]] = []
    while length := packet[at]:
        if length < 64 and at - start < MAX_NAME:
            at += 1 + length
            continue
        pointer = (length & 63) << 8 | packet[at + 1]
        if length < 192 or not HEADER <= pointer < start or len(hops) == limits.NAME_POINTERS:
            raise FormatError("a name that does not end, or a compression pointer that leads nowhere")
        name += packet[start:at]
        end = end or at + 2
        if pointer in known:
            name += known[pointer]
            break
        hops.append((pointer, len(name)))
        start = at = pointer
    else:
        name += packet[start : at + 1]
        end = end or at + 1
    if len(name) > MAX_NAME:
        raise FormatError("a name is over 255 octets")
    known[begin] = name
    # So that a chain of pointers is followed once, however many names lead into it.
    for pointer, skip in hops:
        known[pointer] = name[skip:]
    return name, end
