"""Expression text → a function that works it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, TypeAlias

from kdns import limits
from kdns.expr import functions
from kdns.expr.functions import BUILTINS, OPERATORS, PREDICATES, WITHOUT_TEST, ExpressionError, Frame
from kdns.expr.words import END, Word, number, split

Eval: TypeAlias = Callable[[Frame], Any]

_BINDING: Final = {
    "|": 0, "or": 10, "||": 10, "and": 15, "&&": 15, "==": 20, "!=": 20, "<": 20, ">": 20, ">=": 20, "<=": 20, "in": 20,
    "matches": 20, "contains": 20, "startsWith": 20, "endsWith": 20, "..": 25, "+": 30, "-": 30, "*": 60, "/": 60,
    "%": 60, "**": 100, "^": 100, "??": 500,
}  # fmt: skip
"""How strongly binary operators bind (expr-lang v1.17)."""
_UNARY: Final = {"not": 50, "!": 50, "-": 90, "+": 90}
_RIGHT: Final = frozenset(("**", "^"))
_COMPARISONS: Final = frozenset(("<", ">", "<=", ">="))
_NEGATED: Final = frozenset(("in", "matches", "contains", "startsWith", "endsWith"))
_NESTING: Final = 4
"""What an operand costs of `limits.EXPRESSION_DEPTH`; an operator costs 1."""
_LITERALS: Final = {"true": True, "false": False, "nil": None}


class Parser:
    """Reads one expression."""

    def __init__(self, source: str, functions: Mapping[str, int], variables: Set[str]) -> None:
        self._words = split(source)[::-1]
        self._functions, self._variables = functions, variables
        self._lets: list[str] = []
        self._depth = self._predicates = 0
        self.used: set[str] = set()
        """Functions and variables that the expression uses."""

    def parse(self) -> Eval:
        """The whole expression; raises ExpressionError."""
        value = self._sequence()
        if self._next is not END:
            raise self._unexpected()
        return value

    # -- words

    @property
    def _next(self) -> Word:
        return self._words[-1]

    def _is(self, *signs: str) -> bool:
        return self._next.kind == "sign" and self._next.text in signs

    def _take(self, *signs: str) -> bool:
        if self._is(*signs):
            self._words.pop()
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._unexpected()

    def _name(self) -> str:
        if self._next.kind != "name":
            raise self._unexpected()
        return self._words.pop().text

    def _unexpected(self) -> ExpressionError:
        return ExpressionError(f"unexpected {self._next.text!r}" if self._next.text else "unexpected end of expression")

    # -- expressions

    def _sequence(self) -> Eval:
        """Expressions parted by ``;``: the last one counts, as the others do nothing."""
        value = self._expression(0)
        while self._take(";") and self._next is not END:
            value = self._expression(0)
        return value

    def _expression(self, binding: int) -> Eval:
        depth = self._depth
        self._deeper(_NESTING)
        if not binding and self._take("let"):
            value = self._let()
        elif not binding and self._take("if"):
            value = self._if()
        else:
            value = self._operators(self._unary(), binding)
            while not binding and self._take("?"):
                value = self._conditional(value)
        self._depth = depth
        return value

    def _deeper(self, by: int) -> None:
        self._depth += by
        if self._depth > limits.EXPRESSION_DEPTH:
            raise ExpressionError("nested too deeply")

    def _operators(self, left: Eval, binding: int) -> Eval:
        before = ""
        while self._next.kind == "sign":
            negate = self._next.text == "not" and self._words[-2].text in _NEGATED and self._words[-2].kind == "sign"
            sign = self._words[-2].text if negate else self._next.text
            strength = _BINDING.get(sign, -1)
            if strength < binding:
                break
            self._deeper(1)
            if before == "??" and sign != "??":
                raise ExpressionError(f"operator {sign!r} and ?? cannot be mixed without parentheses")
            del self._words[-1 - negate :]
            if sign == "matches" and self._next.kind == "string":
                functions.compiled(self._next.text)
            if sign == "|":
                left = self._call(self._name(), [left])
            elif sign in _COMPARISONS:
                left = self._comparison(left, sign, strength)
            else:
                left = _binary(sign, left, self._expression(strength + (sign not in _RIGHT)))
            if negate:
                left = _not(left)
            before = sign
        return left

    def _comparison(self, left: Eval, sign: str, strength: int) -> Eval:
        """``a < b <= c``: each with the next."""
        right = self._expression(strength + 1)
        value = _binary(sign, left, right)
        while self._is(*_COMPARISONS):
            sign = self._words.pop().text
            left, right = right, self._expression(strength + 1)
            value = _binary("and", value, _binary(sign, left, right))
        return value

    def _conditional(self, condition: Eval) -> Eval:
        self._deeper(1)
        if self._take(":"):
            yes = condition
        else:
            yes = self._expression(0)
            self._expect(":")
        no = self._expression(0)
        return lambda frame: yes(frame) if functions.boolean(condition(frame)) else no(frame)

    def _if(self) -> Eval:
        condition = self._expression(0)
        yes = self._braced()
        self._expect("else")
        no = self._expression(0) if self._is("if") else self._braced()
        return lambda frame: yes(frame) if functions.boolean(condition(frame)) else no(frame)

    def _braced(self) -> Eval:
        self._expect("{")
        value = self._sequence()
        self._expect("}")
        return value

    def _let(self) -> Eval:
        name = self._name()
        if name in self._functions or name in self._variables or name in BUILTINS or name in self._lets:
            raise ExpressionError(f"cannot redeclare {name}")
        self._expect("=")
        value = self._expression(0)
        self._expect(";")
        self._lets.append(name)
        body = self._sequence()
        self._lets.pop()

        def let(frame: Frame) -> Any:
            frame.lets[name] = value(frame)
            return body(frame)

        return let

    # -- operands

    def _unary(self) -> Eval:
        if self._is(*_UNARY):
            sign = self._words.pop().text
            operand = self._expression(_UNARY[sign])
            if sign in ("not", "!"):
                return self._postfix(_not(operand))
            return self._postfix(_binary("-" if sign == "-" else "+", lambda frame: 0, operand))
        if self._take("("):
            value = self._sequence()
            self._expect(")")
            return self._postfix(value)
        if self._predicates and self._is("#", "."):
            return self._postfix(self._pointer())
        return self._operand()

    def _pointer(self) -> Eval:
        if self._is(".") or (self._take("#") and self._next.kind != "name"):
            return lambda frame: frame.item
        name = self._name()
        if name != "index":
            raise ExpressionError(f"unknown pointer #{name}")
        return lambda frame: frame.index

    def _operand(self) -> Eval:
        word = self._words.pop()
        if word.kind == "number":
            return _constant(number(word.text))
        if word.kind == "string":
            return self._postfix(_constant(word.text))
        if word.kind == "name":
            if word.text in _LITERALS:
                return _constant(_LITERALS[word.text])
            return self._postfix(self._call(word.text, []) if self._is("(") else self._variable(word.text))
        if word == ("sign", "["):
            return self._postfix(self._array())
        if word == ("sign", "{"):
            return self._postfix(self._map())
        self._words.append(word)
        raise self._unexpected()

    def _variable(self, name: str) -> Eval:
        if name in self._lets:
            return lambda frame: frame.lets[name]
        if name not in self._variables:
            raise ExpressionError(f"{name} is a function" if name in self._functions else f"unknown name {name}")
        self.used.add(name)
        return lambda frame: frame.names[name]

    def _list(self, end: str) -> list[Eval]:
        """Expressions parted by commas, up to ``end``; a comma may stand behind the last."""
        out: list[Eval] = []
        while not self._take(end):
            if out:
                self._expect(",")
                if self._take(end):
                    break
            out.append(self._expression(0))
        return out

    def _array(self) -> Eval:
        values = self._list("]")
        return lambda frame: [value(frame) for value in values]

    def _map(self) -> Eval:
        pairs: list[tuple[Eval, Eval]] = []
        while not self._take("}"):
            if pairs:
                self._expect(",")
                if self._take("}"):
                    break
            if self._next.kind in ("name", "string", "number"):
                key = _constant(self._words.pop().text)
            else:
                self._expect("(")
                key = self._sequence()
                self._expect(")")
            self._expect(":")
            pairs.append((key, self._expression(0)))
        return lambda frame: {functions.show(key(frame)): value(frame) for key, value in pairs}

    def _postfix(self, value: Eval) -> Eval:
        """Members and slices behind an operand; from the first ``?.`` on, what there is of nil is nil."""
        fetch = functions.member
        while self._is(".", "?.", "["):
            self._deeper(1)
            sign = self._words.pop().text
            if sign == "?.":
                fetch = functions.optional_member
            if sign == "[" or self._take("["):
                value = self._brackets(value, fetch)
            else:
                value = _binary_call(fetch, value, _constant(self._name()))
        return value

    def _brackets(self, value: Eval, fetch: Callable[[Any, Any], Any]) -> Eval:
        start = None if self._is(":") else self._expression(0)
        if not self._take(":"):
            self._expect("]")
            return _binary_call(fetch, value, start or _constant(None))
        stop = None if self._is("]") else self._expression(0)
        self._expect("]")
        low, high = start or _constant(None), stop or _constant(None)
        return lambda frame: functions.cut(value(frame), low(frame), high(frame))

    # -- calls

    def _call(self, name: str, piped: Sequence[Eval]) -> Eval:
        """A call of ``name``, whose opening parenthesis comes next; ``piped`` stand before its arguments."""
        self._expect("(")
        if name in self._functions:
            self.used.add(name)
            arguments = [*piped, *self._list(")")]
            if len(arguments) != self._functions[name]:
                raise ExpressionError(f"wrong number of arguments for {name}: {len(arguments)}")
            return lambda frame: frame.names[name](*[argument(frame) for argument in arguments])
        if name in PREDICATES:
            return self._predicate(name, piped)
        if name not in BUILTINS:
            raise ExpressionError(f"unknown or unsupported function {name}")
        arguments = [*piped, *self._list(")")]
        function, least, most = BUILTINS[name]
        if not least <= len(arguments) <= most:
            raise ExpressionError(f"wrong number of arguments for {name}: {len(arguments)}")
        return lambda frame: function(*[argument(frame) for argument in arguments])

    def _predicate(self, name: str, piped: Sequence[Eval]) -> Eval:
        if piped:
            array = piped[0]
        else:
            array = self._expression(0)
            if not self._is(")"):
                self._expect(",")
        test: Eval = lambda frame: frame.item  # noqa: E731 - the default of what follows
        if not self._is(")"):
            self._predicates += 1
            test = self._braced() if self._is("{") else self._expression(0)
            self._predicates -= 1
            self._take(",")
        elif name not in WITHOUT_TEST:
            raise ExpressionError(f"{name} needs a predicate")
        self._expect(")")
        work = PREDICATES[name]

        def predicate(frame: Frame) -> Any:
            values = functions.items(array(frame))
            frame.spend(len(values))
            outer = frame.item, frame.index

            def each(item: Any, index: int) -> Any:
                frame.item, frame.index = item, index
                return test(frame)

            result = work(values, each)
            frame.item, frame.index = outer
            return result

        return predicate


def _constant(value: Any) -> Eval:
    return lambda frame: value


def _not(operand: Eval) -> Eval:
    return lambda frame: not functions.boolean(operand(frame))


def _binary_call(function: Callable[[Any, Any], Any], left: Eval, right: Eval) -> Eval:
    return lambda frame: function(left(frame), right(frame))


def _binary(sign: str, left: Eval, right: Eval) -> Eval:
    if sign in ("and", "&&"):
        return lambda frame: functions.boolean(left(frame)) and functions.boolean(right(frame))
    if sign in ("or", "||"):
        return lambda frame: functions.boolean(left(frame)) or functions.boolean(right(frame))
    if sign == "??":

        def coalesce(frame: Frame) -> Any:
            value = left(frame)
            return right(frame) if value is None else value

        return coalesce
    return _binary_call(OPERATORS[sign], left, right)
