"""Replies read as plainly as can be: the rcode, or what the answer section says; shares no code with kdns."""

from __future__ import annotations

import ipaddress

RCODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
A, CNAME, PTR, AAAA, SRV, OPT = 1, 5, 12, 28, 33, 41


def said(reply: bytes) -> frozenset[str]:
    """The records of the type asked for: addresses, targets, ``PRIORITY PORT TARGET``; CNAMEs only if asked for.

    A name that does not exist, or a failure, is the name of its rcode; ``EDE n`` beside it where there is one.  An
    answer that repeats a record or cannot be read is ``a record twice`` or ``garbage``.
    """
    try:
        return _said(reply)
    except (IndexError, ValueError):
        return frozenset({"garbage"})


def _said(reply: bytes) -> frozenset[str]:
    rcode = reply[3] & 15
    counts = [int.from_bytes(reply[at : at + 2], "big") for at in (4, 6, 8, 10)]
    _, at = _name(reply, 12)
    asked = int.from_bytes(reply[at : at + 2], "big")
    at += 4
    found: list[str] = []
    extended: set[str] = set()
    for number in range(sum(counts[1:])):
        _, at = _name(reply, at)
        type = int.from_bytes(reply[at : at + 2], "big")
        length = int.from_bytes(reply[at + 8 : at + 10], "big")
        at += 10
        if number < counts[1] and type == asked:
            found.append(_data(reply, at, type, length))
        elif type == OPT:
            extended = _extended(reply[at : at + length])
        at += length
    if at != len(reply):
        return frozenset({"garbage"})
    if rcode:
        return frozenset({RCODES.get(rcode, f"rcode {rcode}"), *extended})
    return frozenset({*found, *extended}) if len(set(found)) == len(found) else frozenset({"a record twice"})


def _data(reply: bytes, at: int, type: int, length: int) -> str:
    if type in (A, AAAA):
        return str(ipaddress.ip_address(reply[at : at + length]))
    if type in (CNAME, PTR):
        return _name(reply, at)[0]
    if type == SRV:
        priority, port = (int.from_bytes(reply[at + part : at + part + 2], "big") for part in (0, 4))
        return f"{priority} {port} {_name(reply, at + 6)[0]}"
    return reply[at : at + length].hex()


def _extended(options: bytes) -> set[str]:
    found, at = set(), 0
    while at < len(options):
        code, length = (int.from_bytes(options[part : part + 2], "big") for part in (at, at + 2))
        if code == 15:
            found.add(f"EDE {int.from_bytes(options[at + 4 : at + 6], 'big')}")
        at += 4 + length
    return found


def _name(reply: bytes, at: int) -> tuple[str, int]:
    """A name in lower case, and where it ends."""
    labels: list[str] = []
    end = hops = 0
    while reply[at]:
        if reply[at] >= 0xC0:
            end = end or at + 2
            at = (reply[at] & 0x3F) << 8 | reply[at + 1]
            hops += 1
            if hops > 127:
                raise ValueError("a name without end")
            continue
        labels.append(reply[at + 1 : at + 1 + reply[at]].decode("latin-1").lower())
        at += 1 + reply[at]
    return ".".join(labels) + ".", end or at + 1
