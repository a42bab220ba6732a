"""The addresses of this machine."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from kdns import interfaces


def test_the_kernel_tells_its_addresses() -> None:
    found = dict(interfaces.addresses())
    indexes = {index for index, _ in socket.if_nameindex()}
    assert set(found) <= indexes
    assert bytes([127, 0, 0, 1]) in [address for _, address in interfaces.addresses()]
    assert all(len(address) in (4, 16) for _, address in interfaces.addresses())


def test_off_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    with pytest.raises(OSError, match="on Linux only"):
        list(interfaces.addresses())


class Kernel:
    """A netlink socket that answers with these octets."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, seconds: float) -> None:
        pass

    def sendto(self, data: bytes, address: object) -> None:
        pass

    def recv(self, size: int) -> bytes:
        return self._answer


def answered(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> list[tuple[int, bytes]]:
    def make(*_: Any) -> Kernel:
        return Kernel(answer)

    monkeypatch.setattr(socket, "socket", make)
    return list(interfaces.addresses())


HEAD, ADDRESS = interfaces._MESSAGE, interfaces._IFADDR
DONE = HEAD.pack(HEAD.size, 3, 0, 1, 0)


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="does not tell"):
        answered(monkeypatch, HEAD.pack(HEAD.size, 2, 0, 1, 0))


def test_odd_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ADDRESS.pack(2, 8, 0, 0, 7) + interfaces._ATTRIBUTE.pack(8, 1) + bytes([192, 0, 2, 1])
    short = ADDRESS.pack(2, 8, 0, 0, 7) + interfaces._ATTRIBUTE.pack(6, 1) + bytes([192, 0, 0, 0])
    none = ADDRESS.pack(2, 8, 0, 0, 7) + interfaces._ATTRIBUTE.pack(0, 9)
    answer = b"".join(HEAD.pack(HEAD.size + len(body), 20, 0, 1, 0) + body for body in (ours, short, none)) + DONE
    assert answered(monkeypatch, answer) == [(7, bytes([192, 0, 2, 1]))]
