"""Master files (RFC 1035 section 5) → a Zone, with ``$ORIGIN``, ``$TTL``, ``$INCLUDE`` and ``$GENERATE``.

The grammar is the one of CoreDNS's parser: TTL and class before the type in either order, TTLs with units (``1h30m``),
a record's TTL counts for those behind it until ``$TTL`` says otherwise, ``$INCLUDE`` is relative to the file that it
stands in and leaves origin, owner and TTL behind it as they were, ``$GENERATE`` takes ``${offset,width,base}``.
Record data are read by ``kdns.rdata``.

Nothing here opens a file: that is the caller's ``open``, whose lines may have been decoded with `OCTETS`.
"""

from __future__ import annotations

import codecs
import os.path
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, TypeAlias

import msgspec

from kdns import limits
from kdns.message import IN, NSEC3, SOA, Record, class_number, type_number
from kdns.name import BadName, Name, from_text, is_under, to_text
from kdns.rdata import BadRdata, seconds
from kdns.rdata import from_text as rdata_from_text
from kdns.zone import BadZone, Zone

Open: TypeAlias = Callable[[str], AbstractContextManager[Iterable[str]]]
"""Path → the file's lines; raises OSError when it cannot be read."""

OCTETS: Final = "kdns-octets"
"""Error handler for decoding master files as UTF-8: octets that are not become ``\\DDD``, which means just them."""


def _escape_octets(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"\\{octet:03d}" for octet in error.object[error.start : error.end]), error.end


codecs.register_error(OCTETS, _escape_octets)

# `key="value"` is one word: service parameters (RFC 9460) are written so.
_WORD: Final = re.compile(r'(?:[^\s;()"\\=]++=)?"(?:[^"\\]|\\.)*+"|"|;[^\n]*+|[()]|(?:[^\s;()"\\]|\\.)++|\\', re.DOTALL)
_SPECIAL: Final = re.compile(r'["()\\]')
_DIRECTIVES: Final = frozenset(("$ORIGIN", "$TTL", "$INCLUDE", "$GENERATE"))
_NSEC3PARAM: Final = 51
_GENERATED_TTL: Final = 3600
_LEAST_INVALID_TTL: Final = 2**31
_PAUSE_EVERY: Final = 64


class Loaded(msgspec.Struct, frozen=True):
    """What came of reading a master file."""

    zone: Zone | None
    """None: its SOA serial is the one that was known already, so reading ended there."""
    warning: str
    """What was left out and where; empty when nothing was."""


class _SameSerial(Exception):
    """The SOA serial is the known one."""


def load(
    file: str, origin: Name, open: Open, known_serial: int | None = None, pause: Callable[[], None] | None = None
) -> Loaded:
    """Read a whole zone.

    With ``known_serial`` only up to the first SOA, if that has this serial.  ``pause`` is called every few records: a
    thread lets others run there.  Raises BadZone for what is wrong in the file or one that it includes, OSError when
    the file itself cannot be read.
    """
    reading = _Reading(origin, open)

    def records(lines: Iterable[str]) -> Iterator[Record]:
        soa_seen = False
        for count, record in enumerate(_File(reading, file, origin).records(lines)):
            if record.type == SOA and not soa_seen:
                soa_seen = True
                if int.from_bytes(record.rdata[-20:-16], "big") == known_serial:
                    raise _SameSerial
            if pause is not None and not count % _PAUSE_EVERY:
                pause()
            yield record
        if not soa_seen:
            raise BadZone(f"{file}: has no SOA record for zone {to_text(origin)}")

    try:
        with open(file) as lines:
            zone = Zone(origin, records(lines))
    except _SameSerial:
        return Loaded(None, "")
    return Loaded(zone, reading.warning())


class _Reading:
    """What all files of one zone share: bounds, and what was left out."""

    def __init__(self, origin: Name, open: Open) -> None:
        self.origin, self.open = origin, open
        self._characters = self._records = self._ignored = 0
        self._first_ignored = ""

    def spend(self, file: _File, characters: int, records: int) -> None:
        self._characters += characters
        self._records += records
        if self._characters > limits.ZONE_TEXT:
            raise file.error(f"over {limits.ZONE_TEXT} characters in all")
        if self._records > limits.ZONE_RECORDS:
            raise file.error(f"over {limits.ZONE_RECORDS} records")

    def ignore(self, where: str) -> None:
        self._first_ignored = self._first_ignored or where
        self._ignored += 1

    def warning(self) -> str:
        if not self._ignored:
            return ""
        zone = to_text(self.origin)
        return f"{self._ignored} records outside zone {zone} or class IN left out, the first at {self._first_ignored}"


class _File:
    """One file, or the lines that one ``$GENERATE`` makes: the state that ends with it."""

    def __init__(self, reading: _Reading, file: str, origin: Name, depth: int = 0) -> None:
        self._reading, self._file, self._depth = reading, file, depth
        self._origin = self._owner = origin
        self._line = 0
        self._ttl = 0
        self._default: int | None = None
        self._default_stays = False

    def error(self, text: str) -> BadZone:
        """An error at the line where the current entry begins."""
        return BadZone(f"{self._file}:{self._line}: {text}")

    def records(self, lines: Iterable[str]) -> Iterator[Record]:
        """All records that the lines stand for."""
        for begins_blank, words in self._entries(lines):
            directive = words[0].upper() if words[0][0] == "$" and not begins_blank else ""
            if directive not in _DIRECTIVES:
                yield from self._record(begins_blank, words)
            elif directive == "$INCLUDE":
                yield from self._include(*self._arguments(words, 1, 2))
            elif directive == "$GENERATE":
                yield from self._generate(self._arguments(words, 3, len(words)))
            elif directive == "$ORIGIN":
                self._origin = self._name(*self._arguments(words, 1, 1))
            else:
                (word,) = self._arguments(words, 1, 1)
                self._default, self._default_stays = self._seconds(word), True

    # --- lines → words -----------------------------------------------------------------------------------------------

    def _entries(self, lines: Iterable[str]) -> Iterator[tuple[bool, list[str]]]:
        """Whether an entry begins with a blank, and its words (quoted ones with their quotes); comments are gone."""
        entry = _Entry()
        for number, line in enumerate(lines, 1):
            if entry.complete:
                self._line = number
            self._reading.spend(self, len(line), 0)
            if entry.complete:
                if len(line) <= limits.ZONE_ENTRY and not _SPECIAL.search(line):
                    words = (line.partition(";")[0] if ";" in line else line).split()
                    if words:
                        yield line[0].isspace(), words
                    continue
                entry = _Entry(line[0].isspace())
            problem = entry.add(line)
            if problem:
                raise self.error(problem)
            if entry.complete and entry.words:
                yield entry.begins_blank, entry.words
        if not entry.complete:
            raise self.error("the file ends within parentheses or quotes")

    # --- words → records ---------------------------------------------------------------------------------------------

    def _record(self, begins_blank: bool, words: list[str]) -> Iterator[Record]:
        if not begins_blank:
            self._owner = self._name(words[0])
        type, klass, rest = self._head(words, begins_blank)
        self._reading.spend(self, 0, 1)
        if klass != IN or not is_under(self._owner, self._reading.origin):
            self._reading.ignore(f"{self._file}:{self._line}")
            return
        if type in (NSEC3, _NSEC3PARAM):
            raise self.error("NSEC3 zones cannot be served")
        try:
            rdata = rdata_from_text(type, " ".join(rest), self._origin)
        except BadRdata as error:
            raise self.error(str(error)) from None
        # RFC 2181 section 8: a TTL with the highest bit set counts as 0.
        yield Record(self._owner, type, self._ttl if self._ttl < _LEAST_INVALID_TTL else 0, rdata)

    def _head(self, words: list[str], begins_blank: bool) -> tuple[int, int, list[str]]:
        """Type, class and the words behind them; sets the TTL."""
        if self._default is not None:
            self._ttl = self._default
        ttl_due, klass, first = True, None, 0 if begins_blank else 1
        for at in range(first, len(words)):
            word = words[at]
            type = type_number(word)
            if type is not None:
                # Behind a class, or where the owner is left out, CoreDNS goes on with the TTL before, at first 0.
                if self._default is None and at == 1 and not begins_blank:
                    raise self.error("no TTL here, before or by $TTL")
                return type, IN if klass is None else klass, words[at + 1 :]
            if klass is None and (number := class_number(word)) is not None:
                klass = number
            elif ttl_due and word[0].isdigit():
                ttl_due = False
                self._ttl = self._seconds(word)
                if not self._default_stays:
                    self._default = self._ttl
            else:
                raise self.error(f"{word!r} is not a type, class or TTL")
        raise self.error("a record without a type")

    def _name(self, word: str) -> Name:
        if word[0] == '"':
            raise self.error(f"a name in quotes: {word}")
        try:
            return from_text(word, self._origin)
        except (BadName, UnicodeEncodeError) as error:
            raise self.error(str(error)) from None

    def _seconds(self, word: str) -> int:
        try:
            ttl = seconds(word)
        except BadRdata as error:
            raise self.error(str(error)) from None
        if ttl >= 2 * _LEAST_INVALID_TTL:
            raise self.error(f"TTL {word} does not fit into 32 bits")
        return ttl

    # --- directives --------------------------------------------------------------------------------------------------

    def _arguments(self, words: list[str], low: int, high: int) -> list[str]:
        if not low <= len(words) - 1 <= high:
            raise self.error(f"wrong number of words behind {words[0]}")
        return words[1:]

    def _include(self, word: str, origin: str = "@") -> Iterator[Record]:
        if self._depth >= limits.ZONE_INCLUDES:
            raise self.error(f"$INCLUDE nested over {limits.ZONE_INCLUDES} deep")
        path = os.path.join(os.path.dirname(self._file), word.strip('"'))
        included = _File(self._reading, path, self._name(origin), self._depth + 1)
        included._owner, included._default, included._default_stays = self._owner, self._default, self._default_stays
        try:
            with self._reading.open(path) as lines:
                yield from included.records(lines)
        except OSError as error:
            raise self.error(f"cannot read {path}: {error.strerror}") from None

    def _generate(self, words: list[str]) -> Iterator[Record]:
        match = _RANGE.fullmatch(words[0])
        start, stop, step = (int(part or 1) for part in match.groups()) if match else (1, 0, 1)
        if stop < start or not step or (stop - start) // step >= limits.ZONE_GENERATE:
            raise self.error(f"bad $GENERATE range {words[0]!r}, or over {limits.ZONE_GENERATE} steps")
        template = " ".join(words[1:])
        generated = _File(self._reading, self._file, self._origin)
        # CoreDNS's parser, unlike BIND, does not look at $TTL here.
        generated._line, generated._default = self._line, _GENERATED_TTL
        for value in range(start, stop + 1, step):
            try:
                line = _DOLLAR.sub(partial(_substitute, value), template)
            except ValueError:
                raise self.error("bad $GENERATE modifier") from None
            self._reading.spend(self, len(line), 0)
            yield from generated._record(False, _WORD.findall(line))


class _Entry:
    """One entry that may go over several lines."""

    def __init__(self, begins_blank: bool = False) -> None:
        self.begins_blank = begins_blank
        self.words: list[str] = []
        self._depth = self._size = 0
        self._quote = ""

    @property
    def complete(self) -> bool:
        """No parenthesis or quote is open."""
        return not self._depth and not self._quote

    def add(self, line: str) -> str:
        """Take one more line in; returns what is wrong with it, or nothing."""
        self._size += len(line)
        if self._size > limits.ZONE_ENTRY:
            return f"an entry of over {limits.ZONE_ENTRY} characters"
        line, self._quote = self._quote + line, ""
        for match in _WORD.finditer(line):
            word = match[0]
            if word == '"':
                self._quote = line[match.start() :]
                return ""
            if word == "(":
                self._depth += 1
            elif word == ")":
                self._depth -= 1
                if self._depth < 0:
                    return "')' without '('"
            elif word[0] != ";":
                self.words.append(word)
        return ""


# --- $GENERATE -------------------------------------------------------------------------------------------------------

_RANGE: Final = re.compile(r"(\d{1,10})-(\d{1,10})(?:/(\d{1,10}))?", re.ASCII)
_DOLLAR: Final = re.compile(r"\\.|\$\$|\$\{([^}]*)\}|\$\{?", re.DOTALL)
_MODIFIER: Final = re.compile(r"(-?\d{1,10})(?:,(\d{1,3})(?:,([doxX]))?)?", re.ASCII)


def _substitute(value: int, dollar: re.Match[str]) -> str:
    """What one ``$`` of a ``$GENERATE`` line becomes; raises ValueError for a bad modifier."""
    text = dollar[0]
    if text in ("$$", "\\$"):
        return "$"
    if text[0] == "\\":
        return text
    if text == "$":
        return str(value)
    modifier = _MODIFIER.fullmatch(dollar[1] or "")
    if modifier is None:
        raise ValueError(text)
    offset, width, base = modifier.groups()
    value += int(offset)
    if not 0 <= value < 2**31 or int(width or 0) > 255:
        raise ValueError(text)
    return format(value, f"0{int(width or 0)}{base or 'd'}")
