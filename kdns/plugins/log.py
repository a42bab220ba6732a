"""log: write a line for each query that is answered.

``log [NAMES…] [FORMAT] [{ class (all | success | denial | error)… }]``

The first ``log`` line whose NAMES (default ``.``) cover the name that was asked decides.  With two words or more the
last one is the FORMAT if it has a ``{`` in it; a single word is always a name.  ``class`` restricts the line to answers
of these kinds: success (an answer or a referral), denial (NXDOMAIN, or no such type), error (all else).

FORMAT is text with placeholders: ``{type}``, ``{name}``, ``{class}``, ``{proto}``, ``{remote}``, ``{port}``,
``{local}`` (addresses in brackets when IPv6), ``{size}`` and ``{rsize}`` (octets of query and reply, uncompressed),
``{rcode}``, ``{duration}``, ``{>rflags}``, ``{>id}``, ``{>opcode}``, ``{>do}``, ``{>bufsize}``, and ``{/LABEL}`` for a
label of ``metadata`` (``-`` when there is none).  ``{common}`` (the default) and ``{combined}`` are whole formats.
Anything else in braces stays as it is.

Labels for ``metadata``: ``log/type``, ``log/class``.

An answer that is to be logged is not kept in the packet cache; those of other classes are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from kdns import log, message, name
from kdns.corefile import Directive
from kdns.message import Query, Record, Reply
from kdns.name import Name
from kdns.plugin import Next, Plugin, Site

COMMON: Final = (
    '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" '
    "{rcode} {>rflags} {rsize} {duration}"
)
COMBINED: Final = COMMON + ' "{>opcode}"'
CLASSES: Final = ("all", "success", "denial", "error")


class Entry(msgspec.Struct, frozen=True):
    """What a line can tell."""

    query: Query
    reply: Reply
    seconds: float
    """How long the answer took."""


Part: TypeAlias = Callable[[Entry], str]


class Rule(msgspec.Struct, frozen=True):
    """One name of one ``log`` line."""

    zone: Name
    classes: frozenset[str] | None
    """None: all."""
    format: tuple[Part, ...]


class Log(Plugin):
    """Looks at replies on their way out."""

    name = "log"
    replayable = True
    blind = True
    inline = True

    def __init__(self, rules: Sequence[Rule], now: Callable[[], float]) -> None:
        self._rules = rules
        self.apart = [rule.zone for rule in rules]
        self._now = now

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``log [NAMES…] [FORMAT] [{ class CLASS… }]``, in textual order."""
        return cls([rule for use in uses for rule in _rules(use)], site.now)

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Answer as the rest of the chain does, with a line if a rule says so."""
        for rule in self._rules:
            if name.is_under(query.name, rule.zone):
                break
        else:
            return await next(query)
        started = self._now()
        reply = await next(query)
        kind = kind_of(query, reply)
        if query.metadata is not None:
            query.metadata["log/type"] = lambda: kind
            query.metadata["log/class"] = lambda: _CLASS_OF[kind]
        if rule.classes is not None and _CLASS_OF[kind] not in rule.classes:
            return reply
        entry = Entry(query, reply, self._now() - started)
        log.emit(log.INFO, "".join([part(entry) for part in rule.format]))
        return reply.leased(reply.lease.shrink(0.0)) if reply.lease.until else reply


def _rules(use: Directive) -> list[Rule]:
    """The rules of one ``log`` line."""
    names, text = use.args, COMMON
    if len(names) > 1 and "{" in names[-1]:
        text = names[-1].replace("{common}", COMMON).replace("{combined}", COMBINED)
        names = names[:-1]
    classes: set[str] = set()
    for option in use.options("class"):
        for word in option.between(1):
            if word not in CLASSES:
                raise option.error(f"invalid Class: {word}")
            classes.add(word)
    only = frozenset(classes) if classes and "all" not in classes else None
    try:
        zones = [name.from_text(word) for word in names or (".",)]
    except name.BadName as error:
        raise use.error(str(error)) from None
    return [Rule(zone, only, compile_format(text)) for zone in zones]


# --- what kind of answer it is ---------------------------------------------------------------------------------------

_CLASS_OF: Final = {
    "NOERROR": "success",
    "DELEGATION": "success",
    "NXDOMAIN": "denial",
    "NODATA": "denial",
    "SERVERERROR": "error",
    "OTHERERROR": "error",
    "META": "error",
}


def kind_of(query: Query, reply: Reply) -> str:
    """CoreDNS's word for a reply: NOERROR, NXDOMAIN, NODATA, DELEGATION, SERVERERROR, META or OTHERERROR."""
    if reply.drop:
        return "OTHERERROR"
    if query.type in (message.AXFR, message.IXFR):
        return "META"
    rcode = reply.rcode
    if reply.answer:
        return "NOERROR" if rcode == message.NOERROR else "SERVERERROR" if rcode in _SERVER_ERRORS else "OTHERERROR"
    if rcode == message.NOERROR:
        types = {record.type for record in reply.authority}
        return "NODATA" if message.SOA in types else "DELEGATION" if message.NS in types else "NOERROR"
    if rcode == message.NXDOMAIN:
        return "NXDOMAIN"
    return "SERVERERROR" if rcode in _SERVER_ERRORS else "OTHERERROR"


_SERVER_ERRORS: Final = (message.SERVFAIL, message.NOTIMP)


# --- formats ---------------------------------------------------------------------------------------------------------


def compile_format(text: str) -> tuple[Part, ...]:
    """A FORMAT → what gives its parts for an entry.

    A placeholder is a ``}`` with the nearest ``{`` before it, so that in ``{ {name} }`` the inner one counts.
    """
    parts: list[Part] = []
    literal = ""
    while text:
        before, brace, rest = text.partition("}")
        start = before.rfind("{")
        part = _placeholder(before[start + 1 :]) if brace and start >= 0 else None
        if part is None:
            literal += before + brace
        else:
            parts += _literal(literal + before[:start]), part
            literal = ""
        text = rest
    return (*parts, _literal(literal))


def _literal(text: str) -> Part:
    return lambda entry: text


def _placeholder(word: str) -> Part | None:
    if word.startswith("/"):
        return _metadata(word[1:])
    return _PLACEHOLDERS.get(word)


def _metadata(label: str) -> Part:
    def value(entry: Entry) -> str:
        read = entry.query.metadata.get(label) if entry.query.metadata else None
        return read() if read is not None else "-"

    return value


def _address(text: str) -> str:
    return f"[{text}]" if ":" in text else text


def _bufsize(entry: Entry) -> str:
    if entry.query.listener.proto == "tcp":
        return "65535"
    edns = entry.query.edns
    return str(max(512, edns.size)) if edns is not None else "512"


def _rcode(entry: Entry) -> str:
    return "-" if entry.reply.drop else message.RCODES.get(entry.reply.rcode) or str(entry.reply.rcode)


def _size(entry: Entry) -> str:
    return str(reply_size(entry.query, entry.reply))


def reply_size(query: Query, reply: Reply) -> int:
    """Octets of a reply without compression and without OPT; 0 when nothing is sent."""
    if reply.drop:
        return 0
    size = 12 + len(query.spelling) + 4
    records: tuple[Record, ...] = reply.answer + reply.authority + reply.additional
    for record in records:
        size += len(record.owner) + 10 + len(record.rdata)
    return size


_FLAGS: Final = (
    (message.QR, "qr"),
    (message.AA, "aa"),
    (message.TC, "tc"),
    (message.RD, "rd"),
    (message.RA, "ra"),
    (message.Z, "z"),
    (message.AD, "ad"),
    (message.CD, "cd"),
)


def _flags(entry: Entry) -> str:
    if entry.reply.drop:
        return "-"
    flags = message.QR | entry.reply.flags | entry.query.flags & (message.RD | message.CD)
    return ",".join([text for bit, text in _FLAGS if flags & bit])


def _duration(entry: Entry) -> str:
    """Seconds to the nanosecond, as short as they can be written, as Go prints them."""
    return f"{entry.seconds:.9f}".rstrip("0").rstrip(".") + "s"


_PLACEHOLDERS: Final[dict[str, Part]] = {
    "type": lambda entry: message.type_text(entry.query.type),
    "name": lambda entry: name.to_text(entry.query.name),
    "class": lambda entry: message.class_text(entry.query.klass),
    "proto": lambda entry: entry.query.listener.proto,
    "remote": lambda entry: _address(entry.query.peer[0]),
    "port": lambda entry: str(entry.query.peer[1]),
    "local": lambda entry: _address(entry.query.listener.local[0]),
    "size": lambda entry: str(entry.query.size),
    "rsize": _size,
    "rcode": _rcode,
    "duration": _duration,
    ">rflags": _flags,
    ">id": lambda entry: str(entry.query.id),
    ">opcode": lambda entry: "0",
    ">do": lambda entry: "true" if entry.query.do else "false",
    ">bufsize": _bufsize,
}
