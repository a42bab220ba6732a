"""The functions that expressions have to look at a query (CoreDNS: ``plugin/pkg/expression``)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from kdns import name, values
from kdns.expr.functions import ExpressionError
from kdns.message import Query, class_text, type_text

FUNCTIONS: Final[Mapping[str, int]] = {
    "bufsize": 0, "class": 0, "client_ip": 0, "do": 0, "id": 0, "incidr": 2, "metadata": 1, "name": 0, "opcode": 0,
    "port": 0, "proto": 0, "server_ip": 0, "server_port": 0, "size": 0, "type": 0,
}  # fmt: skip
"""Name → how many arguments."""

STEADY: Final = frozenset(("class", "incidr", "name", "type"))
"""Functions that tell two askers of the same question the same."""


def functions(query: Query) -> dict[str, Callable[..., Any]]:
    """`FUNCTIONS` for one query."""
    edns = query.edns
    return {
        "bufsize": lambda: 65535 if query.listener.proto == "tcp" else max(512, edns.size if edns is not None else 0),
        "class": lambda: class_text(query.klass),
        "client_ip": lambda: query.peer[0],
        "do": lambda: query.do,
        "id": lambda: query.id,
        "incidr": in_cidr,
        "metadata": lambda label: metadata(query, label),
        "name": lambda: name.to_text(query.name),
        "opcode": lambda: 0,
        "port": lambda: str(query.peer[1]),
        "proto": lambda: query.listener.proto,
        "server_ip": lambda: query.listener.local[0],
        "server_port": lambda: str(query.listener.local[1]),
        "size": lambda: query.size,
        "type": lambda: type_text(query.type),
    }


def metadata(query: Query, label: Any) -> str:
    """A label of the ``metadata`` plugin; empty when there is none."""
    value = (query.metadata or {}).get(label) if type(label) is str else None
    return "" if value is None else value()


@lru_cache(maxsize=256)
def _network(text: str) -> values.Network:
    return values.cidr(text)


def in_cidr(address: Any, network: Any) -> bool:
    """Whether an address, as text, is in a network; raises ExpressionError when they are not such."""
    if type(address) is not str or type(network) is not str:
        raise ExpressionError("incidr takes two strings")
    try:
        packed = ipaddress.ip_address(address)
    except ValueError:
        raise ExpressionError("first argument is not an IP address") from None
    try:
        # As Go, that knows an IPv4 address in IPv6 clothes.
        return (getattr(packed, "ipv4_mapped", None) or packed) in _network(network)
    except values.BadValue as error:
        raise ExpressionError(str(error)) from None
