"""What the parts of a template do when it is rendered; ``reading`` binds each to its constants with ``partial``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from kdns import limits
from kdns.gotemplate.functions import MISSING, Fields, Method, TemplateError, text, truth, type_text


class State:
    """One rendering."""

    __slots__ = ("out", "rounds", "variables")

    def __init__(self, data: Any, slots: int) -> None:
        self.out: list[str] = []
        """The text so far."""
        self.variables = [data] * slots
        """By slot; the first one is ``$``."""
        self.rounds = 0
        """What all loops have gone round."""


Eval: TypeAlias = Callable[[State, Any], Any]
"""(state, dot) → value; raises TemplateError."""
Run: TypeAlias = Callable[[State, Any], None]
"""(state, dot): add to the output; raises TemplateError."""


class Break(Exception):
    """Leave the innermost loop."""


class Continue(Exception):
    """Go on with the next round of the innermost loop."""


# --- statements ------------------------------------------------------------------------------------------------------


def write(source: str, state: State, dot: Any) -> None:
    """Text between actions."""
    state.out.append(source)


def show(value: Eval, state: State, dot: Any) -> None:
    """``{{ value }}``."""
    state.out.append(text(value(state, dot)))


def store(slot: int, value: Eval, state: State, dot: Any) -> None:
    """``{{ $x := value }}`` and ``{{ $x = value }}``."""
    state.variables[slot] = value(state, dot)


def sequence(runs: list[Run], state: State, dot: Any) -> None:
    """One after another."""
    for run in runs:
        run(state, dot)


def jump(where: type[Exception], state: State, dot: Any) -> None:
    """``{{ break }}`` and ``{{ continue }}``."""
    raise where


def choose(
    slots: list[int], value: Eval, rebinds: bool, body: Run, otherwise: Run | None, state: State, dot: Any
) -> None:
    """``if``, or ``with``, which ``rebinds`` the dot."""
    result = value(state, dot)
    for slot in slots:
        state.variables[slot] = result
    if truth(result):
        body(state, result if rebinds else dot)
    elif otherwise is not None:
        otherwise(state, dot)


def repeat(slots: list[int], value: Eval, body: Run, otherwise: Run | None, state: State, dot: Any) -> None:
    """``range``."""
    items = value(state, dot)
    pairs = _pairs(items)
    if len(slots) == 2 and isinstance(items, int):
        raise TemplateError(f"can't use {items} to iterate over more than one variable")
    for pair in pairs:
        state.rounds += 1
        if state.rounds > limits.TEMPLATE_ROUNDS:
            raise TemplateError(f"over {limits.TEMPLATE_ROUNDS} rounds in range")
        for slot, item in zip(slots, pair if len(slots) == 2 else pair[1:], strict=False):
            state.variables[slot] = item
        try:
            body(state, pair[1])
        except Break:
            break
        except Continue:
            continue
    if not pairs and otherwise is not None:
        otherwise(state, dot)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """What ``range`` goes through: (index or key, item)."""
    if isinstance(value, list):
        return list(enumerate(value))
    if isinstance(value, dict) and not isinstance(value, Fields):
        return sorted(value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return [(number, number) for number in range(min(value, limits.TEMPLATE_ROUNDS + 1))]
    if value is None or value is MISSING:
        return []
    raise TemplateError(f"range can't iterate over a {type_text(value)}")


# --- values ----------------------------------------------------------------------------------------------------------


def the_dot(state: State, dot: Any) -> Any:
    """``.``."""
    return dot


def constant(value: Any, state: State, dot: Any) -> Any:
    """A literal."""
    return value


def variable(slot: int, state: State, dot: Any) -> Any:
    """``$x``."""
    return state.variables[slot]


def decide(wanted: bool, arguments: list[Eval], state: State, dot: Any) -> Any:
    """``or`` (wanted: true) and ``and`` (false): the first value that decides, or the last."""
    value: Any = None
    for argument in arguments:
        value = argument(state, dot)
        if truth(value) is wanted:
            break
    return value


def call(function: Callable[..., Any], arguments: list[Eval], state: State, dot: Any) -> Any:
    """A function of `functions.FUNCTIONS`."""
    return function(*[argument(state, dot) for argument in arguments])


def fail(reason: str, state: State, dot: Any) -> Any:
    """What Go finds wrong only when it comes there."""
    raise TemplateError(reason)


def follow(start: Eval, names: Sequence[str], state: State, dot: Any) -> Any:
    """``start.A.B``."""
    value = start(state, dot)
    for name in names:
        value = _field(value, name)
        if isinstance(value, Method):
            value = _invoked(value, name, [])
    return value


def invoke(start: Eval, names: Sequence[str], arguments: list[Eval], state: State, dot: Any) -> Any:
    """``start.A.Method argument …``."""
    method = _field(follow(start, names[:-1], state, dot), names[-1])
    if not isinstance(method, Method):
        raise TemplateError(f"{names[-1]} has arguments but cannot be invoked as function")
    return _invoked(method, names[-1], [argument(state, dot) for argument in arguments])


def _field(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        if name not in value and isinstance(value, Fields):
            raise TemplateError(f"can't evaluate field {name}")
        return value.get(name, MISSING)
    if value is MISSING:
        return MISSING
    raise TemplateError(f"can't evaluate field {name} in type {type_text(value)}")


def _invoked(method: Method, name: str, arguments: list[Any]) -> Any:
    if len(arguments) != method.arity or not all(isinstance(argument, str) for argument in arguments):
        raise TemplateError(f"wrong number or type of args for {name}: want {method.arity} got {len(arguments)}")
    return method.call(*arguments)
