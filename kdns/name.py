"""Domain names as wire-format bytes.

A :data:`Name` is a whole domain name as RFC 1035 section 3.1 puts it on the wire (length octet, label,
…, zero octet), uncompressed and with ASCII letters in lower case, so two names are the same name exactly
when their bytes are equal (RFC 4343).  The spelling that an asker used is kept beside it, never inside.

Length octets are at most 63 and so never look like letters: ``bytes.lower`` folds a whole name at once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TypeAlias

from kdns.errors import KdnsError

Name: TypeAlias = bytes

ROOT: Name = b"\0"
MAX_NAME = 255
MAX_LABEL = 63
IN_ADDR_ARPA: Name = b"\x07in-addr\x04arpa\0"
IP6_ARPA: Name = b"\x03ip6\x04arpa\0"

# Characters that master-file text must escape (RFC 1035 section 5.1).
_SPECIAL = frozenset(b'".;()@$\\')


class BadName(KdnsError):
    """The text or the labels are not a domain name; the message says why."""


def from_text(text: str, origin: Name = ROOT) -> Name:
    """Master-file spelling (``www.example.org.``, ``\\.`` and ``\\DDD`` escapes) → folded Name.

    A name without a trailing dot is completed with ``origin``; ``@`` is the origin itself and the empty text is the
    root; text outside ASCII stands for its UTF-8 octets.  Raises BadName for empty labels, labels over 63 and names
    over 255 octets, bad escapes and lone surrogates.
    """
    return spell(text, origin).lower()


def spell(text: str, origin: Name = ROOT) -> bytes:
    """As `from_text`, but with the letters as they were written; for rdata, where case is to be kept."""
    if text == "@":
        return origin
    if text in ("", "."):
        return ROOT
    try:
        if "\\" in text:
            labels, absolute = _split_escaped(text)
        else:
            absolute = text[-1] == "."
            labels = text.removesuffix(".").encode().split(b".")
    except UnicodeEncodeError as error:
        raise BadName(f"{text!r} is not a domain name: {error.reason}") from None
    wire = bytearray()
    for label in labels:
        if not 0 < len(label) <= MAX_LABEL:
            reason = "a label is empty" if not label else "a label is over 63 octets"
            raise BadName(f"{text!r} is not a domain name: {reason}")
        wire.append(len(label))
        wire += label
    wire += ROOT if absolute else origin
    if len(wire) > MAX_NAME:
        raise BadName(f"{text!r} is not a domain name: over 255 octets")
    return bytes(wire)


def _split_escaped(text: str) -> tuple[list[bytes], bool]:
    """Labels of a text with backslash escapes, and whether it ended with an unescaped dot."""
    labels: list[bytes] = []
    label = bytearray()
    absolute = False
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        absolute = False
        if char == "\\":
            digits = text[at : at + 3]
            if len(digits) == 3 and digits.isascii() and digits.isdigit():
                if int(digits) > 255:
                    raise BadName(f"{text!r} is not a domain name: \\{digits} is not an octet")
                label.append(int(digits))
                at += 3
            elif at < len(text) and not text[at].isdigit():
                label += text[at].encode()
                at += 1
            else:
                raise BadName(f"{text!r} is not a domain name: bad escape")
        elif char == ".":
            labels.append(bytes(label))
            label = bytearray()
            absolute = True
        else:
            label += char.encode()
    if not absolute:
        labels.append(bytes(label))
    return labels, absolute


def to_text(name: bytes) -> str:
    """Master-file spelling with the trailing dot; special characters and octets outside printable ASCII are escaped."""
    if name == ROOT:
        return "."
    out: list[str] = []
    for label in labels(name):
        if label.isalnum():
            out.append(label.decode("ascii") if label.isascii() else _escape(label))
        else:
            out.append(_escape(label))
    return ".".join(out) + "."


def _escape(label: bytes) -> str:
    return "".join(
        "\\" + chr(octet) if octet in _SPECIAL else chr(octet) if 0x21 <= octet <= 0x7E else f"\\{octet:03d}"
        for octet in label
    )


def labels(name: bytes) -> list[bytes]:
    """The labels from left to right, without the root's empty one."""
    out: list[bytes] = []
    at = 0
    while length := name[at]:
        out.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return out


def from_labels(parts: Iterable[bytes], suffix: bytes = ROOT) -> bytes:
    """Labels from left to right followed by ``suffix``; raises BadName as `from_text` does.  Letters are not folded."""
    wire = bytearray()
    for label in parts:
        if not 0 < len(label) <= MAX_LABEL:
            raise BadName(f"label {label!r} is empty or over 63 octets")
        wire.append(len(label))
        wire += label
    wire += suffix
    if len(wire) > MAX_NAME:
        raise BadName("name over 255 octets")
    return bytes(wire)


def count_labels(name: bytes) -> int:
    """How many labels a name has; the root has none."""
    count = at = 0
    while length := name[at]:
        at += 1 + length
        count += 1
    return count


def parent(name: bytes) -> bytes:
    """The name without its first label; the root is its own parent."""
    return name[1 + name[0] :] if name[0] else name


def ancestors(name: bytes) -> Iterable[bytes]:
    """The name itself, its parent, … down to the root."""
    at = 0
    while True:
        yield name[at:] if at else name
        length = name[at]
        if not length:
            return
        at += 1 + length


def above(zones: Iterable[Name]) -> set[Name]:
    """All names that at least one of ``zones`` is strictly below."""
    found: set[Name] = set()
    for zone in zones:
        while zone != ROOT:
            zone = parent(zone)
            if zone in found:
                break
            found.add(zone)
    return found


def is_under(name: Name, zone: Name) -> bool:
    """Whether ``name`` is ``zone`` or below it.  Both folded."""
    if zone == ROOT:
        return True
    if not name.endswith(zone):
        return False
    # A label may hold octets that look like the zone: only a label boundary counts.
    start = len(name) - len(zone)
    at = 0
    while at < start:
        at += 1 + name[at]
    return at == start


def longest_zone(name: Name, zones: Iterable[Name]) -> Name | None:
    """The longest of ``zones`` that ``name`` is under, or None."""
    best: Name | None = None
    for zone in zones:
        if (best is None or len(zone) > len(best)) and is_under(name, zone):
            best = zone
    return best


def reverse(address: bytes) -> Name:
    """Packed IPv4 (4 octets) or IPv6 (16) address → its in-addr.arpa or ip6.arpa name."""
    if len(address) == 4:
        return from_labels((b"%d" % octet for octet in reversed(address)), IN_ADDR_ARPA)
    return from_labels((b"%x" % half for octet in reversed(address) for half in (octet & 15, octet >> 4)), IP6_ARPA)


def reverse_address(name: Name) -> bytes | None:
    """The packed address of a full reverse name; None for any other name, also for half a reverse name."""
    if name.endswith(IN_ADDR_ARPA):
        octets = labels(name)[:-2]
        if len(octets) != 4 or not all(o.isdigit() and len(o) <= 3 and (o == b"0" or o[0] != 48) for o in octets):
            return None
        values = [int(octet) for octet in reversed(octets)]
        return bytes(values) if max(values) < 256 else None
    if name.endswith(IP6_ARPA) and len(name) == 64 + len(IP6_ARPA):
        try:
            digits = b"".join(labels(name)[31::-1])
            # fromhex would skip white space.
            return bytes.fromhex(digits.decode("ascii")) if len(digits) == 32 and digits.isalnum() else None
        except ValueError:
            return None
    return None


def pack_address(text: str) -> bytes:
    """IPv4 or IPv6 address text → 4 or 16 octets; raises BadName.  No short forms, no zones, no leading zeros."""
    try:
        if ":" in text:
            return ipaddress.IPv6Address(text).packed if "%" not in text else _no_address(text)
        address = bytes(map(int, text.split(".")))
    except ValueError:
        return _no_address(text)
    # int() takes signs, blanks and leading zeros: only what reads back the same is an address.
    return address if len(address) == 4 and "%d.%d.%d.%d" % tuple(address) == text else _no_address(text)


def _no_address(text: str) -> bytes:
    raise BadName(f"{text!r} is not an IP address")


def address_text(address: bytes) -> str:
    """4 or 16 octets → canonical address text (RFC 5952)."""
    if len(address) == 4:
        return "%d.%d.%d.%d" % tuple(address)
    return str(ipaddress.IPv6Address(address))
