from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from kdns.corefile import CorefileError
from kdns.plugins import bind
from kdns.plugins.bind import Bind
from tests.plugintest import new_site, refused, set_up, uses


def bound(text: str) -> tuple[str, ...]:
    site = new_site()
    assert not set_up(Bind, text, site).handles
    return site.bind


def test_addresses_and_interfaces() -> None:
    assert bound("bind 127.0.0.1 ::1") == ("127.0.0.1", "::1")
    assert bound("bind 127.0.0.2\nbind 127.0.0.3") == ("127.0.0.2", "127.0.0.3")
    assert bound("bind 0:0:0:0:0:0:0:1") == ("::1",)
    assert bound("bind fe80::1%lo") == ("fe80::1%lo",)
    assert "127.0.0.1" in bound("bind lo")
    assert "127.0.0.1" not in bound("bind lo 127.0.0.2 {\nexcept 127.0.0.1\n}")
    assert bound("bind 127.0.0.2 lo {\nexcept lo\n}") == ("127.0.0.2",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bind", "at least one address or interface name is expected"),
        ("bind nosuch0", 'not a valid IP address or interface name: "nosuch0"'),
        ("bind 1.2.3", 'not a valid IP address or interface name: "1.2.3"'),
        ("bind 127.0.0.1 {\nexcept\n}", "at least one address or interface must be given to except subdirective"),
        ("bind 127.0.0.1 {\nx\n}", 'invalid option "x"'),
        ("bind 127.0.0.1 {\nexcept 127.0.0.1\n}", "no address is left to listen on"),
    ],
)
def test_what_is_wrong(text: str, message: str) -> None:
    assert refused(Bind, text) == message


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def address(index: int, *attributes: tuple[int, bytes]) -> bytes:
    body = struct.pack("=BBBBI", 2, 24, 0, 0, index)
    for kind, data in attributes:
        body += struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
    return message(20, body)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A kernel that answers with these packets."""

    def answers(*packets: bytes) -> None:
        left = list(packets)

        class Netlink:
            def __init__(self, *args: object) -> None: ...
            def __enter__(self) -> Netlink:
                return self

            def __exit__(self, *args: object) -> None: ...
            def settimeout(self, seconds: float) -> None: ...
            def sendto(self, data: bytes, to: object) -> None: ...
            def recv(self, size: int) -> bytes:
                return left.pop(0)

        monkeypatch.setattr(socket, "socket", Netlink)

    return answers


def test_what_the_kernel_says(kernel: Callable[..., None]) -> None:
    lo = socket.if_nametoindex("lo")
    link_local = bytes.fromhex("fe80000000000000000000000000000a")
    kernel(
        # A point-to-point interface: the local address counts, not the peer's.
        address(lo, (1, bytes([192, 0, 2, 9])), (2, bytes([192, 0, 2, 1])), (3, b"lo\0")),
        address(lo + 1000, (1, bytes([192, 0, 2, 2]))) + address(lo, (1, link_local)) + address(lo, (3, b"x")),
        message(3, bytes(4)),
    )
    assert bind.interface_addresses(lo) == ["192.0.2.1", "fe80::a%lo"]


def test_a_kernel_that_does_not_say(kernel: Callable[..., None]) -> None:
    kernel(message(2, struct.pack("=i", -1)))
    with pytest.raises(CorefileError, match='failed to get the IP addresses of the interface: "lo"'):
        Bind.setup(uses("bind lo"), new_site())


def test_without_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    with pytest.raises(OSError, match="on Linux only"):
        bind.interface_addresses(1)
