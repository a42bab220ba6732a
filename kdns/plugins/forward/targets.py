"""Whom to ask: the TO words of a ``forward`` line → addresses.

A word is an address, a file like ``/etc/resolv.conf``, or a host name; see `read`.  Host names are looked up once, when
the configuration starts (`look_up`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from kdns import limits, name
from kdns.corefile import CorefileError, Directive
from kdns.log import Logger
from kdns.message import AAAA, A
from kdns.name import address_text
from kdns.upstream import Settings, UpstreamError, Upstreams
from kdns.values import BadValue, host_port, split_host_port, strip_scheme

_PORTS: Final = {"dns": 53, "tls": 853}
_LOOK_UP: Final = 5.0


class Target(msgspec.Struct, frozen=True):
    """One server."""

    host: str
    """An address, for IPv6 with a zone if need be; or a host name that is still to be looked up."""
    port: int
    tls: bool = False
    server_name: str = ""
    """Whom its certificate must name (``tls://IP%NAME``)."""
    is_name: bool = False


def read(use: Directive, words: Sequence[str], log: Logger) -> tuple[Target, ...]:
    """The servers that the words name, each address and port once.

    ``IP``, ``IP:port``, ``[v6]:port``, with ``dns://`` or ``tls://IP[%servername]`` before it; a file whose
    ``nameserver`` lines count; a host name with or without scheme and port.  Raises CorefileError.
    """
    targets = _distinct(use, [target for word in words for target in _read_word(use, word, log)])
    if not targets:
        raise use.error("no valid upstream addresses found")
    return targets


def _distinct(use: Directive, targets: Sequence[Target]) -> tuple[Target, ...]:
    """Each address and port once, and not too many."""
    found: dict[tuple[str, int], Target] = {}
    for target in targets:
        found.setdefault((target.host, target.port), target)
    if len(found) > limits.UPSTREAM_ADDRESSES:
        raise use.error(f"more than {limits.UPSTREAM_ADDRESSES} upstream addresses: {len(found)}")
    return tuple(found.values())


def _read_word(use: Directive, word: str, log: Logger) -> list[Target]:
    scheme, rest = strip_scheme(word)
    if scheme == "https":
        raise use.error(f"'{word}': kdns does not have DNS over HTTPS upstreams yet; use tls://")
    if scheme not in _PORTS:
        raise use.error(f"'{scheme}' is not supported as a destination protocol in forward: {word}")
    if not rest:
        raise use.error(f'invalid address: "{word}"')
    host, server_name = _split_server_name(rest) if scheme == "tls" else (rest, "")
    tls = scheme == "tls"
    try:
        address, port = host_port(host, _PORTS[scheme])
    except BadValue as error:
        if "invalid port" in str(error):
            raise use.error(f"{word}: {error}") from None
    else:
        return [Target(address, port, tls, server_name)]
    servers = _read_file(use, rest, log)
    if servers is not None:
        return servers
    return [_host_name(use, host, _PORTS[scheme], word, tls, server_name)]


def _split_server_name(text: str) -> tuple[str, str]:
    """``1.1.1.1%name:853``, ``[2606::1%name]:853`` → the address with its port, and the name."""
    address, percent, after = text.rpartition("%")
    if not percent:
        return text, ""
    server_name, colon, port = after.rpartition(":")
    if not colon:
        server_name, port = after, ""
    if address.startswith("["):
        address += "]"
    return address + colon + port, server_name.removesuffix("]")


def _read_file(use: Directive, path: str, log: Logger) -> list[Target] | None:
    """The ``nameserver`` lines of a file like resolv.conf; None when there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(limits.COREFILE_SIZE).splitlines()
    except OSError as error:
        if "/" not in path:
            return None
        raise use.error(f'failed to open file "{path}": {(error.strerror or str(error)).lower()}') from None
    servers: list[Target] = []
    for line in lines:
        fields = line.split()
        if len(fields) < 2 or fields[0] != "nameserver":
            continue
        try:
            servers.append(Target(*host_port(fields[1], _PORTS["dns"])))
        except BadValue:
            log.warning(f"{path}: nameserver '{fields[1]}' is not an IP address")
    return servers


def _host_name(use: Directive, text: str, port: int, word: str, tls: bool, server_name: str) -> Target:
    host = text
    try:
        host, digits = split_host_port(text)
        port = use.integer(digits, 1, 65535)
    except BadValue:
        pass
    try:
        if not host or name.from_text(host) == name.ROOT:
            raise name.BadName(host)
    except name.BadName:
        raise use.error(f'not an IP address, file, or valid domain: "{word}"') from None
    return Target(host, port, tls, server_name, True)


# --- host names ------------------------------------------------------------------------------------------------------


async def look_up(
    use: Directive, targets: Sequence[Target], resolvers: Sequence[tuple[str, int]], home: Upstreams
) -> tuple[Target, ...]:
    """The targets with each host name replaced by all its addresses, as the ``resolvers`` know them.

    No resolvers: as this machine does.  Raises CorefileError for a name without addresses.
    """
    found: list[Target] = []
    for target in targets:
        hosts = [target.host]
        if target.is_name:
            try:
                hosts = await (_ask(target.host, resolvers, home) if resolvers else _ask_system(target.host))
            except (OSError, UpstreamError, TimeoutError) as error:
                reason = str(error) or "i/o timeout"
                raise CorefileError(
                    use.file, use.line, f'failed to resolve "{target.host}": {reason}', use.name
                ) from None
        found += (Target(host, target.port, target.tls, target.server_name) for host in hosts)
    return _distinct(use, found)


async def _ask_system(host: str) -> list[str]:
    async with asyncio.timeout(_LOOK_UP):
        infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


async def _ask(host: str, resolvers: Sequence[tuple[str, int]], home: Upstreams) -> list[str]:
    wire = name.from_text(host)
    error = UpstreamError(f'no addresses found for "{host}"')
    for address, port in resolvers:
        server = home.take(Settings(address, port, max_fails=0))
        addresses: list[str] = []
        try:
            for type in (A, AAAA):
                # An address of one family will do, so a resolver that fails for the other one has not failed.
                with contextlib.suppress(UpstreamError) if addresses else contextlib.nullcontext():
                    message = await server.exchange(wire, type)
                    addresses += (address_text(record.rdata) for record in message.answer if record.type == type)
        except UpstreamError as failed:
            error = failed
        finally:
            home.release(server)
        if addresses:
            return addresses
    raise error


def is_address(text: str) -> bool:
    """Whether the text is an IP address without zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text
