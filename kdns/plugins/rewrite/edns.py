"""Rules about the EDNS options of the query: ``edns0 (local | nsid | subnet) (set | append | replace | unset) …``."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from kdns import name
from kdns.message import OPTION_COOKIE, OPTION_ECS, OPTION_NSID, OPTION_PADDING, Edns, Query, Reply
from kdns.plugins.rewrite.rule import Applied, Revert
from kdns.values import BadValue

Option: TypeAlias = tuple[int, bytes]

_ACTIONS: Final = ("append", "replace", "set", "unset")
_EACH_HIS_OWN: Final = (OPTION_COOKIE, OPTION_PADDING)
"""Options that differ between two askers of what is one question otherwise (see `kdns.questions`)."""
_NEW: Final = Edns(4096, False)
"""What a query without EDNS gets."""


class EdnsRule(msgspec.Struct, frozen=True):
    """One rule about one option."""

    action: str
    code: int
    data: Callable[[Query], bytes]
    """The option's data; empty text of a variable means that the rule is not meant."""
    personal: bool = False
    """The data depend on who asks."""
    needs_data: bool = False
    """Empty data mean that there is nothing to say."""
    once: bool = False
    """``append`` adds no second option of this code."""
    shown: bool = False
    """The client is told the option, unless the rule reverts."""
    revert: bool = False

    def apply(self, query: Query, text: str) -> Applied | None:
        """Change the option, and what the client is told about it."""
        edns = query.edns or _NEW
        before = [option for option in edns.options if option[0] == self.code]
        after = self._changed(query, before)
        if after is None:
            return None
        others = [option for option in edns.options if option[0] != self.code]
        changed = query.replace(edns=msgspec.structs.replace(edns, options=(*others, *after)))
        return changed, ((self._telling(before if self.revert else after),) if self.shown else ())

    def _changed(self, query: Query, options: list[Option]) -> list[Option] | None:
        """What becomes of the options of this code; None when the rule is not meant."""
        if self.action == "unset":
            return []
        data = self.data(query)
        if not data and self.needs_data:
            return None
        if options and self.action != "append":
            return [(self.code, data), *options[1:]]
        if self.action == "replace" or (options and self.once):
            return None
        return [*options, (self.code, data)]

    def _telling(self, options: list[Option]) -> Revert:
        """Show the client these options, unless a later rule shows some of this code."""

        async def tell(reply: Reply) -> Reply:
            if any(code == self.code for code, _ in reply.options):
                return reply
            return reply.replace(options=(*reply.options, *options))

        return tell


def edns_rule(words: Sequence[str]) -> EdnsRule:
    """Read the words behind ``edns0``; raises BadValue."""
    if len(words) < 2:
        raise BadValue("too few arguments for an EDNS0 rule")
    kind, action = words[0].lower(), words[1].lower()
    if action not in _ACTIONS:
        raise BadValue(f'invalid action: "{action}"')
    if kind not in ("local", "nsid", "subnet"):
        raise BadValue(f'invalid rule type "{kind}"')
    revert = action != "unset" and words[-1] == "revert"
    more = words[2 : -1 if revert else None]
    if kind == "nsid":
        if more:
            raise BadValue("EDNS0 NSID rules can accept no more than one arg")
        return EdnsRule(action, OPTION_NSID, _nothing, shown=True, revert=revert)
    if action == "unset":
        return _unset(kind, more)
    if len(more) != 2:
        raise BadValue(f"EDNS0 {kind} rules require three or four args")
    return _subnet(action, more, revert) if kind == "subnet" else _local(action, more, revert)


def _unset(kind: str, words: Sequence[str]) -> EdnsRule:
    if kind == "subnet":
        if words:
            raise BadValue("subnet unset action requires exactly one argument")
        return EdnsRule("unset", OPTION_ECS, _nothing)
    if len(words) != 1:
        raise BadValue("local unset action requires exactly two arguments")
    return EdnsRule("unset", _unsigned(words[0], 65535), _nothing)


def _nothing(query: Query) -> bytes:
    return b""


def _unsigned(text: str, most: int) -> int:
    """A number as Go's ParseUint reads it with base 0: ``65001``, ``0xfde9``."""
    try:
        value = int(text, 0) if len(text) <= 20 and text[:1] not in ("+", "-") else -1
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise BadValue(f"'{text}' is not a number up to {most}")
    return value


# --- edns0 local -----------------------------------------------------------------------------------------------------

_port = struct.Struct("!H").pack


def _server_ip(query: Query) -> bytes:
    """Our address, or nothing where we listen on all of them and do not know which was asked."""
    address = name.pack_address(query.listener.local[0])
    return address if any(address) else b""


_VARIABLES: Final[dict[str, tuple[Callable[[Query], bytes], bool]]] = {
    "{qname}": (lambda query: name.to_text(query.spelling).encode(), True),
    "{qtype}": (lambda query: _port(query.type), False),
    "{client_ip}": (lambda query: name.pack_address(query.peer[0]), True),
    "{client_port}": (lambda query: _port(query.peer[1]), True),
    "{protocol}": (lambda query: query.listener.proto.encode(), False),
    "{server_ip}": (_server_ip, True),
    "{server_port}": (lambda query: _port(query.listener.local[1]), True),
}
"""What stands in the option, and whether it depends on who asks, how it is spelled, or which address is asked."""


def _local(action: str, words: Sequence[str], revert: bool) -> EdnsRule:
    code, text = _unsigned(words[0], 65535), words[1]
    if text.startswith("{") and text.endswith("}"):
        data, personal = _VARIABLES.get(text) or (_label(text), True)
        return EdnsRule(action, code, data, personal, needs_data=True, once=True, shown=True, revert=revert)
    try:
        fixed = bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()
    except ValueError:
        raise BadValue(f"'{text}' is not hexadecimal") from None
    return EdnsRule(action, code, lambda query: fixed, code in _EACH_HIS_OWN, shown=True, revert=revert)


def _label(variable: str) -> Callable[[Query], bytes]:
    label = variable[1:-1]
    namespace, _, rest = label.partition("/")
    if not namespace or not rest:
        raise BadValue(f'unsupported variable name "{variable}"')

    def value(query: Query) -> bytes:
        read = query.metadata.get(label) if query.metadata else None
        return read().encode() if read is not None else b""

    return value


# --- edns0 subnet ----------------------------------------------------------------------------------------------------


def _subnet(action: str, words: Sequence[str], revert: bool) -> EdnsRule:
    bits4, bits6 = _unsigned(words[0], 65535), _unsigned(words[1], 65535)
    if bits4 > 32:
        raise BadValue(f"invalid IPv4 bit mask length {bits4}")
    if bits6 > 128:
        raise BadValue(f"invalid IPv6 bit mask length {bits6}")

    def data(query: Query) -> bytes:
        """RFC 7871 section 6: family, bits, scope 0, and as much of the client's address as the bits need."""
        address = name.pack_address(query.peer[0])
        family, bits = (1, bits4) if len(address) == 4 else (2, bits6)
        unused = len(address) * 8 - bits
        masked = (int.from_bytes(address, "big") >> unused << unused).to_bytes(len(address), "big")
        return struct.pack("!HBB", family, bits, 0) + masked[: (bits + 7) // 8]

    return EdnsRule(action, OPTION_ECS, data, personal=True, once=True, revert=revert)
