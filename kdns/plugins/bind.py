"""bind: listen on these addresses instead of on all.

``bind (ADDRESS | INTERFACE)… [{ except (ADDRESS | INTERFACE)… }]``

INTERFACE stands for all addresses that a network interface has when the Corefile is (re)loaded.  ``except`` leaves
some out.  Several lines add up.  All server blocks with the same zone and port must bind, or none.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from kdns import interfaces
from kdns.corefile import Directive
from kdns.name import BadName, address_text, pack_address
from kdns.plugin import Plugin, Site


class Bind(Plugin):
    """Sets `Site.bind`."""

    name = "bind"
    handles = False

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``bind (ADDRESS | INTERFACE)… [{ except … }]``."""
        found: list[str] = []
        for use in uses:
            if not use.args:
                raise use.error("at least one address or interface name is expected")
            left_out: list[str] = []
            for option in use.options():
                if option.name != "except":
                    raise option.error(f'invalid option "{option.name}"')
                if not option.args:
                    raise option.error("at least one address or interface must be given to except subdirective")
                left_out = _addresses(option)
            found += [address for address in _addresses(use) if address not in left_out]
        if not found:
            raise uses[-1].error("no address is left to listen on")
        site.bind += tuple(found)
        return cls()


def _addresses(use: Directive) -> list[str]:
    """The addresses that a directive's words stand for."""
    indexes = {interface: index for index, interface in socket.if_nameindex()}
    found: list[str] = []
    for word in use.args:
        if word in indexes:
            try:
                found += interface_addresses(indexes[word])
            except OSError:
                raise use.error(f'failed to get the IP addresses of the interface: "{word}"') from None
            continue
        address, percent, scope = word.partition("%")
        try:
            found.append(address_text(pack_address(address)) + percent + scope)
        except BadName:
            raise use.error(f'not a valid IP address or interface name: "{word}"') from None
    return found


def interface_addresses(index: int) -> list[str]:
    """All addresses of an interface, IPv4 first; link-local IPv6 ones with their zone.  Raises OSError."""
    found: list[str] = []
    for interface, address in interfaces.addresses():
        if interface == index:
            text = address_text(address)
            link_local = len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80
            found.append(f"{text}%{socket.if_indextoname(index)}" if link_local else text)
    return found
