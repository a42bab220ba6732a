"""The addresses of this machine, asked of the kernel (rtnetlink(7))."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

_RTM_GETADDR: Final = 22
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_MESSAGE: Final = struct.Struct("=IHHII")
_IFADDR: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")


def addresses() -> Iterator[tuple[int, bytes]]:
    """(interface index, packed address) of all addresses of this machine.  Raises OSError, off Linux always."""
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError("the addresses of interfaces can be had on Linux only")
    request = _MESSAGE.pack(_MESSAGE.size + _IFADDR.size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0) + bytes(_IFADDR.size)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.settimeout(1.0)
        kernel.sendto(request, (0, 0))
        while True:
            data = kernel.recv(65536)
            for kind, body in _messages(data):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel does not tell addresses")
                index = _IFADDR.unpack_from(body)[4]
                attributes = dict(_attributes(body[_IFADDR.size :]))
                address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
                if address is not None and len(address) in (4, 16):
                    yield index, address


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _MESSAGE.size <= len(data):
        length, kind, *_ = _MESSAGE.unpack_from(data, at)
        yield kind, data[at + _MESSAGE.size : at + length]
        at += max(length + 3 & ~3, _MESSAGE.size)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, _ATTRIBUTE.size)
