"""What operators, builtins and predicates of expressions do with values.

Values are None (nil), bool, int, float, str, list and dict.  Wrong types and what does not exist raise ExpressionError.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from kdns import limits, values
from kdns.errors import KdnsError


class ExpressionError(KdnsError):
    """An expression that cannot be read, or not be worked out."""


class Frame:
    """What one working-out knows."""

    __slots__ = ("index", "item", "lets", "names", "rounds")

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = names
        self.lets: dict[str, Any] = {}
        self.item: Any = None
        """``#`` of the innermost predicate."""
        self.index = 0
        self.rounds = 0

    def spend(self, rounds: int) -> None:
        """Raises ExpressionError when the expression has gone round too often."""
        self.rounds += rounds
        if self.rounds > limits.EXPRESSION_ROUNDS:
            raise ExpressionError(f"over {limits.EXPRESSION_ROUNDS} rounds")


def kind(value: Any) -> str:
    """The value's type as messages name it."""
    names = {bool: "bool", int: "int", float: "float64", str: "string", list: "array", dict: "map"}
    return names.get(type(value), "nil")


def boolean(value: Any) -> bool:
    """The value, which must be one."""
    if value is True or value is False:
        return bool(value)
    raise ExpressionError(f"{kind(value)} is not a bool")


def _number(value: Any) -> int | float:
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    raise ExpressionError(f"{kind(value)} is not a number")


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    raise ExpressionError(f"{kind(value)} is not an int")


def _string(value: Any) -> str:
    if type(value) is str:
        return value
    raise ExpressionError(f"{kind(value)} is not a string")


def items(value: Any) -> list[Any]:
    """The value, which must be an array."""
    if type(value) is list:
        return value
    raise ExpressionError(f"{kind(value)} is not an array")


# --- operators -------------------------------------------------------------------------------------------------------


def equal(one: Any, two: Any) -> bool:
    """``==``: numbers of either type compare, other types only with their own."""
    if type(one) in (int, float) and type(two) in (int, float):
        return bool(one == two)
    if type(one) is not type(two):
        return False
    if type(one) is list:
        return len(one) == len(two) and all(map(equal, one, two))
    if type(one) is dict:
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    return bool(one == two)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def ordered(one: Any, two: Any) -> bool:
        if type(one) is str and type(two) is str:
            return compare(one, two)
        return compare(_number(one), _number(two))

    return ordered


def _add(one: Any, two: Any) -> Any:
    if type(one) is str and type(two) is str:
        return one + two
    return _bounded(_number(one) + _number(two))


def _arithmetic(work: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda one, two: _bounded(work(_number(one), _number(two)))


def _bounded(value: int | float) -> int | float:
    """The value as 64 bits have it."""
    if type(value) is int and not -(2**63) <= value < 2**63:
        return (value + 2**63) % 2**64 - 2**63
    return value


def _divide(one: Any, two: Any) -> float:
    try:
        return _number(one) / _number(two)
    except ZeroDivisionError:
        return math.nan if not one or one != one else math.copysign(math.inf, one)


def _modulo(one: Any, two: Any) -> int:
    if not _whole(two):
        raise ExpressionError("integer divide by zero")
    rest: int = abs(_whole(one)) % abs(two)
    return rest if one >= 0 else -rest


def _power(one: Any, two: Any) -> float:
    try:
        return math.pow(_number(one), _number(two))
    except (OverflowError, ValueError):
        return math.nan


def contains(value: Any, collection: Any) -> bool:
    """``in``."""
    if type(collection) is list:
        return any(equal(value, item) for item in collection)
    if type(collection) is dict:
        return type(value) is str and value in collection
    if collection is None:
        return False
    raise ExpressionError(f'operator "in" not defined on {kind(collection)}')


@lru_cache(maxsize=64)
def compiled(pattern: str) -> values.Regexp:
    """The pattern of ``matches``."""
    try:
        return values.regexp(pattern)
    except values.BadValue as error:
        raise ExpressionError(str(error)) from None


def matches(text: Any, pattern: Any) -> bool:
    """``matches``: an RE2 expression anywhere in the text."""
    return compiled(_string(pattern)).search(_string(text)) is not None


def span(low: Any, high: Any) -> list[int]:
    """``low..high``, both inclusive."""
    low, high = _whole(low), _whole(high)
    if high - low >= limits.EXPRESSION_ROUNDS:
        raise ExpressionError(f"a range over {limits.EXPRESSION_ROUNDS} long")
    return list(range(low, high + 1))


OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "==": equal,
    "!=": lambda one, two: not equal(one, two),
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "+": _add,
    "-": _arithmetic(operator.sub),
    "*": _arithmetic(operator.mul),
    "/": _divide,
    "%": _modulo,
    "**": _power,
    "^": _power,
    "..": span,
    "in": contains,
    "matches": matches,
    "contains": lambda text, part: _string(part) in _string(text),
    "startsWith": lambda text, part: _string(text).startswith(_string(part)),
    "endsWith": lambda text, part: _string(text).endswith(_string(part)),
}


def member(value: Any, key: Any) -> Any:
    """``value[key]`` and ``value.key``; a key that a map does not have is nil, negative indices count from the end."""
    if type(value) is dict:
        return value.get(key) if type(key) is str else None
    if type(value) is list:
        position = _whole(key)
        if not -len(value) <= position < len(value):
            raise ExpressionError(f"index out of range: {position} (array length is {len(value)})")
        return value[position]
    raise ExpressionError(f"cannot fetch {show(key)} from {kind(value)}")


def optional_member(value: Any, key: Any) -> Any:
    """``value?.key``: as `member`, but nil has every member, and all are nil."""
    return None if value is None else member(value, key)


def cut(value: Any, start: Any, stop: Any) -> Any:
    """``value[start:stop]`` of an array or string; None = no bound on that side."""
    if type(value) not in (list, str):
        raise ExpressionError(f"cannot slice {kind(value)}")
    return value[None if start is None else _whole(start) : None if stop is None else _whole(stop)]


def show(value: Any) -> str:
    """The value as Go's ``%v`` prints it."""
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is float:
        return _show_float(value)
    if type(value) is list:
        return "[" + " ".join(map(show, value)) + "]"
    if type(value) is dict:
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    return "<nil>" if value is None else str(value)


def _show_float(value: float) -> str:
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[str(value)]
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    power = len(digits) + int(exponent) - 1
    if -4 <= power < 6:
        return f"{Decimal(repr(value)).normalize():f}"
    first, rest = str(digits[0]), "".join(map(str, digits[1:]))
    return f"{'-' if sign else ''}{first}{'.' if rest else ''}{rest}e{power:+03d}"


# --- builtins --------------------------------------------------------------------------------------------------------

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")


def _int(value: Any) -> int:
    if type(value) is str:
        if not _INTEGER.fullmatch(value):
            raise ExpressionError(f"invalid operation: int({value!r})")
        return int(value)
    number = _number(value)
    if not abs(number) < 2**63:
        raise ExpressionError(f"{number} is no int")
    return int(number)


def _float(value: Any) -> float:
    try:
        return float(value if type(value) is str and value.isascii() and "_" not in value else _number(value))
    except ValueError:
        raise ExpressionError(f"invalid operation: float({value!r})") from None


def _rounding(work: Callable[[float], float]) -> Callable[[Any], float]:
    return lambda value: float(work(value)) if math.isfinite(_number(value)) else value


def _length(value: Any) -> int:
    if type(value) in (str, list, dict):
        return len(value)
    raise ExpressionError(f"invalid argument for len (type {kind(value)})")


def _split(text: Any, mark: Any, most: Any = -1, keep: str = "") -> list[str]:
    """Go's ``strings.SplitN``, the mark kept behind each part or not."""
    whole, mark, most = _string(text), _string(mark), _whole(most)
    if not most:
        return []
    if not mark:
        return list(whole) if not 0 < most < len(whole) else [*whole[: most - 1], whole[most - 1 :]]
    parts = whole.split(mark, most - 1 if most > 0 else -1)
    return [part + keep for part in parts[:-1]] + parts[-1:]


def _repeat(text: Any, times: Any) -> str:
    text, times = _string(text), _whole(times)
    if times < 0 or len(text) * times > limits.EXPRESSION_ROUNDS:
        raise ExpressionError(f"repeat: negative count, or over {limits.EXPRESSION_ROUNDS} characters")
    return str(text * times)


def _strip(text: Any, marks: Any = None) -> str:
    return _string(text).strip(None if marks is None else _string(marks))


def _flat_numbers(arguments: Iterable[Any]) -> list[int | float]:
    out: list[int | float] = []
    for argument in arguments:
        out += map(_number, argument) if type(argument) is list else [_number(argument)]
    return out


def _best(pick: Callable[[list[int | float]], Any]) -> Callable[..., Any]:
    def best(*arguments: Any) -> Any:
        numbers = _flat_numbers(arguments)
        if not numbers:
            raise ExpressionError("not enough arguments")
        return pick(numbers)

    return best


def _get(value: Any, key: Any) -> Any:
    try:
        return member(value, key)
    except ExpressionError:
        return None


def _map(value: Any) -> dict[str, Any]:
    if type(value) is dict:
        return value
    raise ExpressionError(f"{kind(value)} is not a map")


def _bits(work: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
    return lambda one, two: _bounded(work(_whole(one), _whole(two)))


def _shift(work: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
    def shift(one: Any, two: Any) -> Any:
        if not 0 <= _whole(two) < 64:
            raise ExpressionError("shift count is negative, or over 63")
        return _bounded(work(_whole(one), two))

    return shift


BUILTINS: Final[Mapping[str, tuple[Callable[..., Any], int, int]]] = {
    "len": (_length, 1, 1),
    "int": (_int, 1, 1),
    "float": (_float, 1, 1),
    "string": (show, 1, 1),
    "abs": (lambda value: abs(_number(value)), 1, 1),
    "ceil": (_rounding(math.ceil), 1, 1),
    "floor": (_rounding(math.floor), 1, 1),
    "round": (_rounding(lambda value: math.copysign(math.floor(abs(value) + 0.5), value)), 1, 1),
    "max": (_best(max), 1, 99),
    "min": (_best(min), 1, 99),
    "mean": (_best(lambda numbers: sum(numbers) / len(numbers)), 1, 99),
    "trim": (_strip, 1, 2),
    "trimPrefix": (lambda text, part: _string(text).removeprefix(_string(part)), 2, 2),
    "trimSuffix": (lambda text, part: _string(text).removesuffix(_string(part)), 2, 2),
    "upper": (lambda text: _string(text).upper(), 1, 1),
    "lower": (lambda text: _string(text).lower(), 1, 1),
    "split": (_split, 2, 3),
    "splitAfter": (lambda text, mark, most=-1: _split(text, mark, most, mark), 2, 3),
    "replace": (lambda text, old, new: _string(text).replace(_string(old), _string(new)), 3, 3),
    "repeat": (_repeat, 2, 2),
    "join": (lambda parts, glue="": _string(glue).join(map(_string, items(parts))), 1, 2),
    "indexOf": (lambda text, part: _string(text).find(_string(part)), 2, 2),
    "lastIndexOf": (lambda text, part: _string(text).rfind(_string(part)), 2, 2),
    "hasPrefix": (lambda text, part: _string(text).startswith(_string(part)), 2, 2),
    "hasSuffix": (lambda text, part: _string(text).endswith(_string(part)), 2, 2),
    "first": (lambda array: items(array)[0] if array else None, 1, 1),
    "last": (lambda array: items(array)[-1] if array else None, 1, 1),
    "get": (_get, 2, 2),
    "take": (lambda array, count: items(array)[: max(0, _whole(count))], 2, 2),
    "reverse": (lambda array: items(array)[::-1], 1, 1),
    "concat": (lambda *arrays: [item for array in arrays for item in items(array)], 1, 99),
    "keys": (lambda value: list(_map(value)), 1, 1),
    "values": (lambda value: list(_map(value).values()), 1, 1),
    "bitand": (_bits(operator.and_), 2, 2),
    "bitor": (_bits(operator.or_), 2, 2),
    "bitxor": (_bits(operator.xor), 2, 2),
    "bitnand": (_bits(lambda one, two: one & ~two), 2, 2),
    "bitnot": (lambda value: ~_whole(value), 1, 1),
    "bitshl": (_shift(operator.lshift), 2, 2),
    "bitshr": (_shift(operator.rshift), 2, 2),
}
"""Name → function, fewest and most arguments."""

Test = Callable[[Any, int], Any]


def _found(array: Iterable[tuple[int, Any]], test: Test) -> tuple[int | None, Any]:
    return next(((index, item) for index, item in array if boolean(test(item, index))), (None, None))


def _backwards(array: list[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(array))[::-1]


PREDICATES: Final[Mapping[str, Callable[[list[Any], Test], Any]]] = {
    "all": lambda array, test: all(boolean(test(item, index)) for index, item in enumerate(array)),
    "any": lambda array, test: any(boolean(test(item, index)) for index, item in enumerate(array)),
    "none": lambda array, test: not any(boolean(test(item, index)) for index, item in enumerate(array)),
    "one": lambda array, test: sum(boolean(test(item, index)) for index, item in enumerate(array)) == 1,
    "count": lambda array, test: sum(boolean(test(item, index)) for index, item in enumerate(array)),
    "sum": lambda array, test: _bounded(sum(_number(test(item, index)) for index, item in enumerate(array))),
    "filter": lambda array, test: [item for index, item in enumerate(array) if boolean(test(item, index))],
    "map": lambda array, test: [test(item, index) for index, item in enumerate(array)],
    "find": lambda array, test: _found(enumerate(array), test)[1],
    "findIndex": lambda array, test: _found(enumerate(array), test)[0],
    "findLast": lambda array, test: _found(_backwards(array), test)[1],
    "findLastIndex": lambda array, test: _found(_backwards(array), test)[0],
}
"""Name → function of an array and a test of (item, index)."""

WITHOUT_TEST: Final = frozenset(("count", "sum"))
"""Predicates that take the items themselves where no test is written."""
