"""Which packets are one question, as the packet cache sees it.

Those with the same octets but for the ID and the case of letters in the name.  Cookies and padding (RFC 7873, RFC 7830)
differ from query to query and change no answer: they are left out, the length of the packet stands for them.  Any other
EDNS option, odd flags or counts: never stored, so never found.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from kdns.message import OPTION_COOKIE, OPTION_PADDING

Form: TypeAlias = bytes | tuple[bytes, int]
"""All but the name: scope, flags, counts and what follows the name; (the same up to the options of OPT, octets of the
packet without its name) for a packet with options."""
Key: TypeAlias = bytes | tuple[bytes, int] | tuple[bytes, Form]
"""Scope and packet from the flags on, name folded; (the same up to the options of OPT, octets of the packet) for a
packet with options; for a general entry (apex without the root octet, form)."""

OPT_SIZE: Final = 11
"""Octets of an OPT record without options."""
_HEADER: Final = 12
_OPT_HEAD: Final = b"\0\0\x29"
_IGNORED: Final = (OPTION_COOKIE, OPTION_PADDING)
_PLAIN_COUNTS: Final = (b"\0\1\0\0\0\0\0\0", b"\0\1\0\0\0\0\0\1")


def storage_key(scope: bytes, packet: bytes) -> Key | None:
    """Under what the reply to a packet is kept; None when `PacketCache.get` could not find it again for sure.

    The key is unambiguous although flags, counts and length octets are folded together with the letters: in a stored
    packet none of them is a letter in either case, so only a packet with the same ones folds to the same key.
    """
    end = packet.find(0, _HEADER)
    if len(packet) < end + 5 or packet[2] > 1 or packet[3] & ~0x30 or packet[4:12] not in _PLAIN_COUNTS:
        return None
    at = _HEADER
    while at < end:
        at += 1 + packet[at]
    if at != end:  # a zero octet inside a label
        return None
    plain = scope + packet[2:end].lower() + packet[end:]
    rest = len(packet) - end - 5
    if not packet[11]:
        return None if rest else plain
    if rest == OPT_SIZE and packet[end + 5 : end + 8] == _OPT_HEAD and packet[-2:] == b"\0\0":
        return plain
    if rest > OPT_SIZE and options_ignored(packet, end + 5):
        return scope + packet[2:end].lower() + packet[end : end + 14], len(packet)
    return None


def form_of(scope: bytes, packet: bytes) -> Form:
    """What replies to other names than this packet's must have in common with its own; for one with a `storage_key`."""
    end = packet.find(0, _HEADER)
    head = scope + packet[2:_HEADER]
    if len(packet) > end + 5 + OPT_SIZE:
        return head + packet[end : end + 14], len(packet) - (end + 1 - _HEADER)
    return head + packet[end:]


def options_ignored(packet: bytes, at: int) -> bool:
    """Whether the OPT record at ``at`` ends the packet and holds nothing but a cookie and padding."""
    if packet[at : at + 3] != _OPT_HEAD or int.from_bytes(packet[at + 9 : at + 11], "big") != len(packet) - at - 11:
        return False
    at += OPT_SIZE
    for _ in _IGNORED:
        if int.from_bytes(packet[at : at + 2], "big") not in _IGNORED:
            return False
        at += 4 + int.from_bytes(packet[at + 2 : at + 4], "big")
        if at >= len(packet):
            return at == len(packet)
    return False
