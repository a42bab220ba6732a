"""Record data: text ↔ wire, from one table of fields, and where the names are in it.

The types that a cluster serves every day are described by `_FIELDS`; other types that dnspython knows go through it
(imported when the first one is met), and everything else is written as RFC 3597 has it: ``\\# LENGTH HEX``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kdns.errors import KdnsError
from kdns.message import (
    AAAA,
    CNAME,
    DNAME,
    HINFO,
    MX,
    NAPTR,
    NS,
    NSEC,
    PTR,
    RRSIG,
    SOA,
    SRV,
    TXT,
    TYPES,
    A,
    type_text,
)
from kdns.name import ROOT, BadName, Name, address_text, pack_address, spell
from kdns.name import to_text as name_text

CAA: Final = 257
SPF: Final = 99
SIG: Final = 24
NXT: Final = 30
_MD, _MF, _MB, _MG, _MR, _MINFO, _RP, _AFSDB, _RT, _PX, _KX = 3, 4, 7, 8, 9, 14, 17, 18, 21, 26, 36

COMPRESSED: Final[dict[int, tuple[int, int]]] = {
    NS: (0, 1), _MD: (0, 1), _MF: (0, 1), CNAME: (0, 1), SOA: (0, 2), _MB: (0, 1), _MG: (0, 1), _MR: (0, 1),
    PTR: (0, 1), _MINFO: (0, 2), MX: (2, 1),
}  # fmt: skip
"""Types whose names may be compressed when written (RFC 3597 section 4: those of RFC 1035), with the octets before the
names and how many names there are."""

NAMES: Final[dict[int, tuple[int, int]]] = COMPRESSED | {
    _RP: (0, 2), _AFSDB: (2, 1), _RT: (2, 1), SIG: (18, 1), _PX: (2, 2), NXT: (0, 1), SRV: (6, 1), _KX: (2, 1),
    DNAME: (0, 1), RRSIG: (18, 1), NSEC: (0, 1),
}  # fmt: skip
"""Types in which a name may be met compressed (RFC 3597 section 4 and older software); as `COMPRESSED`.
NAPTR too, whose name stands behind three strings: see `names_in`."""


class BadRdata(KdnsError):
    """The text is not data of its type; the message says why."""


def names_in(type: int, rdata: bytes, at: int = 0) -> tuple[int, int]:
    """Where in the data, which begin at ``at``, the first name stands, and how many names follow one another there.

    ``(at, 0)`` when data of this type hold no names.  Raises IndexError when a NAPTR ends before its name.
    """
    if type == NAPTR:
        at += 4
        for _ in range(3):
            at += 1 + rdata[at]
        return at, 1
    skip, count = NAMES.get(type, (0, 0))
    return at + skip, count


def target(type: int, rdata: bytes) -> bytes | None:
    """The name that NS, CNAME, PTR, DNAME, MX or SRV data point to, as spelled; None for other types."""
    if type in (CNAME, NS, PTR, DNAME):
        return rdata
    return rdata[2:] if type == MX else rdata[6:] if type == SRV else None


def srv(priority: int, weight: int, port: int, target: bytes) -> bytes:
    """SRV data (RFC 2782)."""
    return struct.pack("!HHH", priority, weight, port) + target


def mx(preference: int, exchange: bytes) -> bytes:
    """MX data."""
    return struct.pack("!H", preference) + exchange


def soa(mname: bytes, rname: bytes, serial: int, refresh: int, retry: int, expire: int, minimum: int) -> bytes:
    """SOA data; times in seconds."""
    return mname + rname + struct.pack("!5I", serial, refresh, retry, expire, minimum)


def from_text(type: int, text: str, origin: Name = ROOT) -> bytes:
    """Master-file text (RFC 1035 section 5) → wire.

    Relative names are completed with ``origin``; parentheses and comments may occur.  Any type may be written as
    RFC 3597 has it.  Raises BadRdata.
    """
    try:
        tokens = _Tokens(text, origin)
        if tokens.peek() == "\\#":
            rdata = _generic(tokens)
            if type in _FIELDS:
                _show(type, rdata)
        elif type in _FIELDS:
            rdata = b"".join([field.read(tokens) for field in _FIELDS[type]])
            tokens.end()
        elif type in TYPES:
            rdata = _dnspython_from_text(type, text, origin)
        else:
            raise BadRdata("a type without a name is written \\# LENGTH HEX")
    except (BadName, BadRdata, IndexError, UnicodeEncodeError, struct.error) as error:
        raise BadRdata(f"{type_text(type)} {text!r}: {error}") from None
    if len(rdata) > 0xFFFF:
        raise BadRdata(f"{type_text(type)}: over 65535 octets")
    return rdata


def to_text(type: int, rdata: bytes) -> str:
    """Wire → master-file text on one line; data that are not of their type come as ``\\# LENGTH HEX``."""
    if type in _FIELDS:
        try:
            return _show(type, rdata)
        except (BadRdata, IndexError, struct.error):
            return _hex(rdata)
    # dnspython remembers every type that it was ever asked for: it is asked for those that have a name.
    # It shows some empty data as no text at all.
    return (_dnspython_to_text(type, rdata) if type in TYPES else "") or _hex(rdata)


def _hex(rdata: bytes) -> str:
    return f"\\# {len(rdata)} {rdata.hex()}".rstrip()


def _show(type: int, rdata: bytes) -> str:
    """Raises BadRdata, IndexError or struct.error when the data are not of the type."""
    parts: list[str] = []
    at = 0
    for field in _FIELDS[type]:
        text, at = field.show(rdata, at)
        parts.append(text)
    if at != len(rdata):
        raise BadRdata("wrong length")
    return " ".join(parts)


# --- tokens ----------------------------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|;[^\n]*|[()\s]+|((?:[^\s"();\\]|\\.)+)|(.)', re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(?:(\d{3})|(\D))", re.DOTALL)


class _Tokens:
    """The words of a text, and the origin for its relative names."""

    def __init__(self, text: str, origin: Name) -> None:
        self.origin = origin
        self._left = list(self._split(text))[::-1]

    @staticmethod
    def _split(text: str) -> Iterator[str]:
        for match in _TOKEN.finditer(text):
            quoted, bare, odd = match.groups()
            if odd is not None:
                raise BadRdata(f"unexpected {odd!r} in {text!r}")
            if bare is not None or quoted is not None:
                yield quoted if bare is None else bare

    def peek(self) -> str | None:
        return self._left[-1] if self._left else None

    def next(self) -> str:
        if not self._left:
            raise BadRdata("a field is missing")
        return self._left.pop()

    def rest(self) -> list[str]:
        words, self._left = self._left[::-1], []
        return words

    def end(self) -> None:
        if self._left:
            raise BadRdata(f"unexpected {self._left[-1]!r} at the end")


def _octets(word: str) -> bytes:
    """The octets of a word with backslash escapes."""

    def plain(match: re.Match[bytes]) -> bytes:
        if match[2] is not None:
            return match[2]
        if int(match[1]) > 255:
            raise BadRdata(f"\\{int(match[1])} is not an octet")
        return bytes((int(match[1]),))

    octets = word.encode()
    if b"\\" not in octets:
        return octets
    if b"\\" in _ESCAPE.sub(b"", octets):
        raise BadRdata(f"bad escape in {word!r}")
    return _ESCAPE.sub(plain, octets)


def _generic(tokens: _Tokens) -> bytes:
    tokens.next()
    length = tokens.next()
    try:
        rdata = bytes.fromhex("".join(tokens.rest()))
    except ValueError:
        raise BadRdata("not hexadecimal") from None
    if not (length.isascii() and length.isdigit()) or int(length) != len(rdata):
        raise BadRdata(f"{length} octets announced, {len(rdata)} given")
    return rdata


# --- fields ----------------------------------------------------------------------------------------------------------


class _Field(NamedTuple):
    read: Callable[[_Tokens], bytes]
    show: Callable[[bytes, int], tuple[str, int]]


def _integer(code: str) -> _Field:
    form = struct.Struct("!" + code)

    def read(tokens: _Tokens) -> bytes:
        word = tokens.next()
        if not (word.isascii() and word.isdigit()):
            raise BadRdata(f"{word!r} is not a number")
        return form.pack(int(word))

    def show(rdata: bytes, at: int) -> tuple[str, int]:
        return str(form.unpack_from(rdata, at)[0]), at + form.size

    return _Field(read, show)


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PERIOD: Final = re.compile(r"(\d{1,10})([smhdw])")


def seconds(word: str) -> int:
    """``3600`` or with units as master files have them, ``1h30m`` → seconds.  Raises BadRdata."""
    if word.isascii() and word.isdigit() and len(word) <= 10:
        return int(word)
    parts = _PERIOD.findall(word.lower())
    if not parts or "".join(map("".join, parts)) != word.lower():
        raise BadRdata(f"{word!r} is not a time")
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


def _read_period(tokens: _Tokens) -> bytes:
    return struct.pack("!I", seconds(tokens.next()))


def _read_name(tokens: _Tokens) -> bytes:
    return spell(tokens.next(), tokens.origin)


def _show_name(rdata: bytes, at: int) -> tuple[str, int]:
    end = at
    while length := rdata[end]:
        if length > 63:
            raise BadRdata("not a name")
        end += 1 + length
    return name_text(rdata[at : end + 1]), end + 1


def _address(octets: int) -> _Field:
    def read(tokens: _Tokens) -> bytes:
        word = tokens.next()
        address = pack_address(word)
        if len(address) != octets:
            raise BadRdata(f"{word!r} is not an IPv{4 if octets == 4 else 6} address")
        return address

    def show(rdata: bytes, at: int) -> tuple[str, int]:
        if len(rdata) != octets:
            raise BadRdata("wrong length")
        return address_text(rdata), octets

    return _Field(read, show)


def _read_string(tokens: _Tokens) -> bytes:
    return _counted(_octets(tokens.next()))


def _counted(octets: bytes) -> bytes:
    if len(octets) > 255:
        raise BadRdata("a string is over 255 octets")
    return bytes((len(octets),)) + octets


def _quote(octets: bytes) -> str:
    out = ('"', *("\\" + chr(o) if o in b'"\\' else chr(o) if 32 <= o < 127 else f"\\{o:03d}" for o in octets), '"')
    return "".join(out)


def _show_string(rdata: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + rdata[at]
    if end > len(rdata):
        raise BadRdata("a string is cut off")
    return _quote(rdata[at + 1 : end]), end


def _read_strings(tokens: _Tokens) -> bytes:
    words = tokens.rest()
    if not words:
        raise BadRdata("a field is missing")
    return b"".join(_counted(piece) for word in words for piece in _pieces(_octets(word)))


def _pieces(text: bytes) -> list[bytes]:
    """A string of any length in strings of at most 255 octets, as CoreDNS cuts long ones (DKIM keys)."""
    return [text[at : at + 255] for at in range(0, len(text), 255)] or [b""]


def _show_strings(rdata: bytes, at: int) -> tuple[str, int]:
    parts: list[str] = []
    while at < len(rdata) or not parts:
        text, at = _show_string(rdata, at)
        parts.append(text)
    return " ".join(parts), at


def _read_tag(tokens: _Tokens) -> bytes:
    word = tokens.next()
    if not (word.isascii() and word.isalnum()):
        raise BadRdata(f"{word!r} is not a tag")
    return _counted(word.encode())


def _show_tag(rdata: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + rdata[at]
    tag = rdata[at + 1 : end]
    if end > len(rdata) or not tag.isalnum():
        raise BadRdata("not a tag")
    return tag.decode("ascii"), end


_U8, _U16, _U32 = _integer("B"), _integer("H"), _integer("I")
_PERIODS: Final = _Field(_read_period, _U32.show)
_NAME: Final = _Field(_read_name, _show_name)
_STRING: Final = _Field(_read_string, _show_string)
_STRINGS: Final = _Field(_read_strings, _show_strings)
_TAG: Final = _Field(_read_tag, _show_tag)
_VALUE: Final = _Field(lambda tokens: _octets(tokens.next()), lambda rdata, at: (_quote(rdata[at:]), len(rdata)))

_FIELDS: Final[dict[int, tuple[_Field, ...]]] = {
    A: (_address(4),),
    AAAA: (_address(16),),
    NS: (_NAME,),
    CNAME: (_NAME,),
    PTR: (_NAME,),
    DNAME: (_NAME,),
    MX: (_U16, _NAME),
    SOA: (_NAME, _NAME, _U32, _PERIODS, _PERIODS, _PERIODS, _PERIODS),
    SRV: (_U16, _U16, _U16, _NAME),
    TXT: (_STRINGS,),
    SPF: (_STRINGS,),
    HINFO: (_STRING, _STRING),
    CAA: (_U8, _TAG, _VALUE),
    _MINFO: (_NAME, _NAME),
} | dict.fromkeys((_MD, _MF, _MB, _MG, _MR), (_NAME,))


# --- other types, through dnspython ----------------------------------------------------------------------------------


def _dnspython_from_text(type: int, text: str, origin: Name) -> bytes:
    import dns.exception
    import dns.name
    import dns.rdata
    from dns.rdataclass import IN
    from dns.rdatatype import RdataType

    base, _ = dns.name.from_wire(origin, 0)
    try:
        rdata = dns.rdata.from_text(IN, RdataType.make(type), text, origin=base, relativize=False)
        return rdata.to_generic().data
    except (dns.exception.DNSException, ValueError, struct.error) as error:
        raise BadRdata(str(error)) from None


def _dnspython_to_text(type: int, rdata: bytes) -> str:
    import dns.exception
    import dns.rdata
    from dns.rdataclass import IN
    from dns.rdatatype import RdataType

    try:
        return dns.rdata.from_wire(IN, RdataType.make(type), rdata, 0, len(rdata)).to_text().rstrip()
    except (dns.exception.DNSException, ValueError):
        return _hex(rdata)
