"""How values are written in a Corefile: durations, zones, addresses, networks, regular expressions.

Every function takes one word and gives back the value, or raises BadValue with a text that says what is wrong with
the word.  The grammars are CoreDNS's, which are Go's: `time.ParseDuration`, `net.ParseCIDR`, `regexp` (RE2).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

import re2

from kdns import limits, name
from kdns.errors import KdnsError
from kdns.name import Name


class BadValue(KdnsError):
    """A word of a Corefile that is not of the grammar that is asked for; the message says why."""


Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Match(Protocol):
    """One match of a `Regexp`."""

    def group(self, *groups: int | str) -> str:
        """Text of a group, by number or name; 0 is all of it."""

    def groups(self, default: str | None = None) -> tuple[str | None, ...]:
        """Texts of all groups."""

    def groupdict(self, default: str | None = None) -> dict[str, str | None]:
        """Texts of the named groups."""

    def start(self, group: int = 0) -> int:
        """Where a group begins."""

    def end(self, group: int = 0) -> int:
        """Where a group ends."""


class Regexp(Protocol):
    """A compiled RE2 expression: linear time, whatever the text."""

    @property
    def pattern(self) -> str:
        """The expression as it was written."""

    @property
    def groups(self) -> int:
        """How many groups it has."""

    @property
    def groupindex(self) -> dict[str, int]:
        """Named groups."""

    def search(self, text: str) -> Match | None:
        """The first match anywhere in the text."""

    def fullmatch(self, text: str) -> Match | None:
        """The match of the whole text."""


# --- numbers and times -----------------------------------------------------------------------------------------------

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([^0-9.]*)")
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_LONGEST: Final = 2**63 / 1e9


def duration(text: str) -> float:
    """A Go duration (``300ms``, ``1h5m``, ``-1.5s``, ``0``) in seconds; a number without a unit is none."""
    unsigned = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if unsigned == "0":
        return 0.0
    total, at = 0.0, 0
    while term := _TERM.match(unsigned, at):
        number, unit = term.groups()
        if not unit:
            raise BadValue(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise BadValue(f'time: unknown unit "{unit}" in duration "{text}"')
        total += float(number) * _UNITS[unit]
        at = term.end()
    if not at or at < len(unsigned) or total >= _LONGEST:
        raise BadValue(f'time: invalid duration "{text}"')
    return -total if text[0] == "-" else total


def duration_text(seconds: float) -> str:
    """A duration as Go writes it: ``1h5m0s``, ``1.5s``, ``250ms``, ``0s``."""
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if 0 < nanoseconds < 10**9:
        unit, size = next((unit, size) for unit, size in _SMALL_UNITS if nanoseconds >= size)
        return f"{sign}{_fraction(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{head}{_fraction(rest, 10**9)}s"


_SMALL_UNITS: Final = (("ms", 10**6), ("µs", 10**3), ("ns", 1))


def _fraction(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    digits = str(unit + rest)[1:].rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def integer(text: str, low: int | None = None, high: int | None = None) -> int:
    """A decimal integer between the bounds, both inclusive; None = no bound on that side."""
    # 20 digits hold every 64-bit number, and keep int() linear.
    if not _INTEGER.fullmatch(text) or len(text) > 20:
        raise BadValue(f"'{text}' is not an integer")
    value = int(text)
    if (low is not None and value < low) or (high is not None and value > high):
        if high is None:
            raise BadValue(f"{value} is less than {low}")
        if low is None:
            raise BadValue(f"{value} is more than {high}")
        raise BadValue(f"{value} is not in range [{low}, {high}]")
    return value


# --- zones -----------------------------------------------------------------------------------------------------------


def expand_zone(text: str) -> tuple[Name, ...]:
    """A zone as plugins take it: a name or a CIDR; a scheme before it and a port behind it are ignored.

    A network off the octet (IPv4) or nibble (IPv6) boundary gives several reverse zones.  A trailing dot keeps a
    text like ``10.0.0.0/24.`` from being read as a network.
    """
    zones, _ = zone_and_port(strip_scheme(text)[1])
    return zones


def zones(texts: Sequence[str], default: tuple[Name, ...]) -> tuple[Name, ...]:
    """All zones of a list of words, in order, at most `limits.COREFILE_ZONES`; ``default`` when there are no words."""
    if not texts:
        return default
    out: list[Name] = []
    for text in texts:
        out += expand_zone(text)
        if len(out) > limits.COREFILE_ZONES:
            raise BadValue(f"over {limits.COREFILE_ZONES} zones")
    return tuple(out)


SCHEMES: Final = ("dns", "tls", "quic", "grpc", "https", "https3", "unix")


def strip_scheme(text: str) -> tuple[str, str]:
    """``tls://example.org`` → ("tls", "example.org"); without a known scheme the first is "dns"."""
    scheme, separator, rest = text.partition("://")
    return (scheme, rest) if separator and scheme in SCHEMES else ("dns", text)


def zone_and_port(text: str) -> tuple[tuple[Name, ...], int | None]:
    """``zone[:port]`` without a scheme → the zones and the port, None when there is none.

    The last colon parts the port if digits follow it, so that IPv6 networks need their mask (``2001:db8::/32``).
    """
    zone, colon, after = text.rpartition(":")
    if colon and not after:
        raise BadValue(f'expecting data after last colon: "{text}"')
    port = None
    if colon and _INTEGER.fullmatch(after):
        port, text = _port(after), zone
    if len(text) > name.MAX_NAME:
        raise BadValue(f"specified zone is too long: {len(text)} > 255")
    try:
        network = _network(text)
    except ValueError:
        return (_zone(text),), port
    if text[0] == ":" or (text[0] == "0" and ":" in text):
        raise BadValue(f"invalid CIDR {text}")
    return _reverse_zones(network), port


def _zone(text: str) -> Name:
    if not text:
        raise BadValue("zone is not a valid domain name: ")
    try:
        # "@" has no meaning here; the dot keeps it a label like any other.
        return name.from_text("@." if text == "@" else text)
    except name.BadName:
        raise BadValue(f"zone is not a valid domain name: {text}") from None


def _port(text: str) -> int:
    value = int(text) if _INTEGER.fullmatch(text) and len(text) <= 20 else -1
    if not 0 < value < 65536:
        raise BadValue(f"address {text}: invalid port")
    return value


def _reverse_zones(network: Network) -> tuple[Name, ...]:
    step = 8 if network.version == 4 else 4
    boundary = -(-network.prefixlen // step) * step
    subnets = [network] if boundary == network.prefixlen else network.subnets(new_prefix=boundary)
    out: list[Name] = []
    for subnet in subnets:
        zone = name.reverse(subnet.network_address.packed)
        for _ in range((network.max_prefixlen - boundary) // step):
            zone = name.parent(zone)
        out.append(zone)
    return tuple(out)


# --- addresses -------------------------------------------------------------------------------------------------------


def _network(text: str) -> Network:
    address, slash, bits = text.partition("/")
    # ipaddress also takes netmasks, bare addresses and zones, which Go does not.
    if not slash or not (bits.isascii() and bits.isdigit()) or len(bits) > 3 or "%" in address:
        raise ValueError(text)
    return ipaddress.ip_network(f"{address}/{int(bits)}", strict=False)


def cidr(text: str) -> Network:
    """``192.0.2.0/24``, ``2001:db8::/32``; bits below the mask are cleared, as Go does."""
    try:
        return _network(text)
    except ValueError:
        raise BadValue(f"invalid CIDR address: {text}") from None


def split_host_port(text: str) -> tuple[str, str]:
    """``host:port`` or ``[v6]:port`` → both texts; the host may be empty.  Go's ``net.SplitHostPort``."""
    host, colon, port = text.rpartition(":")
    if not colon or (host.startswith("[") and not host.endswith("]")):
        raise BadValue(f"address {text}: missing port in address")
    if host.startswith("["):
        host = host[1:-1]
    elif ":" in host:
        raise BadValue(f"address {text}: too many colons in address")
    if "[" in host or "]" in host:
        raise BadValue(f"address {text}: unexpected '[' or ']' in address")
    return host, port


def listen_address(text: str) -> tuple[str, int]:
    """``host:port`` to listen on (``:8080``, ``localhost:9153``, ``[::1]:8181``); an empty host means every address."""
    host, port = split_host_port(text)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536):
        raise BadValue(f"address {port}: invalid port")
    return host, int(port)


def host_port(text: str, default_port: int) -> tuple[str, int]:
    """``IP``, ``IP:port``, ``[v6]:port``, ``v6`` → (address text, port); an IPv6 zone (``%eth0``) stays in the text.

    Raises BadValue for anything that is not an address, names included.
    """
    try:
        host, port = split_host_port(text)
    except BadValue:
        host, port = text.strip("[]"), ""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        raise BadValue(f"must specify an IP address: `{host}'") from None
    return host, _port(port) if port else default_port


# --- regular expressions ---------------------------------------------------------------------------------------------


def regexp(text: str) -> Regexp:
    """Compile an RE2 expression; at most `limits.REGEXP` characters."""
    if len(text) > limits.REGEXP:
        raise BadValue(f"regular expression is over {limits.REGEXP} characters")
    try:
        compiled: Regexp = re2.compile(text, _re2_options())
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        if isinstance(reason, bytes):
            reason = reason.decode("utf-8", "replace")
        raise BadValue(f"error parsing regexp: {reason}: `{text}`") from None
    return compiled


@functools.cache
def _re2_options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    return options
