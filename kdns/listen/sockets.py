"""Opening what is listened on: both address families, or a clear word on why not."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Final

import msgspec

from kdns.errors import KdnsError
from kdns.listen import stream, udp
from kdns.values import listen_address

_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - CoreDNS listens on all addresses unless told otherwise

_ATTEMPTS: Final = 20
"""For port 0: what the kernel gives for TCP may be in use for UDP."""


class ListenError(KdnsError):
    """An address that cannot be listened on; the message names it."""


class Sockets(msgspec.Struct, frozen=True):
    """The open sockets of one DNS endpoint, IPv4 and IPv6."""

    datagram: list[socket.socket]
    stream: list[socket.socket]


def open_dns(label: str, scheme: str, host: str, port: int, opened: contextlib.ExitStack, count: int = 0) -> Sockets:
    """Open the sockets for DNS on ``host`` and ``port``; ``label`` names them in errors, ``opened`` can close them.

    Scheme ``tls`` has no UDP; otherwise there are ``count`` UDP sockets for each address, or one that is nobody else's
    when it is 0.  Without a host both address families are served, or the one that this machine has.
    Port 0 means any, but the same one for all sockets.  Raises ListenError.
    """
    attempts = 1 if port else _ATTEMPTS
    while True:
        attempts -= 1
        with contextlib.ExitStack() as trial:
            try:
                sockets = _open_dns(label, scheme, host, port, trial, count)
            except ListenError:
                if not attempts:
                    raise
                continue
            opened.push(trial.pop_all())
            return sockets


def _open_dns(label: str, scheme: str, host: str, port: int, opened: contextlib.ExitStack, count: int) -> Sockets:
    sockets = Sockets([], [])
    for address in (host,) if host else _WILDCARDS:
        try:
            # TCP first: it is nobody else's, even where UDP sockets share an address.
            sockets.stream.append(_closing(stream.open_socket(address, port), opened))
            port = port or sockets.stream[0].getsockname()[1]
            if scheme == "dns":
                sockets.datagram.extend(_open_datagram(address, port, opened, count))
        except OSError as error:
            if not host and error.errno in _NO_FAMILY:
                continue
            raise ListenError(f"cannot listen on {label}: {_reason(address, port, error)}") from error
    if not sockets.stream:
        raise ListenError(f"cannot listen on {label}: this machine has no address family for it")
    return sockets


def open_datagram_again(
    label: str, old: list[socket.socket], opened: contextlib.ExitStack, count: int
) -> list[socket.socket]:
    """Other UDP sockets for the addresses of ``old`` ones, which stay open; ``count`` as in `open_dns`.

    Raises ListenError.  Whoever closes one group then calls `udp.share` for what is left, if that is one socket.
    """
    found: list[socket.socket] = []
    for sock in old:
        if not udp.is_shared(sock):
            udp.share(sock, True)
            opened.callback(udp.share, sock, False)
    for host, port in dict.fromkeys(sock.getsockname()[:2] for sock in old):
        try:
            found += _open_datagram(host, port, opened, count or 1)
        except OSError as error:
            raise ListenError(f"cannot listen on {label}: {_reason(host, port, error)}") from error
    return found


def _open_datagram(host: str, port: int, opened: contextlib.ExitStack, count: int) -> list[socket.socket]:
    return [_closing(udp.open_socket(host, port, count > 0), opened) for _ in range(count or 1)]


def open_http(address: str, opened: contextlib.ExitStack) -> list[socket.socket]:
    """Open the sockets for HTTP on ``host:port``; an empty host means every address.  Raises ListenError."""
    host, port = listen_address(address)
    hosts: tuple[str, ...] = _WILDCARDS
    if host:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ListenError(f"cannot listen on http://{address}: {error.strerror}") from error
        # As Go does it: a name stands for one address, an IPv4 one if it has any.
        hosts = (str(min(found, key=lambda info: info[0] != socket.AF_INET)[4][0]),)
    sockets: list[socket.socket] = []
    for host in hosts:
        try:
            sockets.append(_closing(stream.open_socket(host, port), opened))
        except OSError as error:
            if len(hosts) > 1 and error.errno in _NO_FAMILY:
                continue
            raise ListenError(f"cannot listen on http://{address}: {_reason(host, port, error)}") from error
    return sockets


_NO_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def _reason(host: str, port: int, error: OSError) -> str:
    return f"{host} port {port}: {error.strerror or error}"


def _closing(sock: socket.socket, opened: contextlib.ExitStack) -> socket.socket:
    opened.callback(sock.close)
    return sock
