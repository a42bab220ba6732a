"""The values and functions of Go templates: what ``printf``, ``index``, ``eq`` and the others do with Python values.

Go's types stand in Python as str, int, bool, None (nil), list (slice), dict (map), `Fields` (struct) and `Method`;
`MISSING` is what Go calls the invalid value: a key that a map does not have.  There are no floating-point numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from kdns.errors import KdnsError

_WIDEST: Final = 1000
"""Columns that a ``printf`` verb may ask for."""


class TemplateError(KdnsError):
    """A template that cannot be read, or that fails on the data it is given."""


class Fields(dict[str, Any]):
    """A struct: asking it for a field that it does not have is an error."""


class Method:
    """A method of a struct."""

    __slots__ = ("arity", "call")

    def __init__(self, arity: int, call: Callable[..., Any]) -> None:
        self.arity, self.call = arity, call


class _Missing:
    __slots__ = ()


MISSING: Final = _Missing()


def type_text(value: Any) -> str:
    """Go's name of the value's type, near enough for error texts."""
    names = {bool: "bool", int: "int", str: "string", list: "[]string", dict: "map[string]string"}
    return names.get(type(value), "nil" if value is None else "struct")


def truth(value: Any) -> bool:
    """Whether ``if`` takes the value for true: all but zero values and empty ones."""
    return isinstance(value, Fields) or (value is not MISSING and bool(value))


def text(value: Any) -> str:
    """A value as ``{{ . }}`` prints it."""
    if isinstance(value, str):
        return value
    if value is MISSING:
        return "<no value>"
    return _plain(value)


def _plain(value: Any) -> str:
    """Go's ``%v``."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + " ".join(map(_plain, value)) + "]"
    if isinstance(value, Fields):
        return "{" + " ".join(map(_plain, value.values())) + "}"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{_plain(key)}:{_plain(value[key])}" for key in sorted(value)) + "]"
    return "<nil>" if value is None or value is MISSING else str(value)


# --- printf ----------------------------------------------------------------------------------------------------------

_VERB: Final = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d*))?(.?)", re.DOTALL)


def printf(form: Any, *values: Any) -> str:
    """Go's ``fmt.Sprintf``, with its ``%!d(string=x)`` for values that do not suit their verb."""
    if not isinstance(form, str):
        raise TemplateError("error calling printf: the format is not a string")
    left = list(values)

    def show(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not verb:
            return "%!(NOVERB)"
        if int((width or "0")[-5:]) > _WIDEST or int((precision or "0")[-5:]) > _WIDEST:
            raise TemplateError(f"error calling printf: {match[0]!r} is wider than {_WIDEST}")
        if not left:
            return f"%!{verb}(MISSING)"
        value = left.pop(0)
        shown = _shown(verb, value, flags, precision)
        return _pad(shown, flags, int(width or 0), isinstance(value, int))

    out = _VERB.sub(show, form)
    if left:
        out += "%!(EXTRA " + ", ".join(f"{type_text(value)}={_plain(value)}" for value in left) + ")"
    return out


def _pad(shown: str, flags: str, width: int, number: bool) -> str:
    if "-" in flags:
        return shown.ljust(width)
    if "0" not in flags:
        return shown.rjust(width)
    sign = shown[:1] if number and shown[:1] in ("+", "-") else ""
    return sign + shown[len(sign) :].rjust(width - len(sign), "0")


def _shown(verb: str, value: Any, flags: str, precision: str | None) -> str:
    shown = _verb(verb, value, flags, precision)
    return f"%!{verb}({type_text(value)}={_plain(value)})" if shown is None else shown


def _verb(verb: str, value: Any, flags: str, precision: str | None) -> str | None:
    """The value under one verb; None when they do not go together."""
    if verb == "v":
        verb = "d" if _kind(value) == "int" else "s"
        return _verb(verb, value, flags, precision) or _plain(value)
    if isinstance(value, bool):
        return _plain(value) if verb == "t" else None
    if isinstance(value, int):
        return _integer(verb, value, flags, precision)
    if isinstance(value, str):
        return _string(verb, value, precision)
    return "[" + " ".join(_shown(verb, item, flags, precision) for item in value) + "]" if type(value) is list else None


def _integer(verb: str, value: int, flags: str, precision: str | None) -> str | None:
    if verb in "cqU":
        if not 0 <= value < 0x110000:
            value = 0xFFFD
        return {"c": chr(value), "q": f"'{chr(value)}'", "U": f"U+{value:04X}"}[verb]
    if verb not in "dxXobO":
        return None
    digits = f"{abs(value):{verb.lower() if verb == 'O' else verb}}".rjust(int(precision or 0), "0")
    prefix = "0o" if verb == "O" else {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(verb, "") if "#" in flags else ""
    sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
    return sign + prefix + digits


def _string(verb: str, value: str, precision: str | None) -> str | None:
    if precision is not None:
        value = value[: int(precision or 0)]
    if verb == "s":
        return value
    if verb == "q":
        return json.dumps(value, ensure_ascii=False)
    if verb in "xX":
        digits = value.encode("utf-8", "surrogateescape").hex()
        return digits.upper() if verb == "X" else digits
    return None


# --- comparison ------------------------------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    return {bool: "bool", int: "int", str: "string"}.get(type(value), "")


def equal(first: Any, *others: Any) -> bool:
    """``eq``: whether the first value is one of the others."""
    if not others:
        raise TemplateError("error calling eq: missing argument for comparison")
    for other in others:
        if first is None or first is MISSING or other is None or other is MISSING:
            if (first is None or first is MISSING) and (other is None or other is MISSING):
                return True
        elif _kind(first) != _kind(other) or not _kind(first):
            raise TemplateError("error calling eq: incompatible types for comparison")
        elif first == other:
            return True
    return False


def less(one: Any, two: Any) -> bool:
    """``lt``."""
    if _kind(one) != _kind(two):
        raise TemplateError("error calling lt: incompatible types for comparison")
    if _kind(one) in ("", "bool"):
        raise TemplateError("error calling lt: invalid type for comparison")
    return bool(one < two)


# --- parts and numbers -----------------------------------------------------------------------------------------------


def index(value: Any, *keys: Any) -> Any:
    """``index``: an element of a list, a map, or of what lies in them."""
    for key in keys:
        if isinstance(value, dict) and not isinstance(value, Fields):
            if not isinstance(key, str):
                raise TemplateError(f"error calling index: value has type {type_text(key)}; should be string")
            value = value.get(key, "")
        elif isinstance(value, (list, str)):
            value = _item(value, key)
        else:
            raise TemplateError(f"error calling index: can't index item of type {type_text(value)}")
    return value


def _item(value: list[Any] | str, key: Any) -> Any:
    items = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return items[_position(key, "index", len(items) - 1)]


def _position(key: Any, function: str, most: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise TemplateError(f"error calling {function}: cannot index slice/array with type {type_text(key)}")
    if not 0 <= key <= most:
        raise TemplateError(f"error calling {function}: index out of range: {key}")
    return key


def cut(value: Any, *bounds: Any) -> Any:
    """``slice``: ``value[i:j]``."""
    if not isinstance(value, (list, str)) or len(bounds) > 2:
        raise TemplateError(f"error calling slice: can't slice item of type {type_text(value)}")
    items = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    start, stop = (*(_position(bound, "slice", len(items)) for bound in bounds), *(0, len(items))[len(bounds) :])
    if start > stop:
        raise TemplateError(f"error calling slice: invalid slice index: {start} > {stop}")
    part = items[start:stop]
    return part.decode("utf-8", "surrogateescape") if isinstance(part, bytes) else part


def length(value: Any) -> int:
    """``len``: of a string in octets."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, (list, dict)) and not isinstance(value, Fields):
        return len(value)
    raise TemplateError(f"error calling len: len of type {type_text(value)}")


_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def parse_uint(word: Any, base: Any, bits: Any) -> int:
    """``parseInt``, in CoreDNS Go's ``strconv.ParseUint``: no sign; base 0 reads ``0x``, ``0o``, ``0b`` and ``0``."""
    if not isinstance(word, str) or _kind(base) != "int" or _kind(bits) != "int":
        raise TemplateError("error calling parseInt: wrong type of argument")
    digits = word.lower()
    if base == 0:
        base, digits = _prefixed(digits)
    if not 2 <= base <= 36 or not 0 <= bits <= 64:
        raise TemplateError(f"error calling parseInt: invalid base {base} or bit size {bits}")
    allowed = _DIGITS[:base]
    if not digits or any(digit not in allowed for digit in digits):
        raise TemplateError(f'error calling parseInt: strconv.ParseUint: parsing "{word}": invalid syntax')
    digits = digits.lstrip("0") or "0"
    # More digits than 64 bits have cannot fit; int() would be slow on very many.
    value = int(digits, base) if len(digits) <= 64 else 2**64
    if value >= 2 ** (bits or 64):
        raise TemplateError(f'error calling parseInt: strconv.ParseUint: parsing "{word}": value out of range')
    return value


def _prefixed(digits: str) -> tuple[int, str]:
    base, skip = {"0x": (16, 2), "0o": (8, 2), "0b": (2, 2)}.get(digits[:2], (8, 1) if digits[:1] == "0" else (10, 0))
    rest = digits[skip:]
    if base == 8 and not rest:
        return 8, "0"
    # Behind a prefix, also the bare 0, an underscore may stand.
    plain = rest.removeprefix("_") if skip else rest
    if re.search(r"__|_$|^_", plain):
        return base, ""
    return base, plain.replace("_", "")


def _print(*values: Any) -> str:
    """Go's ``fmt.Sprint``: a space between two operands when neither is a string."""
    out = ""
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            out += " "
        out += _plain(value)
    return out


FUNCTIONS: Final[Mapping[str, tuple[Callable[..., Any], int, int | None]]] = {
    "eq": (equal, 1, None),
    "ne": (lambda one, two: not equal(one, two), 2, 2),
    "lt": (less, 2, 2),
    "le": (lambda one, two: equal(one, two) or less(one, two), 2, 2),
    "gt": (lambda one, two: not (equal(one, two) or less(one, two)), 2, 2),
    "ge": (lambda one, two: not less(one, two), 2, 2),
    "not": (lambda value: not truth(value), 1, 1),
    "index": (index, 1, None),
    "slice": (cut, 1, None),
    "len": (length, 1, 1),
    "print": (_print, 0, None),
    "println": (lambda *values: " ".join(map(_plain, values)) + "\n", 0, None),
    "printf": (printf, 1, None),
    "parseInt": (parse_uint, 3, 3),
}
"""By their names in templates, with the fewest and the most arguments (None: any number).  ``and`` and ``or`` stand in
``reading``, as they may leave arguments alone."""
