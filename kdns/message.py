"""The values that travel through kdns: Query, Record, Reply, Lease; and the numbers that DNS gives to things.

All of them are frozen; a change means a new value.  They hold wire bytes from start to end: text is turned into wire
bytes once, when it is read, and back only for people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from kdns.denial import Denial
from kdns.name import Name

# --- numbers (IANA DNS parameters) -----------------------------------------------------------------------------------

A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
HINFO: Final = 13
MX: Final = 15
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
NAPTR: Final = 35
DNAME: Final = 39
OPT: Final = 41
DS: Final = 43
RRSIG: Final = 46
NSEC: Final = 47
DNSKEY: Final = 48
NSEC3: Final = 50
SVCB: Final = 64
HTTPS: Final = 65
TSIG: Final = 250
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255

TYPES: Final[dict[int, str]] = {
    1: "A", 2: "NS", 3: "MD", 4: "MF", 5: "CNAME", 6: "SOA", 7: "MB", 8: "MG", 9: "MR", 10: "NULL", 11: "WKS", 12: "PTR",
    13: "HINFO", 14: "MINFO", 15: "MX", 16: "TXT", 17: "RP", 18: "AFSDB", 19: "X25", 20: "ISDN", 21: "RT", 22: "NSAP",
    23: "NSAP-PTR", 24: "SIG", 25: "KEY", 26: "PX", 27: "GPOS", 28: "AAAA", 29: "LOC", 30: "NXT", 31: "EID", 32: "NIMLOC",
    33: "SRV", 34: "ATMA", 35: "NAPTR", 36: "KX", 37: "CERT", 38: "A6", 39: "DNAME", 40: "SINK", 41: "OPT", 42: "APL",
    43: "DS", 44: "SSHFP", 45: "IPSECKEY", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 49: "DHCID", 50: "NSEC3",
    51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA", 55: "HIP", 56: "NINFO", 57: "RKEY", 58: "TALINK", 59: "CDS",
    60: "CDNSKEY", 61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD", 64: "SVCB", 65: "HTTPS", 99: "SPF", 100: "UINFO",
    101: "UID", 102: "GID", 103: "UNSPEC", 104: "NID", 105: "L32", 106: "L64", 107: "LP", 108: "EUI48", 109: "EUI64",
    249: "TKEY", 250: "TSIG", 251: "IXFR", 252: "AXFR", 253: "MAILB", 254: "MAILA", 255: "ANY", 256: "URI", 257: "CAA",
    258: "AVC", 260: "AMTRELAY", 32768: "TA", 32769: "DLV",
}  # fmt: skip
_TYPE_NUMBERS: Final = {text: number for number, text in TYPES.items()}

IN: Final = 1
CH: Final = 3
CLASSES: Final[dict[int, str]] = {1: "IN", 2: "CS", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}
_CLASS_NUMBERS: Final = {text: number for number, text in CLASSES.items()}

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
YXDOMAIN: Final = 6
BADVERS: Final = 16
RCODES: Final[dict[int, str]] = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN", 7: "YXRRSET",
    8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 16: "BADVERS", 17: "BADKEY", 18: "BADTIME", 19: "BADMODE", 20: "BADNAME",
    21: "BADALG", 22: "BADTRUNC", 23: "BADCOOKIE",
}  # fmt: skip
_RCODE_NUMBERS: Final = {text: number for number, text in RCODES.items()} | {"BADSIG": 16}

QUERY: Final = 0

# Header flags, as bits of the 16-bit flags word.
QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
Z: Final = 0x0040
AD: Final = 0x0020
CD: Final = 0x0010

# EDNS options (RFC 6891 registry) that kdns knows by number.
OPTION_NSID: Final = 3
OPTION_ECS: Final = 8
OPTION_EXPIRE: Final = 9
OPTION_COOKIE: Final = 10
OPTION_KEEPALIVE: Final = 11
OPTION_PADDING: Final = 12
OPTION_EDE: Final = 15

# Extended DNS errors (RFC 8914).
EDE_OTHER: Final = 0
EDE_STALE_ANSWER: Final = 3
EDE_CACHED_ERROR: Final = 13
EDE_NOT_READY: Final = 14
EDE_STALE_NXDOMAIN: Final = 19
EDE_NO_REACHABLE_AUTHORITY: Final = 22
EDE_NETWORK_ERROR: Final = 23


def type_text(number: int) -> str:
    """Mnemonic of an RR type, or ``TYPE1234`` (RFC 3597)."""
    return TYPES.get(number) or f"TYPE{number}"


def type_number(text: str) -> int | None:
    """RR type of a mnemonic in any case or of ``TYPE1234``; None when it is neither."""
    return _number(text, _TYPE_NUMBERS, "TYPE")


def class_text(number: int) -> str:
    """Mnemonic of a class, or ``CLASS1234`` (RFC 3597)."""
    return CLASSES.get(number) or f"CLASS{number}"


def class_number(text: str) -> int | None:
    """Class of a mnemonic in any case or of ``CLASS1234``; None when it is neither."""
    return _number(text, _CLASS_NUMBERS, "CLASS")


def rcode_text(number: int) -> str:
    """Mnemonic of an rcode, or ``RCODE1234``."""
    return RCODES.get(number) or f"RCODE{number}"


def rcode_number(text: str) -> int | None:
    """Rcode of a mnemonic in any case; None when it is none."""
    return _RCODE_NUMBERS.get(text.upper())


def _number(text: str, table: dict[str, int], prefix: str) -> int | None:
    text = text.upper()
    number = table.get(text)
    digits = text.removeprefix(prefix)
    if number is None and digits != text and len(digits) <= 5 and digits.isascii() and digits.isdigit():
        number = int(digits)
    return number if number is not None and number < 65536 else None


# --- values ----------------------------------------------------------------------------------------------------------

Fact: TypeAlias = bytes
"""Something in the world that an answer stands on, as opaque bytes: ``b"svc/default/web"``, ``b"ns/dev"``, ``b"zone/…"``.
Whoever owns the data makes the facts up, puts them into leases, and drops them when the data change."""

Duty: TypeAlias = Callable[[int, int, int], None]
"""What is owed for replays out of the packet cache: called with (replays, query octets of each, reply octets of each).
The packet cache settles it lazily: before a scrape, and when it lets the entry go."""

Report: TypeAlias = Callable[[int, int, int, float], None]
"""What counts a reply that is sent: called with (times, query octets, reply octets, seconds it took)."""

FOREVER: Final = float("inf")


class Lease(msgspec.Struct, frozen=True, gc=False):
    """For how long, and on which facts, a reply may be repeated without asking the chain again."""

    until: float = 0.0
    """Monotonic seconds; 0 = ask the chain every time; FOREVER = until a fact is dropped."""
    facts: tuple[Fact, ...] = ()
    rotate: bool = False
    """The packet cache may rotate the addresses of the answer."""
    age: bool = False
    """TTLs must count down from the moment the reply was made, at whole seconds before ``until``."""
    duties: tuple[Duty, ...] = ()
    """What is owed for each replay; kept only as long as ``until`` is not 0."""
    denial: Denial | None = None
    """The reply is an NXDOMAIN, and the same is true for other names: see `kdns.denial`.  None: nothing is said of them.
    Who combines replies has no proof any more, so `shrink` and `meet` leave it out."""

    def shrink(self, until: float, facts: tuple[Fact, ...] = (), age: bool = False) -> Lease:
        """The meet of two leases: the earlier ``until``, the union of the facts; no denial."""
        more = tuple(fact for fact in facts if fact not in self.facts) if facts else ()
        return Lease(min(self.until, until), self.facts + more, self.rotate, self.age or age, self.duties)

    def meet(self, other: Lease) -> Lease:
        """The lease of a reply that is made out of two, as where a CNAME was chased: what both allow, what both owe."""
        met = self.shrink(other.until, other.facts, other.age)
        return msgspec.structs.replace(met, duties=self.duties + other.duties) if other.duties else met


NO_LEASE: Final = Lease()


class Record(msgspec.Struct, frozen=True, gc=False):
    """One resource record in wire format."""

    owner: bytes
    """Uncompressed wire name; letters may be in any case, compare folded."""
    type: int
    ttl: int
    """Seconds, 0 … 2**31 - 1."""
    rdata: bytes
    """Uncompressed, without the length."""
    klass: int = IN

    def with_ttl(self, ttl: int) -> Record:
        """The same record with another TTL."""
        return Record(self.owner, self.type, ttl, self.rdata, self.klass)

    def with_owner(self, owner: bytes) -> Record:
        """The same record at another name."""
        return Record(owner, self.type, self.ttl, self.rdata, self.klass)


class Listener(msgspec.Struct, frozen=True, gc=False):
    """What a query came in through: one per socket or connection, shared by its queries."""

    server: str = "dns://:53"
    """Metric label: scheme, address and port of the listening socket (``dns://:53``, ``tls://192.0.2.1:853``)."""
    proto: str = "udp"
    """``udp`` or ``tcp`` (also under TLS), as logs and metrics say it."""
    local: tuple[str, int] = ("", 53)
    """Our address and port."""
    family: str = "1"
    """Metric label: ``1`` IPv4, ``2`` IPv6."""


class Edns(msgspec.Struct, frozen=True, gc=False):
    """The OPT record of a query (RFC 6891); its version has been checked to be 0."""

    size: int
    """UDP payload size as the asker wrote it; below 512 counts as 512."""
    do: bool
    options: tuple[tuple[int, bytes], ...] = ()
    """(code, data) in the order of the packet."""


class Query(msgspec.Struct, frozen=True, gc=False):
    """One question and who asks it."""

    name: Name
    """Folded."""
    type: int
    klass: int
    spelling: bytes
    """The name as the asker wrote it, in wire format."""
    id: int
    flags: int
    """Header flags word of the query: RD, AD, CD may be set; the opcode is QUERY."""
    edns: Edns | None
    """None: the query had no OPT, so the reply gets none."""
    peer: tuple[str, int]
    """Address and port of the asker (an IPv6 address without zone)."""
    listener: Listener
    size: int
    """Octets of the query message."""
    depth: int = 0
    """How many times kdns has asked itself on the way here (CNAME chases)."""
    metadata: dict[str, Callable[[], str]] | None = None
    """Labels of the ``metadata`` plugin, evaluated when somebody reads them; None without that plugin.
    The one thing here that plugins may add to."""

    @property
    def do(self) -> bool:
        """Whether DNSSEC records are wanted."""
        return self.edns is not None and self.edns.do

    def renamed(self, name: Name) -> Query:
        """The same query for another name."""
        return msgspec.structs.replace(self, name=name, spelling=name)

    def replace(self, **changes: Any) -> Query:
        """The same query with other fields."""
        return msgspec.structs.replace(self, **changes)


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What is answered.  A failure is a Reply too: an rcode and an ``error`` for the operator's log."""

    rcode: int = NOERROR
    answer: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    flags: int = 0
    """AA, TC, RA and AD as the plugin means them; QR, opcode, RD and CD come from the query when the reply is packed."""
    lease: Lease = NO_LEASE
    ede: tuple[tuple[int, str], ...] = ()
    """Extended errors (RFC 8914): (info code, text); sent to askers that use EDNS."""
    plugin: str = ""
    """Name of the plugin that made this reply: a metric label; empty for the server itself."""
    error: str = ""
    """Why this failed, for the ``errors`` plugin; empty when nothing failed."""
    limit: int = 0
    """Most octets over UDP as the ``bufsize`` plugin rules; 0 = the default of `limits.UDP_REPLY`."""
    options: tuple[tuple[int, bytes], ...] = ()
    """EDNS options for askers that use EDNS, beside the extended errors."""
    drop: bool = False
    """Send nothing at all."""
    report: Report | None = None
    """Whoever sends this reply calls it: with the first send and, through the packet cache, with every replay."""

    def replace(self, **changes: Any) -> Reply:
        """The same reply with other fields."""
        return msgspec.structs.replace(self, **changes)

    def leased(self, lease: Lease) -> Reply:
        """The same reply under another lease."""
        return msgspec.structs.replace(self, lease=lease)


def failure(rcode: int, error: str, plugin: str = "", ede: tuple[tuple[int, str], ...] = ()) -> Reply:
    """A reply that only says that something went wrong: never leased."""
    return Reply(rcode, error=error, plugin=plugin, ede=ede)
